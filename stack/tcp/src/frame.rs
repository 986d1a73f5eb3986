//! Frames as they come in and go out, and the parsing of those that carry TCP or UDP.

use std::net::IpAddr;
use std::num::NonZeroU16;

use pmem::{Buffer, Extent};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpAddress, IpCidr,
    IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
};

use crate::address::is_host;
use crate::checksum::{Verdict, judge, judge_udp};
use crate::config::ETHERNET_HEADER_BYTES;
use crate::extensions::{self, Upper};
use crate::flow::{FlowKey, mapped};
use crate::tcp::options::Options;
use crate::tcp::seq::Seq;

/// What the device says of a received frame's checksum, of TCP or of UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxChecksum {
    /// Verified.
    Good,
    /// Not looked at; the core does.
    Unknown,
    /// Not looked at, on a link where the sender may be a kernel that has left the sum to a device: a field that holds
    /// no more than the pseudo header's sum is taken as well, and counted.
    UnknownOrPartial,
    /// Wrong.
    Bad,
}

/// A received frame in the transport's hands.
pub trait RxFrame {
    /// The frame, from the Ethernet header on: all of it, or as far as the end of TCP's header if the payload lies
    /// [`apart`](Self::apart).
    fn bytes(&self) -> &[u8];

    /// What follows [`bytes`](Self::bytes) in the frame. Nothing but where a device has put headers and payload into
    /// different places, has split right behind TCP's header, and has found the checksum good: the core drops
    /// other frames in two pieces.
    fn apart(&self) -> &[u8] {
        &[]
    }

    /// What the device says of the checksum of TCP or UDP.
    fn checksum(&self) -> RxChecksum;

    /// The VLAN (IEEE 802.1Q) whose tag was taken off the frame; 0 is a priority without a VLAN.
    fn vlan(&self) -> Option<u16> {
        None
    }

    /// Hands over the named buffer that holds the frame's payload, after putting a spare one in its place, and where
    /// in it that byte of the payload lies which is `at` bytes into the frame. Called at most once, and only for
    /// payload that is retained; `None` when there is no spare buffer, and the payload is then dropped
    /// unacknowledged.
    fn claim(&mut self, at: usize) -> Option<(Buffer, usize)>;
}

/// Received frames in the transport's hands, for [`Endpoint::receive_burst`](crate::Endpoint::receive_burst).
pub trait RxBurst {
    /// A frame while it is taken in.
    type Frame<'a>: RxFrame
    where
        Self: 'a;

    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A frame's bytes from the Ethernet header on, as many as lie together. It is looked at some frames before it is
    /// taken in.
    fn head(&self, at: usize) -> &[u8];

    /// Takes the tag of a VLAN off a frame that has one in it. That is asked of all but segments of the usual form, which
    /// have none.
    fn untag(&mut self, at: usize) {
        let _ = at;
    }

    /// A frame, to be taken in; none if the transport drops it. It may be asked for twice, and is taken in once.
    fn frame(&mut self, at: usize) -> Option<Self::Frame<'_>>;

    /// Whether a segment in that frame can belong to no other core's connection.
    fn is_last(&self, at: usize) -> bool {
        let _ = at;
        true
    }

    /// Has other cores take part in a frame as told. What was put together from fragments comes along, to go instead of
    /// the frame.
    fn share(&mut self, at: usize, share: Share, whole: Option<&[u8]>) {
        let _ = (at, share, whole);
    }
}

impl<F: RxFrame> RxFrame for &mut F {
    fn bytes(&self) -> &[u8] {
        (**self).bytes()
    }

    fn apart(&self) -> &[u8] {
        (**self).apart()
    }

    fn checksum(&self) -> RxChecksum {
        (**self).checksum()
    }

    fn vlan(&self) -> Option<u16> {
        (**self).vlan()
    }

    fn claim(&mut self, at: usize) -> Option<(Buffer, usize)> {
        (**self).claim(at)
    }
}

/// Frames that are at hand, of a host of one core.
impl<F: RxFrame> RxBurst for [F] {
    type Frame<'a>
        = &'a mut F
    where
        F: 'a;

    fn len(&self) -> usize {
        self.len()
    }

    fn head(&self, at: usize) -> &[u8] {
        self[at].bytes()
    }

    fn frame(&mut self, at: usize) -> Option<&mut F> {
        Some(&mut self[at])
    }
}

/// What the other cores of a host have to do with a frame that one of them has received, where each core runs an
/// [`Endpoint`](crate::Endpoint) for the same addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Share {
    /// Nothing.
    Nothing,
    /// It may tell them something: give each a copy by [`Endpoint::learn`](crate::Endpoint::learn). What there was to
    /// answer is answered.
    News,
    /// A segment for which there is no connection here, and which was not answered: it may belong to another core.
    Stray,
    /// As [`Stray`](Self::Stray), but put together from fragments: the frame for the other core is not the one that
    /// was received.
    StrayWhole,
}

/// A frame to send: bytes that are copied, and behind them pieces of named buffers that are not.
#[derive(Debug)]
pub struct TxFrame<'a> {
    /// Ethernet, IP and TCP headers, and copied payload.
    pub head: &'a [u8],
    /// Payload that follows. A sink that reads it later than now clones the extents.
    pub payload: &'a [Extent],
    /// What is left to do about checksums.
    pub checksum: TxChecksum,
    /// The device is to cut the frame into such with so many bytes of payload, the last with what is left, each with the
    /// frame's headers: numbered on, FIN and PSH only in the last, checksums filled in (TCP segmentation offload). Then
    /// [`checksum`](Self::checksum) says where the headers are. None but where
    /// [`tx_segmentation`](crate::Config::tx_segmentation) is on.
    pub segment_bytes: Option<NonZeroU16>,
}

impl TxFrame<'_> {
    /// Bytes of the whole frame.
    #[allow(clippy::len_without_is_empty)]
    #[inline]
    pub fn len(&self) -> usize {
        self.head.len() + self.payload.iter().map(|extent| extent.bytes().len()).sum::<usize>()
    }
}

/// What is left for the device to do about a frame's checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxChecksum {
    /// Nothing.
    Done,
    /// The TCP checksum: its field holds the sum over the pseudo header.
    Tcp {
        /// Whether the IP header is IPv6's.
        ipv6: bool,
        /// Bytes of the Ethernet header.
        l2_bytes: usize,
        /// Bytes of the IP header.
        l3_bytes: usize,
        /// Bytes of the TCP header.
        l4_bytes: usize,
    },
}

/// Takes frames for sending.
pub trait FrameSink {
    /// Takes one frame.
    ///
    /// # Errors
    /// [`SinkFull`]: nothing was taken, and the core offers the frame again later.
    fn send(&mut self, frame: TxFrame<'_>) -> Result<(), SinkFull>;

    /// Takes one frame of `len` bytes that is complete once the caller has written it, all of it, into what is returned: where
    /// it is sent from. None, and nothing was taken, if there is no such place: then it is [sent](Self::send).
    #[inline]
    fn place(&mut self, _len: usize) -> Option<&mut [u8]> {
        None
    }
}

/// The device takes no more frames just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device's queue is full; offer the frame again after it has sent some")]
pub struct SinkFull;

bitflags::bitflags! {
    /// The control bits of a TCP header (RFC 9293, section 3.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Flags: u8 {
        const FIN = 0x01;
        const SYN = 0x02;
        const RST = 0x04;
        const PSH = 0x08;
        const ACK = 0x10;
        /// Marks were seen, and less is sent for that (RFC 3168, section 6.1).
        const ECE = 0x40;
        const CWR = 0x80;
    }
}

/// A TCP segment that arrived, without its payload's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub key: FlowKey,
    pub source_mac: [u8; 6],
    pub seq: Seq,
    pub ack: Seq,
    pub flags: Flags,
    /// As it stands in the header, unscaled.
    pub window: u16,
    pub options: Options,
    /// Where the payload begins in the frame, in bytes.
    pub payload_at: usize,
    /// Bytes of payload.
    pub payload_len: usize,
    /// Whether its checksum is the pseudo header's alone.
    pub is_partial: bool,
    /// Whether a router has met with congestion, and says so (RFC 3168).
    pub is_marked: bool,
}

impl Segment {
    /// Sequence numbers that the segment takes up.
    pub(crate) fn len(&self) -> u32 {
        let flags = self.flags.intersection(Flags::SYN | Flags::FIN).bits().count_ones();
        self.payload_len as u32 + flags
    }
}

/// Bytes of the header of UDP (RFC 768).
pub(crate) const UDP_HEADER_BYTES: usize = 8;

/// A UDP datagram that arrived, without its payload's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UdpDatagram {
    pub key: FlowKey,
    pub source_mac: [u8; 6],
    /// Where the payload begins in the frame, in bytes.
    pub payload_at: usize,
    /// Bytes of payload.
    pub payload_len: usize,
    /// Whether its checksum is the pseudo header's alone.
    pub is_partial: bool,
}

/// What a frame turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    Tcp(Segment),
    Udp(UdpDatagram),
    /// Of another protocol, or for smoltcp's interface to refuse.
    Other,
    Malformed,
    /// Less of it is here than its IP header says.
    Truncated,
    /// With a VLAN's tag.
    Vlan,
    BadChecksum,
    /// Not for this host, or from an address that cannot be a peer's.
    Address,
    /// An IP fragment, of whatever protocol.
    Fragment,
}

/// The addresses that frames must be sent to.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub mac: [u8; 6],
    pub addresses: Vec<IpCidr>,
}

impl Local {
    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|cidr| IpAddr::from(cidr.address()) == ip)
    }

    pub(crate) fn has_v6(&self) -> bool {
        self.addresses.iter().any(|cidr| matches!(cidr, IpCidr::Ipv6(_)))
    }

    /// The length of the longest own prefix that `ip` has; none if it is not reached without a router.
    pub(crate) fn on_link_prefix(&self, ip: IpAddr) -> Option<u8> {
        if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return Some(128);
        }
        let address = IpAddress::from(ip);
        let near = self.addresses.iter().filter(|cidr| cidr.contains_addr(&address));
        near.map(IpCidr::prefix_len).max()
    }

    /// The address to speak to `remote` from: one of its subnet if possible.
    pub(crate) fn source_for(&self, remote: IpAddr) -> Option<IpAddr> {
        let same = |cidr: &&IpCidr| IpAddr::from(cidr.address()).is_ipv4() == remote.is_ipv4();
        let address = IpAddress::from(remote);
        self.addresses
            .iter()
            .filter(same)
            .find(|cidr| cidr.contains_addr(&address))
            .or_else(|| self.addresses.iter().find(same))
            .map(|cidr| cidr.address().into())
    }

    /// Whether a segment can come from there: a host's address that is not one of our own
    /// (RFC 1122, section 3.2.1.3; RFC 9293, section 3.9.2.3).
    pub(crate) fn is_peer(&self, ip: IpAddr) -> bool {
        is_host(ip) && !self.is_directed_broadcast(ip) && !self.has(ip)
    }

    fn is_directed_broadcast(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|cidr| match (cidr, ip) {
            (IpCidr::Ipv4(cidr), IpAddr::V4(ip)) => cidr.broadcast() == Some(ip),
            _ => false,
        })
    }
}

/// Reads a frame, of which `apart` bytes follow in another place. Nothing in it is believed: lengths, addresses and
/// checksums are verified.
pub(crate) fn parse(frame: &[u8], apart: usize, local: &Local, checksum: RxChecksum) -> Parsed {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return Parsed::Malformed };
    let source_mac = ethernet.src_addr();
    let ip = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => parse_v4(ethernet.payload(), apart),
        EthernetProtocol::Ipv6 => parse_v6(ethernet.payload(), apart),
        tag if is_vlan(tag) => return Parsed::Vlan,
        _ => return Parsed::Other,
    };
    let ip = match ip {
        Ok(ip) => ip,
        Err(parsed) => return parsed,
    };
    let Ip { protocol, source, destination, at, packet, len, is_marked } = ip;
    // Whoever sends TCP to a group is not a peer (RFC 9293, section 3.9.2.3, MUST-57), nor is it on Ethernet.
    // Nor does what comes back to its sender. No groups' datagrams are taken either.
    let to_us = ethernet.dst_addr() == EthernetAddress(local.mac) && local.has(destination);
    let from_other = source_mac.is_unicast() && source_mac.0 != local.mac;
    if !to_us || !from_other || !local.is_peer(source) {
        return Parsed::Address;
    }
    if protocol == IpProtocol::Udp {
        return parse_udp(&ip, source_mac.0, apart, checksum);
    }
    let Ok(tcp) = TcpPacket::new_checked(packet) else { return Parsed::Malformed };
    let header_len = usize::from(tcp.header_len());
    let payload_at = ETHERNET_HEADER_BYTES + at + header_len;
    if apart > 0 && payload_at != frame.len() {
        return Parsed::Malformed;
    }
    let verdict = match checksum {
        RxChecksum::Good => Verdict::Right,
        RxChecksum::Unknown if apart == 0 => judge(source, destination, packet, false),
        RxChecksum::UnknownOrPartial if apart == 0 => judge(source, destination, packet, true),
        _ => Verdict::Wrong,
    };
    if verdict == Verdict::Wrong {
        return Parsed::BadChecksum;
    }
    if tcp.src_port() == 0 || tcp.dst_port() == 0 {
        return Parsed::Address;
    }
    Parsed::Tcp(Segment {
        key: FlowKey {
            local: mapped(destination),
            remote: mapped(source),
            local_port: tcp.dst_port(),
            remote_port: tcp.src_port(),
        },
        source_mac: source_mac.0,
        seq: Seq(tcp.seq_number().0 as u32),
        ack: Seq(tcp.ack_number().0 as u32),
        flags: Flags::from_bits_truncate(packet[13]),
        window: tcp.window_len(),
        options: Options::parse(tcp.options()),
        payload_at,
        payload_len: len - header_len,
        is_partial: verdict == Verdict::Partial,
        is_marked,
    })
}

/// Reads a datagram to this host. What its packet has behind it is left out of account.
fn parse_udp(ip: &Ip<'_>, source_mac: [u8; 6], apart: usize, checksum: RxChecksum) -> Parsed {
    let word = |at: usize| u16::from_be_bytes([ip.packet[at], ip.packet[at + 1]]);
    if apart > 0 || ip.packet.len() < UDP_HEADER_BYTES {
        return Parsed::Malformed;
    }
    let len = usize::from(word(4));
    let Some(datagram) = ip.packet.get(..len).filter(|_| len >= UDP_HEADER_BYTES) else {
        return Parsed::Malformed;
    };
    let may_be_partial = checksum == RxChecksum::UnknownOrPartial;
    // What the device says is not asked where there is no checksum, which is for this side to judge.
    let verdict = match checksum {
        RxChecksum::Good if word(6) != 0 => Verdict::Right,
        RxChecksum::Bad if word(6) != 0 => Verdict::Wrong,
        _ => judge_udp(ip.source, ip.destination, datagram, may_be_partial),
    };
    if verdict == Verdict::Wrong {
        return Parsed::BadChecksum;
    }
    Parsed::Udp(UdpDatagram {
        key: FlowKey {
            local: mapped(ip.destination),
            remote: mapped(ip.source),
            local_port: word(2),
            remote_port: word(0),
        },
        source_mac,
        payload_at: ETHERNET_HEADER_BYTES + ip.at + UDP_HEADER_BYTES,
        payload_len: len - UDP_HEADER_BYTES,
        is_partial: verdict == Verdict::Partial,
    })
}

/// Whether an EtherType is a VLAN tag's: 802.1Q, 802.1ad, and what was used for the outer of two before that.
fn is_vlan(kind: EthernetProtocol) -> bool {
    matches!(u16::from(kind), 0x8100 | 0x88a8 | 0x9100)
}

/// Whether a frame's first bytes `head` are all its headers up to TCP's, and nothing more.
pub fn ends_with_tcp_header(head: &[u8]) -> bool {
    let Ok(ethernet) = EthernetFrame::new_checked(head) else { return false };
    // As much may follow as a packet can hold.
    let ip = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => parse_v4(ethernet.payload(), u16::MAX.into()),
        EthernetProtocol::Ipv6 => parse_v6(ethernet.payload(), u16::MAX.into()),
        _ => return false,
    };
    ip.is_ok_and(|ip| {
        ip.protocol == IpProtocol::Tcp
            && TcpPacket::new_checked(ip.packet)
                .is_ok_and(|tcp| ETHERNET_HEADER_BYTES + ip.at + usize::from(tcp.header_len()) == head.len())
    })
}

/// The flow of a frame that carries TCP or UDP, of which `apart` bytes follow in another place. What else is wrong with
/// it is for [`parse`] to find.
pub(crate) fn flow_of(frame: &[u8], apart: usize) -> Option<FlowKey> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let ip = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => parse_v4(ethernet.payload(), apart),
        EthernetProtocol::Ipv6 => parse_v6(ethernet.payload(), apart),
        _ => return None,
    };
    let Ip { source, destination, packet, .. } = ip.ok()?;
    let port = |at| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    Some(FlowKey {
        local: mapped(destination),
        remote: mapped(source),
        local_port: port(2)?,
        remote_port: port(0)?,
    })
}

/// What IP's field for that says if a router has met with congestion.
const MARKED: u8 = 3;

/// An IP packet that carries TCP or UDP.
struct Ip<'a> {
    protocol: IpProtocol,
    source: IpAddr,
    destination: IpAddr,
    /// Where the segment or datagram begins in the packet.
    at: usize,
    /// The segment or datagram, or as much of it as is here.
    packet: &'a [u8],
    /// Length of all of it in bytes.
    len: usize,
    /// Whether a router has met with congestion (RFC 3168, section 5).
    is_marked: bool,
}

#[expect(clippy::result_large_err, reason = "what is large is never the error: segments come later")]
fn parse_v4(bytes: &[u8], apart: usize) -> Result<Ip<'_>, Parsed> {
    // smoltcp's check takes a header length below the minimum, and none of the packet to be elsewhere.
    if bytes.len() < IPV4_HEADER_LEN || bytes[0] >> 4 != 4 || bytes[0] & 0x0f < 5 {
        return Err(Parsed::Malformed);
    }
    let packet = Ipv4Packet::new_unchecked(bytes);
    let (at, end) = (usize::from(packet.header_len()), usize::from(packet.total_len()));
    if at > end || at > bytes.len() {
        return Err(Parsed::Malformed);
    }
    if end > bytes.len() + apart {
        return Err(Parsed::Truncated);
    }
    let is_fragment = packet.more_frags() || packet.frag_offset() != 0;
    let protocol = packet.next_header();
    if !matches!(protocol, IpProtocol::Tcp | IpProtocol::Udp) && !is_fragment {
        return Err(Parsed::Other);
    }
    if !packet.verify_checksum() {
        return Err(Parsed::BadChecksum);
    }
    if is_fragment {
        return Err(Parsed::Fragment);
    }
    Ok(Ip {
        protocol,
        source: packet.src_addr().into(),
        destination: packet.dst_addr().into(),
        at,
        packet: &bytes[at..end.min(bytes.len())],
        len: end - at,
        is_marked: packet.ecn() == MARKED,
    })
}

#[expect(clippy::result_large_err, reason = "what is large is never the error: segments come later")]
fn parse_v6(bytes: &[u8], apart: usize) -> Result<Ip<'_>, Parsed> {
    if bytes.len() < IPV6_HEADER_LEN {
        return Err(Parsed::Malformed);
    }
    let packet = Ipv6Packet::new_unchecked(bytes);
    let (at, len) = (packet.header_len(), usize::from(packet.payload_len()));
    if packet.version() != 6 {
        return Err(Parsed::Malformed);
    }
    if at + len > bytes.len() + apart {
        return Err(Parsed::Truncated);
    }
    let end = (at + len).min(bytes.len());
    let (at, protocol) = match packet.next_header() {
        protocol @ (IpProtocol::Tcp | IpProtocol::Udp) => (at, protocol),
        _ => match extensions::walk(&bytes[..end]) {
            Ok(Upper { fragment: Some(_), .. }) => return Err(Parsed::Fragment),
            Ok(upper) => (upper.at, upper.protocol),
            Err(_) => return Err(Parsed::Other),
        },
    };
    if !matches!(protocol, IpProtocol::Tcp | IpProtocol::Udp) {
        return Err(Parsed::Other);
    }
    Ok(Ip {
        protocol,
        source: packet.src_addr().into(),
        destination: packet.dst_addr().into(),
        at,
        packet: &bytes[at..end],
        len: IPV6_HEADER_LEN + len - at,
        is_marked: packet.traffic_class() & 3 == MARKED,
    })
}
