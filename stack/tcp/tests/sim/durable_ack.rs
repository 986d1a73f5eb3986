//! Acknowledgements that wait until what they are of is durable.

use std::time::Duration;

use pmem::{Durable, Options, Region};
use stack::net::{CloseReason, ConnId, Event, Net};
use stack::transport::OverEndpoint as _;
use stack::{Config, ConnectionOptions};

use crate::ours::config;
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version};
use crate::wire::{ACK, FIN, RST, SYN, Seg, data, seg};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn options() -> ConnectionOptions {
    ConnectionOptions { durable_ack: true, ..ConnectionOptions::default() }
}

/// The proof that a commit gives.
fn proof() -> Durable {
    let options = Options { size: Some(1 << 20), ..Options::default() };
    let region = Region::open("memory:", &options).expect("there is memory for a test");
    region.into_shard().expect("a new store opens").commit().expect("memory does not fail")
}

/// A script with a listener on port 80 that waits, and one on port 81 that does not; and a connection to the former.
fn open(version: Version) -> (Script, ConnId) {
    let mut s = Script::new(version);
    s.stack.endpoint_mut().listen_with(s.local.at, 4, &options()).expect("the address is free");
    let beside = (s.local.at.ip(), 81).into();
    s.stack.endpoint_mut().listen(beside, 4).expect("the address is free");
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
    (s, conn)
}

fn acknowledge(s: &mut Script, conn: ConnId, bytes: usize) {
    s.stack.acknowledge(conn, bytes, &proof());
    s.settle();
}

/// Neither the second segment, nor time, nor the application's taking it: only that it is durable acknowledges what has
/// arrived, at once and exactly as far.
#[test]
fn what_is_not_durable_is_not_acknowledged() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = open(version);
        for n in 0..3 {
            s.send(data(1 + 1_000 * n, 1, &[n as u8; 1_000]));
        }
        s.expect_event(Event::Readable { conn });
        assert_eq!(s.read(conn).len(), 3_000);
        s.advance(Duration::from_secs(5));
        s.expect_nothing();
        acknowledge(&mut s, conn, 1_500);
        s.expect(seg(ACK, 1, 1_501));
        s.expect_nothing();
        acknowledge(&mut s, conn, 1_500);
        s.expect(seg(ACK, 1, 3_001));
        s.advance(MS(500));
        s.expect_nothing();
        // What this side sends says the same.
        s.send(data(3_001, 1, b"more"));
        assert_eq!(s.write(conn, b"reply"), Ok(()));
        s.expect(data(1, 3_001, b"reply"));
        assert_eq!(s.read(conn), b"more");
        acknowledge(&mut s, conn, 4);
        s.expect(seg(ACK, 6, 3_005));
        s.send(seg(ACK, 3_005, 6));
        s.assert_nothing_leaked();
    }
}

/// A sender that has not heard sends again: it is told how much is durable, and the application gets nothing twice. What
/// lies beyond a hole is told of with the same number.
#[test]
fn what_comes_again_is_answered_with_what_is_durable() {
    let (mut s, conn) = open(Version::V4);
    s.send(data(1, 1, b"first"));
    s.send(data(6, 1, b"second"));
    assert_eq!(s.read(conn), b"firstsecond");
    acknowledge(&mut s, conn, 5);
    s.expect(seg(ACK, 1, 6));
    s.send(data(6, 1, b"second"));
    s.expect(seg(ACK, 1, 6));
    s.send(data(1, 1, b"firstsecond"));
    s.expect(seg(ACK, 1, 6));
    s.send(data(20, 1, b"beyond"));
    s.expect(seg(ACK, 1, 6));
    assert_eq!(s.read(conn), b"");
    s.send(data(12, 1, b"the hole"));
    assert_eq!(s.read(conn), b"the holebeyond");
    s.expect_nothing();
    // More than there is: all of it.
    acknowledge(&mut s, conn, 1_000);
    s.expect(seg(ACK, 1, 26));
    acknowledge(&mut s, conn, 1_000);
    s.expect_nothing();
}

/// RFC 2883, section 4: a block beyond the number that is acknowledged tells of what lies behind a hole. What came twice and is
/// not durable lies behind none.
#[test]
fn rfc2883_4_only_what_is_acknowledged_is_told_of_as_a_duplicate() {
    let mut s = Script::new(Version::V4);
    s.stack.endpoint_mut().listen_with(s.local.at, 4, &options()).expect("the address is free");
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).sack_permitted(true));
    s.send(data(1, 1, &[7; 1_000]));
    s.send(data(1_001, 1, &[7; 1_000]));
    assert_eq!(s.read(conn).len(), 2_000);
    acknowledge(&mut s, conn, 500);
    s.expect(seg(ACK, 1, 501));
    s.send(data(1_001, 1, &[7; 1_000]));
    s.expect(seg(ACK, 1, 501).sack(&[]));
    s.send(data(1, 1, &[7; 1_000]));
    s.expect(seg(ACK, 1, 501).sack(&[(1, 501)]));
    // What a hole's filling brings a second time waits, too.
    s.send(data(3_001, 1, &[7; 1_000]));
    s.expect(seg(ACK, 1, 501).sack(&[(3_001, 4_001)]));
    s.send(data(2_001, 1, &[7; 1_400]));
    assert_eq!(s.read(conn).len(), 2_000);
    acknowledge(&mut s, conn, 1_500);
    s.expect(seg(ACK, 1, 2_001).sack(&[]));
}

/// FIN is taken in behind what is before it: it is not acknowledged, nor told, nor does it end anything.
#[test]
fn a_fin_waits_for_what_is_before_it() {
    for is_first in [false, true] {
        let (mut s, conn) = open(Version::V4);
        if is_first {
            s.finish(conn);
            s.expect(seg(FIN | ACK, 1, 1));
            s.send(seg(ACK, 1, 2));
        }
        let ack = if is_first { 2 } else { 1 };
        s.send(seg(FIN | ACK, 1, ack).payload(b"last words"));
        assert_eq!(s.read(conn), b"last words");
        s.expect_event(Event::Readable { conn });
        assert_eq!(s.event(), None);
        s.advance(MS(500));
        s.expect_nothing();
        acknowledge(&mut s, conn, 4);
        s.expect(seg(ACK, ack, 5));
        assert_eq!(s.event(), None);
        // It comes again.
        s.send(seg(FIN | ACK, 1, ack).payload(b"last words"));
        s.send(seg(FIN | ACK, 11, ack));
        while let Some(again) = s.next() {
            assert_eq!(again.ack, 5, "{again:?}");
        }
        acknowledge(&mut s, conn, 6);
        s.expect(seg(ACK, ack, 12));
        s.expect_event(Event::PeerFinished { conn });
        if is_first {
            s.expect_event(Event::Closed { conn, reason: CloseReason::Finished });
            s.send(seg(FIN | ACK, 11, 2));
            s.expect(seg(ACK, 2, 12));
        } else {
            s.finish(conn);
            s.expect(seg(FIN | ACK, 1, 12));
            s.send(seg(ACK, 12, 2));
            s.expect_event(Event::Closed { conn, reason: CloseReason::Finished });
        }
        s.assert_nothing_leaked();
    }
}

/// The right edge of the window does not move left when less is acknowledged than has arrived, with and without scaled
/// windows, and the peer can go on meanwhile.
#[test]
fn the_window_does_not_shrink_while_nothing_is_acknowledged() {
    for (bytes, scale) in [(4_000, None), (65_535, None), (1 << 20, Some(7))] {
        let config = Config { rx_window_bytes: bytes, ..config(1) };
        let mut s = Script::with_config(Version::V4, config);
        s.stack.endpoint_mut().listen_with(s.local.at, 4, &options()).expect("the address is free");
        s.send(Seg { scale, ..seg(SYN, 0, 0).mss(1_000) });
        let own_scale = s.expect(seg(SYN | ACK, 0, 1)).scale.unwrap_or(0);
        s.send(seg(ACK, 1, 1));
        let Some(Event::Opened { conn, .. }) = s.event() else { panic!("not open") };
        let (mut edge, mut next) = (0, 1);
        for round in 0..40 {
            for _ in 0..3 {
                s.send(data(next, 1 + round, &[7; 1_000]));
                next += 1_000;
            }
            assert_eq!(s.read(conn).len(), 3_000, "round {round}");
            // What this side says is heard while something is held back, and what was is durable a round later.
            assert_eq!(s.write(conn, b"x"), Ok(()));
            if round > 0 {
                acknowledge(&mut s, conn, 3_000);
            }
            let acked = if round > 0 { next - 3_000 } else { 1 };
            while let Some(segment) = s.next() {
                assert!(segment.ack <= acked, "{segment:?} acknowledges more than {acked}");
                let window = u32::from(segment.window.expect("every segment has one")) << own_scale;
                let rounded = (1 << own_scale) - 1;
                assert!(segment.ack + window + rounded >= edge, "{segment:?} takes {edge} back");
                edge = edge.max(segment.ack + window);
            }
        }
        assert!(edge > next, "the window is open");
    }
}

/// A connection that ends before what it got is durable does not say that it is.
#[test]
fn a_connection_that_is_aborted_acknowledges_nothing_more() {
    let (mut s, conn) = open(Version::V4);
    s.send(data(1, 1, b"lost"));
    assert_eq!(s.read(conn), b"lost");
    s.abort(conn);
    let reset = s.next().expect("the remote is told");
    assert!(reset.has(RST) && reset.ack == 1, "{reset:?}");
    s.expect_event(Event::Closed { conn, reason: CloseReason::Aborted });
    acknowledge(&mut s, conn, 4);
    s.expect_nothing();
    s.assert_nothing_leaked();
}

/// It is a matter of the listener: a connection to another one is acknowledged as ever, and what is said of its bytes
/// changes nothing.
#[test]
fn another_listener_acknowledges_what_arrives() {
    let (mut s, _) = open(Version::V4);
    s.local.at.set_port(81);
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
    s.send(data(1, 1, &[7; 1_000]));
    s.expect(seg(ACK, 1, 1_001));
    s.send(data(1_001, 1, &[7; 1_000]));
    s.expect(seg(ACK, 1, 2_001));
    acknowledge(&mut s, conn, 2_000);
    s.expect_nothing();
}
