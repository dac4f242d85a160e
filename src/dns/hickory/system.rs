//! The system's name servers.

use std::net::SocketAddr;

use super::HickoryError;

/// Their addresses, and whether their AD bit is to count.
#[cfg(any(unix, windows))]
pub(super) fn nameservers() -> Result<(Vec<SocketAddr>, bool), HickoryError> {
    let (config, _) = hickory_resolver::system_conf::read_system_conf()
        .map_err(|error| HickoryError::System(error.into()))?;
    let servers = config.name_servers.iter().map(|server| {
        let port = server.connections.first().map_or(53, |connection| connection.port);
        SocketAddr::new(server.ip, port)
    });
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for server in servers {
        if !addresses.contains(&server) {
            addresses.push(server);
        }
    }
    let options = if cfg!(unix) { std::fs::read("/etc/resolv.conf").unwrap_or_default() } else { Vec::new() };
    Ok((addresses, trusts_ad(&options)))
}

#[cfg(not(any(unix, windows)))]
pub(super) fn nameservers() -> Result<(Vec<SocketAddr>, bool), HickoryError> {
    Err(HickoryError::System("not known how to read it on this system".into()))
}

/// Whether this `resolv.conf` has the option `trust-ad`.
fn trusts_ad(resolv_conf: &[u8]) -> bool {
    let has_it = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        words.next() == Some("options") && words.any(|word| word == "trust-ad")
    };
    String::from_utf8_lossy(resolv_conf).lines().any(has_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_is_an_option() {
        for (text, expected) in [
            ("nameserver 192.0.2.1\noptions edns0 trust-ad\n", true),
            ("options ndots:1\noptions\ttrust-ad", true),
            ("nameserver 192.0.2.1\n", false),
            ("#options trust-ad\noptions notrust-ad trust-ads", false),
            ("search trust-ad", false),
        ] {
            assert_eq!(trusts_ad(text.as_bytes()), expected, "{text}");
        }
    }
}
