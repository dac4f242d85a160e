//! The values that cross the [`Storage`](super::Storage) trait.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::event::LastFailure;
use crate::message::{Address, Domain, EventId, MessageDsn, MessageId, Priority, RecipientDsn, ReversePath};

/// How long, at least, the id of a finished message is remembered: submitted again within it, the message is not
/// stored twice.
pub const ID_MEMORY: Duration = Duration::from_secs(24 * 3600);

/// Where mail lies: never changes for a message's recipient.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a key")]
pub struct Lane {
    /// The recipient's domain.
    pub domain: Domain,
    /// The source it is sent from, or the pool.
    pub source: Arc<str>,
    /// The message's priority.
    pub priority: Priority,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.domain, self.source, self.priority.as_str())
    }
}

/// One engine's claim on a store. Drawn at random when an engine starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::exhaustive_structs, reason = "a token")]
pub struct Owner(pub u64);

/// The epoch of one lease: a later lease of the same item has a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::exhaustive_structs, reason = "a token")]
pub struct Lease(pub u64);

/// An item within its store. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a key")]
pub struct ItemId(pub u64);

/// Which body, within its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a key")]
pub struct BodyKey(pub MessageId);

/// What all items of a message share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "stores build and read it")]
pub struct Envelope {
    /// The message.
    pub id: MessageId,
    /// The host's own text.
    pub reference: Option<String>,
    /// Where bounces go (RFC 5321 §2.3.1).
    pub reverse_path: ReversePath,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// What ages count from: the later of submission and `hold_until`.
    pub age_from: Timestamp,
    /// When it expires, if the host said so; else its queue's `bounce-after` decides.
    pub expires_at: Option<Timestamp>,
    /// The body's size in octets.
    pub size: u64,
    /// The body has octets over 127 (RFC 6152).
    pub eight_bit: bool,
    /// It goes only over verified TLS, to servers that promise the same (REQUIRETLS, RFC 8689).
    pub require_tls: bool,
    /// Its header has UTF-8 (RFC 6532): it goes only to servers that offer SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// Recipients of the whole message.
    pub recipient_count: u32,
    /// Names and values returned on every record.
    pub tags: BTreeMap<String, String>,
    /// What reports are to be like (RFC 3461).
    pub dsn: Option<Box<MessageDsn>>,
}

/// One recipient of an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "stores build and read it")]
pub struct Recipient {
    /// Its place among the message's recipients: names it in changes.
    pub index: u32,
    /// The mailbox.
    pub address: Address,
    /// Attempts charged so far.
    pub attempts: u32,
    /// What the last of them met. Not kept where the store had little room.
    pub last: Option<Arc<LastFailure>>,
    /// What is to be reported (RFC 3461).
    pub dsn: Option<Box<RecipientDsn>>,
}

/// Of so many failures it is seen that recipients share them. Where there are more, most met something of their own.
pub(crate) const MOST_SHARED: usize = 8;

/// Recipients that met the same keep it once: often all of a transaction did.
pub(crate) fn share_failures(recipients: &mut [Recipient]) {
    let mut different: Vec<Arc<LastFailure>> = Vec::new();
    for last in recipients.iter_mut().filter_map(|recipient| recipient.last.as_mut()) {
        match different.iter().find(|met| *met == last) {
            Some(met) => *last = met.clone(),
            None if different.len() < MOST_SHARED => different.push(last.clone()),
            None => {}
        }
    }
}

/// A message to store.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "the engine builds it")]
pub struct NewMessage {
    /// What its items share.
    pub envelope: Arc<Envelope>,
    /// The content.
    pub body: Bytes,
    /// Its items.
    pub items: Vec<NewItem>,
    /// The host chose the id: remember it after the message is gone.
    pub host_id: bool,
}

/// An item to store.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "the engine builds it")]
pub struct NewItem {
    /// Where it lies.
    pub lane: Lane,
    /// Not before this.
    pub due: Timestamp,
    /// At least one.
    pub recipients: Vec<Recipient>,
    /// Lease it to this owner at once: the fresh path never reads it back.
    pub claim_for: Option<Owner>,
}

/// What became of a [`NewMessage`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "two outcomes are the contract")]
pub enum Inserted {
    /// Stored: the items' keys, with leases where they were asked for, in order.
    Stored(Vec<(ItemId, Option<Lease>)>),
    /// This id is known: nothing was stored.
    Duplicate,
}

/// The first items of a lane that nobody has leased. All `None`: there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "stores build it")]
pub struct LaneHead {
    /// The lane.
    pub lane: Lane,
    /// The earliest due time.
    pub next_due: Option<Timestamp>,
    /// The earliest `age_from` of those without an `expires_at` of their own.
    pub oldest: Option<Timestamp>,
    /// The earliest `age_from` of those with an `expires_at` of their own.
    pub oldest_with_expiry: Option<Timestamp>,
    /// The earliest `expires_at` of those that have their own.
    pub first_expiry: Option<Timestamp>,
}

impl LaneHead {
    /// The head of a lane in which nothing is free.
    pub fn empty(lane: Lane) -> Self {
        Self { lane, next_due: None, oldest: None, oldest_with_expiry: None, first_expiry: None }
    }
}

/// A wish for items.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "the engine builds it")]
pub struct ClaimRequest {
    /// Who will hold the leases.
    pub owner: Owner,
    /// The time now: leases of owners that ran out before it are void.
    pub now: Timestamp,
    /// The owner's leases, these, earlier ones and those of [`NewItem::claim_for`], hold until then.
    pub until: Timestamp,
    /// What to claim.
    pub what: Vec<ClaimPart>,
}

/// One part of a [`ClaimRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClaimPart {
    /// Items of `lane` that are due at `before` or earlier, earliest due first.
    Due {
        /// The lane.
        lane: Lane,
        /// The latest due time.
        before: Timestamp,
        /// The most items.
        limit: usize,
    },
    /// Items of `lane` without an `expires_at` of their own whose `age_from` is `before` or earlier, oldest
    /// first.
    Age {
        /// The lane.
        lane: Lane,
        /// The latest `age_from`.
        before: Timestamp,
        /// The most items.
        limit: usize,
    },
    /// Items of `lane` with an `expires_at` of their own whose `age_from` is `before` or earlier, oldest first.
    /// With [`ClaimPart::Age`] these are all items up to an age.
    AgeWithExpiry {
        /// The lane.
        lane: Lane,
        /// The latest `age_from`.
        before: Timestamp,
        /// The most items.
        limit: usize,
    },
    /// Items of `lane` with an `expires_at` of their own of `before` or earlier, earliest first.
    Expiry {
        /// The lane.
        lane: Lane,
        /// The latest `expires_at`.
        before: Timestamp,
        /// The most items.
        limit: usize,
    },
    /// These items, where nobody else has them and they still exist.
    Items(Vec<ItemId>),
}

/// The answer to a [`ClaimRequest`].
#[derive(Clone, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "stores build it")]
pub struct Claimed {
    /// The items, now leased to the owner, in the order of the request's parts.
    pub items: Vec<Item>,
    /// Heads of the lanes named in parts other than `Items`, as they are after the claim, each lane once.
    pub heads: Vec<LaneHead>,
}

/// A leased item.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "stores build it")]
pub struct Item {
    /// Its key.
    pub id: ItemId,
    /// The lease under which it may be changed.
    pub lease: Lease,
    /// Where it lies.
    pub lane: Lane,
    /// When it was due.
    pub due: Timestamp,
    /// What the message's items share.
    pub envelope: Arc<Envelope>,
    /// Who is left, in order of their index.
    pub recipients: Vec<Recipient>,
}

/// One change of a commit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Change {
    /// Recipients of a leased item are finished or go on later. Recipients named in neither list stay in the
    /// item under its lease; an item with none left is gone, a body whose last recipient was settled too.
    /// An index that is not (or no longer) there is passed over, so that settling twice does no harm.
    Update {
        /// The item.
        item: ItemId,
        /// Its lease.
        lease: Lease,
        /// Recipients that reached an end.
        settled: Vec<u32>,
        /// Recipients to try again; each group becomes an unleased item of the same lane. If one group is all
        /// there is, the store may keep the item's key.
        released: Vec<Release>,
    },
    /// Gives a lease back. The item is as it was; nothing is written.
    Unclaim {
        /// The item.
        item: ItemId,
        /// Its lease.
        lease: Lease,
    },
    /// Writes a state row.
    PutState(StateRow),
    /// Removes a state row, if there is one.
    DeleteState(Vec<u8>),
    /// Appends to the outbox.
    Report {
        /// The item whose outcome it is, and its lease; it stands before the [`Change::Update`] that settles it. If that lease is not
        /// current the report is not applied, and comes back as [`ChangeOutcome::Stale`]: whoever has the item reports what
        /// becomes of it. `None`: it is of no item.
        of: Option<(ItemId, Lease)>,
        /// The event's stable id.
        event: EventId,
        /// The event, encoded by the engine.
        payload: Bytes,
    },
    /// Removes outbox entries up to and with this position.
    Acknowledge(OutboxPosition),
}

/// Recipients to try again at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the engine builds it")]
pub struct Release {
    /// Not before this.
    pub due: Timestamp,
    /// Their new state, by index.
    pub recipients: Vec<Recipient>,
}

/// What became of a [`Change`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "two outcomes are the contract")]
pub enum ChangeOutcome {
    /// Applied.
    Applied,
    /// Its lease is not current, or the item is gone: not applied.
    Stale,
}

/// A row of scheduler state: opaque to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "stores build it")]
pub struct StateRow {
    /// The key, at most 512 octets.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

/// A place in the outbox. Positions grow, in the order in which entries can be seen, and none is used twice; the default lies
/// before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::exhaustive_structs, reason = "a cursor")]
pub struct OutboxPosition(pub u64);

/// An outcome that waits for its acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "stores build it")]
pub struct OutboxEntry {
    /// Its place.
    pub position: OutboxPosition,
    /// The event's stable id.
    pub event: EventId,
    /// The event, as it was given.
    pub payload: Bytes,
}

/// Which items to list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Filter {
    /// All. A page costs what it returns.
    All,
    /// Those of one message. Costs no scan.
    Message(MessageId),
    /// Those of one lane, the earliest due first. A page costs what it returns, however large the lane is.
    Lane(Lane),
    /// Those with this tag. Reads every item until the page is full; the stores of this crate hold no lock
    /// meanwhile for longer than it takes to read 1024.
    Tag {
        /// The tag's name.
        name: String,
        /// Its value.
        value: String,
    },
}

/// An item as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "stores build it")]
pub struct ItemSummary {
    /// Its key.
    pub id: ItemId,
    /// What it shares with the other items of its message.
    pub envelope: Arc<Envelope>,
    /// Where it lies.
    pub lane: Lane,
    /// When it is due.
    pub due: Timestamp,
    /// Somebody has a lease on it.
    pub leased: bool,
    /// Who is left.
    pub recipients: Vec<Recipient>,
}

impl ItemSummary {
    /// Where a list goes on after this item.
    pub fn position(&self) -> ListPosition {
        ListPosition { due: self.due, id: self.id }
    }
}

/// A place in a list of items: those of a lane sort by due time, then by id; all others by id alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::exhaustive_structs, reason = "a cursor")]
pub struct ListPosition {
    /// When the item is due.
    pub due: Timestamp,
    /// The item.
    pub id: ItemId,
}

/// How much is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "stores build it")]
pub struct Usage {
    /// Items, leased ones included.
    pub items: u64,
    /// Outbox entries.
    pub outbox: u64,
    /// Octets taken by metadata and bodies.
    pub octets: u64,
}

/// What a store has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Room {
    /// For everything, as far as the reserve shows: new mail can be refused already where there is no room beside it.
    #[default]
    Ample,
    /// For outcomes of what is in flight. The engine starts the next transactions only once all outcomes are stored and
    /// the sink has taken them: what is delivered gives room back.
    Scarce,
    /// For nothing: the last write found none. The engine starts no transaction, whose outcome it might have to forget, and
    /// tries again to write those it has.
    Exhausted,
}

/// What went wrong in a store, as far as the engine acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StorageErrorKind {
    /// No room: new mail is refused, the rest is tried again.
    Full,
    /// Nothing was applied and a later try may succeed.
    Temporary,
    /// A flush failed: what was to be written may or may not be there, as a whole. The store refuses everything from now on, until it
    /// is opened again: then it is decided.
    OutcomeUnknown,
    /// The store refuses: a flush failed, or it was closed. Nothing of the call is there, neither now nor when it is opened again.
    Poisoned,
    /// An entry is damaged or of a version this program does not know.
    Corrupt,
    /// What was asked for is not there.
    NotFound,
    /// Another process has the store.
    Locked,
    /// The request itself is not valid.
    Invalid,
}

/// An error of a store.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct StorageError {
    kind: StorageErrorKind,
    message: String,
    #[source]
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl StorageError {
    /// An error of this kind; `message` says what was tried and what went wrong.
    pub fn new(kind: StorageErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// With the error that caused it.
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// What the engine acts on.
    pub fn kind(&self) -> StorageErrorKind {
        self.kind
    }

    /// A later try of the same may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(self.kind, StorageErrorKind::Full | StorageErrorKind::Temporary)
    }
}
