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
    use std::cell::Cell;
    use std::collections::BTreeSet;
    use std::iter::empty;
    use std::time::Duration;

    use super::*;
    use crate::storage::order::Place;
    use crate::storage::rows::{ItemHead, MessageRow, Met};
    use crate::testing::conformance::{lane, message};

    /// A lane of one domain, which counts the keys of its order that are read.
    struct OneLane {
        name: Lane,
        rows: Vec<ItemRow>,
        order: BTreeSet<OrderKey>,
        read: Cell<usize>,
    }

    const ID: LaneId = 1;

    impl OneLane {
        /// Every third item was deferred.
        fn of(items: u64) -> Self {
            let (mut rows, mut order) = (Vec::new(), BTreeSet::new());
            for id in 0..items {
                let envelope = message(u128::from(id), "a.example", id).envelope;
                let wait = Duration::from_secs(if id % 3 == 0 { 900 } else { 0 });
                let due = envelope.age_from + wait;
                order.extend(Place::new(ID, due, &envelope).keys(ItemId(id)));
                rows.push(ItemRow { lane: ID, due, envelope, recipients: Vec::new() });
            }
            Self { name: lane("a.example"), rows, order, read: Cell::new(0) }
        }

        /// All items in pages of this size, and how many keys were read for them.
        fn listed(&self, size: usize) -> (Vec<ListPosition>, usize) {
            let (filter, mut listed) = (Filter::Lane(self.name.clone()), Vec::new());
            self.read.set(0);
            loop {
                let after = listed.last().copied();
                let list = page(after, size, |after, limit| portion(self, &filter, after, limit)).unwrap();
                if list.is_empty() {
                    return (listed, self.read.get());
                }
                assert!(list.len() <= size);
                listed.extend(list.iter().map(ItemSummary::position));
            }
        }
    }

    impl Rows for OneLane {
        type Body = Bytes;

        fn leave_aside(&self, damage: StorageError) {
            panic!("{damage}");
        }

        fn head(&self, item: ItemId) -> Result<Option<ItemHead>> {
            Ok(self.item(item)?.as_ref().map(ItemRow::head))
        }

        fn item(&self, item: ItemId) -> Result<Option<ItemRow>> {
            Ok(self.rows.get(item.0 as usize).cloned())
        }

        fn items_after(
            &self,
            _: Option<ItemId>,
        ) -> Result<impl Iterator<Item = Result<(ItemId, Result<ItemRow>)>>> {
            Ok(empty())
        }

        fn message(&self, _: MessageId) -> Result<Option<MessageRow<Bytes>>> {
            Ok(None)
        }

        fn parts_after(
            &self,
            _: MessageId,
            _: Option<ItemId>,
        ) -> Result<impl Iterator<Item = Result<ItemId>>> {
            Ok(empty())
        }

        fn is_finished(&self, _: MessageId) -> Result<bool> {
            Ok(false)
        }

        fn finished_after(
            &self,
            _: Option<MessageId>,
        ) -> Result<impl Iterator<Item = Result<(MessageId, Result<u64>)>>> {
            Ok(empty())
        }

        fn lane_id(&self, lane: &Lane) -> Result<Option<LaneId>> {
            Ok((*lane == self.name).then_some(ID))
        }

        fn lane(&self, id: LaneId) -> Result<Option<Lane>> {
            Ok((id == ID).then(|| self.name.clone()))
        }

        fn lanes_after(&self, _: Option<&Lane>) -> Result<impl Iterator<Item = Met<(Lane, LaneId)>>> {
            Ok(empty())
        }

        fn order_from(&self, from: OrderKey) -> Result<impl Iterator<Item = Met<OrderKey>>> {
            let count = |_: &&OrderKey| self.read.set(self.read.get() + 1);
            Ok(self.order.range(from..).inspect(count).map(|key| Ok(Ok(*key))))
        }

        fn state_after(&self, _: Option<&[u8]>) -> Result<impl Iterator<Item = Met<StateRow>>> {
            Ok(empty())
        }

        fn outbox_after(
            &self,
            _: OutboxPosition,
        ) -> Result<impl Iterator<Item = Result<(OutboxPosition, Result<OutboxEntry>)>>> {
            Ok(empty())
        }
    }

    #[test]
    fn a_page_of_a_lane_reads_what_it_returns_however_large_the_lane() {
        let lane = OneLane::of(6_000);
        let (all, once) = lane.listed(usize::MAX);
        assert_eq!(all.len(), 6_000);
        assert!(all.is_sorted());
        assert!(once <= all.len() * 102 / 100, "{once}: let go of a few times");
        for size in [1, 20, PORTION, PORTION + 1] {
            let (listed, read) = lane.listed(size);
            assert_eq!(listed, all, "{size}");
            // On each of the two axes, the one that follows the page; and the page that is empty.
            let pages = all.len().div_ceil(size) + 1;
            let portions = pages * size.div_ceil(PORTION);
            assert!(read <= all.len() + 3 * portions, "{read} keys were read for {pages} pages of {size}");
        }
    }
}
