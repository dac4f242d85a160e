//! Where a domain's mail lies: in its own queue until its MX records are known, then maybe in a rollup.
//!
//! Each domain of a source has a *home*, a destination of its own queue (or of the queue that `queue-to` names).
//! Mail begins there. The home's look-up decides: if a rollup rule matches, all lanes of the domain move to a
//! destination of the rollup, one for each set of hosts, shared by all domains with the same set. When what DNS
//! said of the domain runs out, it goes home before its next attempt, and is decided anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::arena::Key;
use super::destination::{Destination, RouteState};
use super::directory::Named;
use super::few::FewSet;
use super::lane::LaneState;
use super::queue::Queue;
use super::{DestinationKey, DomainKey, LaneKey, QueueKey, Scheduler, TimerOwner};
use crate::clock::Timestamp;
use crate::dane::TlsaSet;
use crate::dns::{Route, RouteHost, RouteKind};
use crate::message::{Domain, MessageId, QueueName, is_host_name};
use crate::policy::{Policy, QueueSettings, RollupRule, UnknownSource};
use crate::storage::{ItemId, Lane};

/// A route is used for at least this long, whatever its TTL, so that a TTL of zero does not mean a look-up for
/// every connection.
const SHORTEST_ROUTE: std::time::Duration = std::time::Duration::from_secs(1);

/// Names of sources that lanes have in common. A policy hardly has so many; what is beyond has copies of its own.
const MOST_SOURCE_NAMES: usize = 4_096;

/// Whose hosts a destination has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Site {
    /// Those of this domain: its home.
    Domain(Domain),
    /// The fixed hosts of its queue.
    Fixed,
    /// Exactly these hosts, by preference.
    Hosts(Arc<str>),
}

/// A domain with mail, of one source (or one of a pool's).
pub(crate) struct DomainState {
    domain: Domain,
    /// As its lanes name it: a source, or `source@pool`.
    source: Arc<str>,
    /// Where its mail lies now.
    pub(super) destination: DestinationKey,
    /// Away from home: until when what DNS said of it holds.
    pub(super) until: Option<Timestamp>,
    /// Away from home: its own settings say that its policy counts.
    pub(super) heeds_mta_sts: bool,
    pub(super) lanes: FewSet<LaneKey>,
}

/// What names a lane's source: the one requested, or the one drawn from the pool requested, with the pool.
pub(super) fn lane_source(
    policy: &Policy,
    requested: Option<&str>,
    id: &MessageId,
) -> Result<Arc<str>, UnknownSource> {
    let source = policy.choose_source(requested, id)?;
    Ok(match requested {
        Some(pool) if *pool != *source => format!("{source}@{pool}").into(),
        _ => source,
    })
}

/// The source and, if it was drawn from one, the pool.
fn split_source(lane_source: &str) -> (&str, Option<&str>) {
    lane_source.split_once('@').map_or((lane_source, None), |(source, pool)| (source, Some(pool)))
}

impl Scheduler {
    /// The lane's state, made if need be, with its domain, destination and queue.
    pub(super) fn lane_for(&mut self, lane: &Lane) -> LaneKey {
        if let Some(key) = self.lanes.find(lane) {
            return key;
        }
        let (domain, destination) = self.domain_for(&lane.domain, &lane.source);
        let queue = self.destinations.get(destination).map_or(Key::of_nothing(), |d| d.queue);
        let lane = Lane { source: self.same_source(&lane.source), ..lane.clone() };
        let key = self.lanes.insert(LaneState::new(lane, domain, destination, queue));
        if let Some(state) = self.domains.get_mut(domain)
            && let Some(lane) = self.lanes.get_mut(key)
        {
            state.lanes.insert(key);
            lane.until = state.until;
        }
        if let Some(destination) = self.destinations.get_mut(destination) {
            destination.lanes.insert(key);
        }
        key
    }

    fn domain_for(&mut self, domain: &Domain, source: &Arc<str>) -> (DomainKey, DestinationKey) {
        let known = self.domains.find((domain, source));
        if let Some((key, state)) = known.and_then(|key| Some((key, self.domains.get(key)?))) {
            return (key, state.destination);
        }
        let destination = self.home(domain, source);
        let state = DomainState {
            domain: domain.clone(),
            source: self.same_source(source),
            destination,
            until: None,
            heeds_mta_sts: false,
            lanes: FewSet::default(),
        };
        let key = self.domains.insert(state);
        (key, destination)
    }

    /// A source's name as others have it: of a million lanes each would else have its own copy, as the store gave it.
    fn same_source(&mut self, source: &Arc<str>) -> Arc<str> {
        if let Some(same) = self.source_names.get(source) {
            return same.clone();
        }
        if self.source_names.len() < MOST_SOURCE_NAMES {
            self.source_names.insert(source.clone());
        }
        source.clone()
    }

    /// The destination where a domain's mail begins.
    pub(super) fn home(&mut self, domain: &Domain, lane_source: &str) -> DestinationKey {
        let own = QueueName::from(domain);
        let source = self.source_for(&own, domain, lane_source);
        let settings = self.settings_of(&own, &source);
        let Some(rollup) = settings.queue_to.clone() else {
            let queue = self.queue_with(own, &source, settings);
            return self.destination_for(Site::Domain(domain.clone()), domain, queue);
        };
        let name = QueueName::from(rollup.as_str());
        let source = self.source_for(&name, domain, lane_source);
        let queue = self.queue_for(name, &source);
        let fixed = self.queues.get(queue).is_some_and(|queue| !queue.settings.smtp_hosts.is_empty());
        let site = if fixed { Site::Fixed } else { Site::Domain(domain.clone()) };
        self.destination_for(site, domain, queue)
    }

    /// The source that a lane's mail is sent from in this queue: its own unless that is gone, or disabled there and
    /// its pool has another.
    fn source_for(&self, queue: &str, domain: &Domain, lane_source: &str) -> Arc<str> {
        let (source, pool) = split_source(lane_source);
        let exists = self.policy.source(source).map(|source| source.name().clone());
        let enabled = |source: &str| {
            self.disabled_queues == 0 || {
                let queue = self.queues.find_ref((queue, source));
                queue.is_none_or(|queue| !queue.is_disabled())
            }
        };
        if let Some(source) = &exists
            && enabled(source)
        {
            return source.clone();
        }
        let others =
            pool.and_then(|pool| self.policy.substitute_source(pool, domain.as_str(), source, enabled));
        others.or(exists).unwrap_or_else(|| self.policy.default_source().clone())
    }

    pub(super) fn queue_for(&mut self, name: QueueName, source: &Arc<str>) -> QueueKey {
        match self.queues.find((&name, source)) {
            Some(queue) => queue,
            None => {
                let settings = self.settings_of(&name, source);
                self.queue_with(name, source, settings)
            }
        }
    }

    /// What the policy says for a queue. A million queues do not have a million copies of it.
    pub(super) fn settings_of(&mut self, queue: &str, source: &Arc<str>) -> Arc<QueueSettings> {
        if self.policy.has_own_settings(queue, source) {
            return Arc::new(self.policy.settings(queue, source));
        }
        let common = self.common_settings.entry(source.clone());
        common.or_insert_with(|| Arc::new(self.policy.settings(queue, source))).clone()
    }

    fn queue_with(&mut self, name: QueueName, source: &Arc<str>, settings: Arc<QueueSettings>) -> QueueKey {
        if let Some(queue) = self.queues.find((&name, source)) {
            return queue;
        }
        self.queues.insert(Queue::new(name, source.clone(), settings))
    }

    pub(super) fn destination_for(&mut self, site: Site, domain: &Domain, queue: QueueKey) -> DestinationKey {
        if let Some(destination) = self.destinations.find((&site, queue)) {
            return destination;
        }
        let is_rolled_up = self.queues.get(queue).is_some_and(|queue| *queue.name != *domain.as_str());
        let destination = Destination { is_rolled_up, ..Destination::new(queue, site, domain.clone()) };
        let destination = self.destinations.insert(destination);
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.destinations.insert(destination);
        }
        destination
    }

    /// A home's look-up succeeded: the domain stays, or moves into a rollup with what was found.
    pub(super) fn place(&mut self, now: Timestamp, home: DestinationKey, route: &Arc<Route>) {
        let until = now + route.ttl.max(SHORTEST_ROUTE);
        if let Some((queue, site, route)) = self.rollup_of(home, route) {
            let Some(destination) = self.destinations.get_mut(home) else { return };
            let heeds_mta_sts =
                self.queues.get(destination.queue).is_some_and(|queue| queue.settings.heeds_mta_sts());
            destination.route = RouteState::Unknown;
            (destination.is_barred, destination.enforced) = (false, None);
            let domain = destination.domain.clone();
            let domains: BTreeSet<DomainKey> =
                destination.lanes.iter().filter_map(|&lane| Some(self.lanes.get(lane)?.domain)).collect();
            for key in domains {
                let Some(state) = self.domains.get_mut(key) else { continue };
                state.heeds_mta_sts = heeds_mta_sts;
                let lane_source = state.source.clone();
                let source = self.source_for(&queue, &domain, &lane_source);
                let queue = self.queue_for(queue.clone(), &source);
                let target = self.destination_for(site.clone(), &domain, queue);
                if site != Site::Fixed {
                    self.set_route(target, route.clone(), until);
                }
                self.move_domain(now, key, target, Some(until));
            }
            self.stop_waiting_to_connect(home);
            self.close_idle(home);
            self.mark(home);
        } else {
            self.set_route(home, route.clone(), until);
        }
    }

    /// Queue, site and route of a domain that does not stay at home.
    fn rollup_of(&self, home: DestinationKey, route: &Arc<Route>) -> Option<(QueueName, Site, Arc<Route>)> {
        let destination = self.destinations.get(home)?;
        let queue = self.queues.get(destination.queue)?;
        let is_home = matches!(destination.site, Site::Domain(_));
        if route.kind != RouteKind::Mx || !is_home || self.pauses.of_domain(&destination.domain).is_some() {
            return None;
        }
        if destination.is_rolled_up {
            // By `queue-to`.
            return Some((queue.name.clone(), Site::of(route), for_any_domain(route)));
        }
        if !self.policy.may_roll_up(&queue.settings) {
            return None;
        }
        let rule = self.policy.rollup_with(&queue.settings, &route.exchangers())?;
        let name = QueueName::from(rule.queue().as_str());
        let settings = self.policy.settings(&name, &queue.source);
        if !settings.smtp_hosts.is_empty() {
            return Some((name, Site::Fixed, route.clone()));
        }
        let route = for_any_domain(&rolled_up(rule, route));
        Some((name, Site::of(&route), route))
    }

    /// Where a destination's mail goes from now on.
    fn set_route(&mut self, key: DestinationKey, route: Arc<Route>, until: Timestamp) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        if destination.known_route().is_none_or(|known| !leads_alike(known, &route)) {
            destination.work.suspended = None;
            self.stop_waiting_to_connect(key);
        }
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let until = match destination.route {
            RouteState::Known { until: old, .. } => until.max(old),
            _ => until,
        };
        destination.refusal = None;
        destination.is_barred = false;
        destination.enforced = route.is_enforced().then(|| hosts_of(&route).into());
        destination.route = RouteState::Known { route: route.clone(), until };
        self.retire_strays(key, &route);
        self.mark(key);
    }

    /// What DNS said of a domain has run out, or its place is to be decided anew: back to its own queue.
    pub(super) fn send_home(&mut self, now: Timestamp, key: DomainKey) {
        let Some(state) = self.domains.get(key) else { return };
        let (domain, source) = (state.domain.clone(), state.source.clone());
        let home = self.home(&domain, &source);
        self.move_domain(now, key, home, None);
    }

    /// Whether a lane's mail may not be sent from where it lies without its domain being looked up again.
    pub(super) fn is_stale(&self, now: Timestamp, lane: LaneKey) -> bool {
        self.lanes.get(lane).and_then(|lane| lane.until).is_some_and(|until| until <= now)
    }

    /// A shared destination whose route has run out: so has what is known of its domains.
    pub(super) fn send_stale_home(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let mut stale: Vec<LaneKey> = Vec::new();
        while let Some((lane, stamp)) = destination.work.ring.pop() {
            if let Some(state) = self.lanes.get_mut(lane)
                && state.ring_stamp == stamp
            {
                state.work.in_ring = false;
                stale.push(lane);
            }
        }
        stale.extend(
            destination
                .work
                .doubts
                .suspects
                .iter()
                .filter_map(|&id| self.window.get(id))
                .map(|item| item.lane),
        );
        for lane in stale {
            // Each is in a ring again where it goes.
            if let Some(domain) = self.lanes.get(lane).map(|lane| lane.domain) {
                self.send_home(now, domain);
            }
        }
    }

    /// A destination's queue changed: is it held, and does its mail still belong there?
    pub(super) fn revisit(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get(key) else { return };
        let Some(queue) = self.queues.get(destination.queue) else { return };
        let (name, source) = (queue.name.clone(), queue.source.clone());
        let lanes: Vec<LaneKey> = destination.lanes.iter().copied().collect();
        for lane in lanes {
            let Some(state) = self.lanes.get(lane) else { continue };
            let domain = state.domain;
            if *self.source_for(&name, &state.key.domain, &state.key.source) != *source {
                self.send_home(now, domain);
            } else {
                self.set_deadlines(lane);
                self.review_lane(now, lane);
            }
        }
        if self.is_held(now, key) {
            self.clear_window_of(now, key, None);
        }
        self.mark(key);
    }

    fn move_domain(&mut self, now: Timestamp, key: DomainKey, to: DestinationKey, until: Option<Timestamp>) {
        let Some(state) = self.domains.get_mut(key) else { return };
        state.until = until;
        state.destination = to;
        let lanes: Vec<_> = state.lanes.iter().copied().collect();
        for &lane in &lanes {
            if let Some(state) = self.lanes.get_mut(lane) {
                state.until = until;
            }
        }
        lanes.into_iter().for_each(|lane| self.move_lane(now, lane, to));
    }

    /// A lane with all that is in the window of it. Transactions under way end where they are.
    fn move_lane(&mut self, now: Timestamp, key: LaneKey, to: DestinationKey) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let from = lane.destination;
        if from == to {
            return;
        }
        let Some(queue) = self.destinations.get(to).map(|destination| destination.queue) else { return };
        (lane.destination, lane.queue) = (to, queue);
        (lane.work.hungry, lane.work.expiring) = (false, false);
        let listed = lane.work.fresh.len() + lane.work.again.len();
        let claimed = lane.work.claimed;
        let mut suspects = Vec::new();
        if let Some(destination) = self.destinations.get_mut(from) {
            let window = &self.window;
            destination.work.doubts.change(|doubts| {
                doubts.suspects.retain(|&id| {
                    let stays = window.get(id).is_none_or(|item| item.lane != key);
                    if !stays {
                        suspects.push(id);
                    }
                    stays
                });
            });
            destination.work.ready -= listed + suspects.len();
            destination.work.claimed = destination.work.claimed.saturating_sub(claimed);
            destination.lanes.remove(&key);
        }
        if let Some(destination) = self.destinations.get_mut(to) {
            destination.work.ready += listed + suspects.len();
            destination.work.claimed += claimed;
            destination.lanes.insert(key);
            suspects.into_iter().for_each(|id| destination.work.doubts.suspects.push_back(id));
        }
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.ring_stamp = lane.ring_stamp.wrapping_add(1);
        lane.work.in_ring = lane.has_ready();
        if lane.work.in_ring
            && let Some(destination) = self.destinations.get_mut(to)
        {
            destination.work.ring.push(lane.key.priority, key, lane.ring_stamp);
        }
        self.set_deadlines(key);
        if self.is_held(now, to) {
            let waiting: Vec<ItemId> = self
                .lanes
                .get(key)
                .map(|lane| lane.work.deadlines.iter().map(|&(_, id)| id).collect())
                .unwrap_or_default();
            waiting.into_iter().for_each(|id| self.put_back(now, id, None));
        }
        self.review_lane(now, key);
        self.mark(from);
        self.mark(to);
    }

    pub(super) fn remove_lane(&mut self, now: Timestamp, key: LaneKey) {
        let Some(mut lane) = self.lanes.remove(key) else { return };
        self.timers.arm(&mut lane.timer, None, TimerOwner::Lane(key));
        self.unmark_lane(now, lane.purge.take());
        if let Some(destination) = self.destinations.get_mut(lane.destination) {
            destination.lanes.remove(&key);
        }
        let Some(domain) = self.domains.get_mut(lane.domain) else { return };
        domain.lanes.remove(&key);
        if domain.lanes.is_empty() {
            self.domains.remove(lane.domain);
            self.policy_doubts.remove(&lane.domain);
        }
    }
}

impl Named for DomainState {
    type Name<'a> = (&'a Domain, &'a str);

    fn name(&self) -> Self::Name<'_> {
        (&self.domain, &self.source)
    }
}

impl DomainState {
    #[cfg(test)]
    pub(super) fn for_tests(domain: Domain, destination: DestinationKey) -> Self {
        Self {
            domain,
            source: "default".into(),
            destination,
            until: None,
            heeds_mta_sts: false,
            lanes: FewSet::default(),
        }
    }
}

impl Site {
    /// That of a route by MX.
    fn of(route: &Route) -> Self {
        Self::Hosts(hosts_of(route).into())
    }

    /// Its mail comes from many domains, each of which is looked up by itself.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Hosts(_))
    }

    /// Of a shared one: some of its hosts are not used.
    pub(super) fn bars_hosts(&self) -> bool {
        matches!(self, Self::Hosts(hosts) if bars_any(hosts))
    }

    /// Of a shared one: mail goes there under an MTA-STS policy alone.
    pub(super) fn is_enforced(&self) -> bool {
        matches!(self, Self::Hosts(hosts) if hosts.ends_with(ENFORCED))
    }
}

/// A route's hosts by preference. Domains with the same hosts that an MTA-STS policy holds to others of them, or to TLS,
/// are kept apart, and so are those whose MX records are authentic, so that DANE holds for the hosts, from those whose are
/// not: they share neither a retry clock nor what follows from one's route.
pub(super) fn hosts_of(route: &Route) -> String {
    let names = |group: &[RouteHost]| {
        let mark = |host: &RouteHost| match (host.barred, &host.tlsa) {
            (true, _) => BARRED,
            (false, Some(_)) => "=",
            (false, None) => "",
        };
        let mut names: Vec<(&str, &str)> = group.iter().map(|host| (&*host.name, mark(host))).collect();
        names.sort_unstable();
        names.dedup();
        // What is no host name has no address either. Nothing of it can pass for a mark.
        let shown = |name: &str| if is_host_name(name) { name.to_owned() } else { "?".to_owned() };
        let marked = |(name, mark): (&str, &str)| format!("{mark}{}", shown(name));
        names.into_iter().map(marked).collect::<Vec<_>>().join(",")
    };
    let mut hosts = route.preferences().map(names).collect::<Vec<_>>().join(";");
    if route.is_enforced() {
        hosts.push_str(ENFORCED);
    }
    hosts
}

/// Whether some of a set of hosts are barred.
pub(super) fn bars_any(hosts: &str) -> bool {
    hosts.strip_suffix(ENFORCED).unwrap_or(hosts).contains(BARRED)
}

/// What stands before a host that is barred.
const BARRED: &str = "!";
/// What a set of hosts ends with that mail goes to under an MTA-STS policy alone.
const ENFORCED: &str = ";!";

/// Whether two answers of DNS lead to the same hosts at the same addresses. Its order is no news: it changes from one
/// answer to the next.
fn leads_alike(one: &Route, other: &Route) -> bool {
    type Addresses = BTreeSet<SocketAddr>;
    type Hosts<'a> = BTreeMap<&'a str, (Addresses, Option<&'a TlsaSet>)>;
    fn host(host: &RouteHost) -> (&str, (Addresses, Option<&TlsaSet>)) {
        (&host.name, (host.addresses.iter().copied().collect(), host.tlsa.as_deref()))
    }
    fn sorted(route: &Route) -> Vec<Hosts<'_>> {
        let hosts = |hosts| -> Hosts<'_> {
            <[RouteHost]>::iter(hosts).filter(|host| host.has_address()).map(host).collect()
        };
        route.preferences().map(hosts).filter(|hosts| !hosts.is_empty()).collect()
    }
    one.is_enforced() == other.is_enforced() && (one.hosts == other.hosts || sorted(one) == sorted(other))
}

/// The route for mail of other domains too. One domain's name in a certificate says nothing of what is sent for another.
fn for_any_domain(route: &Arc<Route>) -> Arc<Route> {
    let is_so = |set: &Arc<TlsaSet>| set.names().count() == 1;
    if route.hosts.iter().filter_map(|host| host.tlsa.as_ref()).all(is_so) {
        return route.clone();
    }
    let mut route = (**route).clone();
    for set in route.hosts.iter_mut().filter_map(|host| host.tlsa.as_mut()) {
        *set = Arc::new(set.for_any_domain());
    }
    Arc::new(route)
}

/// The route as a rule has it: a rule that names hosts delivers to these first, and to the domain's others when none of
/// them can be reached.
fn rolled_up(rule: &RollupRule, route: &Arc<Route>) -> Arc<Route> {
    let published = route.exchangers();
    let exchangers = rule.rolled_up_preferences(&published);
    if exchangers == published {
        return route.clone();
    }
    let host = |name: &Arc<str>| route.hosts.iter().find(|host| host.name == *name);
    let mut hosts = Vec::with_capacity(route.hosts.len());
    for (preference, names) in (0..).zip(&exchangers) {
        let group = names.iter().filter_map(host);
        hosts.extend(group.map(|host| RouteHost { preference, ..host.clone() }));
    }
    Arc::new(Route { hosts, ..(**route).clone() })
}
