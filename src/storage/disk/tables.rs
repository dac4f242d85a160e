//! The metadata: redb tables, read and written row by row.

use std::collections::BTreeMap;

use bytes::Bytes;
use redb::{
    Key, ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, Value, WriteTransaction,
};
use uuid::Uuid;

use crate::message::{EventId, MessageId};
use crate::storage::order::{LaneId, OrderKey};
use crate::storage::rows::{Counters, ItemHead, ItemRow, MessageRow, Result, Rows, RowsMut};
use crate::storage::{ItemId, Lane, OutboxEntry, OutboxPosition, StateRow, StorageError};

use super::codec::{self, Location};
use super::error::{corrupt, db};
use super::segment::SegmentWriter;

type IdKey = &'static [u8; 16];
type PartKey = &'static [u8; 24];
type OrderBytes = &'static [u8; OrderKey::OCTETS];
type LaneKey = (&'static str, &'static str, u8);
// Values with their checksums, which cover the key too. Entries of `order` and `parts` are keys alone, without a checksum:
// `DiskStorage::check` holds them against the items they name.
/// Generation.
type Finished = (u64, u32);
type State = (u32, &'static [u8]);
/// Event and payload.
type Report = (IdKey, u32, &'static [u8]);
/// Octets and records.
type Alive = (u64, u64, u32);

pub(super) const META: TableDefinition<'_, &'static str, &'static [u8]> = TableDefinition::new("meta");
const ITEMS: TableDefinition<'_, u64, &'static [u8]> = TableDefinition::new("items");
const MESSAGES: TableDefinition<'_, IdKey, &'static [u8]> = TableDefinition::new("messages");
const PARTS: TableDefinition<'_, PartKey, ()> = TableDefinition::new("parts");
const FINISHED: TableDefinition<'_, IdKey, Finished> = TableDefinition::new("finished");
const LANES: TableDefinition<'_, LaneKey, (u64, &'static [u8])> = TableDefinition::new("lanes");
const LANE_NAMES: TableDefinition<'_, u64, &'static [u8]> = TableDefinition::new("lane-names");
const ORDER: TableDefinition<'_, OrderBytes, ()> = TableDefinition::new("order");
const STATE: TableDefinition<'_, &'static [u8], State> = TableDefinition::new("state");
const OUTBOX: TableDefinition<'_, u64, Report> = TableDefinition::new("outbox");
const SEGMENTS: TableDefinition<'_, u64, Alive> = TableDefinition::new("segments");

pub(super) const COUNTERS: &str = "counters";

/// Tables of a read or of a write transaction.
pub(super) trait Access {
    type Table<K: Key + 'static, V: Value + 'static>: ReadableTable<K, V>;
}

pub(super) struct Reading;

impl Access for Reading {
    type Table<K: Key + 'static, V: Value + 'static> = ReadOnlyTable<K, V>;
}

pub(super) struct Writing<'t>(std::marker::PhantomData<&'t ()>);

impl<'t> Access for Writing<'t> {
    type Table<K: Key + 'static, V: Value + 'static> = Table<'t, K, V>;
}

/// All tables.
pub(super) struct Tables<A: Access> {
    pub(super) items: A::Table<u64, &'static [u8]>,
    pub(super) messages: A::Table<IdKey, &'static [u8]>,
    pub(super) parts: A::Table<PartKey, ()>,
    pub(super) finished: A::Table<IdKey, Finished>,
    pub(super) lanes: A::Table<LaneKey, (u64, &'static [u8])>,
    pub(super) lane_names: A::Table<u64, &'static [u8]>,
    pub(super) order: A::Table<OrderBytes, ()>,
    state: A::Table<&'static [u8], State>,
    pub(super) outbox: A::Table<u64, Report>,
    pub(super) segments: A::Table<u64, Alive>,
}

macro_rules! open_tables {
    ($transaction:expr) => {
        Tables {
            items: $transaction.open_table(ITEMS).map_err(db)?,
            messages: $transaction.open_table(MESSAGES).map_err(db)?,
            parts: $transaction.open_table(PARTS).map_err(db)?,
            finished: $transaction.open_table(FINISHED).map_err(db)?,
            lanes: $transaction.open_table(LANES).map_err(db)?,
            lane_names: $transaction.open_table(LANE_NAMES).map_err(db)?,
            order: $transaction.open_table(ORDER).map_err(db)?,
            state: $transaction.open_table(STATE).map_err(db)?,
            outbox: $transaction.open_table(OUTBOX).map_err(db)?,
            segments: $transaction.open_table(SEGMENTS).map_err(db)?,
        }
    };
}

impl Tables<Reading> {
    pub(super) fn open(transaction: &ReadTransaction) -> Result<Self> {
        Ok(open_tables!(transaction))
    }
}

impl<'t> Tables<Writing<'t>> {
    pub(super) fn create(transaction: &'t WriteTransaction) -> Result<Self> {
        Ok(open_tables!(transaction))
    }
}

impl<A: Access> Tables<A> {
    /// Body files with what is alive in them: octets and records.
    pub(super) fn segments(&self) -> Result<BTreeMap<u64, (u64, u64)>> {
        let row = |entry: Entry<'_, u64, Alive>| {
            let (segment, alive) = entry.map_err(db)?;
            Ok((segment.value(), codec::alive_in(segment.value(), alive.value())?))
        };
        self.segments.range::<u64>(..).map_err(db)?.map(row).collect()
    }
}

type Entry<'a, K, V> =
    std::result::Result<(redb::AccessGuard<'a, K>, redb::AccessGuard<'a, V>), redb::StorageError>;

pub(super) fn id_from(bytes: &[u8; 16]) -> MessageId {
    MessageId::from_uuid(Uuid::from_bytes(*bytes))
}

fn id_key(id: &MessageId) -> &[u8; 16] {
    id.as_uuid().as_bytes()
}

pub(super) fn part_key(id: MessageId, item: ItemId) -> [u8; 24] {
    let mut key = [0; 24];
    let (message, part) = key.split_at_mut(16);
    message.copy_from_slice(id_key(&id));
    part.copy_from_slice(&item.0.to_be_bytes());
    key
}

fn part_item(key: &[u8; 24]) -> ItemId {
    ItemId(key.last_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes)))
}

fn lane_key(lane: &Lane) -> (&str, &str, u8) {
    // The declaration order of priorities is their sort order.
    (lane.domain.as_str(), &lane.source, lane.priority as u8)
}

fn misplaced(id: LaneId) -> StorageError {
    corrupt(format!("the row of lane {id} is damaged: it lies under another name"))
}

/// `after` as the start of a range of numbers.
fn above(after: u64) -> std::ops::RangeFrom<u64> {
    // Nothing is ever numbered `u64::MAX`.
    after.saturating_add(1)..
}

impl<A: Access> Rows for Tables<A> {
    type Body = Location;

    fn head(&self, item: ItemId) -> Result<Option<ItemHead>> {
        let row = self.items.get(item.0).map_err(db)?;
        row.map(|row| codec::item_head(item, row.value())).transpose()
    }

    fn item(&self, item: ItemId) -> Result<Option<ItemRow>> {
        let row = self.items.get(item.0).map_err(db)?;
        row.map(|row| codec::item_from_row(item, row.value())).transpose()
    }

    fn items_after(&self, after: Option<ItemId>) -> Result<impl Iterator<Item = Result<(ItemId, ItemRow)>>> {
        let range = self.items.range(above(after.map_or(0, |item| item.0))).map_err(db)?;
        Ok(range.map(|entry| {
            let (item, row) = entry.map_err(db)?;
            let item = ItemId(item.value());
            Ok((item, codec::item_from_row(item, row.value())?))
        }))
    }

    fn message(&self, id: MessageId) -> Result<Option<MessageRow<Location>>> {
        let row = self.messages.get(id_key(&id)).map_err(db)?;
        row.map(|row| codec::message_from_row(id, row.value())).transpose()
    }

    fn parts_after(
        &self,
        id: MessageId,
        after: Option<ItemId>,
    ) -> Result<impl Iterator<Item = Result<ItemId>>> {
        let first = part_key(id, ItemId(after.map_or(0, |item| item.0.saturating_add(1))));
        let last = part_key(id, ItemId(u64::MAX));
        let range = self.parts.range::<&[u8; 24]>(&first..=&last).map_err(db)?;
        Ok(range.map(|entry| Ok(part_item(entry.map_err(db)?.0.value()))))
    }

    fn is_finished(&self, id: MessageId) -> Result<bool> {
        Ok(self.finished.get(id_key(&id)).map_err(db)?.is_some())
    }

    fn finished_after(
        &self,
        after: Option<MessageId>,
    ) -> Result<impl Iterator<Item = Result<(MessageId, u64)>>> {
        let first = after.map(|id| id.as_uuid().as_u128());
        let range = match first.map_or(Some(0), |id| id.checked_add(1)) {
            Some(first) => Some(self.finished.range::<&[u8; 16]>(&first.to_be_bytes()..).map_err(db)?),
            None => None,
        };
        Ok(range.into_iter().flatten().map(|entry| {
            let (id, row) = entry.map_err(db)?;
            let (id, (generation, checksum)) = (id_from(id.value()), row.value());
            let parts: [&[u8]; 2] = [id_key(&id), &generation.to_le_bytes()];
            codec::verify(format_args!("the row of finished message {id}"), checksum, &parts)?;
            Ok((id, generation))
        }))
    }

    fn lane_id(&self, lane: &Lane) -> Result<Option<LaneId>> {
        let Some(row) = self.lanes.get(lane_key(lane)).map_err(db)? else { return Ok(None) };
        let (id, row) = row.value();
        let found = codec::lane_from_row(id, row)?;
        if found == *lane { Ok(Some(id)) } else { Err(misplaced(id)) }
    }

    fn lane(&self, id: LaneId) -> Result<Option<Lane>> {
        let row = self.lane_names.get(id).map_err(db)?;
        row.map(|row| codec::lane_from_row(id, row.value())).transpose()
    }

    fn lanes_after(&self, after: Option<&Lane>) -> Result<impl Iterator<Item = Result<(Lane, LaneId)>>> {
        let from = after.map_or(std::ops::Bound::Unbounded, |lane| std::ops::Bound::Excluded(lane_key(lane)));
        let range = self.lanes.range((from, std::ops::Bound::Unbounded)).map_err(db)?;
        Ok(range.map(|entry| {
            let (key, row) = entry.map_err(db)?;
            let (id, row) = row.value();
            let lane = codec::lane_from_row(id, row)?;
            if lane_key(&lane) == key.value() { Ok((lane, id)) } else { Err(misplaced(id)) }
        }))
    }

    fn order_from(&self, from: OrderKey) -> Result<impl Iterator<Item = Result<OrderKey>>> {
        let range = self.order.range::<&[u8; OrderKey::OCTETS]>(&from.to_bytes()..).map_err(db)?;
        Ok(range.map(|entry| {
            let key = entry.map_err(db)?.0;
            OrderKey::from_bytes(key.value()).ok_or_else(|| corrupt("a key of the order is damaged"))
        }))
    }

    fn state_after(&self, after: Option<&[u8]>) -> Result<impl Iterator<Item = Result<StateRow>>> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let range = self.state.range::<&[u8]>((from, std::ops::Bound::Unbounded)).map_err(db)?;
        Ok(range.map(|entry| {
            let (key, value) = entry.map_err(db)?;
            let (key, (checksum, value)) = (key.value(), value.value());
            let what = format_args!("the state row {}", key.escape_ascii());
            codec::verify(what, checksum, &[key, value])?;
            Ok(StateRow { key: key.to_vec(), value: value.to_vec() })
        }))
    }

    fn outbox_after(&self, after: OutboxPosition) -> Result<impl Iterator<Item = Result<OutboxEntry>>> {
        let range = self.outbox.range(above(after.0)).map_err(db)?;
        Ok(range.map(|entry| {
            let (position, row) = entry.map_err(db)?;
            let (position, (event, checksum, payload)) = (position.value(), row.value());
            let what = format_args!("the outbox entry {position}");
            codec::verify(what, checksum, &[&position.to_le_bytes(), event, payload])?;
            Ok(OutboxEntry {
                position: OutboxPosition(position),
                event: EventId::from_uuid(Uuid::from_bytes(*event)),
                payload: Bytes::copy_from_slice(payload),
            })
        }))
    }
}

/// Tables of a write transaction, the counters and the bodies that go with it.
pub(super) struct Writer<'t, 's> {
    tables: Tables<Writing<'t>>,
    pub(super) bodies: &'s mut SegmentWriter,
    counters: Counters,
    counters_before: Counters,
    /// Change of what is alive in each body file: octets and records.
    alive: BTreeMap<u64, (i64, i64)>,
    changed: bool,
    buffer: Vec<u8>,
}

impl<'t, 's> Writer<'t, 's> {
    pub(super) fn new(
        transaction: &'t WriteTransaction,
        counters: &Counters,
        bodies: &'s mut SegmentWriter,
    ) -> Result<Self> {
        let mut alive = BTreeMap::new();
        // Touched, so that it goes if nothing in it is alive.
        alive.extend(bodies.seal(false).map(|sealed| (sealed, (0, 0))));
        Ok(Self {
            tables: Tables::create(transaction)?,
            bodies,
            counters: counters.clone(),
            counters_before: counters.clone(),
            changed: !alive.is_empty(),
            alive,
            buffer: Vec::new(),
        })
    }

    /// Closes the current body file, so that it may go.
    pub(super) fn seal(&mut self) {
        if let Some(sealed) = self.bodies.seal(true) {
            self.recheck(sealed);
        }
    }

    pub(super) fn segments(&self) -> Result<BTreeMap<u64, (u64, u64)>> {
        self.tables.segments()
    }

    /// A message's body was copied elsewhere.
    pub(super) fn move_body(
        &mut self,
        id: MessageId,
        mut row: MessageRow<Location>,
        to: (u64, u64),
    ) -> Result<()> {
        self.touch_body(row.body, -1);
        (row.body.segment, row.body.offset) = to;
        self.touch_body(row.body, 1);
        self.put_message(id, &row)
    }

    /// Looks whether anything in a body file is alive.
    pub(super) fn recheck(&mut self, segment: u64) {
        self.touch(segment, 0, 0);
    }

    fn touch_body(&mut self, body: Location, sign: i64) {
        self.touch(body.segment, sign * i64::from(body.length), sign);
    }

    fn touch(&mut self, segment: u64, octets: i64, records: i64) {
        let alive = self.alive.entry(segment).or_default();
        *alive = (alive.0 + octets, alive.1 + records);
        self.changed = true;
    }

    /// Writes what was gathered. Returns the counters, whether there is anything to commit, and the body files
    /// that nobody needs once it is committed.
    pub(super) fn finish(mut self, meta: &WriteTransaction) -> Result<(Counters, bool, Vec<u64>)> {
        let writing = self.bodies.writing();
        let mut dead = Vec::new();
        for (segment, (octets, records)) in std::mem::take(&mut self.alive) {
            let before = self.tables.segments.get(segment).map_err(db)?.map(|row| row.value());
            let before = before.map_or(Ok((0, 0)), |row| codec::alive_in(segment, row))?;
            let after = (before.0.saturating_add_signed(octets), before.1.saturating_add_signed(records));
            if after.1 == 0 && segment != writing {
                self.tables.segments.remove(segment).map_err(db)?;
                dead.push(segment);
            } else if after != before {
                self.tables.segments.insert(segment, codec::alive_row(segment, after)).map_err(db)?;
            }
        }
        if self.counters != self.counters_before {
            let row = codec::to_row(COUNTERS.as_bytes(), &self.counters)?;
            meta.open_table(META).map_err(db)?.insert(COUNTERS, row.as_slice()).map_err(db)?;
            self.changed = true;
        }
        Ok((self.counters, self.changed, dead))
    }
}

/// Passes reading on to the tables.
macro_rules! delegate {
    ($(fn $name:ident(&self $(, $arg:ident: $type:ty)*) -> $answer:ty;)*) => {
        $(fn $name(&self $(, $arg: $type)*) -> $answer { self.tables.$name($($arg),*) })*
    };
}

impl Rows for Writer<'_, '_> {
    type Body = Location;

    delegate! {
        fn head(&self, item: ItemId) -> Result<Option<ItemHead>>;
        fn item(&self, item: ItemId) -> Result<Option<ItemRow>>;
        fn items_after(&self, after: Option<ItemId>) -> Result<impl Iterator<Item = Result<(ItemId, ItemRow)>>>;
        fn message(&self, id: MessageId) -> Result<Option<MessageRow<Location>>>;
        fn parts_after(&self, id: MessageId, after: Option<ItemId>) -> Result<impl Iterator<Item = Result<ItemId>>>;
        fn is_finished(&self, id: MessageId) -> Result<bool>;
        fn finished_after(&self, after: Option<MessageId>) -> Result<impl Iterator<Item = Result<(MessageId, u64)>>>;
        fn lane_id(&self, lane: &Lane) -> Result<Option<LaneId>>;
        fn lane(&self, id: LaneId) -> Result<Option<Lane>>;
        fn lanes_after(&self, after: Option<&Lane>) -> Result<impl Iterator<Item = Result<(Lane, LaneId)>>>;
        fn order_from(&self, from: OrderKey) -> Result<impl Iterator<Item = Result<OrderKey>>>;
        fn state_after(&self, after: Option<&[u8]>) -> Result<impl Iterator<Item = Result<StateRow>>>;
        fn outbox_after(&self, after: OutboxPosition) -> Result<impl Iterator<Item = Result<OutboxEntry>>>;
    }
}

impl RowsMut for Writer<'_, '_> {
    fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    fn put_item(&mut self, item: ItemId, row: &ItemRow) -> Result<()> {
        self.changed = true;
        self.buffer = codec::item_to_row(item, row, std::mem::take(&mut self.buffer))?;
        self.tables.items.insert(item.0, self.buffer.as_slice()).map(drop).map_err(db)
    }

    fn remove_item(&mut self, item: ItemId) -> Result<()> {
        self.changed = true;
        self.tables.items.remove(item.0).map(drop).map_err(db)
    }

    fn put_body(&mut self, id: MessageId, body: &Bytes) -> Result<Location> {
        let location = self.bodies.append(id, body);
        self.touch_body(location, 1);
        Ok(location)
    }

    fn put_message(&mut self, id: MessageId, row: &MessageRow<Location>) -> Result<()> {
        self.changed = true;
        let row = codec::message_to_row(id, row)?;
        self.tables.messages.insert(id_key(&id), row.as_slice()).map(drop).map_err(db)
    }

    fn remove_message(&mut self, id: MessageId, row: &MessageRow<Location>) -> Result<()> {
        self.touch_body(row.body, -1);
        self.tables.messages.remove(id_key(&id)).map(drop).map_err(db)
    }

    fn put_part(&mut self, id: MessageId, item: ItemId) -> Result<()> {
        self.changed = true;
        self.tables.parts.insert(&part_key(id, item), ()).map(drop).map_err(db)
    }

    fn remove_part(&mut self, id: MessageId, item: ItemId) -> Result<()> {
        self.changed = true;
        self.tables.parts.remove(&part_key(id, item)).map(drop).map_err(db)
    }

    fn put_finished(&mut self, id: MessageId, generation: u64) -> Result<()> {
        self.changed = true;
        let row = (generation, codec::checksum(&[id_key(&id), &generation.to_le_bytes()]));
        self.tables.finished.insert(id_key(&id), row).map(drop).map_err(db)
    }

    fn remove_finished(&mut self, id: MessageId) -> Result<()> {
        self.changed = true;
        self.tables.finished.remove(id_key(&id)).map(drop).map_err(db)
    }

    fn put_lane(&mut self, id: LaneId, lane: &Lane) -> Result<()> {
        self.changed = true;
        let row = codec::lane_to_row(id, lane)?;
        self.tables.lanes.insert(lane_key(lane), (id, row.as_slice())).map_err(db)?;
        self.tables.lane_names.insert(id, row.as_slice()).map(drop).map_err(db)
    }

    fn remove_lane(&mut self, id: LaneId, lane: &Lane) -> Result<()> {
        self.changed = true;
        self.tables.lanes.remove(lane_key(lane)).map_err(db)?;
        self.tables.lane_names.remove(id).map(drop).map_err(db)
    }

    fn put_order(&mut self, key: OrderKey) -> Result<()> {
        self.changed = true;
        self.tables.order.insert(&key.to_bytes(), ()).map(drop).map_err(db)
    }

    fn remove_order(&mut self, key: OrderKey) -> Result<()> {
        self.changed = true;
        self.tables.order.remove(&key.to_bytes()).map(drop).map_err(db)
    }

    fn put_state(&mut self, row: &StateRow) -> Result<()> {
        self.changed = true;
        let value = (codec::checksum(&[&row.key, &row.value]), row.value.as_slice());
        self.tables.state.insert(row.key.as_slice(), value).map(drop).map_err(db)
    }

    fn remove_state(&mut self, key: &[u8]) -> Result<()> {
        self.changed = true;
        self.tables.state.remove(key).map(drop).map_err(db)
    }

    fn put_outbox(&mut self, position: OutboxPosition, event: EventId, payload: &Bytes) -> Result<()> {
        self.changed = true;
        let event = event.as_uuid().as_bytes();
        let checksum = codec::checksum(&[&position.0.to_le_bytes(), event, payload]);
        let row = (event, checksum, payload.as_ref());
        self.tables.outbox.insert(position.0, row).map(drop).map_err(db)
    }

    fn remove_outbox(&mut self, up_to: OutboxPosition) -> Result<()> {
        self.changed = true;
        self.tables.outbox.retain_in(..=up_to.0, |_, _| false).map_err(db)
    }
}
