//! Takes events to the host's sink and streams; final ones from the durable outbox, acknowledged once kept.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{Notify, mpsc};

use super::driver::Input;
use crate::clock::{self, Clock};
use crate::event::{DeliveryEvent, EventSink};
use crate::scheduler::{Fault, Told};
use crate::storage::{Change, OutboxPosition, Storage};

/// Entries read from the outbox at a time.
const PAGE: usize = 256;
/// How long to wait after the sink or the store failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Ends of what the driver hands over.
pub(super) struct Handover {
    /// Events that are not final. Closed when the engine ends.
    pub(super) events: mpsc::Receiver<DeliveryEvent>,
    /// Something was committed to the outbox.
    pub(super) committed: Arc<Notify>,
    /// How often that was.
    pub(super) commits: Arc<AtomicU64>,
    pub(super) results: mpsc::Sender<Input>,
}

pub(super) struct Reporter {
    storage: Arc<dyn Storage>,
    sink: Arc<dyn EventSink>,
    streams: Streams,
    handover: Handover,
    position: OutboxPosition,
    /// Outcomes the sink has kept and the store does not know of yet.
    kept: u64,
    more: bool,
    clock: Clock,
    told: Told<String>,
}

/// The live streams of one engine.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    senders: Vec<mpsc::Sender<DeliveryEvent>>,
    /// The engine has ended: a stream begun now ends at once.
    ended: bool,
}

/// A live stream of events: see [`DeliveryEngine::events`](super::DeliveryEngine::events).
#[derive(Debug)]
pub struct EventStream(mpsc::Receiver<DeliveryEvent>);

impl EventStream {
    /// The next event; `None` when the engine has ended.
    ///
    /// # Cancel safety
    /// May be dropped at any time; no event is lost by it.
    pub async fn next(&mut self) -> Option<DeliveryEvent> {
        self.0.recv().await
    }
}

impl Streams {
    pub(super) fn subscribe(&self, capacity: usize) -> EventStream {
        let (sender, receiver) = mpsc::channel(capacity);
        let mut open = self.lock();
        if !open.ended {
            open.senders.push(sender);
        }
        EventStream(receiver)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, event: &DeliveryEvent) {
        let streams = self.lock().senders.clone();
        let mut closed = false;
        for stream in streams {
            closed |= stream.send(event.clone()).await.is_err();
        }
        if closed {
            self.lock().senders.retain(|stream| !stream.is_closed());
        }
    }

    /// The engine has ended: so do the streams.
    pub(super) fn close(&self) {
        let mut open = self.lock();
        open.ended = true;
        open.senders.clear();
    }
}

impl Reporter {
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        sink: Arc<dyn EventSink>,
        streams: Streams,
        handover: Handover,
        clock: Clock,
        more: bool,
    ) -> Self {
        let (position, told) = (OutboxPosition::default(), Told::default());
        Self { storage, sink, streams, handover, position, kept: 0, more, clock, told }
    }

    /// Runs until the driver closes the channel of events, then takes what is left in one last round.
    pub(super) async fn run(mut self) {
        let mut open = true;
        while open {
            if !self.more {
                tokio::select! {
                    biased;
                    event = self.handover.events.recv() => match event {
                        Some(event) => self.tell(&event).await,
                        None => open = false,
                    },
                    () = self.handover.committed.notified() => {}
                }
            }
            if Fault::OutcomesUntold.is_there() && self.position != OutboxPosition::default() {
                std::future::pending::<()>().await;
            }
            if !self.guarded_round().await {
                if !open {
                    break;
                }
                clock::pause(PAUSE).await;
            }
        }
        while self.more && self.guarded_round().await {}
        self.streams.close();
    }

    /// A panic in a host's part is a failed round, not the end of all reports.
    async fn guarded_round(&mut self) -> bool {
        let round = AssertUnwindSafe(self.round()).catch_unwind().await;
        round.unwrap_or_else(|_| {
            tracing::error!("the event sink or the store panicked");
            self.more = true;
            false
        })
    }

    /// One page of the outbox and what else there is to tell. `false`: it is to be tried again later.
    async fn round(&mut self) -> bool {
        if !self.acknowledge().await {
            return false;
        }
        let commits = self.handover.commits.load(Ordering::Acquire);
        let entries = match self.storage.outbox(self.position, PAGE).await {
            Ok(entries) => entries,
            Err(error) => {
                // What is not in the outbox does not wait for it.
                while let Ok(event) = self.handover.events.try_recv() {
                    self.tell(&event).await;
                }
                self.more = error.is_temporary();
                if self.log("the outbox can not be read", &error) {
                    let _ = self.handover.results.send(Input::Unread(vec![error])).await;
                }
                return !self.more;
            }
        };
        // What was handed over before these were committed is told before them.
        while let Ok(event) = self.handover.events.try_recv() {
            self.tell(&event).await;
        }
        self.more = entries.len() == PAGE;
        let Some(last) = entries.last().map(|entry| entry.position) else {
            let _ = self.handover.results.send(Input::OutboxRead(commits)).await;
            return true;
        };
        let count = entries.len() as u64;
        let mut events = Vec::with_capacity(entries.len());
        for entry in &entries {
            match crate::outbox::event(entry) {
                Ok(event) => events.push(event),
                Err(error) => tracing::error!(%error, "an outcome can not be read and is passed over"),
            }
        }
        let sink = self.sink.clone();
        events.iter().for_each(|event| self.to_sink(event));
        let flushed = if sink.flush_blocks() {
            let flushed = tokio::task::spawn_blocking(move || sink.flush()).await;
            flushed.unwrap_or_else(|error| Err(std::io::Error::other(error)))
        } else {
            sink.flush()
        };
        if let Err(error) = flushed {
            self.log("the event sink could not keep outcomes, which are reported again", &error);
            self.more = true;
            return false;
        }
        self.position = last;
        self.kept += count;
        for event in &events {
            self.streams.send(event).await;
        }
        if !self.acknowledge().await {
            return false;
        }
        if !self.more {
            let _ = self.handover.results.send(Input::OutboxRead(commits)).await;
        }
        true
    }

    /// Tells the store what the sink has kept. Until that succeeds nothing further is read; a restart in between
    /// reports it again.
    async fn acknowledge(&mut self) -> bool {
        if self.kept == 0 {
            return true;
        }
        if let Err(error) = self.storage.commit(vec![Change::Acknowledge(self.position)]).await {
            self.log("outcomes could not be acknowledged", &error);
            self.more = error.is_temporary();
            return false;
        }
        let count = std::mem::take(&mut self.kept);
        let _ = self.handover.results.send(Input::Acknowledged(count)).await;
        true
    }

    /// What is tried again each second is told once a minute. Returns whether it was now.
    fn log(&mut self, what: &str, error: &dyn std::error::Error) -> bool {
        let is_due = self.told.is_due(self.clock.now(), format!("{what}: {error}"));
        if is_due {
            tracing::error!(%error, "{what}");
        }
        is_due
    }

    async fn tell(&self, event: &DeliveryEvent) {
        self.to_sink(event);
        self.streams.send(event).await;
    }

    fn to_sink(&self, event: &DeliveryEvent) {
        let told = std::panic::catch_unwind(AssertUnwindSafe(|| self.sink.on_event(event)));
        if told.is_err() {
            tracing::error!("the event sink panicked over an event, which it may have missed");
        }
    }
}
