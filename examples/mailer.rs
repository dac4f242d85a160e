//! A whole mailer in one file: submissions in on stdin, accounting records out on stdout.
//!
//! ```text
//! mailer --config mailer.toml [--until-idle] < submissions.jsonl > accounting.jsonl
//! ```
//!
//! Each line of input is one message: `{"ref":"…","from":"a@x.example","to":["b@y.example"],"data":"…"}`, or
//! `"file":"path"` in place of `data`. Each line of output is one record. A line that got no `received` record
//! was not accepted, or the mailer ended before it could say so: the caller submits it again, with the same `id` of its own, by
//! which it is stored once.
//!
//! SIGUSR1 prints on stderr what the mail waits for, queue by queue.
//!
//! At the end stdout has ten seconds to take the last records. If it does not, the mailer says on stderr how many are not
//! written and exits with 1. Outcomes among them are in the outbox and come after the next start. A stdout that is closed when it
//! starts is `/dev/null` to it: records go to nobody, as with `> /dev/null`.
//!
//! A `received` record may follow a `delivered` one of the same message: the two come by different ways.
//!
//! Exit status: 0 done, 1 something failed on the way, 2 wrong arguments or configuration.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postrider::clock::{Clock, Timestamp};
use postrider::control::QueueSort;
use postrider::dns::HickoryResolver;
use postrider::engine::{ControlError, ShutdownReport, SubmitError};
use postrider::event::{DeliveryEvent, Diagnosis, EventSink, Failure, RecipientRecord};
use postrider::message::{Message, Priority};
use postrider::policy::{Config, parse_duration};
use postrider::reply::Reply;
use postrider::storage::DiskStorage;
use postrider::transport::smtp::SmtpTransport;
use postrider::{DeliveryEngine, Stats};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinSet, block_in_place, spawn_blocking};
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

/// Submissions under way at a time: they share flushes of the store.
const IN_FLIGHT: usize = 256;
/// Octets of content read and not yet stored. A message larger than this waits until it is alone.
const ROOM: u32 = 64 * 1024 * 1024;
/// The longest line of input, in octets; a longer one is rejected. Room for the largest body, escaped.
const MAX_LINE: u64 = 400 * 1024 * 1024;
/// Records waiting for the next flush, in octets. Past this the engine waits for the reader of stdout.
const MAX_UNFLUSHED: usize = 1024 * 1024;
/// How long a record may wait.
const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// Flushes from one progress line to the next: a second.
const PROGRESS_EVERY: u64 = 10;
/// Queues of which SIGUSR1 tells what they wait for, those with the most mail.
const EXPLAINED: usize = 50;
/// How long transactions may take to end after the first signal.
const GRACE: Duration = Duration::from_secs(30);
/// How long stdout may take to take the last records, once the engine has ended.
const LAST_RECORDS: Duration = Duration::from_secs(10);

const USAGE: &str = "usage: mailer --config FILE [--until-idle] < submissions.jsonl > accounting.jsonl";

#[tokio::main]
async fn main() {
    let status = match run().await {
        Ok(()) => 0,
        Err(End(status, message)) => {
            let _ = writeln!(io::stderr(), "mailer: {message}");
            status
        }
    };
    // Returning would wait for a write to a stdout that nobody reads.
    std::process::exit(status);
}

/// The exit status of an end that is no success, and its message.
struct End(i32, String);

fn usage(message: impl Display) -> End {
    End(2, format!("{message}; {USAGE}"))
}

fn failed<E: Display>(what: impl Display) -> impl FnOnce(E) -> End {
    move |error| End(1, format!("{what}: {error}"))
}

async fn run() -> Result<(), End> {
    let (config, until_idle) = arguments()?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let _ = tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter).try_init();
    let config = read_config(&config)?;

    let stop = listen_to_signals()?;
    let mut asked_why = signal(SignalKind::user_defined1()).map_err(failed("SIGUSR1"))?;
    let clock = Clock::system();
    let accounting = Arc::new(Accounting::new(clock.clone()));
    let engine = start(&config, clock, accounting.clone()).await?;
    let mut watch = tokio::spawn(watch(engine.clone(), accounting.clone()));
    let mut lines = read_stdin();
    let mut input_open = true;
    let mut submissions = JoinSet::new();
    let end = loop {
        tokio::select! {
            line = lines.recv(), if input_open && submissions.len() < IN_FLIGHT => match line {
                Some(Ok(line)) => { submissions.spawn(submit(engine.clone(), accounting.clone(), line)); }
                Some(Err(error)) => break Err(failed("stdin")(error)),
                None => input_open = false,
            },
            Some(_) = submissions.join_next() => {}
            Some(()) = asked_why.recv() => { tokio::spawn(explain(engine.clone())); }
            end = &mut watch => break end.map_err(failed("watch")).flatten(),
            () = stop.notified() => break Ok(()),
            idle = engine.wait_idle(), if until_idle && !input_open && submissions.is_empty() => {
                break idle.map_err(failed("engine"));
            }
        }
    };
    drop(lines);
    // Submissions that still wait for room are refused by the shutdown, and say so.
    let answered = tokio::spawn(async move { while submissions.join_next().await.is_some() {} });
    let mut shutdown = std::pin::pin!(engine.shutdown(GRACE));
    let report = loop {
        tokio::select! {
            report = &mut shutdown => break report,
            Some(()) = asked_why.recv() => { tokio::spawn(explain(engine.clone())); }
        }
    };
    let ShutdownReport { interrupted, unsettled, .. } = report;
    if interrupted + unsettled > 0 {
        let _ = writeln!(
            io::stderr(),
            "mailer: {interrupted} transactions were cut off and {unsettled} outcomes are not stored: these may be sent again"
        );
    }
    let refused = accounting.refused.load(Ordering::Relaxed);
    if refused > 0 {
        let _ = writeln!(
            io::stderr(),
            "mailer: the store refused {refused} messages, as their `rejected` records say: submit them again, with the same ids"
        );
    }
    let flushing = accounting.clone();
    let written = timeout(LAST_RECORDS, async move {
        let _ = answered.await;
        spawn_blocking(move || flushing.flush()).await.map_err(io::Error::other).flatten()
    });
    let flushed = match written.await {
        Ok(flushed) => flushed.map_err(failed("stdout")),
        Err(_) => Err(accounting.not_taken()),
    };
    end.and(flushed).and(accounting.store_works())
}

/// The configuration's file, and whether to end when idle.
fn arguments() -> Result<(PathBuf, bool), End> {
    let (mut config, mut until_idle, mut args) = (None, false, std::env::args_os().skip(1));
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--config") => config = args.next(),
            Some("--until-idle") => until_idle = true,
            Some("--help" | "-h") => return Err(End(0, USAGE.to_owned())),
            _ => return Err(usage(format!("`{}` is not an option", arg.display()))),
        }
    }
    Ok((config.ok_or_else(|| usage("--config FILE is missing"))?.into(), until_idle))
}

fn read_config(path: &Path) -> Result<Config, End> {
    let wrong = |error: &dyn Display| End(2, format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    Config::from_toml(&text).map_err(|error| wrong(&error))
}

/// Puts the engine together from its parts.
async fn start(config: &Config, clock: Clock, sink: Arc<Accounting>) -> Result<DeliveryEngine, End> {
    let spool = config.storage_path.as_deref().unwrap_or(Path::new("spool"));
    let storage = DiskStorage::open(spool).await.map_err(failed(format!("storage {}", spool.display())))?;
    let resolver = match &config.nameservers {
        Some(servers) => HickoryResolver::with_nameservers(servers),
        None => HickoryResolver::from_system(),
    };
    DeliveryEngine::builder(config.hostname.clone())
        .storage(storage)
        .resolver(resolver.map_err(failed("dns"))?)
        .transport(SmtpTransport::default())
        .policy(config.policy.clone())
        .event_sink(sink)
        .clock(clock)
        .upkeep_interval(upkeep_interval()?)
        .start()
        .await
        .map_err(failed("engine"))
}

/// A minute, as is the engine's default. For tests, which have less time.
fn upkeep_interval() -> Result<Duration, End> {
    match std::env::var("MAILER_UPKEEP_MS") {
        Ok(text) => Ok(Duration::from_millis(text.parse().map_err(failed("MAILER_UPKEEP_MS"))?)),
        Err(_) => Ok(Duration::from_secs(60)),
    }
}

/// Asks for a graceful end at the first SIGINT or SIGTERM, and ends at once at the second.
fn listen_to_signals() -> Result<Arc<Notify>, End> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("SIGINT"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("SIGTERM"))?;
    let stop = Arc::new(Notify::new());
    let first = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        first.notify_one();
        std::process::exit(tokio::select! { _ = interrupt.recv() => 130, _ = terminate.recv() => 143 });
    });
    Ok(stop)
}

/// One line of input: a submission, or what is wrong with it.
struct Line {
    number: u64,
    submission: Submission,
    message: Result<Message, String>,
    /// Given back once the message is stored.
    room: Option<OwnedSemaphorePermit>,
}

/// A submission as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Submission {
    #[serde(rename = "ref")]
    reference: Option<String>,
    from: String,
    to: Vec<String>,
    data: Option<String>,
    file: Option<PathBuf>,
    id: Option<String>,
    source: Option<String>,
    priority: Option<String>,
    hold_until: Option<String>,
    expires_after: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, Value>,
}

/// Reads stdin on a thread of its own: reading lines and files blocks, and stdin may stay open for ever.
fn read_stdin() -> mpsc::Receiver<io::Result<Line>> {
    let (lines, receiver) = mpsc::channel(IN_FLIGHT);
    let runtime = Handle::current();
    std::thread::spawn(move || {
        if let Err(error) = read_lines(io::stdin().lock(), &runtime, &lines) {
            let _ = lines.blocking_send(Err(error));
        }
    });
    receiver
}

fn read_lines(
    mut input: impl BufRead,
    runtime: &Handle,
    lines: &mpsc::Sender<io::Result<Line>>,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(ROOM as usize));
    let (mut number, mut octets) = (0, Vec::new());
    while input.by_ref().take(MAX_LINE).read_until(b'\n', &mut octets)? > 0 {
        number += 1;
        let whole = octets.ends_with(b"\n") || (octets.len() as u64) < MAX_LINE;
        if !whole {
            input.skip_until(b'\n')?;
        }
        if !octets.trim_ascii().is_empty() {
            let mut line = Line::parse(number, &octets, whole);
            // Its content has moved: nobody waits with it twice.
            octets.clear();
            octets.shrink_to(1024 * 1024);
            if let Ok(message) = &line.message {
                let wanted = u32::try_from(message.body().len()).unwrap_or(ROOM).min(ROOM);
                line.room = runtime.block_on(room.clone().acquire_many_owned(wanted)).ok();
            }
            if lines.blocking_send(Ok(line)).is_err() {
                return Ok(());
            }
        }
        octets.clear();
    }
    Ok(())
}

impl Line {
    fn parse(number: u64, octets: &[u8], whole: bool) -> Self {
        let mut submission = Submission::default();
        let message = match Submission::parse(octets, whole) {
            Ok(parsed) => {
                submission = parsed;
                submission.message()
            }
            Err(error) => {
                // Whoever wrote the line may know it by its `ref`, even if nothing else in it is right.
                let value: Value = serde_json::from_slice(octets).unwrap_or_default();
                submission.reference = value.get("ref").and_then(Value::as_str).map(str::to_owned);
                Err(error)
            }
        };
        Self { number, submission, message, room: None }
    }
}

impl Submission {
    fn parse(octets: &[u8], whole: bool) -> Result<Self, String> {
        if !whole {
            return Err(format!("the line is longer than {MAX_LINE} octets; large content goes by `file`"));
        }
        let text = named("not UTF-8, such content goes by `file`", std::str::from_utf8(octets))?;
        serde_json::from_str(text).map_err(|error| {
            // The line it names is always 1, which is not the one that counts.
            let text = error.to_string();
            let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
            format!("{what} (column {})", error.column())
        })
    }

    /// The message; the content moves into it.
    fn message(&mut self) -> Result<Message, String> {
        let body = match (self.data.take(), &self.file) {
            (Some(data), None) => data.into_bytes(),
            (None, Some(file)) => named(&format!("file {}", file.display()), read_body(file))?,
            _ => return Err("give either `data` or `file`".to_owned()),
        };
        let mut message = Message::new(&self.from, &self.to, body).map_err(|error| error.to_string())?;
        if let Some(reference) = &self.reference {
            message = message.with_reference(reference);
        }
        if let Some(id) = &self.id {
            message = message.with_id(named("id", id.parse())?);
        }
        if let Some(source) = &self.source {
            message = message.with_source(source);
        }
        if let Some(time) = &self.hold_until {
            message = message.hold_until(named("hold_until", time.parse())?);
        }
        if let Some(age) = &self.expires_after {
            message = message.expires_after(named("expires_after", parse_duration(age))?);
        }
        for (name, value) in &self.tags {
            let text = value.as_str().ok_or_else(|| format!("tags: {name}: {value} is not a string"))?;
            message = message.with_tag(name, text);
        }
        match self.priority.as_deref() {
            None | Some("normal") => Ok(message),
            Some("high") => Ok(message.with_priority(Priority::High)),
            Some("low") => Ok(message.with_priority(Priority::Low)),
            Some(other) => Err(format!("priority: `{other}` is not high, normal or low")),
        }
    }
}

fn named<T, E: Display>(what: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// Reads no more than a message may hold, and only from regular files: a pipe could block for ever.
fn read_body(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let most = Message::MAX_BODY_OCTETS as u64;
    let mut body = Vec::with_capacity(usize::try_from(metadata.len().min(most)).unwrap_or(0));
    File::open(path)?.take(most + 1).read_to_end(&mut body)?;
    Ok(body)
}

async fn submit(engine: DeliveryEngine, accounting: Arc<Accounting>, line: Line) {
    let Submission { reference, from, tags, .. } = &line.submission;
    let result = match line.message {
        Ok(message) => {
            let facts = (message.body().len(), message.recipients().len());
            let submitted = engine.submit(message).await;
            let is_refused = matches!(submitted, Err(SubmitError::Storage(_)));
            accounting.refused.fetch_add(is_refused.into(), Ordering::Relaxed);
            submitted.map(|id| (id, facts)).map_err(|error| error.to_string())
        }
        Err(error) => Err(error),
    };
    drop(line.room);
    let now = accounting.clock.now();
    accounting.write(match result {
        Ok((id, (size, recipients))) => Record::new("received", now)
            .with("id", &id)
            .maybe("ref", reference.as_ref())
            .with("from", from)
            .with("size", &size)
            .with("recipients", &recipients)
            .maybe("tags", Some(tags).filter(|tags| !tags.is_empty())),
        Err(error) => Record::new("rejected", now)
            .with("line", &line.number)
            .maybe("ref", reference.as_ref())
            .with("error", &error),
    });
}

/// Collects records and writes them to stdout, whole lines at a time.
///
/// A flush hands them to the system: they survive the end of this program, not a loss of power.
struct Accounting {
    clock: Clock,
    unflushed: Mutex<Vec<u8>>,
    /// Records that are not written yet.
    unwritten: AtomicU64,
    /// Messages that the store refused.
    refused: AtomicU64,
    /// The first error of stdout. After it nothing more is written and nothing more acknowledged.
    broken: Mutex<Option<io::ErrorKind>>,
    /// Why the store refuses for good.
    store_failed: Mutex<Option<String>>,
}

impl Accounting {
    fn new(clock: Clock) -> Self {
        Self {
            clock,
            unflushed: Mutex::default(),
            unwritten: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            broken: Mutex::default(),
            store_failed: Mutex::default(),
        }
    }

    fn not_taken(&self) -> End {
        let records = self.unwritten.load(Ordering::Relaxed);
        let message = format!(
            "stdout takes nothing: up to {records} records are not written. Of these, `delivered`, `bounced` and `cancelled` stay in \
             the outbox and are written after the next start; whoever misses a `received` submits again, with the same id"
        );
        End(1, message)
    }

    fn store_works(&self) -> Result<(), End> {
        match &*lock(&self.store_failed) {
            Some(error) => {
                Err(End(1, format!("the store has failed, nothing is sent until it is opened anew: {error}")))
            }
            None => Ok(()),
        }
    }

    fn write(&self, record: Record) {
        let mut unflushed = lock(&self.unflushed);
        self.unwritten.fetch_add(1, Ordering::Relaxed);
        unflushed.extend_from_slice(&record.0);
        unflushed.extend_from_slice(b"}\n");
        let full = unflushed.len() > MAX_UNFLUSHED;
        drop(unflushed);
        if full {
            // An error is kept: the next regular flush reports it.
            let _ = block_in_place(|| self.flush());
        }
    }
}

impl EventSink for Accounting {
    fn on_event(&self, event: &DeliveryEvent) {
        if let DeliveryEvent::StorageTrouble(trouble) = event
            && trouble.stopped
        {
            *lock(&self.store_failed) = Some(trouble.error.clone());
        }
        if let Some(record) = Record::of(event) {
            self.write(record);
        }
    }

    fn flush(&self) -> io::Result<()> {
        // Held while writing, so that records stay in order.
        let mut broken = lock(&self.broken);
        let records = std::mem::take(&mut *lock(&self.unflushed));
        if let Some(kind) = *broken {
            return Err(kind.into());
        }
        let mut stdout = io::stdout().lock();
        let result = stdout.write_all(&records).and_then(|()| stdout.flush());
        *broken = result.as_ref().err().map(io::Error::kind);
        if result.is_ok() {
            let written = records.iter().filter(|octet| **octet == b'\n').count();
            self.unwritten.fetch_sub(written as u64, Ordering::Relaxed);
        }
        result
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Flushes regularly, draws the progress line if there is a terminal, and sees that engine and store still work.
async fn watch(engine: DeliveryEngine, accounting: Arc<Accounting>) -> Result<(), End> {
    let terminal = io::stderr().is_terminal();
    let mut tick = tokio::time::interval(FLUSH_EVERY);
    let mut before = 0;
    for count in 0_u64.. {
        tick.tick().await;
        block_in_place(|| accounting.flush()).map_err(failed("stdout"))?;
        accounting.store_works()?;
        if count % PROGRESS_EVERY != 0 {
            continue;
        }
        let Stats { queued, in_flight, delivered, deferred, bounced, .. } =
            engine.stats().await.map_err(failed("engine"))?;
        if terminal {
            let rate = delivered.saturating_sub(before);
            before = delivered;
            let _ = write!(
                io::stderr(),
                "\r{queued} queued, {in_flight} in flight, {delivered} delivered, {deferred} deferred, \
                 {bounced} bounced, {rate}/s\x1b[K"
            );
        }
    }
    Ok(())
}

/// Prints what the queues wait for, a line for each and one for each of its destinations.
async fn explain(engine: DeliveryEngine) {
    let text = match explanation(&engine).await {
        Ok(text) if text.is_empty() => "nothing is queued\n".to_owned(),
        Ok(text) => text,
        Err(error) => format!("mailer: {error}\n"),
    };
    let _ = io::stderr().write_all(text.as_bytes());
}

async fn explanation(engine: &DeliveryEngine) -> Result<String, ControlError> {
    let mut text = String::new();
    let queues = engine.queues(QueueSort::Items, EXPLAINED + 1).await?;
    for info in queues.iter().take(EXPLAINED) {
        let queues = engine.why_queue(&info.name).await?;
        for queue in queues.iter().filter(|queue| queue.source == info.source) {
            let _ = writeln!(text, "{queue}; {} items", info.items);
            for destination in &queue.destinations {
                let _ = writeln!(text, "    {destination}");
            }
            if queue.more_destinations > 0 {
                let _ = writeln!(text, "    and {} destinations more", queue.more_destinations);
            }
        }
    }
    if queues.len() > EXPLAINED {
        let _ = writeln!(text, "there are more queues: these are the {EXPLAINED} with the most mail");
    }
    Ok(text)
}

/// One line of output: a JSON object, open at its end. Fields that are not known are left out.
struct Record(Vec<u8>);

impl Record {
    fn new(kind: &str, time: Timestamp) -> Self {
        Self(vec![b'{']).with("type", kind).with("time", &time.to_string())
    }

    /// Adds a field; `name` needs no escape.
    fn with(mut self, name: &str, value: &(impl Serialize + ?Sized)) -> Self {
        if let Ok(value) = serde_json::to_vec(value) {
            let comma = if self.0.len() > 1 { "," } else { "" };
            self.0.extend_from_slice(format!("{comma}\"{name}\":").as_bytes());
            self.0.extend_from_slice(&value);
        }
        self
    }

    fn maybe(self, name: &str, value: Option<impl Serialize>) -> Self {
        match value {
            Some(value) => self.with(name, &value),
            None => self,
        }
    }

    fn peer(self, mx: Option<&Arc<str>>, peer: Option<SocketAddr>) -> Self {
        self.maybe("mx", mx)
            .maybe("ip", peer.map(|peer| peer.ip()))
            .maybe("port", peer.map(|peer| peer.port()))
    }

    /// `None`: nothing to say. `received` is written by [`submit`], for repeated ids too.
    fn of(event: &DeliveryEvent) -> Option<Self> {
        Some(match event {
            DeliveryEvent::Delivered(e) => {
                Self::recipient("delivered", &e.record).with("reply", &reply(&e.reply)).with("tls", &e.tls)
            }
            DeliveryEvent::Deferred(e) => Self::recipient("deferred", &e.record)
                .diagnosis(&e.diagnosis)
                .with("next_attempt", &e.next_attempt.to_string()),
            DeliveryEvent::Bounced(e) => Self::recipient("bounced", &e.record)
                .diagnosis(&e.diagnosis)
                .with("suppress", e.suppress.as_str()),
            DeliveryEvent::Cancelled(e) => Self::recipient("cancelled", &e.record),
            DeliveryEvent::QueueDeferred(e) => Self::new("queue-deferred", e.time)
                .with("event", &e.event)
                .with("queue", &e.queue)
                .with("source", &e.source)
                .with("domain", e.domain.as_str())
                .peer(e.mx.as_ref(), e.peer)
                .diagnosis(&e.diagnosis)
                .with("next_attempt", &e.next_attempt.to_string()),
            DeliveryEvent::QueueMode(e) => Self::new("queue-mode", e.time)
                .with("event", &e.event)
                .with("queue", &e.queue)
                .with("source", &e.source)
                .with("mode", e.mode.as_str())
                .maybe("until", e.until.map(|until| until.to_string()))
                .maybe("rule", e.rule.as_ref())
                .maybe("reply", e.reply.as_ref().map(reply)),
            DeliveryEvent::LocalTrouble(e) => Self::new("local-trouble", e.time)
                .with("event", &e.event)
                .maybe("source", e.source.as_ref())
                .with("error", &e.error),
            DeliveryEvent::StorageTrouble(e) => Self::new("storage-trouble", e.time)
                .with("event", &e.event)
                .with("operation", e.operation.as_str())
                .with("error", &e.error)
                .with("stopped", &e.stopped),
            _ => return None,
        })
    }

    fn recipient(kind: &str, record: &RecipientRecord) -> Self {
        Self::new(kind, record.time)
            .with("event", &record.event)
            .with("id", &record.id)
            .maybe("ref", record.reference.as_ref())
            .with("recipient", record.recipient.as_str())
            .with("domain", record.domain.as_str())
            .with("queue", &record.queue)
            .with("source", &record.source)
            .peer(record.mx.as_ref(), record.peer)
            .with("attempts", &record.attempts)
            .with("queued_ms", &u64::try_from(record.queued.as_millis()).unwrap_or(u64::MAX))
            .maybe("tags", Some(&record.tags).filter(|tags| !tags.is_empty()))
    }

    fn diagnosis(self, diagnosis: &Diagnosis) -> Self {
        let this = self
            .with("stage", diagnosis.stage.as_str())
            .with("status", &diagnosis.status.to_string())
            .with("category", diagnosis.category().as_str())
            .with("reason", diagnosis.reason.as_str());
        match &diagnosis.failure {
            Failure::Reply(r) => this.with("reply", &reply(r)),
            Failure::Engine(error) => this.with("error", error),
        }
        .maybe("rule", diagnosis.rule.as_ref())
    }
}

/// A reply as it stands in a record.
fn reply(reply: &Reply) -> Value {
    let mut fields = json!({ "code": reply.code(), "text": reply.text() });
    if let (Some(status), Some(fields)) = (reply.enhanced(), fields.as_object_mut()) {
        fields.insert("enhanced".to_owned(), status.to_string().into());
    }
    fields
}
