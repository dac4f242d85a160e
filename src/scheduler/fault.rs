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
}

#[cfg(test)]
thread_local! {
    static PUT_BACK: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

impl Fault {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 13] = [
        Self::LimitOffByOne,
        Self::SharedWithoutTls,
        Self::LostWakeUp,
        Self::ForgottenPermit,
        Self::RetryResetAtRestart,
        Self::DoubleSettle,
        Self::LostRecipient,
        Self::DueTooEarly,
        Self::UncountedAttempt,
        Self::RateNotTaken,
        Self::SentAgain,
        Self::UnboundedUnsettled,
        Self::RefusedStayInLine,
    ];

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
    pub(super) fn is_there(self) -> bool {
        PUT_BACK.get() == Some(self)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "as in tests")]
    pub(super) const fn is_there(self) -> bool {
        false
    }
}
