//! What a policy can say and this version of the engine does not do yet.
//!
//! Everything is validated in full first; then what would switch such a feature on is refused, and nothing else.
//! Whoever builds a feature deletes its line here.

use std::fmt;

use super::choices::{NoMx, NoMxLiveHost, NxDomain, PolicyBase, StartTls};
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

const RATES: Feature =
    Feature { name: "rate limits are", instead: r#"write "unlimited" or leave the key out"# };
const NO_MX: Feature =
    Feature { name: "bounces of domains without MX are", instead: "write false or leave the key out" };

const SETTINGS: &[Setting] = &[
    Setting {
        key: "bounce-upon-no-mx",
        on: |s| s.bounce_upon_no_mx.is_some_and(|v| v != NoMx::Never),
        feature: NO_MX,
    },
    Setting {
        key: "bounce-upon-nxdomain",
        on: |s| s.bounce_upon_nxdomain.is_some_and(|v| v != NxDomain::AtOnce),
        feature: Feature {
            name: "delayed bounces of unknown domains are",
            instead: "write true or leave the key out",
        },
    },
    Setting {
        key: "no-mx-live-host",
        on: |s| s.no_mx_live_host == Some(NoMxLiveHost::Keep),
        feature: Feature { name: "keeping live hosts is", instead: r#"write "bounce" or leave the key out"# },
    },
    Setting { key: "max-msg-rate", on: |s| matches!(s.max_msg_rate, Some(Some(_))), feature: RATES },
    Setting { key: "max-connect-rate", on: |s| matches!(s.max_connect_rate, Some(Some(_))), feature: RATES },
    Setting {
        key: "source-ip-max-msg-rate",
        on: |s| matches!(s.source_ip_max_msg_rate, Some(Some(_))),
        feature: RATES,
    },
    Setting {
        key: "source-ip-max-connect-rate",
        on: |s| matches!(s.source_ip_max_connect_rate, Some(Some(_))),
        feature: RATES,
    },
    Setting {
        key: "source-ip-max-smtp-out",
        on: |s| matches!(s.source_ip_max_smtp_out, Some(Some(_))),
        feature: Feature {
            name: "connection limits per source address are",
            instead: r#"write "unlimited" or leave the key out"#,
        },
    },
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
    Setting {
        key: "queue-to",
        on: |s| matches!(s.queue_to, Some(Some(_))),
        feature: Feature { name: "static rollups are", instead: "leave the key out" },
    },
    Setting {
        key: "bounce-fuse",
        on: |s| matches!(s.bounce_fuse, Some(Some(_))),
        feature: Feature { name: "the bounce fuse is", instead: r#"write "off" or leave the key out"# },
    },
];

/// `[[rollup]]`.
pub(super) const ROLLUP: Option<Feature> =
    Some(Feature { name: "rollups are", instead: "leave the rule out" });
/// `[[ip-connection-limit]]`.
pub(super) const IP_CONNECTION_LIMIT: Option<Feature> =
    Some(Feature { name: "connection limits per destination address are", instead: "leave the limit out" });
/// `[[mx-connection-limit]]`.
pub(super) const MX_CONNECTION_LIMIT: Option<Feature> =
    Some(Feature { name: "connection limits per MX host are", instead: "leave the limit out" });
/// `[[reply-rule]]`.
pub(super) const REPLY_RULE: Option<Feature> =
    Some(Feature { name: "reply rules are", instead: "leave the rule out" });

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
    in_settings(settings)
        .next()
        .map_or(Ok(()), |(key, feature)| refuse(format!("{path}.{key}"), Some(feature)))
}

/// Fails if there is something to refuse.
pub(super) fn refuse(key: impl Into<String>, feature: Option<Feature>) -> Result<(), PolicyError> {
    feature.map_or(Ok(()), |feature| Err(PolicyError::new(PolicyErrorKind::NotBuilt, key, feature)))
}
