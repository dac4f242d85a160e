//! A TLSA record.

use std::fmt;
use std::sync::Arc;

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
