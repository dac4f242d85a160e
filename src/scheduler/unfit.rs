//! Mail that a host can not take and another of its route may: it requires TLS (RFC 8689 §4.2.1). It is kept from the hosts that were found
//! unfit, waits apart from other mail, and has a connection opened past them. When no host of the route is left it bounces.
//!
//! What was found lasts as long as the item is in the window.

use std::sync::Arc;

use super::destination::{Destination, Work};
use super::record::{Failed, Reading, engine_diagnosis, policy_unknown};
use super::session::{Attempt, Candidate, State};
use super::verdict::{Cause, What};
use super::window::WindowItem;
use super::{ConnectionId, DestinationKey, LaneKey, Scheduler};
use crate::clock::Timestamp;
use crate::dns::{MAX_MAIL_EXCHANGERS, Route};
use crate::event::Diagnosis;
use crate::reply::Stage;
use crate::storage::ItemId;
use crate::transport::Unsendable;

/// Hosts that an item can not be sent to.
pub(super) struct Unfit {
    /// At most as many as a route has.
    hosts: Vec<Arc<str>>,
    /// What was the matter with the last, and where that was.
    last: (Candidate, Cause),
    /// One of them was not known for certain to be the receiver's.
    unverified: bool,
}

/// Where else an item can go that a host can not take.
pub(super) enum Elsewhere {
    /// To another host, maybe.
    Maybe,
    /// To none of the hosts as far as they are known now. The domain's MTA-STS policy is not, and may say more of them.
    NotYet,
    Nowhere,
}

impl Unfit {
    fn has(&self, host: &str) -> bool {
        self.hosts.iter().any(|unfit| **unfit == *host)
    }

    /// Whether a route leads to no other host, nor may lead to one that could not be looked up.
    fn is_all_of(&self, route: &Route) -> bool {
        let is_left =
            |host: &crate::dns::RouteHost| (host.has_address() || host.unknown) && !self.has(&host.name);
        self.hosts.len() >= MAX_MAIL_EXCHANGERS || !route.hosts.iter().any(is_left)
    }
}

impl Scheduler {
    /// The item can not be sent to the host that a transaction led to: where else?
    pub(super) fn note_unfit(
        &self,
        key: DestinationKey,
        item: &mut WindowItem,
        candidate: &Candidate,
        cause: &Cause,
    ) -> Elsewhere {
        let last = (candidate.clone(), cause.clone());
        let unfit = match &mut item.unfit {
            Some(unfit) => {
                unfit.last = last;
                unfit
            }
            none => none.insert(Box::new(Unfit { hosts: Vec::new(), last, unverified: false })),
        };
        if !unfit.has(&candidate.host) {
            unfit.hosts.push(candidate.host.clone());
        }
        unfit.unverified |= cause.what == What::Unsendable(Unsendable::HostNotVerified);
        self.elsewhere(key, item.lane, unfit)
    }

    fn elsewhere(&self, key: DestinationKey, lane: LaneKey, unfit: &Unfit) -> Elsewhere {
        // Looked up anew it may lead elsewhere: that is decided when it is known.
        let route = self.destinations.get(key).and_then(|destination| destination.known_route());
        let Some(route) = route.filter(|route| unfit.is_all_of(route)) else { return Elsewhere::Maybe };
        // What could not be verified may be now that a policy demands it, or when it is known.
        if unfit.unverified && (route.is_enforced() || self.is_policy_unknown(key, lane)) {
            Elsewhere::NotYet
        } else {
            Elsewhere::Nowhere
        }
    }

    /// Items of a destination that wait for another host than those that are idle, each with what it can not use.
    fn seekers(&self, key: DestinationKey) -> impl Iterator<Item = (ItemId, &Unfit)> {
        let suspects = self.destinations.get(key).map(|destination| &destination.work.doubts.suspects);
        let suspects = suspects.into_iter().flat_map(|suspects| suspects.iter());
        suspects.filter_map(|&id| Some((id, self.window.get(id)?.unfit.as_deref()?)))
    }

    fn has_suspects(&self, key: DestinationKey) -> bool {
        self.destinations.get(key).is_some_and(Destination::has_suspects)
    }

    /// How many they are.
    pub(super) fn seeking(&self, key: DestinationKey) -> usize {
        self.seekers(key).count()
    }

    /// Whether a connection is to be opened for one of them. One at a time.
    pub(super) fn seeks_other_host(&self, key: DestinationKey) -> bool {
        let is_opening_none = |d: &Destination| d.has_suspects() && d.work.opening == 0;
        self.destinations.get(key).is_some_and(is_opening_none) && self.seekers(key).next().is_some()
    }

    /// Connections that are being opened for them: one, or none. Other mail does not wait for it.
    pub(super) fn opening_for_seekers(&self, key: DestinationKey) -> usize {
        let opening = self.destinations.get(key).and_then(|destination| destination.work.opening_for_seekers);
        let connection = opening.and_then(|id| self.connections.get(id));
        usize::from(connection.is_some_and(|connection| {
            connection.destination == key && matches!(connection.state, State::Opening)
        }))
    }

    /// One of them, and an idle session it can use. It leaves its line.
    pub(super) fn draw_seeker(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
    ) -> Option<(ConnectionId, ItemId)> {
        while self.has_suspects(key) {
            let work: &Work = &self.destinations.get(key)?.work;
            let usable = |unfit: &Unfit| {
                let mut sessions = work.idle.iter().rev().map(|&(_, id)| id);
                sessions.find(|id| {
                    self.connections.get(*id).is_some_and(|connection| !unfit.has(&connection.current.host))
                })
            };
            let (connection, id) = self.seekers(key).find_map(|(id, unfit)| Some((usable(unfit)?, id)))?;
            if self.take_suspect(now, key, id)? {
                return Some((connection, id));
            }
        }
        None
    }

    /// An item leaves the line of those that are tried last, or apart. `false`: where its domain leads is out of date, and all mail
    /// of that has gone to be looked up.
    pub(super) fn take_suspect(&mut self, now: Timestamp, key: DestinationKey, id: ItemId) -> Option<bool> {
        let lane = self.window.get(id)?.lane;
        if self.is_stale(now, lane) {
            let domain = self.lanes.get(lane)?.domain;
            self.send_home(now, domain);
            return Some(false);
        }
        if let Some(destination) = self.destinations.get_mut(key)
            && destination.work.doubts.suspects.remove(&id)
        {
            destination.work.ready -= 1;
            if let Some(item) = self.window.get_mut(id) {
                item.ready = false;
            }
        }
        Some(true)
    }

    /// Whether an idle session is to end in place of taking other mail: a connection to another host is wanted, and it stands in
    /// the way of that.
    pub(super) fn ends_for_seekers(&self, now: Timestamp, key: DestinationKey, id: ConnectionId) -> bool {
        let Some(destination) = self.destinations.get(key) else { return false };
        let Some(connection) = self.connections.get(id) else { return false };
        let (work, cohort) = (&destination.work, &destination.cohort);
        let is_one_closing = work.connections > work.working.len() + work.opening;
        let has_what_is_full = work.waits.connect.iter().any(|place| connection.holds.contains(&place.slot));
        (work.connections >= cohort.allowed() || has_what_is_full)
            && !is_one_closing
            && cohort.hold_until.is_none_or(|until| until <= now)
            && self.seeks_other_host(key)
    }

    /// Leaves out of a new attempt what the first of them can not use.
    pub(super) fn past_unfit(&self, key: DestinationKey, attempt: &mut Attempt) {
        if let Some((_, unfit)) = self.seekers(key).next() {
            attempt.seeks = true;
            unfit.hosts.iter().for_each(|host| attempt.skip(host));
        }
    }

    /// The route leads to no address past the hosts that the first of them can not use.
    pub(super) fn no_other_host(&mut self, now: Timestamp, key: DestinationKey) {
        let Some((id, unfit)) = self.seekers(key).next() else { return };
        let (candidate, cause) = unfit.last.clone();
        let Some(lane) = self.window.get(id).map(|item| item.lane) else { return };
        match self.elsewhere(key, lane, unfit) {
            Elsewhere::Maybe => {
                let message = "the hosts that could take it have no address to try now";
                let diagnosis = engine_diagnosis(Stage::Dns, Failed::NoRouteForFamily, message);
                self.defer_item(now, key, id, &candidate, &diagnosis);
            }
            Elsewhere::NotYet => {
                self.defer_item(now, key, id, &candidate, &policy_unknown());
            }
            Elsewhere::Nowhere => {
                let reading = Reading { classifier: self.policy.classifier(), host: &candidate.host };
                let diagnosis = cause.diagnosis(reading);
                self.finish_item(now, id, |scheduler, item, recipient, left| {
                    let mut recipient = recipient.clone();
                    recipient.attempts = recipient.attempts.saturating_add(1);
                    scheduler.bounce(now, item, &recipient, Some(&candidate), diagnosis.clone(), left);
                });
            }
        }
        self.mark(key);
    }

    /// No connection past those hosts came about: what waits for one goes later. Other mail has nothing to do with it.
    pub(super) fn seekers_failed(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        candidate: &Candidate,
        diagnosis: &Diagnosis,
    ) {
        let seekers: Vec<ItemId> = self.seekers(key).map(|(id, _)| id).collect();
        seekers.into_iter().for_each(|id| self.defer_item(now, key, id, candidate, diagnosis));
        self.mark(key);
    }
}
