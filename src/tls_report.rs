//! Counters for TLS reports (RFC 8460): what the owners of domains want to be told once a day of sessions for their mail.
//!
//! [`DeliveryEngine::take_tls_report`](crate::DeliveryEngine::take_tls_report) takes them. The engine sends no report.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::{Clock, Timestamp};
use crate::dane::TlsaSet;
use crate::mta_sts::{FetchErrorKind, KnownPolicy, Mode};
use crate::policy::StartTls;
use crate::transport::{CertificateProblem, ConnectError, EndCause, Target};

/// Domains that are counted for, by each type of policy.
const MOST_DOMAINS: usize = 10_000;
/// Kinds of failures told apart for one domain, by result, host and address.
const MOST_FAILURES: usize = 32;
/// Octets of policies kept for a report.
const MOST_OCTETS: usize = 8 << 20;

/// What happened to sessions since the last report was taken.
///
/// A session counts once for the domain whose mail opened it, and once for each other whose mail goes over it: up to 128. An attempt at
/// one that fails counts for one domain, in a rollup for one of those that have mail to send. Sessions with fixed hosts and address literals,
/// and where `use-starttls` is `"off"`, are not counted. Nothing of it outlives the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsReport {
    /// From when: the start of the engine, or when the last one was taken.
    pub since: Timestamp,
    /// Until when: now.
    pub until: Timestamp,
    /// By domain and type of policy, in order of their names; at most 10,000 of each type.
    pub domains: Vec<DomainTls>,
    /// Sessions and fetches of further domains, not counted there.
    pub uncounted: u64,
}

/// A policy domain's part, for one type of policy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DomainTls {
    /// The domain.
    pub domain: Arc<str>,
    /// What the sessions are held to.
    pub policy: TlsPolicy,
    /// Sessions as the policy wants them (`total-successful-session-count`).
    pub successful: u64,
    /// What failed. In mode `testing`, and without a policy, such sessions are used all the same.
    pub failures: Vec<TlsFailures>,
}

/// What a domain's sessions are held to (`policy-type`, RFC 8460 §4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsPolicy {
    /// Hosts' TLSA records (DANE). They are not kept.
    Tlsa,
    /// The domain's MTA-STS policy, as it was last; `None`: none could be had, or those of other domains were 8 MiB already.
    Sts(Option<Arc<KnownPolicy>>),
    /// Neither is there.
    NoPolicyFound,
}

impl TlsPolicy {
    /// Its word in a report.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Tlsa => "tlsa",
            Self::Sts(_) => "sts",
            Self::NoPolicyFound => "no-policy-found",
        }
    }
}

/// Failures of one kind (`failure-details`, RFC 8460 §4.4).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsFailures {
    /// Of which kind.
    pub result: TlsResult,
    /// The host, unless it is about the policy; `None` too for what is beyond 32 kinds of one domain.
    pub mx: Option<Arc<str>>,
    /// Its address.
    pub receiving_ip: Option<IpAddr>,
    /// The address it was sent from; `None`: the system chose.
    pub sending_ip: Option<IpAddr>,
    /// How many (`failed-session-count`).
    pub count: u64,
}

/// What failed (RFC 8460 §4.3). `dane-required` does not occur: nothing demands TLSA records of hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TlsResult {
    /// The session had no TLS: the server does not offer STARTTLS, or refuses it; in mode `testing` and without a policy, or it failed.
    StartTlsNotSupported,
    /// The certificate is for other names.
    CertificateHostMismatch,
    /// The certificate has run out.
    CertificateExpired,
    /// The certificate does not lead to a root that is trusted.
    CertificateNotTrusted,
    /// Something else: no handshake, a host that the policy does not permit, a certificate that matches no TLSA record.
    ValidationFailure,
    /// The host has TLSA records, and none is usable.
    TlsaInvalid,
    /// A host's TLSA records could not be found out, or are bogus: the host is not used. Counted for each look-up.
    DnssecInvalid,
    /// The policy could not be fetched.
    StsPolicyFetchError,
    /// The policy is not well formed.
    StsPolicyInvalid,
    /// The certificate of the policy's web server is not valid for it.
    StsWebpkiInvalid,
}

impl TlsResult {
    /// Its word in a report.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StartTlsNotSupported => "starttls-not-supported",
            Self::CertificateHostMismatch => "certificate-host-mismatch",
            Self::CertificateExpired => "certificate-expired",
            Self::CertificateNotTrusted => "certificate-not-trusted",
            Self::ValidationFailure => "validation-failure",
            Self::TlsaInvalid => "tlsa-invalid",
            Self::DnssecInvalid => "dnssec-invalid",
            Self::StsPolicyFetchError => "sts-policy-fetch-error",
            Self::StsPolicyInvalid => "sts-policy-invalid",
            Self::StsWebpkiInvalid => "sts-webpki-invalid",
        }
    }
}

impl From<CertificateProblem> for TlsResult {
    fn from(problem: CertificateProblem) -> Self {
        match problem {
            CertificateProblem::OtherHost => Self::CertificateHostMismatch,
            CertificateProblem::Expired => Self::CertificateExpired,
            CertificateProblem::NotTrusted => Self::CertificateNotTrusted,
            CertificateProblem::TlsaMismatch | CertificateProblem::Invalid => Self::ValidationFailure,
        }
    }
}

impl From<FetchErrorKind> for TlsResult {
    fn from(kind: FetchErrorKind) -> Self {
        match kind {
            FetchErrorKind::NoAnswer => Self::StsPolicyFetchError,
            FetchErrorKind::Certificate => Self::StsWebpkiInvalid,
            FetchErrorKind::NoPolicy => Self::StsPolicyInvalid,
        }
    }
}

/// What a session came to that was opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionTls {
    pub(crate) is_there: bool,
    /// What roots say of the certificate. `None`: nobody has looked at it.
    pub(crate) certificate: Option<Result<(), CertificateProblem>>,
}

/// A domain, and what its mail holds a session to.
#[derive(Clone, Copy)]
pub(crate) struct HeldTo<'a> {
    pub(crate) domain: &'a str,
    pub(crate) host: &'a Arc<str>,
    /// The host's.
    pub(crate) tlsa: Option<&'a TlsaSet>,
    /// The domain's policy.
    pub(crate) mta_sts: Option<&'a Arc<KnownPolicy>>,
    /// What the session was opened with.
    pub(crate) target: &'a Target,
}

/// All that is counted.
pub(crate) struct TlsCounts {
    clock: Clock,
    counts: Mutex<Counts>,
}

impl TlsCounts {
    pub(crate) fn new(clock: Clock) -> Self {
        let counts = Mutex::new(Counts::new(clock.now()));
        Self { clock, counts }
    }

    /// A connection, and what it came to.
    pub(crate) fn session(&self, held_to: &HeldTo<'_>, session: Result<SessionTls, &ConnectError>) {
        self.lock().session(held_to, session);
    }

    /// An MTA-STS policy that permits none of the hosts.
    pub(crate) fn nothing_permitted(&self, policy: &Arc<KnownPolicy>) {
        self.lock().nothing_permitted(policy);
    }

    /// A fetch of an MTA-STS policy that failed.
    pub(crate) fn fetch(&self, domain: &str, kind: FetchErrorKind) {
        self.lock().count(Type::Sts, domain, Err(Kind::of(kind.into())));
    }

    /// A host's TLSA records could not be found out. `None`: those of all of them.
    pub(crate) fn records_unknown(&self, domain: &str, host: Option<&Arc<str>>) {
        let kind = Kind { mx: host.cloned(), ..Kind::of(TlsResult::DnssecInvalid) };
        self.lock().count(Type::Tlsa, domain, Err(kind));
    }

    /// What was counted since this was last asked.
    pub(crate) fn take(&self) -> TlsReport {
        self.lock().take(self.clock.now())
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Counts {
    since: Timestamp,
    types: BTreeMap<Type, BTreeMap<Arc<str>, Domain>>,
    /// What the policies of the domains take.
    octets: usize,
    uncounted: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Type {
    Tlsa,
    Sts,
    NoPolicyFound,
}

/// With the host, its address and ours, if it is about one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    result: TlsResult,
    mx: Option<Arc<str>>,
    receiving_ip: Option<IpAddr>,
    sending_ip: Option<IpAddr>,
}

impl Kind {
    fn of(result: TlsResult) -> Self {
        Self { result, mx: None, receiving_ip: None, sending_ip: None }
    }
}

#[derive(Debug, Default)]
struct Domain {
    /// Its MTA-STS policy.
    policy: Option<Arc<KnownPolicy>>,
    successful: u64,
    failures: BTreeMap<Kind, u64>,
}

impl Counts {
    fn new(since: Timestamp) -> Self {
        Self { since, ..Self::default() }
    }

    fn session(&mut self, held_to: &HeldTo<'_>, session: Result<SessionTls, &ConnectError>) {
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
            && let Some(result) = judge_by_records(set, session)
        {
            self.count(Type::Tlsa, domain, result.map_err(at));
        }
        match mta_sts {
            // Where records decide, that says nothing of the policy (RFC 8461 §2).
            Some(policy) if !tlsa.is_some_and(TlsaSet::authenticates) => {
                if let Some(result) = judge(policy, host, session) {
                    self.keep(policy);
                    self.count(Type::Sts, domain, result.map_err(at));
                }
            }
            None if tlsa.is_none() => {
                if let Some(result) = judge_tls(session) {
                    self.count(Type::NoPolicyFound, domain, result.map_err(at));
                }
            }
            _ => {}
        }
    }

    fn nothing_permitted(&mut self, policy: &Arc<KnownPolicy>) {
        self.keep(policy);
        self.count(Type::Sts, policy.domain(), Err(Kind::of(TlsResult::ValidationFailure)));
    }

    fn keep(&mut self, policy: &Arc<KnownPolicy>) {
        let octets = self.octets;
        let Some(domain) = self.domain(Type::Sts, policy.domain()) else { return };
        let others = octets - domain.policy.take().map_or(0, |old| old.weight());
        let with_it = others + policy.weight();
        if with_it <= MOST_OCTETS {
            domain.policy = Some(policy.clone());
        }
        self.octets = if with_it <= MOST_OCTETS { with_it } else { others };
    }

    fn count(&mut self, of: Type, domain: &str, result: Result<(), Kind>) {
        match (self.domain(of, domain), result) {
            (None, _) => self.uncounted += 1,
            (Some(domain), Ok(())) => domain.successful += 1,
            (Some(domain), Err(kind)) => domain.failed(kind),
        }
    }

    fn take(&mut self, now: Timestamp) -> TlsReport {
        let counts = std::mem::replace(self, Self::new(now));
        let of_type = |(of, domains): (Type, BTreeMap<Arc<str>, Domain>)| {
            domains.into_iter().map(move |(name, domain)| DomainTls {
                domain: name,
                policy: match of {
                    Type::Tlsa => TlsPolicy::Tlsa,
                    Type::Sts => TlsPolicy::Sts(domain.policy),
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
        let domains = self.types.entry(of).or_default();
        if !domains.contains_key(name) {
            if domains.len() >= MOST_DOMAINS {
                return None;
            }
            domains.insert(name.into(), Domain::default());
        }
        domains.get_mut(name)
    }
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

/// Whether a connection was as the host's TLSA records want it. `None`: it says nothing of TLS.
fn judge_by_records(
    set: &TlsaSet,
    session: Result<SessionTls, &ConnectError>,
) -> Option<Result<(), TlsResult>> {
    let is_about_certificate =
        session.is_ok() || session.is_err_and(|error| matches!(error.cause, EndCause::Certificate(..)));
    // Without a usable record any certificate will do, and who refused it was somebody else.
    if !set.authenticates() && is_about_certificate {
        return Some(Err(TlsResult::TlsaInvalid));
    }
    judge_tls(session)
}

/// Whether a connection was as a policy wants it. `None`: it says nothing of TLS.
fn judge(
    policy: &KnownPolicy,
    host: &str,
    session: Result<SessionTls, &ConnectError>,
) -> Option<Result<(), TlsResult>> {
    let is_tested = policy.policy().mode() == Mode::Testing;
    match session {
        Ok(tls) if tls.is_there && is_tested => match tls.certificate {
            _ if !policy.policy().permits(host) => Some(Err(TlsResult::ValidationFailure)),
            verdict => verdict.map(|verdict| verdict.map_err(TlsResult::from)),
        },
        session => judge_tls(session),
    }
}

/// Whether a connection had TLS, with a certificate that nobody had to say anything against who was to look at it.
fn judge_tls(session: Result<SessionTls, &ConnectError>) -> Option<Result<(), TlsResult>> {
    Some(match session {
        Ok(tls) if tls.is_there => Ok(()),
        Ok(_) => Err(TlsResult::StartTlsNotSupported),
        Err(error) => match &error.cause {
            EndCause::TlsNotOffered | EndCause::TlsRefused(_) => Err(TlsResult::StartTlsNotSupported),
            EndCause::Certificate(problem, _) => Err((*problem).into()),
            EndCause::Tls(_) => Err(TlsResult::ValidationFailure),
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests;
