//! A set and a line that mostly hold one thing.

use std::collections::{BTreeSet, VecDeque};
use std::iter::{Chain, Flatten};

/// An ordered set whose least element lies in it: of a million queues most have one lane, one connection, one item,
/// and no use for memory elsewhere.
#[derive(Debug)]
pub(super) struct FewSet<T> {
    first: Option<T>,
    /// All greater than the first, if there are any.
    #[allow(clippy::box_collection, reason = "most have none: a pointer is what they have room for")]
    rest: Option<Box<BTreeSet<T>>>,
}

impl<T> Default for FewSet<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> FewSet<T> {
    pub(super) const fn new() -> Self {
        Self { first: None, rest: None }
    }
}

impl<T: Ord + Copy> FewSet<T> {
    pub(super) fn insert(&mut self, new: T) {
        match self.first {
            None => self.first = Some(new),
            Some(first) if new < first => {
                self.rest.get_or_insert_default().insert(first);
                self.first = Some(new);
            }
            Some(first) if new == first => {}
            Some(_) => {
                self.rest.get_or_insert_default().insert(new);
            }
        }
    }

    pub(super) fn remove(&mut self, old: &T) {
        let Some(rest) = &mut self.rest else {
            self.first = self.first.filter(|first| first != old);
            return;
        };
        if self.first.as_ref() == Some(old) {
            self.first = rest.pop_first();
        } else {
            rest.remove(old);
        }
        if rest.is_empty() {
            self.rest = None;
        }
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.first.as_ref()
    }

    pub(super) fn last(&self) -> Option<&T> {
        self.rest.as_ref().and_then(|rest| rest.last()).or(self.first.as_ref())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.as_ref().map_or(0, |rest| rest.len())
    }

    pub(super) fn iter(&self) -> Iter<'_, T> {
        self.first.iter().chain(self.rest.as_deref().into_iter().flatten())
    }
}

type Iter<'a, T> = Chain<std::option::Iter<'a, T>, Flatten<std::option::IntoIter<&'a BTreeSet<T>>>>;

impl<'a, T: Ord + Copy> IntoIterator for &'a FewSet<T> {
    type Item = &'a T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// First in, first out. Its front lies in it.
#[derive(Debug)]
pub(super) struct FewDeque<T> {
    front: Option<T>,
    /// Those behind the front; without a front there are none.
    #[allow(clippy::box_collection, reason = "most have none: a pointer is what they have room for")]
    rest: Option<Box<VecDeque<T>>>,
}

impl<T> Default for FewDeque<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> FewDeque<T> {
    pub(super) const fn new() -> Self {
        Self { front: None, rest: None }
    }
}

impl<T: Copy + PartialEq> FewDeque<T> {
    pub(super) fn push_back(&mut self, new: T) {
        match self.front {
            None => self.front = Some(new),
            Some(_) => self.rest.get_or_insert_default().push_back(new),
        }
    }

    pub(super) fn push_front(&mut self, new: T) {
        if let Some(second) = self.front.replace(new) {
            self.rest.get_or_insert_default().push_front(second);
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<T> {
        let front = self.front.take()?;
        if let Some(rest) = &mut self.rest {
            self.front = rest.pop_front();
            if self.front.is_none() {
                self.rest = None;
            }
        }
        Some(front)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.front.is_none()
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.front.is_some()) + self.rest.as_ref().map_or(0, |rest| rest.len())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.front.iter().chain(self.rest.iter().flat_map(|rest| rest.iter()))
    }

    pub(super) fn contains(&self, wanted: &T) -> bool {
        self.iter().any(|one| one == wanted)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn retain(&mut self, mut stays: impl FnMut(&T) -> bool) {
        if let Some(rest) = &mut self.rest {
            let front = self.front.take().filter(&mut stays);
            rest.retain(stays);
            self.front = front.or_else(|| rest.pop_front());
        } else {
            self.front = self.front.filter(stays);
        }
    }

    /// Takes the first that is this one out. `false`: there is none.
    pub(super) fn remove(&mut self, old: &T) -> bool {
        if self.front.as_ref() == Some(old) {
            return self.pop_front().is_some();
        }
        let Some(rest) = &mut self.rest else { return false };
        let place = rest.iter().position(|one| one == old);
        place.is_some_and(|place| rest.remove(place).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_line(steps in proptest::collection::vec((0_u8..7, 0_u8..8), 0..64)) {
            let (mut few, mut plain) = (FewDeque::default(), VecDeque::new());
            for (step, value) in steps {
                match step {
                    0 | 1 => {
                        few.push_back(value);
                        plain.push_back(value);
                    }
                    2 => {
                        few.push_front(value);
                        plain.push_front(value);
                    }
                    3 | 4 => prop_assert_eq!(few.pop_front(), plain.pop_front()),
                    5 => {
                        few.retain(|&one| one != value);
                        plain.retain(|&one| one != value);
                    }
                    _ => {
                        let place = plain.iter().position(|&one| one == value);
                        prop_assert_eq!(few.remove(&value), place.and_then(|place| plain.remove(place)).is_some());
                    }
                }
                prop_assert_eq!(few.iter().collect::<Vec<_>>(), plain.iter().collect::<Vec<_>>());
                prop_assert_eq!((few.len(), few.is_empty()), (plain.len(), plain.is_empty()));
                prop_assert_eq!(few.contains(&value), plain.contains(&value));
            }
        }

        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0_u8..8), 0..64)) {
            let (mut few, mut plain) = (FewSet::default(), BTreeSet::new());
            for (inserts, value) in steps {
                if inserts {
                    few.insert(value);
                    plain.insert(value);
                } else {
                    few.remove(&value);
                    plain.remove(&value);
                }
                prop_assert_eq!(few.iter().collect::<Vec<_>>(), plain.iter().collect::<Vec<_>>());
                prop_assert_eq!(few.iter().rev().collect::<Vec<_>>(), plain.iter().rev().collect::<Vec<_>>());
                prop_assert_eq!((few.first(), few.last()), (plain.first(), plain.last()));
                prop_assert_eq!((few.len(), few.is_empty()), (plain.len(), plain.is_empty()));
            }
        }
    }
}
