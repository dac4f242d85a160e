//! [`HickoryResolver`]: DNS over the network, by hickory-resolver.

mod server;
mod system;
#[cfg(test)]
mod tests;
mod upstream;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use self::upstream::Upstream;
use super::{
    Answer, CacheOptions, CachingResolver, DnsError, Freshness, MxRecord, Resolver, TlsaRecord, TxtRecord,
};
use crate::clock::Clock;

/// Asks recursive name servers, and remembers their answers ([`CachingResolver`]).
///
/// Name servers are asked one after the other, beginning with the one that answered last; a server that fails,
/// refuses or keeps silent is passed over. Over UDP with EDNS, over TCP where an answer does not fit. No search
/// list, no hosts file. `localhost` and `invalid` (RFC 6761) are answered without asking. Clones share everything.
///
/// Of one answer at most 128 records are kept, of MX those of the lowest preference numbers. An answer with more than
/// 8 KiB of text (TXT), or more than 32 TLSA records or 16 KiB of their data, is
/// [`Malformed`](super::DnsErrorKind::Malformed). CNAMEs are followed, at most eight.
///
/// When all stay silent, they are asked for the root: if they are silent then too, the failure is
/// [`DnsErrorKind::Unreachable`](super::DnsErrorKind::Unreachable), this machine's trouble, else the domain's
/// [`Timeout`](super::DnsErrorKind::Timeout).
///
/// # DNSSEC
///
/// It is left to the name servers. A validating one answers SERVFAIL for what is bogus, which defers the mail, and marks
/// what it found [authentic](Answer::authentic) by the AD bit (RFC 4035 §3.2.3). Whoever sits between it and this machine could
/// set that bit too, so it counts only
///
/// - if all name servers are on the loopback interface, or
/// - if they are the system's, and `/etc/resolv.conf` has `options trust-ad`, or
/// - if [`HickoryBuilder::trust_ad`] says so.
///
/// It counts for all of them or for none: where one of them fails the next is asked, and what the first found bogus must
/// not be believed then. Each of them must validate. Without the bit there is no DANE.
///
/// Must be used inside a tokio runtime, with its time and I/O enabled.
#[derive(Clone, Debug)]
pub struct HickoryResolver {
    cache: CachingResolver<Upstream>,
}

/// Settings of a [`HickoryResolver`].
#[derive(Clone, Debug)]
#[must_use]
pub struct HickoryBuilder {
    nameservers: Option<Vec<SocketAddr>>,
    timeout: Duration,
    attempts: u32,
    cache: CacheOptions,
    clock: Option<Clock>,
    trust_ad: Option<bool>,
}

/// Why there is no resolver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HickoryError {
    /// The system's configuration (`/etc/resolv.conf` on Unix) can not be used.
    #[error("the system's DNS configuration can not be used; name the name servers instead")]
    System(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No name server.
    #[error("no name server: at least one is needed, such as 127.0.0.1:53")]
    NoNameserver,
}

impl HickoryResolver {
    /// Asks the system's name servers (`/etc/resolv.conf` on Unix), read once. Nothing but their addresses and `trust-ad` is
    /// taken from there.
    ///
    /// # Errors
    /// [`HickoryError`]: there are none, or they can not be read.
    pub fn from_system() -> Result<Self, HickoryError> {
        Self::builder().build()
    }

    /// Asks these name servers, by UDP and TCP.
    ///
    /// # Errors
    /// [`HickoryError::NoNameserver`] if there are none.
    pub fn with_nameservers(nameservers: &[SocketAddr]) -> Result<Self, HickoryError> {
        Self::builder().nameservers(nameservers).build()
    }

    /// For other settings.
    pub fn builder() -> HickoryBuilder {
        HickoryBuilder {
            nameservers: None,
            timeout: Duration::from_secs(5),
            attempts: 2,
            cache: CacheOptions::default(),
            clock: None,
            trust_ad: None,
        }
    }
}

impl HickoryBuilder {
    /// Whom to ask. Default: the system's name servers.
    pub fn nameservers(mut self, nameservers: &[SocketAddr]) -> Self {
        self.nameservers = Some(nameservers.to_vec());
        self
    }

    /// How long to wait for one name server's answer to one question; twice as long where TCP follows UDP, or CNAMEs
    /// are to be followed. At least a millisecond. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.max(Duration::from_millis(1));
        self
    }

    /// How often every name server is asked before a question has failed. At least once. Default: 2.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// What is remembered, and how many look-ups are under way at a time.
    pub fn cache(mut self, options: CacheOptions) -> Self {
        self.cache = options;
        self
    }

    /// The clock TTLs run by. Default: the system's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Whether the name servers' word that an answer is authentic counts. `true` is for name servers that all validate, and
    /// are reached by a way that nobody can sit in. Default: if all are on the loopback interface, or if they are the system's
    /// and `/etc/resolv.conf` has `options trust-ad`.
    #[doc(alias = "trust-ad")]
    pub fn trust_ad(mut self, trust_ad: bool) -> Self {
        self.trust_ad = Some(trust_ad);
        self
    }

    /// The resolver.
    ///
    /// # Errors
    /// [`HickoryError`].
    pub fn build(self) -> Result<HickoryResolver, HickoryError> {
        let (servers, system_trusts) = match self.nameservers {
            Some(addresses) => (addresses, false),
            None => system::nameservers()?,
        };
        let are_here = servers.iter().all(|server| server.ip().to_canonical().is_loopback());
        let trusts_ad = self.trust_ad.unwrap_or(are_here || system_trusts);
        let upstream = Upstream::new(&servers, self.timeout, self.attempts, trusts_ad)?;
        let clock = self.clock.unwrap_or_else(Clock::system);
        Ok(HickoryResolver { cache: CachingResolver::with_options(upstream, clock, self.cache) })
    }
}

#[async_trait]
impl Resolver for HickoryResolver {
    async fn mx(&self, domain: &str, freshness: Freshness) -> Result<Answer<MxRecord>, DnsError> {
        self.cache.mx(domain, freshness).await
    }

    async fn ipv4(&self, host: &str, freshness: Freshness) -> Result<Answer<Ipv4Addr>, DnsError> {
        self.cache.ipv4(host, freshness).await
    }

    async fn ipv6(&self, host: &str, freshness: Freshness) -> Result<Answer<Ipv6Addr>, DnsError> {
        self.cache.ipv6(host, freshness).await
    }

    async fn txt(&self, name: &str, freshness: Freshness) -> Result<Answer<TxtRecord>, DnsError> {
        self.cache.txt(name, freshness).await
    }

    async fn tlsa(&self, name: &str, freshness: Freshness) -> Result<Answer<TlsaRecord>, DnsError> {
        self.cache.tlsa(name, freshness).await
    }

    async fn cname(&self, name: &str, freshness: Freshness) -> Result<Answer<Arc<str>>, DnsError> {
        self.cache.cname(name, freshness).await
    }
}

impl fmt::Display for HickoryResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cache.get_ref().fmt(f)
    }
}
