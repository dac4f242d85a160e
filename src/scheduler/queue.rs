//! A queue: what has settings, limits, modes and statistics. One per domain or rollup, and source.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::DestinationKey;
use super::directory::Named;
use super::fault::Fault;
use super::few::FewSet;
use super::limits::SlotKey;
use super::rare::{AtRest, Rare};
use crate::clock::Timestamp;
use crate::message::QueueName;
use crate::policy::{QueueSettings, Rate, RetryAfter, SlidingCount};

pub(crate) struct Queue {
    pub(super) name: QueueName,
    pub(super) source: Arc<str>,
    pub(super) settings: Arc<QueueSettings>,
    /// The limit of its connections, while there are any or somebody waits; then a key of nothing. There may be a
    /// million queues, and few have connections.
    pub(super) slot: SlotKey,
    pub(super) destinations: FewSet<DestinationKey>,
    pub(super) mode: Rare<Mode>,
    /// How often each reply rule with `after` matched.
    pub(super) rule_counts: BTreeMap<Arc<str>, SlidingCount>,
    /// Bounces by rules and DNS, if they are counted.
    pub(super) bounces: Option<Box<SlidingCount>>,
    pub(super) tally: Tally,
    pub(super) timer: Option<Timestamp>,
    /// A state row of it is in the store.
    pub(super) stored_state: bool,
    /// What the row is to say has changed.
    pub(super) unsaved: bool,
}

/// What is not as the settings have it. Kept over restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mode {
    pub(super) backoff: Option<Backoff>,
    /// In retry mode as a whole, by a reply rule: no attempt before this.
    pub(super) held_until: Option<Timestamp>,
    /// How often in a row.
    pub(super) held_steps: u32,
    /// Its source is not used, until then or until somebody says so.
    pub(super) disabled: Option<Disabled>,
    pub(super) connection_cap: Option<(u32, Timestamp)>,
    pub(super) rate_cap: Option<(Rate, Timestamp)>,
    /// Too many bounces: what would bounce is held until somebody says otherwise.
    pub(super) fuse_blown: bool,
}

impl Mode {
    fn end(&mut self, lapsed: Lapsed, now: Timestamp) {
        self.backoff = self.backoff.take().filter(|_| !lapsed.backoff);
        self.held_until = self.held_until.filter(|_| !lapsed.hold);
        self.disabled = self.disabled.filter(|_| !lapsed.disabled);
        self.connection_cap = self.connection_cap.filter(|(_, until)| *until > now);
        self.rate_cap = self.rate_cap.filter(|(_, until)| *until > now);
    }

    /// The clock was set back by so much.
    pub(super) fn set_back(&mut self, by: Duration) {
        let Self { backoff, held_until, held_steps: _, disabled, connection_cap, rate_cap, fuse_blown: _ } =
            self;
        let earlier = |at: Timestamp| at.saturating_sub(by);
        if let Some(Backoff { since, until }) = backoff {
            (*since, *until) = (earlier(*since), until.map(earlier));
        }
        *held_until = held_until.map(earlier);
        if let Some(disabled) = disabled {
            disabled.until = disabled.until.map(earlier);
        }
        *connection_cap = connection_cap.map(|(cap, until)| (cap, earlier(until)));
        *rate_cap = rate_cap.map(|(cap, until)| (cap, earlier(until)));
    }
}

impl AtRest for Mode {
    const NEW: Self = Self {
        backoff: None,
        held_until: None,
        held_steps: 0,
        disabled: None,
        connection_cap: None,
        rate_cap: None,
        fuse_blown: false,
    };
    const AT_REST: &'static Self = &Self::NEW;

    fn is_at_rest(&self) -> bool {
        self == Self::AT_REST
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Backoff {
    pub(super) since: Timestamp,
    /// `None`: until a delivery, a rule or somebody ends it.
    pub(super) until: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Disabled {
    /// `None`: for good.
    pub(super) until: Option<Timestamp>,
}

/// What became of recipients since the queue came to be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) delivered: u64,
    pub(super) deferred: u64,
    pub(super) bounced: u64,
    /// Deliveries, each weighing less the older it is: halved about every 42 seconds, so that it sums up to those
    /// of a minute.
    weight: f64,
    weighed_at: Option<Timestamp>,
}

impl Tally {
    pub(super) fn delivered(&mut self, now: Timestamp) {
        self.delivered += 1;
        self.weight = self.per_minute(now) + 1.0;
        self.weighed_at = Some(now);
    }

    pub(super) fn per_minute(&self, now: Timestamp) -> f64 {
        let age = self.weighed_at.map_or(0.0, |at| now.saturating_since(at).as_secs_f64());
        self.weight * (-age / 60.0).exp()
    }
}

/// What of a queue's mode ended by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lapsed {
    pub(super) backoff: bool,
    pub(super) hold: bool,
    pub(super) disabled: bool,
    pub(super) cap: bool,
}

/// Counts bounces; the one past so many is too many.
pub(super) fn fuse(rate: Rate) -> Box<SlidingCount> {
    let more = 1 + u32::from(Fault::OneBounceMore.is_there());
    let rate = Rate::new(rate.count().saturating_add(more), rate.period()).unwrap_or(rate);
    Box::new(SlidingCount::new(rate))
}

impl Named for Queue {
    type Name<'a> = (&'a str, &'a str);

    fn name(&self) -> Self::Name<'_> {
        (&self.name, &self.source)
    }
}

impl Queue {
    pub(super) fn new(name: QueueName, source: Arc<str>, settings: Arc<QueueSettings>) -> Self {
        let bounces = settings.bounce_fuse.map(fuse);
        Self {
            name,
            source,
            settings,
            slot: SlotKey::of_nothing(),
            destinations: FewSet::default(),
            mode: Rare::default(),
            rule_counts: BTreeMap::new(),
            bounces,
            tally: Tally::default(),
            timer: None,
            stored_state: false,
            unsaved: false,
        }
    }

    pub(super) fn in_backoff(&self) -> bool {
        self.mode.backoff.is_some()
    }

    /// How many connections it may have now.
    pub(super) fn connection_limit(&self) -> usize {
        let limit = self.settings.in_force(self.in_backoff()).max_smtp_out;
        let cap = self.mode.connection_cap.map(|(cap, _)| cap);
        let cap = cap.filter(|_| !Fault::CapsForgotten.is_there());
        let least = [limit, cap].into_iter().flatten().min();
        least.map_or(usize::MAX, |limit| limit as usize)
    }

    /// At which rate it may offer recipients now.
    pub(super) fn message_rate(&self) -> Option<Rate> {
        self.settings.in_force(self.in_backoff()).max_msg_rate
    }

    /// A temporary cap on that.
    pub(super) fn capped_rate(&self) -> Option<Rate> {
        self.mode.rate_cap.map(|(rate, _)| rate).filter(|_| !Fault::CapsForgotten.is_there())
    }

    /// What is waited after a failure now.
    pub(super) fn retry_after(&self) -> &RetryAfter {
        self.settings.in_force(self.in_backoff()).retry_after
    }

    pub(super) fn is_disabled(&self) -> bool {
        self.mode.disabled.is_some() && !Fault::SentWhileDisabled.is_there()
    }

    /// Nothing is sent from it now.
    pub(super) fn has_a_mode(&self) -> bool {
        !self.mode.is_at_rest()
    }

    pub(super) fn is_held(&self, now: Timestamp) -> bool {
        let is_deferred = self.mode.held_until.is_some_and(|until| until > now);
        self.is_disabled() || (is_deferred && !Fault::SentWhileDeferred.is_there())
    }

    /// Ends what ends by itself.
    pub(super) fn lapse(&mut self, now: Timestamp) -> Lapsed {
        let mode = &self.mode;
        let over = |until: Option<Timestamp>| until.is_some_and(|until| until <= now);
        let lapsed = Lapsed {
            backoff: over(mode.backoff.as_ref().and_then(|backoff| backoff.until)),
            hold: over(mode.held_until),
            disabled: over(mode.disabled.and_then(|disabled| disabled.until)),
            cap: over(mode.connection_cap.map(|(_, until)| until))
                || over(mode.rate_cap.map(|(_, until)| until)),
        };
        if lapsed != Lapsed::default() {
            self.mode.end(lapsed, now);
            self.mode.tidy();
            self.unsaved = true;
        }
        self.rule_counts.retain(|_, count| count.lapses_at() > now);
        lapsed
    }

    /// When something of it ends by itself next.
    pub(super) fn next_lapse(&self) -> Option<Timestamp> {
        let mode = &self.mode;
        let times = [
            mode.backoff.as_ref().and_then(|backoff| backoff.until),
            mode.held_until,
            mode.disabled.and_then(|disabled| disabled.until),
            mode.connection_cap.map(|(_, until)| until),
            mode.rate_cap.map(|(_, until)| until),
        ];
        times.into_iter().flatten().min()
    }

    /// Until when it remembers what it counted.
    pub(super) fn remembers_until(&self) -> Option<Timestamp> {
        let counts = self.rule_counts.values().chain(self.bounces.as_deref()).map(SlidingCount::lapses_at);
        counts.max()
    }

    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        let settings = crate::policy::Policy::new().settings("example.org", "default");
        Self::new("example.org".into(), "default".into(), Arc::new(settings))
    }
}
