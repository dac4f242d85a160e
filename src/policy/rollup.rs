//! Rollup rules: domains of one provider share a queue, known by its MX hosts.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::choices::choice;
use super::pattern::NamePattern;
use crate::message::Domain;

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
    /// Which of a domain's MX hosts a rule with wildcards is compared with (`match`).
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_in_rollup() {
        assert_eq!("Google.Rollup.".parse::<RollupName>().unwrap().as_str(), "google.rollup");
        for bad in ["", "google", "rollup", ".rollup", "googlerollup", "*.rollup"] {
            assert_eq!(bad.parse::<RollupName>(), Err(RollupNameError), "{bad}");
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
