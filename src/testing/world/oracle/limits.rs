//! Limits on connections are never exceeded.
//!
//! Counted again from what the network saw, by the policy alone. A limit that was lowered closes nothing: only a
//! connection that is opened, or put to work, may exceed one. A temporary cap of a reply rule counts once it is in the
//! store.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::super::observation::{Observation, Seen};
use super::facts::Open;
use super::{Facts, Invariant, Judgement};
use crate::clock::Timestamp;
use crate::message::QueueName;
use crate::policy::{Cidr, NamePattern};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Total,
    Queue(QueueName, Arc<str>),
    SourceIp(QueueName, Option<IpAddr>),
    Host(NamePattern, Arc<str>),
    Address(Cidr, Option<IpAddr>, Option<Option<IpAddr>>),
}

/// How many connections there are for each key.
#[derive(Default)]
pub(super) struct Limits {
    counts: HashMap<Key, u32>,
    held: HashMap<u64, Vec<Key>>,
    epoch: u64,
}

impl Invariant for Limits {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        if self.epoch != facts.epoch {
            self.count_anew(facts);
        }
        match &observation.seen {
            Seen::Connecting { connection, .. } => match Open::opening(&observation.seen) {
                Some(open) => self.hold_and_judge(*connection, &open, facts, observation.time),
                None => Ok(()),
            },
            Seen::Offered { connection, queue, host, .. } => {
                let Some(mut open) = facts.open.get(connection).cloned() else { return Ok(()) };
                open.put_to_work(queue, host);
                self.hold_and_judge(*connection, &open, facts, observation.time)
            }
            Seen::Connected { connection } | Seen::Answered { connection, .. } => {
                if let Some(open) = facts.open.get(connection) {
                    self.hold(*connection, &Open { at_work: false, ..open.clone() }, facts);
                }
                Ok(())
            }
            Seen::Closed { connection } => {
                drop(self.release(*connection));
                Ok(())
            }
            Seen::Started => {
                self.counts.clear();
                self.held.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Limits {
    fn count_anew(&mut self, facts: &Facts) {
        self.epoch = facts.epoch;
        self.counts.clear();
        self.held.clear();
        for (&connection, open) in &facts.open {
            self.hold(connection, open, facts);
        }
    }

    /// Returns what it was held for before.
    fn hold(&mut self, connection: u64, open: &Open, facts: &Facts) -> Vec<Key> {
        let before = self.release(connection);
        let keys = keys(open, facts);
        for key in &keys {
            *self.counts.entry(key.clone()).or_default() += 1;
        }
        self.held.insert(connection, keys);
        before
    }

    fn release(&mut self, connection: u64) -> Vec<Key> {
        let held = self.held.remove(&connection).unwrap_or_default();
        for key in &held {
            if let Some(count) = self.counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(key);
                }
            }
        }
        held
    }

    /// Judges what the connection is held for now and was not before.
    fn hold_and_judge(&mut self, connection: u64, open: &Open, facts: &Facts, now: Timestamp) -> Judgement {
        let before = self.hold(connection, open, facts);
        let settings = facts.settings(&open.queue, &open.source);
        let policy = &facts.policy;
        for key in self.held.get(&connection).into_iter().flatten().filter(|key| !before.contains(key)) {
            let limit = match key {
                Key::Total => Some(policy.max_connections()),
                Key::Queue(queue, source) if facts.in_backoff(queue, source, now) => {
                    settings.backoff_max_smtp_out
                }
                Key::Queue(..) => settings.max_smtp_out,
                Key::SourceIp(..) => settings.source_ip_max_smtp_out,
                Key::Host(_, host) => policy.mx_connection_limit(host).map(|limit| limit.limit),
                Key::Address(..) => {
                    policy.ip_connection_limit(open.peer.ip().to_canonical()).map(|limit| limit.limit)
                }
            };
            let cap = match key {
                Key::Queue(queue, source) => {
                    facts.modes.connection_cap(&(queue.clone(), source.clone()), now, policy)
                }
                _ => None,
            };
            let limit = [limit, cap].into_iter().flatten().min();
            let count = self.counts.get(key).copied().unwrap_or(0);
            if let Some(limit) = limit.filter(|limit| count > *limit) {
                return Err(format!("{count} connections for {key:?}: the limit is {limit}").into());
            }
        }
        Ok(())
    }
}

/// What a connection counts for.
fn keys(open: &Open, facts: &Facts) -> Vec<Key> {
    let mut keys = vec![Key::Total];
    let address = open.peer.ip().to_canonical();
    if let Some(limit) = facts.policy.ip_connection_limit(address) {
        let one = (!limit.shared).then_some(address);
        keys.push(Key::Address(limit.cidr, one, limit.per_source.then_some(open.local)));
    }
    if open.at_work {
        keys.push(Key::Queue(open.queue.clone(), open.source.clone()));
        if facts.settings(&open.queue, &open.source).source_ip_max_smtp_out.is_some() {
            keys.push(Key::SourceIp(open.queue.clone(), open.local));
        }
        if let Some(limit) = facts.policy.mx_connection_limit(&open.host) {
            keys.push(Key::Host(limit.mx.clone(), open.host.clone()));
        }
    }
    keys
}
