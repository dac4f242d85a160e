//! What kind of failure a reply tells of: [`Classifier`].

mod matcher;
mod phrase;
mod rule;
#[cfg(test)]
mod tests;
mod words;

use std::fmt;
use std::sync::{Arc, LazyLock};

use matcher::Matcher;
pub(crate) use phrase::Phrase;
pub use phrase::PhraseError;
pub(crate) use rule::ClassificationRule;
use rule::Known;
use words::Words;

use super::{EnhancedStatus, Stage};
use crate::event::{Category, Reason};
use crate::policy::NamePattern;

/// The rules that every classifier has.
const RULES: &str = include_str!("rules.toml");

static BUILT_IN: LazyLock<Classifier> = LazyLock::new(|| {
    // A test sees to it that they can be read.
    let rules = crate::policy::read_classification(RULES).unwrap_or_default();
    Classifier::compile(rules, None).unwrap_or_else(|_| Classifier(Arc::default()))
});

/// Reads from a reply what kind of failure it tells of.
///
/// Rules look for words, enhanced statuses and codes; the first that holds gives the reason. They are asked in the order
/// of what their evidence is worth: words of a provider that is known by its hosts, then words that anybody uses, then
/// enhanced statuses that mean one thing, then those that are used for many, then the code ([`Confidence`]). Words go
/// before statuses since 5.7.1 and 5.1.1 are said of nearly everything. Within each the order of the rules counts.
///
/// Some 140 rules are built in, for replies in a dozen languages. A policy file adds rules of its own, which
/// go before those of equal evidence: see [`Policy::classifier`](crate::policy::Policy::classifier).
///
/// Takes time linear in the first 63 words of the reply; more is not read. Cheap to clone.
///
/// ```
/// # use postrider::event::{Category, Reason};
/// # use postrider::reply::{Classifier, Origin, Stage};
/// let classifier = Classifier::default();
/// let found = classifier.classify("550 5.7.1 Sorry, that mailbox is full", Origin::at(Stage::Rcpt));
/// assert_eq!((found.category(), found.reason), (Category::QuotaIssues, Reason::MailboxFull));
/// assert_eq!(&*found.rule, "mailbox-full");
/// ```
#[derive(Clone)]
pub struct Classifier(Arc<Compiled>);

/// Rules as a file has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClassificationRules {
    pub(crate) rules: Vec<ClassificationRule>,
    /// Names, and the hosts of each.
    pub(crate) providers: Vec<(Arc<str>, Vec<NamePattern>)>,
}

#[derive(Default)]
struct Compiled {
    /// What was added to the rules that are built in.
    own: ClassificationRules,
    /// Best evidence first.
    rules: Vec<ClassificationRule>,
    providers: Vec<(Arc<str>, Vec<NamePattern>)>,
    /// The phrases, by the place of their rule.
    matcher: Matcher,
    /// The places of the rules without phrases.
    wordless: Vec<usize>,
}

/// What a reply tells of, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Classification {
    /// The reason. It belongs to a [category](Self::category).
    pub reason: Reason,
    /// What that was read from.
    pub confidence: Confidence,
    /// The rule that said so; `none` if no rule did.
    pub rule: Arc<str>,
}

impl Classification {
    /// The kind of failure that the reason belongs to.
    pub const fn category(&self) -> Category {
        self.reason.category()
    }
}

/// What a classification was read from, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Confidence {
    /// The code alone.
    Code,
    /// An enhanced status that is used for many things.
    WeakStatus,
    /// An enhanced status that means one thing.
    Status,
    /// Words.
    Text,
    /// Words of a provider that is known by its host.
    ProviderText,
}

impl Confidence {
    /// In lower case: `code`, `weak-status`, `status`, `text`, `provider-text`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::WeakStatus => "weak-status",
            Self::Status => "status",
            Self::Text => "text",
            Self::ProviderText => "provider-text",
        }
    }
}

/// Where a reply came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin<'a> {
    /// What it answers; `None`: no rule that names stages holds.
    pub stage: Option<Stage>,
    /// The name of the host that sent it.
    pub host: Option<&'a str>,
    /// The provider, where it is known otherwise than by the host.
    pub provider: Option<&'a str>,
}

impl<'a> Origin<'a> {
    /// A reply at `stage`, of whatever host.
    pub fn at(stage: Stage) -> Self {
        Self { stage: Some(stage), ..Self::default() }
    }

    /// The name of the host that sent it.
    #[must_use]
    pub fn with_host(mut self, host: &'a str) -> Self {
        self.host = Some(host);
        self
    }

    /// The name of the provider, as in the rules.
    #[must_use]
    pub fn with_provider(mut self, provider: &'a str) -> Self {
        self.provider = Some(provider);
        self
    }
}

/// Those that are built in.
impl Default for Classifier {
    fn default() -> Self {
        BUILT_IN.clone()
    }
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own: Vec<_> = self.0.own.rules.iter().map(|rule| &*rule.name).collect();
        f.debug_struct("Classifier").field("own", &own).field("rules", &self.0.rules.len()).finish()
    }
}

/// Whether they have the same rules.
impl PartialEq for Classifier {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.own == other.0.own && self.0.rules == other.0.rules)
    }
}

/// Why rules were refused that can each be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OwnRulesError {
    #[error("has phrases that are too many together: leave rules out")]
    TooManyPhrases,
    #[error("names the provider \"{}\", which has no [[provider]]", .0.escape_debug())]
    UnknownProvider(Arc<str>),
}

impl Classifier {
    /// Puts rules before those that are built in with equal evidence. One with the name of another replaces it.
    pub(crate) fn with_own(own: ClassificationRules) -> Result<Self, OwnRulesError> {
        if own == ClassificationRules::default() {
            return Ok(Self::default());
        }
        Self::compile(own, Some(&BUILT_IN.0))
    }

    fn compile(own: ClassificationRules, built_in: Option<&Compiled>) -> Result<Self, OwnRulesError> {
        let is_own = |name: &Arc<str>| own.rules.iter().any(|rule| rule.name == *name);
        let mut rules = own.rules.clone();
        let mut providers = own.providers.clone();
        if let Some(built_in) = built_in {
            rules.extend(built_in.rules.iter().filter(|rule| !is_own(&rule.name)).cloned());
            providers.extend(built_in.providers.iter().cloned());
        }
        // Of equal evidence one's own go first.
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.confidence()));
        let is_known = |name: &Arc<str>| providers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
        if let Some(unknown) = rules.iter().flat_map(|rule| &rule.providers).find(|name| !is_known(name)) {
            return Err(OwnRulesError::UnknownProvider(unknown.clone()));
        }
        let numbered = || (0..).zip(&rules);
        let phrases =
            numbered().flat_map(|(place, rule)| rule.phrases.iter().map(move |phrase| (place, phrase)));
        let matcher = Matcher::new(phrases).ok_or(OwnRulesError::TooManyPhrases)?;
        let wordless =
            (0..).zip(&rules).filter(|(_, rule)| rule.phrases.is_empty()).map(|(place, _)| place).collect();
        Ok(Self(Arc::new(Compiled { own, rules, providers, matcher, wordless })))
    }

    /// What a refusal tells of. `reply` is folded to one line, `code [enhanced] text`, as
    /// [`Reply`](super::Reply) displays it.
    pub fn classify(&self, reply: &str, origin: Origin<'_>) -> Classification {
        let folded = Folded::read(reply);
        let words = Words::read(folded.text);
        // A status of the reply's own says more than one among its words, save when it says nothing.
        let own = folded.status.filter(|status| (status.subject, status.detail) != (0, 0));
        let compiled = &*self.0;
        let provider = || origin.provider.or_else(|| self.provider_of(origin.host?));
        let known = Known {
            code: folded.code,
            status: own.or(words.status()).or(folded.status),
            stage: origin.stage,
            provider: &provider,
        };
        let mut best: Option<(usize, &ClassificationRule)> = None;
        compiled.matcher.find(&words, |place| {
            let place = place as usize;
            if best.is_none_or(|(found, _)| place < found)
                && let Some(rule) = compiled.rules.get(place).filter(|rule| rule.holds(&known))
            {
                best = Some((place, rule));
            }
        });
        for &place in &compiled.wordless {
            if best.is_some_and(|(found, _)| found < place) {
                break;
            }
            if let Some(rule) = compiled.rules.get(place).filter(|rule| rule.holds(&known)) {
                best = Some((place, rule));
                break;
            }
        }
        best.map_or_else(Classification::nothing, |(_, rule)| Classification {
            reason: rule.reason,
            confidence: rule.confidence(),
            rule: rule.name.clone(),
        })
    }

    /// The provider that a host belongs to, by its name.
    pub fn provider_of(&self, host: &str) -> Option<&str> {
        let mut providers = self.0.providers.iter();
        let (name, _) = providers.find(|(_, hosts)| hosts.iter().any(|pattern| pattern.matches(host)))?;
        Some(name)
    }

    /// The names of the rules, in the order they are asked in, and the reason that each gives.
    pub fn rules(&self) -> impl Iterator<Item = (&Arc<str>, Reason)> {
        self.0.rules.iter().map(|rule| (&rule.name, rule.reason))
    }
}

impl Classification {
    fn nothing() -> Self {
        static NONE: LazyLock<Arc<str>> = LazyLock::new(|| "none".into());
        Self { reason: Reason::Unspecified, confidence: Confidence::Code, rule: NONE.clone() }
    }
}

/// A reply on one line, taken apart.
pub(crate) struct Folded<'a> {
    /// Zero: it is no reply.
    pub(crate) code: u16,
    pub(crate) status: Option<EnhancedStatus>,
    text: &'a str,
}

impl<'a> Folded<'a> {
    pub(crate) fn read(reply: &'a str) -> Self {
        let first = |text: &'a str| text.split_once(' ').unwrap_or((text, ""));
        let (code, rest) = first(reply);
        let Some(code) = code.parse().ok().filter(|code| (200..600).contains(code)) else {
            return Self { code: 0, status: None, text: reply };
        };
        let (status, text) = first(rest);
        match status.parse() {
            Ok(status) => Self { code, status: Some(status), text },
            Err(_) => Self { code, status: None, text: rest },
        }
    }
}
