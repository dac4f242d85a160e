//! Connection limits that hold across all queues.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::Policy;
use super::cidr::Cidr;
use super::pattern::NamePattern;
use crate::message::normal_name;

/// At most so many connections, open and opening, to an address (`[[ip-connection-limit]]`). Of several that
/// contain an address the longest prefix wins; an address in none has no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IpConnectionLimit {
    /// The addresses.
    pub cidr: Cidr,
    /// Connections to each of them; 1 or more.
    pub limit: u32,
    /// The limit is for all addresses of the range together.
    pub shared: bool,
    /// The limit is for each source address.
    pub per_source: bool,
}

impl IpConnectionLimit {
    /// `limit` connections to each address in `cidr`.
    pub fn new(cidr: Cidr, limit: u32) -> Self {
        Self { cidr, limit, shared: false, per_source: false }
    }

    /// One limit for the whole range.
    #[must_use]
    pub fn with_shared(mut self, shared: bool) -> Self {
        self.shared = shared;
        self
    }

    /// A limit for each pair of source address and destination address.
    #[must_use]
    pub fn with_per_source(mut self, per_source: bool) -> Self {
        self.per_source = per_source;
        self
    }
}

/// At most so many connections, open and opening, to each host whose name matches (`[[mx-connection-limit]]`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MxConnectionLimit {
    /// The hosts.
    pub mx: NamePattern,
    /// Connections; 1 or more.
    pub limit: u32,
}

impl MxConnectionLimit {
    /// `limit` connections to each host that `mx` matches.
    pub fn new(mx: NamePattern, limit: u32) -> Self {
        Self { mx, limit }
    }
}

/// The limits that hold.
impl Policy {
    /// The limit for connections to `address`: that of the longest prefix that contains it. An IPv4-mapped IPv6
    /// address counts as its IPv4.
    ///
    /// ```
    /// # use postrider::policy::{IpConnectionLimit, Policy};
    /// let policy = Policy::new().with_ip_connection_limit(IpConnectionLimit::new("192.0.2.0/24".parse()?, 10))?;
    /// assert_eq!(policy.ip_connection_limit("192.0.2.7".parse()?).map(|limit| limit.limit), Some(10));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn ip_connection_limit(&self, address: IpAddr) -> Option<&IpConnectionLimit> {
        self.0.ip_limits.get(address)
    }

    /// The limits for connections to hosts by name, in order.
    pub fn mx_connection_limits(&self) -> &[MxConnectionLimit] {
        &self.0.mx_limits.limits
    }

    /// The limit for connections to the host of this name, the most specific one: a name goes before wildcards, of
    /// wildcards the one with more after its `*`, then the one with more before it. The order of adding plays no
    /// part. Case, a trailing dot and U-labels do not matter.
    ///
    /// ```
    /// # use postrider::policy::{MxConnectionLimit, Policy};
    /// let policy = Policy::new().with_mx_connection_limit(MxConnectionLimit::new("*.mail.example".parse()?, 5))?;
    /// assert_eq!(policy.mx_connection_limit("mx1.mail.example").map(|limit| limit.limit), Some(5));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn mx_connection_limit(&self, host: &str) -> Option<&MxConnectionLimit> {
        self.0.mx_limits.get(host)
    }
}

/// Limits by range.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct IpLimits {
    limits: BTreeMap<Cidr, IpConnectionLimit>,
    /// Those that another for the same range may replace.
    base: BTreeSet<Cidr>,
}

impl IpLimits {
    /// All there are become the base of those to come.
    pub(super) fn are_base(&mut self) {
        self.base = self.limits.keys().copied().collect();
    }

    /// False if the range has one already.
    pub(super) fn insert(&mut self, limit: IpConnectionLimit) -> bool {
        let new = !self.limits.contains_key(&limit.cidr) || self.base.remove(&limit.cidr);
        if new {
            self.limits.insert(limit.cidr, limit);
        }
        new
    }

    /// Ranges are ordered by their start, then wide to narrow. So the last one up to `address` holds the longest
    /// prefix, if it contains the address. If not, all that contain the address contain the start of that one too:
    /// what the two share is the longest such a prefix can be. Each step looks at a shorter one.
    fn get(&self, address: IpAddr) -> Option<&IpConnectionLimit> {
        let mut longest = Cidr::host(address);
        loop {
            let (cidr, limit) = self.limits.range(..=longest).next_back()?;
            if cidr.contains(address) {
                return Some(limit);
            }
            longest = longest.shared(cidr)?;
        }
    }
}

/// Limits by name, found without looking at those for other names.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct MxLimits {
    limits: Vec<MxConnectionLimit>,
    /// Places in `limits`.
    exact: HashMap<Box<str>, usize>,
    /// The same, by what stands after the `*`; more before it first.
    wildcards: HashMap<Box<str>, Vec<usize>>,
}

impl MxLimits {
    /// False if the pattern has one already.
    pub(super) fn insert(&mut self, limit: MxConnectionLimit) -> bool {
        let Self { limits, exact, wildcards } = self;
        let place = limits.len();
        if let Some(name) = limit.mx.exact() {
            if exact.contains_key(name) {
                return false;
            }
            exact.insert(name.into(), place);
        } else if let Some((head, tail)) = limit.mx.around_star() {
            let head_of =
                |place: &usize| limits.get(*place).and_then(|l| l.mx.around_star()).map(|(head, _)| head);
            let same_tail = wildcards.entry(tail.into()).or_default();
            if same_tail.iter().any(|place| head_of(place) == Some(head)) {
                return false;
            }
            let at = same_tail.partition_point(|place| head_of(place).is_some_and(|h| h.len() > head.len()));
            same_tail.insert(at, place);
        }
        limits.push(limit);
        true
    }

    fn get(&self, host: &str) -> Option<&MxConnectionLimit> {
        if self.limits.is_empty() {
            return None;
        }
        let host = normal_name(host);
        if let Some(place) = self.exact.get(&*host) {
            return self.limits.get(*place);
        }
        // Tails from long to short; the empty one last.
        let tails = host.match_indices('.').map(|(dot, _)| host.split_at(dot).1).chain([""]);
        let places = tails.filter_map(|tail| self.wildcards.get(tail)).flatten();
        places.filter_map(|place| self.limits.get(*place)).find(|limit| limit.mx.matches(&host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip_limits(ranges: &[&str]) -> IpLimits {
        let mut limits = IpLimits::default();
        for (n, range) in (1..).zip(ranges) {
            assert!(limits.insert(IpConnectionLimit::new(range.parse().unwrap(), n)), "{range}");
        }
        limits
    }

    #[test]
    fn the_longest_prefix_wins() {
        let limits = ip_limits(&[
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.2.3",
            "10.1.2.128/25",
            "2001:db8::/32",
            "2001:db8::1",
            "255.255.255.255",
        ]);
        for (address, want) in [
            ("10.1.2.3", Some("10.1.2.3/32")),
            ("::ffff:10.1.2.3", Some("10.1.2.3/32")),
            ("10.1.2.4", Some("10.1.0.0/16")),
            ("10.1.2.128", Some("10.1.2.128/25")),
            ("10.1.3.0", Some("10.1.0.0/16")),
            ("10.2.0.0", Some("10.0.0.0/8")),
            ("11.0.0.0", Some("0.0.0.0/0")),
            ("0.0.0.0", Some("0.0.0.0/0")),
            ("255.255.255.254", Some("0.0.0.0/0")),
            ("255.255.255.255", Some("255.255.255.255/32")),
            ("2001:db8::1", Some("2001:db8::1/128")),
            ("2001:db8:1::", Some("2001:db8::/32")),
            ("2001:db9::", None),
            ("::", None),
            ("::a01:203", None),
        ] {
            let got = limits.get(address.parse().unwrap()).map(|limit| limit.cidr.to_string());
            assert_eq!(got.as_deref(), want, "{address}");
        }
        let mapped_only = ip_limits(&["::/0"]);
        assert!(mapped_only.get("192.0.2.1".parse().unwrap()).is_none(), "IPv4 is no part of ::/0");
        assert!(IpLimits::default().get("192.0.2.1".parse().unwrap()).is_none());
    }

    #[test]
    fn a_range_has_one_limit_and_keeps_its_kind() {
        let mut limits = IpLimits::default();
        let limit = IpConnectionLimit::new("192.0.2.0/24".parse().unwrap(), 3);
        let limit = limit.with_shared(true).with_per_source(true);
        assert!(limits.insert(limit.clone()));
        assert!(!limits.insert(IpConnectionLimit::new("::ffff:192.0.2.0/120".parse().unwrap(), 9)));
        assert_eq!(limits.get("192.0.2.1".parse().unwrap()), Some(&limit));
    }

    #[test]
    fn the_most_specific_name_wins() {
        let mut patterns = [
            "*",
            "mx.*",
            "*.example",
            "*.mail.example",
            "mx.*.mail.example",
            "mx1.mail.example",
            "*.mail.test",
        ];
        for _ in 0..2 {
            let mut limits = MxLimits::default();
            for pattern in patterns {
                assert!(limits.insert(MxConnectionLimit::new(pattern.parse().unwrap(), 1)));
            }
            for pattern in ["MX1.mail.example.", "*.example", "mx.*.mail.example", "*"] {
                assert!(!limits.insert(MxConnectionLimit::new(pattern.parse().unwrap(), 2)), "{pattern}");
            }
            for (host, want) in [
                ("mx1.mail.example", "mx1.mail.example"),
                ("MX1.Mail.Example.", "mx1.mail.example"),
                ("mx2.mail.example", "*.mail.example"),
                ("mx.a.mail.example", "mx.*.mail.example"),
                ("mx.mail.example", "*.mail.example"),
                ("mail.example", "*.example"),
                ("mx.example", "*.example"),
                ("mx.other", "mx.*"),
                ("mx.mail.test", "*.mail.test"),
                ("other", "*"),
            ] {
                assert_eq!(limits.get(host).unwrap().mx.to_string(), want, "{host}");
            }
            patterns.reverse();
        }
        let mut limits = MxLimits::default();
        assert!(limits.insert(MxConnectionLimit::new("*.mail.example".parse().unwrap(), 1)));
        assert_eq!(limits.get("mail.example"), None);
        assert_eq!(limits.get(".mail.example"), None);
        assert_eq!(MxLimits::default().get("x"), None);
    }

    proptest! {
        /// Few bits, so that ranges nest and lie side by side.
        #[test]
        fn ranges_are_found_as_by_looking_at_all(
            ranges in proptest::collection::vec((0..256_u32, 24..=32_u8, any::<bool>()), 0..40),
            address in 0..256_u32, v6: bool,
        ) {
            let at = |bits: u32, v6: bool| match v6 {
                false => IpAddr::V4((0xc000_0200 | bits).into()),
                true => IpAddr::V6((0x2001_0db8_u128 << 96 | u128::from(bits)).into()),
            };
            let mut limits = IpLimits::default();
            let mut all = Vec::new();
            for (bits, len, v6) in ranges {
                let cidr = Cidr::containing(at(bits, v6), if v6 { len + 96 } else { len }).unwrap();
                if limits.insert(IpConnectionLimit::new(cidr, 1)) {
                    all.push(cidr);
                }
            }
            let address = at(address, v6);
            let want = all.iter().filter(|cidr| cidr.contains(address)).max_by_key(|cidr| cidr.prefix_len());
            prop_assert_eq!(limits.get(address).map(|limit| &limit.cidr), want);
        }
    }
}
