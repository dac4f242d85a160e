//! An email delivery engine to embed.

pub mod clock;
pub mod dns;
pub mod event;
pub mod message;
#[allow(dead_code, reason = "the engine comes next")]
mod outbox;
pub mod policy;
pub mod reply;
#[allow(dead_code, unused_imports, reason = "the engine comes next")]
mod scheduler;
pub mod storage;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;

pub use message::Message;
pub use policy::Policy;
