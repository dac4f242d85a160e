//! DNS of a world: its zone, and what is said in place of it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::WorldError;
use super::book::Book;
use super::builder::{check_chance, check_times};
use crate::dns::{
    Answer, Data, DnsError, DnsErrorKind, Freshness, MxRecord, Resolver, StaticResolver, TlsaRecord,
    TxtRecord,
};
use crate::message::Domain;
use crate::testing::conversation::pause;

/// DNS that does not say what the zone says.
///
/// The engine remembers answers as it does of any server: what it knows from before is not asked again until its TTL
/// is over, and a lie lasts for five minutes.
///
/// ```
/// use std::time::Duration;
/// use postrider::testing::{DnsFault, DnsLie};
/// let hour = Duration::from_secs(3600);
/// let fault = DnsFault::new(DnsLie::NxDomain).about("example.net").during(hour..2 * hour).with_chance(0.5);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct DnsFault {
    lie: DnsLie,
    name: Option<String>,
    times: Range<Duration>,
    chance: f64,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DnsLie {
    /// The question fails so.
    Fails(DnsErrorKind),
    /// The name does not exist.
    NxDomain,
    /// The name has no such record.
    NoData,
    /// The answer comes only after so long.
    Slow(Duration),
    /// MX questions are answered with this one host.
    Exchanger(String),
    /// A questions are answered with this address.
    Address(Ipv4Addr),
}

impl DnsFault {
    /// A lie about every name, always.
    pub fn new(lie: DnsLie) -> Self {
        Self { lie, name: None, times: Duration::ZERO..Duration::MAX, chance: 1.0 }
    }

    /// About this name only.
    pub fn about(mut self, name: &str) -> Self {
        let plain = name.trim_end_matches('.').to_ascii_lowercase();
        // It is asked about in the form for DNS (RFC 5891).
        self.name = Some(Domain::parse(&plain).map_or(plain, |domain| domain.as_str().to_owned()));
        self
    }

    /// In this time only, counted from the world's beginning.
    pub fn during(mut self, times: Range<Duration>) -> Self {
        self.times = times;
        self
    }

    /// With this probability, 0 to 1, drawn anew for each question.
    pub fn with_chance(mut self, probability: f64) -> Self {
        self.chance = probability;
        self
    }

    pub(super) fn check(&self) -> Result<(), WorldError> {
        check_chance(self.chance)?;
        check_times("DNS lies", &self.times)?;
        if let Some(name) = self.name.as_ref().filter(|name| !is_name(name)) {
            return Err(WorldError::Name(name.clone()));
        }
        match &self.lie {
            DnsLie::Exchanger(name) if !is_name(name) => Err(WorldError::Exchanger(name.clone())),
            _ => Ok(()),
        }
    }
}

/// A name that may stand in DNS, and no address.
fn is_name(name: &str) -> bool {
    Domain::parse(name).is_ok_and(|domain| domain.literal_address().is_none())
        && name.parse::<IpAddr>().is_err()
}

/// Answers from the zone, except where it lies. Clones share everything.
#[derive(Clone)]
pub(super) struct LyingResolver {
    zone: StaticResolver,
    book: Book,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Question {
    Mx,
    Ipv4,
    Ipv6,
}

struct Inner {
    random: fastrand::Rng,
    faults: Vec<DnsFault>,
}

impl LyingResolver {
    pub(super) fn new(zone: StaticResolver, book: Book, seed: u64, faults: Vec<DnsFault>) -> Self {
        let inner = Inner { random: fastrand::Rng::with_seed(seed), faults };
        Self { zone, book, inner: Arc::new(Mutex::new(inner)) }
    }

    pub(super) fn zone(&self) -> &StaticResolver {
        &self.zone
    }

    pub(super) fn set_faults(&self, faults: Vec<DnsFault>) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).faults = faults;
    }

    /// What is said of a name now, in answer to such a question.
    fn lie(&self, name: &str, question: Question) -> Option<DnsLie> {
        let now = self.book.elapsed();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { random, faults } = &mut *inner;
        let about = |fault: &&DnsFault| fault.name.as_ref().is_none_or(|about| about == name);
        let answers = |fault: &&DnsFault| match fault.lie {
            DnsLie::Exchanger(_) => question == Question::Mx,
            DnsLie::Address(_) => question == Question::Ipv4,
            _ => true,
        };
        let mut now = faults.iter().filter(about).filter(answers).filter(|fault| fault.times.contains(&now));
        now.find(|fault| random.f64() < fault.chance).map(|fault| fault.lie.clone())
    }

    /// The lie, or `None` after it was waited for long enough: the truth.
    async fn answer<T>(
        &self,
        name: &str,
        question: Question,
        record: impl FnOnce(DnsLie) -> Option<T>,
    ) -> Option<Result<Answer<T>, DnsError>> {
        const TTL: Duration = Duration::from_secs(300);
        Some(match self.lie(name, question)? {
            DnsLie::Slow(time) => {
                pause(time).await;
                return None;
            }
            DnsLie::Fails(kind) => Err(DnsError::new(kind, format!("{name}: {}", kind.as_str()))),
            DnsLie::NxDomain => Ok(Answer::nx_domain(TTL)),
            DnsLie::NoData => Ok(Answer::no_data(TTL)),
            lie => Ok(Answer::records(vec![record(lie)?], TTL)),
        })
    }
}

#[async_trait]
impl Resolver for LyingResolver {
    async fn mx(&self, domain: &str, freshness: Freshness) -> Result<Answer<MxRecord>, DnsError> {
        let record = |lie| match lie {
            DnsLie::Exchanger(host) => Domain::parse(&host)
                .ok()
                .map(|host| MxRecord { preference: 10, exchange: host.as_str().to_owned() }),
            _ => None,
        };
        let answer = match self.answer(domain, Question::Mx, record).await {
            Some(answer) => answer,
            None => self.zone.mx(domain, freshness).await,
        };
        records(&answer)
            .iter()
            .for_each(|record| self.book.tell(|oracle| oracle.exchanger(domain, &record.exchange)));
        answer
    }

    async fn ipv4(&self, host: &str, freshness: Freshness) -> Result<Answer<Ipv4Addr>, DnsError> {
        let record = |lie| match lie {
            DnsLie::Address(address) => Some(address),
            _ => None,
        };
        let answer = match self.answer(host, Question::Ipv4, record).await {
            Some(answer) => answer,
            None => self.zone.ipv4(host, freshness).await,
        };
        records(&answer)
            .iter()
            .for_each(|&address| self.book.tell(|oracle| oracle.address(host, address.into())));
        answer
    }

    async fn ipv6(&self, host: &str, freshness: Freshness) -> Result<Answer<Ipv6Addr>, DnsError> {
        let answer = match self.answer(host, Question::Ipv6, |_| None).await {
            Some(answer) => answer,
            None => self.zone.ipv6(host, freshness).await,
        };
        records(&answer)
            .iter()
            .for_each(|&address| self.book.tell(|oracle| oracle.address(host, address.into())));
        answer
    }

    /// Never a lie.
    async fn txt(&self, name: &str, freshness: Freshness) -> Result<Answer<TxtRecord>, DnsError> {
        self.zone.txt(name, freshness).await
    }

    /// Never a lie.
    async fn tlsa(&self, name: &str, freshness: Freshness) -> Result<Answer<TlsaRecord>, DnsError> {
        self.zone.tlsa(name, freshness).await
    }

    /// Never a lie.
    async fn cname(&self, name: &str, freshness: Freshness) -> Result<Answer<Arc<str>>, DnsError> {
        self.zone.cname(name, freshness).await
    }
}

fn records<T>(answer: &Result<Answer<T>, DnsError>) -> &[T] {
    match answer {
        Ok(Answer { data: Data::Records(records), .. }) => records,
        _ => &[],
    }
}

impl fmt::Debug for LyingResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LyingResolver").field("zone", &self.zone).finish_non_exhaustive()
    }
}

impl fmt::Display for LyingResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the world's zone")
    }
}
