//! No queue waits without an end for what it could have.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::observation::{Observation, Seen, record};
use super::facts::{QueueId, is_about_accepted_mail};
use super::{Facts, Invariant, Judgement, Snapshot, Wrong};
use crate::event::DeliveryEvent;
use crate::message::{MessageId, QueueName};
use crate::policy::{QueueSettings, Rate};

/// How long a queue with due mail may do nothing, beside its own intervals and rates.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);

/// How long one that was found so may do nothing more.
const MORE_PATIENCE: Duration = Duration::from_secs(3600);

/// When each queue did something last.
#[derive(Default)]
pub(super) struct Starved {
    active: HashMap<QueueId, Duration>,
    /// Messages that seem forgotten, and since when.
    suspects: HashMap<MessageId, Duration>,
    /// Something that stops all: a start, trouble with the store or this machine, a word of the host.
    all: Duration,
    stopped: bool,
}

impl Invariant for Starved {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        let at = observation.at;
        match &observation.seen {
            Seen::Connecting { queue, source, .. } => self.active(at, queue, source),
            Seen::Offered { connection, queue, .. } => {
                if let Some(open) = facts.open.get(connection) {
                    self.active(at, queue, &open.source);
                }
            }
            Seen::Started => (self.all, self.stopped) = (at, false),
            Seen::PolicyReplaced | Seen::ClockStepped { .. } | Seen::Control(_) => self.all = at,
            Seen::Event(event) => match &**event {
                DeliveryEvent::QueueDeferred(event) => self.active(at, &event.queue, &event.source),
                DeliveryEvent::QueueMode(event) => self.active(at, &event.queue, &event.source),
                DeliveryEvent::LocalTrouble(_) => self.all = at,
                DeliveryEvent::StorageTrouble(trouble) if is_about_accepted_mail(trouble) => {
                    self.all = at;
                    self.stopped |= trouble.stopped;
                }
                event => {
                    if let Some(record) = record(event) {
                        self.active(at, &record.queue, &record.source);
                    }
                }
            },
            _ => {}
        }
        Ok(())
    }

    fn check(&mut self, facts: &Facts, snapshot: &Snapshot) -> Judgement {
        if self.stopped {
            return Ok(());
        }
        let before = std::mem::take(&mut self.suspects);
        for item in &snapshot.items {
            let waited = snapshot.time.saturating_since(item.due);
            // An engine that has ended knows of none.
            let lane = snapshot.gauges.as_ref().and_then(|gauges| gauges.lanes.get(&item.lane));
            let (key, last) = match lane {
                Some(lane) if lane.is_held => continue,
                Some(lane) => {
                    let key = (lane.queue.clone(), lane.source.clone());
                    let last = self.active.get(&key).copied().unwrap_or_default();
                    (key, last.max(self.all))
                }
                // Nothing else happens to what the engine does not know of.
                None => ((item.lane.domain.as_str().into(), item.lane.source.clone()), self.all),
            };
            let idle = snapshot.at.saturating_sub(last);
            let patience = patience(&facts.settings(&key.0, &key.1)) + facts.slowest_call;
            if waited <= patience || idle <= patience {
                continue;
            }
            // It may have come to this queue just now: it has some time more.
            let since = before.get(&item.envelope.id).copied().unwrap_or(snapshot.at);
            self.suspects.insert(item.envelope.id, since);
            if snapshot.at.saturating_sub(since) > MORE_PATIENCE {
                let (message, queue) = (item.envelope.id, &key.0);
                let what = format!("{message} of {queue} is due since {waited:?}, and its queue did nothing");
                return Err(Wrong { message: Some(message), queue: Some(queue.clone()), what });
            }
        }
        Ok(())
    }
}

impl Starved {
    fn active(&mut self, at: Duration, queue: &QueueName, source: &Arc<str>) {
        self.active.insert((queue.clone(), source.clone()), at);
    }
}

/// What a queue's own settings may have it wait.
fn patience(settings: &QueueSettings) -> Duration {
    let lists = [&settings.retry_after, &settings.backoff_retry_after];
    let longest = lists.into_iter().flat_map(|list| list.intervals()).max().copied().unwrap_or_default();
    PATIENCE + longest.mul_f64(1.5) + slowest_rate(settings) * 2
}

/// What it waits between two of its slowest rate.
pub(super) fn slowest_rate(settings: &QueueSettings) -> Duration {
    let rates = [
        settings.max_msg_rate,
        settings.backoff_max_msg_rate,
        settings.max_connect_rate,
        settings.source_ip_max_msg_rate,
        settings.source_ip_max_connect_rate,
    ];
    let one = |rate: Rate| rate.period() / rate.count().max(1);
    rates.into_iter().flatten().map(one).max().unwrap_or_default()
}
