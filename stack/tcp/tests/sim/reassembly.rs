//! Payload ahead of a hole: how it is put together again.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use smoltcp::time::Duration;

use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Stream, Version, for_each_seed};
use crate::wire::{SYN, Seg, data, seg};

/// The bytes `from..to` of a stream, as a segment that acknowledges nothing but the handshake.
fn part(stream: &Stream, from: u64, to: u64) -> Seg {
    let mut bytes = vec![0; (to - from) as usize];
    stream.read(from, &mut bytes);
    data(1 + from as u32, 1, &bytes)
}

/// The number that the last of the answers acknowledges, less one: bytes in order.
#[track_caller]
fn acknowledged(s: &mut Script) -> u64 {
    s.advance(Duration::from_millis(50));
    let last = std::iter::from_fn(|| s.next()).last().expect("each segment is acknowledged");
    u64::from(last.ack - 1)
}

/// A longer piece that begins where a shorter one lies already takes its place.
#[test]
fn a_longer_piece_replaces_one_that_begins_with_it() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = Script::open(version);
        let stream = Stream { number: 1, bytes: 1_100 };
        for (from, to, ack) in [(100, 110, 0), (100, 1_100, 0), (0, 100, 1_100)] {
            s.send(part(&stream, from, to));
            assert_eq!(acknowledged(&mut s), ack, "after {from}..{to}");
        }
        stream.check(0, &s.read(conn));
        s.assert_nothing_leaked();
    }
}

/// Segments in any order that overlap in any way: after each of them exactly that is acknowledged which has come
/// without a hole, and the application reads the stream.
#[test]
fn any_order_of_overlapping_segments_is_put_together() {
    for_each_seed(60, |seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut s = Script::listening(Version::V4);
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_400));
        let longest = [8, 70, 300, 1_400][seed as usize % 4];
        let bytes = 30 * longest;
        let stream = Stream { number: seed, bytes };
        let mut here = vec![false; bytes as usize];
        // Ends that many segments share make for equal starts and ends.
        let grid = rng.random_range(1..=longest / 2);
        let mut read = vec![];
        let mut in_order = 0;
        for n in 0..200 {
            let from = rng.random_range(0..bytes / grid) * grid;
            let to =
                (from + rng.random_range(1..=longest).next_multiple_of(grid)).min(bytes).min(from + 1_400);
            s.send(part(&stream, from, to));
            here[from as usize..to as usize].fill(true);
            in_order = here.iter().take_while(|&&is_here| is_here).count() as u64;
            assert_eq!(acknowledged(&mut s), in_order, "after segment {n}, {from}..{to}");
            if n % 5 == 0 {
                read.extend(s.read(conn));
                while s.next().is_some() {}
            }
        }
        while in_order < bytes {
            let to = (in_order + 1_000).min(bytes);
            s.send(part(&stream, in_order, to));
            here[in_order as usize..to as usize].fill(true);
            in_order = here.iter().take_while(|&&is_here| is_here).count() as u64;
            assert_eq!(acknowledged(&mut s), in_order);
        }
        read.extend(s.read(conn));
        stream.check(0, &read);
        assert_eq!(read.len() as u64, bytes);
        s.assert_nothing_leaked();
    });
}
