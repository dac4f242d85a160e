//! What sessions have found out about hosts, for the next ones.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::instant;

/// What a transport remembers of hosts.
#[derive(Debug)]
pub(super) struct Memory {
    /// A session came about in plain after STARTTLS had failed.
    pub(super) in_plain: Hosts,
    /// BDAT was refused as a command, though CHUNKING is offered.
    pub(super) without_bdat: Hosts,
}

impl Memory {
    /// A handshake may come about the next time.
    pub(super) const IN_PLAIN_FOR: Duration = Duration::from_secs(60 * 60);
    /// Longer than mail is kept as a rule: mail that waits longer than this for its next attempt would meet the same again.
    pub(super) const WITHOUT_BDAT_FOR: Duration = Duration::from_secs(7 * 86_400);
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            in_plain: Hosts::for_a(Self::IN_PLAIN_FOR),
            without_bdat: Hosts::for_a(Self::WITHOUT_BDAT_FOR),
        }
    }
}

/// Hosts, by name and address, of which something was found out a while ago.
#[derive(Debug)]
pub(super) struct Hosts {
    /// For how long each is remembered.
    time: Duration,
    /// The oldest first. Few enough to be looked through once a connection, or once a transaction.
    hosts: Mutex<VecDeque<KnownHost>>,
}

#[derive(Debug)]
struct KnownHost {
    host: Arc<str>,
    peer: SocketAddr,
    until: Instant,
}

impl KnownHost {
    fn is(&self, host: &str, peer: SocketAddr) -> bool {
        self.peer == peer && *self.host == *host
    }
}

impl Hosts {
    /// How many are remembered; past it the oldest is forgotten.
    pub(super) const MOST: usize = 1_024;

    pub(super) fn for_a(time: Duration) -> Self {
        Self { time, hosts: Mutex::default() }
    }

    pub(super) fn has(&self, host: &str, peer: SocketAddr) -> bool {
        let now = instant();
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        while hosts.front().is_some_and(|first| first.until <= now) {
            hosts.pop_front();
        }
        hosts.iter().any(|known| known.is(host, peer))
    }

    pub(super) fn remove(&self, host: &str, peer: SocketAddr) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|known| !known.is(host, peer));
    }

    pub(super) fn add(&self, host: &Arc<str>, peer: SocketAddr) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|known| !known.is(host, peer));
        if hosts.len() >= Self::MOST {
            hosts.pop_front();
        }
        hosts.push_back(KnownHost { host: host.clone(), peer, until: instant() + self.time });
    }
}
