//! One policy's rules over a log: their counts, and which queues are in backoff.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::logged::{LoggedOutcome, LoggedReply, Transaction};
use crate::clock::Timestamp;
use crate::message::QueueName;
use crate::policy::{Action, BackoffChange, Policy, Rate, ReplyVerdict, RuleDecision, SlidingCount};
use crate::reply::Reply;

pub(super) struct Side {
    policy: Policy,
    /// A rule has `mode=backoff`.
    enters_backoff: bool,
    /// A rule has `mode=normal`.
    leaves_backoff: bool,
    queues: HashMap<(QueueName, Arc<str>), Queue>,
    /// Answers about `after` to the transactions of this moment: one reply counts once.
    counted: HashMap<(Transaction, usize), bool>,
    /// How many recipients the transactions of this moment have.
    recipients: HashMap<Transaction, usize>,
    /// Recipients that bounced by these rules, by message: whatever a log has of them later would not have happened.
    ended: HashSet<(Arc<str>, Arc<str>)>,
}

/// What a queue of a source remembers.
struct Queue {
    /// By the rule's index.
    counts: HashMap<usize, SlidingCount>,
    backoff: Option<Backoff>,
    ends_after: Option<Duration>,
    ends_with_delivery: bool,
}

struct Backoff {
    since: Timestamp,
    until: Option<Timestamp>,
}

/// What the rules make of one reply.
pub(super) struct Judged {
    pub(super) decision: RuleDecision,
    pub(super) verdict: ReplyVerdict,
    /// Indices of the rules whose pattern and conditions match.
    pub(super) matched: Vec<usize>,
    /// The rule by which the queue enters backoff that was not in it.
    pub(super) enters_backoff: Option<Arc<str>>,
}

impl Side {
    pub(super) fn new(policy: Policy) -> Self {
        let has = |action| policy.reply_rules().iter().any(|rule| rule.actions().contains(action));
        let (enters_backoff, leaves_backoff) = (has(&Action::EnterBackoff), has(&Action::LeaveBackoff));
        Self {
            policy,
            enters_backoff,
            leaves_backoff,
            queues: HashMap::new(),
            counted: HashMap::new(),
            recipients: HashMap::new(),
            ended: HashSet::new(),
        }
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether this delivery could end its queue's backoff.
    pub(super) fn heeds(&mut self, delivery: &LoggedReply) -> bool {
        self.enters_backoff
            && (self.leaves_backoff || Queue::of(&mut self.queues, &self.policy, delivery).ends_with_delivery)
    }

    /// What follows is all of another moment.
    pub(super) fn begin(&mut self, moment: &[&LoggedReply]) {
        self.counted.clear();
        self.recipients.clear();
        for logged in moment {
            if let Some(transaction) = logged.transaction().filter(|_| !self.has_ended(logged)) {
                *self.recipients.entry(transaction).or_default() += 1;
            }
        }
    }

    /// Its recipient bounced before.
    pub(super) fn has_ended(&self, logged: &LoggedReply) -> bool {
        // The names are cloned to look for them: not where there is nothing to find.
        !self.ended.is_empty() && logged.whose().is_some_and(|whose| self.ended.contains(&whose))
    }

    /// What the rules make of a refusal. `None`: the recipient bounced before.
    pub(super) fn judge(&mut self, logged: &LoggedReply, reply: &Reply) -> Option<Judged> {
        if self.has_ended(logged) {
            return None;
        }
        let transaction = logged.transaction();
        let recipients = transaction.as_ref().and_then(|transaction| self.recipients.get(transaction));
        let recipients = recipients.copied().filter(|_| !logged.was_alone()).unwrap_or(1);
        let (text, context) = (reply.to_string(), logged.context());
        let Self { policy, queues, counted, .. } = self;
        let queue = Queue::of(queues, policy, logged);
        let after = |rule: usize, rate: Rate| match &transaction {
            Some(transaction) => *counted
                .entry((transaction.clone(), rule))
                .or_insert_with(|| queue.count(rule, rate, logged.time)),
            None => queue.count(rule, rate, logged.time),
        };
        let decision = policy.decide_reply(&text, &context, after);
        let matched = policy.matching_rules(&text, &context).map(|(index, _)| index).collect();
        // A refused connection says nothing of any recipient: no code bounces one.
        let permanent = reply.is_permanent() && logged.outcome != LoggedOutcome::QueueDeferred;
        let verdict = decision.verdict(permanent, logged.stage, recipients);
        let enters_backoff = queue.apply(&decision, logged.time);
        let bounces = matches!(verdict, ReplyVerdict::Bounce | ReplyVerdict::BounceQueue);
        if bounces && logged.outcome != LoggedOutcome::QueueDeferred {
            self.ended.extend(logged.whose());
        }
        Some(Judged { decision, verdict, matched, enters_backoff })
    }

    /// A message was taken: that may end its queue's backoff.
    pub(super) fn delivered(&mut self, logged: &LoggedReply, reply: &Reply) {
        if self.has_ended(logged) {
            return;
        }
        let queue = Queue::of(&mut self.queues, &self.policy, logged);
        let Some(backoff) = &queue.backoff else { return };
        // When the transaction began stands in no log: one that ended at this moment began before.
        let by_delivery = queue.ends_with_delivery && logged.time > backoff.since;
        let after = |rule: usize, rate: Rate| queue.count(rule, rate, logged.time);
        if self.policy.leaves_backoff(&reply.to_string(), &logged.context(), after).is_some() || by_delivery {
            queue.backoff = None;
        }
    }
}

impl Queue {
    fn of<'a>(
        queues: &'a mut HashMap<(QueueName, Arc<str>), Self>,
        policy: &Policy,
        logged: &LoggedReply,
    ) -> &'a mut Self {
        let queue = queues.entry((logged.queue.clone(), logged.source.clone())).or_insert_with(|| {
            let settings = policy.settings(&logged.queue, &logged.source);
            Self {
                counts: HashMap::new(),
                backoff: None,
                ends_after: settings.backoff_to_normal_after,
                ends_with_delivery: settings.backoff_to_normal_after_delivery,
            }
        });
        let is_over = |backoff: &Backoff| backoff.until.is_some_and(|until| until <= logged.time);
        if queue.backoff.as_ref().is_some_and(is_over) {
            queue.backoff = None;
        }
        queue
    }

    fn count(&mut self, rule: usize, rate: Rate, now: Timestamp) -> bool {
        self.counts.entry(rule).or_insert_with(|| SlidingCount::new(rate)).record(now)
    }

    fn apply(&mut self, decision: &RuleDecision, now: Timestamp) -> Option<Arc<str>> {
        match &decision.mode {
            Some((BackoffChange::Enter, rule)) => {
                let until = self.ends_after.map(|after| now + after);
                // In backoff already: its end moves, and there is no news in it.
                let is_news = self.backoff.is_none();
                let since = self.backoff.as_ref().map_or(now, |backoff| backoff.since);
                self.backoff = Some(Backoff { since, until });
                is_news.then(|| rule.clone())
            }
            Some((BackoffChange::Leave, _)) => {
                self.backoff = None;
                None
            }
            None => None,
        }
    }
}
