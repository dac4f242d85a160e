//! Rebuilding itself: cut off anywhere, again and again, and put off for a large file.

use std::path::Path;

use super::cuts::{STORE, dump, open, options, run};
use super::damaged::{HEADER, check, filled};
use super::files::{FileSystem, Mode};
use super::simulated::{Disk, Survival};
use super::*;

/// A disk whose metadata has a damaged page, so that the next opening writes it anew.
pub(super) async fn with_a_damaged_page() -> Disk {
    let whole = filled().await;
    let path = Path::new(STORE).join(open::METADATA);
    let content = whole.content(&path);
    let name = b"b.example";
    let places = (0..content.len()).filter(|at| content[*at..].starts_with(name));
    let mut damaged = places.map(|at| {
        let disk = whole.reboot(Survival::All, 1);
        disk.flip(&path, at, 0);
        // Flipped from its first step on.
        disk.reboot(Survival::All, 1)
    });
    // Pages of earlier commits have it too.
    let is_item = |disk: &Disk| {
        let report = check(disk);
        report.problems.iter().any(|problem| problem.damage.contains("the row of item"))
    };
    damaged.find(is_item).unwrap()
}

#[test]
fn a_rebuild_that_is_cut_off_is_made_again_or_was_made() {
    run(async {
        let recorded = with_a_damaged_page().await;
        let store = open(&recorded).await;
        let expected = dump(&store).await.unwrap();
        assert!(store.take_damage().await.iter().any(|told| told.to_string().contains("is written anew")));
        drop(store);
        let mut replay = recorded.replay();
        let mut steps = 0;
        loop {
            // By chance more often: of two renames the second alone may be on disk.
            let survivals = Survival::ALL.into_iter().chain([Survival::Some; 6]);
            for (seed, survival) in (0..).zip(survivals) {
                let disk = replay.reboot(survival, seed * 1_000 + steps);
                let store = open(&disk).await;
                assert_eq!(dump(&store).await.unwrap(), expected, "{survival:?} after step {steps}");
                let kept = Path::new(STORE).join(replace::DAMAGED);
                assert!(
                    disk.paths().contains(&kept),
                    "the damaged file is gone: {survival:?} after step {steps}"
                );
                drop(store);
                assert!(check(&disk).is_clean(), "{survival:?} after step {steps}");
            }
            steps += 1;
            if !replay.advance() {
                break;
            }
        }
        assert!(steps > 10, "{steps}");
    });
}

#[test]
fn the_first_damaged_files_are_kept() {
    run(async {
        let disk = with_a_damaged_page().await;
        let path = Path::new(STORE).join(open::METADATA);
        let damaged = disk.content(&path);
        let images: Vec<Vec<u8>> = (0..6)
            .map(|nth| {
                // In room that is not used.
                let mut image = damaged.clone();
                let last = image.len() - 1;
                image[last] = nth;
                image
            })
            .collect();
        for image in &images {
            disk.open(&path, Mode::Fresh).unwrap().write_all_at(image, 0).unwrap();
            let told = open(&disk).await.take_damage().await;
            assert!(
                told.iter().any(|told| told.to_string().contains("is kept as metadata.damaged")),
                "{told:?}"
            );
        }
        let kept = |name: &str| disk.content(&Path::new(STORE).join(name))[HEADER..].to_vec();
        let names = ["metadata.damaged", "metadata.damaged-2", "metadata.damaged-3", "metadata.damaged-4"];
        for (name, image) in names.into_iter().zip([0, 1, 2, 5]) {
            assert!(kept(name) == images[image][HEADER..], "{name}");
        }
    });
}

#[test]
fn metadata_too_large_to_verify_is_verified_once_damage_was_met() {
    run(async {
        let disk = with_a_damaged_page().await;
        let unverified = || options(&disk).with_verified_metadata(0);
        let store = DiskStorage::open_with(STORE, unverified()).await.unwrap();
        // Meets the damaged row.
        dump(&store).await.unwrap();
        let told = store.take_damage().await;
        assert!(!told.is_empty() && !told.iter().any(|told| told.to_string().contains("anew")), "{told:?}");
        drop(store);
        let store = DiskStorage::open_with(STORE, unverified()).await.unwrap();
        let told = store.take_damage().await;
        assert!(told.iter().any(|told| told.to_string().contains("is written anew")), "{told:?}");
        drop(store);
        assert!(check(&disk).is_clean());
    });
}
