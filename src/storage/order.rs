//! The order in which a lane's items are found.
//!
//! One ordered set of [`OrderKey`]s serves claims by due time, by age and by expiry. Mail that was never deferred
//! has one time for both due and age and takes one key; other mail takes two: its due time, and its age or its
//! own expiry.

use crate::clock::Timestamp;

use super::{Envelope, ItemId};

/// A lane's number within its store. Never used twice.
pub(super) type LaneId = u64;

/// What an [`OrderKey`] sorts by, within its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Axis {
    /// Items whose due time is their `age_from`, and which have no expiry of their own: one key stands for both.
    Fresh = 0,
    /// The `age_from` of all others without an expiry of their own.
    Age = 1,
    /// The due time of all others.
    Due = 2,
    /// `expires_at`, of items that have their own.
    Expiry = 3,
}

impl Axis {
    pub(super) const ALL: [Self; 4] = [Self::Fresh, Self::Age, Self::Due, Self::Expiry];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|axis| *axis as u8 == byte)
    }
}

/// A place on one axis of one lane.
pub(super) type Spot = (Timestamp, ItemId);

/// The place before all others.
pub(super) const START: Spot = (Timestamp::EPOCH, ItemId(0));

/// An entry of the order. Sorts as its bytes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OrderKey {
    pub(super) lane: LaneId,
    pub(super) axis: Axis,
    pub(super) spot: Spot,
}

#[cfg_attr(not(feature = "disk"), allow(dead_code, reason = "only files need bytes"))]
impl OrderKey {
    pub(super) const OCTETS: usize = 25;

    pub(super) fn to_bytes(self) -> [u8; Self::OCTETS] {
        let mut bytes = [0; Self::OCTETS];
        let (lane, rest) = bytes.split_at_mut(8);
        let (axis, rest) = rest.split_at_mut(1);
        let (time, item) = rest.split_at_mut(8);
        lane.copy_from_slice(&self.lane.to_be_bytes());
        axis.fill(self.axis as u8);
        time.copy_from_slice(&self.spot.0.as_unix_micros().to_be_bytes());
        item.copy_from_slice(&self.spot.1.0.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; Self::OCTETS]) -> Option<Self> {
        let number = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        let axis = Axis::from_byte(*bytes.get(8)?)?;
        let spot = (Timestamp::from_unix_micros(number(9)?), ItemId(number(17)?));
        Some(Self { lane: number(0)?, axis, spot })
    }
}

/// What decides where an item is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) lane: LaneId,
    pub(super) age: Timestamp,
    pub(super) due: Timestamp,
    pub(super) expiry: Option<Timestamp>,
}

impl Place {
    pub(super) fn new(lane: LaneId, due: Timestamp, envelope: &Envelope) -> Self {
        Self { lane, age: envelope.age_from, due, expiry: envelope.expires_at }
    }

    /// The keys under which `item` is found.
    pub(super) fn keys(self, item: ItemId) -> impl Iterator<Item = OrderKey> {
        let (first, second) = match self.expiry {
            // Its age decides nothing.
            Some(expiry) => ((Axis::Due, self.due), Some((Axis::Expiry, expiry))),
            None if self.due == self.age => ((Axis::Fresh, self.age), None),
            None => ((Axis::Age, self.age), Some((Axis::Due, self.due))),
        };
        let key = move |(axis, time)| OrderKey { lane: self.lane, axis, spot: (time, item) };
        [Some(first), second].into_iter().flatten().map(key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = OrderKey> {
        (any::<u64>(), 0..4u8, any::<u64>(), any::<u64>()).prop_map(|(lane, axis, time, item)| OrderKey {
            lane,
            axis: Axis::from_byte(axis).unwrap(),
            spot: (Timestamp::from_unix_micros(time), ItemId(item)),
        })
    }

    proptest! {
        #[test]
        fn bytes_keep_value_and_order(a in key(), b in key()) {
            prop_assert_eq!(OrderKey::from_bytes(&a.to_bytes()), Some(a));
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
        }
    }

    #[test]
    fn an_unknown_axis_is_no_key() {
        let mut bytes = OrderKey { lane: 1, axis: Axis::Due, spot: START }.to_bytes();
        bytes[8] = 9;
        assert_eq!(OrderKey::from_bytes(&bytes), None);
    }
}
