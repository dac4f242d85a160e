//! What becomes of mail that a reply refuses, all in one.

use serde::{Deserialize, Serialize};

use super::Policy;
use super::reply_rule::{ReplyContext, ReplyVerdict, RuleDecision};
use super::value::Rate;
use crate::event::{Category, Diagnosis, Failure, Reason};
use crate::reply::{Classification, EnhancedStatus, Folded, Stage};

/// What the engine does upon a refusal. What kind of failure it is, is another matter: see [`Classification`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// What becomes of the recipient.
    pub fate: ReplyVerdict,
    /// Whose failure it is.
    pub scope: Scope,
    /// What else the reply rules bring about.
    pub effects: RuleDecision,
    /// Whether the address should be written to again.
    pub suppress: Suppression,
}

/// Whose failure it is: what would meet it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// This recipient.
    Recipient,
    /// This message, to whomever.
    Message,
    /// This session.
    Session,
    /// This host.
    Host,
    /// All that this source sends to this provider.
    SourceAtProvider,
    /// All mail of the queue.
    Queue,
}

impl Scope {
    /// In lower case: `recipient`, `message`, `session`, `host`, `source-at-provider`, `queue`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Recipient => "recipient",
            Self::Message => "message",
            Self::Session => "session",
            Self::Host => "host",
            Self::SourceAtProvider => "source-at-provider",
            Self::Queue => "queue",
        }
    }

    /// By where it failed and what: what is said before MAIL is about the host or who connects to it, what is said of a
    /// recipient's mailbox is about that alone.
    pub const fn of(reason: Reason, stage: Stage) -> Self {
        match (stage, reason.category(), reason) {
            (_, Category::RateLimited, Reason::TooManyRecipients) => Self::Message,
            (_, Category::RateLimited, _) => Self::SourceAtProvider,
            (_, _, Reason::IpBlocklist | Reason::Reputation | Reason::Ptr | Reason::Helo) => {
                Self::SourceAtProvider
            }
            (_, Category::TlsFailed | Category::NoAnswerFromHost, _) => Self::Host,
            (_, Category::BadConnection, _) => Self::Session,
            (Stage::Queue | Stage::Dns, ..) | (_, Category::BadConfiguration, _) => Self::Queue,
            (Stage::Connect | Stage::Ehlo | Stage::Auth, ..) | (_, _, Reason::Credentials) => Self::Host,
            (_, Category::TransientSystem, Reason::Greylisted) => Self::Recipient,
            (_, Category::TransientSystem, _) => Self::Host,
            (_, Category::ProtocolErrors, _) => Self::Session,
            (
                Stage::Rcpt,
                Category::BadDomain | Category::RelayingIssues | Category::PolicyRelated | Category::Other,
                _,
            ) => Self::Recipient,
            (_, Category::BadMailbox | Category::InactiveMailbox | Category::QuotaIssues, _) => {
                Self::Recipient
            }
            (_, Category::BadDomain | Category::RoutingErrors, _) => Self::Queue,
            _ => Self::Message,
        }
    }
}

/// Whether an address that bounced should be written to again: a signal to the host, who keeps the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Suppression {
    /// Its bounce says nothing of the address: reputation, rate, policy, content, trouble.
    Never,
    /// Not for a while: the mailbox is full or suspended, the domain takes no mail now, or the server did not say why it
    /// refused the address.
    Temporary,
    /// Not again: there is no such mailbox, by the server's own words with a 5xx to RCPT, or no such domain, by DNS.
    Permanent,
}

impl Suppression {
    /// In lower case: `never`, `temporary`, `permanent`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Temporary => "temporary",
            Self::Permanent => "permanent",
        }
    }

    /// After a bounce that DNS, the engine or a rule decided about.
    const fn without_reply(reason: Reason) -> Self {
        match reason {
            Reason::NxDomain | Reason::NullMx => Self::Permanent,
            Reason::NoHost | Reason::NoMx => Self::Temporary,
            _ => Self::Never,
        }
    }

    /// After a bounce by a reply. Only a 5xx to RCPT that says so itself gives an address up, and only if its enhanced status, where
    /// it has one, is about addresses or mailboxes (RFC 3463 §3.2, §3.3) and not about the sender's: what is said of the content
    /// may be about another recipient, and what is said before RCPT is about us.
    fn after_reply(reason: Reason, permanent: bool, status: Option<EnhancedStatus>, stage: Stage) -> Self {
        match reason {
            _ if !matches!(stage, Stage::Rcpt | Stage::Data | Stage::Dot) => Self::Never,
            Reason::UserUnknown | Reason::Moved | Reason::Disabled => {
                let agrees = status.is_none_or(|status| match status.subject {
                    0 | 2 => true,
                    1 => !matches!(status.detail, 7 | 8),
                    _ => false,
                });
                if permanent && stage == Stage::Rcpt && agrees { Self::Permanent } else { Self::Temporary }
            }
            Reason::Suspended | Reason::RecipientRejected | Reason::MailboxFull | Reason::DomainUnknown => {
                Self::Temporary
            }
            _ => Self::Never,
        }
    }

    /// After a recipient bounced with `diagnosis`; `asked`: a host was asked about this recipient, it does not bounce with others
    /// of its queue.
    pub(crate) fn after(diagnosis: &Diagnosis, asked: bool) -> Self {
        match &diagnosis.failure {
            Failure::Reply(_) if !asked => Self::Never,
            Failure::Reply(reply) => {
                Self::after_reply(diagnosis.reason, reply.is_permanent(), reply.enhanced(), diagnosis.stage)
            }
            Failure::Engine(_) => Self::without_reply(diagnosis.reason),
        }
    }
}

impl Policy {
    /// What a refusal tells of, and what the policy makes of it. `after` is as in [`Policy::decide_reply`].
    ///
    /// What depends on more than one reply is not in it: that a 452 after other recipients were accepted sends the rest at once, that
    /// a 421 to MAIL ends the session, that 521 from every host bounces, `bounce-upon-5xx-greeting`. At connect, ehlo and auth
    /// [`ReplyVerdict::Retry`] is another host, or the destination's next step.
    ///
    /// ```
    /// # use postrider::event::Category;
    /// # use postrider::policy::{Policy, ReplyContext, ReplyVerdict, Scope, Suppression};
    /// # use postrider::reply::Stage;
    /// let context = ReplyContext::new("example.com", "example.com", Stage::Rcpt);
    /// let (kind, verdict) = Policy::recommended().judge_reply("550 5.1.1 No such user here", &context, |_, _| true);
    /// assert_eq!(kind.category(), Category::BadMailbox);
    /// assert_eq!((verdict.fate, verdict.scope), (ReplyVerdict::Bounce, Scope::Recipient));
    /// assert_eq!(verdict.suppress, Suppression::Permanent);
    /// ```
    pub fn judge_reply(
        &self,
        reply: &str,
        context: &ReplyContext<'_>,
        after: impl FnMut(usize, Rate) -> bool,
    ) -> (Classification, Verdict) {
        let classification = self.classify(reply, context);
        let reason = classification.reason;
        let effects = self.decide_reply(reply, context, after);
        let before_mail = matches!(context.stage, Stage::Connect | Stage::Ehlo | Stage::Auth);
        let Folded { code, status, .. } = Folded::read(reply);
        let is_permanent = code >= 500;
        let fate = effects.verdict(is_permanent && !before_mail, context.stage, context.recipients);
        let bounces = matches!(fate, ReplyVerdict::Bounce | ReplyVerdict::BounceQueue);
        let suppress = match bounces {
            true => Suppression::after_reply(reason, is_permanent, status, context.stage),
            false => Suppression::Never,
        };
        let scope = Scope::of(reason, context.stage);
        (classification, Verdict { fate, scope, effects, suppress })
    }
}
