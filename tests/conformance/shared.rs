//! A store as several engines share one on a server. It keeps all rules, by another way than those of one process.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use postrider::clock::Timestamp;
use postrider::storage::{
    BodyKey, Change, ChangeOutcome, ClaimRequest, Claimed, Filter, Inserted, ItemSummary, Lane, LaneHead,
    ListPosition, MemoryStorage, NewMessage, OutboxEntry, OutboxPosition, Owner, StateRow, Storage,
    StorageErrorKind, Usage,
};
use postrider::testing::conformance::{NotSupported, StorageUnderTest, Trouble};

use crate::faulty::{Result, error};

/// Where it lies: leases hold over restarts.
#[derive(Default)]
pub(crate) struct Server {
    storage: MemoryStorage,
    /// Of the opening that may write.
    current: Arc<AtomicU64>,
    trouble: Arc<Mutex<Option<Trouble>>>,
}

impl StorageUnderTest for Server {
    type Store = Shared;

    async fn create() -> Self {
        Self::default()
    }

    async fn open(&self) -> Shared {
        Shared {
            storage: self.storage.clone(),
            opening: self.current.fetch_add(1, Ordering::SeqCst) + 1,
            current: self.current.clone(),
            trouble: self.trouble.clone(),
            is_poisoned: Arc::default(),
        }
    }

    async fn crash(&self, store: Shared) -> std::result::Result<(), NotSupported> {
        drop(store);
        Ok(())
    }

    async fn trouble(&self, trouble: Option<Trouble>) -> std::result::Result<(), NotSupported> {
        *self.trouble.lock().unwrap() = trouble;
        Ok(())
    }
}

/// What is to be written goes to a task, as over a connection: a call that is dropped comes about later, unless the store is
/// opened again before.
#[derive(Clone)]
pub(crate) struct Shared {
    storage: MemoryStorage,
    opening: u64,
    current: Arc<AtomicU64>,
    trouble: Arc<Mutex<Option<Trouble>>>,
    is_poisoned: Arc<Mutex<bool>>,
}

impl Shared {
    async fn write<T, C>(&self, call: C) -> Result<T>
    where
        T: Send + 'static,
        C: AsyncFnOnce(MemoryStorage) -> Result<T> + Send + 'static,
    {
        let store = self.clone();
        let written = tokio::spawn(async move {
            for _ in 0..3 {
                others_get_their_turns().await;
            }
            store.write_now(call)
        });
        written.await.unwrap()
    }

    fn write_now<T>(self, call: impl AsyncFnOnce(MemoryStorage) -> Result<T>) -> Result<T> {
        let mut is_poisoned = self.is_poisoned.lock().unwrap();
        let trouble = *self.trouble.lock().unwrap();
        // It finds out before it writes anything.
        *is_poisoned |= trouble == Some(Trouble::FailedFlush);
        if *is_poisoned || self.opening != self.current.load(Ordering::SeqCst) {
            return Err(error(StorageErrorKind::Poisoned));
        }
        if trouble == Some(Trouble::NoRoom) {
            return Err(error(StorageErrorKind::Full));
        }
        // A store in memory does not wait.
        call(self.storage).now_or_never().unwrap()
    }
}

async fn others_get_their_turns() {
    tokio::task::yield_now().await;
}

#[async_trait]
impl Storage for Shared {
    async fn insert(&self, messages: Vec<NewMessage>) -> Result<Vec<Inserted>> {
        self.write(async move |storage: MemoryStorage| storage.insert(messages).await).await
    }

    async fn heads(&self, after: Option<Lane>, limit: usize) -> Result<Vec<LaneHead>> {
        others_get_their_turns().await;
        self.storage.heads(after, limit).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        others_get_their_turns().await;
        self.storage.claim(request).await
    }

    async fn renew(&self, owner: Owner, until: Timestamp) -> Result<()> {
        others_get_their_turns().await;
        self.storage.renew(owner, until).await
    }

    async fn bodies(&self, keys: Vec<BodyKey>) -> Result<Vec<Result<Bytes>>> {
        others_get_their_turns().await;
        self.storage.bodies(keys).await
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<Vec<ChangeOutcome>> {
        self.write(async move |storage: MemoryStorage| storage.commit(changes).await).await
    }

    async fn state(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Vec<StateRow>> {
        others_get_their_turns().await;
        self.storage.state(after, limit).await
    }

    async fn outbox(&self, after: OutboxPosition, limit: usize) -> Result<Vec<OutboxEntry>> {
        others_get_their_turns().await;
        self.storage.outbox(after, limit).await
    }

    async fn list(
        &self,
        filter: Filter,
        after: Option<ListPosition>,
        limit: usize,
    ) -> Result<Vec<ItemSummary>> {
        others_get_their_turns().await;
        self.storage.list(filter, after, limit).await
    }

    async fn usage(&self) -> Result<Usage> {
        others_get_their_turns().await;
        self.storage.usage().await
    }

    async fn maintain(&self, now: Timestamp) -> Result<()> {
        others_get_their_turns().await;
        self.storage.maintain(now).await
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("opening", &self.opening).finish_non_exhaustive()
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, on a server", self.storage)
    }
}

/// Else the rules about dropped calls are tried on nothing.
#[tokio::test]
async fn a_dropped_call_comes_about_later_or_never() {
    for reopens in [false, true] {
        let server = Server::create().await;
        let store = server.open().await;
        let write = Change::PutState(StateRow { key: b"k".to_vec(), value: b"v".to_vec() });
        assert!(store.commit(vec![write]).now_or_never().is_none(), "it goes on as a task");
        assert!(store.storage.state(None, 9).await.unwrap().is_empty(), "not yet");
        let store = if reopens { server.open().await } else { store };
        for _ in 0..9 {
            others_get_their_turns().await;
        }
        assert_eq!(store.state(None, 9).await.unwrap().is_empty(), reopens);
    }
}
