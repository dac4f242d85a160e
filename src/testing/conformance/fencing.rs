//! Leases: how long they hold, and that nothing is changed without one.

use super::*;
use crate::storage::{
    Change, ChangeOutcome, Filter, ItemId, Lease, OutboxPosition, Owner, Release, StateRow,
};

pub(super) async fn a_reopen_ends_leases_or_keeps_them_until_their_time<F: StorageUnderTest>() {
    let subject = mixed::<F>().await;
    let before = subject.claimed(A, at(1_000), due("a.example", 100, 9)).await.items;
    let subject = subject.reopen().await;
    let storage = subject.storage();
    let is_alone = storage.is_exclusive();
    if is_alone {
        assert_eq!(storage.heads(None, 1).await.works(), [head("a.example", 20, 10)], "all is free");
        for item in &before {
            assert_eq!(
                subject.change(settle(item, &[0])).await,
                ChangeOutcome::Stale,
                "of an earlier opening"
            );
        }
    }
    // Where leases hold over restarts, they still do.
    let free = subject.claimed(B, at(1_010), due("a.example", 100, 9)).await.items;
    assert!(!is_alone || free.len() == before.len(), "the store is exclusive, and all is free");
    for item in &before {
        let is_taken = free.iter().any(|taken| taken.id == item.id);
        // Of a recipient that is not there.
        let outcome = subject.change(settle(item, &[7])).await;
        assert_eq!(
            outcome == ChangeOutcome::Stale,
            is_taken,
            "an item is free, or its lease holds: {outcome:?}"
        );
    }
    let late = subject.claimed(Owner(3), at(2_000), due("a.example", 100, 9)).await.items;
    assert_eq!(numbers(&late), numbers(&before), "all leases have run out");
    assert!(late.iter().zip(&before).all(|(late, before)| late.lease > before.lease));
    for item in before.iter().chain(&free) {
        assert_eq!(subject.change(settle(item, &[0])).await, ChangeOutcome::Stale, "somebody else has it");
    }
}

pub(super) async fn leases_run_out_and_are_fenced<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    subject.storage().insert((1..=3).map(|n| message(n, "a.example", n as u64)).collect()).await.works();
    let old = subject.claimed(A, at(100), due("a.example", 3, 9)).await.items;
    assert!(subject.claimed(B, at(160), due("a.example", 3, 9)).await.items.is_empty(), "held until 160");
    let taken = subject.claimed(B, at(161), due("a.example", 3, 1)).await;
    assert_eq!(numbers(&taken.items), [1]);
    assert_eq!(taken.heads, [head("a.example", 2, 2)], "the others are free too");
    assert_eq!(subject.change(settle(&old[0], &[0])).await, ChangeOutcome::Stale);
    assert_eq!(
        subject.change(settle(&old[1], &[0])).await,
        ChangeOutcome::Applied,
        "late, but nobody took it"
    );
    assert_eq!(subject.change(settle(&taken.items[0], &[0])).await, ChangeOutcome::Applied);
    assert_eq!(numbers(&subject.claimed(B, at(161), due("a.example", 3, 9)).await.items), [3]);
    assert_eq!(subject.change(settle(&old[2], &[0])).await, ChangeOutcome::Stale);
}

pub(super) async fn an_owner_extends_its_leases<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    subject.storage().insert((1..=2).map(|n| message(n, "a.example", n as u64)).collect()).await.works();
    subject.claimed(A, at(100), due("a.example", 1, 9)).await;
    subject.storage().renew(A, at(500)).await.works();
    assert!(subject.claimed(B, at(500), due("a.example", 1, 9)).await.items.is_empty());
    subject.claimed(A, at(490), due("a.example", 2, 9)).await;
    assert!(
        subject.claimed(B, at(550), due("a.example", 1, 9)).await.items.is_empty(),
        "a claim extends all"
    );
    assert_eq!(subject.claimed(B, at(551), due("a.example", 9, 9)).await.items.len(), 2);
}

pub(super) async fn a_stale_change_leaves_the_rest_of_its_batch<F: StorageUnderTest>() {
    let (subject, item) = one::<F>(2).await;
    let stale = Change::Update { item: item.id, lease: Lease(0), settled: vec![1], released: vec![] };
    let state = StateRow { key: b"k".to_vec(), value: b"v".to_vec() };
    let batch = vec![stale, settle(&item, &[0]), Change::PutState(state.clone())];
    let outcomes = subject.storage().commit(batch).await.works();
    assert_eq!(outcomes, [ChangeOutcome::Stale, ChangeOutcome::Applied, ChangeOutcome::Applied]);
    let subject = subject.reopen().await;
    assert_eq!(subject.storage().state(None, 9).await.works(), [state]);
    assert_eq!(indices(&subject.claim(A, due("a.example", 10, 1)).await[0]), [1]);
}

pub(super) async fn one_batch_can_not_change_an_item_it_gave_back<F: StorageUnderTest>() {
    let (subject, item) = one::<F>(2).await;
    let unclaim = Change::Unclaim { item: item.id, lease: item.lease };
    let outcomes = subject.storage().commit(vec![unclaim, settle(&item, &[0])]).await.works();
    assert_eq!(outcomes, [ChangeOutcome::Applied, ChangeOutcome::Stale]);
    assert_eq!(indices(&subject.claim(B, due("a.example", 10, 1)).await[0]), [0, 1]);
}

pub(super) async fn a_late_renewal_takes_nothing_back<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    subject.storage().insert((1..=2).map(|n| message(n, "a.example", n as u64)).collect()).await.works();
    let old = subject.claimed(A, at(100), due("a.example", 2, 9)).await.items;
    let taken = subject.claimed(B, at(161), due("a.example", 2, 1)).await.items;
    assert_eq!(numbers(&taken), [1], "the first owner's time has run out");
    subject.storage().renew(A, at(5_000)).await.works();
    assert_eq!(subject.change(settle(&old[0], &[0])).await, ChangeOutcome::Stale);
    let free = subject.claimed(B, at(170), due("a.example", 2, 9)).await.items;
    assert!(free.is_empty(), "nobody had taken the second: it was renewed, not {:?}", numbers(&free));
    assert_eq!(subject.change(settle(&old[1], &[0])).await, ChangeOutcome::Applied);
    assert_eq!(subject.change(settle(&taken[0], &[0])).await, ChangeOutcome::Applied);
}

pub(super) async fn a_stale_lease_can_change_nothing<F: StorageUnderTest>() {
    let (subject, first) = one::<F>(3).await;
    subject.insert(message(2, "a.example", 500)).await;
    let other = only(subject.claim(A, due("a.example", 500, 9)).await);
    for lease in [Lease(0), Lease(u64::MAX), other.lease] {
        changes_nothing(&subject, first.id, lease, "was never of this item").await;
    }
    let second = only(subject.claimed(B, at(2_000), due("a.example", 10, 1)).await.items);
    changes_nothing(&subject, first.id, first.lease, "ran out, and somebody else took the item").await;
    subject.change(Change::Unclaim { item: second.id, lease: second.lease }).await;
    changes_nothing(&subject, first.id, first.lease, "ran out, somebody else took the item and gave it back")
        .await;
    changes_nothing(&subject, second.id, second.lease, "was given back").await;
    let third = only(subject.claimed(B, at(2_000), due("a.example", 10, 1)).await.items);
    changes_nothing(&subject, second.id, second.lease, "was given back, and its owner has a later one").await;
    subject.change(update(&third, &[0], vec![release(&third, at(20), &[1, 2])])).await;
    changes_nothing(&subject, third.id, third.lease, "released the item").await;
    let fourth = only(subject.claimed(B, at(2_000), due("a.example", 20, 1)).await.items);
    changes_nothing(&subject, fourth.id, third.lease, "released the item, which its owner has again").await;
    let subject = subject.reopen().await;
    if subject.storage().is_exclusive() {
        changes_nothing(&subject, fourth.id, fourth.lease, "is of an earlier opening").await;
    }
    let last = only(subject.claimed(Owner(3), at(3_000), due("a.example", 20, 1)).await.items);
    changes_nothing(&subject, last.id, fourth.lease, "is of an earlier opening, and the item is leased")
        .await;
    assert_eq!(indices(&last), [1, 2], "as they were released");
    let batch = vec![report_of(1, Some((last.id, last.lease))), settle(&last, &[1, 2])];
    let outcomes = subject.storage().commit(batch).await.works();
    assert_eq!(outcomes, [ChangeOutcome::Applied; 2], "the current lease can");
    assert_eq!(subject.storage().outbox(OutboxPosition::default(), 9).await.works().len(), 1);
    changes_nothing(&subject, last.id, last.lease, "settled the item").await;
    changes_nothing(&subject, ItemId(last.id.0 + 1_000), last.lease, "is of an item that never was").await;
}

/// No change of any kind does anything under this lease, alone or beside one that is right.
async fn changes_nothing<F: StorageUnderTest>(subject: &Subject<F>, id: ItemId, lease: Lease, how: &str) {
    let seen = || async {
        let list = subject.storage().list(Filter::All, None, 9).await.works();
        let outbox = subject.storage().outbox(OutboxPosition::default(), 9).await.works();
        (list, subject.storage().heads(None, 9).await.works(), outbox)
    };
    let before = seen().await;
    let listed = before.0.iter().find(|item| item.id == id);
    let recipients = listed.map_or_else(|| vec![recipient(1, "a.example")], |item| item.recipients.clone());
    let all: Vec<u32> = recipients.iter().map(|recipient| recipient.index).collect();
    let later = Release { due: at(9), recipients: recipients.clone() };
    let part = Release { due: at(9), recipients: recipients[..1].to_vec() };
    let update = |settled: &[u32], released: &[Release]| Change::Update {
        item: id,
        lease,
        settled: settled.to_vec(),
        released: released.to_vec(),
    };
    let stale = [
        update(&all, &[]),
        update(&all[..1], &[]),
        update(&[], std::slice::from_ref(&later)),
        update(&all[1..], &[part]),
        update(&[], &[]),
        Change::Unclaim { item: id, lease },
        report_of(9, Some((id, lease))),
    ];
    for change in stale {
        let state = StateRow { key: b"beside".to_vec(), value: vec![] };
        let batch = vec![change.clone(), Change::PutState(state)];
        let outcomes = subject.storage().commit(batch).await.works();
        assert_eq!(
            outcomes,
            [ChangeOutcome::Stale, ChangeOutcome::Applied],
            "a lease that {how}: {change:?}"
        );
        assert_eq!(seen().await, before, "a lease that {how} changed something: {change:?}");
    }
}
