//! CONTROLS §2: expiry by age, by timer, wherever the message waits.

use std::time::Duration;

use super::harness::*;
use crate::event::{DeliveryEvent, Failure};
use crate::message::Message;
use crate::scheduler::Bounds;
use crate::transport::EndCause;

const DAY: &str = "bounce-after = \"1d\"\nretry-after = [\"7h\"]";

fn message(to: &str) -> Message {
    Message::new("", [to], "x").unwrap()
}

#[test]
fn a_message_expires_in_the_store_between_two_retries() {
    let mut rig = Rig::new(DAY);
    rig.submit("a@x.example");
    for _ in 0..4 {
        rig.connect();
        rig.transact(all_rcpts("452 4.2.2 over quota"));
        rig.pass(7 * HOUR);
    }
    assert_eq!(rig.timeline()[4..], ["86400 bounced a@x.example 4.4.7"]);
    let Some(DeliveryEvent::Bounced(bounced)) = rig.events.last() else { panic!() };
    let Failure::Reply(last) = &bounced.diagnosis.failure else { panic!() };
    assert_eq!(last.to_string(), "452 4.2.2 over quota", "the last remote reply");
    assert_eq!((bounced.record.attempts, bounced.record.mx.as_deref()), (4, Some("mx.x.example")));
    rig.scheduler.assert_empty();
}

#[test]
fn it_expires_while_its_destination_is_held_and_says_what_held_it() {
    let mut rig = Rig::new("bounce-after = \"15m\"\nretry-after = [\"10m\"]");
    rig.submit("a@x.example");
    rig.fail_connect(EndCause::Reply(reply("554 5.7.1 listed")));
    rig.pass(10 * MINUTE);
    rig.fail_connect(EndCause::Reply(reply("554 5.7.1 listed")));
    rig.pass(5 * MINUTE);
    assert_eq!(rig.last_line(), "900 bounced a@x.example 4.4.7 never-attempted");
    let Some(DeliveryEvent::Bounced(bounced)) = rig.events.last() else { panic!() };
    let Failure::Engine(words) = &bounced.diagnosis.failure else { panic!() };
    assert!(words.contains("554 5.7.1 listed"), "{words}");
    assert_eq!(bounced.record.attempts, 0);
    rig.pass(10 * MINUTE);
    rig.scheduler.assert_empty();
}

#[test]
fn it_expires_in_the_window_while_it_waits_for_a_slot() {
    let mut rig = Rig::new("bounce-after = \"1h\"\nmax-smtp-out = 1");
    rig.submit("a@x.example");
    rig.submit("b@x.example");
    rig.connect();
    rig.pass(HOUR - Duration::from_micros(1));
    assert!(rig.timeline().is_empty());
    rig.pass(Duration::from_micros(1));
    assert_eq!(
        rig.timeline(),
        ["3600 bounced b@x.example 4.4.7 never-attempted"],
        "what is in flight is not cut"
    );
    rig.accept();
    assert_eq!(rig.last_line(), "3600 delivered a@x.example");
    assert!(rig.transacts.is_empty());
}

#[test]
fn a_transaction_that_fails_past_the_age_expires_at_once_with_its_reply() {
    let mut rig = Rig::new("bounce-after = \"1h\"");
    rig.submit("a@x.example");
    rig.connect();
    rig.pass(HOUR);
    rig.transact(all_rcpts("450 4.7.0 slow"));
    assert_eq!(rig.timeline(), ["3600 bounced a@x.example 4.4.7"]);
}

#[test]
fn no_attempt_is_made_at_or_after_the_age() {
    let mut rig = Rig::new("bounce-after = \"10m\"\nretry-after = [\"10m\"]");
    rig.submit("a@x.example");
    rig.connect();
    rig.transact(all_rcpts("450 4.7.0 slow"));
    rig.pass(10 * MINUTE);
    assert!(rig.transacts.is_empty() && rig.connects.is_empty());
    assert_eq!(rig.last_line(), "600 bounced a@x.example 4.4.7");
}

#[test]
fn a_messages_own_age_goes_before_its_queues() {
    let mut rig = Rig::new("bounce-after = \"1h\"\nretry-after = [\"9h\"]");
    rig.submit_message(message("short@x.example").expires_after(10 * MINUTE));
    rig.submit_message(message("queue@x.example"));
    rig.submit_message(message("long@x.example").expires_after(3 * HOUR));
    rig.refuse();
    rig.pass(9 * HOUR);
    let bounces: Vec<_> = rig.timeline().into_iter().filter(|line| line.contains("bounced")).collect();
    assert_eq!(
        bounces,
        [
            "600 bounced short@x.example 4.4.7 never-attempted",
            "3600 bounced queue@x.example 4.4.7 never-attempted",
            "10800 bounced long@x.example 4.4.7 never-attempted",
        ]
    );
}

#[test]
fn mail_with_an_age_of_its_own_is_not_looked_for_at_its_queues() {
    let mut rig = Rig::new("bounce-after = \"1h\"\nretry-after = [\"9h\"]");
    rig.submit_message(message("long@x.example").expires_after(3 * HOUR));
    rig.connect();
    rig.transact(all_rcpts("450 4.7.0 slow"));
    rig.pass(30 * MINUTE);
    assert_eq!(rig.next_timer(), 3 * HOUR - 30 * MINUTE, "its own age comes next");
}

#[test]
fn ages_count_from_hold_until() {
    let mut rig = Rig::new("bounce-after = \"1h\"");
    rig.submit_message(message("a@x.example").hold_until(start() + 2 * HOUR));
    rig.pass(2 * HOUR - Duration::from_micros(1));
    assert!(rig.connects.is_empty());
    rig.pass(Duration::from_micros(1));
    rig.refuse();
    rig.pass(HOUR);
    assert!(
        rig.timeline().contains(&"10800 bounced a@x.example 4.4.7 never-attempted".to_owned()),
        "{:?}",
        rig.timeline()
    );
}

/// More than one claim's worth, and more than the window holds.
#[test]
fn thousands_expire_at_once() {
    let bounds = Bounds { window: 50, window_per_destination: 10, ..Bounds::default() };
    let mut rig = Rig::with_policy("[domain.\"*\"]\nbounce-after = \"1h\"\nretry-after = [\"2h\"]", bounds);
    (0..1_000).for_each(|n| {
        rig.submit(&format!("a{n}@x.example"));
    });
    while !rig.connects.is_empty() {
        rig.refuse();
    }
    rig.pass(HOUR);
    assert_eq!(rig.timeline().len(), 1_001);
    rig.pass(2 * HOUR);
    rig.scheduler.assert_empty();
}

#[test]
fn mail_that_expired_while_the_engine_was_down_is_not_tried() {
    let mut rig = Rig::new("");
    rig.submit("a@x.example");
    rig.refuse();
    rig.now = rig.now + 24 * 5 * HOUR;
    let mut rig = rig.restarted("");
    rig.pass(Duration::ZERO);
    assert!(rig.connects.is_empty() && rig.transacts.is_empty());
    assert_eq!(rig.timeline(), ["432000 bounced a@x.example 4.4.7 never-attempted"]);
}
