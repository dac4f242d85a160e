//! The store: under crashes at every point, and in random worlds.

use std::time::Duration;

use outside::{Flush, JournalStore, policy};
use postrider::Message;
use postrider::reply::Stage;
use postrider::storage::StorageErrorKind;
use postrider::testing::{
    Failure, Outcome, ServerModel, Simulation, StoreCall, StoreFault, StoreTrouble, World, WorldBuilder,
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const ZONE: &str = "example.net. MX 10 mx.example.net.\nmx.example.net. A 198.51.100.1";

/// Opens the store of a folder, now and after each crash. In worlds processes crash, not machines: nothing is flushed.
fn opening(folder: &tempfile::TempDir) -> impl FnMut() -> JournalStore + Send + 'static {
    let folder = folder.path().to_owned();
    move || JournalStore::open(&folder, Flush::Never).expect("the store opens again")
}

fn world(folder: &tempfile::TempDir) -> WorldBuilder {
    let greylisting = ServerModel::new().with_greylist(Duration::from_secs(240));
    World::builder().policy(policy()).zone(ZONE).server("198.51.100.1", greylisting).storage(opening(folder))
}

fn message(number: u64) -> Message {
    let recipients = [format!("a{number}@example.net"), format!("b{number}@example.net")];
    Message::new("news@sender.example", recipients, "Subject: hello\r\n\r\nhello\r\n").unwrap()
}

#[test]
fn mail_is_delivered_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(&folder).build().unwrap();
    for number in 0..100 {
        world.submit(message(number)).unwrap();
    }
    assert!(world.run_until_idle(DAY));
    assert_eq!(world.count(Outcome::Delivered), 200);
}

#[test]
fn a_crash_at_any_commit_loses_nothing() {
    for (nth, applied) in (1..12).flat_map(|nth| [(nth, false), (nth, true)]) {
        let folder = tempfile::tempdir().unwrap();
        let crash = StoreFault::new(StoreCall::Commit, StoreTrouble::Crash { applied }).at(nth);
        let mut world = world(&folder).store_fault(crash).build().unwrap();
        for number in 0..5 {
            // A message whose submission the crash cut short may be delivered or not.
            let _ = world.submit(message(number));
        }
        assert!(world.run_until_idle(DAY), "crash at commit {nth}, applied: {applied}");
    }
}

#[test]
fn attempts_are_remembered_over_crashes() {
    let folder = tempfile::tempdir().unwrap();
    let busy = Failure::Reply(Stage::Rcpt, "450 4.2.1 busy".to_owned());
    let model = ServerModel::new().with_failure(Duration::ZERO..DAY, busy);
    let mut world = world(&folder).build().unwrap();
    world.set_server("198.51.100.1", model).unwrap();
    let id = world.submit(message(1)).unwrap();
    for _ in 0..10 {
        world.run_for(HOUR / 4);
        world.crash();
    }
    // 0, 5, 15, 30, 60, 120 minutes.
    assert_eq!(world.attempts(id, "a1@example.net"), 6);
    assert!(world.run_until_idle(2 * DAY));
    assert_eq!(world.outcome(id, "a1@example.net"), Outcome::Delivered);
}

#[test]
fn random_worlds_keep_every_invariant() {
    for seed in Simulation::seeds(20) {
        let folder = tempfile::tempdir().unwrap();
        if let Err(error) = Simulation::new(seed).storage(opening(&folder)).run() {
            panic!("{error}");
        }
    }
}

#[test]
fn a_journal_damaged_in_the_middle_is_refused_and_a_torn_end_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(&folder).build().unwrap();
    for number in 0..5 {
        world.submit(message(number)).unwrap();
    }
    drop(world);
    let path = folder.path().join("journal");
    let whole = std::fs::read(&path).unwrap();
    let body = whole.windows(5).position(|octets| octets == b"hello").unwrap();
    let mut damaged = whole.clone();
    damaged[body] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let error = JournalStore::open(folder.path(), Flush::Never).unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Corrupt);
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    JournalStore::open(folder.path(), Flush::Never).unwrap();
}

#[test]
fn one_process_at_a_time_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = JournalStore::open(folder.path(), Flush::Always).unwrap();
    let error = JournalStore::open(folder.path(), Flush::Always).unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Locked);
    drop(store);
    JournalStore::open(folder.path(), Flush::Always).unwrap();
}
