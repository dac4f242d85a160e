//! An outcome in the store is reported before long.
//!
//! The world's sink takes all at once. While the store has trouble nothing is judged.

use std::collections::HashMap;
use std::time::Duration;

use super::super::observation::{Observation, Seen, record};
use super::{Facts, Invariant, Judgement, Snapshot, Wrong};
use crate::storage::OutboxPosition;

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Since when each was seen there and was not reported.
#[derive(Default)]
pub(super) struct Reported {
    waiting: HashMap<OutboxPosition, Duration>,
}

impl Invariant for Reported {
    fn see(&mut self, _: &Facts, observation: &Observation) -> Judgement {
        if observation.seen == Seen::Started {
            self.waiting.clear();
        }
        Ok(())
    }

    fn check(&mut self, facts: &Facts, snapshot: &Snapshot) -> Judgement {
        let before = std::mem::take(&mut self.waiting);
        for (position, event) in snapshot.outbox.iter().filter(|_| !facts.trouble) {
            let Some(record) = record(event) else { continue };
            let standing = facts.standing_of(record.id, &record.recipient);
            if standing.reported.is_some() {
                continue;
            }
            let since = before.get(position).copied().unwrap_or(snapshot.at);
            self.waiting.insert(*position, since);
            let waited = snapshot.at.saturating_sub(since);
            if waited > PATIENCE + facts.slowest_call {
                let (message, recipient) = (record.id, &record.recipient);
                let what = format!(
                    "the outcome of {message} to {recipient} is in the outbox for {waited:?} at least"
                );
                return Err(Wrong { message: Some(message), ..what.into() });
            }
        }
        Ok(())
    }
}
