//! RFC 5681 with the initial window of RFC 6928 and the byte counting of RFC 3465 (L = 2).

use super::{Acked, Control, Loss, Window};

#[derive(Clone, Debug)]
pub(crate) struct NewReno {
    /// Bytes acknowledged in congestion avoidance since the window last grew.
    counted: u32,
}

impl Control for NewReno {
    fn new() -> Self {
        Self { counted: 0 }
    }

    fn on_ack(&mut self, window: &mut Window, acked: &Acked) {
        if window.cwnd < window.ssthresh {
            window.cwnd = window.cwnd.saturating_add(acked.bytes.min(2 * acked.mss));
            return;
        }
        self.counted = self.counted.saturating_add(acked.bytes);
        if self.counted >= window.cwnd {
            self.counted -= window.cwnd;
            window.cwnd = window.cwnd.saturating_add(acked.mss);
        }
    }

    fn on_recovery(&mut self, window: &mut Window, loss: &Loss) {
        window.ssthresh = (loss.flight / 2).max(2 * loss.mss);
        window.cwnd = window.ssthresh;
        self.counted = 0;
    }

    fn on_timeout(&mut self, window: &mut Window, loss: &Loss, first: bool) {
        if first {
            window.ssthresh = (loss.flight / 2).max(2 * loss.mss);
        }
        window.cwnd = loss.mss;
        self.counted = 0;
    }
}
