//! IPv6 extension headers (RFC 8200, section 4), read within limits: what stands between the IPv6 header and what it
//! carries.

use smoltcp::wire::{IPV6_HEADER_LEN, IpProtocol};

/// Most extension headers of a packet, bytes of all of them, and options in one (RFC 8504, section 5.3, on such
/// limits). What goes beyond them is dropped.
const MAX_HEADERS: usize = 8;
pub(crate) const MAX_BYTES: usize = 512;
const MAX_OPTIONS: usize = 8;

/// Codes of ICMPv6 parameter problems (RFC 4443, section 3.4).
pub(crate) const ERRONEOUS_FIELD: u8 = 0;
pub(crate) const UNRECOGNIZED_NEXT_HEADER: u8 = 1;
const UNRECOGNIZED_OPTION: u8 = 2;

/// What a packet carries behind its extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Upper {
    pub protocol: IpProtocol,
    /// Where it begins in the packet; for a fragment, what is behind the fragment header.
    pub at: usize,
    /// Where the field stands that names the protocol; for a fragment, the field that names the fragment header.
    pub named_at: usize,
    pub fragment: Option<Fragment>,
    /// Whether the packet asks routers to look at it (RFC 2711).
    pub router_alert: bool,
}

/// A fragment header of a packet that is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub offset: usize,
    pub more: bool,
    pub ident: u32,
}

/// Why a packet is not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Malformed,
    /// To be dropped without a word: an option says so, or there is too much to read.
    Silent,
    /// To be answered by an ICMPv6 parameter problem.
    Problem {
        code: u8,
        /// The byte in the packet that it is about.
        pointer: usize,
        /// Whether a packet that was sent to a group is answered, too.
        to_groups: bool,
    },
}

/// Reads the extension headers of an IPv6 packet, whose own header is whole.
pub(crate) fn walk(packet: &[u8]) -> Result<Upper, Refusal> {
    let mut named_at = 6;
    let mut at = IPV6_HEADER_LEN;
    let mut router_alert = false;
    for _ in 0..=MAX_HEADERS {
        let protocol = IpProtocol::from(packet[named_at]);
        match protocol {
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts => {
                if protocol == IpProtocol::HopByHop && at != IPV6_HEADER_LEN {
                    return Err(problem(UNRECOGNIZED_NEXT_HEADER, named_at));
                }
                let end = end_of(packet, at)?;
                router_alert |= options(packet, at + 2, end)?;
                (named_at, at) = (at, end);
            }
            IpProtocol::Ipv6Route => {
                let end = end_of(packet, at)?;
                // Nothing is routed here: RFC 8200, section 4.4, on types that a host does not know.
                if packet[at + 3] != 0 {
                    return Err(problem(ERRONEOUS_FIELD, at + 2));
                }
                (named_at, at) = (at, end);
            }
            IpProtocol::Ipv6Frag => {
                let header = packet.get(at..at + 8).ok_or(Refusal::Malformed)?;
                let word = u16::from_be_bytes([header[2], header[3]]);
                let (offset, more) = (usize::from(word & !7), word & 1 != 0);
                // RFC 6946: a packet that is its only fragment is a packet like any other.
                if offset != 0 || more {
                    let ident = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                    let fragment = Some(Fragment { offset, more, ident });
                    let protocol = IpProtocol::from(header[0]);
                    return Ok(Upper { protocol, at: at + 8, named_at, fragment, router_alert });
                }
                (named_at, at) = (at, at + 8);
            }
            _ => return Ok(Upper { protocol, at, named_at, fragment: None, router_alert }),
        }
    }
    Err(Refusal::Silent)
}

fn problem(code: u8, pointer: usize) -> Refusal {
    Refusal::Problem { code, pointer, to_groups: false }
}

/// Where the extension header at `at` ends.
fn end_of(packet: &[u8], at: usize) -> Result<usize, Refusal> {
    let len = packet.get(at + 1).ok_or(Refusal::Malformed)?;
    let end = at + (usize::from(*len) + 1) * 8;
    if end > packet.len() {
        return Err(Refusal::Malformed);
    }
    if end - IPV6_HEADER_LEN > MAX_BYTES { Err(Refusal::Silent) } else { Ok(end) }
}

/// Looks at options; true if one of them is a router alert.
fn options(packet: &[u8], mut at: usize, end: usize) -> Result<bool, Refusal> {
    const PAD1: u8 = 0;
    const PADN: u8 = 1;
    const ROUTER_ALERT: u8 = 5;
    let mut router_alert = false;
    let mut count = 0;
    while at < end {
        let kind = packet[at];
        if kind == PAD1 {
            at += 1;
            continue;
        }
        if at + 2 > end {
            return Err(Refusal::Malformed);
        }
        let next = at + 2 + usize::from(packet[at + 1]);
        if next > end {
            return Err(Refusal::Malformed);
        }
        if kind != PADN {
            count += 1;
            if count > MAX_OPTIONS {
                return Err(Refusal::Silent);
            }
            router_alert |= kind == ROUTER_ALERT;
            // RFC 8200, section 4.2: the type says what is to be done by who does not know it.
            match kind >> 6 {
                0 => {}
                1 => return Err(Refusal::Silent),
                action => {
                    let (code, to_groups) = (UNRECOGNIZED_OPTION, action == 2);
                    return Err(Refusal::Problem { code, pointer: at, to_groups });
                }
            }
        }
        at = next;
    }
    Ok(router_alert)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet with these extension headers, of which the first is of type `first`.
    fn packet(first: u8, headers: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 40];
        bytes[6] = first;
        bytes.extend_from_slice(headers);
        bytes.extend_from_slice(b"upper");
        bytes
    }

    #[test]
    fn headers_are_walked_up_to_what_they_carry() {
        let hop_destination_routing_atomic = [
            60, 0, 5, 2, 0, 0, 1, 0, // hop by hop: router alert
            43, 0, 1, 4, 0, 0, 0, 0, // destination options: padding
            44, 0, 0, 0, 0, 0, 0, 0, // routing, no segments left
            6, 0, 0, 0, 1, 2, 3, 4, // an atomic fragment
        ];
        let upper = walk(&packet(0, &hop_destination_routing_atomic)).unwrap();
        assert_eq!((upper.protocol, upper.at, upper.named_at), (IpProtocol::Tcp, 72, 64));
        assert!(upper.router_alert && upper.fragment.is_none());
    }

    #[test]
    fn unknown_options_are_treated_as_their_type_says() {
        let refusal = |kind| walk(&packet(60, &[6, 0, kind, 0, 1, 2, 0, 0]));
        assert!(refusal(0x1e).is_ok());
        assert_eq!(refusal(0x5e), Err(Refusal::Silent));
        for (kind, to_groups) in [(0x9e, true), (0xde, false)] {
            assert_eq!(refusal(kind), Err(Refusal::Problem { code: 2, pointer: 42, to_groups }));
        }
    }

    #[test]
    fn there_is_an_end_to_what_is_read() {
        let padding = [60, 0, 1, 4, 0, 0, 0, 0];
        assert_eq!(walk(&packet(60, &padding.repeat(9))), Err(Refusal::Silent));
        let mut long = vec![0; 600];
        (long[0], long[1]) = (6, 74);
        assert_eq!(walk(&packet(60, &long)), Err(Refusal::Silent));
        let many = [
            6, 2, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0, 0, 0, 0,
        ];
        assert_eq!(walk(&packet(60, &many)), Err(Refusal::Silent));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(first: u8, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let packet = packet(first, &bytes);
            if let Ok(upper) = walk(&packet) {
                prop_assert!(upper.at <= packet.len());
            }
        }
    }
}
