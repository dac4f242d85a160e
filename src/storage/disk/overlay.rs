//! Files that are read and not changed: what is written, removed or renamed stays in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::files::{FileSystem, FolderLock, Mode, OpenFile};
use super::lock;

const PAGE: u64 = 4096;

/// The files of a store that is looked at.
#[derive(Debug)]
pub(super) struct Overlay {
    below: Arc<dyn FileSystem>,
    changed: Mutex<Changed>,
}

#[derive(Debug, Default)]
struct Changed {
    /// `None`: it is removed.
    files: BTreeMap<PathBuf, Option<Arc<OverlayFile>>>,
    folders: BTreeSet<PathBuf>,
}

impl Overlay {
    pub(super) fn new(below: Arc<dyn FileSystem>) -> Self {
        Self { below, changed: Mutex::default() }
    }

    fn file(&self, path: &Path) -> io::Result<Arc<OverlayFile>> {
        match lock(&self.changed).files.get(path) {
            Some(Some(file)) => Ok(file.clone()),
            Some(None) => Err(io::ErrorKind::NotFound.into()),
            None => Ok(Arc::new(OverlayFile::over(self.below.open(path, Mode::Read)?)?)),
        }
    }

    fn set(&self, path: &Path, file: Option<Arc<OverlayFile>>) {
        lock(&self.changed).files.insert(path.to_owned(), file);
    }
}

impl FileSystem for Overlay {
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        lock(&self.changed).folders.insert(folder.to_owned());
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        let listed = self.below.list(folder);
        let changed = lock(&self.changed);
        let mut listed = match listed {
            Err(error) if error.kind() == io::ErrorKind::NotFound && changed.folders.contains(folder) => {
                Vec::new()
            }
            listed => listed?,
        };
        listed.retain(|(path, _)| !changed.files.contains_key(path));
        for (path, file) in changed.files.iter().filter(|(path, _)| path.parent() == Some(folder)) {
            if let Some(file) = file {
                listed.push((path.clone(), file.length()?));
            }
        }
        Ok(listed)
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn OpenFile>> {
        let found = self.file(path);
        let file = match (found, mode) {
            (Err(error), Mode::Write | Mode::Fresh) if error.kind() == io::ErrorKind::NotFound => {
                Arc::default()
            }
            (found, _) => found?,
        };
        if mode == Mode::Fresh {
            file.set_length(0)?;
        }
        if mode != Mode::Read {
            self.set(path, Some(file.clone()));
        }
        Ok(file)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.file(path)?;
        self.set(path, None);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let file = self.file(from)?;
        self.set(from, None);
        self.set(to, Some(file));
        Ok(())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    /// Whoever looks at a store has locked it.
    fn lock(&self, _: &Path) -> io::Result<Box<dyn FolderLock>> {
        Ok(Box::new(Unlocked))
    }

    fn draw(&self) -> u128 {
        self.below.draw()
    }
}

struct Unlocked;

impl FolderLock for Unlocked {
    fn holds(&self, _: &Path) -> bool {
        true
    }
}

/// A file that is read; what is written stays in memory.
#[derive(Debug, Default)]
struct OverlayFile {
    below: Option<Arc<dyn OpenFile>>,
    state: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    length: u64,
    /// As much of the file below counts.
    below: u64,
    /// Pages by their numbers.
    pages: BTreeMap<u64, Vec<u8>>,
}

impl OverlayFile {
    fn over(below: Arc<dyn OpenFile>) -> io::Result<Self> {
        let length = below.length()?;
        let state = Written { length, below: length, ..Written::default() };
        Ok(Self { below: Some(below), state: Mutex::new(state) })
    }

    fn read(&self, written: &Written, out: &mut [u8], offset: u64) -> io::Result<()> {
        out.fill(0);
        let there = written.below.saturating_sub(offset).min(out.len() as u64) as usize;
        if let (Some(below), Some(out)) = (&self.below, out.get_mut(..there))
            && there > 0
        {
            below.read_exact_at(out, offset)?;
        }
        for (number, within, from, part) in parts(offset, out.len()) {
            if let Some(page) = written.pages.get(&number)
                && let (Some(out), Some(page)) =
                    (out.get_mut(from..from + part), page.get(within..within + part))
            {
                out.copy_from_slice(page);
            }
        }
        Ok(())
    }
}

/// Each touched page with where the data begins in it, where it does in the data, and how much of it there is.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset.saturating_add(done as u64);
        let within = (at % PAGE) as usize;
        let part = (PAGE as usize - within).min(length.checked_sub(done).filter(|left| *left > 0)?);
        done += part;
        Some((at / PAGE, within, done - part, part))
    })
}

impl OpenFile for OverlayFile {
    fn length(&self) -> io::Result<u64> {
        Ok(lock(&self.state).length)
    }

    fn set_length(&self, octets: u64) -> io::Result<()> {
        let mut written = lock(&self.state);
        written.length = octets;
        written.below = written.below.min(octets);
        drop(written.pages.split_off(&octets.div_ceil(PAGE)));
        if let Some(page) = written.pages.get_mut(&(octets / PAGE))
            && let Some(rest) = page.get_mut((octets % PAGE) as usize..)
        {
            rest.fill(0);
        }
        Ok(())
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let written = lock(&self.state);
        if offset.saturating_add(out.len() as u64) > written.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read(&written, out, offset)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut written = lock(&self.state);
        for (number, within, from, part) in parts(offset, data.len()) {
            let mut page = match written.pages.remove(&number) {
                Some(page) => page,
                None => {
                    let mut page = vec![0; PAGE as usize];
                    self.read(&written, &mut page, number.saturating_mul(PAGE))?;
                    page
                }
            };
            if let (Some(to), Some(data)) = (page.get_mut(within..within + part), data.get(from..from + part))
            {
                to.copy_from_slice(data);
            }
            written.pages.insert(number, page);
        }
        written.length = written.length.max(offset.saturating_add(data.len() as u64));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn is_at(&self, _: &Path) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulated::Disk;
    use super::*;

    #[test]
    fn what_is_written_over_files_is_as_if_it_were_written_to_them() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (disk, plain) = (Disk::default(), Disk::default());
            let paths = ["/s/a", "/s/b", "/s/c"].map(Path::new);
            for path in &paths[..2] {
                let content: Vec<u8> = (0..random.usize(..20_000)).map(|_| random.u8(..)).collect();
                for disk in [&disk, &plain] {
                    disk.open(path, Mode::Write).unwrap().write_all_at(&content, 0).unwrap();
                }
            }
            let before = paths[..2].iter().map(|path| disk.content(path)).collect::<Vec<_>>();
            let overlay = Overlay::new(Arc::new(disk.clone()));
            for step in 0..30 {
                let what = format!("seed {seed}, step {step}");
                let (path, other) = (random.choice(paths).unwrap(), random.choice(paths).unwrap());
                let (kind, at, octets) = (random.u8(..6), random.u64(..20_000), random.usize(..9_000));
                let data: Vec<u8> = (0..octets).map(|_| random.u8(..)).collect();
                let act = |files: &dyn FileSystem| match kind {
                    0 => files.remove(path).is_ok(),
                    1 if path != other => files.rename(path, other).is_ok(),
                    2 => files.open(path, Mode::Fresh).is_ok(),
                    3 => files.open(path, Mode::Write).unwrap().set_length(at).is_ok(),
                    _ => files.open(path, Mode::Write).unwrap().write_all_at(&data, at).is_ok(),
                };
                assert_eq!(act(&overlay), act(&plain), "{what}");
                let state = |files: &dyn FileSystem| {
                    let mut listed = files.list(Path::new("/s")).unwrap();
                    listed.sort();
                    let content = |(path, length): (PathBuf, u64)| {
                        let mut content = vec![0; length as usize];
                        files.open(&path, Mode::Read).unwrap().read_exact_at(&mut content, 0).unwrap();
                        (path, content)
                    };
                    listed.into_iter().map(content).collect::<Vec<_>>()
                };
                assert!(state(&overlay) == state(&plain), "{what}");
            }
            assert!(before == paths[..2].iter().map(|path| disk.content(path)).collect::<Vec<_>>());
        }
    }
}
