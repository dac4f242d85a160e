//! The policy file: TOML with PowerMTA's directive names.
//!
//! The text is read key by key from its parse tree, not by serde, so that every message names line, key and value.

mod classification;
mod hint;
mod item;
pub(super) mod read;
mod sections;

use std::net::SocketAddr;
use std::path::PathBuf;

pub(crate) use classification::read_classification;
pub(super) use item::Item;

use super::{Policy, PolicyError};

/// A policy and where the parts of an engine are: all that a program which embeds one reads from its file.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The engine's own name, in EHLO (`[engine] hostname`).
    pub hostname: String,
    /// The folder of the embedded store (`[storage] path`), as written.
    pub storage_path: Option<PathBuf>,
    /// Name servers (`[dns] nameservers`), port 53 where none is written; `None`: the system's.
    pub nameservers: Option<Vec<SocketAddr>>,
    /// How mail is sent.
    pub policy: Policy,
}

impl Config {
    /// Reads a policy file. The shortest useful one is `[engine] hostname`.
    ///
    /// # Errors
    /// [`PolicyError`] names line, key and value of one mistake, and what would be right.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        let parts = item::with_document(text, |root| {
            let mut reader = sections::Reader::default();
            reader.read(&root)?;
            if reader.parts.hostname.is_none() {
                return Err(sections::missing_hostname(&root));
            }
            reader.finish()
        })?;
        Ok(Self {
            hostname: parts.hostname.unwrap_or_default(),
            storage_path: parts.storage_path,
            nameservers: parts.nameservers,
            policy: parts.policy,
        })
    }
}

pub(super) fn policy_from_toml(text: &str) -> Result<Policy, PolicyError> {
    item::with_document(text, |root| {
        let mut reader = sections::Reader::default();
        reader.read(&root)?;
        reader.finish().map(|parts| parts.policy)
    })
}

/// The policy of a file, with all that is not built yet.
#[cfg(test)]
pub(super) fn read_unbuilt_too(text: &str) -> Result<Policy, PolicyError> {
    item::with_document(text, |root| {
        let mut reader = sections::Reader::default();
        reader.read(&root)?;
        Ok(reader.parts.policy)
    })
}
