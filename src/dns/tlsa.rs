//! A TLSA record.

use std::fmt;
use std::sync::Arc;

/// Records of a host that are read.
const MOST_RECORDS: usize = 32;
/// Octets of their data together, and so of one.
const MOST_OCTETS: usize = 16 * 1024;

/// Whether it is more than is read of one answer. Part of it would be no answer: the record that counts may be in the rest.
pub(super) fn is_too_much(records: &[TlsaRecord]) -> bool {
    let octets: usize = records.iter().map(|record| record.data.len()).sum();
    records.len() > MOST_RECORDS || octets > MOST_OCTETS
}

/// A TLSA record (RFC 6698 §2.1), as DNS has it: any numbers, any data.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::exhaustive_structs, reason = "four fields are the standard")]
pub struct TlsaRecord {
    /// Certificate usage: 2 is DANE-TA, 3 is DANE-EE (RFC 7218).
    pub usage: u8,
    /// What of a certificate is compared: 0 all of it, 1 its public key.
    pub selector: u8,
    /// How: 0 as it is, 1 by SHA-256, 2 by SHA-512.
    pub matching_type: u8,
    /// What it is compared with.
    pub data: Arc<[u8]>,
}

impl TlsaRecord {
    /// Of these fields, in their order.
    pub fn new(usage: u8, selector: u8, matching_type: u8, data: impl Into<Arc<[u8]>>) -> Self {
        Self { usage, selector, matching_type, data: data.into() }
    }
}

/// As master files have it: `3 1 1 8CB0…`, its data in full.
impl fmt::Display for TlsaRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ", self.usage, self.selector, self.matching_type)?;
        self.data.iter().try_for_each(|octet| write!(f, "{octet:02X}"))
    }
}

impl fmt::Debug for TlsaRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
