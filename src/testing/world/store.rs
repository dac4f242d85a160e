//! A store that fails where it is told to.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::book::Book;
use crate::clock::Timestamp;
use crate::storage::{
    BodyKey, Change, ChangeOutcome, ClaimRequest, Claimed, Filter, Inserted, ItemSummary, Lane, LaneHead,
    ListPosition, NewMessage, OutboxEntry, OutboxPosition, Owner, Room, StateRow, Storage, StorageError,
    StorageErrorKind, Usage,
};
use crate::testing::conversation::pause;

/// Something that goes wrong in the store.
///
/// ```
/// use postrider::storage::StorageErrorKind;
/// use postrider::testing::{StoreCall, StoreFault, StoreTrouble};
/// let full = StoreFault::new(StoreCall::Insert, StoreTrouble::Fails(StorageErrorKind::Full)).at(3).times(10);
/// let dies = StoreFault::new(StoreCall::Commit, StoreTrouble::Crash { applied: true }).at(20);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct StoreFault {
    call: StoreCall,
    trouble: StoreTrouble,
    skip: u64,
    times: u64,
}

/// Which calls of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreCall {
    /// [`Storage::insert`].
    Insert,
    /// [`Storage::commit`].
    Commit,
    /// [`Storage::claim`].
    Claim,
    /// [`Storage::bodies`].
    Bodies,
    /// [`Storage::list`].
    List,
    /// [`Storage::count`].
    Count,
    /// [`Storage::heads`], which an engine calls as it starts. One that fails: it does not start, and is started again.
    Heads,
    /// [`Storage::state`], likewise.
    State,
    /// [`Storage::renew`].
    Renew,
    /// [`Storage::outbox`], which an engine calls as it starts, too.
    Outbox,
    /// [`Storage::usage`], likewise.
    Usage,
    /// [`Storage::maintain`].
    Maintain,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreTrouble {
    /// The call fails with an error of this kind, and nothing is applied. With
    /// [`StorageErrorKind::OutcomeUnknown`] it is applied, and the error says that nobody knows.
    Fails(StorageErrorKind),
    /// The process dies in the call, before or after it was applied.
    Crash {
        /// What the call was to write is in the store.
        applied: bool,
    },
    /// The call takes so long.
    Slow(Duration),
}

impl StoreFault {
    /// This trouble at the first such call from now on, once.
    pub fn new(call: StoreCall, trouble: StoreTrouble) -> Self {
        Self { call, trouble, skip: 0, times: 1 }
    }

    /// At the `nth` call from now on, counted from 1.
    pub fn at(mut self, nth: u64) -> Self {
        self.skip = nth.saturating_sub(1);
        self
    }

    /// At so many calls from there on.
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }
}

/// Faults still to come. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Faults(Arc<Mutex<Vec<StoreFault>>>);

impl Faults {
    pub(super) fn add(&self, faults: impl IntoIterator<Item = StoreFault>) {
        self.lock().extend(faults);
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn next(&self, call: StoreCall) -> Option<StoreTrouble> {
        let mut faults = self.lock();
        let mut found = None;
        for fault in faults.iter_mut().filter(|fault| fault.call == call) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if found.is_none() && fault.times > 0 {
                fault.times -= 1;
                found = Some(fault.trouble);
            }
        }
        faults.retain(|fault| fault.times > 0);
        found
    }

    fn lock(&self) -> MutexGuard<'_, Vec<StoreFault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A store, and what goes wrong in it.
pub(super) struct FaultyStorage {
    pub(super) inner: Arc<dyn Storage>,
    pub(super) faults: Faults,
    pub(super) book: Book,
}

impl FaultyStorage {
    async fn call<T>(
        &self,
        call: StoreCall,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        self.book.asked(call);
        match self.faults.next(call) {
            None => work.await,
            Some(StoreTrouble::Slow(time)) => {
                self.book.tell(|oracle| oracle.slow(time));
                pause(time).await;
                work.await
            }
            Some(StoreTrouble::Fails(kind)) => {
                if call == StoreCall::Bodies && !StorageError::new(kind, "").is_temporary() {
                    self.book.tell(|oracle| oracle.loses_bodies());
                }
                if kind == StorageErrorKind::OutcomeUnknown {
                    let _ = work.await;
                }
                Err(StorageError::new(kind, format!("a fault planted in {call:?}")))
            }
            Some(StoreTrouble::Crash { applied }) => {
                if applied {
                    let _ = work.await;
                }
                self.book.crash();
                std::future::pending().await
            }
        }
    }
}

#[async_trait]
impl Storage for FaultyStorage {
    async fn insert(&self, messages: Vec<NewMessage>) -> Result<Vec<Inserted>, StorageError> {
        let work = async {
            let told = messages.clone();
            self.book.tell(|oracle| oracle.inserting(&told));
            let result = self.inner.insert(messages).await;
            self.book.tell(|oracle| oracle.inserted(&told, &result));
            result
        };
        self.call(StoreCall::Insert, work).await
    }

    async fn heads(&self, after: Option<Lane>, limit: usize) -> Result<Vec<LaneHead>, StorageError> {
        self.call(StoreCall::Heads, self.inner.heads(after, limit)).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, StorageError> {
        let work = async {
            let claimed = self.inner.claim(request).await?;
            self.book.claimed(&claimed.items);
            Ok(claimed)
        };
        self.call(StoreCall::Claim, work).await
    }

    async fn renew(&self, owner: Owner, until: Timestamp) -> Result<(), StorageError> {
        self.call(StoreCall::Renew, self.inner.renew(owner, until)).await
    }

    async fn bodies(&self, keys: Vec<BodyKey>) -> Result<Vec<Result<Bytes, StorageError>>, StorageError> {
        self.call(StoreCall::Bodies, self.inner.bodies(keys)).await
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<Vec<ChangeOutcome>, StorageError> {
        let is_of_scheduler = changes.iter().any(|change| !matches!(change, Change::Acknowledge(_)));
        let work = async {
            let told = changes.clone();
            self.book.tell(|oracle| oracle.committing(&told));
            let result = self.inner.commit(changes).await;
            self.book.tell(|oracle| oracle.committed(&told, &result));
            result
        };
        if !is_of_scheduler {
            return self.call(StoreCall::Commit, work).await;
        }
        self.book.tell(|oracle| oracle.writing(true));
        let result = self.call(StoreCall::Commit, work).await;
        self.book.tell(|oracle| oracle.writing(result.is_err()));
        result
    }

    async fn state(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Vec<StateRow>, StorageError> {
        self.call(StoreCall::State, self.inner.state(after, limit)).await
    }

    async fn outbox(&self, after: OutboxPosition, limit: usize) -> Result<Vec<OutboxEntry>, StorageError> {
        self.call(StoreCall::Outbox, self.inner.outbox(after, limit)).await
    }

    async fn list(
        &self,
        filter: Filter,
        after: Option<ListPosition>,
        limit: usize,
    ) -> Result<Vec<ItemSummary>, StorageError> {
        self.call(StoreCall::List, self.inner.list(filter, after, limit)).await
    }

    async fn count(&self, lane: &Lane) -> Result<u64, StorageError> {
        self.call(StoreCall::Count, self.inner.count(lane)).await
    }

    fn room(&self) -> Room {
        self.inner.room()
    }

    fn is_exclusive(&self) -> bool {
        self.inner.is_exclusive()
    }

    async fn take_damage(&self) -> Vec<StorageError> {
        self.inner.take_damage().await
    }

    async fn usage(&self) -> Result<Usage, StorageError> {
        self.call(StoreCall::Usage, self.inner.usage()).await
    }

    async fn maintain(&self, now: Timestamp) -> Result<(), StorageError> {
        self.call(StoreCall::Maintain, self.inner.maintain(now)).await
    }
}

impl fmt::Debug for FaultyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStorage").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl fmt::Display for FaultyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, with planted faults", self.inner)
    }
}
