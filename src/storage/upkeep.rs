//! What `maintain` does to the rows of both stores, in small portions.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::message::MessageId;

use super::lease::LeaseTable;
use super::order::{Axis, LaneId, OrderKey, START};
use super::rows::{Counters, Result, RowsMut};
use super::{ID_MEMORY, Lane};

/// Rows looked at without letting go of the store.
const PORTION: usize = 4096;
/// How long a generation of finished ids lasts: ids are remembered up to this much longer than [`ID_MEMORY`].
const GENERATION: Duration = Duration::from_secs(3600);
/// Ended generations that are kept apart; reached only when the clock jumps back. The current one then lasts on.
const MAX_ENDED: usize = 64;

/// Where the next call goes on.
#[derive(Clone, Debug, Default)]
pub(super) struct Upkeep {
    ids: Option<MessageId>,
    /// The oldest generation to be kept, when the walk over all ids that is under way or was the last began.
    walked_for: Option<u64>,
    lanes: Option<Lane>,
}

impl Upkeep {
    /// Forgets old ids and empty lanes. `true`: there may be more to forget.
    pub(super) fn run<R: RowsMut>(
        &mut self,
        rows: &mut R,
        leases: &LeaseTable,
        now: Timestamp,
    ) -> Result<bool> {
        let more_ids = self.forget_ids(rows, now)?;
        let more_lanes = self.drop_lanes(rows, leases)?;
        Ok(more_ids || more_lanes)
    }

    fn forget_ids<R: RowsMut>(&mut self, rows: &mut R, now: Timestamp) -> Result<bool> {
        let Some(oldest_kept) = end_generation(rows.counters(), now) else { return Ok(false) };
        if self.ids.is_none() && self.walked_for.replace(oldest_kept) == Some(oldest_kept) {
            // None has become old since all were looked at.
            return Ok(false);
        }
        let (mut old, mut damaged) = (Vec::new(), Vec::new());
        let mut seen = 0;
        let mut last = None;
        for entry in rows.finished_after(self.ids)?.take(PORTION) {
            let (id, generation) = entry?;
            seen += 1;
            last = Some(id);
            match rows.readable(generation)? {
                Some(generation) if generation < oldest_kept => old.push(id),
                Some(_) => {}
                None => damaged.push(id),
            }
        }
        self.ids = last.filter(|_| seen == PORTION);
        let generation = rows.counters().generation;
        damaged.into_iter().try_for_each(|id| rows.put_finished(id, generation))?;
        old.into_iter().try_for_each(|id| rows.remove_finished(id))?;
        // To the end: ids that are ordered by time have their old ones in one place, which is passed once.
        Ok(self.ids.is_some())
    }

    fn drop_lanes<R: RowsMut>(&mut self, rows: &mut R, leases: &LeaseTable) -> Result<bool> {
        let mut empty = Vec::new();
        let mut seen = 0;
        let mut last = None;
        for entry in rows.lanes_after(self.lanes.as_ref())?.take(PORTION) {
            seen += 1;
            let Some((lane, id)) = rows.readable(entry?)? else { continue };
            if !leases.has_lane(id) && is_empty(rows, id)? {
                empty.push((id, lane.clone()));
            }
            last = Some(lane);
        }
        self.lanes = last.filter(|_| seen == PORTION);
        let more = self.lanes.is_some() && !empty.is_empty();
        empty.into_iter().try_for_each(|(id, lane)| rows.remove_lane(id, &lane))?;
        Ok(more)
    }
}

fn is_empty<R: RowsMut>(rows: &R, lane: LaneId) -> Result<bool> {
    let first = rows.order_from(OrderKey { lane, axis: Axis::Fresh, spot: START })?.next().transpose()?;
    // One that can not be read may be this lane's.
    Ok(first.is_none_or(|key| key.is_ok_and(|key| key.lane != lane)))
}

/// Ends the current generation if it has lasted long enough. Returns the oldest one that must still be kept, if any
/// may go.
fn end_generation(counters: &mut Counters, now: Timestamp) -> Option<u64> {
    let lasted = counters.ended.last().is_none_or(|(_, at)| now.saturating_since(*at) >= GENERATION);
    if lasted && counters.ended.len() < MAX_ENDED {
        counters.ended.push((counters.generation, now));
        counters.generation = counters.generation.saturating_add(1);
    }
    let old = |(_, at): &&(u64, Timestamp)| now.saturating_since(*at) >= ID_MEMORY;
    let last_old = counters.ended.iter().rfind(old).map(|(generation, _)| *generation)?;
    // The last old one stays, to be known as old in later calls.
    counters.ended.retain(|(generation, _)| *generation >= last_old);
    Some(last_old.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{ClaimRequest, Inserted, MemoryStorage, NewMessage, Storage};
    use crate::testing::conformance::{A, at, due, message, settle};

    #[test]
    fn nothing_is_forgotten_before_id_memory_and_ended_stays_small() {
        let mut counters = Counters::default();
        let mut now = Timestamp::from_unix_seconds(1_000_000);
        let mut closed = Vec::new();
        for _ in 0..2_000 {
            let before = counters.generation;
            let kept = end_generation(&mut counters, now);
            if counters.generation > before {
                closed.push((before, now));
            }
            for (generation, at) in &closed {
                if kept.is_some_and(|kept| *generation < kept) {
                    assert!(now.saturating_since(*at) >= ID_MEMORY);
                } else {
                    assert!(now.saturating_since(*at) < ID_MEMORY + GENERATION + GENERATION);
                }
            }
            closed.retain(|(_, at)| now.saturating_since(*at) < ID_MEMORY);
            assert!(counters.ended.len() < 30);
            now = now + Duration::from_secs(300);
        }
    }

    /// As a host draws them by the clock. More come within each hour than are looked at at once.
    #[test]
    fn ids_in_the_order_of_time_are_all_forgotten() {
        const HOURLY: u128 = 4_200;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = MemoryStorage::new();
            let hour = |number: u128| at(1_000_000 + 3_601 * number as u64);
            let new = |number: u128| NewMessage { host_id: true, ..message(number, "a.example", 1) };
            for number in 0..40 {
                let ids = number * HOURLY + 1..=(number + 1) * HOURLY;
                store.insert(ids.map(new).collect()).await.unwrap();
                let what = vec![due("a.example", 1, usize::MAX)];
                let request = ClaimRequest { owner: A, now: hour(number), until: hour(number + 1), what };
                let claimed = store.claim(request).await.unwrap().items;
                assert_eq!(claimed.len() as u128, HOURLY);
                store.commit(claimed.iter().map(|item| settle(item, &[0])).collect()).await.unwrap();
                store.maintain(hour(number + 1)).await.unwrap();
            }
            let is_known = async |number: u128| {
                let answer = store.insert(vec![new(number * HOURLY + 7)]).await.unwrap();
                answer == [Inserted::Duplicate]
            };
            for number in 0..14 {
                assert!(!is_known(number).await, "of hour {number}");
            }
            for number in 17..40 {
                assert!(is_known(number).await, "of hour {number}");
            }
        });
    }
}
