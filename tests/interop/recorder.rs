//! An SMTP server that keeps what it is given, octet for octet.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A message as it came, dots un-stuffed.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    /// The arguments of MAIL.
    pub(crate) mail: String,
    /// The recipients that were accepted, without brackets.
    pub(crate) to: Vec<String>,
    pub(crate) body: Vec<u8>,
}

/// What to answer to a command line, `.` being the end of the content; `None`: as usual.
type Script = dyn Fn(&str) -> Option<String> + Send + Sync;

/// Listens until the test process ends.
#[derive(Clone)]
pub(crate) struct Recorder(Arc<Inner>);

struct Inner {
    script: Box<Script>,
    taken: Mutex<Vec<Taken>>,
    /// Command lines, and anything that no client may send.
    heard: Mutex<Vec<String>>,
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
        let listener = TcpListener::bind(address).unwrap();
        let recorder = Self(Arc::new(Inner {
            script: Box::new(script),
            taken: Mutex::default(),
            heard: Mutex::default(),
        }));
        let server = recorder.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let session = server.clone();
                // An error is the client's going away, which is its right.
                std::thread::spawn(move || session.0.converse(stream).ok());
            }
        });
        recorder
    }

    pub(crate) fn taken(&self) -> Vec<Taken> {
        self.0.taken.lock().unwrap().clone()
    }

    /// Everything said to this server, one command a line.
    pub(crate) fn heard(&self) -> Vec<String> {
        self.0.heard.lock().unwrap().clone()
    }
}

impl Inner {
    fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut input = BufReader::new(stream.try_clone()?);
        let (mut mail, mut to) = (String::new(), Vec::new());
        stream.write_all(b"220 recorder ESMTP\r\n")?;
        loop {
            let mut octets = Vec::new();
            if input.read_until(b'\n', &mut octets)? == 0 {
                return Ok(());
            }
            let line = String::from_utf8_lossy(&octets);
            let Some(line) = line.strip_suffix("\r\n") else {
                self.heard.lock().unwrap().push(format!("NOT A LINE: {line:?}"));
                return Ok(());
            };
            self.heard.lock().unwrap().push(line.to_owned());
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
            let mut reply = (self.script)(line).unwrap_or_else(|| usual.to_owned());
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
                    stream.write_all(format!("{reply}\r\n").as_bytes())?;
                    let body = self.content(&mut input)?;
                    reply = (self.script)(".").unwrap_or_else(|| "250 2.0.0 kept".to_owned());
                    if reply.starts_with('2') {
                        let taken = Taken { mail: mail.clone(), to: to.clone(), body };
                        self.taken.lock().unwrap().push(taken);
                    }
                    to.clear();
                }
                _ => {}
            }
            stream.write_all(format!("{reply}\r\n").as_bytes())?;
            if verb == "QUIT" || reply.starts_with("421") {
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
                self.heard.lock().unwrap().push("BARE LF IN CONTENT".to_owned());
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
