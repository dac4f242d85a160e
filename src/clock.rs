//! Time on one axis: [`Timestamp`] and the [`Clock`] that reads it.
//!
//! A timestamp is a wall-clock anchor plus the time tokio's clock has run since. Under a paused runtime
//! persisted times therefore move together with timers.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// A point in time: microseconds since the Unix epoch, UTC.
///
/// Arithmetic saturates at both ends, so no setting and no stored value can overflow it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// One more than the microseconds: there are a great many times that may be missing, and `None` takes no room.
    successor: NonZeroU64,
}

impl Timestamp {
    /// The Unix epoch.
    pub const EPOCH: Self = Self { successor: NonZeroU64::MIN };
    /// The latest representable time; stands for "never".
    pub const MAX: Self = Self { successor: NonZeroU64::MAX };

    /// From microseconds since the Unix epoch.
    pub const fn from_unix_micros(micros: u64) -> Self {
        Self { successor: NonZeroU64::MIN.saturating_add(micros) }
    }

    /// From whole seconds since the Unix epoch.
    pub const fn from_unix_seconds(seconds: u64) -> Self {
        Self::from_unix_micros(seconds.saturating_mul(1_000_000))
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_unix_micros(self) -> u64 {
        self.successor.get() - 1
    }

    /// Time passed since `earlier`, zero if `earlier` lies later.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.successor.get().saturating_sub(earlier.successor.get()))
    }

    /// This time plus `duration`, at most [`Timestamp::MAX`].
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self { successor: self.successor.saturating_add(micros(duration)) }
    }

    /// This time minus `duration`, at least the epoch.
    pub fn saturating_sub(self, duration: Duration) -> Self {
        Self::from_unix_micros(self.as_unix_micros().saturating_sub(micros(duration)))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The epoch.
impl Default for Timestamp {
    fn default() -> Self {
        Self::EPOCH
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Timestamp({})", self.as_unix_micros())
    }
}

/// Microseconds since the Unix epoch.
impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_unix_micros().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Self::from_unix_micros)
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        self.saturating_add(duration)
    }
}

/// RFC 3339 in UTC, with milliseconds.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = i64::try_from(self.as_unix_micros()).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_microsecond(micros) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => f.write_str("never"),
        }
    }
}

/// Not an RFC 3339 time, or one before 1970.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time like 2026-11-23T10:00:00Z")]
pub struct ParseTimestampError(String);

/// Reads RFC 3339, with any offset.
impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time: jiff::Timestamp = text.parse().map_err(|_| ParseTimestampError(text.to_owned()))?;
        let micros =
            u64::try_from(time.as_microsecond()).map_err(|_| ParseTimestampError(text.to_owned()))?;
        Ok(Self::from_unix_micros(micros))
    }
}

/// Reads the time; cheap to clone, all clones agree.
#[derive(Clone, Debug)]
pub struct Clock {
    anchor: Arc<RwLock<Anchor>>,
    wall: Wall,
}

/// What a clock takes over when it is stepped.
#[derive(Clone, Debug)]
enum Wall {
    /// The system's wall clock.
    System,
    /// None: it moves with tokio's clock alone.
    None,
    /// One that a test steps.
    #[cfg(feature = "testing")]
    Stepped(Arc<RwLock<Option<Timestamp>>>),
}

#[derive(Clone, Copy, Debug)]
struct Anchor {
    wall: Timestamp,
    instant: tokio::time::Instant,
}

#[allow(clippy::disallowed_methods, reason = "the one place that reads the clocks")]
impl Clock {
    /// Follows the system's wall clock. [`Clock::reanchor`] takes over a step of it.
    pub fn system() -> Self {
        Self::new(wall_now(), Wall::System)
    }

    /// Starts at `start` and moves only with tokio's clock: for paused runtimes.
    pub fn starting_at(start: Timestamp) -> Self {
        Self::new(start, Wall::None)
    }

    /// As [`Clock::starting_at`], and [`Clock::step`] steps it.
    #[cfg(feature = "testing")]
    pub(crate) fn stepped_by_hand(start: Timestamp) -> Self {
        Self::new(start, Wall::Stepped(Arc::default()))
    }

    fn new(start: Timestamp, wall: Wall) -> Self {
        let anchor = Anchor { wall: start, instant: tokio::time::Instant::now() };
        Self { anchor: Arc::new(RwLock::new(anchor)), wall }
    }

    /// The wall clock shows `to` now. [`Clock::reanchor`] takes it over.
    #[cfg(feature = "testing")]
    pub(crate) fn step(&self, to: Timestamp) {
        if let Wall::Stepped(step) = &self.wall {
            let ahead = self.now().saturating_since(self.read().wall);
            // Until it is taken over, the wall clock runs on.
            let shown = to.saturating_sub(ahead);
            *step.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(shown);
        }
    }

    /// What the wall clock shows, if there is one and it is not this clock.
    fn wall(&self) -> Option<Timestamp> {
        match &self.wall {
            Wall::System => Some(wall_now()),
            Wall::None => None,
            #[cfg(feature = "testing")]
            Wall::Stepped(step) => {
                let shown = step.read().unwrap_or_else(std::sync::PoisonError::into_inner).as_ref().copied();
                shown.map(|shown| shown + self.read().instant.elapsed())
            }
        }
    }

    /// What a clock made now would begin with.
    #[cfg(feature = "testing")]
    pub(crate) fn shown(&self) -> Timestamp {
        self.wall().unwrap_or_else(|| self.now())
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        let anchor = self.read();
        anchor.wall + anchor.instant.elapsed()
    }

    /// The tokio instant at which this clock will show `time`.
    pub(crate) fn instant_at(&self, time: Timestamp) -> tokio::time::Instant {
        // Timers further away than a year are re-armed then: tokio's wheel has an end.
        const FURTHEST: Duration = Duration::from_secs(365 * 86_400);
        let ahead = time.saturating_since(self.now()).min(FURTHEST);
        tokio::time::Instant::now() + ahead
    }

    /// Follows the wall clock if it was stepped by more than a second. Returns whether it was.
    pub fn reanchor(&self) -> bool {
        let Some(wall) = self.wall() else { return false };
        let ours = self.now();
        let drift = ours.saturating_since(wall).max(wall.saturating_since(ours));
        if drift <= Duration::from_secs(1) {
            return false;
        }
        let anchor = Anchor { wall, instant: tokio::time::Instant::now() };
        *self.anchor.write().unwrap_or_else(std::sync::PoisonError::into_inner) = anchor;
        #[cfg(feature = "testing")]
        if let Wall::Stepped(step) = &self.wall {
            *step.write().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        }
        true
    }

    fn read(&self) -> Anchor {
        *self.anchor.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The runtime's own time, which no step of the wall clock moves.
#[allow(clippy::disallowed_methods, reason = "the one place that reads the clocks")]
pub(crate) fn instant() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// Waits before something that failed is tried again.
#[allow(clippy::disallowed_methods, reason = "the one place that waits, with driver.rs")]
pub(crate) async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}

#[allow(clippy::disallowed_methods, reason = "the one place that reads the clocks")]
fn wall_now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_micros(micros(since_epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_round_trip_with_offset() {
        let time: Timestamp = "2026-11-23T12:00:00.250+02:00".parse().unwrap();
        assert_eq!(time.to_string(), "2026-11-23T10:00:00.250Z");
        assert!("yesterday".parse::<Timestamp>().is_err());
        assert!("1969-12-31T00:00:00Z".parse::<Timestamp>().is_err());
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Timestamp::MAX + Duration::MAX, Timestamp::MAX);
        assert_eq!(Timestamp::EPOCH.saturating_sub(Duration::from_secs(1)), Timestamp::EPOCH);
        assert_eq!(Timestamp::MAX.to_string(), "never");
    }

    #[tokio::test(start_paused = true)]
    async fn virtual_clock_moves_with_the_runtime() {
        let clock = Clock::starting_at(Timestamp::from_unix_seconds(1_000));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.now(), Timestamp::from_unix_seconds(1_005));
        assert!(!clock.reanchor());
    }
}
