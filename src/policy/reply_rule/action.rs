//! What a reply rule does.

use std::time::Duration;

use crate::policy::settings::positive;
use crate::policy::value::{Rate, parse_duration};
use crate::reply::Stage;

/// One action of a reply rule.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// The recipient bounces now instead of being retried.
    BounceRecipient,
    /// Every message in the queue bounces.
    BounceQueue,
    /// Go on with the next host; the mail is held.
    SkipMx,
    /// The queue enters backoff.
    EnterBackoff,
    /// The queue leaves backoff.
    LeaveBackoff,
    /// The queue enters retry mode now.
    DeferQueue,
    /// The source is not used for this queue.
    #[doc(alias = "disable-source-ip")]
    DisableSource {
        /// Until so much later; `None`: never again.
        reenable_after: Option<Duration>,
    },
    /// A permanent failure is treated as transient.
    RetryRecipient,
    /// Overrides the next interval.
    RetryAfter(Duration),
    /// Caps the queue's connections for a time.
    LimitConnections {
        /// Connections; 1 or more.
        limit: u32,
        /// For how long.
        period: Duration,
    },
    /// Caps the queue's rate for a time.
    LimitRate {
        /// Recipients offered.
        rate: Rate,
        /// For how long.
        period: Duration,
    },
}

/// Why a rule's actions were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ActionError {
    /// A rule without actions.
    #[error(r#"an empty list: name an action, like "bounce-rcpt""#)]
    Empty,
    /// No such action.
    #[error(
        "not an action (`{0}` is unknown): the actions are bounce-rcpt, bounce-queue, skip-mx, mode=backoff, \
             mode=normal, defer-queue, disable-source-ip, reenable-after=T, retry-rcpt, retry-after=T, \
             limit-connections=N for=T, limit-rate=R for=T"
    )]
    Unknown(String),
    /// What follows the `=` is wrong or missing, or nothing may follow.
    #[error("not an action (`{0}`): write {1}")]
    Argument(String, &'static str),
    /// `for=` belongs to a limit, in the same string.
    #[error(r#"not an action (`{0}` stands alone): write "limit-connections=2 for=10m" or "limit-rate=100/h for=10m""#)]
    StrayFor(String),
    /// One action more than once.
    #[error("a list with `{0}` twice: leave one out")]
    Twice(&'static str),
    /// `mode=backoff` and `mode=normal`.
    #[error("a list with both `mode=backoff` and `mode=normal`: leave one out")]
    BothModes,
    /// `skip-mx` and `bounce-queue`.
    #[error("a list with both `skip-mx`, which holds mail, and `bounce-queue`: leave one out")]
    SkipMxWithBounceQueue,
    /// `retry-rcpt` or `retry-after` beside a bounce.
    #[error("a list that both bounces and retries (`{0}` and `{1}`): leave one out")]
    BounceAndRetry(&'static str, &'static str),
    /// `reenable-after` without `disable-source-ip`.
    #[error("a list with `reenable-after` but without `disable-source-ip`: add it or leave both out")]
    ReenableAfterAlone,
    /// A count, rate or time of zero, or over ten years.
    #[error("an action out of range (`{0}`): counts are 1 or more, times over zero and at most 3650d")]
    OutOfRange(&'static str),
}

impl Action {
    /// The word in a policy file.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::BounceRecipient => "bounce-rcpt",
            Self::BounceQueue => "bounce-queue",
            Self::SkipMx => "skip-mx",
            Self::EnterBackoff => "mode=backoff",
            Self::LeaveBackoff => "mode=normal",
            Self::DeferQueue => "defer-queue",
            Self::DisableSource { .. } => "disable-source-ip",
            Self::RetryRecipient => "retry-rcpt",
            Self::RetryAfter(_) => "retry-after",
            Self::LimitConnections { .. } => "limit-connections",
            Self::LimitRate { .. } => "limit-rate",
        }
    }

    /// The stages at which it applies in a rule that names none; `None`: all.
    pub const fn default_stages(&self) -> Option<&'static [Stage]> {
        match self {
            Self::BounceRecipient | Self::RetryRecipient => Some(&[Stage::Rcpt, Stage::Data, Stage::Dot]),
            _ => None,
        }
    }

    fn in_range(&self) -> bool {
        let fine = |d: &Duration| positive(d).is_ok();
        match self {
            Self::DisableSource { reenable_after: Some(period) } | Self::RetryAfter(period) => fine(period),
            Self::LimitConnections { limit, period } => *limit > 0 && fine(period),
            Self::LimitRate { period, .. } => fine(period),
            _ => true,
        }
    }
}

/// A word of a policy file: an action, or what belongs to one.
pub(in crate::policy) enum Word {
    Action(Action),
    ReenableAfter(Duration),
}

/// Reads one string of a list of actions: usually one action, or several with spaces or commas between.
pub(in crate::policy) fn parse_words(text: &str) -> Result<Vec<Word>, ActionError> {
    let mut found = Vec::new();
    let mut words = text.split([' ', '\t', ',']).filter(|word| !word.is_empty()).peekable();
    while let Some(word) = words.next() {
        let shown = || word.chars().take(80).flat_map(char::escape_debug).collect::<String>();
        let (name, argument) = word.split_once('=').map_or((word, None), |(name, arg)| (name, Some(arg)));
        let bare = |action, right| match argument {
            None => Ok(Word::Action(action)),
            Some(_) => Err(ActionError::Argument(shown(), right)),
        };
        let time = |right| {
            let time = argument.and_then(|text| parse_duration(text).ok());
            time.ok_or_else(|| ActionError::Argument(shown(), right))
        };
        let mut period = |right| {
            let next = words.next_if(|next| next.starts_with("for="));
            let time =
                next.and_then(|next| next.strip_prefix("for=")).and_then(|text| parse_duration(text).ok());
            time.ok_or_else(|| ActionError::Argument(shown(), right))
        };
        found.push(match name {
            "bounce-rcpt" => bare(Action::BounceRecipient, "bounce-rcpt alone")?,
            "bounce-queue" => bare(Action::BounceQueue, "bounce-queue alone")?,
            "skip-mx" => bare(Action::SkipMx, "skip-mx alone")?,
            "defer-queue" => bare(Action::DeferQueue, "defer-queue alone")?,
            "retry-rcpt" => bare(Action::RetryRecipient, "retry-rcpt alone")?,
            "disable-source-ip" => {
                bare(Action::DisableSource { reenable_after: None }, "disable-source-ip reenable-after=1h")?
            }
            "mode" => Word::Action(match argument {
                Some("backoff") => Action::EnterBackoff,
                Some("normal") => Action::LeaveBackoff,
                _ => return Err(ActionError::Argument(shown(), "mode=backoff or mode=normal")),
            }),
            "reenable-after" => Word::ReenableAfter(time("a duration, like reenable-after=1h")?),
            "retry-after" => Word::Action(Action::RetryAfter(time("a duration, like retry-after=1h")?)),
            "limit-connections" => {
                const RIGHT: &str = "a count and a time, like limit-connections=2 for=10m";
                let limit = argument.and_then(|text| text.parse().ok());
                let limit = limit.ok_or_else(|| ActionError::Argument(shown(), RIGHT))?;
                Word::Action(Action::LimitConnections { limit, period: period(RIGHT)? })
            }
            "limit-rate" => {
                const RIGHT: &str = "a rate and a time, like limit-rate=100/h for=10m";
                let rate = argument.and_then(|text| text.parse().ok());
                let rate = rate.ok_or_else(|| ActionError::Argument(shown(), RIGHT))?;
                Word::Action(Action::LimitRate { rate, period: period(RIGHT)? })
            }
            "for" => return Err(ActionError::StrayFor(shown())),
            _ => return Err(ActionError::Unknown(shown())),
        });
    }
    Ok(found)
}

/// Joins the words of a whole list: `reenable-after` to its `disable-source-ip`.
pub(in crate::policy) fn join(words: impl IntoIterator<Item = Word>) -> Result<Vec<Action>, ActionError> {
    let mut actions = Vec::new();
    let mut reenable = None;
    for word in words {
        match word {
            Word::Action(action) => actions.push(action),
            Word::ReenableAfter(after) if reenable.is_none() => reenable = Some(after),
            Word::ReenableAfter(_) => return Err(ActionError::Twice("reenable-after")),
        }
    }
    if reenable.is_some() {
        let disable = actions.iter_mut().find_map(|action| match action {
            Action::DisableSource { reenable_after } => Some(reenable_after),
            _ => None,
        });
        *disable.ok_or(ActionError::ReenableAfterAlone)? = reenable;
    }
    Ok(actions)
}

/// Refuses lists that contradict themselves.
pub(super) fn check(actions: &[Action]) -> Result<(), ActionError> {
    let mut names: Vec<_> = actions.iter().map(Action::name).collect();
    if names.is_empty() {
        return Err(ActionError::Empty);
    }
    if let Some(action) = actions.iter().find(|action| !action.in_range()) {
        return Err(ActionError::OutOfRange(action.name()));
    }
    names.sort_unstable();
    if let Some((name, _)) = names.iter().zip(names.iter().skip(1)).find(|(a, b)| a == b) {
        return Err(ActionError::Twice(name));
    }
    let has = |name| names.contains(&name);
    if has("mode=backoff") && has("mode=normal") {
        return Err(ActionError::BothModes);
    }
    if has("skip-mx") && has("bounce-queue") {
        return Err(ActionError::SkipMxWithBounceQueue);
    }
    for bounce in ["bounce-rcpt", "bounce-queue"] {
        for retry in ["retry-rcpt", "retry-after"] {
            if has(bounce) && has(retry) {
                return Err(ActionError::BounceAndRetry(bounce, retry));
            }
        }
    }
    Ok(())
}
