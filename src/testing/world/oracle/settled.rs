//! A settled recipient is never tried again, and an id that was used is remembered for a day.

use super::super::observation::{Observation, Seen};
use super::{Facts, Invariant, Judgement};
use crate::event::DeliveryEvent;
use crate::storage::ID_MEMORY;

pub(super) struct Settled;

impl Invariant for Settled {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        if let Seen::Event(event) = &observation.seen
            && let DeliveryEvent::Received(received) = &**event
            && let Some(ended) = facts.last_ended_at(received.id).filter(|_| facts.has_ended(received.id))
            && received.time < ended + ID_MEMORY
        {
            let id = received.id;
            return Err(format!("{id} is stored anew, and its last recipient ended at {ended}").into());
        }
        let Seen::Offered { message, recipients, .. } = &observation.seen else { return Ok(()) };
        let ended =
            |recipient: &&_| facts.standing(*message, recipient).is_some_and(|standing| standing.ended);
        match recipients.iter().find(ended) {
            Some(recipient) => Err(format!("{message} to {recipient} has ended and is tried again").into()),
            None => Ok(()),
        }
    }
}
