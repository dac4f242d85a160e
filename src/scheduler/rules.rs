//! What reply rules bring about: for a recipient, for its queue, and the queue's mode.

use std::sync::Arc;
use std::time::Duration;

use super::destination::Refusal;
use super::queue::{Backoff, Disabled};
use super::{DestinationKey, QueueKey, Scheduler, TimerOwner};
use crate::clock::Timestamp;
use crate::event::{DeliveryEvent, Diagnosis, QueueMode, QueueModeChange};
use crate::policy::{BackoffChange, Fate, ReplyContext, RuleDecision, SlidingCount};
use crate::reply::{Reply, Stage};

/// Whom a reply is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct About<'a> {
    pub(super) domain: &'a str,
    pub(super) host: &'a str,
    pub(super) stage: Stage,
    /// Charged, this one included.
    pub(super) attempts: u32,
    pub(super) age: Duration,
}

impl<'a> About<'a> {
    /// What the rules are asked with.
    fn context(self, queue: &'a str) -> ReplyContext<'a> {
        ReplyContext::new(self.domain, queue, self.stage)
            .with_host(self.host)
            .with_attempts(self.attempts)
            .with_age(self.age)
    }
}

/// A change of a queue's mode, for the record.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    pub(super) until: Option<Timestamp>,
    pub(super) rule: Option<Arc<str>>,
    pub(super) reply: Option<Reply>,
}

impl Change {
    fn by(rule: &Arc<str>, reply: &Reply) -> Self {
        Self { until: None, rule: Some(rule.clone()), reply: Some(reply.clone()) }
    }
}

/// Matches of `after` rules in one transaction: one reply counts once, however many recipients it is about.
pub(super) type Counted = super::ids::NameMap<(Arc<str>, Stage), bool>;

impl Scheduler {
    /// What the rules say of a refusal.
    pub(super) fn consult(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        reply: &Reply,
        about: About<'_>,
        counted: &mut Counted,
    ) -> RuleDecision {
        if self.policy.reply_rules().is_empty() {
            return RuleDecision::default();
        }
        let Some(queue) = self.destinations.get(key).and_then(|d| self.queues.get_mut(d.queue)) else {
            return RuleDecision::default();
        };
        let context = about.context(&queue.name);
        let counts = &mut queue.rule_counts;
        let rules = self.policy.reply_rules();
        let after = |rule: usize, rate| {
            let Some(rule) = rules.get(rule).map(|rule| rule.name().clone()) else { return false };
            let mut record =
                || counts.entry(rule.clone()).or_insert_with(|| SlidingCount::new(rate)).record(now);
            match about.stage {
                // Each recipient has a reply of its own.
                Stage::Rcpt => record(),
                stage => *counted.entry((rule.clone(), stage)).or_insert_with(record),
            }
        };
        self.policy.decide_reply(&reply.to_string(), &context, after)
    }

    /// A message was taken: does its reply, or the delivery itself, end the queue's backoff?
    pub(super) fn leave_backoff_if_due(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        reply: &Reply,
        about: About<'_>,
        begun: Timestamp,
    ) {
        let Some(queue_key) = self.destinations.get(key).map(|destination| destination.queue) else { return };
        let Some(queue) = self.queues.get_mut(queue_key) else { return };
        let Some(backoff) = &queue.mode.backoff else { return };
        let context = about.context(&queue.name);
        let counts = &mut queue.rule_counts;
        let rules = self.policy.reply_rules();
        let after = |rule: usize, rate| {
            let name = rules.get(rule).map(|rule| rule.name().clone());
            name.is_some_and(|name| counts.entry(name).or_insert_with(|| SlidingCount::new(rate)).record(now))
        };
        let rule = self.policy.leaves_backoff(&reply.to_string(), &context, after);
        // One that was under way when backoff began says nothing.
        let by_delivery = queue.settings.backoff_to_normal_after_delivery && begun >= backoff.since;
        if rule.is_some() || by_delivery {
            self.leave_backoff(now, queue_key, Change { until: None, rule, reply: Some(reply.clone()) });
        }
    }

    /// Does what the rules say about the queue.
    pub(super) fn apply_to_queue(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        decision: &RuleDecision,
        reply: &Reply,
    ) {
        let Some(queue_key) = self.destinations.get(key).map(|destination| destination.queue) else { return };
        match &decision.mode {
            Some((BackoffChange::Enter, rule)) => self.enter_backoff(now, queue_key, Change::by(rule, reply)),
            Some((BackoffChange::Leave, rule)) => self.leave_backoff(now, queue_key, Change::by(rule, reply)),
            None => {}
        }
        if let Some((reenable_after, rule)) = &decision.disable_source {
            let until = reenable_after.map(|after| now + after);
            self.disable_source(now, queue_key, Change { until, ..Change::by(rule, reply) });
        }
        let Some(queue) = self.queues.get_mut(queue_key) else { return };
        let mut capped = false;
        if let Some((limit, period, _)) = &decision.limit_connections {
            queue.mode.connection_cap = Some((*limit, now + *period));
            capped = true;
        }
        if let Some((rate, period, _)) = &decision.limit_rate {
            queue.mode.rate_cap = Some((*rate, now + *period));
            capped = true;
        }
        if capped {
            self.mode_changed(now, queue_key);
        }
        if let Some(rule) = &decision.defer_queue {
            self.hold_queue(now, queue_key, Change::by(rule, reply));
        }
    }

    /// Into backoff: its own intervals, connections and rates from now on. Nothing is cut.
    pub(super) fn enter_backoff(&mut self, now: Timestamp, key: QueueKey, change: Change) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        let until = queue.settings.backoff_to_normal_after.map(|after| now + after);
        if let Some(backoff) = &mut queue.mode.backoff {
            // Its end moves; there is no news in it.
            backoff.until = until;
            self.mode_changed(now, key);
            return;
        }
        queue.mode.backoff = Some(Backoff { since: now, until });
        self.mode_changed(now, key);
        self.report_mode(now, key, QueueModeChange::Backoff, Change { until, ..change });
    }

    pub(super) fn leave_backoff(&mut self, now: Timestamp, key: QueueKey, change: Change) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        if queue.mode.backoff.take().is_some() {
            self.mode_changed(now, key);
            self.report_mode(now, key, QueueModeChange::Normal, change);
        }
    }

    /// The queue enters retry mode as a whole.
    fn hold_queue(&mut self, now: Timestamp, key: QueueKey, change: Change) {
        let random = self.rng.u64(..);
        let Some(queue) = self.queues.get_mut(key) else { return };
        if queue.mode.held_until.is_some_and(|until| until > now) {
            return;
        }
        queue.mode.held_steps = queue.mode.held_steps.saturating_add(1);
        let interval = queue.retry_after().interval(queue.mode.held_steps);
        let until = now + crate::policy::with_jitter(interval, queue.settings.retry_jitter, random);
        queue.mode.held_until = Some(until);
        self.mode_changed(now, key);
        self.report_mode(now, key, QueueModeChange::Deferred, Change { until: Some(until), ..change });
        self.revisit_queue(key);
    }

    /// The source is not used for this queue. Mail of a pool goes on by another of its sources.
    pub(super) fn disable_source(&mut self, now: Timestamp, key: QueueKey, change: Change) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        let until = change.until;
        let news = queue.mode.disabled.replace(Disabled { until }).is_none();
        self.disabled_queues += usize::from(news);
        self.mode_changed(now, key);
        if news {
            self.report_mode(now, key, QueueModeChange::SourceDisabled, change.clone());
            if !self.has_other_source(key) {
                self.report_mode(now, key, QueueModeChange::AllSourcesDisabled, change);
            }
            self.revisit_queue(key);
        }
    }

    /// Whether a pool of the queue's source has another that may be used for it.
    fn has_other_source(&self, key: QueueKey) -> bool {
        let Some(queue) = self.queues.get(key) else { return false };
        let mut pools =
            self.policy.pools().filter(|pool| pool.sources().any(|(name, _)| *name == queue.source));
        pools.any(|pool| {
            pool.sources().any(|(name, _)| {
                let other = self.queues.find_ref((&queue.name, name));
                other.is_none_or(|queue| !queue.is_disabled())
            })
        })
    }

    pub(super) fn enable_source(&mut self, now: Timestamp, key: QueueKey, change: Change) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        if queue.mode.disabled.take().is_some() {
            self.disabled_queues = self.disabled_queues.saturating_sub(1);
            self.mode_changed(now, key);
            self.source_is_back(now, key, change);
        }
    }

    /// Mail that went by another source meanwhile comes back.
    fn source_is_back(&mut self, now: Timestamp, key: QueueKey, change: Change) {
        self.report_mode(now, key, QueueModeChange::SourceEnabled, change);
        let Some(name) = self.queues.get(key).map(|queue| queue.name.clone()) else { return };
        let sources: Vec<_> = self.policy.sources().map(|source| source.name().clone()).collect();
        for source in sources {
            if let Some(queue) = self.queues.find((&name, &source)) {
                self.revisit_queue(queue);
            }
        }
    }

    /// What ended by itself.
    pub(super) fn on_queue_timer(&mut self, now: Timestamp, key: QueueKey) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        let lapsed = queue.lapse(now);
        if lapsed.backoff {
            self.report_mode(now, key, QueueModeChange::Normal, Change::default());
        }
        if lapsed.disabled {
            self.disabled_queues = self.disabled_queues.saturating_sub(1);
            self.source_is_back(now, key, Change::default());
        }
        if lapsed.hold {
            self.revisit_queue(key);
        }
        self.mode_changed(now, key);
        self.remove_queue_if_done(now, key);
    }

    /// Limits, timer and state row follow a queue's mode.
    pub(super) fn mode_changed(&mut self, now: Timestamp, key: QueueKey) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        queue.unsaved = true;
        self.changed_queues.push(key);
        let slot = queue.slot;
        self.limits.set_limit(slot, queue.connection_limit());
        let next = queue.next_lapse();
        self.timers.arm(&mut queue.timer, next, TimerOwner::Queue(key));
        let (message, cap) = (queue.message_rate(), queue.capped_rate());
        self.limits.rates_changed(now, &queue.name, &queue.source, message, cap);
        while let Some(idle) = self.limits.over_limit(slot) {
            self.close(idle);
        }
    }

    pub(super) fn report_mode(
        &mut self,
        now: Timestamp,
        key: QueueKey,
        mode: QueueModeChange,
        change: Change,
    ) {
        let event = self.event_id(now);
        let Some(queue) = self.queues.get(key) else { return };
        self.report(DeliveryEvent::QueueMode(QueueMode {
            event,
            time: now,
            queue: queue.name.clone(),
            source: queue.source.clone(),
            mode,
            until: change.until,
            rule: change.rule,
            reply: change.reply,
        }));
    }

    /// All destinations of a queue are looked at again, in slices: whether they are held, where their mail goes.
    pub(super) fn revisit_queue(&mut self, key: QueueKey) {
        if let Some(queue) = self.queues.get(key) {
            self.revisits.extend(queue.destinations.iter().copied());
        }
    }

    /// A host is passed over until the destination's next step.
    pub(super) fn skip_host(&mut self, now: Timestamp, key: DestinationKey, host: &Arc<str>) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let Some(queue) = self.queues.get(destination.queue) else { return };
        let until = now + queue.retry_after().interval(1);
        destination.work.doubts.skipped.retain(|(skipped, until)| skipped != host && *until > now);
        destination.work.doubts.skipped.push((host.clone(), until));
        if let Some(attempt) = &mut destination.work.suspended {
            attempt.skip(host);
        }
        let working: Vec<_> = destination.work.working.iter().copied().collect();
        for id in working {
            if let Some(connection) = self.connections.get_mut(id)
                && connection.current.host == *host
            {
                connection.retired = true;
                self.close(id);
            }
        }
    }

    /// A rule bounces what a refused connection was for.
    pub(super) fn refuse_by_rule(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        fate: Fate,
        diagnosis: Diagnosis,
    ) {
        if fate == Fate::BounceQueue && self.is_fuse_blown(key) {
            // Nothing bounces, and the hosts do not take us.
            if !self.is_held(now, key) {
                self.fail_step(now, key, None, diagnosis);
            }
        } else if fate == Fate::BounceQueue {
            self.bounce_queue(now, key, &diagnosis);
        } else if let Some(destination) = self.destinations.get_mut(key) {
            destination.refusal = Some(Box::new(Refusal::for_a_while(now, diagnosis)));
            self.mark(key);
        }
    }

    /// Whether one more bounce by a rule or DNS is within the queue's fuse. If not, what would bounce is held.
    pub(super) fn fuse_allows(&mut self, now: Timestamp, key: DestinationKey) -> bool {
        let Some(queue_key) = self.destinations.get(key).map(|destination| destination.queue) else {
            return true;
        };
        let Some(queue) = self.queues.get_mut(queue_key) else { return true };
        if queue.mode.fuse_blown {
            return false;
        }
        if !queue.bounces.as_mut().is_some_and(|bounces| bounces.record(now)) {
            return true;
        }
        queue.mode.fuse_blown = true;
        self.mode_changed(now, queue_key);
        self.report_mode(now, queue_key, QueueModeChange::FuseBlown, Change::default());
        self.stop_bouncing(now, queue_key);
        // Mail does not bounce at an age any more.
        self.revisit_queue(queue_key);
        false
    }

    pub(super) fn is_fuse_blown(&self, key: DestinationKey) -> bool {
        let queue = self.destinations.get(key).and_then(|destination| self.queues.get(destination.queue));
        queue.is_some_and(|queue| queue.mode.fuse_blown)
    }
}
