//! The host's verbs, and policies replaced while mail is under way.

use std::time::Duration;

use super::harness::*;
use crate::control::{CancelAs, FuseDecision, Selector};
use crate::dns::RouteFailureKind;
use crate::message::{Domain, Message};
use crate::policy::Policy;
use crate::scheduler::{Control, Event};

fn domain(name: &str) -> Selector {
    Domain::parse(name).unwrap().into()
}

fn tagged(to: &str, value: &str) -> Message {
    Message::new("s@sender.example", [to], "Subject: x\r\n\r\nhi\r\n").unwrap().with_tag("job", value)
}

/// Mail in the window, in the store and due later, and in a transaction.
fn mixed(rig: &mut Rig) {
    rig.submit("later@x.example");
    rig.connect();
    rig.transact(all_rcpts("450 4.2.0 later"));
    rig.submit("busy@x.example");
    rig.submit("waiting@x.example");
    rig.submit_message(tagged("tagged@x.example", "7"));
    rig.submit("other@y.example");
}

const SETTINGS: &str = "max-smtp-out = 1\nretry-after = [\"10m\"]";

#[test]
fn pauses_hold_what_they_name_and_survive_restarts() {
    for selector in [domain("x.example"), Selector::queue("X.example"), Selector::source("default")] {
        let mut rig = Rig::new(SETTINGS);
        mixed(&mut rig);
        rig.control(Control::Pause(selector.clone()));
        // What is under way ends, and nothing follows.
        rig.accept();
        assert!(rig.transacts.is_empty(), "{selector:?}");
        rig.pass(HOUR);
        let of_x = |rig: &Rig| {
            rig.timeline().iter().filter(|line| line.contains("delivered") && line.contains("@x")).count()
        };
        assert_eq!(of_x(&rig), 1, "{selector:?}");
        rig.connects.clear();
        let mut rig = rig.restarted(&format!("[domain.\"*\"]\n{SETTINGS}"));
        rig.pass(HOUR);
        rig.accept_all();
        assert_eq!(of_x(&rig), 0, "{selector:?}: {:?}", rig.timeline());
        let token = rig.control(Control::Resume(selector.clone()));
        assert_eq!(rig.done[&token].as_ref().ok(), Some(&1));
        rig.accept_all();
        rig.pass(HOUR);
        rig.accept_all();
        assert_eq!(of_x(&rig), 3, "{selector:?}: {:?}", rig.timeline());
        rig.pass(HOUR);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn messages_are_paused_by_id_and_by_tag() {
    for by_tag in [false, true] {
        let mut rig = Rig::new(SETTINGS);
        rig.submit("first@x.example");
        let token = rig.submit_message(tagged("a@x.example", "7"));
        let id = *rig.submitted[&token].as_ref().unwrap();
        let selector = if by_tag { Selector::tag("job", "7") } else { id.into() };
        rig.control(Control::Pause(selector.clone()));
        rig.submit_message(tagged("b@x.example", "7"));
        assert_eq!(rig.accept_all(), if by_tag { 1 } else { 2 });
        let mut rig = rig.restarted(&format!("[domain.\"*\"]\n{SETTINGS}"));
        rig.pass(HOUR);
        assert_eq!(rig.accept_all(), 0);
        rig.control(Control::Resume(selector));
        assert_eq!(rig.accept_all(), if by_tag { 2 } else { 1 });
        rig.pass(HOUR);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn paused_mail_expires_all_the_same() {
    let mut rig = Rig::new("bounce-after = \"2h\"");
    rig.control(Control::Pause(domain("x.example")));
    rig.control(Control::Pause(Selector::tag("job", "7")));
    rig.submit("a@x.example");
    rig.submit_message(tagged("b@y.example", "7"));
    rig.pass(3 * HOUR);
    let mut lines = rig.timeline();
    lines.retain(|line| line.contains("bounced"));
    assert_eq!(
        lines,
        ["7200 bounced a@x.example 4.4.7 never-attempted", "7200 bounced b@y.example 4.4.7 never-attempted"]
    );
}

#[test]
fn all_that_is_selected_is_cancelled_and_nothing_else() {
    for selector in [domain("x.example"), Selector::queue("x.example"), Selector::source("default")] {
        for ending in [CancelAs::Cancelled, CancelAs::Bounced] {
            let mut rig = Rig::new(SETTINGS);
            mixed(&mut rig);
            let token = rig.control(Control::Cancel(selector.clone(), ending));
            assert!(!rig.cancelled.contains_key(&token), "one is in a transaction");
            // It fails, and is not tried again.
            rig.transact(all_rcpts("450 4.2.0 later"));
            let report = *rig.cancelled[&token].as_ref().unwrap();
            let word = if ending == CancelAs::Bounced { "bounced" } else { "cancelled" };
            let ended = rig.timeline().iter().filter(|line| line.contains(word)).count();
            let all = if matches!(selector, Selector::Source(_)) { 5 } else { 4 };
            assert_eq!(ended, all, "{selector:?} {:?}", rig.timeline());
            assert_eq!((report.cancelled as usize, report.in_flight), (all, 1), "{selector:?}");
            // What comes later is not concerned.
            rig.pass(MINUTE);
            rig.submit("new@x.example");
            rig.accept_all();
            assert!(rig.timeline().iter().any(|line| line.contains("delivered new@x.example")));
            rig.pass(HOUR);
            rig.accept_all();
            rig.pass(HOUR);
            rig.scheduler.assert_empty();
        }
    }
}

#[test]
fn tags_are_cancelled_wherever_their_mail_lies() {
    let mut rig = Rig::new(SETTINGS);
    for n in 0..10 {
        rig.submit_message(tagged(&format!("a{n}@x{}.example", n % 3), if n < 8 { "7" } else { "8" }));
    }
    rig.by_hand.resolve = false;
    let token = rig.control(Control::Cancel(Selector::tag("job", "7"), CancelAs::Bounced));
    assert!(rig.transacts.is_empty() && rig.cancelled.contains_key(&token));
    assert_eq!(rig.timeline().iter().filter(|line| line.ends_with("5.0.0 cancelled")).count(), 8);
    assert_eq!(rig.accept_all(), 2);
    // In the store, due later, and in a transaction that fails.
    rig.submit_message(tagged("stored@x.example", "9"));
    rig.connect();
    rig.transact(all_rcpts("450 4.2.0 later"));
    rig.submit_message(tagged("busy@x.example", "9"));
    rig.pass(Duration::from_secs(1));
    let token = rig.control(Control::Cancel(Selector::tag("job", "9"), CancelAs::Cancelled));
    rig.transact(all_rcpts("450 4.2.0 later"));
    assert_eq!(rig.cancelled[&token].as_ref().unwrap().cancelled, 2);
    rig.pass(HOUR);
    rig.scheduler.assert_empty();
}

#[test]
fn a_message_is_cancelled_with_a_bounce() {
    let mut rig = Rig::new("");
    let id = rig.submit("a@x.example");
    rig.control(Control::Cancel(id.into(), CancelAs::Bounced));
    assert_eq!(rig.last_line(), "0 bounced a@x.example 5.0.0 cancelled");
}

#[test]
fn retry_now_makes_what_waits_due() {
    for selector in [domain("x.example"), Selector::queue("x.example"), Selector::source("default")] {
        let mut rig = Rig::new("retry-after = [\"1h\"]");
        // One was refused, the destination of the others is in retry mode.
        rig.submit("a@x.example");
        rig.connect();
        rig.transact(all_rcpts("450 4.2.0 later"));
        rig.pass(MINUTE);
        rig.submit("b@x.example");
        rig.refuse();
        let token = rig.control(Control::RetryNow(selector.clone()));
        assert_eq!(rig.done[&token].as_ref().ok(), Some(&1), "{selector:?}");
        assert_eq!(rig.connects.len(), 1, "{selector:?}");
        assert_eq!(rig.accept_all(), 2, "{selector:?}");
    }
}

#[test]
fn one_message_or_a_tag_is_retried_now() {
    let mut rig = Rig::new("retry-after = [\"1h\"]\nmax-smtp-out = 1");
    let token = rig.submit_message(tagged("a@x.example", "7"));
    let id = *rig.submitted[&token].as_ref().unwrap();
    rig.submit("b@x.example");
    rig.connect();
    rig.transact(all_rcpts("450 4.2.0 later"));
    rig.transact(all_rcpts("450 4.2.0 later"));
    rig.control(Control::RetryNow(id.into()));
    rig.transact(all_rcpts("450 4.2.0 later"));
    assert!(rig.transacts.is_empty() && rig.connects.is_empty(), "the other waits");
    rig.control(Control::RetryNow(Selector::tag("job", "7")));
    assert_eq!(rig.accept_all(), 1);
    assert_eq!(rig.last_line(), "0 delivered a@x.example");
}

/// What is deferred once more lies before it in the order of due times.
#[test]
fn a_retry_of_much_mail_goes_over_each_once() {
    let mut rig = Rig::new("retry-after = [\"1h\"]\nmax-smtp-out = 1");
    (0..7).for_each(|_| {
        rig.submit("a@x.example");
    });
    rig.connect();
    rig.refuse_transactions("450 4.2.0 later");
    assert_eq!(rig.left().len(), 7);
    rig.pass(MINUTE);
    rig.by_hand.list = true;
    let token = rig.control(Control::RetryNow(domain("x.example")));
    let mut pages = 0;
    while !rig.pages.is_empty() && pages < 20 {
        rig.pass(Duration::from_secs(1));
        rig.page();
        pages += 1;
        if rig.transacts.is_empty() && !rig.connects.is_empty() {
            rig.connect();
        }
        rig.refuse_transactions("450 4.2.0 later");
    }
    assert_eq!(rig.done.get(&token).and_then(|done| done.as_ref().ok()), Some(&7), "{pages} pages");
    assert_eq!(rig.offered.len(), 14);
}

#[test]
fn modes_are_set_by_hand() {
    for selector in [domain("x.example"), Selector::queue("x.example"), Selector::source("default")] {
        backoff_by_hand(selector);
    }
}

fn backoff_by_hand(selector: Selector) {
    let mut rig = Rig::new("backoff-retry-after = [\"3h\"]\nretry-after = [\"10m\"]");
    rig.submit("a@x.example");
    rig.control(Control::SetBackoff { selector, backoff: true });
    assert_eq!(rig.last_line(), "0 queue-mode x.example backoff");
    rig.connect();
    rig.transact(all_rcpts("450 4.2.0 later"));
    rig.pass(3 * HOUR - MINUTE);
    assert!(rig.connects.is_empty());
    rig.pass(MINUTE);
    rig.control(Control::SetBackoff { selector: Selector::queue("x.example"), backoff: false });
    assert_eq!(rig.accept_all(), 1);
    rig.pass(HOUR);
    rig.scheduler.assert_empty();
}

#[test]
fn a_blown_fuse_holds_until_somebody_decides() {
    for decision in [FuseDecision::Bounce, FuseDecision::Keep] {
        let mut rig = Rig::new("bounce-fuse = \"3/1h\"\nmax-smtp-out = 1");
        rig.routes.insert("x.example".to_owned(), no_route(RouteFailureKind::NxDomain));
        for n in 0..6 {
            rig.submit(&format!("a{n}@x.example"));
        }
        let bounced = |rig: &Rig| rig.timeline().iter().filter(|line| line.contains("bounced")).count();
        assert_eq!(bounced(&rig), 3, "{:?}", rig.timeline());
        assert!(rig.timeline().contains(&"0 queue-mode x.example fuse-blown".to_owned()));
        rig.pass(2 * HOUR);
        assert_eq!(bounced(&rig), 3);
        rig.routes.remove("x.example");
        let token = rig.control(Control::DecideFuse { queue: "x.example".into(), decision });
        assert_eq!(rig.done[&token].as_ref().ok(), Some(&3));
        match decision {
            FuseDecision::Bounce => assert_eq!(bounced(&rig), 6),
            FuseDecision::Keep => assert_eq!(rig.accept_all(), 3),
        }
        rig.pass(2 * HOUR);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn a_fuse_is_reset_also_when_nothing_is_left_of_what_it_held() {
    for decision in [FuseDecision::Bounce, FuseDecision::Keep] {
        let mut rig = Rig::new("bounce-fuse = \"1/1h\"\nbounce-after = \"2h\"");
        rig.routes.insert("x.example".to_owned(), no_route(RouteFailureKind::NxDomain));
        rig.submit("a@x.example");
        rig.submit("b@x.example");
        rig.pass(3 * HOUR);
        assert!(rig.scheduler.is_idle(), "{:?}", rig.timeline());
        rig.control(Control::DecideFuse { queue: "x.example".into(), decision });
        assert!(rig.last_line().contains("fuse-reset"), "{decision:?}: {:?}", rig.timeline());
        rig.pass(HOUR);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn a_policy_takes_the_place_of_another_at_once() {
    let mut rig = Rig::new("max-smtp-out = 4");
    for n in 0..20 {
        rig.submit(&format!("a{n}@x.example"));
    }
    (0..4).for_each(|_| {
        rig.connect();
    });
    assert_eq!(rig.transacts.len(), 4);
    let narrow = "[engine]\nmax-connections = 3\n[domain.\"*\"]\nmax-smtp-out = 2\n";
    rig.tell(Event::Policy(Box::new(Policy::from_toml(narrow).unwrap())));
    assert_eq!(rig.transacts.len(), 4, "nothing is cut");
    (0..4).for_each(|_| {
        rig.accept();
    });
    assert_eq!(rig.scheduler.open_connections(), 2);
    let wide = "[domain.\"*\"]\nmax-smtp-out = 9\n";
    rig.tell(Event::Policy(Box::new(Policy::from_toml(wide).unwrap())));
    assert!(!rig.connects.is_empty(), "more is allowed at once");
    rig.accept_all();
    assert_eq!(rig.timeline().len(), 20);
    rig.pass(HOUR);
    rig.scheduler.assert_empty();
}

/// Sessions that have nothing to do are not used again where a new limit of their address allows fewer.
#[test]
fn a_new_limit_of_an_address_closes_idle_sessions() {
    let mut rig = Rig::new("connection-idle-timeout = \"1m\"");
    for n in 0..4 {
        rig.lead_to(&format!("d{n}.example"), "mx.p.example", &["198.51.100.1:25"]);
        rig.submit(&format!("a@d{n}.example"));
    }
    (0..4).for_each(|_| {
        rig.connect();
    });
    (0..4).for_each(|_| {
        rig.accept();
    });
    assert_eq!(rig.scheduler.open_connections(), 4);
    let narrow = "[[ip-connection-limit]]\ncidr = \"198.51.100.1\"\nlimit = 1\n";
    rig.tell(Event::Policy(Box::new(Policy::from_toml(narrow).unwrap())));
    assert_eq!(rig.scheduler.open_connections(), 1);
    rig.submit("b@d0.example");
    rig.accept_all();
    assert_eq!(rig.dialled.len(), 4, "the one that is left serves");
}

#[test]
fn a_new_policy_decides_anew_where_mail_goes() {
    let rollup = "[[rollup]]\nqueue = \"p.rollup\"\nmx = [\"*.provider.example\"]\n[domain.\"*\"]\nretry-after = [\"10m\"]\n";
    let mut rig = Rig::with_policy(rollup, crate::scheduler::Bounds::default());
    let provider = || Ok(route(&[&[("mx.provider.example", &["192.0.2.1:25"])]]));
    rig.routes.insert("x.example".to_owned(), provider());
    rig.submit("a@x.example");
    rig.connect();
    rig.transact(all_rcpts("450 4.2.0 later"));
    let queue = |rig: &Rig| match rig.events.last().unwrap() {
        crate::event::DeliveryEvent::Deferred(e) => e.record.queue.to_string(),
        crate::event::DeliveryEvent::Delivered(e) => e.record.queue.to_string(),
        _ => String::new(),
    };
    assert_eq!(queue(&rig), "p.rollup");
    let plain = "[domain.\"*\"]\nretry-after = [\"10m\"]\n";
    rig.tell(Event::Policy(Box::new(Policy::from_toml(plain).unwrap())));
    rig.pass(10 * MINUTE);
    rig.connect();
    rig.transact(all_rcpts("450 4.2.0 later"));
    assert_eq!(queue(&rig), "x.example");
    rig.tell(Event::Policy(Box::new(Policy::from_toml(rollup).unwrap())));
    rig.pass(10 * MINUTE);
    rig.accept_all();
    assert_eq!(queue(&rig), "p.rollup");
    rig.pass(HOUR);
    rig.scheduler.assert_empty();
}

/// What an older policy wanted to know is no answer to a newer one: that may ask for TLSA records, or another family.
#[test]
fn a_look_up_that_began_under_the_policy_before_is_made_anew() {
    let mut rig = Rig::new(SETTINGS);
    rig.by_hand.resolve = true;
    rig.answer_with("x.example", Ok(route(&[&[("old.x.example", &["198.51.100.1:25"])]])));
    rig.submit("a@x.example");
    assert_eq!(rig.resolves.len(), 1);
    let policy = format!("[domain.'*']\n{SETTINGS}");
    rig.tell(Event::Policy(Box::new(Policy::from_toml(&policy).unwrap())));
    rig.resolve();
    assert!(rig.connects.is_empty());
    rig.answer_with("x.example", Ok(route(&[&[("new.x.example", &["198.51.100.2:25"])]])));
    rig.resolve();
    assert_eq!(rig.opening().1.peer.to_string(), "198.51.100.2:25");
    assert!(rig.resolves.is_empty());
}
