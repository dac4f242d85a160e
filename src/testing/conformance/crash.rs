//! What is durable on return, and what is said where it can not be.

use super::*;
use crate::storage::{
    Change, ChangeOutcome, Filter, Inserted, ItemSummary, OutboxEntry, OutboxPosition, StateRow, Storage,
    StorageErrorKind,
};

fn row(value: &[u8]) -> StateRow {
    StateRow { key: b"row".to_vec(), value: value.to_vec() }
}

/// Each call is the last one before a crash.
pub(super) async fn what_is_acknowledged_survives_a_crash<F: StorageUnderTest>() {
    let mut subject = Subject::<F>::open().await;
    let mut claimed_at_once = message_of(1, 1, vec![item("a.example", 1, 2)]);
    claimed_at_once.items[0].claim_for = Some(A);
    // As an engine does that starts.
    subject.storage().renew(A, subject.now()).await.works();
    subject.insert(claimed_at_once.clone()).await;
    subject = subject.crash().await;
    assert_eq!(subject.body(id(1)).await.works(), claimed_at_once.body);
    assert_eq!(subject.insert(claimed_at_once).await, Inserted::Duplicate);

    let held = only(subject.claim(B, due("a.example", 1, 9)).await);
    subject.change(update(&held, &[], vec![release(&held, at(50), &[1])])).await;
    subject = subject.crash().await;
    if subject.storage().is_exclusive() {
        assert_eq!(subject.change(settle(&held, &[0])).await, ChangeOutcome::Stale, "its lease is void");
    }
    let items = subject.storage().list(Filter::All, None, 9).await.works();
    let found: Vec<_> =
        items.iter().map(|item| (item.due, item.recipients[0].index, item.recipients[0].attempts)).collect();
    assert_eq!(found, [(at(1), 0, 0), (at(50), 1, 1)]);

    subject.storage().commit(vec![report(1), report(2), Change::PutState(row(b"old"))]).await.works();
    subject = subject.crash().await;
    let outbox = subject.storage().outbox(OutboxPosition::default(), 9).await.works();
    assert_eq!((outbox.len(), subject.storage().state(None, 9).await.works()), (2, vec![row(b"old")]));

    subject
        .storage()
        .commit(vec![Change::Acknowledge(outbox[0].position), Change::PutState(row(b"new"))])
        .await
        .works();
    subject = subject.crash().await;
    assert_eq!(subject.storage().outbox(OutboxPosition::default(), 9).await.works(), outbox[1..]);
    assert_eq!(subject.storage().state(None, 9).await.works(), [row(b"new")]);

    subject.change(Change::Acknowledge(outbox[1].position)).await;
    subject = subject.crash().await;
    subject.change(report(3)).await;
    let next = only(subject.storage().outbox(OutboxPosition::default(), 9).await.works());
    assert!(next.position > outbox[1].position, "what was read up to there misses {next:?}");

    let held = subject.claim(A, due("a.example", 99, 9)).await;
    subject.storage().commit(held.iter().map(|item| settle(item, &[0, 1])).collect()).await.works();
    subject = subject.crash().await;
    assert!(subject.storage().list(Filter::All, None, 9).await.works().is_empty(), "all is settled");
    assert_eq!(subject.body(id(1)).await.fails(), StorageErrorKind::NotFound);

    subject.storage().insert((2..=9).map(|n| message(n, "b.example", n as u64)).collect()).await.works();
    subject.storage().maintain(at(1_000)).await.works();
    subject = subject.crash().await;
    assert_eq!(numbers(&subject.claim(A, due("b.example", 99, 99)).await), (2..=9).collect::<Vec<_>>());
}

pub(super) async fn a_call_without_room_applies_nothing<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let first = message(1, "a.example", 1);
    subject.insert(first.clone()).await;
    let storage = subject.storage();
    let seen =
        async || (storage.list(Filter::All, None, 9).await.works(), storage.heads(None, 9).await.works());
    let before = seen().await;
    subject.trouble(Some(Trouble::NoRoom)).await;
    let more = || vec![message(2, "a.example", 2), message(3, "b.example", 3)];
    for _ in 0..2 {
        assert_eq!(storage.insert(more()).await.fails(), StorageErrorKind::Full);
        assert_eq!(seen().await, before, "nothing of it");
    }
    assert_eq!(subject.body(id(1)).await.works(), first.body);
    // There may be room for what settles mail.
    let outbox = match storage.commit(vec![report(1), Change::PutState(row(b"v"))]).await {
        Ok(_) => 1,
        Err(error) => {
            assert_eq!(error.kind(), StorageErrorKind::Full, "{error}");
            0
        }
    };
    assert_eq!(storage.outbox(OutboxPosition::default(), 9).await.works().len(), outbox);
    assert_eq!(storage.state(None, 9).await.works().len(), outbox);
    subject.trouble(None).await;
    storage.maintain(at(10)).await.works();
    let stored = storage.insert(more()).await.works();
    assert!(stored.iter().all(|answer| matches!(answer, Inserted::Stored(_))), "{stored:?}");
    let subject = subject.reopen().await;
    assert_eq!(subject.storage().list(Filter::All, None, 9).await.works().len(), 3);
    assert_eq!(subject.storage().outbox(OutboxPosition::default(), 9).await.works().len(), outbox);
}

pub(super) async fn a_failed_flush_stops_the_store<F: StorageUnderTest>() {
    for is_insert in [true, false] {
        let (subject, failed) = fail_a_flush::<F>(is_insert).await;
        let subject = subject.reopen().await;
        is_there_after(&subject, is_insert, failed).await;
    }
}

pub(super) async fn a_crash_after_a_failed_flush_loses_nothing<F: StorageUnderTest>() {
    for (is_insert, crashes_at_once) in [(true, true), (false, true), (true, false), (false, false)] {
        let (subject, failed) = fail_a_flush::<F>(is_insert).await;
        let mut subject = if crashes_at_once { subject.crash().await } else { subject.reopen().await };
        let before = is_there_after(&subject, is_insert, failed).await;
        for _ in 0..2 {
            subject = subject.crash().await;
            assert_eq!(Found::of(&subject).await, before, "what was there before the crash");
            for number in [1, 2, 4] {
                assert_eq!(
                    subject.insert(message(number, "a.example", 1)).await,
                    Inserted::Duplicate,
                    "message {number}, which was acknowledged"
                );
            }
        }
    }
}

/// A store with one message, of which a call could not be flushed; and what that call answered.
async fn fail_a_flush<F: StorageUnderTest>(is_insert: bool) -> (Subject<F>, StorageErrorKind) {
    let subject = Subject::<F>::open().await;
    subject.insert(message(1, "a.example", 1)).await;
    let storage = subject.storage();
    subject.trouble(Some(Trouble::FailedFlush)).await;
    let failed = if is_insert {
        storage.insert(vec![message(2, "a.example", 2), message(3, "a.example", 3)]).await.fails()
    } else {
        storage.commit(vec![report(1), Change::PutState(row(b"v"))]).await.fails()
    };
    // It may have known before it wrote any of it.
    let right = [StorageErrorKind::OutcomeUnknown, StorageErrorKind::Poisoned];
    assert!(right.contains(&failed), "the call whose flush failed is {failed:?}");
    // Whatever a flush would say now.
    subject.trouble(None).await;
    for _ in 0..2 {
        let refused = storage.insert(vec![message(4, "a.example", 4)]).await.fails();
        assert_eq!(refused, StorageErrorKind::Poisoned, "an insert after it");
        let refused = storage.commit(vec![report(9)]).await.fails();
        assert_eq!(refused, StorageErrorKind::Poisoned, "a commit after it");
    }
    (subject, failed)
}

/// Checks what a store holds that was opened after a failed flush, and stores more: messages 1, 2 and 4 are there then.
async fn is_there_after<F: StorageUnderTest>(
    subject: &Subject<F>,
    is_insert: bool,
    failed: StorageErrorKind,
) -> Found {
    assert_eq!(subject.body(id(1)).await.works(), message(1, "a.example", 1).body);
    let found = Found::of(subject).await;
    let is_applied = match (is_insert, found.items.len(), found.outbox.len(), found.state.len()) {
        (_, 1, 0, 0) => false,
        (true, 3, 0, 0) | (false, 1, 1, 1) => true,
        (true, ..) => panic!("of the insert that failed all or nothing, not {found:?}"),
        (false, ..) => panic!("of the commit that failed all or nothing, not {found:?}"),
    };
    assert!(
        !is_applied || failed == StorageErrorKind::OutcomeUnknown,
        "the call was {failed:?}, and is applied: {found:?}"
    );
    // It takes mail again, under the same id too.
    let again = subject.insert(message(2, "a.example", 2)).await;
    assert_eq!(again == Inserted::Duplicate, is_insert && is_applied, "{again:?}");
    assert!(matches!(subject.insert(message(4, "a.example", 4)).await, Inserted::Stored(_)));
    assert_eq!(subject.change(report(5)).await, ChangeOutcome::Applied);
    Found::of(subject).await
}

#[derive(Debug, PartialEq)]
struct Found {
    items: Vec<ItemSummary>,
    outbox: Vec<OutboxEntry>,
    state: Vec<StateRow>,
}

impl Found {
    async fn of<F: StorageUnderTest>(subject: &Subject<F>) -> Self {
        let storage = subject.storage();
        Self {
            items: storage.list(Filter::All, None, 9).await.works(),
            outbox: storage.outbox(OutboxPosition::default(), 9).await.works(),
            state: storage.state(None, 9).await.works(),
        }
    }
}
