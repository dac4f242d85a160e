//! What a route may use.

use std::net::IpAddr;

use crate::policy::{Cidr, IpFamily, default_prohibited};

/// What a route may use, and how it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteOptions {
    /// Names by which other hosts know this one. An MX record with one of them ends the list there
    /// (RFC 5321 §5.1). Default: none.
    pub own_names: Vec<String>,
    /// Addresses that are never tried when they come from DNS or a domain literal. An IPv4-mapped IPv6 address
    /// counts as its IPv4. Default: unspecified, loopback, link-local, multicast and broadcast.
    #[doc(alias = "prohibited-addresses")]
    pub prohibited: Vec<Cidr>,
    /// Families to use. Default: both.
    #[doc(alias = "ip-family")]
    pub families: IpFamily,
    /// The TCP port. Default: 25.
    pub port: u16,
    /// This machine can send from an IPv4 address. Default: true.
    pub ipv4_source: bool,
    /// This machine can send from an IPv6 address. Default: true.
    pub ipv6_source: bool,
    /// TLSA records of hosts are looked for (RFC 7672). Default: false.
    #[doc(alias = "use-dane")]
    pub dane: bool,
}

impl Default for RouteOptions {
    fn default() -> Self {
        Self {
            own_names: Vec::new(),
            prohibited: default_prohibited(),
            families: IpFamily::Both,
            port: 25,
            ipv4_source: true,
            ipv6_source: true,
            dane: false,
        }
    }
}

impl RouteOptions {
    pub(super) fn is_prohibited(&self, address: IpAddr) -> bool {
        self.prohibited.iter().any(|range| range.contains(address))
    }

    pub(super) fn uses_ipv4(&self) -> bool {
        self.ipv4_source && self.families != IpFamily::Ipv6
    }

    pub(super) fn uses_ipv6(&self) -> bool {
        self.ipv6_source && self.families != IpFamily::Ipv4
    }

    pub(super) fn uses(&self, address: IpAddr) -> bool {
        if address.to_canonical().is_ipv4() { self.uses_ipv4() } else { self.uses_ipv6() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prohibited_by_default() {
        let options = RouteOptions::default();
        for (address, prohibited) in [
            ("0.0.0.0", true),
            ("127.0.0.9", true),
            ("169.254.1.1", true),
            ("224.0.0.1", true),
            ("255.255.255.255", true),
            ("::", true),
            ("::1", true),
            ("fe80::1", true),
            ("ff02::1", true),
            ("::ffff:127.0.0.1", true),
            ("192.0.2.1", false),
            ("10.0.0.1", false),
            ("::ffff:192.0.2.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(options.is_prohibited(address.parse().unwrap()), prohibited, "{address}");
        }
    }
}
