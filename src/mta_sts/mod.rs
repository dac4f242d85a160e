//! MTA-STS (RFC 8461): domains say by HTTPS which hosts take their mail, and that these have TLS with a certificate.
//!
//! The engine looks a domain's policy up with its hosts, where `use-mta-sts` says so. A TXT record says that there is one
//! ([`policy_id`]), a [`PolicyFetcher`] gets it, [`StsPolicy`] is what stands in it. In mode `enforce` mail goes only to hosts
//! it permits, over TLS with a certificate that is valid for the host's name; else it waits.
//!
//! What became of sessions and fetches is counted by domain, for TLS reports (RFC 8460):
//! [`DeliveryEngine::take_tls_report`](crate::DeliveryEngine::take_tls_report).
//!
//! # What is kept
//!
//! A policy holds for its `max_age` from its last fetch, whatever becomes of the TXT record and of the web server, as
//! RFC 8461 §3.3 wants it, and over restarts: it is a state row in the engine's store. It is fetched again when the record names another
//! id, after a day, and at half its time if that is less. A fetch that failed is not tried again for five minutes, unless the id changes.
//! Of at most 10,000 domains and 32 MiB of policies something is known; beyond it the domain asked for least recently
//! is forgotten.

mod fetch;
mod find;
mod fixed;
#[cfg(feature = "mta-sts")]
mod https;
mod policy;
mod record;
mod report;
mod store;

pub use fetch::{FetchError, FetchErrorKind, PolicyFetcher, PolicyRequest};
pub(crate) use find::{Found as FoundPolicy, Policies};
pub use fixed::StaticFetcher;
#[cfg(feature = "mta-sts")]
pub use https::HttpsFetcher;
pub use policy::{MAX_POLICY_SIZE, Mode, StsPolicy, StsPolicyError};
pub use record::policy_id;
pub(crate) use report::SessionTls;
pub use report::{DomainTls, TlsFailures, TlsReport, TlsResult};
pub use store::KnownPolicy;
pub(crate) use store::is_policy;
