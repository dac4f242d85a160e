//! A disk that fills up, fails or forgets, simulated.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use redb::StorageBackend;

use super::backend::MetadataFile;
use super::cuts::{Dump, STORE, claim_all, dump, open, options, run, sized, tries_all};
use super::files::{FileSystem, Mode};
use super::simulated::{Disk, FailedSync, Survival};
use super::*;
use crate::message::{EventId, MessageId};
use crate::testing::conformance::{A, at, due, id, settle};

const MIB: u64 = 1024 * 1024;

fn body_file(disk: &Disk) -> PathBuf {
    disk.paths().into_iter().find(|path| path.to_string_lossy().ends_with(".bodies")).unwrap()
}

fn position(content: &[u8], what: &[u8]) -> usize {
    content.windows(what.len()).position(|window| window == what).unwrap()
}

fn check(disk: &Disk) -> CheckReport {
    check::run(Path::new(STORE), &options(disk), &mut |_| {}).unwrap()
}

async fn put(
    store: &DiskStorage,
    originals: &mut BTreeMap<MessageId, NewMessage>,
    message: NewMessage,
) -> Result<()> {
    store.insert(vec![message.clone()]).await?;
    originals.insert(message.envelope.id, message);
    Ok(())
}

/// What was acknowledged is there, after a restart too.
async fn nothing_is_lost(disk: &Disk, originals: &BTreeMap<MessageId, NewMessage>) -> Dump {
    for survival in Survival::ALL {
        let disk = disk.reboot(survival, 1);
        let store = open(&disk).await;
        let found = dump(&store).await.unwrap();
        let mut ids: Vec<_> = found.items.iter().map(|item| item.envelope.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, originals.keys().copied().collect::<Vec<_>>(), "{survival:?}");
        claim_all(&store, &found, originals).await;
        drop(store);
        assert!(check(&disk).is_clean());
    }
    let store = open(disk).await;
    dump(&store).await.unwrap()
}

/// Settles, with reports of so many octets.
async fn settle_some(
    store: &DiskStorage,
    originals: &mut BTreeMap<MessageId, NewMessage>,
    (domain, limit, octets): (&str, usize, usize),
) {
    let what = vec![due(domain, 1_000_000, limit)];
    let request = ClaimRequest { owner: A, now: at(1), until: at(9), what };
    for item in store.claim(request).await.unwrap().items {
        let event = EventId::from_uuid(*item.envelope.id.as_uuid());
        let report = Change::Report { of: None, event, payload: vec![1; octets].into() };
        store.commit(vec![settle(&item, &[0]), report]).await.unwrap();
        originals.remove(&item.envelope.id);
    }
}

#[test]
fn a_disk_of_20_mb_fills_up_settles_out_of_the_reserve_and_recovers() {
    run(async {
        let disk = Disk::default();
        disk.plan(|plan| plan.capacity = Some(20 * MIB));
        let mut options = options(&disk).with_segment_size(MIB).with_reserve(2 * MIB);
        options.files = Arc::new(disk.clone());
        let store = DiskStorage::open_with(STORE, options).await.unwrap();
        let has_reserve = || disk.paths().contains(&Path::new(STORE).join("reserve"));
        let mut originals = BTreeMap::new();
        let mut number = 0;
        let refused = loop {
            number += 1;
            // Every body file has some of each.
            let domain = if number % 3 == 0 { "a.example" } else { "b.example" };
            if let Err(error) = put(&store, &mut originals, sized(number, domain, 100_000)).await {
                break error;
            }
        };
        assert_eq!(refused.kind(), StorageErrorKind::Full, "{refused}");
        assert!(refused.to_string().contains("no storage space"), "{refused}");
        assert!(disk.used() > 19 * MIB && originals.len() > 100, "{} of {}", originals.len(), disk.used());
        assert!(has_reserve());
        // No body file becomes free by it.
        settle_some(&store, &mut originals, ("a.example", 30, 30_000)).await;
        assert_ne!(store.room(), Room::Ample, "settling took of it");
        let refused = put(&store, &mut originals, sized(8_000, "a.example", 10)).await.unwrap_err();
        assert_eq!(refused.kind(), StorageErrorKind::Full, "{refused}");
        assert!(refused.to_string().contains("new mail is refused"), "{refused}");
        settle_some(&store, &mut originals, ("a.example", 2, 100)).await;
        assert_ne!(store.room(), Room::Ample, "settling goes on");
        settle_some(&store, &mut originals, ("b.example", 60, 100)).await;
        store.maintain(at(5)).await.unwrap();
        // There is room again.
        put(&store, &mut originals, sized(9_000, "a.example", 100_000)).await.unwrap();
        assert!(has_reserve() && store.room() == Room::Ample, "it is whole before new mail is taken");
        drop(store);
        nothing_is_lost(&disk, &originals).await;
    });
}

/// Bodies of next to nothing: it is the metadata that grows.
#[test]
fn new_mail_leaves_the_reserve_to_what_settles_it() {
    run(async {
        let disk = Disk::default();
        disk.plan(|plan| plan.capacity = Some(8 * MIB));
        let store = DiskStorage::open_with(STORE, options(&disk).with_reserve(2 * MIB)).await.unwrap();
        let reserve = Path::new(STORE).join("reserve");
        let mut originals = BTreeMap::new();
        let mut refused = 0;
        let bodies = || {
            let in_bodies =
                disk.paths().into_iter().filter(|path| path.starts_with(Path::new(STORE).join("bodies")));
            in_bodies.map(|path| disk.content(&path).len()).sum::<usize>()
        };
        for number in 0..3_000 {
            let mut message = sized(number, "a.example", 1);
            let written = bodies();
            let tags = (0..40).map(|tag| (format!("tag {tag}"), "x".repeat(200))).collect();
            Arc::make_mut(&mut message.envelope).tags = tags;
            if let Err(error) = put(&store, &mut originals, message).await {
                assert_eq!(error.kind(), StorageErrorKind::Full, "{error}");
                assert!(error.to_string().contains("new mail is refused"), "{error}");
                assert_eq!(bodies(), written, "what was refused takes no room");
                refused += 1;
            }
            assert_eq!(disk.content(&reserve).len() as u64, 2 * MIB, "message {number}");
            assert_eq!(store.room(), Room::Ample);
            if refused > 5 {
                break;
            }
        }
        assert!(refused > 5 && originals.len() > 100, "{} taken", originals.len());
        let before = disk.steps();
        assert!(put(&store, &mut originals, sized(9_000, "a.example", 1)).await.is_err());
        assert_eq!(disk.steps(), before, "nothing is tried until something was given back");
        // What was accepted is settled out of it.
        settle_some(&store, &mut originals, ("a.example", 50, 30_000)).await;
        settle_some(&store, &mut originals, ("a.example", 1_000, 10)).await;
        store.maintain(at(5)).await.unwrap();
        assert_eq!(store.room(), Room::Ample);
        put(&store, &mut originals, sized(9_001, "a.example", 1)).await.unwrap();
        drop(store);
        nothing_is_lost(&disk, &originals).await;
    });
}

#[test]
fn a_commit_without_room_applies_nothing_and_succeeds_once_there_is() {
    run(async {
        let disk = Disk::default();
        disk.plan(|plan| plan.capacity = Some(20 * MIB));
        let mut options = options(&disk).with_segment_size(MIB).with_reserve(2 * MIB);
        options.files = Arc::new(disk.clone());
        let store = DiskStorage::open_with(STORE, options).await.unwrap();
        let mut originals = BTreeMap::new();
        for number in 0..50 {
            put(&store, &mut originals, sized(number, "a.example", 100_000)).await.unwrap();
        }
        let report = |number: u128, octets| Change::Report {
            of: None,
            event: EventId::from_uuid(uuid::Uuid::from_u128(number)),
            payload: vec![1; octets].into(),
        };
        let mut written = 0;
        // What a large commit has no room for a small one may have, until none has any.
        for (octets, seed) in [2 * MIB as usize, 300_000, 20_000, 2_000].into_iter().zip(0..) {
            let refused = loop {
                match store.commit(vec![report(written, octets)]).await {
                    Ok(_) => written += 1,
                    Err(error) => break error,
                }
            };
            assert_eq!(refused.kind(), StorageErrorKind::Full, "{refused}");
            assert_eq!(store.room(), Room::Exhausted);
            let outbox = store.outbox(OutboxPosition::default(), 100_000).await.unwrap();
            assert_eq!(outbox.len() as u128, written, "nothing of it was applied");
            for survival in Survival::ALL {
                let store = open(&disk.reboot(survival, seed)).await;
                let found = dump(&store).await.unwrap();
                assert_eq!((found.items.len(), found.outbox.len() as u128), (50, written), "{survival:?}");
            }
        }
        assert!(disk.used() > 19 * MIB && written > 10, "{written} in {}", disk.used());
        // Mail that ends gives room back by itself.
        let all = store.outbox(OutboxPosition::default(), 100_000).await.unwrap();
        store.commit(vec![Change::Acknowledge(all.last().unwrap().position)]).await.unwrap();
        assert_eq!(store.room(), Room::Scarce);
        settle_some(&store, &mut originals, ("a.example", 30, 100)).await;
        store.maintain(at(5)).await.unwrap();
        assert_eq!(store.room(), Room::Ample);
        store.commit(vec![report(written, 300_000)]).await.unwrap();
        drop(store);
        nothing_is_lost(&disk, &originals).await;
    });
}

/// A store without a reserve whose last commit found no room.
async fn exhausted(disk: &Disk, originals: &mut BTreeMap<MessageId, NewMessage>) -> DiskStorage {
    let store = DiskStorage::open_with(STORE, options(disk).with_reserve(0)).await.unwrap();
    put(&store, originals, sized(1, "a.example", 500)).await.unwrap();
    let used = disk.used();
    disk.plan(|plan| plan.capacity = Some(used));
    finds_no_room(&store).await;
    store
}

async fn finds_no_room(store: &DiskStorage) {
    let event = EventId::from_uuid(uuid::Uuid::from_u128(1));
    let large = Change::Report { of: None, event, payload: vec![1; MIB as usize].into() };
    assert_eq!(store.commit(vec![large]).await.unwrap_err().kind(), StorageErrorKind::Full);
    assert_eq!(store.room(), Room::Exhausted);
}

#[test]
fn what_writes_nothing_says_nothing_of_room_and_upkeep_finds_it_by_itself() {
    run(async {
        let (disk, mut originals) = (Disk::default(), BTreeMap::new());
        let store = exhausted(&disk, &mut originals).await;
        let again = store.insert(vec![sized(1, "a.example", 500)]).await.unwrap();
        assert!(matches!(again[..], [Inserted::Duplicate]), "{again:?}");
        assert_eq!(store.room(), Room::Exhausted);
        // It has something to do the first time only.
        for _ in 0..2 {
            let used = disk.used();
            disk.plan(|plan| plan.capacity = Some(used));
            finds_no_room(&store).await;
            disk.plan(|plan| plan.capacity = None);
            store.maintain(at(5)).await.unwrap();
            assert_eq!(store.room(), Room::Ample);
        }
        drop(store);
        nothing_is_lost(&disk, &originals).await;
    });
}

/// After a refusal redb is opened anew, and can write nothing for that either.
#[test]
fn a_store_that_finds_no_room_even_for_what_is_there_goes_on_once_there_is() {
    run(async {
        let (disk, mut originals) = (Disk::default(), BTreeMap::new());
        let store = DiskStorage::open_with(STORE, options(&disk).with_reserve(0)).await.unwrap();
        put(&store, &mut originals, sized(1, "a.example", 500)).await.unwrap();
        for number in 2..5 {
            disk.plan(|plan| plan.full_for = Some(""));
            for _ in 0..2 {
                finds_no_room(&store).await;
                let refused = store.insert(vec![sized(number, "a.example", 500)]).await.unwrap_err();
                assert_eq!(refused.kind(), StorageErrorKind::Full, "{refused}");
                assert_eq!(dump(&store).await.unwrap().items.len(), originals.len());
            }
            disk.plan(|plan| plan.full_for = None);
            match number {
                // Whoever comes first.
                2 => put(&store, &mut originals, sized(number, "a.example", 500)).await.unwrap(),
                3 => assert_eq!(dump(&store).await.unwrap().items.len(), originals.len()),
                _ => store.maintain(at(5)).await.unwrap(),
            }
        }
        drop(store);
        nothing_is_lost(&disk, &originals).await;
    });
}

/// What comes between a write that found no room and the opening anew that follows it.
#[test]
fn reads_beside_a_write_without_room_are_answered() {
    run(async {
        let (disk, mut originals) = (Disk::default(), BTreeMap::new());
        let store = exhausted(&disk, &mut originals).await;
        let refused = || {
            let event = EventId::from_uuid(uuid::Uuid::from_u128(1));
            let large = Change::Report { of: None, event, payload: vec![1; MIB as usize].into() };
            let round = [Work::Commit(vec![large], tokio::sync::oneshot::channel().0)];
            let mut state = lock(&store.shared.writer);
            let (pinned, mut effects) = Default::default();
            assert!(store.shared.apply(&mut state, &round, &pinned, &mut effects).is_err());
            assert!(store.shared.reserve.has_refused());
        };
        refused();
        let (owner, what) = (A, vec![due("a.example", 1_000_000, 9)]);
        let claimed = store.claim(ClaimRequest { owner, now: at(1), until: at(9), what }).await.unwrap();
        assert_eq!(claimed.items.len(), 1);
        refused();
        assert_eq!(store.list(Filter::All, None, 9).await.unwrap().len(), 1);
        refused();
        let bodies = store.bodies(vec![BodyKey(id(1))]).await.unwrap();
        assert!(bodies.iter().all(Result::is_ok), "{bodies:?}");
        refused();
        disk.plan(|plan| plan.capacity = None);
        let ended = claimed.items.iter().map(|item| settle(item, &[0])).collect();
        assert_eq!(store.commit(ended).await.unwrap(), [ChangeOutcome::Applied]);
    });
}

#[test]
fn a_failed_flush_is_no_lack_of_room_though_there_was_one_before() {
    run(async {
        let (disk, mut originals) = (Disk::default(), BTreeMap::new());
        let store = exhausted(&disk, &mut originals).await;
        disk.plan(|plan| (plan.capacity, plan.fail_sync) = (None, Some(".redb")));
        let event = EventId::from_uuid(uuid::Uuid::from_u128(2));
        let failed = store.commit(vec![Change::Report { of: None, event, payload: vec![1; 9].into() }]).await;
        assert_eq!(failed.unwrap_err().kind(), StorageErrorKind::OutcomeUnknown);
        assert_eq!(store.maintain(at(5)).await.unwrap_err().kind(), StorageErrorKind::Poisoned);
        drop(store);
        nothing_is_lost(&disk, &originals).await;
    });
}

#[test]
fn who_was_refused_a_write_writes_no_more_though_another_took_its_place() {
    let (disk, path) = (Disk::default(), Path::new(STORE).join(open::METADATA));
    let file = disk.open(&path, Mode::Write).unwrap();
    let reserve = Arc::new(Reserve::new(Arc::new(disk.clone()), Path::new(STORE).join("reserve"), 0));
    let [first, second] = [(); 2].map(|()| {
        disk.plan(|plan| plan.capacity = None);
        let backend = MetadataFile::new(file.clone(), reserve.clone());
        backend.write(0, &[1; 9]).unwrap();
        disk.plan(|plan| plan.capacity = Some(0));
        assert_eq!(backend.write(MIB, &[1; 9]).unwrap_err().kind(), ErrorKind::StorageFull);
        assert!(reserve.has_refused());
        backend
    });
    disk.plan(|plan| plan.capacity = None);
    let third = MetadataFile::new(file, reserve.clone());
    third.write(MIB, &[3; 9]).unwrap();
    assert!(!reserve.has_refused());
    for refused in [first, second] {
        assert!(refused.write(0, &[1; 9]).is_err() && refused.sync_data().is_err());
    }
}

/// A database that is dropped though it was refused nothing writes once more, under the one that took its place.
#[test]
fn bodies_without_room_leave_the_metadata_as_it_is() {
    run(async {
        let (disk, mut originals) = (Disk::default(), BTreeMap::new());
        let store = exhausted(&disk, &mut originals).await;
        let metadata = Path::new(STORE).join("metadata.redb");
        let before = disk.content(&metadata);
        let refused = store.insert(vec![sized(2, "a.example", 50_000)]).await.unwrap_err();
        assert_eq!(refused.kind(), StorageErrorKind::Full, "{refused}");
        assert!(disk.content(&metadata) == before, "it is not written to");
        drop(store);
        disk.plan(|plan| plan.capacity = None);
        nothing_is_lost(&disk, &originals).await;
    });
}

#[test]
fn commits_without_room_leave_their_number_to_the_next() {
    run(async {
        let (disk, mut originals) = (Disk::default(), BTreeMap::new());
        let store = exhausted(&disk, &mut originals).await;
        for _ in 0..2 {
            finds_no_room(&store).await;
        }
        // The power goes between the flush of a body and that of the metadata.
        disk.plan(|plan| (plan.capacity, plan.fail_sync) = (None, Some(".redb")));
        let cut = store.insert(vec![sized(2, "a.example", 500)]).await.unwrap_err();
        assert_eq!(cut.kind(), StorageErrorKind::OutcomeUnknown, "{cut}");
        drop(store);
        nothing_is_lost(&disk, &originals).await;
    });
}

/// Mail comes and goes on a disk that has room for so many blocks beyond a new store. How many calls found none.
async fn on_a_disk_that_ends(
    disk: &Disk,
    blocks: u64,
    originals: &mut BTreeMap<MessageId, NewMessage>,
) -> u32 {
    let store = open(disk).await;
    let used = disk.used();
    disk.plan(|plan| plan.capacity = Some(used + blocks * 4096));
    let mut refused = 0;
    let mut note = |done: std::result::Result<(), StorageError>| {
        if let Err(error) = &done {
            assert_eq!(error.kind(), StorageErrorKind::Full, "{error}");
            refused += 1;
        }
        done.is_ok()
    };
    for number in 0..12 {
        note(put(&store, originals, sized(number, "a.example", 900)).await);
        let request =
            ClaimRequest { owner: A, now: at(1), until: at(9), what: vec![due("a.example", 1_000_000, 1)] };
        let held = store.claim(request).await.unwrap().items;
        let Some(item) = held.first().filter(|_| number % 2 == 1) else { continue };
        let event = EventId::from_uuid(*item.envelope.id.as_uuid());
        let report = Change::Report { of: None, event, payload: vec![1; 3_000].into() };
        if note(store.commit(vec![settle(item, &[0]), report]).await.map(drop)) {
            originals.remove(&item.envelope.id);
        }
        note(store.maintain(at(5)).await);
    }
    refused
}

#[test]
fn wherever_a_disk_ends_what_was_acknowledged_is_kept() {
    run(async {
        let mut refusals = Vec::new();
        for blocks in (0..60).step_by(if tries_all() { 1 } else { 4 }) {
            let (disk, mut originals) = (Disk::default(), BTreeMap::new());
            refusals.push(on_a_disk_that_ends(&disk, blocks, &mut originals).await);
            disk.plan(|plan| plan.capacity = None);
            nothing_is_lost(&disk, &originals).await;
        }
        assert!(refusals[0] > 10 && *refusals.last().unwrap() == 0, "{refusals:?}");
    });
}

#[test]
fn a_failed_flush_is_never_tried_again_whatever_of_it_is_written() {
    let endings = [".bodies", ".redb", "/bodies"];
    let kinds = [FailedSync::Loses, FailedSync::MayWrite, FailedSync::WritesSome];
    for (ending, failed) in endings.into_iter().flat_map(|one| kinds.map(|failed| (one, failed))) {
        run(async {
            let disk = Disk::default();
            let mut originals = BTreeMap::new();
            let store = open(&disk).await;
            // The next body begins a new file.
            put(&store, &mut originals, sized(1, "a.example", 5_000)).await.unwrap();
            disk.plan(|plan| (plan.fail_sync, plan.failed_sync) = (Some(ending), failed));
            let unknown = sized(2, "a.example", 500);
            let error = store.insert(vec![unknown.clone()]).await.unwrap_err();
            assert_eq!(error.kind(), StorageErrorKind::OutcomeUnknown, "{error}");
            let syncs = disk.syncs();
            for number in 3..6 {
                let error = store.insert(vec![sized(number, "a.example", 500)]).await.unwrap_err();
                assert_eq!(error.kind(), StorageErrorKind::Poisoned, "{error}");
            }
            assert_eq!(store.maintain(at(9)).await.unwrap_err().kind(), StorageErrorKind::Poisoned);
            assert_eq!(disk.syncs(), syncs, "{ending}");
            drop(store);
            for (survival, seed) in Survival::ALL.into_iter().flat_map(|one| (0..5).map(move |n| (one, n))) {
                let disk = disk.reboot(survival, seed);
                let store = open(&disk).await;
                let found = dump(&store).await.unwrap().items;
                drop(store);
                let mut originals = originals.clone();
                if found.iter().any(|item| item.envelope.id == id(2)) {
                    assert!(
                        failed != FailedSync::Loses && ending == ".redb",
                        "{ending}: bodies are flushed first"
                    );
                    originals.insert(id(2), unknown.clone());
                }
                nothing_is_lost(&disk, &originals).await;
            }
        });
    }
}

#[test]
fn a_short_write_loses_nothing_that_was_acknowledged() {
    run(async {
        for after in 0..30 {
            let disk = Disk::default();
            let mut originals = BTreeMap::new();
            let store = open(&disk).await;
            put(&store, &mut originals, sized(1, "a.example", 500)).await.unwrap();
            let at_step = disk.steps() + after;
            disk.plan(|plan| plan.short_at = Some(at_step));
            let mut unknown = None;
            for number in 2..5 {
                let message = sized(number, "a.example", 500);
                match put(&store, &mut originals, message.clone()).await {
                    Err(error) if error.kind() == StorageErrorKind::OutcomeUnknown => unknown = Some(message),
                    _ => {}
                }
            }
            drop(store);
            let disk = disk.reboot(Survival::All, after as u64);
            let store = open(&disk).await;
            let found = dump(&store).await.unwrap();
            drop(store);
            if let Some(message) = unknown
                && found.items.iter().any(|item| item.envelope.id == message.envelope.id)
            {
                originals.insert(message.envelope.id, message);
            }
            nothing_is_lost(&disk, &originals).await;
        }
    });
}

#[test]
fn a_flipped_bit_in_a_body_is_told_and_the_rest_served() {
    run(async {
        let disk = Disk::default();
        let store = open(&disk).await;
        store.insert((1..4).map(|number| sized(number, "a.example", 500)).collect()).await.unwrap();
        let path = body_file(&disk);
        let body = sized(2, "a.example", 500).body;
        disk.flip(&path, position(&disk.content(&path), &body) + 99, 3);
        let bodies = store.bodies((1..4).map(|number| BodyKey(id(number))).collect()).await.unwrap();
        assert!(bodies[0].is_ok() && bodies[2].is_ok());
        assert_eq!(bodies[1].as_ref().unwrap_err().kind(), StorageErrorKind::Corrupt);
        drop(store);
        let report = check(&disk);
        assert_eq!(report.problem_count, 1, "{report:?}");
        assert!(report.problems[0].place.contains(&id(2).to_string()), "{report:?}");
        assert_eq!((report.messages, report.items, report.recipients), (3, 3, 3));
    });
}

#[test]
fn a_flipped_bit_in_an_address_is_told_and_the_rest_served() {
    run(async {
        let disk = Disk::default();
        let store = open(&disk).await;
        for number in 1..4 {
            let mut message = sized(number, "a.example", 50);
            message.items[0].recipients[0].address =
                crate::message::Address::parse(&format!("user{number}@a.example")).unwrap();
            store.insert(vec![message]).await.unwrap();
        }
        drop(store);
        let path = Path::new(STORE).join(open::METADATA);
        // Earlier pages may hold it too.
        let content = disk.content(&path);
        for (at, _) in content.windows(5).enumerate().filter(|(_, window)| window == b"user2") {
            disk.flip(&path, at, 1);
        }
        let report = check(&disk);
        assert!(report.problems.iter().any(|problem| problem.damage.contains("item 2")), "{report:?}");
        let store = open(&disk).await;
        let listed = dump(&store).await.unwrap().items;
        assert_eq!(listed.iter().map(|item| item.envelope.id).collect::<Vec<_>>(), [id(1), id(3)]);
        let told = store.take_damage().await;
        let lost = format!("message {} has lost 1 of its 1 items", id(2));
        for words in ["item 2", &lost, "is written anew"] {
            assert!(told.iter().any(|told| told.to_string().contains(words)), "{words}: {told:?}");
        }
        let what = vec![due("a.example", 1_000_000, 9)];
        let claimed = store.claim(ClaimRequest { owner: A, now: at(1), until: at(9), what }).await.unwrap();
        assert_eq!(claimed.items.iter().map(|item| item.envelope.id).collect::<Vec<_>>(), [id(1), id(3)]);
    });
}

#[test]
fn one_message_stuck_in_every_file_comes_down_to_few_files() {
    run(async {
        let disk = Disk::default();
        let mut originals = BTreeMap::new();
        let store = open(&disk).await;
        let count = || disk.paths().iter().filter(|path| path.to_string_lossy().ends_with(".bodies")).count();
        for number in 0..100 {
            let domain = if number % 5 == 0 { "stuck.example" } else { "a.example" };
            put(&store, &mut originals, sized(number + 1, domain, 900)).await.unwrap();
        }
        let before = count();
        let what = vec![due("a.example", 1_000_000, 100)];
        for item in
            store.claim(ClaimRequest { owner: A, now: at(1), until: at(9), what }).await.unwrap().items
        {
            store.commit(vec![settle(&item, &[0])]).await.unwrap();
            originals.remove(&item.envelope.id);
        }
        store.maintain(at(9)).await.unwrap();
        drop(store);
        assert!(before >= 20 && count() <= before / 3, "{before} then {}", count());
        assert_eq!(nothing_is_lost(&disk, &originals).await.items.len(), 20);
    });
}
