//! How a destination comes to a session: by one that is idle, or by a new connection once every limit allows it.
//!
//! All permits of a connection are taken in one step or none is. What is missing decides where the destination
//! stands in line; waiting charges nobody and is no failure.

use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::destination::Grant;
use super::holds::Holds;
use super::limits::{Call, LimitKey, Local, Place, SlotKey};
use super::pump::local_address;
use super::record::{Failed, engine_diagnosis};
use super::session::{Attempt, Candidate, Candidates, Connection, Meeting, State};
use super::{ConnectionId, DestinationKey, QueueKey, Scheduler};
use crate::clock::Timestamp;
use crate::dns::{Route, RouteHost};
use crate::reply::Stage;

/// Addresses of one attempt, of which each preference has one at least.
const MOST_CANDIDATES: usize = 32;
/// Lines one destination stands in at a time for full addresses.
const MOST_LINES: usize = 16;
/// Idle sessions at one address that are looked at for one to take over.
const MOST_IDLE: usize = 64;

/// What a new connection to a candidate takes.
#[derive(Clone, Copy, Default)]
struct Permits {
    counts: Holds,
    paces: Holds,
}

impl Scheduler {
    /// Takes over an idle session or opens a connection. `false`: neither can be had now.
    pub(super) fn seek_session(&mut self, now: Timestamp, key: DestinationKey) -> bool {
        let call = self.called.filter(|call| call.destination == key);
        if call.is_none() {
            if self.stands_for_connection(key) {
                return false;
            }
            self.stop_waiting_to_connect(key);
        }
        let Some(destination) = self.destinations.get_mut(key) else { return false };
        let queue = destination.queue;
        let attempt = match destination.work.suspended.take() {
            Some(attempt) => *attempt,
            None => {
                let Some(route) = destination.route_now(now).cloned() else { return false };
                let mut attempt = self.new_attempt(now, key, queue, &route);
                if self.seeks_other_host(key) {
                    self.past_unfit(key, &mut attempt);
                }
                attempt
            }
        };
        if attempt.is_exhausted() && attempt.seeks {
            self.no_other_host(now, key);
            return false;
        }
        if attempt.is_exhausted() {
            let message = "the hosts have no address of a family this source can send from";
            let diagnosis = engine_diagnosis(Stage::Dns, Failed::NoRouteForFamily, message);
            self.fail_step(now, key, None, diagnosis);
            return false;
        }
        if self.take_over_idle(now, key, queue, &attempt) {
            self.called = None;
            self.forget_turn(key);
            return true;
        }
        match self.choose(now, queue, &attempt, call) {
            Ok((candidate, permits)) => {
                self.take_permits(now, &permits);
                self.called = None;
                self.forget_turn(key);
                self.open_connection(key, attempt, candidate, permits.counts);
                true
            }
            Err(full) => {
                self.suspend(key, attempt);
                self.wait_to_connect(key, &full, call);
                self.forget_unused_slot(queue);
                false
            }
        }
    }

    /// It stands in line for a connection, and well: not among those who want one more, if it has none now.
    pub(super) fn stands_for_connection(&self, key: DestinationKey) -> bool {
        self.destinations.get(key).is_some_and(|destination| {
            let (work, line) = (&destination.work, &destination.work.waits.connect);
            let lost = work.connections == 0 && line.iter().any(|place| place.is_for_more());
            !line.is_empty() && !lost
        })
    }

    /// An attempt that failed somewhere goes on later where it stopped; one that has not begun is made anew.
    fn suspend(&mut self, key: DestinationKey, attempt: Attempt) {
        if attempt.last.is_some()
            && let Some(destination) = self.destinations.get_mut(key)
        {
            destination.work.suspended = Some(Box::new(attempt));
        }
    }

    /// What a queue's connections are counted by is kept while there are any, or somebody waits for one.
    fn forget_unused_slot(&mut self, queue: QueueKey) {
        if let Some(queue) = self.queues.get(queue) {
            self.limits.forget_unused(queue.slot);
        }
    }

    fn wait_to_connect(&mut self, key: DestinationKey, full: &[SlotKey], call: Option<Call>) {
        let has_some = self.destinations.get(key).is_some_and(|destination| destination.work.connections > 0);
        let who = (self.has_fresh(key), has_some);
        let old = self.destinations.get_mut(key).and_then(|destination| destination.work.waits.turn.take());
        let old = call.map(|call| call.place).or(old);
        for &slot in full {
            let Some(place) = self.limits.stand_in_line(slot, key, 1, who, old) else { continue };
            if let Some(destination) = self.destinations.get_mut(key) {
                destination.work.waits.connect.push(place);
            }
            self.limits.list(slot);
            if let Some(idle) = self.limits.to_close(slot) {
                self.close(idle);
            }
        }
    }

    /// The first candidate of the best group that every limit allows, or where to stand in line. A worse group is
    /// not an answer to a limit of our own.
    fn choose(
        &mut self,
        now: Timestamp,
        queue: QueueKey,
        attempt: &Attempt,
        call: Option<Call>,
    ) -> Result<(usize, Permits), Vec<SlotKey>> {
        let called = call.is_some();
        let base = self.queue_permits(now, queue);
        let free = |limits: &super::limits::Limits, slot: SlotKey| {
            limits.has_room(slot, now, 1) && (called || !limits.has_line(slot))
        };
        if let Some(&full) = base.counts.iter().chain(&base.paces).find(|&&slot| !free(&self.limits, slot)) {
            return Err(vec![full]);
        }
        let mut full = Vec::new();
        for (index, candidate) in attempt.group().enumerate() {
            let own = self.candidate_permits(now, queue, candidate);
            let blocker = own.counts.iter().chain(&own.paces).find(|&&slot| !free(&self.limits, slot));
            match blocker {
                None => {
                    let mut permits = base;
                    permits.counts.extend(&own.counts);
                    permits.paces.extend(&own.paces);
                    return Ok((index, permits));
                }
                Some(&slot) => {
                    let seen = full.contains(&slot) || full.len() >= MOST_LINES;
                    own.counts.iter().for_each(|&slot| self.limits.forget_unused(slot));
                    if !seen {
                        full.push(slot);
                    }
                }
            }
        }
        Err(full)
    }

    fn take_permits(&mut self, now: Timestamp, permits: &Permits) {
        for &slot in permits.counts.iter().chain(&permits.paces) {
            self.limits.take(slot, now, 1, &mut self.timers);
        }
    }

    /// What every connection of a queue takes.
    fn queue_permits(&mut self, now: Timestamp, queue: QueueKey) -> Permits {
        let mut permits = Permits::default();
        permits.counts.push(self.total);
        if let Some(state) = self.queues.get_mut(queue) {
            state.slot = self.limits.of_queue(state.slot, queue, state.connection_limit());
            permits.counts.push(state.slot);
            if let Some(rate) = state.settings.max_connect_rate {
                let key = LimitKey::ConnectRate(state.name.clone(), state.source.clone());
                permits.paces.push(self.limits.pace(now, key, rate));
            }
        }
        permits
    }

    /// What a connection to this candidate takes besides.
    fn candidate_permits(&mut self, now: Timestamp, queue: QueueKey, candidate: &Candidate) -> Permits {
        let mut permits = Permits::default();
        let Some(queue) = self.queues.get(queue) else { return permits };
        let local = self.local(&queue.source, candidate.peer);
        let address = candidate.peer.ip().to_canonical();
        if let Some(limit) = queue.settings.source_ip_max_smtp_out {
            let key = LimitKey::SourceIp(queue.name.clone(), local);
            permits.counts.push(self.limits.count(key, limit as usize));
        }
        if let Some(limit) = self.policy.mx_connection_limit(&candidate.host) {
            let key = LimitKey::Mx(limit.mx.clone(), candidate.host.clone());
            permits.counts.push(self.limits.count(key, limit.limit as usize));
        }
        if let Some(limit) = self.policy.ip_connection_limit(address) {
            let one = (!limit.shared).then_some(address);
            let key = LimitKey::Ip(limit.cidr, one, limit.per_source.then_some(local));
            permits.counts.push(self.limits.count(key, limit.limit as usize));
        }
        if let Some(rate) = queue.settings.source_ip_max_connect_rate {
            let key = LimitKey::SourceIpConnectRate(queue.name.clone(), local);
            permits.paces.push(self.limits.pace(now, key, rate));
        }
        permits
    }

    /// The counts a connection of this queue to this candidate holds.
    pub(super) fn all_permits(&mut self, now: Timestamp, queue: QueueKey, candidate: &Candidate) -> Holds {
        let mut counts = self.queue_permits(now, queue).counts;
        counts.extend(&self.candidate_permits(now, queue, candidate).counts);
        counts
    }

    pub(super) fn local(&self, source: &str, peer: SocketAddr) -> Local {
        let address = self.policy.source(source).and_then(|source| local_address(source, peer.ip()));
        address.map_or(Local::System { ipv6: peer.is_ipv6() }, Local::Address)
    }

    /// The address a connection goes out from.
    fn local_of(&self, id: ConnectionId) -> Option<Local> {
        let connection = self.connections.get(id)?;
        Some(self.local(&connection.source, connection.current.peer))
    }

    fn open_connection(&mut self, key: DestinationKey, mut attempt: Attempt, candidate: usize, holds: Holds) {
        let Some(current) = attempt.take(candidate) else { return };
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let Some(source) = self.queues.get(destination.queue).map(|queue| queue.source.clone()) else {
            return;
        };
        destination.work.opening += 1;
        destination.work.connections += 1;
        self.open += 1;
        let seeks = attempt.seeks;
        let id = self.connections.insert(Connection::new(key, source, attempt, current, holds));
        if seeks {
            destination.work.opening_for_seekers = Some(id);
        }
        self.open_current(id);
    }

    /// The next address of an attempt whose last one failed, under permits of its own. `false`: there is none, or
    /// none that the limits allow now; then the attempt waits.
    pub(super) fn open_next(&mut self, now: Timestamp, id: ConnectionId) -> bool {
        let Some(connection) = self.connections.get_mut(id) else { return false };
        let key = connection.destination;
        if connection.attempt.is_exhausted() {
            return false;
        }
        let Some(queue) = self.destinations.get(key).map(|destination| destination.queue) else {
            return false;
        };
        // The permits of the last address are free for the next one.
        let holds = std::mem::take(&mut connection.holds);
        let attempt = std::mem::take(&mut connection.attempt);
        holds.iter().for_each(|&slot| self.limits.give_back(slot));
        match self.choose(now, queue, &attempt, None) {
            Ok((candidate, permits)) => {
                self.take_permits(now, &permits);
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.attempt = attempt;
                    connection.holds = permits.counts;
                    if let Some(next) = connection.attempt.take(candidate) {
                        connection.current = next;
                    }
                }
                self.open_current(id);
            }
            Err(full) => {
                self.on_connection_gone(now, id);
                self.suspend(key, attempt);
                let waits = self.destinations.get(key).is_some_and(|d| !d.work.waits.connect.is_empty());
                if !waits {
                    self.wait_to_connect(key, &full, None);
                }
                self.forget_unused_slot(queue);
                self.mark(key);
            }
        }
        true
    }

    /// Addresses by preference, hosts of one preference in random order (RFC 5321 §5.1), dead ones last.
    fn new_attempt(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        queue: QueueKey,
        route: &Arc<Route>,
    ) -> Attempt {
        let Some(queue) = self.queues.get(queue) else { return Attempt::default() };
        let source = queue.source.clone();
        let policy = &self.policy;
        let can_reach = |peer: &SocketAddr| match policy.source(&source) {
            Some(source) if source.ipv4().is_some() || source.ipv6().is_some() => {
                local_address(source, peer.ip()).is_some()
            }
            _ => true,
        };
        let (mut alive, mut dead) = (Candidates::new(), Candidates::new());
        let mut left = MOST_CANDIDATES;
        let vouched_for = route.has_authentic_hosts();
        let has_address = |hosts: &&[RouteHost]| hosts.iter().any(RouteHost::has_address);
        let mut preferences = route.preferences().filter(has_address).count();
        for hosts in route.preferences().filter(has_address) {
            preferences -= 1;
            // However many addresses the most preferred hosts have, the others are reached when these fail.
            let kept = preferences.min(left.saturating_sub(1));
            left -= kept;
            let mut order: SmallVec<[&RouteHost; 4]> =
                hosts.iter().filter(|host| host.has_address()).collect();
            self.rng.shuffle(&mut order);
            for host in order {
                if self.destinations.get(key).is_some_and(|d| d.skips(now, &host.name)) {
                    continue;
                }
                let start = self.rng.usize(..host.addresses.len().max(1));
                let rotated = host.addresses.iter().cycle().skip(start).take(host.addresses.len());
                for &peer in rotated.filter(|peer| can_reach(peer)).take(left) {
                    let (name, tlsa) = (host.name.clone(), host.tlsa.clone());
                    let candidate = Candidate { host: name, peer, tlsa, vouched_for };
                    if self.health.is_dead(now, &source, peer) {
                        dead.push((u32::MAX, candidate));
                    } else {
                        alive.push((host.preference, candidate));
                    }
                    left -= 1;
                }
            }
            left += kept;
        }
        alive.append(&mut dead);
        Attempt::new(alive)
    }

    /// An idle session of another destination to an address of this one's best group: used as if it were its own,
    /// charged to the limits of this one's queue. The permit moves in one step, or the session stays where it is.
    fn take_over_idle(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        queue: QueueKey,
        attempt: &Attempt,
    ) -> bool {
        // The proof is an address that DNS gives for the host now.
        let is_known = self.destinations.get(key).is_some_and(|d| d.route_now(now).is_some());
        if self.idle_at.is_empty() || !is_known {
            return false;
        }
        let Some(state) = self.queues.get(queue) else { return false };
        let (source, most) = (state.source.clone(), state.settings.max_msg_per_connection);
        let Some(wish) = self.wish_of(key) else { return false };
        for candidate in attempt.group() {
            let meeting = Meeting::new(source.clone(), candidate, wish.clone());
            let Some(idle) = self.idle_at.get(&meeting) else { continue };
            // The one used last: the others may go.
            let usable = idle.iter().rev().take(MOST_IDLE).map(|&(_, id)| id).find(|id| {
                self.connections.get(*id).is_some_and(|connection| {
                    connection.destination != key
                        && most.is_none_or(|most| connection.used < most)
                        && connection.serves(&candidate.host, candidate.tlsa.as_deref())
                })
            });
            if let Some(id) = usable
                && self.hand_over(now, id, key, queue, candidate)
            {
                return true;
            }
        }
        false
    }

    fn hand_over(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        key: DestinationKey,
        queue: QueueKey,
        candidate: &Candidate,
    ) -> bool {
        let wanted = self.all_permits(now, queue, candidate);
        let Some(connection) = self.connections.get(id) else { return false };
        let held = connection.holds;
        let missing: Vec<_> = wanted.iter().copied().filter(|slot| !held.contains(slot)).collect();
        if missing.iter().any(|&slot| !self.limits.has_room(slot, now, 1)) {
            missing.iter().for_each(|&slot| self.limits.forget_unused(slot));
            return false;
        }
        let old = connection.destination;
        let State::Idle { since } = connection.state else { return false };
        self.unlist_idle(id);
        missing.iter().for_each(|&slot| self.limits.take(slot, now, 1, &mut self.timers));
        held.iter().filter(|slot| !wanted.contains(slot)).for_each(|&slot| self.limits.give_back(slot));
        if let Some(destination) = self.destinations.get_mut(old) {
            destination.work.idle.remove(&(since, id));
            destination.work.working.remove(&id);
            destination.work.connections = destination.work.connections.saturating_sub(1);
        }
        self.mark(old);
        let Some(connection) = self.connections.get_mut(id) else { return false };
        connection.destination = key;
        connection.current = candidate.clone();
        connection.holds = wanted;
        connection.has_idled = true;
        if let Some(destination) = self.destinations.get_mut(key) {
            destination.work.connections += 1;
            destination.work.idle.insert((since, id));
            destination.session_opened(id);
        }
        self.note_greeted(now, key);
        self.newly_idle.push_back(id);
        true
    }

    /// Idle connections that were not used at once are listed where others find them.
    pub(super) fn list_idle(&mut self) {
        while let Some(id) = self.newly_idle.pop_front() {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            let State::Idle { since } = connection.state else { continue };
            if connection.listed {
                continue;
            }
            connection.listed = true;
            if connection.timer.is_none()
                && let Some(queue) =
                    self.destinations.get(connection.destination).and_then(|d| self.queues.get(d.queue))
            {
                // At zero the session ends as soon as it has nothing to do.
                let until = since + queue.settings.connection_idle_timeout;
                self.session_timers.arm(&mut connection.timer, Some(until), id);
            }
            self.limits.now_idle(&connection.holds, since, id);
            if !connection.retired {
                self.idle_at.entry(connection.meeting()).or_default().insert((since, id));
            }
        }
    }

    /// The connection is not idle any more.
    pub(super) fn unlist_idle(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let State::Idle { since } = connection.state else { return };
        if !std::mem::take(&mut connection.listed) {
            return;
        }
        self.limits.not_idle(&connection.holds, since, id);
        if let Entry::Occupied(mut idle) = self.idle_at.entry(connection.meeting()) {
            idle.get_mut().remove(&(since, id));
            if idle.get().is_empty() {
                idle.remove();
            }
        }
    }

    /// Leaves the lines it stands in for a connection.
    pub(super) fn stop_waiting_to_connect(&mut self, key: DestinationKey) {
        let places = self.destinations.get_mut(key).map(|d| std::mem::take(&mut d.work.waits.connect));
        places.into_iter().flatten().for_each(|place| self.limits.leave_line(place));
    }

    pub(super) fn stop_waiting_for_rate(&mut self, key: DestinationKey) {
        let places = self.destinations.get_mut(key).map(|d| std::mem::take(&mut d.work.waits.rate));
        places.into_iter().flatten().for_each(|place| self.limits.leave_line(place));
    }

    /// Called from a line: it leaves the others it stands in for the same thing.
    pub(super) fn answer_call(&mut self, call: Call) {
        let Some(destination) = self.destinations.get_mut(call.destination) else { return };
        let is_this = |place: &Place| *place == call.place;
        if destination.work.waits.connect.iter().any(is_this) {
            self.stop_waiting_to_connect(call.destination);
        } else if destination.work.waits.rate.iter().any(is_this) {
            self.stop_waiting_for_rate(call.destination);
        }
        self.called = Some(call);
        self.mark(call.destination);
    }

    /// The slots of the rates at which a queue may offer recipients.
    fn message_paces(
        &mut self,
        now: Timestamp,
        queue: QueueKey,
        session: Option<ConnectionId>,
    ) -> SmallVec<[SlotKey; 3]> {
        let mut slots = SmallVec::new();
        let Some(state) = self.queues.get(queue) else { return slots };
        if let Some(rate) = state.message_rate() {
            let key = LimitKey::MessageRate(state.name.clone(), state.source.clone());
            slots.push(self.limits.pace(now, key, rate));
        }
        if let Some(rate) = state.capped_rate() {
            let key = LimitKey::CapRate(state.name.clone(), state.source.clone());
            slots.push(self.limits.pace(now, key, rate));
        }
        if let Some(rate) = state.settings.source_ip_max_msg_rate
            && let Some(local) = session.and_then(|id| self.local_of(id))
        {
            let key = LimitKey::SourceIpMessageRate(state.name.clone(), local);
            slots.push(self.limits.pace(now, key, rate));
        }
        slots
    }

    /// How many of `wanted` recipients may be offered now; at least one, or `None`: the destination waits.
    ///
    /// What is granted before there is a session is kept for its first transaction, so that of many destinations of
    /// a queue only as many connect as may send. It is charged anew when it is used: a rate is one of offers.
    pub(super) fn acquire_rate(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        wanted: u32,
        session: Option<ConnectionId>,
    ) -> Option<u32> {
        let destination = self.destinations.get(key)?;
        // Who is called has left the line; who stands there again found too little.
        let waits = !destination.work.waits.rate.is_empty();
        let slots = self.message_paces(now, destination.queue, session);
        if slots.is_empty() {
            // Called for the rate of an address it is to send from, it keeps its turn until it has a session.
            if let Some(call) = self.called.filter(|call| call.destination == key && session.is_none())
                && let Some(destination) = self.destinations.get_mut(key)
            {
                let grant = Grant { slots: Vec::new(), units: 0, place: Some(call.place) };
                destination.work.grant = Some(Box::new(grant));
            }
            return Some(wanted);
        }
        if waits {
            return None;
        }
        let grant = self.take_back_grant(now, key);
        let granted = grant.as_ref().map_or(0, |grant| grant.units);
        let call = self.called.filter(|call| call.destination == key);
        let old = grant.as_ref().and_then(|grant| grant.place).or(call.map(|call| call.place));
        let burst = slots.iter().map(|&slot| self.limits.burst(slot)).min().unwrap_or(u32::MAX);
        let wanted = wanted.min(burst).max(1);
        let full = |units: u32, this: &Self| {
            slots.iter().copied().find(|&slot| {
                let was_granted = units <= granted
                    && grant.iter().flat_map(|grant| &grant.slots).any(|&(of, _)| of == slot);
                // Called from there, it may have come to a session since: the call is used up, its turn is not.
                let its_turn = call.is_some() || old.is_some_and(|old| old.slot == slot);
                let in_turn = was_granted || its_turn || !this.limits.has_line(slot);
                !in_turn || !this.limits.has_room(slot, now, units)
            })
        };
        let mut units = wanted;
        if let Some(slot) = full(wanted, self) {
            units = granted.min(wanted);
            if units == 0 || full(units, self).is_some() {
                let fresh = self.has_fresh(key);
                let place = self.limits.stand_in_line(slot, key, wanted, (fresh, false), old);
                if let Some(destination) = self.destinations.get_mut(key) {
                    destination.work.waits.rate.extend(place);
                }
                self.limits.list(slot);
                return None;
            }
        }
        let charged = slots.into_iter().map(|slot| {
            self.limits.take(slot, now, units, &mut self.timers);
            (slot, self.limits.paid_off(slot))
        });
        let slots = charged.collect();
        if let Some(destination) = self.destinations.get_mut(key) {
            destination.work.grant = Some(Box::new(Grant { slots, units, place: old }));
        }
        Some(units)
    }

    /// A grant that was not used is charged to nobody.
    fn take_back_grant(&mut self, now: Timestamp, key: DestinationKey) -> Option<Box<Grant>> {
        let grant = self.destinations.get_mut(key)?.work.grant.take()?;
        for &(slot, paid_off) in &grant.slots {
            self.limits.refund(slot, now, grant.units, paid_off);
        }
        Some(grant)
    }

    /// A grant that no session is coming for is given back.
    pub(super) fn drop_unused_grant(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get(key) else { return };
        if destination.work.grant.is_none() {
            return;
        }
        let session =
            destination.work.opening > 0 || !destination.work.idle.is_empty() && destination.work.ready > 0;
        if !session {
            self.take_back_grant(now, key);
        }
    }

    pub(super) fn has_fresh(&self, key: DestinationKey) -> bool {
        let Some(destination) = self.destinations.get(key) else { return false };
        destination
            .lanes
            .iter()
            .filter_map(|&lane| self.lanes.get(lane))
            .any(|lane| !lane.work.fresh.is_empty())
    }
}
