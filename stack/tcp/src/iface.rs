//! Everything that is neither TCP nor UDP: ARP, neighbor discovery, ICMP, and what groups this host is in.
//!
//! Who asks is answered where the frame came from, as peers of connections are, so that an answer never waits for
//! another question. Each kind of frame has limits and a queue of its own: a flood of one kind takes nothing from
//! the others, and frames that are not for this host take from none.

mod discovery;
mod groups;
mod icmp;
mod packet;
mod queue;
mod routers;

use std::hash::Hasher as _;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol};
use stack_net::time::Instant;

use crate::config::{Config, ETHERNET_HEADER_BYTES};
use crate::extensions::Refusal;
use crate::frame::Local;
use crate::limit::{Rate, RateLimit};
use groups::Groups;
use icmp::Problem;
use packet::{NoPacket, Packet, Way};
use queue::FrameQueue;
use routers::{Advertisement, Routers};

pub(crate) use discovery::{Discovery, Neighbor};

/// Answers to neighbors, of each IP version.
const DISCOVERY: Rate = Rate::per_second(100_000, 512);

/// Answers to pings, of each IP version: a flood ping, but not a flood.
const ECHO: Rate = Rate::per_second(100_000, 512);

/// ICMP errors of each kind and IP version (RFC 1812, section 4.3.2.8).
const ERRORS: Rate = Rate::per_second(100, 50);

/// What routers say of themselves: some times in a minute.
const ADVERTISEMENTS: Rate = Rate::per_second(10, 20);

/// Frames that other cores are told of, neighbors' and routers' apart.
const NEWS: Rate = Rate::per_second(10_000, 64);

/// Frames that wait for the device, in the order in which they leave.
#[derive(Clone, Copy)]
enum Class {
    /// What this host says unasked: questions, announcements and reports.
    Own,
    Arp,
    Ndisc,
    Error,
    Echo,
}

const CLASSES: usize = 5;

/// Places for echo replies that long ones, in many frames, leave free.
const SHORT_ECHOES: usize = 64;

/// What a frame has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing that is of interest elsewhere; if there was something to answer, it is answered.
    Nothing,
    Discovery(Discovery),
    /// A router speaks.
    Router,
    /// What ICMP says may be about a connection.
    IcmpError,
}

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Malformed,
    BadChecksum,
    /// Not for this host, or from where no host is.
    Address,
    /// Of a protocol, or to a port, that nobody here speaks.
    Protocol,
    /// Extension headers that cannot be served.
    Extension,
    /// Too many of its kind.
    Limited,
}

/// The answers of one host.
pub(crate) struct Iface {
    own_mac: [u8; 6],
    mtu: usize,
    mtu_v6: usize,
    queues: [FrameQueue; CLASSES],
    groups: Groups,
    routers: Routers,
    limits: Limits,
    secret: [u8; 16],
    drawn: u64,
    ident: u16,
}

/// Each for both IP versions.
struct Limits {
    discovery: [RateLimit; 2],
    echo: [RateLimit; 2],
    /// Unreachable ports and protocols, parameter problems, and fragments that did not come.
    errors: [[RateLimit; 2]; 3],
    news: [RateLimit; 2],
    routers: RateLimit,
}

impl Iface {
    pub(crate) fn new(config: &Config, local: &Local) -> Self {
        let pair = [RateLimit::new(); 2];
        let queue = |class| match class {
            Class::Own => FrameQueue::new(128, groups::MAX_REPORT_FRAME_BYTES),
            Class::Arp | Class::Ndisc => FrameQueue::new(64, 128),
            Class::Error => FrameQueue::new(32, icmp::MAX_ERROR_FRAME_BYTES),
            Class::Echo => FrameQueue::new(2 * SHORT_ECHOES, config.mtu + ETHERNET_HEADER_BYTES),
        };
        Self {
            own_mac: config.mac,
            mtu: config.mtu,
            mtu_v6: config.mtu_v6.unwrap_or(config.mtu),
            queues: [Class::Own, Class::Arp, Class::Ndisc, Class::Error, Class::Echo].map(queue),
            groups: Groups::new(local),
            routers: Routers::new(config.gateway_v6.is_none() && local.has_v6()),
            limits: Limits {
                discovery: pair,
                echo: pair,
                errors: [pair; 3],
                news: pair,
                routers: RateLimit::new(),
            },
            // Another key than for sequence numbers.
            secret: config.isn_secret.map(|byte| byte ^ 0x69),
            drawn: 0,
            ident: 0,
        }
    }

    /// Takes in a frame, and answers it if there is something to answer.
    pub(crate) fn receive(&mut self, frame: &[u8], local: &Local, now: Instant) -> Result<Heard, Refused> {
        let ethernet = EthernetFrame::new_checked(frame).map_err(|_| Refused::Malformed)?;
        let (source, destination) = (ethernet.src_addr(), ethernet.dst_addr());
        let is_for_us =
            destination.is_multicast() || destination.is_broadcast() || destination.0 == self.own_mac;
        // What comes back to its sender was answered by nobody.
        if !source.is_unicast() || source.0 == self.own_mac || !is_for_us {
            return Err(Refused::Address);
        }
        if ethernet.ethertype() == EthernetProtocol::Arp {
            let discovery = discovery::arp_in(&ethernet).ok_or(Refused::Malformed)?;
            return self.discovered(discovery, local, now);
        }
        match packet::parse(&ethernet) {
            Err(NoPacket::NotIp) => Err(Refused::Protocol),
            Err(NoPacket::Malformed) => Err(Refused::Malformed),
            Err(NoPacket::BadChecksum) => Err(Refused::BadChecksum),
            Ok((packet, Some(refusal))) => self.refuse(&packet, refusal, local, now),
            Ok((packet, None)) => self.packet(&packet, local, now),
        }
    }

    /// What a frame says that another core has answered.
    pub(crate) fn hear(&self, frame: &[u8], local: &Local) -> Heard {
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return Heard::Nothing };
        if ethernet.ethertype() == EthernetProtocol::Arp {
            return discovery::arp_in(&ethernet).map_or(Heard::Nothing, Heard::Discovery);
        }
        match packet::parse(&ethernet) {
            Ok((packet, None)) if is_icmp(&packet) && packet::is_icmp_right(&packet) => {
                match discovery::ndisc_in(&packet) {
                    Some(discovery) => Heard::Discovery(discovery),
                    None if routers::parse(&packet).is_some() => Heard::Router,
                    None if icmp::is_error(&packet) && self.is_to_us(&packet, local) => Heard::IcmpError,
                    None => Heard::Nothing,
                }
            }
            _ => Heard::Nothing,
        }
    }

    /// Whether other cores are to be told of what was heard.
    pub(crate) fn is_news(&mut self, heard: &Heard, now: Instant) -> bool {
        match heard {
            Heard::Nothing | Heard::Discovery(Discovery { neighbor: None, .. }) => false,
            Heard::Discovery(_) | Heard::Router => self.limits.news[0].allow(NEWS, now),
            Heard::IcmpError => self.limits.news[1].allow(NEWS, now),
        }
    }

    fn packet(&mut self, packet: &Packet<'_>, local: &Local, now: Instant) -> Result<Heard, Refused> {
        let is_icmp = is_icmp(packet);
        if is_icmp && !packet::is_icmp_right(packet) {
            return Err(Refused::BadChecksum);
        }
        if is_icmp && packet.source.is_ipv6() {
            match packet.payload.first() {
                // Solicitations and advertisements.
                Some(135 | 136) => {
                    self.check_ndisc_addresses(packet, local)?;
                    let discovery = discovery::ndisc_in(packet).ok_or(Refused::Malformed)?;
                    return self.discovered(discovery, local, now);
                }
                Some(&routers::ADVERTISEMENT) => {
                    self.check_ndisc_addresses(packet, local)?;
                    routers::parse(packet).ok_or(Refused::Malformed)?;
                    let is_allowed = self.limits.routers.allow(ADVERTISEMENTS, now);
                    return if is_allowed { Ok(Heard::Router) } else { Err(Refused::Limited) };
                }
                Some(130) => {
                    let chance = self.chance();
                    let is_taken = self.groups.query(packet, chance, now);
                    return if is_taken { Ok(Heard::Nothing) } else { Err(Refused::Malformed) };
                }
                _ => {}
            }
        }
        // Pings to all are not answered (RFC 1122, section 3.2.2.6): with a forged source they would flood it.
        if !self.is_to_us(packet, local) {
            return Err(Refused::Address);
        }
        if !is_icmp {
            return self.unclaimed(packet, local, now);
        }
        if icmp::is_echo_request(packet) {
            return self.echo(packet, now);
        }
        Ok(if icmp::is_error(packet) { Heard::IcmpError } else { Heard::Nothing })
    }

    /// Whether a packet is from one host, to this one alone.
    fn is_to_us(&self, packet: &Packet<'_>, local: &Local) -> bool {
        packet.destination_mac == self.own_mac
            && local.has(packet.destination)
            && local.is_peer(packet.source)
    }

    /// Takes in what a router says, as was [heard](Heard::Router): where it is, and how long packets of IPv6 may be, if it says
    /// so.
    pub(crate) fn take_router(&mut self, frame: &[u8], now: Instant) -> (Option<Neighbor>, Option<usize>) {
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return (None, None) };
        let Ok((packet, _)) = packet::parse(&ethernet) else { return (None, None) };
        let Some(said) = routers::parse(&packet) else { return (None, None) };
        self.routers.take(&said, now);
        let Advertisement { router, mac, .. } = said;
        let neighbor = mac.map(|mac| Neighbor { ip: router.into(), mac, overrides: true });
        let mtu = said.mtu(self.mtu);
        self.mtu_v6 = mtu.unwrap_or(self.mtu_v6);
        (neighbor, mtu)
    }

    /// What routers have said of themselves.
    pub(crate) fn routers(&mut self) -> &mut Routers {
        &mut self.routers
    }

    /// The host that gets a packet for `remote` first, as routers say.
    pub(crate) fn next_hop(&self, remote: IpAddr, now: Instant) -> Option<IpAddr> {
        self.routers.next_hop(remote, now)
    }

    /// Neighbor discovery goes to this host, to a group in which it is asked for, or to all.
    fn check_ndisc_addresses(&self, packet: &Packet<'_>, local: &Local) -> Result<(), Refused> {
        let IpAddr::V6(destination) = packet.destination else { return Err(Refused::Address) };
        let all_nodes = smoltcp::wire::IPV6_LINK_LOCAL_ALL_NODES;
        let is_for_us =
            local.has(packet.destination) || self.groups.has(&destination) || destination == all_nodes;
        let is_from_host = packet.source.is_unspecified() || local.is_peer(packet.source);
        // Our own address as a source is a sign of a conflict, and no reason to look away.
        let is_from_host = is_from_host || local.has(packet.source);
        if is_for_us && is_from_host { Ok(()) } else { Err(Refused::Address) }
    }

    fn discovered(&mut self, discovery: Discovery, local: &Local, now: Instant) -> Result<Heard, Refused> {
        if let Some(question) = &discovery.question
            && local.has(question.target)
            && question.mac != self.own_mac
            && (question.asker.is_unspecified() || local.is_peer(question.asker))
        {
            let is_v6 = question.target.is_ipv6();
            let class = if is_v6 { Class::Ndisc } else { Class::Arp };
            let is_allowed = self.limits.discovery[usize::from(is_v6)].allow(DISCOVERY, now);
            if !is_allowed || !discovery::answer(&mut self.queues[class as usize], self.own_mac, question) {
                return Err(Refused::Limited);
            }
        }
        Ok(Heard::Discovery(discovery))
    }

    fn echo(&mut self, request: &Packet<'_>, now: Instant) -> Result<Heard, Refused> {
        let way = self.way_back(request, request.destination);
        let is_v6 = request.source.is_ipv6();
        let mtu = if is_v6 { self.mtu_v6 } else { self.mtu };
        let frames = request.payload.len().div_ceil(mtu);
        let queue = &self.queues[Class::Echo as usize];
        let has_room = queue.room() > if frames > 1 { SHORT_ECHOES } else { 0 };
        if !has_room || !self.limits.echo[usize::from(is_v6)].allow(ECHO, now) {
            return Err(Refused::Limited);
        }
        let ident = self.ident(is_v6);
        let queue = &mut self.queues[Class::Echo as usize];
        let is_queued = icmp::echo(queue, request, way, mtu, ident);
        if is_queued { Ok(Heard::Nothing) } else { Err(Refused::Limited) }
    }

    /// A packet of a protocol that is not spoken here.
    fn unclaimed(&mut self, packet: &Packet<'_>, local: &Local, now: Instant) -> Result<Heard, Refused> {
        match packet.protocol {
            // TCP and UDP come here if they were not well-formed; what has no next header asks for nothing.
            IpProtocol::Tcp | IpProtocol::Udp | IpProtocol::Ipv6NoNxt => {}
            _ => self.complain(packet, Problem::Protocol { named_at: packet.named_at }, local, now),
        }
        Err(Refused::Protocol)
    }

    /// Extension headers that were not read to their end.
    fn refuse(
        &mut self,
        packet: &Packet<'_>,
        refusal: Refusal,
        local: &Local,
        now: Instant,
    ) -> Result<Heard, Refused> {
        let IpAddr::V6(destination) = packet.destination else { return Err(Refused::Malformed) };
        let all_nodes = smoltcp::wire::IPV6_LINK_LOCAL_ALL_NODES;
        let is_to_group = destination == all_nodes || self.groups.has(&destination);
        let is_to_us = self.is_to_us(packet, local);
        if !is_to_us && !is_to_group {
            return Err(Refused::Address);
        }
        match refusal {
            Refusal::Malformed => return Err(Refused::Malformed),
            Refusal::Silent => {}
            Refusal::Problem { code, pointer, to_groups } => {
                if is_to_us || to_groups {
                    self.complain(packet, Problem::Field { code, pointer }, local, now);
                }
            }
        }
        Err(Refused::Extension)
    }

    /// Answers a packet by an error, unless there have been too many, or the packet is one itself.
    fn complain(&mut self, packet: &Packet<'_>, problem: Problem, local: &Local, now: Instant) {
        if !icmp::may_be_complained_of(packet) || !local.is_peer(packet.source) {
            return;
        }
        let source = if local.has(packet.destination) {
            packet.destination
        } else {
            match local.source_for(packet.source) {
                Some(source) => source,
                None => return,
            }
        };
        let way = self.way_back(packet, source);
        self.send_error(packet.bytes, way, problem, now);
    }

    /// Tells the sender of a datagram, which `frame` carries, that nobody has the port.
    pub(crate) fn refuse_port(&mut self, frame: &[u8], local: &Local, now: Instant) {
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return };
        if let Ok((packet, None)) = packet::parse(&ethernet) {
            self.complain(&packet, Problem::Port, local, now);
        }
    }

    /// Tells the sender that the rest of a packet, of which `frame` is the beginning, has not come in time.
    pub(crate) fn complain_of_fragments(&mut self, frame: &[u8], local: &Local, now: Instant) {
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return };
        let Ok((packet, None)) = packet::parse(&ethernet) else { return };
        if self.is_to_us(&packet, local) {
            self.complain(&packet, Problem::Incomplete, local, now);
        }
    }

    fn send_error(&mut self, quoted: &[u8], way: Way, problem: Problem, now: Instant) {
        let is_v6 = way.source.is_ipv6();
        let kind = match problem {
            Problem::Port | Problem::Protocol { .. } => 0,
            Problem::Field { .. } => 1,
            Problem::Incomplete => 2,
        };
        if self.limits.errors[kind][usize::from(is_v6)].allow(ERRORS, now) {
            let ident = self.ident(is_v6);
            icmp::error(&mut self.queues[Class::Error as usize], quoted, way, problem, ident);
        }
    }

    fn way_back(&self, packet: &Packet<'_>, source: IpAddr) -> Way {
        Way { own_mac: self.own_mac, mac: packet.source_mac, source, destination: packet.source }
    }

    /// Asks the link for the Ethernet address of `target`, from `source`: first who had it, if `mac` says so, or all;
    /// lost if the queue is full. From the unspecified address it is a probe whether anyone has it.
    pub(crate) fn ask(&mut self, source: IpAddr, target: IpAddr, mac: Option<[u8; 6]>) {
        discovery::ask(&mut self.queues[Class::Own as usize], self.own_mac, source, target, mac);
    }

    /// Tells all neighbors that this host has `own`.
    pub(crate) fn announce(&mut self, own: IpAddr) {
        discovery::announce(&mut self.queues[Class::Own as usize], self.own_mac, own);
    }

    /// The host has come to the link: it says in which groups it is.
    pub(crate) fn join_groups(&mut self, now: Instant) {
        self.groups.join(now);
    }

    /// Nobody else has said that it has one of the addresses: routers may know the host by them.
    pub(crate) fn claimed(&mut self, now: Instant) {
        self.groups.claimed(now);
        let chance = self.chance();
        self.routers.begin(chance, now);
    }

    /// When there is a report to be made, or routers to be asked for.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.groups.deadline().into_iter().chain(self.routers.deadline()).min()
    }

    /// Makes the reports that are due, and asks for routers.
    pub(crate) fn expire(&mut self, now: Instant) {
        let chance = self.chance();
        let queue = &mut self.queues[Class::Own as usize];
        self.groups.report(queue, self.own_mac, chance, now);
        self.routers.solicit(queue, self.own_mac, self.groups.source(), now);
    }

    /// How many frames wait.
    #[inline]
    pub(crate) fn waiting(&self) -> usize {
        self.queues.iter().map(FrameQueue::len).sum()
    }

    /// The oldest frame of the first class that has any.
    pub(crate) fn front(&self) -> Option<&[u8]> {
        self.queues.iter().find_map(FrameQueue::front)
    }

    /// Drops the frame that [`front`](Self::front) gave: it is sent.
    pub(crate) fn pop(&mut self) {
        if let Some(queue) = self.queues.iter_mut().find(|queue| queue.front().is_some()) {
            queue.pop();
        }
    }

    /// What others cannot foretell.
    fn chance(&mut self) -> u32 {
        self.drawn += 1;
        let mut hasher = SipHasher13::new_with_key(&self.secret);
        hasher.write_u64(self.drawn);
        hasher.finish() as u32
    }

    /// The identification of a packet (RFC 6864; RFC 7739 on why IPv6's is not counted).
    fn ident(&mut self, is_v6: bool) -> u32 {
        if is_v6 {
            return self.chance();
        }
        self.ident = self.ident.wrapping_add(1);
        self.ident.into()
    }
}

impl std::fmt::Debug for Iface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Iface").field("groups", &self.groups).finish_non_exhaustive()
    }
}

fn is_icmp(packet: &Packet<'_>) -> bool {
    match packet.source {
        IpAddr::V4(_) => packet.protocol == IpProtocol::Icmp,
        IpAddr::V6(_) => packet.protocol == IpProtocol::Icmpv6,
    }
}
