//! What reply rules are asked with, and what they answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Action, ReplyRule};
use crate::event::Reason;
use crate::policy::pattern::NamePattern;
use crate::policy::value::{Rate, Written};
use crate::reply::Stage;

/// Where a reply came from and about what: what [`Conditions`](super::Conditions) are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplyContext<'a> {
    /// The recipient's domain.
    pub domain: &'a str,
    /// The queue: a domain or `name.rollup`.
    pub queue: &'a str,
    /// The name of the host that replied; `None` matches no rule that names hosts.
    pub host: Option<&'a str>,
    /// The provider, where it is known otherwise than by the host.
    pub provider: Option<&'a str>,
    /// What the reply answers.
    pub stage: Stage,
    /// How many attempts the recipient was charged, this one included.
    pub attempts: u32,
    /// The recipient's age.
    pub age: Duration,
    /// How many recipients the transaction had.
    pub recipients: usize,
}

impl<'a> ReplyContext<'a> {
    /// A first attempt, of a message just submitted, at a host without name.
    pub fn new(domain: &'a str, queue: &'a str, stage: Stage) -> Self {
        Self {
            domain,
            queue,
            host: None,
            provider: None,
            stage,
            attempts: 1,
            age: Duration::ZERO,
            recipients: 1,
        }
    }

    /// The name of the host that replied.
    #[must_use]
    pub fn with_host(mut self, host: &'a str) -> Self {
        self.host = Some(host);
        self
    }

    /// The provider, as classification rules name it. Default: found by the host's name.
    #[must_use]
    pub fn with_provider(mut self, provider: &'a str) -> Self {
        self.provider = Some(provider);
        self
    }

    /// How many attempts the recipient was charged, this one included. Default: 1.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// How many recipients the transaction had. Default: 1.
    #[must_use]
    pub fn with_recipients(mut self, recipients: usize) -> Self {
        self.recipients = recipients;
        self
    }

    /// The recipient's age. Default: zero.
    #[must_use]
    pub fn with_age(mut self, age: Duration) -> Self {
        self.age = age;
        self
    }
}

/// What becomes of the mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fate {
    /// The recipient bounces now.
    BounceRecipient,
    /// Every message in the queue bounces.
    BounceQueue,
    /// Go on with the next host; the mail is held, also on a 5xx.
    SkipMx,
    /// The mail is held, also on a 5xx.
    RetryRecipient,
}

impl Fate {
    fn bounces(self) -> bool {
        matches!(self, Self::BounceRecipient | Self::BounceQueue)
    }
}

/// Which way a queue goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackoffChange {
    /// Into backoff.
    Enter,
    /// Back to normal.
    Leave,
}

/// What the reply rules say of one reply, each part with the name of the rule that says it.
///
/// A part once set stays: the first rule wins. Besides, these conflict, so that the rule that comes first keeps
/// out the other:
/// - `fate`: there is one. Of several in the same rule the first of bounce-queue, bounce-rcpt, skip-mx, retry-rcpt
///   counts.
/// - a bounce and `retry-after`;
/// - bounce-queue and `defer-queue`; in the same rule bounce-queue counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuleDecision {
    /// What becomes of the mail; `None`: what the reply's code says.
    pub fate: Option<(Fate, Arc<str>)>,
    /// Overrides the next interval.
    pub retry_after: Option<(Duration, Arc<str>)>,
    /// The queue enters or leaves backoff.
    pub mode: Option<(BackoffChange, Arc<str>)>,
    /// The queue enters retry mode now.
    pub defer_queue: Option<Arc<str>>,
    /// The source is not used for this queue for so long; `None`: until the operator says so.
    pub disable_source: Option<(Option<Duration>, Arc<str>)>,
    /// The queue has so many connections at most, for so long.
    pub limit_connections: Option<(u32, Duration, Arc<str>)>,
    /// The queue offers so many recipients at most, for so long.
    pub limit_rate: Option<(Rate, Duration, Arc<str>)>,
}

/// The strongest first.
const FATES: [(Action, Fate); 4] = [
    (Action::BounceQueue, Fate::BounceQueue),
    (Action::BounceRecipient, Fate::BounceRecipient),
    (Action::SkipMx, Fate::SkipMx),
    (Action::RetryRecipient, Fate::RetryRecipient),
];

impl RuleDecision {
    /// No rule says anything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The rule that a record names: the one that decided about the recipient, else one that did something.
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.rules().next()
    }

    /// The rule of each part, that of the fate first.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<str>> {
        let Self { fate, retry_after, mode, defer_queue, disable_source, limit_connections, limit_rate } =
            self;
        let parts = [
            fate.as_ref().map(|(_, rule)| rule),
            retry_after.as_ref().map(|(_, rule)| rule),
            mode.as_ref().map(|(_, rule)| rule),
            defer_queue.as_ref(),
            disable_source.as_ref().map(|(_, rule)| rule),
            limit_connections.as_ref().map(|(_, _, rule)| rule),
            limit_rate.as_ref().map(|(_, _, rule)| rule),
        ];
        parts.into_iter().flatten()
    }

    /// Adds what `rule` does at `stage` and no earlier rule keeps out.
    pub(super) fn add(&mut self, rule: &ReplyRule, stage: Stage) {
        let name = rule.name();
        let acts = |action: &Action| rule.actions().contains(action) && rule.applies_at(action, stage);
        // Fates first: the rest depends on them.
        if let Some((_, fate)) = FATES.iter().find(|(action, fate)| acts(action) && self.admits(*fate)) {
            self.fate = Some((*fate, name.clone()));
        }
        let fate = self.fate.as_ref().map(|(fate, _)| *fate);
        for action in rule.actions().iter().filter(|action| rule.applies_at(action, stage)) {
            match action {
                Action::BounceRecipient | Action::BounceQueue | Action::SkipMx | Action::RetryRecipient => {}
                Action::RetryAfter(interval) => {
                    if !fate.is_some_and(Fate::bounces) {
                        set(&mut self.retry_after, || (*interval, name.clone()));
                    }
                }
                Action::DeferQueue => {
                    if fate != Some(Fate::BounceQueue) {
                        set(&mut self.defer_queue, || name.clone());
                    }
                }
                Action::EnterBackoff => set(&mut self.mode, || (BackoffChange::Enter, name.clone())),
                Action::LeaveBackoff => set(&mut self.mode, || (BackoffChange::Leave, name.clone())),
                Action::DisableSource { reenable_after } => {
                    set(&mut self.disable_source, || (*reenable_after, name.clone()));
                }
                Action::LimitConnections { limit, period } => {
                    set(&mut self.limit_connections, || (*limit, *period, name.clone()));
                }
                Action::LimitRate { rate, period } => {
                    set(&mut self.limit_rate, || (*rate, *period, name.clone()));
                }
            }
        }
    }

    fn admits(&self, fate: Fate) -> bool {
        self.fate.is_none()
            && !(fate.bounces() && self.retry_after.is_some())
            && !(fate == Fate::BounceQueue && self.defer_queue.is_some())
    }
}

/// In the policy file's words: `bounce-rcpt by full, mode=backoff by slow`; without any `nothing`.
impl fmt::Display for RuleDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fate, retry_after, mode, defer_queue, disable_source, limit_connections, limit_rate } =
            self;
        let mut parts = Vec::new();
        let mut add = |action: String, rule: &Arc<str>| parts.push(format!("{action} by {rule}"));
        if let Some((decided, rule)) = fate {
            let action =
                FATES.iter().find(|(_, fate)| fate == decided).map_or("", |(action, _)| action.name());
            add(action.to_owned(), rule);
        }
        if let Some((interval, rule)) = retry_after {
            add(format!("retry-after={}", Written(*interval)), rule);
        }
        if let Some((change, rule)) = mode {
            let action = match change {
                BackoffChange::Enter => Action::EnterBackoff,
                BackoffChange::Leave => Action::LeaveBackoff,
            };
            add(action.name().to_owned(), rule);
        }
        if let Some(rule) = defer_queue {
            add(Action::DeferQueue.name().to_owned(), rule);
        }
        match disable_source {
            Some((Some(period), rule)) => {
                add(format!("disable-source-ip reenable-after={}", Written(*period)), rule)
            }
            Some((None, rule)) => add("disable-source-ip".to_owned(), rule),
            None => {}
        }
        if let Some((limit, period, rule)) = limit_connections {
            add(format!("limit-connections={limit} for={}", Written(*period)), rule);
        }
        if let Some((rate, period, rule)) = limit_rate {
            add(format!("limit-rate={rate} for={}", Written(*period)), rule);
        }
        f.write_str(if parts.is_empty() { "nothing" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

/// The first one stays.
fn set<T>(part: &mut Option<T>, value: impl FnOnce() -> T) {
    part.get_or_insert_with(value);
}

impl ReplyRule {
    /// Whether the conditions hold; `reason` finds out what the reply tells of. Save stages, which each action has its own of, and `after`, which counts.
    pub(super) fn holds(&self, context: &ReplyContext<'_>, reason: &dyn Fn() -> Reason) -> bool {
        let any = |patterns: &[NamePattern], name: Option<&str>| {
            patterns.is_empty() || name.is_some_and(|name| patterns.iter().any(|p| p.matches(name)))
        };
        let conditions = self.conditions();
        conditions.min_attempts.is_none_or(|least| context.attempts >= least)
            && conditions.min_age.is_none_or(|least| context.age >= least)
            && any(&conditions.domains, Some(context.domain))
            && any(&conditions.queues, Some(context.queue))
            && any(&conditions.hosts, context.host)
            && (conditions.reasons.is_empty() || conditions.reasons.contains(&reason()))
            && (conditions.categories.is_empty() || conditions.categories.contains(&reason().category()))
    }
}
