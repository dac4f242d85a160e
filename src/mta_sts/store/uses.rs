//! Who is forgotten when there is no room: by when domains were last asked for, and how much their owners have.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::Mode;
use crate::owner::{Held, Shares};

/// Domains of which a policy is kept.
pub(super) const MOST_DOMAINS: usize = 10_000;
/// Domains of which it is only known that a fetch has failed. They take no room from policies.
pub(super) const MOST_FAILURES: usize = 10_000;
/// Octets of policies in memory.
const MOST_OCTETS: usize = 32 << 20;
/// What the smallest policy counts for, so that the room for octets is room for so many domains.
const LEAST_WEIGHT: usize = MOST_OCTETS / MOST_DOMAINS;

/// An entry, as it counts here.
#[derive(Clone, Debug)]
pub(super) struct Used {
    pub(super) domain: Arc<str>,
    /// When it was last used. No two are the same.
    pub(super) tick: u64,
    /// The mode and the octets of its policy, if it has one.
    pub(super) policy: Option<(Mode, usize)>,
}

impl Used {
    fn held(&self) -> Option<Held> {
        let (mode, octets) = self.policy?;
        let (is_dear, weight) = (mode == Mode::Enforce, octets.max(LEAST_WEIGHT));
        Some(Held { name: self.domain.clone(), tick: self.tick, is_dear, weight })
    }
}

/// All entries by their last use. Policies that are not in force go first.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Uses {
    without_policy: BTreeMap<u64, Arc<str>>,
    policies: Shares,
}

impl Default for Uses {
    fn default() -> Self {
        Self { without_policy: BTreeMap::new(), policies: Shares::new(LEAST_WEIGHT * MOST_DOMAINS) }
    }
}

impl Uses {
    pub(super) fn add(&mut self, used: Used) {
        match used.held() {
            Some(held) => self.policies.add(&held),
            None => drop(self.without_policy.insert(used.tick, used.domain)),
        }
    }

    pub(super) fn remove(&mut self, used: &Used) {
        match used.held() {
            Some(held) => self.policies.remove(&held),
            None => drop(self.without_policy.remove(&used.tick)),
        }
    }

    /// Who is to be forgotten, if there are too many.
    pub(super) fn surplus(&self) -> Option<&Arc<str>> {
        if self.without_policy.len() > MOST_FAILURES {
            return self.without_policy.values().next();
        }
        if self.policies.is_over() { self.policies.first_to_go() } else { None }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.without_policy.len() + self.policies.len()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.without_policy.is_empty() && self.policies.is_empty()
    }
}
