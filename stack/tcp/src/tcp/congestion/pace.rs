//! Sending at a rate instead of in bursts.

use stack_net::time::Instant;

use crate::timer::TICK_US;

/// The most that a connection may be behind its rate and catch up with at once.
const MOST_CATCH_UP_US: u32 = 1_000;

/// For so long a connection with this round trip may be behind its rate and catch up with it at once: timers are late, and
/// a quarter of a round trip's data is no burst.
pub(super) fn catch_up_us(srtt_us: u32) -> u32 {
    (srtt_us / 4).clamp(TICK_US, MOST_CATCH_UP_US)
}

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

    /// Notes that bytes were sent, of a connection that may send `rate` bytes a second, and be behind that for so long; as
    /// many as it likes if the rate is 0.
    pub(super) fn sent(&mut self, now: Instant, bytes: u32, rate: u64, catch_up_us: u32) {
        if rate == 0 {
            return;
        }
        let earliest_ns = nanos(now).saturating_sub(i64::from(catch_up_us) * 1000);
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

/// What goes out at once at `rate`, so that frames of several segments are still made: as much as can be [caught
/// up](catch_up_us) with, and at least two segments.
pub(super) fn burst_bytes(rate: u64, mss: u32, srtt_us: u32) -> u32 {
    let bytes = u128::from(rate) * u128::from(catch_up_us(srtt_us)) / 1_000_000;
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
                pace.sent(at(now), 1448, rate, MOST_CATCH_UP_US);
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
    fn a_pause_saves_no_more_than_can_be_caught_up_with() {
        for (srtt_us, saved) in [(0, 50), (100, 50), (1_000, 250), (4_000, 1_000), (100_000, 1_000)] {
            let (mut pace, catch_up_us) = (Pace::new(), catch_up_us(srtt_us));
            pace.sent(at(0), 1000, 1_000_000, catch_up_us);
            let mut bytes = 0;
            while !pace.holds(at(10_000_000)) {
                pace.sent(at(10_000_000), 50, 1_000_000, catch_up_us);
                bytes += 50;
            }
            assert_eq!(bytes, saved + 50, "that, and the one that holds the next");
            assert_eq!(pace.held_until(), Some(at(10_000_050)));
        }
    }

    #[test]
    fn what_does_not_wait_needs_no_timer() {
        let mut pace = Pace::new();
        pace.sent(at(0), 1_000_000, 1000, TICK_US);
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
                pace.sent(at(now), bytes, rate, MOST_CATCH_UP_US);
                pace.holds(at(now));
            }
        }
        assert_eq!(burst_bytes(u64::MAX, 1000, u32::MAX), 1 << 16);
        assert_eq!(burst_bytes(0, 1000, 0), 2000);
    }
}
