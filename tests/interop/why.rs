//! What the mailer says of its mail when asked by a signal.

use crate::process::Mailer;
use crate::recorder::{Gate, Recorder};
use crate::site::Site;
use crate::submission;

fn to(domain: &str) -> String {
    submission(domain, &format!("a@{domain}.example"), "1\r\n")
}

/// Asks until the destination of a domain waits for this; asked too early it may wait for DNS.
fn until_waiting(mailer: &Mailer, domain: &str, what: &str) {
    let mut said = String::new();
    for _ in 0..100 {
        mailer.signal("USR1");
        said = mailer.until_said(&format!("    {domain}.example"));
        if said.contains(what) {
            return;
        }
    }
    panic!("{domain} does not wait for {what:?}: {said}");
}

#[test]
fn a_signal_asks_what_mail_waits_for() {
    let Some(mut site) = Site::new() else { return };
    let gate = Gate::default();
    let held = gate.clone();
    let recorder = Recorder::scripted(site.smtp(1), move |line| {
        if line == "." {
            held.pass();
        }
        None
    });
    // Nobody listens on host 99.
    site.serve_dns("one MX 10 mx\ntwo MX 10 mx\nmx A @1\ndead MX 10 mxdead\nmxdead A @99\n");
    let policy = format!(
        "[[ip-connection-limit]]\ncidr = \"{}/24\"\nlimit = 1\n[domain.\"*\"]\nretry-after = \"10m\"\n",
        site.ip(0)
    );
    let mut mailer = Mailer::start(&site.policy(&policy), &[]);
    mailer.feed([to("dead")]);
    mailer.until("a step", |record| record["type"] == "queue-deferred");
    mailer.feed([to("one")]);
    recorder.until_open(1);
    mailer.feed([to("two")]);
    mailer.until("two", |record| record["type"] == "received" && record["ref"] == "two");

    let limit = format!(
        "limit ip-connection-limit of {}: 1 of 1 taken (one.example/default 1), 0 ahead in line",
        site.ip(1)
    );
    until_waiting(&mailer, "two", &limit);
    until_waiting(&mailer, "one", &format!("in a transaction with mx.example at {}", site.smtp(1)));
    until_waiting(&mailer, "dead", "hosts not usable (step 1), next try at ");
    gate.open();
    mailer.until_settled(2);
    mailer.signal("USR1");
    mailer.until_said("dead.example/default: 0 open, 0 in transactions; 1 items");
    let ended = mailer.terminate();
    assert_eq!(ended.count("delivered"), 2, "{:#?}", ended.records);
}
