//! Mailbox addresses (RFC 5321 §4.1.2, RFC 6531 §3.3).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::domain::{Domain, DomainError};

/// A mailbox, `local-part@domain`, safe to put on an SMTP command line.
///
/// It holds no control character and no angle bracket, and a space only within quotes, so it can not end or extend a command. The
/// domain is sent as A-labels; the local part is never changed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct Address {
    text: Arc<str>,
    domain: Domain,
}

/// As a store gives it back, whatever that holds.
#[derive(Deserialize)]
#[serde(rename = "Address")]
struct Stored {
    text: Arc<str>,
    domain: Domain,
}

impl TryFrom<Stored> for Address {
    type Error = AddressError;

    fn try_from(Stored { text, domain }: Stored) -> Result<Self, AddressError> {
        match parts(&text)? {
            (local, after) if after == domain.as_str() => check(&text, local)?,
            _ => return Err(AddressError::Incomplete(escaped(&text))),
        }
        Ok(Self { text, domain })
    }
}

/// Where bounces go: a mailbox, or nothing (`<>`, RFC 5321 §4.5.5).
pub type ReversePath = Option<Address>;

/// Why an address was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// No `@` between a local part and a domain.
    #[error("`{0}` is not an address: it needs a local part, an @ and a domain")]
    Incomplete(String),
    /// A character that may not stand in a local part.
    #[error("`{address}`: the local part may not hold {found:?}")]
    LocalPart {
        /// The address, control characters escaped.
        address: String,
        /// The offending character.
        found: char,
    },
    /// Longer than a path may be (RFC 5321 §4.5.3.1.3).
    #[error("an address of {0} octets is too long: at most {max}", max = Address::MAX_LENGTH)]
    TooLong(usize),
    /// The part after the `@`.
    #[error(transparent)]
    Domain(#[from] DomainError),
}

impl Address {
    /// A path has at most 256 octets with its brackets (RFC 5321 §4.5.3.1.3).
    pub const MAX_LENGTH: usize = 254;

    /// Parses a bare mailbox, without brackets or display name.
    ///
    /// # Errors
    /// [`AddressError`], naming what is wrong.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let (local, domain) = parts(text)?;
        let domain = Domain::parse(domain)?;
        let text: Arc<str> = format!("{local}@{domain}").into();
        check(&text, local)?;
        Ok(Self { text, domain })
    }

    /// The mailbox as it goes on the wire.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The normalised domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Whether the receiver must offer SMTPUTF8 (RFC 6531): the local part is not ASCII.
    pub fn needs_smtputf8(&self) -> bool {
        !self.text.is_ascii()
    }
}

/// Local part and domain, neither of them empty.
fn parts(text: &str) -> Result<(&str, &str), AddressError> {
    let parts = text.rsplit_once('@').filter(|(local, domain)| !local.is_empty() && !domain.is_empty());
    parts.ok_or_else(|| AddressError::Incomplete(escaped(text)))
}

fn check(text: &str, local: &str) -> Result<(), AddressError> {
    if let Some(found) = forbidden_in_local_part(local) {
        return Err(AddressError::LocalPart { address: escaped(text), found });
    }
    if text.len() > Address::MAX_LENGTH { Err(AddressError::TooLong(text.len())) } else { Ok(()) }
}

fn escaped(text: &str) -> String {
    text.chars().take(300).collect::<String>().escape_debug().to_string()
}

/// The first character that may not stand there. Dots are not policed: mailboxes such as `a..b@` exist.
fn forbidden_in_local_part(local: &str) -> Option<char> {
    let quoted = local.len() >= 2 && local.starts_with('"') && local.ends_with('"');
    if !quoted {
        return local.chars().find(|&c| c.is_control() || c.is_whitespace() || "()<>[]:;@\\,\"".contains(c));
    }
    let mut escaped = false;
    let inner = local.get(1..local.len() - 1).unwrap_or_default();
    for c in inner.chars() {
        // RFC 5321 §4.1.2: of white space, the space alone.
        if c.is_control() || c.is_whitespace() && c != ' ' || c == '<' || c == '>' || (c == '"' && !escaped) {
            return Some(c);
        }
        escaped = c == '\\' && !escaped;
    }
    escaped.then_some('\\')
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_parts_are_kept_and_domains_normalised() {
        let address = Address::parse("Jo.Doe+x@Example.ORG").unwrap();
        assert_eq!(address.as_str(), "Jo.Doe+x@example.org");
        assert_eq!(address.domain().as_str(), "example.org");
        assert!(!address.needs_smtputf8());
        assert!(Address::parse("jörg@example.org").unwrap().needs_smtputf8());
        assert!(!Address::parse("joe@bücher.example").unwrap().needs_smtputf8());
        assert!(Address::parse(r#""a\"b@c"@example.org"#).is_ok());
        assert!(Address::parse("\"John Doe\"@example.org").is_ok());
        assert!(Address::parse("a..b@example.org").is_ok());
        assert!(Address::parse("postmaster@[192.0.2.1]").is_ok());
    }

    #[test]
    fn nothing_can_leave_the_command_line() {
        for bad in [
            "",
            "a",
            "@b.example",
            "a@",
            "a b@c.example",
            "a\r\nRCPT TO:<x@y>@c.example",
            "a\0@c.example",
            "a@c.example\r\n",
            "a>@c.example",
            "\"a\tb\"@c.example",
            "\"a\u{a0}b\"@c.example",
            "\"a> b\"@c.example",
            "\"a\"b\"@c.example",
            "\"a\\\"@c.example",
            "a,b@c.example",
            "<a@c.example>",
            "a@c.example SIZE=1",
            "a\u{2028}b@c.example",
            "a@b@c.example",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad:?}");
        }
        let long = format!("{}@example.org", "a".repeat(250));
        assert_eq!(Address::parse(&long), Err(AddressError::TooLong(262)));
    }

    #[test]
    fn what_a_store_gives_back_is_checked_too() {
        for good in ["jo@example.org", "jo@[IPv6:2001:db8::1]", "\"a@b c\"@xn--bcher-kva.example"] {
            let address = Address::parse(good).unwrap();
            let kept = postcard::to_stdvec(&address).unwrap();
            assert_eq!(postcard::from_bytes(&kept), Ok(address));
        }
        let long = format!("{}@c.example", "a".repeat(250));
        for (text, domain) in [
            ("a@b.example>\r\nRCPT TO:<evil@c.example", "c.example"),
            ("a b@c.example", "c.example"),
            ("a@c.example", "d.example"),
            ("a@C.example", "C.example"),
            ("a@c.example\r\n", "c.example\r\n"),
            ("@c.example", "c.example"),
            (&long, "c.example"),
        ] {
            let forged = postcard::to_stdvec(&(text, domain)).unwrap();
            assert!(postcard::from_bytes::<Address>(&forged).is_err(), "{text:?}");
        }
    }
}
