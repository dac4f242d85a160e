//! An SMTP server for tests.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use super::behaviour::{Behaviour, Command, Exchange, Hook, Rule};
use super::conversation;

/// An SMTP server in the process. It accepts all mail unless told otherwise, keeps what it received and counts.
///
/// Clones are the same server: instructions may be added, and results read, while it runs. Instructions are tried
/// in order, each as often as it says; the hook of [`SmtpServer::on`] comes before them.
///
/// ```
/// use postrider::testing::{Command, SmtpServer};
/// let server = SmtpServer::new()
///     .ehlo(["PIPELINING", "8BITMIME", "SIZE 1000000"])
///     .reply_to_rcpt("bob@example.net", "450 4.2.0 busy").times(2)
///     .reply(Command::Mail, "421 4.3.2 shutting down").on_connection(1).after(10);
/// ```
#[derive(Clone)]
pub struct SmtpServer {
    shared: Arc<Mutex<State>>,
}

/// A message a server accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceivedMessage {
    /// MAIL's path, empty for the null reverse-path.
    pub reverse_path: String,
    /// What followed it, such as `SIZE=100 BODY=8BITMIME`.
    pub mail_parameters: String,
    /// The recipients accepted, in order.
    pub recipients: Vec<String>,
    /// The content, dots undone, without the final dot.
    pub content: Bytes,
    /// The connection's number at this server, from 1.
    pub connection: u64,
    /// The address the client dialled.
    pub address: SocketAddr,
    /// The client's name in EHLO or HELO.
    pub ehlo: String,
    /// TLS version and cipher suite of the connection.
    pub tls: Option<String>,
    /// Whom the client was authenticated as.
    pub username: Option<String>,
}

pub(super) struct State {
    pub(super) name: String,
    pub(super) keywords: Vec<String>,
    /// In place of `keywords` in TLS.
    pub(super) keywords_in_tls: Option<Vec<String>>,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<ServerTls>,
    pub(super) lmtp: bool,
    /// Name and password.
    pub(super) credentials: Option<(String, String)>,
    pub(super) keep: usize,
    hook: Option<Hook>,
    rules: Vec<Rule>,
    messages: Vec<ReceivedMessage>,
    commands: Vec<String>,
    counts: Counts,
}

#[cfg(feature = "tls")]
#[derive(Clone)]
pub(super) struct ServerTls {
    pub(super) config: Arc<rustls::ServerConfig>,
    /// From the first octet.
    pub(super) implicit: bool,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    connections: u64,
    open: u64,
    peak: u64,
    transactions: u64,
    messages: u64,
    deliveries: u64,
    handshakes: u64,
    resumptions: u64,
}

impl Default for SmtpServer {
    fn default() -> Self {
        Self::new()
    }
}

impl SmtpServer {
    /// The longest content taken: 256 MiB. More is answered 552.
    pub const MAX_CONTENT: usize = 256 * 1024 * 1024;
    /// The longest command line taken: 64 KiB. More ends the connection.
    pub const MAX_LINE: usize = 64 * 1024;
    /// The messages and command lines kept unless [`SmtpServer::keep`] says otherwise: 10,000 each.
    pub const KEPT: usize = 10_000;

    /// A server that offers PIPELINING, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES and SIZE without a limit.
    pub fn new() -> Self {
        let keywords = ["PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "SIZE"];
        let state = State {
            name: "mx.test".into(),
            keywords: keywords.map(String::from).into(),
            keywords_in_tls: None,
            #[cfg(feature = "tls")]
            tls: None,
            lmtp: false,
            credentials: None,
            keep: Self::KEPT,
            hook: None,
            rules: Vec::new(),
            messages: Vec::new(),
            commands: Vec::new(),
            counts: Counts::default(),
        };
        Self { shared: Arc::new(Mutex::new(state)) }
    }

    /// Offers these keywords, and no others. With CHUNKING (RFC 3030) it takes BDAT, and after a chunk that it refused, or that was
    /// for nobody, it answers 503 until RSET or QUIT.
    pub fn ehlo<K: Into<String>>(self, keywords: impl IntoIterator<Item = K>) -> Self {
        self.state().keywords = keywords.into_iter().map(Into::into).collect();
        self
    }

    /// Offers these keywords in TLS, and no others; unless this is said, the same as in plain.
    pub fn ehlo_in_tls<K: Into<String>>(self, keywords: impl IntoIterator<Item = K>) -> Self {
        self.state().keywords_in_tls = Some(keywords.into_iter().map(Into::into).collect());
        self
    }

    /// Offers STARTTLS, with this certificate. Clients that do not take the offer are served in plain.
    #[cfg(feature = "tls")]
    pub fn starttls(self, certificate: &super::TestCertificate) -> Self {
        self.state().tls = Some(ServerTls { config: certificate.config(), implicit: false });
        self
    }

    /// Speaks TLS from the first octet, with this certificate.
    #[cfg(feature = "tls")]
    pub fn implicit_tls(self, certificate: &super::TestCertificate) -> Self {
        self.state().tls = Some(ServerTls { config: certificate.config(), implicit: true });
        self
    }

    /// Takes mail only from clients authenticated with these (RFC 4954), by PLAIN or LOGIN, with or without TLS. Offers
    /// both, unless the keywords it is told to offer have AUTH.
    pub fn auth(self, username: impl Into<String>, password: impl Into<String>) -> Self {
        self.state().credentials = Some((username.into(), password.into()));
        self
    }

    /// Speaks LMTP (RFC 2033): LHLO, and a reply to the content for each recipient that was accepted.
    pub fn lmtp(self) -> Self {
        self.state().lmtp = true;
        self
    }

    /// Calls itself so.
    pub fn name(self, name: impl Into<String>) -> Self {
        self.state().name = name.into();
        self
    }

    /// Keeps the first `count` messages and command lines only; the rest are counted. For load.
    pub fn keep(self, count: usize) -> Self {
        self.state().keep = count;
        self
    }

    /// Does this at a command: a reply as text, or any [`Behaviour`].
    pub fn reply(self, command: Command, behaviour: impl Into<Behaviour>) -> Self {
        self.rule(command, None, behaviour.into())
    }

    /// Does this at RCPT of one recipient.
    pub fn reply_to_rcpt(self, recipient: impl Into<String>, behaviour: impl Into<Behaviour>) -> Self {
        self.rule(Command::Rcpt, Some(recipient.into()), behaviour.into())
    }

    /// Does this in LMTP when the content has come for one recipient.
    pub fn reply_to_content_of(self, recipient: impl Into<String>, behaviour: impl Into<Behaviour>) -> Self {
        self.rule(Command::Dot, Some(recipient.into()), behaviour.into())
    }

    /// The last instruction counts this often only.
    pub fn times(self, times: u64) -> Self {
        self.edit_last(|rule| rule.times = times)
    }

    /// The last instruction counts only after it would have this often.
    pub fn after(self, skip: u64) -> Self {
        self.edit_last(|rule| rule.skip = skip)
    }

    /// The last instruction counts for this connection only, numbered from 1.
    pub fn on_connection(self, number: u64) -> Self {
        self.edit_last(|rule| rule.connection = Some(number))
    }

    /// Asks `hook` first what to do; `None` leaves it to the other instructions. Replaces an earlier hook.
    ///
    /// The hook runs under the server's lock: it must not call the server.
    pub fn on(self, hook: impl Fn(&Exchange<'_>) -> Option<Behaviour> + Send + Sync + 'static) -> Self {
        self.state().hook = Some(Arc::new(hook));
        self
    }

    /// Forgets all instructions: the server accepts everything again.
    pub fn clear(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.hook = None;
    }

    /// The messages received and accepted, in order.
    pub fn messages(&self) -> Vec<ReceivedMessage> {
        self.state().messages.clone()
    }

    /// How many messages were accepted.
    pub fn message_count(&self) -> u64 {
        self.state().counts.messages
    }

    /// How many recipients they had together.
    pub fn delivery_count(&self) -> u64 {
        self.state().counts.deliveries
    }

    /// How many MAIL commands were accepted.
    pub fn transactions(&self) -> u64 {
        self.state().counts.transactions
    }

    /// How many connections there ever were.
    pub fn connections(&self) -> u64 {
        self.state().counts.connections
    }

    /// How many connections there are.
    pub fn open_connections(&self) -> u64 {
        self.state().counts.open
    }

    /// The most connections there were at once.
    pub fn peak_connections(&self) -> u64 {
        self.state().counts.peak
    }

    /// How many connections came to have TLS.
    pub fn tls_handshakes(&self) -> u64 {
        self.state().counts.handshakes
    }

    /// How many of these resumed an earlier session.
    pub fn tls_resumptions(&self) -> u64 {
        self.state().counts.resumptions
    }

    /// The command lines received, in order; the final dot as `.`.
    pub fn commands(&self) -> Vec<String> {
        self.state().commands.clone()
    }

    /// Talks to one client until it or the server ends the connection.
    pub async fn talk(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin,
        address: SocketAddr,
        client: Option<IpAddr>,
    ) {
        conversation::run(self, stream, address, client, || {}).await;
    }

    /// Serves connections of a TCP listener, until the future is dropped or accepting fails.
    ///
    /// # Errors
    /// What accepting a connection failed with.
    pub async fn serve(&self, listener: TcpListener) -> io::Result<()> {
        let address = listener.local_addr()?;
        let mut clients = tokio::task::JoinSet::new();
        loop {
            let (stream, client) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let server = self.clone();
            clients.spawn(async move { server.talk(stream, address, Some(client.ip())).await });
            while clients.try_join_next().is_some() {}
        }
    }

    fn rule(self, command: Command, recipient: Option<String>, behaviour: Behaviour) -> Self {
        let rule = Rule { command, recipient, connection: None, skip: 0, times: u64::MAX, behaviour };
        self.state().rules.push(rule);
        self
    }

    fn edit_last(self, edit: impl FnOnce(&mut Rule)) -> Self {
        if let Some(rule) = self.state().rules.last_mut() {
            edit(rule);
        }
        self
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What is offered, besides STARTTLS and AUTH.
    pub(super) fn keywords(&self, in_tls: bool) -> &[String] {
        self.keywords_in_tls.as_ref().filter(|_| in_tls).unwrap_or(&self.keywords)
    }

    pub(super) fn opened(&mut self) -> u64 {
        self.counts.connections += 1;
        self.counts.open += 1;
        self.counts.peak = self.counts.peak.max(self.counts.open);
        self.counts.connections
    }

    pub(super) fn closed(&mut self) {
        self.counts.open -= 1;
    }

    #[cfg(feature = "tls")]
    pub(super) fn shook_hands(&mut self, resumed: bool) {
        self.counts.handshakes += 1;
        self.counts.resumptions += u64::from(resumed);
    }

    pub(super) fn began_transaction(&mut self) {
        self.counts.transactions += 1;
    }

    pub(super) fn heard(&mut self, line: &str) {
        if self.commands.len() < self.keep {
            self.commands.push(line.to_owned());
        }
    }

    pub(super) fn received(&mut self, message: ReceivedMessage) {
        self.counts.messages += 1;
        self.counts.deliveries += message.recipients.len() as u64;
        if self.messages.len() < self.keep {
            self.messages.push(message);
        }
    }

    pub(super) fn behaviour(&mut self, exchange: &Exchange<'_>) -> Option<Behaviour> {
        let hooked = self.hook.as_ref().and_then(|hook| hook(exchange));
        hooked.or_else(|| self.rules.iter_mut().find_map(|rule| rule.apply(exchange)))
    }
}

impl fmt::Debug for SmtpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("SmtpServer")
            .field("name", &state.name)
            .field("rules", &state.rules)
            .finish_non_exhaustive()
    }
}
