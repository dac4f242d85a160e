//! A wall clock that was set back.

use std::time::Duration;

use super::{DestinationKey, QueueKey, Scheduler};
use crate::clock::Timestamp;

impl Scheduler {
    /// What queues, destinations and rates wait for moves with the clock, and comes as soon as it would have. The due times
    /// of mail lie in the store and stay.
    pub(super) fn set_back(&mut self, now: Timestamp, by: Duration) {
        let queues: Vec<QueueKey> = self.queues.iter().map(|(key, _)| key).collect();
        for key in queues {
            if let Some(queue) = self.queues.get_mut(key).filter(|queue| queue.has_a_mode()) {
                queue.mode.set_back(by);
                self.mode_changed(now, key);
            }
        }
        let destinations: Vec<DestinationKey> = self.destinations.iter().map(|(key, _)| key).collect();
        for key in destinations {
            if let Some(until) = self.destinations.get_mut(key).and_then(|it| it.retry.until.as_mut()) {
                *until = until.saturating_sub(by);
                self.store_state_if_stored(key);
            }
        }
        self.limits.set_back(by, &mut self.timers);
    }
}
