//! Nothing accepted is lost, whichever way the mailer ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::process::{Ended, Mailer};
use crate::recorder::{Gate, Recorder};
use crate::site::Site;
use crate::{submission, text};

const ROUNDS: usize = 4;
const PER_ROUND: usize = 400;
const CONNECTIONS: usize = 5;
/// What may be between a server's 250 and its commit when the mailer dies: a transaction on each connection, and one before it.
const UNSETTLED: usize = 2 * CONNECTIONS;

#[test]
fn killed_while_accepting_and_delivering() {
    let Some(mut site) = Site::new() else { return };
    let recorder = Recorder::start(site.smtp(1));
    site.serve_dns("a MX 10 mx\nb MX 10 mx\nc MX 10 mx\nmx A @1\n");
    let config = site.config(&format!("max-connections = {CONNECTIONS}"), "");

    let mut all: Vec<Ended> = Vec::new();
    for round in 0..ROUNDS {
        let mut mailer = Mailer::start(&config, &[]);
        let line = |number| {
            let to = format!("r{round}-{number}@{}.example", ["a", "b", "c"][number % 3]);
            submission(&to, &to, &format!("Subject: {number}\r\n\r\nround {round}\r\n"))
        };
        mailer.feed_all((0..PER_ROUND).map(line).collect());
        // A different point each time, with both sides of the engine at work.
        let (mut received, mut delivered) = (0, 0);
        mailer.until("enough work done", |record| {
            received += usize::from(record["type"] == "received");
            delivered += usize::from(record["type"] == "delivered");
            received > round * PER_ROUND / (2 * ROUNDS) && delivered > 10 * round
        });
        mailer.signal("KILL");
        let ended = mailer.finish();
        assert_eq!(ended.code, None, "{}", ended.stderr);
        all.push(ended);
    }
    let ended = Mailer::start(&config, &["--until-idle"]).finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    all.push(ended);

    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    recorder.taken().into_iter().flat_map(|taken| taken.to).for_each(|to| *taken.entry(to).or_default() += 1);
    let of_type = |kind| all.iter().flat_map(move |ended| ended.of_type(kind));
    let mut reported: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for record in of_type("delivered") {
        reported.entry(text(record, "recipient")).or_default().insert(text(record, "event"));
    }
    for record in of_type("received") {
        let recipient = text(record, "ref");
        assert!(taken.contains_key(recipient), "{recipient} was received and never delivered");
        assert!(reported.contains_key(recipient), "{recipient} was received and has no final record");
    }
    for (recipient, events) in reported {
        assert_eq!(events.len(), 1, "{recipient}: a repeated report carries the same event");
        assert!(taken.contains_key(recipient), "{recipient} was reported and never delivered");
    }
    assert_eq!(of_type("bounced").count(), 0);
    let twice: usize = taken.values().map(|times| times - 1).sum();
    assert!(twice <= ROUNDS * UNSETTLED, "{twice} of {} were sent again", taken.len());
}

#[test]
fn terminated_gracefully_and_started_again() {
    let Some(mut site) = Site::new() else { return };
    let open = Arc::new(AtomicBool::new(false));
    let opened = open.clone();
    let recorder = Recorder::scripted(site.smtp(1), move |line| {
        (line.contains("@busy.") && !opened.load(Ordering::Relaxed)).then(|| "450 4.2.0 come back".to_owned())
    });
    site.serve_dns("busy MX 10 mx\ngood MX 10 mx\nmx A @1\n");
    let config = site.config("", "");
    let mut mailer = Mailer::start(&config, &[]);
    let line = |domain: &str, number: usize| {
        let to = format!("{number}@{domain}.example");
        submission(&to, &to, "1\r\n")
    };
    mailer.feed((0..100).map(|number| line(["busy", "good"][number % 2], number)));
    let (mut received, mut deferred) = (0, 0);
    mailer.until("all received, some deferred", |record| {
        received += usize::from(record["type"] == "received");
        deferred += usize::from(record["type"] == "deferred");
        received == 100 && deferred >= 10
    });

    // The spool has one owner, and the other one keeps running.
    let second = Mailer::start(&config, &["--until-idle"]).finish();
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    assert!(second.stderr.contains("spool"), "{}", second.stderr);

    // The input is still open, and does not hold up the end.
    mailer.signal("TERM");
    let first = mailer.until_ended();
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    assert_eq!(first.count("rejected"), 0);

    open.store(true, Ordering::Relaxed);
    let rest = Mailer::start(&config, &["--until-idle"]).finish();
    assert_eq!(rest.code, Some(0), "{}", rest.stderr);
    let mut taken: Vec<_> = recorder.taken().into_iter().flat_map(|taken| taken.to).collect();
    taken.sort();
    let mut wanted: Vec<_> =
        (0..100).map(|number| format!("{number}@{}.example", ["busy", "good"][number % 2])).collect();
    wanted.sort();
    assert_eq!(taken, wanted, "each once: a graceful end leaves nothing in doubt");
    let delivered: BTreeSet<_> = first
        .of_type("delivered")
        .chain(rest.of_type("delivered"))
        .map(|record| text(record, "ref"))
        .collect();
    assert_eq!(delivered.len(), 100);
    // An attempt counts for ever: those that were deferred do not start afresh.
    let deferred: BTreeSet<_> = first.of_type("deferred").map(|record| text(record, "ref")).collect();
    let again: Vec<_> =
        rest.of_type("delivered").filter(|record| deferred.contains(text(record, "ref"))).collect();
    assert!(
        again.len() >= 10 && again.iter().all(|record| record["attempts"].as_u64() >= Some(2)),
        "{again:?}"
    );
}

#[test]
fn stopped_because_nobody_takes_the_records() {
    let Some(mut site) = Site::new() else { return };
    let recorder = Recorder::start(site.smtp(1));
    site.serve_dns("good MX 10 mx\nmx A @1\n");
    let config = site.config("", "");
    let mut unheard = Mailer::start_unheard(&config, &[]);
    unheard.feed([submission("a", "a@good.example", "1\r\n")]);
    let unheard = unheard.until_ended();
    assert_eq!(unheard.code, Some(1), "{}", unheard.stderr);
    assert!(unheard.stderr.contains("stdout") && !unheard.stderr.contains("panicked"), "{}", unheard.stderr);

    // What nobody could be told is told again, or was not delivered yet.
    let told = Mailer::start(&config, &["--until-idle"]).finish();
    assert_eq!(told.code, Some(0), "{}", told.stderr);
    assert_eq!(told.count("delivered"), 1, "{:#?}", told.records);
    assert_eq!(recorder.taken().len(), 1);
}

#[test]
fn terminated_while_nobody_reads_its_stdout() {
    let Some(mut site) = Site::new() else { return };
    let all_taken = Gate::default();
    let (taken, gate) = (AtomicUsize::new(0), all_taken.clone());
    let recorder = Recorder::scripted(site.smtp(1), move |line| {
        if line == "." && taken.fetch_add(1, Ordering::Relaxed) + 1 == PER_ROUND {
            gate.open();
        }
        None
    });
    site.serve_dns("good MX 10 mx\nmx A @1\n");
    let config = site.config("", "");
    let mut unread = Mailer::start_unread(&config, &[]);
    // Their records are far more than a pipe holds.
    unread.feed_all((0..PER_ROUND).map(|n| submission(&n.to_string(), "a@good.example", "1\r\n")).collect());
    all_taken.pass();
    unread.signal("TERM");
    let unread = unread.until_ended();
    assert_eq!(unread.code, Some(1), "{}", unread.stderr);
    assert!(unread.stderr.contains("records are not written"), "{}", unread.stderr);
    assert!(unread.count("received") > 0 && unread.count("delivered") < PER_ROUND);

    // What was not written is written now, and nothing is sent again.
    let rest = Mailer::start(&config, &["--until-idle"]).finish();
    assert_eq!(rest.code, Some(0), "{}", rest.stderr);
    let delivered: BTreeSet<_> = [&unread, &rest]
        .into_iter()
        .flat_map(|ended| ended.of_type("delivered"))
        .map(|record| text(record, "ref"))
        .collect();
    assert_eq!((delivered.len(), recorder.taken().len()), (PER_ROUND, PER_ROUND));
}
