//! Questions to name servers, without a cache, and what their answers mean.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError as HickoryDnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};

use super::HickoryError;
use crate::dns::{Answer, DnsError, DnsErrorKind, Freshness, MxRecord, Resolver, TxtRecord};

/// Kept of one answer: several times what a route uses.
const MAX_RECORDS: usize = 128;
/// Octets of text in one answer. One that is cut could mean something else.
const MAX_TEXT: usize = 8 * 1024;

/// Name servers, each with a resolver of its own: hickory's pool takes one server's SERVFAIL or REFUSED for the
/// last word while the next server may well have an answer.
pub(super) struct Upstream {
    servers: Vec<TokioResolver>,
    /// The server that answered last.
    good: AtomicUsize,
    names: String,
    timeout: Duration,
    attempts: u32,
}

impl Upstream {
    pub(super) fn new(
        servers: Vec<NameServerConfig>,
        timeout: Duration,
        attempts: u32,
    ) -> Result<Self, HickoryError> {
        if servers.is_empty() {
            return Err(HickoryError::NoNameserver);
        }
        let names: Vec<String> = servers.iter().map(address).collect();
        let servers = servers
            .into_iter()
            .map(|server| {
                let config = ResolverConfig::from_name_servers(vec![server]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
                    .with_options(options(timeout))
                    .build()
            })
            .collect::<Result<_, _>>()
            .map_err(|error| HickoryError::SetUp(error.into()))?;
        Ok(Self { servers, good: AtomicUsize::new(0), names: names.join(", "), timeout, attempts })
    }

    async fn ask<T>(
        &self,
        name: &str,
        rtype: RecordType,
        read: fn(&RData) -> Option<T>,
    ) -> Result<Answer<T>, DnsError> {
        let describe = |kind: DnsErrorKind, detail: &str| {
            DnsError::new(
                kind,
                format!("{rtype} of {name}: {}{detail} (asked {})", kind.as_str(), self.names),
            )
        };
        // Made of labels, so absolute: no search list applies. Bytes, so that nothing is read as an escape.
        let question = Name::from_labels(name.split('.').map(str::as_bytes))
            .map_err(|error| describe(DnsErrorKind::Malformed, &format!(": no DNS name: {error}")))?;
        let mut worst: Option<(DnsErrorKind, String)> = None;
        for _ in 0..self.attempts {
            let first = self.good.load(Ordering::Relaxed);
            for (index, server) in
                self.servers.iter().enumerate().cycle().skip(first).take(self.servers.len())
            {
                // Within the limit: UDP then TCP, or a chain of CNAMEs. The resolver's own applies to each step.
                let answer =
                    match tokio::time::timeout(self.timeout * 2, one(server, &question, rtype, read)).await {
                        Ok(answer) => answer,
                        Err(_) => Err((DnsErrorKind::Timeout, String::new())),
                    };
                match answer {
                    Ok(answer) => {
                        self.good.store(index, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Err(error) if worst.as_ref().is_none_or(|w| telling(error.0) > telling(w.0)) => {
                        worst = Some(error);
                    }
                    Err(_) => {}
                }
            }
        }
        match worst {
            Some((kind, detail)) if kind != DnsErrorKind::Timeout => Err(describe(kind, &detail)),
            _ if self.answers_anything().await => Err(describe(DnsErrorKind::Timeout, "")),
            _ => Err(describe(DnsErrorKind::Unreachable, ": none answers anything")),
        }
    }

    /// Silence may be the domain's servers' or our own name server's. Asked for the root, one that is there has
    /// something to say, if only a refusal.
    async fn answers_anything(&self) -> bool {
        let probes = self.servers.iter().map(|server| async {
            let answer =
                tokio::time::timeout(self.timeout, server.lookup(Name::root(), RecordType::SOA)).await;
            matches!(answer, Ok(Ok(_) | Err(NetError::Dns(_))))
        });
        futures::future::join_all(probes).await.contains(&true)
    }
}

fn address(server: &NameServerConfig) -> String {
    match server.connections.first().map(|connection| connection.port) {
        Some(port) if port != 53 => SocketAddr::new(server.ip, port).to_string(),
        _ => server.ip.to_string(),
    }
}

/// Names are compressed in a message and whole in the cache: unbounded, one answer could grow to a megabyte.
fn bounded<T>(mut answer: Answer<T>, rank: fn(&T) -> u16) -> Answer<T> {
    if let Answer::Records { records, .. } = &mut answer
        && records.len() > MAX_RECORDS
    {
        records.sort_by_key(rank);
        records.truncate(MAX_RECORDS);
    }
    answer
}

/// What one server did says more than that another did nothing.
fn telling(kind: DnsErrorKind) -> u8 {
    match kind {
        DnsErrorKind::ServFail => 4,
        DnsErrorKind::Refused => 3,
        DnsErrorKind::Malformed => 2,
        DnsErrorKind::Timeout => 1,
        DnsErrorKind::Unreachable | DnsErrorKind::Unsupported => 0,
    }
}

fn options(timeout: Duration) -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = timeout;
    // Attempts are counted here, over all servers.
    options.attempts = 0;
    options.edns0 = true;
    options.use_hosts_file = ResolveHosts::Never;
    // Zero switches hickory's cache off: ours stands in front.
    options.cache_size = 0;
    options.preserve_intermediates = true;
    // Of one TCP connection. The bound on look-ups is the cache's; this only must not be lower.
    options.max_active_requests = 1024;
    options
}

/// Asks one server.
async fn one<T>(
    server: &TokioResolver,
    question: &Name,
    rtype: RecordType,
    read: fn(&RData) -> Option<T>,
) -> Result<Answer<T>, (DnsErrorKind, String)> {
    let error = match server.lookup(question.clone(), rtype).await {
        Ok(lookup) => {
            let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or(0);
            let records: Vec<T> = lookup.answers().iter().filter_map(|record| read(&record.data)).collect();
            if records.is_empty() {
                return Err((DnsErrorKind::Malformed, ": records of another type".to_owned()));
            }
            return Ok(Answer::Records { records, ttl: Duration::from_secs(u64::from(ttl)) });
        }
        Err(error) => error,
    };
    let NetError::Dns(HickoryDnsError::NoRecordsFound(none)) = error else {
        return Err(failure(&error));
    };
    match (none.response_code, &none.soa) {
        (ResponseCode::NXDomain, _) => Ok(Answer::NxDomain { ttl: negative_ttl(&none) }),
        (ResponseCode::NoError, Some(_)) => Ok(Answer::NoData { ttl: negative_ttl(&none) }),
        (ResponseCode::NoError, None) => without_soa(server, question, &none).await,
        (code, _) => Err((DnsErrorKind::ServFail, format!(": {code}"))),
    }
}

/// No record and no SOA: may be NODATA of a sloppy server (RFC 2308 §2.2), a referral, or a chain of CNAMEs that
/// hickory gave up on. Only the first may count as "no such record".
async fn without_soa<T>(
    server: &TokioResolver,
    question: &Name,
    none: &NoRecords,
) -> Result<Answer<T>, (DnsErrorKind, String)> {
    if none.ns.is_some() {
        return Err((DnsErrorKind::ServFail, ": a referral instead of an answer".to_owned()));
    }
    match server.lookup(question.clone(), RecordType::CNAME).await {
        Ok(_) => Err((DnsErrorKind::ServFail, ": the chain of CNAMEs does not end".to_owned())),
        Err(NetError::Dns(HickoryDnsError::NoRecordsFound(_))) => {
            Ok(Answer::NoData { ttl: negative_ttl(none) })
        }
        Err(error) => Err(failure(&error)),
    }
}

/// The lesser of the SOA's TTL and its minimum (RFC 2308 §5); without SOA not to be kept.
fn negative_ttl(none: &NoRecords) -> Duration {
    Duration::from_secs(u64::from(none.negative_ttl.unwrap_or(0)))
}

fn failure(error: &NetError) -> (DnsErrorKind, String) {
    use HickoryDnsError::{DnssecBogus, ResponseCode as Code};
    match error {
        NetError::Dns(Code(ResponseCode::ServFail)) => (DnsErrorKind::ServFail, String::new()),
        NetError::Dns(Code(ResponseCode::Refused)) => (DnsErrorKind::Refused, String::new()),
        NetError::Dns(Code(ResponseCode::FormErr)) => (DnsErrorKind::Malformed, ": FORMERR".to_owned()),
        NetError::Dns(Code(code)) => (DnsErrorKind::ServFail, format!(": {code}")),
        NetError::Dns(DnssecBogus) => (DnsErrorKind::ServFail, ": bogus (DNSSEC)".to_owned()),
        NetError::Timeout => (DnsErrorKind::Timeout, String::new()),
        NetError::Io(_) | NetError::NoConnections | NetError::Busy => {
            (DnsErrorKind::Unreachable, format!(": {error}"))
        }
        NetError::Proto(_)
        | NetError::Truncated
        | NetError::QueryCaseMismatch
        | NetError::ForeignClassRecord { .. } => (DnsErrorKind::Malformed, format!(": {error}")),
        _ => (DnsErrorKind::ServFail, format!(": {error}")),
    }
}

#[async_trait]
impl Resolver for Upstream {
    async fn mx(&self, domain: &str, _: Freshness) -> Result<Answer<MxRecord>, DnsError> {
        let answer = self.ask(domain, RecordType::MX, |data| match data {
            RData::MX(mx) => {
                let exchange = mx.exchange.to_ascii().to_ascii_lowercase();
                let exchange = exchange.strip_suffix('.').unwrap_or(&exchange).to_owned();
                Some(MxRecord { preference: mx.preference, exchange })
            }
            _ => None,
        });
        answer.await.map(|answer| bounded(answer, |mx| mx.preference))
    }

    async fn ipv4(&self, host: &str, _: Freshness) -> Result<Answer<Ipv4Addr>, DnsError> {
        let answer =
            self.ask(host, RecordType::A, |data| if let RData::A(a) = data { Some(a.0) } else { None });
        answer.await.map(|answer| bounded(answer, |_| 0))
    }

    async fn ipv6(&self, host: &str, _: Freshness) -> Result<Answer<Ipv6Addr>, DnsError> {
        self.ask(host, RecordType::AAAA, |data| if let RData::AAAA(a) = data { Some(a.0) } else { None })
            .await
    }

    async fn txt(&self, name: &str, _: Freshness) -> Result<Answer<TxtRecord>, DnsError> {
        let read = |data: &RData| match data {
            RData::TXT(txt) => Some(TxtRecord::new(txt.txt_data.concat())),
            _ => None,
        };
        let answer = self.ask(name, RecordType::TXT, read).await?;
        if let Answer::Records { records, .. } = &answer
            && records.iter().map(|record| record.octets().len()).sum::<usize>() > MAX_TEXT
        {
            let message =
                format!("TXT of {name}: more than {MAX_TEXT} octets of text (asked {})", self.names);
            return Err(DnsError::new(DnsErrorKind::Malformed, message));
        }
        Ok(bounded(answer, |_| 0))
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DNS at {}", self.names)
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("servers", &self.names)
            .field("timeout", &self.timeout)
            .field("attempts", &self.attempts)
            .finish()
    }
}
