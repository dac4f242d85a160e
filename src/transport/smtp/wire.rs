//! One connection: octets out, replies in, both at once where it must be.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::connector::{Stream, broken};
use super::data::BLOCK;
use crate::reply::{Reply, ReplyParser};
use crate::transport::EndCause;

/// How long a reply that should already be under way is waited for: after a failed write, and when half of an
/// unsolicited one has come.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// What the replies of one transaction may take in memory before each is cut to [`FLOOR`].
const BUDGET: usize = 256 * 1024;

/// Text kept of a reply when the budget is used up: enough for every reply of good faith.
const FLOOR: usize = 512;

/// How much of a block of content went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// All of it.
    Whole,
    /// All of it was handed to the connection, which did not pass all on: nobody knows how much has arrived.
    HandedOver,
    /// Not to its end.
    InPart,
}

/// A connection and what is known of it.
///
/// A failure is remembered, not returned where it shows: replies that arrived before it come first.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    parser: ReplyParser,
    /// Arrived and not asked for yet. Bounded: nothing is read while as many wait as are expected, and one read
    /// gives at most a buffer's worth.
    replies: VecDeque<Reply>,
    budget: usize,
    failure: Option<EndCause>,
    /// No more replies will come: end of stream, unreadable, or given up.
    input_ended: bool,
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            parser: ReplyParser::new(),
            replies: VecDeque::new(),
            budget: BUDGET,
            failure: None,
            input_ended: false,
        }
    }

    /// The connection itself, if nothing came over it that was not asked for (RFC 3207 §6, and the injections that
    /// were found since: what lies behind the 220 to STARTTLS was said by nobody known).
    pub(super) async fn into_stream(mut self) -> Result<Box<dyn Stream>, EndCause> {
        if self.is_quiet() {
            self.look().await;
        }
        let garbage = matches!(self.failure, Some(EndCause::Protocol(_)));
        if garbage || !self.replies.is_empty() || self.parser.is_mid_reply() {
            return Err(EndCause::Protocol("octets behind the 220 to STARTTLS".into()));
        }
        match self.failure {
            Some(cause) => Err(cause),
            None => Ok(self.stream),
        }
    }

    /// Says that no more is coming, as TLS must (RFC 8446 §6.1).
    pub(super) async fn shut_down(&mut self) {
        // The connection is closed however this goes.
        let _ = poll_fn(|cx| Pin::new(&mut self.stream).poll_shutdown(cx)).await;
    }

    /// Reads what is there, without waiting.
    async fn look(&mut self) {
        poll_fn(|cx| {
            let _ = self.poll_read(cx);
            Poll::Ready(())
        })
        .await;
    }

    /// Whether more content may be sent: no reply has come and nothing failed, as far as can be seen without waiting.
    pub(super) async fn takes_more(&mut self) -> bool {
        self.look().await;
        self.replies.is_empty() && self.failure.is_none()
    }

    /// Begins a transaction's budget for replies; gives back what the last one's took.
    pub(super) fn renew_budget(&mut self) {
        self.budget = BUDGET;
        self.parser.set_text_limit(ReplyParser::MAX_TEXT);
        self.replies.shrink_to(4);
    }

    /// Nothing came that was not asked for, and nothing failed, as far as already read.
    pub(super) fn is_quiet(&self) -> bool {
        self.replies.is_empty() && self.failure.is_none() && !self.input_ended && !self.parser.is_mid_reply()
    }

    /// Sends `octets`, reading replies meanwhile, up to `expected` of them, so that neither side waits for the
    /// other to read (RFC 2920 §3.1). Each block has `limit` to go out. Failures show in [`Wire::reply`].
    pub(super) async fn send(&mut self, octets: &[u8], limit: Duration, expected: usize) {
        for block in octets.chunks(BLOCK) {
            if self.send_block(&mut [IoSlice::new(block)], limit, expected).await != Sent::Whole {
                return;
            }
        }
    }

    /// Sends one block of content. A reply ends it: there is none to expect before the content's end.
    pub(super) async fn send_content(&mut self, slices: &mut [IoSlice<'_>], limit: Duration) -> Sent {
        if slices.len() == 1 || self.stream.is_write_vectored() {
            return self.send_block(slices, limit, 0).await;
        }
        let joined = slices.iter().map(|slice| &**slice).collect::<Vec<&[u8]>>().concat();
        self.send_block(&mut [IoSlice::new(&joined)], limit, 0).await
    }

    async fn send_block(&mut self, slices: &mut [IoSlice<'_>], limit: Duration, expected: usize) -> Sent {
        if self.failure.is_some() {
            return Sent::InPart;
        }
        let mut unsent = slices;
        match timeout(limit, poll_fn(|cx| self.poll_send(cx, &mut unsent, expected))).await {
            Ok(true) => return Sent::Whole,
            Ok(false) => {}
            Err(_) => _ = self.end_input(EndCause::Timeout(limit)),
        }
        if unsent.is_empty() { Sent::HandedOver } else { Sent::InPart }
    }

    /// With no reply expected, any that comes ends the sending.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        unsent: &mut &mut [IoSlice<'_>],
        expected: usize,
    ) -> Poll<bool> {
        match self.poll_write_all(cx, unsent) {
            Poll::Ready(Ok(())) => return Poll::Ready(true),
            Poll::Ready(Err(cause)) => {
                self.failure.get_or_insert(cause);
                return Poll::Ready(false);
            }
            Poll::Pending => {}
        }
        while self.replies.len() < expected.max(1) {
            ready!(self.poll_read(cx));
            if self.input_ended || (expected == 0 && !self.replies.is_empty()) {
                return Poll::Ready(false);
            }
        }
        Poll::Pending
    }

    fn poll_write_all(
        &mut self,
        cx: &mut Context<'_>,
        unsent: &mut &mut [IoSlice<'_>],
    ) -> Poll<Result<(), EndCause>> {
        while !unsent.is_empty() {
            let left = unsent.iter().map(|slice| slice.len()).sum();
            match ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, unsent)) {
                Ok(0) => {
                    return Poll::Ready(Err(EndCause::Broken("the connection takes no more octets".into())));
                }
                Ok(taken) => IoSlice::advance_slices(unsent, taken.min(left)),
                Err(error) => return Poll::Ready(Err(broken(error))),
            }
        }
        Pin::new(&mut self.stream).poll_flush(cx).map_err(broken)
    }

    /// The next reply, waited for at most `limit`.
    ///
    /// After a failed write the server may have said why before it closed: what is pending is read first, for a
    /// few seconds at most.
    pub(super) async fn reply(&mut self, limit: Duration) -> Result<Reply, EndCause> {
        if let Some(reply) = self.replies.pop_front() {
            return Ok(reply);
        }
        let limit = if self.failure.is_some() { limit.min(LINGER) } else { limit };
        match timeout(limit, poll_fn(|cx| self.poll_reply(cx))).await {
            Ok(reply) => reply,
            Err(_) => Err(self.end_input(EndCause::Timeout(limit))),
        }
    }

    /// The connection's end, or the first reply nobody asked for. Cancel safe.
    pub(super) async fn unsolicited(&mut self) -> EndCause {
        match poll_fn(|cx| self.poll_reply(cx)).await {
            // RFC 5321 §3.8: a server may say 421 at any time before it closes.
            Ok(reply) if reply.code() == 421 => EndCause::Reply(reply),
            Ok(reply) => EndCause::Protocol(super::excerpt("unsolicited reply", &reply)),
            Err(cause) => cause,
        }
    }

    /// Fails if anything came that was not asked for, looking without waiting.
    pub(super) async fn check_idle(&mut self) -> Result<(), EndCause> {
        if self.is_quiet() {
            self.look().await;
        }
        if self.is_quiet() {
            return Ok(());
        }
        match timeout(LINGER, self.unsolicited()).await {
            Ok(cause) => Err(cause),
            Err(_) => Err(self.end_input(EndCause::Protocol("half of an unsolicited reply".into()))),
        }
    }

    fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reply, EndCause>> {
        loop {
            if let Some(reply) = self.replies.pop_front() {
                return Poll::Ready(Ok(reply));
            }
            if self.input_ended {
                return Poll::Ready(Err(self.failure.clone().unwrap_or(EndCause::Closed)));
            }
            ready!(self.poll_read(cx));
        }
    }

    /// Reads once; what came is among the replies then, or `input_ended`.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // On the stack, so that an idle session has no buffer.
        let mut space = [const { MaybeUninit::uninit() }; 4096];
        let mut buffer = ReadBuf::uninit(&mut space);
        match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
            Ok(()) if buffer.filled().is_empty() => {
                self.end_input(EndCause::Closed);
            }
            Ok(()) => self.parse(buffer.filled()),
            // TLS without its own goodbye, as many servers end it. A reply cut off so is none anyway.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                self.end_input(EndCause::Closed);
            }
            Err(error) => {
                self.end_input(broken(error));
            }
        }
        Poll::Ready(())
    }

    fn parse(&mut self, mut octets: &[u8]) {
        loop {
            match self.parser.parse(&mut octets) {
                Ok(Some(reply)) => {
                    self.budget = self.budget.saturating_sub(reply.octets());
                    self.parser.set_text_limit(self.budget.max(FLOOR));
                    self.replies.push_back(reply);
                }
                Ok(None) => return,
                Err(error) => {
                    self.end_input(EndCause::Protocol(error.to_string()));
                    return;
                }
            }
        }
    }

    /// No more is read. The first cause counts.
    fn end_input(&mut self, cause: EndCause) -> EndCause {
        self.input_ended = true;
        self.failure.get_or_insert(cause).clone()
    }
}
