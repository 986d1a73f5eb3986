//! When acknowledgements go out (RFC 5681, section 4.2; RFC 9293, section 3.8.6.3).

use std::time::Duration;

use stack::net::{ConnId, Event, Net};

use crate::script::Script;
use crate::talk::Version;
use crate::wire::{ACK, SYN, Seg, data, seg};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// A connection whose handshake took 100 ms, and whose segments hold 1,000 bytes.
fn open() -> (Script, ConnId) {
    let mut s = Script::listening(Version::V4);
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.expect(seg(SYN | ACK, 0, 1));
    s.advance(MS(100));
    s.send(seg(ACK, 1, 1));
    let Some(Event::Opened { conn, .. }) = s.event() else { panic!("not open") };
    (s, conn)
}

/// So many segments of 1,000 bytes in one burst from `seq` on; what acknowledges them within 100 ms.
fn burst(s: &mut Script, conn: ConnId, seq: &mut u32, ack: u32, count: u32) -> Vec<u32> {
    let frames: Vec<_> =
        (0..count).map(|n| s.frame_from(s.remote, data(*seq + n * 1_000, ack, &[7; 1_000]))).collect();
    *seq += count * 1_000;
    let mut read = 0;
    s.exchange(frames, |stack| {
        read = std::iter::from_fn(|| stack.recv(conn)).map(|slot| slot.bytes().len()).sum();
    });
    assert_eq!(read as u32, count * 1_000);
    s.advance(MS(99));
    std::iter::from_fn(|| s.next()).filter(|seg| seg.payload.is_empty()).map(|seg| seg.ack).collect()
}

/// A peer that begins to send waits for no acknowledgement; then they wait for a second segment.
#[test]
fn the_first_segments_are_acknowledged_at_once() {
    let (mut s, _) = open();
    for n in 0..16 {
        s.send(data(1 + n * 1_000, 1, &[7; 1_000]));
        s.expect(seg(ACK, 1, 1_001 + n * 1_000));
        s.expect_nothing();
    }
    s.send(data(16_001, 1, &[7; 1_000]));
    s.expect_nothing();
    let waited = s.wait_for_segment(MS(500));
    assert!((MS(10)..=MS(41)).contains(&waited), "{waited:?}");
    s.expect(seg(ACK, 1, 17_001));
}

/// RFC 5681, section 4.2: every second segment, and be they in one burst, with the same right edge.
#[test]
fn rfc5681_4_2_the_first_burst_is_acknowledged_by_pairs() {
    for count in [2, 5, 10] {
        let (mut s, _) = open();
        let frames: Vec<_> =
            (0..count).map(|n| s.frame_from(s.remote, data(1 + n * 1_000, 1, &[7; 1_000]))).collect();
        s.exchange(frames, |_| {});
        let acks: Vec<Seg> = std::iter::from_fn(|| s.next()).collect();
        let mut expected: Vec<u32> = (1..=count / 2).map(|pair| 1 + pair * 2_000).collect();
        *expected.last_mut().expect("there are some") = 1 + count * 1_000;
        assert_eq!(acks.iter().map(|ack| ack.ack).collect::<Vec<_>>(), expected);
        let edges: Vec<_> = acks.iter().map(|ack| ack.ack + u32::from(ack.window.unwrap_or(0))).collect();
        assert!(edges.iter().all(|edge| edge == &edges[0] || *edge > 65_535), "{edges:?}");
    }
}

/// As long as each round trip brings far more than any before, the peer is in its slow start, and each pair counts. Once it
/// goes on as before, a burst has one acknowledgement.
#[test]
fn a_peer_in_slow_start_has_its_pairs_acknowledged() {
    let (mut s, conn) = open();
    let mut seq = 1;
    for count in [4, 8, 16, 30] {
        let acks = burst(&mut s, conn, &mut seq, 1, count);
        assert_eq!(acks.len() as u32, count / 2, "of {count} segments: {acks:?}");
        assert_eq!(acks.last(), Some(&seq));
    }
    for _ in 0..3 {
        burst(&mut s, conn, &mut seq, 1, 30);
    }
    for _ in 0..3 {
        assert_eq!(burst(&mut s, conn, &mut seq, 1, 30), [seq]);
    }
    // It has been idle, and begins again.
    s.advance(MS(1_500));
    let acks = burst(&mut s, conn, &mut seq, 1, 10);
    assert_eq!(acks.len(), 5, "{acks:?}");
}

/// Who answers sends the acknowledgement along; further bursts have one each.
#[test]
fn requests_that_are_answered_have_no_acknowledgements_of_their_own() {
    let (mut s, conn) = open();
    let mut seq = 1;
    for n in 0..8 {
        let frames: Vec<_> =
            (0..6).map(|k| s.frame_from(s.remote, data(seq + k * 1_000, 1 + n, &[7; 1_000]))).collect();
        seq += 6_000;
        s.exchange(frames, |stack| {
            while stack.recv(conn).is_some() {}
            stack.send(conn, b"!").expect("there is room");
        });
        let segments: Vec<_> = std::iter::from_fn(|| s.next()).collect();
        let bare = segments.iter().filter(|segment| segment.payload.is_empty()).count();
        assert!(n == 0 || bare == 0, "request {n}: {segments:?}");
        s.advance(MS(45));
        s.expect_nothing();
    }
}

/// Who has lost something may have a single segment under way, and waits for each acknowledgement until he sends more.
#[test]
fn after_losses_segments_are_acknowledged_at_once() {
    for is_late in [false, true] {
        let (mut s, _) = open();
        for n in 0..16 {
            s.send(data(1 + n * 1_000, 1, &[7; 1_000]));
            s.expect(seg(ACK, 1, 1_001 + n * 1_000));
        }
        let mut next = if is_late {
            // Nothing was lost but time: it comes again.
            s.send(data(15_001, 1, &[7; 1_000]));
            s.expect(seg(ACK, 1, 16_001));
            16_001
        } else {
            s.send(data(17_001, 1, &[7; 1_000]));
            s.send(data(18_001, 1, &[7; 1_000]));
            s.send(data(19_001, 1, &[7; 1_000]));
            s.send(data(20_001, 1, &[7; 1_000]));
            for _ in 0..4 {
                s.expect(seg(ACK, 1, 16_001));
            }
            // One acknowledgement, not one for every second segment.
            s.send(data(16_001, 1, &[7; 1_000]));
            s.expect(seg(ACK, 1, 21_001));
            21_001
        };
        s.expect_nothing();
        for _ in 0..15 {
            s.send(data(next, 1, &[7; 1_000]));
            next += 1_000;
            s.expect(seg(ACK, 1, next));
        }
        s.send(data(next, 1, &[7; 1_000]));
        s.expect_nothing();
        s.advance(MS(41));
        s.expect(seg(ACK, 1, next + 1_000));
    }
}
