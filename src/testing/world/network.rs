//! A transport whose peers are the servers of a world.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::book::Book;
use super::model::ServerModel;
use super::observation::Seen;
use super::server::{Envelope, Greeting, Server, accepted};
use crate::message::{Address, ReversePath};
use crate::reply::{Reply, Stage};
use crate::testing::conversation::pause;
use crate::transport::{
    ConnectError, EndCause, RecipientReport, Session, SessionEnd, Target, TlsWish, Transaction,
    TransactionReport, Transport, Unsendable,
};

/// The servers, by address. Clones are the same network.
#[derive(Clone)]
pub(super) struct Network {
    book: Book,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    seed: u64,
    servers: HashMap<SocketAddr, Server>,
    /// What answers where no server was named.
    elsewhere: Option<ServerModel>,
}

impl Network {
    pub(super) fn new(
        book: Book,
        seed: u64,
        servers: BTreeMap<SocketAddr, ServerModel>,
        elsewhere: Option<ServerModel>,
    ) -> Self {
        let inner = Inner { seed, servers: HashMap::new(), elsewhere };
        let network = Self { book, inner: Arc::new(Mutex::new(inner)) };
        servers.into_iter().for_each(|(address, model)| network.set(address, model));
        network
    }

    /// A server behaves so from now on.
    pub(super) fn set(&self, address: SocketAddr, model: ServerModel) {
        let mut inner = self.lock();
        let seed = inner.seed_of(address);
        match inner.servers.get_mut(&address) {
            Some(server) => server.set_model(model),
            None => drop(inner.servers.insert(address, Server::new(model, seed))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the server at an address; `None`: there is none.
    fn ask<T>(&self, address: SocketAddr, question: impl FnOnce(&mut Server) -> T) -> Option<T> {
        let mut inner = self.lock();
        if !inner.servers.contains_key(&address) {
            let (model, seed) = (inner.elsewhere.clone()?, inner.seed_of(address));
            inner.servers.insert(address, Server::new(model, seed));
        }
        inner.servers.get_mut(&address).map(question)
    }
}

impl Inner {
    /// Each server has its own dice, so that what one does changes nothing for the others.
    fn seed_of(&self, address: SocketAddr) -> u64 {
        let octets = match address.ip() {
            IpAddr::V4(ip) => u128::from(u32::from(ip)),
            IpAddr::V6(ip) => u128::from(ip),
        };
        let mixed = octets ^ (octets >> 64) ^ (u128::from(address.port()) << 32);
        self.seed ^ (mixed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

/// A connection, until it is dropped.
struct Open {
    network: Network,
    connection: u64,
    peer: SocketAddr,
    client: Option<IpAddr>,
    /// The server counts it.
    counted: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.counted {
            self.network.ask(self.peer, |server| server.left(self.client));
        }
        self.network.book.closed(self.connection);
    }
}

#[async_trait]
impl Transport for Network {
    async fn connect(&self, target: &Target) -> Result<Box<dyn Session>, ConnectError> {
        let connection = self.book.connecting(target);
        let open = Open {
            network: self.clone(),
            connection,
            peer: target.peer,
            client: target.local,
            counted: false,
        };
        match self.open(target, open).await {
            Ok(session) => {
                self.book.see(Seen::Connected { connection });
                Ok(Box::new(session))
            }
            Err((error, open)) => {
                let reply = match &error.cause {
                    EndCause::Reply(reply) => Some(reply.clone()),
                    _ => None,
                };
                self.book.see(Seen::NotConnected { connection, error: error.to_string(), reply });
                drop(open);
                Err(error)
            }
        }
    }
}

impl Network {
    async fn open(&self, target: &Target, mut open: Open) -> Result<ModelSession, (ConnectError, Open)> {
        let timeouts = *target.timeouts;
        let Some(latency) = self.ask(target.peer, Server::connect_latency) else {
            return Err((fail(Stage::Connect, refused()), open));
        };
        let waited = latency;
        if !wait(waited, timeouts.connect).await {
            return Err((fail(Stage::Connect, EndCause::Timeout(timeouts.connect)), open));
        }
        let now = self.book.elapsed();
        let greeting = self.ask(target.peer, |server| server.greet(now, target.local));
        let latency = self.ask(target.peer, |server| server.reply_latency(now)).unwrap_or_default();
        let (stage, cause) = match greeting {
            Some(Greeting::Accepted) => {
                open.counted = true;
                let mut session = ModelSession { open, timeouts, used: 0, has_tls: false, ended: None };
                if !wait(latency, timeouts.greeting).await {
                    let cause = EndCause::Timeout(timeouts.greeting);
                    return Err((fail(Stage::Connect, cause), session.open));
                }
                let latency = self.ask(target.peer, |server| server.reply_latency(now)).unwrap_or_default();
                if !wait(latency, timeouts.ehlo).await {
                    return Err((fail(Stage::Ehlo, EndCause::Timeout(timeouts.ehlo)), session.open));
                }
                let secures = self.ask(target.peer, |server| server.secures(target.tls)).flatten();
                let Some(has_tls) = secures else {
                    let (stage, cause) = not_offered(target.tls);
                    return Err((fail(stage, cause), session.open));
                };
                session.has_tls = has_tls;
                // The models take any name and password.
                if target.credentials.as_ref().is_some_and(|credentials| !has_tls && !credentials.unencrypted)
                {
                    return Err((fail(Stage::Auth, EndCause::AuthNeedsTls), session.open));
                }
                return Ok(session);
            }
            None | Some(Greeting::Refused) => (Stage::Connect, refused()),
            Some(Greeting::Silence) => {
                pause(timeouts.connect.saturating_sub(waited)).await;
                (Stage::Connect, EndCause::Timeout(timeouts.connect))
            }
            Some(Greeting::Closed(stage)) => (stage, EndCause::Closed),
            Some(Greeting::Reply(stage, reply)) => {
                if !wait(latency, timeouts.greeting).await {
                    let cause = EndCause::Timeout(timeouts.greeting);
                    return Err((fail(Stage::Connect, cause), open));
                }
                let after = self.ask(target.peer, |server| server.reply_latency(now)).unwrap_or_default();
                if stage == Stage::Ehlo && !wait(after, timeouts.ehlo).await {
                    return Err((fail(Stage::Ehlo, EndCause::Timeout(timeouts.ehlo)), open));
                }
                (stage, EndCause::Reply(reply))
            }
        };
        Err((fail(stage, cause), open))
    }
}

struct ModelSession {
    open: Open,
    timeouts: crate::transport::Timeouts,
    used: u32,
    has_tls: bool,
    ended: Option<SessionEnd>,
}

impl ModelSession {
    fn latency(&self) -> Duration {
        let network = &self.open.network;
        let now = network.book.elapsed();
        network.ask(self.open.peer, |server| server.reply_latency(now)).unwrap_or_default()
    }

    /// Returns what the server said, who has the message, and whether the engine knows.
    async fn converse(&mut self, transaction: &Transaction) -> (TransactionReport, bool) {
        let unanswered = || TransactionReport {
            recipients: vec![RecipientReport::None; transaction.recipients.len()],
            ..TransactionReport::default()
        };
        if let Some(end) = self.ended.clone() {
            return (TransactionReport { end: Some(end), ..unanswered() }, false);
        }
        let timed_out = |stage, limit| Some(SessionEnd { stage, cause: EndCause::Timeout(limit) });
        if !wait(self.latency(), self.timeouts.mail).await {
            let end = timed_out(Stage::Mail, self.timeouts.mail);
            return (TransactionReport { end, ..unanswered() }, false);
        }
        if transaction.require_tls {
            let unsendable = RecipientReport::Unsendable(Unsendable::RequireTlsNotOffered);
            let recipients = vec![unsendable; transaction.recipients.len()];
            return (TransactionReport { recipients, ..unanswered() }, false);
        }
        let (network, client) = (self.open.network.clone(), self.open.client);
        let so_far = (self.used, self.has_tls);
        let begun = network.book.elapsed();
        let envelope =
            network.ask(self.open.peer, |server| server.envelope(begun, client, so_far, transaction));
        let Some(Envelope { mut report, wanted }) = envelope else {
            let end = Some(SessionEnd { stage: Stage::Mail, cause: EndCause::Closed });
            return (TransactionReport { end, ..unanswered() }, false);
        };
        if !wanted {
            return (report, false);
        }
        self.used += 1;
        if !wait(self.latency(), self.timeouts.dot).await {
            report.dot_sent = true;
            report.end = timed_out(Stage::Dot, self.timeouts.dot);
            return (report, false);
        }
        let now = network.book.elapsed();
        let taken = network.ask(self.open.peer, |server| server.content(begun, now, client, &mut report));
        (report, taken.unwrap_or_default())
    }
}

#[async_trait]
impl Session for ModelSession {
    async fn transact(&mut self, transaction: &Transaction) -> TransactionReport {
        let book = self.open.network.book.clone();
        let connection = self.open.connection;
        let (message, queue, host) =
            (transaction.message, transaction.queue.clone(), transaction.host.clone());
        let recipients = transaction.recipients.clone();
        book.sent(message, content_hash(&transaction.reverse_path, transaction.eight_bit, &transaction.body));
        book.see(Seen::Offered { connection, message, queue, host, recipients });
        let (report, taken) = self.converse(transaction).await;
        let unsaid = taken && report.dot.is_none();
        let taken = if taken { accepted(transaction, &report) } else { Vec::new() };
        let reply = last_reply(&report);
        book.see(Seen::Answered { connection, message, taken, unsaid, reply });
        self.ended.clone_from(&report.end);
        report
    }

    async fn closed(&mut self) -> SessionEnd {
        if let Some(end) = &self.ended {
            return end.clone();
        }
        let idle = self.open.network.ask(self.open.peer, |server| server.idle_timeout()).flatten();
        match idle {
            Some(idle) => pause(idle).await,
            None => std::future::pending().await,
        }
        let reply = Reply::new(421, ["4.4.2 idle for too long".as_bytes()]);
        let end = SessionEnd { stage: Stage::Mail, cause: EndCause::Reply(reply) };
        self.ended = Some(end.clone());
        end
    }

    async fn quit(self: Box<Self>) {
        wait(self.latency(), self.timeouts.quit).await;
    }

    fn tls(&self) -> Option<String> {
        self.has_tls.then(|| "TLSv1.3 TLS_AES_256_GCM_SHA384".to_owned())
    }
}

pub(super) fn content_hash(reverse_path: &ReversePath, eight_bit: bool, content: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    (reverse_path.as_ref().map(Address::as_str), eight_bit, content).hash(&mut hasher);
    hasher.finish()
}

/// Waits, but no longer than the limit. Returns whether that was long enough.
async fn wait(time: Duration, limit: Duration) -> bool {
    if !time.is_zero() {
        pause(time.min(limit)).await;
    }
    time <= limit
}

fn last_reply(report: &TransactionReport) -> Option<Reply> {
    let of_recipients = report.recipients.iter().rev().find_map(|recipient| match recipient {
        RecipientReport::Reply(reply) => Some(reply),
        _ => None,
    });
    let data = report.data.as_ref().filter(|reply| !reply.is_intermediate());
    report.dot.as_ref().or(data).or(of_recipients).or(report.mail.as_ref()).cloned()
}

fn refused() -> EndCause {
    EndCause::Broken("connection refused".to_owned())
}

/// What a wish for TLS meets at a server without.
fn not_offered(wish: TlsWish) -> (Stage, EndCause) {
    if wish.implicit {
        (Stage::Connect, EndCause::Tls("the server closed the connection in the handshake".to_owned()))
    } else {
        (Stage::Ehlo, EndCause::TlsNotOffered)
    }
}

fn fail(stage: Stage, cause: EndCause) -> ConnectError {
    ConnectError { stage, cause }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("servers", &self.lock().servers.len()).finish_non_exhaustive()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("modelled servers")
    }
}

impl fmt::Debug for ModelSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelSession").field("connection", &self.open.connection).finish_non_exhaustive()
    }
}
