//! How SMTP is spoken, the same for every queue.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

use super::cidr::Cidr;
use crate::transport::Timeouts;

/// The longest a phase of SMTP may be waited for: an hour. A session holds a connection all the while.
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Port and timeouts (`[smtp]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SmtpSettings {
    /// The port of hosts found by DNS, and of fixed hosts without one of their own. Default: 25.
    #[doc(alias = "default-smtp-port")]
    pub port: u16,
    /// How long to wait in each phase: RFC 5321 §4.5.3.2's minima, and 60 s for the connection.
    #[doc(alias = "smtp-greeting-timeout")]
    #[doc(alias = "data-send-timeout")]
    #[doc(alias = "smtp-data-termination-timeout")]
    pub timeouts: Timeouts,
}

impl Default for SmtpSettings {
    fn default() -> Self {
        Self { port: 25, timeouts: Timeouts::default() }
    }
}

/// One field of [`Timeouts`], to set it.
pub(super) type Phase = fn(&mut Timeouts) -> &mut Duration;

/// The phases: key, and PowerMTA's where it has one.
pub(super) const PHASES: &[(&str, Option<&str>, Phase)] = &[
    ("connect-timeout", None, |t| &mut t.connect),
    ("greeting-timeout", Some("smtp-greeting-timeout"), |t| &mut t.greeting),
    ("ehlo-timeout", None, |t| &mut t.ehlo),
    ("starttls-timeout", None, |t| &mut t.starttls),
    ("mail-timeout", None, |t| &mut t.mail),
    ("rcpt-timeout", None, |t| &mut t.rcpt),
    ("data-timeout", None, |t| &mut t.data),
    ("data-block-timeout", Some("data-send-timeout"), |t| &mut t.data_block),
    ("dot-timeout", Some("smtp-data-termination-timeout"), |t| &mut t.dot),
    ("quit-timeout", None, |t| &mut t.quit),
];

pub(super) fn check_timeout(timeout: &Duration) -> Result<(), &'static str> {
    if *timeout < Duration::from_millis(1) {
        Err(r#"is no time at all: write a duration like "5m""#)
    } else if *timeout > MAX_TIMEOUT {
        Err(r#"is too long: write "1h" at most"#)
    } else {
        Ok(())
    }
}

/// Addresses that are never tried when DNS names them: unspecified (all of "this network"), loopback, link-local,
/// multicast. The broadcast address goes with multicast: the system refuses it, and a stranger's zone must not
/// make that look like trouble of this machine.
pub(crate) fn default_prohibited() -> Vec<Cidr> {
    let v4 = |a, b, len| (IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)), len);
    let v6 = |first, last, len| (IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last)), len);
    let ranges = [
        v4(0, 0, 8),
        v4(127, 0, 8),
        v4(169, 254, 16),
        v4(224, 0, 4),
        (IpAddr::V4(Ipv4Addr::BROADCAST), 32),
        v6(0, 0, 128),
        v6(0, 1, 128),
        v6(0xfe80, 0, 10),
        v6(0xff00, 0, 8),
    ];
    // Every length above fits its family; one that did not would only shrink the range to one address.
    ranges
        .map(|(address, len)| Cidr::from_net(IpNet::new(address, len).unwrap_or_else(|_| address.into())))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_list_holds_what_it_says() {
        let list = default_prohibited();
        let written: Vec<String> = list.iter().map(ToString::to_string).collect();
        assert_eq!(
            written.join(" "),
            "0.0.0.0/8 127.0.0.0/8 169.254.0.0/16 224.0.0.0/4 255.255.255.255/32 ::/128 ::1/128 fe80::/10 ff00::/8"
        );
    }

    #[test]
    fn every_phase_sets_its_own_field() {
        let mut timeouts = Timeouts::default();
        for (n, (_, _, phase)) in (1..).zip(PHASES) {
            *phase(&mut timeouts) = Duration::from_secs(n);
        }
        let t = timeouts;
        let opening = [t.connect, t.greeting, t.ehlo, t.starttls];
        assert_eq!(opening.map(|d| d.as_secs()), [1, 2, 3, 4]);
        let rest = [t.mail, t.rcpt, t.data, t.data_block, t.dot, t.quit];
        assert_eq!(rest.map(|d| d.as_secs()), [5, 6, 7, 8, 9, 10]);
    }
}
