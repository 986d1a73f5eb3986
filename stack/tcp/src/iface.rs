//! Everything that is not TCP: ARP, neighbor discovery and ICMP run on smoltcp's interface, which gets those
//! frames and whose answers wait in a bounded queue. There also wait the queries for neighbors.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::iface::{Config as IfaceConfig, Interface, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    HardwareAddress, IPV6_LINK_LOCAL_ALL_NODES, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr,
    NdiscNeighborFlags, NdiscRepr,
};

use crate::config::{Config, ETHERNET_HEADER_BYTES};
use crate::limit::{Rate, RateLimit};

/// Answers and queries that wait for the device.
const QUEUE_FRAMES: usize = 64;

/// Frames that the interface looks at: a flood ping, but not a flood.
const FRAMES: Rate = Rate::per_second(100_000, 512);

/// What could be answered by an ICMP error (RFC 1812, section 4.3.2.8).
const ERRORS: Rate = Rate::per_second(100, 50);

/// smoltcp's interface and the frames it sends.
pub(crate) struct Iface {
    interface: Interface,
    sockets: SocketSet<'static>,
    queue: FrameQueue,
    /// Where answers go that another core has given: nowhere.
    void: FrameQueue,
    frames: RateLimit,
    errors: RateLimit,
    mtu: usize,
}

impl Iface {
    pub(crate) fn new(config: &Config, now: Instant) -> Self {
        let mac = HardwareAddress::Ethernet(EthernetAddress(config.mac));
        let mut settings = IfaceConfig::new(mac);
        settings.random_seed = u64::from_le_bytes(std::array::from_fn(|i| config.isn_secret[i]));
        let mut queue = FrameQueue::new(QUEUE_FRAMES, config.mtu + ETHERNET_HEADER_BYTES);
        let mut port = Port { frame: None, queue: &mut queue, mtu: config.mtu };
        let mut interface = Interface::new(settings, &mut port, now);
        interface.update_ip_addrs(|addresses| {
            // `Config::check` keeps to the number that smoltcp is built for.
            for &cidr in &config.addresses {
                let _ = addresses.push(cidr);
            }
        });
        if let Some(gateway) = config.gateway_v4 {
            let _ = interface.routes_mut().add_default_ipv4_route(gateway);
        }
        if let Some(gateway) = config.gateway_v6 {
            let _ = interface.routes_mut().add_default_ipv6_route(gateway);
        }
        let sockets = SocketSet::new(Vec::new());
        let (frames, errors) = (RateLimit::new(), RateLimit::new());
        let void = FrameQueue::new(0, config.mtu + ETHERNET_HEADER_BYTES);
        Self { interface, sockets, queue, void, frames, errors, mtu: config.mtu }
    }

    /// Lets the interface look at a frame; false if there were too many.
    pub(crate) fn receive(&mut self, frame: &[u8], now: Instant) -> bool {
        let frame_limit = &mut self.frames;
        if !frame_limit.allow(FRAMES, now) || (may_cause_error(frame) && !self.errors.allow(ERRORS, now)) {
            return false;
        }
        let mut port = Port { frame: Some(frame), queue: &mut self.queue, mtu: self.mtu };
        self.interface.poll_ingress_single(now, &mut port, &mut self.sockets);
        true
    }

    /// Lets the interface learn from a frame that another core has answered.
    pub(crate) fn learn(&mut self, frame: &[u8], now: Instant) {
        if self.frames.allow(FRAMES, now) {
            let mut port = Port { frame: Some(frame), queue: &mut self.void, mtu: self.mtu };
            self.interface.poll_ingress_single(now, &mut port, &mut self.sockets);
        }
    }

    /// Asks the link for the Ethernet address of `target`, from `source`; lost if the queue is full. From the
    /// unspecified address it is a probe whether anyone has it (RFC 5227, section 2.1.1; RFC 4862, section 5.4).
    pub(crate) fn ask(&mut self, source: IpAddr, source_mac: [u8; 6], target: IpAddr) {
        let mac = EthernetAddress(source_mac);
        match (source, target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let request = ArpRepr::EthernetIpv4 {
                    operation: ArpOperation::Request,
                    source_hardware_addr: mac,
                    source_protocol_addr: source,
                    target_hardware_addr: EthernetAddress([0; 6]),
                    target_protocol_addr: target,
                };
                self.push_arp(mac, EthernetAddress::BROADCAST, &request);
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => self.solicit(source, mac, target),
            _ => {}
        }
    }

    /// A neighbor solicitation (RFC 4861, section 4.3).
    fn solicit(&mut self, source: Ipv6Addr, mac: EthernetAddress, target: Ipv6Addr) {
        let [.., x, y, z] = target.octets();
        let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
        // RFC 4861, section 4.3: a probe does not say who asks, and Linux drops one that does.
        let lladdr = (!source.is_unspecified()).then(|| mac.into());
        let solicitation = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr: target, lladdr });
        let group_mac = EthernetAddress([0x33, 0x33, 0xff, x, y, z]);
        self.push_ndisc((mac, source), (group_mac, group), &solicitation);
    }

    /// Answers a probe for one of the own addresses (RFC 5227, section 2.5; RFC 4862, section 5.4.3), which
    /// names no sender and which smoltcp therefore drops.
    pub(crate) fn defend(&mut self, own_mac: [u8; 6], probe: &Probe) {
        let mac = EthernetAddress(own_mac);
        match probe.target {
            IpAddr::V4(own) => {
                let reply = ArpRepr::EthernetIpv4 {
                    operation: ArpOperation::Reply,
                    source_hardware_addr: mac,
                    source_protocol_addr: own,
                    target_hardware_addr: EthernetAddress(probe.mac),
                    target_protocol_addr: Ipv4Addr::UNSPECIFIED,
                };
                self.push_arp(mac, EthernetAddress(probe.mac), &reply);
            }
            IpAddr::V6(own) => {
                let advertisement = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
                    flags: NdiscNeighborFlags::OVERRIDE,
                    target_addr: own,
                    lladdr: Some(mac.into()),
                });
                let everyone = EthernetAddress([0x33, 0x33, 0, 0, 0, 1]);
                self.push_ndisc((mac, own), (everyone, IPV6_LINK_LOCAL_ALL_NODES), &advertisement);
            }
        }
    }

    fn push_arp(&mut self, from: EthernetAddress, to: EthernetAddress, arp: &ArpRepr) {
        let ethernet = EthernetRepr { src_addr: from, dst_addr: to, ethertype: EthernetProtocol::Arp };
        self.queue.push(ethernet.buffer_len() + arp.buffer_len(), |bytes| {
            let mut frame = EthernetFrame::new_unchecked(bytes);
            ethernet.emit(&mut frame);
            arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        });
    }

    fn push_ndisc(
        &mut self,
        (from_mac, from): (EthernetAddress, Ipv6Addr),
        (to_mac, to): (EthernetAddress, Ipv6Addr),
        message: &Icmpv6Repr<'_>,
    ) {
        let ethernet =
            EthernetRepr { src_addr: from_mac, dst_addr: to_mac, ethertype: EthernetProtocol::Ipv6 };
        let ip = Ipv6Repr {
            src_addr: from,
            dst_addr: to,
            next_header: IpProtocol::Icmpv6,
            payload_len: message.buffer_len(),
            // RFC 4861, section 7.1: what routers cannot have forwarded.
            hop_limit: 255,
        };
        self.queue.push(ethernet.buffer_len() + ip.buffer_len() + message.buffer_len(), |bytes| {
            let mut frame = EthernetFrame::new_unchecked(bytes);
            ethernet.emit(&mut frame);
            let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
            ip.emit(&mut packet);
            let mut icmp = Icmpv6Packet::new_unchecked(packet.payload_mut());
            message.emit(&from, &to, &mut icmp, &ChecksumCapabilities::default());
        });
    }

    /// The oldest frame that waits to be sent.
    pub(crate) fn front(&self) -> Option<&[u8]> {
        self.queue.front()
    }

    /// Drops the frame that [`front`](Self::front) gave: it is sent.
    pub(crate) fn pop(&mut self) {
        self.queue.pop();
    }
}

impl std::fmt::Debug for Iface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Iface").field("queued", &self.queue.len).finish_non_exhaustive()
    }
}

/// Whether a frame is something else than ARP and ICMP.
fn may_cause_error(frame: &[u8]) -> bool {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return false };
    let protocol_at = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => 9,
        EthernetProtocol::Ipv6 => 6,
        _ => return false,
    };
    let protocol = ethernet.payload().get(protocol_at).copied().map(IpProtocol::from);
    !matches!(protocol, Some(IpProtocol::Icmp | IpProtocol::Icmpv6))
}

/// What a frame of ARP or neighbor discovery says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discovery {
    /// A host has this address.
    Neighbor { ip: IpAddr, mac: [u8; 6] },
    /// A host asks whether it can have this address.
    Probe(Probe),
}

/// A probe for an address, and who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub target: IpAddr,
    pub mac: [u8; 6],
}

/// Reads ARP, neighbor advertisements and solicitations.
pub(crate) fn discovery_in(frame: &[u8]) -> Option<Discovery> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let source_mac = ethernet.src_addr();
    if !source_mac.is_unicast() {
        return None;
    }
    match ethernet.ethertype() {
        EthernetProtocol::Arp => {
            let arp = ArpRepr::parse(&ArpPacket::new_checked(ethernet.payload()).ok()?).ok()?;
            let ArpRepr::EthernetIpv4 {
                operation,
                source_hardware_addr: mac,
                source_protocol_addr: ip,
                target_protocol_addr: target,
                ..
            } = arp
            else {
                return None;
            };
            if ip.is_unspecified() && operation == ArpOperation::Request {
                return Some(Discovery::Probe(Probe { target: target.into(), mac: source_mac.0 }));
            }
            mac.is_unicast().then_some(Discovery::Neighbor { ip: ip.into(), mac: mac.0 })
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
            // RFC 4861, section 7.1: nothing that a router has forwarded.
            if packet.next_header() != IpProtocol::Icmpv6 || packet.hop_limit() != 255 {
                return None;
            }
            let icmp = Icmpv6Packet::new_checked(packet.payload()).ok()?;
            let (source, destination) = (packet.src_addr(), packet.dst_addr());
            match Icmpv6Repr::parse(&source, &destination, &icmp, &ChecksumCapabilities::default()).ok()? {
                Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { target_addr, lladdr, .. }) => {
                    let mac = match lladdr {
                        Some(raw) => EthernetAddress(raw.as_bytes().try_into().ok()?),
                        None => source_mac,
                    };
                    mac.is_unicast().then_some(Discovery::Neighbor { ip: target_addr.into(), mac: mac.0 })
                }
                Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. })
                    if source.is_unspecified() =>
                {
                    Some(Discovery::Probe(Probe { target: target_addr.into(), mac: source_mac.0 }))
                }
                // RFC 4861, section 7.2.3: who asks says where it is.
                Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { lladdr: Some(raw), .. }) => {
                    let mac = EthernetAddress(raw.as_bytes().try_into().ok()?);
                    mac.is_unicast().then_some(Discovery::Neighbor { ip: source.into(), mac: mac.0 })
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// A ring of frames in memory taken at the start.
#[derive(Debug)]
struct FrameQueue {
    /// One more than the ring holds: there is always one to write to.
    frames: Box<[Vec<u8>]>,
    first: usize,
    len: usize,
}

impl FrameQueue {
    fn new(frames: usize, frame_bytes: usize) -> Self {
        Self { frames: (0..=frames).map(|_| Vec::with_capacity(frame_bytes)).collect(), first: 0, len: 0 }
    }

    fn is_full(&self) -> bool {
        self.len + 1 == self.frames.len()
    }

    /// Adds a frame that `write` fills in; it is lost if there is no room.
    fn push<R>(&mut self, bytes: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        let at = (self.first + self.len) % self.frames.len();
        let frame = &mut self.frames[at];
        frame.clear();
        frame.resize(bytes, 0);
        let written = write(frame);
        if !self.is_full() {
            self.len += 1;
        }
        written
    }

    fn front(&self) -> Option<&[u8]> {
        (self.len > 0).then(|| &self.frames[self.first][..])
    }

    fn pop(&mut self) {
        if self.len > 0 {
            self.first = (self.first + 1) % self.frames.len();
            self.len -= 1;
        }
    }
}

/// The device that smoltcp sees: one frame in, and the queue out.
struct Port<'a> {
    frame: Option<&'a [u8]>,
    queue: &'a mut FrameQueue,
    mtu: usize,
}

struct Rx<'a>(&'a [u8]);

struct Tx<'a>(&'a mut FrameQueue);

impl Device for Port<'_> {
    type RxToken<'a>
        = Rx<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Tx<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        Some((Rx(self.frame.take()?), Tx(self.queue)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Tx<'_>> {
        (!self.queue.is_full()).then_some(Tx(self.queue))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + ETHERNET_HEADER_BYTES;
        capabilities
    }
}

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.push(len, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iface() -> Iface {
        let addresses = vec!["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()];
        Iface::new(&Config::with_secret([2, 0, 0, 0, 0, 2], addresses, [1; 16]), Instant::ZERO)
    }

    #[test]
    fn a_host_answers_what_another_asks_for() {
        let (ours, theirs) = ([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 9]);
        for (source, target) in [("10.0.0.9", "10.0.0.2"), ("fd00::9", "fd00::2")] {
            let mut asking = iface();
            let target: IpAddr = target.parse().unwrap();
            asking.ask(source.parse().unwrap(), theirs, target);
            let question = asking.front().unwrap().to_vec();
            let mut answering = iface();
            assert!(answering.receive(&question, Instant::ZERO));
            let answer = discovery_in(answering.front().unwrap());
            assert_eq!(answer, Some(Discovery::Neighbor { ip: target, mac: ours }));
        }
    }

    #[test]
    fn a_probe_is_recognized_and_answered() {
        let (ours, theirs) = ([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 9]);
        for (own, unspecified) in [("10.0.0.2", "0.0.0.0"), ("fd00::2", "::")] {
            let mut iface = iface();
            let own = own.parse().unwrap();
            iface.ask(unspecified.parse().unwrap(), theirs, own);
            let probe = Probe { target: own, mac: theirs };
            assert_eq!(discovery_in(iface.front().unwrap()), Some(Discovery::Probe(probe)));
            iface.pop();
            iface.defend(ours, &probe);
            let answer = discovery_in(iface.front().unwrap());
            assert_eq!(answer, Some(Discovery::Neighbor { ip: own, mac: ours }));
        }
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut iface = iface();
        for _ in 0..10 * QUEUE_FRAMES {
            iface.ask("10.0.0.2".parse().unwrap(), [2; 6], "10.0.0.3".parse().unwrap());
        }
        let mut frames = 0;
        while iface.front().is_some() {
            iface.pop();
            frames += 1;
        }
        assert_eq!(frames, QUEUE_FRAMES);
    }
}
