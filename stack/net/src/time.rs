//! The time of one run, as a clock or a test counts it.

use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::Duration;

/// A point in time: microseconds since a start that the clock has chosen. One from before the start is negative.
///
/// It is a number that can be made up, unlike [`std::time::Instant`]: nothing below an application reads a clock, so
/// that a test may run in a time of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant {
    micros: i64,
}

impl Instant {
    /// The start.
    pub const ZERO: Self = Self::from_micros(0);

    /// So many microseconds after the start.
    pub const fn from_micros(micros: i64) -> Self {
        Self { micros }
    }

    /// So many milliseconds after the start.
    pub const fn from_millis(millis: i64) -> Self {
        Self::from_micros(millis.saturating_mul(1_000))
    }

    /// So many seconds after the start.
    pub const fn from_secs(secs: i64) -> Self {
        Self::from_micros(secs.saturating_mul(1_000_000))
    }

    /// Microseconds since the start.
    pub const fn as_micros(self) -> i64 {
        self.micros
    }

    /// Whole milliseconds since the start.
    pub const fn as_millis(self) -> i64 {
        self.micros / 1_000
    }

    /// Microseconds since `earlier`; zero if that is later.
    pub const fn micros_since(self, earlier: Self) -> u64 {
        let micros = self.micros.saturating_sub(earlier.micros);
        if micros < 0 { 0 } else { micros as u64 }
    }
}

/// The time since a start, off the system's monotonic clock: never set back, as the time of day may be.
#[derive(Clone, Copy, Debug)]
pub struct Clock(std::time::Instant);

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }

    /// The time.
    pub fn now(&self) -> Instant {
        Instant::ZERO + self.0.elapsed()
    }
}

/// Whole microseconds; what an [`Instant`] cannot count is as much as it can.
const fn micros(duration: Duration) -> i64 {
    const LONGEST_S: u64 = i64::MAX as u64 / 1_000_000 - 1;
    let secs = if duration.as_secs() < LONGEST_S { duration.as_secs() } else { LONGEST_S };
    (secs * 1_000_000 + duration.subsec_micros() as u64) as i64
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self::from_micros(self.micros.saturating_add(micros(duration)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self::from_micros(self.micros.saturating_sub(micros(duration)))
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl Sub for Instant {
    type Output = Duration;

    /// The time since `earlier`; zero if that is later.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_micros(self.micros_since(earlier))
    }
}

/// In seconds, to the microsecond.
impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.micros < 0 { "-" } else { "" };
        let micros = self.micros.unsigned_abs();
        write!(f, "{sign}{}.{:06} s", micros / 1_000_000, micros % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_back_by_durations_and_the_time_between_is_never_negative() {
        let (early, late) = (Instant::from_millis(1), Instant::from_secs(2));
        assert_eq!(late - early, Duration::from_millis(1_999));
        assert_eq!(early - late, Duration::ZERO);
        assert_eq!(early + Duration::from_micros(1_999_000), late);
        assert_eq!(late - Duration::from_secs(3), Instant::from_secs(-1));
        assert_eq!((early - Duration::from_micros(1_001)).to_string(), "-0.000001 s");
        assert_eq!((late.as_micros(), late.as_millis()), (2_000_000, 2_000));
    }

    #[test]
    fn what_is_beyond_all_time_is_at_its_end() {
        let end = Instant::from_micros(i64::MAX);
        assert_eq!(end + Duration::MAX, end);
        assert!(Instant::ZERO + Duration::MAX > Instant::from_secs(i64::MAX / 2_000_000));
        assert!(Instant::from_micros(i64::MIN) - Duration::MAX < Instant::ZERO);
        assert!(end - Instant::from_micros(i64::MIN) > Duration::from_secs(1));
    }
}
