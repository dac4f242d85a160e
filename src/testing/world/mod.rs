//! [`World`]: an engine in a network of its own, in virtual time.

mod book;
mod builder;
mod dns;
mod latency;
mod model;
mod network;
mod observation;
mod oracle;
mod report;
mod server;
mod store;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

pub(super) use builder::how_to_repeat;
pub use builder::{WorldBuilder, WorldError};
pub use dns::{DnsFault, DnsLie};
pub use latency::Latency;
pub use model::{Failure, ModelTls, ServerModel};
pub use observation::{Observation, Seen};
pub use oracle::Violation;
pub use report::{Key, Outcome, ServerReport};
pub use store::{StoreCall, StoreFault, StoreTrouble};

use book::Book;
use dns::LyingResolver;
use network::Network;
use oracle::Snapshot;
use store::{Faults, FaultyStorage};

use crate::clock::{Clock, Timestamp};
use crate::control::{CancelAs, FuseDecision, QueueInfo, QueueSort, Selector};
use crate::dns::{CachingResolver, ZoneError};
use crate::engine::{
    CancelError, CancelReport, ControlError, DeliveryEngine, StartError, Stats, SubmitError,
};
use crate::event::DeliveryEvent;
use crate::message::{Address, Message, MessageId};
use crate::policy::Policy;
use crate::scheduler::Bounds;
use crate::storage::Storage;
use crate::testing::conversation::pause;

/// How often the store is gone through while time passes.
const CHECK_EVERY: Duration = Duration::from_secs(6 * 3600);
/// After this time a run that ends is followed by going through it.
const CHECK_AFTER: Duration = Duration::from_secs(60);
/// A process that dies so often over its start never starts.
const MOST_STARTS: u32 = 1_000;
/// So long no question to the engine remains without an answer, whatever fails.
const UNANSWERED: Duration = Duration::from_secs(2 * 86_400);
/// How long a shutdown may take.
const SHUTDOWN: Duration = Duration::from_secs(60);

/// An engine in a network of its own, in virtual time: days pass in moments, and nothing leaves the process.
///
/// The engine is the real one. DNS is a zone given as text, the receivers are [`ServerModel`]s, the store is in memory
/// or the host's own, and all of them can be made to fail. What happens is seen, and judged: an oracle checks all along
/// that no mail is lost or sent twice, that limits and rates hold, that nothing is tried before it is due, and more
/// ([`Violation`] has the list). Methods that let time pass panic at a violation, with the seed and the end of the trace, and
/// so does the end of a world of which one was not told; any method does if the store can not be opened again after a crash.
/// Methods that ask for what was seen panic rather than answer by a part of it, or about an address that is none.
///
/// The same seed and the same calls give the same trace, octet by octet. Without a seed of its own a world takes that in
/// the environment variable `POSTRIDER_SEED`, else 1.
///
/// A world has a runtime of its own: it is used from plain functions, such as `#[test]`s, not from inside another
/// runtime. See the [guide](crate::testing) for how to test a policy with it.
///
/// ```
/// use std::time::Duration;
/// use postrider::message::Message;
/// use postrider::testing::{Outcome, ServerModel, World};
///
/// let mut world = World::builder()
///     .zone("example.net. MX 10 mx.example.net.\nmx.example.net. A 192.0.2.1")
///     .server("192.0.2.1", ServerModel::new().with_greylist(Duration::from_secs(300)))
///     .build()?;
/// let message = Message::new("news@sender.example", ["bob@example.net"], "Subject: hi\r\n\r\nhi\r\n")?;
/// let id = world.submit(message)?;
/// world.run_until_idle(Duration::from_secs(86_400));
/// assert_eq!(world.outcome(id, "bob@example.net"), Outcome::Delivered);
/// assert_eq!(world.attempts(id, "bob@example.net"), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct World {
    seed: u64,
    seeds: fastrand::Rng,
    hostname: String,
    policy: Policy,
    bounds: Bounds,
    book: Book,
    network: Network,
    dns: LyingResolver,
    open_store: Box<dyn FnMut() -> Arc<dyn Storage> + Send>,
    faults: Faults,
    /// These four are `None` only while an engine is being exchanged for another.
    runtime: Option<Runtime>,
    engine: Option<DeliveryEngine>,
    store: Option<Arc<dyn Storage>>,
    clock: Option<Clock>,
    next_check: Duration,
    /// The last check.
    checked: Duration,
    /// The seed was said with what failed.
    is_told: bool,
}

impl World {
    /// Describes a world.
    pub fn builder() -> WorldBuilder {
        WorldBuilder::new()
    }

    /// The seed that repeats it.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Since the world's beginning. No step of the clock moves it.
    pub fn elapsed(&self) -> Duration {
        self.within(|| self.book.elapsed())
    }

    /// What the engine's clock shows.
    pub fn now(&self) -> Timestamp {
        self.within(|| self.book.now())
    }

    /// Submits a message, as [`DeliveryEngine::submit`].
    ///
    /// # Errors
    /// [`SubmitError`]. If the process dies meanwhile, [`SubmitError::Stopped`]: it may have been stored.
    pub fn submit(&mut self, message: Message) -> Result<MessageId, SubmitError> {
        let hold_until = message.hold_until;
        let content = network::content_hash(&message.body);
        let mut recipients = message.recipients().to_vec();
        recipients.sort();
        recipients.dedup();
        let result = self.until_stopped(async move |engine| engine.submit(message).await);
        let died = result.is_none();
        let result = result.unwrap_or(Err(SubmitError::Stopped));
        if let Ok(id) = result {
            self.book.submitted(id, content);
        }
        let seen = match &result {
            Ok(id) => Seen::Accepted { message: *id, recipients, hold_until },
            Err(error) => Seen::Refused { error: error.to_string(), unknown: died || error.is_unknown() },
        };
        self.see(seen);
        self.raise_if_crashing();
        result
    }

    /// Lets time pass.
    ///
    /// # Panics
    /// At a violation: [`World::try_run_for`] returns it.
    #[allow(clippy::panic, reason = "it fails a test, as assert does")]
    pub fn run_for(&mut self, time: Duration) {
        if let Err(violation) = self.try_run_for(time) {
            panic!("{violation}");
        }
    }

    /// Lets time pass until nothing is queued any more, at most so long. Returns whether nothing is.
    ///
    /// # Panics
    /// At a violation: [`World::try_run_until_idle`] returns it.
    #[allow(clippy::panic, reason = "it fails a test, as assert does")]
    pub fn run_until_idle(&mut self, limit: Duration) -> bool {
        self.try_run_until_idle(limit).unwrap_or_else(|violation| panic!("{violation}"))
    }

    /// As [`World::run_for`].
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn try_run_for(&mut self, time: Duration) -> Result<(), Violation> {
        let end = self.elapsed().saturating_add(time);
        if end.saturating_sub(self.checked) < CHECK_AFTER {
            return self.run_to(end, false).map(drop);
        }
        // Looking takes a moment: it ends when the time does.
        self.run_to(end.saturating_sub(oracle::MOMENT), false)?;
        self.verify()
    }

    /// As [`World::run_until_idle`].
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn try_run_until_idle(&mut self, limit: Duration) -> Result<bool, Violation> {
        let end = self.elapsed().saturating_add(limit);
        let idle = self.run_to(end, true)?;
        self.look(idle)
    }

    fn run_to(&mut self, end: Duration, until_idle: bool) -> Result<bool, Violation> {
        loop {
            self.raise_violation()?;
            let now = self.elapsed();
            let left = end.min(self.next_check).saturating_sub(now);
            let idle = self.until_stopped(async move |engine| {
                if !until_idle {
                    pause(left).await;
                    return false;
                }
                match tokio::time::timeout(left, engine.wait_idle()).await {
                    Ok(idle) if idle.is_ok() => true,
                    // An engine that was stopped is never idle, and says so at once.
                    Ok(_) => {
                        pause(left).await;
                        false
                    }
                    Err(_) => false,
                }
            });
            self.raise_violation()?;
            self.raise_if_crashing();
            let now = self.elapsed();
            if now >= self.next_check {
                self.verify()?;
            }
            match idle {
                Some(true) => return Ok(true),
                _ if now >= end => return Ok(false),
                _ => {}
            }
        }
    }

    /// Goes through the store and the engine's counters, and lets the oracle judge. While time passes this happens
    /// every six hours of it, and whenever a run ends a minute or more after the last time.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn verify(&mut self) -> Result<(), Violation> {
        self.look(false).map(drop)
    }

    /// `idle`: the engine has said that nothing is queued. Returns whether nothing is, as far as it was asked.
    fn look(&mut self, idle: bool) -> Result<bool, Violation> {
        self.checked = self.elapsed();
        self.next_check = self.checked.saturating_add(CHECK_EVERY);
        let (book, store) = (self.book.clone(), self.store.clone());
        let is_empty = self.until_stopped(async move |engine| {
            let Some(store) = store else { return false };
            for try_again in [true, true, false] {
                let looked = match Snapshot::take(&engine, &*store, &book).await {
                    Ok(snapshot) => book.check(&snapshot).map(|()| snapshot),
                    Err(broken) => Err(broken),
                };
                match looked {
                    Ok(snapshot) => return idle && book.is_idle(&snapshot),
                    // Something moved meanwhile: it is looked at once more.
                    Err(_) if try_again => {}
                    Err(broken) => book.broke(broken),
                }
            }
            false
        });
        self.raise_if_crashing();
        self.raise_violation()?;
        Ok(is_empty.unwrap_or(false))
    }

    /// The process dies now, and starts again on what is in the store.
    pub fn crash(&mut self) {
        self.end_runtime(Seen::Crashed);
        self.start_again();
    }

    /// Shuts the engine down in good order, and starts it again.
    pub fn restart(&mut self) {
        let report = self.until_stopped(async |engine| engine.shutdown(SHUTDOWN).await);
        let cut = report.is_some_and(|report| report.interrupted + report.unsettled > 0);
        let seen = if self.book.is_crashing() { Seen::Crashed } else { Seen::Stopped { cut } };
        self.end_runtime(seen);
        self.start_again();
    }

    /// The wall clock is stepped: it shows `to` now. The engine takes notice of it within a minute, and a new process at
    /// once.
    pub fn step_clock(&mut self, to: Timestamp) {
        if let Some(clock) = self.clock.clone() {
            self.within(|| clock.step(to));
        }
        self.see(Seen::ClockStepped { to });
    }

    /// Puts another policy in place: [`DeliveryEngine::set_policy`].
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy.clone();
        self.until_stopped(async |engine| engine.set_policy(policy).await);
        // Also if the process died over it: it may have gone by the new one already.
        self.within(|| self.book.replace_policy(self.policy.clone()));
        self.raise_if_crashing();
    }

    /// Replaces the zone. What the engine was told before holds until its TTL is over.
    ///
    /// # Errors
    /// [`ZoneError`]; the old zone stays.
    pub fn set_zone(&mut self, zone: &str) -> Result<(), ZoneError> {
        self.dns.zone().set_zone(zone)
    }

    /// DNS lies so from now on, in place of what it was told before.
    ///
    /// # Errors
    /// [`WorldError`]: what is wrong with one of them. What was told before stays.
    pub fn set_dns_faults(&mut self, faults: impl IntoIterator<Item = DnsFault>) -> Result<(), WorldError> {
        let faults: Vec<DnsFault> = faults.into_iter().collect();
        faults.iter().try_for_each(DnsFault::check)?;
        self.dns.set_faults(faults);
        Ok(())
    }

    /// A server behaves so from now on. What it remembers stays. `address`: with a port, or of the policy's.
    ///
    /// # Errors
    /// [`WorldError`]: what is wrong with address or model.
    pub fn set_server(&mut self, address: &str, model: ServerModel) -> Result<(), WorldError> {
        model.problem()?;
        self.network.set(builder::address(address, &self.policy)?, model);
        Ok(())
    }

    /// Plants faults in the store, beside those still to come.
    pub fn add_store_faults(&mut self, faults: impl IntoIterator<Item = StoreFault>) {
        self.faults.add(faults);
    }

    /// Takes back all faults of the store still to come.
    pub fn clear_store_faults(&mut self) {
        self.faults.clear();
    }

    /// Writes a line of the test's own into the trace.
    pub fn note(&mut self, note: impl Into<String>) {
        self.see(Seen::Note(note.into()));
    }

    /// Says something to the engine, or asks it: `run` is called with its handle. `None`: the process died meanwhile, or an
    /// invariant broke, which the next method that lets time pass tells, and else the world's end.
    ///
    /// What changes the rules or makes mail due before its time is to be said by the world's own methods, such as
    /// [`World::set_policy`] and [`World::retry_now`]: the oracle would take it for a fault. Mail that is submitted
    /// through it is judged, but for being lost and for its content: [`World::submit`] knows what was accepted.
    pub fn with_engine<T>(&mut self, run: impl AsyncFnOnce(DeliveryEngine) -> T) -> Option<T> {
        let answer = self.until_stopped(run);
        self.raise_if_crashing();
        answer
    }

    /// [`DeliveryEngine::stats`].
    pub fn stats(&mut self) -> Stats {
        self.with_engine(async |engine| engine.stats().await).and_then(Result::ok).unwrap_or_default()
    }

    /// [`DeliveryEngine::queues`], all of them by name.
    pub fn queues(&mut self) -> Vec<QueueInfo> {
        let queues = self.with_engine(async |engine| engine.queues(QueueSort::Name, usize::MAX).await);
        queues.and_then(Result::ok).unwrap_or_default()
    }

    /// What a message waits for: [`DeliveryEngine::why`], a line for each of its items.
    pub fn why(&mut self, message: MessageId) -> Vec<String> {
        let waits = self.with_engine(async move |engine| engine.why(message).await);
        lines(waits.and_then(Result::ok))
    }

    /// What a queue waits for: [`DeliveryEngine::why_queue`], a line for each source, and one for each of its
    /// destinations.
    pub fn why_queue(&mut self, name: &str) -> Vec<String> {
        let name = name.to_owned();
        let waits = self.with_engine(async move |engine| engine.why_queue(&name).await);
        let mut told = Vec::new();
        for queue in waits.and_then(Result::ok).unwrap_or_default() {
            told.push(queue.to_string());
            told.extend(queue.destinations.iter().map(|destination| format!("    {destination}")));
            if queue.more_destinations > 0 {
                told.push(format!("    and {} destinations more", queue.more_destinations));
            }
        }
        told
    }

    /// [`DeliveryEngine::cancel_all`].
    ///
    /// # Errors
    /// As there.
    pub fn cancel_all(
        &mut self,
        selector: impl Into<Selector>,
        ending: CancelAs,
    ) -> Result<CancelReport, CancelError> {
        let selector = selector.into();
        let told = self.tell(format!("cancel_all {selector:?}"), async move |engine| {
            engine.cancel_all(selector, ending).await
        });
        told.unwrap_or(Err(CancelError::Stopped(crate::engine::Stopped)))
    }

    /// [`DeliveryEngine::pause`].
    ///
    /// # Errors
    /// As there.
    pub fn pause(&mut self, selector: impl Into<Selector>) -> Result<(), ControlError> {
        let selector = selector.into();
        self.control(format!("pause {selector:?}"), async move |engine| engine.pause(selector).await)
    }

    /// [`DeliveryEngine::resume`].
    ///
    /// # Errors
    /// As there.
    pub fn resume(&mut self, selector: impl Into<Selector>) -> Result<bool, ControlError> {
        let selector = selector.into();
        self.control(format!("resume {selector:?}"), async move |engine| engine.resume(selector).await)
    }

    /// [`DeliveryEngine::retry_now`].
    ///
    /// # Errors
    /// As there.
    pub fn retry_now(&mut self, selector: impl Into<Selector>) -> Result<u64, ControlError> {
        let selector = selector.into();
        self.control(format!("retry_now {selector:?}"), async move |engine| engine.retry_now(selector).await)
    }

    /// [`DeliveryEngine::set_backoff`].
    ///
    /// # Errors
    /// As there.
    pub fn set_backoff(&mut self, selector: impl Into<Selector>, backoff: bool) -> Result<u64, ControlError> {
        let selector = selector.into();
        self.control(format!("set_backoff {selector:?} {backoff}"), async move |engine| {
            engine.set_backoff(selector, backoff).await
        })
    }

    /// [`DeliveryEngine::enable_source`].
    ///
    /// # Errors
    /// As there.
    pub fn enable_source(&mut self, queue: &str, source: &str) -> Result<bool, ControlError> {
        let (of, name) = (queue.to_owned(), source.to_owned());
        self.control(format!("enable_source {queue} {source}"), async move |engine| {
            engine.enable_source(&of, &name).await
        })
    }

    /// [`DeliveryEngine::decide_fuse`].
    ///
    /// # Errors
    /// As there.
    pub fn decide_fuse(&mut self, queue: &str, decision: FuseDecision) -> Result<u64, ControlError> {
        let queue = queue.to_owned();
        self.control(format!("decide_fuse {queue} {decision:?}"), async move |engine| {
            engine.decide_fuse(&queue, decision).await
        })
    }

    fn control<T>(
        &mut self,
        what: String,
        run: impl AsyncFnOnce(DeliveryEngine) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        self.tell(what, run).unwrap_or(Err(ControlError::Stopped(crate::engine::Stopped)))
    }

    /// The oracle hears of it before the engine acts on it.
    fn tell<T>(&mut self, what: String, run: impl AsyncFnOnce(DeliveryEngine) -> T) -> Option<T> {
        // Mail that is stored is gone through page by page: until it is done, and no longer.
        self.see(Seen::Control(what.clone()));
        let answer = self.with_engine(run);
        self.see(Seen::Control(format!("{what}: done")));
        answer
    }

    /// All that was seen, in order: the first four million.
    pub fn trace(&self) -> Vec<Observation> {
        self.book.trace()
    }

    /// The trace as text, one line for each observation.
    pub fn trace_text(&self) -> String {
        self.book.trace_text()
    }

    /// What was seen of one message.
    ///
    /// # Panics
    /// Once more was seen than the trace holds.
    pub fn timeline(&self, message: MessageId) -> Vec<Observation> {
        self.assert_whole();
        self.book.timeline(message)
    }

    /// How a recipient of a message ended.
    ///
    /// # Panics
    /// If `recipient` is no address.
    pub fn outcome(&self, message: MessageId, recipient: &str) -> Outcome {
        self.final_event(message, recipient).map_or(Outcome::Queued, |event| Outcome::of(&event))
    }

    /// The final event of a recipient of a message.
    ///
    /// # Panics
    /// If `recipient` is no address.
    pub fn final_event(&self, message: MessageId, recipient: &str) -> Option<DeliveryEvent> {
        self.book.final_event(message, &mailbox(recipient))
    }

    /// How many recipients ended so. [`Outcome::Queued`] is not counted.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.book.outcomes().get(&outcome).copied().unwrap_or(0)
    }

    /// How often a recipient of a message was offered to a server.
    ///
    /// # Panics
    /// If `recipient` is no address, and once more was seen than the trace holds.
    pub fn attempts(&self, message: MessageId, recipient: &str) -> u64 {
        let recipient = mailbox(recipient);
        let offered = |observation: &Observation| match &observation.seen {
            Seen::Offered { recipients, .. } => recipients.contains(&recipient),
            _ => false,
        };
        self.timeline(message).iter().filter(|observation| offered(observation)).count() as u64
    }

    /// The most connections there were at once, open or being opened. A connection counts for the queue that wanted it.
    pub fn peak_connections(&self, key: Key) -> u64 {
        self.book.peak(&key)
    }

    /// What the server at an address saw. Without a port: at all its ports together.
    ///
    /// # Panics
    /// If `address` is none.
    pub fn server(&self, address: &str) -> ServerReport {
        let Ok(ip) = address.parse::<IpAddr>() else {
            return self.book.server(socket(address, &self.policy));
        };
        let mut sum = ServerReport::default();
        self.servers().filter(|(address, _)| address.ip() == ip).for_each(|(_, report)| sum.add(&report));
        sum
    }

    /// What all servers saw that were ever connected to.
    pub fn servers(&self) -> impl Iterator<Item = (SocketAddr, ServerReport)> + use<> {
        self.book.servers().into_iter()
    }

    /// The most recipients that the server at an address was offered in any stretch of time of this length.
    ///
    /// # Panics
    /// If `address` is none, and once more was seen than the trace holds.
    pub fn most_offered_in(&self, address: &str, window: Duration) -> u64 {
        self.assert_whole();
        let address = socket(address, &self.policy);
        report::most_offered_in(&self.book.trace(), address, window)
    }

    /// An answer by a part of what was seen would be a wrong one.
    #[allow(clippy::panic, reason = "it fails a test, as assert does")]
    fn assert_whole(&self) {
        if self.book.is_cut_off() {
            panic!("more was seen than the trace holds: World::server and World::count go on counting");
        }
    }

    fn see(&self, seen: Seen) {
        self.within(|| self.book.see(seen));
    }

    /// Runs something that reads the clocks where these are known.
    fn within<T>(&self, run: impl FnOnce() -> T) -> T {
        let _guard = self.runtime.as_ref().map(Runtime::enter);
        run()
    }

    /// Runs the engine's runtime until this has its answer; `None`: the process died, or an invariant broke, first.
    fn until_stopped<T>(&mut self, run: impl AsyncFnOnce(DeliveryEngine) -> T) -> Option<T> {
        let (runtime, engine) = (self.runtime.as_ref()?, self.engine.clone()?);
        let book = self.book.clone();
        runtime.block_on(async move {
            tokio::select! {
                biased;
                () = book.stopped() => None,
                answer = run(engine) => Some(answer),
                () = pause(UNANSWERED) => {
                    book.unanswered(UNANSWERED);
                    None
                }
            }
        })
    }

    fn raise_violation(&mut self) -> Result<(), Violation> {
        let broken = self.within(|| self.book.take_broken());
        let Some((broken, at, recent)) = broken else { return Ok(()) };
        // Of the engine as it is now, a moment later.
        let mut why = Vec::new();
        if !self.book.is_crashing() {
            why.extend(broken.message.map(|message| self.why(message)).unwrap_or_default());
            why.extend(broken.queue.clone().map(|queue| self.why_queue(&queue)).unwrap_or_default());
        }
        self.is_told = true;
        Err(Violation::new(self.seed, (broken, at, recent), why))
    }

    fn raise_if_crashing(&mut self) {
        if self.book.is_crashing() {
            self.crash();
        }
    }

    /// All that the process had in memory goes, wherever it stood.
    fn end_runtime(&mut self, seen: Seen) {
        self.within(|| {
            self.book.see(seen);
            self.book.close_all();
            self.book.stand();
        });
        self.engine = None;
        self.store = None;
        self.clock = None;
        drop(self.runtime.take());
    }

    #[allow(clippy::panic, reason = "it fails a test: a store that can not be read again has lost all mail")]
    fn start_again(&mut self) {
        if let Err(error) = self.start() {
            self.is_told = true;
            let repeat = builder::how_to_repeat(self.seed);
            panic!("seed {}: the engine does not start again: {error}\n{repeat}", self.seed);
        }
    }

    /// Starts, again and again if the process dies over it.
    fn start(&mut self) -> Result<(), WorldError> {
        for _ in 0..MOST_STARTS {
            if self.start_once()? {
                return Ok(());
            }
        }
        Err(WorldError::Start(format!("it died {MOST_STARTS} times over its start")))
    }

    /// `false`: the process died.
    fn start_once(&mut self) -> Result<bool, WorldError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.map_err(|error| WorldError::Runtime(error.to_string()))?;
        let inner = {
            let _guard = runtime.enter();
            (self.open_store)()
        };
        let (book, start) = (self.book.clone(), self.book.now());
        let storage = FaultyStorage { inner: inner.clone(), faults: self.faults.clone(), book: book.clone() };
        let (dns, network) = (self.dns.clone(), self.network.clone());
        let (hostname, policy, seed) = (self.hostname.clone(), self.policy.clone(), self.seeds.u64(..));
        let bounds = self.bounds;
        let started = runtime.block_on(async move {
            let clock = Clock::stepped_by_hand(start);
            book.run(clock.clone());
            book.set_policy(policy.clone());
            book.see(Seen::Started);
            let engine = DeliveryEngine::builder(hostname)
                .storage(storage)
                .resolver(CachingResolver::new(dns, clock.clone()))
                .transport(network)
                .policy(policy)
                .event_sink(book.clone())
                .clock(clock.clone())
                .seed(seed)
                .bounds(bounds);
            tokio::select! {
                biased;
                () = book.crashed() => Ok::<_, StartError>(None),
                engine = engine.start() => Ok(Some((engine?, clock))),
            }
        })?;
        self.runtime = Some(runtime);
        let Some((engine, clock)) = started else {
            self.end_runtime(Seen::Crashed);
            return Ok(false);
        };
        self.engine = Some(engine);
        self.store = Some(inner);
        self.clock = Some(clock);
        Ok(true)
    }
}

/// A typo must not pass for somebody who got nothing.
#[allow(clippy::panic, reason = "it fails a test, as assert does")]
fn mailbox(text: &str) -> Address {
    Address::parse(text).unwrap_or_else(|error| panic!("a recipient: {error}"))
}

#[allow(clippy::panic, reason = "it fails a test, as assert does")]
fn socket(text: &str, policy: &Policy) -> SocketAddr {
    builder::address(text, policy).unwrap_or_else(|error| panic!("{error}"))
}

fn lines<T: std::fmt::Display>(waits: impl IntoIterator<Item = T>) -> Vec<String> {
    let text: Vec<String> = waits.into_iter().map(|waits| waits.to_string()).collect();
    text.iter().flat_map(|text| text.lines()).map(str::to_owned).collect()
}

impl Drop for World {
    #[allow(clippy::print_stderr, reason = "a test failed, and its message does not know the seed")]
    #[allow(clippy::panic, reason = "it fails a test that did not look")]
    fn drop(&mut self) {
        if !self.is_told {
            self.within(|| self.book.settle_all());
            if std::thread::panicking() {
                eprintln!("the world's seed is {}; {}", self.seed, builder::how_to_repeat(self.seed));
                if let Some(broken) = self.within(|| self.book.take_broken()) {
                    eprintln!("{}", Violation::new(self.seed, broken, Vec::new()));
                }
            } else if let Err(violation) = self.raise_violation() {
                panic!("{violation}");
            }
        }
        // Connections close with the runtime, and ask what time it is.
        if self.runtime.is_some() {
            self.within(|| self.book.stand());
        }
        self.engine = None;
        drop(self.runtime.take());
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("seed", &self.seed)
            .field("elapsed", &self.elapsed())
            .finish_non_exhaustive()
    }
}
