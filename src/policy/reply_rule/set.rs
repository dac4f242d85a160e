//! All reply rules, compiled to one set, and what they decide of a reply.

use std::cell::OnceCell;
use std::sync::Arc;

use regex::{RegexSet, RegexSetBuilder};

use super::decision::{ReplyContext, RuleDecision};
use super::{Action, ReplyRule};
use crate::policy::value::Rate;
use crate::policy::{Policy, PolicyError};
use crate::reply::{Classification, Origin};

/// The largest compiled set, in octets.
const SET_SIZE: usize = 16 << 20;
/// How much a search may cache, in octets. Beyond it the cache starts anew; the answer stays the same.
const SEARCH_CACHE: usize = 16 << 20;

/// The rules in order and the set of their patterns.
#[derive(Clone, Debug, Default)]
pub(in crate::policy) struct ReplyRules {
    rules: Vec<ReplyRule>,
    set: RegexSet,
    /// Those with `mode=normal`.
    leaving: Vec<usize>,
    /// So many of the last ones are the base's.
    base: usize,
}

/// A rule's name is taken.
#[derive(Debug)]
pub(in crate::policy) struct NameTaken;

/// The set follows from the rules.
impl PartialEq for ReplyRules {
    fn eq(&self, other: &Self) -> bool {
        self.rules == other.rules
    }
}

impl ReplyRules {
    pub(in crate::policy) fn as_slice(&self) -> &[ReplyRule] {
        &self.rules
    }

    /// All there are become the base of those to come.
    pub(in crate::policy) fn are_base(&mut self) {
        self.base = self.rules.len();
    }

    /// Appends a rule, which counts from the next [`compile`](Self::compile) on. The rules of the base stay behind it,
    /// and one of its name goes.
    pub(in crate::policy) fn push(&mut self, rule: ReplyRule) -> Result<(), NameTaken> {
        let own = self.rules.len().saturating_sub(self.base);
        match self.rules.iter().position(|other| other.name() == rule.name()) {
            Some(place) if place < own => return Err(NameTaken),
            Some(place) => {
                self.rules.remove(place);
                self.base -= 1;
            }
            None => {}
        }
        self.rules.insert(own, rule);
        Ok(())
    }

    /// Apart from [`push`](Self::push), since a file has many rules and compiling takes time in all of them.
    pub(in crate::policy) fn compile(&mut self) -> Result<(), PolicyError> {
        let set = RegexSetBuilder::new(self.rules.iter().map(ReplyRule::pattern))
            .case_insensitive(true)
            .size_limit(SET_SIZE)
            .dfa_size_limit(SEARCH_CACHE)
            .build();
        self.set = set.map_err(|_| {
            let problem = r"all patterns together are too large once compiled: lower repetition counts, write [a-z0-9] for \w, or leave rules out";
            PolicyError::invalid("reply-rule", format_args!("{} rules:", self.rules.len()), problem)
        })?;
        let leaves = |rule: &ReplyRule| rule.actions().contains(&Action::LeaveBackoff);
        self.leaving =
            (0..).zip(&self.rules).filter(|(_, rule)| leaves(rule)).map(|(index, _)| index).collect();
        Ok(())
    }

    /// The rules whose pattern matches, in order, found in one pass.
    pub(super) fn matching(&self, reply: &str) -> impl Iterator<Item = (usize, &ReplyRule)> {
        let found = (!self.rules.is_empty()).then(|| self.set.matches(reply));
        let found = found.into_iter().flatten();
        found.filter_map(|index| self.rules.get(index).map(|rule| (index, rule)))
    }
}

/// What the reply rules say.
impl Policy {
    /// What kind of failure a refusal tells of, by [`Policy::classifier`].
    pub fn classify(&self, reply: &str, context: &ReplyContext<'_>) -> Classification {
        let mut origin = Origin::at(context.stage);
        (origin.host, origin.provider) = (context.host, context.provider);
        self.0.classifier.classify(reply, origin)
    }

    /// The rules that a refusal matches, in order, with their index in [`Policy::reply_rules`]: pattern, conditions
    /// and stage; `after` is not asked.
    ///
    /// ```
    /// # use postrider::policy::{Policy, ReplyContext};
    /// # use postrider::reply::Stage;
    /// let policy = Policy::from_toml("[[reply-rule]]\nname = 'busy'\nmatch = 'busy'\nactions = 'mode=backoff'\nafter = '9/h'")?;
    /// let context = ReplyContext::new("example.com", "example.com", Stage::Rcpt);
    /// let mut matching = policy.matching_rules("450 4.2.1 Mailbox busy", &context);
    /// assert_eq!(matching.next().map(|(_, rule)| &**rule.name()), Some("busy"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn matching_rules(
        &self,
        reply: &str,
        context: &ReplyContext<'_>,
    ) -> impl Iterator<Item = (usize, &ReplyRule)> {
        let acts =
            |rule: &ReplyRule| rule.actions().iter().any(|action| rule.applies_at(action, context.stage));
        // Read once, when a rule asks.
        let read = OnceCell::new();
        let reason = move || *read.get_or_init(|| self.classify(reply, context).reason);
        self.0.reply_rules.matching(reply).filter(move |(_, rule)| acts(rule) && rule.holds(context, &reason))
    }

    /// What the rules say of a refusal, 4xx or 5xx, by a receiver. `reply` is folded to one line, as
    /// [`Reply`](crate::reply::Reply) displays it.
    ///
    /// A rule counts when its pattern matches, its conditions hold and one of its actions is
    /// [for this stage](ReplyRule::applies_at). Rules are taken in order and add what does not conflict with an
    /// earlier rule; [`RuleDecision`] says what conflicts.
    ///
    /// `after` answers whether a rule with [`Conditions::after`](super::Conditions::after) has matched often
    /// enough. It is given the rule's index in [`Policy::reply_rules`] and the rate, and asked last, at most once
    /// for a rule: being asked is one match, which it counts.
    ///
    /// Takes time linear in the reply, and in the conditions of the rules that match.
    ///
    /// ```
    /// # use postrider::policy::{Action, Fate, Policy, ReplyContext, ReplyRule};
    /// # use postrider::reply::Stage;
    /// let policy = Policy::new().with_reply_rule(ReplyRule::new("quota", "over quota", [Action::BounceRecipient])?)?;
    /// let context = ReplyContext::new("gmail.com", "gmail.com", Stage::Rcpt);
    /// let decision = policy.decide_reply("452 4.2.2 The account is over quota", &context, |_, _| true);
    /// assert_eq!(decision.fate, Some((Fate::BounceRecipient, "quota".into())));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn decide_reply(
        &self,
        reply: &str,
        context: &ReplyContext<'_>,
        mut after: impl FnMut(usize, Rate) -> bool,
    ) -> RuleDecision {
        let mut decision = RuleDecision::default();
        for (index, rule) in self.matching_rules(reply, context) {
            if rule.conditions().after.is_none_or(|rate| after(index, rate)) {
                decision.add(rule, context.stage);
            }
        }
        decision
    }

    /// The rule by which the queue leaves backoff upon this reply, the first with `mode=normal` that counts.
    /// Other actions do nothing here: it is for positive replies, 2xx, and cheap where no rule is about them.
    ///
    /// `after` is as in [`Policy::decide_reply`].
    ///
    /// ```
    /// # use postrider::policy::{Action, Policy, ReplyContext, ReplyRule};
    /// # use postrider::reply::Stage;
    /// let policy = Policy::new().with_reply_rule(ReplyRule::new("well", "^250 ", [Action::LeaveBackoff])?)?;
    /// let context = ReplyContext::new("example.com", "example.com", Stage::Dot);
    /// assert_eq!(policy.leaves_backoff("250 2.0.0 queued", &context, |_, _| true), Some("well".into()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn leaves_backoff(
        &self,
        reply: &str,
        context: &ReplyContext<'_>,
        mut after: impl FnMut(usize, Rate) -> bool,
    ) -> Option<Arc<str>> {
        // One by one: those few patterns take less time than the whole set.
        let rules = &self.0.reply_rules;
        let leaving = rules.leaving.iter().filter_map(|index| Some((*index, rules.rules.get(*index)?)));
        let mut leaving = leaving.filter(|(_, rule)| {
            rule.applies_at(&Action::LeaveBackoff, context.stage)
                && rule.holds(context, &|| self.classify(reply, context).reason)
                && rule.matches(reply)
        });
        let (_, rule) = leaving.find(|(index, rule)| {
            let rate = rule.conditions().after;
            rate.is_none_or(|rate| after(*index, rate))
        })?;
        Some(rule.name().clone())
    }
}
