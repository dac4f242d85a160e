//! What the scheduler is told.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::command::Token;
use super::{ClaimId, ConnectionId, DestinationKey};
use crate::dns::{Route, RouteFailure};
use crate::message::{Message, MessageId};
use crate::storage::{ChangeOutcome, Claimed, Inserted, ItemSummary, LaneHead, Room, StateRow, StorageError};
use crate::transport::{ConnectError, PeerCertificate, SessionEnd, SessionLimits, TransactionReport};

/// Something happened outside.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Start-up: heads of lanes with mail.
    Heads(Vec<LaneHead>),
    /// Start-up: state rows written earlier. Come before the heads.
    State(Vec<StateRow>),
    /// The host hands in a message; answered by [`Answer::Submitted`](super::command::Answer::Submitted).
    Submit { token: Token, message: Box<Message> },
    /// The insert in flight came back.
    InsertDone(Result<Vec<Inserted>, StorageError>),
    /// The commit in flight came back.
    CommitDone(Result<Vec<ChangeOutcome>, StorageError>),
    /// A claim came back.
    Claimed { claim: ClaimId, result: Result<Claimed, StorageError> },
    /// A look-up came back.
    Resolved { destination: DestinationKey, result: Result<Arc<Route>, RouteFailure> },
    /// A session is open.
    Connected { connection: ConnectionId, opened: Opened },
    /// No session came about.
    ConnectFailed { connection: ConnectionId, error: ConnectError },
    /// A transaction ended, and with it maybe the session.
    TransactionDone { connection: ConnectionId, report: Box<TransactionReport> },
    /// The body of a transaction could not be read. The session is as it was.
    BodyFailed { connection: ConnectionId, error: StorageError },
    /// A transaction was not begun: the MTA-STS policy of its mail's domain, as it is known by now, does not allow the session. That
    /// is as it was.
    AgainstPolicy { connection: ConnectionId },
    /// An idle session was ended by the server.
    SessionEnded { connection: ConnectionId, end: SessionEnd },
    /// A closed session is gone: its socket is closed.
    Closed { connection: ConnectionId },
    /// The host cancels a message; answered by [`Answer::Cancelled`](super::command::Answer::Cancelled).
    Cancel { token: Token, message: MessageId },
    /// The host wants something else; answered by [`Answer::Done`](super::command::Answer::Done) or, of a
    /// cancellation, by [`Answer::Cancelled`](super::command::Answer::Cancelled).
    Control { token: Token, control: super::Control },
    /// The host puts another policy in place of this one.
    Policy(Box<crate::policy::Policy>),
    /// A page of a sweep came back; an empty one is the last.
    Page { token: Token, result: Result<Vec<ItemSummary>, StorageError> },
    /// The items of a message to cancel.
    Listed { token: Token, result: Result<Vec<ItemSummary>, StorageError> },
    /// Reports can not be taken at present (`true`), or can again.
    ReportsBlocked(bool),
    /// What the store has room for is something else now.
    StoreRoom(Room),
    /// Take nothing up any more; let transactions end.
    Shutdown,
    /// Transactions under way were cut: what became of them is unknown.
    Interrupted,
    /// Write now what waits because the store refused a moment ago.
    WriteNow,
    /// The wall clock was stepped, `back` by so much or forward: what only ever waits a moment must not wait for hours.
    ClockStepped { back: Duration },
}

/// A body that is at hand, or where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// In memory since its submission.
    Held(Bytes),
    /// In the store.
    Stored(crate::storage::BodyKey),
}

/// What a session is like that was opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opened {
    /// Version and cipher suite.
    pub(crate) tls: Option<Arc<str>>,
    /// The server's, if it was verified.
    pub(crate) certificate: Option<PeerCertificate>,
    pub(crate) limits: SessionLimits,
    pub(crate) passes_on_dsn: bool,
}
