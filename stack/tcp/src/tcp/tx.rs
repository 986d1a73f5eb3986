//! What a connection sends, and when (RFC 9293, section 3.8; RFC 5681; RFC 6298).

use std::num::NonZeroU16;

use stack_net::time::Instant;

use super::congestion::Controls;
use super::connection::{Connection, Context, Due, Outcome, State, Timer, Traits, own_window_scale};
use super::options::{MAX_OPTION_BYTES, Options, SackBlocks, Timestamp};
use super::scoreboard::{Part, Sending};
use super::send_pool::{NONE, SendPool};
use super::send_queue::Cursor;
use super::seq::Seq;
use crate::config::Config;
use crate::frame::Flags;
use crate::net::CloseReason;

/// A segment that is due. Nothing about the connection changes before it is [`sent`](Connection::sent).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    kind: Kind,
    pub(crate) seq: Seq,
    pub(crate) flags: Flags,
    /// Where the payload begins in the send queue, and how long it is.
    pub(crate) from: Cursor,
    pub(crate) len: u32,
    /// The payload of each segment that the device makes of it; none if it is one.
    pub(crate) segment_bytes: Option<NonZeroU16>,
}

impl Plan {
    /// Whether it is data that was not sent before, of a connection that has sent all before that number, and no probe.
    pub(super) fn is_new_data(&self, sent_to: Seq) -> bool {
        self.kind == Kind::Data && self.len > 0 && self.seq == sent_to
    }

    /// How many segments it is on the wire.
    #[inline]
    pub(crate) fn segments(&self) -> u32 {
        self.segment_bytes.map_or(1, |bytes| self.len.div_ceil(bytes.get().into()))
    }
}

/// A [plan](Plan) of the form that nearly all have: one segment of new data that has not been sent before, the last that
/// waits, or none; and of TCP's options the timestamps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UsualPlan {
    pub(crate) seq: Seq,
    pub(crate) from: Cursor,
    pub(crate) len: u32,
    pub(crate) timestamp: Timestamp,
}

impl UsualPlan {
    #[inline]
    pub(crate) fn flags(&self) -> Flags {
        if self.len > 0 { Flags::ACK | Flags::PSH } else { Flags::ACK }
    }
}

impl From<UsualPlan> for Plan {
    fn from(plan: UsualPlan) -> Self {
        let kind = if plan.len > 0 { Kind::Data } else { Kind::Ack };
        let UsualPlan { seq, from, len, .. } = plan;
        Self { kind, seq, flags: plan.flags(), from, len, segment_bytes: None }
    }
}

/// What a usual segment tells the peer of the receive side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UsualReport {
    pub(crate) ack: Seq,
    pub(crate) window: u16,
    edge: Seq,
}

/// Most payload of a frame that the device cuts: with the longest headers it fits an IP packet, whose length has 16 bits.
const MAX_FRAME_BYTES: u32 = u16::MAX as u32 - 20 - 60;

/// Segments that a frame which the device cuts should have where more is to be sent than the peer's window takes.
const LEAST_FRAME_SEGMENTS: u32 = 8;

/// How much a window holds of what comes in a round trip.
const ROUND_TRIPS: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Syn,
    Data,
    /// What is lost, again.
    Again,
    /// For losses at the tail: new data, or the last segment again.
    Tail,
    TailAgain,
    Probe,
    Keepalive,
    Duplicate,
    /// Of the next two segments of those that are not acknowledged, of several pairs.
    Pair,
    Ack,
}

/// The fields of a header that tell the peer of the receive side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub(crate) ack: Seq,
    /// As it stands in the header, scaled.
    pub(crate) window: u16,
    pub(crate) options: Options,
    /// The right edge of the offered window.
    edge: Seq,
}

impl Connection {
    /// Whether there is nothing to send: after one segment, or two, most have nothing more to say.
    #[inline(always)]
    pub(crate) fn is_silent(&self) -> bool {
        self.send.unsent() == 0
            && self.board.lost() == 0
            && self.due.is_empty()
            && !self.ack.now
            && self.ack.duplicates == 0
            && !self.owes_fin()
    }

    /// Whether something that was lost waits to be sent again.
    #[inline]
    pub(crate) fn is_to_send_again(&self) -> bool {
        self.board.lost() > 0
    }

    /// What [`plan`](Self::plan) comes to where nothing else than a reply or an acknowledgement is due, and all that waits
    /// is one segment that both windows take.
    #[inline(always)]
    pub(crate) fn plan_usual(&self, now: Instant, pool: &SendPool, controls: &Controls) -> Option<UsualPlan> {
        let is_usual = matches!(self.state, State::Established | State::CloseWait)
            && self.recovery.is_calm()
            && self.due.is_empty()
            && !self.traits.intersects(Traits::NAGLE | Traits::ECN)
            && !self.congestion.is_paced(controls)
            && self.ack.duplicates | self.ack.quick == 0
            && self.recv.early.is_empty();
        let unsent = self.send.unsent();
        if !is_usual || unsent > self.mss {
            return None;
        }
        let clock = self.clock.as_ref()?;
        let timestamp = Timestamp { value: clock.now(now), echo: clock.recent };
        if unsent == 0 {
            let (seq, from) = (self.bare_seq(), self.send.front());
            return self.ack.now.then_some(UsualPlan { seq, from, len: 0, timestamp });
        }
        let flight = self.flight();
        let fits = flight.saturating_add(unsent) <= self.snd_wnd.min(self.congestion.window());
        let from = self.send.cursor();
        let is_one = self.send.ends_in(from) || self.send.measure(from, unsent, pool) == unsent;
        if !fits || !is_one || self.snd_nxt != self.snd_max || self.was_idle(now) {
            return None;
        }
        Some(UsualPlan { seq: self.snd_nxt, from, len: unsent, timestamp })
    }

    /// Whether so much time has passed without anything in flight that the congestion window says nothing any more
    /// (RFC 5681, section 4.1).
    #[inline(always)]
    fn was_idle(&self, now: Instant) -> bool {
        self.flight() == 0 && self.snd_max == self.snd_una && self.rtt.has_timed_out(self.last_sent, now)
    }

    /// The next segment to send, if any is due; several in one where the device `cuts` them apart. Of a connection that
    /// [is silent](Self::is_silent) none is.
    pub(crate) fn plan(
        &mut self,
        now: Instant,
        cuts: bool,
        pool: &SendPool,
        controls: &mut Controls,
    ) -> Option<Plan> {
        match self.state {
            State::Closed | State::Drained => return None,
            State::SynSent | State::SynReceived => return self.plan_handshake(),
            _ => {}
        }
        if self.owes_pair() {
            return Some(self.bare(Kind::Pair, self.bare_seq()));
        }
        if self.ack.duplicates > 0 {
            return Some(self.bare(Kind::Duplicate, self.bare_seq()));
        }
        if self.due.contains(Due::TAIL) {
            if let Some(plan) = self.plan_tail(pool) {
                return Some(plan);
            }
            self.due -= Due::TAIL;
        }
        if !self.congestion.holds(now, controls)
            && let Some(plan) = self.plan_again(pool).or_else(|| self.plan_new(now, cuts, pool, controls))
        {
            return Some(plan);
        }
        if self.due.contains(Due::PROBE) {
            return Some(self.plan_probe(pool));
        }
        if self.ack.now {
            return Some(self.bare(Kind::Ack, self.bare_seq()));
        }
        if self.due.contains(Due::KEEPALIVE) {
            // RFC 9293, section 3.8.4: an old number, which the peer has to answer.
            return Some(self.bare(Kind::Keepalive, self.snd_una.back(1)));
        }
        None
    }

    fn plan_handshake(&self) -> Option<Plan> {
        if self.due.contains(Due::SYN) && self.mac.is_some() {
            let ack = if self.state == State::SynReceived { Flags::ACK } else { Flags::empty() };
            let flags = Flags::SYN | ack | self.asks_for_marks();
            return Some(Plan { flags, ..self.bare(Kind::Syn, self.snd_una) });
        }
        let owes = self.state == State::SynReceived && self.ack.now;
        owes.then(|| self.bare(Kind::Ack, self.snd_nxt))
    }

    /// Whether a peer that begins to send, or sends more and more, is owed an acknowledgement before the last one: what a
    /// burst has brought is acknowledged by pairs of segments, as if each had come alone.
    fn owes_pair(&self) -> bool {
        self.ack.goes_by_pairs() && self.acknowledges().since(self.last_ack_sent) >= 4 * self.rcv_mss
    }

    #[inline]
    fn bare(&self, kind: Kind, seq: Seq) -> Plan {
        Plan { kind, seq, flags: Flags::ACK, from: self.send.front(), len: 0, segment_bytes: None }
    }

    /// The number of a segment without payload: the next one, as far as it lies in the peer's window. After a
    /// timeout or a probe SND.NXT is no longer, or not yet, what the peer expects.
    #[inline]
    pub(crate) fn bare_seq(&self) -> Seq {
        self.snd_max.min(self.snd_una + self.snd_wnd)
    }

    /// Whether FIN is to be sent, or to be sent again.
    #[inline]
    fn owes_fin(&self) -> bool {
        matches!(self.state, State::FinWait1 | State::Closing | State::LastAck)
    }

    /// What is lost and was sent first, again, as far as the windows go. What comes first of all goes out whatever the
    /// peer's window: it was open once.
    fn plan_again(&mut self, pool: &SendPool) -> Option<Plan> {
        let part = self.board.next_lost()?;
        let plan = self.plan_part(&part, part.from, Kind::Again, pool);
        let in_flight = self.in_flight();
        let is_allowed = in_flight == 0 || in_flight.saturating_add(plan.len) <= self.flight_limit();
        let is_open = part.from == self.snd_una || (plan.seq + plan.len).since(self.snd_una) <= self.snd_wnd;
        if !is_allowed {
            self.congestion.filled(self.snd_max);
        }
        (is_allowed && is_open).then_some(plan)
    }

    /// A segment of what was sent, from `from` on.
    fn plan_part(&self, part: &Part, from: Seq, kind: Kind, pool: &SendPool) -> Plan {
        let offset = from.since(self.snd_una);
        let at = match part.from == self.snd_una {
            true => self.send.seek(offset, None, pool),
            false => self.send.seek(offset, part.near, pool),
        };
        let left = self.send.len().saturating_sub(offset);
        let len = self.send.measure(at, part.end.since(from).min(left).min(self.mss), pool);
        let fin = self.owes_fin() && from + len == self.fin_seq() && part.end.after(self.fin_seq());
        let mut flags = Flags::ACK;
        flags.set(Flags::FIN, fin);
        flags.set(Flags::PSH, len > 0 && len == left);
        Plan { flags, from: at, len, ..self.bare(kind, from) }
    }

    /// A probe for losses at the tail (RFC 8985, section 7.3): new data, one segment beyond the congestion window, or else
    /// the last segment that was sent.
    fn plan_tail(&self, pool: &SendPool) -> Option<Plan> {
        let unsent = self.send.unsent();
        let open = self.snd_wnd.saturating_sub(self.flight());
        let from = self.send.cursor();
        let whole = self.send.measure(from, self.mss, pool);
        if unsent > 0 && whole <= open && self.snd_nxt == self.snd_max {
            let flags = self.data_flags(self.owes_fin() && whole == unsent, whole);
            return Some(Plan { flags, from, len: whole, ..self.bare(Kind::Tail, self.snd_nxt) });
        }
        let part = self.board.last()?;
        let from = part.from.max(part.end.back(self.mss));
        Some(self.plan_part(&part, from, Kind::TailAgain, pool))
    }

    /// New data, as far as the windows go.
    fn plan_new(
        &mut self,
        now: Instant,
        cuts: bool,
        pool: &SendPool,
        controls: &mut Controls,
    ) -> Option<Plan> {
        let unsent = self.send.unsent();
        let fin_unsent = self.owes_fin() && self.snd_nxt.at_or_before(self.fin_seq());
        if unsent == 0 && !fin_unsent {
            return None;
        }
        if self.waits_for_company(unsent) {
            return None;
        }
        let flight = self.flight();
        if self.was_idle(now) {
            let idle_us = now.micros_since(self.last_sent);
            self.congestion.restarted_after_idle(idle_us, self.rtt.timeout_us(), self.mss, controls);
            // It is not idle twice for the same time.
            self.last_sent = now;
        }
        self.congestion.validate(now, flight, self.mss, controls);
        let (in_flight, limit) = (self.in_flight(), self.flight_limit());
        let open = self.snd_wnd.saturating_sub(flight);
        let usable = open.min(limit.saturating_sub(in_flight));
        let from = self.send.cursor();
        if cuts && unsent > self.mss && self.snd_nxt == self.snd_max && self.waits_for_window(usable, unsent)
        {
            return None;
        }
        if cuts && unsent > self.mss && usable > self.mss && self.snd_nxt == self.snd_max {
            let burst = self.congestion.burst_bytes(self.rtt.srtt_us(), self.mss, controls);
            let frame = self.plan_frame(usable.min(burst), fin_unsent, pool);
            if frame.is_some() {
                return frame;
            }
        }
        let whole = self.send.measure(from, self.mss, pool);
        let len = whole.min(usable);
        if len < whole && usable < open {
            self.congestion.filled(self.snd_max);
        }
        let fin = fin_unsent && len == unsent;
        let closed = self.snd_wnd <= flight;
        // Silly windows are not filled (RFC 9293, section 3.8.6.2.1): a whole segment, or a good part of what
        // the peer has ever offered.
        // FIN alone needs no window, but does not go into a closed one.
        let worthwhile = match len {
            0 => fin && unsent == 0 && !closed,
            _ => len == whole || 2 * len >= self.max_snd_wnd,
        };
        if worthwhile {
            let flags = self.data_flags(fin, len);
            return Some(Plan { flags, from, len, ..self.bare(Kind::Data, self.snd_nxt) });
        }
        if flight == 0 && self.timer == Timer::Off {
            self.timer = Timer::Persist(self.rtt.deadline(now));
        }
        None
    }

    /// Whether so little is left to send that it waits for more, or for what is in flight to be acknowledged (Nagle; RFC
    /// 9293, section 3.7.4). What is sent again does not wait.
    fn waits_for_company(&self, unsent: u32) -> bool {
        let in_flight = self.snd_una != self.snd_max && self.snd_nxt == self.snd_max;
        self.holds_back() && unsent < self.mss && in_flight
    }

    /// Whether more may follow what is less than a segment, and that waits for it.
    fn holds_back(&self) -> bool {
        self.traits.contains(Traits::NAGLE) && !self.finished
    }

    /// Whether it is worth while to wait for more acknowledgements where the peer's window is what limits: each opens it by
    /// a segment or two, and frames of that length would be no longer than segments. That leaves a sixteenth of it unused
    /// at most.
    fn waits_for_window(&self, usable: u32, unsent: u32) -> bool {
        let enough = (LEAST_FRAME_SEGMENTS * self.mss).min(self.snd_wnd / 16);
        let is_limited = unsent > usable && self.snd_wnd <= self.congestion.window();
        is_limited && usable < enough && self.flight() > 0
    }

    /// Several segments of new data, of which `usable` bytes may be sent: whole ones, and with them the last, however
    /// short. What goes out again goes segment by segment.
    fn plan_frame(&self, usable: u32, fin_unsent: bool, pool: &SendPool) -> Option<Plan> {
        let (from, unsent) = (self.send.cursor(), self.send.unsent());
        let measured = self.send.measure_frame(from, self.mss, usable.min(MAX_FRAME_BYTES), pool);
        let whole = measured - measured % self.mss;
        let takes_rest = measured == unsent && !self.holds_back();
        let len = if takes_rest { measured } else { whole };
        if len <= self.mss {
            return None;
        }
        let flags = self.data_flags(fin_unsent && len == unsent, len);
        let segment_bytes = NonZeroU16::new(self.mss as u16);
        Some(Plan { flags, from, len, segment_bytes, ..self.bare(Kind::Data, self.snd_nxt) })
    }

    /// Into a closed or silly window: what it takes, but at least one byte.
    fn plan_probe(&self, pool: &SendPool) -> Plan {
        let from = self.send.cursor();
        let len = self.send.measure(from, self.snd_wnd.clamp(1, self.mss), pool);
        let fin = self.owes_fin() && len == self.send.unsent();
        Plan { flags: self.data_flags(fin, len), from, len, ..self.bare(Kind::Probe, self.snd_nxt) }
    }

    /// A segment of so much new data.
    pub(super) fn plan_data(&self, len: u32) -> Plan {
        let (flags, from) = (self.data_flags(false, len), self.send.cursor());
        Plan { flags, from, len, ..self.bare(Kind::Data, self.snd_nxt) }
    }

    fn data_flags(&self, fin: bool, len: u32) -> Flags {
        let mut flags = Flags::ACK;
        flags.set(Flags::FIN, fin);
        flags.set(Flags::PSH, len > 0 && (fin || len >= self.send.unsent() || len < self.mss));
        flags
    }

    /// What the next segment says of the receive side, whose window ends at `edge`.
    #[inline]
    pub(crate) fn report(&self, plan: &Plan, edge: Seq, now: Instant, cx: &Context) -> Report {
        if plan.kind == Kind::Syn {
            return self.report_in_syn(plan, edge, now, cx);
        }
        let timestamp = self.timestamp(now, plan.flags);
        let ack = match plan.kind {
            Kind::Pair => self.last_ack_sent + 2 * self.rcv_mss,
            _ => self.acknowledges(),
        };
        let (window, edge) = self.window_to(edge, ack, self.rcv_scale);
        let sack = if self.recv.early.is_empty() { None } else { self.sack(plan) };
        let options = Options { timestamp, sack, ..Options::default() };
        Report { ack, window, options, edge }
    }

    /// The blocks of what is here beyond a hole, as many as have room (RFC 2018, section 4). A segment that is full of
    /// payload has none; what has just come beyond a hole is told by one without payload.
    #[cold]
    fn sack(&self, plan: &Plan) -> Option<SackBlocks> {
        if !self.sacks || plan.segment_bytes.is_some() {
            return None;
        }
        let room = MAX_OPTION_BYTES - self.option_bytes() as usize;
        let room = room.min(self.mss.saturating_sub(plan.len) as usize);
        // Of several acknowledgements that are due each begins with the segment that it is for.
        let newer = if plan.kind == Kind::Duplicate { self.ack.duplicates.saturating_sub(1) } else { 0 };
        self.recv.early.blocks(newer.into(), SackBlocks::fitting(room))
    }

    fn report_in_syn(&self, plan: &Plan, edge: Seq, now: Instant, cx: &Context) -> Report {
        let scales = self.state == State::SynSent || self.rcv_scale > 0 || self.snd_scale > 0;
        let options = Options {
            mss: Some(self.own_mss),
            window_scale: scales.then(|| own_window_scale(&cx.config)),
            // RFC 2018, section 2: offered, and answered where the peer has offered it.
            sack_permitted: self.state == State::SynSent || self.sacks,
            timestamp: self.timestamp(now, plan.flags),
            sack: None,
        };
        if !plan.flags.contains(Flags::ACK) {
            let window = self.affordable(cx).min(0xffff);
            return Report { ack: Seq(0), window: window as u16, options, edge: self.rcv_adv };
        }
        // RFC 7323, section 2.2: the window in a SYN is not scaled.
        let (window, edge) = self.window_to(edge, self.acknowledges(), 0);
        Report { ack: self.acknowledges(), window, options, edge }
    }

    #[inline]
    fn timestamp(&self, now: Instant, flags: Flags) -> Option<Timestamp> {
        self.clock.as_ref().map(|clock| Timestamp {
            value: clock.now(now),
            echo: if flags.contains(Flags::ACK) { clock.recent } else { 0 },
        })
    }

    /// The window from `ack` up to `edge` as it stands in a header, and the edge that it offers.
    #[inline]
    fn window_to(&self, edge: Seq, ack: Seq, scale: u8) -> (u16, Seq) {
        let window = (edge.since(ack) >> scale).min(0xffff);
        // Rounding down moves the edge that the peer sees left by less than one unit, which RFC 7323,
        // section 2.4, allows; what was offered before is still taken.
        (window as u16, self.rcv_adv.max(ack + (window << scale)))
    }

    /// Bytes that the connection and the arena have room for.
    pub(super) fn affordable(&self, cx: &Context) -> u32 {
        self.affordable_of(self.buffered(cx))
    }

    #[inline]
    fn affordable_of(&self, buffered: usize) -> u32 {
        let room = self.recv.window().saturating_sub(self.recv.ready_bytes()) as usize;
        let field = 0xffff << self.rcv_scale;
        room.min(buffered).min(field) as u32
    }

    /// Bytes that the buffers hold which the connection may have, if each takes a whole segment.
    #[inline]
    fn buffered(&self, cx: &Context) -> usize {
        cx.pool.grant_up_to(self.recv.free_pieces(), &self.offer) * self.peer_segment_bytes() as usize
    }

    /// The right edge of the window to offer. It stays while nothing has come in order and nothing was taken, whatever
    /// others have done with the buffers: a duplicate acknowledgement is one that has the window of the one before (RFC
    /// 5681, section 2).
    #[inline]
    pub(crate) fn edge(&self, cx: &Context) -> Seq {
        let has_moved = self.has_taken || self.acknowledges() != self.last_ack_sent;
        if has_moved { self.best_edge(cx) } else { self.rcv_adv }
    }

    /// The right edge that there is room for: never left of what was offered before, and only moved by steps that are
    /// worth a segment, or half of all there is (RFC 9293, section 3.8.6.2.2), or where it takes a segment again.
    #[inline]
    pub(crate) fn best_edge(&self, cx: &Context) -> Seq {
        let buffered = self.buffered(cx);
        let edge = self.rcv_nxt + self.affordable_of(buffered);
        let whole = buffered.min(self.recv.window() as usize);
        let step = self.peer_segment_bytes().min(whole as u32 / 2);
        let is_worth = edge.after(self.rcv_adv) && edge.since(self.rcv_adv) >= step;
        if is_worth || self.takes_a_segment_again(edge) { edge } else { self.rcv_adv }
    }

    /// Whether a window up to `edge` takes a whole segment, and the one that was offered does not: its sender may wait for
    /// that (RFC 9293, section 3.8.6.2.1).
    #[inline]
    fn takes_a_segment_again(&self, edge: Seq) -> bool {
        let open = self.rcv_adv.since(self.rcv_nxt);
        open < self.own_mss.into() && {
            let segment = self.peer_segment_bytes();
            open < segment && edge.at_or_after(self.rcv_nxt + segment)
        }
    }

    /// Looks at what has come in a round trip.
    #[inline]
    pub(crate) fn follow_arrivals(&mut self, now: Instant, config: &Config) {
        if self.ack.round.counts(self.rcv_nxt) {
            self.end_round(now, config);
        }
    }

    /// The window is to hold four times what the application takes in a round trip, as the handshake found it: as much is
    /// under way, as much again may wait in a queue on the way, and what comes behind a hole does not end before that is
    /// filled. In slow start the next round trip brings twice as much as this one.
    #[cold]
    fn end_round(&mut self, now: Instant, config: &Config) {
        let taken = self.rcv_nxt.back(self.recv.ready_bytes());
        let answers = self.ack.round.has_begun_by(self.last_sent);
        let so_far = self.ack.round.brought(taken);
        let rate = self.ack.round.end(taken, self.rtt.smoothed_us(), now);
        let bytes = rate.map_or(so_far, |rate| rate.bytes);
        self.recv.widen(bytes.saturating_mul(ROUND_TRIPS), config.rx_window_bytes);
        if rate.is_some_and(|rate| rate.grows) && bytes >= 4 * self.rcv_mss && !answers {
            // In the next round trip it sends twice as much.
            self.ack.quicken(2 * (bytes / self.rcv_mss));
        }
    }

    /// Whether the peer should hear of a window that has opened up to `edge` since it last did: when it can send at
    /// least twice as much as before, or a whole segment again.
    #[inline]
    pub(crate) fn window_opened(&mut self, edge: Seq) -> bool {
        if edge == self.rcv_adv {
            return false;
        }
        let open = self.rcv_adv.since(self.rcv_nxt);
        let is_worth = edge.since(self.rcv_nxt) >= (2 * open).max(1) || self.takes_a_segment_again(edge);
        let opened = is_worth && self.receives();
        if opened {
            self.ack.now = true;
        }
        opened
    }

    /// Whether the window is nearly closed for want of buffers, not of the application's attention.
    #[inline]
    pub(crate) fn is_starved(&self, cx: &Context) -> bool {
        let open = self.rcv_adv.since(self.rcv_nxt);
        // No segment is longer.
        open < self.own_mss.into() && {
            let segment = self.peer_segment_bytes();
            open < segment && self.receives() && self.affordable(cx) < segment
        }
    }

    /// Whether the peer may still send.
    #[inline]
    fn receives(&self) -> bool {
        matches!(self.state, State::Established | State::FinWait1 | State::FinWait2)
    }

    /// What [`report`](Self::report) comes to for a usual segment.
    #[inline(always)]
    pub(crate) fn report_usual(&self, edge: Seq) -> UsualReport {
        let ack = self.acknowledges();
        let (window, edge) = self.window_to(edge, ack, self.rcv_scale);
        UsualReport { ack, window, edge }
    }

    /// Notes that a usual segment has gone out.
    #[inline(always)]
    pub(crate) fn sent_usual(
        &mut self,
        plan: &UsualPlan,
        report: &UsualReport,
        now: Instant,
        cx: &mut Context,
    ) {
        self.reported(report.ack, report.edge, cx);
        if plan.len > 0 {
            self.sent_once(plan.from, plan.len, plan.seq + plan.len, false, now, cx);
        }
    }

    /// Notes that the peer was told of the receive side.
    #[inline(always)]
    fn reported(&mut self, ack: Seq, edge: Seq, cx: &mut Context) {
        self.last_ack_sent = ack;
        self.has_taken = false;
        self.ack.settle();
        if self.rcv_adv != edge {
            self.rcv_adv = edge;
            self.note_offer(cx);
        }
    }

    /// Notes that a planned segment has gone out.
    pub(crate) fn sent(&mut self, plan: &Plan, report: &Report, now: Instant, cx: &mut Context) {
        let end = plan.seq + plan.len + u32::from(plan.flags.contains(Flags::FIN));
        if plan.flags.contains(Flags::ACK) {
            self.reported(report.ack, report.edge, cx);
            if !self.recv.early.is_empty() {
                self.ack.now = self.recv.early.told(report.options.sack.is_some());
            }
        }
        match plan.kind {
            Kind::Data => self.sent_data(plan, end, now, cx),
            Kind::Ack => self.ack.went_alone(),
            _ => self.sent_unusual(plan, end, now, cx),
        }
    }

    fn sent_unusual(&mut self, plan: &Plan, end: Seq, now: Instant, cx: &mut Context) {
        self.ack.went_alone();
        match plan.kind {
            Kind::Syn => {
                self.due -= Due::SYN;
                if self.retries > 0 {
                    cx.counters.retransmits += 1;
                }
                // A SYN that an ACK follows into a simultaneous open goes out twice, and is not timed (Karn).
                let first = self.snd_max == plan.seq;
                (self.times_syn, self.last_sent) = (first, now);
                (self.snd_nxt, self.snd_max) = (plan.seq + 1, plan.seq + 1);
                self.timer = Timer::Retransmit(self.rtt.deadline(now));
            }
            Kind::Again | Kind::TailAgain => self.sent_again(plan, end, now, cx),
            Kind::Tail => {
                self.sent_data(plan, end, now, cx);
                self.probed(false, now, cx);
            }
            Kind::Probe => {
                self.due -= Due::PROBE;
                cx.counters.window_probes += 1;
                self.snd_max = self.snd_max.max(end);
                if self.snd_wnd == 0 {
                    // The number stays unsent: the peer may drop the byte.
                    self.timer = Timer::Persist(self.rtt.deadline(now));
                } else {
                    self.sent_data(plan, end, now, cx);
                }
            }
            Kind::Keepalive => {
                self.due -= Due::KEEPALIVE;
                self.keepalive_probes = self.keepalive_probes.saturating_add(1);
            }
            Kind::Duplicate => self.ack.duplicates -= 1,
            Kind::Pair => self.ack.now = true,
            Kind::Data | Kind::Ack => {}
        }
    }

    fn sent_data(&mut self, plan: &Plan, end: Seq, now: Instant, cx: &mut Context) {
        // A probe of a closed window may have brought some of it.
        let again = plan.seq.before(self.snd_max);
        if self.owes_cwr() {
            self.note_cwr(plan, cx);
        }
        self.sent_once(plan.from, plan.len, end, again, now, cx);
    }

    /// Notes that `len` bytes were sent which the cursor stands at, and maybe FIN, up to `end`; or `again`, but not since
    /// they were lost.
    #[inline(always)]
    fn sent_once(&mut self, from: Cursor, len: u32, end: Seq, again: bool, now: Instant, cx: &mut Context) {
        // What answers follows requests, and takes their acknowledgements along.
        self.ack.quick = 0;
        self.last_sent = now;
        let sending = Sending {
            now_us: now.as_micros() as u32,
            within_us: self.rtt.moment_us(),
            // Nobody asks for that of the first.
            node: if self.board.is_empty() { NONE } else { self.send.node_at(from, &cx.sending) },
            again,
        };
        self.board.sent(end, &sending, &mut cx.sending.under_way);
        self.send.advance(len, &cx.sending);
        if self.congestion.is_paced(&cx.controls) {
            self.note_pace(len, now, &mut cx.controls);
        }
        if self.send.unsent() == 0 {
            self.board.limited();
        }
        if again {
            cx.counters.retransmits += 1;
        } else {
            cx.counters.payload_out_bytes += u64::from(len);
        }
        self.snd_nxt = end;
        self.snd_max = self.snd_max.max(end);
        if !self.recovery.is_calm() {
            self.note_sent(len, false, None);
        }
        if !matches!(self.timer, Timer::Retransmit(_) | Timer::Reorder(_)) {
            self.timer = self.timer_of_flight(now);
        }
    }

    /// Notes that so many bytes have gone out of a connection that sends at a rate.
    fn note_pace(&mut self, bytes: u32, now: Instant, controls: &mut Controls) {
        let flight = self.in_flight().saturating_sub(bytes);
        self.congestion.on_sent(now, bytes, flight, self.rtt.srtt_us(), controls);
    }

    fn sent_again(&mut self, plan: &Plan, end: Seq, now: Instant, cx: &mut Context) {
        self.last_sent = now;
        let sending = Sending {
            now_us: now.as_micros() as u32,
            within_us: 0,
            node: self.send.node_at(plan.from, &cx.sending),
            again: true,
        };
        self.board.sent_again(plan.seq, end, &sending, &mut cx.sending.under_way);
        if self.congestion.is_paced(&cx.controls) {
            self.note_pace(plan.len, now, &mut cx.controls);
        }
        cx.counters.retransmits += 1;
        if self.retries == 0 {
            cx.counters.fast_retransmits += 1;
        }
        let timestamp = self.clock.as_ref().map(|clock| clock.now(now));
        self.note_sent(plan.len, true, timestamp);
        if plan.kind == Kind::TailAgain {
            self.probed(true, now, cx);
        }
        debug_assert!(self.board.is_consistent(), "{:?}", self.board);
        // The first one has the whole timeout.
        if !matches!(self.timer, Timer::Retransmit(_) | Timer::Reorder(_)) || plan.seq == self.snd_una {
            self.timer = Timer::Retransmit(self.rtt.deadline(now));
        }
    }

    /// Lets the timers that are due fire.
    pub(crate) fn expire(&mut self, now: Instant, cx: &mut Context) -> Outcome {
        self.ack.expire(now, cx.config.delayed_ack);
        if self.is_given_up(now, cx) {
            return Outcome::Closed(CloseReason::TimedOut);
        }
        match self.timer {
            Timer::Retransmit(at) if at <= now => self.timed_out(now, cx),
            Timer::Tail(at) if at <= now => self.tail_is_due(now, cx),
            Timer::Reorder(at) if at <= now => self.reordering_is_over(now, cx),
            Timer::Persist(at) if at <= now => self.probe_due(now),
            Timer::Linger(at) if at <= now => return Outcome::Closed(CloseReason::Finished),
            Timer::Off => return self.keepalive_due(now, cx),
            _ => {}
        }
        Outcome::Goes
    }

    /// RFC 6298, rules 5.4 to 5.7, and RFC 5681, section 3.1.
    fn timed_out(&mut self, now: Instant, cx: &mut Context) {
        cx.counters.timeouts += 1;
        self.count_retry(now);
        self.timer = Timer::Off;
        self.times_syn = false;
        if matches!(self.state, State::SynSent | State::SynReceived) {
            self.due |= Due::SYN;
            return;
        }
        self.lose_all_by_timeout(now, cx);
        self.due -= Due::TAIL;
    }

    fn probe_due(&mut self, now: Instant) {
        self.count_retry(now);
        self.timer = Timer::Off;
        self.due |= Due::PROBE;
    }

    fn keepalive_due(&mut self, now: Instant, cx: &Context) -> Outcome {
        let (Some(keepalive), Some(at)) = (self.keepalive(cx), self.keepalive_deadline(cx)) else {
            return Outcome::Goes;
        };
        if at > now {
            return Outcome::Goes;
        }
        if self.keepalive_probes >= keepalive.count {
            return Outcome::Closed(CloseReason::TimedOut);
        }
        self.due |= Due::KEEPALIVE;
        Outcome::Goes
    }
}
