//! Disk space set aside, so that mail can be settled once the disk is full.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::files::{FileSystem, Mode, parent};
use crate::storage::Room;

/// A reserve of fewer octets is worth nothing, unless one of not many more is wanted.
const LEAST: u64 = 64 * 1024;
/// What is written at a time.
const BLOCK: usize = 64 * 1024;

/// A file that is given up when the metadata can not grow.
#[derive(Debug)]
pub(super) struct Reserve {
    files: Arc<dyn FileSystem>,
    path: PathBuf,
    /// What it should have.
    octets: u64,
    /// What it has.
    held: AtomicU64,
}

impl Reserve {
    pub(super) fn new(files: Arc<dyn FileSystem>, path: PathBuf, octets: u64) -> Self {
        let length = files.open(&path, Mode::Read).and_then(|file| file.length()).unwrap_or_default();
        Self { files, path, octets, held: AtomicU64::new(length.min(octets)) }
    }

    fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    /// What there is room for beside it.
    pub(super) fn room(&self) -> Room {
        match self.held() {
            held if held == self.octets => Room::Ample,
            0 => Room::Exhausted,
            _ => Room::Scarce,
        }
    }

    /// Makes the reserve if it is not there, or a smaller one if the disk is nearly full. `false`: it is not whole, so
    /// there is no room for new mail.
    pub(super) fn ensure(&self) -> bool {
        let held = self.held();
        if held == self.octets {
            return true;
        }
        let made = self.grow(held).unwrap_or_else(|_| {
            // Of what it has now it is not known whether it is there.
            let _ = self.files.remove(&self.path);
            0
        });
        self.held.store(made, Ordering::Release);
        made == self.octets
    }

    /// Returns what it has then.
    fn grow(&self, held: u64) -> io::Result<u64> {
        let file = self.files.open(&self.path, Mode::Write)?;
        file.set_length(held)?;
        // Noise: file systems that compress would store zeros in no space.
        let mut noise = fastrand::Rng::with_seed(0x7265_7365_7276_6521);
        let mut block = vec![0; BLOCK];
        let mut made = held;
        while made < self.octets {
            noise.fill(&mut block);
            let left = usize::try_from(self.octets - made).unwrap_or(BLOCK).min(BLOCK);
            if file.write_all_at(block.get(..left).unwrap_or(&block), made).is_err() {
                // Half of what was found: the other half serves at once what goes on.
                let kept = held.max(made / 2);
                made = if kept < LEAST.min(self.octets / 4) { 0 } else { kept };
                file.set_length(made)?;
                break;
            }
            made += left as u64;
        }
        if made == 0 {
            self.files.remove(&self.path)?;
        } else {
            file.sync()?;
        }
        self.files.sync_folder(parent(&self.path))?;
        Ok(made)
    }

    /// Gives the space up. `false`: there was none.
    pub(super) fn release(&self) -> bool {
        self.held.swap(0, Ordering::AcqRel) > 0 && self.files.remove(&self.path).is_ok()
    }
}
