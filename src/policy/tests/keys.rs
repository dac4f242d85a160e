//! Every key, with values it takes and values it refuses.

use super::*;

type Show = fn(&QueueSettings) -> String;

/// Key, field, values with what the field prints, values refused.
type Row = (&'static str, Show, &'static [(&'static str, &'static str)], &'static [&'static str]);

/// Every setting of a domain: values it takes, as the field prints them, and values it refuses.
#[test]
fn every_setting_is_read_and_checked() {
    #[rustfmt::skip]
    let table: &[Row] = &[
        ("retry-after", |s| format!("{:?}", s.retry_after.intervals()),
            &[(r#"["5m", "1h"]"#, "[300s, 3600s]"), (r#""90s""#, "[90s]")],
            &[r#"["5x"]"#, "[]", r#"["0s"]"#, "5", r#"["5m", 5]"#, "true"]),
        ("retry-jitter", |s| s.retry_jitter.to_string(), &[("0.25", "0.25"), ("0", "0")], &["0.6", "-0.1", "nan", "inf", "\"0.1\"", "1"]),
        ("retry-upon-new-mail", |s| s.retry_upon_new_mail.to_string(), &[("true", "true")], &["\"true\"", "1"]),
        ("max-attempts", |s| format!("{:?}", s.max_attempts), &[("7", "Some(7)"), ("\"unlimited\"", "None")], &["0", "-1", "\"7\"", "4294967296"]),
        ("bounce-after", |s| format!("{:?}", s.bounce_after), &[("\"2h\"", "7200s")], &["\"0s\"", "\"11000d\"", "120"]),
        ("bounce-upon-no-mx", |s| format!("{:?}", s.bounce_upon_no_mx), &[("false", "Never")], &["\"0s\"", "\"no\"", "1", "\"11000d\""]),
        ("bounce-upon-nxdomain", |s| format!("{:?}", s.bounce_upon_nxdomain), &[("true", "AtOnce")], &["false", "\"0s\"", "\"yes\"", "\"11000d\""]),
        ("bounce-upon-5xx-greeting", |s| s.bounce_upon_5xx_greeting.to_string(), &[("true", "true")], &["\"1h\""]),
        ("no-mx-live-host", |s| format!("{:?}", s.no_mx_live_host), &[("\"bounce\"", "Bounce")], &["\"drop\"", "true"]),
        ("max-smtp-out", |s| format!("{:?}", s.max_smtp_out), &[("0x10", "Some(16)"), ("1_000", "Some(1000)"), ("\"unlimited\"", "None")], &["0", "1.5", "\"none\""]),
        ("source-ip-max-smtp-out", |s| format!("{:?}", s.source_ip_max_smtp_out), &[("\"unlimited\"", "None")], &["0"]),
        ("max-msg-per-connection", |s| format!("{:?}", s.max_msg_per_connection), &[("3", "Some(3)"), ("\"unlimited\"", "None")], &["0"]),
        ("max-rcpt-per-transaction", |s| s.max_rcpt_per_transaction.to_string(), &[("3", "3")], &["0", "\"unlimited\""]),
        ("connection-idle-timeout", |s| format!("{:?}", s.connection_idle_timeout), &[("\"0s\"", "0ns"), ("\"10m\"", "600s")], &["\"11m\"", "5"]),
        ("smtp-hosts", |s| hosts(s),
            &[(r#""a.example,b.example;c.example""#, "a.example,b.example;c.example"), (r#"["a.example", "[::1]:26"]"#, "a.example,[::1]:26"), (r#"["a;b"]"#, "a;b"), ("[]", "")],
            &["\"\"", "\"1.2.3.4\"", r#"["a;b", "c"]"#, r#"["a", 1]"#, "true", r#""lookup-mx:a.example""#]),
        ("ip-family", |s| format!("{:?}", s.ip_family), &[("\"ipv4\"", "Ipv4"), ("\"ipv6\"", "Ipv6"), ("\"both\"", "Both")], &["\"v4\"", "4"]),
        ("max-msg-rate", |s| format!("{:?}", s.max_msg_rate), &[("\"unlimited\"", "None")], &["100", "\"0/h\"", "\"x\"", "\"1/0s\""]),
        ("max-connect-rate", |s| format!("{:?}", s.max_connect_rate), &[("\"unlimited\"", "None")], &["\"off\""]),
        ("source-ip-max-msg-rate", |s| format!("{:?}", s.source_ip_max_msg_rate), &[("\"unlimited\"", "None")], &["\"\""]),
        ("source-ip-max-connect-rate", |s| format!("{:?}", s.source_ip_max_connect_rate), &[("\"unlimited\"", "None")], &["1"]),
        ("use-starttls", |s| format!("{:?}", s.use_starttls),
            if cfg!(feature = "tls") { &[("\"off\"", "Off"), ("\"opportunistic\"", "Opportunistic"), ("\"required\"", "Required"), ("\"verify\"", "Verify")] } else { &[("\"off\"", "Off")] },
            &["true", "\"on\"", "\"implicit\""]),
        ("use-lmtp", |s| s.use_lmtp.to_string(), &[("false", "false")], &["\"no\"", "1"]),
        ("use-chunking", |s| s.use_chunking.to_string(), &[("true", "true"), ("false", "false")], &["\"no\"", "1"]),
        ("use-implicit-tls", |s| s.use_implicit_tls.to_string(), &[("false", "false")], &["\"no\"", "1"]),
        ("auth-username", |s| format!("{:?}", s.auth_username), &[("\"\"", "None")], &["5", "\"a\\u0000b\"", "[\"a\"]"]),
        ("auth-password", |s| format!("{:?}", s.auth_password), &[("\"\"", "None")], &["5", "\"a\\u0000b\"", "[\"a\"]"]),
        ("use-unencrypted-plain-auth", |s| s.use_unencrypted_plain_auth.to_string(), &[("true", "true")], &["\"no\"", "1"]),
        ("use-mta-sts", |s| s.use_mta_sts.to_string(), &[("false", "false"), #[cfg(feature = "mta-sts")] ("true", "true")], &["\"no\""]),
        ("use-dane", |s| s.use_dane.to_string(), &[("false", "false"), #[cfg(feature = "tls")] ("true", "true")], &["0"]),
        ("backoff-retry-after", |s| format!("{:?}", s.backoff_retry_after.intervals()), &[(r#"["2h"]"#, "[7200s]")], &["[]", "\"0s\""]),
        ("backoff-max-smtp-out", |s| format!("{:?}", s.backoff_max_smtp_out), &[("2", "Some(2)")], &["0"]),
        ("backoff-max-msg-rate", |s| format!("{}", s.backoff_max_msg_rate.unwrap()), &[("\"5/m\"", "5/m")], &["5"]),
        ("backoff-to-normal-after", |s| format!("{:?}", s.backoff_to_normal_after), &[("\"1h\"", "Some(3600s)"), ("\"never\"", "None")], &["\"0s\"", "false"]),
        ("backoff-to-normal-after-delivery", |s| s.backoff_to_normal_after_delivery.to_string(), &[("true", "true")], &["\"x\""]),
        ("bounce-fuse", |s| format!("{:?}", s.bounce_fuse), &[("\"off\"", "None")], &["false", "\"unlimited\""]),
        ("disable-mx-rollup", |s| s.disable_mx_rollup.to_string(), &[("true", "true")], &["\"x\""]),
        ("queue-to", |s| format!("{:?}", s.queue_to), &[("\"\"", "None")], &["\"google\"", "1"]),
    ];
    let keys: std::collections::BTreeSet<_> = table.iter().map(|row| row.0).collect();
    assert_eq!(keys, DomainSettings::KEYS.iter().copied().collect(), "the table has every key");
    for (key, show, right, wrong) in table {
        for (value, want) in *right {
            let policy = Policy::from_toml(&domain(&format!("{key} = {value}"))).unwrap();
            assert_eq!(show(&policy.settings("x.example", "default")), *want, "{key} = {value}");
        }
        for value in *wrong {
            let error = Policy::from_toml(&domain(&format!("{key} = {value}"))).unwrap_err();
            assert_eq!(error.kind(), PolicyErrorKind::InvalidValue, "{error}");
            assert_eq!((error.line(), error.key()), (Some(2), &*format!("domain.\"*\".{key}")), "{error}");
            // What a password is, is not repeated.
            let shown = error.value().map_or(*key == "auth-password", |shown| value.contains(shown));
            assert!(shown, "{error}");
            assert!(
                error.to_string().contains(": ") && error.to_string().contains(" is ")
                    || error.to_string().contains(" has "),
                "{error}"
            );
        }
    }
}

#[test]
fn every_other_key_is_read() {
    let text = r#"
        [engine]
        hostname = "[192.0.2.1]"
        max-connections = 7
        [dns]
        nameservers = ["192.0.2.53", "2001:db8::53", "[2001:db8::54]:5353", "[::1]"]
        [smtp]
        connect-timeout = "1s"
        smtp-greeting-timeout = "2s"
        ehlo-timeout = "3s"
        starttls-timeout = "3500ms"
        mail-timeout = "4s"
        rcpt-timeout = "5s"
        data-timeout = "6s"
        data-send-timeout = "7s"
        smtp-data-termination-timeout = "8s"
        quit-timeout = "900ms"
        prohibited-addresses = ["10.0.0.0/8", "::1"]
        [policy]
        base = "none"
        [[source]]
        name = "b"
        address = ["192.0.2.1", "2001:db8::1"]
        [[source]]
        name = "a"
        address = "::ffff:192.0.2.2"
        [[pool]]
        name = "p"
        sources = ["a", { name = "b", weight = 3 }]
    "#;
    let config = Config::from_toml(text).unwrap();
    assert_eq!(config.hostname, "[192.0.2.1]");
    let servers: Vec<String> = config.nameservers.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["192.0.2.53:53", "[2001:db8::53]:53", "[2001:db8::54]:5353", "[::1]:53"]);
    let policy = config.policy;
    assert_eq!(policy.max_connections(), 7);
    let t = policy.smtp().timeouts;
    let got = [t.connect, t.greeting, t.ehlo, t.mail, t.rcpt, t.data, t.data_block, t.dot, t.quit];
    assert_eq!(got.map(|d| d.as_millis()), [1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 900]);
    assert_eq!(t.starttls.as_millis(), 3500);
    assert!(
        policy.is_prohibited("10.1.1.1".parse().unwrap())
            && !policy.is_prohibited("127.0.0.1".parse().unwrap())
    );
    let b = policy.source("b").unwrap();
    assert_eq!((b.ipv4().is_some(), b.ipv6().is_some()), (true, true));
    assert_eq!(policy.source("a").unwrap().ipv4(), Some("192.0.2.2".parse().unwrap()));
    let pool: Vec<_> =
        policy.pools().flat_map(Pool::sources).map(|(name, weight)| (&**name, weight)).collect();
    assert_eq!(pool, [("a", 1), ("b", 3)]);
}

fn hosts(settings: &QueueSettings) -> String {
    let level = |hosts: &Vec<FixedHost>| hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    settings.smtp_hosts.iter().map(level).collect::<Vec<_>>().join(";")
}
