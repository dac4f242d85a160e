//! From the errors of files and of redb to ours.

use std::io;
use std::path::Path;

use crate::storage::rows::Result;
use crate::storage::{StorageError, StorageErrorKind};

use super::damage::MENDS;
use super::files::OpenFile;

/// A file operation failed before anything was committed.
pub(super) fn io(doing: &str, path: &Path, error: io::Error) -> StorageError {
    let kind = if is_full(&error) { StorageErrorKind::Full } else { StorageErrorKind::Temporary };
    let advice = match error.kind() {
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            ". A store needs a folder of its own: name one, which is made if it is missing"
        }
        _ => "",
    };
    StorageError::new(kind, format!("{doing} {}: {error}{advice}", path.display())).with_source(error)
}

/// No space, or no space for this user.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// It is not known what is on disk, so that nothing may be written any more.
pub(super) fn is_fatal(error: &StorageError) -> bool {
    matches!(error.kind(), StorageErrorKind::OutcomeUnknown | StorageErrorKind::Poisoned)
}

/// The metadata found no room, and nothing of what was to be written was applied.
pub(super) fn full(reserve: u64, error: StorageError) -> StorageError {
    let message = format!(
        "the metadata finds no room on the disk and the reserve of {reserve} octets is used up: nothing of it was written"
    );
    StorageError::new(StorageErrorKind::Full, message).with_source(error)
}

/// The metadata could not be read or prepared. After an I/O error redb refuses all that follows, so do we.
pub(super) fn db(error: impl Into<redb::Error>) -> StorageError {
    let error = error.into();
    let (kind, message) = match error {
        redb::Error::Io(_)
        | redb::Error::PreviousIo
        | redb::Error::DatabaseClosed
        | redb::Error::LockPoisoned(_) => (StorageErrorKind::Poisoned, format!("metadata: {error}")),
        _ => (StorageErrorKind::Corrupt, format!("the metadata is damaged; opening {MENDS}: {error}")),
    };
    StorageError::new(kind, message).with_source(error)
}

/// Refuses a file that is being written if it is not the one of its name any more, or has less than what was written. Asks the
/// file system.
pub(super) fn as_written(file: &dyn OpenFile, path: &Path, octets: u64) -> Result<()> {
    let found = file.length();
    let what = match &found {
        _ if !file.is_at(path) => {
            "is not the file that was opened: it was removed, renamed or replaced".to_owned()
        }
        Ok(found) if *found < octets => format!("was cut short: it has {found} octets of {octets}"),
        Ok(_) => return Ok(()),
        Err(error) => format!("can not be looked at: {error}"),
    };
    let path = path.display();
    let message = format!(
        "{path} {what}. Put it back; if it can not be, end the process and put a copy of the whole folder back"
    );
    Err(StorageError::new(StorageErrorKind::Temporary, message))
}

/// A flush failed: what it was to write may or may not be there. That is so for want of room too: some file systems look for it
/// only then, and what they found none for they take for written all the same.
pub(super) fn flush(what: &str, error: impl Into<redb::Error>) -> StorageError {
    let error = error.into();
    let advice = match &error {
        redb::Error::Io(error) if is_full(error) => {
            ". This file system finds out only while flushing that it is full, so the reserve is of no use on it: make room before \
             the store is opened again"
        }
        _ => "",
    };
    let message = format!("{what} failed, so it is not known what is on disk: {error}{advice}");
    StorageError::new(StorageErrorKind::OutcomeUnknown, message).with_source(error)
}

/// New mail found no room for its metadata, and the reserve is not for it.
pub(super) fn full_for_mail(error: StorageError) -> StorageError {
    let message =
        "the disk is full: new mail is refused, so that the reserve is left for settling what was accepted";
    StorageError::new(StorageErrorKind::Full, message).with_source(error)
}

pub(super) fn corrupt(message: impl Into<String>) -> StorageError {
    StorageError::new(StorageErrorKind::Corrupt, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_that_finds_no_room_says_what_to_do_and_is_a_failed_flush_all_the_same() {
        for (kind, is_about_room) in [
            (io::ErrorKind::StorageFull, true),
            (io::ErrorKind::QuotaExceeded, true),
            (io::ErrorKind::Other, false),
        ] {
            let error = flush("flushing bodies", io::Error::from(kind));
            assert_eq!(error.kind(), StorageErrorKind::OutcomeUnknown);
            assert_eq!(error.to_string().contains("make room"), is_about_room, "{error}");
        }
    }
}
