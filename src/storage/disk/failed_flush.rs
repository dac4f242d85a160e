//! A flush fails, and the store is opened again on the same running system, which shows what never got to the disk. Then the
//! power goes.

use std::collections::BTreeMap;
use std::path::Path;

use super::cuts::{STORE, claim_all, dump, open, options, run, sized, tries_all};
use super::rebuilt::with_a_damaged_page;
use super::simulated::{Disk, FailedSync, Survival};
use super::*;
use crate::message::MessageId;
use crate::testing::conformance::{A, at, due, id, settle};

/// What a host knows of its store, which it opens again whenever that refuses.
struct Host {
    disk: Disk,
    store: Option<DiskStorage>,
    originals: BTreeMap<MessageId, NewMessage>,
    failed: u32,
}

impl Host {
    fn new(disk: Disk) -> Self {
        Self { disk, store: None, originals: BTreeMap::new(), failed: 0 }
    }

    async fn store(&mut self) -> &DiskStorage {
        while self.store.is_none() {
            match DiskStorage::open_with(STORE, options(&self.disk)).await {
                Ok(store) => self.store = Some(store),
                Err(error) => self.fails(&error),
            }
        }
        self.store.as_ref().unwrap()
    }

    fn fails(&mut self, error: &StorageError) {
        assert_ne!(error.kind(), StorageErrorKind::Corrupt, "{error}");
        self.failed += 1;
        assert!(self.failed < 9, "it does not end: {error}");
        self.store = None;
    }

    /// Until it is acknowledged: as stored, or as a duplicate of what a failed call has stored.
    async fn put(&mut self, message: NewMessage) {
        self.originals.insert(message.envelope.id, message.clone());
        while let Err(error) = self.store().await.insert(vec![message.clone()]).await {
            self.fails(&error);
        }
    }

    async fn settle(&mut self, limit: usize) {
        let request = || ClaimRequest {
            owner: A,
            now: at(1),
            until: at(9),
            what: vec![due("a.example", 1_000_000, limit)],
        };
        let items = self.store().await.claim(request()).await.unwrap().items;
        let ended: Vec<_> = items.iter().map(|item| item.envelope.id).collect();
        let changes = items.iter().map(|item| settle(item, &[0])).collect();
        if let Err(error) = self.store().await.commit(changes).await {
            self.fails(&error);
            // Some of it may have come about: then all of it has.
            let found = dump(self.store().await).await.unwrap().items;
            if found.iter().any(|item| ended.contains(&item.envelope.id)) {
                return;
            }
        }
        self.originals.retain(|id, _| !ended.contains(id));
    }

    async fn maintain(&mut self) {
        if let Err(error) = self.store().await.maintain(at(50)).await {
            self.fails(&error);
        }
    }

    async fn power_goes(&self, what: &str) {
        for survival in Survival::ALL {
            let disk = self.disk.reboot(survival, 1);
            let store = open(&disk).await;
            assert!(store.take_damage().await.is_empty(), "{what}, {survival:?}");
            let found = dump(&store).await.unwrap();
            let mut ids: Vec<_> = found.items.iter().map(|item| item.envelope.id).collect();
            ids.sort_unstable();
            assert_eq!(ids, self.originals.keys().copied().collect::<Vec<_>>(), "{what}, {survival:?}");
            claim_all(&store, &found, &self.originals).await;
            drop(store);
            let report = check::run(Path::new(STORE), &options(&disk), &mut |_| {}).unwrap();
            assert!(report.is_clean(), "{what}, {survival:?}: {report:?}");
        }
    }

    /// Stops after so many steps. `false`: there are no more.
    async fn work(&mut self, steps: usize) {
        for step in 0..steps {
            match step {
                0..4 => self.put(sized(step as u128 + 1, "a.example", 900)).await,
                4 => self.put(sized(10, "a.example", 5_000)).await,
                5 => self.put(sized(11, "b.example", 1_000)).await,
                6 => self.settle(3).await,
                7 => self.maintain().await,
                8 => self.put(sized(12, "a.example", 300)).await,
                9 => self.store = None,
                10 => self.put(sized(13, "a.example", 300)).await,
                11 => self.settle(9).await,
                _ => self.maintain().await,
            }
        }
    }
}

const STEPS: usize = 13;

/// How many flushes there are in so many steps.
async fn flushes(steps: usize) -> usize {
    let mut host = Host::new(Disk::default());
    host.work(steps).await;
    host.disk.syncs()
}

/// Whichever flush fails, of a file or a folder, of an opening or a closing: what is acknowledged before and after it is there.
fn any_flush_fails(failed: FailedSync) {
    run(async {
        let mut in_steps = Vec::new();
        for steps in 0..=STEPS {
            in_steps.push(flushes(steps).await);
        }
        let all = in_steps[STEPS];
        assert!(all > 40, "{all}");
        let (first, step) = if tries_all() { (1, 1) } else { (1 + failed as usize % 3, 3) };
        for number in (first..=all).step_by(step) {
            // It begins again right after the failure, or some steps later.
            for (steps, _) in in_steps.iter().enumerate().filter(|(_, flushes)| **flushes >= number) {
                let disk = Disk::default();
                disk.plan(|plan| (plan.fail_sync_at, plan.failed_sync) = (Some(number), failed));
                let mut host = Host::new(disk);
                host.work(steps).await;
                // If it was the closing that failed.
                host.store().await;
                host.power_goes(&format!("{failed:?}, flush {number}, {steps} steps")).await;
                if !tries_all() && number % 2 > 0 {
                    break;
                }
            }
        }
    });
}

#[test]
fn what_a_failed_flush_loses_is_written_again() {
    any_flush_fails(FailedSync::Loses);
}

#[test]
fn what_a_failed_flush_writes_in_part_is_written_again() {
    any_flush_fails(FailedSync::WritesSome);
}

#[test]
fn what_a_failed_flush_may_write_does_no_harm() {
    any_flush_fails(FailedSync::MayWrite);
}

/// Bodies of earlier calls lie in the same page.
#[test]
fn what_a_failed_flush_spoils_is_written_again() {
    any_flush_fails(FailedSync::Spoils);
}

/// The mark goes once all is written again, and not before.
#[test]
fn writing_again_is_done_again_until_it_is_done() {
    run(async {
        for ending in [".bodies", ".redb"] {
            for cut in 0.. {
                let disk = Disk::default();
                let mut host = Host::new(disk.clone());
                host.put(sized(1, "a.example", 900)).await;
                disk.plan(|plan| (plan.fail_sync, plan.failed_sync) = (Some(ending), FailedSync::Spoils));
                let failed = host.store().await.insert(vec![sized(2, "a.example", 900)]).await.unwrap_err();
                assert_eq!(failed.kind(), StorageErrorKind::OutcomeUnknown, "{failed}");
                host.store = None;
                let mark = Path::new(STORE).join(unflushed::UNFLUSHED);
                assert!(disk.paths().contains(&mark));
                // The process ends in between.
                let end = disk.steps() + cut;
                disk.plan(|plan| plan.off_at = Some(end));
                let opened = DiskStorage::open_with(STORE, options(&disk)).await.is_ok();
                disk.plan(|plan| plan.off_at = None);
                if opened && disk.steps() < end {
                    assert!(cut > 10, "{cut} steps");
                    break;
                }
                host.put(sized(2, "a.example", 900)).await;
                assert!(!disk.paths().contains(&mark));
                host.power_goes(&format!("{ending}, cut at {cut}")).await;
            }
        }
    });
}

#[test]
fn a_store_that_can_not_be_flushed_again_stays_shut() {
    run(async {
        let disk = Disk::default();
        let mut host = Host::new(disk.clone());
        host.put(sized(1, "a.example", 900)).await;
        disk.plan(|plan| plan.fail_sync = Some(".redb"));
        assert!(host.store().await.insert(vec![sized(2, "a.example", 900)]).await.is_err());
        host.store = None;
        let report = || check::run(Path::new(STORE), &options(&disk), &mut |_| {}).unwrap();
        assert!(report().unflushed);
        disk.plan(|plan| plan.fail_sync = Some(".redb"));
        let refused = DiskStorage::open_with(STORE, options(&disk)).await.unwrap_err();
        assert_eq!(refused.kind(), StorageErrorKind::OutcomeUnknown, "{refused}");
        assert!(report().unflushed);
        host.put(sized(2, "a.example", 900)).await;
        assert_eq!(
            host.store().await.bodies(vec![BodyKey(id(2))]).await.unwrap().iter().flatten().count(),
            1
        );
        host.store = None;
        assert!(!report().unflushed);
        host.power_goes("twice").await;
    });
}

/// Whichever flush of an opening fails that writes damaged metadata anew.
#[test]
fn a_failed_flush_while_metadata_is_written_anew_loses_nothing() {
    run(async {
        for failed in [FailedSync::Loses, FailedSync::WritesSome, FailedSync::Spoils] {
            let (damaged, expected) = {
                let damaged = with_a_damaged_page().await;
                let store = open(&damaged.reboot(Survival::All, 1)).await;
                (damaged, dump(&store).await.unwrap())
            };
            let mut failures = 0;
            for number in 1.. {
                let disk = damaged.reboot(Survival::All, 1);
                disk.plan(|plan| (plan.fail_sync_at, plan.failed_sync) = (Some(number), failed));
                let opened = DiskStorage::open_with(STORE, options(&disk)).await.is_ok();
                if opened && disk.syncs() < number {
                    break;
                }
                failures += 1;
                // The power goes at once, or the same system goes on before.
                let of_the_new =
                    disk.failed_flush_of().is_some_and(|path| path.ends_with(replace::REBUILDING));
                for goes_on in [false, true] {
                    // Nobody can go on without the header of the only file.
                    if !goes_on && failed == FailedSync::Spoils && !of_the_new {
                        continue;
                    }
                    if goes_on {
                        let store = open(&disk).await;
                        assert_eq!(dump(&store).await.unwrap(), expected, "{failed:?}, flush {number}");
                    }
                    for survival in Survival::ALL {
                        let store = open(&disk.reboot(survival, 1)).await;
                        let found = dump(&store).await.unwrap();
                        assert_eq!(found, expected, "{failed:?}, flush {number}, {survival:?}, {goes_on}");
                    }
                }
            }
            assert!(failures > 8, "{failures}");
        }
    });
}
