//! What the engine does with mail, shown in a moment and without a network.
//!
//! ```text
//! cargo run --release --example quickstart
//! ```
//!
//! The engine, its store on disk and the SMTP conversations are the real ones. The DNS zone and the servers live in
//! this process, and the clock is paused: it jumps from one timer to the next, so that hours pass at once.
//! What is shown is also expected: the program fails if the engine does anything else.
#![allow(clippy::print_stdout, reason = "a program that prints")]
#![allow(clippy::disallowed_methods, reason = "on a paused clock, to sleep is to let time pass")]

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use postrider::clock::{Clock, Timestamp};
use postrider::dns::StaticResolver;
use postrider::engine::EventStream;
use postrider::event::{DeliveryEvent, Diagnosis, Failure};
use postrider::storage::DiskStorage;
use postrider::testing::{Command, MemoryNetwork, SmtpServer};
use postrider::transport::smtp::SmtpTransport;
use postrider::{DeliveryEngine, Message, Policy, Stats};

const POLICY: &str = r#"
[domain."*"]
retry-after = ["5m", "10m", "15m", "30m", "1h"]
bounce-after = "2h"

[domain."bulk.example"]
max-smtp-out = 2
max-msg-per-connection = 10
"#;

/// One message each: the control at work, the recipients, and what is to happen: when, what, attempts so far.
const CASES: [(&str, &[&str], &str); 7] = [
    ("A server that takes the mail", &["ann@inbox.example"], "0:00 delivered 1"),
    (
        "Greylisting. retry-after: each attempt is followed by the next interval",
        &["bob@greylist.example"],
        "0:00 deferred 1, 0:05 deferred 2, 0:15 delivered 3",
    ),
    (
        "Three recipients in one transaction: each has its own verdict",
        &["busy@team.example", "gone@team.example", "here@team.example"],
        "0:00 deferred 1, 0:00 bounced 1, 0:00 delivered 1, 0:05 delivered 2",
    ),
    (
        "A mailbox that stays full. bounce-after: given up at the age of 2 hours",
        &["cat@full.example"],
        "0:00 deferred 1, 0:05 deferred 2, 0:15 deferred 3, 0:30 deferred 4, 1:00 deferred 5, 2:00 bounced 5",
    ),
    (
        "A dead host, back at 0:25. retry-after: its queue waits, and no recipient is charged an attempt",
        &["dan@down.example"],
        "0:00 queue-deferred 0, 0:05 queue-deferred 0, 0:15 queue-deferred 0, 0:30 delivered 1",
    ),
    ("No such domain. bounce-upon-nxdomain: true by default", &["eve@nowhere.example"], "0:00 bounced 0"),
    ("A domain that takes no mail: a null MX (RFC 7505)", &["fay@nomail.example"], "0:00 bounced 0"),
];

const START: Timestamp = Timestamp::from_unix_seconds(1_800_000_000);
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    // The world: for each domain an MX record, and a server at its address. One is down.
    let rcpt = |reply: &str| SmtpServer::new().reply(Command::Rcpt, reply);
    let team = SmtpServer::new()
        .reply_to_rcpt("busy@team.example", "450 4.2.1 mailbox busy")
        .times(1)
        .reply_to_rcpt("gone@team.example", "550 5.1.1 no such user");
    let (network, bulk) = (MemoryNetwork::new(), SmtpServer::new());
    let mut zone = "nomail.example MX 0 .\n".to_owned();
    let address = |host| SocketAddr::from(([192, 0, 2, host], 25));
    for (host, domain, server) in [
        (1, "inbox.example", &SmtpServer::new()),
        (2, "greylist.example", &rcpt("450 4.2.0 greylisted").times(2)),
        (3, "team.example", &team),
        (4, "full.example", &rcpt("452 4.2.2 mailbox full")),
        (5, "bulk.example", &bulk),
        (6, "down.example", &SmtpServer::new()),
    ] {
        zone += &format!("{domain} MX 10 mx.{domain}\nmx.{domain} A 192.0.2.{host}\n");
        network.listen(address(host), server);
    }
    network.refuse(address(6));

    let (spool, clock) = (tempfile::tempdir()?, Clock::starting_at(START));
    let start = async || -> Result<(DeliveryEngine, EventStream), Box<dyn Error>> {
        let engine = DeliveryEngine::builder("mta.sender.example")
            .storage(DiskStorage::open(spool.path()).await?)
            .policy(Policy::from_toml(POLICY)?)
            // Without these three, mail goes to the internet, in real time.
            .resolver(StaticResolver::parse(&zone)?)
            .transport(SmtpTransport::over(network.clone()))
            .clock(clock.clone())
            .start()
            .await?;
        Ok((engine.clone(), engine.events(1_000)))
    };

    let message = |to: &[&str]| Message::new("a@sender.example", to, "Subject: hello\r\n\r\nHello.\r\n");
    let (engine, events) = start().await?;
    for (_, to, _) in CASES {
        engine.submit(message(to)?).await?;
    }
    let many = (0..100).map(|n| message(&[&format!("user{n}@bulk.example")])).collect::<Result<_, _>>()?;
    for accepted in engine.submit_batch(many).await {
        accepted?;
    }

    tokio::time::sleep(20 * MINUTE).await;
    let before = engine.stats().await?;
    engine.shutdown(MINUTE).await;
    let mut rows = read(events).await;

    let (engine, events) = start().await?;
    tokio::time::sleep(5 * MINUTE).await;
    network.listen(address(6), &SmtpServer::new());
    engine.wait_idle().await?;
    let after = engine.stats().await?;
    engine.shutdown(MINUTE).await;
    rows.extend(read(events).await);
    rows.sort();

    println!("retry-after = 5m, 10m, 15m, 30m, 1h; bounce-after = 2h. Time is virtual, in hours:minutes.\n");
    println!("  time  event           attempts  recipient             what was said");
    for (title, to, expected) in CASES {
        println!("\n{title}");
        let mut seen = Vec::new();
        let about = |who: &str| to.iter().any(|to| to.ends_with(who));
        for (at, who, what, attempts, said) in rows.iter().filter(|row| about(&row.1)) {
            println!("  {at}  {what:<14}  {attempts:>8}  {who:<20}  {said}");
            seen.push(format!("{at} {what} {attempts}"));
        }
        expect(&seen.join(", "), expected)?;
    }

    println!("\n100 messages to one domain. max-smtp-out = 2 (connections), max-msg-per-connection = 10");
    let (arrived, peak) = (bulk.messages(), bulk.peak_connections());
    let first = arrived.iter().filter(|message| message.connection == 1).count();
    let line =
        format!("{} arrived, {peak} connections at a time, {first} messages over the first", arrived.len());
    println!("  {line}");
    expect(&line, "100 arrived, 2 connections at a time, 10 messages over the first")?;

    println!("\nThe engine was shut down at 0:20 and another started on its store: no interval was lost.");
    let [before, after] = [before, after].map(|stats| {
        let Stats { queued, delivered, deferred, bounced, .. } = stats;
        format!("{queued} queued, {delivered} delivered, {deferred} deferred, {bounced} bounced")
    });
    println!("  before  {before}\n  after   {after}");
    expect(&before, "2 queued, 104 delivered, 6 deferred, 3 bounced")?;
    Ok(expect(&after, "0 queued, 1 delivered, 2 deferred, 1 bounced")?)
}

fn expect(seen: &str, expected: &str) -> Result<(), String> {
    if seen == expected { Ok(()) } else { Err(format!("expected `{expected}`, saw `{seen}`")) }
}

/// When, who, what, attempts so far, and what was said.
type Row = (String, String, &'static str, u32, String);

/// The events of an engine that has ended.
async fn read(mut events: EventStream) -> Vec<Row> {
    let mut rows = Vec::new();
    while let Some(event) = events.next().await {
        rows.extend(row(&event));
    }
    rows
}

fn row(event: &DeliveryEvent) -> Option<Row> {
    let (record, what, said) = match event {
        DeliveryEvent::Delivered(e) => (&e.record, "delivered", e.reply.to_string()),
        DeliveryEvent::Deferred(e) => (&e.record, "deferred", words(&e.diagnosis)),
        DeliveryEvent::Bounced(e) => {
            (&e.record, "bounced", format!("{}: {}", e.diagnosis.category, words(&e.diagnosis)))
        }
        DeliveryEvent::QueueDeferred(e) => {
            return Some((at(e.time), e.domain.to_string(), "queue-deferred", 0, words(&e.diagnosis)));
        }
        _ => return None,
    };
    Some((at(record.time), record.recipient.to_string(), what, record.attempts, said))
}

fn at(time: Timestamp) -> String {
    let minutes = time.saturating_since(START).as_secs() / 60;
    format!("{}:{:02}", minutes / 60, minutes % 60)
}

/// The server's words, or the engine's own with its status.
fn words(diagnosis: &Diagnosis) -> String {
    match &diagnosis.failure {
        Failure::Reply(reply) => reply.to_string(),
        Failure::Engine(error) => format!("{} {error}", diagnosis.status),
    }
}
