//! What a server took is sent again only after a crash or a lost answer, and then no more than was in flight.

use super::super::observation::{Observation, Seen};
use super::{Facts, Invariant, Judgement};
use crate::event::DeliveryEvent;

#[derive(Default)]
pub(super) struct Duplicates {
    /// The most connections there were at once.
    most_open: usize,
}

impl Invariant for Duplicates {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        self.most_open = self.most_open.max(facts.open.len());
        match &observation.seen {
            Seen::Offered { message, recipients, .. } => {
                for recipient in recipients {
                    if facts.standing_of(*message, recipient).taken == Some((facts.life, true)) {
                        return Err(format!(
                            "{message} to {recipient} was taken by a server, and is sent again"
                        )
                        .into());
                    }
                }
                self.judge_bound(facts)
            }
            Seen::Event(event) => match &**event {
                DeliveryEvent::Deferred(deferred) => {
                    let record = &deferred.record;
                    let standing = facts.standing_of(record.id, &record.recipient);
                    if standing.taken == Some((facts.life, true)) {
                        let (message, recipient) = (record.id, &record.recipient);
                        return Err(format!(
                            "{message} to {recipient} was taken by a server, and is deferred"
                        )
                        .into());
                    }
                    Ok(())
                }
                _ => Ok(()),
            },
            Seen::Crashed => self.judge_bound(facts),
            _ => Ok(()),
        }
    }
}

impl Duplicates {
    /// What was taken and is not durable is sent again after a crash: past its bound no transaction starts.
    fn judge_bound(&self, facts: &Facts) -> Judgement {
        // Those at work may have ended since the engine looked.
        let most = facts.bounds.unsettled.min(self.most_open.max(64)) + self.most_open;
        let undurable = facts.undurable();
        if undurable > most {
            let what = format!("{undurable} transactions are not durable: past {most} none starts");
            return Err(what.into());
        }
        Ok(())
    }
}
