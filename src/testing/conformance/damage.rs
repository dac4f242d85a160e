//! What was damaged is told, and costs nothing else.

use super::*;
use crate::message::EventId;
use crate::storage::{
    BodyKey, Change, ClaimPart, Filter, OutboxPosition, StateRow, Storage, StorageErrorKind,
};
use bytes::Bytes;

/// With a body of the octet that is its number, as [`Damage::Body`] says.
fn large(number: u8) -> crate::storage::NewMessage {
    let mut message = message(number.into(), "a.example", number.into());
    message.body = Bytes::from(vec![number; 4_000]);
    message
}

pub(super) async fn a_damaged_body_fails_alone<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    subject.storage().insert((1..=3).map(large).collect()).await.works();
    let subject = subject.reopen_damaged(Damage::Body(id(2))).await;
    let keys = (1..=3).map(|number| BodyKey(id(number))).collect();
    let bodies = subject.storage().bodies(keys).await.works();
    let bodies: Vec<_> = bodies.into_iter().map(|body| body.map_err(|error| error.kind())).collect();
    let whole = |number| Ok(large(number).body);
    assert_eq!(bodies, [whole(1), Err(StorageErrorKind::Corrupt), whole(3)]);
    let items = subject.claim(A, due("a.example", 9, 9)).await;
    assert_eq!(numbers(&items), [1, 2, 3], "the mail itself is there");
    subject.change(settle(&items[1], &[0])).await;
    assert_eq!(
        subject.body(id(2)).await.fails(),
        StorageErrorKind::NotFound,
        "it went with its last recipient"
    );
    assert_eq!(subject.storage().usage().await.works().items, 2);
}

pub(super) async fn a_damaged_item_is_left_aside<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let answers = subject.storage().insert((1..=4).map(large).collect()).await.works();
    let ids: Vec<_> = answers.into_iter().map(|answer| stored(answer)[0].0).collect();
    let several = message_of(5, 5, vec![item("b.example", 5, 1), item("c.example", 5, 1)]);
    let several = stored(subject.insert(several).await)[0].0;
    let subject = subject.reopen_damaged(Damage::Item(ids[1])).await;
    told_once(&subject, async |storage| {
        for (filter, limit) in [(Filter::All, 2), (Filter::Lane(lane("a.example")), 2)] {
            let items = storage.list(filter.clone(), None, limit).await.works();
            let found: Vec<_> = items.iter().map(|item| item.id).collect();
            assert_eq!(found, [ids[0], ids[2]], "a page of two that meets it: {filter:?}");
        }
    })
    .await;
    let storage = subject.storage();
    let named = storage.list(Filter::Message(id(2)), None, 9).await;
    assert_eq!(named.fails(), StorageErrorKind::Corrupt, "a list of its message, of which it is all");
    assert_eq!(storage.list(Filter::Message(id(9)), None, 9).await.works(), [], "one that is not there");
    assert_eq!(storage.usage().await.works().items, 6, "it is counted");
    let items = subject.claim(A, ClaimPart::Items(vec![ids[0], ids[1]])).await;
    assert_eq!(numbers(&items), [1], "a claim that names it");
    let items = subject.claim(A, due("a.example", 9, 9)).await;
    assert_eq!(numbers(&items), [3, 4], "the others of its lane");
    let claimed = subject.claimed(A, at(1_000), due("a.example", 9, 9)).await;
    assert!(
        claimed.items.is_empty() && claimed.heads[0].next_due.is_none(),
        "not again and again: {claimed:?}"
    );
    for item in &items {
        subject.change(settle(item, &[0])).await;
    }
    assert_eq!(subject.storage().usage().await.works().items, 4);
    let subject = subject.reopen_damaged(Damage::Item(several)).await;
    told_once(&subject, async |storage| {
        let left = storage.list(Filter::Message(id(5)), None, 9).await.works();
        assert_eq!(left.len(), 1, "what can be read of a message");
    })
    .await;
}

pub(super) async fn a_damaged_state_row_is_left_aside<F: StorageUnderTest>() {
    let row = |key: &[u8]| StateRow { key: key.to_vec(), value: vec![7; 40] };
    let keys: [&'static [u8]; 3] = [b"a", b"b", b"c"];
    let subject = Subject::<F>::open().await;
    subject.storage().commit(keys.map(|key| Change::PutState(row(key))).into()).await.works();
    let subject = subject.reopen_damaged(Damage::State(b"b")).await;
    told_once(&subject, async |storage| {
        assert_eq!(storage.state(None, 2).await.works(), [row(b"a"), row(b"c")], "a page of two");
    })
    .await;
    subject.change(Change::PutState(row(b"b"))).await;
    assert_eq!(subject.storage().state(None, 9).await.works(), keys.map(row), "it is written anew");
}

pub(super) async fn a_damaged_outbox_entry_keeps_its_place<F: StorageUnderTest>() {
    let event = |number: u8| EventId::from_uuid(uuid::Uuid::from_u128(number.into()));
    let payload = |number: u8| Bytes::from(vec![number; 40]);
    let report = |number| Change::Report { of: None, event: event(number), payload: payload(number) };
    let subject = Subject::<F>::open().await;
    subject.storage().commit((1..=3).map(report).collect()).await.works();
    let entries = subject.storage().outbox(OutboxPosition::default(), 9).await.works();
    let subject = subject.reopen_damaged(Damage::Outbox(entries[1].position)).await;
    told_once(&subject, async |storage| {
        let found = storage.outbox(OutboxPosition::default(), 9).await.works();
        assert_eq!([&found[0], &found[2]], [&entries[0], &entries[2]], "the others");
        assert_eq!((found.len(), found[1].position), (3, entries[1].position));
        assert!(found[1].payload.is_empty(), "nothing is made up: {found:?}");
    })
    .await;
    subject.change(Change::Acknowledge(entries[1].position)).await;
    assert_eq!(subject.storage().outbox(OutboxPosition::default(), 9).await.works(), entries[2..]);
    assert_eq!(subject.storage().usage().await.works().outbox, 1);
}

/// What is met in `reading`, twice, is told in one entry.
async fn told_once<F: StorageUnderTest>(subject: &Subject<F>, reading: impl AsyncFn(&F::Store)) {
    reading(subject.storage()).await;
    reading(subject.storage()).await;
    let told = subject.storage().take_damage().await;
    let kinds: Vec<_> = told.iter().map(|damage| damage.kind()).collect();
    assert_eq!(kinds, [StorageErrorKind::Corrupt], "told: {told:?}");
    reading(subject.storage()).await;
    assert!(subject.storage().take_damage().await.is_empty(), "it was told before");
}
