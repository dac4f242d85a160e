//! Hosts given by configuration instead of DNS: smart hosts.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::mx::normal;
use crate::message::is_host_name;

/// A host that mail is sent to whatever MX records say.
///
/// Read from text as `mx.example.net`, `mx.example.net:2525`, `192.0.2.1`, `[192.0.2.1]:2525`, `2001:db8::1` or
/// `[2001:db8::1]:2525`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "name and port are all there is")]
pub struct FixedHost {
    /// Who.
    pub host: FixedName,
    /// The TCP port, if not the usual one.
    pub port: Option<u16>,
}

/// A host by name or by address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "RFC 5321 §2.3.5 knows these two")]
pub enum FixedName {
    /// Its A and AAAA records are looked up. Lower case, A-labels, without trailing dot.
    Name(String),
    /// Nothing is looked up.
    Address(IpAddr),
}

/// Text that names no host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a host like mx.example.net, mx.example.net:2525 or [192.0.2.1]:2525, with a port of 1 to 65535"
)]
pub struct FixedHostError(String);

impl FromStr for FixedHost {
    type Err = FixedHostError;

    fn from_str(text: &str) -> Result<Self, FixedHostError> {
        let bad = || FixedHostError(text.escape_debug().to_string());
        if let Ok(address) = text.parse() {
            return Ok(Self { host: FixedName::Address(address), port: None });
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (address, rest) = bracketed.split_once(']').ok_or_else(bad)?;
                let v6 =
                    address.get(..5).filter(|tag| tag.eq_ignore_ascii_case("ipv6:")).and(address.get(5..));
                let address = match v6 {
                    Some(v6) => v6.parse::<Ipv6Addr>().map_err(|_| bad())?.into(),
                    None => address.parse().map_err(|_| bad())?,
                };
                let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(bad)?) };
                (FixedName::Address(address), port)
            }
            None => {
                let (host, port) = match text.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (text, None),
                };
                let host = match host.parse() {
                    Ok(address) => FixedName::Address(address),
                    Err(_) => {
                        FixedName::Name(Some(normal(host)).filter(|n| is_host_name(n)).ok_or_else(bad)?)
                    }
                };
                (host, port)
            }
        };
        let port = match port {
            Some(port) => Some(port.parse().ok().filter(|&port| port != 0).ok_or_else(bad)?),
            None => None,
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for FixedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            FixedName::Name(name) => f.write_str(name)?,
            FixedName::Address(address) => write!(f, "[{address}]")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_and_written() {
        for (text, written) in [
            ("MX.example.net.", "mx.example.net"),
            ("mx.example.net:2525", "mx.example.net:2525"),
            ("192.0.2.1", "[192.0.2.1]"),
            ("192.0.2.1:2525", "[192.0.2.1]:2525"),
            ("[127.0.0.9]:2525", "[127.0.0.9]:2525"),
            ("2001:db8::1", "[2001:db8::1]"),
            ("[2001:db8::1]:25", "[2001:db8::1]:25"),
            ("[IPv6:2001:db8::1]", "[2001:db8::1]"),
        ] {
            let host: FixedHost = text.parse().unwrap();
            assert_eq!(host.to_string(), written);
            assert_eq!(written.parse::<FixedHost>().unwrap(), host);
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for bad in [
            "",
            ":25",
            "a:0",
            "a:65536",
            "a:b",
            "[a]",
            "[127.0.0.1",
            "[127.0.0.1]25",
            "a b",
            "[IPv6:1.2.3.4]",
        ] {
            assert!(bad.parse::<FixedHost>().is_err(), "{bad:?}");
        }
    }
}
