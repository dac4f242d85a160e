//! Reply rules over one transaction: each recipient's verdict, as the rules have it.

use std::sync::Arc;
use std::time::Duration;

use super::outcome::Carried;
use super::record::Reading;
use super::rules::{About, Counted};
use super::session::Candidate;
use super::verdict::{Cause, Verdict, What};
use super::window::WindowItem;
use super::{DestinationKey, Scheduler};
use crate::clock::Timestamp;
use crate::event::Diagnosis;
use crate::policy::{ReplyVerdict, RuleDecision};
use crate::reply::{Reply, Stage};
use crate::storage::Recipient;

/// What the rules say over the recipients of one transaction.
pub(super) struct Ruling<'a> {
    carried: &'a Carried<'a>,
    /// The reply that ended the session before this transaction's first verdict.
    ended_by: Option<&'a Reply>,
    counted: Counted,
    /// What the queue was told already: one reply to several recipients is told once.
    told: Vec<(Stage, Reply, RuleDecision)>,
    /// Every message in the queue bounces with this.
    pub(super) bounces_queue: Option<Diagnosis>,
    /// The host that replied is passed over.
    pub(super) skips: Option<(Arc<str>, Diagnosis)>,
}

/// A verdict, and by which rule.
pub(super) struct Ruled {
    pub(super) verdict: Verdict,
    pub(super) rule: Option<Arc<str>>,
    /// In place of the next interval.
    pub(super) interval: Option<Duration>,
    /// A rule bounces what would be retried: it counts for the queue's fuse.
    pub(super) counts: bool,
}

impl<'a> Ruling<'a> {
    pub(super) fn new(carried: &'a Carried<'a>, ended_by: Option<&'a Reply>) -> Self {
        Self {
            carried,
            ended_by,
            counted: Counted::default(),
            told: Vec::new(),
            bounces_queue: None,
            skips: None,
        }
    }
}

impl Scheduler {
    /// A recipient's verdict once the rules were asked about its reply.
    pub(super) fn rule_on(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        item: &mut WindowItem,
        recipient: &Recipient,
        verdict: Verdict,
        ruling: &mut Ruling<'_>,
    ) -> Ruled {
        let as_is = |verdict| Ruled { verdict, rule: None, interval: None, counts: false };
        let queue = self.destinations.get(key).and_then(|destination| self.queues.get(destination.queue));
        let in_backoff = queue.is_some_and(|queue| queue.in_backoff());
        // Most mail is delivered from queues that have nothing to learn from it.
        if matches!(verdict, Verdict::Delivered(_)) && !in_backoff {
            return as_is(verdict);
        }
        let (reply, stage) = match &verdict {
            Verdict::Delivered(reply) => (reply.clone(), Stage::Dot),
            Verdict::Deferred(Cause { what: What::Reply(reply), stage, .. })
            | Verdict::Bounced(Cause { what: What::Reply(reply), stage, .. }) => (reply.clone(), *stage),
            Verdict::AtOnce => match ruling.ended_by {
                Some(reply) => (reply.clone(), Stage::Mail),
                None => return as_is(verdict),
            },
            _ => return as_is(verdict),
        };
        let envelope = &item.item.envelope;
        let domain = recipient.address.domain().clone();
        let about = About {
            domain: domain.as_str(),
            host: &ruling.carried.candidate.host,
            stage,
            attempts: recipient.attempts.saturating_add(1),
            age: now.saturating_since(envelope.age_from),
        };
        if matches!(verdict, Verdict::Delivered(_)) {
            self.leave_backoff_if_due(now, key, &reply, about, ruling.carried.transaction.begun);
            return as_is(verdict);
        }
        let decision = self.consult(now, key, &reply, about, &mut ruling.counted);
        if decision.is_empty() {
            return as_is(verdict);
        }
        let told = (stage, reply.clone(), decision.clone());
        if !ruling.told.contains(&told) {
            self.apply_to_queue(now, key, &decision, &reply);
            ruling.told.push(told);
        }
        self.decide(item, verdict, &reply, stage, &decision, ruling)
    }

    fn decide(
        &mut self,
        item: &mut WindowItem,
        verdict: Verdict,
        reply: &Reply,
        stage: Stage,
        decision: &RuleDecision,
        ruling: &mut Ruling<'_>,
    ) -> Ruled {
        let rule = decision.rule().cloned();
        let interval = decision.retry_after.as_ref().map(|(interval, _)| *interval);
        let cause = Cause { stage, what: What::Reply(reply.clone()), reason: None };
        let reading = Reading { classifier: self.policy.classifier(), host: &ruling.carried.candidate.host };
        let diagnosis = || Diagnosis { rule: rule.clone(), ..cause.diagnosis(reading) };
        let was_permanent = matches!(verdict, Verdict::Bounced(_));
        let recipients = ruling.carried.transaction.recipients.len();
        let mut counts = false;
        let verdict = match decision.verdict(was_permanent, stage, recipients) {
            _ if decision.fate.is_none() => verdict,
            ReplyVerdict::OneByOne => {
                item.singly = true;
                Verdict::AtOnce
            }
            ReplyVerdict::Bounce => {
                counts = !was_permanent;
                Verdict::Bounced(cause.clone())
            }
            ReplyVerdict::BounceQueue => {
                counts = !was_permanent;
                ruling.bounces_queue.get_or_insert_with(diagnosis);
                Verdict::Bounced(cause.clone())
            }
            ReplyVerdict::NextHost => {
                ruling.skips = Some((ruling.carried.candidate.host.clone(), diagnosis()));
                Verdict::AtOnce
            }
            ReplyVerdict::Retry if was_permanent => Verdict::Deferred(cause.clone()),
            ReplyVerdict::Retry => verdict,
        };
        Ruled { verdict, rule, interval, counts }
    }

    /// Every host of a destination was passed over: its retry step, nobody charged. Whether it was so.
    pub(super) fn step_if_all_skipped(
        &mut self,
        now: Timestamp,
        key: DestinationKey,
        candidate: &Candidate,
        diagnosis: Diagnosis,
    ) -> bool {
        let Some(destination) = self.destinations.get(key) else { return false };
        let Some(route) = destination.known_route() else { return false };
        let mut hosts = route.hosts.iter().filter(|host| host.has_address());
        let all = hosts.all(|host| destination.skips(now, &host.name)) && !self.is_held(now, key);
        if all {
            self.fail_step(now, key, Some(candidate.clone()), diagnosis);
        }
        all
    }
}
