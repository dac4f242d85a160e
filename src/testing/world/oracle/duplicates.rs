//! What a server took is sent again only after a crash, a lost answer, or a shutdown that was cut at its deadline, and
//! then no more than was in flight.
//!
//! Trouble with the store excuses once another engine is started: what it could not write down is not known to that.

use std::time::Duration;

use super::super::observation::{Observation, Seen};
use super::{Facts, Invariant, Judgement};
use crate::event::DeliveryEvent;

pub(super) struct Duplicates;

impl Invariant for Duplicates {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        match &observation.seen {
            Seen::Offered { message, recipients, .. } => {
                for recipient in recipients {
                    if facts.is_taken(&facts.standing_of(*message, recipient)) {
                        return Err(format!(
                            "{message} to {recipient} was taken by a server, and is sent again"
                        )
                        .into());
                    }
                }
                judge_bound(facts, observation.at)
            }
            Seen::Event(event) => match &**event {
                DeliveryEvent::Deferred(deferred) => {
                    let record = &deferred.record;
                    let standing = facts.standing_of(record.id, &record.recipient);
                    // It may be told late, after the delivery that followed.
                    let is_of_now = standing.taken_at.is_none_or(|taken| taken <= record.time);
                    if facts.is_taken(&standing) && is_of_now {
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
            _ => Ok(()),
        }
    }
}

/// What was taken and is not durable is sent again after a crash. With one for each connection no transaction is handed
/// out, and each connection may have one that was handed out before.
fn judge_bound(facts: &Facts, now: Duration) -> Judgement {
    let most = facts.bounds.unsettled.min(facts.most_open) + facts.most_open;
    let undurable = facts.undurable_before(now);
    if undurable >= most {
        let what = format!("a transaction starts while {undurable} are not durable: at most {most} may be");
        return Err(what.into());
    }
    Ok(())
}
