//! Cancelling a message: what waits is ended, what is in a transaction ends when that does.
//!
//! The message is marked first: from then on nothing of it is put back into the store, and what comes out of it is
//! ended. Once all earlier changes are durable the store lists its items. Those in the window are ended there, the
//! others are leased and ended. The mark stays until every claim that could bring an item has come back.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::command::{Answer, CancelReport, Command, Token};
use super::control::cancelled_diagnosis;
use super::record::End;
use super::window::WindowItem;
use super::writes::{Effect, poisoned};
use super::{ClaimId, Scheduler};
use crate::clock::Timestamp;
use crate::message::MessageId;
use crate::storage::{ItemId, ItemSummary, Recipient, StorageError};

pub(super) type CancelKey = Token;

#[derive(Default)]
pub(super) struct Cancels {
    under_way: BTreeMap<CancelKey, Cancel>,
    messages: HashMap<MessageId, Mark>,
}

struct Cancel {
    message: MessageId,
    report: CancelReport,
    /// Done but for claims before this one that are still under way.
    ends_at: Option<ClaimId>,
}

/// A message that is being cancelled.
#[derive(Default)]
struct Mark {
    cancels: Vec<CancelKey>,
    /// Its recipients bounce.
    bounces: bool,
    /// Items that ended since: a claim may still bring them.
    ended: HashSet<ItemId>,
}

impl Cancels {
    pub(super) fn is_cancelled(&self, message: MessageId) -> bool {
        !self.messages.is_empty() && self.messages.contains_key(&message)
    }

    pub(super) fn has_ended(&self, message: MessageId, item: ItemId) -> bool {
        self.messages.get(&message).is_some_and(|mark| mark.ended.contains(&item))
    }

    /// Nothing is left of an item.
    pub(super) fn ended(&mut self, message: MessageId, item: ItemId) {
        if !self.messages.is_empty()
            && let Some(mark) = self.messages.get_mut(&message)
        {
            mark.ended.insert(item);
        }
    }

    fn remove(&mut self, key: CancelKey) -> Option<Cancel> {
        let cancel = self.under_way.remove(&key)?;
        if let Some(mark) = self.messages.get_mut(&cancel.message) {
            mark.cancels.retain(|&other| other != key);
            if mark.cancels.is_empty() {
                self.messages.remove(&cancel.message);
            }
        }
        Some(cancel)
    }
}

impl Scheduler {
    pub(super) fn on_cancel(&mut self, now: Timestamp, key: CancelKey, message: MessageId, bounces: bool) {
        if self.writes.is_stopped() {
            let answer = Answer::Cancelled(Err(poisoned()));
            self.commands.push_back(Command::Answer { token: key, answer });
            return;
        }
        self.cancels
            .under_way
            .insert(key, Cancel { message, report: CancelReport::default(), ends_at: None });
        let mark = self.cancels.messages.entry(message).or_default();
        mark.cancels.push(key);
        mark.bounces |= bounces;
        self.after_writes(now, Effect::List(key));
    }

    /// Nothing of it is on its way back into the store any more.
    pub(super) fn list_for_cancel(&mut self, token: CancelKey) {
        if let Some(cancel) = self.cancels.under_way.get(&token) {
            self.commands.push_back(Command::List { token, message: cancel.message });
        }
    }

    pub(super) fn on_listed(
        &mut self,
        now: Timestamp,
        key: CancelKey,
        result: Result<Vec<ItemSummary>, StorageError>,
    ) {
        let items = match result {
            Ok(items) => items,
            Err(error) => return self.cancel_failed(key, &error),
        };
        let mut elsewhere = Vec::new();
        for summary in items {
            let Some(item) = self.window.get_mut(summary.id) else {
                if !self.cancels.has_ended(summary.envelope.id, summary.id) {
                    elsewhere.push(summary.id);
                }
                continue;
            };
            if item.busy {
                item.cancelled = true;
                if let Some(cancel) = self.cancels.under_way.get_mut(&key) {
                    cancel.report.in_flight += u32::try_from(item.item.recipients.len()).unwrap_or(u32::MAX);
                }
            } else {
                self.cancel_item(now, summary.id);
            }
        }
        if elsewhere.is_empty() {
            self.cancel_claimed(key);
            self.finish_cancels(now);
        } else {
            self.claim_to_cancel(key, elsewhere);
        }
    }

    /// Everything of it is ended, save what claims under way may bring.
    pub(super) fn cancel_claimed(&mut self, key: CancelKey) {
        let ends_at = ClaimId(self.next_claim);
        if let Some(cancel) = self.cancels.under_way.get_mut(&key) {
            cancel.ends_at = Some(ends_at);
        }
    }

    /// Answers those for which no claim is under way any more; the answer follows once all is durable.
    pub(super) fn finish_cancels(&mut self, now: Timestamp) {
        if self.cancels.under_way.is_empty() {
            return;
        }
        let first = self.first_claim_under_way();
        let is_done = |cancel: &Cancel| cancel.ends_at.is_some_and(|ends_at| ends_at <= first);
        let done = self.cancels.under_way.iter().filter(|(_, cancel)| is_done(cancel));
        let done: Vec<_> = done.map(|(&key, _)| key).collect();
        for key in done {
            if let Some(cancel) = self.cancels.remove(key) {
                self.after_writes(now, Effect::Answer(key, Answer::Cancelled(Ok(cancel.report))));
            }
        }
    }

    pub(super) fn cancel_failed(&mut self, key: CancelKey, error: &StorageError) {
        if self.cancels.remove(key).is_some() {
            let answer = Answer::Cancelled(Err(error.clone()));
            self.commands.push_back(Command::Answer { token: key, answer });
        }
    }

    pub(super) fn fail_cancels(&mut self, error: &StorageError) {
        let all: Vec<_> = self.cancels.under_way.keys().copied().collect();
        all.into_iter().for_each(|key| self.cancel_failed(key, error));
    }

    /// Ends one recipient for the host.
    pub(super) fn cancel_recipient(
        &mut self,
        now: Timestamp,
        item: &WindowItem,
        recipient: &Recipient,
        settled: &mut Vec<u32>,
    ) {
        let message = item.item.envelope.id;
        if self.cancels.messages.get(&message).is_some_and(|mark| mark.bounces) {
            self.finish(now, item, recipient, None, End::Bounced(&cancelled_diagnosis()));
        } else {
            self.finish(now, item, recipient, None, End::Cancelled);
        }
        settled.push(recipient.index);
        let Some(mark) = self.cancels.messages.get(&message) else { return };
        for key in &mark.cancels {
            if let Some(cancel) = self.cancels.under_way.get_mut(key) {
                cancel.report.cancelled += 1;
            }
        }
    }
}
