//! `MemoryStorage` keeps the rules of a store.

use super::{ChangeOutcome, ClaimRequest, MemoryStorage, Storage};
use crate::testing::conformance::{A, B, NotSupported, StorageUnderTest, at, due, message, settle};

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

/// It is not exclusive, for clones share it, and promises more than the rules ask of such a store.
#[tokio::test]
async fn all_is_free_when_it_is_opened_again() {
    let before = MemoryStorage::new();
    before.insert(vec![message(1, "a.example", 1)]).await.unwrap();
    let request =
        |owner| ClaimRequest { owner, now: at(1), until: at(60), what: vec![due("a.example", 1, 9)] };
    let held = before.claim(request(A)).await.unwrap().items.remove(0);
    let after = before.reopened();
    for handle in [&before, &after] {
        assert_eq!(handle.commit(vec![settle(&held, &[0])]).await.unwrap(), [ChangeOutcome::Stale]);
    }
    assert!(after.claim(request(B)).await.unwrap().items.remove(0).lease > held.lease);
}
