//! Describing a world.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::book::Book;
use super::dns::{DnsFault, LyingResolver};
use super::latency::Latency;
use super::model::ServerModel;
use super::network::Network;
use super::store::{Faults, StoreFault};
use super::{CHECK_EVERY, World};
use crate::clock::Timestamp;
use crate::dns::{StaticResolver, ZoneError};
use crate::engine::StartError;
use crate::policy::Policy;
use crate::scheduler::Bounds;
use crate::storage::{MemoryStorage, Storage};

/// 2026-01-01T00:00:00Z.
const START: Timestamp = Timestamp::from_unix_seconds(1_767_225_600);
/// The environment variable that names a seed.
pub(crate) const SEED_VARIABLE: &str = "POSTRIDER_SEED";

/// Describes a [`World`].
#[must_use = "a world exists once it is built"]
pub struct WorldBuilder {
    seed: Option<u64>,
    start: Timestamp,
    hostname: String,
    policy: Policy,
    zone: String,
    servers: Vec<(String, ServerModel)>,
    elsewhere: Option<ServerModel>,
    bounds: Bounds,
    dns_faults: Vec<DnsFault>,
    store_faults: Vec<StoreFault>,
    open_store: Option<Box<dyn FnMut() -> Arc<dyn Storage> + Send>>,
}

/// Why there is no such world.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WorldError {
    /// A world has a runtime of its own.
    #[error("a world can not be built inside a runtime: use it from a plain #[test], not from an async one")]
    InsideRuntime,
    /// The zone can not be read.
    #[error("the zone: {0}")]
    Zone(#[from] ZoneError),
    /// The policy can not be read.
    #[error("the policy: {0}")]
    Policy(String),
    /// Not an address.
    #[error("`{0}` is not a server's address like 192.0.2.1 or [2001:db8::1]:2525")]
    Address(String),
    /// A model's reply is none.
    #[error("a server can not say `{reply}`: {error}")]
    Reply {
        /// What it was to say.
        reply: String,
        /// What is wrong with it.
        error: String,
    },
    /// Not a probability.
    #[error("{0} is no probability: it must be from 0 to 1")]
    Chance(f64),
    /// It would never be.
    #[error("{what} from {} s to {} s: it must end after it begins", .times.start.as_secs_f64(), .times.end.as_secs_f64())]
    Times {
        /// What was to be then.
        what: &'static str,
        /// When.
        times: std::ops::Range<std::time::Duration>,
    },
    /// A rate without a time.
    #[error("a message rate of {0} in no time: the time must be longer than zero")]
    MessageRate(u32),
    /// Not somebody's address.
    #[error("`{0}` is no mailbox: it must be an address such as bob@example.net")]
    Mailbox(String),
    /// Servers do nothing then.
    #[error("a server can not fail at the stage {}: it must be connect, ehlo, mail, rcpt, data or dot", stage.as_str())]
    Stage {
        /// The stage.
        stage: crate::reply::Stage,
    },
    /// A failure that would be none.
    #[error("`{0}` is no failure: the code of a greeting or of EHLO's reply must be 4xx or 5xx")]
    NoFailure(String),
    /// Nobody asks about such a name.
    #[error("DNS is never asked about `{0}`: it must be a domain or a host's name")]
    Name(String),
    /// One address, two servers.
    #[error("there are two servers at {0}: one address is one server")]
    Twice(SocketAddr),
    /// A latency whose ends are the wrong way round.
    #[error("{0:?}: the first time must not be longer than the second")]
    Latency(Latency),
    /// DNS can not name such a host.
    #[error("DNS can not say that `{0}` is a mail exchanger: it must be a host's name")]
    Exchanger(String),
    /// The engine did not start.
    #[error("the engine: {0}")]
    Start(String),
    /// There is no runtime.
    #[error("the runtime: {0}")]
    Runtime(String),
    /// The seed of the environment is no number.
    #[error("POSTRIDER_SEED is `{0}`: it must be a number such as 17")]
    Seed(String),
}

impl From<StartError> for WorldError {
    fn from(error: StartError) -> Self {
        Self::Start(error.to_string())
    }
}

impl WorldBuilder {
    pub(super) fn new() -> Self {
        Self {
            seed: None,
            start: START,
            hostname: "mta.sender.example".to_owned(),
            policy: Policy::default(),
            zone: String::new(),
            servers: Vec::new(),
            elsewhere: None,
            bounds: Bounds::default(),
            dns_faults: Vec::new(),
            store_faults: Vec::new(),
            open_store: None,
        }
    }

    /// What chance draws from: ids, jitter, latencies, lies. Default: `POSTRIDER_SEED`, else 1.
    ///
    /// A test that gives a seed of its own gives the same one when it is run again, whatever that variable says.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// When it begins. Default: 2026-01-01T00:00:00Z.
    pub fn start(mut self, start: Timestamp) -> Self {
        self.start = start;
        self
    }

    /// The engine's name in EHLO. Default: `mta.sender.example`.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = hostname.into();
        self
    }

    /// How mail is sent. Default: [`Policy::default`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Adds lines to the zone: see [`StaticResolver`] for their form.
    pub fn zone(mut self, zone: &str) -> Self {
        self.zone.push_str(zone);
        self.zone.push('\n');
        self
    }

    /// A server at this address; without a port at that of the policy (25).
    pub fn server(mut self, address: impl Into<String>, model: ServerModel) -> Self {
        self.servers.push((address.into(), model));
        self
    }

    /// Servers such as this one at all other addresses, each for itself. Default: nobody answers there.
    pub fn servers_elsewhere(mut self, model: ServerModel) -> Self {
        self.elsewhere = Some(model);
        self
    }

    /// DNS lies so.
    pub fn dns_fault(mut self, fault: DnsFault) -> Self {
        self.dns_faults.push(fault);
        self
    }

    /// The store fails so.
    pub fn store_fault(mut self, fault: StoreFault) -> Self {
        self.store_faults.push(fault);
        self
    }

    /// What the engine holds in memory.
    pub(crate) fn bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// Opens the host's own store: now, and again after each crash and restart, as a new process would. What it opens
    /// before is dropped by then. Default: a [`MemoryStorage`], which keeps its mail and loses its leases at a crash.
    ///
    /// It is called within the world's runtime, where `tokio::runtime::Handle::current().block_on` opens what is opened by an async function.
    /// A store that works on threads of its own answers in an order that no seed decides: traces differ then.
    pub fn storage<S: Storage>(mut self, mut open: impl FnMut() -> S + Send + 'static) -> Self {
        self.open_store = Some(Box::new(move || Arc::new(open())));
        self
    }

    /// Builds it, and starts the engine.
    ///
    /// # Errors
    /// [`WorldError`].
    pub fn build(self) -> Result<World, WorldError> {
        if tokio::runtime::Handle::try_current().is_ok() {
            return Err(WorldError::InsideRuntime);
        }
        let seed = match self.seed {
            Some(seed) => seed,
            None => seed_of_environment()?.unwrap_or(1),
        };
        let mut seeds = fastrand::Rng::with_seed(seed);
        let mut servers = BTreeMap::new();
        for (name, model) in self.servers {
            model.problem()?;
            let address = address(&name, &self.policy)?;
            if servers.insert(address, model).is_some() {
                return Err(WorldError::Twice(address));
            }
        }
        if let Some(model) = &self.elsewhere {
            model.problem()?;
        }
        self.dns_faults.iter().try_for_each(DnsFault::check)?;
        let zone = StaticResolver::parse(&self.zone)?;
        let book = Book::new(self.start, self.policy.clone(), self.bounds);
        let faults = Faults::default();
        faults.add(self.store_faults);
        let open_store = self.open_store.unwrap_or_else(|| {
            let store = MemoryStorage::new();
            Box::new(move || Arc::new(store.reopened()))
        });
        let mut world = World {
            seed,
            network: Network::new(book.clone(), seeds.u64(..), servers, self.elsewhere),
            dns: LyingResolver::new(zone, book.clone(), seeds.u64(..), self.dns_faults),
            seeds,
            hostname: self.hostname,
            policy: self.policy,
            bounds: self.bounds,
            book,
            open_store,
            faults,
            runtime: None,
            engine: None,
            store: None,
            clock: None,
            next_check: CHECK_EVERY,
            checked: std::time::Duration::ZERO,
            is_told: false,
        };
        world.start()?;
        Ok(world)
    }
}

/// How a test that failed is run again with the same seed.
pub(crate) fn how_to_repeat(seed: u64) -> String {
    // The test harness names its threads after the tests.
    match std::thread::current().name().filter(|name| *name != "main") {
        Some(test) => format!("to repeat it: {SEED_VARIABLE}={seed} cargo test {test}"),
        None => format!("to repeat it: seed {seed} ({SEED_VARIABLE}={seed}, if the program reads that)"),
    }
}

/// The seed that `POSTRIDER_SEED` names.
pub(crate) fn seed_of_environment() -> Result<Option<u64>, WorldError> {
    match std::env::var(SEED_VARIABLE) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| WorldError::Seed(text)),
        Err(_) => Ok(None),
    }
}

pub(super) fn check_times(
    what: &'static str,
    times: &std::ops::Range<std::time::Duration>,
) -> Result<(), WorldError> {
    if times.is_empty() { Err(WorldError::Times { what, times: times.clone() }) } else { Ok(()) }
}

pub(super) fn check_chance(probability: f64) -> Result<(), WorldError> {
    if (0.0..=1.0).contains(&probability) { Ok(()) } else { Err(WorldError::Chance(probability)) }
}

/// A server's address, with the policy's port if it names none.
pub(super) fn address(text: &str, policy: &Policy) -> Result<SocketAddr, WorldError> {
    let alone = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, policy.smtp().port));
    let address = alone.or_else(|_| text.parse()).map_err(|_| WorldError::Address(text.to_owned()))?;
    if address.port() == 0 {
        return Err(WorldError::Address(text.to_owned()));
    }
    // As it is connected to.
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

impl std::fmt::Debug for WorldBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorldBuilder").field("seed", &self.seed).finish_non_exhaustive()
    }
}
