//! Body files are given up while others read them.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::aside::Aside;
use super::cuts::{open, options, run, sized};
use super::files::{FileSystem, FolderLock, Mode};
use super::pairing::Pairing;
use super::segment::SegmentWriter;
use super::simulated::Disk;
use super::*;
use crate::testing::conformance::{A, at, due, id, settle};

type Meddling = Box<dyn FnOnce() + Send>;

/// A disk on which something happens right before a file loses its name.
struct Meddled {
    disk: Disk,
    meddling: Mutex<Option<Meddling>>,
}

impl Meddled {
    fn meddle(&self) {
        if let Some(meddling) = lock(&self.meddling).take() {
            meddling();
        }
    }
}

impl fmt::Debug for Meddled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meddled").finish_non_exhaustive()
    }
}

impl FileSystem for Meddled {
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        self.disk.create_folder(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        self.disk.list(folder)
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn OpenFile>> {
        self.disk.open(path, mode)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.meddle();
        self.disk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.meddle();
        self.disk.rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.disk.sync_folder(folder)
    }

    fn lock(&self, folder: &Path) -> io::Result<Box<dyn FolderLock>> {
        self.disk.lock(folder)
    }

    fn draw(&self) -> u128 {
        self.disk.draw()
    }
}

#[test]
fn a_file_that_is_given_up_is_open_nowhere_though_it_was_read_meanwhile() {
    for kept in [0, 99] {
        let files = Arc::new(Meddled { disk: Disk::default(), meddling: Mutex::default() });
        let mut options = options(&files.disk);
        options.files = files.clone();
        let folder = Path::new("/store/bodies");
        let writer =
            SegmentWriter::new(folder.to_owned(), &options, BTreeMap::new(), Pairing::new(7), Arc::default());
        let mut writer = writer.keeping(kept, &Aside::default());
        let body = Bytes::from_static(b"body");
        let location = writer.append(id(1), &body);
        writer.flush().unwrap();
        let bodies = Arc::new(Bodies::new(files.clone(), folder.to_owned(), &BTreeMap::new()));
        let reader = bodies.clone();
        *lock(&files.meddling) = Some(Box::new(move || {
            assert_eq!(reader.read(id(1), location).unwrap(), Some(body));
            assert_eq!(reader.open_files(), [location.segment]);
        }));
        writer.delete(&[location.segment], &bodies);
        assert!(lock(&files.meddling).is_none());
        assert_eq!(bodies.open_files(), [0; 0], "up to {kept} files are kept aside");
        assert_eq!(bodies.read(id(1), location).unwrap(), None);
    }
}

async fn read_until(
    done: Arc<AtomicBool>,
    store: Arc<DiskStorage>,
    kept: Arc<Mutex<Vec<NewMessage>>>,
) -> u32 {
    let mut reads = 0;
    while !done.load(Ordering::Acquire) {
        let some: Vec<NewMessage> = lock(&kept).iter().rev().take(8).cloned().collect();
        let keys = some.iter().map(|message| BodyKey(message.envelope.id)).collect();
        for (message, body) in some.iter().zip(store.bodies(keys).await.unwrap()) {
            assert!(body.unwrap() == message.body, "the body of {}", message.envelope.id);
            reads += 1;
        }
    }
    reads
}

#[test]
fn reads_find_their_bodies_while_these_are_moved_and_files_given_up() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let disk = Disk::default();
        let store = Arc::new(open(&disk).await);
        let (kept, done) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::default()));
        let readers = [(); 2].map(|()| tokio::spawn(read_until(done.clone(), store.clone(), kept.clone())));
        for round in 0..60 {
            let stays = sized(round * 10, "kept.example", 500);
            store.insert(vec![stays.clone()]).await.unwrap();
            lock(&kept).push(stays);
            for number in 1..6 {
                store.insert(vec![sized(round * 10 + number, "a.example", 900)]).await.unwrap();
            }
            let what = vec![due("a.example", 1_000, 9)];
            let claimed =
                store.claim(ClaimRequest { owner: A, now: at(1), until: at(2), what }).await.unwrap();
            let changes = claimed.items.iter().map(|item| settle(item, &[0])).collect();
            store.commit(changes).await.unwrap();
            store.maintain(at(5)).await.unwrap();
        }
        done.store(true, Ordering::Release);
        for reader in readers {
            assert!(reader.await.unwrap() > 50);
        }
        let is_body = |path: &PathBuf| path.to_string_lossy().ends_with(".bodies");
        let files = disk.paths().into_iter().filter(is_body).count();
        assert!(files < 30, "{files} files: nothing was moved");
        assert!(store.shared.bodies.open_files().len() <= files);
    });
}

/// What is left behind by a file that could not be given up goes with the next opening.
#[test]
fn a_folder_that_can_not_be_flushed_after_cleaning_does_no_harm() {
    run(async {
        let disk = Disk::default();
        let store = open(&disk).await;
        store.insert(vec![sized(1, "a.example", 5_000)]).await.unwrap();
        store.insert(vec![sized(2, "b.example", 5_000)]).await.unwrap();
        let what = vec![due("a.example", 1_000, 9)];
        let claimed = store.claim(ClaimRequest { owner: A, now: at(1), until: at(2), what }).await.unwrap();
        disk.plan(|plan| plan.fail_sync = Some("/bodies"));
        store.commit(vec![settle(&claimed.items[0], &[0])]).await.unwrap();
        store.insert(vec![sized(3, "a.example", 10)]).await.unwrap();
        drop(store);
        let disk = disk.reboot(simulated::Survival::Nothing, 1);
        let count = || disk.paths().iter().filter(|path| path.to_string_lossy().ends_with(".bodies")).count();
        let before = count();
        let store = open(&disk).await;
        assert_eq!((before, count()), (3, 2));
        assert_eq!(
            store.bodies(vec![BodyKey(id(2)), BodyKey(id(3))]).await.unwrap().iter().flatten().count(),
            2
        );
    });
}
