//! `DiskStorage` keeps the rules of a store.

use redb::{Key, ReadableTable, TableDefinition};

use redb::Database;

use super::*;
use crate::testing::conformance::{Damage, NotSupported, StorageUnderTest};

struct OnDisk(TempDir);

impl OnDisk {
    /// Flips a bit in the middle of a row.
    fn damage_row<'k, K: Key + 'static>(&self, table: &str, key: K::SelfType<'k>) {
        let table: TableDefinition<'_, K, &[u8]> = TableDefinition::new(table);
        let database = Database::open(self.0.path().join(open::METADATA)).unwrap();
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
        Self(tempfile::tempdir().unwrap())
    }

    async fn open(&self) -> DiskStorage {
        // Small files, so that every test meets more than one.
        let options = DiskOptions::new().with_segment_size(4096).with_reserve(4096);
        DiskStorage::open_with(self.0.path(), options).await.unwrap()
    }

    async fn damage(&self, what: Damage) -> std::result::Result<(), NotSupported> {
        match what {
            Damage::Body(id) => {
                let octet = id.as_uuid().as_bytes()[15];
                for file in fs::read_dir(self.0.path().join("bodies")).unwrap() {
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
}

crate::storage_conformance!(disk: OnDisk);
