//! Segments of the form that nearly all have: TCP over IPv4 on Ethernet, without IP options, whole, ACK and at most PSH
//! set, no mark of congestion, and no TCP options or the timestamps alone as RFC 7323, appendix A, lays them out.
//!
//! A few wide compares recognise it. What they do not, right or wrong, is for [`frame::parse`](crate::frame::parse),
//! which finds the same in such a segment.

use crate::checksum::{Verdict, judge_v4};
use crate::config::ETHERNET_HEADER_BYTES;
use crate::frame::RxChecksum;
use crate::tcp::options::{TIMESTAMP_BYTES, Timestamp};
use crate::tcp::seq::Seq;

/// Where TCP's header begins, and where it ends without options.
const TCP_AT: usize = ETHERNET_HEADER_BYTES + 20;
const HEADER_BYTES: usize = TCP_AT + 20;

/// What two words of the headers hold in such a segment, and which of their bits that concerns: EtherType, version and
/// header length; then no fragment, and the protocol.
const BEGIN: (u64, u64) = (0x0800_4500_0000_0000, 0xffff_ff00_0000_0000);
const WHOLE_TCP: (u32, u32) = (0x0000_0006, 0x3fff_00ff);

/// The bits of the header's length and of the flags that are looked at. As on the complete path not the reserved ones;
/// but none of the flags is passed over.
const FORM: u16 = 0xf0f7;
const BARE: u16 = 0x5010;
const WITH_TIMESTAMPS: u16 = 0x8010;

/// NOP, NOP, and the kind and length of timestamps.
const TIMESTAMPS: [u8; 4] = [1, 1, 8, 10];

/// Where the parts of a segment of that form are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    /// Where the payload begins in the frame, in bytes.
    payload_at: u8,
    /// Bytes of payload.
    payload_len: u16,
}

/// Addresses and ports of a segment over IPv4 as they stand in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub local: u32,
    pub remote: u32,
    pub ports: u32,
}

/// A segment of that form. Its checksum is [yet to be looked at](Self::judge), as is whether there is such a connection,
/// which then proves its addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usual {
    pub ends: Ends,
    pub source_mac: [u8; 6],
    pub seq: Seq,
    pub ack: Seq,
    /// As it stands in the header, unscaled.
    pub window: u16,
    pub timestamp: Option<Timestamp>,
    /// Where the payload begins in the frame, in bytes.
    pub payload_at: usize,
    /// Bytes of payload.
    pub payload_len: u32,
}

impl Form {
    /// Recognises a segment by a frame's bytes, if it was sent to `mac`, and tells its ends.
    #[inline]
    pub(crate) fn recognise(frame: &[u8], mac: [u8; 6]) -> Option<(Self, Ends)> {
        let head = frame.first_chunk::<HEADER_BYTES>()?;
        let source_mac: [u8; 6] = bytes_at(head, 6);
        let own = bytes_at(head, 0) == mac;
        let from_other = source_mac[0] & 1 == 0 && source_mac != mac;
        let begins = u64_at(head, 12) & BEGIN.1 == BEGIN.0;
        let is_whole_tcp = u32_at(head, 20) & WHOLE_TCP.1 == WHOLE_TCP.0;
        let form = u16_at(head, TCP_AT + 12) & FORM;
        // What a router has marked (RFC 3168).
        let is_unmarked = head[15] & 3 != 3;
        if !(own & from_other & begins & is_whole_tcp & is_unmarked) || !is_header_right(head) {
            return None;
        }
        let payload_at = match form {
            BARE => HEADER_BYTES,
            WITH_TIMESTAMPS if has_timestamps(frame) => HEADER_BYTES + TIMESTAMP_BYTES,
            _ => return None,
        };
        Some((Self::of(head, payload_at, frame.len())?, Ends::of(head)))
    }

    /// Recognises a segment behind one of this form, `before`, if its headers are the same but for lengths and numbers.
    #[inline]
    pub(crate) fn recognise_again(self, frame: &[u8], before: &[u8]) -> Option<Self> {
        let head = frame.first_chunk::<HEADER_BYTES>()?;
        let known = before.first_chunk::<HEADER_BYTES>()?;
        // The ports: those of another connection.
        if u32_at(head, TCP_AT) != u32_at(known, TCP_AT) {
            return None;
        }
        let word = |at| u64_at(head, at) ^ u64_at(known, at);
        // Ethernet's header and what IP's begins with; the addresses; from the flags to the protocol.
        let differs = word(0) | word(8) | word(26) | u64::from(u32_at(head, 20) ^ u32_at(known, 20));
        let form_differs = (u16_at(head, TCP_AT + 12) ^ u16_at(known, TCP_AT + 12)) & FORM;
        if differs | u64::from(form_differs) != 0 || !is_header_right(head) {
            return None;
        }
        let payload_at = usize::from(self.payload_at);
        if payload_at > HEADER_BYTES && !has_timestamps(frame) {
            return None;
        }
        Self::of(head, payload_at, frame.len())
    }

    /// Of a segment whose payload begins there, in a frame of so many bytes, of which those behind IP's fill a short
    /// Ethernet frame up.
    #[inline(always)]
    fn of(head: &[u8; HEADER_BYTES], payload_at: usize, frame_bytes: usize) -> Option<Self> {
        let end = ETHERNET_HEADER_BYTES + usize::from(u16_at(head, 16));
        if end > frame_bytes {
            return None;
        }
        Some(Self { payload_at: payload_at as u8, payload_len: end.checked_sub(payload_at)? as u16 })
    }

    /// Reads a segment of this form.
    #[inline]
    pub(crate) fn read(self, frame: &[u8]) -> Option<Usual> {
        let head = frame.first_chunk::<HEADER_BYTES>()?;
        let payload_at = usize::from(self.payload_at);
        let timestamp = if payload_at == HEADER_BYTES {
            None
        } else {
            let option = timestamps(frame)?;
            Some(Timestamp { value: u32_at(option, 4), echo: u32_at(option, 8) })
        };
        Some(Usual {
            ends: Ends::of(head),
            source_mac: bytes_at(head, 6),
            seq: Seq(u32_at(head, TCP_AT + 4)),
            ack: Seq(u32_at(head, TCP_AT + 8)),
            window: u16_at(head, TCP_AT + 14),
            timestamp,
            payload_at,
            payload_len: self.payload_len.into(),
        })
    }
}

impl Ends {
    #[inline(always)]
    fn of(head: &[u8; HEADER_BYTES]) -> Self {
        let word = |at| u32::from_ne_bytes(bytes_at(head, at));
        Self { remote: word(26), local: word(30), ports: word(TCP_AT) }
    }
}

impl Usual {
    /// Judges the TCP checksum of the segment, which is that of `frame`, unless the device has.
    #[inline(always)]
    pub(crate) fn judge(&self, frame: &[u8], checksum: RxChecksum) -> Verdict {
        if checksum == RxChecksum::Good {
            return Verdict::Right;
        }
        if checksum == RxChecksum::Bad {
            return Verdict::Wrong;
        }
        let may_be_partial = checksum == RxChecksum::UnknownOrPartial;
        match frame.get(TCP_AT..self.payload_at + self.payload_len as usize) {
            Some(segment) => judge_v4(self.ends.remote, self.ends.local, segment, may_be_partial),
            None => Verdict::Wrong,
        }
    }
}

/// TCP's options, if there is room for timestamps.
#[inline(always)]
fn timestamps(frame: &[u8]) -> Option<&[u8; TIMESTAMP_BYTES]> {
    frame.get(HEADER_BYTES..)?.first_chunk()
}

/// Whether TCP's options are timestamps as they are laid out nearly always.
#[inline(always)]
fn has_timestamps(frame: &[u8]) -> bool {
    timestamps(frame).is_some_and(|option| option.first_chunk() == Some(&TIMESTAMPS))
}

/// Whether the checksum of an IPv4 header of 20 bytes is right (RFC 791, section 3.1; RFC 1071 for sums of wider words).
#[inline(always)]
fn is_header_right(head: &[u8; HEADER_BYTES]) -> bool {
    let word = |at| u64::from(u32::from_ne_bytes(bytes_at(head, at)));
    // No number but 0 has a remainder of 0 and a sum of 0, and the version is not 0.
    (word(14) + word(18) + word(22) + word(26) + word(30)) % 0xffff == 0
}

/// `N` bytes from a place that is known when this is compiled, and so is checked then.
#[inline(always)]
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("as many as were asked for")
}

#[inline(always)]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes_at(bytes, at))
}

#[inline(always)]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes_at(bytes, at))
}

#[inline(always)]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;
    use smoltcp::wire::{Ipv4Address, Ipv4Packet, TcpPacket};

    use super::*;
    use crate::emit::Header;
    use crate::flow::FlowKey;
    use crate::frame::{Flags, Local, Parsed, parse};
    use crate::tcp::options::Options;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn frame(timestamp: Option<Timestamp>, payload: &[u8]) -> Vec<u8> {
        let key = FlowKey::new("10.0.0.1:4000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
        let mut segment = Vec::new();
        let header = Header {
            key: &key,
            source_mac: [2, 0, 0, 0, 0, 1],
            mac: MAC,
            seq: Seq(0xfedc_ba98),
            ack: Seq(0x0123_4567),
            flags: Flags::ACK | Flags::PSH,
            window: 513,
            options: Options { timestamp, ..Options::default() },
            traffic_class: 0,
        };
        let layout = header.begin(payload.len(), &mut segment);
        segment.extend_from_slice(payload);
        layout.complete(&mut segment, &[], false);
        segment
    }

    /// Makes checksums right where there is enough of the headers, of a segment as long as IP says.
    fn repair(frame: &mut [u8]) {
        let Ok(mut ip) = Ipv4Packet::new_checked(&mut frame[14..]) else { return };
        let header = usize::from(ip.header_len());
        if header < 20 {
            return;
        }
        ip.fill_checksum();
        let ends: [Ipv4Address; 2] = [ip.src_addr(), ip.dst_addr()];
        let end = 14 + usize::from(ip.total_len());
        if let Ok(mut tcp) = TcpPacket::new_checked(&mut frame[14 + header..end]) {
            tcp.fill_checksum(&ends[0].into(), &ends[1].into());
        }
    }

    /// Whether the frame is of the usual form; what the complete path finds in it is the same then.
    fn check(frame: &[u8], checksum: RxChecksum) -> bool {
        let local = Local { mac: MAC, addresses: vec!["10.0.0.2/24".parse().unwrap()] };
        let Some((form, ends)) = Form::recognise(frame, MAC) else { return false };
        let usual = form.read(frame).unwrap();
        assert_eq!(usual.ends, ends);
        let verdict = usual.judge(frame, checksum);
        match parse(frame, 0, &local, checksum) {
            Parsed::Tcp(segment) => {
                assert_ne!(verdict, Verdict::Wrong);
                assert!(segment.key.has_ends(&ends));
                let timestamp = segment.options.timestamp;
                assert_eq!(segment.options, Options { timestamp, ..Options::default() });
                assert_eq!(segment.flags - Flags::PSH, Flags::ACK);
                assert_eq!(
                    (usual.source_mac, usual.seq, usual.ack, usual.window, usual.timestamp),
                    (segment.source_mac, segment.seq, segment.ack, segment.window, timestamp)
                );
                assert_eq!(
                    (usual.payload_at, usual.payload_len as usize, verdict == Verdict::Partial),
                    (segment.payload_at, segment.payload_len, segment.is_partial)
                );
            }
            // The connection that is found proves these.
            Parsed::Address => {}
            Parsed::BadChecksum => assert_eq!(verdict, Verdict::Wrong),
            other => panic!("{other:?} of {frame:02x?}"),
        }
        true
    }

    fn frames() -> impl Iterator<Item = Vec<u8>> {
        let timestamps = [None, Some(Timestamp { value: 5, echo: 6 })];
        timestamps
            .into_iter()
            .flat_map(|timestamp| [&b""[..], b"a", b"abc"].map(|payload| frame(timestamp, payload)))
    }

    #[test]
    fn usual_segments_are_recognised() {
        for mut frame in frames() {
            assert!(check(&frame, RxChecksum::Unknown));
            frame.resize(80, 0xa5);
            assert!(check(&frame, RxChecksum::Unknown), "filled up");
        }
    }

    /// Each bit of each frame once, its checksums made right again or not, and each length.
    #[test]
    fn what_is_recognised_is_what_the_complete_path_finds() {
        for frame in frames() {
            for at in 0..8 * frame.len() {
                let mut other = frame.clone();
                other[at / 8] ^= 1 << (at % 8);
                check(&other, RxChecksum::Unknown);
                repair(&mut other);
                check(&other, RxChecksum::Unknown);
                check(&other, RxChecksum::Good);
            }
            for len in 0..frame.len() {
                assert!(!check(&frame[..len], RxChecksum::Good));
            }
        }
    }

    /// Each bit of each frame once, behind the frame itself and behind the other: what is recognised by the one before is
    /// recognised without it, as the same, and has the same ends.
    #[test]
    fn what_is_recognised_again_is_what_is_recognised() {
        let mut again = 0;
        for (before, other) in frames().flat_map(|before| frames().map(move |other| (before.clone(), other)))
        {
            let (known, ends) = Form::recognise(&before, MAC).unwrap();
            for at in 0..8 * other.len() {
                let mut frame = other.clone();
                frame[at / 8] ^= 1 << (at % 8);
                for is_repaired in [false, true] {
                    if is_repaired {
                        repair(&mut frame);
                    }
                    let Some(form) = known.recognise_again(&frame, &before) else { continue };
                    again += 1;
                    let (alone, ends_alone) = Form::recognise(&frame, MAC).unwrap();
                    assert_eq!((form, ends), (alone, ends_alone), "bit {at}");
                    assert_eq!(frame[..14], before[..14]);
                }
            }
        }
        assert!(again > 1_000, "{again}");
    }

    #[test]
    fn whatever_is_recognised_is_what_the_complete_path_finds() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let frames: Vec<_> = frames().collect();
        let mut recognised = 0;
        for _ in 0..100_000 {
            let mut frame = frames[rng.random_range(0..frames.len())].clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..frame.len());
                frame[at] = if rng.random() { rng.random() } else { frame[at] ^ 1 << rng.random_range(0..8) };
            }
            if rng.random() {
                let filler = rng.next_u32() as u8;
                frame.resize(frame.len() + rng.random_range(0..9), filler);
            }
            if rng.random_bool(0.9) {
                repair(&mut frame);
            }
            let checksum =
                [RxChecksum::Good, RxChecksum::Bad, RxChecksum::Unknown, RxChecksum::UnknownOrPartial];
            recognised += u32::from(check(&frame, checksum[rng.random_range(0..4)]));
        }
        assert!(recognised > 10_000, "{recognised}");
    }
}
