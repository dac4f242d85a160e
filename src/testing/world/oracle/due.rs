//! Nothing is tried before it is due.
//!
//! Of a rollup only recipients are judged: which of its destinations a connection is for is not said.

use std::collections::HashMap;

use super::super::observation::{Observation, Seen};
use super::facts::QueueId;
use super::{Facts, Invariant, Judgement};
use crate::clock::Timestamp;
use crate::event::DeliveryEvent;
use crate::message::Domain;
use crate::policy::{NoMx, NxDomain};
use crate::reply::Stage;

/// Queues whose hosts could not be used.
#[derive(Default)]
pub(super) struct Due {
    queues: HashMap<QueueId, Held>,
}

struct Held {
    until: Timestamp,
    controls: u64,
    epoch: u64,
    /// [`Facts::times_fresh`] of its domain.
    fresh: Option<u64>,
    /// [`Facts::times_forgotten`]: with its failed steps the wait is forgotten.
    forgotten: u64,
}

impl Invariant for Due {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        let now = observation.time;
        match &observation.seen {
            Seen::Offered { message, recipients, .. } => {
                for recipient in recipients {
                    let standing = facts.standing_of(*message, recipient);
                    // What the host said since may have made it due.
                    let holds = standing.not_before_as_of == facts.controls;
                    if let Some(due) = standing.not_before.filter(|due| holds && *due > now) {
                        return Err(format!(
                            "{message} to {recipient} is tried at {now}, and is due at {due}"
                        )
                        .into());
                    }
                }
                Ok(())
            }
            Seen::Accepted { message, recipients, hold_until: Some(until) } => {
                let early = |recipient: &&_| {
                    facts.standing_of(*message, recipient).first_offered.is_some_and(|first| first < *until)
                };
                match recipients.iter().find(early) {
                    Some(recipient) => {
                        Err(format!("{message} to {recipient} was tried before {until}").into())
                    }
                    None => Ok(()),
                }
            }
            Seen::Connecting { queue, source, .. } => {
                let held = self.queues.get(&(queue.clone(), source.clone()));
                let key = (queue.clone(), source.clone());
                let holds = |held: &&Held| {
                    let is_as_was = (held.controls, held.epoch) == (facts.controls, facts.epoch);
                    is_as_was
                        && held.fresh == fresh(facts, &key)
                        && held.forgotten == facts.times_forgotten(&key)
                        && !may_be_there(facts, &key)
                };
                match held.filter(holds).filter(|held| held.until > now) {
                    Some(held) => {
                        let until = held.until;
                        Err(format!("{queue} of {source} connects at {now}, and waits until {until}").into())
                    }
                    None => Ok(()),
                }
            }
            Seen::Connected { connection } => {
                if let Some(open) = facts.open.get(connection) {
                    self.queues.remove(&(open.queue.clone(), open.source.clone()));
                }
                Ok(())
            }
            Seen::Started => {
                let (controls, epoch) = (facts.controls, facts.epoch + 1);
                let durable = facts.durable_steps();
                let durable = durable.filter(|(key, stored)| !stored.is_missing && is_certain(facts, key));
                let held = durable.filter_map(|(key, stored)| {
                    let (fresh, forgotten) = (fresh(facts, &key), facts.times_forgotten(&key));
                    Some((key, Held { until: stored.until?, controls, epoch, fresh, forgotten }))
                });
                self.queues = held.collect();
                Ok(())
            }
            Seen::Event(event) => {
                if let DeliveryEvent::QueueDeferred(deferred) = &**event {
                    let key = (deferred.queue.clone(), deferred.source.clone());
                    let until = deferred.next_attempt;
                    // What DNS did not have it may have before that.
                    let by_dns = deferred.diagnosis.stage == Stage::Dns;
                    let fresh = fresh(facts, &key);
                    // It is told late, and new mail may have come since.
                    let is_over = fresh.is_some() && deferred.time < now;
                    // Decided before the clock was set back, and its time moved with it.
                    let is_over = is_over || deferred.time > now;
                    if is_certain(facts, &key) && !is_over && !(by_dns && has_deadline(facts, &key)) {
                        let (controls, epoch) = (facts.controls, facts.epoch);
                        let forgotten = facts.times_forgotten(&key);
                        self.queues.insert(key, Held { until, controls, epoch, fresh, forgotten });
                    } else {
                        self.queues.remove(&key);
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// One set of hosts, and no attempt under way.
fn is_certain(facts: &Facts, (queue, source): &QueueId) -> bool {
    let opening = facts.open.values().any(|open| open.queue == *queue && open.source == *source);
    !queue.ends_with(".rollup") && !opening
}

/// Its mail bounces at an age if DNS does not have its domain. Then DNS is asked before the time.
fn has_deadline(facts: &Facts, (queue, source): &QueueId) -> bool {
    let settings = facts.settings(queue, source);
    matches!(settings.bounce_upon_no_mx, NoMx::After(_))
        || matches!(settings.bounce_upon_nxdomain, NxDomain::After(_))
}

/// DNS did not have all of the domain, by this policy or the one before: once it does, the clock begins anew.
fn may_be_there(facts: &Facts, key: &QueueId) -> bool {
    facts.durable_steps().any(|(of, stored)| of == *key && stored.is_missing)
}

/// With `retry-upon-new-mail` what comes ends the wait.
fn fresh(facts: &Facts, (queue, source): &QueueId) -> Option<u64> {
    let settings = facts.settings(queue, source);
    let domain = settings.retry_upon_new_mail.then(|| Domain::parse(queue).ok())?;
    domain.map(|domain| facts.times_fresh(&domain))
}
