//! What only files can do: space given back, damage found, failures of the disk.

mod conformance;
mod missing;
mod moved;
mod pairing;
mod words;

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use redb::Database;

use super::faults::{Faults, FaultyFiles};
use super::*;
use crate::testing::conformance::{A, at, due, id, item, message, message_of, numbers, settle};

struct Rig {
    folder: TempDir,
    faults: Arc<Faults>,
    options: DiskOptions,
}

impl Rig {
    fn new() -> Self {
        let files = FaultyFiles::default();
        let mut options = DiskOptions::new().with_segment_size(4096).with_reserve(64 * 1024);
        options.files = Arc::new(files.clone());
        Self { folder: tempfile::tempdir().unwrap(), faults: files.0, options }
    }

    async fn open(&self) -> DiskStorage {
        self.try_open().await.unwrap()
    }

    async fn try_open(&self) -> Result<DiskStorage> {
        DiskStorage::open_with(self.folder.path(), self.options.clone()).await
    }

    fn body_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path().join("bodies")).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn reserve(&self) -> PathBuf {
        self.folder.path().join("reserve")
    }
}

/// With a body of two kilobytes.
fn large(number: u128) -> NewMessage {
    let mut message = message(number, "a.example", number as u64);
    message.body = vec![number as u8; 2048].into();
    message
}

async fn insert_each(store: &DiskStorage, numbers: std::ops::RangeInclusive<u128>) {
    for number in numbers {
        store.insert(vec![large(number)]).await.unwrap();
    }
}

async fn claim(store: &DiskStorage, limit: usize) -> Vec<super::super::Item> {
    let request =
        ClaimRequest { owner: A, now: at(1), until: at(100), what: vec![due("a.example", 1_000_000, limit)] };
    store.claim(request).await.unwrap().items
}

async fn settle_first(store: &DiskStorage, count: usize) {
    for item in claim(store, count).await {
        store.commit(vec![settle(&item, &[0])]).await.unwrap();
    }
}

async fn body(store: &DiskStorage, number: u128) -> Result<Bytes> {
    store.bodies(vec![BodyKey(id(number))]).await.unwrap().remove(0)
}

/// What shows without a walk over all of it.
#[tokio::test]
async fn metadata_with_many_remembered_ids_is_not_taken_for_empty() {
    let folder = tempfile::tempdir().unwrap();
    let store = DiskStorage::open(folder.path()).await.unwrap();
    let new = |number| NewMessage { host_id: true, ..message(number, "a.example", 1) };
    store.insert((1..=2_000).map(new).collect()).await.unwrap();
    let what = vec![due("a.example", 1, 9_999)];
    let request = ClaimRequest { owner: A, now: at(1), until: at(9), what };
    let claimed = store.claim(request).await.unwrap().items;
    store.commit(claimed.iter().map(|item| settle(item, &[0])).collect()).await.unwrap();
    assert_eq!(store.usage().await.unwrap().items, 0);
    let least = store.shared.with(maintain::least_octets).unwrap();
    assert!((56_000..60_000).contains(&least), "{least}");
}

#[tokio::test(start_paused = true)]
async fn a_body_file_goes_with_its_last_body() {
    let rig = Rig::new();
    let store = rig.open().await;
    insert_each(&store, 1..=5).await;
    assert_eq!(rig.body_files().len(), 3, "two bodies fill a file");
    let before = store.usage().await.unwrap().octets;
    settle_first(&store, 1).await;
    assert_eq!(rig.body_files().len(), 3);
    settle_first(&store, 3).await;
    assert_eq!(rig.body_files().len(), 1);
    assert!(store.usage().await.unwrap().octets < before);
    assert_eq!(body(&store, 5).await.unwrap(), vec![5; 2048]);
    settle_first(&store, 1).await;
    assert_eq!(rig.body_files().len(), 1, "the one that is being written stays");
    store.maintain(at(9)).await.unwrap();
    assert_eq!(rig.body_files().len(), 0, "until there is little to do");
    insert_each(&store, 6..=6).await;
    assert_eq!(body(&store, 6).await.unwrap(), vec![6; 2048]);
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_dead_file_is_copied_forward() {
    let mut rig = Rig::new();
    rig.options = rig.options.with_segment_size(20_000);
    let store = rig.open().await;
    insert_each(&store, 1..=12).await;
    let files = rig.body_files();
    assert_eq!(files.len(), 2);
    settle_first(&store, 7).await;
    store.maintain(at(9)).await.unwrap();
    assert_eq!(rig.body_files(), files, "over a quarter is alive");
    settle_first(&store, 1).await;
    store.maintain(at(9)).await.unwrap();
    assert_eq!(rig.body_files(), files[1..], "copied and deleted");
    for number in 9..=12 {
        assert_eq!(body(&store, number).await.unwrap(), vec![number as u8; 2048]);
    }
    drop(store);
    let store = rig.open().await;
    for number in 9..=12 {
        assert_eq!(body(&store, number).await.unwrap(), vec![number as u8; 2048]);
    }
    assert_eq!(numbers(&claim(&store, 99).await), [9, 10, 11, 12]);
}

/// Damages the metadata such that all its rows can be read.
fn lose_the_counters(rig: &Rig) {
    let database = redb::Database::create(rig.folder.path().join(open::METADATA)).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(tables::META).unwrap().remove(tables::COUNTERS).unwrap();
    transaction.commit().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_kept_over_damage_is_not_copied_forward() {
    let mut rig = Rig::new();
    rig.options = rig.options.with_segment_size(20_000);
    insert_each(&rig.open().await, 1..=12).await;
    lose_the_counters(&rig);
    let store = rig.open().await;
    let files = rig.body_files();
    settle_first(&store, 8).await;
    store.maintain(at(9)).await.unwrap();
    assert_eq!(rig.body_files(), files, "it would give no room back");
    settle_first(&store, 4).await;
    store.maintain(at(9)).await.unwrap();
    let aside: Vec<_> = files.iter().map(|file| file.with_extension("bodies-damaged")).collect();
    assert_eq!(rig.body_files(), aside);
}

/// Settles all but so many.
async fn leave(store: &DiskStorage, left: usize) {
    let items = claim(store, store.usage().await.unwrap().items as usize - left).await;
    store.commit(items.iter().map(|item| settle(item, &[0])).collect()).await.unwrap();
    store.maintain(at(9)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_being_written_is_copied_forward_if_it_is_large_and_little_of_it_is_alive() {
    let mut rig = Rig::new();
    rig.options = rig.options.with_segment_size(1 << 30);
    let store = rig.open().await;
    store.insert((1..=600).map(large).collect()).await.unwrap();
    let first = rig.body_files();
    leave(&store, 200).await;
    assert_eq!(rig.body_files(), first, "over a quarter is alive");
    leave(&store, 100).await;
    let second = rig.body_files();
    assert!(second.len() == 1 && second != first, "copied and deleted");
    insert_each(&store, 601..=601).await;
    leave(&store, 1).await;
    assert_eq!(rig.body_files(), second, "too small to matter");
    assert_eq!(body(&store, 601).await.unwrap(), vec![601_u128 as u8; 2048]);
}

#[tokio::test(start_paused = true)]
async fn a_second_opening_is_refused_by_name() {
    let rig = Rig::new();
    let store = rig.open().await;
    let error = rig.try_open().await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Locked);
    assert!(error.to_string().contains(&rig.folder.path().display().to_string()), "{error}");
    drop(store);
    rig.open().await;
}

#[tokio::test(start_paused = true)]
async fn dropping_waits_for_writing_that_has_begun() {
    let rig = Rig::new();
    for number in 1..=5 {
        let store = rig.open().await;
        // Polled once, then left alone.
        {
            let mut insert = std::pin::pin!(store.insert(vec![large(number)]));
            assert!(futures::poll!(insert.as_mut()).is_pending());
        }
        drop(store);
    }
    assert_eq!(rig.open().await.usage().await.unwrap().items, 5);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_body_fails_alone() {
    let rig = Rig::new();
    let store = rig.open().await;
    store.insert((1..=3).map(large).collect()).await.unwrap();
    let path = rig.body_files().remove(0);
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    let middle = content.windows(8).position(|window| window == [2; 8]).unwrap() + 100;
    file.seek(SeekFrom::Start(middle as u64)).unwrap();
    file.write_all(&[0x55]).unwrap();
    let bodies = store.bodies((1..=3).map(|number| BodyKey(id(number))).collect()).await.unwrap();
    assert_eq!(bodies[0].as_ref().unwrap(), &vec![1; 2048]);
    assert_eq!(bodies[1].as_ref().unwrap_err().kind(), StorageErrorKind::Corrupt);
    assert_eq!(bodies[2].as_ref().unwrap(), &vec![3; 2048]);
    drop(store);
    file.set_len(100).unwrap();
    let store = rig.open().await;
    assert_eq!(body(&store, 3).await.unwrap_err().kind(), StorageErrorKind::Corrupt, "it was cut before");
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_left_behind_is_harmless() {
    let rig = Rig::new();
    let store = rig.open().await;
    insert_each(&store, 1..=1).await;
    drop(store);
    // Bodies that were flushed, of a commit that never came: at the end of a file, and a file of their own.
    let file = rig.body_files().remove(0);
    OpenOptions::new().append(true).open(&file).unwrap().write_all(&[7; 500]).unwrap();
    let left_over = segment::path_of(&rig.folder.path().join("bodies"), 77);
    fs::write(&left_over, b"anything").unwrap();
    let foreign = rig.folder.path().join("bodies/notes.txt");
    fs::write(&foreign, b"not ours").unwrap();
    let store = rig.open().await;
    assert!(!left_over.exists() && foreign.exists());
    assert_eq!(body(&store, 1).await.unwrap(), vec![1; 2048]);
    insert_each(&store, 2..=3).await;
    drop(store);
    let store = rig.open().await;
    for number in 1..=3 {
        assert_eq!(body(&store, number).await.unwrap(), vec![number as u8; 2048]);
    }
    settle_first(&store, 3).await;
    store.maintain(at(1)).await.unwrap();
    assert_eq!(rig.body_files(), [foreign]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_can_not_be_followed_is_kept() {
    let mut rig = Rig::new();
    rig.options = rig.options.with_segment_size(20_000);
    let store = rig.open().await;
    insert_each(&store, 1..=12).await;
    let first = rig.body_files().remove(0);
    settle_first(&store, 8).await;
    // The first record's header: records after it can not be found any more.
    let mut file = OpenOptions::new().write(true).open(&first).unwrap();
    file.seek(SeekFrom::Start(segment::FILE_HEADER)).unwrap();
    file.write_all(&[0; 4]).unwrap();
    for _ in 0..2 {
        store.maintain(at(9)).await.unwrap();
        assert!(first.exists());
    }
    assert_eq!(body(&store, 9).await.unwrap(), vec![9; 2048]);
    settle_first(&store, 2).await;
    assert!(!first.exists(), "it goes when all in it is dead");
}

#[tokio::test(start_paused = true)]
async fn another_version_is_refused_by_number_if_its_row_is_sound() {
    let rig = Rig::new();
    insert_each(&rig.open().await, 1..=1).await;
    let later = codec::raw_row(open::FORMAT_KEY, &9_u32.to_le_bytes());
    for (row, version) in [(&later[..], 9), (&4_u32.to_le_bytes(), 4)] {
        put_format(&rig, row);
        let error = rig.try_open().await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Corrupt);
        let words = error.to_string();
        assert!(words.contains(&format!("version {version}")) && words.contains("version 6"), "{words}");
    }
    for octet in 0..later.len() {
        let mut damaged = later.clone();
        damaged[octet] ^= 1;
        put_format(&rig, &damaged);
        let store = rig.open().await;
        let told = store.take_damage().await;
        assert!(
            told.iter().any(|told| told.to_string().contains("the row of the format version is damaged")),
            "{told:?}"
        );
        assert_eq!(claim(&store, 9).await.len(), 1);
    }
}

fn put_format(rig: &Rig, row: &[u8]) {
    let database = Database::open(rig.folder.path().join(open::METADATA)).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(tables::META).unwrap().insert(open::FORMAT_KEY, row).unwrap();
    transaction.commit().unwrap();
}

#[tokio::test(start_paused = true)]
async fn something_else_is_not_taken_for_a_store() {
    let rig = Rig::new();
    fs::write(rig.folder.path().join(open::METADATA), b"something else entirely").unwrap();
    let error = rig.try_open().await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Corrupt);
    assert!(error.to_string().contains(open::METADATA), "{error}");
}

#[tokio::test(start_paused = true)]
async fn full_for_bodies_refuses_inserts_and_settles_on() {
    let rig = Rig::new();
    let store = rig.open().await;
    insert_each(&store, 1..=2).await;
    let items = claim(&store, 9).await;
    rig.faults.bodies_full.store(true, SeqCst);
    let (insert, commit) =
        tokio::join!(store.insert(vec![large(3)]), store.commit(vec![settle(&items[0], &[0])]));
    assert_eq!(insert.unwrap_err().kind(), StorageErrorKind::Full);
    assert_eq!(commit.unwrap(), [ChangeOutcome::Applied], "though they shared a round");
    rig.faults.bodies_full.store(false, SeqCst);
    assert!(matches!(store.insert(vec![large(3)]).await.unwrap()[..], [Inserted::Stored(_)]));
    drop(store);
    let store = rig.open().await;
    assert_eq!(body(&store, 1).await.unwrap_err().kind(), StorageErrorKind::NotFound);
    for number in 2..=3 {
        assert_eq!(body(&store, number).await.unwrap(), vec![number as u8; 2048]);
    }
}

#[tokio::test(start_paused = true)]
async fn full_for_metadata_gives_up_the_reserve() {
    let rig = Rig::new();
    let store = rig.open().await;
    insert_each(&store, 1..=2).await;
    let items = claim(&store, 9).await;
    assert!(rig.reserve().exists());
    rig.faults.metadata_full.store(1, SeqCst);
    assert_eq!(store.commit(vec![settle(&items[0], &[0])]).await.unwrap(), [ChangeOutcome::Applied]);
    // There is room after all: it is made again.
    assert_eq!(fs::metadata(rig.reserve()).unwrap().len(), 64 * 1024);
    assert_eq!(store.room(), Room::Ample);
    insert_each(&store, 3..=3).await;
    // No reserve and no way to make one: new mail is refused, settling goes on.
    rig.faults.metadata_full.store(1, SeqCst);
    rig.faults.reserve_full.store(true, SeqCst);
    store.commit(vec![settle(&items[1], &[0])]).await.unwrap();
    assert!(!rig.reserve().exists());
    assert_eq!(store.room(), Room::Scarce);
    assert_eq!(store.insert(vec![large(4)]).await.unwrap_err().kind(), StorageErrorKind::Full);
    settle_first(&store, 1).await;
    assert_eq!(store.usage().await.unwrap().items, 0);
}

#[tokio::test(start_paused = true)]
async fn a_failed_flush_poisons_the_store() {
    for bodies in [true, false] {
        let rig = Rig::new();
        let store = rig.open().await;
        insert_each(&store, 1..=1).await;
        let flag = if bodies { &rig.faults.body_sync } else { &rig.faults.metadata_sync };
        flag.store(true, SeqCst);
        let error = store.insert(vec![large(2)]).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::OutcomeUnknown, "{error}");
        flag.store(false, SeqCst);
        let insert = store.insert(vec![large(3)]).await.unwrap_err();
        let heads = store.heads(None, 1).await.unwrap_err();
        for error in [insert, heads] {
            assert_eq!(error.kind(), StorageErrorKind::Poisoned, "{error}");
        }
        drop(store);
        let store = rig.open().await;
        assert_eq!(body(&store, 1).await.unwrap(), vec![1; 2048]);
        insert_each(&store, 3..=3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_share_a_round() {
    let mut rig = Rig::new();
    rig.options = rig.options.with_waiting_calls(100);
    let store = rig.open().await;
    let inserts = (1..=300).map(|number| store.insert(vec![message(number, "a.example", 1)]));
    for answer in futures::future::join_all(inserts).await {
        assert!(matches!(answer.unwrap()[..], [Inserted::Stored(_)]));
    }
    assert_eq!(store.usage().await.unwrap().items, 300);
}

#[tokio::test(start_paused = true)]
async fn a_metadata_file_that_has_become_empty_is_compacted() {
    let rig = Rig::new();
    let store = rig.open().await;
    for batch in 0..10u128 {
        let wide = |number: u128| {
            let mut items = vec![item("a.example", 1, 400)];
            items[0].recipients.iter_mut().for_each(|recipient| recipient.attempts = 9);
            message_of(batch * 100 + number, 1, items)
        };
        store.insert((0..100).map(wide).collect()).await.unwrap();
    }
    let full = store.usage().await.unwrap().octets;
    assert!(full > 17 << 20, "{full}");
    loop {
        let items = claim(&store, 200).await;
        if items.is_empty() {
            break;
        }
        let all: Vec<u32> = (0..400).collect();
        store.commit(items.iter().map(|item| settle(item, &all)).collect()).await.unwrap();
    }
    store.maintain(at(1)).await.unwrap();
    let empty = store.usage().await.unwrap().octets;
    assert!(empty < full / 4, "{full} then {empty}");
    insert_each(&store, 1..=1).await;
    assert_eq!(body(&store, 1).await.unwrap(), vec![1; 2048]);
}

#[tokio::test(start_paused = true)]
async fn empty_lanes_are_removed() {
    let rig = Rig::new();
    let store = rig.open().await;
    for number in 1..=20 {
        store.insert(vec![message(number, &format!("d{number}.example"), 1)]).await.unwrap();
    }
    let lanes = |store: &DiskStorage| store.shared.with(|rows| Ok(rows.lanes_after(None)?.count())).unwrap();
    let what = (1..=10).map(|number| due(&format!("d{number}.example"), 1, 1)).collect();
    let request = ClaimRequest { owner: A, now: at(1), until: at(1) + Duration::from_secs(9), what };
    for item in store.claim(request).await.unwrap().items {
        store.commit(vec![settle(&item, &[0])]).await.unwrap();
    }
    assert_eq!(lanes(&store), 20);
    store.maintain(at(2)).await.unwrap();
    assert_eq!(lanes(&store), 10);
    assert_eq!(store.heads(None, 99).await.unwrap().len(), 10);
}

#[tokio::test(start_paused = true)]
async fn however_many_lanes_are_empty_they_go_while_others_are_served() {
    let rig = Rig::new();
    let store = rig.open().await;
    let in_lane = |number: u128| message(number, &format!("d{number}.example"), 1);
    store.insert((1..=10_000).map(in_lane).collect()).await.unwrap();
    let what = (1..=10_000).map(|number| due(&format!("d{number}.example"), 1, 1)).collect();
    let request = ClaimRequest { owner: A, now: at(1), until: at(9), what };
    let items = store.claim(request).await.unwrap().items;
    store.commit(items.iter().map(|item| settle(item, &[0])).collect()).await.unwrap();
    let lanes = || store.shared.with(|rows| Ok(rows.lanes_after(None)?.count())).unwrap();
    assert_eq!(lanes(), 10_000);
    let left_at_insert = async {
        store.insert(vec![in_lane(20_000)]).await.unwrap();
        lanes()
    };
    let (maintained, left_at_insert) = tokio::join!(store.maintain(at(2)), left_at_insert);
    maintained.unwrap();
    assert!(left_at_insert > 1, "it did not wait for all of them: {left_at_insert}");
    assert_eq!(lanes(), 1);
}
