//! Building of UDP datagrams (RFC 768) with all their headers.

use pmem::Extent;
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet};

use super::{IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, begin_v4, begin_v6};
use crate::checksum::{Sum, pseudo};
use crate::config::ETHERNET_HEADER_BYTES;
use crate::frame::UDP_HEADER_BYTES;
use crate::udp::Outgoing;

/// Bytes of a packet with one datagram that are not payload.
pub(crate) fn datagram_header_bytes(is_v4: bool) -> usize {
    UDP_HEADER_BYTES + if is_v4 { IPV4_HEADER_BYTES } else { IPV6_HEADER_BYTES }
}

/// Writes a datagram into `head`, all but its pieces, which follow. Routers may cut it into fragments that `ident` is
/// common to, where IP has that: nothing is remembered of what paths take.
pub(crate) fn datagram(
    outgoing: &Outgoing,
    source_mac: [u8; 6],
    traffic_class: u8,
    ident: u16,
    head: &mut Vec<u8>,
) {
    let Outgoing { key, mac, text, pieces } = outgoing;
    let is_v4 = key.is_v4();
    let payload_at = ETHERNET_HEADER_BYTES + datagram_header_bytes(is_v4);
    let udp_at = payload_at - UDP_HEADER_BYTES;
    let len = UDP_HEADER_BYTES + text.len() + pieces.iter().map(Extent::len).sum::<usize>();
    head.clear();
    head.resize(payload_at, 0);

    let mut ethernet = EthernetFrame::new_unchecked(&mut head[..]);
    ethernet.set_src_addr(EthernetAddress(source_mac));
    ethernet.set_dst_addr(EthernetAddress(*mac));
    ethernet.set_ethertype(if is_v4 { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 });
    let ip = &mut head[ETHERNET_HEADER_BYTES..udp_at];
    match (key.local.to_ipv4_mapped(), key.remote.to_ipv4_mapped()) {
        (Some(local), Some(remote)) => {
            begin_v4(ip, local, remote, traffic_class);
            let mut packet = Ipv4Packet::new_unchecked(ip);
            packet.set_dont_frag(false);
            packet.set_ident(ident);
            packet.set_next_header(IpProtocol::Udp);
            packet.set_total_len((IPV4_HEADER_BYTES + len) as u16);
            packet.fill_checksum();
        }
        _ => {
            begin_v6(ip, key.local, key.remote, traffic_class);
            let mut packet = Ipv6Packet::new_unchecked(ip);
            packet.set_next_header(IpProtocol::Udp);
            packet.set_payload_len(len as u16);
        }
    }
    let udp = &mut head[udp_at..];
    udp[..2].copy_from_slice(&key.local_port.to_be_bytes());
    udp[2..4].copy_from_slice(&key.remote_port.to_be_bytes());
    udp[4..6].copy_from_slice(&(len as u16).to_be_bytes());
    head.extend_from_slice(text);
    let mut sum =
        Sum::from(pseudo(key.local_ip(), key.remote_ip(), IpProtocol::Udp, len).unwrap_or_default());
    sum.add(&head[udp_at..]);
    for piece in pieces {
        sum.add(piece.bytes());
    }
    // A sum of zero is sent as its other form: zero stands for none.
    let checksum = match !sum.folded() {
        0 => u16::MAX,
        checksum => checksum,
    };
    head[udp_at + 6..payload_at].copy_from_slice(&checksum.to_be_bytes());
}
