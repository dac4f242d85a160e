//! A paced rate, as arithmetic.

use super::value::Rate;
use crate::clock::Timestamp;

/// Spreads units evenly at a rate: in any time `t` at most `t` times the rate, and a [burst](Self::burst) besides.
///
/// The generic cell rate algorithm in whole nanoseconds, rounded so that the rate is never exceeded. There is no
/// timer and no history: one number says until when what went is paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    rate: Rate,
    /// Nanoseconds since the epoch.
    paid_at: u128,
}

const MICRO: u128 = 1_000;
const SECOND: u128 = 1_000_000_000;

impl Pace {
    /// A pace at which nothing went yet.
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, paid_at: 0 }
    }

    /// A pace at a [position](Self::position) that was stored.
    pub(crate) fn at_position(rate: Rate, position: u64) -> Self {
        Self { rate, paid_at: u128::from(position) * MICRO }
    }

    /// What to store, in microseconds since the epoch. With the same rate a pace goes on from it, up to a
    /// microsecond later.
    pub(crate) fn position(&self) -> u64 {
        u64::try_from(self.paid_at.div_ceil(MICRO)).unwrap_or(u64::MAX)
    }

    /// The rate.
    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    /// How many may go at once after a rest: one second's worth, at least 1.
    pub(crate) fn burst(&self) -> u32 {
        let whole = u128::from(self.rate.count()) * SECOND / self.rate.period().as_nanos().max(1);
        u32::try_from(whole).unwrap_or(u32::MAX).max(1)
    }

    /// The earliest time when `n` units, or a burst if that is less, may go.
    pub(crate) fn ready_at(&self, n: u32) -> Timestamp {
        let ready = (self.paid_at + self.cost(n.min(self.burst()))).saturating_sub(self.allowance());
        Timestamp::from_unix_micros(u64::try_from(ready.div_ceil(MICRO)).unwrap_or(u64::MAX))
    }

    /// Charges `n` units that go at `now`. Units beyond a burst, or before they are ready, delay those after them.
    pub(crate) fn take(&mut self, now: Timestamp, n: u32) {
        self.paid_at = self.paid_at.max(nanos(now)) + self.cost(n);
    }

    /// Goes on at another rate. What is still owed at the old rate holds up the new one by one interval of the new
    /// at most. The same rate changes nothing.
    pub(crate) fn with_rate(self, rate: Rate, now: Timestamp) -> Self {
        if rate == self.rate {
            return self;
        }
        let new = Self { rate, paid_at: self.paid_at };
        Self { paid_at: self.paid_at.min(nanos(now) + new.allowance()), ..new }
    }

    /// How long the rate takes for `n` units, rounded up.
    fn cost(&self, n: u32) -> u128 {
        (u128::from(n) * self.rate.period().as_nanos()).div_ceil(u128::from(self.rate.count()))
    }

    /// How long the rate takes for a burst, rounded down.
    fn allowance(&self) -> u128 {
        u128::from(self.burst()) * self.rate.period().as_nanos() / u128::from(self.rate.count())
    }
}

fn nanos(time: Timestamp) -> u128 {
    u128::from(time.as_unix_micros()) * MICRO
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const START: Timestamp = Timestamp::from_unix_seconds(1_700_000_000);

    fn pace(rate: &str) -> Pace {
        Pace::new(rate.parse().unwrap())
    }

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_burst_is_one_seconds_worth() {
        for (rate, burst) in [
            ("100/h", 1),
            ("1/m", 1),
            ("10/30s", 1),
            ("10/s", 10),
            ("600/m", 10),
            ("7/2s", 3),
            ("5/1ms", 5_000),
        ] {
            assert_eq!(pace(rate).burst(), burst, "{rate}");
        }
        assert_eq!(pace("4294967295/1ms").burst(), u32::MAX);
    }

    #[test]
    fn units_go_evenly_after_the_burst() {
        let mut pace = pace("10/s");
        let mut went = Vec::new();
        let mut now = START;
        for _ in 0..13 {
            now = now.max(pace.ready_at(1));
            pace.take(now, 1);
            went.push(now.saturating_since(START));
        }
        assert_eq!(went[..10], [Duration::ZERO; 10]);
        assert_eq!(went[10..], [millis(100), millis(200), millis(300)]);
        // A rest of half a second earns half a burst.
        now = now + millis(500);
        assert!(pace.ready_at(5) <= now && pace.ready_at(6) > now);
        assert_eq!(pace.ready_at(6), now + millis(100));
        assert!(pace.ready_at(10) <= START + Duration::from_secs(3600));
    }

    #[test]
    fn what_exceeds_a_burst_delays_what_follows() {
        let mut pace = pace("1/m");
        assert!(pace.ready_at(50) <= START, "a burst is all it waits for");
        pace.take(START, 50);
        assert_eq!(pace.ready_at(1), START + Duration::from_secs(50 * 60));
    }

    #[test]
    fn a_new_rate_takes_over_the_position_within_bounds() {
        let mut slow = pace("1/h");
        slow.take(START, 3);
        let fast = slow.with_rate("10/s".parse().unwrap(), START);
        assert_eq!(fast.ready_at(1), START + millis(100), "one interval of the new");
        assert_eq!(slow.with_rate(slow.rate(), START), slow, "the same rate forgives nothing");

        let mut fast = pace("10/s");
        fast.take(START, 10);
        let slow = fast.with_rate("1/h".parse().unwrap(), START);
        assert_eq!(slow.ready_at(1), START + Duration::from_secs(1), "what the old one owed stays owed");
        assert!(pace("1/h").with_rate("10/s".parse().unwrap(), START).ready_at(10) <= START);
    }

    #[test]
    fn a_stored_position_goes_on() {
        let mut pace = pace("7/h");
        pace.take(START, 1);
        let ready = pace.ready_at(1);
        let restored = Pace::at_position(pace.rate(), pace.position()).ready_at(1);
        assert!((0..=1).contains(&(restored.as_unix_micros() - ready.as_unix_micros())));
        assert_eq!(Pace::at_position(pace.rate(), 0), Pace::new(pace.rate()));
    }

    #[test]
    fn the_ends_of_time_overflow_nothing() {
        for rate in ["4294967295/1ms", "1/3650d"] {
            let mut pace = pace(rate);
            for now in [Timestamp::MAX, Timestamp::EPOCH] {
                pace.take(now, u32::MAX);
                assert_eq!(pace.ready_at(u32::MAX), Timestamp::MAX);
                assert_eq!(pace.position(), u64::MAX);
            }
            let _ = Pace::at_position(pace.rate(), u64::MAX).ready_at(1);
            let _ = pace.with_rate("1/s".parse().unwrap(), Timestamp::MAX);
        }
    }

    proptest! {
        /// However greedy, also over restarts: in every window no more than its length at the rate and a burst,
        /// or the last transaction if that is larger.
        #[test]
        fn no_window_holds_more_than_the_rate_and_a_burst(
            count in 1..5_000_u32,
            period in 1..100_000_u64,
            takes in proptest::collection::vec((1..60_u32, 0..4_000_u64, 0..8_u8), 1..60),
        ) {
            let rate = Rate::new(count, millis(period)).unwrap();
            let mut pace = Pace::new(rate);
            let mut now = START;
            let mut went: Vec<(Timestamp, u32)> = Vec::new();
            for (n, rest, kind) in takes {
                // Mostly at the earliest time, now and then after a rest.
                now = now.max(pace.ready_at(n));
                if kind == 0 {
                    now = now + millis(rest);
                    pace = Pace::at_position(rate, pace.position());
                }
                now = now.max(pace.ready_at(n));
                pace.take(now, n);
                went.push((now, n));
            }
            let burst = pace.burst();
            for from in 0..went.len() {
                let mut units = 0_u128;
                for (at, n) in &went[from..] {
                    units += u128::from(*n);
                    let length = at.saturating_since(went[from].0).as_nanos();
                    let excess = (units - u128::from((*n).max(burst)).min(units)) * rate.period().as_nanos();
                    prop_assert!(excess <= length * u128::from(count), "{} units in {}ns", units, length);
                }
            }
        }

        /// Nor is it slower than it must be: units taken one by one are late by rounding alone.
        #[test]
        fn the_rate_is_reached(count in 1..5_000_u32, period in 1..100_000_u64, n in 1..200_u32) {
            let mut pace = Pace::new(Rate::new(count, millis(period)).unwrap());
            pace.take(START, pace.burst());
            let mut now = START;
            for _ in 0..n {
                now = now.max(pace.ready_at(1));
                pace.take(now, 1);
            }
            let exact = u128::from(n) * u128::from(period) * 1_000 / u128::from(count);
            let took = now.saturating_since(START).as_micros();
            // At a burst of 1 nothing is saved up, so that each unit is rounded to the next microsecond.
            let rounding = if pace.burst() == 1 { n.into() } else { 0 };
            prop_assert!(took <= exact + rounding + 2, "{} for {}", took, exact);
        }
    }
}
