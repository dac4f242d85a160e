//! Pages of an earlier time, and pages in the place of others: what a disk leaves that loses a write, or writes it elsewhere. Each is whole
//! by itself, with rows whose checksums match. Nothing that was settled comes back, and nothing is lost but what lay there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::cuts::{STORE, dump, open, options, run, sized};
use super::damaged::{DOMAINS, claim, is_of_the_list};
use super::files::{FileSystem, Mode};
use super::node::{Node, Widths};
use super::simulated::{Disk, Survival};
use super::*;
use crate::message::{EventId, MessageId};
use crate::storage::{Item, ItemId, Release};
use crate::testing::conformance::{at, due, item, message_of, settle};

const PAGE: usize = 4096;
/// Forgotten once, and there again under another number.
const AGAIN: &str = "again.example";

fn metadata() -> PathBuf {
    Path::new(STORE).join(open::METADATA)
}

/// A store, and its metadata at some earlier times.
struct Story {
    disk: Disk,
    earlier: Vec<Vec<u8>>,
    originals: BTreeMap<MessageId, NewMessage>,
    /// The next number of an item.
    next: u64,
}

impl Story {
    async fn insert(&mut self, store: &DiskStorage, messages: Vec<NewMessage>) {
        for inserted in store.insert(messages.clone()).await.unwrap() {
            let Inserted::Stored(items) = inserted else { panic!("it is new") };
            self.next = items.iter().map(|(item, _)| item.0 + 1).fold(self.next, u64::max);
        }
        self.originals.extend(messages.into_iter().map(|message| (message.envelope.id, message)));
    }

    fn remember(&mut self) {
        self.earlier.push(self.disk.content(&metadata()));
    }
}

/// Those of the tables.
const WIDTHS: [Widths; 7] = [
    Widths::VARIABLE,
    Widths { key: Some(8), value: None },
    Widths { key: Some(16), value: None },
    Widths { key: Some(16), value: Some(12) },
    Widths { key: Some(24), value: Some(0) },
    Widths { key: Some(25), value: Some(0) },
    Widths { key: Some(8), value: Some(28) },
];

fn first_key(page: &[u8], widths: Widths) -> Option<Vec<u8>> {
    match Node::parse(page.to_vec(), widths, None)? {
        (Node::Leaf(leaf), _) if leaf.entries().all(|entry| entry.is_some()) => {
            leaf.entries().flatten().next().map(|(key, _)| key.to_vec())
        }
        _ => None,
    }
}

fn message(number: u128) -> NewMessage {
    sized(number, DOMAINS[number as usize % 3], 200)
}

fn state(number: usize, value: u8) -> Change {
    Change::PutState(StateRow { key: format!("state {number:03}").into_bytes(), value: vec![value; 50] })
}

fn report(number: u128) -> Change {
    let event = EventId::from_uuid(uuid::Uuid::from_u128(number));
    Change::Report { of: None, event, payload: vec![number as u8; 100].into() }
}

/// Settles the first of three recipients, and lets the others wait, not all for the same time.
fn defer(item: &Item, until: u64) -> Change {
    let mut recipients = item.recipients.clone();
    let settled: Vec<u32> = recipients.drain(..recipients.len() / 3).map(|settled| settled.index).collect();
    recipients.iter_mut().for_each(|recipient| recipient.attempts += 1);
    let parted = recipients.split_off(recipients.len() - recipients.len() / 2);
    let mut released = vec![Release { due: at(until), recipients }];
    released.extend((!parted.is_empty()).then_some(Release { due: at(until + 7), recipients: parted }));
    Change::Update { item: item.id, lease: item.lease, settled, released }
}

/// Mail came, was settled, waits again, and came anew.
async fn story() -> Story {
    let disk = Disk::default();
    let store = open(&disk).await;
    let (earlier, originals) = Default::default();
    let mut story = Story { disk, earlier, originals, next: 0 };
    for from in (1..=300).step_by(20) {
        story.insert(&store, (from..from + 20).map(message).collect()).await;
    }
    for number in 0..20 {
        let items = vec![item("c.example", 1, 3), item("a.example", 1, 1)];
        story.insert(&store, vec![message_of(1_000 + number, 4, items)]).await;
    }
    story.insert(&store, vec![sized(2_000, AGAIN, 10)]).await;
    store.commit((0..80).map(|number| state(number, 0)).collect()).await.unwrap();
    store.commit((0..80).map(report).collect()).await.unwrap();
    story.remember();
    let gone = claim(&store, due(AGAIN, 1_000_000, 9)).await;
    store.commit(vec![settle(&gone[0], &[0])]).await.unwrap();
    for round in 0..4 {
        for (nth, domain) in DOMAINS.iter().enumerate() {
            for (place, item) in claim(&store, due(domain, 1_000_000, 24)).await.iter().enumerate() {
                let all: Vec<u32> = item.recipients.iter().map(|recipient| recipient.index).collect();
                let change = match (place + nth) % 4 {
                    0 => defer(item, 5_000 + round),
                    1 if item.recipients.len() > 1 => settle(item, &[1]),
                    _ => settle(item, &all),
                };
                store.commit(vec![change]).await.unwrap();
                if place % 6 == 5 {
                    story.remember();
                }
            }
        }
        let from = 3_000 + 100 * u128::from(round);
        story.insert(&store, (from..from + 12).map(message).collect()).await;
        let mut changes: Vec<Change> = (0..6).map(|nth| report(from + nth)).collect();
        changes.push(Change::Acknowledge(OutboxPosition(12 * (round + 1))));
        changes.extend((0..5).map(|nth| state(nth * 11 + round as usize, 1)));
        changes.push(Change::DeleteState(format!("state {:03}", 70 + round).into_bytes()));
        store.commit(changes).await.unwrap();
        store.maintain(at(20_000 * (round + 1))).await.unwrap();
        story.remember();
    }
    story.insert(&store, vec![sized(2_001, AGAIN, 10)]).await;
    story.remember();
    let last = claim(&store, due("a.example", 1_000_000, 6)).await;
    let changes = last.iter().map(|item| {
        let all: Vec<u32> = item.recipients.iter().map(|recipient| recipient.index).collect();
        settle(item, &all)
    });
    store.commit(changes.collect()).await.unwrap();
    drop(store);
    story.disk = story.disk.reboot(Survival::All, 1);
    story
}

/// What is there after an opening.
#[derive(Clone, Default)]
struct Found {
    /// With the recipients that are left.
    items: BTreeMap<ItemId, BTreeSet<u32>>,
    state: BTreeSet<Vec<u8>>,
    outbox: BTreeSet<OutboxPosition>,
    told: Vec<String>,
}

/// Opens, and serves all. `None`: the list of tables is damaged, and it stays shut.
async fn found(story: &Story, disk: &Disk, what: &str) -> Option<Found> {
    let mut listed = BTreeSet::new();
    let visit = &mut |message: StoredMessage| listed.extend(message.items.iter().map(|item| item.id));
    let checked = check::run(Path::new(STORE), &options(disk), visit).unwrap();
    let store = match DiskStorage::open_with(STORE, options(disk)).await {
        Err(error) if is_of_the_list(&error) => return None,
        opened => opened.unwrap_or_else(|error| panic!("{what}: {error}")),
    };
    let dump = dump(&store).await.unwrap();
    let told: Vec<String> = store.take_damage().await.iter().map(ToString::to_string).collect();
    let mut recipients = BTreeSet::new();
    for item in &dump.items {
        for recipient in &item.recipients {
            let is_only_one = recipients.insert((item.envelope.id, recipient.index));
            assert!(
                is_only_one,
                "{what}: recipient {} of {} is in two items",
                recipient.index, item.envelope.id
            );
        }
    }
    let items = dump.items.iter().map(|item| {
        (item.id, item.recipients.iter().map(|recipient| recipient.index).collect::<BTreeSet<u32>>())
    });
    let found = Found {
        items: items.collect(),
        state: dump.state.iter().map(|row| row.key.clone()).collect(),
        outbox: dump.outbox.iter().map(|entry| entry.position).collect(),
        told,
    };
    assert!(listed.iter().eq(found.items.keys()), "{what}: checking lists what opening keeps");
    assert_eq!(checked.is_clean(), found.told.is_empty(), "{what}: {:?}", found.told);
    let mut claimed = BTreeSet::new();
    for domain in DOMAINS.into_iter().chain([AGAIN]) {
        let items = claim(&store, due(domain, 1_000_000, 9_999)).await;
        let keys = items.iter().map(|item| BodyKey(item.envelope.id)).collect();
        for (item, body) in items.iter().zip(store.bodies(keys).await.unwrap()) {
            claimed.insert(item.id);
            let original = &story.originals[&item.envelope.id];
            assert_eq!(item.envelope, original.envelope, "{what}");
            assert!(body.as_ref().is_ok_and(|body| *body == original.body), "{what}: {body:?}");
        }
    }
    assert!(claimed.iter().eq(found.items.keys()), "{what}: all that is there is due");
    let new = store.insert(vec![sized(9_000, "a.example", 10)]).await.unwrap();
    let is_new = |item: &ItemId| item.0 >= story.next;
    assert!(
        matches!(&new[..], [Inserted::Stored(items)] if items.iter().all(|(item, _)| is_new(item))),
        "{what}: a number is given twice: {new:?}"
    );
    Some(found)
}

fn lost<T: Ord + Clone>(now: &BTreeSet<T>, found: &BTreeSet<T>) -> BTreeSet<T> {
    now.difference(found).cloned().collect()
}

impl Found {
    fn ids(&self) -> BTreeSet<ItemId> {
        self.items.keys().copied().collect()
    }

    /// Nothing is back, and nothing lost but what is lost `without` the page.
    fn verify(&self, now: &Self, without: &Self, what: &str) {
        let is_back = lost(&self.ids(), &now.ids());
        assert!(is_back.is_empty(), "{what}: {is_back:?} were settled and are back: {:?}", self.told);
        let missing = lost(&now.ids(), &self.ids());
        assert!(
            missing.is_subset(&lost(&now.ids(), &without.ids())),
            "{what}: {missing:?} are lost: {:?}",
            self.told
        );
        assert!(lost(&now.state, &self.state).is_subset(&lost(&now.state, &without.state)), "{what}: state");
        assert!(
            lost(&now.outbox, &self.outbox).is_subset(&lost(&now.outbox, &without.outbox)),
            "{what}: events"
        );
        let differs =
            self.items != now.items || self.state != now.state || !now.outbox.is_subset(&self.outbox);
        assert!(!differs || !self.told.is_empty(), "{what}");
        for (item, recipients) in &self.items {
            assert!(now.items[item].is_subset(recipients), "{what}: a recipient of {item:?} is lost");
        }
    }

    fn says(&self, words: &str) -> bool {
        self.told.iter().any(|told| told.contains(words))
    }
}

/// The store, what it has, and what is left of that without each of its pages.
struct Measure {
    story: Story,
    content: Vec<u8>,
    now: Found,
    without: Vec<Option<Found>>,
}

impl Measure {
    async fn take() -> Self {
        let story = story().await;
        let content = story.disk.content(&metadata());
        let now = found(&story, &story.disk.reboot(Survival::All, 1), "as it is").await.unwrap();
        assert!(now.told.is_empty() && now.items.len() > 150, "{:?}", now.told);
        let mut measure = Self { story, content, now, without: Vec::new() };
        for page in 0..measure.content.len() / PAGE {
            let zeroed = measure.with(&[(page, &[0; PAGE])]);
            let is_used = page > 0 && measure.page(page).iter().any(|octet| *octet != 0);
            let without = match is_used {
                true => found(&measure.story, &zeroed, &format!("page {page} zeroed")).await,
                false => None,
            };
            measure.without.push(without);
        }
        measure
    }

    fn page(&self, page: usize) -> &[u8] {
        &self.content[page * PAGE..(page + 1) * PAGE]
    }

    fn with(&self, pages: &[(usize, &[u8])]) -> Disk {
        let disk = self.story.disk.reboot(Survival::All, 1);
        let file = disk.open(&metadata(), Mode::Write).unwrap();
        for (page, octets) in pages {
            file.write_all_at(octets, (page * PAGE) as u64).unwrap();
        }
        disk.reboot(Survival::All, 1)
    }

    /// What the leaf in a page was earlier, wherever that lay, or what lay in the page, a few of each.
    fn before(&self, page: usize) -> Vec<Vec<u8>> {
        let now = self.page(page);
        let begins = WIDTHS.map(|widths| first_key(now, widths));
        let mut before: Vec<&[u8]> = Vec::new();
        // The last ones first: of those all that they lead to may still be there.
        for earlier in self.story.earlier.iter().rev() {
            for (nth, octets) in earlier.chunks_exact(PAGE).enumerate() {
                let is_leaf_of_then = || {
                    let same = |(begin, widths): (&Option<Vec<u8>>, Widths)| {
                        begin.is_some() && first_key(octets, widths) == *begin
                    };
                    begins.iter().zip(WIDTHS).any(same)
                };
                if octets != now && !before.contains(&octets) && (nth == page || is_leaf_of_then()) {
                    before.push(octets);
                }
            }
        }
        let step = before.len().div_ceil(4).max(1);
        before.into_iter().step_by(step).map(<[u8]>::to_vec).collect()
    }

    /// Pages that are more than room.
    fn used(&self) -> Vec<usize> {
        (1..self.content.len() / PAGE).filter(|page| self.page(*page)[0] != 0).collect()
    }

    /// Puts other octets in the place of a page. `None`: the store stays shut.
    async fn put(&self, page: usize, octets: &[u8], what: &str) -> Option<Found> {
        let found = found(&self.story, &self.with(&[(page, octets)]), what).await?;
        match &self.without[page] {
            Some(without) => found.verify(&self.now, without, what),
            None => assert!(found.items == self.now.items, "{what}"),
        }
        Some(found)
    }
}

#[test]
fn a_page_of_an_earlier_time_brings_nothing_back() {
    run(async {
        let measure = Measure::take().await;
        let (mut tried, mut left_out, mut shut) = (0, 0, 0);
        for page in measure.used() {
            for (nth, octets) in measure.before(page).iter().enumerate() {
                let found = measure.put(page, octets, &format!("page {page}, as the {nth}th before")).await;
                shut += usize::from(found.is_none());
                tried += usize::from(found.as_ref().is_some_and(|found| !found.told.is_empty()));
                left_out += usize::from(found.is_some_and(|found| found.says("are left out")));
            }
        }
        assert!(tried > 20 && left_out > 5, "{tried} {left_out} {shut}");
    });
}

#[test]
fn a_page_in_the_place_of_another_brings_nothing_back() {
    run(async {
        let measure = Measure::take().await;
        let used = measure.used();
        let mut tried = 0;
        for seed in 0..120 {
            let mut random = fastrand::Rng::with_seed(seed);
            let [one, other] = [0; 2].map(|_| used[random.usize(..used.len())]);
            let what = format!("page {other} at {one}");
            let Some(found) = measure.put(one, measure.page(other), &what).await else { continue };
            tried += usize::from(!found.told.is_empty());
        }
        assert!(tried > 30, "{tried}");
    });
}

#[test]
fn two_pages_in_each_others_place_bring_nothing_back() {
    run(async {
        let measure = Measure::take().await;
        let used = measure.used();
        let mut tried = 0;
        for seed in 0..120 {
            let mut random = fastrand::Rng::with_seed(1_000 + seed);
            let [one, other] = [0; 2].map(|_| used[random.usize(..used.len())]);
            let what = format!("pages {one} and {other}");
            let disk = measure.with(&[(one, measure.page(other)), (other, measure.page(one))]);
            let Some(found) = found(&measure.story, &disk, &what).await else { continue };
            // What the record of pages in use would find is lost where that is damaged too.
            let mut without = found.clone();
            if found.says("rows of the table items are lost") {
                without.items.clear();
            }
            if found.says("rows of the table state are lost") {
                without.state.clear();
            }
            if found.says("rows of the table outbox are lost") {
                without.outbox.clear();
            }
            found.verify(&measure.now, &without, &what);
            tried += usize::from(!found.told.is_empty());
        }
        assert!(tried > 30, "{tried}");
    });
}

/// And the other way round.
#[test]
fn a_branch_that_reads_as_a_leaf_loses_nothing() {
    run(async {
        let measure = Measure::take().await;
        let mut tried = 0;
        for page in measure.used() {
            let mut octets = measure.page(page).to_vec();
            octets[0] ^= 3;
            let what = format!("page {page} with another type");
            let Some(found) = measure.put(page, &octets, &what).await else { continue };
            let is_branch = measure.page(page)[0] == 2;
            if is_branch && found.says("of the table") {
                assert!(!found.says("are lost"), "{what}: {:?}", found.told);
                tried += 1;
            }
        }
        assert!(tried > 2, "{tried}");
    });
}

/// Some wait for another time, and so have an item of their own, which lies in a page that is as it was written.
#[test]
fn recipients_that_parted_from_an_item_of_an_earlier_time_are_in_one() {
    run(async {
        let disk = Disk::default();
        let mut story =
            Story { disk: disk.clone(), earlier: Vec::new(), originals: BTreeMap::new(), next: 0 };
        let store = open(&disk).await;
        story.insert(&store, vec![message_of(1, 1, vec![item("c.example", 1, 10)])]).await;
        for from in (2..=302).step_by(20) {
            story.insert(&store, (from..from + 20).map(message).collect()).await;
        }
        drop(store);
        story.remember();
        let store = open(&disk).await;
        let parted = claim(&store, due("c.example", 1, 1)).await.remove(0);
        store.commit(vec![defer(&parted, 7_000)]).await.unwrap();
        drop(store);
        let key = parted.id.0.to_le_bytes();
        let with_its_row = |content: &[u8]| {
            let has = |page: &[u8]| match Node::parse(page.to_vec(), WIDTHS[1], None) {
                Some((Node::Leaf(leaf), _)) => {
                    let row = leaf.entries().flatten().find(|(found, _)| *found == key);
                    row.is_some_and(|(_, row)| codec::item_from_row(parted.id, row).is_ok())
                }
                _ => false,
            };
            content.chunks_exact(PAGE).enumerate().filter(|(_, page)| has(page)).map(|(nth, _)| nth).collect()
        };
        let (now, then) = (disk.content(&metadata()), &story.earlier[0]);
        let (pages, before): (Vec<usize>, Vec<usize>) = (with_its_row(&now), with_its_row(then));
        let mut tried = 0;
        for (page, of_then) in pages.iter().flat_map(|page| before.iter().map(move |then| (page, then))) {
            let octets = &then[of_then * PAGE..(of_then + 1) * PAGE];
            let lost = disk.reboot(Survival::All, 1);
            lost.open(&metadata(), Mode::Write).unwrap().write_all_at(octets, (page * PAGE) as u64).unwrap();
            let found = found(&story, &lost.reboot(Survival::All, 1), "of then").await.unwrap();
            let items = found.items.values().filter(|recipients| recipients.len() > 1);
            let recipients: Vec<usize> = items.map(|recipients| recipients.len()).collect();
            // The three that were settled are in the row of then, beside those that stayed.
            tried += usize::from(recipients.contains(&7) && recipients.contains(&3));
        }
        assert!(tried > 0, "{pages:?} {before:?}");
    });
}
