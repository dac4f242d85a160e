//! No connection carries more messages, no transaction has more recipients, and nobody is tried more often than the
//! policy allows.

use std::collections::HashMap;

use super::super::observation::{Observation, Seen};
use super::modes::SETTLED;
use super::{Facts, Invariant, Judgement};
use crate::event::DeliveryEvent;

/// Messages that each connection has carried, and how many it may by the queue of the last one.
#[derive(Default)]
pub(super) struct Counts {
    used: HashMap<u64, (u32, Option<u32>)>,
}

impl Invariant for Counts {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        match &observation.seen {
            Seen::Offered { connection, queue, recipients, message, .. } => {
                let Some(open) = facts.open.get(connection) else { return Ok(()) };
                let settings = facts.settings(queue, &open.source);
                let own = settings.max_msg_per_connection;
                let (used, before) = self.used.insert(*connection, (0, own)).unwrap_or((0, own));
                self.used.insert(*connection, (used + 1, own));
                let most = [before, own].into_iter().flatten().min();
                if let Some(most) = most.filter(|most| used >= *most) {
                    return Err(format!(
                        "#{connection} carries its message {}: the limit is {most}",
                        used + 1
                    )
                    .into());
                }
                // What was begun by the policy before may be read from the store for a while.
                let is_new = facts.policy_at.is_zero() || observation.at > facts.policy_at + SETTLED;
                let most = settings.max_rcpt_per_transaction.max(1) as usize;
                if is_new && recipients.len() > most {
                    let count = recipients.len();
                    return Err(
                        format!("{message} is offered for {count} recipients: the limit is {most}").into()
                    );
                }
                Ok(())
            }
            Seen::Closed { connection } => {
                self.used.remove(connection);
                Ok(())
            }
            // With another policy connections that are open go on.
            Seen::Started | Seen::PolicyReplaced => {
                self.used.clear();
                Ok(())
            }
            Seen::Event(event) => {
                let DeliveryEvent::Deferred(deferred) = &**event else { return Ok(()) };
                let record = &deferred.record;
                let most = facts.settings(&record.queue, &record.source).max_attempts;
                let is_held = facts.is_held_by_fuse(record);
                let Some(most) = most.filter(|most| record.attempts >= *most) else { return Ok(()) };
                if is_held || record.time <= facts.policy_since {
                    return Ok(());
                }
                let (message, recipient, attempts) = (record.id, &record.recipient, record.attempts);
                Err(format!("{message} to {recipient} is deferred after {attempts} attempts: {most} may be")
                    .into())
            }
            _ => Ok(()),
        }
    }
}
