//! Questions to name servers, without a cache, and what their answers mean.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::op::{DnsResponse, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};

use super::HickoryError;
use super::server::Server;
use crate::dns::{
    Answer, Data, DnsError, DnsErrorKind, Freshness, MxRecord, Resolver, TlsaRecord, TxtRecord, is_too_much,
};

/// Kept of one answer: several times what a route uses.
const MAX_RECORDS: usize = 128;
/// Octets of text in one answer. One that is cut could mean something else.
const MAX_TEXT: usize = 8 * 1024;
/// CNAMEs followed before the chain counts as one without end.
const MAX_CNAMES: usize = 8;

/// What a name server's answer failed by.
type Failure = (DnsErrorKind, String);

/// Name servers, asked one after the other. One server's SERVFAIL or REFUSED is not the last word while the next may well
/// have an answer.
pub(super) struct Upstream {
    servers: Vec<Server>,
    /// The server that answered last.
    good: AtomicUsize,
    names: String,
    timeout: Duration,
    attempts: u32,
    /// Their AD bit counts.
    trusts_ad: bool,
}

impl Upstream {
    pub(super) fn new(
        servers: &[SocketAddr],
        timeout: Duration,
        attempts: u32,
        trusts_ad: bool,
    ) -> Result<Self, HickoryError> {
        if servers.is_empty() {
            return Err(HickoryError::NoNameserver);
        }
        let names: Vec<String> = servers.iter().map(shown).collect();
        let servers = servers.iter().map(|&address| Server { address, timeout }).collect();
        Ok(Self { servers, good: AtomicUsize::new(0), names: names.join(", "), timeout, attempts, trusts_ad })
    }

    async fn ask<T>(
        &self,
        name: &str,
        rtype: RecordType,
        read: fn(&RData) -> Option<T>,
        rank: fn(&T) -> u16,
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
                        let authentic = answer.authentic && self.trusts_ad;
                        return Ok(bounded(answer.authenticated(authentic), rank));
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

    #[cfg(test)]
    pub(super) fn trusts_ad(&self) -> bool {
        self.trusts_ad
    }

    /// An answer that must not be cut, or a failure.
    fn whole<T>(
        &self,
        rtype: &str,
        name: &str,
        answer: Answer<T>,
        is_too_much: fn(&[T]) -> bool,
    ) -> Result<Answer<T>, DnsError> {
        match &answer.data {
            Data::Records(records) if is_too_much(records) => {
                let message =
                    format!("{rtype} of {name}: more than is read of one answer (asked {})", self.names);
                Err(DnsError::new(DnsErrorKind::Malformed, message))
            }
            _ => Ok(answer),
        }
    }

    /// Silence may be the domain's servers' or our own name server's. Asked for the root, one that is there has
    /// something to say, if only a refusal.
    async fn answers_anything(&self) -> bool {
        let probes = self.servers.iter().map(|server| async {
            let answer = tokio::time::timeout(self.timeout, server.ask(&Name::root(), RecordType::SOA)).await;
            matches!(answer, Ok(Ok(_)))
        });
        futures::future::join_all(probes).await.contains(&true)
    }
}

fn shown(server: &SocketAddr) -> String {
    if server.port() == 53 { server.ip().to_string() } else { server.to_string() }
}

/// Names are compressed in a message and whole in the cache: unbounded, one answer could grow to a megabyte.
fn bounded<T>(mut answer: Answer<T>, rank: fn(&T) -> u16) -> Answer<T> {
    if let Data::Records(records) = &mut answer.data
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

/// Asks one server, again for what it leaves out of a chain of CNAMEs.
async fn one<T>(
    server: &Server,
    question: &Name,
    rtype: RecordType,
    read: fn(&RData) -> Option<T>,
) -> Result<Answer<T>, Failure> {
    if let Some(answer) = special(question, rtype, read) {
        return Ok(answer);
    }
    let mut name = question.clone();
    let (mut ttl, mut authentic, mut cnames) = (u32::MAX, true, 0);
    loop {
        let asked = name.clone();
        let response = server.ask(&name, rtype).await.map_err(|error| failure(&error))?;
        if !matches!(response.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return Err(refusal(response.response_code));
        }
        authentic &= response.authentic_data;
        while let Some((target, cname_ttl)) = alias(&response, &name).filter(|_| rtype != RecordType::CNAME) {
            cnames += 1;
            if cnames > MAX_CNAMES {
                return Err((DnsErrorKind::ServFail, ": the chain of CNAMEs does not end".to_owned()));
            }
            (name, ttl) = (target, ttl.min(cname_ttl));
        }
        let of_name = || response.answers.iter().filter(|record| record.name == name);
        let records: Vec<T> = of_name().filter_map(|record| read(&record.data)).collect();
        let least = of_name().filter(|record| record.record_type() == rtype).map(|record| record.ttl).min();
        let has_soa = response.soa().is_some();
        // RFC 2308 §5: the lesser of the SOA's TTL and its minimum; without SOA not to be kept.
        let negative = || seconds(ttl.min(response.negative_ttl().unwrap_or(0)));
        let answer = if !records.is_empty() {
            Answer::records(records, seconds(ttl.min(least.unwrap_or(0))))
        } else if response.response_code == ResponseCode::NXDomain {
            Answer::nx_domain(negative())
        } else if has_soa {
            Answer::no_data(negative())
        } else if response.authorities.iter().any(|record| record.record_type() == RecordType::NS) {
            return Err((DnsErrorKind::ServFail, ": a referral instead of an answer".to_owned()));
        } else if name != asked {
            continue;
        } else if response.answers.is_empty() {
            // NODATA of a sloppy server (RFC 2308 §2.2).
            Answer::no_data(negative())
        } else {
            return Err((DnsErrorKind::Malformed, ": records of another type".to_owned()));
        };
        let canonical = (name != *question).then(|| normal(&name).into());
        return Ok(answer.authenticated(authentic).at(canonical));
    }
}

/// Names that are not asked for (RFC 6761 §6.3, §6.4, RFC 7686).
fn special<T>(name: &Name, rtype: RecordType, read: fn(&RData) -> Option<T>) -> Option<Answer<T>> {
    const DAY: u32 = 86_400;
    let top = name.iter().next_back()?.to_ascii_lowercase();
    let data = match (top.as_slice(), rtype) {
        (b"localhost", RecordType::A) => RData::A(Ipv4Addr::LOCALHOST.into()),
        (b"localhost", RecordType::AAAA) => RData::AAAA(Ipv6Addr::LOCALHOST.into()),
        (b"localhost", _) => return Some(Answer::no_data(Duration::ZERO)),
        (b"invalid" | b"onion", _) => return Some(Answer::nx_domain(Duration::ZERO)),
        _ => return None,
    };
    Some(Answer::records(vec![read(&data)?], seconds(DAY)))
}

/// Where a name leads by a CNAME in this message, and its TTL.
fn alias(response: &DnsResponse, name: &Name) -> Option<(Name, u32)> {
    response.answers.iter().filter(|record| record.name == *name).find_map(|record| match &record.data {
        RData::CNAME(target) => Some((target.0.clone(), record.ttl)),
        _ => None,
    })
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds))
}

/// Lower case, A-labels, without trailing dot.
fn normal(name: &Name) -> String {
    let name = name.to_ascii().to_ascii_lowercase();
    name.strip_suffix('.').unwrap_or(&name).to_owned()
}

fn refusal(code: ResponseCode) -> Failure {
    match code {
        ResponseCode::ServFail => (DnsErrorKind::ServFail, String::new()),
        ResponseCode::Refused => (DnsErrorKind::Refused, String::new()),
        ResponseCode::FormErr => (DnsErrorKind::Malformed, ": FORMERR".to_owned()),
        code => (DnsErrorKind::ServFail, format!(": {code}")),
    }
}

fn failure(error: &NetError) -> Failure {
    match error {
        NetError::Timeout => (DnsErrorKind::Timeout, String::new()),
        NetError::Io(_) | NetError::NoConnections | NetError::Busy => {
            (DnsErrorKind::Unreachable, format!(": {error}"))
        }
        _ => (DnsErrorKind::Malformed, format!(": {error}")),
    }
}

#[async_trait]
impl Resolver for Upstream {
    async fn mx(&self, domain: &str, _: Freshness) -> Result<Answer<MxRecord>, DnsError> {
        let read = |data: &RData| match data {
            RData::MX(mx) => Some(MxRecord { preference: mx.preference, exchange: normal(&mx.exchange) }),
            _ => None,
        };
        self.ask(domain, RecordType::MX, read, |mx| mx.preference).await
    }

    async fn ipv4(&self, host: &str, _: Freshness) -> Result<Answer<Ipv4Addr>, DnsError> {
        let read = |data: &RData| if let RData::A(a) = data { Some(a.0) } else { None };
        self.ask(host, RecordType::A, read, |_| 0).await
    }

    async fn ipv6(&self, host: &str, _: Freshness) -> Result<Answer<Ipv6Addr>, DnsError> {
        let read = |data: &RData| if let RData::AAAA(a) = data { Some(a.0) } else { None };
        self.ask(host, RecordType::AAAA, read, |_| 0).await
    }

    async fn txt(&self, name: &str, _: Freshness) -> Result<Answer<TxtRecord>, DnsError> {
        let read = |data: &RData| match data {
            RData::TXT(txt) => Some(TxtRecord::new(txt.txt_data.concat())),
            _ => None,
        };
        let answer = self.ask(name, RecordType::TXT, read, |_| 0).await?;
        let is_too_much = |records: &[TxtRecord]| {
            records.iter().map(|record| record.octets().len()).sum::<usize>() > MAX_TEXT
        };
        self.whole("TXT", name, answer, is_too_much)
    }

    async fn tlsa(&self, name: &str, _: Freshness) -> Result<Answer<TlsaRecord>, DnsError> {
        let read = |data: &RData| match data {
            RData::TLSA(tlsa) => Some(TlsaRecord::new(
                tlsa.cert_usage.into(),
                tlsa.selector.into(),
                tlsa.matching.into(),
                tlsa.cert_data.as_slice(),
            )),
            _ => None,
        };
        let answer = self.ask(name, RecordType::TLSA, read, |_| 0).await?;
        self.whole("TLSA", name, answer, is_too_much)
    }

    async fn cname(&self, name: &str, _: Freshness) -> Result<Answer<Arc<str>>, DnsError> {
        let read = |data: &RData| match data {
            RData::CNAME(target) => Some(normal(&target.0).into()),
            _ => None,
        };
        self.ask(name, RecordType::CNAME, read, |_| 0).await
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
