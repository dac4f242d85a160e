//! A reply as a log has it.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::message::QueueName;
use crate::policy::ReplyContext;
use crate::reply::{Reply, Stage};

/// What a log says became of a recipient, or of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum LoggedOutcome {
    /// A server took the message.
    Delivered,
    /// The recipient was charged, to be tried again.
    Deferred,
    /// The recipient bounced with this reply.
    Bounced,
    /// The recipient expired with this reply, having been tried as often as `max-attempts` says.
    TriedTooOften,
    /// The recipient ended, or is held, without a reply of its own: it expired while it waited, or bounced with its
    /// queue. The reply, if there is one, was given before, or for another.
    EndedWaiting,
    /// A destination took its retry step: no recipient was charged.
    QueueDeferred,
}

impl LoggedOutcome {
    /// In lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Deferred => "deferred",
            Self::Bounced => "bounced",
            Self::TriedTooOften => "tried-too-often",
            Self::EndedWaiting => "ended-waiting",
            Self::QueueDeferred => "queue-deferred",
        }
    }
}

/// One outcome of a log, with its reply: what [`Replay`](super::Replay) is fed with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoggedReply {
    /// When.
    pub time: Timestamp,
    /// What became of it.
    pub outcome: LoggedOutcome,
    /// The recipient's domain.
    pub domain: Arc<str>,
    /// The queue: a domain or `name.rollup`.
    pub queue: QueueName,
    /// The source.
    pub source: Arc<str>,
    /// The name of the host that replied.
    pub mx: Option<Arc<str>>,
    /// What the reply answers.
    pub stage: Stage,
    /// The reply; `None`: the failure is the engine's own finding.
    pub reply: Option<Reply>,
    /// The attempts the recipient was charged, this one included.
    pub attempts: u32,
    /// The recipient's age.
    pub age: Duration,
    /// The reply rule that the log names.
    pub rule: Option<Arc<str>>,
    /// The record's own id: a record that was written twice counts once.
    pub event: Option<Arc<str>>,
    /// The message. It tells one transaction from several, and with the recipient what belongs together.
    pub message: Option<Arc<str>>,
    /// The recipient's address.
    pub recipient: Option<Arc<str>>,
}

impl LoggedReply {
    /// A recipient's first attempt, deferred, in its domain's own queue, sent from the source `default`, in a
    /// transaction of its own.
    pub fn new(
        time: Timestamp,
        domain: impl Into<Arc<str>>,
        stage: Stage,
        reply: impl Into<Option<Reply>>,
    ) -> Self {
        let domain = domain.into();
        Self {
            time,
            outcome: LoggedOutcome::Deferred,
            queue: domain.clone().into(),
            domain,
            source: "default".into(),
            mx: None,
            stage,
            reply: reply.into(),
            attempts: 1,
            age: Duration::ZERO,
            rule: None,
            event: None,
            message: None,
            recipient: None,
        }
    }

    /// What became of it. Default: deferred.
    #[must_use]
    pub fn with_outcome(mut self, outcome: LoggedOutcome) -> Self {
        self.outcome = outcome;
        self
    }

    /// The queue, and the source it sends from. Default: the domain, and `default`.
    #[must_use]
    pub fn with_queue(mut self, queue: impl Into<QueueName>, source: impl Into<Arc<str>>) -> Self {
        self.queue = queue.into();
        self.source = source.into();
        self
    }

    /// The name of the host that replied. Default: none, which no rule that names hosts matches.
    #[must_use]
    pub fn with_mx(mut self, mx: impl Into<Arc<str>>) -> Self {
        self.mx = Some(mx.into());
        self
    }

    /// The attempts charged, this one included, and the recipient's age. Default: 1 and zero.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32, age: Duration) -> Self {
        self.attempts = attempts;
        self.age = age;
        self
    }

    /// The reply rule that the log names. Default: none.
    #[must_use]
    pub fn with_rule(mut self, rule: impl Into<Arc<str>>) -> Self {
        self.rule = Some(rule.into());
        self
    }

    /// The record's own id. Default: none, the record counts however often it comes.
    #[must_use]
    pub fn with_event(mut self, event: impl Into<Arc<str>>) -> Self {
        self.event = Some(event.into());
        self
    }

    /// The message, and the recipient's address. Default: unknown, so that it counts as a recipient of its own, alone
    /// in its transaction.
    #[must_use]
    pub fn with_recipient(mut self, message: impl Into<Arc<str>>, recipient: impl Into<Arc<str>>) -> Self {
        self.message = Some(message.into());
        self.recipient = Some(recipient.into());
        self
    }

    /// The message and the recipient, if both are known.
    pub(super) fn whose(&self) -> Option<(Arc<str>, Arc<str>)> {
        Some((self.message.clone()?, self.recipient.clone()?))
    }

    /// The reply, if it answers a command, so that rules are about it.
    pub(super) fn answer(&self) -> Option<&Reply> {
        self.reply.as_ref().filter(|_| !matches!(self.stage, Stage::Queue | Stage::Dns))
    }

    /// What names the transaction, where one reply is about all its recipients: MAIL, DATA, the dot. A log does not
    /// say more of it than message, moment and host.
    pub(super) fn transaction(&self) -> Option<Transaction> {
        let is_shared = matches!(self.stage, Stage::Mail | Stage::Data | Stage::Dot)
            && self.outcome != LoggedOutcome::QueueDeferred;
        let message = self.message.clone().filter(|_| is_shared)?;
        Some(Transaction {
            message,
            queue: self.queue.clone(),
            source: self.source.clone(),
            mx: self.mx.clone(),
            stage: self.stage,
        })
    }

    /// The engine itself took it for alone in its transaction: a rule bounced it with a 4xx.
    pub(super) fn was_alone(&self) -> bool {
        self.outcome == LoggedOutcome::Bounced
            && self.rule.is_some()
            && self.reply.as_ref().is_some_and(Reply::is_transient)
    }

    pub(super) fn context(&self) -> ReplyContext<'_> {
        let context = ReplyContext::new(&self.domain, &self.queue, self.stage);
        let context = match &self.mx {
            Some(mx) => context.with_host(mx),
            None => context,
        };
        match self.outcome {
            // It is about no recipient.
            LoggedOutcome::QueueDeferred => context.with_attempts(0),
            _ => context.with_attempts(self.attempts).with_age(self.age),
        }
    }
}

/// One transaction among those of one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Transaction {
    message: Arc<str>,
    queue: QueueName,
    source: Arc<str>,
    mx: Option<Arc<str>>,
    stage: Stage,
}
