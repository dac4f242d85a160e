//! How a [`World`]'s process begins, dies and begins again.

use std::time::Duration;

use super::observation::Seen;
use super::store::FaultyStorage;
use super::{World, WorldError, builder};
use crate::clock::Clock;
use crate::dns::CachingResolver;
use crate::engine::{DeliveryEngine, StartError};

/// A process that dies so often over its start never starts.
const MOST_STARTS: u32 = 1_000;
/// How long a shutdown may take.
const SHUTDOWN: Duration = Duration::from_secs(60);

impl World {
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

    /// All that the process had in memory goes, wherever it stood.
    pub(super) fn end_runtime(&mut self, seen: Seen) {
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
    pub(super) fn start_again(&mut self) {
        let mut failed = String::new();
        for _ in 0..MOST_STARTS {
            match self.start_once() {
                Ok(true) => return,
                Ok(false) => {}
                // Who runs the process tries again.
                Err(error) => failed = format!(", at last: {error}"),
            }
        }
        self.is_told = true;
        let repeat = builder::how_to_repeat(self.seed);
        panic!("seed {}: {MOST_STARTS} starts of the engine failed{failed}\n{repeat}", self.seed);
    }

    /// The first start: again and again if the process dies over it.
    pub(super) fn start(&mut self) -> Result<(), WorldError> {
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
            book.tell(|oracle| oracle.set_policy(policy.clone()));
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
        });
        self.runtime = Some(runtime);
        let (engine, clock) = match started {
            Ok(Some(started)) => started,
            Ok(None) => {
                self.end_runtime(Seen::Crashed);
                return Ok(false);
            }
            Err(error) => {
                self.end_runtime(Seen::NotStarted { error: error.to_string() });
                return Err(error.into());
            }
        };
        self.engine = Some(engine);
        self.store = Some(inner);
        self.clock = Some(clock);
        Ok(true)
    }
}
