//! One session's conversation: transactions, one after the other. What is said of content is in `session/content.rs`.

mod content;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use super::commands::{self, MailParameters};
use super::data;
use super::ehlo::Extensions;
use super::memory::Memory;
use super::tls::Secured;
use super::wire::Wire;
use super::{excerpt, is_refusal};
use crate::message::{Address, RecipientDsn};
use crate::reply::{Reply, Stage};
use crate::transport::{
    CertificateProblem, EndCause, PeerCertificate, Protocol, RecipientReport, Session, SessionEnd,
    SessionLimits, Target, Timeouts, Transaction, TransactionReport, Unsendable,
};

/// How a transaction's content is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// With a final dot (RFC 5321 §4.1.1.4).
    Data,
    /// As one chunk (RFC 3030 §2).
    Bdat,
}

/// A session after EHLO or HELO.
pub(super) struct SmtpSession {
    peer: SocketAddr,
    host: Arc<str>,
    wire: Wire,
    protocol: Protocol,
    extensions: Extensions,
    timeouts: Arc<Timeouts>,
    tls: Option<Secured>,
    /// It is in plain since TLS failed with the host.
    fell_back: bool,
    memory: Arc<Memory>,
    /// The server holds parts of a transaction that came to nothing.
    dirty: bool,
    /// It refused a chunk.
    after_chunk: bool,
    ended: Option<SessionEnd>,
}

#[async_trait]
impl Session for SmtpSession {
    async fn transact(&mut self, transaction: &Transaction) -> TransactionReport {
        let recipients = vec![RecipientReport::None; transaction.recipients.len()];
        let mut report = TransactionReport { recipients, ..TransactionReport::default() };
        let result = match &self.ended {
            Some(end) => Err(end.clone()),
            None => self.converse(transaction, &mut report).await,
        };
        if let Err(end) = result {
            self.ended = Some(end.clone());
            report.end = Some(end);
        }
        report
    }

    /// The stage of what ends an idle session is [`Stage::Mail`]: MAIL would have been next.
    async fn closed(&mut self) -> SessionEnd {
        if let Some(end) = &self.ended {
            return end.clone();
        }
        let end = ended(Stage::Mail, self.wire.unsolicited().await);
        self.ended = Some(end.clone());
        end
    }

    async fn quit(mut self: Box<Self>) {
        if self.ended.is_some() {
            return;
        }
        let limit = self.timeouts.quit;
        // However it goes, the connection is closed after this.
        let _ = timeout(limit, async {
            self.wire.send(commands::QUIT, limit, 1).await;
            let _ = self.wire.reply(limit).await;
            self.wire.shut_down().await;
        })
        .await;
    }

    fn tls(&self) -> Option<String> {
        self.tls.as_ref().map(|secured| secured.what.clone())
    }

    fn certificate(&self) -> Option<PeerCertificate> {
        self.tls.as_ref()?.certificate.clone()
    }

    async fn certificate_verdict(&mut self) -> Option<Result<(), CertificateProblem>> {
        self.tls.as_mut()?.certificate_verdict().await
    }

    fn passes_on_dsn(&self) -> bool {
        self.extensions.dsn
    }

    fn limits(&self) -> SessionLimits {
        self.extensions.limits
    }
}

impl SmtpSession {
    pub(super) fn new(
        wire: Wire,
        extensions: Extensions,
        tls: Option<Secured>,
        target: &Target,
        memory: Arc<Memory>,
    ) -> Self {
        Self {
            peer: target.peer,
            host: target.host.clone(),
            wire,
            protocol: target.protocol,
            extensions,
            timeouts: target.timeouts.clone(),
            tls,
            fell_back: false,
            memory,
            dirty: false,
            after_chunk: false,
            ended: None,
        }
    }

    pub(super) fn in_plain_for_want_of_tls(self) -> Self {
        Self { fell_back: true, ..self }
    }

    async fn converse(
        &mut self,
        transaction: &Transaction,
        report: &mut TransactionReport,
    ) -> Result<(), SessionEnd> {
        self.mark_unsendable(transaction, report);
        if !report.recipients.contains(&RecipientReport::None) {
            return Ok(());
        }
        self.wire.check_idle().await.map_err(|cause| ended(Stage::Mail, cause))?;
        self.wire.renew_budget();

        if self.after_chunk {
            // Of the replies to come the first may be to content that was read as commands: this one ends that.
            self.command(commands::RSET, Stage::Mail, self.timeouts.mail).await?;
            self.reset_reply().await?;
            self.wire.check_idle().await.map_err(|cause| ended(Stage::Mail, cause))?;
            self.after_chunk = false;
        }
        let way = self.way(transaction);
        let ready = if self.extensions.pipelining {
            self.envelope_in_one(transaction, way, report).await?
        } else {
            self.envelope_step_by_step(transaction, way, report).await?
        };
        if ready { self.content(&transaction.body, way, report).await } else { Ok(()) }
    }

    fn way(&self, transaction: &Transaction) -> Way {
        let by_bdat = transaction.chunking
            && self.extensions.chunking
            && !self.memory.without_bdat.has(&self.host, self.peer);
        if by_bdat { Way::Bdat } else { Way::Data }
    }

    /// What this server can not take is not sent (RFC 1870 §6.1, RFC 6152 §3, RFC 6531 §3.1, RFC 8689 §4.2.1).
    fn mark_unsendable(&self, transaction: &Transaction, report: &mut TransactionReport) {
        let size = data::size(&transaction.body);
        let limit = self.extensions.size.and_then(|size| size.limit).filter(|&limit| size > limit);
        let utf8_path = transaction.reverse_path.as_ref().is_some_and(|path| path.needs_smtputf8());
        let utf8 = |needed: bool| (needed && !self.extensions.smtputf8).then_some(Unsendable::Utf8Address);
        let is_verified = transaction.host_is_authentic && self.certificate().is_some();
        let for_all = if data::has_bare_line_ending(&transaction.body) {
            Some(Unsendable::BareLineEnding)
        } else if transaction.require_tls && !is_verified {
            Some(Unsendable::HostNotVerified)
        } else if transaction.require_tls && !self.extensions.require_tls {
            Some(Unsendable::RequireTlsNotOffered)
        } else if let Some(limit) = limit {
            Some(Unsendable::TooLarge { size, limit })
        } else if transaction.eight_bit && !self.extensions.eight_bit_mime {
            Some(Unsendable::EightBit)
        } else if transaction.smtputf8 && !self.extensions.smtputf8 {
            Some(Unsendable::Utf8Header)
        } else {
            utf8(utf8_path)
        };
        for (recipient, report) in transaction.recipients.iter().zip(&mut report.recipients) {
            if let Some(reason) = for_all.or_else(|| utf8(recipient.needs_smtputf8())) {
                *report = RecipientReport::Unsendable(reason);
            }
        }
    }

    /// MAIL, every RCPT and DATA in one write (RFC 2920 §3.1). Returns whether the content is wanted.
    ///
    /// A chunk is not in it: a server that takes no recipient may refuse BDAT, and read the content as commands.
    async fn envelope_in_one(
        &mut self,
        transaction: &Transaction,
        way: Way,
        report: &mut TransactionReport,
    ) -> Result<bool, SessionEnd> {
        let reset = self.dirty;
        let mut out = Vec::with_capacity(128 + 48 * transaction.recipients.len());
        let mut commands = 1;
        if reset {
            out.extend_from_slice(commands::RSET);
            commands += 1;
        }
        self.encode_mail(&mut out, transaction, report);
        for asked in asked(transaction, report) {
            self.encode_rcpt(&mut out, &asked);
            commands += 1;
        }
        if way == Way::Data {
            out.extend_from_slice(commands::DATA);
            commands += 1;
        }
        self.wire.send(&out, self.timeouts.mail, commands).await;
        drop(out);

        if reset {
            self.reset_reply().await?;
        }
        let mail = self.mail_reply(report).await?;
        let mut accepted = false;
        for slot in unanswered(report) {
            accepted |= self.rcpt_reply(slot).await?;
        }
        if way == Way::Bdat {
            return Ok(mail && accepted);
        }
        let wanted = self.data_reply(report).await?;
        match (wanted, accepted) {
            (true, true) if mail => Ok(true),
            (true, true) => {
                // Neither content nor a lone dot may go to recipients of a transaction that never began.
                let reply = report.mail.iter().map(ToString::to_string).collect::<String>();
                Err(ended(
                    Stage::Data,
                    EndCause::Protocol(format!("DATA was accepted after MAIL was refused: {reply}")),
                ))
            }
            (true, false) => self.lone_dot().await,
            (false, _) => Ok(false),
        }
    }

    /// One command at a time; no more than needed. Returns whether the content is wanted.
    async fn envelope_step_by_step(
        &mut self,
        transaction: &Transaction,
        way: Way,
        report: &mut TransactionReport,
    ) -> Result<bool, SessionEnd> {
        if self.dirty {
            self.command(commands::RSET, Stage::Mail, self.timeouts.mail).await?;
            self.reset_reply().await?;
        }
        let mut out = Vec::with_capacity(128);
        self.encode_mail(&mut out, transaction, report);
        self.command(&out, Stage::Mail, self.timeouts.mail).await?;
        if !self.mail_reply(report).await? {
            return Ok(false);
        }
        let mut accepted = false;
        for asked in asked(transaction, report) {
            out.clear();
            self.encode_rcpt(&mut out, &asked);
            self.command(&out, Stage::Rcpt, self.timeouts.rcpt).await?;
            accepted |= self.rcpt_reply(asked.slot).await?;
        }
        if !accepted || way == Way::Bdat {
            return Ok(accepted);
        }
        self.command(commands::DATA, Stage::Data, self.timeouts.data).await?;
        self.data_reply(report).await
    }

    fn encode_mail(&self, out: &mut Vec<u8>, transaction: &Transaction, report: &mut TransactionReport) {
        let path_needs_utf8 = transaction.reverse_path.as_ref().is_some_and(|path| path.needs_smtputf8());
        let is_utf8 = transaction.smtputf8 || path_needs_utf8;
        let parameters = MailParameters {
            size: self.extensions.size.map(|_| data::size(&transaction.body)),
            eight_bit: transaction.eight_bit && self.extensions.eight_bit_mime,
            require_tls: transaction.require_tls,
            utf8: is_utf8 || asked(transaction, report).any(|asked| asked.recipient.needs_smtputf8()),
            dsn: transaction.dsn.as_ref().map(|dsn| &dsn.message).filter(|_| self.extensions.dsn),
        };
        commands::mail(out, &transaction.reverse_path, parameters);
    }

    fn encode_rcpt(&self, out: &mut Vec<u8>, asked: &Asked<'_>) {
        commands::rcpt(out, asked.recipient, asked.dsn.filter(|_| self.extensions.dsn));
    }

    /// Sends one command, unless a reply came that nobody asked for: it is never taken for this command's.
    async fn command(&mut self, line: &[u8], stage: Stage, limit: Duration) -> Result<(), SessionEnd> {
        self.wire.check_idle().await.map_err(|cause| ended(stage, cause))?;
        self.wire.send(line, limit, 1).await;
        Ok(())
    }

    async fn reset_reply(&mut self) -> Result<(), SessionEnd> {
        let reply = self.reply(Stage::Mail, self.timeouts.mail).await?;
        if !reply.is_positive() {
            // The next MAIL would be a nested one, and its refusal no verdict.
            return Err(ended(Stage::Mail, EndCause::Reply(reply)));
        }
        self.dirty = false;
        Ok(())
    }

    async fn mail_reply(&mut self, report: &mut TransactionReport) -> Result<bool, SessionEnd> {
        let reply = self.reply(Stage::Mail, self.timeouts.mail).await?;
        if self.fell_back && reply.code() == 530 {
            // RFC 3207 §4: it wants STARTTLS first, which failed. That says nothing of the mail. It is asked for TLS again.
            self.memory.in_plain.remove(&self.host, self.peer);
            let words = format!(
                "TLS failed with the host a while ago, and without it says: {}",
                excerpt("MAIL", &reply)
            );
            return Err(ended(Stage::Mail, EndCause::Tls(words)));
        }
        let accepted = verdict(Stage::Mail, &reply);
        self.dirty |= matches!(accepted, Ok(true));
        report.mail = said(reply);
        accepted
    }

    async fn rcpt_reply(&mut self, slot: &mut RecipientReport) -> Result<bool, SessionEnd> {
        let reply = self.reply(Stage::Rcpt, self.timeouts.rcpt).await?;
        let accepted = verdict(Stage::Rcpt, &reply);
        self.dirty |= matches!(accepted, Ok(true));
        *slot = said(reply).map_or(RecipientReport::None, RecipientReport::Reply);
        accepted
    }

    async fn data_reply(&mut self, report: &mut TransactionReport) -> Result<bool, SessionEnd> {
        let reply = self.reply(Stage::Data, self.timeouts.data).await?;
        let wanted = verdict(Stage::Data, &reply);
        report.data = (reply.is_intermediate() || is_refusal(&reply)).then_some(reply);
        wanted
    }

    /// 354 though no recipient was accepted: a lone dot ends it (RFC 2920 §3.1). Its reply is nobody's verdict.
    async fn lone_dot(&mut self) -> Result<bool, SessionEnd> {
        self.command(b".\r\n", Stage::Dot, self.timeouts.data_block).await?;
        if self.protocol == Protocol::Lmtp {
            // A reply for each recipient: none.
            return Ok(false);
        }
        let reply = self.reply(Stage::Dot, self.timeouts.dot).await?;
        verdict(Stage::Dot, &reply).map(|_| false)
    }

    async fn reply(&mut self, stage: Stage, limit: Duration) -> Result<Reply, SessionEnd> {
        self.wire.reply(limit).await.map_err(|cause| ended(stage, cause))
    }
}

/// Whether the command was accepted; an error if the reply ends the session (RFC 5321 §3.8), or is none to this
/// command.
fn verdict(stage: Stage, reply: &Reply) -> Result<bool, SessionEnd> {
    let accepted = if stage == Stage::Data { reply.is_intermediate() } else { reply.is_positive() };
    if reply.code() == 421 {
        Err(ended(stage, EndCause::Reply(reply.clone())))
    } else if accepted || is_refusal(reply) {
        Ok(accepted)
    } else {
        Err(ended(stage, EndCause::Protocol(excerpt(stage.as_str(), reply))))
    }
}

/// The reply, if it is one a command other than DATA can have.
fn said(reply: Reply) -> Option<Reply> {
    (!reply.is_intermediate()).then_some(reply)
}

fn ended(stage: Stage, cause: EndCause) -> SessionEnd {
    SessionEnd { stage, cause }
}

/// A recipient still to be asked for.
struct Asked<'a> {
    recipient: &'a Address,
    dsn: Option<&'a RecipientDsn>,
    /// Where the reply goes.
    slot: &'a mut RecipientReport,
}

fn asked<'a>(
    transaction: &'a Transaction,
    report: &'a mut TransactionReport,
) -> impl Iterator<Item = Asked<'a>> {
    let recipients = transaction.recipients.iter().zip(&mut report.recipients).enumerate();
    recipients.filter(|(_, (_, slot))| **slot == RecipientReport::None).map(|(index, (recipient, slot))| {
        let dsn = transaction.dsn.as_ref().and_then(|dsn| dsn.recipients.get(index));
        Asked { recipient, dsn, slot }
    })
}

fn unanswered(report: &mut TransactionReport) -> impl Iterator<Item = &mut RecipientReport> {
    report.recipients.iter_mut().filter(|slot| **slot == RecipientReport::None)
}

impl fmt::Debug for SmtpSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmtpSession")
            .field("peer", &self.peer)
            .field("extensions", &self.extensions)
            .field("dirty", &self.dirty)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}
