//! A store that is open, and what rules often ask of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::{A, Damage, StorageUnderTest, Trouble, at, due, item, message, message_of};
use crate::clock::Timestamp;
use crate::message::MessageId;
use crate::storage::{
    BodyKey, Change, ChangeOutcome, ClaimPart, ClaimRequest, Claimed, Inserted, Item, NewMessage, Owner,
    Storage, StorageError, StorageErrorKind,
};

/// A store and where it lies.
pub(super) struct Subject<F: StorageUnderTest> {
    // Dropped first.
    store: Arc<F::Store>,
    place: F,
    restarts: u64,
}

impl<F: StorageUnderTest> Subject<F> {
    pub(super) async fn open() -> Self {
        let place = F::create().await;
        Self { store: Arc::new(place.open().await), place, restarts: 0 }
    }

    /// A restart. It takes longer than leases of a minute hold.
    pub(super) async fn reopen(self) -> Self {
        let Self { store, place, restarts } = self;
        drop(store);
        Self { store: Arc::new(place.open().await), place, restarts: restarts + 1 }
    }

    /// A restart over which something is damaged.
    pub(super) async fn reopen_damaged(self, what: Damage) -> Self {
        let Self { store, place, restarts } = self;
        drop(store);
        if let Err(error) = place.damage(what).await {
            panic!(
                "{error}: {what:?}. `StorageUnderTest::damage` must do it, or the macro be told `without damaged_bodies`, \
                 `without damaged_items` or `without damaged_rows`"
            );
        }
        Self { store: Arc::new(place.open().await), place, restarts: restarts + 1 }
    }

    /// A restart before which nothing was closed.
    pub(super) async fn crash(self) -> Self {
        let Self { store, place, restarts } = self;
        let Some(store) = Arc::into_inner(store) else { panic!("a thread of the rule still has the store") };
        if let Err(error) = place.crash(store).await {
            panic!(
                "{error}: a crash. `StorageUnderTest::crash` must do it, or the macro be told `without crashes`"
            );
        }
        Self { store: Arc::new(place.open().await), place, restarts: restarts + 1 }
    }

    pub(super) async fn trouble(&self, trouble: Option<Trouble>) {
        if let Err(error) = self.place.trouble(trouble).await {
            let power = if trouble == Some(Trouble::NoRoom) { "full_disks" } else { "failed_flushes" };
            panic!(
                "{error}: {trouble:?}. `StorageUnderTest::trouble` must do it, or the macro be told `without {power}`"
            );
        }
    }

    pub(super) fn storage(&self) -> &F::Store {
        &self.store
    }

    /// Uses the store on a thread of its own.
    pub(super) fn on_a_thread<T, W>(&self, work: W) -> JoinHandle<T>
    where
        T: Send + 'static,
        W: AsyncFnOnce(&F::Store) -> T + Send + 'static,
    {
        let (store, runtime) = (self.store.clone(), Handle::current());
        tokio::task::spawn_blocking(move || runtime.block_on(work(&store)))
    }

    pub(super) async fn insert(&self, message: NewMessage) -> Inserted {
        only(self.store.insert(vec![message]).await.works())
    }

    /// The time of the claims of this opening. Leases of a minute that an earlier one gave have run out, where they hold
    /// over restarts.
    pub(super) fn now(&self) -> Timestamp {
        at(1_000 * (self.restarts + 1))
    }

    /// As whom an engine works that is `owner` at first: each start draws another.
    pub(super) fn owner(&self, owner: Owner) -> Owner {
        Owner(owner.0 + 1_000 * self.restarts)
    }

    pub(super) async fn claim(&self, owner: Owner, part: ClaimPart) -> Vec<Item> {
        self.claimed(self.owner(owner), self.now(), part).await.items
    }

    /// At `now`, holding for a minute.
    pub(super) async fn claimed(&self, owner: Owner, now: Timestamp, part: ClaimPart) -> Claimed {
        let until = now + Duration::from_secs(60);
        self.store.claim(ClaimRequest { owner, now, until, what: vec![part] }).await.works()
    }

    pub(super) async fn change(&self, change: Change) -> ChangeOutcome {
        only(self.store.commit(vec![change]).await.works())
    }

    pub(super) async fn body(&self, id: MessageId) -> Result<Bytes, StorageError> {
        only(self.store.bodies(vec![BodyKey(id)]).await.works())
    }
}

/// What there is to be one of.
#[track_caller]
pub(super) fn only<T>(mut all: Vec<T>) -> T {
    assert_eq!(all.len(), 1, "one answer, not {}", all.len());
    all.remove(0)
}

/// What a thread returned; its panic is ours.
pub(super) async fn joined<T>(thread: JoinHandle<T>) -> T {
    thread.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Answers of a store.
pub(super) trait Answer<T> {
    /// It succeeds.
    fn works(self) -> T;

    /// It fails, with an error of this kind.
    fn fails(self) -> StorageErrorKind;
}

impl<T> Answer<T> for Result<T, StorageError> {
    #[track_caller]
    fn works(self) -> T {
        self.unwrap_or_else(|error| panic!("the call fails, {:?}: {error}", error.kind()))
    }

    #[track_caller]
    fn fails(self) -> StorageErrorKind {
        match self {
            Ok(_) => panic!("the call succeeds and should not"),
            Err(error) => error.kind(),
        }
    }
}

/// One message with `recipients`, claimed.
pub(super) async fn one<F: StorageUnderTest>(recipients: u32) -> (Subject<F>, Item) {
    let subject = Subject::<F>::open().await;
    subject.insert(message_of(1, 10, vec![item("a.example", 10, recipients)])).await;
    let item = only(subject.claim(A, due("a.example", 10, 1)).await);
    (subject, item)
}

/// Ages 40, 30, 10, 20; due at 45, 30 (fresh), 35, 20 (fresh); and one in another lane.
pub(super) async fn mixed<F: StorageUnderTest>() -> Subject<F> {
    let subject = Subject::<F>::open().await;
    let messages = [(1, 40, 45), (2, 30, 30), (3, 10, 35), (4, 20, 20)];
    let batch = messages.map(|(number, age, due)| message_of(number, age, vec![item("a.example", due, 1)]));
    subject.storage().insert(batch.into()).await.works();
    subject.insert(message(9, "b.example", 1)).await;
    subject
}
