//! How much a connection has in flight.

use std::time::Duration;

use stack::net::{ConnId, Event};
use stack::{Config, CongestionControl};

use crate::ours::config;
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version};
use crate::wire::{ACK, SYN, Seg, seg};

/// Payload bytes that come before anything is acknowledged.
fn first_flight(s: &mut Script, conn: ConnId, bytes: usize) -> usize {
    assert_eq!(s.write(conn, &vec![7; bytes]), Ok(()));
    std::iter::from_fn(|| s.next()).map(|segment| segment.payload.len()).sum()
}

fn opened(s: &mut Script) -> ConnId {
    let Some(Event::Opened { conn, .. }) = s.event() else { panic!("not open") };
    conn
}

/// RFC 5681, section 3.1: a connection whose SYN, or its answer, was lost begins with one segment.
#[test]
fn rfc5681_3_1_a_handshake_that_was_sent_again_begins_with_one_segment() {
    for version in BOTH_VERSIONS {
        for (is_lost, expected) in [(false, 4_000), (true, 1_000)] {
            let mut s = Script::listening(version);
            s.send(seg(SYN, 0, 0).mss(1_000));
            s.expect(seg(SYN | ACK, 0, 1));
            if is_lost {
                s.wait_for_segment(Duration::from_secs(2));
                s.expect(seg(SYN | ACK, 0, 1));
            }
            s.send(seg(ACK, 1, 1));
            let conn = opened(&mut s);
            assert_eq!(first_flight(&mut s, conn, 4_000), expected, "lost: {is_lost}");

            let mut s = Script::new(version);
            let conn = s.connect();
            s.expect(seg(SYN, 0, 0));
            if is_lost {
                s.wait_for_segment(Duration::from_secs(2));
                s.expect(seg(SYN, 0, 0));
            }
            s.send(seg(SYN | ACK, 0, 1).mss(1_000));
            s.expect(seg(ACK, 1, 1));
            opened(&mut s);
            assert_eq!(first_flight(&mut s, conn, 4_000), expected, "lost: {is_lost}");
        }
    }
}

/// RFC 7323, section 2.2: the window in a SYN is not scaled, not even in the second one of a simultaneous open.
#[test]
fn rfc7323_2_2_a_simultaneous_open_does_not_scale_the_window_of_a_syn() {
    let mut s = Script::new(Version::V4);
    let conn = s.connect();
    s.expect(seg(SYN, 0, 0));
    let syn = |flags, ack| Seg { scale: Some(7), ..seg(flags, 0, ack).mss(1_000).window(2_000) };
    s.send(syn(SYN, 0));
    s.expect(seg(SYN | ACK, 0, 1));
    s.send(syn(SYN | ACK, 1));
    opened(&mut s);
    assert_eq!(first_flight(&mut s, conn, 4_000), 2_000);
    while s.next().is_some() {}
    s.send(seg(ACK, 1, 2_001).window(2_000));
    let then: usize = std::iter::from_fn(|| s.next()).map(|segment| segment.payload.len()).sum();
    assert_eq!(then, 2_000);
}

/// Segments that go out in each of the next milliseconds once all before them are acknowledged at once.
fn in_each_millisecond(congestion: CongestionControl, pacing: bool) -> Vec<usize> {
    let mut s =
        Script::with_config(Version::V4, Config { congestion, pacing, tx_bytes: 1 << 20, ..config(1) });
    s.listen();
    // Slow start, in round trips of 10 ms.
    s.send(seg(SYN, 0, 0).mss(1_000).window(60_000));
    s.expect(seg(SYN | ACK, 0, 1));
    s.advance(Duration::from_millis(10));
    s.send(seg(ACK, 1, 1).window(60_000));
    let conn = opened(&mut s);
    assert_eq!(s.write(conn, &[7; 70_000]), Ok(()));
    let mut sent = 0;
    for expected in [10, 20] {
        s.advance(Duration::from_millis(10));
        let count = std::iter::from_fn(|| s.next()).count();
        assert_eq!(count, expected, "{congestion}, paced: {pacing}");
        sent += count;
        s.send(seg(ACK, 1, 1 + 1_000 * sent as u32).window(60_000));
    }
    let mut counts = Vec::new();
    for _ in 0..10 {
        s.advance(Duration::from_millis(1));
        counts.push(std::iter::from_fn(|| s.next()).count());
    }
    counts
}

/// What one acknowledgement allows goes out at once, or with pacing over a half of the round trip in which the window
/// doubles, and without a stall.
#[test]
fn paced_segments_are_spread_over_the_round_trip() {
    for congestion in CongestionControl::ALL {
        let counts = in_each_millisecond(congestion, false);
        assert_eq!(counts[0], 40, "{congestion}: {counts:?}");
        let counts = in_each_millisecond(congestion, true);
        // At first as much more as a timer may be late.
        assert!(counts[0] <= 17 && counts[1..].iter().all(|&count| count <= 9), "{congestion}: {counts:?}");
        assert_eq!(counts.iter().sum::<usize>(), 40, "{congestion}: {counts:?}");
        assert_eq!(counts[6..].iter().sum::<usize>(), 0, "{congestion}: {counts:?}");
    }
}
