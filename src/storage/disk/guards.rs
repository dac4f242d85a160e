//! What keeps a rebuild from believing too much, and what it says of what it believes.

use std::collections::BTreeMap;

use super::cuts::{STORE, open, options, run, sized};
use super::damaged::{Part, change, check, claim, filled, flip};
use super::files::{FileSystem, Mode};
use super::node::{Node, Widths};
use super::salvaged::{PAGE, metadata, pages, with_zeroes};
use super::simulated::{Disk, Survival};
use super::*;
use crate::storage::rows::RowsMut;
use crate::testing::conformance::{due, lane, settle};

fn with_page(whole: &Disk, page: usize, octets: &[u8]) -> Disk {
    let disk = whole.reboot(Survival::All, 1);
    disk.open(&metadata(), Mode::Write).unwrap().write_all_at(octets, (page * PAGE) as u64).unwrap();
    disk.reboot(Survival::All, 1)
}

async fn told(store: &DiskStorage) -> Vec<String> {
    store.take_damage().await.iter().map(ToString::to_string).collect()
}

fn says(told: &[String], words: &str) -> bool {
    told.iter().any(|told| told.contains(words))
}

/// As a page of an earlier time may have it.
#[test]
fn a_lane_that_has_two_numbers_keeps_the_last() {
    run(async {
        let disk = filled().await;
        change(&disk, |writer| {
            let number = writer.lane_id(&lane("c.example")).unwrap().unwrap();
            writer.put_lane(0, &lane("c.example")).unwrap();
            writer.put_lane(number, &lane("c.example")).unwrap();
        })
        .await;
        assert!(flip(&disk, "meta", 0, Part::Value));
        let store = open(&disk).await;
        assert!(says(&told(&store).await, "is written anew"));
        assert_eq!(claim(&store, due("c.example", 1_000_000, 9)).await.len(), 1);
        drop(store);
        assert!(check(&disk).is_clean(), "{:?}", check(&disk));
    });
}

/// Of what was settled no row is left that would say so.
#[test]
fn no_number_is_given_twice_though_it_is_lost_which_were() {
    run(async {
        let disk = Disk::default();
        let store = open(&disk).await;
        store.insert((1..=3).map(|number| sized(number, "a.example", 50)).collect()).await.unwrap();
        let items = claim(&store, due("a.example", 1_000_000, 9)).await;
        let last = items.iter().max_by_key(|item| item.id).unwrap();
        store.commit(vec![settle(last, &[0])]).await.unwrap();
        drop(store);
        assert!(flip(&disk, "meta", 0, Part::Value));
        let store = open(&disk).await;
        assert!(says(&told(&store).await, "is written anew"));
        let stored = store.insert(vec![sized(4, "a.example", 50)]).await.unwrap();
        assert!(matches!(&stored[..], [Inserted::Stored(items)] if items[0].0 > last.id), "{stored:?}");
    });
}

/// Leaves with state rows, by their first keys.
fn leaves(content: &[u8], those: impl Fn(usize) -> bool) -> BTreeMap<Vec<u8>, usize> {
    let begins = |page: &[u8]| match Node::parse(page.to_vec(), Widths::VARIABLE, None)? {
        (Node::Leaf(leaf), _) => leaf
            .entries()
            .next()
            .flatten()
            .map(|(key, _)| key.to_vec())
            .filter(|key| key.starts_with(b"state ")),
        _ => None,
    };
    let numbered = content.chunks_exact(PAGE).enumerate().filter(|(page, _)| those(*page));
    numbered.filter_map(|(page, octets)| Some((begins(octets)?, page))).collect()
}

fn put_all(value: u8) -> Vec<Change> {
    let row =
        |number: u8| StateRow { key: format!("state {number:03}").into_bytes(), value: vec![value; 50] };
    (0..200).map(|number| Change::PutState(row(number))).collect()
}

/// A store whose state rows all have changed, with its pages that have some, and what they were.
async fn changed_state() -> (Disk, BTreeMap<Vec<u8>, usize>, BTreeMap<Vec<u8>, Vec<u8>>) {
    let disk = Disk::default();
    let store = open(&disk).await;
    store.commit(put_all(0)).await.unwrap();
    let then = disk.content(&metadata());
    store.commit(put_all(1)).await.unwrap();
    drop(store);
    let mut used = Vec::new();
    for page in 1..pages(&disk) {
        if let Ok(store) = DiskStorage::open_with(STORE, options(&with_zeroes(&disk, &[page]))).await {
            used.extend(says(&told(&store).await, "of the table state, is damaged").then_some(page));
        }
    }
    let now = leaves(&disk.content(&metadata()), |page| used.contains(&page));
    let of_then = |page: usize| then[page * PAGE..(page + 1) * PAGE].to_vec();
    let then = leaves(&then, |_| true).into_iter().map(|(first, page)| (first, of_then(page))).collect();
    (disk, now, then)
}

#[test]
fn rows_of_an_earlier_time_that_belong_to_another_page_overwrite_none() {
    run(async {
        let (whole, now, then) = changed_state().await;
        let mut tried = 0;
        for (first, page) in &now {
            for (other, of_then) in
                then.iter().filter(|(other, _)| *other != first && now.contains_key(*other))
            {
                let store = open(&with_page(&whole, *page, of_then)).await;
                let until = now.keys().find(|key| *key > first);
                let is_elsewhere = |key: &Vec<u8>| key < first || until.is_some_and(|until| key >= until);
                for row in store.state(None, 999).await.unwrap().iter().filter(|row| is_elsewhere(&row.key)) {
                    assert_eq!(row.value, [1; 50], "{}", row.key.escape_ascii());
                }
                assert!(says(&told(&store).await, "are left out"), "{}", other.escape_ascii());
                tried += 1;
            }
        }
        assert!(tried > 2, "{tried} {now:?}");
    });
}

#[test]
fn rows_that_nothing_else_knows_of_are_counted_as_what_they_are() {
    run(async {
        let (whole, now, then) = changed_state().await;
        let mut tried = 0;
        for (first, page) in &now {
            let Some(of_then) = then.get(first) else { continue };
            let store = open(&with_page(&whole, *page, of_then)).await;
            let old = store.state(None, 999).await.unwrap().iter().filter(|row| row.value == [0; 50]).count();
            let told = told(&store).await;
            assert!(
                says(&told, &format!("lay in damaged pages, and {old} are taken as these read")),
                "{told:?}"
            );
            tried += usize::from(old > 0);
        }
        assert!(tried > 1, "{tried}");
    });
}
