//! Rollup rules: domains of one provider share a queue, known by its MX hosts.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Policy;
use super::choices::choice;
use super::pattern::NamePattern;
use crate::message::{Domain, normal_name};

/// The name of a rolled-up queue: `name.rollup`, in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RollupName(Arc<str>);

/// Not the name of a rollup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(r#"not the name of a rollup: write it like "google.rollup""#)]
#[non_exhaustive]
pub struct RollupNameError;

impl RollupName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RollupName {
    type Err = RollupNameError;

    fn from_str(text: &str) -> Result<Self, RollupNameError> {
        let name = Domain::parse(text).map_err(|_| RollupNameError)?;
        if name.as_str().ends_with(".rollup") { Ok(Self(name.as_str().into())) } else { Err(RollupNameError) }
    }
}

impl fmt::Display for RollupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RollupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

choice! {
    /// Which of a domain's MX hosts a rule with wildcards is compared with (`match`). A rule of names always wants
    /// all its names among those of lowest preference value.
    RollupMatch {
        /// All of lowest preference value must match. The default.
        #[default]
        Lowest = "lowest",
        /// One of them is enough.
        Any = "any",
        /// All hosts of every preference must match.
        All = "all",
    }
}

/// Domains whose MX hosts match go to one queue. Rules are ordered: the first that matches wins; two that name
/// one queue are alternatives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[doc(alias = "mx-rollup")]
pub struct RollupRule {
    queue: RollupName,
    hosts: Vec<NamePattern>,
    matching: RollupMatch,
}

/// Not a rollup rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RollupError {
    /// No host.
    #[error(r#"an empty list: name the MX hosts, like ["*.google.com"]"#)]
    NoHosts,
    /// A lone `*` would roll up every domain there is.
    #[error(r#"a list with "*", which rolls up every domain: name hosts, like ["*.google.com"]"#)]
    Everything,
    /// Names and wildcards are compared differently.
    #[error(
        "a mix of names and wildcards, which are compared differently: write two rules with the same queue"
    )]
    Mixed,
}

impl RollupRule {
    /// A rule for domains with these MX hosts: all by name, or all with wildcards.
    ///
    /// # Errors
    /// [`RollupError`]: no hosts, a lone `*`, or names mixed with wildcards.
    pub fn new(queue: RollupName, hosts: impl IntoIterator<Item = NamePattern>) -> Result<Self, RollupError> {
        let hosts: Vec<_> = hosts.into_iter().collect();
        let wildcards = hosts.iter().filter(|h| h.is_wildcard()).count();
        if hosts.is_empty() {
            Err(RollupError::NoHosts)
        } else if hosts.iter().any(NamePattern::matches_all) {
            Err(RollupError::Everything)
        } else if wildcards != 0 && wildcards != hosts.len() {
            Err(RollupError::Mixed)
        } else {
            Ok(Self { queue, hosts, matching: RollupMatch::Lowest })
        }
    }

    /// Which hosts are compared. Default: those of lowest preference value.
    #[must_use]
    pub fn with_match(mut self, matching: RollupMatch) -> Self {
        self.matching = matching;
        self
    }

    /// The queue.
    pub fn queue(&self) -> &RollupName {
        &self.queue
    }

    /// The hosts: all names or all wildcards.
    pub fn hosts(&self) -> &[NamePattern] {
        &self.hosts
    }

    /// Which hosts are compared.
    pub fn matching(&self) -> RollupMatch {
        self.matching
    }

    /// Whether a domain with these MX hosts is rolled up. `exchangers` are their names by preference, the most
    /// preferred first. A domain without any is not rolled up: that of a domain's own address is no MX.
    ///
    /// - Names: all of the rule's are among the most preferred; the domain may have more.
    /// - Wildcards: all of the most preferred match one of the rule's; with [`RollupMatch::Any`] one of them
    ///   suffices; with [`RollupMatch::All`] the hosts of every preference match.
    ///
    /// ```
    /// # use postrider::policy::RollupRule;
    /// let rule = RollupRule::new("google.rollup".parse()?, ["*.google.com".parse()?])?;
    /// assert!(rule.matches(&[vec!["aspmx.l.google.com".into()], vec!["mx.backup.example".into()]]));
    /// assert!(!rule.matches(&[vec!["mx.example".into()], vec!["aspmx.l.google.com".into()]]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn matches(&self, exchangers: &[Vec<Arc<str>>]) -> bool {
        let Some(best) = exchangers.iter().find(|level| !level.is_empty()) else { return false };
        if !self.has_wildcards() {
            return self.hosts.iter().all(|wanted| best.iter().any(|host| wanted.matches(host)));
        }
        match self.matching {
            RollupMatch::Lowest => best.iter().all(|host| self.names(host)),
            RollupMatch::Any => best.iter().any(|host| self.names(host)),
            RollupMatch::All => exchangers.iter().flatten().all(|host| self.names(host)),
        }
    }

    /// The hosts to try for a domain that is rolled up, by preference, the most preferred first.
    ///
    /// Names: the rule's, then the domain's other hosts in their preferences, for when none of the rule's can be
    /// connected. Wildcards: the domain's hosts as they are. Never a host the domain does not have; each host once.
    ///
    /// ```
    /// # use postrider::policy::RollupRule;
    /// let rule = RollupRule::new("pair.rollup".parse()?, ["mx2.example".parse()?])?;
    /// let preferences = rule.rolled_up_preferences(&[vec!["mx1.example".into(), "mx2.example".into()]]);
    /// assert_eq!(preferences, [vec!["mx2.example".into()], vec!["mx1.example".into()]]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rolled_up_preferences(&self, exchangers: &[Vec<Arc<str>>]) -> Vec<Vec<Arc<str>>> {
        let mut ours = Vec::new();
        let mut levels = Vec::new();
        let mut seen = BTreeSet::new();
        let names = !self.has_wildcards();
        for level in exchangers {
            let fresh = level.iter().filter(|host| seen.insert(normal_name(host)));
            let (first, rest): (Vec<_>, Vec<_>) = fresh.cloned().partition(|host| names && self.names(host));
            ours.extend(first);
            levels.push(rest);
        }
        levels.insert(0, ours);
        levels.retain(|level| !level.is_empty());
        levels
    }

    fn has_wildcards(&self) -> bool {
        self.hosts.iter().any(NamePattern::is_wildcard)
    }

    fn names(&self, host: &str) -> bool {
        self.hosts.iter().any(|wanted| wanted.matches(host))
    }
}

/// Which rule rolls a domain up.
impl Policy {
    /// The first rule that [matches](RollupRule::matches) a domain with these MX hosts. Takes time in the number
    /// of rules: for once per look-up of a domain.
    ///
    /// ```
    /// # use postrider::policy::{Policy, RollupRule};
    /// let rule = RollupRule::new("google.rollup".parse()?, ["*.google.com".parse()?])?;
    /// let policy = Policy::new().with_rollup(rule);
    /// let rule = policy.rollup_for(&[vec!["aspmx.l.google.com".into()]]);
    /// assert_eq!(rule.map(|rule| rule.queue().as_str()), Some("google.rollup"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rollup_for(&self, exchangers: &[Vec<Arc<str>>]) -> Option<&RollupRule> {
        self.0.rollups.iter().find(|rule| rule.matches(exchangers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn names_end_in_rollup() {
        assert_eq!("Google.Rollup.".parse::<RollupName>().unwrap().as_str(), "google.rollup");
        for bad in ["", "google", "rollup", ".rollup", "googlerollup", "*.rollup"] {
            assert_eq!(bad.parse::<RollupName>(), Err(RollupNameError), "{bad}");
        }
    }

    /// `10 mx1, 20 mx2` as names by preference.
    fn exchangers(records: &str) -> Vec<Vec<Arc<str>>> {
        let mut levels = BTreeMap::<u16, Vec<Arc<str>>>::new();
        for record in records.split(", ").filter(|record| !record.is_empty()) {
            let (preference, host) = record.split_once(' ').unwrap();
            levels.entry(preference.parse().unwrap()).or_default().push(host.into());
        }
        levels.into_values().collect()
    }

    fn rule(hosts: &str) -> RollupRule {
        let hosts = hosts.split(", ").map(|host| host.parse().unwrap());
        RollupRule::new("p.rollup".parse().unwrap(), hosts).unwrap()
    }

    #[test]
    fn names_are_all_among_the_most_preferred() {
        for (hosts, records, goes_to) in [
            ("mx1, mx2", "10 mx1, 10 mx2", Some("mx1 mx2")),
            ("mx1, mx2", "10 mx1, 20 mx2", None),
            ("mx1, mx2", "10 mx1, 10 mx2, 10 mx3", Some("mx1 mx2 | mx3")),
            ("mx1, mx2", "10 mx1", None),
            ("mx1", "10 mx1, 10 mx2", Some("mx1 | mx2")),
            ("mx1", "10 mx1, 20 mx1", Some("mx1")),
            ("mx1, mx2", "10 mx1.mail.example", None),
            // Beyond the table.
            ("mx1, mx2", "", None),
            ("mx1", "10 mx2, 20 mx1", None),
            ("mx1", "10 mx2, 10 mx1, 20 mx3, 20 mx4, 30 mx5", Some("mx1 | mx2 | mx3 mx4 | mx5")),
            ("MX1.Example.", "10 mx1.example", Some("mx1.example")),
        ] {
            // What wildcards are compared by plays no part.
            for matching in [RollupMatch::Lowest, RollupMatch::Any, RollupMatch::All] {
                let (rule, exchangers) = (rule(hosts).with_match(matching), exchangers(records));
                assert_eq!(rule.matches(&exchangers), goes_to.is_some(), "{hosts} of {records}");
                let Some(goes_to) = goes_to else { continue };
                let levels = rule.rolled_up_preferences(&exchangers);
                let levels: Vec<_> = levels.iter().map(|level| level.join(" ")).collect();
                assert_eq!(levels.join(" | "), goes_to, "{hosts} of {records}");
            }
        }
        assert!(!rule("mx1").matches(&[Vec::new()]));
        assert!(rule("mx1").matches(&[Vec::new(), vec!["mx1".into()]]), "an empty level is none");
        assert_eq!(rule("mx9").rolled_up_preferences(&exchangers("10 mx1")), exchangers("10 mx1"));
    }

    #[test]
    fn wildcards_match_as_many_as_the_rule_says() {
        for (records, lowest, any, all) in [
            ("10 a.g.com, 10 b.g.com", true, true, true),
            ("10 a.g.com, 10 b.h.com", true, true, true),
            ("10 a.g.com, 10 mx.x", false, true, false),
            ("10 a.g.com, 20 mx.x", true, true, false),
            ("10 mx.x, 20 a.g.com", false, false, false),
            ("10 g.com", false, false, false),
            ("", false, false, false),
        ] {
            let exchangers = exchangers(records);
            for (matching, want) in
                [(RollupMatch::Lowest, lowest), (RollupMatch::Any, any), (RollupMatch::All, all)]
            {
                let rule = rule("*.g.com, *.h.com").with_match(matching);
                assert_eq!(rule.matches(&exchangers), want, "{records} {matching:?}");
                assert_eq!(rule.rolled_up_preferences(&exchangers), exchangers);
            }
        }
    }

    #[test]
    fn the_first_rule_that_matches_wins() {
        let text = r#"
            [[rollup]]
            queue = "b.rollup"
            mx = ["mx1.example", "mx2.example"]
            [[rollup]]
            queue = "a.rollup"
            mx = "*.example"
            [[rollup]]
            queue = "b.rollup"
            mx = "mx.other"
        "#;
        let policy = crate::policy::file::read_unbuilt_too(text).unwrap();
        for (records, queue) in [
            ("10 mx1.example, 10 mx2.example", Some("b.rollup")),
            ("10 mx1.example", Some("a.rollup")),
            ("10 mx.other", Some("b.rollup")),
            ("10 mx.else", None),
            ("", None),
        ] {
            let rule = policy.rollup_for(&exchangers(records));
            assert_eq!(rule.map(|rule| rule.queue().as_str()), queue, "{records}");
        }
    }

    #[test]
    fn hosts_are_all_names_or_all_wildcards() {
        let rule = |hosts: &[&str]| {
            RollupRule::new("g.rollup".parse().unwrap(), hosts.iter().map(|h| h.parse().unwrap())).map(|_| ())
        };
        assert_eq!(rule(&["mx1.example", "mx2.example"]), Ok(()));
        assert_eq!(rule(&["*.google.com", "*.googlemail.com"]), Ok(()));
        assert_eq!(rule(&[]), Err(RollupError::NoHosts));
        assert_eq!(rule(&["*"]), Err(RollupError::Everything));
        assert_eq!(rule(&["mx.google.com", "*.google.com"]), Err(RollupError::Mixed));
    }
}
