//! [`DiskStorage`]: metadata in redb, bodies in append-only files.
//!
//! One round of writing (`writer`) appends the bodies of all waiting calls to a segment (`segment`), flushes it, then
//! commits the metadata of all (`tables`, `codec`). A crash between the two leaves octets that nobody points to.

mod aside;
mod backend;
mod check;
#[cfg(test)]
mod cleaning;
mod closing;
mod codec;
#[cfg(test)]
mod cuts;
mod damage;
#[cfg(test)]
mod damaged;
mod error;
#[cfg(test)]
mod failed_flush;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod faults;
mod files;
#[cfg(test)]
mod filled_up;
mod freed;
mod gather;
#[cfg(test)]
mod guards;
#[cfg(test)]
mod live;
mod lost_lanes;
mod maintain;
mod mark;
mod mend;
mod node;
mod open;
mod options;
mod overlay;
#[cfg(test)]
mod pages;
mod pairing;
mod rebuild;
#[cfg(test)]
mod rebuilt;
mod replace;
mod reserve;
mod salvage;
#[cfg(test)]
mod salvaged;
mod segment;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod stale;
mod table_writer;
mod tables;
#[cfg(test)]
mod tests;
mod unflushed;
#[cfg(test)]
mod unverified;
mod walk;
mod witness;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redb::{ReadableDatabase, ReadableTableMetadata};
use tokio::sync::Semaphore;

use crate::clock::{self, Timestamp};

use super::lease::LeaseTable;
use super::rows::{Result, Rows};
use super::{
    BodyKey, Change, ChangeOutcome, ClaimRequest, Claimed, Filter, Inserted, ItemSummary, Lane, LaneHead,
    ListPosition, NewMessage, OutboxEntry, OutboxPosition, Owner, Room, StateRow, Storage, StorageError,
    StorageErrorKind, Usage, apply, listing, select,
};
use backend::Tracked;
pub use check::{CheckReport, Problem, StoredItem, StoredMessage};
use closing::Closing;
use codec::Location;
use damage::{Damage, guarded};
use error::db;
use files::OpenFile;
use open::Folder;
pub use options::DiskOptions;
use reserve::Reserve;
use segment::Bodies;
use tables::{Reading, Tables};
use writer::{Queue, Work, WriterState};

/// How long one call of maintenance goes on while there is something to do.
const MAINTAINED: Duration = Duration::from_secs(20);

/// The embedded durable store: a folder that one process has at a time.
///
/// The folder holds `metadata.redb`, body files in `bodies` and the file `reserve`; while it is opened for the first time
/// also an empty file `unfinished`, once damage was met an empty file `suspect`, once a flush has failed an empty file `unflushed`, and once the metadata was written anew for
/// it the damaged file as `metadata.damaged` (further ones as `metadata.damaged-2` to `-4`) and body files as `*.bodies-damaged`, which may be deleted. It must lie on a
/// local file system that keeps what it has flushed. The folder itself is locked, and `bodies` in it (on Windows, a file `lock` in each, which nobody can remove then).
///
/// # Writing
///
/// Inserts and commits that come while the disk is busy share the next flush; nobody waits for a timer. At most
/// [`DiskOptions::with_waiting_calls`] calls wait at once, later ones wait before them. All work on files runs on
/// tokio's blocking threads, so a paused clock does not run ahead of it.
///
/// # Full disk
///
/// Inserts fail with [`StorageErrorKind::Full`]. Commits go on as long as the metadata file has room inside, and then
/// out of the reserve; see [`DiskOptions::with_reserve`] and [`Room`]. Once that is used up they fail with `Full` too: nothing of
/// them is applied, the same commit succeeds once there is room, and a smaller one maybe before. On file systems that find
/// out only while flushing that they are full (NFS, and others with delayed allocation over a quota), it is the flush that fails,
/// with the consequence below: the reserve is of no use there.
///
/// # Failed flush
///
/// No call flushes twice: it gets [`StorageErrorKind::OutcomeUnknown`], all later ones
/// [`StorageErrorKind::Poisoned`], and an empty file `unflushed` tells the next opening. The operating system may then show as
/// written what never got to the disk, until it is started anew. So that opening writes the metadata file and the body file
/// that was written last again as they are read, flushes them, verifies the metadata, and fails if any of it does; then the
/// next one does so. It takes as long as it takes to read and write the metadata file. What a store shows that was opened is on disk:
/// all that was acknowledged, and of each call that failed all or nothing. Where the file system had become read-only
/// the file can not be made, which is logged: then start the machine anew, or unmount the file system, before the store is opened again.
///
/// # Dropping
///
/// Dropping the handle waits for writing that has begun, so that the folder can be opened again at once.
pub struct DiskStorage {
    shared: Arc<Shared>,
    jobs: Arc<Jobs>,
}

struct Shared {
    path: PathBuf,
    /// Taken alone to compact it, and to open it anew once the disk was found full.
    database: RwLock<Arc<Closing>>,
    /// The file under it.
    metadata: Arc<Tracked>,
    cache_size: usize,
    small_metadata: u64,
    leases: Mutex<LeaseTable>,
    queue: Mutex<Queue>,
    admission: Arc<Semaphore>,
    writer: Mutex<WriterState>,
    bodies: Bodies,
    body_octets: Arc<AtomicU64>,
    reserve: Arc<Reserve>,
    poisoned: OnceLock<String>,
    damage: Arc<Damage>,
    /// Its own, and that of bodies in it. Declared last: released last.
    folders: [Folder; 2],
}

impl DiskStorage {
    /// Opens the store in the folder `path` with [`DiskOptions::default`], or makes one.
    ///
    /// # Errors
    /// `Locked` if somebody has it open; `Corrupt` if it is damaged, of another version, or put together from metadata and
    /// bodies of two stores or two times; `Full` or `Temporary` if the folder can not be used; one of these, `OutcomeUnknown` or
    /// `Poisoned` if a flush fails: it can be opened again, as after any failed flush.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, DiskOptions::default()).await
    }

    /// Opens the store in the folder `path`, or makes one. Leases of an earlier opening are void.
    ///
    /// # Errors
    /// As [`DiskStorage::open`].
    pub async fn open_with(path: impl AsRef<Path>, options: DiskOptions) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let opened = tokio::task::spawn_blocking(move || Shared::open(&path, &options, false)).await;
        let shared = opened.unwrap_or_else(|error| Err(broken(error)))??;
        Ok(Self { shared: Arc::new(shared), jobs: Arc::default() })
    }

    /// Verifies the store in the folder `path`, which must not be open, and changes nothing: the metadata file as such,
    /// every row, every index entry, every body. Takes as long as it takes to read all of it.
    ///
    /// It does what opening the store would do, with all that is written kept in memory, and looks at what is there then. So
    /// it tells the damage that opening tells, and finds what opening keeps: nothing if opening finds nothing to keep. Only where
    /// opening refuses metadata and bodies that do not belong together, it tells so and finds what the metadata has. Over
    /// damaged metadata it takes as much memory as the file that opening would write.
    ///
    /// # Errors
    /// `NotFound` if there is no store, `Locked` if somebody has it open, `Corrupt` if it is of another version,
    /// `Temporary` if the folder can not be used. Damage is in the report.
    pub async fn check(path: impl AsRef<Path>) -> Result<CheckReport> {
        Self::check_each(path, |_| {}).await
    }

    /// As [`DiskStorage::check`], and hands out each message whose items can be read, in order of ids; last those whose own rows
    /// are damaged.
    ///
    /// Where a table is damaged so that it can not be read to its end, the memory of this check (the cache and what was written
    /// over the file) is not given back to the process: redb could end it as that is dropped.
    ///
    /// # Errors
    /// As [`DiskStorage::check`].
    ///
    /// # Panics
    /// If `visit` does.
    pub async fn check_each(
        path: impl AsRef<Path>,
        mut visit: impl FnMut(StoredMessage) + Send + 'static,
    ) -> Result<CheckReport> {
        let path = path.as_ref().to_owned();
        let checked =
            tokio::task::spawn_blocking(move || check::run(&path, &DiskOptions::default(), &mut visit)).await;
        checked.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panicked) => std::panic::resume_unwind(panicked),
            Err(ended) => Err(broken(ended)),
        })
    }

    /// Runs `read` on a blocking thread.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let job = self.job();
        let done = tokio::task::spawn_blocking(move || {
            let shared = job.shared();
            shared.check().and_then(|()| shared.damage.heed(guarded("it", || read(shared))))
        });
        done.await.unwrap_or_else(|error| Err(broken(error)))
    }

    fn job(&self) -> Job {
        *lock(&self.jobs.running) += 1;
        Job { shared: self.shared.clone(), _running: Running(self.jobs.clone()) }
    }
}

impl Drop for DiskStorage {
    fn drop(&mut self) {
        let mut running = lock(&self.jobs.running);
        while *running > 0 {
            running = self.jobs.less.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl fmt::Debug for DiskStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskStorage").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl fmt::Display for DiskStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.shared.path.display())
    }
}

#[async_trait]
impl Storage for DiskStorage {
    async fn insert(&self, messages: Vec<NewMessage>) -> Result<Vec<Inserted>> {
        apply::check_messages(&messages)?;
        self.write(|answer| Work::Insert(messages, answer)).await
    }

    async fn heads(&self, after: Option<Lane>, limit: usize) -> Result<Vec<LaneHead>> {
        self.read(move |shared| {
            shared.with_leases(|rows, leases| select::heads(rows, leases, after.as_ref(), limit))
        })
        .await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        self.read(move |shared| {
            shared.with_leases(|rows, leases| {
                let first = leases.next();
                let claimed = guarded("mail", || select::claim(rows, leases, &request));
                // Nobody would give back what a panic has claimed.
                claimed.inspect_err(|_| leases.take_back(first))
            })
        })
        .await
    }

    async fn renew(&self, owner: Owner, until: Timestamp) -> Result<()> {
        self.read(move |shared| {
            lock(&shared.leases).extend(owner, until);
            Ok(())
        })
        .await
    }

    async fn bodies(&self, keys: Vec<BodyKey>) -> Result<Vec<Result<Bytes>>> {
        self.read(move |shared| Ok(keys.iter().map(|key| shared.body(*key)).collect())).await
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<Vec<ChangeOutcome>> {
        apply::check_changes(&changes)?;
        self.write(|answer| Work::Commit(changes, answer)).await
    }

    async fn state(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Vec<StateRow>> {
        self.read(move |shared| shared.with(|rows| listing::state(rows, after.as_deref(), limit))).await
    }

    async fn outbox(&self, after: OutboxPosition, limit: usize) -> Result<Vec<OutboxEntry>> {
        self.read(move |shared| shared.with(|rows| listing::outbox(rows, after, limit))).await
    }

    async fn list(
        &self,
        filter: Filter,
        after: Option<ListPosition>,
        limit: usize,
    ) -> Result<Vec<ItemSummary>> {
        self.read(move |shared| {
            listing::page(after, limit, |after, limit| {
                let portion = shared.with(|rows| listing::portion(rows, &filter, after, limit))?;
                Ok(portion.mark_leased(&lock(&shared.leases)))
            })
        })
        .await
    }

    async fn count(&self, lane: &Lane) -> Result<u64> {
        let lane = lane.clone();
        self.read(move |shared| shared.with(|rows| listing::count(rows, &lane))).await
    }

    /// Its folder is locked.
    fn is_exclusive(&self) -> bool {
        true
    }

    fn room(&self) -> Room {
        self.shared.reserve.room()
    }

    async fn usage(&self) -> Result<Usage> {
        self.read(|shared| {
            let (items, outbox) =
                shared.with(|rows| Ok((rows.items.len().map_err(db)?, rows.outbox.len().map_err(db)?)))?;
            let octets = shared.metadata_length().saturating_add(shared.body_octets.load(Ordering::Relaxed));
            Ok(Usage { items, outbox, octets })
        })
        .await
    }

    async fn take_damage(&self) -> Vec<StorageError> {
        self.shared.damage.take()
    }

    async fn maintain(&self, now: Timestamp) -> Result<()> {
        let end = clock::instant() + MAINTAINED;
        // In portions: other calls have theirs in between.
        while self.write(|answer| Work::Maintain(now, answer)).await? && clock::instant() < end {}
        Ok(())
    }
}

impl Drop for Shared {
    /// Over damaged pages redb can panic as it is dropped, and again while that unwinds, which would end the process. So it is not
    /// dropped: its cache stays in memory, once, and the file is as it was after the last commit.
    fn drop(&mut self) {
        if self.damage.is_met() {
            self.metadata.leave();
            std::mem::forget(self.database().clone());
        }
    }
}

impl Shared {
    fn database(&self) -> RwLockReadGuard<'_, Arc<Closing>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what was committed when this is called.
    fn with<T>(&self, read: impl Fn(&Tables<Reading>) -> Result<T>) -> Result<T> {
        self.after_refusals(|| self.with_database(&read))
    }

    fn with_database<T>(&self, read: impl FnOnce(&Tables<Reading>) -> Result<T>) -> Result<T> {
        let database = self.database();
        let reading = || {
            let transaction = database.begin_read().map_err(db)?;
            read(&Tables::open(&transaction, self.damage.clone())?)
        };
        self.damage.heed(reading()).map_err(|error| self.reserve.explain(error))
    }

    /// A write that finds no room fails all reads until the metadata is opened anew: what failed so is read once more then.
    fn after_refusals<T>(&self, read: impl Fn() -> Result<T>) -> Result<T> {
        let done = read();
        match &done {
            Err(error) if error.kind() == StorageErrorKind::Full || error::is_fatal(error) => {
                // Once the write is over, and before there is another.
                let state = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
                self.reopen_if_refused(&state)?;
                read()
            }
            _ => done,
        }
    }

    /// Reads under the lock of the leases. It is taken first: a lease ends only after the commit that ended it, so
    /// what this sees as free was read as it is now.
    fn with_leases<T>(&self, read: impl Fn(&Tables<Reading>, &mut LeaseTable) -> Result<T>) -> Result<T> {
        self.after_refusals(|| {
            let mut leases = lock(&self.leases);
            self.with_database(|rows| read(rows, &mut leases))
        })
    }

    fn body(&self, key: BodyKey) -> Result<Bytes> {
        let mut location = Location::default();
        // It may be moved while it is looked for; twice in so short a time is not to be expected.
        for _ in 0..3 {
            let Some(row) = self.with(|rows| rows.message(key.0))? else {
                return Err(super::memory::no_body(key));
            };
            if let Some(body) = self.bodies.read(key.0, row.body)? {
                return Ok(body);
            }
            location = row.body;
        }
        let path = self.bodies.path_of(location.segment);
        let path = path.display();
        if self.bodies.is_lost(location) {
            return Err(error::corrupt(format!(
                "{path}, where the body of message {} was, is missing or cut short",
                key.0
            )));
        }
        // It may come back as long as nobody has opened the store without it.
        let message = format!(
            "{path} is missing or cut short: it was removed, renamed or cut while the store was open. If you have it, put it \
             back: mail whose content lies in it waits until then, and bounces once the store is opened without it"
        );
        Err(StorageError::new(StorageErrorKind::Temporary, message))
    }

    fn metadata_length(&self) -> u64 {
        self.metadata.length().unwrap_or_default()
    }

    /// Refuses everything once a flush has failed.
    fn works(&self) -> Result<()> {
        let Some(reason) = self.poisoned.get() else { return Ok(()) };
        let message = format!("the store refuses since an earlier failure: {reason}");
        Err(StorageError::new(StorageErrorKind::Poisoned, message))
    }

    /// Refuses, too, as long as one of its folders or its metadata has another name, or that was cut short. Asks the file system.
    fn check(&self) -> Result<()> {
        self.works()?;
        self.folders.iter().try_for_each(Folder::check)?;
        let name = self.path.join(open::METADATA);
        self.metadata.check_length(&name)
    }

    /// Refuses, too, as long as the same is so of the body file that is being written.
    fn check_written(&self, state: &WriterState) -> Result<()> {
        self.check().and_then(|()| state.bodies.check())
    }

    /// What was committed counts only if it is where the next opening looks for it: a file that is removed, replaced or cut
    /// short takes all that is written as before.
    fn check_committed(&self, state: &WriterState) -> Result<()> {
        self.check_written(state).map_err(|error| {
            let message = format!("it is not known whether what was committed will be found again: {error}");
            StorageError::new(StorageErrorKind::OutcomeUnknown, message)
        })
    }

    fn poison(&self, error: &StorageError) {
        if self.poisoned.set(error.to_string()).is_ok() {
            self.damage.mark();
            tracing::error!(path = %self.path.display(), %error, "the store refuses from now on");
        }
    }
}

/// Work on blocking threads. It keeps the store open, and dropping the store waits for it.
struct Job {
    // Dropped first, so that whoever waited has the last one.
    shared: Arc<Shared>,
    _running: Running,
}

impl Job {
    fn shared(&self) -> &Shared {
        &self.shared
    }
}

#[derive(Default)]
struct Jobs {
    running: Mutex<usize>,
    less: Condvar,
}

struct Running(Arc<Jobs>);

impl Drop for Running {
    fn drop(&mut self) {
        *lock(&self.0.running) -= 1;
        self.0.less.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is locked is never left half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A blocking thread panicked, or the runtime has ended.
fn broken(error: tokio::task::JoinError) -> StorageError {
    let message = "the store could not finish its work: a panic, or the runtime has ended";
    StorageError::new(StorageErrorKind::Temporary, message).with_source(error)
}
