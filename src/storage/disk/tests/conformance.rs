//! `DiskStorage` keeps the rules of a store.

use redb::{ReadableTable, TableDefinition};

use super::*;
use crate::testing::conformance::{Damage, NotSupported, StorageUnderTest};

struct OnDisk(TempDir);

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
            Damage::Item(item) => {
                const ITEMS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("items");
                let database = Database::open(self.0.path().join(open::METADATA)).unwrap();
                let transaction = database.begin_write().unwrap();
                let mut items = transaction.open_table(ITEMS).unwrap();
                let row = items.get(item.0).unwrap().unwrap().value().to_vec();
                items.insert(item.0, &row[..row.len() / 2]).unwrap();
                drop(items);
                transaction.commit().unwrap();
            }
        }
        Ok(())
    }
}

crate::storage_conformance!(disk: OnDisk);
