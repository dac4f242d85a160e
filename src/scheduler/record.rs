//! Records: what is said about a recipient or a destination, and in which words.

use super::session::Candidate;
use super::verdict::{Cause, What};
use super::window::WindowItem;
use super::{Queue, Scheduler};
use crate::clock::Timestamp;
use crate::dns::RouteFailure;
use crate::event::{Diagnosis, Failure, Reason, RecipientRecord};
use crate::message::EventId;
use crate::outbox::{Final, Record};
use crate::policy::Suppression;
use crate::reply::{Classifier, EnhancedStatus, Origin, Reply, Stage};
use crate::storage::Recipient;
use crate::transport::EndCause;

/// What failed, where only the engine can say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// To get a session.
    ToConnect,
    /// In a transaction.
    InTransaction,
    /// The hosts' addresses are of a family the source has no address of.
    NoRouteForFamily,
    /// The stored content.
    Content,
}

impl Failed {
    fn status(self) -> EnhancedStatus {
        match self {
            Self::ToConnect => EnhancedStatus::new(4, 4, 1),
            Self::InTransaction => EnhancedStatus::new(4, 4, 2),
            Self::NoRouteForFamily => EnhancedStatus::new(4, 4, 4),
            Self::Content => EnhancedStatus::new(5, 3, 0),
        }
    }

    fn reason(self) -> Reason {
        match self {
            Self::ToConnect => Reason::ConnectionFailed,
            Self::InTransaction => Reason::ConnectionLost,
            Self::NoRouteForFamily => Reason::NoRouteForFamily,
            Self::Content => Reason::ContentLost,
        }
    }
}

/// By what a reply is read, and whose it is.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) classifier: &'a Classifier,
    pub(super) host: &'a str,
}

pub(super) fn engine_diagnosis(stage: Stage, failed: Failed, message: impl Into<String>) -> Diagnosis {
    Diagnosis {
        stage,
        status: failed.status(),
        reason: failed.reason(),
        failure: Failure::Engine(message.into()),
        rule: None,
    }
}

/// How a session, or the attempt at one, ended.
pub(super) fn cause_diagnosis(
    stage: Stage,
    cause: &EndCause,
    failed: Failed,
    reading: Reading<'_>,
) -> Diagnosis {
    let refused = |detail, reason| Diagnosis {
        status: EnhancedStatus::new(4, 7, detail),
        reason,
        ..engine_diagnosis(stage, failed, cause.to_string())
    };
    match cause {
        EndCause::Reply(reply) | EndCause::TlsRefused(reply) => reply_diagnosis(stage, reply, reading),
        EndCause::Protocol(_) => Diagnosis {
            status: EnhancedStatus::new(4, 5, 0),
            reason: Reason::InvalidReply,
            ..engine_diagnosis(stage, failed, cause.to_string())
        },
        EndCause::TlsNotOffered => refused(4, Reason::TlsNotOffered),
        EndCause::Tls(_) | EndCause::Certificate(..) => refused(5, Reason::TlsFailed),
        EndCause::AuthNotOffered => refused(4, Reason::AuthNotOffered),
        EndCause::AuthNeedsTls => refused(11, Reason::AuthNeedsTls),
        _ => engine_diagnosis(stage, failed, cause.to_string()),
    }
}

pub(super) fn reply_diagnosis(stage: Stage, reply: &Reply, reading: Reading<'_>) -> Diagnosis {
    let class = if reply.is_permanent() { 5 } else { 4 };
    let status = reply.enhanced().unwrap_or(EnhancedStatus::new(class, 0, 0));
    let origin = Origin::at(stage).with_host(reading.host);
    let reason = reading.classifier.classify(&reply.to_string(), origin).reason;
    Diagnosis { stage, status, reason, failure: Failure::Reply(reply.clone()), rule: None }
}

pub(super) fn route_diagnosis(failure: &RouteFailure) -> Diagnosis {
    Diagnosis {
        stage: Stage::Dns,
        status: failure.status(),
        reason: failure.reason(),
        failure: Failure::Engine(failure.message.clone()),
        rule: None,
    }
}

const POLICY_UNKNOWN: &str = "the message requires TLS to a host that is verified to be the receiver's, and whether an MTA-STS policy \
    says so is not known now";

/// The message requires TLS to a verified host, and the policy that would vouch for one is not known.
pub(super) fn policy_unknown() -> Diagnosis {
    Diagnosis {
        status: EnhancedStatus::new(4, 7, 10),
        reason: Reason::HostNotVerified,
        ..engine_diagnosis(Stage::Mail, Failed::InTransaction, POLICY_UNKNOWN)
    }
}

impl Cause {
    pub(super) fn diagnosis(&self, reading: Reading<'_>) -> Diagnosis {
        let mut diagnosis = match &self.what {
            What::Reply(reply) => reply_diagnosis(self.stage, reply, reading),
            What::Lost(cause) => cause_diagnosis(self.stage, cause, Failed::InTransaction, reading),
            What::PolicyUnknown => policy_unknown(),
            What::Unsendable(why) => Diagnosis {
                status: why.status(),
                ..engine_diagnosis(self.stage, Failed::InTransaction, why.to_string())
            },
        };
        diagnosis.reason = self.reason.unwrap_or(diagnosis.reason);
        diagnosis
    }
}

impl Scheduler {
    /// What a recipient's records have in common, with a new event id.
    pub(super) fn record(
        &mut self,
        now: Timestamp,
        item: &WindowItem,
        recipient: &Recipient,
        candidate: Option<&Candidate>,
    ) -> RecipientRecord {
        let event = self.event_id(now);
        let queue = self.queue_of_item(item).and_then(|key| self.queues.get(key));
        record(event, now, item, recipient, candidate, queue).to_owned()
    }

    /// Writes that a recipient is done with, and counts it.
    pub(super) fn finish(
        &mut self,
        now: Timestamp,
        item: &WindowItem,
        recipient: &Recipient,
        candidate: Option<&Candidate>,
        end: End<'_>,
    ) {
        let event = self.event_id(now);
        let mut queue = self.queue_of_item(item).and_then(|key| self.queues.get_mut(key));
        let tally = queue.as_mut().map(|queue| &mut queue.tally);
        match &end {
            End::Delivered { .. } => {
                self.counters.delivered += 1;
                tally.into_iter().for_each(|tally| tally.delivered(now));
            }
            End::Bounced(_) => {
                self.counters.bounced += 1;
                tally.into_iter().for_each(|tally| tally.bounced += 1);
            }
            End::Cancelled => self.counters.cancelled += 1,
        }
        let record = record(event, now, item, recipient, candidate, queue.as_deref());
        let event = match end {
            End::Delivered { reply, tls, passes_on_dsn } => {
                let dsn_passed_on = passes_on_dsn && (record.dsn.is_some() || record.recipient_dsn.is_some());
                Final::Delivered { record, reply, tls, dsn_passed_on }
            }
            End::Bounced(diagnosis) => {
                let suppress = Suppression::after(diagnosis, candidate.is_some());
                Final::Bounced { record, diagnosis, suppress }
            }
            End::Cancelled => Final::Cancelled { record },
        };
        self.writes.report(&item.item, &event);
    }
}

/// How a recipient is done with.
#[derive(Clone, Copy)]
pub(super) enum End<'a> {
    Delivered { reply: &'a Reply, tls: Option<&'a str>, passes_on_dsn: bool },
    Bounced(&'a Diagnosis),
    Cancelled,
}

/// Of `queue`, or of none that there is any more.
fn record<'a>(
    event: EventId,
    now: Timestamp,
    item: &'a WindowItem,
    recipient: &'a Recipient,
    candidate: Option<&'a Candidate>,
    queue: Option<&'a Queue>,
) -> Record<'a> {
    let (lane, envelope) = (&item.item.lane, &*item.item.envelope);
    Record {
        event,
        time: now,
        id: envelope.id,
        reference: envelope.reference.as_deref(),
        recipient: &recipient.address,
        domain: &lane.domain,
        queue: queue.map_or(lane.domain.as_str(), |queue| &queue.name),
        source: queue.map_or(&lane.source, |queue| &queue.source),
        mx: candidate.map(|candidate| &candidate.host),
        peer: candidate.map(|candidate| candidate.peer),
        attempts: recipient.attempts,
        queued: now.saturating_since(envelope.age_from),
        tags: &envelope.tags,
        dsn: envelope.dsn.as_deref(),
        recipient_dsn: recipient.dsn.as_deref(),
    }
}
