//! Attempts are counted and intervals follow the policy, over restarts too.

use std::collections::HashMap;
use std::time::Duration;

use super::super::observation::{Observation, Seen, record};
use super::facts::QueueId;
use super::{Facts, Invariant, Judgement};
use crate::event::{DeliveryEvent, Diagnosis};
use crate::policy::QueueSettings;

/// Failed steps of each queue, one after the other.
#[derive(Default)]
pub(super) struct Schedule {
    steps: HashMap<QueueId, Steps>,
}

#[derive(Clone, Copy)]
struct Steps {
    /// The least that the next one may count from.
    least: u32,
    seen: u32,
    state_writes: u64,
}

impl Invariant for Schedule {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        match &observation.seen {
            Seen::Event(event) => match &**event {
                DeliveryEvent::Deferred(deferred) => {
                    let record = &deferred.record;
                    let wait = deferred.next_attempt.saturating_since(record.time);
                    let settings = facts.settings(&record.queue, &record.source);
                    let standing = facts.standing_of(record.id, &record.recipient);
                    let (before, now) = (standing.attempts, record.attempts);
                    let (message, recipient) = (record.id, &record.recipient);
                    // Held by a fuse, nobody is charged.
                    if settings.bounce_fuse.is_some() {
                        return Ok(());
                    }
                    // The event of a deferral that was durable dies with the process.
                    let lives = facts.life - standing.attempts_seen_in.max(1).min(facts.life);
                    if now <= before || now > before + 1 + lives {
                        return Err(format!("{message} to {recipient} has {now} attempts after {before}"));
                    }
                    if may_differ(&deferred.diagnosis) || fits(&settings, wait, now..=now) {
                        return Ok(());
                    }
                    Err(format!("{message} to {recipient} waits {wait:?} after attempt {now}"))
                }
                DeliveryEvent::QueueDeferred(deferred) => {
                    let key = (deferred.queue.clone(), deferred.source.clone());
                    if deferred.queue.ends_with(".rollup") {
                        return Ok(());
                    }
                    let wait = deferred.next_attempt.saturating_since(deferred.time);
                    let settings = facts.settings(&deferred.queue, &deferred.source);
                    let known = self.steps.get(&key).copied();
                    let known = known.unwrap_or(Steps { least: 0, seen: 0, state_writes: 0 });
                    let steps = Steps {
                        least: known.least + 1,
                        seen: known.seen + 1,
                        state_writes: facts.state_writes,
                    };
                    self.steps.insert(key, steps);
                    if may_differ(&deferred.diagnosis) || fits(&settings, wait, steps.least..=steps.seen) {
                        return Ok(());
                    }
                    let (queue, least, seen) = (&deferred.queue, steps.least, steps.seen);
                    Err(format!("{queue} waits {wait:?} after step {least} to {seen}"))
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
            Seen::Crashed => {
                // A step that was not durable is taken again.
                for steps in self.steps.values_mut() {
                    if steps.state_writes == facts.state_writes {
                        steps.least = steps.least.saturating_sub(1);
                    }
                }
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

/// A reply rule, or what it caused, may have set another interval.
fn may_differ(diagnosis: &Diagnosis) -> bool {
    diagnosis.rule.is_some()
}

/// Whether this is an interval of one of these attempts, in backoff or not, with jitter.
fn fits(settings: &QueueSettings, wait: Duration, attempts: std::ops::RangeInclusive<u32>) -> bool {
    let longest = 1.0 + settings.retry_jitter;
    let rounding = Duration::from_millis(1);
    attempts.into_iter().any(|attempt| {
        [&settings.retry_after, &settings.backoff_retry_after].into_iter().any(|list| {
            let interval = list.interval(attempt);
            wait + rounding >= interval && wait <= interval.mul_f64(longest) + rounding
        })
    })
}
