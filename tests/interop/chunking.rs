//! Content by BDAT, to Postfix and Exim: verdicts, several messages in a session, and that what arrives is what comes by DATA.

use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::json;

use crate::exim::Exim;
use crate::exim_mail::{contents, kept};
use crate::postfix::Postfix;
use crate::process::{Ended, Mailer};
use crate::site::Site;
use crate::text;

const ZONE: &str = "mail MX 10 mx\ndata MX 10 mx\nmx A @1\n";
/// One connection at a time: everything goes over it. By BDAT, but to the domain `data.example`.
const POLICY: &str = "[domain.\"*\"]\nuse-starttls = \"off\"\nretry-after = \"10m\"\nmax-smtp-out = 1\n\
                      use-chunking = true\n[domain.\"data.example\"]\nuse-chunking = false\n";

/// Whether it comes to be so within 20 seconds.
fn wait_until(is_so: impl Fn() -> bool) -> bool {
    let (_keep, pause) = channel::<()>();
    (0..1000).any(|_| is_so() || pause.recv_timeout(Duration::from_millis(20)).is_ok())
}

/// Each content to a recipient of its own in both domains.
fn send_contents(site: &Site) -> BTreeMap<String, Vec<u8>> {
    let contents: BTreeMap<_, _> = contents().into_iter().chain([("empty".to_owned(), Vec::new())]).collect();
    let mut mailer = Mailer::start(&site.policy(POLICY), &["--until-idle"]);
    mailer.feed(contents.iter().enumerate().flat_map(|(number, (name, content))| {
        let file = site.path(&format!("content{number}"));
        std::fs::write(&file, content).unwrap();
        ["mail", "data"].map(|domain| {
            let to = [format!("r{number}@{domain}.example")];
            json!({ "ref": name, "from": "s@sender.example", "to": to, "file": file }).to_string()
        })
    }));
    let ended = mailer.finish();
    let count = (ended.code, ended.count("delivered"));
    assert_eq!(count, (Some(0), 2 * contents.len()), "{} {:#?}", ended.stderr, ended.records);
    contents
}

/// `arrived` by recipient.
fn check_contents(
    contents: &BTreeMap<String, Vec<u8>>,
    arrived: &BTreeMap<String, Vec<u8>>,
    as_it_was: &[&str],
) {
    assert_eq!(arrived.len(), 2 * contents.len());
    for (number, (name, content)) in contents.iter().enumerate() {
        let by_bdat = &arrived[&format!("r{number}@mail.example")];
        let by_data = &arrived[&format!("r{number}@data.example")];
        assert!(by_bdat == by_data, "{name}: {:?}", String::from_utf8_lossy(by_bdat));
        if !as_it_was.contains(&name.as_str()) {
            assert!(*by_bdat == kept(content), "{name}: {:?}", String::from_utf8_lossy(by_bdat));
        }
    }
}

#[test]
fn the_same_content_arrives_at_postfix_as_by_data() {
    let Some(mut site) = Site::new() else { return };
    let Some(postfix) = Postfix::start(&mut site, 1, "", "") else { return };
    site.serve_dns(ZONE);
    let contents = send_contents(&site);
    let count = 2 * contents.len();
    assert!(wait_until(|| postfix.delivered().len() == count), "{:#?}", postfix.delivered().len());
    let delivered = postfix.delivered().into_iter();
    let arrived = delivered.map(|delivered| (delivered.to, delivered.content)).collect();
    // To what has no header it adds an empty line.
    check_contents(&contents, &arrived, &["headless", "empty"]);
    assert!(wait_until(|| postfix.sessions().len() == 2), "{:?}", postfix.sessions());
    let half = count / 2;
    for way in ["bdat", "data"] {
        let summary = format!("ehlo=1 mail={half} rcpt={half} {way}={half} quit=1 commands={}", 3 * half + 2);
        assert!(postfix.sessions().contains(&summary), "{summary} in {:?}", postfix.sessions());
    }
}

#[test]
fn the_same_content_arrives_at_exim_as_by_data() {
    let Some(mut site) = Site::new() else { return };
    let options = "chunking_advertise_hosts = *\ntls_advertise_hosts =";
    let Some(exim) = Exim::start(&mut site, 1, options, "rcpt:\n  accept") else { return };
    site.serve_dns(ZONE);
    let contents = send_contents(&site);
    let queued = exim.queued().into_iter();
    let arrived = queued.map(|mut queued| (queued.to.pop_first().unwrap().0, queued.content)).collect();
    check_contents(&contents, &arrived, &["empty"]);
    // What comes by BDAT has a K.
    let by_bdat = exim.arrivals().iter().filter(|line| line.contains(" K ")).count();
    assert_eq!(
        (by_bdat, exim.arrivals().len()),
        (contents.len(), 2 * contents.len()),
        "{:#?}",
        exim.arrivals()
    );
}

/// Five messages to three recipients each, one refused; the content of the second and the fourth is refused, and the third has no
/// recipient at all.
fn send_with_refusals(site: &Site) -> Ended {
    let mut mailer = Mailer::start(&site.policy(POLICY), &[]);
    for (number, subject) in ["first", "spam", "nobody", "later", "last"].into_iter().enumerate() {
        let names: &[&str] = if subject == "nobody" { &["gone", "full"] } else { &["fine", "gone", "good"] };
        let to: Vec<_> = names.iter().map(|name| format!("{name}@mail.example")).collect();
        let data = format!("Subject: {subject}\r\n\r\n.\r\nx{number}\r\n");
        let line = json!({ "ref": subject, "from": "s@sender.example", "to": to, "data": data });
        mailer.feed([line.to_string()]);
        // One after the other, so that it is known in what order they go over the connection.
        let mut left = to.len();
        mailer.until("a record of each recipient", |record| {
            left -= usize::from(record["ref"] == subject && record["recipient"].is_string());
            left == 0
        });
    }
    mailer.terminate()
}

/// Who has the mail, and each record as `ref recipient type stage code`.
fn check_refusals(ended: &Ended, codes: [(u16, &str); 4]) {
    let records = ended.records.iter().filter(|record| record["recipient"].is_string());
    let mut said: Vec<_> = records
        .map(|record| {
            let name = text(record, "recipient").split('@').next().unwrap().to_owned();
            let code = record["reply"]["code"].as_u64().unwrap_or_default();
            let words = [text(record, "ref"), &name, text(record, "type"), text(record, "stage")];
            format!("{} {code} {}", words.join(" "), text(&record["reply"], "enhanced"))
        })
        .collect();
    said.sort();
    let [gone, full, spam, later] = codes.map(|(code, status)| format!("{code} {status}"));
    let mut expected = Vec::new();
    for subject in ["first", "last"] {
        expected.extend(["fine", "good"].map(|name| format!("{subject} {name} delivered  250 ")));
    }
    for name in ["fine", "good"] {
        expected.push(format!("spam {name} bounced dot {spam}"));
        expected.push(format!("later {name} deferred dot {later}"));
    }
    for subject in ["first", "spam", "nobody", "later", "last"] {
        expected.push(format!("{subject} gone bounced rcpt {gone}"));
    }
    expected.push(format!("nobody full deferred rcpt {full}"));
    expected.sort();
    let said: Vec<_> = said.iter().map(|line| line.replace("250 2.0.0", "250 ")).collect();
    assert_eq!(said, expected);
}

#[test]
fn verdicts_of_postfix() {
    let Some(mut site) = Site::new() else { return };
    let access = "{gone@mail.example = 550 5.1.1 Nobody}, {full@mail.example = 452 4.2.2 Full}";
    let Some(postfix) = Postfix::start(&mut site, 1, "", access) else { return };
    site.serve_dns(ZONE);
    let ended = send_with_refusals(&site);
    check_refusals(&ended, [(550, "5.1.1"), (452, "4.2.2"), (550, "5.7.1"), (451, "4.7.1")]);
    assert!(wait_until(|| postfix.delivered().len() == 4), "{:#?}", postfix.delivered());
    for delivered in postfix.delivered() {
        let content = String::from_utf8(delivered.content).unwrap();
        let expected = ["Subject: first\n\n.\nx0\n", "Subject: last\n\n.\nx4\n"];
        assert!(expected.contains(&content.as_str()), "{content:?}");
    }
    assert!(wait_until(|| postfix.sessions().len() == 1), "{:?}", postfix.sessions());
    // RSET after each refused content, and after the message without recipients.
    let summary = "ehlo=1 mail=5 rcpt=8/14 bdat=2/4 rset=3 quit=1 commands=20/28";
    assert_eq!(postfix.sessions(), [summary]);
}

#[test]
fn verdicts_of_exim() {
    let Some(mut site) = Site::new() else { return };
    let options = "chunking_advertise_hosts = *\ntls_advertise_hosts =\npipelining_advertise_hosts = *\nacl_smtp_data = content";
    let acls = "rcpt:
                  deny local_parts = gone
                    message = 550 5.1.1 Nobody
                  defer local_parts = full
                    message = 452 4.2.2 Full
                  accept
                content:
                  deny condition = ${if eq{$h_subject:}{spam}}
                    message = 550 5.7.1 Spam
                  defer condition = ${if eq{$h_subject:}{later}}
                    message = 450 4.7.1 Content is looked at
                  accept";
    let Some(exim) = Exim::start(&mut site, 1, options, acls) else { return };
    site.serve_dns(ZONE);
    let ended = send_with_refusals(&site);
    check_refusals(&ended, [(550, "5.1.1"), (452, "4.2.2"), (550, "5.7.1"), (450, "4.7.1")]);
    let mut contents: Vec<_> = exim.queued().into_iter().map(|queued| queued.content).collect();
    contents.sort();
    assert_eq!(contents, [b"Subject: first\n\n.\nx0\n".to_vec(), b"Subject: last\n\n.\nx4\n".to_vec()]);
    assert!(exim.arrivals().iter().all(|line| line.contains(" K ")), "{:#?}", exim.arrivals());
}
