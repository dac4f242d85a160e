//! What is not built yet is refused, by name, and read whole nevertheless.

use super::*;
use crate::policy::file::read_unbuilt_too;

/// The rest of the example: each part, and how it is refused.
pub(super) const UNBUILT: &[(&str, &str)] = &[
    (
        "[[rollup]]\nqueue = \"google.rollup\"\nmx = [\"*.google.com\", \"*.googlemail.com\"]\nmatch = \"lowest\"\n",
        "line 1: rollup.\"google.rollup\": rollups are not built yet: leave the rule out",
    ),
    (
        "[[ip-connection-limit]]\ncidr = \"62.149.128.0/24\"\nlimit = 10\nshared = true\nper-source = true\n",
        "line 1: ip-connection-limit.\"62.149.128.0/24\": connection limits per destination address are not built yet: \
         leave the limit out",
    ),
    (
        "[[mx-connection-limit]]\nmx = \"*.mail.example\"\nlimit = 5\n",
        "line 1: mx-connection-limit.\"*.mail.example\": connection limits per MX host are not built yet: \
         leave the limit out",
    ),
    (
        "[[reply-rule]]\nname = \"gmail-over-quota\"\nmatch = '^452 4\\.2\\.2 .*(over ?quota|out of storage)'\n\
         actions = [\"bounce-rcpt\"]\nmx = [\"*.google.com\"]\ndomain = \"*\"\nqueue = [\"google.rollup\"]\n\
         stage = [\"rcpt\", \"dot\"]\nmin-attempts = 2\nmin-age = \"1h\"\nafter = \"10/1h\"\n",
        "line 1: reply-rule.gmail-over-quota: reply rules are not built yet: leave the rule out",
    ),
    (
        "[policy]\nbase = \"recommended\"\n",
        "line 2: policy.base: \"recommended\": recommended settings are not built yet: write \"none\" or leave the key out",
    ),
];

/// Settings that would switch on what is not built.
const UNBUILT_SETTINGS: &[(&str, &str)] = &[
    ("bounce-upon-no-mx = \"1h\"", "bounces of domains without MX are not built yet: write false"),
    ("bounce-upon-no-mx = true", "bounces of domains without MX are not built yet: write false"),
    ("bounce-upon-nxdomain = \"2h\"", "delayed bounces of unknown domains are not built yet: write true"),
    ("no-mx-live-host = \"keep\"", "keeping live hosts is not built yet: write \"bounce\""),
    ("max-msg-rate = \"100/h\"", "rate limits are not built yet: write \"unlimited\""),
    ("max-connect-rate = \"1/m\"", "rate limits are not built yet: write \"unlimited\""),
    ("source-ip-max-msg-rate = \"100/h\"", "rate limits are not built yet: write \"unlimited\""),
    ("source-ip-max-connect-rate = \"10/30s\"", "rate limits are not built yet: write \"unlimited\""),
    (
        "source-ip-max-smtp-out = 5",
        "connection limits per source address are not built yet: write \"unlimited\"",
    ),
    ("use-starttls = \"opportunistic\"", "TLS is not built yet: write \"off\""),
    ("use-starttls = \"required\"", "TLS is not built yet: write \"off\""),
    ("use-mta-sts = true", "MTA-STS is not built yet: write false"),
    ("use-dane = true", "DANE is not built yet: write false"),
    ("queue-to = \"google.rollup\"", "static rollups are not built yet: leave the key out"),
    ("bounce-fuse = \"1000/10m\"", "the bounce fuse is not built yet: write \"off\""),
];

#[test]
fn unbuilt_parts_are_refused_by_name() {
    for (text, want) in UNBUILT {
        assert_eq!(message(&format!("{text}[engine]\nhostname = \"a.example\"")), *want);
        assert_eq!(Policy::from_toml(text).unwrap_err().kind(), PolicyErrorKind::NotBuilt);
        let after = format!("{BUILT}{text}");
        assert_eq!(Config::from_toml(&after).unwrap_err().kind(), PolicyErrorKind::NotBuilt);
    }
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

#[test]
fn mistakes_come_before_refusals() {
    let text = domain("max-msg-rate = \"100/h\"\nuse-dane = true\nbounce-after = \"x\"");
    assert!(message(&text).starts_with("line 4: domain.\"*\".bounce-after: \"x\" is not a duration"));
    let text =
        "[engine]\nhostname = \"a\"\n".to_owned() + &domain("use-dane = true\nmax-msg-rate = \"100/h\"");
    assert!(message(&text).starts_with("line 4: domain.\"*\".use-dane: true: DANE"), "the first in the file");
}

#[test]
fn unbuilt_parts_are_refused_in_rust_too() {
    let rate = Rate::new(1, secs(60)).unwrap();
    let settings = || DomainSettings::new().with_max_msg_rate(rate);
    for error in [
        Policy::new().with_domain("*", settings()).unwrap_err(),
        Source::new("s").with_domain("*", settings()).unwrap_err(),
        Policy::new()
            .with_ip_connection_limit(IpConnectionLimit::new("::/0".parse().unwrap(), 1))
            .unwrap_err(),
        Policy::new().with_mx_connection_limit(MxConnectionLimit::new("*".parse().unwrap(), 1)).unwrap_err(),
        Policy::new().with_reply_rule(ReplyRule::new("r", "x", [Action::SkipMx]).unwrap()).unwrap_err(),
        Policy::new()
            .with_rollup(RollupRule::new("a.rollup".parse().unwrap(), ["*.a".parse().unwrap()]).unwrap())
            .unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.line()), (PolicyErrorKind::NotBuilt, None), "{error}");
    }
}

#[test]
fn unbuilt_parts_are_read_whole() {
    let text: String = UNBUILT.iter().map(|(text, _)| *text).collect();
    let policy = read_unbuilt_too(&text).unwrap();
    assert_eq!(policy.base(), PolicyBase::Recommended);
    let [rollup] = policy.rollups() else { panic!() };
    assert_eq!((rollup.queue().as_str(), rollup.matching()), ("google.rollup", RollupMatch::Lowest));
    assert!(rollup.hosts()[1].matches("mx.googlemail.com"));
    let limit = policy.ip_connection_limit("::ffff:62.149.128.7".parse().unwrap()).unwrap();
    assert_eq!((limit.limit, limit.shared, limit.per_source), (10, true, true));
    assert_eq!(policy.ip_connection_limit("62.149.129.7".parse().unwrap()), None);
    let [mx] = policy.mx_connection_limits() else { panic!() };
    assert_eq!((mx.mx.to_string().as_str(), mx.limit), ("*.mail.example", 5));
    let [rule] = policy.reply_rules() else { panic!() };
    assert_eq!(rule.actions(), [Action::BounceRecipient]);
    let conditions = rule.conditions();
    assert_eq!((conditions.min_attempts, conditions.min_age), (Some(2), Some(secs(3600))));
    assert_eq!(conditions.after, Some(Rate::new(10, secs(3600)).unwrap()));
    assert_eq!(conditions.stages.len() + conditions.queues.len() + conditions.hosts.len(), 4);

    let settings: String = UNBUILT_SETTINGS
        .iter()
        .map(|(s, _)| *s)
        .filter(|s| !s.contains("= true") && !s.contains("opp"))
        .fold(String::new(), |all, one| all + one + "\n");
    let got = read_unbuilt_too(&domain(&settings)).unwrap().settings("x.example", "default");
    assert_eq!(got.bounce_upon_no_mx, NoMx::After(secs(3600)));
    assert_eq!(got.bounce_upon_nxdomain, NxDomain::After(secs(7200)));
    assert_eq!(got.no_mx_live_host, NoMxLiveHost::Keep);
    assert_eq!(got.source_ip_max_connect_rate, Some("10/30s".parse().unwrap()));
    assert_eq!(got.use_starttls, StartTls::Required);
    assert_eq!(got.queue_to, Some("google.rollup".parse().unwrap()));
    assert_eq!(got.bounce_fuse, Some("1000/10m".parse().unwrap()));

    let nested = "[[ip-connection-limit]]\ncidr=\"10.0.0.0/8\"\nlimit=1\n\
                  [[ip-connection-limit]]\ncidr=\"10.1.0.0/16\"\nlimit=2\n";
    let policy = read_unbuilt_too(nested).unwrap();
    assert_eq!(
        policy.ip_connection_limit("10.1.2.3".parse().unwrap()).unwrap().limit,
        2,
        "the longest prefix wins"
    );
    assert_eq!(policy.ip_connection_limit("10.2.2.3".parse().unwrap()).unwrap().limit, 1);
}
