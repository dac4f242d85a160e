//! What servers and DNS refuse, and what that does to others.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::process::{Ended, Mailer};
use crate::recorder::Recorder;
use crate::site::Site;
use crate::{submission, text, time};

/// The only record of a type and reference.
fn only<'a>(ended: &'a Ended, kind: &'a str, reference: &str) -> &'a Value {
    ended.only(kind, &[("ref", reference)])
}

#[test]
fn refusals_bounce_and_delays_are_retried() {
    let Some(mut site) = Site::new() else { return };
    let busy = AtomicUsize::new(0);
    let recorder = Recorder::scripted(site.smtp(1), move |line| {
        if line.contains("<unknown@") {
            Some("550-5.1.1 no such\r\n550 5.1.1 mailbox".to_owned())
        } else if line.contains("<busy@") && busy.fetch_add(1, Ordering::Relaxed) == 0 {
            Some("450 4.2.0 come back".to_owned())
        } else {
            None
        }
    });
    site.serve_dns("good MX 10 mx\nmx A @1\nnull MX 0 .\nempty TXT nothing\n");
    let mut mailer = Mailer::start(&site.config("", ""), &["--until-idle"]);
    mailer.feed([
        submission("fine", "fine@good.example", "1\r\n"),
        submission("unknown", "unknown@good.example", "2\r\n"),
        submission("busy", "busy@good.example", "3\r\n"),
        submission("null", "a@null.example", "4\r\n"),
        submission("nxdomain", "a@no.such.example", "5\r\n"),
        submission("empty", "a@empty.example", "6\r\n"),
    ]);
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);

    only(&ended, "delivered", "fine");
    let unknown = only(&ended, "bounced", "unknown");
    assert_eq!((text(unknown, "stage"), text(unknown, "status")), ("rcpt", "5.1.1"), "{unknown}");
    assert_eq!(unknown["reply"]["code"], 550);
    assert_eq!(text(&unknown["reply"], "enhanced"), "5.1.1");
    assert_eq!(text(&unknown["reply"], "text"), "no such mailbox");
    assert_eq!(unknown["attempts"], 1);
    assert!(unknown.get("error").is_none() && unknown.get("next_attempt").is_none(), "{unknown}");

    let deferred = only(&ended, "deferred", "busy");
    assert_eq!((text(deferred, "stage"), text(deferred, "status")), ("rcpt", "4.2.0"), "{deferred}");
    assert_eq!(deferred["reply"]["code"], 450);
    assert_eq!(deferred["attempts"], 1);
    let delivered = only(&ended, "delivered", "busy");
    assert_eq!(delivered["attempts"], 2);
    assert!(time(deferred, "next_attempt") > time(deferred, "time"), "{deferred}");
    assert!(time(delivered, "time") >= time(deferred, "next_attempt"), "{deferred} {delivered}");

    for (reference, status, reason) in
        [("null", "5.1.10", "null-mx"), ("nxdomain", "5.1.2", "nxdomain"), ("empty", "5.4.4", "no-host")]
    {
        let bounced = only(&ended, "bounced", reference);
        assert_eq!((text(bounced, "stage"), text(bounced, "status")), ("dns", status), "{bounced}");
        assert_eq!(text(bounced, "reason"), reason);
        assert!(!text(bounced, "error").is_empty() && bounced.get("reply").is_none(), "{bounced}");
    }
    assert_eq!(recorder.taken().len(), 2);
    assert_eq!(ended.count("received"), 6);
    assert_eq!((ended.count("delivered"), ended.count("bounced")), (2, 4));
}

#[test]
fn a_dead_host_defers_the_queue_and_charges_nobody() {
    let Some(mut site) = Site::new() else { return };
    site.serve_dns("dead MX 10 mx\nmx A @99\n");
    let mut mailer = Mailer::start(&site.config("", ""), &[]);
    mailer.feed([submission("waits", "a@dead.example", "1\r\n")]);
    let record = mailer.until("queue-deferred", |record| record["type"] == "queue-deferred");
    assert_eq!((text(&record, "domain"), text(&record, "stage")), ("dead.example", "connect"), "{record}");
    assert!(!text(&record, "error").is_empty(), "{record}");
    assert!(time(&record, "next_attempt") > time(&record, "time"), "{record}");
    // A server appears, and the next step finds it.
    let _recorder = Recorder::start(site.smtp(99));
    let delivered = mailer.until("delivered", |record| record["type"] == "delivered");
    assert_eq!(delivered["attempts"], 1, "{delivered}");
    mailer.signal("TERM");
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.count("deferred"), 0);
}

#[test]
fn a_silent_server_holds_up_nobody_else() {
    let Some(mut site) = Site::new() else { return };
    // Connections are accepted by the system and never looked at.
    let _silent = TcpListener::bind(site.smtp(1)).unwrap();
    let _recorder = Recorder::start(site.smtp(2));
    site.serve_dns("silent MX 10 mx1\nmx1 A @1\ngood MX 10 mx2\nmx2 A @2\n");
    let mut mailer = Mailer::start(&site.config("", ""), &[]);
    let to =
        |number: usize, domain: &str| submission(domain, &format!("a{number}@{domain}.example"), "1\r\n");
    mailer.feed((0..50).map(|number| to(number, "silent")));
    mailer.until_count("received", 50);
    mailer.feed((0..50).map(|number| to(number, "good")));
    mailer.until_count("delivered", 50);
    // Dropping kills it: the default wait for a greeting is longer than any test.
}
