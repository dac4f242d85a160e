//! The outbox: in order, and at least once.

use super::*;
use crate::message::EventId;
use crate::storage::{Change, OutboxEntry, OutboxPosition};
use bytes::Bytes;

async fn all<F: StorageUnderTest>(subject: &Subject<F>) -> Vec<OutboxEntry> {
    subject.storage().outbox(OutboxPosition::default(), 99).await.works()
}

pub(super) async fn outbox_entries_come_in_order<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    // Ids and payloads that have another order than their reports.
    let sent = [(5, "b"), (1, ""), (3, "a\0b"), (4, "a"), (2, "b")]
        .map(|(id, payload)| (EventId::from_uuid(uuid::Uuid::from_u128(id)), Bytes::from(payload)));
    let reports = sent.clone().map(|(event, payload)| Change::Report { of: None, event, payload });
    let (first, rest) = reports.split_at(2);
    for batch in [first, rest] {
        subject.storage().commit(batch.to_vec()).await.works();
    }
    let subject = subject.reopen().await;
    let entries = all(&subject).await;
    let found: Vec<_> = entries.iter().map(|entry| (entry.event, entry.payload.clone())).collect();
    assert_eq!(found, sent);
    assert!(entries.is_sorted_by(|a, b| a.position < b.position), "positions grow: {entries:?}");
    assert!(entries[0].position > OutboxPosition::default());
    assert_eq!(subject.storage().outbox(entries[1].position, 2).await.works(), entries[2..4]);
    assert!(subject.storage().outbox(entries[4].position, 2).await.works().is_empty());
}

pub(super) async fn outbox_payloads_come_back_as_they_were<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let payload = |length: u32| (0..length).map(|n| (n % 251) as u8).collect::<Bytes>();
    let sent = [0, 1, 256, 5_000, 100_000].map(payload);
    let event = |number| EventId::from_uuid(uuid::Uuid::from_u128(number));
    let reports = (1..).zip(sent.clone()).map(|(number, payload)| Change::Report {
        of: None,
        event: event(number),
        payload,
    });
    subject.storage().commit(reports.collect()).await.works();
    let subject = subject.reopen().await;
    let found: Vec<_> = all(&subject).await.into_iter().map(|entry| entry.payload).collect();
    let lengths = |payloads: &[Bytes]| payloads.iter().map(Bytes::len).collect::<Vec<_>>();
    assert_eq!(lengths(&found), lengths(&sent));
    assert!(found == sent, "octets are not what they were");
}

pub(super) async fn outbox_entries_stay_until_they_are_acknowledged<F: StorageUnderTest>() {
    let mut subject = Subject::<F>::open().await;
    subject.storage().commit((1..=3).map(report).collect()).await.works();
    let entries = all(&subject).await;
    assert_eq!(entries.len(), 3);
    for _ in 0..2 {
        assert_eq!(all(&subject).await, entries, "read before, not acknowledged");
        subject.storage().maintain(at(1_000_000)).await.works();
        subject = subject.reopen().await;
    }
    assert_eq!(all(&subject).await, entries);
}

pub(super) async fn acknowledged_outbox_entries_are_gone<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    subject.storage().commit((1..=5).map(report).collect()).await.works();
    let entries = all(&subject).await;
    subject.change(Change::Acknowledge(entries[2].position)).await;
    assert_eq!(all(&subject).await, entries[3..]);
    subject.change(Change::Acknowledge(entries[0].position)).await;
    assert_eq!(all(&subject).await, entries[3..], "an old acknowledgement");
    let subject = subject.reopen().await;
    assert_eq!(all(&subject).await, entries[3..]);
    assert_eq!(subject.storage().usage().await.works().outbox, 2);
    // An entry and its acknowledgement in one batch.
    subject.storage().commit(vec![report(6), Change::Acknowledge(entries[4].position)]).await.works();
    let left = all(&subject).await;
    assert_eq!(left.len(), 1, "the sixth: {left:?}");
    assert!(left[0].position > entries[4].position);
}

pub(super) async fn outbox_positions_grow_after_a_reopen<F: StorageUnderTest>() {
    let mut subject = Subject::<F>::open().await;
    let mut last = OutboxPosition::default();
    for number in 0..3 {
        subject.change(report(number)).await;
        let entries = subject.storage().outbox(OutboxPosition::default(), 9).await.works();
        assert!(entries.len() == 1 && entries[0].position > last);
        last = entries[0].position;
        subject.change(Change::Acknowledge(last)).await;
        subject = subject.reopen().await;
    }
    assert!(subject.storage().outbox(OutboxPosition::default(), 9).await.works().is_empty());
}
