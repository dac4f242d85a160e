//! What the engine reports, and to whom.

mod reason;
mod words;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use reason::{Reason, UnknownReason};
pub use words::{Category, QueueModeChange, StorageOperation, UnknownCategory};

use crate::clock::Timestamp;
use crate::message::{Address, Domain, EventId, MessageDsn, MessageId, QueueName, RecipientDsn, ReversePath};
use crate::policy::Suppression;
use crate::reply::{EnhancedStatus, Reply, Stage};

/// Something that happened to a message, a recipient or a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DeliveryEvent {
    /// A message is durable.
    Received(Received),
    /// A recipient was accepted by a server, and that is durable. Final.
    Delivered(Delivered),
    /// A recipient failed transiently and was charged an attempt.
    Deferred(Deferred),
    /// A recipient failed for good. Final.
    Bounced(Bounced),
    /// The host cancelled a recipient. Final.
    Cancelled(Cancelled),
    /// None of a destination's hosts could be used. Nobody was charged.
    QueueDeferred(QueueDeferred),
    /// A queue is sent from in another way, or not at all, from now on.
    QueueMode(QueueMode),
    /// This machine could not send. Nobody was charged.
    LocalTrouble(LocalTrouble),
    /// The store failed. Nothing was lost and nothing is sent twice for it.
    StorageTrouble(StorageTrouble),
}

impl DeliveryEvent {
    /// Delivered, bounced or cancelled: comes from the durable outbox, once for each recipient (at least).
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Delivered(_) | Self::Bounced(_) | Self::Cancelled(_))
    }
}

/// A message became durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Received {
    /// When.
    pub time: Timestamp,
    /// The message.
    pub id: MessageId,
    /// The host's own text.
    pub reference: Option<String>,
    /// The envelope's sender.
    pub reverse_path: ReversePath,
    /// Octets of content.
    pub size: u64,
    /// How many recipients.
    pub recipients: u32,
    /// The host's tags.
    pub tags: BTreeMap<String, String>,
}

/// What the records of one recipient have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RecipientRecord {
    /// Names this event for ever: a repetition carries the same.
    pub event: EventId,
    /// When it happened.
    pub time: Timestamp,
    /// The message.
    pub id: MessageId,
    /// The host's own text.
    pub reference: Option<String>,
    /// The mailbox.
    pub recipient: Address,
    /// Its domain.
    pub domain: Domain,
    /// The queue it was sent from.
    pub queue: QueueName,
    /// The source it was sent from.
    pub source: Arc<str>,
    /// The host that was talked to.
    pub mx: Option<Arc<str>>,
    /// Its address and port.
    pub peer: Option<SocketAddr>,
    /// Attempts charged, this one included.
    pub attempts: u32,
    /// Age: time since submission, or since `hold_until`.
    pub queued: Duration,
    /// The host's tags.
    pub tags: BTreeMap<String, String>,
    /// What reports about the message are to be like (RFC 3461).
    pub dsn: Option<Box<MessageDsn>>,
    /// What is to be reported about the recipient (RFC 3461).
    pub recipient_dsn: Option<Box<RecipientDsn>>,
}

/// A recipient was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Delivered {
    /// Who, where, when.
    pub record: RecipientRecord,
    /// The reply to the final dot.
    pub reply: Reply,
    /// TLS version and cipher, if the session had TLS.
    pub tls: Option<String>,
    /// The server offers DSN and was told what to report: it sees to that (RFC 3461 §5.2.1). If not, and
    /// [`Notify::SUCCESS`](crate::message::Notify::SUCCESS) was asked for, a report is owed that the message was `relayed`
    /// (§5.2.2), and the host makes it.
    pub dsn_passed_on: bool,
}

/// A recipient failed transiently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Deferred {
    /// Who, where, when.
    pub record: RecipientRecord,
    /// What happened.
    pub diagnosis: Diagnosis,
    /// No attempt before this.
    pub next_attempt: Timestamp,
}

/// A recipient failed for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Bounced {
    /// Who, where, when.
    pub record: RecipientRecord,
    /// What happened.
    pub diagnosis: Diagnosis,
    /// Whether the address should be written to again.
    pub suppress: Suppression,
}

/// The host cancelled a recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Cancelled {
    /// Who, where, when.
    pub record: RecipientRecord,
}

/// A destination could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QueueDeferred {
    /// Names this event.
    pub event: EventId,
    /// When.
    pub time: Timestamp,
    /// The queue.
    pub queue: QueueName,
    /// The source it sends from.
    pub source: Arc<str>,
    /// The domain whose hosts were tried.
    pub domain: Domain,
    /// The last host that was tried.
    pub mx: Option<Arc<str>>,
    /// Its address.
    pub peer: Option<SocketAddr>,
    /// What happened.
    pub diagnosis: Diagnosis,
    /// No connection before this.
    pub next_attempt: Timestamp,
}

/// A queue's mode changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QueueMode {
    /// Names this event.
    pub event: EventId,
    /// When.
    pub time: Timestamp,
    /// The queue.
    pub queue: QueueName,
    /// The source it sends from.
    pub source: Arc<str>,
    /// What changed.
    pub mode: QueueModeChange,
    /// Until when, if it ends by itself.
    pub until: Option<Timestamp>,
    /// The reply rule that said so, if one did.
    pub rule: Option<Arc<str>>,
    /// The reply it was about.
    pub reply: Option<Reply>,
}

/// This machine could not send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LocalTrouble {
    /// Names this event.
    pub event: EventId,
    /// When.
    pub time: Timestamp,
    /// The source that rests, if it concerns one.
    pub source: Option<Arc<str>>,
    /// What failed.
    pub error: String,
}

/// The store failed, refused, or met an entry that is damaged: that one is left aside, the rest goes on. The same is told
/// once a minute, and bodies that are lost with how many they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StorageTrouble {
    /// Names this event.
    pub event: EventId,
    /// When.
    pub time: Timestamp,
    /// In what.
    pub operation: StorageOperation,
    /// What failed.
    pub error: String,
    /// The store refuses for good: nothing is delivered or accepted until it is opened anew.
    pub stopped: bool,
}

/// Why a delivery failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// Where in the delivery.
    pub stage: Stage,
    /// RFC 3463 status: the server's own, or ours where it gave none.
    pub status: EnhancedStatus,
    /// What kind of failure it is, as a fixed word, such as `mailbox-full`. It belongs to a
    /// [category](Self::category).
    pub reason: Reason,
    /// The server's words or ours.
    pub failure: Failure,
    /// The reply rule that decided, if one did.
    pub rule: Option<Arc<str>>,
}

impl Diagnosis {
    /// The kind of failure that the reason belongs to.
    pub const fn category(&self) -> Category {
        self.reason.category()
    }
}

/// Who said so: the server, or the engine itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_enums, reason = "either somebody else said it or we did")]
pub enum Failure {
    /// The server's reply.
    Reply(Reply),
    /// The engine's own words: no reply was received, or none was asked for.
    Engine(String),
}

impl Failure {
    /// Cuts a reply that is longer off.
    pub(crate) fn shorten(&mut self, octets: usize) {
        if let Self::Reply(reply) = self {
            reply.shorten(octets);
        }
    }
}

/// What a recipient's last failed attempt met. Kept with the recipient, with 1,024 octets of a reply's
/// text at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "stores keep it")]
pub struct LastFailure {
    /// When.
    pub at: Timestamp,
    /// The host.
    pub mx: Option<Arc<str>>,
    /// Its address.
    pub peer: Option<SocketAddr>,
    /// What happened.
    pub diagnosis: Diagnosis,
}

/// Receives events.
///
/// Tuples of sinks are sinks. Calls come from one task at a time, in order; final events arrive at least once.
pub trait EventSink: Send + Sync + 'static {
    /// An event. Runs on a runtime thread: must not block for long.
    fn on_event(&self, event: &DeliveryEvent);

    /// Makes what was received safe where the sink keeps it. Final events are acknowledged, and then forgotten
    /// by the engine, once this returned `Ok`. Runs on a blocking thread: may block, unless
    /// [`flush_blocks`](Self::flush_blocks) says that it does not.
    ///
    /// # Errors
    /// What could not be kept: the engine reports the final events since the last flush again, a second later.
    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }

    /// Whether `flush` may block. Default: yes. If not it is called in place, without a thread: for sinks that keep
    /// nothing, or keep it in memory.
    fn flush_blocks(&self) -> bool {
        true
    }
}

impl EventSink for () {
    fn on_event(&self, _: &DeliveryEvent) {}

    fn flush_blocks(&self) -> bool {
        false
    }
}

impl<T: EventSink + ?Sized> EventSink for Arc<T> {
    fn on_event(&self, event: &DeliveryEvent) {
        (**self).on_event(event);
    }

    fn flush(&self) -> std::io::Result<()> {
        (**self).flush()
    }

    fn flush_blocks(&self) -> bool {
        (**self).flush_blocks()
    }
}

impl<A: EventSink, B: EventSink> EventSink for (A, B) {
    fn on_event(&self, event: &DeliveryEvent) {
        self.0.on_event(event);
        self.1.on_event(event);
    }

    fn flush(&self) -> std::io::Result<()> {
        self.0.flush()?;
        self.1.flush()
    }

    fn flush_blocks(&self) -> bool {
        self.0.flush_blocks() || self.1.flush_blocks()
    }
}
