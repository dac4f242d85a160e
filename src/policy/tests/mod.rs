//! Policies from outside, by file and in Rust.

mod auth;
mod keys;
mod messages;
mod readme;
mod unbuilt;

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::reply::Stage;

fn message(text: &str) -> String {
    Config::from_toml(text).unwrap_err().to_string()
}

fn domain(setting: &str) -> String {
    format!("[domain.\"*\"]\n{setting}\n")
}

/// Whoever asks by hand writes names as people do.
#[test]
fn names_are_asked_for_in_any_spelling() {
    let policy = Policy::from_toml(
        r#"
        [domain."a.example.com"]
        max-smtp-out = 3
        [domain."münchen.example"]
        max-smtp-out = 4
        [domain."*.example.net"]
        max-smtp-out = 5
        [domain."g.rollup"]
        max-smtp-out = 6
        [domain."o.example"]
        disable-mx-rollup = true
        [domain."[IPv6:::1]"]
        max-smtp-out = 7
        [[source]]
        name = "default"
        [[source]]
        name = "out1"
        [source.domain."a.example.com"]
        max-smtp-out = 8
        [[rollup]]
        queue = "g.rollup"
        mx = ["*.google.com", "*.münchen.example"]
        [[mx-connection-limit]]
        mx = "mx.münchen.example"
        limit = 9
        [[reply-rule]]
        name = "r"
        match = "."
        actions = "bounce-rcpt"
        domain = "münchen.example"
        queue = "b.example"
        mx = "mx.münchen.example"
        "#,
    );
    let policy = policy.unwrap();
    for (queue, source, limit) in [
        ("A.Example.COM", "default", Some(3)),
        ("a.example.com.", "default", Some(3)),
        ("a.example.com", "out1", Some(8)),
        ("A.example.com.", "out1", Some(8)),
        ("münchen.example", "default", Some(4)),
        ("MÜNCHEN.example.", "default", Some(4)),
        ("xn--mnchen-3ya.example", "default", Some(4)),
        ("XN--MNCHEN-3YA.example", "default", Some(4)),
        ("x.EXAMPLE.net.", "default", Some(5)),
        ("bücher.example.net", "default", Some(5)),
        ("G.Rollup.", "default", Some(6)),
        ("[ipv6:0::1]", "default", Some(7)),
        ("not a name.example.net", "default", Some(5)),
        ("", "default", Some(20)),
        (".", "default", Some(20)),
    ] {
        assert_eq!(policy.settings(queue, source).max_smtp_out, limit, "{queue} {source}");
    }
    for (domain, mx, want) in [
        ("O.EXAMPLE.", "mx.google.com", "o.example"),
        ("Other.example.", "mx.google.com", "g.rollup"),
        ("Other.example.", "mx.MÜNCHEN.example.", "g.rollup"),
        ("Bücher.example", "mx", "xn--bcher-kva.example"),
    ] {
        assert_eq!(&*policy.placement(domain, "default", [(10, mx)]).queue, want, "{domain} {mx}");
    }
    let implicit = policy.placement("Bücher.example", "default", [] as [(u16, &str); 0]);
    assert_eq!(implicit.hosts, [[Arc::from("xn--bcher-kva.example")]]);
    let hosts = [vec!["MX.münchen.example.".into()]];
    assert_eq!(policy.rollup_for(&hosts).map(|rule| rule.queue().as_str()), Some("g.rollup"));
    for host in ["mx.münchen.example", "MX.MÜNCHEN.example.", "mx.xn--mnchen-3ya.example"] {
        assert_eq!(policy.mx_connection_limit(host).map(|limit| limit.limit), Some(9), "{host}");
        let context = ReplyContext::new("München.example.", "B.example.", crate::reply::Stage::Rcpt);
        let context = context.with_host(host);
        assert_eq!(policy.matching_rules("450 no", &context).count(), 1, "{host}");
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The example of the documentation, as far as it is built.
const BUILT: &str = r#"
[engine]
hostname = "MTA.example.org"
max-connections = 1200
[storage]
path = "spool"
[dns]
nameservers = ["127.0.0.1:5353"]
[smtp]
port = 2525
connect-timeout = "30s"
prohibited-addresses = []

[[source]]
name = "vmta1"
address = "127.0.0.1"
ehlo = "out1.example.org"
[source.domain."gmail.com"]
max-smtp-out = 5
[[pool]]
name = "bulk"
sources = ["vmta1"]

[[reply-rule]]
name = "full"
reason = ["mailbox-full"]
actions = ["bounce-rcpt"]
[[provider]]
name = "house"
mx = ["*.house.example"]
[[classification-rule]]
name = "house-code"
provider = "house"
match = "(hx|) 17 .. full*"
reason = "mailbox-full"

[domain."*"]
retry-after = ["5m", "10m", "15m", "30m", "1h"]
bounce-after = "4d12h"
bounce-upon-no-mx = false
max-smtp-out = 20
max-msg-per-connection = 100
max-msg-rate = "unlimited"
max-connect-rate = "unlimited"
max-rcpt-per-transaction = 100
use-starttls = "off"
use-implicit-tls = false
connection-idle-timeout = "5s"
backoff-retry-after = ["1h"]
backoff-max-smtp-out = 1
backoff-max-msg-rate = "1/m"
backoff-to-normal-after = "1h"
[domain."google.rollup"]
max-smtp-out = 50
[domain."intern.example"]
smtp-hosts = ["[127.0.0.9]:2525"]
"#;

#[test]
fn the_example_reads() {
    let config = Config::from_toml(BUILT).unwrap();
    assert_eq!(config.hostname, "mta.example.org");
    assert_eq!(config.storage_path.as_deref(), Some("spool".as_ref()));
    assert_eq!(config.nameservers, Some(vec!["127.0.0.1:5353".parse().unwrap()]));
    let policy = config.policy;
    assert_eq!(policy.smtp().port, 2525);
    assert_eq!(policy.smtp().timeouts.connect, secs(30));
    assert!(!policy.is_prohibited("127.0.0.1".parse().unwrap()));
    let source = policy.source("vmta1").unwrap();
    assert_eq!(source.ipv4(), Some("127.0.0.1".parse().unwrap()));
    assert_eq!(source.ehlo().map(|e| &**e), Some("out1.example.org"));
    assert_eq!(policy.settings("gmail.com", "vmta1").max_smtp_out, Some(5));
    assert_eq!(policy.settings("gmail.com", "other").max_smtp_out, Some(20));
    assert_eq!(policy.settings("google.rollup", "vmta1").max_smtp_out, Some(50));
    let hosts = policy.settings("intern.example", "vmta1").smtp_hosts;
    assert_eq!(hosts, [["[127.0.0.9]:2525".parse().unwrap()]]);
    assert_eq!(policy.settings("x.example", "vmta1").retry_after.interval(9), secs(3600));
    assert_eq!(Policy::from_toml(BUILT).unwrap(), policy);
    let context = ReplyContext::new("x.example", "x.example", Stage::Rcpt).with_host("mx.house.example");
    let decision = policy.decide_reply("550 hx 17: fully booked", &context, |_, _| true);
    assert_eq!(
        decision.fate,
        Some((Fate::BounceRecipient, "full".into())),
        "a rule by what the reply tells of"
    );
    assert!(policy.decide_reply("550 17", &context, |_, _| true).is_empty());
}

#[test]
fn defaults_need_no_file() {
    let policy = Policy::from_toml("").unwrap();
    assert_eq!(policy, Policy::new());
    assert_eq!(policy.max_connections(), 1200);
    assert_eq!(*policy.smtp(), SmtpSettings::default());
    assert_eq!((policy.smtp().port, policy.smtp().timeouts), (25, crate::transport::Timeouts::default()));
    assert_eq!(policy.base(), PolicyBase::None);
    assert_eq!(policy.settings("example.com", "default"), QueueSettings::default());
    let source = policy.source("default").unwrap();
    assert_eq!((source.ipv4(), source.ipv6(), source.ehlo()), (None, None, None));
    for (address, prohibited) in [
        ("0.0.0.0", true),
        ("127.9.9.9", true),
        ("::ffff:127.0.0.1", true),
        ("169.254.1.1", true),
        ("239.1.1.1", true),
        ("255.255.255.255", true),
        ("::", true),
        ("::1", true),
        ("fe80::1", true),
        ("ff02::1", true),
        ("192.0.2.1", false),
        ("10.0.0.1", false),
        ("2001:db8::1", false),
    ] {
        assert_eq!(policy.is_prohibited(address.parse().unwrap()), prohibited, "{address}");
    }
    let config = Config::from_toml("[engine]\nhostname = \"a.example\"").unwrap();
    assert_eq!((config.storage_path, config.nameservers, config.policy), (None, None, policy));
    assert_eq!(
        message("\n[engine]\nmax-connections = 3"),
        "line 2: engine.hostname: is missing: write hostname = \"mta.example.org\" under [engine]"
    );
}

#[test]
fn sources_are_chosen() {
    let id: MessageId = "018bcfe5-6800-7000-8000-000000000001".parse().unwrap();
    let policy = Policy::new();
    assert_eq!(&*policy.choose_source(None, &id).unwrap(), "default");
    assert_eq!(&*policy.choose_source(Some("default"), &id).unwrap(), "default");
    let error = policy.choose_source(Some("x"), &id).unwrap_err();
    assert_eq!(error.to_string(), "`x` is neither a source nor a pool of the policy");

    let policy = policy.with_source(Source::new("z")).unwrap().with_source(Source::new("a")).unwrap();
    let policy = policy.with_pool(Pool::new("p").with_source("a").with_source("z")).unwrap();
    assert_eq!(&*policy.choose_source(None, &id).unwrap(), "z", "the first, not the alphabet's first");
    assert!(policy.choose_source(Some("default"), &id).is_err(), "the implied one is gone");
    assert!(policy.source("default").is_none());
    let drawn = policy.choose_source(Some("p"), &id).unwrap();
    assert_eq!(policy.choose_source(Some("p"), &id).unwrap(), drawn, "sticky");
}

#[test]
fn what_is_added_in_rust_is_checked() {
    let sources = || Policy::new().with_source(Source::new("a")).unwrap();
    let mut smtp = SmtpSettings::default();
    smtp.timeouts.rcpt = Duration::ZERO;
    for (error, want) in [
        (
            sources().with_source(Source::new("a")).unwrap_err(),
            "source.a: \"a\" is the name of a source already",
        ),
        (sources().with_source(Source::new("")).unwrap_err(), "source.\"\": \"\" is not a name"),
        (
            Policy::new().with_source(Source::new("a").with_address("::".parse().unwrap())).unwrap_err(),
            "source.a.address: :: is no address to send from",
        ),
        (Source::new("a").with_ehlo("a b").unwrap_err(), "source.a.ehlo: `a b` is not a domain name"),
        (sources().with_pool(Pool::new("p")).unwrap_err(), "pool.p.sources: [] is an empty list"),
        (
            sources().with_pool(Pool::new("p").with_weighted_source("a", 0)).unwrap_err(),
            "pool.p.sources: 0 is weight zero",
        ),
        (
            sources().with_pool(Pool::new("p").with_source("b")).unwrap_err(),
            "pool.p.sources: \"b\" is unknown",
        ),
        (Policy::new().with_max_connections(0).unwrap_err(), "engine.max-connections: 0 is zero"),
        (Policy::new().with_smtp(smtp).unwrap_err(), "smtp.rcpt-timeout: 0s is no time at all"),
        (
            Policy::new().with_domain("a b", DomainSettings::new()).unwrap_err(),
            "domain.\"a b\": \"a b\" is not a domain",
        ),
        (
            Policy::new().with_domain("*", DomainSettings::new().with_max_smtp_out(0)).unwrap_err(),
            "domain.\"*\".max-smtp-out: Some(0) is zero",
        ),
    ] {
        assert!(error.to_string().starts_with(want), "{error}");
        assert_eq!(error.line(), None);
    }
}

#[test]
fn the_more_exact_wins_setting_by_setting() {
    // Each level sets what the levels after it set too, and one of its own kind to show that it stays.
    let levels = [
        "[domain.\"*\"]\nmax-smtp-out = 1\nmax-attempts = 1\nretry-jitter = 0.1\nmax-rcpt-per-transaction = 1",
        "[domain.\"*.example.com\"]\nmax-smtp-out = 2\nmax-attempts = 2\nretry-jitter = 0.2",
        "[domain.\"*.b.example.com\"]\nmax-smtp-out = 3\nmax-attempts = 3",
        "[domain.\"a.b.example.com\"]\nmax-smtp-out = 4",
        "[domain.\"x.rollup\"]\nmax-smtp-out = 5",
    ];
    let own = "[[source]]\nname = \"s\"\n[source.domain.\"*\"]\nmax-msg-per-connection = 9\n\
               [source.domain.\"*.example.com\"]\nmax-msg-per-connection = 8\nmax-smtp-out = 6\n";
    let mut order = [0, 1, 2, 3, 4];
    let mut checked = 0;
    permute(&mut order, 0, &mut |order| {
        let text = order.iter().fold(own.to_owned(), |text, n| text + levels[*n] + "\n");
        let policy = Policy::from_toml(&text).unwrap();
        let got = |queue: &str, source: &str| {
            let s = policy.settings(queue, source);
            (s.max_smtp_out.unwrap(), s.max_attempts.unwrap(), s.retry_jitter, s.max_rcpt_per_transaction)
        };
        assert_eq!(got("a.b.example.com", "-"), (4, 3, 0.2, 1));
        assert_eq!(got("z.b.example.com", "-"), (3, 3, 0.2, 1));
        assert_eq!(got("z.y.b.example.com", "-"), (3, 3, 0.2, 1));
        assert_eq!(got("b.example.com", "-"), (2, 2, 0.2, 1));
        assert_eq!(got("example.com", "-"), (1, 1, 0.1, 1));
        assert_eq!(got("notexample.com", "-"), (1, 1, 0.1, 1));
        assert_eq!(got("x.rollup", "-"), (5, 1, 0.1, 1));
        assert_eq!(got("[192.0.2.1]", "-"), (1, 1, 0.1, 1));
        assert_eq!(got("a.b.example.com", "s").0, 6, "the source's own goes before the policy's exact");
        assert_eq!(policy.settings("a.b.example.com", "s").max_msg_per_connection, Some(8));
        assert_eq!(policy.settings("x.rollup", "s").max_msg_per_connection, Some(9));
        checked += 1;
    });
    assert_eq!(checked, 120);
}

fn permute<const N: usize>(order: &mut [usize; N], from: usize, visit: &mut impl FnMut(&[usize; N])) {
    if from == N {
        return visit(order);
    }
    for next in from..N {
        order.swap(from, next);
        permute(order, from + 1, visit);
        order.swap(from, next);
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = Config::from_toml(&text);
    }

    /// Near misses: the real files with a piece replaced.
    #[test]
    fn no_damaged_file_panics(at in 0..2000_usize, cut in 0..20_usize, put in r#"[ -~\n"\[\]={}*.é]{0,8}"#) {
        let mut text: Vec<char> = BUILT.chars().collect();
        let at = at.min(text.len());
        let end = (at + cut).min(text.len());
        text.splice(at..end, put.chars());
        if let Err(error) = Config::from_toml(&text.into_iter().collect::<String>()) {
            prop_assert!(error.line().is_some(), "{}", error);
            prop_assert!(!error.to_string().contains('\n'), "{}", error);
        }
    }

    #[test]
    fn draws_are_members(n in any::<u128>(), weights in proptest::collection::vec(1..=1_000_000_u32, 1..8)) {
        let mut policy = Policy::new();
        let mut pool = Pool::new("pool");
        for (i, weight) in weights.iter().enumerate() {
            policy = policy.with_source(Source::new(format!("s{i}"))).unwrap();
            pool = pool.with_weighted_source(format!("s{i}"), *weight);
        }
        let policy = policy.with_pool(pool).unwrap();
        let id = MessageId::from_uuid(uuid::Uuid::from_u128(n));
        prop_assert!(policy.source(&policy.choose_source(Some("pool"), &id).unwrap()).is_some());
    }
}

/// The controls, each part as the example in the documentation has it.
const CONTROLS: &str = r#"
[[rollup]]
queue = "google.rollup"
mx = ["*.google.com", "*.googlemail.com"]
match = "lowest"
[[ip-connection-limit]]
cidr = "62.149.128.0/24"
limit = 10
shared = true
per-source = true
[[mx-connection-limit]]
mx = "*.mail.example"
limit = 5
[[reply-rule]]
name = "gmail-over-quota"
match = '^452 4\.2\.2 .*(over ?quota|out of storage)'
actions = ["bounce-rcpt"]
mx = ["*.google.com"]
domain = "*"
queue = ["google.rollup"]
stage = ["rcpt", "dot"]
min-attempts = 2
min-age = "1h"
after = "10/1h"
[domain."*"]
bounce-upon-no-mx = "1h"
bounce-upon-nxdomain = "2h"
no-mx-live-host = "keep"
max-msg-rate = "100/h"
source-ip-max-connect-rate = "10/30s"
source-ip-max-smtp-out = 5
queue-to = "google.rollup"
bounce-fuse = "1000/10m"
"#;

#[test]
fn the_controls_are_read() {
    let policy = Policy::from_toml(CONTROLS).unwrap();
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
    let got = policy.settings("x.example", "default");
    assert_eq!(got.bounce_upon_no_mx, NoMx::After(secs(3600)));
    assert_eq!(got.bounce_upon_nxdomain, NxDomain::After(secs(7200)));
    assert_eq!(got.no_mx_live_host, NoMxLiveHost::Keep);
    assert_eq!(got.source_ip_max_connect_rate, Some("10/30s".parse().unwrap()));
    assert_eq!(got.queue_to, Some("google.rollup".parse().unwrap()));
    assert_eq!(got.bounce_fuse, Some("1000/10m".parse().unwrap()));
}

#[test]
fn the_longest_prefix_wins() {
    let nested = "[[ip-connection-limit]]\ncidr=\"10.0.0.0/8\"\nlimit=1\n\
                  [[ip-connection-limit]]\ncidr=\"10.1.0.0/16\"\nlimit=2\n";
    let policy = Policy::from_toml(nested).unwrap();
    assert_eq!(policy.ip_connection_limit("10.1.2.3".parse().unwrap()).unwrap().limit, 2);
    assert_eq!(policy.ip_connection_limit("10.2.2.3".parse().unwrap()).unwrap().limit, 1);
}
