//! CUBIC (RFC 9438): the window grows with the cube of the time since the last loss, fast far from where that was, and
//! slowly near it. Windows are in bytes, and in the formulas in segments.

use std::time::Duration;

use stack_net::time::Instant;

use super::slow_start::SlowStart;
use super::{Acked, Control, Loss, Undo, Window};

/// How fast the window grows, in segments by the cube of a second (RFC 9438, section 5).
const C: f64 = 0.4;
/// What a loss leaves of the window (section 4.6).
const BETA: f64 = 0.7;
/// What a mark leaves of it: marks come before queues are full (RFC 8511, section 3.1).
const BETA_OF_A_MARK: f64 = 0.85;
/// Segments by which a window grows in a round trip that is to be fair to Reno (section 4.3).
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

/// Between acknowledgements of a window that is full on a short path: a receiver delays them so long.
const LONGEST_PAUSE_US: u64 = 50_000;

#[derive(Clone, Debug)]
pub(crate) struct Cubic {
    slow_start: SlowStart,
    /// The window before the last reduction, less where there is less room than there was (fast convergence, section
    /// 4.7); 0 if there was none, or a timeout.
    w_max: f64,
    /// The window at the last reduction, in segments.
    prior: f64,
    epoch: Option<Epoch>,
    /// Fractions of a byte by which the window is to grow.
    rest_bytes: f64,
    /// The window, `w_max` and `prior` before the last reduction.
    undo: Option<(Undo, f64, f64)>,
}

/// A stage of congestion avoidance.
#[derive(Clone, Debug)]
struct Epoch {
    /// When it began, but for times in which the window was not full.
    start: Instant,
    /// When the window last was full.
    last: Instant,
    /// The time until the window is back at `w_max`, in seconds.
    k_s: f64,
    /// What Reno's window would be.
    w_est: f64,
}

impl Control for Cubic {
    fn new() -> Self {
        Self {
            slow_start: SlowStart::new(),
            w_max: 0.0,
            prior: 0.0,
            epoch: None,
            rest_bytes: 0.0,
            undo: None,
        }
    }

    fn on_ack(&mut self, window: &mut Window, acked: &Acked) {
        let mut bytes = acked.bytes;
        if window.cwnd < window.ssthresh {
            bytes = self.slow_start.grow(window, acked);
            if window.cwnd < window.ssthresh || bytes == 0 {
                return;
            }
        }
        self.avoid(window, acked, bytes);
    }

    fn on_recovery(&mut self, window: &mut Window, loss: &Loss) {
        self.undo = Some((Undo(*window), self.w_max, self.prior));
        self.reduce(window, loss);
        window.cwnd = window.ssthresh;
    }

    fn on_timeout(&mut self, window: &mut Window, loss: &Loss, first: bool) {
        if first {
            self.undo = Some((Undo(*window), self.w_max, self.prior));
            self.reduce(window, loss);
            // Section 4.8: the next stage begins at the window that slow start comes to.
            self.w_max = 0.0;
        }
        self.slow_start.timed_out(loss.sent_to);
        self.epoch = None;
        window.cwnd = loss.mss;
    }

    fn on_undo(&mut self, window: &mut Window) {
        // Section 4.9. The stage goes on from the same window.
        if let Some((undo, w_max, prior)) = self.undo.take() {
            undo.apply(window);
            (self.w_max, self.prior, self.epoch) = (w_max, prior, None);
        }
    }
}

impl Cubic {
    /// Section 4.2 to 4.5.
    fn avoid(&mut self, window: &mut Window, acked: &Acked, bytes: u32) {
        let mss = f64::from(acked.mss);
        let cwnd = f64::from(window.cwnd) / mss;
        let segments = f64::from(bytes) / mss;
        let now = acked.now;
        let rtt_s = f64::from(acked.srtt_us) / 1e6;
        let epoch = self.epoch.get_or_insert_with(|| {
            let k_s = if cwnd < self.w_max { ((self.w_max - cwnd) / C).cbrt() } else { 0.0 };
            self.w_max = self.w_max.max(cwnd);
            Epoch { start: now, last: now, k_s, w_est: cwnd }
        });
        // Time in which the window was not full does not count (section 4.2, and section 5.8).
        let gap_us = now.micros_since(epoch.last);
        if gap_us > 2 * u64::from(acked.srtt_us).max(LONGEST_PAUSE_US) {
            epoch.start += Duration::from_micros(gap_us);
        }
        epoch.last = now;
        let t_s = now.micros_since(epoch.start) as f64 / 1e6;
        let w_cubic = |t_s: f64| C * (t_s - epoch.k_s).powi(3) + self.w_max;

        let alpha = if epoch.w_est < self.prior { ALPHA } else { 1.0 };
        epoch.w_est += alpha * segments / cwnd;
        let grown = if w_cubic(t_s) < epoch.w_est {
            epoch.w_est.max(cwnd)
        } else {
            let target = w_cubic(t_s + rtt_s).clamp(cwnd, 1.5 * cwnd);
            cwnd + (target - cwnd) / cwnd * segments
        };
        let grown_bytes = (grown - cwnd) * mss + self.rest_bytes;
        self.rest_bytes = grown_bytes.fract();
        window.grow(grown_bytes as u32);
    }

    /// Section 4.6 and 4.7.
    fn reduce(&mut self, window: &mut Window, loss: &Loss) {
        let mss = f64::from(loss.mss);
        let cwnd = f64::from(window.cwnd) / mss;
        self.prior = cwnd;
        self.w_max = if cwnd < self.w_max { cwnd * (1.0 + BETA) / 2.0 } else { cwnd };
        self.epoch = None;
        self.rest_bytes = 0.0;
        let used = f64::from(loss.used(window));
        let beta = if loss.is_mark { BETA_OF_A_MARK } else { BETA };
        window.ssthresh = ((used * beta).round() as u32).max(2 * loss.mss);
    }
}
