//! Marks of congestion (RFC 3168): a router marks what it would drop otherwise, the receiver echoes the mark until the
//! sender says that it sends less.

use super::connection::{Connection, Context, State, Traits};
use super::seq::Seq;
use super::tx::Plan;
use crate::frame::{Flags, Segment};

/// What IP says of a packet whose ends heed marks: ECT(0) (RFC 3168, section 5).
const CAPABLE: u8 = 2;

/// What a SYN asks with, all of it (RFC 3168, section 6.1.1). One that answers has ECE alone.
const ASKS: Flags = Flags::ECE.union(Flags::CWR);

impl Segment {
    /// Whether a SYN asks for marks to be heeded.
    pub(crate) fn asks_for_marks(&self) -> bool {
        self.flags.contains(ASKS)
    }
}

impl Connection {
    /// The flags of a SYN beside SYN itself. One that is sent again asks no more: what has lost the first may drop such.
    pub(super) fn asks_for_marks(&self) -> Flags {
        let asks =
            self.traits.contains(Traits::ECN_ASKED) && self.state == State::SynSent && self.retries == 0;
        if asks { ASKS } else { Flags::empty() }
    }

    /// The SYN was answered: marks are heeded if it has asked for that, and if the answer says so.
    pub(super) fn agree_on_marks(&mut self, answer: &Segment) {
        let agrees = answer.flags.contains(Flags::ECE | Flags::ACK) && !answer.flags.contains(Flags::CWR);
        self.traits.set(Traits::ECN, agrees && !self.asks_for_marks().is_empty());
    }

    /// The flags of a planned segment, and what IP says of it. New data alone is sent as what may be marked (RFC 3168,
    /// sections 6.1.4 to 6.1.6).
    pub(crate) fn with_marks(&self, plan: &Plan) -> (Flags, u8) {
        if !self.traits.contains(Traits::ECN) {
            return (plan.flags, 0);
        }
        let mut flags = plan.flags;
        flags.set(Flags::ECE, self.traits.contains(Traits::ECN_ECHOES));
        let may_be_marked = plan.is_new_data(self.snd_max);
        flags.set(Flags::CWR, may_be_marked && self.owes_cwr());
        (flags, if may_be_marked { CAPABLE } else { 0 })
    }

    /// Whether the peer is yet to be told that less is sent. A segment that says so is sent by itself: a device that cuts
    /// frames would have all of them say it.
    #[inline]
    pub(crate) fn owes_cwr(&self) -> bool {
        self.traits.contains(Traits::ECN_REDUCED)
    }

    /// A planned segment with data has gone out.
    #[cold]
    pub(super) fn note_cwr(&mut self, plan: &Plan, cx: &mut Context) {
        if plan.is_new_data(self.snd_max) {
            self.traits -= Traits::ECN_REDUCED;
            cx.counters.cwr_out += 1;
        }
    }

    /// Takes in what a segment that is the peer's beyond doubt says of marks.
    pub(super) fn take_marks(&mut self, segment: &Segment, cx: &mut Context) {
        if !self.traits.contains(Traits::ECN) {
            return;
        }
        // One that says that less is sent may itself be marked.
        if segment.flags.contains(Flags::CWR) && segment.payload_len > 0 {
            self.traits -= Traits::ECN_ECHOES;
        }
        if segment.is_marked {
            cx.counters.ce_in += 1;
            self.traits |= Traits::ECN_ECHOES;
            self.ack.now = true;
        }
        if segment.flags.contains(Flags::ECE) && segment.ack.at_or_after(self.snd_una) {
            cx.counters.ece_in += 1;
            self.take_echo(segment.ack, cx);
        }
    }

    /// A mark of what was sent is a loss of a round trip's window to congestion control, but nothing is sent again. There is
    /// one reduction in a round trip, be it for marks or for losses (RFC 3168, section 6.1.2).
    fn take_echo(&mut self, ack: Seq, cx: &mut Context) {
        let left = self.reduced_to.since(ack);
        let is_known = left > 0 && left <= self.snd_max.since(ack);
        if is_known || !self.recovery.is_open() {
            return;
        }
        self.congestion.on_recovery(&self.mark(), &mut cx.controls);
        self.note_reduction();
    }

    /// The window was lowered: the peer is to be told, and other signs from the same round trip are known.
    pub(super) fn note_reduction(&mut self) {
        if self.traits.contains(Traits::ECN) {
            self.traits |= Traits::ECN_REDUCED;
            self.reduced_to = self.snd_max;
        }
    }
}
