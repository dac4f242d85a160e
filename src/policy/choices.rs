//! Settings that are one of a few words.

use std::time::Duration;

/// What becomes of mail for a domain that exists, has addresses and no MX record (`bounce-upon-no-mx`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the setting takes these three")]
pub enum NoMx {
    /// The domain itself is the host (RFC 5321 §5.1). The default.
    #[default]
    Never,
    /// Bounce at once.
    Always,
    /// Deliver to the domain itself while the message's age is under this, then bounce.
    After(Duration),
}

/// What becomes of mail for a domain that does not exist (`bounce-upon-nxdomain`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the setting takes these two")]
pub enum NxDomain {
    /// Bounce at once. The default.
    #[default]
    AtOnce,
    /// Defer until the message's age reaches this, then bounce.
    After(Duration),
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// The words in a policy file, in order.
            pub(super) const WORDS: &[&str] = &[$($word),*];

            /// The word in a policy file.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            pub(super) fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}
pub(super) use choice;

choice! {
    /// Whether a host that greeted is kept when `bounce-upon-no-mx` has run out (`no-mx-live-host`).
    NoMxLiveHost {
        /// No: bounce all the same. The default.
        #[default]
        Bounce = "bounce",
        /// Yes, until expiry.
        Keep = "keep",
    }
}

choice! {
    /// Which addresses of a host are tried (`ip-family`).
    IpFamily {
        /// IPv4 and IPv6. The default.
        #[default]
        Both = "both",
        /// IPv4 alone.
        Ipv4 = "ipv4",
        /// IPv6 alone.
        Ipv6 = "ipv6",
    }
}

choice! {
    /// Whether sessions are encrypted by STARTTLS, RFC 3207 (`use-starttls`).
    StartTls {
        /// Never. The default where the feature `tls` is not there.
        #[cfg_attr(not(feature = "tls"), default)]
        Off = "off",
        /// If the server offers it, with any certificate; in plain on a new connection where it fails. The default.
        #[cfg_attr(feature = "tls", default)]
        Opportunistic = "opportunistic",
        /// Always, with any certificate: no mail without it.
        #[doc(alias = "require-starttls")]
        Required = "required",
        /// Always, with a certificate that is valid for the host's name: no mail without it.
        Verify = "verify",
    }
}

choice! {
    /// The settings a policy starts from (`[policy] base`).
    PolicyBase {
        /// Nothing but the defaults. The default.
        #[default]
        None = "none",
        /// Settings known to suit the large receivers.
        Recommended = "recommended",
    }
}
