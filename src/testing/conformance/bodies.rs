//! Bodies, octet for octet, as long as anybody is to get them.

use super::*;
use crate::storage::{BodyKey, ChangeOutcome, StorageErrorKind};
use bytes::Bytes;

/// Stores messages with these bodies and reads them, before and after a reopen.
async fn come_back<F: StorageUnderTest>(bodies: Vec<Bytes>) {
    let mut subject = Subject::<F>::open().await;
    let messages = (1..).zip(&bodies).map(|(number, body)| {
        let mut message = message(number, "a.example", 1);
        message.body = body.clone();
        with(message, |envelope| envelope.size = body.len() as u64)
    });
    subject.storage().insert(messages.collect()).await.works();
    for when in ["at once", "after a reopen"] {
        let keys = (1..).zip(&bodies).map(|(number, _)| BodyKey(id(number))).collect();
        let found = subject.storage().bodies(keys).await.works();
        assert_eq!(found.len(), bodies.len(), "an answer for each key, {when}");
        for (found, sent) in found.into_iter().zip(&bodies) {
            same(&found.works(), sent, when);
        }
        subject = subject.reopen().await;
    }
}

/// Does not print what may be long.
fn same(found: &[u8], sent: &[u8], when: &str) {
    if found != sent {
        let differ = found.iter().zip(sent).position(|(found, sent)| found != sent);
        let at = differ.unwrap_or(found.len().min(sent.len()));
        panic!("{when}, of {} octets {} came back, the same up to octet {at}", sent.len(), found.len());
    }
}

pub(super) async fn an_empty_body_comes_back<F: StorageUnderTest>() {
    come_back::<F>(vec![Bytes::new(), Bytes::from_static(b"x\r\n"), Bytes::new()]).await;
}

pub(super) async fn nul_octets_in_bodies_come_back<F: StorageUnderTest>() {
    let bodies = [
        Bytes::from_static(b"\0"),
        Bytes::from_static(b"\0\0\r\n\0"),
        Bytes::from_static(b"before\0after\r\n.\r\n"),
        (0..=255).collect(),
        (0..1 << 20).map(|n: u32| (n % 251) as u8).collect(),
    ];
    come_back::<F>(bodies.into()).await;
}

pub(super) async fn a_body_of_50_mib_comes_back<F: StorageUnderTest>() {
    const LENGTH: usize = 50 << 20;
    // Its period is prime: no two blocks of any even size are the same.
    let period: Vec<u8> = (0..65_521u32).map(|n| (n % 253) as u8).collect();
    let mut body = period.repeat(LENGTH / period.len() + 1);
    body.truncate(LENGTH);
    come_back::<F>(vec![body.into(), Bytes::from_static(b"after\r\n")]).await;
}

pub(super) async fn bodies_come_in_the_order_of_their_keys<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let messages = (1..=3).map(|number| message(number, "a.example", 1));
    let sent: Vec<_> = messages.clone().map(|message| message.body).collect();
    subject.storage().insert(messages.collect()).await.works();
    let keys = [3, 3, 99, 1, 3, 2, 2].map(|number| BodyKey(id(number)));
    let found = subject.storage().bodies(keys.into()).await.works();
    let found: Vec<_> = found.into_iter().map(|body| body.map_err(|error| error.kind())).collect();
    let body = |number: usize| Ok(sent[number - 1].clone());
    let none = Err(StorageErrorKind::NotFound);
    assert_eq!(found, [body(3), body(3), none, body(1), body(3), body(2), body(2)]);
    assert!(subject.storage().bodies(vec![]).await.works().is_empty());
}

pub(super) async fn a_body_dies_with_its_last_recipient<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let items = vec![item("a.example", 1, 2), item("b.example", 1, 1)];
    subject.insert(message_of(1, 1, items)).await;
    let a = subject.claim(A, due("a.example", 1, 1)).await.remove(0);
    let b = subject.claim(A, due("b.example", 1, 1)).await.remove(0);
    for change in [settle(&a, &[0]), settle(&b, &[0])] {
        assert_eq!(subject.change(change).await, ChangeOutcome::Applied);
        assert!(subject.body(id(1)).await.is_ok());
    }
    subject.change(settle(&a, &[1])).await;
    let subject = subject.reopen().await;
    assert_eq!(subject.body(id(1)).await.fails(), StorageErrorKind::NotFound);
}
