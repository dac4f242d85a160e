//! CONTROLS §3: a rule that bounces a whole queue, and the fuse that keeps rules and DNS from doing too much.

use super::harness::*;
use crate::event::Failure;
use crate::message::Message;
use crate::reply::Stage;
use crate::scheduler::Bounds;
use crate::transport::EndCause;

fn policy(settings: &str) -> String {
    let rule = |name: &str, actions: &str| {
        format!("[[reply-rule]]\nname = \"{name}\"\nmatch = '\\[{name}\\]'\nactions = \"{actions}\"\n")
    };
    let rules = rule("all", "bounce-queue") + &rule("one", "bounce-rcpt");
    format!("{rules}[domain.\"*\"]\n{settings}\n")
}

fn rig(settings: &str) -> Rig {
    Rig::with_policy(&policy(settings), Bounds::default())
}

fn count(rig: &Rig, word: &str) -> usize {
    rig.timeline().iter().filter(|line| line.contains(word)).count()
}

const NEVER: &str = "554 5.7.1 [all] never";
const BUSY: &str = "450 4.7.1 [all] not now";

#[test]
fn every_message_in_the_queue_bounces_wherever_it_is() {
    for restarts in [false, true] {
        let mut rig = rig("max-smtp-out = 2");
        // Deferred, its retry an hour and more away; held until tomorrow; waiting; in a transaction.
        rig.submit("deferred@x.example");
        rig.connect();
        rig.transact(all_rcpts("450 4.2.0 later"));
        let mut held = Message::new("", ["held@x.example"], "x").unwrap();
        held.hold_until = Some(start() + 24 * HOUR);
        rig.submit_message(held);
        let mut expires = Message::new("", ["expires@x.example"], "x").unwrap();
        expires.expires_after = Some(24 * HOUR);
        rig.submit_message(expires);
        rig.transact(all_rcpts("450 4.2.0 later"));
        rig.pass(MINUTE);
        if restarts {
            rig = rig.restarted(&policy("max-smtp-out = 2"));
        }
        rig.submit("a0@y.example");
        for n in 0..4 {
            rig.submit(&format!("a{n}@x.example"));
        }
        rig.submit("late@x.example");
        while !rig.connects.is_empty() {
            rig.connect();
        }
        let in_y =
            rig.transacts.iter().position(|(_, sent)| sent.recipients[0].as_str().ends_with("@y.example"));
        let y = rig.transacts.remove(in_y.unwrap()).unwrap();
        assert_eq!(rig.transacts.len(), 2);
        rig.transact(all_rcpts(NEVER));
        let bounced = count(&rig, "bounced");
        assert_eq!(bounced, 7, "all but the one in a transaction: {:?}", rig.timeline());
        rig.transact(all_rcpts("450 4.2.0 later"));
        assert_eq!(count(&rig, "bounced"), 8, "it ends when its transaction does");
        assert!(rig.timeline().iter().all(|line| !line.contains("y.example")), "of this queue alone");
        let last = rig.bounced();
        assert_eq!((last.diagnosis.rule.as_deref(), last.diagnosis.stage), (Some("all"), Stage::Rcpt));
        assert_eq!(last.diagnosis.failure, Failure::Reply(reply(NEVER)));
        rig.transacts.push_back(y);
        rig.accept();
        rig.pass(25 * HOUR);
        rig.accept_all();
        assert_eq!(count(&rig, "held@x.example"), 1);
        rig.pass(HOUR);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn what_comes_later_is_tried_again() {
    let mut rig = rig("");
    rig.submit("a@x.example");
    rig.fail_connect(EndCause::Reply(reply(NEVER)));
    assert_eq!(rig.timeline(), ["0 bounced a@x.example 5.7.1"]);
    rig.submit("b@x.example");
    assert_eq!(rig.accept_all(), 1);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

#[test]
fn more_mail_than_the_window_holds_bounces_too() {
    let mut rig = rig("retry-after = [\"1h\"]");
    rig.check_every = 50;
    (0..700).for_each(|n| {
        rig.submit(&format!("a{n}@x.example"));
    });
    rig.refuse();
    rig.pass(HOUR);
    rig.connect();
    rig.transact(all_rcpts(NEVER));
    assert_eq!(count(&rig, "bounced"), 700);
    rig.pass(MINUTE);
    rig.refuse_all();
    rig.pass(HOUR);
    rig.scheduler.assert_empty();
}

/// The fuse counts each message that a bounce-queue ends: what is beyond stays.
#[test]
fn the_fuse_stops_a_bounce_queue() {
    for at_connect in [false, true] {
        let settings = "bounce-fuse = \"10/10m\"\nretry-after = [\"1h\"]\nbounce-after = \"1d\"";
        let mut rig = rig(settings);
        rig.check_every = 10;
        (0..400).for_each(|n| {
            rig.submit(&format!("a{n}@x.example"));
        });
        rig.refuse();
        rig.pass(HOUR);
        if at_connect {
            rig.fail_connect(EndCause::Reply(reply(BUSY)));
            while !rig.connects.is_empty() {
                rig.fail_connect(EndCause::Reply(reply(BUSY)));
            }
            assert_eq!(rig.last_line(), "3600 queue-deferred x.example 4.7.1", "it waits for its step");
        } else {
            rig.connect();
            rig.transact(all_rcpts(BUSY));
        }
        assert_eq!((count(&rig, "bounced"), count(&rig, "fuse-blown")), (10, 1), "{at_connect}");
        assert_eq!(count(&rig, " deferred a"), 1, "one more is held");
        rig = rig.restarted(&policy(settings));
        while rig.wanted_by(10 * 3600) {
            rig.connect();
            while !rig.transacts.is_empty() {
                rig.transact(all_rcpts(BUSY));
            }
            if rig.connects.is_empty() && rig.elapsed() > 9 * 3600 {
                break;
            }
        }
        assert_eq!(count(&rig, "bounced"), 0, "over a restart, and past its period");
        rig.pass(24 * HOUR);
        let ended = count(&rig, "bounced");
        assert_eq!(ended, 390, "nothing is lost, at connect: {at_connect}");
    }
}

#[test]
fn past_the_fuse_a_recipient_is_held_uncharged_until_it_expires() {
    let mut rig = rig("bounce-fuse = \"2/10m\"\nbounce-after = \"5h\"");
    for n in 0..5 {
        rig.submit(&format!("a{n}@x.example"));
    }
    rig.submit("permanent@x.example");
    rig.connect();
    for _ in 0..5 {
        while !rig.connects.is_empty() {
            rig.connect();
        }
        let place = rig.transacts.iter().position(|(_, sent)| sent.recipients[0].as_str().starts_with('a'));
        rig.transacts.swap(0, place.unwrap());
        rig.transact(all_rcpts("452 4.2.2 [one] full"));
    }
    rig.transact(all_rcpts("550 5.1.1 [one] unknown"));
    assert_eq!((count(&rig, "bounced a"), count(&rig, "fuse-blown"), count(&rig, " deferred a")), (2, 1, 3));
    assert_eq!(count(&rig, "bounced permanent"), 1, "its own 5xx is no rule's doing");
    let held = rig.deferred();
    assert_eq!((held.diagnosis.rule.as_deref(), held.record.attempts), (Some("one"), 0));
    assert_eq!(held.next_attempt, start() + 5 * HOUR, "none before it expires");
    rig.pass(HOUR);
    assert!(rig.connects.is_empty() && rig.transacts.is_empty());
    rig = rig.restarted(&policy("bounce-fuse = \"2/10m\"\nbounce-after = \"5h\""));
    rig.pass(4 * HOUR);
    assert_eq!(count(&rig, "18000 bounced a"), 3);
    assert_eq!(rig.bounced().diagnosis.failure, Failure::Reply(reply("452 4.2.2 [one] full")));
}

#[test]
fn the_fuse_counts_within_its_period() {
    let mut rig = rig("bounce-fuse = \"2/10m\"");
    for n in 0..8 {
        rig.submit(&format!("a{n}@x.example"));
        if rig.transacts.is_empty() {
            rig.connect();
        }
        rig.transact(all_rcpts("452 4.2.2 [one] full"));
        rig.pass(5 * MINUTE);
    }
    assert_eq!((count(&rig, "bounced"), count(&rig, "fuse-blown")), (8, 0));
}

#[test]
fn what_is_cancelled_is_not_held() {
    let mut rig = rig("bounce-fuse = \"1/10m\"");
    for n in 0..2 {
        rig.submit(&format!("a{n}@x.example"));
        if n == 0 {
            rig.connect();
            rig.transact(all_rcpts("452 4.2.2 [one] full"));
        }
    }
    let id = rig.submit("b@x.example");
    rig.transact(all_rcpts("452 4.2.2 [one] full"));
    rig.cancel(id);
    rig.transact(all_rcpts("452 4.2.2 [one] full"));
    assert_eq!(rig.last_line(), "0 cancelled b@x.example");
}

/// Two recipients of one message, held back, when the fuse lets one bounce through.
#[test]
fn what_the_fuse_stops_in_the_middle_of_a_message_is_held_and_not_lost() {
    let mut rig = rig("bounce-fuse = \"1/1h\"\nbounce-after = \"3h\"");
    let mut held = Message::new("", ["h0@x.example", "h1@x.example"], "x").unwrap();
    held.hold_until = Some(start() + HOUR);
    rig.submit_message(held);
    rig.submit("a@x.example");
    rig.connect();
    rig.transact(all_rcpts(NEVER));
    assert_eq!(count(&rig, "bounced"), 2, "{:?}", rig.timeline());
    rig.pass(5 * HOUR);
    assert_eq!(count(&rig, "bounced"), 3, "the one held expires: {:?}", rig.timeline());
    rig.pass(HOUR);
    assert!(rig.scheduler.is_idle(), "nothing is left of it");
}
