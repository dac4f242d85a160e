//! Items whose content the store refused for the moment: what is told of them, and nothing else.

use super::LaneKey;
use super::ids::IdMap;
use crate::clock::Timestamp;
use crate::storage::ItemId;

/// Beyond so many it is not told that the store is what they wait for.
const MOST: usize = 1_024;

/// Until when each of them waits. What is over is forgotten when there is no room.
#[derive(Default)]
pub(super) struct Unread(IdMap<ItemId, (LaneKey, Timestamp)>);

impl Unread {
    pub(super) fn note(&mut self, now: Timestamp, item: ItemId, lane: LaneKey, until: Timestamp) {
        if self.0.len() >= MOST {
            self.0.retain(|_, (_, until)| *until > now);
        }
        if self.0.len() < MOST {
            self.0.insert(item, (lane, until));
        }
    }

    /// Until when an item waits, or did.
    pub(super) fn until(&self, item: ItemId) -> Option<Timestamp> {
        self.0.get(&item).map(|&(_, until)| until)
    }

    /// The lanes of those that wait until then, in no order.
    pub(super) fn lanes(&self, until: Timestamp) -> impl Iterator<Item = LaneKey> {
        self.0.values().filter(move |(_, its)| *its == until).map(|&(lane, _)| lane)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_more_is_kept_than_its_bound() {
        let mut unread = Unread::default();
        let at = |seconds| Timestamp::EPOCH + Duration::from_secs(seconds);
        let lane = LaneKey::of_nothing();
        for n in 0..3_000 {
            unread.note(at(0), ItemId(n), lane, at(30));
        }
        assert_eq!(unread.0.len(), MOST);
        unread.note(at(30), ItemId(9_999), lane, at(60));
        assert_eq!((unread.0.len(), unread.until(ItemId(9_999))), (1, Some(at(60))));
    }
}
