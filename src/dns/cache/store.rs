//! Answers by name, with an end each and a bound on their number.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::CacheOptions;
use crate::clock::Timestamp;
use crate::dns::{Answer, Data};

/// How long a stale answer stands in before DNS is asked again; also the TTL it is given (RFC 8767 §5).
const STALE_TTL: Duration = Duration::from_secs(30);

/// The answers of one record type. At the bound the least recently used makes room; O(log n).
#[derive(Debug)]
pub(super) struct Store<T> {
    entries: HashMap<Arc<str>, Entry<T>>,
    /// Names by the tick of their last use.
    uses: BTreeMap<u64, Arc<str>>,
    tick: u64,
}

#[derive(Debug)]
struct Entry<T> {
    answer: Answer<T>,
    stored: Timestamp,
    ends: Timestamp,
    /// Until then the answer, though past its end, is good enough.
    stands_in_until: Timestamp,
    last_use: u64,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { entries: HashMap::new(), uses: BTreeMap::new(), tick: 0 }
    }
}

impl<T: Clone> Store<T> {
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
    pub(super) fn put(&mut self, name: &Arc<str>, answer: &Answer<T>, now: Timestamp, capacity: usize) {
        if let Some(old) = self.entries.remove(name) {
            self.uses.remove(&old.last_use);
        }
        let ttl = answer.ttl;
        if ttl.is_zero() || capacity == 0 {
            return;
        }
        while self.entries.len() >= capacity {
            let Some((_, oldest)) = self.uses.pop_first() else { break };
            self.entries.remove(&oldest);
        }
        self.tick += 1;
        let ends = now + ttl;
        let entry =
            Entry { answer: answer.clone(), stored: now, ends, stands_in_until: ends, last_use: self.tick };
        self.uses.insert(self.tick, name.clone());
        self.entries.insert(name.clone(), entry);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.entries.len(), self.uses.len());
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a list in order of use.
        #[test]
        fn keeps_the_most_recently_used(capacity in 0usize..5, asked in prop::collection::vec(0u8..8, 0..60)) {
            let (mut store, mut model) = (Store::default(), Vec::<u8>::new());
            let now = Timestamp::from_unix_seconds(1);
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
                    store.put(&name, &Answer::records(vec![key], STALE_TTL), now, capacity);
                }
                prop_assert_eq!(store.len(), model.len());
            }
        }
    }
}
