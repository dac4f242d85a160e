//! Fixed hosts: where a queue's mail goes without an MX look-up.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::message::Domain;

/// One fixed host (`smtp-hosts`): `host`, `host:port`, `[ip]` or `[ip]:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[doc(alias = "smtp-hosts")]
pub struct FixedHost {
    /// A name or an address.
    pub host: HostName,
    /// The port, if not that of [`SmtpSettings`](super::SmtpSettings).
    pub port: Option<u16>,
}

/// A host by name or by address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "a host is named or numbered")]
pub enum HostName {
    /// To be looked up: A and AAAA.
    Name(Arc<str>),
    /// Nothing to look up.
    Address(IpAddr),
}

/// Not a list of hosts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FixedHostError {
    /// One entry is no host.
    #[error(r#"not a host like "mx.example.com", "mx.example.com:2525", "[192.0.2.1]" or "[192.0.2.1]:2525": `{0}`"#)]
    Malformed(String),
    /// An address without brackets looks like a name to DNS.
    #[error("an address without brackets: write [{0}]")]
    Bare(IpAddr),
}

impl FromStr for FixedHost {
    type Err = FixedHostError;

    fn from_str(text: &str) -> Result<Self, FixedHostError> {
        if let Ok(address) = text.parse() {
            return Err(FixedHostError::Bare(address));
        }
        let malformed =
            || FixedHostError::Malformed(text.chars().take(80).flat_map(char::escape_debug).collect());
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (text, None),
        };
        let digits = |p: &str| p.bytes().all(|b| b.is_ascii_digit());
        let port = match port {
            Some(port) if digits(port) => Some(port.parse().ok().filter(|p| *p > 0).ok_or_else(malformed)?),
            Some(_) => return Err(malformed()),
            None => None,
        };
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(inner) => {
                let tagged = inner.split_at_checked(5).filter(|(tag, _)| tag.eq_ignore_ascii_case("ipv6:"));
                let address = tagged.map_or(inner, |(_, v6)| v6).parse().map_err(|_| malformed())?;
                HostName::Address(address)
            }
            None => match host.parse::<IpAddr>() {
                Ok(address) => return Err(FixedHostError::Bare(address)),
                Err(_) => HostName::Name(Domain::parse(host).map_err(|_| malformed())?.as_str().into()),
            },
        };
        Ok(Self { host, port })
    }
}

impl FixedHost {
    /// Reads a list: `,` between hosts of the same preference, `;` before the next, worse preference.
    ///
    /// # Errors
    /// [`FixedHostError`] names the first entry that is no host.
    pub fn parse_list(text: &str) -> Result<Vec<Vec<Self>>, FixedHostError> {
        text.split(';').map(|level| level.split(',').map(|host| host.trim().parse()).collect()).collect()
    }
}

impl fmt::Display for FixedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            HostName::Name(name) => f.write_str(name)?,
            HostName::Address(address) => write!(f, "[{address}]")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commas_and_semicolons_make_preferences() {
        let hosts =
            FixedHost::parse_list("a.example, b.example:2525; [192.0.2.1]:25,[::1],[IPv6:::2]:7").unwrap();
        let written: Vec<Vec<String>> =
            hosts.iter().map(|level| level.iter().map(ToString::to_string).collect()).collect();
        assert_eq!(
            written,
            [vec!["a.example", "b.example:2525"], vec!["[192.0.2.1]:25", "[::1]", "[::2]:7"]]
        );
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "",
            ",",
            "a.example;",
            "a.example:",
            "a.example:0",
            "a.example:65536",
            "a.example:+1",
            "[x]",
            "[::1",
        ] {
            assert!(matches!(FixedHost::parse_list(text), Err(FixedHostError::Malformed(_))), "{text}");
        }
        for text in ["127.0.0.1", "127.0.0.1:25", "::1"] {
            assert!(matches!(FixedHost::parse_list(text), Err(FixedHostError::Bare(_))), "{text}");
        }
        assert!(FixedHost::parse_list("lookup-mx:example.com").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), close in r"[a-z0-9\[\]:.,;é]{0,16}") {
            let _ = FixedHost::parse_list(&text);
            if let Ok(host) = close.parse::<FixedHost>() {
                prop_assert_eq!(host.to_string().parse::<FixedHost>().unwrap(), host);
            }
        }
    }
}
