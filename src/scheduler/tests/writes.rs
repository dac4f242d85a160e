//! Writing: groups, errors, bounds; reports that are blocked; shutdown.

use std::time::Duration;

use super::harness::*;
use crate::event::{DeliveryEvent, Failure, Reason};
use crate::message::{Message, MessageId};
use crate::scheduler::{Bounds, Event, SubmitFailure};
use crate::storage::{Change, Room, StorageError, StorageErrorKind};

#[test]
fn submissions_gather_while_an_insert_is_under_way() {
    let mut rig = Rig::new("");
    rig.by_hand.insert = true;
    (0..5).for_each(|_| {
        rig.submit_to(&["a@x.example"]);
    });
    assert_eq!(rig.inserts[0].len(), 1);
    assert!(rig.submitted.is_empty(), "not durable, not accepted");
    rig.insert();
    assert_eq!((rig.submitted.len(), rig.inserts[0].len()), (1, 4));
    rig.insert();
    assert_eq!((rig.submitted.len(), rig.accept_all()), (5, 5));
}

#[test]
fn new_mail_refused_for_the_moment_is_told_once_a_minute_beside_what_else_is_wrong() {
    let mut rig = with_connections(1, 2, Bounds::default());
    (rig.by_hand.insert, rig.by_hand.commit) = (true, true);
    rig.accept();
    for _ in 0..90 {
        for _ in 0..2 {
            rig.submit_to(&["b@y.example"]);
            rig.fail_insert(StorageErrorKind::Full);
        }
        rig.fail_commit(StorageErrorKind::Temporary);
        rig.pass(Duration::from_secs(1));
    }
    let told =
        ["0 insert", "0 commit", "60 insert", "60 commit"].map(|told| told.replace(' ', " storage-trouble "));
    assert_eq!(rig.timeline(), told);
    rig.submit_to(&["b@y.example"]);
    rig.fail_insert(StorageErrorKind::Invalid);
    assert_eq!(rig.timeline().len(), 4, "that message is not the store's trouble");
}

/// Connections to one host, each with a transaction, and messages for it.
fn with_connections(connections: usize, messages: usize, bounds: Bounds) -> Rig {
    let policy =
        format!("[domain.\"*\"]\nmax-smtp-out = {connections}\nmax-msg-per-connection = \"unlimited\"");
    let mut rig = Rig::with_policy(&policy, bounds);
    (0..messages).for_each(|_| {
        rig.submit("a@x.example");
    });
    (0..connections).for_each(|_| {
        rig.connect();
    });
    assert_eq!(rig.transacts.len(), connections);
    rig
}

#[test]
fn outcomes_gather_while_a_commit_is_under_way() {
    let mut rig = with_connections(5, 5, Bounds::default());
    rig.by_hand.commit = true;
    (0..5).for_each(|_| {
        rig.accept();
    });
    assert_eq!(rig.commits[0].len(), 2, "an update and its report");
    assert!(rig.timeline().is_empty(), "reported when durable, not at the 250");
    rig.commit();
    assert_eq!((rig.timeline().len(), rig.commits[0].len()), (1, 8));
    rig.commit();
    assert_eq!(rig.timeline().len(), 5);
}

#[test]
fn a_commit_refused_for_the_moment_is_made_again_and_nothing_sent_twice() {
    for kind in [StorageErrorKind::Full, StorageErrorKind::Temporary] {
        let mut rig = with_connections(2, 2, Bounds::default());
        rig.by_hand.commit = true;
        rig.accept();
        let first = format!("{:?}", rig.commits[0]);
        rig.fail_commit(kind);
        rig.accept();
        assert!(rig.commits.is_empty(), "not before a pause");
        rig.pass(Duration::from_secs(1));
        let again = format!("{:?}", rig.commits[0]);
        assert_eq!(again, first, "the same, and then the next");
        rig.by_hand.commit = false;
        rig.commit();
        assert_eq!(
            rig.timeline(),
            ["0 storage-trouble commit", "1 delivered a@x.example", "1 delivered a@x.example"]
                .map(|line| line.replace("1 del", "0 del"))
        );
        assert!(rig.transacts.is_empty() && rig.connects.is_empty());
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn what_a_full_disk_has_no_room_for_is_committed_in_parts() {
    let mut rig = with_connections(5, 5, Bounds::default());
    rig.by_hand.commit = true;
    (0..5).for_each(|_| {
        rig.accept();
    });
    rig.commit();
    let all = format!("{:?}", rig.commits[0]);
    let mut sizes = Vec::new();
    let mut committed = Vec::new();
    while let Some(changes) = rig.commits.front() {
        sizes.push(changes.len());
        if changes.len() > 2 {
            rig.fail_commit(StorageErrorKind::Full);
        } else {
            committed.extend(changes.clone());
            rig.commit();
        }
        rig.pass(Duration::from_secs(1));
    }
    assert_eq!(sizes, [8, 4, 2, 2, 4, 2, 2], "a report stays with its update");
    assert_eq!(format!("{committed:?}"), all, "in their order");
    let told = rig.timeline().iter().filter(|line| line.contains("storage-trouble")).count();
    assert_eq!((told, rig.timeline().len()), (1, 6), "the same trouble is told once a minute");
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

#[test]
fn mail_that_waits_keeps_little_of_a_long_reply_and_where_room_is_scarce_nothing() {
    let text = format!("450 4.2.1 {}", "x".repeat(3_000));
    for room in [Room::Ample, Room::Scarce, Room::Exhausted] {
        let mut rig = Rig::new("max-smtp-out = 1");
        let id = rig.submit("a@x.example");
        rig.connect();
        rig.tell(Event::StoreRoom(room));
        rig.transact(all_rcpts(&text));
        let Failure::Reply(told) = &rig.deferred().diagnosis.failure else { panic!() };
        assert_eq!(told.to_string(), text, "the record has all of it");
        let waits = rig.why(id);
        let recipient = &waits.items[0].recipients[0];
        assert_eq!(recipient.attempts, 1);
        let reply = recipient.last.as_ref().map(|last| match &last.diagnosis.failure {
            Failure::Reply(reply) => reply.clone(),
            Failure::Engine(words) => panic!("{words}"),
        });
        assert_eq!(reply.is_some(), room == Room::Ample);
        if let Some(reply) = reply {
            assert_eq!(reply.lines().map(<[u8]>::len).sum::<usize>(), 1_024);
            assert!(reply.is_truncated() && reply.to_string().starts_with("450 4.2.1 xxx"));
        }
    }
}

#[test]
fn mail_that_expires_says_so_where_what_it_met_was_not_kept() {
    let mut rig = Rig::new("bounce-after = '10m'\nretry-after = '1h'");
    rig.submit("a@x.example");
    rig.connect();
    rig.tell(Event::StoreRoom(Room::Scarce));
    rig.transact(all_rcpts("450 later"));
    rig.pass(10 * MINUTE);
    let words = "expired after 1 attempts; what they met was not kept since the disk was nearly full";
    assert_eq!(rig.bounced().diagnosis.failure, Failure::Engine(words.to_owned()));
    assert_eq!(rig.bounced().diagnosis.reason, Reason::Expired);
}

#[test]
fn an_unknown_outcome_stops_everything() {
    let mut rig = with_connections(2, 4, Bounds::default());
    rig.by_hand.commit = true;
    rig.accept();
    rig.fail_commit(StorageErrorKind::OutcomeUnknown);
    assert_eq!(rig.last_line(), "0 storage-trouble commit stopped");
    rig.accept();
    rig.accept();
    assert!(rig.transacts.is_empty(), "no new transaction");
    let token = rig.submit_to(&["b@y.example"]);
    let Err(SubmitFailure::Storage(error)) = &rig.submitted[&token] else { panic!() };
    assert_eq!(error.kind(), StorageErrorKind::Poisoned);
    let id = MessageId::generate(rig.now, 1);
    let token = rig.cancel(id);
    assert!(rig.cancelled[&token].is_err(), "a cancellation is answered too");
    rig.pass(HOUR);
    assert!(rig.commits.is_empty() && rig.connects.is_empty() && rig.transacts.is_empty());
    rig.tell(Event::Shutdown);
    assert!(rig.drained);
}

#[test]
fn an_insert_that_fails_is_refused_and_gives_back_its_places() {
    for (kind, stops) in [
        (StorageErrorKind::Full, false),
        (StorageErrorKind::Temporary, false),
        (StorageErrorKind::OutcomeUnknown, true),
    ] {
        let mut rig = Rig::new("");
        rig.by_hand.insert = true;
        let token = rig.submit_to(&["a@x.example", "b@y.example"]);
        rig.fail_insert(kind);
        let Err(SubmitFailure::Storage(error)) = &rig.submitted[&token] else { panic!() };
        assert_eq!(error.kind(), kind);
        if !stops {
            rig.scheduler.assert_empty();
        }
        rig.by_hand.insert = false;
        let token = rig.submit_to(&["a@x.example"]);
        assert_eq!(rig.submitted[&token].is_err(), stops);
    }
}

#[test]
fn a_message_submitted_twice_is_stored_once() {
    let mut rig = Rig::new("");
    let id = MessageId::generate(rig.now, 7);
    let message = || Message::new("", ["a@x.example", "b@y.example"], "").unwrap().with_id(id);
    let first = rig.submit_message(message());
    assert_eq!(rig.accept_all(), 2);
    let second = rig.submit_message(message());
    assert_eq!(
        (*rig.submitted[&first].as_ref().unwrap(), *rig.submitted[&second].as_ref().unwrap()),
        (id, id)
    );
    assert_eq!(rig.accept_all(), 0);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

#[test]
fn unsettled_outcomes_have_a_bound_past_which_nothing_starts() {
    let bounds = Bounds { unsettled: 2, ..Bounds::default() };
    let mut rig = with_connections(3, 10, bounds);
    rig.by_hand.commit = true;
    rig.accept();
    assert_eq!(rig.transacts.len(), 3);
    rig.accept();
    assert_eq!(
        rig.transacts.len(),
        2,
        "two outcomes are not durable: what is under way ends, nothing starts"
    );
    rig.commit();
    assert_eq!(rig.transacts.len(), 3);
    rig.by_hand.commit = false;
    rig.commit();
    assert_eq!(rig.accept_all(), 8);
}

#[test]
fn each_connection_has_one_outcome_unsettled_and_one_transaction() {
    let mut rig = Rig::new("max-smtp-out = 1\nmax-msg-per-connection = \"unlimited\"");
    (0..100).for_each(|_| {
        rig.submit("a@x.example");
    });
    rig.by_hand.commit = true;
    rig.connect();
    let mut accepted = 0;
    while !rig.transacts.is_empty() {
        rig.accept();
        accepted += 1;
    }
    assert_eq!(accepted, 1, "a crash now sends no more than this again");
    rig.by_hand.commit = false;
    rig.commit();
    assert_eq!(accepted + rig.accept_all(), 100);
}

#[test]
fn where_room_is_scarce_what_is_next_waits_until_all_is_durable_and_without_any_nothing_starts() {
    let mut rig = with_connections(3, 20, Bounds::default());
    rig.tell(Event::StoreRoom(Room::Scarce));
    rig.by_hand.commit = true;
    rig.accept();
    assert_eq!(rig.transacts.len(), 2, "the first is not durable");
    rig.accept();
    rig.accept();
    assert!(rig.transacts.is_empty());
    rig.commit();
    rig.commit();
    assert_eq!(rig.transacts.len(), 3, "all are");
    rig.tell(Event::StoreRoom(Room::Exhausted));
    for _ in 0..3 {
        rig.accept();
    }
    rig.commit();
    rig.commit();
    assert!(rig.transacts.is_empty());
    assert!(
        rig.queue_lines("x.example")[0]
            .ends_with("the store has no room for outcomes: nothing is sent until it has")
    );
    rig.by_hand.commit = false;
    rig.tell(Event::StoreRoom(Room::Ample));
    assert_eq!(6 + rig.accept_all(), 20);
}

#[test]
fn blocked_reports_stop_new_transactions_until_they_are_taken() {
    let mut rig = Rig::new("max-smtp-out = 2");
    (0..4).for_each(|_| {
        rig.submit("a@x.example");
    });
    rig.connect();
    rig.tell(Event::ReportsBlocked(true));
    rig.connect();
    rig.accept();
    assert!(rig.transacts.is_empty());
    rig.tell(Event::ReportsBlocked(false));
    assert_eq!(rig.accept_all(), 3);
}

#[test]
fn submissions_have_bounds() {
    let bounds = Bounds { submissions: 3, submission_octets: 1_000, ..Bounds::default() };
    let mut rig = Rig::with_policy("", bounds);
    rig.by_hand.insert = true;
    for waiting in 0..4 {
        assert!(rig.scheduler.takes_submissions(), "{waiting}");
        rig.submit_to(&["a@x.example"]);
    }
    assert!(!rig.scheduler.takes_submissions());
    rig.insert();
    rig.insert();
    rig.submit_message(Message::new("", ["a@x.example"], vec![b'x'; 99]).unwrap());
    rig.submit_message(Message::new("", ["a@x.example"], vec![b'x'; 900]).unwrap());
    rig.submit_message(Message::new("", ["a@x.example"], "").unwrap());
    assert!(!rig.scheduler.takes_submissions(), "too many octets");
    rig.insert();
    rig.insert();
    assert!(rig.scheduler.takes_submissions());
    rig.submit_to(&["a@x.example"]);
    let many: Vec<String> = (0..10).map(|number| format!("{number}@x.example")).collect();
    rig.submit_message(Message::new("", many, "").unwrap());
    assert!(!rig.scheduler.takes_submissions(), "too many recipients");
}

#[test]
fn shutdown_lets_transactions_end_and_leaves_the_rest() {
    let mut rig = Rig::new("max-smtp-out = 2");
    (0..5).for_each(|_| {
        rig.submit("a@x.example");
    });
    rig.submit("b@y.example");
    rig.connect();
    rig.tell(Event::Shutdown);
    let token = rig.submit_to(&["c@z.example"]);
    assert!(matches!(rig.submitted[&token], Err(SubmitFailure::ShuttingDown)));
    assert!(!rig.drained);
    rig.transact(all_rcpts("450 4.2.0 later"));
    rig.connect();
    rig.refuse();
    assert!(rig.drained, "what was opening has gone");
    assert!(rig.transacts.is_empty() && rig.connects.is_empty());
    assert_eq!(rig.timeline(), ["0 deferred a@x.example 4.2.0"]);
    assert_eq!(rig.scheduler.window.len(), 0, "leases are given back");
    let mut rig = rig.restarted("");
    assert_eq!(rig.accept_all(), 5);
    rig.pass(10 * MINUTE);
    assert_eq!(rig.accept_all(), 1);
}

#[test]
fn a_body_that_can_not_be_read() {
    for (kind, expected) in [
        (StorageErrorKind::NotFound, "0 bounced a@x.example 5.3.0 content-lost"),
        (StorageErrorKind::Corrupt, "0 bounced a@x.example 5.3.0 content-lost"),
        (StorageErrorKind::Temporary, "0 storage-trouble read"),
        (StorageErrorKind::Poisoned, "0 storage-trouble read stopped"),
    ] {
        let mut rig = Rig::new("");
        rig.submit("a@x.example");
        rig.connect();
        let (connection, _) = rig.transacts.pop_front().unwrap();
        rig.tell(Event::BodyFailed { connection, error: StorageError::new(kind, "made up") });
        assert_eq!(rig.last_line(), expected);
        rig.pass(Duration::from_secs(31));
        assert_eq!(rig.accept_all(), usize::from(kind == StorageErrorKind::Temporary));
    }
}

/// It alone waits: not the outcomes of others, nor new mail.
#[test]
fn a_body_that_can_not_be_read_for_the_moment_holds_up_nothing_else() {
    let mut rig = Rig::new("max-smtp-out = 1");
    rig.submit("a@x.example");
    rig.submit("a@y.example");
    rig.connect();
    rig.connect();
    let (connection, _) = rig.transacts.pop_front().unwrap();
    let error = StorageError::new(StorageErrorKind::Temporary, "made up");
    rig.tell(Event::BodyFailed { connection, error });
    rig.accept();
    assert_eq!(rig.last_line(), "0 delivered a@y.example");
    let token = rig.submit_to(&["b@y.example"]);
    assert!(rig.submitted.contains_key(&token));
}

#[test]
fn lost_bodies_are_told_once_a_minute_with_their_number() {
    let mut rig = Rig::new("");
    let lose = |rig: &mut Rig, number: u32| {
        rig.submit("a@x.example");
        // The session goes on to the next.
        if rig.transacts.is_empty() {
            rig.connect();
        }
        let (connection, _) = rig.transacts.pop_front().unwrap();
        let error = StorageError::new(StorageErrorKind::Corrupt, format!("body {number}"));
        rig.tell(Event::BodyFailed { connection, error });
    };
    let told = |rig: &Rig| -> Vec<String> {
        let trouble = |event: &DeliveryEvent| match event {
            DeliveryEvent::StorageTrouble(trouble) => Some(trouble.error.clone()),
            _ => None,
        };
        rig.events.iter().filter_map(trouble).collect()
    };
    for number in 1..=320 {
        lose(&mut rig, number);
    }
    assert_eq!(told(&rig), ["body 1"]);
    rig.pass(Duration::from_secs(59));
    assert_eq!(told(&rig).len(), 1);
    rig.pass(Duration::from_secs(1));
    assert_eq!(told(&rig)[1..], ["319 more of such, the last: body 320"]);
    lose(&mut rig, 321);
    rig.pass(Duration::from_secs(120));
    assert_eq!(told(&rig)[2..], ["1 more of such, the last: body 321"]);
    for number in 322..=324 {
        lose(&mut rig, number);
    }
    rig.tell(Event::Interrupted);
    assert_eq!(told(&rig)[3..], ["body 322", "2 more of such, the last: body 324"]);
}

#[test]
fn a_commit_holds_what_belongs_together() {
    let mut rig = Rig::new("");
    rig.submit("a@x.example");
    rig.by_hand.commit = true;
    rig.connect();
    rig.transact(all_rcpts("550 5.1.1 no"));
    let kinds: Vec<_> = rig.commits[0]
        .iter()
        .map(|change| match change {
            Change::Update { .. } => "update",
            Change::Report { .. } => "report",
            _ => "other",
        })
        .collect();
    assert_eq!(kinds, ["report", "update"], "the outcome and its report in one flush");
}
