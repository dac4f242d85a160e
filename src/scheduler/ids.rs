//! Maps by ids that count up, and by names.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// Ids are ours or the store's. No stranger chooses them, so the hash need not be one that nobody can foresee, as it
/// must be for names.
pub(super) type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;
pub(super) type IdSet<K> = HashSet<K, BuildHasherDefault<IdHasher>>;

/// Strangers choose names, and may wish them to collide. foldhash is seeded at random in each process and each map, and
/// takes a fraction of the time of the standard library's hash; whom the guess of a seed would be worth it gains slow
/// look-ups, no more.
pub(super) type NameMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;
pub(super) type NameSet<K> = HashSet<K, foldhash::fast::RandomState>;

#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    /// One multiplication (Fibonacci hashing), and its upper half over the lower.
    fn write_u64(&mut self, id: u64) {
        let spread = (self.0 ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }
}
