//! Limits on connections and rates, as the servers see them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use postrider::clock::Timestamp;

use crate::process::{Ended, Mailer};
use crate::recorder::{Gate, Recorder, Visit, most_at_once};
use crate::site::Site;
use crate::{submission, text};

/// In no time between two of these were more than `burst`, and `rate` a second.
pub(crate) fn assert_paced(times: &[Timestamp], rate: f64, burst: f64) {
    // The engine counts when it decides, the server when it hears: what a busy machine may put between the two.
    let slack = Duration::from_millis(300);
    for (n, start) in times.iter().enumerate() {
        for (m, end) in times.iter().enumerate().skip(n) {
            let span = (end.saturating_since(*start) + slack).as_secs_f64();
            let count = (m - n + 1) as f64;
            assert!(count <= burst + rate * span, "{count} in {span} s: {times:?}");
        }
    }
}

fn to(domain: &str) -> String {
    submission(domain, &format!("a@{domain}.example"), "1\r\n")
}

/// A zone of domains that have each an MX of its own name, all at the same addresses.
fn zone(domains: usize, hosts: &[u8]) -> String {
    let mut zone = String::new();
    for domain in 0..domains {
        zone.push_str(&format!("d{domain} MX 10 mx{domain}\n"));
        hosts.iter().for_each(|host| zone.push_str(&format!("mx{domain} A @{host}\n")));
    }
    zone
}

/// Servers whose connections stay open until the gate opens.
fn held(site: &Site, hosts: &[u8], gate: &Gate) -> Vec<Recorder> {
    let held = |host: &u8| {
        let gate = gate.clone();
        Recorder::scripted(site.smtp(*host), move |line| {
            if line == "." {
                gate.pass();
            }
            None
        })
    };
    hosts.iter().map(held).collect()
}

fn visits(recorders: &[Recorder]) -> Vec<Visit> {
    recorders.iter().flat_map(Recorder::visits).collect()
}

/// Mail to 60 domains on hosts 1 and 2, held there until `full` connections are open and everything else that
/// could be opened would have been.
fn sixty_domains(
    site: &mut Site,
    policy: &str,
    full: &[usize],
    line: fn(usize) -> String,
) -> (Vec<Recorder>, Ended) {
    let gate = Gate::default();
    let recorders = held(site, &[1, 2], &gate);
    let _free = Recorder::start(site.smtp(3));
    site.serve_dns(&format!("{}free MX 10 mxfree\nmxfree A @3\n", zone(60, &[1, 2])));
    let config = site.policy(policy);
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed((0..60).map(line));
    mailer.until_count("received", 60);
    recorders.iter().zip(full).for_each(|(recorder, count)| recorder.until_open(*count));
    // Mail to elsewhere comes after them in line, and is not held up.
    for _ in 0..3 {
        mailer.feed([to("free")]);
        mailer.until("free", |record| record["type"] == "delivered" && record["ref"] == "free");
    }
    gate.open();
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.count("delivered"), 63);
    for kind in ["deferred", "queue-deferred", "bounced", "local-trouble"] {
        assert_eq!(ended.count(kind), 0, "a limit of our own is no failure: {:#?}", ended.records);
    }
    assert!(ended.of_type("delivered").all(|record| record["attempts"] == 1));
    // Domains share sessions to an address that all of their hosts have: few more than the limit are ever opened.
    let opened = visits(&recorders).len();
    assert!(opened <= 30, "{opened} connections for 60 messages");
    (recorders, ended)
}

#[test]
fn an_address_has_no_more_connections_than_its_limit() {
    let Some(mut site) = Site::new() else { return };
    let policy = format!("[[ip-connection-limit]]\ncidr = \"{}/24\"\nlimit = 3\n", site.ip(0));
    let (recorders, ended) = sixty_domains(&mut site, &policy, &[3, 3], |n| to(&format!("d{n}")));
    for recorder in &recorders {
        assert_eq!(most_at_once(&recorder.visits()), 3);
    }
    let queues: std::collections::BTreeSet<_> =
        ended.of_type("delivered").map(|r| text(r, "queue")).collect();
    assert_eq!(queues.len(), 61, "no rollup: a queue for each domain");
}

#[test]
fn a_shared_limit_is_one_for_the_range() {
    let Some(mut site) = Site::new() else { return };
    // The range has hosts 1 and 2; host 3 has a limit of its own, by its longer prefix.
    let range = site.ip(0);
    let policy = format!(
        "[[ip-connection-limit]]\ncidr = \"{range}/30\"\nlimit = 4\nshared = true\n\
         [[ip-connection-limit]]\ncidr = \"{}/32\"\nlimit = 5\n",
        site.ip(3)
    );
    let (recorders, _) = sixty_domains(&mut site, &policy, &[], |n| to(&format!("d{n}")));
    assert_eq!(most_at_once(&visits(&recorders)), 4);
}

#[test]
fn a_limit_per_source_counts_pairs_of_addresses() {
    let Some(mut site) = Site::new() else { return };
    let (one, two) = (site.ip(101), site.ip(102));
    let policy = format!(
        "[[source]]\nname = \"one\"\naddress = \"{one}\"\n[[source]]\nname = \"two\"\naddress = \"{two}\"\n\
         [[ip-connection-limit]]\ncidr = \"{}/24\"\nlimit = 2\nper-source = true\n",
        site.ip(0)
    );
    let (recorders, _) = sixty_domains(&mut site, &policy, &[4, 4], |n| {
        let source = ["one", "two"][n % 2];
        let mut line: serde_json::Value = serde_json::from_str(&to(&format!("d{n}"))).unwrap();
        line["source"] = source.into();
        line.to_string()
    });
    for recorder in &recorders {
        let visits = recorder.visits();
        for source in [one, two] {
            assert_eq!(most_at_once(visits.iter().filter(|visit| visit.from == source)), 2, "{visits:#?}");
        }
    }
}

#[test]
fn a_host_name_has_no_more_connections_than_its_limit() {
    let Some(mut site) = Site::new() else { return };
    let gate = Gate::default();
    let recorders = held(&site, &[1, 2], &gate);
    let _free = Recorder::start(site.smtp(3));
    // One name, two addresses, many domains.
    let mut zone = "mx.many A @1\nmx.many A @2\nfree MX 10 mxfree\nmxfree A @3\n".to_owned();
    (0..30).for_each(|n| zone.push_str(&format!("d{n} MX 10 mx.many\n")));
    site.serve_dns(&zone);
    let config = site.policy("[[mx-connection-limit]]\nmx = \"*.many.example\"\nlimit = 3\n");
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed((0..30).map(|n| to(&format!("d{n}"))));
    mailer.until_count("received", 30);
    mailer.feed([to("free")]);
    mailer.until("free", |record| record["type"] == "delivered");
    gate.open();
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 31), "{}", ended.stderr);
    assert_eq!((ended.count("deferred"), ended.count("queue-deferred")), (0, 0), "{:#?}", ended.records);
    assert_eq!(most_at_once(&visits(&recorders)), 3);
}

#[test]
fn messages_are_offered_no_faster_than_the_rate() {
    let Some(mut site) = Site::new() else { return };
    let recorder = Recorder::start(site.smtp(1));
    site.serve_dns("mail MX 10 mx\nmx A @1\n");
    let config = site.policy("[domain.\"*\"]\nmax-msg-rate = \"10/s\"\n");
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed((0..45).map(|_| to("mail")));
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 45), "{}", ended.stderr);
    assert_eq!(ended.count("deferred"), 0);
    let times = recorder.times("RCPT");
    assert_paced(&times, 10.0, 10.0);
    // A burst of ten, then 35 at ten a second.
    assert!(times[44].saturating_since(times[0]) > Duration::from_millis(3000), "{times:?}");
}

#[test]
fn connections_are_opened_no_faster_than_the_rate() {
    let Some(mut site) = Site::new() else { return };
    let recorder = Recorder::start(site.smtp(1));
    site.serve_dns("mail MX 10 mx\nmx A @1\n");
    let config = site.policy("[domain.\"*\"]\nmax-connect-rate = \"4/s\"\nmax-msg-per-connection = 2\n");
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed((0..31).map(|_| to("mail")));
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 31), "{}", ended.stderr);
    assert_eq!((ended.count("deferred"), ended.count("queue-deferred")), (0, 0));
    let visits = recorder.visits();
    let times: Vec<_> = visits.iter().map(|visit| visit.at).collect();
    assert_paced(&times, 4.0, 4.0);
    assert!(visits.iter().all(|visit| visit.messages <= 2), "{visits:#?}");
    assert!(visits.len() >= 16, "{visits:#?}");
}

#[test]
fn a_dead_address_beside_a_full_one() {
    let Some(mut site) = Site::new() else { return };
    let recorder = Recorder::start(site.smtp(1));
    // Nobody listens on host 99.
    site.serve_dns(&zone(40, &[1, 99]));
    let policy = format!(
        "[[ip-connection-limit]]\ncidr = \"{}/24\"\nlimit = 2\n[domain.\"*\"]\nretry-after = \"10m\"\n",
        site.ip(0)
    );
    let mut mailer = Mailer::start(&site.policy(&policy), &["--until-idle"]);
    mailer.feed((0..200).map(|n| to(&format!("d{}", n % 40))));
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 200), "{}", ended.stderr);
    assert_eq!((ended.count("deferred"), ended.count("queue-deferred")), (0, 0), "{:#?}", ended.records);
    assert!(most_at_once(&recorder.visits()) <= 2);
}

/// Servers that break off, refuse and forget in every way, for a while: what is held back is given back each time.
#[test]
fn a_limit_holds_while_sessions_break() {
    let Some(mut site) = Site::new() else { return };
    let recorders = [1, 2].map(|host| {
        let lines = AtomicUsize::new(0);
        Recorder::scripted(site.smtp(host), move |line| {
            let number = lines.fetch_add(1, Ordering::Relaxed);
            let reply = match (line, number % 7) {
                _ if number > 1500 => return None,
                ("QUIT", 0 | 3) => "",
                (".", 2) => "451 4.3.0 try again",
                (".", 3) => "",
                (_, 1) if line.starts_with("RCPT") => "450 4.2.0 come back",
                (_, 4) if line.starts_with("RCPT") => "",
                (_, 5) if line.starts_with("DATA") => "421 4.3.0 going down",
                (_, 6) if line.starts_with("RCPT") => "nonsense",
                _ => return None,
            };
            Some(reply.to_owned())
        })
    });
    site.serve_dns(&zone(20, &[1, 2]));
    let policy = format!(
        "[[ip-connection-limit]]\ncidr = \"{}/24\"\nlimit = 3\n\
         [domain.\"*\"]\nretry-after = \"100ms\"\nconnection-idle-timeout = \"100ms\"\nmax-msg-per-connection = 5\n",
        site.ip(0)
    );
    let mut mailer = Mailer::start(&site.policy(&policy), &["--until-idle"]);
    mailer.feed((0..300).map(|n| to(&format!("d{}", n % 20))));
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 300), "{}", ended.stderr);
    assert_eq!(ended.count("bounced"), 0, "{:#?}", ended.with("bounced", &[]));
    assert!(ended.count("deferred") > 20);
    for recorder in &recorders {
        assert_eq!(most_at_once(&recorder.visits()), 3);
    }
    // Whole sessions would need 60. How they part between the two hosts is not fixed: who breaks off rests.
    assert!(visits(&recorders).len() > 120);
}

#[test]
fn queues_and_sources_have_limits_too() {
    let Some(mut site) = Site::new() else { return };
    let gate = Gate::default();
    let recorders = held(&site, &[1], &gate);
    let _free = Recorder::start(site.smtp(3));
    site.serve_dns(&format!("{}free MX 10 mxfree\nmxfree A @3\n", zone(5, &[1])));
    let (one, two) = (site.ip(101), site.ip(102));
    let config = site.policy(&format!(
        "[[source]]\nname = \"one\"\naddress = \"{one}\"\n[[source]]\nname = \"two\"\naddress = \"{two}\"\n\
         [domain.\"*\"]\nmax-smtp-out = 5\nsource-ip-max-smtp-out = 3\nmax-msg-per-connection = 1\n\
         [source.domain.\"*\"]\nmax-smtp-out = 2\n",
    ));
    let line = |n: usize| {
        let mut line: serde_json::Value = serde_json::from_str(&to(&format!("d{}", n % 5))).unwrap();
        line["source"] = ["one", "two"][n / 5 % 2].into();
        line.to_string()
    };
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed((0..100).map(line));
    mailer.until_count("received", 100);
    for _ in 0..3 {
        mailer.feed([to("free")]);
        mailer.until("free", |record| record["type"] == "delivered");
    }
    gate.open();
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 103), "{}", ended.stderr);
    assert_eq!((ended.count("deferred"), ended.count("queue-deferred")), (0, 0), "{:#?}", ended.records);
    let visits = visits(&recorders);
    assert!(visits.iter().all(|visit| visit.messages <= 1), "{visits:#?}");
    // Five queues a source: of one 3 each at most, of two, listed last, 2 each.
    for (source, most) in [(one, 15), (two, 10)] {
        let found = most_at_once(visits.iter().filter(|visit| visit.from == source));
        assert!(found <= most && found >= 5, "{source}: {found}");
    }
}

#[test]
fn the_engine_has_a_limit_in_all() {
    let Some(mut site) = Site::new() else { return };
    let gate = Gate::default();
    let recorders = held(&site, &[1, 2], &gate);
    site.serve_dns(&zone(20, &[1, 2]));
    let config = site.write_config(&site.head("max-connections = 4"));
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed((0..60).map(|n| to(&format!("d{}", n % 20))));
    mailer.until_count("received", 60);
    gate.open();
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("delivered")), (Some(0), 60), "{}", ended.stderr);
    assert_eq!((ended.count("deferred"), ended.count("queue-deferred")), (0, 0), "{:#?}", ended.records);
    let most = most_at_once(&visits(&recorders));
    assert!((1..=4).contains(&most), "{most}");
}
