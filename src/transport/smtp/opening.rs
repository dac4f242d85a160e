//! How a session comes about: greeting, EHLO, and TLS and AUTH where they are wished for.

use std::sync::Arc;

use super::connector::Stream;
use super::ehlo::Extensions;
use super::memory::Memory;
use super::session::SmtpSession;
use super::tls::{Secured, Tls};
use super::wire::Wire;
use super::{auth, commands, excerpt, is_refusal};
use crate::policy::StartTls;
use crate::reply::{Reply, Stage};
use crate::transport::{ConnectError, EndCause, Protocol, Target};

/// No session came about. The connection is closed.
pub(super) struct Failed {
    pub(super) error: ConnectError,
    /// It was for STARTTLS: without it there may be a session.
    pub(super) by_starttls: bool,
}

/// A step that failed: when, why, whether for STARTTLS, and the connection if the server waits for QUIT on it.
struct Ended {
    failed: Failed,
    wire: Option<Wire>,
}

impl Ended {
    fn at(stage: Stage, cause: EndCause) -> Self {
        let error = ConnectError { stage, cause };
        Self { failed: Failed { error, by_starttls: false }, wire: None }
    }

    fn by_starttls(mut self) -> Self {
        self.failed.by_starttls = true;
        self
    }

    /// A server that refuses waits for QUIT (RFC 5321 §3.1), unless it says that it closes.
    fn refused(mut self, wire: Wire) -> Self {
        let goes_on = match &self.failed.error.cause {
            EndCause::Reply(reply) => reply.code() != 421,
            EndCause::TlsNotOffered
            | EndCause::TlsRefused(_)
            | EndCause::AuthNotOffered
            | EndCause::AuthNeedsTls => true,
            _ => false,
        };
        self.wire = goes_on.then_some(wire);
        self
    }
}

/// Opens a session on a new connection. `level` is the target's, or a weaker one.
pub(super) async fn open(
    stream: Box<dyn Stream>,
    target: &Target,
    level: StartTls,
    tls: &Arc<Tls>,
    memory: &Arc<Memory>,
) -> Result<SmtpSession, Failed> {
    match converse(stream, target, level, tls).await {
        Ok((wire, extensions, secured)) => {
            Ok(SmtpSession::new(wire, extensions, secured, target, memory.clone()))
        }
        Err(Ended { failed, wire }) => {
            if let Some(mut wire) = wire {
                // Its reply to that tells nothing.
                wire.send(commands::QUIT, target.timeouts.quit, 1).await;
            }
            Err(failed)
        }
    }
}

async fn converse(
    stream: Box<dyn Stream>,
    target: &Target,
    level: StartTls,
    tls: &Arc<Tls>,
) -> Result<(Wire, Extensions, Option<Secured>), Ended> {
    let mut secured = None;
    let mut wire = if target.tls.implicit {
        let handshake = tls.handshake(stream, target).await;
        let (stream, what) = handshake.map_err(|cause| Ended::at(Stage::Connect, cause))?;
        secured = Some(what);
        Wire::new(stream)
    } else {
        Wire::new(stream)
    };
    if let Err(cause) = greeting(&mut wire, target).await {
        return Err(Ended::at(Stage::Connect, cause).refused(wire));
    }
    let mut extensions = match hello(&mut wire, target).await {
        Ok(extensions) => extensions,
        Err(cause) => return Err(Ended::at(Stage::Ehlo, cause).refused(wire)),
    };
    if secured.is_none() && level != StartTls::Off {
        if extensions.starttls {
            let (stream, what) = start_tls(wire, target, tls).await?;
            (wire, secured) = (Wire::new(stream), Some(what));
            // RFC 3207 §4.2: what was offered in plain is forgotten.
            extensions = match hello(&mut wire, target).await {
                Ok(extensions) => extensions,
                // In TLS 1.3 the server judges the handshake when the client is through with it.
                Err(cause @ (EndCause::Closed | EndCause::Broken(_))) => {
                    return Err(Ended::at(Stage::Ehlo, cause).by_starttls());
                }
                Err(cause) => return Err(Ended::at(Stage::Ehlo, cause).refused(wire)),
            };
        } else if level != StartTls::Opportunistic {
            return Err(Ended::at(Stage::Ehlo, EndCause::TlsNotOffered).refused(wire));
        }
    }
    if let Some(credentials) = &target.credentials {
        let sendable = secured.is_some() || credentials.unencrypted;
        let authenticated = match sendable {
            true => auth::authenticate(&mut wire, credentials, extensions.auth, target.timeouts.ehlo).await,
            false => Err(EndCause::AuthNeedsTls),
        };
        if let Err(cause) = authenticated {
            return Err(Ended::at(Stage::Auth, cause).refused(wire));
        }
    }
    Ok((wire, extensions, secured))
}

/// STARTTLS and the handshake (RFC 3207 §4): the stream in TLS, and what is to be known of it.
async fn start_tls(
    mut wire: Wire,
    target: &Target,
    tls: &Arc<Tls>,
) -> Result<(Box<dyn Stream>, Secured), Ended> {
    let at = |cause| Ended::at(Stage::Ehlo, cause);
    wire.check_idle().await.map_err(at)?;
    // Nothing may follow it in the same group (RFC 3207 §4).
    wire.send(commands::STARTTLS, target.timeouts.starttls, 1).await;
    let reply = match wire.reply(target.timeouts.starttls).await {
        Ok(reply) => reply,
        Err(cause) => return Err(at(cause).by_starttls()),
    };
    match reply.code() {
        220 => {}
        // It has no time for this session, be it with TLS or without.
        421 => return Err(at(EndCause::Reply(reply))),
        _ if is_refusal(&reply) => return Err(at(EndCause::TlsRefused(reply)).by_starttls().refused(wire)),
        _ => return Err(at(EndCause::Protocol(excerpt("STARTTLS", &reply))).by_starttls()),
    }
    let stream = wire.into_stream().await.map_err(|cause| match cause {
        // Somebody interferes.
        EndCause::Protocol(_) => at(cause),
        cause => at(cause).by_starttls(),
    })?;
    tls.handshake(stream, target).await.map_err(|cause| at(cause).by_starttls())
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

/// EHLO, and HELO where a server does not know it or refuses it for good (RFC 5321 §4.1.4); in LMTP LHLO alone
/// (RFC 2033 §4.1).
async fn hello(wire: &mut Wire, target: &Target) -> Result<Extensions, EndCause> {
    let (verb, is_all) = match target.protocol {
        Protocol::Smtp => ("EHLO", false),
        Protocol::Lmtp => ("LHLO", true),
    };
    let refused = match say_hello(wire, verb, target).await? {
        reply if reply.is_positive() => return Ok(Extensions::parse(&reply)),
        reply if reply.is_permanent() && !is_all => reply,
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
