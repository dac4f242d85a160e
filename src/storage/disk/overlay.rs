//! A metadata file that is read and not changed.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use super::files::OpenFile;
use super::lock;

/// A file that is read; what is written stays in memory.
#[derive(Debug)]
pub(super) struct Overlay {
    file: Arc<dyn OpenFile>,
    state: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    length: Option<u64>,
    /// Pages by their numbers.
    pages: BTreeMap<u64, Vec<u8>>,
}

const PAGE: u64 = 4096;
/// Where redb's format has its flags, of which this one says that the file was not closed.
const STATE_OCTET: u64 = 9;
const NOT_CLOSED: u8 = 2;

impl Overlay {
    pub(super) fn new(file: Arc<dyn OpenFile>) -> Self {
        Self { file, state: Mutex::default() }
    }

    fn page(&self, written: &Written, number: u64) -> io::Result<Vec<u8>> {
        if let Some(page) = written.pages.get(&number) {
            return Ok(page.clone());
        }
        let start = number.saturating_mul(PAGE);
        let there = self.file.length()?.saturating_sub(start).min(PAGE) as usize;
        let mut page = vec![0; PAGE as usize];
        if let Some(part) = page.get_mut(..there) {
            self.file.read_exact_at(part, start)?;
        }
        Ok(page)
    }

    /// Hands out each touched page with the part of it and the part of the data.
    fn each(
        offset: u64,
        length: usize,
        mut each: impl FnMut(u64, usize, usize, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let at = offset.saturating_add(done as u64);
            let within = (at % PAGE) as usize;
            let part = (PAGE as usize - within).min(length - done);
            each(at / PAGE, within, done, part)?;
            done += part;
        }
        Ok(())
    }
}

impl Overlay {
    /// As one that was closed in good order: what was written for the next writer is not asked for.
    pub(super) fn closed(self) -> io::Result<Self> {
        let mut state = [0];
        redb::StorageBackend::read(&self, STATE_OCTET, &mut state)?;
        redb::StorageBackend::write(&self, STATE_OCTET, &[state[0] & !NOT_CLOSED])?;
        Ok(self)
    }
}

impl redb::StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        lock(&self.state).length.map_or_else(|| self.file.length(), Ok)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.saturating_add(out.len() as u64) > redb::StorageBackend::len(self)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let written = lock(&self.state);
        let length = out.len();
        Self::each(offset, length, |number, within, done, part| {
            let page = self.page(&written, number)?;
            if let (Some(to), Some(from)) = (out.get_mut(done..done + part), page.get(within..within + part))
            {
                to.copy_from_slice(from);
            }
            Ok(())
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        lock(&self.state).length = Some(length);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    // Locks are of no use: the store's own keeps others away.

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, redb::BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, redb::BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), redb::BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), redb::BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), redb::BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, redb::BackendError> {
        Ok(false)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = lock(&self.state);
        Self::each(offset, data.len(), |number, within, done, part| {
            let mut page = self.page(&written, number)?;
            if let (Some(to), Some(from)) = (page.get_mut(within..within + part), data.get(done..done + part))
            {
                to.copy_from_slice(from);
            }
            written.pages.insert(number, page);
            Ok(())
        })
    }
}
