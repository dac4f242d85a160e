use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::clock::Timestamp;
use crate::dns::StaticResolver;

const ZONE: &str = "
    example.net. 300 MX 10 mx.example.net.
    mx.example.net. 60 A 192.0.2.1
    year.example. 31536000 A 192.0.2.2
    zero.example. 0 A 192.0.2.3
";

fn clock() -> Clock {
    Clock::starting_at(Timestamp::from_unix_seconds(1_000))
}

fn cached(options: CacheOptions) -> (StaticResolver, CachingResolver<StaticResolver>) {
    let zone = StaticResolver::parse(ZONE).unwrap();
    (zone.clone(), CachingResolver::with_options(zone, clock(), options))
}

async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

async fn ipv4_ttl(cache: &CachingResolver<StaticResolver>, name: &str) -> u64 {
    cache.ipv4(name, Freshness::Cached).await.unwrap().ttl.as_secs()
}

#[tokio::test(start_paused = true)]
async fn answers_hold_for_their_ttl_and_no_longer() {
    let (zone, cache) = cached(CacheOptions::default());
    for (name, ttl, negative) in [
        ("mx.example.net", 60, false),
        ("year.example", 86_400, false),
        // From the zone's 300 s: below the bound of 15 minutes.
        ("nowhere.example", 300, true),
    ] {
        assert_eq!(ipv4_ttl(&cache, name).await, ttl);
        pass(ttl - 1).await;
        assert_eq!(ipv4_ttl(&cache, name).await, 1, "{name}");
        assert_eq!(zone.queries(name), 1);
        pass(1).await;
        let answer = cache.ipv4(name, Freshness::Cached).await.unwrap();
        assert_eq!(answer.data == Data::NxDomain, negative);
        assert_eq!(zone.queries(name), 2, "{name}");
    }
    // Each record type by itself.
    cache.ipv6("mx.example.net", Freshness::Cached).await.unwrap();
    assert_eq!(zone.queries("mx.example.net"), 3);
    // TTL 0: never from the cache.
    for asked in 1..4 {
        assert_eq!(ipv4_ttl(&cache, "zero.example").await, 0);
        assert_eq!(zone.queries("zero.example"), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn ttls_are_cut_as_configured() {
    let options = CacheOptions {
        min_ttl: Duration::from_secs(90),
        max_ttl: Duration::from_secs(100),
        max_negative_ttl: Duration::from_secs(10),
        ..CacheOptions::default()
    };
    let (_, cache) = cached(options);
    for (name, seconds) in
        [("mx.example.net", 90), ("year.example", 100), ("zero.example", 90), ("no.example", 10)]
    {
        assert_eq!(ipv4_ttl(&cache, name).await, seconds, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn fresh_asks_past_the_cache_and_renews_it() {
    let (zone, cache) = cached(CacheOptions::default());
    cache.mx("example.net", Freshness::Cached).await.unwrap();
    zone.set_zone("example.net. MX 5 new.example.net.").unwrap();
    for freshness in [Freshness::Fresh, Freshness::Cached] {
        let Data::Records(records) = cache.mx("example.net", freshness).await.unwrap().data else { panic!() };
        assert_eq!(records[0].exchange, "new.example.net");
    }
    assert_eq!(zone.queries("example.net"), 2);
}

#[tokio::test(start_paused = true)]
async fn failures_are_not_remembered() {
    let (zone, cache) = cached(CacheOptions::default());
    zone.fail("example.net", DnsErrorKind::ServFail);
    let error = cache.mx("example.net", Freshness::Cached).await.unwrap_err();
    assert_eq!(error.kind(), DnsErrorKind::ServFail);
    zone.recover("example.net");
    assert!(cache.mx("example.net", Freshness::Cached).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn stale_records_stand_in_for_a_day_but_never_fresh_and_never_negative() {
    let (zone, cache) = cached(CacheOptions::default());
    assert_eq!(ipv4_ttl(&cache, "mx.example.net").await, 60);
    assert_eq!(ipv4_ttl(&cache, "no.example").await, 300);
    zone.fail("mx.example.net", DnsErrorKind::Timeout);
    zone.fail("no.example", DnsErrorKind::Timeout);
    pass(400).await;

    assert_eq!(ipv4_ttl(&cache, "mx.example.net").await, 30);
    assert_eq!(zone.queries("mx.example.net"), 2);
    // For half a minute DNS is left alone.
    pass(29).await;
    assert_eq!(ipv4_ttl(&cache, "mx.example.net").await, 1);
    assert_eq!(zone.queries("mx.example.net"), 2);
    pass(1).await;
    assert_eq!(ipv4_ttl(&cache, "mx.example.net").await, 30);
    assert_eq!(zone.queries("mx.example.net"), 3);

    assert!(cache.ipv4("mx.example.net", Freshness::Fresh).await.is_err());
    assert!(cache.ipv4("no.example", Freshness::Cached).await.is_err());

    pass(86_400 + 60 - 430 - 10).await;
    assert_eq!(ipv4_ttl(&cache, "mx.example.net").await, 10);
    pass(10).await;
    assert!(cache.ipv4("mx.example.net", Freshness::Cached).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_news_that_it_is_gone_ends_the_old_answer() {
    let (zone, cache) = cached(CacheOptions::default());
    assert_eq!(ipv4_ttl(&cache, "mx.example.net").await, 60);
    zone.set_zone("").unwrap();
    cache.ipv4("mx.example.net", Freshness::Fresh).await.unwrap();
    zone.fail("mx.example.net", DnsErrorKind::Timeout);
    pass(400).await;
    assert!(cache.ipv4("mx.example.net", Freshness::Cached).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_answer_makes_room() {
    let (zone, cache) = cached(CacheOptions { capacity: 3, ..CacheOptions::default() });
    for name in ["a.example", "b.example", "c.example", "a.example", "d.example", "a.example", "b.example"] {
        cache.ipv4(name, Freshness::Cached).await.unwrap();
        assert!(cache.shared.ipv4.lock().answers.len() <= 3);
    }
    let asked = ["a.example", "b.example", "c.example", "d.example"].map(|name| zone.queries(name));
    assert_eq!(asked, [1, 2, 1, 1]);
}

/// Holds every question until a permit is given.
#[derive(Debug)]
struct Gate {
    zone: StaticResolver,
    open: Semaphore,
    inside: AtomicUsize,
    most: AtomicUsize,
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("gate")
    }
}

impl Gate {
    async fn pass(&self) {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        self.open.acquire().await.unwrap().forget();
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Resolver for Gate {
    async fn mx(&self, domain: &str, freshness: Freshness) -> Result<Answer<MxRecord>, DnsError> {
        self.pass().await;
        self.zone.mx(domain, freshness).await
    }

    async fn ipv4(&self, host: &str, freshness: Freshness) -> Result<Answer<Ipv4Addr>, DnsError> {
        self.pass().await;
        self.zone.ipv4(host, freshness).await
    }

    async fn ipv6(&self, host: &str, freshness: Freshness) -> Result<Answer<Ipv6Addr>, DnsError> {
        self.pass().await;
        self.zone.ipv6(host, freshness).await
    }
}

fn gated(concurrent_lookups: usize) -> (StaticResolver, CachingResolver<Gate>) {
    let zone = StaticResolver::parse(ZONE).unwrap();
    let gate = Gate {
        zone: zone.clone(),
        open: Semaphore::new(0),
        inside: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
    };
    let options = CacheOptions { concurrent_lookups, ..CacheOptions::default() };
    (zone, CachingResolver::with_options(gate, clock(), options))
}

fn ask(cache: &CachingResolver<Gate>, name: &str, freshness: Freshness) -> tokio::task::JoinHandle<bool> {
    let (cache, name) = (cache.clone(), name.to_owned());
    tokio::spawn(async move { cache.mx(&name, freshness).await.is_ok() })
}

async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_question_at_a_time_even_if_the_first_to_ask_goes_away() {
    let (zone, cache) = gated(200);
    let leader = ask(&cache, "example.net", Freshness::Cached);
    settle().await;
    let followers: Vec<_> = (0..20)
        .map(|n| ask(&cache, "example.net", if n % 2 == 0 { Freshness::Cached } else { Freshness::Fresh }))
        .collect();
    settle().await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    cache.get_ref().open.add_permits(1);
    for follower in followers {
        assert!(follower.await.unwrap());
    }
    assert_eq!(zone.queries("example.net"), 1);
    assert!(cache.shared.mx.lock().flights.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_look_up_nobody_wants_any_more_is_dropped() {
    let (_, cache) = gated(1);
    let only = ask(&cache, "example.net", Freshness::Cached);
    settle().await;
    assert_eq!(cache.shared.mx.lock().flights.len(), 1);
    only.abort();
    assert!(only.await.is_err());
    assert!(cache.shared.mx.lock().flights.is_empty());
    // Its permit is free again.
    cache.get_ref().open.add_permits(1);
    assert!(cache.mx("example.net", Freshness::Cached).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn look_ups_under_way_are_bounded() {
    let (_, cache) = gated(5);
    let asked: Vec<_> = (0..40).map(|n| ask(&cache, &format!("d{n}.example"), Freshness::Cached)).collect();
    settle().await;
    assert_eq!(cache.get_ref().most.load(Ordering::SeqCst), 5);
    cache.get_ref().open.add_permits(40);
    for asked in asked {
        assert!(asked.await.unwrap());
    }
    assert_eq!(cache.get_ref().most.load(Ordering::SeqCst), 5);
}

/// RFC 7672 §2.1: certificates are not held to what may have changed since.
#[tokio::test(start_paused = true)]
async fn authenticity_is_kept_and_tlsa_records_never_stand_in() {
    let zone =
        StaticResolver::parse("mx.example. 60 A 192.0.2.1\n_25._tcp.mx.example. 60 TLSA 3 1 1 00").unwrap();
    zone.set_dnssec("mx.example", crate::dns::Dnssec::Secure);
    let cache = CachingResolver::new(zone.clone(), clock());
    let tlsa = async || cache.tlsa("_25._tcp.mx.example", Freshness::Cached).await;
    let ipv4 = async || cache.ipv4("mx.example", Freshness::Cached).await;
    for _ in 0..2 {
        assert!(tlsa().await.unwrap().authentic && ipv4().await.unwrap().authentic);
    }
    assert_eq!((zone.queries("_25._tcp.mx.example"), zone.queries("mx.example")), (1, 1));
    zone.fail("_25._tcp.mx.example", DnsErrorKind::Timeout);
    zone.fail("mx.example", DnsErrorKind::Timeout);
    pass(59).await;
    assert!(tlsa().await.is_ok());
    pass(1).await;
    assert!(ipv4().await.unwrap().authentic, "it stands in");
    assert_eq!(tlsa().await.unwrap_err().kind(), DnsErrorKind::Timeout);
}
