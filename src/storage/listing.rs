//! What is read without a lease: lists and counts of items, state rows, the outbox.

use std::collections::BinaryHeap;

use bytes::Bytes;
use uuid::Uuid;

use super::lease::LeaseTable;
use super::order::{Axis, LaneId, OrderKey, START};
use super::rows::{ItemRow, Result, Rows, corrupt};
use super::select::lane_of;
use super::{Filter, ItemId, ItemSummary, Lane, OutboxEntry, OutboxPosition, StateRow, StorageError};
use crate::message::EventId;

/// Rows that a list reads before it lets go of the store, for others to get on.
const PORTION: usize = 1024;

/// What was listed without letting go of the store.
#[derive(Default)]
pub(super) struct Portion {
    list: Vec<ItemSummary>,
    /// All up to this item was read, and there may be more.
    go_on: Option<ItemId>,
}

impl Portion {
    /// Fills in which items are leased. Apart from [`portion`], which may read for long, and with it no lock of the
    /// leases.
    pub(super) fn mark_leased(mut self, leases: &LeaseTable) -> Self {
        self.list.iter_mut().for_each(|item| item.leased = leases.is_held(item.id));
        self
    }
}

/// A page, of as many portions as it takes. `read` is given the `after` and `limit` of each.
pub(super) fn page(
    mut after: Option<ItemId>,
    limit: usize,
    mut read: impl FnMut(Option<ItemId>, usize) -> Result<Portion>,
) -> Result<Vec<ItemSummary>> {
    let mut list = Vec::new();
    loop {
        let portion = read(after, limit.saturating_sub(list.len()))?;
        list.extend(portion.list);
        after = portion.go_on;
        if after.is_none() {
            return Ok(list);
        }
    }
}

/// Items that match, in order of their ids. Which are leased is left to [`Portion::mark_leased`].
pub(super) fn portion<R: Rows>(
    rows: &R,
    filter: &Filter,
    after: Option<ItemId>,
    limit: usize,
) -> Result<Portion> {
    let mut found = Found { rows, last_lane: None, list: Vec::new() };
    let mut go_on = None;
    match filter {
        Filter::Message(id) => {
            let Some(message) = rows.message(*id)? else { return Ok(Portion::default()) };
            let sole = message.sole.filter(|sole| after < Some(*sole)).map(Ok);
            let mut damage = None;
            for item in sole.into_iter().chain(rows.parts_after(*id, after)?) {
                if found.list.len() >= limit {
                    break;
                }
                damage = damage.or(found.push_if(item?, |row| row.envelope.id == *id)?);
            }
            // Not to be taken for a message that is not there.
            if let Some(damage) = damage.filter(|_| found.list.is_empty() && after.is_none()) {
                return Err(damage);
            }
        }
        Filter::Lane(lane) => {
            let Some(lane) = rows.lane_id(lane)? else { return Ok(Portion::default()) };
            let items = smallest_in_lane(rows, lane, after, limit)?;
            // Others follow in place of those that can not be read.
            go_on = items.last().copied().filter(|_| items.len() == limit);
            for item in items {
                found.push_if(item, |row| row.lane == lane)?;
            }
            go_on = go_on.filter(|_| found.list.len() < limit);
        }
        Filter::All | Filter::Tag { .. } => {
            let mut last = after;
            for (read, entry) in rows.items_after(after)?.enumerate() {
                if found.list.len() >= limit {
                    break;
                }
                if read == PORTION {
                    go_on = last;
                    break;
                }
                let (id, row) = entry?;
                last = Some(id);
                let Some(row) = rows.readable(row)? else { continue };
                let matches = match filter {
                    Filter::Tag { name, value } => row.envelope.tags.get(name) == Some(value),
                    _ => true,
                };
                if matches {
                    found.push(id, row)?;
                }
            }
        }
    }
    Ok(Portion { list: found.list, go_on })
}

/// State rows in order. One that is damaged is left aside: it is written anew when there is something to say.
pub(super) fn state<R: Rows>(rows: &R, after: Option<&[u8]>, limit: usize) -> Result<Vec<StateRow>> {
    rows.state_after(after)?.filter_map(|row| rows.sound(row)).take(limit).collect()
}

/// The outbox in order. An entry that is damaged keeps its place, without what it held: it is taken and acknowledged as
/// the others are.
pub(super) fn outbox<R: Rows>(rows: &R, after: OutboxPosition, limit: usize) -> Result<Vec<OutboxEntry>> {
    let mut list = Vec::new();
    for entry in rows.outbox_after(after)?.take(limit) {
        let (position, entry) = entry?;
        let lost = OutboxEntry { position, event: EventId::from_uuid(Uuid::nil()), payload: Bytes::new() };
        list.push(rows.readable(entry)?.unwrap_or(lost));
    }
    Ok(list)
}

/// How many items lie in a lane. Reads its keys only.
pub(super) fn count<R: Rows>(rows: &R, lane: &Lane) -> Result<u64> {
    let Some(lane) = rows.lane_id(lane)? else { return Ok(0) };
    lane_items(rows, lane)?.try_fold(0, |count: u64, item| item.map(|_| count.saturating_add(1)))
}

/// The items of a lane, each once. Reads its keys only.
fn lane_items<R: Rows>(rows: &R, lane: LaneId) -> Result<impl Iterator<Item = Result<ItemId>>> {
    let on = |axis| -> Result<_> {
        let keys = rows.order_from(OrderKey { lane, axis, spot: START })?;
        let keys = keys.filter_map(|key| rows.sound(key));
        let is_on = move |key: &Result<OrderKey>| {
            key.as_ref().map_or(true, |key| (key.lane, key.axis) == (lane, axis))
        };
        Ok(keys.take_while(is_on).map(|key| key.map(|key| key.spot.1)))
    };
    // The due time of every item is on one of them.
    Ok(on(Axis::Fresh)?.chain(on(Axis::Due)?))
}

/// The `limit` smallest ids after `after`, in order. Keeps no more of them in memory.
fn smallest_in_lane<R: Rows>(
    rows: &R,
    lane: LaneId,
    after: Option<ItemId>,
    limit: usize,
) -> Result<Vec<ItemId>> {
    let mut smallest = BinaryHeap::new();
    for item in lane_items(rows, lane)? {
        let item = item?;
        if after >= Some(item) {
            continue;
        }
        if smallest.len() < limit {
            smallest.push(item);
        } else if let Some(mut largest) = smallest.peek_mut()
            && item < *largest
        {
            *largest = item;
        }
    }
    Ok(smallest.into_sorted_vec())
}

struct Found<'a, R> {
    rows: &'a R,
    /// Neighbours often share a lane.
    last_lane: Option<(LaneId, Lane)>,
    list: Vec<ItemSummary>,
}

impl<R: Rows> Found<'_, R> {
    /// An item that an index names. It counts if its row says the same. Returns what is damaged.
    fn push_if(&mut self, id: ItemId, agrees: impl Fn(&ItemRow) -> bool) -> Result<Option<StorageError>> {
        let read = self.rows.item(id).and_then(|row| {
            row.filter(agrees).ok_or_else(|| corrupt(format!("the row of item {} is not as listed", id.0)))
        });
        let damage = read.as_ref().err().cloned();
        if let Some(row) = self.rows.readable(read)? {
            self.push(id, row)?;
        }
        Ok(damage)
    }

    fn push(&mut self, id: ItemId, row: ItemRow) -> Result<()> {
        let lane = match &self.last_lane {
            Some((known, lane)) if *known == row.lane => lane.clone(),
            _ => {
                let read = lane_of(self.rows, id, &row);
                let Some(lane) = self.rows.readable(read)? else { return Ok(()) };
                self.last_lane = Some((row.lane, lane.clone()));
                lane
            }
        };
        let ItemRow { envelope, due, recipients, .. } = row;
        self.list.push(ItemSummary { id, envelope, lane, due, leased: false, recipients });
        Ok(())
    }
}
