use super::*;
use crate::message::EventId;
use crate::storage::{Change, OutboxPosition, StateRow, StorageErrorKind};
use bytes::Bytes;

fn report(number: u128) -> Change {
    Change::Report {
        event: EventId::from_uuid(uuid::Uuid::from_u128(number)),
        payload: Bytes::from(format!("event {number}")),
    }
}

pub(super) async fn outbox_is_ordered_and_acknowledged<F: Fixture>() {
    let fixture = F::open().await;
    fixture.store().commit((1..=5).map(report).collect()).await.unwrap();
    let fixture = fixture.reopen().await;
    let start = OutboxPosition::default();
    let all = fixture.store().outbox(start, 99).await.unwrap();
    assert_eq!(
        all.iter().map(|entry| &entry.payload[..]).collect::<Vec<_>>(),
        [b"event 1", b"event 2", b"event 3", b"event 4", b"event 5"]
    );
    assert!(all.is_sorted_by(|a, b| a.position < b.position) && all[0].position > start);
    assert_eq!(all[4].event.as_uuid().as_u128(), 5);
    assert_eq!(fixture.store().outbox(all[1].position, 2).await.unwrap(), all[2..4]);
    fixture.change(Change::Acknowledge(all[2].position)).await;
    assert_eq!(fixture.store().outbox(start, 99).await.unwrap(), all[3..]);
    fixture.change(Change::Acknowledge(all[0].position)).await;
    assert_eq!(fixture.store().usage().await.unwrap().outbox, 2);
}

pub(super) async fn outbox_positions_grow_after_a_reopen<F: Fixture>() {
    let mut fixture = F::open().await;
    let mut last = OutboxPosition::default();
    for number in 0..3 {
        fixture.change(report(number)).await;
        let entries = fixture.store().outbox(OutboxPosition::default(), 9).await.unwrap();
        assert!(entries.len() == 1 && entries[0].position > last);
        last = entries[0].position;
        fixture.change(Change::Acknowledge(last)).await;
        fixture = fixture.reopen().await;
    }
    assert!(fixture.store().outbox(OutboxPosition::default(), 9).await.unwrap().is_empty());
}

pub(super) async fn state_rows_are_kept_in_order<F: Fixture>() {
    let fixture = F::open().await;
    let row = |key: &[u8], value: &str| StateRow { key: key.to_vec(), value: value.into() };
    let rows = [row(b"", "empty"), row(b"a", "1"), row(b"a\0", "2"), row(b"b", "3"), row(b"\xff", "4")];
    let mut batch: Vec<_> = rows.iter().rev().cloned().map(Change::PutState).collect();
    batch.insert(0, Change::PutState(row(b"b", "old")));
    batch.push(Change::PutState(row(b"gone", "x")));
    batch.push(Change::DeleteState(b"gone".to_vec()));
    batch.push(Change::DeleteState(b"never".to_vec()));
    fixture.store().commit(batch).await.unwrap();
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.store().state(None, 99).await.unwrap(), rows);
    assert_eq!(fixture.store().state(Some(b"a".to_vec()), 2).await.unwrap(), rows[2..4]);
    assert!(fixture.store().state(Some(b"\xff".to_vec()), 2).await.unwrap().is_empty());
}

pub(super) async fn state_keys_have_a_length<F: Fixture>() {
    let fixture = F::open().await;
    let put = |length| Change::PutState(StateRow { key: vec![1; length], value: vec![] });
    let error = fixture.store().commit(vec![put(1), put(513)]).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Invalid);
    assert!(fixture.store().state(None, 9).await.unwrap().is_empty(), "all or nothing");
    fixture.change(put(512)).await;
}

pub(super) async fn usage_counts_what_is_there<F: Fixture>() {
    let fixture = F::open().await;
    let empty = fixture.store().usage().await.unwrap();
    assert_eq!((empty.items, empty.outbox), (0, 0));
    let mut large = message_of(1, 1, vec![item("a.example", 1, 1), item("b.example", 1, 1)]);
    large.body = vec![b'x'; 300_000].into();
    fixture.insert(large).await;
    fixture.change(report(1)).await;
    let fixture = fixture.reopen().await;
    let used = fixture.store().usage().await.unwrap();
    assert_eq!((used.items, used.outbox), (2, 1));
    assert!(used.octets >= empty.octets + 300_000 - 100_000, "{} then {}", empty.octets, used.octets);
}

pub(super) async fn empty_lanes_do_not_disturb<F: Fixture>() {
    let fixture = F::open().await;
    for number in 1..=3 {
        fixture.insert(message(number, "a.example", 5)).await;
        let claimed = fixture.claim(A, due("a.example", 5, 9)).await;
        fixture.store().maintain(at(10)).await.unwrap();
        fixture.change(settle(&claimed[0], &[0])).await;
        assert!(fixture.store().heads(None, 9).await.unwrap().is_empty());
        fixture.store().maintain(at(11)).await.unwrap();
        assert!(fixture.store().heads(None, 9).await.unwrap().is_empty());
    }
}
