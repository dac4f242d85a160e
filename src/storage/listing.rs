//! What is read without a lease: lists and counts of items, state rows, the outbox.

use bytes::Bytes;
use uuid::Uuid;

use super::lease::LeaseTable;
use super::order::{Axis, LaneId, OrderKey, START};
use super::rows::{ItemRow, Result, Rows, corrupt};
use super::select::{find, lane_of};
use super::{
    Filter, ItemId, ItemSummary, Lane, ListPosition, OutboxEntry, OutboxPosition, StateRow, StorageError,
};
use crate::clock::Timestamp;
use crate::message::{EventId, MessageId};

/// Rows that a list reads before it lets go of the store, for others to get on.
const PORTION: usize = 1024;

/// What was listed without letting go of the store.
#[derive(Default)]
pub(super) struct Portion {
    list: Vec<ItemSummary>,
    /// All up to here was read, and there may be more.
    go_on: Option<ListPosition>,
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
    mut after: Option<ListPosition>,
    limit: usize,
    mut read: impl FnMut(Option<ListPosition>, usize) -> Result<Portion>,
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

/// Items that match, in order. Which are leased is left to [`Portion::mark_leased`].
pub(super) fn portion<R: Rows>(
    rows: &R,
    filter: &Filter,
    after: Option<ListPosition>,
    limit: usize,
) -> Result<Portion> {
    let id_after = after.map(|after| after.id);
    let mut found = Found { rows, last_lane: None, list: Vec::new() };
    let mut go_on = None;
    match filter {
        Filter::Message(id) => {
            let Some(message) = rows.message(*id)? else { return Ok(Portion::default()) };
            let sole = message.sole.filter(|sole| id_after < Some(*sole)).map(Ok);
            let mut damage = None;
            for item in sole.into_iter().chain(rows.parts_after(*id, id_after)?) {
                if found.list.len() >= limit {
                    break;
                }
                damage = damage.or(found.push_part(item?, *id)?);
            }
            // Not to be taken for a message that is not there.
            if let Some(damage) = damage.filter(|_| found.list.is_empty() && after.is_none()) {
                return Err(damage);
            }
        }
        Filter::Lane(lane) => {
            let Some(lane) = rows.lane_id(lane)? else { return Ok(Portion::default()) };
            let mut last = after;
            for (read, key) in lane_keys(rows, lane, after)?.enumerate() {
                if found.list.len() >= limit {
                    break;
                }
                if read == PORTION {
                    go_on = last;
                    break;
                }
                let key = key?;
                last = Some(ListPosition { due: key.spot.0, id: key.spot.1 });
                // Others follow in place of one that can not be read.
                if let Some(row) = rows.readable(find(rows, key))? {
                    found.push(key.spot.1, row)?;
                }
            }
        }
        Filter::All | Filter::Tag { .. } => {
            let mut last = after;
            for (read, entry) in rows.items_after(id_after)?.enumerate() {
                if found.list.len() >= limit {
                    break;
                }
                if read == PORTION {
                    go_on = last;
                    break;
                }
                let (id, row) = entry?;
                last = Some(ListPosition { due: Timestamp::EPOCH, id });
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
    lane_keys(rows, lane, None)?.try_fold(0, |count: u64, key| key.map(|_| count.saturating_add(1)))
}

/// The items of a lane after a position, each once, the earliest due first.
fn lane_keys<R: Rows>(
    rows: &R,
    lane: LaneId,
    after: Option<ListPosition>,
) -> Result<impl Iterator<Item = Result<OrderKey>>> {
    let spot = after.map_or(START, |after| (after.due, ItemId(after.id.0.saturating_add(1))));
    let on = |axis| -> Result<_> {
        let keys = rows.order_from(OrderKey { lane, axis, spot })?;
        let keys = keys.filter_map(|key| rows.sound(key));
        let is_on = move |key: &Result<OrderKey>| {
            key.as_ref().map_or(true, |key| (key.lane, key.axis) == (lane, axis))
        };
        Ok(keys.take_while(is_on).peekable())
    };
    // The due time of every item is on one of them.
    let (mut fresh, mut due) = (on(Axis::Fresh)?, on(Axis::Due)?);
    Ok(std::iter::from_fn(move || match (fresh.peek(), due.peek()) {
        (Some(Ok(first)), Some(Ok(other))) if other.spot < first.spot => due.next(),
        (Some(_), _) => fresh.next(),
        (None, _) => due.next(),
    }))
}

struct Found<'a, R> {
    rows: &'a R,
    /// Neighbours often share a lane.
    last_lane: Option<(LaneId, Lane)>,
    list: Vec<ItemSummary>,
}

impl<R: Rows> Found<'_, R> {
    /// An item that is said to be of a message. It counts if its row says the same. Returns what is damaged.
    fn push_part(&mut self, id: ItemId, message: MessageId) -> Result<Option<StorageError>> {
        let read = self.rows.item(id).and_then(|row| {
            row.filter(|row| row.envelope.id == message)
                .ok_or_else(|| corrupt(format!("the row of item {} is not as listed", id.0)))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::storage::{MemoryStorage, Storage};
    use crate::testing::conformance::{lane, message};

    /// Seconds would be minutes if each page went over the whole lane.
    #[test]
    fn small_pages_of_a_large_lane_take_about_as_long_as_a_large_one() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = MemoryStorage::new();
            let all = 60_000;
            store.insert((1..=all).map(|number| message(number, "a.example", 1)).collect()).await.unwrap();
            let clock = crate::clock::Clock::system();
            let list = async |limit| {
                let (began, mut listed, mut after) = (clock.now(), 0, None);
                loop {
                    let page = store.list(Filter::Lane(lane("a.example")), after, limit).await.unwrap();
                    let Some(last) = page.last() else { break };
                    (after, listed) = (Some(last.position()), listed + page.len() as u128);
                }
                assert_eq!(listed, all);
                clock.now().saturating_since(began)
            };
            let (large, small) = (list(usize::MAX).await, list(20).await);
            assert!(small < large * 20 + Duration::from_millis(100), "{small:?}, {large:?}");
        });
    }
}
