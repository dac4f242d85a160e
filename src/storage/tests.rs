//! `MemoryStorage` keeps the rules of a store.

use super::MemoryStorage;
use crate::testing::conformance::StorageUnderTest;

struct InMemory(MemoryStorage);

impl StorageUnderTest for InMemory {
    type Store = MemoryStorage;

    async fn create() -> Self {
        Self(MemoryStorage::new())
    }

    async fn open(&self) -> MemoryStorage {
        self.0.reopened()
    }
}

crate::storage_conformance!(
    memory: InMemory,
    without damaged_bodies,
    without damaged_items,
    without damaged_rows
);
