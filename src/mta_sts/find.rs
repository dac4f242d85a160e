//! Finds the policy that holds for a domain now (RFC 8461 §3.3, §5.1).

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::store::{Decision, Fetch, KnownPolicy, REST, Store};
use super::turns::{Turn, Turns};
use super::{FetchError, FetchErrorKind, PolicyFetcher, PolicyRequest, StsPolicy, policy_id};
use crate::clock::{Clock, Timestamp};
use crate::dns::{Answer, Data, DnsError, DnsErrorKind, Freshness, Resolver};
use crate::policy::Cidr;
use crate::storage::{Change, StateRow};
use crate::tls_report::TlsCounts;

/// For all of a fetch, whoever makes it (RFC 8461 §3.3).
const LIMIT: Duration = Duration::from_secs(60);
/// For the TXT record. Some name servers never answer for names they do not know; mail shall not wait for that.
const RECORD_LIMIT: Duration = Duration::from_secs(5);
/// How long a look-up waits for a policy that is new. A web server that is slow shall not keep others' look-ups from their
/// turn (RFC 8461 §5.1 lets policies be fetched beside deliveries).
const PATIENCE: Duration = Duration::from_secs(10);
/// Fetches under way at a time of policies that are new, and as many of those that are seen again; and of each for names with the
/// same two last labels, and with the same three.
const MOST_FETCHES: usize = 256;
const MOST_OF_WIDE_GROUP: usize = 16;
const MOST_OF_NARROW_GROUP: usize = 4;
/// Characters kept of what a fetcher says.
const MOST_SAID: usize = 500;

/// The policies of domains, and who gets them. Fetches are tasks of their own: a look-up waits for one for a moment, or not at
/// all, and what is got serves the next.
pub(crate) struct Policies {
    fetcher: Arc<dyn PolicyFetcher>,
    clock: Clock,
    state: Mutex<State>,
    turns: Arc<Turns>,
    /// A policy that holds runs out if it is not seen again: it does not stand behind new ones.
    refresh_turns: Arc<Turns>,
    /// There is something to be made durable.
    changed: Notify,
    counts: Arc<TlsCounts>,
    told_unsupported: AtomicBool,
}

#[derive(Default)]
struct State {
    store: Store,
    /// Domains whose policies are being fetched, and what comes of it: nothing yet, a policy, or the end.
    flights: HashMap<Arc<str>, Flight>,
    tasks: JoinSet<()>,
}

type Flight = watch::Receiver<Option<Arc<KnownPolicy>>>;

/// Whose policy is wanted, and what there is to find the way by.
#[derive(Clone, Copy)]
pub(crate) struct Sought<'a> {
    pub(crate) domain: &'a str,
    pub(crate) resolver: &'a Arc<dyn Resolver>,
    pub(crate) prohibited: &'a [Cidr],
}

/// What a domain's TXT record says of its policy now.
enum Record {
    NotKnown,
    NoPolicy,
    /// Its policy has this id.
    Id(String),
}

impl Record {
    fn id(&self) -> Option<&str> {
        match self {
            Self::Id(id) => Some(id),
            Self::NotKnown | Self::NoPolicy => None,
        }
    }
}

/// What holds for a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) policy: Option<Arc<KnownPolicy>>,
    /// Whether that is all the domain says now, and not just what it said before: its record could be asked for, and it names no other.
    pub(crate) is_current: bool,
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
    pub(crate) fn new(fetcher: Arc<dyn PolicyFetcher>, clock: Clock, counts: Arc<TlsCounts>) -> Self {
        Self {
            fetcher,
            clock,
            state: Mutex::default(),
            turns: Turns::new(MOST_FETCHES, MOST_OF_WIDE_GROUP, MOST_OF_NARROW_GROUP),
            refresh_turns: Turns::new(MOST_FETCHES, MOST_OF_WIDE_GROUP, MOST_OF_NARROW_GROUP),
            changed: Notify::new(),
            counts,
            told_unsupported: AtomicBool::new(false),
        }
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

    /// They could not be made durable: they come with the next ones.
    pub(crate) fn put_back_changes(&self, changes: Vec<Change>) {
        self.lock().store.put_back_changes(changes);
    }

    /// The policy that holds for a domain, as far as it is known. Nobody is asked.
    pub(crate) fn known(&self, domain: &str) -> Option<Arc<KnownPolicy>> {
        self.lock().store.known(domain, self.clock.now()).cloned()
    }

    /// Waits until there is something to be made durable.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Ends all fetches.
    pub(crate) async fn stop(&self) {
        let mut tasks = std::mem::take(&mut self.lock().tasks);
        tasks.shutdown().await;
    }

    /// The policy that holds for a domain. Its TXT record is asked for each time. Its policy is fetched when that names a new id:
    /// for one that is had within 10 s this waits; and when the one that holds is to be seen again, beside it.
    ///
    /// May be dropped at any time.
    pub(crate) async fn find(self: &Arc<Self>, sought: &Sought<'_>, freshness: Freshness) -> Found {
        let (record, holds) = self.record(sought, freshness).await;
        let mut decision = self.decide(sought.domain, record.id());
        match decision.fetch {
            Fetch::No => {}
            Fetch::Refresh => {
                let id = record.id().or_else(|| Some(decision.kept.as_ref()?.id()));
                if let (Some(id), Some(turn)) = (id, self.refresh_turns.take(sought.domain)) {
                    self.begin(sought, id, turn);
                }
            }
            Fetch::New => {
                let fetched = timeout(PATIENCE, self.fetched(sought, record.id())).await;
                if let Ok(Some(policy)) = fetched {
                    // Also one that is over at once was current now.
                    let again_in = holds.min(policy.refresh_in(self.clock.now()));
                    let is_current = record.id() == Some(policy.id());
                    return Found { policy: Some(policy), is_current, failure: None, again_in };
                }
                decision = self.decide(sought.domain, record.id());
            }
        }
        let Decision { kept, failure, again_in, fetch } = decision;
        // It may come any moment.
        let limit = if fetch == Fetch::New { LIMIT } else { Duration::MAX };
        let is_current = match record {
            Record::NotKnown => false,
            Record::NoPolicy => true,
            Record::Id(id) => kept.as_ref().is_some_and(|kept| kept.id == id),
        };
        Found { policy: kept, is_current, failure, again_in: holds.min(again_in).min(limit) }
    }

    /// Waits for a policy that is being fetched, or has it fetched. `None`: it was not had, or is known by now.
    async fn fetched(self: &Arc<Self>, sought: &Sought<'_>, id: Option<&str>) -> Option<Arc<KnownPolicy>> {
        let under_way = self.lock().flights.get(sought.domain).cloned();
        let mut flight = match under_way {
            Some(flight) => flight,
            None => {
                let turn = self.turns.wait(sought.domain).await?;
                // Somebody may have fetched it while this one waited for its turn.
                if self.decide(sought.domain, id).fetch == Fetch::No {
                    return None;
                }
                self.begin(sought, id?, turn)
            }
        };
        flight.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Has a policy fetched, unless it is being fetched.
    fn begin(self: &Arc<Self>, sought: &Sought<'_>, id: &str, turn: Turn) -> Flight {
        let mut state = self.lock();
        if let Some(flight) = state.flights.get(sought.domain) {
            return flight.clone();
        }
        let domain: Arc<str> = sought.domain.into();
        let (result, flight) = watch::channel(None);
        state.flights.insert(domain.clone(), flight.clone());
        let landing = Landing { policies: self.clone(), domain, _turn: turn };
        let (id, resolver, prohibited) = (id.to_owned(), sought.resolver.clone(), sought.prohibited.to_vec());
        while state.tasks.try_join_next().is_some() {}
        state.tasks.spawn(async move {
            let (policies, domain) = (&landing.policies, &*landing.domain);
            let request = PolicyRequest { domain, resolver: &*resolver, prohibited: &prohibited };
            let fetched = policies.fetch(&request).await;
            result.send_replace(policies.keep(domain, &id, fetched));
        });
        flight
    }

    /// A domain's TXT record, and how long it holds.
    async fn record(&self, sought: &Sought<'_>, freshness: Freshness) -> (Record, Duration) {
        let name = format!("_mta-sts.{}", sought.domain);
        let asked = timeout(RECORD_LIMIT, sought.resolver.txt(&name, freshness)).await;
        let answer = asked.unwrap_or_else(|_| {
            let late = format!("TXT of {name}: no answer within {} s", RECORD_LIMIT.as_secs());
            Err(DnsError::new(DnsErrorKind::Timeout, late))
        });
        match answer {
            Ok(Answer { data: Data::Records(records), ttl, .. }) => match policy_id(&records) {
                Some(id) => (Record::Id(id), ttl),
                None => (Record::NoPolicy, Duration::MAX),
            },
            Ok(_) => (Record::NoPolicy, Duration::MAX),
            Err(error) if error.kind() == DnsErrorKind::Unsupported => {
                if !self.told_unsupported.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "MTA-STS policies can not be found with this resolver");
                }
                (Record::NoPolicy, Duration::MAX)
            }
            Err(error) => {
                tracing::debug!(%error, "whether a domain has an MTA-STS policy is not known");
                (Record::NotKnown, REST)
            }
        }
    }

    fn decide(&self, domain: &str, id: Option<&str>) -> Decision {
        let decision = self.lock().store.decide(domain, id, self.clock.now());
        self.tell_changes();
        decision
    }

    fn tell_changes(&self) {
        if self.lock().store.has_changes() {
            self.changed.notify_one();
        }
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
            Err(error) => {
                let message: String = error.to_string().chars().take(MOST_SAID).collect();
                Err(PolicyFailure { kind: error.kind(), message: message.into() })
            }
        }
    }

    fn keep(
        &self,
        domain: &str,
        id: &str,
        result: Result<StsPolicy, PolicyFailure>,
    ) -> Option<Arc<KnownPolicy>> {
        let fetched = self.clock.now();
        let kept = match result {
            Ok(policy) => {
                let (domain, id) = (domain.to_owned(), id.to_owned());
                Some(Arc::new(KnownPolicy { domain, id, policy, fetched }))
            }
            Err(failure) => {
                tracing::info!(%domain, reason = %failure.message, "an MTA-STS policy could not be had");
                self.counts.fetch(domain, failure.kind);
                self.lock().store.failed(domain, fetched, failure);
                None
            }
        };
        if let Some(kept) = &kept {
            self.lock().store.fetched(domain, kept.clone());
        }
        self.tell_changes();
        kept
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fetch under way. Its end takes it off the list.
struct Landing {
    policies: Arc<Policies>,
    domain: Arc<str>,
    _turn: Turn,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.policies.lock().flights.remove(&self.domain);
    }
}

#[cfg(test)]
mod tests;
