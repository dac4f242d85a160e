//! Rules about replies.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::process::Mailer;
use crate::recorder::{Gate, Recorder};
use crate::site::Site;
use crate::{submission, text, time};

/// The reply as Gmail gives it.
const OVER_QUOTA: &str = "452 4.2.2 The email account that you tried to reach is over quota";

fn to(address: &str) -> String {
    submission(address, &format!("{address}.example"), "1\r\n")
}

fn by(source: &str, reference: usize, address: &str) -> String {
    json!({ "ref": reference.to_string(), "from": "s@sender.example", "to": [format!("{address}.example")],
        "data": "1\r\n", "source": source })
    .to_string()
}

fn seconds_until_next(record: &Value) -> f64 {
    time(record, "next_attempt").saturating_since(time(record, "time")).as_secs_f64()
}

#[test]
fn over_quota_bounces_and_nothing_else_does() {
    let Some(mut site) = Site::new() else { return };
    let script = |line: &str| {
        let (verb, address) = line.split_once('<')?;
        let reply = match address.split('@').next()? {
            "full" => OVER_QUOTA,
            "lines" => {
                "452-4.2.2 The email account that you tried to reach is\r\n452-4.2.2 Over\r\n452 4.2.2 Quota"
            }
            "busy" => "450 4.2.1 The email account that you tried to reach is over quota of mail an hour",
            "gone" => "550 5.2.1 disabled",
            _ => return None,
        };
        (verb == "RCPT TO:").then(|| reply.to_owned())
    };
    let google = Recorder::scripted(site.smtp(1), script);
    let _other = Recorder::scripted(site.smtp(2), script);
    site.serve_dns("gmail MX 10 mx.google\nmx.google A @1\nother MX 10 mx.other\nmx.other A @2\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\n\
         [[reply-rule]]\nname = \"gmail-over-quota\"\nmx = [\"*.google.example\"]\n\
         match = '^452 4\\.2\\.2 .*(over ?quota|out of storage)'\nactions = [\"bounce-rcpt\"]\n\
         [[reply-rule]]\nname = \"disabled-for-now\"\nmatch = '^550 5\\.2\\.1'\nactions = [\"retry-rcpt\", \"retry-after=20m\"]\n",
    );
    let mut mailer = Mailer::start(&config, &[]);
    mailer
        .feed(["full@gmail", "lines@gmail", "busy@gmail", "gone@gmail", "fine@gmail", "full@other"].map(to));
    let mut left = 6;
    mailer.until("a record of each", |record| {
        left -= usize::from(["delivered", "deferred", "bounced"].contains(&text(record, "type")));
        left == 0
    });
    let ended = mailer.terminate();

    for (reference, words) in [
        ("full@gmail", "The email account that you tried to reach is over quota"),
        ("lines@gmail", "The email account that you tried to reach is Over Quota"),
    ] {
        let bounced = ended.only("bounced", &[("ref", reference)]);
        assert_eq!(text(bounced, "rule"), "gmail-over-quota");
        assert_eq!(
            (text(bounced, "stage"), text(bounced, "status")),
            ("rcpt", "4.2.2"),
            "as the server said"
        );
        assert_eq!((&bounced["reply"]["code"], text(&bounced["reply"], "enhanced")), (&json!(452), "4.2.2"));
        assert_eq!(text(&bounced["reply"], "text"), words);
        assert_eq!((text(bounced, "category"), &bounced["attempts"]), ("quota-issues", &json!(1)));
    }
    for (reference, rule, minutes) in [
        ("busy@gmail", None, 10.0),
        ("gone@gmail", Some("disabled-for-now"), 20.0),
        ("full@other", None, 10.0),
    ] {
        let deferred = ended.only("deferred", &[("ref", reference)]);
        assert_eq!(deferred.get("rule").and_then(Value::as_str), rule, "{deferred}");
        let wait = seconds_until_next(deferred);
        assert!((minutes * 60.0 - 1.0..=minutes * 60.0).contains(&wait), "{deferred}");
    }
    assert_eq!((ended.count("bounced"), ended.count("deferred"), ended.count("delivered")), (2, 3, 1));
    assert_eq!(google.taken().len(), 1);
}

#[test]
fn backoff_begins_with_one_reply_and_ends_with_another() {
    let Some(mut site) = Site::new() else { return };
    let tried = AtomicUsize::new(0);
    let recorder = Recorder::scripted(site.smtp(1), move |line| {
        let reply = match (line.split(' ').next()?, line.contains("<a@")) {
            ("RCPT", true) => match tried.fetch_add(1, Ordering::Relaxed) {
                0 => "421 4.7.0 Too many messages, slow down",
                1 => "450 4.2.0 Greylisted, but welcome again",
                _ => return None,
            },
            _ => return None,
        };
        Some(reply.to_owned())
    });
    site.serve_dns("slow MX 10 mx\nmx A @1\ncalm MX 10 mx\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\nbackoff-retry-after = [\"1s\"]\nbackoff-max-msg-rate = \"unlimited\"\n\
         [[reply-rule]]\nname = \"slow-down\"\nmatch = '^421 .*slow down'\nactions = [\"mode=backoff\"]\n\
         [[reply-rule]]\nname = \"welcome\"\nmatch = 'welcome again'\nactions = [\"mode=normal\"]\n",
    );
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed([to("a@slow")]);
    let backoff = mailer.until("backoff", |record| record["type"] == "queue-mode");
    mailer.feed([to("b@calm")]);
    let normal = mailer.until("normal", |record| record["type"] == "queue-mode");
    let mut deferred = 0;
    let ended = {
        // The record of the attempt may come before or after that of the mode.
        mailer.feed([to("c@slow")]);
        mailer.until("delivered", |record| text(record, "ref") == "c@slow" && record["type"] == "delivered");
        mailer.terminate()
    };
    for (record, mode, rule, code) in
        [(&backoff, "backoff", "slow-down", 421), (&normal, "normal", "welcome", 450)]
    {
        assert_eq!((text(record, "queue"), text(record, "source")), ("slow.example", "default"), "{record}");
        assert_eq!((text(record, "mode"), text(record, "rule")), (mode, rule), "{record}");
        assert_eq!(record["reply"]["code"], code, "{record}");
    }
    for (record, seconds) in ended.with("deferred", &[("ref", "a@slow")]).into_iter().zip([1.0, 600.0]) {
        let wait = seconds_until_next(record);
        assert!((seconds - 1.0..=seconds).contains(&wait), "{seconds}: {record}");
        deferred += 1;
    }
    assert_eq!((deferred, ended.count("deferred"), ended.count("queue-mode")), (2, 2, 2));
    let times = recorder.times("RCPT TO:<a@");
    assert!(times[1].saturating_since(times[0]).as_secs() >= 1, "{times:?}");
}

#[test]
fn in_backoff_connections_and_rate_are_its_own() {
    let Some(mut site) = Site::new() else { return };
    let first = AtomicUsize::new(0);
    let recorder = Recorder::scripted(site.smtp(1), move |line| {
        let refused = line.starts_with("RCPT") && first.fetch_add(1, Ordering::Relaxed) == 0;
        refused.then(|| "450 4.7.0 slow down".to_owned())
    });
    site.serve_dns("slow MX 10 mx\nmx A @1\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\nmax-smtp-out = 10\nmax-msg-per-connection = 1\n\
         backoff-retry-after = [\"1s\"]\nbackoff-max-msg-rate = \"4/s\"\nbackoff-max-smtp-out = 1\n\
         backoff-to-normal-after-delivery = false\n\
         [[reply-rule]]\nname = \"slow-down\"\nmatch = 'slow down'\nactions = [\"mode=backoff\"]\n",
    );
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed([to("a@slow")]);
    mailer.until("backoff", |record| record["type"] == "queue-mode");
    mailer.feed((0..15).map(|_| to("b@slow")));
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 16), "{}", ended.stderr);
    let visits = recorder.visits();
    assert_eq!(crate::recorder::most_at_once(&visits[1..]), 1, "{visits:#?}");
    let times = recorder.times("RCPT");
    crate::controls_limits::assert_paced(&times[1..], 4.0, 4.0);
}

#[test]
fn skip_mx_goes_on_with_the_next_host() {
    let Some(mut site) = Site::new() else { return };
    let first = Recorder::scripted(site.smtp(1), |line| {
        line.starts_with("RCPT").then(|| "554 5.7.1 blocked by a list".to_owned())
    });
    let second = Recorder::scripted(site.smtp(2), |line| {
        line.contains("RCPT TO:<b@").then(|| "554 5.7.1 blocked by a list".to_owned())
    });
    site.serve_dns("two MX 10 mx1\ntwo MX 20 mx2\nmx1 A @1\nmx2 A @2\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\n\
         [[reply-rule]]\nname = \"listed\"\nmatch = 'blocked by a list'\nactions = [\"skip-mx\"]\n",
    );
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed([to("a@two")]);
    mailer.until_settled(1);
    mailer.feed([to("b@two")]);
    mailer.until("held", |record| ["deferred", "bounced", "queue-deferred"].contains(&text(record, "type")));
    let ended = mailer.terminate();
    assert_eq!(text(ended.only("delivered", &[("ref", "a@two")]), "mx"), "mx2.example");
    assert_eq!((first.taken().len(), second.taken().len()), (0, 1));
    // Refused by all hosts, with a 5xx: held all the same.
    assert_eq!(ended.count("bounced"), 0, "{:#?}", ended.records);
}

#[test]
fn a_blocked_source_is_disabled_and_mail_goes_by_the_other() {
    let Some(mut site) = Site::new() else { return };
    let blocked = IpAddr::from(site.ip(101));
    let recorder = Recorder::by_client(site.smtp(1), move |from, line| {
        (from == blocked && line.starts_with("RCPT")).then(|| "450 4.7.0 your address is blocked".to_owned())
    });
    site.serve_dns("mail MX 10 mx\nmx A @1\n");
    let config = site.policy(&format!(
        "[[source]]\nname = \"one\"\naddress = \"{}\"\nehlo = \"one.sender.example\"\n\
         [[source]]\nname = \"two\"\naddress = \"{}\"\nehlo = \"two.sender.example\"\n\
         [[pool]]\nname = \"both\"\nsources = [\"one\", \"two\"]\n\
         [domain.\"*\"]\nretry-after = \"1s\"\n\
         [[reply-rule]]\nname = \"blocked\"\nmatch = 'address is blocked'\n\
         actions = [\"disable-source-ip reenable-after=1h\"]\n",
        site.ip(101),
        site.ip(102),
    ));
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed((0..30).map(|number| by("both", number, "a@mail")));
    mailer.until_settled(30);
    // Without a pool there is no other: it waits, uncharged.
    mailer.feed([by("one", 30, "b@mail"), by("two", 31, "c@mail")]);
    mailer.until_settled(1);
    let ended = mailer.terminate();

    let disabled = ended.only("queue-mode", &[("mode", "source-disabled"), ("rule", "blocked")]);
    assert_eq!(text(disabled, "source"), "one", "{disabled}");
    assert_eq!(disabled["reply"]["code"], 450, "{disabled}");
    assert!(time(disabled, "until") > time(disabled, "time"), "{disabled}");
    assert_eq!(ended.with("delivered", &[("source", "two")]).len(), 31, "{:#?}", ended.records);
    assert!(ended.with("deferred", &[("ref", "30")]).is_empty(), "{:#?}", ended.records);
    let ehlo: BTreeSet<_> = recorder.heard().into_iter().filter(|line| line.starts_with("EHLO")).collect();
    assert!(ehlo.contains("EHLO two.sender.example"), "{ehlo:?}");
    // What the disabled source offered before: no more than its connections had under way.
    assert!(recorder.visits().iter().filter(|visit| visit.from == blocked).count() <= 20);
    assert!(!recorder.heard().iter().any(|line| line.contains("<b@")));
}

#[test]
fn bounce_queue_bounces_what_was_never_offered() {
    let Some(mut site) = Site::new() else { return };
    let gate = Gate::default();
    let held = gate.clone();
    let recorder = Recorder::scripted(site.smtp(1), move |line| {
        line.starts_with("RCPT").then(|| {
            held.pass();
            "550 5.7.1 this domain moved away".to_owned()
        })
    });
    site.serve_dns("gone MX 10 mx\nmx A @1\ngood MX 10 mx2\nmx2 A @2\n");
    let _good = Recorder::start(site.smtp(2));
    let config = site.policy(
        "[domain.\"*\"]\nmax-smtp-out = 1\n\
         [[reply-rule]]\nname = \"moved\"\nmatch = 'moved away'\nactions = [\"bounce-queue\"]\n",
    );
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed((0..50).map(|_| to("a@gone")));
    mailer.until_count("received", 50);
    mailer.feed([to("a@good")]);
    mailer.until_settled(1);
    gate.open();
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let bounced =
        ended.with("bounced", &[("rule", "moved"), ("status", "5.7.1"), ("domain", "gone.example")]);
    assert_eq!((bounced.len(), ended.count("bounced")), (50, 50), "{:#?}", ended.records);
    assert!(bounced.iter().all(|record| record["reply"]["code"] == 550));
    assert!(recorder.times("RCPT").len() < 10, "{:?}", recorder.heard());
    ended.only("delivered", &[("ref", "a@good")]);
}

#[test]
fn a_rule_may_act_only_after_some_replies() {
    let Some(mut site) = Site::new() else { return };
    let _recorder =
        Recorder::scripted(site.smtp(1), |line| line.starts_with("RCPT").then(|| OVER_QUOTA.to_owned()));
    site.serve_dns("full MX 10 mx\nmx A @1\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\n\
         [[reply-rule]]\nname = \"third\"\nmatch = 'over quota'\nactions = [\"bounce-rcpt\"]\nafter = \"3/1m\"\n",
    );
    let mut mailer = Mailer::start(&config, &[]);
    for number in 0..5 {
        mailer.feed([to("a@full")]);
        let record =
            mailer.until("one record each", |record| ["deferred", "bounced"].contains(&text(record, "type")));
        let (kind, rule) = if number < 2 { ("deferred", "") } else { ("bounced", "third") };
        assert_eq!((text(&record, "type"), text(&record, "rule")), (kind, rule), "{number}: {record}");
    }
}

#[test]
fn a_fuse_holds_what_rules_would_bounce() {
    let Some(mut site) = Site::new() else { return };
    let recorder = Recorder::scripted(site.smtp(1), |line| {
        line.starts_with("RCPT TO:<full").then(|| OVER_QUOTA.to_owned())
    });
    site.serve_dns("full MX 10 mx\nmx A @1\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"1s\"\nbounce-fuse = \"3/1m\"\n\
         [[reply-rule]]\nname = \"quota\"\nmatch = 'over quota'\nactions = [\"bounce-rcpt\"]\n",
    );
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed((0..10).map(|_| to("full@full")));
    let blown = mailer.until("fuse", |record| record["mode"] == "fuse-blown");
    assert_eq!(text(&blown, "queue"), "full.example", "{blown}");
    // Mail without such replies still goes.
    mailer.feed([to("fine@full")]);
    mailer.until("delivered", |record| record["type"] == "delivered");
    let ended = mailer.terminate();
    assert_eq!(ended.count("bounced"), 3, "{:#?}", ended.records);
    assert_eq!(recorder.taken().len(), 1);

    // What it holds stays held over a restart.
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed([to("fine@full")]);
    mailer.until("delivered", |record| record["type"] == "delivered");
    let ended = mailer.terminate();
    assert_eq!(ended.count("bounced"), 0, "{:#?}", ended.records);
}

/// What each record says of a reply, and that the recommended policy lets no recipient bounce for the sender's own matters.
#[test]
fn records_say_what_replies_tell_of() {
    let Some(mut site) = Site::new() else { return };
    let script = |line: &str| {
        let (verb, address) = line.split_once('<')?;
        let reply = match address.split('@').next()? {
            "nobody" => "550 5.1.1 No such user here",
            "full" => OVER_QUOTA,
            "listed" => "550 5.7.1 Client host [192.0.2.1] blocked using Spamhaus",
            "hourly" => "550 5.7.1 Too many messages from your address this hour",
            "spam" => "550 5.7.1 This looks like spam",
            _ => return None,
        };
        (verb == "RCPT TO:").then(|| reply.to_owned())
    };
    let _recorder = Recorder::scripted(site.smtp(1), script);
    let names = ["nobody", "full", "listed", "hourly", "spam"];
    let zone: String = names.iter().map(|name| format!("{name} MX 10 mx.{name}\nmx.{name} A @1\n")).collect();
    site.serve_dns(&zone);
    let config = site.policy("[policy]\nbase = \"recommended\"\n");
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed(names.map(|name| to(&format!("{name}@{name}"))));
    let mut left = names.len();
    mailer.until("a record of each", |record| {
        left -= usize::from(["deferred", "bounced"].contains(&text(record, "type")));
        left == 0
    });
    let ended = mailer.terminate();
    for (name, kind, category, reason, suppress, rule) in [
        ("nobody", "bounced", "bad-mailbox", "user-unknown", "permanent", ""),
        ("full", "deferred", "quota-issues", "mailbox-full", "", ""),
        ("listed", "deferred", "spam-related", "ip-blocklist", "", "source-refused"),
        ("hourly", "deferred", "rate-limited", "too-many-messages", "", "limit-with-5xx"),
        ("spam", "bounced", "spam-related", "spam-content", "never", ""),
    ] {
        let record = ended.only(kind, &[("ref", &format!("{name}@{name}"))]);
        let said =
            ["category", "reason", "suppress", "rule"].map(|key| record.get(key).and_then(Value::as_str));
        let said = said.map(Option::unwrap_or_default);
        assert_eq!(said, [category, reason, suppress, rule], "{record}");
    }
}
