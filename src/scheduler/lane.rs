//! A lane with mail: its head in the store, and what of it is in the window.

use super::directory::Named;
use super::few::{FewDeque, FewSet};
use super::purge::LanePurge;
use super::rare::{AtRest, Rare};
use super::timers::earliest;
use super::{DestinationKey, DomainKey, QueueKey};
use crate::clock::Timestamp;
use crate::storage::{ItemId, Lane, LaneHead};

pub(crate) struct LaneState {
    pub(super) key: Lane,
    pub(super) domain: DomainKey,
    pub(super) destination: DestinationKey,
    /// The destination's, known without a look at it.
    pub(super) queue: QueueKey,
    /// Its domain's: away from home, until when what DNS said of it holds.
    pub(super) until: Option<Timestamp>,
    /// What lies unleased in the store. May be earlier than the truth, never later.
    pub(super) head: Head,
    /// What is so old ends.
    pub(super) purge: Option<LanePurge>,
    pub(super) timer: Option<Timestamp>,
    pub(super) work: Rare<Work>,
    /// An entry of a ring with another stamp is of a ring it has left.
    pub(super) ring_stamp: u32,
}

/// What of a lane is in the window, or on its way there.
pub(crate) struct Work {
    /// Set while a claim of this lane is under way: what was put back meanwhile, which its answer may not show.
    pub(super) claiming: Option<Head>,
    /// Items that may be tried now: never attempted, and due again. Drawn in turns.
    pub(super) fresh: FewDeque<ItemId>,
    pub(super) again: FewDeque<ItemId>,
    pub(super) fresh_next: bool,
    /// Every item in the window that is not in a transaction, by its deadline.
    pub(super) deadlines: FewSet<(Timestamp, ItemId)>,
    /// Items of it in the window, those in transactions included, and places promised to messages being stored.
    pub(super) claimed: usize,
    /// Items in transactions, changes not yet durable, and messages being stored.
    pub(super) pending: usize,
    /// It stands in its destination's ring of lanes with ready items.
    pub(super) in_ring: bool,
    /// It stands in its destination's list of lanes to claim from.
    pub(super) hungry: bool,
    /// It stands in its destination's list of lanes with mail that is too old.
    pub(super) expiring: bool,
}

impl AtRest for Work {
    const NEW: Self = Self {
        claiming: None,
        fresh: FewDeque::new(),
        again: FewDeque::new(),
        fresh_next: true,
        deadlines: FewSet::new(),
        claimed: 0,
        pending: 0,
        in_ring: false,
        hungry: false,
        expiring: false,
    };
    const AT_REST: &'static Self = &Self::NEW;

    /// Whose turn it would be means nothing without items.
    fn is_at_rest(&self) -> bool {
        let Self {
            claiming,
            fresh,
            again,
            fresh_next: _,
            deadlines,
            claimed,
            pending,
            in_ring,
            hungry,
            expiring,
        } = self;
        (claiming.is_none() && fresh.is_empty() && again.is_empty() && deadlines.is_empty())
            && (*claimed, *pending) == (0, 0)
            && !(*in_ring || *hungry || *expiring)
    }
}

/// The earliest of what lies in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) next_due: Option<Timestamp>,
    /// By `age_from`, of mail without an expiry of its own.
    pub(super) oldest: Option<Timestamp>,
    /// By `age_from`, of mail with an expiry of its own.
    pub(super) oldest_with_expiry: Option<Timestamp>,
    pub(super) first_expiry: Option<Timestamp>,
}

impl Head {
    pub(super) fn is_empty(self) -> bool {
        self.next_due.is_none()
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.next_due = earliest(self.next_due, other.next_due);
        self.oldest = earliest(self.oldest, other.oldest);
        self.oldest_with_expiry = earliest(self.oldest_with_expiry, other.oldest_with_expiry);
        self.first_expiry = earliest(self.first_expiry, other.first_expiry);
    }
}

impl From<&LaneHead> for Head {
    fn from(head: &LaneHead) -> Self {
        Self {
            next_due: head.next_due,
            oldest: head.oldest,
            oldest_with_expiry: head.oldest_with_expiry,
            first_expiry: head.first_expiry,
        }
    }
}

impl Named for LaneState {
    type Name<'a> = &'a Lane;

    fn name(&self) -> &Lane {
        &self.key
    }
}

impl LaneState {
    pub(super) fn new(key: Lane, domain: DomainKey, destination: DestinationKey, queue: QueueKey) -> Self {
        Self {
            key,
            domain,
            destination,
            queue,
            until: None,
            head: Head::default(),
            purge: None,
            timer: None,
            work: Rare::default(),
            ring_stamp: 0,
        }
    }

    /// Mail was put (back) into the store.
    pub(super) fn put_back(&mut self, head: Head) {
        self.head.merge(head);
        if self.work.claiming.is_some() {
            self.work.claiming.iter_mut().for_each(|meanwhile| meanwhile.merge(head));
        }
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.work.fresh.is_empty() || !self.work.again.is_empty()
    }

    /// The next item to try: fresh mail and due retries alternate.
    pub(super) fn draw(&mut self) -> Option<ItemId> {
        let work = &mut *self.work;
        let fresh_first = work.fresh_next;
        work.fresh_next = !fresh_first;
        if fresh_first {
            work.fresh.pop_front().or_else(|| work.again.pop_front())
        } else {
            work.again.pop_front().or_else(|| work.fresh.pop_front())
        }
    }

    /// Takes an item out of the lists. They hold no more than a destination's share of the window.
    pub(super) fn forget(&mut self, id: ItemId) {
        if !self.work.fresh.remove(&id) {
            self.work.again.remove(&id);
        }
    }

    /// Nothing is left of it, in the store or here.
    pub(super) fn is_done(&self) -> bool {
        self.head.is_empty()
            && self.work.claiming.is_none()
            && self.work.deadlines.is_empty()
            && self.work.pending == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_heads_keeps_the_earliest_of_each() {
        let at = |s| Some(Timestamp::from_unix_seconds(s));
        let head = |[next_due, oldest, oldest_with_expiry, first_expiry]: [Option<u64>; 4]| Head {
            next_due: next_due.and_then(at),
            oldest: oldest.and_then(at),
            oldest_with_expiry: oldest_with_expiry.and_then(at),
            first_expiry: first_expiry.and_then(at),
        };
        let mut merged = head([Some(5), None, Some(4), Some(9)]);
        merged.merge(head([Some(7), Some(1), None, Some(3)]));
        assert_eq!(merged, head([Some(5), Some(1), Some(4), Some(3)]));
    }
}
