//! [`World`]: an engine in a network of its own, in virtual time.

mod book;
mod builder;
mod dns;
mod host;
mod latency;
mod life;
mod model;
mod network;
mod observation;
mod oracle;
mod questions;
mod report;
mod server;
mod store;
#[cfg(test)]
mod tests;

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
use store::Faults;

use crate::clock::{Clock, Timestamp};
use crate::dns::ZoneError;
use crate::engine::{DeliveryEngine, SubmitError};
use crate::message::{Message, MessageId};
use crate::policy::Policy;
use crate::scheduler::Bounds;
use crate::storage::Storage;
use crate::testing::conversation::pause;

/// How often the store is gone through while time passes.
const CHECK_EVERY: Duration = Duration::from_secs(6 * 3600);
/// After this time a run that ends is followed by going through it, if enough happened.
const CHECK_AFTER: Duration = Duration::from_secs(60);
/// So long no question to the engine remains without an answer, whatever fails.
const UNANSWERED: Duration = Duration::from_secs(2 * 86_400);
/// An engine in a network of its own, in virtual time: days pass in moments, and nothing leaves the process.
///
/// The engine is the real one. DNS is a zone given as text, the receivers are [`ServerModel`]s, the store is in memory
/// or the host's own, and all of them can be made to fail. What happens is seen, and judged: an oracle checks all along
/// that no mail is lost or sent twice, that limits and rates hold, that nothing is tried before it is due, and more
/// ([`Violation`] has the list). Methods that let time pass panic at a violation, with the seed and the end of the trace, and
/// so does the end of a world of which one was not told; any method does if the store can not be opened again after a crash.
/// Methods that ask for what was seen panic rather than answer by a part of it, or about an address that is none.
///
/// The same seed and the same calls give the same trace, octet by octet, over a store without threads of its own. Without a seed of its own a world takes that in
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
        let eight_bit = !message.body.is_ascii();
        let content = network::content_hash(&message.reverse_path, eight_bit, &message.body);
        if let Some(id) = message.id {
            self.book.submitted(id, content);
        }
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
        if end.saturating_sub(self.checked) < CHECK_AFTER || !self.book.is_worth_a_look() {
            self.run_to(end, false)?;
            self.within(|| self.book.settle_until(end));
            return self.raise_violation();
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
    /// every six hours of it, and whenever a run ends a minute or more after the last time, and since then as much was
    /// seen as there are messages: going through many of them takes a moment.
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
