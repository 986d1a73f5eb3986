//! The Internet checksum (RFC 1071). Where the device does not verify it, it reads each payload byte, which makes it the
//! longest loop of all.

use std::net::IpAddr;

use pmem::sum_words;
use smoltcp::wire::{IpProtocol, checksum};

/// Where the headers of TCP and UDP have their checksums.
const TCP_FIELD: usize = 16;
const UDP_FIELD: usize = 6;

/// A sum over pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    /// In this machine's byte order, its carries not added back yet: they and the order may wait until the end (RFC
    /// 1071, section 2). Up to 2^8 pieces of any length fit, and up to 2^22 of a packet's.
    words: u64,
    /// Whether the next byte is the second one of a word.
    odd: bool,
}

impl From<u16> for Sum {
    fn from(start: u16) -> Self {
        Self { words: start.to_be().into(), odd: false }
    }
}

impl Sum {
    /// The sum of words of 32 bits as they lie in memory, of which there are less than 2^16.
    #[inline]
    pub(crate) fn of_words(words: u64) -> Self {
        Self { words, odd: false }
    }

    #[inline(always)]
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let sum = sum_words(bytes);
        // By 8 bits around the words: half of what bytes in the other places are worth.
        self.words += if self.odd { sum << 8 } else { sum };
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Whether it [folds](Self::folded) to ones, which is what a checksum that is right makes of it. It is no sum of zeros
    /// alone.
    #[inline]
    fn is_ones(&self) -> bool {
        // In whatever order the bytes of its words are.
        self.words.is_multiple_of(u64::from(u16::MAX))
    }

    #[inline]
    pub(crate) fn folded(&self) -> u16 {
        let sum = (self.words >> 32) + (self.words & 0xffff_ffff);
        let sum = (sum >> 32) + (sum & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        u16::from_be(sum as u16)
    }
}

/// What a segment's checksum is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Right,
    /// The field holds the pseudo header's sum: what a kernel writes there for a device to go on from.
    Partial,
    Wrong,
}

/// Judges the checksum of a whole TCP segment (RFC 9293, section 3.1). Addresses of two kinds have none. With
/// `may_be_partial` the payload of one that is partial is not read.
pub(crate) fn judge(source: IpAddr, destination: IpAddr, segment: &[u8], may_be_partial: bool) -> Verdict {
    match pseudo(source, destination, IpProtocol::Tcp, segment.len()) {
        Some(pseudo) => judge_after::<TCP_FIELD>(pseudo.into(), segment, may_be_partial),
        None => Verdict::Wrong,
    }
}

/// Judges the checksum of a whole UDP datagram, as [`judge`] does. Over IPv4 it may have none, and a zero says so (RFC
/// 768); over IPv6 it must have one (RFC 8200, section 8.1).
pub(crate) fn judge_udp(
    source: IpAddr,
    destination: IpAddr,
    datagram: &[u8],
    may_be_partial: bool,
) -> Verdict {
    match pseudo(source, destination, IpProtocol::Udp, datagram.len()) {
        Some(_) if datagram.get(UDP_FIELD..UDP_FIELD + 2) == Some(&[0, 0]) => match source {
            IpAddr::V4(_) => Verdict::Right,
            IpAddr::V6(_) => Verdict::Wrong,
        },
        Some(pseudo) => judge_after::<UDP_FIELD>(pseudo.into(), datagram, may_be_partial),
        None => Verdict::Wrong,
    }
}

/// The sum over the pseudo header; none between addresses of two kinds.
pub(crate) fn pseudo(source: IpAddr, destination: IpAddr, protocol: IpProtocol, len: usize) -> Option<u16> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Some(checksum::pseudo_header_v4(&source, &destination, protocol, len as u32))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Some(checksum::pseudo_header_v6(&source, &destination, protocol, len as u32))
        }
        _ => None,
    }
}

/// As [`judge`], between two IPv4 addresses as they stand in the frame.
#[inline]
pub(crate) fn judge_v4(source: u32, destination: u32, segment: &[u8], may_be_partial: bool) -> Verdict {
    let [.., a, b] = segment.len().to_be_bytes();
    let rest = u32::from_ne_bytes([0, IpProtocol::Tcp.into(), a, b]);
    let words = u64::from(source) + u64::from(destination) + u64::from(rest);
    judge_after::<TCP_FIELD>(Sum { words, odd: false }, segment, may_be_partial)
}

/// Judges a segment, whose checksum is at `FIELD`, by the sum of its pseudo header.
#[inline(always)]
fn judge_after<const FIELD: usize>(mut sum: Sum, segment: &[u8], may_be_partial: bool) -> Verdict {
    if may_be_partial && segment.get(FIELD..FIELD + 2) == Some(&sum.folded().to_be_bytes()) {
        return Verdict::Partial;
    }
    sum.add(segment);
    // The protocol's number is in it.
    if sum.is_ones() { Verdict::Right } else { Verdict::Wrong }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum_of(bytes: &[u8]) -> u16 {
        let mut sum = Sum::from(0);
        sum.add(bytes);
        sum.folded()
    }

    proptest! {
        #[test]
        fn sums_are_those_of_words_one_by_one(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(sum_of(&bytes), checksum::data(&bytes));
        }

        #[test]
        fn pieces_sum_up_to_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..300), cuts in any::<[u8; 3]>()) {
            let mut sum = Sum::from(0);
            let mut rest = &bytes[..];
            for cut in cuts {
                let (piece, later) = rest.split_at(usize::from(cut).min(rest.len()));
                sum.add(piece);
                rest = later;
            }
            sum.add(rest);
            prop_assert_eq!(sum.folded(), checksum::data(&bytes));
        }
    }

    #[test]
    fn full_words_do_not_lose_their_carries() {
        assert_eq!(sum_of(&[0xff; 65_535]), checksum::data(&[0xff; 65_535]));
        assert_eq!(sum_of(&[0; 64]), 0);
    }

    #[test]
    fn the_pseudo_headers_sum_alone_is_partial_where_it_may_be_and_nothing_else_is() {
        let (source, destination) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        // 10.0.0.1, 10.0.0.2, TCP and 24 bytes: 0x0a00 + 0x0001 + 0x0a00 + 0x0002 + 6 + 24.
        let mut segment = [0x5a; 24];
        segment[16..18].copy_from_slice(&0x1421_u16.to_be_bytes());
        let judged = |segment: &[u8], may| judge(source.into(), destination.into(), segment, may);
        assert_eq!(judged(&segment, true), Verdict::Partial);
        assert_eq!(judged(&segment, false), Verdict::Wrong);
        segment[17] += 1;
        assert_eq!(judged(&segment, true), Verdict::Wrong);
        segment[16..18].fill(0);
        let mut sum = Sum::from(0x1421);
        sum.add(&segment);
        segment[16..18].copy_from_slice(&(!sum.folded()).to_be_bytes());
        assert_eq!((judged(&segment, true), judged(&segment, false)), (Verdict::Right, Verdict::Right));
        // A segment of another length has another sum.
        segment[16..18].copy_from_slice(&0x1421_u16.to_be_bytes());
        assert_eq!(judged(&segment[..22], true), Verdict::Wrong);
    }

    #[test]
    fn a_datagram_without_a_checksum_is_right_over_ipv4_alone() {
        let v4 = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        let v6 = [[1; 16], [2; 16]].map(IpAddr::from);
        for ([from, to], bare) in [(v4, Verdict::Right), (v6, Verdict::Wrong)] {
            let mut datagram = [0x5a; 11];
            datagram[6..8].fill(0);
            assert_eq!(judge_udp(from, to, &datagram, true), bare);
            let mut sum = Sum::from(pseudo(from, to, IpProtocol::Udp, 11).unwrap());
            let partial = sum.folded();
            sum.add(&datagram);
            datagram[6..8].copy_from_slice(&(!sum.folded()).to_be_bytes());
            assert_eq!(judge_udp(from, to, &datagram, false), Verdict::Right);
            datagram[6..8].copy_from_slice(&partial.to_be_bytes());
            assert_eq!(judge_udp(from, to, &datagram, true), Verdict::Partial);
            assert_eq!(judge_udp(from, to, &datagram, false), Verdict::Wrong);
        }
    }

    #[test]
    fn addresses_of_two_kinds_have_no_checksum() {
        let (v4, v6) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]));
        assert_eq!(judge(v4, v6, &[0; 20], true), Verdict::Wrong);
    }
}
