//! One connection's task: opens a session, carries transactions over it, closes it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::mpsc;

use super::driver::Input;
use crate::message::Domain;
use crate::mta_sts::{KnownPolicy, Mode, Policies};
use crate::reply::Stage;
use crate::scheduler::{ConnectionId, Content, Event, Opened, Outgoing, PolicyDomain};
use crate::storage::{Storage, StorageError, StorageErrorKind};
use crate::tls_report::{HeldTo, SessionTls, TlsCounts};
use crate::transport::{
    CertificateBy, ConnectError, EndCause, RecipientReport, Session, SessionEnd, Target, Transaction,
    TransactionReport, Transport,
};

/// What a session's task is told.
#[derive(Debug)]
pub(super) enum Order {
    Transact(Box<Outgoing>),
    Close,
}

pub(super) struct SessionTask {
    pub(super) connection: ConnectionId,
    pub(super) target: Target,
    /// Whose mail it is opened for.
    pub(super) policy_domain: Option<PolicyDomain>,
    pub(super) transport: Arc<dyn Transport>,
    /// Counts what the session comes to.
    pub(super) tls_counts: Arc<TlsCounts>,
    /// `None`: no domain has an MTA-STS policy.
    pub(super) policies: Option<Arc<Policies>>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) results: mpsc::Sender<Input>,
    pub(super) phase: Phase,
}

/// The domains that a session is counted for in TLS reports.
type Counted = Vec<Domain>;

/// Domains that one session counts for.
const MOST_COUNTED: usize = 128;

/// How far a session has come: what a panic in a host's part means depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Opening,
    Open,
    /// So many recipients are in a transaction.
    InTransaction(usize),
}

impl SessionTask {
    /// Runs to the connection's end and always tells it, whatever a host's part does.
    pub(super) async fn run(mut self) {
        let connection = self.connection;
        if AssertUnwindSafe(self.open_and_serve()).catch_unwind().await.is_ok() {
            return;
        }
        let event = match self.phase {
            Phase::Opening => {
                let error = ConnectError { stage: Stage::Connect, cause: panicked() };
                Event::ConnectFailed { connection, error }
            }
            Phase::Open => {
                let end = SessionEnd { stage: Stage::Mail, cause: panicked() };
                Event::SessionEnded { connection, end }
            }
            Phase::InTransaction(recipients) => {
                Event::TransactionDone { connection, report: Box::new(panic_report(recipients)) }
            }
        };
        self.tell(event).await;
    }

    async fn open_and_serve(&mut self) {
        let connection = self.connection;
        let opened_for = self.policy_domain.take();
        // In a rollup the route's is that of one of its domains.
        self.target.mta_sts = opened_for.as_ref().and_then(|domain| self.policy_of(domain));
        let mut result = self.transport.connect(&self.target).await;
        if let Some(domain) = &opened_for {
            let tls = match &mut result {
                Ok(session) => Ok(self.tls_of(&mut **session, self.target.mta_sts.is_some()).await),
                Err(error) => Err(&*error),
            };
            let (host, tlsa, mta_sts) =
                (&self.target.host, self.target.tlsa.as_deref(), self.target.mta_sts.as_ref());
            let held_to = HeldTo { domain: domain.name.as_str(), host, tlsa, mta_sts, target: &self.target };
            self.tls_counts.session(&held_to, tls);
        }
        let counted = opened_for.into_iter().map(|domain| domain.name).collect();
        let session = match result {
            Ok(session) => session,
            Err(error) => return self.tell(Event::ConnectFailed { connection, error }).await,
        };
        let opened = Opened {
            tls: session.tls().map(Into::into),
            certificate: session.certificate(),
            limits: session.limits(),
            passes_on_dsn: session.passes_on_dsn(),
        };
        self.tell(Event::Connected { connection, opened }).await;
        self.phase = Phase::Open;
        self.serve(session, counted).await;
    }

    /// A certificate that need not be valid is looked at only for a domain `with_policy`: nobody else wants to know.
    async fn tls_of(&self, session: &mut dyn Session, with_policy: bool) -> SessionTls {
        let certificate = match self.target.certificate_by() {
            CertificateBy::Roots => Some(Ok(())),
            // Roots were not asked.
            CertificateBy::Tlsa(_) => None,
            CertificateBy::Nobody if with_policy => session.certificate_verdict().await,
            CertificateBy::Nobody => None,
        };
        SessionTls { is_there: session.tls().is_some(), certificate }
    }

    /// Counts the session for a domain whose mail goes over it, once.
    async fn count(&self, counted: &mut Counted, session: &mut dyn Session, outgoing: &Outgoing) {
        let Some(domain) = &outgoing.policy_domain else { return };
        if counted.len() >= MOST_COUNTED || counted.contains(&domain.name) {
            return;
        }
        // What was looked at without need was looked at for one host. Where there was need, the session is not used for others.
        let is_same_host = outgoing.host == self.target.host || self.target.tls.is_verified();
        let (host, tlsa, mta_sts) = (&outgoing.host, outgoing.tlsa.as_deref(), self.policy_of(domain));
        let mta_sts = mta_sts.as_ref();
        let tls = self.tls_of(session, is_same_host && mta_sts.is_some()).await;
        let tls = SessionTls { certificate: tls.certificate.filter(|_| is_same_host), ..tls };
        let held_to = HeldTo { domain: domain.name.as_str(), host, tlsa, mta_sts, target: &self.target };
        self.tls_counts.session(&held_to, Ok(tls));
        counted.push(domain.name.clone());
    }

    /// The policy that a domain holds its sessions to.
    fn policy_of(&self, domain: &PolicyDomain) -> Option<Arc<KnownPolicy>> {
        let policies = self.policies.as_ref().filter(|_| domain.heeds_mta_sts)?;
        let own = self.target.mta_sts.as_ref().filter(|policy| policy.domain() == domain.name.as_str());
        let is_one = |known: &Arc<KnownPolicy>| known.policy().mode() != Mode::None;
        own.cloned().or_else(|| policies.known(domain.name.as_str()).filter(is_one))
    }

    /// Whether the mail's domain has a policy that does not allow the session. It may have become known since the domain was looked up.
    fn is_against_policy(&self, outgoing: &Outgoing) -> bool {
        let domain = outgoing.policy_domain.as_ref().filter(|domain| domain.heeds_mta_sts);
        let known = domain.and_then(|domain| self.policies.as_ref()?.known(domain.name.as_str()));
        known.is_some_and(|known| {
            let policy = known.policy();
            let is_verified = self.target.certificate_by() != CertificateBy::Nobody;
            policy.mode() == Mode::Enforce && !(is_verified && policy.permits(&outgoing.host))
        })
    }

    async fn serve(&mut self, mut session: Box<dyn Session>, mut counted: Counted) {
        let connection = self.connection;
        loop {
            let order = tokio::select! {
                biased;
                order = self.orders.recv() => order,
                end = session.closed() => {
                    drop(session);
                    return self.tell(Event::SessionEnded { connection, end }).await;
                }
            };
            match order {
                Some(Order::Transact(outgoing)) if self.is_against_policy(&outgoing) => {
                    self.tell(Event::AgainstPolicy { connection }).await;
                }
                Some(Order::Transact(outgoing)) => {
                    self.count(&mut counted, &mut *session, &outgoing).await;
                    let transaction = match self.load(outgoing).await {
                        Ok(transaction) => transaction,
                        Err(error) => {
                            self.tell(Event::BodyFailed { connection, error }).await;
                            continue;
                        }
                    };
                    self.phase = Phase::InTransaction(transaction.recipients.len());
                    let report = Box::new(session.transact(&transaction).await);
                    self.phase = Phase::Open;
                    let ended = report.end.is_some();
                    if ended {
                        // The socket is closed before its permits are given back.
                        drop(session);
                        return self.tell(Event::TransactionDone { connection, report }).await;
                    }
                    self.tell(Event::TransactionDone { connection, report }).await;
                }
                Some(Order::Close) | None => {
                    session.quit().await;
                    return self.tell(Event::Closed { connection }).await;
                }
            }
        }
    }

    async fn load(&self, outgoing: Box<Outgoing>) -> Result<Transaction, StorageError> {
        let body = match outgoing.content {
            Content::Held(body) => body,
            Content::Stored(key) => {
                let missing =
                    || StorageError::new(StorageErrorKind::NotFound, "the store gave no answer for a body");
                self.storage.bodies(vec![key]).await?.pop().ok_or_else(missing)??
            }
        };
        Ok(Transaction {
            message: outgoing.message,
            queue: outgoing.queue,
            host: outgoing.host,
            reverse_path: outgoing.reverse_path,
            recipients: outgoing.recipients,
            body,
            eight_bit: outgoing.eight_bit,
            chunking: outgoing.chunking,
            require_tls: outgoing.require_tls,
            smtputf8: outgoing.smtputf8,
            host_is_authentic: outgoing.host_is_authentic,
            dsn: outgoing.dsn,
        })
    }

    async fn tell(&self, event: Event) {
        // The driver is gone only when the engine has ended.
        let _ = self.results.send(Input::Event(event)).await;
    }
}

fn panicked() -> EndCause {
    EndCause::Broken("the transport panicked".to_owned())
}

/// A transport that panicked may have sent everything.
fn panic_report(recipients: usize) -> TransactionReport {
    TransactionReport {
        recipients: vec![RecipientReport::None; recipients],
        dot_sent: true,
        end: Some(SessionEnd { stage: Stage::Dot, cause: panicked() }),
        ..TransactionReport::default()
    }
}
