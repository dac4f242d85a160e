//! Bodies that are lost: the first is told at once, what follows once a minute with how many they are.

use super::told::TOLD_AGAIN;
use super::{Scheduler, TimerOwner};
use crate::clock::Timestamp;
use crate::event::StorageOperation;
use crate::storage::StorageError;

/// Since one was told.
#[derive(Debug, Default)]
pub(super) struct LostBodies {
    /// Armed for a minute after each that was told.
    timer: Option<Timestamp>,
    untold: u64,
    last: Option<StorageError>,
}

impl Scheduler {
    /// A message has lost its body, and bounces for it.
    pub(super) fn tell_lost_body(&mut self, now: Timestamp, error: &StorageError) {
        if self.lost_bodies.timer.is_some() {
            self.lost_bodies.untold += 1;
            self.lost_bodies.last = Some(error.clone());
        } else {
            self.lost_body_told(now, error.to_string());
        }
    }

    pub(super) fn on_lost_bodies_timer(&mut self, now: Timestamp) {
        self.lost_bodies.timer = None;
        self.tell_lost_bodies(now);
    }

    /// Those that were not told yet.
    pub(super) fn tell_lost_bodies(&mut self, now: Timestamp) {
        let untold = std::mem::take(&mut self.lost_bodies.untold);
        if let Some(last) = self.lost_bodies.last.take() {
            self.lost_body_told(now, format!("{untold} more of such, the last: {last}"));
        }
    }

    fn lost_body_told(&mut self, now: Timestamp, error: String) {
        self.report_trouble(now, StorageOperation::Read, error, false);
        let timer = &mut self.lost_bodies.timer;
        self.timers.arm(timer, Some(now + TOLD_AGAIN), TimerOwner::LostBodies);
    }
}
