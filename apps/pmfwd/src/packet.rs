//! Frames that are made here, and answers to frames.

use std::fmt;

use dpdk::{Batch, Pool};
use smoltcp::wire::{
    ArpHardware, ArpOperation, ArpPacket, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Message,
    Icmpv4Packet, IpAddress, IpProtocol, Ipv4Address, Ipv4Packet, UdpPacket,
};

/// Ethernet, IPv4 and UDP.
pub const HEADERS_BYTES: usize = 14 + 20 + 8;
/// Longest segment in bytes: what a buffer holds behind its headroom.
pub const MAX_SEGMENT_BYTES: usize = 2048;
/// Most segments of a frame.
pub const MAX_SEGMENTS: usize = 16;

/// RFC 2544, appendix C.2.2: addresses for benchmarks.
const SOURCE: Ipv4Address = Ipv4Address::new(198, 18, 0, 1);
const DESTINATION: Ipv4Address = Ipv4Address::new(198, 18, 0, 2);
/// Where the addresses of flows begin.
const FIRST_FLOW: u32 = u32::from_be_bytes([198, 19, 0, 0]);
/// RFC 863: the discard service.
const DISCARD: u16 = 9;
const LINK_BYTES: usize = 14;
const IP_BYTES: usize = 20;
const DESTINATION_AT: usize = LINK_BYTES + 16;
const IP_CHECKSUM_AT: usize = LINK_BYTES + 10;
const UDP_CHECKSUM_AT: usize = LINK_BYTES + IP_BYTES + 6;

/// Lengths of a made frame's segments in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentLengths(pub Vec<usize>);

impl fmt::Display for SegmentLengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&lengths.join(","))
    }
}

/// A UDP datagram in one segment or more, to be sent again and again.
#[derive(Clone, Debug)]
pub struct Template {
    segments: Vec<Vec<u8>>,
}

impl Template {
    /// A datagram with the discard service's ports, between addresses that are set aside for benchmarks.
    pub fn new(lengths: &SegmentLengths, source: [u8; 6], destination: [u8; 6]) -> Self {
        let len: usize = lengths.0.iter().sum();
        let mut frame = vec![0; len];
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
        ethernet.set_src_addr(EthernetAddress(source));
        ethernet.set_dst_addr(EthernetAddress(destination));
        ethernet.set_ethertype(EthernetProtocol::Ipv4);
        let mut ip = Ipv4Packet::new_unchecked(ethernet.payload_mut());
        ip.set_version(4);
        ip.set_header_len(IP_BYTES as u8);
        ip.set_total_len((len - LINK_BYTES) as u16);
        ip.set_hop_limit(64);
        ip.set_next_header(IpProtocol::Udp);
        ip.set_src_addr(SOURCE);
        ip.set_dst_addr(DESTINATION);
        ip.fill_checksum();
        let mut udp = UdpPacket::new_unchecked(ip.payload_mut());
        udp.set_src_port(DISCARD);
        udp.set_dst_port(DISCARD);
        udp.set_len((len - LINK_BYTES - IP_BYTES) as u16);
        udp.fill_checksum(&IpAddress::Ipv4(SOURCE), &IpAddress::Ipv4(DESTINATION));
        let mut rest = &frame[..];
        let segments = lengths.0.iter().map(|len| {
            let (segment, behind) = rest.split_at(*len);
            rest = behind;
            segment.to_vec()
        });
        Self { segments: segments.collect() }
    }

    /// Adds `count` of these frames to an empty batch; fewer, or none, while the pool has no more mbufs.
    pub fn fill<const N: usize>(&self, pool: &Pool, batch: &mut Batch<N>, count: usize) {
        if !pool.alloc_bulk(batch, count) {
            return;
        }
        batch.retain(|packet| {
            let (first, later) = self.segments.split_first().expect("a frame has a segment");
            let Some(room) = packet.append(first.len()) else { return false };
            room.copy_from_slice(first);
            later.iter().all(|bytes| {
                let segment = pool.alloc().and_then(|mut segment| {
                    segment.append(bytes.len())?.copy_from_slice(bytes);
                    Some(segment)
                });
                segment.is_some_and(|segment| packet.chain(segment).is_ok())
            })
        });
    }
}

/// Gives a frame made from a [`Template`] the destination address of a flow.
pub fn set_flow(frame: &mut [u8], flow: u32) {
    let address = FIRST_FLOW.wrapping_add(flow).to_be_bytes();
    let Some(field) = frame.get_mut(DESTINATION_AT..DESTINATION_AT + 4) else { return };
    let mut old = [0; 4];
    old.copy_from_slice(field);
    field.copy_from_slice(&address);
    // The pseudo header of UDP (RFC 768) holds the address as well.
    for at in [IP_CHECKSUM_AT, UDP_CHECKSUM_AT] {
        if let Some(Ok(field)) = frame.get_mut(at..at + 2).map(<&mut [u8; 2]>::try_from) {
            *field = updated_checksum(*field, old, address);
        }
    }
}

/// RFC 1624, equation 3: HC' = ~(~HC + ~m + m').
fn updated_checksum(checksum: [u8; 2], old: [u8; 4], new: [u8; 4]) -> [u8; 2] {
    let words =
        |bytes: [u8; 4]| [u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]])];
    let mut sum = u32::from(!u16::from_be_bytes(checksum));
    for (old, new) in words(old).into_iter().zip(words(new)) {
        sum += u32::from(!old) + u32::from(new);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Exchanges a frame's Ethernet addresses. One too short to have them stays as it is.
#[inline]
pub fn swap_addresses(frame: &mut [u8]) {
    if let Some(addresses) = frame.first_chunk_mut::<12>() {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *addresses;
        *addresses = [g, h, i, j, k, l, a, b, c, d, e, f];
    }
}

/// Turns an ARP request, or an ICMP echo request, into its answer from `mac`, whatever address it asks for. False,
/// and nothing was changed, if the frame is neither.
pub fn answer(frame: &mut [u8], mac: [u8; 6]) -> bool {
    let Ok(ethernet) = EthernetFrame::new_checked(&mut *frame) else { return false };
    match ethernet.ethertype() {
        EthernetProtocol::Arp => answer_arp(frame, EthernetAddress(mac)),
        EthernetProtocol::Ipv4 => answer_echo(frame, EthernetAddress(mac)),
        _ => false,
    }
}

/// RFC 826.
fn answer_arp(frame: &mut [u8], mac: EthernetAddress) -> bool {
    let mut ethernet = EthernetFrame::new_unchecked(frame);
    let asker = ethernet.src_addr();
    let Ok(mut arp) = ArpPacket::new_checked(ethernet.payload_mut()) else { return false };
    let is_request = arp.hardware_type() == ArpHardware::Ethernet
        && arp.protocol_type() == EthernetProtocol::Ipv4
        && (arp.hardware_len(), arp.protocol_len()) == (6, 4)
        && arp.operation() == ArpOperation::Request;
    if !is_request || !asker.is_unicast() {
        return false;
    }
    let copied = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok();
    let hardware = <[u8; 6]>::try_from(arp.source_hardware_addr()).ok();
    let (Some(hardware), Some(source), Some(target)) =
        (hardware, copied(arp.source_protocol_addr()), copied(arp.target_protocol_addr()))
    else {
        return false;
    };
    arp.set_operation(ArpOperation::Reply);
    arp.set_source_hardware_addr(mac.as_bytes());
    arp.set_source_protocol_addr(&target);
    arp.set_target_hardware_addr(&hardware);
    arp.set_target_protocol_addr(&source);
    ethernet.set_dst_addr(asker);
    ethernet.set_src_addr(mac);
    true
}

/// RFC 792.
fn answer_echo(frame: &mut [u8], mac: EthernetAddress) -> bool {
    let mut ethernet = EthernetFrame::new_unchecked(frame);
    let (asker, asked) = (ethernet.src_addr(), ethernet.dst_addr());
    let Ok(mut ip) = Ipv4Packet::new_checked(ethernet.payload_mut()) else { return false };
    let is_answerable = ip.next_header() == IpProtocol::Icmp
        && ip.frag_offset() == 0
        && !ip.more_frags()
        && is_host(ip.src_addr())
        && is_host(ip.dst_addr())
        && ip.verify_checksum();
    if !is_answerable || !asker.is_unicast() || !asked.is_unicast() {
        return false;
    }
    let (source, destination) = (ip.src_addr(), ip.dst_addr());
    let Ok(mut icmp) = Icmpv4Packet::new_checked(ip.payload_mut()) else { return false };
    if icmp.msg_type() != Icmpv4Message::EchoRequest || !icmp.verify_checksum() {
        return false;
    }
    icmp.set_msg_type(Icmpv4Message::EchoReply);
    icmp.fill_checksum();
    ip.set_src_addr(destination);
    ip.set_dst_addr(source);
    ip.set_hop_limit(64);
    ip.fill_checksum();
    ethernet.set_dst_addr(asker);
    ethernet.set_src_addr(mac);
    true
}

/// An Ethernet address as testpmd and Linux write it.
pub fn address_text(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02X}")).join(":")
}

/// Whether it can be one host's address.
fn is_host(address: Ipv4Address) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    fn template(lengths: &[usize]) -> Vec<u8> {
        Template::new(&SegmentLengths(lengths.to_vec()), MAC, [2, 0, 0, 0, 0, 8]).segments.concat()
    }

    #[test]
    fn made_frames_are_right_whatever_their_flow() {
        for (lengths, flow) in [(&[42][..], 0), (&[64, 1, 700], 1), (&[1500], 65_535), (&[2048; 16], 131_072)]
        {
            let mut frame = template(lengths);
            assert_eq!(frame.len(), lengths.iter().sum::<usize>());
            set_flow(&mut frame, flow);
            let ethernet = EthernetFrame::new_checked(&frame[..]).unwrap();
            assert_eq!((ethernet.src_addr().0, ethernet.ethertype()), (MAC, EthernetProtocol::Ipv4));
            let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
            assert!(ip.verify_checksum(), "flow {flow}");
            assert_eq!(ip.dst_addr().to_bits(), FIRST_FLOW + flow);
            let udp = UdpPacket::new_checked(ip.payload()).unwrap();
            let (source, destination) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
            assert!(udp.verify_checksum(&source, &destination), "flow {flow}");
            assert_eq!(usize::from(udp.len()), frame.len() - 34);
        }
    }

    #[test]
    fn addresses_change_places() {
        let mut frame = template(&[64]);
        let before = frame.clone();
        swap_addresses(&mut frame);
        assert_eq!((&frame[..6], &frame[6..12], &frame[12..]), (&before[6..12], &before[..6], &before[12..]));
        let mut short = [1; 11];
        swap_addresses(&mut short);
        assert_eq!(short, [1; 11]);
    }

    fn arp_request() -> Vec<u8> {
        let mut frame = [[0xff; 6], MAC].concat();
        frame.extend(b"\x08\x06\0\x01\x08\0\x06\x04\0\x01");
        frame.extend(MAC);
        frame.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        frame
    }

    fn echo_request() -> Vec<u8> {
        let mut frame = template(&[98]);
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
        let mut ip = Ipv4Packet::new_unchecked(ethernet.payload_mut());
        ip.set_next_header(IpProtocol::Icmp);
        ip.fill_checksum();
        let mut icmp = Icmpv4Packet::new_unchecked(ip.payload_mut());
        icmp.set_msg_type(Icmpv4Message::EchoRequest);
        icmp.set_echo_ident(7);
        icmp.fill_checksum();
        frame
    }

    #[test]
    fn requests_get_their_answers() {
        let ours = [2, 0, 0, 0, 0, 9];
        let mut arp = arp_request();
        assert!(answer(&mut arp, ours));
        assert_eq!(arp[..12], [MAC, ours].concat());
        assert_eq!(arp[20..22], [0, 2]);
        assert_eq!((&arp[22..28], &arp[28..32]), (&ours[..], &[10, 0, 0, 2][..]));
        assert_eq!((&arp[32..38], &arp[38..42]), (&MAC[..], &[10, 0, 0, 1][..]));

        let mut echo = echo_request();
        assert!(answer(&mut echo, ours));
        assert_eq!(echo[..12], [MAC, ours].concat());
        let ip = Ipv4Packet::new_checked(&echo[14..]).unwrap();
        assert!(ip.verify_checksum());
        assert_eq!((ip.src_addr(), ip.dst_addr()), (DESTINATION, SOURCE));
        let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum());
        assert_eq!((icmp.msg_type(), icmp.echo_ident()), (Icmpv4Message::EchoReply, 7));
    }

    #[test]
    fn what_is_no_request_stays_as_it_is() {
        for frame in [arp_request(), echo_request()] {
            let mut answered = frame.clone();
            assert!(answer(&mut answered, MAC));
            let answer_again = answered.clone();
            assert!(!answer(&mut answered, MAC), "a reply is no request");
            assert_eq!(answered, answer_again);
            for len in 0..frame.len().min(42) {
                let mut cut = frame[..len].to_vec();
                assert!(!answer(&mut cut, MAC), "cut at {len}");
                assert_eq!(cut, frame[..len]);
            }
        }
        let mut damaged = echo_request();
        damaged[60] ^= 1;
        assert!(!answer(&mut damaged, MAC), "a wrong checksum");
    }
}
