//! Mail that nothing held does not expire before its first attempt.
//!
//! Judged only where nothing happened in all its time that may have held it: no start, no step of the clock, no other
//! policy, no word of the host, no trouble, no failed hosts and no other mode of its queue. Then it is wrong if for a
//! while of that time no connection was open at all. Limits and rates are not counted again: what waits while anything
//! is sent may wait for these.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::observation::{Observation, Seen};
use super::facts::{QueueId, is_about_accepted_mail};
use super::starved::slowest_rate;
use super::{Facts, Invariant, Judgement};
use crate::event::{DeliveryEvent, Reason, RecipientRecord};
use crate::message::{MessageId, QueueName};

/// How long nothing may be done while something could be, beside rates.
const IDLE: Duration = Duration::from_secs(1800);

#[derive(Default)]
pub(super) struct Neglected {
    accepted: HashMap<MessageId, Accepted>,
    /// Until when each queue may wait for its hosts, and when its mode changed last.
    failed: HashMap<QueueId, Duration>,
    /// The last trouble of all.
    trouble: Duration,
    /// The last time that any connection was open.
    busy: Duration,
    /// Long times before that in which none was.
    idle: Vec<(Duration, Duration)>,
}

struct Accepted {
    epoch: u64,
    controls: u64,
    at: Duration,
    /// When it was due first.
    due: Duration,
}

impl Invariant for Neglected {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        let at = observation.at;
        if !facts.open.is_empty() || matches!(observation.seen, Seen::Connecting { .. }) {
            if at > self.busy + IDLE && facts.open.is_empty() {
                self.idle.push((self.busy, at));
            }
            self.busy = at;
        }
        match &observation.seen {
            Seen::Accepted { message, hold_until, .. } => {
                let (epoch, controls) = (facts.epoch, facts.controls);
                let hold = hold_until.map(|until| until.saturating_since(observation.time));
                let due = at + hold.unwrap_or_default();
                self.accepted.insert(*message, Accepted { epoch, controls, at, due });
            }
            Seen::Event(event) => match &**event {
                DeliveryEvent::QueueDeferred(event) => {
                    let wait = event.next_attempt.saturating_since(event.time);
                    self.failed(at + wait, &event.queue, &event.source);
                }
                DeliveryEvent::QueueMode(event) => self.failed(at, &event.queue, &event.source),
                DeliveryEvent::LocalTrouble(_) => self.trouble = at,
                DeliveryEvent::StorageTrouble(trouble) if is_about_accepted_mail(trouble) => {
                    self.trouble = at
                }
                DeliveryEvent::Bounced(bounced) if bounced.diagnosis.reason == Reason::NeverAttempted => {
                    return self.judge(facts, at, &bounced.record);
                }
                _ => {}
            },
            _ => {}
        }
        Ok(())
    }
}

impl Neglected {
    fn failed(&mut self, at: Duration, queue: &QueueName, source: &Arc<str>) {
        let last = self.failed.entry((queue.clone(), source.clone())).or_default();
        *last = at.max(*last);
    }

    fn judge(&self, facts: &Facts, at: Duration, record: &RecipientRecord) -> Judgement {
        let Some(accepted) = self.accepted.get(&record.id) else { return Ok(()) };
        let key = (record.queue.clone(), record.source.clone());
        // Before its rollup was known it lay in its domain's own queue.
        let home = (QueueName::from(&record.domain), record.source.clone());
        // Nor is it known of which rollups it was meanwhile.
        let may_be_of = |queue: &QueueId| *queue == key || *queue == home || queue.0.ends_with(".rollup");
        let failed = self.failed.iter().filter(|(queue, _)| may_be_of(queue));
        let failed = failed.map(|(_, &until)| until).fold(self.trouble, Duration::max);
        let was_offered = facts.standing_of(record.id, &record.recipient).first_offered.is_some();
        let is_quiet = (accepted.epoch, accepted.controls) == (facts.epoch, facts.controls);
        let is_usual = facts.modes.is_usual(&key) && facts.modes.is_usual(&home);
        if was_offered || !is_quiet || !is_usual || failed > accepted.at {
            return Ok(());
        }
        let last = facts.open.is_empty().then_some((self.busy, at));
        let patience = IDLE + slowest_rate(&facts.settings(&record.queue, &record.source)) * 2;
        let is_long =
            |&(from, to): &(Duration, Duration)| to.saturating_sub(from.max(accepted.due)) > patience;
        if self.idle.iter().chain(&last).any(is_long) {
            let (message, recipient) = (record.id, &record.recipient);
            let what =
                format!("{message} to {recipient} expired and was never tried, though nothing held it");
            return Err(what.into());
        }
        Ok(())
    }
}
