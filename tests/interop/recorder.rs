//! An SMTP server that keeps what it is given, octet for octet.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::time::Duration;

use postrider::clock::{Clock, Timestamp};

/// No test waits longer for what a server must see.
const SEEN: Duration = Duration::from_secs(30);
/// The line a script is asked about when a connection opens: its reply is the greeting.
pub(crate) const GREETING: &str = "(greeting)";

/// A message as it came, dots un-stuffed.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    /// The arguments of MAIL.
    pub(crate) mail: String,
    /// The recipients that were accepted, without brackets.
    pub(crate) to: Vec<String>,
    pub(crate) body: Vec<u8>,
}

/// A connection as the server saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visit {
    /// The client's address.
    pub(crate) from: IpAddr,
    pub(crate) at: Timestamp,
    /// Messages accepted.
    pub(crate) messages: usize,
    /// Openings and closings of all servers of this process, numbered in order.
    opened: u64,
    closed: Option<u64>,
}

/// The most connections that were open at once.
pub(crate) fn most_at_once<'a>(visits: impl IntoIterator<Item = &'a Visit>) -> usize {
    let mut steps = Vec::new();
    for visit in visits {
        steps.push((visit.opened, 1));
        steps.extend(visit.closed.map(|number| (number, -1)));
    }
    steps.sort_unstable();
    let open = steps.iter().scan(0_isize, |open, (_, step)| {
        *open += step;
        Some(*open)
    });
    usize::try_from(open.max().unwrap_or(0)).unwrap()
}

/// Holds a script up until a test lets it go on.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub(crate) fn pass(&self) {
        let guard = self.0.0.lock().unwrap();
        // A test that failed opens nothing any more.
        let _ = self.0.1.wait_timeout_while(guard, SEEN, |open| !*open).unwrap();
    }
}

/// What to answer to a command line, `.` being the end of the content; `None`: as usual; empty: close without a word.
type Script = dyn Fn(IpAddr, &str) -> Option<String> + Send + Sync;

static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::system);
static STEP: AtomicU64 = AtomicU64::new(0);

/// Listens until the test process ends.
#[derive(Clone)]
pub(crate) struct Recorder(Arc<Inner>);

struct Inner {
    script: Box<Script>,
    taken: Mutex<Vec<Taken>>,
    /// Command lines, and anything that no client may send.
    heard: Mutex<Vec<(Timestamp, String)>>,
    visits: Mutex<Vec<Visit>>,
    visited: Condvar,
}

impl Recorder {
    /// Accepts everything.
    pub(crate) fn start(address: SocketAddr) -> Self {
        Self::scripted(address, |_| None)
    }

    pub(crate) fn scripted(
        address: SocketAddr,
        script: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self::by_client(address, move |_, line| script(line))
    }

    /// The script sees the client's address too.
    pub(crate) fn by_client(
        address: SocketAddr,
        script: impl Fn(IpAddr, &str) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let recorder = Self(Arc::new(Inner {
            script: Box::new(script),
            taken: Mutex::default(),
            heard: Mutex::default(),
            visits: Mutex::default(),
            visited: Condvar::new(),
        }));
        let server = recorder.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let session = server.clone();
                // An error is the client's going away, which is its right.
                std::thread::spawn(move || session.0.receive(stream).ok());
            }
        });
        recorder
    }

    pub(crate) fn taken(&self) -> Vec<Taken> {
        self.0.taken.lock().unwrap().clone()
    }

    /// Everything said to this server, one command a line.
    pub(crate) fn heard(&self) -> Vec<String> {
        self.0.heard.lock().unwrap().iter().map(|(_, line)| line.clone()).collect()
    }

    /// When it heard lines that begin so.
    pub(crate) fn times(&self, beginning: &str) -> Vec<Timestamp> {
        let heard = self.0.heard.lock().unwrap();
        heard.iter().filter(|(_, line)| line.starts_with(beginning)).map(|(at, _)| *at).collect()
    }

    pub(crate) fn visits(&self) -> Vec<Visit> {
        self.0.visits.lock().unwrap().clone()
    }

    /// Waits until so many connections are open.
    pub(crate) fn until_open(&self, count: usize) {
        let open = |visits: &Vec<Visit>| visits.iter().filter(|visit| visit.closed.is_none()).count();
        let visits = self.0.visits.lock().unwrap();
        let (visits, late) =
            self.0.visited.wait_timeout_while(visits, SEEN, |visits| open(visits) < count).unwrap();
        assert!(!late.timed_out(), "{} connections, not {count}: {visits:#?}", open(&visits));
    }
}

impl Inner {
    fn receive(&self, stream: TcpStream) -> std::io::Result<()> {
        let from = stream.peer_addr()?.ip();
        let number = {
            let mut visits = self.visits.lock().unwrap();
            let opened = STEP.fetch_add(1, Ordering::Relaxed);
            visits.push(Visit { from, at: CLOCK.now(), messages: 0, opened, closed: None });
            self.visited.notify_all();
            visits.len() - 1
        };
        let result = self.converse(stream, from, number);
        self.close(number);
        result
    }

    fn close(&self, number: usize) {
        let mut visits = self.visits.lock().unwrap();
        visits[number].closed.get_or_insert_with(|| STEP.fetch_add(1, Ordering::Relaxed));
    }

    fn hear(&self, line: impl Into<String>) {
        self.heard.lock().unwrap().push((CLOCK.now(), line.into()));
    }

    fn converse(&self, mut stream: TcpStream, from: IpAddr, number: usize) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut input = BufReader::new(stream.try_clone()?);
        let (mut mail, mut to) = (String::new(), Vec::new());
        let greeting = (self.script)(from, GREETING).unwrap_or_else(|| "220 recorder ESMTP".to_owned());
        if !greeting.starts_with('2') {
            // Before the client can know: what it does next comes after.
            self.close(number);
            return say(&mut stream, &greeting);
        }
        say(&mut stream, &greeting)?;
        loop {
            let mut octets = Vec::new();
            if input.read_until(b'\n', &mut octets)? == 0 {
                return Ok(());
            }
            let line = String::from_utf8_lossy(&octets);
            let Some(line) = line.strip_suffix("\r\n") else {
                self.hear(format!("NOT A LINE: {line:?}"));
                return Ok(());
            };
            self.hear(line);
            let (verb, rest) = line.split_at(line.find([' ', ':']).unwrap_or(line.len()));
            let verb = verb.to_ascii_uppercase();
            let usual = match verb.as_str() {
                "EHLO" => {
                    "250-recorder\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n\
                     250-ENHANCEDSTATUSCODES\r\n250 SIZE 100000000"
                }
                "DATA" if to.is_empty() => "503 5.5.1 no recipients",
                "DATA" => "354 go on",
                "QUIT" => "221 2.0.0 bye",
                "HELO" | "MAIL" | "RCPT" | "RSET" | "NOOP" => "250 2.0.0 ok",
                _ => "500 5.5.2 what?",
            };
            let mut reply = (self.script)(from, line).unwrap_or_else(|| usual.to_owned());
            let positive = reply.starts_with('2');
            match verb.as_str() {
                "MAIL" => {
                    mail = rest.trim_start_matches(" FROM:").to_owned();
                    to.clear();
                }
                "RCPT" if positive => {
                    let path = rest.trim_start_matches(" TO:").split(' ').next().unwrap_or_default();
                    to.push(path.trim_matches(['<', '>']).to_owned());
                }
                "RSET" => to.clear(),
                "DATA" if reply.starts_with('3') => {
                    say(&mut stream, &reply)?;
                    let body = self.content(&mut input)?;
                    reply = (self.script)(from, ".").unwrap_or_else(|| "250 2.0.0 kept".to_owned());
                    if reply.starts_with('2') {
                        let taken = Taken { mail: mail.clone(), to: to.clone(), body };
                        self.taken.lock().unwrap().push(taken);
                        self.visits.lock().unwrap()[number].messages += 1;
                    }
                    to.clear();
                }
                _ => {}
            }
            let last = verb == "QUIT" || reply.is_empty() || reply.starts_with("421");
            // What is no reply ends the session too, by the client's hand.
            if last || !reply.starts_with(|first: char| first.is_ascii_digit()) {
                self.close(number);
            }
            say(&mut stream, &reply)?;
            if last {
                return Ok(());
            }
        }
    }

    /// The content up to the lone dot (RFC 5321 §4.5.2).
    fn content(&self, input: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let start = body.len();
            if input.read_until(b'\n', &mut body)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let line = &body[start..];
            if !line.ends_with(b"\r\n") {
                self.hear("BARE LF IN CONTENT");
            }
            if line == b".\r\n" {
                body.truncate(start);
                return Ok(body);
            }
            if line.starts_with(b".") {
                body.remove(start);
            }
        }
    }
}

fn say(stream: &mut TcpStream, reply: &str) -> std::io::Result<()> {
    if reply.is_empty() { Ok(()) } else { stream.write_all(format!("{reply}\r\n").as_bytes()) }
}
