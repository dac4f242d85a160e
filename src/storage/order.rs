//! The order in which a lane's items are found.
//!
//! One ordered set of [`OrderKey`]s serves claims by due time, by age and by expiry. Mail that was never deferred
//! has one time for both due and age and takes one key; deferred mail takes two, its age and its due time; mail with
//! an expiry of its own takes three, its due time, its expiry and its age.
//!
//! Every item has exactly one key on [`Axis::Fresh`] and [`Axis::Due`] together, and exactly one on the axes that
//! say its age.

use crate::clock::Timestamp;

use super::{Envelope, ItemId};

/// A lane's number within its store. Never used twice.
pub(super) type LaneId = u64;

/// What an [`OrderKey`] sorts by, within its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// The `age_from` of items that have an expiry of their own. Apart from the other ages, for most who ask for
    /// old mail want it without these; last, so that lanes without such items are not asked for them.
    AgeWithExpiry = 4,
}

impl Axis {
    pub(super) const COUNT: usize = 5;
    pub(super) const ALL: [Self; Self::COUNT] =
        [Self::Fresh, Self::Age, Self::Due, Self::Expiry, Self::AgeWithExpiry];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|axis| *axis as u8 == byte)
    }
}

/// A place on one axis of one lane.
pub(super) type Spot = (Timestamp, ItemId);

/// The place before all others.
pub(super) const START: Spot = (Timestamp::EPOCH, ItemId(0));

/// An entry of the order. Sorts as its bytes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
        let due = Some((Axis::Due, self.due));
        let keys = match self.expiry {
            Some(expiry) => [due, Some((Axis::Expiry, expiry)), Some((Axis::AgeWithExpiry, self.age))],
            None if self.due == self.age => [Some((Axis::Fresh, self.age)), None, None],
            None => [Some((Axis::Age, self.age)), due, None],
        };
        let key = move |(axis, time)| OrderKey { lane: self.lane, axis, spot: (time, item) };
        keys.into_iter().flatten().map(key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = OrderKey> {
        (any::<u64>(), 0..5u8, any::<u64>(), any::<u64>()).prop_map(|(lane, axis, time, item)| OrderKey {
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

    /// What writing costs. Ordinary mail is most of the mail: its numbers may not grow.
    #[test]
    fn mail_takes_as_many_keys_as_it_needs() {
        let at = Timestamp::from_unix_seconds;
        let place = |due, expiry| Place { lane: 1, age: at(5), due, expiry };
        let axes = |place: Place| place.keys(ItemId(1)).map(|key| key.axis).collect::<Vec<_>>();
        assert_eq!(axes(place(at(5), None)), [Axis::Fresh]);
        assert_eq!(axes(place(at(6), None)), [Axis::Age, Axis::Due]);
        for due in [at(5), at(6)] {
            assert_eq!(axes(place(due, Some(at(9)))), [Axis::Due, Axis::Expiry, Axis::AgeWithExpiry]);
        }
    }

    #[test]
    fn an_unknown_axis_is_no_key() {
        let mut bytes = OrderKey { lane: 1, axis: Axis::Due, spot: START }.to_bytes();
        bytes[8] = 9;
        assert_eq!(OrderKey::from_bytes(&bytes), None);
    }
}
