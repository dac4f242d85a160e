//! `DiskStorage` keeps the rules of a store.

use std::cell::RefCell;

use redb::{Key, ReadableTable, TableDefinition};

use redb::Database;

use super::super::simulated::{Disk, Survival};
use super::*;
use crate::testing::conformance::{Damage, NotSupported, StorageUnderTest, Trouble, run};

struct OnDisk {
    folder: RefCell<TempDir>,
    files: FaultyFiles,
}

impl OnDisk {
    fn path(&self) -> PathBuf {
        self.folder.borrow().path().to_owned()
    }

    /// Flips a bit in the middle of a row.
    fn damage_row<'k, K: Key + 'static>(&self, table: &str, key: K::SelfType<'k>) {
        let table: TableDefinition<'_, K, &[u8]> = TableDefinition::new(table);
        let database = Database::open(self.path().join(open::METADATA)).unwrap();
        let transaction = database.begin_write().unwrap();
        let mut rows = transaction.open_table(table).unwrap();
        let mut row = rows.get(&key).unwrap().unwrap().value().to_vec();
        let middle = row.len() / 2;
        row[middle] ^= 1;
        rows.insert(&key, row.as_slice()).unwrap();
        drop(rows);
        transaction.commit().unwrap();
    }
}

impl StorageUnderTest for OnDisk {
    type Store = DiskStorage;

    async fn create() -> Self {
        Self { folder: RefCell::new(tempfile::tempdir().unwrap()), files: FaultyFiles::default() }
    }

    async fn open(&self) -> DiskStorage {
        // Small files, so that every test meets more than one.
        let mut options = DiskOptions::new().with_segment_size(4096).with_reserve(4096);
        options.files = Arc::new(self.files.clone());
        DiskStorage::open_with(self.path(), options).await.unwrap()
    }

    async fn damage(&self, what: Damage) -> std::result::Result<(), NotSupported> {
        match what {
            Damage::Body(id) => {
                let octet = id.as_uuid().as_bytes()[15];
                for file in fs::read_dir(self.path().join("bodies")).unwrap() {
                    let path = file.unwrap().path();
                    let mut content = fs::read(&path).unwrap();
                    if let Some(start) = content.windows(100).position(|window| window == [octet; 100]) {
                        content[start + 50] ^= 1;
                        fs::write(&path, content).unwrap();
                    }
                }
            }
            Damage::Item(item) => self.damage_row::<u64>("items", item.0),
            Damage::State(key) => self.damage_row::<&[u8]>("state", key),
            Damage::Outbox(position) => self.damage_row::<u64>("outbox", position.0),
        }
        Ok(())
    }

    /// Its files as they are while it is open.
    async fn crash(&self, store: DiskStorage) -> std::result::Result<(), NotSupported> {
        let copy = tempfile::tempdir().unwrap();
        fs::create_dir(copy.path().join("bodies")).unwrap();
        for folder in ["", "bodies"] {
            for file in fs::read_dir(self.path().join(folder)).unwrap().map(|file| file.unwrap().path()) {
                if file.is_file() {
                    fs::copy(&file, copy.path().join(folder).join(file.file_name().unwrap())).unwrap();
                }
            }
        }
        drop(store);
        self.folder.replace(copy);
        Ok(())
    }

    async fn trouble(&self, trouble: Option<Trouble>) -> std::result::Result<(), NotSupported> {
        let is = |one| trouble == Some(one);
        let faults = &self.files.0;
        faults.bodies_full.store(is(Trouble::NoRoom), SeqCst);
        faults.body_sync.store(is(Trouble::FailedFlush), SeqCst);
        faults.metadata_sync.store(is(Trouble::FailedFlush), SeqCst);
        Ok(())
    }
}

crate::storage_conformance!(disk: OnDisk);

/// With what was not flushed gone.
struct WithoutPower(RefCell<Disk>);

impl StorageUnderTest for WithoutPower {
    type Store = DiskStorage;

    async fn create() -> Self {
        Self(RefCell::default())
    }

    async fn open(&self) -> DiskStorage {
        let disk = self.0.borrow().clone();
        cuts::open(&disk).await
    }

    async fn crash(&self, store: DiskStorage) -> std::result::Result<(), NotSupported> {
        let after = self.0.borrow().reboot(Survival::Nothing, 1);
        drop(store);
        self.0.replace(after);
        Ok(())
    }

    /// The next flush fails, of whatever file, and loses what it was to write.
    async fn trouble(&self, trouble: Option<Trouble>) -> std::result::Result<(), NotSupported> {
        if trouble == Some(Trouble::NoRoom) {
            return Err(NotSupported);
        }
        self.0.borrow().plan(|plan| plan.fail_sync = trouble.map(|_| ""));
        Ok(())
    }
}

#[test]
fn what_is_acknowledged_survives_a_power_cut() {
    run::<WithoutPower>("what_is_acknowledged_survives_a_crash");
}

#[test]
fn a_power_cut_after_a_failed_flush_loses_nothing() {
    run::<WithoutPower>("a_crash_after_a_failed_flush_loses_nothing");
}
