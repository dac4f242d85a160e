//! Timers: one armed time per owner, in order.

use std::collections::BTreeSet;

use crate::clock::Timestamp;

/// The earlier of two times, if there are any.
pub(super) fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Whose timer it is decides what happens when it fires.
pub(super) struct Timers<K> {
    armed: BTreeSet<(Timestamp, K)>,
}

impl<K: Ord + Copy> Timers<K> {
    pub(super) fn new() -> Self {
        Self { armed: BTreeSet::new() }
    }

    /// Moves `owner`'s timer from `slot` to `at`; `None` disarms it.
    #[inline]
    pub(super) fn arm(&mut self, slot: &mut Option<Timestamp>, at: Option<Timestamp>, owner: K) {
        // Mostly nothing changes.
        if *slot != at {
            self.move_to(slot, at, owner);
        }
    }

    fn move_to(&mut self, slot: &mut Option<Timestamp>, at: Option<Timestamp>, owner: K) {
        if let Some(old) = slot.take() {
            self.armed.remove(&(old, owner));
        }
        if let Some(at) = at {
            self.armed.insert((at, owner));
            *slot = Some(at);
        }
    }

    pub(super) fn next(&self) -> Option<Timestamp> {
        self.armed.first().map(|&(at, _)| at)
    }

    /// Takes one timer that is due. Its owner's slot is to be cleared.
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<K> {
        let &(at, owner) = self.armed.first()?;
        if at > now {
            return None;
        }
        self.armed.pop_first();
        Some(owner)
    }
}
