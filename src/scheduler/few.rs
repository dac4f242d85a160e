//! A set that mostly holds one thing.

use std::collections::{BTreeSet, btree_set};
use std::iter::Chain;

/// An ordered set whose least element lies in it: of a million queues most have one lane, one connection, one item,
/// and no use for memory elsewhere.
#[derive(Debug)]
pub(super) struct FewSet<T> {
    first: Option<T>,
    /// All greater than the first.
    rest: BTreeSet<T>,
}

impl<T> Default for FewSet<T> {
    fn default() -> Self {
        Self { first: None, rest: BTreeSet::new() }
    }
}

impl<T: Ord + Copy> FewSet<T> {
    pub(super) fn insert(&mut self, new: T) {
        match self.first {
            None => self.first = Some(new),
            Some(first) if new < first => {
                self.rest.insert(first);
                self.first = Some(new);
            }
            Some(first) if new == first => {}
            Some(_) => {
                self.rest.insert(new);
            }
        }
    }

    pub(super) fn remove(&mut self, old: &T) {
        if self.first.as_ref() == Some(old) {
            self.first = self.rest.pop_first();
        } else {
            self.rest.remove(old);
        }
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.first.as_ref()
    }

    pub(super) fn last(&self) -> Option<&T> {
        self.rest.last().or(self.first.as_ref())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    pub(super) fn iter(&self) -> Iter<'_, T> {
        self.first.iter().chain(&self.rest)
    }
}

type Iter<'a, T> = Chain<std::option::Iter<'a, T>, btree_set::Iter<'a, T>>;

impl<'a, T: Ord + Copy> IntoIterator for &'a FewSet<T> {
    type Item = &'a T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
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
