//! Which addresses did not answer of late, or broke what they were sent. Orders what is tried; never a reason to wait.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::ids::NameMap;
use crate::clock::Timestamp;

/// How long an address that failed is tried last. After it, it is tried in its order again, which probes it.
const DEAD_FOR: Duration = Duration::from_secs(300);
/// The longest that one is tried last which breaks each transaction: its sessions open, so only time can clear it.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Past it those are forgotten that would be the first to be.
const MOST: usize = 65_536;

type Key = (Arc<str>, SocketAddr);

#[derive(Default)]
pub(super) struct Health {
    marks: NameMap<Key, Mark>,
    /// When each mark is forgotten.
    ends: BTreeSet<(Timestamp, Key)>,
}

#[derive(Clone, Copy, Default)]
struct Mark {
    dead_until: Timestamp,
    forgotten_at: Timestamp,
    /// Transactions that it broke one after the other, each the first of its session.
    broken: u32,
}

impl Health {
    /// It could not be reached, or opened no session.
    pub(super) fn failed(&mut self, now: Timestamp, source: &Arc<str>, peer: SocketAddr) {
        let broken = self.mark(source, peer).broken;
        self.set(now, source, peer, broken, DEAD_FOR);
    }

    /// It opened a session and ended it in the first transaction, without a word. One that does so again and again is tried last for
    /// twice as long each time: so what it breaks comes to the other hosts in one of its next attempts.
    pub(super) fn broke(&mut self, now: Timestamp, source: &Arc<str>, peer: SocketAddr) {
        let broken = self.mark(source, peer).broken.saturating_add(1);
        let factor = 1_u32.checked_shl(broken - 1).unwrap_or(u32::MAX);
        self.set(now, source, peer, broken, DEAD_FOR.saturating_mul(factor).min(LONGEST));
    }

    /// Some did not answer, or broke what they were sent.
    pub(super) fn has_marks(&self) -> bool {
        !self.marks.is_empty()
    }

    /// It has opened a session.
    pub(super) fn worked(&mut self, source: &Arc<str>, peer: SocketAddr) {
        if self.has_marks() && self.mark(source, peer).broken == 0 {
            self.forget(source, peer);
        }
    }

    /// A transaction came to its end in order, whatever was said.
    pub(super) fn completed(&mut self, source: &Arc<str>, peer: SocketAddr) {
        if self.has_marks() {
            self.forget(source, peer);
        }
    }

    pub(super) fn is_dead(&self, now: Timestamp, source: &Arc<str>, peer: SocketAddr) -> bool {
        self.has_marks() && self.mark(source, peer).dead_until > now
    }

    fn mark(&self, source: &Arc<str>, peer: SocketAddr) -> Mark {
        self.marks.get(&(source.clone(), peer)).copied().unwrap_or_default()
    }

    fn set(&mut self, now: Timestamp, source: &Arc<str>, peer: SocketAddr, broken: u32, dead_for: Duration) {
        self.forget(source, peer);
        while let Some((end, _)) = self.ends.first()
            && (*end <= now || self.ends.len() >= MOST)
            && let Some((_, key)) = self.ends.pop_first()
        {
            self.marks.remove(&key);
        }
        let key = (source.clone(), peer);
        let dead_until = now + dead_for;
        // One that breaks transactions is remembered until it had the time to break the next.
        let forgotten_at = if broken > 0 { dead_until + LONGEST } else { dead_until };
        self.ends.insert((forgotten_at, key.clone()));
        self.marks.insert(key, Mark { dead_until, forgotten_at, broken });
    }

    fn forget(&mut self, source: &Arc<str>, peer: SocketAddr) {
        let key = (source.clone(), peer);
        if let Some(mark) = self.marks.remove(&key) {
            self.ends.remove(&(mark.forgotten_at, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_dead_for_a_while_per_source() {
        let now = Timestamp::from_unix_seconds(0);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let peer = "192.0.2.1:25".parse().unwrap();
        let mut health = Health::default();
        health.failed(now, &a, peer);
        assert!(health.is_dead(now, &a, peer));
        assert!(!health.is_dead(now, &b, peer));
        assert!(!health.is_dead(now + DEAD_FOR, &a, peer));
        health.worked(&a, peer);
        assert!(!health.is_dead(now, &a, peer));
    }

    #[test]
    fn one_that_breaks_what_it_is_sent_is_last_for_longer_each_time() {
        let source: Arc<str> = "a".into();
        let peer = "192.0.2.1:25".parse().unwrap();
        let mut now = Timestamp::from_unix_seconds(0);
        let mut health = Health::default();
        for factor in [1, 2, 4, 8, 16, 32, 64, 128, 256, 288, 288] {
            health.broke(now, &source, peer);
            // That it opens sessions says nothing.
            health.worked(&source, peer);
            assert!(health.is_dead(now + DEAD_FOR * (factor - 1), &source, peer));
            now = now + DEAD_FOR * factor;
            assert!(!health.is_dead(now, &source, peer));
            // Nor does it matter that it could not be reached meanwhile.
            health.failed(now, &source, peer);
        }
        health.completed(&source, peer);
        assert!(!health.is_dead(now, &source, peer) && health.ends.is_empty());
        health.broke(now, &source, peer);
        assert!(!health.is_dead(now + DEAD_FOR, &source, peer), "from the start again");
        health.failed(now + DEAD_FOR + LONGEST, &source, ([192, 0, 2, 2], 25).into());
        assert_eq!((health.marks.len(), health.ends.len()), (1, 1), "it is forgotten in the end");
    }

    #[test]
    fn it_remembers_only_so_many() {
        let now = Timestamp::from_unix_seconds(0);
        let source: Arc<str> = "a".into();
        let mut health = Health::default();
        for port in 0..=u16::MAX {
            health.failed(now, &source, ([192, 0, 2, 1], port).into());
            health.failed(now, &source, ([192, 0, 2, 2], port).into());
        }
        assert!(health.marks.len() <= MOST && health.ends.len() <= MOST);
        assert!(health.is_dead(now, &source, ([192, 0, 2, 2], u16::MAX).into()));
    }
}
