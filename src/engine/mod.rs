//! The engine: a [`DeliveryEngine`] handle to one driver task.
//!
//! Start reading in `driver.rs`: its loop feeds the pure scheduler with events and carries out its commands.
//! `session.rs` is one connection's task, `reporter.rs` takes outcomes from the durable outbox to the sink.

mod answers;
mod builder;
mod driver;
mod reporter;
mod route;
mod session;

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

pub use builder::{EngineBuilder, StartError};
use driver::{ControlReply, Request, Submission};
pub use reporter::EventStream;

use crate::control::{CancelAs, FuseDecision, QueueInfo, QueueSort, Selector};
use crate::message::{Message, MessageError, MessageId};
use crate::policy::{Policy, UnknownSource};
pub use crate::scheduler::CancelReport;
use crate::scheduler::{Control, SubmitFailure};
use crate::storage::{StorageError, StorageErrorKind};
use crate::tls_report::TlsReport;
use crate::why::{MessageWaits, QueueWaits};

/// A running delivery engine. Clones are handles to the same one.
///
/// When the last handle is dropped the engine shuts down as by [`shutdown`](Self::shutdown) without a deadline:
/// it takes nothing up any more and ends once its transactions have.
///
/// # Backpressure
///
/// [`submit`](Self::submit) waits while more messages wait to be stored than the engine holds in memory
/// ([`try_submit`](Self::try_submit) fails instead). Mail that is stored does not count: the backlog is bounded by
/// the store alone. It waits, too, while the sink or a live stream ([`events`](Self::events)) takes no events.
#[derive(Clone, Debug)]
pub struct DeliveryEngine {
    submissions: mpsc::Sender<Submission>,
    requests: mpsc::Sender<Request>,
    streams: reporter::Streams,
}

/// Why a message was not accepted. It was not stored, save after [`SubmitError::is_unknown`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The message itself.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// It names a source or pool that the policy does not have.
    #[error(transparent)]
    UnknownSource(#[from] UnknownSource),
    /// The store refused.
    #[error("{stored}: {0}", stored = stored_or_not(.0))]
    Storage(#[from] StorageError),
    /// Too many messages wait to be stored ([`DeliveryEngine::try_submit`] only).
    #[error("the engine has too many submissions in hand: try again later")]
    Busy,
    /// The engine is shutting down or has ended.
    #[error("the engine has been shut down")]
    Stopped,
}

fn stored_or_not(error: &StorageError) -> &'static str {
    match error.kind() {
        StorageErrorKind::OutcomeUnknown => "stored or not, so submit it again with the same id",
        _ => "not stored",
    }
}

impl SubmitError {
    /// Whether it was stored is not known: a flush failed. Submitting again with the same id is safe.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Storage(error) if error.kind() == StorageErrorKind::OutcomeUnknown)
    }
}

/// The engine has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine has been shut down")]
#[non_exhaustive]
pub struct Stopped;

/// Why a cancellation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CancelError {
    /// The store refused.
    #[error("not cancelled: {0}")]
    Storage(#[from] StorageError),
    /// The engine has ended.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why a verb failed. What it was about is as it was, or in part as it was to be: the same again does no harm.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The store refused.
    #[error("not done: {0}")]
    Storage(#[from] StorageError),
    /// The engine has ended.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What the engine has done since it was started, and what it has in hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Items in the store: recipients of one message, domain and due time count as one.
    pub queued: u64,
    /// Transactions under way.
    pub in_flight: u64,
    /// Connections open or being opened or closed.
    pub connections: u64,
    /// Outcomes the sink has not taken yet.
    pub outbox: u64,
    /// Messages accepted.
    pub received: u64,
    /// Recipients delivered.
    pub delivered: u64,
    /// Attempts that failed transiently, per recipient.
    pub deferred: u64,
    /// Recipients bounced.
    pub bounced: u64,
    /// Recipients cancelled.
    pub cancelled: u64,
    /// Queues with mail, or with something to remember.
    pub queues: u64,
    /// Of these, queues in backoff.
    pub in_backoff: u64,
}

/// How a shutdown went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Transactions that had not ended at the deadline and were cut. Their mail is still queued; where the final
    /// dot had been sent, it may be delivered twice.
    pub interrupted: u64,
    /// Items that stay queued. Zero if the store did not say in time.
    pub queued: u64,
    /// Items whose outcome the store did not take, or did not say in time whether it did: what was delivered of these may be
    /// sent again.
    pub unsettled: u64,
}

impl DeliveryEngine {
    /// Configures an engine that introduces itself as `hostname` (EHLO).
    pub fn builder(hostname: impl Into<String>) -> EngineBuilder {
        EngineBuilder::new(hostname.into())
    }

    /// Accepts a message: when this returns `Ok`, the message is durable. It does not wait for DNS or any receiver.
    ///
    /// A host-given id that is known already (queued, or finished within [`ID_MEMORY`](crate::storage::ID_MEMORY))
    /// is returned, and nothing is stored twice. Submit concurrently: submissions share flushes.
    ///
    /// # Cancel safety
    /// Dropped before it returned, the message may or may not be accepted; give it an id of your own to be able
    /// to submit it again.
    ///
    /// # Errors
    /// [`SubmitError`]: the message was not accepted, save where [`SubmitError::is_unknown`].
    pub async fn submit(&self, message: Message) -> Result<MessageId, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let submission = Submission { message: Box::new(message), reply };
        self.submissions.send(submission).await.map_err(|_| SubmitError::Stopped)?;
        submitted(answer).await
    }

    /// As [`submit`](Self::submit), but fails with [`SubmitError::Busy`] when the line of submissions is full.
    ///
    /// # Cancel safety
    /// As [`submit`](Self::submit).
    ///
    /// # Errors
    /// [`SubmitError`].
    pub async fn try_submit(&self, message: Message) -> Result<MessageId, SubmitError> {
        let (reply, answer) = oneshot::channel();
        self.submissions.try_send(Submission { message: Box::new(message), reply }).map_err(|error| {
            match error {
                mpsc::error::TrySendError::Full(_) => SubmitError::Busy,
                mpsc::error::TrySendError::Closed(_) => SubmitError::Stopped,
            }
        })?;
        submitted(answer).await
    }

    /// Accepts many messages, each on its own: the answers are in the order of the messages.
    ///
    /// # Cancel safety
    /// As [`submit`](Self::submit), for each message.
    pub async fn submit_batch(&self, messages: Vec<Message>) -> Vec<Result<MessageId, SubmitError>> {
        let mut answers = Vec::with_capacity(messages.len());
        for message in messages {
            let (reply, answer) = oneshot::channel();
            let sent = self.submissions.send(Submission { message: Box::new(message), reply }).await;
            answers.push(sent.map(|()| answer));
        }
        let each = answers.into_iter().map(|answer| async {
            match answer {
                Ok(answer) => submitted(answer).await,
                Err(_) => Err(SubmitError::Stopped),
            }
        });
        futures::future::join_all(each).await
    }

    /// Gives a message up: its recipients that wait are not tried any more and end as
    /// [`Cancelled`](crate::event::Cancelled). A transaction under way ends first; what it leaves over is cancelled.
    /// Durable on return. An unknown id cancels nothing.
    ///
    /// # Cancel safety
    /// Dropped, the cancellation still takes place.
    ///
    /// # Errors
    /// [`CancelError`]: what waited may still be delivered.
    pub async fn cancel(&self, message: MessageId) -> Result<CancelReport, CancelError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Cancel { message, reply }).await.map_err(|_| Stopped)?;
        Ok(answer.await.map_err(|_| Stopped)??)
    }

    /// As [`cancel`](Self::cancel), for all that `selector` selects, ending as `ending` says: what was
    /// submitted before, also if it is held back by `hold_until`. A tag reads every stored item.
    ///
    /// # Cancel safety
    /// Dropped, the cancellation still takes place.
    ///
    /// # Errors
    /// [`CancelError`]: what waited may still be delivered.
    pub async fn cancel_all(
        &self,
        selector: impl Into<Selector>,
        ending: CancelAs,
    ) -> Result<CancelReport, CancelError> {
        let (reply, answer) = oneshot::channel();
        let control = Control::Cancel(selector.into(), ending);
        let request = Request::Control { control, reply: ControlReply::Cancelled(reply) };
        self.requests.send(request).await.map_err(|_| Stopped)?;
        Ok(answer.await.map_err(|_| Stopped)??)
    }

    /// Stops sending what `selector` selects, now and after a restart, until it is resumed. Transactions under way
    /// end; mail goes on to age and expires. Durable on return. At most 10,000 pauses stand at a time.
    ///
    /// # Cancel safety
    /// Dropped, the pause still takes place.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn pause(&self, selector: impl Into<Selector>) -> Result<(), ControlError> {
        self.control(Control::Pause(selector.into())).await.map(drop)
    }

    /// Takes back a [`pause`](Self::pause) of the same selector. Messages that were paused by themselves, by id or
    /// tag, are due at once. `false`: it was not paused.
    ///
    /// # Cancel safety
    /// Dropped, it still takes place.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn resume(&self, selector: impl Into<Selector>) -> Result<bool, ControlError> {
        let selector = selector.into();
        let by_itself = matches!(selector, Selector::Message(_) | Selector::Tag { .. });
        let count = self.control(Control::Resume(selector)).await?;
        Ok(count > 0 || by_itself)
    }

    /// Makes what waits for its next attempt due at once, and ends the retry mode of its destinations. Attempts stay
    /// counted, and what is held back by `hold_until` stays so. How many items were put off till later.
    ///
    /// # Cancel safety
    /// Dropped, it still takes place.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn retry_now(&self, selector: impl Into<Selector>) -> Result<u64, ControlError> {
        self.control(Control::RetryNow(selector.into())).await
    }

    /// Puts queues into backoff or back to normal: by name, of every source; all of a source; those in which a
    /// domain's mail lies. Messages and tags have no mode. Queues come to be with mail: one without is not there.
    /// How many it was about.
    ///
    /// # Cancel safety
    /// Dropped, it still takes place.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn set_backoff(
        &self,
        selector: impl Into<Selector>,
        backoff: bool,
    ) -> Result<u64, ControlError> {
        self.control(Control::SetBackoff { selector: selector.into(), backoff }).await
    }

    /// Uses a source for a queue again that a reply rule disabled there. `false`: there is no such queue.
    ///
    /// # Cancel safety
    /// Dropped, it still takes place.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn enable_source(&self, queue: &str, source: &str) -> Result<bool, ControlError> {
        let queue = queue.to_ascii_lowercase().into();
        let count = self.control(Control::EnableSource { queue, source: source.into() }).await?;
        Ok(count > 0)
    }

    /// Decides about mail that a queue's blown fuse (`bounce-fuse`) holds, and resets the fuse. How many items were
    /// held.
    ///
    /// # Cancel safety
    /// Dropped, it still takes place.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn decide_fuse(&self, queue: &str, decision: FuseDecision) -> Result<u64, ControlError> {
        self.control(Control::DecideFuse { queue: queue.to_ascii_lowercase().into(), decision }).await
    }

    /// Puts another policy in place of this one. New limits bind at once, and nothing is cut; where mail goes is
    /// decided anew before its next attempt. The storage, resolver and transport stay, with the settings they were
    /// made with.
    ///
    /// # Cancel safety
    /// Dropped, the policy is replaced all the same.
    ///
    /// # Errors
    /// [`Stopped`] when the engine has ended.
    pub async fn set_policy(&self, policy: Policy) -> Result<(), Stopped> {
        let (reply, answer) = oneshot::channel();
        let request = Request::SetPolicy { policy: Box::new(policy), reply };
        self.requests.send(request).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// At most `limit` queues, in this order. Items are counted in the store: those of the queues shown, or of all
    /// if [`QueueSort::Items`] sorts them.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn queues(&self, sort: QueueSort, limit: usize) -> Result<Vec<QueueInfo>, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Queues { sort, limit, reply }).await.map_err(|_| Stopped)?;
        Ok(answer.await.map_err(|_| Stopped)??)
    }

    /// What a message waits for, and until when: of each of its items that is queued, the one thing that decides and
    /// what else must be over before its next attempt. Nothing is changed by asking. Empty if nothing of it is
    /// queued: the id is unknown, or all of it has ended.
    ///
    /// A question of a person, not of a loop: it lists the message in the store, and takes the engine time in its items
    /// and in the connections that are open.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn why(&self, message: MessageId) -> Result<MessageWaits, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Why { message, reply }).await.map_err(|_| Stopped)?;
        Ok(answer.await.map_err(|_| Stopped)??)
    }

    /// What the queues of this name (a domain or `name.rollup`) wait for, and until when: one entry for each source,
    /// with what holds all of it and what each of its destinations waits for. Nothing is changed by asking. Empty if
    /// there is no such queue: queues come to be with mail.
    ///
    /// A question of a person, not of a loop: it takes the engine time in the number of queues, in this one's domains
    /// with mail and items taken out of the store, and in the connections that are open. The store is not asked.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn why_queue(&self, name: &str) -> Result<Vec<QueueWaits>, ControlError> {
        let (reply, answer) = oneshot::channel();
        let name = name.to_ascii_lowercase().into();
        self.requests.send(Request::WhyQueue { name, reply }).await.map_err(|_| Stopped)?;
        Ok(answer.await.map_err(|_| Stopped)?)
    }

    async fn control(&self, control: Control) -> Result<u64, ControlError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Control { control, reply: ControlReply::Done(reply) };
        self.requests.send(request).await.map_err(|_| Stopped)?;
        Ok(answer.await.map_err(|_| Stopped)??)
    }

    /// What the engine has done and has in hand.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    ///
    /// # Errors
    /// [`Stopped`] when the engine has ended.
    pub async fn stats(&self) -> Result<Stats, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Stats { reply }).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// What happened since the last one was taken to sessions, by what they are held to (DANE, MTA-STS or nothing), and to look-ups of
    /// that: what the owners of domains want to be told once a day (TLS-RPT, RFC 8460). The engine sends them
    /// nothing. Taken once a day, it is a day's report. What was counted is lost with the engine.
    ///
    /// # Cancel safety
    /// Dropped, the counters may have been taken and be lost.
    ///
    /// # Errors
    /// [`Stopped`] when the engine has ended.
    pub async fn take_tls_report(&self) -> Result<TlsReport, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::TlsReport { reply }).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// What is held of what has a bound.
    #[cfg(feature = "testing")]
    pub(crate) async fn gauges(&self) -> Result<crate::scheduler::Gauges, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Gauges { reply }).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Waits until nothing is queued and the sink has taken every outcome. Mail that waits for its next attempt
    /// is queued.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    ///
    /// # Errors
    /// [`Stopped`] when the engine ended before.
    pub async fn wait_idle(&self) -> Result<(), Stopped> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::WaitIdle { reply }).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// A live stream of events, beside the sink. Holds up to `capacity` events (at least 1) that the host has not
    /// taken; while it is full the engine takes up no new work. Final events come after the sink had them.
    pub fn events(&self, capacity: usize) -> EventStream {
        self.streams.subscribe(capacity.max(1))
    }

    /// Takes nothing up any more, lets transactions end until `deadline` from now, and ends. What is queued stays
    /// queued. Then the store has ten seconds to write the last outcomes: submissions that it does not answer in that time end with an
    /// error for which [`SubmitError::is_unknown`] is true, and outcomes are counted as [`ShutdownReport::unsettled`]. Then the sink and
    /// the live streams have ten seconds to take the last events: outcomes the sink has not taken
    /// stay in the outbox, other events are lost. So it ends within 20 seconds of the deadline. One thing can hold it up longer: a
    /// `DiskStorage` that nobody else holds waits, as it is dropped, for calls that the disk does not answer; and as long as calls go
    /// on its folder stays locked. Other calls fail with [`Stopped`] from now on.
    ///
    /// # Cancel safety
    /// Dropped, the shutdown still takes place.
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Shutdown { deadline, reply }).await.is_err() {
            return ShutdownReport::default();
        }
        answer.await.unwrap_or_default()
    }
}

async fn submitted(
    answer: oneshot::Receiver<Result<MessageId, SubmitFailure>>,
) -> Result<MessageId, SubmitError> {
    match answer.await {
        Ok(Ok(id)) => Ok(id),
        Ok(Err(SubmitFailure::Message(error))) => Err(error.into()),
        Ok(Err(SubmitFailure::UnknownSource(error))) => Err(error.into()),
        Ok(Err(SubmitFailure::Storage(error))) => Err(error.into()),
        Ok(Err(SubmitFailure::ShuttingDown)) | Err(_) => Err(SubmitError::Stopped),
    }
}
