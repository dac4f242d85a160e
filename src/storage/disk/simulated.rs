//! A disk in memory that remembers each step, so that it can be had as a power cut at any of them would leave it.
//!
//! What a file holds is durable up to its last flush, what a folder lists up to the flush of the folder. Of all later
//! steps each may be on disk or not: [`Survival`] says which.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::files::{FileSystem, FolderLock, Mode, OpenFile};

const BLOCK: u64 = 4096;

/// What becomes of steps that were not flushed when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Survival {
    Nothing,
    All,
    /// Each by chance.
    Some,
    /// All, the last write to each file only in part.
    Torn,
}

impl Survival {
    pub(super) const ALL: [Self; 4] = [Self::Nothing, Self::All, Self::Some, Self::Torn];

    fn keeps(self, random: &mut fastrand::Rng) -> bool {
        match self {
            Self::Nothing => false,
            Self::All | Self::Torn => true,
            Self::Some => random.bool(),
        }
    }
}

/// What shall go wrong. Steps are counted from the disk's beginning.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// This step, if it writes, writes half and fails.
    pub(super) short_at: Option<usize>,
    /// The next flush of a file or a folder whose path ends so fails.
    pub(super) fail_sync: Option<&'static str>,
    /// The flush of this number fails, counted from the disk's beginning.
    pub(super) fail_sync_at: Option<usize>,
    pub(super) failed_sync: FailedSync,
    /// The power goes after so many steps: nothing can be read or written any more.
    pub(super) off_at: Option<usize>,
    /// Octets there is room for.
    pub(super) capacity: Option<u64>,
    /// Nothing finds room any more in files whose paths end so, not even what is written over what is there: a full file system that
    /// copies on writing.
    pub(super) full_for: Option<&'static str>,
}

/// What becomes of all that a failed flush was to write. In any case the program reads it as written until the next start, and it is
/// not written again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum FailedSync {
    /// It is lost.
    #[default]
    Loses,
    /// It may get to the disk all the same, later.
    MayWrite,
    /// Each write is there or lost, by chance.
    WritesSome,
    /// It is lost, and the blocks it was for hold something else.
    Spoils,
}

type FileId = usize;

#[derive(Clone, Debug)]
enum Edit {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Clone, Debug)]
enum Step {
    Edit(FileId, Edit),
    Sync(FileId),
    Create(PathBuf, FileId),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
    SyncFolder(PathBuf),
}

#[derive(Clone, Debug, Default)]
struct Content {
    octets: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Edit>,
    /// Those that take room: a file has holes until they are written.
    blocks: BTreeSet<u64>,
}

impl Content {
    fn edit(&mut self, edit: Edit) {
        match &edit {
            Edit::Write(offset, data) => {
                let end = offset + data.len() as u64;
                self.blocks.extend(offset / BLOCK..end.div_ceil(BLOCK));
            }
            Edit::Length(length) => drop(self.blocks.split_off(&length.div_ceil(BLOCK))),
        }
        apply(&mut self.octets, &edit);
        self.pending.push(edit);
    }

    fn sync(&mut self) {
        for edit in self.pending.drain(..) {
            apply(&mut self.durable, &edit);
        }
    }

    fn fail_sync(&mut self, failed: FailedSync, random: &mut fastrand::Rng) {
        if failed == FailedSync::MayWrite {
            return;
        }
        for edit in self.pending.drain(..) {
            match (failed, &edit) {
                (FailedSync::WritesSome, edit) if random.bool() => apply(&mut self.durable, edit),
                (FailedSync::Spoils, Edit::Write(offset, data)) => {
                    let first = (offset / BLOCK * BLOCK) as usize;
                    let end = (offset + data.len() as u64).next_multiple_of(BLOCK) as usize;
                    let end = end.min(self.durable.len());
                    self.durable.get_mut(first..end).unwrap_or_default().fill(0xe7);
                }
                _ => {}
            }
        }
    }
}

fn apply(octets: &mut Vec<u8>, edit: &Edit) {
    match edit {
        Edit::Length(length) => octets.resize(*length as usize, 0),
        Edit::Write(offset, data) => {
            let (start, end) = (*offset as usize, *offset as usize + data.len());
            octets.resize(octets.len().max(end), 0);
            octets[start..end].copy_from_slice(data);
        }
    }
}

/// What is on the disk, and what only the running program sees.
#[derive(Clone, Debug, Default)]
struct Image {
    files: Vec<Content>,
    names: BTreeMap<PathBuf, FileId>,
    durable_names: BTreeMap<PathBuf, FileId>,
    pending_names: Vec<Naming>,
}

/// Names that change together, in one folder.
type Naming = Vec<(PathBuf, Option<FileId>)>;

impl Image {
    fn take(&mut self, step: Step) {
        match step {
            Step::Edit(file, edit) => self.files[file].edit(edit),
            Step::Sync(file) => self.files[file].sync(),
            Step::Create(path, file) => {
                self.files.resize_with(self.files.len().max(file + 1), Content::default);
                self.names.insert(path.clone(), file);
                self.pending_names.push(vec![(path, Some(file))]);
            }
            Step::Remove(path) => {
                self.names.remove(&path);
                self.pending_names.push(vec![(path, None)]);
            }
            Step::Rename(from, to) => {
                if let Some(file) = self.names.remove(&from) {
                    self.names.insert(to.clone(), file);
                    self.pending_names.push(vec![(from, None), (to, Some(file))]);
                }
            }
            Step::SyncFolder(folder) => {
                let there = self.take_namings(&folder);
                set_names(&mut self.durable_names, there);
            }
        }
    }

    /// Those in a folder that are not durable yet.
    fn take_namings(&mut self, folder: &Path) -> Vec<Naming> {
        let is_there = |(path, _): &(PathBuf, _)| path.parent() == Some(folder);
        let (there, elsewhere) = self.pending_names.drain(..).partition(|naming| naming.iter().any(is_there));
        self.pending_names = elsewhere;
        there
    }

    fn fail_sync_folder(&mut self, folder: &Path, failed: FailedSync, random: &mut fastrand::Rng) {
        if failed == FailedSync::MayWrite {
            return;
        }
        let mut there = self.take_namings(folder);
        there.retain(|_| failed == FailedSync::WritesSome && random.bool());
        set_names(&mut self.durable_names, there);
    }

    /// As it is found after a power cut.
    fn reboot(&self, survival: Survival, random: &mut fastrand::Rng) -> Self {
        let mut names = self.durable_names.clone();
        let kept = self.pending_names.iter().filter(|_| survival.keeps(random)).cloned().collect();
        set_names(&mut names, kept);
        let mut files = Vec::new();
        for name in names.values_mut() {
            let content = &self.files[*name];
            let mut octets = content.durable.clone();
            for (at, edit) in content.pending.iter().enumerate() {
                if !survival.keeps(random) {
                    continue;
                }
                let is_last = at + 1 == content.pending.len();
                match edit {
                    Edit::Write(offset, data)
                        if is_last && matches!(survival, Survival::Torn | Survival::Some) =>
                    {
                        let torn = data[..random.usize(0..=data.len())].to_vec();
                        apply(&mut octets, &Edit::Write(*offset, torn));
                    }
                    edit => apply(&mut octets, edit),
                }
            }
            let blocks = (0..(octets.len() as u64).div_ceil(BLOCK)).collect();
            *name = files.len();
            files.push(Content { durable: octets.clone(), octets, pending: Vec::new(), blocks });
        }
        Self { files, durable_names: names.clone(), names, pending_names: Vec::new() }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|file| self.files[*file].blocks.len() as u64 * BLOCK).sum()
    }
}

fn set_names(names: &mut BTreeMap<PathBuf, FileId>, namings: Vec<Naming>) {
    for (path, file) in namings.into_iter().flatten() {
        match file {
            Some(file) => drop(names.insert(path, file)),
            None => drop(names.remove(&path)),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    start: Image,
    image: Image,
    history: Vec<Step>,
    plan: Plan,
    locked: BTreeSet<PathBuf>,
    syncs: usize,
    failed_flush_of: Option<PathBuf>,
}

fn ends(path: &Path, ending: &str) -> bool {
    path.to_string_lossy().ends_with(ending)
}

impl State {
    fn has_power(&self) -> io::Result<()> {
        let off = self.plan.off_at.is_some_and(|at| self.history.len() >= at);
        if off { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    fn step(&mut self, step: Step) -> io::Result<()> {
        self.has_power()?;
        let number = self.history.len();
        if matches!(step, Step::Sync(_) | Step::SyncFolder(_)) {
            self.syncs += 1;
            if self.fails(&step) {
                self.fail_sync(&step);
                return Err(io::Error::other("input/output error"));
            }
        }
        let (step, done) = match step {
            Step::Edit(file, Edit::Write(offset, data)) => {
                let fits = self.fitting(file, offset, data.len());
                let (part, done) = if self.plan.short_at == Some(number) {
                    (data.len() / 2, Err(io::Error::other("a short write")))
                } else if fits < data.len() {
                    (fits, Err(ErrorKind::StorageFull.into()))
                } else {
                    (data.len(), Ok(()))
                };
                (Step::Edit(file, Edit::Write(offset, data[..part].to_vec())), done)
            }
            step => (step, Ok(())),
        };
        self.history.push(step.clone());
        self.image.take(step);
        done
    }

    fn path_of(&self, file: FileId) -> Option<&Path> {
        self.image.names.iter().find(|(_, id)| **id == file).map(|(path, _)| path.as_path())
    }

    /// Whether this flush is to fail.
    fn fails(&mut self, sync: &Step) -> bool {
        let path = match sync {
            Step::SyncFolder(folder) => Some(folder.clone()),
            Step::Sync(file) => self.path_of(*file).map(Path::to_owned),
            _ => None,
        };
        let is_it = |ending| path.as_ref().is_some_and(|path| ends(path, ending));
        let is_named = self.plan.fail_sync.is_some_and(is_it);
        if is_named {
            self.plan.fail_sync = None;
        }
        let fails = is_named || self.plan.fail_sync_at == Some(self.syncs);
        if fails {
            self.failed_flush_of = path;
        }
        fails
    }

    fn fail_sync(&mut self, sync: &Step) {
        let failed = self.plan.failed_sync;
        let mut random = fastrand::Rng::with_seed(self.syncs as u64);
        match sync {
            Step::Sync(file) => self.image.files[*file].fail_sync(failed, &mut random),
            Step::SyncFolder(folder) => self.image.fail_sync_folder(folder, failed, &mut random),
            _ => {}
        }
    }

    /// How much of a write there is room for.
    fn fitting(&self, file: FileId, offset: u64, length: usize) -> usize {
        if self.plan.full_for.is_some_and(|ending| self.path_of(file).is_some_and(|path| ends(path, ending)))
        {
            return 0;
        }
        let Some(capacity) = self.plan.capacity else { return length };
        let mut free = capacity.saturating_sub(self.image.used()) / BLOCK;
        let end = offset + length as u64;
        for block in offset / BLOCK..end.div_ceil(BLOCK) {
            if self.image.files[file].blocks.contains(&block) {
                continue;
            }
            if free == 0 {
                return (block * BLOCK).saturating_sub(offset) as usize;
            }
            free -= 1;
        }
        length
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(image: Image) -> Self {
        let state = State { start: image.clone(), image, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    pub(super) fn plan(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.state().plan);
    }

    pub(super) fn steps(&self) -> usize {
        self.state().history.len()
    }

    pub(super) fn syncs(&self) -> usize {
        self.state().syncs
    }

    /// Of what the last flush failed that did.
    pub(super) fn failed_flush_of(&self) -> Option<PathBuf> {
        self.state().failed_flush_of.clone()
    }

    /// Octets that files take.
    pub(super) fn used(&self) -> u64 {
        self.state().image.used()
    }

    /// As found after a power cut now.
    pub(super) fn reboot(&self, survival: Survival, seed: u64) -> Self {
        Self::of(self.state().image.reboot(survival, &mut fastrand::Rng::with_seed(seed)))
    }

    /// The disk after each number of steps.
    pub(super) fn replay(&self) -> Replay {
        let state = self.state();
        Replay { image: state.start.clone(), steps: state.history.clone().into_iter() }
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.state().image.names.keys().cloned().collect()
    }

    pub(super) fn content(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        state.image.files[state.image.names[path]].octets.clone()
    }

    pub(super) fn flip(&self, path: &Path, offset: usize, bit: u8) {
        let mut state = self.state();
        let file = state.image.names[path];
        let content = &mut state.image.files[file];
        content.octets[offset] ^= 1 << bit;
        if let Some(octet) = content.durable.get_mut(offset) {
            *octet ^= 1 << bit;
        }
    }
}

pub(super) struct Replay {
    image: Image,
    steps: std::vec::IntoIter<Step>,
}

impl Replay {
    /// `false`: there is no further step.
    pub(super) fn advance(&mut self) -> bool {
        let step = self.steps.next();
        let more = step.is_some();
        step.into_iter().for_each(|step| self.image.take(step));
        more
    }

    pub(super) fn at(mut self, steps: usize) -> Self {
        (0..steps).for_each(|_| assert!(self.advance()));
        self
    }

    pub(super) fn reboot(&self, survival: Survival, seed: u64) -> Disk {
        Disk::of(self.image.reboot(survival, &mut fastrand::Rng::with_seed(seed)))
    }
}

#[derive(Debug)]
struct SimulatedFile {
    disk: Disk,
    id: FileId,
}

impl FileSystem for Disk {
    fn create_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        let state = self.state();
        state.has_power()?;
        let image = &state.image;
        let inside = image.names.iter().filter(|(path, _)| path.parent() == Some(folder));
        Ok(inside.map(|(path, file)| (path.clone(), image.files[*file].octets.len() as u64)).collect())
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn OpenFile>> {
        let mut state = self.state();
        state.has_power()?;
        let id = match state.image.names.get(path).copied() {
            Some(id) if mode == Mode::Fresh => {
                state.step(Step::Edit(id, Edit::Length(0)))?;
                id
            }
            Some(id) => id,
            None if mode == Mode::Read => return Err(ErrorKind::NotFound.into()),
            None => {
                let id = state.image.files.len();
                state.step(Step::Create(path.to_owned(), id))?;
                id
            }
        };
        Ok(Arc::new(SimulatedFile { disk: self.clone(), id }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        if !state.image.names.contains_key(path) {
            return Err(ErrorKind::NotFound.into());
        }
        state.step(Step::Remove(path.to_owned()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        if !state.image.names.contains_key(from) {
            return Err(ErrorKind::NotFound.into());
        }
        state.step(Step::Rename(from.to_owned(), to.to_owned()))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.state().step(Step::SyncFolder(folder.to_owned()))
    }

    fn lock(&self, folder: &Path) -> io::Result<Box<dyn FolderLock>> {
        if self.state().locked.insert(folder.to_owned()) {
            Ok(Box::new(Locked(self.clone(), folder.to_owned())))
        } else {
            Err(ErrorKind::WouldBlock.into())
        }
    }

    /// Always the same, so that a run can be repeated to the octet.
    fn draw(&self) -> u128 {
        0x7369_6d75_6c61_7465_6420_6469_736b_2101
    }
}

struct Locked(Disk, PathBuf);

impl FolderLock for Locked {
    fn holds(&self, _: &Path) -> bool {
        true
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.0.state().locked.remove(&self.1);
    }
}

impl OpenFile for SimulatedFile {
    fn length(&self) -> io::Result<u64> {
        let state = self.disk.state();
        state.has_power()?;
        Ok(state.image.files[self.id].octets.len() as u64)
    }

    fn set_length(&self, octets: u64) -> io::Result<()> {
        self.disk.state().step(Step::Edit(self.id, Edit::Length(octets)))
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.state();
        state.has_power()?;
        let octets = &state.image.files[self.id].octets;
        let end = (offset as usize).saturating_add(out.len());
        let part = octets.get(offset as usize..end).ok_or(ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.disk.state().step(Step::Edit(self.id, Edit::Write(offset, data.to_vec())))
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.state().step(Step::Sync(self.id))
    }

    fn is_at(&self, path: &Path) -> bool {
        self.disk.state().image.names.get(path) == Some(&self.id)
    }
}
