//! Segments that arrive on a connection (RFC 9293, section 3.10.7, with RFC 5961 and RFC 7323).

use stack_net::time::Instant;

use super::connection::{Clock, Connection, Context, Due, Happened, Outcome, State, Timer, Traits};
use super::early::COPIED_BYTES;
use super::options::{Block, Timestamp};
use super::recovery::Recovery;
use super::recv_queue::Packed;
use super::seq::Seq;
use crate::flow::FlowKey;
use crate::frame::{Flags, RxFrame, Segment};
use crate::limit::Rate;
use crate::net::CloseReason;
use crate::tcp::connection::{DEFAULT_MSS_V4, DEFAULT_MSS_V6};

/// Challenge ACKs of one connection (RFC 5961, section 7).
const CHALLENGES: Rate = Rate::per_second(10, 10);

/// Duplicate ACKs that one burst can bring about; three are what a peer waits for.
const MAX_DUPLICATES: u8 = 16;

impl Connection {
    /// Takes in a segment of this connection's flow.
    pub(crate) fn segment<F: RxFrame>(
        &mut self,
        now: Instant,
        segment: &Segment,
        frame: &mut F,
        cx: &mut Context,
    ) -> Outcome {
        if self.state == State::SynSent {
            return self.in_syn_sent(now, segment, cx);
        }
        let mut segment = *segment;
        // A simultaneous open: the SYN is known, the ACK is news, and the window is not scaled (RFC 7323, section 2.2).
        let mut scale = self.snd_scale;
        if self.state == State::SynReceived
            && segment.flags.contains(Flags::SYN | Flags::ACK)
            && segment.seq + 1 == self.rcv_nxt
            && segment.payload_len == 0
        {
            segment.flags -= Flags::SYN;
            segment.seq += 1;
            scale = 0;
        }
        if let Some(outcome) = self.refuse(now, &segment, cx) {
            return outcome;
        }
        // From here on the segment is the peer's beyond reasonable doubt.
        self.last_heard = now;
        self.keepalive_probes = 0;
        if self.state == State::SynReceived {
            if !(segment.ack.after(self.snd_una) && segment.ack.at_or_before(self.snd_max)) {
                return Outcome::Reset(segment.ack);
            }
            self.establish(now, &segment, scale, cx);
        }
        self.mac = Some(segment.source_mac);
        self.remember_clock(now, &segment);
        self.take_marks(&segment, cx);
        let outcome = self.acknowledged(now, &segment, scale, cx);
        if outcome != Outcome::Goes {
            return outcome;
        }
        if segment.payload_len > 0 {
            self.payload(now, &segment, frame, cx);
        }
        if segment.flags.contains(Flags::FIN) {
            let fin = segment.seq + segment.payload_len as u32;
            if fin.at_or_after(self.rcv_nxt) && fin.at_or_before(self.rcv_adv.max(self.rcv_nxt)) {
                self.rcv_fin.get_or_insert(fin);
            }
            self.ack.now |= self.held == 0;
        }
        let outcome = self.peer_finished(cx);
        self.note_offer(cx);
        outcome
    }

    /// Everything that keeps a segment from being processed; `Some` if it was dealt with here.
    fn refuse(&mut self, now: Instant, segment: &Segment, cx: &mut Context) -> Option<Outcome> {
        let reset = segment.flags.contains(Flags::RST);
        if segment.flags.contains(Flags::SYN) && !reset {
            // RFC 5961, section 4.2: whatever its number, and whatever its options. A peer that has lost its memory
            // sends other ones than it once agreed on, and answers with RST.
            self.challenge(now, cx);
            return Some(Outcome::Goes);
        }
        if let Some(clock) = &self.clock
            && !reset
        {
            // RFC 7323, sections 3.2 and 5.3.
            let Some(timestamp) = segment.options.timestamp else {
                cx.counters.drops.timestamp += 1;
                return Some(Outcome::Goes);
            };
            if clock.is_old(timestamp.value, now) {
                cx.counters.drops.timestamp += 1;
                // Nothing else of it is known to be right, so that anyone may have sent it (RFC 5961, section 7).
                if self.challenges.allow(CHALLENGES, now) {
                    self.note_again(segment.seq, segment.seq + segment.payload_len as u32);
                    self.ack.now = true;
                } else {
                    cx.counters.drops.limited += 1;
                }
                return Some(Outcome::Goes);
            }
        }
        let open = self.rcv_adv.since(self.rcv_nxt);
        if !is_acceptable(segment, self.rcv_nxt, open) {
            if segment.payload_len > 0 && (segment.seq + segment.len()).at_or_before(self.rcv_nxt) {
                cx.counters.drops.duplicate += 1;
                if !reset {
                    self.note_again(segment.seq, segment.seq + segment.payload_len as u32);
                }
            } else {
                cx.counters.drops.window += 1;
            }
            // Without payload it may itself be an answer to such an answer.
            if !reset && (segment.len() > 0 || self.challenges.allow(CHALLENGES, now)) {
                self.ack.now = true;
            }
            return Some(Outcome::Goes);
        }
        if reset {
            // RFC 5961, section 3.2: only the exact number counts.
            if segment.seq != self.rcv_nxt {
                self.challenge(now, cx);
                return Some(Outcome::Goes);
            }
            return Some(Outcome::Closed(match self.state {
                State::SynReceived => CloseReason::Refused,
                _ => CloseReason::Reset,
            }));
        }
        if !segment.flags.contains(Flags::ACK) {
            cx.counters.drops.unexpected += 1;
            return Some(Outcome::Goes);
        }
        if self.state != State::SynReceived {
            // RFC 5961, section 5.2.
            let too_old = segment.ack.before(self.snd_una.back(self.max_snd_wnd));
            if too_old || segment.ack.after(self.snd_max) {
                cx.counters.drops.unexpected += 1;
                self.challenge(now, cx);
                return Some(Outcome::Goes);
            }
        }
        None
    }

    fn challenge(&mut self, now: Instant, cx: &mut Context) {
        if self.challenges.allow(CHALLENGES, now) {
            cx.counters.challenge_acks += 1;
            self.ack.now = true;
        } else {
            cx.counters.drops.limited += 1;
        }
    }

    /// RFC 9293, section 3.10.7.3.
    fn in_syn_sent(&mut self, now: Instant, segment: &Segment, cx: &mut Context) -> Outcome {
        let acks = segment.flags.contains(Flags::ACK);
        let acks_syn = acks && segment.ack == self.snd_una + 1 && segment.ack.at_or_before(self.snd_max);
        if acks && !acks_syn {
            let reset = segment.flags.contains(Flags::RST);
            return if reset { Outcome::Goes } else { Outcome::Reset(segment.ack) };
        }
        if segment.flags.contains(Flags::RST) {
            return if acks_syn { Outcome::Closed(CloseReason::Refused) } else { Outcome::Goes };
        }
        if !segment.flags.contains(Flags::SYN) {
            cx.counters.drops.unexpected += 1;
            return Outcome::Goes;
        }
        self.last_heard = now;
        self.clock = match (self.clock, segment.options.timestamp) {
            (Some(clock), Some(timestamp)) => {
                Some(Clock { recent: timestamp.value, recent_at: now, ..clock })
            }
            _ => None,
        };
        self.sacks = segment.options.sack_permitted;
        self.agree_on_marks(segment);
        let mss = segment.options.mss.unwrap_or(default_mss(&self.key));
        self.agree(segment.seq, mss, segment.options.window_scale, &cx.config, now);
        self.mac = Some(segment.source_mac);
        // What the SYN has offered.
        self.rcv_adv = self.rcv_nxt + self.affordable(cx).min(0xffff);
        if acks_syn {
            self.establish(now, segment, 0, cx);
            self.ack.now = true;
        } else {
            self.state = State::SynReceived;
            self.due = Due::SYN;
        }
        self.note_offer(cx);
        Outcome::Goes
    }

    /// The peer has acknowledged the SYN.
    fn establish(&mut self, now: Instant, segment: &Segment, scale: u8, cx: &mut Context) {
        let sent_again = self.retries > 0;
        self.state = if self.finished { State::FinWait1 } else { State::Established };
        self.snd_una += 1;
        (self.snd_nxt, self.snd_max) = (self.snd_una, self.snd_max.max(self.snd_una));
        (self.timer, self.due, self.retries) = (Timer::Off, Due::empty(), 0);
        let heard = hear(segment, scale);
        self.take_window(&heard);
        self.measure_handshake(now, &heard);
        self.rtt.backoff = 0;
        if sent_again {
            self.rtt.handshake_was_retransmitted();
            self.congestion.handshake_was_retransmitted(self.mss);
        }
        self.board.clear(self.snd_una, &mut cx.sending.under_way);
        self.recovery = Recovery::new(self.snd_una.back(1));
        self.events |= Happened::OPENED;
        cx.counters.opened += 1;
    }

    /// TS.Recent is the timestamp of the segment that spans the last number acknowledged (RFC 7323, 4.3).
    fn remember_clock(&mut self, now: Instant, segment: &Segment) {
        if let (Some(clock), Some(timestamp)) = (&mut self.clock, segment.options.timestamp)
            && segment.seq.at_or_before(self.last_ack_sent)
            && !clock.is_old(timestamp.value, now)
        {
            (clock.recent, clock.recent_at) = (timestamp.value, now);
        }
    }

    /// The payload (RFC 9293, section 3.10.7.4, seventh).
    fn payload<F: RxFrame>(&mut self, now: Instant, segment: &Segment, frame: &mut F, cx: &mut Context) {
        if !matches!(self.state, State::Established | State::FinWait1 | State::FinWait2) {
            return;
        }
        let end = segment.seq + segment.payload_len as u32;
        let from = segment.seq.max(self.rcv_nxt);
        self.note_again(segment.seq, end);
        let to = end.min(self.rcv_adv).min(self.rcv_fin.unwrap_or(end));
        if from.at_or_after(to) {
            cx.counters.drops.window += 1;
            self.ack.now = true;
            return;
        }
        self.rcv_mss = self.rcv_mss.max(segment.payload_len as u32);
        let at = segment.payload_at + from.since(segment.seq) as usize;
        let piece = Piece { from, to, at };
        if from == self.rcv_nxt {
            self.in_order(now, &piece, frame, cx);
        } else {
            self.ahead(piece, frame, cx);
        }
    }

    #[inline(always)]
    pub(super) fn in_order<F: RxFrame>(
        &mut self,
        now: Instant,
        piece: &Piece,
        frame: &mut F,
        cx: &mut Context,
    ) {
        let fills_hole = !self.recv.early.is_empty();
        let is_packed = self.recv.packs(piece.len())
            && self.recv.grow_last(piece.bytes(frame), &mut cx.pieces) == Packed::Yes;
        let kept = if is_packed {
            cx.counters.copied_bytes += u64::from(piece.len());
            true
        } else {
            piece.claim(frame).is_some_and(|extent| self.recv.push(extent, &mut cx.pieces))
        };
        if !kept {
            cx.counters.drops.no_buffer += 1;
            self.ack.now = true;
            return;
        }
        let before = self.rcv_nxt;
        self.rcv_nxt = piece.to;
        if fills_hole {
            if let Some(known) = self.recv.early.known(piece.from, piece.to)
                && !self.traits.contains(Traits::DURABLE_ACK)
            {
                self.came_again(known);
            }
            let (next, copied_bytes) = self.recv.fill_from_early(piece.to, &mut cx.pieces, cx.pool.arena());
            self.rcv_nxt = next;
            self.ack.recovers();
            if next != piece.to {
                self.ack.jumps();
            }
            cx.counters.copied_bytes += copied_bytes;
            self.note_early(cx);
        }
        self.rcv_adv = self.rcv_adv.max(self.rcv_nxt);
        cx.counters.payload_in_bytes += u64::from(self.rcv_nxt.since(before));
        self.events |= Happened::READABLE;
        self.ack.duplicates = 0;
        if self.traits.contains(Traits::DURABLE_ACK) {
            // An acknowledgement of nothing new would be counted as a duplicate.
            self.held += self.rcv_nxt.since(before);
            return;
        }
        // RFC 5681, section 4.2, and RFC 9293, section 3.8.6.3.
        if fills_hole || self.ack.quick > 0 || self.rcv_nxt.since(self.last_ack_sent) >= 2 * self.rcv_mss {
            self.ack.now = true;
        } else if self.ack.round.is_idle(now) {
            self.ack.begin_again(piece.from, now);
        } else {
            self.ack.owe(now);
        }
    }

    /// Keeps what is new of a piece ahead of a hole. What is here already stays: the peer was told of it.
    fn ahead<F: RxFrame>(&mut self, piece: Piece, frame: &mut F, cx: &mut Context) {
        cx.counters.out_of_order += 1;
        self.ack.duplicates = (self.ack.duplicates + 1).min(MAX_DUPLICATES);
        if let Some(known) = self.recv.early.known(piece.from, piece.to) {
            self.came_again(known);
        }
        let (mut rest, mut claimed) = (piece.from, None);
        while let Some((from, to)) = self.recv.early.gap(rest, piece.to) {
            if !self.keep_early(from, to, &piece, &mut claimed, frame, cx) {
                cx.counters.drops.no_buffer += 1;
                break;
            }
            rest = to;
        }
        if rest == piece.from {
            let is_known = self.recv.early.gap(rest, piece.to).is_none();
            cx.counters.drops.duplicate += u64::from(is_known);
        }
        self.recv.early.came(piece.from);
        self.note_early(cx);
    }

    /// Keeps the part `from..to` of a piece. The first one that is not copied claims the piece's buffer.
    fn keep_early<F: RxFrame>(
        &mut self,
        from: Seq,
        to: Seq,
        piece: &Piece,
        claimed: &mut Option<pmem::Extent>,
        frame: &mut F,
        cx: &mut Context,
    ) -> bool {
        if !self.recv.early.has_room(from, to) {
            return false;
        }
        let room = self.recv.free_pieces() > 0 && cx.pool.has_early_room(self.recv.early.buffers());
        let (at, len) = (from.since(piece.from) as usize, to.since(from) as usize);
        if len < COPIED_BYTES {
            // Behind a claim the frame is another one's.
            let bytes = claimed.as_ref().map_or_else(|| piece.bytes(frame), |claimed| claimed.bytes());
            let Some(bytes) = bytes.get(at..at + len) else { return false };
            let take = || if room { cx.pool.arena().take() } else { None };
            let copied = self.recv.early.copy(from, bytes, take);
            cx.counters.copied_bytes += if copied { len as u64 } else { 0 };
            return copied;
        }
        let is_first = claimed.is_none();
        if is_first && room {
            *claimed = piece.claim(frame);
        }
        let part = claimed.clone().and_then(|claimed| claimed.slice(at, len));
        part.is_some_and(|part| self.recv.early.insert(from, part, is_first))
    }

    /// Notes what of `from..to` was delivered before (RFC 2883), and is acknowledged: a block beyond that would tell of what
    /// is behind a hole.
    fn note_again(&mut self, from: Seq, to: Seq) {
        let to = to.min(self.acknowledges());
        if from.before(to) {
            self.came_again(Block { from, to });
            self.ack.recovers();
        }
    }

    fn came_again(&mut self, block: Block) {
        if self.sacks {
            self.recv.early.came_again(block);
        }
    }

    /// The next `bytes` that were held back are durable: the peer hears of it at once, which may be waiting for that.
    pub(crate) fn made_durable(&mut self, bytes: usize, cx: &mut Context) -> Outcome {
        if self.held == 0 || bytes == 0 {
            return Outcome::Goes;
        }
        self.held = u32::try_from(bytes).map_or(0, |bytes| self.held.saturating_sub(bytes));
        self.ack.now = true;
        self.peer_finished(cx)
    }

    /// FIN, once everything before it is here, and acknowledged (RFC 9293, section 3.10.7.4, eighth).
    fn peer_finished(&mut self, cx: &mut Context) -> Outcome {
        if self.rcv_fin != Some(self.rcv_nxt) || self.held > 0 {
            return Outcome::Goes;
        }
        self.rcv_nxt += 1;
        self.rcv_adv = self.rcv_adv.max(self.rcv_nxt);
        self.ack.now = true;
        self.events |= Happened::PEER_FINISHED;
        // Whatever was sent from beyond the end.
        self.recv.early.clear();
        self.note_early(cx);
        match self.state {
            State::Established => self.state = State::CloseWait,
            State::FinWait1 => self.state = State::Closing,
            State::FinWait2 => return Outcome::TimeWait,
            _ => {}
        }
        Outcome::Goes
    }
}

/// What a segment says of the send side, whose window is scaled by so much: that in a SYN is not (RFC 7323, section 2.2).
pub(super) fn hear(segment: &Segment, scale: u8) -> Heard {
    let window = u32::from(segment.window) << scale;
    Heard { seq: segment.seq, ack: segment.ack, window, timestamp: segment.options.timestamp }
}

/// What a segment says of the send side.
#[derive(Clone, Copy)]
pub(super) struct Heard {
    pub seq: Seq,
    pub ack: Seq,
    /// The window, in bytes.
    pub window: u32,
    pub timestamp: Option<Timestamp>,
}

/// New payload of a segment, and where in the frame it begins.
pub(super) struct Piece {
    pub from: Seq,
    pub to: Seq,
    pub at: usize,
}

impl Piece {
    fn len(&self) -> u32 {
        self.to.since(self.from)
    }

    #[inline]
    fn bytes<'a, F: RxFrame>(&self, frame: &'a F) -> &'a [u8] {
        // Payload that lies apart begins where the rest of the frame ends.
        let (bytes, at) = match frame.apart() {
            [] => (frame.bytes(), self.at),
            apart => (apart, self.at - frame.bytes().len()),
        };
        bytes.get(at..at + self.len() as usize).unwrap_or_default()
    }

    /// The piece in the buffer where it arrived; none if the transport has no spare one.
    #[inline(always)]
    fn claim<F: RxFrame>(&self, frame: &mut F) -> Option<pmem::Extent> {
        let (buffer, at) = frame.claim(self.at)?;
        buffer.into_extent(u16::try_from(at).ok()?, u16::try_from(self.len()).ok()?)
    }
}

/// RFC 9293, section 3.10.7.4, first, with two allowances: what the ACK of a segment says is heard even if the
/// window is closed, and a sender that has filled the window acknowledges from its right edge.
fn is_acceptable(segment: &Segment, next: Seq, open: u32) -> bool {
    let edge = next + open;
    let len = segment.len();
    if len == 0 || open == 0 {
        return segment.seq.at_or_after(next) && segment.seq.at_or_before(edge);
    }
    segment.seq.before(edge) && (segment.seq + len).after(next)
}

/// The MSS of a peer that names none.
pub(crate) fn default_mss(key: &FlowKey) -> u16 {
    if key.is_v4() { DEFAULT_MSS_V4 } else { DEFAULT_MSS_V6 }
}
