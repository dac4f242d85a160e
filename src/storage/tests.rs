//! `MemoryStorage` keeps the rules of a store.

use super::MemoryStorage;
use crate::testing::conformance::{NotSupported, StorageUnderTest};

struct InMemory(MemoryStorage);

impl StorageUnderTest for InMemory {
    type Store = MemoryStorage;

    async fn create() -> Self {
        Self(MemoryStorage::new())
    }

    async fn open(&self) -> MemoryStorage {
        self.0.reopened()
    }

    async fn crash(&self, store: MemoryStorage) -> Result<(), NotSupported> {
        drop(store);
        Ok(())
    }
}

crate::storage_conformance!(
    memory: InMemory,
    without damaged_bodies,
    without damaged_items,
    without damaged_rows,
    without failed_flushes,
    without full_disks
);
