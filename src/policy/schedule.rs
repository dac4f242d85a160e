//! When a recipient is tried again, by the settings of its queue.

use std::time::Duration;

use super::retry::{RetryAfter, with_jitter};
use super::settings::QueueSettings;
use super::value::Rate;

/// A recipient whose attempt has just failed transiently: what [`QueueSettings::retry`] is asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryContext {
    /// How many attempts it was charged, this one included.
    pub attempts: u32,
    /// Its age.
    pub age: Duration,
    /// The age at which its message expires, if it has one of its own.
    pub expires_after: Option<Duration>,
    /// Its queue is in backoff.
    pub in_backoff: bool,
    /// What a reply rule puts in place of the next interval (`retry-after=T`).
    pub interval: Option<Duration>,
    /// For the jitter: uniform over all of `u64`.
    pub random: u64,
}

impl RetryContext {
    /// A queue out of backoff, a message that expires with its queue's `bounce-after`, no jitter.
    pub fn new(attempts: u32, age: Duration) -> Self {
        Self { attempts, age, expires_after: None, in_backoff: false, interval: None, random: 0 }
    }

    /// The age at which the message expires, if it has one of its own. Default: none.
    #[must_use]
    pub fn with_expires_after(mut self, age: Option<Duration>) -> Self {
        self.expires_after = age;
        self
    }

    /// The queue is in backoff. Default: it is not.
    #[must_use]
    pub fn with_backoff(mut self, in_backoff: bool) -> Self {
        self.in_backoff = in_backoff;
        self
    }

    /// What a reply rule puts in place of the next interval. Default: none.
    #[must_use]
    pub fn with_interval(mut self, interval: Option<Duration>) -> Self {
        self.interval = interval;
        self
    }

    /// The random number behind the jitter. Default: 0, no jitter; `u64::MAX` is the most.
    #[must_use]
    pub fn with_random(mut self, random: u64) -> Self {
        self.random = random;
        self
    }
}

/// What follows a recipient's failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// It is tried again after so long, unless it expires before.
    After(Duration),
    /// It was tried as often as `max-attempts` says, and expires.
    TooManyAttempts,
    /// It is too old, and expires.
    Expired,
}

/// Those settings that backoff replaces, as they are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InForce<'a> {
    /// What is waited after each failed attempt.
    pub retry_after: &'a RetryAfter,
    /// Connections of the queue.
    pub max_smtp_out: Option<u32>,
    /// Recipients offered by the queue.
    pub max_msg_rate: Option<Rate>,
}

/// What follows from them.
impl QueueSettings {
    /// What follows a recipient's failed attempt.
    ///
    /// ```
    /// # use postrider::policy::{Policy, Retry, RetryContext};
    /// # use std::time::Duration;
    /// let settings = Policy::from_toml("[domain.'*']\nretry-after = ['5m', '1h']")?.settings("example.com", "default");
    /// let second = RetryContext::new(2, Duration::from_secs(300));
    /// assert_eq!(settings.retry(&second), Retry::After(Duration::from_secs(3_600)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn retry(&self, context: &RetryContext) -> Retry {
        if self.max_attempts.is_some_and(|most| context.attempts >= most) {
            return Retry::TooManyAttempts;
        }
        if context.age >= context.expires_after.unwrap_or(self.bounce_after) {
            return Retry::Expired;
        }
        let own = || self.in_force(context.in_backoff).retry_after.interval(context.attempts);
        let interval = context.interval.unwrap_or_else(own);
        Retry::After(with_jitter(interval, self.retry_jitter, context.random))
    }

    /// The ages at which a lone message is tried that is refused every time, until it expires. It expires at
    /// `bounce_after`, or with its last attempt if there are `max_attempts`.
    ///
    /// `random` is asked for the jitter of each interval: `|| 0` for the earliest an attempt can be, `|| u64::MAX`
    /// for the latest.
    ///
    /// ```
    /// # use postrider::policy::Policy;
    /// let text = "[domain.'*']\nretry-after = ['5m', '10m', '30m']\nbounce-after = '2h'";
    /// let settings = Policy::from_toml(text)?.settings("example.com", "default");
    /// let minutes: Vec<u64> = settings.attempt_ages(|| 0).map(|age| age.as_secs() / 60).collect();
    /// assert_eq!(minutes, [0, 5, 15, 45, 75, 105]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn attempt_ages(&self, mut random: impl FnMut() -> u64) -> impl Iterator<Item = Duration> {
        let first = Some((1_u32, Duration::ZERO));
        let ages = std::iter::successors(first, move |&(attempts, age)| {
            let context = RetryContext::new(attempts, age).with_random(random());
            match self.retry(&context) {
                Retry::After(interval) => Some((attempts.saturating_add(1), age.saturating_add(interval))),
                Retry::TooManyAttempts | Retry::Expired => None,
            }
        });
        ages.map(|(_, age)| age).take_while(|age| *age < self.bounce_after)
    }

    /// The settings that backoff replaces, as they are in it or out of it.
    ///
    /// ```
    /// # use postrider::policy::Policy;
    /// let settings = Policy::from_toml("[domain.'*']\nmax-smtp-out = 50")?.settings("example.com", "default");
    /// assert_eq!(settings.in_force(false).max_smtp_out, Some(50));
    /// assert_eq!(settings.in_force(true).max_smtp_out, Some(1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn in_force(&self, in_backoff: bool) -> InForce<'_> {
        if in_backoff {
            InForce {
                retry_after: &self.backoff_retry_after,
                max_smtp_out: self.backoff_max_smtp_out,
                max_msg_rate: self.backoff_max_msg_rate,
            }
        } else {
            InForce {
                retry_after: &self.retry_after,
                max_smtp_out: self.max_smtp_out,
                max_msg_rate: self.max_msg_rate,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{DomainSettings, Policy};

    const MINUTE: Duration = Duration::from_secs(60);

    fn settings(settings: DomainSettings) -> QueueSettings {
        let intervals = RetryAfter::new([5, 10].map(|minutes| minutes * MINUTE)).unwrap();
        let settings = settings.with_retry_after(intervals).with_bounce_after(60 * MINUTE);
        Policy::new().with_domain("*", settings).unwrap().settings("example.com", "default")
    }

    fn minutes(settings: &QueueSettings, random: u64) -> Vec<u64> {
        settings.attempt_ages(|| random).map(|age| age.as_secs() / 60).collect()
    }

    #[test]
    fn what_follows_a_failure() {
        let some = settings(DomainSettings::new().with_max_attempts(3));
        let at = |attempts, age: u32| RetryContext::new(attempts, age * MINUTE);
        for (context, want) in [
            (at(1, 0), Retry::After(5 * MINUTE)),
            (at(2, 5), Retry::After(10 * MINUTE)),
            (at(2, 59), Retry::After(10 * MINUTE)),
            (at(2, 60), Retry::Expired),
            (at(3, 15), Retry::TooManyAttempts),
            (at(3, 60), Retry::TooManyAttempts),
            (at(1, 30).with_expires_after(Some(30 * MINUTE)), Retry::Expired),
            (at(1, 90).with_expires_after(Some(120 * MINUTE)), Retry::After(5 * MINUTE)),
            (at(1, 0).with_backoff(true), Retry::After(60 * MINUTE)),
            (at(1, 0).with_backoff(true).with_interval(Some(MINUTE)), Retry::After(MINUTE)),
            (at(1, 60).with_interval(Some(MINUTE)), Retry::Expired),
        ] {
            assert_eq!(some.retry(&context), want, "{context:?}");
        }
    }

    #[test]
    fn a_lone_message_is_tried_until_it_expires() {
        assert_eq!(minutes(&settings(DomainSettings::new()), 0), [0, 5, 15, 25, 35, 45, 55]);
        assert_eq!(minutes(&settings(DomainSettings::new().with_max_attempts(3)), 0), [0, 5, 15]);
        assert_eq!(minutes(&settings(DomainSettings::new().with_max_attempts(1)), 0), [0]);
    }

    #[test]
    fn jitter_has_an_earliest_and_a_latest() {
        let jittered = settings(DomainSettings::new().with_retry_jitter(0.5));
        assert_eq!(minutes(&jittered, 0), [0, 5, 15, 25, 35, 45, 55]);
        assert_eq!(minutes(&jittered, u64::MAX), [0, 7, 22, 37, 52]);
    }
}
