//! SMTP (RFC 5321) over any [`Connector`], with TLS (RFC 3207, RFC 8314) as the target wishes.
//!
//! How a session comes about is written top to bottom in `opening.rs`, what is said in it in `session.rs`, `memory.rs` keeps what the next ones are to know; `wire.rs` keeps octets and replies
//! apart from it, `data.rs` and `commands.rs` are what goes out, [`ReplyParser`](crate::reply::ReplyParser) what
//! comes in.

mod auth;
mod commands;
mod connector;
#[cfg(feature = "tls")]
mod dane;
mod data;
mod ehlo;
mod memory;
mod opening;
mod session;
#[cfg(all(test, feature = "testing"))]
mod tests;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
mod tls;
#[cfg(feature = "tls")]
pub(crate) mod tls;
mod wire;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::timeout;

pub use connector::{Connector, Stream, TcpConnector};
#[cfg(feature = "tls")]
pub use tls::RootsError;

use self::memory::Memory;
use self::opening::{Failed, open};
use self::session::SmtpSession;
use self::tls::Tls;
#[cfg(feature = "testing")]
pub(crate) use self::{data::Content, ehlo::Extensions};
use super::{ConnectError, EndCause, Session, Target, Transport};
use crate::policy::StartTls;
use crate::reply::{Reply, Stage};

/// Delivers by SMTP. Cheap to clone; clones remember the same.
///
/// # TLS
///
/// TLS 1.2 and 1.3, as [`Target::tls`] wishes. Opportunistic TLS takes any certificate. Where a server refuses
/// STARTTLS, or the handshake fails, it closes the connection and opens one in plain to the same address. If that
/// comes to a session, the next sessions with this host at this address are in plain at once, for an hour; 1,024 such
/// are remembered. Required TLS never goes out in plain; the host is given up with [`EndCause::TlsNotOffered`],
/// [`EndCause::TlsRefused`] or [`EndCause::Tls`].
///
/// Verified certificates must be valid for [`Target::host`] by the platform's roots, or by those of
/// `with_root_certificates`. Sessions are resumed where the server gives tickets; those of 1,024 names are kept.
///
/// # DANE
///
/// With [`Target::tlsa`] TLS is required, the server is told the TLSA base domain (SNI, RFC 7672 §8.1), and if a record is
/// usable its certificate must match one, in place of being valid by any roots (RFC 7672 §3):
///
/// - DANE-EE: the certificate, or its key, is the one. Names, dates and who has signed it do not count.
/// - DANE-TA: it is signed, maybe through others that the server sends, by the certificate or key that the record names, and
///   valid now for one of [`TlsaSet::names`](crate::dane::TlsaSet::names). The certificate that signs is one that the server
///   sends, beside its own, or in the record itself; a key in full need not come with a certificate at all. As with any trust anchor,
///   its own dates do not count.
///
/// Else the host is given up with [`EndCause::Certificate`]. Such sessions are not resumed: each proves anew what is demanded now.
///
/// # AUTH
///
/// With [`Target::credentials`] a session is authenticated after EHLO (RFC 4954): by PLAIN (RFC 4616), or by LOGIN where
/// PLAIN is not offered. Without TLS they are sent only if [`Credentials::unencrypted`](crate::policy::Credentials::unencrypted)
/// says so; else no connection goes on in plain where opportunistic TLS fails. A session that can not be authenticated
/// is given up with [`EndCause::AuthNotOffered`], [`EndCause::AuthNeedsTls`] or the server's own reply.
///
/// # BDAT
///
/// With [`Transaction::chunking`](super::Transaction::chunking), and a server that offers CHUNKING (RFC 3030), content goes as one
/// chunk, once a recipient was accepted. A server that answers 500, 502, 503 or with the status 5.5.1 does not do it: the session ends with [`EndCause::Protocol`], and
/// for a week this host at this address is sent DATA; 1,024 such are remembered.
#[derive(Clone, Debug)]
pub struct SmtpTransport {
    connector: Arc<dyn Connector>,
    tls: Arc<Tls>,
    memory: Arc<Memory>,
}

impl SmtpTransport {
    /// Over TCP.
    pub fn new() -> Self {
        Self::over(TcpConnector)
    }

    /// Over connections made by `connector`.
    pub fn over(connector: impl Connector) -> Self {
        Self { connector: Arc::new(connector), tls: Arc::default(), memory: Arc::default() }
    }

    /// Verifies certificates by these roots, in PEM, in place of the platform's. What was remembered of sessions
    /// before is forgotten.
    ///
    /// A server's own certificate may be its root, unless it is marked as one that signs others (`CA:TRUE`, as
    /// `openssl req -x509` makes them): that is none for a server.
    ///
    /// # Errors
    /// [`RootsError`], when one is no certificate, or there is none.
    #[cfg(feature = "tls")]
    pub fn with_root_certificates(mut self, pem: impl AsRef<[u8]>) -> Result<Self, RootsError> {
        self.tls = Arc::new(Tls::with_roots(pem.as_ref())?);
        Ok(self)
    }

    /// Connects and opens a session.
    async fn open(&self, target: &Target, level: StartTls) -> Result<SmtpSession, Failed> {
        let limit = target.timeouts.connect;
        let stream = timeout(limit, self.connector.connect(target)).await;
        match stream.unwrap_or(Err(EndCause::Timeout(limit))) {
            Ok(stream) => open(stream, target, level, &self.tls, &self.memory).await,
            Err(cause) => {
                let error = ConnectError { stage: Stage::Connect, cause };
                Err(Failed { error, by_starttls: false })
            }
        }
    }
}

impl Default for SmtpTransport {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for SmtpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("smtp")
    }
}

#[async_trait]
impl Transport for SmtpTransport {
    async fn connect(&self, target: &Target) -> Result<Box<dyn Session>, ConnectError> {
        if !commands::is_hello_name(&target.ehlo) {
            let name = target.ehlo.escape_debug();
            let cause =
                EndCause::Local(format!("`{name}` can not stand in EHLO: one word of visible ASCII can"));
            return Err(ConnectError { stage: Stage::Ehlo, cause });
        }
        let wished = target.starttls();
        let may_be_plain = wished == StartTls::Opportunistic
            && !target.tls.implicit
            && target.credentials.as_ref().is_none_or(|credentials| credentials.unencrypted);
        let in_plain = &self.memory.in_plain;
        let known = may_be_plain && in_plain.has(&target.host, target.peer);
        let level = if known { StartTls::Off } else { wished };
        match self.open(target, level).await {
            Ok(session) if level != wished => Ok(Box::new(session.in_plain_for_want_of_tls())),
            Ok(session) => Ok(Box::new(session)),
            Err(failed) if failed.by_starttls && may_be_plain => {
                // The first connection is closed.
                let session = self.open(target, StartTls::Off).await.map_err(|failed| failed.error)?;
                // Now it is known that TLS was the trouble, and not the host.
                in_plain.add(&target.host, target.peer);
                Ok(Box::new(session.in_plain_for_want_of_tls()))
            }
            Err(failed) => Err(failed.error),
        }
    }
}

fn is_refusal(reply: &Reply) -> bool {
    reply.is_transient() || reply.is_permanent()
}

/// A reply out of place, for a message.
fn excerpt(place: &str, reply: &Reply) -> String {
    let text: String = reply.to_string().chars().take(200).collect();
    format!("{place}: {}", text.escape_debug())
}
