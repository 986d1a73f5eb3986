//! Packets in fragments: put together, answered, given up.

use std::time::Duration;

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use stack::transport::OverEndpoint as _;

use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version, for_each_seed, ip, mac};
use crate::wire::{
    ACK, SYN, Side, data, echo_reply, echo_request, fragment_of, fragments_of, icmp, seg, whole_of,
};

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

/// What the stack has answered to a ping, if it has.
fn answer(s: &mut Script) -> Option<Vec<u8>> {
    let frames: Vec<_> = std::iter::from_fn(|| s.next_other()).collect();
    match &frames[..] {
        [] => None,
        [frame] => echo_reply(frame),
        _ => {
            assert!(frames.iter().all(|frame| frame.len() <= 1_514), "frames keep to the MTU");
            echo_reply(&whole_of(&frames))
        }
    }
}

#[test]
fn long_pings_are_answered_in_fragments() {
    for version in BOTH_VERSIONS {
        for len in [1_472, 1_473, 2_000, 9_000, 65_507] {
            let mut s = Script::new(version);
            let data = bytes(len);
            s.inject_all(fragments_of(&echo_request(s.remote, s.local, &data), 1_400, 1));
            assert_eq!(answer(&mut s).as_ref(), Some(&data), "{len} bytes");
            s.assert_nothing_leaked();
        }
    }
}

#[test]
fn fragments_may_come_in_any_order_and_twice() {
    for_each_seed(20, |seed| {
        for version in BOTH_VERSIONS {
            let mut s = Script::new(version);
            let data = bytes(20_000);
            let mut frames = fragments_of(&echo_request(s.remote, s.local, &data), 1_400, 1);
            let again = frames[..5].to_vec();
            frames.extend(again);
            frames.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
            // The last to come completes the packet; what comes again behind it begins another, in vain.
            s.inject_all(frames);
            assert_eq!(answer(&mut s).as_ref(), Some(&data));
        }
    });
}

/// RFC 5722: the whole packet is dropped, and all that still comes of it.
#[test]
fn a_packet_with_overlapping_fragments_is_dropped_whole() {
    for version in BOTH_VERSIONS {
        let mut s = Script::new(version);
        let whole = echo_request(s.remote, s.local, &bytes(3_000));
        let packet = &whole[14..];
        let payload = &packet[if version == Version::V4 { 20 } else { 40 }..];
        let piece = |from: usize, to: usize, ident| {
            let more = to < payload.len();
            [&whole[..14], &fragment_of(packet, &payload[from..to], from, more, ident)].concat()
        };
        let end = payload.len();
        let overlapping: [&[(usize, usize)]; 3] = [
            &[(0, 800), (792, 1_600), (1_600, end), (0, 800), (800, 1_600)],
            &[(1_600, end), (800, 1_608), (0, 800), (800, 1_600)],
            &[(0, 1_600), (1_600, end - 8), (1_592, end), (1_600, end)],
        ];
        for (ident, pieces) in overlapping.into_iter().enumerate() {
            s.inject_all(pieces.iter().map(|&(from, to)| piece(from, to, ident as u16)));
            assert_eq!(answer(&mut s), None, "{pieces:?}");
        }
        // The same bytes at the same place, but others in them.
        let mut other = piece(0, 800, 9);
        *other.last_mut().expect("it has bytes") ^= 1;
        s.inject_all([piece(0, 800, 9), other, piece(800, end, 9)]);
        assert_eq!(answer(&mut s), None);
        assert!(s.stack.endpoint().counters().drops.fragment >= 4);
    }
}

#[test]
fn the_sender_hears_of_a_packet_whose_rest_did_not_come() {
    for (version, patience, expected) in [(Version::V4, 30, (11, 1)), (Version::V6, 60, (3, 1))] {
        let mut s = Script::new(version);
        let frames = fragments_of(&echo_request(s.remote, s.local, &bytes(3_000)), 1_400, 1);
        s.inject(frames[0].clone());
        s.advance(Duration::from_secs(patience - 1));
        assert_eq!(s.next_other(), None);
        s.advance(Duration::from_secs(2));
        let (kind, code, _, _) = s.next_other().and_then(|frame| icmp(&frame)).expect("the sender is told");
        assert_eq!((kind, code), expected);
        assert_eq!(s.stack.endpoint().counters().drops.reassembly, 1);
        // Without its beginning nobody knows whose packet it was.
        s.inject(frames[1].clone());
        s.advance(Duration::from_secs(patience + 1));
        assert_eq!(s.next_other(), None);
        // What comes too late completes nothing.
        s.inject(frames[0].clone());
        s.advance(Duration::from_secs(patience + 1));
        s.inject_all(frames[1..].to_vec());
        assert!(std::iter::from_fn(|| s.next_other()).all(|frame| echo_reply(&frame).is_none()));
    }
}

/// A flood of beginnings takes no memory, and the next honest packet is put together.
#[test]
fn beginnings_without_end_take_a_bounded_place() {
    for version in BOTH_VERSIONS {
        let mut s = Script::new(version);
        let begin =
            |ident| fragments_of(&echo_request(s.remote, s.local, &bytes(3_000)), 1_400, ident)[0].clone();
        let frames: Vec<_> = (0..3_000).map(begin).collect();
        s.inject_all(frames);
        assert!(s.stack.endpoint().counters().drops.reassembly > 2_900);
        let honest = Side { mac: mac(3), at: (ip(version, 3), 0).into() };
        s.inject_all(fragments_of(&echo_request(honest, s.local, &bytes(2_000)), 1_400, 1));
        assert_eq!(answer(&mut s), Some(bytes(2_000)));
    }
}

#[test]
fn a_segment_in_fragments_is_served() {
    for version in BOTH_VERSIONS {
        let mut s = Script::listening(version);
        let syn = s.frame_from(s.remote, seg(SYN, 0, 0).mss(1_000));
        s.inject_all(fragments_of(&syn, 8, 1));
        s.expect(seg(SYN | ACK, 0, 1));
        s.send(seg(ACK, 1, 1));
        let conn = match s.event() {
            Some(stack::net::Event::Opened { conn, .. }) => conn,
            other => panic!("the connection did not open: {other:?}"),
        };
        let payload = bytes(900);
        let mut frames = fragments_of(&s.frame_from(s.remote, data(1, 1, &payload)), 304, 2);
        frames.reverse();
        s.inject_all(frames);
        s.expect(seg(ACK, 1, 901));
        assert_eq!(s.read(conn), payload);
        let counters = s.stack.endpoint().counters();
        assert_eq!((counters.reassembled, counters.copied_bytes), (2, 900));
        s.abort(conn);
        while s.next().is_some() {}
        s.assert_nothing_leaked();
    }
}

/// Longer than a buffer: no peer of ours sends that.
#[test]
fn a_segment_that_no_buffer_holds_is_dropped_and_counted() {
    for version in BOTH_VERSIONS {
        let (mut s, _) = Script::open(version);
        let frames = fragments_of(&s.frame_from(s.remote, data(1, 1, &bytes(8_000))), 1_400, 1);
        s.inject_all(frames);
        s.expect_nothing();
        assert_eq!(s.stack.endpoint().counters().drops.fragment, 1);
        s.assert_nothing_leaked();
    }
}

#[test]
fn fragments_for_others_are_dropped() {
    for version in BOTH_VERSIONS {
        let mut s = Script::new(version);
        let other = Side { at: (ip(version, 9), 0).into(), ..s.local };
        let elsewhere = Side { mac: mac(9), ..s.local };
        for to in [other, elsewhere] {
            s.inject_all(fragments_of(&echo_request(s.remote, to, &bytes(3_000)), 1_400, 1));
        }
        assert_eq!(s.next_other(), None);
        assert_eq!(s.stack.endpoint().counters().drops.fragment, 6);
    }
}
