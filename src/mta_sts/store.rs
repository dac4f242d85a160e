//! Policies by domain, and the fetches that failed. Pure: time is an argument.

mod uses;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::uses::{Used, Uses};
use super::StsPolicy;
use super::find::PolicyFailure;
use crate::clock::Timestamp;
use crate::storage::{Change, StateRow};

/// How long a domain's policy is not fetched again, whatever its record says meanwhile (RFC 8461 §3.3): a record may change with
/// every answer.
pub(super) const REST: Duration = Duration::from_secs(300);
/// A policy is fetched again after this, or half its time if that is less, so that one in use never runs out
/// (RFC 8461 §10.2).
const REFRESH: Duration = Duration::from_secs(86_400);
/// What the keys of state rows begin with. Those of the scheduler begin otherwise.
const KEY_PREFIX: &[u8] = b"mta-sts/";
/// The first octet of a row's value.
const VERSION: u8 = 2;

/// A policy as it was fetched.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPolicy {
    pub(super) domain: String,
    pub(super) id: String,
    pub(super) policy: StsPolicy,
    pub(super) fetched: Timestamp,
}

impl KnownPolicy {
    /// Whose it is.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The id that the domain's TXT record had.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it says.
    pub fn policy(&self) -> &StsPolicy {
        &self.policy
    }

    /// When it was fetched: it holds for its `max_age` from then.
    pub fn fetched(&self) -> Timestamp {
        self.fetched
    }

    #[cfg(test)]
    pub(crate) fn for_tests(id: &str, text: &str) -> Arc<Self> {
        let policy = StsPolicy::parse(text.as_bytes()).unwrap();
        Arc::new(Self {
            domain: "x.example".into(),
            id: id.to_owned(),
            policy,
            fetched: Timestamp::default(),
        })
    }

    #[cfg(test)]
    pub(crate) fn of_domain_for_tests(domain: &str, text: &str) -> Arc<Self> {
        let policy = StsPolicy::parse(text.as_bytes()).unwrap();
        let (domain, id) = (domain.to_owned(), "1".to_owned());
        Arc::new(Self { domain, id, policy, fetched: Timestamp::default() })
    }

    /// Octets it takes in memory, more or less.
    pub(crate) fn weight(&self) -> usize {
        size_of::<Self>() + self.domain.len() + self.id.len() + self.policy.octets()
    }

    fn ends(&self) -> Timestamp {
        self.fetched + self.policy.max_age()
    }

    fn left(&self, now: Timestamp) -> Duration {
        self.ends().saturating_since(now)
    }

    /// How long it needs no refresh. Zero: it wants one.
    pub(super) fn refresh_in(&self, now: Timestamp) -> Duration {
        (self.fetched + REFRESH.min(self.policy.max_age() / 2)).saturating_since(now)
    }
}

/// What holds for a domain, and what is to be done about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// The policy that holds.
    pub(super) kept: Option<Arc<KnownPolicy>>,
    /// Why the current one could not be had, if another is wanted.
    pub(super) failure: Option<PolicyFailure>,
    /// After this it is to be asked again.
    pub(super) again_in: Duration,
    pub(super) fetch: Fetch,
}

impl Decision {
    const fn nothing() -> Self {
        Self { kept: None, failure: None, again_in: Duration::MAX, fetch: Fetch::No }
    }
}

/// Whether a policy is to be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetch {
    /// No: it is known well enough, there is none, or it was fetched just now.
    No,
    /// The one that holds is to be seen again before it runs out.
    Refresh,
    /// The record names one that is not known.
    New,
}

/// At a bound somebody is forgotten ([`Uses`]), and with a policy that the domain had it, until its next fetch. O(log n).
#[derive(Debug, Default)]
pub(super) struct Store {
    entries: HashMap<Arc<str>, Entry>,
    uses: Uses,
    tick: u64,
    /// To be made durable.
    changes: Vec<Change>,
}

#[derive(Debug, Default)]
struct Entry {
    kept: Option<Arc<KnownPolicy>>,
    /// Why the last fetch failed, if it did.
    failure: Option<PolicyFailure>,
    /// When the last fetch ended, and how long there is to be no other.
    rest: Option<(Timestamp, Duration)>,
    last_use: u64,
}

impl Entry {
    fn used(&self, domain: &Arc<str>) -> Used {
        let policy = self.kept.as_ref().map(|kept| (kept.policy.mode(), kept.weight()));
        Used { domain: domain.clone(), tick: self.last_use, policy }
    }

    fn keep(&mut self, kept: Arc<KnownPolicy>) {
        // One that runs out sooner is seen again sooner.
        self.rest = Some((kept.fetched, REST.min(kept.policy.max_age() / 2)));
        self.failure = None;
        self.kept = Some(kept);
    }

    /// How long there is to be no other fetch.
    fn rests_for(&self, now: Timestamp) -> Option<Duration> {
        // A clock stepped back would make it last.
        let (from, rest) = self.rest.filter(|&(from, rest)| from <= now && now < from + rest)?;
        Some((from + rest).saturating_since(now))
    }
}

impl Store {
    /// What holds for a domain whose TXT record names this id, or names none.
    pub(super) fn decide(&mut self, domain: &str, id: Option<&str>, now: Timestamp) -> Decision {
        self.forget_if_over(domain, now);
        self.tick += 1;
        let name = self.entries.get_key_value(domain).map(|(name, _)| name.clone());
        let Some((name, entry)) = name.and_then(|name| Some((name, self.entries.get_mut(domain)?))) else {
            let fetch = if id.is_some() { Fetch::New } else { Fetch::No };
            return Decision { fetch, ..Decision::nothing() };
        };
        self.uses.remove(&entry.used(&name));
        entry.last_use = self.tick;
        self.uses.add(entry.used(&name));
        let kept = entry.kept.clone();
        let left = kept.as_ref().map_or(Duration::MAX, |kept| kept.left(now));
        let fetch = match (&kept, id) {
            (None, None) => return Decision::nothing(),
            // RFC 8461 §3.3: a policy that was seen holds without a record, or somebody in between could take that away. For the
            // same reason it is seen again.
            (Some(kept), id) if id.is_none_or(|id| kept.id == id) => {
                let refresh_in = kept.refresh_in(now);
                if !refresh_in.is_zero() {
                    return Decision {
                        again_in: refresh_in,
                        failure: None,
                        fetch: Fetch::No,
                        kept: Some(kept.clone()),
                    };
                }
                Fetch::Refresh
            }
            _ => Fetch::New,
        };
        let failure = entry.failure.clone();
        match entry.rests_for(now) {
            Some(rest) => Decision { kept, failure, again_in: rest.min(left), fetch: Fetch::No },
            None => Decision { kept, failure, again_in: left, fetch },
        }
    }

    /// The policy that holds for a domain, as far as it is known. Asking is no use of it.
    pub(super) fn known(&self, domain: &str, now: Timestamp) -> Option<&Arc<KnownPolicy>> {
        self.entries.get(domain)?.kept.as_ref().filter(|kept| kept.ends() > now)
    }

    pub(super) fn fetched(&mut self, domain: &str, kept: Arc<KnownPolicy>) {
        let row = StateRow { key: key_of(domain), value: encode(&kept) };
        self.changes.push(Change::PutState(row));
        self.put(domain, |entry| entry.keep(kept));
    }

    pub(super) fn failed(&mut self, domain: &str, now: Timestamp, failure: PolicyFailure) {
        self.put(domain, |entry| (entry.failure, entry.rest) = (Some(failure), Some((now, REST))));
    }

    /// Start-up: a row written earlier. `false`: it is none of these.
    pub(super) fn restore(&mut self, row: &StateRow, now: Timestamp) -> bool {
        if !is_policy(row) {
            return false;
        }
        match decode(&row.value) {
            Some(kept) if kept.ends() > now => {
                let domain = kept.domain.clone();
                self.put(&domain, |entry| entry.keep(Arc::new(kept)));
            }
            _ => self.changes.push(Change::DeleteState(row.key.clone())),
        }
        true
    }

    /// Whether there is something to be made durable.
    pub(super) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// What is to be made durable since this was last asked.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// They were not written. What has changed since counts.
    pub(super) fn put_back_changes(&mut self, mut changes: Vec<Change>) {
        fn key(change: &Change) -> Option<&[u8]> {
            match change {
                Change::PutState(row) => Some(&row.key),
                Change::DeleteState(key) => Some(key),
                _ => None,
            }
        }
        let newer: BTreeSet<Vec<u8>> = self.changes.iter().filter_map(key).map(<[u8]>::to_vec).collect();
        changes.retain(|change| key(change).is_some_and(|key| !newer.contains(key)));
        changes.append(&mut self.changes);
        self.changes = changes;
    }

    /// A policy whose time is over holds no more.
    fn forget_if_over(&mut self, domain: &str, now: Timestamp) {
        let is_over = |entry: &Entry| entry.kept.as_ref().is_some_and(|kept| kept.ends() <= now);
        if self.entries.get(domain).is_some_and(is_over) {
            self.changes.push(Change::DeleteState(key_of(domain)));
            self.put(domain, |entry| entry.kept = None);
        }
    }

    fn put(&mut self, domain: &str, change: impl FnOnce(&mut Entry)) {
        self.tick += 1;
        let name = match self.entries.get_key_value(domain) {
            Some((name, _)) => name.clone(),
            None => domain.into(),
        };
        let entry = self.entries.entry(name.clone()).or_default();
        self.uses.remove(&entry.used(&name));
        change(entry);
        entry.last_use = self.tick;
        self.uses.add(entry.used(&name));
        while let Some(domain) = self.uses.surplus().cloned() {
            let Some(entry) = self.entries.remove(&domain) else { return };
            self.uses.remove(&entry.used(&domain));
            if entry.kept.is_some() {
                self.changes.push(Change::DeleteState(key_of(&domain)));
            }
        }
    }
}

/// Whether a state row is of this kind.
pub(crate) fn is_policy(row: &StateRow) -> bool {
    row.key.starts_with(KEY_PREFIX)
}

fn key_of(domain: &str) -> Vec<u8> {
    [KEY_PREFIX, domain.as_bytes()].concat()
}

fn encode(kept: &KnownPolicy) -> Vec<u8> {
    let mut value = vec![VERSION];
    // It does not fail on what has no maps and is written to memory.
    value.extend(postcard::to_stdvec(kept).unwrap_or_default());
    value
}

fn decode(value: &[u8]) -> Option<KnownPolicy> {
    match value.split_first() {
        Some((&VERSION, encoded)) => postcard::from_bytes(encoded).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
