//! Bodies on disk: append-only files of records.
//!
//! A file starts with a header: 8 octets of magic, its number (u64, little endian as all numbers here), the store's id (u128),
//! CRC-32 of these (u32). Records follow: magic (4 octets), message id (16), body length (u32), CRC-32 of id, length and
//! body (u32), the number of the commit it was written for (u64), CRC-32 of these (u32), body.
//! Which records are alive is known to the metadata alone; what a crash left behind in a file is just never alive.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::message::MessageId;
use crate::storage::StorageErrorKind;
use crate::storage::rows::Result;

use super::aside::{ASIDE, Aside};
use super::codec::{Location, checksum};
use super::error::{self, corrupt};
use super::files::{FileSystem, Mode, OpenFile};
use super::mark::Mark;
use super::pairing::Pairing;

const FILE_MAGIC: [u8; 8] = *b"prbody\0\x01";
pub(super) const FILE_HEADER: u64 = 36;
const RECORD_MAGIC: [u8; 4] = *b"\xb0dy\x01";
pub(super) const RECORD_HEADER: usize = 40;
/// Files kept open for reading.
const OPEN_FILES: usize = 32;

/// The start of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) id: MessageId,
    pub(super) length: u32,
    /// Of id, length and body.
    checksum: u32,
    /// The number of the commit that it was written for.
    pub(super) commit: u64,
}

impl RecordHeader {
    fn new(id: MessageId, body: &[u8], commit: u64) -> Self {
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        Self { id, length, checksum: body_checksum(id, length, body), commit }
    }

    fn to_bytes(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(RECORD_HEADER);
        bytes.extend_from_slice(&RECORD_MAGIC);
        bytes.extend_from_slice(self.id.as_uuid().as_bytes());
        bytes.extend_from_slice(&self.length.to_le_bytes());
        bytes.extend_from_slice(&self.checksum.to_le_bytes());
        bytes.extend_from_slice(&self.commit.to_le_bytes());
        let sealed = checksum(&[&bytes]);
        bytes.extend_from_slice(&sealed.to_le_bytes());
        bytes.freeze()
    }

    /// `None`: there is none, or it is damaged.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let rest = sealed(bytes)?.strip_prefix(&RECORD_MAGIC)?;
        let (id, rest) = rest.split_first_chunk::<16>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (checksum, rest) = rest.split_first_chunk::<4>()?;
        let (commit, _) = rest.split_first_chunk::<8>()?;
        let id = MessageId::from_uuid(uuid::Uuid::from_bytes(*id));
        let (length, checksum) = (u32::from_le_bytes(*length), u32::from_le_bytes(*checksum));
        Some(Self { id, length, checksum, commit: u64::from_le_bytes(*commit) })
    }

    fn matches(self, id: MessageId, body: &[u8]) -> bool {
        self.id == id
            && self.length as usize == body.len()
            && self.checksum == body_checksum(id, self.length, body)
    }
}

fn body_checksum(id: MessageId, length: u32, body: &[u8]) -> u32 {
    checksum(&[id.as_uuid().as_bytes(), &length.to_le_bytes(), body])
}

/// What comes before the CRC-32 of it, if that matches.
fn sealed(bytes: &[u8]) -> Option<&[u8]> {
    let (rest, seal) = bytes.split_last_chunk::<4>()?;
    (checksum(&[rest]) == u32::from_le_bytes(*seal)).then_some(rest)
}

fn file_header(segment: u64, store: u128) -> Vec<u8> {
    let mut header = [&FILE_MAGIC[..], &segment.to_le_bytes(), &store.to_le_bytes()].concat();
    header.extend(checksum(&[&header]).to_le_bytes());
    header
}

/// Whose file it is. `None`: its header is damaged, or that of another file.
fn store_in(header: &[u8], segment: u64) -> Option<u128> {
    let rest = sealed(header)?.strip_prefix(&FILE_MAGIC)?.strip_prefix(&segment.to_le_bytes())?;
    Some(u128::from_le_bytes(rest.try_into().ok()?))
}

pub(super) fn path_of(folder: &Path, segment: u64) -> PathBuf {
    folder.join(format!("{segment:016x}.bodies"))
}

/// The number in the name of a body file.
pub(super) fn number_of(path: &Path) -> Option<u64> {
    number_in(path, "bodies")
}

pub(super) fn number_in(path: &Path, extension: &str) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(extension)?.strip_suffix('.')?;
    let is_hex = name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hex { u64::from_str_radix(name, 16).ok() } else { None }
}

/// Appends bodies; used by one writer at a time.
#[derive(Debug)]
pub(super) struct SegmentWriter {
    files: Arc<dyn FileSystem>,
    folder: PathBuf,
    full_size: u64,
    /// As of the last commit.
    pairing: Pairing,
    next: u64,
    /// Files up to this number may hold bodies that the metadata has lost.
    kept: u64,
    /// Made when a flush has failed.
    unflushed: Option<Arc<Mark>>,
    current: Option<Current>,
    pending: Vec<Bytes>,
    pending_octets: u64,
    /// The sizes of all files: a few octets for each `full_size` octets stored.
    sizes: BTreeMap<u64, u64>,
    total: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Current {
    segment: u64,
    file: Arc<dyn OpenFile>,
    length: u64,
}

impl SegmentWriter {
    /// Continues in a new file: the end of the last one may be what a crash left. No number is given twice.
    pub(super) fn new(
        folder: PathBuf,
        options: &super::DiskOptions,
        sizes: BTreeMap<u64, u64>,
        pairing: Pairing,
        total: Arc<AtomicU64>,
    ) -> Self {
        total.store(sizes.values().sum(), Ordering::Relaxed);
        let last = sizes.keys().next_back().map_or(pairing.segment, |last| pairing.segment.max(*last));
        Self {
            files: options.files.clone(),
            folder,
            full_size: options.segment_size,
            pairing,
            next: last.saturating_add(1),
            kept: 0,
            unflushed: None,
            current: None,
            pending: Vec::new(),
            pending_octets: 0,
            sizes,
            total,
        }
    }

    /// Deletes no file up to this number, and gives no number of a file that was set aside.
    pub(super) fn keeping(mut self, kept: u64, aside: &Aside) -> Self {
        self.kept = kept;
        self.next = self.next.max(aside.last.map_or(0, |last| last.saturating_add(1)));
        self
    }

    /// Makes this mark when a flush has failed.
    pub(super) fn marking(mut self, unflushed: Arc<Mark>) -> Self {
        self.unflushed = Some(unflushed);
        self
    }

    /// No damage can have hidden anything in it.
    pub(super) fn may_delete(&self, segment: u64) -> bool {
        segment > self.kept
    }

    /// The file that is being written, or will be.
    pub(super) fn writing(&self) -> u64 {
        self.end().0
    }

    pub(super) fn sizes(&self) -> &BTreeMap<u64, u64> {
        &self.sizes
    }

    /// Closes the current file if it is full, or in any case if `always`. Returns the one that was closed.
    pub(super) fn seal(&mut self, always: bool) -> Option<u64> {
        let full = self.current.as_ref().is_some_and(|current| always || current.length >= self.full_size);
        if full { self.current.take().map(|current| current.segment) } else { None }
    }

    /// Refuses if the file that is being written is not the one of its name any more, or was cut short. Asks the file system.
    pub(super) fn check(&self) -> Result<()> {
        let Some(current) = &self.current else { return Ok(()) };
        let path = path_of(&self.folder, current.segment);
        error::as_written(&*current.file, &path, current.length)
    }

    /// Adds a body to what the next [`SegmentWriter::flush`] writes.
    pub(super) fn append(&mut self, id: MessageId, body: &Bytes) -> Location {
        self.append_as(RecordHeader::new(id, body, 0), body.clone())
    }

    /// As [`SegmentWriter::append`], with the header that the body has elsewhere: a damaged one stays damaged.
    pub(super) fn append_as(&mut self, header: RecordHeader, body: Bytes) -> Location {
        let header = RecordHeader { commit: self.pairing_after().commit, ..header };
        let (segment, offset) = self.end();
        self.add(header.to_bytes());
        self.add(body);
        Location { segment, offset, length: header.length }
    }

    /// What the metadata is to say about body files once what was appended is committed.
    pub(super) fn pairing_after(&self) -> Pairing {
        let Pairing { segment, length, .. } = self.pairing;
        let (segment, length) = if self.pending.is_empty() { (segment, length) } else { self.end() };
        Pairing { commit: self.pairing.commit.saturating_add(1), segment, length, ..self.pairing }
    }

    fn end(&self) -> (u64, u64) {
        let (segment, length) = match &self.current {
            Some(current) => (current.segment, current.length),
            None => (self.next, FILE_HEADER),
        };
        (segment, length + self.pending_octets)
    }

    fn add(&mut self, bytes: Bytes) {
        self.pending_octets += bytes.len() as u64;
        self.pending.push(bytes);
    }

    /// Forgets what was not flushed.
    pub(super) fn rollback(&mut self) {
        self.pending.clear();
        self.pending_octets = 0;
    }

    /// Up to where the last file is written.
    pub(super) fn written(&self) -> Option<(u64, u64)> {
        self.current.as_ref().map(|current| (current.segment, current.length))
    }

    /// Gives back what was written since [`SegmentWriter::written`]; nobody knows of it.
    pub(super) fn take_back(&mut self, written: Option<(u64, u64)>) {
        let Some(current) = &mut self.current else { return };
        // A file that was begun since is kept, empty, and continued.
        let kept = match written {
            Some((segment, length)) if segment == current.segment => length,
            _ => FILE_HEADER,
        };
        let Some(octets) = current.length.checked_sub(kept).filter(|octets| *octets > 0) else { return };
        // What stays if this fails is overwritten by the next flush.
        let _ = current.file.set_length(kept);
        current.length = kept;
        self.total.fetch_sub(octets, Ordering::Relaxed);
        self.sizes.insert(current.segment, kept);
    }

    /// Writes all that was appended and makes it durable, so that it can be committed. To be called before each commit;
    /// the answer is for [`SegmentWriter::committed`] after it.
    ///
    /// # Errors
    /// `OutcomeUnknown` if making it durable failed: then nothing may be written again. Else nothing was written.
    pub(super) fn flush(&mut self) -> Result<Pairing> {
        let after = self.pairing_after();
        if !self.pending.is_empty() {
            self.write()?;
        }
        Ok(after)
    }

    /// The metadata says so now. A commit that found no room leaves its number to the next.
    pub(super) fn committed(&mut self, pairing: Pairing) {
        self.pairing = pairing;
    }

    /// What the metadata says about body files since the last commit.
    pub(super) fn pairing(&self) -> Pairing {
        self.pairing
    }

    fn write(&mut self) -> Result<()> {
        let created = self.current.is_none();
        if created {
            self.create()?;
        }
        let Some(current) = &mut self.current else { return Ok(()) };
        let path = path_of(&self.folder, current.segment);
        if let Err(error) = write_pending(&*current.file, current.length, &self.pending) {
            if created {
                self.current = None;
                let _ = self.files.remove(&path);
            } else {
                // Gives the room back; what stays if this fails is overwritten by the next flush.
                let _ = current.file.set_length(current.length);
            }
            return Err(error::io("writing bodies to", &path, error));
        }
        let folder = || if created { self.files.sync_folder(&self.folder) } else { Ok(()) };
        let synced = current.file.sync().and_then(|()| folder());
        synced.map_err(|error| {
            if let Some(unflushed) = &self.unflushed {
                unflushed.make();
            }
            error::flush("flushing bodies", error)
        })?;
        current.length += self.pending_octets;
        let grown = if created { current.length } else { self.pending_octets };
        self.total.fetch_add(grown, Ordering::Relaxed);
        self.sizes.insert(current.segment, current.length);
        self.rollback();
        Ok(())
    }

    fn create(&mut self) -> Result<()> {
        let segment = self.next;
        let path = path_of(&self.folder, segment);
        // A file of this number can only be what an earlier failure left.
        let begun = self.files.open(&path, Mode::Fresh).and_then(|file| {
            file.write_all_at(&file_header(segment, self.pairing.store), 0)?;
            Ok(file)
        });
        let file = begun.map_err(|error| {
            let _ = self.files.remove(&path);
            error::io("creating", &path, error)
        })?;
        self.current = Some(Current { segment, file, length: FILE_HEADER });
        self.next += 1;
        Ok(())
    }

    /// Gives up files in which nothing is known to be alive: deletes them, or keeps them under another name where the metadata
    /// may have lost what is. One with which that fails is found at the next opening.
    pub(super) fn delete(&mut self, segments: &[u64], bodies: &Bodies) {
        for segment in segments {
            let path = path_of(&self.folder, *segment);
            let given_up = if self.may_delete(*segment) {
                self.files.remove(&path)
            } else {
                let aside = path.with_extension(ASIDE);
                tracing::warn!(path = %aside.display(), "a body file is kept, as damage may have hidden bodies in it");
                self.files.rename(&path, &aside)
            };
            // After it lost its name: else whoever reads meanwhile would open it once more, and its room be kept.
            bodies.close(*segment);
            match given_up {
                Ok(()) => {
                    let size = self.sizes.remove(segment).unwrap_or_default();
                    self.total.fetch_sub(size, Ordering::Relaxed);
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "can not give up a body file"),
            }
        }
        if !segments.is_empty()
            && let Err(error) = self.files.sync_folder(&self.folder)
        {
            tracing::warn!(path = %self.folder.display(), %error, "can not flush the folder of bodies");
        }
    }
}

/// Writes one after the other from an offset on.
struct From<'a> {
    file: &'a dyn OpenFile,
    offset: u64,
}

impl Write for From<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(data, self.offset)?;
        self.offset += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_pending(file: &dyn OpenFile, at: u64, pending: &[Bytes]) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(256 * 1024, From { file, offset: at });
    for bytes in pending {
        out.write_all(bytes)?;
    }
    out.flush()
}

/// Reads bodies; shared by all.
#[derive(Debug)]
pub(super) struct Bodies {
    files: Arc<dyn FileSystem>,
    folder: PathBuf,
    /// The last used first.
    open: Mutex<VecDeque<(u64, Arc<dyn OpenFile>)>>,
    /// Files that were there at opening, and how many octets they had.
    there: BTreeMap<u64, u64>,
    /// Files from this number on were made since.
    made: AtomicU64,
}

impl Bodies {
    pub(super) fn new(files: Arc<dyn FileSystem>, folder: PathBuf, there: &BTreeMap<u64, u64>) -> Self {
        Self { files, folder, open: Mutex::default(), there: there.clone(), made: AtomicU64::default() }
    }

    /// From this number on files are made.
    pub(super) fn begin(&self, made: u64) {
        self.made.store(made, Ordering::Release);
    }

    /// It was not there at opening.
    pub(super) fn is_lost(&self, body: Location) -> bool {
        let had = self.there.get(&body.segment).copied().unwrap_or_default();
        body.segment < self.made.load(Ordering::Acquire) && had < body.end()
    }

    /// Reads and checks a body. `None`: its file is gone or ends before it does, so it has moved or died.
    pub(super) fn read(&self, id: MessageId, location: Location) -> Result<Option<Bytes>> {
        let octets = RECORD_HEADER + location.length as usize;
        let Some(mut record) = self.read_at(location.segment, location.offset, octets)? else {
            return Ok(None);
        };
        let body = record.split_off(RECORD_HEADER);
        match RecordHeader::parse(&record) {
            Some(header) if header.matches(id, &body) => Ok(Some(body)),
            _ => {
                let path = self.path_of(location.segment);
                let Location { offset, .. } = location;
                Err(corrupt(format!("the body of message {id} in {} at {offset} is damaged", path.display())))
            }
        }
    }

    /// The records of a file from an offset on, with their offsets, up to what is none or the file's `size`. Only their
    /// headers are read.
    pub(super) fn records(
        &self,
        segment: u64,
        from: u64,
        size: u64,
    ) -> impl Iterator<Item = Result<(u64, RecordHeader)>> {
        let mut next = Some(from);
        std::iter::from_fn(move || {
            let offset = next.take().filter(|next| next.saturating_add(RECORD_HEADER as u64) <= size)?;
            let header = match self.read_at(segment, offset, RECORD_HEADER).transpose()? {
                Ok(bytes) => RecordHeader::parse(&bytes)?,
                Err(error) => return Some(Err(error)),
            };
            next = Some(offset.saturating_add(RECORD_HEADER as u64 + u64::from(header.length)));
            Some(Ok((offset, header)))
        })
    }

    /// Whether there is a record of a message's body, by its header.
    pub(super) fn has_record(&self, id: MessageId, location: Location) -> Result<bool> {
        match self.read_at(location.segment, location.offset, RECORD_HEADER) {
            Err(error) if error.kind() != StorageErrorKind::Corrupt => Err(error),
            Err(_) | Ok(None) => Ok(false),
            Ok(Some(header)) => Ok(RecordHeader::parse(&header)
                .is_some_and(|header| header.id == id && header.length == location.length)),
        }
    }

    /// Whose file it is. `None`: that can not be read.
    pub(super) fn store_of(&self, segment: u64) -> Option<u128> {
        let header = self.read_at(segment, 0, FILE_HEADER as usize).ok().flatten()?;
        store_in(&header, segment)
    }

    pub(super) fn path_of(&self, segment: u64) -> PathBuf {
        path_of(&self.folder, segment)
    }

    /// Octets as they are. `None`: the file is gone, or ends before they do.
    pub(super) fn read_at(&self, segment: u64, offset: u64, octets: usize) -> Result<Option<Bytes>> {
        let path = self.path_of(segment);
        let file = match self.file(segment, &path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error::io("opening", &path, error)),
        };
        let mut read = BytesMut::zeroed(octets);
        match file.read_exact_at(&mut read, offset) {
            Ok(()) => Ok(Some(read.freeze())),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                // A whole one may be put in its place.
                self.close(segment);
                Ok(None)
            }
            Err(error) => Err(error::io("reading", &path, error)),
        }
    }

    fn file(&self, segment: u64, path: &Path) -> io::Result<Arc<dyn OpenFile>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let known = open.iter().position(|(number, _)| *number == segment).and_then(|at| open.remove(at));
        let entry = match known {
            Some(entry) => entry,
            None => (segment, self.files.open(path, Mode::Read)?),
        };
        let file = entry.1.clone();
        open.push_front(entry);
        open.truncate(OPEN_FILES);
        Ok(file)
    }

    #[cfg(test)]
    pub(super) fn open_files(&self) -> Vec<u64> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().map(|(segment, _)| *segment).collect()
    }

    fn close(&self, segment: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(number, _)| *number != segment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_tell_damage() {
        let id = MessageId::from_uuid(uuid::Uuid::from_u128(7));
        let header = RecordHeader::new(id, b"body", 1 << 40);
        let bytes = header.to_bytes();
        assert_eq!((bytes.len(), RecordHeader::parse(&bytes)), (RECORD_HEADER, Some(header)));
        assert!(header.matches(id, b"body"));
        assert!(!header.matches(id, b"bodi") && !header.matches(id, b"body2"));
        assert_eq!(RecordHeader::parse(&bytes[..20]), None);
        assert_eq!(RecordHeader::parse(&[0; RECORD_HEADER]), None);
        let of_file = file_header(7, 1 << 100);
        assert_eq!((of_file.len() as u64, store_in(&of_file, 7)), (FILE_HEADER, Some(1 << 100)));
        assert_eq!(store_in(&of_file, 8), None, "that of another file");
        for (whole, is_taken) in [
            (&bytes[..], &(|octets: &[u8]| RecordHeader::parse(octets).is_some()) as &dyn Fn(&[u8]) -> bool),
            (&of_file, &|octets: &[u8]| store_in(octets, 7).is_some()),
        ] {
            for bit in 0..whole.len() * 8 {
                let mut flipped = whole.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(!is_taken(&flipped), "bit {bit}");
            }
        }
    }

    #[test]
    fn only_our_own_names_are_numbers() {
        let folder = Path::new("bodies");
        assert_eq!(number_of(&path_of(folder, u64::MAX)), Some(u64::MAX));
        for name in ["x.bodies", "0000000000000001", "+000000000000001.bodies", "1.bodies"] {
            assert_eq!(number_of(&folder.join(name)), None, "{name}");
        }
    }
}
