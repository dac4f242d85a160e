//! MTA-STS (RFC 8461): domains say by HTTPS which hosts take their mail, and that these have TLS with a certificate.
//!
//! The engine looks a domain's policy up with its hosts, where `use-mta-sts` says so. A TXT record says that there is one
//! ([`policy_id`]), a [`PolicyFetcher`] gets it, [`StsPolicy`] is what stands in it. In mode `enforce` mail goes only to hosts
//! it permits, over TLS with a certificate that is valid for the host's name; else it waits.
//!
//! What became of sessions and fetches is counted by domain, for TLS reports (RFC 8460): [`tls_report`](crate::tls_report).
//!
//! # What is kept
//!
//! A policy holds for its `max_age` from its last fetch, whatever becomes of the TXT record and of the web server, as
//! RFC 8461 §3.3 wants it, and over restarts: it is a state row in the engine's store. It is fetched again when the record names another
//! id, after a day, and at half its time if that is less, whether there is a record or not. After a fetch, failed or not, there is none
//! for the same domain for five minutes, whatever the record says.
//!
//! A look-up waits 10 s for a policy that is new, and for no other. One that takes longer serves the next look-up, a minute later at most. Before
//! each transaction it is asked what policy is known: what has come in force meanwhile holds for it. Fetches are made beside look-ups, 256 at a time; of these 16 for names with the same two
//! last labels (three, where the second is such as registries use: `example.co.uk`), and 4 for those with one more the same.
//!
//! Policies of at most 10,000 domains and of 32 MiB in all are kept; beyond it the domain asked for least recently is forgotten, those with a policy
//! in mode `enforce` last. Of what is alike names with the same two (or three) last labels have a share of a 16th, those with one more the same
//! one of a 64th: who has more loses its own first. Of 10,000 more it is remembered that a fetch has failed.

mod fetch;
mod find;
mod fixed;
#[cfg(feature = "mta-sts")]
mod https;
mod policy;
mod record;
mod store;
mod turns;

pub use fetch::{FetchError, FetchErrorKind, PolicyFetcher, PolicyRequest};
pub(crate) use find::{Found as FoundPolicy, Policies, Sought as SoughtPolicy};
pub use fixed::StaticFetcher;
#[cfg(feature = "mta-sts")]
pub use https::HttpsFetcher;
pub use policy::{MAX_POLICY_SIZE, Mode, StsPolicy, StsPolicyError};
pub use record::policy_id;
pub use store::KnownPolicy;
pub(crate) use store::is_policy;
