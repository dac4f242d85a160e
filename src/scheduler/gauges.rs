//! What the scheduler holds at a moment, for checks from outside.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Scheduler;
use super::session::State;
use crate::clock::Timestamp;
use crate::message::QueueName;
use crate::storage::Lane;

/// How much there is of what has a bound.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gauges {
    /// Connections that hold permits.
    pub(crate) open: usize,
    /// Permits that connections hold, and permits that are taken of limits.
    pub(crate) held: usize,
    pub(crate) taken: usize,
    pub(crate) window: usize,
    pub(crate) held_octets: usize,
    pub(crate) transit_octets: usize,
    /// Of the largest content in a transaction.
    pub(crate) largest_body: usize,
    pub(crate) look_ups: usize,
    pub(crate) claims: usize,
    pub(crate) submissions: usize,
    pub(crate) unsettled: usize,
    pub(crate) lanes: BTreeMap<Lane, LaneGauge>,
}

/// Where the mail of a lane lies now.
#[derive(Clone, Debug)]
pub(crate) struct LaneGauge {
    pub(crate) queue: QueueName,
    pub(crate) source: Arc<str>,
    /// It waits for a retry step, a rule, the host's word or a fuse.
    pub(crate) is_held: bool,
}

impl Scheduler {
    /// Takes time in the number of queues, connections and limits.
    pub(crate) fn gauges(&self, now: Timestamp) -> Gauges {
        let octets = self.connections.iter().map(|(_, connection)| match &connection.state {
            State::Busy(transaction) => transaction.octets,
            _ => 0,
        });
        let lanes = self.lanes.iter().filter_map(|(_, state)| {
            let lane = &state.key;
            let destination = self.destinations.get(state.destination)?;
            let queue = self.queues.get(destination.queue)?;
            let held = destination.is_held(now) || queue.is_held(now) || queue.mode.fuse_blown;
            let paused = self.pauses.of_queue(&queue.name, &queue.source).is_some()
                || self.pauses.of_domain(&lane.domain).is_some();
            let (name, source) = (queue.name.clone(), queue.source.clone());
            Some((lane.clone(), LaneGauge { queue: name, source, is_held: held || paused }))
        });
        Gauges {
            open: self.open,
            held: self.connections.iter().map(|(_, connection)| connection.holds.len()).sum(),
            taken: self.limits.taken(),
            window: self.window.len(),
            held_octets: self.window.held_octets(),
            transit_octets: self.transit.octets(),
            largest_body: octets.max().unwrap_or(0),
            look_ups: self.looking_up,
            claims: self.claims.len(),
            submissions: self.writes.waiting_submissions(),
            unsettled: self.writes.unsettled_items(),
            lanes: lanes.collect(),
        }
    }
}
