//! Where things lie, by the hashes of their names.

use std::iter::successors;

/// A hash table of places alone, by open addressing: whoever looks something up reads one line of memory here, and then
/// the thing. Of a million queues none is in a cache, and a look-up costs what it reads.
#[derive(Default)]
pub(super) struct Index {
    /// A power of two of them, or none. At least a quarter is empty.
    entries: Vec<Entry>,
    len: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Of the hash. It decides where the entry belongs, and that most names that differ need not be looked at.
    tag: u32,
    place: u32,
}

impl Entry {
    const EMPTY: Self = Self { tag: 0, place: u32::MAX };

    fn is_empty(self) -> bool {
        self.place == u32::MAX
    }
}

fn tag(hash: u64) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "either half will do, and both are better")]
    let tag = (hash ^ (hash >> 32)) as u32;
    tag
}

/// The fewest entries.
const FEWEST: usize = 8;

impl Index {
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let tag = tag(hash);
        self.chain(tag).map(|(_, entry)| entry).find(|it| it.tag == tag && is_it(it.place)).map(|it| it.place)
    }

    /// It is not there yet.
    pub(super) fn insert(&mut self, hash: u64, place: u32) {
        if (self.len + 1) * 4 > self.entries.len() * 3 {
            let larger = vec![Entry::EMPTY; (self.entries.len() * 2).max(FEWEST)];
            let old = std::mem::replace(&mut self.entries, larger);
            old.into_iter().filter(|entry| !entry.is_empty()).for_each(|entry| self.put(entry));
        }
        self.put(Entry { tag: tag(hash), place });
        self.len += 1;
    }

    pub(super) fn remove(&mut self, hash: u64, place: u32) {
        let Some((mut hole, _)) = self.chain(tag(hash)).find(|(_, entry)| entry.place == place) else {
            return;
        };
        self.len -= 1;
        // Those behind it move up, unless that would be before where they belong: nobody stops looking too early.
        let mut at = hole;
        loop {
            at = self.next(at);
            let Some(&entry) = self.entries.get(at).filter(|entry| !entry.is_empty()) else { break };
            if self.distance(self.home(entry.tag), at) >= self.distance(hole, at) {
                self.set(hole, entry);
                hole = at;
            }
        }
        self.set(hole, Entry::EMPTY);
    }

    fn put(&mut self, entry: Entry) {
        let home = self.home(entry.tag);
        let free = successors(Some(home), |&at| Some(self.next(at)))
            .find(|&at| self.entries.get(at).is_none_or(|entry| entry.is_empty()));
        if let Some(free) = free {
            self.set(free, entry);
        }
    }

    /// The entries from where one with this tag belongs to the next empty one.
    fn chain(&self, tag: u32) -> impl Iterator<Item = (usize, Entry)> {
        let places = successors(Some(self.home(tag)), |&at| Some(self.next(at)));
        places.map_while(|at| Some((at, *self.entries.get(at).filter(|entry| !entry.is_empty())?)))
    }

    fn home(&self, tag: u32) -> usize {
        tag as usize & self.mask()
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & self.mask()
    }

    /// How far it is from one place on to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & self.mask()
    }

    fn mask(&self) -> usize {
        self.entries.len().wrapping_sub(1)
    }

    fn set(&mut self, at: usize, new: Entry) {
        if let Some(entry) = self.entries.get_mut(at) {
            *entry = new;
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// With hashes that collide, here and there at the end of the table too.
        #[test]
        fn it_finds_what_is_there(steps in proptest::collection::vec((any::<bool>(), 0_u32..40), 0..200)) {
            let hash = |place: u32| u64::from(place / 3).wrapping_mul(5);
            let (mut index, mut plain) = (Index::default(), BTreeMap::new());
            for (inserts, place) in steps {
                match (inserts, plain.contains_key(&place)) {
                    (true, false) => {
                        index.insert(hash(place), place);
                        plain.insert(place, ());
                    }
                    (false, true) => {
                        index.remove(hash(place), place);
                        plain.remove(&place);
                    }
                    (false, false) => index.remove(hash(place), place),
                    (true, true) => {}
                }
                prop_assert_eq!(index.len(), plain.len());
                for place in 0..40 {
                    let found = index.find(hash(place), |at| at == place);
                    prop_assert_eq!(found.is_some(), plain.contains_key(&place));
                }
            }
        }
    }
}
