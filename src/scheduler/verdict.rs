//! What a failure means: CONTROLS table 0 from MAIL to the final dot, as a pure function.

use smallvec::SmallVec;

use crate::event::Reason;
use crate::reply::{EnhancedStatus, Reply, Stage};
use crate::transport::{EndCause, RecipientReport, SessionEnd, TransactionReport, Unsendable};

/// What is known of the session beside the report.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    /// It had idled, or completed a transaction, before this one.
    pub(super) reused: bool,
    /// The recipients of the transaction, by index.
    pub(super) recipients: &'a [u32],
    /// Those that were refused in an earlier one for being one too many.
    pub(super) overflowed: &'a [u32],
}

/// What a transaction means for one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The server has taken responsibility.
    Delivered(Reply),
    /// Charged, and tried again later.
    Deferred(Cause),
    /// Charged, and never tried again.
    Bounced(Cause),
    /// This host can not take it, another may (RFC 8689 §4.2.1).
    Elsewhere(Cause),
    /// Not charged: goes at once, in another transaction.
    AtOnce,
    /// As [`Verdict::AtOnce`], since the server would take no more recipients in this one.
    Overflow,
}

/// One for each recipient of a transaction.
pub(super) type Verdicts = SmallVec<[Verdict; 1]>;

/// Why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) stage: Stage,
    pub(super) what: What,
    pub(super) reason: Option<Reason>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Reply(Reply),
    Lost(EndCause),
    Unsendable(Unsendable),
    /// It requires TLS to a host that is verified, and what policy its domain has is not known.
    PolicyUnknown,
}

impl Cause {
    pub(super) fn policy_unknown() -> Self {
        Self { stage: Stage::Mail, what: What::PolicyUnknown, reason: Some(Reason::HostNotVerified) }
    }
}

/// What the end of the transaction means for the session and the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SessionVerdict {
    /// Ready for the next.
    Usable,
    /// Gone; the destination is none the worse for it.
    Gone,
    /// Gone before it did any work: counts as a failure to connect.
    AsGreetingFailure,
    /// This machine's trouble.
    Local(String),
}

/// Reads a report. There is a verdict for each recipient of the transaction, whatever the transport said.
pub(super) fn judge(report: &TransactionReport, context: Context<'_>) -> (Verdicts, SessionVerdict) {
    let session = judge_session(report, context);
    let blameless = session == SessionVerdict::AsGreetingFailure || ended_before_it_began(report, context);
    let of_all = match &report.mail {
        _ if blameless => Some(Verdict::AtOnce),
        Some(mail) if !mail.is_positive() => Some(refused(Stage::Mail, mail)),
        _ => None,
    };
    let mut accepted_before = false;
    let mut verdicts = Verdicts::with_capacity(context.recipients.len());
    for (place, index) in context.recipients.iter().enumerate() {
        let recipient = report.recipients.get(place).unwrap_or(&RecipientReport::None);
        verdicts.push(match (recipient, &of_all) {
            (RecipientReport::Unsendable(why), _) => unsendable(*why),
            (_, Some(verdict)) => verdict.clone(),
            (RecipientReport::Reply(reply), None) if reply.is_positive() => {
                accepted_before = true;
                content_verdict(report)
            }
            (RecipientReport::Content(reply), None) => {
                accepted_before = true;
                of_content(reply)
            }
            (RecipientReport::Reply(reply), None) if is_too_many(reply) && accepted_before => {
                Verdict::Overflow
            }
            (RecipientReport::Reply(reply), None)
                if is_too_many(reply) && context.overflowed.contains(index) =>
            {
                Verdict::Deferred(Cause {
                    stage: Stage::Rcpt,
                    what: What::Reply(reply.clone()),
                    reason: None,
                })
            }
            (RecipientReport::Reply(reply), None) => refused(Stage::Rcpt, reply),
            (RecipientReport::None, None) => unanswered(report),
        });
    }
    let is_free = |verdict: &Verdict| matches!(verdict, Verdict::AtOnce | Verdict::Overflow);
    if !blameless && !matches!(session, SessionVerdict::Local(_)) && verdicts.iter().all(is_free) {
        // Nobody got a verdict. Tried again at once, that would go on for ever.
        verdicts.fill(nothing_said(report));
    }
    (verdicts, session)
}

fn judge_session(report: &TransactionReport, context: Context<'_>) -> SessionVerdict {
    if let Some(end) = &report.end
        && let EndCause::Local(message) = &end.cause
        && !report.dot_sent
    {
        return SessionVerdict::Local(message.clone());
    }
    if is_sent_away(report) {
        return if context.reused { SessionVerdict::Gone } else { SessionVerdict::AsGreetingFailure };
    }
    if report.end.is_some() { SessionVerdict::Gone } else { SessionVerdict::Usable }
}

/// 421 to MAIL, or a reply that ended the session before any to this transaction: the session's end, not the
/// message's fault.
fn is_sent_away(report: &TransactionReport) -> bool {
    let ended_by_reply = report.end.as_ref().is_some_and(|end| matches!(end.cause, EndCause::Reply(_)));
    match &report.mail {
        Some(mail) => mail.code() == 421,
        None => ended_by_reply && nothing_received(report),
    }
}

/// The reply that ended the session before this transaction got any.
pub(super) fn sent_away_by(report: &TransactionReport) -> Option<&Reply> {
    if !is_sent_away(report) {
        return None;
    }
    report.mail.as_ref().or_else(|| match report.end.as_ref().map(|end| &end.cause) {
        Some(EndCause::Reply(reply)) => Some(reply),
        _ => None,
    })
}

/// The session ended in the transaction, and the server did not say why.
pub(super) fn is_broken_off(report: &TransactionReport) -> bool {
    let cause = report.end.as_ref().map(|end| &end.cause);
    cause.is_some_and(|cause| !matches!(cause, EndCause::Reply(_) | EndCause::Local(_)))
}

/// A session that was used before may have been closed while we wrote.
fn ended_before_it_began(report: &TransactionReport, context: Context<'_>) -> bool {
    let closed = |end: &SessionEnd| matches!(end.cause, EndCause::Closed | EndCause::Broken(_));
    let was_closed = report.end.as_ref().is_some_and(closed) && nothing_received(report);
    context.reused && (was_closed || is_sent_away(report))
}

fn nothing_received(report: &TransactionReport) -> bool {
    let silent = |recipient: &RecipientReport| !matches!(recipient, RecipientReport::Reply(_));
    report.mail.is_none() && report.recipients.iter().all(silent) && report.data.is_none() && !report.dot_sent
}

/// The verdict of a recipient the server accepted.
fn content_verdict(report: &TransactionReport) -> Verdict {
    if let Some(dot) = &report.dot {
        return of_content(dot);
    }
    if let Some(end) = &report.end {
        // The server ended the session over another recipient: this one has no verdict.
        if end.stage == Stage::Rcpt && matches!(end.cause, EndCause::Reply(_)) {
            return Verdict::AtOnce;
        }
        if let Some(data) = report.data.as_ref().filter(|data| !data.is_intermediate()) {
            return refused(Stage::Data, data);
        }
        if matches!(end.cause, EndCause::Local(_)) && !report.dot_sent {
            return Verdict::AtOnce;
        }
        let reason = report.dot_sent.then_some(Reason::PossiblyDelivered);
        return lost(if report.dot_sent { Stage::Dot } else { end.stage }, &end.cause, reason);
    }
    match &report.data {
        Some(data) => refused(Stage::Data, data),
        None => Verdict::AtOnce,
    }
}

fn of_content(reply: &Reply) -> Verdict {
    if reply.is_positive() { Verdict::Delivered(reply.clone()) } else { refused(Stage::Dot, reply) }
}

/// The verdict of a recipient the server did not answer for.
fn unanswered(report: &TransactionReport) -> Verdict {
    match &report.end {
        // The server ended the session over another recipient, or this machine did.
        Some(end) if matches!(end.cause, EndCause::Reply(_) | EndCause::Local(_)) => Verdict::AtOnce,
        // Nobody knows what the server has said: it was cut off.
        Some(end) if report.dot_sent => lost(Stage::Dot, &end.cause, Some(Reason::PossiblyDelivered)),
        Some(end) => lost(end.stage, &end.cause, None),
        None => Verdict::AtOnce,
    }
}

/// For all recipients of a transaction in which none got a verdict.
fn nothing_said(report: &TransactionReport) -> Verdict {
    match &report.end {
        Some(end) => lost(end.stage, &end.cause, None),
        None => lost(Stage::Mail, &EndCause::Protocol("no reply for any recipient".to_owned()), None),
    }
}

fn lost(stage: Stage, cause: &EndCause, reason: Option<Reason>) -> Verdict {
    Verdict::Deferred(Cause { stage, what: What::Lost(cause.clone()), reason })
}

/// A refusal is permanent from 500 on. A reply of an unexpected class is no reason to bounce.
fn refused(stage: Stage, reply: &Reply) -> Verdict {
    let cause = Cause { stage, what: What::Reply(reply.clone()), reason: None };
    if reply.is_permanent() { Verdict::Bounced(cause) } else { Verdict::Deferred(cause) }
}

fn unsendable(why: Unsendable) -> Verdict {
    let reason = match why {
        Unsendable::TooLarge { .. } => Some(Reason::TooLarge),
        Unsendable::EightBit | Unsendable::Utf8Address | Unsendable::Utf8Header => {
            Some(Reason::ExtensionMissing)
        }
        Unsendable::RequireTlsNotOffered => Some(Reason::RequireTlsNotOffered),
        Unsendable::HostNotVerified => Some(Reason::HostNotVerified),
        Unsendable::BareLineEnding => Some(Reason::BareLineEnding),
    };
    let cause = Cause { stage: Stage::Mail, what: What::Unsendable(why), reason };
    match why {
        Unsendable::HostNotVerified | Unsendable::RequireTlsNotOffered => Verdict::Elsewhere(cause),
        _ => Verdict::Bounced(cause),
    }
}

/// RFC 5321 §4.5.3.1.10: 452, or 552 from older servers, with x.5.3 or no enhanced status.
fn is_too_many(reply: &Reply) -> bool {
    let status_fits = |status: EnhancedStatus| (status.subject, status.detail) == (5, 3);
    matches!(reply.code(), 452 | 552) && reply.enhanced().is_none_or(status_fits)
}
