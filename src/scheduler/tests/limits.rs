//! Limits, permits, and who waits for them; sessions and their reuse.

use std::time::Duration;

use super::harness::*;
use crate::reply::Stage;
use crate::scheduler::{Bounds, Event};
use crate::transport::{EndCause, SessionEnd};

fn rig(max_connections: u32, settings: &str) -> Rig {
    let policy = format!("[engine]\nmax-connections = {max_connections}\n[domain.\"*\"]\n{settings}");
    Rig::with_policy(&policy, Bounds::default())
}

#[test]
fn max_smtp_out_binds_each_queue() {
    let mut rig = Rig::new("max-smtp-out = 2");
    for _ in 0..50 {
        rig.submit("a@x.example");
        rig.submit("a@y.example");
    }
    (0..2).for_each(|_| {
        rig.connect();
    });
    // The harness checks the limit at every step.
    assert_eq!(rig.connects.len(), 2, "one more each");
    assert_eq!(rig.accept_all(), 100);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

/// Whichever stands first in the file.
#[test]
fn the_most_specific_mx_connection_limit_binds_each_host() {
    let wide = "[[mx-connection-limit]]\nmx = \"*.example\"\nlimit = 1\n";
    let exact = "[[mx-connection-limit]]\nmx = \"mx.x.example\"\nlimit = 3\n";
    for policy in [[wide, exact].concat(), [exact, wide].concat()] {
        let mut rig = Rig::with_policy(&policy, Bounds::default());
        for _ in 0..50 {
            rig.submit("a@x.example");
            rig.submit("a@y.example");
        }
        (0..2).for_each(|_| {
            rig.connect();
        });
        assert_eq!(rig.connects.len(), 2, "two more to mx.x.example, none to mx.y.example");
        assert_eq!(rig.accept_all(), 100);
    }
}

#[test]
fn max_connections_binds_all_and_waiters_wake_without_polling() {
    let mut rig = rig(3, "max-msg-per-connection = 1");
    (0..50).for_each(|n| {
        rig.submit(&format!("a@x{n}.example"));
    });
    assert_eq!(rig.connects.len(), 3);
    rig.by_hand.close = true;
    (0..3).for_each(|_| {
        rig.connect();
    });
    let expiry = 4 * 24 * HOUR + 12 * HOUR;
    assert_eq!(rig.scheduler.poll_timeout(), Some(start() + expiry), "no timer but for expiry");
    rig.accept();
    assert!(rig.connects.is_empty(), "a permit is held until the socket is closed");
    rig.close();
    assert_eq!(rig.connects.len(), 1, "and then the next goes on");
    rig.by_hand.close = false;
    assert_eq!(rig.accept_all(), 49);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

/// However much mail the first has: those that wait come before it.
#[test]
fn a_permit_given_back_goes_to_those_that_wait() {
    let mut rig = rig(1, "max-msg-per-connection = 2");
    (0..20).for_each(|_| {
        rig.submit("a@busy.example");
    });
    rig.submit("a@x.example");
    rig.submit("a@y.example");
    let mut order = Vec::new();
    for _ in 0..4 {
        let (connection, target) = rig.opening();
        order.push(target.host.to_string());
        rig.tell(Event::Connected { connection, opened: Default::default() });
        while !rig.transacts.is_empty() {
            rig.accept();
        }
        while rig.connects.is_empty() {
            rig.next_timer();
        }
    }
    assert_eq!(order, ["mx.busy.example", "mx.x.example", "mx.y.example", "mx.busy.example"]);
}

#[test]
fn idle_sessions_are_closed_for_those_that_wait() {
    // The session is idle before the other comes, or becomes idle after.
    for first_done in [true, false] {
        let mut rig = rig(1, "");
        rig.submit("a@x.example");
        rig.connect();
        if first_done {
            rig.accept();
        }
        rig.submit("a@y.example");
        if !first_done {
            assert!(rig.connects.is_empty());
            rig.accept();
        }
        assert_eq!(rig.connects.len(), 1, "first_done: {first_done}");
        assert_eq!(rig.accept_all(), 1);
        assert_eq!(rig.elapsed(), 0);
    }
}

#[test]
fn only_so_many_idle_sessions_are_closed_as_wait() {
    let mut rig = rig(4, "");
    (0..4).for_each(|n| {
        rig.submit(&format!("a@x{n}.example"));
    });
    rig.accept_all();
    rig.by_hand.close = true;
    rig.submit("a@y.example");
    (0..10).for_each(|_| {
        rig.submit("b@y.example");
    });
    assert_eq!(rig.closes.len(), 1, "one destination waits");
    rig.submit("a@z.example");
    assert_eq!(rig.closes.len(), 2);
    rig.by_hand.close = false;
    rig.close();
    assert_eq!(rig.accept_all(), 12);
}

#[test]
fn a_session_carries_so_many_messages() {
    let mut rig = Rig::new("max-smtp-out = 1\nmax-msg-per-connection = 3");
    (0..7).for_each(|_| {
        rig.submit("a@x.example");
    });
    let mut used = Vec::new();
    while rig.timeline().len() < 7 {
        if rig.transacts.is_empty() {
            rig.connect();
            used.push(0);
        }
        rig.accept();
        *used.last_mut().unwrap() += 1;
    }
    assert_eq!(used, [3, 3, 1]);
}

#[test]
fn a_transaction_carries_so_many_recipients() {
    let mut rig = Rig::new("max-smtp-out = 1");
    let to: Vec<_> = (0..250).map(|n| format!("a{n}@x.example")).collect();
    rig.submit_to(&to.iter().map(String::as_str).collect::<Vec<_>>());
    rig.connect();
    let mut sizes = Vec::new();
    while let Some((_, outgoing)) = rig.transacts.front() {
        sizes.push(outgoing.recipients.len());
        rig.accept();
    }
    assert_eq!(sizes, [100, 100, 50]);
    assert_eq!(rig.timeline().len(), 250);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

#[test]
fn recipients_too_many_for_the_server_go_at_once_uncharged() {
    let mut rig = Rig::new("");
    rig.submit_to(&["a@x.example", "b@x.example", "c@x.example"]);
    rig.connect();
    rig.transact(|_| rcpts(vec!["250 ok", "452 4.5.3 too many", "552 5.5.3 too many"], "250 ok"));
    assert_eq!(rig.transacts[0].1.recipients.len(), 2);
    rig.transact(|_| rcpts(vec!["452 4.5.3 too many", "250 ok"], "250 ok"));
    assert_eq!(
        rig.timeline(),
        ["0 delivered a@x.example", "0 delivered c@x.example", "0 deferred b@x.example 4.5.3"]
    );
    rig.pass(10 * MINUTE);
    assert_eq!(rig.accept_all(), 1);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

#[test]
fn outcomes_that_differ_split_an_item() {
    let mut rig = Rig::new("retry-after = [\"10m\"]");
    rig.submit_to(&["a@x.example", "b@x.example", "c@x.example"]);
    rig.connect();
    rig.transact(|_| rcpts(vec!["250 ok", "450 4.2.0 later", "550 5.1.1 no"], "250 ok"));
    rig.pass(10 * MINUTE);
    assert_eq!(rig.accept_all(), 1);
    let mut lines = rig.timeline();
    lines.sort();
    assert_eq!(
        lines,
        [
            "0 bounced c@x.example 5.1.1",
            "0 deferred b@x.example 4.2.0",
            "0 delivered a@x.example",
            "600 delivered b@x.example"
        ]
    );
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

#[test]
fn sessions_are_used_again_and_closed_when_idle() {
    let mut rig = Rig::new("connection-idle-timeout = \"5s\"");
    rig.submit("a@x.example");
    let first = rig.connect();
    rig.accept();
    rig.pass(Duration::from_secs(5) - Duration::from_micros(1));
    rig.submit("b@x.example");
    assert_eq!(rig.accept(), first);
    rig.by_hand.close = true;
    rig.pass(Duration::from_secs(5) - Duration::from_micros(1));
    assert!(rig.closes.is_empty());
    rig.pass(Duration::from_micros(1));
    rig.close();
    rig.scheduler.assert_empty();
}

#[test]
fn an_idle_timeout_of_zero_still_carries_what_waits() {
    let mut rig = Rig::new("connection-idle-timeout = \"0s\"\nmax-smtp-out = 1");
    (0..3).for_each(|_| {
        rig.submit("a@x.example");
    });
    rig.connect();
    (0..3).for_each(|_| {
        rig.accept();
    });
    rig.pass(Duration::ZERO);
    rig.scheduler.assert_empty();
}

#[test]
fn a_session_that_ends_while_idle_gives_its_permits_back() {
    let mut rig = rig(1, "");
    rig.submit("a@x.example");
    let connection = rig.connect();
    rig.accept();
    let end = SessionEnd { stage: Stage::Mail, cause: EndCause::Closed };
    rig.tell(Event::SessionEnded { connection, end });
    rig.scheduler.assert_empty();
    rig.submit("b@x.example");
    assert_eq!(rig.accept_all(), 1);
}

#[test]
fn look_ups_are_bounded_and_single() {
    let bounds = Bounds { look_ups: 2, ..Bounds::default() };
    let mut rig = Rig::with_policy("", bounds);
    rig.by_hand.resolve = true;
    for n in 0..5 {
        rig.submit(&format!("a@x{n}.example"));
        rig.submit(&format!("b@x{n}.example"));
    }
    assert_eq!(rig.resolves.len(), 2);
    rig.resolve();
    assert_eq!(rig.resolves.len(), 2, "the next waiter's turn");
    rig.by_hand.resolve = false;
    rig.resolve();
    assert_eq!(rig.accept_all(), 10);
}

#[test]
fn sessions_to_addresses_that_are_the_domains_no_more_are_retired() {
    let mut rig = Rig::new("connection-idle-timeout = \"10m\"\nmax-smtp-out = 2");
    let mut gone = (*route(&[&[("mx", &["192.0.2.1:25"])]])).clone();
    gone.ttl = Duration::from_secs(1);
    rig.routes.insert("x.example".to_owned(), Ok(gone.into()));
    rig.submit("a@x.example");
    rig.connect();
    rig.submit("b@x.example");
    rig.connect();
    rig.accept();
    rig.routes.insert("x.example".to_owned(), Ok(route(&[&[("mx", &["192.0.2.9:25"])]])));
    rig.pass(Duration::from_secs(2));
    rig.submit("c@x.example");
    rig.submit("d@x.example");
    // Before c is sent over the session that is there, the domain is looked up again.
    while !rig.transacts.is_empty() {
        rig.accept();
    }
    assert_eq!(rig.connects[0].1.peer, "192.0.2.9:25".parse().unwrap(), "none of the old ones carries them");
    assert_eq!(rig.accept_all(), 2);
}
