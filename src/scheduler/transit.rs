//! How much content is in transactions, and who waits for room.
//!
//! Small messages have a part of the room to themselves: whoever takes large ones slowly holds up large ones alone. The large ones
//! take turns strictly, so that those that fit sooner do not keep one out for ever.

use std::collections::VecDeque;

use super::DestinationKey;

#[derive(Default)]
pub(super) struct Transit {
    small: Share,
    large: Share,
    /// Whose turn it is.
    called: Option<(Size, DestinationKey)>,
}

#[derive(Default)]
struct Share {
    octets: usize,
    line: VecDeque<DestinationKey>,
    /// Room was made since the first in line tried.
    freed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Small,
    Large,
}

impl Size {
    fn of(octets: usize, room: usize) -> Self {
        if octets <= room / 256 { Self::Small } else { Self::Large }
    }
}

impl Transit {
    /// Of messages in transactions.
    pub(super) fn octets(&self) -> usize {
        self.small.octets.saturating_add(self.large.octets)
    }

    /// Whether a message may be sent now. One larger than its share is admitted alone in it.
    pub(super) fn admits(&self, key: DestinationKey, octets: usize, room: usize) -> bool {
        let size = Size::of(octets, room);
        let share = self.share(size);
        let after = share.octets.saturating_add(octets);
        let fits = match size {
            Size::Large => after <= Self::limit(size, room),
            Size::Small => after <= Self::limit(size, room) || self.octets().saturating_add(octets) <= room,
        };
        let in_turn = self.called == Some((size, key)) || share.line.is_empty();
        // With nothing in transit nobody would be called.
        share.octets == 0 || fits && in_turn
    }

    pub(super) fn begin(&mut self, octets: usize, room: usize) {
        self.called = None;
        let share = self.share_mut(Size::of(octets, room));
        share.octets = share.octets.saturating_add(octets);
    }

    pub(super) fn end(&mut self, octets: usize, room: usize) {
        let size = Size::of(octets, room);
        let share = self.share_mut(size);
        share.octets = share.octets.saturating_sub(octets);
        share.freed |= !share.line.is_empty();
        // Room that no large one takes is for small ones too.
        self.small.freed |= !self.small.line.is_empty();
    }

    /// Who was called and still does not fit keeps its place, and the others of its size wait with it. Returns where it waits.
    pub(super) fn wait(&mut self, key: DestinationKey, octets: usize, room: usize) -> Size {
        let size = Size::of(octets, room);
        let is_called = self.called.take_if(|called| *called == (size, key)).is_some();
        let share = self.share_mut(size);
        // Who comes first finds it full.
        share.freed &= !is_called && !share.line.is_empty();
        if is_called {
            share.line.push_front(key);
        } else {
            share.line.push_back(key);
        }
        size
    }

    /// Nobody waits.
    pub(super) fn has_no_line(&self) -> bool {
        self.small.line.is_empty() && self.large.line.is_empty()
    }

    pub(super) fn nobody_is_called(&mut self) {
        self.called = None;
    }

    /// The next of those in line that may find room.
    pub(super) fn call(&mut self) -> Option<DestinationKey> {
        for size in [Size::Small, Size::Large] {
            let share = self.share_mut(size);
            if share.freed {
                if let Some(key) = share.line.pop_front() {
                    self.called = Some((size, key));
                    return Some(key);
                }
                share.freed = false;
            }
        }
        None
    }

    /// What is taken of a share, at most, and how many wait.
    pub(super) fn told(&self, size: Size, room: usize) -> (usize, usize, usize) {
        let share = self.share(size);
        (share.octets, Self::limit(size, room), share.line.len())
    }

    fn limit(size: Size, room: usize) -> usize {
        match size {
            Size::Small => room / 4,
            Size::Large => room - room / 4,
        }
    }

    fn share(&self, size: Size) -> &Share {
        match size {
            Size::Small => &self.small,
            Size::Large => &self.large,
        }
    }

    fn share_mut(&mut self, size: Size) -> &mut Share {
        match size {
            Size::Small => &mut self.small,
            Size::Large => &mut self.large,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever was called and went to open a connection first may find that the room has gone.
    #[test]
    fn who_waits_anew_is_called_once_room_was_made_since() {
        const ROOM: usize = 1_000;
        let key = DestinationKey::of_nothing();
        let mut transit = Transit::default();
        transit.begin(700, ROOM);
        transit.begin(50, ROOM);
        assert!(!transit.admits(key, 500, ROOM));
        transit.wait(key, 500, ROOM);
        assert_eq!(transit.call(), None, "nothing has changed since");
        transit.end(50, ROOM);
        assert_eq!(transit.call(), Some(key));
        transit.nobody_is_called();
        transit.wait(key, 500, ROOM);
        assert_eq!(transit.call(), None, "it has just found it full");
        transit.end(700, ROOM);
        assert_eq!(transit.call(), Some(key));
        assert!(transit.admits(key, 500, ROOM));
    }
}
