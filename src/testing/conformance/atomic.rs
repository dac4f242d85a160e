//! Batches: all of one or nothing.

use super::*;
use crate::message::EventId;
use crate::storage::{Change, ChangeOutcome, Filter, OutboxPosition, StateRow, StorageErrorKind};

pub(super) async fn a_batch_is_there_as_a_whole<F: StorageUnderTest>() {
    const MANY: u32 = 200;
    let subject = Subject::<F>::open().await;
    let messages = (1..=MANY).map(|n| message_of(n.into(), 1, vec![item("a.example", 1, 3)]));
    subject.storage().insert(messages.collect()).await.works();
    let items = subject.claim(A, due("a.example", 1, 1_000)).await;
    assert_eq!(items.len(), MANY as usize);
    let mut batch = Vec::new();
    for (number, item) in (1..).zip(&items) {
        let key = u32::to_be_bytes(number).to_vec();
        batch.push(update(item, &[0], vec![release(item, at(50), &[1])]));
        batch.push(Change::PutState(StateRow { key, value: vec![1] }));
        batch.push(Change::Unclaim { item: item.id, lease: item.lease });
        batch.push(settle(item, &[2]));
        batch.push(report(number.into()));
    }
    let outcomes = subject.storage().commit(batch).await.works();
    let each = [
        ChangeOutcome::Applied,
        ChangeOutcome::Applied,
        ChangeOutcome::Applied,
        ChangeOutcome::Stale,
        ChangeOutcome::Applied,
    ];
    assert_eq!(outcomes, each.repeat(MANY as usize), "in the order of the changes");
    let subject = subject.reopen().await;
    let listed = subject.storage().list(Filter::All, None, 1_000).await.works();
    let (released, left): (Vec<_>, Vec<_>) = listed.iter().partition(|item| item.due == at(50));
    assert_eq!((released.len(), left.len()), (MANY as usize, MANY as usize));
    let index = |index| {
        move |item: &&crate::storage::ItemSummary| {
            item.recipients.len() == 1 && item.recipients[0].index == index
        }
    };
    assert!(released.iter().all(index(1)) && left.iter().all(index(2)), "1 released, 2 left: {listed:?}");
    assert_eq!(subject.storage().state(None, 1_000).await.works().len(), MANY as usize);
    let outbox = subject.storage().outbox(OutboxPosition::default(), 1_000).await.works();
    let events: Vec<_> = outbox.iter().map(|entry| entry.event).collect();
    let reported = |number: u32| EventId::from_uuid(uuid::Uuid::from_u128(number.into()));
    assert_eq!(events, (1..=MANY).map(reported).collect::<Vec<_>>());
}

pub(super) async fn an_invalid_batch_changes_nothing<F: StorageUnderTest>() {
    let (subject, first) = one::<F>(3).await;
    subject.storage().insert(vec![message(2, "b.example", 1), message(3, "c.example", 1)]).await.works();
    let second = only(subject.claim(A, due("b.example", 1, 9)).await);
    let third = only(subject.claim(A, due("c.example", 1, 9)).await);
    let row = |key: &[u8]| StateRow { key: key.to_vec(), value: vec![] };
    subject.storage().commit(vec![Change::PutState(row(b"old")), report(1)]).await.works();
    let seen = || async {
        let storage = subject.storage();
        let outbox = storage.outbox(OutboxPosition::default(), 9).await.works();
        let list = storage.list(Filter::All, None, 9).await.works();
        (list, storage.heads(None, 9).await.works(), storage.state(None, 9).await.works(), outbox)
    };
    let before = seen().await;
    let good = [
        update(&first, &[0], vec![release(&first, at(50), &[1])]),
        Change::Unclaim { item: second.id, lease: second.lease },
        settle(&third, &[0]),
        Change::PutState(row(b"new")),
        Change::DeleteState(b"old".to_vec()),
        report(2),
        Change::Acknowledge(before.3[0].position),
    ];
    let bad = Change::PutState(row(&[1; 513]));
    for place in [0, 3, good.len()] {
        let mut batch = good.to_vec();
        batch.insert(place, bad.clone());
        let error = subject.storage().commit(batch).await.fails();
        assert_eq!(error, StorageErrorKind::Invalid, "the key of change {place} is too long");
        assert_eq!(seen().await, before, "change {place} of the batch was Invalid");
    }
    for item in [&first, &second, &third] {
        assert_eq!(
            subject.change(settle(item, &[0])).await,
            ChangeOutcome::Applied,
            "the leases are as they were"
        );
    }
    let subject = subject.reopen().await;
    let left = subject.storage().list(Filter::All, None, 9).await.works();
    assert_eq!(left.len(), 1, "nothing of it comes with a reopen: {left:?}");
    assert_eq!(left[0].recipients.len(), 2);
    assert_eq!(subject.storage().state(None, 9).await.works(), [row(b"old")]);
}

pub(super) async fn state_keys_have_a_length<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let put = |length| Change::PutState(StateRow { key: vec![1; length], value: vec![] });
    let error = subject.storage().commit(vec![put(1), put(513)]).await.fails();
    assert_eq!(error, StorageErrorKind::Invalid);
    assert!(subject.storage().state(None, 9).await.works().is_empty(), "all or nothing");
    subject.change(put(512)).await;
}
