//! Faults that tests put back, to see that they are found. Outside of this crate's own tests there are none.

/// A fault that was, or could have been, in the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An address takes one connection more than its limit.
    LimitOffByOne,
    /// A session is used for mail of whoever leads to its address, whatever TLS that wishes.
    SharedWithoutTls,
    /// Who waits for a limit is not told that there is room.
    LostWakeUp,
    /// An attempt to connect that failed keeps one of its permits.
    ForgottenPermit,
    /// A new engine knows nothing of failed steps.
    RetryResetAtRestart,
    /// A delivered recipient is settled twice.
    DoubleSettle,
    /// A deferred recipient is settled in place of being put back.
    LostRecipient,
    /// A deferred recipient comes back after half its interval.
    DueTooEarly,
    /// A deferral does not count as an attempt.
    UncountedAttempt,
    /// What is offered is not taken of the queue's rate.
    RateNotTaken,
    /// A delivered recipient stays in its item.
    SentAgain,
    /// Transactions start however much is not durable.
    UnboundedUnsettled,
    /// Submissions refused by a stopped store fill the line for ever.
    RefusedStayInLine,
    /// What was delivered while the engine shuts down stays in its item.
    ShutdownForgets,
    /// Deferred recipients wait as in backoff, whether their queue is or not.
    BackoffIntervals,
    /// A refusal that is transient bounces.
    BouncedTransient,
    /// Mail expires after a quarter of its time.
    ExpiredTooEarly,
    /// `max-attempts` counts one attempt too many.
    OneAttemptLess,
    /// The temporary caps of reply rules do nothing.
    CapsForgotten,
    /// A connection carries one message more than it may.
    OneMessageMore,
    /// A transaction has one recipient more than it may.
    OneRecipientMore,
    /// A new engine begins slow rates anew.
    SlowRateForgotten,
    /// A pause of a queue or source does nothing.
    SentWhilePaused,
    /// A disabled source is used.
    SentWhileDisabled,
    /// A queue that a rule defers is sent from.
    SentWhileDeferred,
    /// A rollup's destination that failed is tried again after twenty seconds.
    RollupClockForgotten,
    /// A session is used for mail of any host, wherever it leads.
    SentElsewhere,
    /// Mail whose recipient begins with `forgotten` is never sent.
    ForgottenForDays,
    /// After its first page nothing of the outbox is reported.
    OutcomesUntold,
    /// A fuse lets one bounce through too many.
    OneBounceMore,
}

#[cfg(test)]
thread_local! {
    static PUT_BACK: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

impl Fault {
    /// Puts it back while `run` runs, on this thread.
    #[cfg(test)]
    pub(crate) fn put_back<T>(self, run: impl FnOnce() -> T) -> T {
        struct Mended;
        impl Drop for Mended {
            fn drop(&mut self) {
                PUT_BACK.set(None);
            }
        }
        let _mended = Mended;
        PUT_BACK.set(Some(self));
        run()
    }

    #[cfg(test)]
    pub(crate) fn is_there(self) -> bool {
        PUT_BACK.get() == Some(self)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "as in tests")]
    pub(crate) const fn is_there(self) -> bool {
        false
    }
}
