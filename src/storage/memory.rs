//! [`MemoryStorage`]: ordered maps in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::clock::Timestamp;
use crate::message::{EventId, MessageId};

use super::apply::{self, Effects};
use super::lease::LeaseTable;
use super::order::{LaneId, OrderKey};
use super::rows::{Counters, ItemHead, ItemRow, MessageRow, Met, Result, Rows, RowsMut};
use super::upkeep::Upkeep;
use super::{
    BodyKey, Change, ChangeOutcome, ClaimRequest, Claimed, Filter, Inserted, ItemId, ItemSummary, Lane,
    LaneHead, ListPosition, NewMessage, OutboxEntry, OutboxPosition, Owner, StateRow, Storage, StorageError,
    StorageErrorKind, Usage, listing, select,
};

/// A store in memory, for tests and for mail that may be lost with the process.
///
/// It keeps the whole contract of [`Storage`] save durability: all is gone with the last clone. Its size is bounded
/// by what is inserted only. Clones share one store. No method waits, so all may be dropped at any time.
#[derive(Clone, Default)]
pub struct MemoryStorage {
    state: Arc<Mutex<State>>,
}

struct State {
    tables: Tables,
    leases: LeaseTable,
    upkeep: Upkeep,
}

impl Default for State {
    fn default() -> Self {
        Self { tables: Tables::default(), leases: LeaseTable::new(0), upkeep: Upkeep::default() }
    }
}

impl MemoryStorage {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a crash and a restart would leave: the same mail, no leases.
    ///
    /// The new store takes the mail with it. This handle and its clones share it from then on and see the leases
    /// dropped as well, so that whoever still works with them finds the leases stale.
    pub fn reopened(&self) -> Self {
        let mut state = self.lock();
        state.tables.counters.openings += 1;
        state.leases = LeaseTable::new(state.tables.counters.openings);
        state.upkeep = Upkeep::default();
        drop(state);
        self.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("MemoryStorage").field("items", &state.tables.items.len()).finish_non_exhaustive()
    }
}

impl fmt::Display for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

#[async_trait]
impl Storage for MemoryStorage {
    async fn insert(&self, messages: Vec<NewMessage>) -> Result<Vec<Inserted>> {
        apply::check_messages(&messages)?;
        let mut state = self.lock();
        let State { tables, leases, .. } = &mut *state;
        let mut effects = Effects::default();
        let answers: Result<Vec<_>> =
            messages.iter().map(|message| apply::insert(tables, &mut effects, message)).collect();
        let granted = effects.grant(leases);
        effects.finish(leases);
        Ok(answers?.into_iter().map(|answer| apply::with_leases(answer, &granted)).collect())
    }

    async fn heads(&self, after: Option<Lane>, limit: usize) -> Result<Vec<LaneHead>> {
        let mut state = self.lock();
        let State { tables, leases, .. } = &mut *state;
        select::heads(tables, leases, after.as_ref(), limit)
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        let mut state = self.lock();
        let State { tables, leases, .. } = &mut *state;
        select::claim(tables, leases, &request)
    }

    async fn renew(&self, owner: Owner, until: Timestamp) -> Result<()> {
        self.lock().leases.extend(owner, until);
        Ok(())
    }

    async fn bodies(&self, keys: Vec<BodyKey>) -> Result<Vec<Result<Bytes>>> {
        let state = self.lock();
        let body = |key: &BodyKey| {
            let row = state.tables.messages.get(&key.0);
            row.map(|row| row.body.clone()).ok_or_else(|| no_body(*key))
        };
        Ok(keys.iter().map(body).collect())
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<Vec<ChangeOutcome>> {
        apply::check_changes(&changes)?;
        let mut state = self.lock();
        let State { tables, leases, .. } = &mut *state;
        let mut effects = Effects::default();
        let outcomes = changes
            .iter()
            .map(|change| {
                apply::change(tables, &mut effects, |item, lease| leases.is_current(item, lease), change)
            })
            .collect();
        effects.finish(leases);
        outcomes
    }

    async fn state(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Vec<StateRow>> {
        listing::state(&self.lock().tables, after.as_deref(), limit)
    }

    async fn outbox(&self, after: OutboxPosition, limit: usize) -> Result<Vec<OutboxEntry>> {
        listing::outbox(&self.lock().tables, after, limit)
    }

    async fn list(
        &self,
        filter: Filter,
        after: Option<ListPosition>,
        limit: usize,
    ) -> Result<Vec<ItemSummary>> {
        listing::page(after, limit, |after, limit| {
            let state = self.lock();
            let portion = listing::portion(&state.tables, &filter, after, limit)?;
            Ok(portion.mark_leased(&state.leases))
        })
    }

    async fn count(&self, lane: &Lane) -> Result<u64> {
        listing::count(&self.lock().tables, lane)
    }

    async fn usage(&self) -> Result<Usage> {
        let tables = &self.lock().tables;
        let (items, outbox) = (tables.items.len() as u64, tables.outbox.len() as u64);
        Ok(Usage { items, outbox, octets: tables.octets })
    }

    async fn maintain(&self, now: Timestamp) -> Result<()> {
        // In portions, for others to get on.
        let portion = || {
            let mut state = self.lock();
            let State { tables, leases, upkeep } = &mut *state;
            upkeep.run(tables, leases, now)
        };
        while portion()? {
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

/// A body that was asked for is not stored.
pub(super) fn no_body(key: BodyKey) -> StorageError {
    StorageError::new(StorageErrorKind::NotFound, format!("no body of message {} is stored", key.0))
}

#[derive(Default)]
struct Tables {
    counters: Counters,
    items: BTreeMap<ItemId, ItemRow>,
    messages: BTreeMap<MessageId, MessageRow<Bytes>>,
    parts: BTreeSet<(MessageId, ItemId)>,
    finished: BTreeMap<MessageId, u64>,
    lanes: BTreeMap<Lane, LaneId>,
    lane_names: BTreeMap<LaneId, Lane>,
    order: BTreeSet<OrderKey>,
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    outbox: BTreeMap<OutboxPosition, (EventId, Bytes)>,
    /// Of bodies and outbox payloads.
    octets: u64,
}

impl Rows for Tables {
    type Body = Bytes;

    fn leave_aside(&self, damage: StorageError) {
        // Memory is not damaged: only a mistake in this crate comes here.
        tracing::error!(%damage, "an entry can not be read and is left aside");
    }

    fn head(&self, item: ItemId) -> Result<Option<ItemHead>> {
        Ok(self.items.get(&item).map(ItemRow::head))
    }

    fn item(&self, item: ItemId) -> Result<Option<ItemRow>> {
        Ok(self.items.get(&item).cloned())
    }

    fn items_after(
        &self,
        after: Option<ItemId>,
    ) -> Result<impl Iterator<Item = Result<(ItemId, Result<ItemRow>)>>> {
        let from = after.map_or(Unbounded, Excluded);
        Ok(self.items.range((from, Unbounded)).map(|(id, row)| Ok((*id, Ok(row.clone())))))
    }

    fn message(&self, id: MessageId) -> Result<Option<MessageRow<Bytes>>> {
        Ok(self.messages.get(&id).cloned())
    }

    fn parts_after(
        &self,
        id: MessageId,
        after: Option<ItemId>,
    ) -> Result<impl Iterator<Item = Result<ItemId>>> {
        let from = after.map_or(Included((id, ItemId(0))), |after| Excluded((id, after)));
        Ok(self.parts.range((from, Included((id, ItemId(u64::MAX))))).map(|(_, item)| Ok(*item)))
    }

    fn is_finished(&self, id: MessageId) -> Result<bool> {
        Ok(self.finished.contains_key(&id))
    }

    fn finished_after(
        &self,
        after: Option<MessageId>,
    ) -> Result<impl Iterator<Item = Result<(MessageId, Result<u64>)>>> {
        let from = after.map_or(Unbounded, Excluded);
        Ok(self.finished.range((from, Unbounded)).map(|(id, generation)| Ok((*id, Ok(*generation)))))
    }

    fn lane_id(&self, lane: &Lane) -> Result<Option<LaneId>> {
        Ok(self.lanes.get(lane).copied())
    }

    fn lane(&self, id: LaneId) -> Result<Option<Lane>> {
        Ok(self.lane_names.get(&id).cloned())
    }

    fn lanes_after(&self, after: Option<&Lane>) -> Result<impl Iterator<Item = Met<(Lane, LaneId)>>> {
        let from = after.map_or(Unbounded, Excluded);
        Ok(self.lanes.range((from, Unbounded)).map(|(lane, id)| Ok(Ok((lane.clone(), *id)))))
    }

    fn order_from(&self, from: OrderKey) -> Result<impl Iterator<Item = Met<OrderKey>>> {
        Ok(self.order.range(from..).map(|key| Ok(Ok(*key))))
    }

    fn state_after(&self, after: Option<&[u8]>) -> Result<impl Iterator<Item = Met<StateRow>>> {
        let from = after.map_or(Unbounded, Excluded);
        let row =
            |(key, value): (&Vec<u8>, &Vec<u8>)| Ok(Ok(StateRow { key: key.clone(), value: value.clone() }));
        Ok(self.state.range::<[u8], _>((from, Unbounded)).map(row))
    }

    fn outbox_after(
        &self,
        after: OutboxPosition,
    ) -> Result<impl Iterator<Item = Result<(OutboxPosition, Result<OutboxEntry>)>>> {
        let entry = |(position, (event, payload)): (&OutboxPosition, &(EventId, Bytes))| {
            let entry = OutboxEntry { position: *position, event: *event, payload: payload.clone() };
            Ok((*position, Ok(entry)))
        };
        Ok(self.outbox.range((Excluded(after), Unbounded)).map(entry))
    }
}

impl RowsMut for Tables {
    fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    fn put_item(&mut self, item: ItemId, row: &ItemRow) -> Result<()> {
        self.items.insert(item, row.clone());
        Ok(())
    }

    fn remove_item(&mut self, item: ItemId) -> Result<()> {
        self.items.remove(&item);
        Ok(())
    }

    fn put_body(&mut self, _: MessageId, body: &Bytes) -> Result<Bytes> {
        self.octets += body.len() as u64;
        Ok(body.clone())
    }

    fn put_message(&mut self, id: MessageId, row: &MessageRow<Bytes>) -> Result<()> {
        self.messages.insert(id, row.clone());
        Ok(())
    }

    fn remove_message(&mut self, id: MessageId, row: &MessageRow<Bytes>) -> Result<()> {
        self.messages.remove(&id);
        self.octets = self.octets.saturating_sub(row.body.len() as u64);
        Ok(())
    }

    fn forget_message(&mut self, id: MessageId) -> Result<()> {
        self.messages.remove(&id);
        Ok(())
    }

    fn put_part(&mut self, id: MessageId, item: ItemId) -> Result<()> {
        self.parts.insert((id, item));
        Ok(())
    }

    fn remove_part(&mut self, id: MessageId, item: ItemId) -> Result<()> {
        self.parts.remove(&(id, item));
        Ok(())
    }

    fn put_finished(&mut self, id: MessageId, generation: u64) -> Result<()> {
        self.finished.insert(id, generation);
        Ok(())
    }

    fn remove_finished(&mut self, id: MessageId) -> Result<()> {
        self.finished.remove(&id);
        Ok(())
    }

    fn put_lane(&mut self, id: LaneId, lane: &Lane) -> Result<()> {
        self.lanes.insert(lane.clone(), id);
        self.lane_names.insert(id, lane.clone());
        Ok(())
    }

    fn remove_lane(&mut self, id: LaneId, lane: &Lane) -> Result<()> {
        self.lanes.remove(lane);
        self.lane_names.remove(&id);
        Ok(())
    }

    fn put_order(&mut self, key: OrderKey) -> Result<()> {
        self.order.insert(key);
        Ok(())
    }

    fn remove_order(&mut self, key: OrderKey) -> Result<()> {
        self.order.remove(&key);
        Ok(())
    }

    fn put_state(&mut self, row: &StateRow) -> Result<()> {
        self.state.insert(row.key.clone(), row.value.clone());
        Ok(())
    }

    fn remove_state(&mut self, key: &[u8]) -> Result<()> {
        self.state.remove(key);
        Ok(())
    }

    fn put_outbox(&mut self, position: OutboxPosition, event: EventId, payload: &Bytes) -> Result<()> {
        self.octets += payload.len() as u64;
        self.outbox.insert(position, (event, payload.clone()));
        Ok(())
    }

    fn remove_outbox(&mut self, up_to: OutboxPosition) -> Result<()> {
        while let Some(first) = self.outbox.first_entry().filter(|entry| *entry.key() <= up_to) {
            let (_, payload) = first.remove();
            self.octets = self.octets.saturating_sub(payload.len() as u64);
        }
        Ok(())
    }
}
