//! How much may be in flight: the one place where a congestion control is chosen.

/// The congestion control of a connection.
#[derive(Clone, Debug)]
pub(crate) enum Congestion {
    NewReno(NewReno),
}

impl Congestion {
    /// NewReno for segments of at most `mss` bytes.
    pub(crate) fn new(mss: u32) -> Self {
        Self::NewReno(NewReno::new(mss))
    }

    /// Bytes that may be in flight.
    pub(crate) fn window(&self) -> u32 {
        let Self::NewReno(control) = self;
        control.cwnd
    }

    /// New data was acknowledged outside of loss recovery. `flight` is what was in flight before, in bytes.
    pub(crate) fn acked(&mut self, bytes: u32, flight: u32) {
        let Self::NewReno(control) = self;
        control.acked(bytes, flight);
    }

    /// A loss was detected with `flight` bytes in flight: recovery begins.
    pub(crate) fn recovery_began(&mut self, flight: u32) {
        let Self::NewReno(control) = self;
        control.recovery_began(flight);
    }

    /// Another duplicate in recovery says that a segment has left the network.
    pub(crate) fn duplicate_in_recovery(&mut self) {
        let Self::NewReno(control) = self;
        control.cwnd = control.cwnd.saturating_add(control.mss);
    }

    /// A part of what was in flight at the loss was acknowledged: RFC 6582, section 3.2, step 3.
    pub(crate) fn partial_ack(&mut self, bytes: u32) {
        let Self::NewReno(control) = self;
        control.cwnd = control.cwnd.saturating_sub(bytes).max(control.mss);
        if bytes >= control.mss {
            control.cwnd = control.cwnd.saturating_add(control.mss);
        }
    }

    /// All that was in flight at the loss is acknowledged; `flight` bytes still are in flight.
    pub(crate) fn recovery_ended(&mut self, flight: u32) {
        let Self::NewReno(control) = self;
        control.cwnd = control.ssthresh.min(flight.max(control.mss).saturating_add(control.mss));
    }

    /// The retransmission timer fired with `flight` bytes in flight; `first` unless it had before, for the
    /// same data.
    pub(crate) fn timed_out(&mut self, flight: u32, first: bool) {
        let Self::NewReno(control) = self;
        if first {
            control.ssthresh = (flight / 2).max(2 * control.mss);
        }
        control.cwnd = control.mss;
    }

    /// Nothing was sent for longer than a timeout (RFC 5681, section 4.1).
    pub(crate) fn restarted_after_idle(&mut self) {
        let Self::NewReno(control) = self;
        control.cwnd = control.cwnd.min(initial_window(control.mss));
    }

    /// Segments have become smaller.
    pub(crate) fn set_mss(&mut self, mss: u32) {
        let Self::NewReno(control) = self;
        control.mss = mss;
    }
}

/// RFC 5681 with the initial window of RFC 6928 and the byte counting of RFC 3465 (L = 2).
#[derive(Clone, Debug)]
pub(crate) struct NewReno {
    cwnd: u32,
    ssthresh: u32,
    mss: u32,
    /// Bytes acknowledged in congestion avoidance since the window last grew.
    counted: u32,
}

impl NewReno {
    fn new(mss: u32) -> Self {
        Self { cwnd: initial_window(mss), ssthresh: u32::MAX, mss, counted: 0 }
    }

    fn acked(&mut self, bytes: u32, flight: u32) {
        // A window that the application does not fill says nothing about the network.
        if flight.saturating_add(2 * self.mss) < self.cwnd {
            return;
        }
        if self.cwnd < self.ssthresh {
            self.cwnd = self.cwnd.saturating_add(bytes.min(2 * self.mss));
            return;
        }
        self.counted = self.counted.saturating_add(bytes);
        if self.counted >= self.cwnd {
            self.counted -= self.cwnd;
            self.cwnd = self.cwnd.saturating_add(self.mss);
        }
    }

    fn recovery_began(&mut self, flight: u32) {
        self.ssthresh = (flight / 2).max(2 * self.mss);
        self.cwnd = self.ssthresh.saturating_add(3 * self.mss);
        self.counted = 0;
    }
}

/// RFC 6928, section 2.
fn initial_window(mss: u32) -> u32 {
    (10 * mss).min((2 * mss).max(14_600))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u32 = 1000;

    #[test]
    fn slow_start_doubles_and_avoidance_adds_one_segment_a_round() {
        let mut control = Congestion::new(MSS);
        assert_eq!(control.window(), 10 * MSS);
        for _ in 0..10 {
            control.acked(MSS, control.window());
        }
        assert_eq!(control.window(), 20 * MSS);
        control.timed_out(20 * MSS, true);
        assert_eq!(control.window(), MSS);
        while control.window() < 10 * MSS {
            control.acked(MSS, control.window());
        }
        for _ in 0..10 {
            control.acked(MSS, control.window());
        }
        assert_eq!(control.window(), 11 * MSS);
    }

    #[test]
    fn an_unused_window_does_not_grow() {
        let mut control = Congestion::new(MSS);
        for _ in 0..100 {
            control.acked(MSS, MSS);
        }
        assert_eq!(control.window(), 10 * MSS);
    }

    #[test]
    fn recovery_halves_the_flight() {
        let mut control = Congestion::new(MSS);
        control.recovery_began(10 * MSS);
        assert_eq!(control.window(), 8 * MSS);
        control.duplicate_in_recovery();
        assert_eq!(control.window(), 9 * MSS);
        control.partial_ack(2 * MSS);
        assert_eq!(control.window(), 8 * MSS);
        control.recovery_ended(6 * MSS);
        assert_eq!(control.window(), 5 * MSS);
    }

    #[test]
    fn repeated_timeouts_keep_the_threshold() {
        let mut control = Congestion::new(MSS);
        control.timed_out(10 * MSS, true);
        control.timed_out(MSS, false);
        while control.window() < 5 * MSS {
            control.acked(MSS, control.window());
        }
        control.acked(MSS, control.window());
        assert_eq!(control.window(), 5 * MSS);
    }

    #[test]
    fn idleness_returns_to_the_initial_window() {
        let mut control = Congestion::new(MSS);
        for _ in 0..90 {
            control.acked(MSS, control.window());
        }
        assert_eq!(control.window(), 100 * MSS);
        control.restarted_after_idle();
        assert_eq!(control.window(), 10 * MSS);
    }
}
