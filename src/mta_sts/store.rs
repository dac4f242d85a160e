//! Policies by domain, and the fetches that failed. Pure: time is an argument.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::StsPolicy;
use super::find::PolicyFailure;
use crate::clock::Timestamp;
use crate::storage::{Change, StateRow};

/// How long a fetch that failed is not tried again, for the same id (RFC 8461 §3.3).
pub(super) const FAILURE_HOLDS: Duration = Duration::from_secs(300);
/// A policy is fetched again after this, or half its time if that is less, so that one in use never runs out
/// (RFC 8461 §10.2).
const REFRESH: Duration = Duration::from_secs(86_400);
/// Domains that something is known of.
const MOST_DOMAINS: usize = 10_000;
/// Octets of their policies in memory.
const MOST_OCTETS: usize = 32 << 20;
/// What the keys of state rows begin with. Those of the scheduler begin otherwise.
const KEY_PREFIX: &[u8] = b"mta-sts/";
/// The first octet of a row's value.
const VERSION: u8 = 1;

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

    fn ends(&self) -> Timestamp {
        self.fetched + self.policy.max_age()
    }

    pub(super) fn left(&self, now: Timestamp) -> Duration {
        self.ends().saturating_since(now)
    }

    fn wants_refresh(&self, now: Timestamp) -> bool {
        self.fetched + REFRESH.min(self.policy.max_age() / 2) <= now
    }
}

/// What to do about a domain.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// This holds; or there is none, and none to be had now.
    Use { kept: Option<Arc<KnownPolicy>>, failure: Option<PolicyFailure>, again_in: Duration },
    /// The policy is to be fetched.
    Fetch,
}

/// At a bound the domain asked for least recently is forgotten, and with it that it had a policy, until its next
/// fetch. O(log n).
#[derive(Debug, Default)]
pub(super) struct Store {
    entries: HashMap<Arc<str>, Entry>,
    /// Domains by the tick of their last use.
    uses: BTreeMap<u64, Arc<str>>,
    tick: u64,
    octets: usize,
    /// To be made durable.
    changes: Vec<Change>,
}

#[derive(Debug, Default)]
struct Entry {
    kept: Option<Arc<KnownPolicy>>,
    failed: Option<Failed>,
    last_use: u64,
}

/// A fetch that failed.
#[derive(Debug)]
struct Failed {
    id: String,
    at: Timestamp,
    failure: PolicyFailure,
}

impl Entry {
    fn weight(&self) -> usize {
        self.kept.as_ref().map_or(0, |kept| kept.policy.weight())
    }
}

impl Store {
    /// What holds for a domain whose TXT record names this id, or names none.
    pub(super) fn decide(&mut self, domain: &str, id: Option<&str>, now: Timestamp) -> Decision {
        self.forget_if_over(domain, now);
        let nothing = Decision::Use { kept: None, failure: None, again_in: Duration::MAX };
        self.tick += 1;
        let Some(entry) = self.entries.get_mut(domain) else {
            return if id.is_some() { Decision::Fetch } else { nothing };
        };
        if let Some(name) = self.uses.remove(&entry.last_use) {
            self.uses.insert(self.tick, name);
            entry.last_use = self.tick;
        }
        let left = entry.kept.as_ref().map_or(Duration::MAX, |kept| kept.left(now));
        let kept = entry.kept.clone();
        let Some(id) = id else {
            // RFC 8461 §3.3: a policy that was seen holds without a record, or somebody in between could take that away.
            return Decision::Use { kept, failure: None, again_in: left };
        };
        if kept.as_ref().is_some_and(|kept| kept.id == *id && !kept.wants_refresh(now)) {
            return Decision::Use { kept, failure: None, again_in: left };
        }
        match &entry.failed {
            // A clock stepped back would make it last.
            Some(failed) if failed.id == *id && failed.at <= now && now < failed.at + FAILURE_HOLDS => {
                let again_in = (failed.at + FAILURE_HOLDS).saturating_since(now).min(left);
                Decision::Use { kept, failure: Some(failed.failure.clone()), again_in }
            }
            _ => Decision::Fetch,
        }
    }

    pub(super) fn fetched(&mut self, domain: &str, kept: Arc<KnownPolicy>) {
        let row = StateRow { key: key_of(domain), value: encode(&kept) };
        self.changes.push(Change::PutState(row));
        self.put(domain, |entry| (entry.kept, entry.failed) = (Some(kept), None));
    }

    pub(super) fn failed(&mut self, domain: &str, id: &str, now: Timestamp, failure: PolicyFailure) {
        let failed = Failed { id: id.to_owned(), at: now, failure };
        self.put(domain, |entry| entry.failed = Some(failed));
    }

    /// Start-up: a row written earlier. `false`: it is none of these.
    pub(super) fn restore(&mut self, row: &StateRow, now: Timestamp) -> bool {
        if !is_policy(row) {
            return false;
        }
        match decode(&row.value) {
            Some(kept) if kept.ends() > now => {
                let domain = kept.domain.clone();
                self.put(&domain, |entry| entry.kept = Some(Arc::new(kept)));
            }
            _ => self.changes.push(Change::DeleteState(row.key.clone())),
        }
        true
    }

    /// What is to be made durable since this was last asked.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
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
        self.uses.remove(&entry.last_use);
        self.octets -= entry.weight();
        change(entry);
        entry.last_use = self.tick;
        self.octets += entry.weight();
        self.uses.insert(self.tick, name);
        while self.entries.len() > MOST_DOMAINS || self.octets > MOST_OCTETS {
            let Some((_, oldest)) = self.uses.pop_first() else { break };
            let Some(entry) = self.entries.remove(&oldest) else { continue };
            self.octets -= entry.weight();
            if entry.kept.is_some() {
                self.changes.push(Change::DeleteState(key_of(&oldest)));
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
mod tests {
    use super::*;

    const AGE: u64 = 1_000_000;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    fn kept(id: &str, max_age: u64, fetched: u64) -> Arc<KnownPolicy> {
        let text = format!("version: STSv1\nmode: enforce\nmx: mx.example.net\nmax_age: {max_age}");
        Arc::new(KnownPolicy {
            domain: "a.example".to_owned(),
            id: id.to_owned(),
            policy: StsPolicy::parse(text.as_bytes()).unwrap(),
            fetched: at(fetched),
        })
    }

    fn failure() -> PolicyFailure {
        PolicyFailure::for_tests()
    }

    fn uses(kept: Option<&Arc<KnownPolicy>>, failure: Option<PolicyFailure>, again_in: u64) -> Decision {
        Decision::Use { kept: kept.cloned(), failure, again_in: Duration::from_secs(again_in) }
    }

    /// The rows that go, and no other change.
    fn deleted(store: &mut Store) -> Vec<String> {
        let changes = store.take_changes().into_iter();
        let key = |change| match change {
            Change::DeleteState(key) => String::from_utf8(key).unwrap(),
            other => panic!("{other:?}"),
        };
        changes.map(key).collect()
    }

    #[test]
    fn a_policy_is_fetched_when_the_id_is_new() {
        let mut store = Store::default();
        let nothing = Decision::Use { kept: None, failure: None, again_in: Duration::MAX };
        assert_eq!(store.decide("a.example", None, at(0)), nothing);
        assert_eq!(store.decide("a.example", Some("1"), at(0)), Decision::Fetch);
        let one = kept("1", AGE, 0);
        store.fetched("a.example", one.clone());
        assert_eq!(store.decide("a.example", Some("1"), at(10)), uses(Some(&one), None, AGE - 10));
        assert_eq!(store.decide("a.example", Some("2"), at(10)), Decision::Fetch);
        assert_eq!(store.decide("b.example", Some("1"), at(10)), Decision::Fetch);
    }

    /// RFC 8461 §3.3.
    #[test]
    fn a_policy_holds_without_record_until_its_time_is_over() {
        let mut store = Store::default();
        let one = kept("1", 100, 0);
        store.fetched("a.example", one.clone());
        assert_eq!(store.take_changes().len(), 1);
        assert_eq!(store.decide("a.example", None, at(99)), uses(Some(&one), None, 1));
        let nothing = Decision::Use { kept: None, failure: None, again_in: Duration::MAX };
        assert_eq!(store.decide("a.example", None, at(100)), nothing);
        assert_eq!(deleted(&mut store), ["mta-sts/a.example"]);
        assert_eq!(store.octets, 0);
    }

    #[test]
    fn a_failure_is_remembered_for_its_id_and_leaves_the_policy() {
        let mut store = Store::default();
        store.failed("a.example", "1", at(0), failure());
        assert_eq!(store.decide("a.example", Some("1"), at(299)), uses(None, Some(failure()), 1));
        assert_eq!(store.decide("a.example", Some("1"), at(300)), Decision::Fetch);
        assert_eq!(store.decide("a.example", Some("2"), at(1)), Decision::Fetch);
        let one = kept("1", AGE, 0);
        store.fetched("a.example", one.clone());
        store.failed("a.example", "2", at(10), failure());
        assert_eq!(store.decide("a.example", Some("2"), at(20)), uses(Some(&one), Some(failure()), 290));
        assert_eq!(store.decide("a.example", Some("1"), at(20)), uses(Some(&one), None, AGE - 20));
    }

    #[test]
    fn a_policy_is_seen_again_before_it_runs_out() {
        let mut store = Store::default();
        for (max_age, refresh) in [(AGE, 86_400), (100, 50)] {
            let one = kept("1", max_age, 0);
            store.fetched("a.example", one.clone());
            let left = max_age - (refresh - 1);
            assert_eq!(store.decide("a.example", Some("1"), at(refresh - 1)), uses(Some(&one), None, left));
            assert_eq!(store.decide("a.example", Some("1"), at(refresh)), Decision::Fetch);
            store.failed("a.example", "1", at(refresh), failure());
            let Decision::Use { kept: Some(still), .. } = store.decide("a.example", Some("1"), at(refresh))
            else {
                panic!()
            };
            assert_eq!(still, one);
        }
    }

    #[test]
    fn rows_come_back() {
        let mut store = Store::default();
        let one = kept("1", AGE, 0);
        store.fetched("a.example", one.clone());
        let Some(Change::PutState(row)) = store.take_changes().pop() else { panic!() };
        let mut again = Store::default();
        assert!(again.restore(&row, at(10)));
        assert_eq!(again.decide("a.example", None, at(10)), uses(Some(&one), None, AGE - 10));
        assert!(again.take_changes().is_empty());
        // Over, damaged, of another version: away with it.
        for (row, now) in [
            (row.clone(), AGE),
            (StateRow { value: row.value[..9].to_vec(), ..row.clone() }, 0),
            (StateRow { value: Vec::new(), ..row.clone() }, 0),
        ] {
            let mut store = Store::default();
            assert!(store.restore(&row, at(now)));
            assert_eq!(deleted(&mut store), ["mta-sts/a.example"]);
            assert!(store.entries.is_empty());
        }
        assert!(!again.restore(&StateRow { key: b"other".to_vec(), ..row }, at(0)));
    }

    #[test]
    fn the_least_recently_used_goes_at_the_bound() {
        let mut store = Store::default();
        for n in 0..MOST_DOMAINS {
            store.fetched(&format!("d{n}.example"), kept("1", AGE, 0));
        }
        store.decide("d0.example", None, at(1));
        store.take_changes();
        store.failed("new.example", "1", at(1), failure());
        assert_eq!((store.entries.len(), store.uses.len()), (MOST_DOMAINS, MOST_DOMAINS));
        assert_eq!(deleted(&mut store), ["mta-sts/d1.example"]);
        assert!(matches!(store.decide("d0.example", None, at(1)), Decision::Use { kept: Some(_), .. }));
        let sum: usize = store.entries.values().map(Entry::weight).sum();
        assert_eq!(sum, store.octets);
    }
}
