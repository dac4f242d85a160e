//! The fixed words of records.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word in records.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What a store was doing when it failed.
    StorageOperation {
        /// Taking new mail. Whoever submitted it got the error; mail that was accepted before is not concerned.
        Insert = "insert",
        /// Writing what became of mail, or what is kept beside it. It is tried again, but for a change that damage stands against.
        Commit = "commit",
        /// Reading mail.
        Read = "read",
    }
}

words! {
    /// What kind of failure it is: PowerMTA's names, and four that it does not have. Each [`Reason`](super::Reason)
    /// belongs to one.
    #[doc(alias = "bounceCat")]
    Category {
        /// The domain does not exist, or takes no mail.
        BadDomain = "bad-domain",
        /// The mailbox does not exist.
        BadMailbox = "bad-mailbox",
        /// The mailbox is disabled.
        InactiveMailbox = "inactive-mailbox",
        /// The mailbox is full.
        QuotaIssues = "quota-issues",
        /// The message, a link in it, its sender's host or domain is taken for spam.
        SpamRelated = "spam-related",
        /// The message is taken for a virus.
        VirusRelated = "virus-related",
        /// The content was refused.
        ContentRelated = "content-related",
        /// Refused by policy.
        PolicyRelated = "policy-related",
        /// The sender was refused.
        InvalidSender = "invalid-sender",
        /// The host does not relay to the recipient.
        RelayingIssues = "relaying-issues",
        /// No way to the domain.
        RoutingErrors = "routing-errors",
        /// The SMTP conversation went wrong.
        ProtocolErrors = "protocol-errors",
        /// The connection broke.
        BadConnection = "bad-connection",
        /// No host answered.
        NoAnswerFromHost = "no-answer-from-host",
        /// It lay too long.
        MessageExpired = "message-expired",
        /// What is set for this queue does not suit its host.
        BadConfiguration = "bad-configuration",
        /// Too much at once. Not a name of PowerMTA's.
        RateLimited = "rate-limited",
        /// The message is larger than the receiver takes. Not a name of PowerMTA's.
        MessageTooLarge = "message-too-large",
        /// The receiver has trouble of its own. Not a name of PowerMTA's.
        TransientSystem = "transient-system",
        /// TLS as it is wanted could not be had. Not a name of PowerMTA's.
        TlsFailed = "tls-failed",
        /// None of these.
        Other = "other",
    }
}

/// No such category.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a category: write one like \"quota-issues\", \"bad-mailbox\" or \"rate-limited\"")]
#[non_exhaustive]
pub struct UnknownCategory;

impl FromStr for Category {
    type Err = UnknownCategory;

    fn from_str(word: &str) -> Result<Self, UnknownCategory> {
        Self::ALL.iter().copied().find(|category| category.as_str() == word).ok_or(UnknownCategory)
    }
}

impl Category {
    /// The category in PowerMTA's accounting (`bounceCat`): its own name where it has one, else the one that it files
    /// such failures under.
    pub const fn pmta_name(self) -> &'static str {
        match self {
            Self::RateLimited | Self::TlsFailed => Self::PolicyRelated.as_str(),
            Self::MessageTooLarge => Self::ContentRelated.as_str(),
            Self::TransientSystem => Self::Other.as_str(),
            own => own.as_str(),
        }
    }
}

words! {
    /// How a queue's mode changed.
    QueueModeChange {
        /// Into backoff: its own intervals, connections and rates.
        Backoff = "backoff",
        /// Out of backoff.
        Normal = "normal",
        /// A reply rule put the whole queue into retry mode.
        Deferred = "deferred",
        /// The source is not used for this queue. Mail of a pool goes by another of its sources, other mail waits.
        SourceDisabled = "source-disabled",
        /// No source of a pool may be used for this queue: its mail waits.
        AllSourcesDisabled = "all-sources-disabled",
        /// The source is used again.
        SourceEnabled = "source-enabled",
        /// Nothing is sent until it is resumed.
        Paused = "paused",
        /// It is sent from again.
        Resumed = "resumed",
        /// More bounces by rules and DNS than `bounce-fuse` allows: what would bounce is held.
        FuseBlown = "fuse-blown",
        /// Somebody decided about what was held, and bounces are counted anew.
        FuseReset = "fuse-reset",
    }
}
