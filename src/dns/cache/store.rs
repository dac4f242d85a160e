//! Answers by name, with an end each and a bound on their number.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::CacheOptions;
use crate::clock::Timestamp;
use crate::dns::{Answer, Data};

/// How long a stale answer stands in before DNS is asked again; also the TTL it is given (RFC 8767 §5).
const STALE_TTL: Duration = Duration::from_secs(30);

/// What a store takes for an answer beside name and records: its places in both maps, and what the allocator adds.
const OVERHEAD: usize = 256;

/// What an answer is made of.
pub(super) trait Weighty: Clone {
    /// Octets that it has outside itself.
    fn octets(&self) -> usize;
}

/// The answers of one record type. At a bound the least recently used makes room; O(log n).
#[derive(Debug)]
pub(super) struct Store<T> {
    entries: HashMap<Arc<str>, Entry<T>>,
    /// Names by the tick of their last use.
    uses: BTreeMap<u64, Arc<str>>,
    tick: u64,
    octets: usize,
}

#[derive(Debug)]
struct Entry<T> {
    answer: Answer<T>,
    stored: Timestamp,
    ends: Timestamp,
    /// Until then the answer, though past its end, is good enough.
    stands_in_until: Timestamp,
    last_use: u64,
    /// What it takes, more or less.
    octets: usize,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { entries: HashMap::new(), uses: BTreeMap::new(), tick: 0, octets: 0 }
    }
}

impl<T: Weighty> Store<T> {
    /// The answer if it still holds, with what is left of its TTL.
    pub(super) fn get(&mut self, name: &str, now: Timestamp) -> Option<Answer<T>> {
        self.tick += 1;
        let entry = self.entries.get_mut(name)?;
        // A clock stepped back would make an old answer young again.
        let left = if now < entry.stored {
            return None;
        } else if now < entry.ends {
            entry.ends.saturating_since(now)
        } else if now < entry.stands_in_until {
            entry.stands_in_until.saturating_since(now)
        } else {
            return None;
        };
        if let Some(name) = self.uses.remove(&entry.last_use) {
            self.uses.insert(self.tick, name);
            entry.last_use = self.tick;
        }
        Some(Answer { ttl: left, ..entry.answer.clone() })
    }

    /// A positive answer past its end, to stand in after a failed look-up.
    ///
    /// It is as authentic as it was. For DANE that means: TLSA records are asked for. Taken from it, that would let anybody who keeps DNS from
    /// answering have mail sent in plain. What is demanded and proved then rests on TLSA records, which never stand in: without them
    /// the host is not used (RFC 7672 §2.1.2). That an MX may be a day older than its TTL is less than what a replayed answer may be, whose
    /// signatures hold for days or weeks.
    pub(super) fn stale(&mut self, name: &str, now: Timestamp, options: &CacheOptions) -> Option<Answer<T>> {
        let entry = self.entries.get_mut(name)?;
        let is_positive = matches!(entry.answer.data, Data::Records(_));
        if !is_positive || now < entry.stored || now >= entry.ends + options.max_stale {
            return None;
        }
        let until = (now + STALE_TTL).min(entry.ends + options.max_stale);
        entry.stands_in_until = until;
        Some(Answer { ttl: until.saturating_since(now), ..entry.answer.clone() })
    }

    /// Keeps an answer, its TTL already cut to what [`CacheOptions`] allow, in place of what was there.
    pub(super) fn put(
        &mut self,
        name: &Arc<str>,
        answer: &Answer<T>,
        now: Timestamp,
        options: &CacheOptions,
    ) {
        if let Some(old) = self.entries.remove(name) {
            self.uses.remove(&old.last_use);
            self.octets -= old.octets;
        }
        let (ttl, octets) = (answer.ttl, weight(name, answer));
        if ttl.is_zero() || options.capacity == 0 || octets > options.octets {
            return;
        }
        while self.entries.len() >= options.capacity || self.octets + octets > options.octets {
            let Some((_, oldest)) = self.uses.pop_first() else { break };
            self.octets -= self.entries.remove(&oldest).map_or(0, |entry| entry.octets);
        }
        self.tick += 1;
        let (ends, last_use) = (now + ttl, self.tick);
        let answer = answer.clone();
        let entry = Entry { answer, stored: now, ends, stands_in_until: ends, last_use, octets };
        self.octets += octets;
        self.uses.insert(last_use, name.clone());
        self.entries.insert(name.clone(), entry);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.entries.len(), self.uses.len());
        assert_eq!(self.entries.values().map(|entry| entry.octets).sum::<usize>(), self.octets);
        self.entries.len()
    }
}

fn weight<T: Weighty>(name: &str, answer: &Answer<T>) -> usize {
    let records = match &answer.data {
        Data::Records(records) => records.iter().map(|record| size_of::<T>() + record.octets()).sum(),
        Data::NoData | Data::NxDomain => 0,
    };
    OVERHEAD
        + size_of::<Entry<T>>()
        + name.len()
        + records
        + answer.canonical.as_ref().map_or(0, |name| name.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Weighty for u8 {
        fn octets(&self) -> usize {
            0
        }
    }

    #[test]
    fn octets_are_bounded_too() {
        use crate::dns::TlsaRecord;
        let now = Timestamp::from_unix_seconds(1);
        let large = |n| Answer::records(vec![TlsaRecord::new(3, 0, 0, vec![n; 16_000]); 2], STALE_TTL);
        let options = CacheOptions { octets: 100_000, ..CacheOptions::default() };
        let mut store = Store::default();
        for n in 0..9 {
            store.put(&n.to_string().into(), &large(n), now, &options);
            assert!(store.octets > 32_000 * usize::from(n + 1).min(3) && store.octets <= 100_000);
        }
        assert_eq!(store.len(), 3);
        // Known again by another answer, and one that is larger than all there is room for.
        store.put(&"8".into(), &Answer::no_data(STALE_TTL), now, &options);
        assert_eq!((store.len(), store.octets < 70_000), (3, true));
        let much = Answer::records(vec![TlsaRecord::new(3, 0, 0, vec![0; 16_000]); 7], STALE_TTL);
        store.put(&"7".into(), &much, now, &options);
        assert_eq!((store.len(), store.get("7", now)), (2, None));
    }

    proptest! {
        /// Against a list in order of use.
        #[test]
        fn keeps_the_most_recently_used(capacity in 0usize..5, asked in prop::collection::vec(0u8..8, 0..60)) {
            let (mut store, mut model) = (Store::default(), Vec::<u8>::new());
            let now = Timestamp::from_unix_seconds(1);
            let options = CacheOptions { capacity, ..CacheOptions::default() };
            for key in asked {
                let name: Arc<str> = key.to_string().into();
                let found = store.get(&name, now).is_some();
                prop_assert_eq!(found, model.contains(&key));
                model.retain(|&k| k != key);
                model.push(key);
                if model.len() > capacity {
                    model.remove(0);
                }
                if !found {
                    store.put(&name, &Answer::records(vec![key], STALE_TTL), now, &options);
                }
                prop_assert_eq!(store.len(), model.len());
            }
        }
    }
}
