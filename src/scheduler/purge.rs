//! Ending mail by the lane: all that a lane holds up to an age, whenever it is due.
//!
//! A purge marks lanes. What is in the window of a marked lane ends at once, what is in the store is claimed by age
//! and ends as it comes, and what is in a transaction ends when that does. Mail that is held back by `hold_until` has
//! no age yet: the lane is gone over for it. A lane's purge is over when nothing so old is left of it.

use super::command::{Answer, CancelReport, Command, Token};
use super::outcome::Settlement;
use super::sweep::{Scope, SweepAction};
use super::window::WindowItem;
use super::writes::Effect;
use super::{DestinationKey, LaneKey, QueueKey, Scheduler};
use crate::clock::Timestamp;
use crate::event::Diagnosis;
use crate::storage::{Filter, Item, ItemId, Recipient, StorageError};

/// Items that one call ends at most of one lane; the rest follows.
const AT_A_TIME: usize = 256;

/// Names a purge under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PurgeId(u64);

/// A lane's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LanePurge {
    id: PurgeId,
    /// Nothing was left. Should something so old come back into the store, it ends too.
    finished: bool,
}

/// How mail ends.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// As cancelled.
    Cancelled,
    /// As bounced, with this.
    Bounced(Box<Diagnosis>),
    /// The same by a reply rule: counts for the queue's fuse.
    BouncedByRule(Box<Diagnosis>),
}

pub(super) struct Purge {
    /// What was submitted until then ends.
    before: Timestamp,
    /// Of any lane, what has this tag.
    tag: Option<(String, String)>,
    ending: Ending,
    /// Lanes that carry its mark.
    lanes: usize,
    /// Of these, the ones of which something may be left, and items in transactions.
    unfinished: usize,
    report: CancelReport,
    /// The host waits for the report.
    token: Option<Token>,
}

impl Purge {
    /// By its tag.
    fn covers(&self, item: &WindowItem) -> bool {
        let envelope = &item.item.envelope;
        let tagged = self.tag.as_ref().is_some_and(|(name, value)| envelope.tags.get(name) == Some(value));
        tagged && envelope.submitted_at <= self.before
    }
}

impl Scheduler {
    /// A reply rule: every message in the queue bounces with this.
    pub(super) fn bounce_queue(&mut self, now: Timestamp, key: DestinationKey, diagnosis: &Diagnosis) {
        let Some(queue) = self.destinations.get(key).and_then(|d| self.queues.get(d.queue)) else { return };
        if queue.mode.fuse_blown {
            return;
        }
        let lanes: Vec<LaneKey> = queue
            .destinations
            .iter()
            .filter_map(|&destination| self.destinations.get(destination))
            .flat_map(|destination| destination.lanes.iter().copied())
            .collect();
        self.purge(now, lanes, Ending::BouncedByRule(Box::new(diagnosis.clone())), None);
    }

    /// The queue's fuse has blown: what a rule was about to bounce of it stays.
    pub(super) fn stop_bouncing(&mut self, now: Timestamp, key: QueueKey) {
        let Some(queue) = self.queues.get(key) else { return };
        let lanes: Vec<LaneKey> = queue
            .destinations
            .iter()
            .filter_map(|&destination| self.destinations.get(destination))
            .flat_map(|destination| destination.lanes.iter().copied())
            .collect();
        for key in lanes {
            let Some(lane) = self.lanes.get_mut(key) else { continue };
            let bounces = |purge: &Purge| matches!(purge.ending, Ending::BouncedByRule(_));
            if lane.purge.and_then(|mark| self.purges.get(&mark.id)).is_some_and(bounces) {
                let mark = lane.purge.take();
                self.unmark_lane(now, mark);
            }
        }
    }

    /// Ends all mail of these lanes. With a token the host is told once it is durable.
    pub(super) fn purge(
        &mut self,
        now: Timestamp,
        lanes: Vec<LaneKey>,
        ending: Ending,
        token: Option<Token>,
    ) {
        let id = PurgeId(self.next_purge);
        self.next_purge += 1;
        let report = CancelReport::default();
        // One more than there are: what is held back is gone over at the end.
        let unfinished = lanes.len() + 1;
        let held =
            Scope::of(lanes.iter().filter_map(|&lane| Some(Filter::Lane(self.lanes.get(lane)?.key.clone()))));
        let purge = Purge { before: now, tag: None, ending, lanes: lanes.len(), unfinished, report, token };
        self.purges.insert(id, purge);
        for &key in &lanes {
            let Some(lane) = self.lanes.get_mut(key) else { continue };
            let earlier = lane.purge.replace(LanePurge { id, finished: false });
            self.unmark_lane(now, earlier);
        }
        self.mark_busy(id);
        for key in lanes {
            self.purge_on(now, key);
        }
        // Tokens of the host count up from the other end.
        self.sweep(now, held, SweepAction::Purge(id), Token(u64::MAX - id.0));
    }

    /// Whether a purge ends this item, found in the store.
    pub(super) fn purges_stored(&self, id: PurgeId, item: &Item) -> bool {
        let Some(purge) = self.purges.get(&id) else { return false };
        let lane = self.lanes.find_ref(&item.lane);
        let marked = lane.and_then(|lane| lane.purge).is_some_and(|mark| mark.id == id);
        (marked || purge.tag.is_some()) && item.envelope.submitted_at <= purge.before
    }

    /// Items in transactions end when these do.
    fn mark_busy(&mut self, id: PurgeId) {
        let lanes = &self.lanes;
        let Some(purge) = self.purges.get_mut(&id) else { return };
        for item in self.window.all_mut().filter(|item| item.busy) {
            let marked = lanes.get(item.lane).and_then(|lane| lane.purge).is_some_and(|mark| mark.id == id);
            if marked && item.item.envelope.submitted_at <= purge.before {
                item.purge = Some(id);
                purge.unfinished += 1;
                let recipients = u32::try_from(item.item.recipients.len()).unwrap_or(u32::MAX);
                purge.report.in_flight = purge.report.in_flight.saturating_add(recipients);
            }
        }
    }

    /// Goes on with a lane's purge, or ends it.
    pub(super) fn purge_on(&mut self, now: Timestamp, key: LaneKey) {
        if self.purging {
            return;
        }
        let Some(lane) = self.lanes.get(key) else { return };
        let Some((mark, before)) =
            lane.purge.and_then(|mark| Some((mark, self.purges.get(&mark.id)?.before)))
        else {
            return;
        };
        let id = mark.id;
        let waiting: Vec<ItemId> = lane
            .work
            .deadlines
            .iter()
            .map(|&(_, id)| id)
            .filter(|&id| self.window.get(id).is_some_and(|item| item.item.envelope.submitted_at <= before))
            .take(AT_A_TIME)
            .collect();
        self.purging = true;
        for item in waiting {
            if self.lanes.get(key).and_then(|lane| lane.purge).is_some_and(|mark| mark.id == id) {
                self.end_item(now, id, item);
            }
        }
        self.purging = false;
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if lane.purge.is_none_or(|now| now.id != id) {
            // It was stopped meanwhile.
            return;
        }
        let stored = [lane.head.oldest, lane.head.oldest_with_expiry];
        let is_stored = stored.into_iter().flatten().any(|oldest| oldest <= before);
        if is_stored && !lane.work.expiring && lane.work.claiming.is_none() {
            lane.work.expiring = true;
            let destination_key = lane.destination;
            if let Some(destination) = self.destinations.get_mut(destination_key) {
                destination.work.expiring.push_back(key);
            }
            self.mark(destination_key);
        } else if !is_stored
            && !mark.finished
            && lane.work.claiming.is_none()
            && !lane.work.deadlines.iter().any(|&(_, id)| {
                self.window.get(id).is_some_and(|item| item.item.envelope.submitted_at <= before)
            })
        {
            lane.purge = Some(LanePurge { id, finished: true });
            self.purged_one(now, id);
        }
    }

    /// Up to which age a lane's mail is to be claimed to end it.
    pub(super) fn purge_before(&self, key: LaneKey) -> Option<Timestamp> {
        let mark = self.lanes.get(key)?.purge?;
        self.purges.get(&mark.id).map(|purge| purge.before)
    }

    /// The purge of an item's lane, if it covers the item.
    pub(super) fn purge_of(&self, item: &WindowItem) -> Option<PurgeId> {
        let by_tag = self.tag_purges.iter().find(|id| self.purges.get(id).is_some_and(|p| p.covers(item)));
        if by_tag.is_some() {
            return by_tag.copied();
        }
        let id = self.lanes.get(item.lane)?.purge?.id;
        let covers = self.purges.get(&id)?.before >= item.item.envelope.submitted_at;
        covers.then_some(id)
    }

    /// What a transaction left over of an item that is being purged.
    pub(super) fn purge_rest(
        &mut self,
        now: Timestamp,
        item: &WindowItem,
        id: PurgeId,
        left: &mut Settlement,
    ) {
        let Some(ending) = self.purges.get(&id).map(|purge| purge.ending.clone()) else { return };
        let released = std::mem::take(&mut left.released).into_iter().map(|(_, recipient)| recipient);
        let rest: Vec<Recipient> = released.chain(std::mem::take(&mut left.staying)).collect();
        rest.iter().for_each(|recipient| self.end_recipient(now, item, recipient, &ending, left));
        if let Some(purge) = self.purges.get_mut(&id) {
            let ended = u32::try_from(rest.len()).unwrap_or(u32::MAX);
            purge.report.cancelled = purge.report.cancelled.saturating_add(ended);
        }
    }

    /// Ends all messages with a tag, wherever they lie.
    pub(super) fn cancel_tag(
        &mut self,
        now: Timestamp,
        token: Token,
        name: String,
        value: String,
        ending: Ending,
    ) {
        let id = PurgeId(self.next_purge);
        self.next_purge += 1;
        let tag = Some((name.clone(), value.clone()));
        let report = CancelReport::default();
        let mut purge =
            Purge { before: now, tag, ending, lanes: 0, unfinished: 1, report, token: Some(token) };
        let mut waiting = Vec::new();
        for item in self.window.all_mut() {
            if !purge.covers(item) {
                continue;
            }
            if item.busy {
                item.purge = Some(id);
                purge.unfinished += 1;
                let recipients = u32::try_from(item.item.recipients.len()).unwrap_or(u32::MAX);
                purge.report.in_flight = purge.report.in_flight.saturating_add(recipients);
            } else {
                waiting.push(item.item.id);
            }
        }
        waiting.sort_unstable();
        self.purges.insert(id, purge);
        self.tag_purges.push(id);
        waiting.into_iter().for_each(|item| self.end_item(now, id, item));
        self.sweep(now, Scope::one(Filter::Tag { name, value }), SweepAction::Purge(id), token);
    }

    /// A stored item of a sweep.
    pub(super) fn end_stored(&mut self, now: Timestamp, id: PurgeId, item: Item) {
        let Some(purge) = self.purges.get_mut(&id) else { return };
        let ended = u32::try_from(item.recipients.len()).unwrap_or(u32::MAX);
        purge.report.cancelled = purge.report.cancelled.saturating_add(ended);
        let ending = purge.ending.clone();
        self.finish_stored(now, item, |scheduler, item, recipient, left| {
            scheduler.end_recipient(now, item, recipient, &ending, left);
        });
    }

    /// The store was gone over.
    pub(super) fn end_purge_sweep(&mut self, now: Timestamp, id: PurgeId) {
        self.tag_purges.retain(|&other| other != id);
        self.purged_one(now, id);
    }

    pub(super) fn fail_purge(&mut self, id: PurgeId, error: &StorageError) {
        if let Some(token) = self.purges.get_mut(&id).and_then(|purge| purge.token.take()) {
            let answer = Answer::Cancelled(Err(error.clone()));
            self.commands.push_back(Command::Answer { token, answer });
        }
    }

    /// Ends an item that waits in the window.
    pub(super) fn end_item(&mut self, now: Timestamp, purge: PurgeId, id: ItemId) {
        let ended = self.window.get(id).map_or(0, |item| item.item.recipients.len());
        let Some(purge) = self.purges.get_mut(&purge) else { return };
        // Counted first: with the last item the purge may end.
        let ended = u32::try_from(ended).unwrap_or(u32::MAX);
        purge.report.cancelled = purge.report.cancelled.saturating_add(ended);
        let ending = purge.ending.clone();
        self.finish_item(now, id, |scheduler, item, recipient, left| {
            scheduler.end_recipient(now, item, recipient, &ending, left);
        });
    }

    pub(super) fn end_recipient(
        &mut self,
        now: Timestamp,
        item: &WindowItem,
        recipient: &Recipient,
        ending: &Ending,
        left: &mut Settlement,
    ) {
        match ending {
            Ending::Cancelled => self.cancel_recipient(now, item, recipient, &mut left.settled),
            Ending::Bounced(diagnosis) => {
                self.bounce(now, item, recipient, None, (**diagnosis).clone(), left);
            }
            Ending::BouncedByRule(diagnosis) => {
                let key = self.lanes.get(item.lane).map(|lane| lane.destination);
                self.bounce_or_hold_recipient(now, key, item, recipient, diagnosis, left);
            }
        }
    }

    /// A lane, or an item that was in a transaction, has nothing left for the purge.
    pub(super) fn purged_one(&mut self, now: Timestamp, id: PurgeId) {
        let Some(purge) = self.purges.get_mut(&id) else { return };
        purge.unfinished = purge.unfinished.saturating_sub(1);
        if purge.unfinished > 0 {
            return;
        }
        if let Some(token) = purge.token.take() {
            let report = purge.report;
            self.after_writes(now, Effect::Answer(token, Answer::Cancelled(Ok(report))));
        }
        self.forget_purge(id);
    }

    /// A lane is gone, or carries another mark.
    pub(super) fn unmark_lane(&mut self, now: Timestamp, mark: Option<LanePurge>) {
        let Some(LanePurge { id, finished }) = mark else { return };
        if let Some(purge) = self.purges.get_mut(&id) {
            purge.lanes = purge.lanes.saturating_sub(1);
        }
        if finished {
            self.forget_purge(id);
        } else {
            self.purged_one(now, id);
        }
    }

    fn forget_purge(&mut self, id: PurgeId) {
        if self.purges.get(&id).is_some_and(|purge| purge.lanes == 0 && purge.unfinished == 0) {
            self.purges.remove(&id);
        }
    }

    /// The store refuses for good: nobody waits for what can not be written.
    pub(super) fn fail_purges(&mut self, error: &crate::storage::StorageError) {
        for purge in self.purges.values_mut() {
            if let Some(token) = purge.token.take() {
                let answer = Answer::Cancelled(Err(error.clone()));
                self.commands.push_back(Command::Answer { token, answer });
            }
        }
    }
}
