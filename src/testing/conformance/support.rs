//! Messages to put into stores.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::event::{Diagnosis, Failure, LastFailure, Reason};
use crate::message::{Address, Domain, EventId, MessageId, Priority};
use crate::reply::{Reply, Stage};
use crate::storage::{
    Change, ClaimPart, Envelope, Inserted, Item, ItemId, Lane, LaneHead, Lease, NewItem, NewMessage, Owner,
    Recipient, Release,
};

pub(crate) const A: Owner = Owner(1);
pub(crate) const B: Owner = Owner(2);

pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds)
}

pub(crate) fn id(number: u128) -> MessageId {
    MessageId::from_uuid(uuid::Uuid::from_u128(number))
}

pub(crate) fn lane(domain: &str) -> Lane {
    Lane { domain: Domain::parse(domain).unwrap(), source: "s".into(), priority: Priority::Normal }
}

pub(crate) fn due(domain: &str, before: u64, limit: usize) -> ClaimPart {
    ClaimPart::Due { lane: lane(domain), before: at(before), limit }
}

pub(crate) fn recipient(index: u32, domain: &str) -> Recipient {
    let address = Address::parse(&format!("r{index}@{domain}")).unwrap();
    Recipient { index, address, attempts: 0, last: None, dsn: None }
}

pub(crate) fn item(domain: &str, due: u64, recipients: u32) -> NewItem {
    let recipients = (0..recipients).map(|index| recipient(index, domain)).collect();
    NewItem { lane: lane(domain), due: at(due), recipients, claim_for: None }
}

/// A message of one item with one recipient, due at and aged from `time`.
pub(crate) fn message(number: u128, domain: &str, time: u64) -> NewMessage {
    message_of(number, time, vec![item(domain, time, 1)])
}

pub(crate) fn message_of(number: u128, age_from: u64, items: Vec<NewItem>) -> NewMessage {
    let body = Bytes::from(format!("Subject: {number}\r\n\r\nbody\r\n"));
    let envelope = Envelope {
        id: id(number),
        reference: Some(format!("ref {number}")),
        reverse_path: Some(Address::parse("from@sender.example").unwrap()),
        submitted_at: at(age_from),
        age_from: at(age_from),
        expires_at: None,
        size: body.len() as u64,
        eight_bit: false,
        require_tls: false,
        smtputf8: false,
        recipient_count: items.iter().map(|item| item.recipients.len() as u32).sum(),
        tags: BTreeMap::new(),
        dsn: None,
    };
    NewMessage { envelope: Arc::new(envelope), body, items, host_id: false }
}

/// The message with its envelope changed.
pub(crate) fn with(mut message: NewMessage, change: impl FnOnce(&mut Envelope)) -> NewMessage {
    change(Arc::make_mut(&mut message.envelope));
    message
}

pub(crate) fn stored(inserted: Inserted) -> Vec<(ItemId, Option<Lease>)> {
    match inserted {
        Inserted::Stored(items) => items,
        Inserted::Duplicate => panic!("a Duplicate, though this id is new"),
    }
}

pub(crate) fn settle(item: &Item, settled: &[u32]) -> Change {
    Change::Update { item: item.id, lease: item.lease, settled: settled.to_vec(), released: Vec::new() }
}

/// The numbers of the messages the items belong to.
pub(crate) fn numbers(items: &[Item]) -> Vec<u128> {
    items.iter().map(|item| item.envelope.id.as_uuid().as_u128()).collect()
}

pub(crate) fn charged(recipient: &Recipient, attempts: u32) -> Recipient {
    Recipient { attempts, ..recipient.clone() }
}

/// With all that a failure can say.
pub(crate) fn failure() -> LastFailure {
    LastFailure {
        at: at(11),
        mx: Some("mx.a.example".into()),
        peer: Some("192.0.2.1:25".parse().unwrap()),
        diagnosis: Diagnosis {
            stage: Stage::Rcpt,
            status: "4.2.2".parse().unwrap(),
            reason: Reason::MailboxFull,
            failure: Failure::Reply(Reply::new(452, [b"4.2.2 full".as_slice()])),
            rule: Some("full".into()),
        },
    }
}

pub(crate) fn release(item: &Item, due: Timestamp, indices: &[u32]) -> Release {
    let named = item.recipients.iter().filter(|recipient| indices.contains(&recipient.index));
    Release { due, recipients: named.map(|recipient| charged(recipient, recipient.attempts + 1)).collect() }
}

pub(crate) fn indices(item: &Item) -> Vec<u32> {
    item.recipients.iter().map(|recipient| recipient.index).collect()
}

pub(crate) fn update(item: &Item, settled: &[u32], released: Vec<Release>) -> Change {
    Change::Update { item: item.id, lease: item.lease, settled: settled.to_vec(), released }
}

pub(crate) fn age(domain: &str, before: u64, limit: usize) -> ClaimPart {
    ClaimPart::Age { lane: lane(domain), before: at(before), limit }
}

/// Of a lane in which nothing has an expiry of its own.
pub(crate) fn head(domain: &str, next_due: u64, oldest: u64) -> LaneHead {
    LaneHead { next_due: Some(at(next_due)), oldest: Some(at(oldest)), ..LaneHead::empty(lane(domain)) }
}

pub(crate) fn no_head(domain: &str) -> LaneHead {
    LaneHead::empty(lane(domain))
}

pub(crate) fn report(number: u128) -> Change {
    report_of(number, None)
}

pub(crate) fn report_of(number: u128, of: Option<(ItemId, Lease)>) -> Change {
    Change::Report {
        of,
        event: EventId::from_uuid(uuid::Uuid::from_u128(number)),
        payload: Bytes::from(format!("event {number}")),
    }
}
