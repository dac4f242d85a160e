//! What the engine makes of a store that fails, is damaged or is shared.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

use async_trait::async_trait;
use bytes::Bytes;
use postrider::clock::Timestamp;
use postrider::engine::SubmitError;
use postrider::event::DeliveryEvent;
use postrider::storage::{
    BodyKey, Change, ChangeOutcome, ClaimRequest, Claimed, Filter, Inserted, ItemSummary, Lane, LaneHead,
    ListPosition, MemoryStorage, NewMessage, OutboxEntry, OutboxPosition, Owner, StateRow, Storage,
    StorageError, StorageErrorKind, Usage,
};
use postrider::testing::{Behaviour, Command, SmtpServer};
use postrider::{DeliveryEngine, Policy};
use tokio::sync::Semaphore;

use crate::support::{MX, Recorder, World, idle, message};

type R<T> = Result<T, StorageError>;

/// A store in memory, and what is wrong with it.
#[derive(Clone, Debug)]
struct Troubled {
    inner: MemoryStorage,
    /// Commits of outcomes fail so.
    commits: Arc<Mutex<Option<StorageErrorKind>>>,
    inserts: Arc<Mutex<Option<StorageErrorKind>>>,
    /// Reading the outbox fails so.
    outbox: Arc<Mutex<Option<StorageErrorKind>>>,
    /// What is told as damaged.
    damage: Arc<Mutex<Vec<StorageError>>>,
    /// Outcomes of changes that came too late.
    stale: Arc<AtomicU32>,
    /// Maintenance does not end.
    maintains_for_ever: Arc<AtomicBool>,
    /// Calls wait while there is no permit.
    gate: Arc<Semaphore>,
}

impl Troubled {
    fn new(inner: MemoryStorage) -> Self {
        Self {
            inner,
            commits: Arc::default(),
            inserts: Arc::default(),
            outbox: Arc::default(),
            damage: Arc::default(),
            stale: Arc::default(),
            maintains_for_ever: Arc::default(),
            gate: Arc::new(Semaphore::new(1_000)),
        }
    }

    fn fail(of: &Mutex<Option<StorageErrorKind>>, kind: impl Into<Option<StorageErrorKind>>) {
        *of.lock().unwrap() = kind.into();
    }

    /// The process that has it stands still.
    async fn freeze(&self) {
        self.gate.acquire_many(1_000).await.unwrap().forget();
    }

    fn thaw(&self) {
        self.gate.add_permits(1_000);
    }

    async fn pass(&self) {
        drop(self.gate.acquire().await.unwrap());
    }
}

impl fmt::Display for Troubled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("troubled")
    }
}

#[async_trait]
impl Storage for Troubled {
    async fn insert(&self, messages: Vec<NewMessage>) -> R<Vec<Inserted>> {
        self.pass().await;
        let failure = *self.inserts.lock().unwrap();
        match failure {
            Some(kind) => Err(StorageError::new(kind, "the test says so")),
            None => self.inner.insert(messages).await,
        }
    }

    async fn heads(&self, after: Option<Lane>, limit: usize) -> R<Vec<LaneHead>> {
        self.pass().await;
        self.inner.heads(after, limit).await
    }

    async fn claim(&self, request: ClaimRequest) -> R<Claimed> {
        self.pass().await;
        self.inner.claim(request).await
    }

    async fn renew(&self, owner: Owner, until: Timestamp) -> R<()> {
        self.pass().await;
        self.inner.renew(owner, until).await
    }

    async fn bodies(&self, keys: Vec<BodyKey>) -> R<Vec<R<Bytes>>> {
        self.pass().await;
        self.inner.bodies(keys).await
    }

    async fn commit(&self, changes: Vec<Change>) -> R<Vec<ChangeOutcome>> {
        self.pass().await;
        let failure = *self.commits.lock().unwrap();
        if let Some(kind) = failure
            && changes.iter().any(|change| matches!(change, Change::Update { .. }))
        {
            return Err(StorageError::new(kind, "the test says so"));
        }
        let outcomes = self.inner.commit(changes).await?;
        let stale = outcomes.iter().filter(|outcome| **outcome == ChangeOutcome::Stale).count();
        self.stale.fetch_add(stale as u32, Ordering::Relaxed);
        Ok(outcomes)
    }

    async fn state(&self, after: Option<Vec<u8>>, limit: usize) -> R<Vec<StateRow>> {
        self.inner.state(after, limit).await
    }

    async fn outbox(&self, after: OutboxPosition, limit: usize) -> R<Vec<OutboxEntry>> {
        self.pass().await;
        let failure = *self.outbox.lock().unwrap();
        match failure {
            Some(kind) => Err(StorageError::new(kind, "the test says so")),
            None => self.inner.outbox(after, limit).await,
        }
    }

    async fn list(&self, filter: Filter, after: Option<ListPosition>, limit: usize) -> R<Vec<ItemSummary>> {
        self.inner.list(filter, after, limit).await
    }

    async fn take_damage(&self) -> Vec<StorageError> {
        std::mem::take(&mut self.damage.lock().unwrap())
    }

    async fn usage(&self) -> R<Usage> {
        self.inner.usage().await
    }

    async fn maintain(&self, now: Timestamp) -> R<()> {
        if self.maintains_for_ever.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.inner.maintain(now).await
    }
}

/// Whether the store stopped for good, for each time that the host was told of trouble.
fn trouble(seen: &Recorder) -> Vec<bool> {
    let events = seen.events();
    let trouble = events.iter().filter_map(|event| match event {
        DeliveryEvent::StorageTrouble(trouble) => Some(trouble.stopped),
        _ => None,
    });
    trouble.collect()
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_sends_nothing_again_and_delivery_goes_on_when_it_works() {
    for kind in [StorageErrorKind::Full, StorageErrorKind::Temporary] {
        let world = World::new();
        let server = SmtpServer::new().keep(1_000);
        world.server(MX, &server);
        let store = Troubled::new(MemoryStorage::new());
        let engine = world.engine(store.clone(), "[domain.\"*\"]\nmax-smtp-out = 3").await;
        Troubled::fail(&store.commits, kind);
        for number in 0..500 {
            engine.submit(message(&[&format!("r{number}@example.net")])).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        let paused_at = server.message_count();
        assert!((1..=100).contains(&paused_at), "{paused_at}: it stops with some outcomes unsettled");
        assert!(trouble(&world.seen).len() > 1 && trouble(&world.seen).iter().all(|stopped| !stopped));
        assert!(delivered(&world.seen).is_empty(), "what is not durable is not reported");
        Troubled::fail(&store.commits, None);
        idle(&engine).await;
        assert_eq!(server.message_count(), 500, "{kind:?}: each once");
        assert_eq!(world.seen.summary().iter().filter(|line| line.starts_with("delivered")).count(), 500);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_flush_stops_delivery_and_says_so() {
    let world = World::new();
    let server = SmtpServer::new().keep(1_000).reply(Command::Dot, Behaviour::Slow(Duration::from_secs(1)));
    world.server(MX, &server);
    let store = Troubled::new(MemoryStorage::new());
    let engine = world.engine(store.clone(), "[domain.\"*\"]\nmax-smtp-out = 1").await;
    for number in 0..200 {
        engine.submit(message(&[&format!("r{number}@example.net")])).await.unwrap();
    }
    Troubled::fail(&store.commits, StorageErrorKind::OutcomeUnknown);
    tokio::time::sleep(Duration::from_secs(86_400)).await;
    let sent = server.message_count();
    assert!((1..=5).contains(&sent), "{sent} were under way");
    assert_eq!(trouble(&world.seen), [true]);
    let refused = engine.submit(message(&["late@example.net"])).await.unwrap_err();
    assert!(matches!(refused, SubmitError::Storage(_)) && !refused.is_unknown(), "{refused:?}");
    let report = engine.shutdown(Duration::from_secs(10)).await;
    assert_eq!(report.queued, 200, "nothing was settled");
    assert_eq!(report.unsettled, sent, "a message each, whatever else was to be written");
    // The next process finds what is on disk: here all of it, so that only those in doubt go twice.
    Troubled::fail(&store.commits, None);
    let engine = world.engine(store.inner.reopened(), "").await;
    idle(&engine).await;
    assert_eq!(server.message_count(), 200 + sent);
}

#[tokio::test(start_paused = true)]
async fn an_insert_that_fails_is_refused_and_says_whether_it_may_be_there() {
    for (kind, unknown) in [(StorageErrorKind::Full, false), (StorageErrorKind::OutcomeUnknown, true)] {
        let world = World::new();
        world.server(MX, &SmtpServer::new());
        let store = Troubled::new(MemoryStorage::new());
        let engine = world.engine(store.clone(), "").await;
        Troubled::fail(&store.inserts, kind);
        let refused = engine.submit(message(&["b@example.net"])).await.unwrap_err();
        assert_eq!(refused.is_unknown(), unknown, "{refused:?}");
        assert!(refused.to_string().contains("the test says so"), "{refused}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(trouble(&world.seen), [unknown], "whoever runs it is told, too");
        Troubled::fail(&store.inserts, None);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(engine.submit(message(&["b@example.net"])).await.is_ok(), !unknown, "{kind:?}");
    }
}

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn an_outbox_that_can_not_be_read_is_logged_once_a_minute() {
    let world = World::new();
    world.server(MX, &SmtpServer::new());
    let store = Troubled::new(MemoryStorage::new());
    let engine = world.engine(store.clone(), "").await;
    let log = Log::default();
    let written = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || written.clone()).finish();
    let _logged = tracing::subscriber::set_default(subscriber);
    Troubled::fail(&store.outbox, StorageErrorKind::Temporary);
    engine.submit(message(&["b@example.net"])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(570)).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.matches("the outbox can not be read").count(), 10, "{text}");
    assert_eq!(
        trouble(&world.seen),
        [false; 10],
        "and the host is told, with what else is not in the outbox"
    );
    Troubled::fail(&store.outbox, None);
    idle(&engine).await;
    assert_eq!(delivered(&world.seen).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn damage_that_a_store_met_becomes_an_event() {
    let world = World::new();
    let store = Troubled::new(MemoryStorage::new());
    let tell = |what| store.damage.lock().unwrap().push(StorageError::new(StorageErrorKind::Corrupt, what));
    tell("the first item");
    let engine = world.engine(store.clone(), "").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(trouble(&world.seen), [false], "found while it was opened");
    tell("the second item");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(trouble(&world.seen).len(), 2);
    tell("the third item");
    engine.shutdown(Duration::from_secs(1)).await;
    let texts = format!("{:?}", world.seen.events());
    assert!(["first", "second", "third"].iter().all(|which| texts.contains(which)), "{texts}");
}

#[tokio::test(start_paused = true)]
async fn a_store_in_maintenance_does_not_hold_up_the_end() {
    let world = World::new();
    let store = Troubled::new(MemoryStorage::new());
    store.maintains_for_ever.store(true, Ordering::Relaxed);
    let engine = world.engine(store, "").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ended = tokio::time::timeout(Duration::from_secs(60), engine.shutdown(Duration::from_secs(30))).await;
    assert!(ended.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_does_not_hold_up_the_end_and_what_it_has_is_reported_as_unsettled() {
    let world = World::new();
    let server = SmtpServer::new().reply(Command::Dot, Behaviour::Slow(Duration::from_secs(5)));
    world.server(MX, &server);
    let store = Troubled::new(MemoryStorage::new());
    let engine = world.engine(store.clone(), "").await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.freeze().await;
    let submitting = tokio::spawn({
        let engine = engine.clone();
        async move { engine.submit(message(&["c@example.net"])).await }
    });
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(server.message_count(), 1, "delivered, and its outcome in the hands of the store");
    let begun = tokio::time::Instant::now();
    let report = engine.shutdown(Duration::from_secs(30)).await;
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(10) && took <= Duration::from_secs(30 + 20), "{took:?}");
    assert_eq!(report.unsettled, 1, "{report:?}");
    let refused = submitting.await.unwrap().unwrap_err();
    assert!(refused.is_unknown(), "it may be stored: {refused:?}");
    assert_eq!(trouble(&world.seen), [true]);
    // It wakes up: what it was given was not taken back.
    store.thaw();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let outbox = store.inner.outbox(OutboxPosition::default(), 9).await.unwrap();
    let left = store.inner.usage().await.unwrap();
    assert_eq!((outbox.len(), left.items), (1, 1), "the outcome is stored, and so is the second message");
    let seen = Recorder::default();
    let second = self::engine(&world, store.inner.reopened(), 7, &seen).await;
    idle(&second).await;
    assert_eq!(server.message_count(), 2, "nothing is sent twice");
    let is_delivered = |event: &&DeliveryEvent| matches!(event, DeliveryEvent::Delivered(_));
    assert_eq!(seen.events().iter().filter(is_delivered).count(), 2, "and nothing is lost");
}

async fn engine(world: &World, store: impl Storage, seed: u64, seen: &Recorder) -> DeliveryEngine {
    DeliveryEngine::builder("mta.example.org")
        .storage(store)
        .resolver(world.zone.clone())
        .transport(postrider::transport::smtp::SmtpTransport::over(world.network.clone()))
        .policy(Policy::from_toml("[domain.\"*\"]\nmax-smtp-out = 2").unwrap())
        .event_sink(seen.clone())
        .clock(world.clock.clone())
        .seed(seed)
        .start()
        .await
        .unwrap()
}

fn delivered(seen: &Recorder) -> Vec<String> {
    let mut all: Vec<_> = seen.summary().into_iter().filter(|line| line.starts_with("delivered")).collect();
    all.sort();
    all
}

#[tokio::test(start_paused = true)]
async fn two_engines_on_one_store_share_its_mail() {
    let world = World::new();
    let server = SmtpServer::new().keep(2_000).reply(Command::Dot, Behaviour::Slow(Duration::from_secs(1)));
    world.server(MX, &server);
    let (store, first_saw, second_saw) = (MemoryStorage::new(), Recorder::default(), Recorder::default());
    let first = engine(&world, store.clone(), 1, &first_saw).await;
    for number in 0..600 {
        first.submit(message(&[&format!("r{number}@example.net")])).await.unwrap();
    }
    let second = engine(&world, store.clone(), 2, &second_saw).await;
    for _ in 0..2 {
        idle(&first).await;
        idle(&second).await;
    }
    assert_eq!(server.message_count(), 600, "each once");
    let mut told = [delivered(&first_saw), delivered(&second_saw)].concat();
    told.sort();
    told.dedup();
    assert_eq!(told.len(), 600, "each recipient's end is told by one of them at least");
    // Limits are each engine's own.
    assert_eq!(server.peak_connections(), 4);
    assert_eq!(store.usage().await.unwrap().items, 0);
}

#[tokio::test(start_paused = true)]
async fn mail_of_an_engine_that_died_goes_to_the_other_and_what_it_says_late_is_fenced() {
    let shared = MemoryStorage::new();
    let (one, other) = (World::new(), World::new());
    // The first one's transactions end in two hours, when all is over.
    let two_hours = Behaviour::Slow(Duration::from_secs(7_200));
    let (never, server) = (SmtpServer::new().reply(Command::Dot, two_hours), SmtpServer::new());
    one.server(MX, &never);
    other.server(MX, &server);
    let store = Troubled::new(shared.clone());
    let first = engine(&one, store.clone(), 1, &one.seen).await;
    let _second = engine(&other, shared.clone(), 2, &other.seen).await;
    for number in 0..20 {
        first.submit(message(&[&format!("r{number}@example.net")])).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(never.connections(), 2);
    store.freeze().await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(server.message_count(), 0, "its leases hold for five minutes");
    // Then the other, which has been there all along, sees what is free.
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!((server.message_count(), delivered(&other.seen).len()), (20, 20));
    assert_eq!(shared.usage().await.unwrap().items, 0);
    store.thaw();
    assert_eq!(store.stale.load(Ordering::Relaxed), 0);
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert!(store.stale.load(Ordering::Relaxed) >= 2, "what it had under way comes too late");
    assert_eq!(shared.usage().await.unwrap().items, 0);
    first.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn outcomes_that_an_engine_did_not_live_to_report_are_reported_by_the_other() {
    let shared = MemoryStorage::new();
    let (one, other) = (World::new(), World::new());
    let server = SmtpServer::new();
    one.server(MX, &server);
    let store = Troubled::new(shared.clone());
    let first = engine(&one, store.clone(), 1, &one.seen).await;
    let _second = engine(&other, shared.clone(), 2, &other.seen).await;
    // It stores what becomes of its mail, and dies before anybody is told.
    Troubled::fail(&store.outbox, StorageErrorKind::Temporary);
    first.submit(message(&["b@example.net"])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((server.message_count(), shared.usage().await.unwrap().items), (1, 0));
    store.freeze().await;
    assert_eq!((delivered(&one.seen).len(), delivered(&other.seen).len()), (0, 0));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!((delivered(&one.seen).len(), delivered(&other.seen).len()), (0, 1));
}
