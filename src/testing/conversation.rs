//! The server's side of one connection.
//!
//! Written apart from the client's code, so that the two check each other: strict about CRLF, about the order of
//! commands, about the final dot and about the octets of a chunk. What it does with content is in `conversation/content.rs`.

mod content;

use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, BytesMut};
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::base64::decode;
use super::behaviour::{Behaviour, Command, Exchange};
use super::pipe::Pipe;
use super::server::SmtpServer;

/// Talks until one side ends. `reset` is called before the stream is dropped when it shall look broken.
pub(super) async fn run(
    server: &SmtpServer,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin,
    address: SocketAddr,
    client: Option<IpAddr>,
    reset: impl FnOnce(),
) {
    let number = server.state().opened();
    let _open = Open(server);
    let mut conversation = Conversation {
        server,
        stream: Pipe::Plain(stream),
        input: BytesMut::new(),
        output: Vec::new(),
        number,
        address,
        client,
        ehlo: String::new(),
        tls: None,
        username: None,
        envelope: None,
        spoilt: false,
        transactions: 0,
        closing: false,
    };
    let end = conversation.run().await;
    let _ = conversation.flush().await;
    match end {
        Some(End::Reset) => reset(),
        Some(End::Silence) => conversation.listen().await,
        // Only TLS has a goodbye of its own.
        Some(End::Close) if conversation.tls.is_some() => _ = conversation.stream.shutdown().await,
        Some(End::Close) | None => {}
    }
}

struct Open<'a>(&'a SmtpServer);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.state().closed();
    }
}

struct Conversation<'a, S> {
    server: &'a SmtpServer,
    stream: Pipe<S>,
    input: BytesMut,
    output: Vec<u8>,
    number: u64,
    address: SocketAddr,
    client: Option<IpAddr>,
    ehlo: String,
    /// Version and cipher suite.
    tls: Option<String>,
    /// Whom the client is authenticated as.
    username: Option<String>,
    envelope: Option<Envelope>,
    /// A chunk was refused, and RSET has not come yet.
    spoilt: bool,
    transactions: u64,
    /// The connection ends after this command.
    closing: bool,
}

#[derive(Default)]
struct Envelope {
    reverse_path: String,
    parameters: String,
    recipients: Vec<String>,
    /// Of chunks before the last; `None`: more than the server takes.
    chunks: Option<BytesMut>,
}

enum End {
    Close,
    Reset,
    Silence,
}

/// `None` as an end: the client left.
type Step<T> = Result<T, Option<End>>;

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Conversation<'_, S> {
    async fn run(&mut self) -> Option<End> {
        #[cfg(feature = "tls")]
        {
            let tls = self.server.state().tls.clone();
            if let Some(tls) = tls.filter(|tls| tls.implicit)
                && let Err(end) = self.shake_hands(tls.config).await
            {
                return end;
            }
        }
        let greeting = format!("220 {} ESMTP", self.server.state().name);
        match self.answer(Command::Connect, "", None, greeting).await {
            Ok(true) => {}
            Ok(false) => return self.refused_client().await,
            Err(end) => return end,
        }
        while !self.closing {
            if let Err(end) = self.command().await {
                return end;
            }
        }
        Some(End::Close)
    }

    /// RFC 5321 §3.1: after refusing a client, wait for its QUIT.
    async fn refused_client(&mut self) -> Option<End> {
        while !self.closing {
            match self.line().await {
                Ok(line) if verb(&line) == Command::Quit => {
                    self.say("221 2.0.0 bye");
                    return Some(End::Close);
                }
                Ok(_) => self.say("503 5.5.1 no service here"),
                Err(end) => return end,
            }
        }
        Some(End::Close)
    }

    async fn command(&mut self) -> Step<()> {
        let line = self.line().await?;
        self.server.state().heard(&line);
        let is_lmtp = self.server.state().lmtp;
        let command = match verb(&line) {
            Command::Ehlo | Command::Helo if is_lmtp => Command::Other,
            Command::Other if is_lmtp && line.to_ascii_uppercase().starts_with("LHLO ") => Command::Ehlo,
            Command::Bdat if !self.offers_chunking() => Command::Other,
            command => command,
        };
        // What a refused chunk leaves is not known (RFC 3030 §2): a strict server wants RSET.
        if self.spoilt && !matches!(command, Command::Rset | Command::Quit | Command::Bdat) {
            self.say("503 5.5.1 RSET first: a chunk was refused");
            return Ok(());
        }
        match command {
            Command::Ehlo | Command::Helo => {
                let reply = self.hello(command);
                self.ehlo = line.split_once(' ').map(|(_, name)| name.to_owned()).unwrap_or_default();
                self.envelope = None;
                self.answer(command, &line, None, reply).await?;
            }
            Command::StartTls => self.start_tls(&line).await?,
            Command::Auth => self.auth(line).await?,
            Command::Mail => self.mail(&line).await?,
            Command::Rcpt => self.rcpt(&line).await?,
            Command::Data => self.data(&line).await?,
            Command::Bdat => self.bdat(&line).await?,
            Command::Rset => {
                if self.answer(command, &line, None, "250 2.0.0 reset".into()).await? {
                    (self.envelope, self.spoilt) = (None, false);
                }
            }
            Command::Quit => {
                self.answer(command, &line, None, "221 2.0.0 bye".into()).await?;
                return Err(Some(End::Close));
            }
            Command::Noop => _ = self.answer(command, &line, None, "250 2.0.0 ok".into()).await?,
            _ => _ = self.answer(command, &line, None, "500 5.5.2 command unknown".into()).await?,
        }
        Ok(())
    }

    fn hello(&self, command: Command) -> String {
        let offered = self.tls.is_none() && self.config().is_some();
        let state = self.server.state();
        let keywords = state.keywords(self.tls.is_some()).iter().map(String::as_str);
        let has_auth = keywords.clone().any(|keyword| keyword.starts_with("AUTH"));
        let auth = (state.credentials.is_some() && !has_auth).then_some("AUTH PLAIN LOGIN");
        let keywords = keywords.chain(offered.then_some("STARTTLS")).chain(auth);
        let mut words = vec![state.name.as_str()];
        words.extend(keywords.filter(|_| command == Command::Ehlo));
        let last = words.len() - 1;
        let lines = words.iter().enumerate();
        lines.map(|(i, word)| format!("250{}{word}\n", if i < last { '-' } else { ' ' })).collect()
    }

    fn offers_chunking(&self) -> bool {
        let state = self.server.state();
        state.keywords(self.tls.is_some()).iter().any(|keyword| keyword.eq_ignore_ascii_case("CHUNKING"))
    }

    async fn start_tls(&mut self, line: &str) -> Step<()> {
        let reply = match self.config() {
            Some(_) if self.tls.is_none() => "220 2.0.0 go ahead",
            _ => "502 5.5.1 not offered",
        };
        let accepted = self.answer(Command::StartTls, line, None, reply.into()).await?;
        #[cfg(feature = "tls")]
        if let (true, false, Some(config)) = (accepted, self.closing, self.config()) {
            self.flush().await.map_err(|_| None)?;
            if !self.input.is_empty() {
                // Nothing may be sent behind STARTTLS (RFC 3207 §4).
                return Err(Some(End::Close));
            }
            self.shake_hands(config).await?;
        }
        let _ = accepted;
        Ok(())
    }

    #[cfg(feature = "tls")]
    async fn shake_hands(&mut self, config: std::sync::Arc<rustls::ServerConfig>) -> Step<()> {
        let (tls, resumed) = self.stream.accept(config).await.map_err(|_| None)?;
        self.server.state().shook_hands(resumed);
        self.tls = Some(tls);
        (self.ehlo, self.username, self.envelope) = (String::new(), None, None);
        Ok(())
    }

    /// How to make the handshake that STARTTLS offers.
    #[cfg(feature = "tls")]
    fn config(&self) -> Option<std::sync::Arc<rustls::ServerConfig>> {
        self.server.state().tls.as_ref().filter(|tls| !tls.implicit).map(|tls| tls.config.clone())
    }

    #[cfg(not(feature = "tls"))]
    fn config(&self) -> Option<()> {
        None
    }

    async fn auth(&mut self, mut line: String) -> Step<()> {
        let credentials = self.server.state().credentials.clone();
        let mut words = line.split(' ').skip(1).map(str::to_owned);
        let mechanism = words.next().unwrap_or_default().to_ascii_uppercase();
        let mut responses: Vec<String> = words.collect();
        let challenges: &[&str] = match &*mechanism {
            "PLAIN" => &["334 "],
            // `Username:` and `Password:`.
            "LOGIN" => &["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6"],
            _ => &[],
        };
        let refusal = match &credentials {
            None => Some("502 5.5.1 not offered"),
            Some(_) if self.username.is_some() => Some("503 5.5.1 authenticated already"),
            Some(_) if challenges.is_empty() => Some("504 5.5.4 mechanism unknown"),
            Some(_) => None,
        };
        if let Some(refusal) = refusal {
            self.answer(Command::Auth, &line, None, refusal.into()).await?;
            return Ok(());
        }
        for challenge in challenges.iter().skip(responses.len()) {
            if !self.answer(Command::Auth, &line, None, (*challenge).into()).await? {
                return Ok(());
            }
            line = self.line().await?;
            self.server.state().heard(&line);
            responses.push(line.clone());
        }
        let said = credentials_of(&responses);
        let reply = match &said {
            _ if said.is_some() && said == credentials => "235 2.7.0 welcome",
            Some(_) => "535 5.7.8 name or password is wrong",
            None => "501 5.5.2 not Base64",
        };
        if self.answer(Command::Auth, &line, None, reply.into()).await? {
            self.username = said.map(|(username, _)| username);
        }
        Ok(())
    }

    async fn mail(&mut self, line: &str) -> Step<()> {
        let needs_auth = self.server.state().credentials.is_some() && self.username.is_none();
        let reply = match (path(line, "MAIL FROM:"), &self.envelope) {
            _ if needs_auth => "530 5.7.0 authentication required",
            (None, _) => "501 5.5.4 MAIL FROM:<path> it is",
            (_, Some(_)) => "503 5.5.1 nested MAIL",
            (Some(_), None) => "250 2.1.0 ok",
        };
        if self.answer(Command::Mail, line, None, reply.into()).await? && self.envelope.is_none() {
            let (reverse_path, parameters) = path(line, "MAIL FROM:").unwrap_or_default();
            self.server.state().began_transaction();
            self.transactions += 1;
            self.envelope = Some(Envelope {
                reverse_path: reverse_path.into(),
                parameters: parameters.into(),
                recipients: Vec::new(),
                chunks: Some(BytesMut::new()),
            });
        }
        Ok(())
    }

    async fn rcpt(&mut self, line: &str) -> Step<()> {
        let recipient = path(line, "RCPT TO:").map(|(recipient, _)| recipient);
        let reply = match (recipient, &self.envelope) {
            (None, _) => "501 5.5.4 RCPT TO:<path> it is",
            (_, None) => "503 5.5.1 MAIL first",
            (Some(_), Some(_)) => "250 2.1.5 ok",
        };
        let accepted = self.answer(Command::Rcpt, line, recipient, reply.into()).await?;
        if let (true, Some(recipient), Some(envelope)) = (accepted, recipient, &mut self.envelope) {
            envelope.recipients.push(recipient.to_owned());
        }
        Ok(())
    }

    /// Answers as instructed, else with `normal`. Returns whether that accepts, as saying nothing does.
    async fn answer(
        &mut self,
        command: Command,
        line: &str,
        recipient: Option<&str>,
        normal: String,
    ) -> Step<bool> {
        let envelope = self.envelope.as_ref();
        let exchange = Exchange {
            command,
            line,
            connection: self.number,
            address: self.address,
            client: self.client,
            ehlo: &self.ehlo,
            reverse_path: envelope.map_or("", |envelope| &envelope.reverse_path),
            recipients: envelope.map_or(&[], |envelope| &envelope.recipients),
            recipient,
            transactions: self.transactions,
        };
        let accepts = match command {
            Command::Data => '3',
            Command::Auth if normal.starts_with('3') => '3',
            _ => '2',
        };
        let mut behaviour = self.server.state().behaviour(&exchange);
        loop {
            let (wait, then) = match behaviour {
                Some(Behaviour::Delay(wait, then)) => (wait, Some(*then)),
                Some(Behaviour::Slow(wait)) => (wait, None),
                settled => {
                    behaviour = settled;
                    break;
                }
            };
            self.flush().await.map_err(|_| None)?;
            pause(wait).await;
            behaviour = then;
        }
        match behaviour {
            None => Ok(self.reply(accepts, &normal)),
            Some(Behaviour::Reply(reply)) => {
                // RFC 5321 §3.8: 421 announces that the server closes.
                self.closing = reply.starts_with("421");
                Ok(self.reply(accepts, &reply))
            }
            Some(Behaviour::ReplyAndClose(reply)) => {
                self.closing = true;
                Ok(self.reply(accepts, &reply))
            }
            Some(Behaviour::Trickle(reply, wait)) => {
                self.closing = reply.starts_with("421");
                self.flush().await.map_err(|_| None)?;
                let accepted = self.reply(accepts, &reply);
                for octet in std::mem::take(&mut self.output) {
                    pause(wait).await;
                    self.output.push(octet);
                    self.flush().await.map_err(|_| None)?;
                }
                Ok(accepted)
            }
            Some(Behaviour::LoseReply) => {
                self.closing = true;
                Ok(true)
            }
            Some(Behaviour::Raw(octets)) => {
                self.output.extend_from_slice(&octets);
                Ok(false)
            }
            Some(Behaviour::Reset) => Err(Some(End::Reset)),
            Some(Behaviour::Silence) => Err(Some(End::Silence)),
            Some(Behaviour::Close | Behaviour::Delay(..) | Behaviour::Slow(_)) => Err(Some(End::Close)),
        }
    }

    fn reply(&mut self, accepts: char, reply: &str) -> bool {
        self.say(reply);
        reply.is_empty() || reply.starts_with(accepts)
    }

    fn say(&mut self, reply: &str) {
        for line in reply.lines() {
            self.output.extend_from_slice(line.as_bytes());
            self.output.extend_from_slice(b"\r\n");
        }
    }

    /// The next command line. Replies go out before the server waits, and not earlier: to a group of commands the
    /// replies come together (RFC 2920 §3.2).
    async fn line(&mut self) -> Step<String> {
        loop {
            if let Some(end) = memmem::find(&self.input, b"\r\n") {
                let line = String::from_utf8_lossy(&self.input.split_to(end)).into_owned();
                self.input.advance(2);
                return Ok(line);
            }
            if self.input.len() > SmtpServer::MAX_LINE {
                self.say("500 5.5.6 line too long");
                return Err(Some(End::Close));
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Step<()> {
        self.flush().await.map_err(|_| None)?;
        self.input.reserve(4096);
        match self.stream.read_buf(&mut self.input).await {
            Ok(0) | Err(_) => Err(None),
            Ok(_) => Ok(()),
        }
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        if !self.output.is_empty() {
            self.stream.write_all(&self.output).await?;
            self.output.clear();
            self.stream.flush().await?;
        }
        Ok(())
    }

    /// Reads until the client leaves.
    async fn listen(&mut self) {
        while self.read().await.is_ok() {
            self.input.clear();
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a test server's delays; on paused time they cost nothing")]
pub(super) async fn pause(wait: std::time::Duration) {
    tokio::time::sleep(wait).await;
}

/// Name and password, from the responses of PLAIN (RFC 4616) or LOGIN.
fn credentials_of(responses: &[String]) -> Option<(String, String)> {
    let text = |response: &String| String::from_utf8(decode(response)?).ok();
    match responses {
        [plain] => {
            let plain = text(plain)?;
            let (name, password) = plain.strip_prefix('\0')?.split_once('\0')?;
            Some((name.to_owned(), password.to_owned()))
        }
        [name, password] => Some((text(name)?, text(password)?)),
        _ => None,
    }
}

fn verb(line: &str) -> Command {
    match line.split(' ').next().unwrap_or_default().to_ascii_uppercase().as_str() {
        "EHLO" => Command::Ehlo,
        "HELO" => Command::Helo,
        "STARTTLS" => Command::StartTls,
        "AUTH" => Command::Auth,
        "MAIL" => Command::Mail,
        "RCPT" => Command::Rcpt,
        "DATA" => Command::Data,
        "BDAT" => Command::Bdat,
        "RSET" => Command::Rset,
        "NOOP" => Command::Noop,
        "QUIT" => Command::Quit,
        _ => Command::Other,
    }
}

/// The path in brackets after `prefix`, and the parameters after it.
fn path<'a>(line: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    let (start, rest) = line.split_at_checked(prefix.len())?;
    let (path, parameters) = rest.strip_prefix('<')?.split_once('>')?;
    start.eq_ignore_ascii_case(prefix).then_some((path, parameters.trim_start()))
}
