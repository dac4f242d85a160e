//! Connection limits that hold across all queues.

use super::cidr::Cidr;
use super::pattern::NamePattern;

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
