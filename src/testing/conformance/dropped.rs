//! Futures that are dropped before they have returned.

use std::pin::pin;
use std::task::Poll;

use super::*;
use crate::storage::{
    BodyKey, Change, ChangeOutcome, ClaimRequest, Filter, Inserted, Item, OutboxPosition, Owner, StateRow,
    Storage,
};

/// Polls so many times at most, then drops it.
async fn dropped<T>(polls: u64, call: impl Future<Output = T>) {
    let mut call = pin!(call);
    for _ in 0..polls {
        let polled = std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
        if polled.is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

pub(super) async fn a_dropped_insert_is_stored_as_a_whole_or_not_at_all<F: StorageUnderTest>() {
    let mut subject = Subject::<F>::open().await;
    for round in 0..12 {
        let (first, second) = (round * 10 + 1, round * 10 + 2);
        let messages = || {
            let several = message_of(first, 1, vec![item("a.example", 1, 1), item("b.example", 2, 2)]);
            vec![several, message(second, "a.example", 1)]
        };
        dropped(round as u64 % 4, subject.storage().insert(messages())).await;
        if round % 3 == 0 {
            subject = subject.reopen().await;
        }
        // What comes after it.
        subject.insert(message(round * 10 + 3, "c.example", 1)).await;
        let mut there = Vec::new();
        for number in [first, second] {
            there.push(subject.storage().list(Filter::Message(id(number)), None, 9).await.works().len());
        }
        assert!(there == [0, 0] || there == [2, 1], "items of the two messages: {there:?}");
        for message in messages() {
            let again = subject.insert(message.clone()).await;
            assert_eq!(matches!(again, Inserted::Duplicate), there == [2, 1], "{again:?}");
            let body = subject.body(message.envelope.id).await.works();
            assert!(body == message.body, "the body of {}", message.envelope.id);
        }
    }
    assert_eq!(subject.storage().usage().await.works().items, 12 * 4);
}

pub(super) async fn a_dropped_commit_is_applied_as_a_whole_or_not_at_all<F: StorageUnderTest>() {
    let mut subject = Subject::<F>::open().await;
    for round in 0..12 {
        subject.insert(message_of(round + 1, 1, vec![item("a.example", 1, 2)])).await;
        let held = only(subject.claim(A, due("a.example", 1, 9)).await);
        let row = StateRow { key: b"round".to_vec(), value: vec![round as u8] };
        let changes = vec![update(&held, &[0, 1], vec![]), report(round + 1), Change::PutState(row.clone())];
        dropped(round as u64 % 4, subject.storage().commit(changes)).await;
        if round % 3 == 0 {
            subject = subject.reopen().await;
        }
        subject.change(Change::DeleteState(b"nothing".to_vec())).await;
        let items = subject.storage().list(Filter::All, None, 9).await.works();
        let outbox = subject.storage().outbox(OutboxPosition::default(), 99).await.works();
        let state = subject.storage().state(None, 9).await.works();
        let seen = (items.is_empty(), outbox.len() == 1, state == [row]);
        assert!(
            seen == (true, true, true) || seen == (false, false, false),
            "settled, reported, noted: {seen:?}"
        );
        if !items.is_empty() {
            // Its lease holds as before, unless the store was opened anew.
            if round % 3 != 0 {
                assert_eq!(subject.change(settle(&held, &[0])).await, ChangeOutcome::Applied);
                subject = subject.reopen().await;
            }
            let held = only(subject.claim(B, due("a.example", 1, 9)).await);
            assert_eq!(subject.change(settle(&held, &[0, 1])).await, ChangeOutcome::Applied);
        }
        if let Some(entry) = outbox.last() {
            subject.change(Change::Acknowledge(entry.position)).await;
        }
    }
}

pub(super) async fn a_dropped_claim_loses_nothing<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    subject.storage().insert((1..=20).map(|n| message(n, "a.example", n as u64)).collect()).await.works();
    for round in 0..8 {
        let (now, what) = (at(1_000 * round + 1_000), vec![due("a.example", 99, 15)]);
        let request = ClaimRequest { owner: A, now, until: now + std::time::Duration::from_secs(60), what };
        dropped(round % 4, subject.storage().claim(request)).await;
        // Others may have some of it at once, and all of it then.
        let early = subject.claimed(B, now, due("a.example", 99, 99)).await.items;
        let late = subject.claimed(Owner(3), at(1_000 * round + 1_500), due("a.example", 99, 99)).await.items;
        assert!(early.is_sorted_by_key(|item: &Item| item.due));
        assert_eq!(numbers(&late), (1..=20).collect::<Vec<_>>(), "all leases have run out");
        if let Some(item) = early.first() {
            assert_eq!(subject.change(settle(item, &[0])).await, ChangeOutcome::Stale);
        }
    }
}

pub(super) async fn dropped_reads_change_nothing<F: StorageUnderTest>() {
    let (subject, held) = one::<F>(2).await;
    subject.storage().commit(vec![report(1), report(2)]).await.works();
    subject.insert(message(2, "b.example", 1)).await;
    let storage = subject.storage();
    let seen = async || {
        let outbox = storage.outbox(OutboxPosition::default(), 9).await.works();
        (storage.list(Filter::All, None, 9).await.works(), storage.heads(None, 9).await.works(), outbox)
    };
    let before = seen().await;
    for polls in 0..4 {
        dropped(polls, storage.heads(None, 1)).await;
        dropped(polls, storage.bodies(vec![BodyKey(id(1))])).await;
        dropped(polls, storage.state(None, 1)).await;
        dropped(polls, storage.outbox(OutboxPosition::default(), 1)).await;
        dropped(polls, storage.list(Filter::All, None, 1)).await;
        dropped(polls, storage.count(&lane("a.example"))).await;
        dropped(polls, storage.usage()).await;
        dropped(polls, storage.maintain(at(1_000))).await;
        assert_eq!(seen().await, before);
    }
    assert_eq!(subject.change(settle(&held, &[0])).await, ChangeOutcome::Applied);
}
