//! The addresses of a route's hosts.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::OptionFuture;

use super::dane::{Demand, Origin};
use super::{Limit, RouteOptions};
use crate::dns::{Answer, Data, DnsError, DnsErrorKind, Freshness, Resolver};
use crate::message::is_host_name;

/// Of each family, so of one host twice as many at most.
const MAX_ADDRESSES: usize = 16;
/// Hosts looked up at a time for one route.
const HOSTS_AT_A_TIME: usize = 8;

/// What was found out about one host, or about several together.
#[derive(Debug)]
pub(super) struct Found {
    ipv4: Vec<SocketAddr>,
    ipv6: Vec<SocketAddr>,
    /// The least TTL of the addresses.
    pub(super) ttl: Duration,
    /// An address of a family that is not used.
    pub(super) unusable: Option<IpAddr>,
    /// An address that is never tried.
    pub(super) prohibited: Option<IpAddr>,
    /// A look-up that failed.
    pub(super) error: Option<DnsError>,
    /// What is known of the name.
    origin: Origin,
    /// What the host demands by DANE, if it has an address.
    pub(super) demand: Demand,
}

impl Default for Found {
    fn default() -> Self {
        Self {
            ipv4: Vec::new(),
            ipv6: Vec::new(),
            ttl: Duration::MAX,
            unusable: None,
            prohibited: None,
            error: None,
            origin: Origin::default(),
            demand: Demand::Nothing,
        }
    }
}

impl Found {
    pub(super) fn has_address(&self) -> bool {
        !self.ipv4.is_empty() || !self.ipv6.is_empty()
    }

    pub(super) fn address(
        &mut self,
        address: IpAddr,
        port: u16,
        options: &RouteOptions,
        obeys_prohibition: bool,
    ) {
        let address = address.to_canonical();
        if obeys_prohibition && options.is_prohibited(address) {
            self.prohibited.get_or_insert(address);
        } else if !options.uses(address) {
            self.unusable.get_or_insert(address);
        } else {
            let list = if address.is_ipv4() { &mut self.ipv4 } else { &mut self.ipv6 };
            let peer = SocketAddr::new(address, port);
            if list.len() < MAX_ADDRESSES && !list.contains(&peer) {
                list.push(peer);
            }
        }
    }

    /// Takes over what is said beside the addresses.
    pub(super) fn add(&mut self, other: &Self) {
        self.unusable = self.unusable.or(other.unusable);
        self.prohibited = self.prohibited.or(other.prohibited);
        if let Some(error) = &other.error {
            self.failed(error.clone());
        }
    }

    fn failed(&mut self, error: DnsError) {
        // This machine's own trouble stands only if nothing else happened.
        if self.error.as_ref().is_none_or(|old| old.kind() == DnsErrorKind::Unreachable) {
            self.error = Some(error);
        }
    }

    pub(super) fn into_addresses(self) -> Vec<SocketAddr> {
        let mut addresses = Vec::with_capacity(self.ipv4.len() + self.ipv6.len());
        let (mut ipv4, mut ipv6) = (self.ipv4.into_iter(), self.ipv6.into_iter());
        loop {
            let (a, b) = (ipv4.next(), ipv6.next());
            if a.is_none() && b.is_none() {
                return addresses;
            }
            addresses.extend(a.into_iter().chain(b));
        }
    }
}

/// Looks up hosts.
#[derive(Clone, Copy)]
pub(super) struct Hosts<'a> {
    pub(super) resolver: &'a dyn Resolver,
    pub(super) options: &'a RouteOptions,
    pub(super) freshness: Freshness,
    pub(super) limit: Limit,
    pub(super) obeys_prohibition: bool,
    /// TLSA records are looked for, and these are names of the domain whose hosts they are.
    pub(super) dane: Option<&'a [Arc<str>]>,
}

impl Hosts<'_> {
    /// The usable addresses of hosts (name, the address if it is known, port), in the same order.
    pub(super) async fn find(self, hosts: Vec<(Arc<str>, Option<IpAddr>, u16)>) -> Vec<(Arc<str>, Found)> {
        let (ipv4, ipv6) = (self.options.uses_ipv4(), self.options.uses_ipv6());
        futures::stream::iter(hosts)
            .map(|(name, address, port)| async move {
                let mut found = Found::default();
                match address {
                    Some(address) => found.address(address, port, self.options, self.obeys_prohibition),
                    None => self.ask(&name, port, ipv4, ipv6, &mut found).await,
                }
                if found.has_address() {
                    let (demand, ttl) = self.demand(&name, port, &found.origin).await;
                    (found.demand, found.ttl) = (demand, found.ttl.min(ttl));
                }
                (name, found)
            })
            .buffered(HOSTS_AT_A_TIME)
            .collect()
            .await
    }

    /// None of the hosts has an address to use: finds out whether they have one of a family not used.
    pub(super) async fn explain(self, preferences: &mut [Vec<(Arc<str>, Found)>]) {
        let (ipv4, ipv6) = (!self.options.uses_ipv4(), !self.options.uses_ipv6());
        let unknown =
            |found: &Found| found.error.is_none() && found.unusable.is_none() && found.prohibited.is_none();
        if (ipv4 || ipv6) && preferences.iter().flatten().all(|(_, found)| unknown(found)) {
            futures::stream::iter(preferences.iter_mut().flatten())
                .for_each_concurrent(HOSTS_AT_A_TIME, |(name, found)| self.ask(name, 0, ipv4, ipv6, found))
                .await;
        }
    }

    async fn ask(self, host: &str, port: u16, ipv4: bool, ipv6: bool, found: &mut Found) {
        // A name that DNS can carry but no host can have is as good as one that is not there.
        if !is_host_name(host) {
            return;
        }
        let (resolver, limit) = (self.resolver, self.limit);
        let ipv4 = ipv4.then(|| limit.keep("A", host, resolver.ipv4(host, self.freshness)));
        let ipv6 = ipv6.then(|| limit.keep("AAAA", host, resolver.ipv6(host, self.freshness)));
        let (ipv4, ipv6) = tokio::join!(OptionFuture::from(ipv4), OptionFuture::from(ipv6));
        self.take(ipv4, port, found);
        self.take(ipv6, port, found);
    }

    fn take<T: Into<IpAddr> + Clone>(
        self,
        answer: Option<Result<Answer<T>, DnsError>>,
        port: u16,
        found: &mut Found,
    ) {
        match answer {
            Some(Ok(answer)) => {
                let Data::Records(records) = &answer.data else { return };
                found.ttl = found.ttl.min(answer.ttl);
                found.origin.learn(&answer);
                for address in records.iter().cloned() {
                    found.address(address.into(), port, self.options, self.obeys_prohibition);
                }
            }
            Some(Err(error)) => found.failed(error),
            None => {}
        }
    }
}
