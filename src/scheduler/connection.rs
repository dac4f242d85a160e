//! Connections: opened, refused, idle, closed; and what their failures mean for their destination.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::command::Command;
use super::destination::{Destination, Refusal, RouteState};
use super::event::Opened;
use super::fault::Fault;
use super::mta_sts::{Demander, connect_diagnosis, leads};
use super::outcome::KEPT_OF_REPLIES;
use super::placement::Site;
use super::pump::{SOURCE_REST, local_address};
use super::record::{Failed, Reading, engine_diagnosis, route_diagnosis};
use super::rules::{About, Counted};
use super::session::{Candidate, State};
use super::{ConnectionId, DestinationKey, LaneKey, Scheduler};
use crate::clock::Timestamp;
use crate::dns::{DnsErrorKind, Freshness, Route, RouteFailure, RouteFailureKind, RouteKind};
use crate::event::{DeliveryEvent, Diagnosis, Failure, LocalTrouble, QueueDeferred, Reason};
use crate::policy::{Fate, RuleDecision, with_jitter};
use crate::reply::{Reply, Stage};
use crate::transport::{ConnectError, EndCause, Target};

/// When DNS is asked past any cache again that did not answer, where no clock runs.
const ASKED_AGAIN: Duration = Duration::from_secs(60);

impl Scheduler {
    /// Asks for a connection to the attempt's current address.
    pub(super) fn open_current(&mut self, id: ConnectionId) {
        let Some(key) = self.connections.get(id).map(|connection| connection.destination) else { return };
        let Some(wish) = self.wish_of(key) else { return };
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Some(destination) = self.destinations.get(key) else { return };
        let Some(queue) = self.queues.get(destination.queue) else { return };
        let source = self.policy.source(&queue.source);
        connection.wish = wish;
        connection.tlsa.clone_from(&connection.current.tlsa);
        let Some(connection) = self.connections.get(id) else { return };
        let candidate = &connection.current;
        // While it is being looked up it is not known what the session is held to.
        let route = destination.known_route();
        let is_by_name = |route: &&Arc<Route>| matches!(route.kind, RouteKind::Mx | RouteKind::Implicit);
        let policy_domain = route.filter(is_by_name).and_then(|_| self.opens_for(key));
        let target = Box::new(Target {
            peer: candidate.peer,
            host: candidate.host.clone(),
            local: source.and_then(|source| local_address(source, candidate.peer.ip())),
            ehlo: source.and_then(|source| source.ehlo()).unwrap_or(&self.hostname).clone(),
            domain: policy_domain.as_ref().map(|domain| domain.name.clone()),
            queue: queue.name.clone(),
            source: queue.source.clone(),
            protocol: connection.wish.protocol,
            tls: connection.wish.tls,
            tlsa: candidate.tlsa.clone(),
            credentials: connection.wish.credentials.clone(),
            timeouts: self.timeouts.clone(),
            mta_sts: route.and_then(|route| route.mta_sts.clone()),
        });
        self.commands.push_back(Command::Connect { connection: id, target, policy_domain });
    }

    pub(super) fn on_resolved(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        result: Result<Arc<Route>, RouteFailure>,
    ) {
        self.looking_up = self.looking_up.saturating_sub(1);
        self.mark(key);
        let Some(destination) = self.destinations.get_mut(key) else { return };
        destination.route = RouteState::Unknown;
        let asked = std::mem::replace(&mut destination.work.asked, Freshness::Cached);
        if std::mem::take(&mut destination.work.outdated) {
            destination.work.wants_fresh |= asked == Freshness::Fresh;
            return;
        }
        match result {
            Ok(route) => {
                self.release_if_policy_changed(key, &route);
                self.note_policy(now, key, asked, route.policy_unknown);
                if !self.note_found(now, key, &route, asked) {
                    self.place(now, key, &route);
                }
            }
            Err(failure) if matches!(failure.kind, RouteFailureKind::LookUp(DnsErrorKind::Unreachable)) => {
                self.rest_resolver(now, failure.message);
                self.seek_policy_again(now, key, asked);
            }
            Err(failure) if failure.kind == RouteFailureKind::MtaSts => {
                self.note_nothing_permitted(key, failure.kind);
                // Asked for before its time, the clock runs already.
                if !self.is_held(now, key) {
                    self.fail_step(now, key, None, route_diagnosis(&failure));
                } else {
                    self.store_state_if_stored(key);
                }
                self.note_policy(now, key, asked, failure.policy_unknown);
                self.asked_in_vain(now, key, asked);
            }
            Err(failure) if failure.is_permanent() => self.note_not_found(now, key, &failure),
            Err(failure) => {
                if failure.kind == RouteFailureKind::Dane {
                    self.note_nothing_permitted(key, failure.kind);
                }
                self.note_policy(now, key, asked, true);
                // Where the clock runs already, what it runs for is to be told when the mail expires.
                if asked != Freshness::Fresh || !(self.is_held(now, key) && self.seeks_policy(key)) {
                    self.fail_step(now, key, None, route_diagnosis(&failure));
                }
                self.asked_in_vain(now, key, asked);
            }
        }
        self.review_lanes(now, key);
    }

    /// A look-up past any cache, for mail whose deadline has come, did not say what was asked: it waits for the clock like all else.
    fn asked_in_vain(&mut self, now: Timestamp, key: DestinationKey, asked: Freshness) {
        if asked == Freshness::Fresh
            && let Some(destination) = self.destinations.get_mut(key)
        {
            let clock = destination.retry.until.filter(|&until| until > now);
            destination.no_fresh_before = Some(clock.unwrap_or(now + ASKED_AGAIN));
        }
    }

    /// A home's look-up has come back: its lanes with mail that ends for what DNS says, or does not say, wait for the next.
    fn review_lanes(&mut self, now: Timestamp, key: DestinationKey) {
        let waits_for_dns = |d: &&Destination| matches!(d.site, Site::Domain(_)) || d.missing.is_some();
        let Some(destination) = self.destinations.get(key).filter(waits_for_dns) else { return };
        let asks =
            |lane: &LaneKey| self.lanes.get(*lane).is_some_and(|lane| self.asks_from(now, lane).is_some());
        let lanes: SmallVec<[LaneKey; 1]> = destination.lanes.iter().copied().filter(asks).collect();
        lanes.into_iter().for_each(|lane| self.review_lane(now, lane));
    }

    /// Sessions to addresses that are not the destination's any more take no further mail.
    pub(super) fn retire_strays(&mut self, key: DestinationKey, route: &Route) {
        let Some(destination) = self.destinations.get(key) else { return };
        if destination.work.working.is_empty() {
            return;
        }
        let working: Vec<_> = destination.work.working.iter().copied().collect();
        let wish = self.wish_of(key);
        for id in working {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            if wish.as_ref() == Some(&connection.wish) && leads(route, connection) {
                connection.current.vouched_for = route.has_authentic_hosts();
                continue;
            }
            self.retire(id);
        }
    }

    pub(super) fn on_connected(&mut self, now: Timestamp, id: ConnectionId, opened: Opened) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.opened = opened;
        let key = connection.destination;
        let peer = connection.current.peer;
        if let Some(destination) = self.destinations.get_mut(key) {
            destination.work.opening = destination.work.opening.saturating_sub(1);
            destination.session_opened(id);
            if let Some(queue) = self.queues.get(destination.queue) {
                self.health.worked(&queue.source, peer);
            }
        }
        self.note_greeted(now, key);
        self.make_idle(now, id);
        self.mark(key);
    }

    /// The session waits for work, or ends if it may not take any.
    pub(super) fn make_idle(&mut self, now: Timestamp, id: ConnectionId) {
        let Some(key) = self.connections.get(id).map(|connection| connection.destination) else { return };
        let wish = self.wish_of(key);
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let Some(queue) = self.queues.get(destination.queue) else { return };
        // Its attempt may be older than what bars the host, or than the host's TLSA records.
        let is_enforced = destination.is_enforced();
        let demands =
            |route: &Route| is_enforced || route.hosts.iter().any(|host| host.barred || host.tlsa.is_some());
        let is_barred = destination.is_barred
            || destination.known_route().is_some_and(|route| demands(route) && !leads(route, connection));
        if let Some(route) = destination.known_route() {
            connection.current.vouched_for = route.has_authentic_hosts() && leads(route, connection);
        }
        let one = u32::from(Fault::OneMessageMore.is_there());
        let most = [
            queue.settings.max_msg_per_connection,
            connection.opened.limits.transactions.map(NonZeroU32::get),
        ];
        let used_up = most.into_iter().flatten().any(|most| connection.used >= most.saturating_add(one))
            // A limit was lowered, or something else is wished for now.
            || connection.holds.iter().any(|&slot| self.limits.is_over(slot))
            || wish.as_ref() != Some(&connection.wish)
            || is_barred;
        connection.state = State::Idle { since: now };
        if used_up || connection.retired || self.shutting_down {
            self.close(id);
            return;
        }
        destination.work.idle.insert((now, id));
        self.newly_idle.push_back(id);
    }

    /// Ends an idle session. Its permits are given back once its socket is closed.
    pub(super) fn close(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let State::Idle { since } = connection.state else { return };
        self.unlist_idle(id);
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.state = State::Closing;
        self.limits.now_closing(&connection.holds);
        self.session_timers.arm(&mut connection.timer, None, id);
        if let Some(destination) = self.destinations.get_mut(connection.destination) {
            destination.work.idle.remove(&(since, id));
            destination.work.working.remove(&id);
        }
        self.commands.push_back(Command::Close { connection: id });
    }

    /// The socket is closed.
    pub(super) fn on_connection_gone(&mut self, now: Timestamp, id: ConnectionId) {
        self.unlist_idle(id);
        let Some(mut connection) = self.connections.remove(id) else { return };
        self.session_timers.arm(&mut connection.timer, None, id);
        let key = connection.destination;
        match &connection.state {
            State::Closing => self.limits.not_closing(&connection.holds),
            State::Busy(transaction) => {
                // Nobody says what became of its transaction, so nothing of it was sent.
                let (item, octets) = (transaction.item, transaction.octets);
                self.transaction_over(octets);
                self.back_in_line(now, item);
            }
            State::Opening | State::Idle { .. } | State::Between => {}
        }
        if let Some(destination) = self.destinations.get_mut(key) {
            destination.work.working.remove(&id);
            if let State::Idle { since } = connection.state {
                destination.work.idle.remove(&(since, id));
            }
            if matches!(connection.state, State::Opening) {
                destination.work.opening = destination.work.opening.saturating_sub(1);
            }
            destination.work.connections = destination.work.connections.saturating_sub(1);
            destination.forget_old_route(now);
        }
        self.open = self.open.saturating_sub(1);
        if Fault::ForgottenPermit.is_there() && matches!(connection.state, State::Opening) {
            connection.holds.pop();
        }
        connection.holds.iter().for_each(|&slot| self.limits.give_back(slot));
        self.mark(key);
    }

    pub(super) fn on_connect_failed(&mut self, now: Timestamp, id: ConnectionId, error: &ConnectError) {
        self.next_candidate(now, id, error.stage, &error.cause);
    }

    /// The current address did not take us: the next one, or the attempt has failed. The connection is opening.
    pub(super) fn next_candidate(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        stage: Stage,
        cause: &EndCause,
    ) {
        let Some(key) = self.connections.get(id).map(|connection| connection.destination) else { return };
        let decision = match cause {
            EndCause::Reply(reply) | EndCause::TlsRefused(reply) => {
                self.consult_on_connection(now, id, stage, reply)
            }
            _ => RuleDecision::default(),
        };
        let Some(connection) = self.connections.get_mut(id) else { return };
        let is_local = matches!(cause, EndCause::Local(_));
        let is_about_certificate = matches!(cause, EndCause::Certificate(..));
        let demander = match &connection.tlsa {
            // Where none of the records is usable they demand TLS, with any certificate.
            Some(set) if set.authenticates() || !is_about_certificate => Demander::Dane,
            _ if self.destinations.get(key).is_some_and(Destination::is_enforced) => Demander::MtaSts,
            _ => Demander::Nobody,
        };
        let code = match cause {
            // That our credentials are refused says nothing of the mail. Nor does what anybody on the way may have said, where TLS is
            // demanded.
            EndCause::Reply(reply) if stage != Stage::Auth && demander == Demander::Nobody => {
                Some(reply.code())
            }
            _ => None,
        };
        let failed = connection.current.clone();
        let attempt = &mut connection.attempt;
        attempt.all_521 &= code == Some(521);
        attempt.all_5xx &= code.is_some_and(|code| code >= 500);
        attempt.all_local &= is_local;
        attempt.all_ipv6 &= failed.peer.is_ipv6();
        // Of all that it met what waits for the policy counts: that is looked for before mail expires over it.
        let is_of_policy = |last: &(Candidate, Diagnosis)| last.1.reason == Reason::MtaSts;
        let is_over_policy = attempt.last.as_deref().is_some_and(is_of_policy);
        let is_last = !is_local || attempt.last.is_none() || attempt.all_local;
        let reading = Reading { classifier: self.policy.classifier(), host: &failed.host };
        let mut diagnosis = connect_diagnosis(stage, cause, demander, reading);
        if is_last && (!is_over_policy || diagnosis.reason == Reason::MtaSts) {
            diagnosis.rule = decision.rule().cloned();
            attempt.last = Some(Box::new((failed.clone(), diagnosis)));
        }
        match &decision.fate {
            Some((Fate::SkipMx, _)) => attempt.skip(&failed.host),
            Some((Fate::RetryRecipient, _)) => (attempt.all_521, attempt.all_5xx) = (false, false),
            Some((fate @ (Fate::BounceRecipient | Fate::BounceQueue), _)) => {
                let mut diagnosis = connect_diagnosis(stage, cause, demander, reading);
                diagnosis.rule = decision.rule().cloned();
                let fate = *fate;
                self.on_connection_gone(now, id);
                self.refuse_by_rule(now, key, fate, diagnosis);
                return;
            }
            None => {}
        }
        if !is_local
            && let Some(queue) =
                self.destinations.get(key).and_then(|destination| self.queues.get(destination.queue))
        {
            self.health.failed(now, &queue.source, failed.peer);
        }
        let queue = self.destinations.get(key).and_then(|destination| self.queues.get(destination.queue));
        if queue.is_some_and(|queue| queue.is_held(now)) {
            // A rule says so: no further host is tried from here, and there is no step.
            self.on_connection_gone(now, id);
            return;
        }
        if self.shutting_down || !self.open_next(now, id) {
            self.attempt_failed(now, id);
        }
    }

    /// No address took us.
    fn attempt_failed(&mut self, now: Timestamp, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let key = connection.destination;
        let Some(last) = connection.attempt.last.take() else { return };
        let (candidate, diagnosis) = *last;
        let attempt = &connection.attempt;
        let (all_local, all_521, all_5xx) = (attempt.all_local, attempt.all_521, attempt.all_5xx);
        let (no_ipv6, seeks) = (all_local && attempt.all_ipv6, attempt.seeks);
        self.on_connection_gone(now, id);
        if self.shutting_down {
            return;
        }
        if seeks && (no_ipv6 || !all_local) {
            self.seekers_failed(now, key, &candidate, &diagnosis);
            return;
        }
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let bounce_5xx =
            self.queues.get(destination.queue).is_some_and(|queue| queue.settings.bounce_upon_5xx_greeting);
        let others_work = !destination.work.working.is_empty();
        let retry = self.queues.get(destination.queue).map(|queue| queue.retry_after().interval(1));
        let retry = retry.unwrap_or(Duration::MAX);
        if no_ipv6 {
            // A machine without IPv6 is no reason for the source to rest: others have IPv4.
            let message = match diagnosis.failure {
                Failure::Engine(message) => message,
                Failure::Reply(reply) => reply.to_string(),
            };
            let diagnosis = engine_diagnosis(Stage::Connect, Failed::NoRouteForFamily, message);
            self.fail_step(now, key, Some(candidate), diagnosis);
        } else if all_local {
            let message = match diagnosis.failure {
                Failure::Engine(message) => message,
                Failure::Reply(reply) => reply.to_string(),
            };
            self.rest(now, key, message);
        } else if !others_work && (all_521 || (bounce_5xx && all_5xx)) {
            destination.refusal = Some(Box::new(Refusal::by_hosts(now, diagnosis)));
            self.mark(key);
        } else if others_work || destination.work.opening > 0 {
            // Others work, or may yet: while they are opening no further one is.
            destination.work.in_doubt = !others_work;
            destination.cohort.failed(now, retry);
            self.mark(key);
        } else if !self.is_held(now, key) {
            self.fail_step(now, key, Some(candidate), diagnosis);
        }
    }

    /// What the reply rules say of a refused connection. It is about no recipient: none was charged.
    fn consult_on_connection(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        stage: Stage,
        reply: &Reply,
    ) -> RuleDecision {
        let Some(connection) = self.connections.get(id) else { return RuleDecision::default() };
        let (key, host) = (connection.destination, connection.current.host.clone());
        let Some(domain) = self.destinations.get(key).map(|destination| destination.domain.clone()) else {
            return RuleDecision::default();
        };
        let about = About { domain: domain.as_str(), host: &host, stage, attempts: 0, age: Duration::ZERO };
        let decision = self.consult(now, key, reply, about, &mut Counted::default());
        self.apply_to_queue(now, key, &decision, reply);
        if let Some(interval) = &decision.retry_after
            && let Some(destination) = self.destinations.get_mut(key)
        {
            destination.work.doubts.next_interval = Some(interval.clone());
        }
        decision
    }

    /// This machine could not send: the source rests, nobody is charged, no step is taken.
    pub(super) fn rest(&mut self, now: Timestamp, key: DestinationKey, error: String) {
        let Some(queue) =
            self.destinations.get(key).and_then(|destination| self.queues.get(destination.queue))
        else {
            return;
        };
        let source = queue.source.clone();
        self.mark(key);
        if self.resting.get(&source).is_some_and(|&until| until > now) {
            return;
        }
        self.resting.insert(source.clone(), now + SOURCE_REST);
        let event = self.event_id(now);
        let trouble = LocalTrouble { event, time: now, source: Some(source), error };
        self.report(DeliveryEvent::LocalTrouble(trouble));
    }

    /// No name server could be reached: no look-up for a while, nobody is charged, no step is taken.
    fn rest_resolver(&mut self, now: Timestamp, error: String) {
        if self.resolver_rests.is_some_and(|until| until > now) {
            return;
        }
        self.resolver_rests = Some(now + SOURCE_REST);
        let event = self.event_id(now);
        let trouble = LocalTrouble { event, time: now, source: None, error };
        self.report(DeliveryEvent::LocalTrouble(trouble));
    }

    /// None of the destination's hosts could be used: it waits for its retry step, and its mail with it.
    pub(super) fn fail_step(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        candidate: Option<Candidate>,
        diagnosis: Diagnosis,
    ) {
        let random = self.rng.u64(..);
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let Some(queue) = self.queues.get(destination.queue) else { return };
        let clock = &mut destination.retry;
        clock.step = clock.step.saturating_add(1);
        let overridden = destination.work.doubts.next_interval.as_ref().map(|(interval, _)| *interval);
        let interval = overridden.unwrap_or_else(|| queue.retry_after().interval(clock.step));
        let is_rollup = queue.name.ends_with(".rollup");
        let forgets = Fault::RollupClockForgotten.is_there() && is_rollup;
        let interval = if forgets { Duration::from_secs(20) } else { interval };
        let until = now + with_jitter(interval, queue.settings.retry_jitter, random);
        clock.until = Some(until);
        let mut last = Box::new(diagnosis.clone());
        last.failure.shorten(KEPT_OF_REPLIES);
        clock.last = Some(last);
        destination.work.in_doubt = false;
        destination.work.suspended = None;
        destination.work.doubts.change(|doubts| {
            doubts.next_interval = None;
            doubts.skipped.clear();
        });
        destination.cohort.reset();
        let (name, source, domain) = (queue.name.clone(), queue.source.clone(), destination.domain.clone());
        let event = self.event_id(now);
        self.report(DeliveryEvent::QueueDeferred(QueueDeferred {
            event,
            time: now,
            queue: name,
            source,
            domain,
            mx: candidate.as_ref().map(|candidate| candidate.host.clone()),
            peer: candidate.map(|candidate| candidate.peer),
            diagnosis,
            next_attempt: until,
        }));
        self.store_state(key);
        self.clear_window_of(now, key, Some(until));
        self.watch_expiries(now, key);
        self.mark(key);
    }

    /// A held destination keeps nothing in the window. An item over which a session ended goes behind the others.
    pub(super) fn clear_window_of(&mut self, now: Timestamp, key: DestinationKey, until: Option<Timestamp>) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        destination.work.doubts.change(|doubts| doubts.suspects.clear());
        let lanes: Vec<_> = destination.lanes.iter().copied().collect();
        for lane_key in lanes {
            let Some(lane) = self.lanes.get_mut(lane_key) else { continue };
            lane.work.fresh.clear();
            lane.work.again.clear();
            let items: Vec<_> = lane.work.deadlines.iter().map(|&(_, id)| id).collect();
            for id in items {
                let suspect = self.window.get(id).is_some_and(|item| item.suspect);
                self.put_back(now, id, until.filter(|_| suspect));
            }
        }
    }
}
