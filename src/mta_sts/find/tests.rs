//! Which policy holds, by what TXT record and fetcher say.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::dns::{MxRecord, Resolver, StaticResolver, TxtRecord};
use crate::mta_sts::{Mode, StaticFetcher};

const DOMAIN: &str = "example.net";
const HOUR: Duration = Duration::from_secs(3_600);

struct Rig {
    policies: Policies,
    zone: StaticResolver,
    files: StaticFetcher,
    clock: Clock,
}

impl Rig {
    fn new() -> Self {
        let (files, clock) = (StaticFetcher::new(), Clock::starting_at(Timestamp::from_unix_seconds(1_000)));
        let policies = Policies::new(Arc::new(files.clone()), clock.clone());
        Self { policies, zone: StaticResolver::new(), files, clock }
    }

    fn publish(&self, id: &str, mode: &str, max_age: u64) {
        self.zone.set_zone(&format!("_mta-sts.{DOMAIN} 600 TXT \"v=STSv1; id={id}\"")).unwrap();
        let file = format!("version: STSv1\nmode: {mode}\nmx: mx.example.net\nmax_age: {max_age}");
        self.files.set(DOMAIN, file);
    }

    async fn find(&self) -> Found {
        let request = PolicyRequest { domain: DOMAIN, resolver: &self.zone, prohibited: &[] };
        self.policies.find(&request, Freshness::Cached).await
    }

    /// Mode, the kind of failure, seconds until it is looked for again, and fetches so far.
    async fn seen(&self) -> (Option<Mode>, Option<FetchErrorKind>, u64, u64) {
        let found = self.find().await;
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
    assert_eq!(rig.seen().await, (Some(Mode::Testing), None, 600, 2), "another id");
    rig.publish("3", "none", 100);
    assert_eq!(rig.seen().await, (Some(Mode::None), None, 100, 3));
    assert_eq!(rig.policies.take_changes().len(), 3);
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
    assert_eq!(rig.seen().await, (Some(Mode::Enforce), None, 10_000, 1), "no record");
    rig.zone.set_zone("_mta-sts.example.net TXT \"v=STSv1; id=2\"").unwrap();
    let failed = Some(FetchErrorKind::NoAnswer);
    assert_eq!(rig.seen().await, (Some(Mode::Enforce), failed, 300, 2), "the new one can not be had");
    assert_eq!(rig.seen().await, (Some(Mode::Enforce), failed, 300, 2), "remembered");
    tokio::time::advance(Duration::from_secs(300)).await;
    assert_eq!(rig.seen().await, (Some(Mode::Enforce), failed, 300, 3));
    tokio::time::advance(3 * HOUR).await;
    assert_eq!(rig.seen().await, (None, failed, 300, 4), "its time is over");
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
        assert_eq!(rig.seen().await, (Some(Mode::Enforce), None, 600, 2), "a new id is tried at once");
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
    let mut rows: Vec<StateRow> = rig
        .policies
        .take_changes()
        .into_iter()
        .filter_map(|change| if let Change::PutState(row) = change { Some(row) } else { None })
        .collect();
    let other = StateRow { key: b"other".to_vec(), value: Vec::new() };
    rows.push(other.clone());
    let again = Rig { policies: Policies::new(Arc::new(StaticFetcher::new()), rig.clock.clone()), ..rig };
    again.policies.restore(&mut rows, again.clock.now());
    assert_eq!(rows, [other]);
    again.zone.set_zone("").unwrap();
    assert_eq!(again.seen().await, (Some(Mode::Enforce), None, 10_000, 1));
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

#[tokio::test(start_paused = true)]
async fn many_who_want_a_policy_fetch_it_once() {
    let (gate, rig) = (Gated::default(), Rig::new());
    rig.publish("1", "enforce", 1_000);
    let rig = Rig { policies: Policies::new(Arc::new(gate.clone()), rig.clock.clone()), ..rig };
    // The first goes away: the next carries on.
    assert!(rig.find().now_or_never().is_none());
    assert!(rig.policies.lock().flights.is_empty());
    let all = futures::future::join_all((0..5).map(|_| rig.find()));
    let opens = async {
        tokio::task::yield_now().await;
        gate.0.open.notify_waiters();
    };
    let (found, ()) = tokio::join!(all, opens);
    assert!(found.iter().all(|found| found.policy.is_some()));
    assert_eq!(gate.0.inside.load(Ordering::SeqCst), 2);
    assert!(rig.policies.lock().flights.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_fetch_has_a_minute() {
    let (gate, rig) = (Gated::default(), Rig::new());
    rig.publish("1", "enforce", 1_000);
    let rig = Rig { policies: Policies::new(Arc::new(gate), rig.clock.clone()), ..rig };
    let begun = rig.clock.now();
    let failure = rig.find().await.failure.unwrap();
    assert_eq!(&*failure.message, "mta-sts.example.net: no answer within 60 s");
    assert_eq!(rig.clock.now().saturating_since(begun), Duration::from_secs(60));
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
        let request = PolicyRequest { domain, resolver: &Silent, prohibited: &[] };
        let found = rig.policies.find(&request, Freshness::Fresh).await;
        (found, rig.clock.now().saturating_since(before).as_secs())
    };
    let expected = |policy| Found { policy, failure: None, again_in: FAILURE_HOLDS };
    assert_eq!(ask(DOMAIN).await, (expected(known), 5));
    assert_eq!(ask("other.example").await, (expected(None), 5));
}
