//! How long commits take: with it a slow medium is told from a slow network.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest time that is told from longer ones.
const MAX: Duration = Duration::from_secs(60);
/// Figures that a time is kept with: to 1 in 100.
const FIGURES: u8 = 2;

/// The times of all commits, in memory that is taken at the start.
#[derive(Clone, Debug)]
pub struct CommitTimes(Histogram<u64>);

/// Commit times in figures. A time in microseconds is rounded up, so that none is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CommitSummary {
    /// How many commits there were.
    pub count: u64,
    /// Half took no longer.
    pub p50_us: u64,
    /// 99 of 100 took no longer.
    pub p99_us: u64,
    /// 999 of 1000 took no longer.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl CommitTimes {
    /// Adds a commit.
    pub(super) fn record(&mut self, took: Duration) {
        self.0.saturating_record(took.as_nanos() as u64);
    }

    /// The times in figures.
    pub fn summary(&self) -> CommitSummary {
        let us = |ns: u64| ns.div_ceil(1000);
        CommitSummary {
            count: self.0.len(),
            p50_us: us(self.0.value_at_quantile(0.5)),
            p99_us: us(self.0.value_at_quantile(0.99)),
            p999_us: us(self.0.value_at_quantile(0.999)),
            max_us: us(self.0.max()),
        }
    }
}

impl Default for CommitTimes {
    fn default() -> Self {
        let times = Histogram::new_with_bounds(1, MAX.as_nanos() as u64, FIGURES);
        Self(times.expect("the bounds are in order, and two figures are possible"))
    }
}

impl std::ops::AddAssign<&Self> for CommitTimes {
    fn add_assign(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }
}

impl fmt::Display for CommitSummary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, p50_us, p99_us, p999_us, max_us } = self;
        write!(out, "{count}: half within {p50_us} us, 99% {p99_us}, 99.9% {p999_us}, all {max_us}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_commit_shows_among_many_quick_ones() {
        let mut times = CommitTimes::default();
        assert_eq!(times.summary(), CommitSummary::default());
        for _ in 0..9990 {
            times.record(Duration::from_micros(50));
        }
        (0..10).for_each(|_| times.record(Duration::from_millis(80)));
        let CommitSummary { count, p50_us, p99_us, p999_us, max_us } = times.summary();
        assert_eq!(count, 10_000);
        assert!((50..=51).contains(&p50_us) && (50..=51).contains(&p99_us), "{p50_us} {p99_us}");
        assert!((50..=51).contains(&p999_us) && (80_000..=80_800).contains(&max_us), "{p999_us} {max_us}");

        let mut other = CommitTimes::default();
        other.record(Duration::from_secs(3600));
        other += &times;
        assert_eq!(other.summary().count, 10_001);
        assert!(other.summary().max_us >= MAX.as_micros() as u64, "longer than all is the longest");
    }
}
