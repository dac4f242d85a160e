//! A destination's route: by MX, or to the fixed hosts of its queue, with the hosts' TLSA records; and what the domain's
//! MTA-STS policy makes of it.

use std::sync::Arc;

use futures::future;

use crate::dns::{Freshness, Resolver, Route, RouteFailure, RouteOptions, find_fixed_route, find_route};
use crate::message::Domain;
use crate::mta_sts::{FoundPolicy, Policies, PolicyRequest};
use crate::policy::{Policy, QueueSettings, StartTls};
use crate::transport::Protocol;

/// Whom to ask.
pub(super) struct LookUp<'a> {
    pub(super) resolver: &'a dyn Resolver,
    /// `None`: no domain has an MTA-STS policy.
    pub(super) policies: Option<&'a Policies>,
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
            return find_fixed_route(self.resolver, &settings.smtp_hosts, &options).await.map(Arc::new);
        }
        // Both at once. Without a route nobody waits for the policy.
        let route = find_route(self.resolver, domain, &options, freshness);
        let policy = async { Ok(self.find_policy(domain, settings, freshness).await) };
        let (route, found) = future::try_join(route, policy).await?;
        let Some((policies, found)) = found else { return Ok(Arc::new(route)) };
        let route = Route { ttl: route.ttl.min(found.again_in), ..route };
        let Some(policy) = found.policy else { return Ok(Arc::new(route)) };
        let route = route.under_policy(domain.as_str(), policy.clone());
        route.inspect_err(|_| policies.count_nothing_permitted(&policy)).map(Arc::new)
    }

    /// The MTA-STS policy that holds for the domain, and who keeps it. `None`: it is not wanted.
    async fn find_policy(
        &self,
        domain: &Domain,
        settings: &QueueSettings,
        freshness: Freshness,
    ) -> Option<(&Policies, FoundPolicy)> {
        // A queue that never uses TLS can keep no policy: its owner has decided.
        let wants = settings.use_mta_sts && settings.use_starttls != StartTls::Off;
        let policies = self.policies.filter(|_| wants && domain.literal_address().is_none())?;
        let request = PolicyRequest {
            domain: domain.as_str(),
            resolver: self.resolver,
            prohibited: self.policy.prohibited(),
        };
        Some((policies, policies.find(&request, freshness).await))
    }
}
