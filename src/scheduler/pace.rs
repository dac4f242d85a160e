//! A rate, kept by spacing: so many evenly paced, with a burst of one second's worth.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::policy::Rate;

/// How much of a rate may be used, and when (the generic cell rate algorithm).
///
/// In any time `t` at most `t` times the rate and one burst is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    rate: Rate,
    /// When all that was taken is paid off, in nanoseconds since 1970. Until then the next one stands behind it.
    paid_off: u128,
}

impl Pace {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, paid_off: 0 }
    }

    pub(super) fn rate(self) -> Rate {
        self.rate
    }

    /// How many may be used at once after a rest: those of one second, at least one.
    pub(super) fn burst(self) -> u32 {
        let a_second = u128::from(self.rate.count()) * 1_000_000_000 / self.rate.period().as_nanos().max(1);
        u32::try_from(a_second).unwrap_or(u32::MAX).max(1)
    }

    /// Nanoseconds for one, rounded up, so that the rate is never exceeded.
    fn interval(self) -> u128 {
        self.rate.period().as_nanos().div_ceil(u128::from(self.rate.count().max(1)))
    }

    /// The earliest time at which `units` may be used; more than a burst never may, so that a burst is meant.
    pub(super) fn ready_at(self, units: u32) -> Timestamp {
        let ahead = u128::from(self.burst().saturating_sub(units)) * self.interval();
        timestamp(self.paid_off.saturating_sub(ahead))
    }

    pub(super) fn take(&mut self, now: Timestamp, units: u32) {
        self.paid_off = self.paid_off.max(nanos(now)) + u128::from(units) * self.interval();
    }

    /// What was taken was not used. `paid_off`: as it was right after. What time has paid off since is gone: others
    /// took their share of it.
    pub(super) fn refund(&mut self, now: Timestamp, units: u32, paid_off: u128) {
        let owed = paid_off.saturating_sub(nanos(now));
        self.paid_off = self.paid_off.saturating_sub(owed.min(u128::from(units) * self.interval()));
    }

    /// When all that was taken is paid off, in nanoseconds since 1970.
    pub(super) fn paid_off(self) -> u128 {
        self.paid_off
    }

    /// The rate changes. What is owed at the old one is owed at the new one, but no more than one interval of it.
    pub(super) fn with_rate(self, rate: Rate, now: Timestamp) -> Self {
        let new = Self { rate, paid_off: self.paid_off };
        let most = nanos(now) + new.interval();
        Self { paid_off: new.paid_off.min(most), ..new }
    }

    /// As if nothing had been used.
    pub(super) fn reset(&mut self) {
        self.paid_off = 0;
    }

    /// The clock was set back by so much.
    pub(super) fn set_back(&mut self, by: Duration) {
        self.paid_off = self.paid_off.saturating_sub(by.as_nanos());
    }

    /// When it is as if nothing had been used.
    pub(super) fn rests_at(self) -> Timestamp {
        timestamp(self.paid_off)
    }

    /// Whether its period is so long that a restart must not forget it.
    pub(super) fn is_long(self) -> bool {
        self.rate.period() >= Duration::from_secs(3600)
    }

    /// As it was when it rested at `rests_at`.
    pub(super) fn set_rest(&mut self, rests_at: Timestamp) {
        self.paid_off = self.paid_off.max(nanos(rests_at));
    }
}

fn nanos(at: Timestamp) -> u128 {
    u128::from(at.as_unix_micros()) * 1_000
}

/// Rounded up to the microsecond.
fn timestamp(nanos: u128) -> Timestamp {
    Timestamp::from_unix_micros(u64::try_from(nanos.div_ceil(1_000)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_seconds(1_800_000_000 + seconds)
    }

    fn pace(rate: &str) -> Pace {
        Pace::new(rate.parse().unwrap())
    }

    #[test]
    fn slow_rates_go_one_by_one() {
        let mut pace = pace("100/h");
        assert_eq!(pace.burst(), 1);
        let mut now = at(0);
        for n in 0..5 {
            assert_eq!(now, at(36 * n));
            pace.take(now, 1);
            now = pace.ready_at(1);
        }
    }

    #[test]
    fn fast_ones_have_a_burst_of_a_second() {
        let mut pace = pace("10/s");
        assert_eq!(pace.burst(), 10);
        assert!(pace.ready_at(10) <= at(0));
        pace.take(at(0), 10);
        assert_eq!(pace.ready_at(1), at(0) + Duration::from_millis(100));
        assert_eq!(pace.ready_at(10), at(1));
        pace.refund(at(0), 4, pace.paid_off());
        assert_eq!(pace.ready_at(4), at(0));
    }

    #[test]
    fn what_time_has_paid_off_is_not_given_back() {
        let mut pace = pace("10/s");
        pace.take(at(0), 1);
        let granted = pace.paid_off();
        pace.take(at(10), 10);
        let full = pace;
        pace.refund(at(10), 1, granted);
        assert_eq!(pace, full);
    }

    #[test]
    fn a_new_rate_binds_at_once_and_old_debts_do_not_block_it() {
        let mut slow = pace("1/d");
        slow.take(at(0), 1);
        let fast = slow.with_rate("1/m".parse().unwrap(), at(10));
        assert_eq!(fast.ready_at(1), at(70));
    }

    proptest! {
        #[test]
        fn no_window_holds_more_than_its_share_and_a_burst(
            count in 1..500_u32,
            period in 1..100_000_u64,
            wants in proptest::collection::vec((1..20_u32, 0..5_000_u64), 1..60),
        ) {
            let rate = Rate::new(count, Duration::from_millis(period)).unwrap();
            let mut pace = Pace::new(rate);
            let mut now = at(0);
            let mut taken: Vec<(Timestamp, u32)> = Vec::new();
            for (units, pause) in wants {
                let units = units.min(pace.burst());
                now = now.max(pace.ready_at(units)) + Duration::from_millis(pause);
                pace.take(now, units);
                taken.push((now, units));
            }
            for (i, &(from, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for &(to, units) in taken.iter().skip(i) {
                    sum += u64::from(units);
                    let span = to.saturating_since(from).as_micros();
                    let share = span * u128::from(count) / (u128::from(period) * 1_000);
                    prop_assert!(u128::from(sum) <= share + u128::from(pace.burst()) + 1);
                }
            }
        }
    }
}
