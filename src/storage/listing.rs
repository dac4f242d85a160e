//! Lists and counts: items found without a lease.

use std::collections::BinaryHeap;

use super::lease::LeaseTable;
use super::order::{Axis, LaneId, OrderKey, START};
use super::rows::{ItemRow, Result, Rows};
use super::{Filter, ItemId, ItemSummary, Lane};

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
            if let Some(sole) = message.sole.filter(|sole| after < Some(*sole)).filter(|_| limit > 0) {
                found.push_id(sole)?;
            }
            for item in rows.parts_after(*id, after)?.take(limit) {
                found.push_id(item?)?;
            }
        }
        Filter::Lane(lane) => {
            let Some(lane) = rows.lane_id(lane)? else { return Ok(Portion::default()) };
            for item in smallest_in_lane(rows, lane, after, limit)? {
                found.push_id(item)?;
            }
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

/// How many items lie in a lane. Reads its keys only.
pub(super) fn count<R: Rows>(rows: &R, lane: &Lane) -> Result<u64> {
    let Some(lane) = rows.lane_id(lane)? else { return Ok(0) };
    lane_items(rows, lane)?.try_fold(0, |count: u64, item| item.map(|_| count.saturating_add(1)))
}

/// The items of a lane, each once. Reads its keys only.
fn lane_items<R: Rows>(rows: &R, lane: LaneId) -> Result<impl Iterator<Item = Result<ItemId>>> {
    let on = |axis| -> Result<_> {
        let keys = rows.order_from(OrderKey { lane, axis, spot: START })?;
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
    fn push_id(&mut self, id: ItemId) -> Result<()> {
        match self.rows.item(id)? {
            Some(row) => self.push(id, row),
            None => Ok(()),
        }
    }

    fn push(&mut self, id: ItemId, row: ItemRow) -> Result<()> {
        let lane = match &self.last_lane {
            Some((known, lane)) if *known == row.lane => lane.clone(),
            _ => {
                let Some(lane) = self.rows.lane(row.lane)? else { return Ok(()) };
                self.last_lane = Some((row.lane, lane.clone()));
                lane
            }
        };
        let (message, due, recipients) = (row.envelope.id, row.due, row.recipients);
        self.list.push(ItemSummary { id, message, lane, due, leased: false, recipients });
        Ok(())
    }
}
