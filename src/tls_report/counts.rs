//! The counters by type of policy and domain. Room in them is shared among the owners of domains.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::judge;
use super::{DomainTls, HeldTo, SessionTls, TlsFailures, TlsPolicy, TlsReport, TlsResult};
use crate::clock::Timestamp;
use crate::dane::TlsaSet;
use crate::mta_sts::KnownPolicy;
use crate::owner::{Held, Shares};
use crate::policy::StartTls;
use crate::transport::ConnectError;

/// Domains that are counted for, by each type of policy.
const MOST_DOMAINS: usize = 10_000;
/// Kinds of failures told apart for one domain, by result, host and address.
const MOST_FAILURES: usize = 32;
/// Octets of policies kept for a report.
const MOST_OCTETS: usize = 8 << 20;

/// Without room for more, whoever was counted first stays, unless its owner has more than its share.
#[derive(Debug)]
pub(super) struct Counts {
    since: Timestamp,
    types: BTreeMap<Type, Domains>,
    /// What the policies of the domains take.
    policies: Shares,
    tick: u64,
    uncounted: u64,
}

#[derive(Debug)]
struct Domains {
    by_name: BTreeMap<Arc<str>, Domain>,
    shares: Shares,
}

impl Default for Domains {
    fn default() -> Self {
        Self { by_name: BTreeMap::new(), shares: Shares::new(MOST_DOMAINS) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Type {
    Tlsa,
    Sts,
    NoPolicyFound,
}

/// With the host, its address and ours, if it is about one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) result: TlsResult,
    pub(super) mx: Option<Arc<str>>,
    pub(super) receiving_ip: Option<IpAddr>,
    pub(super) sending_ip: Option<IpAddr>,
}

impl Kind {
    pub(super) fn of(result: TlsResult) -> Self {
        Self { result, mx: None, receiving_ip: None, sending_ip: None }
    }
}

#[derive(Debug, Default)]
struct Domain {
    /// When it was first counted for.
    tick: u64,
    /// Its MTA-STS policy, and when that was last another one.
    policy: Option<(Arc<KnownPolicy>, u64)>,
    successful: u64,
    failures: BTreeMap<Kind, u64>,
}

impl Counts {
    pub(super) fn new(since: Timestamp) -> Self {
        let (types, policies) = (BTreeMap::new(), Shares::new(MOST_OCTETS));
        Self { since, types, policies, tick: 0, uncounted: 0 }
    }

    pub(super) fn session(&mut self, held_to: &HeldTo<'_>, session: Result<SessionTls, &ConnectError>) {
        let HeldTo { domain, host, tlsa, mta_sts, target } = *held_to;
        let wants_tls = target.tls.implicit || target.tls.level != StartTls::Off || tlsa.is_some();
        if !wants_tls {
            return;
        }
        let at = |result| Kind {
            result,
            mx: Some(host.clone()),
            receiving_ip: Some(target.peer.ip()),
            sending_ip: target.local,
        };
        if let Some(set) = tlsa
            && let Some(result) = judge::by_records(set, session)
        {
            self.count(Type::Tlsa, domain, result.map_err(at));
        }
        match mta_sts {
            // Where records decide, that says nothing of the policy (RFC 8461 §2).
            Some(policy) if !tlsa.is_some_and(TlsaSet::authenticates) => {
                if let Some(result) = judge::by_policy(policy, host, session) {
                    self.keep(policy);
                    self.count(Type::Sts, domain, result.map_err(at));
                }
            }
            None if tlsa.is_none() => {
                if let Some(result) = judge::by_tls(session) {
                    self.count(Type::NoPolicyFound, domain, result.map_err(at));
                }
            }
            _ => {}
        }
    }

    pub(super) fn nothing_permitted(&mut self, policy: &Arc<KnownPolicy>) {
        self.keep(policy);
        self.count(Type::Sts, policy.domain(), Err(Kind::of(TlsResult::ValidationFailure)));
    }

    fn keep(&mut self, policy: &Arc<KnownPolicy>) {
        self.tick += 1;
        let (name, tick) = (policy.domain(), self.tick);
        let Some(domain) = self.domain(Type::Sts, name) else { return };
        if domain.policy.as_ref().is_some_and(|(kept, _)| Arc::ptr_eq(kept, policy)) {
            return;
        }
        let before = domain.policy.replace((policy.clone(), tick));
        if let Some((policy, tick)) = before {
            self.policies.remove(&policy_held(&policy, tick));
        }
        self.policies.add(&policy_held(policy, tick));
        while self.policies.is_over() {
            let goes = self.policies.first_of_a_hoarder().cloned().unwrap_or_else(|| name.into());
            self.forget_policy(&goes);
        }
    }

    fn forget_policy(&mut self, name: &str) {
        let domain = self.types.get_mut(&Type::Sts).and_then(|domains| domains.by_name.get_mut(name));
        if let Some((policy, tick)) = domain.and_then(|domain| domain.policy.take()) {
            self.policies.remove(&policy_held(&policy, tick));
        }
    }

    pub(super) fn count(&mut self, of: Type, domain: &str, result: Result<(), Kind>) {
        match (self.domain(of, domain), result) {
            (None, _) => self.uncounted += 1,
            (Some(domain), Ok(())) => domain.successful += 1,
            (Some(domain), Err(kind)) => domain.failed(kind),
        }
    }

    pub(super) fn take(&mut self, now: Timestamp) -> TlsReport {
        let counts = std::mem::replace(self, Self::new(now));
        let of_type = |(of, domains): (Type, Domains)| {
            domains.by_name.into_iter().map(move |(name, domain)| DomainTls {
                domain: name,
                policy: match of {
                    Type::Tlsa => TlsPolicy::Tlsa,
                    Type::Sts => TlsPolicy::Sts(domain.policy.map(|(policy, _)| policy)),
                    Type::NoPolicyFound => TlsPolicy::NoPolicyFound,
                },
                successful: domain.successful,
                failures: domain.failures.into_iter().map(failures).collect(),
            })
        };
        let mut domains: Vec<DomainTls> = counts.types.into_iter().flat_map(of_type).collect();
        domains.sort_by(|one, other| one.domain.cmp(&other.domain));
        TlsReport { since: counts.since, until: now, domains, uncounted: counts.uncounted }
    }

    fn domain(&mut self, of: Type, name: &str) -> Option<&mut Domain> {
        if !self.types.entry(of).or_default().by_name.contains_key(name) {
            self.begin(of, name);
        }
        self.types.get_mut(&of)?.by_name.get_mut(name)
    }

    /// Counts for one more domain. Without room that takes another's place, or is not counted for.
    fn begin(&mut self, of: Type, name: &str) {
        self.tick += 1;
        let (name, tick): (Arc<str>, _) = (name.into(), self.tick);
        let domains = self.types.entry(of).or_default();
        domains.shares.add(&domain_held(&name, tick));
        domains.by_name.insert(name.clone(), Domain { tick, ..Domain::default() });
        if !domains.shares.is_over() {
            return;
        }
        let goes = domains.shares.first_of_a_hoarder().cloned().unwrap_or(name);
        if of == Type::Sts {
            self.forget_policy(&goes);
        }
        let Some(domains) = self.types.get_mut(&of) else { return };
        if let Some(gone) = domains.by_name.remove(&goes) {
            domains.shares.remove(&domain_held(&goes, gone.tick));
            self.uncounted += gone.successful + gone.failures.values().sum::<u64>();
        }
    }
}

fn domain_held(name: &Arc<str>, tick: u64) -> Held {
    Held { name: name.clone(), tick, is_dear: false, weight: 1 }
}

fn policy_held(policy: &KnownPolicy, tick: u64) -> Held {
    Held { name: policy.domain().into(), tick, is_dear: false, weight: policy.weight() }
}

impl Domain {
    fn failed(&mut self, mut kind: Kind) {
        if self.failures.len() >= MOST_FAILURES && !self.failures.contains_key(&kind) {
            kind = Kind::of(kind.result);
        }
        *self.failures.entry(kind).or_default() += 1;
    }
}

fn failures((kind, count): (Kind, u64)) -> TlsFailures {
    let Kind { result, mx, receiving_ip, sending_ip } = kind;
    TlsFailures { result, mx, receiving_ip, sending_ip, count }
}

#[cfg(test)]
mod tests;
