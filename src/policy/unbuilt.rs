//! What a policy can say and this version of the engine does not do yet.
//!
//! Everything is validated in full first; then what would switch such a feature on is refused, and nothing else.
//! Whoever builds a feature deletes its line here.

use std::fmt;

use super::choices::{PolicyBase, StartTls};
use super::error::{PolicyError, PolicyErrorKind};
use super::settings::DomainSettings;

/// The default of `use-starttls`: "opportunistic" once TLS is built.
pub(super) const DEFAULT_STARTTLS: StartTls = StartTls::Off;
/// The default of `use-mta-sts`: true once it is built.
pub(super) const DEFAULT_MTA_STS: bool = false;

/// A setting that is refused for some of its values.
struct Setting {
    key: &'static str,
    /// This value would switch the feature on.
    on: fn(&DomainSettings) -> bool,
    feature: Feature,
}

/// A feature, and what to write meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Feature {
    /// With its verb: "TLS is".
    name: &'static str,
    instead: &'static str,
}

const SETTINGS: &[Setting] = &[
    Setting {
        key: "use-starttls",
        on: |s| s.use_starttls.is_some_and(|v| v != StartTls::Off),
        feature: Feature { name: "TLS is", instead: r#"write "off" or leave the key out"# },
    },
    Setting {
        key: "use-mta-sts",
        on: |s| s.use_mta_sts == Some(true),
        feature: Feature { name: "MTA-STS is", instead: "write false or leave the key out" },
    },
    Setting {
        key: "use-dane",
        on: |s| s.use_dane == Some(true),
        feature: Feature { name: "DANE is", instead: "write false or leave the key out" },
    },
];

/// `[policy] base`.
pub(super) fn base(base: PolicyBase) -> Option<Feature> {
    let feature =
        Feature { name: "recommended settings are", instead: r#"write "none" or leave the key out"# };
    (base == PolicyBase::Recommended).then_some(feature)
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} not built yet: {}", self.name, self.instead)
    }
}

/// The settings that would switch on what is not built.
pub(super) fn in_settings(settings: &DomainSettings) -> impl Iterator<Item = (&'static str, Feature)> {
    SETTINGS.iter().filter(|setting| (setting.on)(settings)).map(|setting| (setting.key, setting.feature))
}

/// Fails if one of `settings` would switch on what is not built.
pub(super) fn refuse_settings(path: &str, settings: &DomainSettings) -> Result<(), PolicyError> {
    in_settings(settings).next().map_or(Ok(()), |(key, feature)| {
        Err(PolicyError::new(PolicyErrorKind::NotBuilt, format!("{path}.{key}"), feature))
    })
}
