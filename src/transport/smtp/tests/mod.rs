//! Tests against scripted servers.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "the helpers of tests")]

mod auth;
mod chunking;
mod content;
#[cfg(feature = "tls")]
mod dane;
mod envelope;
mod faults;
mod injection;
mod lmtp;
mod sessions;
#[cfg(feature = "tls")]
mod tls;
mod wire;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};

use super::*;
use crate::clock::{Clock, Timestamp};
use crate::message::Address;
use crate::testing::{MemoryNetwork, SmtpServer};
use crate::transport::{RecipientReport, SessionEnd, Timeouts, Transaction, TransactionReport};

const ALL: &str = "250-mx.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE\r\n";

fn peer() -> SocketAddr {
    "192.0.2.1:25".parse().unwrap()
}

fn paused<F: Future>(test: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test)
}

fn target() -> Target {
    Target {
        peer: peer(),
        host: "mx.example".into(),
        local: None,
        ehlo: "out.example".into(),
        domain: None,
        queue: "y.example".into(),
        source: "default".into(),
        protocol: crate::transport::Protocol::Smtp,
        tls: crate::transport::TlsWish::default(),
        credentials: None,
        timeouts: Arc::default(),
        mta_sts: None,
        tlsa: None,
    }
}

fn clock() -> Clock {
    Clock::starting_at(Timestamp::EPOCH)
}

fn transaction(to: &[&str], body: impl Into<Bytes>) -> Transaction {
    let body = body.into();
    Transaction {
        message: crate::message::MessageId::from_uuid(uuid::Uuid::nil()),
        queue: "y.example".into(),
        host: "mx.example".into(),
        reverse_path: Some(Address::parse("a@x.example").unwrap()),
        recipients: to.iter().map(|to| Address::parse(to).unwrap()).collect(),
        eight_bit: !body.is_ascii(),
        chunking: false,
        require_tls: false,
        smtputf8: false,
        host_is_authentic: false,
        body,
        dsn: None,
    }
}

fn simple() -> Transaction {
    transaction(&["b@y.example"], "Subject: x\r\n\r\nhi\r\n")
}

/// A session with a modelled server.
async fn session(server: &SmtpServer) -> Box<dyn Session> {
    let network = MemoryNetwork::new();
    network.listen(peer(), server);
    SmtpTransport::over(network).connect(&target()).await.unwrap()
}

/// A connection to a server that is a plain function over a pipe.
async fn connect_to<F>(
    pipe: usize,
    script: impl Fn(Lines) -> F + Send + Sync + 'static,
) -> Result<Box<dyn Session>, ConnectError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let network = MemoryNetwork::new();
    network.pipe_capacity(pipe).script(peer(), move |stream| script(Lines(BufReader::new(stream))));
    SmtpTransport::over(network).connect(&target()).await
}

/// A scripted server's end of a pipe.
struct Lines(BufReader<DuplexStream>);

impl Lines {
    async fn say(&mut self, octets: impl AsRef<[u8]>) {
        // The client may have left.
        let _ = self.0.get_mut().write_all(octets.as_ref()).await;
    }

    /// The next line, without its end; empty when the client has left.
    async fn hear(&mut self) -> String {
        let mut line = Vec::new();
        let _ = self.0.read_until(b'\n', &mut line).await;
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    /// Greeting and EHLO.
    async fn open(&mut self, offers: &str) {
        self.say("220 mx.example\r\n").await;
        assert_eq!(self.hear().await, "EHLO out.example");
        self.say(offers).await;
    }

    /// Reads up to the final dot.
    async fn hear_content(&mut self) {
        let mut line = Vec::new();
        while line != b".\r\n" {
            line.clear();
            if self.0.read_until(b'\n', &mut line).await.unwrap_or(0) == 0 {
                return;
            }
        }
    }

    async fn silence(mut self) {
        let mut discarded = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut self.0, &mut discarded).await;
        std::future::pending().await
    }
}

/// Of the commands a server received.
fn verbs(server: &SmtpServer) -> String {
    let commands = server.commands();
    commands.iter().map(|line| line.split(' ').next().unwrap()).collect::<Vec<_>>().join(" ")
}

fn codes(report: &TransactionReport) -> (Option<u16>, Vec<Option<u16>>, Option<u16>, Option<u16>) {
    let rcpt = |report: &RecipientReport| match report {
        RecipientReport::Reply(reply) => Some(reply.code()),
        _ => None,
    };
    let code = |reply: &Option<Reply>| reply.as_ref().map(Reply::code);
    (code(&report.mail), report.recipients.iter().map(rcpt).collect(), code(&report.data), code(&report.dot))
}

fn end_of(report: &TransactionReport) -> (Stage, &EndCause) {
    let SessionEnd { stage, cause } = report.end.as_ref().unwrap();
    (*stage, cause)
}
