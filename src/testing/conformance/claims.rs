use super::*;
use crate::message::Priority;
use crate::storage::{Change, ChangeOutcome, ClaimPart, ClaimRequest, ItemId, LaneHead, Release};

pub(super) async fn due_items_come_earliest_first<F: StorageUnderTest>() {
    let subject = mixed::<F>().await;
    let first = subject.claimed(A, at(50), due("a.example", 44, 2)).await;
    assert_eq!(numbers(&first.items), [4, 2]);
    assert_eq!(first.heads, [head("a.example", 35, 10)]);
    let second = subject.claimed(A, at(50), due("a.example", 44, 9)).await;
    assert_eq!(numbers(&second.items), [3], "the last is not due yet");
    assert_eq!(second.heads, [head("a.example", 45, 40)]);
    let last = subject.claimed(A, at(50), due("a.example", 45, 9)).await;
    assert_eq!((numbers(&last.items), last.heads), (vec![1], vec![no_head("a.example")]));
    assert_eq!(subject.claimed(A, at(50), due("c.example", 45, 9)).await.heads, [no_head("c.example")]);
}

pub(super) async fn old_items_come_oldest_first<F: StorageUnderTest>() {
    let subject = mixed::<F>().await;
    assert_eq!(numbers(&subject.claim(A, age("a.example", 30, 2)).await), [3, 4]);
    let rest = subject.claimed(A, at(50), age("a.example", 30, 9)).await;
    assert_eq!((numbers(&rest.items), rest.heads), (vec![2], vec![head("a.example", 45, 40)]));
}

/// Ages 40, 30, 10, 20; the second has no expiry of its own, the others have 50, 60, 70.
async fn expiring<F: StorageUnderTest>() -> Subject<F> {
    let subject = Subject::<F>::open().await;
    for (number, age, expiry) in [(1, 40, Some(50)), (2, 30, None), (3, 10, Some(60)), (4, 20, Some(70))] {
        let new = with(message(number, "a.example", age), |envelope| envelope.expires_at = expiry.map(at));
        subject.insert(new).await;
    }
    subject
}

pub(super) async fn expiring_items_come_earliest_first<F: StorageUnderTest>() {
    let subject = expiring::<F>().await;
    let part = |limit| ClaimPart::Expiry { lane: lane("a.example"), before: at(60), limit };
    let heads = |oldest_with_expiry, first_expiry| {
        let (with, first) = (Some(at(oldest_with_expiry)), Some(at(first_expiry)));
        vec![LaneHead { oldest_with_expiry: with, first_expiry: first, ..head("a.example", 10, 30) }]
    };
    assert_eq!(subject.storage().heads(None, 9).await.works(), heads(10, 50));
    assert_eq!(numbers(&subject.claim(A, part(1)).await), [1]);
    let rest = subject.claimed(A, at(50), part(9)).await;
    assert_eq!(numbers(&rest.items), [3]);
    let left = LaneHead { next_due: Some(at(20)), ..heads(20, 70).remove(0) };
    assert_eq!(rest.heads, [left]);
}

pub(super) async fn expiring_items_are_found_by_age_too<F: StorageUnderTest>() {
    let subject = expiring::<F>().await;
    let part =
        |before, limit| ClaimPart::AgeWithExpiry { lane: lane("a.example"), before: at(before), limit };
    assert_eq!(numbers(&subject.claim(A, age("a.example", 100, 9)).await), [2], "the other half");
    let first = subject.claim(A, part(100, 2)).await;
    assert_eq!(numbers(&first), [3, 4]);
    assert!(subject.claim(A, part(39, 9)).await.is_empty(), "the last is younger");
    // Age does not change with the due time, and does not need a lease to last.
    let later = Release { due: at(200), recipients: first[1].recipients.clone() };
    let (item, lease) = (first[1].id, first[1].lease);
    subject.change(Change::Update { item, lease, settled: vec![], released: vec![later] }).await;
    let subject = subject.reopen().await;
    let both = subject.claimed(B, subject.now(), part(40, 9)).await;
    assert_eq!(numbers(&both.items), [3, 4, 1]);
    assert_eq!(both.heads, [head("a.example", 30, 30)]);
    for item in &both.items {
        subject.change(settle(item, &[0])).await;
    }
    let subject = subject.reopen().await;
    assert_eq!(subject.storage().heads(None, 9).await.works(), [head("a.example", 30, 30)], "no key is left");
}

pub(super) async fn claims_are_disjoint<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let batch = (1..=100).map(|number| message(number, "a.example", number as u64 % 7)).collect();
    subject.storage().insert(batch).await.works();
    let request = |owner, part: ClaimPart| {
        let what = vec![part.clone(), part];
        subject.storage().claim(ClaimRequest { owner, now: at(10), until: at(20), what })
    };
    let (one, two) = tokio::join!(request(A, due("a.example", 9, 20)), request(B, age("a.example", 9, 20)));
    let mut all = numbers(&one.unwrap().items);
    all.extend(numbers(&two.unwrap().items));
    assert_eq!(all.len(), 80);
    all.extend(numbers(&subject.claimed(B, at(10), due("a.example", 9, 1000)).await.items));
    all.sort_unstable();
    assert_eq!(all, (1..=100).collect::<Vec<_>>());
}

pub(super) async fn named_items_are_claimed_unless_somebody_has_them<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let mut ids = Vec::new();
    for number in 1..=3 {
        ids.push(stored(subject.insert(message(number, "a.example", number as u64)).await)[0].0);
    }
    let held = subject.claim(A, due("a.example", 1, 1)).await;
    let named = ClaimPart::Items([ids.clone(), vec![ItemId(1 << 40)]].concat());
    let claimed = subject.claimed(B, at(1_000), named.clone()).await;
    assert_eq!((numbers(&claimed.items), claimed.heads), (vec![2, 3], vec![]));
    let own = subject.claim(A, named).await;
    assert_eq!(own, held, "its own item under the lease it has");
}

pub(super) async fn heads_cover_what_is_free_only<F: StorageUnderTest>() {
    let subject = mixed::<F>().await;
    let both = [head("a.example", 20, 10), head("b.example", 1, 1)];
    assert_eq!(subject.storage().heads(None, 9).await.works(), both);
    let held = subject.claim(A, due("a.example", 100, 9)).await;
    assert_eq!(subject.storage().heads(None, 9).await.works(), both[1..]);
    subject.change(Change::Unclaim { item: held[0].id, lease: held[0].lease }).await;
    assert_eq!(subject.storage().heads(None, 1).await.works(), [head("a.example", 20, 20)]);
    let new = message_of(5, 2, vec![item("a.example", 3, 1)]);
    subject.insert(new).await;
    assert_eq!(subject.storage().heads(None, 1).await.works(), [head("a.example", 3, 2)]);
}

pub(super) async fn heads_page_in_lane_order<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let names = ["b.example", "a.example", "aa.example", "a-b.example", "c.example"];
    for (number, name) in names.into_iter().enumerate() {
        subject.insert(message(number as u128, name, 1)).await;
    }
    let mut odd = message(50, "b.example", 1);
    odd.items[0].lane.source = "s\0".into();
    odd.items.push(item("b.example", 1, 1));
    odd.items[1].lane.priority = Priority::High;
    let mut lanes: Vec<_> = names.map(lane).into();
    lanes.extend(odd.items.iter().map(|item| item.lane.clone()));
    lanes.sort();
    subject.insert(odd).await;
    for limit in [1, 2, 100] {
        let mut seen = Vec::new();
        loop {
            let page = subject.storage().heads(seen.last().cloned(), limit).await.works();
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            assert!(seen.last() < Some(&page[0].lane), "after {:?} comes {:?}", seen.last(), page[0].lane);
            seen.extend(page.into_iter().map(|head| head.lane));
        }
        assert_eq!(seen, lanes);
    }
    assert!(subject.storage().heads(None, 0).await.works().is_empty());
}

pub(super) async fn an_unclaimed_item_is_as_it_was<F: StorageUnderTest>() {
    let subject = mixed::<F>().await;
    let first = subject.claim(A, due("a.example", 100, 9)).await;
    let unclaim = Change::Unclaim { item: first[1].id, lease: first[1].lease };
    assert_eq!(subject.change(unclaim.clone()).await, ChangeOutcome::Applied);
    assert_eq!(subject.change(unclaim).await, ChangeOutcome::Stale);
    let again = subject.claim(B, due("a.example", 100, 9)).await;
    assert_eq!(numbers(&again), [2]);
    assert_eq!((again[0].id, &again[0].recipients), (first[1].id, &first[1].recipients));
    assert!(again[0].lease > first[1].lease);
}

pub(super) async fn a_claim_answers_its_parts_in_order<F: StorageUnderTest>() {
    let subject = mixed::<F>().await;
    let named = subject.insert(message(10, "c.example", 1)).await;
    let what = vec![
        due("b.example", 1, 9),
        due("a.example", 30, 1),
        due("z.example", 1, 9),
        ClaimPart::Items(vec![stored(named)[0].0]),
        age("a.example", 10, 1),
    ];
    let request = ClaimRequest { owner: A, now: at(50), until: at(60), what };
    let mut claimed = subject.storage().claim(request).await.works();
    assert_eq!(numbers(&claimed.items), [9, 4, 10, 3]);
    claimed.heads.sort_by(|one, other| one.lane.cmp(&other.lane));
    let heads = [head("a.example", 30, 30), no_head("b.example"), no_head("z.example")];
    assert_eq!(claimed.heads, heads, "as they are after the claim");
}
