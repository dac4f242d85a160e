//! Durable scheduler state: one row per destination, only while its retry clock is not at rest.

use serde::{Deserialize, Serialize};

use super::{DestinationKey, Scheduler, TimerOwner};
use crate::clock::Timestamp;
use crate::event::Diagnosis;
use crate::message::Domain;
use crate::storage::{Change, StateRow};

/// The row's version: a row of another version is dropped with a warning.
const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Row {
    queue: String,
    source: String,
    domain: Domain,
    step: u32,
    until: Option<Timestamp>,
    last: Option<Diagnosis>,
}

impl Scheduler {
    /// Start-up: retry clocks go on where they stood.
    pub(super) fn on_state(&mut self, now: Timestamp, rows: &[StateRow]) {
        for row in rows {
            let Some((&VERSION, encoded)) = row.value.split_first() else {
                tracing::warn!(key = %row.key.escape_ascii(), "a state row of an unknown version was dropped");
                self.writes.change(Change::DeleteState(row.key.clone()));
                continue;
            };
            let Ok(state) = postcard::from_bytes::<Row>(encoded) else {
                tracing::warn!(key = %row.key.escape_ascii(), "a damaged state row was dropped");
                self.writes.change(Change::DeleteState(row.key.clone()));
                continue;
            };
            let queue = self.queue_for(state.queue.as_str().into(), &state.source.as_str().into());
            let key = self.destination_for(&state.domain, queue);
            if let Some(destination) = self.destinations.get_mut(key) {
                destination.retry.step = state.step;
                destination.retry.until = state.until;
                destination.retry.last = state.last;
                destination.stored_state = true;
                // Not before the heads of its lanes have come: without mail it would be forgotten.
                let at = state.until.unwrap_or(now).max(now);
                self.timers.arm(&mut destination.timer, Some(at), TimerOwner::Destination(key));
            }
        }
    }

    /// Writes a destination's retry clock.
    pub(super) fn store_state(&mut self, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        let Some(queue) = self.queues.get(destination.queue) else { return };
        let row = Row {
            queue: queue.name.to_string(),
            source: queue.source.to_string(),
            domain: destination.domain.clone(),
            step: destination.retry.step,
            until: destination.retry.until,
            last: destination.retry.last.clone(),
        };
        let Ok(encoded) = postcard::to_extend(&row, vec![VERSION]) else { return };
        destination.stored_state = true;
        let key = row_key(&row.queue, &row.source, &row.domain);
        self.writes.change(Change::PutState(StateRow { key, value: encoded }));
    }

    /// Removes the row, if there is one.
    pub(super) fn forget_state(&mut self, key: DestinationKey) {
        let Some(destination) = self.destinations.get_mut(key) else { return };
        if !std::mem::take(&mut destination.stored_state) {
            return;
        }
        let Some(queue) = self.queues.get(destination.queue) else { return };
        let key = row_key(&queue.name, &queue.source, &destination.domain);
        self.writes.change(Change::DeleteState(key));
    }
}

/// At most 512 octets: a domain has 255 at most, a source's name and a rollup's 64 each. The queue is left out where
/// it is the domain's own.
fn row_key(queue: &str, source: &str, domain: &Domain) -> Vec<u8> {
    let rollup = if queue == domain.as_str() { "" } else { queue };
    [b"destination", domain.as_str().as_bytes(), source.as_bytes(), rollup.as_bytes()].join(&0)
}
