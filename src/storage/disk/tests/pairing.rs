//! Metadata and bodies that do not belong together are refused, and nothing of them is deleted.

use redb::Database;

use super::*;
use crate::storage::disk::pairing::Pairing;

impl Rig {
    fn metadata(&self) -> PathBuf {
        self.folder.path().join(open::METADATA)
    }

    /// All body files and what is in them.
    fn bodies(&self) -> Vec<(PathBuf, Vec<u8>)> {
        self.body_files().into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
    }

    /// Opening refuses it again and again, checking says why, and the bodies stay as they are. Returns the reason.
    async fn is_refused(&self) -> String {
        let damaged = self.folder.path().join(replace::DAMAGED);
        let (is_rebuilt, bodies) = (damaged.exists(), self.bodies());
        let mut words = String::new();
        for _ in 0..2 {
            let error = self.try_open().await.unwrap_err();
            assert_eq!(error.kind(), StorageErrorKind::Corrupt, "{error}");
            words = error.to_string();
            assert!(self.bodies() == bodies, "{words}");
            assert_eq!(damaged.exists(), is_rebuilt, "{words}");
        }
        let report = DiskStorage::check(self.folder.path()).await.unwrap();
        assert!(report.problems.iter().any(|problem| problem.damage == words), "{words}: {report:?}");
        words
    }
}

/// Reads the row, or puts something in its place.
fn row_about_bodies(rig: &Rig, put: Option<Option<Vec<u8>>>) -> Option<Pairing> {
    let database = Database::open(rig.metadata()).unwrap();
    let transaction = database.begin_write().unwrap();
    let mut meta = transaction.open_table(tables::META).unwrap();
    let found = open::pairing(&meta).unwrap();
    match put {
        Some(Some(row)) => drop(meta.insert(tables::PAIRING, row.as_slice()).unwrap()),
        Some(None) => drop(meta.remove(tables::PAIRING).unwrap()),
        None => {}
    }
    drop(meta);
    transaction.commit().unwrap();
    found
}

#[tokio::test(start_paused = true)]
async fn metadata_of_another_store_is_refused() {
    let (rig, other) = (Rig::new(), Rig::new());
    insert_each(&rig.open().await, 1..=3).await;
    insert_each(&other.open().await, 4..=9).await;
    let own = fs::read(rig.metadata()).unwrap();
    fs::copy(other.metadata(), rig.metadata()).unwrap();
    let words = rig.is_refused().await;
    for rig in [&rig, &other] {
        let store = row_about_bodies(rig, None).unwrap().store;
        // That of the metadata now, and that of the bodies.
        assert!(words.contains(&format!("{store:032x}")), "{words}");
    }
    let named = rig.body_files()[0].display().to_string();
    assert!(words.contains("put back the metadata") && words.contains(&named), "{words}");
    fs::write(rig.metadata(), own).unwrap();
    assert_eq!(rig.open().await.usage().await.unwrap().items, 3);
    // One file of another store among one's own.
    fs::copy(&other.body_files()[2], rig.folder.path().join("bodies/0000000000000003.bodies")).unwrap();
    let words = rig.is_refused().await;
    assert!(words.contains("0000000000000003.bodies"), "{words}");
}

#[tokio::test(start_paused = true)]
async fn metadata_older_than_its_bodies_is_refused_until_the_newest_is_put_back() {
    for reopened in [false, true] {
        let rig = Rig::new();
        let mut store = rig.open().await;
        insert_each(&store, 1..=1).await;
        if reopened {
            drop(store);
            store = rig.open().await;
        }
        let older = fs::read(rig.metadata()).unwrap();
        if reopened {
            drop(store);
            store = rig.open().await;
            // One is enough: opening was a commit too.
            insert_each(&store, 2..=2).await;
        } else {
            insert_each(&store, 2..=4).await;
        }
        drop(store);
        let newest = fs::read(rig.metadata()).unwrap();
        fs::write(rig.metadata(), &older).unwrap();
        let words = rig.is_refused().await;
        assert!(words.contains("older than its bodies") && words.contains("Put the newest"), "{words}");
        fs::write(rig.metadata(), &newest).unwrap();
        let numbers = if reopened { 1..=2 } else { 1..=4 };
        let store = rig.open().await;
        for number in numbers {
            assert_eq!(body(&store, number).await.unwrap(), vec![number as u8; 2048]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn older_metadata_goes_on_without_what_came_later_as_its_refusal_says() {
    let rig = Rig::new();
    let store = rig.open().await;
    insert_each(&store, 1..=1).await;
    let older = fs::read(rig.metadata()).unwrap();
    let kept = rig.body_files();
    insert_each(&store, 2..=5).await;
    drop(store);
    fs::write(rig.metadata(), &older).unwrap();
    let Pairing { segment, length, .. } = row_about_bodies(&rig, None).unwrap();
    let words = rig.is_refused().await;
    let last = segment::path_of(&rig.folder.path().join("bodies"), segment);
    assert_eq!(kept, std::slice::from_ref(&last));
    assert!(words.contains(&format!("after {} away", last.display())), "{words}");
    assert!(words.contains(&format!("to {length} octets")), "{words}");
    for file in rig.body_files().into_iter().filter(|file| *file > last) {
        fs::remove_file(file).unwrap();
    }
    OpenOptions::new().write(true).open(&last).unwrap().set_len(length).unwrap();
    let store = rig.open().await;
    assert_eq!(store.usage().await.unwrap().items, 1);
    insert_each(&store, 6..=8).await;
    drop(store);
    assert!(DiskStorage::check(rig.folder.path()).await.unwrap().is_clean());
    assert_eq!(body(&rig.open().await, 1).await.unwrap(), vec![1; 2048]);
}

#[tokio::test(start_paused = true)]
async fn metadata_from_before_bodies_were_moved_is_refused() {
    let mut rig = Rig::new();
    rig.options = rig.options.with_segment_size(20_000);
    let store = rig.open().await;
    insert_each(&store, 1..=12).await;
    settle_first(&store, 8).await;
    drop(store);
    let older = fs::read(rig.metadata()).unwrap();
    let before = rig.body_files();
    rig.open().await.maintain(at(9)).await.unwrap();
    assert!(!before[0].exists() && rig.body_files().len() == 2, "its rest was moved");
    fs::write(rig.metadata(), &older).unwrap();
    let words = rig.is_refused().await;
    assert!(words.contains("older than its bodies"), "{words}");
}

#[tokio::test(start_paused = true)]
async fn what_the_metadata_has_lost_about_its_bodies_is_found_in_them() {
    for lost in [None, Some(b"damaged".to_vec())] {
        let rig = Rig::new();
        insert_each(&rig.open().await, 1..=5).await;
        let before = row_about_bodies(&rig, Some(lost)).unwrap();
        let store = rig.open().await;
        let told = store.take_damage().await;
        assert!(told.iter().any(|told| told.to_string().contains("is written anew")), "{told:?}");
        for number in 1..=5 {
            assert_eq!(body(&store, number).await.unwrap(), vec![number as u8; 2048]);
        }
        drop(store);
        let after = row_about_bodies(&rig, None).unwrap();
        assert_eq!(
            (after.store, after.segment, after.length),
            (before.store, before.segment, before.length),
            "{before:?} {after:?}"
        );
        assert!(after.commit > before.commit, "{before:?} {after:?}");
        let older = fs::read(rig.metadata()).unwrap();
        insert_each(&rig.open().await, 6..=6).await;
        fs::write(rig.metadata(), older).unwrap();
        let words = rig.is_refused().await;
        assert!(words.contains("older than its bodies"), "{words}");
    }
}

#[tokio::test(start_paused = true)]
async fn numbers_of_body_files_are_not_given_twice() {
    let rig = Rig::new();
    let mut last = None;
    for number in 1..=4 {
        let store = rig.open().await;
        insert_each(&store, number..=number).await;
        let files = rig.body_files();
        assert!(files.len() == 1 && files.last() > last.as_ref(), "{files:?} {last:?}");
        last = files.into_iter().next_back();
        settle_first(&store, 1).await;
        store.maintain(at(9)).await.unwrap();
        assert!(rig.body_files().is_empty());
    }
}
