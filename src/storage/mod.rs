//! Where accepted mail lies: the trait [`Storage`], [`MemoryStorage`] and [`DiskStorage`].
//!
//! # Model
//!
//! A message is stored as one or more *items*: recipients of one message that share a [`Lane`] and a due time,
//! travel in one transaction, and are split when their outcomes differ. Bodies lie apart and die with the last
//! recipient. Mail is keyed by lane, which never changes for a message; queues, which do change with MX records
//! and policy, are the scheduler's affair.
//!
//! An item is worked on under a *lease*: who holds the current lease of an item may change it, nobody else.

mod apply;
#[cfg(feature = "disk")]
mod disk;
mod lease;
mod listing;
mod memory;
mod order;
mod rows;
mod select;
#[cfg(test)]
mod tests;
mod types;
mod upkeep;

use std::fmt::{Debug, Display};

use async_trait::async_trait;

use crate::clock::Timestamp;
#[cfg(feature = "disk")]
pub use disk::{CheckReport, DiskOptions, DiskStorage, Problem, StoredItem, StoredMessage};
pub use memory::MemoryStorage;
pub use types::*;

/// A durable store of messages.
///
/// # Contract
///
/// - **Durable on return.** When `insert` or `commit` returns `Ok`, all of it survives a crash at any point
///   after; when it returns an error other than [`StorageErrorKind::OutcomeUnknown`], none of it was applied.
///   Each call is atomic. Concurrent calls should share one flush.
/// - **Fenced.** A change under a lease that is no longer current is not applied and comes back as
///   [`ChangeOutcome::Stale`]; the rest of its batch is applied. Two claimers never hold the same item.
///   A lease that ran out is current until somebody else takes the item.
/// - **Leases and restarts.** In an exclusive store ([`is_exclusive`](Storage::is_exclusive)) leases end with the opening that
///   gave them, by a crash too: after the next one all items are free at once, and a lease from before is never current again. In
///   a store that engines share, leases of an engine that ended or crashed may hold until their time, and not longer; a lease
///   of an earlier opening either is current or leaves its item free. An engine draws another [`Owner`] at each start, so it
///   can not renew what it held before.
/// - **Ordered.** Claims by due time return the earliest due first, claims by age the oldest first. Whoever reads the
///   [`outbox`](Storage::outbox) misses nothing: no entry appears at or before a position that it has returned.
/// - **Damage is told and costs nothing else.** What can not be read is left aside: claims, heads, lists and state are
///   answered with the rest, in pages as full as they would be without it, and a damaged outbox entry keeps its place
///   with an empty payload. Each is told by [`take_damage`](Storage::take_damage). A call about damaged entries alone fails
///   with [`StorageErrorKind::Corrupt`]: a body, a message's items if none can be read, a message of the same id.
/// - **Bounded.** Memory does not grow with what is stored, only with leases held.
///
/// `storage_conformance!`, with the feature `testing`, makes tests of all this save the bound.
///
/// # Cancel safety
///
/// Once polled, `insert` and `commit` may complete even if the future is dropped, and perhaps only after later calls have
/// returned: what a server was told can not be called back. At every look such a call is there as a whole or not at all. Once the
/// store was dropped and opened again, it has come about or never will. The engine drops none of them, save the acknowledgement
/// of outbox entries where a shutdown can wait no longer.
///
/// Dropping a `claim` may leave items leased until the owner's lease runs out; the engine never drops one.
/// The other methods may be dropped at any time.
///
/// # Errors
///
/// [`StorageError`] carries a kind the engine acts on: see [`StorageErrorKind`].
#[async_trait]
pub trait Storage: Debug + Display + Send + Sync + 'static {
    /// Stores messages. The answers are in the order of the messages.
    ///
    /// A message whose id is stored, or was and is still remembered (at least [`ID_MEMORY`] after its last
    /// recipient was settled), is not stored again: [`Inserted::Duplicate`].
    async fn insert(&self, messages: Vec<NewMessage>) -> Result<Vec<Inserted>, StorageError>;

    /// The heads of up to `limit` lanes that hold items nobody has leased, in lane order, after the lane `after`.
    ///
    /// Reads heads, not messages. An empty answer: there are no more.
    async fn heads(&self, after: Option<Lane>, limit: usize) -> Result<Vec<LaneHead>, StorageError>;

    /// Leases items to `request.owner` and returns them, with fresh heads of all lanes that were asked.
    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, StorageError>;

    /// Extends all leases of `owner` until `until`. An engine does so as it starts: leases of an owner that has not said a time yet,
    /// by this or by a claim, hold as long as the opening that gave them.
    ///
    /// Times of leases are those of the engines' wall clocks. Where that is set forward by more than a lease lasts, one engine may
    /// take over what another has in flight.
    async fn renew(&self, owner: Owner, until: Timestamp) -> Result<(), StorageError>;

    /// Reads bodies. The answers are in the order of the keys; one that is gone or damaged fails alone.
    async fn bodies(
        &self,
        keys: Vec<BodyKey>,
    ) -> Result<Vec<Result<bytes::Bytes, StorageError>>, StorageError>;

    /// Applies changes in order, atomically. The answers are in the order of the changes.
    async fn commit(&self, changes: Vec<Change>) -> Result<Vec<ChangeOutcome>, StorageError>;

    /// State rows of the scheduler, in key order, after the key `after`, up to `limit`.
    async fn state(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Vec<StateRow>, StorageError>;

    /// The outbox in order, after the position `after`, up to `limit` entries.
    ///
    /// The engine goes on from the last position it was given. So no entry appears at or before a position that was returned here
    /// once: not from a commit that was under way meanwhile, not when all was acknowledged, not after a restart or a crash. A
    /// store that numbers entries before they can be seen answers up to the first that is still under way, and no further.
    async fn outbox(&self, after: OutboxPosition, limit: usize) -> Result<Vec<OutboxEntry>, StorageError>;

    /// Items that match `filter`, after the position `after`, whose item may be gone, up to `limit`, leased ones included: those
    /// of a lane in the order of due times and then of ids, all others in the order of ids. An empty answer: there are no more.
    ///
    /// Mail that comes, goes or gets another due time meanwhile may be in the answer or not. What a page costs depends on the
    /// [`Filter`].
    async fn list(
        &self,
        filter: Filter,
        after: Option<ListPosition>,
        limit: usize,
    ) -> Result<Vec<ItemSummary>, StorageError>;

    /// How many items `lane` holds, leased ones included.
    ///
    /// The stores of this crate walk over the keys of the lane's items, and over nothing of other lanes: a million
    /// take some 10 milliseconds in memory, 100 on disk. Without an implementation of its own a store lists the lane,
    /// page by page.
    async fn count(&self, lane: &Lane) -> Result<u64, StorageError> {
        count_by_listing(self, lane).await
    }

    /// What was met damaged and left aside, each entry once as long as the store is open, and not told here before. The
    /// engine asks as often as it calls [`maintain`](Self::maintain), and makes events of it.
    ///
    /// Without an implementation of its own a store has nothing to tell.
    async fn take_damage(&self) -> Vec<StorageError> {
        Vec::new()
    }

    /// Whether no other engine can use it as long as this one does: then leases end with the opening that gave them. A wrapper that
    /// can be cloned or shared answers `false`, whatever is in it. Where the answer is `false` an engine reads the heads of all lanes
    /// again every five minutes, since another one may have died and left its mail.
    fn is_exclusive(&self) -> bool {
        false
    }

    /// What there is room for. The engine asks often: the answer must be at hand.
    ///
    /// Without an implementation of its own a store has room for everything, until a call says otherwise.
    fn room(&self) -> Room {
        Room::Ample
    }

    /// How much is stored. Costs no scan.
    async fn usage(&self) -> Result<Usage, StorageError>;

    /// Called once a minute, unless the host sets another interval: give back space, forget old ids. May do nothing. While it goes on it is not called again,
    /// and other calls are to be answered.
    async fn maintain(&self, now: Timestamp) -> Result<(), StorageError>;
}

/// What [`Storage::count`] does without an implementation of its own.
async fn count_by_listing<S: Storage + ?Sized>(store: &S, lane: &Lane) -> Result<u64, StorageError> {
    const PAGE: usize = 1024;
    let mut count = 0;
    let mut after = None;
    loop {
        let page = store.list(Filter::Lane(lane.clone()), after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(count) };
        count += page.len() as u64;
        after = Some(last.position());
    }
}

fn _obj_safe(_: &dyn Storage) {}
