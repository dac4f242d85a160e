//! Which queue a domain's mail is in, by its MX hosts (CONTROLS §5).

use std::sync::Arc;
use std::time::Duration;

use super::harness::*;
use crate::dns::{Route, RouteKind};
use crate::event::DeliveryEvent;
use crate::scheduler::Bounds;

const ADDRESS: &str = "198.51.100.1:25";

fn rig(policy: &str) -> Rig {
    Rig::with_policy(policy, Bounds::default())
}

fn rollup(queue: &str, mx: &str) -> String {
    format!("[[rollup]]\nqueue = \"{queue}.rollup\"\nmx = {mx}\n")
}

/// `10 mx1, 20 mx2` as a route; each host at [`address_of`] its name.
fn records(text: &str) -> Arc<Route> {
    let mut levels: std::collections::BTreeMap<u16, Vec<(&str, String)>> = Default::default();
    for record in text.split(", ") {
        let (preference, host) = record.split_once(' ').unwrap();
        levels.entry(preference.parse().unwrap()).or_default().push((host, address_of(host)));
    }
    let owned: Vec<Vec<(&str, Vec<&str>)>> = levels
        .values()
        .map(|hosts| hosts.iter().map(|(host, address)| (*host, vec![address.as_str()])).collect())
        .collect();
    let hosts: Vec<Vec<(&str, &[&str])>> =
        owned.iter().map(|level| level.iter().map(|(h, a)| (*h, a.as_slice())).collect()).collect();
    let preferences: Vec<&[(&str, &[&str])]> = hosts.iter().map(Vec::as_slice).collect();
    route(&preferences)
}

/// Of the last message delivered: its queue, host and attempts.
fn last_delivery(rig: &Rig) -> (String, String, u32) {
    let delivered = rig.events.iter().rev().find_map(|event| match event {
        DeliveryEvent::Delivered(e) => Some(&e.record),
        _ => None,
    });
    let record = delivered.expect("a delivery");
    (record.queue.to_string(), record.mx.as_deref().unwrap_or_default().to_owned(), record.attempts)
}

/// Rule's hosts, what DNS has, the queue, the hosts in the order they are tried.
#[test]
fn rules_and_records() {
    let p = "p.rollup";
    for (mx, dns, queue, tried) in [
        (r#"["mx1", "mx2"]"#, "10 mx1, 10 mx2", p, "mx1 mx2"),
        (r#"["mx1", "mx2"]"#, "10 mx1, 20 mx2", "x.example", "mx1|mx2"),
        (r#"["mx1", "mx2"]"#, "10 mx1, 10 mx2, 10 mx3", p, "mx1 mx2|mx3"),
        (r#"["mx1", "mx2"]"#, "10 mx1", "x.example", "mx1"),
        (r#"["mx1"]"#, "10 mx1, 10 mx2", p, "mx1|mx2"),
        (r#"["mx1"]"#, "10 mx1, 20 mx2, 30 mx3", p, "mx1|mx2|mx3"),
        (r#"["mx1"]"#, "10 mx1, 20 mx1", p, "mx1"),
        (r#"["mx1", "mx2"]"#, "10 mx1.mail.example", "x.example", "mx1.mail.example"),
        (r#"["MX1."]"#, "10 mx1", p, "mx1"),
        (r#"["*.p.example"]"#, "10 mx1.p.example, 10 mx.other", "x.example", "mx1.p.example mx.other"),
        (r#"["*.p.example"]"#, "10 mx1.p.example, 20 mx.other", p, "mx1.p.example|mx.other"),
        (r#"["*.p.example"]"#, "10 a.b.p.example, 10 c.p.example", p, "a.b.p.example c.p.example"),
        (r#"["*.p.example"]"#, "10 p.example", "x.example", "p.example"),
        ("\"*.p.example\"\nmatch = \"any\"", "10 mx.p.example, 10 mx.other", p, "mx.p.example mx.other"),
        (
            "\"*.p.example\"\nmatch = \"all\"",
            "10 mx.p.example, 20 mx.other",
            "x.example",
            "mx.p.example|mx.other",
        ),
    ] {
        let mut rig = rig(&rollup("p", mx));
        rig.routes.insert("x.example".to_owned(), Ok(records(dns)));
        rig.submit("u@x.example");
        let mut order = Vec::new();
        while let Some((_, target)) = rig.connects.front() {
            order.push(target.host.to_string());
            rig.refuse();
        }
        let mut hosts = order.iter();
        for level in tried.split('|') {
            let mut want: Vec<&str> = level.split(' ').collect();
            let mut got: Vec<&str> = hosts.by_ref().take(want.len()).map(String::as_str).collect();
            want.sort_unstable();
            got.sort_unstable();
            assert_eq!(got, want, "{mx} for {dns}: {order:?}");
        }
        assert_eq!(hosts.next(), None, "{mx} for {dns}: {order:?}");
        rig.pass(HOUR);
        rig.accept_all();
        assert_eq!(last_delivery(&rig).0, queue, "{mx} for {dns}");
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
    }
}

/// The first rule wins, and what is said of one domain goes before rules.
#[test]
fn what_goes_before_what() {
    let any = rollup("any", "\"*.example\"");
    let mx = rollup("mx", "\"mx.p.example\"");
    for (name, policy, queue) in [
        ("first", format!("{mx}{any}"), "mx.rollup"),
        ("order", format!("{any}{mx}"), "any.rollup"),
        ("opted out", format!("{any}[domain.\"x.example\"]\ndisable-mx-rollup = true"), "x.example"),
        (
            "opted out by a wildcard",
            format!("{any}[domain.\"*.example\"]\ndisable-mx-rollup = true"),
            "x.example",
        ),
        ("told where to", format!("{any}[domain.\"x.example\"]\nqueue-to = \"q.rollup\""), "q.rollup"),
        (
            "told where to, and opted out",
            format!("{any}[domain.\"x.example\"]\nqueue-to = \"q.rollup\"\ndisable-mx-rollup = true"),
            "q.rollup",
        ),
    ] {
        let mut rig = rig(&policy);
        rig.lead_to("x.example", "mx.p.example", &[ADDRESS]);
        rig.submit("u@x.example");
        assert_eq!(rig.accept_all(), 1);
        assert_eq!(last_delivery(&rig), (queue.to_owned(), "mx.p.example".to_owned(), 1), "{name}");
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn only_mx_records_roll_up() {
    for kind in [RouteKind::Implicit, RouteKind::Literal, RouteKind::Fixed] {
        let mut rig = rig(&rollup("any", "\"*.example\""));
        let mut own = (*route(&[&[("mx.x.example", &[ADDRESS])]])).clone();
        own.kind = kind;
        rig.routes.insert("x.example".to_owned(), Ok(own.into()));
        rig.submit("u@x.example");
        rig.accept_all();
        assert_eq!(last_delivery(&rig).0, "x.example", "{kind:?}");
    }
}

/// Its limits, retry intervals and statistics are those of the rollup; the record names the domain.
#[test]
fn a_rollup_behaves_as_one_queue() {
    let policy = rollup("p", "\"*.p.example\"")
        + "[domain.\"p.rollup\"]\nmax-smtp-out = 2\nretry-after = \"3m\"\n[domain.\"x1.example\"]\nmax-smtp-out = 1\nretry-after = \"9m\"";
    let mut rig = rig(&policy);
    for n in 0..5 {
        let host = format!("mx{n}.p.example");
        rig.lead_to(&format!("x{n}.example"), &host, &[&address_of(&host)]);
        rig.submit(&format!("u@x{n}.example"));
    }
    assert_eq!(rig.connects.len(), 2);
    while rig.timeline().len() < 5 {
        while !rig.connects.is_empty() {
            rig.connect();
        }
        rig.transact(all_rcpts("450 4.2.0 later"));
    }
    let mut lines = rig.timeline();
    lines.sort();
    assert_eq!(lines, [0, 1, 2, 3, 4].map(|n| format!("0 deferred u@x{n}.example 4.2.0")));
    rig.pass(3 * MINUTE);
    assert_eq!(rig.accept_all(), 5);
    assert_eq!(last_delivery(&rig).0, "p.rollup");
}

/// A domain that changes its provider while mail waits: another queue, the same attempts.
#[test]
fn mail_moves_with_its_domain() {
    let home = "mx.own.test";
    for (from, to, queue) in [
        (home, "mx.p.example", "p.rollup"),
        ("mx.p.example", home, "x.example"),
        ("mx.p.example", "mx.q.example", "q.rollup"),
        ("mx1.p.example", "mx2.p.example", "p.rollup"),
    ] {
        let policy = rollup("p", "\"*.p.example\"")
            + &rollup("q", "\"*.q.example\"")
            + "[domain.\"*\"]\nretry-after = [\"10m\", \"20m\"]";
        let mut rig = rig(&policy);
        let mut old = (*route(&[&[(from, &["198.51.100.7:25"])]])).clone();
        old.ttl = 5 * MINUTE;
        rig.routes.insert("x.example".to_owned(), Ok(old.into()));
        rig.submit("u@x.example");
        rig.connect();
        rig.transact(all_rcpts("450 4.2.0 later"));
        rig.lead_to("x.example", to, &["198.51.100.8:25"]);
        rig.pass(10 * MINUTE);
        assert_eq!(rig.connects.len(), 1);
        let (_, target) = &rig.connects[0];
        assert_eq!((&*target.host, target.peer.to_string()), (to, "198.51.100.8:25".to_owned()));
        rig.connect();
        rig.transact(all_rcpts("450 4.2.0 later"));
        rig.pass(10 * MINUTE);
        assert!(rig.connects.is_empty(), "{from} to {to}: the second interval is 20 minutes");
        rig.pass(10 * MINUTE);
        assert_eq!(rig.accept_all(), 1);
        assert_eq!(last_delivery(&rig), (queue.to_owned(), to.to_owned(), 3));
        rig.pass(HOUR);
        rig.scheduler.assert_empty();
    }
}

/// What holds, holds: no look-up and no move before the TTL has run out.
#[test]
fn a_domain_stays_until_its_records_run_out() {
    let mut rig = rig(&(rollup("p", "\"*.p.example\"") + "[domain.\"*\"]\nretry-after = \"25m\""));
    rig.lead_to("x.example", "mx.p.example", &[ADDRESS]);
    rig.submit("u@x.example");
    rig.lead_to("x.example", "mx.own.test", &["198.51.100.2:25"]);
    let mut hosts = Vec::new();
    for _ in 0..4 {
        let (_, target) = &rig.connects[0];
        hosts.push(target.host.to_string());
        rig.connect();
        rig.transact(all_rcpts("450 4.2.0 later"));
        rig.pass(25 * MINUTE);
    }
    assert_eq!(hosts, ["mx.p.example", "mx.p.example", "mx.p.example", "mx.own.test"], "holds for an hour");
}

/// Submission never waits for DNS: what DNS can not say now is decided before the first attempt.
#[test]
fn while_dns_fails_nothing_is_decided() {
    let policy = rollup("p", "\"*.p.example\"") + "[domain.\"*\"]\nretry-after = \"10m\"";
    let mut rig = rig(&policy);
    rig.routes.insert("x.example".to_owned(), no_route(SERVFAIL));
    rig.submit("u@x.example");
    rig.submit("v@x.example");
    assert_eq!(rig.timeline(), ["0 queue-deferred x.example 4.4.3"]);
    let mut rig = rig.restarted(&policy);
    rig.lead_to("x.example", "mx.p.example", &[ADDRESS]);
    rig.pass(10 * MINUTE - Duration::from_secs(1));
    assert!(rig.dialled.is_empty());
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.accept_all(), 2);
    assert_eq!(last_delivery(&rig), ("p.rollup".to_owned(), "mx.p.example".to_owned(), 1));
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

/// DNS that fails later does not stop a domain behind what is known of others.
#[test]
fn a_rollups_domain_waits_alone_for_its_dns() {
    let policy = rollup("p", "\"*.p.example\"") + "[domain.\"*\"]\nretry-after = \"10m\"";
    let mut rig = rig(&policy);
    for n in 0..3 {
        rig.lead_to(&format!("x{n}.example"), "mx.p.example", &[ADDRESS]);
    }
    rig.routes.insert("x1.example".to_owned(), no_route(SERVFAIL));
    for n in 0..3 {
        rig.submit(&format!("u@x{n}.example"));
    }
    assert_eq!(rig.accept_all(), 2);
    assert_eq!(rig.timeline()[0], "0 queue-deferred x1.example 4.4.3");
    rig.lead_to("x1.example", "mx.p.example", &[ADDRESS]);
    rig.pass(10 * MINUTE);
    assert_eq!(rig.accept_all(), 1);
}

/// A dead provider with 500 domains costs one connection per interval, over restarts too.
#[test]
fn a_dead_provider_costs_one_connection_per_interval() {
    for hosts_in_common in [true, false] {
        let policy =
            rollup("p", "\"*.p.example\"") + "[domain.\"p.rollup\"]\nretry-after = [\"10m\", \"20m\"]";
        let mut rig = rig(&policy);
        rig.check_every = 50;
        for n in 0..500 {
            let host =
                if hosts_in_common { "mx.p.example".to_owned() } else { format!("mx{}.p.example", n % 2) };
            rig.lead_to(&format!("x{n}.example"), &host, &[&address_of(&host)]);
            rig.submit(&format!("u@x{n}.example"));
        }
        let sites = if hosts_in_common { 1 } else { 2 };
        let mut steps = Vec::new();
        for _ in 0..5 {
            while !rig.connects.is_empty() {
                rig.refuse();
                steps.push(rig.elapsed() / 60);
            }
            rig.pass(10 * MINUTE);
            if rig.elapsed() == 1_200 {
                rig = rig.restarted(&policy);
                rig.check_every = 50;
            }
            // What DNS says of the domains holds for an hour: a restart asks again for those whose turn it is.
        }
        let want: Vec<u64> = [0, 10, 30].iter().flat_map(|&minute| vec![minute; sites]).collect();
        assert_eq!(steps, want, "hosts in common: {hosts_in_common}");
        rig.pass(10 * MINUTE);
        rig.run_dry(2 * HOUR);
        rig.pass(HOUR);
        rig.scheduler.assert_empty();
    }
}
