//! Disk space set aside, so that mail can be settled once the disk is full.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::error;
use super::files::{FileSystem, Mode, parent};
use super::lock;
use crate::storage::{Room, StorageError, StorageErrorKind};

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
    /// There may be room for more of it than when it was last made.
    may_grow: AtomicBool,
    /// Why it is not whole.
    why: Mutex<Option<io::Error>>,
    /// A write found no room and no reserve, and none has gone well since.
    ran_out: AtomicBool,
    /// What is written now is new mail, for which it is not given up.
    held_back: AtomicBool,
    /// New mail found no room beside it, and nothing was given back since.
    is_full: AtomicBool,
    /// How many times a metadata file was opened over it; the last one counts.
    opened: AtomicU64,
    /// In which of these openings a write was refused last; zero: in none.
    refused: AtomicU64,
}

impl Reserve {
    pub(super) fn new(files: Arc<dyn FileSystem>, path: PathBuf, octets: u64) -> Self {
        let length = files.open(&path, Mode::Read).and_then(|file| file.length()).unwrap_or_default();
        let held = AtomicU64::new(length.min(octets));
        let [may_grow, ran_out, held_back, is_full] = [true, false, false, false].map(AtomicBool::new);
        let [opened, refused] = [0, 0].map(AtomicU64::new);
        let why = Mutex::default();
        Self { files, path, octets, held, may_grow, why, ran_out, held_back, is_full, opened, refused }
    }

    fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    /// What there is room for beside it.
    pub(super) fn room(&self) -> Room {
        if self.ran_out.load(Ordering::Acquire) {
            Room::Exhausted
        } else if self.held() == self.octets {
            Room::Ample
        } else {
            Room::Scarce
        }
    }

    /// A metadata file is opened, in place of the last. Returns the number of this opening.
    pub(super) fn open(&self) -> u64 {
        self.opened.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// A write was refused for want of room: whoever opened it does nothing more with it, not even as it is dropped.
    pub(super) fn has_ended(&self, opening: u64) -> bool {
        (1..=self.refused.load(Ordering::Acquire)).contains(&opening)
    }

    /// So it was in the last opening: redb is to be opened anew.
    pub(super) fn has_refused(&self) -> bool {
        self.has_ended(self.opened.load(Ordering::Acquire))
    }

    /// redb takes any I/O error as the end: where it was for want of room it is not.
    pub(super) fn explain(&self, error: StorageError) -> StorageError {
        match self.has_refused() && error::is_fatal(&error) {
            true if self.held_back.load(Ordering::Acquire) && self.held() > 0 => error::full_for_mail(error),
            true => error::full(self.octets, error),
            false => error,
        }
    }

    /// Whether what is written from now on is new mail: the reserve is for that of before.
    pub(super) fn hold_back(&self, is_mail: bool) {
        self.held_back.store(is_mail, Ordering::Release);
    }

    /// All that was to be written is.
    pub(super) fn wrote(&self) {
        self.ran_out.store(false, Ordering::Release);
    }

    /// Something was given back: the next [`Reserve::ensure`] tries whether there is room.
    pub(super) fn retry(&self) {
        self.may_grow.store(true, Ordering::Release);
        self.is_full.store(false, Ordering::Release);
    }

    /// Whether there is room for new mail, as far as that is known before it is written.
    pub(super) fn takes_mail(&self) -> bool {
        self.ensure() && !self.is_full.load(Ordering::Acquire)
    }

    /// Makes the reserve if it is not there, or a smaller one if the disk is nearly full. `false`: it is not whole, so that
    /// there is no room for new mail.
    pub(super) fn ensure(&self) -> bool {
        let held = self.held();
        if held == self.octets || !self.may_grow.swap(false, Ordering::AcqRel) {
            return held == self.octets;
        }
        let (made, why) = self.grow(held).unwrap_or_else(|error| {
            // Of what it has now it is not known whether it is there.
            let _ = self.files.remove(&self.path);
            (0, Some(error))
        });
        *lock(&self.why) = why;
        self.held.store(made, Ordering::Release);
        let is_whole = made == self.octets;
        if is_whole {
            // As much room was just found.
            self.is_full.store(false, Ordering::Release);
        }
        is_whole
    }

    /// Why new mail is refused.
    pub(super) fn refusal(&self) -> StorageError {
        let Self { path, octets, .. } = self;
        let path = path.display();
        match &*lock(&self.why) {
            Some(error) if !error::is_full(error) => {
                let message = format!(
                    "new mail is refused, as the reserve of {octets} octets for settling mail on a full disk can not be made: \
                     {path}: {error}"
                );
                StorageError::new(StorageErrorKind::Temporary, message)
            }
            _ if self.held() == self.octets => {
                let message = "the disk is full: new mail is refused until something was given back";
                StorageError::new(StorageErrorKind::Full, message)
            }
            _ => {
                let held = self.held();
                let message = format!(
                    "the disk is full: new mail is refused until there is room for the reserve {path} again, which has {held} \
                     octets of {octets}"
                );
                StorageError::new(StorageErrorKind::Full, message)
            }
        }
    }

    /// Returns what it has then, and why that is not all.
    fn grow(&self, held: u64) -> io::Result<(u64, Option<io::Error>)> {
        let file = self.files.open(&self.path, Mode::Write)?;
        file.set_length(held)?;
        // Noise: file systems that compress would store zeros in no space.
        let mut noise = fastrand::Rng::with_seed(0x7265_7365_7276_6521);
        let mut block = vec![0; BLOCK];
        let (mut made, mut why) = (held, None);
        while made < self.octets {
            noise.fill(&mut block);
            let left = usize::try_from(self.octets - made).unwrap_or(BLOCK).min(BLOCK);
            if let Err(error) = file.write_all_at(block.get(..left).unwrap_or(&block), made) {
                // Half of what was found: the other half serves at once what goes on.
                let kept = held.max(made / 2);
                made = if kept < LEAST.min(self.octets / 4) { 0 } else { kept };
                file.set_length(made)?;
                why = Some(error);
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
        Ok((made, why))
    }

    /// Gives the space up. `false`: there was none, or it is held back, and the write is refused.
    pub(super) fn release(&self, opening: u64) -> bool {
        if self.held_back.load(Ordering::Acquire) && self.held() > 0 {
            self.is_full.store(true, Ordering::Release);
            self.refused.fetch_max(opening, Ordering::AcqRel);
            return false;
        }
        let released = self.held.swap(0, Ordering::AcqRel) > 0 && self.files.remove(&self.path).is_ok();
        // What this write does not take is a smaller reserve.
        self.may_grow.store(true, Ordering::Release);
        if !released {
            self.ran_out.store(true, Ordering::Release);
            self.refused.fetch_max(opening, Ordering::AcqRel);
        }
        released
    }
}
