//! DANE (RFC 7672) through the whole engine: what hosts' TLSA records make of mail.

use std::time::Duration;

use postrider::dns::{DnsErrorKind, Dnssec, TlsaRecord};
use postrider::event::{Category, DeliveryEvent, Failure, Reason};
use postrider::mta_sts::StaticFetcher;
use postrider::storage::MemoryStorage;
use postrider::testing::{Command, SmtpServer, TestCertificate};
use postrider::tls_report::DomainTls;
use postrider::transport::smtp::SmtpTransport;
use postrider::{DeliveryEngine, Policy};

use crate::support::{MX, MX2, World, idle, message};

const HOSTS: &str = "
example.net. 300 MX 10 mx1.example.net.
example.net. 300 MX 20 mx2.example.net.
mx1.example.net. 300 A 192.0.2.1
mx2.example.net. 300 A 192.0.2.2
";
const TLSA: &str = "_25._tcp.mx1.example.net";
const TLSA2: &str = "_25._tcp.mx2.example.net";
const MINUTE: Duration = Duration::from_secs(60);
const OF_HOST: &[&str] = &["mx1.example.net"];

/// A world with two hosts in a signed zone.
struct Rig {
    world: World,
    files: StaticFetcher,
}

impl Rig {
    /// With these TLSA records of the first host.
    fn new(records: &[TlsaRecord]) -> Self {
        let rig = Self { world: World::new(), files: StaticFetcher::new() };
        rig.world.zone.set_dnssec("example.net", Dnssec::Secure);
        rig.publish(records, "");
        rig
    }

    fn publish(&self, records: &[TlsaRecord], more: &str) {
        let records: String = records.iter().map(|record| format!("{TLSA}. 300 TLSA {record}\n")).collect();
        self.world.zone.set_zone(&format!("{HOSTS}{records}{more}")).unwrap();
    }

    /// All domains have DANE, if it is not said otherwise.
    async fn engine(&self, policy: &str) -> DeliveryEngine {
        const ALL: &str = "[domain.'*']\n";
        let policy = match policy.split_once(ALL) {
            Some(_) if policy.contains("use-dane") => policy.to_owned(),
            Some((before, after)) => format!("{before}{ALL}use-dane = true\n{after}"),
            None => format!("{policy}\n{ALL}use-dane = true\n"),
        };
        DeliveryEngine::builder("mta.example.org")
            .storage(MemoryStorage::new())
            .resolver(self.world.zone.clone())
            .transport(SmtpTransport::over(self.world.network.clone()))
            .policy_fetcher(self.files.clone())
            .policy(Policy::from_toml(&policy).unwrap())
            .event_sink(self.world.seen.clone())
            .clock(self.world.clock.clone())
            .seed(1)
            .start()
            .await
            .unwrap()
    }

    /// One message by an engine of its own.
    async fn send(&self, settings: &str) -> Vec<String> {
        let engine = self.engine(&format!("[domain.'*']\n{settings}")).await;
        engine.submit(message(&["b@example.net"])).await.unwrap();
        idle(&engine).await;
        self.world.seen.timeline()
    }

    fn deferrals(&self) -> Vec<(Category, Reason, String)> {
        let events = self.world.seen.events().into_iter();
        let deferrals = events.filter_map(|event| match event {
            DeliveryEvent::QueueDeferred(event) => {
                let diagnosis = event.diagnosis;
                Some((diagnosis.category(), diagnosis.reason, said(diagnosis.failure)))
            }
            _ => None,
        });
        deferrals.collect()
    }

    fn attempts(&self) -> (u64, u64) {
        let attempts = |address: &str| self.world.network.attempts(address.parse().unwrap());
        (attempts(MX), attempts(MX2))
    }
}

fn said(failure: Failure) -> String {
    match failure {
        Failure::Engine(text) => text,
        Failure::Reply(reply) => reply.to_string(),
    }
}

fn certificate(names: &[&str]) -> TestCertificate {
    TestCertificate::new(names.iter().copied()).unwrap()
}

fn signed(names: &[&str]) -> TestCertificate {
    TestCertificate::signed(names.iter().copied()).unwrap()
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

const DELIVERED: &[&str] = &["0 delivered b@example.net"];

/// By nothing but its TLSA records: no root is trusted here.
#[tokio::test(start_paused = true)]
async fn a_certificate_that_matches_is_good() {
    let expired = TestCertificate::expired(["www.example.org"]).unwrap();
    for (certificate, usage, settings) in [
        (certificate(OF_HOST), 3, ""),
        (certificate(OF_HOST), 3, "use-starttls = 'verify'"),
        (expired, 3, ""),
        (signed(OF_HOST), 2, ""),
        (signed(OF_HOST), 2, "use-starttls = 'required'"),
        (signed(&["example.net"]), 2, ""),
    ] {
        for (selector, matching) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
            let rig = Rig::new(&[certificate.tlsa(usage, selector, matching)]);
            let server = SmtpServer::new().starttls(&certificate);
            rig.world.server(MX, &server);
            assert_eq!(rig.send(settings).await, DELIVERED, "{usage} {selector} {matching}");
            assert!(server.messages()[0].tls.is_some());
        }
    }
}

/// Not even to a host that would take it in plain, or by opportunistic TLS.
#[tokio::test(start_paused = true)]
async fn what_is_demanded_and_not_had_defers() {
    let good = certificate(OF_HOST);
    let record = || vec![good.tlsa(3, 1, 1)];
    let other_name = signed(&["mx2.example.net"]);
    for (records, server) in [
        (record(), SmtpServer::new().starttls(&certificate(OF_HOST))),
        (record(), SmtpServer::new()),
        (vec![other_name.tlsa(2, 0, 1)], SmtpServer::new().starttls(&other_name)),
        // None of them is usable: any certificate, but TLS.
        (vec![good.tlsa(1, 1, 1)], SmtpServer::new()),
        (record(), SmtpServer::new().starttls(&good).reply(Command::StartTls, "454 4.7.0 no TLS now")),
        (record(), SmtpServer::new().starttls(&good).reply(Command::StartTls, "554 5.7.0 no TLS")),
        (record(), SmtpServer::new().starttls(&good).reply(Command::StartTls, "220 go\r\n220 on")),
    ] {
        let rig = Rig::new(&records);
        rig.world.server(MX, &server);
        rig.world.network.refuse(MX2.parse().unwrap());
        let timeline = rig.send("bounce-after = '15m'\nbounce-upon-5xx-greeting = true").await;
        assert_eq!(server.message_count(), 0, "{records:?}");
        assert_eq!(timeline.last().unwrap(), "900 bounced b@example.net 4.4.7");
        assert_eq!(timeline.len(), 3, "{timeline:?}");
        assert_eq!(rig.attempts(), (2, 2), "once a step, and never again in plain");
    }
}

/// With one host alone, so that its record is the last.
#[tokio::test(start_paused = true)]
async fn what_failed_is_recorded() {
    let good = certificate(OF_HOST);
    let zone = |rig: &Rig, records: &[TlsaRecord]| {
        let records: String = records.iter().map(|record| format!("{TLSA}. 300 TLSA {record}\n")).collect();
        let host = "example.net. MX 10 mx1.example.net.\nmx1.example.net. A 192.0.2.1\n";
        rig.world.zone.set_zone(&format!("{host}{records}")).unwrap();
    };
    let other = signed(&["mx2.example.net"]);
    for (records, server, status, said) in [
        (
            vec![good.tlsa(3, 1, 1)],
            SmtpServer::new().starttls(&certificate(OF_HOST)),
            "4.7.5",
            "DANE: TLS failed: the certificate matches none of the host's TLSA records",
        ),
        (
            vec![good.tlsa(3, 1, 1)],
            SmtpServer::new(),
            "4.7.4",
            "DANE: TLS is required and the server does not offer STARTTLS",
        ),
        (vec![good.tlsa(0, 1, 1)], SmtpServer::new(), "4.7.4", "DANE: TLS is required"),
        (vec![other.tlsa(2, 0, 1)], SmtpServer::new().starttls(&other), "4.7.5", "DANE: TLS failed: "),
    ] {
        let rig = Rig::new(&[]);
        zone(&rig, &records);
        rig.world.server(MX, &server);
        let timeline = rig.send("bounce-after = '5m'").await;
        let deferred = format!("0 queue-deferred example.net {status}");
        assert_eq!(timeline, [deferred, "300 bounced b@example.net 4.4.7".to_owned()]);
        let deferrals = rig.deferrals();
        assert_eq!((deferrals[0].0, deferrals[0].1), (Category::TlsFailed, Reason::Dane));
        assert!(deferrals[0].2.starts_with(said), "{deferrals:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_host_is_tried() {
    let good = certificate(OF_HOST);
    let rig = Rig::new(&[good.tlsa(3, 1, 1)]);
    let (wrong, next) = (SmtpServer::new().starttls(&certificate(OF_HOST)), SmtpServer::new());
    rig.world.server(MX, &wrong).server(MX2, &next);
    assert_eq!(rig.send("").await, DELIVERED);
    // The second has no records: what it demands is its own business.
    assert_eq!((wrong.message_count(), next.messages()[0].tls.clone()), (0, None));
    assert_eq!(rig.attempts(), (1, 1));
}

/// RFC 7672 §2.1.2: bogus, or not answered for, is never "no records".
#[tokio::test(start_paused = true)]
async fn a_host_whose_records_can_not_be_had_gets_no_mail() {
    for kind in [None, Some(DnsErrorKind::ServFail), Some(DnsErrorKind::Timeout)] {
        let spoil = |rig: &Rig, name: &str| match kind {
            Some(kind) => rig.world.zone.fail(name, kind),
            None => rig.world.zone.set_dnssec(name, Dnssec::Bogus),
        };
        let rig = Rig::new(&[]);
        let (first, second) = (SmtpServer::new(), SmtpServer::new());
        rig.world.server(MX, &first).server(MX2, &second);
        spoil(&rig, TLSA);
        assert_eq!(rig.send("").await, DELIVERED);
        assert_eq!((first.message_count(), second.message_count()), (0, 1));

        let rig = Rig::new(&[]);
        rig.world.server(MX, &first).server(MX2, &second);
        spoil(&rig, TLSA);
        spoil(&rig, TLSA2);
        let timeline = rig.send("bounce-after = '15m'").await;
        let deferred = |minute: u64| format!("{} queue-deferred example.net 4.7.0", minute * 60);
        assert_eq!(timeline, [deferred(0), deferred(10), "900 bounced b@example.net 4.4.7".into()]);
        let deferrals = rig.deferrals();
        assert_eq!((deferrals[0].0, deferrals[0].1), (Category::TlsFailed, Reason::Dane));
        assert_eq!((first.message_count(), second.message_count()), (0, 1));
    }
}

/// Where DANE does not apply, mail goes as if there were no records.
#[tokio::test(start_paused = true)]
async fn what_holds_nobody() {
    let record = certificate(OF_HOST).tlsa(3, 1, 1);
    let nothing = |_: &Rig| {};
    type Change = fn(&Rig);
    let rows: [(&str, Change, u64); 6] = [
        ("use-dane = false", nothing, 0),
        ("use-starttls = 'off'", nothing, 0),
        // Insecure MX: RFC 7672 §2.2.1.
        ("", |rig| rig.world.zone.set_dnssec("example.net", Dnssec::Insecure), 0),
        (
            "",
            |rig| {
                rig.world.zone.set_dnssec("example.net", Dnssec::Insecure);
                rig.world.zone.set_dnssec("mx1.example.net", Dnssec::Secure);
            },
            0,
        ),
        ("", |rig| rig.world.zone.set_dnssec("mx1.example.net", Dnssec::Insecure), 0),
        // Absent.
        ("", |rig| rig.publish(&[], ""), 1),
    ];
    for (settings, change, queries) in rows {
        let rig = Rig::new(std::slice::from_ref(&record));
        change(&rig);
        let server = SmtpServer::new();
        rig.world.server(MX, &server);
        assert_eq!(rig.send(settings).await, DELIVERED, "{settings}");
        assert_eq!(server.messages()[0].tls, None);
        assert_eq!(rig.world.zone.queries(TLSA), queries, "{settings}");
    }
}

/// RFC 7672 §2.2: TLS, with any certificate; and where the settings want it verified, still that.
#[tokio::test(start_paused = true)]
async fn records_that_are_not_usable_demand_tls_alone() {
    let own = certificate(OF_HOST);
    let malformed = TlsaRecord::new(3, 1, 1, [1; 5]);
    for (settings, ok) in [("", true), ("use-starttls = 'verify'", false)] {
        let rig = Rig::new(&[own.tlsa(1, 1, 1), own.tlsa(0, 0, 1), malformed.clone()]);
        let server = SmtpServer::new().starttls(&certificate(&["www.example.org"]));
        rig.world.server(MX, &server);
        rig.world.network.refuse(MX2.parse().unwrap());
        let timeline = rig.send(&format!("{settings}\nbounce-after = '5m'")).await;
        assert_eq!(timeline == DELIVERED, ok, "{timeline:?}");
        assert!(server.messages().iter().all(|message| message.tls.is_some()));
    }
    // Beside one that is usable they do not count.
    let rig = Rig::new(&[own.tlsa(1, 1, 1), certificate(OF_HOST).tlsa(3, 1, 1)]);
    let server = SmtpServer::new().starttls(&own);
    rig.world.server(MX, &server);
    rig.send("bounce-after = '5m'").await;
    assert_eq!(server.message_count(), 0);
}

/// RFC 8461 §2: no policy makes up for records that are not kept; and hosts that it bars are barred.
#[tokio::test(start_paused = true)]
async fn records_go_before_an_mta_sts_policy() {
    let by_record = certificate(OF_HOST);
    // No root: it would never be valid for a policy alone.
    for (mx, served, hosts) in [
        ("mx1.example.net", &by_record, (1, 0)),
        ("*.example.net", &by_record, (1, 0)),
        ("mx1.example.net", &certificate(OF_HOST), (0, 0)),
        ("mx9.example.net", &by_record, (0, 0)),
    ] {
        let rig = Rig::new(&[]);
        rig.publish(&[by_record.tlsa(3, 1, 1)], "_mta-sts.example.net. TXT \"v=STSv1; id=1\"");
        let file = format!("version: STSv1\nmode: enforce\nmx: {mx}\nmax_age: 86400\n");
        rig.files.set("example.net", file);
        let (first, second) = (SmtpServer::new().starttls(served), SmtpServer::new());
        rig.world.server(MX, &first).server(MX2, &second);
        rig.send("bounce-after = '5m'").await;
        assert_eq!((first.message_count(), second.message_count()), hosts, "{mx}");
        let expected = if mx.starts_with("mx9") { Reason::MtaSts } else { Reason::Dane };
        if hosts.0 == 0 {
            assert_eq!(rig.deferrals()[0].1, expected);
        }
    }
}

/// Two domains with hosts at one address: what one session proved is enough for the other, or it has one of its own.
#[tokio::test(start_paused = true)]
async fn a_session_serves_whom_it_has_proved_enough_for() {
    let own = certificate(OF_HOST);
    let root = signed(&["mx1.example.net", "mx.other.example"]);
    let narrow = signed(OF_HOST);
    let key = own.tlsa(3, 1, 1);
    let other_key = certificate(OF_HOST).tlsa(3, 1, 1);
    for (certificate, record, of_other, sessions, delivered) in [
        (&own, &key, Some(&key), 1, 2),
        (&own, &key, Some(&other_key), 2, 1),
        // The other domain demands nothing: TLS that is proved is more than it needs.
        (&own, &key, None, 1, 2),
        (&root, &root.tlsa(2, 1, 1), Some(&root.tlsa(2, 1, 1)), 1, 2),
        (&narrow, &narrow.tlsa(2, 1, 1), Some(&narrow.tlsa(2, 1, 1)), 2, 1),
    ] {
        let rig = Rig::new(&[]);
        rig.world.zone.set_dnssec("other.example", Dnssec::Secure);
        let of_other = of_other.map(|record| format!("_25._tcp.mx.other.example. TLSA {record}\n"));
        let other = "other.example. MX 10 mx.other.example.\nmx.other.example. A 192.0.2.1\n";
        rig.publish(std::slice::from_ref(record), &format!("{other}{}", of_other.unwrap_or_default()));
        let server = SmtpServer::new().starttls(certificate);
        rig.world.server(MX, &server);
        let engine = rig.engine("[domain.'*']\nbounce-after = '2m'").await;
        for domain in ["example.net", "other.example"] {
            engine.submit(message(&[&format!("b@{domain}")])).await.unwrap();
            pass(Duration::from_secs(1)).await;
        }
        assert_eq!((rig.attempts().0, server.message_count()), (sessions, delivered), "{record}");
    }
    // A session that proved nothing serves nobody who demands something.
    let rig = Rig::new(&[]);
    let other = "plain.example. MX 10 mx.plain.example.\nmx.plain.example. A 192.0.2.1\n";
    rig.publish(&[key], other);
    rig.world.server(MX, &SmtpServer::new().starttls(&own));
    let engine = rig.engine("").await;
    for domain in ["plain.example", "example.net"] {
        engine.submit(message(&[&format!("b@{domain}")])).await.unwrap();
        pass(Duration::from_secs(1)).await;
    }
    assert_eq!(rig.attempts().0, 2);
    assert_eq!(rig.world.seen.timeline(), ["0 delivered b@plain.example", "1 delivered b@example.net"]);
}

/// RFC 7671 §8.4: old and new record stand side by side until the old certificate is gone.
#[tokio::test(start_paused = true)]
async fn a_certificate_is_changed_under_two_records() {
    let (old, new) = (certificate(OF_HOST), certificate(OF_HOST));
    let rig = Rig::new(&[old.tlsa(3, 1, 1)]);
    let engine = rig.engine("[domain.'*']\nbounce-after = '10m'").await;
    let steps: [(&TestCertificate, Vec<TlsaRecord>, bool); 5] = [
        (&old, vec![old.tlsa(3, 1, 1)], true),
        (&old, vec![old.tlsa(3, 1, 1), new.tlsa(3, 1, 1)], true),
        (&new, vec![new.tlsa(3, 1, 1), old.tlsa(3, 1, 1)], true),
        (&new, vec![new.tlsa(3, 1, 1)], true),
        (&old, vec![new.tlsa(3, 1, 1)], false),
    ];
    for (certificate, records, good) in steps {
        let server = SmtpServer::new().starttls(certificate);
        rig.world.server(MX, &server);
        rig.world.network.refuse(MX2.parse().unwrap());
        rig.publish(&records, "");
        // What was known runs out.
        pass(6 * MINUTE).await;
        engine.submit(message(&["b@example.net"])).await.unwrap();
        pass(20 * MINUTE).await;
        assert_eq!(server.message_count() == 1, good, "{records:?}");
    }
}

/// A session that is open when records come or change takes no more mail than they allow.
#[tokio::test(start_paused = true)]
async fn open_sessions_end_when_records_come() {
    let own = certificate(OF_HOST);
    let rig = Rig::new(&[]);
    let server = SmtpServer::new().starttls(&own);
    rig.world.server(MX, &server);
    let engine = rig.engine("[domain.'*']\nconnection-idle-timeout = '10m'\nbounce-after = '2m'").await;
    engine.submit(message(&["a@example.net"])).await.unwrap();
    pass(MINUTE).await;
    rig.publish(&[certificate(OF_HOST).tlsa(3, 1, 1)], "");
    rig.world.network.refuse(MX2.parse().unwrap());
    pass(5 * MINUTE).await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    pass(MINUTE).await;
    assert_eq!((server.message_count(), rig.attempts().0), (1, 2));
}

/// Domains in one rollup with the same hosts, whose MX records are authentic or not.
#[tokio::test(start_paused = true)]
async fn a_rollup_holds_each_domain_to_its_own() {
    let rig = Rig::new(&[]);
    let zone = "signed.example. MX 10 mx1.example.net.\nplain.example. MX 10 mx1.example.net.\n";
    rig.world.zone.set_dnssec("signed.example", Dnssec::Secure);
    rig.publish(&[certificate(OF_HOST).tlsa(3, 1, 1)], zone);
    let server = SmtpServer::new();
    rig.world.server(MX, &server);
    let policy = "[[rollup]]\nqueue = 'p.rollup'\nmx = '*.example.net'\n[domain.'*']\nbounce-after = '20m'";
    let engine = rig.engine(policy).await;
    for n in 0..4 {
        for domain in ["plain.example", "signed.example"] {
            engine.submit(message(&[&format!("u{n}@{domain}")])).await.unwrap();
        }
        pass(Duration::from_secs(n)).await;
    }
    idle(&engine).await;
    let domains: Vec<String> = server
        .messages()
        .iter()
        .flat_map(|message| message.recipients.clone())
        .map(|recipient| recipient.to_string().split_once('@').unwrap().1.to_owned())
        .collect();
    assert_eq!(domains, ["plain.example"; 4]);
}

/// At their own port, without MX (RFC 7672 §2.2.2), with TLS by STARTTLS or from the first octet.
#[tokio::test(start_paused = true)]
async fn fixed_hosts_have_records_too() {
    let own = certificate(OF_HOST);
    for (settings, port, right) in [
        ("smtp-hosts = 'mx1.example.net:587'", 587, true),
        ("smtp-hosts = 'mx1.example.net:465'\nuse-implicit-tls = true", 465, true),
        ("smtp-hosts = 'mx1.example.net:587'", 587, false),
    ] {
        let rig = Rig::new(&[]);
        let record = if right { own.tlsa(3, 1, 1) } else { certificate(OF_HOST).tlsa(3, 1, 1) };
        rig.publish(&[], &format!("_{port}._tcp.mx1.example.net. TLSA {record}"));
        let server = SmtpServer::new();
        let server = if port == 465 { server.implicit_tls(&own) } else { server.starttls(&own) };
        rig.world.server(&format!("192.0.2.1:{port}"), &server);
        rig.send(&format!("{settings}\nbounce-after = '5m'")).await;
        assert_eq!(server.message_count() == 1, right, "{settings}");
    }
}

/// RFC 8689: DNSSEC says that the host is the receiver's, and the record which certificate is the host's.
#[tokio::test(start_paused = true)]
async fn a_message_that_requires_tls_goes_to_hosts_with_records() {
    let certificate = certificate(&["elsewhere.example"]);
    for (record, expected) in [
        (certificate.tlsa(3, 1, 1), "0 delivered b@example.net"),
        // None that is usable: any certificate would do.
        (certificate.tlsa(1, 1, 1), "0 bounced b@example.net 5.7.10"),
    ] {
        let rig = Rig::new(&[record]);
        let server = SmtpServer::new().starttls(&certificate).ehlo(["REQUIRETLS"]);
        rig.world.server(MX, &server).server(MX2, &server);
        let engine = rig.engine("").await;
        engine.submit(message(&["b@example.net"]).with_require_tls()).await.unwrap();
        idle(&engine).await;
        assert_eq!(rig.world.seen.timeline(), [expected]);
        let told = server.commands().iter().any(|line| line.ends_with(" REQUIRETLS"));
        assert_eq!(told, expected.contains("delivered"));
    }
}

/// The second host has what the first lacks.
#[tokio::test(start_paused = true)]
async fn a_message_that_requires_tls_finds_the_host_that_will_do() {
    let certificate = certificate(&["elsewhere.example"]);
    let rig = Rig::new(&[]);
    rig.publish(&[], &format!("{TLSA2}. TLSA {}", certificate.tlsa(3, 1, 1)));
    let server = || SmtpServer::new().starttls(&certificate).ehlo(["REQUIRETLS"]);
    let (first, second) = (server(), server());
    rig.world.server(MX, &first).server(MX2, &second);
    let engine = rig.engine("").await;
    for _ in 0..3 {
        engine.submit(message(&["b@example.net"]).with_require_tls()).await.unwrap();
        engine.submit(message(&["c@example.net"])).await.unwrap();
    }
    idle(&engine).await;
    assert_eq!(rig.world.seen.timeline().iter().filter(|line| line.starts_with("0 delivered")).count(), 6);
    let told =
        |server: &SmtpServer| server.commands().iter().filter(|line| line.ends_with(" REQUIRETLS")).count();
    assert_eq!((told(&first), told(&second)), (0, 3));
    assert_eq!(first.message_count() + second.message_count(), 6);
}

/// RFC 8460 §4.2, §4.3.
#[tokio::test(start_paused = true)]
async fn sessions_are_counted_by_what_records_say() {
    let own = certificate(OF_HOST);
    for (record, fails, expected) in [
        (Some(own.tlsa(3, 1, 1)), None, "tlsa 1"),
        (Some(certificate(OF_HOST).tlsa(3, 1, 1)), None, "tlsa 0 validation-failure mx1.example.net"),
        (Some(own.tlsa(1, 1, 1)), None, "tlsa 0 tlsa-invalid mx1.example.net"),
        (None, None, "no-policy-found 1"),
        (None, Some(DnsErrorKind::ServFail), "tlsa 0 dnssec-invalid mx1.example.net"),
    ] {
        let rig = Rig::new(record.as_slice());
        if let Some(kind) = fails {
            rig.world.zone.fail(TLSA, kind);
        }
        rig.world.server(MX, &SmtpServer::new().starttls(&own));
        let engine = rig.engine("").await;
        engine.submit(message(&["b@example.net"])).await.unwrap();
        pass(MINUTE).await;
        let report = engine.take_tls_report().await.unwrap();
        let line = |of: &DomainTls| {
            assert_eq!(&*of.domain, "example.net");
            let failures = of.failures.iter();
            let failures =
                failures.map(|it| format!(" {} {}", it.result.as_str(), it.mx.as_deref().unwrap_or("-")));
            format!("{} {}{}", of.policy.as_str(), of.successful, failures.collect::<String>())
        };
        assert_eq!(report.domains.iter().map(line).collect::<Vec<_>>(), [expected]);
    }
}
