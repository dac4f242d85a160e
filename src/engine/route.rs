//! A destination's route: by MX, or to the fixed hosts of its queue, with the hosts' TLSA records; and what the domain's
//! MTA-STS policy makes of it.

use std::sync::Arc;

use futures::future;

use crate::dns::{
    Freshness, Resolver, Route, RouteFailure, RouteFailureKind, RouteOptions, find_fixed_route, find_route,
};
use crate::message::Domain;
use crate::mta_sts::{FoundPolicy, Policies, SoughtPolicy};
use crate::policy::{Policy, QueueSettings, StartTls};
use crate::tls_report::TlsCounts;
use crate::transport::Protocol;

/// Whom to ask.
pub(super) struct LookUp<'a> {
    pub(super) resolver: &'a Arc<dyn Resolver>,
    /// `None`: no domain has an MTA-STS policy.
    pub(super) policies: Option<&'a Arc<Policies>>,
    pub(super) tls_counts: &'a TlsCounts,
    pub(super) policy: &'a Policy,
    pub(super) hostname: &'a str,
}

impl LookUp<'_> {
    pub(super) async fn route(
        &self,
        domain: &Domain,
        source: &str,
        settings: &QueueSettings,
        freshness: Freshness,
    ) -> Result<Arc<Route>, RouteFailure> {
        let source = self.policy.source(source);
        let (ipv4, ipv6) = source.map_or((None, None), |source| (source.ipv4(), source.ipv6()));
        let any_family = ipv4.is_none() && ipv6.is_none();
        let ehlo = source.and_then(|source| source.ehlo());
        let own_names = [Some(self.hostname), ehlo.map(AsRef::as_ref)].into_iter().flatten();
        let options = RouteOptions {
            own_names: own_names.map(str::to_owned).collect(),
            prohibited: self.policy.prohibited().to_vec(),
            families: settings.ip_family,
            port: self.policy.smtp().port,
            ipv4_source: any_family || ipv4.is_some(),
            ipv6_source: any_family || ipv6.is_some(),
            dane: settings.use_dane
                && settings.use_starttls != StartTls::Off
                && settings.protocol() == Protocol::Smtp,
        };
        if !settings.smtp_hosts.is_empty() {
            return find_fixed_route(&**self.resolver, &settings.smtp_hosts, &options).await.map(Arc::new);
        }
        // Both at once. Without a route nobody waits for the policy.
        let route = self.find_route(domain, &options, freshness);
        let policy = async { Ok(self.find_policy(domain, settings, freshness).await) };
        let (route, found) = future::try_join(route, policy).await?;
        let Some(found) = found else { return Ok(Arc::new(route)) };
        let policy_unknown = !found.is_current;
        let route = Route { ttl: route.ttl.min(found.again_in), policy_unknown, ..route };
        let Some(policy) = found.policy else { return Ok(Arc::new(route)) };
        let route = route.under_policy(domain.as_str(), policy.clone());
        if route.as_ref().is_err_and(|failure| failure.kind == RouteFailureKind::MtaSts) {
            self.tls_counts.nothing_permitted(&policy);
        }
        route.map(Arc::new).map_err(|failure| RouteFailure { policy_unknown, ..failure })
    }

    async fn find_route(
        &self,
        domain: &Domain,
        options: &RouteOptions,
        freshness: Freshness,
    ) -> Result<Route, RouteFailure> {
        let found = find_route(&**self.resolver, domain, options, freshness).await;
        match &found {
            // Nothing but DANE has barred any so far.
            Ok(route) => {
                let barred = route.hosts.iter().filter(|host| host.barred);
                barred.for_each(|host| self.tls_counts.records_unknown(domain.as_str(), Some(&host.name)));
            }
            Err(failure) if failure.kind == RouteFailureKind::Dane => {
                self.tls_counts.records_unknown(domain.as_str(), None);
            }
            Err(_) => {}
        }
        found
    }

    /// The MTA-STS policy that holds for the domain. `None`: it is not wanted.
    async fn find_policy(
        &self,
        domain: &Domain,
        settings: &QueueSettings,
        freshness: Freshness,
    ) -> Option<FoundPolicy> {
        let counts = settings.heeds_mta_sts() && domain.literal_address().is_none();
        let policies = self.policies.filter(|_| counts)?;
        let sought = SoughtPolicy {
            domain: domain.as_str(),
            resolver: self.resolver,
            prohibited: self.policy.prohibited(),
        };
        Some(policies.find(&sought, freshness).await)
    }
}
