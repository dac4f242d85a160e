//! The window: items taken out of the store to be worked on.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::ids::{IdMap, IdSet};
use super::outcome::KEPT_OF_REPLIES;
use super::unfit::Unfit;
use super::{DestinationKey, LaneKey};
use crate::clock::Timestamp;
use crate::event::LastFailure;
use crate::storage::{Item, ItemId, MOST_SHARED, Recipient};

/// An item that holds more than this counts in the window as several.
const ITEM_OCTETS: usize = 8 * 1024;
/// What a recipient takes, roughly, without its address.
pub(super) const RECIPIENT_OCTETS: usize = 128;

/// An item under our lease.
pub(super) struct WindowItem {
    pub(super) item: Item,
    pub(super) lane: LaneKey,
    /// What it held as it came into the window, roughly, without the content. The window keeps it.
    pub(super) octets: usize,
    /// The content, kept from its submission for the first attempt.
    pub(super) body: Option<Bytes>,
    /// When it expires.
    pub(super) deadline: Timestamp,
    /// Recipients (by index) refused once for being too many; refused so again they are deferred.
    pub(super) overflowed: Vec<u32>,
    /// A session ended over it before anything was charged: it is tried when nothing else is left, and stands in
    /// its destination's list of those.
    pub(super) suspect: bool,
    /// Hosts it can not be sent to: it stands in that list, too, and goes to another.
    pub(super) unfit: Option<Box<Unfit>>,
    /// It stands in its lane's list of items to try.
    pub(super) ready: bool,
    /// It is in a transaction.
    pub(super) busy: bool,
    /// It is to be sent to one recipient at a time: a reply rule waits for each one's own reply.
    pub(super) singly: bool,
    /// A purge began while it was in a transaction.
    pub(super) purge: Option<super::purge::PurgeId>,
    /// The host cancelled it while it was in a transaction.
    pub(super) cancelled: bool,
    /// Its transaction has just ended and was sent from here, which its lane may have left meanwhile.
    pub(super) sent_from: Option<DestinationKey>,
}

impl WindowItem {
    /// As it comes out of the store.
    pub(super) fn new(item: Item, lane: LaneKey) -> Self {
        let deadline = item.envelope.age_from;
        Self {
            item,
            lane,
            octets: 0,
            body: None,
            deadline,
            overflowed: Vec::new(),
            suspect: false,
            unfit: None,
            ready: false,
            busy: false,
            singly: false,
            purge: None,
            cancelled: false,
            sent_from: None,
        }
    }

    /// It stands apart from the other mail of its lane, in its destination's list of suspects.
    pub(super) fn stands_apart(&self) -> bool {
        self.suspect || self.unfit.is_some()
    }

    /// Never attempted.
    pub(super) fn is_fresh(&self) -> bool {
        self.item.recipients.iter().all(|recipient| recipient.attempts == 0)
    }
}

/// All items under our leases, with the octets of content held for them.
#[derive(Default)]
pub(super) struct Window {
    items: IdMap<ItemId, WindowItem>,
    /// Places promised to messages that are being stored, and to claims under way.
    pub(super) reserved: usize,
    held_octets: usize,
    /// What else the items hold.
    octets: usize,
    /// Claims by id under way for items that may be in the window by the time they answer.
    crossing: usize,
    /// Items that left the window meanwhile.
    left: IdSet<ItemId>,
}

impl Window {
    /// A claim by id is made for items that are not in the window.
    pub(super) fn begin_crossing(&mut self) {
        self.crossing += 1;
    }

    /// It has answered.
    pub(super) fn end_crossing(&mut self) {
        self.crossing = self.crossing.saturating_sub(1);
        if self.crossing == 0 {
            self.left.clear();
        }
    }

    /// The item is being worked on, or was since the claim was made: another claim brought it first.
    pub(super) fn has_seen(&self, id: ItemId) -> bool {
        self.items.contains_key(&id) || self.left.contains(&id)
    }

    #[cfg(feature = "testing")]
    pub(super) fn len(&self) -> usize {
        self.items.len() + self.reserved
    }

    /// Whether it takes no more items.
    pub(super) fn is_full(&self, bound: usize) -> bool {
        self.room(bound) == 0
    }

    /// For how many more items there is room: by their number, or by what they hold if they are large.
    pub(super) fn room(&self, bound: usize) -> usize {
        bound.saturating_sub(self.items.len().max(self.octets / ITEM_OCTETS) + self.reserved)
    }

    pub(super) fn held_octets(&self) -> usize {
        self.held_octets
    }

    /// Those that are in no transaction, in order.
    pub(super) fn waiting_items(&self) -> Vec<ItemId> {
        let mut waiting: Vec<_> =
            self.items.values().filter(|item| !item.busy).map(|item| item.item.id).collect();
        waiting.sort_unstable();
        waiting
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = &WindowItem> {
        self.items.values()
    }

    /// All items, in no order.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut WindowItem> {
        self.items.values_mut()
    }

    pub(super) fn insert(&mut self, mut item: WindowItem) {
        item.octets = octets_of(&item.item.recipients);
        self.octets += item.octets;
        self.held_octets += item.body.as_ref().map_or(0, Bytes::len);
        if let Some(old) = self.items.insert(item.item.id, item) {
            self.octets -= old.octets;
            self.held_octets -= old.body.as_ref().map_or(0, Bytes::len);
        }
    }

    pub(super) fn get(&self, id: ItemId) -> Option<&WindowItem> {
        self.items.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: ItemId) -> Option<&mut WindowItem> {
        self.items.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: ItemId) -> Option<WindowItem> {
        let item = self.items.remove(&id)?;
        if self.crossing > 0 {
            self.left.insert(id);
        }
        self.octets -= item.octets;
        self.held_octets -= item.body.as_ref().map_or(0, Bytes::len);
        Some(item)
    }

    /// The item's transaction begins, with the content that was held for it.
    pub(super) fn begin(&mut self, id: ItemId) -> Option<Bytes> {
        let item = self.items.get_mut(&id)?;
        item.busy = true;
        let body = item.body.take()?;
        self.held_octets -= body.len();
        Some(body)
    }
}

/// What recipients take, roughly, with what they met; what several of them share counts once.
fn octets_of(recipients: &[Recipient]) -> usize {
    let mut counted: SmallVec<[&Arc<LastFailure>; MOST_SHARED]> = SmallVec::new();
    let mut octets = 0;
    for recipient in recipients {
        octets += RECIPIENT_OCTETS + recipient.address.as_str().len();
        if let Some(last) = &recipient.last
            && !counted.iter().any(|met| Arc::ptr_eq(met, last))
        {
            octets += KEPT_OF_REPLIES;
            if counted.len() < MOST_SHARED {
                counted.push(last);
            }
        }
    }
    octets
}
