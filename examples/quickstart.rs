//! The five delivery controls at work, shown in a moment and without a network.
//!
//! ```text
//! cargo run --example quickstart
//! ```
//!
//! The engine, its store on disk and the SMTP conversations are the real ones. The DNS zones and the servers live
//! in this process, and the clock is paused: it jumps from one timer to the next, so that hours pass at once.
//! What is shown is also expected: the program fails if the engine does anything else.
#![allow(clippy::print_stdout, reason = "a program that prints")]
#![allow(clippy::disallowed_methods, reason = "on a paused clock, to sleep is to let time pass")]

use std::collections::BTreeSet;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use postrider::clock::{Clock, Timestamp};
use postrider::dns::StaticResolver;
use postrider::engine::EventStream;
use postrider::event::{DeliveryEvent, Diagnosis, Failure};
use postrider::storage::DiskStorage;
use postrider::testing::{Behaviour, Command, MemoryNetwork, SmtpServer};
use postrider::transport::smtp::SmtpTransport;
use postrider::{DeliveryEngine, Message, Policy};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const START: Timestamp = Timestamp::from_unix_seconds(1_800_000_000);
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<()> {
    println!("Times are virtual, in hours:minutes since the messages were submitted.");
    domains_without_mx().await?;
    increasing_retry_intervals().await?;
    bounces_on_4xx_replies().await?;
    connections_per_address().await?;
    rollup_queues().await
}

async fn domains_without_mx() -> Result<()> {
    const POLICY: &str = r#"
[domain."*"]
bounce-upon-no-mx = "1h"
retry-after = ["25m"]
"#;
    heading("1. Bounce domains without MX after a grace period", POLICY);
    let mut world = World::new(POLICY)?;
    // A mistyped domain: its address is a web server's, which takes no mail. Another domain has no MX either, but
    // a mail server at its own address, which is down at first. The third takes no mail and says so (RFC 7505).
    world.zone("exampel.example A 192.0.2.1\nbare.example A 192.0.2.2\nnomail.example MX 0 .");
    world.refuse(1).refuse(2);

    let (engine, events) = world.start().await?;
    for to in ["ann@exampel.example", "bob@bare.example", "cat@nomail.example"] {
        engine.submit(message(to)?).await?;
    }
    tokio::time::sleep(30 * MINUTE).await;
    world.listen(2, &SmtpServer::new());
    let rows = finish(&engine, events).await?;

    table();
    show(
        &rows,
        "A typing error. Bounced at one hour, although its next attempt would be at 1:15",
        "exampel.example",
        "0:00 queue-deferred 0, 0:25 queue-deferred 0, 0:50 queue-deferred 0, 1:00 bounced 0",
    )?;
    show(
        &rows,
        "No MX, but the domain's own host takes mail from 0:30 on: delivered within the hour",
        "bare.example",
        "0:00 queue-deferred 0, 0:25 queue-deferred 0, 0:50 delivered 1",
    )?;
    show(&rows, "A null MX is no missing one: bounced at once", "nomail.example", "0:00 bounced 0")
}

async fn increasing_retry_intervals() -> Result<()> {
    const POLICY: &str = r#"
[domain."*"]
retry-after = ["5m", "10m", "15m", "30m", "1h"]
bounce-after = "5h"
"#;
    heading("2. Increasing retry intervals", POLICY);
    let mut world = World::new(POLICY)?;
    world.zone("busy.example MX 10 mx.busy.example\nmx.busy.example A 192.0.2.1");
    world.zone("down.example MX 10 mx.down.example\nmx.down.example A 192.0.2.2");
    world.listen(1, &SmtpServer::new().reply(Command::Rcpt, "450 4.2.1 mailbox busy").times(6)).refuse(2);

    let (engine, events) = world.start().await?;
    engine.submit(message("dan@busy.example")?).await?;
    submit_all(&engine, (0..500).map(|n| format!("user{n}@down.example"))).await?;
    // Another engine goes on with the store of the first.
    tokio::time::sleep(20 * MINUTE).await;
    engine.shutdown(MINUTE).await;
    let mut rows = read(events).await;
    let (engine, events) = world.start().await?;
    rows.extend(finish(&engine, events).await?);

    table();
    show(
        &rows,
        "Six refusals, and 5, 10, 15, 30, 60, 60 minutes. A restart at 0:20 forgets no interval",
        "dan@busy.example",
        "0:00 deferred 1, 0:05 deferred 2, 0:15 deferred 3, 0:30 deferred 4, 1:00 deferred 5, 2:00 deferred 6, \
         3:00 delivered 7",
    )?;
    println!("\n  A dead host, with 500 messages that wait for it until they expire at 5:00");
    let expired = rows.iter().filter(|row| row.who.ends_with("@down.example") && row.what == "bounced");
    let line = format!("{} connections, {} messages expired", world.attempts(2), expired.count());
    saw(&line, "8 connections, 500 messages expired")
}

async fn bounces_on_4xx_replies() -> Result<()> {
    const POLICY: &str = r#"
[[reply-rule]]
name = "gmail-over-quota"
match = '^452 4\.2\.2 .*(over ?quota|out of storage)'
actions = ["bounce-rcpt"]
mx = ["*.google.com"]
"#;
    heading("3. Bounces on specific 4xx replies", POLICY);
    const OVER_QUOTA: &str = "452 4.2.2 The email account that you tried to reach is over quota";
    let mut world = World::new(POLICY)?;
    world.zone("gmail.com MX 5 gmail-smtp-in.l.google.com\ngmail-smtp-in.l.google.com A 192.0.2.1");
    world.zone("other.example MX 10 mx.other.example\nmx.other.example A 192.0.2.2");
    let google = SmtpServer::new()
        .reply_to_rcpt("eve@gmail.com", OVER_QUOTA)
        .reply_to_rcpt("fay@gmail.com", "450 4.2.1 The user is receiving mail at a rate that is too high")
        .times(1);
    world.listen(1, &google).listen(2, &SmtpServer::new().reply(Command::Rcpt, OVER_QUOTA).times(1));

    let (engine, events) = world.start().await?;
    engine.submit(Message::new(SENDER, ["eve@gmail.com", "fay@gmail.com"], CONTENT)?).await?;
    engine.submit(message("gus@other.example")?).await?;
    let rows = finish(&engine, events).await?;

    table();
    show(&rows, "The reply that the rule is for: bounced, not retried", "eve@gmail.com", "0:00 bounced 1")?;
    let retried = "0:00 deferred 1, 0:10 delivered 2";
    show(&rows, "Another reply of that host, in the same transaction: retried", "fay@gmail.com", retried)?;
    show(&rows, "The same reply of another host: retried", "gus@other.example", retried)
}

async fn connections_per_address() -> Result<()> {
    const POLICY: &str = r#"
[[ip-connection-limit]]
cidr = "192.0.2.0/24"
limit = 3
"#;
    heading("4. Connection limits per destination IP", POLICY);
    println!("\n  200 domains, each with an MX of its own name; behind all names the same two addresses");
    for (title, policy, expected) in [("without", "", 50..=200), ("with it", POLICY, 3..=3)] {
        let mut world = World::new(policy)?;
        for n in 0..200 {
            let domain = format!("shop{n}.example");
            world.zone(&format!(
                "{domain} MX 10 mx.{domain}\nmx.{domain} A 192.0.2.1\nmx.{domain} A 192.0.2.2"
            ));
        }
        world.listen(1, &slow_server()).listen(2, &slow_server());

        let (engine, events) = world.start().await?;
        submit_all(&engine, (0..200).map(|n| format!("info@shop{n}.example"))).await?;
        let rows = finish(&engine, events).await?;
        let delivered = rows.iter().filter(|row| row.what == "delivered").count();
        let peaks = [1, 2].map(|host| world.network.peak_connections(address(host)));
        println!(
            "  {title}: {delivered} delivered, at most {} and {} connections at a time",
            peaks[0], peaks[1]
        );
        if delivered != 200 || !peaks.iter().all(|peak| expected.contains(peak)) {
            return Err(format!("expected 200 delivered, and peaks within {expected:?}").into());
        }
    }
    Ok(())
}

async fn rollup_queues() -> Result<()> {
    const POLICY: &str = r#"
[[rollup]]
queue = "google.rollup"
mx = ["*.google.com", "*.googlemail.com"]
[domain."google.rollup"]
max-smtp-out = 4
"#;
    heading("5. Rollup queues by MX records", POLICY);
    println!("\n  One message to each of 200 domains of one provider");
    for (title, policy, expected) in [
        ("without", "", "200 delivered, queues: 200,"),
        ("with it", POLICY, "200 delivered, queues: 1, connections: 4"),
    ] {
        let mut world = World::new(policy)?;
        world.zone("aspmx.l.google.com A 192.0.2.1");
        for n in 0..200 {
            world.zone(&format!("firm{n}.example MX 1 aspmx.l.google.com"));
        }
        let google = slow_server();
        world.listen(1, &google);

        let (engine, events) = world.start().await?;
        submit_all(&engine, (0..200).map(|n| format!("office@firm{n}.example"))).await?;
        let rows = finish(&engine, events).await?;
        let delivered = rows.iter().filter(|row| row.what == "delivered").count();
        let queues: BTreeSet<_> = rows.iter().map(|row| &row.queue).collect();
        let connections = google.connections();
        let line = format!("{delivered} delivered, queues: {}, connections: {connections}", queues.len());
        println!("  {title}: {line}");
        if !line.starts_with(expected) {
            return Err(format!("expected `{expected}`, saw `{line}`").into());
        }
    }
    Ok(())
}

/// Servers, zone and store of one scene.
struct World {
    policy: Policy,
    zone: String,
    network: MemoryNetwork,
    spool: tempfile::TempDir,
    clock: Clock,
}

impl World {
    fn new(policy: &str) -> Result<Self> {
        Ok(Self {
            policy: Policy::from_toml(policy)?,
            zone: String::new(),
            network: MemoryNetwork::new(),
            spool: tempfile::tempdir()?,
            clock: Clock::starting_at(START),
        })
    }

    fn zone(&mut self, records: &str) {
        self.zone.push_str(records);
        self.zone.push('\n');
    }

    fn listen(&self, host: u8, server: &SmtpServer) -> &Self {
        self.network.listen(address(host), server);
        self
    }

    fn refuse(&self, host: u8) -> &Self {
        self.network.refuse(address(host));
        self
    }

    fn attempts(&self, host: u8) -> u64 {
        self.network.attempts(address(host))
    }

    async fn start(&self) -> Result<(DeliveryEngine, EventStream)> {
        let engine = DeliveryEngine::builder("mta.sender.example")
            .storage(DiskStorage::open(self.spool.path()).await?)
            .policy(self.policy.clone())
            // Without these three, mail goes to the internet, in real time.
            .resolver(StaticResolver::parse(&self.zone)?)
            .transport(SmtpTransport::over(self.network.clone()))
            .clock(self.clock.clone())
            .start()
            .await?;
        let events = engine.events(10_000);
        Ok((engine, events))
    }
}

const SENDER: &str = "a@sender.example";
const CONTENT: &str = "Subject: hello\r\n\r\nHello.\r\n";

fn message(to: &str) -> Result<Message> {
    Ok(Message::new(SENDER, [to], CONTENT)?)
}

async fn submit_all(engine: &DeliveryEngine, to: impl Iterator<Item = String>) -> Result<()> {
    let messages = to.map(|to| message(&to)).collect::<Result<_>>()?;
    for accepted in engine.submit_batch(messages).await {
        accepted?;
    }
    Ok(())
}

/// A server that takes ten seconds for each message, so that connections are needed side by side.
fn slow_server() -> SmtpServer {
    SmtpServer::new().reply(Command::Dot, Behaviour::Slow(Duration::from_secs(10)))
}

fn address(host: u8) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, host), 25).into()
}

/// Waits until nothing is queued, and ends the engine.
async fn finish(engine: &DeliveryEngine, events: EventStream) -> Result<Vec<Row>> {
    engine.wait_idle().await?;
    engine.shutdown(MINUTE).await;
    Ok(read(events).await)
}

/// The events of an engine that has ended.
async fn read(mut events: EventStream) -> Vec<Row> {
    let mut rows = Vec::new();
    while let Some(event) = events.next().await {
        rows.extend(Row::of(&event));
    }
    rows
}

/// One event.
struct Row {
    at: String,
    /// The recipient, or the domain whose hosts could not be used.
    who: String,
    queue: String,
    what: &'static str,
    attempts: u32,
    said: String,
}

impl Row {
    fn of(event: &DeliveryEvent) -> Option<Self> {
        let (record, what, said) = match event {
            DeliveryEvent::Delivered(e) => (&e.record, "delivered", e.reply.to_string()),
            DeliveryEvent::Deferred(e) => (&e.record, "deferred", words(&e.diagnosis)),
            DeliveryEvent::Bounced(e) => (&e.record, "bounced", words(&e.diagnosis)),
            DeliveryEvent::QueueDeferred(e) => {
                return Some(Self {
                    at: at(e.time),
                    who: e.domain.to_string(),
                    queue: e.queue.to_string(),
                    what: "queue-deferred",
                    attempts: 0,
                    said: words(&e.diagnosis),
                });
            }
            _ => return None,
        };
        Some(Self {
            at: at(record.time),
            who: record.recipient.to_string(),
            queue: record.queue.to_string(),
            what,
            attempts: record.attempts,
            said,
        })
    }
}

fn at(time: Timestamp) -> String {
    let minutes = time.saturating_since(START).as_secs() / 60;
    format!("{}:{:02}", minutes / 60, minutes % 60)
}

/// The rule that decided, and the server's words; or the engine's own with its status.
fn words(diagnosis: &Diagnosis) -> String {
    let rule = diagnosis.rule.as_ref().map(|rule| format!("[{rule}] ")).unwrap_or_default();
    match &diagnosis.failure {
        Failure::Reply(reply) => format!("{rule}{reply}"),
        Failure::Engine(error) => format!("{rule}{} {error}", diagnosis.status),
    }
}

fn heading(title: &str, policy: &str) {
    println!("\n{title}");
    policy.trim().lines().for_each(|line| println!("    {line}"));
}

fn table() {
    println!("\n  time  event           attempts  recipient or domain  what was said");
}

/// Prints what became of one recipient or domain. Fails if it is not what is expected: when, what, attempts so far.
fn show(rows: &[Row], title: &str, who: &str, expected: &str) -> Result<()> {
    println!("\n  {title}");
    let mut seen = Vec::new();
    for Row { at, who, what, attempts, said, .. } in rows.iter().filter(|row| row.who.ends_with(who)) {
        println!("  {at}  {what:<14}  {attempts:>8}  {who:<19}  {said}");
        seen.push(format!("{at} {what} {attempts}"));
    }
    expect(&seen.join(", "), expected)
}

fn saw(line: &str, expected: &str) -> Result<()> {
    println!("  {line}");
    expect(line, expected)
}

fn expect(seen: &str, expected: &str) -> Result<()> {
    if seen == expected { Ok(()) } else { Err(format!("expected `{expected}`, saw `{seen}`").into()) }
}
