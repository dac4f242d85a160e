//! [`StaticResolver`]: answers from a zone given as text, for tests and first steps.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::mx::normal;
use super::{Answer, DnsError, DnsErrorKind, Freshness, MxRecord, Resolver, TlsaRecord, TxtRecord};
use crate::message::is_host_name;

/// Of a record without TTL, and of what is not there.
const DEFAULT_TTL: Duration = Duration::from_secs(300);
/// CNAMEs followed before the chain counts as a loop.
const MAX_CNAMES: usize = 8;
/// Names whose questions are counted.
const MAX_COUNTED: usize = 100_000;

/// Answers from a zone in memory; never asks anybody.
///
/// The zone is text in the manner of master files (RFC 1035 §5), one record a line:
///
/// ```text
/// ; owner          [TTL] [class] type  data
/// example.net.     300   IN      MX    10 mx.example.net.
/// mx.example.net.                A     192.0.2.1
/// mx.example.net.                AAAA  2001:db8::1
/// www.example.net.               CNAME mx.example.net.
/// silent.example.                MX    0 .
/// _mta-sts.example.net.          TXT   "v=STSv1; id=20260101;"
/// _25._tcp.mx.example.net.       TLSA  3 1 1 8cb0fc6c527506a053f4f14c8464bebbd6dede2738d11468dd953d7d6a3021f1
/// ```
///
/// Types are MX, A, AAAA, TXT, TLSA and CNAME. The text of TXT stands in quotation marks, in one or more strings, with `\"` for
/// a quotation mark and `\\` for a backslash in it. All names are absolute, with or without the trailing dot. The TTL is in seconds,
/// 300 if left out, as for what is not there. CNAMEs are followed, at most eight. A name that is not there, and has no
/// name below it, is NXDOMAIN.
///
/// Clones share everything, so a test keeps one and changes the zone under a running engine. Freshness makes no
/// difference: the answer is always that of the zone now.
#[derive(Clone, Default)]
pub struct StaticResolver {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    zone: Zone,
    failures: HashMap<String, DnsErrorKind>,
    queries: HashMap<String, u64>,
    dnssec: HashMap<String, Dnssec>,
}

impl Inner {
    fn dnssec(&self, name: &str) -> Dnssec {
        let above = std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, above)| above));
        above.chain([""]).find_map(|zone| self.dnssec.get(zone)).copied().unwrap_or_default()
    }
}

/// What a validating resolver makes of a zone (RFC 4033 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "what can not be told which of them it is, is a failure")]
pub enum Dnssec {
    /// Signed: answers are [authentic](Answer::authentic).
    Secure,
    /// Known not to be signed.
    #[default]
    Insecure,
    /// Signed, and the signatures are not good: questions fail, with SERVFAIL.
    Bogus,
}

/// A line of a zone that can not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
#[non_exhaustive]
pub struct ZoneError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: ZoneProblem,
}

/// What is wrong with a line of a zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZoneProblem {
    /// Not a domain name.
    #[error("`{0}` is not a domain name like mx.example.net.")]
    Name(String),
    /// No type, or one that is not known.
    #[error("expected a type after owner, TTL and class: MX, A, AAAA, TXT, TLSA or CNAME, found `{0}`")]
    Type(String),
    /// The data does not fit the type.
    #[error("expected {expected}, found `{found}`")]
    Data {
        /// What the type takes.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// RFC 1034 §3.6.2.
    #[error("{0} has a CNAME: no other record can stand beside it")]
    CnameAndOther(String),
}

impl StaticResolver {
    /// Knows no name at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a zone.
    ///
    /// # Errors
    /// [`ZoneError`] names the first line that can not be read.
    pub fn parse(text: &str) -> Result<Self, ZoneError> {
        let zone = Zone::parse(text)?;
        Ok(Self { inner: Arc::new(Mutex::new(Inner { zone, ..Inner::default() })) })
    }

    /// Replaces the whole zone. What was set by [`StaticResolver::fail`] and [`StaticResolver::set_dnssec`] stays.
    ///
    /// # Errors
    /// [`ZoneError`] names the first line that can not be read; the old zone stays.
    pub fn set_zone(&self, text: &str) -> Result<(), ZoneError> {
        let zone = Zone::parse(text)?;
        self.lock().zone = zone;
        Ok(())
    }

    /// From now on every question for `name` fails so, whether the zone has it or not.
    pub fn fail(&self, name: &str, kind: DnsErrorKind) {
        self.lock().failures.insert(normal(name), kind);
    }

    /// Questions for `name` are answered from the zone again.
    pub fn recover(&self, name: &str) {
        self.lock().failures.remove(&normal(name));
    }

    /// How many questions of any type were asked for `name`. Counts for the first 100,000 names.
    pub fn queries(&self, name: &str) -> u64 {
        self.lock().queries.get(&normal(name)).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether `zone` and all below it, down to zones of which something else is said, is signed. Without a word of
    /// it all is [`Dnssec::Insecure`].
    pub fn set_dnssec(&self, zone: &str, dnssec: Dnssec) {
        self.lock().dnssec.insert(normal(zone), dnssec);
    }

    fn ask<T: Clone>(
        &self,
        name: &str,
        rtype: &'static str,
        records: impl Fn(&Node) -> &[(T, Duration)],
    ) -> Result<Answer<T>, DnsError> {
        self.ask_at(name, rtype, true, records)
    }

    fn ask_at<T: Clone>(
        &self,
        name: &str,
        rtype: &'static str,
        follows: bool,
        records: impl Fn(&Node) -> &[(T, Duration)],
    ) -> Result<Answer<T>, DnsError> {
        let mut inner = self.lock();
        let asked = normal(name);
        if let Some(count) = inner.queries.get_mut(&asked) {
            *count += 1;
        } else if inner.queries.len() < MAX_COUNTED {
            inner.queries.insert(asked.clone(), 1);
        }

        let error =
            |kind: DnsErrorKind, what: &str| Err(DnsError::new(kind, format!("{rtype} of {asked}: {what}")));
        let mut name = asked.clone();
        let (mut ttl, mut authentic) = (Duration::MAX, true);
        for _ in 0..=MAX_CNAMES {
            if let Some(&kind) = inner.failures.get(&name) {
                return error(kind, kind.as_str());
            }
            match inner.dnssec(&name) {
                Dnssec::Secure => {}
                Dnssec::Insecure => authentic = false,
                Dnssec::Bogus => return error(DnsErrorKind::ServFail, "bogus (DNSSEC)"),
            }
            let node = inner.zone.nodes.get(&name);
            if let Some((target, cname_ttl)) = node.and_then(|node| node.cname.as_ref()).filter(|_| follows) {
                ttl = ttl.min(*cname_ttl);
                name = target.to_string();
                continue;
            }
            let found = node.map(&records).unwrap_or_default();
            let answer = match found.iter().map(|(_, ttl)| *ttl).min() {
                Some(least) => {
                    Answer::records(found.iter().map(|(r, _)| r.clone()).collect(), ttl.min(least))
                }
                None if node.is_some() || inner.zone.above.contains(&name) => {
                    Answer::no_data(ttl.min(DEFAULT_TTL))
                }
                None => Answer::nx_domain(ttl.min(DEFAULT_TTL)),
            };
            let canonical = (name != asked).then(|| name.into());
            return Ok(answer.authenticated(authentic).at(canonical));
        }
        error(DnsErrorKind::ServFail, "the chain of CNAMEs does not end")
    }
}

#[async_trait]
impl Resolver for StaticResolver {
    async fn mx(&self, domain: &str, _: Freshness) -> Result<Answer<MxRecord>, DnsError> {
        self.ask(domain, "MX", |node| &node.mx)
    }

    async fn ipv4(&self, host: &str, _: Freshness) -> Result<Answer<Ipv4Addr>, DnsError> {
        self.ask(host, "A", |node| &node.ipv4)
    }

    async fn ipv6(&self, host: &str, _: Freshness) -> Result<Answer<Ipv6Addr>, DnsError> {
        self.ask(host, "AAAA", |node| &node.ipv6)
    }

    async fn txt(&self, name: &str, _: Freshness) -> Result<Answer<TxtRecord>, DnsError> {
        self.ask(name, "TXT", |node| &node.txt)
    }

    async fn tlsa(&self, name: &str, _: Freshness) -> Result<Answer<TlsaRecord>, DnsError> {
        self.ask(name, "TLSA", |node| &node.tlsa)
    }

    async fn cname(&self, name: &str, _: Freshness) -> Result<Answer<Arc<str>>, DnsError> {
        self.ask_at(name, "CNAME", false, |node| node.cname.as_slice())
    }
}

impl fmt::Display for StaticResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("static zone")
    }
}

impl fmt::Debug for StaticResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("StaticResolver")
            .field("names", &inner.zone.nodes.len())
            .field("failures", &inner.failures)
            .finish()
    }
}

#[derive(Default)]
struct Zone {
    nodes: BTreeMap<String, Node>,
    /// All names above those of `nodes`: they exist too (RFC 8020).
    above: BTreeSet<String>,
}

#[derive(Default)]
struct Node {
    mx: Vec<(MxRecord, Duration)>,
    ipv4: Vec<(Ipv4Addr, Duration)>,
    ipv6: Vec<(Ipv6Addr, Duration)>,
    txt: Vec<(TxtRecord, Duration)>,
    tlsa: Vec<(TlsaRecord, Duration)>,
    cname: Option<(Arc<str>, Duration)>,
}

impl Node {
    fn has_data(&self) -> bool {
        let empty = [self.mx.is_empty(), self.ipv4.is_empty(), self.ipv6.is_empty(), self.txt.is_empty()];
        empty.contains(&false) || !self.tlsa.is_empty()
    }
}

impl Zone {
    fn parse(text: &str) -> Result<Self, ZoneError> {
        let mut zone = Self::default();
        for (number, line) in text.lines().enumerate() {
            zone.add(without_comment(line)).map_err(|problem| ZoneError { line: number + 1, problem })?;
        }
        Ok(zone)
    }

    fn add(&mut self, line: &str) -> Result<(), ZoneProblem> {
        let mut words = line.split_ascii_whitespace().peekable();
        let Some(owner) = words.next() else { return Ok(()) };
        let owner = host_name(owner)?;
        let mut ttl = DEFAULT_TTL;
        // TTL and class may come in either order (RFC 1035 §5.1).
        while let Some(word) = words.peek() {
            if let Ok(seconds) = word.parse::<u32>() {
                ttl = Duration::from_secs(u64::from(seconds));
            } else if !word.eq_ignore_ascii_case("IN") {
                break;
            }
            words.next();
        }
        let rtype = words.next().unwrap_or_default();
        let data: Vec<&str> = words.collect();
        // Spaces in it count.
        let text = line.find('"').and_then(|quote| line.get(quote..)).unwrap_or_default();
        let wrong = |expected| ZoneProblem::Data { expected, found: data.join(" ") };

        let node = self.nodes.entry(owner.clone()).or_default();
        let is_cname = rtype.eq_ignore_ascii_case("CNAME");
        if node.cname.is_some() || (is_cname && node.has_data()) {
            return Err(ZoneProblem::CnameAndOther(owner));
        }
        match (rtype.to_ascii_uppercase().as_str(), data.as_slice()) {
            ("MX", [preference, exchange]) => {
                let preference = preference.parse().map_err(|_| wrong(MX_DATA))?;
                let exchange = if *exchange == "." { String::new() } else { host_name(exchange)? };
                node.mx.push((MxRecord { preference, exchange }, ttl));
            }
            ("A", [address]) => node.ipv4.push((address.parse().map_err(|_| wrong(A_DATA))?, ttl)),
            ("AAAA", [address]) => node.ipv6.push((address.parse().map_err(|_| wrong(AAAA_DATA))?, ttl)),
            ("TXT", [_, ..]) => node.txt.push((strings(text).ok_or_else(|| wrong(TXT_DATA))?, ttl)),
            ("TLSA", [usage, selector, matching_type, data @ ..]) => {
                let number = |text: &str| text.parse().map_err(|_| wrong(TLSA_DATA));
                let data = octets(&data.concat()).ok_or_else(|| wrong(TLSA_DATA))?;
                let record = TlsaRecord::new(number(usage)?, number(selector)?, number(matching_type)?, data);
                node.tlsa.push((record, ttl));
            }
            ("CNAME", [target]) => node.cname = Some((host_name(target)?.into(), ttl)),
            ("MX", _) => return Err(wrong(MX_DATA)),
            ("A", _) => return Err(wrong(A_DATA)),
            ("AAAA", _) => return Err(wrong(AAAA_DATA)),
            ("TXT", _) => return Err(wrong(TXT_DATA)),
            ("TLSA", _) => return Err(wrong(TLSA_DATA)),
            ("CNAME", _) => return Err(wrong("one name, such as mx.example.net.")),
            _ => return Err(ZoneProblem::Type(rtype.to_owned())),
        }
        let mut name = owner.as_str();
        while let Some((_, parent)) = name.split_once('.') {
            self.above.insert(parent.to_owned());
            name = parent;
        }
        Ok(())
    }
}

const MX_DATA: &str = "a preference (0 to 65535) and a name, such as `10 mx.example.net.`";
const A_DATA: &str = "one IPv4 address, such as 192.0.2.1";
const AAAA_DATA: &str = "one IPv6 address, such as 2001:db8::1";

const TLSA_DATA: &str = "three numbers (0 to 255) and octets in hexadecimal, such as `3 1 1 8CB0…`";
const TXT_DATA: &str = "text in quotation marks, such as \"v=STSv1; id=1;\"";

/// What stands before a semicolon that is not in quotation marks.
fn without_comment(line: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    let comment = line.char_indices().find(|&(_, letter)| {
        let is_comment = letter == ';' && !quoted;
        quoted ^= letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        is_comment
    });
    comment.and_then(|(at, _)| line.get(..at)).unwrap_or(line)
}

/// From hexadecimal.
fn octets(text: &str) -> Option<Vec<u8>> {
    let digit = |octet: u8| (octet as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let pair = |&[high, low]: &[u8; 2]| Some(digit(high)? << 4 | digit(low)?);
    rest.is_empty().then(|| pairs.iter().map(pair).collect())?
}

/// The strings of a TXT record, joined. `None`: not all of it is in quotation marks, or they do not end.
fn strings(text: &str) -> Option<TxtRecord> {
    let (mut joined, mut quoted, mut escaped) = (String::new(), false, false);
    for letter in text.chars() {
        match letter {
            '\\' if quoted && !escaped => {
                escaped = true;
                continue;
            }
            '"' if !escaped => quoted = !quoted,
            letter if quoted => joined.push(letter),
            letter if letter.is_ascii_whitespace() => {}
            _ => return None,
        }
        escaped = false;
    }
    (!quoted && !text.is_empty()).then(|| TxtRecord::from(joined.as_str()))
}

fn host_name(text: &str) -> Result<String, ZoneProblem> {
    let name = normal(text);
    if is_host_name(&name) { Ok(name) } else { Err(ZoneProblem::Name(text.to_owned())) }
}

#[cfg(test)]
mod tests;
