//! The content of a transaction: by DATA up to the final dot, or by BDAT as one chunk; and the replies to it.

use std::io::IoSlice;

use super::{SmtpSession, Way, ended, said, verdict};
use crate::reply::{Reply, Stage};
use crate::transport::smtp::data::{self, Chunk, Content};
use crate::transport::smtp::wire::{LINGER, Sent};
use crate::transport::smtp::{commands, excerpt, is_refusal};
use crate::transport::{EndCause, Protocol, RecipientReport, SessionEnd, TransactionReport};

impl SmtpSession {
    /// The content, to recipients of which at least one was accepted, and the replies to it.
    pub(super) async fn content(
        &mut self,
        body: &[u8],
        way: Way,
        report: &mut TransactionReport,
    ) -> Result<(), SessionEnd> {
        let sent = match way {
            Way::Data => self.send_to_the_dot(body, report).await,
            Way::Bdat => self.send_chunk(body, report).await?,
        };
        if !sent {
            return Err(self.interrupted(way, report).await);
        }
        let first = self.reply(Stage::Dot, self.timeouts.dot).await?;
        if way == Way::Bdat && is_about_bdat(&first) {
            return Err(self.does_not_do_bdat(&first, report));
        }
        if self.protocol == Protocol::Lmtp {
            return self.content_replies(first, way, report).await;
        }
        let accepted = verdict(Stage::Dot, &first);
        report.dot = said(first);
        self.is_over(way, matches!(accepted, Ok(true)));
        accepted.map(|_| ())
    }

    /// The content and the final dot. Returns whether all of it went out.
    async fn send_to_the_dot(&mut self, body: &[u8], report: &mut TransactionReport) -> bool {
        if !self.wire.is_quiet() {
            return false;
        }
        let mut content = Content::new(body);
        let (sent, is_last) = self.send_blocks(|slices| content.next_block(slices)).await;
        // With a part of the last block the dot may have gone out.
        report.dot_sent = is_last;
        sent == Sent::Whole
    }

    /// BDAT and the content as it is. Returns whether all of it went out.
    async fn send_chunk(&mut self, body: &[u8], report: &mut TransactionReport) -> Result<bool, SessionEnd> {
        // A reply that nobody asked for is never taken for this command's.
        self.wire.check_idle().await.map_err(|cause| ended(Stage::Data, cause))?;
        let command = commands::bdat(data::size(body));
        let mut chunk = Chunk::new(&command, body);
        let (sent, is_last) = self.send_blocks(|slices| chunk.next_block(slices)).await;
        // Without its last octet it is no message to anybody.
        report.dot_sent = is_last && sent != Sent::InPart;
        Ok(sent == Sent::Whole)
    }

    /// Sends block by block until `next_block` says that it was the last, something fails or a reply comes. Returns how much of
    /// the block went out that it came to, and whether that was the last.
    async fn send_blocks<'a>(
        &mut self,
        mut next_block: impl FnMut(&mut Vec<IoSlice<'a>>) -> bool + Send,
    ) -> (Sent, bool) {
        let mut slices = Vec::with_capacity(3);
        loop {
            let is_last = next_block(&mut slices);
            let sent = self.wire.send_content(&mut slices, self.timeouts.data_block).await;
            if is_last || sent != Sent::Whole {
                return (sent, is_last);
            }
            if !self.wire.takes_more().await {
                return (Sent::InPart, false);
            }
        }
    }

    /// One for each recipient that was accepted, in order (RFC 2033 §4.2); `first` has come.
    async fn content_replies(
        &mut self,
        first: Reply,
        way: Way,
        report: &mut TransactionReport,
    ) -> Result<(), SessionEnd> {
        let mut first = Some(first);
        let mut all_accept = true;
        for slot in report.recipients.iter_mut().filter(|slot| is_accepted(slot)) {
            let reply = match first.take() {
                Some(reply) => reply,
                None => self.reply(Stage::Dot, self.timeouts.dot).await?,
            };
            let goes_on = verdict(Stage::Dot, &reply);
            if let Some(reply) = said(reply) {
                *slot = RecipientReport::Content(reply);
            }
            all_accept &= goes_on?;
        }
        self.is_over(way, all_accept);
        Ok(())
    }

    /// Whatever the reply to the final dot, the server has dropped its buffers (RFC 5321 §4.1.1.4); after a chunk that was refused
    /// nobody knows (RFC 3030 §2).
    fn is_over(&mut self, way: Way, all_accept: bool) {
        self.after_chunk = way == Way::Bdat && !all_accept;
        self.dirty = self.after_chunk;
    }

    /// The content could not be sent to its end. Servers that stop reading usually say why: a refusal already
    /// waiting is the reply to the content. An acceptance can not be.
    async fn interrupted(&mut self, way: Way, report: &mut TransactionReport) -> SessionEnd {
        let stage = if report.dot_sent { Stage::Dot } else { Stage::Data };
        match self.wire.reply(LINGER).await {
            Ok(reply) if way == Way::Bdat && is_about_bdat(&reply) => self.does_not_do_bdat(&reply, report),
            Ok(reply) if is_refusal(&reply) => {
                report.dot = Some(reply.clone());
                ended(stage, EndCause::Reply(reply))
            }
            Ok(reply) => ended(stage, EndCause::Protocol(excerpt("before the content's end", &reply))),
            Err(cause) => ended(stage, cause),
        }
    }

    /// The server offers CHUNKING, and BDAT is no command to it. The content is read as commands, if at all: nothing is
    /// delivered, and nothing of the mail is judged. The next transactions with this host go by DATA.
    fn does_not_do_bdat(&mut self, reply: &Reply, report: &mut TransactionReport) -> SessionEnd {
        // In LMTP it may be the first recipient's own, as odd as it is, and others have the mail.
        let accepted = report.recipients.iter().filter(|slot| is_accepted(slot)).count();
        report.dot_sent &= self.protocol == Protocol::Lmtp && accepted > 1;
        self.memory.without_bdat.add(&self.host, self.peer);
        let words = excerpt("CHUNKING is offered and BDAT is refused as a command", reply);
        ended(Stage::Data, EndCause::Protocol(words))
    }
}

fn is_accepted(slot: &RecipientReport) -> bool {
    matches!(slot, RecipientReport::Reply(reply) if reply.is_positive())
}

/// Whether the reply is about the command, and not about the mail: unknown, not implemented, out of order (RFC 5321 §4.2.2), or
/// whatever its code by the status of an invalid command (RFC 3463 §3.6). Postfix says 521 5.5.1 of a command that it is not
/// to know, and 504 5.5.2 of a sender that it does not want.
fn is_about_bdat(reply: &Reply) -> bool {
    let status = reply.enhanced().map(|status| (status.subject, status.detail));
    match reply.code() {
        500 | 502 | 503 => true,
        501 | 504 => status.is_none_or(|status| status == (5, 1)),
        code => (505..600).contains(&code) && status == Some((5, 1)),
    }
}
