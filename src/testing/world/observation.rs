//! What a world saw.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::event::{DeliveryEvent, Diagnosis, Failure, RecipientRecord};
use crate::message::{Address, MessageId, QueueName};
use crate::reply::Reply;
use crate::transport::TlsWish;

/// Something that happened in a [`World`](super::World). Its `Display` is one line of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Observation {
    /// Since the world's beginning. No step of the clock moves it.
    pub at: Duration,
    /// What the engine's clock showed.
    pub time: Timestamp,
    /// What it was.
    pub seen: Seen,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seen {
    /// The engine acknowledged a message.
    Accepted {
        /// The message.
        message: MessageId,
        /// Its recipients, each once.
        recipients: Vec<Address>,
        /// No attempt before this.
        hold_until: Option<Timestamp>,
    },
    /// The engine did not accept a message.
    Refused {
        /// Why.
        error: String,
        /// It may have been stored all the same.
        unknown: bool,
    },
    /// The engine reported something.
    Event(Box<DeliveryEvent>),
    /// A connection is being opened.
    Connecting {
        /// Names it.
        connection: u64,
        /// Where to.
        peer: SocketAddr,
        /// Where from, if the source says.
        local: Option<IpAddr>,
        /// The host's name.
        host: Arc<str>,
        /// The queue that wants it.
        queue: QueueName,
        /// Its source.
        source: Arc<str>,
        /// The TLS it wishes.
        tls: TlsWish,
    },
    /// The server has greeted and taken EHLO.
    Connected {
        /// Which connection.
        connection: u64,
    },
    /// No session came about.
    NotConnected {
        /// Which connection.
        connection: u64,
        /// Why.
        error: String,
        /// The server's reply, if it gave one.
        reply: Option<Reply>,
    },
    /// A transaction began: its recipients are offered.
    Offered {
        /// On which connection.
        connection: u64,
        /// The message.
        message: MessageId,
        /// The queue it lies in.
        queue: QueueName,
        /// The host it is for.
        host: Arc<str>,
        /// To whom.
        recipients: Vec<Address>,
    },
    /// A transaction ended.
    Answered {
        /// On which connection.
        connection: u64,
        /// The message.
        message: MessageId,
        /// Recipients who have it now: the server took the content for them.
        taken: Vec<Address>,
        /// The engine does not know that: the reply was lost.
        unsaid: bool,
        /// The last thing the server said, if anything.
        reply: Option<Reply>,
    },
    /// A connection is no more.
    Closed {
        /// Which one.
        connection: u64,
    },
    /// The engine did not start.
    NotStarted {
        /// Why.
        error: String,
    },
    /// The process died here. What was in memory is gone.
    Crashed,
    /// The engine was shut down.
    Stopped {
        /// Its time was over before all was: transactions were cut, or outcomes are not in the store.
        cut: bool,
    },
    /// An engine runs on what is in the store.
    Started,
    /// The wall clock was stepped.
    ClockStepped {
        /// What it shows now.
        to: Timestamp,
    },
    /// Another policy is in place.
    PolicyReplaced,
    /// The host told the engine something that may make mail due.
    Control(String),
    /// A note of the test's own.
    Note(String),
}

impl Seen {
    /// The queue it is about, if it is about one.
    pub(super) fn queue(&self) -> Option<&QueueName> {
        match self {
            Self::Connecting { queue, .. } | Self::Offered { queue, .. } => Some(queue),
            Self::Event(event) => record(event).map(|record| &record.queue),
            _ => None,
        }
    }

    /// The message it is about, if it is about one.
    pub fn message(&self) -> Option<MessageId> {
        match self {
            Self::Accepted { message, .. }
            | Self::Offered { message, .. }
            | Self::Answered { message, .. } => Some(*message),
            Self::Event(event) => match &**event {
                DeliveryEvent::Received(received) => Some(received.id),
                event => record(event).map(|record| record.id),
            },
            _ => None,
        }
    }
}

/// The record of an event about one recipient.
pub(super) fn record(event: &DeliveryEvent) -> Option<&RecipientRecord> {
    match event {
        DeliveryEvent::Delivered(event) => Some(&event.record),
        DeliveryEvent::Deferred(event) => Some(&event.record),
        DeliveryEvent::Bounced(event) => Some(&event.record),
        DeliveryEvent::Cancelled(event) => Some(&event.record),
        _ => None,
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.at.as_secs(), self.at.subsec_millis());
        let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
        write!(f, "{days}d{hours:02}:{:02}:{:02}.{millis:03} ", seconds / 60 % 60, seconds % 60)?;
        self.seen.fmt(f)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted { message, recipients, hold_until } => {
                write!(f, "accepted {message} to {}", list(recipients))?;
                hold_until.map_or(Ok(()), |until| write!(f, ", held until {until}"))
            }
            Self::Refused { error, .. } => write!(f, "refused: {error}"),
            Self::Event(event) => show_event(f, event),
            Self::Connecting { connection, peer, host, queue, source, .. } => {
                write!(f, "#{connection} connecting to {host} {peer} for {queue} from {source}")
            }
            Self::Connected { connection } => write!(f, "#{connection} connected"),
            Self::NotConnected { connection, error, .. } => {
                write!(f, "#{connection} not connected: {error}")
            }
            Self::Offered { connection, message, queue, recipients, .. } => {
                write!(f, "#{connection} offered {message} of {queue} to {}", list(recipients))
            }
            Self::Answered { connection, message, taken, unsaid, reply } => {
                write!(f, "#{connection} answered {message}: taken for {}", list(taken))?;
                if *unsaid {
                    f.write_str(", which was never said")?;
                }
                reply.as_ref().map_or(Ok(()), |reply| write!(f, " ({reply})"))
            }
            Self::Closed { connection } => write!(f, "#{connection} closed"),
            Self::NotStarted { error } => write!(f, "the engine did not start: {error}"),
            Self::Crashed => f.write_str("the process crashed"),
            Self::Stopped { cut: false } => f.write_str("the engine was shut down"),
            Self::Stopped { cut: true } => f.write_str("the engine was shut down, and cut at its deadline"),
            Self::Started => f.write_str("the engine was started"),
            Self::ClockStepped { to } => write!(f, "the wall clock was stepped to {to}"),
            Self::PolicyReplaced => f.write_str("the policy was replaced"),
            Self::Control(what) => write!(f, "control: {what}"),
            Self::Note(note) => write!(f, "note: {note}"),
        }
    }
}

fn list(recipients: &[Address]) -> String {
    let names: Vec<&str> = recipients.iter().map(Address::as_str).collect();
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

fn show_event(f: &mut fmt::Formatter<'_>, event: &DeliveryEvent) -> fmt::Result {
    let who = |record: &RecipientRecord| {
        format!("{} {} queue {} attempts {}", record.id, record.recipient, record.queue, record.attempts)
    };
    match event {
        DeliveryEvent::Received(received) => write!(f, "received {}", received.id),
        DeliveryEvent::Delivered(event) => write!(f, "delivered {}", who(&event.record)),
        DeliveryEvent::Deferred(event) => {
            let (who, why) = (who(&event.record), why(&event.diagnosis));
            write!(f, "deferred {who} until {}: {why}", event.next_attempt)
        }
        DeliveryEvent::Bounced(event) => {
            write!(f, "bounced {}: {}", who(&event.record), why(&event.diagnosis))
        }
        DeliveryEvent::Cancelled(event) => write!(f, "cancelled {}", who(&event.record)),
        DeliveryEvent::QueueDeferred(event) => {
            let (queue, source, why) = (&event.queue, &event.source, why(&event.diagnosis));
            write!(f, "queue {queue} of {source} deferred until {}: {why}", event.next_attempt)
        }
        DeliveryEvent::QueueMode(event) => {
            write!(f, "queue {} of {}: {}", event.queue, event.source, event.mode)
        }
        DeliveryEvent::LocalTrouble(event) => write!(f, "local trouble: {}", event.error),
        DeliveryEvent::StorageTrouble(event) => write!(f, "storage trouble: {}", event.error),
    }
}

fn why(diagnosis: &Diagnosis) -> String {
    let words = match &diagnosis.failure {
        Failure::Reply(reply) => reply.to_string(),
        Failure::Engine(words) => words.clone(),
    };
    let rule = diagnosis.rule.as_ref().map(|rule| format!(" [rule {rule}]")).unwrap_or_default();
    format!("{} {} {words}{rule}", diagnosis.stage.as_str(), diagnosis.status)
}
