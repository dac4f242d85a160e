//! What a policy can say and this version of the engine does not do yet.
//!
//! Everything is validated in full first; then what would switch such a feature on is refused, and nothing else.
//! Whoever builds a feature deletes its line here.

use std::fmt;

use super::choices::StartTls;
use super::error::{PolicyError, PolicyErrorKind};
use super::settings::DomainSettings;

/// The default of `use-starttls`.
pub(super) const DEFAULT_STARTTLS: StartTls =
    if cfg!(feature = "tls") { StartTls::Opportunistic } else { StartTls::Off };
/// The default of `use-mta-sts`.
pub(super) const DEFAULT_MTA_STS: bool = cfg!(feature = "mta-sts");

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
    /// What is missing, as a sentence.
    missing: &'static str,
    instead: &'static str,
}

/// This build of the crate does without it.
#[cfg(not(feature = "tls"))]
const NO_TLS: &str = "TLS is not in this build, which lacks the feature `tls`";

#[cfg(not(feature = "mta-sts"))]
const NO_MTA_STS: &str = "MTA-STS is not in this build, which lacks the feature `mta-sts`";

const SETTINGS: &[Setting] = &[
    #[cfg(not(feature = "tls"))]
    Setting {
        key: "use-starttls",
        on: |s| s.use_starttls.is_some_and(|v| v != StartTls::Off),
        feature: Feature { missing: NO_TLS, instead: r#"write "off" or leave the key out"# },
    },
    #[cfg(not(feature = "tls"))]
    Setting {
        key: "use-implicit-tls",
        on: |s| s.use_implicit_tls == Some(true),
        feature: Feature { missing: NO_TLS, instead: "write false or leave the key out" },
    },
    #[cfg(not(feature = "mta-sts"))]
    Setting {
        key: "use-mta-sts",
        on: |s| s.use_mta_sts == Some(true),
        feature: Feature { missing: NO_MTA_STS, instead: "write false or leave the key out" },
    },
    #[cfg(not(feature = "tls"))]
    Setting {
        key: "use-dane",
        on: |s| s.use_dane == Some(true),
        feature: Feature { missing: NO_TLS, instead: "write false or leave the key out" },
    },
];

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.missing, self.instead)
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
