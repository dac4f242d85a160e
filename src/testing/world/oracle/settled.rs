//! A settled recipient is never tried again.

use super::super::observation::{Observation, Seen};
use super::{Facts, Invariant, Judgement};

pub(super) struct Settled;

impl Invariant for Settled {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        let Seen::Offered { message, recipients, .. } = &observation.seen else { return Ok(()) };
        let ended =
            |recipient: &&_| facts.standing(*message, recipient).is_some_and(|standing| standing.ended);
        match recipients.iter().find(ended) {
            Some(recipient) => Err(format!("{message} to {recipient} has ended and is tried again").into()),
            None => Ok(()),
        }
    }
}
