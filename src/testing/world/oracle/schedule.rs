//! Attempts are counted and intervals follow the policy, over restarts too.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::observation::{Observation, Seen, record};
use super::facts::QueueId;
use super::{Facts, Invariant, Judgement};
use crate::clock::Timestamp;
use crate::event::DeliveryEvent;
use crate::policy::{Action, QueueSettings, ReplyRule};
use crate::reply::Stage;

/// Failed steps of each queue, one after the other.
#[derive(Default)]
pub(super) struct Schedule {
    steps: HashMap<QueueId, Steps>,
    policy_since: Option<Timestamp>,
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
                    // Also if its domain has moved to another queue meanwhile.
                    if let Some(queue) = standing.offered_from.filter(|queue| *queue != record.queue) {
                        let named = &record.queue;
                        return Err(
                            format!("{message} to {recipient} was sent from {queue}, not {named}").into()
                        );
                    }
                    // Held by a fuse, nobody is charged.
                    if settings.bounce_fuse.is_some() {
                        return Ok(());
                    }
                    // The event of a deferral that was durable dies with the process.
                    let lives = facts.life - standing.attempts_seen_in.max(1).min(facts.life);
                    if now <= before || now > before + 1 + lives {
                        return Err(
                            format!("{message} to {recipient} has {now} attempts after {before}").into()
                        );
                    }
                    // Events of deferrals come once they are durable.
                    let is_of_older_policy = self.policy_since.is_some_and(|since| record.time <= since);
                    if is_of_older_policy || fits(facts, &settings, wait, now..=now) {
                        return Ok(());
                    }
                    Err(format!("{message} to {recipient} waits {wait:?} after attempt {now}").into())
                }
                DeliveryEvent::QueueDeferred(deferred) => {
                    let key = (deferred.queue.clone(), deferred.source.clone());
                    if deferred.queue.ends_with(".rollup") {
                        return Ok(());
                    }
                    let wait = deferred.next_attempt.saturating_since(deferred.time);
                    let settings = facts.settings(&deferred.queue, &deferred.source);
                    let mut known = self.steps.get(&key).copied().unwrap_or_default();
                    let forgotten = facts.times_forgotten(&key);
                    if known.forgotten != forgotten {
                        known.least = 0;
                    }
                    let steps = Steps { least: known.least + 1, most: known.most + 1, forgotten };
                    // What DNS did not have for a while may be there now: then the list begins anew.
                    let by_dns = deferred.diagnosis.stage == Stage::Dns;
                    let known = Steps { least: if by_dns { 0 } else { steps.least }, ..steps };
                    self.steps.insert(key, known);
                    if fits(facts, &settings, wait, steps.least..=steps.most) {
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
                if observation.seen == Seen::PolicyReplaced {
                    self.policy_since = Some(observation.time);
                }
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

/// Whether this is an interval of one of these attempts, in backoff or not, or that of a reply rule; with jitter.
fn fits(facts: &Facts, settings: &QueueSettings, wait: Duration, attempts: RangeInclusive<u32>) -> bool {
    let longest = 1.0 + settings.retry_jitter;
    let rounding = Duration::from_millis(1);
    let lists = [&settings.retry_after, &settings.backoff_retry_after];
    let of_lists = attempts.flat_map(|attempt| lists.map(|list| list.interval(attempt)));
    let actions = facts.policy.reply_rules().iter().flat_map(ReplyRule::actions);
    let of_rules = actions.filter_map(|action| match action {
        Action::RetryAfter(interval) => Some(*interval),
        _ => None,
    });
    of_lists
        .chain(of_rules)
        .any(|interval| wait + rounding >= interval && wait <= interval.mul_f64(longest) + rounding)
}
