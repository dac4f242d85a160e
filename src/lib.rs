//! An email delivery engine to embed.
//!
//! A host program hands it messages. It stores them durably, finds where they go, delivers them over SMTP within
//! limits, retries, bounces, and reports every outcome. It listens on no port, writes no bounce messages, and
//! never alters content.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use postrider::event::{DeliveryEvent, EventSink};
//! use postrider::storage::DiskStorage;
//! use postrider::{DeliveryEngine, Message};
//!
//! struct Log;
//!
//! impl EventSink for Log {
//!     fn on_event(&self, event: &DeliveryEvent) {
//!         println!("{event:?}");
//!     }
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = DeliveryEngine::builder("mta.example.org")
//!     .storage(DiskStorage::open("spool").await?)
//!     .event_sink(Log)
//!     .start()
//!     .await?;
//! let content = "Subject: Hello\r\n\r\nHello, Ann.\r\n";
//! engine.submit(Message::new("news@example.org", ["ann@example.net"], content)?).await?; // Ok: durable
//! engine.shutdown(Duration::from_secs(30)).await;
//! # Ok(())
//! # }
//! ```
//!
//! # Parts a host may swap
//!
//! | Trait | What it does | Bundled |
//! |---|---|---|
//! | [`Storage`](storage::Storage) | keeps accepted mail | `DiskStorage`, [`MemoryStorage`](storage::MemoryStorage) |
//! | [`Resolver`](dns::Resolver) | answers DNS questions | `HickoryResolver`, [`CachingResolver`](dns::CachingResolver), [`StaticResolver`](dns::StaticResolver) |
//! | [`PolicyFetcher`](mta_sts::PolicyFetcher) | gets MTA-STS policies | `HttpsFetcher`, [`StaticFetcher`](mta_sts::StaticFetcher) |
//! | [`Transport`](transport::Transport) | talks to receivers | [`SmtpTransport`](transport::smtp::SmtpTransport) |
//!
//! [`EventSink`](event::EventSink) takes reports; a [`Policy`] says how mail is sent; a [`Clock`](clock::Clock) says
//! what time it is, so that a test can run the whole engine on tokio's paused clock.
//!
//! # Features
//!
//! | Feature | Default | Brings |
//! |---|---|---|
//! | `disk` | yes | `DiskStorage` |
//! | `hickory` | yes | `HickoryResolver` |
//! | `mta-sts` | yes | [`HttpsFetcher`](mta_sts), for MTA-STS policies; brings `tls` |
//! | `tls` | yes | STARTTLS and implicit TLS in [`SmtpTransport`](transport::smtp::SmtpTransport); without it queues send in plain, and a policy that asks for TLS is refused |
//! | `testing` | no | `postrider::testing`: worlds in virtual time under an oracle, simulations, the rules of a store as tests, SMTP servers in the process, the replay of logs |
//!
//! # Cancel safety
//!
//! Every public async function says what happens when its future is dropped. In short: a submission may or may not
//! have been accepted (give it an id of your own to submit it again), a cancellation or shutdown still takes place,
//! and everything else may be dropped at any time.

pub mod clock;
pub mod control;
pub mod dane;
pub mod dns;
pub mod engine;
pub mod event;
pub mod message;
pub mod mta_sts;
mod outbox;
mod owner;
pub mod policy;
pub mod reply;
mod scheduler;
pub mod storage;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tls_report;
pub mod transport;
pub mod why;

pub use engine::{DeliveryEngine, EngineBuilder, Stats};
pub use message::Message;
pub use policy::Policy;

/// The README's example compiles.
#[cfg(all(doctest, feature = "disk", feature = "hickory", feature = "testing"))]
#[doc = include_str!("../README.md")]
struct Readme;
