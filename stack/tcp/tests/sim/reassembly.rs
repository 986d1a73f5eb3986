//! Payload ahead of a hole: how it is put together again.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stack::Config;
use stack::net::ConnId;
use stack::transport::OverEndpoint as _;

use crate::ours::config;
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Stream, Version, for_each_seed};
use crate::wire::{ACK, FIN, SYN, Seg, data, seg};

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

/// What an attacker sends ahead of a hole that it never fills: segment `n`, as from and to.
type Pattern = fn(u64) -> (u64, u64);

const PATTERNS: [(&str, Pattern); 8] = [
    ("every second byte", |n| (1 + 2 * n, 2 + 2 * n)),
    ("two bytes and a hole of two", |n| (1 + 4 * n, 3 + 4 * n)),
    ("64 bytes and a hole", |n| (1 + 65 * n, 65 + 65 * n)),
    ("just short enough to be copied", |n| (1 + 512 * n, 512 + 512 * n)),
    ("just too long to be copied", |n| (1 + 513 * n, 513 + 513 * n)),
    ("whole segments and holes", |n| (1 + 1_001 * n, 1_001 + 1_001 * n)),
    ("each one byte longer than the last", |n| (1, 2 + n)),
    ("each overlapping the last, from behind", |n| (2_000 - 30 * (n % 60), 2_050 - 30 * (n % 60))),
];

/// A connection from another port, which sends `count` segments of a pattern within its window, and then nothing.
fn attack(s: &mut Script, port: u16, pattern: Pattern, count: u64) -> ConnId {
    s.remote.at.set_port(port);
    s.send(seg(SYN, 0, 0).mss(1_400));
    let window = u64::from(s.expect(seg(SYN | ACK, 0, 1)).window.expect("every segment has one"));
    s.send(seg(ACK, 1, 1));
    let Some(stack::net::Event::Opened { conn, .. }) = s.event() else { panic!("not open") };
    let stream = Stream { number: port.into(), bytes: 1 << 20 };
    for (from, to) in (0..count).map(pattern).filter(|&(_, to)| to <= window) {
        s.send(part(&stream, from, to));
    }
    while s.next().is_some() {}
    conn
}

/// A client that asks for something, uploads something and gets an answer: within its window it is always heard at
/// once, and the window always opens again.
#[track_caller]
fn assert_served(s: &mut Script, port: u16) {
    s.remote.at.set_port(port);
    let hello = |s: &mut Script| {
        s.send(seg(SYN, 0, 0).mss(1_400));
        let answer = s.expect(seg(SYN | ACK, 0, 1));
        s.send(seg(ACK, 1, 1));
        let Some(stack::net::Event::Opened { conn, .. }) = s.event() else { panic!("not open") };
        (conn, u64::from(answer.window.expect("every segment has one")))
    };
    let (conn, mut window) = hello(s);
    let stream = Stream { number: 0, bytes: 10_000 };
    let mut at = 0;
    while at < stream.bytes {
        assert!(window >= 500, "the window is {window} at {at}");
        let to = (at + window.min(1_400)).min(stream.bytes);
        s.send(part(&stream, at, to));
        stream.check(at, &s.read(conn));
        s.advance(Duration::from_millis(41));
        let last = std::iter::from_fn(|| s.next()).last().expect("it is acknowledged");
        assert_eq!(u64::from(last.ack), 1 + to);
        (at, window) = (to, last.window.map_or(0, u64::from));
    }
    assert_eq!(s.write(conn, b"answer"), Ok(()));
    s.expect(data(1, 10_001, b"answer"));
    s.abort(conn);
    while s.next().is_some() {}
    while s.event().is_some() {}
}

/// Connections that each leave a hole and send what lies beyond it, in as small pieces as they like, and then fall
/// silent: together they hold at most half of the free buffers, and others are served at once.
#[test]
fn payload_ahead_of_holes_starves_nobody() {
    const BUFFERS: usize = 600;
    let config = || Config { max_connections: 200, ..config(1) };
    for (what, pattern) in PATTERNS {
        for half_closed in [false, true] {
            let mut s = Script::with_buffers(Version::V4, config(), BUFFERS);
            s.listen();
            let free = s.stack.arena().free_buffers();
            let mut conns = vec![];
            for port in 1_000..1_150 {
                let conn = attack(&mut s, port, pattern, if port % 50 == 0 { 300 } else { 30 });
                if half_closed {
                    s.finish(conn);
                    s.send(seg(ACK, 1, 2));
                    s.send(seg(ACK | FIN, 1_000, 2));
                    while s.next().is_some() {}
                }
                conns.push((port, conn, s.stack_iss));
                let held = free - s.stack.arena().free_buffers();
                assert!(held <= free / 2, "{held} of {free} buffers are held: {what}");
            }
            while s.next().is_some() {}
            let drops = s.stack.endpoint().counters().drops.no_buffer;
            assert_served(&mut s, 3_000);
            s.advance(Duration::from_secs(1));
            assert_served(&mut s, 3_001);
            let counters = s.stack.endpoint().counters();
            assert_eq!(counters.drops.no_buffer, drops, "a client's payload found no buffer: {what}");
            for (port, conn, iss) in conns {
                s.remote.at.set_port(port);
                s.stack_iss = iss;
                s.abort(conn);
            }
            s.assert_nothing_leaked();
        }
    }
}

/// Pieces of a few bytes cost a connection one buffer, and longer ones one each: as many as its quota, and of all
/// connections together no more than half of what is free.
#[test]
fn payload_ahead_of_holes_has_a_share_of_the_free_buffers() {
    let config = || Config { max_connections: 64, ..config(1) };
    let held_after = |s: &mut Script, port, pattern| {
        let before = s.stack.arena().free_buffers();
        attack(s, port, pattern, 300);
        before - s.stack.arena().free_buffers()
    };
    let mut s = Script::with_buffers(Version::V4, Config { rx_buffers: 16, ..config() }, 1_000);
    s.listen();
    assert_eq!(held_after(&mut s, 1_000, PATTERNS[5].1), 16);

    let mut s = Script::with_buffers(Version::V4, config(), 1_000);
    s.listen();
    for port in 1_000..1_010 {
        assert_eq!(held_after(&mut s, port, PATTERNS[0].1), 1);
    }

    // Of 1,000 buffers 64 are in the ring and 32 kept back: half of the others is 452.
    let mut s = Script::with_buffers(Version::V4, config(), 1_000);
    s.listen();
    let held: Vec<_> = (1_000..1_010).map(|port| held_after(&mut s, port, PATTERNS[4].1)).collect();
    assert_eq!(held.iter().sum::<usize>(), 452, "{held:?}");
}

/// Segments of the usual lengths that a path has reordered wait where the device has put them.
#[test]
fn reordered_segments_are_not_copied() {
    for version in BOTH_VERSIONS {
        for len in [536, 1_000, 1_400] {
            let mut s = Script::listening(version);
            let conn = s.open_with(seg(SYN, 0, 0).mss(1_400));
            let stream = Stream { number: 1, bytes: 30 * len };
            for n in (0..30).rev() {
                s.send(part(&stream, n * len, (n + 1) * len));
            }
            assert_eq!(acknowledged(&mut s), 30 * len);
            assert_eq!(s.stack.endpoint().counters().copied_bytes, 0);
            assert_eq!(s.stack.counters().swapped, 30);
            stream.check(0, &s.read(conn));
            s.assert_nothing_leaked();
        }
    }
}

/// Payload that was sent from beyond the end of the stream is let go with it.
#[test]
fn payload_beyond_the_end_is_let_go() {
    let (mut s, conn) = Script::open(Version::V4);
    let free = s.stack.arena().free_buffers();
    s.send(data(5_001, 1, &[7; 1_000]));
    s.send(data(7_001, 1, b"short"));
    assert_eq!(free - s.stack.arena().free_buffers(), 2);
    s.send(seg(FIN | ACK, 1, 1));
    assert_eq!(s.stack.arena().free_buffers(), free);
    assert_eq!(s.read(conn), b"");
}
