//! The same once a minute.

use std::time::Duration;

use crate::clock::Timestamp;

/// The same trouble is not told again within this.
pub(super) const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// What was told last, and when.
#[derive(Debug)]
pub(crate) struct Told<T>(Option<(Timestamp, T)>);

impl<T> Default for Told<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: PartialEq> Told<T> {
    /// Whether it is to be told now: it is something else, or a minute has passed since.
    pub(crate) fn is_due(&mut self, now: Timestamp, what: T) -> bool {
        let is_due = self
            .0
            .as_ref()
            .is_none_or(|(at, told)| *told != what || now < *at || now.saturating_since(*at) >= TOLD_AGAIN);
        if is_due {
            self.0 = Some((now, what));
        }
        is_due
    }
}
