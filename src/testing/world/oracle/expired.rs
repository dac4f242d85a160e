//! Nothing is tried once it has expired.
//!
//! Expiries are worked off behind deliveries, and settings may have changed: some time is allowed.

use std::time::Duration;

use super::super::observation::{Observation, Seen};
use super::{Facts, Invariant, Judgement};

/// How late it may be noticed.
const LATE: Duration = Duration::from_secs(600);

pub(super) struct Expired;

impl Invariant for Expired {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        let Seen::Offered { connection, message, queue, .. } = &observation.seen else { return Ok(()) };
        let (Some(open), Some(envelope)) = (facts.open.get(connection), facts.envelope(*message)) else {
            return Ok(());
        };
        let is_settled = observation.time.saturating_since(facts.epoch_since) > LATE;
        if facts.trouble || !is_settled {
            return Ok(());
        }
        let expires = envelope
            .expires_at
            .unwrap_or_else(|| envelope.age_from + facts.settings(queue, &open.source).bounce_after);
        if observation.time <= expires + LATE {
            return Ok(());
        }
        Err(format!("{message} of {queue} is tried at {}, and expired at {expires}", observation.time).into())
    }
}
