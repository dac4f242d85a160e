//! The mailer as a process that does not get to end.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::example::mailer;

/// So often, in milliseconds, the store is kept up: several times while a mailer lives.
const UPKEEP_MS: &str = "100";

pub(crate) struct Mailer {
    child: Child,
    stdin: Option<ChildStdin>,
    records: JoinHandle<Vec<Value>>,
    stderr: JoinHandle<String>,
    ended: Receiver<()>,
}

impl Mailer {
    pub(crate) fn start(config: &Path, args: &[&str]) -> Self {
        let mut child = mailer(config, args, &[("MAILER_UPKEEP_MS", UPKEEP_MS)]);
        let (end, ended) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let records = std::thread::spawn(move || read_records(stdout, end));
        let mut stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        Self { stdin: child.stdin.take(), child, records, stderr, ended }
    }

    /// Writes lines on a thread of their own, some at a time and up to so many milliseconds between, until the mailer is gone.
    /// Leaves the input open.
    pub(crate) fn feed_slowly(&mut self, lines: Vec<String>, longest: u64, seed: u64) {
        let mut stdin = self.stdin.take().unwrap();
        std::thread::spawn(move || {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut lines = lines.into_iter().peekable();
            while lines.peek().is_some() {
                let some: Vec<_> = lines.by_ref().take(rng.usize(1..40)).collect();
                if stdin.write_all((some.join("\n") + "\n").as_bytes()).is_err() {
                    return;
                }
                pause(Duration::from_millis(rng.u64(0..longest)));
            }
            // Open for longer than the mailer lives.
            pause(Duration::from_secs(120));
        });
    }

    /// Writes lines and ends the input.
    pub(crate) fn feed_all(&mut self, lines: &[String]) {
        let mut stdin = self.stdin.take().unwrap();
        lines.iter().for_each(|line| writeln!(stdin, "{line}").unwrap());
    }

    /// Kills it, and returns what it had written.
    pub(crate) fn kill(mut self) -> Vec<Value> {
        let early = self.child.try_wait().unwrap();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let stderr = self.stderr.join().unwrap();
        assert_eq!(early, None, "ended by itself: {stderr}");
        assert!(stderr.is_empty(), "{stderr}");
        self.records.join().unwrap()
    }

    /// Waits for its own end.
    pub(crate) fn finish(mut self, longest: Duration) -> Vec<Value> {
        if self.ended.recv_timeout(longest) == Err(RecvTimeoutError::Timeout) {
            self.child.kill().unwrap();
        }
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.stderr.join().unwrap());
        self.records.join().unwrap()
    }
}

fn read_records(stdout: impl BufRead, _end: Sender<()>) -> Vec<Value> {
    let lines = stdout.split(b'\n').map_while(Result::ok);
    // The last line may be torn: nobody was told of it then.
    lines.filter_map(|line| serde_json::from_slice(&line).ok()).collect()
}

#[allow(clippy::disallowed_methods, reason = "no runtime here")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
