//! Finding items that are free: claims and heads of lanes.

use super::lease::LeaseTable;
use super::order::{Axis, LaneId, OrderKey, Place, START, Spot};
use super::rows::{ItemRow, Result, Rows, corrupt};
use super::{ClaimPart, ClaimRequest, Claimed, Item, ItemId, Lane, LaneHead, Lease, Owner};
use crate::clock::Timestamp;

/// What follows the last key of all.
const END: OrderKey = OrderKey { lane: LaneId::MAX, axis: Axis::AgeWithExpiry, spot: START };

/// The items of one lane and axis that are free, in order.
struct Walk<I> {
    keys: I,
    lane: LaneId,
    axis: Axis,
    /// The first free one not yet taken.
    next: Option<Spot>,
    /// Everything before it is held or set aside.
    passed: Spot,
    /// What follows in the order, once the axis has ended.
    beyond: Option<OrderKey>,
}

impl<I: Iterator<Item = Result<OrderKey>>> Walk<I> {
    fn step(&mut self, leases: &LeaseTable) -> Result<()> {
        self.next = None;
        for key in self.keys.by_ref() {
            let key = key?;
            if (key.lane, key.axis) != (self.lane, self.axis) {
                self.beyond = Some(key);
                break;
            }
            if leases.is_free(&key) {
                self.next = Some(key.spot);
                self.passed = key.spot;
                break;
            }
            self.passed = (key.spot.0, ItemId(key.spot.1.0.saturating_add(1)));
        }
        Ok(())
    }
}

fn walk<'a, R: Rows>(
    rows: &'a R,
    leases: &LeaseTable,
    lane: LaneId,
    axis: Axis,
) -> Result<Walk<impl Iterator<Item = Result<OrderKey>> + use<'a, R>>> {
    let start = leases.cursor(lane, axis);
    let keys = rows.order_from(OrderKey { lane, axis, spot: start })?.filter_map(|key| rows.sound(key));
    let mut walk = Walk { keys, lane, axis, next: None, passed: start, beyond: None };
    walk.step(leases)?;
    Ok(walk)
}

/// Leases items as asked.
pub(super) fn claim<R: Rows>(rows: &R, leases: &mut LeaseTable, request: &ClaimRequest) -> Result<Claimed> {
    // The owner's own leases are extended first: it can not lose them to itself.
    leases.extend(request.owner, request.until);
    leases.expire(request.now);
    let first = leases.next();
    let mut claimed = Claimed::default();
    let done = claim_parts(rows, leases, request, &mut claimed);
    if let Err(error) = done {
        leases.take_back(first);
        return Err(error);
    }
    Ok(claimed)
}

fn claim_parts<R: Rows>(
    rows: &R,
    leases: &mut LeaseTable,
    request: &ClaimRequest,
    claimed: &mut Claimed,
) -> Result<()> {
    let mut lanes: Vec<&Lane> = Vec::new();
    for part in &request.what {
        let (lane, axes, before, limit) = match part {
            ClaimPart::Due { lane, before, limit } => {
                (lane, [Axis::Fresh, Axis::Due].as_slice(), before, limit)
            }
            ClaimPart::Age { lane, before, limit } => {
                (lane, [Axis::Fresh, Axis::Age].as_slice(), before, limit)
            }
            ClaimPart::AgeWithExpiry { lane, before, limit } => {
                (lane, [Axis::AgeWithExpiry].as_slice(), before, limit)
            }
            ClaimPart::Expiry { lane, before, limit } => (lane, [Axis::Expiry].as_slice(), before, limit),
            ClaimPart::Items(items) => {
                claim_items(rows, leases, request.owner, items, &mut claimed.items)?;
                continue;
            }
        };
        lanes.push(lane);
        if let Some(id) = rows.readable(rows.lane_id(lane))?.flatten() {
            let mut claim = LaneClaim { owner: request.owner, lane, before: *before, limit: *limit };
            claim.run(rows, leases, id, axes, &mut claimed.items)?;
        }
    }
    lanes.sort_unstable();
    lanes.dedup();
    for lane in lanes {
        let head = match rows.readable(rows.lane_id(lane))?.flatten() {
            Some(id) => head(rows, leases, id, lane)?,
            None => None,
        };
        claimed.heads.push(head.unwrap_or_else(|| LaneHead::empty(lane.clone())));
    }
    Ok(())
}

struct LaneClaim<'a> {
    owner: Owner,
    lane: &'a Lane,
    before: Timestamp,
    limit: usize,
}

impl LaneClaim<'_> {
    fn run<R: Rows>(
        &mut self,
        rows: &R,
        leases: &mut LeaseTable,
        lane: LaneId,
        axes: &[Axis],
        items: &mut Vec<Item>,
    ) -> Result<()> {
        let mut walks = Vec::with_capacity(axes.len());
        for axis in axes {
            walks.extend(rows.readable(walk(rows, leases, lane, *axis))?);
        }
        while self.limit > 0 {
            let first = walks.iter_mut().filter(|walk| walk.next.is_some()).min_by_key(|walk| walk.next);
            let Some(walk) = first else { break };
            let Some(spot) = walk.next.filter(|(time, _)| *time <= self.before) else { break };
            let key = OrderKey { lane, axis: walk.axis, spot };
            if let Some(row) = rows.readable(find(rows, key))? {
                items.push(lease(leases, self.owner, None, self.lane.clone(), (spot.1, row)));
                self.limit -= 1;
            } else {
                leases.set_aside(key);
            }
            // One that meets damage ends there.
            rows.readable(walk.step(leases))?;
        }
        for walk in walks {
            leases.advance(lane, walk.axis, walk.passed);
        }
        Ok(())
    }
}

/// The item that a key of the order leads to. The key has no checksum: it counts if the row says the same.
pub(super) fn find<R: Rows>(rows: &R, key: OrderKey) -> Result<ItemRow> {
    let id = key.spot.1;
    let Some(row) = rows.item(id)? else {
        return Err(corrupt(format!("lane {}: the row of item {} is not there", key.lane, id.0)));
    };
    let place = Place::new(row.lane, row.due, &row.envelope);
    if place.keys(id).any(|expected| expected == key) {
        return Ok(row);
    }
    Err(corrupt(format!("lane {}: an entry of the order for item {} is not from its row", key.lane, id.0)))
}

/// Leases an item to `owner`, unless it has the lease `own`.
fn lease(
    leases: &mut LeaseTable,
    owner: Owner,
    own: Option<Lease>,
    lane: Lane,
    (id, row): (ItemId, ItemRow),
) -> Item {
    let place = Place::new(row.lane, row.due, &row.envelope);
    let lease = own.unwrap_or_else(|| leases.grant(id, place, owner));
    Item { id, lease, lane, due: row.due, envelope: row.envelope, recipients: row.recipients }
}

fn claim_items<R: Rows>(
    rows: &R,
    leases: &mut LeaseTable,
    owner: Owner,
    wanted: &[ItemId],
    items: &mut Vec<Item>,
) -> Result<()> {
    for &id in wanted {
        let own = leases.own(owner, id);
        if own.is_none() && leases.is_held(id) {
            continue;
        }
        // One that is not there has ended.
        let named =
            rows.item(id).and_then(|row| row.map(|row| Ok((lane_of(rows, id, &row)?, row))).transpose());
        if let Some((lane, row)) = rows.readable(named)?.flatten() {
            items.push(lease(leases, owner, own, lane, (id, row)));
        }
    }
    Ok(())
}

/// The lane that an item's row says it is in.
pub(super) fn lane_of<R: Rows>(rows: &R, id: ItemId, row: &ItemRow) -> Result<Lane> {
    let not_there = || corrupt(format!("item {}: its lane {} is not there", id.0, row.lane));
    rows.lane(row.lane)?.ok_or_else(not_there)
}

/// The heads of lanes after `after`, in lane order.
pub(super) fn heads<R: Rows>(
    rows: &R,
    leases: &mut LeaseTable,
    after: Option<&Lane>,
    limit: usize,
) -> Result<Vec<LaneHead>> {
    let mut heads = Vec::new();
    if limit == 0 {
        return Ok(heads);
    }
    for entry in rows.lanes_after(after)?.filter_map(|entry| rows.sound(entry)) {
        let (lane, id) = entry?;
        if let Some(head) = head(rows, leases, id, &lane)? {
            heads.push(head);
            if heads.len() == limit {
                break;
            }
        }
    }
    Ok(heads)
}

/// The head of a lane; `None` if nothing in it is free. One or two probes of the order for most lanes.
fn head<R: Rows>(rows: &R, leases: &mut LeaseTable, id: LaneId, lane: &Lane) -> Result<Option<LaneHead>> {
    let mut firsts = [None; Axis::COUNT];
    let mut beyond: Option<OrderKey> = None;
    for (axis, first) in Axis::ALL.into_iter().zip(&mut firsts) {
        // What followed the axis before tells which axes are empty.
        if beyond.is_some_and(|key| (key.lane, key.axis) > (id, axis)) {
            continue;
        }
        let Some(walk) = rows.readable(walk(rows, leases, id, axis))? else {
            beyond = None;
            continue;
        };
        let (next, passed) = (walk.next, walk.passed);
        beyond = walk.beyond.or(next.is_none().then_some(END));
        *first = next.map(|(time, _)| time);
        leases.advance(id, axis, passed);
    }
    let [fresh, age, due, first_expiry, oldest_with_expiry] = firsts;
    let earlier = |a: Option<Timestamp>, b: Option<Timestamp>| a.into_iter().chain(b).min();
    let (next_due, oldest) = (earlier(fresh, due), earlier(fresh, age));
    if next_due.is_none() {
        return Ok(None);
    }
    Ok(Some(LaneHead { lane: lane.clone(), next_due, oldest, oldest_with_expiry, first_expiry }))
}
