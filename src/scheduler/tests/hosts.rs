//! CONTROLS table 0: DNS, connect, greeting, EHLO, and MAIL refused with 421.

use std::time::Duration;

use super::harness::*;
use crate::dns::{DnsErrorKind, RouteFailureKind};
use crate::event::DeliveryEvent;
use crate::reply::Stage;
use crate::scheduler::Event;
use crate::transport::{ConnectError, EndCause, SessionEnd};

fn greeting(text: &str) -> EndCause {
    EndCause::Reply(reply(text))
}

fn two_hosts(rig: &mut Rig) {
    let hosts = route(&[
        &[("mx1.x.example", &["192.0.2.1:25", "192.0.2.2:25"])],
        &[("mx2.x.example", &["192.0.2.3:25"])],
    ]);
    rig.routes.insert("x.example".to_owned(), Ok(hosts));
}

#[test]
fn a_message_is_delivered_and_nothing_is_left() {
    let mut rig = Rig::new("");
    rig.submit("a@x.example");
    rig.connect();
    rig.accept();
    assert_eq!(rig.timeline(), ["0 delivered a@x.example"]);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

#[test]
fn failures_to_connect_go_on_to_the_next_address_in_the_same_attempt() {
    for cause in [
        EndCause::Broken("refused".to_owned()),
        EndCause::Timeout(MINUTE),
        EndCause::Closed,
        EndCause::Protocol("HTTP".to_owned()),
        greeting("421 busy"),
        greeting("554 no"),
    ] {
        let mut rig = Rig::new("");
        two_hosts(&mut rig);
        rig.submit("a@x.example");
        let mut tried = vec![rig.fail_connect(cause.clone()), rig.fail_connect(cause)];
        tried.sort();
        assert_eq!(tried, ["192.0.2.1:25".parse().unwrap(), "192.0.2.2:25".parse().unwrap()]);
        assert_eq!(rig.scheduler.open_connections(), 1, "under the same permit");
        let (connection, target) = rig.opening();
        assert_eq!((&*target.host, target.peer), ("mx2.x.example", "192.0.2.3:25".parse().unwrap()));
        rig.tell(Event::Connected { connection, opened: Default::default() });
        rig.accept();
        assert_eq!(rig.timeline(), ["0 delivered a@x.example"]);
    }
}

#[test]
fn no_address_left_is_the_destinations_step_and_nobody_is_charged() {
    let mut rig = Rig::new("retry-after = [\"5m\", \"10m\"]");
    two_hosts(&mut rig);
    rig.submit("a@x.example");
    rig.fail_connect(greeting("554 5.7.1 no"));
    rig.fail_connect(greeting("421 busy"));
    rig.refuse();
    assert_eq!(rig.timeline(), ["0 queue-deferred x.example 4.4.1"]);
    assert!(rig.connects.is_empty());
    rig.pass(5 * MINUTE);
    rig.connect();
    rig.transact(all_rcpts("450 4.2.0 later"));
    let Some(DeliveryEvent::Deferred(deferred)) = rig.events.last() else { panic!("{:?}", rig.last_line()) };
    assert_eq!(deferred.record.attempts, 1, "the step charged nobody");
}

/// As many as one attempt has.
#[test]
fn hosts_with_many_addresses_do_not_hide_the_next_ones() {
    let mut rig = Rig::new("");
    let many: Vec<String> = (1..=40).map(|n| format!("192.0.2.{n}:25")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (a, b) = many.split_at(20);
    let hosts = route(&[
        &[("a.x.example", a), ("b.x.example", b)],
        &[("none.x.example", &[])],
        &[("c.x.example", &["198.51.100.1:25"])],
        &[("d.x.example", &["198.51.100.2:25", "198.51.100.3:25"])],
    ]);
    rig.routes.insert("x.example".to_owned(), Ok(hosts));
    rig.submit("a@x.example");
    let mut tried = Vec::new();
    for _ in 0..32 {
        tried.push(rig.refuse().ip().to_string());
    }
    assert!(tried[..30].iter().all(|address| address.starts_with("192.0.2.")), "{tried:?}");
    assert_eq!(tried[30], "198.51.100.1");
    assert!(["198.51.100.2", "198.51.100.3"].contains(&&*tried[31]), "{tried:?}");
    assert_eq!(rig.timeline(), ["0 queue-deferred x.example 4.4.1"]);
}

#[test]
fn an_attempt_is_made_again_at_addresses_that_work_first() {
    let mut rig = Rig::new("max-msg-per-connection = 1");
    two_hosts(&mut rig);
    rig.submit("a@x.example");
    rig.refuse();
    rig.refuse();
    rig.connect();
    rig.accept();
    rig.submit("b@x.example");
    assert_eq!(rig.opening().1.peer, "192.0.2.3:25".parse().unwrap(), "dead ones come last");
}

#[test]
fn mail_421_on_a_new_session_counts_as_a_greeting() {
    let mut rig = Rig::new("");
    two_hosts(&mut rig);
    rig.submit("a@x.example");
    let first = rig.connect();
    rig.transact(sent_away);
    let second = rig.connect();
    assert_eq!(first, second, "the next address, under the same permit");
    rig.transact(sent_away);
    rig.connect();
    rig.transact(sent_away);
    assert_eq!(rig.timeline(), ["0 queue-deferred x.example 4.3.2"]);
}

#[test]
fn mail_421_on_a_session_that_worked_means_a_new_connection_at_once() {
    let mut rig = Rig::new("max-smtp-out = 1");
    rig.submit("a@x.example");
    rig.submit("b@x.example");
    rig.connect();
    rig.accept();
    rig.transact(sent_away);
    rig.connect();
    rig.accept();
    assert_eq!(rig.timeline(), ["0 delivered a@x.example", "0 delivered b@x.example"]);
}

#[test]
fn a_session_that_idled_may_be_gone() {
    for cause in [EndCause::Closed, greeting("421 idle")] {
        let mut rig = Rig::new("");
        rig.submit("a@x.example");
        rig.connect();
        rig.accept();
        rig.pass(Duration::from_secs(1));
        rig.submit("b@x.example");
        rig.transact(cut(cause));
        rig.connect();
        rig.accept();
        assert_eq!(rig.last_line(), "1 delivered b@x.example");
    }
}

#[test]
fn while_others_work_a_failure_shrinks_and_holds_off() {
    let mut rig = Rig::new("");
    for _ in 0..6 {
        rig.submit("a@x.example");
    }
    assert_eq!(rig.connects.len(), 1, "one finds out whether it works");
    rig.connect();
    assert_eq!(rig.connects.len(), 4, "a destination starts with a few");
    rig.refuse();
    assert_eq!(rig.timeline().len(), 0, "no step");
    while !rig.connects.is_empty() {
        rig.refuse();
    }
    // The one that works stays busy: no other connection before the hold-off's end.
    rig.pass(Duration::from_secs(30) - Duration::from_micros(1));
    assert!(rig.connects.is_empty());
    rig.pass(Duration::from_micros(1));
    // Shrunk to one by four failures, and that one is there.
    assert!(rig.connects.is_empty());
    rig.accept();
    rig.accept();
    assert_eq!(rig.connects.len(), 1, "it has grown again");
    rig.refuse();
    rig.pass(MINUTE - Duration::from_micros(1));
    assert!(rig.connects.is_empty());
    assert_eq!(rig.accept_all(), 4);
    assert!(rig.timeline().iter().all(|line| line.contains("delivered")), "{:?}", rig.timeline());
}

#[test]
fn hold_offs_double() {
    let mut rig = Rig::new("max-smtp-out = 2");
    (0..9).for_each(|_| {
        rig.submit("a@x.example");
    });
    rig.connect();
    rig.refuse();
    let mut waited = Vec::new();
    for _ in 0..3 {
        let before = rig.now;
        while rig.connects.is_empty() {
            rig.next_timer();
        }
        waited.push(rig.now.saturating_since(before).as_secs());
        rig.refuse();
    }
    assert_eq!(waited, [30, 60, 120]);
}

/// One may yet be taken: the last of those opened together decides.
#[test]
fn parallel_failures_are_one_step() {
    let mut rig = Rig::new("retry-after = [\"5m\", \"10m\", \"1h\"]");
    (0..20).for_each(|_| {
        rig.submit("a@x.example");
    });
    rig.connect();
    rig.transact(cut(EndCause::Closed));
    for _ in 0..4 {
        assert_eq!(rig.timeline().len(), 1);
        rig.refuse();
    }
    assert_eq!(rig.timeline().get(1..), Some(&["0 queue-deferred x.example 4.4.1".to_owned()][..]));
    assert!(rig.connects.is_empty());
    rig.pass(5 * MINUTE);
    assert_eq!(rig.connects.len(), 1);
    rig.refuse();
    rig.pass(10 * MINUTE);
    assert_eq!(rig.connects.len(), 1, "the second interval, not the sixth");
}

#[test]
fn hosts_that_take_no_mail() {
    for (settings, greetings, expected) in [
        ("", ["521 5.3.2 no mail", "521 no"], "0 bounced a@x.example 5.0.0"),
        ("", ["554 no", "521 no"], "0 queue-deferred x.example 5.0.0"),
        ("bounce-upon-5xx-greeting = true", ["554 5.7.1 no", "550 5.7.2 no"], "0 bounced a@x.example 5.7.2"),
        ("bounce-upon-5xx-greeting = true", ["421 busy", "550 5.7.2 no"], "0 queue-deferred x.example 5.7.2"),
        ("bounce-upon-5xx-greeting = false", ["554 no", "550 5.7.2 no"], "0 queue-deferred x.example 5.7.2"),
    ] {
        let mut rig = Rig::new(settings);
        let hosts = route(&[&[("mx1", &["192.0.2.1:25"])], &[("mx2", &["192.0.2.2:25"])]]);
        rig.routes.insert("x.example".to_owned(), Ok(hosts));
        rig.submit("a@x.example");
        greetings.into_iter().for_each(|text| {
            rig.fail_connect(greeting(text));
        });
        assert_eq!(rig.timeline(), [expected], "{settings} {greetings:?}");
        if let Some(DeliveryEvent::Bounced(bounced)) = rig.events.last() {
            assert_eq!(bounced.record.attempts, 0);
        }
    }
}

#[test]
fn local_trouble_rests_the_source_and_takes_no_step() {
    let mut rig = Rig::new("");
    two_hosts(&mut rig);
    rig.submit("a@x.example");
    for _ in 0..3 {
        rig.fail_connect(EndCause::Local("no descriptor left".to_owned()));
    }
    assert_eq!(rig.timeline(), ["0 local-trouble"]);
    rig.submit("a@y.example");
    assert!(rig.connects.is_empty(), "the source rests for all destinations");
    rig.pass(Duration::from_secs(30) - Duration::from_micros(1));
    assert!(rig.connects.is_empty());
    rig.pass(Duration::from_micros(1));
    assert_eq!(rig.connects.len(), 2);
    assert_eq!(rig.accept_all(), 2);
    let Some(DeliveryEvent::Delivered(delivered)) = rig.events.last() else { panic!() };
    assert_eq!((delivered.record.attempts, rig.timeline().len()), (1, 3));
}

#[test]
fn local_trouble_in_a_transaction_charges_nobody() {
    let mut rig = Rig::new("");
    rig.submit("a@x.example");
    rig.connect();
    rig.transact(cut(EndCause::Local("x".to_owned())));
    assert_eq!(rig.timeline(), ["0 local-trouble"]);
    rig.pass(Duration::from_secs(30));
    assert_eq!(rig.accept_all(), 1);
}

#[test]
fn a_failed_look_up_is_a_step_and_nobody_is_charged() {
    let mut rig = Rig::new("retry-after = [\"5m\", \"10m\"]");
    rig.routes.insert("x.example".to_owned(), no_route(SERVFAIL));
    rig.submit("a@x.example");
    rig.pass(15 * MINUTE);
    let expected = ["0", "300", "900"].map(|at| format!("{at} queue-deferred x.example 4.4.3"));
    assert_eq!(rig.timeline(), expected);
    rig.routes.clear();
    rig.pass(10 * MINUTE);
    rig.connect();
    rig.accept();
    let Some(DeliveryEvent::Delivered(delivered)) = rig.events.last() else { panic!() };
    assert_eq!(delivered.record.attempts, 1);
}

#[test]
fn an_unreachable_resolver_is_local_trouble() {
    let mut rig = Rig::new("");
    let kind = RouteFailureKind::LookUp(DnsErrorKind::Unreachable);
    rig.routes.insert("x.example".to_owned(), no_route(kind));
    rig.submit("a@x.example");
    assert_eq!(rig.timeline(), ["0 local-trouble"]);
    rig.routes.clear();
    rig.pass(Duration::from_secs(30));
    assert_eq!(rig.accept_all(), 1);
}

#[test]
fn domains_that_take_no_mail_bounce_uncharged() {
    for (kind, status) in [
        (RouteFailureKind::NxDomain, "5.1.2 nxdomain"),
        (RouteFailureKind::NullMx, "5.1.10 null-mx"),
        (RouteFailureKind::NoHost, "5.4.4 no-host"),
        (RouteFailureKind::MailLoop, "5.4.6 mail-loop"),
    ] {
        let mut rig = Rig::new("");
        rig.routes.insert("x.example".to_owned(), no_route(kind));
        rig.submit_to(&["a@x.example", "b@x.example"]);
        let expected = ["a", "b"].map(|local| format!("0 bounced {local}@x.example {status}"));
        assert_eq!(rig.timeline(), expected);
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn a_session_that_ends_under_an_order_charges_nobody() {
    let mut rig = Rig::new("");
    rig.submit("a@x.example");
    rig.connect();
    rig.accept();
    rig.pass(Duration::from_secs(1));
    rig.submit("b@x.example");
    let (connection, _) = rig.transacts.pop_front().unwrap();
    let end = SessionEnd { stage: Stage::Mail, cause: EndCause::Closed };
    rig.tell(Event::SessionEnded { connection, end });
    assert_eq!(rig.accept_all(), 1);
    assert_eq!(rig.timeline(), ["0 delivered a@x.example", "1 delivered b@x.example"]);
}

/// Not tried again and again at once.
#[test]
fn a_server_that_greets_and_goes_counts_as_one_that_does_not_greet() {
    let mut rig = Rig::new("");
    rig.submit("a@x.example");
    rig.connect();
    let (connection, _) = rig.transacts.pop_front().unwrap();
    let end = SessionEnd { stage: Stage::Mail, cause: EndCause::Closed };
    rig.tell(Event::SessionEnded { connection, end });
    assert_eq!(rig.timeline(), ["0 queue-deferred x.example 4.4.1"]);
    assert!(rig.connects.is_empty());
    rig.pass(10 * MINUTE);
    assert_eq!(rig.accept_all(), 1);
}

#[test]
fn a_failure_reported_for_a_connection_that_is_gone_changes_nothing() {
    let mut rig = Rig::new("");
    rig.submit("a@x.example");
    let connection = rig.connect();
    rig.accept();
    rig.pass(MINUTE);
    let error = ConnectError { stage: Stage::Ehlo, cause: EndCause::Closed };
    rig.tell(Event::ConnectFailed { connection, error });
    rig.tell(Event::Closed { connection });
    rig.tell(Event::Connected { connection, opened: Default::default() });
    rig.scheduler.assert_empty();
}
