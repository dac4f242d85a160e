//! The metadata written row by row, with the bodies that go with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use redb::{ReadableTable, WriteTransaction};

use crate::message::{EventId, MessageId};
use crate::storage::order::{LaneId, OrderKey};
use crate::storage::rows::{Counters, ItemHead, ItemRow, MessageRow, Met, Result, Rows, RowsMut};
use crate::storage::{ItemId, Lane, OutboxEntry, OutboxPosition, StateRow, StorageError};

use super::codec::{self, Alive, Location};
use super::damage::Damage;
use super::error::{corrupt, db};
use super::segment::SegmentWriter;
use super::tables::{COUNTERS, META, PAIRING, RECOUNT, Tables, Writing, id_key, lane_key, part_key};

/// Change of what is alive in a body file.
#[derive(Default)]
struct Shift {
    octets: i64,
    records: i64,
    /// Where what came to it ends.
    end: u64,
}

impl Shift {
    fn from(&self, before: Alive) -> Option<Alive> {
        Some(Alive {
            octets: before.octets.checked_add_signed(self.octets)?,
            records: before.records.checked_add_signed(self.records)?,
            end: before.end.max(self.end),
        })
    }
}

/// Tables of a write transaction, the counters and the bodies that go with it.
pub(super) struct Writer<'t, 's> {
    tables: Tables<Writing<'t>>,
    pub(super) bodies: &'s mut SegmentWriter,
    counters: Counters,
    counters_before: Counters,
    alive: BTreeMap<u64, Shift>,
    changed: bool,
    /// What is alive in some body file is not known: it is counted at the next opening.
    recount: bool,
    buffer: Vec<u8>,
}

impl<'t, 's> Writer<'t, 's> {
    pub(super) fn new(
        transaction: &'t WriteTransaction,
        counters: &Counters,
        bodies: &'s mut SegmentWriter,
        damage: Arc<Damage>,
    ) -> Result<Self> {
        let mut alive = BTreeMap::new();
        // Touched, so that it goes if nothing in it is alive.
        alive.extend(bodies.seal(false).map(|sealed| (sealed, Shift::default())));
        Ok(Self {
            tables: Tables::create(transaction, damage)?,
            bodies,
            counters: counters.clone(),
            counters_before: counters.clone(),
            changed: !alive.is_empty(),
            alive,
            recount: false,
            buffer: Vec::new(),
        })
    }

    /// Closes the current body file, so that it may go.
    pub(super) fn seal(&mut self) {
        if let Some(sealed) = self.bodies.seal(true) {
            self.recheck(sealed);
        }
    }

    /// There is something to commit, whatever else is written.
    pub(super) fn write_anyway(&mut self) {
        self.changed = true;
    }

    pub(super) fn tables(&self) -> &Tables<Writing<'t>> {
        &self.tables
    }

    /// Body files with what is alive in them, as far as it is known.
    pub(super) fn segments(&self) -> Result<BTreeMap<u64, Alive>> {
        let mut known = BTreeMap::new();
        for (segment, alive) in self.tables.segments()? {
            known.extend(self.readable(alive)?.map(|alive| (segment, alive)));
        }
        Ok(known)
    }

    /// Says anew what is alive in all body files.
    pub(super) fn set_segments(&mut self, alive: &BTreeMap<u64, Alive>) -> Result<()> {
        self.changed = true;
        self.tables.segments.retain(|_, _| false).map_err(db)?;
        for (segment, alive) in alive {
            self.tables.segments.insert(segment, codec::alive_row(*segment, *alive)).map_err(db)?;
        }
        Ok(())
    }

    /// Has what is alive in body files counted at the next opening.
    pub(super) fn recount(&mut self) {
        self.recount = true;
        self.changed = true;
    }

    /// Removes the row of a lane that lies under a name, whatever it says.
    pub(super) fn remove_name(&mut self, key: &[u8]) -> Result<()> {
        self.changed = true;
        self.tables.lanes.remove(key).map(drop).map_err(db)
    }

    /// Removes what a lane's number says.
    pub(super) fn remove_number(&mut self, id: LaneId) -> Result<()> {
        self.changed = true;
        self.tables.lane_names.remove(id).map(drop).map_err(db)
    }

    /// A message's body was copied elsewhere.
    pub(super) fn move_body(
        &mut self,
        id: MessageId,
        mut row: MessageRow<Location>,
        to: Location,
    ) -> Result<()> {
        self.touch_body(row.body, -1);
        row.body = to;
        self.touch_body(row.body, 1);
        self.put_message(id, &row)
    }

    /// Looks whether anything in a body file is alive.
    pub(super) fn recheck(&mut self, segment: u64) {
        self.alive.entry(segment).or_default();
        self.changed = true;
    }

    fn touch_body(&mut self, body: Location, sign: i64) {
        let alive = self.alive.entry(body.segment).or_default();
        alive.octets += sign * i64::from(body.length);
        alive.records += sign;
        if sign > 0 {
            alive.end = alive.end.max(body.end());
        }
        self.changed = true;
    }

    /// Writes what was gathered. Returns the counters, whether there is anything to commit, and the body files
    /// that nobody needs once it is committed.
    pub(super) fn finish(mut self, meta: &WriteTransaction) -> Result<(Counters, bool, Vec<u64>)> {
        let writing = self.bodies.writing();
        let mut dead = Vec::new();
        for (segment, shift) in std::mem::take(&mut self.alive) {
            let row = self.tables.segments.get(segment).map_err(db)?.map(|row| row.value());
            let before = row.map_or(Ok(Alive::default()), |row| codec::alive_in(segment, row));
            let after = before.and_then(|before| {
                let wrong =
                    || corrupt(format!("the row of body file {segment:016x} says less than is alive in it"));
                Ok((shift.from(before).ok_or_else(wrong)?, before))
            });
            // A file of which this is not known is kept.
            let Some((after, before)) = self.readable(after)? else {
                self.recount();
                continue;
            };
            if after.records == 0 && segment != writing {
                self.tables.segments.remove(segment).map_err(db)?;
                dead.push(segment);
            } else if after != before {
                self.tables.segments.insert(segment, codec::alive_row(segment, after)).map_err(db)?;
            }
        }
        let mut meta = meta.open_table(META).map_err(db)?;
        if self.counters != self.counters_before {
            let row = codec::to_row(COUNTERS, &self.counters)?;
            meta.insert(COUNTERS, row.as_slice()).map_err(db)?;
            self.changed = true;
        }
        if self.recount {
            meta.insert(RECOUNT, [].as_slice()).map_err(db)?;
        }
        if self.changed {
            let row = codec::to_row(PAIRING, &self.bodies.pairing_after())?;
            meta.insert(PAIRING, row.as_slice()).map_err(db)?;
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
        fn leave_aside(&self, damage: StorageError) -> ();
        fn head(&self, item: ItemId) -> Result<Option<ItemHead>>;
        fn item(&self, item: ItemId) -> Result<Option<ItemRow>>;
        fn items_after(&self, after: Option<ItemId>) -> Result<impl Iterator<Item = Result<(ItemId, Result<ItemRow>)>>>;
        fn message(&self, id: MessageId) -> Result<Option<MessageRow<Location>>>;
        fn parts_after(&self, id: MessageId, after: Option<ItemId>) -> Result<impl Iterator<Item = Result<ItemId>>>;
        fn is_finished(&self, id: MessageId) -> Result<bool>;
        fn finished_after(&self, after: Option<MessageId>) -> Result<impl Iterator<Item = Result<(MessageId, Result<u64>)>>>;
        fn lane_id(&self, lane: &Lane) -> Result<Option<LaneId>>;
        fn lane(&self, id: LaneId) -> Result<Option<Lane>>;
        fn lanes_after(&self, after: Option<&Lane>) -> Result<impl Iterator<Item = Met<(Lane, LaneId)>>>;
        fn order_from(&self, from: OrderKey) -> Result<impl Iterator<Item = Met<OrderKey>>>;
        fn state_after(&self, after: Option<&[u8]>) -> Result<impl Iterator<Item = Met<StateRow>>>;
        fn outbox_after(&self, after: OutboxPosition) -> Result<impl Iterator<Item = Result<(OutboxPosition, Result<OutboxEntry>)>>>;
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

    fn forget_message(&mut self, id: MessageId) -> Result<()> {
        self.recount();
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
        self.tables.lane_names.insert(id, row.as_slice()).map_err(db)?;
        let row = [id.to_le_bytes().as_slice(), &row].concat();
        self.tables.lanes.insert(lane_key(lane).as_slice(), row.as_slice()).map(drop).map_err(db)
    }

    fn remove_lane(&mut self, id: LaneId, lane: &Lane) -> Result<()> {
        self.remove_name(&lane_key(lane))?;
        self.remove_number(id)
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
        let value = codec::raw_row(&row.key, &row.value);
        self.tables.state.insert(row.key.as_slice(), value.as_slice()).map(drop).map_err(db)
    }

    fn remove_state(&mut self, key: &[u8]) -> Result<()> {
        self.changed = true;
        self.tables.state.remove(key).map(drop).map_err(db)
    }

    fn put_outbox(&mut self, position: OutboxPosition, event: EventId, payload: &Bytes) -> Result<()> {
        self.changed = true;
        let row = codec::outbox_to_row(position, event, payload);
        self.tables.outbox.insert(position.0, row.as_slice()).map(drop).map_err(db)
    }

    fn remove_outbox(&mut self, up_to: OutboxPosition) -> Result<()> {
        self.changed = true;
        self.tables.outbox.retain_in(..=up_to.0, |_, _| false).map_err(db)
    }
}
