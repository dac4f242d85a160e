//! Talking to receivers: the traits [`Transport`] and [`Session`], and [`SmtpTransport`](smtp::SmtpTransport).

pub mod smtp;

use std::fmt::{Debug, Display};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::dane::TlsaSet;
use crate::message::{Address, Domain, MessageDsn, MessageId, QueueName, RecipientDsn, ReversePath};
use crate::mta_sts::KnownPolicy;
use crate::policy::{Credentials, StartTls};
use crate::reply::{EnhancedStatus, Reply, Stage};

/// Opens sessions with receivers.
///
/// # Cancel safety
///
/// Dropping the future of `connect` closes what was opened.
#[async_trait]
pub trait Transport: Debug + Display + Send + Sync + 'static {
    /// Connects to one address, waits for the greeting and introduces itself (EHLO, else HELO), with the TLS that
    /// [`Target::starttls`], or [`TlsWish::implicit`], and [`Target::certificate_by`] want, and authenticates as
    /// [`Target::credentials`]. At no time is more than one connection open for it.
    ///
    /// # Errors
    /// [`ConnectError`]: no session; everything that was opened is closed.
    async fn connect(&self, target: &Target) -> Result<Box<dyn Session>, ConnectError>;
}

/// An open session with one receiver, ready for transactions (RFC 5321 §3.3), one after the other.
#[async_trait]
pub trait Session: Debug + Send {
    /// One mail transaction. Everything the server said is in the report, also when the session ended.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropped midway, the session must be dropped too, and what the server took is unknown.
    async fn transact(&mut self, transaction: &Transaction) -> TransactionReport;

    /// Waits, between transactions, until the server ends the session.
    ///
    /// # Cancel safety
    /// May be dropped at any time; the session goes on.
    async fn closed(&mut self) -> SessionEnd;

    /// Says QUIT, waits a moment for the reply, closes.
    async fn quit(self: Box<Self>);

    /// TLS version and cipher, if the session has TLS.
    fn tls(&self) -> Option<String> {
        None
    }

    /// The server's certificate, if it was verified, by roots or by the host's TLSA records. Mail for other hosts at the same
    /// address goes over the session only if it is valid for them too; `None`: for no other name.
    fn certificate(&self) -> Option<PeerCertificate> {
        None
    }

    /// What is to be said of the server's certificate for [`Target::host`], in a session that takes any, if
    /// [`Target::tests_certificate`] says that somebody may ask. `None`: it can not be told.
    ///
    /// The engine asks where the mail's domain has an MTA-STS policy: few sessions have to know, and it takes time to find out.
    ///
    /// # Cancel safety
    /// May be dropped at any time, and asked again.
    async fn certificate_verdict(&mut self) -> Option<Result<(), CertificateProblem>> {
        None
    }

    /// Whether the server offers DSN (RFC 3461): [`Transaction::dsn`] is passed on.
    fn passes_on_dsn(&self) -> bool {
        false
    }

    /// What the server takes at most. The engine keeps to it where the policy allows more.
    fn limits(&self) -> SessionLimits {
        SessionLimits::default()
    }
}

/// A certificate that was verified, and the names it is valid for.
#[derive(Clone)]
pub struct PeerCertificate(Arc<dyn Fn(&str) -> bool + Send + Sync>);

impl PeerCertificate {
    /// Valid for the hosts of which `is_valid_for` says so: a function of the name alone.
    pub fn new(is_valid_for: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_valid_for))
    }

    /// Whether it is valid for the host of this name.
    pub fn is_valid_for(&self, host: &str) -> bool {
        (self.0)(host)
    }
}

impl Debug for PeerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerCertificate")
    }
}

/// What a server takes at most in a session (LIMITS, RFC 9422). `None`: it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "transports build it")]
pub struct SessionLimits {
    /// Recipients of a transaction (RCPTMAX).
    pub recipients: Option<NonZeroU32>,
    /// Transactions of the session (MAILMAX, and RCPTDOMAINMAX: each transaction is for one domain).
    pub transactions: Option<NonZeroU32>,
}

fn _obj_safe(_: &dyn Transport, _: &dyn Session) {}

/// Where to connect to, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the engine builds it")]
pub struct Target {
    /// The receiver's address and port.
    pub peer: SocketAddr,
    /// The host name that led there, for records, and for TLS: certificates are verified for it. In brackets: an address.
    pub host: Arc<str>,
    /// The local address to send from; `None`: the system chooses.
    pub local: Option<IpAddr>,
    /// The name in EHLO.
    pub ehlo: Arc<str>,
    /// The domain whose mail wants the connection, for records; `None`: an address literal, or fixed hosts. Mail of other
    /// domains may go over it too.
    pub domain: Option<Domain>,
    /// The queue that wants the connection, for records. Mail of other queues may go over it too.
    pub queue: QueueName,
    /// The source it is sent from.
    pub source: Arc<str>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// The TLS the session is to have, beside what [`Target::tlsa`] demands.
    pub tls: TlsWish,
    /// The host's TLSA records, if it has any that are authentic (RFC 7672): the session has TLS, with a certificate they know.
    pub tlsa: Option<Arc<TlsaSet>>,
    /// Whom to authenticate as before the first transaction (RFC 4954); `None`: not at all.
    pub credentials: Option<Credentials>,
    /// How long to wait for what. The same for all of an engine's connections.
    pub timeouts: Arc<Timeouts>,
    /// The MTA-STS policy of the domain that wants the connection, for records. What it demands is in the other fields.
    pub mta_sts: Option<Arc<KnownPolicy>>,
}

impl Target {
    /// Mail of `x.example`, opportunistic TLS.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self {
            peer: SocketAddr::from(([192, 0, 2, 1], 25)),
            host: "mx.example.net".into(),
            local: None,
            ehlo: "out.example".into(),
            domain: Domain::parse("x.example").ok(),
            queue: "x.example".into(),
            source: "default".into(),
            protocol: Protocol::Smtp,
            tls: TlsWish::default(),
            tlsa: None,
            credentials: None,
            timeouts: Arc::default(),
            mta_sts: None,
        }
    }

    /// Whether the certificate is to be kept though it need not be valid ([`Session::certificate_verdict`]): a domain whose
    /// mail goes over the session may test its MTA-STS policy, and want to know.
    pub fn tests_certificate(&self) -> bool {
        matches!(self.certificate_by(), CertificateBy::Nobody) && self.domain.is_some()
    }

    /// Whether to use STARTTLS: as wished, and never less than required where the host has TLSA records (RFC 7672 §2.2).
    pub fn starttls(&self) -> StartTls {
        match self.tls.level {
            StartTls::Off | StartTls::Opportunistic if self.tlsa.is_some() => StartTls::Required,
            level => level,
        }
    }

    /// Who says that the server's certificate is right. Usable TLSA records do in place of roots.
    pub fn certificate_by(&self) -> CertificateBy<'_> {
        match &self.tlsa {
            Some(set) if set.authenticates() => CertificateBy::Tlsa(set),
            _ if self.tls.is_verified() => CertificateBy::Roots,
            _ => CertificateBy::Nobody,
        }
    }
}

/// Who says that a server's certificate is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a transport must know each")]
pub enum CertificateBy<'a> {
    /// Any certificate will do.
    Nobody,
    /// It must be valid for [`Target::host`] by roots that are trusted.
    Roots,
    /// It must match one of these records.
    Tlsa(&'a Arc<TlsaSet>),
}

/// What is spoken with a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "there are two")]
pub enum Protocol {
    /// RFC 5321.
    #[default]
    Smtp,
    /// RFC 2033: each recipient has a reply of its own to the content.
    Lmtp,
}

/// What TLS a session is to have. Sessions are shared only among those who wish the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "all that can be wished")]
pub struct TlsWish {
    /// Whether by STARTTLS, and how strictly.
    pub level: StartTls,
    /// From the first octet and in any case, in place of STARTTLS. The level says only whether certificates are
    /// verified.
    pub implicit: bool,
}

impl TlsWish {
    /// Whether a session in plain will not do.
    pub const fn is_required(self) -> bool {
        self.implicit || matches!(self.level, StartTls::Required | StartTls::Verify)
    }

    /// Whether the certificate must be valid for the host's name.
    pub const fn is_verified(self) -> bool {
        matches!(self.level, StartTls::Verify)
    }
}

/// How long to wait for each step. The defaults are RFC 5321 §4.5.3.2's, with a shorter wait for the connection
/// and for TLS, of which it does not speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "one field per phase of the RFC")]
pub struct Timeouts {
    /// The TCP connection: 60 s.
    pub connect: Duration,
    /// The greeting: 5 min.
    pub greeting: Duration,
    /// EHLO and HELO, and each step of AUTH: 5 min.
    pub ehlo: Duration,
    /// STARTTLS, and the handshake after it: 1 min each.
    pub starttls: Duration,
    /// MAIL: 5 min.
    pub mail: Duration,
    /// RCPT: 5 min.
    pub rcpt: Duration,
    /// DATA's 354: 2 min.
    pub data: Duration,
    /// Each block of content: 3 min.
    pub data_block: Duration,
    /// The reply to the final dot: 10 min.
    pub dot: Duration,
    /// QUIT: 2 s, after which the connection is closed.
    pub quit: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        Self {
            connect: MINUTE,
            greeting: 5 * MINUTE,
            ehlo: 5 * MINUTE,
            starttls: MINUTE,
            mail: 5 * MINUTE,
            rcpt: 5 * MINUTE,
            data: 2 * MINUTE,
            data_block: 3 * MINUTE,
            dot: 10 * MINUTE,
            quit: Duration::from_secs(2),
        }
    }
}

/// One message for some recipients of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the engine builds it")]
pub struct Transaction {
    /// The message, for records.
    pub message: MessageId,
    /// The queue it lies in, for records.
    pub queue: QueueName,
    /// The host it is for, for records: another than that of the session's target if the session serves several.
    pub host: Arc<str>,
    /// The envelope's sender.
    pub reverse_path: ReversePath,
    /// At least one.
    pub recipients: Vec<Address>,
    /// The content, every line ended by CRLF.
    pub body: Bytes,
    /// The content has octets over 127.
    pub eight_bit: bool,
    /// The content may be sent by BDAT, where the server offers CHUNKING (RFC 3030); else by DATA.
    pub chunking: bool,
    /// To be sent only in a session whose server's certificate was verified, to an authentic host, with REQUIRETLS
    /// (RFC 8689 §4.2.1); else [`Unsendable`].
    pub require_tls: bool,
    /// The content's header has UTF-8 (RFC 6532).
    pub smtputf8: bool,
    /// The host is the receiver's for certain: it was configured, or an MTA-STS policy or DNSSEC says so; and a certificate that was
    /// verified was verified for it.
    pub host_is_authentic: bool,
    /// What is to be reported, if the sender asked for anything (RFC 3461). Told to servers that offer DSN alone.
    pub dsn: Option<Box<TransactionDsn>>,
}

/// What a transaction's sender asks of delivery status notifications.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the engine builds it")]
pub struct TransactionDsn {
    /// Of the message.
    pub message: MessageDsn,
    /// Of each recipient, in their order.
    pub recipients: Vec<RecipientDsn>,
}

/// All that happened in a transaction. What each recipient makes of it is the scheduler's business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "transports build it")]
pub struct TransactionReport {
    /// The reply to MAIL.
    pub mail: Option<Reply>,
    /// The reply to each RCPT, in the order of the recipients; as long as they are.
    pub recipients: Vec<RecipientReport>,
    /// The reply to DATA. BDAT has no reply but that to the chunk.
    pub data: Option<Reply>,
    /// The final dot was sent, at least in part, or the last octet of a chunk (BDAT): the server may have the whole message.
    pub dot_sent: bool,
    /// The reply to the final dot, or to the chunk. In LMTP each recipient has its own: [`RecipientReport::Content`].
    pub dot: Option<Reply>,
    /// The session ended in this transaction, so.
    pub end: Option<SessionEnd>,
}

/// What a recipient was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecipientReport {
    /// No verdict: the server was not asked, or did not answer.
    #[default]
    None,
    /// The server's reply to RCPT.
    Reply(Reply),
    /// Accepted, and in LMTP this was the reply to the content for this recipient (RFC 2033 §4.2).
    Content(Reply),
    /// The transport did not ask, since the server can not take this message for this recipient.
    Unsendable(Unsendable),
}

/// Why a message can not be sent to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unsendable {
    /// Larger than the server's SIZE (RFC 1870).
    TooLarge {
        /// The message's size.
        size: u64,
        /// The server's limit.
        limit: u64,
    },
    /// The content has octets over 127 and the server does not offer 8BITMIME (RFC 6152).
    EightBit,
    /// An address is not ASCII and the server does not offer SMTPUTF8 (RFC 6531).
    Utf8Address,
    /// The header has UTF-8, as its sender says, and the server does not offer SMTPUTF8 (RFC 6531).
    Utf8Header,
    /// The content has a CR or LF that is not part of a CRLF (RFC 5321 §2.3.8). No server is sent such.
    BareLineEnding,
    /// The message requires TLS (RFC 8689), and the session has none, or none that was verified, or nothing but DNS says that
    /// the host is the receiver's.
    HostNotVerified,
    /// The message requires TLS and the server does not offer REQUIRETLS (RFC 8689).
    RequireTlsNotOffered,
}

impl Unsendable {
    /// RFC 3463 status.
    pub const fn status(self) -> EnhancedStatus {
        match self {
            Self::TooLarge { .. } => EnhancedStatus::new(5, 3, 4),
            Self::EightBit => EnhancedStatus::new(5, 6, 3),
            Self::Utf8Address => EnhancedStatus::new(5, 6, 7),
            Self::Utf8Header => EnhancedStatus::new(5, 6, 9),
            Self::BareLineEnding => EnhancedStatus::new(5, 6, 0),
            Self::HostNotVerified => EnhancedStatus::new(5, 7, 10),
            Self::RequireTlsNotOffered => EnhancedStatus::new(5, 7, 30),
        }
    }
}

impl Display for Unsendable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLarge { size, limit } => {
                write!(f, "the message has {size} octets, the server takes at most {limit}")
            }
            Self::EightBit => f.write_str("the content is 8-bit and the server does not offer 8BITMIME"),
            Self::Utf8Address => {
                f.write_str("an address is not ASCII and the server does not offer SMTPUTF8")
            }
            Self::Utf8Header => f.write_str("the header has UTF-8 and the server does not offer SMTPUTF8"),
            Self::BareLineEnding => f.write_str("the content has a bare CR or LF: lines must end in CRLF"),
            Self::HostNotVerified => {
                f.write_str("the message requires TLS to a host that is verified to be the receiver's")
            }
            Self::RequireTlsNotOffered => {
                f.write_str("the message requires TLS and the server does not offer REQUIRETLS")
            }
        }
    }
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
#[allow(clippy::exhaustive_structs, reason = "transports build it")]
pub struct SessionEnd {
    /// During which step.
    pub stage: Stage,
    /// Why.
    pub cause: EndCause,
}

/// Why a session, or the attempt to open one, ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndCause {
    /// The server said so: a reply that ends the session (421), or one that refuses it.
    #[error("the server ended the session: {0}")]
    Reply(Reply),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The connection broke, or could not be made.
    #[error("{0}")]
    Broken(String),
    /// Nothing came in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The server does not speak SMTP.
    #[error("not SMTP: {0}")]
    Protocol(String),
    /// TLS is required and the server does not offer it.
    #[error("TLS is required and the server does not offer STARTTLS")]
    TlsNotOffered,
    /// TLS is required, and the server offers STARTTLS and refuses it with this reply.
    #[error("the server refused STARTTLS: {0}")]
    TlsRefused(Reply),
    /// Credentials are set, and the server offers no mechanism to authenticate by.
    #[error("credentials are set and the server offers AUTH neither by PLAIN nor by LOGIN")]
    AuthNotOffered,
    /// Credentials are set, and are not sent in plain.
    #[error("credentials are set and are not sent without TLS")]
    AuthNeedsTls,
    /// TLS is required and could not be had.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The certificate must be valid, and is not.
    #[error("TLS failed: {1}")]
    Certificate(CertificateProblem, String),
    /// This machine's trouble, not the server's: no such local address, no descriptor left …
    #[error("this machine can not connect: {0}")]
    Local(String),
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// It is for other names.
    OtherHost,
    /// It has run out.
    Expired,
    /// It does not lead to a root that is trusted.
    NotTrusted,
    /// It matches none of the host's TLSA records.
    TlsaMismatch,
    /// Anything else.
    Invalid,
}

/// No session came about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
#[allow(clippy::exhaustive_structs, reason = "transports build it")]
pub struct ConnectError {
    /// During which step.
    pub stage: Stage,
    /// Why.
    pub cause: EndCause,
}
