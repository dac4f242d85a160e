//! The ways of smtp-sink to fail: its modes × commands. A message to ann and ben goes to the first of two hosts, which
//! fails until each of the two has a record, and works from then on; the second host works always. What the first
//! record says is one letter:
//!
//! | Letter | |
//! |---|---|
//! | `=` | delivered by the first host, as if nothing had been |
//! | `>` | delivered by the second host, in the same attempt |
//! | `d` | deferred |
//! | `p` | likewise, and it says that it was possibly delivered |
//! | `b` | bounced |

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::process::{Ended, Mailer};
use crate::site::{Site, read_sink};
use crate::text;

/// The host that works.
const SECOND: u8 = 200;
const NAMES: [&str; 2] = ["ann", "ben"];

/// A first host that fails as these options say, and a domain of its own.
struct Cell {
    /// The first label of the domain.
    name: String,
    options: Vec<String>,
    octets: usize,
    letter: char,
    /// Where it fails, and the code and status of its reply, where it gives one.
    verdict: Option<(&'static str, u16, &'static str)>,
}

impl Cell {
    fn new(name: String, options: &[&str], letter: char) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self { name, options, octets: 10, letter, verdict: None }
    }

    fn recipients(&self) -> [String; 2] {
        NAMES.map(|name| format!("{name}@{}.example", self.name))
    }

    /// What the first record of a recipient says.
    fn letter_of(&self, record: &Value, second: &str) -> char {
        match (text(record, "type"), text(record, "reason")) {
            ("delivered", _) if text(record, "ip") == second => '>',
            ("delivered", _) => '=',
            ("deferred", "possibly-delivered") => 'p',
            ("deferred", _) => 'd',
            ("bounced", _) => 'b',
            other => panic!("{other:?} of {}: {record}", self.name),
        }
    }

    fn check_verdict(&self, record: &Value) {
        let Some((stage, code, status)) = self.verdict else { return };
        assert_eq!((text(record, "stage"), text(record, "status")), (stage, status), "{record}");
        assert_eq!(record["reply"]["code"], code, "{record}");
    }
}

/// The first hosts, each with its cell.
fn hosts(cells: &[Cell]) -> impl Iterator<Item = (u8, &Cell)> {
    // The DNS server's host lies between.
    (1..=52).chain(54..SECOND).zip(cells)
}

/// Sends a message through each cell. No mail is lost, none comes twice, and what bounced did not come.
fn run(site: &mut Site, smtp: &str, cells: &[Cell]) {
    let mut folders = vec![site.serve_sink(SECOND)];
    let mut zone = format!("second A @{SECOND}\n");
    for (host, cell) in hosts(cells) {
        let folder = site.shared_folder(&format!("sink{host}"));
        let options: Vec<&str> = cell.options.iter().map(String::as_str).collect();
        // It also keeps what it refuses in the end: that counts only where it is to accept.
        let refused = site.shared_folder(&format!("refused{host}"));
        site.serve_sink_with(host, if cell.letter == '=' { &folder } else { &refused }, &options);
        folders.push(folder);
        zone += &format!("{0} MX 10 mx.{0}\nmx.{0} A @{host}\n{0} MX 20 second\n", cell.name);
    }
    site.serve_dns(&zone);
    let config =
        site.policy(&format!("{smtp}[domain.\"*\"]\nuse-starttls = \"off\"\nretry-after = \"1s\"\n"));
    let mut mailer = Mailer::start(&config, &["--until-idle"]);
    mailer.feed(cells.iter().map(|cell| {
        let data = format!("Subject: {}\r\n\r\n{}\r\n", cell.name, "x".repeat(cell.octets));
        json!({ "ref": cell.name, "from": "s@sender.example", "to": cell.recipients(), "data": data })
            .to_string()
    }));
    let mut told = BTreeSet::new();
    mailer.until("a record of each recipient", |record| {
        told.extend(record["recipient"].as_str().map(str::to_owned));
        told.len() == cells.len() * NAMES.len()
    });
    for ((host, _), folder) in hosts(cells).zip(&folders[1..]) {
        site.serve_sink_with(host, folder, &[]);
    }
    let ended = mailer.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    check(site, cells, &ended, &folders);
}

fn check(site: &Site, cells: &[Cell], ended: &Ended, folders: &[PathBuf]) {
    let mut copies: BTreeMap<String, usize> = BTreeMap::new();
    for recipient in folders.iter().flat_map(|folder| read_sink(folder)).flat_map(|(to, _)| to) {
        *copies.entry(recipient).or_default() += 1;
    }
    let (mut wanted, mut seen) = (Vec::new(), Vec::new());
    for cell in cells {
        for recipient in cell.recipients() {
            let record = ended.records.iter().find(|record| record["recipient"] == *recipient).unwrap();
            let letter = cell.letter_of(record, &site.ip(SECOND).to_string());
            wanted.push((recipient.clone(), cell.letter));
            seen.push((recipient.clone(), letter));
            if letter == cell.letter {
                cell.check_verdict(record);
            }
            let of = |kind| ended.with(kind, &[("recipient", &recipient)]).len();
            let bounced = usize::from(letter == 'b');
            let (delivered, copies) = (1 - bounced, copies.get(&recipient).copied().unwrap_or(0));
            assert_eq!((of("delivered"), of("bounced")), (delivered, bounced), "{recipient}");
            assert_eq!(copies, delivered, "copies for {recipient}");
        }
    }
    let wrong: Vec<_> = seen.iter().zip(&wanted).filter(|(seen, wanted)| seen != wanted).collect();
    assert!(wrong.is_empty(), "seen, and wanted: {wrong:?}");
}

#[test]
fn every_way_to_fail_at_every_command() {
    let Some(mut site) = Site::new() else { return };
    // Refused for good, refused for now, closed without a word, closed with 421.
    let modes = ["-f", "-r", "-q", "-Q"];
    let mut cells = Vec::new();
    for (row, (command, stage, letters)) in [
        ("CONNECT", "", ">>>>"),
        // Without EHLO there is HELO.
        ("EHLO", "", "=>>>"),
        ("EHLO,HELO", "", ">>>>"),
        ("MAIL", "mail", "bdd>"),
        ("RCPT", "rcpt", "bddd"),
        ("RCPT,RSET", "rcpt", "bddd"),
        ("DATA", "data", "bddd"),
        (".", "dot", "bdpd"),
        ("RSET", "", "===="),
        ("QUIT", "", "===="),
    ]
    .into_iter()
    .enumerate()
    {
        for (column, (mode, letter)) in modes.into_iter().zip(letters.chars()).enumerate() {
            let mut cell = Cell::new(format!("r{row}c{column}"), &[mode, command], letter);
            cell.verdict = match (mode, letter) {
                ("-f", 'b') => Some((stage, 500, "5.3.0")),
                ("-r", 'd') => Some((stage, 450, "4.3.0")),
                _ => None,
            };
            cells.push(cell);
        }
    }
    // 550 before the content has come, which is read no further: what fits into buffers, and what does not.
    for octets in [10, 5_000_000] {
        let mut cell = Cell::new(format!("aborted{octets}"), &["-A", "0"], 'b');
        (cell.octets, cell.verdict) = (octets, Some(("dot", 550, "5.0.0")));
        cells.push(cell);
    }
    run(&mut site, "", &cells);
}

#[test]
fn slow_at_every_command() {
    let Some(mut site) = Site::new() else { return };
    let mut cells = Vec::new();
    for (row, (command, letter)) in [
        ("CONNECT", '>'),
        ("EHLO", '>'),
        ("MAIL", 'd'),
        ("RCPT", 'd'),
        ("DATA", 'd'),
        (".", 'p'),
        ("QUIT", '='),
    ]
    .into_iter()
    .enumerate()
    {
        // A second is waited for, a hundred are not. Without pipelining: it would answer what follows first.
        cells.push(Cell::new(format!("slow{row}"), &["-p", "-W", &format!("{command}:1")], '='));
        cells.push(Cell::new(format!("silent{row}"), &["-p", "-W", &format!("{command}:100")], letter));
    }
    let phases = ["greeting", "ehlo", "mail", "rcpt", "data", "dot", "quit"];
    let timeouts: String = phases.iter().map(|phase| format!("{phase}-timeout = \"3s\"\n")).collect();
    run(&mut site, &timeouts, &cells);
}

/// LMTP (RFC 2033): a reply to the content for each recipient.
#[test]
fn lmtp() {
    let Some(mut site) = Site::new() else { return };
    let mut tables = "[domain.\"*\"]\nretry-after = \"1s\"\n".to_owned();
    let cells = [("takes", "-c", "delivered"), ("refuses", "-f.", "bounced"), ("late", "-r.", "deferred")];
    let mut folders = Vec::new();
    for (host, (name, option, _)) in (1..).zip(cells) {
        let folder = site.shared_folder(&format!("sink{host}"));
        site.serve_sink_with(host, &folder, &["-L", option]);
        folders.push(folder);
        let fixed = format!("smtp-hosts = \"[{}]\"\nuse-lmtp = true\n", site.ip(host));
        tables += &format!("[domain.\"{name}.example\"]\n{fixed}");
    }
    site.serve_dns("");
    let mut mailer = Mailer::start(&site.policy(&tables), &[]);
    mailer.feed(cells.map(|(name, ..)| {
        let to = NAMES.map(|to| format!("{to}@{name}.example"));
        json!({ "ref": name, "from": "s@sender.example", "to": to, "data": "Subject: x\r\n\r\nx\r\n" })
            .to_string()
    }));
    let mut seen = BTreeMap::new();
    mailer.until("a record of each recipient", |record| {
        if let Some(recipient) = record["recipient"].as_str() {
            let (kind, reply) = (text(record, "type").to_owned(), record["reply"]["code"].clone());
            seen.entry(recipient.to_owned()).or_insert((kind, text(record, "stage").to_owned(), reply));
        }
        seen.len() == cells.len() * NAMES.len()
    });
    for (name, _, kind) in cells {
        let code = match kind {
            "delivered" => 250,
            "bounced" => 500,
            _ => 450,
        };
        for to in NAMES {
            let found = &seen[&format!("{to}@{name}.example")];
            assert_eq!((&*found.0, &found.2), (kind, &json!(code)), "{name}: {found:?}");
        }
    }
    let kept = read_sink(&folders[0]);
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].0.len(), 2, "{kept:?}");
}
