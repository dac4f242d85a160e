//! Durations and rates as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest duration a policy takes: ten years of 365 days.
pub const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Units, largest first, with their milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DurationError {
    /// Not numbers with units.
    #[error(r#"not a duration: write it like "90s", "5m" or "4d12h""#)]
    Malformed,
    /// Longer than [`MAX_DURATION`].
    #[error("longer than 10 years, the longest duration there is")]
    TooLong,
}

/// Reads a duration such as `90s`, `5m`, `1h30m`, `4d12h`: whole numbers with the units d, h, m, s and ms, larger
/// units first, each at most once.
///
/// # Errors
/// [`DurationError`]: malformed, or longer than [`MAX_DURATION`].
///
/// ```
/// # use postrider::policy::{DurationError, parse_duration};
/// assert_eq!(parse_duration("1h30m"), Ok(std::time::Duration::from_secs(5_400)));
/// assert_eq!(parse_duration("90"), Err(DurationError::Malformed), "without a unit");
/// assert_eq!(parse_duration("30m1h"), Err(DurationError::Malformed), "larger units first");
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text;
    let mut total = 0_u64;
    let mut smallest = u64::MAX;
    while !rest.is_empty() || smallest == u64::MAX {
        let (number, after) = split_while(rest, |c| c.is_ascii_digit());
        let (unit, after) = split_while(after, |c| c.is_ascii_alphabetic());
        let millis = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, millis)| *millis);
        let millis =
            millis.filter(|m| *m < smallest && !number.is_empty()).ok_or(DurationError::Malformed)?;
        let part = number.parse::<u64>().ok().and_then(|n| n.checked_mul(millis));
        total = part.and_then(|p| p.checked_add(total)).ok_or(DurationError::TooLong)?;
        smallest = millis;
        rest = after;
    }
    Some(Duration::from_millis(total)).filter(|d| *d <= MAX_DURATION).ok_or(DurationError::TooLong)
}

fn split_while(text: &str, keep: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !keep(c)).unwrap_or(text.len()))
}

/// Writes a duration as [`parse_duration`] reads it; what is below a millisecond is left out.
pub(crate) struct Written(pub(crate) Duration);

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if left == 0 {
            return f.write_str("0s");
        }
        for (name, millis) in UNITS {
            let number = left / millis;
            if number > 0 {
                write!(f, "{number}{name}")?;
            }
            left %= millis;
        }
        Ok(())
    }
}

/// So many in so much time, such as `100/h` or `10/30s`. No rate at all (`None`) is "unlimited".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u32, Duration)", into = "(u32, Duration)")]
pub struct Rate {
    count: u32,
    period: Duration,
}

/// Not a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RateError {
    /// Not a count, a slash and a period.
    #[error(r#"not a rate: write it like "100/h", "1/m" or "10/30s""#)]
    Malformed,
    /// None at all.
    #[error("a rate of zero, which would hold mail for ever: the count is 1 or more")]
    ZeroCount,
    /// In no time.
    #[error("a rate over no time: the period is at least 1ms")]
    ZeroPeriod,
    /// The period is longer than [`MAX_DURATION`].
    #[error("a rate over more than 10 years, the longest period there is")]
    TooLong,
}

impl Rate {
    /// `count` in `period`.
    ///
    /// # Errors
    /// [`RateError`]: the count is zero, or the period is zero or over [`MAX_DURATION`].
    pub const fn new(count: u32, period: Duration) -> Result<Self, RateError> {
        if count == 0 {
            return Err(RateError::ZeroCount);
        }
        if period.as_millis() == 0 {
            return Err(RateError::ZeroPeriod);
        }
        if period.as_millis() > MAX_DURATION.as_millis() {
            return Err(RateError::TooLong);
        }
        Ok(Self { count, period })
    }

    /// How many; 1 or more.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// In how much time; 1 ms to [`MAX_DURATION`].
    pub const fn period(self) -> Duration {
        self.period
    }
}

impl From<Rate> for (u32, Duration) {
    fn from(rate: Rate) -> Self {
        (rate.count, rate.period)
    }
}

impl TryFrom<(u32, Duration)> for Rate {
    type Error = RateError;

    fn try_from((count, period): (u32, Duration)) -> Result<Self, RateError> {
        Self::new(count, period)
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let (count, period) = text.split_once('/').ok_or(RateError::Malformed)?;
        let count = Some(count).filter(|c| c.bytes().all(|b| b.is_ascii_digit()));
        let count = count.and_then(|c| c.parse().ok()).ok_or(RateError::Malformed)?;
        let one = period.starts_with(|c: char| c.is_ascii_alphabetic()).then(|| format!("1{period}"));
        match parse_duration(one.as_deref().unwrap_or(period)) {
            Ok(period) => Self::new(count, period),
            Err(DurationError::Malformed) => Err(RateError::Malformed),
            Err(DurationError::TooLong) => Err(RateError::TooLong),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let period = Written(self.period).to_string();
        let unit = period.strip_prefix('1').filter(|unit| UNITS.iter().any(|(name, _)| name == unit));
        write!(f, "{}/{}", self.count, unit.unwrap_or(&period))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read() {
        for (text, millis) in [
            ("90s", 90_000),
            ("5m", 300_000),
            ("4d12h", 388_800_000),
            ("1h30m", 5_400_000),
            ("1d2h3m4s5ms", 93_784_005),
            ("0s", 0),
            ("3650d", 315_360_000_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "5", "m", "5x", "5 m", "m5", "5m5", "5m1h", "5m5m", "-5m", "+5m", "1.5h", "5M", "५m"]
        {
            assert_eq!(parse_duration(text), Err(DurationError::Malformed), "{text}");
        }
        for text in ["3651d", "3650d1ms", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(parse_duration(text), Err(DurationError::TooLong), "{text}");
        }
    }

    #[test]
    fn rates_are_read_and_written() {
        for (text, count, seconds, written) in [
            ("100/h", 100, 3600, "100/h"),
            ("1/m", 1, 60, "1/m"),
            ("10/30s", 10, 30, "10/30s"),
            ("7/1d", 7, 86_400, "7/d"),
            ("2/1h30m", 2, 5400, "2/1h30m"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.count(), rate.period()), (count, Duration::from_secs(seconds)));
            assert_eq!(rate.to_string(), written);
        }
        for (text, error) in [
            ("", RateError::Malformed),
            ("100", RateError::Malformed),
            ("/h", RateError::Malformed),
            ("100/", RateError::Malformed),
            ("+1/h", RateError::Malformed),
            ("100/30", RateError::Malformed),
            ("4294967296/h", RateError::Malformed),
            ("0/h", RateError::ZeroCount),
            ("1/0s", RateError::ZeroPeriod),
            ("1/3651d", RateError::TooLong),
        ] {
            assert_eq!(text.parse::<Rate>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn written_durations_read_back(millis in 0..=315_360_000_000_u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&Written(duration).to_string()), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in any::<String>(), close in "[0-9dhms/.+-]{0,12}") {
            for text in [text, close] {
                let _ = parse_duration(&text);
                let _ = text.parse::<Rate>();
            }
        }
    }
}
