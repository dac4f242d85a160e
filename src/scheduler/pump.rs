//! What a destination does next: claim, look up, connect, send, or wait for what is missing.

use std::net::IpAddr;
use std::time::Duration;

use super::command::{Command, Outgoing};
use super::destination::{Destination, RouteState, Waits};
use super::event::Content;
use super::fault::Fault;
use super::placement::Site;
use super::rare::AtRest;
use super::session::{InTransaction, State};
use super::timers::earliest;
use super::window::WindowItem;
use super::{ConnectionId, DestinationKey, Scheduler, TimerOwner};
use crate::clock::Timestamp;
use crate::control::Selector;
use crate::dns::Freshness;
use crate::policy::Source;
use crate::storage::{BodyKey, Envelope, ItemId, Recipient};
use crate::transport::TransactionDsn;

/// Lanes looked at to see whether one is starved, or has mail.
pub(super) const LANES_LOOKED_AT: usize = 16;
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
        if destination.has_work() {
            let work = &*destination.work;
            let claims = !work.hungry.is_empty() || !work.expiring.is_empty();
            let (refuses, wants_fresh) = (destination.refusal.is_some(), work.wants_fresh);
            if refuses {
                self.refuse_all(now, key);
            }
            if wants_fresh {
                self.look_up_afresh(now, key);
            }
            if claims {
                self.claim_if_wanted(now, key);
            }
            self.send_over_idle(now, key);
            self.connect_if_wanted(now, key);
            self.drop_unused_grant(now, key);
        } else if destination.work.waits.turn.is_some() && !destination.site.is_shared() {
            self.forget_turn(key);
        }
        self.rest_or_remove(now, key);
    }

    /// While DNS or the hosts say that no mail is taken, what is due bounces.
    fn refuse_all(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let Some(refusal) = destination.refusal.clone() else { return };
        if refusal.until <= now {
            destination.refusal = None;
            return;
        }
        while let Some(id) = self.draw(now, key, |_| true) {
            if refusal.counts {
                self.bounce_or_hold(now, key, id, &refusal.diagnosis);
            } else {
                self.bounce_item(now, id, &refusal.diagnosis);
            }
        }
    }

    fn claim_if_wanted(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get(key) else { return };
        if destination.work.claiming {
            return;
        }
        if self.claims.len() >= self.bounds.claims {
            if let Some(destination) = self.destinations.get_mut(key)
                && !destination.work.waits.claim
            {
                destination.work.waits.claim = true;
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
        let free = self.window.room(self.bounds.window);
        // Half empty: claims are made in lots.
        let wants = !self.is_held(now, key)
            && !destination.is_asking()
            && !self.is_blocked(now, key)
            && (destination.work.claimed <= bound / 2 || self.is_starved(destination));
        let room = if !wants || destination.work.hungry.is_empty() {
            0
        } else if free > 0 {
            bound.saturating_sub(destination.work.claimed).min(free)
        } else if destination.work.connections > 0 {
            bound.min(GUARANTEED_WINDOW).saturating_sub(destination.work.claimed)
        } else {
            self.wait_for_window(key);
            0
        };
        let Some(destination) = self.destinations.get(key) else { return };
        if room > 0 || !destination.work.expiring.is_empty() {
            self.claim(now, key, room);
        }
    }

    /// A lane with due mail has none of it at hand.
    fn is_starved(&self, destination: &Destination) -> bool {
        let hungry = destination.work.hungry.iter().filter_map(|&lane| self.lanes.get(lane));
        hungry.take(LANES_LOOKED_AT).any(|lane| lane.work.hungry && lane.work.claimed == 0)
    }

    fn wait_for_window(&mut self, key: DestinationKey) {
        if let Some(destination) = self.destinations.get_mut(key)
            && !destination.work.waits.window
        {
            destination.work.waits.window = true;
            self.waiting.window.push_back(key);
        }
    }

    /// Mail of it could not be sent now even if it were at hand, and there is some at hand.
    fn is_blocked(&self, now: Timestamp, key: DestinationKey) -> bool {
        self.destinations.get(key).is_some_and(|destination| {
            let waits = &destination.work.waits;
            // One at its limit waits for more connections and sends over those it has.
            let to_connect =
                !waits.connect.is_empty() || waits.look_up || self.is_resting(now, destination.queue);
            let to_send = waits.body.is_some() || !waits.rate.is_empty();
            destination.work.ready > 0 && (to_send || to_connect && destination.work.connections == 0)
        })
    }

    fn is_resting(&self, now: Timestamp, queue: super::QueueKey) -> bool {
        if self.resting.is_empty() {
            return false;
        }
        let source = self.queues.get(queue).map(|queue| &queue.source);
        source.and_then(|source| self.resting.get(source)).is_some_and(|&until| until > now)
    }

    fn send_over_idle(&mut self, now: Timestamp, key: DestinationKey) {
        loop {
            let Some(destination) = self.destinations.get(key) else { return };
            if destination.work.ready == 0 || !destination.work.waits.rate.is_empty() {
                return;
            }
            // The one used last: the others may go.
            let Some(&(_, connection)) = destination.work.idle.last() else { return };
            if self.is_held(now, key) {
                return;
            }
            // Its sessions lead to where the mail went when DNS was asked. That may have changed.
            let is_known = destination.route_now(now).is_some();
            let can_ask = self.resolver_rests.is_none_or(|until| until <= now);
            if !is_known && !destination.site.is_shared() && can_ask {
                self.look_up_if_possible(key, Freshness::Cached);
                return;
            }
            if !self.may_start() {
                self.wait_to_settle(key);
                return;
            }
            let has_suspects = self.destinations.get(key).is_some_and(Destination::has_suspects);
            let drawn = if has_suspects { self.draw_seeker(now, key) } else { None };
            if has_suspects && drawn.is_none() && self.ends_for_seekers(now, key, connection) {
                return self.close(connection);
            }
            let not_apart = |item: &WindowItem| item.unfit.is_none();
            let drawn = drawn.or_else(|| Some((connection, self.draw(now, key, not_apart)?)));
            let Some((connection, item)) = drawn else { return };
            if !self.start_transaction(now, key, connection, item) {
                return;
            }
        }
    }

    fn wait_to_settle(&mut self, key: DestinationKey) {
        if let Some(destination) = self.destinations.get_mut(key)
            && !destination.work.waits.settle
        {
            destination.work.waits.settle = true;
            self.waiting.settle.push_back(key);
        }
    }

    /// The next item to try, by priority, lane and freshness in turns; then one of those that stand apart and `may` go.
    pub(super) fn draw(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        may: impl Fn(&WindowItem) -> bool,
    ) -> Option<ItemId> {
        while let Some((lane_key, stamp)) = self.destinations.get_mut(key)?.work.ring.pop() {
            let Some(lane) = self.lanes.get_mut(lane_key).filter(|lane| lane.ring_stamp == stamp) else {
                continue;
            };
            if lane.until.is_some_and(|until| until <= now) {
                let domain = lane.domain;
                lane.work.in_ring = false;
                self.send_home(now, domain);
                continue;
            }
            let mut drawn = None;
            if let Some(id) = lane.draw()
                && let Some(item) = self.window.get_mut(id)
            {
                item.ready = false;
                drawn = Some(id);
            }
            let destination = self.destinations.get_mut(key)?;
            if lane.has_ready() {
                destination.work.ring.push(lane.key.priority, lane_key, stamp);
            } else {
                lane.work.in_ring = false;
            }
            if drawn.is_some() {
                destination.work.ready -= 1;
                return drawn;
            }
        }
        loop {
            let is_next = |&id: &ItemId| self.window.get(id).is_some_and(&may);
            let id = self.destinations.get(key)?.work.doubts.suspects.iter().copied().find(is_next)?;
            if self.take_suspect(now, key, id)? {
                return Some(id);
            }
        }
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
            self.overdue(now, id);
            return true;
        }
        if self.hold_if_fused(now, key, id) {
            return true;
        }
        let Some(item) = self.window.get(id) else { return true };
        let octets = usize::try_from(item.item.envelope.size).unwrap_or(usize::MAX);
        let room = self.bounds.transit_octets;
        if !self.transit.admits(key, octets, room) {
            let fresh = item.is_fresh();
            self.stand_in_line(id, fresh, true);
            if let Some(destination) = self.destinations.get_mut(key)
                && destination.work.waits.body.is_none()
            {
                destination.work.waits.body = Some(self.transit.wait(key, octets, room));
            }
            return false;
        }
        let most = self.recipients_per_transaction(item.lane);
        let of_server =
            self.connections.get(connection_id).and_then(|connection| connection.opened.limits.recipients);
        let most = of_server.map_or(most, |limit| most.min(limit.get() as usize));
        let most = if item.singly { 1 } else { most };
        let wanted = u32::try_from(item.item.recipients.len().min(most)).unwrap_or(u32::MAX);
        let fresh = item.is_fresh();
        let Some(recipients) = self.acquire_rate(now, key, wanted, Some(connection_id)) else {
            self.stand_in_line(id, fresh, true);
            return false;
        };
        let Some(item) = self.window.get(id) else { return true };
        let Some(queue) = self.queue_of(key) else { return true };
        let (queue, chunking) = (queue.name.clone(), queue.settings.use_chunking);
        let envelope = item.item.envelope.clone();
        let chosen = item.item.recipients.iter().take(recipients as usize);
        let recipients = chosen.clone().map(|recipient| recipient.index).collect();
        let dsn = dsn_of(&envelope, chosen.clone());
        let addresses = chosen.map(|recipient| recipient.address.clone()).collect();
        let (lane_key, deadline) = (item.lane, item.deadline);
        let policy_domain = self.policy_domain(key, item.lane);
        self.unlist_idle(connection_id);
        let Some(destination) = self.destinations.get_mut(key) else { return true };
        destination.work.grant = None;
        let Some(connection) = self.connections.get_mut(connection_id) else { return true };
        let host_is_authentic = connection.is_authentic();
        if let State::Idle { since } = connection.state {
            connection.has_idled |= since < now;
            destination.work.idle.remove(&(since, connection_id));
        }
        connection.state = State::Busy(InTransaction { item: id, recipients, octets, begun: now });
        connection.used += 1;
        let (host, tlsa) = (connection.current.host.clone(), connection.current.tlsa.clone());
        self.session_timers.arm(&mut connection.timer, None, connection_id);
        self.transit.begin(octets, room);
        self.busy += 1;
        if let Some(lane) = self.lanes.get_mut(lane_key) {
            lane.work.deadlines.remove(&(deadline, id));
            lane.work.pending += 1;
        }
        let content = self.window.begin(id).map_or(Content::Stored(BodyKey(envelope.id)), Content::Held);
        let transaction = Box::new(Outgoing {
            message: envelope.id,
            queue,
            host,
            reverse_path: envelope.reverse_path.clone(),
            recipients: addresses,
            content,
            eight_bit: envelope.eight_bit,
            chunking,
            require_tls: envelope.require_tls,
            smtputf8: envelope.smtputf8,
            host_is_authentic,
            dsn,
            policy_domain,
            tlsa,
        });
        self.commands.push_back(Command::Transact { connection: connection_id, transaction });
        true
    }

    fn queue_of(&self, key: DestinationKey) -> Option<&super::Queue> {
        self.queues.get(self.destinations.get(key)?.queue)
    }

    fn connect_if_wanted(&mut self, now: Timestamp, key: DestinationKey) {
        loop {
            let Some(destination) = self.destinations.get(key) else { return };
            let opening_for_seekers = if destination.work.opening_for_seekers.is_some() {
                self.opening_for_seekers(key)
            } else {
                0
            };
            let opening = destination.work.opening.saturating_sub(opening_for_seekers);
            let usable = opening + destination.work.idle.len();
            let has_suspects = destination.has_suspects();
            let seeking = if has_suspects { self.seeking(key) } else { 0 };
            let wanted = destination.work.ready.saturating_sub(seeking + usable);
            let seeks = || has_suspects && self.seeks_other_host(key);
            if wanted == 0 && !seeks() || self.is_held(now, key) {
                // A shared one may just have sent its mail home to be looked up.
                if !destination.site.is_shared() {
                    self.forget_turn(key);
                }
                return;
            }
            // A connection that can not send would be closed for one that waits, and that one for it, without end.
            if destination.work.waits.body.is_some() || !destination.work.waits.rate.is_empty() {
                return;
            }
            self.keep_turn(key);
            let Some(destination) = self.destinations.get(key) else { return };
            if !self.may_start() {
                self.wait_to_settle(key);
                return;
            }
            // In retry mode one connection probes, until its EHLO succeeds.
            let probing = destination.retry.until.is_some();
            // One finds out whether it works, before others are opened.
            if opening > 0 && (destination.work.in_doubt || destination.work.working.is_empty()) {
                return;
            }
            let allowed = if probing { 1 } else { destination.cohort.allowed() };
            if destination.work.connections >= allowed
                || destination.cohort.hold_until.is_some_and(|until| until > now)
            {
                return;
            }
            if destination.work.waits.turn.is_none() && self.stands_for_connection(key) {
                // A look-up could only cost it its place.
                return;
            }
            if destination.route_now(now).is_none() {
                if destination.site.is_shared() {
                    self.send_stale_home(now, key);
                    return;
                }
                if self.resolver_rests.is_none_or(|until| until <= now) {
                    self.look_up_if_possible(key, Freshness::Cached);
                }
                return;
            }
            if self.is_resting(now, destination.queue) {
                return;
            }
            if self.acquire_rate(now, key, 1, None).is_none() || !self.seek_session(now, key) {
                return;
            }
            self.send_over_idle(now, key);
        }
    }

    /// Called from a line it keeps its place there until it comes to a connection, or wants none.
    fn keep_turn(&mut self, key: DestinationKey) {
        if let Some(call) = self.called.filter(|call| call.destination == key)
            && let Some(destination) = self.destinations.get_mut(key)
        {
            destination.work.waits.turn = Some(call.place);
        }
    }

    pub(super) fn forget_turn(&mut self, key: DestinationKey) {
        if let Some(destination) = self.destinations.get_mut(key)
            && destination.work.waits.turn.is_some()
        {
            destination.work.waits.turn = None;
        }
    }

    /// What DNS said may bounce mail: it is asked once more, even while the destination waits.
    fn look_up_afresh(&mut self, now: Timestamp, key: DestinationKey) {
        let wants = self.destinations.get(key).is_some_and(|d| !d.work.waits.look_up);
        if wants && self.resolver_rests.is_none_or(|until| until <= now) {
            self.look_up_if_possible(key, Freshness::Fresh);
        }
    }

    fn look_up_if_possible(&mut self, key: DestinationKey, freshness: Freshness) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        if matches!(destination.route, RouteState::LookingUp) {
            return;
        }
        if self.looking_up >= self.bounds.look_ups {
            if !destination.work.waits.look_up {
                destination.work.waits.look_up = true;
                let has_fresh = self.has_fresh(key);
                self.waiting.look_up.push(key, has_fresh);
            }
            return;
        }
        let Some(queue) = self.queues.get(destination.queue) else { return };
        let freshness =
            if std::mem::take(&mut destination.work.wants_fresh) { Freshness::Fresh } else { freshness };
        destination.work.asked = freshness;
        destination.route = RouteState::LookingUp;
        self.looking_up += 1;
        self.commands.push_back(Command::Resolve {
            destination: key,
            domain: destination.domain.clone(),
            source: queue.source.clone(),
            settings: queue.settings.clone(),
            freshness,
        });
    }

    /// When the destination wants to be looked at again by itself. One that is done with is removed.
    fn rest_or_remove(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        destination.work.tidy();
        let waits_for_a_time = destination.retry.until.is_some()
            || destination.cohort.hold_until.is_some()
            || destination.kept_until.is_some()
            || destination.refusal.is_some()
            || self.resolver_rests.is_some()
            || !self.resting.is_empty();
        let next = if waits_for_a_time {
            let resting =
                self.queues.get(destination.queue).and_then(|queue| self.resting.get(&queue.source));
            let waits = [
                destination.retry.until,
                destination.cohort.hold_until,
                destination.kept_until,
                resting.copied(),
                destination.refusal.as_ref().map(|refusal| refusal.until),
                self.resolver_rests,
            ];
            let later = waits.into_iter().map(|at| at.filter(|&at| at > now));
            later.fold(None, earliest)
        } else {
            // Mostly there is nothing of all that.
            None
        };
        self.timers.arm(&mut destination.timer, next, TimerOwner::Destination(key));
        let done = destination.lanes.is_empty()
            && destination.work.connections == 0
            && !matches!(destination.route, RouteState::LookingUp)
            && !destination.work.claiming
            && !destination.is_held(now)
            && destination.kept_until.is_none_or(|until| until <= now);
        if !done {
            return;
        }
        self.drop_state(key);
        let Some(mut destination) = self.destinations.remove(key) else { return };
        self.timers.arm(&mut destination.timer, None, TimerOwner::Destination(key));
        let Waits { connect, rate, .. } = destination.work.take().waits;
        connect.into_iter().chain(rate).for_each(|place| self.limits.leave_line(place));
        if let Some(queue) = self.queues.get_mut(destination.queue) {
            queue.destinations.remove(&key);
        }
        self.remove_queue_if_done(now, destination.queue);
    }

    /// A queue without mail stays while something of it is not as the settings have it, or was counted.
    pub(super) fn remove_queue_if_done(&mut self, now: Timestamp, key: super::QueueKey) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        if !queue.destinations.is_empty() {
            return;
        }
        if queue.mode.held_until.is_none() && queue.mode.held_steps > 0 {
            // As a destination without mail forgets its own.
            queue.mode.held_steps = 0;
            queue.unsaved = true;
            self.changed_queues.push(key);
        }
        if !queue.mode.is_at_rest() {
            return;
        }
        if let Some(until) = queue.remembers_until().filter(|&until| until > now) {
            self.timers.arm(&mut queue.timer, Some(until), TimerOwner::Queue(key));
            return;
        }
        self.write_state();
        if let Some(mut queue) = self.queues.remove(key) {
            self.timers.arm(&mut queue.timer, None, TimerOwner::Queue(key));
            self.limits.remove(queue.slot);
        }
    }

    /// Nothing of it may be tried now.
    pub(super) fn is_held(&self, now: Timestamp, key: DestinationKey) -> bool {
        self.destinations.get(key).is_some_and(|destination| {
            destination.is_held(now)
                || self.queues.get(destination.queue).is_some_and(|queue| queue.is_held(now))
                || !self.pauses.is_empty() && self.is_paused_here(destination)
        })
    }

    fn is_paused_here(&self, destination: &Destination) -> bool {
        let queue = self.queues.get(destination.queue);
        let pause = queue.and_then(|queue| self.pauses.of_queue(&queue.name, &queue.source));
        self.pause_of_home(destination).is_some() || pause.is_some() && !Fault::SentWhilePaused.is_there()
    }

    /// What pauses a domain: its mail lies at home meanwhile.
    pub(super) fn pause_of_home(&self, destination: &Destination) -> Option<Selector> {
        if !matches!(destination.site, Site::Domain(_)) {
            return None;
        }
        self.pauses.of_domain(&destination.domain)
    }

    pub(super) fn close_idle(&mut self, key: DestinationKey) {
        let Some(destination) = self.destinations.get(key) else { return };
        let idle: Vec<_> = destination.work.idle.iter().map(|&(_, id)| id).collect();
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

/// What is to be reported of these, if anybody asked for anything.
fn dsn_of<'a>(
    envelope: &Envelope,
    recipients: impl Iterator<Item = &'a Recipient> + Clone,
) -> Option<Box<TransactionDsn>> {
    if envelope.dsn.is_none() && recipients.clone().all(|recipient| recipient.dsn.is_none()) {
        return None;
    }
    let message = envelope.dsn.as_deref().cloned().unwrap_or_default();
    let recipients = recipients.map(|recipient| recipient.dsn.as_deref().cloned().unwrap_or_default());
    Some(Box::new(TransactionDsn { message, recipients: recipients.collect() }))
}
