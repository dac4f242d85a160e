//! What is told, and that it says what is so.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_path_that_is_a_file_is_told_what_a_store_needs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    fs::write(&path, "something").unwrap();
    let opened = DiskStorage::open(&path).await.map(drop);
    let checked = DiskStorage::check(&path).await.map(drop);
    for error in [opened.unwrap_err(), checked.unwrap_err()] {
        let words = error.to_string();
        assert!(words.contains("needs a folder of its own") && words.contains("spool"), "{words}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reserve_that_can_not_be_made_is_told_with_its_size_and_why() {
    let rig = Rig::new();
    drop(rig.open().await);
    fs::remove_file(rig.reserve()).unwrap();
    fs::create_dir(rig.reserve()).unwrap();
    let store = rig.open().await;
    let error = store.insert(vec![large(1)]).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Temporary, "no disk is full: {error}");
    let words = error.to_string();
    for part in ["new mail is refused", "65536 octets", "reserve: ", "directory"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    fs::remove_dir(rig.reserve()).unwrap();
    store.maintain(at(5)).await.unwrap();
    insert_each(&store, 1..=1).await;
    drop(store);
    fs::remove_file(rig.reserve()).unwrap();
    rig.faults.reserve_full.store(true, SeqCst);
    let store = rig.open().await;
    let error = store.insert(vec![large(2)]).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Full, "{error}");
    assert!(error.to_string().contains("octets of 65536"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn messages_that_have_lost_their_bodies_are_counted() {
    for shortened in [false, true] {
        let rig = Rig::new();
        let store = rig.open().await;
        store.insert((1..=32).map(large).collect()).await.unwrap();
        insert_each(&store, 33..=34).await;
        drop(store);
        let path = &rig.body_files()[0];
        match shortened {
            true => OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
        lose_the_counters(&rig);
        let told = rig.open().await.take_damage().await;
        let words = "34 messages are kept, 32 have lost recipients or their bodies";
        assert!(told.iter().any(|told| told.to_string().contains(words)), "{told:?}");
        let words = "32 messages have lost their bodies";
        assert_eq!(told.iter().any(|told| told.to_string().contains(words)), !shortened, "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_file_in_which_nothing_was_is_not_missed() {
    let rig = Rig::new();
    let store = rig.open().await;
    insert_each(&store, 1..=1).await;
    settle_first(&store, 1).await;
    drop(store);
    rig.body_files().iter().for_each(|path| fs::remove_file(path).unwrap());
    let told = rig.open().await.take_damage().await;
    assert!(told.is_empty(), "{told:?}");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "the visitor's own")]
async fn a_panic_of_the_visitor_is_no_damage() {
    let rig = Rig::new();
    insert_each(&rig.open().await, 1..=2).await;
    DiskStorage::check_each(rig.folder.path(), |_| panic!("the visitor's own")).await.unwrap();
}
