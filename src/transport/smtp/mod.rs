//! SMTP (RFC 5321) over any [`Connector`]. It speaks plain SMTP so far: no TLS yet.
//!
//! A session is one conversation, written top to bottom in `session.rs`; `wire.rs` keeps octets and replies
//! apart from it, `data.rs` and `commands.rs` are what goes out, [`ReplyParser`](crate::reply::ReplyParser) what
//! comes in.

mod commands;
mod connector;
mod data;
mod ehlo;
mod session;
#[cfg(all(test, feature = "testing"))]
mod tests;
mod wire;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::timeout;

pub use connector::{Connector, Stream, TcpConnector};

#[cfg(feature = "testing")]
pub(crate) use self::data::Content;
pub(crate) use self::ehlo::Extensions;
use self::session::SmtpSession;
use self::wire::Wire;
use super::{ConnectError, EndCause, Session, Target, Transport};
use crate::reply::{Reply, Stage};

/// Delivers by SMTP. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SmtpTransport {
    connector: Arc<dyn Connector>,
}

impl SmtpTransport {
    /// Over TCP.
    pub fn new() -> Self {
        Self::over(TcpConnector)
    }

    /// Over connections made by `connector`.
    pub fn over(connector: impl Connector) -> Self {
        Self { connector: Arc::new(connector) }
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
        let at = |stage| move |cause| ConnectError { stage, cause };
        if !commands::is_hello_name(&target.ehlo) {
            let name = target.ehlo.escape_debug();
            let cause =
                EndCause::Local(format!("`{name}` can not stand in EHLO: one word of visible ASCII can"));
            return Err(at(Stage::Ehlo)(cause));
        }
        let limit = target.timeouts.connect;
        let stream = timeout(limit, self.connector.connect(target))
            .await
            .unwrap_or(Err(EndCause::Timeout(limit)))
            .map_err(at(Stage::Connect))?;
        let mut wire = Wire::new(stream);

        let opened = match greeting(&mut wire, target).await {
            Ok(()) => hello(&mut wire, target).await.map_err(at(Stage::Ehlo)),
            Err(cause) => Err(at(Stage::Connect)(cause)),
        };
        match opened {
            Ok(extensions) => Ok(Box::new(SmtpSession::new(wire, extensions, target))),
            Err(error) => {
                // A server that refuses waits for QUIT (RFC 5321 §3.1). Its reply to that tells nothing.
                if matches!(&error.cause, EndCause::Reply(reply) if reply.code() != 421) {
                    wire.send(commands::QUIT, target.timeouts.quit, 1).await;
                }
                Err(error)
            }
        }
    }
}

/// RFC 5321 §3.1: nothing is sent before 220.
async fn greeting(wire: &mut Wire, target: &Target) -> Result<(), EndCause> {
    let reply = wire.reply(target.timeouts.greeting).await?;
    match reply.code() {
        220 => Ok(()),
        _ if is_refusal(&reply) => Err(EndCause::Reply(reply)),
        _ => Err(EndCause::Protocol(excerpt("as a greeting", &reply))),
    }
}

/// EHLO, and HELO where a server does not know it or refuses it for good (RFC 5321 §4.1.4).
async fn hello(wire: &mut Wire, target: &Target) -> Result<Extensions, EndCause> {
    let refused = match say_hello(wire, "EHLO", target).await? {
        reply if reply.is_positive() => return Ok(Extensions::parse(&reply)),
        reply if reply.is_permanent() => reply,
        reply => return Err(EndCause::Reply(reply)),
    };
    match say_hello(wire, "HELO", target).await {
        Ok(reply) if reply.is_positive() => Ok(Extensions::default()),
        Ok(reply) => Err(EndCause::Reply(reply)),
        // It closed after refusing: the refusal says why.
        Err(EndCause::Closed | EndCause::Broken(_)) => Err(EndCause::Reply(refused)),
        Err(cause) => Err(cause),
    }
}

async fn say_hello(wire: &mut Wire, verb: &str, target: &Target) -> Result<Reply, EndCause> {
    wire.check_idle().await?;
    wire.send(&commands::hello(verb, &target.ehlo), target.timeouts.ehlo, 1).await;
    let reply = wire.reply(target.timeouts.ehlo).await?;
    if reply.is_intermediate() { Err(EndCause::Protocol(excerpt(verb, &reply))) } else { Ok(reply) }
}

fn is_refusal(reply: &Reply) -> bool {
    reply.is_transient() || reply.is_permanent()
}

/// A reply out of place, for a message.
fn excerpt(place: &str, reply: &Reply) -> String {
    let text: String = reply.to_string().chars().take(200).collect();
    format!("{place}: {}", text.escape_debug())
}
