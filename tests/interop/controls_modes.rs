//! Rules about whole queues: at the greeting, caps for a time, and what a restart keeps.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::process::Mailer;
use crate::recorder::{GREETING, Gate, Recorder, most_at_once};
use crate::site::Site;
use crate::{submission, text, time};

fn to(domain: &str) -> String {
    submission(domain, &format!("a@{domain}.example"), "1\r\n")
}

/// `reply` to the first `count` of the lines that begin with `beginning`.
fn at_first(count: usize, beginning: &'static str, reply: &'static str) -> impl Fn(&str) -> Option<String> {
    let seen = AtomicUsize::new(0);
    move |line| {
        let refused = line.starts_with(beginning) && seen.fetch_add(1, Ordering::Relaxed) < count;
        refused.then(|| reply.to_owned())
    }
}

#[test]
fn a_greeting_can_disable_the_source() {
    let Some(mut site) = Site::new() else { return };
    let blocked = std::net::IpAddr::from(site.ip(101));
    let recorder = Recorder::by_client(site.smtp(1), move |from, line| {
        (from == blocked && line == GREETING).then(|| "554 5.7.1 your address is blocked".to_owned())
    });
    site.serve_dns("mail MX 10 mx\nmx A @1\n");
    let config = site.policy(&format!(
        "[[source]]\nname = \"one\"\naddress = \"{}\"\n[[source]]\nname = \"two\"\naddress = \"{}\"\n\
         [[pool]]\nname = \"both\"\nsources = [\"one\", \"two\"]\n\
         [domain.\"*\"]\nretry-after = \"1s\"\n\
         [[reply-rule]]\nname = \"blocked\"\nmatch = 'address is blocked'\nactions = [\"disable-source-ip\"]\n",
        site.ip(101),
        site.ip(102),
    ));
    let line = |number: usize, source: &str| {
        json!({ "ref": number.to_string(), "from": "", "to": ["a@mail.example"], "data": "", "source": source })
            .to_string()
    };
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed((0..20).map(|number| line(number, "both")));
    mailer.until_settled(20);
    let first = mailer.terminate();
    assert_eq!(first.with("delivered", &[("source", "two")]).len(), 20, "{:#?}", first.records);
    assert_eq!(first.count("deferred"), 0, "a greeting charges nobody: {:#?}", first.records);
    first.only("queue-mode", &[("mode", "source-disabled"), ("source", "one"), ("rule", "blocked")]);
    let before = recorder.visits().iter().filter(|visit| visit.from == blocked).count();

    // It stays disabled after a restart.
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed((0..20).map(|number| line(number, "both")));
    mailer.until_settled(20);
    let second = mailer.terminate();
    assert_eq!(second.with("delivered", &[("source", "two")]).len(), 20, "{:#?}", second.records);
    let after = recorder.visits().iter().filter(|visit| visit.from == blocked).count();
    assert_eq!(after, before, "{:#?}", second.records);
}

#[test]
fn all_sources_of_a_pool_disabled() {
    let Some(mut site) = Site::new() else { return };
    let recorder =
        Recorder::scripted(site.smtp(1), at_first(2, GREETING, "554 5.7.1 your address is blocked"));
    site.serve_dns("mail MX 10 mx\nmx A @1\n");
    let config = site.policy(&format!(
        "[[source]]\nname = \"one\"\naddress = \"{}\"\n[[source]]\nname = \"two\"\naddress = \"{}\"\n\
         [[pool]]\nname = \"both\"\nsources = [\"one\", \"two\"]\n\
         [domain.\"*\"]\nretry-after = \"1s\"\n\
         [[reply-rule]]\nname = \"blocked\"\nmatch = 'address is blocked'\n\
         actions = [\"disable-source-ip reenable-after=3s\"]\n",
        site.ip(101),
        site.ip(102),
    ));
    let line =
        json!({ "ref": "a", "from": "", "to": ["a@mail.example"], "data": "", "source": "both" }).to_string();
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed([line]);
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.with("queue-mode", &[("mode", "source-disabled")]).len(), 2, "{:#?}", ended.records);
    ended.only("queue-mode", &[("mode", "all-sources-disabled")]);
    let enabled = ended.with("queue-mode", &[("mode", "source-enabled")]);
    let delivered = ended.only("delivered", &[("ref", "a")]);
    assert_eq!(delivered["attempts"], 1, "{delivered}");
    assert!(!enabled.is_empty(), "{:#?}", ended.records);
    let visits = recorder.visits();
    assert_eq!(visits.len(), 3, "{visits:#?}");
    assert!(visits[2].at.saturating_since(visits[0].at) >= Duration::from_secs(3), "{visits:#?}");
    assert_ne!(visits[0].from, visits[1].from);
}

#[test]
fn backoff_outlives_a_restart_and_ends_by_its_time() {
    let Some(mut site) = Site::new() else { return };
    let _recorder = Recorder::scripted(site.smtp(1), at_first(1, "RCPT", "450 4.7.0 slow down"));
    site.serve_dns("slow MX 10 mx\nmx A @1\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\nbackoff-retry-after = \"1s\"\nbackoff-to-normal-after = \"4s\"\n\
         backoff-max-msg-rate = \"1/10m\"\n\
         [[reply-rule]]\nname = \"slow-down\"\nmatch = 'slow down'\nactions = [\"mode=backoff\"]\n",
    );
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed([to("slow")]);
    let backoff = mailer.until("backoff", |record| record["type"] == "queue-mode");
    let first = mailer.terminate();
    assert_eq!(text(&backoff, "mode"), "backoff", "{backoff}");
    assert_eq!(first.count("deferred"), 1, "{:#?}", first.records);

    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed((0..5).map(|_| to("slow")));
    let normal = mailer.until("normal", |record| record["type"] == "queue-mode");
    assert_eq!(text(&normal, "mode"), "normal", "{normal}");
    let lasted = time(&normal, "time").saturating_since(time(&backoff, "time"));
    assert!(lasted >= Duration::from_millis(3900), "{lasted:?}");
    mailer.until_total("delivered", 6);
    let ended = mailer.terminate();
    let early = ended.of_type("delivered").filter(|record| time(record, "time") < time(&normal, "time"));
    assert!(early.count() <= 1, "one in ten minutes: {:#?}", ended.records);
}

#[test]
fn backoff_can_end_with_a_delivery() {
    let Some(mut site) = Site::new() else { return };
    let _recorder = Recorder::scripted(site.smtp(1), at_first(2, "RCPT", "450 4.7.0 slow down"));
    site.serve_dns("slow MX 10 mx\nmx A @1\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\nbackoff-retry-after = [\"1s\", \"2s\"]\n\
         backoff-max-msg-rate = \"unlimited\"\nbackoff-to-normal-after-delivery = true\n\
         [[reply-rule]]\nname = \"slow-down\"\nmatch = 'slow down'\nactions = [\"mode=backoff\"]\n",
    );
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed([to("slow")]);
    mailer.until_settled(1);
    let ended = mailer.terminate();
    assert_eq!(ended.only("delivered", &[])["attempts"], 3);
    let modes: Vec<_> = ended.of_type("queue-mode").map(|record| text(record, "mode")).collect();
    assert_eq!(modes, ["backoff", "normal"], "entered once: {:#?}", ended.records);
}

#[test]
fn a_rule_defers_the_queue() {
    let Some(mut site) = Site::new() else { return };
    let recorder = Recorder::scripted(site.smtp(1), at_first(1, "RCPT", "450 4.7.0 not this hour"));
    site.serve_dns("slow MX 10 mx\nmx A @1\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"2s\"\nmax-smtp-out = 1\n\
         [[reply-rule]]\nname = \"hour\"\nmatch = 'not this hour'\nactions = [\"defer-queue\"]\n",
    );
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed((0..20).map(|_| to("slow")));
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 20), "{}", ended.stderr);
    ended.only("queue-mode", &[("mode", "deferred"), ("rule", "hour")]);
    // What was under way may end; then nothing for two seconds.
    let times = recorder.times("RCPT");
    let gap = times.windows(2).map(|pair| pair[1].saturating_since(pair[0])).max().unwrap();
    assert!(gap >= Duration::from_millis(1900), "{times:?}");
    let before = times.iter().filter(|at| at.saturating_since(times[0]) < Duration::from_secs(1)).count();
    assert!(before <= 2, "{before} recipients offered before the queue stopped: {times:?}");
}

#[test]
fn a_rule_caps_connections_for_a_time() {
    let Some(mut site) = Site::new() else { return };
    let gate = Gate::default();
    let held = gate.clone();
    let refuse = at_first(1, "RCPT TO:<a@", "450 4.7.0 too many connections");
    let recorder = Recorder::scripted(site.smtp(1), move |line| {
        if line == "." {
            held.pass();
        }
        refuse(line)
    });
    let _free = Recorder::start(site.smtp(2));
    site.serve_dns("slow MX 10 mx\nmx A @1\nfree MX 10 mx2\nmx2 A @2\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\nmax-msg-per-connection = 1\n\
         [[reply-rule]]\nname = \"cap\"\nmatch = 'too many conn'\nactions = [\"limit-connections=2 for=10m\"]\n",
    );
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed([to("slow")]);
    mailer.until_count("deferred", 1);
    mailer.feed((0..20).map(|_| submission("b", "b@slow.example", "1\r\n")));
    mailer.until_total("received", 21);
    recorder.until_open(2);
    for _ in 0..3 {
        mailer.feed([to("free")]);
        mailer.until("free", |record| record["type"] == "delivered");
    }
    gate.open();
    mailer.until_total("delivered", 23);
    mailer.terminate();
    assert_eq!(most_at_once(&recorder.visits()[1..]), 2, "{:#?}", recorder.visits());
}

#[test]
fn a_rule_caps_the_rate_for_a_time() {
    let Some(mut site) = Site::new() else { return };
    let recorder = Recorder::scripted(site.smtp(1), at_first(1, "RCPT", "450 4.7.0 too fast"));
    site.serve_dns("slow MX 10 mx\nmx A @1\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"1s\"\n\
         [[reply-rule]]\nname = \"cap\"\nmatch = 'too fast'\nactions = [\"limit-rate=5/s for=10m\"]\n",
    );
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed([to("slow")]);
    mailer.until_count("deferred", 1);
    mailer.feed((0..19).map(|_| to("slow")));
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 20), "{}", ended.stderr);
    crate::controls_limits::assert_paced(&recorder.times("RCPT")[1..], 5.0, 5.0);
}

#[test]
fn a_greeting_can_bounce_the_queue() {
    let Some(mut site) = Site::new() else { return };
    let _recorder =
        Recorder::scripted(site.smtp(1), at_first(99, GREETING, "554 5.3.2 this domain is closed"));
    site.serve_dns("gone MX 10 mx\nmx A @1\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\n\
         [[reply-rule]]\nname = \"closed\"\nmatch = 'domain is closed'\nactions = [\"bounce-queue\"]\n",
    );
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed((0..20).map(|_| to("gone")));
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let bounced = ended.with("bounced", &[("rule", "closed"), ("stage", "connect"), ("status", "5.3.2")]);
    assert_eq!(bounced.len(), 20, "{:#?}", ended.records);
}
