//! RFC 7672: what a host's TLSA records demand goes with its addresses, host by host.

use std::sync::Arc;
use std::time::Duration;

use super::harness::*;
use crate::dane::TlsaSet;
use crate::dns::{DnsErrorKind, Route, RouteFailureKind, TlsaRecord};
use crate::event::{Category, DeliveryEvent, Failure, Reason};
use crate::mta_sts::KnownPolicy;
use crate::reply::Stage;
use crate::scheduler::{Bounds, Event, Opened};
use crate::transport::{CertificateProblem, ConnectError, EndCause, PeerCertificate, Target};

const ONE: &str = "198.51.100.1:25";
const OTHER: &str = "198.51.100.2:25";
const TWO: &[&[(&str, &[&str])]] = &[&[("mx1.x.example", &[ONE])], &[("mx2.x.example", &[OTHER])]];

/// One record, of a usage and with data of its own.
fn set(base: &str, usage: u8, data: u8) -> Arc<TlsaSet> {
    let names = ["x.example".into()];
    Arc::new(TlsaSet::new(base.into(), names, vec![TlsaRecord::new(usage, 1, 1, [data; 32])]))
}

/// The first host has these records.
fn with(route: &Arc<Route>, tlsa: Option<Arc<TlsaSet>>) -> Arc<Route> {
    let mut route = (**route).clone();
    route.hosts[0].tlsa = tlsa;
    Arc::new(route)
}

fn short(route: &Arc<Route>) -> Arc<Route> {
    Arc::new(Route { ttl: MINUTE, ..(**route).clone() })
}

fn in_tls(certificate: Option<PeerCertificate>) -> Opened {
    Opened { tls: Some("TLSv1.3".into()), certificate, ..Opened::default() }
}

/// Opens the session that is wanted.
fn open(rig: &mut Rig) -> Target {
    let (connection, target) = rig.opening();
    rig.tell(Event::Connected { connection, opened: in_tls(None) });
    target
}

fn fail(rig: &mut Rig, cause: EndCause) {
    let (connection, _) = rig.opening();
    rig.tell(Event::ConnectFailed { connection, error: ConnectError { stage: Stage::Ehlo, cause } });
}

fn mismatch() -> EndCause {
    EndCause::Certificate(CertificateProblem::TlsaMismatch, "it matches none".into())
}

#[test]
fn each_host_is_asked_for_what_it_demands() {
    let mut rig = Rig::new("");
    rig.answer_with("x.example", Ok(with(&route(TWO), Some(set("mx1.x.example", 3, 1)))));
    rig.submit("a@x.example");
    let (connection, target) = rig.opening();
    assert_eq!(target.tlsa, Some(set("mx1.x.example", 3, 1)));
    rig.tell(Event::ConnectFailed {
        connection,
        error: ConnectError { stage: Stage::Ehlo, cause: mismatch() },
    });
    let target = open(&mut rig);
    assert_eq!((target.peer.to_string().as_str(), target.tlsa), (OTHER, None));
    rig.accept_all();
    assert_eq!(rig.timeline(), ["0 delivered a@x.example"]);
}

#[test]
fn what_is_not_had_defers_and_says_why() {
    let settings = "bounce-after = \"2h\"\nretry-after = [\"50m\"]\nbounce-upon-5xx-greeting = true";
    let policy =
        KnownPolicy::for_tests("1", "version: STSv1\nmode: enforce\nmx: *.x.example\nmax_age: 86400");
    for under_policy in [false, true] {
        for (cause, status, reason, said) in [
            (EndCause::TlsNotOffered, "4.7.4", Reason::Dane, "DANE: TLS is required"),
            (EndCause::Tls("no".into()), "4.7.5", Reason::Dane, "DANE: TLS failed: no"),
            (mismatch(), "4.7.5", Reason::Dane, "DANE: TLS failed: it matches none"),
            (EndCause::TlsRefused(reply("554 5.7.1 no")), "5.7.1", Reason::Dane, ""),
            (EndCause::TlsRefused(reply("521 5.7.1 no")), "5.7.1", Reason::Dane, ""),
        ] {
            let mut rig = Rig::new(settings);
            let hosts = with(&route(&TWO[..1]), Some(set("mx1.x.example", 3, 1)));
            let hosts = match under_policy {
                true => Arc::new((*hosts).clone().under_policy("x.example", policy.clone()).unwrap()),
                false => hosts,
            };
            rig.answer_with("x.example", Ok(hosts));
            rig.submit("a@x.example");
            for n in 0..3 {
                fail(&mut rig, cause.clone());
                assert_eq!(rig.timeline()[n], format!("{} queue-deferred x.example {status}", n * 3_000));
                rig.pass(50 * MINUTE);
            }
            let Some(DeliveryEvent::QueueDeferred(event)) = rig.events.get(1) else {
                panic!("{:?}", rig.events)
            };
            assert_eq!(event.diagnosis.reason, reason);
            if let Failure::Engine(text) = &event.diagnosis.failure {
                assert!(text.starts_with(said), "{text}");
                assert_eq!(event.diagnosis.category(), Category::TlsFailed);
            }
            assert_eq!(rig.timeline()[3], "7200 bounced a@x.example 4.4.7 never-attempted");
        }
    }
    // Records that are not usable want no certificate: who does is told.
    for (own, under_policy, reason, said) in [
        ("", true, Reason::MtaSts, "MTA-STS: TLS failed: expired"),
        ("\nuse-starttls = \"verify\"", false, Reason::TlsFailed, "TLS failed: expired"),
    ] {
        let mut rig = Rig::new(&format!("{settings}{own}"));
        let mut hosts = (*with(&route(&TWO[..1]), Some(set("mx1.x.example", 1, 1)))).clone();
        if under_policy {
            hosts = hosts.under_policy("x.example", policy.clone()).unwrap();
        }
        rig.answer_with("x.example", Ok(Arc::new(hosts)));
        rig.submit("a@x.example");
        fail(&mut rig, EndCause::Certificate(CertificateProblem::Expired, "expired".into()));
        let Some(DeliveryEvent::QueueDeferred(event)) = rig.events.last() else { panic!("{:?}", rig.events) };
        assert_eq!(event.diagnosis.reason, reason);
        assert_eq!(event.diagnosis.failure, Failure::Engine(said.to_owned()));
    }
    let mut rig = Rig::new(settings);
    rig.answer_with("x.example", no_route(RouteFailureKind::Dane));
    rig.submit("a@x.example");
    let Some(DeliveryEvent::QueueDeferred(event)) = rig.events.last() else { panic!("{:?}", rig.events) };
    assert_eq!(
        (event.diagnosis.status.to_string().as_str(), event.diagnosis.category(), event.diagnosis.reason),
        ("4.7.0", Category::TlsFailed, Reason::Dane)
    );
}

/// A session is shared if what it proved is what is demanded for the other domain's host.
#[test]
fn sessions_are_shared_for_what_they_have_proved() {
    let key = |base, data| Some(set(base, 3, data));
    let root = |base, data| Some(set(base, 2, data));
    let none_usable = || Some(set("mx.y.example", 1, 1));
    let verified = "use-starttls = \"verify\"";
    for (settings, first, second, valid, dials) in [
        ("", key("mx1.x.example", 1), key("mx.y.example", 1), "", 1),
        ("", key("mx1.x.example", 1), key("mx.y.example", 2), "mx.y.example", 2),
        ("", key("mx1.x.example", 1), None, "", 1),
        ("", key("mx1.x.example", 1), none_usable(), "", 1),
        ("", None, none_usable(), "", 1),
        ("", None, key("mx.y.example", 1), "mx.y.example", 2),
        ("", none_usable(), key("mx.y.example", 1), "mx.y.example", 2),
        ("", root("mx1.x.example", 1), root("mx.y.example", 1), "", 2),
        ("", root("mx1.x.example", 1), root("mx.y.example", 1), "mx.y.example", 1),
        ("", root("mx1.x.example", 1), root("mx.y.example", 2), "mx.y.example", 2),
        ("", root("mx1.x.example", 1), key("mx.y.example", 1), "mx.y.example", 2),
        // By its records a certificate is not valid by roots.
        (verified, key("mx1.x.example", 1), None, "mx.y.example", 2),
        (verified, None, None, "mx.y.example", 1),
        (verified, None, none_usable(), "mx.y.example", 1),
        (verified, None, none_usable(), "", 2),
        (verified, none_usable(), None, "mx.y.example", 1),
        (verified, key("mx1.x.example", 1), none_usable(), "mx.y.example", 2),
        (verified, key("mx1.x.example", 1), key("mx.y.example", 1), "", 1),
        (verified, None, key("mx.y.example", 1), "mx.y.example", 2),
    ] {
        let mut rig = Rig::new(settings);
        rig.answer_with("x.example", Ok(with(&route(&TWO[..1]), first.clone())));
        rig.answer_with("y.example", Ok(with(&route(&[&[("mx.y.example", &[ONE])]]), second.clone())));
        for domain in ["x.example", "y.example"] {
            rig.submit(&format!("u@{domain}"));
            while !rig.connects.is_empty() {
                let (connection, _) = rig.opening();
                let names = ["mx1.x.example", valid];
                let certificate = PeerCertificate::new(move |host| names.contains(&host));
                rig.tell(Event::Connected { connection, opened: in_tls(Some(certificate)) });
            }
            assert_eq!(rig.accept_all(), 1);
            rig.pass(Duration::from_secs(1));
        }
        assert_eq!(rig.dialled.len(), dials, "{settings} {first:?} {second:?} {valid}");
    }
    // In plain nobody demands anything.
    let mut rig = Rig::new("");
    rig.answer_with("x.example", Ok(route(&TWO[..1])));
    rig.answer_with("y.example", Ok(with(&route(&[&[("mx.y.example", &[ONE])]]), none_usable())));
    for domain in ["x.example", "y.example"] {
        rig.submit(&format!("u@{domain}"));
        while !rig.connects.is_empty() {
            let (connection, _) = rig.opening();
            rig.tell(Event::Connected { connection, opened: Opened::default() });
        }
        // The second session is no better than its server.
        rig.accept_all();
        rig.pass(Duration::from_secs(1));
    }
    assert_eq!(rig.dialled.len(), 2);
}

/// Nothing goes over a session that was opened before the records were there, or under others.
#[test]
fn sessions_end_when_records_come_or_change() {
    let hosts = short(&route(&TWO[..1]));
    let record = |data| Some(set("mx1.x.example", 3, data));
    for (before, after, ends) in [
        (None, record(1), true),
        (record(1), record(2), true),
        (record(1), record(1), false),
        // More was proved than is demanded now.
        (record(1), None, false),
    ] {
        let mut rig = Rig::new("connection-idle-timeout = \"10m\"");
        rig.answer_with("x.example", Ok(with(&hosts, before)));
        rig.submit("a@x.example");
        open(&mut rig);
        rig.accept_all();
        rig.answer_with("x.example", Ok(with(&hosts, after.clone())));
        rig.pass(2 * MINUTE);
        rig.submit("b@x.example");
        if ends {
            assert_eq!(open(&mut rig).tlsa, after);
        }
        rig.accept_all();
        assert_eq!(rig.last_line(), "120 delivered b@x.example");
        assert_eq!(rig.offered[0].connection != rig.offered[1].connection, ends);
    }
}

/// Messages while a route runs out and the next look-up leads to another. Sessions that are opened once that is known are used
/// only if `fits` says so of their targets.
fn a_route_changes_under_attempts(first: &Arc<Route>, then: Arc<Route>, fits: fn(&Target) -> bool) {
    let mut rig = Rig::new("connection-idle-timeout = \"10m\"\nmax-msg-per-connection = 2");
    rig.answer_with("x.example", Ok(first.clone()));
    rig.submit("a@x.example");
    let (connection, _) = rig.opening();
    rig.tell(Event::Connected { connection, opened: in_tls(None) });
    rig.submit("b@x.example");
    rig.submit("c@x.example");
    // One is sending, another opening, when the route runs out.
    rig.answer_with("x.example", Ok(then));
    rig.pass(2 * MINUTE);
    let (old, target) = rig.opening();
    assert!(!fits(&target), "{target:?}");
    rig.accept();
    rig.submit("d@x.example");
    // What has changed is known by now.
    rig.tell(Event::Connected { connection: old, opened: in_tls(None) });
    let mut unfit = vec![old];
    for _ in 0..4 {
        while !rig.connects.is_empty() {
            let (connection, target) = rig.opening();
            unfit.extend((!fits(&target)).then_some(connection));
            rig.tell(Event::Connected { connection, opened: in_tls(None) });
        }
        rig.accept_all();
        rig.pass(MINUTE);
    }
    assert!(rig.offered.iter().all(|offer| !unfit.contains(&offer.connection)), "{:?}", rig.offered);
    assert_eq!(rig.timeline().iter().filter(|line| line.contains("delivered")).count(), 4);
}

/// An attempt that began before the records were there brings no session without them.
#[test]
fn an_attempt_older_than_the_records_brings_no_session() {
    let hosts = short(&route(&TWO[..1]));
    let then = with(&hosts, Some(set("mx1.x.example", 3, 1)));
    a_route_changes_under_attempts(&hosts, then, |target| target.tlsa.is_some());
}

/// Whose records can not be found out is barred, for attempts too that are older than that.
#[test]
fn an_attempt_older_than_a_bar_brings_no_session() {
    let hosts = short(&route(TWO));
    let mut then = (*hosts).clone();
    then.hosts[0].barred = true;
    then.hosts[0].addresses.clear();
    a_route_changes_under_attempts(&hosts, Arc::new(then), |target| target.peer.to_string() == OTHER);
}

/// A host whose records can not be found out gets none of that domain's mail, whatever leads others there.
#[test]
fn in_a_rollup_a_host_is_barred_for_whom_it_is() {
    let settings = "[[rollup]]\nqueue = \"p.rollup\"\nmx = \"*.p.example\"\n";
    let mut rig = Rig::with_policy(settings, Bounds::default());
    let hosts = route(&[&[("mx1.p.example", &[ONE])], &[("mx2.p.example", &[OTHER])]]);
    let mut barred = (*hosts).clone();
    barred.hosts[0].barred = true;
    barred.hosts[0].addresses.clear();
    rig.answer_with("x.example", Ok(Arc::new(barred)));
    rig.answer_with("plain.example", Ok(hosts));
    for n in 0..4 {
        for domain in ["plain.example", "x.example"] {
            rig.submit(&format!("u{n}@{domain}"));
            rig.submit(&format!("v{n}@{domain}"));
        }
        while !(rig.connects.is_empty() && rig.transacts.is_empty()) {
            if rig.connects.is_empty() {
                rig.accept();
            } else {
                open(&mut rig);
            }
        }
        rig.pass(Duration::from_secs(7));
    }
    for offer in &rig.offered {
        let is_barred = offer.recipients[0].domain().as_str() == "x.example";
        assert_eq!(offer.peer.to_string() == OTHER, is_barred, "{offer:?}");
    }
    assert_eq!(rig.offered.len(), 16);
}

/// One name in a certificate is that of one domain: for mail of others it says nothing.
#[test]
fn in_a_rollup_certificates_are_for_the_host() {
    let settings = "[[rollup]]\nqueue = \"p.rollup\"\nmx = \"*.p.example\"\n";
    let mut rig = Rig::with_policy(settings, Bounds::default());
    let hosts = route(&[&[("mx.p.example", &[ONE])]]);
    rig.answer_with("x.example", Ok(with(&hosts, Some(set("mx.p.example", 2, 1)))));
    rig.answer_with("plain.example", Ok(hosts));
    rig.submit("a@x.example");
    let target = open(&mut rig);
    let names: Vec<_> = target.tlsa.as_ref().unwrap().names().map(|name| &**name).collect();
    assert_eq!((&*target.queue, names), ("p.rollup", vec!["mx.p.example"]));
    rig.accept_all();
    // Who may have put the host there is not known: kept apart, though a session is good enough for both.
    rig.pass(MINUTE);
    rig.submit("a@plain.example");
    assert_eq!(open(&mut rig).tlsa, None);
    rig.accept_all();
    assert_eq!(rig.last_line(), "60 delivered a@plain.example");
}

/// RFC 8689: what a session has proved of its own host says nothing of another domain's.
#[test]
fn a_shared_session_vouches_for_its_own_host_alone() {
    for implicit in [false, true] {
        let mut rig = Rig::new("");
        rig.answer_with("x.example", Ok(with(&route(&TWO[..1]), Some(set("mx1.x.example", 3, 1)))));
        let mut other = (*route(&[&[("y.example", &[ONE])]])).clone();
        if implicit {
            other.kind = crate::dns::RouteKind::Implicit;
        }
        rig.answer_with("y.example", Ok(Arc::new(other)));
        rig.submit("a@x.example");
        let (connection, _) = rig.opening();
        let opened = in_tls(Some(PeerCertificate::new(|_| false)));
        rig.tell(Event::Connected { connection, opened });
        assert!(rig.transacts[0].1.host_is_authentic);
        rig.accept_all();
        rig.pass(Duration::from_secs(1));
        rig.submit("a@y.example");
        assert_eq!(rig.dialled.len(), 1, "shared");
        assert!(!rig.transacts[0].1.host_is_authentic);
    }
}

/// A name server that was away once is no reason to believe a route for ever.
#[test]
fn routes_run_out_after_an_outage_too() {
    let hosts = short(&route(&TWO[..1]));
    let mut rig = Rig::new("connection-idle-timeout = \"10m\"");
    let away = crate::dns::RouteFailureKind::LookUp(crate::dns::DnsErrorKind::Unreachable);
    rig.answer_with("other.example", no_route(away));
    rig.submit("a@other.example");
    rig.answer_with("other.example", Ok(route(&[&[("mx.other.example", &[OTHER])]])));
    rig.pass(MINUTE);
    open(&mut rig);
    rig.accept_all();
    rig.answer_with("x.example", Ok(hosts.clone()));
    rig.submit("a@x.example");
    open(&mut rig);
    rig.accept_all();
    rig.answer_with("x.example", Ok(with(&hosts, Some(set("mx1.x.example", 3, 1)))));
    rig.pass(2 * MINUTE);
    rig.submit("b@x.example");
    assert!(open(&mut rig).tlsa.is_some());
}

/// A route, and the records in it, count no longer than DNS says: not even for who waited for its turn meanwhile, and keeps it.
#[test]
fn a_route_that_ran_out_in_line_is_looked_up_again() {
    for tlsa in [None, Some(set("mx1.x.example", 3, 1))] {
        let mut rig = Rig::with_policy("[engine]\nmax-connections = 1\n", Bounds::default());
        rig.answer_with("a.example", Ok(route(&[&[("mx.a.example", &[OTHER])]])));
        rig.submit("a@a.example");
        open(&mut rig);
        rig.answer_with("b.example", Ok(short(&with(&route(&TWO[..1]), tlsa))));
        rig.submit("b@b.example");
        for (domain, peer) in [("c.example", "198.51.100.3:25"), ("d.example", "198.51.100.4:25")] {
            rig.answer_with(domain, Ok(route(&[&[(&format!("mx.{domain}"), &[peer])]])));
            rig.submit(&format!("{}@{domain}", &domain[..1]));
        }
        rig.pass(2 * MINUTE);
        let looked_up =
            |rig: &Rig| rig.looked_up.iter().filter(|(_, domain, _)| domain == "b.example").count();
        let before = looked_up(&rig);
        rig.accept_all();
        while !rig.connects.is_empty() {
            open(&mut rig);
            rig.accept_all();
        }
        let expected = ["a", "b", "c", "d"].map(|name| format!("120 delivered {name}@{name}.example"));
        assert_eq!(rig.timeline(), expected, "{:?} {:?}", rig.looked_up, rig.dialled);
        assert_eq!(looked_up(&rig) - before, 1);
    }
}

/// No host may be used, as far as was found out: nothing goes over sessions that were opened before, not even while no name server can be
/// asked.
#[test]
fn sessions_end_when_no_host_may_be_used() {
    for kind in [RouteFailureKind::Dane, RouteFailureKind::MtaSts] {
        for is_opening in [false, true] {
            let mut rig = Rig::new("connection-idle-timeout = \"10m\"\nretry-after = [\"1m\"]");
            rig.answer_with("x.example", Ok(short(&route(&TWO[..1]))));
            rig.submit("a@x.example");
            open(&mut rig);
            let mut opening = None;
            if is_opening {
                // Another is opening when the route runs out, and this one is busy.
                rig.submit("b@x.example");
                rig.submit("c@x.example");
                opening = Some(rig.opening().0);
            } else {
                rig.accept_all();
            }
            rig.answer_with("x.example", no_route(kind));
            rig.pass(2 * MINUTE);
            rig.submit("d@x.example");
            rig.answer_with("x.example", no_route(RouteFailureKind::LookUp(DnsErrorKind::Unreachable)));
            if let Some(connection) = opening {
                rig.tell(Event::Connected { connection, opened: in_tls(None) });
            }
            if is_opening {
                assert_eq!(rig.accept_all(), 1, "it was under way");
            }
            for _ in 0..4 {
                rig.pass(MINUTE);
                rig.submit("e@x.example");
                rig.accept_all();
            }
            assert_eq!(rig.offered.len(), 1, "{kind:?} {is_opening}");
            rig.answer_with("x.example", Ok(route(&TWO[..1])));
            rig.pass(2 * MINUTE);
            while !rig.connects.is_empty() {
                open(&mut rig);
                rig.accept_all();
            }
            rig.accept_all();
            let delivered = rig.timeline().iter().filter(|line| line.contains("delivered")).count();
            assert_eq!(delivered, if is_opening { 8 } else { 6 }, "{kind:?} {:?}", rig.timeline());
        }
    }
}
