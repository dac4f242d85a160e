//! Accepted mail is never lost.

use std::collections::{HashMap, HashSet};

use super::super::observation::{Observation, Seen, record};
use super::facts::Standing;
use super::{Facts, Invariant, Judgement, Snapshot, Wrong};
use crate::event::{DeliveryEvent, Reason};
use crate::message::{Address, MessageId};

pub(super) struct Lost;

impl Invariant for Lost {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        let Seen::Event(event) = &observation.seen else { return Ok(()) };
        match &**event {
            DeliveryEvent::Bounced(bounced)
                if bounced.diagnosis.reason == Reason::ContentLost && !facts.bodies_lost =>
            {
                let (message, recipient) = (bounced.record.id, &bounced.record.recipient);
                Err(format!("{message} to {recipient} bounced, for its content is lost").into())
            }
            _ => Ok(()),
        }
    }

    fn check(&mut self, facts: &Facts, snapshot: &Snapshot) -> Judgement {
        let mut stored: HashMap<MessageId, HashSet<&Address>> = HashMap::new();
        for item in &snapshot.items {
            let recipients = item.recipients.iter().map(|recipient| &recipient.address);
            stored.entry(item.envelope.id).or_default().extend(recipients);
        }
        for record in snapshot.outbox.iter().filter_map(|(_, event)| record(event)) {
            stored.entry(record.id).or_default().insert(&record.recipient);
        }
        let is_lost = |message: &MessageId, recipient: &Address, standing: &Standing| {
            let is_stored = || stored.get(message).is_some_and(|stored| stored.contains(recipient));
            standing.accepted && standing.reported.is_none() && !is_stored()
        };
        let mut lost = Vec::new();
        for (message, recipients) in &facts.messages {
            let of_message = recipients.iter().filter(|(recipient, it)| is_lost(message, recipient, it));
            lost.extend(of_message.map(|(recipient, _)| (*message, recipient)));
        }
        // The same one of several each time.
        let Some((message, recipient)) = lost.into_iter().min() else { return Ok(()) };
        let what = format!("{message} to {recipient} was accepted and is neither in the store nor reported");
        Err(Wrong { message: Some(message), ..what.into() })
    }
}
