//! Which hosts opportunistic TLS failed with a while ago.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::instant;
use crate::transport::Target;

/// Remembers, by host name and address, where a session came about in plain after STARTTLS had failed.
#[derive(Debug, Default)]
pub(super) struct PlainHosts {
    /// The oldest first. Few enough to be looked through once a connection.
    hosts: Mutex<VecDeque<PlainHost>>,
}

#[derive(Debug)]
struct PlainHost {
    host: Arc<str>,
    peer: SocketAddr,
    until: Instant,
}

impl PlainHost {
    fn is(&self, target: &Target) -> bool {
        self.peer == target.peer && self.host == target.host
    }
}

impl PlainHosts {
    /// How many are remembered; past it the oldest is forgotten, and TLS is tried with it again.
    pub(super) const MOST: usize = 1_024;
    /// For how long.
    pub(super) const TIME: Duration = Duration::from_secs(60 * 60);

    pub(super) fn has(&self, target: &Target) -> bool {
        let now = instant();
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        while hosts.front().is_some_and(|first| first.until <= now) {
            hosts.pop_front();
        }
        hosts.iter().any(|host| host.is(target))
    }

    /// A host that says that it wants TLS is asked for it again at once.
    pub(super) fn remove(&self, host: &str, peer: SocketAddr) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|known| (&*known.host, known.peer) != (host, peer));
    }

    pub(super) fn add(&self, target: &Target) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|host| !host.is(target));
        if hosts.len() >= Self::MOST {
            hosts.pop_front();
        }
        let until = instant() + Self::TIME;
        hosts.push_back(PlainHost { host: target.host.clone(), peer: target.peer, until });
    }
}
