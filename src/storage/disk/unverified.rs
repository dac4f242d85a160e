//! Metadata too large to verify at each opening: what is damaged in it is met later, by redb, which writes by what it reads.

use std::path::Path;

use super::codec::AliveRow;
use super::cuts::{STORE, dump, open, options, run, sized};
use super::damaged::{DOMAINS, Part, claim, filled, flip};
use super::files::{FileSystem, Mode};
use super::node::{Node, Widths};
use super::salvaged::{PAGE, kept, large_store, listed, metadata, pages, with_zeroes, zero};
use super::simulated::{Disk, Survival};
use super::*;
use crate::storage::order::OrderKey;
use crate::testing::conformance::{at, due};

fn unverified(disk: &Disk) -> DiskOptions {
    options(disk).with_verified_metadata(0)
}

fn is_marked(disk: &Disk) -> bool {
    disk.paths().contains(&Path::new(STORE).join("suspect"))
}

/// redb reads it, and what is found in it refuses it.
#[test]
fn what_a_refused_opening_is_rebuilt_from_is_the_file_as_it_was_found() {
    run(async {
        let whole = large_store(true).await;
        let mut tried = 0;
        for (row, part) in (0..4).flat_map(|row| [(row, Part::Key), (row, Part::Value)]) {
            let disk = whole.reboot(Survival::All, 1);
            if !flip(&disk, "meta", row, part) {
                continue;
            }
            tried += 1;
            let found = disk.content(&metadata());
            for options in [options(&disk), unverified(&disk)] {
                disk.open(&metadata(), Mode::Fresh).unwrap().write_all_at(&found, 0).unwrap();
                let opened = DiskStorage::open_with(STORE, options).await;
                let damaged = Path::new(STORE).join(replace::DAMAGED);
                let left = match disk.paths().contains(&damaged) {
                    true => damaged,
                    false => metadata(),
                };
                assert!(opened.is_err() || left != metadata(), "row {row}, {part:?}");
                assert!(disk.content(&left)[PAGE..] == found[PAGE..], "row {row}, {part:?}");
                drop(opened);
                let _ = disk.remove(&left);
            }
        }
        assert!(tried > 3, "{tried}");
    });
}

#[test]
fn what_an_opening_over_damage_is_rebuilt_from_is_the_file_as_it_was_found() {
    run(async {
        for closed in [true, false] {
            let whole = large_store(closed).await;
            let mut rebuilt = 0;
            for page in 1..pages(&whole) {
                let what = format!("pages [{page}], closed {closed}");
                let disk = with_zeroes(&whole, &[page]);
                let found = disk.content(&metadata());
                let Ok(store) = DiskStorage::open_with(STORE, unverified(&disk)).await else { continue };
                let damaged = Path::new(STORE).join(replace::DAMAGED);
                if !disk.paths().contains(&damaged) {
                    continue;
                }
                // But for redb's own header.
                assert!(disk.content(&damaged)[PAGE..] == found[PAGE..], "{what}");
                let ids = dump(&store).await.unwrap().items;
                let ids = ids.iter().map(|item| (item.id, item.recipients.len())).collect();
                assert!(kept(&with_zeroes(&whole, &[page]), &what).await.unwrap().0 == ids, "{what}");
                rebuilt += 1;
            }
            assert!(rebuilt > 2, "{rebuilt}");
        }
    });
}

/// By it redb takes pages for free that are in use.
#[test]
fn damage_to_the_record_of_free_pages_costs_nothing() {
    run(async {
        let whole = large_store(true).await;
        let all = listed(&whole.reboot(Survival::All, 1)).0;
        let content = whole.content(&metadata());
        let mut tried = 0;
        for page in 1..pages(&whole) {
            let (list, report) = listed(&with_zeroes(&whole, &[page]));
            let is_of_a_table = |problem: &Problem| problem.damage.contains("of the table");
            if report.is_clean() || list != all || report.problems.iter().any(is_of_a_table) {
                continue;
            }
            // Windows of it that say something.
            let windows = (page * PAGE + 8..(page + 1) * PAGE - 8).step_by(8);
            let windows: Vec<usize> =
                windows.filter(|at| content[*at..at + 8].iter().any(|octet| *octet != 0)).collect();
            for at in windows.iter().step_by(windows.len() / 24 + 1) {
                let disk = whole.reboot(Survival::All, 1);
                disk.open(&metadata(), Mode::Write).unwrap().write_all_at(&[0; 8], *at as u64).unwrap();
                let disk = disk.reboot(Survival::All, 1);
                let store = DiskStorage::open_with(STORE, unverified(&disk)).await.unwrap();
                for from in [5_000, 5_100] {
                    let messages = (from..from + 40).map(|number| sized(number, "d.example", 60)).collect();
                    store.insert(messages).await.unwrap();
                }
                drop(store);
                let (ids, _) = kept(&disk, "after more mail").await.unwrap();
                assert!(all.is_subset(&ids) && ids.len() == all.len() + 80, "page {page}, octet {at}");
                tried += 1;
            }
        }
        assert!(tried > 10, "{tried}");
    });
}

/// Whether something was met that is damage to the metadata.
async fn use_all(store: &DiskStorage) -> bool {
    let mut met: Vec<StorageError> = Vec::new();
    met.extend(dump(store).await.err());
    met.extend(store.heads(None, 99).await.err());
    met.extend(store.usage().await.err());
    for domain in DOMAINS {
        let request = ClaimRequest {
            owner: crate::testing::conformance::A,
            now: at(1),
            until: at(2),
            what: vec![due(domain, 1_000_000, 999)],
        };
        match store.claim(request).await {
            Ok(claimed) => {
                let keys = claimed.items.iter().map(|item| BodyKey(item.envelope.id)).collect();
                let bodies = store.bodies(keys).await;
                met.extend(bodies.unwrap_or_default().into_iter().filter_map(Result::err));
            }
            Err(error) => met.push(error),
        }
    }
    met.extend(store.insert(vec![sized(5_000, "a.example", 100)]).await.err());
    met.extend(store.maintain(at(1_000_000)).await.err());
    met.extend(store.take_damage().await);
    met.iter().any(|error| error.kind() == StorageErrorKind::Corrupt)
}

#[test]
fn damage_that_a_running_store_meets_is_verified_at_the_next_opening() {
    run(async {
        let whole = large_store(true).await;
        let mut marked = 0;
        for page in 1..pages(&whole) {
            let disk = whole.reboot(Survival::All, 1);
            let store = DiskStorage::open_with(STORE, unverified(&disk).with_cache_size(0)).await.unwrap();
            // Where the disk fails while it is open.
            zero(&disk, &metadata(), page);
            let met = use_all(&store).await;
            assert!(!met || is_marked(&disk), "page {page}");
            marked += usize::from(met);
        }
        assert!(marked > 10, "{marked}");
    });
}

#[test]
fn damage_met_after_an_opening_that_told_some_is_marked_too() {
    run(async {
        let disk = filled().await;
        assert!(flip(&disk, "lanes", 0, Part::Value) && flip(&disk, "items", 0, Part::Value));
        disk.open(&Path::new(STORE).join("suspect"), Mode::Fresh).unwrap();
        let store = open(&disk).await;
        let told = store.take_damage().await;
        assert!(told.iter().any(|told| told.to_string().contains("lane")), "{told:?}");
        assert!(!is_marked(&disk), "it was verified");
        claim(&store, due("a.example", 1_000_000, 99)).await;
        assert!(!store.take_damage().await.is_empty() && is_marked(&disk));
    });
}

/// redb panics over damaged pages as it is dropped, twice if it must.
#[test]
fn a_store_whose_pages_are_damaged_while_it_is_open_can_be_dropped() {
    run(async {
        let whole = large_store(true).await;
        let all = pages(&whole);
        let mut met = 0;
        let each = (1..all).map(|page| page..page + 1);
        for damaged in each.chain([1..all, 1..all / 2, all / 2..all]) {
            let disk = whole.reboot(Survival::All, 1);
            let store = DiskStorage::open_with(STORE, unverified(&disk).with_cache_size(0)).await.unwrap();
            let zeroes = vec![0; damaged.len() * PAGE];
            let file = disk.open(&metadata(), Mode::Write).unwrap();
            file.write_all_at(&zeroes, (damaged.start * PAGE) as u64).unwrap();
            // Whatever comes of it.
            for from in [5_000, 5_100] {
                let messages = (from..from + 40).map(|number| sized(number, "d.example", 60)).collect();
                let _ = store.insert(messages).await;
                let _ = dump(&store).await;
                let _ = store.maintain(at(9)).await;
            }
            drop(store);
            met += usize::from(is_marked(&disk));
        }
        assert!(met > 10, "{met}");
    });
}

/// Closing reads pages that nothing else has read. What it meets there is verified at the next opening.
#[test]
fn a_store_that_meets_damage_only_as_it_is_closed_can_be_dropped() {
    run(async {
        let whole = large_store(true).await;
        let mut met = 0;
        for page in 1..pages(&whole) {
            let disk = whole.reboot(Survival::All, 1);
            let store = DiskStorage::open_with(STORE, unverified(&disk).with_cache_size(0)).await.unwrap();
            zero(&disk, &metadata(), page);
            drop(store);
            met += usize::from(is_marked(&disk));
        }
        assert!(met > 0);
    });
}

/// A page of an earlier time is sound in itself, and does not know of files that were begun since.
#[test]
fn no_body_is_deleted_by_a_page_of_an_earlier_time() {
    run(async {
        let disk = Disk::default();
        let store = open(&disk).await;
        let send = async |from: u128| {
            store
                .insert((from..from + 8).map(|number| sized(number, "a.example", 900)).collect())
                .await
                .unwrap();
        };
        send(1).await;
        let then = disk.content(&metadata());
        for from in [100, 200, 300] {
            send(from).await;
        }
        drop(store);
        let widths = Widths { key: Some(8), value: <AliveRow as redb::Value>::fixed_width() };
        let is_leaf =
            |page: &&[u8]| matches!(Node::parse(page.to_vec(), widths, None), Some((Node::Leaf(_), _)));
        let old: Vec<&[u8]> = then.chunks_exact(PAGE).skip(1).filter(is_leaf).collect();
        let bodies = |disk: &Disk| disk.list(&Path::new(STORE).join("bodies")).unwrap();
        let all = bodies(&disk);
        assert!(all.len() > 3, "{all:?}");
        let mut tried = 0;
        for page in 1..pages(&disk) {
            for old in &old {
                let stale = disk.reboot(Survival::All, 1);
                stale
                    .open(&metadata(), Mode::Write)
                    .unwrap()
                    .write_all_at(old, (page * PAGE) as u64)
                    .unwrap();
                tried += usize::from(DiskStorage::open_with(STORE, unverified(&stale)).await.is_ok());
                let left = bodies(&stale);
                for (path, _) in &all {
                    let is_left = |left: &Path| left == path || left == path.with_extension("bodies-damaged");
                    assert!(left.iter().any(|(left, _)| is_left(left)), "page {page}: {path:?}");
                }
            }
        }
        assert!(tried > 20, "{tried}");
    });
}

/// Leaves of the order, some of them of earlier times.
fn leaves_of_the_order(whole: &Disk) -> Vec<usize> {
    let widths = Widths { key: Some(OrderKey::OCTETS), value: Some(0) };
    let is_key = |key: &[u8]| key.first_chunk().is_some_and(|key| OrderKey::from_bytes(key).is_some());
    let is_one = |page: &[u8]| match Node::parse(page.to_vec(), widths, None) {
        Some((Node::Leaf(leaf), _)) => leaf.entries().all(|entry| entry.is_some_and(|(key, _)| is_key(key))),
        _ => false,
    };
    let content = whole.content(&metadata());
    let pages = content.chunks_exact(PAGE).enumerate();
    pages.filter(|(_, page)| is_one(page)).map(|(page, _)| page).collect()
}

#[test]
fn a_damaged_page_of_the_order_holds_no_other_lane_back_and_is_told_once() {
    run(async {
        let whole = large_store(true).await;
        let (mut tried, mut whole_lanes) = (0, 0);
        for page in leaves_of_the_order(&whole) {
            let disk = whole.reboot(Survival::All, 1);
            let store = DiskStorage::open_with(STORE, unverified(&disk).with_cache_size(0)).await.unwrap();
            let wanted = dump(&store).await.unwrap().items;
            zero(&disk, &metadata(), page);
            let mut told = Vec::new();
            for _ in 0..2 {
                let heads = store.heads(None, 99).await.unwrap();
                let request = ClaimRequest {
                    owner: crate::testing::conformance::A,
                    now: at(1),
                    until: at(2),
                    what: DOMAINS.iter().map(|domain| due(domain, 1_000_000, 999)).collect(),
                };
                let claimed = store.claim(request).await.unwrap();
                for domain in DOMAINS {
                    let lane = crate::testing::conformance::lane(domain);
                    let all = wanted.iter().filter(|item| item.lane == lane).count();
                    let of_it = claimed.items.iter().filter(|item| item.lane == lane).count();
                    whole_lanes += usize::from(told.is_empty() && all == of_it);
                    let has_head = heads.iter().any(|head| head.lane == lane);
                    assert!(of_it == 0 || has_head, "page {page}");
                }
                told.push(store.take_damage().await);
            }
            if told[0].is_empty() {
                // Nothing of this leads to it. redb may meet it as it is dropped.
                continue;
            }
            assert!(told[0].iter().any(|told| told.to_string().contains("the store anew")), "{told:?}");
            assert!(told[1].is_empty(), "page {page}: {told:?}");
            assert!(is_marked(&disk));
            tried += 1;
        }
        assert!(tried > 2 && whole_lanes > tried, "{tried} {whole_lanes}");
    });
}

#[test]
fn a_store_that_stops_over_a_damaged_page_says_that_it_is_damage_and_what_to_do() {
    run(async {
        let whole = large_store(true).await;
        let mut stopped = 0;
        for page in 1..pages(&whole) {
            let disk = whole.reboot(Survival::All, 1);
            let store = DiskStorage::open_with(STORE, unverified(&disk).with_cache_size(0)).await.unwrap();
            zero(&disk, &metadata(), page);
            let mut met = Vec::new();
            for number in 5_000..5_003 {
                met.extend(store.insert(vec![sized(number, "d.example", 60)]).await.err());
                met.extend(store.maintain(at(9)).await.err());
            }
            for error in &met {
                let words = error.to_string();
                assert!(
                    words.contains("damaged") && words.contains("the store anew"),
                    "page {page}: {words}"
                );
            }
            stopped += usize::from(met.iter().any(|error| error.kind() == StorageErrorKind::Poisoned));
        }
        assert!(stopped > 3, "{stopped}");
    });
}
