//! What mail waits for, told to the host. Asking changes nothing.
//!
//! A question is a person's: it goes once over all connections, and of a queue over its destinations and their lanes.
//! No event asks one; only mail that expires untried asks what holds it, which looks at its own queue alone.

mod connections;
mod question;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use question::Question;

use super::limits::{LimitKey, Local};
use super::outcome::PAUSED;
use super::queue::Queue;
use super::window::WindowItem;
use super::{DestinationKey, Scheduler};
use crate::clock::Timestamp;
use crate::message::QueueName;
use crate::storage::{ItemSummary, Room};
use crate::why::{LimitOf, MessageWaits, QueueWaits, Wait};

/// Items of a message that are told.
const MOST_ITEMS: usize = 1_000;

impl Scheduler {
    /// What each of a message's items waits for, as the store lists them.
    pub(crate) fn why(&self, now: Timestamp, items: Vec<ItemSummary>) -> MessageWaits {
        let question = Question::new(self, now);
        let more_items = items.len().saturating_sub(MOST_ITEMS) as u64;
        let items = items.into_iter().take(MOST_ITEMS).filter_map(|item| question.item(item)).collect();
        MessageWaits { items, more_items }
    }

    /// What the queues of this name wait for, one of each source.
    pub(crate) fn why_queue(&self, now: Timestamp, name: &QueueName) -> Vec<QueueWaits> {
        let question = Question::new(self, now);
        let queues = self.queues_named(name);
        let mut told: Vec<_> = queues.iter().filter_map(|&key| question.queue(key)).collect();
        told.sort_by(|a, b| a.source.cmp(&b.source));
        told
    }

    /// What of the policy or the host kept an item waiting until it expired, in words.
    pub(super) fn held_by(&self, now: Timestamp, key: DestinationKey, item: &WindowItem) -> Option<String> {
        let destination = self.destinations.get(key)?;
        let queue = self.queues.get(destination.queue)?;
        let selector =
            self.pauses.of_message(&item.item.envelope).or_else(|| self.pause_of_home(destination));
        if let Some(selector) = selector {
            return Some(Wait::Paused { selector: Some(selector) }.to_string());
        }
        if let Some(wait) = self.holds_queue(now, queue).first() {
            return Some(wait.to_string());
        }
        let places = destination.work.waits.rate.iter().chain(&destination.work.waits.connect);
        let mut limits: Vec<&str> =
            places.filter_map(|place| self.setting(self.limits.key(place.slot)?)).collect();
        limits.sort_unstable();
        limits.dedup();
        (!limits.is_empty()).then(|| format!("it waited for {}", limits.join(", ")))
    }

    /// What holds all of a queue, that which ends last first.
    fn holds_queue(&self, now: Timestamp, queue: &Queue) -> Vec<Wait> {
        let mut holds = Vec::new();
        if self.writes.is_stopped() {
            holds.push(Wait::StoreStopped);
        } else if self.store_room == Room::Exhausted {
            holds.push(Wait::StoreFull);
        }
        if let Some(selector) = self.pauses.of_queue(&queue.name, &queue.source) {
            holds.push(Wait::Paused { selector: Some(selector) });
        }
        if let Some(disabled) = queue.mode.disabled {
            holds.push(Wait::SourceDisabled { source: queue.source.clone(), until: disabled.until });
        }
        if let Some(until) = queue.mode.held_until.filter(|&until| until > now) {
            holds.push(Wait::QueueDeferred { until, step: queue.mode.held_steps });
        }
        last_first(&mut holds);
        holds
    }

    /// The setting a limit comes from at present.
    fn setting(&self, key: &LimitKey) -> Option<&'static str> {
        Some(match key {
            LimitKey::Total => "max-connections",
            LimitKey::Queue(queue) => {
                let queue = self.queues.get(*queue)?;
                let cap = queue.mode.connection_cap.map(|(cap, _)| cap as usize);
                let is_capped = cap == Some(queue.connection_limit());
                match (is_capped, queue.in_backoff()) {
                    (true, _) => "limit-connections",
                    (false, true) => "backoff-max-smtp-out",
                    (false, false) => "max-smtp-out",
                }
            }
            LimitKey::SourceIp(..) => "source-ip-max-smtp-out",
            LimitKey::Mx(..) => "mx-connection-limit",
            LimitKey::Ip(..) => "ip-connection-limit",
            LimitKey::MessageRate(queue, source) => {
                let in_backoff = self.queues.find_ref((queue, source))?.in_backoff();
                if in_backoff { "backoff-max-msg-rate" } else { "max-msg-rate" }
            }
            LimitKey::CapRate(..) => "limit-rate",
            LimitKey::ConnectRate(..) => "max-connect-rate",
            LimitKey::SourceIpMessageRate(..) => "source-ip-max-msg-rate",
            LimitKey::SourceIpConnectRate(..) => "source-ip-max-connect-rate",
        })
    }

    fn limit_of(&self, key: &LimitKey) -> Option<LimitOf> {
        Some(match key {
            LimitKey::Total => LimitOf::Engine,
            LimitKey::Queue(queue) => {
                let queue = self.queues.get(*queue)?;
                LimitOf::Queue { queue: queue.name.clone(), source: queue.source.clone() }
            }
            LimitKey::MessageRate(queue, source)
            | LimitKey::CapRate(queue, source)
            | LimitKey::ConnectRate(queue, source) => {
                LimitOf::Queue { queue: queue.clone(), source: source.clone() }
            }
            LimitKey::SourceIp(queue, local)
            | LimitKey::SourceIpMessageRate(queue, local)
            | LimitKey::SourceIpConnectRate(queue, local) => {
                LimitOf::QueueFrom { queue: queue.clone(), from: address(*local) }
            }
            LimitKey::Mx(_, host) => LimitOf::Host { host: host.clone() },
            LimitKey::Ip(cidr, one, local) => {
                let from = local.map(address);
                match one {
                    Some(address) => LimitOf::Address { address: *address, from },
                    None => LimitOf::Range { cidr: *cidr, from },
                }
            }
        })
    }
}

/// The system's choice is told as an unspecified address.
fn address(local: Local) -> IpAddr {
    match local {
        Local::Address(address) => address,
        Local::System { ipv6: false } => Ipv4Addr::UNSPECIFIED.into(),
        Local::System { ipv6: true } => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// What nobody knows the end of comes first.
fn last_first(waits: &mut [Wait]) {
    waits.sort_by_key(|wait| std::cmp::Reverse(wait.until().unwrap_or(PAUSED)));
}
