//! A limit on how often something is done.

use std::time::Duration;

use stack_net::time::Instant;

/// Allows one action per interval on average, and a burst at first (the virtual scheduling of GCRA).
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateLimit {
    /// When the bucket would be full again.
    full_at: Instant,
}

/// How much a [`RateLimit`] allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub interval: Duration,
    pub burst: u32,
}

impl Rate {
    pub(crate) const fn per_second(count: u64, burst: u32) -> Self {
        Self { interval: Duration::from_micros(1_000_000 / count), burst }
    }
}

impl RateLimit {
    pub(crate) fn new() -> Self {
        Self { full_at: Instant::from_micros(i64::MIN / 2) }
    }

    /// Whether the action may be done now; if so it counts.
    pub(crate) fn allow(&mut self, rate: Rate, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + rate.interval;
        if full_at > now + rate.interval * rate.burst {
            return false;
        }
        self.full_at = full_at;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let rate = Rate::per_second(10, 3);
        let mut limit = RateLimit::new();
        let allowed = |limit: &mut RateLimit, ms| {
            (0..10).filter(|_| limit.allow(rate, Instant::from_millis(ms))).count()
        };
        assert_eq!(allowed(&mut limit, 1000), 3);
        assert_eq!(allowed(&mut limit, 1050), 0);
        assert_eq!(allowed(&mut limit, 1100), 1);
        assert_eq!(allowed(&mut limit, 5000), 3);
    }
}
