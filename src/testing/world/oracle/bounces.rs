//! Mail bounces for a reason: a 5xx, a reply rule that the record names, what DNS says, its age, or too many attempts.
//!
//! Judged by the policy at the time of the record; what was decided before that policy came is not judged. Not known
//! is whether the host cancelled it, what DNS said, and, of a bounce for what DNS says, since when: such a record is
//! believed in these points. Whether its content may be lost is judged by `lost`.

use super::super::observation::{Observation, Seen};
use super::{Facts, Invariant, Judgement};
use crate::event::{Bounced, Category, DeliveryEvent, Diagnosis, Failure, Reason, RecipientRecord};
use crate::policy::{Action, NoMx, NxDomain, QueueSettings, ReplyRule};
use crate::reply::{EnhancedStatus, Reply};

/// Of longer replies only the beginning is kept, and patterns may be about the end.
const KEPT: usize = 900;

pub(super) struct Bounces;

impl Invariant for Bounces {
    fn see(&mut self, facts: &Facts, observation: &Observation) -> Judgement {
        let Seen::Event(event) = &observation.seen else { return Ok(()) };
        let DeliveryEvent::Bounced(Bounced { record, diagnosis, .. }) = &**event else { return Ok(()) };
        if record.time <= facts.policy_since {
            return Ok(());
        }
        let settings = facts.settings(&record.queue, &record.source);
        let judged = if is_expiry(diagnosis) {
            expired(facts, &settings, record, diagnosis)
        } else {
            match &diagnosis.failure {
                Failure::Reply(reply) if reply.is_permanent() => Ok(()),
                Failure::Reply(reply) => by_rule(facts, record, diagnosis, reply),
                Failure::Engine(_) => by_engine(&settings, record, diagnosis),
            }
        };
        judged.map_err(|why| format!("{} to {} bounced: {why}", record.id, record.recipient).into())
    }
}

/// The engine's own words for what lay too long, whatever the last reply was.
pub(super) fn is_expiry(diagnosis: &Diagnosis) -> bool {
    let is_own = match &diagnosis.failure {
        Failure::Reply(reply) => reply.enhanced() != Some(diagnosis.status) || !reply.is_permanent(),
        Failure::Engine(_) => true,
    };
    is_own
        && diagnosis.rule.is_none()
        && diagnosis.category() == Category::MessageExpired
        && diagnosis.status == EnhancedStatus::new(4, 4, 7)
}

fn expired(
    facts: &Facts,
    settings: &QueueSettings,
    record: &RecipientRecord,
    diagnosis: &Diagnosis,
) -> Result<(), String> {
    if diagnosis.reason == Reason::TooManyAttempts {
        let most = settings.max_attempts;
        return match most.filter(|most| record.attempts >= *most) {
            Some(_) => Ok(()),
            None => Err(format!("after {} attempts, and it may have {most:?}", record.attempts)),
        };
    }
    let Some(envelope) = facts.envelope(record.id) else { return Ok(()) };
    let own = envelope.expires_at.map(|at| at.saturating_since(envelope.age_from));
    let age = own.unwrap_or(settings.bounce_after);
    if record.queued < age {
        return Err(format!("expired at an age of {:?}, and it may be {age:?}", record.queued));
    }
    Ok(())
}

fn by_rule(
    facts: &Facts,
    record: &RecipientRecord,
    diagnosis: &Diagnosis,
    reply: &Reply,
) -> Result<(), String> {
    let Some(name) = &diagnosis.rule else {
        return Err(format!("for `{reply}`, and no rule says so"));
    };
    let Some(rule) = facts.policy.reply_rules().iter().find(|rule| rule.name() == name) else {
        return Err(format!("by the rule `{name}`, and there is none"));
    };
    let does = |action: &Action| rule.actions().contains(action) && rule.applies_at(action, diagnosis.stage);
    // The queue's other mail bounces with it, whatever its own attempts are.
    let whole_queue = does(&Action::BounceQueue);
    if !whole_queue && !does(&Action::BounceRecipient) {
        return Err(format!("by the rule `{name}`, which does not bounce"));
    }
    let least = rule.conditions().min_attempts.unwrap_or(0);
    if !whole_queue && record.attempts < least {
        return Err(format!("by the rule `{name}` at attempt {}, and it begins at {least}", record.attempts));
    }
    matches(rule, reply)
        .then_some(())
        .ok_or_else(|| format!("by the rule `{name}`, which is not about `{reply}`"))
}

fn matches(rule: &ReplyRule, reply: &Reply) -> bool {
    let text = reply.to_string();
    text.len() > KEPT || rule.matches(&text)
}

fn by_engine(
    settings: &QueueSettings,
    record: &RecipientRecord,
    diagnosis: &Diagnosis,
) -> Result<(), String> {
    let least = match diagnosis.reason {
        Reason::NoMx => match settings.bounce_upon_no_mx {
            NoMx::Never => return Err("without MX, which is no reason".to_owned()),
            NoMx::Always => None,
            NoMx::After(age) => Some(age),
        },
        Reason::NxDomain | Reason::NoHost => match settings.bounce_upon_nxdomain {
            NxDomain::AtOnce => None,
            NxDomain::After(age) => Some(age),
        },
        _ if diagnosis.status.class != 5 => {
            return Err(format!("with {}, which is transient", diagnosis.status));
        }
        _ => None,
    };
    match least.filter(|least| record.queued < *least) {
        Some(least) => Err(format!("by DNS at an age of {:?}, and not before {least:?}", record.queued)),
        None => Ok(()),
    }
}
