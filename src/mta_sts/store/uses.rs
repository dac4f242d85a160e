//! Who is forgotten when there is no room: by when domains were last asked for, and how much their owners have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::{Mode, owner};

/// Domains of which a policy is kept.
pub(super) const MOST_DOMAINS: usize = 10_000;
/// Domains of which it is only known that a fetch has failed. They take no room from policies.
pub(super) const MOST_FAILURES: usize = 10_000;
/// Octets of policies in memory.
const MOST_OCTETS: usize = 32 << 20;
/// What the smallest policy counts for, so that the room for octets is room for so many domains.
const LEAST_WEIGHT: usize = MOST_OCTETS / MOST_DOMAINS;
const ROOM: usize = LEAST_WEIGHT * MOST_DOMAINS;
/// The part of the room that names with the same two last labels have for certain, and those with the same three.
const WIDE_SHARE: usize = ROOM / 16;
const NARROW_SHARE: usize = ROOM / 64;

/// An entry, as it counts here.
#[derive(Clone, Debug)]
pub(super) struct Used {
    pub(super) domain: Arc<str>,
    /// When it was last used. No two are the same.
    pub(super) tick: u64,
    /// The mode and the octets of its policy, if it has one.
    pub(super) policy: Option<(Mode, usize)>,
}

/// All entries by their last use. With no room left, who has more than its share loses first, the narrower group before the wider one and
/// of these the one that has most; of a group what is not in force, then what was used least recently.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Uses {
    without_policy: BTreeMap<u64, Arc<str>>,
    all: Group,
    wide: Groups,
    narrow: Groups,
}

impl Default for Uses {
    fn default() -> Self {
        let (wide, narrow) = (Groups::new(WIDE_SHARE), Groups::new(NARROW_SHARE));
        Self { without_policy: BTreeMap::new(), all: Group::default(), wide, narrow }
    }
}

impl Uses {
    pub(super) fn add(&mut self, used: Used) {
        if let Some((mode, octets)) = used.policy {
            let weight = octets.max(LEAST_WEIGHT);
            self.all.add(&used, mode, weight);
            self.wide.change(owner::wide(&used.domain), |group| group.add(&used, mode, weight));
            self.narrow.change(owner::narrow(&used.domain), |group| group.add(&used, mode, weight));
        } else {
            self.without_policy.insert(used.tick, used.domain);
        }
    }

    pub(super) fn remove(&mut self, used: &Used) {
        if let Some((mode, octets)) = used.policy {
            let weight = octets.max(LEAST_WEIGHT);
            self.all.remove(used.tick, mode, weight);
            self.wide.change(owner::wide(&used.domain), |group| group.remove(used.tick, mode, weight));
            self.narrow.change(owner::narrow(&used.domain), |group| group.remove(used.tick, mode, weight));
        } else {
            self.without_policy.remove(&used.tick);
        }
    }

    /// Who is to be forgotten, if there are too many.
    pub(super) fn surplus(&self) -> Option<&Arc<str>> {
        if self.without_policy.len() > MOST_FAILURES {
            return self.without_policy.values().next();
        }
        if self.all.weight <= ROOM {
            return None;
        }
        self.narrow.heaviest().or_else(|| self.wide.heaviest()).unwrap_or(&self.all).first()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let grouped = |groups: &Groups| groups.by_name.values().map(Group::len).sum::<usize>();
        assert_eq!((grouped(&self.wide), grouped(&self.narrow)), (self.all.len(), self.all.len()));
        self.without_policy.len() + self.all.len()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
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

    /// Of those with more than their share the one that has most.
    fn heaviest(&self) -> Option<&Group> {
        let over = self.over.iter().filter_map(|name| self.by_name.get(name));
        over.max_by_key(|group| group.weight)
    }
}

/// Domains with a policy by the tick of their last use.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
struct Group {
    lenient: BTreeMap<u64, Arc<str>>,
    enforced: BTreeMap<u64, Arc<str>>,
    weight: usize,
}

impl Group {
    fn like(&mut self, mode: Mode) -> &mut BTreeMap<u64, Arc<str>> {
        match mode {
            Mode::Enforce => &mut self.enforced,
            Mode::Testing | Mode::None => &mut self.lenient,
        }
    }

    fn add(&mut self, used: &Used, mode: Mode, weight: usize) {
        self.like(mode).insert(used.tick, used.domain.clone());
        self.weight += weight;
    }

    fn remove(&mut self, tick: u64, mode: Mode, weight: usize) {
        if self.like(mode).remove(&tick).is_some() {
            self.weight -= weight;
        }
    }

    fn first(&self) -> Option<&Arc<str>> {
        self.lenient.values().next().or_else(|| self.enforced.values().next())
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.lenient.len() + self.enforced.len()
    }
}
