//! What goes in comes out: on the wire octet for octet, in the accounting once for each recipient.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::process::Mailer;
use crate::recorder::Recorder;
use crate::site::{Site, read_sink};
use crate::{submission, text};

const MESSAGES: usize = 1000;
const DOMAINS: usize = 50;
/// Each recipient's domain is served by one of four hosts; the first two are smtp-sinks.
const HOSTS: usize = 4;

/// A body with something awkward in it.
fn body(number: usize) -> Vec<u8> {
    let mut body = format!("Subject: {number}\r\nX-Number: {number}\r\n\r\n").into_bytes();
    match number % 8 {
        0 => body.extend(b"plain\r\n"),
        1 => body.extend(b".\r\n..\r\n.a leading dot\r\n\r\n.\r\n"),
        2 => body.extend("grüße, 日本語, 🐘\r\n".as_bytes()),
        3 => body.extend([&[b'x'; 5000][..], b"\r\n.", &[b'y'; 3000][..], b"\r\n"].concat()),
        4 => body.extend(b"no end of line"),
        5 => body = format!(".first octet is a dot {number}\r\n.").into_bytes(),
        6 => body.extend([b"latin-1 \xe9\xff\x80 and NUL-free\r\n", &b"\r\n".repeat(50)[..]].concat()),
        _ => body.extend(b"trailing spaces \t \r\n \r\n\r\n"),
    }
    if number == 42 {
        let line = format!(".{}\r\n", "z".repeat(75));
        body.extend(line.as_bytes().repeat((1 << 20) / line.len() + 1));
    }
    body
}

#[test]
fn a_thousand_messages_arrive_once_and_unchanged() {
    let Some(mut site) = Site::new() else { return };
    let sinks = [site.serve_sink(1), site.serve_sink(2)];
    let recorders = [Recorder::start(site.smtp(3)), Recorder::start(site.smtp(4))];
    // Of every fifth domain the best host is dead, so that the next one must be found.
    let mut zone = "dead A @99\n".to_owned();
    for domain in 0..DOMAINS {
        let host = domain % HOSTS + 1;
        zone.push_str(&format!("d{domain} MX 10 mx.d{domain}\nmx.d{domain} A @{host}\n"));
        if domain % 5 == 0 {
            zone.push_str(&format!("d{domain} MX 5 dead\n"));
        }
    }
    site.serve_dns(&zone);

    let recipient = |number: usize| format!("r{number}@d{}.example", number % DOMAINS);
    let lines = (0..MESSAGES).map(|number| {
        let mut line =
            json!({ "ref": number.to_string(), "from": "s@sender.example", "to": [recipient(number)] });
        match String::from_utf8(body(number)) {
            Ok(data) => line["data"] = data.into(),
            Err(_) => {
                let file = site.path(&format!("body{number}"));
                std::fs::write(&file, body(number)).unwrap();
                line["file"] = file.to_str().unwrap().into();
            }
        }
        line.to_string()
    });
    let lines = lines.collect();
    let mut mailer = Mailer::start(&site.config("", ""), &["--until-idle"]);
    mailer.feed_all(lines);
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);

    let mut wire: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut arrived = |to: Vec<String>, body| {
        assert_eq!(to.len(), 1);
        assert!(wire.insert(to[0].clone(), body).is_none(), "{} got it twice", to[0]);
    };
    recorders.iter().flat_map(Recorder::taken).for_each(|taken| arrived(taken.to, taken.body));
    for folder in &sinks {
        read_sink(folder).into_iter().for_each(|(to, body)| arrived(to, body));
    }
    for number in 0..MESSAGES {
        let recipient = recipient(number);
        let mut expected = body(number);
        if !expected.ends_with(b"\r\n") {
            expected.extend(b"\r\n");
        }
        let by_sink = number % DOMAINS % HOSTS < 2;
        if by_sink {
            // It writes lines as Unix has them, and so can not show their ends.
            expected.retain(|&octet| octet != b'\r');
        }
        let arrived = wire.remove(&recipient).unwrap_or_else(|| panic!("{recipient} got nothing"));
        assert!(arrived == expected, "{recipient} got {:?}", String::from_utf8_lossy(&arrived));
    }
    assert!(wire.is_empty(), "nobody sent to {:?}", wire.keys());
    for recorder in recorders {
        let odd: Vec<_> = recorder.heard().into_iter().filter(|line| line.contains("BARE LF")).collect();
        assert_eq!(odd, [""; 0]);
    }

    assert_eq!(ended.count("received"), MESSAGES);
    assert_eq!(ended.count("delivered"), MESSAGES);
    let received: BTreeMap<_, _> = ended.of_type("received").map(|r| (text(r, "ref"), r)).collect();
    let mut events = BTreeSet::new();
    for record in ended.of_type("delivered") {
        let number: usize = text(record, "ref").parse().unwrap();
        let received = received[text(record, "ref")];
        assert_eq!(record["id"], received["id"]);
        assert_eq!(received["size"], body(number).len());
        assert_eq!(received["recipients"], 1);
        assert_eq!(text(record, "recipient"), recipient(number));
        let domain = format!("d{}.example", number % DOMAINS);
        assert_eq!(text(record, "domain"), domain);
        assert_eq!(text(record, "mx"), format!("mx.{domain}"));
        let host = u8::try_from(number % DOMAINS % HOSTS + 1).unwrap();
        assert_eq!(text(record, "ip"), site.ip(host).to_string());
        assert_eq!(record["port"], site.port);
        assert_eq!(record["reply"]["code"], 250);
        assert_eq!(record["attempts"], 1);
        assert!(record["queued_ms"].is_u64() && record["tls"].is_null(), "{record}");
        assert!(text(record, "time").parse::<postrider::clock::Timestamp>().is_ok(), "{record}");
        assert!(events.insert(text(record, "event").to_owned()), "{record} came twice");
    }
}

#[test]
fn a_bad_line_is_rejected_alone() {
    let Some(mut site) = Site::new() else { return };
    let recorder = Recorder::start(site.smtp(1));
    site.serve_dns("good MX 10 mx\nmx A @1\n");
    let with = |name: &str, value: Value| {
        let mut line =
            json!({ "ref": name, "from": "s@x.example", "to": ["bad@good.example"], "data": "bad\r\n" });
        line[name] = value;
        line.to_string()
    };
    // What the error must name, and the line.
    let bad: Vec<(&str, Vec<u8>)> = [
        ("column", "bad, not JSON".to_owned()),
        ("column", "{\"ref\":\"bad\"".to_owned()),
        ("missing field `to`", json!({ "ref": "bad", "from": "", "data": "" }).to_string()),
        ("unknown field `colour`", with("colour", "bad".into())),
        ("at least one recipient", with("to", json!([]))),
        ("`data` or `file`", with("file", "bad".into())),
        ("to: ", with("to", json!(["bad"]))),
        ("to: ", with("to", json!(["ok@good.example", "bad@good.example\r\nRCPT TO:<x@good.example>"]))),
        ("from: ", with("from", "bad\n@x.example".into())),
        ("bare LF", with("data", "bad\n.\nMAIL FROM:<x@x.example>".into())),
        ("bare CR", with("data", "bad\r.\r".into())),
        ("tags", with("tags", json!({ "n": 1 }))),
        ("hold_until", with("hold_until", "bad".into())),
        ("expires_after", with("expires_after", "bad".into())),
        ("priority", with("priority", "bad".into())),
        ("id", with("id", "bad".into())),
        ("", with("source", "no such source".into())),
        (
            "file",
            json!({ "ref": "bad", "from": "", "to": ["bad@good.example"], "file": "/no/such" }).to_string(),
        ),
        (
            "file",
            json!({ "ref": "bad", "from": "", "to": ["bad@good.example"], "file": "/dev/zero" }).to_string(),
        ),
    ]
    .map(|(named, line)| (named, line.into_bytes()))
    .into_iter()
    .chain([("UTF-8", b"{\"ref\":\"bad\xff\"}".to_vec())])
    .collect();

    let mut mailer = Mailer::start(&site.config("", ""), &["--until-idle"]);
    for (number, (_, line)) in bad.iter().enumerate() {
        mailer.feed([
            submission(&format!("good{number}"), "ok@good.example", "good\r\n").into_bytes(),
            line.clone(),
        ]);
    }
    mailer.feed(["", "  \t"]);
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for (number, (named, line)) in bad.iter().enumerate() {
        let records: Vec<_> = ended.of_type("rejected").filter(|r| r["line"] == 2 * number + 2).collect();
        let [record] = records[..] else { panic!("{records:?} for {}", String::from_utf8_lossy(line)) };
        assert!(text(record, "error").contains(named), "{record} does not name {named}");
        if let Some(reference) =
            serde_json::from_slice::<Value>(line).ok().and_then(|line| line.get("ref").cloned())
        {
            assert_eq!(record["ref"], reference);
        }
    }
    assert_eq!(ended.count("rejected"), bad.len());
    assert_eq!(ended.count("received"), bad.len());
    assert_eq!(ended.count("delivered"), bad.len());
    assert_eq!(recorder.taken().len(), bad.len());
    let heard = recorder.heard();
    assert!(!heard.iter().any(|line| line.contains("bad") || line.contains("x@")), "{heard:?}");
}

#[test]
fn what_the_submitter_says_comes_back() {
    let Some(mut site) = Site::new() else { return };
    let recorder = Recorder::start(site.smtp(1));
    site.serve_dns("good MX 10 mx\nmx A @1\n");
    let id = "0190b5a4-6c2e-7c80-8000-0123456789ab";
    let line = json!({
        "ref": "mine", "from": "", "to": ["a@good.example", "b@Good.Example"], "data": "", "id": id,
        "priority": "high", "expires_after": "2h", "hold_until": "2020-01-01T00:00:00Z", "tags": { "campaign": "x" },
    })
    .to_string();
    let mut mailer = Mailer::start(&site.config("", ""), &["--until-idle"]);
    mailer.feed([&line]);
    mailer.until_count("received", 1);
    mailer.feed([&line]);
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!((ended.count("received"), ended.count("delivered")), (2, 2), "{:#?}", ended.records);
    for record in &ended.records {
        assert_eq!(text(record, "id"), id);
        assert_eq!(text(record, "ref"), "mine");
        assert_eq!(record["tags"], json!({ "campaign": "x" }));
    }
    let taken = recorder.taken();
    let mut to: Vec<_> = taken.iter().flat_map(|taken| taken.to.clone()).collect();
    to.sort();
    assert_eq!(to, ["a@good.example", "b@good.example"]);
    assert!(taken.iter().all(|taken| taken.mail.starts_with("<>") && taken.body.is_empty()), "{taken:?}");
}

#[test]
fn a_bad_configuration_is_refused_before_anything_starts() {
    let Some(site) = Site::new() else { return };
    for (all, named) in [
        ("retry-aftre = [\"1m\"]", vec!["retry-aftre", "line "]),
        ("bounce-after = \"5x\"", vec!["bounce-after", "5x", "line "]),
        ("max-smtp-out = \"many\"", vec!["max-smtp-out", "many", "line "]),
        ("retry-jitter = 7", vec!["retry-jitter", "7", "line "]),
        ("[[source]]\nname = \"a\"\n[[source]]\nname = \"a\"", vec!["source", "line "]),
        ("max-smtp-out = ", vec!["line "]),
    ] {
        let ended = Mailer::start(&site.config("", all), &["--until-idle"]).finish();
        assert_eq!(ended.code, Some(2), "{all}: {}", ended.stderr);
        for word in named.iter().chain(&["mailer.toml"]) {
            assert!(ended.stderr.contains(word), "{:?} does not name {word}", ended.stderr);
        }
        assert!(ended.records.is_empty());
    }
    assert!(!site.path("spool").exists());

    let missing = Mailer::start(&site.path("missing.toml"), &[]).finish();
    assert_eq!(missing.code, Some(2), "{}", missing.stderr);
    assert!(missing.stderr.contains("missing.toml"), "{}", missing.stderr);
    let usage = Mailer::start(&site.config("", ""), &["--until-ilde"]).finish();
    assert_eq!(usage.code, Some(2), "{}", usage.stderr);
    assert!(usage.stderr.contains("--until-ilde"), "{}", usage.stderr);
}
