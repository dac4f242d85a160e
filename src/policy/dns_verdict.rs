//! What the answer of DNS means for a domain's mail.

use std::time::Duration;

use super::choices::{NoMx, NxDomain};
use super::settings::QueueSettings;
use crate::dns::{RouteFailureKind, RouteKind};

/// What becomes of a domain's mail by what DNS says of it. Intervals are compared with the age of each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DnsVerdict {
    /// It is delivered.
    Deliver,
    /// It is delivered to the domain itself while its age is under this, then bounced, unless the domain has MX
    /// records by then.
    DeliverUntil(Duration),
    /// It waits, without any connection, while its age is under this, then bounces, unless the domain has hosts by
    /// then.
    HoldUntil(Duration),
    /// It waits for the destination's next step.
    Retry,
    /// It bounces, once DNS has said the same past any cache.
    Bounce,
}

impl DnsVerdict {
    /// The age at which mail bounces; `None`: not for what DNS says.
    pub const fn bounce_age(self) -> Option<Duration> {
        match self {
            Self::DeliverUntil(age) | Self::HoldUntil(age) => Some(age),
            Self::Bounce => Some(Duration::ZERO),
            Self::Deliver | Self::Retry => None,
        }
    }
}

/// Domains without MX, without hosts, or that do not exist.
impl QueueSettings {
    /// What becomes of a domain's mail when a look-up found a route of this kind, or failed in this way.
    ///
    /// `no-mx-live-host` comes on top: with it, mail of [`DnsVerdict::DeliverUntil`] is kept until it expires once
    /// the host has greeted.
    ///
    /// ```
    /// # use postrider::{dns::RouteKind, policy::{DnsVerdict, Policy}};
    /// # use std::time::Duration;
    /// let settings = Policy::from_toml("[domain.'*']\nbounce-upon-no-mx = '1h'")?.settings("exampel.com", "default");
    /// let verdict = settings.dns_verdict(Ok(RouteKind::Implicit));
    /// assert_eq!(verdict, DnsVerdict::DeliverUntil(Duration::from_secs(3_600)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn dns_verdict(&self, found: Result<RouteKind, RouteFailureKind>) -> DnsVerdict {
        match found {
            Ok(RouteKind::Implicit) => match self.bounce_upon_no_mx {
                NoMx::Never => DnsVerdict::Deliver,
                NoMx::Always => DnsVerdict::Bounce,
                NoMx::After(age) => DnsVerdict::DeliverUntil(age),
            },
            Ok(_) => DnsVerdict::Deliver,
            Err(RouteFailureKind::NxDomain | RouteFailureKind::NoHost) => match self.bounce_upon_nxdomain {
                NxDomain::AtOnce => DnsVerdict::Bounce,
                NxDomain::After(age) => DnsVerdict::HoldUntil(age),
            },
            Err(failure) if failure.is_permanent() => DnsVerdict::Bounce,
            Err(_) => DnsVerdict::Retry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::DnsErrorKind;

    #[test]
    fn the_answers_of_dns() {
        const HOUR: Duration = Duration::from_secs(3_600);
        use {DnsVerdict as V, RouteFailureKind as F};
        let settings = |no_mx, nxdomain| QueueSettings {
            bounce_upon_no_mx: no_mx,
            bounce_upon_nxdomain: nxdomain,
            ..QueueSettings::default()
        };
        let now = settings(NoMx::Always, NxDomain::AtOnce);
        let later = settings(NoMx::After(HOUR), NxDomain::After(2 * HOUR));
        for (found, by_default, by_now, by_later) in [
            (Ok(RouteKind::Mx), V::Deliver, V::Deliver, V::Deliver),
            (Ok(RouteKind::Implicit), V::Deliver, V::Bounce, V::DeliverUntil(HOUR)),
            (Ok(RouteKind::Literal), V::Deliver, V::Deliver, V::Deliver),
            (Ok(RouteKind::Fixed), V::Deliver, V::Deliver, V::Deliver),
            (Err(F::NullMx), V::Bounce, V::Bounce, V::Bounce),
            (Err(F::NxDomain), V::Bounce, V::Bounce, V::HoldUntil(2 * HOUR)),
            (Err(F::NoHost), V::Bounce, V::Bounce, V::HoldUntil(2 * HOUR)),
            (Err(F::MailLoop), V::Bounce, V::Bounce, V::Bounce),
            (Err(F::NoAddress), V::Retry, V::Retry, V::Retry),
            (Err(F::LookUp(DnsErrorKind::ServFail)), V::Retry, V::Retry, V::Retry),
        ] {
            let got = [&QueueSettings::default(), &now, &later].map(|settings| settings.dns_verdict(found));
            assert_eq!(got, [by_default, by_now, by_later], "{found:?}");
        }
        assert_eq!(V::HoldUntil(HOUR).bounce_age(), Some(HOUR));
        assert_eq!(V::Bounce.bounce_age(), Some(Duration::ZERO));
        assert_eq!(V::Retry.bounce_age(), None);
    }
}
