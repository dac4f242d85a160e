//! An SMTP server that knows which of the mailers talks to it, by the name in EHLO: `g17.sender.example` is the 17th.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::mailer::pause;

/// The recipients of each transaction that was accepted on one connection, in order.
#[derive(Clone, Default)]
pub(crate) struct Visit {
    pub(crate) mailer: usize,
    pub(crate) accepted: Vec<Vec<String>>,
}

#[derive(Clone, Default)]
pub(crate) struct Seen {
    pub(crate) visits: Vec<Visit>,
    /// Which mailers named a recipient in RCPT.
    pub(crate) asked: BTreeMap<String, Vec<usize>>,
}

#[derive(Clone, Default)]
pub(crate) struct Receiver(Arc<Mutex<Seen>>);

impl Receiver {
    /// Listens until the test process ends.
    pub(crate) fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let receiver = Self::default();
        let server = receiver.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let session = server.clone();
                // An error is the client's death.
                std::thread::spawn(move || session.converse(stream).ok());
            }
        });
        (receiver, address)
    }

    pub(crate) fn seen(&self) -> Seen {
        self.0.lock().unwrap().clone()
    }

    fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut input = BufReader::new(stream.try_clone()?);
        let (mut visit, mut mailer, mut to) = (None, 0, Vec::new());
        let mut line = String::new();
        stream.write_all(b"220 receiver ESMTP\r\n")?;
        loop {
            line.clear();
            if input.read_line(&mut line)? == 0 || !line.ends_with("\r\n") {
                return Ok(());
            }
            let reply = match line.get(..4).unwrap_or_default() {
                "EHLO" => {
                    mailer = line[5..].trim_start_matches('g').split('.').next().unwrap().parse().unwrap();
                    "250-receiver\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES"
                }
                "MAIL" => {
                    to.clear();
                    "250 2.1.0 ok"
                }
                "RCPT" => {
                    let address = line.split(['<', '>']).nth(1).unwrap();
                    let reply = self.answer(address, mailer);
                    if reply.starts_with('2') {
                        to.push(address.to_owned());
                    }
                    reply
                }
                "DATA" if to.is_empty() => "503 5.5.1 no recipients",
                "DATA" => {
                    stream.write_all(b"354 go on\r\n")?;
                    while line != ".\r\n" {
                        line.clear();
                        if input.read_line(&mut line)? == 0 {
                            return Ok(());
                        }
                    }
                    // A client may die between its dot and the reply. What it was told counts, and what it was not.
                    let mut seen = self.0.lock().unwrap();
                    let number = *visit.get_or_insert_with(|| {
                        seen.visits.push(Visit { mailer, accepted: Vec::new() });
                        seen.visits.len() - 1
                    });
                    seen.visits[number].accepted.push(std::mem::take(&mut to));
                    drop(seen);
                    pause(Duration::from_micros(fastrand::u64(0..2_000)));
                    "250 2.0.0 kept"
                }
                "QUIT" => "221 2.0.0 bye",
                "RSET" | "NOOP" => "250 2.0.0 ok",
                _ => "500 5.5.2 what?",
            };
            stream.write_all(format!("{reply}\r\n").as_bytes())?;
        }
    }

    /// `gone-…` does not exist, `busy2-…` is busy twice.
    fn answer(&self, address: &str, mailer: usize) -> &'static str {
        let mut seen = self.0.lock().unwrap();
        let asked = seen.asked.entry(address.to_owned()).or_default();
        asked.push(mailer);
        let busy =
            address.strip_prefix("busy").and_then(|rest| rest.split('-').next()?.parse::<usize>().ok());
        if address.starts_with("gone-") {
            "550 5.1.1 no such user"
        } else if busy.is_some_and(|times| asked.len() <= times) {
            "450 4.2.0 busy"
        } else {
            "250 2.1.5 ok"
        }
    }
}
