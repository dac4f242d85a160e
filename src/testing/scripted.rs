//! A transport without SMTP.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::conversation::pause;
use crate::reply::{Reply, Stage};
use crate::transport::{
    ConnectError, EndCause, RecipientReport, Session, SessionEnd, Target, Transaction, TransactionReport,
    Transport,
};

type ConnectScript = Arc<dyn Fn(&Target) -> Result<(), ConnectError> + Send + Sync>;
type TransactScript = Arc<dyn Fn(&Target, &Transaction) -> TransactionReport + Send + Sync>;

/// Answers without any SMTP, as the test says; everything is accepted unless it says otherwise.
///
/// Clones are the same transport. The scripts run outside its lock and may ask its counts.
///
/// ```
/// use postrider::reply::Reply;
/// use postrider::testing::ScriptedTransport;
/// let busy = Reply::parse("450 4.2.0 busy").unwrap();
/// let transport = ScriptedTransport::new()
///     .on_transaction(move |_, transaction| ScriptedTransport::refused_recipients(transaction, &busy));
/// ```
#[derive(Clone)]
pub struct ScriptedTransport {
    connect: ConnectScript,
    transact: TransactScript,
    connect_time: Duration,
    transaction_time: Duration,
    idle_time: Option<Duration>,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Default)]
struct Counts {
    attempts: u64,
    transactions: u64,
    delivered: u64,
    open: u64,
    peak: u64,
    peers: HashMap<SocketAddr, Peer>,
}

#[derive(Default)]
struct Peer {
    attempts: u64,
    open: u64,
    peak: u64,
}

impl Default for ScriptedTransport {
    fn default() -> Self {
        Self::new()
    }
}

impl ScriptedTransport {
    /// Accepts everything, at once.
    pub fn new() -> Self {
        Self {
            connect: Arc::new(|_| Ok(())),
            transact: Arc::new(|_, transaction| Self::accepted(transaction)),
            connect_time: Duration::ZERO,
            transaction_time: Duration::ZERO,
            idle_time: None,
            counts: Arc::default(),
        }
    }

    /// Whether a connection comes about.
    pub fn on_connect(
        mut self,
        script: impl Fn(&Target) -> Result<(), ConnectError> + Send + Sync + 'static,
    ) -> Self {
        self.connect = Arc::new(script);
        self
    }

    /// What comes of a transaction. A report with an `end` ends the session.
    pub fn on_transaction(
        mut self,
        script: impl Fn(&Target, &Transaction) -> TransactionReport + Send + Sync + 'static,
    ) -> Self {
        self.transact = Arc::new(script);
        self
    }

    /// How long connections and transactions take.
    pub fn with_times(mut self, connect: Duration, transaction: Duration) -> Self {
        self.connect_time = connect;
        self.transaction_time = transaction;
        self
    }

    /// The server closes a session that was idle for so long, with 421; default never.
    pub fn with_idle_time(mut self, idle: Duration) -> Self {
        self.idle_time = Some(idle);
        self
    }

    /// The report of a transaction accepted for all recipients.
    pub fn accepted(transaction: &Transaction) -> TransactionReport {
        let ok = RecipientReport::Reply(reply(250, "2.1.5 ok"));
        TransactionReport {
            mail: Some(reply(250, "2.1.0 ok")),
            recipients: vec![ok; transaction.recipients.len()],
            data: Some(reply(354, "go ahead")),
            dot_sent: true,
            dot: Some(reply(250, "2.0.0 accepted")),
            end: None,
        }
    }

    /// The report of a transaction whose every RCPT was answered with `refusal`.
    pub fn refused_recipients(transaction: &Transaction, refusal: &Reply) -> TransactionReport {
        TransactionReport {
            mail: Some(reply(250, "2.1.0 ok")),
            recipients: vec![RecipientReport::Reply(refusal.clone()); transaction.recipients.len()],
            ..TransactionReport::default()
        }
    }

    /// The report of a transaction whose content was answered with `refusal`.
    pub fn refused_content(transaction: &Transaction, refusal: &Reply) -> TransactionReport {
        TransactionReport { dot: Some(refusal.clone()), ..Self::accepted(transaction) }
    }

    /// The report of a transaction cut off after the final dot.
    pub fn lost_after_dot(transaction: &Transaction) -> TransactionReport {
        let end = SessionEnd { stage: Stage::Dot, cause: EndCause::Closed };
        TransactionReport { dot: None, end: Some(end), ..Self::accepted(transaction) }
    }

    /// How often a connection was tried.
    pub fn attempts(&self) -> u64 {
        self.counts().attempts
    }

    /// How many transactions there were.
    pub fn transactions(&self) -> u64 {
        self.counts().transactions
    }

    /// How many recipients were accepted together with the content.
    pub fn delivered(&self) -> u64 {
        self.counts().delivered
    }

    /// How many sessions are open or being opened.
    pub fn open_sessions(&self) -> u64 {
        self.counts().open
    }

    /// The most there were at once.
    pub fn peak_sessions(&self) -> u64 {
        self.counts().peak
    }

    /// How often a connection to `peer` was tried.
    pub fn attempts_at(&self, peer: SocketAddr) -> u64 {
        self.counts().peers.get(&peer).map_or(0, |peer| peer.attempts)
    }

    /// The most sessions with `peer`, open or being opened, there were at once.
    pub fn peak_sessions_at(&self, peer: SocketAddr) -> u64 {
        self.counts().peers.get(&peer).map_or(0, |peer| peer.peak)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, peer: SocketAddr) -> Open {
        let mut counts = self.counts();
        counts.attempts += 1;
        counts.open += 1;
        counts.peak = counts.peak.max(counts.open);
        let at = counts.peers.entry(peer).or_default();
        at.attempts += 1;
        at.open += 1;
        at.peak = at.peak.max(at.open);
        Open { transport: self.clone(), peer }
    }
}

fn reply(code: u16, text: &str) -> Reply {
    Reply::new(code, [text.as_bytes()])
}

struct Open {
    transport: ScriptedTransport,
    peer: SocketAddr,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut counts = self.transport.counts();
        counts.open -= 1;
        if let Some(at) = counts.peers.get_mut(&self.peer) {
            at.open -= 1;
        }
    }
}

#[async_trait]
impl Transport for ScriptedTransport {
    async fn connect(&self, target: &Target) -> Result<Box<dyn Session>, ConnectError> {
        let open = self.open(target.peer);
        if !self.connect_time.is_zero() {
            pause(self.connect_time).await;
        }
        (self.connect)(target)?;
        Ok(Box::new(ScriptedSession { open, target: target.clone(), ended: None }))
    }
}

struct ScriptedSession {
    open: Open,
    target: Target,
    ended: Option<SessionEnd>,
}

#[async_trait]
impl Session for ScriptedSession {
    async fn transact(&mut self, transaction: &Transaction) -> TransactionReport {
        let transport = &self.open.transport;
        if let Some(end) = self.ended.clone() {
            let recipients = vec![RecipientReport::None; transaction.recipients.len()];
            return TransactionReport { recipients, end: Some(end), ..TransactionReport::default() };
        }
        if !transport.transaction_time.is_zero() {
            pause(transport.transaction_time).await;
        }
        let report = (transport.transact)(&self.target, transaction);
        let mut counts = transport.counts();
        counts.transactions += 1;
        if report.dot.as_ref().is_some_and(Reply::is_positive) {
            let accepted =
                |report: &&RecipientReport| matches!(report, RecipientReport::Reply(r) if r.is_positive());
            counts.delivered += report.recipients.iter().filter(accepted).count() as u64;
        }
        self.ended.clone_from(&report.end);
        report
    }

    async fn closed(&mut self) -> SessionEnd {
        if let Some(end) = &self.ended {
            return end.clone();
        }
        match self.open.transport.idle_time {
            Some(idle) => pause(idle).await,
            None => std::future::pending().await,
        }
        let end =
            SessionEnd { stage: Stage::Mail, cause: EndCause::Reply(reply(421, "4.4.2 idle for too long")) };
        self.ended = Some(end.clone());
        end
    }

    async fn quit(self: Box<Self>) {}
}

impl fmt::Debug for ScriptedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedSession").field("peer", &self.target.peer).finish_non_exhaustive()
    }
}

impl fmt::Debug for ScriptedTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedTransport").field("open", &self.open_sessions()).finish_non_exhaustive()
    }
}

impl fmt::Display for ScriptedTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("scripted")
    }
}
