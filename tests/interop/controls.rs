//! Domains without MX, and intervals that grow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::process::{Ended, Mailer};
use crate::recorder::{GREETING, Recorder};
use crate::site::Site;
use crate::{submission, text, time};

const SECOND: Duration = Duration::from_secs(1);

/// A message to a domain of the zone, known by it.
fn to(domain: &str) -> String {
    submission(domain, &format!("a@{domain}.example"), "1\r\n")
}

/// From a record to the attempt it announces.
fn interval(record: &Value) -> Duration {
    time(record, "next_attempt").saturating_since(time(record, "time"))
}

/// An interval may begin a little before its record, at the end of the attempt.
fn announces(record: &Value, seconds: u32) {
    let (interval, wanted) = (interval(record), SECOND * seconds);
    assert!(interval <= wanted && interval + SECOND > wanted, "{seconds} s: {record}");
}

/// The only bounce of a domain, by DNS.
fn bounce<'a>(ended: &'a Ended, domain: &str, status: &str, category: &str, reason: &str) -> &'a Value {
    let record = ended.only("bounced", &[("ref", domain)]);
    assert_eq!((text(record, "stage"), text(record, "status")), ("dns", status), "{record}");
    assert_eq!((text(record, "category"), text(record, "reason")), (category, reason), "{record}");
    assert!(!text(record, "error").is_empty() && record.get("reply").is_none(), "{record}");
    record
}

#[test]
fn domains_without_mx() {
    let Some(mut site) = Site::new() else { return };
    let recorder = Recorder::start(site.smtp(1));
    site.serve_dns(
        "typo A @1\ndead A @99\nstrict A @1\nlax A @1\nnull MX 0 .\nempty TXT nothing\n\
         good MX 10 mx\nmx A @1\nslow MX 10 mxdead\nmxdead A @99\n",
    );
    // Retries lie beyond the end of the test: whatever happens earlier has another cause.
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\nbounce-upon-no-mx = \"2s\"\n\
         [domain.\"strict.example\"]\nbounce-upon-no-mx = true\n\
         [domain.\"lax.example\"]\nbounce-upon-no-mx = false\n\
         [domain.\"late.example\"]\nbounce-upon-nxdomain = \"2s\"\n",
    );
    let mut mailer = Mailer::start(&config, &[]);
    let domains = ["typo", "dead", "strict", "lax", "null", "empty", "good", "slow", "never", "late"];
    mailer.feed(domains.map(to));
    mailer.until_settled(domains.len() - 1);
    let ended = mailer.terminate();

    for (domain, mx) in [("typo", "typo"), ("lax", "lax"), ("good", "mx")] {
        let delivered = ended.only("delivered", &[("ref", domain)]);
        assert_eq!(text(delivered, "mx"), format!("{mx}.example"), "{delivered}");
    }
    let dead = bounce(&ended, "dead", "5.4.4", "routing-errors", "no-mx");
    assert!(dead["queued_ms"].as_u64().unwrap() >= 2000, "{dead}");
    assert_eq!(dead["attempts"], 0, "nobody was charged for a host that is down: {dead}");
    let waits = ended.only("queue-deferred", &[("domain", "dead.example")]);
    announces(waits, 600);
    let strict = bounce(&ended, "strict", "5.4.4", "routing-errors", "no-mx");
    assert!(time(strict, "time") < time(dead, "time"), "{strict}");
    bounce(&ended, "null", "5.1.10", "routing-errors", "null-mx");
    let never = bounce(&ended, "never", "5.1.2", "bad-domain", "nxdomain");
    bounce(&ended, "empty", "5.4.4", "bad-domain", "no-host");
    let late = bounce(&ended, "late", "5.1.2", "bad-domain", "nxdomain");
    assert!(late["queued_ms"].as_u64().unwrap() >= 2000, "{late}");
    assert!(time(never, "time") < time(late, "time"), "{never}");

    // With an MX record whose host is down it waits.
    ended.only("queue-deferred", &[("domain", "slow.example")]);
    let mut taken: Vec<_> = recorder.taken().into_iter().flat_map(|taken| taken.to).collect();
    taken.sort();
    assert_eq!(taken, ["a@good.example", "a@lax.example", "a@typo.example"]);
}

#[test]
fn the_age_without_mx_counts_over_a_restart() {
    let Some(mut site) = Site::new() else { return };
    let recorder = Recorder::start(site.smtp(1));
    let hosts = "stays A @99\nmx A @1\n";
    site.serve_dns(&format!("{hosts}gains A @99\n"));
    let config = site.policy("[domain.\"*\"]\nretry-after = \"10m\"\nbounce-upon-no-mx = \"3s\"\n");
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed(["stays", "gains"].map(to));
    mailer.until_count("queue-deferred", 2);
    let first = mailer.terminate();
    assert_eq!((first.count("bounced"), first.count("deferred")), (0, 0));

    // Somebody repairs one of them. It is asked for once more before its mail would bounce.
    site.change_dns(&format!("{hosts}gains A @99\ngains MX 10 mx\n"));
    let mut mailer = Mailer::start(&config, &[]);
    mailer.until_settled(2);
    let ended = mailer.terminate();
    let stays = bounce(&ended, "stays", "5.4.4", "routing-errors", "no-mx");
    assert!(stays["queued_ms"].as_u64().unwrap() >= 3000, "{stays}");
    let gains = ended.only("delivered", &[("ref", "gains")]);
    assert_eq!(text(gains, "mx"), "mx.example");
    assert_eq!(recorder.taken().len(), 1);
}

#[test]
fn a_refused_recipient_waits_longer_each_time() {
    let Some(mut site) = Site::new() else { return };
    let refused = AtomicUsize::new(0);
    let recorder = Recorder::scripted(site.smtp(1), move |line| {
        let again = line.starts_with("RCPT") && refused.fetch_add(1, Ordering::Relaxed) < 3;
        again.then(|| "450 4.2.0 come back".to_owned())
    });
    site.serve_dns("busy MX 10 mx\nmx A @1\n");
    let config = site.policy("[domain.\"*\"]\nretry-after = [\"1s\", \"2s\", \"3s\"]\n");
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed([to("busy")]);
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);

    let tried = recorder.times("RCPT");
    let gaps: Vec<_> = tried.windows(2).map(|pair| pair[1].saturating_since(pair[0])).collect();
    assert_eq!(gaps.len(), 3, "{gaps:?}");
    assert!(gaps.iter().zip(1..).all(|(gap, seconds)| *gap >= SECOND * seconds), "{gaps:?}");
    for (record, seconds) in ended.with("deferred", &[("ref", "busy")]).into_iter().zip(1..) {
        assert_eq!(record["attempts"], seconds);
        announces(record, seconds);
    }
    assert_eq!(ended.only("delivered", &[("ref", "busy")])["attempts"], 4);
    assert_eq!((ended.count("deferred"), ended.count("queue-deferred")), (3, 0));
}

#[test]
fn a_dead_host_costs_one_connection_an_interval() {
    let Some(mut site) = Site::new() else { return };
    let alive = Arc::new(AtomicBool::new(false));
    let now_alive = alive.clone();
    let recorder = Recorder::scripted(site.smtp(1), move |line| {
        (line == GREETING && !alive.load(Ordering::Relaxed)).then(|| "421 4.3.2 not now".to_owned())
    });
    site.serve_dns("dead MX 10 mx\nmx A @1\n");
    let config = site.policy("[domain.\"*\"]\nretry-after = [\"1s\", \"2s\"]\n");
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed([to("dead")]);
    mailer.until_count("queue-deferred", 1);
    // New mail waits with what is there.
    mailer.feed((0..99).map(|_| to("dead")));
    mailer.until_count("queue-deferred", 2);
    now_alive.store(true, Ordering::Relaxed);
    mailer.until_settled(100);
    let ended = mailer.terminate();

    let visits = recorder.visits();
    let gap = |n: usize| visits[n].at.saturating_since(visits[n - 1].at);
    assert!(gap(1) >= SECOND && gap(2) >= SECOND * 2, "{:#?}", &visits[..3]);
    let deferred: Vec<_> = ended.of_type("queue-deferred").collect();
    assert_eq!(deferred.len(), 3, "{deferred:#?}");
    announces(deferred[0], 1);
    announces(deferred[1], 2);
    assert!(deferred.iter().all(|record| text(&record["reply"], "enhanced") == "4.3.2"), "{deferred:#?}");
    assert_eq!((ended.count("delivered"), ended.count("deferred")), (100, 0));
    assert!(ended.of_type("delivered").all(|record| record["attempts"] == 1), "nobody was charged");
}

#[test]
fn a_restart_resets_neither_clock() {
    let Some(mut site) = Site::new() else { return };
    let dead =
        Recorder::scripted(site.smtp(1), |line| (line == GREETING).then(|| "421 4.3.2 not now".to_owned()));
    let busy = Recorder::scripted(site.smtp(2), |line| {
        line.starts_with("RCPT").then(|| "450 4.2.0 come back".to_owned())
    });
    site.serve_dns("dead MX 10 mx1\nmx1 A @1\nbusy MX 10 mx2\nmx2 A @2\n");
    let config = site.policy("[domain.\"*\"]\nretry-after = [\"1s\", \"2s\", \"3s\", \"10m\"]\n");
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed((0..20).map(|_| to("dead")).chain([to("busy")]));
    let (mut steps, mut attempts) = (0, 0);
    mailer.until("two steps of both", |record| {
        steps += usize::from(record["type"] == "queue-deferred");
        attempts += usize::from(record["type"] == "deferred");
        steps >= 2 && attempts >= 2
    });
    let first = mailer.terminate();
    let mut mailer = Mailer::start(&config, &[]);
    let (mut steps, mut attempts) = (0, 0);
    mailer.until("two more", |record| {
        steps += usize::from(record["type"] == "queue-deferred");
        attempts += usize::from(record["type"] == "deferred");
        steps + first.count("queue-deferred") >= 4 && attempts + first.count("deferred") >= 4
    });
    let second = mailer.terminate();

    let connected = dead.visits().iter().map(|visit| visit.at).collect();
    for (kind, times) in [("queue-deferred", connected), ("deferred", busy.times("RCPT"))] {
        let records: Vec<_> = first.of_type(kind).chain(second.of_type(kind)).collect();
        for (record, seconds) in records.iter().zip([1, 2, 3, 600]) {
            announces(record, seconds);
        }
        assert_eq!(records.len(), 4, "{records:#?}");
        let gaps: Vec<_> = times.windows(2).map(|pair| pair[1].saturating_since(pair[0])).collect();
        // The backlog is not due at once, nor is there more than one try a step.
        assert_eq!(gaps.len(), 3, "{kind}: {gaps:?}");
        assert!(gaps.iter().zip(1..).all(|(gap, seconds)| *gap >= SECOND * seconds), "{kind}: {gaps:?}");
    }
    let attempts: Vec<_> =
        first.of_type("deferred").chain(second.of_type("deferred")).map(|r| &r["attempts"]).collect();
    assert_eq!(attempts, [1, 2, 3, 4]);
}
