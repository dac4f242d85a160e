//! What random worlds are made of: policies, zones, servers, and what goes wrong.

use std::fmt::Write;
use std::time::Duration;

use crate::dns::DnsErrorKind;
use crate::reply::Stage;
use crate::scheduler::Bounds;
use crate::storage::StorageErrorKind;
use crate::testing::{
    DnsFault, DnsLie, Failure, Latency, ModelTls, ServerModel, StoreCall, StoreFault, StoreTrouble,
};

/// Domains that mail goes to.
pub(super) const DOMAINS: [&str; 8] = [
    "a.example",
    "b.example",
    "c.example",
    "t1.example",
    "t2.example",
    "t3.example",
    "gone.example",
    "lone.example",
];
/// Addresses with servers.
pub(super) const ADDRESSES: [&str; 6] =
    ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "198.51.100.1", "2001:db8::1"];
/// Sources and pools.
pub(super) const SOURCES: [&str; 3] = ["s1", "s2", "both"];

const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn one_of<T: Copy>(random: &mut fastrand::Rng, all: &[T]) -> Option<T> {
    random.choice(all.iter()).copied()
}

pub(super) fn word(random: &mut fastrand::Rng, all: &[&'static str]) -> &'static str {
    one_of(random, all).unwrap_or_default()
}

/// A line now and then.
fn maybe(text: &mut String, random: &mut fastrand::Rng, key: &str, values: &[&'static str]) {
    if random.bool() {
        let _ = writeln!(text, "{key} = {}", word(random, values));
    }
}

/// A policy file with every control somewhere.
pub(super) fn policy(random: &mut fastrand::Rng) -> String {
    let mut text = String::from("[engine]\nhostname = \"mta.sender.example\"\n");
    maybe(&mut text, random, "max-connections", &["2", "5", "12"]);
    text.push_str("[smtp]\nconnect-timeout = \"20s\"\ngreeting-timeout = \"30s\"\nmail-timeout = \"1m\"\n");
    text.push_str("[[source]]\nname = \"s1\"\naddress = \"203.0.113.1\"\n");
    text.push_str("[[source]]\nname = \"s2\"\naddress = [\"203.0.113.2\", \"2001:db8:25::2\"]\n");
    text.push_str("[[pool]]\nname = \"both\"\nsources = [\"s1\", { name = \"s2\", weight = 2 }]\n");
    if random.bool() {
        let matching = word(random, &["\"lowest\"", "\"any\"", "\"all\""]);
        let _ = writeln!(
            text,
            "[[rollup]]\nqueue = \"tenants.rollup\"\nmx = [\"*.p.example\"]\nmatch = {matching}"
        );
    }
    if random.bool() {
        text.push_str("[[rollup]]\nqueue = \"pair.rollup\"\nmx = [\"mx1.q.example\", \"mx2.q.example\"]\n");
    }
    if random.bool() {
        let limit = word(random, &["1", "2", "3"]);
        let _ = writeln!(text, "[[ip-connection-limit]]\ncidr = \"192.0.2.0/30\"\nlimit = {limit}");
        maybe(&mut text, random, "shared", &["true"]);
        maybe(&mut text, random, "per-source", &["true"]);
    }
    if random.bool() {
        text.push_str("[[ip-connection-limit]]\ncidr = \"198.51.100.1\"\nlimit = 1\n");
    }
    if random.bool() {
        let limit = word(random, &["1", "2"]);
        let _ = writeln!(text, "[[mx-connection-limit]]\nmx = \"*.example\"\nlimit = {limit}");
    }
    rules(&mut text, random);
    text.push_str("[domain.\"*\"]\n");
    settings(&mut text, random);
    for name in ["a.example", "tenants.rollup"] {
        if random.bool() {
            let _ = writeln!(text, "[domain.\"{name}\"]");
            settings(&mut text, random);
        }
    }
    routes(&mut text, random);
    text
}

/// Domains that leave the way that DNS shows.
fn routes(text: &mut String, random: &mut fastrand::Rng) {
    let ways = [
        "smtp-hosts = [\"mx1.q.example\", \"[192.0.2.4]:25\"]",
        "queue-to = \"tenants.rollup\"",
        "disable-mx-rollup = true",
    ];
    for domain in ["b.example", "t3.example", "lone.example"] {
        if random.u8(..4) == 0 {
            let _ = writeln!(text, "[domain.\"{domain}\"]\n{}", word(random, &ways));
        }
    }
}

fn settings(text: &mut String, random: &mut fastrand::Rng) {
    if cfg!(feature = "tls") {
        let levels = ["\"off\"", "\"opportunistic\"", "\"required\"", "\"verify\""];
        maybe(text, random, "use-starttls", &levels);
    }
    if random.u8(..4) == 0 {
        maybe(text, random, "bounce-fuse", &["\"3/1h\"", "\"1/10m\"", "\"20/1d\""]);
    }
    let lists = [
        "[\"5m\", \"10m\", \"30m\"]",
        "[\"3m\", \"15m\", \"1h\"]",
        "[\"7m\", \"1h\"]",
        "[\"20m\", \"2h\", \"6h\"]",
    ];
    let _ = writeln!(text, "retry-after = {}", word(random, &lists));
    maybe(text, random, "retry-jitter", &["0.1", "0.5"]);
    maybe(text, random, "bounce-after", &["\"4h\"", "\"1d\"", "\"3d\""]);
    maybe(text, random, "max-attempts", &["2", "6"]);
    maybe(text, random, "bounce-upon-no-mx", &["true", "\"1h\"", "\"90m\""]);
    maybe(text, random, "bounce-upon-nxdomain", &["true", "\"40m\""]);
    maybe(text, random, "no-mx-live-host", &["\"keep\""]);
    maybe(text, random, "retry-upon-new-mail", &["true"]);
    maybe(text, random, "max-smtp-out", &["1", "2", "3", "8"]);
    maybe(text, random, "source-ip-max-smtp-out", &["1", "2"]);
    maybe(text, random, "max-msg-per-connection", &["1", "3"]);
    maybe(text, random, "max-rcpt-per-transaction", &["1", "2"]);
    if random.u8(..3) == 0 {
        maybe(text, random, "max-msg-rate", &["\"10/m\"", "\"2/s\"", "\"200/h\""]);
        maybe(text, random, "max-connect-rate", &["\"3/m\"", "\"1/s\""]);
        maybe(text, random, "source-ip-max-msg-rate", &["\"30/m\""]);
        maybe(text, random, "source-ip-max-connect-rate", &["\"6/m\""]);
    }
    maybe(text, random, "connection-idle-timeout", &["\"0s\"", "\"20s\"", "\"1m\""]);
    maybe(text, random, "backoff-retry-after", &["[\"15m\", \"1h\"]"]);
    maybe(text, random, "backoff-max-smtp-out", &["2"]);
    maybe(text, random, "backoff-max-msg-rate", &["\"6/m\"", "\"unlimited\""]);
    maybe(text, random, "backoff-to-normal-after", &["\"30m\"", "\"3h\""]);
    maybe(text, random, "backoff-to-normal-after-delivery", &["true"]);
}

fn rules(text: &mut String, random: &mut fastrand::Rng) {
    let all = [
        "name = \"slow\"\nmatch = '^421 .*many'\nactions = [\"mode=backoff\"]\nafter = \"2/1h\"",
        "name = \"full\"\nmatch = '^452 .*full'\nactions = [\"bounce-rcpt\"]\nmin-attempts = 2",
        "name = \"grey\"\nmatch = 'greylisted'\nactions = [\"retry-after=6m\"]",
        "name = \"block\"\nmatch = 'blocked'\nactions = [\"disable-source-ip\", \"reenable-after=2h\"]",
        "name = \"cap\"\nmatch = 'many'\nactions = [\"limit-connections=1 for=20m\", \"limit-rate=12/m for=20m\"]",
        "name = \"next\"\nmatch = '^554 '\nactions = [\"skip-mx\"]",
        "name = \"again\"\nmatch = '^550 5\\.7\\.1'\nactions = [\"retry-rcpt\"]",
        "name = \"rest\"\nmatch = '^450 '\nactions = [\"defer-queue\"]\nafter = \"3/10m\"",
        "name = \"closed\"\nmatch = '^521 '\nactions = [\"bounce-queue\"]",
        "name = \"none\"\nmatch = 'no mail'\nactions = [\"bounce-queue\", \"mode=backoff\"]\nafter = \"2/30m\"",
        "name = \"well\"\nmatch = 'later'\nactions = [\"mode=normal\"]",
    ];
    for rule in all {
        if random.u8(..3) == 0 {
            let _ = writeln!(text, "[[reply-rule]]\n{rule}");
        }
    }
}

/// A zone in which some domains share hosts, some have none, and records run out soon.
pub(super) fn zone(random: &mut fastrand::Rng) -> String {
    let mut zone = String::new();
    let ttl = random.u32(60..7_200);
    for domain in DOMAINS {
        match domain {
            "gone.example" if random.u8(..4) > 0 => {}
            "lone.example" => {
                let _ = writeln!(zone, "{domain}. {ttl} A {}", word(random, &["192.0.2.1", "192.0.2.4"]));
            }
            _ => mx(&mut zone, random, domain, ttl),
        }
    }
    for host in ["mx1.q.example", "mx2.q.example", "mx.p.example", "alt.p.example", "mx.own.example"] {
        for _ in 0..random.usize(1..3) {
            let address = word(random, &ADDRESSES);
            let kind = if address.contains(':') { "AAAA" } else { "A" };
            let _ = writeln!(zone, "{host}. {ttl} {kind} {address}");
        }
    }
    zone
}

fn mx(zone: &mut String, random: &mut fastrand::Rng, domain: &str, ttl: u32) {
    let records: &[&str] = match (domain.starts_with('t'), random.u8(..12)) {
        (true, 0..8) => &["10 mx.p.example.", "20 alt.p.example."],
        (_, 0) => &["0 ."],
        (_, 1) => &["10 nowhere.example."],
        (_, 2..5) => &["10 mx1.q.example.", "10 mx2.q.example."],
        (_, 5..7) => &["10 mx1.q.example.", "20 mx2.q.example.", "30 mx.own.example."],
        (_, 7) => &["10 alt.p.example."],
        _ => &["10 mx.own.example."],
    };
    for record in records {
        let _ = writeln!(zone, "{domain}. {ttl} MX {record}");
    }
}

/// A server, more or less willing.
pub(super) fn server(random: &mut fastrand::Rng) -> ServerModel {
    let tls = match random.u8(..8) {
        0 => ModelTls::None,
        1 => ModelTls::Required,
        _ => ModelTls::Offered,
    };
    let mut model = ServerModel::new().with_tls(tls);
    match random.u8(..4) {
        0 => {}
        1 => {
            model = model
                .with_connect_latency(Duration::from_millis(random.u64(1..200)))
                .with_reply_latency(Latency::Uniform(Duration::from_millis(1), Duration::from_secs(3)));
        }
        _ => {
            let (median, p99) = (Duration::from_millis(random.u64(5..900)), Duration::from_secs(20));
            model = model.with_reply_latency(Latency::Skewed { median, p99 });
        }
    }
    if random.u8(..4) == 0 {
        model = model.with_greylist(Duration::from_secs(random.u64(60..1_800)));
    }
    if random.u8(..5) == 0 {
        model = model.with_message_rate(random.u32(2..60), 60 * MINUTE);
    }
    if random.u8(..4) == 0 {
        model = model.with_connection_limit(random.u32(1..4));
    }
    if random.u8(..5) == 0 {
        model = model.with_messages_per_connection(random.u32(1..5));
    }
    if random.u8(..4) == 0 {
        model = model.with_idle_timeout(Duration::from_secs(random.u64(1..30)));
    }
    for name in 0..4 {
        if random.u8(..3) == 0 {
            let reply =
                word(random, &["550 5.1.1 unknown", "452 4.2.2 full", "450 4.2.1 later", "550 5.7.1 no"]);
            let domain = word(random, &DOMAINS);
            model = model.with_mailbox(&format!("r{name}@{domain}"), reply);
        }
    }
    for _ in 0..random.usize(..3) {
        let probability = [0.02, 0.1, 0.4].into_iter().nth(random.usize(..3)).unwrap_or(0.1);
        model = model.with_chance_of(probability, failure(random));
    }
    if random.u8(..3) == 0 {
        let from = MINUTE * random.u32(..2_000);
        let until = from + MINUTE * random.u32(1..600);
        model = model.with_failure(from..until, failure(random));
    }
    model
}

fn failure(random: &mut fastrand::Rng) -> Failure {
    let stages = [Stage::Connect, Stage::Ehlo, Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Dot];
    let stage = one_of(random, &stages).unwrap_or(Stage::Mail);
    let replies = [
        "421 4.3.2 too many",
        "450 4.3.0 later",
        "554 5.7.0 blocked",
        "521 5.3.2 no mail",
        "451 4.7.1 greylisted",
    ];
    match random.u8(..8) {
        0 => Failure::Refuse,
        1 => Failure::Blackhole,
        2 => Failure::Slow(Duration::from_secs(random.u64(1..90))),
        3 | 4 => Failure::Close(stage),
        _ => Failure::Reply(stage, word(random, &replies).to_owned()),
    }
}

/// What DNS says falsely for a while.
pub(super) fn dns_faults(random: &mut fastrand::Rng, now: Duration) -> Vec<DnsFault> {
    let count = random.usize(..3);
    let mut fault = || {
        let lie = match random.u8(..8) {
            0 => DnsLie::Fails(DnsErrorKind::ServFail),
            1 => DnsLie::Fails(DnsErrorKind::Timeout),
            2 => DnsLie::Fails(DnsErrorKind::Unreachable),
            3 => DnsLie::NxDomain,
            4 => DnsLie::NoData,
            5 => DnsLie::Slow(Duration::from_secs(random.u64(1..40))),
            6 => DnsLie::Exchanger("mx1.q.example".to_owned()),
            _ => DnsLie::Address([192, 0, 2, 3].into()),
        };
        let until = now + MINUTE * random.u32(1..400);
        let fault = DnsFault::new(lie).during(now..until);
        let fault = if random.bool() { fault.about(word(random, &DOMAINS)) } else { fault };
        if random.bool() { fault.with_chance(0.3) } else { fault }
    };
    (0..count).map(|_| fault()).collect()
}

/// What goes wrong in the store soon.
pub(super) fn store_fault(random: &mut fastrand::Rng) -> StoreFault {
    if random.u8(..3) == 0 {
        return other_store_fault(random);
    }
    let calls =
        [StoreCall::Insert, StoreCall::Commit, StoreCall::Commit, StoreCall::Claim, StoreCall::Bodies];
    let call = one_of(random, &calls).unwrap_or(StoreCall::Commit);
    let trouble = match random.u8(..8) {
        0 => StoreTrouble::Fails(StorageErrorKind::Full),
        1 | 2 => StoreTrouble::Fails(StorageErrorKind::Temporary),
        3 if call == StoreCall::Commit => StoreTrouble::Fails(StorageErrorKind::OutcomeUnknown),
        // A body that is read slowly would delay what a rate has let through.
        3 | 4 if call == StoreCall::Bodies => StoreTrouble::Fails(StorageErrorKind::Temporary),
        3 | 4 => StoreTrouble::Slow(Duration::from_millis(random.u64(1..20_000))),
        _ => StoreTrouble::Crash { applied: random.bool() },
    };
    let fault = StoreFault::new(call, trouble).at(random.u64(1..12));
    match trouble {
        StoreTrouble::Crash { .. } => fault,
        _ => fault.times(random.u64(1..5)),
    }
}

/// In the calls that neither take mail nor settle it.
fn other_store_fault(random: &mut fastrand::Rng) -> StoreFault {
    let calls = [
        StoreCall::Outbox,
        StoreCall::List,
        StoreCall::Count,
        StoreCall::Usage,
        StoreCall::Renew,
        StoreCall::Maintain,
        StoreCall::Heads,
        StoreCall::State,
    ];
    let call = one_of(random, &calls).unwrap_or(StoreCall::Outbox);
    let trouble = match random.u8(..4) {
        0 => StoreTrouble::Crash { applied: random.bool() },
        1 | 2 => StoreTrouble::Fails(StorageErrorKind::Temporary),
        _ => StoreTrouble::Slow(Duration::from_millis(random.u64(1..5_000))),
    };
    let fault = StoreFault::new(call, trouble).at(random.u64(1..4));
    match trouble {
        StoreTrouble::Crash { .. } => fault,
        _ => fault.times(random.u64(1..5)),
    }
}

/// Every other time so much that small messages have a share of it.
fn wide_at_times(octets: usize) -> usize {
    if octets.is_multiple_of(2) { octets * 200 } else { octets }
}

/// What is held in memory: often little, so that the bounds are met.
pub(super) fn bounds(random: &mut fastrand::Rng) -> Bounds {
    if random.bool() {
        return Bounds::default();
    }
    Bounds {
        window: one_of(random, &[2, 4, 8, 16, 60]).unwrap_or(4),
        window_per_destination: random.usize(1..20),
        held_octets: random.usize(..2_000),
        transit_octets: wide_at_times(random.usize(1..1_000)),
        unsettled: one_of(random, &[1, 2, 4, 16]).unwrap_or(1),
        look_ups: random.usize(1..3),
        claims: random.usize(1..5),
        submissions: random.usize(1..12),
        submission_octets: random.usize(1..10_000),
    }
}
