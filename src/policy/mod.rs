//! Policies: how mail is sent, as typed settings or as a policy file.
//!
//! A [`Policy`] answers what the engine asks: the [settings](Policy::settings) of a queue, the
//! [source](Policy::choose_source) of a message, the [rollup](Policy::rollup_for) of a domain, what
//! [reply rules](Policy::decide_reply) say of a reply, the limit of an [address](Policy::ip_connection_limit). It does nothing itself: no clock, no I/O. It is built in Rust
//! with `with_*`, or read from TOML ([`Policy::from_toml`]; with the places of the parts, [`Config::from_toml`]).
//! Either way it is valid: what is out of range or contradicts itself is refused when it is added.
//!
//! ```
//! use postrider::policy::{DomainSettings, Policy, RetryAfter, Source};
//! use std::time::Duration;
//!
//! let minutes = [5, 10, 30].map(|m| Duration::from_secs(60 * m));
//! let policy = Policy::new()
//!     .with_source(Source::new("out1").with_address("192.0.2.1".parse()?))?
//!     .with_domain("*", DomainSettings::new().with_retry_after(RetryAfter::new(minutes)?))?
//!     .with_domain("example.com", DomainSettings::new().with_max_smtp_out(2))?;
//! let settings = policy.settings("example.com", "out1");
//! assert_eq!(settings.max_smtp_out, Some(2));
//! assert_eq!(settings.retry_after.interval(7), Duration::from_secs(30 * 60));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Testing a policy
//!
//! All of it is plain functions of values, without runtime, clock and network: the engine calls the same ones. So a
//! unit test of a host can ask its policy what it will do:
//!
//! | Question | Function |
//! |---|---|
//! | Which settings has a queue? | [`Policy::settings`]; those in backoff: [`QueueSettings::in_force`] |
//! | What becomes of mail by what DNS says? | [`QueueSettings::dns_verdict`] |
//! | When is a message tried? | [`QueueSettings::attempt_ages`]; one interval: [`RetryAfter::interval`], [`with_jitter`] |
//! | What follows a failed attempt? | [`QueueSettings::retry`] |
//! | What do the rules make of a reply? | [`Policy::decide_reply`], [`RuleDecision::verdict`]; which match: [`Policy::matching_rules`] |
//! | Does a delivery end backoff? | [`Policy::leaves_backoff`] |
//! | Which limit has an address, a host? | [`Policy::ip_connection_limit`], [`Policy::mx_connection_limit`] |
//! | In which queue is a domain, and which hosts does it go to? | [`Policy::placement`] |
//! | Which source has a message? | [`Policy::choose_source`], [`Policy::substitute_source`] |
//!
//! Whole logs of replies go through new rules with `postrider::testing::Replay` (feature `testing`).
//!
//! # The five delivery controls, in Rust and as a file
//!
//! | Control | In Rust | In a file |
//! |---|---|---|
//! | domains without MX | [`NoMx`], [`NxDomain`] | `bounce-upon-no-mx`, `bounce-upon-nxdomain` |
//! | increasing retry intervals | [`RetryAfter`] | `retry-after` |
//! | bounces on specific 4xx replies | [`ReplyRule`] | `[[reply-rule]]` |
//! | connections per destination IP | [`IpConnectionLimit`] | `[[ip-connection-limit]]` |
//! | rollup queues by MX records | [`RollupRule`] | `[[rollup]]` |
//!
//! ```
//! use postrider::policy::{
//!     Action, DomainSettings, IpConnectionLimit, NoMx, Policy, ReplyRule, RetryAfter, RollupRule,
//! };
//! use std::time::Duration;
//!
//! const MINUTE: Duration = Duration::from_secs(60);
//! let everywhere = DomainSettings::new()
//!     .with_bounce_upon_no_mx(NoMx::After(60 * MINUTE))
//!     .with_retry_after(RetryAfter::new([5, 10, 15, 30, 60].map(|minutes| minutes * MINUTE))?);
//! let over_quota = ReplyRule::new("over-quota", r"^452 4\.2\.2 .*over ?quota", [Action::BounceRecipient])?;
//! let policy = Policy::new()
//!     .with_domain("*", everywhere)?
//!     .with_reply_rule(over_quota)?
//!     .with_ip_connection_limit(IpConnectionLimit::new("192.0.2.0/24".parse()?, 10))?
//!     .with_rollup(RollupRule::new("google.rollup".parse()?, ["*.google.com".parse()?])?)
//!     .with_domain("google.rollup", DomainSettings::new().with_max_smtp_out(50))?;
//!
//! let file = r#"
//!     [domain."*"]
//!     bounce-upon-no-mx = "1h"
//!     retry-after = ["5m", "10m", "15m", "30m", "1h"]
//!     [[reply-rule]]
//!     name = "over-quota"
//!     match = '^452 4\.2\.2 .*over ?quota'
//!     actions = ["bounce-rcpt"]
//!     [[ip-connection-limit]]
//!     cidr = "192.0.2.0/24"
//!     limit = 10
//!     [[rollup]]
//!     queue = "google.rollup"
//!     mx = ["*.google.com"]
//!     [domain."google.rollup"]
//!     max-smtp-out = 50
//! "#;
//! assert_eq!(policy, Policy::from_toml(file)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod choices;
mod cidr;
mod count;
mod credentials;
mod dns_verdict;
mod domains;
mod error;
mod file;
mod hosts;
mod limits;
mod pattern;
mod placement;
mod recommended;
mod reply_rule;
mod retry;
mod rollup;
mod schedule;
mod settings;
mod smtp;
mod source;
#[cfg(test)]
mod tests;
mod unbuilt;
mod value;
mod verdict;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

pub use choices::{IpFamily, NoMx, NoMxLiveHost, NxDomain, PolicyBase, StartTls};
pub use cidr::{Cidr, CidrError};
pub(crate) use count::SlidingCount;
pub use credentials::{Credentials, Password};
pub use dns_verdict::DnsVerdict;
pub use error::{ConfigError, PolicyError, PolicyErrorKind};
pub use file::Config;
pub(crate) use file::read_classification;
pub use hosts::{FixedHost, FixedHostError, HostName};
pub use limits::{IpConnectionLimit, MxConnectionLimit};
pub use pattern::{NamePattern, PatternError};
pub use placement::Placement;
pub use reply_rule::{
    Action, ActionError, BackoffChange, Conditions, Fate, ReplyContext, ReplyRule, ReplyRuleError,
    ReplyVerdict, RuleDecision,
};
pub use retry::{RetryAfter, RetryAfterError, with_jitter};
pub use rollup::{RollupError, RollupMatch, RollupName, RollupNameError, RollupRule};
pub use schedule::{InForce, Retry, RetryContext};
pub use settings::{DomainSettings, QueueSettings};
pub use smtp::SmtpSettings;
pub(crate) use smtp::default_prohibited;
pub use source::{Pool, Source, UnknownSource};
pub(crate) use value::Written;
pub use value::{DurationError, MAX_DURATION, Rate, RateError, parse_duration};
pub use verdict::{Scope, Suppression, Verdict};

use crate::message::{MessageId, normal_name};
use crate::reply::Classifier;
use domains::DomainRules;
use error::dotted;
use limits::{IpLimits, MxLimits};
use reply_rule::ReplyRules;

/// How mail is sent: sources, limits, schedules, rules.
///
/// Immutable once built, and cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy(Arc<Inner>);

#[derive(Clone, Debug, PartialEq)]
struct Inner {
    base: PolicyBase,
    max_connections: u32,
    smtp: SmtpSettings,
    prohibited: Vec<Cidr>,
    domains: DomainRules,
    sources: BTreeMap<Arc<str>, Source>,
    default_source: Arc<str>,
    /// The only source is the one there is when none was named.
    implied: bool,
    pools: BTreeMap<Arc<str>, Pool>,
    /// Those of the base come last.
    rollups: Vec<RollupRule>,
    base_rollups: usize,
    ip_limits: IpLimits,
    mx_limits: MxLimits,
    reply_rules: ReplyRules,
    classifier: Classifier,
}

/// All defaults; see [`QueueSettings`] for those of queues.
impl Default for Policy {
    fn default() -> Self {
        let source = Source::new("default");
        Self(Arc::new(Inner {
            base: PolicyBase::None,
            max_connections: 1200,
            smtp: SmtpSettings::default(),
            prohibited: smtp::default_prohibited(),
            domains: DomainRules::default(),
            default_source: source.name().clone(),
            sources: BTreeMap::from([(source.name().clone(), source)]),
            implied: true,
            pools: BTreeMap::new(),
            rollups: Vec::new(),
            base_rollups: 0,
            ip_limits: IpLimits::default(),
            mx_limits: MxLimits::default(),
            reply_rules: ReplyRules::default(),
            classifier: Classifier::default(),
        }))
    }
}

/// Building. Every `with_*` that can fail says with a [`PolicyError`] what is out of range, given twice, unknown,
/// or not built yet.
impl Policy {
    /// A policy of defaults that suit sending to the internet: one source named `default`, without address.
    pub fn new() -> Self {
        Self::default()
    }

    /// Conservative limits, rollups and reply rules for the big mailbox providers, each with its reason: the file
    /// `src/policy/recommended.toml`. What is added lies over it: of the same exactness, what is added wins; a reply
    /// rule of the same name takes the other's place, and added rules and rollups are asked first.
    ///
    /// ```
    /// # use postrider::policy::{DomainSettings, Policy};
    /// let policy = Policy::recommended().with_domain("google.rollup", DomainSettings::new().with_max_smtp_out(3))?;
    /// assert_eq!(policy.settings("google.rollup", "default").max_smtp_out, Some(3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recommended() -> Self {
        recommended::policy()
    }

    /// Reads a policy file. The whole file is validated, also its parts that only a [`Config`] needs.
    ///
    /// # Errors
    /// [`PolicyError`] names line, key and value of one mistake, and what would be right.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        file::policy_from_toml(text)
    }

    /// Connections of the whole engine, 1 or more. Default: 1200.
    ///
    /// # Errors
    /// The limit is zero.
    #[doc(alias = "total-max-smtp-out")]
    pub fn with_max_connections(mut self, limit: u32) -> Result<Self, PolicyError> {
        settings::at_least_one(&limit)
            .map_err(|problem| PolicyError::invalid("engine.max-connections", limit, problem))?;
        self.inner().max_connections = limit;
        Ok(self)
    }

    /// Port and timeouts.
    ///
    /// # Errors
    /// The port is zero, or a timeout is zero or over an hour.
    pub fn with_smtp(mut self, smtp: SmtpSettings) -> Result<Self, PolicyError> {
        if smtp.port == 0 {
            return Err(PolicyError::invalid("smtp.port", 0, "is no port: write 1 to 65535"));
        }
        let mut timeouts = smtp.timeouts;
        for (key, _, phase) in smtp::PHASES {
            let timeout = *phase(&mut timeouts);
            smtp::check_timeout(&timeout)
                .map_err(|problem| PolicyError::invalid(format!("smtp.{key}"), Written(timeout), problem))?;
        }
        self.inner().smtp = smtp;
        Ok(self)
    }

    /// Replaces the addresses that are never tried when they come from DNS. Default: unspecified, loopback,
    /// link-local, multicast.
    pub fn with_prohibited_addresses(mut self, ranges: impl IntoIterator<Item = Cidr>) -> Self {
        self.inner().prohibited = ranges.into_iter().collect();
        self
    }

    /// Adds a source. The first one added is the default, and takes the place of the implied one.
    ///
    /// # Errors
    /// The name or an address can not be used, or the name is taken.
    pub fn with_source(mut self, source: Source) -> Result<Self, PolicyError> {
        self.inner().add_source(source)?;
        Ok(self)
    }

    /// Adds a pool of sources that were added before.
    ///
    /// # Errors
    /// The name can not be used or is taken; the pool is empty, names a source twice, or one that is unknown; a
    /// weight is out of range.
    pub fn with_pool(mut self, pool: Pool) -> Result<Self, PolicyError> {
        self.inner().add_pool(pool)?;
        Ok(self)
    }

    /// Settings for `domain`: `*`, `*.example.com` (all below it), `example.com` or `name.rollup`. Of several that
    /// apply, the more exact wins, setting by setting; the order of adding plays no part.
    ///
    /// # Errors
    /// Not a domain, settings given already, a value out of range, or a feature that is not built.
    pub fn with_domain(mut self, domain: &str, settings: DomainSettings) -> Result<Self, PolicyError> {
        unbuilt::refuse_settings(&dotted("domain", domain), &settings)?;
        self.inner().domains.add("domain", domain, settings)?;
        Ok(self)
    }

    /// Appends a rollup rule. Rules are ordered: the first that matches a domain wins.
    #[doc(alias = "mx-rollup")]
    pub fn with_rollup(mut self, rule: RollupRule) -> Self {
        self.inner().add_rollup(rule);
        self
    }

    /// Limits connections to addresses.
    ///
    /// # Errors
    /// The limit is zero, or the range has one already.
    pub fn with_ip_connection_limit(mut self, limit: IpConnectionLimit) -> Result<Self, PolicyError> {
        self.inner().add_ip_limit(limit)?;
        Ok(self)
    }

    /// Limits connections to hosts by name.
    ///
    /// # Errors
    /// The limit is zero, or the pattern has one already.
    pub fn with_mx_connection_limit(mut self, limit: MxConnectionLimit) -> Result<Self, PolicyError> {
        self.inner().add_mx_limit(limit)?;
        Ok(self)
    }

    /// Appends a reply rule. Compiles all rules anew: [`Policy::with_reply_rules`] takes many at once.
    ///
    /// # Errors
    /// As [`Policy::with_reply_rules`].
    pub fn with_reply_rule(self, rule: ReplyRule) -> Result<Self, PolicyError> {
        self.with_reply_rules([rule])
    }

    /// Appends reply rules.
    ///
    /// # Errors
    /// A name can not be used or is taken, or all patterns together take more than 16 MiB compiled.
    pub fn with_reply_rules(
        mut self,
        rules: impl IntoIterator<Item = ReplyRule>,
    ) -> Result<Self, PolicyError> {
        for rule in rules {
            self.inner().add_reply_rule(rule)?;
        }
        self.inner().reply_rules.compile()?;
        Ok(self)
    }

    /// Replaces the rules by which replies are read before those that are built in: `[[classification-rule]]` and
    /// `[[provider]]`, as in a policy file. See [`Classifier`].
    ///
    /// # Errors
    /// [`PolicyError`] names line, key and value of one mistake, and what would be right.
    pub fn with_classification_rules(mut self, toml: &str) -> Result<Self, PolicyError> {
        let own = read_classification(toml)?;
        let refused = |error| PolicyError::contradiction("classification-rule", error);
        self.inner().classifier = Classifier::with_own(own).map_err(refused)?;
        Ok(self)
    }

    fn inner(&mut self) -> &mut Inner {
        Arc::make_mut(&mut self.0)
    }
}

/// What the engine asks.
impl Policy {
    /// All settings of a queue of a source: the defaults, overwritten by those for `*`, for wildcards from short
    /// to long, for the name itself; then by the source's own, in the same order.
    ///
    /// `queue` is a domain or `name.rollup`. Case, a trailing dot and U-labels do not matter. A source the policy does
    /// not have has no settings of its own. Takes time in the number of the queue's labels and of the
    /// settings: for once per queue, not once per message.
    ///
    /// ```
    /// # use postrider::Policy;
    /// let policy = Policy::from_toml("[domain.'*']\nmax-smtp-out = 9\n[domain.'example.com']\nmax-smtp-out = 2")?;
    /// assert_eq!(policy.settings("example.com", "default").max_smtp_out, Some(2));
    /// assert_eq!(policy.settings("Example.COM.", "default").max_smtp_out, Some(2));
    /// assert_eq!(policy.settings("example.org", "default").max_smtp_out, Some(9));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn settings(&self, queue: &str, source: &str) -> QueueSettings {
        let mut settings = QueueSettings::default();
        let queue = normal_name(queue);
        self.0.domains.apply(&queue, &mut settings);
        if let Some(source) = self.0.sources.get(source) {
            source.domains.apply(&queue, &mut settings);
        }
        settings
    }

    /// Whether this queue's settings differ from those that all queues of its source have.
    pub(crate) fn has_own_settings(&self, queue: &str, source: &str) -> bool {
        let of_source = self.0.sources.get(source).map(|source| &source.domains);
        of_source.into_iter().chain([&self.0.domains]).any(|domains| domains.tell_apart(queue))
    }

    /// The source of this name, if the policy has it.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.0.sources.get(name)
    }

    /// The source of messages that ask for none: the first one added.
    pub fn default_source(&self) -> &Arc<str> {
        &self.0.default_source
    }

    /// All sources, by name.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.0.sources.values()
    }

    /// The pool of this name, if the policy has it.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.0.pools.get(name)
    }

    /// All pools, by name.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.0.pools.values()
    }

    /// The source for a message: the one requested; one of the pool requested, always the same for this message;
    /// or, if nothing is requested, the policy's first.
    ///
    /// # Errors
    /// [`UnknownSource`]: `requested` is neither a source nor a pool.
    ///
    /// ```
    /// # use postrider::Policy;
    /// let policy = Policy::from_toml("[[source]]\nname = 'out1'\n[[pool]]\nname = 'bulk'\nsources = ['out1']")?;
    /// let message = "018bcfe5-6800-7000-8000-000000000001".parse()?;
    /// assert_eq!(&*policy.choose_source(Some("bulk"), &message)?, "out1");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn choose_source(
        &self,
        requested: Option<&str>,
        message: &MessageId,
    ) -> Result<Arc<str>, UnknownSource> {
        let Some(name) = requested else { return Ok(self.0.default_source.clone()) };
        let source = self.0.sources.get(name).map(Source::name);
        let source = source.or_else(|| self.0.pools.get(name).and_then(|pool| pool.draw(message)));
        source.cloned().ok_or_else(|| UnknownSource { name: name.to_owned() })
    }

    /// The source of `pool` from which the mail of `domain` goes while its own source `instead_of` may not be used:
    /// one of the `usable`, always the same for a domain. `None`: no such pool, or no source of it is usable.
    ///
    /// ```
    /// # use postrider::policy::{Policy, Pool, Source};
    /// let policy = Policy::new().with_source(Source::new("out1"))?.with_source(Source::new("out2"))?;
    /// let policy = policy.with_pool(Pool::new("bulk").with_source("out1").with_source("out2"))?;
    /// let other = policy.substitute_source("bulk", "example.com", "out1", |source| source != "out1");
    /// assert_eq!(other.as_deref(), Some("out2"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn substitute_source(
        &self,
        pool: &str,
        domain: &str,
        instead_of: &str,
        usable: impl Fn(&str) -> bool,
    ) -> Option<Arc<str>> {
        let usable = |name: &str| self.0.sources.contains_key(name) && usable(name);
        self.0.pools.get(pool)?.draw_by_name(&format!("{domain}/{instead_of}"), usable).cloned()
    }

    /// Connections of the whole engine.
    pub fn max_connections(&self) -> u32 {
        self.0.max_connections
    }

    /// Port and timeouts.
    pub fn smtp(&self) -> &SmtpSettings {
        &self.0.smtp
    }

    /// Ranges of addresses that are never tried when DNS names them.
    #[doc(alias = "prohibited-addresses")]
    pub fn prohibited(&self) -> &[Cidr] {
        &self.0.prohibited
    }

    /// Whether `address` is never tried when it comes from DNS (fixed hosts are the host's own choice).
    pub fn is_prohibited(&self, address: IpAddr) -> bool {
        self.0.prohibited.iter().any(|range| range.contains(address))
    }

    /// The rollup rules, in order.
    pub fn rollups(&self) -> &[RollupRule] {
        &self.0.rollups
    }

    /// The reply rules, in order.
    pub fn reply_rules(&self) -> &[ReplyRule] {
        self.0.reply_rules.as_slice()
    }

    /// What it reads from replies.
    pub fn classifier(&self) -> &Classifier {
        &self.0.classifier
    }

    /// The settings the policy starts from.
    pub fn base(&self) -> PolicyBase {
        self.0.base
    }
}

/// Adding, with all checks but the one for what is not built: the file's reader makes that one last.
impl Inner {
    fn add_source(&mut self, source: Source) -> Result<(), PolicyError> {
        let name = source.name().clone();
        self.check_new_name(&source.path(), &name)?;
        let v4 = source.ipv4().map(IpAddr::V4);
        for address in v4.into_iter().chain(source.ipv6().map(IpAddr::V6)) {
            source::check_address(address)
                .map_err(|problem| PolicyError::invalid(source.path() + ".address", address, problem))?;
        }
        if self.implied {
            self.implied = false;
            self.sources.clear();
            self.default_source = name.clone();
        }
        self.sources.insert(name, source);
        Ok(())
    }

    fn add_pool(&mut self, pool: Pool) -> Result<(), PolicyError> {
        self.check_new_name(&pool.path(), pool.name())?;
        let path = || pool.path() + ".sources";
        let mut seen = std::collections::BTreeSet::new();
        for (source, weight) in pool.sources() {
            let quoted = format!("\"{}\"", source.escape_debug());
            Pool::check_weight(weight).map_err(|problem| PolicyError::invalid(path(), weight, problem))?;
            let problem = if self.pools.contains_key(source) {
                "is a pool: name its sources"
            } else if self.implied || !self.sources.contains_key(source) {
                "is unknown: a pool's sources are defined by [[source]]"
            } else if !seen.insert(source) {
                "stands there twice: give it a weight instead"
            } else {
                continue;
            };
            return Err(PolicyError::contradiction(path(), problem).with_value(quoted));
        }
        if seen.is_empty() {
            return Err(PolicyError::invalid(path(), "[]", "is an empty list: name at least one source"));
        }
        drop(seen);
        self.pools.insert(pool.name().clone(), pool);
        Ok(())
    }

    fn check_new_name(&self, path: &str, name: &str) -> Result<(), PolicyError> {
        let quoted = format!("\"{}\"", name.escape_debug());
        source::check_name(name).map_err(|problem| PolicyError::invalid(path, &quoted, problem))?;
        let problem = if self.pools.contains_key(name) {
            "is the name of a pool already: sources and pools share one set of names"
        } else if !self.implied && self.sources.contains_key(name) {
            "is the name of a source already: sources and pools share one set of names"
        } else {
            return Ok(());
        };
        Err(PolicyError::contradiction(path, problem).with_value(quoted))
    }

    fn add_ip_limit(&mut self, limit: IpConnectionLimit) -> Result<(), PolicyError> {
        let path = dotted("ip-connection-limit", &limit.cidr.to_string());
        check_connection_limit(&path, limit.limit)?;
        match self.ip_limits.insert(limit) {
            true => Ok(()),
            false => Err(PolicyError::contradiction(path, "this range has a limit already: leave one out")),
        }
    }

    fn add_mx_limit(&mut self, limit: MxConnectionLimit) -> Result<(), PolicyError> {
        let path = dotted("mx-connection-limit", &limit.mx.to_string());
        check_connection_limit(&path, limit.limit)?;
        match self.mx_limits.insert(limit) {
            true => Ok(()),
            false => Err(PolicyError::contradiction(path, "these hosts have a limit already: leave one out")),
        }
    }

    fn add_rollup(&mut self, rule: RollupRule) {
        let own = self.rollups.len().saturating_sub(self.base_rollups);
        self.rollups.insert(own, rule);
    }

    /// To be followed by compiling them, once for all that are added.
    fn add_reply_rule(&mut self, rule: ReplyRule) -> Result<(), PolicyError> {
        let path = dotted("reply-rule", rule.name());
        let quoted = format!("\"{}\"", rule.name().escape_debug());
        source::check_name(rule.name()).map_err(|problem| PolicyError::invalid(&path, &quoted, problem))?;
        self.reply_rules.push(rule).map_err(|_| {
            let problem = "is the name of a rule already: records name the rule, so each has its own";
            PolicyError::contradiction(path, problem).with_value(quoted)
        })
    }
}

fn check_connection_limit(path: &str, limit: u32) -> Result<(), PolicyError> {
    settings::at_least_one(&limit)
        .map_err(|problem| PolicyError::invalid(format!("{path}.limit"), limit, problem))
}
