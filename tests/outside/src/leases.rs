//! Who works on which item. Leases die with the process.

use std::collections::HashMap;

use postrider::clock::Timestamp;
use postrider::storage::{ItemId, Lease, Owner};

pub(crate) struct Leases {
    next: u64,
    held: HashMap<ItemId, (Owner, Lease)>,
    /// Owners whose time has not run out, and until when they hold, if they said so.
    owners: HashMap<Owner, Option<Timestamp>>,
}

impl Leases {
    /// With epochs larger than those of any opening before.
    pub(crate) fn new(opening: u64) -> Self {
        Self { next: opening << 40, held: HashMap::new(), owners: HashMap::new() }
    }

    /// Nobody may claim the item.
    pub(crate) fn is_held(&self, item: ItemId) -> bool {
        self.held.get(&item).is_some_and(|(owner, _)| self.owners.contains_key(owner))
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
        self.owners.entry(owner).or_default();
        Lease(self.next)
    }

    pub(crate) fn end(&mut self, item: ItemId) {
        self.held.remove(&item);
    }

    pub(crate) fn extend(&mut self, owner: Owner, until: Timestamp) {
        let held = self.owners.entry(owner).or_default();
        *held = (*held).max(Some(until));
    }

    /// Leases of owners whose time ran out may be taken by others.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        self.owners.retain(|_, until| until.is_none_or(|until| until >= now));
    }
}
