//! Loss detection by duplicate acknowledgements: fast retransmit and NewReno (RFC 5681, RFC 6582), with
//! limited transmit (RFC 3042).

use super::seq::Seq;

/// Duplicates that stand for a loss (RFC 5681, section 3.2).
const DUPLICATES: u8 = 3;

/// What is known of losses on one connection.
#[derive(Clone, Debug)]
pub(crate) struct Recovery {
    duplicates: u8,
    active: bool,
    /// The highest sequence number sent when the last loss was detected.
    point: Seq,
    /// Whether a partial acknowledgement has been seen in this recovery.
    pub(crate) partial_seen: bool,
}

/// What an acknowledgement means for loss recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    None,
    /// The segment at the front is lost: send it again, recovery begins.
    Lost,
    /// One more duplicate in recovery.
    Duplicate,
    /// In recovery, and the next hole is at the front: send it again.
    Partial,
    /// Recovery is over.
    Recovered,
}

impl Recovery {
    pub(crate) fn new(initial: Seq) -> Self {
        Self { duplicates: 0, active: false, point: initial, partial_seen: false }
    }

    /// Segments that may be sent beyond the congestion window: one for each of the first two duplicates.
    pub(crate) fn limited_transmit(&self) -> u32 {
        if self.active { 0 } else { u32::from(self.duplicates.min(DUPLICATES - 1)) }
    }

    /// The highest number sent when the last loss was detected.
    pub(crate) fn point(&self) -> Seq {
        self.point
    }

    /// An acknowledgement of nothing new while data is in flight; `acked` is the cumulative number.
    pub(crate) fn duplicate(&mut self, acked: Seq, sent_to: Seq) -> Verdict {
        if self.active {
            return Verdict::Duplicate;
        }
        self.duplicates = self.duplicates.saturating_add(1);
        // RFC 6582, section 3.2, step 1: duplicates of data sent before the last loss mean nothing.
        if self.duplicates == DUPLICATES && acked.after(self.point) {
            self.active = true;
            self.partial_seen = false;
            self.point = sent_to;
            return Verdict::Lost;
        }
        Verdict::None
    }

    /// New data was acknowledged, up to `acked`.
    pub(crate) fn progress(&mut self, acked: Seq) -> Verdict {
        self.duplicates = 0;
        if !self.active {
            // The point trails behind, so that the comparison above never meets a wrapped number.
            self.point = self.point.max(acked.back(1));
            return Verdict::None;
        }
        if acked.before(self.point) {
            return Verdict::Partial;
        }
        self.active = false;
        Verdict::Recovered
    }

    /// The retransmission timer fired (RFC 6582, section 3.2, step 4).
    pub(crate) fn timed_out(&mut self, sent_to: Seq) {
        self.duplicates = 0;
        self.active = false;
        self.point = sent_to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_duplicate_begins_recovery() {
        let mut recovery = Recovery::new(Seq(0));
        let (acked, sent_to) = (Seq(1000), Seq(9000));
        assert_eq!(recovery.duplicate(acked, sent_to), Verdict::None);
        assert_eq!(recovery.limited_transmit(), 1);
        assert_eq!(recovery.duplicate(acked, sent_to), Verdict::None);
        assert_eq!(recovery.limited_transmit(), 2);
        assert_eq!(recovery.duplicate(acked, sent_to), Verdict::Lost);
        assert_eq!(recovery.limited_transmit(), 0);
        assert_eq!(recovery.duplicate(acked, sent_to), Verdict::Duplicate);
        assert_eq!(recovery.progress(Seq(3000)), Verdict::Partial);
        assert_eq!(recovery.progress(Seq(9000)), Verdict::Recovered);
        assert_eq!(recovery.progress(Seq(9500)), Verdict::None);
    }

    #[test]
    fn progress_between_duplicates_starts_the_count_again() {
        let mut recovery = Recovery::new(Seq(0));
        for acked in [1, 2, 3, 4] {
            assert_eq!(recovery.duplicate(Seq(acked), Seq(99)), Verdict::None);
            assert_eq!(recovery.duplicate(Seq(acked), Seq(99)), Verdict::None);
            assert_eq!(recovery.progress(Seq(acked + 1)), Verdict::None);
        }
    }

    #[test]
    fn duplicates_from_before_a_timeout_mean_nothing() {
        let mut recovery = Recovery::new(Seq(0));
        recovery.timed_out(Seq(9000));
        for _ in 0..10 {
            assert_eq!(recovery.duplicate(Seq(1000), Seq(9000)), Verdict::None);
        }
        recovery.progress(Seq(9001));
        for _ in 0..2 {
            recovery.duplicate(Seq(9001), Seq(20_000));
        }
        assert_eq!(recovery.duplicate(Seq(9001), Seq(20_000)), Verdict::Lost);
    }
}
