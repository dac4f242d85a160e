//! An email delivery engine to embed.

pub mod clock;
pub mod dns;
pub mod engine;
pub mod event;
pub mod message;
mod outbox;
pub mod policy;
pub mod reply;
mod scheduler;
pub mod storage;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;

pub use engine::{DeliveryEngine, EngineBuilder, Stats};
pub use message::Message;
pub use policy::Policy;
