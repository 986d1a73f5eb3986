//! IP packets that do not carry TCP, as they come in and as they go out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpProtocol,
    Ipv4Packet, Ipv6Packet, checksum,
};

use crate::config::ETHERNET_HEADER_BYTES;
use crate::extensions::{self, Refusal};

/// What packets that this side sends have left of their life; neighbor discovery and group reports have their own.
const HOP_LIMIT: u8 = 64;

/// A whole packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hop_limit: u8,
    pub protocol: IpProtocol,
    /// Where the field stands that names the protocol.
    pub named_at: usize,
    pub router_alert: bool,
    /// From the IP header on.
    pub bytes: &'a [u8],
    pub payload: &'a [u8],
}

/// Why there is no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPacket {
    /// The frame is of another ethertype.
    NotIp,
    Malformed,
    BadChecksum,
}

/// Reads the IP packet in a frame; with a refusal if its extension headers cannot be read, and it then has no payload.
pub(super) fn parse<'a>(
    ethernet: &EthernetFrame<&'a [u8]>,
) -> Result<(Packet<'a>, Option<Refusal>), NoPacket> {
    let bytes = ethernet.payload();
    let (source_mac, destination_mac) = (ethernet.src_addr().0, ethernet.dst_addr().0);
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            if bytes.len() < IPV4_HEADER_LEN || bytes[0] >> 4 != 4 || bytes[0] & 0x0f < 5 {
                return Err(NoPacket::Malformed);
            }
            let ip = Ipv4Packet::new_checked(bytes).map_err(|_| NoPacket::Malformed)?;
            if !ip.verify_checksum() {
                return Err(NoPacket::BadChecksum);
            }
            let packet = Packet {
                source_mac,
                destination_mac,
                source: ip.src_addr().into(),
                destination: ip.dst_addr().into(),
                hop_limit: ip.hop_limit(),
                protocol: ip.next_header(),
                named_at: 9,
                router_alert: false,
                bytes: &bytes[..ip.total_len().into()],
                payload: ip.payload(),
            };
            Ok((packet, None))
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(bytes).map_err(|_| NoPacket::Malformed)?;
            if ip.version() != 6 {
                return Err(NoPacket::Malformed);
            }
            let bytes = &bytes[..ip.total_len()];
            let walked = extensions::walk(bytes);
            let upper = walked.ok();
            let packet = Packet {
                source_mac,
                destination_mac,
                source: ip.src_addr().into(),
                destination: ip.dst_addr().into(),
                hop_limit: ip.hop_limit(),
                protocol: upper.map_or(ip.next_header(), |upper| upper.protocol),
                named_at: upper.map_or(6, |upper| upper.named_at),
                router_alert: upper.is_some_and(|upper| upper.router_alert),
                bytes,
                payload: upper.map_or(&[], |upper| &bytes[upper.at..]),
            };
            Ok((packet, walked.err()))
        }
        _ => Err(NoPacket::NotIp),
    }
}

/// Whether an ICMP message of either kind has the right checksum.
pub(super) fn is_icmp_right(packet: &Packet<'_>) -> bool {
    let sum = checksum::data(packet.payload);
    match pseudo_header(packet.source, packet.destination, packet.payload.len()) {
        Some(pseudo) => checksum::combine(&[pseudo, sum]) == !0,
        None => sum == !0,
    }
}

/// The sum over ICMPv6's pseudo header; ICMP for IPv4 has none.
pub(super) fn pseudo_header(source: IpAddr, destination: IpAddr, len: usize) -> Option<u16> {
    match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Some(checksum::pseudo_header_v6(&source, &destination, IpProtocol::Icmpv6, len as u32))
        }
        _ => None,
    }
}

/// Who a packet of ours is from, and who gets it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub own_mac: [u8; 6],
    pub mac: [u8; 6],
    pub source: IpAddr,
    pub destination: IpAddr,
}

/// What part of its packet a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub ident: u32,
    pub offset: usize,
    pub more: bool,
}

impl Way {
    /// Bytes of all headers up to ICMP's, in a whole packet or in a fragment.
    pub(super) fn header_bytes(&self, is_whole: bool) -> usize {
        let ip = match self.source {
            IpAddr::V4(_) => IPV4_HEADER_LEN,
            IpAddr::V6(_) if is_whole => IPV6_HEADER_LEN,
            IpAddr::V6(_) => IPV6_HEADER_LEN + 8,
        };
        ETHERNET_HEADER_BYTES + ip
    }

    /// Writes the headers of a frame that carries ICMP, all of which is there but for them; returns where it begins.
    pub(super) fn write(&self, frame: &mut [u8], part: Part) -> usize {
        let is_whole = part.offset == 0 && !part.more;
        let at = self.header_bytes(is_whole);
        let len = frame.len() - at;
        let mut ethernet = EthernetFrame::new_unchecked(frame);
        ethernet.set_src_addr(EthernetAddress(self.own_mac));
        ethernet.set_dst_addr(EthernetAddress(self.mac));
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                ethernet.set_ethertype(EthernetProtocol::Ipv4);
                write_v4(ethernet.payload_mut(), (source, destination), len, part);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                ethernet.set_ethertype(EthernetProtocol::Ipv6);
                write_v6(ethernet.payload_mut(), (source, destination), len, part, is_whole);
            }
            _ => {}
        }
        at
    }
}

fn write_v4(bytes: &mut [u8], (source, destination): (Ipv4Addr, Ipv4Addr), len: usize, part: Part) {
    let mut ip = Ipv4Packet::new_unchecked(bytes);
    ip.set_version(4);
    ip.set_header_len(IPV4_HEADER_LEN as u8);
    ip.set_total_len((IPV4_HEADER_LEN + len) as u16);
    ip.set_ident(part.ident as u16);
    ip.set_more_frags(part.more);
    ip.set_frag_offset(part.offset as u16);
    ip.set_hop_limit(HOP_LIMIT);
    ip.set_next_header(IpProtocol::Icmp);
    ip.set_src_addr(source);
    ip.set_dst_addr(destination);
    ip.fill_checksum();
}

fn write_v6(
    bytes: &mut [u8],
    (source, destination): (Ipv6Addr, Ipv6Addr),
    len: usize,
    part: Part,
    is_whole: bool,
) {
    let mut ip = Ipv6Packet::new_unchecked(&mut bytes[..]);
    ip.set_version(6);
    ip.set_hop_limit(HOP_LIMIT);
    ip.set_src_addr(source);
    ip.set_dst_addr(destination);
    if is_whole {
        ip.set_payload_len(len as u16);
        ip.set_next_header(IpProtocol::Icmpv6);
        return;
    }
    ip.set_payload_len((len + 8) as u16);
    ip.set_next_header(IpProtocol::Ipv6Frag);
    let header = &mut bytes[IPV6_HEADER_LEN..IPV6_HEADER_LEN + 8];
    header[0] = IpProtocol::Icmpv6.into();
    header[2..4].copy_from_slice(&(part.offset as u16 | u16::from(part.more)).to_be_bytes());
    header[4..].copy_from_slice(&part.ident.to_be_bytes());
}
