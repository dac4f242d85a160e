//! The mailer is killed at random moments, again and again, while it accepts and delivers. Nothing that it said it had
//! received is lost.
//!
//! Its store is kept up all the time, and kills fall into that too.
//!
//! `POSTRIDER_KILLS=500` kills it so often; `POSTRIDER_SEED=17` draws the same mail and the same moments again; what
//! the mailer was doing then depends on the machine too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test panics when something is wrong"
)]

mod audit;
mod check;
#[path = "../interop/example.rs"]
mod example;
mod mailer;
mod receiver;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use audit::Audit;
use check::check_store;
use mailer::{Mailer, pause};
use postrider::clock::Clock;
use receiver::Receiver;
use serde_json::{Value, json};

/// Kills of a short run.
const KILLS: usize = 50;
/// So many mailers, the first, have little to do. Each lives until upkeep has written the body file of the one before anew, and is
/// killed then or soon after.
const CLEANERS: usize = 6;
const OFFERED_TO_CLEANERS: usize = 40;
/// How long they live at least: much of their mail is busy then and waits for its second attempt, so that the upkeep with which the
/// next one begins finds too much alive.
const CLEANER: Duration = Duration::from_millis(900);
/// How long they wait at most.
const CLEANED: Duration = Duration::from_secs(30);
/// A store is also checked after one kill of so many.
const CHECKED: usize = 5;
/// The first message of each of them is held back for so long: upkeep finds it alone alive in a body file.
const HELD: Duration = Duration::from_secs(60);
/// Messages offered to one mailer, more than it takes before it is killed.
const OFFERED: usize = 600;
pub(crate) const CONNECTIONS: usize = 8;
/// The longest that the last mailer may take, by the number of kills: each leaves mail behind.
const LAST: Duration = Duration::from_secs(60);
const LAST_PER_KILL: Duration = Duration::from_secs(10);

/// A message that was offered to a mailer.
pub(crate) struct Offered {
    pub(crate) to: Vec<String>,
    /// The host's own id, with which it may be offered again.
    pub(crate) id: Option<String>,
    line: String,
}

#[test]
fn killed_again_and_again() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let kills = number("POSTRIDER_KILLS").map_or(KILLS, |kills| usize::try_from(kills).unwrap());
    let seed = number("POSTRIDER_SEED").unwrap_or_else(|| fastrand::u64(0..1_000_000));
    say(&format!("kills: {kills}, POSTRIDER_SEED={seed}"));
    let mut rng = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let (receiver, address) = Receiver::start();

    let mut offered: BTreeMap<String, Offered> = BTreeMap::new();
    let mut records: Vec<(usize, Value)> = Vec::new();
    // Those with an id of their own that nobody has said yet to be received.
    let mut open: Vec<String> = Vec::new();
    // For each message that is held back, the body files that its mailer made.
    let mut held: Vec<BTreeSet<OsString>> = Vec::new();
    for mailer in 0..kills {
        let before = body_files(folder.path());
        let mut process = Mailer::start(&config(folder.path(), address, mailer), &[]);
        let is_cleaner = mailer < CLEANERS && kills >= KILLS;
        let first = format!("m{}", offered.len());
        let mut references = std::mem::take(&mut open);
        // Some that were received are offered again, as by a host that lost the answer.
        let known: Vec<&String> =
            offered.iter().filter(|(_, o)| o.id.is_some()).map(|(name, _)| name).collect();
        references.extend((0..known.len().min(20)).map(|_| known[rng.usize(..known.len())].clone()));
        for place in 0..if is_cleaner { OFFERED_TO_CLEANERS } else { OFFERED } {
            let reference = format!("m{}", offered.len());
            let hold = (is_cleaner && place == 0).then_some(HELD);
            let message = draw(&reference, hold, &mut rng);
            offered.insert(reference.clone(), message);
            references.push(reference);
        }
        let lines = references.iter().map(|reference| offered[reference].line.clone()).collect();
        // Some mail is always on its way.
        process.feed_slowly(lines, 25, rng.u64(..));
        let (shortest, longest) = match rng.u8(0..5) {
            _ if is_cleaner => (0, 100),
            // Also while it starts.
            0 => (0, 80),
            _ => (0, 700),
        };
        if is_cleaner {
            pause(CLEANER);
            cleaned(folder.path(), &held);
        }
        pause(Duration::from_millis(rng.u64(shortest..longest)));
        let written = process.kill();
        let is_first = |record: &Value| record["type"] == "received" && record["ref"] == *first;
        if is_cleaner && written.iter().any(is_first) {
            held.push(body_files(folder.path()).difference(&before).cloned().collect());
        }
        assert!(mailer != CLEANERS || kills < KILLS || held.len() > 1, "no message was held back");
        records.extend(written.into_iter().map(|record| (mailer, record)));
        if mailer % CHECKED == 0 && !records.is_empty() {
            assert_sound(folder.path());
        }
        open = still_open(&references, &offered, &records);
    }

    let config = config(folder.path(), address, kills);
    let mut last = Mailer::start(&config, &["--until-idle"]);
    last.feed_all(&open.iter().map(|reference| offered[reference].line.clone()).collect::<Vec<_>>());
    let longest = LAST + LAST_PER_KILL * u32::try_from(kills).unwrap();
    records.extend(last.finish(longest).into_iter().map(|record| (kills, record)));
    let seen = receiver.seen();

    // All of it has ended, and been reported: one more has nothing to do or to say.
    let mut idle = Mailer::start(&config, &["--until-idle"]);
    idle.feed_all(&[]);
    assert_eq!(idle.finish(LAST), Vec::<Value>::new());

    assert_sound(folder.path());
    let summary = Audit { offered: &offered, records: &records, seen: &seen, kills }.judge();
    say(&summary);
}

/// Waits until the files are gone in which a message was stored that is still held back: it was written anew.
fn cleaned(folder: &Path, held: &[BTreeSet<OsString>]) {
    const STEP: Duration = Duration::from_millis(5);
    let Some(last) = held.last() else { return };
    for _ in 0..CLEANED.as_millis() / STEP.as_millis() {
        if last.is_disjoint(&body_files(folder)) {
            return;
        }
        pause(STEP);
    }
    panic!("upkeep never came to write {last:?} anew");
}

fn body_files(folder: &Path) -> BTreeSet<OsString> {
    let listed = std::fs::read_dir(folder.join("spool").join("bodies"));
    listed.into_iter().flatten().map(|entry| entry.unwrap().file_name()).collect()
}

/// What a kill leaves is no damage.
fn assert_sound(folder: &Path) {
    let (code, report) = check_store(&[&folder.join("spool")]);
    assert_eq!(code, Some(0), "{report}");
}

/// Past the capture of test output: a long run is watched, and a failure is repeated by its seed.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Every mailer has a name of its own, so that the receiver knows which one it was.
fn config(folder: &Path, receiver: SocketAddr, mailer: usize) -> PathBuf {
    let path = folder.join("mailer.toml");
    let spool = folder.join("spool");
    let text = format!(
        "[engine]\nhostname = \"g{mailer}.sender.example\"\nmax-connections = {CONNECTIONS}\n\
         [storage]\npath = {spool:?}\n\
         [dns]\nnameservers = [\"127.0.0.1:9\"]\n\
         [smtp]\nprohibited-addresses = []\n\
         [domain.\"*\"]\nsmtp-hosts = [\"[127.0.0.1]:{port}\"]\nretry-after = [\"1s\"]\nuse-starttls = \"off\"\n",
        port = receiver.port(),
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// A message to one to three recipients. Most are there, some are busy at first, some do not exist.
fn draw(reference: &str, hold: Option<Duration>, rng: &mut fastrand::Rng) -> Offered {
    let mut to = Vec::new();
    for place in 0..rng.usize(1..=3) {
        let kind = ["ok", "ok", "ok", "busy1", "busy2", "gone"][rng.usize(..6)];
        to.push(format!("{kind}-{reference}-{place}@{}.example", ["a", "b", "c"][rng.usize(..3)]));
    }
    let id = rng
        .bool()
        .then(|| uuid::Builder::from_random_bytes(rng.u128(..).to_be_bytes()).into_uuid().to_string());
    let data = format!("Subject: {reference}\r\n\r\n{}", "A line of a letter.\r\n".repeat(rng.usize(1..100)));
    let mut line = json!({ "ref": reference, "from": "news@sender.example", "to": to, "data": data });
    if let Some(id) = &id {
        line["id"] = id.as_str().into();
    }
    if let Some(hold) = hold {
        line["hold_until"] = (Clock::system().now() + hold).to_string().into();
    }
    Offered { to, id, line: line.to_string() }
}

fn still_open(
    references: &[String],
    offered: &BTreeMap<String, Offered>,
    records: &[(usize, Value)],
) -> Vec<String> {
    let received: std::collections::BTreeSet<&str> = records
        .iter()
        .filter(|(_, record)| record["type"] == "received")
        .filter_map(|(_, record)| record["ref"].as_str())
        .collect();
    let is_open = |name: &&String| offered[*name].id.is_some() && !received.contains(name.as_str());
    references.iter().filter(is_open).cloned().collect()
}
