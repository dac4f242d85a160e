//! What becomes of recipients: delivered, deferred, bounced, expired.

use std::sync::Arc;
use std::time::Duration;

use super::event::Opened;
use super::fault::Fault;
use super::health::Health;
use super::intake::head_of;
use super::record::{End, Failed, Reading, engine_diagnosis};
use super::ruling::Ruling;
use super::session::{Attempt, Candidate, Connection, InTransaction, State};
use super::unfit::Elsewhere;
use super::verdict::{Cause, Context, SessionVerdict, Verdict, Verdicts, is_broken_off, judge, sent_away_by};
use super::window::WindowItem;
use super::writes::Effect;
use super::{ConnectionId, DestinationKey, QueueKey, Scheduler};
use crate::clock::Timestamp;
use crate::event::{Deferred, DeliveryEvent, Diagnosis, Failure, LastFailure, Reason, StorageOperation};
use crate::policy::{Retry, RetryContext};
use crate::reply::{EnhancedStatus, Reply, Stage};
use crate::storage::{
    Change, ItemId, Recipient, Release, Room, StorageError, StorageErrorKind, share_failures,
};
use crate::transport::{EndCause, RecipientReport, SessionEnd, TransactionReport};

/// Octets of a reply's text that mail keeps while it waits. Records of the attempt itself have all of it.
pub(super) const KEPT_OF_REPLIES: usize = 1_024;
/// When a body that could not be read for the moment is tried again.
const BODY_RETRY: Duration = Duration::from_secs(30);
/// The due time of what a blown fuse holds until somebody says otherwise. Far past every expiry.
pub(super) const HELD_BY_FUSE: Timestamp = Timestamp::from_unix_micros(u64::MAX / 4);
/// The due time of messages that are paused.
pub(super) const PAUSED: Timestamp = Timestamp::from_unix_micros(u64::MAX / 4 + 1);

/// What is left of an item after a transaction.
#[derive(Default)]
pub(super) struct Settlement {
    pub(super) settled: Vec<u32>,
    /// To try again, and when.
    pub(super) released: Vec<(Timestamp, Recipient)>,
    pub(super) staying: Vec<Recipient>,
}

/// What a transaction carried, and over what.
pub(super) struct Carried<'a> {
    pub(super) transaction: &'a InTransaction,
    pub(super) candidate: &'a Candidate,
    opened: &'a Opened,
    session: &'a SessionVerdict,
}

/// A recipient's transient failure.
struct DeferredBy<'a> {
    candidate: &'a Candidate,
    diagnosis: Diagnosis,
    /// By a reply rule, in place of the next one.
    interval: Option<Duration>,
    /// The same for all recipients of a transaction, so that they travel together again.
    random: u64,
}

impl Scheduler {
    pub(super) fn on_transaction_done(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        report: &TransactionReport,
    ) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let State::Busy(transaction) = std::mem::replace(&mut connection.state, State::Between) else {
            return;
        };
        let key = connection.destination;
        let candidate = connection.current.clone();
        let opened = connection.opened.clone();
        let reused = connection.has_idled || connection.completed > 0;
        self.transaction_over(transaction.octets);
        let item = self.window.remove(transaction.item);
        let overflowed = item.as_ref().map_or(&[][..], |item| &item.overflowed);
        let context = Context { reused, recipients: &transaction.recipients, overflowed };
        let (verdicts, session) = judge(report, context);
        let took_one = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Delivered(_)));
        // On a new session it is about the connection: the rules are asked when that has failed.
        let ended_by = sent_away_by(report).filter(|_| session == SessionVerdict::Gone);
        let carried =
            Carried { transaction: &transaction, candidate: &candidate, opened: &opened, session: &session };
        if let Some(item) = item {
            self.settle(now, key, item, &carried, verdicts, ended_by);
        }
        if took_one {
            self.delivered_to(key);
        }
        match &session {
            SessionVerdict::Usable if self.health.has_marks() => {
                self.with_source(key, |health, source| health.completed(source, candidate.peer));
            }
            SessionVerdict::Gone if !reused && is_broken_off(report) => {
                self.with_source(key, |health, source| health.broke(now, source, candidate.peer));
            }
            _ => {}
        }
        self.session_after_transaction(now, id, report.end.as_ref(), session);
        self.mark(key);
    }

    /// Transactions were cut at the end of a shutdown. The server may have taken what they carried: charged, as
    /// after a connection lost behind the dot.
    pub(super) fn on_interrupted(&mut self, now: Timestamp) {
        self.tell_lost_bodies(now);
        let busy = |connection: &Connection| match &connection.state {
            State::Busy(transaction) => Some(transaction.recipients.len()),
            _ => None,
        };
        let cut: Vec<(ConnectionId, usize)> =
            self.connections.iter().filter_map(|(id, connection)| Some((id, busy(connection)?))).collect();
        for (id, recipients) in cut {
            let cause = EndCause::Broken("cut at the shutdown's deadline".to_owned());
            let report = TransactionReport {
                recipients: vec![RecipientReport::None; recipients],
                dot_sent: true,
                end: Some(SessionEnd { stage: Stage::Dot, cause }),
                ..TransactionReport::default()
            };
            self.on_transaction_done(now, id, &report);
        }
    }

    /// A message was taken: the destination works.
    fn delivered_to(&mut self, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        destination.cohort.succeeded();
        destination.work.doubts.change(|doubts| doubts.suspected.clear());
        // While the queue is held, it is one that was under way.
        if let Some(queue) = self.queues.get_mut(destination.queue)
            && queue.mode.held_until.is_none()
            && queue.mode.held_steps > 0
        {
            queue.mode.held_steps = 0;
            self.changed_queues.push(destination.queue);
            queue.unsaved = true;
        }
        destination.retry.step = 0;
        if destination.retry.until.is_some() {
            // Held all the same, since DNS does not answer.
            self.store_state(key);
        } else {
            destination.retry.last = None;
            if destination.stored_state || destination.missing.is_some() {
                self.forget_state(key);
            }
        }
    }

    /// Notes something about an address of a destination.
    fn with_source(&mut self, key: DestinationKey, note: impl FnOnce(&mut Health, &Arc<str>)) {
        if let Some(queue) = self.destinations.get(key).and_then(|d| self.queues.get(d.queue)) {
            note(&mut self.health, &queue.source);
        }
    }

    fn session_after_transaction(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        end: Option<&SessionEnd>,
        verdict: SessionVerdict,
    ) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        match verdict {
            SessionVerdict::Usable => {
                connection.completed += 1;
                connection.has_idled = false;
                connection.attempt = Attempt::default();
                self.make_idle(now, id);
            }
            _ if end.is_none() => {
                // The server said that it ends the session, and has not done so yet.
                connection.retired = true;
                self.make_idle(now, id);
            }
            SessionVerdict::Gone => self.on_connection_gone(now, id),
            SessionVerdict::AsGreetingFailure => {
                if let Some(end) = end {
                    self.failed_as_opening(now, id, end);
                }
            }
            SessionVerdict::Local(message) => {
                let key = connection.destination;
                self.on_connection_gone(now, id);
                self.rest(now, key, message);
            }
        }
    }

    /// A session ended before it did any work: the next host, within the same attempt and under the same permits.
    fn failed_as_opening(&mut self, now: Timestamp, id: ConnectionId, end: &SessionEnd) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        (connection.used, connection.has_idled, connection.opened) = (0, false, Opened::default());
        connection.state = State::Opening;
        connection.listed = false;
        if let Some(destination) = self.destinations.get_mut(connection.destination) {
            destination.work.working.remove(&id);
            destination.work.opening += 1;
        }
        self.next_candidate(now, id, end.stage, &end.cause);
    }

    /// The server, or the network, ended a session between transactions.
    pub(super) fn on_session_ended(&mut self, now: Timestamp, id: ConnectionId, end: &SessionEnd) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let is_new = connection.completed == 0 && !connection.has_idled;
        let State::Busy(transaction) = &connection.state else {
            return self.on_connection_gone(now, id);
        };
        // It ended before the order reached it: nothing of the transaction was sent.
        let (item, octets, key) = (transaction.item, transaction.octets, connection.destination);
        connection.state = State::Between;
        self.transaction_over(octets);
        if is_new {
            // A server that greets and goes, for ever: counts as one that does not greet.
            self.suspect(key, item);
            self.back_in_line(now, item);
            self.failed_as_opening(now, id, end);
        } else {
            self.back_in_line(now, item);
            self.on_connection_gone(now, id);
        }
        self.mark(key);
    }

    fn suspect(&mut self, key: DestinationKey, id: ItemId) {
        if let Some(item) = self.window.get_mut(id)
            && let Some(destination) = self.destinations.get_mut(key)
        {
            item.suspect = true;
            destination.suspect(item.item.envelope.id);
        }
    }

    /// Gives each recipient of a transaction its verdict, and the item what is left of it.
    fn settle(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        mut item: WindowItem,
        carried: &Carried<'_>,
        verdicts: Verdicts,
        ended_by: Option<&Reply>,
    ) {
        item.sent_from = Some(key);
        let recipients = std::mem::take(&mut item.item.recipients);
        let candidate = carried.candidate;
        // Both are in order of the recipients' indices.
        let indices = carried.transaction.recipients.iter().copied();
        let mut verdicts = indices.zip(verdicts).peekable();
        let settled = Vec::with_capacity(carried.transaction.recipients.len());
        let mut left = Settlement { settled, ..Settlement::default() };
        let mut ruling = Ruling::new(carried, ended_by);
        let random = self.rng.u64(..);
        for mut recipient in recipients {
            while verdicts.next_if(|&(index, _)| index < recipient.index).is_some() {}
            let Some((_, verdict)) = verdicts.next_if(|&(index, _)| index == recipient.index) else {
                // Not in this transaction: its replies say nothing of it.
                left.staying.push(recipient);
                continue;
            };
            let verdict = match verdict {
                Verdict::Deferred(cause) if Fault::BouncedTransient.is_there() => Verdict::Bounced(cause),
                verdict => verdict,
            };
            let ruled = self.rule_on(now, key, &mut item, &recipient, verdict, &mut ruling);
            let verdict = match ruled.verdict {
                Verdict::Elsewhere(cause) => match self.note_unfit(key, &mut item, candidate, &cause) {
                    Elsewhere::Maybe => Verdict::Elsewhere(cause),
                    Elsewhere::NotYet => Verdict::Deferred(Cause::policy_unknown()),
                    Elsewhere::Nowhere => Verdict::Bounced(cause),
                },
                verdict => verdict,
            };
            match verdict {
                Verdict::Delivered(reply) => {
                    self.deliver(now, &item, recipient, &reply, carried, &mut left);
                }
                Verdict::Bounced(cause) => {
                    let mut diagnosis = cause.diagnosis(self.reading(candidate));
                    diagnosis.rule = ruled.rule;
                    if ruled.counts && !self.fuse_allows(now, key) {
                        self.hold(now, &item, recipient, Some(candidate), diagnosis, &mut left);
                    } else {
                        recipient.attempts = recipient.attempts.saturating_add(1);
                        self.bounce(now, &item, &recipient, Some(candidate), diagnosis, &mut left);
                    }
                }
                Verdict::Deferred(cause) => {
                    let mut diagnosis = cause.diagnosis(self.reading(candidate));
                    diagnosis.rule = ruled.rule;
                    let failure = DeferredBy { candidate, diagnosis, interval: ruled.interval, random };
                    self.defer(now, key, &item, recipient, failure, &mut left);
                }
                Verdict::Overflow => {
                    item.overflowed.push(recipient.index);
                    left.staying.push(recipient);
                }
                Verdict::AtOnce | Verdict::Elsewhere(_) => left.staying.push(recipient),
            }
        }
        if let Some(purge) = item.purge.or_else(|| self.purge_of(&item)) {
            self.purge_rest(now, &item, purge, &mut left);
        }
        if self.is_being_cancelled(&item) {
            for recipient in std::mem::take(&mut left.staying) {
                self.cancel_recipient(now, &item, &recipient, &mut left.settled);
            }
        }
        if let Some(diagnosis) = ruling.bounces_queue.filter(|_| !self.is_fuse_blown(key)) {
            self.bounce_queue(now, key, &diagnosis);
        }
        item.suspect = matches!(carried.session, SessionVerdict::AsGreetingFailure);
        if let Some((host, diagnosis)) = ruling.skips {
            self.skip_host(now, key, &host);
            // It may be this message that no host takes: another one probes first.
            item.suspect |= self.step_if_all_skipped(now, key, candidate, diagnosis);
        }
        item.item.recipients = std::mem::take(&mut left.staying);
        if item.suspect
            && let Some(destination) = self.destinations.get_mut(key)
        {
            destination.suspect(item.item.envelope.id);
        }
        self.write_settlement(now, item, left);
    }

    fn is_being_cancelled(&self, item: &WindowItem) -> bool {
        item.cancelled || self.cancels.is_cancelled(item.item.envelope.id)
    }

    /// Writes what was decided about an item out of the window, and takes it in again if some of it stays.
    fn write_settlement(&mut self, now: Timestamp, mut item: WindowItem, left: Settlement) {
        let id = item.item.id;
        let stays = !item.item.recipients.is_empty();
        if !left.settled.is_empty() || !left.released.is_empty() {
            // One effect for what was written; the item itself stays pending, or not, below.
            if let Some(lane) = self.lanes.get_mut(item.lane) {
                lane.work.pending += 1;
            }
            self.write_update(&item, left.settled, left.released);
        }
        let Some(lane) = self.lanes.get_mut(item.lane) else { return };
        lane.work.pending = lane.work.pending.saturating_sub(1);
        let purge = item.purge.take();
        if !stays {
            lane.work.claimed = lane.work.claimed.saturating_sub(1);
            if let Some(destination) = self.destinations.get_mut(lane.destination) {
                destination.work.claimed = destination.work.claimed.saturating_sub(1);
            }
            let key = item.lane;
            self.cancels.ended(item.item.envelope.id, id);
            self.review_lane(now, key);
            if let Some(purge) = purge {
                self.purged_one(now, purge);
            }
            return;
        }
        (item.busy, item.sent_from) = (false, None);
        let (key, deadline, fresh) = (item.lane, item.deadline, item.is_fresh());
        lane.work.deadlines.insert((deadline, id));
        let held = lane.destination;
        let held = self.is_held(now, held);
        let covering = self.purge_of(&item);
        self.window.insert(item);
        if let Some(purge) = covering {
            self.end_item(now, purge, id);
        } else if self.is_paused(id) {
            self.put_back(now, id, Some(PAUSED));
        } else if self.shutting_down || held {
            self.put_back(now, id, None);
        } else {
            self.make_ready(id, fresh, true);
        }
        self.review_lane(now, key);
        if let Some(purge) = purge {
            self.purged_one(now, purge);
        }
    }

    fn write_update(&mut self, item: &WindowItem, settled: Vec<u32>, released: Vec<(Timestamp, Recipient)>) {
        let released = by_due(released);
        let put_back = released.first().map(|first| head_of(&item.item.envelope, first.due));
        let (id, lease) = (item.item.id, item.item.lease);
        self.writes.change(Change::Update { item: id, lease, settled, released });
        self.writes.then(Effect::Settled { lane: item.lane, put_back });
    }

    fn deliver(
        &mut self,
        now: Timestamp,
        item: &WindowItem,
        mut recipient: Recipient,
        reply: &Reply,
        carried: &Carried<'_>,
        left: &mut Settlement,
    ) {
        recipient.attempts = recipient.attempts.saturating_add(1);
        let Opened { tls, passes_on_dsn, .. } = carried.opened;
        let end = End::Delivered { reply, tls: tls.as_deref(), passes_on_dsn: *passes_on_dsn };
        self.finish(now, item, &recipient, Some(carried.candidate), end);
        if Fault::DoubleSettle.is_there() {
            self.finish(now, item, &recipient, Some(carried.candidate), end);
        }
        if Fault::SentAgain.is_there() || (self.shutting_down && Fault::ShutdownForgets.is_there()) {
            return left.staying.push(recipient);
        }
        left.settled.push(recipient.index);
    }

    pub(super) fn bounce(
        &mut self,
        now: Timestamp,
        item: &WindowItem,
        recipient: &Recipient,
        candidate: Option<&Candidate>,
        diagnosis: Diagnosis,
        left: &mut Settlement,
    ) {
        self.finish(now, item, recipient, candidate, End::Bounced(&diagnosis));
        left.settled.push(recipient.index);
    }

    /// Charges a recipient an attempt. It waits, unless it is too old, too often tried, or cancelled.
    fn defer(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        item: &WindowItem,
        mut recipient: Recipient,
        DeferredBy { candidate, diagnosis, interval, random }: DeferredBy<'_>,
        left: &mut Settlement,
    ) {
        recipient.attempts = recipient.attempts.saturating_add(1);
        if Fault::UncountedAttempt.is_there() {
            recipient.attempts -= 1;
        }
        recipient.last = Some(Arc::new(last_failure(now, Some(candidate), &diagnosis)));
        if self.is_being_cancelled(item) {
            self.cancel_recipient(now, item, &recipient, &mut left.settled);
            return;
        }
        let Some(queue) = self.destinations.get(key).and_then(|d| self.queues.get(d.queue)) else { return };
        let envelope = &item.item.envelope;
        let context = RetryContext::new(recipient.attempts, now.saturating_since(envelope.age_from))
            .with_expires_after(envelope.expires_at.map(|at| at.saturating_since(envelope.age_from)))
            .with_backoff(queue.in_backoff() || Fault::BackoffIntervals.is_there())
            .with_interval(interval)
            .with_random(random);
        let is_last = |most| Fault::OneAttemptLess.is_there() && recipient.attempts + 1 >= most;
        let retry = match queue.settings.max_attempts {
            Some(most) if is_last(most) => Retry::TooManyAttempts,
            _ => queue.settings.retry(&context),
        };
        match retry {
            Retry::TooManyAttempts => {
                self.expire_recipient(now, key, item, &recipient, Some(Reason::TooManyAttempts), left);
            }
            Retry::Expired => self.expire_recipient(now, key, item, &recipient, None, left),
            Retry::After(interval) => {
                let next_attempt = now + interval;
                self.report_deferred(now, item, &recipient, Some(candidate), diagnosis, next_attempt);
                if Fault::LostRecipient.is_there() {
                    return left.settled.push(recipient.index);
                }
                let early = if Fault::DueTooEarly.is_there() { interval / 2 } else { Duration::ZERO };
                let due = next_attempt.saturating_sub(early);
                self.keep_little(&mut recipient);
                left.released.push((due, recipient));
            }
        }
    }

    /// Charges all recipients of an item that waits an attempt.
    pub(super) fn defer_item(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        id: ItemId,
        candidate: &Candidate,
        diagnosis: &Diagnosis,
    ) {
        let random = self.rng.u64(..);
        self.finish_item(now, id, |scheduler, item, recipient, left| {
            let failure = DeferredBy { candidate, diagnosis: diagnosis.clone(), interval: None, random };
            scheduler.defer(now, key, item, recipient.clone(), failure, left);
        });
    }

    /// A recipient that a rule or DNS would bounce, past its queue's fuse: nothing happens to it before its expiry
    /// unless somebody says so.
    pub(super) fn hold(
        &mut self,
        now: Timestamp,
        item: &WindowItem,
        mut recipient: Recipient,
        candidate: Option<&Candidate>,
        diagnosis: Diagnosis,
        left: &mut Settlement,
    ) {
        if self.is_being_cancelled(item) {
            self.cancel_recipient(now, item, &recipient, &mut left.settled);
            return;
        }
        recipient.last = Some(Arc::new(last_failure(now, candidate, &diagnosis)));
        self.report_deferred(now, item, &recipient, candidate, diagnosis, item.deadline);
        if let Some(last) = &mut recipient.last {
            Arc::make_mut(last).diagnosis.failure.shorten(KEPT_OF_REPLIES);
        }
        left.released.push((HELD_BY_FUSE, recipient));
    }

    /// A recipient that waits keeps little of a long reply, and where the store has little room nothing of what it met:
    /// mail that is deferred must not use that up.
    fn keep_little(&self, recipient: &mut Recipient) {
        match &mut recipient.last {
            Some(last) if self.store_room == Room::Ample => {
                Arc::make_mut(last).diagnosis.failure.shorten(KEPT_OF_REPLIES);
            }
            last => *last = None,
        }
    }

    fn report_deferred(
        &mut self,
        now: Timestamp,
        item: &WindowItem,
        recipient: &Recipient,
        candidate: Option<&Candidate>,
        diagnosis: Diagnosis,
        next_attempt: Timestamp,
    ) {
        let record = self.record(now, item, recipient, candidate);
        self.counters.deferred += 1;
        if let Some(queue) = self.queue_of_item(item).and_then(|key| self.queues.get_mut(key)) {
            queue.tally.deferred += 1;
        }
        let deferred = Deferred { record, diagnosis, next_attempt };
        self.writes.then(Effect::Report(Box::new(DeliveryEvent::Deferred(deferred))));
    }

    /// Bounces an item that waits, for a rule or DNS; what is past the queue's fuse is held.
    pub(super) fn bounce_or_hold(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        id: ItemId,
        diagnosis: &Diagnosis,
    ) {
        self.finish_item(now, id, |scheduler, item, recipient, left| {
            scheduler.bounce_or_hold_recipient(now, Some(key), item, recipient, diagnosis, left);
        });
    }

    /// The same for a recipient of an item that is out of the window.
    pub(super) fn bounce_or_hold_recipient(
        &mut self,
        now: Timestamp,
        key: Option<DestinationKey>,
        item: &WindowItem,
        recipient: &Recipient,
        diagnosis: &Diagnosis,
        left: &mut Settlement,
    ) {
        if key.is_none_or(|key| self.fuse_allows(now, key)) {
            self.bounce(now, item, recipient, None, diagnosis.clone(), left);
        } else {
            self.hold(now, item, recipient.clone(), None, diagnosis.clone(), left);
        }
    }

    /// Bounces what lay too long, with the last thing it met.
    pub(super) fn expire(&mut self, now: Timestamp, id: ItemId) {
        self.finish_item(now, id, |scheduler, item, recipient, left| {
            let Some(key) = scheduler.lanes.get(item.lane).map(|lane| lane.destination) else { return };
            scheduler.expire_recipient(now, key, item, recipient, None, left);
        });
    }

    /// Bounces an item that waits, uncharged: DNS or the hosts said that no mail is taken.
    pub(super) fn bounce_item(&mut self, now: Timestamp, id: ItemId, diagnosis: &Diagnosis) {
        self.finish_item(now, id, |scheduler, item, recipient, left| {
            scheduler.bounce(now, item, recipient, None, diagnosis.clone(), left);
        });
    }

    pub(super) fn cancel_item(&mut self, now: Timestamp, id: ItemId) {
        self.finish_item(now, id, |scheduler, item, recipient, left| {
            scheduler.cancel_recipient(now, item, recipient, &mut left.settled);
        });
    }

    /// Ends all recipients of an item that waits in the window, or holds them.
    pub(super) fn finish_item(
        &mut self,
        now: Timestamp,
        id: ItemId,
        end: impl Fn(&mut Self, &WindowItem, &Recipient, &mut Settlement),
    ) {
        if let Some(item) = self.leave_window(id) {
            self.end_pending(now, item, end);
        }
    }

    /// Ends all recipients of an item that is out of the window and pending. What is held instead goes back.
    pub(super) fn end_pending(
        &mut self,
        now: Timestamp,
        mut item: WindowItem,
        end: impl Fn(&mut Self, &WindowItem, &Recipient, &mut Settlement),
    ) {
        let id = item.item.id;
        let mut left = Settlement::default();
        let recipients = std::mem::take(&mut item.item.recipients);
        recipients.iter().for_each(|recipient| end(self, &item, recipient, &mut left));
        self.write_update(&item, left.settled, left.released);
        self.cancels.ended(item.item.envelope.id, id);
        self.review_lane(now, item.lane);
    }

    fn expire_recipient(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        item: &WindowItem,
        recipient: &Recipient,
        reason: Option<Reason>,
        left: &mut Settlement,
    ) {
        let held = self.destinations.get(key).and_then(|destination| destination.retry.last.clone());
        let by_queue = self.held_by(now, key, item);
        let last = recipient.last.as_ref();
        let age = item.deadline.saturating_since(item.item.envelope.age_from);
        let failure = match (last.map(|last| &last.diagnosis.failure), by_queue, &held) {
            (Some(failure @ Failure::Reply(_)), ..) => failure.clone(),
            (Some(Failure::Engine(message)), ..) => Failure::Engine(format!("expired; last: {message}")),
            (None, ..) if recipient.attempts > 0 => Failure::Engine(format!(
                "expired after {} attempts; what they met was not kept since the disk was nearly full",
                recipient.attempts
            )),
            (None, Some(why), _) => Failure::Engine(format!("expired before an attempt; {why}")),
            (None, None, Some(held)) => Failure::Engine(match &held.failure {
                Failure::Reply(reply) => format!("expired before an attempt; its hosts said: {reply}"),
                Failure::Engine(message) => format!("expired before an attempt; its hosts: {message}"),
            }),
            (None, None, None) => {
                Failure::Engine(format!("expired at an age of {} s, before an attempt", age.as_secs()))
            }
        };
        let was_attempted = last.is_some() || recipient.attempts > 0;
        let by_age = if was_attempted { Reason::Expired } else { Reason::NeverAttempted };
        let reason = reason.unwrap_or(by_age);
        let diagnosis = Diagnosis {
            stage: last.map_or(Stage::Queue, |last| last.diagnosis.stage),
            status: EnhancedStatus::new(4, 4, 7),
            reason,
            failure,
            rule: None,
        };
        let candidate = last.and_then(|last| {
            Some(Candidate { host: last.mx.clone()?, peer: last.peer?, tlsa: None, vouched_for: false })
        });
        self.bounce(now, item, recipient, candidate.as_ref(), diagnosis, left);
    }

    /// How the replies of a host are read.
    fn reading<'a>(&'a self, candidate: &'a Candidate) -> Reading<'a> {
        Reading { classifier: self.policy.classifier(), host: &candidate.host }
    }

    /// The queue an item was sent from, if its transaction has just ended; else the one it lies in.
    pub(super) fn queue_of_item(&self, item: &WindowItem) -> Option<QueueKey> {
        let lies_in = || self.lanes.get(item.lane).map(|lane| lane.destination);
        Some(self.destinations.get(item.sent_from.or_else(lies_in)?)?.queue)
    }

    /// A transaction ended: its content makes room.
    pub(super) fn transaction_over(&mut self, octets: usize) {
        self.busy = self.busy.saturating_sub(1);
        self.transit.end(octets, self.bounds.transit_octets);
    }

    /// An item whose transaction did not take place goes first again.
    pub(super) fn back_in_line(&mut self, now: Timestamp, id: ItemId) {
        self.out_of_transaction(id);
        let Some(item) = self.window.get(id) else { return };
        let (lane, fresh) = (item.lane, item.is_fresh());
        let is_being_cancelled = self.is_being_cancelled(item);
        let held = self.lanes.get(lane).is_some_and(|lane| self.is_held(now, lane.destination));
        if is_being_cancelled {
            self.cancel_item(now, id);
        } else if self.is_paused(id) {
            self.put_back(now, id, Some(PAUSED));
        } else if self.shutting_down || held {
            self.put_back(now, id, None);
        } else {
            self.make_ready(id, fresh, true);
        }
        let purge = self.window.get_mut(id).and_then(|item| item.purge.take());
        // Its deadline counts again.
        self.review_lane(now, lane);
        if let Some(purge) = purge {
            self.purged_one(now, purge);
        }
    }

    fn out_of_transaction(&mut self, id: ItemId) {
        if let Some(item) = self.window.get_mut(id)
            && let Some(lane) = self.lanes.get_mut(item.lane)
        {
            item.busy = false;
            lane.work.pending = lane.work.pending.saturating_sub(1);
            lane.work.deadlines.insert((item.deadline, id));
        }
    }

    /// The body of a transaction could not be read; the session is as it was.
    pub(super) fn on_body_failed(&mut self, now: Timestamp, id: ConnectionId, error: &StorageError) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let key = connection.destination;
        let State::Busy(transaction) = std::mem::replace(&mut connection.state, State::Between) else {
            return;
        };
        self.transaction_over(transaction.octets);
        self.make_idle(now, id);
        let item_id = transaction.item;
        self.out_of_transaction(item_id);
        if self.window.get(item_id).is_some_and(|item| self.is_being_cancelled(item)) {
            self.cancel_item(now, item_id);
            self.mark(key);
            return;
        }
        match error.kind() {
            StorageErrorKind::Corrupt | StorageErrorKind::NotFound => {
                self.tell_lost_body(now, error);
                let diagnosis = engine_diagnosis(Stage::Queue, Failed::Content, error.to_string());
                self.bounce_item(now, item_id, &diagnosis);
            }
            _ if error.is_temporary() => {
                let until = now + BODY_RETRY;
                if let Some(item) = self.window.get(item_id) {
                    self.unread.note(now, item_id, item.lane, until);
                }
                self.put_back(now, item_id, Some(until));
                // It alone waits: if the store refuses everything, the next commit says so.
                self.tell_trouble(now, StorageOperation::Read, error.to_string());
            }
            _ => {
                self.put_back(now, item_id, None);
                self.stop_writing(now, StorageOperation::Read, error);
            }
        }
        self.mark(key);
    }
}

fn last_failure(now: Timestamp, candidate: Option<&Candidate>, diagnosis: &Diagnosis) -> LastFailure {
    LastFailure {
        at: now,
        mx: candidate.map(|candidate| candidate.host.clone()),
        peer: candidate.map(|candidate| candidate.peer),
        diagnosis: diagnosis.clone(),
    }
}

/// Groups of those that go on at the same time, the earliest first.
fn by_due(mut recipients: Vec<(Timestamp, Recipient)>) -> Vec<Release> {
    recipients.sort_by_key(|&(due, _)| due);
    let mut releases: Vec<Release> = Vec::new();
    for (due, recipient) in recipients {
        match releases.last_mut() {
            Some(last) if last.due == due => last.recipients.push(recipient),
            _ => releases.push(Release { due, recipients: vec![recipient] }),
        }
    }
    releases.iter_mut().for_each(|release| share_failures(&mut release.recipients));
    releases
}
