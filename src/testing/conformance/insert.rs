use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::clock::Timestamp;
use crate::message::Address;
use crate::storage::{
    Change, ChangeOutcome, ClaimPart, Filter, ID_MEMORY, Inserted, OutboxPosition, StateRow, StorageErrorKind,
};

pub(super) async fn what_is_acknowledged_survives_a_reopen<F: StorageUnderTest>() {
    let mut subject = Subject::<F>::open().await;
    let sent = message_of(1, 5, vec![item("a.example", 9, 3)]);
    let first = stored(subject.insert(sent.clone()).await)[0].0;
    subject = subject.reopen().await;
    let claimed = only(subject.claim(A, due("a.example", 9, 10)).await);
    assert_eq!((claimed.id, claimed.due, &claimed.lane), (first, at(9), &lane("a.example")));
    assert_eq!((&claimed.envelope, &claimed.recipients), (&sent.envelope, &sent.items[0].recipients));
    assert_eq!(subject.body(id(1)).await.works(), sent.body);
    // Each kind of change, with a reopen right after it.
    subject.change(settle(&claimed, &[0])).await;
    subject = subject.reopen().await;
    let claimed = only(subject.claim(A, due("a.example", 9, 10)).await);
    assert_eq!(indices(&claimed), [1, 2], "0 was settled");
    subject.change(update(&claimed, &[], vec![release(&claimed, at(20), &[1])])).await;
    subject = subject.reopen().await;
    let parts = subject.claim(A, due("a.example", 20, 10)).await;
    let seen: Vec<_> = parts.iter().map(|item| (item.due, indices(item))).collect();
    assert_eq!(seen, [(at(9), vec![2]), (at(20), vec![1])], "1 was released");
    let row = StateRow { key: b"k".to_vec(), value: b"v".to_vec() };
    subject.change(Change::PutState(row.clone())).await;
    subject = subject.reopen().await;
    assert_eq!(subject.storage().state(None, 9).await.works(), [row]);
    subject.change(Change::DeleteState(b"k".to_vec())).await;
    subject = subject.reopen().await;
    assert_eq!(subject.storage().state(None, 9).await.works(), []);
    subject.change(report(1)).await;
    subject = subject.reopen().await;
    assert_eq!(subject.storage().outbox(OutboxPosition::default(), 9).await.works().len(), 1);
}

pub(super) async fn envelopes_come_back_as_they_were<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let bare = with(message(1, "a.example", 1), |envelope| {
        envelope.reference = None;
        envelope.reverse_path = None;
    });
    let full = with(message(2, "a.example", 2), |envelope| {
        envelope.reference = Some("\0 \u{10348}\r\n'\"".into());
        envelope.reverse_path = Some(Address::parse("o'hara+\u{fc}@sender.example").unwrap());
        envelope.submitted_at = Timestamp::from_unix_micros(1);
        envelope.age_from = Timestamp::from_unix_micros(1_999_999);
        envelope.expires_at = Some(Timestamp::from_unix_micros(77_123_457));
        envelope.size = u64::from(u32::MAX) + 1;
        envelope.eight_bit = true;
        envelope.require_tls = true;
        envelope.smtputf8 = true;
        envelope.recipient_count = 50_000;
        envelope.tags = [("", "empty"), ("empty", ""), ("\0", "\0"), ("job", "\u{fc}")]
            .map(|(name, value)| (name.into(), value.into()))
            .into();
        envelope.tags.insert("\u{fc}".repeat(1_000), "long ".repeat(1_000));
    });
    let empty = with(message(3, "a.example", 3), |envelope| envelope.reference = Some(String::new()));
    let sent = [bare, full, empty];
    subject.storage().insert(sent.to_vec()).await.works();
    let subject = subject.reopen().await;
    let found = subject.claim(A, due("a.example", 9, 9)).await;
    assert_eq!(found.len(), sent.len());
    for (found, sent) in found.iter().zip(&sent) {
        assert_eq!(found.envelope, sent.envelope);
    }
}

pub(super) async fn recipients_come_back_as_they_were<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let mut message = message_of(1, 1, vec![item("a.example", 1, 5)]);
    let recipients = &mut message.items[0].recipients;
    for (recipient, attempts) in recipients.iter_mut().zip([0, 1, 2, 1_000, u32::MAX]) {
        recipient.attempts = attempts;
        recipient.last = (attempts > 1).then(|| Arc::new(failure()));
    }
    let sent = recipients.clone();
    subject.insert(message).await;
    let subject = subject.reopen().await;
    let listed = only(subject.storage().list(Filter::All, None, 9).await.works());
    assert_eq!(listed.recipients, sent);
    assert_eq!(only(subject.claim(A, due("a.example", 1, 9)).await).recipients, sent);
}

pub(super) async fn due_times_are_exact_after_a_reopen<F: StorageUnderTest>() {
    let mut subject = Subject::<F>::open().await;
    // The end of the year 9999 is later than any time that comes out of a calendar.
    let times = [0, 1, 999_999, 1_000_000, 77_123_456, 77_123_457, 253_402_300_799_999_999];
    let times = times.map(Timestamp::from_unix_micros);
    for (number, due) in (1..).zip(times).collect::<Vec<_>>().into_iter().rev() {
        let mut message = message(number, "a.example", 1);
        message.items[0].due = due;
        subject.insert(message).await;
    }
    for (number, time) in (1..).zip(times) {
        subject = subject.reopen().await;
        let heads = subject.storage().heads(None, 9).await.works();
        assert_eq!(heads.iter().map(|head| head.next_due).collect::<Vec<_>>(), [Some(time)]);
        let part = |before| ClaimPart::Due { lane: lane("a.example"), before, limit: 9 };
        if time > Timestamp::EPOCH {
            let early = subject.claim(A, part(time.saturating_sub(Duration::from_micros(1)))).await;
            assert!(early.is_empty(), "claimed a microsecond early: {early:?}");
        }
        let item = only(subject.claim(A, part(time)).await);
        assert_eq!((item.due, item.envelope.id), (time, id(number)));
        subject.change(settle(&item, &[0])).await;
    }
}

pub(super) async fn an_id_is_stored_once<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let batch = vec![message(1, "a.example", 1), message(1, "a.example", 1), message(2, "a.example", 1)];
    let answers = subject.storage().insert(batch).await.works();
    assert!(matches!(answers[..], [Inserted::Stored(_), Inserted::Duplicate, Inserted::Stored(_)]));
    let subject = subject.reopen().await;
    assert_eq!(subject.insert(message(2, "b.example", 1)).await, Inserted::Duplicate);
    assert_eq!(subject.storage().usage().await.works().items, 2);
}

pub(super) async fn a_host_id_is_remembered_for_a_day_after_the_end<F: StorageUnderTest>() {
    let mut subject = Subject::<F>::open().await;
    for (number, host_id) in [(1, true), (2, false)] {
        let mut message = message(number, "a.example", 1);
        message.host_id = host_id;
        subject.insert(message).await;
    }
    for item in subject.claim(A, due("a.example", 1, 10)).await {
        subject.change(settle(&item, &[0])).await;
    }
    subject = subject.reopen().await;
    let mut again = message(1, "a.example", 1);
    again.host_id = true;
    let end = at(1_000_000);
    let an_hour = Duration::from_secs(3600);
    let a_second = Duration::from_secs(1);
    for now in [end, end + an_hour, end + (ID_MEMORY - a_second)] {
        subject.storage().maintain(now).await.works();
        assert_eq!(subject.insert(again.clone()).await, Inserted::Duplicate, "{now}");
        assert_eq!(
            subject.storage().list(Filter::All, None, 9).await.works(),
            [],
            "nothing is stored for it"
        );
    }
    for hours in 0..4 {
        subject.storage().maintain(end + ID_MEMORY + an_hour * hours).await.works();
    }
    assert!(matches!(subject.insert(again).await, Inserted::Stored(_)), "an old id is forgotten");
    assert!(matches!(subject.insert(message(2, "a.example", 1)).await, Inserted::Stored(_)));
}

pub(super) async fn empty_messages_are_invalid<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let items =
        [vec![], vec![item("a.example", 1, 0)], vec![item("a.example", 1, 1), item("b.example", 1, 0)]];
    for bad in items.map(|items| message_of(1, 1, items)) {
        let error = subject.storage().insert(vec![message(2, "a.example", 1), bad]).await.fails();
        assert_eq!(error, StorageErrorKind::Invalid);
    }
    assert_eq!(subject.storage().usage().await.works().items, 0);
}

pub(super) async fn items_claimed_at_insert_are_leased_to_their_owner<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let mut items = vec![item("a.example", 1, 1), item("b.example", 1, 1)];
    items[0].claim_for = Some(A);
    let answer = stored(subject.insert(message_of(1, 1, items)).await);
    assert!(answer[0].1.is_some() && answer[1].1.is_none());
    assert!(subject.claim(B, due("a.example", 1, 9)).await.is_empty());
    let heads = subject.storage().heads(None, 9).await.works();
    assert_eq!(heads.iter().map(|head| &head.lane).collect::<Vec<_>>(), [&lane("b.example")]);
    let change =
        Change::Update { item: answer[0].0, lease: answer[0].1.unwrap(), settled: vec![0], released: vec![] };
    assert_eq!(subject.change(change).await, ChangeOutcome::Applied);
    let subject = subject.reopen().await;
    assert_eq!(subject.storage().usage().await.works().items, 1);
}

pub(super) async fn item_ids_are_not_used_twice<F: StorageUnderTest>() {
    let mut subject = Subject::<F>::open().await;
    let mut last = None;
    for number in 1..5 {
        let (item, _) = stored(subject.insert(message(number, "a.example", 1)).await)[0];
        assert!(Some(item) > last);
        last = Some(item);
        let claimed = subject.claim(A, ClaimPart::Items(vec![item])).await;
        subject.change(settle(&claimed[0], &[0])).await;
        subject = subject.reopen().await;
    }
}
