//! The driver: one task that feeds the scheduler and carries out its commands.
//!
//! The loop waits for one of: a result of I/O, a request of the host, a timer. It tells the scheduler, then takes
//! every command the scheduler has and starts it in a task of its own, whose result comes back as an event. The
//! driver itself waits for no I/O.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::answers::panicked;
use super::reporter::{Handover, Reporter, Streams};
use super::route::LookUp;
use super::session::{Order, Phase, SessionTask};
use super::{ShutdownReport, Stats};
use crate::clock::{self, Clock, Timestamp};
use crate::control::{QueueInfo, QueueSort};
use crate::dns::{DnsErrorKind, Resolver, RouteFailure, RouteFailureKind};
use crate::event::{DeliveryEvent, StorageOperation, StorageTrouble};
use crate::message::{EventId, Message, MessageId, QueueName};
use crate::mta_sts::Policies;
use crate::policy::Policy;
use crate::scheduler::{
    Answer, CancelReport, Command, ConnectionId, Control, Event, PAGE, Scheduler, SubmitFailure, Token,
};
use crate::storage::{
    Change, ChangeOutcome, ClaimRequest, Filter, ItemSummary, Owner, Room, Storage, StorageError,
    StorageErrorKind,
};
use crate::tls_report::{TlsCounts, TlsReport};
use crate::transport::Transport;
use crate::why::{MessageWaits, QueueWaits};

/// Results of I/O that wait for the driver.
const RESULTS: usize = 1_024;
/// Events that are not final and wait for the reporter; past it no new transaction starts.
const REPORTS: usize = 1_024;
/// Outcomes that are stored and that the sink has not kept yet; past it no new transaction starts.
const OUTCOMES: i64 = 65_536;
/// Inputs taken in one round before commands are carried out.
const ROUND: usize = 256;
/// How long leases hold, and how often they are renewed.
pub(super) const LEASE: Duration = Duration::from_secs(300);
const RENEW: Duration = Duration::from_secs(60);
/// Lanes of which heads are read at a time.
pub(super) const HEADS_PAGE: usize = 1_000;
/// How long a shutdown waits for the store once nothing is in flight any more.
const LAST_WRITES: Duration = Duration::from_secs(10);
/// How long the reporter may take over the last events.
const LAST_ROUND: Duration = Duration::from_secs(10);
/// Items of a message listed at a time.
const LIST_PAGE: usize = 1_000;

/// A message the host hands in.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) message: Box<Message>,
    pub(super) reply: oneshot::Sender<Result<MessageId, SubmitFailure>>,
}

/// What else the host asks for. Always answered, also while submissions wait.
#[derive(Debug)]
pub(super) enum Request {
    Cancel {
        message: MessageId,
        reply: oneshot::Sender<Result<CancelReport, StorageError>>,
    },
    Control {
        control: Control,
        reply: ControlReply,
    },
    SetPolicy {
        policy: Box<Policy>,
        reply: oneshot::Sender<()>,
    },
    Queues {
        sort: QueueSort,
        limit: usize,
        reply: oneshot::Sender<Result<Vec<QueueInfo>, StorageError>>,
    },
    Why {
        message: MessageId,
        reply: oneshot::Sender<Result<MessageWaits, StorageError>>,
    },
    WhyQueue {
        name: QueueName,
        reply: oneshot::Sender<Vec<QueueWaits>>,
    },
    Stats {
        reply: oneshot::Sender<Stats>,
    },
    TlsReport {
        reply: oneshot::Sender<TlsReport>,
    },
    #[cfg(feature = "testing")]
    Gauges {
        reply: oneshot::Sender<crate::scheduler::Gauges>,
    },
    WaitIdle {
        reply: oneshot::Sender<()>,
    },
    Shutdown {
        deadline: Duration,
        reply: oneshot::Sender<ShutdownReport>,
    },
}

/// Where the answer to a verb goes.
#[derive(Debug)]
pub(super) enum ControlReply {
    Cancelled(oneshot::Sender<Result<CancelReport, StorageError>>),
    Done(oneshot::Sender<Result<u64, StorageError>>),
}

/// What tasks tell the driver.
#[derive(Debug)]
pub(super) enum Input {
    Event(Event),
    /// So many outcomes were taken by the sink and acknowledged.
    Acknowledged(u64),
    /// All in the outbox has been told, as it was after so many commits of outcomes.
    OutboxRead(u64),
    /// What the store could not read: damage, which it left aside, or the outbox.
    Unread(Vec<StorageError>),
    /// The items of a message, of which the host asked what they wait for.
    Why {
        items: Result<Vec<ItemSummary>, StorageError>,
        reply: oneshot::Sender<Result<MessageWaits, StorageError>>,
    },
}

/// The parts a host may swap, and what the driver adds.
pub(super) struct Parts {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) resolver: Arc<dyn Resolver>,
    /// `None`: nobody gets MTA-STS policies.
    pub(super) policies: Option<Arc<Policies>>,
    pub(super) tls_counts: Arc<TlsCounts>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) clock: Clock,
    pub(super) hostname: Arc<str>,
    pub(super) owner: Owner,
    pub(super) upkeep_interval: Duration,
    /// For the ids of the driver's own events.
    pub(super) random: fastrand::Rng,
}

enum Waiter {
    Submit(oneshot::Sender<Result<MessageId, SubmitFailure>>),
    Cancel(oneshot::Sender<Result<CancelReport, StorageError>>),
    Control(oneshot::Sender<Result<u64, StorageError>>),
}

pub(super) struct Driver {
    pub(super) scheduler: Scheduler,
    pub(super) parts: Parts,
    policy: Policy,
    submissions: mpsc::Receiver<Submission>,
    submissions_done: bool,
    requests: mpsc::Receiver<Request>,
    results: mpsc::Receiver<Input>,
    pub(super) to_driver: mpsc::Sender<Input>,
    events: mpsc::Sender<DeliveryEvent>,
    /// Events the reporter had no room for.
    unsent: VecDeque<DeliveryEvent>,
    committed: Arc<Notify>,
    /// How many commits of outcomes there were.
    commits: Arc<AtomicU64>,
    /// Outcomes in the commit under way, and outcomes committed and not yet acknowledged.
    committing_reports: Vec<usize>,
    /// An acknowledgement may come before the commit's own answer: below zero for that moment.
    pub(super) outcomes: i64,
    /// All in the outbox has been told, as it was after so many commits of outcomes.
    told_after: Option<u64>,
    waiters: HashMap<Token, Waiter>,
    next_token: u64,
    idle_waiters: Vec<oneshot::Sender<()>>,
    sessions: HashMap<ConnectionId, mpsc::Sender<Order>>,
    session_tasks: JoinSet<()>,
    pub(super) storage_tasks: JoinSet<()>,
    look_ups: JoinSet<()>,
    next_renewal: Instant,
    next_upkeep: Instant,
    /// When the heads of all lanes are read again: leases of another engine on the same store may have run out.
    next_heads: Instant,
    maintaining: Option<tokio::task::JoinHandle<()>>,
    /// What the store had room for when it was last asked.
    room: Room,
    shutdown: Option<Shutdown>,
    drained: bool,
    requests_done: bool,
}

enum Woken {
    Input(Option<Input>),
    Submission(Option<Submission>),
    Request(Option<Request>),
    PoliciesChanged,
    Other,
}

struct Shutdown {
    /// On the runtime's clock: a step of the wall clock does not move it. `None`: when all has ended.
    deadline: Option<Instant>,
    replies: Vec<oneshot::Sender<ShutdownReport>>,
}

impl Driver {
    pub(super) fn new(
        scheduler: Scheduler,
        parts: Parts,
        policy: Policy,
        (submissions, requests): (mpsc::Receiver<Submission>, mpsc::Receiver<Request>),
        outcomes: u64,
    ) -> (Self, Handover) {
        let (to_driver, results) = mpsc::channel(RESULTS);
        let (events, reported) = mpsc::channel(REPORTS);
        let committed = Arc::new(Notify::new());
        let commits = Arc::new(AtomicU64::new(0));
        let (notified, count, results_in) = (committed.clone(), commits.clone(), to_driver.clone());
        let handover =
            Handover { events: reported, committed: notified, commits: count, results: results_in };
        let now = clock::instant();
        let (next_renewal, next_upkeep, next_heads) = (now + RENEW, now + parts.upkeep_interval, now + LEASE);
        let driver = Self {
            scheduler,
            parts,
            policy,
            submissions,
            submissions_done: false,
            requests,
            results,
            to_driver,
            events,
            unsent: VecDeque::new(),
            committed,
            commits,
            committing_reports: Vec::new(),
            outcomes: i64::try_from(outcomes).unwrap_or(i64::MAX),
            told_after: (outcomes == 0).then_some(0),
            waiters: HashMap::new(),
            next_token: 0,
            idle_waiters: Vec::new(),
            sessions: HashMap::new(),
            session_tasks: JoinSet::new(),
            storage_tasks: JoinSet::new(),
            look_ups: JoinSet::new(),
            next_renewal,
            next_upkeep,
            next_heads,
            maintaining: None,
            room: Room::Ample,
            shutdown: None,
            drained: false,
            requests_done: false,
        };
        (driver, handover)
    }

    /// Runs until it is shut down, or until every handle is gone and its transactions have ended.
    #[allow(clippy::disallowed_methods, reason = "the driver is what waits for time")]
    pub(super) async fn run(mut self, reporter: Reporter, streams: Streams) {
        let reporter = tokio::spawn(reporter.run());
        self.maintain(self.parts.clock.now());
        self.keep_policies();
        self.carry_out();
        loop {
            let timer = tokio::time::sleep_until(self.next_wake());
            let takes_submissions = self.takes_submissions() && !self.submissions_done;
            let woken = tokio::select! {
                biased;
                input = self.results.recv() => Woken::Input(input),
                request = self.requests.recv(), if !self.requests_done => Woken::Request(request),
                permit = self.events.reserve(), if !self.unsent.is_empty() => {
                    if let (Ok(permit), Some(event)) = (permit, self.unsent.pop_front()) {
                        permit.send(event);
                    }
                    Woken::Other
                }
                submission = self.submissions.recv(), if takes_submissions => Woken::Submission(submission),
                () = policies_changed(self.parts.policies.as_ref()) => Woken::PoliciesChanged,
                () = timer => Woken::Other,
            };
            match woken {
                Woken::Input(Some(input)) => self.take(input),
                Woken::Request(Some(request)) => self.ask(request),
                Woken::Submission(Some(submission)) => self.submit(submission),
                // Every handle is gone, or what was sent before a shutdown is all taken.
                Woken::Request(None) => {
                    self.requests_done = true;
                    self.begin_shutdown(None);
                }
                Woken::Submission(None) => self.submissions_done = true,
                Woken::PoliciesChanged => self.keep_policies(),
                Woken::Input(None) | Woken::Other => {}
            }
            self.take_more();
            self.on_time();
            self.carry_out();
            self.tell_idle_waiters();
            if self.drained || self.deadline().is_some_and(|deadline| deadline <= clock::instant()) {
                break;
            }
        }
        self.end(reporter, streams).await;
    }

    fn deadline(&self) -> Option<Instant> {
        self.shutdown.as_ref().and_then(|shutdown| shutdown.deadline)
    }

    fn next_wake(&self) -> Instant {
        let scheduler = self.scheduler.poll_timeout().map(|at| self.parts.clock.instant_at(at));
        let own = self.next_renewal.min(self.next_upkeep);
        [scheduler, self.deadline()].into_iter().flatten().fold(own, Instant::min)
    }

    /// Submissions wait while too many are being stored, or while nobody takes the events they cause.
    fn takes_submissions(&self) -> bool {
        self.scheduler.takes_submissions() && self.unsent.is_empty()
    }

    /// What else is at hand, so that commands are made for many inputs at once.
    fn take_more(&mut self) {
        for _ in 0..ROUND {
            let Ok(input) = self.results.try_recv() else { break };
            self.take(input);
        }
        while let Some(event) = self.unsent.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
                self.unsent.push_front(event);
                break;
            }
        }
        for _ in 0..ROUND {
            if !self.takes_submissions() {
                break;
            }
            let Ok(submission) = self.submissions.try_recv() else { break };
            self.submit(submission);
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Event(event) => {
                match &event {
                    Event::CommitDone(result) => {
                        let reports = std::mem::take(&mut self.committing_reports);
                        let is_applied = |at: &usize| {
                            result
                                .as_ref()
                                .is_ok_and(|outcomes| outcomes.get(*at) == Some(&ChangeOutcome::Applied))
                        };
                        let outcomes = reports.iter().filter(|at| is_applied(at)).count() as u64;
                        if outcomes > 0 {
                            self.outcomes = self.outcomes.saturating_add_unsigned(outcomes);
                            self.commits.fetch_add(1, Ordering::AcqRel);
                            self.committed.notify_one();
                        }
                    }
                    Event::ConnectFailed { connection, .. }
                    | Event::SessionEnded { connection, .. }
                    | Event::Closed { connection } => {
                        self.sessions.remove(connection);
                    }
                    Event::TransactionDone { connection, report } if report.end.is_some() => {
                        self.sessions.remove(connection);
                    }
                    _ => {}
                }
                self.scheduler.handle(self.parts.clock.now(), event);
            }
            Input::Acknowledged(count) => self.outcomes = self.outcomes.saturating_sub_unsigned(count),
            // Another engine on the same store may have taken this one's outcomes, or this one its.
            Input::OutboxRead(commits) if commits == self.commits.load(Ordering::Acquire) => {
                self.outcomes = 0;
                self.told_after = Some(commits);
            }
            Input::OutboxRead(_) => {}
            Input::Unread(damage) => self.report_unread(damage),
            Input::Why { items, reply } => {
                let now = self.parts.clock.now();
                let _ = reply.send(items.map(|items| self.scheduler.why(now, items)));
            }
        }
    }

    fn submit(&mut self, submission: Submission) {
        let token = self.wait(Waiter::Submit(submission.reply));
        self.scheduler.handle(self.parts.clock.now(), Event::Submit { token, message: submission.message });
    }

    fn ask(&mut self, request: Request) {
        let now = self.parts.clock.now();
        match request {
            Request::Cancel { message, reply } => {
                let token = self.wait(Waiter::Cancel(reply));
                self.scheduler.handle(now, Event::Cancel { token, message });
            }
            Request::Control { control, reply } => {
                let token = self.wait(match reply {
                    ControlReply::Cancelled(reply) => Waiter::Cancel(reply),
                    ControlReply::Done(reply) => Waiter::Control(reply),
                });
                self.scheduler.handle(now, Event::Control { token, control });
            }
            Request::SetPolicy { policy, reply } => {
                self.policy = (*policy).clone();
                self.scheduler.handle(now, Event::Policy(policy));
                let _ = reply.send(());
            }
            Request::Queues { sort, limit, reply } => self.answer_queues(sort, limit, reply),
            Request::Why { message, reply } => self.answer_why(message, reply),
            Request::WhyQueue { name, reply } => {
                // A host that dropped its call does not wait for the answer.
                let _ = reply.send(self.scheduler.why_queue(now, &name));
            }
            Request::Stats { reply } => self.answer_stats(reply),
            Request::TlsReport { reply } => self.answer_tls_report(reply),
            #[cfg(feature = "testing")]
            Request::Gauges { reply } => drop(reply.send(self.scheduler.gauges(now))),
            Request::WaitIdle { reply } => {
                self.idle_waiters.retain(|waiter| !waiter.is_closed());
                self.idle_waiters.push(reply);
            }
            Request::Shutdown { deadline, reply } => self.begin_shutdown(Some((deadline, reply))),
        }
    }

    fn wait(&mut self, waiter: Waiter) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        self.waiters.insert(token, waiter);
        token
    }

    fn begin_shutdown(&mut self, asked: Option<(Duration, oneshot::Sender<ShutdownReport>)>) {
        let now = self.parts.clock.now();
        let shutdown = self.shutdown.get_or_insert_with(|| Shutdown { deadline: None, replies: Vec::new() });
        if let Some((deadline, reply)) = asked {
            if let Some(deadline) = clock::instant().checked_add(deadline) {
                shutdown.deadline = Some(shutdown.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
            }
            shutdown.replies.push(reply);
        }
        self.submissions.close();
        self.requests.close();
        self.scheduler.handle(now, Event::Shutdown);
    }

    fn on_time(&mut self) {
        let now = self.parts.clock.now();
        if self.scheduler.poll_timeout().is_some_and(|at| at <= now) {
            self.scheduler.handle_timeout(now);
        }
        if self.next_renewal <= clock::instant() {
            self.next_renewal = clock::instant() + RENEW;
            let before = self.parts.clock.now();
            if self.parts.clock.reanchor() {
                tracing::warn!("the wall clock was stepped; the engine follows it");
                let now = self.parts.clock.now();
                self.scheduler.handle(now, Event::ClockStepped { back: before.saturating_since(now) });
            }
            self.renew(self.parts.clock.now());
        }
        if self.next_upkeep <= clock::instant() {
            self.next_upkeep = clock::instant() + self.parts.upkeep_interval;
            self.maintain(self.parts.clock.now());
        }
        if self.next_heads <= clock::instant() {
            self.next_heads = clock::instant() + LEASE;
            if self.shutdown.is_none() && !self.parts.storage.is_exclusive() {
                self.read_heads();
                // Outcomes that an engine has stored and did not live to report.
                self.committed.notify_one();
            }
        }
        self.reap();
    }

    fn renew(&mut self, now: Timestamp) {
        let (storage, owner) = (self.parts.storage.clone(), self.parts.owner);
        self.storage_tasks.spawn(async move {
            if let Err(error) = storage.renew(owner, now + LEASE).await {
                tracing::error!(%error, "leases could not be renewed");
            }
        });
    }

    fn maintain(&mut self, now: Timestamp) {
        if self.maintaining.as_ref().is_none_or(|task| task.is_finished()) {
            let (storage, results) = (self.parts.storage.clone(), self.to_driver.clone());
            self.maintaining = Some(tokio::spawn(async move {
                let damage = storage.take_damage().await;
                if !damage.is_empty() {
                    let _ = results.send(Input::Unread(damage)).await;
                }
                if let Err(error) = storage.maintain(now).await {
                    tracing::warn!(%error, "the store could not be maintained");
                }
            }));
        }
    }

    /// Reads the heads of all lanes once more, a page at a time. What the engine leased itself is not among them.
    fn read_heads(&mut self) {
        let (storage, results) = (self.parts.storage.clone(), self.to_driver.clone());
        let now = self.parts.clock.now();
        // Of nothing: it ends leases that have run out.
        let nothing = ClaimRequest { owner: self.parts.owner, now, until: now + LEASE, what: Vec::new() };
        self.storage_tasks.spawn(async move {
            if let Err(error) = storage.claim(nothing).await {
                return tracing::error!(%error, "leases that ran out could not be ended");
            }
            let mut after = None;
            loop {
                let heads = match unless_panicked(storage.heads(after, HEADS_PAGE)).await {
                    Some(Ok(heads)) => heads,
                    Some(Err(error)) => return tracing::error!(%error, "heads of lanes could not be read"),
                    None => return,
                };
                let Some(last) = heads.last() else { return };
                after = Some(last.lane.clone());
                if results.send(Input::Event(Event::Heads(heads))).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Finished tasks; their results came over the channel.
    fn reap(&mut self) {
        while self.session_tasks.try_join_next().is_some() {}
        while self.storage_tasks.try_join_next().is_some() {}
        while self.look_ups.try_join_next().is_some() {}
    }

    fn carry_out(&mut self) {
        while let Some(command) = self.scheduler.poll_command() {
            self.start(command);
        }
        let (now, room) = (self.parts.clock.now(), self.parts.storage.room());
        if room != self.room {
            self.room = room;
            self.scheduler.handle(now, Event::StoreRoom(room));
        }
        // Each outcome takes room until the sink has kept it.
        let most = if room == Room::Ample { OUTCOMES } else { 1 };
        let blocked = !self.unsent.is_empty() || self.outcomes >= most;
        self.scheduler.handle(now, Event::ReportsBlocked(blocked));
        while let Some(command) = self.scheduler.poll_command() {
            self.start(command);
        }
    }

    fn start(&mut self, command: Command) {
        let storage = self.parts.storage.clone();
        match command {
            Command::Insert(messages) => {
                self.store(async move { storage.insert(messages).await }, Event::InsertDone)
            }
            Command::Commit(changes) => {
                let is_report = |(_, change): &(usize, &Change)| matches!(change, Change::Report { .. });
                self.committing_reports =
                    changes.iter().enumerate().filter(is_report).map(|(at, _)| at).collect();
                let commit = async move { storage.commit(Arc::unwrap_or_clone(changes)).await };
                self.store(commit, Event::CommitDone);
            }
            Command::Claim { claim, what } => {
                let now = self.parts.clock.now();
                let request = ClaimRequest { owner: self.parts.owner, now, until: now + LEASE, what };
                self.store(async move { storage.claim(request).await }, move |result| Event::Claimed {
                    claim,
                    result,
                });
            }
            Command::List { token, message } => {
                self.store(async move { list(&*storage, message).await }, move |result| Event::Listed {
                    token,
                    result,
                });
            }
            Command::Page { token, filter, after } => {
                self.store(async move { storage.list(filter, after, PAGE).await }, move |result| {
                    Event::Page { token, result }
                })
            }
            Command::Resolve { destination, domain, source, settings, freshness } => {
                let (resolver, policies) = (self.parts.resolver.clone(), self.parts.policies.clone());
                let (policy, hostname) = (self.policy.clone(), self.parts.hostname.clone());
                let (results, tls_counts) = (self.to_driver.clone(), self.parts.tls_counts.clone());
                self.look_ups.spawn(async move {
                    let look_up = LookUp {
                        resolver: &resolver,
                        policies: policies.as_ref(),
                        tls_counts: &tls_counts,
                        policy: &policy,
                        hostname: &hostname,
                    };
                    let route = look_up.route(&domain, &source, &settings, freshness);
                    let result = unless_panicked(route).await.unwrap_or_else(|| {
                        Err(RouteFailure {
                            kind: RouteFailureKind::LookUp(DnsErrorKind::ServFail),
                            message: format!("{domain}: the resolver panicked"),
                            policy_unknown: true,
                        })
                    });
                    let _ = results.send(Input::Event(Event::Resolved { destination, result })).await;
                });
            }
            Command::Connect { connection, target, policy_domain } => {
                let (orders, incoming) = mpsc::channel(1);
                self.sessions.insert(connection, orders);
                let task = SessionTask {
                    connection,
                    target: *target,
                    policy_domain,
                    transport: self.parts.transport.clone(),
                    tls_counts: self.parts.tls_counts.clone(),
                    policies: self.parts.policies.clone(),
                    storage,
                    orders: incoming,
                    results: self.to_driver.clone(),
                    phase: Phase::Opening,
                };
                self.session_tasks.spawn(task.run());
            }
            Command::Transact { connection, transaction } => {
                self.order(connection, Order::Transact(transaction))
            }
            Command::Close { connection } => self.order(connection, Order::Close),
            Command::Report(event) => self.report(*event),
            Command::Answer { token, answer } => self.answer(token, answer),
            Command::Drained => self.drained = true,
        }
    }

    /// An order to a session. One that ended meanwhile has said so, which reaches the scheduler next.
    fn order(&mut self, connection: ConnectionId, order: Order) {
        if let Some(session) = self.sessions.get(&connection)
            && session.try_send(order).is_err()
        {
            tracing::debug!(?connection, "the session ended before its order");
        }
    }

    fn store<T: Send + 'static>(
        &mut self,
        work: impl Future<Output = Result<T, StorageError>> + Send + 'static,
        event: impl FnOnce(Result<T, StorageError>) -> Event + Send + 'static,
    ) {
        let results = self.to_driver.clone();
        self.storage_tasks.spawn(async move {
            let result = unless_panicked(work).await.unwrap_or_else(panicked);
            let _ = results.send(Input::Event(event(result))).await;
        });
    }

    /// MTA-STS policies outlive a restart, as RFC 8461 §3.3 wants it.
    pub(super) fn keep_policies(&mut self) {
        let Some(policies) = self.parts.policies.clone() else { return };
        let changes = policies.take_changes();
        if changes.is_empty() {
            return;
        }
        let storage = self.parts.storage.clone();
        self.storage_tasks.spawn(async move {
            let written = unless_panicked(storage.commit(changes.clone())).await.unwrap_or_else(panicked);
            if let Err(error) = written {
                tracing::warn!(%error, "MTA-STS policies could not be kept: they are, with the next ones");
                policies.put_back_changes(changes);
            }
        });
    }

    fn report_unread(&mut self, errors: Vec<StorageError>) {
        let time = self.parts.clock.now();
        for error in errors {
            let event = EventId::generate(time, self.parts.random.u128(..));
            let (operation, error) = (StorageOperation::Read, error.to_string());
            let trouble = StorageTrouble { event, time, operation, error, stopped: false };
            self.report(DeliveryEvent::StorageTrouble(trouble));
        }
    }

    fn report(&mut self, event: DeliveryEvent) {
        if !self.unsent.is_empty() {
            self.unsent.push_back(event);
        } else if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            self.unsent.push_back(event);
        }
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        // A host that dropped its call does not wait for the answer.
        match (self.waiters.remove(&token), answer) {
            (Some(Waiter::Submit(reply)), Answer::Submitted(answer)) => drop(reply.send(answer)),
            (Some(Waiter::Cancel(reply)), Answer::Cancelled(answer)) => drop(reply.send(answer)),
            // A store that refuses for good answers every verb alike.
            (Some(Waiter::Cancel(reply)), Answer::Done(Err(error))) => drop(reply.send(Err(error))),
            (Some(Waiter::Control(reply)), Answer::Done(answer)) => drop(reply.send(answer)),
            _ => {}
        }
    }

    fn tell_idle_waiters(&mut self) {
        if self.idle_waiters.is_empty() || !self.is_idle() {
            return;
        }
        for waiter in self.idle_waiters.drain(..) {
            // A host that dropped its call does not wait any more.
            let _ = waiter.send(());
        }
    }

    fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
            && self.is_all_told()
            && self.committing_reports.is_empty()
            && self.unsent.is_empty()
    }

    /// Seen since the last outcomes were stored. Their number does not say so: engines that share a store count each other's.
    fn is_all_told(&self) -> bool {
        self.told_after == Some(self.commits.load(Ordering::Acquire))
    }

    /// Cuts what is still going on, lets writes end, and waits for the reporter's last round.
    async fn end(mut self, reporter: tokio::task::JoinHandle<()>, streams: Streams) {
        self.take_what_has_come().await;
        self.session_tasks.shutdown().await;
        self.look_ups.shutdown().await;
        if let Some(policies) = &self.parts.policies {
            policies.stop().await;
        }
        self.keep_policies();
        self.take_what_has_come().await;
        let interrupted = self.scheduler.in_flight() as u64;
        self.scheduler.handle(self.parts.clock.now(), Event::Interrupted);
        // Writes are not cut: their outcome would be unknown. What they settle is taken note of.
        let last_write = clock::instant() + LAST_WRITES;
        if tokio::time::timeout_at(last_write, self.finish_writes()).await.is_err() {
            self.leave_writes();
        }
        if let Some(task) = self.maintaining.take() {
            // It may have much to do, and is in no hurry.
            task.abort();
            let _ = task.await;
        }
        while let Ok(input) = self.results.try_recv() {
            if let Input::Unread(damage) = input {
                self.report_unread(damage);
            }
        }
        let storage = self.parts.storage.clone();
        // Apart from each other: damage that was taken is told nowhere else.
        let damage = tokio::time::timeout_at(last_write, storage.take_damage()).await;
        let usage = tokio::time::timeout_at(last_write, storage.usage()).await;
        let queued = usage.map_or(0, |usage| usage.map_or(0, |usage| usage.items));
        self.report_unread(damage.unwrap_or_default());
        let unsettled = self.scheduler.unsettled_items() as u64;
        let report = ShutdownReport { interrupted, queued, unsettled };
        let replies = self.shutdown.take().map(|shutdown| shutdown.replies).unwrap_or_default();
        let Self { events, results, to_driver, unsent, .. } = self;
        drop((results, to_driver));
        let aborter = reporter.abort_handle();
        let last_round = async {
            for event in unsent {
                if events.send(event).await.is_err() {
                    break;
                }
            }
            // Closes the reporter's input: it takes its last round and ends.
            drop(events);
            let _ = reporter.await;
        };
        // A sink or stream that takes nothing holds the shutdown up for no longer: its outcomes stay in the outbox, and what is
        // not final is not told.
        if tokio::time::timeout(LAST_ROUND, last_round).await.is_err() {
            aborter.abort();
        }
        streams.close();
        for reply in replies {
            let _ = reply.send(report);
        }
    }

    /// A verdict that is here counts, and so does one that waits for its turn to be told.
    async fn take_what_has_come(&mut self) {
        while let Ok(input) = self.results.try_recv() {
            self.take(input);
            tokio::task::yield_now().await;
        }
    }

    /// The store does not answer. What it was given goes on, and nobody learns what comes of it.
    fn leave_writes(&mut self) {
        self.storage_tasks.detach_all();
        let (now, unsettled) = (self.parts.clock.now(), self.scheduler.unsettled_items());
        let message = format!("the store did not answer for {LAST_WRITES:?} while the engine was shut down");
        tracing::error!(unsettled, "{message}: what it was given may be written or not");
        let unknown = StorageError::new(StorageErrorKind::OutcomeUnknown, message);
        if self.scheduler.is_inserting() {
            self.scheduler.handle(now, Event::InsertDone(Err(unknown.clone())));
        }
        if self.scheduler.is_committing() {
            self.scheduler.handle(now, Event::CommitDone(Err(unknown)));
        }
        while let Some(command) = self.scheduler.poll_command() {
            if matches!(command, Command::Report(_) | Command::Answer { .. }) {
                self.start(command);
            }
        }
    }

    /// May be dropped at any time.
    async fn finish_writes(&mut self) {
        let mut tries = 3;
        loop {
            self.take_what_has_come().await;
            while let Some(command) = self.scheduler.poll_command() {
                // Only what is written or told: no new session, no new look-up.
                match command {
                    Command::Insert(_) | Command::Commit(_) | Command::Report(_) | Command::Answer { .. } => {
                        self.start(command);
                    }
                    _ => {}
                }
            }
            // Reads that are still going on are of no use any more.
            if !self.scheduler.is_inserting() && !self.scheduler.is_committing() {
                if tries == 0 || self.scheduler.unsettled() == 0 {
                    return;
                }
                // The store refused for the moment: once more, at once.
                tries -= 1;
                self.scheduler.handle(self.parts.clock.now(), Event::WriteNow);
                continue;
            }
            tokio::select! {
                biased;
                input = self.results.recv() => if let Some(input) = input { self.take(input) },
                Some(_) = self.storage_tasks.join_next() => {}
            }
        }
    }
}

/// Every item of a message.
pub(super) async fn list(
    storage: &dyn Storage,
    message: MessageId,
) -> Result<Vec<ItemSummary>, StorageError> {
    let mut items = Vec::new();
    loop {
        let after = items.last().map(ItemSummary::position);
        let page = storage.list(Filter::Message(message), after, LIST_PAGE).await?;
        let whole = page.len() < LIST_PAGE;
        items.extend(page);
        if whole {
            return Ok(items);
        }
    }
}

async fn policies_changed(policies: Option<&Arc<Policies>>) {
    match policies {
        Some(policies) => policies.changed().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn unless_panicked<T>(work: impl Future<Output = T>) -> Option<T> {
    futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(work)).await.ok()
}
