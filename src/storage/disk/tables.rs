//! The metadata: redb tables, read row by row.

use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use redb::{
    Key, ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, Value, WriteTransaction,
};
use uuid::Uuid;

use crate::message::MessageId;
use crate::storage::order::{LaneId, OrderKey};
use crate::storage::rows::{ItemHead, ItemRow, MessageRow, Met, Result, Rows};
use crate::storage::{ItemId, Lane, OutboxEntry, OutboxPosition, StateRow, StorageError};

use super::codec::{self, Alive, AliveRow, Location};
use super::damage::{Damage, guarded};
use super::error::{corrupt, db};

type IdKey = &'static [u8; 16];
type PartKey = &'static [u8; 24];
type OrderBytes = &'static [u8; OrderKey::OCTETS];
// Names are octets here, not text: redb would panic over text that damage made invalid.
type Name = &'static [u8];
// Values with their checksums, which cover the key too. Entries of `order` and `parts` are keys alone, without a checksum:
// they count if the row they lead to says the same, and `DiskStorage::check` finds those that are missing.
/// Generation.
type Finished = (u64, u32);

pub(super) const META: TableDefinition<'_, Name, &'static [u8]> = TableDefinition::new("meta");
pub(super) const ITEMS: TableDefinition<'_, u64, &'static [u8]> = TableDefinition::new("items");
pub(super) const MESSAGES: TableDefinition<'_, IdKey, &'static [u8]> = TableDefinition::new("messages");
pub(super) const PARTS: TableDefinition<'_, PartKey, ()> = TableDefinition::new("parts");
pub(super) const FINISHED: TableDefinition<'_, IdKey, Finished> = TableDefinition::new("finished");
pub(super) const LANES: TableDefinition<'_, Name, &'static [u8]> = TableDefinition::new("lanes");
pub(super) const LANE_NAMES: TableDefinition<'_, u64, &'static [u8]> = TableDefinition::new("lane-names");
pub(super) const ORDER: TableDefinition<'_, OrderBytes, ()> = TableDefinition::new("order");
pub(super) const STATE: TableDefinition<'_, Name, &'static [u8]> = TableDefinition::new("state");
pub(super) const OUTBOX: TableDefinition<'_, u64, &'static [u8]> = TableDefinition::new("outbox");
pub(super) const SEGMENTS: TableDefinition<'_, u64, AliveRow> = TableDefinition::new("segments");

pub(super) const COUNTERS: &[u8] = b"counters";
/// A [`Pairing`](super::pairing::Pairing).
pub(super) const PAIRING: &[u8] = b"pairing";
/// There as long as what is alive in body files is to be counted at the next opening.
pub(super) const RECOUNT: &[u8] = b"recount";
/// Written with metadata that was damaged: up to which number body files may hold what it has lost.
pub(super) const KEPT: &[u8] = b"kept-bodies";

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
    pub(super) lanes: A::Table<Name, &'static [u8]>,
    pub(super) lane_names: A::Table<u64, &'static [u8]>,
    pub(super) order: A::Table<OrderBytes, ()>,
    pub(super) state: A::Table<Name, &'static [u8]>,
    pub(super) outbox: A::Table<u64, &'static [u8]>,
    pub(super) segments: A::Table<u64, AliveRow>,
    pub(super) damage: Arc<Damage>,
}

macro_rules! open_tables {
    ($transaction:expr, $damage:expr) => {
        Tables {
            damage: $damage,
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
    pub(super) fn open(transaction: &ReadTransaction, damage: Arc<Damage>) -> Result<Self> {
        Ok(open_tables!(transaction, damage))
    }
}

impl<'t> Tables<Writing<'t>> {
    pub(super) fn create(transaction: &'t WriteTransaction, damage: Arc<Damage>) -> Result<Self> {
        Ok(open_tables!(transaction, damage))
    }
}

impl<A: Access> Tables<A> {
    /// Body files with what is alive in them.
    pub(super) fn segments(&self) -> Result<Vec<(u64, Result<Alive>)>> {
        let row = |entry: Entry<'_, u64, AliveRow>| {
            let (segment, alive) = entry.map_err(db)?;
            Ok((segment.value(), codec::alive_in(segment.value(), alive.value())))
        };
        self.segments.range::<u64>(..).map_err(db)?.map(row).collect()
    }

    /// All messages, in order of their ids.
    pub(super) fn messages(&self) -> Result<impl Iterator<Item = Result<(MessageId, Message)>>> {
        let range = self.messages.range::<&[u8; 16]>(..).map_err(db)?;
        Ok(range.map(|entry| {
            let (id, row) = entry.map_err(db)?;
            let id = id_from(id.value());
            Ok((id, codec::message_from_row(id, row.value())))
        }))
    }

    /// The lane names with their numbers.
    pub(super) fn names(&self) -> Result<impl Iterator<Item = Result<(LaneId, Result<Lane>)>>> {
        let range = self.lane_names.range::<u64>(..).map_err(db)?;
        Ok(range.map(|entry| {
            let (id, row) = entry.map_err(db)?;
            Ok((id.value(), codec::lane_from_row(id.value(), row.value())))
        }))
    }
}

type Message = Result<MessageRow<Location>>;
type Entry<'a, K, V> =
    std::result::Result<(redb::AccessGuard<'a, K>, redb::AccessGuard<'a, V>), redb::StorageError>;

pub(super) fn id_from(bytes: &[u8; 16]) -> MessageId {
    MessageId::from_uuid(Uuid::from_bytes(*bytes))
}

pub(super) fn id_key(id: &MessageId) -> &[u8; 16] {
    id.as_uuid().as_bytes()
}

pub(super) fn part_key(id: MessageId, item: ItemId) -> [u8; 24] {
    let mut key = [0; 24];
    let (message, part) = key.split_at_mut(16);
    message.copy_from_slice(id_key(&id));
    part.copy_from_slice(&item.0.to_be_bytes());
    key
}

pub(super) fn part_item(key: &[u8; 24]) -> ItemId {
    ItemId(key.last_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes)))
}

/// Sorts as lanes do: a NUL within a name is marked, so that none looks like the end of a name.
pub(super) fn lane_key(lane: &Lane) -> Vec<u8> {
    let mut key = Vec::with_capacity(lane.domain.as_str().len() + lane.source.len() + 5);
    for name in [lane.domain.as_str(), &lane.source] {
        for octet in name.bytes() {
            key.push(octet);
            key.extend((octet == 0).then_some(0xff));
        }
        key.extend([0, 1]);
    }
    // The declaration order of priorities is their sort order.
    key.push(lane.priority as u8);
    key
}

/// The row of a lane as found under a name.
pub(super) fn named_lane(key: &[u8], row: &[u8]) -> Result<(Lane, LaneId)> {
    let damaged = |what: &str| corrupt(format!("the row of lane {} {what}", key.escape_ascii()));
    let (id, row) = row.split_first_chunk().ok_or_else(|| damaged("is cut off"))?;
    let id = LaneId::from_le_bytes(*id);
    let lane = codec::lane_from_row(id, row)?;
    if lane_key(&lane) == key { Ok((lane, id)) } else { Err(damaged("is that of another")) }
}

/// `after` as the start of a range of numbers.
fn above(after: u64) -> std::ops::RangeFrom<u64> {
    // Nothing is ever numbered `u64::MAX`.
    after.saturating_add(1)..
}

impl<A: Access> Rows for Tables<A> {
    type Body = Location;

    fn leave_aside(&self, damage: StorageError) {
        self.damage.tell(damage);
    }

    fn head(&self, item: ItemId) -> Result<Option<ItemHead>> {
        guarded(format_args!("item {}", item.0), || {
            let row = self.items.get(item.0).map_err(db)?;
            row.map(|row| codec::item_head(item, row.value())).transpose()
        })
    }

    fn item(&self, item: ItemId) -> Result<Option<ItemRow>> {
        guarded(format_args!("item {}", item.0), || {
            let row = self.items.get(item.0).map_err(db)?;
            row.map(|row| codec::item_from_row(item, row.value())).transpose()
        })
    }

    fn items_after(
        &self,
        after: Option<ItemId>,
    ) -> Result<impl Iterator<Item = Result<(ItemId, Result<ItemRow>)>>> {
        let range = self.items.range(above(after.map_or(0, |item| item.0))).map_err(db)?;
        Ok(range.map(|entry| {
            let (item, row) = entry.map_err(db)?;
            let item = ItemId(item.value());
            Ok((item, codec::item_from_row(item, row.value())))
        }))
    }

    fn message(&self, id: MessageId) -> Result<Option<MessageRow<Location>>> {
        guarded(format_args!("message {id}"), || {
            let row = self.messages.get(id_key(&id)).map_err(db)?;
            row.map(|row| codec::message_from_row(id, row.value())).transpose()
        })
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
    ) -> Result<impl Iterator<Item = Result<(MessageId, Result<u64>)>>> {
        let first = after.map(|id| id.as_uuid().as_u128());
        let range = match first.map_or(Some(0), |id| id.checked_add(1)) {
            Some(first) => Some(self.finished.range::<&[u8; 16]>(&first.to_be_bytes()..).map_err(db)?),
            None => None,
        };
        Ok(range.into_iter().flatten().map(|entry| {
            let (id, row) = entry.map_err(db)?;
            let id = id_from(id.value());
            Ok((id, codec::generation_from_row(id, row.value())))
        }))
    }

    fn lane_id(&self, lane: &Lane) -> Result<Option<LaneId>> {
        guarded(format_args!("lane {lane}"), || {
            let key = lane_key(lane);
            let row = self.lanes.get(key.as_slice()).map_err(db)?;
            row.map(|row| Ok(named_lane(&key, row.value())?.1)).transpose()
        })
    }

    fn lane(&self, id: LaneId) -> Result<Option<Lane>> {
        guarded(format_args!("lane {id}"), || {
            let row = self.lane_names.get(id).map_err(db)?;
            row.map(|row| codec::lane_from_row(id, row.value())).transpose()
        })
    }

    fn lanes_after(&self, after: Option<&Lane>) -> Result<impl Iterator<Item = Met<(Lane, LaneId)>>> {
        let after = after.map(lane_key);
        let from = after.as_deref().map_or(Unbounded, Excluded);
        let range = self.lanes.range::<&[u8]>((from, Unbounded)).map_err(db)?;
        Ok(range.map(|entry| {
            let (key, row) = entry.map_err(db)?;
            Ok(named_lane(key.value(), row.value()))
        }))
    }

    fn order_from(&self, from: OrderKey) -> Result<impl Iterator<Item = Met<OrderKey>>> {
        let mut range = guarded(format_args!("the order of lane {}", from.lane), || {
            self.order.range::<&[u8; OrderKey::OCTETS]>(&from.to_bytes()..).map_err(db)
        })?;
        let read = |entry: Entry<'_, OrderBytes, ()>| {
            let key = entry.map_err(db)?.0;
            let damaged =
                || corrupt(format!("the entry {} of the order is damaged", key.value().escape_ascii()));
            Ok(OrderKey::from_bytes(key.value()).ok_or_else(damaged))
        };
        Ok(std::iter::from_fn(move || {
            let next =
                guarded(format_args!("the order of lane {}", from.lane), || Ok(range.next().map(read)));
            next.unwrap_or_else(|damage| Some(Err(damage)))
        }))
    }

    fn state_after(&self, after: Option<&[u8]>) -> Result<impl Iterator<Item = Met<StateRow>>> {
        let from = after.map_or(Unbounded, Excluded);
        let range = self.state.range::<&[u8]>((from, Unbounded)).map_err(db)?;
        Ok(range.map(|entry| {
            let (key, row) = entry.map_err(db)?;
            let key = key.value();
            let value =
                codec::raw_value(format_args!("the state row {}", key.escape_ascii()), key, row.value());
            Ok(value.map(|value| StateRow { key: key.to_vec(), value: value.to_vec() }))
        }))
    }

    fn outbox_after(
        &self,
        after: OutboxPosition,
    ) -> Result<impl Iterator<Item = Result<(OutboxPosition, Result<OutboxEntry>)>>> {
        let range = self.outbox.range(above(after.0)).map_err(db)?;
        Ok(range.map(|entry| {
            let (position, row) = entry.map_err(db)?;
            let position = OutboxPosition(position.value());
            Ok((position, codec::outbox_from_row(position, row.value())))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Domain, Priority};

    #[test]
    fn keys_of_lanes_sort_as_lanes_do() {
        let names = ["a", "a\0", "a\0b", "a\u{1}", "ab", ""];
        let mut lanes = Vec::new();
        for domain in ["a.example", "a-b.example", "ab.example"] {
            for source in names {
                for priority in [Priority::High, Priority::Normal, Priority::Low] {
                    lanes.push(Lane {
                        domain: Domain::parse(domain).unwrap(),
                        source: source.into(),
                        priority,
                    });
                }
            }
        }
        for (a, b) in lanes.iter().flat_map(|a| lanes.iter().map(move |b| (a, b))) {
            assert_eq!(a.cmp(b), lane_key(a).cmp(&lane_key(b)), "{a:?} {b:?}");
        }
    }
}
