//! [`HickoryResolver`]: DNS over the network, by hickory-resolver.

#[cfg(test)]
mod tests;
mod upstream;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig};

use self::upstream::Upstream;
use super::{Answer, CacheOptions, CachingResolver, DnsError, Freshness, MxRecord, Resolver, TxtRecord};
use crate::clock::Clock;

/// Asks recursive name servers, and remembers their answers ([`CachingResolver`]).
///
/// Name servers are asked one after the other, beginning with the one that answered last; a server that fails,
/// refuses or keeps silent is passed over. Over UDP with EDNS, over TCP where an answer does not fit. No search
/// list, no hosts file. `localhost` and `invalid` (RFC 6761) are answered without asking. Clones share everything.
///
/// Of one answer at most 128 records are kept, of MX those of the lowest preference numbers. An answer with more than
/// 8 KiB of text (TXT) is [`Malformed`](super::DnsErrorKind::Malformed).
///
/// When all stay silent, they are asked for the root: if they are silent then too, the failure is
/// [`DnsErrorKind::Unreachable`](super::DnsErrorKind::Unreachable), this machine's trouble, else the domain's
/// [`Timeout`](super::DnsErrorKind::Timeout).
///
/// DNSSEC is left to the name servers: a validating one answers SERVFAIL for what is bogus, which defers the mail.
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
    /// The resolver could not be set up.
    #[error("the resolver could not be set up")]
    SetUp(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl HickoryResolver {
    /// Asks the system's name servers (`/etc/resolv.conf` on Unix), read once. Nothing but their addresses is taken
    /// from there.
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

    /// The resolver.
    ///
    /// # Errors
    /// [`HickoryError`].
    pub fn build(self) -> Result<HickoryResolver, HickoryError> {
        let servers = match self.nameservers {
            Some(addresses) => addresses.into_iter().map(nameserver).collect(),
            None => system_nameservers()?,
        };
        let upstream = Upstream::new(servers, self.timeout, self.attempts)?;
        let clock = self.clock.unwrap_or_else(Clock::system);
        Ok(HickoryResolver { cache: CachingResolver::with_options(upstream, clock, self.cache) })
    }
}

fn nameserver(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
    let connections = connections.map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

#[cfg(any(unix, windows))]
fn system_nameservers() -> Result<Vec<NameServerConfig>, HickoryError> {
    let (config, _) = hickory_resolver::system_conf::read_system_conf()
        .map_err(|error| HickoryError::System(error.into()))?;
    Ok(config.name_servers)
}

#[cfg(not(any(unix, windows)))]
fn system_nameservers() -> Result<Vec<NameServerConfig>, HickoryError> {
    Err(HickoryError::System("not known how to read it on this system".into()))
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
}

impl fmt::Display for HickoryResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cache.get_ref().fmt(f)
    }
}
