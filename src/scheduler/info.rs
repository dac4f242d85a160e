//! What the host is shown of the queues.

use super::Scheduler;
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
        let mut shown: Vec<Shown> = self.queue_keys.values().filter_map(|&key| self.show(now, key)).collect();
        shown.sort_by(|a, b| (&a.info.name, &a.info.source).cmp(&(&b.info.name, &b.info.source)));
        shown
    }

    fn show(&self, now: Timestamp, key: super::QueueKey) -> Option<Shown> {
        let queue = self.queues.get(key)?;
        let destinations: Vec<_> =
            queue.destinations.iter().filter_map(|&destination| self.destinations.get(destination)).collect();
        let lanes = || destinations.iter().flat_map(|d| &d.lanes).filter_map(|&lane| self.lanes.get(lane));
        let oldest = lanes()
            .flat_map(|lane| {
                let window = lane.deadlines.iter().filter_map(|&(_, id)| self.window.get(id));
                let window = window.map(|item| item.item.envelope.age_from);
                [lane.head.oldest, lane.head.oldest_with_expiry].into_iter().flatten().chain(window)
            })
            .min();
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
        Some(Shown { info, lanes: lanes().map(|lane| lane.key.clone()).collect() })
    }

    /// What of the policy or the host keeps a destination's mail waiting.
    pub(super) fn held_by(
        &self,
        key: super::DestinationKey,
        item: &super::window::WindowItem,
    ) -> Option<String> {
        let destination = self.destinations.get(key)?;
        let queue = self.queues.get(destination.queue)?;
        let paused = (self.pauses.of_message(&item.item.envelope))
            .or_else(|| self.pauses.of_queue(&queue.name, &queue.source))
            .or_else(|| self.pause_of_home(destination));
        if let Some(selector) = paused {
            return Some(format!("paused: {selector}"));
        }
        let places = destination.waits.rate.iter().chain(&destination.waits.connect);
        let mut limits: Vec<&str> = places.filter_map(|place| self.limits.setting(place.slot)).collect();
        limits.sort_unstable();
        limits.dedup();
        (!limits.is_empty()).then(|| format!("it waited for {}", limits.join(", ")))
    }

    /// Items of a lane in transactions: those in the window that have no deadline now.
    fn busy_of(&self, lane: &super::lane::LaneState) -> usize {
        lane.claimed.saturating_sub(lane.deadlines.len()).min(self.busy)
    }

    /// Queues in backoff, paused queues, and queues whose source is disabled or whose fuse has blown.
    pub(crate) fn queue_counts(&self) -> (usize, usize) {
        let unusual = self
            .queue_keys
            .values()
            .filter_map(|&key| self.queues.get(key))
            .filter(|queue| queue.in_backoff())
            .count();
        (self.queues.len(), unusual)
    }
}
