//! What a world tells of itself.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::observation::{Observation, Seen};
use crate::event::DeliveryEvent;

/// What connections are counted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Key {
    /// All of the engine.
    Total,
    /// To one address.
    Address(IpAddr),
    /// To one host, by its name.
    Host(String),
    /// Wanted by one queue, of whatever source.
    Queue(String),
    /// From one source.
    Source(String),
}

/// How a recipient stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// Neither delivered nor failed yet.
    Queued,
    /// A server has taken the message.
    Delivered,
    /// It failed for good.
    Bounced,
    /// The host cancelled it.
    Cancelled,
}

impl Outcome {
    pub(super) fn of(event: &DeliveryEvent) -> Self {
        match event {
            DeliveryEvent::Delivered(_) => Self::Delivered,
            DeliveryEvent::Bounced(_) => Self::Bounced,
            DeliveryEvent::Cancelled(_) => Self::Cancelled,
            _ => Self::Queued,
        }
    }
}

/// What a server saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerReport {
    /// Connections tried.
    pub attempts: u64,
    /// Of these, sessions that came about.
    pub sessions: u64,
    /// Transactions begun.
    pub transactions: u64,
    /// Recipients offered.
    pub offered: u64,
    /// Recipients the content was taken for.
    pub taken: u64,
    /// Greetings and transactions that ended with a 4xx or 5xx reply, by its code.
    pub refusals: BTreeMap<u16, u64>,
}

impl ServerReport {
    pub(super) fn add(&mut self, other: &Self) {
        let Self { attempts, sessions, transactions, offered, taken, refusals } = other;
        self.attempts += attempts;
        self.sessions += sessions;
        self.transactions += transactions;
        self.offered += offered;
        self.taken += taken;
        for (&code, count) in refusals {
            *self.refusals.entry(code).or_default() += count;
        }
    }
}

/// The most recipients offered to `address` within any `window`.
pub(super) fn most_offered_in(
    trace: &[Observation],
    is_it: impl Fn(&SocketAddr) -> bool,
    window: Duration,
) -> u64 {
    let mut peers = HashMap::new();
    let mut recent: VecDeque<(Duration, u64)> = VecDeque::new();
    let (mut sum, mut most) = (0, 0);
    for observation in trace {
        match &observation.seen {
            Seen::Connecting { connection, peer, .. } => drop(peers.insert(*connection, *peer)),
            Seen::Offered { connection, recipients, .. } if peers.get(connection).is_some_and(&is_it) => {
                recent.push_back((observation.at, recipients.len() as u64));
                sum += recipients.len() as u64;
                while let Some(&(at, count)) = recent.front()
                    && observation.at.saturating_sub(at) >= window
                {
                    sum -= count;
                    recent.pop_front();
                }
                most = most.max(sum);
            }
            _ => {}
        }
    }
    most
}
