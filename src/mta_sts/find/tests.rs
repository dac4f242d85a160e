//! Which policy holds, by what TXT record and fetcher say.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::dns::{MxRecord, Resolver, StaticResolver, TxtRecord};
use crate::mta_sts::{Mode, StaticFetcher};

const DOMAIN: &str = "example.net";
const HOUR: Duration = Duration::from_secs(3_600);

struct Rig {
    policies: Arc<Policies>,
    zone: StaticResolver,
    files: StaticFetcher,
    clock: Clock,
}

impl Rig {
    fn new() -> Self {
        let (files, clock) = (StaticFetcher::new(), Clock::starting_at(Timestamp::from_unix_seconds(1_000)));
        let counts = Arc::new(TlsCounts::new(clock.clone()));
        let policies = Arc::new(Policies::new(Arc::new(files.clone()), clock.clone(), counts));
        Self { policies, zone: StaticResolver::new(), files, clock }
    }

    fn publish(&self, id: &str, mode: &str, max_age: u64) {
        self.zone.set_zone(&format!("_mta-sts.{DOMAIN} 600 TXT \"v=STSv1; id={id}\"")).unwrap();
        let file = format!("version: STSv1\nmode: {mode}\nmx: mx.example.net\nmax_age: {max_age}");
        self.files.set(DOMAIN, file);
    }

    /// The same with another fetcher, and what is known.
    fn with_fetcher(self, fetcher: impl PolicyFetcher) -> Self {
        let counts = Arc::new(TlsCounts::new(self.clock.clone()));
        let policies = Policies::new(Arc::new(fetcher), self.clock.clone(), counts);
        let rows = self.policies.take_changes().into_iter().filter_map(|change| match change {
            Change::PutState(row) => Some(row),
            _ => None,
        });
        policies.restore(&mut rows.collect(), self.clock.now());
        Self { policies: Arc::new(policies), ..self }
    }

    async fn find(&self) -> Found {
        self.find_of(DOMAIN).await
    }

    async fn find_of(&self, domain: &str) -> Found {
        let resolver: Arc<dyn Resolver> = Arc::new(self.zone.clone());
        let sought = Sought { domain, resolver: &resolver, prohibited: &[] };
        self.policies.find(&sought, Freshness::Cached).await
    }

    /// What is seen, and how long it takes.
    async fn timed(&self) -> (Found, u64) {
        let before = self.clock.now();
        let found = self.find().await;
        (found, self.clock.now().saturating_since(before).as_secs())
    }

    /// Mode, the kind of failure, seconds until it is looked for again, and fetches so far.
    async fn seen(&self) -> (Option<Mode>, Option<FetchErrorKind>, u64, u64) {
        let found = self.find().await;
        // What is fetched beside it ends.
        tokio::task::yield_now().await;
        assert!(self.policies.lock().flights.is_empty());
        let mode = found.policy.map(|kept| kept.policy.mode());
        (
            mode,
            found.failure.map(|failure| failure.kind),
            found.again_in.as_secs(),
            self.files.fetches(DOMAIN),
        )
    }
}

const NEVER: u64 = u64::MAX;

#[tokio::test(start_paused = true)]
async fn a_policy_comes_and_stays_and_changes() {
    let rig = Rig::new();
    assert_eq!(rig.seen().await, (None, None, NEVER, 0), "no record");
    rig.publish("1", "enforce", 1_000_000);
    assert_eq!(rig.seen().await, (Some(Mode::Enforce), None, 600, 1));
    assert_eq!(rig.seen().await, (Some(Mode::Enforce), None, 600, 1), "kept");
    rig.publish("2", "testing", 1_000_000);
    assert_eq!(rig.seen().await, (Some(Mode::Enforce), None, 300, 1), "it was fetched just now");
    tokio::time::advance(REST).await;
    assert_eq!(rig.seen().await, (Some(Mode::Testing), None, 600, 2), "another id");
    rig.publish("3", "none", 100);
    tokio::time::advance(REST).await;
    assert_eq!(rig.seen().await, (Some(Mode::None), None, 50, 3));
    assert_eq!(rig.policies.take_changes().len(), 3);
}

/// An id that changes with every answer is no reason to fetch with every look-up.
#[tokio::test(start_paused = true)]
async fn an_id_that_never_stays_the_same_has_no_more_fetched() {
    for fails in [false, true] {
        let rig = Rig::new();
        for n in 0..20 {
            rig.publish(&n.to_string(), "enforce", 1_000_000);
            if fails {
                rig.files.fail(DOMAIN, FetchErrorKind::NoAnswer);
            }
            rig.find().await;
            tokio::time::advance(REST / 10).await;
        }
        assert_eq!(rig.files.fetches(DOMAIN), 2, "{fails}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_seen_outlasts_dns_and_web_server() {
    let rig = Rig::new();
    rig.publish("1", "enforce", 10_000);
    rig.seen().await;
    rig.files.fail(DOMAIN, FetchErrorKind::NoAnswer);
    rig.zone.fail("_mta-sts.example.net", DnsErrorKind::ServFail);
    assert_eq!(rig.seen().await, (Some(Mode::Enforce), None, 300, 1), "DNS fails");
    rig.zone.recover("_mta-sts.example.net");
    rig.zone.set_zone("").unwrap();
    assert_eq!(rig.seen().await, (Some(Mode::Enforce), None, 5_000, 1), "no record");
    rig.zone.set_zone("_mta-sts.example.net TXT \"v=STSv1; id=2\"").unwrap();
    tokio::time::advance(REST).await;
    let failed = Some(FetchErrorKind::NoAnswer);
    assert_eq!(rig.seen().await, (Some(Mode::Enforce), failed, 300, 2), "the new one can not be had");
    assert_eq!(rig.seen().await, (Some(Mode::Enforce), failed, 300, 2), "remembered");
    tokio::time::advance(REST).await;
    assert_eq!(rig.seen().await, (Some(Mode::Enforce), failed, 300, 3));
    tokio::time::advance(3 * HOUR).await;
    assert_eq!(rig.seen().await, (None, failed, 300, 4), "its time is over");
}

/// RFC 8461 §3.3, §5.1: who takes the record away must not be able to wait for the end of the policy.
#[tokio::test(start_paused = true)]
async fn a_policy_whose_record_is_gone_is_seen_again() {
    let rig = Rig::new();
    rig.publish("1", "enforce", 10_000);
    rig.seen().await;
    rig.zone.set_zone("").unwrap();
    for n in 1..10 {
        tokio::time::advance(Duration::from_secs(5_000)).await;
        assert_eq!(rig.seen().await, (Some(Mode::Enforce), None, 5_000, n + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_policy_is_told_from_what_can_not_be_had() {
    for (set, kind) in [
        (None, FetchErrorKind::Certificate),
        (None, FetchErrorKind::NoAnswer),
        (Some("<html>"), FetchErrorKind::NoPolicy),
    ] {
        let rig = Rig::new();
        rig.publish("1", "enforce", 1_000);
        match set {
            Some(file) => rig.files.set(DOMAIN, file),
            None => rig.files.fail(DOMAIN, kind),
        }
        assert_eq!(rig.seen().await, (None, Some(kind), 300, 1));
        rig.publish("2", "enforce", 1_000);
        assert_eq!(rig.seen().await, (None, Some(kind), 300, 1), "a new id makes no difference");
        tokio::time::advance(REST).await;
        assert_eq!(rig.seen().await, (Some(Mode::Enforce), None, 500, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn dns_that_fails_is_asked_again_soon() {
    let rig = Rig::new();
    rig.zone.fail("_mta-sts.example.net", DnsErrorKind::Timeout);
    assert_eq!(rig.seen().await, (None, None, 300, 0));
}

#[tokio::test(start_paused = true)]
async fn a_restart_forgets_nothing() {
    let rig = Rig::new();
    rig.publish("1", "enforce", 10_000);
    rig.seen().await;
    let again = rig.with_fetcher(StaticFetcher::new());
    again.zone.set_zone("").unwrap();
    assert_eq!(again.seen().await, (Some(Mode::Enforce), None, 5_000, 1));
    let other = StateRow { key: b"other".to_vec(), value: Vec::new() };
    let mut rows = vec![other.clone()];
    again.policies.restore(&mut rows, again.clock.now());
    assert_eq!(rows, [other]);
}

/// What was fetched beside a look-up is told to whoever makes it durable.
#[tokio::test(start_paused = true)]
async fn what_is_to_be_made_durable_is_told() {
    let rig = Rig::new();
    rig.publish("1", "enforce", 1_000);
    assert!(rig.policies.changed().now_or_never().is_none());
    rig.find().await;
    rig.policies.changed().await;
    assert_eq!(rig.policies.take_changes().len(), 1);
}

/// Answers when it is let, and counts who is in it.
#[derive(Debug, Default)]
struct Gate {
    open: tokio::sync::Notify,
    inside: std::sync::atomic::AtomicUsize,
}

#[derive(Debug, Clone, Default)]
struct Gated(Arc<Gate>);

#[async_trait::async_trait]
impl PolicyFetcher for Gated {
    async fn fetch(&self, _: &PolicyRequest<'_>) -> Result<Bytes, FetchError> {
        self.0.inside.fetch_add(1, Ordering::SeqCst);
        self.0.open.notified().await;
        Ok("version: STSv1\nmode: enforce\nmx: mx.example.net\nmax_age: 1000".into())
    }
}

impl fmt::Display for Gated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("gated")
    }
}

impl Gated {
    fn fetches(&self) -> usize {
        self.0.inside.load(Ordering::SeqCst)
    }

    /// Lets those go who are in it.
    async fn open(&self) {
        self.0.open.notify_waiters();
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_who_want_a_policy_fetch_it_once() {
    let (gate, rig) = (Gated::default(), Rig::new());
    rig.publish("1", "enforce", 1_000);
    let rig = rig.with_fetcher(gate.clone());
    // The first goes away: what it began goes on.
    assert!(rig.find().now_or_never().is_none());
    let all = futures::future::join_all((0..5).map(|_| rig.find()));
    let opens = async {
        tokio::task::yield_now().await;
        gate.open().await;
    };
    let (found, ()) = tokio::join!(all, opens);
    assert!(found.iter().all(|found| found.policy.is_some()));
    assert_eq!(gate.fetches(), 1);
    assert!(rig.policies.lock().flights.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_look_up_waits_a_moment_for_a_policy_that_serves_the_next() {
    let (gate, rig) = (Gated::default(), Rig::new());
    rig.publish("1", "enforce", 1_000);
    let rig = rig.with_fetcher(gate.clone());
    let (found, took) = rig.timed().await;
    assert_eq!(
        (found, took),
        (Found { policy: None, is_current: false, failure: None, again_in: LIMIT }, 10)
    );
    gate.open().await;
    let (found, took) = rig.timed().await;
    assert_eq!((found.policy.is_some(), took, gate.fetches()), (true, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_has_a_minute() {
    let (gate, rig) = (Gated::default(), Rig::new());
    rig.publish("1", "enforce", 1_000);
    let rig = rig.with_fetcher(gate.clone());
    assert_eq!(rig.timed().await.0.failure, None);
    tokio::time::advance(Duration::from_secs(45)).await;
    let (found, took) = rig.timed().await;
    assert_eq!(&*found.failure.unwrap().message, "mta-sts.example.net: no answer within 60 s");
    assert_eq!((took, found.again_in, gate.fetches()), (5, REST, 1));
}

/// The policy that holds serves while it is seen again.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_refresh() {
    let (gate, rig) = (Gated::default(), Rig::new());
    rig.publish("1", "enforce", 1_000);
    rig.find().await;
    let rig = rig.with_fetcher(gate.clone());
    tokio::time::advance(Duration::from_secs(500)).await;
    for _ in 0..2 {
        let (found, took) = rig.timed().await;
        assert_eq!((found.policy.is_some(), took), (true, 0));
        tokio::task::yield_now().await;
        assert_eq!(gate.fetches(), 1);
    }
    gate.open().await;
    assert_eq!(rig.find().await.policy.unwrap().fetched, rig.clock.now());
}

/// Past the bound a look-up waits for its turn as long as for a policy, and goes on.
#[tokio::test(start_paused = true)]
async fn fetches_are_bounded() {
    let (gate, rig) = (Gated::default(), Rig::new());
    let domains: Vec<_> = (0..MOST_FETCHES + 1).map(|n| format!("d{n}.example")).collect();
    let records = domains.iter().map(|domain| format!("_mta-sts.{domain} 600 TXT \"v=STSv1; id=1\"\n"));
    rig.zone.set_zone(&records.collect::<String>()).unwrap();
    let rig = rig.with_fetcher(gate.clone());
    let found = futures::future::join_all(domains.iter().map(|domain| rig.find_of(domain))).await;
    assert!(found.iter().all(|found| found.policy.is_none() && found.again_in == LIMIT));
    assert_eq!(gate.fetches(), MOST_FETCHES);
    gate.open().await;
    let last = futures::future::join(rig.find_of(&domains[MOST_FETCHES]), async {
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        gate.open().await;
    });
    assert!(last.await.0.policy.is_some());
}

/// Whoever has many names and a slow web server keeps nobody else's policies from being had.
#[tokio::test(start_paused = true)]
async fn a_slow_owner_takes_few_turns() {
    let (gate, rig) = (Gated::default(), Rig::new());
    let slow: Vec<_> = (0..MOST_FETCHES + 1).map(|n| format!("d{n}.s{}.slow.example", n % 20)).collect();
    let in_registry: Vec<_> = (0..20).map(|n| format!("d{n}.bad.co.example")).collect();
    let others = ["good.co.example", "good.example"];
    let all = slow.iter().chain(&in_registry).map(String::as_str).chain(others);
    let records = all.map(|domain| format!("_mta-sts.{domain} 600 TXT \"v=STSv1; id=1\"\n"));
    rig.zone.set_zone(&records.collect::<String>()).unwrap();
    let rig = rig.with_fetcher(gate.clone());
    futures::future::join_all(slow.iter().map(|domain| rig.find_of(domain))).await;
    assert_eq!(gate.fetches(), MOST_OF_WIDE_GROUP);
    futures::future::join_all(in_registry.iter().map(|domain| rig.find_of(domain))).await;
    assert_eq!(gate.fetches(), MOST_OF_WIDE_GROUP + MOST_OF_NARROW_GROUP);
    for domain in others {
        let opens = async {
            tokio::task::yield_now().await;
            gate.open().await;
        };
        assert!(tokio::join!(rig.find_of(domain), opens).0.policy.is_some(), "{domain}");
    }
}

/// Nor that what holds is seen again.
#[tokio::test(start_paused = true)]
async fn a_refresh_does_not_stand_behind_new_policies() {
    let (gate, rig) = (Gated::default(), Rig::new());
    rig.publish("1", "enforce", 1_000_000);
    assert!(rig.find().await.policy.is_some());
    let slow: Vec<_> = (0..100).map(|n| format!("d{n}.s{}.{DOMAIN}", n % 20)).collect();
    let records = slow.iter().map(|domain| format!("_mta-sts.{domain} 600 TXT \"v=STSv1; id=1\"\n"));
    let own = format!("_mta-sts.{DOMAIN} 600 TXT \"v=STSv1; id=1\"\n");
    rig.zone.set_zone(&records.chain([own]).collect::<String>()).unwrap();
    let rig = rig.with_fetcher(gate.clone());
    tokio::time::advance(Duration::from_secs(2 * 86_400)).await;
    futures::future::join_all(slow.iter().map(|domain| rig.find_of(domain))).await;
    assert_eq!(gate.fetches(), MOST_OF_WIDE_GROUP);
    assert!(rig.find().await.policy.is_some());
    tokio::task::yield_now().await;
    assert_eq!(gate.fetches(), MOST_OF_WIDE_GROUP + 1);
}

/// Whether it is the policy that the domain's record names now.
#[tokio::test(start_paused = true)]
async fn what_is_known_may_not_be_current() {
    let rig = Rig::new();
    assert!(rig.find().await.is_current, "no record, no policy");
    rig.publish("1", "testing", 1_000_000);
    assert!(rig.find().await.is_current);
    rig.zone.fail("_mta-sts.example.net", DnsErrorKind::ServFail);
    assert!(!rig.find().await.is_current, "DNS fails");
    rig.zone.recover("_mta-sts.example.net");
    assert!(rig.find().await.is_current);
    rig.publish("2", "enforce", 1_000_000);
    assert!(!rig.find().await.is_current, "the new one is not fetched yet");
    rig.zone.set_zone("").unwrap();
    assert!(rig.find().await.is_current, "the record is gone");
    rig.publish("1", "enforce", 1_000_000);
    rig.files.fail(DOMAIN, FetchErrorKind::NoAnswer);
    tokio::time::advance(2 * Duration::from_secs(86_400)).await;
    assert!(rig.find().await.is_current, "that it can not be seen again makes it no other");
}

#[tokio::test(start_paused = true)]
async fn fetches_end_when_they_are_told_to() {
    let (gate, rig) = (Gated::default(), Rig::new());
    rig.publish("1", "enforce", 1_000);
    let rig = rig.with_fetcher(gate.clone());
    rig.find().await;
    rig.policies.stop().await;
    assert!(rig.policies.lock().flights.is_empty());
    for turns in [&rig.policies.turns, &rig.policies.refresh_turns] {
        assert!(turns.are_all_free(MOST_FETCHES));
    }
}

/// Answers no question for TXT.
#[derive(Debug)]
struct Silent;

#[async_trait::async_trait]
impl Resolver for Silent {
    async fn mx(&self, _: &str, _: Freshness) -> Result<Answer<MxRecord>, DnsError> {
        panic!("not asked for")
    }

    async fn ipv4(&self, _: &str, _: Freshness) -> Result<Answer<Ipv4Addr>, DnsError> {
        panic!("not asked for")
    }

    async fn ipv6(&self, _: &str, _: Freshness) -> Result<Answer<Ipv6Addr>, DnsError> {
        panic!("not asked for")
    }

    async fn txt(&self, _: &str, _: Freshness) -> Result<Answer<TxtRecord>, DnsError> {
        futures::future::pending().await
    }
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("silence")
    }
}

#[tokio::test(start_paused = true)]
async fn mail_waits_five_seconds_for_a_record_and_keeps_the_policy_it_had() {
    let rig = Rig::new();
    rig.publish("1", "enforce", 1_000_000);
    let known = rig.find().await.policy;
    assert!(known.is_some());
    let ask = async |domain| {
        let before = rig.clock.now();
        let resolver: Arc<dyn Resolver> = Arc::new(Silent);
        let sought = Sought { domain, resolver: &resolver, prohibited: &[] };
        let found = rig.policies.find(&sought, Freshness::Fresh).await;
        (found, rig.clock.now().saturating_since(before).as_secs())
    };
    let expected = |policy| Found { policy, is_current: false, failure: None, again_in: REST };
    assert_eq!(ask(DOMAIN).await, (expected(known), 5));
    assert_eq!(ask("other.example").await, (expected(None), 5));
}
