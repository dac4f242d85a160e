//! The window: what is held in memory, how it is claimed, and in which order it is sent.

use std::time::Duration;

use super::harness::*;
use crate::control::Selector;
use crate::message::{Domain, Message, Priority};
use crate::scheduler::{Bounds, Content, Control};
use crate::storage::{ClaimPart, StorageErrorKind};

fn bounds(window: usize, per_destination: usize) -> Bounds {
    Bounds { window, window_per_destination: per_destination, ..Bounds::default() }
}

#[test]
fn fresh_mail_bypasses_the_store_while_there_is_room() {
    let mut rig = Rig::with_policy("", bounds(100, 2));
    rig.by_hand.claim = true;
    (0..3).for_each(|_| {
        rig.submit("a@x.example");
    });
    assert_eq!(rig.scheduler.window.len(), 2);
    assert!(rig.claims.is_empty(), "no claim while there is enough");
    rig.connect();
    assert!(matches!(rig.transacts[0].1.content, Content::Held(_)), "its body was never read back");
    rig.accept();
    assert_eq!(rig.claims.len(), 1);
    rig.claim();
    rig.accept();
    assert!(matches!(rig.transacts[0].1.content, Content::Stored(_)));
    assert_eq!(rig.accept_all(), 1);
}

/// Each of these items holds about 15 KiB, and counts as two.
#[test]
fn items_with_many_recipients_fill_the_window_sooner() {
    let mut rig = Rig::with_policy("", bounds(40, 40));
    for number in 0..40 {
        let to: Vec<String> = (0..100).map(|place| format!("{number}-{place}@x.example")).collect();
        rig.submit_message(Message::new("", to, "x").unwrap());
    }
    let taken = rig.scheduler.window.len();
    assert!((18..=24).contains(&taken), "{taken}");
    assert_eq!(rig.accept_all(), 40);
    assert_eq!(rig.scheduler.window.room(40), 40);
}

#[test]
fn bodies_are_held_up_to_a_bound() {
    let bounds = Bounds { held_octets: 10, ..Bounds::default() };
    let mut rig = Rig::with_policy("", bounds);
    for _ in 0..3 {
        rig.submit_message(Message::new("", ["a@x.example"], vec![b'x'; 5]).unwrap());
    }
    assert_eq!((rig.scheduler.window.len(), rig.scheduler.window.held_octets()), (3, 10));
    assert_eq!(rig.accept_all(), 3);
}

#[test]
fn a_blocked_destination_does_not_fill_the_window() {
    let mut rig = Rig::with_policy("[domain.\"*\"]\nmax-smtp-out = 1", bounds(100, 10));
    (0..500).for_each(|_| {
        rig.submit("a@x.example");
    });
    rig.connect();
    assert!(rig.scheduler.window.len() <= 10);
    rig.submit("a@y.example");
    assert_eq!(rig.connects.len(), 1, "another finds room");
    assert_eq!(rig.accept_all(), 501);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

/// A domain that was paused has left its rollup, where another stands behind it with room for one item.
#[test]
fn a_lane_that_has_left_takes_no_turn() {
    let policy =
        "[[rollup]]\nqueue = \"p.rollup\"\nmx = \"*.p.example\"\n[domain.\"*\"]\nretry-after = \"10m\"
        connection-idle-timeout = \"0s\"";
    let mut rig = Rig::with_policy(policy, bounds(1, 10));
    for domain in ["a.example", "b.example"] {
        rig.lead_to(domain, "mx.p.example", &["198.51.100.1:25"]);
        rig.submit(&format!("u@{domain}"));
    }
    while !rig.connects.is_empty() {
        rig.connect();
        rig.refuse_transactions("450 4.2.0 later");
    }
    assert_eq!(rig.timeline().len(), 2, "both are deferred");
    rig.pass(9 * MINUTE);
    rig.submit("u@z.example");
    rig.connect();
    assert_eq!(rig.transacts.len(), 1, "it takes all the window there is");
    rig.pass(2 * MINUTE);
    let paused = Selector::Domain(Domain::parse("a.example").unwrap());
    rig.control(Control::Pause(paused));
    rig.accept();
    rig.accept_all();
    let lines = rig.timeline();
    assert!(lines.iter().any(|line| line.contains("delivered u@b.example")), "{lines:#?} {:#?}", rig.left());
}

#[test]
fn claims_are_made_in_lots() {
    let mut rig = Rig::with_policy("[domain.\"*\"]\nmax-smtp-out = 1", bounds(1_000, 16));
    rig.by_hand.claim = true;
    (0..100).for_each(|_| {
        rig.submit("a@x.example");
    });
    rig.connect();
    let mut claims = 0;
    while !rig.transacts.is_empty() {
        rig.accept();
        while !rig.claims.is_empty() {
            claims += 1;
            rig.claim();
        }
    }
    assert_eq!(rig.timeline().len(), 100);
    // A part of the window is left to mail that is more urgent.
    assert!((100 / 16..=100 / 6).contains(&claims), "{claims}");
}

/// A start with mail for many domains: memory is bounded by the window, not by the backlog.
#[test]
fn a_backlog_of_many_domains_does_not_overflow_the_window() {
    let mut rig = Rig::with_policy("", bounds(100, 10));
    rig.by_hand.resolve = true;
    for n in 0..300 {
        rig.submit_to(&[&format!("a@x{n}.example"), &format!("a@y{n}.example")]);
    }
    let mut rig = rig.restarted("");
    rig.by_hand.resolve = true;
    assert_eq!(rig.scheduler.window.len(), 600, "the default bounds hold them all");
    let mut small = Rig::over(rig.store.reopened(), "", bounds(100, 10), rig.now);
    small.by_hand.resolve = true;
    small.by_hand.claim = true;
    let heads = futures::FutureExt::now_or_never(crate::storage::Storage::heads(&small.store, None, 1_000));
    small.tell(crate::scheduler::Event::Heads(heads.unwrap().unwrap()));
    assert!(small.claims.len() <= 100 && small.scheduler.window.len() <= 100);
    small.by_hand.claim = false;
    small.claim();
    assert!(small.scheduler.window.len() <= 100, "{}", small.scheduler.window.len());
    small.by_hand.resolve = false;
    small.resolve();
    assert_eq!(small.accept_all(), 600);
    small.pass(MINUTE);
    small.scheduler.assert_empty();
}

#[test]
fn held_mail_is_not_due_before_its_time() {
    let mut rig = Rig::new("");
    rig.submit_message(Message::new("", ["a@x.example"], "").unwrap().hold_until(start() + HOUR));
    assert_eq!(rig.scheduler.window.len(), 0);
    rig.pass(HOUR - Duration::from_micros(1));
    assert!(rig.connects.is_empty());
    rig.pass(Duration::from_micros(1));
    assert_eq!(rig.accept_all(), 1);
}

#[test]
fn priorities_share_16_to_4_to_1() {
    let mut rig = Rig::new("max-smtp-out = 1\nmax-msg-per-connection = \"unlimited\"");
    for (local, priority) in [("low", Priority::Low), ("normal", Priority::Normal), ("high", Priority::High)]
    {
        for _ in 0..42 {
            let message = Message::new("", [format!("{local}@x.example")], "").unwrap();
            rig.submit_message(message.with_priority(priority));
        }
    }
    rig.connect();
    rig.accept();
    let mut counts = [0; 3];
    for _ in 0..42 {
        let first = rig.transacts[0].1.recipients[0].as_str();
        counts[["high@x.example", "normal@x.example", "low@x.example"]
            .iter()
            .position(|l| *l == first)
            .unwrap()] += 1;
        rig.accept();
    }
    assert_eq!(counts, [32, 8, 2]);
}

#[test]
fn fresh_mail_and_due_retries_alternate() {
    let mut rig = Rig::new("max-smtp-out = 1");
    (0..6).for_each(|_| {
        rig.submit("again@x.example");
    });
    rig.connect();
    (0..6).for_each(|_| {
        rig.transact(all_rcpts("450 later"));
    });
    rig.pass(10 * MINUTE - Duration::from_secs(1));
    (0..6).for_each(|_| {
        rig.submit("fresh@x.example");
    });
    rig.pass(Duration::from_secs(1));
    rig.connect();
    let mut order = Vec::new();
    while let Some((_, outgoing)) = rig.transacts.front() {
        order.push(outgoing.recipients[0].as_str().starts_with("fresh"));
        rig.accept();
    }
    assert_eq!(order.len(), 12);
    assert!(order.windows(2).all(|pair| pair[0] != pair[1]), "{order:?}");
}

#[test]
fn bodies_in_transit_have_a_budget_and_a_large_one_goes_alone_in_its_turn() {
    let bounds = Bounds { transit_octets: 133, ..Bounds::default() };
    let mut rig = Rig::with_policy("[domain.\"*\"]\nmax-smtp-out = 1", bounds);
    let send = |rig: &mut Rig, to: &str, octets: usize| {
        rig.submit_message(Message::new("", [to], vec![b'x'; octets]).unwrap());
    };
    send(&mut rig, "a@x.example", 60);
    send(&mut rig, "a@large.example", 500);
    rig.connect();
    rig.connect();
    assert_eq!(rig.transacts.len(), 1, "the large one waits until nothing else is in transit");
    for n in 0..5 {
        send(&mut rig, &format!("a@x{n}.example"), 30);
        rig.connect();
    }
    assert_eq!(rig.transacts.len(), 1, "and the small ones do not keep it out");
    rig.accept();
    assert_eq!(rig.transacts[0].1.recipients[0].as_str(), "a@large.example");
    assert_eq!(rig.transacts.len(), 1);
    rig.accept();
    assert_eq!(rig.transacts.len(), 3, "three of 30 octets fit");
    assert_eq!(rig.accept_all(), 5);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

/// Whoever takes large messages as slowly as it can holds up none that are small.
#[test]
fn small_bodies_do_not_stand_in_line_behind_large_ones() {
    let bounds = Bounds { transit_octets: 4096, ..Bounds::default() };
    let mut rig = Rig::with_policy("[domain.\"*\"]\nmax-smtp-out = 1", bounds);
    let send = |rig: &mut Rig, to: &str, octets: usize| {
        rig.submit_message(Message::new("", [to], vec![b'x'; octets]).unwrap());
        rig.connect();
    };
    send(&mut rig, "a@slow.example", 9_999);
    send(&mut rig, "b@slow2.example", 17);
    assert_eq!(rig.transacts.len(), 1, "over a 256th of the room is large");
    for n in 0..65 {
        send(&mut rig, &format!("a@x{n}.example"), 16);
    }
    assert_eq!(rig.transacts.len(), 1 + 64, "a quarter of the room");
    let slow = rig.transacts.pop_front().unwrap();
    rig.accept();
    assert_eq!(rig.transacts.len(), 64, "the last of them has room now");
    rig.transacts.push_front(slow);
    rig.accept();
    assert_eq!(rig.transacts.len(), 65);
    assert_eq!(rig.accept_all(), 65);
    // Where no large one takes the room the small ones have all of it.
    for n in 0..257 {
        send(&mut rig, &format!("a@y{n}.example"), 16);
    }
    assert_eq!(rig.transacts.len(), 256);
    assert_eq!(rig.accept_all(), 257);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

#[test]
fn a_claim_that_fails_for_the_moment_is_made_again() {
    let mut rig = Rig::new("");
    rig.submit("a@x.example");
    rig.refuse();
    rig.by_hand.claim = true;
    rig.pass(10 * MINUTE);
    rig.fail_claim(StorageErrorKind::Temporary);
    assert_eq!(rig.last_line(), "600 storage-trouble read");
    rig.pass(Duration::from_secs(1));
    rig.by_hand.claim = false;
    rig.claim();
    assert_eq!(rig.accept_all(), 1);
}

/// Expired mail is claimed even while its destination is held; nothing due is.
#[test]
fn a_held_destination_claims_by_age_alone() {
    let mut rig = Rig::new("bounce-after = \"5m\"");
    rig.submit("a@x.example");
    rig.refuse();
    rig.by_hand.claim = true;
    rig.pass(5 * MINUTE);
    let (_, parts) = &rig.claims[0];
    assert!(
        parts.iter().all(|part| matches!(part, ClaimPart::Age { .. } | ClaimPart::Expiry { .. })),
        "{parts:?}"
    );
    rig.claim();
    assert_eq!(rig.last_line(), "300 bounced a@x.example 4.4.7 never-attempted");
}

/// Those that can not send at present take no connection from each other.
#[test]
fn connections_are_not_opened_in_turns_for_nothing() {
    let bounds = Bounds { transit_octets: 10, ..Bounds::default() };
    let mut rig = Rig::with_policy("[engine]\nmax-connections = 2", bounds);
    for domain in ["busy", "x", "y", "z"] {
        rig.submit_message(Message::new("", [format!("a@{domain}.example")], vec![b'x'; 9]).unwrap());
    }
    let mut opened = 0;
    while !rig.connects.is_empty() {
        rig.connect();
        opened += 1;
        assert!(opened < 10, "connections without end");
    }
    assert_eq!(rig.accept_all(), 4);
}
