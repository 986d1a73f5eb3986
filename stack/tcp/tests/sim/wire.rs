//! Exact frames: TCP segments and ICMP messages, built and taken apart with smoltcp's wire formats.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, IpRepr, Ipv4Packet,
    Ipv6Packet, NdiscNeighborFlags, NdiscRepr, TcpOption, TcpPacket, TcpSeqNumber, UdpPacket,
};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const ECE: u8 = 64;
pub const CWR: u8 = 128;

/// The kind of a selective acknowledgement. smoltcp's parser knows no more than three of its four blocks.
const SACK: u8 = 5;

const CHECKSUMS: fn() -> ChecksumCapabilities = ChecksumCapabilities::default;

/// A host as its neighbours see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    pub mac: EthernetAddress,
    pub at: SocketAddr,
}

/// One TCP segment. As an expectation, what is `None` may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seg {
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    pub window: Option<u16>,
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    pub timestamps: Option<(u32, u32)>,
    /// Whether SACK-permitted is among the options.
    pub sack_permitted: Option<bool>,
    /// The blocks of a selective acknowledgement, each from its first number up to one beyond its last.
    pub sack: Option<Vec<(u32, u32)>>,
    /// What IP says of marks of congestion (RFC 3168): 2 of packets that may be marked, 3 of those that are.
    pub ecn: Option<u8>,
    pub payload: Vec<u8>,
}

pub fn seg(flags: u8, seq: u32, ack: u32) -> Seg {
    Seg { flags, seq, ack, ..Seg::default() }
}

pub fn data(seq: u32, ack: u32, payload: &[u8]) -> Seg {
    Seg { payload: payload.to_vec(), ..seg(ACK, seq, ack) }
}

impl Seg {
    pub fn window(self, window: u16) -> Self {
        Self { window: Some(window), ..self }
    }

    pub fn mss(self, mss: u16) -> Self {
        Self { mss: Some(mss), ..self }
    }

    pub fn scale(self, scale: u8) -> Self {
        Self { scale: Some(scale), ..self }
    }

    pub fn ts(self, value: u32, echo: u32) -> Self {
        Self { timestamps: Some((value, echo)), ..self }
    }

    pub fn sack_permitted(self, sack_permitted: bool) -> Self {
        Self { sack_permitted: Some(sack_permitted), ..self }
    }

    pub fn sack(self, blocks: &[(u32, u32)]) -> Self {
        Self { sack: Some(blocks.to_vec()), ..self }
    }

    pub fn flagged(self, flags: u8) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    pub fn ecn(self, ecn: u8) -> Self {
        Self { ecn: Some(ecn), ..self }
    }

    pub fn payload(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// Whether a segment is what this expectation says. PSH is advice, and never compared.
    pub fn matches(&self, seen: &Seg) -> bool {
        fn fits<T: PartialEq>(expected: &Option<T>, seen: &Option<T>) -> bool {
            expected.is_none() || expected == seen
        }
        self.flags & !PSH == seen.flags & !PSH
            && self.seq == seen.seq
            && (!self.has(ACK) || self.ack == seen.ack)
            && self.payload == seen.payload
            && fits(&self.window, &seen.window)
            && fits(&self.mss, &seen.mss)
            && fits(&self.scale, &seen.scale)
            && fits(&self.timestamps, &seen.timestamps)
            && fits(&self.sack_permitted, &seen.sack_permitted)
            && fits(&self.sack, &seen.sack)
            && fits(&self.ecn, &seen.ecn)
    }

    /// The frame that carries this segment, with all checksums right. The window defaults to 65,535.
    pub fn frame(&self, from: Side, to: Side) -> Vec<u8> {
        let (source, destination) = (IpAddress::from(from.at.ip()), IpAddress::from(to.at.ip()));
        let options = self.options();
        let len = 20 + options.len() + self.payload.len();
        let mut frame = ip_frame(from, to, IpProtocol::Tcp, len, |bytes| {
            let mut tcp = TcpPacket::new_unchecked(bytes);
            tcp.clear_flags();
            tcp.set_header_len(20 + options.len() as u8);
            tcp.set_src_port(from.at.port());
            tcp.set_dst_port(to.at.port());
            tcp.set_seq_number(TcpSeqNumber(self.seq as i32));
            tcp.set_ack_number(TcpSeqNumber(self.ack as i32));
            tcp.set_fin(self.has(FIN));
            tcp.set_syn(self.has(SYN));
            tcp.set_rst(self.has(RST));
            tcp.set_psh(self.has(PSH));
            tcp.set_ack(self.has(ACK));
            tcp.set_ece(self.has(ECE));
            tcp.set_cwr(self.has(CWR));
            tcp.set_window_len(self.window.unwrap_or(u16::MAX));
            tcp.set_urgent_at(0);
            tcp.options_mut().copy_from_slice(&options);
            tcp.payload_mut().copy_from_slice(&self.payload);
            tcp.fill_checksum(&source, &destination);
        });
        if let Some(ecn) = self.ecn {
            set_ecn(&mut frame, ecn);
        }
        frame
    }

    fn options(&self) -> Vec<u8> {
        let options = [
            self.mss.map(TcpOption::MaxSegmentSize),
            self.scale.map(TcpOption::WindowScale),
            (self.sack_permitted == Some(true)).then_some(TcpOption::SackPermitted),
            self.timestamps.map(|(tsval, tsecr)| TcpOption::TimeStamp { tsval, tsecr }),
        ];
        let mut bytes = vec![];
        for option in options.into_iter().flatten() {
            let start = bytes.len();
            bytes.resize(start + option.buffer_len(), 0);
            option.emit(&mut bytes[start..]);
        }
        if let Some(blocks) = self.sack.as_ref().filter(|blocks| !blocks.is_empty()) {
            bytes.extend([SACK, 2 + 8 * blocks.len() as u8]);
            bytes.extend(
                blocks.iter().flat_map(|&(from, to)| [from.to_be_bytes(), to.to_be_bytes()]).flatten(),
            );
        }
        bytes.resize(bytes.len().next_multiple_of(4), 1);
        bytes
    }

    /// The segment in a frame, and its sender and receiver; `None` for frames that carry none.
    ///
    /// # Panics
    /// When a checksum is wrong or the segment is malformed: the stack must not send such a thing.
    pub fn parse(frame: &[u8]) -> Option<(Side, Side, Self)> {
        let ethernet = EthernetFrame::new_checked(frame).expect("the frame has a header");
        let (source, destination, ecn, bytes): (IpAddr, IpAddr, u8, &[u8]) = match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => {
                let ip = Ipv4Packet::new_checked(ethernet.payload()).expect("the IPv4 header is whole");
                assert!(ip.verify_checksum(), "the IPv4 header checksum is wrong");
                if ip.next_header() != IpProtocol::Tcp {
                    return None;
                }
                (ip.src_addr().into(), ip.dst_addr().into(), ip.ecn(), ip.payload())
            }
            EthernetProtocol::Ipv6 => {
                let ip = Ipv6Packet::new_checked(ethernet.payload()).expect("the IPv6 header is whole");
                if ip.next_header() != IpProtocol::Tcp {
                    return None;
                }
                (ip.src_addr().into(), ip.dst_addr().into(), ip.traffic_class() & 3, ip.payload())
            }
            _ => return None,
        };
        let tcp = TcpPacket::new_checked(bytes).expect("the TCP header is whole");
        assert!(tcp.verify_checksum(&source.into(), &destination.into()), "the TCP checksum is wrong");
        let mut seg = Self {
            flags: [FIN, SYN, RST, PSH, ACK, ECE, CWR]
                .into_iter()
                .zip([tcp.fin(), tcp.syn(), tcp.rst(), tcp.psh(), tcp.ack(), tcp.ece(), tcp.cwr()])
                .filter_map(|(flag, set)| set.then_some(flag))
                .sum(),
            seq: tcp.seq_number().0 as u32,
            ack: tcp.ack_number().0 as u32,
            window: Some(tcp.window_len()),
            payload: tcp.payload().to_vec(),
            sack_permitted: Some(false),
            sack: Some(vec![]),
            ecn: Some(ecn),
            ..Self::default()
        };
        let mut options = tcp.options();
        while !options.is_empty() {
            if let [SACK, len, ..] = *options {
                let (option, rest) = options.split_at(len.into());
                let edges = option[2..].as_chunks::<4>().0.iter().map(|edge| u32::from_be_bytes(*edge));
                let edges: Vec<u32> = edges.collect();
                assert!(
                    (2..=8).contains(&edges.len()) && len % 8 == 2,
                    "the blocks are not whole: {option:?}"
                );
                seg.sack = Some(edges.as_chunks::<2>().0.iter().map(|&[from, to]| (from, to)).collect());
                options = rest;
                continue;
            }
            let (rest, option) = TcpOption::parse(options).expect("the options are well-formed");
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(mss) => seg.mss = Some(mss),
                TcpOption::WindowScale(scale) => seg.scale = Some(scale),
                TcpOption::TimeStamp { tsval, tsecr } => seg.timestamps = Some((tsval, tsecr)),
                TcpOption::SackPermitted => seg.sack_permitted = Some(true),
                _ => {}
            }
            options = rest;
        }
        let from = Side { mac: ethernet.src_addr(), at: (source, tcp.src_port()).into() };
        let to = Side { mac: ethernet.dst_addr(), at: (destination, tcp.dst_port()).into() };
        Some((from, to, seg))
    }
}

/// Writes what IP says of marks of congestion into a frame.
pub fn set_ecn(frame: &mut [u8], ecn: u8) {
    let is_v4 = frame[14] >> 4 == 4;
    if is_v4 {
        let mut ip = Ipv4Packet::new_unchecked(&mut frame[14..]);
        ip.set_ecn(ecn);
        ip.fill_checksum();
    } else {
        let mut ip = Ipv6Packet::new_unchecked(&mut frame[14..]);
        ip.set_traffic_class(ip.traffic_class() & !3 | ecn);
    }
}

/// A frame around `len` bytes of an IP payload that `fill` writes.
pub fn ip_frame(
    from: Side,
    to: Side,
    protocol: IpProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let ip = IpRepr::new(from.at.ip().into(), to.at.ip().into(), protocol, len, 255);
    let ethertype = if from.at.is_ipv4() { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 };
    let mut frame = ethernet_frame(from.mac, to.mac, ethertype, ip.header_len() + len);
    ip.emit(&mut frame[14..], &CHECKSUMS());
    fill(&mut frame[14 + ip.header_len()..]);
    frame
}

pub fn ethernet_frame(
    from: EthernetAddress,
    to: EthernetAddress,
    ethertype: EthernetProtocol,
    len: usize,
) -> Vec<u8> {
    let mut frame = vec![0; 14 + len];
    EthernetRepr { src_addr: from, dst_addr: to, ethertype }
        .emit(&mut EthernetFrame::new_unchecked(&mut frame));
    frame
}

/// What a neighbour answers to an ARP request or a neighbor solicitation for its address.
pub fn neighbor_answer(own: Side, frame: &[u8]) -> Option<Vec<u8>> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let asker = ethernet.src_addr();
    match (ethernet.ethertype(), own.at.ip()) {
        (EthernetProtocol::Arp, IpAddr::V4(own_ip)) => {
            let request = ArpRepr::parse(&ArpPacket::new_checked(ethernet.payload()).ok()?).ok()?;
            let ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_protocol_addr,
                target_protocol_addr,
                ..
            } = request
            else {
                return None;
            };
            if target_protocol_addr != own_ip {
                return None;
            }
            Some(arp(ArpOperation::Reply, own, asker, source_protocol_addr.into()))
        }
        (EthernetProtocol::Ipv6, IpAddr::V6(own_ip)) => {
            let (source, message) = icmpv6(&ethernet)?;
            let Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. }) = message else {
                return None;
            };
            if target_addr != own_ip {
                return None;
            }
            let answer = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
                flags: NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE,
                target_addr,
                lladdr: Some(own.mac.into()),
            });
            Some(icmpv6_frame(own, Side { mac: asker, at: (source, 0).into() }, &answer))
        }
        _ => None,
    }
}

/// Whether a frame asks for the Ethernet address of `target`.
pub fn is_question_for(frame: &[u8], target: IpAddr) -> bool {
    neighbor_answer(Side { mac: EthernetAddress([2; 6]), at: (target, 0).into() }, frame).is_some()
}

/// The question of `own` for the Ethernet address of `target`, sent to its solicited-node address.
pub fn neighbor_solicit(own: Side, target: IpAddr) -> Vec<u8> {
    let IpAddr::V6(target) = target else { panic!("neighbor discovery is for IPv6") };
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let to = Side { mac: EthernetAddress([0x33, 0x33, 0xff, a, b, c]), at: (group, 0).into() };
    let question =
        Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr: target, lladdr: Some(own.mac.into()) });
    icmpv6_frame(own, to, &question)
}

/// An ARP message from `own` to `mac`, about the address `target`.
pub fn arp(operation: ArpOperation, own: Side, mac: EthernetAddress, target: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(own_ip), IpAddr::V4(target)) = (own.at.ip(), target) else { panic!("ARP is for IPv4") };
    let message = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: own.mac,
        source_protocol_addr: own_ip,
        target_hardware_addr: mac,
        target_protocol_addr: target,
    };
    let mut frame = ethernet_frame(own.mac, mac, EthernetProtocol::Arp, message.buffer_len());
    message.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
    frame
}

fn icmpv6<'a>(ethernet: &EthernetFrame<&'a [u8]>) -> Option<(IpAddr, Icmpv6Repr<'a>)> {
    let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
    if ip.next_header() != IpProtocol::Icmpv6 {
        return None;
    }
    let packet = Icmpv6Packet::new_checked(ip.payload()).ok()?;
    let message = Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &packet, &CHECKSUMS()).ok()?;
    Some((ip.src_addr().into(), message))
}

pub fn icmpv6_frame(from: Side, to: Side, message: &Icmpv6Repr<'_>) -> Vec<u8> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (from.at.ip(), to.at.ip()) else {
        panic!("ICMPv6 is for IPv6")
    };
    ip_frame(from, to, IpProtocol::Icmpv6, message.buffer_len(), |bytes| {
        message.emit(&source, &destination, &mut Icmpv6Packet::new_unchecked(bytes), &CHECKSUMS());
    })
}

/// An ICMPv4 message of `kind` and `code`, with `rest` as the second word of its header.
pub fn icmpv4_error(from: Side, to: Side, kind: u8, code: u8, rest: u32, quoted: &[u8]) -> Vec<u8> {
    ip_frame(from, to, IpProtocol::Icmp, 8 + quoted.len(), |bytes| {
        bytes[0] = kind;
        bytes[1] = code;
        bytes[4..8].copy_from_slice(&rest.to_be_bytes());
        bytes[8..].copy_from_slice(quoted);
        Icmpv4Packet::new_unchecked(bytes).fill_checksum();
    })
}

/// An ICMPv6 message of `kind` and `code`, with `rest` as the second word of its header.
pub fn icmpv6_error(from: Side, to: Side, kind: u8, code: u8, rest: u32, quoted: &[u8]) -> Vec<u8> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (from.at.ip(), to.at.ip()) else {
        panic!("ICMPv6 is for IPv6")
    };
    ip_frame(from, to, IpProtocol::Icmpv6, 8 + quoted.len(), |bytes| {
        bytes[0] = kind;
        bytes[1] = code;
        bytes[4..8].copy_from_slice(&rest.to_be_bytes());
        bytes[8..].copy_from_slice(quoted);
        Icmpv6Packet::new_unchecked(bytes).fill_checksum(&source, &destination);
    })
}

/// An echo request, of either IP version.
pub fn echo_request(from: Side, to: Side, data: &[u8]) -> Vec<u8> {
    if from.at.is_ipv6() {
        return icmpv6_frame(from, to, &Icmpv6Repr::EchoRequest { ident: 7, seq_no: 1, data });
    }
    let message = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 1, data };
    ip_frame(from, to, IpProtocol::Icmp, message.buffer_len(), |bytes| {
        message.emit(&mut Icmpv4Packet::new_unchecked(bytes), &CHECKSUMS());
    })
}

/// The data of an echo reply, if the frame is one.
pub fn echo_reply(frame: &[u8]) -> Option<Vec<u8>> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            let packet = Icmpv4Packet::new_checked(ip.payload()).ok()?;
            match Icmpv4Repr::parse(&packet, &CHECKSUMS()).ok()? {
                Icmpv4Repr::EchoReply { data, .. } => Some(data.to_vec()),
                _ => None,
            }
        }
        EthernetProtocol::Ipv6 => match icmpv6(&ethernet)? {
            (_, Icmpv6Repr::EchoReply { data, .. }) => Some(data.to_vec()),
            _ => None,
        },
        _ => None,
    }
}

/// The frames that carry an IP packet in fragments of at most `step` bytes of payload, which is a multiple of 8.
pub fn fragments_of(frame: &[u8], step: usize, ident: u16) -> Vec<Vec<u8>> {
    let (ethernet, packet) = frame.split_at(14);
    let is_v4 = packet[0] >> 4 == 4;
    let payload = &packet[if is_v4 { 20 } else { 40 }..];
    let pieces = payload.chunks(step).enumerate().map(|(number, piece)| {
        let offset = number * step;
        let more = offset + piece.len() < payload.len();
        [ethernet, &fragment_of(packet, piece, offset, more, ident)].concat()
    });
    pieces.collect()
}

/// One fragment of an IP packet, which may be any piece of it.
pub fn fragment_of(packet: &[u8], piece: &[u8], offset: usize, more: bool, ident: u16) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        let mut bytes = [&packet[..20], piece].concat();
        let mut ip = Ipv4Packet::new_unchecked(&mut bytes[..]);
        ip.set_total_len((20 + piece.len()) as u16);
        ip.set_ident(ident);
        ip.set_dont_frag(false);
        ip.set_more_frags(more);
        ip.set_frag_offset(offset as u16);
        ip.fill_checksum();
        return bytes;
    }
    let [high, low] = (offset as u16 | u16::from(more)).to_be_bytes();
    let [x, y] = ident.to_be_bytes();
    let mut bytes = [&packet[..40], &[packet[6], 0, high, low, 0, 0, x, y], piece].concat();
    let mut ip = Ipv6Packet::new_unchecked(&mut bytes[..]);
    ip.set_payload_len((8 + piece.len()) as u16);
    ip.set_next_header(IpProtocol::Ipv6Frag);
    bytes
}

/// The frame whose packet came in these fragments, in any order; they must fit together without a gap.
pub fn whole_of(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut pieces: Vec<(usize, bool, Vec<u8>)> = vec![];
    let first = &frames[0];
    let is_v4 = first[14] >> 4 == 4;
    for frame in frames {
        let packet = &frame[14..];
        pieces.push(if is_v4 {
            let ip = Ipv4Packet::new_checked(packet).expect("the fragment is whole");
            assert!(ip.verify_checksum(), "the header's checksum is wrong");
            (ip.frag_offset().into(), ip.more_frags(), ip.payload().to_vec())
        } else {
            let ip = Ipv6Packet::new_checked(packet).expect("the fragment is whole");
            assert_eq!(ip.next_header(), IpProtocol::Ipv6Frag);
            let word = u16::from_be_bytes([ip.payload()[2], ip.payload()[3]]);
            (usize::from(word & !7), word & 1 != 0, ip.payload()[8..].to_vec())
        });
    }
    pieces.sort();
    let mut payload = vec![];
    for (number, (offset, more, piece)) in pieces.iter().enumerate() {
        assert_eq!(*offset, payload.len(), "a gap or an overlap");
        assert_eq!(*more, number + 1 < pieces.len());
        payload.extend_from_slice(piece);
    }
    let mut whole = [&first[..if is_v4 { 34 } else { 54 }], &payload[..]].concat();
    if is_v4 {
        let mut ip = Ipv4Packet::new_unchecked(&mut whole[14..]);
        ip.set_total_len((20 + payload.len()) as u16);
        ip.set_more_frags(false);
        ip.set_frag_offset(0);
        ip.fill_checksum();
    } else {
        let next = first[54];
        let mut ip = Ipv6Packet::new_unchecked(&mut whole[14..]);
        ip.set_payload_len(payload.len() as u16);
        ip.set_next_header(next.into());
    }
    whole
}

/// A frame of IPv6 with extension headers between, of which the first is of type `first`. Where one of them has the
/// type of what follows there must be that of the frame's own payload in the last.
pub fn with_extensions(frame: &[u8], first: u8, extensions: &[u8]) -> Vec<u8> {
    let mut bytes = [&frame[..54], extensions, &frame[54..]].concat();
    let len = bytes.len() - 54;
    let mut ip = Ipv6Packet::new_unchecked(&mut bytes[14..]);
    ip.set_next_header(first.into());
    ip.set_payload_len(len as u16);
    bytes
}

/// A UDP datagram of 18 bytes to a port where nobody listens.
pub fn udp(from: Side, to: Side) -> Vec<u8> {
    datagram(from, Side { at: (to.at.ip(), 9).into(), ..to }, &[0; 18])
}

/// A UDP datagram.
pub fn datagram(from: Side, to: Side, payload: &[u8]) -> Vec<u8> {
    ip_frame(from, to, IpProtocol::Udp, 8 + payload.len(), |bytes| {
        let mut udp = UdpPacket::new_unchecked(bytes);
        udp.set_src_port(from.at.port());
        udp.set_dst_port(to.at.port());
        udp.set_len(8 + payload.len() as u16);
        udp.payload_mut().copy_from_slice(payload);
        udp.fill_checksum(&from.at.ip().into(), &to.at.ip().into());
    })
}

/// The payload of a datagram, and its sender and receiver; `None` for frames that carry none.
///
/// # Panics
/// When it is malformed, or has not the right checksum.
pub fn datagram_in(frame: &[u8]) -> Option<(Side, Side, Vec<u8>)> {
    let ethernet = EthernetFrame::new_checked(frame).expect("the frame has a header");
    let (source, destination, protocol, bytes): (IpAddr, IpAddr, _, _) = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).expect("the IPv4 header is whole");
            assert!(ip.verify_checksum(), "the IPv4 header checksum is wrong");
            (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header(), ip.payload())
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(ethernet.payload()).expect("the IPv6 header is whole");
            (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header(), ip.payload())
        }
        _ => return None,
    };
    if protocol != IpProtocol::Udp {
        return None;
    }
    let udp = UdpPacket::new_checked(bytes).expect("the UDP header is whole");
    assert_ne!(udp.checksum(), 0, "each datagram has a checksum");
    assert!(udp.verify_checksum(&source.into(), &destination.into()), "the UDP checksum is wrong");
    assert_eq!(usize::from(udp.len()), bytes.len(), "nothing is behind the datagram");
    let from = Side { mac: ethernet.src_addr(), at: (source, udp.src_port()).into() };
    let to = Side { mac: ethernet.dst_addr(), at: (destination, udp.dst_port()).into() };
    Some((from, to, udp.payload().to_vec()))
}

/// Type, code, and the second word of an ICMP message, and what it carries.
pub fn icmp(frame: &[u8]) -> Option<(u8, u8, u32, Vec<u8>)> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let message = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            assert!(ip.verify_checksum(), "the header's checksum is wrong");
            let icmp = Icmpv4Packet::new_checked(ip.payload()).ok()?;
            assert!(icmp.verify_checksum(), "the checksum is wrong");
            (ip.next_header() == IpProtocol::Icmp).then_some(ip.payload())?
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
            let icmp = Icmpv6Packet::new_checked(ip.payload()).ok()?;
            (ip.next_header() == IpProtocol::Icmpv6).then_some(())?;
            assert!(icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()), "the checksum is wrong");
            ip.payload()
        }
        _ => return None,
    };
    let word = u32::from_be_bytes(message[4..8].try_into().ok()?);
    Some((message[0], message[1], word, message[8..].to_vec()))
}

/// An ICMPv6 message, as if it were from another side to another one.
pub fn readdressed(frame: &[u8], from: Side, to: Side) -> Vec<u8> {
    let message = &frame[54..];
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (from.at.ip(), to.at.ip()) else {
        panic!("ICMPv6 is for IPv6")
    };
    ip_frame(from, to, IpProtocol::Icmpv6, message.len(), |bytes| {
        bytes.copy_from_slice(message);
        Icmpv6Packet::new_unchecked(bytes).fill_checksum(&source, &destination);
    })
}
