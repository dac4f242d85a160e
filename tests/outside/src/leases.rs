//! Who works on which item. Leases die with the process.

use std::collections::HashMap;

use postrider::clock::Timestamp;
use postrider::storage::{ItemId, Lease, Owner};

pub(crate) struct Leases {
    next: u64,
    held: HashMap<ItemId, (Owner, Lease)>,
    /// Until when owners hold that have said so. There are as many as engines that this process has started.
    owners: HashMap<Owner, Timestamp>,
    /// The latest time that a claim has told.
    now: Timestamp,
}

impl Leases {
    /// With epochs larger than those of any opening before.
    pub(crate) fn new(opening: u64) -> Self {
        Self { next: opening << 40, held: HashMap::new(), owners: HashMap::new(), now: Timestamp::EPOCH }
    }

    /// Nobody may claim the item.
    pub(crate) fn is_held(&self, item: ItemId) -> bool {
        let holds = |owner| self.owners.get(owner).is_none_or(|until| *until >= self.now);
        self.held.get(&item).is_some_and(|(owner, _)| holds(owner))
    }

    /// A lease that ran out is current until somebody else takes the item.
    pub(crate) fn is_current(&self, item: ItemId, lease: Lease) -> bool {
        self.held.get(&item).is_some_and(|(_, current)| *current == lease)
    }

    pub(crate) fn own(&self, item: ItemId, by: Owner) -> Option<Lease> {
        self.held.get(&item).filter(|(owner, _)| *owner == by).map(|(_, lease)| *lease)
    }

    pub(crate) fn grant(&mut self, item: ItemId, owner: Owner) -> Lease {
        self.next += 1;
        self.held.insert(item, (owner, Lease(self.next)));
        Lease(self.next)
    }

    pub(crate) fn end(&mut self, item: ItemId) {
        self.held.remove(&item);
    }

    pub(crate) fn extend(&mut self, owner: Owner, until: Timestamp) {
        let held = self.owners.entry(owner).or_insert(until);
        *held = (*held).max(until);
    }

    /// Leases of owners whose time ran out may be taken by others.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }
}
