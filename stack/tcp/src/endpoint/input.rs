//! Frames that come in, and where they belong.

use std::net::IpAddr;

use pmem::{Arena, Buffer};
use stack_net::time::Instant;

use super::{AddressConflict, CONFLICT_REPORTS, Claim, DEFENCES, Endpoint, Reply};
use crate::flow::FlowState;
use crate::frame::{self, Flags, Parsed, RxChecksum, RxFrame, Segment, Share};
use crate::icmp::{self, Complaint, IcmpError};
use crate::iface::{Heard, Neighbor, Refused};
use crate::limit::{HostRates, Rate};
use crate::net::CloseReason;
use crate::reassembly::Joined;
use crate::tcp::connection::State;
use crate::tcp::seq::Seq;
use crate::time_wait::Meaning;

/// RSTs to segments that no connection takes.
const RESETS: HostRates =
    HostRates { host: Rate::per_second(1_000, 100), all: Rate::per_second(10_000, 1_000) };

/// Answers of one connection in TIME-WAIT.
const TIME_WAIT_ANSWERS: Rate = Rate::per_second(10, 10);

impl Endpoint {
    /// Takes a frame in on the complete path, for a host of one core.
    pub fn receive<F: RxFrame>(&mut self, now: Instant, frame: &mut F) {
        let parsed = self.parse(frame);
        let _ = self.accept(now, &parsed, frame, true);
    }

    /// What a frame is.
    pub(super) fn parse<F: RxFrame>(&self, frame: &F) -> Parsed {
        if !self.cx.config.is_of_vlan(frame.vlan()) {
            return Parsed::Vlan;
        }
        frame::parse(frame.bytes(), frame.apart().len(), &self.local, frame.checksum())
    }

    /// Takes in a frame that was [parsed](Self::parse). With `is_last` no other core has a connection that a segment could
    /// belong to, so that one without a connection is refused.
    pub(super) fn accept<F: RxFrame>(
        &mut self,
        now: Instant,
        parsed: &Parsed,
        frame: &mut F,
        is_last: bool,
    ) -> Share {
        self.now = self.now.max(now);
        self.cx.counters.frames_in += 1;
        match parsed {
            Parsed::Tcp(segment) => return self.segment(segment, frame, is_last),
            Parsed::Udp(datagram) => self.datagram(datagram, frame),
            Parsed::Other | Parsed::Fragment if !frame.apart().is_empty() => {
                self.count_dropped(parsed, frame.bytes());
            }
            Parsed::Other => return self.other(frame.bytes()),
            Parsed::Fragment => return self.fragment(frame.bytes(), is_last),
            dropped => self.count_dropped(dropped, frame.bytes()),
        }
        Share::Nothing
    }

    /// Counts a frame that nobody takes.
    fn count_dropped(&mut self, parsed: &Parsed, frame: &[u8]) {
        let is_for_a_group = self.is_for_a_group(frame);
        let drops = &mut self.cx.counters.drops;
        *match parsed {
            Parsed::Truncated => &mut drops.truncated,
            Parsed::Vlan => &mut drops.vlan,
            Parsed::BadChecksum => &mut drops.checksum,
            Parsed::Address if is_for_a_group => &mut drops.group,
            Parsed::Address => &mut drops.address,
            Parsed::Malformed | Parsed::Tcp(_) | Parsed::Udp(_) | Parsed::Other | Parsed::Fragment => {
                &mut drops.malformed
            }
        } += 1;
    }

    /// Whether a frame was sent to all or to a group, by another host.
    fn is_for_a_group(&self, frame: &[u8]) -> bool {
        let Some((to, rest)) = frame.split_first_chunk::<6>() else { return false };
        to[0] & 1 != 0 && !rest.starts_with(&self.cx.config.mac)
    }

    /// Takes in a fragment, and the packet if it was the last that was missing.
    fn fragment(&mut self, frame: &[u8], is_last: bool) -> Share {
        // One that nobody has taken has its place back.
        self.take_whole(|_| {});
        let joined = self.reassembly.join(frame, &self.local, self.now);
        self.cx.counters.drops.reassembly = self.reassembly.given_up;
        let whole = match joined {
            Joined::Whole(whole) => whole,
            Joined::Waits => {
                self.attend_iface();
                return Share::Nothing;
            }
            Joined::Dropped => {
                self.cx.counters.drops.fragment += 1;
                return Share::Nothing;
            }
        };
        self.cx.counters.reassembled += 1;
        let arena = self.arena.clone();
        let mut frame = Rebuilt { bytes: whole.frame(), vlan: self.cx.config.vlan, arena: &arena };
        let parsed = self.parse(&frame);
        let mut share = Share::Nothing;
        match &parsed {
            Parsed::Tcp(segment) if segment.payload_len > arena.buffer_bytes() => {
                self.cx.counters.drops.fragment += 1;
            }
            Parsed::Tcp(segment) => {
                self.cx.counters.copied_bytes += segment.payload_len as u64;
                share = self.segment(segment, &mut frame, is_last);
            }
            Parsed::Udp(datagram) if datagram.payload_len > arena.buffer_bytes() => {
                self.cx.counters.drops.fragment += 1;
            }
            Parsed::Udp(datagram) => {
                self.cx.counters.copied_bytes += datagram.payload_len as u64;
                self.datagram(datagram, &mut frame);
            }
            Parsed::Other => share = self.other(frame.bytes),
            dropped => self.count_dropped(dropped, frame.bytes),
        }
        if share == Share::Stray {
            self.whole = Some(whole);
            return Share::StrayWhole;
        }
        self.reassembly.give_back(whole);
        // What other cores could learn lies in several frames; they get none of them.
        Share::Nothing
    }

    /// The frame that was put together from fragments when the last one came in, for [`Share::StrayWhole`].
    pub(super) fn take_whole(&mut self, take: impl FnOnce(&[u8])) {
        if let Some(whole) = self.whole.take() {
            take(whole.frame());
            self.reassembly.give_back(whole);
        }
    }

    /// Learns from a frame that another core has received and answered: where a neighbor is, that an address is
    /// taken, or what ICMP says of a connection. Answers nothing.
    pub fn learn(&mut self, now: Instant, frame: &[u8]) {
        self.now = self.now.max(now);
        let heard = self.iface.hear(frame, &self.local);
        self.heard(&heard, frame, false);
    }

    fn segment<F: RxFrame>(&mut self, segment: &Segment, frame: &mut F, is_last: bool) -> Share {
        self.cx.counters.segments_in += 1;
        self.cx.counters.partial_checksums += u64::from(segment.is_partial);
        let is_taken = match self.flows.find(&segment.key) {
            Some(FlowState::Connection(index)) => {
                self.at_connection(index, segment, frame);
                true
            }
            Some(FlowState::HalfOpen(place)) => self.at_half_open(place, segment, frame, is_last),
            Some(FlowState::TimeWait(place)) => {
                self.at_time_wait(place, segment);
                true
            }
            None => self.at_listener(segment, frame),
        };
        if is_taken {
            return Share::Nothing;
        }
        if !is_last && self.flows.may_be_elsewhere(&segment.key) {
            return Share::Stray;
        }
        self.refuse(segment);
        Share::Nothing
    }

    pub(super) fn at_connection<F: RxFrame>(&mut self, index: u32, segment: &Segment, frame: &mut F) {
        let now = self.now;
        let outcome = self.with(index, |connection, cx| connection.segment(now, segment, frame, cx));
        if self.places[index as usize].connection.mac != Some(segment.source_mac) {
            self.doubt_now(index);
        }
        self.conclude(index, outcome);
    }

    fn at_time_wait(&mut self, place: u32, segment: &Segment) {
        let Some(entry) = self.time_waits.get(place) else { return };
        let meaning = entry.judge(segment, self.now);
        match meaning {
            Meaning::Ignore => self.cx.counters.drops.unexpected += 1,
            Meaning::Disowned => entry.disowned = entry.challenged.take(),
            Meaning::Acknowledge { .. } | Meaning::Challenge => {
                if !entry.answers.allow(TIME_WAIT_ANSWERS, self.now) {
                    self.cx.counters.drops.limited += 1;
                    return;
                }
                // The peer may have moved.
                entry.mac = segment.source_mac;
                match meaning {
                    Meaning::Acknowledge { restart: true } => {
                        entry.until = self.now + self.cx.config.time_wait
                    }
                    Meaning::Challenge => entry.challenged = Some(segment.seq),
                    _ => {}
                }
                self.acknowledge_time_wait(place);
            }
            Meaning::Reuse => self.reopen(place, segment),
        }
    }

    /// Answers a segment that no connection takes (RFC 9293, section 3.10.7.1).
    pub(super) fn refuse(&mut self, segment: &Segment) {
        self.cx.counters.drops.unexpected += 1;
        if segment.flags.contains(Flags::RST) {
            return;
        }
        if !self.resets.allow(segment.key.remote_ip(), RESETS, self.now) {
            self.cx.counters.drops.limited += 1;
            return;
        }
        let (key, mac) = (segment.key, segment.source_mac);
        self.reply(if segment.flags.contains(Flags::ACK) {
            Reply::bare(key, mac, segment.ack, Seq(0), Flags::RST)
        } else {
            Reply::bare(key, mac, Seq(0), segment.seq + segment.len(), Flags::RST | Flags::ACK)
        });
    }

    /// A frame that is neither TCP nor UDP.
    fn other(&mut self, frame: &[u8]) -> Share {
        let refused = match self.iface.receive(frame, &self.local, self.now) {
            Ok(heard) => {
                self.cx.counters.other_in += 1;
                self.heard(&heard, frame, true);
                self.attend_iface();
                let is_news = self.cx.config.core.count > 1 && self.iface.is_news(&heard, self.now);
                return if is_news { Share::News } else { Share::Nothing };
            }
            Err(refused) => refused,
        };
        let is_everyday =
            matches!(refused, Refused::Address | Refused::Protocol) && self.is_for_a_group(frame);
        let drops = &mut self.cx.counters.drops;
        match refused {
            _ if is_everyday => drops.group += 1,
            Refused::Malformed => drops.malformed += 1,
            Refused::BadChecksum => drops.checksum += 1,
            Refused::Address => drops.address += 1,
            Refused::Protocol => drops.protocol += 1,
            Refused::Extension => drops.extension += 1,
            Refused::Limited => drops.other += 1,
        }
        Share::Nothing
    }

    /// Draws the consequences of what a frame has told, which this core or another has received.
    fn heard(&mut self, heard: &Heard, frame: &[u8], is_own: bool) {
        match heard {
            Heard::Nothing => {}
            Heard::Discovery(discovery) => {
                if let Some(neighbor) = &discovery.neighbor {
                    self.meet(neighbor, is_own);
                }
            }
            Heard::Router => {
                let (neighbor, mtu) = self.iface.take_router(frame, self.now);
                if let Some(mtu) = mtu {
                    self.take_link_mtu(mtu);
                }
                if let Some(neighbor) = &neighbor {
                    self.meet(neighbor, is_own);
                }
            }
            Heard::IcmpError => {
                if let Some(error) = icmp::parse(frame) {
                    self.icmp_error(&error);
                }
            }
        }
    }

    /// A router says that the link takes packets of IPv6 of this length, and no longer ones. Connections that are open keep
    /// to it from now on; shorter ones than they have begun with they go on with.
    fn take_link_mtu(&mut self, mtu: usize) {
        let before = self.cx.config.mtu_of(false);
        self.cx.config.mtu_v6 = Some(mtu);
        if mtu < before {
            self.places.iter_mut().for_each(|place| place.connection.link_mtu(mtu));
        }
    }

    /// A host says that it has an address.
    fn meet(&mut self, neighbor: &Neighbor, is_own: bool) {
        let Neighbor { ip, mac, overrides } = *neighbor;
        if self.local.has(ip) {
            if mac != self.cx.config.mac {
                self.contested(AddressConflict { ip, mac }, is_own);
            }
            return;
        }
        if overrides {
            self.hearsay.note(ip, mac, self.now);
        }
        if self.neighbors.learned(ip, mac, overrides, self.now) {
            self.resolve_waiting();
            self.resolve_datagrams(ip, mac);
        }
        if self.doubts.learned(ip, mac, overrides, self.now) {
            self.end_doubt(ip, Some(mac));
        }
    }

    /// Another host says that it has one of the own addresses (RFC 5227, section 2.4).
    fn contested(&mut self, conflict: AddressConflict, is_own: bool) {
        // A frame that another core has received is counted there.
        self.cx.counters.address_conflicts += u64::from(is_own);
        self.conflict.get_or_insert(conflict);
        if !is_own || matches!(self.claim, Claim::Probing(_)) {
            return;
        }
        if self.conflict_reports.allow(CONFLICT_REPORTS, self.now) {
            self.untold_conflict = Some(conflict);
        }
        let addresses = self.local.addresses.iter().zip(&mut self.defences);
        for (cidr, defences) in addresses {
            if IpAddr::from(cidr.address()) == conflict.ip && defences.allow(DEFENCES, self.now) {
                self.iface.announce(conflict.ip);
            }
        }
    }

    /// RFC 5927: only errors that quote a number in flight are believed.
    fn icmp_error(&mut self, error: &IcmpError) {
        let Some(FlowState::Connection(index)) = self.flows.find(&error.key) else { return };
        let connection = &mut self.places[index as usize].connection;
        if !connection.is_in_flight(error.seq) {
            return;
        }
        match error.what {
            Complaint::TooBig(mtu) => {
                let told = u16::try_from(mtu).unwrap_or(u16::MAX);
                let destination = error.key.remote_ip();
                if connection.path_mtu(mtu) {
                    self.paths.narrowed(destination, told, self.now);
                    self.settle(index);
                } else if let Some(path) = self.paths.find(destination, self.now) {
                    path.told(&error.key, told);
                }
            }
            // Soft for anything but a connection that has never been answered (RFC 5461, section 3.1 is about
            // hosts with several addresses, which is why an opening one may give up at once).
            Complaint::Unreachable if connection.state == State::SynSent => {
                self.flows.remove(&error.key);
                self.end(index, CloseReason::Unreachable);
                self.settle(index);
            }
            Complaint::Unreachable => {}
        }
    }
}

/// A frame that was put together from fragments. Its payload is copied into a named buffer.
struct Rebuilt<'a> {
    bytes: &'a [u8],
    /// That of its fragments.
    vlan: Option<u16>,
    arena: &'a Arena,
}

impl RxFrame for Rebuilt<'_> {
    fn bytes(&self) -> &[u8] {
        self.bytes
    }

    fn checksum(&self) -> RxChecksum {
        RxChecksum::Unknown
    }

    fn vlan(&self) -> Option<u16> {
        self.vlan
    }

    fn claim(&mut self, at: usize) -> Option<(Buffer, usize)> {
        let mut buffer = self.arena.take()?;
        buffer.arrive(0, self.bytes.get(at..)?).then_some((buffer, 0))
    }
}
