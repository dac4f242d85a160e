use super::*;
use crate::storage::{Change, Filter, OutboxPosition, StateRow};

pub(super) async fn state_rows_are_kept_in_order<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let row = |key: &[u8], value: &str| StateRow { key: key.to_vec(), value: value.into() };
    let rows = [row(b"", "empty"), row(b"a", "1"), row(b"a\0", "2"), row(b"b", "3"), row(b"\xff", "4")];
    let mut batch: Vec<_> = rows.iter().rev().cloned().map(Change::PutState).collect();
    batch.insert(0, Change::PutState(row(b"b", "old")));
    batch.push(Change::PutState(row(b"gone", "x")));
    batch.push(Change::DeleteState(b"gone".to_vec()));
    batch.push(Change::DeleteState(b"never".to_vec()));
    subject.storage().commit(batch).await.works();
    let subject = subject.reopen().await;
    assert_eq!(subject.storage().state(None, 99).await.works(), rows);
    assert_eq!(subject.storage().state(Some(b"a".to_vec()), 2).await.works(), rows[2..4]);
    assert!(subject.storage().state(Some(b"\xff".to_vec()), 2).await.works().is_empty());
}

pub(super) async fn state_values_come_back_as_they_were<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let row = |length: u32| StateRow {
        key: length.to_be_bytes().to_vec(),
        value: (0..length).map(|n| (n % 251) as u8).collect(),
    };
    let rows = [0, 1, 256, 5_000, 20_000].map(row);
    subject.storage().commit(rows.iter().cloned().map(Change::PutState).collect()).await.works();
    let subject = subject.reopen().await;
    let found = subject.storage().state(None, 99).await.works();
    let lengths = |rows: &[StateRow]| rows.iter().map(|row| row.value.len()).collect::<Vec<_>>();
    assert_eq!(lengths(&found), lengths(&rows));
    assert!(found == rows, "octets are not what they were");
}

pub(super) async fn maintenance_takes_nothing_that_is_there<F: StorageUnderTest>() {
    let mut subject = Subject::<F>::open().await;
    let with_expiry = with(message(2, "b.example", 5), |envelope| envelope.expires_at = Some(at(7)));
    let sent = [message_of(1, 5, vec![item("a.example", 9, 3)]), with_expiry];
    subject.storage().insert(sent.to_vec()).await.works();
    let rows = [b"a", b"b"].map(|key| StateRow { key: key.to_vec(), value: vec![1] });
    let mut changes: Vec<_> = rows.iter().cloned().map(Change::PutState).collect();
    changes.extend([report(1), report(2)]);
    subject.storage().commit(changes).await.works();
    let listed = subject.storage().list(Filter::All, None, 9).await.works();
    // Long past what is due, expires or is remembered.
    for now in [10, 1_000_000, 100_000_000] {
        subject.storage().maintain(at(now)).await.works();
        subject = subject.reopen().await;
        let storage = subject.storage();
        assert_eq!(storage.list(Filter::All, None, 9).await.works(), listed, "mail after {now} s");
        assert_eq!(storage.state(None, 9).await.works(), rows, "state rows after {now} s");
        let outbox = storage.outbox(OutboxPosition::default(), 9).await.works();
        assert_eq!(outbox.len(), 2, "outbox entries after {now} s: {outbox:?}");
        for message in &sent {
            assert_eq!(subject.body(message.envelope.id).await.works(), message.body, "bodies after {now} s");
        }
    }
}

pub(super) async fn usage_counts_what_is_there<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let empty = subject.storage().usage().await.works();
    assert_eq!((empty.items, empty.outbox), (0, 0));
    let mut large = message_of(1, 1, vec![item("a.example", 1, 1), item("b.example", 1, 1)]);
    large.body = vec![b'x'; 300_000].into();
    subject.insert(large).await;
    subject.change(report(1)).await;
    let subject = subject.reopen().await;
    let used = subject.storage().usage().await.works();
    assert_eq!((used.items, used.outbox), (2, 1));
    assert!(used.octets >= empty.octets + 300_000 - 100_000, "{} then {}", empty.octets, used.octets);
}

pub(super) async fn empty_lanes_do_not_disturb<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    for number in 1..=3 {
        subject.insert(message(number, "a.example", 5)).await;
        let claimed = subject.claim(A, due("a.example", 5, 9)).await;
        subject.storage().maintain(at(10)).await.works();
        subject.change(settle(&claimed[0], &[0])).await;
        assert!(subject.storage().heads(None, 9).await.works().is_empty());
        subject.storage().maintain(at(11)).await.works();
        assert!(subject.storage().heads(None, 9).await.works().is_empty());
    }
}
