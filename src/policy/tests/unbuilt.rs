//! What is not built yet is refused, by name, and read whole nevertheless.

use super::*;
use crate::policy::file::read_unbuilt_too;
use crate::transport::{Protocol, TlsWish};

/// Settings that would switch on what is not built.
#[cfg(not(all(feature = "tls", feature = "mta-sts")))]
const UNBUILT_SETTINGS: &[(&str, &str)] = &[
    #[cfg(not(feature = "tls"))]
    (
        "use-starttls = \"opportunistic\"",
        "TLS is not in this build, which lacks the feature `tls`: write \"off\"",
    ),
    #[cfg(not(feature = "tls"))]
    ("use-starttls = \"required\"", "TLS is not in this build, which lacks the feature `tls`: write \"off\""),
    #[cfg(not(feature = "mta-sts"))]
    ("use-mta-sts = true", "MTA-STS is not in this build, which lacks the feature `mta-sts`: write false"),
    #[cfg(not(feature = "tls"))]
    ("use-dane = true", "TLS is not in this build, which lacks the feature `tls`: write false"),
];

#[cfg(not(all(feature = "tls", feature = "mta-sts")))]
#[test]
fn unbuilt_parts_are_refused_by_name() {
    for (setting, want) in UNBUILT_SETTINGS {
        let (key, value) = setting.split_once(" = ").unwrap();
        let want = format!("{key}: {value}: {want}");
        let error = Policy::from_toml(&domain(setting)).unwrap_err();
        assert!(error.to_string().starts_with(&format!("line 2: domain.\"*\".{want}")), "{error}");
        assert_eq!(error.kind(), PolicyErrorKind::NotBuilt);
        let source = format!("[[source]]\nname = \"s\"\n[source.domain.\"a.example\"]\n{setting}");
        let error = Policy::from_toml(&source).unwrap_err().to_string();
        assert!(error.starts_with(&format!("line 4: source.s.domain.\"a.example\".{want}")), "{error}");
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn mistakes_come_before_refusals() {
    let text = domain("use-dane = true\nbounce-after = \"x\"");
    assert!(message(&text).starts_with("line 3: domain.\"*\".bounce-after: \"x\" is not a duration"));
}

#[cfg(not(feature = "tls"))]
#[test]
fn unbuilt_parts_are_refused_in_rust_too() {
    let settings = || DomainSettings::new().with_use_dane(true);
    for error in [
        Policy::new().with_domain("*", settings()).unwrap_err(),
        Source::new("s").with_domain("*", settings()).unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.line()), (PolicyErrorKind::NotBuilt, None), "{error}");
    }
}

#[test]
fn unbuilt_parts_are_read_whole() {
    let got =
        read_unbuilt_too(&domain("use-starttls = \"required\"")).unwrap().settings("x.example", "default");
    assert_eq!(got.use_starttls, StartTls::Required);
}

#[test]
fn implicit_tls_and_lmtp_are_for_fixed_hosts() {
    for key in ["use-implicit-tls", "use-lmtp"] {
        let want = format!(
            "line 2: domain.\"*\".{key}: only fixed hosts have it: name them beside it in smtp-hosts"
        );
        let error = Policy::from_toml(&domain(&format!("{key} = true"))).unwrap_err();
        assert_eq!((error.to_string(), error.kind()), (want, PolicyErrorKind::Contradiction));
    }
    let text = domain("use-implicit-tls = true\nsmtp-hosts = \"relay.example:465\"\nuse-starttls = \"off\"");
    let narrower = text.clone() + "[domain.\"y.example\"]\nsmtp-hosts = []\n";
    for (domain, implicit) in [("x.example", true), ("y.example", false)] {
        let settings = read_unbuilt_too(&narrower).unwrap().settings(domain, "default");
        assert_eq!(settings.tls_wish(), TlsWish { level: StartTls::Off, implicit }, "{domain}");
    }
    let text = domain("use-lmtp = true\nsmtp-hosts = \"[127.0.0.1]:24\"");
    let narrower = text + "[domain.\"y.example\"]\nsmtp-hosts = []\n";
    for (domain, protocol) in [("x.example", Protocol::Lmtp), ("y.example", Protocol::Smtp)] {
        assert_eq!(Policy::from_toml(&narrower).unwrap().settings(domain, "default").protocol(), protocol);
    }
}
