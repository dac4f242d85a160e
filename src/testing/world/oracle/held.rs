//! Nothing is sent from what is paused, deferred as a whole, or has its source disabled.
//!
//! What was in flight when it was said may end: only what begins a minute after it was durable is judged. While the
//! store has trouble nothing is, since then a row may be of long ago.

use super::super::observation::{Observation, Seen};
use super::{Facts, Invariant, Judgement};
use crate::control::Selector;
use crate::message::{Address, MessageId};

pub(super) struct Held;

impl Invariant for Held {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        let Seen::Offered { connection, message, queue, recipients, .. } = &observation.seen else {
            return Ok(());
        };
        let Some(open) = facts.open.get(connection).filter(|_| !facts.trouble) else { return Ok(()) };
        let key = (queue.clone(), open.source.clone());
        if let Some(why) = facts.modes.held(&key, observation.at, observation.time) {
            return Err(format!("{message} is sent from {queue} of {}, {why}", open.source).into());
        }
        let is_about = |selector: &&Selector| match selector {
            Selector::Queue(paused) => paused == queue,
            Selector::Source(paused) => *paused == open.source,
            selector => is_about(facts, selector, *message, recipients),
        };
        match facts.modes.paused(observation.at).find(is_about) {
            Some(selector) => {
                Err(format!("{message} is sent from {queue}, and {selector:?} is paused").into())
            }
            None => Ok(()),
        }
    }
}

fn is_about(facts: &Facts, selector: &Selector, message: MessageId, recipients: &[Address]) -> bool {
    match selector {
        Selector::Domain(paused) => recipients.iter().any(|recipient| recipient.domain() == paused),
        Selector::Message(paused) => *paused == message,
        Selector::Tag { name, value } => {
            facts.envelope(message).is_some_and(|envelope| envelope.tags.get(name) == Some(value))
        }
        Selector::Queue(_) | Selector::Source(_) => false,
    }
}
