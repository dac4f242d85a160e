//! [`JournalStore`]: tables in memory, and a journal of what changed them.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use postrider::clock::Timestamp;
use postrider::storage::{
    BodyKey, Change, ChangeOutcome, ClaimPart, ClaimRequest, Claimed, Envelope, Filter, Inserted, Item,
    ItemId, ItemSummary, Lane, LaneHead, ListPosition, NewMessage, OutboxEntry, OutboxPosition, Owner,
    StateRow, Storage, StorageError, StorageErrorKind, Usage,
};

use crate::journal::{self, Flush, Journal};
use crate::leases::Leases;
use crate::tables::{Entry, Row, Tables};

/// The journal is written anew, without what is gone, when it is this much longer than it was then.
const MOST_GROWTH: u64 = 1 << 20;

type Result<T> = std::result::Result<T, StorageError>;

/// A store for as much mail as fits into memory, in a folder of its own.
///
/// Every change is applied in memory, appended to the journal and flushed before it is acknowledged; opening reads the
/// journal. It blocks the thread meanwhile, looks at every item of a lane it claims from, and stops for good when the
/// disk is full: a store for much mail does better, under the same tests.
pub struct JournalStore {
    inner: Mutex<Inner>,
    /// Locked as long as the store is open.
    _lock: File,
}

struct Inner {
    tables: Tables,
    leases: Leases,
    journal: Journal,
    /// A write failed: nobody knows what is in the journal.
    poisoned: bool,
}

impl JournalStore {
    /// Opens the store in a folder, or makes one.
    ///
    /// # Errors
    /// [`StorageErrorKind::Locked`], [`StorageErrorKind::Corrupt`], and what the file system says.
    pub fn open(folder: impl AsRef<Path>, flush: Flush) -> Result<Self> {
        let folder = folder.as_ref();
        fs::create_dir_all(folder).map_err(failed)?;
        let lock = File::create(folder.join("lock")).map_err(failed)?;
        lock.try_lock().map_err(|error| {
            StorageError::new(StorageErrorKind::Locked, "another process has it").with_source(error)
        })?;
        let mut tables = match fs::read(folder.join("journal")) {
            Ok(octets) => journal::read(&octets)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Tables::default(),
            Err(error) => return Err(failed(error)),
        };
        tables.apply(Entry::Opened);
        let journal = Journal::start(folder, flush, &tables).map_err(failed)?;
        let leases = Leases::new(tables.openings);
        let inner = Inner { tables, leases, journal, poisoned: false };
        Ok(Self { inner: Mutex::new(inner), _lock: lock })
    }

    fn lock(&self) -> Result<MutexGuard<'_, Inner>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.poisoned {
            true => Err(StorageError::new(StorageErrorKind::Poisoned, "an earlier write failed")),
            false => Ok(inner),
        }
    }
}

#[async_trait]
impl Storage for JournalStore {
    async fn insert(&self, messages: Vec<NewMessage>) -> Result<Vec<Inserted>> {
        let is_empty = |message: &NewMessage| {
            message.items.is_empty() || message.items.iter().any(|item| item.recipients.is_empty())
        };
        if messages.iter().any(is_empty) {
            return Err(StorageError::new(
                StorageErrorKind::Invalid,
                "a message without an item, or an item without a recipient",
            ));
        }
        let mut inner = self.lock()?;
        let mut batch = Batch::default();
        let answers = messages.into_iter().map(|message| inner.insert(&mut batch, message)).collect();
        inner.write(batch)?;
        Ok(answers)
    }

    async fn heads(&self, after: Option<Lane>, limit: usize) -> Result<Vec<LaneHead>> {
        let inner = self.lock()?;
        let lanes = inner.tables.lanes.range((after.as_ref().map_or(Unbounded, Excluded), Unbounded));
        let heads = lanes.map(|(lane, _)| inner.head(lane)).filter(|head| head.next_due.is_some());
        Ok(heads.take(limit).collect())
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        let mut inner = self.lock()?;
        inner.leases.extend(request.owner, request.until);
        inner.leases.expire(request.now);
        let (mut items, mut lanes) = (Vec::new(), BTreeSet::new());
        for part in request.what {
            let (lane, chosen) = inner.choose(part, request.owner)?;
            items.extend(chosen.into_iter().filter_map(|item| inner.take(item, request.owner)));
            lanes.extend(lane);
        }
        let heads = lanes.iter().map(|lane| inner.head(lane)).collect();
        Ok(Claimed { items, heads })
    }

    async fn renew(&self, owner: Owner, until: Timestamp) -> Result<()> {
        self.lock()?.leases.extend(owner, until);
        Ok(())
    }

    async fn bodies(&self, keys: Vec<BodyKey>) -> Result<Vec<Result<Bytes>>> {
        let inner = self.lock()?;
        let body = |key: BodyKey| match inner.tables.messages.get(&key.0) {
            Some(message) => Ok(Bytes::copy_from_slice(&message.body)),
            None => Err(StorageError::new(StorageErrorKind::NotFound, format!("no body of {}", key.0))),
        };
        Ok(keys.into_iter().map(body).collect())
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<Vec<ChangeOutcome>> {
        // Whether the whole batch is valid must be known before any of it is applied.
        let invalid = |change: &Change| match change {
            Change::PutState(row) => row.key.len() > 512,
            Change::Update { .. } | Change::Unclaim { .. } | Change::DeleteState(_) => false,
            Change::Report { .. } | Change::Acknowledge(_) => false,
            _ => true,
        };
        if changes.iter().any(invalid) {
            return Err(StorageError::new(StorageErrorKind::Invalid, "not a change this store can keep"));
        }
        let mut inner = self.lock()?;
        let mut batch = Batch::default();
        let outcomes = changes.into_iter().map(|change| inner.change(&mut batch, change)).collect();
        inner.write(batch)?;
        Ok(outcomes)
    }

    async fn state(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Vec<StateRow>> {
        let inner = self.lock()?;
        let rows = inner.tables.state.range((after.map_or(Unbounded, Excluded), Unbounded)).take(limit);
        Ok(rows.map(|(key, value)| StateRow { key: key.clone(), value: value.clone() }).collect())
    }

    async fn outbox(&self, after: OutboxPosition, limit: usize) -> Result<Vec<OutboxEntry>> {
        let inner = self.lock()?;
        let entries = inner.tables.outbox.range((Excluded(after.0), Unbounded)).take(limit);
        let entry = |(at, (event, payload)): (&u64, &(_, Vec<u8>))| OutboxEntry {
            position: OutboxPosition(*at),
            event: *event,
            payload: Bytes::copy_from_slice(payload),
        };
        Ok(entries.map(entry).collect())
    }

    async fn list(
        &self,
        filter: Filter,
        after: Option<ListPosition>,
        limit: usize,
    ) -> Result<Vec<ItemSummary>> {
        let inner = self.lock()?;
        let tables = &inner.tables;
        let tagged = |row: &Row, name, value| {
            tables.envelope(row).is_some_and(|envelope| envelope.tags.get(name) == Some(value))
        };
        let rows: Box<dyn Iterator<Item = &ItemId>> = match &filter {
            Filter::All => Box::new(tables.items.keys()),
            Filter::Message(id) => Box::new(tables.messages.get(id).into_iter().flat_map(|m| &m.items)),
            Filter::Lane(lane) => return Ok(inner.of_lane(lane, after, limit)),
            Filter::Tag { name, value } => {
                let rows = tables.items.iter().filter(move |(_, row)| tagged(row, name, value));
                Box::new(rows.map(|(id, _)| id))
            }
            _ => return Err(StorageError::new(StorageErrorKind::Invalid, "an unknown filter")),
        };
        let page = rows.filter(|id| Some(**id) > after.map(|after| after.id)).take(limit);
        Ok(page.filter_map(|id| inner.summary(*id)).collect())
    }

    /// Its folder is locked.
    fn is_exclusive(&self) -> bool {
        true
    }

    async fn usage(&self) -> Result<Usage> {
        let inner = self.lock()?;
        let (items, outbox) = (inner.tables.items.len() as u64, inner.tables.outbox.len() as u64);
        Ok(Usage { items, outbox, octets: inner.journal.length() })
    }

    async fn maintain(&self, now: Timestamp) -> Result<()> {
        let mut inner = self.lock()?;
        if inner.tables.is_late(now) {
            let mut batch = Batch::default();
            inner.apply(&mut batch, Entry::Time(now));
            inner.write(batch)?;
        }
        if inner.journal.has_grown(MOST_GROWTH) {
            let Inner { journal, tables, .. } = &mut *inner;
            journal.start_anew(tables).map_err(failed)?;
        }
        Ok(())
    }
}

/// Entries applied in memory and not written yet.
#[derive(Default)]
struct Batch(Vec<u8>);

impl Inner {
    fn apply(&mut self, batch: &mut Batch, entry: Entry) -> Vec<ItemId> {
        let octets = std::mem::take(&mut batch.0);
        batch.0 = postcard::to_extend(&entry, octets).expect("writing to memory does not fail");
        self.tables.apply(entry)
    }

    /// Nothing of a batch is seen before this has written it: the lock is held all along.
    fn write(&mut self, batch: Batch) -> Result<()> {
        if batch.0.is_empty() {
            return Ok(());
        }
        self.journal.append(&batch.0).map_err(|error| {
            self.poisoned = true;
            StorageError::new(StorageErrorKind::OutcomeUnknown, "the journal can not be written")
                .with_source(error)
        })
    }

    fn insert(&mut self, batch: &mut Batch, message: NewMessage) -> Inserted {
        if self.tables.knows(message.envelope.id) {
            return Inserted::Duplicate;
        }
        let owners: Vec<_> = message.items.iter().map(|item| item.claim_for).collect();
        let items = message.items.into_iter().map(|item| (item.lane, item.due, item.recipients));
        let (envelope, body, host_id) = (message.envelope, message.body.to_vec(), message.host_id);
        let new = self.apply(batch, Entry::Insert { envelope, body, items: items.collect(), host_id });
        let lease = |(item, owner): (ItemId, Option<Owner>)| {
            (item, owner.map(|owner| self.leases.grant(item, owner)))
        };
        Inserted::Stored(new.into_iter().zip(owners).map(lease).collect())
    }

    fn change(&mut self, batch: &mut Batch, change: Change) -> ChangeOutcome {
        let entry = match change {
            Change::Update { item, lease, .. }
            | Change::Unclaim { item, lease }
            | Change::Report { of: Some((item, lease)), .. }
                if !self.leases.is_current(item, lease) =>
            {
                return ChangeOutcome::Stale;
            }
            Change::Update { item, settled, released, .. } => {
                let released = released.into_iter().map(|part| (part.due, part.recipients)).collect();
                self.apply(batch, Entry::Update { item, settled, released });
                if !self.tables.items.contains_key(&item) {
                    self.leases.end(item);
                }
                return ChangeOutcome::Applied;
            }
            Change::Unclaim { item, .. } => {
                self.leases.end(item);
                return ChangeOutcome::Applied;
            }
            Change::PutState(row) => Entry::PutState(row.key, row.value),
            Change::DeleteState(key) => Entry::DeleteState(key),
            Change::Report { event, payload, .. } => Entry::Report(event, payload.to_vec()),
            Change::Acknowledge(position) => Entry::Acknowledge(position.0),
            _ => unreachable!("commit has refused it"),
        };
        self.apply(batch, entry);
        ChangeOutcome::Applied
    }

    /// The items that a part of a claim is about, and its lane.
    fn choose(&self, part: ClaimPart, owner: Owner) -> Result<(Option<Lane>, Vec<ItemId>)> {
        type Key = fn(&Row, &Envelope) -> Option<Timestamp>;
        let (key, lane, before, limit): (Key, _, _, _) = match part {
            ClaimPart::Due { lane, before, limit } => (due, lane, before, limit),
            ClaimPart::Age { lane, before, limit } => (age, lane, before, limit),
            ClaimPart::AgeWithExpiry { lane, before, limit } => (age_with_expiry, lane, before, limit),
            ClaimPart::Expiry { lane, before, limit } => (expiry, lane, before, limit),
            ClaimPart::Items(items) => {
                let mine = |item: &ItemId| self.leases.own(*item, owner).is_some();
                let free = |item: &ItemId| !self.leases.is_held(*item);
                return Ok((None, items.into_iter().filter(|item| mine(item) || free(item)).collect()));
            }
            _ => return Err(StorageError::new(StorageErrorKind::Invalid, "an unknown claim")),
        };
        let mut chosen: Vec<_> = self.free(&lane, key).filter(|(time, _)| *time <= before).collect();
        chosen.sort_unstable();
        chosen.truncate(limit);
        Ok((Some(lane), chosen.into_iter().map(|(_, item)| item).collect()))
    }

    fn take(&mut self, id: ItemId, owner: Owner) -> Option<Item> {
        let row = self.tables.items.get(&id)?;
        let envelope = self.tables.envelope(row)?.clone();
        let lease = self.leases.own(id, owner).unwrap_or_else(|| self.leases.grant(id, owner));
        let (lane, due, recipients) = (row.lane.clone(), row.due, row.recipients.clone());
        Some(Item { id, lease, lane, due, envelope, recipients })
    }

    /// The items of a lane that nobody has leased and that have such a time.
    fn free(
        &self,
        lane: &Lane,
        key: fn(&Row, &Envelope) -> Option<Timestamp>,
    ) -> impl Iterator<Item = (Timestamp, ItemId)> {
        let ids = self.tables.lanes.get(lane).into_iter().flatten().copied();
        ids.filter(|id| !self.leases.is_held(*id)).filter_map(move |id| {
            let row = self.tables.items.get(&id)?;
            Some((key(row, self.tables.envelope(row)?)?, id))
        })
    }

    fn head(&self, lane: &Lane) -> LaneHead {
        let first = |key| self.free(lane, key).map(|(time, _)| time).min();
        LaneHead {
            lane: lane.clone(),
            next_due: first(due),
            oldest: first(age),
            oldest_with_expiry: first(age_with_expiry),
            first_expiry: first(expiry),
        }
    }

    /// Sorts the whole lane for each page: a store for large lanes keeps them in this order.
    fn of_lane(&self, lane: &Lane, after: Option<ListPosition>, limit: usize) -> Vec<ItemSummary> {
        let items = self.tables.lanes.get(lane).into_iter().flatten();
        let position = |id: &ItemId| Some(ListPosition { due: self.tables.items.get(id)?.due, id: *id });
        let mut page: Vec<_> =
            items.filter_map(position).filter(|position| Some(*position) > after).collect();
        page.sort_unstable();
        page.truncate(limit);
        page.into_iter().filter_map(|position| self.summary(position.id)).collect()
    }

    fn summary(&self, id: ItemId) -> Option<ItemSummary> {
        let row = self.tables.items.get(&id)?;
        let leased = self.leases.is_held(id);
        let envelope = self.tables.envelope(row)?.clone();
        let (lane, recipients) = (row.lane.clone(), row.recipients.clone());
        Some(ItemSummary { id, envelope, lane, due: row.due, leased, recipients })
    }
}

fn due(row: &Row, _: &Envelope) -> Option<Timestamp> {
    Some(row.due)
}

fn age(_: &Row, envelope: &Envelope) -> Option<Timestamp> {
    envelope.expires_at.is_none().then_some(envelope.age_from)
}

fn age_with_expiry(_: &Row, envelope: &Envelope) -> Option<Timestamp> {
    envelope.expires_at.map(|_| envelope.age_from)
}

fn expiry(_: &Row, envelope: &Envelope) -> Option<Timestamp> {
    envelope.expires_at
}

fn failed(error: io::Error) -> StorageError {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull => StorageErrorKind::Full,
        _ => StorageErrorKind::Temporary,
    };
    StorageError::new(kind, "the journal's folder can not be used").with_source(error)
}

impl fmt::Debug for JournalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalStore").finish_non_exhaustive()
    }
}

impl fmt::Display for JournalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a journal")
    }
}
