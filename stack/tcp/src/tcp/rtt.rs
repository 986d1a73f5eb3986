//! The retransmission timeout (RFC 6298).

use std::time::Duration;

use stack_net::time::Instant;

use crate::timer::TICK_US;

/// Round-trip times of one connection, in microseconds, and the timeout that follows from them.
#[derive(Clone, Debug)]
pub(crate) struct Rtt {
    /// Smoothed round-trip time; `None` before the first measurement.
    srtt_us: Option<u32>,
    rttvar_us: u32,
    /// The timeout without backoff.
    rto_us: u32,
    /// The shortest round-trip time of the last minutes, and the low bits of when it was measured.
    shortest_us: u32,
    shortest_at_us: u32,
    min_us: u32,
    max_us: u32,
    /// How often the timeout has been doubled since the last acknowledgement of new data.
    pub(crate) backoff: u8,
}

/// The timeout before the first measurement (RFC 6298, rule 2.1).
const INITIAL_US: u32 = 1_000_000;

/// For so long the shortest round-trip time counts.
const SHORTEST_COUNTS_US: u32 = 300_000_000;

/// A probe for losses at the tail waits two round trips and as much longer as they vary, within these bounds: both sides'
/// timers are late, and a path of many milliseconds varies by more than that. If it is for a single segment, it waits also
/// for the longest that its acknowledgement may be held back (RFC 8985, section 7.2).
const TAIL_MARGIN_US: std::ops::RangeInclusive<u32> = 2 * TICK_US..=2_000;
const MAX_DELAYED_ACK_US: u32 = 200_000;

impl Rtt {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        let clamp = |duration: Duration| u32::try_from(duration.as_micros()).unwrap_or(u32::MAX).max(1);
        let (min_us, max_us) = (clamp(min), clamp(max).max(clamp(min)));
        Self {
            srtt_us: None,
            rttvar_us: 0,
            rto_us: INITIAL_US.clamp(min_us, max_us),
            shortest_us: u32::MAX,
            shortest_at_us: 0,
            min_us,
            max_us,
            backoff: 0,
        }
    }

    /// Takes a measurement in, of a segment that was not sent twice, or by a timestamp (Karn).
    ///
    /// `per_window` is how many measurements a round trip has, for the smoothing of RFC 7323, appendix G.
    #[inline]
    pub(crate) fn measured(&mut self, rtt_us: u32, per_window: u32, now_us: u32) {
        let rtt_us = rtt_us.min(self.max_us);
        if rtt_us <= self.shortest_us || now_us.wrapping_sub(self.shortest_at_us) > SHORTEST_COUNTS_US {
            (self.shortest_us, self.shortest_at_us) = (rtt_us, now_us);
        }
        match self.srtt_us {
            None => {
                self.srtt_us = Some(rtt_us);
                self.rttvar_us = rtt_us / 2;
            }
            // By shifts.
            Some(srtt_us) if per_window <= 1 => self.smooth(srtt_us, rtt_us, 1),
            Some(srtt_us) => self.smooth_several(srtt_us, rtt_us, per_window),
        }
        let srtt_us = self.srtt_us.unwrap_or(rtt_us);
        // The least timeout is what the answer may come late, however steady the round trips are: a peer may hold an
        // acknowledgement back.
        let margin_us = self.rttvar_us.saturating_mul(4).max(self.min_us);
        self.rto_us = srtt_us.saturating_add(margin_us).min(self.max_us);
        self.backoff = 0;
    }

    #[inline(always)]
    fn smooth(&mut self, srtt_us: u32, rtt_us: u32, samples: i64) {
        let delta = i64::from(rtt_us) - i64::from(srtt_us);
        let rttvar = i64::from(self.rttvar_us);
        self.rttvar_us = (rttvar + (delta.abs() - rttvar) / (4 * samples)) as u32;
        self.srtt_us = Some((i64::from(srtt_us) + delta / (8 * samples)) as u32);
    }

    fn smooth_several(&mut self, srtt_us: u32, rtt_us: u32, per_window: u32) {
        self.smooth(srtt_us, rtt_us, per_window.into());
    }

    /// RFC 6298, rule 5.7: a handshake whose SYN was sent again starts with 3 s.
    pub(crate) fn handshake_was_retransmitted(&mut self) {
        if self.srtt_us.is_none() {
            self.rto_us = (3 * INITIAL_US).clamp(self.min_us, self.max_us);
        }
    }

    /// The smoothed round trip; 0 before the first measurement.
    pub(crate) fn srtt_us(&self) -> u32 {
        self.srtt_us.unwrap_or(0)
    }

    /// The shortest round-trip time of the last minutes; before the first measurement as short as can be.
    pub(crate) fn shortest_us(&self) -> u32 {
        if self.srtt_us.is_some() { self.shortest_us } else { 0 }
    }

    /// What is sent within this time is as if sent at once.
    #[inline]
    pub(crate) fn moment_us(&self) -> u32 {
        self.srtt_us.unwrap_or(0) / 64
    }

    /// When to probe for losses at the tail of what is sent `now`, be it a single segment or several: with the timeout, if
    /// not before.
    #[inline]
    pub(crate) fn tail_deadline(&self, now: Instant, is_single: bool) -> Instant {
        let varies_us = self.rttvar_us.clamp(*TAIL_MARGIN_US.start(), *TAIL_MARGIN_US.end());
        let margin_us = varies_us + if is_single { MAX_DELAYED_ACK_US } else { 0 };
        let wait_us = match self.srtt_us {
            Some(srtt_us) => srtt_us.saturating_mul(2).saturating_add(margin_us).min(self.rto_us),
            None => self.rto_us,
        };
        Instant::from_micros(now.as_micros().saturating_add(wait_us.into()))
    }

    /// The smoothed round-trip time; none before the first measurement.
    #[inline]
    pub(crate) fn smoothed_us(&self) -> Option<u32> {
        self.srtt_us
    }

    /// Whether more than the timeout lies between two moments.
    #[inline]
    pub(crate) fn has_timed_out(&self, since: Instant, now: Instant) -> bool {
        // The timeout is no shorter than without backoff: nearly always one look is enough.
        let passed_us = now.as_micros().wrapping_sub(since.as_micros());
        passed_us > self.rto_us.into() && now.micros_since(since) > self.timeout_us()
    }

    /// The timeout, doubled for each backoff.
    #[inline]
    pub(crate) fn timeout_us(&self) -> u64 {
        let doubled = u64::from(self.rto_us) << self.backoff.min(16);
        doubled.min(u64::from(self.max_us))
    }

    /// When what is sent `now` has timed out.
    #[inline]
    pub(crate) fn deadline(&self, now: Instant) -> Instant {
        Instant::from_micros(now.as_micros().saturating_add(self.timeout_us() as i64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Rtt {
        fn timeout(&self) -> Duration {
            Duration::from_micros(self.timeout_us())
        }
    }

    fn rtt() -> Rtt {
        Rtt::new(Duration::from_millis(200), Duration::from_secs(60))
    }

    #[test]
    fn starts_at_one_second() {
        assert_eq!(rtt().timeout(), Duration::from_secs(1));
    }

    #[test]
    fn follows_the_formulas() {
        let mut rtt = rtt();
        rtt.measured(400_000, 1, 0);
        assert_eq!(rtt.timeout(), Duration::from_micros(400_000 + 4 * 200_000));
        rtt.measured(480_000, 1, 0);
        // RTTVAR = 200 + (80 - 200) / 4 = 170 ms; SRTT = 400 + 80 / 8 = 410 ms.
        assert_eq!(rtt.timeout(), Duration::from_micros(410_000 + 4 * 170_000));
        for _ in 0..200 {
            rtt.measured(100, 1, 0);
        }
        let timeout = rtt.timeout();
        assert!((200_100..200_110).contains(&timeout.as_micros()), "{timeout:?}");
    }

    #[test]
    fn backs_off_to_the_limit_and_recovers() {
        let mut rtt = rtt();
        rtt.measured(100_000, 1, 0);
        let base = rtt.timeout();
        rtt.backoff = 1;
        assert_eq!(rtt.timeout(), base * 2);
        rtt.backoff = 200;
        assert_eq!(rtt.timeout(), Duration::from_secs(60));
        rtt.measured(100_000, 1, 0);
        assert!(rtt.timeout() <= base);
    }

    #[test]
    fn a_hostile_measurement_stays_in_range() {
        let mut rtt = rtt();
        for sample in [u32::MAX, 0, u32::MAX, 1] {
            rtt.measured(sample, 1, 0);
            assert!(rtt.timeout() <= Duration::from_secs(60));
        }
    }
}
