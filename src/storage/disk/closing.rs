//! redb's database, which reads pages once more as it is closed, and panics over some that are damaged.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use redb::Database;

use super::damage::Damage;

/// A database whose end disturbs nobody.
pub(super) struct Closing {
    /// There until it is dropped.
    database: Option<Database>,
    damage: Arc<Damage>,
}

impl Closing {
    pub(super) fn new(database: Database, damage: Arc<Damage>) -> Self {
        Self { database: Some(database), damage }
    }
}

impl Deref for Closing {
    type Target = Database;

    fn deref(&self) -> &Database {
        self.database.as_ref().unwrap_or_else(|| unreachable!("it is taken as this is dropped"))
    }
}

impl DerefMut for Closing {
    fn deref_mut(&mut self) -> &mut Database {
        self.database.as_mut().unwrap_or_else(|| unreachable!("it is taken as this is dropped"))
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let database = self.database.take();
        if catch_unwind(AssertUnwindSafe(|| drop(database))).is_err() {
            // What was committed is on disk all the same.
            tracing::error!("closing the metadata met damaged pages: the next opening verifies it");
            self.damage.mark();
        }
    }
}
