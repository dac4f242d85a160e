//! A queue: what has settings, limits and statistics. One per domain and source.

use std::sync::Arc;

use super::limits::SlotKey;
use crate::policy::{QueueSettings, Rate};

pub(crate) struct Queue {
    pub(super) name: Arc<str>,
    pub(super) source: Arc<str>,
    pub(super) settings: Arc<QueueSettings>,
    /// The limit of its connections.
    pub(super) slot: SlotKey,
    pub(super) destinations: usize,
}

impl Queue {
    pub(super) fn new(name: Arc<str>, source: Arc<str>, settings: Arc<QueueSettings>, slot: SlotKey) -> Self {
        Self { name, source, settings, slot, destinations: 0 }
    }

    /// How many connections it may have now.
    pub(super) fn connection_limit(&self) -> usize {
        self.settings.max_smtp_out.map_or(usize::MAX, |limit| limit as usize)
    }

    /// At which rate it may offer recipients now.
    pub(super) fn message_rate(&self) -> Option<Rate> {
        self.settings.max_msg_rate
    }

    /// A temporary cap on that.
    pub(super) fn capped_rate(&self) -> Option<Rate> {
        None
    }

    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        let settings = crate::policy::Policy::new().settings("example.org", "default");
        let slot = super::limits::Limits::default().count(super::limits::LimitKey::Total, 1);
        Self::new("example.org".into(), "default".into(), Arc::new(settings), slot)
    }
}
