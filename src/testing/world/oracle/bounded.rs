//! What has a bound in memory stays within it.

use super::{Facts, Invariant, Judgement, Snapshot};

/// What a destination that can send may claim though the window is full.
const GUARANTEED: usize = 8;
/// Items that end at a time for their age, of each claim under way.
const ENDING: usize = 128;

pub(super) struct Bounded;

impl Invariant for Bounded {
    fn check(&mut self, facts: &Facts, snapshot: &Snapshot) -> Judgement {
        let Some(gauges) = &snapshot.gauges else { return Ok(()) };
        let bounds = &facts.bounds;
        let ending = ENDING * bounds.claims;
        // One that is larger than there is room goes alone, beside small ones.
        let in_transit = bounds.transit_octets.max(gauges.largest_body + bounds.transit_octets / 4);
        let all = [
            ("items in the window", gauges.window, bounds.window + GUARANTEED * gauges.open + ending),
            ("octets held", gauges.held_octets, bounds.held_octets),
            ("octets in transactions", gauges.transit_octets, in_transit),
            ("look-ups", gauges.look_ups, bounds.look_ups),
            ("claims", gauges.claims, bounds.claims),
            ("submissions", gauges.submissions, bounds.submissions),
            ("items whose end is not durable", gauges.unsettled, bounds.unsettled + gauges.open + ending),
        ];
        match all.into_iter().find(|(_, there, most)| there > most) {
            Some((what, there, most)) => {
                Err(format!("there are {there} {what}: at most {most} may be").into())
            }
            None => Ok(()),
        }
    }
}
