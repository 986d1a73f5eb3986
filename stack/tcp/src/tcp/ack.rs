//! What the ACK field and the window of a segment say of the send side (RFC 9293, section 3.10.7.4, fifth).

use stack_net::time::Instant;

use super::congestion::Acked;
use super::connection::{Connection, Context, Due, Happened, Outcome, State, Timer};
use super::options::SackBlocks;
use super::recovery::Ack;
use super::rx::{Heard, hear};
use super::scoreboard::Delivered;
use super::seq::Seq;
use crate::frame::Segment;
use crate::net::CloseReason;

/// A peer that answers keep-alives and probes has a round-trip time below this.
const PLAUSIBLE_RTT_US: u32 = 600_000_000;

/// What of a queue is acknowledged.
struct Passed {
    has_data: bool,
    has_fin: bool,
}

/// What congestion control is told of an acknowledgement.
pub(super) struct Acknowledged {
    /// What was acknowledged before it.
    pub before: Seq,
    pub bytes: u32,
    pub rtt_us: Option<u32>,
    pub loses: bool,
}

impl Connection {
    /// The ACK field, the window, and selective acknowledgements.
    pub(super) fn acknowledged(
        &mut self,
        now: Instant,
        segment: &Segment,
        scale: u8,
        cx: &mut Context,
    ) -> Outcome {
        let heard = hear(segment, scale);
        let sack = segment.options.sack.as_ref().filter(|_| self.sacks);
        if heard.ack.after(self.snd_una) && sack.is_none() && self.recovery.is_calm() {
            return self.new_data_acknowledged(now, &heard, cx);
        }
        let before = self.snd_una;
        let window_before = self.snd_wnd;
        let mut ack = Ack {
            advances: heard.ack.after(before),
            is_duplicate: false,
            twice: None,
            has_blocks: sack.is_some(),
            before,
            rtt_us: None,
        };
        let now_us = now.as_micros() as u32;
        let mut news = Delivered::default();
        let passed = match ack.advances {
            true => {
                self.board.acknowledge(heard.ack, now_us, &mut news);
                self.pass(heard.ack, cx)
            }
            false => Passed { has_data: false, has_fin: false },
        };
        if heard.ack.at_or_after(before) {
            self.take_window(&heard);
        }
        ack.twice = sack.and_then(|sack: &SackBlocks| self.take_blocks(sack, now_us, &mut news, cx));
        // RFC 5681, section 2.
        ack.is_duplicate = heard.ack == before
            && segment.len() == 0
            && self.snd_wnd == window_before
            && !self.board.is_empty();
        if sack.is_none() && !ack.is_duplicate && !ack.advances {
            return Outcome::Goes;
        }
        self.board.count(&news, now_us);
        ack.rtt_us = self.measure(now, &heard, news.rtt_us(), ack.advances);
        self.in_doubt(now, &heard, &ack, &news, cx);
        self.after_acknowledgement(&passed, cx)
    }

    /// More is acknowledged while [all is calm](super::recovery::Recovery::is_calm).
    #[inline(always)]
    pub(super) fn new_data_acknowledged(&mut self, now: Instant, heard: &Heard, cx: &mut Context) -> Outcome {
        let before = self.snd_una;
        let now_us = now.as_micros() as u32;
        let passed = self.pass(heard.ack, cx);
        self.recovery.progressed(heard.ack);
        match self.board.acknowledge_one(heard.ack, now_us) {
            Some((bytes, rtt_us)) => {
                let rtt_us = self.measure(now, heard, Some(rtt_us), true);
                if self.congestion.was_full(before, self.snd_una) {
                    let acked = Acknowledged { before, bytes, rtt_us, loses: false };
                    self.tell_congestion(now, &acked, None, cx);
                }
            }
            // A copy, so that the fields of the usual one need not lie in memory.
            None => self.several_acknowledged(now, &heard.clone(), before, cx),
        }
        self.restart_timer(now);
        self.take_window(heard);
        self.after_acknowledgement(&passed, cx)
    }

    /// As much of what is acknowledged as may be of several runs, or is to show a rate.
    fn several_acknowledged(&mut self, now: Instant, heard: &Heard, before: Seq, cx: &mut Context) {
        let now_us = now.as_micros() as u32;
        let mut news = Delivered::default();
        self.board.acknowledge(heard.ack, now_us, &mut news);
        self.board.count(&news, now_us);
        let rtt_us = self.measure(now, heard, news.rtt_us(), true);
        let acked = Acknowledged { before, bytes: news.bytes, rtt_us, loses: false };
        self.congestion_acked(now, &acked, &news, cx);
    }

    /// All before `ack` is acknowledged, and more than was before.
    #[inline(always)]
    fn pass(&mut self, ack: Seq, cx: &mut Context) -> Passed {
        let acked = ack.since(self.snd_una);
        let queued = self.send.len();
        self.send.acknowledge(acked.min(queued), &mut cx.sending);
        self.snd_una = ack;
        self.snd_nxt = self.snd_nxt.max(ack);
        self.retries = 0;
        Passed { has_data: acked.min(queued) > 0, has_fin: acked > queued }
    }

    /// Tells congestion control of data that was acknowledged outside of recovery, or of all if it models the path.
    pub(super) fn congestion_acked(
        &mut self,
        now: Instant,
        ack: &Acknowledged,
        news: &Delivered,
        cx: &mut Context,
    ) {
        let was_full = self.congestion.was_full(ack.before, self.snd_una);
        let models = self.congestion.models(&cx.controls);
        if was_full || models {
            let news = cx.controls.models().then_some(news);
            self.tell_congestion(now, ack, news, cx);
        }
    }

    /// With `news` for congestion control that models the path.
    fn tell_congestion(
        &mut self,
        now: Instant,
        ack: &Acknowledged,
        news: Option<&Delivered>,
        cx: &mut Context,
    ) {
        let now_us = now.as_micros() as u32;
        // The last one of several waited least for its acknowledgement.
        let newest = news.and_then(|news| news.newest).filter(|newest| !newest.is_again);
        let rtt_us = newest.map(|newest| now_us.wrapping_sub(newest.sent_us)).or(ack.rtt_us);
        let acked = Acked {
            now,
            mss: self.mss,
            bytes: ack.bytes,
            ack: self.snd_una,
            sent_to: self.snd_max,
            rtt_us,
            srtt_us: self.rtt.srtt_us(),
            flight: self.in_flight(),
            rate: news.and_then(|news| self.board.rate(news, now_us)),
            loses: ack.loses,
        };
        self.congestion.on_ack(&acked, &mut cx.controls);
    }

    /// Draws the consequences of an acknowledgement for the application and the state.
    #[inline(always)]
    fn after_acknowledgement(&mut self, passed: &Passed, cx: &mut Context) -> Outcome {
        self.board.rest(&mut cx.sending.under_way);
        if self.wants_room.get()
            && passed.has_data
            && self.sends()
            && self.send.is_roomy(self.most_in_flight(), &cx.sending)
        {
            self.wants_room.set(false);
            self.events |= Happened::WRITABLE;
        }
        if !passed.has_fin {
            return Outcome::Goes;
        }
        match self.state {
            State::FinWait1 => self.state = State::FinWait2,
            State::Closing => return Outcome::TimeWait,
            State::LastAck => return Outcome::Closed(CloseReason::Finished),
            _ => {}
        }
        Outcome::Goes
    }

    /// RFC 6298, rules 5.2 and 5.3.
    #[inline]
    pub(super) fn restart_timer(&mut self, now: Instant) {
        self.timer = if self.board.is_empty() { Timer::Off } else { self.timer_of_flight(now) };
    }

    /// What fires if nothing comes for long: the retransmission timer, and before it a probe for losses at the tail (RFC
    /// 8985, section 7.2).
    #[inline]
    pub(super) fn timer_of_flight(&self, now: Instant) -> Timer {
        if !self.sacks || !self.recovery.is_calm() || self.rtt.backoff > 0 {
            return Timer::Retransmit(self.rtt.deadline(now));
        }
        Timer::Tail(self.rtt.tail_deadline(now, self.board.in_flight() <= self.mss))
    }

    /// Takes in how long the answer took. What was sent once is timed to the microsecond; else its timestamp tells (RFC
    /// 7323, section 4). Without either a timeout stays doubled until data that was sent once is acknowledged (Karn).
    #[inline(always)]
    fn measure(&mut self, now: Instant, heard: &Heard, timed_us: Option<u32>, advances: bool) -> Option<u32> {
        let rtt_us = match (timed_us, &self.clock, heard.timestamp) {
            (Some(rtt_us), _, _) => rtt_us,
            (None, Some(clock), Some(timestamp)) if advances && timestamp.echo != 0 => {
                clock.now(now).wrapping_sub(timestamp.echo).saturating_mul(1000)
            }
            _ => return None,
        };
        if rtt_us >= PLAUSIBLE_RTT_US {
            return None;
        }
        let (flight, per_measurement) = (self.flight(), 2 * self.mss);
        let per_window = if flight <= per_measurement { 1 } else { flight.div_ceil(per_measurement) };
        self.rtt.measured(rtt_us, per_window, now.as_micros() as u32);
        Some(rtt_us)
    }

    /// The first measurement, of the handshake (RFC 6298, section 3), unless the SYN was sent again.
    pub(super) fn measure_handshake(&mut self, now: Instant, heard: &Heard) {
        let is_timed = std::mem::take(&mut self.times_syn);
        let rtt_us = is_timed.then(|| u32::try_from(now.micros_since(self.last_sent)).unwrap_or(u32::MAX));
        self.measure(now, heard, rtt_us, true);
    }

    /// SND.WND from the newest segment (RFC 9293, section 3.10.7.4), of those that acknowledge all that is acknowledged.
    /// One that acknowledges more is newer than those before, whatever it sends again.
    #[inline]
    pub(super) fn take_window(&mut self, heard: &Heard) {
        if self.snd_wl1.after(heard.seq) && self.snd_wl2.at_or_after(heard.ack) {
            return;
        }
        self.snd_wnd = heard.window;
        self.max_snd_wnd = self.max_snd_wnd.max(self.snd_wnd);
        (self.snd_wl1, self.snd_wl2) = (self.snd_wl1.max(heard.seq), heard.ack);
        let persists = matches!(self.timer, Timer::Persist(_));
        // Who answers and takes nothing lives; but whoever has finished does not wait for ever for a window to open.
        if (persists || self.snd_wnd == 0) && !self.finished {
            self.retries = 0;
        }
        if self.snd_wnd > 0 {
            self.due -= Due::PROBE;
            if persists {
                self.timer = Timer::Off;
                self.rtt.backoff = 0;
            }
        }
    }
}
