//! CONTROLS §2: the recipient's clock and the destination's.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use super::harness::*;
use crate::event::DeliveryEvent;
use crate::storage::{Filter, Storage};

const LIST: &str = "retry-after = [\"5m\", \"10m\", \"15m\", \"30m\", \"1h\"]";
const MICRO: Duration = Duration::from_micros(1);

fn attempts(rig: &mut Rig, count: usize, mut fail: impl FnMut(&mut Rig)) -> Vec<u64> {
    let mut waited = Vec::new();
    fail(rig);
    for _ in 0..count {
        let failed = rig.now;
        while rig.connects.is_empty() && rig.transacts.is_empty() {
            rig.next_timer();
        }
        waited.push(rig.now.saturating_since(failed).as_micros() as u64);
        fail(rig);
    }
    waited
}

fn minutes(list: &[u64]) -> Vec<u64> {
    list.iter().map(|minutes| minutes * 60_000_000).collect()
}

#[test]
fn recipients_that_met_the_same_keep_it_once() {
    let mut rig = Rig::new("");
    rig.submit_to(&["a@x.example", "b@x.example", "c@x.example"]);
    rig.connect();
    rig.transact(|_| rcpts(vec!["250 ok", "450 4.2.0 busy", "250 ok"], "451 4.3.0 later"));
    let list = rig.store.list(Filter::All, None, 9).now_or_never().unwrap().unwrap();
    let recipients = list.iter().flat_map(|item| &item.recipients);
    let met: Vec<_> = recipients.map(|recipient| recipient.last.clone().unwrap()).collect();
    assert_eq!(met.len(), 3);
    let of_c = met.iter().filter(|last| Arc::ptr_eq(last, &met[2])).count();
    let different = met.iter().filter(|last| **last != met[2]).count();
    assert_eq!((of_c, different), (2, 1), "{met:?}");
}

#[test]
fn a_recipient_waits_each_interval_to_the_microsecond() {
    let mut rig = Rig::new(LIST);
    rig.submit("a@x.example");
    let waited = attempts(&mut rig, 7, |rig| {
        rig.connect();
        // The interval counts from the attempt's end.
        rig.now = rig.now + Duration::from_micros(700_001);
        rig.transact(all_rcpts("450 4.2.0 later"));
    });
    assert_eq!(waited, minutes(&[5, 10, 15, 30, 60, 60, 60]));
}

#[test]
fn a_destination_waits_each_interval_to_the_microsecond() {
    let mut rig = Rig::new(LIST);
    rig.submit("a@x.example");
    let waited = attempts(&mut rig, 7, |rig| {
        rig.now = rig.now + Duration::from_micros(300_001);
        rig.refuse();
    });
    assert_eq!(waited, minutes(&[5, 10, 15, 30, 60, 60, 60]));
}

#[test]
fn a_dead_destination_costs_one_connection_per_interval() {
    let mut rig = Rig::new("bounce-after = \"30d\"");
    (0..500).for_each(|n| {
        rig.submit(&format!("a{n}@x.example"));
    });
    assert_eq!(rig.connects.len(), 1, "from the first one on");
    rig.refuse();
    for step in 1..=200 {
        rig.pass(10 * MINUTE - MICRO);
        assert_eq!(rig.connects.len(), 0);
        rig.pass(MICRO);
        assert_eq!(rig.connects.len(), 1, "step {step}");
        rig.refuse();
    }
    assert_eq!(rig.timeline().len(), 201);
    assert!(rig.scheduler.window.len() == 0, "nothing of it is in the window meanwhile");
    rig.pass(10 * MINUTE);
    assert_eq!(rig.accept_all(), 500);
}

#[test]
fn an_ehlo_ends_retry_mode_and_a_2xx_to_a_dot_resets_the_step() {
    let mut rig = Rig::new(LIST);
    (0..20).for_each(|n| {
        rig.submit(&format!("a{n}@x.example"));
    });
    rig.refuse();
    rig.pass(5 * MINUTE);
    rig.refuse();
    rig.pass(10 * MINUTE);
    assert_eq!(rig.connects.len(), 1);
    rig.connect();
    assert_eq!(rig.connects.len(), 4, "the others follow");
    // Each transaction fails: the step stays where it was.
    while !rig.transacts.is_empty() || !rig.connects.is_empty() {
        if rig.transacts.is_empty() {
            rig.connect();
        } else {
            rig.transact(all_rcpts("450 later"));
        }
    }
    rig.pass(Duration::from_secs(30));
    rig.submit("new@x.example");
    let before = rig.now;
    rig.refuse();
    rig.pass(15 * MINUTE);
    let Some(DeliveryEvent::QueueDeferred(deferred)) =
        rig.events.iter().rfind(|event| matches!(event, DeliveryEvent::QueueDeferred(_)))
    else {
        panic!()
    };
    assert_eq!(deferred.next_attempt, before + 15 * MINUTE, "the third step");
    assert_eq!(rig.accept_all(), 21);
    rig.pass(MINUTE);
    rig.submit("new@x.example");
    rig.refuse();
    rig.pass(5 * MINUTE);
    assert_eq!(rig.connects.len(), 1, "the first step again");
}

/// The message makes the server 421 at MAIL; the others must not wait behind it for ever.
#[test]
fn after_a_failed_step_another_message_probes_first() {
    for retried in [false, true] {
        let mut rig = Rig::new("max-smtp-out = 1");
        if retried {
            // The good one waits for its own retry, the poisonous one is fresh.
            rig.submit("good@x.example");
            rig.connect();
            rig.transact(all_rcpts("450 later"));
            rig.pass(10 * MINUTE - Duration::from_secs(1));
            rig.submit("poison@x.example");
        } else {
            rig.submit("poison@x.example");
            rig.submit("good@x.example");
        }
        rig.connect();
        assert!(rig.transacts[0].1.recipients[0].as_str().starts_with("poison"));
        rig.transact(sent_away);
        assert!(rig.last_line().contains("queue-deferred"));
        rig.pass(10 * MINUTE);
        rig.connect();
        assert!(rig.transacts[0].1.recipients[0].as_str().starts_with("good"), "retried: {retried}");
        rig.accept();
        assert!(rig.last_line().contains("delivered good"));
        assert_eq!(rig.transacts.len(), 1, "and now the other, on the session that worked");
        rig.accept();
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn due_is_the_later_of_both_clocks() {
    let mut rig = Rig::new("retry-after = [\"10m\", \"30m\"]\nmax-smtp-out = 1");
    rig.submit("a@x.example");
    rig.connect();
    rig.transact(all_rcpts("450 later"));
    rig.pass(9 * MINUTE);
    rig.submit("b@x.example");
    rig.refuse();
    // The recipient is due at 10 minutes, the destination at 19.
    rig.pass(10 * MINUTE - MICRO);
    assert_eq!(rig.connects.len(), 0);
    rig.pass(MICRO);
    assert_eq!(rig.accept_all(), 2);
    assert_eq!(rig.elapsed(), 19 * 60);
}

#[test]
fn new_mail_waits_with_its_destination_unless_told_otherwise() {
    for (settings, connections) in [("", 0), ("retry-upon-new-mail = true", 1)] {
        let mut rig = Rig::new(settings);
        rig.submit("a@x.example");
        rig.refuse();
        rig.pass(MINUTE);
        rig.submit("b@x.example");
        rig.submit("c@x.example");
        assert_eq!(rig.connects.len(), connections, "{settings}");
        rig.pass(9 * MINUTE);
        assert_eq!(rig.accept_all(), 3);
    }
}

#[test]
fn jitter_only_lengthens() {
    let mut rig = Rig::new("retry-jitter = 0.5\nbounce-after = \"30d\"");
    rig.submit("a@x.example");
    let waited = attempts(&mut rig, 50, |rig| {
        rig.refuse();
    });
    let (least, most) = (waited.iter().min().unwrap(), waited.iter().max().unwrap());
    assert!(*least >= 600_000_000 && *most <= 900_000_000 && *most - *least > 100_000_000, "{least} {most}");
}

#[test]
fn so_many_attempts_expire() {
    let mut rig = Rig::new("max-attempts = 3");
    rig.submit("a@x.example");
    for _ in 0..3 {
        rig.connect();
        rig.transact(all_rcpts("450 4.2.0 later"));
        rig.pass(10 * MINUTE);
    }
    assert_eq!(rig.timeline()[2..], ["1200 bounced a@x.example 4.4.7 too-many-attempts"]);
    let Some(DeliveryEvent::Bounced(bounced)) = rig.events.last() else { panic!() };
    assert_eq!(bounced.record.attempts, 3);
    assert!(bounced.record.mx.is_some());
}

#[test]
fn a_restart_neither_resets_the_schedule_nor_makes_mail_due() {
    // Down for none, some, and more than what was left of the interval.
    for (down, waits) in [(0, 9), (4, 5), (60, 0)] {
        let mut rig = Rig::new(LIST);
        (0..3).for_each(|_| {
            rig.submit("a@x.example");
        });
        rig.refuse();
        rig.pass(5 * MINUTE);
        rig.refuse();
        rig.pass(MINUTE);
        rig.now = rig.now + down * MINUTE;
        let mut rig = rig.restarted(&format!("[domain.\"*\"]\n{LIST}"));
        if waits > 0 {
            rig.pass(waits * MINUTE - MICRO);
            assert_eq!(rig.connects.len(), 0, "down {down}");
            rig.pass(MICRO);
        } else {
            rig.pass(MICRO);
        }
        assert_eq!(rig.connects.len(), 1, "down {down}: one connection probes");
        rig.refuse();
        rig.pass(15 * MINUTE - MICRO);
        assert_eq!(rig.connects.len(), 0, "down {down}: the third interval");
        rig.pass(MICRO);
        assert_eq!(rig.accept_all(), 3);
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
        let rows = futures::FutureExt::now_or_never(crate::storage::Storage::state(&rig.store, None, 10));
        assert_eq!(rows.unwrap().unwrap().len(), 0, "the row is gone");
    }
}

#[test]
fn a_recipients_clock_survives_a_restart() {
    let mut rig = Rig::new(LIST);
    rig.submit("a@x.example");
    rig.connect();
    rig.transact(all_rcpts("450 later"));
    rig.pass(2 * MINUTE);
    let mut rig = rig.restarted(&format!("[domain.\"*\"]\n{LIST}"));
    rig.pass(3 * MINUTE - MICRO);
    assert!(rig.connects.is_empty());
    rig.pass(MICRO);
    rig.connect();
    rig.transact(all_rcpts("450 later"));
    assert_eq!(rig.timeline(), ["300 deferred a@x.example 4.0.0"]);
    let Some(DeliveryEvent::Deferred(deferred)) = rig.events.last() else { panic!() };
    assert_eq!(deferred.next_attempt, rig.now + 10 * MINUTE);
}

#[test]
fn a_state_row_without_mail_is_forgotten_in_time() {
    let mut rig = Rig::new("");
    let id = rig.submit("a@x.example");
    rig.refuse();
    rig.cancel(id);
    let mut rig = rig.restarted("");
    assert_eq!(rig.scheduler.destinations.len(), 1, "it is still held");
    rig.pass(10 * MINUTE);
    rig.scheduler.assert_empty();
}
