//! [`Simulation`]: random worlds, in which everything goes wrong at once.

mod plan;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::{ServerModel, Violation, World, WorldBuilder, WorldError};
use crate::control::{CancelAs, FuseDecision, Selector};
use crate::message::{Message, MessageId, Priority};
use crate::policy::Policy;
use crate::storage::Storage;

/// Steps of one simulation.
const STEPS: usize = 40;
/// All mail has ended by then once nothing fails any more: no message lives longer than five days.
const HEALING: Duration = Duration::from_secs(8 * 86_400);

/// A random world, run to its end under the oracle: a random policy with every control, domains that share hosts,
/// servers that refuse, stall and break off, DNS that lies, a store that fails, crashes, restarts, steps of the
/// clock, and a host that says something in between.
///
/// The seed decides all of it. At the end everything works again, and all mail must come to an end.
///
/// ```
/// use postrider::testing::Simulation;
/// for seed in Simulation::seeds(3) {
///     Simulation::new(seed).run()?;
/// }
/// # Ok::<(), postrider::testing::SimulationError>(())
/// ```
#[must_use = "it runs when it is told to"]
pub struct Simulation {
    seed: u64,
    world: WorldBuilder,
    random: fastrand::Rng,
}

/// What a [`Simulation`] went through.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SimulationReport {
    /// Messages accepted.
    pub messages: u64,
    /// Transactions.
    pub transactions: u64,
    /// Crashes and restarts.
    pub starts: u64,
    /// The policy it ran under at first.
    pub policy: String,
    /// The trace: [`World::trace_text`].
    pub trace: String,
}

/// What a [`Simulation`] found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulationError {
    /// An invariant was broken.
    #[error(transparent)]
    Violation(Box<Violation>),
    /// There is no such world: a fault of the simulation, or the host's store does not start.
    #[error(transparent)]
    World(#[from] WorldError),
    /// Nothing failed any more, and yet mail is left.
    #[error("seed {seed}: after {HEALING:?} without a fault mail is left:\n{left}\n{}", super::world::how_to_repeat(*seed))]
    Left {
        /// The seed.
        seed: u64,
        /// The end of the trace, and what waits for what.
        left: String,
    },
}

impl From<Violation> for SimulationError {
    fn from(violation: Violation) -> Self {
        Self::Violation(Box::new(violation))
    }
}

impl Simulation {
    /// The simulation of this seed.
    pub fn new(seed: u64) -> Self {
        // Seeds that lie together give worlds that differ in everything.
        let random = fastrand::Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Self { seed, world: World::builder().seed(seed), random }
    }

    /// The seeds of a test: 1 to `count`; to `POSTRIDER_SEEDS` if the environment has it; that one of `POSTRIDER_SEED`, which
    /// a failure names.
    ///
    /// # Panics
    /// If one of the variables is no number, or `POSTRIDER_SEEDS` is 0.
    #[allow(clippy::panic, reason = "a test that runs nothing must not pass")]
    pub fn seeds(count: u64) -> impl Iterator<Item = u64> {
        match (number("POSTRIDER_SEED"), number("POSTRIDER_SEEDS")) {
            (Some(seed), _) => seed..=seed,
            (None, Some(0)) => panic!("POSTRIDER_SEEDS is 0: no world would be run"),
            (None, more) => 1..=more.unwrap_or(count),
        }
    }

    /// Over the host's own store: see [`WorldBuilder::storage`].
    pub fn storage<S: Storage>(mut self, open: impl FnMut() -> S + Send + 'static) -> Self {
        self.world = self.world.storage(open);
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// [`SimulationError`]: what the oracle found, with the seed.
    ///
    /// # Panics
    /// If the host's store can not be opened again after a crash.
    pub fn run(mut self) -> Result<SimulationReport, SimulationError> {
        let text = plan::policy(&mut self.random);
        let zone = plan::zone(&mut self.random);
        let mut builder = self.world.policy(parse(&text)?).zone(&zone);
        for address in plan::ADDRESSES {
            builder = builder.server(address, plan::server(&mut self.random));
        }
        let bounds = plan::bounds(&mut self.random);
        builder = builder.bounds(bounds);
        let mut run = Run {
            world: builder.build()?,
            random: self.random,
            submitted: Vec::new(),
            own: Vec::new(),
            starts: 1,
        };
        run.world.note(format!("the policy:\n{text}"));
        run.world.note(format!("{bounds:?}"));
        for _ in 0..STEPS {
            run.step()?;
        }
        run.heal(self.seed)?;
        let transactions = run.world.servers().map(|(_, server)| server.transactions).sum();
        Ok(SimulationReport {
            messages: run.submitted.len() as u64,
            transactions,
            starts: run.starts,
            policy: text,
            trace: run.world.trace_text(),
        })
    }
}

#[allow(clippy::panic, reason = "it fails a test: another seed than was asked for would pass for it")]
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is `{text}`: it must be a number such as 17")))
}

struct Run {
    world: World,
    random: fastrand::Rng,
    submitted: Vec<MessageId>,
    /// Messages with ids of their own, which may come again.
    own: Vec<Message>,
    starts: u64,
}

impl Run {
    fn step(&mut self) -> Result<(), SimulationError> {
        match self.random.u8(..100) {
            0..30 => self.submit(),
            30..62 => {
                let most = plan::one_of(&mut self.random, &[2, 60, 900, 7_200, 40_000]).unwrap_or(60);
                let time = Duration::from_millis(self.random.u64(..most * 1_000));
                self.world.try_run_for(time)?;
            }
            62..67 => {
                self.starts += 1;
                self.world.crash();
            }
            67..70 => {
                self.starts += 1;
                self.world.restart();
            }
            70..73 => self.step_clock(),
            73..78 => self.replace_zone()?,
            78..84 => {
                let index = self.random.usize(..plan::ADDRESSES.len());
                let model = plan::server(&mut self.random);
                if let Some(address) = plan::ADDRESSES.get(index) {
                    self.world.set_server(address, model)?;
                }
            }
            84..88 => {
                let faults = plan::dns_faults(&mut self.random, self.world.elapsed());
                self.world.set_dns_faults(faults)?;
            }
            88..93 => self.world.add_store_faults([plan::store_fault(&mut self.random)]),
            93..95 => {
                let text = plan::policy(&mut self.random);
                let policy = parse(&text)?;
                self.world.note(format!("the policy from here on:\n{text}"));
                self.world.set_policy(policy);
            }
            _ => self.control()?,
        }
        self.world.verify()?;
        Ok(())
    }

    fn submit(&mut self) {
        for _ in 0..self.random.usize(1..12) {
            let recipients: Vec<String> = (0..self.random.usize(1..5))
                .map(|_| {
                    let domain = plan::word(&mut self.random, &plan::DOMAINS);
                    format!("r{}@{domain}", self.random.u8(..12))
                })
                .collect();
            let octets = self.random.usize(1..400);
            let Ok(mut message) = Message::new("news@sender.example", recipients, vec![b'x'; octets]) else {
                continue;
            };
            let priorities = [Priority::High, Priority::Normal, Priority::Low];
            let priority = plan::one_of(&mut self.random, &priorities).unwrap_or(Priority::Normal);
            let source = plan::word(&mut self.random, &plan::SOURCES);
            message = message.with_priority(priority).with_source(source);
            if self.random.u8(..10) == 0 {
                message =
                    message.hold_until(self.world.now() + Duration::from_secs(self.random.u64(..20_000)));
            }
            if self.random.u8(..10) == 0 {
                message = message.expires_after(Duration::from_secs(self.random.u64(60..40_000)));
            }
            if self.random.u8(..4) == 0 {
                message = message.with_tag("job", "one");
            }
            if self.random.u8(..10) == 0 {
                message = message.with_id(MessageId::generate(self.world.now(), self.random.u128(..)));
                self.own.push(message.clone());
            }
            // As a host does that had no answer, or has it forgotten.
            if self.random.u8(..10) == 0
                && let Some(own) = self.random.choice(&self.own)
            {
                message = own.clone();
            }
            match self.world.submit(message) {
                Ok(id) if !self.submitted.contains(&id) => self.submitted.push(id),
                _ => {}
            }
        }
    }

    fn step_clock(&mut self) {
        let seconds = Duration::from_secs(self.random.u64(..6_000));
        let now = self.world.now();
        let to = if self.random.bool() { now + seconds } else { now.saturating_sub(seconds) };
        self.world.step_clock(to);
    }

    fn replace_zone(&mut self) -> Result<(), SimulationError> {
        let zone = plan::zone(&mut self.random);
        self.world.note(format!("the zone from here on:\n{zone}"));
        self.world.set_zone(&zone).map_err(WorldError::from)?;
        Ok(())
    }

    /// The host says something. That it is refused, since the store fails just now, is as good an answer.
    fn control(&mut self) -> Result<(), SimulationError> {
        let domain = plan::word(&mut self.random, &plan::DOMAINS);
        let source = plan::word(&mut self.random, &plan::SOURCES);
        let message = self.submitted.get(self.random.usize(..self.submitted.len().max(1))).copied();
        let selector = match self.random.u8(..5) {
            0 => Selector::source(source),
            1 => Selector::tag("job", "one"),
            2 => message.map_or_else(|| Selector::queue(domain), Selector::Message),
            3 => Selector::queue("tenants.rollup"),
            _ => Selector::queue(domain),
        };
        match self.random.u8(..9) {
            0 => drop(self.world.cancel_all(selector, CancelAs::Cancelled)),
            1 => drop(self.world.cancel_all(selector, CancelAs::Bounced)),
            2 => drop(self.world.set_backoff(selector, self.random.bool())),
            3 => {
                let _ = self.world.pause(selector.clone());
                let time = Duration::from_secs(self.random.u64(..3_000));
                self.world.try_run_for(time)?;
                if self.world.resume(selector.clone()).is_err() {
                    // Only a store that refuses for a reason of its own refuses again: then mail is left at the end.
                    self.world.clear_store_faults();
                    self.world.restart();
                    let _ = self.world.resume(selector);
                }
            }
            4 => {
                let decisions = [FuseDecision::Bounce, FuseDecision::Keep];
                let decision = plan::one_of(&mut self.random, &decisions).unwrap_or(FuseDecision::Keep);
                drop(self.world.decide_fuse(domain, decision));
            }
            _ => drop(self.world.retry_now(selector)),
        }
        Ok(())
    }

    /// Nothing fails from here on.
    fn heal(&mut self, seed: u64) -> Result<(), SimulationError> {
        self.world.note("nothing fails from here on");
        self.world.clear_store_faults();
        self.world.set_dns_faults([])?;
        for address in plan::ADDRESSES {
            self.world.set_server(address, ServerModel::new())?;
        }
        // A store that failed for good serves a new engine.
        self.world.restart();
        if !self.world.try_run_until_idle(HEALING)? {
            let mut left = Vec::new();
            for &message in &self.submitted {
                left.extend(self.world.why(message));
            }
            left.truncate(20);
            let left = left.join("\n");
            let trace = self.world.trace_text();
            let lines: Vec<&str> = trace.lines().collect();
            let recent = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n");
            let left = format!("{left}\nthe trace ends so:\n{recent}");
            return Err(SimulationError::Left { seed, left });
        }
        Ok(())
    }
}

impl std::fmt::Debug for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulation").field("seed", &self.seed).finish_non_exhaustive()
    }
}

fn parse(text: &str) -> Result<Policy, WorldError> {
    Policy::from_toml(text).map_err(|error| WorldError::Policy(format!("{error}\n{text}")))
}
