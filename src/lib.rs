//! An email delivery engine to embed.

pub mod clock;
pub mod dns;
pub mod event;
pub mod message;
pub mod policy;
pub mod reply;
pub mod storage;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;

pub use message::Message;
pub use policy::Policy;
