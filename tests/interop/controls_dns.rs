//! What DNS says, and what it never means.

use std::time::Duration;

use serde_json::json;

use crate::process::Mailer;
use crate::recorder::Recorder;
use crate::site::Site;
use crate::{submission, text};

fn to(domain: &str) -> String {
    submission(domain, &format!("a@{domain}"), "1\r\n")
}

#[test]
fn only_a_certain_answer_bounces() {
    let Some(mut site) = Site::new() else { return };
    let _recorder = Recorder::start(site.smtp(1));
    site.serve_dns(
        "homeless MX 10 nowhere\nhomeless MX 20 no.such\nnowhere TXT nothing\n\
         half MX 10 nowhere\nhalf MX 20 mx\nmx A @1\n\
         dotted MX 0 .\ndotted MX 10 mx\n\
         alias MX 10 www\nwww CNAME mx\nwhole CNAME half\n\
         loop MX 10 mta.sender\nmta.sender A @1\nbackup MX 10 mx\nbackup MX 20 mta.sender\n",
    );
    // As strict as it gets, and still nothing here has no MX.
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"10m\"\nbounce-upon-no-mx = true\nbounce-upon-nxdomain = true\n",
    );
    let mut mailer = Mailer::start(&config, &[]);
    let delivered = ["half", "dotted", "alias", "whole", "backup"].map(|name| format!("{name}.example"));
    // Of elsewhere.test the server knows nothing, and refuses to say anything.
    mailer.feed(delivered.iter().map(|domain| to(domain)));
    mailer.feed(["homeless.example", "elsewhere.test", "loop.example"].map(to));
    mailer.until_total("queue-deferred", 2);
    mailer.until_total("delivered", delivered.len());
    mailer.until_total("bounced", 1);
    let ended = mailer.terminate();
    for domain in &delivered {
        ended.only("delivered", &[("domain", domain)]);
    }
    for (domain, status) in [("homeless.example", "4.4.4"), ("elsewhere.test", "4.4.3")] {
        let record = ended.only("queue-deferred", &[("domain", domain)]);
        assert_eq!((text(record, "stage"), text(record, "status")), ("dns", status), "{record}");
    }
    // Its only host is this one (RFC 5321 section 5.1).
    let record = ended.only("bounced", &[]);
    assert_eq!((text(record, "domain"), text(record, "status")), ("loop.example", "5.4.6"), "{record}");
    assert_eq!(text(record, "reason"), "mail-loop");
    assert_eq!(ended.count("deferred"), 0);
}

#[test]
fn a_name_server_in_trouble_charges_nobody() {
    let Some(mut site) = Site::new() else { return };
    let _recorder = Recorder::start(site.smtp(1));
    // A zone that can not be loaded: SERVFAIL to every question.
    site.serve_dns("this is no record");
    let config = site.policy(
        "[domain.\"*\"]\nretry-after = \"1s\"\nbounce-upon-no-mx = true\nbounce-upon-nxdomain = true\n",
    );
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    let domains: Vec<_> = (0..20).map(|n| format!("d{n}.example")).collect();
    mailer.feed(domains.iter().map(|domain| to(domain)));
    mailer.until_total("queue-deferred", 30);
    let zone: String = (0..20).map(|n| format!("d{n} MX 10 mx\n")).collect();
    site.change_dns(&format!("{zone}mx A @1\n"));
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 20), "{}", ended.stderr);
    assert_eq!((ended.count("deferred"), ended.count("bounced")), (0, 0), "{:#?}", ended.records);
    assert!(ended.of_type("delivered").all(|record| record["attempts"] == 1), "{:#?}", ended.records);
    let waits =
        ended.of_type("queue-deferred").all(|r| (text(r, "stage"), text(r, "status")) == ("dns", "4.4.3"));
    assert!(waits, "{:#?}", ended.records);
}

#[test]
fn a_domain_that_comes_to_be_in_time() {
    let Some(mut site) = Site::new() else { return };
    let _recorder = Recorder::start(site.smtp(1));
    site.serve_dns("mx A @1\n");
    let config = site.policy("[domain.\"*\"]\nretry-after = \"10m\"\nbounce-upon-nxdomain = \"3s\"\n");
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed(["new.example", "never.example"].map(to));
    mailer.until_total("queue-deferred", 2);
    // What it just heard it believes for a minute, unless it starts anew.
    mailer.terminate();
    site.change_dns("mx A @1\nnew MX 10 mx\n");
    let mut mailer = Mailer::start(&config, &[]);
    mailer.until_settled(2);
    let ended = mailer.terminate();
    let new = ended.only("delivered", &[("domain", "new.example")]);
    assert_eq!(new["attempts"], 1, "{new}");
    let never = ended.only("bounced", &[("domain", "never.example")]);
    assert_eq!((text(never, "reason"), text(never, "status")), ("nxdomain", "5.1.2"), "{never}");
    assert!(never["queued_ms"].as_u64().unwrap() >= 3000, "{never}");
}

#[test]
fn one_message_to_domains_of_every_kind() {
    let Some(mut site) = Site::new() else { return };
    let _recorder = Recorder::start(site.smtp(1));
    site.serve_dns(
        "good MX 10 mx\nmx A @1\nnull MX 0 .\ntypo A @99\ntenant MX 10 mx.provider\nmx.provider A @1\n",
    );
    let config = site.policy(
        "[[rollup]]\nqueue = \"provider.rollup\"\nmx = [\"*.provider.example\"]\n\
         [domain.\"*\"]\nretry-after = \"10m\"\nbounce-upon-no-mx = \"1s\"\n",
    );
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    let addresses = [
        "a@good.example",
        "b@good.example",
        "a@null.example",
        "a@typo.example",
        "a@tenant.example",
        "a@no.example",
    ];
    mailer.feed([json!({ "ref": "m", "from": "", "to": addresses, "data": "1\r\n" }).to_string()]);
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for (recipient, queue) in [
        ("a@good.example", "good.example"),
        ("b@good.example", "good.example"),
        ("a@tenant.example", "provider.rollup"),
    ] {
        ended.only("delivered", &[("recipient", recipient), ("queue", queue)]);
    }
    for (recipient, reason) in
        [("a@null.example", "null-mx"), ("a@typo.example", "no-mx"), ("a@no.example", "nxdomain")]
    {
        ended.only("bounced", &[("recipient", recipient), ("reason", reason)]);
    }
    let typo = ended.only("bounced", &[("domain", "typo.example")]);
    assert!(
        typo["queued_ms"].as_u64().unwrap() >= u64::try_from(Duration::from_secs(1).as_millis()).unwrap()
    );
}
