//! How much may be sent in recovery: proportional rate reduction (RFC 6937), so that what is under way comes down to the
//! threshold step by step, with what is delivered as the clock.

/// One recovery, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prr {
    threshold: u32,
    /// What was under way when it began: `RecoverFS`.
    flight: u32,
    delivered: u32,
    out: u32,
    /// How much may be under way.
    window: u32,
}

impl Prr {
    /// A recovery that begins with `flight` bytes under way or lost.
    pub(super) fn new(threshold: u32, flight: u32) -> Self {
        Self { threshold, flight: flight.max(1), delivered: 0, out: 0, window: 0 }
    }

    pub(super) fn window(&self) -> u32 {
        self.window
    }

    /// An acknowledgement has told of `delivered` bytes, and `in_flight` are left. It is a good sign if it acknowledges more
    /// and nothing more is lost.
    pub(super) fn acked(&mut self, delivered: u32, in_flight: u32, is_good: bool, mss: u32) {
        self.delivered = self.delivered.saturating_add(delivered);
        let mut may_send = if in_flight > self.threshold {
            let share = u64::from(self.delivered) * u64::from(self.threshold) / u64::from(self.flight);
            u32::try_from(share).unwrap_or(u32::MAX).saturating_sub(self.out)
        } else {
            // Slow start where what is under way has fallen below the threshold, as long as nothing more is lost.
            let owed = self.delivered.saturating_sub(self.out);
            let limit = if is_good { owed.max(delivered).saturating_add(mss) } else { owed };
            limit.min(self.threshold - in_flight)
        };
        if self.out == 0 {
            // What was lost first goes out at once.
            may_send = may_send.max(mss);
        }
        self.window = in_flight.saturating_add(may_send);
    }

    /// So many bytes were sent.
    pub(super) fn sent(&mut self, bytes: u32) {
        self.out = self.out.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u32 = 1000;

    /// RFC 6937, appendix A: with one loss of twenty segments, and a threshold of ten, every second acknowledgement lets one
    /// out until the threshold is reached.
    #[test]
    fn one_segment_goes_out_for_every_second_that_arrives() {
        let mut prr = Prr::new(10 * MSS, 20 * MSS);
        let (mut in_flight, mut out) = (19 * MSS, vec![]);
        for _ in 0..19 {
            in_flight -= MSS;
            prr.acked(MSS, in_flight, false, MSS);
            let mut sent = 0;
            while in_flight + MSS <= prr.window() {
                in_flight += MSS;
                prr.sent(MSS);
                sent += 1;
            }
            out.push(sent);
        }
        assert_eq!(out, [1, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 1, 1, 1]);
        assert_eq!(in_flight, 10 * MSS);
    }

    /// RFC 6937, section 3.1: after a burst of losses no more goes out than arrives, and one more where that goes well.
    #[test]
    fn what_has_fallen_below_the_threshold_grows_slowly() {
        let mut prr = Prr::new(10 * MSS, 20 * MSS);
        prr.acked(MSS, 4 * MSS, false, MSS);
        assert_eq!(prr.window(), 5 * MSS);
        prr.sent(MSS);
        prr.acked(MSS, 4 * MSS, true, MSS);
        assert_eq!(prr.window(), 6 * MSS);
        prr.sent(2 * MSS);
        prr.acked(MSS, 9 * MSS, true, MSS);
        assert_eq!(prr.window(), 10 * MSS, "not beyond the threshold");
    }
}
