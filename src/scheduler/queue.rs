//! A queue: what has settings, limits and statistics. One per domain and source.

use std::collections::VecDeque;
use std::sync::Arc;

use super::DestinationKey;
use crate::policy::QueueSettings;

pub(crate) struct Queue {
    pub(super) name: Arc<str>,
    pub(super) source: Arc<str>,
    pub(super) settings: Arc<QueueSettings>,
    /// Connections that hold a permit.
    pub(super) connections: usize,
    /// Destinations of it that wait for one.
    pub(super) waiters: VecDeque<DestinationKey>,
    pub(super) destinations: usize,
}

impl Queue {
    pub(super) fn new(name: Arc<str>, source: Arc<str>, settings: Arc<QueueSettings>) -> Self {
        Self { name, source, settings, connections: 0, waiters: VecDeque::new(), destinations: 0 }
    }

    /// Whether one more connection is within `max-smtp-out`.
    pub(super) fn has_permit(&self) -> bool {
        self.settings.max_smtp_out.is_none_or(|limit| self.connections < limit as usize)
    }

    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        let settings = crate::policy::Policy::new().settings("example.org", "default");
        Self::new("example.org".into(), "default".into(), Arc::new(settings))
    }
}
