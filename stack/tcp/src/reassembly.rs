//! Packets put together from their fragments (RFC 791, section 3.2; RFC 8200, section 4.5; RFC 1122, section 3.3.2).
//!
//! Memory is taken at the start: places for a few packets of any length. The oldest makes room for a new one.
//! Fragments that overlap are an attack or an error, and the whole packet is dropped with all that still comes of it
//! (RFC 5722, here for IPv4 as well); a fragment that came twice is not an overlap.

use std::net::IpAddr;
use std::time::Duration;

use arrayvec::ArrayVec;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Ipv4Packet, Ipv6Packet,
};
use stack_net::time::Instant;

use crate::config::ETHERNET_HEADER_BYTES;
use crate::extensions;
use crate::frame::Local;

/// Packets at a time.
const PACKETS: usize = 16;

/// The longest that IP can describe.
const MAX_PACKET_BYTES: usize = u16::MAX as usize;

/// Room for the Ethernet header and all headers that stand before a fragment header.
const HEAD_BYTES: usize = ETHERNET_HEADER_BYTES + IPV6_HEADER_LEN + extensions::MAX_BYTES;

/// Stretches of a packet that may have arrived apart from each other.
const MAX_STRETCHES: usize = 32;

/// How long the rest of a packet is waited for: as Linux waits, and as RFC 8200, section 4.5, says.
const PATIENCE_V4: Duration = Duration::from_secs(30);
const PATIENCE_V6: Duration = Duration::from_secs(60);

/// What a fragment led to.
#[derive(Debug)]
pub(crate) enum Joined {
    /// More are to come, or it came twice.
    Waits,
    /// A frame that carries the whole packet; it is to be [given back](Reassembly::give_back).
    Whole(Whole),
    /// It is not for this host, or not well-formed, or contradicts others.
    Dropped,
}

/// A frame in the memory of its place.
#[derive(Debug)]
pub(crate) struct Whole {
    place: usize,
    memory: Vec<u8>,
    begins: usize,
    ends: usize,
}

impl Whole {
    pub(crate) fn frame(&self) -> &[u8] {
        &self.memory[self.begins..self.ends]
    }
}

/// Which packet a fragment is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    source: IpAddr,
    destination: IpAddr,
    /// IPv4's; IPv6 tells packets apart without.
    protocol: u8,
    ident: u32,
}

struct Fragment<'a> {
    name: Name,
    /// The Ethernet header and what of the packet's headers each fragment has.
    head: &'a [u8],
    /// Where in the frame the field stands that named the fragment header, and what follows that, for IPv6.
    named: Option<(usize, u8)>,
    offset: usize,
    more: bool,
    /// What IP says of congestion (RFC 3168, section 5).
    ecn: u8,
    payload: &'a [u8],
}

/// A packet whose fragments are being put together, or room for one.
struct Datagram {
    name: Option<Name>,
    until: Instant,
    memory: Vec<u8>,
    /// Bytes of the first fragment's head, which ends where the payload begins; 0 until it has come.
    head_bytes: usize,
    stretches: ArrayVec<(usize, usize), MAX_STRETCHES>,
    total: Option<usize>,
    /// What the fragments say of congestion: a bit for each codepoint.
    ecns: u8,
    /// Something was wrong: what still comes is dropped.
    is_void: bool,
}

/// Not to be marked, and marked (RFC 3168, section 5), as bits of [`Datagram::ecns`].
const INCAPABLE: u8 = 1;
const MARKED: u8 = 1 << CE;
const CE: u8 = 3;

/// All packets that are not whole yet.
pub(crate) struct Reassembly {
    places: Box<[Datagram]>,
    /// Packets given up since the rest did not come, or since others needed the place.
    pub(crate) given_up: u64,
}

impl Reassembly {
    pub(crate) fn new() -> Self {
        let place = || Datagram {
            name: None,
            until: Instant::ZERO,
            memory: vec![0; HEAD_BYTES + MAX_PACKET_BYTES],
            head_bytes: 0,
            stretches: ArrayVec::new(),
            total: None,
            ecns: 0,
            is_void: false,
        };
        Self { places: (0..PACKETS).map(|_| place()).collect(), given_up: 0 }
    }

    /// Takes in a frame that carries a fragment.
    pub(crate) fn join(&mut self, frame: &[u8], local: &Local, now: Instant) -> Joined {
        let Some(fragment) = parse(frame, local) else { return Joined::Dropped };
        let at = self.place_for(&fragment.name, now);
        let place = &mut self.places[at];
        if place.is_void {
            return Joined::Dropped;
        }
        match place.add(&fragment) {
            Added::Twice => Joined::Waits,
            Added::Wrong => {
                place.is_void = true;
                Joined::Dropped
            }
            Added::Yes => match place.complete(&fragment.name) {
                Completed::NotYet => Joined::Waits,
                Completed::TooLong => {
                    place.is_void = true;
                    Joined::Dropped
                }
                Completed::Frame { begins, ends } => {
                    place.name = None;
                    Joined::Whole(Whole {
                        place: at,
                        memory: std::mem::take(&mut place.memory),
                        begins,
                        ends,
                    })
                }
            },
        }
    }

    /// Gives a packet's memory back to its place.
    pub(crate) fn give_back(&mut self, whole: Whole) {
        self.places[whole.place].memory = whole.memory;
    }

    /// When the next packet is given up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.places.iter().filter(|place| place.name.is_some()).map(|place| place.until).min()
    }

    /// Gives up a packet whose time is over; `tell` gets the frame with as much of it as there is, if that is its
    /// beginning. False if there is none.
    pub(crate) fn expire(&mut self, now: Instant, tell: impl FnOnce(&[u8])) -> bool {
        let over = |place: &&mut Datagram| place.name.is_some() && place.until <= now;
        let Some(place) = self.places.iter_mut().find(over) else { return false };
        self.given_up += u64::from(!place.is_void);
        if !place.is_void
            && place.head_bytes > 0
            && let Some(&(0, end)) = place.stretches.first()
            && let Some(name) = place.name
            && let Some((begins, ends)) = place.seal(&name, end)
        {
            tell(&place.memory[begins..ends]);
        }
        place.name = None;
        true
    }

    /// The place of a packet: its own, or a free one, or the oldest's.
    fn place_for(&mut self, name: &Name, now: Instant) -> usize {
        if let Some(at) = self.places.iter().position(|place| place.name.as_ref() == Some(name)) {
            return at;
        }
        let free = self.places.iter().position(|place| place.name.is_none());
        let at = free.unwrap_or_else(|| {
            let oldest = self.places.iter().enumerate().min_by_key(|(_, place)| place.until);
            oldest.map_or(0, |(at, _)| at)
        });
        let place = &mut self.places[at];
        self.given_up += u64::from(place.name.is_some() && !place.is_void);
        let patience = if name.source.is_ipv4() { PATIENCE_V4 } else { PATIENCE_V6 };
        (place.name, place.until) = (Some(*name), now + patience);
        (place.head_bytes, place.total, place.ecns, place.is_void) = (0, None, 0, false);
        place.stretches.clear();
        at
    }
}

enum Added {
    Yes,
    Twice,
    Wrong,
}

enum Completed {
    NotYet,
    TooLong,
    Frame { begins: usize, ends: usize },
}

impl Datagram {
    fn add(&mut self, fragment: &Fragment<'_>) -> Added {
        let Fragment { offset, more, payload, .. } = *fragment;
        let end = offset + payload.len();
        // All but the last are of whole words of 8 bytes.
        if end > MAX_PACKET_BYTES || payload.is_empty() || (more && payload.len() % 8 != 0) {
            return Added::Wrong;
        }
        let known_end = self.stretches.last().map_or(0, |&(_, end)| end);
        match self.total {
            Some(total) if end > total || (!more && end != total) => return Added::Wrong,
            None if !more && end < known_end => return Added::Wrong,
            _ => {}
        }
        let into = &mut self.memory[HEAD_BYTES + offset..HEAD_BYTES + end];
        if self.stretches.iter().any(|&(from, to)| from <= offset && end <= to) {
            return if *into == *payload { Added::Twice } else { Added::Wrong };
        }
        if self.stretches.iter().any(|&(from, to)| offset < to && from < end) {
            return Added::Wrong;
        }
        // RFC 3168, section 5.3: a mark counts for all of it, and cannot be of a packet whose ends heed none.
        self.ecns |= 1 << fragment.ecn;
        if self.ecns & (INCAPABLE | MARKED) == INCAPABLE | MARKED {
            return Added::Wrong;
        }
        into.copy_from_slice(payload);
        // Joined with its neighbors on both sides.
        let at = self.stretches.iter().take_while(|(from, _)| *from < offset).count();
        let joins_next = self.stretches.get(at).is_some_and(|&(from, _)| from == end);
        let joins_previous = at > 0 && self.stretches[at - 1].1 == offset;
        match (joins_previous, joins_next) {
            (true, true) => {
                self.stretches[at - 1].1 = self.stretches[at].1;
                self.stretches.remove(at);
            }
            (true, false) => self.stretches[at - 1].1 = end,
            (false, true) => self.stretches[at].0 = offset,
            (false, false) if self.stretches.is_full() => return Added::Wrong,
            (false, false) => self.stretches.insert(at, (offset, end)),
        }
        if !more {
            self.total = Some(end);
        }
        if offset == 0 {
            self.keep_head(fragment);
        }
        Added::Yes
    }

    /// Keeps the headers of the first fragment, as they are without a fragment header.
    fn keep_head(&mut self, fragment: &Fragment<'_>) {
        let begins = HEAD_BYTES - fragment.head.len();
        self.memory[begins..HEAD_BYTES].copy_from_slice(fragment.head);
        if let Some((named_at, next)) = fragment.named {
            self.memory[begins + named_at] = next;
        }
        self.head_bytes = fragment.head.len();
    }

    fn complete(&mut self, name: &Name) -> Completed {
        match (self.total, &self.stretches[..]) {
            (Some(total), &[(0, end)]) if end == total && self.head_bytes > 0 => match self.seal(name, total)
            {
                Some((begins, ends)) => Completed::Frame { begins, ends },
                None => Completed::TooLong,
            },
            _ => Completed::NotYet,
        }
    }

    /// Makes the head that of a whole packet with so much payload, and tells where the frame begins and ends.
    fn seal(&mut self, name: &Name, len: usize) -> Option<(usize, usize)> {
        let (begins, ends) = (HEAD_BYTES - self.head_bytes, HEAD_BYTES + len);
        let packet = &mut self.memory[begins + ETHERNET_HEADER_BYTES..ends];
        let is_marked = self.ecns & MARKED != 0;
        if name.source.is_ipv4() {
            let total = u16::try_from(packet.len()).ok()?;
            let mut ip = Ipv4Packet::new_unchecked(packet);
            if is_marked {
                ip.set_ecn(CE);
            }
            ip.set_total_len(total);
            ip.set_more_frags(false);
            ip.set_frag_offset(0);
            ip.fill_checksum();
        } else {
            let payload = u16::try_from(packet.len() - IPV6_HEADER_LEN).ok()?;
            let mut ip = Ipv6Packet::new_unchecked(packet);
            if is_marked {
                ip.set_traffic_class(ip.traffic_class() | CE);
            }
            ip.set_payload_len(payload);
        }
        Some((begins, ends))
    }
}

/// Reads a fragment that is for this host.
fn parse<'a>(frame: &'a [u8], local: &Local) -> Option<Fragment<'a>> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let is_from_other = ethernet.src_addr().is_unicast() && ethernet.src_addr().0 != local.mac;
    if !is_from_other || ethernet.dst_addr().0 != local.mac {
        return None;
    }
    let bytes = ethernet.payload();
    let fragment = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            if bytes.len() < IPV4_HEADER_LEN || bytes[0] & 0x0f < 5 {
                return None;
            }
            let ip = Ipv4Packet::new_checked(bytes).ok()?;
            let name = Name {
                source: ip.src_addr().into(),
                destination: ip.dst_addr().into(),
                protocol: ip.next_header().into(),
                ident: ip.ident().into(),
            };
            let head = &frame[..ETHERNET_HEADER_BYTES + usize::from(ip.header_len())];
            let offset = ip.frag_offset().into();
            let (more, ecn) = (ip.more_frags(), ip.ecn());
            Fragment { name, head, named: None, offset, more, ecn, payload: ip.payload() }
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(bytes).ok()?;
            let packet = &bytes[..ip.total_len()];
            let upper = extensions::walk(packet).ok()?;
            let part = upper.fragment?;
            let header_at = upper.at - 8;
            let name = Name {
                source: ip.src_addr().into(),
                destination: ip.dst_addr().into(),
                protocol: 0,
                ident: part.ident,
            };
            Fragment {
                name,
                head: &frame[..ETHERNET_HEADER_BYTES + header_at],
                named: Some((ETHERNET_HEADER_BYTES + upper.named_at, packet[header_at])),
                offset: part.offset,
                more: part.more,
                ecn: ip.traffic_class() & 3,
                payload: &packet[upper.at..],
            }
        }
        _ => return None,
    };
    let Name { source, destination, .. } = fragment.name;
    (local.has(destination) && local.is_peer(source)).then_some(fragment)
}

impl std::fmt::Debug for Reassembly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = self.places.iter().filter(|place| place.name.is_some()).count();
        f.debug_struct("Reassembly").field("open", &open).finish_non_exhaustive()
    }
}
