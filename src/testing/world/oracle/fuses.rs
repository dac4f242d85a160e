//! No more recipients of a queue bounce by reply rules or DNS than its `bounce-fuse` lets through.
//!
//! Counted by the times at which it was decided. The count begins anew with what the host says, with a new engine, another
//! policy and a step of the clock.

use std::collections::HashMap;

use super::super::observation::{Observation, Seen};
use super::bounces::is_expiry;
use super::facts::QueueId;
use super::{Facts, Invariant, Judgement};
use crate::clock::Timestamp;
use crate::event::{Bounced, DeliveryEvent, Diagnosis, Failure, Reason};

/// Larger fuses count in parts of their period.
const EXACT: u32 = 1_000;

#[derive(Default)]
pub(super) struct Fuses {
    bounced: HashMap<QueueId, Vec<Timestamp>>,
    /// Epoch and controls that they are counted in.
    counted_in: (u64, u64),
}

impl Invariant for Fuses {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        let Seen::Event(event) = &observation.seen else { return Ok(()) };
        let DeliveryEvent::Bounced(Bounced { record, diagnosis, .. }) = &**event else { return Ok(()) };
        let counted_in = (facts.epoch, facts.controls);
        if self.counted_in != counted_in {
            self.bounced.clear();
            self.counted_in = counted_in;
        }
        // It may be told after the count began anew, and the clock was set back.
        let since = facts.last_control.map_or(facts.epoch_since, |said| said.max(facts.epoch_since));
        let is_of_now = record.time > since && record.time <= observation.time;
        if !is_of_now || is_expiry(diagnosis) || !is_counted(diagnosis) {
            return Ok(());
        }
        let settings = facts.settings(&record.queue, &record.source);
        let Some(fuse) = settings.bounce_fuse.filter(|fuse| fuse.count() <= EXACT) else { return Ok(()) };
        let bounced = self.bounced.entry((record.queue.clone(), record.source.clone())).or_default();
        bounced.retain(|&at| at <= record.time && at + fuse.period() > record.time);
        bounced.push(record.time);
        if bounced.len() <= fuse.count() as usize {
            return Ok(());
        }
        let (n, queue) = (bounced.len(), &record.queue);
        Err(format!("{n} recipients of {queue} bounced within {:?}, and its fuse is {fuse}", fuse.period())
            .into())
    }
}

/// By a rule or DNS for certain.
fn is_counted(diagnosis: &Diagnosis) -> bool {
    match (&diagnosis.failure, &diagnosis.rule) {
        (Failure::Reply(reply), Some(_)) => !reply.is_permanent(),
        _ => matches!(diagnosis.reason, Reason::NoMx | Reason::NullMx | Reason::NxDomain | Reason::NoHost),
    }
}
