//! The store keeps the rules of a store: one test for each, from one line.

use outside::{Flush, JournalStore};
use postrider::testing::conformance::StorageUnderTest;

struct InAFolder(tempfile::TempDir);

impl StorageUnderTest for InAFolder {
    type Store = JournalStore;

    async fn create() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn open(&self) -> JournalStore {
        JournalStore::open(self.0.path(), Flush::Never).unwrap()
    }
}

// A damaged journal is refused as a whole: `tests/store.rs` has that.
postrider::storage_conformance!(
    journal: InAFolder,
    without crashes,
    without damaged_bodies,
    without damaged_items,
    without damaged_rows,
    without failed_flushes,
    without full_disks
);
