//! What is to be written: submissions and changes, grouped into one insert and one commit at a time.
//!
//! While one is under way the next gathers, so that a group is as large as the store is slow.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::command::{Answer, Command, SubmitFailure, Token};
use super::fault::Fault;
use super::lane::Head;
use super::told::Told;
use super::window::RECIPIENT_OCTETS;
use super::{Bounds, LaneKey, Scheduler, TimerOwner};
use crate::clock::Timestamp;
use crate::event::{DeliveryEvent, StorageOperation, StorageTrouble};
use crate::message::MessageId;
use crate::outbox::Final;
use crate::storage::{
    Change, ChangeOutcome, Envelope, Item, ItemId, NewMessage, Recipient, Room, StorageError,
    StorageErrorKind,
};

/// How long to wait after a store refused for the moment.
const PAUSE: Duration = Duration::from_secs(1);
/// A longer list of changes is not kept for the next ones.
const MOST_SPARE: usize = 4_096;

#[derive(Default)]
pub(super) struct Writes {
    submissions: Vec<Submission>,
    /// What of each of these is to be stored, in the same order.
    messages: Vec<NewMessage>,
    submission_octets: usize,
    pub(super) inserting: Vec<Submission>,
    changes: Vec<Change>,
    effects: Vec<Effect>,
    /// Lists of an earlier commit, empty: the next gathers in them.
    spare: (Vec<Change>, Vec<Effect>),
    /// What final events are encoded in, one after the other.
    scratch: Vec<u8>,
    /// Items among all changes not yet durable.
    unsettled_items: usize,
    /// The commit under way; its changes are kept until it is durable.
    committing: Option<Group>,
    /// What the store refused, the next to be committed first: whole groups, or parts of one in their order.
    refused: VecDeque<Group>,
    told: Told<String>,
    /// Why new mail was refused. Not in which words: these may name another file each time.
    told_refused: Told<StorageErrorKind>,
    /// The store refused for the moment: nothing before the timer.
    paused: bool,
    /// The store refuses for good.
    stopped: bool,
}

/// Changes that are committed together, and what follows. Who commits them has the same list: it is not copied here.
type Group = (Arc<Vec<Change>>, Vec<Effect>);

/// What is to be known of a message on its way into the store once it is there.
pub(super) struct Submission {
    pub(super) token: Token,
    pub(super) id: MessageId,
    pub(super) envelope: Arc<Envelope>,
    pub(super) body: Bytes,
    /// Most messages have one.
    pub(super) items: SmallVec<[SubmittedItem; 1]>,
}

/// An item on its way into the store.
pub(super) struct SubmittedItem {
    pub(super) lane: LaneKey,
    pub(super) due: Timestamp,
    /// Who it is for, if it is to be taken into the window as soon as it is stored.
    pub(super) leased: Option<Vec<Recipient>>,
}

/// What follows once a change is durable.
#[derive(Debug)]
pub(super) enum Effect {
    /// A lane's item was put back, or is gone.
    Settled { lane: LaneKey, put_back: Option<Head> },
    /// The observers are told.
    Report(Box<DeliveryEvent>),
    /// The host gets its answer.
    Answer(Token, Answer),
    /// A message's items are listed, to cancel them.
    List(Token),
    /// A sweep goes on.
    Sweep(Token),
}

impl Writes {
    pub(super) fn takes_submissions(&self, bounds: &Bounds) -> bool {
        self.submissions.len() < bounds.submissions && self.submission_octets < bounds.submission_octets
    }

    pub(super) fn submit(&mut self, submission: Submission, message: NewMessage) {
        self.submission_octets = self.submission_octets.saturating_add(octets_of(&message));
        self.submissions.push(submission);
        self.messages.push(message);
    }

    pub(super) fn change(&mut self, change: Change) {
        self.unsettled_items += usize::from(is_about_item(&change));
        self.changes.push(change);
    }

    /// Writes a final event of an item to the outbox.
    pub(super) fn report(&mut self, item: &Item, event: &Final<'_>) {
        if let Some(change) = event.entry((item.id, item.lease), &mut self.scratch) {
            self.change(change);
        }
    }

    pub(super) fn then(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Changes not yet durable.
    pub(super) fn unsettled(&self) -> usize {
        let groups = self.committing.iter().chain(&self.refused);
        self.changes.len() + groups.map(|(changes, _)| changes.len()).sum::<usize>()
    }

    /// Of these, items: what a crash now would have sent again.
    pub(super) fn unsettled_items(&self) -> usize {
        self.unsettled_items
    }

    /// Items that changes not yet durable are about.
    pub(super) fn items(&self) -> impl Iterator<Item = ItemId> {
        let groups = self.committing.iter().chain(&self.refused);
        let changes = groups.flat_map(|(changes, _)| &**changes).chain(&self.changes);
        changes.filter_map(|change| match change {
            Change::Update { item, .. } | Change::Unclaim { item, .. } => Some(*item),
            _ => None,
        })
    }

    /// Messages that wait to be stored, those being stored not counted.
    #[cfg(feature = "testing")]
    pub(super) fn waiting_submissions(&self) -> usize {
        self.submissions.len()
    }

    /// Changes became durable, or are given up.
    fn settled(&mut self, changes: &[Change]) {
        let items = changes.iter().filter(|change| is_about_item(change)).count();
        self.unsettled_items = self.unsettled_items.saturating_sub(items);
    }

    /// What follows once all changes made so far are durable; given back if they are.
    fn after_all(&mut self, effect: Effect) -> Option<Effect> {
        if !self.changes.is_empty() || !self.effects.is_empty() {
            self.effects.push(effect);
        } else if let Some((_, effects)) = self.refused.back_mut().or(self.committing.as_mut()) {
            effects.push(effect);
        } else {
            return Some(effect);
        }
        None
    }

    /// A commit is under way.
    pub(super) fn is_committing(&self) -> bool {
        self.committing.is_some()
    }

    /// The store refused a moment ago.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Writes again, whatever the store said a moment ago.
    pub(super) fn resume(&mut self) {
        self.paused = false;
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Places in the window promised to messages being stored, by lane.
    #[cfg(test)]
    pub(super) fn promised(&self) -> impl Iterator<Item = (LaneKey, usize)> {
        let submitted = self.submissions.iter().chain(&self.inserting);
        let items = submitted.flat_map(|submission| &submission.items);
        items.map(|item| (item.lane, usize::from(item.leased.is_some())))
    }

    /// What each lane waits for to become durable.
    #[cfg(test)]
    pub(super) fn pending(&self) -> std::collections::BTreeMap<LaneKey, usize> {
        let mut pending = std::collections::BTreeMap::new();
        for item in self.submissions.iter().chain(&self.inserting).flat_map(|submission| &submission.items) {
            *pending.entry(item.lane).or_default() += 1;
        }
        let committing = self.committing.iter().chain(&self.refused).flat_map(|(_, effects)| effects);
        for effect in self.effects.iter().chain(committing) {
            if let Effect::Settled { lane, .. } = effect {
                *pending.entry(*lane).or_default() += 1;
            }
        }
        pending
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.stopped
            || (self.submissions.is_empty()
                && self.inserting.is_empty()
                && self.changes.is_empty()
                && self.effects.is_empty()
                && self.committing.is_none()
                && self.refused.is_empty())
    }
}

impl Scheduler {
    /// Does something once all changes made so far are durable.
    pub(super) fn after_writes(&mut self, now: Timestamp, effect: Effect) {
        if let Some(effect) = self.writes.after_all(effect) {
            self.take_effect(now, effect);
        }
    }

    /// Starts an insert and a commit if there is something to write and none is under way.
    pub(super) fn flush_writes(&mut self, now: Timestamp) {
        let writes = &mut self.writes;
        if writes.stopped {
            if !Fault::RefusedStayInLine.is_there() {
                writes.submission_octets = 0;
            }
            writes.messages.clear();
            for submission in std::mem::take(&mut writes.submissions) {
                self.refuse(now, submission, &poisoned());
            }
            return;
        }
        if writes.paused {
            return;
        }
        if writes.inserting.is_empty() && !writes.submissions.is_empty() {
            std::mem::swap(&mut writes.inserting, &mut writes.submissions);
            writes.submission_octets = 0;
            self.commands.push_back(Command::Insert(std::mem::take(&mut writes.messages)));
        }
        if writes.committing.is_none()
            && let Some(group) = writes.refused.pop_front()
        {
            self.commands.push_back(Command::Commit(group.0.clone()));
            writes.committing = Some(group);
        }
        if writes.committing.is_none() && !(writes.changes.is_empty() && writes.effects.is_empty()) {
            let (changes, effects) = std::mem::take(&mut writes.spare);
            let changes = std::mem::replace(&mut writes.changes, changes);
            let changes = Arc::new(changes);
            self.commands.push_back(Command::Commit(changes.clone()));
            writes.committing = Some((changes, std::mem::replace(&mut writes.effects, effects)));
        }
    }

    pub(super) fn on_commit_done(
        &mut self,
        now: Timestamp,
        result: Result<Vec<ChangeOutcome>, StorageError>,
    ) {
        let Some((changes, mut effects)) = self.writes.committing.take() else { return };
        match result {
            Ok(outcomes) => {
                let stale = outcomes.iter().filter(|outcome| **outcome == ChangeOutcome::Stale).count();
                if stale > 0 {
                    tracing::warn!(stale, "changes came after their lease was lost and were not applied");
                }
                self.writes.settled(&changes);
                effects.drain(..).for_each(|effect| self.take_effect(now, effect));
                let mut changes = Arc::try_unwrap(changes).unwrap_or_default();
                changes.clear();
                if changes.capacity().max(effects.capacity()) <= MOST_SPARE {
                    self.writes.spare = (changes, effects);
                }
            }
            Err(error) if error.is_temporary() => {
                // Nothing was applied. The same again, before what came meanwhile; of a full disk, in parts that may fit.
                let parts = match error.kind() {
                    StorageErrorKind::Full => divided((changes, effects)),
                    _ => Err((changes, effects)),
                };
                match parts {
                    Ok(parts) => {
                        parts.into_iter().rev().for_each(|part| self.writes.refused.push_front(part))
                    }
                    Err(whole) => self.writes.refused.push_front(whole),
                }
                self.storage_trouble(now, StorageOperation::Commit, &error);
            }
            // The halves by themselves, until that change is found. It is left out, and its item stays aside until the
            // store is opened anew.
            Err(error) if is_about_one_change(&error) => match divided((changes, effects)) {
                Ok(parts) => parts.into_iter().rev().for_each(|part| self.writes.refused.push_front(part)),
                Err((changes, effects)) => {
                    self.writes.settled(&changes);
                    self.tell_trouble(now, StorageOperation::Commit, error.to_string());
                    effects.into_iter().for_each(|effect| self.take_effect(now, effect));
                }
            },
            Err(error) => {
                // Unknown or refused for good: delivery stops, so that nothing is sent a second time for it.
                self.writes.changes.splice(0..0, Arc::unwrap_or_clone(changes));
                self.writes.effects.splice(0..0, effects);
                self.stop_writing(now, StorageOperation::Commit, &error);
            }
        }
    }

    fn take_effect(&mut self, now: Timestamp, effect: Effect) {
        match effect {
            Effect::Settled { lane, put_back } => {
                if let Some(state) = self.lanes.get_mut(lane) {
                    state.work.pending = state.work.pending.saturating_sub(1);
                    if let Some(head) = put_back {
                        state.put_back(head);
                    }
                }
                self.review_lane(now, lane);
            }
            Effect::Report(event) => self.commands.push_back(Command::Report(event)),
            Effect::Answer(token, answer) => self.commands.push_back(Command::Answer { token, answer }),
            Effect::List(token) => self.list_for_cancel(token),
            Effect::Sweep(token) => self.sweep_on(now, token),
        }
    }

    /// Pauses writing for a moment and says so.
    pub(super) fn storage_trouble(
        &mut self,
        now: Timestamp,
        operation: StorageOperation,
        error: &StorageError,
    ) {
        self.writes.paused = true;
        self.timers.arm(&mut self.storage_timer, Some(now + PAUSE), TimerOwner::Storage);
        self.tell_trouble(now, operation, error.to_string());
    }

    pub(super) fn on_storage_timer(&mut self) {
        self.writes.paused = false;
        self.retry_claims();
    }

    /// The store can not be trusted any more: no further transaction, no further write.
    pub(super) fn stop_writing(&mut self, now: Timestamp, operation: StorageOperation, error: &StorageError) {
        if !self.writes.stopped {
            self.writes.stopped = true;
            self.report_trouble(now, operation, error.to_string(), true);
        }
        for effect in std::mem::take(&mut self.writes.effects) {
            match effect {
                Effect::Answer(token, Answer::Cancelled(_)) => {
                    let answer = Answer::Cancelled(Err(error.clone()));
                    self.commands.push_back(Command::Answer { token, answer });
                }
                Effect::Answer(token, Answer::Done(_)) => {
                    let answer = Answer::Done(Err(error.clone()));
                    self.commands.push_back(Command::Answer { token, answer });
                }
                other => self.writes.effects.push(other),
            }
        }
        self.fail_cancels(error);
        self.fail_purges(error);
        self.fail_sweeps(now, error);
    }

    /// New mail was refused for the moment: whoever submitted it knows, whoever runs this should.
    pub(super) fn tell_refused(&mut self, now: Timestamp, error: &StorageError) {
        if self.writes.told_refused.is_due(now, error.kind()) {
            self.report_trouble(now, StorageOperation::Insert, error.to_string(), false);
        }
    }

    /// The same once a minute, however often it is met.
    pub(super) fn tell_trouble(&mut self, now: Timestamp, operation: StorageOperation, error: String) {
        if self.writes.told.is_due(now, error.clone()) {
            self.report_trouble(now, operation, error, false);
        }
    }

    pub(super) fn report_trouble(
        &mut self,
        now: Timestamp,
        operation: StorageOperation,
        error: String,
        stopped: bool,
    ) {
        tracing::warn!(%operation, error, stopped, "trouble with the store");
        let event = self.event_id(now);
        let trouble = StorageTrouble { event, time: now, operation, error, stopped };
        self.report(DeliveryEvent::StorageTrouble(trouble));
    }

    /// The store has more room, or less.
    pub(super) fn on_store_room(&mut self, now: Timestamp, room: Room) {
        let had = std::mem::replace(&mut self.store_room, room);
        match room {
            Room::Scarce if had == Room::Ample => {
                let scarce = "the store has little room left: what is next waits until all outcomes are stored and reported";
                self.tell_trouble(now, StorageOperation::Commit, scarce.to_owned());
            }
            Room::Exhausted => {
                let exhausted = "the store has no room left for outcomes: nothing is sent until it has";
                self.tell_trouble(now, StorageOperation::Commit, exhausted.to_owned());
            }
            Room::Ample | Room::Scarce => {}
        }
    }

    pub(super) fn refuse(&mut self, now: Timestamp, submission: Submission, error: &StorageError) {
        self.abandon(now, &submission);
        let answer = Answer::Submitted(Err(SubmitFailure::Storage(error.clone())));
        self.commands.push_back(Command::Answer { token: submission.token, answer });
    }
}

/// What a message takes while it waits, roughly.
fn octets_of(message: &NewMessage) -> usize {
    let recipients: usize = message.items.iter().map(|item| item.recipients.len()).sum();
    message.body.len().saturating_add(recipients.saturating_mul(RECIPIENT_OCTETS))
}

/// A group in two halves. `Err`: it is one thing, as it was.
fn divided((changes, effects): Group) -> Result<[Group; 2], Group> {
    // An item's reports stand before its update and stay with it.
    let is_end = |&end: &usize| !matches!(changes.get(end - 1), Some(Change::Report { .. }));
    let ends: Vec<usize> = (1..changes.len()).filter(is_end).collect();
    let Some(&middle) = ends.get(ends.len() / 2) else { return Err((changes, effects)) };
    let mut first = Arc::unwrap_or_clone(changes);
    let second = first.split_off(middle);
    Ok([(Arc::new(first), Vec::new()), (Arc::new(second), effects)])
}

fn is_about_item(change: &Change) -> bool {
    matches!(change, Change::Update { .. })
}

/// The store itself is sound: something in the request is not.
pub(super) fn is_about_one_change(error: &StorageError) -> bool {
    use StorageErrorKind::{Corrupt, Invalid, NotFound};
    matches!(error.kind(), Corrupt | Invalid | NotFound)
}

pub(super) fn poisoned() -> StorageError {
    StorageError::new(StorageErrorKind::Poisoned, "the store refuses since an earlier flush failed")
}
