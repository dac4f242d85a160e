//! The host's verbs: pause, resume, cancel, retry now, modes, the fuse.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::command::{Answer, Command, Token};
use super::directory::Named;
use super::outcome::{HELD_BY_FUSE, PAUSED};
use super::purge::Ending;
use super::queue::Queue;
use super::rules::Change;
use super::sweep::{Scope, SweepAction};
use super::writes::{Effect, poisoned};
use super::{DestinationKey, DomainKey, LaneKey, QueueKey, Scheduler};
use crate::clock::Timestamp;
use crate::control::{CancelAs, FuseDecision, Selector};
use crate::event::{Diagnosis, Failure, QueueModeChange, Reason};
use crate::message::{Domain, MessageId, QueueName};
use crate::reply::{EnhancedStatus, Stage};
use crate::storage::{Envelope, Filter, ItemId, StorageError, StorageErrorKind};

/// Pauses that may stand at a time.
const MOST_PAUSES: usize = 10_000;

/// Something the host wants.
#[derive(Clone, Debug)]
pub(crate) enum Control {
    Pause(Selector),
    Resume(Selector),
    Cancel(Selector, CancelAs),
    RetryNow(Selector),
    SetBackoff { selector: Selector, backoff: bool },
    EnableSource { queue: QueueName, source: Arc<str> },
    DecideFuse { queue: QueueName, decision: FuseDecision },
}

/// What is paused. Kept over restarts.
#[derive(Default)]
pub(super) struct Pauses(BTreeSet<Selector>);

impl Pauses {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn insert(&mut self, selector: Selector) -> bool {
        self.0.insert(selector)
    }

    fn remove(&mut self, selector: &Selector) -> bool {
        self.0.remove(selector)
    }

    /// What pauses a queue of a source as a whole.
    pub(super) fn of_queue(&self, name: &QueueName, source: &Arc<str>) -> Option<Selector> {
        self.first_of(|| [Selector::Queue(name.clone()), Selector::Source(source.clone())])
    }

    pub(super) fn of_domain(&self, domain: &Domain) -> Option<Selector> {
        self.first_of(|| [Selector::Domain(domain.clone())])
    }

    /// What pauses a message by itself, its tags aside.
    fn of_id(&self, id: MessageId) -> Option<Selector> {
        self.first_of(|| [Selector::Message(id)])
    }

    /// What pauses a message by itself.
    pub(super) fn of_message(&self, envelope: &Envelope) -> Option<Selector> {
        let tag =
            |(name, value): (&String, &String)| Selector::Tag { name: name.clone(), value: value.clone() };
        self.of_id(envelope.id).or_else(|| self.first_of(|| envelope.tags.iter().map(tag)))
    }

    fn first_of<I: IntoIterator<Item = Selector>>(&self, selectors: impl FnOnce() -> I) -> Option<Selector> {
        if self.0.is_empty() {
            return None;
        }
        selectors().into_iter().find(|selector| self.0.contains(selector))
    }
}

impl Scheduler {
    pub(super) fn on_control(&mut self, now: Timestamp, token: Token, control: Control) {
        if self.writes.is_stopped() {
            let answer = Answer::Done(Err(poisoned()));
            self.commands.push_back(Command::Answer { token, answer });
            return;
        }
        match control {
            Control::Pause(selector) => self.pause(now, token, selector),
            Control::Resume(selector) => self.resume(now, token, &selector),
            Control::Cancel(selector, ending) => self.cancel_all(now, token, selector, ending),
            Control::RetryNow(selector) => self.retry_now(now, token, &selector),
            Control::SetBackoff { selector, backoff } => {
                let queues = self.queues_with(&selector);
                for &key in &queues {
                    if backoff {
                        self.enter_backoff(now, key, Change::default());
                    } else {
                        self.leave_backoff(now, key, Change::default());
                    }
                }
                self.done(now, token, queues.len());
            }
            Control::EnableSource { queue, source } => {
                let key = self.queues.find((&queue, &source));
                if let Some(key) = key {
                    self.enable_source(now, key, Change::default());
                }
                self.done(now, token, usize::from(key.is_some()));
            }
            Control::DecideFuse { queue, decision } => self.decide_fuse(now, token, &queue, decision),
        }
    }

    /// Answers once all that was decided is durable.
    fn done(&mut self, now: Timestamp, token: Token, count: usize) {
        self.write_state();
        self.after_writes(now, Effect::Answer(token, Answer::Done(Ok(count as u64))));
    }

    fn pause(&mut self, now: Timestamp, token: Token, selector: Selector) {
        if self.pauses.0.len() >= MOST_PAUSES && !self.pauses.0.contains(&selector) {
            let message = format!("{MOST_PAUSES} pauses stand already: resume some, or pause a queue or tag");
            let answer = Answer::Done(Err(StorageError::new(StorageErrorKind::Full, message)));
            self.commands.push_back(Command::Answer { token, answer });
            return;
        }
        if self.pauses.insert(selector.clone()) {
            self.store_pause(&selector);
            self.report_pause(now, &selector, QueueModeChange::Paused);
            match &selector {
                Selector::Domain(domain) => {
                    for key in self.domains_of(domain) {
                        self.send_home(now, key);
                        self.revisit_domain(now, key);
                    }
                }
                Selector::Message(_) | Selector::Tag { .. } => {
                    let paused: Vec<ItemId> = self
                        .window
                        .waiting_items()
                        .into_iter()
                        .filter(|&id| {
                            let item = self.window.get(id);
                            item.is_some_and(|item| self.pauses.of_message(&item.item.envelope).is_some())
                        })
                        .collect();
                    paused.into_iter().for_each(|id| self.put_back(now, id, Some(PAUSED)));
                }
                Selector::Queue(_) | Selector::Source(_) => {
                    for key in self.queues_of(&selector) {
                        self.revisit_queue(key);
                    }
                }
            }
        }
        self.done(now, token, 1);
    }

    fn resume(&mut self, now: Timestamp, token: Token, selector: &Selector) {
        if !self.pauses.remove(selector) {
            return self.done(now, token, 0);
        }
        self.forget_pause(selector);
        self.report_pause(now, selector, QueueModeChange::Resumed);
        match selector {
            Selector::Domain(domain) => {
                for key in self.domains_of(domain) {
                    self.revisit_domain(now, key);
                }
                self.done(now, token, 1);
            }
            Selector::Message(_) | Selector::Tag { .. } => {
                let scope = self.scope_of(selector);
                self.sweep(now, scope, SweepAction::Release { only: Some(PAUSED) }, token);
            }
            Selector::Queue(_) | Selector::Source(_) => {
                for key in self.queues_of(selector) {
                    self.revisit_queue(key);
                }
                self.done(now, token, 1);
            }
        }
    }

    fn report_pause(&mut self, now: Timestamp, selector: &Selector, mode: QueueModeChange) {
        for key in self.queues_of(selector) {
            self.report_mode(now, key, mode, Change::default());
        }
    }

    fn cancel_all(&mut self, now: Timestamp, token: Token, selector: Selector, ending: CancelAs) {
        let bounces = ending == CancelAs::Bounced;
        match selector {
            Selector::Message(message) => self.on_cancel(now, token, message, bounces),
            Selector::Tag { name, value } => self.cancel_tag(now, token, name, value, ending_of(bounces)),
            Selector::Queue(_) | Selector::Domain(_) | Selector::Source(_) => {
                let lanes = self.lanes_of(&selector);
                self.purge(now, lanes, ending_of(bounces), Some(token));
            }
        }
    }

    fn retry_now(&mut self, now: Timestamp, token: Token, selector: &Selector) {
        let destinations: BTreeSet<DestinationKey> = match selector {
            Selector::Queue(_) | Selector::Source(_) => {
                let queues = self.queues_of(selector);
                for &key in &queues {
                    if let Some(queue) = self.queues.get_mut(key)
                        && queue.mode.held_until.take().is_some()
                    {
                        self.mode_changed(now, key);
                    }
                }
                let destinations = queues.iter().filter_map(|&key| self.queues.get(key));
                destinations.flat_map(|queue| queue.destinations.iter().copied()).collect()
            }
            Selector::Domain(_) => {
                let lanes = self.lanes_of(selector);
                lanes.iter().filter_map(|&lane| Some(self.lanes.get(lane)?.destination)).collect()
            }
            Selector::Message(_) | Selector::Tag { .. } => BTreeSet::new(),
        };
        for key in destinations {
            if let Some(destination) = self.destinations.get_mut(key) {
                // The step stays: should it fail again, the next interval follows.
                destination.retry.until = destination.retry.until.map(|until| until.min(now));
                destination.cohort.hold_until = None;
                destination.kept_until = None;
            }
            self.store_state_if_stored(key);
            self.revisits.push_back(key);
            self.mark(key);
        }
        let scope = self.scope_of(selector);
        self.sweep(now, scope, SweepAction::Release { only: None }, token);
    }

    fn decide_fuse(&mut self, now: Timestamp, token: Token, name: &QueueName, decision: FuseDecision) {
        let scope = self.scope_of(&Selector::Queue(name.clone()));
        match decision {
            // What else DNS bounces by now goes with it; only then is counted anew.
            FuseDecision::Bounce => {
                let scope = scope.then_reset_fuse_of(name.clone());
                self.sweep(now, scope, SweepAction::BounceHeld, token);
            }
            FuseDecision::Keep => {
                self.keep_missing(name);
                self.reset_fuse(now, name);
                self.sweep(now, scope, SweepAction::Release { only: Some(HELD_BY_FUSE) }, token);
            }
        }
    }

    /// Bounces are counted anew, and mail bounces at an age again.
    pub(super) fn reset_fuse(&mut self, now: Timestamp, name: &QueueName) {
        for key in self.queues_named(name) {
            let Some(queue) = self.queues.get_mut(key) else { continue };
            queue.bounces = queue.settings.bounce_fuse.map(super::queue::fuse);
            if std::mem::take(&mut queue.mode.fuse_blown) {
                self.mode_changed(now, key);
                self.report_mode(now, key, QueueModeChange::FuseReset, Change::default());
                self.revisit_queue(key);
            }
        }
    }

    /// Mail of domains that DNS does not have is tried until it expires: the host said to keep it.
    fn keep_missing(&mut self, name: &QueueName) {
        let queues = self.queues_named(name);
        let queues = queues.iter().filter_map(|&key| self.queues.get(key));
        let destinations: Vec<_> = queues.flat_map(|queue| queue.destinations.iter().copied()).collect();
        for key in destinations {
            let missing = self.destinations.get_mut(key).and_then(|destination| destination.missing.as_mut());
            if let Some(missing) = missing {
                missing.kept = true;
                self.store_state(key);
            }
        }
    }

    /// Where the items of a selector are listed.
    fn scope_of(&self, selector: &Selector) -> Scope {
        match selector {
            Selector::Message(id) => Scope::one(Filter::Message(*id)),
            Selector::Tag { name, value } => {
                Scope::one(Filter::Tag { name: name.clone(), value: value.clone() })
            }
            Selector::Queue(_) | Selector::Domain(_) | Selector::Source(_) => {
                let lanes = self.lanes_of(selector);
                let lanes = lanes.into_iter().filter_map(|lane| Some(self.lanes.get(lane)?.key.clone()));
                Scope::of(lanes.map(Filter::Lane))
            }
        }
    }

    /// Those named, or those in which a domain's mail lies.
    fn queues_with(&self, selector: &Selector) -> Vec<QueueKey> {
        let Selector::Domain(_) = selector else { return self.queues_of(selector) };
        let lanes = self.lanes_of(selector);
        let queues = lanes.iter().filter_map(|&lane| {
            let lane = self.lanes.get(lane)?;
            Some(self.destinations.get(lane.destination)?.queue)
        });
        queues.collect::<BTreeSet<_>>().into_iter().collect()
    }

    pub(super) fn queues_named(&self, name: &QueueName) -> Vec<QueueKey> {
        self.queues_of(&Selector::Queue(name.clone()))
    }

    /// Looks at every queue: verbs are rare.
    fn queues_of(&self, selector: &Selector) -> Vec<QueueKey> {
        let is_wanted = |queue: &Queue| match selector {
            Selector::Queue(wanted) => *wanted == queue.name,
            Selector::Source(wanted) => *wanted == queue.source,
            _ => false,
        };
        self.queues.iter().filter(|(_, queue)| is_wanted(queue)).map(|(key, _)| key).collect()
    }

    fn domains_of(&self, domain: &Domain) -> Vec<DomainKey> {
        let named = self.domains.iter().filter(|(_, state)| state.name().0 == domain);
        named.map(|(key, _)| key).collect()
    }

    fn lanes_of(&self, selector: &Selector) -> Vec<LaneKey> {
        if let Selector::Domain(domain) = selector {
            let domains = self.domains_of(domain);
            let domains = domains.iter().filter_map(|&key| self.domains.get(key));
            return domains.flat_map(|domain| domain.lanes.iter().copied()).collect();
        }
        let queues = self.queues_of(selector);
        let queues = queues.iter().filter_map(|&key| self.queues.get(key));
        let destinations = queues.flat_map(|queue| queue.destinations.iter());
        let destinations = destinations.filter_map(|&key| self.destinations.get(key));
        destinations.flat_map(|destination| destination.lanes.iter().copied()).collect()
    }

    /// The home of a domain that was paused or resumed.
    fn revisit_domain(&mut self, now: Timestamp, key: DomainKey) {
        if let Some(destination) = self.domains.get(key).map(|domain| domain.destination) {
            self.revisit(now, destination);
        }
    }
}

fn ending_of(bounces: bool) -> Ending {
    if bounces { Ending::Bounced(Box::new(cancelled_diagnosis())) } else { Ending::Cancelled }
}

/// With what a cancellation that bounces does so.
pub(super) fn cancelled_diagnosis() -> Diagnosis {
    Diagnosis {
        stage: Stage::Queue,
        status: EnhancedStatus::new(5, 0, 0),
        reason: Reason::Cancelled,
        failure: Failure::Engine("cancelled by the sender".to_owned()),
        rule: None,
    }
}
