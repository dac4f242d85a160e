//! The real files, some steps of which fail on demand.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::files::{FileSystem, FolderLock, Mode, OpenFile, SystemFiles};

/// What shall fail. Everything works until a test says otherwise.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Writing a body finds the disk full.
    pub(super) bodies_full: AtomicBool,
    /// So many writes of metadata find the disk full.
    pub(super) metadata_full: AtomicU32,
    /// Writing the reserve finds the disk full.
    pub(super) reserve_full: AtomicBool,
    /// Flushing bodies fails.
    pub(super) body_sync: AtomicBool,
    /// Flushing metadata fails.
    pub(super) metadata_sync: AtomicBool,
    /// The metadata file is removed once it was flushed next.
    pub(super) metadata_removed: AtomicBool,
    /// The metadata file is cut short once it was flushed next.
    pub(super) metadata_cut: AtomicBool,
}

fn fail_if(flag: &AtomicBool, kind: io::ErrorKind) -> io::Result<()> {
    if flag.load(Ordering::SeqCst) { Err(kind.into()) } else { Ok(()) }
}

#[derive(Clone, Debug, Default)]
pub(super) struct FaultyFiles(pub(super) Arc<Faults>);

#[derive(Debug)]
struct FaultyFile {
    file: Arc<dyn OpenFile>,
    faults: Arc<Faults>,
    path: PathBuf,
    is_body: bool,
    is_metadata: bool,
    is_reserve: bool,
}

impl FileSystem for FaultyFiles {
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        SystemFiles.create_folder(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        SystemFiles.list(folder)
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn OpenFile>> {
        let ends = |with: &str| path.extension().is_some_and(|extension| extension == with);
        let (is_body, is_metadata) = (ends("bodies"), ends("redb"));
        let is_reserve = path.ends_with("reserve");
        let file = SystemFiles.open(path, mode)?;
        let (faults, path) = (self.0.clone(), path.to_owned());
        Ok(Arc::new(FaultyFile { file, faults, path, is_body, is_metadata, is_reserve }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemFiles.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemFiles.rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        SystemFiles.sync_folder(folder)
    }

    fn lock(&self, folder: &Path) -> io::Result<Box<dyn FolderLock>> {
        SystemFiles.lock(folder)
    }

    fn draw(&self) -> u128 {
        SystemFiles.draw()
    }
}

impl OpenFile for FaultyFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn set_length(&self, octets: u64) -> io::Result<()> {
        self.file.set_length(octets)
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let full = io::ErrorKind::StorageFull;
        if self.is_body {
            fail_if(&self.faults.bodies_full, full)?;
        }
        if self.is_reserve {
            fail_if(&self.faults.reserve_full, full)?;
        }
        let less = |left: u32| left.checked_sub(1);
        if self.is_metadata
            && self.faults.metadata_full.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
        {
            return Err(full.into());
        }
        self.file.write_all_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        if self.is_body {
            fail_if(&self.faults.body_sync, io::ErrorKind::Other)?;
        }
        if self.is_metadata {
            fail_if(&self.faults.metadata_sync, io::ErrorKind::Other)?;
        }
        self.file.sync()?;
        if self.is_metadata && self.faults.metadata_removed.swap(false, Ordering::SeqCst) {
            SystemFiles.remove(&self.path)?;
        }
        if self.is_metadata && self.faults.metadata_cut.swap(false, Ordering::SeqCst) {
            self.file.set_length(4096)?;
        }
        Ok(())
    }

    fn is_at(&self, path: &Path) -> bool {
        self.file.is_at(path)
    }
}
