//! How mail comes into the window: submissions, heads of lanes, and claims.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use smallvec::{SmallVec, smallvec};

use super::claims::window_share;
use super::command::{Answer, Command, SubmitFailure, Token};
use super::fault::Fault;
use super::few::FewSet;
use super::lane::{Head, LaneState};
use super::outcome::{HELD_BY_FUSE, PAUSED};
use super::placement::lane_source;
use super::timers::earliest;
use super::window::WindowItem;
use super::writes::{Effect, Submission, SubmittedItem, is_about_one_change};
use super::{DestinationKey, LaneKey, Scheduler, TimerOwner};
use crate::clock::Timestamp;
use crate::event::{DeliveryEvent, Received, StorageOperation};
use crate::message::{Address, Domain, Message, Priority, RecipientDsn};
use crate::storage::{
    Change, Envelope, Inserted, Item, ItemId, Lane, LaneHead, NewItem, NewMessage, Recipient, Release,
    StorageError,
};

/// Items of a lane that one timer ends at most because they are too old; the rest follows.
const EXPIRIES_AT_A_TIME: usize = 100;

impl Scheduler {
    pub(super) fn on_submit(&mut self, now: Timestamp, token: Token, message: Message) {
        match self.admit(now, token, message) {
            Ok((submission, message)) => self.writes.submit(submission, message),
            Err(failure) => {
                let answer = Answer::Submitted(Err(failure));
                self.commands.push_back(Command::Answer { token, answer });
            }
        }
    }

    fn admit(
        &mut self,
        now: Timestamp,
        token: Token,
        message: Message,
    ) -> Result<(Submission, NewMessage), SubmitFailure> {
        if self.shutting_down {
            return Err(SubmitFailure::ShuttingDown);
        }
        message.check().map_err(SubmitFailure::Message)?;
        let host_id = message.id.is_some();
        let id = match message.id {
            Some(id) => id,
            None => self.message_id(now),
        };
        let source = lane_source(&self.policy, message.source.as_deref(), &id)
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
            require_tls: message.require_tls,
            smtputf8: message.smtputf8,
            recipient_count: u32::try_from(message.recipients.len()).unwrap_or(u32::MAX),
            tags: message.tags,
            dsn: message.dsn.map(Box::new),
        });
        let by_domain = by_domain(message.recipients, message.recipient_dsn);
        let mut items = Vec::with_capacity(by_domain.len());
        let mut submitted = SmallVec::new();
        for (domain, recipients) in by_domain {
            let lane = Lane { domain, source: source.clone(), priority: message.priority };
            let key = self.lane_for(&lane);
            let most = self.recipients_per_transaction(key);
            let mut rest = recipients.into_iter();
            // An item is what one transaction takes.
            while rest.len() > 0 {
                let claim = age_from <= now && self.has_room_for_fresh(now, key);
                if let Some(state) = self.lanes.get_mut(key) {
                    state.work.pending += 1;
                    if claim {
                        state.work.claimed += 1;
                        self.window.reserved += 1;
                        if let Some(destination) = self.destinations.get_mut(state.destination) {
                            destination.work.claimed += 1;
                        }
                    }
                }
                let recipients: Vec<Recipient> = if rest.len() <= most {
                    std::mem::take(&mut rest).collect()
                } else {
                    rest.by_ref().take(most).collect()
                };
                let leased = claim.then(|| recipients.clone());
                submitted.push(SubmittedItem { lane: key, due: age_from, leased });
                let claim_for = claim.then_some(self.owner);
                items.push(NewItem { lane: lane.clone(), due: age_from, recipients, claim_for });
            }
        }
        let (body, of_all) = (message.body.clone(), envelope.clone());
        let submission = Submission { token, id, envelope: of_all, body, items: submitted };
        Ok((submission, NewMessage { envelope, body: message.body, items, host_id }))
    }

    pub(super) fn recipients_per_transaction(&self, lane: LaneKey) -> usize {
        let queue = self.lanes.get(lane).and_then(|lane| self.queues.get(lane.queue));
        let one = usize::from(Fault::OneRecipientMore.is_there());
        queue.map_or(1, |queue| queue.settings.max_rcpt_per_transaction.max(1) as usize + one)
    }

    /// Fresh mail goes straight into the window unless its destination rests or has enough there: while due mail
    /// waits in the store, half of its share, so that the other half is claimed.
    fn has_room_for_fresh(&self, now: Timestamp, lane: LaneKey) -> bool {
        let Some(key) = self.lanes.get(lane).map(|lane| lane.destination) else { return false };
        self.destinations.get(key).is_some_and(|destination| {
            let priority = self.lanes.get(lane).map_or(Priority::Normal, |lane| lane.key.priority);
            let fresh = self.lanes.get(lane).map_or(0, |lane| lane.work.fresh.len());
            let share = window_share(self.bounds.window_per_destination, priority);
            let others_wait = destination.work.claiming || !destination.work.hungry.is_empty();
            !self.is_held(now, key)
                && destination.work.claimed < share
                && (!others_wait || fresh < share / 2)
                && !self.window.is_full(self.bounds.window)
        })
    }

    pub(super) fn on_insert_done(&mut self, now: Timestamp, result: Result<Vec<Inserted>, StorageError>) {
        let mut submissions = std::mem::take(&mut self.writes.inserting);
        match result {
            Ok(answers) if answers.len() == submissions.len() => {
                for (submission, inserted) in submissions.drain(..).zip(answers) {
                    self.inserted(now, submission, inserted);
                }
                // Its memory serves the next.
                self.writes.inserting = submissions;
            }
            Ok(answers) => {
                let message =
                    format!("the store gave {} answers for {} messages", answers.len(), submissions.len());
                let error = StorageError::new(crate::storage::StorageErrorKind::OutcomeUnknown, message);
                submissions.into_iter().for_each(|submission| self.refuse(now, submission, &error));
                self.stop_writing(now, StorageOperation::Insert, &error);
            }
            Err(error) => {
                submissions.into_iter().for_each(|submission| self.refuse(now, submission, &error));
                if error.is_temporary() {
                    self.tell_refused(now, &error);
                } else if !is_about_one_change(&error) {
                    self.stop_writing(now, StorageOperation::Insert, &error);
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
        let Submission { token, id, envelope, body, items } = submission;
        self.counters.received += 1;
        self.report(DeliveryEvent::Received(Received {
            time: now,
            id,
            reference: envelope.reference.clone(),
            reverse_path: envelope.reverse_path.clone(),
            size: envelope.size,
            recipients: envelope.recipient_count,
            tags: envelope.tags.clone(),
        }));
        self.commands.push_back(Command::Answer { token, answer: Answer::Submitted(Ok(id)) });
        for (SubmittedItem { lane: key, due, leased }, (item_id, lease)) in items.into_iter().zip(keys) {
            if leased.is_some() {
                self.give_up_reservation(key);
            }
            let taken = lease.zip(leased);
            let Some(state) = self.lanes.get_mut(key) else { continue };
            state.work.pending = state.work.pending.saturating_sub(1);
            if taken.is_none() {
                state.put_back(head_of(&envelope, due));
            }
            if let Some((lease, recipients)) = taken {
                let lane = state.key.clone();
                let item = Item { id: item_id, lease, lane, due, envelope: envelope.clone(), recipients };
                let keep = self.window.held_octets() + body.len() <= self.bounds.held_octets;
                self.take_in(now, key, item, keep.then(|| body.clone()));
            }
            self.wake_for_new_mail(now, key, due);
            self.review_lane(now, key);
        }
    }

    /// A submission that was not stored gives back what it was promised.
    pub(super) fn abandon(&mut self, now: Timestamp, submission: &Submission) {
        for item in &submission.items {
            if let Some(state) = self.lanes.get_mut(item.lane) {
                state.work.pending = state.work.pending.saturating_sub(1);
            }
            if item.leased.is_some() {
                self.give_up_reservation(item.lane);
            }
            self.review_lane(now, item.lane);
        }
    }

    fn give_up_reservation(&mut self, lane: LaneKey) {
        self.window.reserved = self.window.reserved.saturating_sub(1);
        if let Some(lane) = self.lanes.get_mut(lane)
            && let Some(destination) = self.destinations.get_mut(lane.destination)
        {
            lane.work.claimed = lane.work.claimed.saturating_sub(1);
            destination.work.claimed = destination.work.claimed.saturating_sub(1);
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

    /// When items of this lane's queue expire, by the queue's setting.
    pub(super) fn bounce_after(&self, lane: &LaneState) -> Duration {
        let part = if Fault::ExpiredTooEarly.is_there() { 4 } else { 1 };
        self.queues.get(lane.queue).map_or(Duration::MAX, |queue| queue.settings.bounce_after / part)
    }

    pub(super) fn expiry_of(&self, lane: &LaneState, envelope: &Envelope) -> Timestamp {
        envelope.expires_at.unwrap_or_else(|| envelope.age_from + self.bounce_after(lane))
    }

    /// When an item ends unless it is delivered: expired, or since its domain is missing.
    fn deadline_of(&self, lane: &LaneState, envelope: &Envelope) -> Timestamp {
        let expiry = self.expiry_of(lane, envelope);
        let missing = self.missing_after(lane.destination).map(|after| envelope.age_from + after);
        missing.map_or(expiry, |missing| missing.min(expiry))
    }

    /// The queue's own limits decide anew when what is in the window ends.
    pub(super) fn set_deadlines(&mut self, key: LaneKey) {
        let Some(lane) = self.lanes.get(key) else { return };
        let mut deadlines = FewSet::default();
        for &(old, id) in &lane.work.deadlines {
            let deadline =
                self.window.get(id).map_or(old, |item| self.deadline_of(lane, &item.item.envelope));
            deadlines.insert((deadline, id));
        }
        for &(deadline, id) in &deadlines {
            if let Some(item) = self.window.get_mut(id) {
                item.deadline = deadline;
            }
        }
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.work.deadlines = deadlines;
        }
    }

    /// The deadline of an item that waits in the window has come.
    pub(super) fn overdue(&mut self, now: Timestamp, id: ItemId) {
        let Some(item) = self.window.get(id) else { return };
        let Some(lane) = self.lanes.get(item.lane) else { return };
        let key = lane.destination;
        if self.expiry_of(lane, &item.item.envelope) <= now {
            self.expire(now, id);
        } else {
            self.bounce_missing(now, key, id);
        }
    }

    /// Puts a leased item where it belongs: out, if it is too old or cancelled; in the lane, if it may be tried.
    pub(super) fn take_in(&mut self, now: Timestamp, key: LaneKey, item: Item, body: Option<bytes::Bytes>) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.work.claimed += 1;
        let Some(lane) = self.lanes.get(key) else { return };
        let destination_key = lane.destination;
        let envelope = &item.envelope;
        let deadline = self.deadline_of(lane, envelope);
        let id = item.id;
        let cancelled = self.cancels.is_cancelled(envelope.id);
        let message = envelope.id;
        let due = item.due;
        let window_item = WindowItem { body, deadline, ..WindowItem::new(item, key) };
        let fresh = window_item.is_fresh();
        let purge = self.purge_of(&window_item);
        self.window.insert(window_item);
        let held = self.is_held(now, destination_key);
        let Some(destination) = self.destinations.get_mut(destination_key) else { return };
        destination.work.claimed += 1;
        if destination.work.doubts.suspected.contains(&message)
            && let Some(item) = self.window.get_mut(id)
        {
            item.suspect = true;
        }
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.work.deadlines.insert((deadline, id));
        if cancelled {
            self.cancel_item(now, id);
        } else if let Some(purge) = purge {
            self.end_item(now, purge, id);
        } else if deadline <= now {
            self.overdue(now, id);
        } else if due != PAUSED && self.is_paused(id) {
            self.put_back(now, id, Some(PAUSED));
        } else if due != HELD_BY_FUSE && self.hold_if_fused(now, destination_key, id) {
            // DNS would bounce it.
        } else if due > now || held || self.shutting_down {
            self.put_back(now, id, None);
        } else {
            self.make_ready(id, fresh, false);
        }
    }

    /// Its message is paused by itself.
    pub(super) fn is_paused(&self, id: ItemId) -> bool {
        self.window.get(id).is_some_and(|item| self.pauses.of_message(&item.item.envelope).is_some())
    }

    /// The item may be tried: at the back of its lane, or at its front.
    pub(super) fn make_ready(&mut self, id: ItemId, fresh: bool, front: bool) {
        if let Some(destination) = self.stand_in_line(id, fresh, front) {
            self.mark(destination);
        }
    }

    pub(super) fn stand_in_line(&mut self, id: ItemId, fresh: bool, front: bool) -> Option<DestinationKey> {
        let item = self.window.get_mut(id)?;
        if Fault::ForgottenForDays.is_there() {
            let mut recipients = item.item.recipients.iter();
            if recipients.any(|recipient| recipient.address.as_str().starts_with("forgotten")) {
                return None;
            }
        }
        let key = item.lane;
        let lane = self.lanes.get_mut(key)?;
        let destination_key = lane.destination;
        let destination = self.destinations.get_mut(destination_key)?;
        item.ready = true;
        destination.work.ready += 1;
        if item.stands_apart() {
            destination.work.doubts.suspects.push_back(id);
            return Some(destination_key);
        }
        let list = if fresh { &mut lane.work.fresh } else { &mut lane.work.again };
        if front {
            list.push_front(id)
        } else {
            list.push_back(id)
        }
        if !lane.work.in_ring {
            lane.work.in_ring = true;
            destination.work.ring.push(lane.key.priority, key, lane.ring_stamp);
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
        if let Some(purge) = self.window.get(id).and_then(|item| self.purge_of(item)) {
            self.end_item(now, purge, id);
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
        lane.work.pending += 1;
        lane.work.claimed = lane.work.claimed.saturating_sub(1);
        lane.work.deadlines.remove(&(item.deadline, id));
        if item.busy {
            // It was pending already.
            lane.work.pending -= 1;
        }
        if item.ready {
            lane.forget(id);
        }
        if let Some(destination) = self.destinations.get_mut(lane.destination) {
            destination.work.claimed = destination.work.claimed.saturating_sub(1);
            destination.work.ready -= usize::from(item.ready);
            if item.ready && item.stands_apart() {
                destination.work.doubts.change(|doubts| doubts.suspects.retain(|&other| other != id));
            }
        }
        Some(item)
    }

    /// Sees to a lane after it changed: what it waits for next, whether it is hungry, whether it is done.
    pub(super) fn review_lane(&mut self, now: Timestamp, key: LaneKey) {
        let Some(lane) = self.lanes.get(key) else { return };
        let destination_key = lane.destination;
        if lane.is_done() {
            self.remove_lane(now, key);
            self.mark(destination_key);
            return;
        }
        if lane.purge.is_some() {
            self.purge_on(now, key);
        }
        let Some(lane) = self.lanes.get(key) else { return };
        let work = &*lane.work;
        let claiming = work.claiming.is_some();
        // While it is about to be claimed, or a claim is under way, that decides.
        let expiry = if work.expiring || claiming {
            None
        } else {
            let oldest = lane.head.oldest.map(|oldest| oldest + self.bounce_after(lane));
            let asked = self.asks_from(now, lane);
            earliest(earliest(oldest, lane.head.first_expiry), asked)
        };
        let window_expiry = work.deadlines.first().map(|&(deadline, _)| deadline);
        let due = lane.head.next_due;
        let becomes_hungry = due.is_some_and(|due| due <= now) && !work.hungry && !claiming;
        let later_due = due.filter(|&due| due > now);
        let next = earliest(earliest(expiry, window_expiry), later_due);
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if becomes_hungry {
            lane.work.hungry = true;
        }
        lane.work.tidy();
        self.timers.arm(&mut lane.timer, next, TimerOwner::Lane(key));
        if becomes_hungry {
            if let Some(destination) = self.destinations.get_mut(destination_key) {
                destination.work.hungry.push_back(key);
            }
            self.mark(destination_key);
        }
    }

    /// When DNS is to be asked about the lane's domain since its mail is about to end: the domain is missing, or its policy
    /// could not be kept. What it was asked about is seen to when it answers.
    pub(super) fn asks_from(&self, now: Timestamp, lane: &LaneState) -> Option<Timestamp> {
        let destination = self.destinations.get(lane.destination)?;
        let later = |at: &Timestamp| *at > now || !destination.is_asking();
        let policy = self.policy_from(lane, destination).filter(later);
        if destination.missing.is_none() {
            return policy;
        }
        let missing = self.missing_from(lane).filter(later);
        let missing = missing.map(|at| at.max(self.fresh_from(lane.destination).unwrap_or(at)));
        earliest(missing, policy)
    }

    /// When the oldest of a lane's stored mail is as old as its domain may be missing.
    fn missing_from(&self, lane: &LaneState) -> Option<Timestamp> {
        let after = self.missing_after(lane.destination)?;
        let oldest = earliest(lane.head.oldest, lane.head.oldest_with_expiry)?;
        Some(oldest + after)
    }

    /// Something of the lane is due or too old.
    pub(super) fn on_lane_timer(&mut self, now: Timestamp, key: LaneKey) {
        let mut ended = 0;
        while let Some(&(deadline, id)) = self.lanes.get(key).and_then(|lane| lane.work.deadlines.first())
            && deadline <= now
            && ended < EXPIRIES_AT_A_TIME
        {
            self.overdue(now, id);
            ended += 1;
        }
        self.seek_policy_if_due(now, key);
        let Some(lane) = self.lanes.get(key) else { return };
        let bounce_after = self.bounce_after(lane);
        let destination_key = lane.destination;
        let expired = lane.head.oldest.is_some_and(|oldest| oldest + bounce_after <= now)
            || lane.head.first_expiry.is_some_and(|expiry| expiry <= now);
        let missing = self.missing_from(lane).is_some_and(|at| at <= now);
        let confirmed = self.destinations.get(destination_key).is_some_and(|d| d.is_confirmed_missing(now));
        if missing && !confirmed && self.fresh_from(destination_key).is_none_or(|from| from <= now) {
            self.ask_afresh(destination_key);
        }
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if (expired || missing && confirmed) && !lane.work.expiring && lane.work.claiming.is_none() {
            lane.work.expiring = true;
            if let Some(destination) = self.destinations.get_mut(destination_key) {
                destination.work.expiring.push_back(key);
            }
            self.mark(destination_key);
        }
        self.review_lane(now, key);
    }
}

/// Fresh recipients by their domains, each domain's in order.
fn by_domain(
    addresses: Vec<Address>,
    mut dsn: HashMap<Address, RecipientDsn>,
) -> SmallVec<[(Domain, Vec<Recipient>); 1]> {
    let fresh = |(index, address)| {
        let dsn = if dsn.is_empty() { None } else { dsn.remove(&address).map(Box::new) };
        Recipient { index, address, attempts: 0, last: None, dsn }
    };
    let recipients: Vec<Recipient> = (0..).zip(addresses).map(fresh).collect();
    let Some(first) = recipients.first().map(|first| first.address.domain().clone()) else {
        return SmallVec::new();
    };
    // Most messages have one.
    if recipients.iter().all(|recipient| *recipient.address.domain() == first) {
        return smallvec![(first, recipients)];
    }
    let mut by_domain: BTreeMap<Domain, Vec<Recipient>> = BTreeMap::new();
    for recipient in recipients {
        by_domain.entry(recipient.address.domain().clone()).or_default().push(recipient);
    }
    by_domain.into_iter().collect()
}

/// What an item adds to its lane's head when it lies in the store.
pub(super) fn head_of(envelope: &Envelope, due: Timestamp) -> Head {
    let age = Some(envelope.age_from);
    let (oldest, oldest_with_expiry) = if envelope.expires_at.is_none() { (age, None) } else { (None, age) };
    Head { next_due: Some(due), oldest, oldest_with_expiry, first_expiry: envelope.expires_at }
}
