//! [`CachingResolver`]: remembers the answers of another resolver, and asks each question once at a time.

mod store;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;

use self::store::{Store, Weighty};
use super::{Answer, Data, DnsError, DnsErrorKind, Freshness, MxRecord, Resolver, TlsaRecord, TxtRecord};
use crate::clock::Clock;

/// What a [`CachingResolver`] keeps, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheOptions {
    /// Answers kept of each record type (MX, A, AAAA, TXT, TLSA, CNAME). At the bound the least recently used is forgotten. Zero: no
    /// answer is kept. Default: 32,768.
    pub capacity: usize,
    /// Octets of memory for the answers of each record type, by a rough estimate; at the bound likewise. An answer that takes more than
    /// that is not kept. Default: 16 MiB, so 96 MiB in all, of which answers of common size fill a part when [`capacity`](Self::capacity)
    /// is reached.
    pub octets: usize,
    /// Records hold at least so long, whatever their TTL. Default: zero, as DNS demands.
    pub min_ttl: Duration,
    /// Records hold at most so long. Default: a day.
    pub max_ttl: Duration,
    /// That something is not there holds at most so long. Default: 15 minutes.
    pub max_negative_ttl: Duration,
    /// After a failed look-up, records may stand in for so long past their TTL (RFC 8767); never the news that
    /// something is not there, never TLSA records, and never for [`Freshness::Fresh`]. DNS is asked again after 30 s. Default: a day.
    pub max_stale: Duration,
    /// Look-ups under way at a time; more wait for their turn. At least one. Default: 200.
    pub concurrent_lookups: usize,
}

impl Default for CacheOptions {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Self {
            capacity: 32_768,
            octets: 16 << 20,
            min_ttl: Duration::ZERO,
            max_ttl: DAY,
            max_negative_ttl: Duration::from_secs(15 * 60),
            max_stale: DAY,
            concurrent_lookups: 200,
        }
    }
}

/// Remembers the answers of a resolver for their TTL.
///
/// A question that is already being asked is not asked again: all who ask wait for the one answer.
/// [`Freshness::Fresh`] asks past the cache, joins a look-up under way, and its answer is remembered. Failures are not
/// remembered. Clones share everything.
///
/// # Cancel safety
///
/// Whoever asked first may go away: the others carry the look-up on. When all have gone, it is dropped.
pub struct CachingResolver<R> {
    shared: Arc<Inner<R>>,
}

struct Inner<R> {
    resolver: R,
    clock: Clock,
    options: CacheOptions,
    permits: Semaphore,
    mx: Table<MxRecord>,
    ipv4: Table<Ipv4Addr>,
    ipv6: Table<Ipv6Addr>,
    txt: Table<TxtRecord>,
    tlsa: Table<TlsaRecord>,
    cname: Table<Arc<str>>,
}

/// One record type's answers, and its look-ups under way.
struct Table<T>(Mutex<State<T>>);

struct State<T> {
    answers: Store<T>,
    flights: HashMap<Arc<str>, (u64, WeakShared<Lookup<T>>)>,
    last_flight: u64,
}

type Lookup<T> = BoxFuture<'static, Result<Answer<T>, DnsError>>;

impl<R: Resolver> CachingResolver<R> {
    /// With the default [`CacheOptions`].
    pub fn new(resolver: R, clock: Clock) -> Self {
        Self::with_options(resolver, clock, CacheOptions::default())
    }

    /// With these options.
    pub fn with_options(resolver: R, clock: Clock, options: CacheOptions) -> Self {
        let permits = Semaphore::new(options.concurrent_lookups.clamp(1, Semaphore::MAX_PERMITS));
        let (mx, ipv4, ipv6, txt, tlsa, cname) = Default::default();
        let inner = Inner { resolver, clock, options, permits, mx, ipv4, ipv6, txt, tlsa, cname };
        Self { shared: Arc::new(inner) }
    }

    /// The resolver behind the cache.
    pub fn get_ref(&self) -> &R {
        &self.shared.resolver
    }

    async fn answer<T: Record>(&self, name: &str, freshness: Freshness) -> Result<Answer<T>, DnsError> {
        let inner = &self.shared;
        let lookup = {
            let mut state = T::table(inner).lock();
            if freshness == Freshness::Cached
                && let Some(answer) = state.answers.get(name, inner.clock.now())
            {
                return Ok(answer);
            }
            match state.flights.get(name).and_then(|(_, flight)| flight.upgrade()) {
                Some(lookup) => lookup,
                None => take_off::<R, T>(inner, &mut state, name.into()),
            }
        };
        let result = lookup.await;
        match (&result, freshness) {
            (Err(_), Freshness::Cached) if T::STANDS_IN => {
                let mut state = T::table(inner).lock();
                state.answers.stale(name, inner.clock.now(), &inner.options).map_or(result, Ok)
            }
            _ => result,
        }
    }
}

/// Starts a look-up that whoever holds it can carry on.
fn take_off<R: Resolver, T: Record>(
    inner: &Arc<Inner<R>>,
    state: &mut State<T>,
    name: Arc<str>,
) -> Shared<Lookup<T>> {
    state.last_flight += 1;
    let number = state.last_flight;
    let landing = Landing::<R, T> { inner: inner.clone(), name: name.clone(), number, table: T::table };
    let lookup = async move {
        let inner = &landing.inner;
        let Ok(_permit) = inner.permits.acquire().await else {
            return Err(DnsError::new(DnsErrorKind::Unreachable, "the resolver was closed"));
        };
        let answer = T::ask(&inner.resolver, &landing.name).await?;
        let answer = inner.options.cut(answer);
        let now = inner.clock.now();
        T::table(inner).lock().answers.put(&landing.name, &answer, now, &inner.options);
        Ok(answer)
    };
    let lookup = lookup.boxed().shared();
    if let Some(flight) = lookup.downgrade() {
        state.flights.insert(name, (number, flight));
    }
    lookup
}

/// Strikes a look-up off the list when it ends, by an answer or because nobody wants it any more.
struct Landing<R, T> {
    inner: Arc<Inner<R>>,
    name: Arc<str>,
    number: u64,
    table: fn(&Inner<R>) -> &Table<T>,
}

impl<R, T> Drop for Landing<R, T> {
    fn drop(&mut self) {
        let mut state = (self.table)(&self.inner).lock();
        // By number: another look-up for the name may have begun since.
        if state.flights.get(&self.name).is_some_and(|(number, _)| *number == self.number) {
            state.flights.remove(&self.name);
        }
    }
}

impl CacheOptions {
    fn cut<T>(&self, answer: Answer<T>) -> Answer<T> {
        let ttl = match answer.data {
            Data::Records(_) => answer.ttl.max(self.min_ttl).min(self.max_ttl),
            Data::NoData | Data::NxDomain => answer.ttl.min(self.max_negative_ttl),
        };
        Answer { ttl, ..answer }
    }
}

/// What is kept apart by record type.
#[async_trait]
trait Record: Weighty + Send + Sync + Sized + 'static {
    /// Records past their TTL may stand in for a look-up that failed.
    const STANDS_IN: bool;
    fn table<R>(inner: &Inner<R>) -> &Table<Self>;
    async fn ask(resolver: &dyn Resolver, name: &str) -> Result<Answer<Self>, DnsError>;
}

macro_rules! record {
    ($record:ty, $question:ident, $stands_in:literal, $octets:expr) => {
        impl Weighty for $record {
            fn octets(&self) -> usize {
                let octets: fn(&Self) -> usize = $octets;
                octets(self)
            }
        }

        #[async_trait]
        impl Record for $record {
            const STANDS_IN: bool = $stands_in;

            fn table<R>(inner: &Inner<R>) -> &Table<Self> {
                &inner.$question
            }

            async fn ask(resolver: &dyn Resolver, name: &str) -> Result<Answer<Self>, DnsError> {
                resolver.$question(name, Freshness::Fresh).await
            }
        }
    };
}

record!(MxRecord, mx, true, |mx| mx.exchange.capacity());
record!(Ipv4Addr, ipv4, true, |_| 0);
record!(Ipv6Addr, ipv6, true, |_| 0);
record!(TxtRecord, txt, true, |txt| txt.octets().len());
// Certificates are held to what is known to be true now (RFC 7672 §2.1).
record!(TlsaRecord, tlsa, false, |tlsa| tlsa.data.len());
record!(Arc<str>, cname, false, |name| name.len());

impl<T> Table<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Mutex::new(State { answers: Store::default(), flights: HashMap::new(), last_flight: 0 }))
    }
}

#[async_trait]
impl<R: Resolver> Resolver for CachingResolver<R> {
    async fn mx(&self, domain: &str, freshness: Freshness) -> Result<Answer<MxRecord>, DnsError> {
        self.answer(domain, freshness).await
    }

    async fn ipv4(&self, host: &str, freshness: Freshness) -> Result<Answer<Ipv4Addr>, DnsError> {
        self.answer(host, freshness).await
    }

    async fn ipv6(&self, host: &str, freshness: Freshness) -> Result<Answer<Ipv6Addr>, DnsError> {
        self.answer(host, freshness).await
    }

    async fn txt(&self, name: &str, freshness: Freshness) -> Result<Answer<TxtRecord>, DnsError> {
        self.answer(name, freshness).await
    }

    async fn tlsa(&self, name: &str, freshness: Freshness) -> Result<Answer<TlsaRecord>, DnsError> {
        self.answer(name, freshness).await
    }

    async fn cname(&self, name: &str, freshness: Freshness) -> Result<Answer<Arc<str>>, DnsError> {
        self.answer(name, freshness).await
    }
}

impl<R> Clone for CachingResolver<R> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<R: fmt::Display> fmt::Display for CachingResolver<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cache before {}", self.shared.resolver)
    }
}

impl<R: fmt::Debug> fmt::Debug for CachingResolver<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachingResolver")
            .field("resolver", &self.shared.resolver)
            .field("options", &self.shared.options)
            .finish()
    }
}
