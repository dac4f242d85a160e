//! Cancellation, in every state a message may be in.

use super::harness::*;
use crate::message::MessageId;
use crate::scheduler::{CancelReport, Token};

fn report(rig: &Rig, token: Token) -> (u32, u32) {
    let CancelReport { cancelled, in_flight } = *rig.cancelled[&token].as_ref().unwrap();
    (cancelled, in_flight)
}

#[test]
fn an_unknown_message() {
    let mut rig = Rig::new("");
    let token = rig.cancel(MessageId::generate(start(), 1));
    assert_eq!(report(&rig, token), (0, 0));
    rig.scheduler.assert_empty();
}

#[test]
fn in_the_window_in_the_store_and_in_a_transaction() {
    let mut rig = Rig::new("max-smtp-out = 1");
    let token = rig.submit_to(&["a@x.example", "b@y.example", "c@z.example", "d@z.example"]);
    let id = *rig.submitted[&token].as_ref().unwrap();
    rig.connect();
    rig.refuse();
    let token = rig.cancel(id);
    assert_eq!(report(&rig, token), (3, 1), "x is in flight, y held, z in the window");
    assert_eq!(rig.timeline().len(), 4);
    rig.transact(all_rcpts("450 4.2.0 later"));
    assert_eq!(rig.last_line(), "0 cancelled a@x.example", "what the transaction leaves over");
    rig.refuse();
    rig.pass(10 * MINUTE);
    rig.scheduler.assert_empty();
}

#[test]
fn a_transaction_under_way_ends_first() {
    let mut rig = Rig::new("");
    let id = rig.submit("a@x.example");
    rig.connect();
    let token = rig.cancel(id);
    assert_eq!(report(&rig, token), (0, 1));
    rig.accept();
    assert_eq!(rig.timeline(), ["0 delivered a@x.example"]);
}

#[test]
fn parts_not_yet_sent_of_a_message_in_flight() {
    let mut rig = Rig::new("max-rcpt-per-transaction = 1\nmax-smtp-out = 1");
    let token = rig.submit_to(&["a@x.example", "b@x.example"]);
    let id = *rig.submitted[&token].as_ref().unwrap();
    rig.connect();
    rig.cancel(id);
    rig.accept();
    // Each is an item of its own: what waits ends at once.
    assert_eq!(rig.timeline(), ["0 cancelled b@x.example", "0 delivered a@x.example"]);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

/// On its way back into the store when the cancellation comes.
#[test]
fn while_its_deferral_is_being_written() {
    let mut rig = Rig::new("");
    let id = rig.submit("a@x.example");
    rig.connect();
    rig.by_hand.commit = true;
    rig.transact(all_rcpts("450 4.2.0 later"));
    let token = rig.cancel(id);
    assert!(rig.lists.is_empty() && rig.cancelled.is_empty(), "not before it is durable");
    rig.commit();
    rig.by_hand.commit = false;
    rig.commit();
    assert_eq!(report(&rig, token), (1, 0));
    rig.pass(HOUR);
    assert_eq!(rig.timeline(), ["0 deferred a@x.example 4.2.0", "0 cancelled a@x.example"]);
    rig.scheduler.assert_empty();
}

/// It does not wait for a moment without writes.
#[test]
fn while_other_mail_is_written_all_the_time() {
    let mut rig = Rig::new("max-smtp-out = 2");
    (0..20).for_each(|_| {
        rig.submit("a@x.example");
    });
    rig.connect();
    rig.connect();
    let id = rig.submit("b@y.example");
    rig.by_hand.commit = true;
    rig.accept();
    let token = rig.cancel(id);
    for _ in 0..4 {
        rig.accept();
        rig.commit();
    }
    assert_eq!(report(&rig, token), (1, 0));
}

/// The claim that brings it was made before, and comes back after.
#[test]
fn while_a_claim_under_way_brings_it() {
    for cancel_first in [true, false] {
        let mut rig = Rig::new("");
        let id = rig.submit("a@x.example");
        rig.refuse();
        rig.by_hand.claim = true;
        rig.pass(10 * MINUTE);
        let token = rig.cancel(id);
        assert_eq!(rig.claims.len(), 2);
        // Both are carried out in the order they were made; answers come in any.
        let request = |parts| crate::storage::ClaimRequest {
            owner: OWNER,
            now: rig.now,
            until: rig.now + HOUR,
            what: parts,
        };
        let mut answers = Vec::new();
        for (claim, parts) in std::mem::take(&mut rig.claims) {
            let result = crate::storage::Storage::claim(&rig.store, request(parts));
            let result = futures::FutureExt::now_or_never(result).unwrap();
            answers.push(crate::scheduler::Event::Claimed { claim, result });
        }
        if cancel_first {
            answers.reverse();
        }
        let last = answers.pop().unwrap();
        answers.into_iter().for_each(|event| {
            rig.tell(event);
        });
        if cancel_first {
            assert!(rig.cancelled.is_empty(), "not before the other has come back");
        }
        rig.tell(last);
        assert_eq!(report(&rig, token), (1, 0), "cancel_first: {cancel_first}");
        rig.by_hand.claim = false;
        rig.carry_out();
        rig.pass(HOUR);
        assert!(rig.connects.is_empty() && rig.transacts.is_empty());
        assert_eq!(rig.timeline().iter().filter(|line| line.contains("cancelled")).count(), 1);
        rig.scheduler.assert_empty();
    }
}

#[test]
fn when_its_destination_fails_between_mark_and_list() {
    let mut rig = Rig::new("");
    let id = rig.submit("a@x.example");
    rig.by_hand.list = true;
    let token = rig.cancel(id);
    rig.refuse();
    rig.list();
    assert_eq!(report(&rig, token), (1, 0));
    rig.pass(HOUR);
    assert!(rig.connects.is_empty());
    rig.scheduler.assert_empty();
}

#[test]
fn twice_at_the_same_time() {
    let mut rig = Rig::new("");
    let id = rig.submit("a@x.example");
    rig.by_hand.list = true;
    let (first, second) = (rig.cancel(id), rig.cancel(id));
    rig.list();
    rig.list();
    assert_eq!(rig.timeline(), ["0 cancelled a@x.example"]);
    assert_eq!((report(&rig, first), report(&rig, second)), ((1, 0), (1, 0)));
    rig.refuse();
    rig.pass(HOUR);
    rig.scheduler.assert_empty();
}
