//! What a destination does next: claim, look up, connect, send, or wait for what is missing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::command::{Command, Outgoing};
use super::destination::RouteState;
use super::event::Content;
use super::record::{Failed, engine_diagnosis};
use super::session::{Attempt, Candidate, Connection, InTransaction, State};
use super::{ConnectionId, DestinationKey, Scheduler, TimerOwner};
use crate::clock::Timestamp;
use crate::dns::{Freshness, Route};
use crate::policy::Source;
use crate::reply::Stage;
use crate::storage::{BodyKey, ItemId};

/// Addresses of one attempt.
const MOST_CANDIDATES: usize = 32;
/// How long a route serves past its time for a destination that had to wait for its turn.
const ROUTE_GRACE: Duration = Duration::from_secs(300);
/// Items a destination may claim when the window is full, so that one that can send always can.
const GUARANTEED_WINDOW: usize = 8;

impl Scheduler {
    /// Brings one destination as far as it can go now.
    pub(super) fn pump(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        destination.dirty = false;
        if self.shutting_down || self.writes.is_stopped() {
            self.close_idle(key);
            return;
        }
        self.refuse_all(now, key);
        self.claim_if_wanted(now, key);
        self.send_over_idle(now, key);
        self.connect_if_wanted(now, key);
        self.arm_destination(now, key);
        self.remove_destination_if_done(now, key);
    }

    /// While DNS or the hosts say that no mail is taken, what is due bounces.
    fn refuse_all(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let Some((diagnosis, until)) = destination.refusal.clone() else { return };
        if until <= now {
            destination.refusal = None;
            return;
        }
        while let Some(id) = self.draw(key) {
            self.bounce_item(now, id, &diagnosis);
        }
    }

    fn claim_if_wanted(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get(key) else { return };
        let has_work = !destination.hungry.is_empty() || !destination.expiring.is_empty();
        if destination.claiming || !has_work {
            return;
        }
        if self.claims.len() >= self.bounds.claims {
            if let Some(destination) = self.destinations.get_mut(key)
                && !destination.waits.claim
            {
                destination.waits.claim = true;
                self.waiting.claim.push_back(key);
            }
            return;
        }
        if self.writes.is_paused() {
            self.retry_claim_of.insert(key);
            return;
        }
        if !self.may_start() {
            self.wait_to_settle(key);
            return;
        }
        let bound = self.bounds.window_per_destination;
        let free = self.bounds.window.saturating_sub(self.window.len());
        // Half empty: claims are made in lots.
        let wants =
            !destination.is_held(now) && !self.is_blocked(now, key) && destination.claimed <= bound / 2;
        let room = if !wants || destination.hungry.is_empty() {
            0
        } else if free > 0 {
            bound.saturating_sub(destination.claimed).min(free)
        } else if destination.connections > 0 {
            bound.min(GUARANTEED_WINDOW).saturating_sub(destination.claimed)
        } else {
            self.wait_for_window(key);
            0
        };
        let Some(destination) = self.destinations.get(key) else { return };
        if room > 0 || !destination.expiring.is_empty() {
            self.claim(now, key, room);
        }
    }

    fn wait_for_window(&mut self, key: DestinationKey) {
        if let Some(destination) = self.destinations.get_mut(key)
            && !destination.waits.window
        {
            destination.waits.window = true;
            self.waiting.window.push_back(key);
        }
    }

    /// Mail of it could not be sent now even if it were at hand, and there is some at hand.
    fn is_blocked(&self, now: Timestamp, key: DestinationKey) -> bool {
        self.destinations.get(key).is_some_and(|destination| {
            let waits = &destination.waits;
            // One at its limit waits for more connections and sends over those it has.
            let to_connect =
                waits.total || waits.queue || waits.look_up || self.is_resting(now, destination.queue);
            destination.ready > 0 && (waits.body || to_connect && destination.connections == 0)
        })
    }

    fn is_resting(&self, now: Timestamp, queue: super::QueueKey) -> bool {
        let source = self.queues.get(queue).map(|queue| &queue.source);
        source.and_then(|source| self.resting.get(source)).is_some_and(|&until| until > now)
    }

    fn send_over_idle(&mut self, now: Timestamp, key: DestinationKey) {
        loop {
            let Some(destination) = self.destinations.get(key) else { return };
            if destination.ready == 0 || destination.is_held(now) {
                return;
            }
            // The one used last: the others may go.
            let Some(&(_, connection)) = destination.idle.last() else { return };
            if !self.may_start() {
                self.wait_to_settle(key);
                return;
            }
            let Some(item) = self.draw(key) else { return };
            if !self.start_transaction(now, key, connection, item) {
                return;
            }
        }
    }

    fn wait_to_settle(&mut self, key: DestinationKey) {
        if let Some(destination) = self.destinations.get_mut(key)
            && !destination.waits.settle
        {
            destination.waits.settle = true;
            self.waiting.settle.push_back(key);
        }
    }

    /// The next item to try, by priority, lane and freshness in turns.
    pub(super) fn draw(&mut self, key: DestinationKey) -> Option<ItemId> {
        let destination = self.destinations.get_mut(key)?;
        while let Some(lane_key) = destination.ring.pop() {
            let Some(lane) = self.lanes.get_mut(lane_key) else { continue };
            let mut drawn = None;
            if let Some(id) = lane.draw()
                && let Some(item) = self.window.get_mut(id)
            {
                item.ready = false;
                drawn = Some(id);
            }
            if lane.has_ready() {
                destination.ring.push(lane.key.priority, lane_key);
            } else {
                lane.in_ring = false;
            }
            if drawn.is_some() {
                destination.ready -= 1;
                return drawn;
            }
        }
        let id = destination.suspects.pop_front()?;
        destination.ready -= 1;
        self.window.get_mut(id)?.ready = false;
        Some(id)
    }

    /// `false`: there is no room for its content now; the item waits, and the destination with it.
    fn start_transaction(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        connection_id: ConnectionId,
        id: ItemId,
    ) -> bool {
        let Some(item) = self.window.get(id) else { return true };
        if item.deadline <= now {
            self.expire(now, id);
            return true;
        }
        let octets = usize::try_from(item.item.envelope.size).unwrap_or(usize::MAX);
        let fits = self.transit_octets.saturating_add(octets) <= self.bounds.transit_octets;
        let is_called = self.waiting.body_called == Some(key);
        let in_turn = is_called || self.waiting.body.is_empty();
        // With nothing in transit nobody would be called.
        if self.transit_octets > 0 && !(fits && in_turn) {
            let fresh = item.is_fresh();
            self.stand_in_line(id, fresh, true);
            self.wait_for_body(key, is_called);
            return false;
        }
        self.waiting.body_called = None;
        let Some(destination) = self.destinations.get_mut(key) else { return true };
        let most =
            self.queues.get(destination.queue).map_or(1, |q| q.settings.max_rcpt_per_transaction.max(1));
        let envelope = item.item.envelope.clone();
        let chosen: Vec<_> = item.item.recipients.iter().take(most as usize).collect();
        let recipients: Vec<u32> = chosen.iter().map(|recipient| recipient.index).collect();
        let addresses = chosen.into_iter().map(|recipient| recipient.address.clone()).collect();
        let (lane_key, deadline) = (item.lane, item.deadline);
        let Some(connection) = self.connections.get_mut(&connection_id) else { return true };
        if let State::Idle { since } = connection.state {
            connection.has_idled |= since < now;
            destination.idle.remove(&(since, connection_id));
            self.idle.remove(&(since, connection_id));
        }
        connection.state = State::Busy(InTransaction { item: id, recipients, octets });
        connection.used += 1;
        self.timers.arm(&mut connection.timer, None, TimerOwner::Connection(connection_id));
        self.transit_octets = self.transit_octets.saturating_add(octets);
        self.busy += 1;
        if let Some(lane) = self.lanes.get_mut(lane_key) {
            lane.deadlines.remove(&(deadline, id));
            lane.pending += 1;
        }
        let body = self.window.take_body(id);
        if let Some(item) = self.window.get_mut(id) {
            item.busy = true;
        }
        let content = body.map_or(Content::Stored(BodyKey(envelope.id)), Content::Held);
        let transaction = Outgoing {
            reverse_path: envelope.reverse_path.clone(),
            recipients: addresses,
            content,
            eight_bit: envelope.eight_bit,
        };
        self.commands.push_back(Command::Transact { connection: connection_id, transaction });
        true
    }

    /// Who was called and still does not fit keeps its place, and the others wait with it.
    fn wait_for_body(&mut self, key: DestinationKey, is_called: bool) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        if is_called {
            self.waiting.body_called = None;
            self.waiting.body_freed = false;
        }
        if !std::mem::replace(&mut destination.waits.body, true) {
            let line = &mut self.waiting.body;
            if is_called { line.push_front(key) } else { line.push_back(key) }
        }
    }

    fn connect_if_wanted(&mut self, now: Timestamp, key: DestinationKey) {
        loop {
            let Some(destination) = self.destinations.get(key) else { return };
            let wanted = destination.ready.saturating_sub(destination.opening + destination.idle.len());
            if wanted == 0 || destination.is_held(now) {
                return;
            }
            // A connection that can not send would be closed for one that waits, and that one for it, without end.
            if destination.waits.body {
                return;
            }
            if !self.may_start() {
                self.wait_to_settle(key);
                return;
            }
            // In retry mode one connection probes, until its EHLO succeeds.
            let probing = destination.retry.until.is_some();
            if destination.in_doubt && destination.opening > 0 {
                return;
            }
            let allowed = if probing { 1 } else { destination.cohort.allowed };
            if destination.connections >= allowed
                || destination.cohort.hold_until.is_some_and(|until| until > now)
            {
                return;
            }
            // Its turn came after it waited: a route that ran out meanwhile serves once more, or it would go to
            // the end of the line again and again.
            let called = self.waiting.total_called == Some(key);
            let grace = if called { ROUTE_GRACE } else { Duration::ZERO };
            if destination.route_within(now, grace).is_none() {
                if self.resolver_rests.is_none_or(|until| until <= now) {
                    self.look_up_if_possible(key);
                }
                return;
            }
            if self.is_resting(now, destination.queue) {
                return;
            }
            if !self.take_permits(key) {
                return;
            }
            self.connect(now, key);
        }
    }

    fn look_up_if_possible(&mut self, key: DestinationKey) {
        let has_fresh = self.has_fresh(key);
        let Some(destination) = self.destinations.get_mut(key) else { return };
        if matches!(destination.route, RouteState::LookingUp) {
            return;
        }
        if self.looking_up >= self.bounds.look_ups {
            if !destination.waits.look_up {
                destination.waits.look_up = true;
                self.waiting.look_up.push(key, has_fresh);
            }
            return;
        }
        let Some(queue) = self.queues.get(destination.queue) else { return };
        destination.route = RouteState::LookingUp;
        self.looking_up += 1;
        self.commands.push_back(Command::Resolve {
            destination: key,
            domain: destination.domain.clone(),
            source: queue.source.clone(),
            settings: queue.settings.clone(),
            freshness: Freshness::Cached,
        });
    }

    fn has_fresh(&self, key: DestinationKey) -> bool {
        let Some(destination) = self.destinations.get(key) else { return false };
        destination.lanes.iter().filter_map(|&lane| self.lanes.get(lane)).any(|lane| !lane.fresh.is_empty())
    }

    /// All permits of one connection, or none and a place among those that wait.
    fn take_permits(&mut self, key: DestinationKey) -> bool {
        let has_fresh = self.has_fresh(key);
        let Some(destination) = self.destinations.get_mut(key) else { return false };
        let Some(queue) = self.queues.get_mut(destination.queue) else { return false };
        // A destination that gives a permit back does not take it again before those that wait.
        let in_turn = self.waiting.total.len() == 0 || self.waiting.total_called == Some(key);
        if self.open >= self.policy.max_connections() as usize || !in_turn {
            if !destination.waits.total {
                destination.waits.total = true;
                self.waiting.total.push(key, has_fresh);
            }
            return false;
        }
        if !queue.has_permit() {
            if !destination.waits.queue {
                destination.waits.queue = true;
                queue.waiters.push_back(key);
            }
            return false;
        }
        queue.connections += 1;
        destination.connections += 1;
        self.open += 1;
        self.waiting.total_called = None;
        true
    }

    /// Opens a connection; the permits are taken.
    fn connect(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get(key) else { return };
        let Some(route) = destination.route_within(now, ROUTE_GRACE).cloned() else { return };
        let queue = destination.queue;
        let candidates = self.candidates(now, queue, &route);
        let id = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let Some(attempt) = Attempt::new(candidates) else {
            self.give_back_permits(key);
            let message = "the hosts have no address of a family this source can send from";
            let diagnosis = engine_diagnosis(Stage::Dns, Failed::NoRouteForFamily, message);
            self.fail_step(now, key, None, diagnosis);
            return;
        };
        if let Some(destination) = self.destinations.get_mut(key) {
            destination.opening += 1;
        }
        self.connections.insert(
            id,
            Connection {
                destination: key,
                attempt,
                state: State::Opening,
                used: 0,
                completed: 0,
                has_idled: false,
                retired: false,
                tls: None,
                timer: None,
            },
        );
        self.open_current(id);
    }

    /// Addresses by preference, hosts of one preference in random order (RFC 5321 §5.1), dead ones last.
    fn candidates(&mut self, now: Timestamp, queue: super::QueueKey, route: &Arc<Route>) -> Vec<Candidate> {
        let Some(queue) = self.queues.get(queue) else { return Vec::new() };
        let source = queue.source.clone();
        let policy = self.policy.clone();
        let can_reach = |peer: &SocketAddr| match policy.source(&source) {
            Some(source) if source.ipv4().is_some() || source.ipv6().is_some() => {
                local_address(source, peer.ip()).is_some()
            }
            _ => true,
        };
        let (mut alive, mut dead) = (Vec::new(), Vec::new());
        for hosts in &route.preferences {
            let mut order: Vec<_> = hosts.iter().collect();
            self.rng.shuffle(&mut order);
            for host in order {
                let start = self.rng.usize(..host.addresses.len().max(1));
                let rotated = host.addresses.iter().cycle().skip(start).take(host.addresses.len());
                for &peer in rotated.filter(|peer| can_reach(peer)) {
                    let list = if self.health.is_dead(now, &source, peer) { &mut dead } else { &mut alive };
                    list.push(Candidate { host: host.name.clone(), peer });
                }
            }
        }
        alive.append(&mut dead);
        alive.truncate(MOST_CANDIDATES);
        alive
    }

    /// When the destination wants to be looked at again by itself.
    fn arm_destination(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let resting =
            self.queues.get(destination.queue).and_then(|queue| self.resting.get(&queue.source)).copied();
        let refusal = destination.refusal.as_ref().map(|&(_, until)| until);
        let waits =
            [destination.retry.until, destination.cohort.hold_until, resting, refusal, self.resolver_rests];
        let next = waits.into_iter().flatten().filter(|&at| at > now).min();
        self.timers.arm(&mut destination.timer, next, TimerOwner::Destination(key));
    }

    fn remove_destination_if_done(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get(key) else { return };
        let done = destination.lanes.is_empty()
            && destination.connections == 0
            && !matches!(destination.route, RouteState::LookingUp)
            && !destination.claiming
            && !destination.is_held(now);
        if !done {
            return;
        }
        self.forget_state(key);
        let Some(mut destination) = self.destinations.remove(key) else { return };
        self.timers.arm(&mut destination.timer, None, TimerOwner::Destination(key));
        self.destination_keys.remove(&(destination.domain.clone(), destination.queue));
        if let Some(queue) = self.queues.get_mut(destination.queue) {
            queue.destinations -= 1;
            if queue.destinations == 0
                && let Some(queue) = self.queues.remove(destination.queue)
            {
                self.queue_keys.remove(&(queue.name, queue.source));
            }
        }
    }

    fn close_idle(&mut self, key: DestinationKey) {
        let Some(destination) = self.destinations.get(key) else { return };
        let idle: Vec<_> = destination.idle.iter().map(|&(_, id)| id).collect();
        idle.into_iter().for_each(|id| self.close(id));
    }
}

/// How long a source rests that this machine could not send from.
pub(super) const SOURCE_REST: Duration = Duration::from_secs(30);

/// The source's address of the peer's family.
pub(super) fn local_address(source: &Source, peer: IpAddr) -> Option<IpAddr> {
    match peer {
        IpAddr::V4(_) => source.ipv4().map(IpAddr::V4),
        IpAddr::V6(_) => source.ipv6().map(IpAddr::V6),
    }
}
