//! Mail domains as the engine keys them.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

/// A recipient's domain: lower case, A-labels (RFC 5890), no trailing dot; or an address literal in brackets
/// (RFC 5321 §4.1.3).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "SmolStr")]
pub struct Domain(SmolStr);

/// As a store gives it back, whatever that holds.
impl TryFrom<SmolStr> for Domain {
    type Error = DomainError;

    fn try_from(text: SmolStr) -> Result<Self, DomainError> {
        let is_normal = match text.starts_with('[') {
            true => Self::parse_literal(&text)?.0 == text,
            false => is_host_name(&text) && !text.bytes().any(|octet| octet.is_ascii_uppercase()),
        };
        if is_normal { Ok(Self(text)) } else { Err(DomainError::Invalid(text.escape_debug().to_string())) }
    }
}

/// Why a domain was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// No domain at all.
    #[error("the domain is empty")]
    Empty,
    /// Neither letters, digits, hyphens and dots, nor a valid internationalised name.
    #[error(
        "`{0}` is not a domain name: labels of letters, digits and hyphens, at most 63 octets each and 253 together"
    )]
    Invalid(String),
    /// Brackets around something that is no address.
    #[error("`{0}` is not an address literal like [192.0.2.1] or [IPv6:2001:db8::1]")]
    InvalidLiteral(String),
}

impl Domain {
    /// Normalises `text`: case, internationalised labels, one trailing dot.
    ///
    /// # Errors
    /// [`DomainError`] when it is neither a domain name nor an address literal.
    pub fn parse(text: &str) -> Result<Self, DomainError> {
        if text.starts_with('[') {
            return Self::parse_literal(text);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(DomainError::Empty);
        }
        let invalid = || DomainError::Invalid(text.escape_debug().to_string());
        let ascii = if name.is_ascii() && !name.to_ascii_lowercase().contains("xn--") {
            name.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii(name).map_err(|_| invalid())?
        };
        if is_host_name(&ascii) { Ok(Self(ascii.into())) } else { Err(invalid()) }
    }

    fn parse_literal(text: &str) -> Result<Self, DomainError> {
        let invalid = || DomainError::InvalidLiteral(text.escape_debug().to_string());
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).ok_or_else(invalid)?;
        let v6 = inner.get(..5).filter(|tag| tag.eq_ignore_ascii_case("ipv6:")).and(inner.get(5..));
        let normal = match v6 {
            Some(v6) => format!("[IPv6:{}]", v6.parse::<Ipv6Addr>().map_err(|_| invalid())?),
            None => format!("[{}]", inner.parse::<Ipv4Addr>().map_err(|_| invalid())?),
        };
        Ok(Self(normal.into()))
    }

    pub(super) fn text(&self) -> &SmolStr {
        &self.0
    }

    /// The normalised text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address, if this is a literal: no MX look-up is done for those.
    pub fn literal_address(&self) -> Option<IpAddr> {
        let inner = self.0.strip_prefix('[')?.strip_suffix(']')?;
        inner.strip_prefix("IPv6:").unwrap_or(inner).parse().ok()
    }
}

/// A name as [`Domain`] keys it, however it is spelled: what is no domain in lower case, without its trailing dot. A name in
/// normal form is not copied.
pub(crate) fn normal_name(name: &str) -> Cow<'_, str> {
    let is_normal = |byte: u8| byte.is_ascii() && !byte.is_ascii_uppercase();
    if name.bytes().all(is_normal) && !name.ends_with('.') && !name.starts_with('[') {
        return Cow::Borrowed(name);
    }
    match Domain::parse(name) {
        Ok(domain) => Cow::Owned(domain.as_str().to_owned()),
        Err(_) => Cow::Owned(name.strip_suffix('.').unwrap_or(name).to_lowercase()),
    }
}

/// Letters, digits, hyphens and underscores (which DNS allows and mail meets) in labels of 1 to 63 octets.
pub(crate) fn is_host_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Domain {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Domain {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        for (given, normal) in [
            ("Example.ORG.", "example.org"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.example", "xn--bcher-kva.example"),
            ("[192.0.2.1]", "[192.0.2.1]"),
            ("[ipv6:2001:DB8::1]", "[IPv6:2001:db8::1]"),
        ] {
            assert_eq!(Domain::parse(given).unwrap().as_str(), normal);
        }
    }

    #[test]
    fn bad_names_are_refused() {
        let long = "a".repeat(64);
        for bad in ["", ".", "a..b", "a b.c", "a\r\n.b", &long, "[1.2.3]", "[::1]", "[1.2.3.4", "a/b"] {
            assert!(Domain::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn literals_give_their_address() {
        assert_eq!(Domain::parse("[192.0.2.1]").unwrap().literal_address(), Some([192, 0, 2, 1].into()));
        assert!(Domain::parse("[IPv6:::1]").unwrap().literal_address().unwrap().is_loopback());
        assert_eq!(Domain::parse("example.org").unwrap().literal_address(), None);
    }
}
