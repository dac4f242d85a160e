//! [`StaticFetcher`]: policies given as text, for tests and first steps.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{FetchError, FetchErrorKind, PolicyFetcher, PolicyRequest};

/// Domains whose fetches are counted.
const MAX_COUNTED: usize = 100_000;

/// Policy files in memory; never asks anybody.
///
/// Clones share everything, so a test keeps one and changes the policies under a running engine. A domain it has
/// nothing of has no policy host.
#[derive(Clone, Default)]
pub struct StaticFetcher {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    files: HashMap<String, Result<Bytes, FetchErrorKind>>,
    fetches: HashMap<String, u64>,
}

impl StaticFetcher {
    /// With no policy.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on this is the file of `domain`, whatever stands in it.
    pub fn set(&self, domain: &str, file: impl Into<Bytes>) {
        self.lock().files.insert(domain.to_ascii_lowercase(), Ok(file.into()));
    }

    /// From now on every fetch for `domain` fails so.
    pub fn fail(&self, domain: &str, kind: FetchErrorKind) {
        self.lock().files.insert(domain.to_ascii_lowercase(), Err(kind));
    }

    /// How often the file of `domain` was asked for. Counts for the first 100,000 domains.
    pub fn fetches(&self, domain: &str) -> u64 {
        self.lock().fetches.get(&domain.to_ascii_lowercase()).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl PolicyFetcher for StaticFetcher {
    async fn fetch(&self, request: &PolicyRequest<'_>) -> Result<Bytes, FetchError> {
        let mut inner = self.lock();
        if inner.fetches.len() < MAX_COUNTED || inner.fetches.contains_key(request.domain) {
            *inner.fetches.entry(request.domain.to_owned()).or_default() += 1;
        }
        let file = inner.files.get(request.domain).cloned().unwrap_or(Err(FetchErrorKind::NoAnswer));
        file.map_err(|kind| FetchError::new(kind, format!("{}: told to fail", request.host())))
    }
}

impl fmt::Display for StaticFetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("static policies")
    }
}

impl fmt::Debug for StaticFetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticFetcher").field("files", &self.lock().files).finish()
    }
}
