//! Damage that a store met while it is open: each entry is told once.

use std::any::Any;
use std::collections::HashSet;
use std::fmt::Display;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::storage::rows::Result;
use crate::storage::{StorageError, StorageErrorKind};

use super::error::corrupt;
use super::files::FileSystem;
use super::lock;
use super::mark::Mark;

/// Entries told one by one. What is found beyond them is told once, as a whole.
const MOST_TOLD: usize = 1_000;

/// What is to be told, and what was. Its size has a bound, whatever is damaged.
#[derive(Debug, Default)]
pub(super) struct Damage {
    found: Mutex<Found>,
    mark: Option<Mark>,
    is_met: AtomicBool,
    /// The store is only looked at.
    checks: bool,
}

#[derive(Debug, Default)]
struct Found {
    told: HashSet<String>,
    waiting: Vec<StorageError>,
}

impl Damage {
    /// Marks the store with an empty file at `path` once damage was met.
    pub(super) fn new(files: Arc<dyn FileSystem>, path: PathBuf) -> Self {
        Self { mark: Some(Mark::new(files, path)), ..Self::default() }
    }

    /// Of a store that is only looked at: what would refuse it is told.
    pub(super) fn checking() -> Self {
        Self { checks: true, ..Self::default() }
    }

    /// Whether a store is refused for this.
    pub(super) fn refuse(&self, why: StorageError) -> Result<()> {
        if !self.checks {
            return Err(why);
        }
        self.tell(why);
        Ok(())
    }

    /// Has the metadata verified at the next opening.
    pub(super) fn mark(&self) {
        self.is_met.store(true, Ordering::Release);
        if let Some(mark) = &self.mark {
            mark.make();
        }
    }

    /// Some was met since the opening, whether that could be marked or not.
    pub(super) fn is_met(&self) -> bool {
        self.is_met.load(Ordering::Acquire)
    }

    /// The metadata was verified: what is met from now on marks it anew.
    pub(super) fn unmark(&self) -> io::Result<()> {
        self.is_met.store(false, Ordering::Release);
        self.mark.as_ref().map_or(Ok(()), Mark::remove)
    }

    /// Has the metadata verified at the next opening if this is damage to it.
    pub(super) fn heed<T>(&self, met: Result<T>) -> Result<T> {
        met.inspect_err(|error| {
            if error.kind() == StorageErrorKind::Corrupt {
                self.mark();
            }
        })
    }

    /// Damage was met, and what it is about left aside.
    pub(super) fn tell(&self, damage: StorageError) {
        self.mark();
        let mut found = lock(&self.found);
        let damage = match found.told.len() {
            MOST_TOLD.. => corrupt(format!("more than {MOST_TOLD} entries are damaged: check the store")),
            _ => damage,
        };
        if found.told.insert(damage.to_string()) {
            if !self.checks {
                tracing::error!(%damage, "damage was met and is left aside");
            }
            found.waiting.push(damage);
        }
    }

    /// What was damaged once is still to be known: it is told at each opening, and counted by each check.
    pub(super) fn remind(&self, of: StorageError) {
        if self.checks {
            return;
        }
        tracing::warn!(%of, "there was damage");
        lock(&self.found).waiting.push(of);
    }

    /// What was not taken yet.
    pub(super) fn take(&self) -> Vec<StorageError> {
        std::mem::take(&mut lock(&self.found).waiting)
    }
}

/// Runs what reads the metadata: over some kinds of damage to its pages, redb panics.
pub(super) fn guarded<T>(reading: impl Display, read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let words = words_of(&*panic);
        Err(corrupt(format!("reading {reading}: the metadata has damaged pages; opening {MENDS}: {words}")))
    })
}

/// Runs what writes the metadata: where redb panics, nothing may be written any more.
pub(super) fn guarded_writing<T>(write: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(write)).unwrap_or_else(|panic| {
        let message = format!(
            "writing met damaged pages of the metadata, so it is not known what is on disk, and the store refuses from now on; \
             opening {MENDS}: {}",
            words_of(&*panic)
        );
        Err(StorageError::new(StorageErrorKind::OutcomeUnknown, message))
    })
}

/// What to do about damaged pages.
pub(super) const MENDS: &str = "the store anew verifies it and writes it anew from what can be read";

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

/// The metadata can not be read, or not written anew from what can be. Says what the host can do.
pub(super) fn unreadable(name: &Path, met: StorageError) -> StorageError {
    let name = name.display();
    let message = format!(
        "{name} is damaged and can not be read, so the store stays shut: put a copy of the whole folder back. Only this file \
         says who the bodies are for, so without a copy the mail is lost: then move the whole folder away to begin anew. \
         Checking the store says what can be read. What was met: {met}"
    );
    corrupt(message).with_source(met)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_is_told_once_and_not_too_many() {
        let damage = Damage::default();
        for number in 0..3 * MOST_TOLD {
            damage.tell(corrupt(format!("entry {number}")));
            damage.tell(corrupt("entry 0"));
        }
        let told = damage.take();
        assert_eq!(told.len(), MOST_TOLD + 1);
        assert!(told[MOST_TOLD].to_string().contains("more than"), "{}", told[MOST_TOLD]);
        assert!(damage.take().is_empty());
        damage.tell(corrupt("entry 0"));
        assert!(damage.take().is_empty(), "it was told");
    }

    #[test]
    fn the_mark_is_made_once_until_it_is_taken_away() {
        let (disk, path) = (super::super::simulated::Disk::default(), Path::new("/store/suspect"));
        let damage = Damage::new(Arc::new(disk.clone()), path.to_owned());
        let failed = || damage.heed::<()>(Err(corrupt("a page")));
        assert!(damage.heed(Ok(())).is_ok() && disk.paths().is_empty());
        assert!(failed().is_err() && disk.paths() == [path]);
        let steps = disk.steps();
        damage.tell(corrupt("a row"));
        assert!(failed().is_err() && disk.steps() == steps);
        damage.unmark().unwrap();
        assert!(disk.paths().is_empty());
        // Although it was told before.
        damage.tell(corrupt("a row"));
        assert_eq!(disk.paths(), [path]);
    }

    #[test]
    fn a_panic_is_damage() {
        let error = guarded("a row", || -> Result<()> { panic!("page {}", 7) }).unwrap_err();
        assert!(error.to_string().contains("a row") && error.to_string().contains("page 7"), "{error}");
    }
}
