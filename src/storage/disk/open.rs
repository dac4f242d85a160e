//! Opening: one process at a time, a known version, and no body files that the metadata does not know.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use redb::{Builder, Database, DatabaseError, ReadableTable, WriteTransaction};
use tokio::sync::Semaphore;

use crate::storage::lease::LeaseTable;
use crate::storage::rows::{Counters, Met, Result, RowsMut};
use crate::storage::{StorageError, StorageErrorKind};

use super::aside::{self, Aside};
use super::backend::{LeftUnless, MetadataFile, Tracked};
use super::closing::Closing;
use super::damage::{Damage, guarded};
use super::error::{self, corrupt, db};
use super::files::{FileSystem, FolderLock, Mode, OpenFile};
use super::mark::Mark;
use super::pairing::Pairing;
use super::reserve::Reserve;
use super::salvage::Salvage;
use super::segment::{Bodies, SegmentWriter, number_of};
use super::table_writer::Writer;
use super::tables::{COUNTERS, KEPT, LANE_NAMES, LANES, META, PAIRING, RECOUNT, SEGMENTS};
use super::unflushed::UNFLUSHED;
use super::writer::{Queue, WriterState};
use super::{DiskOptions, Shared, codec, mend, rebuild, replace, unflushed};

/// The version of the folder's layout.
const FORMAT: u32 = 6;
/// The row of earlier versions has no checksum.
const CHECKSUM_SINCE: u32 = 5;
pub(super) const FORMAT_KEY: &[u8] = b"format";

pub(super) const METADATA: &str = "metadata.redb";
/// The folder of body files.
pub(super) const BODIES: &str = "bodies";
const RESERVE: &str = "reserve";
/// An empty file that is there until a store was opened for the first time: what a crash before that left of the
/// metadata is no store yet and holds nothing.
const UNFINISHED: &str = "unfinished";
/// An empty file that is there once damage was met: the metadata is verified at the next opening, whatever its size.
const SUSPECT: &str = "suspect";

impl Shared {
    /// `checks`: it is only looked at, over an [`Overlay`](super::overlay::Overlay), and refused only if nothing of it can be read.
    ///
    /// The inner error: it is another's store, and nothing of it is changed.
    pub(super) fn open(path: &Path, options: &DiskOptions, checks: bool) -> Met<Self> {
        let folder = path.join(BODIES);
        let files = &options.files;
        let suspicion = path.join(SUSPECT);
        let damage = if checks { Damage::checking() } else { Damage::new(files.clone(), suspicion.clone()) };
        let damage = Arc::new(damage);
        let unflushed = Arc::new(Mark::new(files.clone(), path.join(UNFLUSHED)));
        files.create_folder(path).map_err(|error| error::io("creating", path, error))?;
        let own_folder = Folder::lock(path, &**files)?;
        replace::finish(path, &**files)?;
        let was_unflushed = unflushed.is_there().map_err(|error| error::io("opening", path, error))?;
        if was_unflushed && !checks {
            // Nobody else writes to its bodies by another path.
            let _bodies = match files.list(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                _ => Some(Folder::lock(&folder, &**files)?),
            };
            let again = || unflushed::write_again(path, &**files);
            again().or_else(|error| match error.kind() {
                // Holes take room once they are written: what is set aside is for that too, and is made again.
                StorageErrorKind::Full if files.remove(&path.join(RESERVE)).is_ok() => again(),
                _ => Err(error),
            })?;
        }
        let is_new = is_new(path, &**files)?;
        if is_new {
            begin_metadata(path, &**files)?;
        } else {
            has_bodies(path, &folder, &**files).or_else(|error| match error.kind() {
                StorageErrorKind::Corrupt => damage.refuse(error),
                _ => Err(error),
            })?;
        }
        files.create_folder(&folder).map_err(|error| error::io("creating", &folder, error))?;
        let folders = [own_folder, Folder::lock(&folder, &**files)?];
        let reserve = Arc::new(Reserve::new(files.clone(), path.join(RESERVE), options.reserve));
        if !reserve.ensure() {
            let refusal = reserve.refusal();
            tracing::error!(path = %path.display(), "{refusal}");
        }
        let known = body_files(&**files, &folder)?;
        let octets = Arc::new(AtomicU64::new(0));
        let reader = Bodies::new(files.clone(), folder.clone(), &known);
        let is_suspect = was_unflushed
            || is_there(&**files, &suspicion).map_err(|error| error::io("opening", &suspicion, error))?;
        let aside = aside::aside(&**files, &folder)?;
        let attempt = || {
            let (database, metadata) = open_metadata(path, options, (&reserve, &unflushed), is_suspect)?;
            let new = is_new.then(|| Pairing::new(files.draw()));
            let bodies = |pairing| {
                SegmentWriter::new(folder.clone(), options, known.clone(), pairing, octets.clone())
                    .marking(unflushed.clone())
            };
            // Declared after the database, and so dropped before it.
            let left = LeftUnless::well(&metadata);
            let begun = begin(&database, new, bodies, &reader, &damage, &aside)?;
            left.done(begun.is_ok());
            Ok(begun.map(|state| (database, metadata, state)))
        };
        let mut opened = guarded(METADATA, attempt);
        if let Err(error) = &opened
            && error.kind() == StorageErrorKind::Corrupt
        {
            opened = match rebuild::rebuild(path, options, (&reserve, &unflushed), &damage, error) {
                Ok(Ok(())) => guarded(METADATA, attempt),
                Ok(Err(refused)) => Ok(Err(refused)),
                Err(error) => Err(error),
            };
        }
        let (database, metadata, writer) = match opened.map_err(|error| reserve.explain(error))? {
            Ok(opened) => opened,
            Err(refused) => return Ok(Err(refused)),
        };
        reader.begin(writer.bodies.writing());
        let aside = aside::aside(&**files, &folder)?;
        if let Some(words) = aside.words() {
            damage.remind(corrupt(words));
        }
        if is_suspect {
            damage.unmark().map_err(|error| error::io("removing", &suspicion, error))?;
        }
        // Unless another one has failed meanwhile.
        if was_unflushed && !unflushed.is_made() {
            unflushed.remove().map_err(|error| error::io("removing", &path.join(UNFLUSHED), error))?;
        }
        files.sync_folder(path).map_err(|error| error::io("flushing", path, error))?;
        if is_new {
            let mark = path.join(UNFINISHED);
            files.remove(&mark).map_err(|error| error::io("removing", &mark, error))?;
            files.sync_folder(path).map_err(|error| {
                // It may come back with the next start, when there is mail. So the next opening begins anew.
                let _ = files.open(&mark, Mode::Fresh);
                error::io("flushing", path, error)
            })?;
        }
        let leases = LeaseTable::new(writer.counters.openings);
        Ok(Ok(Self {
            path: path.to_owned(),
            database: RwLock::new(Arc::new(Closing::new(database, damage.clone()))),
            metadata,
            cache_size: options.cache_size,
            small_metadata: options.small_metadata,
            leases: Mutex::new(leases),
            queue: Mutex::new(Queue::default()),
            admission: Arc::new(Semaphore::new(options.waiting_calls)),
            writer: Mutex::new(writer),
            bodies: reader,
            body_octets: octets,
            reserve,
            poisoned: OnceLock::new(),
            damage,
            folders,
        }))
    }
}

/// A folder of a store, which nobody else has while it is held.
pub(super) struct Folder {
    path: PathBuf,
    lock: Box<dyn FolderLock>,
}

impl Folder {
    pub(super) fn lock(path: &Path, files: &dyn FileSystem) -> Result<Self> {
        match files.lock(path) {
            Ok(lock) => Ok(Self { path: path.to_owned(), lock }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let message = format!(
                    "the store in {} is in use: one process, and one handle in it, at a time",
                    path.display()
                );
                Err(StorageError::new(StorageErrorKind::Locked, message))
            }
            Err(error) => Err(error::io("locking", path, error)),
        }
    }

    /// Refuses if its path leads elsewhere by now. Asks the file system.
    pub(super) fn check(&self) -> Result<()> {
        if self.lock.holds(&self.path) {
            return Ok(());
        }
        let message = format!(
            "{} is not the folder that was opened: it was removed, renamed or replaced, put it back",
            self.path.display()
        );
        Err(StorageError::new(StorageErrorKind::Temporary, message))
    }
}

/// Refuses a store whose folder of bodies is gone: each of its messages would bounce for it.
fn has_bodies(path: &Path, folder: &Path, files: &dyn FileSystem) -> Result<()> {
    match files.list(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(corrupt(format!(
            "{} is there and {} is not, without which all its messages would bounce: restore it, or make an empty folder of \
             this name to have them bounce",
            path.join(METADATA).display(),
            folder.display()
        ))),
        listed => listed.map(drop).map_err(|error| error::io("listing", folder, error)),
    }
}

/// Whether a store is to be made: there never was one, or one that was not finished.
///
/// # Errors
/// `Corrupt` if there was one and its metadata is gone: nothing of it is to be deleted for that.
pub(super) fn is_new(path: &Path, files: &dyn FileSystem) -> Result<bool> {
    let name = path.join(METADATA);
    let opening = |error| error::io("opening", &name, error);
    let is_unfinished = is_there(files, &path.join(UNFINISHED)).map_err(opening)?;
    if !is_unfinished && is_there(files, &name).map_err(opening)? {
        let metadata = files.open(&name, Mode::Read).and_then(|file| file.length());
        if metadata.map_err(opening)? > 0 {
            return Ok(false);
        }
    }
    let (lost, left) = match is_unfinished {
        true => ("marked as unfinished", bodies_in(files, &path.join(BODIES))?),
        false => ("missing or empty", left_of_a_store(files, path)?),
    };
    if left.is_empty() {
        return Ok(true);
    }
    Err(corrupt(format!(
        "{} is {lost}, and beside it is what a store leaves: {}. Nothing else leads to the mail of that: restore it, or move \
         the whole folder away to begin anew",
        name.display(),
        left.join(", ")
    )))
}

/// Body files with anything in them.
fn bodies_in(files: &dyn FileSystem, folder: &Path) -> Result<Vec<String>> {
    let listed = listed(files, folder)?.into_iter();
    Ok(listed.filter(|(path, length)| number_of(path).is_some() && *length > 0).filter_map(name_of).collect())
}

/// What a store has in its folder beside the metadata.
fn left_of_a_store(files: &dyn FileSystem, path: &Path) -> Result<Vec<String>> {
    let is_left = |name: &String| {
        [BODIES, RESERVE, SUSPECT, UNFLUSHED].contains(&name.as_str()) || name.starts_with(replace::DAMAGED)
    };
    let mut left: Vec<_> = listed(files, path)?.into_iter().filter_map(name_of).filter(is_left).collect();
    left.sort_unstable();
    Ok(left)
}

fn name_of((path, _): (PathBuf, u64)) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

fn listed(files: &dyn FileSystem, folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    match files.list(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|error| error::io("listing", folder, error)),
    }
}

/// Marks a store that is to be made as unfinished before there is anything else of it, and removes one that never was finished.
fn begin_metadata(path: &Path, files: &dyn FileSystem) -> Result<()> {
    let (name, mark) = (path.join(METADATA), path.join(UNFINISHED));
    let begin = || -> io::Result<()> {
        if !is_there(files, &mark)? {
            files.open(&mark, Mode::Fresh)?;
            // The next opening is to make it anew: after a failed flush it can be there and never get to the disk.
            return files.sync_folder(path).inspect_err(|_| drop(files.remove(&mark)));
        }
        match files.remove(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    };
    begin().map_err(|error| error::io("opening", &name, error))
}

pub(super) fn is_there(files: &dyn FileSystem, path: &Path) -> io::Result<bool> {
    match files.open(path, Mode::Read) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn open_metadata(
    path: &Path,
    options: &DiskOptions,
    (reserve, unflushed): (&Arc<Reserve>, &Arc<Mark>),
    is_suspect: bool,
) -> Result<(Database, Arc<Tracked>)> {
    let name = path.join(METADATA);
    let opening = |error| error::io("opening", &name, error);
    let file = options.files.open(&name, Mode::Write).map_err(opening)?;
    let file = Arc::new(Tracked::new(file, unflushed.clone()).map_err(opening)?);
    let verified = is_suspect
        || file.length().map_err(opening)? <= options.verified_octets
        || !is_sound_at_its_root(&name, file.clone());
    let backend = MetadataFile::new(file.clone(), reserve.clone());
    let opened = database(backend, options.cache_size, verified);
    let database = opened.map_err(|error| match error {
        DatabaseError::Storage(redb::StorageError::Io(error)) if !is_damage(&error) => opening(error),
        error => corrupt(format!("{} is not a readable store: {error}", name.display())).with_source(error),
    })?;
    Ok((database, file))
}

/// Whether what is told of it before any mail is read is as it was written with the last commit: by another record of pages in use redb
/// would write over those that are, and by other rows about body files opening would delete what is alive.
fn is_sound_at_its_root(name: &Path, file: Arc<dyn OpenFile>) -> bool {
    let is_sound = || -> Result<bool> {
        let salvage = Salvage::open(name.to_owned(), file, Arc::default())?;
        Ok(salvage.says_what_is_in_use()?
            && salvage.is_sound(META)?
            && salvage.is_sound(SEGMENTS)?
            && salvage.is_sound(LANES)?
            && salvage.is_sound(LANE_NAMES)?)
    };
    is_sound().unwrap_or_default()
}

pub(super) fn database(
    backend: MetadataFile,
    cache_size: usize,
    verified: bool,
) -> std::result::Result<Database, DatabaseError> {
    Builder::new()
        .set_cache_size(cache_size)
        .set_check_integrity_on_open(verified)
        .create_with_backend(backend)
}

/// How redb says that a file is not one of its own, or ends too early.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// The lengths of body files by their numbers.
pub(super) fn body_files(files: &dyn FileSystem, folder: &Path) -> Result<BTreeMap<u64, u64>> {
    let listed = files.list(folder).map_err(|error| error::io("listing", folder, error))?;
    Ok(listed.into_iter().filter_map(|(path, length)| Some((number_of(&path)?, length))).collect())
}

/// Rows about the store as a whole.
pub(super) trait Meta {
    fn row(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;
}

impl<T: ReadableTable<&'static [u8], &'static [u8]>> Meta for T {
    fn row(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.get(key).map_err(db)?.map(|row| row.value().to_vec()))
    }
}

/// Refuses other versions, by the inner error. `false`: there is none yet.
///
/// # Errors
/// `Corrupt` if the row is damaged: then it says no version.
pub(super) fn check_format(meta: &impl Meta) -> Met<bool> {
    let Some(row) = meta.row(FORMAT_KEY)? else { return Ok(Ok(false)) };
    let what = "the row of the format version";
    let version = match row.first_chunk() {
        Some(first) if row.len() == first.len() && u32::from_le_bytes(*first) < CHECKSUM_SINCE => first,
        _ => <&[u8; 4]>::try_from(codec::raw_value(what, FORMAT_KEY, &row)?)
            .map_err(|_| corrupt(format!("{what} is damaged")))?,
    };
    Ok(match u32::from_le_bytes(*version) {
        FORMAT => Ok(true),
        other => {
            Err(corrupt(format!("the store has format version {other}, this program knows version {FORMAT}")))
        }
    })
}

pub(super) fn put_format(transaction: &WriteTransaction) -> Result<()> {
    let mut meta = transaction.open_table(META).map_err(db)?;
    let row = codec::raw_row(FORMAT_KEY, &FORMAT.to_le_bytes());
    meta.insert(FORMAT_KEY, row.as_slice()).map(drop).map_err(db)
}

/// The numbers that go on. `None`: there are none yet.
pub(super) fn counters(meta: &impl Meta) -> Result<Option<Counters>> {
    let row = meta.row(COUNTERS)?;
    row.map(|row| codec::from_row("the row of counters", COUNTERS, &row)).transpose()
}

/// What the metadata says about its body files. `None`: nothing yet.
pub(super) fn pairing(meta: &impl Meta) -> Result<Option<Pairing>> {
    let row = meta.row(PAIRING)?;
    row.map(|row| codec::from_row("the row about body files", PAIRING, &row)).transpose()
}

/// Up to which number body files may hold what the metadata has lost. Zero: it has lost nothing.
fn kept(meta: &impl Meta) -> Result<u64> {
    let row = meta.row(KEPT)?;
    row.map_or(Ok(0), |row| codec::from_row("the row about body files to be kept", KEPT, &row))
}

/// The metadata was damaged: what is in body files up to this number may have lost what led to it.
pub(super) fn put_kept(transaction: &WriteTransaction, last: u64) -> Result<()> {
    let mut meta = transaction.open_table(META).map_err(db)?;
    let row = codec::to_row(KEPT, &last)?;
    meta.insert(KEPT, row.as_slice()).map(drop).map_err(db)
}

/// Checks the version and that the bodies are those of this metadata, counts the opening, makes good what can be, and
/// gives up body files in which nothing is alive.
/// The inner error: it is another's store, and nothing of it is changed.
fn begin(
    database: &Database,
    new: Option<Pairing>,
    bodies: impl FnOnce(Pairing) -> SegmentWriter,
    reader: &Bodies,
    damage: &Arc<Damage>,
    aside: &Aside,
) -> Met<WriterState> {
    let mut transaction = database.begin_write().map_err(db)?;
    transaction.set_quick_repair(true);
    let (found, pairing, recount, kept) = {
        let mut meta = transaction.open_table(META).map_err(db)?;
        let has_format = match check_format(&meta)? {
            Ok(has_format) => has_format,
            Err(refused) => return Ok(Err(refused)),
        };
        let (found, pairing) = match (new, counters(&meta)?, pairing(&meta)?) {
            (Some(new), ..) => (Counters::default(), new),
            (None, Some(counters), Some(pairing)) if has_format => (counters, pairing),
            // With numbers that begin anew new mail would take the place of old.
            _ => {
                let lost =
                    "the store's format version, its row of counters or the one about body files is lost";
                return Err(corrupt(lost));
            }
        };
        let recount = meta.remove(RECOUNT).map_err(db)?.is_some();
        (found, pairing, recount, kept(&meta)?)
    };
    if new.is_some() {
        put_format(&transaction)?;
    }
    let mut state = WriterState::new(bodies(pairing).keeping(kept, aside), found);
    if let Err(refused) = pairing.verify(reader, state.bodies.sizes()).or_else(|error| damage.refuse(error)) {
        return Ok(Err(refused));
    }
    let mut writer = Writer::new(&transaction, &state.counters, &mut state.bodies, damage.clone())?;
    let openings = &mut RowsMut::counters(&mut writer).openings;
    *openings = openings.saturating_add(1);
    mend::lanes(&mut writer)?;
    let (known, whole) = mend::body_files(&mut writer, recount)?;
    mend::missing(&writer, &known);
    known.keys().for_each(|segment| writer.recheck(*segment));
    let mut unknown: Vec<_> =
        writer.bodies.sizes().keys().copied().filter(|segment| !known.contains_key(segment)).collect();
    if !whole {
        unknown.clear();
    }
    let (counters, _, mut dead) = writer.finish(&transaction)?;
    let pairing = state.bodies.flush()?;
    transaction.commit().map_err(|error| error::flush("committing metadata", error))?;
    state.committed(counters, pairing);
    dead.extend(unknown);
    state.bodies.delete(&dead, reader);
    Ok(Ok(state))
}
