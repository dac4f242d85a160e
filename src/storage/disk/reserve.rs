//! Disk space set aside, so that mail can be settled once the disk is full.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// A file that is given up when the metadata can not grow.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    octets: u64,
    intact: AtomicBool,
}

impl Reserve {
    pub(super) fn new(path: PathBuf, octets: u64) -> Self {
        let length = fs::metadata(&path).map(|data| data.len()).unwrap_or_default();
        let intact = octets == 0 || length == octets;
        Self { path, octets, intact: AtomicBool::new(intact) }
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
            let _ = fs::remove_file(&self.path);
        }
        made
    }

    fn make(&self) -> std::io::Result<()> {
        let mut file = File::create(&self.path)?;
        // Noise: file systems that compress would store zeros in no space.
        let mut noise = fastrand::Rng::with_seed(0x7265_7365_7276_6521);
        let mut block = vec![0; 64 * 1024];
        let mut left = self.octets;
        while left > 0 {
            noise.fill(&mut block);
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
            file.write_all(block.get(..length).unwrap_or_default())?;
            left -= length as u64;
        }
        file.sync_all()
    }

    /// Gives the space up. `false`: there was none.
    pub(super) fn release(&self) -> bool {
        self.octets > 0 && self.intact.swap(false, Ordering::AcqRel) && fs::remove_file(&self.path).is_ok()
    }
}
