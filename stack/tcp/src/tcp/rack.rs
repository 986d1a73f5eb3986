//! Losses by the order in which segments were sent, and probes for those at the tail (RFC 8985).

use super::scoreboard::{Newest, is_sent_after};
use super::seq::Seq;

/// Recoveries after which a longer patience is given up that duplicates have asked for (RFC 8985, section 6.2, step 4).
const PERSISTS: u8 = 16;

/// What of the latest segment that was delivered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rack {
    /// When it was sent, its end, and how long it took.
    newest: Option<(u32, Seq, u32)>,
    /// Patience does not grow again before this is acknowledged.
    round: Option<Seq>,
}

/// How far the network is known to reorder segments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reordering {
    pub seen: bool,
    /// In quarters of the shortest round trip.
    multiplier: u8,
    persists: u8,
}

impl Reordering {
    pub(super) fn new() -> Self {
        Self { seen: false, multiplier: 1, persists: 0 }
    }

    /// A recovery is over.
    pub(super) fn recovered(&mut self) {
        self.persists = self.persists.saturating_sub(1);
        if self.persists == 0 {
            self.multiplier = 1;
        }
    }

    /// How much later than another a segment may arrive that was sent before, where three have arrived or nothing is doubtful
    /// any more (`is_certain`): RFC 8985, section 6.2, step 4.
    pub(super) fn window_us(&self, is_certain: bool, min_rtt_us: u32, srtt_us: u32) -> u32 {
        if !self.seen && is_certain {
            return 0;
        }
        (u64::from(min_rtt_us) * u64::from(self.multiplier) / 4).min(srtt_us.into()) as u32
    }
}

impl Rack {
    /// Step 2: the segment that was sent last, of those that are known to have arrived. Of one that was sent again it may be
    /// the first copy, if that took less time than anything can.
    pub(super) fn update(&mut self, newest: &Newest, min_rtt_us: u32, now_us: u32) {
        let rtt_us = now_us.wrapping_sub(newest.sent_us);
        if newest.is_again && rtt_us < min_rtt_us {
            return;
        }
        let sent = (newest.sent_us, newest.end);
        if self.newest.is_none_or(|(us, end, _)| is_sent_after(sent, (us, end))) {
            self.newest = Some((sent.0, sent.1, rtt_us));
        }
    }

    /// When that segment was sent and ends, and how long it took.
    pub(super) fn newest(&self) -> Option<((u32, Seq), u32)> {
        self.newest.map(|(us, end, rtt_us)| ((us, end), rtt_us))
    }

    /// Step 4: what was sent again came twice. Patience grows once in a round trip.
    pub(super) fn came_twice(&mut self, acked: Seq, sent_to: Seq, reordering: &mut Reordering) {
        if self.round.is_some_and(|round| acked.before(round)) {
            return;
        }
        self.round = Some(sent_to);
        reordering.multiplier = reordering.multiplier.saturating_add(1);
        reordering.persists = PERSISTS;
    }
}

/// A probe for losses at the tail (RFC 8985, section 7.3), which is not answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub end: Seq,
    /// Whether it was sent before.
    pub is_again: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_with_duplicates_once_a_round_and_is_lost_after_sixteen_recoveries() {
        let mut reordering = Reordering::new();
        let mut rack = Rack::default();
        assert_eq!(reordering.window_us(true, 8_000, 10_000), 0);
        assert_eq!(reordering.window_us(false, 8_000, 10_000), 2_000);
        reordering.seen = true;
        assert_eq!(reordering.window_us(true, 8_000, 10_000), 2_000);
        for _ in 0..3 {
            rack.came_twice(Seq(500), Seq(1_000), &mut reordering);
            assert_eq!(reordering.window_us(true, 8_000, 10_000), 4_000);
        }
        for round in 1..200 {
            rack.came_twice(Seq(round * 1_000), Seq((round + 1) * 1_000), &mut reordering);
        }
        for _ in 0..16 {
            assert_eq!(reordering.window_us(true, 8_000, 10_000), 10_000, "no more than a round trip");
            reordering.recovered();
        }
        assert_eq!(reordering.window_us(true, 8_000, 10_000), 2_000);
    }
}
