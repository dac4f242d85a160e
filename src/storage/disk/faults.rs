//! Failures of the disk, on demand.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What shall fail. Everything works until a test says otherwise.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Writing a body finds the disk full.
    pub(crate) bodies_full: AtomicBool,
    /// So many writes of metadata find the disk full.
    pub(crate) metadata_full: AtomicU32,
    /// Flushing bodies fails.
    pub(crate) body_sync: AtomicBool,
    /// Flushing metadata fails.
    pub(crate) metadata_sync: AtomicBool,
}

fn fail_if(flag: &AtomicBool, kind: io::ErrorKind) -> io::Result<()> {
    if flag.load(Ordering::SeqCst) { Err(kind.into()) } else { Ok(()) }
}

impl Faults {
    pub(super) fn body_write(&self) -> io::Result<()> {
        fail_if(&self.bodies_full, io::ErrorKind::StorageFull)
    }

    pub(super) fn body_sync(&self) -> io::Result<()> {
        fail_if(&self.body_sync, io::ErrorKind::Other)
    }

    pub(super) fn metadata_write(&self) -> io::Result<()> {
        let less = |left: u32| left.checked_sub(1);
        match self.metadata_full.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
            Ok(_) => Err(io::ErrorKind::StorageFull.into()),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn metadata_sync(&self) -> io::Result<()> {
        fail_if(&self.metadata_sync, io::ErrorKind::Other)
    }
}
