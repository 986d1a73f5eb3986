//! What goes out: timers that are due, answers, and the segments of the connections that have some.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use stack_net::time::Instant;

use super::{ADDRESS_PROBE_INTERVAL, ANNOUNCEMENT_INTERVAL, ANNOUNCEMENTS, Claim, Endpoint, TimerOf};
use crate::emit::Header;
use crate::frame::{FrameSink, SinkFull, TxChecksum, TxFrame};
use crate::neighbor::{Expired, Lookup};
use crate::net::CloseReason;
use crate::tcp::connection::{Happened, Outcome, State};
use crate::timer::NEVER;

/// Starved connections that one call looks at.
const STARVED_QUANTUM: usize = 32;

/// Refused applications that one call asks again: what they then queue is not yet counted.
const REFUSED_QUANTUM: usize = 32;

impl Endpoint {
    /// Sends what is due, until the sink is full; returns the number of frames.
    pub fn transmit<S: FrameSink>(&mut self, now: Instant, sink: &mut S) -> usize {
        if self.is_quiet_at(now) {
            return 0;
        }
        self.expire();
        self.feed_starved();
        self.ask_refused();
        let before = self.cx.counters.frames_out;
        // A full sink ends the call; everything not sent stays in its list.
        let _ = self.send_all(sink);
        (self.cx.counters.frames_out - before) as usize
    }

    /// Whether nothing waits for a [`transmit`](Self::transmit) and no timer is due at `now`, so that it need not be
    /// called.
    #[inline]
    pub fn is_quiet_at(&mut self, now: Instant) -> bool {
        self.now = self.now.max(now);
        let told_later = self.starved.len() | self.refused.len();
        !self.has_waiting() && told_later == 0 && !self.timers.is_due(self.now)
    }

    fn send_all<S: FrameSink>(&mut self, sink: &mut S) -> Result<(), SinkFull> {
        while let Some(frame) = self.iface.front() {
            sink.send(TxFrame {
                head: frame,
                payload: &[],
                checksum: TxChecksum::Done,
                segment_bytes: None,
            })?;
            self.iface.pop();
            self.cx.counters.frames_out += 1;
        }
        if !self.replies.is_empty() {
            self.send_replies(sink)?;
        }
        while let Some(index) = self.output.front() {
            let Self { places, cx, paths, draft, now, .. } = self;
            // Few paths take less than the link, so that the others are not burdened with it.
            let more = match places.get_mut(index as usize).map(|place| &mut place.connection) {
                Some(connection) if connection.heeds_path() => {
                    draft.send_by_path(connection, paths, *now, cx, sink)?
                }
                Some(connection) => draft.send_from(connection, *now, cx, sink)?,
                None => self.send_datagrams(sink)?,
            };
            self.output.pop_front();
            if more {
                self.output.push_back(index);
            } else {
                self.rest(index);
            }
        }
        Ok(())
    }

    fn send_replies<S: FrameSink>(&mut self, sink: &mut S) -> Result<(), SinkFull> {
        while let Some(reply) = self.replies.front() {
            let header = Header {
                key: &reply.key,
                source_mac: self.cx.config.mac,
                mac: reply.mac,
                seq: reply.seq,
                ack: reply.ack,
                flags: reply.flags,
                window: reply.window,
                options: reply.options,
                traffic_class: self.cx.config.dscp << 2,
            };
            let head = &mut self.draft.head;
            let layout = header.begin(0, head);
            let checksum = layout.complete(head, &[], self.cx.config.tx_checksum_offload);
            sink.send(TxFrame { head, payload: &[], checksum, segment_bytes: None })?;
            self.replies.pop_front();
            self.cx.counters.frames_out += 1;
            self.cx.counters.segments_out += 1;
        }
        Ok(())
    }

    /// A connection has nothing more to send just now: what will wake it is noted.
    #[inline(always)]
    fn rest(&mut self, index: u32) {
        let Some(place) = self.places.get_mut(index as usize) else {
            self.outbox_in_output = false;
            return;
        };
        place.in_output = false;
        if let Some(deadline) = place.connection.next_deadline(&self.cx)
            && deadline < place.wakes_at
        {
            place.wakes_at = deadline;
            self.timers.bring_forward(index, deadline);
        }
        if !place.in_starved && place.connection.is_starved(&self.cx) {
            place.in_starved = true;
            if self.starved.is_empty() {
                // Nobody has followed the level as long as nobody was waiting for it to change.
                self.level = self.cx.pool.level();
            }
            self.starved.push_back(index);
        }
    }

    fn expire(&mut self) {
        let now = self.now;
        while let Some(timer) = self.timers.expire(now) {
            match self.timer_of(timer) {
                TimerOf::Connection(index) => {
                    self.places[index as usize].wakes_at = NEVER;
                    let (outcome, unanswered, before) = self.with(index, |connection, cx| {
                        let before = connection.unanswered();
                        let outcome = connection.expire(now, cx);
                        (outcome, connection.unanswered(), before)
                    });
                    if outcome == Outcome::Goes && unanswered > before {
                        self.suspect_path(index);
                    }
                    if outcome == Outcome::Goes && unanswered > 0 {
                        self.doubt(index, unanswered);
                    }
                    self.conclude(index, outcome);
                }
                TimerOf::HalfOpen(place) => self.expire_half_open(place),
                TimerOf::TimeWait(place) => self.expire_time_wait(place),
                TimerOf::Neighbor(entry) => self.expire_neighbor(entry),
                TimerOf::Doubt(entry) => self.expire_doubt(entry),
                TimerOf::Claim => self.go_on_claiming(),
                TimerOf::Iface => self.expire_iface(),
            }
        }
    }

    /// Has a connection whose segments seem to be too long for its path send shorter ones.
    fn suspect_path(&mut self, index: u32) {
        let connection = &mut self.places[index as usize].connection;
        if let Some(mtu) = connection.suspects_black_hole()
            && connection.path_mtu(mtu.into())
        {
            self.cx.counters.black_holes += 1;
            self.paths.suspected(connection.key.remote_ip(), mtu, self.now);
        }
    }

    /// Tells peers whose window was closed for want of buffers that there are some again.
    fn feed_starved(&mut self) {
        if self.starved.is_empty() {
            return;
        }
        let level = self.cx.pool.level();
        if level != self.level {
            self.level = level;
            self.starved_unseen = self.starved.len();
        }
        let turn = self.starved_unseen.min(STARVED_QUANTUM);
        self.starved_unseen -= turn;
        for _ in 0..turn {
            let Some(index) = self.starved.pop_front() else { return };
            let (opened, starved) = self.with(index, |connection, cx| {
                let opened = connection.window_opened(connection.best_edge(cx));
                connection.has_taken |= opened;
                (opened, !opened && connection.is_starved(cx))
            });
            if starved {
                self.starved.push_back(index);
                continue;
            }
            self.places[index as usize].in_starved = false;
            if opened {
                self.settle(index);
            }
        }
    }

    /// Tells applications that were refused for what other connections had queued that there is room again.
    fn ask_refused(&mut self) {
        if self.refused.is_empty() || !self.cx.sending.has_room() {
            return;
        }
        for _ in 0..self.refused.len().min(REFUSED_QUANTUM) {
            let Some(index) = self.refused.pop_front() else { return };
            let place = &mut self.places[index as usize];
            place.in_refused = false;
            let connection = &mut place.connection;
            if connection.sends() && connection.wants_room.replace(false) {
                connection.events |= Happened::WRITABLE;
                self.settle(index);
            }
        }
    }

    /// A neighbor has answered: connections that waited for it send their SYN.
    pub(super) fn resolve_waiting(&mut self) {
        let mut waiting = std::mem::take(&mut self.unresolved);
        waiting.retain(|&index| {
            let connection = &self.places[index as usize].connection;
            if connection.state != State::SynSent || connection.mac.is_some() {
                return false;
            }
            let Some(next_hop) = self.next_hop(connection.key.remote_ip()) else { return true };
            let Lookup::Known(mac) = self.neighbors.find(next_hop, self.now) else { return true };
            self.places[index as usize].connection.mac = Some(mac);
            self.settle(index);
            false
        });
        self.unresolved = waiting;
    }

    /// Probes for the own addresses, and announces those that nobody else has (RFC 5227, section 2; RFC 4861,
    /// section 7.2.6).
    fn go_on_claiming(&mut self) {
        let next = match self.claim {
            Claim::Rests => return,
            Claim::Probing(left) if left > 0 => {
                for cidr in &self.local.addresses {
                    let (unspecified, own) = match IpAddr::from(cidr.address()) {
                        IpAddr::V4(own) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(own)),
                        IpAddr::V6(own) => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(own)),
                    };
                    self.iface.ask(unspecified, own, None);
                }
                (Claim::Probing(left - 1), ADDRESS_PROBE_INTERVAL)
            }
            Claim::Probing(_) => {
                self.announce_addresses();
                self.iface.claimed(self.now);
                self.attend_iface();
                (Claim::Announcing(ANNOUNCEMENTS - 1), ANNOUNCEMENT_INTERVAL)
            }
            Claim::Announcing(left) => {
                if left > 0 {
                    self.announce_addresses();
                }
                (if left > 1 { Claim::Announcing(left - 1) } else { Claim::Rests }, ANNOUNCEMENT_INTERVAL)
            }
        };
        self.claim = next.0;
        if self.claim != Claim::Rests {
            self.set_timer(TimerOf::Claim, self.now + next.1);
        }
    }

    fn announce_addresses(&mut self) {
        let contested = self.conflict.map(|conflict| conflict.ip);
        let own = self.local.addresses.iter().map(|cidr| IpAddr::from(cidr.address()));
        for own in own.filter(|own| contested != Some(*own)) {
            self.iface.announce(own);
        }
    }

    /// Sets the timer for what the interface has to do next.
    pub(super) fn attend_iface(&mut self) {
        let deadlines = [self.iface.deadline(), self.reassembly.deadline()];
        if let Some(at) = deadlines.into_iter().flatten().min() {
            let timer = self.timer_index(TimerOf::Iface);
            self.timers.bring_forward(timer, at);
        }
    }

    fn expire_iface(&mut self) {
        let Self { iface, reassembly, local, now, .. } = self;
        iface.expire(*now);
        while reassembly.expire(*now, |frame| iface.complain_of_fragments(frame, local, *now)) {}
        self.cx.counters.drops.reassembly = self.reassembly.given_up;
        self.attend_iface();
    }

    fn expire_neighbor(&mut self, entry: u32) {
        match self.neighbors.expire(entry, self.now) {
            Expired::Nothing => {}
            Expired::AskAgain { ip, until } => {
                if let Some(source) = self.local.source_for(ip) {
                    self.iface.ask(source, ip, None);
                }
                self.set_timer(TimerOf::Neighbor(entry), until);
            }
            Expired::Unreachable(ip) => {
                let next = self.iface.routers().lost(ip).then(|| self.ask_next_router()).flatten();
                let mut waiting = std::mem::take(&mut self.unresolved);
                waiting.retain(|&index| {
                    let connection = &self.places[index as usize].connection;
                    let waits = connection.state == State::SynSent && connection.mac.is_none();
                    let hop = self.next_hop(connection.key.remote_ip());
                    if waits && hop.is_some_and(|hop| hop != ip) {
                        return true;
                    }
                    if waits {
                        self.flows.remove(&self.places[index as usize].connection.key);
                        self.end(index, CloseReason::Unreachable);
                        self.settle(index);
                    }
                    false
                });
                self.unresolved = waiting;
                self.give_up_datagrams(ip);
                self.iface.routers().try_again();
                if next.is_some() {
                    self.resolve_waiting();
                }
            }
        }
    }

    /// A router does not answer: asks the link where the next one is, if there is one.
    fn ask_next_router(&mut self) -> Option<IpAddr> {
        loop {
            let router = self.iface.routers().default(self.now)?;
            match self.neighbors.find(router, self.now) {
                Lookup::Full => self.iface.routers().lost(router),
                Lookup::Ask { entry, until } => {
                    self.iface.ask(self.local.source_for(router)?, router, None);
                    self.set_timer(TimerOf::Neighbor(entry), until);
                    return Some(router);
                }
                Lookup::Known(_) | Lookup::Waiting => return Some(router),
            };
        }
    }
}
