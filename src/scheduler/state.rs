//! Durable scheduler state: one row for each destination, queue and slow rate that is not at rest.

mod kind;
#[cfg(feature = "testing")]
mod stored;

use serde::{Deserialize, Serialize};

use self::kind::{Kind, Row};
use super::destination::RetryClock;
use super::fault::Fault;
use super::limits::{LimitKey, Local};
use super::no_mx::Missing;
use super::placement::Site;
use super::queue::Mode;
use super::rare::AtRest;
use super::{DestinationKey, Scheduler, TimerOwner};
use crate::clock::Timestamp;
use crate::control::Selector;
use crate::event::{Diagnosis, StorageOperation};
use crate::message::{Domain, QueueName};
use crate::policy::Rate;
use crate::storage::{Change, StateRow};

#[cfg(feature = "testing")]
pub(crate) use stored::{Stored, StoredMode, StoredPace, StoredPaceKind, StoredStep};

/// How long a destination of many domains keeps its clock after it ran out, until one of its domains is looked up.
const KEPT_FOR_DOMAINS: std::time::Duration = std::time::Duration::from_secs(600);

#[derive(Serialize, Deserialize)]
struct DestinationRow {
    queue: String,
    source: String,
    domain: Domain,
    site: SiteRow,
    step: u32,
    until: Option<Timestamp>,
    last: Option<Diagnosis>,
    missing: Option<Missing>,
    /// Its hosts under an MTA-STS policy, as [`Destination::enforced`](super::destination::Destination) has them.
    enforced: Option<String>,
}

#[derive(Serialize, Deserialize)]
enum SiteRow {
    Domain,
    Fixed,
    Hosts(String),
}

#[derive(Serialize, Deserialize)]
struct QueueRow {
    queue: String,
    source: String,
    mode: Mode,
}

#[derive(Serialize, Deserialize)]
struct PaceRow {
    kind: PaceKind,
    queue: String,
    of: PaceOf,
    rate: Rate,
    rests_at: Timestamp,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum PaceKind {
    Messages,
    Capped,
    Connections,
    SourceIpMessages,
    SourceIpConnections,
}

#[derive(Serialize, Deserialize)]
enum PaceOf {
    Source(String),
    Local(Local),
}

impl Scheduler {
    /// Start-up: what was not at rest goes on where it stood.
    pub(super) fn on_state(&mut self, now: Timestamp, rows: &[StateRow]) {
        for row in rows {
            match Row::read(row) {
                Ok(Row::Destination(state)) => self.restore_destination(now, state),
                Ok(Row::Queue(state)) => self.restore_queue(now, state),
                Ok(Row::Pace(state)) => self.restore_pace(now, state),
                Ok(Row::Pause(selector)) => {
                    self.pauses.insert(selector);
                }
                Err(problem) => {
                    tracing::warn!(key = %row.key.escape_ascii(), %problem, "a state row was dropped");
                    self.tell_trouble(now, StorageOperation::Read, problem.to_string());
                    self.writes.change(Change::DeleteState(row.key.clone()));
                }
            }
        }
    }

    fn restore_destination(&mut self, now: Timestamp, state: DestinationRow) {
        let queue = self.queue_for(state.queue.as_str().into(), &state.source.as_str().into());
        let site = match state.site {
            SiteRow::Domain => Site::Domain(state.domain.clone()),
            SiteRow::Fixed => Site::Fixed,
            SiteRow::Hosts(hosts) => Site::Hosts(hosts.into()),
        };
        let is_shared = site.is_shared();
        let key = self.destination_for(site, &state.domain, queue);
        if let Some(destination) = self.destinations.get_mut(key) {
            destination.retry =
                RetryClock { step: state.step, until: state.until, last: state.last.map(Box::new) };
            destination.missing = state.missing.map(Box::new);
            destination.enforced = state.enforced.map(String::into_boxed_str);
            if Fault::RetryResetAtRestart.is_there() {
                destination.retry = RetryClock::default();
            }
            destination.stored_state = true;
            // Not before the heads of its lanes have come: without mail it would be forgotten.
            let at = state.until.unwrap_or(now).max(now);
            let at = if is_shared { at + KEPT_FOR_DOMAINS } else { at };
            destination.kept_until = is_shared.then_some(at);
            self.timers.arm(&mut destination.timer, Some(at), TimerOwner::Destination(key));
        }
    }

    fn restore_queue(&mut self, now: Timestamp, state: QueueRow) {
        let key = self.queue_for(state.queue.as_str().into(), &state.source.as_str().into());
        if let Some(queue) = self.queues.get_mut(key) {
            self.disabled_queues += usize::from(state.mode.disabled.is_some());
            *queue.mode = state.mode;
            queue.stored_state = true;
        }
        self.mode_changed(now, key);
        if let Some(queue) = self.queues.get_mut(key)
            && queue.timer.is_none()
        {
            // Nothing of it ends by itself; without mail it may be done with.
            self.timers.arm(&mut queue.timer, Some(now + KEPT_FOR_DOMAINS), TimerOwner::Queue(key));
        }
    }

    fn restore_pace(&mut self, now: Timestamp, state: PaceRow) {
        let queue: QueueName = state.queue.into();
        let key = match (state.kind, state.of) {
            (PaceKind::Messages, PaceOf::Source(source)) => LimitKey::MessageRate(queue, source.into()),
            (PaceKind::Capped, PaceOf::Source(source)) => LimitKey::CapRate(queue, source.into()),
            (PaceKind::Connections, PaceOf::Source(source)) => LimitKey::ConnectRate(queue, source.into()),
            (PaceKind::SourceIpMessages, PaceOf::Local(local)) => LimitKey::SourceIpMessageRate(queue, local),
            (PaceKind::SourceIpConnections, PaceOf::Local(local)) => {
                LimitKey::SourceIpConnectRate(queue, local)
            }
            _ => return,
        };
        self.limits.resume(now, key, state.rate, state.rests_at, &mut self.timers);
    }

    pub(super) fn store_pause(&mut self, selector: &Selector) {
        self.put_row(pause_key(selector), selector);
    }

    pub(super) fn forget_pause(&mut self, selector: &Selector) {
        self.writes.change(Change::DeleteState(pause_key(selector)));
    }

    /// Writes a destination's retry clock, and what DNS does not have of its domain.
    pub(super) fn store_state(&mut self, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let Some(queue) = self.queues.get(destination.queue) else { return };
        let row = DestinationRow {
            queue: queue.name.to_string(),
            source: queue.source.to_string(),
            domain: destination.domain.clone(),
            site: match &destination.site {
                Site::Domain(_) => SiteRow::Domain,
                Site::Fixed => SiteRow::Fixed,
                Site::Hosts(hosts) => SiteRow::Hosts(hosts.to_string()),
            },
            step: destination.retry.step,
            until: destination.retry.until,
            last: destination.retry.last.as_deref().cloned(),
            missing: destination.missing.as_deref().cloned(),
            enforced: destination.enforced.as_deref().map(str::to_owned),
        };
        destination.stored_state = true;
        let key = destination_key(&queue.name, &queue.source, &destination.site);
        self.put_row(key, &row);
    }

    /// Removes the row, if there is one; writes it anew if something of it still counts.
    pub(super) fn forget_state(&mut self, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        if destination.missing.is_some() {
            self.store_state(key);
            return;
        }
        self.drop_state(key);
    }

    /// Writes a row anew that says something else now.
    pub(super) fn store_state_if_stored(&mut self, key: DestinationKey) {
        if self.destinations.get(key).is_some_and(|destination| destination.stored_state) {
            self.store_state(key);
        }
    }

    pub(super) fn drop_state(&mut self, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        if !std::mem::take(&mut destination.stored_state) {
            return;
        }
        let Some(queue) = self.queues.get(destination.queue) else { return };
        let key = destination_key(&queue.name, &queue.source, &destination.site);
        self.writes.change(Change::DeleteState(key));
    }

    /// Writes what changed of queues and slow rates since the last commit.
    pub(super) fn write_state(&mut self) {
        for place in 0..self.changed_queues.len() {
            let Some(&key) = self.changed_queues.get(place) else { break };
            let Some(queue) = self.queues.get_mut(key) else { continue };
            if !std::mem::take(&mut queue.unsaved) {
                continue;
            }
            let row_key = named::<QueueRow>(&[queue.name.as_bytes(), queue.source.as_bytes()]);
            if !queue.mode.is_at_rest() {
                queue.stored_state = true;
                let row = QueueRow {
                    queue: queue.name.to_string(),
                    source: queue.source.to_string(),
                    mode: Mode::clone(&queue.mode),
                };
                self.put_row(row_key, &row);
            } else if std::mem::take(&mut queue.stored_state) {
                self.writes.change(Change::DeleteState(row_key));
            }
        }
        if !self.limits.has_to_keep() {
            return;
        }
        for (key, kept) in self.limits.take_changes() {
            let (kind, queue, of) = match key {
                LimitKey::MessageRate(queue, source) => {
                    (PaceKind::Messages, queue, PaceOf::Source(source.to_string()))
                }
                LimitKey::CapRate(queue, source) => {
                    (PaceKind::Capped, queue, PaceOf::Source(source.to_string()))
                }
                LimitKey::ConnectRate(queue, source) => {
                    (PaceKind::Connections, queue, PaceOf::Source(source.to_string()))
                }
                LimitKey::SourceIpMessageRate(queue, local) => {
                    (PaceKind::SourceIpMessages, queue, PaceOf::Local(local))
                }
                LimitKey::SourceIpConnectRate(queue, local) => {
                    (PaceKind::SourceIpConnections, queue, PaceOf::Local(local))
                }
                _ => continue,
            };
            let of_key = match &of {
                PaceOf::Source(source) => source.clone(),
                PaceOf::Local(Local::Address(address)) => address.to_string(),
                PaceOf::Local(Local::System { ipv6 }) => if *ipv6 { "v6" } else { "v4" }.to_owned(),
            };
            let row_key = named::<PaceRow>(&[&[kind as u8], queue.as_bytes(), of_key.as_bytes()]);
            match kept {
                Some((rate, rests_at)) => {
                    let row = PaceRow { kind, queue: queue.to_string(), of, rate, rests_at };
                    self.put_row(row_key, &row);
                }
                None => self.writes.change(Change::DeleteState(row_key)),
            }
        }
    }

    fn put_row<K: Kind>(&mut self, key: Vec<u8>, row: &K) {
        if let Ok(value) = postcard::to_extend(row, vec![K::VERSION]) {
            self.writes.change(Change::PutState(StateRow { key, value }));
        }
    }
}

fn named<K: Kind>(parts: &[&[u8]]) -> Vec<u8> {
    let mut key = K::NAME.to_vec();
    for part in parts {
        key.push(0);
        key.extend_from_slice(part);
    }
    key
}

fn pause_key(selector: &Selector) -> Vec<u8> {
    let (kind, name): (&[u8], String) = match selector {
        Selector::Message(id) => (b"message", id.to_string()),
        Selector::Queue(queue) => (b"queue", queue.to_string()),
        Selector::Domain(domain) => (b"domain", domain.to_string()),
        Selector::Source(source) => (b"source", source.to_string()),
        // Both may be long, and hold any octet.
        Selector::Tag { name, value } => (b"tag", format!("{}={name}={value}", name.len())),
    };
    named::<Selector>(&[kind, &hash(&name)])
}

/// At most 512 octets: a queue's name has 255 at most, a source's 64. Hosts, of which there may be many, are hashed.
fn destination_key(queue: &str, source: &str, site: &Site) -> Vec<u8> {
    let site = match site {
        // In its own queue the domain is named by the queue.
        Site::Domain(domain) if domain.as_str() == queue => Vec::new(),
        Site::Domain(domain) => hash(domain.as_str()).to_vec(),
        Site::Fixed => b"fixed".to_vec(),
        Site::Hosts(hosts) => hash(hosts).to_vec(),
    };
    named::<DestinationRow>(&[queue.as_bytes(), source.as_bytes(), &site])
}

/// 128 bits of FNV-1a: no stranger gains by a collision, which would only mix up two retry clocks of one queue.
fn hash(text: &str) -> [u8; 16] {
    let hash = text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    hash.to_be_bytes()
}
