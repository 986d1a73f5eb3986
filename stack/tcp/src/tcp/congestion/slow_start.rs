//! Slow start, and how it ends before there is a loss: HyStart++ (RFC 9406).

use super::{Acked, Window};
use crate::tcp::seq::Seq;

/// A round trip that has grown by this fraction, within these bounds, says that a queue has formed (RFC 9406, section
/// 4.3).
const MIN_RTT_DIVISOR: u32 = 8;
const MIN_RTT_THRESH_US: u32 = 4_000;
const MAX_RTT_THRESH_US: u32 = 16_000;
/// Measurements of a round before it is judged.
const RTT_SAMPLES: u8 = 8;
/// How much slower than slow start conservative slow start is, and how many rounds it lasts.
const CSS_GROWTH_DIVISOR: u32 = 4;
const CSS_ROUNDS: u8 = 5;

/// Segments by which an acknowledgement lets the window grow while it may be of data that had arrived before the timeout
/// (RFC 3465, section 2.3). At other times it counts whole, however many segments it covers: receivers that put segments
/// together acknowledge dozens at once.
const AFTER_TIMEOUT: u32 = 2;

/// The slow start of one connection.
#[derive(Clone, Debug)]
pub(super) struct SlowStart {
    /// The round ends when this is acknowledged.
    round_end: Option<Seq>,
    /// Before this was acknowledged a timeout has sent everything again.
    timeout_to: Option<Seq>,
    /// The shortest round trips of the round before and of this one; `u32::MAX` for none.
    last_min_us: u32,
    min_us: u32,
    /// Measurements in this round.
    samples: u8,
    /// The round of conservative slow start; 0 outside of it.
    css_round: u8,
    /// The shortest round trip of the round in which it began.
    css_baseline_us: u32,
}

impl SlowStart {
    pub(super) fn new() -> Self {
        Self {
            round_end: None,
            timeout_to: None,
            last_min_us: u32::MAX,
            min_us: u32::MAX,
            samples: 0,
            css_round: 0,
            css_baseline_us: u32::MAX,
        }
    }

    /// Lets the window grow up to the threshold; returns the bytes that are left for congestion avoidance.
    pub(super) fn grow(&mut self, window: &mut Window, acked: &Acked) -> u32 {
        let mut bytes = acked.bytes;
        if let Some(to) = self.timeout_to {
            bytes = bytes.min(AFTER_TIMEOUT * acked.mss);
            self.timeout_to = Some(to).filter(|to| acked.ack.before(*to));
        }
        // RFC 9406, section 4.3: only the first slow start, which knows of no threshold.
        if window.ssthresh == u32::MAX {
            self.look_for_a_queue(window, acked);
            if self.css_round > 0 {
                bytes /= CSS_GROWTH_DIVISOR;
            }
        }
        let used = bytes.min(window.ssthresh.saturating_sub(window.cwnd));
        window.grow(used);
        bytes - used
    }

    /// Everything up to `sent_to` is sent again.
    pub(super) fn timed_out(&mut self, sent_to: Seq) {
        self.timeout_to = Some(sent_to);
    }

    fn look_for_a_queue(&mut self, window: &mut Window, acked: &Acked) {
        let end = *self.round_end.get_or_insert(acked.sent_to);
        if let Some(rtt_us) = acked.rtt_us {
            self.min_us = self.min_us.min(rtt_us);
            self.samples = self.samples.saturating_add(1);
        }
        if self.samples >= RTT_SAMPLES && self.last_min_us != u32::MAX {
            self.judge();
        }
        if acked.ack.before(end) {
            return;
        }
        self.round_end = Some(acked.sent_to);
        (self.last_min_us, self.min_us, self.samples) = (self.min_us, u32::MAX, 0);
        if self.css_round == CSS_ROUNDS {
            window.ssthresh = window.cwnd;
        } else if self.css_round > 0 {
            self.css_round += 1;
        }
    }

    fn judge(&mut self) {
        if self.css_round > 0 {
            if self.min_us < self.css_baseline_us {
                // It was no queue.
                (self.css_round, self.css_baseline_us) = (0, u32::MAX);
            }
            return;
        }
        let thresh_us = (self.last_min_us / MIN_RTT_DIVISOR).clamp(MIN_RTT_THRESH_US, MAX_RTT_THRESH_US);
        if self.min_us >= self.last_min_us.saturating_add(thresh_us) {
            (self.css_round, self.css_baseline_us) = (1, self.min_us);
        }
    }
}
