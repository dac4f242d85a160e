//! Limits on connections to an address, alone and with the others (CONTROLS §4).

use std::collections::BTreeMap;

use super::harness::*;
use crate::scheduler::Bounds;
use crate::transport::EndCause;

const SOURCES: &str = "[[source]]\nname = \"a\"\naddress = \"192.0.2.101\"\n[[source]]\nname = \"b\"\naddress = \"192.0.2.102\"\n";

fn rig(policy: &str) -> Rig {
    Rig::with_policy(&format!("{SOURCES}{policy}"), Bounds::default())
}

fn limit(cidr: &str, limit: u32) -> String {
    format!("[[ip-connection-limit]]\ncidr = \"{cidr}\"\nlimit = {limit}\n")
}

/// For each address: how many of the domains that lead there alone, ten by each source, may connect.
fn most_open(policy: &str, addresses: &[&str]) -> BTreeMap<String, usize> {
    let mut rig = rig(policy);
    for (place, address) in addresses.iter().enumerate() {
        for n in 0..10 {
            let domain = format!("d{n}.p{place}.example");
            rig.lead_to(&domain, &format!("mx.{domain}"), &[address]);
            rig.submit_by("a", &format!("u@{domain}"));
            rig.submit_by("b", &format!("u@{domain}"));
        }
    }
    let open = rig.open_to();
    rig.assert_no_stray();
    let taken = rig.run_dry(MINUTE);
    assert!(taken.is_zero(), "nobody waits for a timer: {taken:?}");
    assert!(rig.timeline().iter().all(|line| line.starts_with("0 delivered")), "{:?}", rig.timeline());
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
    open
}

#[test]
fn what_counts_together() {
    let one = &["198.51.100.1:25"][..];
    let two = &["198.51.100.1:25", "198.51.100.2:25"][..];
    let net = limit("198.51.100.0/24", 3);
    let mx =
        |pattern: &str, limit: u32| format!("[[mx-connection-limit]]\nmx = \"{pattern}\"\nlimit = {limit}\n");
    for (name, policy, addresses, want) in [
        ("no limit", String::new(), two, &[20, 20][..]),
        ("each address of a range", net.clone(), two, &[3, 3]),
        ("the range together", format!("{net}shared = true"), two, &[3, 0]),
        ("each source", format!("{net}per-source = true"), two, &[6, 6]),
        ("each source, the range together", format!("{net}per-source = true\nshared = true"), two, &[6, 0]),
        ("the longest prefix", limit("198.51.100.2", 5) + &net + &limit("0.0.0.0/0", 1), two, &[3, 5]),
        ("in any order", limit("0.0.0.0/0", 1) + &net + &limit("198.51.100.2", 5), two, &[3, 5]),
        ("others unlimited", limit("198.51.100.2", 5), two, &[20, 5]),
        ("whatever the port", net.clone(), &["198.51.100.1:25", "198.51.100.1:2525"], &[3]),
        (
            "with the total",
            format!("{}[engine]\nmax-connections = 4", limit("198.51.100.1", 3)),
            two,
            &[3, 1],
        ),
        ("a host", mx("*.p0.example", 2), two, &[20, 20]),
        ("the name before the wildcard", mx("*.example", 1) + &mx("mx.d0.p0.example", 2), one, &[11]),
        (
            "the name before the wildcard, in any order",
            mx("mx.d0.p0.example", 2) + &mx("*.example", 1),
            one,
            &[11],
        ),
    ] {
        let open: Vec<usize> = most_open(&policy, addresses).into_values().collect();
        let want: Vec<usize> = want.iter().copied().filter(|&n| n > 0).collect();
        let open_sum: usize = open.iter().sum();
        // Which address of a shared range comes first is no matter.
        assert!(open == want || want.len() == 1 && open_sum == want[0], "{name}: {open:?}, not {want:?}");
    }
}

#[test]
fn source_ip_max_smtp_out_counts_by_queue_and_local_address() {
    let mut rig = rig("[domain.\"*\"]\nsource-ip-max-smtp-out = 2\nmax-smtp-out = 5");
    rig.lead_to("x.example", "mx", &["198.51.100.1:25"]);
    rig.lead_to("y.example", "mx", &["198.51.100.1:25"]);
    for _ in 0..10 {
        rig.submit_by("a", "u@x.example");
        rig.submit_by("b", "u@x.example");
        rig.submit_by("a", "u@y.example");
    }
    (0..3).for_each(|_| {
        rig.connect();
    });
    while !rig.connects.is_empty() {
        rig.connect();
    }
    assert_eq!(rig.open_to(), [("198.51.100.1".to_owned(), 6)].into());
    assert!(rig.run_dry(MINUTE).is_zero());
}

/// The seed's case: 200 domains, 200 MX names, two addresses that take three connections each.
#[test]
fn aruba() {
    for recipients in [1, 7] {
        let mut rig = rig(&limit("62.149.128.0/24", 3));
        rig.check_every = 7;
        for n in 0..200 {
            let domain = format!("d{n}.example");
            rig.lead_to(&domain, &format!("mx.{domain}"), &["62.149.128.151:25", "62.149.128.154:25"]);
            (0..recipients).for_each(|_| {
                rig.submit(&format!("u@{domain}"));
            });
        }
        let mut most = 0;
        while !rig.connects.is_empty() || !rig.transacts.is_empty() {
            // All are opened before any is used.
            while !rig.connects.is_empty() {
                rig.connect();
            }
            let open = rig.open_to();
            assert!(open.values().all(|&n| n <= 3), "{open:?}");
            most = most.max(open.values().sum());
            if !rig.transacts.is_empty() {
                rig.accept();
            }
        }
        assert_eq!(most, 6, "all that is allowed is used");
        assert_eq!(rig.elapsed(), 0);
        let lines = rig.timeline();
        assert_eq!(lines.iter().filter(|line| line.starts_with("0 delivered")).count(), 200 * recipients);
        assert_eq!(lines.len(), 200 * recipients, "nothing is deferred");
        rig.assert_no_stray();
        let least = (200 * recipients).div_ceil(100);
        assert!(rig.dialled.len() <= least + 6, "sessions are shared by proof: {}", rig.dialled.len());
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn a_full_address_is_passed_over_for_one_as_good_but_not_for_a_worse() {
    let mut rig = rig(&(limit("198.51.100.1", 1) + &limit("198.51.100.2", 1)));
    let two: &[&str] = &["198.51.100.1:25", "198.51.100.2:25"];
    for n in 0..4 {
        let domain = format!("x{n}.example");
        rig.lead(&domain, &[&[(&format!("best.{domain}"), two)], &[("worse", &["198.51.100.9:25"])]]);
        rig.submit(&format!("u@{domain}"));
    }
    let open = |rig: &Rig| {
        rig.open_to().into_iter().map(|(address, n)| format!("{address} {n}")).collect::<Vec<_>>()
    };
    assert_eq!(open(&rig), ["198.51.100.1 1", "198.51.100.2 1"]);
    // One of them refuses: the other is as good still, and the worse one has to wait for its refusal too.
    let refused = rig.refuse();
    assert_eq!(rig.open_to().values().sum::<usize>(), 1);
    rig.submit("u@x0.example");
    assert!(!rig.open_to().contains_key("198.51.100.9"), "{refused}");
    rig.refuse();
    while rig.dialled.iter().all(|(_, peer)| peer.to_string() != "198.51.100.9:25") {
        rig.refuse();
    }
    assert_eq!(rig.elapsed(), 0, "and then it is used at once");
    assert!(rig.run_dry(MINUTE).is_zero());
    assert_eq!(rig.timeline().len(), 5);
}

/// Waiting for a count arms no timer, charges nobody, and is no failure.
#[test]
fn waiting_for_a_count_costs_nothing() {
    let mut rig = rig(&limit("198.51.100.1", 1));
    rig.lead_to("busy.example", "mx.busy", &["198.51.100.1:25"]);
    rig.lead_to("x.example", "mx.x", &["198.51.100.1:25"]);
    rig.lead_to("free.example", "mx.free", &["198.51.100.2:25"]);
    rig.submit("u@busy.example");
    rig.submit("u@x.example");
    rig.connect();
    let expiry = start() + 4 * 24 * HOUR + 12 * HOUR;
    assert_eq!(rig.scheduler.poll_timeout(), Some(expiry), "no timer but for expiry");
    rig.pass(24 * HOUR);
    assert_eq!(rig.timeline(), [""; 0]);
    assert_eq!(rig.committed, 0, "nothing is written");
    rig.submit("u@free.example");
    assert_eq!(rig.connects.len(), 1, "others go on");
    assert_eq!(rig.accept_all(), 3);
    let day = 24 * 3600;
    let mut lines = rig.timeline();
    lines.sort();
    let want = ["busy", "free", "x"].map(|name| format!("{day} delivered u@{name}.example"));
    assert_eq!(lines, want);
    assert!(rig.events.iter().all(|event| match event {
        crate::event::DeliveryEvent::Delivered(e) => e.record.attempts == 1,
        _ => true,
    }));
}

/// All permits or none: who waits for an address does not keep a connection of the engine or of its queue.
#[test]
fn who_waits_for_one_permit_holds_no_other() {
    let mut rig = rig(&format!("{}[engine]\nmax-connections = 2", limit("198.51.100.1", 1)));
    for n in 0..20 {
        rig.lead_to(&format!("x{n}.example"), &format!("mx{n}"), &["198.51.100.1:25"]);
        rig.submit(&format!("u@x{n}.example"));
    }
    rig.lead_to("free.example", "mx.free", &["198.51.100.2:25"]);
    rig.submit("u@free.example");
    let peers: Vec<_> = rig.connects.iter().map(|(_, target)| target.peer.to_string()).collect();
    assert_eq!(peers, ["198.51.100.1:25", "198.51.100.2:25"]);
    assert!(rig.run_dry(MINUTE).is_zero());
}

/// Whoever asks first is served first, and a queue with much mail stands in line like the others.
#[test]
fn queues_take_turns_at_an_address() {
    let mut rig = rig(&format!("{}[domain.\"*\"]\nmax-msg-per-connection = 1", limit("198.51.100.1", 1)));
    for n in 0..5 {
        rig.lead_to(&format!("x{n}.example"), &format!("mx{n}"), &["198.51.100.1:25"]);
    }
    (0..10).for_each(|_| {
        rig.submit("u@x0.example");
    });
    for n in 1..5 {
        rig.submit(&format!("u@x{n}.example"));
    }
    assert_eq!(rig.accept_all(), 14);
    let order: Vec<_> =
        rig.offered.iter().map(|offer| offer.recipients[0].domain().to_string()).take(6).collect();
    assert_eq!(order[..5], ["x0", "x1", "x2", "x3", "x4"].map(|name| format!("{name}.example")));
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

/// An attempt whose next address is full waits for it and goes on there; what failed is not tried again.
#[test]
fn an_attempt_goes_on_where_it_was_stopped() {
    for fails in [false, true] {
        let mut rig = rig(&limit("198.51.100.2", 1));
        rig.lead_to("busy.example", "mx.busy", &["198.51.100.2:25"]);
        rig.lead("x.example", &[&[("mx1", &["198.51.100.1:25"])], &[("mx2", &["198.51.100.2:25"])]]);
        rig.submit("u@busy.example");
        rig.connect();
        rig.submit("u@x.example");
        assert_eq!(rig.refuse().to_string(), "198.51.100.1:25");
        assert!(rig.connects.is_empty(), "it waits");
        assert_eq!(rig.timeline(), [""; 0]);
        rig.pass(MINUTE);
        rig.by_hand.close = true;
        rig.accept();
        if !rig.closes.is_empty() {
            rig.close();
        }
        rig.by_hand.close = false;
        if rig.transacts.is_empty() {
            let (connection, target) = rig.opening();
            assert_eq!(target.peer.to_string(), "198.51.100.2:25");
            rig.connects.push_front((connection, target));
            if fails {
                rig.refuse();
                assert!(rig.last_line().starts_with("60 queue-deferred x.example"), "{}", rig.last_line());
                assert!(rig.connects.is_empty());
                rig.pass(10 * MINUTE);
            }
        }
        assert_eq!(rig.accept_all(), 1);
        assert_eq!(rig.timeline().iter().filter(|line| line.contains("delivered u@x")).count(), 1);
    }
}

/// Of another source, it can not be used: it is closed for who waits.
#[test]
fn an_idle_session_at_a_full_address_is_used_or_closed() {
    for (source, dials) in [("a", 1), ("b", 2)] {
        let mut rig = rig(&limit("198.51.100.1", 1));
        rig.lead_to("x.example", "mx.x", &["198.51.100.1:25"]);
        rig.lead_to("y.example", "mx.y", &["198.51.100.1:25"]);
        rig.submit_by("a", "u@x.example");
        rig.accept_all();
        rig.submit_by(source, "u@y.example");
        assert_eq!(rig.accept_all(), 1);
        assert_eq!((rig.dialled.len(), rig.elapsed()), (dials, 0), "{source}");
    }
}

/// The other end hangs up, an attempt fails, a session is cut: the permit goes to the next in line each time.
#[test]
fn every_way_out_gives_the_permit_back() {
    let mut rig = rig(&limit("198.51.100.1", 1));
    for n in 0..4 {
        rig.lead_to(&format!("x{n}.example"), &format!("mx{n}"), &["198.51.100.1:25"]);
        rig.submit(&format!("u@x{n}.example"));
    }
    rig.refuse();
    assert_eq!(rig.connects.len(), 1, "after a refusal");
    rig.connect();
    rig.transact(cut(EndCause::Closed));
    assert_eq!(rig.connects.len(), 1, "after a session was cut");
    rig.fail_connect(EndCause::Local("no route".to_owned()));
    assert_eq!(rig.connects.len(), 0, "the source rests");
    rig.pass(MINUTE);
    assert_eq!(rig.connects.len(), 1, "after trouble of this machine");
    rig.run_dry(HOUR);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

/// What is open over a lowered limit ends with its transaction; no more than that.
#[test]
fn a_lowered_limit_cuts_nothing_and_closes_no_more_than_it_must() {
    let mut rig = rig(
        "[[reply-rule]]\nname = \"slow\"\nmatch = 'slow down'\nactions = [\"limit-connections=1 for=1h\"]",
    );
    (0..4).for_each(|_| {
        rig.submit("u@x.example");
    });
    (0..4).for_each(|_| {
        rig.connect();
    });
    assert_eq!(rig.transacts.len(), 4);
    rig.by_hand.close = true;
    rig.transact(all_rcpts("450 4.7.0 slow down"));
    let mut closing = vec![rig.closes.len()];
    for _ in 0..3 {
        rig.accept();
        closing.push(rig.closes.len());
    }
    assert_eq!(closing, [1, 2, 3, 3], "one stays");
    rig.by_hand.close = false;
    rig.close();
    rig.submit("u@x.example");
    assert_eq!(rig.accept_all(), 1);
    assert_eq!(rig.dialled.len(), 4);
}
