//! When to try again: pure arithmetic.

use std::sync::Arc;
use std::time::Duration;

use super::value::{MAX_DURATION, Written};

/// The default of `retry-after`: ten minutes, as PowerMTA's.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Increasing retry intervals: the n-th is waited after the n-th attempt, the last one repeats.
///
/// Never empty. Cloning shares the list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[doc(alias = "retry-after")]
pub struct RetryAfter(Arc<[Duration]>);

/// Not a list of retry intervals.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RetryAfterError {
    /// No interval at all.
    #[error("an empty list: name 1 to 30 intervals")]
    Empty,
    /// More than [`RetryAfter::MAX_LEN`].
    #[error("a list of {0} intervals: name 1 to 30")]
    TooMany(usize),
    /// An interval of zero, or longer than [`MAX_DURATION`].
    #[error("a list with the interval {}: each is more than 0s and at most 3650d", Written(*.0))]
    OutOfRange(Duration),
}

impl RetryAfter {
    /// The most intervals a list may have.
    pub const MAX_LEN: usize = 30;

    /// A list of 1 to 30 intervals, each over zero and at most [`MAX_DURATION`].
    ///
    /// # Errors
    /// [`RetryAfterError`] names the interval or the number that is out of range.
    pub fn new(intervals: impl IntoIterator<Item = Duration>) -> Result<Self, RetryAfterError> {
        // One more than allowed would do; the message gives the number, up to a bound.
        let intervals: Arc<[Duration]> = intervals.into_iter().take(10_000).collect();
        if intervals.is_empty() {
            return Err(RetryAfterError::Empty);
        }
        if intervals.len() > Self::MAX_LEN {
            return Err(RetryAfterError::TooMany(intervals.len()));
        }
        match intervals.iter().find(|i| i.is_zero() || **i > MAX_DURATION) {
            Some(&wrong) => Err(RetryAfterError::OutOfRange(wrong)),
            None => Ok(Self(intervals)),
        }
    }

    /// A list of one interval, which must be in range.
    pub(super) fn every(interval: Duration) -> Self {
        Self(Arc::new([interval]))
    }

    /// What is waited after the `nth_attempt`, which counts from 1; 0 is taken as 1.
    ///
    /// ```
    /// # use postrider::policy::RetryAfter;
    /// # use std::time::Duration;
    /// let list = RetryAfter::new([5, 10, 30].map(|minutes| Duration::from_secs(60 * minutes)))?;
    /// assert_eq!(list.interval(2), Duration::from_secs(600));
    /// assert_eq!(list.interval(9), Duration::from_secs(1_800));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn interval(&self, nth_attempt: u32) -> Duration {
        let index = usize::try_from(nth_attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        self.0.get(index).or_else(|| self.0.last()).copied().unwrap_or(DEFAULT_INTERVAL)
    }

    /// The list.
    pub fn intervals(&self) -> &[Duration] {
        &self.0
    }
}

/// Every ten minutes.
impl Default for RetryAfter {
    fn default() -> Self {
        Self::every(DEFAULT_INTERVAL)
    }
}

/// Lengthens `interval` by a random part of up to `jitter` (0 to 0.5) of it. Never shortens it.
///
/// `random` is uniform over all of `u64`; the same number gives the same result. A `jitter` out of its range is
/// taken as the nearest end.
///
/// ```
/// # use postrider::policy::with_jitter;
/// # use std::time::Duration;
/// let minute = Duration::from_secs(60);
/// assert_eq!(with_jitter(minute, 0.1, 0), minute);
/// assert!(with_jitter(minute, 0.1, u64::MAX) <= Duration::from_secs(66));
/// ```
pub fn with_jitter(interval: Duration, jitter: f64, random: u64) -> Duration {
    // 53 bits are what an f64 holds exactly, so the fraction stays below one.
    #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
    let fraction = (random >> 11) as f64 / (1_u64 << 53) as f64;
    let extra = interval.as_secs_f64() * jitter.clamp(0.0, 0.5) * fraction;
    interval.saturating_add(Duration::try_from_secs_f64(extra).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_last_interval_repeats() {
        let list = RetryAfter::new([5, 10, 15, 30, 60].map(|m| m * MINUTE)).unwrap();
        let waited: Vec<_> = (1..=8).map(|n| list.interval(n).as_secs() / 60).collect();
        assert_eq!(waited, [5, 10, 15, 30, 60, 60, 60, 60]);
        assert_eq!(list.interval(0), 5 * MINUTE);
        assert_eq!(list.interval(u32::MAX), 60 * MINUTE);
    }

    #[test]
    fn one_to_thirty_intervals_over_zero() {
        assert_eq!(RetryAfter::new([]), Err(RetryAfterError::Empty));
        assert!(RetryAfter::new(vec![MINUTE; 30]).is_ok());
        assert_eq!(RetryAfter::new(vec![MINUTE; 31]), Err(RetryAfterError::TooMany(31)));
        assert_eq!(
            RetryAfter::new([MINUTE, Duration::ZERO]),
            Err(RetryAfterError::OutOfRange(Duration::ZERO))
        );
        assert!(RetryAfter::new([MAX_DURATION + MINUTE]).is_err());
    }

    #[test]
    fn jitter_reaches_both_ends() {
        assert_eq!(with_jitter(MINUTE, 0.5, 0), MINUTE);
        assert_eq!(with_jitter(MINUTE, 0.0, u64::MAX), MINUTE);
        let most = with_jitter(MINUTE, 0.5, u64::MAX);
        assert!(most > Duration::from_millis(89_999) && most <= Duration::from_secs(90), "{most:?}");
        assert_eq!(with_jitter(MINUTE, f64::NAN, 7), MINUTE);
        assert_eq!(with_jitter(Duration::MAX, 0.5, u64::MAX), Duration::MAX);
    }

    proptest! {
        #[test]
        fn jitter_only_lengthens(millis in any::<u32>(), jitter in 0.0..=0.5_f64, random in any::<u64>()) {
            let interval = Duration::from_millis(millis.into());
            let got = with_jitter(interval, jitter, random);
            prop_assert!(got >= interval);
            prop_assert!(got <= interval + interval.mul_f64(jitter) + Duration::from_micros(1));
        }
    }
}
