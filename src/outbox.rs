//! Final events as they lie in the durable outbox.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postcard::ser_flavors::Flavor;
use serde::Serialize;

use crate::clock::Timestamp;
use crate::event::{DeliveryEvent, Diagnosis, RecipientRecord};
use crate::message::{Address, Domain, EventId, MessageDsn, MessageId, RecipientDsn};
use crate::policy::Suppression;
use crate::reply::Reply;
use crate::storage::{Change, ItemId, Lease, OutboxEntry, StorageError, StorageErrorKind};

/// The encoding's version, the first octet of each entry.
const VERSION: u8 = 2;

/// A final event before it is one: what it is made of lies elsewhere, and need not be kept. It is encoded as the event, so
/// the variants stand where those of [`DeliveryEvent`] do.
#[derive(Serialize)]
pub(crate) enum Final<'a> {
    #[allow(dead_code, reason = "not final")]
    Received,
    Delivered {
        record: Record<'a>,
        reply: &'a Reply,
        tls: Option<&'a str>,
        dsn_passed_on: bool,
    },
    #[allow(dead_code, reason = "not final")]
    Deferred,
    Bounced {
        record: Record<'a>,
        diagnosis: &'a Diagnosis,
        suppress: Suppression,
    },
    Cancelled {
        record: Record<'a>,
    },
}

/// A [`RecipientRecord`] made of what lies elsewhere.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Record<'a> {
    pub(crate) event: EventId,
    pub(crate) time: Timestamp,
    pub(crate) id: MessageId,
    pub(crate) reference: Option<&'a str>,
    pub(crate) recipient: &'a Address,
    pub(crate) domain: &'a Domain,
    pub(crate) queue: &'a str,
    pub(crate) source: &'a Arc<str>,
    pub(crate) mx: Option<&'a Arc<str>>,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) attempts: u32,
    pub(crate) queued: Duration,
    pub(crate) tags: &'a BTreeMap<String, String>,
    pub(crate) dsn: Option<&'a MessageDsn>,
    pub(crate) recipient_dsn: Option<&'a RecipientDsn>,
}

impl Record<'_> {
    pub(crate) fn to_owned(self) -> RecipientRecord {
        RecipientRecord {
            event: self.event,
            time: self.time,
            id: self.id,
            reference: self.reference.map(str::to_owned),
            recipient: self.recipient.clone(),
            domain: self.domain.clone(),
            queue: self.queue.into(),
            source: self.source.clone(),
            mx: self.mx.cloned(),
            peer: self.peer,
            attempts: self.attempts,
            queued: self.queued,
            tags: self.tags.clone(),
            dsn: self.dsn.cloned().map(Box::new),
            recipient_dsn: self.recipient_dsn.cloned().map(Box::new),
        }
    }
}

impl Final<'_> {
    /// The change that reports it as an outcome of an item under its lease. `scratch` is what it is encoded in, of no meaning before and after.
    pub(crate) fn entry(&self, of: (ItemId, Lease), scratch: &mut Vec<u8>) -> Option<Change> {
        let event = match self {
            Self::Received | Self::Deferred => return None,
            Self::Delivered { record, .. } | Self::Bounced { record, .. } | Self::Cancelled { record } => {
                record.event
            }
        };
        scratch.clear();
        scratch.push(VERSION);
        postcard::serialize_with_flavor(self, Scratch(scratch)).ok()?;
        Some(Change::Report { of: Some(of), event, payload: Bytes::copy_from_slice(scratch) })
    }
}

/// Where postcard writes to.
struct Scratch<'a>(&'a mut Vec<u8>);

impl Flavor for Scratch<'_> {
    type Output = ();

    fn try_push(&mut self, octet: u8) -> postcard::Result<()> {
        self.0.push(octet);
        Ok(())
    }

    fn try_extend(&mut self, octets: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(octets);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// The event of an entry.
pub(crate) fn event(entry: &OutboxEntry) -> Result<DeliveryEvent, StorageError> {
    let corrupt = |what: &str| {
        let message = format!("outbox entry {} ({}) {what}", entry.position.0, entry.event);
        StorageError::new(StorageErrorKind::Corrupt, message)
    };
    match entry.payload.split_first() {
        Some((&VERSION, encoded)) => postcard::from_bytes(encoded).map_err(|_| corrupt("is damaged")),
        Some((version, _)) => Err(corrupt(&format!("is of version {version}, this program knows {VERSION}"))),
        None => Err(corrupt("is empty")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Bounced, Cancelled, Delivered, Failure, Reason};
    use crate::message::Notify;
    use crate::reply::{EnhancedStatus, Stage};
    use crate::storage::OutboxPosition;

    #[test]
    fn a_final_event_is_encoded_as_the_event_it_is_read_as() {
        let at = Timestamp::from_unix_seconds(1_800_000_000);
        let recipient = Address::parse("a@b.example").unwrap();
        let tags = BTreeMap::from([("tenant".to_owned(), "7".to_owned())]);
        let (queue, source, mx): (Arc<str>, Arc<str>, Arc<str>) =
            ("b.example".into(), "s1".into(), "mx.b.example".into());
        let message_dsn = MessageDsn::default();
        let recipient_dsn = RecipientDsn { notify: Some(Notify::FAILURE), ..RecipientDsn::default() };
        let full = Record {
            event: EventId::generate(at, 1),
            time: at,
            id: MessageId::generate(at, 2),
            reference: Some("order 1"),
            recipient: &recipient,
            domain: recipient.domain(),
            queue: &queue,
            source: &source,
            mx: Some(&mx),
            peer: Some(SocketAddr::from(([192, 0, 2, 1], 25))),
            attempts: 3,
            queued: Duration::from_millis(1_500),
            tags: &tags,
            dsn: Some(&message_dsn),
            recipient_dsn: Some(&recipient_dsn),
        };
        let bare = Record { reference: None, mx: None, peer: None, dsn: None, recipient_dsn: None, ..full };
        let reply = Reply::parse("250 2.0.0 ok").unwrap();
        let diagnosis = Diagnosis {
            stage: Stage::Rcpt,
            status: EnhancedStatus::new(5, 1, 1),
            reason: Reason::UserUnknown,
            failure: Failure::Reply(Reply::parse("550 5.1.1 no such user").unwrap()),
            rule: None,
        };
        for parts in [full, bare] {
            let record = parts.to_owned();
            let tls = Some("TLSv1.3");
            let finals = [
                (
                    Final::Delivered { record: parts, reply: &reply, tls, dsn_passed_on: true },
                    DeliveryEvent::Delivered(Delivered {
                        record: record.clone(),
                        reply: reply.clone(),
                        tls: tls.map(str::to_owned),
                        dsn_passed_on: true,
                    }),
                ),
                (
                    Final::Bounced { record: parts, diagnosis: &diagnosis, suppress: Suppression::Permanent },
                    DeliveryEvent::Bounced(Bounced {
                        record: record.clone(),
                        diagnosis: diagnosis.clone(),
                        suppress: Suppression::Permanent,
                    }),
                ),
                (Final::Cancelled { record: parts }, DeliveryEvent::Cancelled(Cancelled { record })),
            ];
            for (parts, whole) in finals {
                let of = (ItemId(1), Lease(2));
                let Some(Change::Report { of: Some(told), event: id, payload }) =
                    parts.entry(of, &mut vec![9; 3])
                else {
                    panic!("{whole:?} is final");
                };
                assert_eq!(told, of);
                let entry = OutboxEntry { position: OutboxPosition(1), event: id, payload };
                assert_eq!(event(&entry).unwrap(), whole);
                let mut encoded = vec![VERSION];
                encoded.extend(postcard::to_stdvec(&whole).unwrap());
                assert_eq!(entry.payload, encoded);
            }
        }
    }
}
