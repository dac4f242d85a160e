//! [`StaticResolver`]: answers from a zone given as text, for tests and first steps.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::mx::normal;
use super::{Answer, DnsError, DnsErrorKind, Freshness, MxRecord, Resolver, TxtRecord};
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
/// ```
///
/// Types are MX, A, AAAA, TXT and CNAME. The text of TXT stands in quotation marks, in one or more strings, with `\"` for
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
    #[error("expected a type after owner, TTL and class: MX, A, AAAA, TXT or CNAME, found `{0}`")]
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

    /// Replaces the whole zone. What was set by [`StaticResolver::fail`] stays.
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

    fn ask<T: Clone>(
        &self,
        name: &str,
        rtype: &'static str,
        records: impl Fn(&Node) -> &[(T, Duration)],
    ) -> Result<Answer<T>, DnsError> {
        let mut inner = self.lock();
        let asked = normal(name);
        if let Some(count) = inner.queries.get_mut(&asked) {
            *count += 1;
        } else if inner.queries.len() < MAX_COUNTED {
            inner.queries.insert(asked.clone(), 1);
        }

        let error = |kind, what: &str| Err(DnsError::new(kind, format!("{rtype} of {asked}: {what}")));
        let mut name = asked.clone();
        let mut ttl = Duration::MAX;
        for _ in 0..=MAX_CNAMES {
            if let Some(&kind) = inner.failures.get(&name) {
                return error(kind, kind.as_str());
            }
            let Some(node) = inner.zone.nodes.get(&name) else {
                let ttl = ttl.min(DEFAULT_TTL);
                let above = inner.zone.above.contains(&name);
                return Ok(if above { Answer::NoData { ttl } } else { Answer::NxDomain { ttl } });
            };
            if let Some((target, cname_ttl)) = &node.cname {
                ttl = ttl.min(*cname_ttl);
                name.clone_from(target);
                continue;
            }
            let records = records(node);
            let Some(least) = records.iter().map(|(_, ttl)| *ttl).min() else {
                return Ok(Answer::NoData { ttl: ttl.min(DEFAULT_TTL) });
            };
            return Ok(Answer::Records {
                records: records.iter().map(|(r, _)| r.clone()).collect(),
                ttl: ttl.min(least),
            });
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
    cname: Option<(String, Duration)>,
}

impl Node {
    fn has_data(&self) -> bool {
        !self.mx.is_empty() || !self.ipv4.is_empty() || !self.ipv6.is_empty() || !self.txt.is_empty()
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
            ("CNAME", [target]) => node.cname = Some((host_name(target)?, ttl)),
            ("MX", _) => return Err(wrong(MX_DATA)),
            ("A", _) => return Err(wrong(A_DATA)),
            ("AAAA", _) => return Err(wrong(AAAA_DATA)),
            ("TXT", _) => return Err(wrong(TXT_DATA)),
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
mod tests {
    use super::*;

    const ZONE: &str = "
        ; a comment
        example.net.     600 IN MX 10 mx.example.net.   ; and another
        example.net.     IN 60  MX 20 Mx2.Example.NET
        mx.example.net.  A 192.0.2.1
        mx.example.net.  AAAA 2001:db8::1
        a.b.example.org  A 192.0.2.2
        alias.example.   30 CNAME example.net.
        dangling.example. CNAME nowhere.example.
        loop1.example.   CNAME loop2.example.
        loop2.example.   CNAME loop1.example.
        silent.example.  MX 0 .
    ";

    fn mx(preference: u16, exchange: &str) -> MxRecord {
        MxRecord { preference, exchange: exchange.to_owned() }
    }

    #[tokio::test]
    async fn answers_as_dns_would() {
        let resolver = StaticResolver::parse(ZONE).unwrap();
        let ask = async |name: &str| resolver.mx(name, Freshness::Cached).await;
        let both = vec![mx(10, "mx.example.net"), mx(20, "mx2.example.net")];
        let seconds = Duration::from_secs;
        for (name, expected) in [
            ("example.net", Answer::Records { records: both.clone(), ttl: seconds(60) }),
            ("Example.NET.", Answer::Records { records: both.clone(), ttl: seconds(60) }),
            ("alias.example", Answer::Records { records: both, ttl: seconds(30) }),
            ("silent.example", Answer::Records { records: vec![mx(0, "")], ttl: DEFAULT_TTL }),
            ("mx.example.net", Answer::NoData { ttl: DEFAULT_TTL }),
            ("b.example.org", Answer::NoData { ttl: DEFAULT_TTL }),
            ("example.org", Answer::NoData { ttl: DEFAULT_TTL }),
            ("nowhere.example", Answer::NxDomain { ttl: DEFAULT_TTL }),
            ("dangling.example", Answer::NxDomain { ttl: DEFAULT_TTL }),
        ] {
            assert_eq!(ask(name).await.unwrap(), expected, "{name}");
        }
        assert_eq!(ask("loop1.example").await.unwrap_err().kind(), DnsErrorKind::ServFail);
        let ipv6 = resolver.ipv6("mx.example.net", Freshness::Fresh).await.unwrap();
        assert_eq!(ipv6, Answer::Records { records: vec!["2001:db8::1".parse().unwrap()], ttl: DEFAULT_TTL });
    }

    #[tokio::test]
    async fn text_is_taken_as_it_stands() {
        let zone = r#"
            a.example. TXT "v=STSv1; id=1;"  ; a comment with a "
            a.example. 60 IN txt "one  " "two" ""
            b.example. TXT "say \"no\"; \\"
            c.example. TXT ""
        "#;
        let resolver = StaticResolver::parse(zone).unwrap();
        let txt = async |name: &str| resolver.txt(name, Freshness::Cached).await.unwrap();
        let seconds = Duration::from_secs;
        for (name, records, ttl) in [
            ("a.example", &["v=STSv1; id=1;", "one  two"][..], seconds(60)),
            ("b.example", &[r#"say "no"; \"#], DEFAULT_TTL),
            ("c.example", &[""], DEFAULT_TTL),
        ] {
            let records = records.iter().map(|&text| text.into()).collect();
            assert_eq!(txt(name).await, Answer::Records { records, ttl }, "{name}");
        }
        assert_eq!(txt("example").await, Answer::NoData { ttl: DEFAULT_TTL });
    }

    #[tokio::test]
    async fn lies_when_told_and_counts() {
        let resolver = StaticResolver::parse(ZONE).unwrap();
        let clone = resolver.clone();
        clone.fail("example.net", DnsErrorKind::Timeout);
        let error = resolver.mx("alias.example", Freshness::Cached).await.unwrap_err();
        assert_eq!(error.kind(), DnsErrorKind::Timeout);
        assert_eq!(error.to_string(), "MX of alias.example: no answer in time");
        clone.recover("example.net");
        assert!(resolver.mx("alias.example", Freshness::Cached).await.is_ok());
        assert_eq!((resolver.queries("ALIAS.example."), resolver.queries("example.net")), (2, 0));

        clone.set_zone("alias.example A 192.0.2.9").unwrap();
        assert_eq!(
            resolver.mx("alias.example", Freshness::Cached).await.unwrap(),
            Answer::NoData { ttl: DEFAULT_TTL }
        );
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, message) in [
            (
                "\nexample.net. MX mx.example.net.",
                "line 2: expected a preference (0 to 65535) and a name, such as `10 mx.example.net.`, found `mx.example.net.`",
            ),
            (
                "example.net. MX 70000 mx.example.net.",
                "line 1: expected a preference (0 to 65535) and a name, such as `10 mx.example.net.`, found `70000 mx.example.net.`",
            ),
            (
                "example.net. SRV hello",
                "line 1: expected a type after owner, TTL and class: MX, A, AAAA, TXT or CNAME, found `SRV`",
            ),
            (
                "example.net. TXT hello",
                "line 1: expected text in quotation marks, such as \"v=STSv1; id=1;\", found `hello`",
            ),
            (
                "example.net. TXT \"hello ; world",
                "line 1: expected text in quotation marks, such as \"v=STSv1; id=1;\", found `\"hello ; world`",
            ),
            (
                "example.net. TXT \"a\" b",
                "line 1: expected text in quotation marks, such as \"v=STSv1; id=1;\", found `\"a\" b`",
            ),
            (
                "example.net. 300 IN",
                "line 1: expected a type after owner, TTL and class: MX, A, AAAA, TXT or CNAME, found ``",
            ),
            (
                "example.net. A 192.0.2.256",
                "line 1: expected one IPv4 address, such as 192.0.2.1, found `192.0.2.256`",
            ),
            (
                "exa mple A 192.0.2.1",
                "line 1: expected a type after owner, TTL and class: MX, A, AAAA, TXT or CNAME, found `mple`",
            ),
            ("a..b A 192.0.2.1", "line 1: `a..b` is not a domain name like mx.example.net."),
            (
                "a.example A 192.0.2.1\na.example CNAME b.example",
                "line 2: a.example has a CNAME: no other record can stand beside it",
            ),
        ] {
            assert_eq!(StaticResolver::parse(text).unwrap_err().to_string(), message);
        }
        let resolver = StaticResolver::parse("a.example A 192.0.2.1").unwrap();
        assert!(resolver.set_zone("?").is_err());
        assert!(resolver.lock().zone.nodes.contains_key("a.example"));
    }
}
