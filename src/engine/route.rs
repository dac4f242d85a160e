//! A destination's route: by MX, or to the fixed hosts of its queue.

use std::sync::Arc;

use crate::dns::{Freshness, Resolver, Route, RouteFailure, RouteOptions, find_fixed_route, find_route};
use crate::message::Domain;
use crate::policy::{Policy, QueueSettings};

pub(super) async fn look_up(
    resolver: &dyn Resolver,
    policy: &Policy,
    hostname: &str,
    domain: &Domain,
    source: &str,
    settings: &QueueSettings,
    freshness: Freshness,
) -> Result<Arc<Route>, RouteFailure> {
    let source = policy.source(source);
    let (ipv4, ipv6) = source.map_or((None, None), |source| (source.ipv4(), source.ipv6()));
    let any_family = ipv4.is_none() && ipv6.is_none();
    let ehlo = source.and_then(|source| source.ehlo());
    let own_names = [Some(hostname), ehlo.map(AsRef::as_ref)].into_iter().flatten().map(str::to_owned);
    let options = RouteOptions {
        own_names: own_names.collect(),
        prohibited: policy.prohibited().to_vec(),
        families: settings.ip_family,
        port: policy.smtp().port,
        ipv4_source: any_family || ipv4.is_some(),
        ipv6_source: any_family || ipv6.is_some(),
    };
    let route = if settings.smtp_hosts.is_empty() {
        find_route(resolver, domain, &options, freshness).await
    } else {
        find_fixed_route(resolver, &settings.smtp_hosts, &options).await
    };
    route.map(Arc::new)
}
