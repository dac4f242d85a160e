//! The journal on disk: frames with a checksum. The first holds all tables, each further one a batch of entries.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use postrider::storage::{StorageError, StorageErrorKind};

use crate::tables::{Entry, Tables};

/// Octets before the content of a frame: its length and its checksum.
const HEADER: usize = 12;

/// Whether changes are flushed to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Before they are acknowledged: they survive a crash of the machine.
    Always,
    /// Whenever the system does it: they survive a crash of the process. For tests, in which nothing else crashes.
    Never,
}

impl Flush {
    fn file(self, file: &File) -> io::Result<()> {
        if self == Self::Always { file.sync_data() } else { Ok(()) }
    }
}

/// A journal that is being written.
pub(crate) struct Journal {
    folder: PathBuf,
    flush: Flush,
    file: File,
    length: u64,
    /// Its length when it was last written anew.
    at_start: u64,
}

impl Journal {
    /// Writes a new journal beside the old one and puts it in its place, whole.
    pub(crate) fn start(folder: &Path, flush: Flush, tables: &Tables) -> io::Result<Self> {
        let (new, journal) = (folder.join("journal.new"), folder.join("journal"));
        let content = postcard::to_stdvec(tables).map_err(io::Error::other)?;
        let frame = frame(&content);
        fs::write(&new, &frame)?;
        let file = OpenOptions::new().append(true).open(&new)?;
        flush.file(&file)?;
        fs::rename(&new, &journal)?;
        flush.file(&File::open(folder)?)?;
        let length = frame.len() as u64;
        Ok(Self { folder: folder.to_owned(), flush, file, length, at_start: length })
    }

    pub(crate) fn start_anew(&mut self, tables: &Tables) -> io::Result<()> {
        *self = Self::start(&self.folder, self.flush, tables)?;
        Ok(())
    }

    pub(crate) fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        let frame = frame(batch);
        self.file.write_all(&frame)?;
        self.flush.file(&self.file)?;
        self.length += frame.len() as u64;
        Ok(())
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// What is gone since it was written anew may be worth as much room, and at least so much.
    pub(crate) fn has_grown(&self, least: u64) -> bool {
        self.length - self.at_start > least.max(self.at_start)
    }
}

/// What a journal says is stored. An end that was not written whole was never acknowledged. A frame that is not as it was
/// written and that others follow is damage.
pub(crate) fn read(journal: &[u8]) -> Result<Tables, StorageError> {
    let damaged = |what| StorageError::new(StorageErrorKind::Corrupt, what);
    let (first, mut rest) = next(journal).ok_or_else(|| damaged("the journal has no beginning"))?;
    let mut tables: Tables = postcard::from_bytes(first)
        .map_err(|error| damaged("the journal's tables can not be read").with_source(error))?;
    while let Some((mut batch, after)) = next(rest) {
        while !batch.is_empty() {
            let (entry, left) = postcard::take_from_bytes::<Entry>(batch)
                .map_err(|error| damaged("an entry of the journal can not be read").with_source(error))?;
            tables.apply(entry);
            batch = left;
        }
        rest = after;
    }
    if is_followed(rest) {
        return Err(damaged("a batch in the middle of the journal is not as it was written"));
    }
    Ok(tables)
}

fn frame(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("a batch is far smaller than 4 GiB");
    [&length.to_le_bytes(), checksum(content).to_le_bytes().as_slice(), content].concat()
}

/// The content of the first frame, and what follows; `None`: it is not there as it was written.
fn next(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = octets.split_at_checked(HEADER)?;
    let length = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
    let (content, rest) = rest.split_at_checked(length)?;
    (checksum(content).to_le_bytes() == header[4..]).then_some((content, rest))
}

/// There is more than this first frame.
fn is_followed(octets: &[u8]) -> bool {
    let Some((header, rest)) = octets.split_at_checked(HEADER) else { return false };
    let length = header[..4].try_into().map_or(0, u32::from_le_bytes);
    rest.len() > length as usize
}

/// FNV-1a.
fn checksum(octets: &[u8]) -> u64 {
    let step = |hash: u64, octet: &u8| (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3);
    octets.iter().fold(0xcbf2_9ce4_8422_2325, step)
}
