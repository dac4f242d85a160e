//! Counters for TLS reports (RFC 8460): what the owners of domains want to be told once a day of sessions for their mail.
//!
//! [`DeliveryEngine::take_tls_report`](crate::DeliveryEngine::take_tls_report) takes them. The engine sends no report.

mod counts;
mod judge;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::counts::{Counts, Kind, Type};
use crate::clock::{Clock, Timestamp};
use crate::dane::TlsaSet;
use crate::mta_sts::{FetchErrorKind, KnownPolicy};
use crate::transport::{CertificateProblem, ConnectError, Target};

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

#[cfg(test)]
mod tests;
