//! How long something takes.

use std::time::Duration;

use super::WorldError;

/// How long a server takes for an answer, or the network for a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Latency {
    /// Always the same.
    Fixed(Duration),
    /// Anything from the first to the second, all alike.
    Uniform(Duration, Duration),
    /// Mostly near the median, with a long tail (log-normal), as servers have it.
    Skewed {
        /// Half are faster.
        median: Duration,
        /// One in a hundred is slower.
        p99: Duration,
    },
}

/// A wait drawn from the tail is at most so long.
const LONGEST: f64 = 86_400.0;

impl Latency {
    /// None at all.
    pub const ZERO: Self = Self::Fixed(Duration::ZERO);

    pub(super) fn check(self) -> Result<(), WorldError> {
        let (least, most) = match self {
            Self::Fixed(_) => return Ok(()),
            Self::Uniform(least, most) => (least, most),
            Self::Skewed { median, p99 } => (median, p99),
        };
        if least <= most { Ok(()) } else { Err(WorldError::Latency(self)) }
    }

    pub(super) fn draw(self, random: &mut fastrand::Rng) -> Duration {
        match self {
            Self::Fixed(time) => time,
            Self::Uniform(least, most) => {
                least + Duration::from_secs_f64(most.saturating_sub(least).as_secs_f64() * random.f64())
            }
            Self::Skewed { median, p99 } => {
                // 2.326 is the 99th percentile of the normal distribution.
                let median = median.as_secs_f64().max(1e-6);
                let sigma = (p99.as_secs_f64().max(median) / median).ln() / 2.326;
                let seconds = median * (sigma * normal(random)).exp();
                Duration::from_secs_f64(seconds.min(LONGEST))
            }
        }
    }
}

impl From<Duration> for Latency {
    fn from(time: Duration) -> Self {
        Self::Fixed(time)
    }
}

/// Box and Muller's transform.
fn normal(random: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.f64()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skewed_latency_has_its_median_and_its_tail() {
        let mut random = fastrand::Rng::with_seed(1);
        let (median, p99) = (Duration::from_millis(200), Duration::from_secs(5));
        let latency = Latency::Skewed { median, p99 };
        let mut drawn: Vec<_> = (0..20_000).map(|_| latency.draw(&mut random)).collect();
        drawn.sort_unstable();
        let (half, tail) = (drawn[10_000].as_secs_f64(), drawn[19_800].as_secs_f64());
        assert!((0.18..0.22).contains(&half), "{half}");
        assert!((4.0..6.2).contains(&tail), "{tail}");
    }
}
