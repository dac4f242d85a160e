//! TLS reports (RFC 8460) through the whole engine: what is counted, and for whom.

use std::time::Duration;

use postrider::Policy;
use postrider::event::Reason;
use postrider::mta_sts::FetchErrorKind;
use postrider::storage::MemoryStorage;
use postrider::testing::{Command, SmtpServer, TestCertificate};
use postrider::tls_report::{DomainTls, TlsPolicy, TlsReport};

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
            assert_eq!(rig.reasons(), [Some(Reason::MtaSts)]);
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
