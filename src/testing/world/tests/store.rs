//! What a [`StoreFault`] promises.

use super::*;
use crate::storage::{MemoryStorage, StorageErrorKind};

fn faulty(fault: StoreFault) -> World {
    builder(ServerModel::new()).store_fault(fault).build().unwrap()
}

fn crashes(world: &World) -> usize {
    world.trace().iter().filter(|observation| observation.seen == Seen::Crashed).count()
}

#[test]
fn the_nth_call_fails_so_many_times() {
    let full = StoreTrouble::Fails(StorageErrorKind::Full);
    let mut world = faulty(StoreFault::new(StoreCall::Insert, full).at(2).times(2));
    let taken: Vec<_> = (0..5).map(|_| world.submit(message(BOB)).is_ok()).collect();
    assert_eq!(taken, [true, false, false, true, true]);
    assert!(world.run_until_idle(HOUR));
    assert_eq!(world.count(Outcome::Delivered), 3);
}

#[test]
fn a_crash_before_or_after_an_insert() {
    for applied in [false, true] {
        let mut world = faulty(StoreFault::new(StoreCall::Insert, StoreTrouble::Crash { applied }));
        assert!(matches!(world.submit(message(BOB)), Err(SubmitError::Stopped)));
        assert_eq!(crashes(&world), 1);
        assert!(matches!(
            world.trace().iter().find(|seen| matches!(seen.seen, Seen::Refused { .. })).unwrap().seen,
            Seen::Refused { unknown: true, .. }
        ));
        assert!(world.run_until_idle(HOUR));
        assert_eq!(world.count(Outcome::Delivered), u64::from(applied));
        assert!(world.submit(message(BOB)).is_ok(), "the next process serves");
    }
}

#[test]
fn a_crash_before_or_after_a_commit() {
    for applied in [false, true] {
        let crash = StoreFault::new(StoreCall::Commit, StoreTrouble::Crash { applied });
        let model = ServerModel::new().with_reply_latency(SECOND);
        let mut world = builder(model).store_fault(crash).build().unwrap();
        let id = world.submit(message(BOB)).unwrap();
        assert!(world.run_until_idle(HOUR));
        assert_eq!(crashes(&world), 1);
        // What the server took is offered again if nobody knows of it.
        assert_eq!(world.attempts(id, BOB), if applied { 1 } else { 2 });
        assert_eq!(world.outcome(id, BOB), Outcome::Delivered);
    }
}

#[test]
fn an_unknown_outcome_was_applied() {
    let unknown = StoreTrouble::Fails(StorageErrorKind::OutcomeUnknown);
    let mut world = faulty(StoreFault::new(StoreCall::Insert, unknown));
    assert!(world.submit(message(BOB)).unwrap_err().is_unknown());
    assert!(world.submit(message(BOB)).is_err(), "the engine stops by itself");
    world.restart();
    assert!(world.run_until_idle(HOUR));
    assert_eq!(world.count(Outcome::Delivered), 1);
}

#[test]
fn a_slow_store_delays() {
    for call in [StoreCall::Insert, StoreCall::Commit] {
        let mut world = faulty(StoreFault::new(call, StoreTrouble::Slow(5 * SECOND)));
        let id = world.submit(message(BOB)).unwrap();
        assert!(world.run_until_idle(HOUR));
        assert_eq!(ended_at(&world, id), Some(5 * SECOND), "{call:?}");
    }
}

#[test]
fn claims_bodies_and_lists_fail_too() {
    let temporary = StoreTrouble::Fails(StorageErrorKind::Temporary);
    for call in [StoreCall::Claim, StoreCall::Bodies, StoreCall::List] {
        let model = ServerModel::new().with_failure(Duration::ZERO..MINUTE, Failure::Refuse);
        let mut world = builder(model).store_fault(StoreFault::new(call, temporary)).build().unwrap();
        let id = world.submit(message(BOB)).unwrap();
        world.run_for(MINUTE);
        // A new process has to read it from the store.
        world.crash();
        let listed = world.with_engine(async |engine| engine.why(id).await).unwrap();
        assert_eq!(listed.is_err(), call == StoreCall::List);
        assert!(world.run_until_idle(DAY), "{call:?}");
        assert_eq!(world.outcome(id, BOB), Outcome::Delivered);
        let late = ended_at(&world, id).unwrap() > 5 * MINUTE;
        assert_eq!(late, call != StoreCall::List, "{call:?}");
    }
}

#[test]
fn faults_are_added_and_taken_back() {
    let mut world = world(ServerModel::new());
    let full = StoreFault::new(StoreCall::Insert, StoreTrouble::Fails(StorageErrorKind::Full)).times(9);
    world.add_store_faults([full]);
    assert!(world.submit(message(BOB)).is_err());
    world.clear_store_faults();
    assert!(world.submit(message(BOB)).is_ok());
}

#[test]
fn the_host_s_own_store_is_opened_for_each_process() {
    let store = MemoryStorage::new();
    let opened = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = opened.clone();
    let mut world = builder(ServerModel::new())
        .storage(move || {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            store.reopened()
        })
        .build()
        .unwrap();
    world.submit(message(BOB)).unwrap();
    world.crash();
    world.restart();
    assert!(world.run_until_idle(HOUR));
    assert_eq!(opened.load(std::sync::atomic::Ordering::Relaxed), 3);
    assert_eq!(world.count(Outcome::Delivered), 1);
}

/// A store that forgets is found out.
#[test]
fn a_store_that_loses_mail_is_a_violation() {
    let mut world =
        builder(ServerModel::new().with_greylist(HOUR)).seed(17).storage(MemoryStorage::new).build().unwrap();
    world.submit(message(BOB)).unwrap();
    world.run_for(MINUTE);
    world.crash();
    let violation = world.try_run_until_idle(DAY).unwrap_err();
    assert_eq!((violation.seed, violation.invariant), (17, "lost"));
    assert!(violation.recent.iter().any(|line| line.ends_with("the process crashed")));
    let text = violation.to_string();
    assert!(text.starts_with("seed 17: lost after "), "{text}");
    let command = "to repeat it: POSTRIDER_SEED=17 cargo test \
         testing::world::tests::store::a_store_that_loses_mail_is_a_violation";
    assert!(text.ends_with(command), "{text}");
}

#[test]
fn a_process_may_die_over_its_start_and_over_whatever_it_asks() {
    for call in [StoreCall::Heads, StoreCall::State] {
        let mut world = builder(ServerModel::new().with_greylist(MINUTE)).build().unwrap();
        let id = world.submit(message(BOB)).unwrap();
        world.run_for(SECOND);
        world.add_store_faults([StoreFault::new(call, StoreTrouble::Crash { applied: false }).times(3)]);
        world.crash();
        let starts = world.trace().iter().filter(|seen| seen.seen == Seen::Started).count();
        assert_eq!(starts, 5, "at first, three that died over {call:?}, and one that did not");
        assert!(world.run_until_idle(HOUR));
        assert_eq!(world.outcome(id, BOB), Outcome::Delivered);
    }
    for call in [StoreCall::Renew, StoreCall::Outbox, StoreCall::Maintain] {
        let mut world = builder(ServerModel::new().with_greylist(HOUR)).build().unwrap();
        let id = world.submit(message(BOB)).unwrap();
        world.add_store_faults([StoreFault::new(call, StoreTrouble::Crash { applied: false })]);
        world.run_for(2 * HOUR);
        let died = world.trace().iter().any(|seen| seen.seen == Seen::Crashed);
        assert!(died, "over {call:?}");
        assert!(world.run_until_idle(DAY));
        assert_eq!(world.outcome(id, BOB), Outcome::Delivered, "{call:?}");
    }
}

#[test]
fn an_engine_whose_store_can_not_be_read_does_not_start() {
    let fails = StoreFault::new(StoreCall::Heads, StoreTrouble::Fails(StorageErrorKind::Corrupt));
    let built = builder(ServerModel::new()).store_fault(fails).build();
    assert!(matches!(built.unwrap_err(), WorldError::Start(why) if why.contains("planted in Heads")));
    let dies = StoreFault::new(StoreCall::Heads, StoreTrouble::Crash { applied: false }).times(u64::MAX);
    let built = builder(ServerModel::new()).store_fault(dies).build();
    assert!(matches!(built.unwrap_err(), WorldError::Start(why) if why.contains("died 1000 times")));
}
