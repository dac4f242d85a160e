use super::*;
use crate::storage::{Change, ChangeOutcome, ClaimPart, ClaimRequest, LaneHead, Release};

fn age(domain: &str, before: u64, limit: usize) -> ClaimPart {
    ClaimPart::Age { lane: lane(domain), before: at(before), limit }
}

/// Of a lane in which nothing has an expiry of its own.
fn head(domain: &str, next_due: u64, oldest: u64) -> LaneHead {
    LaneHead { next_due: Some(at(next_due)), oldest: Some(at(oldest)), ..LaneHead::empty(lane(domain)) }
}

fn no_head(domain: &str) -> LaneHead {
    LaneHead::empty(lane(domain))
}

/// Ages 40, 30, 20 …; due at 15, 30 (fresh), 25, 20 (fresh), and one elsewhere.
async fn mixed<F: Fixture>() -> F {
    let fixture = F::open().await;
    let messages = [(1, 40, 45), (2, 30, 30), (3, 10, 35), (4, 20, 20)];
    let batch = messages.map(|(number, age, due)| message_of(number, age, vec![item("a.example", due, 1)]));
    fixture.store().insert(batch.into()).await.unwrap();
    fixture.insert(message(9, "b.example", 1)).await;
    fixture
}

pub(super) async fn due_items_come_earliest_first<F: Fixture>() {
    let fixture = mixed::<F>().await;
    let first = fixture.claimed(A, at(50), due("a.example", 44, 2)).await;
    assert_eq!(numbers(&first.items), [4, 2]);
    assert_eq!(first.heads, [head("a.example", 35, 10)]);
    let second = fixture.claimed(A, at(50), due("a.example", 44, 9)).await;
    assert_eq!(numbers(&second.items), [3], "the last is not due yet");
    assert_eq!(second.heads, [head("a.example", 45, 40)]);
    let last = fixture.claimed(A, at(50), due("a.example", 45, 9)).await;
    assert_eq!((numbers(&last.items), last.heads), (vec![1], vec![no_head("a.example")]));
    assert_eq!(fixture.claimed(A, at(50), due("c.example", 45, 9)).await.heads, [no_head("c.example")]);
}

pub(super) async fn old_items_come_oldest_first<F: Fixture>() {
    let fixture = mixed::<F>().await;
    assert_eq!(numbers(&fixture.claim(A, age("a.example", 30, 2)).await), [3, 4]);
    let rest = fixture.claimed(A, at(50), age("a.example", 30, 9)).await;
    assert_eq!((numbers(&rest.items), rest.heads), (vec![2], vec![head("a.example", 45, 40)]));
}

/// Ages 40, 30, 10, 20; the second has no expiry of its own, the others have 50, 60, 70.
async fn expiring<F: Fixture>() -> F {
    let fixture = F::open().await;
    for (number, age, expiry) in [(1, 40, Some(50)), (2, 30, None), (3, 10, Some(60)), (4, 20, Some(70))] {
        let new = with(message(number, "a.example", age), |envelope| envelope.expires_at = expiry.map(at));
        fixture.insert(new).await;
    }
    fixture
}

pub(super) async fn expiring_items_come_earliest_first<F: Fixture>() {
    let fixture = expiring::<F>().await;
    let part = |limit| ClaimPart::Expiry { lane: lane("a.example"), before: at(60), limit };
    let heads = |oldest_with_expiry, first_expiry| {
        let (with, first) = (Some(at(oldest_with_expiry)), Some(at(first_expiry)));
        vec![LaneHead { oldest_with_expiry: with, first_expiry: first, ..head("a.example", 10, 30) }]
    };
    assert_eq!(fixture.store().heads(None, 9).await.unwrap(), heads(10, 50));
    assert_eq!(numbers(&fixture.claim(A, part(1)).await), [1]);
    let rest = fixture.claimed(A, at(50), part(9)).await;
    assert_eq!(numbers(&rest.items), [3]);
    let left = LaneHead { next_due: Some(at(20)), ..heads(20, 70).remove(0) };
    assert_eq!(rest.heads, [left]);
}

pub(super) async fn expiring_items_are_found_by_age_too<F: Fixture>() {
    let fixture = expiring::<F>().await;
    let part =
        |before, limit| ClaimPart::AgeWithExpiry { lane: lane("a.example"), before: at(before), limit };
    assert_eq!(numbers(&fixture.claim(A, age("a.example", 100, 9)).await), [2], "the other half");
    let first = fixture.claim(A, part(100, 2)).await;
    assert_eq!(numbers(&first), [3, 4]);
    assert!(fixture.claim(A, part(39, 9)).await.is_empty(), "the last is younger");
    // Age does not change with the due time, and does not need a lease to last.
    let later = Release { due: at(200), recipients: first[1].recipients.clone() };
    let (item, lease) = (first[1].id, first[1].lease);
    fixture.change(Change::Update { item, lease, settled: vec![], released: vec![later] }).await;
    let fixture = fixture.reopen().await;
    let both = fixture.claimed(B, at(100), part(40, 9)).await;
    assert_eq!(numbers(&both.items), [3, 4, 1]);
    assert_eq!(both.heads, [head("a.example", 30, 30)]);
    for item in &both.items {
        fixture.change(settle(item, &[0])).await;
    }
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.store().heads(None, 9).await.unwrap(), [head("a.example", 30, 30)], "no key is left");
}

pub(super) async fn claims_are_disjoint<F: Fixture>() {
    let fixture = F::open().await;
    let batch = (1..=100).map(|number| message(number, "a.example", number as u64 % 7)).collect();
    fixture.store().insert(batch).await.unwrap();
    let request = |owner, part: ClaimPart| {
        let what = vec![part.clone(), part];
        fixture.store().claim(ClaimRequest { owner, now: at(10), until: at(20), what })
    };
    let (one, two) = tokio::join!(request(A, due("a.example", 9, 20)), request(B, age("a.example", 9, 20)));
    let mut all = numbers(&one.unwrap().items);
    all.extend(numbers(&two.unwrap().items));
    assert_eq!(all.len(), 80);
    all.extend(numbers(&fixture.claimed(B, at(10), due("a.example", 9, 1000)).await.items));
    all.sort_unstable();
    assert_eq!(all, (1..=100).collect::<Vec<_>>());
}

pub(super) async fn a_reopen_drops_leases<F: Fixture>() {
    let fixture = mixed::<F>().await;
    let before = fixture.claim(A, due("a.example", 100, 9)).await;
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.store().heads(None, 1).await.unwrap(), [head("a.example", 20, 10)]);
    assert_eq!(fixture.change(settle(&before[0], &[0])).await, ChangeOutcome::Stale);
    let after = fixture.claim(B, due("a.example", 100, 9)).await;
    assert_eq!(numbers(&after), numbers(&before));
    assert!(after.iter().zip(&before).all(|(after, before)| after.lease > before.lease));
    assert_eq!(fixture.change(settle(&before[0], &[0])).await, ChangeOutcome::Stale);
}

pub(super) async fn leases_run_out_and_are_fenced<F: Fixture>() {
    let fixture = F::open().await;
    fixture.store().insert((1..=3).map(|n| message(n, "a.example", 1)).collect()).await.unwrap();
    let old = fixture.claimed(A, at(100), due("a.example", 1, 9)).await.items;
    assert!(fixture.claimed(B, at(160), due("a.example", 1, 9)).await.items.is_empty(), "held until 160");
    let taken = fixture.claimed(B, at(161), due("a.example", 1, 1)).await;
    assert_eq!(numbers(&taken.items), [1]);
    assert_eq!(taken.heads, [head("a.example", 1, 1)], "the others are free too");
    assert_eq!(fixture.change(settle(&old[0], &[0])).await, ChangeOutcome::Stale);
    assert_eq!(
        fixture.change(settle(&old[1], &[0])).await,
        ChangeOutcome::Applied,
        "late, but nobody took it"
    );
    assert_eq!(fixture.change(settle(&taken.items[0], &[0])).await, ChangeOutcome::Applied);
    assert_eq!(numbers(&fixture.claimed(B, at(161), due("a.example", 1, 9)).await.items), [3]);
    assert_eq!(fixture.change(settle(&old[2], &[0])).await, ChangeOutcome::Stale);
}

pub(super) async fn an_owner_extends_its_leases<F: Fixture>() {
    let fixture = F::open().await;
    fixture.store().insert((1..=2).map(|n| message(n, "a.example", n as u64)).collect()).await.unwrap();
    fixture.claimed(A, at(100), due("a.example", 1, 9)).await;
    fixture.store().renew(A, at(500)).await.unwrap();
    assert!(fixture.claimed(B, at(500), due("a.example", 1, 9)).await.items.is_empty());
    fixture.claimed(A, at(490), due("a.example", 2, 9)).await;
    assert!(
        fixture.claimed(B, at(550), due("a.example", 1, 9)).await.items.is_empty(),
        "a claim extends all"
    );
    assert_eq!(fixture.claimed(B, at(551), due("a.example", 9, 9)).await.items.len(), 2);
}

pub(super) async fn named_items_are_claimed_unless_somebody_has_them<F: Fixture>() {
    let fixture = F::open().await;
    let mut ids = Vec::new();
    for number in 1..=3 {
        ids.push(stored(fixture.insert(message(number, "a.example", number as u64)).await)[0].0);
    }
    let held = fixture.claim(A, due("a.example", 1, 1)).await;
    let named = ClaimPart::Items([ids.clone(), vec![crate::storage::ItemId(1 << 40)]].concat());
    let claimed = fixture.claimed(B, at(1_000), named.clone()).await;
    assert_eq!((numbers(&claimed.items), claimed.heads), (vec![2, 3], vec![]));
    let own = fixture.claim(A, named).await;
    assert_eq!(own, held, "its own item under the lease it has");
}

pub(super) async fn heads_cover_what_is_free_only<F: Fixture>() {
    let fixture = mixed::<F>().await;
    let both = [head("a.example", 20, 10), head("b.example", 1, 1)];
    assert_eq!(fixture.store().heads(None, 9).await.unwrap(), both);
    let held = fixture.claim(A, due("a.example", 100, 9)).await;
    assert_eq!(fixture.store().heads(None, 9).await.unwrap(), both[1..]);
    fixture.change(Change::Unclaim { item: held[0].id, lease: held[0].lease }).await;
    assert_eq!(fixture.store().heads(None, 1).await.unwrap(), [head("a.example", 20, 20)]);
    let new = message_of(5, 2, vec![item("a.example", 3, 1)]);
    fixture.insert(new).await;
    assert_eq!(fixture.store().heads(None, 1).await.unwrap(), [head("a.example", 3, 2)]);
}

pub(super) async fn heads_page_in_lane_order<F: Fixture>() {
    let fixture = F::open().await;
    let names = ["b.example", "a.example", "aa.example", "a-b.example", "c.example"];
    for (number, name) in names.into_iter().enumerate() {
        fixture.insert(message(number as u128, name, 1)).await;
    }
    let mut odd = message(50, "b.example", 1);
    odd.items[0].lane.source = "s\0".into();
    odd.items.push(item("b.example", 1, 1));
    odd.items[1].lane.priority = crate::message::Priority::High;
    let mut lanes: Vec<_> = names.map(lane).into();
    lanes.extend(odd.items.iter().map(|item| item.lane.clone()));
    lanes.sort();
    fixture.insert(odd).await;
    for limit in [1, 2, 100] {
        let mut seen = Vec::new();
        loop {
            let page = fixture.store().heads(seen.last().cloned(), limit).await.unwrap();
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            seen.extend(page.into_iter().map(|head| head.lane));
        }
        assert_eq!(seen, lanes);
    }
    assert!(fixture.store().heads(None, 0).await.unwrap().is_empty());
}

pub(super) async fn an_unclaimed_item_is_as_it_was<F: Fixture>() {
    let fixture = mixed::<F>().await;
    let first = fixture.claim(A, due("a.example", 100, 9)).await;
    let unclaim = Change::Unclaim { item: first[1].id, lease: first[1].lease };
    assert_eq!(fixture.change(unclaim.clone()).await, ChangeOutcome::Applied);
    assert_eq!(fixture.change(unclaim).await, ChangeOutcome::Stale);
    let again = fixture.claim(B, due("a.example", 100, 9)).await;
    assert_eq!(numbers(&again), [2]);
    assert_eq!((again[0].id, &again[0].recipients), (first[1].id, &first[1].recipients));
    assert!(again[0].lease > first[1].lease);
}
