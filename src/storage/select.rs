//! Finding items that are free: claims and heads of lanes.

use super::lease::LeaseTable;
use super::order::{Axis, LaneId, OrderKey, Place, START, Spot};
use super::rows::{Result, Rows};
use super::{ClaimPart, ClaimRequest, Claimed, Item, ItemId, Lane, LaneHead, Owner};
use crate::clock::Timestamp;

/// What follows the last key of all.
const END: OrderKey = OrderKey { lane: LaneId::MAX, axis: Axis::AgeWithExpiry, spot: START };

/// The items of one lane and axis that nobody holds, in order.
struct Walk<I> {
    keys: I,
    lane: LaneId,
    axis: Axis,
    /// The first free one not yet taken.
    next: Option<Spot>,
    /// Everything before it is held.
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
            if !leases.is_held(key.spot.1) {
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
    let keys = rows.order_from(OrderKey { lane, axis, spot: start })?;
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
        for item in claimed.items.iter().filter(|item| item.lease >= first) {
            leases.end(item.id, leases.place(item.id));
        }
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
        if let Some(id) = rows.lane_id(lane)? {
            let mut claim = LaneClaim { owner: request.owner, lane, before: *before, limit: *limit };
            claim.run(rows, leases, id, axes, &mut claimed.items)?;
        }
    }
    lanes.sort_unstable();
    lanes.dedup();
    for lane in lanes {
        let head = match rows.lane_id(lane)? {
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
            walks.push(walk(rows, leases, lane, *axis)?);
        }
        while self.limit > 0 {
            let first = walks.iter_mut().filter(|walk| walk.next.is_some()).min_by_key(|walk| walk.next);
            let Some(walk) = first else { break };
            let Some((_, id)) = walk.next.filter(|(time, _)| *time <= self.before) else { break };
            if let Some(item) = take(rows, leases, self.owner, id, lane, self.lane, walk.spot_place(lane)) {
                items.push(item);
                self.limit -= 1;
            }
            walk.step(leases)?;
        }
        for walk in walks {
            leases.advance(lane, walk.axis, walk.passed);
        }
        Ok(())
    }
}

impl<I> Walk<I> {
    /// Good enough a place for an item whose row can not be read: it is never freed again.
    fn spot_place(&self, lane: LaneId) -> Place {
        let time = self.next.unwrap_or(START).0;
        Place { lane, age: time, due: time, expiry: None }
    }
}

/// Leases one item. One that can not be read is leased too and not returned: left free, it would stay the head of
/// its lane and be claimed for ever.
fn take<R: Rows>(
    rows: &R,
    leases: &mut LeaseTable,
    owner: Owner,
    id: ItemId,
    lane_id: LaneId,
    lane: &Lane,
    fallback: Place,
) -> Option<Item> {
    match rows.item(id) {
        Ok(Some(row)) => {
            let lease = leases.grant(id, Place::new(lane_id, row.due, &row.envelope), owner);
            let (due, envelope, recipients) = (row.due, row.envelope, row.recipients);
            Some(Item { id, lease, lane: lane.clone(), due, envelope, recipients })
        }
        damaged => {
            let error = damaged.err().map_or_else(|| "its row is not there".to_owned(), |e| e.to_string());
            tracing::error!(item = id.0, %lane, error, "an item can not be read and is left aside");
            leases.grant(id, fallback, owner);
            None
        }
    }
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
        let Some(row) = rows.item(id)? else { continue };
        let Some(lane) = rows.lane(row.lane)? else { continue };
        let place = Place::new(row.lane, row.due, &row.envelope);
        let lease = own.unwrap_or_else(|| leases.grant(id, place, owner));
        let (due, envelope, recipients) = (row.due, row.envelope, row.recipients);
        items.push(Item { id, lease, lane, due, envelope, recipients });
    }
    Ok(())
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
    for entry in rows.lanes_after(after)? {
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
        let walk = walk(rows, leases, id, axis)?;
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
