//! Sending at a rate instead of in bursts.

use std::time::Duration;

use stack_net::time::Instant;

/// What a connection may be behind its rate and catch up with at once: timers fire so much late.
const CATCH_UP: Duration = Duration::from_millis(1);

/// When a connection may send next.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// What was sent has left at the rate by then, in nanoseconds of the clock.
    free_at_ns: i64,
    /// Whether something waits for that.
    holds: bool,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { free_at_ns: i64::MIN, holds: false }
    }

    /// Notes that bytes were sent, of a connection that may send `rate` bytes a second; as many as it likes if that is 0.
    pub(super) fn sent(&mut self, now: Instant, bytes: u32, rate: u64) {
        if rate == 0 {
            return;
        }
        let earliest_ns = nanos(now).saturating_sub(CATCH_UP.as_nanos() as i64);
        let takes_ns = u64::from(bytes).saturating_mul(1_000_000_000) / rate;
        let takes_ns = i64::try_from(takes_ns).unwrap_or(i64::MAX);
        self.free_at_ns = self.free_at_ns.max(earliest_ns).saturating_add(takes_ns);
    }

    /// Whether what waits has to wait on.
    pub(super) fn holds(&mut self, now: Instant) -> bool {
        self.holds = self.free_at_ns > nanos(now);
        self.holds
    }

    /// Until when what waits has to.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.holds.then(|| Instant::from_micros(self.free_at_ns.saturating_add(999) / 1000))
    }
}

/// What goes out at once at `rate`, so that frames of several segments are still made: as much as a timer is late, and at
/// least two segments.
pub(super) fn burst_bytes(rate: u64, mss: u32) -> u32 {
    let bytes = u128::from(rate) * CATCH_UP.as_micros() / 1_000_000;
    (bytes.min(1 << 16) as u32).max(2 * mss)
}

fn nanos(at: Instant) -> i64 {
    at.as_micros().saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(us: i64) -> Instant {
        Instant::from_micros(us)
    }

    /// Bytes that go out in `us` microseconds at `rate`, with a look every `step_us`.
    fn sent(rate: u64, us: i64, step_us: usize) -> u64 {
        let mut pace = Pace::new();
        let mut bytes = 0;
        for now in (0..us).step_by(step_us) {
            while !pace.holds(at(now)) {
                pace.sent(at(now), 1448, rate);
                bytes += 1448;
            }
        }
        bytes
    }

    #[test]
    fn what_goes_out_keeps_to_the_rate() {
        for rate in [10_000, 125_000, 25_000_000, 1_250_000_000, 12_500_000_000] {
            for step_us in [1, 100, 1000] {
                let (bytes, expected) = (sent(rate, 1_000_000, step_us), rate);
                let burst = rate / 1000 + 2 * 1448;
                assert!(
                    bytes.abs_diff(expected) <= burst + rate / 100,
                    "{rate}, every {step_us} us: {bytes}"
                );
            }
        }
    }

    #[test]
    fn a_pause_saves_no_more_than_a_timer_may_be_late() {
        let mut pace = Pace::new();
        pace.sent(at(0), 1000, 1_000_000);
        let mut bytes = 0;
        while !pace.holds(at(10_000_000)) {
            pace.sent(at(10_000_000), 100, 1_000_000);
            bytes += 100;
        }
        assert_eq!(bytes, 1100, "a millisecond's worth, and the one that holds the next");
        assert_eq!(pace.held_until(), Some(at(10_000_100)));
    }

    #[test]
    fn what_does_not_wait_needs_no_timer() {
        let mut pace = Pace::new();
        pace.sent(at(0), 1_000_000, 1000);
        assert_eq!(pace.held_until(), None);
        assert!(pace.holds(at(0)));
        let until = pace.held_until().unwrap();
        assert!(!pace.holds(until));
        assert_eq!(pace.held_until(), None);
    }

    #[test]
    fn no_rate_and_no_size_overflows() {
        for (bytes, rate) in [(u32::MAX, 0), (u32::MAX, 1), (0, u64::MAX), (u32::MAX, u64::MAX)] {
            let mut pace = Pace::new();
            for now in [0, i64::MAX / 2] {
                pace.sent(at(now), bytes, rate);
                pace.holds(at(now));
            }
        }
        assert_eq!(burst_bytes(u64::MAX, 1000), 1 << 16);
        assert_eq!(burst_bytes(0, 1000), 2000);
    }
}
