//! Who works on which item: leases, kept in memory only.
//!
//! Beside the leases themselves the table keeps, for each lane with leased items, a *cursor* on each axis:
//! every item before it is leased. Claims start there, so the leased head of a lane is not walked over again
//! and again.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::clock::Timestamp;

use super::order::{Axis, LaneId, OrderKey, Place, START, Spot};
use super::{ItemId, Lease, Owner};

/// Owners without leases whose time has run out are remembered up to this number of owners, so that what they are
/// given later has run out as well.
const MAX_IDLE_OWNERS: usize = 1024;

/// The leases of one store. Its size follows the leases that are held, and what is damaged; nothing else.
#[derive(Debug)]
pub(super) struct LeaseTable {
    next_epoch: u64,
    owners: BTreeMap<Owner, Holdings>,
    leases: HashMap<ItemId, Entry>,
    lanes: HashMap<LaneId, LaneCursors>,
    /// Keys of the order that lead to nothing that can be read. Left in place they would be the heads of their lanes
    /// for ever.
    aside: HashSet<OrderKey>,
}

#[derive(Debug, Default)]
struct Holdings {
    /// `None`: the owner never said; its leases hold until it does.
    until: Option<Timestamp>,
    /// A claim found the time run out: the leases may be taken by anybody.
    lapsed: bool,
    items: HashSet<ItemId>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    owner: Owner,
    lease: Lease,
    place: Place,
    /// A change under this lease is on its way to disk: nobody may take the item meanwhile.
    pinned: bool,
}

#[derive(Debug, Default)]
struct LaneCursors {
    leased: usize,
    /// One for each [`Axis`]; everything before it is leased.
    cursors: [Option<Spot>; Axis::COUNT],
}

impl LaneCursors {
    fn cursor(&mut self, axis: Axis) -> Option<&mut Option<Spot>> {
        self.cursors.get_mut(axis as usize)
    }
}

impl LeaseTable {
    /// A table whose epochs are larger than those of any `opening` before.
    pub(super) fn new(opening: u64) -> Self {
        // 2^40 leases between two openings, 2^24 openings.
        let next_epoch = (opening << 40) | 1;
        let (leases, lanes, aside) = Default::default();
        Self { next_epoch, owners: BTreeMap::new(), leases, lanes, aside }
    }

    /// Somebody holds the item: it may not be claimed.
    pub(super) fn is_held(&self, item: ItemId) -> bool {
        self.leases.get(&item).is_some_and(|entry| {
            entry.pinned || self.owners.get(&entry.owner).is_some_and(|holdings| !holdings.lapsed)
        })
    }

    /// Claims and heads pass this key over from now on.
    pub(super) fn set_aside(&mut self, key: OrderKey) {
        self.aside.insert(key);
    }

    /// A claim may take what lies at this key.
    pub(super) fn is_free(&self, key: &OrderKey) -> bool {
        !self.aside.contains(key) && !self.is_held(key.spot.1)
    }

    /// The lease of `item`, if `owner` has it and no change under it is on its way.
    pub(super) fn own(&self, owner: Owner, item: ItemId) -> Option<Lease> {
        self.leases.get(&item).filter(|entry| entry.owner == owner && !entry.pinned).map(|entry| entry.lease)
    }

    /// `lease` is the current one of `item`. One that ran out is current until somebody else takes the item.
    pub(super) fn is_current(&self, item: ItemId, lease: Lease) -> bool {
        self.leases.get(&item).is_some_and(|entry| entry.lease == lease)
    }

    /// Where a leased item lies.
    pub(super) fn place(&self, item: ItemId) -> Option<Place> {
        self.leases.get(&item).map(|entry| entry.place)
    }

    /// A lane has leased items.
    pub(super) fn has_lane(&self, lane: LaneId) -> bool {
        self.lanes.contains_key(&lane)
    }

    /// The lease that is granted next.
    pub(super) fn next(&self) -> Lease {
        Lease(self.next_epoch)
    }

    /// Leases `item` to `owner`, whoever had it.
    pub(super) fn grant(&mut self, item: ItemId, place: Place, owner: Owner) -> Lease {
        self.remove(item);
        let lease = Lease(self.next_epoch);
        self.next_epoch += 1;
        self.leases.insert(item, Entry { owner, lease, place, pinned: false });
        self.owners.entry(owner).or_default().items.insert(item);
        self.lanes.entry(place.lane).or_default().leased += 1;
        if !self.is_held(item) {
            // The owner's time has run out already: claims must see the item.
            self.freed(item, place);
        }
        lease
    }

    /// Ends the lease of `item`, which lies at `free` from now on; `None`: it is gone.
    pub(super) fn end(&mut self, item: ItemId, free: Option<Place>) {
        self.remove(item);
        if let Some(place) = free {
            self.freed(item, place);
        }
    }

    /// Takes back what was granted from `first` on.
    pub(super) fn take_back(&mut self, first: Lease) {
        let granted = self.leases.iter().filter(|(_, entry)| entry.lease >= first);
        let granted: Vec<_> = granted.map(|(item, entry)| (*item, entry.place)).collect();
        granted.into_iter().for_each(|(item, place)| self.end(item, Some(place)));
    }

    /// An item that nobody has leased lies at `place`: cursors may not be beyond it.
    pub(super) fn freed(&mut self, item: ItemId, place: Place) {
        let Some(lane) = self.lanes.get_mut(&place.lane) else { return };
        for key in place.keys(item) {
            if let Some(Some(cursor)) = lane.cursor(key.axis) {
                *cursor = (*cursor).min(key.spot);
            }
        }
    }

    /// Protects a current lease until [`LeaseTable::unpin`] or its end. `false`: it is not current.
    #[cfg_attr(not(feature = "disk"), allow(dead_code, reason = "memory applies changes under one lock"))]
    pub(super) fn pin(&mut self, item: ItemId, lease: Lease) -> bool {
        match self.leases.get_mut(&item) {
            Some(entry) if entry.lease == lease => {
                entry.pinned = true;
                true
            }
            _ => false,
        }
    }

    #[cfg_attr(not(feature = "disk"), allow(dead_code, reason = "memory applies changes under one lock"))]
    pub(super) fn unpin(&mut self, item: ItemId) {
        let Some(entry) = self.leases.get_mut(&item) else { return };
        entry.pinned = false;
        // It may have lapsed while pinned, and a claim passed over it.
        let place = entry.place;
        if !self.is_held(item) {
            self.freed(item, place);
        }
    }

    /// All leases of `owner`, also those that ran out and were not taken, hold until `until`.
    pub(super) fn extend(&mut self, owner: Owner, until: Timestamp) {
        let holdings = self.owners.entry(owner).or_default();
        holdings.until = Some(holdings.until.map_or(until, |now| now.max(until)));
        holdings.lapsed = false;
    }

    /// Leases that ran out before `now` may be taken.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let mut freed = Vec::new();
        let many = self.owners.len() > MAX_IDLE_OWNERS;
        self.owners.retain(|_, holdings| {
            let over = holdings.until.is_some_and(|until| until < now);
            if over && !holdings.lapsed {
                holdings.lapsed = true;
                freed.extend(holdings.items.iter().copied());
            }
            !(many && over && holdings.items.is_empty())
        });
        for item in freed {
            if let Some(place) = self.place(item) {
                self.freed(item, place);
            }
        }
    }

    /// Where to start looking for items that nobody has leased.
    pub(super) fn cursor(&self, lane: LaneId, axis: Axis) -> Spot {
        let cursors = self.lanes.get(&lane).map(|lane| &lane.cursors);
        cursors.and_then(|cursors| *cursors.get(axis as usize)?).unwrap_or(START)
    }

    /// Everything before `spot` was found to be leased.
    pub(super) fn advance(&mut self, lane: LaneId, axis: Axis, spot: Spot) {
        if let Some(cursor) = self.lanes.get_mut(&lane).and_then(|lane| lane.cursor(axis)) {
            *cursor = Some(spot);
        }
    }

    fn remove(&mut self, item: ItemId) {
        let Some(entry) = self.leases.remove(&item) else { return };
        if let Some(holdings) = self.owners.get_mut(&entry.owner) {
            holdings.items.remove(&item);
        }
        if let Some(lane) = self.lanes.get_mut(&entry.place.lane) {
            lane.leased = lane.leased.saturating_sub(1);
            if lane.leased == 0 {
                self.lanes.remove(&entry.place.lane);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    fn place(due: u64) -> Place {
        Place { lane: 1, age: at(1), due: at(due), expiry: None }
    }

    const A: Owner = Owner(1);
    const B: Owner = Owner(2);

    #[test]
    fn a_lapsed_lease_is_current_until_taken() {
        let mut table = LeaseTable::new(1);
        let old = table.grant(ItemId(1), place(1), A);
        table.extend(A, at(10));
        table.expire(at(10));
        assert!(table.is_held(ItemId(1)), "it holds until then");
        table.expire(at(11));
        assert!(!table.is_held(ItemId(1)));
        assert!(table.is_current(ItemId(1), old));
        table.extend(A, at(20));
        assert!(table.is_held(ItemId(1)), "not taken: renewed");
        table.expire(at(21));
        let new = table.grant(ItemId(1), place(1), B);
        assert!(new > old && !table.is_current(ItemId(1), old));
    }

    #[test]
    fn an_owner_that_never_said_until_when_holds_on() {
        let mut table = LeaseTable::new(1);
        table.grant(ItemId(1), place(1), A);
        table.expire(Timestamp::MAX);
        assert!(table.is_held(ItemId(1)));
    }

    #[test]
    fn a_pinned_lease_can_not_be_taken() {
        let mut table = LeaseTable::new(1);
        let lease = table.grant(ItemId(1), place(1), A);
        table.extend(A, at(1));
        assert!(table.pin(ItemId(1), lease) && !table.pin(ItemId(1), Lease(0)));
        table.expire(at(5));
        assert!(table.is_held(ItemId(1)));
        table.advance(1, Axis::Fresh, (at(9), ItemId(9)));
        table.unpin(ItemId(1));
        assert!(!table.is_held(ItemId(1)));
        assert_eq!(table.cursor(1, Axis::Fresh), (at(1), ItemId(1)), "claims see it again");
    }

    #[test]
    fn cursors_go_back_to_what_is_freed_and_end_with_the_last_lease() {
        let mut table = LeaseTable::new(1);
        for id in 1..=3 {
            table.grant(ItemId(id), place(id + 1), A);
        }
        table.advance(1, Axis::Due, (at(100), ItemId(0)));
        table.end(ItemId(2), Some(place(3)));
        assert_eq!(table.cursor(1, Axis::Due), (at(3), ItemId(2)));
        assert_eq!(table.cursor(1, Axis::Age), START);
        table.end(ItemId(1), None);
        assert_eq!(table.cursor(1, Axis::Due), (at(3), ItemId(2)), "gone, so nothing to find there");
        table.end(ItemId(3), None);
        assert!(!table.has_lane(1) && table.leases.is_empty());
    }

    #[test]
    fn epochs_grow_over_openings() {
        let before = LeaseTable::new(1).grant(ItemId(1), place(1), A);
        assert!(LeaseTable::new(2).grant(ItemId(1), place(1), A) > before);
    }
}
