//! The Internet checksum (RFC 1071), many words at a time: where the device does not verify it, it reads each
//! payload byte, which makes it the longest loop of all.

use std::net::IpAddr;

use smoltcp::wire::{IpProtocol, checksum};

/// A sum over pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    words: u32,
    /// Whether the next byte is the second one of a word.
    odd: bool,
}

impl From<u16> for Sum {
    fn from(start: u16) -> Self {
        Self { words: start.into(), odd: false }
    }
}

impl Sum {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let sum = words(bytes);
        self.words += u32::from(if self.odd { sum.swap_bytes() } else { sum });
        self.odd ^= bytes.len() % 2 == 1;
    }

    pub(crate) fn folded(&self) -> u16 {
        checksum::combine(&[(self.words >> 16) as u16, self.words as u16])
    }
}

/// Whether a whole TCP segment has the right checksum (RFC 9293, section 3.1). Addresses of two kinds have none.
pub(crate) fn is_right(source: IpAddr, destination: IpAddr, segment: &[u8]) -> bool {
    let len = segment.len() as u32;
    let pseudo = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            checksum::pseudo_header_v4(&source, &destination, IpProtocol::Tcp, len)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            checksum::pseudo_header_v6(&source, &destination, IpProtocol::Tcp, len)
        }
        _ => return false,
    };
    let mut sum = Sum::from(pseudo);
    sum.add(segment);
    sum.folded() == u16::MAX
}

/// The sum of the 16-bit words of `bytes`, a last odd byte as if a zero followed.
fn words(bytes: &[u8]) -> u16 {
    // RFC 1071, section 2: carries of wider words come back when they are folded, and the order of bytes may be
    // changed at the end. Up to 2^32 words fit before the first carry is lost; a packet has 2^14.
    let (wide, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let mut sum = u64::from(u32::from_ne_bytes(last));
    sum += wide.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum::<u64>();
    while sum > u64::from(u16::MAX) {
        sum = (sum >> 16) + (sum & u64::from(u16::MAX));
    }
    u16::from_be_bytes((sum as u16).to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sums_are_those_of_words_one_by_one(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(words(&bytes), checksum::data(&bytes));
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
        assert_eq!(words(&[0xff; 65_535]), checksum::data(&[0xff; 65_535]));
        assert_eq!(words(&[0; 64]), 0);
    }

    #[test]
    fn addresses_of_two_kinds_have_no_checksum() {
        let (v4, v6) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]));
        assert!(!is_right(v4, v6, &[0; 20]));
    }
}
