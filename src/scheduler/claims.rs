//! Claims: mail taken out of the store, to send it or to end it.

use super::cancel::CancelKey;
use super::command::{Command, Token};
use super::lane::Head;
use super::writes::is_about_one_change;
use super::{ClaimId, DestinationKey, LaneKey, Scheduler};
use crate::clock::Timestamp;
use crate::event::StorageOperation;
use crate::message::Priority;
use crate::storage::{ClaimPart, Claimed, ItemId, Room, StorageError};

/// Lanes in one claim.
const LANES_PER_CLAIM: usize = 16;
/// Items claimed at a time because they are too old.
const EXPIRIES_PER_CLAIM: usize = 100;
/// The same where the store has little room: each takes some until its outcome was reported.
const EXPIRIES_IF_SCARCE: usize = 4;

/// How much of its destination's share of the window a lane may fill: less than all of it, so that mail that is more
/// urgent always finds room.
pub(super) fn window_share(bound: usize, priority: Priority) -> usize {
    let eighths = match priority {
        Priority::High => 8,
        Priority::Normal => 7,
        Priority::Low => 6,
    };
    (bound * eighths).div_ceil(8)
}

fn weight(priority: Priority) -> usize {
    match priority {
        Priority::High => 16,
        Priority::Normal => 4,
        Priority::Low => 1,
    }
}

/// What a claim under way is for.
pub(super) struct ClaimInFlight {
    pub(super) purpose: Purpose,
    lanes: Vec<LaneKey>,
    /// Places in the window promised to it.
    promised: usize,
}

#[cfg(test)]
impl ClaimInFlight {
    pub(super) fn promised(&self) -> usize {
        self.promised
    }
}

pub(super) enum Purpose {
    /// To send, or to expire, mail of a destination.
    Deliver(DestinationKey),
    /// To cancel a message.
    Cancel(CancelKey),
    /// To make items due, or to end them.
    Sweep(Token),
}

impl Scheduler {
    /// Claims due mail up to `room` items, in turns over the hungry lanes, and what is too old.
    pub(super) fn claim(&mut self, now: Timestamp, destination_key: DestinationKey, room: usize) {
        let mut parts = Vec::new();
        let mut lanes = Vec::new();
        while lanes.len() < LANES_PER_CLAIM
            && let Some(key) =
                self.destinations.get_mut(destination_key).and_then(|d| d.work.expiring.pop_front())
        {
            if self.take_expiring(key, destination_key) {
                self.parts_of_old(now, destination_key, key, &mut parts);
                lanes.push(key);
            }
        }
        let bound = self.bounds.window_per_destination;
        let Some(destination) = self.destinations.get_mut(destination_key) else { return };
        let hungry = destination.work.hungry.len().min(LANES_PER_CLAIM).min(room);
        let mut promised = 0;
        let weigh = |key: &LaneKey| self.lanes.get(*key).map_or(0, |lane| weight(lane.key.priority));
        let weights: usize = destination.work.hungry.iter().take(hungry).map(weigh).sum();
        let mut left = hungry;
        while left > 0 {
            let Some(key) = destination.work.hungry.pop_front() else { break };
            let Some(lane) = self.lanes.get_mut(key) else { continue };
            // It may have left for another destination since it stood here: that is no lane's turn.
            if lane.destination != destination_key || !std::mem::take(&mut lane.work.hungry) {
                continue;
            }
            left -= 1;
            let priority = lane.key.priority;
            let share = (room * weight(priority) / weights.max(1)).max(1);
            let allowed = window_share(bound, priority).saturating_sub(destination.work.claimed + promised);
            // One of it at least is at hand, whatever the others take.
            let allowed = allowed.max(usize::from(lane.work.claimed == 0));
            let share = share.min(allowed).min(room - promised);
            if share == 0 {
                lane.work.hungry = true;
                destination.work.hungry.push_back(key);
                continue;
            }
            parts.push(ClaimPart::Due { lane: lane.key.clone(), before: now, limit: share });
            promised += share;
            if !lanes.contains(&key) {
                lanes.push(key);
            }
        }
        if parts.is_empty() {
            return;
        }
        destination.work.claiming = true;
        destination.work.claimed += promised;
        self.window.reserved += promised;
        for &key in &lanes {
            if let Some(lane) = self.lanes.get_mut(key) {
                lane.work.claiming = Some(Head::default());
            }
        }
        self.start_claim(
            ClaimInFlight { purpose: Purpose::Deliver(destination_key), lanes, promised },
            parts,
        );
    }

    /// A claim of what is too old shows a lane's head, whether or not there is any.
    fn ask_for_head(&mut self, key: LaneKey) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if lane.work.expiring || lane.work.claiming.is_some() {
            return;
        }
        lane.work.expiring = true;
        let destination_key = lane.destination;
        if let Some(destination) = self.destinations.get_mut(destination_key) {
            destination.work.expiring.push_back(key);
        }
        self.mark(destination_key);
    }

    fn take_expiring(&mut self, key: LaneKey, of: DestinationKey) -> bool {
        self.lanes
            .get_mut(key)
            .is_some_and(|lane| lane.destination == of && std::mem::take(&mut lane.work.expiring))
    }

    /// What of a lane is expired, as old as its domain may be missing, or to be purged.
    fn parts_of_old(
        &self,
        now: Timestamp,
        destination: DestinationKey,
        key: LaneKey,
        parts: &mut Vec<ClaimPart>,
    ) {
        let Some(lane) = self.lanes.get(key) else { return };
        let name = &lane.key;
        let limit = if self.store_room == Room::Ample { EXPIRIES_PER_CLAIM } else { EXPIRIES_IF_SCARCE };
        let expired = now.saturating_sub(self.bounce_after(lane));
        let is_confirmed = self.destinations.get(destination).is_some_and(|d| d.is_confirmed_missing(now));
        let missing = self.missing_after(destination).filter(|_| is_confirmed);
        let missing = missing.map(|after| now.saturating_sub(after));
        let ended = missing.into_iter().chain(self.purge_before(key)).max();
        let before = ended.map_or(expired, |ended| ended.max(expired));
        parts.push(ClaimPart::Age { lane: name.clone(), before, limit });
        parts.push(ClaimPart::Expiry { lane: name.clone(), before: now, limit });
        if let Some(before) = ended {
            parts.push(ClaimPart::AgeWithExpiry { lane: name.clone(), before, limit });
        }
    }

    /// Leases the items of a message that are not in the window, to cancel them.
    pub(super) fn claim_to_cancel(&mut self, key: CancelKey, items: Vec<ItemId>) {
        let claim = ClaimInFlight { purpose: Purpose::Cancel(key), lanes: Vec::new(), promised: 0 };
        self.start_claim(claim, vec![ClaimPart::Items(items)]);
    }

    /// Leases a page of a sweep.
    pub(super) fn claim_to_sweep(&mut self, token: Token, items: Vec<ItemId>) {
        self.window.begin_crossing();
        let claim = ClaimInFlight { purpose: Purpose::Sweep(token), lanes: Vec::new(), promised: 0 };
        self.start_claim(claim, vec![ClaimPart::Items(items)]);
    }

    fn start_claim(&mut self, claim: ClaimInFlight, what: Vec<ClaimPart>) {
        let id = ClaimId(self.next_claim);
        self.next_claim += 1;
        self.claims.insert(id, claim);
        self.commands.push_back(Command::Claim { claim: id, what });
    }

    /// The first claim that has not come back; with none, the next.
    pub(super) fn first_claim_under_way(&self) -> ClaimId {
        self.claims.first_key_value().map_or(ClaimId(self.next_claim), |(&id, _)| id)
    }

    pub(super) fn on_claimed(
        &mut self,
        now: Timestamp,
        claim: ClaimId,
        result: Result<Claimed, StorageError>,
    ) {
        let id = claim;
        let Some(claim) = self.claims.remove(&id) else { return };
        self.window.reserved = self.window.reserved.saturating_sub(claim.promised);
        if let Purpose::Deliver(key) = claim.purpose
            && let Some(destination) = self.destinations.get_mut(key)
        {
            destination.work.claimed = destination.work.claimed.saturating_sub(claim.promised);
        }
        match result {
            Ok(claimed) => {
                for head in &claimed.heads {
                    let Some(key) = self.lanes.find(&head.lane) else { continue };
                    let Some(lane) = self.lanes.get_mut(key) else { continue };
                    if let Some(meanwhile) = lane.work.claiming.take() {
                        lane.head = Head::from(head);
                        lane.head.merge(meanwhile);
                    }
                }
                let by_id = !matches!(claim.purpose, Purpose::Deliver(_));
                let mut claimed_from: Vec<LaneKey> = Vec::new();
                for item in claimed.items.iter().filter(|_| by_id) {
                    let lane = self.lane_for(&item.lane);
                    if !claimed_from.contains(&lane) {
                        claimed_from.push(lane);
                    }
                }
                // Items taken out by their id: where the heads of their lanes are now is asked for.
                claimed_from.into_iter().for_each(|lane| self.ask_for_head(lane));
                if let Purpose::Sweep(token) = claim.purpose {
                    self.on_swept(now, token, claimed.items);
                    self.window.end_crossing();
                    self.forget_swept();
                    self.finish_cancels(now);
                    return;
                }
                for item in claimed.items {
                    // A claim by id that was made later answered first.
                    let was_swept = self.swept.get(&item.id).is_some_and(|&until| id < until);
                    if was_swept || self.cancels.has_ended(item.envelope.id, item.id) {
                        continue;
                    }
                    let key = self.lane_for(&item.lane);
                    self.take_in(now, key, item, None);
                }
                self.after_claim(now, &claim);
            }
            Err(error) => {
                self.after_claim(now, &claim);
                match claim.purpose {
                    Purpose::Deliver(destination) if error.is_temporary() || is_about_one_change(&error) => {
                        self.retry_claim_of.insert(destination);
                        self.storage_trouble(now, StorageOperation::Read, &error);
                    }
                    Purpose::Deliver(_) => self.stop_writing(now, StorageOperation::Read, &error),
                    Purpose::Cancel(ref key) => self.cancel_failed(*key, &error),
                    Purpose::Sweep(token) => {
                        self.window.end_crossing();
                        self.sweep_failed(now, token, &error);
                    }
                }
            }
        }
        if let Purpose::Cancel(key) = claim.purpose {
            self.cancel_claimed(key);
        }
        self.forget_swept();
        self.finish_cancels(now);
    }

    /// What claims under way may no longer bring.
    fn forget_swept(&mut self) {
        if !self.swept.is_empty() {
            let first = self.first_claim_under_way();
            self.swept.retain(|_, until| *until > first);
        }
    }

    fn after_claim(&mut self, now: Timestamp, claim: &ClaimInFlight) {
        for &key in &claim.lanes {
            if let Some(lane) = self.lanes.get_mut(key)
                && let Some(meanwhile) = lane.work.claiming.take()
            {
                lane.head.merge(meanwhile);
            }
        }
        if let Purpose::Deliver(destination) = claim.purpose
            && let Some(state) = self.destinations.get_mut(destination)
        {
            state.work.claiming = false;
            self.mark(destination);
        }
        for &key in &claim.lanes {
            self.review_lane(now, key);
        }
    }

    /// The store may answer again: claims that failed are made anew.
    pub(super) fn retry_claims(&mut self) {
        let failed = std::mem::take(&mut self.retry_claim_of);
        failed.into_iter().for_each(|destination| self.mark(destination));
    }
}
