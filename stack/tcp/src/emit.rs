//! Building of the headers of TCP segments and UDP datagrams, and their checksums over pieces of any length.

mod datagram;
mod usual;

use std::net::{Ipv4Addr, Ipv6Addr};

use pmem::Extent;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
    TcpSeqNumber, checksum,
};

use crate::checksum::Sum;
use crate::config::ETHERNET_HEADER_BYTES;
use crate::flow::FlowKey;
use crate::frame::{Flags, TxChecksum};
use crate::tcp::options::{MAX_OPTION_BYTES, Options};
use crate::tcp::seq::Seq;

pub(crate) use datagram::{datagram, datagram_header_bytes};

const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
const TCP_HEADER_BYTES: usize = 20;
const HOP_LIMIT: u8 = 64;
/// Where a TCP header has its checksum.
const CHECKSUM_AT: usize = 16;

/// Most bytes of all headers of a segment.
pub(crate) const MAX_HEADER_BYTES: usize =
    ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES + TCP_HEADER_BYTES + MAX_OPTION_BYTES;

/// The fields of a segment to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header<'a> {
    pub key: &'a FlowKey,
    pub source_mac: [u8; 6],
    pub mac: [u8; 6],
    pub seq: Seq,
    pub ack: Seq,
    pub flags: Flags,
    pub window: u16,
    pub options: Options,
    /// What IP says of how the packet is to be served (RFC 2474, and RFC 3168 in the two lowest bits).
    pub traffic_class: u8,
}

/// Where the headers of a frame begin and end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    v6: bool,
    l4_at: usize,
    payload_at: usize,
    /// Of headers that are complete but for the TCP checksum.
    sums: Option<usual::Sums>,
}

impl Header<'_> {
    /// Writes the headers into `head`, which `payload` bytes then follow, there or elsewhere; [`Layout::complete`]
    /// fills in what depends on those.
    #[inline(always)]
    pub(crate) fn begin(&self, payload: usize, head: &mut Vec<u8>) -> Layout {
        match self.options {
            Options {
                mss: None,
                window_scale: None,
                sack_permitted: false,
                timestamp: Some(timestamp),
                sack: None,
            } => self.begin_usual(timestamp, payload, head),
            _ => self.begin_any(head),
        }
    }

    /// As [`begin`](Self::begin), for a packet of IPv4 that routers may divide, whose pieces are told by `ident`.
    #[cold]
    pub(crate) fn begin_divisible(&self, ident: u16, head: &mut Vec<u8>) -> Layout {
        let layout = self.begin_any(head);
        if !layout.v6 {
            let mut packet = Ipv4Packet::new_unchecked(&mut head[ETHERNET_HEADER_BYTES..]);
            packet.set_dont_frag(false);
            packet.set_ident(ident);
        }
        layout
    }

    /// As [`begin`](Self::begin), whatever the options.
    fn begin_any(&self, head: &mut Vec<u8>) -> Layout {
        let mut option_bytes = [0; MAX_OPTION_BYTES];
        let options = self.options.emit(&mut option_bytes);
        let v6 = !self.key.is_v4();
        let l4_at = ETHERNET_HEADER_BYTES + if v6 { IPV6_HEADER_BYTES } else { IPV4_HEADER_BYTES };
        let payload_at = l4_at + TCP_HEADER_BYTES + options;
        head.clear();
        head.resize(payload_at, 0);

        let mut ethernet = EthernetFrame::new_unchecked(&mut head[..]);
        ethernet.set_src_addr(EthernetAddress(self.source_mac));
        ethernet.set_dst_addr(EthernetAddress(self.mac));
        ethernet.set_ethertype(if v6 { EthernetProtocol::Ipv6 } else { EthernetProtocol::Ipv4 });
        let ip = &mut head[ETHERNET_HEADER_BYTES..l4_at];
        match (self.key.local.to_ipv4_mapped(), self.key.remote.to_ipv4_mapped()) {
            (Some(local), Some(remote)) => begin_v4(ip, local, remote, self.traffic_class),
            _ => begin_v6(ip, self.key.local, self.key.remote, self.traffic_class),
        }
        let mut tcp = TcpPacket::new_unchecked(&mut head[l4_at..]);
        tcp.set_src_port(self.key.local_port);
        tcp.set_dst_port(self.key.remote_port);
        tcp.set_seq_number(TcpSeqNumber(self.seq.0 as i32));
        tcp.set_ack_number(TcpSeqNumber(self.ack.0 as i32));
        tcp.set_header_len((TCP_HEADER_BYTES + options) as u8);
        tcp.set_window_len(self.window);
        head[l4_at + 13] = self.flags.bits();
        head[l4_at + TCP_HEADER_BYTES..].copy_from_slice(&option_bytes[..options]);
        Layout { v6, l4_at, payload_at, sums: None }
    }
}

fn begin_v4(bytes: &mut [u8], local: Ipv4Addr, remote: Ipv4Addr, traffic_class: u8) {
    let mut packet = Ipv4Packet::new_unchecked(bytes);
    packet.set_version(4);
    packet.set_header_len(IPV4_HEADER_BYTES as u8);
    packet.set_dscp(traffic_class >> 2);
    packet.set_ecn(traffic_class & 3);
    // Never fragmented on the way, so the identification may be anything (RFC 6864).
    packet.set_dont_frag(true);
    packet.set_hop_limit(HOP_LIMIT);
    packet.set_next_header(IpProtocol::Tcp);
    packet.set_src_addr(local);
    packet.set_dst_addr(remote);
}

fn begin_v6(bytes: &mut [u8], local: Ipv6Addr, remote: Ipv6Addr, traffic_class: u8) {
    let mut packet = Ipv6Packet::new_unchecked(bytes);
    packet.set_version(6);
    packet.set_traffic_class(traffic_class);
    packet.set_hop_limit(HOP_LIMIT);
    packet.set_next_header(IpProtocol::Tcp);
    packet.set_src_addr(local);
    packet.set_dst_addr(remote);
}

impl Layout {
    /// Fills in lengths and checksums once the payload is known: what `head` has behind the headers, and
    /// `pieces`. With `offload` the TCP checksum is left to the device.
    #[inline(always)]
    pub(crate) fn complete(&self, head: &mut [u8], pieces: &[Extent], offload: bool) -> TxChecksum {
        let Some(sums) = self.sums else { return self.complete_any(head, pieces, offload) };
        let (headers, text) = head.split_at_mut(self.payload_at);
        let (checksum, left) = if offload {
            (sums.pseudo(), self.left_to_the_device())
        } else {
            let mut sum = sums.segment();
            if !text.is_empty() {
                sum.add(text);
            }
            for piece in pieces {
                sum.add(piece.bytes());
            }
            (!sum.folded(), TxChecksum::Done)
        };
        headers[self.l4_at + CHECKSUM_AT..][..2].copy_from_slice(&checksum.to_be_bytes());
        left
    }

    fn left_to_the_device(&self) -> TxChecksum {
        TxChecksum::Tcp {
            ipv6: self.v6,
            l2_bytes: ETHERNET_HEADER_BYTES,
            l3_bytes: self.l4_at - ETHERNET_HEADER_BYTES,
            l4_bytes: self.payload_at - self.l4_at,
        }
    }

    fn complete_any(&self, head: &mut [u8], pieces: &[Extent], offload: bool) -> TxChecksum {
        let payload: usize = pieces.iter().map(Extent::len).sum();
        let tcp_len = head.len() - self.l4_at + payload;
        let ip = &mut head[ETHERNET_HEADER_BYTES..];
        let pseudo = if self.v6 {
            let mut packet = Ipv6Packet::new_unchecked(ip);
            packet.set_payload_len(tcp_len as u16);
            let (local, remote) = (packet.src_addr(), packet.dst_addr());
            checksum::pseudo_header_v6(&local, &remote, IpProtocol::Tcp, tcp_len as u32)
        } else {
            let mut packet = Ipv4Packet::new_unchecked(ip);
            packet.set_total_len((IPV4_HEADER_BYTES + tcp_len) as u16);
            packet.fill_checksum();
            let (local, remote) = (packet.src_addr(), packet.dst_addr());
            checksum::pseudo_header_v4(&local, &remote, IpProtocol::Tcp, tcp_len as u32)
        };
        let segment = &mut head[self.l4_at..];
        if offload {
            TcpPacket::new_unchecked(segment).set_checksum(pseudo);
            return self.left_to_the_device();
        }
        let mut sum = Sum::from(pseudo);
        sum.add(segment);
        for piece in pieces {
            sum.add(piece.bytes());
        }
        TcpPacket::new_unchecked(segment).set_checksum(!sum.folded());
        TxChecksum::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Local, Parsed, RxChecksum, parse};
    use crate::tcp::options::Timestamp;
    use crate::testing::{arena, extent_of};

    fn key(local: &str, remote: &str) -> FlowKey {
        FlowKey::new(local.parse().unwrap(), remote.parse().unwrap())
    }

    fn header(key: &FlowKey) -> Header<'_> {
        Header {
            key,
            source_mac: [2, 0, 0, 0, 0, 1],
            mac: [2, 0, 0, 0, 0, 2],
            seq: Seq(0xfedc_ba98),
            ack: Seq(0x0123_4567),
            flags: Flags::ACK | Flags::PSH,
            window: 513,
            options: Options { timestamp: Some(Timestamp { value: 5, echo: 6 }), ..Options::default() },
            traffic_class: 0,
        }
    }

    /// What is built with pieces of odd lengths is what the parser accepts, checksums verified.
    #[test]
    fn what_is_built_is_parsed() {
        let arena = arena(8);
        for (local, remote, cidr) in [
            ("10.0.0.1:80", "10.0.0.2:4000", "10.0.0.2/24"),
            ("[fd00::1]:80", "[fd00::2]:4000", "fd00::2/64"),
        ] {
            let local_side = Local { mac: [2, 0, 0, 0, 0, 2], addresses: vec![cidr.parse().unwrap()] };
            for text in [&b""[..], b"a", b"ab"] {
                let key = key(local, remote);
                let header = header(&key);
                let mut frame = Vec::new();
                let layout = header.begin(text.len() + 6, &mut frame);
                frame.extend_from_slice(text);
                let pieces = [extent_of(&arena, b"xyz"), extent_of(&arena, b"1"), extent_of(&arena, b"23")];
                assert_eq!(layout.complete(&mut frame, &pieces, false), TxChecksum::Done);
                pieces.iter().for_each(|piece| frame.extend_from_slice(piece.bytes()));
                let parsed = parse(&frame, 0, &local_side, RxChecksum::Unknown);
                let Parsed::Tcp(segment) = parsed else { panic!("{parsed:?}") };
                assert_eq!((segment.seq, segment.ack), (header.seq, header.ack));
                assert_eq!((segment.flags, segment.window), (header.flags, header.window));
                assert_eq!(segment.options, header.options);
                assert_eq!(segment.payload_len, text.len() + 6);
                assert_eq!(&frame[segment.payload_at..], [text, b"xyz123"].concat());
                for at in ETHERNET_HEADER_BYTES..frame.len() {
                    let split = |checksum| parse(&frame[..at], frame.len() - at, &local_side, checksum);
                    if at == segment.payload_at {
                        assert_eq!(split(RxChecksum::Good), Parsed::Tcp(segment));
                        assert_eq!(split(RxChecksum::Unknown), Parsed::BadChecksum);
                        // Not even if the headers alone would add up.
                        let mut alone = frame[..at].to_vec();
                        let tcp_at = ETHERNET_HEADER_BYTES + if header.key.is_v4() { 20 } else { 40 };
                        let (source, destination) = (header.key.local_ip(), header.key.remote_ip());
                        TcpPacket::new_unchecked(&mut alone[tcp_at..])
                            .fill_checksum(&source.into(), &destination.into());
                        let parsed = parse(&alone, frame.len() - at, &local_side, RxChecksum::Unknown);
                        assert_eq!(parsed, Parsed::BadChecksum);
                    } else {
                        assert_eq!(split(RxChecksum::Good), Parsed::Malformed);
                    }
                    let mut broken = frame.clone();
                    broken[at] ^= 0x10;
                    assert!(!matches!(parse(&broken, 0, &local_side, RxChecksum::Unknown), Parsed::Tcp(s)
                        if s.payload_len == segment.payload_len && at >= segment.payload_at));
                }
            }
        }
    }

    #[test]
    fn an_offloaded_checksum_is_the_pseudo_headers() {
        let key = key("10.0.0.1:80", "10.0.0.2:4000");
        let header = header(&key);
        let mut frame = Vec::new();
        let layout = header.begin(0, &mut frame);
        let left = layout.complete(&mut frame, &[], true);
        assert_eq!(left, TxChecksum::Tcp { ipv6: false, l2_bytes: 14, l3_bytes: 20, l4_bytes: 32 });
        let mut sum = Sum::from(0);
        sum.add(&frame[34..]);
        TcpPacket::new_unchecked(&mut frame[34..]).set_checksum(!sum.folded());
        let local = Local { mac: header.mac, addresses: vec!["10.0.0.2/24".parse().unwrap()] };
        assert!(matches!(parse(&frame, 0, &local, RxChecksum::Unknown), Parsed::Tcp(_)));
    }
}
