//! Header prediction: the segment that nearly always comes next, with the next payload in order or an acknowledgement of
//! more, while nothing out of the ordinary is going on. [`Connection::segment`] would do the same with it, by more steps.

use stack_net::time::Instant;

use super::connection::{Connection, Context, Outcome, State};
use super::rx::{Heard, Piece};
use crate::fast::Usual;
use crate::frame::RxFrame;

impl Connection {
    /// Whether a segment from where this comes from may be one that is [expected](Self::expects). It is so as long as all
    /// others are such.
    #[inline(always)]
    pub(crate) fn is_ready_for(&self, segment: &Usual) -> bool {
        self.state == State::Established
            && self.mac == Some(segment.source_mac)
            && self.rcv_fin.is_none()
            && self.recv.early.is_empty()
    }

    /// Whether a segment that the connection [is ready for](Self::is_ready_for) is one that
    /// [`take_expected`](Self::take_expected) can take.
    #[inline(always)]
    pub(crate) fn expects(&self, now: Instant, segment: &Usual) -> bool {
        let is_next = segment.seq == self.rcv_nxt;
        let has_agreed_options = match (&self.clock, segment.timestamp) {
            (Some(clock), Some(timestamp)) => !clock.is_old(timestamp.value, now),
            (None, None) => true,
            _ => false,
        };
        // An acknowledgement of nothing new without payload may be a duplicate, a probe, or of a window that has changed.
        let acked = segment.ack.since(self.snd_una);
        // One of more may tell of losses while something is in doubt.
        let is_news = if acked > 0 { self.recovery.is_calm() } else { segment.payload_len > 0 };
        let is_in_windows = acked <= self.snd_max.since(self.snd_una)
            && segment.payload_len <= self.rcv_adv.since(self.rcv_nxt);
        is_next && has_agreed_options && is_news && is_in_windows
    }

    /// Takes in a segment that the connection [expects](Self::expects), but for what
    /// [`note_offer`](Self::note_offer) does, which is once enough for several of them.
    #[inline(always)]
    pub(crate) fn take_expected<F: RxFrame>(
        &mut self,
        now: Instant,
        segment: &Usual,
        frame: &mut F,
        cx: &mut Context,
    ) {
        self.last_heard = now;
        self.keepalive_probes = 0;
        if let (Some(clock), Some(timestamp)) = (&mut self.clock, segment.timestamp)
            && segment.seq.at_or_before(self.last_ack_sent)
        {
            (clock.recent, clock.recent_at) = (timestamp.value, now);
        }
        let heard = Heard {
            seq: segment.seq,
            ack: segment.ack,
            window: u32::from(segment.window) << self.snd_scale,
            timestamp: segment.timestamp,
        };
        if segment.ack == self.snd_una {
            self.take_window(&heard);
        } else {
            let outcome = self.new_data_acknowledged(now, &heard, cx);
            debug_assert_eq!(outcome, Outcome::Goes, "this side has not finished");
        }
        if segment.payload_len > 0 {
            self.rcv_mss = self.rcv_mss.max(segment.payload_len);
            let (from, to) = (segment.seq, segment.seq + segment.payload_len);
            let piece = Piece { from, to, at: segment.payload_at };
            self.in_order(now, &piece, frame, cx);
        }
    }
}
