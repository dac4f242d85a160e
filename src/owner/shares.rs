//! Who is forgotten when there is no room: by when names were last used, and how much their owners have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The part of the room that a wide group has for certain, and a narrow one.
const WIDE_PART: usize = 16;
const NARROW_PART: usize = 64;

/// What is kept of a name.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) name: Arc<str>,
    /// When it was last used. No two are the same.
    pub(crate) tick: u64,
    /// It goes only when all else is gone.
    pub(crate) is_dear: bool,
    /// The room that it takes.
    pub(crate) weight: usize,
}

/// All that is kept, by last use. What is not dear goes first. Of what is alike, who has more than its share loses first, the narrower
/// group before the wider one and of these the one that has most; of a group what was used least recently.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Shares {
    room: usize,
    all: Group,
    wide: Groups,
    narrow: Groups,
}

impl Shares {
    pub(crate) fn new(room: usize) -> Self {
        let (wide, narrow) = (Groups::new(room / WIDE_PART), Groups::new(room / NARROW_PART));
        Self { room, all: Group::default(), wide, narrow }
    }

    pub(crate) fn add(&mut self, held: &Held) {
        self.all.add(held);
        self.wide.change(super::wide(&held.name), |group| group.add(held));
        self.narrow.change(super::narrow(&held.name), |group| group.add(held));
    }

    pub(crate) fn remove(&mut self, held: &Held) {
        self.all.remove(held);
        self.wide.change(super::wide(&held.name), |group| group.remove(held));
        self.narrow.change(super::narrow(&held.name), |group| group.remove(held));
    }

    /// More is kept than there is room for.
    pub(crate) fn is_over(&self) -> bool {
        self.all.weight > self.room
    }

    /// Who is to be forgotten for others.
    pub(crate) fn first_to_go(&self) -> Option<&Arc<str>> {
        [false, true].iter().find_map(|&dear| self.over_its_share(dear).or_else(|| self.all.first(dear)))
    }

    /// Who is to be forgotten for others, of an owner that has more than its share.
    pub(crate) fn first_of_a_hoarder(&self) -> Option<&Arc<str>> {
        [false, true].iter().find_map(|&dear| self.over_its_share(dear))
    }

    fn over_its_share(&self, dear: bool) -> Option<&Arc<str>> {
        self.narrow.first(dear).or_else(|| self.wide.first(dear))
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        let grouped = |groups: &Groups| groups.by_name.values().map(Group::len).sum::<usize>();
        assert_eq!((grouped(&self.wide), grouped(&self.narrow)), (self.all.len(), self.all.len()));
        self.all.len()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() + self.all.weight + self.wide.by_name.len() + self.narrow.by_name.len() == 0
    }
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Groups {
    share: usize,
    by_name: HashMap<Box<str>, Group>,
    /// Those that have more than their share: as few as there are shares.
    over: BTreeSet<Box<str>>,
}

impl Groups {
    fn new(share: usize) -> Self {
        Self { share, by_name: HashMap::new(), over: BTreeSet::new() }
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Group)) {
        let group = self.by_name.entry(name.into()).or_default();
        change(group);
        let (weight, was_over) = (group.weight, self.over.contains(name));
        if weight > self.share && !was_over {
            self.over.insert(name.into());
        } else if weight <= self.share && was_over {
            self.over.remove(name);
        }
        if weight == 0 {
            self.by_name.remove(name);
        }
    }

    /// Of those with more than their share, and with something as dear as that, the one that has most.
    fn first(&self, dear: bool) -> Option<&Arc<str>> {
        let over = self.over.iter().filter_map(|name| self.by_name.get(name));
        let with_first = over.filter_map(|group| Some((group.weight, group.first(dear)?)));
        with_first.max_by_key(|&(weight, _)| weight).map(|(_, first)| first)
    }
}

/// Names by the tick of their last use.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
struct Group {
    cheap: BTreeMap<u64, Arc<str>>,
    dear: BTreeMap<u64, Arc<str>>,
    weight: usize,
}

impl Group {
    fn add(&mut self, held: &Held) {
        let like = if held.is_dear { &mut self.dear } else { &mut self.cheap };
        like.insert(held.tick, held.name.clone());
        self.weight += held.weight;
    }

    fn remove(&mut self, held: &Held) {
        let like = if held.is_dear { &mut self.dear } else { &mut self.cheap };
        if like.remove(&held.tick).is_some() {
            self.weight -= held.weight;
        }
    }

    fn first(&self, dear: bool) -> Option<&Arc<str>> {
        if dear { &self.dear } else { &self.cheap }.values().next()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.cheap.len() + self.dear.len()
    }
}
