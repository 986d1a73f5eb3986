//! Passive opens: SYNs, half-open connections, SYN cookies, and what TIME-WAIT still answers.

use std::time::Duration;

use super::{Endpoint, Reply, TimerOf};
use crate::flow::FlowState;
use crate::frame::{Flags, RxFrame, Segment};
use crate::limit::{HostRates, Rate};
use crate::tcp::connection::{Clock, Handshake, clock_now, own_mss, own_window_scale};
use crate::tcp::isn::Secret;
use crate::tcp::options::{Options, Timestamp};
use crate::tcp::rx::default_mss;
use crate::tcp::seq::Seq;
use crate::window::Offer;

/// How long after the last cookie went out one may come back.
const COOKIE_LIFETIME: Duration = Duration::from_secs(120);

/// Challenge ACKs to half-open connections, of all together.
const CHALLENGES: HostRates = HostRates { host: Rate::per_second(10, 10), all: Rate::per_second(1_000, 100) };

impl Endpoint {
    /// A segment that begins a connection, or that belongs to none. False for one that is to be refused.
    pub(super) fn at_listener<F: RxFrame>(&mut self, segment: &Segment, frame: &mut F) -> bool {
        let Some(listener) = self.listeners.find(&segment.key) else { return false };
        let kind = segment.flags & (Flags::SYN | Flags::ACK | Flags::RST);
        if kind == Flags::SYN {
            self.syn(segment, listener, None);
            true
        } else if kind.is_empty() {
            self.cx.counters.drops.unexpected += 1;
            true
        } else {
            kind == Flags::ACK && self.open_from_cookie(segment, listener, frame)
        }
    }

    /// A SYN that is answered promises a place in the table: its sender takes the connection for open when it has
    /// the answer. Without a place there is none, and it tries again (RFC 9293, section 3.8.1). `least_iss` is the
    /// least number that a connection may begin with whose predecessor is in TIME-WAIT. Says whether it is answered.
    fn syn(&mut self, segment: &Segment, listener: u16, least_iss: Option<Seq>) -> bool {
        if self.turns_away() {
            self.cx.counters.drops.backlog += 1;
            return false;
        }
        let key = segment.key;
        let offset = self.secret.clock_offset(&key);
        // Cores that answer one SYN are told apart by their numbers.
        let mut iss = self.secret.isn(&key, self.now) + (u32::from(self.cx.config.core.index) << 24);
        if let Some(least) = least_iss {
            iss = iss.max(least);
        }
        let options = segment.options;
        let clock =
            options.timestamp.map(|timestamp| Clock { offset, recent: timestamp.value, recent_at: self.now });
        let handshake = Handshake {
            key,
            mac: segment.source_mac,
            iss,
            irs: segment.seq,
            mss: options.mss.unwrap_or(default_mss(&key)),
            window_scale: options.window_scale,
            sacks: options.sack_permitted,
            heeds_marks: segment.asks_for_marks() && self.cx.config.answers_marks(),
            clock,
            offered: self.first_window(key.is_v4(), options.mss),
            sent_at: Some(self.now),
            retries: 0,
        };
        let queued = if self.has_no_place_to_promise() {
            None
        } else {
            self.listeners.insert(handshake, listener, self.now)
        };
        match queued {
            Some((place, until)) => {
                self.flows.insert(key, FlowState::HalfOpen(place));
                self.set_timer(TimerOf::HalfOpen(place), until);
                self.send_syn_ack(&handshake, clock.map(|clock| clock.now(self.now)));
            }
            None => {
                let cookie = self.secret.cookie(&key, segment.seq, handshake.mss, handshake.sacks, self.now);
                if least_iss.is_some_and(|least| cookie.before(least)) {
                    // A cookie's number cannot be chosen. The next attempt finds a place, or another cookie.
                    self.cx.counters.drops.backlog += 1;
                    return false;
                }
                self.last_cookie = Some(self.now);
                self.cx.counters.syn_cookies_sent += 1;
                let heeds_marks = handshake.heeds_marks && clock.is_some();
                let value = Secret::cookie_clock(clock_now(offset, self.now), &options, heeds_marks);
                // Without timestamps to remember it by, windows are not scaled.
                let window_scale = handshake.window_scale.filter(|_| clock.is_some());
                let handshake = Handshake { iss: cookie, window_scale, heeds_marks, ..handshake };
                self.send_syn_ack(&handshake, clock.map(|_| value));
            }
        }
        true
    }

    /// A SYN that may take the place of a connection in TIME-WAIT. That stays until there is a successor: what is
    /// refused or not answered has shown nothing but its number, and old duplicates may still be under way.
    pub(super) fn reopen(&mut self, place: u32, segment: &Segment) {
        let Some(listener) = self.listeners.find(&segment.key) else {
            self.refuse(segment);
            return;
        };
        let Some(least_iss) = self.time_waits.get(place).map(|entry| entry.snd_nxt + 1) else { return };
        if !self.syn(segment, listener, Some(least_iss)) {
            return;
        }
        self.time_waits.remove(place);
        if let Some(FlowState::TimeWait(_)) = self.flows.find(&segment.key) {
            // The answer was a cookie, which remembers nothing.
            self.flows.remove(&segment.key);
        }
    }

    /// The window that SYN and ACK offer, in bytes. A peer that takes short segments only is likely to send such, and each
    /// takes a buffer.
    fn first_window(&self, v4: bool, mss: Option<u16>) -> u32 {
        let buffers = self.cx.pool.grant(&Offer::default());
        let own = own_mss(&self.cx.config, v4);
        let bytes = buffers * usize::from(mss.map_or(own, |mss| own.min(mss)));
        bytes.min(self.cx.config.rx_window_bytes).min(0xffff) as u32
    }

    fn send_syn_ack(&mut self, handshake: &Handshake, clock: Option<u32>) {
        let recent = handshake.clock.map_or(0, |clock| clock.recent);
        let options = Options {
            mss: Some(own_mss(&self.cx.config, handshake.key.is_v4())),
            window_scale: handshake.window_scale.map(|_| own_window_scale(&self.cx.config)),
            sack_permitted: handshake.sacks,
            timestamp: clock.map(|value| Timestamp { value, echo: recent }),
            sack: None,
        };
        self.reply(Reply {
            key: handshake.key,
            mac: handshake.mac,
            seq: handshake.iss,
            ack: handshake.irs + 1,
            flags: Flags::SYN | Flags::ACK | if handshake.heeds_marks { Flags::ECE } else { Flags::empty() },
            window: handshake.offered as u16,
            options,
        });
    }

    /// RFC 9293, section 3.10.7.4, for SYN-RECEIVED. False for a segment that is to be refused, or that belongs to
    /// another core: a SYN that came twice, to two cores, is answered by both, and the peer goes on with one.
    pub(super) fn at_half_open<F: RxFrame>(
        &mut self,
        place: u32,
        segment: &Segment,
        frame: &mut F,
        is_last: bool,
    ) -> bool {
        let Some(half_open) = self.listeners.get(place) else { return true };
        let (handshake, listener) = (half_open.handshake, half_open.listener);
        let next = handshake.irs + 1;
        let clock = handshake.clock.map(|clock| clock.now(self.now));
        if segment.flags.contains(Flags::RST) {
            // RFC 5961, section 3.2: only the exact number counts.
            if segment.seq == next {
                self.forget_half_open(place);
            } else {
                self.cx.counters.drops.window += 1;
                if segment.seq.after(next) && segment.seq.before(next + handshake.offered) {
                    self.challenge_half_open(&handshake);
                }
            }
            return true;
        }
        if segment.flags.contains(Flags::SYN) {
            if segment.seq == handshake.irs && !segment.flags.contains(Flags::ACK) {
                let mac = segment.source_mac;
                // Who asks no more has given it up (RFC 3168, section 6.1.1.1).
                let heeds_marks = handshake.heeds_marks && segment.asks_for_marks();
                self.listeners.answered_again(place, mac, heeds_marks);
                self.send_syn_ack(&Handshake { mac, heeds_marks, ..handshake }, clock);
            } else {
                // RFC 5961, section 4: whoever has really begun again answers with RST.
                self.challenge_half_open(&handshake);
            }
            return true;
        }
        let answers_us = segment.flags.contains(Flags::ACK) && segment.ack == handshake.iss + 1;
        if !is_last && !answers_us {
            return false;
        }
        let in_window = segment.seq.at_or_after(next) && segment.seq.at_or_before(next + handshake.offered);
        let old = match (handshake.clock, segment.options.timestamp) {
            (Some(clock), Some(timestamp)) => clock.is_old(timestamp.value, self.now),
            (Some(_), None) => true,
            (None, _) => false,
        };
        if !in_window || old {
            self.cx.counters.drops.window += 1;
            self.challenge_half_open(&handshake);
            return true;
        }
        if !segment.flags.contains(Flags::ACK) {
            self.cx.counters.drops.unexpected += 1;
            return true;
        }
        if !answers_us {
            return false;
        }
        if self.promote(&handshake, listener, segment, frame) {
            self.timers.cancel(self.timer_index(TimerOf::HalfOpen(place)));
            self.listeners.remove(place);
        }
        true
    }

    fn challenge_half_open(&mut self, handshake: &Handshake) {
        if !self.half_open_challenges.allow(handshake.key.remote_ip(), CHALLENGES, self.now) {
            self.cx.counters.drops.limited += 1;
            return;
        }
        self.cx.counters.challenge_acks += 1;
        let timestamp =
            handshake.clock.map(|clock| Timestamp { value: clock.now(self.now), echo: clock.recent });
        self.reply(Reply {
            window: handshake.offered as u16,
            options: Options { timestamp, ..Options::default() },
            ..Reply::bare(handshake.key, handshake.mac, handshake.iss + 1, handshake.irs + 1, Flags::ACK)
        });
    }

    /// Opens a connection from the ACK of a cookie; false if it is none of ours.
    fn open_from_cookie<F: RxFrame>(&mut self, segment: &Segment, listener: u16, frame: &mut F) -> bool {
        if self.last_cookie.is_none_or(|last| self.now - last > COOKIE_LIFETIME) {
            return false;
        }
        let (key, irs, iss) = (segment.key, segment.seq.back(1), segment.ack.back(1));
        let timestamp = segment.options.timestamp;
        let echo = timestamp.map(|timestamp| timestamp.echo);
        let Some(cookie) = self.secret.open_cookie(&key, irs, iss, echo, self.now) else { return false };
        if self.free.is_empty() {
            // More cookies came back than there were places. Who sent it is told, and need not wait for an answer.
            self.cx.counters.drops.backlog += 1;
            return false;
        }
        if !self.take_promise_back() {
            // The peer finds out by sending again; by then those who hold it up have answered, or are overdue.
            self.cx.counters.drops.backlog += 1;
            return true;
        }
        let clock = timestamp.map(|timestamp| Clock {
            offset: self.secret.clock_offset(&key),
            recent: timestamp.value,
            recent_at: self.now,
        });
        let handshake = Handshake {
            key,
            mac: segment.source_mac,
            iss,
            irs,
            mss: cookie.mss,
            window_scale: cookie.window_scale,
            sacks: cookie.sacks,
            heeds_marks: cookie.heeds_marks && self.cx.config.answers_marks(),
            clock,
            offered: self.first_window(key.is_v4(), Some(cookie.mss)),
            sent_at: None,
            retries: 0,
        };
        if self.promote(&handshake, listener, segment, frame) {
            self.cx.counters.syn_cookies_accepted += 1;
        }
        true
    }

    /// Whether a SYN is not answered. Where all places are promised, and half-open connections are overdue, which may
    /// never have been meant, a cookie is the answer: the first of them that comes back gets such a place.
    pub(super) fn turns_away(&self) -> bool {
        self.free.is_empty() || (self.has_no_place_to_promise() && !self.listeners.has_overdue())
    }

    /// Whether each free place is promised to a half-open connection.
    fn has_no_place_to_promise(&self) -> bool {
        self.free.len() <= self.listeners.half_open()
    }

    /// Makes a free place one that is promised to nobody, if need be at the cost of a half-open connection whose peer
    /// has not answered in time; false if there is none.
    pub(super) fn take_promise_back(&mut self) -> bool {
        if self.has_no_place_to_promise()
            && let Some(place) = self.listeners.next_overdue()
        {
            self.forget_half_open(place);
        }
        !self.has_no_place_to_promise()
    }

    /// Gives a connection whose handshake is complete a place in the table; false while too many wait to be told of,
    /// and the peer then finds out by sending again.
    fn promote<F: RxFrame>(
        &mut self,
        handshake: &Handshake,
        listener: u16,
        segment: &Segment,
        frame: &mut F,
    ) -> bool {
        let owner = self.listeners.listener(listener);
        let room = owner.untold < owner.backlog;
        let Some(index) = self.free.pop_if(|_| room) else {
            self.cx.counters.drops.backlog += 1;
            return false;
        };
        owner.untold += 1;
        let profile = owner.profile;
        let now = self.now;
        self.occupy(index, handshake.key, Some(listener), profile);
        self.with(index, |connection, cx| connection.accept(handshake, cx, now));
        self.at_connection(index, segment, frame);
        true
    }

    pub(super) fn forget_half_open(&mut self, place: u32) {
        if let Some(half_open) = self.listeners.get(place) {
            self.flows.remove(&half_open.handshake.key);
            self.timers.cancel(self.timer_index(TimerOf::HalfOpen(place)));
            self.listeners.remove(place);
        }
    }

    /// SYN and ACK again, or the end of a half-open connection.
    pub(super) fn expire_half_open(&mut self, place: u32) {
        let now = self.now;
        match self.listeners.expire(place, now) {
            Some(until) => {
                self.set_timer(TimerOf::HalfOpen(place), until);
                if let Some(half_open) = self.listeners.get(place) {
                    let handshake = half_open.handshake;
                    self.cx.counters.retransmits += 1;
                    self.send_syn_ack(&handshake, handshake.clock.map(|clock| clock.now(now)));
                }
            }
            None => self.forget_half_open(place),
        }
    }

    /// Says again what a connection in TIME-WAIT has received.
    pub(super) fn acknowledge_time_wait(&mut self, place: u32) {
        let now = self.now;
        let Some(entry) = self.time_waits.get(place) else { return };
        let timestamp = entry.clock.map(|clock| Timestamp { value: clock.now(now), echo: clock.recent });
        let options = Options { timestamp, ..Options::default() };
        let ack = Reply::bare(entry.key, entry.mac, entry.snd_nxt, entry.rcv_nxt, Flags::ACK);
        self.reply(Reply { options, ..ack });
    }

    pub(super) fn expire_time_wait(&mut self, place: u32) {
        let Some(entry) = self.time_waits.get(place) else { return };
        let (key, until) = (entry.key, entry.until);
        if until > self.now {
            self.set_timer(TimerOf::TimeWait(place), until);
            return;
        }
        self.flows.remove(&key);
        self.time_waits.remove(place);
    }
}
