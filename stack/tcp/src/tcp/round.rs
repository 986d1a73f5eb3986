//! How fast payload comes in, in rounds of about a round trip: what acknowledgements follow, and the window.

use std::time::Duration;

use stack_net::time::Instant;

use super::seq::Seq;

/// A round is no shorter. Clocks that count milliseconds find nothing where a round trip takes nearly one, and twice what
/// comes in half of it is still all that is under way.
const LEAST_US: u32 = 500;

/// Less than that in a round says nothing of how fast payload comes in; it counts in a longer one.
const LEAST_BYTES: u32 = 16 << 10;

/// What is taken for a round trip where none could be measured.
const UNKNOWN_US: u32 = 100_000;

/// Whoever has sent nothing for so long begins slowly again (RFC 5681, section 4.1).
const IDLE: Duration = Duration::from_secs(1);

/// The present round of a connection. Times are the low bits of microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Round {
    /// The next number that the application had yet to take when the round began.
    from: Seq,
    began_us: u32,
    /// Most bytes that came in a round, since the peer was last idle.
    most: u32,
}

/// What a round that is over says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Bytes that came, and that the application took, in a round trip.
    pub bytes: u32,
    /// Whether these are far more than ever before: the peer is in its slow start, or begins.
    pub grows: bool,
}

impl Round {
    /// The first round of a connection, whose payload begins at `first`.
    pub(crate) fn new(first: Seq, now: Instant) -> Self {
        Self { from: first, began_us: now.as_micros() as u32, most: 0 }
    }

    fn elapsed_us(&self, now: Instant) -> u32 {
        (now.as_micros() as u32).wrapping_sub(self.began_us)
    }

    /// Whether so much has come, all before `next`, that the round counts.
    #[inline]
    pub(crate) fn counts(&self, next: Seq) -> bool {
        next.since(self.from) >= LEAST_BYTES
    }

    /// Bytes that came, and that the application took, in the round so far.
    pub(crate) fn brought(&self, taken: Seq) -> u32 {
        taken.since(self.from)
    }

    /// Whether that was in this round, and not at its very begin.
    pub(crate) fn has_begun_by(&self, at: Instant) -> bool {
        self.elapsed_us(at) as i32 > 0
    }

    /// Whether nothing has come for so long that the peer begins slowly again.
    pub(crate) fn is_idle(&self, now: Instant) -> bool {
        self.elapsed_us(now) >= IDLE.as_micros() as u32
    }

    /// Ends the round, and begins the next, if a round trip of `rtt_us` has passed. The application has taken all before
    /// `taken`.
    pub(crate) fn end(&mut self, taken: Seq, rtt_us: Option<u32>, now: Instant) -> Option<Rate> {
        let (elapsed_us, rtt_us) = (self.elapsed_us(now), rtt_us.unwrap_or(UNKNOWN_US).max(LEAST_US));
        if elapsed_us < rtt_us {
            return None;
        }
        let bytes = u64::from(self.brought(taken)) * u64::from(rtt_us) / u64::from(elapsed_us);
        let bytes = bytes as u32;
        let grows = bytes > self.most.saturating_add(self.most / 2);
        let most = if grows { bytes } else { self.most };
        *self = Self { from: taken, began_us: now.as_micros() as u32, most };
        Some(Rate { bytes, grows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(i64) -> Instant = Instant::from_millis;

    #[test]
    fn a_round_tells_what_came_in_a_round_trip_and_whether_that_grows() {
        let first = Seq(u32::MAX - 5_000);
        let mut round = Round::new(first, MS(0));
        assert_eq!(round.end(first + 1_000, Some(10_000), MS(9)), None);
        assert_eq!(round.end(first + 1_000, Some(10_000), MS(10)), Some(Rate { bytes: 1_000, grows: true }));
        assert_eq!(round.end(first + 2_400, Some(10_000), MS(20)), Some(Rate { bytes: 1_400, grows: false }));
        assert_eq!(round.end(first + 4_400, Some(10_000), MS(30)), Some(Rate { bytes: 2_000, grows: true }));
        // Seen late: of four round trips.
        assert_eq!(round.end(first + 8_400, Some(10_000), MS(70)), Some(Rate { bytes: 1_000, grows: false }));
        assert!(!round.is_idle(MS(1_069)) && round.is_idle(MS(1_070)));
    }

    #[test]
    fn a_round_counts_once_it_has_brought_some_segments() {
        let first = Seq(u32::MAX - 5_000);
        let round = Round::new(first, MS(7));
        assert!(!round.counts(first) && !round.counts(first + 16_383));
        assert!(round.counts(first + 16_384));
    }

    #[test]
    fn no_round_is_shorter_than_half_a_millisecond_whatever_was_measured() {
        for (rtt_us, least) in [(Some(0), 500), (Some(20), 500), (Some(501), 501), (None, 100_000)] {
            let began = Instant::from_secs(5);
            let mut round = Round::new(Seq(0), began);
            assert_eq!(round.end(Seq(500), rtt_us, began + Duration::from_micros(least - 1)), None);
            let rate = Some(Rate { bytes: 500, grows: true });
            assert_eq!(round.end(Seq(500), rtt_us, began + Duration::from_micros(least)), rate);
        }
    }
}
