//! Rates are never exceeded: in any time no more than the rate allows, and one burst.
//!
//! What there was room for may be offered later, for as long as a call of the store was made to take. A start begins all rates anew but those that the store remembers: those whose period is an hour or more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::super::observation::{Observation, Seen};
use super::{Facts, Invariant, Judgement};
use crate::event::DeliveryEvent;
use crate::message::QueueName;
use crate::policy::Rate;
use crate::scheduler::StoredPaceKind;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Messages(QueueName, Arc<str>),
    MessagesFrom(QueueName, Option<IpAddr>),
    Connections(QueueName, Arc<str>),
    ConnectionsFrom(QueueName, Option<IpAddr>),
    /// A temporary cap, and how many there were before it.
    Capped(QueueName, Arc<str>, u64),
}

/// When what was used of each rate is paid off.
#[derive(Default)]
pub(super) struct Rates {
    used: HashMap<Key, (Rate, Duration)>,
    epoch: u64,
}

/// The engine plans in microseconds.
const ROUNDING: Duration = Duration::from_micros(2);

impl Invariant for Rates {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        if self.epoch != facts.epoch {
            self.epoch = facts.epoch;
            self.used.clear();
        }
        if observation.seen == Seen::Started {
            self.epoch = facts.epoch + 1;
            self.used.clear();
            self.resume(facts, observation);
            return Ok(());
        }
        if let Seen::Event(event) = &observation.seen
            && let DeliveryEvent::QueueMode(change) = &**event
        {
            // Into backoff or out of it, at another rate.
            self.used.remove(&Key::Messages(change.queue.clone(), change.source.clone()));
        }
        if facts.is_unclear(observation.at) {
            return Ok(());
        }
        match &observation.seen {
            Seen::Connecting { local, queue, source, .. } => {
                let settings = facts.settings(queue, source);
                let key = Key::Connections(queue.clone(), source.clone());
                self.take(facts, observation.at, key, settings.max_connect_rate, 1)?;
                let key = Key::ConnectionsFrom(queue.clone(), *local);
                self.take(facts, observation.at, key, settings.source_ip_max_connect_rate, 1)
            }
            Seen::Offered { connection, queue, recipients, .. } => {
                let Some(open) = facts.open.get(connection) else { return Ok(()) };
                let settings = facts.settings(queue, &open.source);
                let backoff = facts.in_backoff(queue, &open.source, observation.time);
                let rate = if backoff { settings.backoff_max_msg_rate } else { settings.max_msg_rate };
                let units = u32::try_from(recipients.len()).unwrap_or(u32::MAX);
                let key = Key::Messages(queue.clone(), open.source.clone());
                self.take(facts, observation.at, key, rate, units)?;
                let id = (queue.clone(), open.source.clone());
                if let Some((cap, which)) = facts.modes.rate_cap(&id, observation.time, &facts.policy) {
                    let key = Key::Capped(id.0, id.1, which);
                    self.take(facts, observation.at, key, Some(cap), units)?;
                }
                let key = Key::MessagesFrom(queue.clone(), open.local);
                self.take(facts, observation.at, key, settings.source_ip_max_msg_rate, units)
            }
            _ => Ok(()),
        }
    }
}

impl Rates {
    /// What the store remembers of slow rates holds for a new engine.
    fn resume(&mut self, facts: &Facts, observation: &Observation) {
        for pace in facts.modes.durable_paces() {
            let queue = pace.queue.clone();
            let key = match &pace.kind {
                StoredPaceKind::Messages(source) => Key::Messages(queue, source.clone()),
                StoredPaceKind::Connections(source) => Key::Connections(queue, source.clone()),
                StoredPaceKind::SourceIpMessages(ip) => Key::MessagesFrom(queue, Some(*ip)),
                StoredPaceKind::SourceIpConnections(ip) => Key::ConnectionsFrom(queue, Some(*ip)),
                StoredPaceKind::Capped(source) => {
                    // It is counted as another one once it is read.
                    let which = facts.modes.times_capped(&(queue.clone(), source.clone())) + 1;
                    Key::Capped(queue, source.clone(), which)
                }
            };
            let rests_in = pace.rests_at.saturating_since(observation.time);
            self.used.insert(key, (pace.rate, observation.at + rests_in));
        }
    }

    fn take(&mut self, facts: &Facts, now: Duration, key: Key, rate: Option<Rate>, units: u32) -> Judgement {
        let Some(rate) = rate else {
            self.used.remove(&key);
            return Ok(());
        };
        let interval = rate.period() / rate.count().max(1);
        // One second's worth, at least one.
        let burst = (rate.count() as f64 / rate.period().as_secs_f64()).max(1.0);
        let burst = interval.mul_f64(burst) + ROUNDING * units + facts.slowest_call;
        let (_, paid_off) =
            self.used.get(&key).filter(|(of, _)| *of == rate).copied().unwrap_or((rate, Duration::ZERO));
        let paid_off = paid_off.max(now) + interval * units;
        self.used.insert(key.clone(), (rate, paid_off));
        if paid_off > now + burst {
            let early = paid_off - now - burst;
            return Err(format!("{units} more for {key:?} come {early:?} too early for {rate}").into());
        }
        Ok(())
    }
}
