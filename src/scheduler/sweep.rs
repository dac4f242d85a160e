//! Going over stored items page by page: to make them due, or to end what is held.

use std::collections::VecDeque;

use super::command::{Answer, Command, Token};
use super::intake::head_of;
use super::outcome::{HELD_BY_FUSE, Settlement};
use super::purge::PurgeId;
use super::window::WindowItem;
use super::writes::Effect;
use super::{ClaimId, Scheduler};
use crate::clock::Timestamp;
use crate::message::QueueName;
use crate::storage::{
    Change, Filter, Item, ItemId, ItemSummary, ListPosition, Recipient, Release, StorageError,
};

/// Items listed, and claimed, at a time.
pub(crate) const PAGE: usize = 256;

/// What is gone over.
pub(super) struct Scope {
    filters: VecDeque<Filter>,
    after: Option<ListPosition>,
    /// The queue whose fuse is as new once all is gone over.
    fuse_of: Option<QueueName>,
}

impl Scope {
    pub(super) fn one(filter: Filter) -> Self {
        Self::of([filter])
    }

    pub(super) fn of(filters: impl IntoIterator<Item = Filter>) -> Self {
        Self { filters: filters.into_iter().collect(), after: None, fuse_of: None }
    }

    pub(super) fn then_reset_fuse_of(self, queue: QueueName) -> Self {
        Self { fuse_of: Some(queue), ..self }
    }
}

/// What is done with items that wait in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SweepAction {
    /// They are due now; `only` those that were put off until then.
    Release { only: Option<Timestamp> },
    /// Those held by a blown fuse bounce, each recipient with what it met.
    BounceHeld,
    /// They end.
    Purge(PurgeId),
}

pub(super) struct Sweep {
    scope: Scope,
    action: SweepAction,
    began: Timestamp,
    /// Items it did something with.
    count: u64,
}

impl SweepAction {
    fn is_about(self, due: Timestamp, now: Timestamp) -> bool {
        match self {
            Self::Release { only: None } => due > now && due != HELD_BY_FUSE && due != super::outcome::PAUSED,
            Self::Release { only: Some(only) } => due == only,
            // Also what DNS would bounce at its age: which that is shows once it is leased.
            Self::BounceHeld => true,
            Self::Purge(_) => true,
        }
    }

    fn ends(self) -> bool {
        !matches!(self, Self::Release { .. })
    }
}

/// What a sweep made due and was tried since is due later again, where the sweep may meet it once more.
fn was_tried(recipients: &[Recipient], since: Timestamp, now: Timestamp) -> bool {
    recipients
        .iter()
        .filter_map(|recipient| recipient.last.as_ref())
        .any(|last| last.at > since && last.at <= now)
}

impl Scheduler {
    /// Begins a sweep once all that was decided is durable; the host is told at its end.
    pub(super) fn sweep(&mut self, now: Timestamp, scope: Scope, action: SweepAction, token: Token) {
        self.write_state();
        self.sweeps.insert(token, Sweep { scope, action, began: now, count: 0 });
        self.after_writes(now, Effect::Sweep(token));
    }

    /// The next page.
    pub(super) fn sweep_on(&mut self, now: Timestamp, token: Token) {
        let Some(sweep) = self.sweeps.get(&token) else { return };
        match sweep.scope.filters.front() {
            Some(filter) => {
                let (filter, after) = (filter.clone(), sweep.scope.after);
                self.commands.push_back(Command::Page { token, filter, after });
            }
            None => {
                let (count, action, fuse_of) = (sweep.count, sweep.action, sweep.scope.fuse_of.clone());
                self.sweeps.remove(&token);
                if let Some(queue) = fuse_of {
                    self.reset_fuse(now, &queue);
                    self.write_state();
                }
                if let SweepAction::Purge(id) = action {
                    return self.end_purge_sweep(now, id);
                }
                self.after_writes(now, Effect::Answer(token, Answer::Done(Ok(count))));
            }
        }
    }

    pub(super) fn on_page(
        &mut self,
        now: Timestamp,
        token: Token,
        result: Result<Vec<ItemSummary>, StorageError>,
    ) {
        let items = match result {
            Ok(items) => items,
            Err(error) => return self.sweep_failed(now, token, &error),
        };
        let Some(sweep) = self.sweeps.get_mut(&token) else { return };
        match items.last() {
            Some(last) => sweep.scope.after = Some(last.position()),
            None => {
                sweep.scope.filters.pop_front();
                sweep.scope.after = None;
            }
        }
        let (action, began) = (sweep.action, sweep.began);
        // What is leased is being worked on, and what of it is left comes back due later than now.
        let wanted: Vec<ItemId> = items
            .iter()
            .filter(|item| !item.leased && action.is_about(item.due, now))
            .filter(|item| action.ends() || !was_tried(&item.recipients, began, now))
            .map(|item| item.id)
            .collect();
        if wanted.is_empty() {
            self.sweep_on(now, token);
        } else {
            self.claim_to_sweep(token, wanted);
        }
    }

    /// Items of a sweep, leased.
    pub(super) fn on_swept(&mut self, now: Timestamp, token: Token, items: Vec<Item>) {
        let Some(action) = self.sweeps.get(&token).map(|sweep| sweep.action) else {
            for item in items {
                if !self.window.has_seen(item.id) {
                    self.swept.insert(item.id, ClaimId(self.next_claim));
                    self.swept_release(now, item, None);
                }
            }
            return;
        };
        let mut done = 0;
        for item in items {
            if self.window.has_seen(item.id) || self.cancels.has_ended(item.envelope.id, item.id) {
                continue;
            }
            self.swept.insert(item.id, ClaimId(self.next_claim));
            let is_about = match action {
                SweepAction::BounceHeld => self.bounces_held(now, &item),
                // What is held back stays so.
                SweepAction::Release { only } => {
                    action.is_about(item.due, now) && (only.is_some() || item.envelope.age_from <= now)
                }
                SweepAction::Purge(id) => self.purges_stored(id, &item),
            };
            if !is_about {
                self.swept_release(now, item, None);
                continue;
            }
            done += 1;
            match action {
                SweepAction::BounceHeld => self.bounce_held(now, item),
                SweepAction::Purge(id) => self.end_stored(now, id, item),
                SweepAction::Release { .. } => {
                    let due = item.envelope.age_from.max(now);
                    self.swept_release(now, item, Some(due));
                }
            }
        }
        if let Some(sweep) = self.sweeps.get_mut(&token) {
            sweep.count += done;
        }
        // The next page once these are written: what was released is not found again.
        self.after_writes(now, Effect::Sweep(token));
    }

    fn swept_release(&mut self, now: Timestamp, item: Item, due: Option<Timestamp>) {
        let lane = self.lane_for(&item.lane);
        let put_back = Some(head_of(&item.envelope, due.unwrap_or(item.due)));
        let (id, lease) = (item.id, item.lease);
        self.writes.change(match due {
            Some(due) => Change::Update {
                item: id,
                lease,
                settled: Vec::new(),
                released: vec![Release { due, recipients: item.recipients }],
            },
            None => Change::Unclaim { item: id, lease },
        });
        if let Some(state) = self.lanes.get_mut(lane) {
            state.work.pending += 1;
        }
        self.writes.then(Effect::Settled { lane, put_back });
        self.review_lane(now, lane);
    }

    /// Held by a blown fuse, or to be held since DNS would bounce it.
    fn bounces_held(&self, now: Timestamp, item: &Item) -> bool {
        let lane = self.lanes.find_ref(&item.lane);
        let fused = lane.and_then(|lane| self.fused(now, lane.destination, &item.envelope));
        item.due == HELD_BY_FUSE || fused.is_some()
    }

    fn bounce_held(&mut self, now: Timestamp, item: Item) {
        let lane = self.lanes.find_ref(&item.lane);
        let fused = lane.and_then(|lane| self.fused(now, lane.destination, &item.envelope)).cloned();
        let is_held = item.due == HELD_BY_FUSE;
        self.finish_stored(now, item, |scheduler, item, recipient, left| {
            let met = recipient.last.as_ref().filter(|_| is_held).map(|last| last.diagnosis.clone());
            let diagnosis = met.or_else(|| fused.clone()).unwrap_or_else(super::control::cancelled_diagnosis);
            scheduler.bounce(now, item, recipient, None, diagnosis, left);
        });
    }

    /// Ends all recipients of an item that was leased for it and is not in the window.
    pub(super) fn finish_stored(
        &mut self,
        now: Timestamp,
        item: Item,
        end: impl Fn(&mut Self, &WindowItem, &Recipient, &mut Settlement),
    ) {
        let lane = self.lane_for(&item.lane);
        if let Some(state) = self.lanes.get_mut(lane) {
            state.work.pending += 1;
        }
        self.end_pending(now, WindowItem::new(item, lane), end);
    }

    pub(super) fn sweep_failed(&mut self, now: Timestamp, token: Token, error: &StorageError) {
        let Some(sweep) = self.sweeps.remove(&token) else { return };
        if let SweepAction::Purge(id) = sweep.action {
            self.fail_purge(id, error);
            self.end_purge_sweep(now, id);
        } else {
            let answer = Answer::Done(Err(error.clone()));
            self.commands.push_back(Command::Answer { token, answer });
        }
    }

    pub(super) fn fail_sweeps(&mut self, now: Timestamp, error: &StorageError) {
        let all: Vec<Token> = self.sweeps.keys().copied().collect();
        all.into_iter().for_each(|token| self.sweep_failed(now, token, error));
    }
}
