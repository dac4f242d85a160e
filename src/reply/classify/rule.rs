//! One rule of a classifier.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Confidence;
use super::phrase::Phrase;
use crate::event::Reason;
use crate::reply::{EnhancedStatus, Stage};

/// A rule: what must be so, and the reason that follows. Of each list one entry must hold; an empty list holds always.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClassificationRule {
    pub(crate) name: Arc<str>,
    pub(crate) reason: Reason,
    pub(crate) phrases: Vec<Phrase>,
    pub(crate) codes: Vec<CodePattern>,
    pub(crate) statuses: Vec<StatusPattern>,
    pub(crate) providers: Vec<Arc<str>>,
    pub(crate) stages: Vec<Stage>,
    /// Its statuses are used for many things.
    pub(crate) weak: bool,
    /// Never holds: stands in place of a rule of the same name.
    pub(crate) off: bool,
}

impl ClassificationRule {
    /// What it goes by.
    pub(super) fn confidence(&self) -> Confidence {
        match (self.phrases.is_empty(), self.statuses.is_empty()) {
            (false, _) if !self.providers.is_empty() => Confidence::ProviderText,
            (false, _) => Confidence::Text,
            (true, false) if self.weak => Confidence::WeakStatus,
            (true, false) => Confidence::Status,
            (true, true) => Confidence::Code,
        }
    }

    /// Whether all conditions hold but for the phrases.
    pub(super) fn holds(&self, reply: &Known<'_>) -> bool {
        !self.off
            && any(&self.codes, |code| code.matches(reply.code))
            && any(&self.statuses, |pattern| reply.status.is_some_and(|status| pattern.matches(status)))
            && any(&self.stages, |stage| reply.stage == Some(*stage))
            && any(&self.providers, |provider| {
                reply.provider().is_some_and(|name| name.eq_ignore_ascii_case(provider))
            })
    }
}

fn any<T>(list: &[T], holds: impl Fn(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(holds)
}

/// What is known of a reply beside its words.
pub(super) struct Known<'a> {
    pub(super) code: u16,
    pub(super) status: Option<EnhancedStatus>,
    pub(super) stage: Option<Stage>,
    /// The name of the provider, found out when a rule asks.
    pub(super) provider: &'a dyn Fn() -> Option<&'a str>,
}

impl Known<'_> {
    fn provider(&self) -> Option<&str> {
        (self.provider)()
    }
}

/// `421`, or `5xx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodePattern {
    Class(u16),
    Exact(u16),
}

/// Neither a code nor a class of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a reply code: write it like \"421\", or \"5xx\" for all of a class")]
pub(crate) struct CodePatternError;

impl CodePattern {
    fn matches(self, code: u16) -> bool {
        match self {
            Self::Class(class) => code / 100 == class,
            Self::Exact(exact) => code == exact,
        }
    }
}

impl FromStr for CodePattern {
    type Err = CodePatternError;

    fn from_str(text: &str) -> Result<Self, CodePatternError> {
        let refusal = |code: &u16| (400..600).contains(code);
        match text.strip_suffix("xx") {
            Some("4") => Ok(Self::Class(4)),
            Some("5") => Ok(Self::Class(5)),
            Some(_) => Err(CodePatternError),
            None => text.parse().ok().filter(refusal).map(Self::Exact).ok_or(CodePatternError),
        }
    }
}

/// `x.2.2`, `5.7.x`, `4.3.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StatusPattern {
    class: Option<u8>,
    subject: u16,
    detail: Option<u16>,
}

/// Not a status with `x` for what does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a status: write it like \"5.2.2\", \"x.2.2\" for 4.2.2 and 5.2.2, or \"x.2.x\" for all of a subject"
)]
pub(crate) struct StatusPatternError;

impl StatusPattern {
    fn matches(self, status: EnhancedStatus) -> bool {
        self.class.is_none_or(|class| class == status.class)
            && self.subject == status.subject
            && self.detail.is_none_or(|detail| detail == status.detail)
    }
}

impl FromStr for StatusPattern {
    type Err = StatusPatternError;

    fn from_str(text: &str) -> Result<Self, StatusPatternError> {
        let mut parts = text.split('.');
        let [Some(class), Some(subject), Some(detail), None] = [(); 4].map(|()| parts.next()) else {
            return Err(StatusPatternError);
        };
        let class = match class {
            "x" => None,
            "4" => Some(4),
            "5" => Some(5),
            _ => return Err(StatusPatternError),
        };
        let number = |part: &str| part.parse().ok().filter(|number| *number < 1000).ok_or(StatusPatternError);
        let detail = if detail == "x" { None } else { Some(number(detail)?) };
        Ok(Self { class, subject: number(subject)?, detail })
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
