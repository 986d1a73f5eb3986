//! What ICMP errors say of our connections (RFC 792, RFC 4443; RFC 5927 on what to believe).

use std::net::IpAddr;

use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, checksum};

use crate::flow::{FlowKey, mapped};
use crate::tcp::seq::Seq;

/// An error about a TCP segment that this host is said to have sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IcmpError {
    pub key: FlowKey,
    /// The number of the segment that is quoted.
    pub seq: Seq,
    pub what: Complaint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Complaint {
    /// The packet is larger than a link takes; its MTU, 0 from routers older than RFC 1191.
    TooBig(u32),
    Unreachable,
}

/// Reads an ICMP error that quotes a TCP segment; everything else is `None`.
pub(crate) fn parse(frame: &[u8]) -> Option<IcmpError> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => parse_v4(ethernet.payload()),
        EthernetProtocol::Ipv6 => parse_v6(ethernet.payload()),
        _ => None,
    }
}

fn parse_v4(bytes: &[u8]) -> Option<IcmpError> {
    if bytes.first()? & 0x0f < 5 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(bytes).ok()?;
    let fragment = packet.more_frags() || packet.frag_offset() != 0;
    if packet.next_header() != IpProtocol::Icmp || fragment || !packet.verify_checksum() {
        return None;
    }
    let icmp = packet.payload();
    let (head, quoted) = icmp.split_at_checked(8)?;
    if checksum::data(icmp) != !0 {
        return None;
    }
    let what = match (head[0], head[1]) {
        (3, 4) => Complaint::TooBig(u16::from_be_bytes([head[6], head[7]]).into()),
        (3, _) => Complaint::Unreachable,
        _ => return None,
    };
    // Routers quote the header and as little as 8 bytes more, so that the lengths in it mean nothing here.
    let header_len = usize::from(quoted.first()? & 0x0f) * 4;
    if quoted[0] >> 4 != 4 || header_len < 20 || *quoted.get(9)? != u8::from(IpProtocol::Tcp) {
        return None;
    }
    let address = |at| Some(IpAddr::from(<[u8; 4]>::try_from(quoted.get(at..at + 4)?).ok()?));
    error(address(12)?, address(16)?, quoted.get(header_len..)?, what)
}

fn parse_v6(bytes: &[u8]) -> Option<IcmpError> {
    let packet = Ipv6Packet::new_checked(bytes).ok()?;
    if packet.next_header() != IpProtocol::Icmpv6 {
        return None;
    }
    let icmp = packet.payload();
    let pseudo = checksum::pseudo_header_v6(
        &packet.src_addr(),
        &packet.dst_addr(),
        IpProtocol::Icmpv6,
        icmp.len() as u32,
    );
    let (head, quoted) = icmp.split_at_checked(8)?;
    if checksum::combine(&[pseudo, checksum::data(icmp)]) != !0 {
        return None;
    }
    let what = match head[0] {
        2 => Complaint::TooBig(u32::from_be_bytes([head[4], head[5], head[6], head[7]])),
        1 => Complaint::Unreachable,
        _ => return None,
    };
    if quoted.first()? >> 4 != 6 || *quoted.get(6)? != u8::from(IpProtocol::Tcp) {
        return None;
    }
    let address = |at| Some(IpAddr::from(<[u8; 16]>::try_from(quoted.get(at..at + 16)?).ok()?));
    error(address(8)?, address(24)?, quoted.get(40..)?, what)
}

fn error(source: IpAddr, destination: IpAddr, tcp: &[u8], what: Complaint) -> Option<IcmpError> {
    let word = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let seq = Seq(u32::from(word(4)?) << 16 | u32::from(word(6)?));
    let key = FlowKey {
        local: mapped(source),
        remote: mapped(destination),
        local_port: word(0)?,
        remote_port: word(2)?,
    };
    Some(IcmpError { key, seq, what })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::*;

    use super::*;

    /// "Fragmentation needed" for a segment from 10.0.0.2:80 with the number 0x01020304.
    fn frag_needed(mtu: u16) -> Vec<u8> {
        let quoted = [0, 80, 0x0f, 0xa0, 1, 2, 3, 4];
        let sent = Ipv4Repr {
            src_addr: Ipv4Address::new(10, 0, 0, 2),
            dst_addr: Ipv4Address::new(192, 0, 2, 1),
            next_header: IpProtocol::Tcp,
            payload_len: 1480,
            hop_limit: 60,
        };
        let message = Icmpv4Repr::DstUnreachable {
            reason: Icmpv4DstUnreachable::FragRequired,
            header: sent,
            data: &quoted,
        };
        let ip = Ipv4Repr {
            src_addr: Ipv4Address::new(10, 0, 0, 1),
            dst_addr: sent.src_addr,
            next_header: IpProtocol::Icmp,
            payload_len: message.buffer_len(),
            hop_limit: 64,
        };
        let mut frame = vec![0; 14 + ip.buffer_len() + message.buffer_len()];
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
        ethernet.set_ethertype(EthernetProtocol::Ipv4);
        let mut packet = Ipv4Packet::new_unchecked(ethernet.payload_mut());
        ip.emit(&mut packet, &ChecksumCapabilities::default());
        let mut icmp = Icmpv4Packet::new_unchecked(packet.payload_mut());
        message.emit(&mut icmp, &ChecksumCapabilities::default());
        packet.payload_mut()[6..8].copy_from_slice(&mtu.to_be_bytes());
        Icmpv4Packet::new_unchecked(packet.payload_mut()).fill_checksum();
        frame
    }

    #[test]
    fn a_quoted_segment_is_found() {
        let key = FlowKey::new("10.0.0.2:80".parse().unwrap(), "192.0.2.1:4000".parse().unwrap());
        let expected = IcmpError { key, seq: Seq(0x0102_0304), what: Complaint::TooBig(1280) };
        assert_eq!(parse(&frag_needed(1280)), Some(expected));
    }

    #[test]
    fn a_broken_checksum_is_not_believed() {
        let mut frame = frag_needed(1280);
        let last = frame.len() - 1;
        frame[last] ^= 1;
        assert_eq!(parse(&frame), None);
    }

    proptest! {
        #[test]
        fn cut_and_changed_messages_do_no_harm(len in 0..80usize, at in 0..80usize, byte: u8) {
            let mut frame = frag_needed(1280);
            if let Some(place) = frame.get_mut(at) { *place = byte }
            frame.truncate(len);
            parse(&frame);
        }
    }
}
