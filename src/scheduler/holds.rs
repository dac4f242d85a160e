//! The slots that one connection takes, without memory of their own.

use std::ops::Deref;

use super::limits::SlotKey;

/// Of each kind of limit a connection holds one at most: of the engine, its queue, its local address, its host, its
/// peer's address.
const MOST: usize = 6;

/// A short list of slots.
#[derive(Clone, Copy)]
pub(super) struct Holds {
    slots: [SlotKey; MOST],
    len: usize,
}

impl Default for Holds {
    fn default() -> Self {
        Self { slots: [SlotKey::of_nothing(); MOST], len: 0 }
    }
}

impl Holds {
    pub(super) fn push(&mut self, slot: SlotKey) {
        debug_assert!(self.len < MOST, "there are no more kinds of limits");
        if let Some(place) = self.slots.get_mut(self.len) {
            *place = slot;
            self.len += 1;
        }
    }

    pub(super) fn pop(&mut self) {
        self.len = self.len.saturating_sub(1);
    }

    pub(super) fn extend(&mut self, others: &[SlotKey]) {
        others.iter().for_each(|&slot| self.push(slot));
    }
}

impl Deref for Holds {
    type Target = [SlotKey];

    fn deref(&self) -> &[SlotKey] {
        self.slots.get(..self.len).unwrap_or_default()
    }
}

impl<'a> IntoIterator for &'a Holds {
    type Item = &'a SlotKey;
    type IntoIter = std::slice::Iter<'a, SlotKey>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
