//! A store of some size with whole pages zeroed and bits flipped: what lies in the other pages is kept, checking lists what
//! opening keeps, and is clean where opening tells nothing.

use std::collections::BTreeSet;
use std::path::Path;

use super::cuts::{STORE, dump, open, options, run, sized};
use super::damaged::{DOMAINS, claim, filled, is_of_the_list};
use super::files::{FileSystem, Mode};
use super::simulated::{Disk, Survival};
use super::*;
use crate::storage::ItemId;
use crate::testing::conformance::{due, item, message_of, settle};

pub(super) const PAGE: usize = 4096;
/// No page of items holds more.
const MOST_IN_A_PAGE: usize = 40;
const MESSAGES: u128 = 400;

pub(super) fn metadata() -> PathBuf {
    Path::new(STORE).join(super::open::METADATA)
}

/// Many items, of which some were settled. `closed`: in good order.
pub(super) async fn large_store(closed: bool) -> Disk {
    let disk = Disk::default();
    let mut large = options(&disk).with_segment_size(64 * 1024);
    large.files = Arc::new(disk.clone());
    let store = DiskStorage::open_with(STORE, large).await.unwrap();
    for from in (1..=MESSAGES).step_by(8) {
        let message = |number: u128| sized(number, DOMAINS[number as usize % 3], 60);
        store.insert((from..from + 8).map(message).collect()).await.unwrap();
    }
    for number in 0..20 {
        let several = message_of(1_000 + number, 3, vec![item("c.example", 1, 3)]);
        store.insert(vec![several]).await.unwrap();
    }
    for domain in ["b.example", "c.example"].repeat(2) {
        // Of those with several recipients the others stay, at the same place.
        for item in claim(&store, due(domain, 1_000_000, 15)).await {
            store.commit(vec![settle(&item, &[0])]).await.unwrap();
        }
    }
    if closed {
        drop(store);
    }
    disk.reboot(Survival::All, 1)
}

pub(super) fn zero(disk: &Disk, path: &Path, page: usize) {
    let file = disk.open(path, Mode::Write).unwrap();
    let octets = (file.length().unwrap() as usize - page * PAGE).min(PAGE);
    file.write_all_at(&vec![0; octets], (page * PAGE) as u64).unwrap();
}

pub(super) fn with_zeroes(whole: &Disk, pages: &[usize]) -> Disk {
    let disk = whole.reboot(Survival::All, 1);
    pages.iter().for_each(|page| zero(&disk, &metadata(), *page));
    disk
}

pub(super) type Ids = BTreeSet<(ItemId, usize)>;

/// What opening keeps. `None`: it refuses.
pub(super) async fn kept(disk: &Disk, what: &str) -> Option<(Ids, Vec<StorageError>)> {
    match DiskStorage::open_with(STORE, options(disk)).await {
        Ok(store) => {
            let items = dump(&store).await.unwrap().items;
            let ids = items.iter().map(|item| (item.id, item.recipients.len())).collect();
            Some((ids, store.take_damage().await))
        }
        Err(error) => {
            assert!(is_of_the_list(&error) || what.starts_with("pages [0"), "{what}: {error}");
            None
        }
    }
}

/// What checking lists.
pub(super) fn listed(disk: &Disk) -> (Ids, CheckReport) {
    let mut ids = Ids::new();
    let visit = &mut |message: StoredMessage| {
        ids.extend(message.items.iter().map(|item| (item.id, item.recipients.len())));
    };
    let report = check::run(Path::new(STORE), &options(disk), visit).unwrap();
    (ids, report)
}

pub(super) fn pages(disk: &Disk) -> usize {
    disk.content(&metadata()).len() / PAGE
}

#[test]
fn a_zeroed_page_costs_no_more_than_the_items_in_it() {
    run(async {
        let whole = large_store(true).await;
        let all = kept(&whole, "whole").await.unwrap().0;
        assert!(all.len() > 350);
        let (mut hit, mut shut) = (Vec::new(), 0);
        for page in 1..pages(&whole) {
            let what = format!("pages [{page}]");
            let Some((ids, told)) = kept(&with_zeroes(&whole, &[page]), &what).await else {
                shut += 1;
                continue;
            };
            let lost = all.difference(&ids).count();
            assert!(
                ids.is_subset(&all) && lost <= MOST_IN_A_PAGE,
                "{what}: {lost} of {} are lost",
                all.len()
            );
            assert!(lost == 0 || !told.is_empty(), "{what}");
            if lost > 0 {
                hit.push((page, all.difference(&ids).copied().collect::<Ids>()));
            }
        }
        assert!(hit.len() > 8 && shut == 1, "{} {shut}", hit.len());
        // By the first that each has lost, so that the two are far apart.
        hit.sort_by_key(|(_, lost)| lost.first().copied());
        for (nth, (one, lost)) in hit.iter().enumerate() {
            let (other, also_lost) = &hit[(nth + hit.len() / 2) % hit.len()];
            let what = format!("pages {:?}", [one, other]);
            let (ids, _) = kept(&with_zeroes(&whole, &[*one, *other]), &what).await.unwrap();
            let lost: Ids = lost.union(also_lost).copied().collect();
            assert_eq!(all.difference(&ids).copied().collect::<Ids>(), lost, "{what}");
        }
    });
}

async fn checking_agrees_with_opening(closed: bool) {
    let whole = large_store(closed).await;
    let mut damaged = 0;
    for page in 0..pages(&whole) {
        let what = format!("pages [{page}]");
        let disk = with_zeroes(&whole, &[page]);
        let (list, report) = listed(&disk);
        assert_eq!(report.items as usize, list.len(), "{what}");
        match kept(&disk, &what).await {
            Some((ids, told)) => {
                assert!(list == ids, "{what}: {} are listed, {} kept", list.len(), ids.len());
                assert_eq!(report.is_clean(), told.is_empty(), "{what}: {report:?} {told:?}");
                damaged += usize::from(!told.is_empty());
            }
            None => assert!(!report.is_clean() && list.is_empty(), "{what}: {report:?}"),
        }
    }
    assert!(damaged > 10, "{damaged}");
}

#[test]
fn checking_lists_what_opening_keeps_and_is_clean_where_it_tells_nothing() {
    run(checking_agrees_with_opening(true));
}

#[test]
fn checking_lists_what_opening_keeps_after_a_crash() {
    run(checking_agrees_with_opening(false));
}

/// Of bodies checking finds more: opening does not read them.
#[test]
fn checking_tells_damage_to_body_files_that_opening_tells() {
    run(async {
        let whole = large_store(true).await;
        let bodies = whole.list(&Path::new(STORE).join("bodies")).unwrap();
        let mut told_of = 0;
        for (path, octets) in bodies {
            for page in 0..octets as usize / PAGE {
                let disk = whole.reboot(Survival::All, 1);
                zero(&disk, &path, page);
                let what = format!("page {page} of {}", path.display());
                let (list, report) = listed(&disk);
                match kept(&disk, &what).await {
                    Some((ids, told)) => {
                        assert!(list == ids, "{what}: {} are listed, {} kept", list.len(), ids.len());
                        assert!(told.is_empty() || !report.is_clean(), "{what}: {told:?}");
                    }
                    None => assert!(!report.is_clean(), "{what}"),
                }
                told_of += usize::from(!report.is_clean());
            }
        }
        assert!(told_of > 5, "{told_of}");
    });
}

/// A panic while another goes on would end the process.
async fn flip_in_each_page(closed: bool) {
    let whole = large_store(closed).await;
    let content = whole.content(&metadata());
    for page in 1..pages(&whole) {
        if content[page * PAGE..(page + 1) * PAGE].iter().all(|octet| *octet == 0) {
            continue;
        }
        // Near its beginning, where its type and its numbers are, and anywhere.
        for (seed, most) in [(0, 64), (1, PAGE)] {
            let mut random = fastrand::Rng::with_seed((page * 2 + seed) as u64);
            let at = page * PAGE + random.usize(..most);
            let disk = whole.reboot(Survival::All, 1);
            disk.flip(&metadata(), at, random.u8(..8));
            let what = format!("pages [{page}], octet {at}, seed {seed}, closed {closed}");
            let (list, report) = listed(&disk);
            if let Some((ids, told)) = kept(&disk, &what).await {
                assert!(list == ids, "{what}: {} are listed, {} kept", list.len(), ids.len());
                assert_eq!(report.is_clean(), told.is_empty(), "{what}: {report:?} {told:?}");
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_any_page_ends_no_check() {
    run(flip_in_each_page(true));
}

#[test]
fn a_flipped_bit_in_any_page_ends_no_check_after_a_crash() {
    run(flip_in_each_page(false));
}

/// Its lists of freed pages, with whose numbers it panics also as it is dropped.
#[test]
fn damage_to_what_redb_keeps_for_itself_ends_no_check() {
    run(async {
        for closed in [true, false] {
            let whole = large_store(closed).await;
            let all = listed(&whole.reboot(Survival::All, 1)).0;
            let mut tried = 0;
            for page in 1..pages(&whole) {
                let (list, report) = listed(&with_zeroes(&whole, &[page]));
                let is_of_a_table = |problem: &Problem| problem.damage.contains("of the table");
                if report.is_clean() || list != all || report.problems.iter().any(is_of_a_table) {
                    continue;
                }
                for octet in (4 + page % 7..128).step_by(14) {
                    let disk = whole.reboot(Survival::All, 1);
                    disk.flip(&metadata(), page * PAGE + octet, (octet % 8) as u8);
                    assert!(listed(&disk).0 == all, "page {page}, octet {octet}, closed {closed}");
                    tried += 1;
                }
            }
            assert!(tried > 40, "{tried}");
        }
    });
}

/// Pages that are used no more have rows of other times.
#[test]
fn damage_to_several_pages_brings_nothing_back() {
    run(async {
        for closed in [true, false] {
            let whole = large_store(closed).await;
            let all = kept(&whole.reboot(Survival::All, 1), "whole").await.unwrap().0;
            let content = whole.content(&metadata());
            let used: Vec<usize> = (1..pages(&whole))
                .filter(|page| content[page * PAGE..(page + 1) * PAGE].iter().any(|octet| *octet != 0))
                .collect();
            let mut opened = 0;
            for seed in 0..60 {
                let mut random = fastrand::Rng::with_seed(seed);
                let disk = whole.reboot(Survival::All, 1);
                for _ in 0..random.usize(2..=5) {
                    let page = used[random.usize(..used.len())];
                    match random.bool() {
                        true => zero(&disk, &metadata(), page),
                        false => disk.flip(&metadata(), page * PAGE + random.usize(..PAGE), random.u8(..8)),
                    }
                }
                let what = format!("seed {seed}, closed {closed}");
                let (list, report) = listed(&disk);
                let Some((ids, told)) = kept(&disk, &what).await else { continue };
                opened += 1;
                assert!(ids.is_subset(&all), "{what}: {:?}", ids.difference(&all));
                assert!(list == ids && report.is_clean() == told.is_empty(), "{what}: {report:?} {told:?}");
                assert!(ids.len() == all.len() || !told.is_empty(), "{what}");
            }
            assert!(opened > 20, "{opened}");
        }
    });
}

/// In each table.
#[test]
fn where_nothing_is_told_to_be_lost_all_is_as_it_was() {
    run(async {
        let whole = filled().await;
        let sound = dump(&open(&whole.reboot(Survival::All, 1)).await).await.unwrap();
        let mut rebuilt = 0;
        for page in 1..pages(&whole) {
            let disk = with_zeroes(&whole, &[page]);
            let Ok(store) = DiskStorage::open_with(STORE, options(&disk)).await else { continue };
            let words: Vec<String> = store.take_damage().await.iter().map(ToString::to_string).collect();
            if words.iter().any(|words| words.contains("are lost") || words.contains("has lost")) {
                continue;
            }
            assert_eq!(dump(&store).await.unwrap(), sound, "page {page}: {words:?}");
            rebuilt += usize::from(!words.is_empty());
        }
        assert!(rebuilt > 3, "{rebuilt}");
    });
}

#[test]
fn a_refused_opening_leaves_nothing_of_what_it_tried() {
    run(async {
        let whole = large_store(true).await;
        let mut refused = 0;
        for page in 0..pages(&whole) {
            let disk = with_zeroes(&whole, &[page]);
            let before = disk.paths();
            if DiskStorage::open_with(STORE, options(&disk)).await.is_err() {
                refused += 1;
                let left: Vec<_> = disk.paths().into_iter().filter(|path| !before.contains(path)).collect();
                assert_eq!(left, Vec::<PathBuf>::new(), "page {page}");
            }
        }
        assert!(refused > 0);
    });
}

/// Bodies are found by following records from one to the next. What is not searched is told.
#[test]
fn a_body_file_that_can_not_be_followed_is_told() {
    run(async {
        let whole = large_store(true).await;
        let bodies = whole.list(&Path::new(STORE).join("bodies")).unwrap();
        let mut told_of = 0;
        for page in 1..pages(&whole) {
            let disk = with_zeroes(&whole, &[page]);
            let told = kept(&disk, &format!("pages [{page}]")).await.unwrap_or_default().1;
            let says =
                |told: &[StorageError], words: &str| told.iter().any(|told| told.to_string().contains(words));
            if !says(&told, "of the table messages, is damaged") {
                continue;
            }
            assert!(!says(&told, "has lost its body") && !says(&told, "is not searched"), "{told:?}");
            let disk = with_zeroes(&whole, &[page]);
            for (path, _) in &bodies {
                // In the header of the first record.
                disk.flip(path, 40, 3);
            }
            let (ids, told) = kept(&disk, &format!("pages [{page}]")).await.unwrap();
            assert_eq!(
                says(&told, "has lost its body"),
                says(&told, "is not searched for bodies from octet 36 on")
            );
            assert!(!ids.is_empty());
            told_of += usize::from(says(&told, "is not searched"));
        }
        assert!(told_of > 1, "{told_of}");
    });
}
