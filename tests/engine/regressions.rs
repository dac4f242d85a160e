//! What once went wrong, and must not again: panics in a host's parts, unread streams, late answers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use postrider::clock::Timestamp;
use postrider::event::{DeliveryEvent, EventSink};
use postrider::storage::*;
use postrider::testing::{Behaviour, Command, ScriptedTransport, SmtpServer};
use postrider::transport::{
    ConnectError, Session, SessionEnd, Target, Transaction, TransactionReport, Transport,
};
use postrider::{DeliveryEngine, Policy};
use tokio::task::JoinSet;

use crate::support::{MX, Recorder, World, message};

const HOUR: Duration = Duration::from_secs(3600);

fn builder(world: &World, storage: impl Storage, policy: &str) -> postrider::engine::EngineBuilder {
    DeliveryEngine::builder("mta.example.org")
        .storage(storage)
        .resolver(world.zone.clone())
        .transport(ScriptedTransport::new())
        .policy(Policy::from_toml(policy).unwrap())
        .event_sink(world.seen.clone())
        .clock(world.clock.clone())
        .seed(1)
}

#[tokio::test(start_paused = true)]
async fn shutdown_returns_though_nobody_reads_a_stream() {
    for deadline in [Duration::from_secs(5), HOUR] {
        let world = World::new();
        let engine = builder(&world, MemoryStorage::new(), "").start().await.unwrap();
        let _stream = engine.events(1);
        let _submissions = submit_each(&engine, 3_000);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let done = tokio::time::timeout(Duration::from_secs(20), engine.shutdown(deadline)).await;
        assert!(done.is_ok(), "no transaction is under way, and its last ten seconds are over: {deadline:?}");
    }
}

fn submit_each(engine: &DeliveryEngine, messages: usize) -> JoinSet<bool> {
    let mut submissions = JoinSet::new();
    for _ in 0..messages {
        let engine = engine.clone();
        submissions.spawn(async move { engine.submit(message(&["b@example.net"])).await.is_ok() });
    }
    submissions
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_a_stream_that_is_read() {
    let world = World::new();
    let engine = builder(&world, MemoryStorage::new(), "").start().await.unwrap();
    let mut stream = engine.events(1);
    let told = tokio::spawn(async move {
        let mut told = 0;
        while let Some(event) = stream.next().await {
            told += usize::from(matches!(event, DeliveryEvent::Received(_)));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        told
    });
    let submissions = submit_each(&engine, 6_000);
    tokio::time::sleep(Duration::from_millis(100)).await;
    engine.shutdown(HOUR).await;
    let accepted = submissions.join_all().await.into_iter().filter(|accepted| *accepted).count();
    assert!(accepted > 1_500, "more than wait for it at once: {accepted}");
    assert_eq!(told.await.unwrap(), accepted);
}

/// Panics in `quit`.
#[derive(Debug)]
struct QuitPanics(ScriptedTransport);
#[derive(Debug)]
struct QuitPanicsSession(Box<dyn Session>);
impl fmt::Display for QuitPanics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("quit panics")
    }
}
#[async_trait]
impl Transport for QuitPanics {
    async fn connect(&self, target: &Target) -> Result<Box<dyn Session>, ConnectError> {
        Ok(Box::new(QuitPanicsSession(self.0.connect(target).await?)))
    }
}
#[async_trait]
impl Session for QuitPanicsSession {
    async fn transact(&mut self, transaction: &Transaction) -> TransactionReport {
        self.0.transact(transaction).await
    }
    async fn closed(&mut self) -> SessionEnd {
        self.0.closed().await
    }
    async fn quit(self: Box<Self>) {
        panic!("a bug of the host's")
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_quit_leaks_no_permit() {
    let world = World::new();
    let policy = "[domain.\"*\"]\nmax-smtp-out = 1\nmax-msg-per-connection = 1";
    let engine = builder(&world, MemoryStorage::new(), policy)
        .transport(QuitPanics(ScriptedTransport::new()))
        .start()
        .await
        .unwrap();
    for _ in 0..2 {
        engine.submit(message(&["b@example.net"])).await.unwrap();
    }
    let idle = tokio::time::timeout(24 * HOUR, engine.wait_idle()).await;
    assert!(idle.is_ok(), "{:?} {:?}", engine.stats().await, world.seen.summary());
}

struct PanicsOnce(Recorder, AtomicU32);
impl EventSink for PanicsOnce {
    fn on_event(&self, event: &DeliveryEvent) {
        assert!(self.1.fetch_add(1, Ordering::Relaxed) != 2, "a bug of the host's");
        self.0.on_event(event);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_sink_does_not_end_reporting() {
    let world = World::new();
    let engine = builder(&world, MemoryStorage::new(), "")
        .event_sink(PanicsOnce(world.seen.clone(), AtomicU32::new(0)))
        .start()
        .await
        .unwrap();
    for _ in 0..10 {
        engine.submit(message(&["b@example.net"])).await.unwrap();
    }
    let idle = tokio::time::timeout(24 * HOUR, engine.wait_idle()).await;
    assert!(idle.is_ok(), "{:?} {:?}", engine.stats().await, world.seen.summary());
}

/// Forwards, with twists.
#[derive(Clone)]
struct Twisted {
    inner: MemoryStorage,
    /// Commits of outcomes return this much after they are durable, from the second on.
    lag: Duration,
    insert: Duration,
    commits: Arc<AtomicU32>,
    /// So many acknowledgements fail.
    failing: Arc<AtomicU32>,
}
impl Twisted {
    fn new() -> Self {
        Self {
            inner: MemoryStorage::new(),
            lag: Duration::ZERO,
            insert: Duration::ZERO,
            commits: Arc::default(),
            failing: Arc::default(),
        }
    }
}
impl fmt::Debug for Twisted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("twisted")
    }
}
impl fmt::Display for Twisted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("twisted")
    }
}
type R<T> = Result<T, StorageError>;
#[async_trait]
impl Storage for Twisted {
    async fn insert(&self, messages: Vec<NewMessage>) -> R<Vec<Inserted>> {
        tokio::time::sleep(self.insert).await;
        self.inner.insert(messages).await
    }
    async fn heads(&self, after: Option<Lane>, limit: usize) -> R<Vec<LaneHead>> {
        self.inner.heads(after, limit).await
    }
    async fn claim(&self, request: ClaimRequest) -> R<Claimed> {
        self.inner.claim(request).await
    }
    async fn renew(&self, owner: Owner, until: Timestamp) -> R<()> {
        self.inner.renew(owner, until).await
    }
    async fn bodies(&self, keys: Vec<BodyKey>) -> R<Vec<R<bytes::Bytes>>> {
        self.inner.bodies(keys).await
    }
    async fn commit(&self, changes: Vec<Change>) -> R<Vec<ChangeOutcome>> {
        let is_ack = matches!(changes.first(), Some(Change::Acknowledge(_)));
        if is_ack && self.failing.load(Ordering::Relaxed) > 0 {
            self.failing.fetch_sub(1, Ordering::Relaxed);
            return Err(StorageError::new(StorageErrorKind::Full, "no room"));
        }
        let done = self.inner.commit(changes).await;
        if !is_ack && self.commits.fetch_add(1, Ordering::Relaxed) > 0 {
            tokio::time::sleep(self.lag).await;
        }
        done
    }
    async fn state(&self, after: Option<Vec<u8>>, limit: usize) -> R<Vec<StateRow>> {
        self.inner.state(after, limit).await
    }
    async fn outbox(&self, after: OutboxPosition, limit: usize) -> R<Vec<OutboxEntry>> {
        self.inner.outbox(after, limit).await
    }
    async fn list(&self, filter: Filter, after: Option<ListPosition>, limit: usize) -> R<Vec<ItemSummary>> {
        self.inner.list(filter, after, limit).await
    }
    async fn usage(&self) -> R<Usage> {
        self.inner.usage().await
    }
    async fn maintain(&self, now: Timestamp) -> R<()> {
        self.inner.maintain(now).await
    }
}

/// The answer to a commit comes a little after the commit itself, as over a network.
#[tokio::test(start_paused = true)]
async fn outcomes_acknowledged_before_their_commit_returned() {
    let world = World::new();
    let storage = Twisted { lag: Duration::from_millis(700), ..Twisted::new() };
    // Makes the reporter read the outbox at a time of its own, a second later.
    storage.failing.store(1, Ordering::Relaxed);
    let transport = ScriptedTransport::new().with_times(Duration::ZERO, Duration::from_millis(20));
    let policy = "[domain.\"*\"]\nmax-smtp-out = 1";
    let engine = builder(&world, storage.clone(), policy).transport(transport).start().await.unwrap();
    for _ in 0..20 {
        engine.submit(message(&["b@example.net"])).await.unwrap();
    }
    let idle = tokio::time::timeout(24 * HOUR, engine.wait_idle()).await;
    assert!(idle.is_ok(), "{:?}; in the store: {:?}", engine.stats().await, storage.usage().await);
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_that_fails_does_not_repeat_the_outcomes_every_second() {
    let world = World::new();
    let storage = Twisted::new();
    storage.failing.store(600, Ordering::Relaxed);
    let engine = builder(&world, storage, "").start().await.unwrap();
    engine.submit(message(&["b@example.net"])).await.unwrap();
    tokio::time::timeout(24 * HOUR, engine.wait_idle()).await.unwrap().unwrap();
    let delivered = world.seen.summary().iter().filter(|line| line.starts_with("delivered")).count();
    assert!(delivered < 10, "one outcome, flushed by the sink, was reported {delivered} times");
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_an_ended_engine_ends() {
    let world = World::new();
    let engine = builder(&world, MemoryStorage::new(), "").start().await.unwrap();
    engine.shutdown(Duration::from_secs(1)).await;
    let mut stream = engine.events(1);
    assert!(tokio::time::timeout(HOUR, stream.next()).await.is_ok(), "waits for ever");
}

#[tokio::test(start_paused = true)]
async fn what_was_cut_goes_on_in_the_next_engine() {
    let world = World::new();
    world.server(MX, &SmtpServer::new().reply(Command::Dot, Behaviour::Silence).times(1));
    let store = MemoryStorage::new();
    let engine = world.engine(store.clone(), "").await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let report = engine.shutdown(Duration::from_secs(30)).await;
    assert_eq!((report.interrupted, report.queued), (1, 1));
    // The same store, its leases still there: another owner, after them.
    let second = DeliveryEngine::builder("mta.example.org")
        .storage(store.clone())
        .resolver(world.zone.clone())
        .transport(postrider::transport::smtp::SmtpTransport::over(world.network.clone()))
        .event_sink(world.seen.clone())
        .clock(world.clock.clone())
        .seed(2)
        .start()
        .await
        .unwrap();
    tokio::time::sleep(24 * HOUR).await;
    assert_eq!(store.usage().await.unwrap().items, 0, "{:?}", second.stats().await);
}

/// A recipient whose domain is as long as an address may have it, and whose DNS does not answer.
#[tokio::test(start_paused = true)]
async fn one_long_domain_does_not_stop_the_engine() {
    let world = World::new();
    let label = "a".repeat(61);
    let long = format!("{label}.{label}.{label}.{}.example", "b".repeat(55));
    world.zone.fail(&long, postrider::dns::DnsErrorKind::ServFail);
    let store = MemoryStorage::new();
    let engine = builder(&world, store.clone(), "").start().await.unwrap();
    engine.submit(message(&[&format!("x@{long}")])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let other = engine.submit(message(&["b@example.net"])).await;
    assert!(other.is_ok(), "{other:?} {:?}", world.seen.summary());
}

/// A store that takes a minute for each insert.
#[tokio::test(start_paused = true)]
async fn stats_and_shutdown_do_not_queue_behind_submissions() {
    let world = World::new();
    let storage = Twisted { insert: Duration::from_secs(60), ..Twisted::new() };
    let engine = builder(&world, storage, "").start().await.unwrap();
    for _ in 0..5_000 {
        let engine = engine.clone();
        tokio::spawn(async move { drop(engine.submit(message(&["b@example.net"])).await) });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = world.elapsed();
    engine.stats().await.unwrap();
    let waited = world.elapsed() - before;
    assert!(waited < 60, "stats() took {waited} s");
}
