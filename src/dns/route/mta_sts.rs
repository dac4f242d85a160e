//! What an MTA-STS policy makes of a route (RFC 8461 §4, §5).

use std::sync::Arc;

use super::{Route, RouteFailure, RouteFailureKind};
use crate::mta_sts::{KnownPolicy, Mode};

/// Host names in a message.
const NAMED: usize = 5;

impl Route {
    /// The route of a domain that has this policy. In mode `enforce` hosts that the policy does not permit keep their place,
    /// as rollup rules compare all that are published, but lose their addresses, and the others are to be spoken to over
    /// TLS ([`Route::is_enforced`]).
    ///
    /// Only for routes that DNS led to, not for fixed hosts and address literals.
    ///
    /// # Errors
    /// No host that the policy permits has an address: [`RouteFailureKind::MtaSts`]; or [`RouteFailureKind::Dane`], if one of them was
    /// barred before.
    pub fn under_policy(mut self, domain: &str, policy: Arc<KnownPolicy>) -> Result<Self, RouteFailure> {
        match policy.policy().mode() {
            Mode::None => return Ok(self),
            Mode::Testing => {}
            Mode::Enforce => {
                for host in self.hosts.iter_mut().filter(|host| !policy.policy().permits(&host.name)) {
                    (host.barred, host.unknown) = (true, false);
                    host.addresses.clear();
                }
            }
        }
        if !self.hosts.iter().any(|host| host.has_address()) {
            return Err(self.fails(domain, &policy));
        }
        self.mta_sts = Some(policy);
        Ok(self)
    }

    fn fails(&self, domain: &str, policy: &KnownPolicy) -> RouteFailure {
        let permitted = || self.hosts.iter().filter(|host| policy.policy().permits(&host.name));
        // The policy has barred none of them.
        let (kind, why) = if permitted().any(|host| host.barred) {
            let why = "the hosts it permits are barred by DANE: what they demand is not known";
            (RouteFailureKind::Dane, why)
        } else if permitted().next().is_some() {
            (RouteFailureKind::MtaSts, "the hosts it permits have no address")
        } else {
            (RouteFailureKind::MtaSts, "it permits none of the hosts")
        };
        let mut names: Vec<&str> = self.hosts.iter().take(NAMED).map(|host| &*host.name).collect();
        if self.hosts.len() > NAMED {
            names.push("…");
        }
        let message = format!("{domain}: MTA-STS policy {}: {why} ({})", policy.id(), names.join(", "));
        RouteFailure::new(kind, message)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dns::{RouteHost, RouteKind};

    fn route(hosts: &[(&str, u32)]) -> Route {
        let host = |&(name, addresses): &(&str, u32)| RouteHost {
            name: name.into(),
            preference: 0,
            addresses: (0..addresses).map(|n| format!("192.0.2.{n}:25").parse().unwrap()).collect(),
            barred: false,
            unknown: false,
            tlsa: None,
        };
        let hosts = hosts.iter().map(host).collect();
        let (kind, ttl) = (RouteKind::Mx, Duration::from_secs(60));
        Route { hosts, kind, ttl, mta_sts: None, policy_unknown: false }
    }

    fn policy(mode: &str) -> Arc<KnownPolicy> {
        let text =
            format!("version: STSv1\nmode: {mode}\nmx: a.example.net\nmx: *.mail.example.net\nmax_age: 9");
        KnownPolicy::for_tests("7", &text)
    }

    #[test]
    fn only_enforce_bars_hosts() {
        let found = route(&[("a.example.net", 2), ("b.example.net", 1), ("x.mail.example.net", 1)]);
        let enforced = found.clone().under_policy("example.net", policy("enforce")).unwrap();
        let left = |route: &Route| -> Vec<(bool, usize)> {
            route.hosts.iter().map(|host| (host.barred, host.addresses.len())).collect()
        };
        assert_eq!(left(&enforced), [(false, 2), (true, 0), (false, 1)]);
        assert_eq!(enforced.exchangers(), found.exchangers(), "rollup rules see all that are published");
        assert!(enforced.is_enforced());
        let testing = found.clone().under_policy("example.net", policy("testing")).unwrap();
        assert_eq!((testing.hosts.clone(), testing.is_enforced()), (found.hosts.clone(), false));
        assert!(testing.mta_sts.is_some());
        assert_eq!(found.clone().under_policy("example.net", policy("none")).unwrap(), found);
    }

    #[test]
    fn nothing_permitted_is_a_failure_that_passes() {
        for (hosts, message) in [
            (
                &[("b.example.net", 1), ("c.example.net", 1)][..],
                "example.net: MTA-STS policy 7: it permits none of the hosts (b.example.net, c.example.net)",
            ),
            (
                &[("a.example.net", 0), ("b.example.net", 1)],
                "example.net: MTA-STS policy 7: the hosts it permits have no address (a.example.net, b.example.net)",
            ),
        ] {
            let failure = route(hosts).under_policy("example.net", policy("enforce")).unwrap_err();
            assert_eq!((failure.to_string().as_str(), failure.kind), (message, RouteFailureKind::MtaSts));
            assert!(!failure.is_permanent());
            assert_eq!(failure.status().to_string(), "4.7.0");
        }
    }

    #[test]
    fn hosts_barred_by_dane_are_not_told_as_barred_by_the_policy() {
        let mut hosts = route(&[("a.example.net", 0), ("b.example.net", 1)]);
        hosts.hosts[0].barred = true;
        let failure = hosts.under_policy("example.net", policy("enforce")).unwrap_err();
        assert_eq!(failure.kind, RouteFailureKind::Dane);
        let expected = "example.net: MTA-STS policy 7: the hosts it permits are barred by DANE: what they demand is not \
            known (a.example.net, b.example.net)";
        assert_eq!(failure.to_string(), expected);
    }
}
