//! Finds the policy that holds for a domain now (RFC 8461 §3.3, §5.1).

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::time::timeout;

use super::report::{Counts, SessionTls, TlsReport};
use super::store::{Decision, FAILURE_HOLDS, KnownPolicy, Store};
use super::{FetchError, FetchErrorKind, PolicyFetcher, PolicyRequest, StsPolicy, policy_id};
use crate::clock::{Clock, Timestamp};
use crate::dns::{Answer, Data, DnsError, DnsErrorKind, Freshness};
use crate::storage::{Change, StateRow};
use crate::transport::{CertificateBy, ConnectError, Target};

/// For all of a fetch, whoever makes it (RFC 8461 §3.3).
const LIMIT: Duration = Duration::from_secs(60);
/// For the TXT record. Some name servers never answer for names they do not know; mail shall not wait for that.
const RECORD_LIMIT: Duration = Duration::from_secs(5);

/// The policies of domains, and who gets them.
pub(crate) struct Policies {
    fetcher: Arc<dyn PolicyFetcher>,
    clock: Clock,
    state: Mutex<State>,
    counts: Mutex<Counts>,
    told_unsupported: AtomicBool,
}

#[derive(Default)]
struct State {
    store: Store,
    /// Domains whose policies are being fetched: who comes second waits, and finds what the first has got.
    flights: HashMap<Arc<str>, Arc<tokio::sync::Mutex<()>>>,
}

/// What holds for a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) policy: Option<Arc<KnownPolicy>>,
    /// Why the current policy could not be had. The one seen before counts, if there is one.
    pub(crate) failure: Option<PolicyFailure>,
    /// After this it is to be looked for again.
    pub(crate) again_in: Duration,
}

/// A policy that a domain says it has, and that could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyFailure {
    pub(crate) kind: FetchErrorKind,
    pub(crate) message: Arc<str>,
}

impl PolicyFailure {
    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        Self { kind: FetchErrorKind::NoAnswer, message: "mta-sts.example.net: no answer".into() }
    }
}

impl Policies {
    pub(crate) fn new(fetcher: Arc<dyn PolicyFetcher>, clock: Clock) -> Self {
        let counts = Mutex::new(Counts::new(clock.now()));
        Self { fetcher, clock, state: Mutex::default(), counts, told_unsupported: AtomicBool::new(false) }
    }

    /// Start-up: takes the rows that are policies out of `rows`.
    pub(crate) fn restore(&self, rows: &mut Vec<StateRow>, now: Timestamp) {
        let mut state = self.lock();
        rows.retain(|row| !state.store.restore(row, now));
    }

    /// What is to be made durable.
    pub(crate) fn take_changes(&self) -> Vec<Change> {
        self.lock().store.take_changes()
    }

    /// The policy that holds for a domain. Its TXT record is asked for each time, its policy when that names a new id.
    ///
    /// May be dropped at any time.
    pub(crate) async fn find(&self, request: &PolicyRequest<'_>, freshness: Freshness) -> Found {
        let domain = request.domain;
        let (id, again_in) = self.current_id(request, freshness).await;
        let mut decision = self.decide(domain, id.as_deref());
        if decision == Decision::Fetch
            && let Some(id) = &id
        {
            let flight = Flight::board(self, domain);
            let _alone = flight.lock.lock().await;
            decision = self.decide(domain, Some(id));
            if decision == Decision::Fetch {
                let result = self.fetch(request).await;
                decision = self.keep(domain, id, result);
            }
        }
        let Decision::Use { kept, failure, again_in: holds } = decision else {
            return Found { policy: None, failure: None, again_in };
        };
        Found { policy: kept, failure, again_in: again_in.min(holds) }
    }

    /// The id of a domain's current policy, and how long that holds.
    async fn current_id(
        &self,
        request: &PolicyRequest<'_>,
        freshness: Freshness,
    ) -> (Option<String>, Duration) {
        let name = format!("_mta-sts.{}", request.domain);
        let asked = timeout(RECORD_LIMIT, request.resolver.txt(&name, freshness)).await;
        let answer = asked.unwrap_or_else(|_| {
            let late = format!("TXT of {name}: no answer within {} s", RECORD_LIMIT.as_secs());
            Err(DnsError::new(DnsErrorKind::Timeout, late))
        });
        match answer {
            Ok(Answer { data: Data::Records(records), ttl, .. }) => match policy_id(&records) {
                Some(id) => (Some(id), ttl),
                None => (None, Duration::MAX),
            },
            Ok(_) => (None, Duration::MAX),
            Err(error) if error.kind() == DnsErrorKind::Unsupported => {
                if !self.told_unsupported.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "MTA-STS policies can not be found with this resolver");
                }
                (None, Duration::MAX)
            }
            Err(error) => {
                tracing::debug!(%error, "whether a domain has an MTA-STS policy is not known");
                (None, FAILURE_HOLDS)
            }
        }
    }

    fn decide(&self, domain: &str, id: Option<&str>) -> Decision {
        self.lock().store.decide(domain, id, self.clock.now())
    }

    async fn fetch(&self, request: &PolicyRequest<'_>) -> Result<StsPolicy, PolicyFailure> {
        let file: Result<Bytes, FetchError> =
            match AssertUnwindSafe(timeout(LIMIT, self.fetcher.fetch(request))).catch_unwind().await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => {
                    let late = format!("{}: no answer within {} s", request.host(), LIMIT.as_secs());
                    Err(FetchError::new(FetchErrorKind::NoAnswer, late))
                }
                Err(_) => Err(FetchError::new(FetchErrorKind::NoAnswer, "the policy fetcher panicked")),
            };
        match file {
            Ok(file) => StsPolicy::parse(&file).map_err(|error| PolicyFailure {
                kind: FetchErrorKind::NoPolicy,
                message: format!("{}: {error}", request.host()).into(),
            }),
            Err(error) => Err(PolicyFailure { kind: error.kind(), message: error.to_string().into() }),
        }
    }

    fn keep(&self, domain: &str, id: &str, result: Result<StsPolicy, PolicyFailure>) -> Decision {
        let now = self.clock.now();
        let store = &mut self.lock().store;
        match result {
            Ok(policy) => {
                let kept = Arc::new(KnownPolicy {
                    domain: domain.to_owned(),
                    id: id.to_owned(),
                    policy,
                    fetched: now,
                });
                store.fetched(domain, kept.clone());
                // Also one that is over at once was current now.
                Decision::Use { again_in: kept.left(now), kept: Some(kept), failure: None }
            }
            Err(failure) => {
                tracing::info!(%domain, reason = %failure.message, "an MTA-STS policy could not be had");
                self.counts().fetch(domain, failure.kind);
                store.failed(domain, id, now, failure);
                store.decide(domain, Some(id), now)
            }
        }
    }

    /// A connection for a domain that has a policy, and what it came to. Where the host's TLSA records decide, that says nothing
    /// of the policy (RFC 8461 §2).
    pub(crate) fn count_session(&self, target: &Target, session: Result<SessionTls, &ConnectError>) {
        let is_judged_otherwise = matches!(target.certificate_by(), CertificateBy::Tlsa(_));
        if let Some(policy) = target.mta_sts.as_ref().filter(|_| !is_judged_otherwise) {
            self.counts().session(policy, target, session);
        }
    }

    /// A policy that permits no host.
    pub(crate) fn count_nothing_permitted(&self, policy: &Arc<KnownPolicy>) {
        self.counts().nothing_permitted(policy);
    }

    /// What was counted since this was last asked.
    pub(crate) fn take_report(&self) -> TlsReport {
        self.counts().take(self.clock.now())
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of those who want a domain's policy fetched. The last of them takes it off the list.
struct Flight<'a> {
    policies: &'a Policies,
    domain: Arc<str>,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl<'a> Flight<'a> {
    fn board(policies: &'a Policies, domain: &str) -> Self {
        let domain: Arc<str> = domain.into();
        let lock = policies.lock().flights.entry(domain.clone()).or_default().clone();
        Self { policies, domain, lock }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut state = self.policies.lock();
        // The list's own, and this one.
        if Arc::strong_count(&self.lock) <= 2 {
            state.flights.remove(&self.domain);
        }
    }
}

#[cfg(test)]
mod tests;
