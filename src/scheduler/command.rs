//! What the scheduler wants done.

use std::sync::Arc;

use super::event::Content;
use super::{ClaimId, ConnectionId, DestinationKey};
use crate::dane::TlsaSet;
use crate::dns::Freshness;
use crate::event::DeliveryEvent;
use crate::message::{Address, Domain, MessageId, QueueName, ReversePath};
use crate::policy::QueueSettings;
use crate::storage::{Change, ClaimPart, Filter, ListPosition, NewMessage, StorageError};
use crate::transport::{Target, TransactionDsn};

/// Names a question of the host's, so that the answer finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Token(pub(crate) u64);

/// Something to do outside.
#[derive(Debug)]
pub(crate) enum Command {
    /// Store these; at most one insert is under way.
    Insert(Vec<NewMessage>),
    /// Apply these; at most one commit is under way. The scheduler keeps them until it knows what became of them.
    Commit(Arc<Vec<Change>>),
    /// Lease items.
    Claim { claim: ClaimId, what: Vec<ClaimPart> },
    /// List a message's items, all of them, for a cancellation.
    List { token: Token, message: MessageId },
    /// List a page of what a filter selects, after a position.
    Page { token: Token, filter: Filter, after: Option<ListPosition> },
    /// Find where a destination's mail goes.
    Resolve {
        destination: DestinationKey,
        domain: Domain,
        source: Arc<str>,
        settings: Arc<QueueSettings>,
        freshness: Freshness,
    },
    /// Open a session. Of the policies in the target's place the one of this domain counts.
    Connect { connection: ConnectionId, target: Box<Target>, policy_domain: Option<PolicyDomain> },
    /// Send a message over an open session.
    Transact { connection: ConnectionId, transaction: Box<Outgoing> },
    /// Say QUIT and close.
    Close { connection: ConnectionId },
    /// Tell the observers.
    Report(Box<DeliveryEvent>),
    /// Tell the host.
    Answer { token: Token, answer: Answer },
    /// Everything has ended after [`Event::Shutdown`](super::Event::Shutdown).
    Drained,
}

/// A transaction whose content may still lie in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) message: MessageId,
    pub(crate) queue: QueueName,
    pub(crate) host: Arc<str>,
    pub(crate) reverse_path: ReversePath,
    pub(crate) recipients: Vec<Address>,
    pub(crate) content: Content,
    pub(crate) eight_bit: bool,
    pub(crate) chunking: bool,
    pub(crate) require_tls: bool,
    pub(crate) smtputf8: bool,
    pub(crate) host_is_authentic: bool,
    pub(crate) dsn: Option<Box<TransactionDsn>>,
    /// `None`: it goes to fixed hosts, or to an address.
    pub(crate) policy_domain: Option<PolicyDomain>,
    /// What its host demands by TLSA records.
    pub(crate) tlsa: Option<Arc<TlsaSet>>,
}

/// The domain that mail counts for in TLS reports, and whose MTA-STS policy it is under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyDomain {
    pub(crate) name: Domain,
    /// Its settings say that its MTA-STS policy counts.
    pub(crate) heeds_mta_sts: bool,
}

/// The answer to a question of the host's.
#[derive(Debug)]
pub(crate) enum Answer {
    Submitted(Result<MessageId, SubmitFailure>),
    Cancelled(Result<CancelReport, StorageError>),
    /// How many queues or items it was about.
    Done(Result<u64, StorageError>),
}

/// Why a message was not taken.
#[derive(Debug)]
pub(crate) enum SubmitFailure {
    Storage(StorageError),
    UnknownSource(crate::policy::UnknownSource),
    Message(crate::message::MessageError),
    ShuttingDown,
}

/// What became of a cancellation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CancelReport {
    /// Recipients that will not be tried any more.
    pub cancelled: u32,
    /// Recipients of transactions under way: these end first; what they leave over is cancelled.
    pub in_flight: u32,
}
