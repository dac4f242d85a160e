//! Facts about queues: in which mode they are, and what the host paused. By what is in the store, since a new engine
//! knows no more, and by what the engine reports.
//!
//! A row says what the engine had decided before it was written. What ends a mode is believed at once, whatever the row
//! says, and what begins one only after a while: see [`SETTLED`].

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::super::observation::{Observation, Seen};
use super::facts::QueueId;
use crate::clock::Timestamp;
use crate::control::Selector;
use crate::event::{DeliveryEvent, QueueModeChange};
use crate::policy::{Action, Policy, Rate, ReplyRule};
use crate::scheduler::{Stored, StoredMode, StoredPace};

/// What was under way when something was said has begun by then.
pub(super) const SETTLED: Duration = Duration::from_secs(60);
/// After a step of the clock what was decided before it is told by then.
const TOLD: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct Modes {
    /// What a new engine reads.
    rows: HashMap<Vec<u8>, Stored>,
    backoff: HashMap<QueueId, Backoff>,
    modes: HashMap<QueueId, Mode>,
    /// What is paused, and since when.
    pauses: Vec<(Selector, Duration)>,
    /// Queues whose fuse was blown at some time.
    blown: HashSet<QueueId>,
    /// How often each queue's rate was capped anew.
    capped: HashMap<QueueId, u64>,
    stepped_at: Option<Duration>,
}

#[derive(Clone, Copy)]
struct Backoff {
    is_on: bool,
    until: Option<Timestamp>,
    changed: Timestamp,
}

struct Mode {
    stored: StoredMode,
    held_since: Duration,
    disabled_since: Duration,
}

impl Modes {
    /// A row is durable.
    pub(super) fn put(&mut self, key: &[u8], row: Stored, (at, now): (Duration, Timestamp)) {
        match &row {
            Stored::Mode(stored) => self.learn_mode(stored, at, now),
            Stored::Pause(selector) => {
                if !self.pauses.iter().any(|(known, _)| known == selector) {
                    self.pauses.push((selector.clone(), at));
                }
            }
            Stored::Pace(_) | Stored::Step(_) => {}
        }
        self.rows.insert(key.to_vec(), row);
    }

    pub(super) fn delete(&mut self, key: &[u8]) {
        match self.rows.remove(key) {
            Some(Stored::Mode(stored)) => {
                self.modes.remove(&(stored.queue, stored.source));
            }
            Some(Stored::Pause(selector)) => self.pauses.retain(|(known, _)| *known != selector),
            _ => {}
        }
    }

    fn learn_mode(&mut self, stored: &StoredMode, at: Duration, now: Timestamp) {
        let key = (stored.queue.clone(), stored.source.clone());
        if stored.fuse_blown {
            self.blown.insert(key.clone());
        }
        let before = self.modes.get(&key);
        let since = |same: bool, since: Option<Duration>| since.filter(|_| same).unwrap_or(at);
        let held_since = since(
            before.is_some_and(|before| before.stored.held_until == stored.held_until),
            before.map(|before| before.held_since),
        );
        let disabled_since = since(
            before.is_some_and(|before| before.stored.disabled.is_some()),
            before.map(|before| before.disabled_since),
        );
        let capped = before.and_then(|before| before.stored.rate_cap);
        let goes_on =
            capped.zip(stored.rate_cap).is_some_and(|((old, until), (rate, _))| old == rate && until > now);
        if !goes_on {
            *self.capped.entry(key.clone()).or_default() += 1;
        }
        self.modes.insert(key, Mode { stored: stored.clone(), held_since, disabled_since });
    }

    pub(super) fn learn(&mut self, observation: &Observation) {
        match &observation.seen {
            Seen::Event(event) => {
                let DeliveryEvent::QueueMode(change) = &**event else { return };
                let key = (change.queue.clone(), change.source.clone());
                let (until, changed) = (change.until, change.time);
                match change.mode {
                    QueueModeChange::Backoff => {
                        self.backoff.insert(key, Backoff { is_on: true, until, changed });
                    }
                    QueueModeChange::Normal => {
                        self.backoff.insert(key, Backoff { is_on: false, until, changed });
                    }
                    QueueModeChange::FuseBlown => {
                        self.blown.insert(key);
                    }
                    QueueModeChange::SourceEnabled => {
                        if let Some(mode) = self.modes.get_mut(&key) {
                            mode.stored.disabled = None;
                        }
                    }
                    _ => {}
                }
            }
            Seen::Control(what) if what.starts_with("retry_now ") => {
                self.modes.values_mut().for_each(|mode| mode.stored.held_until = None);
            }
            Seen::Control(what) => {
                if let Some(resumed) = what.strip_prefix("resume ") {
                    self.pauses.retain(|(selector, _)| !resumed.starts_with(&format!("{selector:?}")));
                }
            }
            Seen::Started => self.begin_anew(observation.at, observation.time),
            _ => {}
        }
    }

    /// An engine knows what is in the store.
    fn begin_anew(&mut self, at: Duration, now: Timestamp) {
        self.backoff
            .values_mut()
            .for_each(|backoff| *backoff = Backoff { is_on: false, until: None, changed: now });
        self.modes.clear();
        self.pauses.clear();
        self.stepped_at = None;
        for row in self.rows.values().cloned().collect::<Vec<_>>() {
            match row {
                Stored::Mode(stored) => {
                    if let Some(until) = stored.backoff {
                        let key = (stored.queue.clone(), stored.source.clone());
                        self.backoff.insert(key, Backoff { is_on: true, until, changed: now });
                    }
                    self.learn_mode(&stored, at, now);
                }
                Stored::Pause(selector) => self.pauses.push((selector, at)),
                Stored::Pace(_) | Stored::Step(_) => {}
            }
        }
    }

    /// The clock was stepped: what ends at a time may have ended.
    pub(super) fn stepped(&mut self, at: Duration) {
        self.stepped_at = Some(at);
        for Mode { stored, .. } in self.modes.values_mut() {
            stored.held_until = None;
            stored.disabled = stored.disabled.filter(Option::is_none);
            (stored.connection_cap, stored.rate_cap) = (None, None);
        }
    }

    pub(super) fn in_backoff(&self, queue: &QueueId, now: Timestamp) -> bool {
        let backoff = self.backoff.get(queue).filter(|backoff| backoff.is_on);
        backoff.is_some_and(|backoff| backoff.until.is_none_or(|until| until > now))
    }

    /// Whether it was in backoff when something was decided that is told now; `None`: that is not certain. The end of
    /// backoff may be put off without a word, but it is told.
    pub(super) fn was_in_backoff(&self, queue: &QueueId, decided: Timestamp, at: Duration) -> Option<bool> {
        if self.stepped_at.is_some_and(|stepped| at < stepped + TOLD) {
            return None;
        }
        match self.backoff.get(queue) {
            Some(backoff) => (backoff.changed < decided).then_some(backoff.is_on),
            None => Some(false),
        }
    }

    /// Whether a fuse of it was blown at some time.
    pub(super) fn had_blown(&self, queue: &QueueId) -> bool {
        self.blown.contains(queue)
    }

    /// The temporary cap on its connections. Where rules have several the largest, since a row may be of the one before.
    pub(super) fn connection_cap(&self, queue: &QueueId, now: Timestamp, policy: &Policy) -> Option<u32> {
        let (cap, until) = self.modes.get(queue)?.stored.connection_cap?;
        let of_rules = actions(policy).filter_map(|action| match action {
            Action::LimitConnections { limit, .. } => Some(*limit),
            _ => None,
        });
        (until > now).then(|| of_rules.max().unwrap_or(0).max(cap))
    }

    /// The temporary cap on its rate, and which one it is. None where a rule has a larger one.
    pub(super) fn rate_cap(&self, queue: &QueueId, now: Timestamp, policy: &Policy) -> Option<(Rate, u64)> {
        let (cap, until) = self.modes.get(queue)?.stored.rate_cap?;
        let of_all = |rate: Rate| f64::from(rate.count()) / rate.period().as_secs_f64();
        let is_largest = actions(policy).all(|action| match action {
            Action::LimitRate { rate, .. } => of_all(*rate) <= of_all(cap),
            _ => true,
        });
        (until > now && is_largest).then(|| (cap, self.capped.get(queue).copied().unwrap_or(0)))
    }

    /// What forbids a queue to send, for so long that nothing is under way any more.
    pub(super) fn held(&self, queue: &QueueId, at: Duration, now: Timestamp) -> Option<&'static str> {
        let mode = self.modes.get(queue)?;
        let is_settled = |since: Duration| at > since + SETTLED;
        let disabled = mode.stored.disabled.filter(|until| until.is_none_or(|until| until > now));
        if disabled.is_some() && is_settled(mode.disabled_since) {
            return Some("whose source is disabled");
        }
        let deferred = mode.stored.held_until.filter(|until| *until > now);
        (deferred.is_some() && is_settled(mode.held_since)).then_some("which is deferred")
    }

    /// What is paused for so long that nothing of it is under way any more.
    pub(super) fn paused(&self, at: Duration) -> impl Iterator<Item = &Selector> {
        self.pauses.iter().filter(move |(_, since)| at > *since + SETTLED).map(|(selector, _)| selector)
    }

    /// Nothing is paused, and the queue is as its settings have it.
    pub(super) fn is_usual(&self, queue: &QueueId) -> bool {
        self.pauses.is_empty() && !self.modes.contains_key(queue)
    }

    /// Slow rates that a new engine goes on with.
    pub(super) fn durable_paces(&self) -> impl Iterator<Item = &StoredPace> {
        self.rows.values().filter_map(|row| match row {
            Stored::Pace(pace) => Some(pace),
            _ => None,
        })
    }

    /// How often its rate was capped anew.
    pub(super) fn times_capped(&self, queue: &QueueId) -> u64 {
        self.capped.get(queue).copied().unwrap_or(0)
    }
}

fn actions(policy: &Policy) -> impl Iterator<Item = &Action> {
    policy.reply_rules().iter().flat_map(ReplyRule::actions)
}
