//! Finding where mail goes: the trait [`Resolver`], its implementations, and MX logic (RFC 5321 §5).

mod cache;
#[cfg(feature = "hickory")]
mod hickory;
mod mx;
mod route;
mod tlsa;
mod txt;
mod zone;

use std::fmt::{Debug, Display};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use cache::{CacheOptions, CachingResolver};
#[cfg(feature = "hickory")]
pub use hickory::{HickoryBuilder, HickoryError, HickoryResolver};
pub use mx::{MAX_MAIL_EXCHANGERS, MailExchangers};
pub use route::{
    Route, RouteFailure, RouteFailureKind, RouteHost, RouteKind, RouteOptions, find_fixed_route, find_route,
};
pub use tlsa::TlsaRecord;
use tlsa::is_too_much;
pub use txt::TxtRecord;
pub use zone::{Dnssec, StaticResolver, ZoneError, ZoneProblem};

/// Answers DNS questions.
///
/// # Contract
///
/// - Every name is absolute, lower case, A-labels, without trailing dot. No search list, no hosts file.
/// - CNAMEs are followed; the records are those of the canonical name.
/// - [`Freshness::Fresh`] asks past any cache of the resolver's own.
/// - What DNS does not have ([`Data::NoData`], [`Data::NxDomain`]) is an answer; what could not be found out
///   is a [`DnsError`]. A bogus answer (DNSSEC) is an error, never an answer.
/// - An answer counts as [authentic](Answer::authentic) only if a validating resolver said so that can not be
///   impersonated on the way. DANE (RFC 7672) rests on that; where it is never said there is none.
/// - Bounded: at most so many look-ups at a time, each with a time limit.
///
/// # Cancel safety
///
/// All methods may be dropped at any time.
#[async_trait]
pub trait Resolver: Debug + Display + Send + Sync + 'static {
    /// The MX records of `domain`.
    async fn mx(&self, domain: &str, freshness: Freshness) -> Result<Answer<MxRecord>, DnsError>;

    /// The A records of `host`.
    async fn ipv4(&self, host: &str, freshness: Freshness) -> Result<Answer<Ipv4Addr>, DnsError>;

    /// The AAAA records of `host`.
    async fn ipv6(&self, host: &str, freshness: Freshness) -> Result<Answer<Ipv6Addr>, DnsError>;

    /// The TXT records of `name`, by which domains say that they have an MTA-STS policy (RFC 8461 §3.1).
    ///
    /// Provided: fails with [`DnsErrorKind::Unsupported`], so that with a resolver that lacks it no domain has such a
    /// policy.
    async fn txt(&self, name: &str, freshness: Freshness) -> Result<Answer<TxtRecord>, DnsError> {
        let _ = freshness;
        let kind = DnsErrorKind::Unsupported;
        Err(DnsError::new(kind, format!("TXT of {name}: {}", kind.as_str())))
    }

    /// The TLSA records of `name`, such as `_25._tcp.mx.example.net` (RFC 6698 §3). Never records past their TTL. Of a host with
    /// more than 32 records, or more than 16 KiB of data in them, nothing is used.
    ///
    /// Provided: fails with [`DnsErrorKind::Unsupported`], so that with a resolver that lacks it there is no DANE.
    async fn tlsa(&self, name: &str, freshness: Freshness) -> Result<Answer<TlsaRecord>, DnsError> {
        let _ = freshness;
        let kind = DnsErrorKind::Unsupported;
        Err(DnsError::new(kind, format!("TLSA of {name}: {}", kind.as_str())))
    }

    /// The CNAME record of `name` itself, not followed. Asked for where a name leads to another and not all of that is
    /// authentic (RFC 7672 §2.2.2).
    ///
    /// Provided: fails with [`DnsErrorKind::Unsupported`], so that such names have no DANE.
    async fn cname(&self, name: &str, freshness: Freshness) -> Result<Answer<Arc<str>>, DnsError> {
        let _ = freshness;
        let kind = DnsErrorKind::Unsupported;
        Err(DnsError::new(kind, format!("CNAME of {name}: {}", kind.as_str())))
    }
}

fn _obj_safe(_: &dyn Resolver) {}

/// Whether a cached answer will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "yes or no")]
pub enum Freshness {
    /// Any answer within its TTL; or, after a failed look-up, records past it that stand in
    /// ([`CacheOptions::max_stale`]).
    #[default]
    Cached,
    /// Only one asked for now.
    Fresh,
}

/// What DNS says.
///
/// ```
/// use std::time::Duration;
/// use postrider::dns::{Answer, Data, MxRecord};
/// let minute = Duration::from_secs(60);
/// let answer = Answer::records(vec![MxRecord::from((10, "mx.example.net"))], minute).authenticated(true);
/// assert!(matches!(answer.data, Data::Records(_)) && answer.authentic);
/// assert_eq!(Answer::<MxRecord>::nx_domain(minute).data, Data::NxDomain);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer<T> {
    /// The records, or that there are none.
    pub data: Data<T>,
    /// How long that holds: the least of the records' TTLs; of what is not there, from the SOA.
    pub ttl: Duration,
    /// All of it, every CNAME included, was found authentic by DNSSEC (RFC 4035 §3.2.3, the AD bit), by somebody whose word
    /// counts. `false` where that is not known. Of records that stand in past their TTL: what was so within it, so that nobody takes DANE
    /// away by keeping DNS from answering; TLSA and CNAME records never stand in.
    pub authentic: bool,
    /// The name that CNAMEs led to; `None`: there were none.
    pub canonical: Option<Arc<str>>,
}

/// What DNS has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "RFC 2308 knows these three")]
pub enum Data<T> {
    /// At least one record, in the order of the answer.
    Records(Vec<T>),
    /// The name exists and has no such record (RFC 2308 §2.2).
    NoData,
    /// The name does not exist (RFC 2308 §2.1).
    NxDomain,
}

impl<T> Answer<T> {
    /// Records.
    pub fn records(records: Vec<T>, ttl: Duration) -> Self {
        Self::of(Data::Records(records), ttl)
    }

    /// The name exists and has no such record.
    pub fn no_data(ttl: Duration) -> Self {
        Self::of(Data::NoData, ttl)
    }

    /// The name does not exist.
    pub fn nx_domain(ttl: Duration) -> Self {
        Self::of(Data::NxDomain, ttl)
    }

    fn of(data: Data<T>, ttl: Duration) -> Self {
        Self { data, ttl, authentic: false, canonical: None }
    }

    /// Sets [`Answer::authentic`].
    #[must_use]
    pub fn authenticated(mut self, authentic: bool) -> Self {
        self.authentic = authentic;
        self
    }

    /// Sets [`Answer::canonical`].
    #[must_use]
    pub fn at(mut self, canonical: Option<Arc<str>>) -> Self {
        self.canonical = canonical;
        self
    }
}

/// An MX record (RFC 1035 §3.3.9).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(clippy::exhaustive_structs, reason = "two fields are the standard")]
pub struct MxRecord {
    /// Lower is tried first.
    pub preference: u16,
    /// Lower case, A-labels, no trailing dot. Empty: the root, which alone says that the domain takes no mail
    /// (RFC 7505).
    pub exchange: String,
}

/// A preference and a name, as a person writes them.
impl From<(u16, &str)> for MxRecord {
    fn from((preference, exchange): (u16, &str)) -> Self {
        Self { preference, exchange: mx::normal(exchange) }
    }
}

/// Why an answer could not be found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DnsErrorKind {
    /// The server could not answer (RCODE 2), a bogus DNSSEC answer included.
    ServFail,
    /// No answer in time.
    Timeout,
    /// The server would not answer (RCODE 5).
    Refused,
    /// The answer, or the question, was not well formed.
    Malformed,
    /// No server could be reached: this machine's trouble rather than the domain's.
    Unreachable,
    /// The resolver does not ask for records of this type.
    Unsupported,
}

impl DnsErrorKind {
    /// In words for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ServFail => "the server could not answer (SERVFAIL)",
            Self::Timeout => "no answer in time",
            Self::Refused => "the server would not answer (REFUSED)",
            Self::Malformed => "the answer is not well formed",
            Self::Unreachable => "no DNS server can be reached",
            Self::Unsupported => "this resolver does not ask for records of this type",
        }
    }
}

/// A question without an answer. Never a reason to bounce.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DnsError {
    kind: DnsErrorKind,
    message: String,
}

impl DnsError {
    /// An error of this kind; `message` names the question and what happened.
    pub fn new(kind: DnsErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Which kind.
    pub fn kind(&self) -> DnsErrorKind {
        self.kind
    }
}
