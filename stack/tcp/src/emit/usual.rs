//! The headers that nearly all segments have: no IP options, and of TCP's only the timestamps (RFC 7323, appendix A).
//!
//! They are written word by word from what the connection holds, and summed up from the same words, so that nothing is
//! read again. That takes fewer instructions than to copy a template and mend it, and no memory for one in each
//! connection. What comes out is what [`Header::begin_any`] and [`Layout::complete_any`] give.

use std::net::Ipv6Addr;

use super::{CHECKSUM_AT, HOP_LIMIT, Header, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, Layout, TCP_HEADER_BYTES};
use crate::checksum::Sum;
use crate::config::ETHERNET_HEADER_BYTES;
use crate::tcp::options::{TIMESTAMP_BYTES, Timestamp};

/// Bytes of TCP's header with its options.
const TCP_BYTES: usize = TCP_HEADER_BYTES + TIMESTAMP_BYTES;
const V4_BYTES: usize = ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES + TCP_BYTES;
const V6_BYTES: usize = ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES + TCP_BYTES;
/// IP's number for TCP.
const TCP: u32 = 6;
/// Two times no operation, then timestamps of ten bytes.
const TIMESTAMP_KIND: u32 = 0x0101_080a;

/// What TCP's checksum begins with, in this machine's byte order. The words of a sum may be of 32 bits, as carries come
/// back (RFC 1071, section 2).
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums {
    pseudo: u64,
    header: u64,
}

impl Sums {
    /// The sum of the pseudo header.
    pub(super) fn pseudo(self) -> u16 {
        Sum::of_words(self.pseudo).folded()
    }

    /// The sum of pseudo header and header.
    #[inline]
    pub(super) fn segment(self) -> Sum {
        Sum::of_words(self.pseudo + self.header)
    }
}

impl Header<'_> {
    /// Bytes of the headers.
    #[inline]
    pub(crate) fn usual_bytes(&self) -> usize {
        if self.key.is_v4() { V4_BYTES } else { V6_BYTES }
    }

    /// Writes all of a segment into `frame`, which is as long as the [headers](Self::usual_bytes) and `text`.
    #[inline(always)]
    pub(crate) fn write_usual(&self, timestamp: Timestamp, text: &[u8], frame: &mut [u8]) {
        if self.key.is_v4() {
            let Some((head, rest)) = frame.split_first_chunk_mut::<V4_BYTES>() else { return };
            rest.copy_from_slice(text);
            let sums = self.write_v4(timestamp, text.len(), head);
            put_checksum(&mut head[V4_BYTES - TCP_BYTES..], sums, text);
        } else {
            let Some((head, rest)) = frame.split_first_chunk_mut::<V6_BYTES>() else { return };
            rest.copy_from_slice(text);
            let sums = self.write_v6(timestamp, text.len(), head);
            put_checksum(&mut head[V6_BYTES - TCP_BYTES..], sums, text);
        }
    }

    /// Writes the headers into `head`: all of them but TCP's checksum.
    #[inline]
    pub(crate) fn begin_usual(&self, timestamp: Timestamp, payload: usize, head: &mut Vec<u8>) -> Layout {
        let v6 = !self.key.is_v4();
        let sums = match v6 {
            false => self.write_v4(timestamp, payload, only(head)),
            true => self.write_v6(timestamp, payload, only(head)),
        };
        Layout { v6, l4_at: head.len() - TCP_BYTES, payload_at: head.len(), sums: Some(sums) }
    }

    /// Writes the headers of a segment with so many bytes of payload.
    #[inline(always)]
    fn write_v4(&self, timestamp: Timestamp, payload: usize, bytes: &mut [u8; V4_BYTES]) -> Sums {
        let tcp_len = (TCP_BYTES + payload) as u32;
        let ([.., local], [.., remote]) = (words(&self.key.local), words(&self.key.remote));
        // As in `begin_v4`: not to be fragmented, and without an identification.
        let mut ip = [
            0x4500_0000 | u32::from(self.traffic_class) << 16 | (IPV4_HEADER_BYTES as u32 + tcp_len) & 0xffff,
            0x0000_4000,
            u32::from(HOP_LIMIT) << 24 | TCP << 16,
            local,
            remote,
        ];
        let sum = ip.iter().copied().map(u64::from).sum();
        ip[2] |= u32::from(!folded(sum));
        self.write_ethernet([0x08, 0x00], bytes);
        write(&ip.map(u32::to_be), &mut bytes[ETHERNET_HEADER_BYTES..V4_BYTES - TCP_BYTES]);
        let addresses = u64::from(local.to_be()) + u64::from(remote.to_be());
        self.write_tcp(timestamp, tcp_len, addresses, &mut bytes[V4_BYTES - TCP_BYTES..])
    }

    /// As [`write_v4`](Self::write_v4).
    #[inline(always)]
    fn write_v6(&self, timestamp: Timestamp, payload: usize, bytes: &mut [u8; V6_BYTES]) -> Sums {
        let tcp_len = (TCP_BYTES + payload) as u32;
        let [local, remote] = [&self.key.local, &self.key.remote].map(|ip| words(ip).map(u32::to_be));
        let fixed = [
            0x6000_0000 | u32::from(self.traffic_class) << 20,
            tcp_len << 16 | TCP << 8 | u32::from(HOP_LIMIT),
        ];
        let fixed = fixed.map(u32::to_be);
        self.write_ethernet([0x86, 0xdd], bytes);
        let (ip, segment) = bytes[ETHERNET_HEADER_BYTES..].split_at_mut(IPV6_HEADER_BYTES);
        write(&fixed, &mut ip[..8]);
        write(&local, &mut ip[8..24]);
        write(&remote, &mut ip[24..]);
        let addresses = local.iter().chain(&remote).copied().map(u64::from).sum();
        self.write_tcp(timestamp, tcp_len, addresses, segment)
    }

    /// Writes TCP's header. `addresses` is the sum of the addresses, in this machine's byte order.
    #[inline(always)]
    fn write_tcp(&self, timestamp: Timestamp, tcp_len: u32, addresses: u64, bytes: &mut [u8]) -> Sums {
        // As they stand in the header.
        let tcp = self.tcp_words(timestamp).map(u32::to_be);
        write(&tcp, bytes);
        let header = tcp.iter().copied().map(u64::from).sum();
        Sums { pseudo: addresses + u64::from((TCP + tcp_len).to_be()), header }
    }

    #[inline]
    fn write_ethernet(&self, kind: [u8; 2], bytes: &mut [u8]) {
        bytes[..6].copy_from_slice(&self.mac);
        bytes[6..12].copy_from_slice(&self.source_mac);
        bytes[12..14].copy_from_slice(&kind);
    }

    /// TCP's header and its options (RFC 9293, section 3.1), with a checksum of zero.
    #[inline]
    fn tcp_words(&self, timestamp: Timestamp) -> [u32; TCP_BYTES / 4] {
        let data_offset = (TCP_BYTES / 4) as u32;
        [
            u32::from(self.key.local_port) << 16 | u32::from(self.key.remote_port),
            self.seq.0,
            self.ack.0,
            data_offset << 28 | u32::from(self.flags.bits()) << 16 | u32::from(self.window),
            0,
            TIMESTAMP_KIND,
            timestamp.value,
            timestamp.echo,
        ]
    }
}

/// An address as words.
#[inline]
fn words(address: &Ipv6Addr) -> [u32; 4] {
    let bits = address.to_bits();
    [(bits >> 96) as u32, (bits >> 64) as u32, (bits >> 32) as u32, bits as u32]
}

/// Writes words as they lie.
#[inline]
fn write(words: &[u32], bytes: &mut [u8]) {
    for (word, bytes) in words.iter().zip(bytes.as_chunks_mut::<4>().0) {
        *bytes = word.to_ne_bytes();
    }
}

/// Fills in the checksum of a segment whose header is `segment`, and whose payload is `text`.
#[inline(always)]
fn put_checksum(segment: &mut [u8], sums: Sums, text: &[u8]) {
    let mut sum = sums.segment();
    if !text.is_empty() {
        sum.add(text);
    }
    segment[CHECKSUM_AT..][..2].copy_from_slice(&(!sum.folded()).to_be_bytes());
}

/// So many bytes, which are all that there are then, to be written over: those of the last frame, or zeros.
#[inline(always)]
fn only<const N: usize>(head: &mut Vec<u8>) -> &mut [u8; N] {
    if head.len() < N {
        head.resize(N, 0);
    }
    head.truncate(N);
    head.first_chunk_mut().expect("it was made as long")
}

/// A sum of words, folded to one of 16 bits; zero only if all were zero.
#[inline]
fn folded(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::flow::{FlowKey, mapped};
    use crate::frame::Flags;
    use crate::tcp::options::Options;
    use crate::tcp::seq::Seq;
    use crate::testing::{arena, extent_of};

    fn addresses() -> impl Strategy<Value = (Ipv6Addr, Ipv6Addr)> {
        // Few bits set, or few clear: where carries and the two zeros are.
        let word = || prop_oneof![any::<u32>(), Just(0), Just(u32::MAX), Just(0xffff), Just(0xffff_0000)];
        let v4 = move || word().prop_map(|word| mapped(Ipv4Addr::from_bits(word).into()));
        let v6 = move || {
            (any::<u32>(), word(), word(), word()).prop_map(|(a, b, c, d)| {
                // Never one that is IPv4's.
                let bits = [a | 1, b, c, d].into_iter().fold(0, |bits, word| bits << 32 | u128::from(word));
                Ipv6Addr::from_bits(bits)
            })
        };
        prop_oneof![(v4(), v4()), (v6(), v6())]
    }

    /// Byte by byte, what smoltcp's wire formats and one sum over all give.
    #[test]
    fn usual_headers_are_those_that_any_headers_are() {
        let arena = arena(4);
        let strategy = (
            (addresses(), any::<[u16; 2]>(), any::<[[u8; 6]; 2]>()),
            (any::<[u32; 4]>(), any::<(u8, u16, u8)>()),
            prop::collection::vec(any::<u8>(), 0..40),
            prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..3),
            any::<bool>(),
        );
        proptest!(ProptestConfig::with_cases(10_000), |((fixed, fields, text, pieces, offload) in strategy)| {
            let ((local, remote), [local_port, remote_port], [source_mac, mac]) = fixed;
            let ([seq, ack, value, echo], (flags, window, traffic_class)) = fields;
            let pieces: Vec<_> = pieces.iter().map(|piece| extent_of(&arena, piece)).collect();
            let payload = text.len() + pieces.iter().map(|piece| piece.len()).sum::<usize>();
            let key = FlowKey { local, remote, local_port, remote_port };
            let header = Header {
                key: &key,
                source_mac,
                mac,
                seq: Seq(seq),
                ack: Seq(ack),
                flags: Flags::from_bits_truncate(flags),
                window,
                options: Options { timestamp: Some(Timestamp { value, echo }), ..Options::default() },
                traffic_class,
            };
            let (mut usual, mut any) = (vec![7; 9], Vec::new());
            let layout = header.begin(payload, &mut usual);
            prop_assert!(layout.sums.is_some());
            usual.extend_from_slice(&text);
            let left = layout.complete(&mut usual, &pieces, offload);
            let layout = header.begin_any(&mut any);
            any.extend_from_slice(&text);
            prop_assert_eq!(left, layout.complete(&mut any, &pieces, offload));
            prop_assert_eq!(&usual, &any);
            if pieces.is_empty() && !offload {
                let mut written = vec![7; header.usual_bytes() + text.len()];
                header.write_usual(Timestamp { value, echo }, &text, &mut written);
                prop_assert_eq!(&written, &any);
            }
        });
    }
}
