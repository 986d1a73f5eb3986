//! NewReno (RFC 5681) with the byte counting of RFC 3465.

use super::slow_start::SlowStart;
use super::{Acked, Control, Loss, Undo, Window};

#[derive(Clone, Debug)]
pub(crate) struct NewReno {
    slow_start: SlowStart,
    /// Bytes acknowledged in congestion avoidance since the window last grew.
    counted: u32,
    undo: Option<Undo>,
}

impl Control for NewReno {
    fn new() -> Self {
        Self { slow_start: SlowStart::new(), counted: 0, undo: None }
    }

    fn on_ack(&mut self, window: &mut Window, acked: &Acked) {
        let mut bytes = acked.bytes;
        if window.cwnd < window.ssthresh {
            bytes = self.slow_start.grow(window, acked);
        }
        if window.cwnd < window.ssthresh {
            return;
        }
        self.counted = self.counted.saturating_add(bytes);
        if self.counted >= window.cwnd {
            self.counted -= window.cwnd;
            window.grow(acked.mss);
        }
    }

    fn on_recovery(&mut self, window: &mut Window, loss: &Loss) {
        self.reduce(window, loss);
        window.cwnd = window.ssthresh;
    }

    fn on_timeout(&mut self, window: &mut Window, loss: &Loss, first: bool) {
        if first {
            self.reduce(window, loss);
        }
        self.slow_start.timed_out(loss.sent_to);
        window.cwnd = loss.mss;
    }

    fn on_undo(&mut self, window: &mut Window) {
        if let Some(undo) = self.undo.take() {
            undo.apply(window);
        }
    }
}

impl NewReno {
    /// RFC 5681, equation 4, and RFC 8511, section 3.1.
    fn reduce(&mut self, window: &mut Window, loss: &Loss) {
        self.undo = Some(Undo(*window));
        self.counted = 0;
        let left = if loss.is_mark { loss.flight / 5 * 4 } else { loss.flight / 2 };
        window.ssthresh = left.max(2 * loss.mss);
    }
}
