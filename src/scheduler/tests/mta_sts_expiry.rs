//! RFC 8461 §5.1: mail that is about to expire over a policy has it looked for first.

use std::sync::Arc;
use std::time::Duration;

use super::harness::*;
use super::mta_sts::{ONE, OTHER, PROVIDER, enforced, one_host, open, tls_failed};
use crate::dns::{DnsErrorKind, Route, RouteFailure, RouteFailureKind};
use crate::event::{DeliveryEvent, Reason};
use crate::policy::StartTls;
use crate::scheduler::Bounds;
use crate::transport::EndCause;

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

/// An engine with mail that an earlier one held over a policy. It expires after a day, long before its next interval.
fn restarted_over_a_policy() -> Rig {
    let settings = "[domain.\"*\"]\nbounce-after = \"1d\"\nretry-after = [\"30h\"]";
    let mut rig = Rig::with_policy(settings, Bounds::default());
    rig.answer_with("x.example", one_host(&["mx.x.example"]));
    rig.submit("a@x.example");
    rig.fail_connect(tls_failed());
    rig.pass(HOUR);
    rig.restarted(settings)
}

/// That the policy bars a host outlives a restart too, whatever the others were met with.
#[test]
fn a_policy_that_bars_a_host_is_looked_for_after_a_restart() {
    let two: &[&[(&str, &[&str])]] = &[&[("mx1.x.example", &[ONE])], &[("mx2.x.example", &[OTHER])]];
    let settings = "[domain.\"*\"]\nbounce-after = \"1d\"\nretry-after = [\"30h\"]";
    for (mx, looks) in [("mx1.x.example", 1), ("*.x.example", 0)] {
        let mut rig = Rig::with_policy(settings, Bounds::default());
        rig.answer_with("x.example", enforced(two, &[mx]));
        rig.submit("a@x.example");
        while !rig.connects.is_empty() {
            rig.fail_connect(EndCause::Broken("refused".into()));
        }
        rig.pass(HOUR);
        let mut rig = rig.restarted(settings);
        rig.pass(24 * HOUR);
        assert_eq!(rig.fresh_look_ups().len(), looks, "{mx}");
    }
}

#[test]
fn a_fresh_policy_is_looked_for_after_a_restart_too() {
    let mut rig = restarted_over_a_policy();
    rig.answer_with("x.example", Ok(route(&[&[("mx.x.example", &[ONE])]])));
    rig.pass(24 * HOUR);
    assert_eq!(rig.fresh_look_ups().len(), 1);
    assert!(!rig.connects.is_empty());
}

/// After a restart it is not known what the policy was, only that mail waits for it: DNS that fails must not take that away.
#[test]
fn a_look_that_fails_after_a_restart_is_made_again() {
    let mut rig = restarted_over_a_policy();
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

/// A refusal by another host of the route does not make it forget that it waits for the policy.
#[test]
fn one_host_held_for_the_policy_is_enough_to_look_for_another() {
    let two: &[&[(&str, &[&str])]] = &[&[("mx1.x.example", &[ONE])], &[("mx2.x.example", &[OTHER])]];
    let broken = || EndCause::Broken("refused".into());
    let rows: [(&[&str], Vec<EndCause>, Reason); 4] = [
        (&["*.x.example"], vec![tls_failed(), broken()], Reason::MtaSts),
        (&["*.x.example"], vec![broken(), tls_failed()], Reason::MtaSts),
        // The policy bars a host that might do.
        (&["mx1.x.example"], vec![broken()], Reason::ConnectionFailed),
        (&["*.x.example"], vec![broken(), broken()], Reason::ConnectionFailed),
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
            // To look is to try nothing.
            let steps = rig.timeline().iter().filter(|line| line.contains("queue-deferred")).count();
            assert_eq!(steps, if retry == "30h" { 1 } else { 2 }, "{n}: {:?}", rig.timeline());
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

/// Back from the rollup its mail waits over DNS, at its own home: that takes one step however often it is looked for, and goes on when
/// the policy says something else, in the rollup or not.
#[test]
fn a_home_that_took_a_domain_back_keeps_still_and_is_released() {
    let settings = format!("{PROVIDER}[domain.\"*\"]\nbounce-after = \"1d\"\nretry-after = [\"30h\"]");
    let of_rollup: &[&[(&str, &[&str])]] = &[&[("mx.p.example", &[ONE])]];
    let own: &[&[(&str, &[&str])]] = &[&[("mx.x.example", &[OTHER])]];
    for then in [Ok(route(own)), enforced(own, &["mx.x.example"]), Ok(route(of_rollup))] {
        let mut rig = Rig::with_policy(&settings, Bounds::default());
        rig.answer_with("x.example", enforced(of_rollup, &["mx.p.example"]));
        rig.submit("a@x.example");
        rig.fail_connect(tls_failed());
        rig.answer_with("x.example", no_route(RouteFailureKind::LookUp(DnsErrorKind::ServFail)));
        rig.pass(Duration::from_secs(86_400 - 601 + 5 * 60));
        assert!((4..=6).contains(&rig.fresh_look_ups().len()), "{:?}", rig.fresh_look_ups());
        let deferred = ["0 queue-deferred x.example 4.7.5", "85800 queue-deferred x.example 4.4.3"];
        assert_eq!(rig.timeline(), deferred);
        rig.answer_with("x.example", then);
        rig.pass(MINUTE);
        open(&mut rig);
        rig.accept_all();
        assert!(rig.last_line().ends_with("delivered a@x.example"), "{:?}", rig.timeline());
        rig.pass(31 * HOUR);
        rig.scheduler.assert_empty();
    }
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
