//! Answers by ICMP: echo replies, in fragments if they are long, and errors (RFC 792, RFC 4443).

use std::net::IpAddr;

use smoltcp::wire::{IpProtocol, checksum};

use super::packet::{Packet, Part, Way, pseudo_header};
use super::queue::FrameQueue;
use crate::config::ETHERNET_HEADER_BYTES;
use crate::extensions::UNRECOGNIZED_NEXT_HEADER;

const ICMP_HEADER_BYTES: usize = 8;

/// Longest packets that carry errors (RFC 1812, section 4.3.2.3; RFC 4443, section 2.4).
const MAX_ERROR_BYTES_V4: usize = 576;
const MAX_ERROR_BYTES_V6: usize = 1280;

/// Bytes of the longest frame that carries an error.
pub(super) const MAX_ERROR_FRAME_BYTES: usize = ETHERNET_HEADER_BYTES + MAX_ERROR_BYTES_V6;

/// Why a packet is answered by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// Nobody listens at the port.
    Port,
    /// Nobody speaks the protocol, which the byte `named_at` names.
    Protocol { named_at: usize },
    /// A header field is not as it must be.
    Field { code: u8, pointer: usize },
    /// Fragments have not come in time.
    Incomplete,
}

impl Problem {
    /// Type, code, and the second word of the message.
    fn header(self, is_v6: bool) -> (u8, u8, u32) {
        match (self, is_v6) {
            (Self::Port, false) => (3, 3, 0),
            (Self::Port, true) => (1, 4, 0),
            (Self::Protocol { .. }, false) => (3, 2, 0),
            (Self::Protocol { named_at }, true) => (4, UNRECOGNIZED_NEXT_HEADER, named_at as u32),
            (Self::Field { pointer, .. }, false) => (12, 0, (pointer as u32) << 24),
            (Self::Field { code, pointer }, true) => (4, code, pointer as u32),
            (Self::Incomplete, false) => (11, 1, 0),
            (Self::Incomplete, true) => (3, 1, 0),
        }
    }
}

/// Whether a packet that carries ICMP asks for an echo.
pub(super) fn is_echo_request(packet: &Packet<'_>) -> bool {
    let kind = if packet.source.is_ipv4() { 8 } else { 128 };
    packet.payload.len() >= ICMP_HEADER_BYTES && packet.payload[..2] == [kind, 0]
}

/// Whether a packet that carries ICMP is an error that can be about a connection.
pub(super) fn is_error(packet: &Packet<'_>) -> bool {
    let kind = packet.payload.first();
    if packet.source.is_ipv4() { kind == Some(&3) } else { matches!(kind, Some(1 | 2)) }
}

/// Queues the reply to an echo request, in as many frames as it takes; false if there is no room for all of them.
pub(super) fn echo(queue: &mut FrameQueue, request: &Packet<'_>, way: Way, mtu: usize, ident: u32) -> bool {
    let message = request.payload;
    // The reply differs in its type and, by that, in its checksum (RFC 1624).
    let kind = if request.source.is_ipv4() { 0 } else { 129 };
    let sum = !u16::from_be_bytes([message[2], message[3]]);
    let change = [!u16::from_be_bytes([message[0], 0]), u16::from_be_bytes([kind, 0])];
    let sum = !checksum::combine(&[sum, change[0], change[1]]);
    let whole = ETHERNET_HEADER_BYTES + mtu - way.header_bytes(true);
    let step = if message.len() <= whole {
        whole
    } else {
        (ETHERNET_HEADER_BYTES + mtu - way.header_bytes(false)) & !7
    };
    if queue.room() < message.len().div_ceil(step) {
        return false;
    }
    for (number, chunk) in message.chunks(step).enumerate() {
        let offset = number * step;
        let part = Part { ident, offset, more: offset + chunk.len() < message.len() };
        let headers = way.header_bytes(message.len() <= whole);
        queue.push(headers + chunk.len(), |frame| {
            let at = way.write(frame, part);
            frame[at..].copy_from_slice(chunk);
            if offset == 0 {
                frame[at] = kind;
                frame[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
            }
        });
    }
    true
}

/// Queues an error about the IP packet `quoted`, as much of which is sent as may be.
pub(super) fn error(queue: &mut FrameQueue, quoted: &[u8], way: Way, problem: Problem, ident: u32) -> bool {
    let is_v6 = way.source.is_ipv6();
    let longest = if is_v6 { MAX_ERROR_BYTES_V6 } else { MAX_ERROR_BYTES_V4 };
    let headers = way.header_bytes(true) + ICMP_HEADER_BYTES;
    let quoted = &quoted[..quoted.len().min(ETHERNET_HEADER_BYTES + longest - headers)];
    queue.push(headers + quoted.len(), |frame| {
        let at = way.write(frame, Part { ident, offset: 0, more: false });
        let message = &mut frame[at..];
        let (kind, code, word) = problem.header(is_v6);
        message[..2].copy_from_slice(&[kind, code]);
        message[4..8].copy_from_slice(&word.to_be_bytes());
        message[8..].copy_from_slice(quoted);
        let sum = checksum::data(message);
        let pseudo = pseudo_header(way.source, way.destination, message.len());
        let sum = !pseudo.map_or(sum, |pseudo| checksum::combine(&[pseudo, sum]));
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    })
}

/// Whether a packet may be answered by an error: not one that is an error itself, or that could be one
/// (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
pub(super) fn may_be_complained_of(packet: &Packet<'_>) -> bool {
    match (packet.source, packet.protocol) {
        (IpAddr::V4(_), IpProtocol::Icmp) => matches!(packet.payload.first(), Some(0 | 8 | 13..=18)),
        (IpAddr::V6(_), IpProtocol::Icmpv6) => {
            packet.payload.first().is_some_and(|kind| *kind >= 128 && *kind != 137)
        }
        _ => true,
    }
}
