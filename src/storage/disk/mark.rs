//! Empty files beside the metadata that tell the next opening what to do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::files::{FileSystem, Mode, parent};
use super::open::is_there;

/// An empty file that says something by being there.
#[derive(Debug)]
pub(super) struct Mark {
    files: Arc<dyn FileSystem>,
    path: PathBuf,
    is_made: AtomicBool,
}

impl Mark {
    pub(super) fn new(files: Arc<dyn FileSystem>, path: PathBuf) -> Self {
        Self { files, path, is_made: AtomicBool::default() }
    }

    pub(super) fn is_there(&self) -> io::Result<bool> {
        is_there(&*self.files, &self.path)
    }

    /// It was made by this process.
    pub(super) fn is_made(&self) -> bool {
        self.is_made.load(Ordering::Acquire)
    }

    /// As well as it can be: that it could not is only logged.
    pub(super) fn make(&self) {
        if self.is_made.swap(true, Ordering::AcqRel) {
            return;
        }
        let Self { files, path, is_made } = self;
        if let Err(error) = files.open(path, Mode::Fresh).and_then(|_| files.sync_folder(parent(path))) {
            is_made.store(false, Ordering::Release);
            tracing::error!(%error, path = %path.display(), "the store can not be marked for its next opening");
        }
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        self.is_made.store(false, Ordering::Release);
        match self.files.remove(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}
