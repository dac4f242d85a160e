//! Configuring and starting an engine.

use std::sync::Arc;
use std::time::Duration;

use super::DeliveryEngine;
use super::driver::{Driver, HEADS_PAGE, LEASE, Parts};
use super::reporter::{Reporter, Streams};
use crate::clock::Clock;
use crate::dns::Resolver;
use crate::event::EventSink;
use crate::message::{Domain, DomainError};
use crate::mta_sts::{Policies, PolicyFetcher, is_policy};
use crate::policy::Policy;
use crate::scheduler::{Bounds, Event, Scheduler};
use crate::storage::{OutboxPosition, Owner, Storage, StorageError};
use crate::tls_report::TlsCounts;
use crate::transport::Transport;
use crate::transport::smtp::SmtpTransport;

/// Submissions, and other requests of the host, that wait for the driver.
const SUBMISSIONS: usize = 256;
const REQUESTS: usize = 64;
/// How often the store is kept up, and what may be asked for.
const UPKEEP: Duration = Duration::from_secs(60);
const LEAST_UPKEEP: Duration = Duration::from_millis(10);
const MOST_UPKEEP: Duration = Duration::from_secs(86_400);
/// Rows read at a time on starting.
const PAGE: usize = 1_000;

/// Configures a [`DeliveryEngine`].
#[must_use = "an engine runs once it is started"]
pub struct EngineBuilder {
    hostname: String,
    storage: Option<Arc<dyn Storage>>,
    resolver: Option<Arc<dyn Resolver>>,
    transport: Arc<dyn Transport>,
    policy_fetcher: Option<Arc<dyn PolicyFetcher>>,
    policy: Policy,
    sink: Arc<dyn EventSink>,
    clock: Option<Clock>,
    seed: Option<u64>,
    upkeep_interval: Duration,
    bounds: Bounds,
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The host name for EHLO.
    #[error("hostname: {0}")]
    Hostname(#[source] DomainError),
    /// No store was given. Mail is worth a decision where it lies.
    #[error(
        "an engine needs a store: give DiskStorage, or MemoryStorage if mail may be lost with the process"
    )]
    NoStorage,
    /// No resolver was given.
    #[error("an engine needs a resolver: give HickoryResolver, or StaticResolver in tests")]
    NoResolver,
    /// The store could not be read.
    #[error("the store: {0}")]
    Storage(#[from] StorageError),
}

impl EngineBuilder {
    pub(super) fn new(hostname: String) -> Self {
        Self {
            hostname,
            storage: None,
            resolver: None,
            transport: Arc::new(SmtpTransport::default()),
            policy_fetcher: default_fetcher(),
            policy: Policy::default(),
            sink: Arc::new(()),
            clock: None,
            seed: None,
            upkeep_interval: UPKEEP,
            bounds: Bounds::default(),
        }
    }

    /// Where mail lies until it is delivered. Required.
    pub fn storage(mut self, storage: impl Storage) -> Self {
        self.storage = Some(Arc::new(storage));
        self
    }

    /// Who answers DNS questions. Default with the feature `hickory`: the system's name servers.
    pub fn resolver(mut self, resolver: impl Resolver) -> Self {
        self.resolver = Some(Arc::new(resolver));
        self
    }

    /// Who talks to receivers. Default: [`SmtpTransport`] over TCP.
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.transport = Arc::new(transport);
        self
    }

    /// Who gets the MTA-STS policies of domains. Default with the feature `mta-sts`: `HttpsFetcher`, with the platform's
    /// roots. Without the feature a policy can not ask for MTA-STS, and nobody is asked.
    pub fn policy_fetcher(mut self, fetcher: impl PolicyFetcher) -> Self {
        self.policy_fetcher = Some(Arc::new(fetcher));
        self
    }

    /// How mail is sent. Default: [`Policy::default`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Who is told of events. Default: nobody, and outcomes are acknowledged at once.
    pub fn event_sink(mut self, sink: impl EventSink) -> Self {
        self.sink = Arc::new(sink);
        self
    }

    /// Where the time comes from. Default: [`Clock::system`].
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Makes ids and choices repeatable: for tests only, since two engines of one seed make the same ids.
    /// Default: drawn from the system.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// How often the store is to give back space and forget what is old ([`Storage::maintain`]), and is asked for damage that it met.
    /// Default: a minute; from 10 ms to a day. On an idle store it costs next to nothing.
    pub fn upkeep_interval(mut self, every: Duration) -> Self {
        self.upkeep_interval = every.clamp(LEAST_UPKEEP, MOST_UPKEEP);
        self
    }

    /// The most octets of message content in memory: one half for messages being sent, one quarter for fresh ones
    /// that wait for their first attempt, one quarter for those being stored. Of the half, a quarter is for small messages alone,
    /// those of at most a 256th of it: so receivers that take large ones slowly hold up large ones, and these go in turn. A message
    /// larger than its part is admitted alone. Default: 128 MiB.
    pub fn body_memory(mut self, octets: usize) -> Self {
        self.bounds.transit_octets = octets / 2;
        self.bounds.held_octets = octets / 4;
        self.bounds.submission_octets = (octets / 4).max(1);
        self
    }

    /// What is held in memory.
    #[cfg(feature = "testing")]
    pub(crate) fn bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// Starts the engine on the current tokio runtime. Mail in the store goes on where it stood.
    ///
    /// # Cancel safety
    /// May be dropped; nothing was started then.
    ///
    /// # Errors
    /// [`StartError`], before anything was started.
    pub async fn start(self) -> Result<DeliveryEngine, StartError> {
        let hostname = Domain::parse(&self.hostname).map_err(StartError::Hostname)?;
        let storage = self.storage.ok_or(StartError::NoStorage)?;
        let resolver = match self.resolver {
            Some(resolver) => resolver,
            None => default_resolver()?,
        };
        let seed = self.seed.unwrap_or_else(random);
        let mut seeds = fastrand::Rng::with_seed(seed);
        let owner = Owner(seeds.u64(..));
        let clock = self.clock.unwrap_or_else(Clock::system);
        let hostname: Arc<str> = hostname.as_str().into();
        let mut scheduler =
            Scheduler::new(self.policy.clone(), hostname.clone(), owner, seeds.u64(..), self.bounds);
        let usage = storage.usage().await?;
        let outbox = storage.outbox(OutboxPosition::default(), 1).await?;
        let tls_counts = Arc::new(TlsCounts::new(clock.clone()));
        let keep = |fetcher| Arc::new(Policies::new(fetcher, clock.clone(), tls_counts.clone()));
        let policies = self.policy_fetcher.map(keep);
        recover(&mut scheduler, policies.as_deref(), &*storage, &clock).await?;
        // Mail may be claimed as it is inserted: others that share the store have to know until when.
        storage.renew(owner, clock.now() + LEASE).await?;

        let (submissions, submitted) = tokio::sync::mpsc::channel(SUBMISSIONS);
        let (requests, requested) = tokio::sync::mpsc::channel(REQUESTS);
        let streams = Streams::default();
        let parts = Parts {
            storage: storage.clone(),
            resolver,
            policies,
            tls_counts,
            transport: self.transport,
            clock: clock.clone(),
            hostname,
            owner,
            upkeep_interval: self.upkeep_interval,
            random: seeds,
        };
        let (driver, handover) =
            Driver::new(scheduler, parts, self.policy, (submitted, requested), usage.outbox);
        let more = !outbox.is_empty();
        let reporter = Reporter::new(storage, self.sink, streams.clone(), handover, clock, more);
        tokio::spawn(driver.run(reporter, streams.clone()));
        Ok(DeliveryEngine { submissions, requests, streams })
    }
}

/// Reads retry clocks and the heads of lanes, a page at a time: as much as there are destinations, not messages.
async fn recover(
    scheduler: &mut Scheduler,
    policies: Option<&Policies>,
    storage: &dyn Storage,
    clock: &Clock,
) -> Result<(), StartError> {
    let mut after = None;
    loop {
        let mut rows = storage.state(after, PAGE).await?;
        let Some(last) = rows.last() else { break };
        after = Some(last.key.clone());
        match policies {
            Some(policies) => policies.restore(&mut rows, clock.now()),
            // Another build may want them again.
            None => rows.retain(|row| !is_policy(row)),
        }
        scheduler.handle(clock.now(), Event::State(rows));
    }
    let mut after = None;
    loop {
        let heads = storage.heads(after, HEADS_PAGE).await?;
        let Some(last) = heads.last() else { break };
        after = Some(last.lane.clone());
        scheduler.handle(clock.now(), Event::Heads(heads));
    }
    Ok(())
}

#[cfg(feature = "hickory")]
fn default_resolver() -> Result<Arc<dyn Resolver>, StartError> {
    match crate::dns::HickoryResolver::from_system() {
        Ok(resolver) => Ok(Arc::new(resolver)),
        Err(error) => {
            tracing::warn!(%error, "the system's name servers are not known");
            Err(StartError::NoResolver)
        }
    }
}

#[cfg(feature = "mta-sts")]
fn default_fetcher() -> Option<Arc<dyn PolicyFetcher>> {
    Some(Arc::new(crate::mta_sts::HttpsFetcher::default()))
}

#[cfg(not(feature = "mta-sts"))]
fn default_fetcher() -> Option<Arc<dyn PolicyFetcher>> {
    None
}

#[cfg(not(feature = "hickory"))]
fn default_resolver() -> Result<Arc<dyn Resolver>, StartError> {
    Err(StartError::NoResolver)
}

fn random() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}

impl std::fmt::Debug for EngineBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineBuilder").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}
