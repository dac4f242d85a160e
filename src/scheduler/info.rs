//! What the host is shown of the queues.

use super::Scheduler;
use super::lane::LaneState;
use super::queue::Queue;
use crate::clock::Timestamp;
use crate::control::QueueInfo;
use crate::storage::Lane;

/// A queue, and the lanes whose items are to be counted for it.
pub(crate) struct Shown {
    pub(crate) info: QueueInfo,
    pub(crate) lanes: Vec<Lane>,
}

impl Scheduler {
    /// Every queue, by name and source. Takes time in the number of queues and lanes.
    pub(crate) fn queues(&self, now: Timestamp) -> Vec<Shown> {
        let mut shown: Vec<Shown> = self.queues.iter().map(|(_, queue)| self.show(now, queue)).collect();
        shown.sort_by(|a, b| (&a.info.name, &a.info.source).cmp(&(&b.info.name, &b.info.source)));
        shown
    }

    fn show(&self, now: Timestamp, queue: &Queue) -> Shown {
        let destinations: Vec<_> =
            queue.destinations.iter().filter_map(|&destination| self.destinations.get(destination)).collect();
        let lanes = || destinations.iter().flat_map(|d| &d.lanes).filter_map(|&lane| self.lanes.get(lane));
        let oldest = lanes().filter_map(|lane| self.oldest_of(lane)).min();
        let in_flight = lanes().map(|lane| self.busy_of(lane)).sum::<usize>();
        let of_destinations = destinations
            .iter()
            .map(|destination| destination.retry.until.filter(|&until| until > now))
            .min()
            .flatten();
        let domains_paused = !destinations.is_empty()
            && destinations.iter().all(|destination| self.pauses.of_domain(&destination.domain).is_some());
        let limit = queue.connection_limit();
        let info = QueueInfo {
            name: queue.name.clone(),
            source: queue.source.clone(),
            items: 0,
            oldest: oldest.map(|oldest| now.saturating_since(oldest)),
            in_flight: in_flight as u64,
            connections: self.limits.used(queue.slot) as u64,
            connection_limit: (limit != usize::MAX).then_some(limit as u64),
            destinations: destinations.len() as u64,
            backoff: queue.in_backoff(),
            paused: domains_paused || self.pauses.of_queue(&queue.name, &queue.source).is_some(),
            source_disabled: queue.is_disabled(),
            fuse_blown: queue.mode.fuse_blown,
            next_attempt: of_destinations.max(queue.mode.held_until.filter(|&until| until > now)),
            delivered: queue.tally.delivered,
            deferred: queue.tally.deferred,
            bounced: queue.tally.bounced,
            delivered_per_minute: queue.tally.per_minute(now),
        };
        Shown { info, lanes: lanes().map(|lane| lane.key.clone()).collect() }
    }

    /// When the age of a lane's oldest mail began. Takes time in its items in the window.
    pub(super) fn oldest_of(&self, lane: &LaneState) -> Option<Timestamp> {
        let window = lane.work.deadlines.iter().filter_map(|&(_, id)| self.window.get(id));
        let window = window.map(|item| item.item.envelope.age_from);
        [lane.head.oldest, lane.head.oldest_with_expiry].into_iter().flatten().chain(window).min()
    }

    /// Items of a lane in transactions: those in the window that have no deadline now.
    pub(super) fn busy_of(&self, lane: &LaneState) -> usize {
        lane.work.claimed.saturating_sub(lane.work.deadlines.len()).min(self.busy)
    }

    /// Queues in backoff, paused queues, and queues whose source is disabled or whose fuse has blown.
    pub(crate) fn queue_counts(&self) -> (usize, usize) {
        let unusual = self.queues.iter().filter(|(_, queue)| queue.in_backoff()).count();
        (self.queues.len(), unusual)
    }
}
