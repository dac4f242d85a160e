//! A destination's route: by MX, or to the fixed hosts of its queue; and what the domain's MTA-STS policy makes of it.

use std::sync::Arc;

use crate::dns::{
    Freshness, Resolver, Route, RouteFailure, RouteKind, RouteOptions, find_fixed_route, find_route,
};
use crate::message::Domain;
use crate::mta_sts::{Policies, PolicyRequest};
use crate::policy::{Policy, QueueSettings, StartTls};

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
        };
        if !settings.smtp_hosts.is_empty() {
            return find_fixed_route(self.resolver, &settings.smtp_hosts, &options).await.map(Arc::new);
        }
        let route = find_route(self.resolver, domain, &options, freshness).await?;
        self.under_policy(domain, settings, freshness, route).await.map(Arc::new)
    }

    async fn under_policy(
        &self,
        domain: &Domain,
        settings: &QueueSettings,
        freshness: Freshness,
        mut route: Route,
    ) -> Result<Route, RouteFailure> {
        // A queue that never uses TLS can keep no policy: its owner has decided.
        let wants = settings.use_mta_sts && settings.use_starttls != StartTls::Off;
        let Some(policies) = self.policies.filter(|_| wants && route.kind != RouteKind::Literal) else {
            return Ok(route);
        };
        let request = PolicyRequest {
            domain: domain.as_str(),
            resolver: self.resolver,
            prohibited: self.policy.prohibited(),
        };
        let found = policies.find(&request, freshness).await;
        route.ttl = route.ttl.min(found.again_in);
        match found.policy {
            Some(policy) => route.under_policy(domain.as_str(), policy.clone()).inspect_err(|_| {
                policies.count_nothing_permitted(&policy);
            }),
            None => Ok(route),
        }
    }
}
