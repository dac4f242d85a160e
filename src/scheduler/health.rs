//! Which addresses did not answer of late. Orders what is tried; never a reason to wait.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::ids::NameMap;
use crate::clock::Timestamp;

/// How long an address that failed is tried last. After it, it is tried in its order again, which probes it.
const DEAD_FOR: Duration = Duration::from_secs(300);
/// Past it the oldest entries are forgotten.
const MOST: usize = 65_536;

#[derive(Default)]
pub(super) struct Health {
    dead: NameMap<(Arc<str>, SocketAddr), Timestamp>,
    order: VecDeque<(Timestamp, (Arc<str>, SocketAddr))>,
}

impl Health {
    pub(super) fn failed(&mut self, now: Timestamp, source: &Arc<str>, peer: SocketAddr) {
        while let Some((until, _)) = self.order.front()
            && (*until <= now || self.order.len() >= MOST)
            && let Some((until, key)) = self.order.pop_front()
        {
            if self.dead.get(&key) == Some(&until) {
                self.dead.remove(&key);
            }
        }
        let key = (source.clone(), peer);
        let until = now + DEAD_FOR;
        self.order.push_back((until, key.clone()));
        self.dead.insert(key, until);
    }

    pub(super) fn worked(&mut self, source: &Arc<str>, peer: SocketAddr) {
        if !self.dead.is_empty() {
            self.dead.remove(&(source.clone(), peer));
        }
    }

    pub(super) fn is_dead(&self, now: Timestamp, source: &Arc<str>, peer: SocketAddr) -> bool {
        !self.dead.is_empty() && self.dead.get(&(source.clone(), peer)).is_some_and(|&until| until > now)
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
    fn it_remembers_only_so_many() {
        let now = Timestamp::from_unix_seconds(0);
        let source: Arc<str> = "a".into();
        let mut health = Health::default();
        for port in 0..=u16::MAX {
            health.failed(now, &source, ([192, 0, 2, 1], port).into());
            health.failed(now, &source, ([192, 0, 2, 2], port).into());
        }
        assert!(health.dead.len() <= MOST && health.order.len() <= MOST);
        assert!(health.is_dead(now, &source, ([192, 0, 2, 2], u16::MAX).into()));
    }
}
