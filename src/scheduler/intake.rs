//! How mail comes into the window: submissions, heads of lanes, and claims.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cancel::CancelKey;
use super::command::{Answer, Command, SubmitFailure, Token};
use super::destination::Destination;
use super::lane::{Head, LaneState};
use super::limits::LimitKey;
use super::queue::Queue;
use super::window::WindowItem;
use super::writes::{Effect, Submission, is_about_one_change};
use super::{ClaimId, DestinationKey, LaneKey, QueueKey, Scheduler, TimerOwner};
use crate::clock::Timestamp;
use crate::event::{DeliveryEvent, Received};
use crate::message::{Domain, Message};
use crate::storage::{
    Change, ClaimPart, Claimed, Envelope, Inserted, Item, ItemId, Lane, LaneHead, NewItem, NewMessage,
    Recipient, Release, StorageError,
};

/// Lanes in one claim.
const LANES_PER_CLAIM: usize = 16;
/// Items claimed at a time because they are too old.
const EXPIRIES_PER_CLAIM: usize = 100;

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
}

impl Scheduler {
    pub(super) fn on_submit(&mut self, now: Timestamp, token: Token, message: Message) {
        match self.admit(now, token, message) {
            Ok(submission) => self.writes.submit(submission),
            Err(failure) => {
                let answer = Answer::Submitted(Err(failure));
                self.commands.push_back(Command::Answer { token, answer });
            }
        }
    }

    fn admit(&mut self, now: Timestamp, token: Token, message: Message) -> Result<Submission, SubmitFailure> {
        if self.shutting_down {
            return Err(SubmitFailure::ShuttingDown);
        }
        message.check().map_err(SubmitFailure::Message)?;
        let host_id = message.id.is_some();
        let id = match message.id {
            Some(id) => id,
            None => self.message_id(now),
        };
        let source = self
            .policy
            .choose_source(message.source.as_deref(), &id)
            .map_err(SubmitFailure::UnknownSource)?;
        let age_from = message.hold_until.map_or(now, |hold| hold.max(now));
        let envelope = Arc::new(Envelope {
            id,
            reference: message.reference,
            reverse_path: message.reverse_path,
            submitted_at: now,
            age_from,
            expires_at: message.expires_after.map(|age| age_from + age),
            size: message.body.len() as u64,
            eight_bit: !message.body.is_ascii(),
            recipient_count: u32::try_from(message.recipients.len()).unwrap_or(u32::MAX),
            tags: message.tags,
        });
        let mut by_domain: BTreeMap<Domain, Vec<Recipient>> = BTreeMap::new();
        for (index, address) in (0..).zip(message.recipients) {
            let recipient = Recipient { index, address, attempts: 0, last: None };
            by_domain.entry(recipient.address.domain().clone()).or_default().push(recipient);
        }
        let mut items = Vec::with_capacity(by_domain.len());
        let mut lanes = Vec::with_capacity(by_domain.len());
        for (domain, recipients) in by_domain {
            let lane = Lane { domain, source: source.clone(), priority: message.priority };
            let key = self.lane_for(&lane);
            let most = self.recipients_per_transaction(key);
            let mut recipients = recipients.into_iter().peekable();
            // An item is what one transaction takes.
            while recipients.peek().is_some() {
                let claim = age_from <= now && self.has_room_for_fresh(now, key);
                if let Some(state) = self.lanes.get_mut(key) {
                    state.pending += 1;
                    if claim {
                        self.window.reserved += 1;
                        if let Some(destination) = self.destinations.get_mut(state.destination) {
                            destination.claimed += 1;
                        }
                    }
                }
                let recipients = recipients.by_ref().take(most).collect();
                let claim_for = claim.then_some(self.owner);
                items.push(NewItem { lane: lane.clone(), due: age_from, recipients, claim_for });
                lanes.push(key);
            }
        }
        let message = NewMessage { envelope, body: message.body, items, host_id };
        Ok(Submission { token, id, message, lanes })
    }

    pub(super) fn recipients_per_transaction(&self, lane: LaneKey) -> usize {
        let destination = self.lanes.get(lane).and_then(|lane| self.destinations.get(lane.destination));
        let queue = destination.and_then(|destination| self.queues.get(destination.queue));
        queue.map_or(1, |queue| queue.settings.max_rcpt_per_transaction.max(1) as usize)
    }

    /// Fresh mail goes straight into the window unless its destination rests or has enough there: while due mail
    /// waits in the store, half of its share, so that the other half is claimed.
    fn has_room_for_fresh(&self, now: Timestamp, lane: LaneKey) -> bool {
        let destination = self.lanes.get(lane).and_then(|lane| self.destinations.get(lane.destination));
        destination.is_some_and(|destination| {
            let share = self.bounds.window_per_destination;
            let others_wait = destination.claiming || !destination.hungry.is_empty();
            !destination.is_held(now)
                && destination.claimed < if others_wait { share / 2 } else { share }
                && self.window.len() < self.bounds.window
        })
    }

    pub(super) fn on_insert_done(&mut self, now: Timestamp, result: Result<Vec<Inserted>, StorageError>) {
        let submissions = std::mem::take(&mut self.writes.inserting);
        match result {
            Ok(answers) if answers.len() == submissions.len() => {
                for (submission, inserted) in submissions.into_iter().zip(answers) {
                    self.inserted(now, submission, inserted);
                }
            }
            Ok(answers) => {
                let message =
                    format!("the store gave {} answers for {} messages", answers.len(), submissions.len());
                let error = StorageError::new(crate::storage::StorageErrorKind::OutcomeUnknown, message);
                submissions.into_iter().for_each(|submission| self.refuse(now, submission, &error));
                self.stop_writing(now, &error);
            }
            Err(error) => {
                submissions.into_iter().for_each(|submission| self.refuse(now, submission, &error));
                if !error.is_temporary() && !is_about_one_change(&error) {
                    self.stop_writing(now, &error);
                }
            }
        }
    }

    fn inserted(&mut self, now: Timestamp, submission: Submission, inserted: Inserted) {
        let Inserted::Stored(keys) = inserted else {
            self.abandon(now, &submission);
            let answer = Answer::Submitted(Ok(submission.id));
            self.commands.push_back(Command::Answer { token: submission.token, answer });
            return;
        };
        let Submission { token, id, message, lanes } = submission;
        self.counters.received += 1;
        let envelope = message.envelope;
        self.commands.push_back(Command::Report(DeliveryEvent::Received(Received {
            time: now,
            id,
            reference: envelope.reference.clone(),
            reverse_path: envelope.reverse_path.clone(),
            size: envelope.size,
            recipients: envelope.recipient_count,
            tags: envelope.tags.clone(),
        })));
        self.commands.push_back(Command::Answer { token, answer: Answer::Submitted(Ok(id)) });
        for ((item, key), (item_id, lease)) in message.items.into_iter().zip(lanes).zip(keys) {
            let due = item.due;
            if let Some(state) = self.lanes.get_mut(key) {
                state.pending = state.pending.saturating_sub(1);
                if lease.is_none() {
                    state.put_back(head_of(&envelope, item.due));
                }
            }
            if item.claim_for.is_some() {
                self.give_up_reservation(key);
            }
            if let Some(lease) = lease {
                let NewItem { lane, due, recipients, .. } = item;
                let item = Item { id: item_id, lease, lane, due, envelope: envelope.clone(), recipients };
                let keep = self.window.held_octets() + message.body.len() <= self.bounds.held_octets;
                self.take_in(now, key, item, keep.then(|| message.body.clone()));
            }
            self.wake_for_new_mail(now, key, due);
            self.review_lane(now, key);
        }
    }

    /// A submission that was not stored gives back what it was promised.
    pub(super) fn abandon(&mut self, now: Timestamp, submission: &Submission) {
        for (item, &key) in submission.message.items.iter().zip(&submission.lanes) {
            if let Some(state) = self.lanes.get_mut(key) {
                state.pending = state.pending.saturating_sub(1);
            }
            if item.claim_for.is_some() {
                self.give_up_reservation(key);
            }
            self.review_lane(now, key);
        }
    }

    fn give_up_reservation(&mut self, lane: LaneKey) {
        self.window.reserved = self.window.reserved.saturating_sub(1);
        if let Some(lane) = self.lanes.get(lane)
            && let Some(destination) = self.destinations.get_mut(lane.destination)
        {
            destination.claimed = destination.claimed.saturating_sub(1);
        }
    }

    /// `retry-upon-new-mail`: a destination in retry mode is tried at once.
    fn wake_for_new_mail(&mut self, now: Timestamp, lane: LaneKey, due: Timestamp) {
        let Some(key) = self.lanes.get(lane).map(|lane| lane.destination) else { return };
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let wakes =
            self.queues.get(destination.queue).is_some_and(|queue| queue.settings.retry_upon_new_mail);
        if wakes && due <= now && destination.is_held(now) {
            destination.retry.until = Some(now);
            self.mark(key);
        }
    }

    pub(super) fn on_heads(&mut self, now: Timestamp, heads: &[LaneHead]) {
        for head in heads {
            let key = self.lane_for(&head.lane);
            if let Some(lane) = self.lanes.get_mut(key) {
                lane.put_back(Head::from(head));
            }
            self.review_lane(now, key);
        }
    }

    /// The lane's state, made if need be, with its destination and queue.
    fn lane_for(&mut self, lane: &Lane) -> LaneKey {
        if let Some(&key) = self.lane_keys.get(lane) {
            return key;
        }
        let queue = self.queue_for(lane.domain.as_str().into(), &lane.source);
        let destination = self.destination_for(&lane.domain, queue);
        let key = self.lanes.insert(LaneState::new(lane.clone(), destination));
        self.lane_keys.insert(lane.clone(), key);
        if let Some(destination) = self.destinations.get_mut(destination) {
            destination.lanes.insert(key);
        }
        key
    }

    pub(super) fn queue_for(&mut self, name: Arc<str>, source: &Arc<str>) -> QueueKey {
        let key = (name, source.clone());
        if let Some(&queue) = self.queue_keys.get(&key) {
            return queue;
        }
        let settings = Arc::new(self.policy.settings(&key.0, &key.1));
        let total = self.total;
        let queue = self.queues.insert(Queue::new(key.0.clone(), key.1.clone(), settings, total));
        if let Some(state) = self.queues.get_mut(queue) {
            state.slot = self.limits.count(LimitKey::Queue(queue), state.connection_limit());
        }
        self.queue_keys.insert(key, queue);
        queue
    }

    pub(super) fn destination_for(&mut self, domain: &Domain, queue: QueueKey) -> DestinationKey {
        let key = (domain.clone(), queue);
        if let Some(&destination) = self.destination_keys.get(&key) {
            return destination;
        }
        let destination = self.destinations.insert(Destination::new(queue, domain.clone()));
        self.destination_keys.insert(key, destination);
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.destinations += 1;
        }
        destination
    }

    /// When items of this lane's queue expire, by the queue's setting.
    fn bounce_after(&self, lane: &LaneState) -> std::time::Duration {
        self.destinations
            .get(lane.destination)
            .and_then(|destination| self.queues.get(destination.queue))
            .map_or(std::time::Duration::MAX, |queue| queue.settings.bounce_after)
    }

    /// Puts a leased item where it belongs: out, if it is too old or cancelled; in the lane, if it may be tried.
    pub(super) fn take_in(&mut self, now: Timestamp, key: LaneKey, item: Item, body: Option<bytes::Bytes>) {
        let Some(lane) = self.lanes.get(key) else { return };
        let bounce_after = self.bounce_after(lane);
        let destination_key = lane.destination;
        let envelope = &item.envelope;
        let deadline = envelope.expires_at.unwrap_or_else(|| envelope.age_from + bounce_after);
        let id = item.id;
        let cancelled = self.cancels.is_cancelled(envelope.id);
        let message = envelope.id;
        let due = item.due;
        let window_item = WindowItem {
            item,
            lane: key,
            body,
            deadline,
            overflowed: Vec::new(),
            suspect: false,
            ready: false,
            busy: false,
            cancelled: false,
        };
        let fresh = window_item.is_fresh();
        self.window.insert(window_item);
        let Some(destination) = self.destinations.get_mut(destination_key) else { return };
        destination.claimed += 1;
        let held = destination.is_held(now);
        if destination.suspected.contains(&message)
            && let Some(item) = self.window.get_mut(id)
        {
            item.suspect = true;
        }
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.deadlines.insert((deadline, id));
        if cancelled {
            self.cancel_item(now, id);
        } else if deadline <= now {
            self.expire(now, id);
        } else if due > now || held || self.shutting_down {
            self.put_back(now, id, None);
        } else {
            self.make_ready(id, fresh, false);
        }
    }

    /// The item may be tried: at the back of its lane, or at its front.
    pub(super) fn make_ready(&mut self, id: ItemId, fresh: bool, front: bool) {
        if let Some(destination) = self.stand_in_line(id, fresh, front) {
            self.mark(destination);
        }
    }

    pub(super) fn stand_in_line(&mut self, id: ItemId, fresh: bool, front: bool) -> Option<DestinationKey> {
        let item = self.window.get_mut(id)?;
        let key = item.lane;
        let lane = self.lanes.get_mut(key)?;
        let destination_key = lane.destination;
        let destination = self.destinations.get_mut(destination_key)?;
        item.ready = true;
        destination.ready += 1;
        if item.suspect {
            destination.suspects.push_back(id);
            return Some(destination_key);
        }
        let list = if fresh { &mut lane.fresh } else { &mut lane.again };
        if front {
            list.push_front(id)
        } else {
            list.push_back(id)
        }
        if !lane.in_ring {
            lane.in_ring = true;
            destination.ring.push(lane.key.priority, key);
        }
        Some(destination_key)
    }

    /// Gives the lease of an item back; with `due`, after writing that it is due then. What is being cancelled
    /// ends instead.
    pub(super) fn put_back(&mut self, now: Timestamp, id: ItemId, due: Option<Timestamp>) {
        if self.window.get(id).is_some_and(|item| self.cancels.is_cancelled(item.item.envelope.id)) {
            self.cancel_item(now, id);
            return;
        }
        let Some(item) = self.leave_window(id) else { return };
        let head = head_of(&item.item.envelope, due.unwrap_or(item.item.due));
        let (item_id, lease) = (item.item.id, item.item.lease);
        self.writes.change(match due {
            Some(due) => Change::Update {
                item: item_id,
                lease,
                settled: Vec::new(),
                released: vec![Release { due, recipients: item.item.recipients }],
            },
            None => Change::Unclaim { item: item_id, lease },
        });
        self.writes.then(Effect::Settled { lane: item.lane, put_back: Some(head) });
    }

    /// Takes an item out of the window, its lane and its destination. What becomes of it is pending.
    pub(super) fn leave_window(&mut self, id: ItemId) -> Option<WindowItem> {
        let item = self.window.remove(id)?;
        let lane = self.lanes.get_mut(item.lane)?;
        lane.pending += 1;
        lane.deadlines.remove(&(item.deadline, id));
        if item.busy {
            // It was pending already.
            lane.pending -= 1;
        }
        if item.ready {
            lane.forget(id);
        }
        if let Some(destination) = self.destinations.get_mut(lane.destination) {
            destination.claimed = destination.claimed.saturating_sub(1);
            destination.ready -= usize::from(item.ready);
            if item.ready && item.suspect {
                destination.suspects.retain(|&other| other != id);
            }
        }
        Some(item)
    }

    /// Sees to a lane after it changed: what it waits for next, whether it is hungry, whether it is done.
    pub(super) fn review_lane(&mut self, now: Timestamp, key: LaneKey) {
        let Some(lane) = self.lanes.get(key) else { return };
        let destination_key = lane.destination;
        if lane.is_done() {
            self.remove_lane(key);
            self.mark(destination_key);
            return;
        }
        let bounce_after = self.bounce_after(lane);
        let expiry = [lane.head.oldest.map(|oldest| oldest + bounce_after), lane.head.first_expiry];
        // While it is about to be claimed, or a claim is under way, that decides.
        let expiry = expiry.into_iter().flatten().min().filter(|_| !lane.expiring && lane.claiming.is_none());
        let window_expiry = lane.deadlines.first().map(|&(deadline, _)| deadline);
        let due = lane.head.next_due;
        let becomes_hungry = due.is_some_and(|due| due <= now) && !lane.hungry && lane.claiming.is_none();
        let later_due = due.filter(|&due| due > now);
        let next = [expiry, window_expiry, later_due].into_iter().flatten().min();
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if becomes_hungry {
            lane.hungry = true;
        }
        self.timers.arm(&mut lane.timer, next, TimerOwner::Lane(key));
        if becomes_hungry {
            if let Some(destination) = self.destinations.get_mut(destination_key) {
                destination.hungry.push_back(key);
            }
            self.mark(destination_key);
        }
    }

    /// Something of the lane is due or too old.
    pub(super) fn on_lane_timer(&mut self, now: Timestamp, key: LaneKey) {
        let mut expired = 0;
        while let Some(&(deadline, id)) = self.lanes.get(key).and_then(|lane| lane.deadlines.first())
            && deadline <= now
            && expired < EXPIRIES_PER_CLAIM
        {
            self.expire(now, id);
            expired += 1;
        }
        let Some(lane) = self.lanes.get(key) else { return };
        let bounce_after = self.bounce_after(lane);
        let stored = lane.head.oldest.is_some_and(|oldest| oldest + bounce_after <= now)
            || lane.head.first_expiry.is_some_and(|expiry| expiry <= now);
        if stored && !lane.expiring && lane.claiming.is_none() {
            let destination_key = lane.destination;
            if let Some(lane) = self.lanes.get_mut(key) {
                lane.expiring = true;
            }
            if let Some(destination) = self.destinations.get_mut(destination_key) {
                destination.expiring.push_back(key);
            }
            self.mark(destination_key);
        }
        self.review_lane(now, key);
    }

    fn remove_lane(&mut self, key: LaneKey) {
        let Some(mut lane) = self.lanes.remove(key) else { return };
        self.timers.arm(&mut lane.timer, None, TimerOwner::Lane(key));
        self.lane_keys.remove(&lane.key);
        if let Some(destination) = self.destinations.get_mut(lane.destination) {
            destination.lanes.remove(&key);
        }
    }

    /// Claims due mail up to `room` items, in turns over the hungry lanes, and what is too old.
    pub(super) fn claim(&mut self, now: Timestamp, destination_key: DestinationKey, room: usize) {
        let Some(destination) = self.destinations.get_mut(destination_key) else { return };
        let mut parts = Vec::new();
        let mut lanes = Vec::new();
        while let Some(key) = destination.expiring.pop_front() {
            let Some(lane) = self.lanes.get_mut(key) else { continue };
            lane.expiring = false;
            let bounce_after = self
                .queues
                .get(destination.queue)
                .map_or(std::time::Duration::MAX, |q| q.settings.bounce_after);
            let name = lane.key.clone();
            let limit = EXPIRIES_PER_CLAIM;
            parts.push(ClaimPart::Age {
                lane: name.clone(),
                before: now.saturating_sub(bounce_after),
                limit,
            });
            parts.push(ClaimPart::Expiry { lane: name, before: now, limit });
            lanes.push(key);
            if lanes.len() >= LANES_PER_CLAIM {
                break;
            }
        }
        let hungry = destination.hungry.len().min(LANES_PER_CLAIM).min(room);
        let mut promised = 0;
        if let Some(share) = room.checked_div(hungry) {
            for _ in 0..hungry {
                let Some(key) = destination.hungry.pop_front() else { break };
                let Some(lane) = self.lanes.get_mut(key) else { continue };
                lane.hungry = false;
                parts.push(ClaimPart::Due { lane: lane.key.clone(), before: now, limit: share });
                promised += share;
                if !lanes.contains(&key) {
                    lanes.push(key);
                }
            }
        }
        if parts.is_empty() {
            return;
        }
        destination.claiming = true;
        destination.claimed += promised;
        self.window.reserved += promised;
        for &key in &lanes {
            if let Some(lane) = self.lanes.get_mut(key) {
                lane.claiming = Some(Head::default());
            }
        }
        self.start_claim(
            ClaimInFlight { purpose: Purpose::Deliver(destination_key), lanes, promised },
            parts,
        );
    }

    /// Leases the items of a message that are not in the window, to cancel them.
    pub(super) fn claim_to_cancel(&mut self, key: CancelKey, items: Vec<ItemId>) {
        let claim = ClaimInFlight { purpose: Purpose::Cancel(key), lanes: Vec::new(), promised: 0 };
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
        let Some(claim) = self.claims.remove(&claim) else { return };
        self.window.reserved = self.window.reserved.saturating_sub(claim.promised);
        if let Purpose::Deliver(key) = claim.purpose
            && let Some(destination) = self.destinations.get_mut(key)
        {
            destination.claimed = destination.claimed.saturating_sub(claim.promised);
        }
        match result {
            Ok(claimed) => {
                for head in &claimed.heads {
                    let Some(&key) = self.lane_keys.get(&head.lane) else { continue };
                    let Some(lane) = self.lanes.get_mut(key) else { continue };
                    if let Some(meanwhile) = lane.claiming.take() {
                        lane.head = Head::from(head);
                        lane.head.merge(meanwhile);
                    }
                }
                for item in claimed.items {
                    if self.cancels.has_ended(item.envelope.id, item.id) {
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
                        self.storage_trouble(now, &error);
                    }
                    Purpose::Deliver(_) => self.stop_writing(now, &error),
                    Purpose::Cancel(ref key) => self.cancel_failed(*key, &error),
                }
            }
        }
        if let Purpose::Cancel(key) = claim.purpose {
            self.cancel_claimed(key);
        }
        self.finish_cancels(now);
    }

    fn after_claim(&mut self, now: Timestamp, claim: &ClaimInFlight) {
        for &key in &claim.lanes {
            if let Some(lane) = self.lanes.get_mut(key)
                && let Some(meanwhile) = lane.claiming.take()
            {
                lane.head.merge(meanwhile);
            }
        }
        if let Purpose::Deliver(destination) = claim.purpose
            && let Some(state) = self.destinations.get_mut(destination)
        {
            state.claiming = false;
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

/// What an item adds to its lane's head when it lies in the store.
pub(super) fn head_of(envelope: &Envelope, due: Timestamp) -> Head {
    let age = Some(envelope.age_from);
    let (oldest, oldest_with_expiry) = if envelope.expires_at.is_none() { (age, None) } else { (None, age) };
    Head { next_due: Some(due), oldest, oldest_with_expiry, first_expiry: envelope.expires_at }
}
