//! Every row of the metadata is damaged, one at a time, then its pages: it is told, and the rest is served.

use std::collections::BTreeSet;
use std::path::Path;

use redb::{Builder, Key, ReadableTable, TableDefinition, Value};

use super::backend::MetadataFile;
use super::cuts::{STORE, dump, open, options, run, sized};
use super::files::{FileSystem, Mode};
use super::reserve::Reserve;
use super::simulated::{Disk, Survival};
use super::*;
use crate::message::EventId;
use crate::storage::{ClaimPart, Item, ItemId};
use crate::testing::conformance::{A, at, due, id, item, lane, message_of, settle};

pub(super) const DOMAINS: [&str; 3] = ["a.example", "b.example", "c.example"];
/// Items in the store.
const ITEMS: usize = 6;

/// Something in every table.
pub(super) async fn filled() -> Disk {
    let disk = Disk::default();
    let store = open(&disk).await;
    let several =
        message_of(2, 3, vec![item("a.example", 3, 2), item("b.example", 3, 1), item("a.example", 9, 1)]);
    let deferred = message_of(3, 3, vec![item("b.example", 7, 1)]);
    let mut expires = sized(4, "c.example", 900);
    Arc::make_mut(&mut expires.envelope).expires_at = Some(at(5_000));
    let mut ended = sized(5, "d.example", 900);
    ended.host_id = true;
    for message in [sized(1, "a.example", 3000), several, deferred, expires, ended] {
        store.insert(vec![message]).await.unwrap();
    }
    let ended = claim(&store, due("d.example", 1000, 1)).await;
    let state = |key: &[u8]| Change::PutState(StateRow { key: key.to_vec(), value: vec![1; 30] });
    let report = |number| Change::Report {
        of: None,
        event: EventId::from_uuid(uuid::Uuid::from_u128(number)),
        payload: vec![1; 30].into(),
    };
    let changes = vec![settle(&ended[0], &[0]), report(1), report(2), state(b"one"), state(b"two")];
    store.commit(changes).await.unwrap();
    drop(store);
    disk
}

pub(super) async fn claim(store: &DiskStorage, part: ClaimPart) -> Vec<Item> {
    let request = ClaimRequest { owner: A, now: at(1), until: at(2), what: vec![part] };
    store.claim(request).await.unwrap().items
}

/// Part of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    Key,
    Value,
}

/// Flips a bit of a table's nth row. `false`: there is no such row, or nothing in that part of it.
fn flip_in<K: Key + 'static, V: Value + 'static>(disk: &Disk, table: &str, row: usize, part: Part) -> bool {
    let files: Arc<dyn FileSystem> = Arc::new(disk.clone());
    let file = files.open(&Path::new(STORE).join(open::METADATA), Mode::Write).unwrap();
    let reserve = Arc::new(Reserve::new(files, Path::new(STORE).join("reserve"), 0));
    let database = Builder::new().create_with_backend(MetadataFile::new(file, reserve)).unwrap();
    let transaction = database.begin_write().unwrap();
    let found = {
        let mut table = transaction.open_table(TableDefinition::<K, V>::new(table)).unwrap();
        let nth = table.iter().unwrap().nth(row).map(|entry| {
            let (key, value) = entry.unwrap();
            (K::as_bytes(&key.value()).as_ref().to_vec(), V::as_bytes(&value.value()).as_ref().to_vec())
        });
        nth.is_some_and(|(mut key, mut value)| {
            table.remove(K::from_bytes(&key)).unwrap();
            let octets = if part == Part::Key { &mut key } else { &mut value };
            let middle = octets.len() / 2;
            let there = octets.get_mut(middle).map(|octet| *octet ^= 4).is_some();
            table.insert(K::from_bytes(&key), V::from_bytes(&value)).unwrap();
            there
        })
    };
    transaction.commit().unwrap();
    found
}

pub(super) fn flip(disk: &Disk, table: &str, row: usize, part: Part) -> bool {
    match table {
        "meta" | "lanes" | "state" => flip_in::<&[u8], &[u8]>(disk, table, row, part),
        "items" | "lane-names" | "outbox" => flip_in::<u64, &[u8]>(disk, table, row, part),
        "messages" => flip_in::<&[u8; 16], &[u8]>(disk, table, row, part),
        "finished" => flip_in::<&[u8; 16], (u64, u32)>(disk, table, row, part),
        "segments" => flip_in::<u64, (u64, u64, u64, u32)>(disk, table, row, part),
        "parts" => flip_in::<&[u8; 24], ()>(disk, table, row, part),
        "order" => flip_in::<&[u8; 25], ()>(disk, table, row, part),
        other => panic!("no table {other}"),
    }
}

/// Flips each row of a table and hands the disk out.
fn each(table: &str, mut then: impl AsyncFnMut(Disk, String)) {
    run(async {
        let whole = filled().await;
        let mut tried = 0;
        for part in [Part::Key, Part::Value] {
            for row in 0.. {
                let disk = whole.reboot(Survival::All, 1);
                if !flip(&disk, table, row, part) {
                    break;
                }
                tried += 1;
                then(disk, format!("{table}, row {row}, {part:?}")).await;
            }
        }
        assert!(tried > 0, "{table} is empty");
    });
}

pub(super) fn check(disk: &Disk) -> CheckReport {
    check::run(Path::new(STORE), &options(disk), &mut |_| {}).unwrap()
}

/// Everything is read, and what can be is sent and settled. Returns how many items were, how many bodies were read, and
/// what was told.
async fn serve(disk: &Disk, what: &str) -> (usize, usize, Vec<StorageError>) {
    assert!(!check(disk).is_clean(), "{what}");
    let store = open(disk).await;
    let found = dump(&store).await.unwrap();
    let heads = store.heads(None, 99).await.unwrap();
    assert!(found.items.len() >= ITEMS - 1 && heads.len() >= 2, "{what}: {found:?} {heads:?}");
    let mut claimed = Vec::new();
    let mut bodies = 0;
    for domain in DOMAINS {
        let items = claim(&store, due(domain, 1_000_000, 99)).await;
        let keys = items.iter().map(|item| BodyKey(item.envelope.id)).collect();
        bodies += store.bodies(keys).await.unwrap().iter().flatten().count();
        assert!(items.iter().all(|item| item.lane == lane(domain)), "{what}");
        assert!(claim(&store, due(domain, 1_000_000, 99)).await.is_empty(), "{what}");
        claimed.extend(items);
    }
    let other = sized(50, "a.example", 500);
    store.insert(vec![other]).await.unwrap();
    // Apart: it may be the other half of the claimed.
    for item in &claimed {
        let all: Vec<u32> = item.recipients.iter().map(|recipient| recipient.index).collect();
        let done = store.commit(vec![settle(item, &all)]).await.unwrap();
        assert_eq!(done, [ChangeOutcome::Applied], "{what}");
    }
    for time in [1_000_000, 2_000_000] {
        store.maintain(at(time)).await.unwrap();
    }
    let told = store.take_damage().await;
    assert!(told.iter().all(|damage| damage.kind() == StorageErrorKind::Corrupt), "{what}: {told:?}");
    drop(store);
    let store = open(disk).await;
    let settled: BTreeSet<_> = claimed.iter().map(|item| item.id).collect();
    let mut new = 0;
    for domain in DOMAINS {
        for item in claim(&store, due(domain, 1_000_000, 99)).await {
            assert!(!settled.contains(&item.id), "{what}: {item:?} again");
            new += usize::from(item.envelope.id == id(50));
        }
    }
    assert_eq!(new, 1, "{what}");
    assert_eq!(store.bodies(vec![BodyKey(id(50))]).await.unwrap().iter().flatten().count(), 1, "{what}");
    (claimed.len(), bodies, told)
}

#[test]
fn damaged_rows_about_the_store_itself_are_found_again() {
    each("meta", async |disk, what| {
        let (claimed, bodies, told) = serve(&disk, &what).await;
        assert_eq!((claimed, bodies), (ITEMS, ITEMS), "{what}");
        assert!(told.iter().any(|told| told.to_string().contains("is written anew")), "{what}: {told:?}");
    });
}

#[test]
fn a_damaged_item_costs_that_item() {
    each("items", async |disk, what| {
        let (claimed, bodies, told) = serve(&disk, &what).await;
        assert_eq!((claimed, bodies), (ITEMS - 1, ITEMS - 1), "{what}");
        assert!(told.iter().any(|damage| damage.to_string().contains("item")), "{what}: {told:?}");
    });
}

#[test]
fn a_damaged_message_costs_its_body() {
    each("messages", async |disk, what| {
        let (claimed, bodies, told) = serve(&disk, &what).await;
        assert_eq!(claimed, ITEMS, "{what}");
        assert!(bodies == ITEMS - 1 || bodies == ITEMS - 3, "{what}");
        assert!(told.iter().any(|damage| damage.to_string().contains("message")), "{what}: {told:?}");
    });
}

#[test]
fn damage_to_what_is_said_twice_or_can_be_counted_costs_nothing() {
    for table in ["lanes", "lane-names", "segments"] {
        each(table, async |disk, what| {
            let (claimed, bodies, told) = serve(&disk, &what).await;
            assert_eq!((claimed, bodies), (ITEMS, ITEMS), "{what}");
            assert!(!told.is_empty(), "{what}");
            let report = check(&disk);
            assert!(report.is_clean(), "{what} is made good: {report:?}");
        });
    }
}

#[test]
fn damage_to_state_outbox_and_finished_ids_costs_no_mail() {
    for table in ["state", "outbox", "finished"] {
        each(table, async |disk, what| {
            let (claimed, bodies, told) = serve(&disk, &what).await;
            assert_eq!((claimed, bodies), (ITEMS, ITEMS), "{what}");
            assert_eq!(told.len(), 1, "{what}: {told:?}");
        });
    }
}

#[test]
fn a_damaged_index_entry_hands_out_nothing_wrong_and_is_found_by_checking() {
    for table in ["order", "parts"] {
        each(table, async |disk, what| {
            let (claimed, bodies, _) = serve(&disk, &what).await;
            assert!(claimed >= ITEMS - 1 && bodies == claimed, "{what}: {claimed} {bodies}");
        });
    }
}

#[test]
fn a_missing_body_file_is_told_and_costs_what_lay_in_it() {
    run(async {
        let disk = filled().await;
        let store = open(&disk).await;
        // In a file of its own.
        store.insert(vec![sized(6, "a.example", 100)]).await.unwrap();
        let keys = || [1, 2, 3, 4, 6].map(|number| BodyKey(id(number))).into();
        let all = store.bodies(keys()).await.unwrap();
        assert!(all.iter().all(Result::is_ok), "{all:?}");
        drop(store);
        let path = disk.paths().into_iter().find(|path| path.to_string_lossy().ends_with(".bodies")).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        disk.remove(&path).unwrap();
        let report = check(&disk);
        assert!(report.problems.iter().any(|problem| problem.damage.contains("is missing")), "{report:?}");
        let store = open(&disk).await;
        let told = store.take_damage().await;
        assert!(told.len() == 1 && told[0].to_string().contains(&name), "{told:?}");
        let bodies = store.bodies(keys()).await.unwrap();
        let lost = bodies.iter().filter_map(|body| body.as_ref().err());
        let lost: Vec<_> = lost.map(StorageError::kind).collect();
        assert_eq!(lost, [StorageErrorKind::Corrupt; 4], "{bodies:?}");
        assert_eq!(bodies[4].as_ref().unwrap(), &sized(6, "a.example", 100).body);
        for domain in DOMAINS {
            for item in claim(&store, due(domain, 1_000_000, 99)).await {
                let all: Vec<u32> = item.recipients.iter().map(|recipient| recipient.index).collect();
                store.commit(vec![settle(&item, &all)]).await.unwrap();
            }
        }
        assert_eq!(store.usage().await.unwrap().items, 0, "it can be bounced");
        drop(store);
        assert!(check(&disk).is_clean());
    });
}

/// Changes rows such that each is sound by itself.
pub(super) async fn change(disk: &Disk, change: impl FnOnce(&mut table_writer::Writer<'_, '_>)) {
    let store = open(disk).await;
    let mut state = lock(&store.shared.writer);
    let state = &mut *state;
    let database = store.shared.database();
    let transaction = database.begin_write().unwrap();
    let damage = Arc::default();
    let mut writer =
        table_writer::Writer::new(&transaction, &state.counters, &mut state.bodies, damage).unwrap();
    change(&mut writer);
    writer.finish(&transaction).unwrap();
    transaction.commit().unwrap();
}

#[test]
fn checking_finds_sound_rows_that_do_not_agree() {
    use crate::storage::order::{Axis, OrderKey};
    use crate::storage::rows::RowsMut;
    type Change = fn(&mut table_writer::Writer<'_, '_>);
    let wrong: [(&str, Change); 7] = [
        ("alive in it", |writer| {
            let mut alive = writer.segments().unwrap();
            alive.values_mut().for_each(|alive| alive.octets += 1);
            writer.set_segments(&alive).unwrap();
        }),
        ("items are listed of", |writer| {
            let mut row = writer.message(id(2)).unwrap().unwrap();
            row.items += 1;
            writer.put_message(id(2), &row).unwrap();
        }),
        ("is not from its row", |writer| {
            let key = OrderKey { lane: 1, axis: Axis::Expiry, spot: (at(3), ItemId(2)) };
            writer.put_order(key).unwrap();
        }),
        ("its place in the order is not there", |writer| {
            let head = writer.head(ItemId(2)).unwrap().unwrap();
            head.place.keys(ItemId(2)).for_each(|key| writer.remove_order(key).unwrap());
        }),
        ("there are entries of no message", |writer| writer.put_part(id(77), ItemId(1)).unwrap()),
        ("does not list it", |writer| writer.remove_part(id(2), ItemId(2)).unwrap()),
        ("is not there", |writer| writer.remove_item(ItemId(1)).unwrap()),
    ];
    for (words, wrong) in wrong {
        run(async {
            let disk = filled().await;
            assert!(check(&disk).is_clean());
            change(&disk, wrong).await;
            let report = check(&disk);
            assert!(
                report.problems.iter().any(|problem| problem.damage.contains(words)),
                "{words}: {report:?}"
            );
        });
    }
}

/// Bits anywhere in the file: of rows, of redb's own pages, of what it does not use. Only its header may keep the store shut.
fn flip_anywhere(seeds: std::ops::Range<u64>) {
    run(async {
        let whole = filled().await;
        let path = Path::new(STORE).join(open::METADATA);
        let content = whole.content(&path);
        let used: Vec<usize> = (0..content.len()).filter(|at| content[*at] != 0).collect();
        let sound = {
            let store = open(&whole.reboot(Survival::All, 1)).await;
            dump(&store).await.unwrap()
        };
        let mut rebuilt = 0;
        for seed in seeds {
            let mut random = fastrand::Rng::with_seed(seed);
            let disk = whole.reboot(Survival::All, 1);
            // Near what is used: lengths and numbers have zeros too.
            let at =
                used[random.usize(..used.len())].saturating_add(random.usize(0..4)).min(content.len() - 1);
            disk.flip(&path, at, random.u8(0..8));
            let what = format!("seed {seed}, octet {at}");
            let told = match check::run(Path::new(STORE), &options(&disk), &mut |_| {}) {
                Ok(report) => !report.is_clean(),
                Err(error) => {
                    assert_eq!(error.kind(), StorageErrorKind::Corrupt, "{what}: {error}");
                    true
                }
            };
            let store = match DiskStorage::open_with(STORE, options(&disk)).await {
                Ok(store) => store,
                Err(error) => {
                    assert!(error.kind() == StorageErrorKind::Corrupt && told, "{what}: {error}");
                    assert!(at < HEADER || is_of_the_list(&error), "{what}: {error}");
                    continue;
                }
            };
            let found = dump(&store).await.unwrap();
            let lost = sound.items.len() - found.items.len();
            assert!(found.items.iter().all(|item| sound.items.contains(item)), "{what}: {found:?}");
            let words: Vec<String> = store.take_damage().await.iter().map(ToString::to_string).collect();
            assert!(told || words.is_empty() && found == sound, "{what}: {words:?} {found:?}");
            assert!(lost == 0 || words.iter().any(|words| words.contains("has lost")), "{what}: {words:?}");
            rebuilt += usize::from(words.iter().any(|words| words.contains("is written anew")));
            serve_all(&store, found.items.len(), &what).await;
            drop(store);
            let report = check(&disk);
            assert!(report.is_clean() && report.items == 1, "{what}: {report:?}");
            let store = open(&disk).await;
            assert_eq!(dump(&store).await.unwrap().items.len(), 1, "{what}");
        }
        assert!(rebuilt > 0);
    });
}

/// What is not to be found is not empty: the store stays shut, and keeps what it has.
pub(super) fn is_of_the_list(error: &StorageError) -> bool {
    error.to_string().contains("list of tables")
}

#[test]
fn a_damaged_list_of_tables_gives_up_nothing() {
    run(async {
        let whole = filled().await;
        let path = Path::new(STORE).join(open::METADATA);
        let bodies = |disk: &Disk| disk.list(&Path::new(STORE).join("bodies")).unwrap().len();
        let (content, kept) = (whole.content(&path), bodies(&whole));
        let sound = dump(&open(&whole.reboot(Survival::All, 1)).await).await.unwrap().items.len();
        let names = (0..content.len()).filter(|at| content[*at..].starts_with(b"finished"));
        let mut refused = 0;
        for at in names.flat_map(|at| at.saturating_sub(60)..at + 60) {
            let disk = whole.reboot(Survival::All, 1);
            disk.flip(&path, at, u8::try_from(at % 8).unwrap());
            match DiskStorage::open_with(STORE, options(&disk)).await {
                Ok(store) => {
                    let lost = sound - dump(&store).await.unwrap().items.len();
                    let told = store.take_damage().await;
                    assert!(lost == 0 || !told.is_empty(), "octet {at}: {lost} of {sound} are lost");
                    assert!(lost < sound, "octet {at}: {told:?}");
                }
                Err(error) => {
                    assert_eq!(error.kind(), StorageErrorKind::Corrupt, "octet {at}: {error}");
                    assert_eq!(bodies(&disk), kept, "octet {at}: {error}");
                    let tried = Path::new(STORE).join(replace::REBUILDING);
                    assert!(!disk.paths().contains(&tried), "octet {at}: it is left behind");
                    refused += usize::from(is_of_the_list(&error));
                }
            }
        }
        assert!(refused > 0);
    });
}

/// What comes before the first page of redb's.
pub(super) const HEADER: usize = 4096;

/// Claims, reads and settles all, and stores something new.
async fn serve_all(store: &DiskStorage, items: usize, what: &str) {
    let mut claimed = 0;
    for domain in DOMAINS {
        for item in claim(store, due(domain, 1_000_000, 99)).await {
            let all: Vec<u32> = item.recipients.iter().map(|recipient| recipient.index).collect();
            store.bodies(vec![BodyKey(item.envelope.id)]).await.unwrap().remove(0).unwrap();
            store.commit(vec![settle(&item, &all)]).await.unwrap();
            claimed += 1;
        }
    }
    assert_eq!(claimed, items, "{what}");
    store.insert(vec![sized(50, "a.example", 500)]).await.unwrap();
    let state = store.state(None, 99).await.unwrap();
    let changes = state.into_iter().map(|row| Change::DeleteState(row.key)).collect();
    store.commit(changes).await.unwrap();
    store.maintain(at(1_000_000)).await.unwrap();
}

#[test]
fn a_flipped_bit_anywhere_costs_no_more_than_what_it_is_in_1() {
    flip_anywhere(0..150);
}

#[test]
fn a_flipped_bit_anywhere_costs_no_more_than_what_it_is_in_2() {
    flip_anywhere(150..300);
}

/// A key that sorts elsewhere hides no other row.
#[test]
fn a_flipped_bit_in_an_item_costs_no_more_than_two() {
    run(async {
        let whole = Disk::default();
        let store = open(&whole).await;
        for number in 1..=120 {
            store.insert(vec![sized(number, DOMAINS[number as usize % 3], 50)]).await.unwrap();
        }
        let sound = dump(&store).await.unwrap().items.len();
        drop(store);
        let path = Path::new(STORE).join(open::METADATA);
        let content = whole.content(&path);
        let places: Vec<usize> = (HEADER..content.len()).filter(|at| content[*at] != 0).collect();
        let mut rebuilt = 0;
        for seed in 0..150 {
            let mut random = fastrand::Rng::with_seed(seed);
            let disk = whole.reboot(Survival::All, 1);
            let at = places[random.usize(..places.len())].saturating_sub(random.usize(..8));
            disk.flip(&path, at, random.u8(..8));
            let store = open(&disk).await;
            let found = dump(&store).await.unwrap().items.len();
            let told = store.take_damage().await;
            assert!(sound - found <= 2, "seed {seed}, octet {at}: {found} of {sound}: {told:?}");
            rebuilt += usize::from(!told.is_empty());
        }
        // Most octets are of pages that are used no more.
        assert!(rebuilt > 10, "{rebuilt}");
    });
}
