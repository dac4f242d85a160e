//! A TXT record.

use std::fmt;
use std::sync::Arc;

/// A TXT record (RFC 1035 §3.3.14): its strings joined, with nothing between them, as all who give such records a
/// meaning read them. Any octets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxtRecord(Arc<[u8]>);

impl TxtRecord {
    /// Of these octets.
    pub fn new(octets: impl Into<Arc<[u8]>>) -> Self {
        Self(octets.into())
    }

    /// Its octets.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl From<&str> for TxtRecord {
    fn from(text: &str) -> Self {
        Self::new(text.as_bytes())
    }
}

impl fmt::Debug for TxtRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}
