//! Content: up to the final dot, or in chunks.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Conversation, End, Step};
use crate::testing::behaviour::Command;
use crate::testing::server::{ReceivedMessage, SmtpServer};

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Conversation<'_, S> {
    pub(super) async fn data(&mut self, line: &str) -> Step<()> {
        let reply = match &self.envelope {
            None => "503 5.5.1 MAIL first",
            Some(envelope) if envelope.recipients.is_empty() => "554 5.5.1 no valid recipients",
            // RFC 3030 §2.
            Some(envelope) if envelope.chunks.as_ref().is_none_or(|chunks| !chunks.is_empty()) => {
                "503 5.5.1 DATA after BDAT"
            }
            Some(_) => "354 go ahead",
        };
        if !self.answer(Command::Data, line, None, reply.into()).await? {
            return Ok(());
        }
        self.answer(Command::Content, "", None, String::new()).await?;
        if self.closing {
            return Err(Some(End::Close));
        }
        let content = self.content().await?;
        self.server.state().heard(".");
        self.end_of_content(content).await?;
        Ok(())
    }

    /// RFC 3030 §2. The chunk's octets are read whatever becomes of it, but by a server told to refuse the command itself.
    pub(super) async fn bdat(&mut self, line: &str) -> Step<()> {
        let Some((octets, is_last)) = chunk_size(line) else {
            self.say("501 5.5.4 BDAT octets [LAST] it is");
            return Ok(());
        };
        if !self.answer(Command::Bdat, line, None, String::new()).await? {
            return Ok(());
        }
        self.answer(Command::Content, "", None, String::new()).await?;
        if self.closing {
            return Err(Some(End::Close));
        }
        let chunk = self.chunk(octets).await?;
        let problem = match &mut self.envelope {
            _ if self.spoilt => "503 5.5.1 RSET first: a chunk was refused",
            None => "503 5.5.1 MAIL first",
            Some(envelope) if envelope.recipients.is_empty() => "503 5.5.1 no valid recipients",
            Some(envelope) => {
                let whole = envelope.chunks.take().zip(chunk).map(|(mut whole, chunk)| {
                    whole.unsplit(chunk);
                    whole
                });
                let whole = whole.filter(|whole| whole.len() <= SmtpServer::MAX_CONTENT);
                if is_last {
                    self.spoilt = !self.end_of_content(whole.map(BytesMut::freeze)).await?;
                } else {
                    envelope.chunks = whole;
                    self.say(&format!("250 2.0.0 {octets} octets"));
                }
                return Ok(());
            }
        };
        self.say(problem);
        self.spoilt = true;
        Ok(())
    }

    /// Answers the content, whose transaction ends with it; `None`: it is too long. Returns whether it is accepted, in LMTP for
    /// every recipient.
    async fn end_of_content(&mut self, content: Option<Bytes>) -> Step<bool> {
        let reply = match &content {
            Some(_) => "250 2.0.0 accepted",
            None => "552 5.3.4 too large",
        };
        let asked = self.envelope.as_ref().map(|envelope| envelope.recipients.clone()).unwrap_or_default();
        let mut recipients = Vec::new();
        if self.server.state().lmtp {
            for recipient in &asked {
                if self.answer(Command::Dot, "", Some(recipient), reply.into()).await? {
                    recipients.push(recipient.clone());
                }
                if self.closing {
                    break;
                }
            }
        } else if self.answer(Command::Dot, "", None, reply.into()).await? {
            recipients.clone_from(&asked);
        }
        let is_accepted = recipients.len() == asked.len();
        let envelope = self.envelope.take().unwrap_or_default();
        if let (Some(content), false) = (content, recipients.is_empty()) {
            let message = ReceivedMessage {
                reverse_path: envelope.reverse_path,
                mail_parameters: envelope.parameters,
                recipients,
                content,
                connection: self.number,
                address: self.address,
                ehlo: self.ehlo.clone(),
                tls: self.tls.clone(),
                username: self.username.clone(),
            };
            // The reply has not gone out yet: a client that has it finds the message here.
            self.server.state().received(message);
        }
        Ok(is_accepted)
    }

    /// The content up to the final dot, dots undone (RFC 5321 §4.5.2). `None`: longer than the server takes.
    async fn content(&mut self) -> Step<Option<Bytes>> {
        // The CRLF of DATA begins the content's first line.
        let mut octets = BytesMut::from("\r\n");
        let mut searched = 0;
        let mut too_long = false;
        loop {
            octets.extend_from_slice(&self.input);
            self.input.clear();
            if let Some(at) = octets.get(searched..).and_then(|new| memmem::find(new, b"\r\n.\r\n")) {
                let end = searched + at;
                self.input = octets.split_off(end + 5);
                octets.truncate(end + 2);
                return Ok((!too_long).then(|| unstuff(&octets)));
            }
            if octets.len() > SmtpServer::MAX_CONTENT {
                too_long = true;
                octets.advance(octets.len() - 4);
            }
            searched = octets.len().saturating_sub(4);
            self.read().await?;
        }
    }

    /// The next so many octets. `None`: more than the server takes.
    async fn chunk(&mut self, octets: u64) -> Step<Option<BytesMut>> {
        let mut chunk = BytesMut::new();
        let mut left = octets;
        let too_long = octets > SmtpServer::MAX_CONTENT as u64;
        loop {
            let here = usize::try_from(left).map_or(self.input.len(), |left| left.min(self.input.len()));
            let taken = self.input.split_to(here);
            left -= here as u64;
            if !too_long {
                chunk.unsplit(taken);
            }
            if left == 0 {
                return Ok((!too_long).then_some(chunk));
            }
            self.read().await?;
        }
    }
}

/// BDAT's octets, and whether they are the last.
fn chunk_size(line: &str) -> Option<(u64, bool)> {
    let mut words = line.split(' ').skip(1);
    let octets =
        words.next().filter(|word| word.bytes().all(|octet| octet.is_ascii_digit()))?.parse().ok()?;
    match (words.next(), words.next()) {
        (None, _) => Some((octets, false)),
        (Some(last), None) if last.eq_ignore_ascii_case("LAST") => Some((octets, true)),
        _ => None,
    }
}

/// Takes off the CRLF put before the content, and one dot of each line that begins with one.
fn unstuff(octets: &[u8]) -> Bytes {
    let mut content = Vec::with_capacity(octets.len());
    let mut from = 2;
    for at in memmem::find_iter(octets, b"\r\n.") {
        content.extend_from_slice(octets.get(from..at + 2).unwrap_or_default());
        from = at + 3;
    }
    content.extend_from_slice(octets.get(from..).unwrap_or_default());
    content.into()
}
