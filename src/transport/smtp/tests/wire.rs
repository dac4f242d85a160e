//! What came before it was asked for, and what came before a connection broke.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::wire::Wire;
use super::*;

/// What one read of a connection takes at most.
const READ: usize = 4_096;

/// A reply that fills one read, so that what follows is not among what is read with it.
fn filling(code: u16) -> String {
    let end = format!("{code} mx.example\r\n");
    let mut text = String::new();
    while text.len() + end.len() < READ {
        let left = READ - text.len() - end.len();
        let line = if left > 160 { 80 } else { left };
        text += &format!("{code}-{}\r\n", "x".repeat(line - 6));
    }
    text + &end
}

/// A server that says more than it was asked for at one step, apart from its reply.
async fn serve(mut lines: Lines, step: usize, heard: Arc<Mutex<Vec<String>>>) {
    let steps = [220, 250, 250, 250, 354];
    for (at, code) in steps.into_iter().enumerate() {
        if at > 0 {
            let line = lines.hear().await;
            let verb = line.split(' ').next().unwrap_or_default().to_owned();
            heard.lock().unwrap().push(verb);
        }
        let reply =
            if at == step { filling(code) + "250 unasked\r\n" } else { format!("{code} mx.example\r\n") };
        lines.say(reply).await;
    }
    lines.silence().await;
}

/// RFC 5321 §4.2: a reply answers a command. One that came before is never taken for that of the next, which is not even sent.
#[tokio::test(start_paused = true)]
async fn no_command_is_sent_after_a_reply_that_nobody_asked_for() {
    assert_eq!((filling(220).len(), filling(354).len()), (READ, READ));
    for (step, expected) in
        [(0, &[][..]), (1, &["EHLO"]), (2, &["EHLO", "MAIL"]), (3, &["EHLO", "MAIL", "RCPT"])]
    {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let said = heard.clone();
        let cause = match connect_to(64 * 1024, move |lines| serve(lines, step, said.clone())).await {
            Ok(mut session) => end_of(&session.transact(&simple()).await).1.clone(),
            Err(error) => error.cause,
        };
        let words = "not SMTP: unsolicited reply: 250 unasked";
        assert_eq!(cause.to_string(), words, "{step}");
        tokio::task::yield_now().await;
        let mut heard = heard.lock().unwrap().clone();
        heard.retain(|verb| !verb.is_empty());
        assert_eq!(heard, expected, "{step}");
    }
}

#[cfg(feature = "tls")]
#[tokio::test(start_paused = true)]
async fn starttls_is_not_sent_after_a_reply_that_nobody_asked_for() {
    let network = MemoryNetwork::new();
    network.pipe_capacity(64 * 1024).script(peer(), |stream| async move {
        let mut lines = Lines(BufReader::new(stream));
        let offer = "250-mx.example\r\n250-STARTTLS\r\n";
        // In place of as much of the first lines.
        let lines_left = filling(250).split_off(offer.len());
        let rest = format!("250-{}", lines_left.get(4..).unwrap_or_default());
        lines.open(&format!("{offer}{rest}220 go\r\n")).await;
        assert_eq!(lines.hear().await, "", "nothing follows");
    });
    let tls = crate::transport::TlsWish { level: StartTls::Required, implicit: false };
    let error = SmtpTransport::over(network).connect(&Target { tls, ..target() }).await.unwrap_err();
    assert_eq!(error.to_string(), "not SMTP: unsolicited reply: 220 go");
}

/// A connection that gives these octets, one piece a read, and takes so many; then it is broken, or silent.
struct Piecewise {
    pieces: VecDeque<&'static [u8]>,
    takes: usize,
    ends: bool,
}

impl AsyncRead for Piecewise {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.pieces.pop_front() {
            Some(piece) => to.put_slice(piece),
            None if self.ends => {}
            None => return Poll::Pending,
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Piecewise {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let taken = octets.len().min(self.takes);
        self.takes -= taken;
        Poll::Ready(if taken > 0 { Ok(taken) } else { Err(io::ErrorKind::BrokenPipe.into()) })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn wire(pieces: &[&'static str], takes: usize, ends: bool) -> Wire {
    Wire::new(Box::new(Piecewise {
        pieces: pieces.iter().map(|piece| piece.as_bytes()).collect(),
        takes,
        ends,
    }))
}

const LIMIT: Duration = Duration::from_secs(300);

#[tokio::test(start_paused = true)]
async fn idle_is_who_has_said_nothing() {
    for (pieces, ends, expected, seconds) in [
        (&[][..], false, None, 0),
        (&[], true, Some("the server closed the connection"), 0),
        (&["250 a\r\n"], false, Some("not SMTP: unsolicited reply: 250 a"), 0),
        (&["250-a\r\n", "250 b\r\n"], false, Some("not SMTP: unsolicited reply: 250 a b"), 0),
        (&["421 4.3.2 bye\r\n"], false, Some("the server ended the session: 421 4.3.2 bye"), 0),
        (&["2"], false, Some("not SMTP: half of an unsolicited reply"), 5),
        (&["2"], true, Some("the server closed the connection"), 0),
        (
            &["?\r\n"],
            false,
            Some("not SMTP: the line `?` does not begin with a reply code from 200 to 599"),
            0,
        ),
    ] {
        let clock = clock();
        let found = wire(pieces, 0, ends).check_idle().await.err().map(|cause| cause.to_string());
        let took = clock.now().saturating_since(Timestamp::EPOCH).as_secs();
        assert_eq!((found.as_deref(), took), (expected, seconds), "{pieces:?}");
    }
}

/// A server that stops reading usually says why.
#[tokio::test(start_paused = true)]
async fn what_was_said_before_a_write_failed_is_heard_first() {
    for (pieces, ends, heard, seconds) in [
        (&["250 a\r\n", "554 5.7.1 no", "\r\n"][..], true, &["250 a", "554 5.7.1 no"][..], 0),
        (&["421 bye\r\n"], false, &["421 bye"], 5),
        (&[], true, &[], 0),
        (&[], false, &[], 5),
    ] {
        let clock = clock();
        let mut wire = wire(pieces, 10, ends);
        wire.send(b"MAIL FROM:<a@x.example>\r\n", LIMIT, 3).await;
        for text in heard {
            assert_eq!(wire.reply(LIMIT).await.unwrap().to_string(), *text);
        }
        let cause = wire.reply(LIMIT).await.unwrap_err();
        assert!(matches!(cause, EndCause::Broken(_)), "the first cause counts: {cause:?}");
        let took = clock.now().saturating_since(Timestamp::EPOCH).as_secs();
        assert_eq!(took, seconds, "{pieces:?}");
    }
}
