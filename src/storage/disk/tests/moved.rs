//! What is moved, removed or replaced under an open store.

use super::*;

/// With the one message it has: another is taken, and both are there for who opens it next.
#[cfg(unix)]
async fn goes_on(rig: &Rig, store: DiskStorage) {
    insert_each(&store, 2..=2).await;
    drop(store);
    let store = rig.open().await;
    for number in 1..=2 {
        assert_eq!(body(&store, number).await.unwrap(), vec![number as u8; 2048]);
    }
}

/// Nothing is acknowledged while the file of this name is not as it was, and the error says so.
#[cfg(unix)]
async fn refuses(store: &DiskStorage, path: &Path, what: &str) {
    for error in [
        store.insert(vec![large(2)]).await.unwrap_err(),
        store.commit(Vec::new()).await.unwrap_err(),
        store.maintain(at(5)).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), StorageErrorKind::Temporary, "{error}");
        let words = error.to_string();
        assert!(words.contains(&path.display().to_string()) && words.contains(what), "{words}");
    }
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn nobody_else_opens_it_whatever_is_removed_or_renamed_in_its_folder() {
    let rig = Rig::new();
    let store = rig.open().await;
    insert_each(&store, 1..=1).await;
    let [metadata, moved] = [open::METADATA, "moved"].map(|name| rig.folder.path().join(name));
    let other = tempfile::tempdir().unwrap();
    let link = other.path().join("link");
    std::os::unix::fs::symlink(rig.folder.path(), &link).unwrap();
    let is_locked = async || {
        let opened = [rig.try_open().await, DiskStorage::open(&link).await].map(Result::unwrap_err);
        for error in opened {
            assert_eq!(error.kind(), StorageErrorKind::Locked, "{error}");
        }
        let error = DiskStorage::check(rig.folder.path()).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Locked, "{error}");
    };
    is_locked().await;
    fs::rename(&metadata, &moved).unwrap();
    is_locked().await;
    fs::write(&metadata, "").unwrap();
    is_locked().await;
    fs::rename(&moved, &metadata).unwrap();
    for entry in fs::read_dir(rig.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path != metadata {
            fs::remove_file(path).unwrap();
            is_locked().await;
        }
    }
    goes_on(&rig, store).await;
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_folder_that_was_moved_away_is_not_followed_by_its_name() {
    let rig = Rig::new();
    let store = rig.open().await;
    insert_each(&store, 1..=1).await;
    // It would make its reserve anew.
    rig.faults.metadata_full.store(2, SeqCst);
    assert_eq!(store.insert(vec![large(3)]).await.unwrap_err().kind(), StorageErrorKind::Full);
    let (path, elsewhere) = (rig.folder.path(), rig.folder.path().with_extension("elsewhere"));
    fs::rename(path, &elsewhere).unwrap();
    fs::create_dir(path).unwrap();
    let refuses = async || {
        for error in [
            store.bodies(vec![BodyKey(id(1))]).await.unwrap_err(),
            store.insert(vec![large(3)]).await.unwrap_err(),
            store.commit(Vec::new()).await.unwrap_err(),
            store.maintain(at(5)).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), StorageErrorKind::Temporary, "{error}");
            assert!(error.to_string().contains("renamed or replaced"), "{error}");
        }
    };
    refuses().await;
    assert_eq!(fs::read_dir(path).unwrap().count(), 0, "nothing is written elsewhere");
    let other = rig.open().await;
    insert_each(&other, 2..=2).await;
    refuses().await;
    body(&other, 2).await.unwrap();
    drop(other);
    fs::remove_dir_all(path).unwrap();
    fs::rename(&elsewhere, path).unwrap();
    body(&store, 1).await.unwrap();
    insert_each(&store, 3..=3).await;
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_folder_of_bodies_that_is_missing_or_another_for_a_while_costs_no_mail() {
    for (is_written, is_replaced) in [(false, false), (false, true), (true, false), (true, true)] {
        let rig = Rig::new();
        let mut store = rig.open().await;
        insert_each(&store, 1..=1).await;
        if !is_written {
            drop(store);
            store = rig.open().await;
        }
        let (bodies, elsewhere) = (rig.folder.path().join("bodies"), rig.folder.path().join("elsewhere"));
        fs::rename(&bodies, &elsewhere).unwrap();
        if is_replaced {
            fs::create_dir(&bodies).unwrap();
        }
        refuses(&store, &bodies, "removed, renamed or replaced").await;
        // What is claimed waits for its body.
        let bodies_of = vec![BodyKey(id(1))];
        for error in [store.bodies(bodies_of).await.unwrap_err(), store.heads(None, 9).await.unwrap_err()] {
            assert_eq!(error.kind(), StorageErrorKind::Temporary, "{error}");
        }
        if is_replaced {
            fs::remove_dir(&bodies).expect("nothing is written there");
        }
        fs::rename(&elsewhere, &bodies).unwrap();
        goes_on(&rig, store).await;
    }
}

/// The files that are written while the store is open.
#[cfg(unix)]
fn written(rig: &Rig) -> [PathBuf; 2] {
    [rig.folder.path().join(open::METADATA), rig.body_files().pop().unwrap()]
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_into_a_file_that_was_removed_or_replaced() {
    for (which, replaced) in [(0, false), (0, true), (1, false), (1, true)] {
        let rig = Rig::new();
        let store = rig.open().await;
        insert_each(&store, 1..=1).await;
        let path = &written(&rig)[which];
        let elsewhere = rig.folder.path().join("elsewhere");
        fs::rename(path, &elsewhere).unwrap();
        if replaced {
            fs::copy(&elsewhere, path).unwrap();
        }
        refuses(&store, path, "removed, renamed or replaced").await;
        // What is claimed is sent, and could not be settled.
        assert_eq!(store.heads(None, 9).await.is_err(), which == 0);
        fs::rename(&elsewhere, path).unwrap();
        goes_on(&rig, store).await;
    }
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_file_removed_during_the_commit_leaves_its_outcome_unknown() {
    for maintains in [false, true] {
        let rig = Rig::new();
        let store = rig.open().await;
        insert_each(&store, 1..=3).await;
        settle_first(&store, 3).await;
        let bodies = rig.body_files();
        assert_eq!(bodies.len(), 1);
        rig.faults.metadata_removed.store(true, SeqCst);
        let error = match maintains {
            true => store.maintain(at(9)).await.unwrap_err(),
            false => store.insert(vec![large(4)]).await.unwrap_err(),
        };
        assert_eq!(error.kind(), StorageErrorKind::OutcomeUnknown, "{error}");
        assert!(error.to_string().contains("removed, renamed or replaced"), "{error}");
        assert!(bodies[0].exists(), "nothing is deleted for it");
        let later = store.insert(vec![large(5)]).await.unwrap_err();
        assert_eq!(later.kind(), StorageErrorKind::Poisoned, "{later}");
    }
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_into_a_file_that_was_cut_short() {
    for which in [0, 1] {
        let rig = Rig::new();
        let store = rig.open().await;
        insert_each(&store, 1..=1).await;
        let path = &written(&rig)[which];
        let content = fs::read(path).unwrap();
        for length in [0, content.len() as u64 - 1] {
            OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
            refuses(&store, path, "cut short").await;
            assert_eq!(store.heads(None, 9).await.is_err(), which == 0);
            // In place: it stays the file that it is.
            OpenOptions::new().write(true).open(path).unwrap().write_all(&content).unwrap();
        }
        goes_on(&rig, store).await;
    }
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_file_cut_short_during_the_commit_leaves_its_outcome_unknown() {
    let rig = Rig::new();
    let store = rig.open().await;
    insert_each(&store, 1..=3).await;
    rig.faults.metadata_cut.store(true, SeqCst);
    let error = store.insert(vec![large(4)]).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::OutcomeUnknown, "{error}");
    assert!(error.to_string().contains("cut short"), "{error}");
    let later = store.insert(vec![large(5)]).await.unwrap_err();
    assert_eq!(later.kind(), StorageErrorKind::Poisoned, "{later}");
}

/// Whether it was there at opening or was made since, and is written or not.
#[tokio::test(start_paused = true)]
async fn a_body_file_that_is_missing_or_cut_short_for_a_while_costs_no_mail() {
    let rig = Rig::new();
    // More files than are kept open: opening reads the first octets of each.
    insert_each(&rig.open().await, 1..=70).await;
    let store = rig.open().await;
    insert_each(&store, 71..=73).await;
    let files = rig.body_files();
    assert_eq!(files.len(), 37);
    let elsewhere = rig.folder.path().join("elsewhere");
    for (nth, number) in [(0, 1), (35, 71), (36, 73)] {
        let file = &files[nth];
        fs::rename(file, &elsewhere).unwrap();
        for _ in 0..2 {
            let error = body(&store, number).await.unwrap_err();
            assert_eq!(error.kind(), StorageErrorKind::Temporary, "{error}");
            let words = error.to_string();
            assert!(words.contains(&file.display().to_string()) && words.contains("put it back"), "{words}");
        }
        fs::copy(&elsewhere, file).unwrap();
        assert_eq!(body(&store, number).await.unwrap(), vec![number as u8; 2048]);
        OpenOptions::new().write(true).open(file).unwrap().set_len(500).unwrap();
        let error = body(&store, number).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Temporary, "{error}");
        assert!(error.to_string().contains("cut short"), "{error}");
        fs::rename(&elsewhere, file).unwrap();
        assert_eq!(body(&store, number).await.unwrap(), vec![number as u8; 2048]);
    }
    drop(store);
    // Who opens the store without it is told what is lost, and mail that waited for it ends.
    fs::rename(&files[0], &elsewhere).unwrap();
    let store = rig.open().await;
    assert_eq!(body(&store, 1).await.unwrap_err().kind(), StorageErrorKind::Corrupt);
    let told = store.take_damage().await;
    assert!(told.iter().any(|told| told.to_string().contains("is missing")), "{told:?}");
    fs::rename(&elsewhere, &files[0]).unwrap();
    assert_eq!(body(&store, 1).await.unwrap(), vec![1; 2048]);
}
