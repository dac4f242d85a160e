//! The metadata file under redb: positioned reads and writes that fall back on the reserve when the disk is full.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::storage::rows::Result;

use super::error::{self, is_full};
use super::files::OpenFile;
use super::mark::Mark;
use super::reserve::Reserve;

/// The file that redb works on. The store's own lock keeps other processes away.
#[derive(Debug)]
pub(super) struct MetadataFile {
    file: Arc<dyn OpenFile>,
    reserve: Arc<Reserve>,
    opening: u64,
}

impl MetadataFile {
    pub(super) fn new(file: Arc<dyn OpenFile>, reserve: Arc<Reserve>) -> Self {
        let opening = reserve.open();
        Self { file, reserve, opening }
    }

    /// After any I/O error redb must be opened anew, so a full disk does not reach it while there is a reserve to give up.
    fn with_reserve(&self, mut write: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        loop {
            self.check()?;
            match write() {
                Err(error) if is_full(&error) => {
                    if self.reserve.release(self.opening) {
                        tracing::error!("the disk is full: the reserve is given up, new mail is refused");
                    } else {
                        tracing::error!(
                            "the disk is full and there is no reserve for this: it waits for room"
                        );
                        return Err(error);
                    }
                }
                done => return done,
            }
        }
    }

    fn check(&self) -> io::Result<()> {
        let ended = self.reserve.has_ended(self.opening);
        if ended { Err(io::Error::other("a write found no room before")) } else { Ok(()) }
    }
}

impl redb::StorageBackend for MetadataFile {
    fn len(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with_reserve(|| self.file.set_length(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.file.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with_reserve(|| self.file.write_all_at(data, offset))
    }
}

/// A file of which it is known how long it was made.
#[derive(Debug)]
pub(super) struct Tracked {
    file: Arc<dyn OpenFile>,
    written: AtomicU64,
    is_left: AtomicBool,
    is_unflushed: AtomicBool,
    /// Held while its length changes: in between nobody can tell whether it was cut short.
    resizing: RwLock<()>,
    /// Made when a flush has failed, whoever asked for it: redb flushes once more as it is dropped, and tells nobody.
    unflushed: Arc<Mark>,
}

impl Tracked {
    pub(super) fn new(file: Arc<dyn OpenFile>, unflushed: Arc<Mark>) -> io::Result<Self> {
        let written = AtomicU64::new(file.length()?);
        let [is_left, is_unflushed] = [(); 2].map(|()| AtomicBool::default());
        Ok(Self { file, written, is_left, is_unflushed, resizing: RwLock::default(), unflushed })
    }

    /// Whether a flush of it has failed, whoever asked for it.
    pub(super) fn is_unflushed(&self) -> bool {
        self.is_unflushed.load(Ordering::Acquire)
    }

    /// Writes nothing more to it.
    pub(super) fn leave(&self) {
        self.is_left.store(true, Ordering::Release);
    }

    fn check(&self) -> io::Result<()> {
        let is_left = self.is_left.load(Ordering::Acquire);
        if is_left { Err(io::Error::other("the file is left as it is")) } else { Ok(()) }
    }

    /// Refuses if it is not the file of its name any more, or somebody else cut it short. Asks the file system.
    pub(super) fn check_length(&self, path: &Path) -> Result<()> {
        let _still = self.resizing.read().unwrap_or_else(PoisonError::into_inner);
        error::as_written(self, path, self.written.load(Ordering::Acquire))
    }
}

impl OpenFile for Tracked {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn set_length(&self, octets: u64) -> io::Result<()> {
        self.check()?;
        let _resizing = self.resizing.write().unwrap_or_else(PoisonError::into_inner);
        self.written.fetch_min(octets, Ordering::AcqRel);
        self.file.set_length(octets)?;
        self.written.store(octets, Ordering::Release);
        Ok(())
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.check()?;
        self.file.write_all_at(data, offset)?;
        self.written.fetch_max(offset.saturating_add(data.len() as u64), Ordering::AcqRel);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.check()?;
        self.file.sync().inspect_err(|_| {
            self.is_unflushed.store(true, Ordering::Release);
            self.unflushed.make();
        })
    }

    fn is_at(&self, path: &Path) -> bool {
        self.file.is_at(path)
    }
}

/// Leaves a file as it is unless all goes well: redb writes once more as it is dropped, by what it has read of a damaged file.
pub(super) struct LeftUnless(Option<Arc<Tracked>>);

impl LeftUnless {
    pub(super) fn well(file: &Arc<Tracked>) -> Self {
        Self(Some(file.clone()))
    }

    pub(super) fn done(mut self, went_well: bool) {
        if went_well {
            self.0 = None;
        }
    }
}

impl Drop for LeftUnless {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            file.leave();
        }
    }
}
