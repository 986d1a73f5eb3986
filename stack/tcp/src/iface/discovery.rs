//! Who is where on the link: ARP (RFC 826, RFC 5227) and neighbor discovery (RFC 4861).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IPV6_LINK_LOCAL_ALL_NODES, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr,
    NdiscNeighborFlags, NdiscRepr,
};

use super::groups::{group_mac, solicited_node};
use super::packet::Packet;
use super::queue::FrameQueue;

/// What a frame says about the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Discovery {
    /// A host says where it is.
    pub neighbor: Option<Neighbor>,
    /// A host asks where another is, or whether it can have this address.
    pub question: Option<Question>,
}

/// Where a host says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbor {
    pub ip: IpAddr,
    pub mac: [u8; 6],
    /// Whether this counts more than what is known (RFC 4861, section 7.2.5).
    pub overrides: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub target: IpAddr,
    /// Who asks; unspecified for a probe whether the address is free.
    pub asker: IpAddr,
    pub mac: [u8; 6],
}

/// Reads an ARP message.
pub(super) fn arp_in(ethernet: &EthernetFrame<&[u8]>) -> Option<Discovery> {
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
    if !mac.is_unicast() || ip.is_multicast() || ip.is_broadcast() || ip.is_loopback() {
        return None;
    }
    let asks = operation == ArpOperation::Request && ip != target;
    let neighbor = Neighbor { ip: ip.into(), mac: mac.0, overrides: true };
    Some(Discovery {
        neighbor: (!ip.is_unspecified()).then_some(neighbor),
        question: asks.then_some(Question { target: target.into(), asker: ip.into(), mac: mac.0 }),
    })
}

/// Reads a neighbor advertisement or solicitation; its checksum has been found right.
pub(super) fn ndisc_in(packet: &Packet<'_>) -> Option<Discovery> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else {
        return None;
    };
    // RFC 4861, section 7.1: nothing that a router has forwarded.
    if packet.hop_limit != 255 || packet.payload.get(1) != Some(&0) {
        return None;
    }
    let icmp = Icmpv6Packet::new_checked(packet.payload).ok()?;
    let lladdr_of = |raw: &[u8]| {
        let mac = EthernetAddress(raw.try_into().ok()?);
        mac.is_unicast().then_some(mac.0)
    };
    match Icmpv6Repr::parse(&source, &destination, &icmp, &ChecksumCapabilities::ignored()).ok()? {
        Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { target_addr, lladdr, flags }) => {
            let mac = match lladdr {
                Some(raw) => lladdr_of(raw.as_bytes())?,
                None => packet.source_mac,
            };
            let overrides = flags.contains(NdiscNeighborFlags::OVERRIDE);
            let neighbor = Neighbor { ip: target_addr.into(), mac, overrides };
            let is_host = !target_addr.is_multicast() && !target_addr.is_unspecified();
            is_host.then_some(Discovery { neighbor: Some(neighbor), question: None })
        }
        Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, lladdr }) => {
            let is_probe = source.is_unspecified();
            // RFC 4861, section 7.1.1: a probe goes to the group, and does not say who asks.
            if is_probe && (lladdr.is_some() || !destination.is_multicast()) {
                return None;
            }
            let lladdr = match lladdr {
                Some(raw) => Some(lladdr_of(raw.as_bytes())?),
                None => None,
            };
            let mac = lladdr.unwrap_or(packet.source_mac);
            // RFC 4861, section 7.2.3: who asks says where it is.
            let neighbor = lladdr.map(|mac| Neighbor { ip: source.into(), mac, overrides: true });
            let question = Question { target: target_addr.into(), asker: source.into(), mac };
            Some(Discovery { neighbor, question: Some(question) })
        }
        _ => None,
    }
}

/// Queues a question for the Ethernet address of `target`: to `mac` if that is where it was, else to all. From the
/// unspecified address it is a probe whether anyone has it (RFC 5227, section 2.1.1; RFC 4862, section 5.4).
pub(super) fn ask(
    queue: &mut FrameQueue,
    own_mac: [u8; 6],
    source: IpAddr,
    target: IpAddr,
    mac: Option<[u8; 6]>,
) -> bool {
    let own_mac = EthernetAddress(own_mac);
    let mac = mac.map(EthernetAddress);
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let unknown = EthernetAddress([0; 6]);
            let request = arp(ArpOperation::Request, (own_mac, source), (unknown, target));
            push_arp(queue, own_mac, mac.unwrap_or(EthernetAddress::BROADCAST), &request)
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let group = solicited_node(&target);
            let to = mac.map_or((group_mac(&group), group), |mac| (mac, target));
            // RFC 4861, section 4.3: a probe does not say who asks, and Linux drops one that does.
            let lladdr = (!source.is_unspecified()).then(|| own_mac.into());
            let solicitation = NdiscRepr::NeighborSolicit { target_addr: target, lladdr };
            push_ndisc(queue, (own_mac, source), to, solicitation)
        }
        _ => false,
    }
}

/// Queues a question for routers, from `source` if this host has an address (RFC 4861, section 4.1).
pub(super) fn ask_for_routers(
    queue: &mut FrameQueue,
    own_mac: [u8; 6],
    source: Ipv6Addr,
    to: Ipv6Addr,
) -> bool {
    let own_mac = EthernetAddress(own_mac);
    let lladdr = (!source.is_unspecified()).then(|| own_mac.into());
    push_ndisc(queue, (own_mac, source), (group_mac(&to), to), NdiscRepr::RouterSolicit { lladdr })
}

/// Queues the answer to a question for one of the own addresses.
pub(super) fn answer(queue: &mut FrameQueue, own_mac: [u8; 6], question: &Question) -> bool {
    let (own_mac, mac) = (EthernetAddress(own_mac), EthernetAddress(question.mac));
    match (question.target, question.asker) {
        (IpAddr::V4(own), IpAddr::V4(asker)) => {
            push_arp(queue, own_mac, mac, &arp(ArpOperation::Reply, (own_mac, own), (mac, asker)))
        }
        // RFC 4861, section 7.2.4.
        (IpAddr::V6(own), IpAddr::V6(asker)) if asker.is_unspecified() => tell_all(queue, own_mac, own),
        (IpAddr::V6(own), IpAddr::V6(asker)) => {
            let flags = NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE;
            push_ndisc(queue, (own_mac, own), (mac, asker), advertisement(own, own_mac, flags))
        }
        _ => false,
    }
}

/// Queues the news that this host has `own` (RFC 5227, sections 2.3 and 2.4; RFC 4861, section 7.2.6).
pub(super) fn announce(queue: &mut FrameQueue, own_mac: [u8; 6], own: IpAddr) -> bool {
    let own_mac = EthernetAddress(own_mac);
    match own {
        IpAddr::V4(own) => {
            let unknown = EthernetAddress([0; 6]);
            let announcement = arp(ArpOperation::Request, (own_mac, own), (unknown, own));
            push_arp(queue, own_mac, EthernetAddress::BROADCAST, &announcement)
        }
        IpAddr::V6(own) => tell_all(queue, own_mac, own),
    }
}

fn tell_all(queue: &mut FrameQueue, own_mac: EthernetAddress, own: Ipv6Addr) -> bool {
    let everyone = (group_mac(&IPV6_LINK_LOCAL_ALL_NODES), IPV6_LINK_LOCAL_ALL_NODES);
    push_ndisc(queue, (own_mac, own), everyone, advertisement(own, own_mac, NdiscNeighborFlags::OVERRIDE))
}

fn advertisement(own: Ipv6Addr, own_mac: EthernetAddress, flags: NdiscNeighborFlags) -> NdiscRepr<'static> {
    NdiscRepr::NeighborAdvert { flags, target_addr: own, lladdr: Some(own_mac.into()) }
}

fn arp(
    operation: ArpOperation,
    (source_hardware_addr, source_protocol_addr): (EthernetAddress, Ipv4Addr),
    (target_hardware_addr, target_protocol_addr): (EthernetAddress, Ipv4Addr),
) -> ArpRepr {
    ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_hardware_addr,
        target_protocol_addr,
    }
}

fn push_arp(queue: &mut FrameQueue, from: EthernetAddress, to: EthernetAddress, arp: &ArpRepr) -> bool {
    let ethernet = EthernetRepr { src_addr: from, dst_addr: to, ethertype: EthernetProtocol::Arp };
    queue.push(ethernet.buffer_len() + arp.buffer_len(), |bytes| {
        let mut frame = EthernetFrame::new_unchecked(bytes);
        ethernet.emit(&mut frame);
        arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    })
}

fn push_ndisc(
    queue: &mut FrameQueue,
    (from_mac, from): (EthernetAddress, Ipv6Addr),
    (to_mac, to): (EthernetAddress, Ipv6Addr),
    message: NdiscRepr<'_>,
) -> bool {
    let message = Icmpv6Repr::Ndisc(message);
    let ethernet = EthernetRepr { src_addr: from_mac, dst_addr: to_mac, ethertype: EthernetProtocol::Ipv6 };
    let ip = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        // RFC 4861, section 7.1: what routers cannot have forwarded.
        hop_limit: 255,
    };
    queue.push(ethernet.buffer_len() + ip.buffer_len() + message.buffer_len(), |bytes| {
        let mut frame = EthernetFrame::new_unchecked(bytes);
        ethernet.emit(&mut frame);
        let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet);
        let mut icmp = Icmpv6Packet::new_unchecked(packet.payload_mut());
        message.emit(&from, &to, &mut icmp, &ChecksumCapabilities::default());
    })
}
