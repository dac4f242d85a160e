//! Why something failed, as a fixed word.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Category;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal in $category:ident,)*) => {
        /// Why something failed. The engine says so itself, or it is read from the server's reply
        /// ([`Classifier`](crate::reply::Classifier)).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word in records, and in rules.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The kind of failure that it belongs to.
            pub const fn category(self) -> Category {
                match self { $(Self::$variant => Category::$category,)* }
            }
        }
    };
}

reasons! {
    /// The connection was lost after the final dot: the server may have taken the message.
    PossiblyDelivered = "possibly-delivered" in BadConnection,
    /// The connection broke in a transaction.
    ConnectionLost = "connection-lost" in BadConnection,
    /// No session could be had.
    ConnectionFailed = "connection-failed" in NoAnswerFromHost,
    /// The server's words are no reply, or not one that could follow.
    InvalidReply = "invalid-reply" in ProtocolErrors,
    /// The server did not take a command, or its order.
    Syntax = "syntax" in ProtocolErrors,
    /// It lay longer than `bounce-after` allows.
    Expired = "expired" in MessageExpired,
    /// It expired before anything was tried.
    NeverAttempted = "never-attempted" in MessageExpired,
    /// Too many attempts (`max-attempts`).
    TooManyAttempts = "too-many-attempts" in MessageExpired,
    /// The domain has no MX record.
    NoMx = "no-mx" in RoutingErrors,
    /// The domain takes no mail (RFC 7505).
    NullMx = "null-mx" in RoutingErrors,
    /// It could not be found out where the mail goes.
    LookUpFailed = "look-up-failed" in RoutingErrors,
    /// The hosts have no address.
    NoAddress = "no-address" in RoutingErrors,
    /// No source address of the hosts' family.
    NoRouteForFamily = "no-route-for-family" in RoutingErrors,
    /// All hosts are this one, or a server says that the message went in circles.
    MailLoop = "mail-loop" in RoutingErrors,
    /// All addresses are of a kind that is never tried.
    ProhibitedAddress = "prohibited-address" in RoutingErrors,
    /// The domain does not exist.
    NxDomain = "nxdomain" in BadDomain,
    /// The domain has neither MX nor address.
    NoHost = "no-host" in BadDomain,
    /// The server knows no such domain, or takes no mail for it.
    DomainUnknown = "domain-unknown" in BadDomain,
    /// The server does not offer an extension that the message needs.
    ExtensionMissing = "extension-missing" in ContentRelated,
    /// The message has a CR or an LF by itself.
    BareLineEnding = "bare-line-ending" in ContentRelated,
    /// The server does not like what the message says.
    ContentRejected = "content-rejected" in ContentRelated,
    /// An attachment was refused.
    Attachment = "attachment" in ContentRelated,
    /// The message's header is not as RFC 5322 or the server wants it.
    MalformedMessage = "malformed-message" in ContentRelated,
    /// The message is larger than the server takes.
    TooLarge = "too-large" in MessageTooLarge,
    /// The host cancelled it.
    Cancelled = "cancelled" in Other,
    /// The stored content is gone or damaged.
    ContentLost = "content-lost" in Other,
    /// The reply does not say why.
    Unspecified = "unspecified" in Other,
    /// TLS is required and the server does not offer it.
    TlsNotOffered = "tls-not-offered" in TlsFailed,
    /// TLS is required and could not be had: no handshake, or a certificate that is not valid for the host.
    TlsFailed = "tls-failed" in TlsFailed,
    /// The server wants TLS.
    TlsRequired = "tls-required" in TlsFailed,
    /// The message requires TLS (RFC 8689), and nothing proves that the host is the receiver's.
    HostNotVerified = "host-not-verified" in TlsFailed,
    /// The message requires TLS (RFC 8689), and the server does not offer REQUIRETLS.
    RequireTlsNotOffered = "require-tls-not-offered" in TlsFailed,
    /// The domain's MTA-STS policy can not be kept: it permits none of the hosts, or those have no TLS, or none with a
    /// certificate that is valid for the host.
    MtaSts = "mta-sts" in TlsFailed,
    /// What the host demands by its TLSA records can not be had: it has no TLS, or no certificate that matches; or the
    /// records can not be looked up.
    Dane = "dane" in TlsFailed,
    /// Credentials are set, and the server offers AUTH neither by PLAIN nor by LOGIN.
    AuthNotOffered = "auth-not-offered" in BadConfiguration,
    /// Credentials are set, and the session has no TLS to send them in.
    AuthNeedsTls = "auth-needs-tls" in BadConfiguration,
    /// There is no such mailbox.
    UserUnknown = "user-unknown" in BadMailbox,
    /// The mailbox is elsewhere now, or its owner is another.
    Moved = "moved" in BadMailbox,
    /// The address was refused, without words on why.
    RecipientRejected = "recipient-rejected" in BadMailbox,
    /// The mailbox takes no mail for now: suspended, locked.
    Suspended = "suspended" in InactiveMailbox,
    /// The mailbox takes no mail any more: disabled, closed.
    Disabled = "disabled" in InactiveMailbox,
    /// The mailbox is full.
    MailboxFull = "mailbox-full" in QuotaIssues,
    /// The message is taken for spam.
    SpamContent = "spam-content" in SpamRelated,
    /// A link in the message is on a list, or is called bad.
    UrlBlocklist = "url-blocklist" in SpamRelated,
    /// The sending address or host is on a list, or is refused by itself.
    IpBlocklist = "ip-blocklist" in SpamRelated,
    /// The sender's domain is on a list.
    DomainBlocklist = "domain-blocklist" in SpamRelated,
    /// The sender's address, host or domain has a bad name.
    Reputation = "reputation" in SpamRelated,
    /// The message is taken for a virus.
    Virus = "virus" in VirusRelated,
    /// SPF does not permit the sending address (RFC 7208).
    Spf = "spf" in PolicyRelated,
    /// The DKIM signature is missing or wrong (RFC 6376).
    Dkim = "dkim" in PolicyRelated,
    /// DMARC fails (RFC 7489).
    Dmarc = "dmarc" in PolicyRelated,
    /// Neither SPF nor DKIM says who the sender is.
    Unauthenticated = "unauthenticated" in PolicyRelated,
    /// The sending address has no name in DNS, a wrong one, or one of the kind that private connections have.
    Ptr = "ptr" in PolicyRelated,
    /// The name in EHLO or HELO was refused.
    Helo = "helo" in PolicyRelated,
    /// The server wants credentials, or others.
    Credentials = "credentials" in PolicyRelated,
    /// A policy of the receiver's, not further named.
    Policy = "policy" in PolicyRelated,
    /// The sender's address was refused.
    SenderRejected = "sender-rejected" in InvalidSender,
    /// The sender's domain does not exist, or could not take an answer.
    SenderDomain = "sender-domain" in InvalidSender,
    /// The server does not relay to this recipient.
    RelayingDenied = "relaying-denied" in RelayingIssues,
    /// Too many connections at once or in a time.
    TooManyConnections = "too-many-connections" in RateLimited,
    /// Too many messages in a time.
    TooManyMessages = "too-many-messages" in RateLimited,
    /// Too many recipients in a transaction or a time.
    TooManyRecipients = "too-many-recipients" in RateLimited,
    /// Too many commands, or recipients, that failed.
    TooManyErrors = "too-many-errors" in RateLimited,
    /// The server takes the first attempt of a stranger never (RFC 6647).
    Greylisted = "greylisted" in TransientSystem,
    /// The server has trouble of its own.
    TryLater = "try-later" in TransientSystem,
    /// The server is out of room, memory or time.
    OutOfResources = "out-of-resources" in TransientSystem,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No such reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a reason: write one like \"mailbox-full\", \"user-unknown\" or \"ip-blocklist\"")]
#[non_exhaustive]
pub struct UnknownReason;

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(word: &str) -> Result<Self, UnknownReason> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == word).ok_or(UnknownReason)
    }
}
