//! A policy and a store of one's own, to be tested: a template. Its `README.md` says what is where.

mod journal;
mod leases;
mod store;
mod tables;

pub use journal::Flush;
use postrider::Policy;
pub use store::JournalStore;

/// How this program sends mail.
///
/// # Panics
/// If `policy.toml` is wrong, which every test would show.
pub fn policy() -> Policy {
    Policy::from_toml(include_str!("../policy.toml")).expect("policy.toml is right")
}
