//! A commit that was acknowledged and that the metadata does not have: a disk lost the write of the file's header.
//!
//! redb commits in two steps. First a slot of the header gets the new commit, with all its pages. Once these are on disk, a bit of the header
//! says that this slot counts. If only the second write is lost, the commit is there, whole: it is made the one that counts. A process
//! that is killed between the two leaves the same, and nothing speaks against a commit that nobody was told of.
//!
//! If both are lost, nothing leads to the commit. Bodies of the commit after the last are what a crash leaves too. But that comes before the
//! metadata is written, unless it hits the very moment: so if a page of the metadata says that there was such a commit, one is taken
//! for lost.

use std::path::Path;
use std::sync::Arc;

use memchr::memmem;

use crate::storage::StorageErrorKind;
use crate::storage::rows::Result;

use super::error;
use super::files::OpenFile;
use super::node::{Node, Widths};
use super::open::pairing;
use super::pairing::Pairing;
use super::rebuild::MetaRows;
use super::salvage::{FLAGS, IS_OPEN, PAGE, SECOND_COUNTS, Salvage};
use super::tables::PAIRING;

/// So much of the file is read at once.
const READ: u64 = 256 * PAGE;

/// Has the newest commit count that is whole.
///
/// # Errors
/// `Temporary` if the file can not be read or written.
pub(super) fn restore(name: &Path, file: &Arc<dyn OpenFile>) -> Result<()> {
    let newer = Salvage::open_newer(name.to_owned(), file.clone()).and_then(|newer| newer.is_whole());
    if !unless_damaged(newer)?.unwrap_or_default() {
        return Ok(());
    }
    // As after any kill at that moment.
    tracing::info!(path = %name.display(), "the newest commit of the metadata was not ended and is whole: it counts");
    let restore = || {
        let mut flags = [0];
        file.read_exact_at(&mut flags, FLAGS as u64)?;
        let flags = flags.map(|flags| (flags ^ SECOND_COUNTS) | IS_OPEN);
        file.write_all_at(&flags, FLAGS as u64)?;
        file.sync()
    };
    restore().map_err(|error| error::io("writing", name, error))
}

/// What the metadata says about body files, if it was not closed in good order.
pub(super) fn said(name: &Path, file: &Arc<dyn OpenFile>) -> Result<Option<Pairing>> {
    let mut flags = [0];
    if file.read_exact_at(&mut flags, FLAGS as u64).is_err() || flags[0] & IS_OPEN == 0 {
        return Ok(None);
    }
    let source = Salvage::open(name.to_owned(), file.clone(), Arc::default());
    let said = source.and_then(|source| pairing(&MetaRows::read(&source)?));
    Ok(unless_damaged(said)?.flatten())
}

/// Whether any page of the metadata says that there was a commit. Reads all of it.
pub(super) fn was_written(name: &Path, file: &Arc<dyn OpenFile>, commit: u64) -> Result<bool> {
    let reading = |error| error::io("reading", name, error);
    let length = file.length().map_err(reading)?;
    let finder = memmem::Finder::new(PAIRING);
    let mut pages = Vec::new();
    for at in (0..length).step_by(READ as usize) {
        pages.resize(READ.min(length - at) as usize, 0);
        file.read_exact_at(&mut pages, at).map_err(reading)?;
        let told = pages.chunks(PAGE as usize).filter(|page| finder.find(page).is_some());
        if told.flat_map(commits_in).any(|found| found >= commit) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The commits that a page was written for, as far as it says so.
fn commits_in(page: &[u8]) -> Vec<u64> {
    let Some((Node::Leaf(leaf), _)) = Node::parse(page.to_vec(), Widths::VARIABLE, None) else {
        return Vec::new();
    };
    let rows = leaf.entries().flatten().filter(|(key, _)| *key == PAIRING);
    rows.filter_map(|(_, row)| Some(Pairing::from_row(row).ok()?.commit)).collect()
}

/// Whoever opens it is told of damage by redb.
fn unless_damaged<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(error) if error.kind() == StorageErrorKind::Corrupt => Ok(None),
        read => read.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::cuts::{STORE, dump, open, options, run, sized};
    use super::super::files::{FileSystem, Mode};
    use super::super::salvaged::{metadata, pages, with_zeroes};
    use super::super::simulated::{Disk, Survival};
    use super::super::{DiskStorage, StorageErrorKind};
    use crate::storage::{ItemId, Storage};
    use crate::testing::conformance::{at, due, settle};

    use super::*;

    /// One message in an earlier opening, one in this.
    async fn two(disk: &Disk) -> DiskStorage {
        open(disk).await.insert(vec![sized(1, "a.example", 100)]).await.unwrap();
        let store = open(disk).await;
        store.insert(vec![sized(2, "a.example", 100)]).await.unwrap();
        store
    }

    async fn found(disk: &Disk) -> (Vec<ItemId>, Vec<String>) {
        let store = open(disk).await;
        let ids = dump(&store).await.unwrap().items.iter().map(|item| item.id).collect();
        (ids, store.take_damage().await.iter().map(ToString::to_string).collect())
    }

    fn bodies(disk: &Disk) -> Vec<PathBuf> {
        disk.list(&Path::new(STORE).join("bodies")).unwrap().into_iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn a_commit_whose_last_write_is_lost_is_there() {
        run(async {
            let disk = Disk::default();
            let store = two(&disk).await;
            let killed = disk.reboot(Survival::All, 1);
            killed.flip(&metadata(), FLAGS, 0);
            let lost = killed.reboot(Survival::All, 1);
            assert_eq!(found(&lost).await, (vec![ItemId(1), ItemId(2)], Vec::new()));
            assert_eq!(bodies(&lost), bodies(&disk));
            drop(store);
        });
    }

    /// What only the commit before has is not lost for it.
    #[test]
    fn a_commit_that_is_not_whole_is_none() {
        run(async {
            let disk = Disk::default();
            let store = two(&disk).await;
            let whole = disk.reboot(Survival::All, 1);
            drop(store);
            whole.flip(&metadata(), FLAGS, 0);
            let (mut before, mut after) = (0, 0);
            for page in 1..pages(&whole) {
                let disk = with_zeroes(&whole, &[page]).reboot(Survival::All, 1);
                match DiskStorage::open_with(STORE, options(&disk)).await {
                    Ok(store) => match dump(&store).await.unwrap().items.len() {
                        2 => after += 1,
                        1 => before += 1,
                        _ => assert!(!store.take_damage().await.is_empty()),
                    },
                    Err(error) => assert_eq!(error.kind(), StorageErrorKind::Corrupt, "{error}"),
                }
            }
            assert!(before > 3 && after > 3, "{before} {after}");
        });
    }

    #[test]
    fn a_commit_that_nothing_leads_to_is_told_and_its_bodies_stay() {
        run(async {
            let disk = Disk::default();
            open(&disk).await.insert(vec![sized(1, "a.example", 100)]).await.unwrap();
            let store = open(&disk).await;
            let header = disk.content(&metadata())[..PAGE as usize].to_vec();
            store.insert(vec![sized(2, "a.example", 100)]).await.unwrap();
            let killed = disk.reboot(Survival::All, 1);
            drop(store);
            killed.open(&metadata(), Mode::Write).unwrap().write_all_at(&header, 0).unwrap();
            let lost = killed.reboot(Survival::All, 1);
            let before = bodies(&lost);
            let store = open(&lost).await;
            let told: Vec<String> = store.take_damage().await.iter().map(ToString::to_string).collect();
            assert!(told.iter().any(|told| told.contains("was written and is not there")), "{told:?}");
            assert_eq!(dump(&store).await.unwrap().items.len(), 1);
            let set_aside = |path: &PathBuf| bodies(&lost).contains(&path.with_extension("bodies-damaged"));
            assert!(before.len() == 2 && !set_aside(&before[0]) && set_aside(&before[1]), "{before:?}");
            // Nor are the others deleted later.
            let item = super::super::damaged::claim(&store, due("a.example", 9, 9)).await.remove(0);
            store.commit(vec![settle(&item, &[0])]).await.unwrap();
            store.maintain(at(9)).await.unwrap();
            assert!(set_aside(&before[0]));
        });
    }

    /// It may be killed between any two steps: that is no damage, unless all of the commit is there but the header.
    #[test]
    fn a_process_that_is_killed_leaves_nothing_to_tell() {
        run(async {
            let disk = Disk::default();
            drop(two(&disk).await);
            let (mut replay, mut steps, mut told_of) = (disk.replay(), 0, 0);
            while replay.advance() {
                steps += 1;
                let (_, told) = found(&replay.reboot(Survival::All, 1)).await;
                let is_of_the_moment = told.iter().any(|told| told.contains("If the power failed"));
                assert!(told.is_empty() || is_of_the_moment, "{told:?}");
                told_of += usize::from(!told.is_empty());
            }
            assert!(steps > 30 && told_of * 2 < steps, "{told_of} of {steps}");
        });
    }
}
