//! Disk space set aside, so that mail can be settled once the disk is full.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::files::{FileSystem, Mode, parent};

/// A file that is given up when the metadata can not grow.
#[derive(Debug)]
pub(super) struct Reserve {
    files: Arc<dyn FileSystem>,
    path: PathBuf,
    octets: u64,
    intact: AtomicBool,
}

impl Reserve {
    pub(super) fn new(files: Arc<dyn FileSystem>, path: PathBuf, octets: u64) -> Self {
        let length = files.open(&path, Mode::Read).and_then(|file| file.length()).unwrap_or_default();
        let intact = octets == 0 || length == octets;
        Self { files, path, octets, intact: AtomicBool::new(intact) }
    }

    /// Makes the reserve if it is not there. `false`: there is no room for it, so there is none for new mail.
    pub(super) fn ensure(&self) -> bool {
        if self.intact.load(Ordering::Acquire) {
            return true;
        }
        let made = self.make().is_ok();
        if made {
            self.intact.store(true, Ordering::Release);
        } else {
            // Half a reserve would only take the room that settling needs.
            let _ = self.files.remove(&self.path);
        }
        made
    }

    fn make(&self) -> std::io::Result<()> {
        let file = self.files.open(&self.path, Mode::Fresh)?;
        // Noise: file systems that compress would store zeros in no space.
        let mut noise = fastrand::Rng::with_seed(0x7265_7365_7276_6521);
        let mut block = vec![0; 64 * 1024];
        let mut made = 0;
        while made < self.octets {
            noise.fill(&mut block);
            let left = usize::try_from(self.octets - made).unwrap_or(usize::MAX);
            let part = block.get(..left).unwrap_or(&block);
            file.write_all_at(part, made)?;
            made += part.len() as u64;
        }
        file.sync()?;
        self.files.sync_folder(parent(&self.path))
    }

    /// Gives the space up. `false`: there was none.
    pub(super) fn release(&self) -> bool {
        self.octets > 0 && self.intact.swap(false, Ordering::AcqRel) && self.files.remove(&self.path).is_ok()
    }
}
