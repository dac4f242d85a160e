//! Opening: one process at a time, a known version, and no body files that the metadata does not know.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use redb::{Builder, Database, DatabaseError, ReadableTable};
use tokio::sync::Semaphore;

use crate::storage::lease::LeaseTable;
use crate::storage::rows::{Counters, Result};
use crate::storage::upkeep::Upkeep;
use crate::storage::{StorageError, StorageErrorKind};

use super::backend::MetadataFile;
use super::error::{self, corrupt, db};
use super::files::sync_folder;
use super::reserve::Reserve;
use super::segment::{Bodies, SegmentWriter, number_of};
use super::tables::{COUNTERS, META, Writer};
use super::writer::{Queue, WriterState};
use super::{DiskOptions, Shared, codec};

/// The version of the folder's layout.
const FORMAT: u32 = 1;
const FORMAT_KEY: &str = "format";

pub(super) const METADATA: &str = "metadata.redb";

impl Shared {
    pub(super) fn open(path: &Path, options: &DiskOptions) -> Result<Self> {
        let folder = path.join("bodies");
        fs::create_dir_all(&folder).map_err(|error| error::io("creating", &folder, error))?;
        let lock_file = lock_folder(path)?;
        let reserve = Arc::new(Reserve::new(path.join("reserve"), options.reserve));
        if !reserve.ensure() {
            tracing::error!(path = %path.display(), "there is no room for the reserve: new mail is refused");
        }
        let database = open_metadata(path, options, reserve.clone())?;
        let files = body_files(&folder)?;
        let next = files.keys().next_back().map_or(1, |last| last.saturating_add(1));
        let octets = Arc::new(AtomicU64::new(0));
        let mut bodies = SegmentWriter::new(folder.clone(), options, files, next, octets.clone());
        let reader = Bodies::new(folder);
        let counters = begin(&database, &mut bodies, &reader)?;
        for folder in [path.parent(), Some(path)].into_iter().flatten().filter(|path| path.is_dir()) {
            sync_folder(folder).map_err(|error| error::io("flushing", folder, error))?;
        }
        let leases = LeaseTable::new(counters.openings);
        let writer = WriterState {
            bodies,
            counters,
            upkeep: Upkeep::default(),
            unreadable: HashSet::new(),
            compacted: 0,
        };
        Ok(Self {
            path: path.to_owned(),
            database: RwLock::new(database),
            leases: Mutex::new(leases),
            queue: Mutex::new(Queue::default()),
            admission: Arc::new(Semaphore::new(options.waiting_calls)),
            writer: Mutex::new(writer),
            bodies: reader,
            body_octets: octets,
            reserve,
            poisoned: OnceLock::new(),
            _lock_file: lock_file,
        })
    }
}

fn lock_folder(path: &Path) -> Result<File> {
    let name = path.join("lock");
    let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&name);
    let file = opened.map_err(|error| error::io("opening", &name, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let message = format!(
                "the store in {} is in use: one process, and one handle in it, at a time",
                path.display()
            );
            Err(StorageError::new(StorageErrorKind::Locked, message))
        }
        Err(TryLockError::Error(error)) => Err(error::io("locking", &name, error)),
    }
}

fn open_metadata(path: &Path, options: &DiskOptions, reserve: Arc<Reserve>) -> Result<Database> {
    let name = path.join(METADATA);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&name);
    let file = opened.map_err(|error| error::io("opening", &name, error))?;
    let backend = MetadataFile {
        file,
        reserve,
        #[cfg(test)]
        faults: options.faults.clone(),
    };
    let opened = Builder::new().set_cache_size(options.cache_size).create_with_backend(backend);
    opened.map_err(|error| match error {
        DatabaseError::Storage(redb::StorageError::Io(error)) if !is_damage(&error) => {
            error::io("opening", &name, error)
        }
        error => corrupt(format!("{} is not a readable store: {error}", name.display())).with_source(error),
    })
}

/// How redb says that a file is not one of its own, or ends too early.
fn is_damage(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
}

fn body_files(folder: &Path) -> Result<BTreeMap<u64, u64>> {
    let failed = |error| error::io("listing", folder, error);
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(number) = number_of(&entry.path()) {
            files.insert(number, entry.metadata().map_err(failed)?.len());
        }
    }
    Ok(files)
}

/// Checks the version, counts the opening, and deletes body files in which nothing is alive.
fn begin(database: &Database, bodies: &mut SegmentWriter, reader: &Bodies) -> Result<Counters> {
    let mut transaction = database.begin_write().map_err(db)?;
    transaction.set_quick_repair(true);
    let mut counters = {
        let mut meta = transaction.open_table(META).map_err(db)?;
        let found = meta.get(FORMAT_KEY).map_err(db)?.map(|row| <[u8; 4]>::try_from(row.value()));
        match found.map(|bytes| bytes.map(u32::from_le_bytes)) {
            Some(Ok(FORMAT)) => {}
            Some(Ok(other)) => {
                return Err(corrupt(format!(
                    "the store has format version {other}, this program knows version {FORMAT}"
                )));
            }
            Some(Err(_)) => return Err(corrupt("the store's format version is damaged")),
            None => drop(meta.insert(FORMAT_KEY, FORMAT.to_le_bytes().as_slice()).map_err(db)?),
        }
        let row = meta.get(COUNTERS).map_err(db)?;
        row.map(|row| codec::from_row::<Counters>("the row of counters", row.value()))
            .transpose()?
            .unwrap_or_default()
    };
    let found = counters.clone();
    counters.openings = counters.openings.saturating_add(1);
    let mut writer = Writer::new(&transaction, &found, bodies)?;
    *crate::storage::rows::RowsMut::counters(&mut writer) = counters;
    let known = writer.segments()?;
    for segment in known.keys() {
        writer.recheck(*segment);
        if !writer.bodies.sizes().contains_key(segment) {
            tracing::error!(segment, "a body file is missing: its messages have lost their bodies");
        }
    }
    let unknown: Vec<_> =
        writer.bodies.sizes().keys().copied().filter(|segment| !known.contains_key(segment)).collect();
    let (counters, _, mut dead) = writer.finish(&transaction)?;
    transaction.commit().map_err(|error| error::flush("committing metadata", redb::Error::from(error)))?;
    dead.extend(unknown);
    bodies.delete(&dead, reader);
    Ok(counters)
}
