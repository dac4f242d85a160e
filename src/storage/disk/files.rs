//! The files under a store: what it asks of an operating system, and the real one.
//!
//! All of a store's I/O goes through [`FileSystem`] and [`OpenFile`], so that a test can put a disk of its own under it
//! and fail, fill or cut off any single step.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Folders and files by their paths. What is created, removed or renamed is durable once its folder was flushed.
pub(super) trait FileSystem: Debug + Send + Sync {
    /// Makes the folder and those it lies in, durable on return.
    fn create_folder(&self, folder: &Path) -> io::Result<()>;
    /// The files of a folder and their lengths in octets.
    fn list(&self, folder: &Path) -> io::Result<Vec<(PathBuf, u64)>>;
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn OpenFile>>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names a file otherwise, in the same folder, in place of what has that name: at once, or not at all.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes creations, removals and renamings in a folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Keeps others out of a folder until the answer is dropped, whatever is removed or renamed in it. `WouldBlock`:
    /// somebody else has it.
    fn lock(&self, folder: &Path) -> io::Result<Box<dyn FolderLock>>;
    /// A number that nobody else draws.
    fn draw(&self) -> u128;
}

/// A lock on a folder, held until it is dropped.
pub(super) trait FolderLock: Send + Sync {
    /// Whether the path still leads to the folder that is locked.
    fn holds(&self, folder: &Path) -> bool;
}

#[cfg(unix)]
impl FolderLock for File {
    fn holds(&self, folder: &Path) -> bool {
        leads_to(folder, self)
    }
}

/// Whether what is open is what has the name: a file that was removed lives on for whoever has it open.
#[cfg(unix)]
fn leads_to(path: &Path, open: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |found: fs::Metadata| (found.dev(), found.ino());
    matches!((open.metadata().map(id), fs::metadata(path).map(id)), (Ok(open), Ok(named)) if open == named)
}

/// Windows renames no folder in which a file is open.
#[cfg(not(unix))]
impl FolderLock for File {
    fn holds(&self, _: &Path) -> bool {
        true
    }
}

/// A file. Writes are durable once it was flushed.
pub(super) trait OpenFile: Debug + Send + Sync {
    fn length(&self) -> io::Result<u64>;
    fn set_length(&self, octets: u64) -> io::Result<()>;
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()>;
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
    /// Whether the path still leads to this file. Asks the file system.
    fn is_at(&self, path: &Path) -> bool;
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// It exists.
    Read,
    /// It is made if need be.
    Write,
    /// It is made, and what it held is gone.
    Fresh,
}

/// That of the operating system.
#[derive(Debug)]
pub(super) struct SystemFiles;

impl FileSystem for SystemFiles {
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = folder.ancestors().take_while(|folder| is_missing(folder)).collect();
        fs::create_dir_all(folder)?;
        // From the outermost on: a folder is there once the one it lies in says so.
        let flushed = missing.iter().rev().try_for_each(|made| self.sync_folder(parent(made)));
        if flushed.is_err() {
            // Else the next attempt would find them, and not flush them.
            missing.iter().for_each(|made| drop(fs::remove_dir(made)));
        }
        flushed
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) => files.push((entry.path(), metadata.len())),
                // It was removed meanwhile: the folder is there all the same.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn OpenFile>> {
        let writes = mode != Mode::Read;
        let mut how = OpenOptions::new();
        how.read(true).write(writes).create(writes).truncate(mode == Mode::Fresh);
        Ok(Arc::new(how.open(path)?))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    #[cfg(unix)]
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    /// Windows does so by itself and opens no folder as a file.
    #[cfg(not(unix))]
    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, folder: &Path) -> io::Result<Box<dyn FolderLock>> {
        let file = lockable(folder)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn draw(&self) -> u128 {
        uuid::Uuid::new_v4().as_u128()
    }
}

/// The folder itself: a file in it could be removed, and be locked again under the same name.
#[cfg(unix)]
fn lockable(folder: &Path) -> io::Result<File> {
    File::open(folder)
}

/// Windows locks no folder, but a file in it can not be removed or renamed while it is opened so.
#[cfg(windows)]
fn lockable(folder: &Path) -> io::Result<File> {
    use std::os::windows::fs::OpenOptionsExt;
    /// `FILE_SHARE_READ` and `FILE_SHARE_WRITE`, without `FILE_SHARE_DELETE`.
    const NOT_REMOVED: u32 = 3;
    let mut how = OpenOptions::new();
    how.write(true).create(true).truncate(false).share_mode(NOT_REMOVED).open(folder.join("lock"))
}

fn is_missing(folder: &Path) -> bool {
    !folder.as_os_str().is_empty() && !folder.exists()
}

/// The folder it lies in: of a plain name, the current one.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

impl OpenFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_length(&self, octets: u64) -> io::Result<()> {
        self.set_len(octets)
    }

    #[cfg(unix)]
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, out, offset)
    }

    #[cfg(unix)]
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, data, offset)
    }

    #[cfg(windows)]
    fn read_exact_at(&self, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !out.is_empty() {
            let read = std::os::windows::fs::FileExt::seek_read(self, out, offset)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            out = out.get_mut(read..).unwrap_or_default();
            offset += read as u64;
        }
        Ok(())
    }

    #[cfg(windows)]
    fn write_all_at(&self, mut data: &[u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            let written = std::os::windows::fs::FileExt::seek_write(self, data, offset)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            data = data.get(written..).unwrap_or_default();
            offset += written as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    #[cfg(unix)]
    fn is_at(&self, path: &Path) -> bool {
        leads_to(path, self)
    }

    /// The standard library knows no number of a file here.
    #[cfg(not(unix))]
    fn is_at(&self, _: &Path) -> bool {
        true
    }
}
