//! What was damaged is told, and costs nothing else.

use super::*;
use crate::storage::{BodyKey, ClaimPart, ClaimRequest, Filter, StorageErrorKind};
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

pub(super) async fn a_damaged_item_is_reported<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let answers = subject.storage().insert((1..=3).map(large).collect()).await.works();
    let ids: Vec<_> = answers.into_iter().map(|answer| stored(answer)[0].0).collect();
    subject.insert(message(4, "b.example", 1)).await;
    let subject = subject.reopen_damaged(Damage::Item(ids[1])).await;
    let storage = subject.storage();
    for filter in [Filter::All, Filter::Message(id(2)), Filter::Lane(lane("a.example"))] {
        let error = storage.list(filter.clone(), None, 9).await.fails();
        assert_eq!(error, StorageErrorKind::Corrupt, "a list that meets it: {filter:?}");
    }
    assert_eq!(storage.list(Filter::Lane(lane("b.example")), None, 9).await.works().len(), 1);
    assert_eq!(storage.usage().await.works().items, 4, "it is counted");
    let what = vec![ClaimPart::Items(vec![ids[1]])];
    let request = ClaimRequest { owner: A, now: at(1_000), until: at(1_060), what };
    assert_eq!(storage.claim(request).await.fails(), StorageErrorKind::Corrupt, "a claim that names it");
    let items = subject.claim(A, due("a.example", 9, 9)).await;
    assert_eq!(numbers(&items), [1, 3], "the others of its lane");
    assert!(subject.claim(A, due("a.example", 9, 9)).await.is_empty(), "it is not claimed again and again");
    for item in &items {
        subject.change(settle(item, &[0])).await;
    }
    assert_eq!(subject.storage().usage().await.works().items, 2);
}
