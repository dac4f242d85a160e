//! Domains of one provider in one queue, and which settings hold for whom.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::process::Mailer;
use crate::recorder::{GREETING, Recorder, most_at_once};
use crate::site::Site;
use crate::{submission, text};

const DOMAINS: usize = 300;

fn to(domain: &str) -> String {
    submission(domain, &format!("a@{domain}.example"), "1\r\n")
}

#[test]
fn a_provider_with_many_domains_is_one_queue() {
    let Some(mut site) = Site::new() else { return };
    let recorders = [1, 2].map(|host| Recorder::start(site.smtp(host)));
    let mut zone = "mx1.provider A @1\nmx2.provider A @2\n".to_owned();
    for n in 0..DOMAINS {
        zone.push_str(&format!("d{n} MX 10 mx1.provider\nd{n} MX 10 mx2.provider\n"));
    }
    site.serve_dns(&zone);
    let config = site.policy(
        "[[rollup]]\nqueue = \"provider.rollup\"\nmx = [\"*.Provider.example.\"]\n\
         [domain.\"provider.rollup\"]\nmax-smtp-out = 10\nmax-msg-per-connection = 100\n",
    );
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed_all((0..DOMAINS).map(|n| to(&format!("d{n}"))).collect());
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), DOMAINS), "{}", ended.stderr);
    let visits: Vec<_> = recorders.iter().flat_map(Recorder::visits).collect();
    assert!(visits.len() <= 20, "{} connections", visits.len());
    assert!(most_at_once(&visits) <= 10, "{visits:#?}");
    let own: BTreeSet<_> = ended
        .with("delivered", &[("queue", "provider.rollup")])
        .into_iter()
        .map(|record| {
            assert_eq!(text(record, "domain"), format!("{}.example", text(record, "ref")), "{record}");
            text(record, "domain").to_owned()
        })
        .collect();
    assert_eq!(own.len(), DOMAINS);
}

/// Which hosts of a domain a rule looks at, and where the mail goes.
#[test]
fn rules_by_names_wildcards_and_exceptions() {
    let Some(mut site) = Site::new() else { return };
    let recorders = [1, 2, 3].map(|host| Recorder::start(site.smtp(host)));
    site.serve_dns(
        "mx1.names A @1\nmx2.names A @2\nmx3 A @3\n\
         both MX 10 mx1.names\nboth MX 10 mx2.names\n\
         more MX 10 mx1.names\nmore MX 10 mx2.names\nmore MX 10 mx3\n\
         worse MX 10 mx1.names\nworse MX 20 mx2.names\n\
         one MX 10 mx1.names\n\
         mixed MX 10 mx1.wild\nmixed MX 10 mx3\nwild MX 10 mx1.wild\nwild MX 20 mx3\nmx1.wild A @3\n\
         out MX 10 mx1.wild\n\
         none A @3\n",
    );
    let config = site.policy(&format!(
        "[[rollup]]\nqueue = \"names.rollup\"\nmx = [\"mx1.names.example\", \"mx2.names.example\"]\n\
         [[rollup]]\nqueue = \"wild.rollup\"\nmx = [\"*.wild.example\"]\n\
         [domain.\"out.example\"]\ndisable-mx-rollup = true\n\
         [domain.\"fixed.example\"]\nsmtp-hosts = [\"[{fixed}]:{port}\"]\n\
         [domain.\"static.example\"]\nqueue-to = \"static.rollup\"\n\
         [domain.\"static.rollup\"]\nsmtp-hosts = \"[{fixed}]:{port}\"\n",
        fixed = site.ip(2),
        port = site.port,
    ));
    let table = [
        ("both", "names.rollup", [1, 2].as_slice()),
        ("more", "names.rollup", &[1, 2]),
        ("worse", "worse.example", &[1]),
        ("one", "one.example", &[1]),
        ("mixed", "mixed.example", &[3]),
        ("wild", "wild.rollup", &[3]),
        ("out", "out.example", &[3]),
        ("none", "none.example", &[3]),
        ("fixed", "fixed.example", &[2]),
        ("static", "static.rollup", &[2]),
    ];
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    // Several each, so that a choice among hosts shows.
    mailer.feed((0..10).flat_map(|_| table.map(|(domain, ..)| to(domain))));
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 10 * table.len()), "{}", ended.stderr);
    for (domain, queue, hosts) in table {
        let records = ended.with("delivered", &[("ref", domain)]);
        assert_eq!(records.len(), 10);
        for record in records {
            assert_eq!(text(record, "queue"), queue, "{record}");
            assert_eq!(text(record, "domain"), format!("{domain}.example"), "{record}");
            assert!(hosts.iter().any(|host| text(record, "ip") == site.ip(*host).to_string()), "{record}");
        }
    }
    assert_eq!(recorders.iter().map(|recorder| recorder.taken().len()).sum::<usize>(), 10 * table.len());
}

#[test]
fn hosts_of_a_rule_first_and_the_domains_others_when_they_are_down() {
    let Some(mut site) = Site::new() else { return };
    let _third = Recorder::start(site.smtp(3));
    site.serve_dns("mx1.names A @98\nmx3 A @3\nmore MX 10 mx1.names\nmore MX 10 mx3\n");
    let config = site.policy("[[rollup]]\nqueue = \"names.rollup\"\nmx = [\"mx1.names.example\"]\n");
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed([to("more")]);
    let ended = mailer.finish();
    let record = ended.only("delivered", &[("queue", "names.rollup")]);
    assert_eq!((text(record, "mx"), &record["attempts"]), ("mx3.example", &json!(1)), "{:#?}", ended.records);
}

#[test]
fn one_tenants_dead_host_stops_nobody_else() {
    let Some(mut site) = Site::new() else { return };
    let _shared = Recorder::start(site.smtp(1));
    let _own = Recorder::start(site.smtp(2));
    site.serve_dns(
        "a MX 10 mx1.provider\nmx1.provider A @1\nb MX 10 mx2.provider\nmx2.provider A @2\n\
         c MX 10 mx3.provider\nmx3.provider A @99\n",
    );
    let config = site.policy(
        "[[rollup]]\nqueue = \"provider.rollup\"\nmx = [\"*.provider.example\"]\n\
         [domain.\"*\"]\nretry-after = \"10m\"\n",
    );
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed(["c", "a", "c", "b", "c"].map(to));
    mailer.until("the dead one", |record| record["type"] == "queue-deferred");
    mailer.feed((0..40).map(|n| to(["a", "b"][n % 2])));
    mailer.until_total("delivered", 42);
    let ended = mailer.terminate();
    // A tenant's mail goes to its own host only.
    for (domain, mx) in [("a", "mx1.provider.example"), ("b", "mx2.provider.example")] {
        assert_eq!(ended.with("delivered", &[("ref", domain), ("mx", mx)]).len(), 21);
    }
    let deferred = ended.only("queue-deferred", &[("queue", "provider.rollup")]);
    assert_eq!(text(deferred, "domain"), "c.example", "{deferred}");
    assert_eq!(ended.count("deferred"), 0);
}

#[test]
fn a_domain_that_moves_takes_its_mail_along() {
    let Some(mut site) = Site::new() else { return };
    let old = Recorder::scripted(site.smtp(1), |line| {
        line.starts_with("RCPT").then(|| "450 4.2.0 come back".to_owned())
    });
    let new = Recorder::start(site.smtp(2));
    let hosts = "mx.old A @1\nmx.provider A @2\n";
    site.serve_dns(&format!("{hosts}moves 1 MX 10 mx.old\nleaves 1 MX 10 mx.provider\n"));
    let config = site.policy(
        "[[rollup]]\nqueue = \"provider.rollup\"\nmx = [\"*.provider.example\"]\n\
         [[rollup]]\nqueue = \"old.rollup\"\nmx = [\"*.old.example\"]\n\
         [domain.\"*\"]\nretry-after = [\"1s\", \"2s\"]\n",
    );
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed((0..5).map(|_| to("moves")));
    mailer.until_count("deferred", 5);
    site.change_dns(&format!("{hosts}moves 1 MX 10 mx.provider\n"));
    mailer.until_settled(5);
    let ended = mailer.terminate();
    assert!(ended.with("deferred", &[("queue", "old.rollup")]).len() >= 5, "{:#?}", ended.records);
    let delivered = ended.with("delivered", &[("queue", "provider.rollup"), ("mx", "mx.provider.example")]);
    assert_eq!(delivered.len(), 5, "{:#?}", ended.records);
    for record in delivered {
        let reference = ended.with("deferred", &[("id", text(record, "id"))]).len();
        assert_eq!(record["attempts"], reference + 1, "attempts go along: {record}");
        assert_eq!(text(record, "domain"), "moves.example");
    }
    assert_eq!((old.taken().len(), new.taken().len()), (0, 5));
}

#[test]
fn mail_for_a_dead_host_goes_where_the_domain_moved() {
    let Some(mut site) = Site::new() else { return };
    let back = Arc::new(AtomicBool::new(false));
    let old = Recorder::scripted(site.smtp(1), move |line| {
        (line == GREETING && !back.load(Ordering::Relaxed)).then(|| "421 4.3.2 closing for ever".to_owned())
    });
    let new = Recorder::start(site.smtp(2));
    let hosts = "mx.old A @1\nmx.new A @2\n";
    site.serve_dns(&format!("{hosts}moves 1 MX 10 mx.old\n"));
    let config = site.policy("[domain.\"*\"]\nretry-after = [\"2s\", \"2s\"]\n");
    let mut mailer = Mailer::start(&config, &[]);
    mailer.feed((0..5).map(|_| to("moves")));
    mailer.until_count("queue-deferred", 1);
    let first = mailer.terminate();
    assert_eq!(first.count("delivered") + first.count("deferred"), 0);
    site.change_dns(&format!("{hosts}moves 1 MX 10 mx.new\n"));
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.until_settled(5);
    let ended = mailer.finish();
    assert_eq!(ended.with("delivered", &[("mx", "mx.new.example")]).len(), 5, "{:#?}", ended.records);
    assert_eq!((old.taken().len(), new.taken().len()), (0, 5));
}

/// Tables in one order and in the other: the same settings hold.
#[test]
fn the_order_of_tables_plays_no_role() {
    let Some(mut site) = Site::new() else { return };
    let _busy = Recorder::scripted(site.smtp(1), |line| {
        line.starts_with("RCPT").then(|| "450 4.2.0 come back".to_owned())
    });
    site.serve_dns(
        "a MX 10 mx\nb MX 10 mx\nx.b MX 10 mx\ny.x.b MX 10 mx\nmx A @1\nrolled MX 10 mx.provider\nmx.provider A @1\n",
    );
    let tables = [
        "[domain.\"*\"]\nretry-after = \"10m\"\nretry-jitter = 0\n".to_owned(),
        "[domain.\"*.b.example\"]\nretry-after = \"20m\"\n".to_owned(),
        "[domain.\"x.b.example\"]\nretry-after = \"30m\"\n".to_owned(),
        "[domain.\"provider.rollup\"]\nretry-after = \"40m\"\n".to_owned(),
        "[[rollup]]\nqueue = \"provider.rollup\"\nmx = [\"*.provider.example\"]\n".to_owned(),
        format!(
            "[[source]]\nname = \"first\"\n[[source]]\nname = \"own\"\naddress = \"{}\"\n\
             [source.domain.\"a.example\"]\nretry-after = \"50m\"\n\
             [source.domain.\"*.b.example\"]\nretry-after = \"60m\"\n",
            site.ip(101)
        ),
    ];
    // Mail that names no source goes by the first. A source's own tables go before those of all.
    let wanted = [
        ("a", "", 10),
        ("b", "", 10),
        ("x.b", "", 30),
        ("y.x.b", "", 20),
        ("rolled", "", 40),
        ("a", "own", 50),
        ("b", "own", 10),
        ("x.b", "own", 60),
        ("rolled", "own", 40),
    ];
    for backwards in [false, true] {
        let mut parts = vec![site.head("")];
        parts.extend(tables.clone());
        if backwards {
            parts.reverse();
        }
        let config = site.write_config(&parts.join("\n"));
        let mut mailer = Mailer::start(&config, &[]);
        mailer.feed(wanted.map(|(domain, source, _)| {
            let mut line: serde_json::Value = serde_json::from_str(&to(domain)).unwrap();
            line["ref"] = format!("{domain}/{source}/{backwards}").into();
            if !source.is_empty() {
                line["source"] = source.into();
            }
            line.to_string()
        }));
        mailer.until_count("deferred", wanted.len());
        let ended = mailer.terminate();
        for (domain, source, minutes) in wanted {
            let reference = format!("{domain}/{source}/{backwards}");
            let record = ended.only("deferred", &[("ref", &reference)]);
            let wait = crate::time(record, "next_attempt").saturating_since(crate::time(record, "time"));
            let wait = wait.as_secs_f64() / 60.0;
            let minutes = f64::from(minutes);
            assert!((minutes - 0.1..=minutes).contains(&wait), "{reference}: {wait} min, not {minutes}");
        }
    }
}
