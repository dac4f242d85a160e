//! Counters for TLS reports (RFC 8460): what domains with an MTA-STS policy want to be told once a day.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{FetchErrorKind, KnownPolicy, Mode};
use crate::clock::Timestamp;
use crate::transport::{CertificateProblem, ConnectError, EndCause, Target};

/// Domains that are counted for.
const MOST_DOMAINS: usize = 10_000;
/// Kinds of failures told apart for one domain, by result, host and address.
const MOST_FAILURES: usize = 32;

/// What happened to sessions of domains with an MTA-STS policy since the last report was taken.
///
/// A session counts for the domain whose mail opened it, once, whatever else is sent over it. Sessions with hosts that are
/// known by their TLSA records (DANE) are not counted. Nothing of it outlives the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsReport {
    /// From when: the start of the engine, or when the last one was taken.
    pub since: Timestamp,
    /// Until when: now.
    pub until: Timestamp,
    /// By domain, in order of their names; at most 10,000.
    pub domains: Vec<DomainTls>,
    /// Sessions and fetches of further domains, not counted there.
    pub uncounted: u64,
}

/// A policy domain's part.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DomainTls {
    /// The domain.
    pub domain: Arc<str>,
    /// Its policy, as it was last; `None`: none could be had.
    pub policy: Option<Arc<KnownPolicy>>,
    /// Sessions as the policy wants them (`total-successful-session-count`).
    pub successful: u64,
    /// What failed. In mode `testing` such sessions are used all the same.
    pub failures: Vec<TlsFailures>,
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
    /// How many (`failed-session-count`).
    pub count: u64,
}

/// What failed (RFC 8460 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TlsResult {
    /// The session had no TLS: the server does not offer STARTTLS; in mode `testing`, or it failed.
    StartTlsNotSupported,
    /// The certificate is for other names.
    CertificateHostMismatch,
    /// The certificate has run out.
    CertificateExpired,
    /// The certificate does not lead to a root that is trusted.
    CertificateNotTrusted,
    /// Something else: no handshake, a host that the policy does not permit.
    ValidationFailure,
    /// The policy could not be fetched.
    StsPolicyFetchError,
    /// The policy is not well formed.
    StsPolicyInvalid,
    /// The certificate of the policy's web server is not valid for it.
    StsWebpkiInvalid,
}

impl TlsReport {
    /// Nothing is counted.
    pub(crate) fn empty(now: Timestamp) -> Self {
        Self { since: now, until: now, domains: Vec::new(), uncounted: 0 }
    }
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
    pub(crate) certificate: Option<CertificateProblem>,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    since: Timestamp,
    domains: BTreeMap<Arc<str>, Domain>,
    uncounted: u64,
}

/// With the host and its address, unless it is about the policy.
type Kind = (TlsResult, Option<(Arc<str>, IpAddr)>);

#[derive(Debug, Default)]
struct Domain {
    policy: Option<Arc<KnownPolicy>>,
    successful: u64,
    failures: BTreeMap<Kind, u64>,
}

impl Counts {
    pub(super) fn new(since: Timestamp) -> Self {
        Self { since, ..Self::default() }
    }

    /// A connection for a domain with this policy.
    pub(super) fn session(
        &mut self,
        policy: &Arc<KnownPolicy>,
        target: &Target,
        session: Result<SessionTls, &ConnectError>,
    ) {
        let Some(result) = judge(policy, &target.host, session) else { return };
        let Some(domain) = self.domain(policy.domain()) else { return };
        domain.policy = Some(policy.clone());
        match result {
            Ok(()) => domain.successful += 1,
            Err(result) => domain.failed(result, Some((target.host.clone(), target.peer.ip()))),
        }
    }

    /// A policy that permits none of the hosts.
    pub(super) fn nothing_permitted(&mut self, policy: &Arc<KnownPolicy>) {
        if let Some(domain) = self.domain(policy.domain()) {
            domain.policy = Some(policy.clone());
            domain.failed(TlsResult::ValidationFailure, None);
        }
    }

    /// A fetch that failed.
    pub(super) fn fetch(&mut self, domain: &str, kind: FetchErrorKind) {
        if let Some(domain) = self.domain(domain) {
            domain.failed(kind.into(), None);
        }
    }

    pub(super) fn take(&mut self, now: Timestamp) -> TlsReport {
        let counts = std::mem::replace(self, Self::new(now));
        let domains = counts.domains.into_iter().map(|(name, domain)| DomainTls {
            domain: name,
            policy: domain.policy,
            successful: domain.successful,
            failures: domain.failures.into_iter().map(failures).collect(),
        });
        TlsReport { since: counts.since, until: now, domains: domains.collect(), uncounted: counts.uncounted }
    }

    fn domain(&mut self, name: &str) -> Option<&mut Domain> {
        if !self.domains.contains_key(name) {
            if self.domains.len() >= MOST_DOMAINS {
                self.uncounted += 1;
                return None;
            }
            self.domains.insert(name.into(), Domain::default());
        }
        self.domains.get_mut(name)
    }
}

impl Domain {
    fn failed(&mut self, result: TlsResult, host: Option<(Arc<str>, IpAddr)>) {
        let mut kind = (result, host);
        if self.failures.len() >= MOST_FAILURES && !self.failures.contains_key(&kind) {
            kind.1 = None;
        }
        *self.failures.entry(kind).or_default() += 1;
    }
}

fn failures(((result, host), count): (Kind, u64)) -> TlsFailures {
    let (mx, receiving_ip) = host.unzip();
    TlsFailures { result, mx, receiving_ip, count }
}

/// Whether a connection was as the policy wants it. `None`: it says nothing of TLS.
fn judge(
    policy: &KnownPolicy,
    host: &str,
    session: Result<SessionTls, &ConnectError>,
) -> Option<Result<(), TlsResult>> {
    let permitted = || policy.policy().permits(host);
    Some(match session {
        Ok(tls) if !tls.is_there => Err(TlsResult::StartTlsNotSupported),
        Ok(_) if policy.policy().mode() == Mode::Testing && !permitted() => Err(TlsResult::ValidationFailure),
        Ok(tls) => tls.certificate.map_or(Ok(()), |problem| Err(problem.into())),
        Err(error) => match &error.cause {
            EndCause::TlsNotOffered => Err(TlsResult::StartTlsNotSupported),
            EndCause::Certificate(problem, _) => Err((*problem).into()),
            EndCause::Tls(_) => Err(TlsResult::ValidationFailure),
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::Stage;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    fn policy(mode: &str) -> Arc<KnownPolicy> {
        let text = format!("version: STSv1\nmode: {mode}\nmx: mx.example.net\nmax_age: 86400");
        KnownPolicy::for_tests("1", &text)
    }

    #[test]
    fn sessions_are_judged() {
        let there = |certificate| Ok(SessionTls { is_there: true, certificate });
        let error = |cause| ConnectError { stage: Stage::Ehlo, cause };
        let certificate = |problem| error(EndCause::Certificate(problem, String::new()));
        let plain = Ok(SessionTls { is_there: false, certificate: None });
        let expired = Some(CertificateProblem::Expired);
        for (mode, host, session, expected) in [
            ("enforce", "mx.example.net", there(None), Some(Ok(()))),
            ("testing", "mx.example.net", there(None), Some(Ok(()))),
            ("testing", "mx.example.net", plain, Some(Err("starttls-not-supported"))),
            ("testing", "mx2.example.net", there(None), Some(Err("validation-failure"))),
            ("testing", "mx.example.net", there(expired), Some(Err("certificate-expired"))),
            (
                "enforce",
                "mx.example.net",
                Err(&error(EndCause::TlsNotOffered)),
                Some(Err("starttls-not-supported")),
            ),
            (
                "enforce",
                "mx.example.net",
                Err(&certificate(CertificateProblem::OtherHost)),
                Some(Err("certificate-host-mismatch")),
            ),
            (
                "enforce",
                "mx.example.net",
                Err(&certificate(CertificateProblem::NotTrusted)),
                Some(Err("certificate-not-trusted")),
            ),
            (
                "enforce",
                "mx.example.net",
                Err(&error(EndCause::Tls(String::new()))),
                Some(Err("validation-failure")),
            ),
            ("enforce", "mx.example.net", Err(&error(EndCause::Closed)), None),
        ] {
            let judged = judge(&policy(mode), host, session);
            let judged = judged.map(|result| result.map_err(TlsResult::as_str));
            assert_eq!(judged, expected, "{mode} {host} {session:?}");
        }
    }

    #[test]
    fn a_report_is_taken_once() {
        let mut counts = Counts::new(at(5));
        counts.fetch("a.example", FetchErrorKind::NoAnswer);
        counts.fetch("a.example", FetchErrorKind::NoAnswer);
        counts.fetch("a.example", FetchErrorKind::Certificate);
        counts.nothing_permitted(&policy("enforce"));
        let report = counts.take(at(9));
        assert_eq!((report.since, report.until, report.domains.len()), (at(5), at(9), 2));
        let failure = |result, count| TlsFailures { result, mx: None, receiving_ip: None, count };
        let expected = [failure(TlsResult::StsPolicyFetchError, 2), failure(TlsResult::StsWebpkiInvalid, 1)];
        assert_eq!(report.domains[0].failures, expected);
        assert_eq!(report.domains[1].policy, Some(policy("enforce")));
        let next = counts.take(at(10));
        assert_eq!((next.since, next.domains.len()), (at(9), 0));
    }

    #[test]
    fn what_is_counted_is_bounded() {
        let mut counts = Counts::default();
        for n in 0..MOST_DOMAINS + 7 {
            counts.fetch(&format!("d{n}.example"), FetchErrorKind::NoPolicy);
        }
        counts.fetch("d0.example", FetchErrorKind::NoPolicy);
        let report = counts.take(at(1));
        assert_eq!((report.domains.len(), report.uncounted), (MOST_DOMAINS, 7));
        let mut domain = Domain::default();
        for n in 0..100u8 {
            let host = (format!("mx{n}.example").into(), IpAddr::from([192, 0, 2, n]));
            domain.failed(TlsResult::CertificateExpired, Some(host));
        }
        assert_eq!(domain.failures.len(), MOST_FAILURES + 1);
        assert_eq!(domain.failures[&(TlsResult::CertificateExpired, None)], 68);
    }
}
