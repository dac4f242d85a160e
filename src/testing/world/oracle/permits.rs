//! Permits all return.

use super::{Facts, Invariant, Judgement, Snapshot};

pub(super) struct Permits;

impl Invariant for Permits {
    fn check(&mut self, facts: &Facts, snapshot: &Snapshot) -> Judgement {
        let Some(gauges) = &snapshot.gauges else { return Ok(()) };
        let open = facts.open.len();
        if gauges.open != open {
            return Err(format!("{open} connections are open, and the engine counts {}", gauges.open).into());
        }
        if gauges.taken != gauges.held {
            let (taken, held) = (gauges.taken, gauges.held);
            return Err(format!("connections hold {held} permits, and {taken} are taken").into());
        }
        Ok(())
    }
}
