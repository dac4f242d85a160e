//! CONTROLS §1: what DNS says of a domain, and what becomes of its mail.

use std::time::Duration;

use super::harness::*;
use super::mta_sts::{one_host, short, tls_failed};
use crate::dns::{DnsErrorKind, Freshness, RouteFailureKind};
use crate::event::{Category, Failure, Reason};
use crate::message::Message;
use crate::reply::Stage;
use crate::scheduler::{Bounds, Event};
use crate::transport::ConnectError;

const MICRO: Duration = Duration::from_micros(1);
const HOUR_OF_NO_MX: &str = "bounce-upon-no-mx = \"1h\"\nretry-after = [\"10m\"]";

fn mx(domain: &str) -> Result<std::sync::Arc<crate::dns::Route>, crate::dns::RouteFailure> {
    Ok(route(&[&[(&format!("mx.{domain}"), &[&address_of(domain)])]]))
}

#[test]
fn what_dns_does_not_have_bounces_by_its_setting() {
    let failure = no_route;
    for (settings, answer, expected) in [
        ("", implicit("x.example"), "0 delivered a@x.example"),
        ("bounce-upon-no-mx = false", implicit("x.example"), "0 delivered a@x.example"),
        ("bounce-upon-no-mx = true", implicit("x.example"), "0 bounced a@x.example 5.4.4 no-mx"),
        ("bounce-upon-no-mx = \"1h\"", implicit("x.example"), "0 delivered a@x.example"),
        ("", failure(RouteFailureKind::NullMx), "0 bounced a@x.example 5.1.10 null-mx"),
        (
            "bounce-upon-nxdomain = \"1h\"",
            failure(RouteFailureKind::NullMx),
            "0 bounced a@x.example 5.1.10 null-mx",
        ),
        ("", failure(RouteFailureKind::NxDomain), "0 bounced a@x.example 5.1.2 nxdomain"),
        ("", failure(RouteFailureKind::NoHost), "0 bounced a@x.example 5.4.4 no-host"),
        ("", failure(RouteFailureKind::MailLoop), "0 bounced a@x.example 5.4.6 mail-loop"),
        (
            "bounce-upon-nxdomain = \"1h\"",
            failure(RouteFailureKind::NxDomain),
            "0 queue-deferred x.example 4.1.2",
        ),
        (
            "bounce-upon-nxdomain = \"1h\"",
            failure(RouteFailureKind::NoHost),
            "0 queue-deferred x.example 4.4.4",
        ),
        ("bounce-upon-no-mx = true", failure(SERVFAIL), "0 queue-deferred x.example 4.4.3"),
        (
            "bounce-upon-no-mx = true",
            failure(RouteFailureKind::LookUp(DnsErrorKind::Timeout)),
            "0 queue-deferred x.example 4.4.3",
        ),
        (
            "bounce-upon-no-mx = true",
            failure(RouteFailureKind::NoAddress),
            "0 queue-deferred x.example 4.4.4",
        ),
        ("bounce-upon-no-mx = true", mx("x.example"), "0 delivered a@x.example"),
    ] {
        let mut rig = Rig::new(settings);
        rig.answer_with("x.example", answer);
        rig.submit("a@x.example");
        rig.accept_all();
        assert_eq!(rig.timeline(), [expected], "{settings}");
    }
}

#[test]
fn a_bounce_by_dns_is_asked_for_once_more_past_the_cache() {
    let mut rig = Rig::new("bounce-upon-no-mx = true");
    rig.by_hand.resolve = true;
    rig.answer_with("x.example", implicit("x.example"));
    rig.submit("a@x.example");
    rig.resolve();
    assert!(rig.timeline().is_empty());
    rig.answer_with("x.example", mx("x.example"));
    rig.resolve();
    assert_eq!(rig.accept_all(), 1, "the cache was wrong");
    let how: Vec<_> = rig.looked_up.iter().map(|look_up| look_up.2).collect();
    assert_eq!(how, [Freshness::Cached, Freshness::Fresh]);
}

#[test]
fn no_mx_bounces_each_message_at_its_own_age() {
    let mut rig = Rig::new(HOUR_OF_NO_MX);
    rig.answer_with("x.example", implicit("x.example"));
    rig.submit("a@x.example");
    rig.connect();
    rig.transact(all_rcpts("450 4.2.0 later"));
    rig.pass(5 * MINUTE);
    rig.submit("b@x.example");
    rig.connect();
    rig.transact(all_rcpts("450 4.2.0 later"));
    // To the microsecond, and though the next retries lie later.
    while rig.wanted_by(3900) {
        while !rig.connects.is_empty() {
            rig.connect();
        }
        while !rig.transacts.is_empty() {
            rig.transact(all_rcpts("450 4.2.0 later"));
        }
    }
    let bounces: Vec<_> = rig.timeline().into_iter().filter(|line| line.contains("bounced")).collect();
    assert_eq!(bounces, ["3600 bounced a@x.example 5.4.4 no-mx", "3900 bounced b@x.example 5.4.4 no-mx"]);
    assert_eq!(rig.fresh_look_ups(), [3600, 3900]);
    let diagnosis = &rig.bounced().diagnosis;
    assert_eq!((diagnosis.stage, diagnosis.category()), (Stage::Dns, Category::RoutingErrors));
    let Failure::Engine(words) = &diagnosis.failure else { panic!() };
    assert!(words.contains("bounce-upon-no-mx = 1h"), "{words}");
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

#[test]
fn a_deadline_comes_before_the_destinations_retry_and_over_restarts() {
    for restarts in [false, true] {
        let settings = "bounce-upon-no-mx = \"1h\"\nretry-after = [\"7h\"]";
        let mut rig = Rig::new(settings);
        rig.answer_with("x.example", implicit("x.example"));
        rig.submit("a@x.example");
        rig.refuse();
        rig.pass(MINUTE);
        if restarts {
            rig = rig.restarted(&format!("[domain.\"*\"]\n{settings}"));
        }
        rig.pass(59 * MINUTE - MICRO);
        assert!(rig.connects.is_empty() && !rig.last_line().contains("bounced"));
        rig.pass(MICRO);
        assert_eq!(rig.last_line(), "3600 bounced a@x.example 5.4.4 no-mx", "restarts: {restarts}");
        assert_eq!(rig.fresh_look_ups(), [3600]);
        rig.pass(7 * HOUR);
        rig.scheduler.assert_empty();
        let rows = futures::FutureExt::now_or_never(crate::storage::Storage::state(&rig.store, None, 10));
        assert_eq!(rows.unwrap().unwrap().len(), 0, "the row is gone");
    }
}

#[test]
fn a_domain_that_gained_an_mx_meanwhile_is_delivered() {
    for (settings, before) in [
        ("bounce-upon-no-mx = \"1h\"\nretry-after = [\"7h\"]", implicit("x.example")),
        ("bounce-upon-nxdomain = \"1h\"\nretry-after = [\"7h\"]", no_route(RouteFailureKind::NxDomain)),
    ] {
        let mut rig = Rig::new(settings);
        rig.answer_with("x.example", before);
        rig.submit("a@x.example");
        if !rig.connects.is_empty() {
            rig.refuse();
        }
        rig.pass(30 * MINUTE);
        rig.answer_with("x.example", mx("x.example"));
        rig.pass(30 * MINUTE);
        assert_eq!(rig.accept_all(), 1, "{settings}");
        assert_eq!(rig.last_line(), "3600 delivered a@x.example");
        rig.pass(8 * HOUR);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn nxdomain_is_deferred_without_connections_until_its_age() {
    let mut rig = Rig::new("bounce-upon-nxdomain = \"25m\"\nretry-after = [\"10m\"]");
    rig.answer_with("x.example", no_route(RouteFailureKind::NxDomain));
    rig.submit("a@x.example");
    rig.pass(HOUR);
    assert_eq!(
        rig.timeline(),
        [
            "0 queue-deferred x.example 4.1.2",
            "600 queue-deferred x.example 4.1.2",
            "1200 queue-deferred x.example 4.1.2",
            "1500 bounced a@x.example 5.1.2 nxdomain",
        ]
    );
    assert_eq!(rig.bounced().diagnosis.category(), Category::BadDomain);
    assert_eq!(rig.bounced().record.attempts, 0, "nobody was charged");
    assert!(rig.connects.is_empty());
    rig.scheduler.assert_empty();
}

/// What DNS can not say for the moment is never "no MX": its mail waits for the retry step.
#[test]
fn a_look_up_that_fails_at_the_deadline_is_retried_by_the_clock() {
    let mut rig = Rig::new(HOUR_OF_NO_MX);
    rig.answer_with("x.example", implicit("x.example"));
    rig.submit("a@x.example");
    rig.connect();
    rig.transact(all_rcpts("450 4.2.0 later"));
    rig.pass(5 * MINUTE);
    rig.submit("b@x.example");
    rig.refuse();
    rig.answer_with("x.example", no_route(SERVFAIL));
    while rig.wanted_by(2 * 3600) {
        rig.refuse();
    }
    let asked = rig.fresh_look_ups();
    assert_eq!((asked[0], asked[1]), (3600, 4200), "at the deadline, and then by the clock");
    assert!(asked.len() <= 8, "{asked:?}");
    assert!(!rig.timeline().iter().any(|line| line.contains("bounced")));
    rig.answer_with("x.example", implicit("x.example"));
    rig.pass(10 * MINUTE);
    let bounces = rig.timeline().iter().filter(|line| line.contains("bounced")).count();
    assert_eq!(bounces, 2, "{:?}", rig.timeline());
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

/// A domain that was missing, and has hosts again that its policy forbids; one that is missing, of which nothing more is said, while its
/// mail waits for the policy.
#[test]
fn mail_that_waits_for_its_policy_at_the_deadline_is_looked_up_by_the_clock() {
    let settings = "bounce-upon-nxdomain = \"25m\"\nretry-after = [\"10m\"]";
    for had_policy in [false, true] {
        let mut rig = Rig::new(settings);
        if had_policy {
            rig.answer_with("x.example", one_host(&["mx.x.example"]).map(short));
        } else {
            rig.answer_with("x.example", no_route(RouteFailureKind::NxDomain));
        }
        rig.submit("a@x.example");
        if had_policy {
            let (connection, _) = rig.opening();
            let error = ConnectError { stage: Stage::Ehlo, cause: tls_failed() };
            rig.tell(Event::ConnectFailed { connection, error });
            rig.answer_with("x.example", no_route(RouteFailureKind::NxDomain));
            rig.pass(15 * MINUTE);
            rig.answer_with("x.example", no_route(SERVFAIL));
        } else {
            rig.pass(5 * MINUTE);
            rig.answer_with("x.example", one_host(&["mx.y.example"]));
        }
        rig.pass(HOUR);
        let asked = rig.fresh_look_ups();
        assert!((1..=8).contains(&asked.len()), "{had_policy} {asked:?}");
        assert!(!rig.timeline().iter().any(|line| line.contains("bounced")), "{:?}", rig.timeline());
    }
}

#[test]
fn no_name_server_at_the_deadline_costs_nothing_and_is_asked_again() {
    let mut rig = Rig::new("bounce-upon-no-mx = \"1h\"\nretry-after = [\"7h\"]");
    rig.answer_with("x.example", implicit("x.example"));
    rig.submit("a@x.example");
    rig.refuse();
    rig.answer_with("x.example", no_route(RouteFailureKind::LookUp(DnsErrorKind::Unreachable)));
    rig.pass(HOUR + 10 * MINUTE);
    let asked = rig.fresh_look_ups().len();
    assert!((10..=22).contains(&asked), "every half a minute: {asked}");
    assert!(!rig.last_line().contains("bounced"));
    rig.answer_with("x.example", implicit("x.example"));
    rig.pass(MINUTE);
    assert!(rig.last_line().contains("bounced a@x.example 5.4.4 no-mx"), "{:?}", rig.timeline());
    rig.pass(8 * HOUR);
    rig.scheduler.assert_empty();
}

#[test]
fn a_live_host_is_kept_until_expiry_if_wanted() {
    for (keep, restarts) in [(false, false), (true, false), (true, true)] {
        let setting = if keep { "no-mx-live-host = \"keep\"\n" } else { "" };
        let settings =
            format!("{setting}bounce-upon-no-mx = \"1h\"\nbounce-after = \"3h\"\nretry-after = [\"50m\"]\n");
        let mut rig = Rig::new(&settings);
        rig.answer_with("x.example", implicit("x.example"));
        rig.submit("a@x.example");
        rig.connect();
        rig.transact(all_rcpts("450 4.2.0 later"));
        rig.pass(10 * MINUTE);
        if restarts {
            rig = rig.restarted(&format!("[domain.\"*\"]\n{settings}"));
        }
        rig.pass(40 * MINUTE);
        rig.refuse();
        rig.pass(3 * HOUR);
        let expected =
            if keep { "10800 bounced a@x.example 4.4.7" } else { "3600 bounced a@x.example 5.4.4 no-mx" };
        assert_eq!(rig.last_line(), expected, "restarts: {restarts}");
    }
}

/// The session was another domain's of the same address: the host is no less alive.
#[test]
fn a_live_host_is_known_by_a_session_taken_over() {
    let mut rig = Rig::new(
        "no-mx-live-host = \"keep\"\nbounce-upon-no-mx = \"1h\"\nbounce-after = \"3h\"\nretry-after = [\"50m\"]",
    );
    let own = implicit("x.example");
    let shared = own.as_ref().unwrap().hosts[0].addresses[0].to_string();
    rig.answer_with("x.example", own);
    rig.lead_to("y.example", "mx.y.example", &[&shared]);
    rig.submit("a@y.example");
    rig.accept_all();
    rig.submit("a@x.example");
    rig.transact(all_rcpts("450 4.2.0 later"));
    assert_eq!(rig.dialled.len(), 1, "one session served both");
    rig.pass(50 * MINUTE);
    rig.refuse();
    rig.pass(3 * HOUR);
    assert_eq!(rig.last_line(), "10800 bounced a@x.example 4.4.7");
}

#[test]
fn a_host_that_never_greeted_is_not_kept() {
    let mut rig = Rig::new("no-mx-live-host = \"keep\"\nbounce-upon-no-mx = \"1h\"\nretry-after = [\"50m\"]");
    rig.answer_with("x.example", implicit("x.example"));
    rig.submit("a@x.example");
    rig.refuse();
    rig.pass(HOUR);
    assert_eq!(rig.last_line(), "3600 bounced a@x.example 5.4.4 no-mx");
}

#[test]
fn if_expiry_comes_first_it_wins() {
    let mut rig = Rig::new(HOUR_OF_NO_MX);
    rig.answer_with("x.example", implicit("x.example"));
    let mut message = Message::new("", ["a@x.example"], "x").unwrap();
    message.expires_after = Some(HOUR);
    rig.submit_message(message.clone());
    message.expires_after = Some(30 * MINUTE);
    rig.submit_message(message);
    while rig.elapsed() < 3600 {
        rig.refuse();
        rig.pass(10 * MINUTE);
    }
    let bounces: Vec<_> = rig.timeline().into_iter().filter(|line| line.contains("bounced")).collect();
    assert_eq!(bounces.len(), 2);
    assert!(bounces.iter().all(|line| line.contains("bounced a@x.example 4.4.7")), "{bounces:?}");
    assert!(bounces[0].starts_with("1800 ") && bounces[1].starts_with("3600 "), "{bounces:?}");
}

#[test]
fn many_old_messages_bounce_with_one_look_up() {
    let mut rig = Rig::new(HOUR_OF_NO_MX);
    rig.check_every = 50;
    rig.answer_with("x.example", implicit("x.example"));
    (0..400).for_each(|n| {
        rig.submit(&format!("a{n}@x.example"));
    });
    while rig.elapsed() < 3600 {
        rig.refuse();
        rig.pass(10 * MINUTE);
    }
    let bounces = rig.timeline().iter().filter(|line| line.ends_with("5.4.4 no-mx")).count();
    assert_eq!(bounces, 400);
    assert_eq!(rig.fresh_look_ups(), [3600]);
}

/// What DNS says to bounce at once waits for somebody's word; what it says to bounce at an age is tried on.
#[test]
fn past_the_fuse_what_dns_would_bounce_is_held() {
    for settings in [
        "bounce-upon-no-mx = \"1h\"",
        "bounce-upon-no-mx = true",
        "bounce-upon-nxdomain = \"1h\"\nno-mx-live-host = \"bounce\"",
    ] {
        let mut rig = Rig::with_policy(
            &format!("[domain.\"*\"]\n{settings}\nbounce-fuse = \"2/1h\"\nbounce-after = \"5h\""),
            Bounds::default(),
        );
        let is_nxdomain = settings.contains("nxdomain");
        let answer = if is_nxdomain { no_route(RouteFailureKind::NxDomain) } else { implicit("x.example") };
        rig.answer_with("x.example", answer);
        (0..4).for_each(|n| {
            rig.submit(&format!("a{n}@x.example"));
        });
        while rig.elapsed() < 3 * 3600 {
            while !rig.connects.is_empty() {
                rig.refuse();
            }
            rig.pass(10 * MINUTE);
        }
        let lines = rig.timeline();
        let count = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
        assert_eq!((count("bounced"), count("fuse-blown")), (2, 1), "{lines:?}");
        assert_eq!(count(" deferred a"), 2, "{lines:?}");
        let reason = if is_nxdomain { Reason::NxDomain } else { Reason::NoMx };
        assert_eq!(rig.deferred().diagnosis.reason, reason);
        assert_eq!(rig.deferred().next_attempt, start() + 5 * HOUR, "none before it expires");
        rig.pass(3 * HOUR);
        let expired = rig.timeline().iter().filter(|line| line.contains("4.4.7")).count();
        assert_eq!(expired, 2, "{settings}: {:?}", rig.timeline());
    }
}
