//! The metadata file under redb: positioned reads and writes that fall back on the reserve when the disk is full.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::error::is_full;
use super::files::{read_exact_at, write_all_at};
use super::reserve::Reserve;

/// The file that redb works on. The store's own lock file keeps other processes away.
#[derive(Debug)]
pub(super) struct MetadataFile {
    pub(super) file: File,
    pub(super) reserve: Arc<Reserve>,
    #[cfg(test)]
    pub(super) faults: Arc<super::faults::Faults>,
}

impl MetadataFile {
    /// redb takes any I/O error as the end, so a full disk must not reach it while there is a reserve to give up.
    fn with_reserve(&self, mut write: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        match write() {
            Err(error) if is_full(&error) && self.reserve.release() => {
                tracing::error!("the disk is full: the reserve is given up, new mail is refused");
                write()
            }
            done => done,
        }
    }
}

impl redb::StorageBackend for MetadataFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        read_exact_at(&self.file, out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with_reserve(|| self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        #[cfg(test)]
        self.faults.metadata_sync()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with_reserve(|| {
            #[cfg(test)]
            self.faults.metadata_write()?;
            write_all_at(&self.file, data, offset)
        })
    }
}
