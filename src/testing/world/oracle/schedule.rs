//! Attempts are counted and intervals follow the policy, over restarts too.
//!
//! An interval is that of the list in force, or that of the reply rule which the record names. Where backoff began or
//! ended at the moment of the decision either list is right; where the rule that is named decided about the recipient,
//! the interval may be of any rule.
//!
//! Destinations of a rollup are told apart by the domain they came to be for. One may have been forgotten and come to
//! be anew: its step may be any up to as many as there were.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::observation::{Observation, Seen, record};
use super::facts::QueueId;
use super::{Facts, Invariant, Judgement};
use crate::event::{DeliveryEvent, Diagnosis};
use crate::message::Domain;
use crate::policy::{Action, QueueSettings, ReplyRule, RetryAfter};
use crate::reply::Stage;

/// Failed steps of each queue, one after the other.
#[derive(Default)]
pub(super) struct Schedule {
    steps: HashMap<QueueId, Steps>,
    /// The most steps in a row of each destination of a rollup, by the domain it came to be for.
    of_rollups: HashMap<(QueueId, Domain), u32>,
}

#[derive(Clone, Copy, Default)]
struct Steps {
    /// The least that the next one may count from.
    least: u32,
    /// The most.
    most: u32,
    /// [`Facts::times_forgotten`] at the last one.
    forgotten: u64,
}

impl Invariant for Schedule {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        match &observation.seen {
            Seen::Event(event) => match &**event {
                DeliveryEvent::Deferred(deferred) => {
                    let record = &deferred.record;
                    let wait = deferred.next_attempt.saturating_since(record.time);
                    let standing = facts.standing_of(record.id, &record.recipient);
                    let settings = facts.settings(&record.queue, &record.source);
                    let (before, now) = (standing.attempts, record.attempts);
                    let (message, recipient) = (record.id, &record.recipient);
                    if facts.is_held_by_fuse(record) {
                        return Ok(());
                    }
                    // Also if its domain has moved to another queue meanwhile.
                    let offered_from = standing.offered_from.clone();
                    if let Some(queue) = offered_from.filter(|queue| *queue != record.queue) {
                        let named = &record.queue;
                        return Err(
                            format!("{message} to {recipient} was sent from {queue}, not {named}").into()
                        );
                    }
                    let lives = facts.lives_since(&standing);
                    if now <= before || now > before + 1 + lives {
                        return Err(
                            format!("{message} to {recipient} has {now} attempts after {before}").into()
                        );
                    }
                    // Events of deferrals come once they are durable.
                    let key = (record.queue.clone(), record.source.clone());
                    let backoff = facts.modes.was_in_backoff(&key, record.time, observation.at);
                    let lists = lists(&settings, backoff);
                    let of_rule = interval_of_rule(facts, &deferred.diagnosis);
                    let fits = match of_rule {
                        OfRule::None => fits(&settings, wait, intervals(&lists, now..=now)),
                        OfRule::This(interval) => fits(&settings, wait, [interval]),
                        OfRule::Any => {
                            let intervals = intervals(&lists, now..=now);
                            fits(&settings, wait, intervals.chain(intervals_of_rules(facts)))
                        }
                    };
                    if record.time <= facts.policy_since || fits {
                        return Ok(());
                    }
                    Err(format!("{message} to {recipient} waits {wait:?} after attempt {now}").into())
                }
                DeliveryEvent::QueueDeferred(deferred) => {
                    let key = (deferred.queue.clone(), deferred.source.clone());
                    let wait = deferred.next_attempt.saturating_since(deferred.time);
                    let is_of_before = deferred.time <= facts.policy_since;
                    let settings = facts.settings(&deferred.queue, &deferred.source);
                    let backoff = facts.modes.was_in_backoff(&key, deferred.time, observation.at);
                    let lists = lists(&settings, backoff);
                    if deferred.queue.ends_with(".rollup") {
                        let most = self.of_rollups.entry((key, deferred.domain.clone())).or_default();
                        *most += 1;
                        let intervals = intervals(&lists, 1..=*most);
                        if is_of_before || fits(&settings, wait, intervals.chain(intervals_of_rules(facts))) {
                            return Ok(());
                        }
                        let (queue, domain) = (&deferred.queue, &deferred.domain);
                        return Err(format!(
                            "{queue} waits {wait:?} for the hosts of {domain} after step 1 to {most}"
                        )
                        .into());
                    }
                    let mut known = self.steps.get(&key).copied().unwrap_or_default();
                    let forgotten = facts.times_forgotten(&key);
                    if known.forgotten != forgotten {
                        known.least = 0;
                    }
                    let steps = Steps { least: known.least + 1, most: known.most + 1, forgotten };
                    // What DNS did not have for a while may be there now: then the list begins anew.
                    let by_dns = deferred.diagnosis.stage == Stage::Dns;
                    let known = Steps { least: if by_dns { 0 } else { steps.least }, ..steps };
                    self.steps.insert(key.clone(), known);
                    // A rule about an address tried before may have said so: the record names the last one's.
                    let intervals = intervals(&lists, steps.least..=steps.most);
                    if is_of_before || fits(&settings, wait, intervals.chain(intervals_of_rules(facts))) {
                        return Ok(());
                    }
                    let (queue, Steps { least, most, .. }) = (&deferred.queue, steps);
                    Err(format!("{queue} waits {wait:?} after step {least} to {most}").into())
                }
                event => {
                    // Its mail may be gone, and what was remembered of it.
                    if let Some(record) = record(event).filter(|_| event.is_final()) {
                        self.forget(&(record.queue.clone(), record.source.clone()));
                    }
                    Ok(())
                }
            },
            Seen::Answered { connection, taken, .. } if !taken.is_empty() => {
                if let Some(open) = facts.open.get(connection) {
                    self.forget(&(open.queue.clone(), open.source.clone()));
                }
                Ok(())
            }
            Seen::Started => {
                // A step that was not durable is taken again.
                let durable = facts.durable_steps().map(|(key, stored)| {
                    let least = if stored.is_missing { 0 } else { stored.step };
                    let forgotten = facts.times_forgotten(&key);
                    (key, Steps { least, most: stored.step, forgotten })
                });
                self.steps = durable.collect();
                Ok(())
            }
            Seen::Control(_) | Seen::PolicyReplaced => {
                self.steps.values_mut().for_each(|steps| steps.least = 0);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Schedule {
    /// From here on the next step may be the first, or the next.
    fn forget(&mut self, key: &QueueId) {
        if let Some(steps) = self.steps.get_mut(key) {
            steps.least = 0;
        }
    }
}

/// The lists that may be in force.
fn lists(settings: &QueueSettings, backoff: Option<bool>) -> Vec<&RetryAfter> {
    match backoff {
        Some(backoff) => vec![settings.in_force(backoff).retry_after],
        None => vec![&settings.retry_after, &settings.backoff_retry_after],
    }
}

fn intervals(lists: &[&RetryAfter], attempts: RangeInclusive<u32>) -> impl Iterator<Item = Duration> {
    attempts.flat_map(move |attempt| lists.iter().map(move |list| list.interval(attempt)))
}

/// What a rule puts in place of the interval.
enum OfRule {
    None,
    This(Duration),
    /// A record names the rule that decided about the recipient. The interval may be of another.
    Any,
}

fn interval_of_rule(facts: &Facts, diagnosis: &Diagnosis) -> OfRule {
    let rule = diagnosis.rule.as_ref();
    let Some(name) = rule else { return OfRule::None };
    let rules = facts.policy.reply_rules();
    let Some(rule) = rules.iter().find(|rule| rule.name() == name) else { return OfRule::Any };
    let decides = |action: &Action| matches!(action, Action::RetryRecipient | Action::SkipMx);
    if rule.actions().iter().any(decides) {
        return OfRule::Any;
    }
    let stage = diagnosis.stage;
    let own = rule.actions().iter().filter(|action| rule.applies_at(action, stage)).find_map(interval);
    own.map_or(OfRule::None, OfRule::This)
}

fn interval(action: &Action) -> Option<Duration> {
    match action {
        Action::RetryAfter(interval) => Some(*interval),
        _ => None,
    }
}

fn intervals_of_rules(facts: &Facts) -> impl Iterator<Item = Duration> {
    facts.policy.reply_rules().iter().flat_map(ReplyRule::actions).filter_map(interval)
}

/// Whether this is one of these intervals, with jitter.
fn fits(settings: &QueueSettings, wait: Duration, intervals: impl IntoIterator<Item = Duration>) -> bool {
    let longest = 1.0 + settings.retry_jitter;
    let rounding = Duration::from_millis(1);
    let mut intervals = intervals.into_iter();
    intervals.any(|interval| wait + rounding >= interval && wait <= interval.mul_f64(longest) + rounding)
}
