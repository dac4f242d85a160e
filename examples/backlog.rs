//! What a large backlog costs: memory, the rate at which mail is accepted, the time to start, and what is left on disk.
//!
//! ```text
//! backlog [--messages 1000000] [--domains 100000] [--folder DIR] [--tidying 300] [--before-start COMMAND] [--limit NAME=MOST]…
//! ```
//!
//! First so many messages of 2 KiB for one provider that refuses connections, then one message for each of so many
//! domains, each with an address of its own that does. The engine runs in processes of its own over the default
//! `DiskStorage`, the receivers in this one. After each filling it is killed and started again, sends other mail, is
//! killed once more; then the receivers answer, and everything is delivered. Each line of output is one figure,
//! `name=value`. Zero leaves a part out. It fails if anything arrives more or less often than once, or if a figure is larger than
//! its `--limit`; `--tidying` is for how many seconds it waits for space to be given back. `--before-start` is run by the shell before
//! the engine is started again, to empty the system's caches for instance.

#![allow(clippy::print_stdout, reason = "a program that prints")]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use postrider::clock::{Clock, Timestamp};
use postrider::control::{QueueSort, Selector};
use postrider::dns::{Answer, DnsError, Freshness, MxRecord, Resolver};
use postrider::event::{DeliveryEvent, EventSink};
use postrider::message::Domain;
use postrider::storage::DiskStorage;
use postrider::testing::SmtpServer;
use postrider::{DeliveryEngine, Message, Policy};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Notify;

type Result<T = (), E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Submissions under way at a time.
const IN_FLIGHT: usize = 256;
/// The rate is that of the first so many messages, and of the last.
const STRETCH: u64 = 50_000;
const BODY_OCTETS: usize = 2048;
/// Other mail, whose receiver answers all the time: sent at once, and kept back until the second start.
const LIVE: &str = "live.example";
const LATER: &str = "later.example";
const LIVE_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const DEAD_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Every wait ends.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long an idle engine may take to give space back, in seconds: it tidies up once a minute.
const TIDYING: u64 = 300;
/// A metadata file of this size is left as it is.
const SMALL: f64 = 16.0;

#[tokio::main]
async fn main() -> Result {
    let began = Clock::system().now();
    let args = Args::read()?;
    match args.part.as_deref() {
        None => return run_all(&args).await,
        Some(_) => end_with_parent(),
    }
    match args.part.as_deref() {
        Some("fill") => fill(&args).await,
        Some("start") => start_again(&args, began).await,
        Some("drain") => drain(&args).await,
        _ => Err("there is no such part".into()),
    }
}

struct Args {
    messages: u64,
    domains: u64,
    folder: PathBuf,
    tidying: u64,
    before_start: Option<String>,
    /// The most that figures may be, by their names.
    limits: BTreeMap<String, f64>,
    /// The next ones are for the processes this program starts.
    part: Option<String>,
    port: u16,
}

impl Args {
    fn read() -> Result<Self> {
        let folder = std::env::temp_dir();
        let mut read = Self {
            messages: 1_000_000,
            domains: 100_000,
            folder,
            tidying: TIDYING,
            before_start: None,
            limits: BTreeMap::new(),
            part: None,
            port: 0,
        };
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--messages" => read.messages = value.parse()?,
                "--domains" => read.domains = value.parse()?,
                "--folder" => read.folder = value.into(),
                "--tidying" => read.tidying = value.parse()?,
                "--before-start" => read.before_start = Some(value),
                "--limit" => {
                    let (name, most) = value.split_once('=').ok_or("--limit is given as NAME=MOST")?;
                    read.limits.insert(name.to_owned(), most.parse()?);
                }
                "--part" => read.part = Some(value),
                "--port" => read.port = value.parse()?,
                _ => return Err(format!("`{name}` is not an option").into()),
            }
        }
        Ok(read)
    }

    /// In a process that was started for one part, one of the two is zero.
    fn count(&self) -> u64 {
        self.messages.max(self.domains)
    }

    fn name(&self) -> &'static str {
        if self.messages > 0 { "messages" } else { "domains" }
    }

    /// The domain of a message's recipient.
    fn domain(&self, number: u64) -> String {
        if self.messages > 0 { "provider.example".to_owned() } else { format!("d{number}.example") }
    }

    /// Each limit has a figure, which is no larger.
    fn judge(&self, figures: &[String]) -> Result {
        let figures: BTreeMap<&str, &str> = figures.iter().filter_map(|line| line.split_once('=')).collect();
        for (name, most) in &self.limits {
            let figure = *figures.get(name.as_str()).ok_or_else(|| format!("there is no figure {name}"))?;
            if !figure.parse::<f64>().is_ok_and(|figure| figure <= *most) {
                return Err(format!("{name} is {figure}, and may be {most} at the most").into());
            }
        }
        Ok(())
    }

    fn show(&self, figure: &str, value: impl Display) {
        println!("{}_{figure}={value}", self.name());
    }
}

async fn run_all(args: &Args) -> Result {
    let mut figures = Vec::new();
    for (messages, domains) in [(args.messages, 0), (0, args.domains)] {
        if messages + domains > 0 {
            let folder = tempfile::tempdir_in(&args.folder)?;
            let server = SmtpServer::new().keep(0);
            let listener = listen((LIVE_ADDRESS, 0))?;
            let port = listener.local_addr()?.port();
            let part = |name: &str| Args {
                messages,
                domains,
                folder: folder.path().into(),
                tidying: args.tidying,
                before_start: None,
                limits: args.limits.clone(),
                part: Some(name.into()),
                port,
            };
            let live = serve(&server, listener);
            figures.extend(run_part(part("fill")).await?);
            if let Some(command) = &args.before_start {
                let status = Command::new("sh").args(["-c", command]).status()?;
                if !status.success() {
                    return Err(format!("`{command}`: {status}").into());
                }
            }
            figures.extend(run_part(part("start")).await?);
            live.abort();
            let _ = live.await;
            // Every receiver answers from now on.
            serve(&server, listen((Ipv4Addr::UNSPECIFIED, port))?);
            let before = server.delivery_count();
            figures.extend(run_part(part("drain")).await?);
            let delivered = server.delivery_count() - before;
            println!("{}_arrived={delivered}", part("").name());
            if delivered != messages + domains {
                return Err(format!("of {} {delivered} arrived", messages + domains).into());
            }
        }
    }
    args.judge(&figures)
}

/// With room for all connections of the engine at once: what finds none may wait for its greeting until it times out.
fn listen(address: (Ipv4Addr, u16)) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address.into())?;
    Ok(socket.listen(4096)?)
}

fn serve(server: &SmtpServer, listener: TcpListener) -> tokio::task::JoinHandle<()> {
    let server = server.clone();
    tokio::spawn(async move { drop(server.serve(listener).await) })
}

/// Runs a part as a process of its own, passes on what it prints, and kills it when it says that it is done. Its figures.
async fn run_part(args: Args) -> Result<Vec<String>> {
    let part = move || {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--messages", &args.messages.to_string(), "--domains", &args.domains.to_string()])
            .args(["--part", args.part.as_deref().unwrap_or_default(), "--port", &args.port.to_string()])
            .args(["--tidying", &args.tidying.to_string()])
            .arg("--folder")
            .arg(&args.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (mut done, mut figures) = (false, Vec::new());
        let mut stdout = std::io::stdout();
        for line in child.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
            let line = line?;
            if line == "done" {
                done = true;
                child.kill()?;
            } else {
                writeln!(stdout, "{line}")?;
                figures.push(line);
            }
        }
        // Closes its input, at which it ends.
        child.wait()?;
        if done { Ok(figures) } else { Err("a part ended early".into()) }
    };
    tokio::task::spawn_blocking(part).await?
}

/// The parent never writes. When it is gone, whatever it died of, so is this.
fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
}

/// Says that this process may be killed, and waits for it.
async fn done() -> Result {
    println!("done");
    std::future::pending().await
}

/// Fills an empty store.
async fn fill(args: &Args) -> Result {
    let clock = Clock::system();
    let (engine, counts) = start(args).await?;
    // Mail for a receiver that answers, which is not to go out yet.
    engine.pause(Domain::parse(LATER)?).await?;
    engine.submit(message(LATER, "stored")?).await?;

    let count = args.count();
    let stretch = STRETCH.min(count / 4).max(1);
    let began = clock.now();
    let (mut first, mut last_began) = (None, began);
    let submit = |number| {
        let (engine, message) = (engine.clone(), message(&args.domain(number), "backlog"));
        async move { Result::<_>::Ok(engine.submit(message?).await?) }
    };
    let mut accepted = futures::stream::iter(0..count).map(submit).buffer_unordered(IN_FLIGHT);
    let mut number = 0;
    while let Some(id) = accepted.next().await {
        id?;
        number += 1;
        if number == stretch {
            first = Some(seconds(&clock, began));
        }
        if number == count - stretch {
            last_began = clock.now();
        }
        if number % STRETCH == 0 {
            progress(&format!("{number} accepted, {:.0} MiB", memory("VmRSS")?));
        }
    }
    let empty = stretch as f64 / first.unwrap_or(f64::NAN);
    let full = stretch as f64 / seconds(&clock, last_began);
    args.show("accepted", count);
    args.show("accept_per_second", format_args!("{:.0}", count as f64 / seconds(&clock, began)));
    args.show("accept_per_second_empty", format_args!("{empty:.0}"));
    args.show("accept_per_second_full", format_args!("{full:.0}"));
    args.show("accept_full_to_empty", format_args!("{:.2}", full / empty));

    // Until every destination has failed and waits.
    let destinations = args.domains.max(1);
    counts.until("every destination was tried", |counts| counts.refused >= destinations).await?;
    args.show("all_refused_after_seconds", format_args!("{:.1}", seconds(&clock, began)));
    args.show("fill_rss_mib", format_args!("{:.0}", memory("VmRSS")?));
    args.show("fill_rss_peak_mib", format_args!("{:.0}", memory("VmHWM")?));
    show_disk(args, "full")?;
    done().await
}

/// Starts on the full store, and sends other mail.
async fn start_again(args: &Args, began: Timestamp) -> Result {
    let clock = Clock::system();
    let (engine, counts) = start(args).await?;
    args.show("start_seconds", format_args!("{:.2}", seconds(&clock, began)));
    engine.submit(message(LIVE, "new")?).await?;
    counts.until("new mail", |counts| counts.new > 0).await?;
    args.show("start_to_new_mail_delivered_seconds", format_args!("{:.2}", seconds(&clock, began)));
    engine.resume(Domain::parse(LATER)?).await?;
    counts.until("stored mail", |counts| counts.stored > 0).await?;
    args.show("start_to_stored_mail_delivered_seconds", format_args!("{:.2}", seconds(&clock, began)));
    args.show("start_rss_peak_mib", format_args!("{:.0}", memory("VmHWM")?));
    done().await
}

/// Starts on the full store with receivers that answer, and delivers everything.
async fn drain(args: &Args) -> Result {
    let clock = Clock::system();
    let (engine, _counts) = start(args).await?;
    let began = clock.now();
    engine.retry_now(Selector::source("default")).await?;
    let idle = engine.wait_idle();
    tokio::pin!(idle);
    let mut tick = tokio::time::interval(Duration::from_secs(10));
    loop {
        tokio::select! {
            ended = &mut idle => break ended?,
            _ = tick.tick() => {
                let stats = engine.stats().await?;
                progress(&format!("{} queued, {:.0} MiB", stats.queued, memory("VmRSS")?));
                if let Some(queue) = engine.queues(QueueSort::Oldest, 1).await?.first() {
                    for waits in engine.why_queue(&queue.name).await? {
                        progress(&format!("{waits}"));
                        waits.destinations.iter().for_each(|waits| progress(&format!("    {waits}")));
                    }
                }
            }
        }
    }
    let took = seconds(&clock, began);
    args.show("drain_per_second", format_args!("{:.0}", args.count() as f64 / took));
    args.show("drain_rss_peak_mib", format_args!("{:.0}", memory("VmHWM")?));
    show_disk(args, "drained")?;

    let idle = clock.now();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        let disk = Disk::of(&args.folder)?;
        if (disk.metadata < SMALL && disk.bodies < 1.0) || seconds(&clock, idle) >= args.tidying as f64 {
            break;
        }
    }
    args.show("tidy_after_seconds", format_args!("{:.0}", seconds(&clock, idle)));
    args.show("tidy_rss_peak_mib", format_args!("{:.0}", memory("VmHWM")?));
    args.show("tidy_rss_mib", format_args!("{:.0}", memory("VmRSS")?));
    show_disk(args, "tidy")?;
    done().await
}

async fn start(args: &Args) -> Result<(DeliveryEngine, Arc<Counts>)> {
    // Receivers are on this machine.
    let policy = format!("[smtp]\nport = {}\nprohibited-addresses = []\n", args.port);
    let counts = Arc::new(Counts::default());
    let engine = DeliveryEngine::builder("mta.sender.example")
        .storage(DiskStorage::open(args.folder.join("spool")).await?)
        .resolver(Zone)
        .policy(Policy::from_toml(&policy)?)
        .event_sink(counts.clone())
        .start()
        .await?;
    Ok((engine, counts))
}

fn message(domain: &str, reference: &str) -> Result<Message> {
    let mut content = String::from("From: news@sender.example\r\nSubject: Hello\r\n\r\n");
    while content.len() < BODY_OCTETS {
        content.push_str("A line of a letter, of which this one has a few more than it needs.\r\n");
    }
    content.truncate(BODY_OCTETS - 2);
    content.push_str("\r\n");
    let to = format!("ann@{domain}");
    Ok(Message::new("news@sender.example", [to], content)?.with_reference(reference))
}

/// Every domain has one MX host, `mx.` and its name: no zone in memory.
#[derive(Debug)]
struct Zone;

#[async_trait]
impl Resolver for Zone {
    async fn mx(&self, domain: &str, _: Freshness) -> Result<Answer<MxRecord>, DnsError> {
        Ok(records(MxRecord::from((10, format!("mx.{domain}").as_str()))))
    }

    async fn ipv4(&self, host: &str, _: Freshness) -> Result<Answer<Ipv4Addr>, DnsError> {
        let domain = host.trim_start_matches("mx.");
        // An address for each numbered domain, all in 127.16.0.0/12.
        let number = domain.strip_prefix('d').and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
        Ok(records(match number {
            Some(number) => Ipv4Addr::from(0x7f10_0000 + number % 0x0010_0000),
            None if [LIVE, LATER].contains(&domain) => LIVE_ADDRESS,
            None => DEAD_ADDRESS,
        }))
    }

    async fn ipv6(&self, _: &str, _: Freshness) -> Result<Answer<Ipv6Addr>, DnsError> {
        Ok(Answer::no_data(Duration::from_secs(3600)))
    }
}

impl Display for Zone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a zone on this machine")
    }
}

fn records<T>(record: T) -> Answer<T> {
    Answer::records(vec![record], Duration::from_secs(3600))
}

/// What the engine reported.
#[derive(Default)]
struct Counts {
    refused: AtomicU64,
    new: AtomicU64,
    stored: AtomicU64,
    changed: Notify,
}

/// The counts at one moment.
struct Seen {
    refused: u64,
    new: u64,
    stored: u64,
}

impl Counts {
    async fn until(&self, what: &str, enough: impl Fn(&Seen) -> bool) -> Result {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                let [refused, new, stored] =
                    [&self.refused, &self.new, &self.stored].map(|count| count.load(Ordering::Relaxed));
                if enough(&Seen { refused, new, stored }) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.map_err(|_| format!("waited too long: {what}").into())
    }
}

impl EventSink for Counts {
    fn on_event(&self, event: &DeliveryEvent) {
        let count = match event {
            DeliveryEvent::QueueDeferred(_) => &self.refused,
            DeliveryEvent::Delivered(e) => match e.record.reference.as_deref() {
                Some("new") => &self.new,
                Some("stored") => &self.stored,
                _ => return,
            },
            _ => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    fn flush_blocks(&self) -> bool {
        false
    }
}

/// A figure of this process, in MiB.
fn memory(field: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")).ok_or("no such figure")?;
    Ok(kib.trim().parse::<f64>()? / 1024.0)
}

/// What the store takes, in MiB.
struct Disk {
    metadata: f64,
    bodies: f64,
    body_files: usize,
}

impl Disk {
    fn of(folder: &Path) -> Result<Self> {
        let spool = folder.join("spool");
        let mut disk = Self { metadata: mib(&spool.join("metadata.redb"))?, bodies: 0.0, body_files: 0 };
        for file in std::fs::read_dir(spool.join("bodies"))? {
            // One that goes away meanwhile takes nothing.
            if let Ok(size) = mib(&file?.path()) {
                disk.bodies += size;
                disk.body_files += 1;
            }
        }
        Ok(disk)
    }
}

fn mib(file: &Path) -> Result<f64> {
    Ok(std::fs::metadata(file)?.len() as f64 / (1024.0 * 1024.0))
}

fn show_disk(args: &Args, when: &str) -> Result {
    let Disk { metadata, bodies, body_files } = Disk::of(&args.folder)?;
    args.show(&format!("{when}_metadata_mib"), format_args!("{metadata:.0}"));
    args.show(&format!("{when}_bodies_mib"), format_args!("{bodies:.0}"));
    args.show(&format!("{when}_body_files"), body_files);
    Ok(())
}

fn seconds(clock: &Clock, since: Timestamp) -> f64 {
    clock.now().saturating_since(since).as_secs_f64()
}

fn progress(text: &str) {
    // Without a reader of stderr there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "  {text}");
}
