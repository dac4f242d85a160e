//! Logged replies through new reply rules.

mod logged;
mod report;
mod side;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

pub use logged::{LoggedOutcome, LoggedReply};
pub use report::{ChangeKind, ReplayChange, ReplayReport, RuleReplay};

use self::side::{Judged, Side};
use crate::policy::{Policy, ReplyVerdict, RuleDecision};
use crate::reply::Reply;

/// Puts logged replies through new reply rules and tells what they would have changed.
///
/// What became of each recipient is taken from the log, or from an old policy ([`Replay::against`]). The rules are
/// asked as the engine asks them: `after` is counted per rule, queue and source, a refusal of MAIL, DATA or the dot
/// once for all recipients of its transaction. A transaction is known by message, moment, stage and host, which is
/// all that a log has of it.
///
/// A log shows what happened, not what would have. A recipient that new rules bounce has ended there: what the log has
/// of it afterwards is not judged, and counted apart ([`ReplayReport::after_end`]). For this message and recipient must be
/// known. Other mail of a queue that bounces is replayed on, since a log does not say what lay there. Mail that is
/// retried by new rules and bounced in the log has no later replies. Nor does a log have every reply: those
/// after which the engine went on at once (a 421 on a used session, `skip-mx`, a further host) are missing, and so are
/// greetings for which all mail bounced; `after` may count less than the engine did. A `bounce-fuse` plays no part.
///
/// Takes memory for all that is added, save deliveries at the first attempt where they can end no backoff. Of the changes
/// that are found a bounded number is kept. The order of adding plays no part but among replies of the same moment.
///
/// ```
/// # use postrider::{clock::Timestamp, policy::Policy, reply::{Reply, Stage}};
/// use postrider::testing::{ChangeKind, LoggedReply, Replay};
/// let rules = "[[reply-rule]]\nname = 'quota'\nmatch = 'over quota'\nactions = 'bounce-rcpt'";
/// let mut replay = Replay::new(Policy::from_toml(rules)?);
/// replay.add(LoggedReply::new(Timestamp::EPOCH, "gmail.com", Stage::Rcpt, Reply::parse("452 4.2.2 Over quota")?));
/// assert_eq!(replay.finish().count(ChangeKind::Bounces), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Replay {
    new: Side,
    old: Option<Side>,
    logged: Vec<LoggedReply>,
    /// Deliveries that were not kept.
    deliveries: u64,
}

impl Replay {
    /// Compares the rules of `new` with what the log says.
    pub fn new(new: Policy) -> Self {
        Self { new: Side::new(new), old: None, logged: Vec::new(), deliveries: 0 }
    }

    /// Compares with the rules of `old` instead: also where only effects on the queue differ, of which a log does
    /// not say enough.
    #[must_use]
    pub fn against(mut self, old: Policy) -> Self {
        self.old = Some(Side::new(old));
        self
    }

    /// Adds what a log says of one recipient or queue.
    pub fn add(&mut self, logged: LoggedReply) {
        let mut sides = std::iter::once(&mut self.new).chain(&mut self.old);
        // Only after an attempt that failed may a recipient have ended already.
        let is_first = logged.outcome == LoggedOutcome::Delivered && logged.attempts <= 1;
        if is_first && !sides.any(|side| side.heeds(&logged)) {
            self.deliveries += 1;
            return;
        }
        self.logged.push(logged);
    }

    /// Replays all of it. Keeps the first [`ReplayReport::MOST_CHANGES`] changes of each kind.
    pub fn finish(self) -> ReplayReport {
        let (mut kept, mut counts) = (Vec::new(), HashMap::<_, u64>::new());
        let mut report = self.finish_with(|change| {
            let count = counts.entry(change.kind).or_default();
            *count += 1;
            if *count <= ReplayReport::MOST_CHANGES {
                kept.push(change);
            }
        });
        report.changes = kept;
        report
    }

    /// Replays all of it, and hands out every change as it is found, in order of time. The report keeps none.
    pub fn finish_with(mut self, mut on_change: impl FnMut(ReplayChange)) -> ReplayReport {
        let mut logged = std::mem::take(&mut self.logged);
        logged.sort_by_key(|logged| logged.time);
        let names = self.new.policy().reply_rules().iter().map(|rule| rule.name().clone());
        let rules = names.map(|rule| RuleReplay { rule, ..RuleReplay::default() }).collect();
        let mut report = ReplayReport { rules, deliveries: self.deliveries, ..ReplayReport::default() };
        for moment in logged.chunk_by(|one, next| one.time == next.time) {
            self.moment(moment, &mut report, &mut on_change);
        }
        report
    }

    /// All of one moment: a transaction's recipients are told at the same.
    fn moment(
        &mut self,
        moment: &[LoggedReply],
        report: &mut ReplayReport,
        on_change: &mut impl FnMut(ReplayChange),
    ) {
        let mut events = HashSet::new();
        let mut logged: Vec<&LoggedReply> = moment.iter().collect();
        logged.retain(|logged| logged.event.as_ref().is_none_or(|event| events.insert(event)));
        report.repeated += count(moment.len() - logged.len());
        self.new.begin(&logged);
        self.old.iter_mut().for_each(|old| old.begin(&logged));
        let mut told = HashSet::new();
        for logged in logged {
            let has_ended = self.new.has_ended(logged);
            report.after_end += u64::from(has_ended);
            report.delivered_after_end += u64::from(has_ended && logged.outcome == LoggedOutcome::Delivered);
            let counted = u64::from(!has_ended);
            let Some(reply) = logged.answer() else {
                report.engine_made += counted;
                continue;
            };
            match logged.outcome {
                LoggedOutcome::Delivered => {
                    report.deliveries += counted;
                    self.new.delivered(logged, reply);
                    self.old.iter_mut().for_each(|old| old.delivered(logged, reply));
                }
                LoggedOutcome::EndedWaiting => report.ended_waiting += counted,
                _ => {
                    let is_first =
                        !has_ended && logged.transaction().is_none_or(|transaction| told.insert(transaction));
                    if let Some(change) = self.refused(logged, reply, is_first, report) {
                        on_change(change);
                    }
                }
            }
        }
    }

    fn refused(
        &mut self,
        logged: &LoggedReply,
        reply: &Reply,
        is_first: bool,
        report: &mut ReplayReport,
    ) -> Option<ReplayChange> {
        let before = self.old.as_mut().map(|old| old.judge(logged, reply));
        let after = self.new.judge(logged, reply)?;
        if is_first {
            report.replies += 1;
            report.unmatched += u64::from(after.matched.is_empty());
            tally(&after, report);
        }
        let queue = || (logged.queue.clone(), logged.source.clone());
        if let Some(rule) = find(report, after.enters_backoff.as_ref()) {
            *rule.backoffs.entry(queue()).or_default() += 1;
        }
        let of_queue = logged.outcome == LoggedOutcome::QueueDeferred;
        let bounces_all =
            after.verdict == ReplyVerdict::BounceQueue || of_queue && after.verdict == ReplyVerdict::Bounce;
        let fate_rule = after.decision.fate.as_ref().map(|(_, rule)| rule);
        if let Some(rule) = find(report, fate_rule.filter(|_| bounces_all)) {
            rule.bounced_queues.insert(queue());
        }
        let before = match before {
            // It bounced before by the old rules, which was told then.
            Some(None) => return None,
            Some(Some(before)) => Some(before),
            None => None,
        };
        let change = change(logged, before, after)?;
        let fate_rule = change.decision.fate.as_ref().map(|(_, rule)| rule);
        if let Some(rule) = find(report, fate_rule.filter(|_| !of_queue)) {
            match change.kind {
                ChangeKind::Bounces => rule.bounces += 1,
                ChangeKind::Retries | ChangeKind::NextHost if bounces(change.before) => rule.retries += 1,
                _ => {}
            }
        }
        let counts = if of_queue { &mut report.changed_steps } else { &mut report.changed };
        *counts.entry(change.kind).or_default() += 1;
        Some(change)
    }
}

/// Which rules matched, and which did something.
fn tally(judged: &Judged, report: &mut ReplayReport) {
    for index in &judged.matched {
        if let Some(rule) = report.rules.get_mut(*index) {
            rule.matched += 1;
            rule.acted += u64::from(takes_part(&judged.decision, &rule.rule));
        }
    }
}

fn takes_part(decision: &RuleDecision, rule: &str) -> bool {
    decision.rules().any(|name| **name == *rule)
}

fn find<'a>(report: &'a mut ReplayReport, name: Option<&Arc<str>>) -> Option<&'a mut RuleReplay> {
    let name = name?;
    report.rules.iter_mut().find(|rule| rule.rule == *name)
}

fn change(logged: &LoggedReply, before: Option<Judged>, after: Judged) -> Option<ReplayChange> {
    let was = match logged.outcome {
        LoggedOutcome::Bounced => ReplyVerdict::Bounce,
        _ => ReplyVerdict::Retry,
    };
    let (verdict, rule, same) = match &before {
        Some(old) => (old.verdict, old.decision.rule().cloned(), old.decision == after.decision),
        None => (was, logged.rule.clone(), logged.rule.as_ref() == after.decision.rule()),
    };
    let ends_alike = |verdict| bounces(verdict) || verdict == ReplyVerdict::Retry;
    let alike = if logged.outcome == LoggedOutcome::TriedTooOften {
        // It ends either way.
        ends_alike(verdict) && ends_alike(after.verdict)
    } else {
        verdict == after.verdict || bounces(verdict) && bounces(after.verdict)
    };
    let kind = match after.verdict {
        _ if alike && same => return None,
        _ if alike => ChangeKind::Otherwise,
        ReplyVerdict::Bounce | ReplyVerdict::BounceQueue => ChangeKind::Bounces,
        ReplyVerdict::Retry => ChangeKind::Retries,
        ReplyVerdict::NextHost => ChangeKind::NextHost,
        ReplyVerdict::OneByOne => ChangeKind::OneByOne,
    };
    Some(ReplayChange {
        logged: logged.clone(),
        kind,
        before: verdict,
        before_rule: rule,
        before_decision: before.map(|old| old.decision),
        after: after.verdict,
        decision: after.decision,
    })
}

fn bounces(verdict: ReplyVerdict) -> bool {
    matches!(verdict, ReplyVerdict::Bounce | ReplyVerdict::BounceQueue)
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
