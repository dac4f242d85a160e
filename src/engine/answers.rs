//! Answers to what the host asks: statistics, queues, and what mail waits for.

use tokio::sync::oneshot;

use super::Stats;
use super::driver::{Driver, Input, list, unless_panicked};
use crate::control::{QueueInfo, QueueSort};
use crate::message::MessageId;
use crate::storage::{StorageError, StorageErrorKind};
use crate::tls_report::TlsReport;
use crate::why::MessageWaits;

impl Driver {
    fn stats(&self) -> Stats {
        let counters = self.scheduler.counters;
        let (queues, in_backoff) = self.scheduler.queue_counts();
        Stats {
            queued: 0,
            in_flight: self.scheduler.in_flight() as u64,
            connections: self.scheduler.open_connections() as u64,
            outbox: u64::try_from(self.outcomes).unwrap_or(0),
            received: counters.received,
            delivered: counters.delivered,
            deferred: counters.deferred,
            bounced: counters.bounced,
            cancelled: counters.cancelled,
            queues: queues as u64,
            in_backoff: in_backoff as u64,
        }
    }

    pub(super) fn answer_stats(&mut self, reply: oneshot::Sender<Stats>) {
        let (storage, stats) = (self.parts.storage.clone(), self.stats());
        self.storage_tasks.spawn(async move {
            let queued = storage.usage().await.map_or(0, |usage| usage.items);
            let _ = reply.send(Stats { queued, ..stats });
        });
    }

    /// A host that dropped its call has lost it.
    pub(super) fn answer_tls_report(&self, reply: oneshot::Sender<TlsReport>) {
        let _ = reply.send(self.parts.tls_counts.take());
    }

    /// Items are counted by the store: of the queues shown, or of all if they decide which are shown.
    pub(super) fn answer_queues(
        &mut self,
        sort: QueueSort,
        limit: usize,
        reply: oneshot::Sender<Result<Vec<QueueInfo>, StorageError>>,
    ) {
        let mut shown = self.scheduler.queues(self.parts.clock.now());
        match sort {
            QueueSort::Items | QueueSort::Name => {}
            QueueSort::Oldest => shown.sort_by_key(|queue| std::cmp::Reverse(queue.info.oldest)),
            QueueSort::Connections => shown.sort_by_key(|queue| std::cmp::Reverse(queue.info.connections)),
            QueueSort::Rate => {
                shown.sort_by(|a, b| b.info.delivered_per_minute.total_cmp(&a.info.delivered_per_minute));
            }
        }
        if sort != QueueSort::Items {
            shown.truncate(limit);
        }
        let storage = self.parts.storage.clone();
        self.storage_tasks.spawn(async move {
            let answer = async {
                let mut queues = Vec::with_capacity(shown.len());
                for mut queue in shown {
                    for lane in &queue.lanes {
                        queue.info.items += storage.count(lane).await?;
                    }
                    queues.push(queue.info);
                }
                if sort == QueueSort::Items {
                    queues.sort_by_key(|queue| std::cmp::Reverse(queue.items));
                    queues.truncate(limit);
                }
                Ok(queues)
            };
            let _ = reply.send(unless_panicked(answer).await.unwrap_or_else(panicked));
        });
    }

    /// The store lists what there is of the message; the scheduler knows what it waits for.
    pub(super) fn answer_why(
        &mut self,
        message: MessageId,
        reply: oneshot::Sender<Result<MessageWaits, StorageError>>,
    ) {
        let (storage, results) = (self.parts.storage.clone(), self.to_driver.clone());
        self.storage_tasks.spawn(async move {
            let items = unless_panicked(list(&*storage, message)).await.unwrap_or_else(panicked);
            let _ = results.send(Input::Why { items, reply }).await;
        });
    }
}

pub(super) fn panicked<T>() -> Result<T, StorageError> {
    Err(StorageError::new(StorageErrorKind::OutcomeUnknown, "the store panicked"))
}
