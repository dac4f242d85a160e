//! The testing kit, behind the feature `testing`: a policy, a store, or the whole engine, tried in the process and in
//! virtual time.
//!
//! | | |
//! |---|---|
//! | [`World`] | the engine in a network of its own: days pass in moments, an oracle watches |
//! | [`ServerModel`] | how a receiver behaves: greylists, limits, latencies, failures |
//! | [`DnsFault`], [`StoreFault`] | what else goes wrong |
//! | [`Simulation`] | a random world in which everything goes wrong at once |
//! | [`Replay`] | logged replies through new reply rules: what would change |
//! | [`conformance`] | the rules of [`Storage`](crate::storage::Storage), one test each, for a store of one's own |
//! | [`SmtpServer`] | an SMTP server in the process that answers as the test says and keeps what it receives; with a `TestCertificate` it speaks TLS |
//! | [`MemoryNetwork`] | addresses and the servers behind them, over pipes: tests run on paused time |
//! | [`ScriptedTransport`] | a [`Transport`](crate::transport::Transport) without any SMTP, for speed |
//! | [`SchedulerLoad`] | the scheduler alone, for benches |
//! | [`fuzz`] | what must hold for any octets of a server, any body, any policy file |
//!
//! The folder `tests/outside` of the repository is a crate that uses all of this from outside: a template to copy.
//!
//! # 1. Ask the policy
//!
//! What a policy decides are plain functions: [`policy`](crate::policy#testing-a-policy) lists them.
//!
//! ```
//! use std::time::Duration;
//! use postrider::Policy;
//!
//! let policy = Policy::from_toml("[domain.'*']\nretry-after = ['5m', '10m', '1h']\nbounce-after = '1d'")?;
//! let ages: Vec<_> = policy.settings("example.net", "default").attempt_ages(|| 0).take(4).collect();
//! assert_eq!(ages, [0, 5, 15, 75].map(|minutes| Duration::from_secs(60 * minutes)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # 2. See it at work
//!
//! A [`World`] is used from a plain `#[test]`: it has a runtime of its own. Describe zone, servers and policy, submit, let
//! time pass, and ask.
//!
//! ```
//! use std::time::Duration;
//! use postrider::{Message, Policy};
//! use postrider::testing::{Failure, Key, Outcome, ServerModel, World};
//!
//! const HOUR: Duration = Duration::from_secs(3600);
//!
//! let slow = ServerModel::new()
//!     .with_reply_latency(Duration::from_secs(5))
//!     .with_mailbox("gone@example.net", "550 5.1.1 no such user")
//!     .with_failure(HOUR..3 * HOUR, Failure::Refuse);
//! let mut world = World::builder()
//!     .policy(Policy::from_toml("[[ip-connection-limit]]\ncidr = '192.0.2.0/24'\nlimit = 2")?)
//!     .zone("example.net. MX 10 mx.example.net.\nmx.example.net. A 192.0.2.1")
//!     .server("192.0.2.1", slow)
//!     .build()?;
//! for number in 0..20 {
//!     world.submit(Message::new("news@sender.example", [format!("r{number}@example.net")], "hi\r\n")?)?;
//! }
//! let gone = world.submit(Message::new("news@sender.example", ["gone@example.net"], "hi\r\n")?)?;
//! assert!(world.run_until_idle(24 * HOUR));
//! assert_eq!(world.count(Outcome::Delivered), 20);
//! assert_eq!(world.outcome(gone, "gone@example.net"), Outcome::Bounced);
//! assert_eq!(world.peak_connections(Key::Address([192, 0, 2, 1].into())), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Days pass in moments where the engine is optimised. `cargo test` builds dependencies without optimisation, with which
//! all takes several times as long; this in `Cargo.toml` (or `--release`) mends it:
//!
//! ```toml
//! [profile.dev.package.postrider]
//! opt-level = 1
//! ```
//!
//! [`World::timeline`] shows what happened to one message, [`World::why`] what it waits for, [`World::trace_text`] all of it.
//!
//! # 3. Let it go wrong
//!
//! [`World::crash`] ends the process where it stands and starts another on what is in the store. [`StoreFault`] does so
//! within a call. An oracle judges all along: a [`Violation`] has the list. At one, methods that let time pass panic,
//! with the seed that repeats it: `POSTRIDER_SEED=17 cargo test name_of_the_test`.
//!
//! ```
//! use std::time::Duration;
//! use postrider::Message;
//! use postrider::storage::MemoryStorage;
//! use postrider::testing::{Outcome, ServerModel, StoreCall, StoreFault, StoreTrouble, World};
//!
//! let store = MemoryStorage::new(); // or your own
//! let mut world = World::builder()
//!     .zone("example.net. A 192.0.2.1")
//!     .server("192.0.2.1", ServerModel::new().with_reply_latency(Duration::from_secs(1)))
//!     .storage(move || store.reopened())
//!     .store_fault(StoreFault::new(StoreCall::Commit, StoreTrouble::Crash { applied: false }))
//!     .build()?;
//! let id = world.submit(Message::new("news@sender.example", ["bob@example.net"], "hi\r\n")?)?;
//! assert!(world.run_until_idle(Duration::from_secs(86_400)));
//! assert_eq!(world.outcome(id, "bob@example.net"), Outcome::Delivered);
//! assert_eq!(world.attempts(id, "bob@example.net"), 2); // the first was not written down
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # 4. Let everything go wrong
//!
//! A [`Simulation`] draws policy, servers and faults from a seed, and at the end demands that all mail has ended. A store of
//! one's own that keeps the rules of [`conformance`] is tried by `Simulation::new(seed).storage(open).run()?`, for as many
//! seeds as there is time.

mod base64;
mod behaviour;
#[cfg(feature = "tls")]
mod certificate;
pub mod conformance;
mod conversation;
pub mod fuzz;
mod network;
mod pipe;
mod replay;
mod scheduler_load;
mod scripted;
mod server;
mod simulation;
#[cfg(test)]
mod tests;
mod world;

pub use behaviour::{Behaviour, Command, Exchange};
#[cfg(feature = "tls")]
pub use certificate::{TestCertificate, TestCertificateError};
pub use network::{MemoryNetwork, MemoryStream};
pub use replay::{ChangeKind, LoggedOutcome, LoggedReply, Replay, ReplayChange, ReplayReport, RuleReplay};
pub use scheduler_load::{SchedulerLoad, SchedulerLoadReport};
pub use scripted::ScriptedTransport;
pub use server::{ReceivedMessage, SmtpServer};
pub use simulation::{Simulation, SimulationError, SimulationReport};
pub use world::{
    DnsFault, DnsLie, Failure, Key, Latency, ModelTls, Observation, Outcome, Seen, ServerModel, ServerReport,
    StoreCall, StoreFault, StoreTrouble, Violation, World, WorldBuilder, WorldError,
};
