//! Domains without MX, without hosts, or that do not exist: delivered or held for a while, then bounced.
//!
//! How long is a matter of each message's age. At the deadline the domain is looked up once more, past any cache,
//! even if its next attempt lies later; only then does its mail bounce.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::destination::{Refusal, RouteState};
use super::record::route_diagnosis;
use super::{DestinationKey, LaneKey, Scheduler};
use crate::clock::Timestamp;
use crate::dns::{Freshness, Route, RouteFailure};
use crate::event::{Diagnosis, Failure, Reason};
use crate::policy::{DnsVerdict, NoMxLiveHost, Written};
use crate::reply::{EnhancedStatus, Stage};
use crate::storage::{Envelope, ItemId};

/// How long the word of DNS is believed before it is asked for again.
const HOLDS: Duration = Duration::from_secs(1);

/// What DNS does not have of a domain, and what that means for its mail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Missing {
    /// With what its mail bounces.
    pub(super) diagnosis: Diagnosis,
    /// The age at which it does.
    pub(super) after: Duration,
    /// The domain is its own host, and greeted: it is kept until expiry (`no-mx-live-host`).
    pub(super) kept: bool,
    /// DNS said so just now, past any cache; believed until then.
    #[serde(skip)]
    pub(super) confirmed_until: Option<Timestamp>,
}

impl Scheduler {
    /// A look-up led to a route: does its kind bounce mail? `true`: it may not be used.
    pub(super) fn note_found(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        route: &Route,
        freshness: Freshness,
    ) -> bool {
        let Some(destination) = self.destinations.get(key) else { return true };
        let Some(queue) = self.queues.get(destination.queue) else { return true };
        let is_fresh = freshness == Freshness::Fresh;
        match queue.settings.dns_verdict(Ok(route.kind)) {
            DnsVerdict::Bounce if is_fresh => {
                let diagnosis = no_mx_diagnosis(destination.domain.as_str(), None);
                self.refuse_by_dns(now, key, diagnosis);
                true
            }
            DnsVerdict::Bounce => {
                self.ask_afresh(key);
                true
            }
            DnsVerdict::DeliverUntil(after) => {
                let diagnosis = no_mx_diagnosis(destination.domain.as_str(), Some(after));
                self.note_missing(now, key, diagnosis, after, is_fresh);
                false
            }
            DnsVerdict::Deliver | DnsVerdict::HoldUntil(_) | DnsVerdict::Retry => {
                self.no_longer_missing(now, key);
                false
            }
        }
    }

    /// A look-up said that the domain takes no mail. It was asked past any cache.
    pub(super) fn note_not_found(&mut self, now: Timestamp, key: DestinationKey, failure: &RouteFailure) {
        let diagnosis = route_diagnosis(failure);
        let Some(queue) = self.destinations.get(key).and_then(|d| self.queues.get(d.queue)) else { return };
        match queue.settings.dns_verdict(Err(failure.kind)) {
            DnsVerdict::HoldUntil(after) => {
                self.note_missing(now, key, diagnosis.clone(), after, true);
                let held = self.destinations.get(key).is_some_and(|d| d.is_held(now));
                if !held {
                    self.fail_step(now, key, None, transient(diagnosis));
                }
            }
            _ => self.refuse_by_dns(now, key, diagnosis),
        }
    }

    fn refuse_by_dns(&mut self, now: Timestamp, key: DestinationKey, diagnosis: Diagnosis) {
        self.no_longer_missing(now, key);
        if let Some(destination) = self.destinations.get_mut(key) {
            destination.refusal = Some(Box::new(Refusal { diagnosis, until: now + HOLDS, counts: true }));
        }
    }

    fn note_missing(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        diagnosis: Diagnosis,
        after: Duration,
        confirmed: bool,
    ) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        destination.refusal = None;
        let reason = diagnosis.reason;
        let known = destination.missing.take().filter(|missing| missing.diagnosis.reason == reason);
        let changed = known.is_none();
        destination.missing = Some(Box::new(Missing {
            diagnosis,
            after,
            kept: known.is_some_and(|missing| missing.kept),
            confirmed_until: confirmed.then_some(now + HOLDS),
        }));
        if changed {
            self.store_state(key);
        }
        self.review_missing(now, key);
    }

    /// The domain has hosts of its own after all: what waited for them need not wait any longer.
    fn no_longer_missing(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        if destination.missing.take().is_none() {
            return;
        }
        destination.retry = super::destination::RetryClock::default();
        self.forget_state(key);
        self.review_missing(now, key);
    }

    /// The domain's own host greets.
    pub(super) fn note_greeted(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let Some(missing) = &mut destination.missing else { return };
        let keeps = self
            .queues
            .get(destination.queue)
            .is_some_and(|queue| queue.settings.no_mx_live_host == NoMxLiveHost::Keep);
        if keeps && missing.diagnosis.reason == Reason::NoMx && !std::mem::replace(&mut missing.kept, true) {
            self.store_state(key);
            self.review_missing(now, key);
        }
    }

    /// Deadlines follow.
    fn review_missing(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get(key) else { return };
        let lanes: Vec<LaneKey> = destination.lanes.iter().copied().collect();
        for lane in lanes {
            self.set_deadlines(lane);
            self.on_lane_timer(now, lane);
        }
        self.mark(key);
    }

    /// The domain is looked up past any cache, even while it waits.
    pub(super) fn ask_afresh(&mut self, key: DestinationKey) {
        if let Some(destination) = self.destinations.get_mut(key) {
            destination.work.wants_fresh = true;
            if matches!(destination.route, RouteState::Known { .. }) && destination.missing.is_none() {
                destination.route = RouteState::Unknown;
            }
        }
        self.mark(key);
    }

    /// From when on DNS may be asked past any cache again.
    pub(super) fn fresh_from(&self, key: DestinationKey) -> Option<Timestamp> {
        self.destinations.get(key)?.no_fresh_before
    }

    /// The age at which mail of a destination bounces since DNS does not have its domain. With its queue's fuse
    /// blown it does not: it is tried on until it expires.
    pub(super) fn missing_after(&self, key: DestinationKey) -> Option<Duration> {
        let destination = self.destinations.get(key)?;
        let missing = destination.missing.as_ref()?;
        let is_fused = self.queues.get(destination.queue).is_some_and(|queue| queue.mode.fuse_blown);
        (!missing.kept && !is_fused).then_some(missing.after)
    }

    /// With what mail of this age bounces, were it not for the queue's blown fuse.
    pub(super) fn fused(
        &self,
        now: Timestamp,
        key: DestinationKey,
        envelope: &Envelope,
    ) -> Option<&Diagnosis> {
        let destination = self.destinations.get(key)?;
        let missing = destination.missing.as_ref().filter(|missing| !missing.kept)?;
        let is_fused = self.queues.get(destination.queue).is_some_and(|queue| queue.mode.fuse_blown);
        (is_fused && envelope.age_from + missing.after <= now).then_some(&missing.diagnosis)
    }

    /// Holds an item that DNS would bounce since the fuse has blown. `false`: it is none.
    pub(super) fn hold_if_fused(&mut self, now: Timestamp, key: DestinationKey, id: ItemId) -> bool {
        let Some(item) = self.window.get(id) else { return false };
        let Some(diagnosis) = self.fused(now, key, &item.item.envelope).cloned() else { return false };
        self.bounce_or_hold(now, key, id, &diagnosis);
        true
    }

    /// An item is as old as its domain may be missing: it bounces if DNS said so just now, else DNS is asked.
    pub(super) fn bounce_missing(&mut self, now: Timestamp, key: DestinationKey, id: ItemId) {
        let Some(missing) = self.destinations.get(key).and_then(|d| d.missing.as_ref()) else { return };
        if missing.confirmed_until.is_some_and(|until| until > now) {
            let diagnosis = missing.diagnosis.clone();
            self.bounce_or_hold(now, key, id, &diagnosis);
        } else if let Some(from) = self.fresh_from(key).filter(|&from| from > now) {
            self.put_back(now, id, Some(from));
        } else {
            self.ask_afresh(key);
            self.put_back(now, id, None);
        }
    }
}

fn no_mx_diagnosis(domain: &str, after: Option<Duration>) -> Diagnosis {
    let setting = after.map_or_else(|| "true".to_owned(), |after| Written(after).to_string());
    Diagnosis {
        stage: Stage::Dns,
        status: EnhancedStatus::new(5, 4, 4),
        reason: Reason::NoMx,
        failure: Failure::Engine(format!("{domain} has no MX record (bounce-upon-no-mx = {setting})")),
        rule: None,
    }
}

/// The same, while it is not final.
fn transient(mut diagnosis: Diagnosis) -> Diagnosis {
    diagnosis.status.class = 4;
    diagnosis
}
