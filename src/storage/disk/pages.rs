//! Whole pages of the metadata are zeroed, and files are cut short: what can be read is kept, the rest is told in words, and
//! no body is deleted.

use std::path::Path;

use super::cuts::{STORE, open, options, run};
use super::damaged::{DOMAINS, check, claim, filled, is_of_the_list};
use super::files::{FileSystem, Mode};
use super::simulated::{Disk, Survival};
use super::*;
use crate::testing::conformance::{at, due, settle};

const PAGE: usize = 4096;

fn metadata() -> PathBuf {
    Path::new(STORE).join(open::METADATA)
}

fn with_zeroes(whole: &Disk, page: usize) -> Disk {
    let disk = whole.reboot(Survival::All, 1);
    let file = disk.open(&metadata(), Mode::Write).unwrap();
    file.write_all_at(&[0; PAGE], (page * PAGE) as u64).unwrap();
    disk
}

fn cut_short(whole: &Disk, length: usize) -> Disk {
    let disk = whole.reboot(Survival::All, 1);
    disk.open(&metadata(), Mode::Write).unwrap().set_length(length as u64).unwrap();
    disk
}

/// Says which file, that it is damaged and what the host can do.
fn is_in_words(error: &StorageError) -> bool {
    let words = error.to_string();
    let says = |part: &str| words.contains(part);
    says(&metadata().display().to_string())
        && (says("damaged and can not be read") || says("missing or empty") || is_of_the_list(error))
        && (says("put a copy of the whole folder back") || says("restore it, or move the whole folder away"))
}

/// Checks and opens a damaged store. `None`: it stays shut, and says so in words.
async fn opened(disk: &Disk, what: &str) -> Option<DiskStorage> {
    let report = check(disk);
    let unverified = options(&disk.reboot(Survival::All, 1)).with_verified_metadata(0);
    let unverified = DiskStorage::open_with(STORE, unverified).await.map(drop);
    let opened = DiskStorage::open_with(STORE, options(disk)).await;
    if let (Err(error), _) | (_, Err(error)) = (&unverified, &opened) {
        assert_eq!(error.kind(), StorageErrorKind::Corrupt, "{what}: {error}");
        assert!(is_in_words(error), "{what}: {error}");
    }
    match opened {
        Ok(store) => Some(store),
        Err(error) => {
            assert_eq!(error.kind(), StorageErrorKind::Corrupt, "{what}: {error}");
            assert!(is_in_words(&error), "{what}: {error}");
            assert!(!report.is_clean(), "{what}: {error}");
            None
        }
    }
}

#[test]
fn what_keeps_a_store_shut_is_told_in_words() {
    run(async {
        let whole = filled().await;
        let length = whole.content(&metadata()).len();
        let (mut shut, mut open) = (0, 0);
        let mut count =
            |opened: Option<DiskStorage>| *if opened.is_some() { &mut open } else { &mut shut } += 1;
        for page in 0..length / PAGE {
            count(opened(&with_zeroes(&whole, page), &format!("page {page}")).await);
        }
        for cut in (0..length).step_by(PAGE).flat_map(|cut| [cut, cut + 100, cut + PAGE - 1]) {
            let opened = opened(&cut_short(&whole, cut), &format!("cut to {cut}")).await;
            if let Some(store) = &opened
                && cut % PAGE != 0
            {
                assert!(!store.take_damage().await.is_empty(), "cut to {cut}");
            }
            count(opened);
        }
        assert!(shut > 10 && open > 10, "{shut} {open}");
    });
}

/// Everything that can be is settled, and upkeep done.
async fn settle_all(store: &DiskStorage) {
    for domain in DOMAINS {
        for item in claim(store, due(domain, 1_000_000, 99)).await {
            let all: Vec<u32> = item.recipients.iter().map(|recipient| recipient.index).collect();
            store.commit(vec![settle(&item, &all)]).await.unwrap();
        }
    }
    for time in [1_000_000, 2_000_000] {
        store.maintain(at(time)).await.unwrap();
    }
}

/// What a sound opening keeps no opening over damage deletes, nor one after a rebuild by a process that died, nor what is
/// done later.
#[test]
fn a_zeroed_page_deletes_no_bodies() {
    run(async {
        let whole = filled().await;
        let bodies = |disk: &Disk| disk.list(&Path::new(STORE).join("bodies")).unwrap();
        let kept = {
            let disk = whole.reboot(Survival::All, 1);
            drop(open(&disk).await);
            bodies(&disk)
        };
        assert!(!kept.is_empty());
        let (mut at_once, mut later) = (0, 0);
        for page in 1..whole.content(&metadata()).len() / PAGE {
            for dies in [false, true] {
                let disk = with_zeroes(&whole, page);
                let what = format!("page {page}, {dies}");
                if dies {
                    // Before anything of it is told.
                    let options = options(&disk);
                    let files = options.files.clone();
                    let unflushed =
                        Arc::new(mark::Mark::new(files.clone(), Path::new(STORE).join(unflushed::UNFLUSHED)));
                    let reserve = Reserve::new(files, Path::new(STORE).join("reserve"), options.reserve);
                    let why = error::corrupt("a test");
                    let (reserve, damage) = (Arc::new(reserve), Arc::default());
                    let of_it = (&reserve, &unflushed);
                    let _ = rebuild::rebuild(Path::new(STORE), &options, of_it, &damage, &why);
                }
                // Of those that were there before all this.
                let aside = |what: &str| {
                    let after = bodies(&disk);
                    let is_there = |path: &Path| after.iter().any(|(found, _)| found == path);
                    let mut aside = 0;
                    for (path, _) in &kept {
                        let renamed = path.with_extension("bodies-damaged");
                        assert!(is_there(path) || is_there(&renamed), "{what}: {after:?}");
                        aside += usize::from(is_there(&renamed));
                    }
                    aside
                };
                let Some(store) = opened(&disk, &what).await else {
                    assert_eq!(aside(&what), 0);
                    continue;
                };
                at_once += aside(&what);
                let rebuilt = disk.paths().contains(&Path::new(STORE).join(replace::DAMAGED));
                if !rebuilt {
                    continue;
                }
                settle_all(&store).await;
                drop(store);
                let store = open(&disk).await;
                later += aside(&format!("{what}, settled"));
                let set_aside = names(&disk).iter().filter(|name| name.ends_with("-damaged")).count();
                let told = store.take_damage().await;
                let words = format!("in {set_aside} files of ");
                assert_eq!(
                    told.iter().any(|told| told.to_string().contains(&words)),
                    set_aside > 0,
                    "{told:?}"
                );
                drop(store);
                assert_eq!(check(&disk).set_aside_files, set_aside as u64, "{what}");
            }
        }
        assert!(at_once > 0, "some page has all that leads to a body file");
        assert!(later > at_once, "{at_once} {later}");
    });
}

/// A number that was given to a file set aside is given to no other, whatever else is lost.
#[test]
fn a_file_that_was_set_aside_stays_what_it_is() {
    run(async {
        let disk = Disk::default();
        drop(open(&disk).await);
        let aside = Path::new(STORE).join("bodies").join("0000000000000001.bodies-damaged");
        disk.open(&aside, Mode::Fresh).unwrap().write_all_at(b"kept", 0).unwrap();
        let store = open(&disk).await;
        store.insert(vec![super::cuts::sized(1, "a.example", 10)]).await.unwrap();
        assert_eq!(names(&disk), ["0000000000000001.bodies-damaged", "0000000000000002.bodies"]);
        let told = store.take_damage().await;
        assert!(told.len() == 1 && told[0].to_string().contains("in 1 files of 4 octets"), "{told:?}");
        assert!(!disk.paths().contains(&Path::new(STORE).join("suspect")), "there is nothing new to verify");
    });
}

fn names(disk: &Disk) -> Vec<String> {
    let files = disk.list(&Path::new(STORE).join("bodies")).unwrap();
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut names: Vec<_> = files.iter().map(|(path, _)| name(path)).collect();
    names.sort();
    names
}
