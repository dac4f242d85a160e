//! Files of a store that are not there, or not whole.

use super::*;

#[tokio::test]
async fn bodies_without_their_metadata_are_not_deleted() {
    let rig = Rig::new();
    let store = rig.open().await;
    insert_each(&store, 1..=3).await;
    drop(store);
    let [metadata, aside, mark] =
        ["metadata.redb", "aside", "unfinished"].map(|name| rig.folder.path().join(name));
    let bodies = || rig.body_files().iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>();
    let before = bodies();
    let refuses = async |why: &str| {
        let error = rig.try_open().await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Corrupt);
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(bodies(), before);
    };
    fs::rename(&metadata, &aside).unwrap();
    refuses("missing or empty").await;
    refuses("missing or empty").await;
    fs::rename(&aside, &metadata).unwrap();
    fs::write(&mark, "").unwrap();
    refuses("marked as unfinished").await;
    fs::remove_file(&mark).unwrap();
    let store = rig.open().await;
    assert_eq!(store.usage().await.unwrap().items, 3);
}

#[tokio::test(start_paused = true)]
async fn metadata_without_its_folder_of_bodies_is_refused_until_there_is_one() {
    let rig = Rig::new();
    insert_each(&rig.open().await, 1..=2).await;
    let bodies = rig.folder.path().join("bodies");
    fs::remove_dir_all(&bodies).unwrap();
    for _ in 0..2 {
        let error = rig.try_open().await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Corrupt);
        assert!(error.to_string().contains("restore it"), "{error}");
    }
    let report = DiskStorage::check(rig.folder.path()).await.unwrap();
    assert!(report.problems.iter().any(|problem| problem.damage.contains("folder of bodies")), "{report:?}");
    fs::create_dir(bodies).unwrap();
    let store = rig.open().await;
    assert_eq!(body(&store, 1).await.unwrap_err().kind(), StorageErrorKind::Corrupt);
    assert_eq!(claim(&store, 9).await.len(), 2);
}

/// All that a folder has, and what is in it.
fn content(folder: &std::path::Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut found: Vec<_> = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(content(&path).into_iter().chain([(path, None)])),
            false => found.push((path.clone(), fs::read(path).ok())),
        }
    }
    found.sort();
    found
}

#[tokio::test(start_paused = true)]
async fn whatever_says_that_there_was_a_store_keeps_one_from_beginning_anew() {
    let traces: [(&str, bool); 6] = [
        ("bodies", true),
        ("bodies/0000000000000001.bodies-damaged", false),
        ("bodies/0000000000000001.bodies", false),
        ("reserve", false),
        ("suspect", false),
        ("metadata.damaged-2", false),
    ];
    for ((trace, is_folder), is_empty) in traces.into_iter().flat_map(|trace| [(trace, false), (trace, true)])
    {
        let rig = Rig::new();
        let folder = rig.folder.path();
        let path = folder.join(trace);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match is_folder {
            true => fs::create_dir(path).unwrap(),
            false => fs::write(path, "").unwrap(),
        }
        if is_empty {
            fs::write(folder.join("metadata.redb"), "").unwrap();
        }
        let before = content(folder);
        let error = rig.try_open().await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Corrupt, "{trace}: {error}");
        let words = error.to_string();
        for part in ["missing or empty", trace.split('/').next().unwrap(), "restore it, or move"] {
            assert!(words.contains(part), "{trace}: {words}");
        }
        assert_eq!(content(folder), before, "{trace}");
        let report = DiskStorage::check(folder).await.unwrap();
        assert!(report.problems.iter().any(|problem| problem.damage == words), "{trace}: {report:?}");
    }
    // What others have in it says nothing.
    let rig = Rig::new();
    fs::write(rig.folder.path().join("notes.txt"), "not ours").unwrap();
    insert_each(&rig.open().await, 1..=1).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_file_that_was_cut_short_is_told_at_opening() {
    let rig = Rig::new();
    let store = rig.open().await;
    store.insert((1..=32).map(large).collect()).await.unwrap();
    // So that what is alive in it is less than what is left of it.
    settle_first(&store, 30).await;
    drop(store);
    let path = rig.body_files().remove(0);
    let length = fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
    let report = DiskStorage::check(rig.folder.path()).await.unwrap();
    let words = format!("is cut short to {} octets of {length}", length - 1);
    assert!(report.problems.iter().any(|problem| problem.damage.contains(&words)), "{report:?}");
    let told = rig.open().await.take_damage().await;
    assert!(told.len() == 1 && told[0].to_string().contains(&words), "{told:?}");
    // Once no mail is there any more that has lost its body, nothing is missing.
    let store = rig.open().await;
    let last = claim(&store, 2).await.remove(1);
    store.commit(vec![settle(&last, &[0])]).await.unwrap();
    drop(store);
    let told = rig.open().await.take_damage().await;
    assert!(told.is_empty(), "{told:?}");
}
