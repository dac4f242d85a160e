//! RFC 8461 §5: hosts that a policy permits, over TLS that is verified; and mail that is about to expire over it.

use std::sync::Arc;
use std::time::Duration;

use super::harness::*;
use crate::dns::{DnsErrorKind, Route, RouteFailure, RouteFailureKind};
use crate::event::{Category, DeliveryEvent, Reason};
use crate::mta_sts::KnownPolicy;
use crate::policy::StartTls;
use crate::scheduler::{Bounds, Event, Opened};
use crate::transport::{EndCause, PeerCertificate, TlsWish};

const ONE: &str = "198.51.100.1:25";
const OTHER: &str = "198.51.100.2:25";
const PROVIDER: &str = "[[rollup]]\nqueue = \"p.rollup\"\nmx = \"*.p.example\"\n";

fn policy(mode: &str, mx: &[&str]) -> Arc<KnownPolicy> {
    let mx: String = mx.iter().map(|name| format!("mx: {name}\n")).collect();
    KnownPolicy::for_tests("1", &format!("version: STSv1\nmode: {mode}\n{mx}max_age: 86400"))
}

/// What a look-up of the hosts comes to under a policy in mode `enforce`.
fn enforced(preferences: &[&[(&str, &[&str])]], mx: &[&str]) -> Result<Arc<Route>, RouteFailure> {
    let route = (*route(preferences)).clone();
    route.under_policy("x.example", policy("enforce", mx)).map(Arc::new)
}

fn one_host(mx: &[&str]) -> Result<Arc<Route>, RouteFailure> {
    enforced(&[&[("mx.x.example", &[ONE])]], mx)
}

/// Opens the session that is wanted, and returns what TLS is wanted for it.
fn open(rig: &mut Rig) -> TlsWish {
    let (connection, target) = rig.opening();
    rig.tell(Event::Connected { connection, opened: Default::default() });
    target.tls
}

/// Runs out after a minute.
fn short(found: Result<Arc<Route>, RouteFailure>) -> Result<Arc<Route>, RouteFailure> {
    found.map(|route| Arc::new(Route { ttl: MINUTE, ..(*route).clone() }))
}

fn tls_failed() -> EndCause {
    EndCause::Tls("UnknownIssuer".to_owned())
}

#[test]
fn mail_goes_to_permitted_hosts_over_verified_tls() {
    for use_starttls in ["opportunistic", "required", "verify", "off"] {
        let mut rig = Rig::new(&format!("use-starttls = \"{use_starttls}\""));
        let hosts: &[&[(&str, &[&str])]] =
            &[&[("mx1.x.example", &[ONE]), ("mx2.x.example", &[OTHER])], &[("mx3.x.example", &[OTHER])]];
        rig.answer_with("x.example", enforced(hosts, &["mx1.x.example"]));
        for n in 0..20 {
            rig.submit(&format!("u{n}@x.example"));
            if !rig.connects.is_empty() {
                assert_eq!(open(&mut rig).level, StartTls::Verify, "{use_starttls}");
            }
            rig.accept_all();
            rig.pass(MINUTE);
        }
        assert!(rig.offered.iter().all(|offer| offer.peer.to_string() == ONE));
        assert_eq!(rig.offered.len(), 20);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn mail_waits_and_never_bounces_before_its_age() {
    let settings = "bounce-after = \"2h\"\nretry-after = [\"50m\"]\nbounce-upon-5xx-greeting = true";
    for (cause, status, reason) in [
        (EndCause::TlsNotOffered, "4.7.4", Some(Reason::MtaSts)),
        (tls_failed(), "4.7.5", Some(Reason::MtaSts)),
        (EndCause::TlsRefused(reply("554 5.7.1 no")), "5.7.1", Some(Reason::MtaSts)),
    ] {
        let mut rig = Rig::new(settings);
        rig.answer_with("x.example", one_host(&["mx.x.example"]));
        rig.submit("a@x.example");
        for n in 0..3 {
            let (connection, _) = rig.opening();
            let error =
                crate::transport::ConnectError { stage: crate::reply::Stage::Ehlo, cause: cause.clone() };
            rig.tell(Event::ConnectFailed { connection, error });
            assert_eq!(rig.timeline()[n], format!("{} queue-deferred x.example {status}", n * 3_000));
            rig.pass(50 * MINUTE);
        }
        let Some(DeliveryEvent::QueueDeferred(event)) = rig.events.get(1) else { panic!("{:?}", rig.events) };
        assert_eq!(event.diagnosis.reason, reason);
        assert_eq!(rig.timeline()[3], "7200 bounced a@x.example 4.4.7 never-attempted");
        assert_eq!(rig.fresh_look_ups(), [6_600], "{status}");
        rig.pass(HOUR);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn a_policy_that_permits_no_host_defers() {
    let mut rig = Rig::new("retry-after = [\"10m\"]");
    rig.answer_with("x.example", one_host(&["mx.y.example"]));
    rig.submit("a@x.example");
    assert!(rig.connects.is_empty());
    let Some(DeliveryEvent::QueueDeferred(event)) = rig.events.last() else { panic!("{:?}", rig.events) };
    assert_eq!(event.diagnosis.status.to_string(), "4.7.0");
    assert_eq!(
        (event.diagnosis.category, event.diagnosis.reason),
        (Category::PolicyRelated, Some(Reason::MtaSts))
    );
    rig.answer_with("x.example", one_host(&["mx.x.example"]));
    rig.pass(10 * MINUTE);
    assert_eq!(open(&mut rig).level, StartTls::Verify);
    rig.accept_all();
    assert_eq!(rig.last_line(), "600 delivered a@x.example");
}

/// RFC 8461 §5.1, whatever the mail waits for: a host that is permitted, or one with TLS.
#[test]
fn a_fresh_policy_is_looked_for_before_mail_expires() {
    let day = 86_400;
    let hosts = [one_host(&["mx.y.example"]), one_host(&["mx.x.example"])];
    for (old, new) in [(0, None), (0, Some(1)), (1, None), (1, Some(0)), (1, Some(1)), (0, Some(0))] {
        let mut rig = Rig::new("bounce-after = \"1d\"\nretry-after = [\"7h\"]");
        rig.answer_with("x.example", hosts[old].clone());
        rig.submit("a@x.example");
        while rig.elapsed() < day - 601 {
            if !rig.connects.is_empty() {
                rig.fail_connect(tls_failed());
            }
            let left = day - 601 - rig.elapsed();
            rig.pass(Duration::from_secs(left.min(7 * 3_600)));
        }
        assert!(rig.fresh_look_ups().is_empty());
        let now_is = match new {
            // No policy any more.
            None => Ok(route(&[&[("mx.x.example", &[ONE])]])),
            Some(new) => hosts[new].clone(),
        };
        rig.answer_with("x.example", now_is);
        rig.pass(Duration::from_secs(1));
        assert_eq!(rig.fresh_look_ups(), [day - 600], "{old} {new:?}");
        let may_go = new.is_none() || (old, new) == (0, Some(1));
        assert_eq!(!rig.connects.is_empty(), may_go, "{old} {new:?}");
        rig.accept_all();
        rig.pass(HOUR);
        let end = if may_go {
            format!("{} delivered a@x.example", day - 600)
        } else {
            format!("{day} bounced a@x.example 4.4.7 never-attempted")
        };
        assert_eq!(rig.last_line(), end, "{old} {new:?}");
        assert_eq!(rig.fresh_look_ups().len(), 1);
        rig.pass(8 * HOUR);
        rig.scheduler.assert_empty();
    }
}

/// What expires within twenty minutes of a look needs no other one.
#[test]
fn one_look_serves_many() {
    let mut rig = Rig::new("bounce-after = \"1d\"\nretry-after = [\"30h\"]");
    rig.answer_with("x.example", one_host(&["mx.y.example"]));
    for n in 0..60 {
        rig.submit(&format!("u{n}@x.example"));
        rig.pass(MINUTE);
    }
    rig.pass(24 * HOUR);
    assert_eq!(rig.timeline().iter().filter(|line| line.contains("bounced")).count(), 60);
    let looks = rig.fresh_look_ups();
    assert!((3..=6).contains(&looks.len()), "{looks:?}");
    // Mail with little time is asked about at once.
    rig.submit_message(
        crate::Message::new("", ["v@x.example"], "x").unwrap().expires_after(Duration::from_secs(60)),
    );
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.fresh_look_ups().len(), looks.len() + 1);
    rig.pass(MINUTE);
    assert!(rig.last_line().contains("bounced v@x.example"));
}

#[test]
fn a_fresh_policy_is_looked_for_after_a_restart_too() {
    let settings = "[domain.\"*\"]\nbounce-after = \"1d\"\nretry-after = [\"30h\"]";
    let mut rig = Rig::with_policy(settings, Bounds::default());
    rig.answer_with("x.example", one_host(&["mx.x.example"]));
    rig.submit("a@x.example");
    rig.fail_connect(tls_failed());
    rig.pass(HOUR);
    let routes = rig.routes.clone();
    let mut rig = rig.restarted(settings);
    rig.routes = routes;
    rig.answer_with("x.example", Ok(route(&[&[("mx.x.example", &[ONE])]])));
    rig.pass(24 * HOUR);
    assert_eq!(rig.fresh_look_ups().len(), 1);
    assert!(!rig.connects.is_empty());
}

/// After a restart it is not known what the policy was, only that mail waits for it: DNS that fails must not take that away.
#[test]
fn a_look_that_fails_after_a_restart_is_made_again() {
    let settings = "[domain.\"*\"]\nbounce-after = \"1d\"\nretry-after = [\"30h\"]";
    let mut rig = Rig::with_policy(settings, Bounds::default());
    rig.answer_with("x.example", one_host(&["mx.x.example"]));
    rig.submit("a@x.example");
    rig.fail_connect(tls_failed());
    rig.pass(HOUR);
    let mut rig = rig.restarted(settings);
    rig.answer_with("x.example", no_route(RouteFailureKind::LookUp(DnsErrorKind::Timeout)));
    rig.pass(23 * HOUR - 9 * MINUTE);
    assert!(!rig.fresh_look_ups().is_empty());
    rig.answer_with("x.example", Ok(route(&[&[("mx.x.example", &[ONE])]])));
    rig.pass(2 * MINUTE);
    open(&mut rig);
    rig.accept_all();
    assert!(rig.last_line().ends_with("delivered a@x.example"), "{:?}", rig.timeline());
}

/// In a rollup the domain goes home for it, and by itself.
#[test]
fn a_domain_in_a_rollup_is_looked_up_by_itself() {
    let settings = format!("{PROVIDER}[domain.\"*\"]\nbounce-after = \"1d\"\nretry-after = [\"30h\"]");
    let mut rig = Rig::with_policy(&settings, Bounds::default());
    let hosts: &[&[(&str, &[&str])]] = &[&[("mx.p.example", &[ONE])]];
    for domain in ["x.example", "y.example"] {
        rig.answer_with(domain, enforced(hosts, &["mx.p.example"]));
        rig.submit(&format!("u@{domain}"));
    }
    rig.fail_connect(tls_failed());
    assert_eq!(rig.timeline(), ["0 queue-deferred x.example 4.7.5"], "one for both");
    rig.pass(23 * HOUR);
    rig.answer_with("y.example", Ok(route(hosts)));
    rig.pass(50 * MINUTE);
    assert_eq!(rig.fresh_look_ups().len(), 2);
    assert_eq!(open(&mut rig).level, StartTls::default());
    rig.accept_all();
    assert_eq!(rig.last_line(), "85800 delivered u@y.example");
    rig.pass(HOUR);
    assert_eq!(rig.last_line(), "86400 bounced u@x.example 4.4.7 never-attempted");
    assert_eq!(rig.fresh_look_ups().len(), 2);
}

/// Domains with the same hosts whose policies differ are kept apart.
#[test]
fn a_rollup_holds_each_domain_to_its_own_policy() {
    // No session is shared, so that hosts are chosen for each message.
    let settings = format!("{PROVIDER}[domain.\"p.rollup\"]\nmax-msg-per-connection = 1");
    let mut rig = Rig::with_policy(&settings, Bounds::default());
    let hosts: &[&[(&str, &[&str])]] = &[&[("mx1.p.example", &[ONE]), ("mx2.p.example", &[OTHER])]];
    rig.answer_with("one.example", enforced(hosts, &["mx1.p.example"]));
    rig.answer_with("both.example", enforced(hosts, &["*.p.example"]));
    rig.answer_with("free.example", Ok(route(hosts)));
    let mut wishes = std::collections::BTreeMap::new();
    for n in 0..40 {
        // At a time, so that all are there while one is sent to.
        for domain in ["one.example", "both.example", "free.example"] {
            // Two, so that one waits for a connection while the next domain's hosts are found.
            rig.submit(&format!("u{n}@{domain}"));
            rig.submit(&format!("v{n}@{domain}"));
        }
        while !(rig.connects.is_empty() && rig.transacts.is_empty()) {
            if rig.connects.is_empty() {
                rig.accept();
                continue;
            }
            let (connection, target) = rig.opening();
            wishes.insert(connection, target.tls.level);
            rig.tell(Event::Connected { connection, opened: Default::default() });
        }
        rig.pass(Duration::from_secs(n % 7));
    }
    let mut to_other = [0, 0];
    for offer in &rig.offered {
        let domain = offer.recipients[0].domain().as_str();
        let verified = wishes[&offer.connection] == StartTls::Verify;
        assert_eq!(verified, domain != "free.example", "{offer:?}");
        if offer.peer.to_string() == OTHER {
            assert_ne!(domain, "one.example");
            to_other[usize::from(verified)] += 1;
        }
    }
    assert!(to_other.iter().all(|&count| count > 0), "{to_other:?}");
    assert_eq!(rig.offered.len(), 240);
    rig.pass(HOUR);
    rig.scheduler.assert_empty();
}

/// A session is shared if its certificate is valid for the other domain's host too; else there is a new one, with a name
/// of its own in SNI.
#[test]
fn sessions_are_shared_for_hosts_that_the_certificate_is_valid_for() {
    for (host, certificate, policy_of_y, dials) in [
        ("mx.p.example", "", true, 1),
        ("mx.q.example", "", true, 2),
        ("mx.q.example", "mx.r.example", true, 2),
        ("mx.q.example", "mx.q.example", true, 1),
        ("mx.p.example", "", false, 2),
        ("mx.q.example", "mx.q.example", false, 2),
    ] {
        let mut rig = Rig::new("");
        rig.answer_with("x.example", enforced(&[&[("mx.p.example", &[ONE])]], &["mx.p.example"]));
        let hosts: &[&[(&str, &[&str])]] = &[&[(host, &[ONE])]];
        rig.answer_with("y.example", if policy_of_y { enforced(hosts, &[host]) } else { Ok(route(hosts)) });
        for domain in ["x.example", "y.example"] {
            rig.submit(&format!("u@{domain}"));
            while !rig.connects.is_empty() {
                let (connection, _) = rig.opening();
                let names = ["mx.p.example", certificate];
                let valid = PeerCertificate::new(move |host| names.contains(&host));
                let opened = Opened { certificate: Some(valid), ..Opened::default() };
                rig.tell(Event::Connected { connection, opened });
            }
            assert_eq!(rig.accept_all(), 1);
            rig.pass(Duration::from_secs(1));
        }
        // And back.
        rig.submit("v@x.example");
        assert_eq!(rig.accept_all(), 1);
        assert_eq!(rig.dialled.len(), dials, "{host} {certificate} {policy_of_y}");
    }
}

/// Nothing goes over a session that was opened before the policy was there, or after it is gone.
#[test]
fn sessions_end_when_a_policy_comes_or_goes() {
    let plain = short(Ok(route(&[&[("mx.x.example", &[ONE])]])));
    let enforced = short(one_host(&["mx.x.example"]));
    for (before, after) in [(plain.clone(), enforced.clone()), (enforced, plain)] {
        let mut rig = Rig::new("connection-idle-timeout = \"10m\"");
        rig.answer_with("x.example", before);
        rig.submit("a@x.example");
        let first = open(&mut rig);
        rig.accept_all();
        rig.answer_with("x.example", after);
        rig.pass(2 * MINUTE);
        rig.submit("b@x.example");
        let second = open(&mut rig);
        assert_ne!(first, second);
        rig.accept_all();
        assert_eq!(rig.last_line(), "120 delivered b@x.example");
        assert_ne!(rig.offered[0].connection, rig.offered[1].connection);
    }
}

/// An attempt that began before the policy was there does not end at a host that it bars.
#[test]
fn an_attempt_older_than_the_policy_brings_no_session_to_a_barred_host() {
    let hosts: &[&[(&str, &[&str])]] = &[&[("mx1.x.example", &[ONE])], &[("mx2.x.example", &[OTHER])]];
    let mut rig = Rig::new("connection-idle-timeout = \"10m\"\nmax-msg-per-connection = 2");
    rig.answer_with("x.example", short(Ok(route(hosts))));
    rig.submit("a@x.example");
    rig.connect();
    rig.submit("b@x.example");
    rig.submit("c@x.example");
    // One is sending, another opening to the same host, when the route runs out.
    rig.answer_with("x.example", enforced(hosts, &["mx1.x.example"]));
    rig.pass(2 * MINUTE);
    let (connection, target) = rig.opening();
    assert_eq!(target.peer.to_string(), ONE);
    rig.accept();
    rig.submit("d@x.example");
    // The policy is known by now: the old attempt goes on with the second host.
    let error = crate::transport::ConnectError {
        stage: crate::reply::Stage::Connect,
        cause: EndCause::Broken("refused".into()),
    };
    rig.tell(Event::ConnectFailed { connection, error });
    for _ in 0..10 {
        rig.accept_all();
        rig.pass(10 * MINUTE);
    }
    let offers: Vec<_> = rig.offered.iter().map(|offer| offer.peer.to_string()).collect();
    assert!(offers.iter().all(|peer| peer == ONE), "{offers:?}");
    assert_eq!(
        rig.timeline().iter().filter(|line| line.contains("delivered")).count(),
        4,
        "{:?}",
        rig.timeline()
    );
}

#[test]
fn testing_and_failures_of_other_kinds_change_nothing() {
    let mut rig = Rig::new("");
    let plain = (*route(&[&[("mx.x.example", &[ONE])]])).clone();
    let testing = plain.under_policy("x.example", policy("testing", &["mx.y.example"])).unwrap();
    rig.answer_with("x.example", Ok(Arc::new(testing)));
    rig.submit("a@x.example");
    assert_eq!(open(&mut rig).level, StartTls::default());
    rig.accept_all();
    assert_eq!(rig.last_line(), "0 delivered a@x.example");
    // Mail that waits for something else is not asked about.
    let mut rig = Rig::new("bounce-after = \"1d\"\nretry-after = [\"30h\"]");
    rig.answer_with("x.example", no_route(RouteFailureKind::NoAddress));
    rig.submit("a@x.example");
    rig.pass(25 * HOUR);
    assert!(rig.fresh_look_ups().is_empty());
}

/// Which hosts it bars is part of what a policy says.
#[test]
fn a_policy_that_permits_another_host_is_news() {
    let hosts: &[&[(&str, &[&str])]] = &[&[("mx1.x.example", &[ONE]), ("mx2.x.example", &[OTHER])]];
    let mut rig = Rig::new("bounce-after = \"1d\"\nretry-after = [\"30h\"]");
    rig.answer_with("x.example", enforced(hosts, &["mx1.x.example"]));
    rig.submit("a@x.example");
    rig.fail_connect(tls_failed());
    rig.answer_with("x.example", enforced(hosts, &["mx2.x.example"]));
    rig.pass(Duration::from_secs(86_400 - 600));
    assert_eq!(rig.opening().1.peer.to_string(), OTHER);
}

/// A refusal by another host of the route does not make it forget that it waits for the policy.
#[test]
fn one_host_held_for_the_policy_is_enough_to_look_for_another() {
    let two: &[&[(&str, &[&str])]] = &[&[("mx1.x.example", &[ONE])], &[("mx2.x.example", &[OTHER])]];
    let broken = || EndCause::Broken("refused".into());
    let rows: [(&[&str], Vec<EndCause>, Option<Reason>); 4] = [
        (&["*.x.example"], vec![tls_failed(), broken()], Some(Reason::MtaSts)),
        (&["*.x.example"], vec![broken(), tls_failed()], Some(Reason::MtaSts)),
        // The policy bars a host that might do.
        (&["mx1.x.example"], vec![broken()], None),
        (&["*.x.example"], vec![broken(), broken()], None),
    ];
    for (n, (mx, causes, reason)) in rows.into_iter().enumerate() {
        let mut rig = Rig::new("bounce-after = \"1d\"\nretry-after = [\"30h\"]");
        rig.answer_with("x.example", enforced(two, mx));
        rig.submit("a@x.example");
        for cause in causes {
            rig.fail_connect(cause);
        }
        let Some(DeliveryEvent::QueueDeferred(event)) = rig.events.last() else { panic!("{:?}", rig.events) };
        assert_eq!(event.diagnosis.reason, reason, "{n}");
        rig.pass(24 * HOUR);
        assert_eq!(rig.fresh_look_ups().len(), usize::from(n < 3), "{n}");
    }
}

/// A look that did not find the policy out is no look: it is made again in a minute.
#[test]
fn a_policy_that_is_not_found_out_is_looked_for_again() {
    let day = 86_400;
    let plain = || Ok(route(&[&[("mx.x.example", &[ONE])]]));
    let unknown = |found: Result<Arc<Route>, RouteFailure>| match found {
        Ok(route) => Ok(Arc::new(Route { policy_unknown: true, ..(*route).clone() })),
        Err(failure) => Err(RouteFailure { policy_unknown: true, ..failure }),
    };
    let timeout = || no_route(RouteFailureKind::LookUp(DnsErrorKind::Timeout));
    let away = || no_route(RouteFailureKind::LookUp(DnsErrorKind::Unreachable));
    // What holds the mail, and what the look meets.
    for (n, (held, met)) in [
        (one_host(&["mx.x.example"]), unknown(one_host(&["mx.x.example"]))),
        (one_host(&["mx.y.example"]), unknown(one_host(&["mx.y.example"]))),
        (one_host(&["mx.x.example"]), timeout()),
        (one_host(&["mx.y.example"]), timeout()),
        (one_host(&["mx.x.example"]), away()),
    ]
    .into_iter()
    .enumerate()
    {
        for retry in ["30h", "1425m"] {
            let mut rig = Rig::new(&format!("bounce-after = \"1d\"\nretry-after = [\"{retry}\"]"));
            rig.answer_with("x.example", held.clone());
            rig.submit("a@x.example");
            if !rig.connects.is_empty() {
                rig.fail_connect(tls_failed());
            }
            // With the shorter interval the clock has run out a moment before.
            if retry != "30h" {
                rig.answer_with("x.example", timeout());
            }
            rig.pass(Duration::from_secs(day - 601));
            assert!(rig.fresh_look_ups().is_empty());
            rig.answer_with("x.example", met.clone());
            rig.pass(Duration::from_secs(1 + 4 * 60));
            let looks = rig.fresh_look_ups().len();
            assert!((4..=10).contains(&looks), "{n} {retry}: {:?}", rig.fresh_look_ups());
            rig.answer_with("x.example", plain());
            rig.pass(2 * MINUTE);
            let looks = rig.fresh_look_ups().len() - looks;
            assert!((1..=2).contains(&looks), "{n} {retry}: {:?}", rig.fresh_look_ups());
            open(&mut rig);
            rig.accept_all();
            assert!(rig.last_line().ends_with("delivered a@x.example"), "{n} {retry}");
            rig.pass(HOUR);
            rig.scheduler.assert_empty();
        }
    }
}

/// In a rollup the domain is at home by then, which has not waited for a policy.
#[test]
fn a_policy_of_a_domain_in_a_rollup_is_looked_for_again() {
    let settings = format!("{PROVIDER}[domain.\"*\"]\nbounce-after = \"1d\"\nretry-after = [\"30h\"]");
    let mut rig = Rig::with_policy(&settings, Bounds::default());
    let hosts: &[&[(&str, &[&str])]] = &[&[("mx.p.example", &[ONE])]];
    rig.answer_with("x.example", enforced(hosts, &["mx.p.example"]));
    rig.submit("a@x.example");
    rig.fail_connect(tls_failed());
    rig.answer_with("x.example", no_route(RouteFailureKind::LookUp(DnsErrorKind::Timeout)));
    rig.pass(Duration::from_secs(86_400 - 500));
    assert_eq!(rig.fresh_look_ups().len(), 2);
    rig.answer_with("x.example", Ok(route(hosts)));
    rig.pass(MINUTE);
    open(&mut rig);
    rig.accept_all();
    assert_eq!(rig.last_line(), "85960 delivered a@x.example");
}
