//! Facts about names: what DNS has said of them so far, true or not.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

#[derive(Default)]
pub(super) struct Names {
    exchangers: HashMap<String, HashSet<String>>,
    addresses: HashMap<String, HashSet<IpAddr>>,
}

impl Names {
    pub(super) fn exchanger(&mut self, domain: &str, host: &str) {
        self.exchangers.entry(domain.to_owned()).or_default().insert(host.to_owned());
    }

    pub(super) fn address(&mut self, host: &str, address: IpAddr) {
        self.addresses.entry(host.to_owned()).or_default().insert(address.to_canonical());
    }

    /// Whether this was a mail exchanger of the domain.
    pub(super) fn takes_mail(&self, domain: &str, host: &str) -> bool {
        self.exchangers.get(domain).is_some_and(|hosts| hosts.contains(host))
    }

    /// Whether this was an address of the host.
    pub(super) fn leads(&self, host: &str, address: IpAddr) -> bool {
        self.addresses.get(host).is_some_and(|addresses| addresses.contains(&address))
    }
}
