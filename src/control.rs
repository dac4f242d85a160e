//! What a host says to a running engine: which mail, and what is to be done with it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::message::{Domain, MessageId, QueueName};

/// Which mail a verb is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Selector {
    /// One message.
    Message(MessageId),
    /// All that lies in a queue, of every source: a domain, or `name.rollup`. Mail whose rollup is not known yet
    /// lies in its domain's own queue.
    Queue(QueueName),
    /// All for a recipients' domain, whatever its queue.
    Domain(Domain),
    /// All that is sent from a source.
    Source(Arc<str>),
    /// All messages with this tag.
    Tag {
        /// The tag's name.
        name: String,
        /// Its value.
        value: String,
    },
}

impl Selector {
    /// A queue by its name, in lower case: a domain or `name.rollup`.
    pub fn queue(name: &str) -> Self {
        Self::Queue(name.to_ascii_lowercase().into())
    }

    /// A source by its name.
    pub fn source(name: &str) -> Self {
        Self::Source(name.into())
    }

    /// Messages with a tag of this value.
    pub fn tag(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self::Tag { name: name.into(), value: value.into() }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(id) => write!(f, "message {id}"),
            Self::Queue(queue) => write!(f, "queue {queue}"),
            Self::Domain(domain) => write!(f, "domain {domain}"),
            Self::Source(source) => write!(f, "source {source}"),
            Self::Tag { name, value } => write!(f, "tag {name}={value}"),
        }
    }
}

impl From<MessageId> for Selector {
    fn from(id: MessageId) -> Self {
        Self::Message(id)
    }
}

impl From<Domain> for Selector {
    fn from(domain: Domain) -> Self {
        Self::Domain(domain)
    }
}

/// How the recipients of a cancellation end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "with bounce records or without")]
pub enum CancelAs {
    /// As [`Cancelled`](crate::event::Cancelled): no bounce. The default.
    #[default]
    Cancelled,
    /// As [`Bounced`](crate::event::Bounced), reason `cancelled`.
    Bounced,
}

/// What becomes of mail that a blown fuse holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "it bounces or it does not")]
pub enum FuseDecision {
    /// It bounces, each recipient with what it met.
    Bounce,
    /// It is tried again at once. What rules say of it then counts anew; mail of domains that DNS does not have is tried
    /// until it expires.
    Keep,
}

/// A queue as it is now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct QueueInfo {
    /// Its name: a domain or `name.rollup`.
    pub name: QueueName,
    /// The source it sends from.
    pub source: Arc<str>,
    /// Items in it: recipients of one message, domain and due time count as one.
    pub items: u64,
    /// How old its oldest mail is at most.
    pub oldest: Option<Duration>,
    /// Items that are in transactions.
    pub in_flight: u64,
    /// Connections that are open, being opened or closed.
    pub connections: u64,
    /// How many it may have now; `None`: no limit of its own.
    pub connection_limit: Option<u64>,
    /// Destinations in it: sets of hosts with a retry clock.
    pub destinations: u64,
    /// In backoff.
    pub backoff: bool,
    /// Nothing is sent until it, its domain or its source is resumed.
    pub paused: bool,
    /// Its source is not used for it.
    pub source_disabled: bool,
    /// Too many bounces: what would bounce is held.
    pub fuse_blown: bool,
    /// Nothing is sent before this: a retry interval of all its destinations, or of the queue as a whole.
    pub next_attempt: Option<Timestamp>,
    /// Recipients delivered since the queue came to be.
    pub delivered: u64,
    /// Attempts that failed transiently since.
    pub deferred: u64,
    /// Recipients bounced since.
    pub bounced: u64,
    /// Recipients delivered per minute, averaged over about the last minute.
    pub delivered_per_minute: f64,
}

/// Which queues come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueSort {
    /// Those with the most items. Counts every lane in the store. The default.
    #[default]
    Items,
    /// Those with the oldest mail.
    Oldest,
    /// Those with the most connections.
    Connections,
    /// Those that deliver most per minute.
    Rate,
    /// By name.
    Name,
}
