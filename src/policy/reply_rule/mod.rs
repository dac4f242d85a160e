//! Reply rules: what a reply that matches brings about.

mod action;
mod decision;
#[cfg(test)]
mod decision_tests;
mod set;
#[cfg(test)]
mod tests;
mod verdict;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use regex::{Regex, RegexBuilder};

pub use action::{Action, ActionError};
pub(super) use action::{join, parse_words};
pub use decision::{BackoffChange, Fate, ReplyContext, RuleDecision};
pub(super) use set::ReplyRules;
pub use verdict::ReplyVerdict;

use super::pattern::NamePattern;
use super::settings::{at_least_one, positive};
use super::value::Rate;
use crate::event::{Category, Reason};
use crate::reply::Stage;

/// The largest compiled pattern, in octets.
const PATTERN_SIZE: usize = 1 << 20;

/// One rule: a pattern over replies, conditions, actions (`[[reply-rule]]`).
///
/// A pattern is matched against the reply folded to one line, `code [enhanced] text`; it is not anchored, and
/// case does not matter. Matching takes time linear in the reply. Conditions left out hold always; a list holds
/// when one of its entries matches.
#[derive(Clone, Debug)]
#[doc(alias = "smtp-pattern-list")]
pub struct ReplyRule {
    name: Arc<str>,
    pattern: Regex,
    actions: Vec<Action>,
    conditions: Conditions,
}

/// What must hold besides the pattern. Empty and `None`: no condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conditions {
    /// The recipient's domain.
    pub domains: Vec<NamePattern>,
    /// The queue.
    pub queues: Vec<NamePattern>,
    /// The host that replied.
    pub hosts: Vec<NamePattern>,
    /// What kind of failure the reply tells of ([`Policy::classify`](crate::policy::Policy::classify)).
    pub categories: Vec<Category>,
    /// The same, finer.
    pub reasons: Vec<Reason>,
    /// Where in the delivery. Empty: each action's own default.
    pub stages: Vec<Stage>,
    /// The recipient was charged at least so many attempts; 1 or more.
    pub min_attempts: Option<u32>,
    /// The recipient's age is at least this.
    pub min_age: Option<Duration>,
    /// The rule acts once so many replies matched in so much time, counted per rule, queue and source.
    pub after: Option<Rate>,
}

impl Conditions {
    /// The stages a rule may name.
    pub(super) const STAGES: [Stage; 7] =
        [Stage::Connect, Stage::Ehlo, Stage::Auth, Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Dot];
}

/// Why a reply rule was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyRuleError {
    /// The pattern is no regular expression.
    #[error("not a regular expression{}: {problem}", .column.map(|c| format!(" at column {c}")).unwrap_or_default())]
    Pattern {
        /// Where in the pattern, from 1.
        column: Option<usize>,
        /// What is wrong.
        problem: String,
    },
    /// The actions are wrong.
    #[error(transparent)]
    Actions(#[from] ActionError),
    /// A condition is out of range.
    #[error("a rule whose {0} is out of range: counts are 1 or more, times over zero and at most 3650d")]
    Condition(&'static str),
    /// Replies come only from connect, ehlo, auth, mail, rcpt, data and dot.
    #[error(
        "a rule for the stage {0}, which has no replies: the stages are connect, ehlo, auth, mail, rcpt, data and dot"
    )]
    Stage(&'static str),
}

impl ReplyRule {
    /// A rule without further conditions.
    ///
    /// # Errors
    /// [`ReplyRuleError`]: the pattern is no regular expression, or the actions contradict one another.
    pub fn new(
        name: impl Into<Arc<str>>,
        pattern: &str,
        actions: impl IntoIterator<Item = Action>,
    ) -> Result<Self, ReplyRuleError> {
        let actions: Vec<_> = actions.into_iter().collect();
        let pattern = compile(pattern)?;
        action::check(&actions)?;
        Ok(Self { name: name.into(), pattern, actions, conditions: Conditions::default() })
    }

    /// Replaces the conditions.
    ///
    /// # Errors
    /// [`ReplyRuleError`] names the condition that is out of range.
    pub fn with_conditions(mut self, conditions: Conditions) -> Result<Self, ReplyRuleError> {
        if conditions.min_attempts.is_some_and(|n| at_least_one(&n).is_err()) {
            return Err(ReplyRuleError::Condition("min-attempts"));
        }
        if conditions.min_age.is_some_and(|age| positive(&age).is_err()) {
            return Err(ReplyRuleError::Condition("min-age"));
        }
        if let Some(stage) = conditions.stages.iter().find(|s| !Conditions::STAGES.contains(s)) {
            return Err(ReplyRuleError::Stage(stage.as_str()));
        }
        self.conditions = conditions;
        Ok(self)
    }

    /// Its name, which records carry.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The pattern as it was written.
    pub fn pattern(&self) -> &str {
        self.pattern.as_str()
    }

    /// Whether a reply, folded to one line, matches the pattern.
    ///
    /// ```
    /// # use postrider::policy::{Action, ReplyRule};
    /// let rule = ReplyRule::new("quota", r"^452 4\.2\.2 .*over ?quota", [Action::BounceRecipient])?;
    /// assert!(rule.matches("452 4.2.2 The mailbox is OVER QUOTA"));
    /// assert!(!rule.matches("450 4.2.1 busy"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn matches(&self, folded_reply: &str) -> bool {
        self.pattern.is_match(folded_reply)
    }

    /// The actions.
    pub fn actions(&self) -> &[Action] {
        &self.actions
    }

    /// The conditions.
    pub fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Whether `action` is for replies at `stage`: one the rule names, else one of the action's default.
    pub fn applies_at(&self, action: &Action, stage: Stage) -> bool {
        let named = Some(self.conditions.stages.as_slice()).filter(|stages| !stages.is_empty());
        named.or_else(|| action.default_stages()).is_none_or(|stages| stages.contains(&stage))
    }
}

/// Compares patterns as they were written.
impl PartialEq for ReplyRule {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.pattern(), &self.actions, &self.conditions)
            == (&other.name, other.pattern(), &other.actions, &other.conditions)
    }
}

pub(super) fn compile(pattern: &str) -> Result<Regex, ReplyRuleError> {
    RegexBuilder::new(pattern).case_insensitive(true).size_limit(PATTERN_SIZE).build().map_err(|error| {
        match error {
            regex::Error::CompiledTooBig(_) => ReplyRuleError::Pattern {
                column: None,
                problem: "it is too large once compiled: lower its repetition counts".to_owned(),
            },
            error => explain(&error),
        }
    })
}

/// The regex crate draws the pattern with a caret below; a message has one line.
fn explain(error: &impl fmt::Display) -> ReplyRuleError {
    let text = error.to_string();
    let caret = text.lines().find(|line| line.trim_start().starts_with('^'));
    let last = text.lines().last().unwrap_or_default();
    let problem = last.strip_prefix("error: ").unwrap_or(last).to_owned();
    // The drawing is indented by four.
    let column = caret.and_then(|line| line.find('^')).and_then(|at| at.checked_sub(3));
    ReplyRuleError::Pattern { column, problem }
}
