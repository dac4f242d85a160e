//! Counting events within a period.

use std::collections::VecDeque;
use std::time::Duration;

use super::value::Rate;
use crate::clock::Timestamp;

/// Tells when so many events fell within so much time, at any moment and not by the clock's hours.
///
/// Exact for counts up to [`EXACT`](Self::EXACT). Beyond, events are counted in 64ths of the period, and of the
/// oldest 64th those that may lie outside are left out: it never tells too early, and counts the last 63/64 of the
/// period at least. Memory is 16 octets per event up to the count in the first case, about 1 KiB in the second.
#[derive(Clone, Debug)]
pub(crate) struct SlidingCount {
    rate: Rate,
    /// Microseconds that count as one moment.
    grain: u64,
    /// When each moment began, in microseconds, and how many events it had; the oldest first.
    moments: VecDeque<(u64, u64)>,
    /// Events in all moments.
    total: u64,
}

impl SlidingCount {
    /// The largest count that is exact.
    pub(crate) const EXACT: u32 = 1_024;
    /// Parts of the period where it is not.
    const PARTS: u64 = 64;

    /// Nothing happened yet.
    pub(crate) fn new(rate: Rate) -> Self {
        let grain =
            if rate.count() <= Self::EXACT { 1 } else { (micros(rate.period()) / Self::PARTS).max(1) };
        Self { rate, grain, moments: VecDeque::new(), total: 0 }
    }

    /// Counts an event. Whether, this one included, as many as the rate says fell within its period: two events
    /// exactly one period apart do not.
    ///
    /// If the clock was set back, what lies ahead of `now` is forgotten.
    pub(crate) fn record(&mut self, now: Timestamp) -> bool {
        let now = now.as_unix_micros();
        let moment = now - now % self.grain;
        let period = micros(self.rate.period());
        while let Some((began, n)) = self.moments.front().copied()
            && now.saturating_sub(began) >= period
        {
            self.moments.pop_front();
            self.total -= n;
        }
        while let Some((began, n)) = self.moments.back().copied()
            && began > moment
        {
            self.moments.pop_back();
            self.total -= n;
        }
        self.total += 1;
        match self.moments.back_mut() {
            Some((began, n)) if *began == moment => *n += 1,
            _ => self.moments.push_back((moment, 1)),
        }
        // The latest ones decide; for each of them one moment is enough.
        if self.grain == 1
            && self.moments.len() > self.rate.count() as usize
            && let Some((_, n)) = self.moments.pop_front()
        {
            self.total -= n;
        }
        self.total >= u64::from(self.rate.count())
    }

    /// From when on all that was counted lies outside the period, so that this may be dropped.
    pub(crate) fn lapses_at(&self) -> Timestamp {
        let last = self.moments.back().map_or(0, |(began, _)| *began);
        Timestamp::from_unix_micros(last) + self.rate.period()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_unix_seconds(1_700_000_000) + Duration::from_millis(millis)
    }

    #[test]
    fn so_many_within_the_period() {
        let count = |rate: &str| SlidingCount::new(rate.parse().unwrap());
        for (rate, events, told) in [
            ("3/1s", &[0, 400, 999][..], &[false, false, true][..]),
            ("3/1s", &[0, 400, 1_000, 1_399], &[false, false, false, true]),
            ("3/1s", &[0, 0, 0, 0, 1_000], &[false, false, true, true, false]),
            ("1/1s", &[0, 5_000], &[true, true]),
            // Set back: the two that lie ahead are gone.
            ("3/1s", &[0, 500, 600, 100, 100], &[false, false, true, false, true]),
        ] {
            let mut count = count(rate);
            let got: Vec<_> = events.iter().map(|ms| count.record(at(*ms))).collect();
            assert_eq!(got, told, "{rate} {events:?}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut exact = SlidingCount::new("1024/h".parse().unwrap());
        let mut coarse = SlidingCount::new("1025/h".parse().unwrap());
        for ms in 0..20_000 {
            assert_eq!(exact.record(at(ms)), ms >= 1_023);
            // Some events of the first 64th are never near the window's start here.
            assert_eq!(coarse.record(at(ms * 50)), ms >= 1_024);
            assert!(exact.moments.len() <= 1_024 && coarse.moments.len() <= 65);
            assert_eq!(exact.total, exact.moments.iter().map(|(_, n)| n).sum::<u64>());
        }
        assert!(exact.moments.capacity() <= 2_048);
    }

    #[test]
    fn what_lapsed_may_be_dropped() {
        let mut count = SlidingCount::new("2/1s".parse().unwrap());
        assert!(!count.record(at(0)));
        assert_eq!(count.lapses_at(), at(1_000));
        let mut kept = count.clone();
        assert!(!kept.record(at(1_000)), "as a new one would");
        assert!(count.record(at(999)));
    }

    #[test]
    fn the_ends_of_time_overflow_nothing() {
        for rate in ["1/1ms", "2000/1ms", "4294967295/3650d"] {
            let mut count = SlidingCount::new(rate.parse().unwrap());
            for now in [Timestamp::MAX, Timestamp::EPOCH, Timestamp::MAX] {
                count.record(now);
            }
            assert_eq!(count.lapses_at(), Timestamp::MAX);
        }
    }

    proptest! {
        #[test]
        fn small_counts_are_exact(n in 1..20_u32, period in 1..200_u64, gaps in proptest::collection::vec(0..30_u64, 1..200)) {
            let mut count = SlidingCount::new(Rate::new(n, Duration::from_millis(period)).unwrap());
            let mut all = Vec::new();
            let mut now = 0;
            for gap in gaps {
                now += gap;
                all.push(now);
                let within = all.iter().filter(|ms| now - **ms < period).count();
                prop_assert_eq!(count.record(at(now)), within >= n as usize);
            }
        }

        #[test]
        fn large_counts_err_by_a_64th_and_never_too_early(over in 1..300_u32, gaps in proptest::collection::vec(0..6_u64, 2_500)) {
            let (n, period) = (SlidingCount::EXACT + over, 3_200);
            let mut count = SlidingCount::new(Rate::new(n, Duration::from_millis(period)).unwrap());
            let mut all = VecDeque::new();
            let mut now = 0;
            for gap in gaps {
                now += gap;
                all.push_back(now);
                let within = |period| all.len() - all.partition_point(|ms| now - ms >= period);
                let told = count.record(at(now));
                prop_assert!(!told || within(period) >= n as usize);
                prop_assert!(told || within(period - period / 64) < n as usize);
            }
        }
    }
}
