//! What MTA-STS (RFC 8461) demands of connections, and mail that is about to expire over it.
//!
//! A route under a policy says which hosts are left and that they need TLS. Mail that can not go there waits for its
//! destination's retry step. Before it expires, its policy is looked for once more, past the cache of DNS: if that
//! has changed what may be done, it is tried at once.

use std::time::Duration;

use super::command::PolicyDomain;
use super::destination::{Destination, RetryClock, RouteState};
use super::lane::LaneState;
use super::placement::{Site, bars_any, hosts_of};
use super::pump::LANES_LOOKED_AT;
use super::record::{Failed, Reading, cause_diagnosis};
use super::session::{Connection, State, Wish};
use super::timers::earliest;
use super::{ConnectionId, DestinationKey, LaneKey, Scheduler};
use crate::clock::Timestamp;
use crate::dns::{Freshness, Route, RouteFailureKind, RouteHost};
use crate::event::{Diagnosis, Failure, Reason};
use crate::policy::StartTls;
use crate::reply::Stage;
use crate::transport::EndCause;

/// So long before mail expires its policy is looked for, so that there is time to deliver it.
const MARGIN: Duration = Duration::from_secs(600);
/// When it is looked for again that could not be found out.
const AGAIN: Duration = Duration::from_secs(60);

/// What is not settled about the MTA-STS policy of a domain. Most domains have nothing of the kind.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PolicyDoubt {
    /// When it was last looked for since mail was about to expire over it.
    sought: Option<Timestamp>,
    /// Not to be looked for again before this, since that did not find it out.
    again: Option<Timestamp>,
    /// The domain's last look-up did not find out what policy it has.
    unknown: bool,
}

impl Destination {
    /// Its mail goes over TLS alone, with a certificate that is valid for the host's name.
    pub(super) fn is_enforced(&self) -> bool {
        self.enforced.is_some() || self.site.is_enforced()
    }

    /// It waits since its MTA-STS policy could not be kept with a host, bars one, or did so when DNS last answered.
    fn waits_for_policy(&self) -> bool {
        let is_about_policy = |last: &Diagnosis| {
            let is_under_policy = self.is_enforced() && (last.stage == Stage::Dns || self.bars_hosts());
            last.reason == Reason::MtaSts || is_under_policy
        };
        self.retry.until.is_some() && self.retry.last.as_deref().is_some_and(is_about_policy)
    }

    /// Some of its hosts are not used.
    fn bars_hosts(&self) -> bool {
        self.enforced.as_deref().is_some_and(bars_any) || self.site.bars_hosts()
    }
}

impl Scheduler {
    /// What a destination's sessions are to be opened with.
    pub(super) fn wish_of(&self, key: DestinationKey) -> Option<Wish> {
        let destination = self.destinations.get(key)?;
        let mut wish = Wish::of(&self.queues.get(destination.queue)?.settings);
        if destination.is_enforced() {
            wish.tls.level = StartTls::Verify;
        }
        Some(wish)
    }

    /// When the policy of a lane's domain is to be looked for, since mail that waits for it is about to expire.
    pub(super) fn policy_from(&self, lane: &LaneState, destination: &Destination) -> Option<Timestamp> {
        let doubt = self.policy_doubts.get(&lane.domain).copied().unwrap_or_default();
        if doubt.again.is_none() && !destination.waits_for_policy() {
            return None;
        }
        let oldest = lane.head.oldest.map(|oldest| oldest + self.bounce_after(lane));
        let in_window = lane.work.deadlines.first().map(|&(deadline, _)| deadline);
        let expiry = earliest(earliest(oldest, lane.head.first_expiry), in_window)?;
        // One look serves all that expires within twice the margin.
        let was_sought = doubt.sought.is_some_and(|sought| sought + 2 * MARGIN >= expiry);
        let from = expiry.saturating_sub(MARGIN);
        (!was_sought).then(|| doubt.again.map_or(from, |again| from.max(again)))
    }

    /// Looks for the policy of a lane's domain if it is time to. The domain is asked about at its home.
    pub(super) fn seek_policy_if_due(&mut self, now: Timestamp, key: LaneKey) {
        let Some(lane) = self.lanes.get(key) else { return };
        let (domain, mut destination) = (lane.domain, lane.destination);
        let lies_at = self.destinations.get(destination);
        if lies_at.and_then(|lies_at| self.policy_from(lane, lies_at)).is_none_or(|at| at > now) {
            return;
        }
        self.policy_doubts.entry(domain).or_default().sought = Some(now);
        if self.destinations.get(destination).is_some_and(|destination| destination.site.is_shared()) {
            self.send_home(now, domain);
            let Some(state) = self.domains.get(domain) else { return };
            destination = state.destination;
        }
        self.ask_afresh(destination);
    }

    /// A look-up came back that says whether it found out what policy a domain has now. One for mail that is about to expire is else
    /// made again.
    pub(super) fn note_policy(
        &mut self,
        now: Timestamp,
        home: DestinationKey,
        asked: Freshness,
        unknown: bool,
    ) {
        if !unknown && self.policy_doubts.is_empty() {
            return;
        }
        let is_home = |destination: &&Destination| matches!(destination.site, Site::Domain(_));
        let Some(destination) = self.destinations.get(home).filter(is_home) else { return };
        for &lane in &destination.lanes {
            let Some(domain) = self.lanes.get(lane).map(|lane| lane.domain) else { continue };
            let mut doubt = self.policy_doubts.remove(&domain).unwrap_or_default();
            doubt.unknown = unknown;
            let is_sought = asked == Freshness::Fresh && doubt.sought.or(doubt.again).is_some();
            if unknown && is_sought {
                (doubt.sought, doubt.again) = (None, Some(now + AGAIN));
            } else if !unknown && doubt.again.take().is_some() && is_sought {
                doubt.sought = Some(now);
            }
            if doubt != PolicyDoubt::default() {
                self.policy_doubts.insert(domain, doubt);
            }
        }
    }

    /// The domain that a lane's mail counts for. `None`: it goes to fixed hosts, or to an address.
    pub(super) fn policy_domain(&self, key: DestinationKey, lane: LaneKey) -> Option<PolicyDomain> {
        let destination = self.destinations.get(key)?;
        let settings = &self.queues.get(destination.queue)?.settings;
        let lane = self.lanes.get(lane)?;
        if !settings.smtp_hosts.is_empty() || lane.key.domain.literal_address().is_some() {
            return None;
        }
        let heeds_mta_sts = match destination.site.is_shared() {
            true => self.domains.get(lane.domain)?.heeds_mta_sts,
            false => settings.heeds_mta_sts(),
        };
        Some(PolicyDomain { name: lane.key.domain.clone(), heeds_mta_sts })
    }

    /// A policy became known after its domain was looked up: the domain is looked up anew before any of its mail is tried.
    pub(super) fn on_against_policy(&mut self, now: Timestamp, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let key = connection.destination;
        let State::Busy(transaction) = std::mem::replace(&mut connection.state, State::Between) else {
            return;
        };
        let lane = self.window.get_mut(transaction.item).map(|item| {
            // What it met before the policy was known says nothing of the hosts now.
            item.unfit = None;
            item.lane
        });
        self.transaction_over(transaction.octets);
        self.back_in_line(now, transaction.item);
        let domain = lane.and_then(|lane| self.lanes.get(lane)).map(|lane| lane.domain);
        let at_home = self.destinations.get_mut(key).filter(|destination| !destination.site.is_shared());
        if let Some(destination) = at_home {
            match destination.route {
                RouteState::LookingUp => destination.work.outdated = true,
                _ => destination.route = RouteState::Unknown,
            }
            if let Some(connection) = self.connections.get_mut(id) {
                connection.retired = true;
            }
        } else if let Some(domain) = domain {
            // For others of the rollup the session is as good as before.
            self.send_home(now, domain);
        }
        self.make_idle(now, id);
        self.mark(key);
    }

    /// Whether the domain of a lane may have a policy that is not known now.
    pub(super) fn is_policy_unknown(&self, key: DestinationKey, lane: LaneKey) -> bool {
        let lane = self.lanes.get(lane);
        let of_domain = lane.and_then(|lane| self.policy_doubts.get(&lane.domain));
        // Who has come since the look-up of its home knows it from that.
        let home = self.destinations.get(key).filter(|destination| !destination.site.is_shared());
        let route = home.and_then(Destination::known_route);
        of_domain.is_some_and(|doubt| doubt.unknown) || route.is_some_and(|route| route.policy_unknown)
    }

    /// Whose mail a session is opened for: in a rollup a domain's that has mail to send now.
    pub(super) fn opens_for(&self, key: DestinationKey) -> Option<PolicyDomain> {
        let lanes =
            || self.destinations.get(key).into_iter().flat_map(|destination| destination.lanes.iter());
        let has_mail = |lane: &&LaneKey| self.lanes.get(**lane).is_some_and(LaneState::has_ready);
        let with_mail = lanes().take(LANES_LOOKED_AT).find(has_mail);
        self.policy_domain(key, *with_mail.or_else(|| lanes().next())?)
    }

    /// No name server could be reached: mail that is about to expire has its policy looked for when one can be.
    pub(super) fn seek_policy_again(&mut self, now: Timestamp, key: DestinationKey, asked: Freshness) {
        self.note_policy(now, key, asked, true);
        if let Some(destination) = self.destinations.get_mut(key)
            && asked == Freshness::Fresh
            && destination.waits_for_policy()
        {
            destination.work.wants_fresh = true;
        }
    }

    /// A look-up led to a route. If the policy that mail waits for allows something else now, that is tried at once.
    pub(super) fn release_if_policy_changed(&mut self, key: DestinationKey, route: &Route) {
        if !self.seeks_policy(key) {
            return;
        }
        let Some(destination) = self.destinations.get_mut(key) else { return };
        // What the hosts themselves do is not the policy's matter.
        let is_for_dns = |last: &Diagnosis| last.stage == Stage::Dns;
        if !destination.waits_for_policy() && !destination.retry.last.as_deref().is_some_and(is_for_dns) {
            return;
        }
        let enforced = route.is_enforced().then(|| hosts_of(route));
        let is_alike = enforced.is_some() && destination.enforced.as_deref() == enforced.as_deref();
        if destination.retry.until.is_some() && !is_alike {
            destination.retry = RetryClock::default();
            self.forget_state(key);
        }
    }

    /// Its mail waits for its policy; or for DNS, since the policy could not be found out. In a rollup it may have waited for it.
    pub(super) fn seeks_policy(&self, key: DestinationKey) -> bool {
        let Some(destination) = self.destinations.get(key) else { return false };
        if self.policy_doubts.is_empty() {
            return destination.waits_for_policy();
        }
        let lanes = destination.lanes.iter().filter_map(|&lane| self.lanes.get(lane));
        let mut doubts = lanes.filter_map(|lane| self.policy_doubts.get(&lane.domain));
        let is_home = matches!(destination.site, Site::Domain(_));
        destination.waits_for_policy() || is_home && doubts.any(|doubt| doubt.again.is_some())
    }

    /// A look-up said that no host may be used now: the policy permits none, or what they demand is not known. Nothing goes over
    /// sessions that were opened before.
    pub(super) fn note_nothing_permitted(&mut self, key: DestinationKey, kind: RouteFailureKind) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        destination.is_barred = true;
        if kind == RouteFailureKind::MtaSts {
            destination.enforced = Some("".into());
        }
        let working: Vec<_> = destination.work.working.iter().copied().collect();
        working.into_iter().for_each(|id| self.retire(id));
    }

    /// A session takes no further mail.
    pub(super) fn retire(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.retired = true;
        if matches!(connection.state, State::Idle { .. }) {
            self.close(id);
        }
    }

    /// A step has failed: lanes whose mail waits for a policy are watched, since it may expire before the next.
    pub(super) fn watch_expiries(&mut self, now: Timestamp, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key).filter(|d| d.waits_for_policy()) else {
            return;
        };
        let lanes: Vec<LaneKey> = destination.lanes.iter().copied().collect();
        lanes.into_iter().for_each(|lane| self.review_lane(now, lane));
    }
}

/// Whether a route leads to where a session was opened, and to a host that its server has proved to be.
pub(super) fn leads(route: &Route, connection: &Connection) -> bool {
    let peer = &connection.current.peer;
    let serves = |host: &RouteHost| connection.serves(&host.name, host.tlsa.as_deref());
    route.hosts.iter().any(|host| host.addresses.contains(peer) && serves(host))
}

/// Who demands TLS of a session beside the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demander {
    Nobody,
    /// The MTA-STS policy of the mail's domain.
    MtaSts,
    /// The host's TLSA records. They go before the policy.
    Dane,
}

/// Why there was no session.
pub(super) fn connect_diagnosis(
    stage: Stage,
    cause: &EndCause,
    demander: Demander,
    reading: Reading<'_>,
) -> Diagnosis {
    let mut diagnosis = cause_diagnosis(stage, cause, Failed::ToConnect, reading);
    let (reason, name) = match demander {
        Demander::Nobody => return diagnosis,
        Demander::MtaSts => (Reason::MtaSts, "MTA-STS"),
        Demander::Dane => (Reason::Dane, "DANE"),
    };
    match cause {
        EndCause::TlsRefused(_) => diagnosis.reason = reason,
        EndCause::TlsNotOffered | EndCause::Tls(_) | EndCause::Certificate(..) => {
            diagnosis.reason = reason;
            diagnosis.failure = Failure::Engine(format!("{name}: {cause}"));
        }
        _ => {}
    }
    diagnosis
}
