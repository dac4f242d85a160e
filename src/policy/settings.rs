//! The settings of a queue: one table says each one's name, type, default and key.

use std::sync::Arc;
use std::time::Duration;

use super::choices::{IpFamily, NoMx, NoMxLiveHost, NxDomain, StartTls};
use super::credentials::{Credentials, Password, check_password, check_username};
use super::error::PolicyError;
use super::file::{Item, read};
use super::hosts::FixedHost;
use super::retry::RetryAfter;
use super::unbuilt;
use super::value::{MAX_DURATION, Rate};
use crate::transport::{Protocol, TlsWish};

/// Makes [`QueueSettings`], [`DomainSettings`] and all that must name every setting from one list, so that no
/// setting can be known in one place and forgotten in another.
macro_rules! settings {
    ($($(#[$doc:meta])* $key:literal $field:ident, $with:ident: $kind:ty = $default:expr, $read:path, $check:path;)*) => {
        /// Every setting of one queue of one source, resolved by [`Policy::settings`](super::Policy::settings).
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub struct QueueSettings {
            $($(#[$doc])* #[doc = concat!("\n\nKey `", $key, "`.")] #[doc(alias = $key)] pub $field: $kind,)*
        }

        impl Default for QueueSettings {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        /// Some settings: those of one `[domain."…"]` of a policy. What is not set comes from a wider one.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct DomainSettings {
            $(pub(super) $field: Option<$kind>,)*
        }

        impl DomainSettings {
            pub(super) const KEYS: &[&str] = &[$($key),*];

            /// Nothing set.
            pub fn new() -> Self {
                Self::default()
            }

            $(
                #[doc = concat!("Sets [`QueueSettings::", stringify!($field), "`].")]
                #[doc(alias = $key)]
                pub fn $with(mut self, value: impl Into<$kind>) -> Self {
                    self.$field = Some(value.into());
                    self
                }
            )*

            /// Overwrites what is set here. Credentials are for the hosts that they stand beside: other fixed hosts
            /// are not sent them.
            pub(super) fn apply(&self, to: &mut QueueSettings) {
                if self.smtp_hosts.is_some() {
                    (to.auth_username, to.auth_password) = (None, None);
                    to.use_unencrypted_plain_auth = false;
                }
                $(if let Some(value) = &self.$field {
                    to.$field.clone_from(value);
                })*
            }

            /// Reads the key of `item`. A key it does not know changes nothing: the section refuses those.
            pub(super) fn read(&mut self, key: &str, item: &Item<'_>) -> Result<(), PolicyError> {
                match key {
                    $($key => {
                        let value: $kind = $read(item)?;
                        $check(&value).map_err(|problem| item.wrong(problem))?;
                        self.$field = Some(value);
                    })*
                    _ => {}
                }
                Ok(())
            }

            /// Whether all values are in range, as the file's reader checks them.
            pub(super) fn check(&self, path: &str) -> Result<(), PolicyError> {
                $(if let Some(value) = &self.$field {
                    $check(value).map_err(|problem| {
                        PolicyError::invalid(format!("{path}.{}", $key), format_args!("{value:?}"), problem)
                    })?;
                })*
                Ok(())
            }
        }
    };
}

settings! {
    /// How long to wait after each failed attempt. Default: 10 minutes, always.
    "retry-after" retry_after, with_retry_after: RetryAfter = RetryAfter::default(), read::retry_after, any;
    /// The largest random part, 0 to 0.5, by which an interval is lengthened. Default: 0, so that schedules are
    /// exact.
    "retry-jitter" retry_jitter, with_retry_jitter: f64 = 0.0, read::float, jitter;
    /// New mail for a destination in retry mode tries at once instead of waiting with it. Default: no, a dead
    /// host costs one connection per interval.
    "retry-upon-new-mail" retry_upon_new_mail, with_retry_upon_new_mail: bool = false, read::boolean, any;
    /// So many charged attempts expire a recipient. Default: none, time alone does.
    "max-attempts" max_attempts, with_max_attempts: Option<u32> = None, read::limit, limit;
    /// The age at which mail expires. Default: 4 days 12 hours; RFC 5321 §4.5.4.1 asks for 4 to 5 days.
    "bounce-after" bounce_after, with_bounce_after: Duration = HALF_DAY * 9, read::duration, positive;
    /// What becomes of mail for a domain without MX. Default: delivered to the domain itself, RFC 5321 §5.1.
    "bounce-upon-no-mx" bounce_upon_no_mx, with_bounce_upon_no_mx: NoMx = NoMx::Never, read::no_mx, no_mx;
    /// What becomes of mail for a domain that does not exist. Default: bounced at once.
    "bounce-upon-nxdomain" bounce_upon_nxdomain, with_bounce_upon_nxdomain: NxDomain = NxDomain::AtOnce,
        read::nxdomain, nxdomain;
    /// A 5xx greeting from every host bounces the mail. Default: no, it says nothing of the recipient.
    "bounce-upon-5xx-greeting" bounce_upon_5xx_greeting, with_bounce_upon_5xx_greeting: bool = false,
        read::boolean, any;
    /// Whether a host that greeted outlives `bounce-upon-no-mx`. Default: it does not.
    "no-mx-live-host" no_mx_live_host, with_no_mx_live_host: NoMxLiveHost = NoMxLiveHost::Bounce,
        read::no_mx_live_host, any;
    /// Connections of the queue. Default: 20.
    "max-smtp-out" max_smtp_out, with_max_smtp_out: Option<u32> = Some(20), read::limit, limit;
    /// Connections of the queue from one source address. Default: unlimited.
    "source-ip-max-smtp-out" source_ip_max_smtp_out, with_source_ip_max_smtp_out: Option<u32> = None,
        read::limit, limit;
    /// Transactions of one session. Default: 100, then a new connection finds a balanced server anew.
    "max-msg-per-connection" max_msg_per_connection, with_max_msg_per_connection: Option<u32> = Some(100),
        read::limit, limit;
    /// Recipients of one transaction. Default: 100, which every server takes (RFC 5321 §4.5.3.1.8).
    #[doc(alias = "max-rcpt-per-message")]
    "max-rcpt-per-transaction" max_rcpt_per_transaction, with_max_rcpt_per_transaction: u32 = 100,
        read::count, at_least_one;
    /// How long a session without work is kept open, at most 10 minutes. Default: 5 s.
    "connection-idle-timeout" connection_idle_timeout, with_connection_idle_timeout: Duration = Duration::from_secs(5),
        read::duration, idle;
    /// Fixed hosts, one list for each preference, best first: no MX look-up is done. Default: none.
    "smtp-hosts" smtp_hosts, with_smtp_hosts: Vec<Vec<FixedHost>> = Vec::new(), read::smtp_hosts, hosts;
    /// Which addresses of a host are tried. Default: both families.
    "ip-family" ip_family, with_ip_family: IpFamily = IpFamily::Both, read::ip_family, any;
    /// Recipients offered by the queue. Default: unlimited.
    "max-msg-rate" max_msg_rate, with_max_msg_rate: Option<Rate> = None, read::rate, any;
    /// Connections opened by the queue. Default: unlimited.
    "max-connect-rate" max_connect_rate, with_max_connect_rate: Option<Rate> = None, read::rate, any;
    /// Recipients offered by the queue from one source address. Default: unlimited.
    "source-ip-max-msg-rate" source_ip_max_msg_rate, with_source_ip_max_msg_rate: Option<Rate> = None,
        read::rate, any;
    /// Connections opened by the queue from one source address. Default: unlimited.
    "source-ip-max-connect-rate" source_ip_max_connect_rate, with_source_ip_max_connect_rate: Option<Rate> = None,
        read::rate, any;
    /// Encryption by STARTTLS. Default: if the server offers it.
    "use-starttls" use_starttls, with_use_starttls: StartTls = unbuilt::DEFAULT_STARTTLS, read::starttls, any;
    /// TLS from the first octet in place of STARTTLS, for fixed hosts that speak it (RFC 8314): only beside
    /// `smtp-hosts`, never in plain. Certificates are verified if `use-starttls` is "verify". Default: no.
    "use-implicit-tls" use_implicit_tls, with_use_implicit_tls: bool = false, read::boolean, any;
    /// LMTP (RFC 2033) in place of SMTP, for fixed hosts that speak it: only beside `smtp-hosts`, with the port there. Each
    /// recipient has a reply of its own to the content. Default: no.
    "use-lmtp" use_lmtp, with_use_lmtp: bool = false, read::boolean, any;
    /// Content goes by BDAT where the server offers CHUNKING (RFC 3030), as one chunk, once a recipient was accepted. The setting
    /// of the queue that the mail lies in counts. Default: no, content goes by DATA. BDAT saves no round trip, and a server that offers it
    /// and does not do it reads the content as commands: it is for smart hosts and receivers that one knows.
    "use-chunking" use_chunking, with_use_chunking: bool = false, read::boolean, any;
    /// Whom to authenticate as at fixed hosts (RFC 4954), by PLAIN or, where that is not offered, LOGIN: only
    /// beside `auth-password` and `smtp-hosts`. Default: nobody.
    "auth-username" auth_username, with_auth_username: Option<Arc<str>> = None, read::username, check_username;
    /// The password for `auth-username`. Default: none.
    "auth-password" auth_password, with_auth_password: Option<Password> = None, read::password, check_password;
    /// Name and password are sent without TLS too. Default: no, a host that can not have TLS is given up.
    "use-unencrypted-plain-auth" use_unencrypted_plain_auth, with_use_unencrypted_plain_auth: bool = false,
        read::boolean, any;
    /// Whether a domain's MTA-STS policy (RFC 8461) is kept: in mode `enforce` its mail goes only to hosts that the policy
    /// permits, over TLS with a certificate that is valid for the host's name, whatever `use-starttls` says; else it
    /// waits. The setting of the domain counts, also if it lies in a rollup. Without effect where `use-starttls` is "off", and for
    /// fixed hosts and address literals. Default: true with the feature `mta-sts`.
    "use-mta-sts" use_mta_sts, with_use_mta_sts: bool = unbuilt::DEFAULT_MTA_STS, read::boolean, any;
    /// DANE (RFC 7672): hosts with TLSA records are spoken to over TLS alone, with a certificate that matches one, whatever
    /// `use-starttls` says; else the next host is tried, and without one mail waits. Only where the resolver says that MX,
    /// addresses and records are authentic. The setting of the domain counts, also if it lies in a rollup. Fixed hosts have
    /// records for their own port. Without effect where `use-starttls` is "off" and over LMTP. Default: true with the feature `tls`.
    "use-dane" use_dane, with_use_dane: bool = false, read::boolean, any;
    /// `retry-after` while in backoff. Default: 1 hour, always.
    "backoff-retry-after" backoff_retry_after, with_backoff_retry_after: RetryAfter = RetryAfter::every(HOUR),
        read::retry_after, any;
    /// `max-smtp-out` while in backoff. Default: 1.
    "backoff-max-smtp-out" backoff_max_smtp_out, with_backoff_max_smtp_out: Option<u32> = Some(1),
        read::limit, limit;
    /// `max-msg-rate` while in backoff. Default: 1 a minute.
    "backoff-max-msg-rate" backoff_max_msg_rate, with_backoff_max_msg_rate: Option<Rate> = one_a_minute(),
        read::rate, any;
    /// Backoff ends by itself after this. Default (`None`, "never"): it does not.
    "backoff-to-normal-after" backoff_to_normal_after, with_backoff_to_normal_after: Option<Duration> = None,
        read::duration_or_never, optional_positive;
    /// Backoff ends with a successful delivery. Default: it does not.
    "backoff-to-normal-after-delivery" backoff_to_normal_after_delivery, with_backoff_to_normal_after_delivery: bool =
        false, read::boolean, any;
    /// More recipients that rules and DNS bounce than this hold the queue's mail. Default (`None`, "off"): they are not
    /// counted.
    "bounce-fuse" bounce_fuse, with_bounce_fuse: Option<Rate> = None, read::fuse, any;
    /// The domain never joins a rollup by its MX records. Default: it may.
    "disable-mx-rollup" disable_mx_rollup, with_disable_mx_rollup: bool = false, read::boolean, any;
    /// The rollup whose queue takes this domain's mail, whatever its MX records. Default: none.
    "queue-to" queue_to, with_queue_to: Option<super::RollupName> = None, read::queue_to, any;
}

impl QueueSettings {
    /// The TLS that sessions of the queue are to have.
    pub fn tls_wish(&self) -> TlsWish {
        // Hosts found by DNS are spoken to at the port of plain SMTP.
        let implicit = self.use_implicit_tls && !self.smtp_hosts.is_empty();
        TlsWish { level: self.use_starttls, implicit }
    }

    /// Whether the MTA-STS policies of its domains count. A queue that never uses TLS can keep none: its owner has decided.
    pub(crate) fn heeds_mta_sts(&self) -> bool {
        self.use_mta_sts && self.use_starttls != StartTls::Off
    }

    /// What is spoken with the queue's hosts.
    pub fn protocol(&self) -> Protocol {
        // Hosts found by DNS speak SMTP.
        if self.use_lmtp && !self.smtp_hosts.is_empty() { Protocol::Lmtp } else { Protocol::Smtp }
    }

    /// Whom sessions of the queue are authenticated as.
    pub fn credentials(&self) -> Option<Credentials> {
        // Hosts found by DNS are told no password.
        if self.smtp_hosts.is_empty() {
            return None;
        }
        let (username, password) = self.auth_username.clone().zip(self.auth_password.clone())?;
        Some(Credentials { username, password, unencrypted: self.use_unencrypted_plain_auth })
    }
}

impl DomainSettings {
    /// Sets [`QueueSettings::auth_username`] and [`QueueSettings::auth_password`], which go together, and only beside
    /// [`with_smtp_hosts`](Self::with_smtp_hosts).
    pub fn with_credentials(self, username: impl Into<Arc<str>>, password: impl Into<Password>) -> Self {
        self.with_auth_username(username.into()).with_auth_password(password.into())
    }

    /// What is wrong with settings that do not go together: the key, and the problem.
    pub(super) fn check_together(&self) -> Result<(), (&'static str, &'static str)> {
        let fixed = self.smtp_hosts.as_ref().is_some_and(|hosts| !hosts.is_empty());
        let has_name = matches!(self.auth_username, Some(Some(_)));
        let of_fixed_hosts = [
            ("use-implicit-tls", self.use_implicit_tls == Some(true)),
            ("use-lmtp", self.use_lmtp == Some(true)),
            ("auth-username", has_name),
        ];
        if let Some((key, _)) = of_fixed_hosts.into_iter().find(|&(_, is_set)| is_set && !fixed) {
            return Err((key, "only fixed hosts have it: name them beside it in smtp-hosts"));
        }
        match (has_name, matches!(self.auth_password, Some(Some(_)))) {
            (true, false) => {
                Err(("auth-username", r#"has no password: write auth-password = "…" beside it"#))
            }
            (false, true) => Err(("auth-password", r#"is nobody's: write auth-username = "…" beside it"#)),
            _ => Ok(()),
        }
    }
}

const HOUR: Duration = Duration::from_secs(60 * 60);
const HALF_DAY: Duration = Duration::from_secs(12 * 60 * 60);
const MAX_IDLE: Duration = Duration::from_secs(10 * 60);

fn one_a_minute() -> Option<Rate> {
    Rate::new(1, Duration::from_secs(60)).ok()
}

/// A check that passes, or says what the value is instead of what it should be: "is zero: …".
type Check = Result<(), &'static str>;

fn require(holds: bool, problem: &'static str) -> Check {
    if holds { Ok(()) } else { Err(problem) }
}

/// The type itself admits nothing wrong.
fn any<T>(_: &T) -> Check {
    Ok(())
}

fn jitter(jitter: &f64) -> Check {
    require(
        (0.0..=0.5).contains(jitter),
        "is out of range: write a number from 0 to 0.5, a part of the interval",
    )
}

pub(super) fn at_least_one(count: &u32) -> Check {
    require(*count > 0, "is zero: write a whole number of 1 or more")
}

fn limit(limit: &Option<u32>) -> Check {
    require(*limit != Some(0), r#"is zero: write a whole number of 1 or more, or "unlimited""#)
}

pub(super) fn positive(duration: &Duration) -> Check {
    require(*duration >= Duration::from_millis(1), r#"is no time at all: write a duration like "5m""#)?;
    require(*duration <= MAX_DURATION, "is longer than 10 years, the longest duration there is")
}

fn optional_positive(duration: &Option<Duration>) -> Check {
    duration.as_ref().map_or(Ok(()), positive)
}

fn idle(duration: &Duration) -> Check {
    require(*duration <= MAX_IDLE, r#"is too long: servers end idle sessions, write "10m" at most"#)
}

fn no_mx(no_mx: &NoMx) -> Check {
    match no_mx {
        NoMx::After(age) => positive(age),
        NoMx::Never | NoMx::Always => Ok(()),
    }
}

fn nxdomain(nxdomain: &NxDomain) -> Check {
    match nxdomain {
        NxDomain::After(age) => positive(age),
        NxDomain::AtOnce => Ok(()),
    }
}

fn hosts(hosts: &[Vec<FixedHost>]) -> Check {
    require(hosts.iter().all(|level| !level.is_empty()), "has a preference without a host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_documented() {
        let rate = |text: &str| Some(text.parse::<Rate>().unwrap());
        let got = QueueSettings::default();
        let minutes = |m: u64| Duration::from_secs(m * 60);
        assert_eq!(got.retry_after.intervals(), [minutes(10)]);
        assert_eq!(got.retry_jitter, 0.0);
        assert!(!got.retry_upon_new_mail);
        assert_eq!(got.max_attempts, None);
        assert_eq!(got.bounce_after, minutes((4 * 24 + 12) * 60));
        assert_eq!(got.bounce_upon_no_mx, NoMx::Never);
        assert_eq!(got.bounce_upon_nxdomain, NxDomain::AtOnce);
        assert!(!got.bounce_upon_5xx_greeting);
        assert_eq!(got.no_mx_live_host, NoMxLiveHost::Bounce);
        assert_eq!(got.max_smtp_out, Some(20));
        assert_eq!(got.source_ip_max_smtp_out, None);
        assert_eq!(got.max_msg_per_connection, Some(100));
        assert_eq!(got.max_rcpt_per_transaction, 100);
        assert_eq!(got.connection_idle_timeout, Duration::from_secs(5));
        assert!(got.smtp_hosts.is_empty());
        assert_eq!(got.ip_family, IpFamily::Both);
        assert_eq!((got.max_msg_rate, got.max_connect_rate), (None, None));
        assert_eq!((got.source_ip_max_msg_rate, got.source_ip_max_connect_rate), (None, None));
        let starttls = if cfg!(feature = "tls") { StartTls::Opportunistic } else { StartTls::Off };
        assert_eq!((got.use_starttls, StartTls::default()), (starttls, starttls));
        assert_eq!(
            (got.use_implicit_tls, got.use_mta_sts, got.use_dane, got.use_chunking),
            (false, cfg!(feature = "mta-sts"), false, false)
        );
        assert_eq!(
            (&got.auth_username, &got.auth_password, got.use_unencrypted_plain_auth),
            (&None, &None, false)
        );
        assert_eq!(got.backoff_retry_after.intervals(), [minutes(60)]);
        assert_eq!(got.backoff_max_smtp_out, Some(1));
        assert_eq!(got.backoff_max_msg_rate, rate("1/m"));
        assert_eq!(got.backoff_to_normal_after, None);
        assert!(!got.backoff_to_normal_after_delivery);
        assert_eq!(got.bounce_fuse, None);
        assert!(!got.disable_mx_rollup);
        assert_eq!(got.queue_to, None);
    }

    #[test]
    fn defaults_pass_their_own_checks() {
        let settings = DomainSettings::new()
            .with_bounce_after(QueueSettings::default().bounce_after)
            .with_max_smtp_out(5)
            .with_max_attempts(None)
            .with_retry_jitter(0.5);
        assert_eq!(settings.check("x"), Ok(()));
    }

    #[test]
    fn checks_name_key_and_value() {
        let zero = Duration::ZERO;
        for (settings, message) in [
            (DomainSettings::new().with_max_smtp_out(0), "d.max-smtp-out: Some(0) is zero: "),
            (DomainSettings::new().with_retry_jitter(f64::NAN), "d.retry-jitter: NaN is out of range: "),
            (DomainSettings::new().with_bounce_after(zero), "d.bounce-after: 0ns is no time at all: "),
            (
                DomainSettings::new().with_max_rcpt_per_transaction(0_u32),
                "d.max-rcpt-per-transaction: 0 is zero",
            ),
            (
                DomainSettings::new().with_bounce_upon_no_mx(NoMx::After(zero)),
                "d.bounce-upon-no-mx: After(0ns) ",
            ),
            (DomainSettings::new().with_smtp_hosts([vec![]]), "d.smtp-hosts: [[]] has a preference"),
        ] {
            let error = settings.check("d").unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
