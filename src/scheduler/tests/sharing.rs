//! Sessions shared by proof; sources and pools (CONTROLS §5, and "Also part of delivery").

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::harness::*;
use crate::event::DeliveryEvent;
use crate::scheduler::{Bounds, Event};

fn rig(policy: &str) -> Rig {
    Rig::with_policy(policy, Bounds::default())
}

const PROVIDER: &str = "[[rollup]]\nqueue = \"p.rollup\"\nmx = \"*.p.example\"\n[domain.\"p.rollup\"]\n";
type Preferences = &'static [&'static [(&'static str, &'static [&'static str])]];
const TWO: &[&str] = &["198.51.100.1:25", "198.51.100.2:25"];

/// One message each to 1,000 domains of one provider, all at once or one after the other.
#[test]
fn a_thousand_domains_take_few_connections() {
    for own_names in [false, true] {
        let mut rig = rig(&format!("{PROVIDER}max-smtp-out = 20\nmax-msg-per-connection = 100"));
        rig.check_every = 200;
        let mut most = 0;
        for n in 0..1_000 {
            let host = if own_names { format!("mx{n}.p.example") } else { "mx.p.example".to_owned() };
            rig.lead_to(&format!("d{n}.example"), &host, TWO);
            rig.submit(&format!("u@d{n}.example"));
            if n % 3 == 0 && !rig.connects.is_empty() {
                rig.connect();
            }
            most = most.max(rig.open_to().values().sum());
        }
        assert!(rig.run_dry(MINUTE).is_zero(), "own names: {own_names}");
        assert!(rig.dialled.len() <= 30, "own names: {own_names}: {}", rig.dialled.len());
        assert!(most <= 20);
        let mut used: BTreeMap<_, usize> = BTreeMap::new();
        rig.offered.iter().for_each(|offer| *used.entry(offer.connection).or_default() += 1);
        assert!(used.values().all(|&n| n <= 100), "{used:?}");
        rig.assert_no_stray();
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
    }
}

/// Also without a rollup: each domain is a queue, and one session serves them all.
#[test]
fn domains_of_one_address_share_a_session() {
    for (settings, dials) in
        [("", 1), ("max-msg-per-connection = 4", 3), ("connection-idle-timeout = \"0s\"", 10)]
    {
        let mut rig = rig(&format!("[domain.\"*\"]\n{settings}"));
        for n in 0..10 {
            rig.lead_to(&format!("x{n}.example"), &format!("mx.x{n}.example"), &["198.51.100.1:25"]);
            rig.submit(&format!("u@x{n}.example"));
            rig.accept_all();
            rig.pass(Duration::from_secs(1));
        }
        assert_eq!(rig.dialled.len(), dials, "{settings}");
        let hosts: BTreeSet<_> = rig
            .events
            .iter()
            .filter_map(|event| match event {
                DeliveryEvent::Delivered(e) => e.record.mx.clone(),
                _ => None,
            })
            .collect();
        assert_eq!(hosts.len(), 10, "each record names the domain's own host");
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
    }
}

/// What may not be shared, though it lies in the same rollup.
#[test]
fn without_proof_there_is_no_sharing() {
    let rows: &[(&str, Preferences, &str, usize)] = &[
        ("the same address", &[&[("mx.p.example", &["198.51.100.1:25"])]], "a", 1),
        ("another source", &[&[("mx.p.example", &["198.51.100.1:25"])]], "b", 2),
        ("another port", &[&[("mx.p.example", &["198.51.100.1:26"])]], "a", 2),
        ("another address", &[&[("my.p.example", &["198.51.100.2:25"])]], "a", 2),
        (
            "only at a worse preference",
            &[&[("my.p.example", &["198.51.100.2:25"])], &[("mx.p.example", &["198.51.100.1:25"])]],
            "a",
            2,
        ),
    ];
    for &(name, route_of_y, source, dials) in rows {
        let sources = "[[source]]\nname = \"a\"\naddress = \"192.0.2.101\"\n[[source]]\nname = \"b\"\naddress = \"192.0.2.102\"\n";
        let mut rig = rig(&format!("{sources}{PROVIDER}"));
        rig.lead_to("x.example", "mx.p.example", &["198.51.100.1:25"]);
        rig.lead("y.example", route_of_y);
        rig.submit_by("a", "u@x.example");
        rig.accept_all();
        rig.submit_by(source, "u@y.example");
        assert_eq!(rig.accept_all(), 1, "{name}");
        assert_eq!(rig.dialled.len(), dials, "{name}");
        rig.assert_no_stray();
    }
}

/// A session handed over is charged to the queue whose mail it carries; at that queue's limit it is not handed over.
#[test]
fn a_session_is_charged_to_the_queue_whose_mail_it_carries() {
    let mut rig = rig("[domain.\"y.example\"]\nmax-smtp-out = 1");
    for name in ["x", "y"] {
        rig.lead_to(&format!("{name}.example"), &format!("mx.{name}.example"), &["198.51.100.1:25"]);
    }
    rig.submit("u@y.example");
    let of_y = rig.connect();
    rig.submit("u@x.example");
    let of_x = rig.connect();
    rig.transact(accepted);
    assert_eq!(rig.offered[0].connection, of_y);
    rig.transact(accepted);
    // Both are idle. The queue y may have one.
    rig.submit("u@y.example");
    rig.submit("v@y.example");
    assert_eq!(rig.transacts.len(), 1);
    assert_eq!(rig.transacts[0].0, of_y);
    rig.submit("w@x.example");
    assert_eq!(rig.transacts[1].0, of_x);
    assert_eq!(rig.accept_all(), 3);
    assert_eq!(rig.dialled.len(), 2);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

/// A rate that was asked for in vain, since a session was to be had, is not kept in memory.
#[test]
fn a_session_taken_over_takes_no_connection_rate() {
    let mut rig = rig("[domain.\"y.example\"]\nmax-connect-rate = \"1/h\"");
    for name in ["x", "y"] {
        rig.lead_to(&format!("{name}.example"), &format!("mx.{name}.example"), &["198.51.100.1:25"]);
        (0..2).for_each(|_| {
            rig.submit(&format!("u@{name}.example"));
            assert_eq!(rig.accept_all(), 1);
        });
    }
    assert_eq!(rig.dialled.len(), 1);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

/// Tenants of one provider, each with hosts of its own behind one wildcard, some with an address in common.
#[test]
fn a_tenant_never_gets_anothers_host() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut rig = rig(&format!("{PROVIDER}max-smtp-out = 7\nmax-msg-per-connection = 5"));
        rig.check_every = 20;
        for n in 0..40 {
            let addresses: Vec<String> =
                (0..random.u8(1..3)).map(|_| format!("198.51.100.{}:25", random.u8(..12))).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            rig.lead_to(&format!("t{n}.example"), &format!("t{n}.p.example"), &addresses);
        }
        for _ in 0..300 {
            rig.submit(&format!("u@t{}.example", random.u8(..40)));
            match random.u8(..4) {
                0 if !rig.connects.is_empty() => _ = rig.connect(),
                1 if !rig.connects.is_empty() => _ = rig.refuse(),
                2 if !rig.transacts.is_empty() => _ = rig.accept(),
                _ => _ = rig.pass(Duration::from_secs(random.u64(..20))),
            }
        }
        rig.run_dry(24 * HOUR);
        rig.assert_no_stray();
        rig.pass(24 * HOUR);
        rig.scheduler.assert_empty();
    }
}

/// DNS gives the addresses in another order each time; that is no news, and nobody loses a place in line for it.
#[test]
fn look_ups_of_its_domains_do_not_cost_a_rollup_its_turn() {
    let limit = "[[ip-connection-limit]]\ncidr = \"198.51.100.0/24\"\nlimit = 1\nshared = true\n";
    let mut rig = rig(&format!(
        "{limit}{PROVIDER}max-msg-per-connection = 1\n[domain.\"*\"]\nmax-msg-per-connection = 1"
    ));
    rig.lead_to("busy.example", "mx.busy.test", &["198.51.100.9:25"]);
    rig.lead_to("other.example", "mx.other.test", &["198.51.100.8:25"]);
    rig.submit("u@busy.example");
    rig.connect();
    rig.lead_to("t0.example", "mx.p.example", TWO);
    rig.submit("u@t0.example");
    rig.submit("u@other.example");
    let turned: Vec<&str> = TWO.iter().rev().copied().collect();
    let mut route = (*route(&[&[("mx.p.example", &turned)]])).clone();
    route.ttl = MINUTE;
    rig.routes.insert("t1.example".to_owned(), Ok(route.into()));
    rig.submit("u@t1.example");
    assert_eq!(rig.accept_all(), 4);
    let order: Vec<_> = rig.offered.iter().map(|offer| offer.recipients[0].to_string()).take(3).collect();
    assert_eq!(order, ["u@busy.example", "u@t0.example", "u@other.example"]);
}

const POOL: &str = "[[source]]\nname = \"a\"\naddress = \"192.0.2.101\"\n[[source]]\nname = \"b\"\naddress = \"192.0.2.102\"\n
    [[pool]]\nname = \"bulk\"\nsources = [\"a\", \"b\"]\n";

fn sources(rig: &Rig) -> Vec<String> {
    let sources = rig.events.iter().filter_map(|event| match event {
        DeliveryEvent::Delivered(e) => Some(e.record.source.to_string()),
        DeliveryEvent::Deferred(e) => Some(e.record.source.to_string()),
        _ => None,
    });
    sources.collect()
}

/// Greylists want the same address again.
#[test]
fn a_source_of_a_pool_is_kept_for_retries() {
    let policy = format!("{POOL}[domain.\"*\"]\nretry-after = \"10m\"");
    let mut first = BTreeSet::new();
    for seed in 0..20 {
        let mut rig = Rig::with_policy(&policy, Bounds::default());
        let id = crate::message::MessageId::generate(start(), seed << 48);
        let message = crate::message::Message::new("", ["u@x.example"], "x").unwrap();
        rig.submit_message(message.with_id(id).with_source("bulk"));
        for n in 0..4 {
            if n == 2 {
                rig = rig.restarted(&policy);
            }
            rig.connect();
            rig.transact(all_rcpts("450 4.2.0 greylisted"));
            rig.pass(10 * MINUTE);
        }
        let sources: BTreeSet<_> = sources(&rig).into_iter().collect();
        assert_eq!(sources.len(), 1, "{sources:?}");
        first.extend(sources);
    }
    assert_eq!(first.len(), 2, "both are used");
}

/// A rule takes a source out of use for a queue: its mail goes by another of the pool, and by it again afterwards.
/// Mail that asked for the source itself waits.
#[test]
fn a_disabled_source_is_stood_in_for_by_its_pool() {
    let policy = format!(
        "{POOL}[[reply-rule]]\nname = \"block\"\nmatch = 'blocked'\nactions = [\"disable-source-ip\", \"reenable-after=1h\"]\n
        [domain.\"*\"]\nretry-after = \"10m\"\nconnection-idle-timeout = \"0s\""
    );
    for by in ["bulk", "a"] {
        let mut rig = Rig::with_policy(&policy, Bounds::default());
        while !rig.timeline().iter().any(|line| line.contains("deferred")) {
            rig.submit_by(by, "u@x.example");
            let (connection, target) = rig.opening();
            rig.tell(Event::Connected { connection, opened: Default::default() });
            let is_a = target.local == Some("192.0.2.101".parse().unwrap());
            rig.transact(|n| if is_a { all_rcpts("450 4.7.1 blocked")(n) } else { accepted(n) });
            rig.pass(Duration::ZERO);
        }
        let told = rig.now;
        let mut begun = rig.offered.len();
        for n in 0..12 {
            rig.submit_by(by, "u@x.example");
            let sent = rig.accept_all();
            assert_eq!(sent > 0, by == "bulk", "{n}: {:?}", rig.timeline());
            rig.pass(5 * MINUTE);
        }
        rig.accept_all();
        let by_a = rig.dialled_by.iter().filter(|(at, local)| *at > told && local == "192.0.2.101");
        let first = by_a.map(|(at, _)| at.saturating_since(told)).min();
        if by == "bulk" {
            assert_eq!(first, None, "what waited went by the other");
            assert_eq!(rig.offered.len() - begun, 13);
        } else {
            assert_eq!(first, Some(HOUR), "it waits for its source, however often it is due");
            assert_eq!(rig.offered.len() - begun, 13);
        }
        begun = rig.offered.len();
        (0..20).for_each(|_| rig.submit_by(by, "u@x.example"));
        rig.accept_all();
        assert_eq!(rig.offered.len() - begun, 20);
        assert!(sources(&rig).iter().rev().take(20).any(|source| source == "a"), "{by}: it is back");
        rig.pass(2 * HOUR);
        rig.scheduler.assert_empty();
    }
}
