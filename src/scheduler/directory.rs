//! An arena in which things are also found by their names.

use std::hash::{BuildHasher, Hash};

use super::arena::{Arena, Key};
use super::index::Index;

/// What carries its name with it. The name does not change.
pub(super) trait Named {
    type Name<'a>: Hash + PartialEq
    where
        Self: 'a;

    fn name(&self) -> Self::Name<'_>;
}

/// Names lie in the things alone: besides, there are some sixteen octets for each of a million.
///
/// Strangers choose names, and may wish them to collide. See [`NameMap`](super::ids::NameMap) for the hash.
pub(super) struct Directory<T> {
    things: Arena<T>,
    index: Index,
    hasher: foldhash::fast::RandomState,
}

impl<T> Default for Directory<T> {
    fn default() -> Self {
        Self {
            things: Arena::default(),
            index: Index::default(),
            hasher: foldhash::fast::RandomState::default(),
        }
    }
}

impl<T: Named> Directory<T> {
    pub(super) fn find<'a>(&'a self, name: T::Name<'a>) -> Option<Key<T>> {
        let hash = self.hasher.hash_one(&name);
        let is_named = |place| self.things.at(place).is_some_and(|(_, thing)| thing.name() == name);
        let place = self.index.find(hash, is_named)?;
        self.things.at(place).map(|(key, _)| key)
    }

    pub(super) fn find_ref<'a>(&'a self, name: T::Name<'a>) -> Option<&'a T> {
        self.get(self.find(name)?)
    }

    /// There is none of this name.
    pub(super) fn insert(&mut self, thing: T) -> Key<T> {
        let hash = self.hasher.hash_one(thing.name());
        let key = self.things.insert(thing);
        self.index.insert(hash, key.place());
        key
    }

    pub(super) fn remove(&mut self, key: Key<T>) -> Option<T> {
        let thing = self.things.remove(key)?;
        let hash = self.hasher.hash_one(thing.name());
        self.index.remove(hash, key.place());
        Some(thing)
    }
}

impl<T> Directory<T> {
    pub(super) fn get(&self, key: Key<T>) -> Option<&T> {
        self.things.get(key)
    }

    pub(super) fn get_mut(&mut self, key: Key<T>) -> Option<&mut T> {
        self.things.get_mut(key)
    }

    /// In the order in which they came to their places: the same after the same calls.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key<T>, &T)> {
        self.things.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.things.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing(String);

    impl Named for Thing {
        type Name<'a> = &'a str;

        fn name(&self) -> &str {
            &self.0
        }
    }

    #[test]
    fn things_are_found_by_name_until_they_are_removed() {
        let mut directory = Directory::default();
        let keys: Vec<_> = (0..1_000).map(|n| directory.insert(Thing(format!("t{n}")))).collect();
        for (n, &key) in keys.iter().enumerate() {
            assert_eq!(directory.find(&format!("t{n}")), Some(key));
        }
        for &key in keys.iter().step_by(2) {
            assert!(directory.remove(key).is_some());
            assert!(directory.remove(key).is_none());
        }
        for (n, &key) in keys.iter().enumerate() {
            assert_eq!(directory.find(&format!("t{n}")), (n % 2 == 1).then_some(key));
        }
        assert_eq!((directory.len(), directory.index.len()), (500, 500));
        let again = directory.insert(Thing("t0".into()));
        assert_eq!(directory.find("t0"), Some(again));
        assert_eq!(directory.iter().count(), 501);
    }
}
