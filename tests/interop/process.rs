//! The mailer as a process.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::example::mailer;

/// No test waits longer for a single record.
const RECORD: Duration = Duration::from_secs(30);
/// No process lives longer: a test is bounded even if records keep coming.
const LIFE: Duration = Duration::from_secs(55);

/// A running mailer. Killed when dropped.
pub(crate) struct Mailer {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// Read once it has ended.
    unread: Option<ChildStdout>,
    records: Vec<Value>,
    stderr: Option<JoinHandle<String>>,
    /// The lines of stderr, as they come.
    said: Receiver<String>,
    /// Dropped with the mailer, which tells the watchdog to stand down.
    _alive: Sender<()>,
}

/// Who reads the mailer's stdout.
enum Reader {
    All,
    /// Nobody; the pipe is closed.
    Gone,
    /// Nobody; the pipe is open.
    Idle,
}

/// What is left of a mailer.
pub(crate) struct Ended {
    /// `None`: killed.
    pub(crate) code: Option<i32>,
    /// All records, those already looked at included.
    pub(crate) records: Vec<Value>,
    pub(crate) stderr: String,
}

impl Mailer {
    pub(crate) fn start(config: &Path, args: &[&str]) -> Self {
        Self::spawn(config, args, Reader::All)
    }

    /// Nobody reads its stdout: the pipe is closed from the start.
    pub(crate) fn start_unheard(config: &Path, args: &[&str]) -> Self {
        Self::spawn(config, args, Reader::Gone)
    }

    /// Nobody reads its stdout: the pipe stays open and becomes full.
    pub(crate) fn start_unread(config: &Path, args: &[&str]) -> Self {
        Self::spawn(config, args, Reader::Idle)
    }

    fn spawn(config: &Path, args: &[&str], reader: Reader) -> Self {
        let mut child = mailer(config, args, &[]);
        let (line, lines) = channel();
        let stdout = child.stdout.take().unwrap();
        let mut unread = None;
        match reader {
            Reader::All => {
                let mut texts = texts(stdout);
                std::thread::spawn(move || texts.try_for_each(|text| line.send(text)));
            }
            Reader::Gone => {}
            Reader::Idle => unread = Some(stdout),
        }
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (saying, said) = channel();
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            for line in stderr.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                text.push_str(&line);
                text.push('\n');
                // A test that listens no more still reads it all at the end.
                let _ = saying.send(line);
            }
            text
        });
        let (alive, watchdog) = channel::<()>();
        let pid = child.id();
        std::thread::spawn(move || {
            if watchdog.recv_timeout(LIFE) == Err(RecvTimeoutError::Timeout) {
                send_signal("KILL", pid);
            }
        });
        let stdin = child.stdin.take();
        let (records, stderr) = (Vec::new(), Some(stderr));
        Self { child, stdin, lines, unread, records, stderr, said, _alive: alive }
    }

    /// Writes lines on a thread of their own, since the mailer may take them slowly; then ends the input.
    pub(crate) fn feed_all(&mut self, lines: Vec<String>) {
        let mut stdin = self.stdin.take().unwrap();
        std::thread::spawn(move || {
            for line in lines {
                // A mailer that was killed reads no more, as some tests want.
                if stdin.write_all(format!("{line}\n").as_bytes()).is_err() {
                    return;
                }
            }
        });
    }

    /// Writes lines and leaves the input open.
    pub(crate) fn feed(&mut self, lines: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        let stdin = self.stdin.as_mut().unwrap();
        for line in lines {
            stdin.write_all(&[line.as_ref(), b"\n"].concat()).unwrap();
        }
    }

    /// Reads records until one of them is the one.
    pub(crate) fn until(&mut self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        loop {
            let line = match self.lines.recv_timeout(RECORD) {
                Ok(line) => line,
                Err(error) => panic!("waiting for {what}: {error}; so far {:#?}", self.records),
            };
            let record = parse(&line);
            self.records.push(record.clone());
            if wanted(&record) {
                return record;
            }
        }
    }

    /// Reads lines of stderr until one of them has this in it.
    pub(crate) fn until_said(&self, what: &str) -> String {
        let mut said = Vec::new();
        loop {
            match self.said.recv_timeout(RECORD) {
                Ok(line) if line.contains(what) => return line,
                Ok(line) => said.push(line),
                Err(error) => panic!("waiting for {what:?}: {error}; so far {said:#?}"),
            }
        }
    }

    /// Until so many records of a type have come.
    pub(crate) fn until_count(&mut self, kind: &str, count: usize) {
        let mut left = count;
        while left > 0 {
            self.until(kind, |record| record["type"] == kind);
            left -= 1;
        }
    }

    /// Until so many records of a type have come since the start.
    pub(crate) fn until_total(&mut self, kind: &str, count: usize) {
        let seen = self.records.iter().filter(|record| record["type"] == kind).count();
        self.until_count(kind, count.saturating_sub(seen));
    }

    /// Until so many recipients have their final record.
    pub(crate) fn until_settled(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            self.until("final records", |record| {
                record["type"] == "delivered" || record["type"] == "bounced"
            });
            left -= 1;
        }
    }

    /// Asks for a graceful end, and reads until it has come.
    pub(crate) fn terminate(self) -> Ended {
        self.signal("TERM");
        let ended = self.until_ended();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended
    }

    pub(crate) fn signal(&self, name: &str) {
        send_signal(name, self.child.id());
    }

    /// Ends the input, and reads until the process has ended.
    pub(crate) fn finish(mut self) -> Ended {
        drop(self.stdin.take());
        self.until_ended()
    }

    /// Reads until the process has ended.
    pub(crate) fn until_ended(mut self) -> Ended {
        loop {
            match self.lines.recv_timeout(LIFE) {
                Ok(line) => self.records.push(parse(&line)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the mailer does not end: {:#?}", self.records),
            }
        }
        let code = self.child.wait().unwrap().code();
        self.records.extend(self.unread.take().into_iter().flat_map(texts).map(|line| parse(&line)));
        let stderr = self.stderr.take().unwrap().join().unwrap();
        Ended { code, records: std::mem::take(&mut self.records), stderr }
    }
}

impl Drop for Mailer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn texts(stdout: ChildStdout) -> impl Iterator<Item = String> {
    BufReader::new(stdout).lines().map_while(Result::ok)
}

fn parse(line: &str) -> Value {
    // A killed mailer may leave half a record behind.
    serde_json::from_str(line).unwrap_or_else(|_| serde_json::json!({ "type": "torn", "line": line }))
}

/// By the shell's own `kill`: a crate that forbids unsafe code sends no signal itself.
fn send_signal(name: &str, pid: u32) {
    let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status().unwrap();
    assert!(status.success(), "kill -{name} {pid}");
}

impl Ended {
    pub(crate) fn of_type<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.records.iter().filter(move |record| record["type"] == kind)
    }

    /// The records of a type, as text fields say.
    pub(crate) fn with<'a>(&'a self, kind: &'a str, fields: &[(&str, &str)]) -> Vec<&'a Value> {
        let fits = |record: &&Value| fields.iter().all(|(field, text)| record[field] == *text);
        self.of_type(kind).filter(fits).collect()
    }

    /// The only record of a type, with these text fields.
    pub(crate) fn only<'a>(&'a self, kind: &'a str, fields: &[(&str, &str)]) -> &'a Value {
        let found = self.with(kind, fields);
        let [record] = found[..] else { panic!("{} of {kind} {fields:?}: {:#?}", found.len(), self.records) };
        record
    }

    /// How many records of a type.
    pub(crate) fn count(&self, kind: &str) -> usize {
        self.of_type(kind).count()
    }
}
