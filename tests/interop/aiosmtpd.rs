//! aiosmtpd, a server in Python: SIZE and AUTH.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::process::Mailer;
use crate::site::{Site, skip};
use crate::{submission, text};

const PASSWORD: &str = "open sesame";

/// A server on a host of a site.
struct Server {
    log: PathBuf,
}

impl Server {
    /// `None`, and a visible line, where it is missing and nobody requires it.
    fn start(site: &mut Site, host: u8, options: &Value) -> Option<Self> {
        // Debian's package is for Debian's own Python, which may not be the first one.
        let has_it = |python: &&str| {
            let output = Command::new(python).args(["-c", "import aiosmtpd"]).output();
            output.is_ok_and(|output| output.status.success())
        };
        let Some(python) = ["python3", "/usr/bin/python3"].into_iter().find(has_it) else {
            skip("aiosmtpd (for python3)");
            return None;
        };
        let log = site.path(&format!("aiosmtpd{host}"));
        std::fs::write(&log, "").unwrap();
        let mut command = Command::new(python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/size_and_auth.py"));
        command.arg(site.ip(host).to_string()).arg(site.port.to_string()).arg(&log);
        command.arg(json!({ "ann": PASSWORD }).to_string()).arg(options.to_string());
        site.serve(host, &mut command);
        Some(Self { log })
    }

    /// What it has met that has this field.
    fn met(&self, field: &str) -> Vec<Value> {
        let log = std::fs::read_to_string(&self.log).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|met| met.get(field).is_some()).collect()
    }
}

#[test]
fn size_is_told_and_what_is_larger_is_not_offered() {
    let Some(mut site) = Site::new() else { return };
    let Some(server) = Server::start(&mut site, 1, &json!({ "data_size_limit": 5000 })) else { return };
    site.serve_dns("mail MX 10 mx\nmx A @1\n");
    let head = "Subject: x\r\n\r\n.\r\n..\r\n";
    let fits = head.to_owned() + &"x".repeat(998 - 2) + "\r\n" + &"0123456789\r\n".repeat(300);
    let large = head.to_owned() + &"0123456789\r\n".repeat(420);
    let mut mailer = Mailer::start(&site.config("", ""), &["--until-idle"]);
    mailer.feed([
        submission("fits", "fits@mail.example", &fits),
        submission("large", "large@mail.example", &large),
    ]);
    let ended = mailer.finish();
    assert_eq!((ended.code, ended.count("deferred")), (Some(0), 0), "{}", ended.stderr);
    ended.only("delivered", &[("ref", "fits")]);
    let bounced = ended.only("bounced", &[("ref", "large")]);
    assert_eq!(text(bounced, "status"), "5.3.4", "{bounced}");
    assert!(bounced.get("reply").is_none(), "the server was not asked: {bounced}");

    let mails = server.met("mail");
    let [mail] = &mails[..] else { panic!("{mails:?}") };
    assert!(mail["options"].as_array().unwrap().contains(&json!(format!("SIZE={}", fits.len()))), "{mail}");
    let taken = server.met("content");
    let [taken] = &taken[..] else { panic!("{taken:?}") };
    assert_eq!(taken["to"], json!(["fits@mail.example"]));
    assert!(decoded(text(taken, "content")) == fits.as_bytes(), "{taken}");
}

/// From base64.
fn decoded(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut octets, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in text.bytes().filter_map(|octet| DIGITS.iter().position(|&digit| digit == octet)) {
        bits = bits << 6 | u32::try_from(digit).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            octets.push((bits >> count & 0xff).try_into().unwrap());
        }
    }
    octets
}

#[test]
fn auth_by_plain_and_by_login() {
    let Some(mut site) = Site::new() else { return };
    site.serve_dns("");
    let mut policy = "[domain.\"*\"]\nuse-starttls = \"off\"\nretry-after = \"10m\"\n".to_owned();
    // What the server does not offer, the password, whether it may go without TLS; by what it went, and what came of it.
    let cases = [
        (&[][..], PASSWORD, true, Some("PLAIN"), None),
        (&["PLAIN"], PASSWORD, true, Some("LOGIN"), None),
        (&[], "wrong", true, Some("PLAIN"), Some("5.7.8")),
        (&["PLAIN"], "wrong", true, Some("LOGIN"), Some("5.7.8")),
        (&["PLAIN", "LOGIN"], PASSWORD, true, None, Some("4.7.4")),
        (&[], PASSWORD, false, None, Some("4.7.11")),
    ];
    let mut servers = Vec::new();
    for (host, (without, password, unencrypted, ..)) in (1..).zip(cases) {
        let options =
            json!({ "auth_required": true, "auth_require_tls": false, "auth_exclude_mechanism": without });
        let Some(server) = Server::start(&mut site, host, &options) else { return };
        servers.push(server);
        policy += &format!(
            "[domain.\"d{host}.example\"]\nsmtp-hosts = \"[{}]\"\nauth-username = \"ann\"\n\
             auth-password = \"{password}\"\nuse-unencrypted-plain-auth = {unencrypted}\n",
            site.ip(host)
        );
    }
    let mut mailer = Mailer::start(&site.policy(&policy), &[]);
    mailer.feed(
        (1..=cases.len()).map(|host| {
            submission(&host.to_string(), &format!("b@d{host}.example"), "Subject: x\r\n\r\nx\r\n")
        }),
    );
    mailer.until_total("delivered", 2);
    mailer.until_total("queue-deferred", 4);
    let ended = mailer.terminate();
    assert_eq!((ended.count("bounced"), ended.count("deferred")), (0, 0), "{:#?}", ended.records);
    for ((host, server), (_, _, _, mechanism, status)) in (1..).zip(&servers).zip(cases) {
        let logins: Vec<_> = mechanism.iter().map(|name| json!({ "auth": name, "login": "ann" })).collect();
        assert_eq!(server.met("auth"), logins, "{host}");
        let domain = format!("d{host}.example");
        if let Some(status) = status {
            let record = ended.only("queue-deferred", &[("domain", &domain)]);
            assert_eq!((text(record, "stage"), text(record, "status")), ("auth", status), "{record}");
            assert!(server.met("mail").is_empty(), "{host}");
        } else {
            ended.only("delivered", &[("domain", &domain)]);
            assert_eq!(server.met("content").len(), 1, "{host}");
        }
    }
    let told = format!("{:?}{}", ended.records, ended.stderr);
    assert!(!told.contains(PASSWORD) && !told.contains("wrong"), "{told}");
}
