//! After a failed flush: what the system shows of a file need not be on disk, and it does not know that any more.
//!
//! Linux and others take pages that could not be written for written. They are read as they were to be, further flushes of
//! the file succeed without them, and once memory is short or the machine is started anew, what was on disk before comes
//! back. So the first opening after a failed flush writes all of it again that is not known to be on disk: the metadata, and
//! the body file that was written last, in whose last page bodies of earlier calls may lie. Of other body files the metadata
//! knows nothing that was not flushed before it.

use std::io;
use std::path::{Path, PathBuf};

use crate::storage::rows::Result;

use super::error;
use super::files::{FileSystem, Mode, OpenFile};
use super::open::{BODIES, METADATA, body_files};
use super::segment::path_of;

/// An empty file that is there since a flush failed.
pub(super) const UNFLUSHED: &str = "unflushed";

/// What the system takes for written at a time.
const PAGE: usize = 4096;

/// Writes what may not be on disk again, as it is read.
///
/// # Errors
/// `OutcomeUnknown` if it can not be flushed, `Full` or `Temporary` if it can not be written: then all of it is to be done again.
pub(super) fn write_again(store: &Path, files: &dyn FileSystem) -> Result<()> {
    let folder = store.join(BODIES);
    let last = match files.list(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        _ => body_files(files, &folder)?.into_keys().next_back(),
    };
    let bodies = last.map(|segment| path_of(&folder, segment));
    for path in bodies.into_iter().chain([store.join(METADATA)]) {
        write_file_again(path, files)?;
    }
    Ok(())
}

fn write_file_again(path: PathBuf, files: &dyn FileSystem) -> Result<()> {
    let writing = |error| error::io("writing again what may not be on disk of", &path, error);
    let flushing = |error| error::flush("flushing again what may not be on disk", error);
    if !super::open::is_there(files, &path).map_err(writing)? {
        return Ok(());
    }
    let file = files.open(&path, Mode::Write).map_err(writing)?;
    let length = file.length().map_err(writing)?;
    tracing::warn!(path = %path.display(), octets = length, "a flush failed: what may not be on disk is written again");
    // The first page of the metadata says which pages count: they are on disk before it is.
    for offset in (PAGE as u64..length).step_by(PAGE) {
        write_page_again(&*file, offset, length).map_err(writing)?;
    }
    file.sync().map_err(flushing)?;
    write_page_again(&*file, 0, length).and_then(|()| file.set_length(length)).map_err(writing)?;
    file.sync().map_err(flushing)
}

fn write_page_again(file: &dyn OpenFile, offset: u64, length: u64) -> io::Result<()> {
    let mut page = [0; PAGE];
    let octets = usize::try_from(length.saturating_sub(offset)).unwrap_or(PAGE).min(PAGE);
    let Some(page) = page.get_mut(..octets) else { return Ok(()) };
    match file.read_exact_at(page, offset) {
        Ok(()) => file.write_all_at(page, offset),
        // Nobody sees anything in it that is not on disk. Whoever misses it finds the damage.
        Err(error) => {
            tracing::error!(%error, offset, "it can not be read, and stays as it is");
            Ok(())
        }
    }
}
