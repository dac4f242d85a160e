//! What a [`World`]'s test says to its engine as a host, and asks it.

use super::World;
use super::observation::Seen;
use crate::control::{CancelAs, FuseDecision, QueueInfo, QueueSort, Selector};
use crate::engine::{CancelError, CancelReport, ControlError, DeliveryEngine, Stats};
use crate::message::MessageId;

impl World {
    /// Says something to the engine, or asks it: `run` is called with its handle. `None`: the process died meanwhile, or an
    /// invariant broke, which the next method that lets time pass tells, and else the world's end. An answer that takes more
    /// than two days of the world's time breaks `unanswered`.
    ///
    /// What changes the rules or makes mail due before its time is to be said by the world's own methods, such as
    /// [`World::set_policy`] and [`World::retry_now`]: the oracle would take it for a fault. Mail that is submitted
    /// through it is judged, but for being lost and for its content: [`World::submit`] knows what was accepted.
    pub fn with_engine<T>(&mut self, run: impl AsyncFnOnce(DeliveryEngine) -> T) -> Option<T> {
        let answer = self.until_stopped(run);
        self.raise_if_crashing();
        answer
    }

    /// [`DeliveryEngine::stats`].
    pub fn stats(&mut self) -> Stats {
        self.with_engine(async |engine| engine.stats().await).and_then(Result::ok).unwrap_or_default()
    }

    /// [`DeliveryEngine::queues`], all of them by name.
    pub fn queues(&mut self) -> Vec<QueueInfo> {
        let queues = self.with_engine(async |engine| engine.queues(QueueSort::Name, usize::MAX).await);
        queues.and_then(Result::ok).unwrap_or_default()
    }

    /// What a message waits for: [`DeliveryEngine::why`], a line for each of its items.
    pub fn why(&mut self, message: MessageId) -> Vec<String> {
        let waits = self.with_engine(async move |engine| engine.why(message).await);
        lines(waits.and_then(Result::ok))
    }

    /// What a queue waits for: [`DeliveryEngine::why_queue`], a line for each source, and one for each of its
    /// destinations.
    pub fn why_queue(&mut self, name: &str) -> Vec<String> {
        let name = name.to_owned();
        let waits = self.with_engine(async move |engine| engine.why_queue(&name).await);
        let mut told = Vec::new();
        for queue in waits.and_then(Result::ok).unwrap_or_default() {
            told.push(queue.to_string());
            told.extend(queue.destinations.iter().map(|destination| format!("    {destination}")));
            if queue.more_destinations > 0 {
                told.push(format!("    and {} destinations more", queue.more_destinations));
            }
        }
        told
    }

    /// [`DeliveryEngine::cancel_all`].
    ///
    /// # Errors
    /// As there.
    pub fn cancel_all(
        &mut self,
        selector: impl Into<Selector>,
        ending: CancelAs,
    ) -> Result<CancelReport, CancelError> {
        let selector = selector.into();
        let told = self.tell(format!("cancel_all {selector:?}"), async move |engine| {
            engine.cancel_all(selector, ending).await
        });
        told.unwrap_or(Err(CancelError::Stopped(crate::engine::Stopped)))
    }

    /// [`DeliveryEngine::pause`].
    ///
    /// # Errors
    /// As there.
    pub fn pause(&mut self, selector: impl Into<Selector>) -> Result<(), ControlError> {
        let selector = selector.into();
        self.control(format!("pause {selector:?}"), async move |engine| engine.pause(selector).await)
    }

    /// [`DeliveryEngine::resume`].
    ///
    /// # Errors
    /// As there.
    pub fn resume(&mut self, selector: impl Into<Selector>) -> Result<bool, ControlError> {
        let selector = selector.into();
        self.control(format!("resume {selector:?}"), async move |engine| engine.resume(selector).await)
    }

    /// [`DeliveryEngine::retry_now`].
    ///
    /// # Errors
    /// As there.
    pub fn retry_now(&mut self, selector: impl Into<Selector>) -> Result<u64, ControlError> {
        let selector = selector.into();
        self.control(format!("retry_now {selector:?}"), async move |engine| engine.retry_now(selector).await)
    }

    /// [`DeliveryEngine::set_backoff`].
    ///
    /// # Errors
    /// As there.
    pub fn set_backoff(&mut self, selector: impl Into<Selector>, backoff: bool) -> Result<u64, ControlError> {
        let selector = selector.into();
        self.control(format!("set_backoff {selector:?} {backoff}"), async move |engine| {
            engine.set_backoff(selector, backoff).await
        })
    }

    /// [`DeliveryEngine::enable_source`].
    ///
    /// # Errors
    /// As there.
    pub fn enable_source(&mut self, queue: &str, source: &str) -> Result<bool, ControlError> {
        let (of, name) = (queue.to_owned(), source.to_owned());
        self.control(format!("enable_source {queue} {source}"), async move |engine| {
            engine.enable_source(&of, &name).await
        })
    }

    /// [`DeliveryEngine::decide_fuse`].
    ///
    /// # Errors
    /// As there.
    pub fn decide_fuse(&mut self, queue: &str, decision: FuseDecision) -> Result<u64, ControlError> {
        let queue = queue.to_owned();
        self.control(format!("decide_fuse {queue} {decision:?}"), async move |engine| {
            engine.decide_fuse(&queue, decision).await
        })
    }

    fn control<T>(
        &mut self,
        what: String,
        run: impl AsyncFnOnce(DeliveryEngine) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        self.tell(what, run).unwrap_or(Err(ControlError::Stopped(crate::engine::Stopped)))
    }

    /// The oracle hears of it before the engine acts on it.
    fn tell<T>(&mut self, what: String, run: impl AsyncFnOnce(DeliveryEngine) -> T) -> Option<T> {
        // Mail that is stored is gone through page by page: until it is done, and no longer.
        self.see(Seen::Control(what.clone()));
        let answer = self.with_engine(run);
        self.see(Seen::Control(format!("{what}: done")));
        answer
    }
}

fn lines<T: std::fmt::Display>(waits: impl IntoIterator<Item = T>) -> Vec<String> {
    let text: Vec<String> = waits.into_iter().map(|waits| waits.to_string()).collect();
    text.iter().flat_map(|text| text.lines()).map(str::to_owned).collect()
}
