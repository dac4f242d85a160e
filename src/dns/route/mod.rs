//! From a domain to the addresses its mail goes to: [`find_route`].

mod addresses;
mod dane;
mod failure;
mod mta_sts;
mod options;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

pub use failure::{RouteFailure, RouteFailureKind};
pub use options::RouteOptions;

use self::addresses::{Found, Hosts};
use self::dane::Demand;
use super::{Answer, DnsError, DnsErrorKind, Freshness, MailExchangers, Resolver};
use crate::clock;
use crate::dane::TlsaSet;
use crate::message::Domain;
use crate::mta_sts::{KnownPolicy, Mode};
use crate::policy::{FixedHost, HostName};

/// For all questions of a look-up together. A name server that is away is found out within it; a domain whose servers answer late, each
/// of them, keeps nobody else from their turn for longer.
const LIMIT: Duration = Duration::from_secs(60);
/// Of a route that no look-up led to.
const FIXED_TTL: Duration = Duration::from_secs(86_400);

/// Where mail goes. Holds at least one address.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "hosts of the engine build it for tests")]
pub struct Route {
    /// The hosts, the most preferred first. Those without a usable address are among them, as rollup rules compare
    /// all that are published; our own name and what stands behind it are left out.
    pub hosts: Vec<RouteHost>,
    /// How it was found.
    pub kind: RouteKind,
    /// How long it holds: the least TTL of the records in it; for [`RouteKind::Implicit`] also that of there being
    /// no MX; at most a minute if a look-up failed meanwhile, so that what is missing is soon asked for again.
    pub ttl: Duration,
    /// The domain's MTA-STS policy, if it has one that counts ([`Route::under_policy`]). As found by DNS: none.
    pub mta_sts: Option<Arc<KnownPolicy>>,
    /// What policy the domain has now could not be found out: its TXT record, or the policy that this names. What was known before counts.
    pub policy_unknown: bool,
}

/// How a route was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RouteKind {
    /// By MX records.
    Mx,
    /// No MX record: the domain itself is the host (RFC 5321 §5.1).
    Implicit,
    /// The domain is an address literal (RFC 5321 §4.1.3).
    Literal,
    /// By configuration.
    Fixed,
}

/// A host of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a name and its addresses")]
pub struct RouteHost {
    /// Its name as published; of a literal or fixed address: the address in brackets.
    pub name: Arc<str>,
    /// Its place by preference: the same for hosts that are equally preferred, more for those that are less so.
    pub preference: u32,
    /// At most 32, the families alternating; none if it has no usable one. IPv4-mapped IPv6 addresses are IPv4 here.
    pub addresses: Vec<SocketAddr>,
    /// Barred by the domain's MTA-STS policy, or since its TLSA records could not be found out: then it has no addresses
    /// here.
    pub barred: bool,
    /// Not all was found out that a route to it needs, since a look-up failed: it may have an address.
    pub unknown: bool,
    /// Its TLSA records, if it has any that are authentic: what sessions with it must have (RFC 7672).
    pub tlsa: Option<Arc<TlsaSet>>,
}

impl Route {
    /// The hosts of each preference, the most preferred first, those without address included.
    pub fn preferences(&self) -> impl Iterator<Item = &[RouteHost]> {
        self.hosts.chunk_by(|one, next| one.preference == next.preference)
    }

    /// The hosts' names by preference, those without address included: what rollup rules compare.
    pub fn exchangers(&self) -> Vec<Vec<Arc<str>>> {
        let names = |hosts: &[RouteHost]| hosts.iter().map(|host| host.name.clone()).collect();
        self.preferences().map(names).collect()
    }

    /// Whether its hosts are the domain's for certain, and not just by what an unauthenticated answer of DNS said: they were
    /// configured, an MTA-STS policy in force permits them, or the host is the domain itself (RFC 8689 §4.2.1).
    pub fn has_authentic_hosts(&self) -> bool {
        self.kind != RouteKind::Mx || self.is_enforced()
    }

    /// Whether mail may go only over TLS, with a certificate that is valid for the host's name: so an MTA-STS policy in
    /// mode `enforce` demands.
    pub fn is_enforced(&self) -> bool {
        self.mta_sts.as_ref().is_some_and(|known| known.policy().mode() == Mode::Enforce)
    }
}

impl RouteHost {
    /// Whether it has an address to try.
    pub fn has_address(&self) -> bool {
        !self.addresses.is_empty()
    }
}

/// Finds where mail for `domain` goes.
///
/// MX is asked first, then A and AAAA of all hosts (of at most [`MAX_MAIL_EXCHANGERS`](super::MAX_MAIL_EXCHANGERS)),
/// several at a time. A family that is not used is only asked to tell "no address" from "none that we can use".
///
/// With [`RouteOptions::dane`] TLSA records are asked for, where MX and addresses are authentic (RFC 7672 §2.2). A host of
/// which they can not be found out keeps its place without addresses; so does none whose records are not authentic, or that has
/// none: it demands nothing.
///
/// All of it takes 60 s at most. What was not answered by then counts as a look-up that failed: of an MX record the route is not known,
/// of a host's addresses it has none, of its TLSA records it keeps its place without addresses. Nothing is left out for lack of time that a
/// host might demand.
///
/// Before a permanent failure is returned, everything is asked once more past any cache. An
/// [`Implicit`](RouteKind::Implicit) route is not one: a caller that bounces for it asks with [`Freshness::Fresh`]
/// first.
///
/// # Errors
/// [`RouteFailure`]. A failed look-up never counts as "no such record".
///
/// # Panics
/// Outside of a tokio runtime with time.
///
/// # Cancel safety
/// May be dropped at any time.
pub async fn find_route(
    resolver: &dyn Resolver,
    domain: &Domain,
    options: &RouteOptions,
    freshness: Freshness,
) -> Result<Route, RouteFailure> {
    if let Some(address) = domain.literal_address() {
        let name: Arc<str> = domain.as_str().into();
        let mut found = Found::default();
        found.address(address, options.port, options, true);
        return finish(domain.as_str(), RouteKind::Literal, vec![vec![(name, found)]], FIXED_TTL);
    }
    let limit = Limit::begins();
    match find_by_mx(resolver, domain.as_str(), options, freshness, limit).await {
        Err(failure) if failure.is_permanent() && freshness == Freshness::Cached => {
            find_by_mx(resolver, domain.as_str(), options, Freshness::Fresh, limit).await
        }
        result => result,
    }
}

/// Finds the addresses of configured hosts: each group is a preference, the first is tried first.
///
/// No MX look-up, and no address is prohibited. Failures are never permanent: the configuration is wrong, not the
/// recipient. Of each group at most 32 hosts are used.
///
/// # Errors
/// [`RouteFailure`]: none of the hosts has a usable address.
///
/// # Panics
/// Outside of a tokio runtime with time.
///
/// # Cancel safety
/// May be dropped at any time.
pub async fn find_fixed_route(
    resolver: &dyn Resolver,
    groups: &[Vec<FixedHost>],
    options: &RouteOptions,
) -> Result<Route, RouteFailure> {
    let dane = options.dane.then_some(&[][..]);
    let (freshness, limit) = (Freshness::Cached, Limit::begins());
    let lookup = Hosts { resolver, options, freshness, limit, obeys_prohibition: false, dane };
    let mut preferences = Vec::with_capacity(groups.len());
    for group in groups {
        let hosts = group.iter().take(super::MAX_MAIL_EXCHANGERS).map(|host| {
            let port = host.port.unwrap_or(options.port);
            match &host.host {
                HostName::Name(name) => (name.clone(), None, port),
                HostName::Address(address) => (format!("[{address}]").into(), Some(*address), port),
            }
        });
        preferences.push(lookup.find(hosts.collect()).await);
    }
    let names = || groups.iter().flatten().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !preferences.iter().flatten().any(|(_, found)| found.has_address()) {
        lookup.explain(&mut preferences).await;
    }
    finish(&format!("fixed hosts {}", names()), RouteKind::Fixed, preferences, FIXED_TTL)
}

/// Until when a look-up waits for answers.
#[derive(Clone, Copy)]
struct Limit(Instant);

impl Limit {
    fn begins() -> Self {
        Self(clock::instant() + LIMIT)
    }

    /// An answer, or that it came too late.
    async fn keep<T>(
        self,
        what: &str,
        name: &str,
        answer: impl Future<Output = Result<Answer<T>, DnsError>>,
    ) -> Result<Answer<T>, DnsError> {
        timeout_at(self.0, answer).await.unwrap_or_else(|_| {
            let late = format!("{what} of {name}: not all was answered within {} s", LIMIT.as_secs());
            Err(DnsError::new(DnsErrorKind::Timeout, late))
        })
    }
}

async fn find_by_mx(
    resolver: &dyn Resolver,
    domain: &str,
    options: &RouteOptions,
    freshness: Freshness,
    limit: Limit,
) -> Result<Route, RouteFailure> {
    let fail = |kind, what: &str| Err(RouteFailure::new(kind, format!("{domain}: {what}")));
    let answer = match limit.keep("MX", domain, resolver.mx(domain, freshness)).await {
        Ok(answer) => answer,
        Err(error) => {
            return fail(RouteFailureKind::LookUp(error.kind()), &format!("look-up of MX failed: {error}"));
        }
    };
    let ttl = answer.ttl;
    let (kind, groups) = match MailExchangers::new(&answer, &options.own_names) {
        MailExchangers::Hosts(groups) => (RouteKind::Mx, groups),
        MailExchangers::Implicit => (RouteKind::Implicit, vec![vec![domain.to_owned()]]),
        MailExchangers::NullMx => {
            return fail(RouteFailureKind::NullMx, "the domain takes no mail (null MX, RFC 7505)");
        }
        MailExchangers::NxDomain => {
            return fail(RouteFailureKind::NxDomain, "the domain does not exist (NXDOMAIN)");
        }
        MailExchangers::MailLoop => {
            return fail(RouteFailureKind::MailLoop, "its most preferred MX is this host: mail would loop");
        }
    };

    // RFC 7672 §2.2.1: hosts that anybody may have put there prove nothing by their records.
    let names: Vec<Arc<str>> =
        [Some(domain.into()), answer.canonical.clone()].into_iter().flatten().collect();
    let dane = (options.dane && answer.authentic).then_some(names.as_slice());
    let lookup = Hosts { resolver, options, freshness, limit, obeys_prohibition: true, dane };
    let widths: Vec<usize> = groups.iter().map(Vec::len).collect();
    let hosts = groups.into_iter().flatten().map(|name| (Arc::from(name), None, options.port)).collect();
    // All preferences at once: a look-up costs less than a wait for it when the first host turns out to be dead.
    let mut all = lookup.find(hosts).await.into_iter();
    let mut preferences: Vec<Vec<_>> = widths.into_iter().map(|n| all.by_ref().take(n).collect()).collect();
    if !preferences.iter().flatten().any(|(_, found)| found.has_address()) {
        lookup.explain(&mut preferences).await;
    }
    finish(domain, kind, preferences, ttl)
}

/// The route, or what all the hosts together lack.
fn finish(
    what: &str,
    kind: RouteKind,
    preferences: Vec<Vec<(Arc<str>, Found)>>,
    mut ttl: Duration,
) -> Result<Route, RouteFailure> {
    let (mut hosts, mut sum) = (Vec::new(), Found::default());
    let mut unknown_demand = None;
    for (preference, group) in (0..).zip(preferences) {
        for (name, mut found) in group {
            sum.add(&found);
            if found.has_address() {
                ttl = ttl.min(found.ttl);
            }
            let (tlsa, error) = match std::mem::take(&mut found.demand) {
                Demand::Nothing => (None, None),
                Demand::Tlsa(set) => (Some(set), None),
                Demand::Unknown(error) => (None, Some(error)),
            };
            let barred = error.is_some();
            let unknown = barred || found.error.is_some() && !found.has_address();
            let addresses = if barred { Vec::new() } else { found.into_addresses() };
            unknown_demand = unknown_demand.or(error);
            hosts.push(RouteHost { name, preference, addresses, barred, unknown, tlsa });
        }
    }
    if hosts.iter().any(RouteHost::has_address) {
        const SOON: Duration = Duration::from_secs(60);
        let is_known = sum.error.is_none() && unknown_demand.is_none();
        let ttl = if is_known { ttl } else { ttl.min(SOON) };
        return Ok(Route { hosts, kind, ttl, mta_sts: None, policy_unknown: false });
    }
    let fail = |kind, why: String| Err(RouteFailure::new(kind, format!("{what}: {why}")));
    // What is not known comes first: with it, the rest might not be true.
    if let Some(error) = unknown_demand {
        let kind = match error.kind() {
            DnsErrorKind::Unreachable => RouteFailureKind::LookUp(error.kind()),
            _ => RouteFailureKind::Dane,
        };
        return fail(kind, format!("DANE: what its hosts demand is not known: {error}"));
    }
    if let Some(error) = &sum.error {
        let kind = RouteFailureKind::LookUp(error.kind());
        return fail(kind, format!("no address found, and a look-up failed: {error}"));
    }
    if let Some(address) = sum.unusable {
        let why =
            format!("its addresses, such as {address}, are of a family that this machine does not send from");
        return fail(RouteFailureKind::NoRouteForFamily, why);
    }
    if let Some(address) = sum.prohibited {
        let why = format!("its addresses, such as {address}, are of a kind that is never tried");
        return fail(RouteFailureKind::Prohibited, why);
    }
    match kind {
        RouteKind::Implicit => {
            fail(RouteFailureKind::NoHost, "the domain has neither MX nor A nor AAAA".to_owned())
        }
        _ => fail(RouteFailureKind::NoAddress, "none of its hosts has an address (A or AAAA)".to_owned()),
    }
}
