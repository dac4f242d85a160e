//! What becomes of recipients: expiry, many in one transaction, conditions of rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use postrider::clock::Clock;
use serde_json::json;

use crate::process::Mailer;
use crate::recorder::{GREETING, Recorder, most_at_once};
use crate::site::Site;
use crate::{submission, text, time};

fn to(address: &str) -> String {
    submission(address, &format!("{address}.example"), "1\r\n")
}

#[test]
fn mail_expires_by_age_whatever_it_waits_for() {
    let Some(mut site) = Site::new() else { return };
    let busy = Recorder::scripted(site.smtp(1), |line| {
        line.starts_with("RCPT").then(|| "450 4.2.0 come back".to_owned())
    });
    let _closed =
        Recorder::scripted(site.smtp(2), |line| (line == GREETING).then(|| "421 4.3.2 not now".to_owned()));
    site.serve_dns(
        "busy MX 10 mx1\nmx1 A @1\nclosed MX 10 mx2\nmx2 A @2\ntwice MX 10 mx1\ndead MX 10 mx3\nmx3 A @99\n",
    );
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\nbounce-after = \"2s\"\n\
         [domain.\"twice.example\"]\nretry-after = \"1s\"\nmax-attempts = 2\nbounce-after = \"1d\"\n",
    );
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    let own =
        json!({ "ref": "own", "from": "", "to": ["own@dead.example"], "data": "", "expires_after": "1s" });
    let soon = Clock::system().now().saturating_add(Duration::from_secs(2)).to_string();
    let held =
        json!({ "ref": "held", "from": "", "to": ["held@closed.example"], "data": "", "hold_until": soon });
    mailer.feed(["a@busy", "a@closed", "a@twice", "a@dead"].map(to));
    mailer.feed([own.to_string(), held.to_string()]);
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("bounced")), (Some(0), 6), "{}", ended.stderr);
    // Nobody whose hosts alone were at fault was attempted; the words of a host that refused stand in the error.
    for (reference, least, reason, code, said) in [
        ("a@busy", 2000, "expired", Some(450), ""),
        ("a@closed", 2000, "never-attempted", None, "421 4.3.2 not now"),
        ("a@dead", 2000, "never-attempted", None, "refused"),
        ("own", 1000, "never-attempted", None, "refused"),
        ("held", 2000, "never-attempted", None, "421 4.3.2 not now"),
    ] {
        let record = ended.only("bounced", &[("ref", reference)]);
        assert_eq!(
            (text(record, "status"), text(record, "category")),
            ("4.4.7", "message-expired"),
            "{record}"
        );
        assert!(record["queued_ms"].as_u64().unwrap() >= least, "{record}");
        assert_eq!((text(record, "reason"), record["reply"]["code"].as_u64()), (reason, code), "{record}");
        assert_eq!(record["attempts"], u32::from(code.is_some()), "{record}");
        assert!(text(record, "error").contains(said), "{record}");
    }
    let hold = ended.only("bounced", &[("ref", "held")]);
    let due = soon.parse().unwrap();
    assert!(time(hold, "time").saturating_since(due) >= Duration::from_secs(2), "{hold}");
    let twice = ended.only("bounced", &[("ref", "a@twice")]);
    assert_eq!((&twice["attempts"], text(twice, "reason")), (&json!(2), "too-many-attempts"), "{twice}");
    assert_eq!(busy.times("RCPT").len(), 3);
}

#[test]
fn recipients_of_one_message_have_their_own_verdicts() {
    let Some(mut site) = Site::new() else { return };
    let recorder = Recorder::scripted(site.smtp(1), |line| {
        let address = line.strip_prefix("RCPT TO:<")?;
        match address.split('@').next()? {
            "full" => Some("452 4.2.2 The email account that you tried to reach is over quota".to_owned()),
            "gone" => Some("550 5.1.1 no such mailbox".to_owned()),
            "busy" => Some("450 4.2.0 come back".to_owned()),
            _ => None,
        }
    });
    site.serve_dns("mail MX 10 mx\nmx A @1\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\nmax-rcpt-per-transaction = 4\n\
         [[reply-rule]]\nname = \"quota\"\nmatch = 'over quota'\nactions = [\"bounce-rcpt\"]\n",
    );
    let addresses: Vec<_> = ["full", "gone", "busy", "a", "b", "c", "d", "e", "f", "g"]
        .iter()
        .map(|local| format!("{local}@mail.example"))
        .collect();
    let line = json!({ "ref": "m", "from": "", "to": addresses, "data": "1\r\n" }).to_string();
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed([line]);
    mailer.until_total("deferred", 1);
    mailer.until_total("delivered", 7);
    mailer.until_total("bounced", 2);
    let ended = mailer.terminate();
    assert_eq!(text(ended.only("bounced", &[("rule", "quota")]), "recipient"), "full@mail.example");
    assert_eq!(text(ended.only("bounced", &[("status", "5.1.1")]), "recipient"), "gone@mail.example");
    assert_eq!(text(ended.only("deferred", &[]), "recipient"), "busy@mail.example");
    let taken = recorder.taken();
    assert!(taken.len() <= 3 && taken.iter().all(|taken| taken.to.len() <= 4), "{taken:?}");
    assert_eq!(recorder.times("RCPT").len(), 10);
}

#[test]
fn too_many_recipients_go_at_once_in_another_transaction() {
    let Some(mut site) = Site::new() else { return };
    // Five a transaction, as the server counts.
    let offered = AtomicUsize::new(0);
    let recorder = Recorder::scripted(site.smtp(1), move |line| {
        if line.starts_with("MAIL") {
            offered.store(0, Ordering::Relaxed);
        }
        let over = line.starts_with("RCPT") && offered.fetch_add(1, Ordering::Relaxed) >= 5;
        over.then(|| "452 4.5.3 too many recipients".to_owned())
    });
    site.serve_dns("mail MX 10 mx\nmx A @1\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\n\
         [[reply-rule]]\nname = \"any\"\nmatch = '^452'\nactions = [\"bounce-rcpt\"]\n",
    );
    let addresses: Vec<_> = (0..17).map(|n| format!("a{n}@mail.example")).collect();
    let line = json!({ "ref": "m", "from": "", "to": addresses, "data": "1\r\n" }).to_string();
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed([line]);
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 17), "{:#?}", ended.records);
    assert_eq!((ended.count("deferred"), ended.count("bounced")), (0, 0));
    assert!(ended.of_type("delivered").all(|record| record["attempts"] == 1), "{:#?}", ended.records);
    assert_eq!(recorder.taken().len(), 4);
}

#[test]
fn at_the_dot_a_rule_bounces_only_one_recipient_at_a_time() {
    let Some(mut site) = Site::new() else { return };
    let guilty = Arc::new(AtomicBool::new(false));
    let recorder = Recorder::scripted(site.smtp(1), move |line| {
        if line.starts_with("MAIL") {
            guilty.store(false, Ordering::Relaxed);
        } else if line.starts_with("RCPT TO:<full@") {
            guilty.store(true, Ordering::Relaxed);
        }
        (line == "." && guilty.load(Ordering::Relaxed)).then(|| "452 4.2.2 over quota".to_owned())
    });
    site.serve_dns("mail MX 10 mx\nmx A @1\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"1s\"\nmax-smtp-out = 1\n\
         [[reply-rule]]\nname = \"quota\"\nmatch = 'over quota'\nactions = [\"bounce-rcpt\"]\n",
    );
    let addresses = ["a@mail.example", "full@mail.example", "b@mail.example"];
    let line = json!({ "ref": "m", "from": "", "to": addresses, "data": "1\r\n" }).to_string();
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed([line]);
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let bounced = ended.only("bounced", &[]);
    assert_eq!(
        (text(bounced, "recipient"), text(bounced, "stage")),
        ("full@mail.example", "dot"),
        "{bounced}"
    );
    assert_eq!((ended.count("delivered"), recorder.taken().len()), (2, 2), "{:#?}", ended.records);
}

#[test]
fn rules_ask_for_attempts_age_place_and_stage() {
    let Some(mut site) = Site::new() else { return };
    let script = |line: &str| line.starts_with("RCPT").then(|| "450 4.2.0 busy".to_owned());
    let _first = Recorder::scripted(site.smtp(1), script);
    site.serve_dns("n MX 10 mx\nage MX 10 mx\ndata MX 10 mx\nnone MX 10 mx\nmx A @1\n");
    let rule = |name: &str, condition: &str| {
        format!(
            "[[reply-rule]]\nname = \"{name}\"\ndomain = \"{name}.example\"\nmatch = 'busy'\n\
             actions = [\"bounce-rcpt\"]\n{condition}\n"
        )
    };
    let config = site.policy(&format!(
        "[domain.\"*\"]\nretry-after = \"1s\"\nmax-attempts = 4\n{}{}{}",
        rule("n", "min-attempts = 3"),
        rule("age", "min-age = \"2s\""),
        rule("data", "stage = [\"data\", \"dot\"]"),
    ));
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed(["a@n", "a@age", "a@data", "a@none"].map(to));
    let ended = mailer.finish();
    let n = ended.only("bounced", &[("domain", "n.example")]);
    assert_eq!((&n["attempts"], text(n, "rule")), (&json!(3), "n"), "{n}");
    let age = ended.only("bounced", &[("domain", "age.example")]);
    assert_eq!(text(age, "rule"), "age", "{age}");
    assert!(age["queued_ms"].as_u64().unwrap() >= 2000, "{age}");
    for domain in ["data.example", "none.example"] {
        let record = ended.only("bounced", &[("domain", domain)]);
        assert_eq!((text(record, "reason"), text(record, "rule")), ("too-many-attempts", ""), "{record}");
        assert_eq!(record["attempts"], 4, "{record}");
    }
}

#[test]
fn greetings_with_5xx() {
    let Some(mut site) = Site::new() else { return };
    let greet = |reply: &'static str| move |line: &str| (line == GREETING).then(|| reply.to_owned());
    let _no = Recorder::scripted(site.smtp(1), greet("554 5.3.2 go away"));
    let _never = Recorder::scripted(site.smtp(2), greet("521 5.3.2 no mail here"));
    let _fine = Recorder::start(site.smtp(3));
    site.serve_dns(
        "waits MX 10 no\nstrict MX 10 no\nnever MX 10 never\nsome MX 10 never\nsome MX 20 fine\n\
         no A @1\nnever A @2\nnever MX 10 never\nfine A @3\n",
    );
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\n[domain.\"strict.example\"]\nbounce-upon-5xx-greeting = true\n",
    );
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed(["a@waits", "a@strict", "a@never", "a@some"].map(to));
    mailer.until_settled(3);
    mailer.feed([to("a@some")]);
    mailer.until("waiting", |record| record["type"] == "delivered");
    let ended = mailer.terminate();
    ended.only("queue-deferred", &[("domain", "waits.example")]);
    for (domain, code) in [("strict.example", 554), ("never.example", 521)] {
        let record = ended.only("bounced", &[("domain", domain)]);
        assert_eq!((&record["reply"]["code"], text(record, "stage")), (&json!(code), "connect"), "{record}");
    }
    assert_eq!((ended.count("bounced"), ended.count("delivered")), (2, 2), "{:#?}", ended.records);
}

#[test]
fn a_host_without_mx_that_greeted_may_be_kept() {
    let Some(mut site) = Site::new() else { return };
    let _busy = Recorder::scripted(site.smtp(1), |line| {
        line.starts_with("RCPT").then(|| "450 4.2.0 come back".to_owned())
    });
    site.serve_dns("keep A @1\nbounce A @1\n");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = [\"1s\", \"1s\", \"10m\"]\nbounce-upon-no-mx = \"2s\"\n\
         [domain.\"keep.example\"]\nno-mx-live-host = \"keep\"\nbounce-after = \"5s\"\n",
    );
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed(["a@keep", "a@bounce"].map(to));
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let bounced = ended.only("bounced", &[("domain", "bounce.example")]);
    assert_eq!((text(bounced, "reason"), text(bounced, "status")), ("no-mx", "5.4.4"), "{bounced}");
    let kept = ended.only("bounced", &[("domain", "keep.example")]);
    assert_eq!(text(kept, "status"), "4.4.7", "{kept}");
    assert!(kept["queued_ms"].as_u64().unwrap() >= 5000, "{kept}");
}

#[test]
fn new_mail_may_end_the_wait_of_a_dead_host() {
    let Some(mut site) = Site::new() else { return };
    let alive = Arc::new(AtomicBool::new(false));
    let now_alive = alive.clone();
    let recorder = Recorder::scripted(site.smtp(1), move |line| {
        (line == GREETING && !alive.load(Ordering::Relaxed)).then(|| "421 4.3.2 not now".to_owned())
    });
    site.serve_dns("dead MX 10 mx\nmx A @1\n");
    let config = site.policy("[domain.\"*\"]\nretry-after = \"10m\"\nretry-upon-new-mail = true\n");
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    // All at once: still a few connections, not a hundred.
    mailer.feed((0..100).map(|_| to("a@dead")));
    mailer.until_count("received", 100);
    mailer.until_total("queue-deferred", 1);
    now_alive.store(true, Ordering::Relaxed);
    mailer.feed([to("a@dead")]);
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 101), "{}", ended.stderr);
    assert!(most_at_once(&recorder.visits()) <= 20);
}

#[test]
fn a_hundred_at_once_for_a_dead_host() {
    let Some(mut site) = Site::new() else { return };
    let recorder =
        Recorder::scripted(site.smtp(1), |line| (line == GREETING).then(|| "421 4.3.2 not now".to_owned()));
    site.serve_dns("dead MX 10 mx\nmx A @1\n");
    let config = site.policy("[domain.\"*\"]\nretry-after = [\"1s\", \"2s\", \"10m\"]\n");
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed((0..100).map(|_| to("a@dead")));
    mailer.until_total("queue-deferred", 3);
    let ended = mailer.terminate();
    let visits = recorder.visits();
    assert!(visits.len() <= 4, "{visits:#?}");
    let steps: Vec<_> = ended.of_type("queue-deferred").collect();
    assert_eq!(steps.len(), 3, "{steps:#?}");
}
