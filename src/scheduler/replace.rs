//! A policy put in place of another while mail is under way. New limits bind at once; nothing is cut.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::destination::RouteState;
use super::placement::Site;
use super::session::Connection;
use super::{ConnectionId, DestinationKey, Scheduler};
use crate::clock::Timestamp;
use crate::policy::Policy;

impl Scheduler {
    /// Every queue is given its new settings now; destinations and their mail are looked at in slices.
    pub(super) fn on_policy(&mut self, now: Timestamp, policy: Policy) {
        self.timeouts = Arc::new(policy.smtp().timeouts);
        self.policy = policy;
        self.common_settings.clear();
        self.limits.set_limit(self.total, self.policy.max_connections() as usize);
        let counted: BTreeSet<Arc<str>> =
            self.policy.reply_rules().iter().map(|rule| rule.name().clone()).collect();
        let queues: Vec<_> = self.queues.iter().map(|(key, _)| key).collect();
        for key in queues {
            let Some(queue) = self.queues.get(key) else { continue };
            let (name, source) = (queue.name.clone(), queue.source.clone());
            let settings = self.settings_of(&name, &source);
            let Some(queue) = self.queues.get_mut(key) else { continue };
            if settings.bounce_fuse != queue.settings.bounce_fuse {
                queue.bounces = settings.bounce_fuse.map(super::queue::fuse);
            }
            queue.settings = settings;
            queue.rule_counts.retain(|rule, _| counted.contains(rule));
            self.mode_changed(now, key);
            self.replaced
                .extend(self.queues.get(key).into_iter().flat_map(|q| q.destinations.iter().copied()));
        }
        let open: Vec<ConnectionId> = self.connections.iter().map(|(id, _)| id).collect();
        open.iter().for_each(|&id| self.charge_anew(now, id));
        for id in open {
            // Those at work close once they have nothing to do.
            let is_over = |connection: &Connection| {
                connection.holds.iter().any(|&slot| self.limits.is_over(slot))
                    || self.wish_of(connection.destination).as_ref() != Some(&connection.wish)
            };
            if self.connections.get(id).is_some_and(is_over) {
                self.close(id);
            }
        }
    }

    /// What a connection holds by the new policy, though it may be more than that allows.
    fn charge_anew(&mut self, now: Timestamp, id: ConnectionId) {
        self.unlist_idle(id);
        let Some(connection) = self.connections.get(id) else { return };
        let candidate = connection.current.clone();
        let Some(queue) = self.destinations.get(connection.destination).map(|d| d.queue) else { return };
        let is_closing = matches!(connection.state, super::session::State::Closing);
        let wanted = self.all_permits(now, queue, &candidate);
        let Some(connection) = self.connections.get_mut(id) else { return };
        let held = std::mem::replace(&mut connection.holds, wanted);
        if is_closing {
            self.limits.not_closing(&held);
            self.limits.now_closing(&wanted);
        }
        for &slot in wanted.iter().filter(|slot| !held.contains(slot)) {
            self.limits.take_regardless(slot);
        }
        for &slot in held.iter().filter(|slot| !wanted.contains(slot)) {
            self.limits.give_back(slot);
        }
        self.newly_idle.push_back(id);
    }

    /// Where a destination's mail goes may have changed, and what holds for it.
    pub(super) fn revisit_replaced(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        destination.work.suspended = None;
        destination.refusal = None;
        match destination.route {
            RouteState::LookingUp => destination.work.outdated = true,
            _ => destination.route = RouteState::Unknown,
        }
        if destination.missing.is_some() {
            destination.work.wants_fresh = true;
        }
        let shared = matches!(destination.site, Site::Hosts(_) | Site::Fixed);
        let lanes: Vec<_> = destination.lanes.iter().copied().collect();
        self.stop_waiting_to_connect(key);
        self.stop_waiting_for_rate(key);
        for lane in lanes {
            let Some(state) = self.lanes.get(lane) else { continue };
            let (domain, lane_domain, source) =
                (state.domain, state.key.domain.clone(), state.key.source.clone());
            if shared || self.home(&lane_domain, &source) != key {
                self.send_home(now, domain);
            }
        }
        self.revisit(now, key);
    }
}
