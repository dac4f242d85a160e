//! What a replay found.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::logged::LoggedReply;
use crate::message::QueueName;
use crate::policy::{ReplyVerdict, RuleDecision};

/// In which way new rules differ, for one logged reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ChangeKind {
    /// It would bounce.
    Bounces,
    /// It would be retried, not bounced.
    Retries,
    /// It would go on to the next host.
    NextHost,
    /// Each recipient of the transaction would be sent the message by itself, and bounce if refused again.
    OneByOne,
    /// The same becomes of it, but by another rule, or with other effects on its queue.
    Otherwise,
}

impl ChangeKind {
    /// All of them, in order.
    pub const ALL: [Self; 5] =
        [Self::Bounces, Self::Retries, Self::NextHost, Self::OneByOne, Self::Otherwise];

    /// In lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bounces => "bounces",
            Self::Retries => "retries",
            Self::NextHost => "next-host",
            Self::OneByOne => "one-by-one",
            Self::Otherwise => "otherwise",
        }
    }
}

/// One logged reply of which the new rules make something else.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayChange {
    /// The reply as logged.
    pub logged: LoggedReply,
    /// In which way.
    pub kind: ChangeKind,
    /// What became of it, or would by the old policy.
    pub before: ReplyVerdict,
    /// The rule that record names, or would by the old policy.
    pub before_rule: Option<Arc<str>>,
    /// All that the old policy decides, if there is one.
    pub before_decision: Option<RuleDecision>,
    /// What becomes of it by the new rules.
    pub after: ReplyVerdict,
    /// All that the new rules decide.
    pub decision: RuleDecision,
}

/// What one of the new rules did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuleReplay {
    /// Its name.
    pub rule: Arc<str>,
    /// Replies that its pattern and conditions match. One to all recipients of a transaction counts once.
    pub matched: u64,
    /// Those of them about which it decided something: `after` was reached, and no earlier rule kept it out.
    pub acted: u64,
    /// Recipients that would bounce by it, and were not bounced by that reply.
    pub bounces: u64,
    /// Recipients that would be retried by it, here or at the next host, and were bounced by that reply.
    pub retries: u64,
    /// Queues all of whose mail would bounce by it, by queue and source.
    pub bounced_queues: BTreeSet<(QueueName, Arc<str>)>,
    /// How often queues would enter backoff by it, by queue and source.
    pub backoffs: BTreeMap<(QueueName, Arc<str>), u64>,
}

/// What new reply rules would have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayReport {
    /// Every rule, in the policy's order.
    pub rules: Vec<RuleReplay>,
    /// The first [`MOST_CHANGES`](Self::MOST_CHANGES) changes of each kind, in order of time. Empty after
    /// [`Replay::finish_with`](super::Replay::finish_with).
    pub changes: Vec<ReplayChange>,
    /// How many changes of each kind there are for recipients. A recipient bounces once, and is bounced no more once;
    /// the others are counted by reply.
    pub changed: BTreeMap<ChangeKind, u64>,
    /// How many there are for destinations in their retry step, which charge no recipient.
    pub changed_steps: BTreeMap<ChangeKind, u64>,
    /// Refusals that went through the rules. One to all recipients of a transaction counts once.
    pub replies: u64,
    /// Those of them that no rule matches.
    pub unmatched: u64,
    /// Deliveries; where they can end no backoff, those written twice count twice.
    pub deliveries: u64,
    /// Failures that are the engine's own finding. No rule is about them.
    pub engine_made: u64,
    /// Recipients that ended while they waited, without a reply of their own.
    pub ended_waiting: u64,
    /// Records that were there before.
    pub repeated: u64,
    /// Records of recipients that would have bounced before, by the new rules: this would not have happened, and is
    /// in none of the other counts.
    pub after_end: u64,
    /// Deliveries among these: mail that the new rules would lose.
    pub delivered_after_end: u64,
}

impl ReplayReport {
    /// How many changes of each kind are kept.
    pub const MOST_CHANGES: u64 = 1_000;

    /// How many changes of this kind, kept or not: [`changed`](Self::changed) and
    /// [`changed_steps`](Self::changed_steps).
    pub fn count(&self, kind: ChangeKind) -> u64 {
        let of = |counts: &BTreeMap<ChangeKind, u64>| counts.get(&kind).copied().unwrap_or(0);
        of(&self.changed) + of(&self.changed_steps)
    }

    /// The rules that never did anything.
    pub fn unused(&self) -> impl Iterator<Item = &RuleReplay> {
        self.rules.iter().filter(|rule| rule.acted == 0)
    }
}
