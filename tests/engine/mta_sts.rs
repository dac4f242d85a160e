//! MTA-STS (RFC 8461) through the whole engine: what a domain's policy makes of its mail.

use std::time::Duration;

use bytes::Bytes;
use postrider::dns::{DnsErrorKind, StaticResolver};
use postrider::event::{Category, DeliveryEvent, Reason};
use postrider::mta_sts::{FetchError, FetchErrorKind, PolicyFetcher, PolicyRequest, StaticFetcher};
use postrider::storage::MemoryStorage;
use postrider::testing::{SmtpServer, TestCertificate};
use postrider::transport::smtp::SmtpTransport;
use postrider::{DeliveryEngine, Policy};

use crate::support::{MX, MX2, World, idle, message};

const HOSTS: &str = "
example.net. 300 MX 10 mx1.example.net.
example.net. 300 MX 20 mx2.example.net.
mx1.example.net. 300 A 192.0.2.1
mx2.example.net. 300 A 192.0.2.2
";
pub(crate) const TXT: &str = "_mta-sts.example.net";
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// A world with two hosts, their certificates, and policies.
pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) files: StaticFetcher,
    pub(crate) certificate: TestCertificate,
    pub(crate) fetch_takes: Duration,
}

/// A fetcher of files that takes a while.
#[derive(Debug)]
struct Slow {
    files: StaticFetcher,
    takes: Duration,
}

#[async_trait::async_trait]
impl PolicyFetcher for Slow {
    async fn fetch(&self, request: &PolicyRequest<'_>) -> Result<Bytes, FetchError> {
        pass(self.takes).await;
        self.files.fetch(request).await
    }
}

impl std::fmt::Display for Slow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("slow")
    }
}

impl Rig {
    pub(crate) fn new() -> Self {
        let certificate = TestCertificate::new(["mx1.example.net", "mx2.example.net"]).unwrap();
        let (world, files) = (World::new(), StaticFetcher::new());
        let rig = Self { world, files, certificate, fetch_takes: Duration::ZERO };
        rig.zone("");
        rig
    }

    pub(crate) fn zone(&self, more: &str) {
        self.world.zone.set_zone(&format!("{HOSTS}{more}")).unwrap();
    }

    pub(crate) fn publish(&self, id: &str, mode: &str, mx: &str, max_age: u64) {
        self.zone(&format!("{TXT} 60 TXT \"v=STSv1; id={id}\""));
        let file = format!("version: STSv1\nmode: {mode}\nmx: {mx}\nmax_age: {max_age}\n");
        self.files.set("example.net", file);
    }

    pub(crate) fn server(&self) -> SmtpServer {
        SmtpServer::new().starttls(&self.certificate)
    }

    pub(crate) async fn engine(&self, storage: MemoryStorage, settings: &str) -> DeliveryEngine {
        self.engine_by(storage, &format!("[domain.'*']\n{settings}")).await
    }

    /// With a whole policy.
    pub(crate) async fn engine_by(&self, storage: MemoryStorage, policy: &str) -> DeliveryEngine {
        let transport = SmtpTransport::over(self.world.network.clone());
        DeliveryEngine::builder("mta.example.org")
            .storage(storage)
            .resolver(self.world.zone.clone())
            .transport(transport.with_root_certificates(self.certificate.pem()).unwrap())
            .policy_fetcher(Slow { files: self.files.clone(), takes: self.fetch_takes })
            .policy(Policy::from_toml(policy).unwrap())
            .event_sink(self.world.seen.clone())
            .clock(self.world.clock.clone())
            .seed(1)
            .start()
            .await
            .unwrap()
    }

    /// One message by an engine of its own.
    async fn send(&self, settings: &str) -> Vec<String> {
        let engine = self.engine(MemoryStorage::new(), settings).await;
        engine.submit(message(&["b@example.net"])).await.unwrap();
        idle(&engine).await;
        self.world.seen.timeline()
    }

    pub(crate) fn reasons(&self) -> Vec<Reason> {
        let events = self.world.seen.events().into_iter();
        let reasons = events.filter_map(|event| match event {
            DeliveryEvent::QueueDeferred(event) => Some(event.diagnosis.reason),
            _ => None,
        });
        reasons.collect()
    }
}

pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn mail_goes_to_permitted_hosts_alone() {
    let rig = Rig::new();
    let (barred, permitted) = (rig.server(), rig.server());
    rig.world.server(MX, &barred).server(MX2, &permitted);
    rig.publish("1", "enforce", "mx2.example.net", 86_400);
    assert_eq!(rig.send("").await, ["0 delivered b@example.net"]);
    assert_eq!((barred.message_count(), permitted.message_count()), (0, 1));
    assert_eq!(rig.world.network.attempts(MX.parse().unwrap()), 0);
    assert!(permitted.messages()[0].tls.is_some());
}

#[tokio::test(start_paused = true)]
async fn what_holds_nobody() {
    for (mode, mx, settings) in [
        ("testing", "other.example.net", ""),
        ("none", "other.example.net", ""),
        ("enforce", "other.example.net", "use-mta-sts = false"),
        ("enforce", "other.example.net", "use-starttls = 'off'"),
        ("enforce", "other.example.net", "smtp-hosts = 'mx1.example.net'"),
        ("enforced", "other.example.net", ""),
    ] {
        let rig = Rig::new();
        let server = SmtpServer::new();
        rig.world.server(MX, &server);
        rig.publish("1", mode, mx, 86_400);
        assert_eq!(rig.send(settings).await, ["0 delivered b@example.net"], "{mode} {settings}");
        assert_eq!(server.messages()[0].tls, None);
        let asks = settings.is_empty();
        assert_eq!(
            (rig.world.zone.queries(TXT), rig.files.fetches("example.net")),
            (asks.into(), asks.into())
        );
    }
}

#[tokio::test(start_paused = true)]
async fn without_permitted_host_mail_waits_until_the_policy_is_put_right() {
    let rig = Rig::new();
    let server = rig.server();
    rig.world.server(MX, &server).server(MX2, &server);
    rig.publish("1", "enforce", "*.example.com", 86_400);
    let engine = rig.engine(MemoryStorage::new(), "").await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    pass(15 * MINUTE).await;
    // Another file with the same id is no news.
    rig.files.set("example.net", "version: STSv1\nmode: none\nmax_age: 1");
    pass(10 * MINUTE).await;
    rig.publish("2", "enforce", "*.example.net", 86_400);
    idle(&engine).await;
    let deferred = |minute: u64| format!("{} queue-deferred example.net 4.7.0", minute * 60);
    let expected = [deferred(0), deferred(10), deferred(20), "1800 delivered b@example.net".into()];
    assert_eq!(rig.world.seen.timeline(), expected);
    assert_eq!(rig.reasons(), [Reason::MtaSts; 3]);
    assert!(server.messages()[0].tls.is_some());
    assert_eq!(rig.files.fetches("example.net"), 2);
}

#[tokio::test(start_paused = true)]
async fn mail_is_never_sent_without_the_tls_that_is_demanded() {
    let wrong = TestCertificate::new(["mx.example.net"]).unwrap();
    let expired = TestCertificate::expired(["mx1.example.net"]).unwrap();
    for (server, status) in [
        (SmtpServer::new(), "4.7.4"),
        (SmtpServer::new().starttls(&wrong), "4.7.5"),
        (SmtpServer::new().starttls(&expired), "4.7.5"),
    ] {
        let rig = Rig::new();
        rig.world.server(MX, &server).server(MX2, &server);
        rig.publish("1", "enforce", "*.example.net", 86_400);
        let timeline = rig.send("bounce-after = '15m'").await;
        let deferred = |minute: u64| format!("{} queue-deferred example.net {status}", minute * 60);
        assert_eq!(timeline, [deferred(0), deferred(10), "900 bounced b@example.net 4.4.7".into()]);
        assert_eq!(rig.reasons(), [Reason::MtaSts; 2]);
        assert_eq!(server.message_count(), 0);
    }
}

/// RFC 8461 §3.3: until its time is over, whatever becomes of DNS and of the web server.
#[tokio::test(start_paused = true)]
async fn a_policy_that_was_seen_stays_in_force() {
    let rig = Rig::new();
    let server = SmtpServer::new();
    let secure = rig.server();
    rig.world.server(MX, &secure);
    rig.publish("1", "enforce", "mx1.example.net", 20_000);
    let engine = rig.engine(MemoryStorage::new(), "retry-after = '1m'").await;
    engine.submit(message(&["a@example.net"])).await.unwrap();
    idle(&engine).await;
    // The session ends. From now on somebody is in between.
    pass(MINUTE).await;
    rig.world.server(MX, &server);
    rig.files.fail("example.net", FetchErrorKind::Certificate);
    engine.submit(message(&["b@example.net"])).await.unwrap();
    rig.world.zone.fail(TXT, DnsErrorKind::Timeout);
    pass(20 * MINUTE).await;
    rig.world.zone.recover(TXT);
    rig.zone("");
    pass(20 * MINUTE).await;
    rig.zone(&format!("{TXT} 60 TXT \"v=STSv1; id=2\""));
    pass(20 * MINUTE).await;
    assert_eq!((server.message_count(), secure.message_count()), (0, 1));
    let fetches = rig.files.fetches("example.net");
    assert!((2..=6).contains(&fetches), "a failure is remembered for five minutes: {fetches}");
    idle(&engine).await;
    assert_eq!(server.message_count(), 1);
    let timeline = rig.world.seen.timeline();
    let delivered = timeline.last().unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
    assert!((20_000..20_120).contains(&delivered), "{timeline:?}");
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_can_not_be_had_holds_nothing_up() {
    for kind in [FetchErrorKind::NoAnswer, FetchErrorKind::Certificate, FetchErrorKind::NoPolicy] {
        let rig = Rig::new();
        rig.world.server(MX, &SmtpServer::new());
        rig.zone(&format!("{TXT} TXT \"v=STSv1; id=1\""));
        rig.files.fail("example.net", kind);
        let engine = rig.engine(MemoryStorage::new(), "").await;
        for n in 0..20 {
            engine.submit(message(&[&format!("u{n}@example.net")])).await.unwrap();
            pass(MINUTE).await;
        }
        idle(&engine).await;
        assert_eq!(rig.world.seen.timeline().len(), 20);
        assert_eq!(rig.files.fetches("example.net"), 4, "{kind:?}");
    }
}

/// RFC 8461 §5.1.
#[tokio::test(start_paused = true)]
async fn a_fresh_policy_saves_mail_that_is_about_to_expire() {
    let rig = Rig::new();
    let server = SmtpServer::new();
    rig.world.server(MX, &server);
    rig.publish("1", "enforce", "mx1.example.net", 86_400);
    let engine = rig.engine(MemoryStorage::new(), "bounce-after = '2h'\nretry-after = '90m'").await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    pass(91 * MINUTE).await;
    rig.publish("2", "testing", "mx1.example.net", 86_400);
    idle(&engine).await;
    assert_eq!(
        rig.world.seen.timeline(),
        [
            "0 queue-deferred example.net 4.7.4",
            "5400 queue-deferred example.net 4.7.4",
            "6600 delivered b@example.net"
        ]
    );
}

/// A policy that took longer to fetch than a look-up waits holds for the sessions that were opened without it.
#[tokio::test(start_paused = true)]
async fn a_policy_that_came_late_holds_for_open_sessions() {
    let settings = "[domain.'*']\nconnection-idle-timeout = '5m'\n";
    for rollup in ["", "[[rollup]]\nqueue = 'p.rollup'\nmx = '*.example.net'"] {
        let rig = Rig { fetch_takes: Duration::from_secs(20), ..Rig::new() };
        let plain = SmtpServer::new();
        rig.world.server(MX, &plain);
        rig.publish("1", "enforce", "*.example.net", 86_400);
        rig.zone(&format!(
            "{TXT} 60 TXT \"v=STSv1; id=1\"\n\
             other.example. 300 MX 10 mx1.example.net.\nother.example. 300 MX 20 mx2.example.net."
        ));
        let engine = rig.engine_by(MemoryStorage::new(), &format!("{settings}{rollup}")).await;
        engine.submit(message(&["a@example.net"])).await.unwrap();
        pass(Duration::from_secs(25)).await;
        engine.submit(message(&["b@example.net"])).await.unwrap();
        pass(Duration::from_secs(1)).await;
        let expected = ["10 delivered a@example.net", "25 queue-deferred example.net 4.7.4"];
        assert_eq!(rig.world.seen.timeline(), expected);
        engine.submit(message(&["c@other.example"])).await.unwrap();
        pass(Duration::from_secs(1)).await;
        assert_eq!(rig.world.seen.timeline().last().unwrap(), "26 delivered c@other.example");
        // One for the first, one that brought no TLS, and in a rollup none for the third.
        let attempts = rig.world.network.attempts(MX.parse().unwrap());
        assert_eq!(attempts, if rollup.is_empty() { 3 } else { 2 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_outlives_a_restart() {
    let rig = Rig::new();
    let secure = rig.server();
    rig.world.server(MX, &secure);
    rig.publish("1", "enforce", "mx1.example.net", 86_400);
    let storage = MemoryStorage::new();
    let engine = rig.engine(storage.clone(), "").await;
    engine.submit(message(&["a@example.net"])).await.unwrap();
    idle(&engine).await;
    engine.shutdown(Duration::from_secs(30)).await;
    rig.zone("");
    rig.files.fail("example.net", FetchErrorKind::NoAnswer);
    let plain = SmtpServer::new();
    rig.world.server(MX, &plain);
    let engine = rig.engine(storage, "").await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    pass(23 * 60 * MINUTE).await;
    assert_eq!((secure.message_count(), plain.message_count()), (1, 0));
    idle(&engine).await;
    assert_eq!(plain.message_count(), 1, "its time is over");
}

/// A resolver that does not ask for TXT finds no policy.
#[tokio::test(start_paused = true)]
async fn a_resolver_without_text_records_finds_no_policy() {
    #[derive(Debug)]
    struct Without(StaticResolver);

    impl std::fmt::Display for Without {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("without")
        }
    }

    #[async_trait::async_trait]
    impl postrider::dns::Resolver for Without {
        async fn mx(
            &self,
            domain: &str,
            freshness: postrider::dns::Freshness,
        ) -> Result<postrider::dns::Answer<postrider::dns::MxRecord>, postrider::dns::DnsError> {
            self.0.mx(domain, freshness).await
        }

        async fn ipv4(
            &self,
            host: &str,
            freshness: postrider::dns::Freshness,
        ) -> Result<postrider::dns::Answer<std::net::Ipv4Addr>, postrider::dns::DnsError> {
            self.0.ipv4(host, freshness).await
        }

        async fn ipv6(
            &self,
            host: &str,
            freshness: postrider::dns::Freshness,
        ) -> Result<postrider::dns::Answer<std::net::Ipv6Addr>, postrider::dns::DnsError> {
            self.0.ipv6(host, freshness).await
        }
    }

    let rig = Rig::new();
    rig.world.server(MX, &SmtpServer::new());
    rig.publish("1", "enforce", "mx9.example.net", 86_400);
    let engine = DeliveryEngine::builder("mta.example.org")
        .storage(MemoryStorage::new())
        .resolver(Without(rig.world.zone.clone()))
        .transport(SmtpTransport::over(rig.world.network.clone()))
        .policy_fetcher(rig.files.clone())
        .event_sink(rig.world.seen.clone())
        .clock(rig.world.clock.clone())
        .start()
        .await
        .unwrap();
    engine.submit(message(&["b@example.net"])).await.unwrap();
    idle(&engine).await;
    assert_eq!(rig.world.seen.timeline(), ["0 delivered b@example.net"]);
}

/// One certificate for two hosts at one address: one session. For one of them alone: one each.
#[tokio::test(start_paused = true)]
async fn a_session_serves_the_hosts_that_its_certificate_is_valid_for() {
    for (names, sessions) in [(&["mx1.example.net", "mx1.other.example"][..], 1), (&["*.example.net"], 2)] {
        let rig = Rig { certificate: TestCertificate::new(names.iter().copied()).unwrap(), ..Rig::new() };
        rig.world.server(MX, &rig.server());
        let zone = format!(
            "other.example. MX 10 mx1.other.example.\nmx1.other.example. A 192.0.2.1\n\
             {TXT} TXT \"v=STSv1; id=1\"\n_mta-sts.other.example. TXT \"v=STSv1; id=1\""
        );
        rig.zone(&zone);
        for domain in ["example.net", "other.example"] {
            let file = format!("version: STSv1\nmode: enforce\nmx: mx1.{domain}\nmax_age: 86400");
            rig.files.set(domain, file);
        }
        let engine = rig.engine(MemoryStorage::new(), "bounce-after = '2m'").await;
        engine.submit(message(&["b@example.net"])).await.unwrap();
        pass(Duration::from_secs(1)).await;
        engine.submit(message(&["b@other.example"])).await.unwrap();
        pass(Duration::from_secs(1)).await;
        assert_eq!(rig.world.network.attempts(MX.parse().unwrap()), sessions, "{names:?}");
        let timeline = rig.world.seen.timeline();
        let second = if sessions == 1 {
            "1 delivered b@other.example"
        } else {
            "1 queue-deferred other.example 4.7.5"
        };
        assert_eq!(timeline, ["0 delivered b@example.net", second]);
    }
}

/// RFC 8689: what proves that a host is the receiver's is the policy, or who configured it.
#[tokio::test(start_paused = true)]
async fn a_message_that_requires_tls_goes_to_hosts_of_a_policy_or_fixed_ones() {
    let verify = "use-starttls = 'verify'";
    let fixed = "use-starttls = 'verify'\nsmtp-hosts = 'mx1.example.net'";
    let unverified = "0 bounced b@example.net 5.7.10";
    for (mode, settings, offered, expected) in [
        (Some("enforce"), "", true, "0 delivered b@example.net"),
        (Some("enforce"), "", false, "0 bounced b@example.net 5.7.30"),
        (Some("testing"), "", true, unverified),
        (None, "", true, unverified),
        (None, verify, true, unverified),
        (None, fixed, true, "0 delivered b@example.net"),
        (None, "smtp-hosts = 'mx1.example.net'", true, unverified),
    ] {
        let rig = Rig::new();
        let server = rig.server().ehlo(["REQUIRETLS"].into_iter().filter(|_| offered));
        rig.world.server(MX, &server).server(MX2, &server);
        if let Some(mode) = mode {
            rig.publish("1", mode, "*.example.net", 86_400);
        }
        let engine = rig.engine(MemoryStorage::new(), settings).await;
        engine.submit(message(&["b@example.net"]).with_require_tls()).await.unwrap();
        idle(&engine).await;
        assert_eq!(rig.world.seen.timeline(), [expected], "{mode:?} {settings} {offered}");
        let mail = server.commands().into_iter().find(|line| line.starts_with("MAIL"));
        let told = mail.is_some_and(|line| line.ends_with(" REQUIRETLS"));
        assert_eq!(told, expected.contains("delivered"));
        for event in rig.world.seen.events() {
            if let DeliveryEvent::Bounced(event) = event {
                assert_eq!(event.diagnosis.category(), Category::TlsFailed);
            }
        }
    }
}

/// A message that requires TLS waits while it is not known whether a policy says whose the hosts are.
#[tokio::test(start_paused = true)]
async fn a_message_that_requires_tls_waits_for_a_policy_that_is_not_known() {
    for by_dns in [true, false] {
        let rig = Rig::new();
        let server = rig.server().ehlo(["REQUIRETLS"]);
        rig.world.server(MX, &server).server(MX2, &server);
        rig.publish("1", "enforce", "mx1.example.net", 86_400);
        if by_dns {
            rig.world.zone.fail(TXT, DnsErrorKind::Timeout);
        } else {
            rig.files.fail("example.net", FetchErrorKind::NoAnswer);
        }
        let engine = rig.engine(MemoryStorage::new(), "").await;
        engine.submit(message(&["b@example.net"]).with_require_tls()).await.unwrap();
        pass(5 * MINUTE).await;
        assert_eq!(rig.world.seen.timeline(), ["0 deferred b@example.net 4.7.10"]);
        rig.world.zone.recover(TXT);
        rig.publish("1", "enforce", "mx1.example.net", 86_400);
        idle(&engine).await;
        assert_eq!(rig.world.seen.timeline().last().unwrap(), "600 delivered b@example.net");
    }
}
