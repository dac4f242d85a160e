//! TLS reports (RFC 8460) through the whole engine: what is counted, and for whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use postrider::event::Reason;
use postrider::mta_sts::FetchErrorKind;
use postrider::storage::MemoryStorage;
use postrider::testing::{Command, SmtpServer, TestCertificate};
use postrider::tls_report::{DomainTls, TlsPolicy, TlsReport};
use postrider::transport::smtp::SmtpTransport;
use postrider::transport::{
    CertificateProblem, ConnectError, Session, SessionEnd, Target, Transaction, TransactionReport, Transport,
};
use postrider::{DeliveryEngine, Policy};

use crate::mta_sts::{MINUTE, Rig, TXT, pass};
use crate::support::{MX, idle, message};

/// What became of it, in one line.
fn lines(report: &TlsReport) -> Vec<String> {
    let line = |domain: &DomainTls| {
        let failures = domain.failures.iter().map(|failure| {
            format!(" {} {} {}", failure.result.as_str(), failure.mx.as_deref().unwrap_or("-"), failure.count)
        });
        let of = domain.policy.as_str();
        format!("{} {of} {}{}", domain.domain, domain.successful, failures.collect::<String>())
    };
    report.domains.iter().map(line).collect()
}

/// RFC 8460: also where a policy is tested and the mail is sent all the same.
#[tokio::test(start_paused = true)]
async fn sessions_are_counted_for_the_owners_of_policies() {
    let names = |names: &[&str]| TestCertificate::new(names.iter().copied()).unwrap();
    let right = |rig: &Rig| rig.server();
    type Server = fn(&Rig) -> SmtpServer;
    let rows: [(&str, &str, Server, &str); 8] = [
        ("enforce", "mx1.example.net", right, "1"),
        ("testing", "mx1.example.net", right, "1"),
        ("enforce", "mx9.example.net", right, "0 validation-failure - 1"),
        ("testing", "mx9.example.net", right, "0 validation-failure mx1.example.net 1"),
        ("testing", "mx1.example.net", |_| SmtpServer::new(), "0 starttls-not-supported mx1.example.net 1"),
        ("enforce", "mx1.example.net", |_| SmtpServer::new(), "0 starttls-not-supported mx1.example.net 1"),
        (
            "testing",
            "mx1.example.net",
            |_| SmtpServer::new().starttls(&TestCertificate::new(["mx1.example.net"]).unwrap()),
            "0 certificate-not-trusted mx1.example.net 1",
        ),
        (
            "enforce",
            "mx1.example.net",
            |_| SmtpServer::new().starttls(&TestCertificate::new(["mx1.example.net"]).unwrap()),
            "0 certificate-not-trusted mx1.example.net 1",
        ),
    ];
    for (mode, mx, server, expected) in rows {
        let rig = Rig::new();
        rig.world.server(MX, &server(&rig));
        rig.publish("1", mode, mx, 86_400);
        let engine = rig.engine(MemoryStorage::new(), "").await;
        engine.submit(message(&["b@example.net"])).await.unwrap();
        pass(MINUTE).await;
        let report = engine.take_tls_report().await.unwrap();
        assert_eq!(lines(&report), [format!("example.net sts {expected}")], "{mode} {mx}");
        assert!(matches!(&report.domains[0].policy, TlsPolicy::Sts(Some(policy)) if policy.id() == "1"));
        let sent = rig.world.seen.timeline() == ["0 delivered b@example.net"];
        assert_eq!(sent, mode == "testing" || expected == "1", "{mode} {mx}");
        let next = engine.take_tls_report().await.unwrap();
        assert_eq!((next.domains.len(), next.since), (0, report.until));
    }
    for (certificate, expected) in [
        (TestCertificate::expired(["mx1.example.net"]).unwrap(), "certificate-expired"),
        (names(&["mx.example.com"]), "certificate-host-mismatch"),
    ] {
        for mode in ["enforce", "testing"] {
            // It is its own root.
            let rig = Rig { certificate: certificate.clone(), ..Rig::new() };
            rig.world.server(MX, &rig.server());
            rig.publish("1", mode, "mx1.example.net", 86_400);
            let engine = rig.engine(MemoryStorage::new(), "").await;
            engine.submit(message(&["b@example.net"])).await.unwrap();
            pass(MINUTE).await;
            let report = engine.take_tls_report().await.unwrap();
            assert_eq!(lines(&report), [format!("example.net sts 0 {expected} mx1.example.net 1")], "{mode}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fetches_are_counted_and_domains_without_policy_too() {
    for (kind, expected) in [
        (None, None),
        (Some(FetchErrorKind::NoAnswer), Some("sts-policy-fetch-error")),
        (Some(FetchErrorKind::NoPolicy), Some("sts-policy-invalid")),
        (Some(FetchErrorKind::Certificate), Some("sts-webpki-invalid")),
    ] {
        let rig = Rig::new();
        rig.world.server(MX, &rig.server());
        if let Some(kind) = kind {
            rig.publish("1", "enforce", "mx1.example.net", 86_400);
            rig.files.fail("example.net", kind);
        }
        let engine = rig.engine(MemoryStorage::new(), "").await;
        engine.submit(message(&["b@example.net"])).await.unwrap();
        idle(&engine).await;
        let mut expected: Vec<String> =
            expected.map(|word| format!("example.net sts 0 {word} - 1")).into_iter().collect();
        expected.push("example.net no-policy-found 1".to_owned());
        assert_eq!(lines(&engine.take_tls_report().await.unwrap()), expected);
    }
}

/// RFC 8460 §4.3.1: a host that says it has STARTTLS, and refuses it.
#[tokio::test(start_paused = true)]
async fn a_refusal_of_starttls_is_counted() {
    for (reply, mode) in
        [("454 4.7.0 not now", "enforce"), ("502 5.5.1 no", "enforce"), ("454 4.7.0 not now", "testing")]
    {
        let rig = Rig::new();
        rig.world.server(MX, &rig.server().reply(Command::StartTls, reply));
        rig.publish("1", mode, "mx1.example.net", 86_400);
        let engine = rig.engine(MemoryStorage::new(), "bounce-upon-5xx-greeting = true").await;
        engine.submit(message(&["b@example.net"])).await.unwrap();
        pass(MINUTE).await;
        let counted = lines(&engine.take_tls_report().await.unwrap());
        assert_eq!(counted, ["example.net sts 0 starttls-not-supported mx1.example.net 1"], "{reply} {mode}");
        if mode == "enforce" {
            assert_eq!(rig.reasons(), [Reason::MtaSts]);
        }
    }
}

/// RFC 8460 §4: a session is counted for each domain whose mail it carries, by that domain's own policy.
#[tokio::test(start_paused = true)]
async fn a_session_counts_for_each_domain_whose_mail_it_carries() {
    let rig = Rig::new();
    rig.world.server(MX, &rig.server());
    let others: String = ["second.example", "third.example", "fourth.example"]
        .map(|domain| format!("{domain}. MX 10 mx1.example.net.\n_mta-sts.{domain}. TXT \"v=STSv1; id=1\"\n"))
        .concat();
    rig.zone(&format!("{TXT} TXT \"v=STSv1; id=1\"\n{others}"));
    for (domain, mode) in [("example.net", "enforce"), ("second.example", "enforce")] {
        rig.files.set(domain, format!("version: STSv1\nmode: {mode}\nmx: mx1.example.net\nmax_age: 86400"));
    }
    rig.files.set("third.example", "version: STSv1\nmode: none\nmax_age: 86400");
    rig.files.set("fourth.example", "version: STSv1\nmode: none\nmax_age: 86400");
    // The second's lies where the first's does.
    let rollup = "[[rollup]]\nqueue = 'p.rollup'\nmx = '*.example.net'";
    let engine = rig.engine_by(MemoryStorage::new(), rollup).await;
    for domain in ["example.net", "second.example", "third.example", "fourth.example"] {
        for user in ["a", "b"] {
            engine.submit(message(&[&format!("{user}@{domain}")])).await.unwrap();
            pass(Duration::from_secs(1)).await;
        }
    }
    idle(&engine).await;
    assert_eq!(rig.world.network.attempts(MX.parse().unwrap()), 2);
    let expected = [
        "example.net sts 1",
        "fourth.example no-policy-found 1",
        "second.example sts 1",
        "third.example no-policy-found 1",
    ];
    let report = engine.take_tls_report().await.unwrap();
    assert_eq!(lines(&report), expected);
    for of in &report.domains {
        if let TlsPolicy::Sts(policy) = &of.policy {
            assert_eq!(policy.as_ref().unwrap().domain(), &*of.domain);
        }
    }
}

/// RFC 8460 §4: what counts is the policy of the mail's domain, whoever opened the session, and none where it is not to count.
#[tokio::test(start_paused = true)]
async fn a_domain_that_tests_its_policy_is_told_of_sessions_that_others_opened() {
    let rig = Rig::new();
    let untrusted = TestCertificate::new(["mx1.example.net"]).unwrap();
    rig.world.server(MX, &SmtpServer::new().starttls(&untrusted));
    let domains = ["plain.example", "tested.example", "other.example"];
    let zone = domains.map(|domain| format!("{domain}. MX 10 mx1.example.net.\n"));
    let tested = domains[1..].iter().map(|domain| {
        rig.files.set(domain, "version: STSv1\nmode: testing\nmx: mx1.example.net\nmax_age: 86400");
        format!("_mta-sts.{domain}. TXT \"v=STSv1; id=1\"\n")
    });
    rig.zone(&zone.into_iter().chain(tested).collect::<String>());
    let settings = "[[rollup]]\nqueue = 'p.rollup'\nmx = '*.example.net'\n";
    let engine = rig.engine_by(MemoryStorage::new(), settings).await;
    for heeds_other in [true, false] {
        let other = format!("{settings}[domain.'other.example']\nuse-mta-sts = {heeds_other}");
        engine.set_policy(Policy::from_toml(&other).unwrap()).await.unwrap();
        for domain in domains {
            engine.submit(message(&[&format!("b@{domain}")])).await.unwrap();
            pass(Duration::from_secs(1)).await;
        }
        pass(MINUTE).await;
        let failed = |domain| format!("{domain} sts 0 certificate-not-trusted mx1.example.net 1");
        let other =
            if heeds_other { failed("other.example") } else { "other.example no-policy-found 1".to_owned() };
        let expected = [other, "plain.example no-policy-found 1".to_owned(), failed("tested.example")];
        assert_eq!(lines(&engine.take_tls_report().await.unwrap()), expected);
    }
    assert_eq!(rig.world.network.attempts(MX.parse().unwrap()), 2);
}

/// Counts how often a session is asked about its certificate.
#[derive(Debug)]
struct Asked<T> {
    inner: T,
    times: Arc<AtomicUsize>,
}

impl std::fmt::Display for Asked<SmtpTransport> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl Transport for Asked<SmtpTransport> {
    async fn connect(&self, target: &Target) -> Result<Box<dyn Session>, ConnectError> {
        let inner = self.inner.connect(target).await?;
        Ok(Box::new(Asked { inner, times: self.times.clone() }))
    }
}

#[async_trait]
impl Session for Asked<Box<dyn Session>> {
    async fn transact(&mut self, transaction: &Transaction) -> TransactionReport {
        self.inner.transact(transaction).await
    }

    async fn closed(&mut self) -> SessionEnd {
        self.inner.closed().await
    }

    async fn quit(self: Box<Self>) {
        self.inner.quit().await;
    }

    fn tls(&self) -> Option<String> {
        self.inner.tls()
    }

    async fn certificate_verdict(&mut self) -> Option<Result<(), CertificateProblem>> {
        self.times.fetch_add(1, Ordering::Relaxed);
        self.inner.certificate_verdict().await
    }
}

/// Nobody else wants to know, and it takes a while to find out.
#[tokio::test(start_paused = true)]
async fn certificates_are_looked_at_only_for_domains_with_a_policy() {
    let rig = Rig::new();
    rig.world.server(MX, &rig.server());
    let zone = ["plain.example", "tested.example", "off.example"].map(|domain| {
        format!("{domain}. MX 10 mx1.example.net.\n_mta-sts.{domain}. TXT \"v=STSv1; id=1\"\n")
    });
    rig.zone(&zone.concat());
    for (domain, mode) in
        [("plain.example", "none"), ("tested.example", "testing"), ("off.example", "testing")]
    {
        rig.files.set(domain, format!("version: STSv1\nmode: {mode}\nmx: mx1.example.net\nmax_age: 86400"));
    }
    let transport = SmtpTransport::over(rig.world.network.clone());
    let inner = transport.with_root_certificates(rig.certificate.pem()).unwrap();
    let times = Arc::new(AtomicUsize::new(0));
    let policy =
        "[[rollup]]\nqueue = 'p.rollup'\nmx = '*.example.net'\n[domain.'off.example']\nuse-mta-sts = false";
    let engine = DeliveryEngine::builder("mta.example.org")
        .storage(MemoryStorage::new())
        .resolver(rig.world.zone.clone())
        .transport(Asked { inner, times: times.clone() })
        .policy_fetcher(rig.files.clone())
        .policy(Policy::from_toml(policy).unwrap())
        .clock(rig.world.clock.clone())
        .start()
        .await
        .unwrap();
    for (to, asked) in [("plain", 0), ("off", 0), ("plain", 0), ("tested", 1), ("tested", 1), ("plain", 1)] {
        engine.submit(message(&[&format!("b@{to}.example")])).await.unwrap();
        pass(Duration::from_secs(1)).await;
        assert_eq!(times.load(Ordering::Relaxed), asked, "{to}");
    }
    idle(&engine).await;
    assert_eq!(rig.world.network.attempts(MX.parse().unwrap()), 1, "over one session");
    let expected =
        ["off.example no-policy-found 1", "plain.example no-policy-found 1", "tested.example sts 1"];
    assert_eq!(lines(&engine.take_tls_report().await.unwrap()), expected);
}
