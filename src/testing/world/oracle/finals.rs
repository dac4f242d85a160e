//! Each recipient has exactly one final event, and it tells the truth.

use super::super::observation::{Observation, Seen, record};
use super::{Facts, Invariant, Judgement};
use crate::event::DeliveryEvent;

pub(super) struct Finals;

impl Invariant for Finals {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        let Seen::Event(event) = &observation.seen else { return Ok(()) };
        let Some(record) = record(event).filter(|_| event.is_final()) else { return Ok(()) };
        let (message, recipient) = (record.id, &record.recipient);
        let standing = facts.standing_of(message, recipient);
        if let Some((first, reported_in)) = standing.reported {
            if first != record.event {
                return Err(format!("{message} to {recipient} has a second final event").into());
            }
            // A crash before it was acknowledged repeats it.
            if reported_in == facts.life {
                return Err(format!(
                    "the final event of {message} to {recipient} came twice, without a crash"
                )
                .into());
            }
        }
        match &**event {
            DeliveryEvent::Delivered(_) if standing.times_taken == 0 => {
                Err(format!("{message} to {recipient} is reported as delivered, and no server took it")
                    .into())
            }
            DeliveryEvent::Bounced(_) if facts.is_taken(&standing) => {
                Err(format!("{message} to {recipient} is reported as bounced, and a server took it").into())
            }
            _ => Ok(()),
        }
    }

    fn check(&mut self, facts: &Facts, snapshot: &super::Snapshot) -> Judgement {
        if let Some((_, event)) = snapshot.outbox.iter().find(|(position, _)| *position <= facts.acknowledged)
            && let Some(record) = record(event)
        {
            let (message, recipient) = (record.id, &record.recipient);
            let what =
                format!("the final event of {message} to {recipient} was acknowledged and is in the outbox");
            return Err(what.into());
        }
        if facts.strangers {
            return Ok(());
        }
        let stranger = snapshot.items.iter().find(|item| {
            let mut accepted = item.recipients.iter().map(|recipient| &recipient.address);
            // The host may have submitted it past the world; then the engine has said so.
            !facts.received.contains(&item.envelope.id)
                && !accepted
                    .all(|to| facts.standing(item.envelope.id, to).is_some_and(|standing| standing.accepted))
        });
        stranger.map_or(Ok(()), |item| {
            Err(format!("{} is in the store, and nobody accepted it", item.envelope.id).into())
        })
    }
}
