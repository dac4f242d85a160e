//! What mail waits for, and until when: the answers of [`DeliveryEngine::why`](crate::DeliveryEngine::why) and
//! [`DeliveryEngine::why_queue`](crate::DeliveryEngine::why_queue).
//!
//! All of it is as things stand at the moment of the question: who is ahead in line may leave it, and whoever runs the
//! engine may end a wait. Each type prints as one line for people; the words may change from one version to the next.

mod display;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::control::Selector;
use crate::event::Diagnosis;
use crate::message::{Domain, MessageId, Priority, QueueName};
use crate::policy::{Cidr, Rate};
use crate::storage::Recipient;

/// How far those ahead in a line are counted.
pub(crate) const MOST_AHEAD: u64 = 1_000;

/// What a message waits for. Empty: nothing of it is queued.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct MessageWaits {
    /// What is left of it: recipients of one domain and due time are one item. At most 1,000.
    pub items: Vec<ItemWaits>,
    /// Items beyond those.
    pub more_items: u64,
}

/// Some recipients of a message, and what they wait for.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ItemWaits {
    /// The message.
    pub message: MessageId,
    /// Who is left, each with its attempts and what the last of them met.
    pub recipients: Vec<Recipient>,
    /// Their domain.
    pub domain: Domain,
    /// The queue they lie in: a domain, or `name.rollup`. Their domain's own while its rollup is not known.
    pub queue: QueueName,
    /// The source they are sent from.
    pub source: Arc<str>,
    /// The message's priority.
    pub priority: Priority,
    /// It is given up then, unless it is delivered before.
    pub expires_at: Timestamp,
    /// It bounces before that, for what DNS says of its domain.
    pub bounces: Option<Bounce>,
    /// What they wait for. The first decides: of what must be over, that which ends last, or nobody knows when. Where
    /// several [`Wait::ConnectionLimit`] or [`Wait::Rate`] stand in a row, they are ways to different addresses, of
    /// which one is enough. [`Wait::Backoff`] comes at the end.
    pub waits: Vec<Wait>,
    /// No attempt before this, and none at all if it expires or bounces before. `None`: there may be one at any time, or
    /// nobody knows.
    pub until: Option<Timestamp>,
}

/// What a queue of one source waits for.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct QueueWaits {
    /// Its name: a domain or `name.rollup`.
    pub name: QueueName,
    /// The source it sends from.
    pub source: Arc<str>,
    /// Connections that are open, being opened or closed.
    pub connections: u64,
    /// Items that are in transactions.
    pub in_flight: u64,
    /// What holds all of it, in order as in [`ItemWaits::waits`]. What holds a destination is listed there.
    pub waits: Vec<Wait>,
    /// No attempt before this. `None`: there may be one at any time, or nobody knows.
    pub until: Option<Timestamp>,
    /// Its destinations with mail, the one with the oldest mail first. At most 20.
    pub destinations: Vec<DestinationWaits>,
    /// Destinations with mail beyond those.
    pub more_destinations: u64,
}

/// One set of hosts in a queue, with a retry clock of its own, and what its mail waits for.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DestinationWaits {
    /// A domain that leads there: the only one, or the first that came.
    pub domain: Domain,
    /// How many domains with mail lead there.
    pub domains: u64,
    /// How old its oldest mail is at most, that in transactions left out.
    pub oldest: Option<Duration>,
    /// When that bounces for what DNS says of the domain, if it does not expire before.
    pub bounces: Option<Bounce>,
    /// Items at hand that could be sent now.
    pub ready: u64,
    /// Connections that are open, being opened or closed.
    pub connections: u64,
    /// What the first of its mail waits for, in order as in [`ItemWaits::waits`]. Empty: only for what holds the whole
    /// queue.
    pub waits: Vec<Wait>,
    /// No attempt before this. `None`: there may be one at any time, or nobody knows.
    pub until: Option<Timestamp>,
}

/// DNS does not have a domain's hosts: its mail bounces at an age (`bounce-upon-no-mx`, `bounce-upon-nxdomain`).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Bounce {
    /// Then, unless it is delivered before. DNS is asked once more: if it has hosts for the domain, nothing bounces.
    pub at: Timestamp,
    /// With what.
    pub diagnosis: Box<Diagnosis>,
}

/// Something that mail waits for.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Wait {
    /// It was never tried, and is held back: by the `hold_until` of its message, or for moments by the engine.
    HeldBack {
        /// Until then.
        until: Timestamp,
    },
    /// The store refused its content for the moment.
    BodyRefused {
        /// It is tried again then.
        until: Timestamp,
    },
    /// None of a destination's mail is due.
    NotDue {
        /// The first of it is due then.
        until: Timestamp,
    },
    /// Its own retry interval.
    RecipientRetry {
        /// It is due then.
        until: Timestamp,
        /// Attempts so far.
        attempts: u32,
        /// What the last of them met.
        last: Option<Box<Diagnosis>>,
    },
    /// The retry interval of its destination, none of whose hosts could be used.
    DestinationRetry {
        /// One connection tries again then.
        until: Timestamp,
        /// How often in a row.
        step: u32,
        /// What the last of these met.
        last: Option<Box<Diagnosis>>,
    },
    /// A connection failed while others work: no new one for a while.
    HoldOff {
        /// Until then. Open sessions go on.
        until: Timestamp,
        /// How many connections there may be.
        allowed: u64,
    },
    /// As many connections as the destination may have now are at work.
    Concurrency {
        /// How many there are.
        open: u64,
        /// How many there may be.
        allowed: u64,
    },
    /// A limit on connections is reached.
    ConnectionLimit {
        /// Its name in the policy file.
        setting: &'static str,
        /// What it limits.
        of: LimitOf,
        /// Connections that count for it.
        used: u64,
        /// How many there may be.
        limit: u64,
        /// Whose connections these are: most first, at most 5.
        holders: Vec<Holder>,
        /// Queues with connections beyond those.
        more_holders: u64,
        /// How many destinations stand ahead in line; counted up to 1,000.
        ahead: u64,
    },
    /// A rate of recipients or of connections is used up for the moment.
    Rate {
        /// Its name in the policy file.
        setting: &'static str,
        /// What it limits.
        of: LimitOf,
        /// The rate.
        rate: Rate,
        /// It has room then. Who stands ahead in line goes first.
        until: Timestamp,
        /// How many destinations stand ahead in line; counted up to 1,000.
        ahead: u64,
    },
    /// Its queue is in backoff, with intervals, limits and rates of its own. It waits for these, not for this.
    Backoff {
        /// Since when.
        since: Timestamp,
        /// `None`: until a delivery, a rule or somebody ends it.
        until: Option<Timestamp>,
    },
    /// It is paused.
    Paused {
        /// What was paused. `None`: the message itself, or a tag of it.
        selector: Option<Selector>,
    },
    /// A reply rule disabled its source for its queue.
    SourceDisabled {
        /// The source.
        source: Arc<str>,
        /// `None`: until somebody says so.
        until: Option<Timestamp>,
    },
    /// It would bounce, and the queue's fuse (`bounce-fuse`) has blown: somebody must decide.
    FuseBlown,
    /// A reply rule deferred its queue.
    QueueDeferred {
        /// Until then.
        until: Timestamp,
        /// How often in a row.
        step: u32,
    },
    /// DNS is asked where it goes.
    LookUp {
        /// What is looked up.
        domain: Domain,
        /// `false`: it stands in line, since enough look-ups are under way.
        under_way: bool,
    },
    /// No name server could be reached.
    ResolverUnreachable {
        /// It is tried again then.
        until: Timestamp,
    },
    /// This machine could not send from its source.
    SourceResting {
        /// The source.
        source: Arc<str>,
        /// It is tried again then.
        until: Timestamp,
    },
    /// A flush failed: nothing is sent until the store is opened anew.
    StoreStopped,
    /// The store refused for the moment, as when the disk is full.
    StorePaused {
        /// It is tried again then.
        until: Timestamp,
    },
    /// The disk is full: nothing is sent of which the outcome could not be stored.
    StoreFull,
    /// The disk is nearly full: what is next waits until all outcomes are stored and the sink has taken them.
    StoreScarce,
    /// Too many outcomes are not durable yet: no transaction starts.
    Settling {
        /// Items whose outcome is not durable.
        unsettled: u64,
        /// From how many on no transaction starts. Those under way then come on top.
        limit: u64,
    },
    /// The sink or a live stream has not taken what there is to report: no transaction starts.
    ReportsBlocked,
    /// What was decided about it is being written.
    Writing,
    /// It is being taken out of the store.
    Claim {
        /// `false`: its destination stands in line, since enough claims are under way.
        under_way: bool,
    },
    /// As many items as there may be were taken out of the store.
    WindowFull {
        /// How many there may be.
        limit: u64,
    },
    /// The content in transactions takes as much memory as it may.
    BodyMemory {
        /// Octets in transactions.
        octets: u64,
        /// How many there may be.
        limit: u64,
        /// How many destinations stand in line.
        in_line: u64,
    },
    /// A connection is being opened.
    Connecting {
        /// To this host.
        host: Arc<str>,
        /// At this address.
        peer: SocketAddr,
        /// After a failed step it alone finds out whether the hosts work again.
        probing: bool,
    },
    /// It is in a transaction.
    InTransaction {
        /// With this host.
        host: Arc<str>,
        /// At this address.
        peer: SocketAddr,
        /// Since then.
        since: Timestamp,
    },
    /// For its turn.
    Turn {
        /// Items of its destination that were taken out of the store, those in transactions included.
        at_hand: u64,
    },
}

/// What a limit or rate is of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitOf {
    /// The whole engine.
    Engine,
    /// A queue of one source.
    Queue {
        /// The queue's name.
        queue: QueueName,
        /// The source.
        source: Arc<str>,
    },
    /// A queue, of every source that sends from one address.
    QueueFrom {
        /// The queue's name.
        queue: QueueName,
        /// The address; an unspecified one stands for whichever the system chooses.
        from: IpAddr,
    },
    /// Connections to a host.
    Host {
        /// Its name.
        host: Arc<str>,
    },
    /// Connections to an address.
    Address {
        /// The address.
        address: IpAddr,
        /// Only those from there (`per-source`); an unspecified one stands for whichever the system chooses.
        from: Option<IpAddr>,
    },
    /// Connections to a range of addresses that share a limit (`shared`).
    Range {
        /// The range.
        cidr: Cidr,
        /// Only those from there (`per-source`); an unspecified one stands for whichever the system chooses.
        from: Option<IpAddr>,
    },
}

/// A queue that holds some of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The queue's name.
    pub queue: QueueName,
    /// Its source.
    pub source: Arc<str>,
    /// How many connections.
    pub connections: u64,
}

impl Wait {
    /// When it is over, if that is known: no sooner, as things stand.
    pub fn until(&self) -> Option<Timestamp> {
        match self {
            Self::HeldBack { until }
            | Self::BodyRefused { until }
            | Self::NotDue { until }
            | Self::RecipientRetry { until, .. }
            | Self::DestinationRetry { until, .. }
            | Self::HoldOff { until, .. }
            | Self::Rate { until, .. }
            | Self::QueueDeferred { until, .. }
            | Self::ResolverUnreachable { until }
            | Self::SourceResting { until, .. }
            | Self::StorePaused { until } => Some(*until),
            Self::Backoff { until, .. } | Self::SourceDisabled { until, .. } => *until,
            Self::Concurrency { .. }
            | Self::ConnectionLimit { .. }
            | Self::Paused { .. }
            | Self::FuseBlown
            | Self::LookUp { .. }
            | Self::StoreStopped
            | Self::StoreFull
            | Self::StoreScarce
            | Self::Settling { .. }
            | Self::ReportsBlocked
            | Self::Writing
            | Self::Claim { .. }
            | Self::WindowFull { .. }
            | Self::BodyMemory { .. }
            | Self::Connecting { .. }
            | Self::InTransaction { .. }
            | Self::Turn { .. } => None,
        }
    }
}
