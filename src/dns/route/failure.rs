//! Why a domain has no route, and what that means for its mail.

use crate::dns::DnsErrorKind;
use crate::event::Reason;
use crate::reply::EnhancedStatus;

/// No host to send to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
#[allow(clippy::exhaustive_structs, reason = "a kind and its words")]
pub struct RouteFailure {
    /// What is the matter.
    pub kind: RouteFailureKind,
    /// For people: names the domain and what was asked.
    pub message: String,
    /// The domain's MTA-STS policy may be another by now, and could not be looked up: see [`Route::policy_unknown`].
    ///
    /// [`Route::policy_unknown`]: super::Route::policy_unknown
    pub policy_unknown: bool,
}

/// What is the matter with a domain that has no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RouteFailureKind {
    /// The domain takes no mail (RFC 7505). Permanent.
    NullMx,
    /// The domain does not exist. Permanent.
    NxDomain,
    /// The domain exists and has neither MX nor address. Permanent.
    NoHost,
    /// There are hosts, and none has an address. Transient: somebody means to take mail here.
    NoAddress,
    /// A look-up failed, so that it is not known where the mail goes. Transient.
    LookUp(DnsErrorKind),
    /// All addresses are of a kind that is never tried. Transient, as if there were none.
    Prohibited,
    /// We are the domain's most preferred host ourselves (RFC 5321 §5.1). Permanent.
    MailLoop,
    /// All addresses are of a family that this machine does not send from. Transient.
    NoRouteForFamily,
    /// The domain's MTA-STS policy permits no host that has an address (RFC 8461 §5). Transient: either of both may be
    /// put right, and somebody in between may have changed what DNS says.
    MtaSts,
    /// What the hosts with addresses demand by TLSA records can not be found out (RFC 7672 §2.1.2): a look-up failed, or its
    /// answer is bogus. Transient.
    Dane,
}

impl RouteFailureKind {
    /// Trying again is of no use. Everything that could be this machine's or a name server's trouble is not.
    pub const fn is_permanent(self) -> bool {
        matches!(self, Self::NullMx | Self::NxDomain | Self::NoHost | Self::MailLoop)
    }

    /// The status for records: RFC 3463, and RFC 7505 for 5.1.10.
    pub const fn status(self) -> EnhancedStatus {
        match self {
            Self::NullMx => EnhancedStatus::new(5, 1, 10),
            Self::NxDomain => EnhancedStatus::new(5, 1, 2),
            Self::NoHost => EnhancedStatus::new(5, 4, 4),
            Self::MailLoop => EnhancedStatus::new(5, 4, 6),
            Self::NoAddress | Self::Prohibited | Self::NoRouteForFamily => EnhancedStatus::new(4, 4, 4),
            Self::LookUp(_) => EnhancedStatus::new(4, 4, 3),
            Self::MtaSts | Self::Dane => EnhancedStatus::new(4, 7, 0),
        }
    }

    /// The reason for records.
    pub const fn reason(self) -> Reason {
        match self {
            Self::NullMx => Reason::NullMx,
            Self::NxDomain => Reason::NxDomain,
            Self::NoHost => Reason::NoHost,
            Self::NoAddress => Reason::NoAddress,
            Self::Prohibited => Reason::ProhibitedAddress,
            Self::MailLoop => Reason::MailLoop,
            Self::NoRouteForFamily => Reason::NoRouteForFamily,
            Self::MtaSts => Reason::MtaSts,
            Self::Dane => Reason::Dane,
            Self::LookUp(_) => Reason::LookUpFailed,
        }
    }

    /// This machine could not ask at all: local trouble, nobody is charged and no step is taken.
    pub const fn is_local(self) -> bool {
        matches!(self, Self::LookUp(DnsErrorKind::Unreachable))
    }
}

impl RouteFailure {
    pub(super) fn new(kind: RouteFailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), policy_unknown: false }
    }

    /// See [`RouteFailureKind::is_permanent`].
    pub const fn is_permanent(&self) -> bool {
        self.kind.is_permanent()
    }

    /// See [`RouteFailureKind::status`].
    pub const fn status(&self) -> EnhancedStatus {
        self.kind.status()
    }

    /// See [`RouteFailureKind::reason`].
    pub const fn reason(&self) -> Reason {
        self.kind.reason()
    }
}
