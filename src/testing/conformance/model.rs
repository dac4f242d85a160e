//! Random sequences against a model that scans everything.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use super::*;
use crate::clock::Timestamp;
use crate::storage::{
    Change, ClaimPart, ClaimRequest, Filter, Item, ItemId, Lane, LaneHead, Lease, Owner, Release,
};

#[derive(Clone, Debug)]
struct Known {
    lane: Lane,
    age: Timestamp,
    due: Timestamp,
    expiry: Option<Timestamp>,
    recipients: Vec<u32>,
    lease: Option<(Owner, Lease)>,
}

#[derive(Default)]
struct Model {
    items: BTreeMap<ItemId, Known>,
    until: BTreeMap<Owner, Timestamp>,
    /// The time of the last claim: only a claim says how late it is.
    told: Timestamp,
}

impl Model {
    fn is_free(&self, item: &Known, now: Timestamp) -> bool {
        item.lease.is_none_or(|(owner, _)| self.until.get(&owner).is_some_and(|until| *until < now))
    }

    /// Heads as a claim at `now` would leave them.
    fn head(&self, lane: &Lane, now: Timestamp) -> Option<LaneHead> {
        let free: Vec<_> =
            self.items.values().filter(|item| item.lane == *lane && self.is_free(item, now)).collect();
        let next_due = free.iter().map(|item| item.due).min()?;
        let oldest = free.iter().filter(|item| item.expiry.is_none()).map(|item| item.age).min();
        let oldest_with_expiry = free.iter().filter(|item| item.expiry.is_some()).map(|item| item.age).min();
        let first_expiry = free.iter().filter_map(|item| item.expiry).min();
        let next_due = Some(next_due);
        Some(LaneHead { lane: lane.clone(), next_due, oldest, oldest_with_expiry, first_expiry })
    }

    /// Gives all leases back: where engines share a store, they may hold over a restart.
    fn unclaim_all(&self) -> Vec<Change> {
        let leased = self.items.iter().filter_map(|(id, item)| Some((*id, item.lease?.1)));
        leased.map(|(item, lease)| Change::Unclaim { item, lease }).collect()
    }

    /// What a claim may return, with the times that decide.
    fn candidates(&self, part: &ClaimPart, now: Timestamp) -> BTreeMap<ItemId, Timestamp> {
        let (lane, before, time): (_, _, fn(&Known) -> Option<Timestamp>) = match part {
            ClaimPart::Due { lane, before, .. } => (lane, before, |item| Some(item.due)),
            ClaimPart::Age { lane, before, .. } => {
                (lane, before, |item| item.expiry.is_none().then_some(item.age))
            }
            ClaimPart::AgeWithExpiry { lane, before, .. } => {
                (lane, before, |item| item.expiry.map(|_| item.age))
            }
            ClaimPart::Expiry { lane, before, .. } => (lane, before, |item| item.expiry),
            ClaimPart::Items(_) => panic!("not by name"),
        };
        self.items
            .iter()
            .filter(|(_, item)| item.lane == *lane && self.is_free(item, now))
            .filter_map(|(id, item)| Some((*id, time(item)?)))
            .filter(|(_, time)| time <= before)
            .collect()
    }
}

pub(super) async fn random_sequences_agree_with_a_naive_model<F: StorageUnderTest>() {
    for seed in 0..8 {
        run::<F>(seed).await;
    }
}

async fn run<F: StorageUnderTest>(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut subject = Subject::<F>::open().await;
    let mut model = Model::default();
    let mut held: Vec<Item> = Vec::new();
    let mut now = at(1_000);
    let lanes = ["a.example", "b.example", "c.example"];
    let mut owners = [A, B];
    for step in 0..150u128 {
        now = now + Duration::from_secs(random.u64(0..4));
        let place = format!("seed {seed} step {step}");
        match random.u32(0..10) {
            0..3 => {
                let age = random.u64(0..50);
                let items: Vec<_> = (0..random.usize(1..4))
                    .map(|_| {
                        let due = if random.bool() { age } else { random.u64(0..60) };
                        let mut new = item(lanes[random.usize(0..3)], due, random.u32(1..4));
                        new.claim_for = (random.u8(0..4) == 0).then_some(owners[0]);
                        new
                    })
                    .collect();
                let expiry = random.bool().then(|| at(random.u64(0..100)));
                let new = with(message_of(step, age, items), |envelope| envelope.expires_at = expiry);
                let answers = stored(subject.insert(new.clone()).await);
                for (source, (id, lease)) in new.items.iter().zip(answers) {
                    assert_eq!(lease.is_some(), source.claim_for.is_some());
                    let recipients = source.recipients.iter().map(|recipient| recipient.index).collect();
                    let lease = lease.map(|lease| (owners[0], lease));
                    let lane = source.lane.clone();
                    model
                        .items
                        .insert(id, Known { lane, age: at(age), due: source.due, expiry, recipients, lease });
                }
            }
            3..6 => {
                let owner = owners[usize::from(random.bool())];
                let before = at(random.u64(0..100));
                let (lane, limit) = (lane(lanes[random.usize(0..3)]), random.usize(1..5));
                let part = match random.u8(0..4) {
                    0 => ClaimPart::Due { lane: lane.clone(), before, limit },
                    1 => ClaimPart::Age { lane: lane.clone(), before, limit },
                    2 => ClaimPart::AgeWithExpiry { lane: lane.clone(), before, limit },
                    _ => ClaimPart::Expiry { lane: lane.clone(), before, limit },
                };
                let until = now + Duration::from_secs(random.u64(0..20));
                let request = ClaimRequest { owner, now, until, what: vec![part.clone()] };
                let claimed = subject.storage().claim(request).await.works();
                model.told = now;
                let longest = model.until.get(&owner).copied().unwrap_or_default().max(until);
                model.until.insert(owner, longest);
                let mut candidates = model.candidates(&part, now);
                let mut expected: Vec<_> = candidates.values().copied().collect();
                expected.sort_unstable();
                expected.truncate(limit);
                // Those of one time may come in any order.
                let found: Vec<_> = claimed.items.iter().map(|item| candidates.remove(&item.id)).collect();
                assert_eq!(found, expected.into_iter().map(Some).collect::<Vec<_>>(), "{place}");
                for item in &claimed.items {
                    model.items.get_mut(&item.id).unwrap().lease = Some((owner, item.lease));
                }
                let head = model.head(&lane, now);
                assert_eq!(claimed.heads, [head.unwrap_or_else(|| LaneHead::empty(lane))], "{place}");
                held.extend(claimed.items);
            }
            6..9 if !held.is_empty() => {
                let item = held.swap_remove(random.usize(0..held.len()));
                let current = model.items.get(&item.id).and_then(|known| known.lease);
                let is_current = current.is_some_and(|(_, lease)| lease == item.lease);
                let mut settled = Vec::new();
                let mut groups: BTreeMap<u64, Vec<_>> = BTreeMap::new();
                for recipient in &item.recipients {
                    match random.u8(0..4) {
                        0 => settled.push(recipient.index),
                        1 | 2 => groups.entry(random.u64(0..90)).or_default().push(recipient.clone()),
                        _ => {}
                    }
                }
                let unclaim = random.u8(0..5) == 0;
                let change = if unclaim {
                    Change::Unclaim { item: item.id, lease: item.lease }
                } else {
                    let released = groups
                        .iter()
                        .map(|(due, recipients)| Release { due: at(*due), recipients: recipients.clone() })
                        .collect();
                    Change::Update { item: item.id, lease: item.lease, settled, released }
                };
                let outcome = subject.change(change.clone()).await;
                let applied = outcome == crate::storage::ChangeOutcome::Applied;
                assert_eq!(applied, is_current, "{place}");
                if applied {
                    apply(&subject, &mut model, &item, &change).await;
                    let known = model.items.get(&item.id).and_then(|known| known.lease);
                    if known.is_some_and(|(_, lease)| lease == item.lease) {
                        held.push(item);
                    }
                }
            }
            9 => {
                subject.storage().maintain(now).await.works();
                if random.u8(0..3) == 0 {
                    if !subject.storage().is_exclusive() {
                        subject.storage().commit(model.unclaim_all()).await.works();
                    }
                    subject = subject.reopen().await;
                    owners = [A, B].map(|owner| subject.owner(owner));
                    held.clear();
                    model.until.clear();
                    model.items.values_mut().for_each(|item| item.lease = None);
                }
            }
            _ => {}
        }
        assert_eq!(subject.storage().usage().await.works().items, model.items.len() as u64, "{place}");
        let lane = lane(lanes[random.usize(0..3)]);
        let mut known: Vec<_> =
            model.items.iter().filter(|(_, item)| item.lane == lane).map(|(id, _)| *id).collect();
        known.sort_by_key(|id| (model.items[id].due, *id));
        assert_eq!(subject.storage().count(&lane).await.works(), known.len() as u64, "{place}");
        let listed = subject.storage().list(Filter::Lane(lane), None, 1_000).await.works();
        assert_eq!(listed.iter().map(|item| item.id).collect::<Vec<_>>(), known, "{place}");
        let told = model.told;
        let heads: Vec<_> = lanes.iter().filter_map(|name| model.head(&super::lane(name), told)).collect();
        assert_eq!(subject.storage().heads(None, 9).await.works(), heads, "{place}");
    }
}

/// Follows an applied change; the ids of new items are learnt from the store.
async fn apply<F: StorageUnderTest>(subject: &Subject<F>, model: &mut Model, item: &Item, change: &Change) {
    let message = crate::storage::Filter::Message(item.envelope.id);
    let listed = subject.storage().list(message, None, 1_000).await.works();
    let before = model.items.get(&item.id).unwrap().clone();
    if let Change::Unclaim { .. } = change {
        model.items.get_mut(&item.id).unwrap().lease = None;
        return;
    }
    let Change::Update { settled, released, .. } = change else { panic!("{change:?}") };
    let mut groups: BTreeMap<Vec<u32>, Timestamp> = BTreeMap::new();
    let mut left = before.recipients.clone();
    left.retain(|index| !settled.contains(index));
    for release in released {
        let mut group: Vec<_> = release.recipients.iter().map(|recipient| recipient.index).collect();
        group.retain(|index| left.contains(index));
        left.retain(|index| !group.contains(index));
        if !group.is_empty() {
            groups.insert(group, release.due);
        }
    }
    model.items.remove(&item.id);
    for found in listed {
        let indices: Vec<_> = found.recipients.iter().map(|recipient| recipient.index).collect();
        if found.id == item.id && indices == left {
            model.items.insert(found.id, Known { recipients: indices, ..before.clone() });
        } else if let Entry::Vacant(new) = model.items.entry(found.id) {
            let Some(due) = groups.remove(&indices) else { panic!("{found:?} is none of the releases") };
            assert_eq!(found.due, due);
            new.insert(Known { due, recipients: indices, lease: None, ..before.clone() });
        }
    }
    assert!(groups.is_empty(), "a group is missing");
    assert!(left.is_empty() || model.items.contains_key(&item.id), "those left are missing");
}
