//! The mailer is killed at random moments, again and again, while it accepts and delivers. Nothing that it said it had
//! received is lost.
//!
//! `POSTRIDER_KILLS=500` kills it so often, from 100 on now and then during the store's upkeep; `POSTRIDER_SEED=17` draws the same mail and the same moments again; what
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

use std::collections::BTreeMap;
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
/// A long run has so many or more.
const LONG_RUN: usize = 100;
/// In it one mailer of so many lives until the store's upkeep, which comes once a minute.
const LONG_LIVED: usize = 25;
/// A store is also checked after one kill of so many.
const CHECKED: usize = 5;
/// In a long run the first message of each mailer is held back for so long: past the next upkeep, which finds it alone alive in
/// the mailer's body file and writes that anew.
const HELD: Duration = Duration::from_secs(150);
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
    for mailer in 0..kills {
        let mut process = Mailer::start(&config(folder.path(), address, mailer), &[]);
        let is_long = kills >= LONG_RUN && mailer % LONG_LIVED == LONG_LIVED - 1;
        let mut references = std::mem::take(&mut open);
        // Some that were received are offered again, as by a host that lost the answer.
        let known: Vec<&String> =
            offered.iter().filter(|(_, o)| o.id.is_some()).map(|(name, _)| name).collect();
        references.extend((0..known.len().min(20)).map(|_| known[rng.usize(..known.len())].clone()));
        for place in 0..OFFERED {
            let reference = format!("m{}", offered.len());
            let hold = (kills >= LONG_RUN && place == 0).then_some(HELD);
            let message = draw(&reference, hold, &mut rng);
            offered.insert(reference.clone(), message);
            references.push(reference);
        }
        let lines = references.iter().map(|reference| offered[reference].line.clone()).collect();
        // Some mail is always on its way.
        process.feed_slowly(lines, if is_long { 4_000 } else { 25 }, rng.u64(..));
        let (shortest, longest) = match rng.u8(0..5) {
            _ if is_long => (59_900, 60_700),
            // Also while it starts.
            0 => (0, 80),
            _ => (0, 700),
        };
        pause(Duration::from_millis(rng.u64(shortest..longest)));
        let written = process.kill();
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
