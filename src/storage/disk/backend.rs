//! The metadata file under redb: positioned reads and writes that fall back on the reserve when the disk is full.

use std::io;
use std::sync::Arc;

use super::error::is_full;
use super::files::OpenFile;
use super::reserve::Reserve;

/// The file that redb works on. The lock on the store's folder keeps other processes away.
#[derive(Debug)]
pub(super) struct MetadataFile {
    pub(super) file: Arc<dyn OpenFile>,
    pub(super) reserve: Arc<Reserve>,
}

impl MetadataFile {
    /// After any I/O error redb must be opened anew, so a full disk does not reach it while there is a reserve to give up.
    fn with_reserve(&self, mut write: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        loop {
            match write() {
                Err(error) if is_full(&error) && self.reserve.release() => {
                    tracing::error!("the disk is full: the reserve is given up, new mail is refused");
                }
                done => return done,
            }
        }
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
        self.file.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with_reserve(|| self.file.write_all_at(data, offset))
    }
}
