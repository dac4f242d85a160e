//! RFC 8461 §5: hosts that a policy permits, over TLS that is verified.

use std::sync::Arc;
use std::time::Duration;

use super::harness::*;
use crate::dns::{Route, RouteFailure, RouteFailureKind};
use crate::event::{Category, DeliveryEvent, Reason};
use crate::mta_sts::KnownPolicy;
use crate::policy::StartTls;
use crate::reply::Stage;
use crate::scheduler::{Bounds, Event, Opened};
use crate::transport::{ConnectError, EndCause, PeerCertificate, TlsWish};

pub(super) const ONE: &str = "198.51.100.1:25";
pub(super) const OTHER: &str = "198.51.100.2:25";
pub(super) const PROVIDER: &str = "[[rollup]]\nqueue = \"p.rollup\"\nmx = \"*.p.example\"\n";

fn policy(mode: &str, mx: &[&str]) -> Arc<KnownPolicy> {
    let mx: String = mx.iter().map(|name| format!("mx: {name}\n")).collect();
    KnownPolicy::for_tests("1", &format!("version: STSv1\nmode: {mode}\n{mx}max_age: 86400"))
}

/// What a look-up of the hosts comes to under a policy in mode `enforce`.
pub(super) fn enforced(preferences: &[&[(&str, &[&str])]], mx: &[&str]) -> Result<Arc<Route>, RouteFailure> {
    let route = (*route(preferences)).clone();
    route.under_policy("x.example", policy("enforce", mx)).map(Arc::new)
}

pub(super) fn one_host(mx: &[&str]) -> Result<Arc<Route>, RouteFailure> {
    enforced(&[&[("mx.x.example", &[ONE])]], mx)
}

/// Opens the session that is wanted, and returns what TLS is wanted for it.
pub(super) fn open(rig: &mut Rig) -> TlsWish {
    let (connection, target) = rig.opening();
    rig.tell(Event::Connected { connection, opened: Default::default() });
    target.tls
}

/// Runs out after a minute.
pub(super) fn short(route: Arc<Route>) -> Arc<Route> {
    Arc::new(Route { ttl: MINUTE, ..(*route).clone() })
}

pub(super) fn tls_failed() -> EndCause {
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
        (EndCause::TlsNotOffered, "4.7.4", Reason::MtaSts),
        (tls_failed(), "4.7.5", Reason::MtaSts),
        (EndCause::TlsRefused(reply("554 5.7.1 no")), "5.7.1", Reason::MtaSts),
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
    assert_eq!((event.diagnosis.category(), event.diagnosis.reason), (Category::TlsFailed, Reason::MtaSts));
    rig.answer_with("x.example", one_host(&["mx.x.example"]));
    rig.pass(10 * MINUTE);
    assert_eq!(open(&mut rig).level, StartTls::Verify);
    rig.accept_all();
    assert_eq!(rig.last_line(), "600 delivered a@x.example");
}

/// Who is on the way may say so: where TLS is demanded mail waits.
#[test]
fn what_is_said_before_tls_bounces_nothing() {
    for stage in [Stage::Connect, Stage::Ehlo] {
        for under_policy in [false, true] {
            let mut rig = Rig::new("retry-after = [\"10m\"]\nbounce-upon-5xx-greeting = true");
            let hosts = one_host(&["mx.x.example"]);
            rig.answer_with(
                "x.example",
                if under_policy { hosts } else { Ok(route(&[&[("mx.x.example", &[ONE])]])) },
            );
            rig.submit("a@x.example");
            let (connection, _) = rig.opening();
            let cause = EndCause::Reply(reply("521 5.3.2 no mail here"));
            rig.tell(Event::ConnectFailed { connection, error: ConnectError { stage, cause } });
            let bounced = rig.last_line().contains("bounced");
            assert_eq!(bounced, !under_policy, "{:?}", rig.timeline());
        }
    }
}

/// A session that was opening when it became known that no host may be used does not end the wait.
#[test]
fn a_session_that_may_not_be_used_ends_no_wait() {
    let mut rig = Rig::new("retry-after = [\"10m\", \"1h\"]");
    rig.answer_with("x.example", Ok(short(route(&[&[("mx.x.example", &[ONE])]]))));
    rig.submit("a@x.example");
    open(&mut rig);
    rig.submit("b@x.example");
    let (connection, _) = rig.opening();
    rig.answer_with("x.example", one_host(&["mx.y.example"]));
    rig.pass(2 * MINUTE);
    rig.submit("c@x.example");
    rig.accept_all();
    rig.tell(Event::Connected { connection, opened: Opened::default() });
    rig.pass(5 * MINUTE);
    let deferred = rig.timeline().iter().filter(|line| line.contains("queue-deferred")).count();
    assert_eq!(deferred, 1, "{:?}", rig.timeline());
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
    let plain = Ok(short(route(&[&[("mx.x.example", &[ONE])]])));
    let enforced = one_host(&["mx.x.example"]).map(short);
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

/// A policy that became known since the look-up holds for the next transaction: no mail goes before its domain is looked up anew.
#[test]
fn a_policy_that_came_late_takes_the_mail_from_a_session() {
    for in_rollup in [false, true] {
        let rollup = if in_rollup { PROVIDER } else { "" };
        let settings = format!("{rollup}[domain.\"*\"]\nconnection-idle-timeout = \"10m\"");
        let mut rig = Rig::with_policy(&settings, Bounds::default());
        let hosts: &[&[(&str, &[&str])]] = &[&[("mx.p.example", &[ONE])]];
        rig.answer_with("x.example", Ok(route(hosts)));
        rig.answer_with("y.example", Ok(route(hosts)));
        rig.submit("a@x.example");
        let old = rig.connect();
        rig.accept();
        rig.submit("b@x.example");
        let (connection, outgoing) = rig.transacts.pop_front().unwrap();
        assert_eq!(connection, old);
        assert!(
            outgoing
                .policy_domain
                .is_some_and(|domain| domain.heeds_mta_sts && domain.name.as_str() == "x.example")
        );
        rig.answer_with("x.example", enforced(hosts, &["mx.p.example"]));
        let looked_up = rig.looked_up.len();
        rig.tell(Event::AgainstPolicy { connection });
        assert!(rig.transacts.is_empty());
        assert_eq!(open(&mut rig).level, StartTls::Verify, "{in_rollup}");
        assert_ne!(rig.accept(), old);
        assert_eq!(rig.last_line(), "0 delivered b@x.example");
        assert_eq!(rig.looked_up.len(), looked_up + 1);
        // It is still good for others of the rollup.
        rig.submit("c@y.example");
        assert_eq!(rig.connects.is_empty(), in_rollup);
        rig.accept_all();
        assert_eq!(rig.last_line(), "0 delivered c@y.example");
        rig.pass(HOUR);
        rig.scheduler.assert_empty();
    }
}

/// Whether a policy counts is for the domain's own settings to say, wherever its mail lies.
#[test]
fn mail_says_whether_its_domain_heeds_policies() {
    for rollup in ["", PROVIDER] {
        let settings = format!("{rollup}[domain.\"x.example\"]\nuse-mta-sts = false");
        let mut rig = Rig::with_policy(&settings, Bounds::default());
        for (domain, expected) in [("x.example", false), ("y.example", true)] {
            rig.answer_with(domain, Ok(route(&[&[("mx.p.example", &[ONE])]])));
            rig.submit(&format!("a@{domain}"));
            while !rig.connects.is_empty() {
                rig.connect();
            }
            let (_, outgoing) = rig.transacts.front().unwrap();
            assert_eq!(outgoing.policy_domain.as_ref().unwrap().heeds_mta_sts, expected, "{rollup} {domain}");
            rig.accept_all();
        }
    }
}

/// An attempt that began before the policy was there does not end at a host that it bars.
#[test]
fn an_attempt_older_than_the_policy_brings_no_session_to_a_barred_host() {
    let hosts: &[&[(&str, &[&str])]] = &[&[("mx1.x.example", &[ONE])], &[("mx2.x.example", &[OTHER])]];
    let mut rig = Rig::new("connection-idle-timeout = \"10m\"\nmax-msg-per-connection = 2");
    rig.answer_with("x.example", Ok(short(route(hosts))));
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
