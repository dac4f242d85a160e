//! Which settings apply to a queue: the more exact, the later.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::error::{PolicyError, dotted};
use super::settings::{DomainSettings, QueueSettings};
use crate::message::Domain;

/// What a `[domain."…"]` is for: `*`, `*.example.com`, or one domain or rollup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DomainPattern {
    All,
    /// Below this domain, at any depth, not the domain itself.
    Below(Arc<str>),
    Exact(Arc<str>),
}

impl FromStr for DomainPattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let domain = |text: &str| {
            let domain = Domain::parse(text).map_err(
                |_| r#"is not a domain: write "example.com", "name.rollup", "*.example.com" or "*""#,
            )?;
            Ok(Arc::from(domain.as_str()))
        };
        match text.strip_prefix("*.") {
            _ if text == "*" => Ok(Self::All),
            Some(above) if !above.starts_with('[') => domain(above).map(Self::Below),
            _ => domain(text).map(Self::Exact),
        }
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Below(above) => write!(f, "*.{above}"),
            Self::Exact(domain) => f.write_str(domain),
        }
    }
}

/// All `[domain."…"]` of a policy or of a source.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct DomainRules {
    /// What these lie over: of the same exactness, what is set here wins.
    base: Option<Arc<Self>>,
    all: Option<DomainSettings>,
    below: BTreeMap<Arc<str>, DomainSettings>,
    exact: BTreeMap<Arc<str>, DomainSettings>,
}

impl DomainRules {
    /// Adds settings; `path` is what the table of domains is called in messages.
    pub(super) fn add(
        &mut self,
        path: &str,
        name: &str,
        settings: DomainSettings,
    ) -> Result<(), PolicyError> {
        let path = dotted(path, name);
        let pattern = name.parse().map_err(|problem| {
            PolicyError::invalid(&path, format_args!("\"{}\"", name.escape_debug()), problem)
        })?;
        settings.check(&path)?;
        settings.check_together().map_err(|(key, problem)| {
            PolicyError::contradiction(format_args!("{path}.{key}").to_string(), problem)
        })?;
        let replaced = match &pattern {
            DomainPattern::All => self.all.replace(settings),
            DomainPattern::Below(above) => self.below.insert(above.clone(), settings),
            DomainPattern::Exact(domain) => self.exact.insert(domain.clone(), settings),
        };
        match replaced {
            None => Ok(()),
            Some(_) => Err(PolicyError::contradiction(
                path,
                format_args!("`{pattern}` has settings already: merge the two"),
            )),
        }
    }

    /// No rules, over those of `base`.
    pub(super) fn over(base: Self) -> Self {
        Self { base: Some(Arc::new(base)), ..Self::default() }
    }

    /// What lies below, and these.
    fn layers(&self) -> impl Iterator<Item = &Self> {
        self.base.as_deref().into_iter().chain([self])
    }

    /// Whether anything is set for `queue` that is not for all.
    pub(super) fn tell_apart(&self, queue: &str) -> bool {
        self.layers().any(|layer| layer.exact.contains_key(queue)) || self.above(queue).next().is_some()
    }

    /// Settings for all below a domain that `queue` lies below, wide to narrow.
    fn above(&self, queue: &str) -> impl Iterator<Item = &DomainSettings> {
        // An address literal has dots that separate no labels.
        let has_labels = !queue.starts_with('[') && self.layers().any(|layer| !layer.below.is_empty());
        let dots = queue.rmatch_indices('.').filter(move |_| has_labels);
        let above = dots.filter_map(move |(dot, _)| queue.get(dot + 1..));
        above.flat_map(|above| self.layers().filter_map(move |layer| layer.below.get(above)))
    }

    /// Applies what is set for `queue`, wide to narrow. The order of adding plays no part.
    pub(super) fn apply(&self, queue: &str, to: &mut QueueSettings) {
        let all = self.layers().filter_map(|layer| layer.all.as_ref());
        let exact = self.layers().filter_map(|layer| layer.exact.get(queue));
        all.chain(self.above(queue)).chain(exact).for_each(|settings| settings.apply(to));
    }
}
