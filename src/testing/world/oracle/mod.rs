//! The oracle: reads along and says when something happened that never may.
//!
//! One file for each invariant but three that need neither facts nor store: `content`, `endless` and `unanswered` are in
//! the book. An invariant sees each observation before it becomes a fact, and a snapshot of store and engine now and
//! then.

mod bounces;
mod bounded;
mod counts;
mod due;
mod duplicates;
mod expired;
mod facts;
mod finals;
mod fuses;
mod given;
mod held;
mod limits;
mod lost;
mod modes;
mod names;
mod neglected;
mod permits;
mod rates;
mod reported;
mod routes;
mod schedule;
mod settled;
mod snapshot;
mod starved;
mod stored;
mod tls;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use facts::Facts;
pub(super) use snapshot::{MOMENT, Snapshot};

use super::observation::{Observation, Seen};
use crate::message::{Address, MessageId, QueueName};
use crate::policy::Policy;
use crate::scheduler::Bounds;
use crate::storage::{Change, ChangeOutcome, Inserted, Item, NewMessage, StorageError};

/// What is wrong, or nothing.
type Judgement = Result<(), Wrong>;

/// What is wrong, and with which message and queue if the observation does not say.
struct Wrong {
    what: String,
    message: Option<MessageId>,
    queue: Option<QueueName>,
}

impl From<String> for Wrong {
    fn from(what: String) -> Self {
        Self { what, message: None, queue: None }
    }
}

/// Something that always holds.
trait Invariant: Send {
    /// Judges an observation. `facts` is what was known before it.
    fn see(&mut self, _facts: &Facts, _observation: &Observation) -> Judgement {
        Ok(())
    }

    /// Judges store and engine as they are at a moment in which nothing moves.
    fn check(&mut self, _facts: &Facts, _snapshot: &Snapshot) -> Judgement {
        Ok(())
    }
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) invariant: &'static str,
    pub(super) what: String,
    /// The message it is about, if it is about one.
    pub(super) message: Option<MessageId>,
    /// The queue it is about, if it is about one.
    pub(super) queue: Option<QueueName>,
}

/// An invariant did not hold: a fault of the engine, or of a part that the host put in.
///
/// | Invariant | What always holds |
/// |---|---|
/// | `stored` | the store holds and hands out what it was given: envelopes, lanes, due times, attempts and what they met |
/// | `lost` | accepted mail is in the store until its final event was reported, and so is its content |
/// | `settled` | a recipient whose end is durable is never tried again, and an id is remembered for a day |
/// | `duplicates` | what a server took is sent again only after a crash, an answer that was lost, or a shutdown cut at its deadline, and no more than was in flight |
/// | `finals` | each recipient has exactly one final event, and it tells the truth; what was acknowledged is gone |
/// | `bounces` | mail bounces only for a reason: a 5xx, a rule, DNS, its age, too many attempts, the host |
/// | `fuses` | no more bounces by rules and DNS than the queue's `bounce-fuse` lets through |
/// | `limits` | no limit on connections is exceeded |
/// | `tls` | mail goes over sessions that were opened for the TLS its queue wishes, and verified for its own host |
/// | `rates` | no rate is exceeded |
/// | `counts` | no connection carries more messages, no transaction more recipients, and nobody is tried more often than allowed |
/// | `held` | nothing is sent from what is paused, deferred or disabled |
/// | `due` | nothing is tried before it is due |
/// | `expired` | nothing is tried once it has expired |
/// | `schedule` | attempts are counted and intervals follow the policy, over restarts too |
/// | `permits` | what a connection takes of the limits is given back when it ends |
/// | `starved` | no queue waits without an end for what it could have |
/// | `neglected` | mail that nothing held does not expire before its first attempt |
/// | `reported` | an outcome in the store is reported before long |
/// | `routes` | mail is offered only to hosts of its domain, at their addresses |
/// | `bounded` | what has a bound in memory stays within it |
/// | `content` | a server is sent what was submitted, octet by octet, and from whom |
/// | `endless` | nothing is done again and again at one moment |
/// | `unanswered` | what the host asks is answered |
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Violation {
    /// The world's seed.
    pub seed: u64,
    /// Which invariant.
    pub invariant: &'static str,
    /// What happened.
    pub what: String,
    /// When, since the world's beginning.
    pub at: Duration,
    /// What the engine says that the message and the queue it is about wait for.
    pub why: Vec<String>,
    /// The end of the trace: 20,000 lines at most. `Display` shows the last 40.
    pub recent: Vec<String>,
}

/// Lines of the trace that are shown.
const SHOWN: usize = 40;

impl Violation {
    pub(super) fn new(
        seed: u64,
        (broken, at, recent): (Broken, Duration, Vec<String>),
        why: Vec<String>,
    ) -> Self {
        Self { seed, invariant: broken.invariant, what: broken.what, at, why, recent }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {} after {:?}: {}", self.seed, self.invariant, self.at, self.what)?;
        for line in &self.why {
            writeln!(f, "  it waits for: {line}")?;
        }
        writeln!(f, "the trace ends so:")?;
        for line in self.recent.iter().skip(self.recent.len().saturating_sub(SHOWN)) {
            writeln!(f, "  {line}")?;
        }
        f.write_str(&super::builder::how_to_repeat(self.seed))
    }
}

impl std::error::Error for Violation {}

pub(super) struct Oracle {
    facts: Facts,
    invariants: Vec<(&'static str, Box<dyn Invariant>)>,
    /// Broken at this moment, unless something else that is seen at the same moment explains it.
    pending: Option<(Duration, Broken)>,
}

/// Invariants by the policy's rules and the host's word.
const BY_RULES: [&str; 9] =
    ["bounces", "limits", "tls", "rates", "counts", "held", "due", "schedule", "routes"];

impl Oracle {
    pub(super) fn new(policy: Policy, bounds: Bounds) -> Self {
        let invariants: Vec<(&'static str, Box<dyn Invariant>)> = vec![
            ("stored", Box::new(stored::Stored)),
            ("lost", Box::new(lost::Lost)),
            ("settled", Box::new(settled::Settled)),
            ("duplicates", Box::new(duplicates::Duplicates)),
            ("finals", Box::new(finals::Finals)),
            ("bounces", Box::new(bounces::Bounces)),
            ("fuses", Box::<fuses::Fuses>::default()),
            ("limits", Box::<limits::Limits>::default()),
            ("tls", Box::new(tls::Tls)),
            ("rates", Box::<rates::Rates>::default()),
            ("counts", Box::<counts::Counts>::default()),
            ("held", Box::new(held::Held)),
            ("due", Box::<due::Due>::default()),
            ("expired", Box::new(expired::Expired)),
            ("schedule", Box::<schedule::Schedule>::default()),
            ("permits", Box::new(permits::Permits)),
            ("starved", Box::<starved::Starved>::default()),
            ("neglected", Box::<neglected::Neglected>::default()),
            ("reported", Box::<reported::Reported>::default()),
            ("routes", Box::new(routes::Routes)),
            ("bounded", Box::new(bounded::Bounded)),
        ];
        Self { facts: Facts::new(policy, bounds), invariants, pending: None }
    }

    /// Takes note of what happened. An error: what was seen before is broken for certain now.
    pub(super) fn see(&mut self, observation: &Observation) -> Result<(), Broken> {
        self.facts.note_rules(observation);
        let is_unclear = self.facts.is_unclear(observation.at);
        if let Some(since) = self.facts.rules_changed_by(observation) {
            // That a fuse blows is a change of rules itself.
            let is_other_policy = observation.seen == Seen::PolicyReplaced;
            let is_explained = |(at, broken): &(Duration, Broken)| {
                let may_be =
                    BY_RULES.contains(&broken.invariant) || is_other_policy && broken.invariant == "fuses";
                *at >= since && may_be
            };
            self.pending = self.pending.take().filter(|pending| !is_explained(pending));
        }
        self.settle_pending(observation.at)?;
        for (name, invariant) in &mut self.invariants {
            if let Err(wrong) = invariant.see(&self.facts, observation) {
                let message = wrong.message.or_else(|| observation.seen.message());
                let queue = wrong.queue.or_else(|| observation.seen.queue().cloned());
                let broken = Broken { invariant: name, what: wrong.what, message, queue };
                if !is_unclear || !BY_RULES.contains(name) {
                    self.pending.get_or_insert((observation.at, broken));
                }
            }
        }
        self.facts.learn(observation);
        Ok(())
    }

    /// Time has passed: what is pending from before `now` is certain, unless a change of the rules may not have been told.
    pub(super) fn settle_pending(&mut self, now: Duration) -> Result<(), Broken> {
        let may_be_explained = |broken: &Broken| {
            self.facts.is_writing && BY_RULES.contains(&broken.invariant) && now < Duration::MAX
        };
        match self.pending.take() {
            Some((at, broken)) if at < now && !may_be_explained(&broken) => Err(broken),
            pending => {
                self.pending = pending;
                Ok(())
            }
        }
    }

    /// How many are known.
    pub(super) fn messages(&self) -> usize {
        self.facts.messages.len()
    }

    /// These changes are about to be made.
    pub(super) fn committing(&mut self, changes: &[Change]) {
        self.facts.given.committing(changes);
    }

    /// This became of them.
    pub(super) fn committed(
        &mut self,
        changes: &[Change],
        result: &Result<Vec<ChangeOutcome>, StorageError>,
    ) {
        self.facts.given.committed(changes, result);
        if let Ok(outcomes) = result {
            let applied =
                changes.iter().zip(outcomes).filter(|(_, outcome)| **outcome == ChangeOutcome::Applied);
            self.facts.committed(applied.map(|(change, _)| change));
        }
    }

    /// These messages are about to be stored.
    pub(super) fn inserting(&mut self, messages: &[NewMessage]) {
        self.facts.given.inserting(messages);
        self.facts.freshly_stored(messages);
    }

    /// This became of them.
    pub(super) fn inserted(&mut self, messages: &[NewMessage], result: &Result<Vec<Inserted>, StorageError>) {
        self.facts.given.inserted(messages, result);
        // Once more: what new mail brings about comes after it.
        self.facts.freshly_stored(messages);
    }

    /// Bodies are lost, as the world's faults will have it.
    pub(super) fn loses_bodies(&mut self) {
        self.facts.bodies_lost = true;
    }

    /// What the scheduler writes is on its way, or was refused; or it is durable.
    pub(super) fn writing(&mut self, is_writing: bool) {
        self.facts.is_writing = is_writing;
    }

    /// A call of the store takes so long.
    pub(super) fn slow(&mut self, time: Duration) {
        self.facts.slowest_call = self.facts.slowest_call.max(time);
    }

    /// The store handed these out.
    pub(super) fn claimed(&mut self, items: &[Item]) -> Result<(), Broken> {
        self.facts.given.claimed(items).map_err(|(message, what)| Broken {
            invariant: "stored",
            what,
            message: Some(message),
            queue: None,
        })
    }

    /// DNS says that the domain has this mail exchanger.
    pub(super) fn exchanger(&mut self, domain: &str, host: &str) {
        self.facts.names.exchanger(domain, host);
    }

    /// DNS says that the host has this address.
    pub(super) fn address(&mut self, host: &str, address: IpAddr) {
        self.facts.names.address(host, address);
    }

    /// Whether this message was accepted, and not for this recipient.
    pub(super) fn is_nobodys(&self, message: MessageId, recipient: &Address) -> bool {
        let recipients = self.facts.messages.get(&message);
        recipients
            .is_some_and(|all| all.values().any(|standing| standing.accepted) && !all.contains_key(recipient))
    }

    /// Judges store and engine.
    pub(super) fn check(&mut self, snapshot: &Snapshot) -> Result<(), Broken> {
        for (name, invariant) in &mut self.invariants {
            if let Err(Wrong { what, message, queue }) = invariant.check(&self.facts, snapshot) {
                return Err(Broken { invariant: name, what, message, queue });
            }
        }
        Ok(())
    }

    /// The engine says that nothing is queued. `false`: it is right of what it may know, and mail is left that the store
    /// refused to settle.
    pub(super) fn is_idle(&self, snapshot: &Snapshot) -> Result<bool, Broken> {
        let Some(item) = snapshot.items.first() else { return Ok(true) };
        if self.facts.trouble {
            return Ok(false);
        }
        let what = format!("nothing is queued, says the engine, and {} is in the store", item.envelope.id);
        Err(Broken { invariant: "starved", what, message: Some(item.envelope.id), queue: None })
    }

    pub(super) fn set_policy(&mut self, policy: Policy) {
        self.facts.set_policy(policy);
    }
}
