//! Ranges of addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

/// A range of addresses, such as `192.0.2.0/24`, or one address.
///
/// IPv4-mapped IPv6 (`::ffff:192.0.2.1`) counts as IPv4 everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(IpNet);

/// Not a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CidrError {
    /// Neither an address nor an address, a slash and a prefix length.
    #[error(r#"not an address range: write it like "192.0.2.0/24", "2001:db8::/32" or "192.0.2.1""#)]
    Malformed,
    /// Bits past the prefix are set, so it is unclear which range is meant.
    #[error("not the start of its range: write {0}")]
    NotTheStart(Cidr),
}

impl Cidr {
    /// The range of one address.
    pub fn host(address: IpAddr) -> Self {
        Self(IpNet::from(address.to_canonical()))
    }

    /// The range of this prefix length that `address` lies in.
    pub(super) fn containing(address: IpAddr, prefix_len: u8) -> Option<Self> {
        IpNet::new(address.to_canonical(), prefix_len).ok().map(Self::from_net)
    }

    /// The smallest range that contains this one and the start of `other`; `None` across families.
    pub(super) fn shared(&self, other: &Self) -> Option<Self> {
        let bits = match (self.0.addr(), other.0.addr()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
            _ => return None,
        };
        Self::containing(self.0.addr(), u8::try_from(bits).ok()?.min(self.prefix_len()))
    }

    pub(super) fn from_net(net: IpNet) -> Self {
        Self(net.trunc())
    }

    /// Whether `address` lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// How many leading bits are fixed: of two ranges that contain an address the one with more is nearer.
    pub fn prefix_len(&self) -> u8 {
        self.0.prefix_len()
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::host(address));
        }
        let mut net: IpNet = text.parse().map_err(|_| CidrError::Malformed)?;
        if let IpNet::V6(v6) = net
            && let (Some(v4), Some(len)) = (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96))
            && let Ok(v4) = Ipv4Net::new(v4, len)
        {
            net = v4.into();
        }
        if net.trunc() == net { Ok(Self(net)) } else { Err(CidrError::NotTheStart(Self(net.trunc()))) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_count_as_ipv4() {
        let net: Cidr = "192.0.2.0/24".parse().unwrap();
        assert_eq!("::ffff:192.0.2.0/120".parse::<Cidr>().unwrap(), net);
        for (address, inside) in
            [("192.0.2.255", true), ("::ffff:192.0.2.1", true), ("192.0.3.0", false), ("::1", false)]
        {
            assert_eq!(net.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert_eq!("::ffff:192.0.2.7".parse::<Cidr>().unwrap().to_string(), "192.0.2.7/32");
        assert_eq!("2001:db8::/32".parse::<Cidr>().unwrap().prefix_len(), 32);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "x", "192.0.2.0/33", "192.0.2/24", "192.0.2.0/", "2001:db8::/129"] {
            assert_eq!(text.parse::<Cidr>(), Err(CidrError::Malformed), "{text}");
        }
        let error = "192.0.2.9/24".parse::<Cidr>().unwrap_err();
        assert_eq!(error.to_string(), "not the start of its range: write 192.0.2.0/24");
    }
}
