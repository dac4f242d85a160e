//! Futures that are dropped before they have returned.

use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;

use super::*;
use crate::message::EventId;
use crate::storage::{
    BodyKey, Change, ChangeOutcome, ClaimRequest, Filter, Inserted, Item, NewMessage, OutboxPosition, Owner,
    StateRow, Storage,
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

/// A message of two items and one of one, which are inserted at once.
fn two_messages(round: u128) -> Vec<NewMessage> {
    let several = message_of(round * 10 + 1, 1, vec![item("a.example", 1, 1), item("b.example", 2, 2)]);
    vec![several, message(round * 10 + 2, "a.example", 1)]
}

/// Whether the two messages are there. The insert may come about between two looks: once one shows it, the later ones do.
async fn shows_insert<F: StorageUnderTest>(subject: &Subject<F>, round: u128, mut is_there: bool) -> bool {
    for (number, items) in [(1, 2), (2, 1), (1, 2), (2, 1)] {
        let found = subject.storage().list(Filter::Message(id(round * 10 + number)), None, 9).await.works();
        let expected = if is_there { items..=items } else { 0..=items };
        assert!(
            expected.contains(&found.len()) && [0, items].contains(&found.len()),
            "of the dropped insert a part is there: {} of {items} items of its message {number}",
            found.len()
        );
        is_there = found.len() == items;
    }
    is_there
}

pub(super) async fn a_dropped_insert_is_stored_as_a_whole_or_not_at_all<F: StorageUnderTest>() {
    let mut subject = Subject::<F>::open().await;
    for round in 0..12 {
        dropped(round as u64 % 4, subject.storage().insert(two_messages(round))).await;
        let mut is_there = shows_insert(&subject, round, false).await;
        if round % 3 != 0 {
            subject = subject.reopen().await;
            is_there = shows_insert(&subject, round, is_there).await;
            // It never comes about now.
            subject.insert(message(round * 10 + 3, "c.example", 1)).await;
            subject.storage().maintain(at(10)).await.works();
            if round % 3 == 1 {
                subject = subject.reopen().await;
            }
            assert_eq!(
                shows_insert(&subject, round, is_there).await,
                is_there,
                "after a reopen it came about"
            );
        }
        // Where the store was not opened anew, it may come about meanwhile.
        let is_settled = round % 3 != 0;
        for message in two_messages(round) {
            let again = subject.insert(message.clone()).await;
            let is_duplicate = matches!(again, Inserted::Duplicate);
            assert!(is_duplicate || !is_there, "it was there, and was stored again: {again:?}");
            assert!(!is_duplicate || is_there || !is_settled, "it was not there, and is a Duplicate");
            let body = subject.body(message.envelope.id).await.works();
            assert!(body == message.body, "the body of {}", message.envelope.id);
        }
    }
    subject = subject.reopen().await;
    for round in 0..12 {
        assert!(shows_insert(&subject, round, true).await);
    }
    assert_eq!(subject.storage().usage().await.works().items, 12 * 3 + 8, "each message once");
}

/// Changes of which each shows.
struct Changes {
    item: Item,
    event: EventId,
    row: StateRow,
}

impl Changes {
    fn all(&self) -> Vec<Change> {
        let report = Change::Report { of: None, event: self.event, payload: Bytes::from_static(b"settled") };
        vec![settle(&self.item, &[0, 1]), report, Change::PutState(self.row.clone())]
    }

    /// Whether they are applied. The commit may come about between two looks: once one shows it, the later ones do.
    async fn show(&self, storage: &impl Storage, mut are_applied: bool) -> bool {
        for look in 0..6 {
            let (what, shows) = match look % 3 {
                0 => {
                    let message = Filter::Message(self.item.envelope.id);
                    ("the item settled", storage.list(message, None, 9).await.works().is_empty())
                }
                1 => {
                    let entries = storage.outbox(OutboxPosition::default(), 99).await.works();
                    ("the outcome reported", entries.iter().any(|entry| entry.event == self.event))
                }
                _ => ("the row written", storage.state(None, 9).await.works().contains(&self.row)),
            };
            assert!(shows || !are_applied, "of the dropped commit a part is there, and not {what}");
            are_applied = shows;
        }
        are_applied
    }
}

pub(super) async fn a_dropped_commit_is_applied_as_a_whole_or_not_at_all<F: StorageUnderTest>() {
    let mut subject = Subject::<F>::open().await;
    for round in 0..12 {
        subject.insert(message_of(round + 1, 1, vec![item("a.example", 1, 2)])).await;
        let item = only(subject.claim(A, due("a.example", 1, 9)).await);
        let event = EventId::from_uuid(uuid::Uuid::from_u128(round + 1));
        let row = StateRow { key: b"round".to_vec(), value: vec![round as u8] };
        let changes = Changes { item, event, row };
        dropped(round as u64 % 4, subject.storage().commit(changes.all())).await;
        let mut are_applied = changes.show(subject.storage(), false).await;
        if round % 3 == 0 {
            // Its lease holds until it comes about, which may be now.
            let outcome = subject.change(settle(&changes.item, &[0])).await;
            assert!(!are_applied || outcome == ChangeOutcome::Stale, "it was settled, and its lease holds");
            are_applied = changes.show(subject.storage(), outcome == ChangeOutcome::Stale).await;
        }
        subject = subject.reopen().await;
        are_applied = changes.show(subject.storage(), are_applied).await;
        // It never comes about now.
        subject.change(Change::DeleteState(b"nothing".to_vec())).await;
        subject.storage().maintain(at(10)).await.works();
        if round % 3 == 1 {
            subject = subject.reopen().await;
        }
        let still = changes.show(subject.storage(), are_applied).await;
        assert_eq!(still, are_applied, "after a reopen it came about");
        if !are_applied {
            let held = only(subject.claim(B, due("a.example", 1, 9)).await);
            assert_eq!(subject.change(settle(&held, &[0, 1])).await, ChangeOutcome::Applied);
        }
        let outbox = subject.storage().outbox(OutboxPosition::default(), 99).await.works();
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
