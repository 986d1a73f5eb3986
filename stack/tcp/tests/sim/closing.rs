//! How connections end, and how they begin from both sides at once. Scripts after RFC 9293.

use std::time::Duration;

use stack::Config;
use stack::net::{CloseReason, Event, Net, SendError};

use crate::ours::{Ours, config};
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Talk, Version, for_each_seed, ip, link, talk};
use crate::wire::{ACK, FIN, RST, SYN, Seg, data, seg};

/// RFC 9293, section 3.6, case 2: the remote closes, and this side goes on sending.
#[test]
fn rfc9293_3_6_a_half_closed_connection_still_sends() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = Script::open(version);
        s.send(seg(FIN | ACK, 1, 1).payload(b"last words"));
        s.expect(seg(ACK, 1, 12));
        s.expect_event(Event::Readable { conn });
        s.expect_event(Event::PeerFinished { conn });
        assert_eq!(s.read(conn), b"last words");
        assert_eq!(s.write(conn, b"mine"), Ok(()));
        s.expect(data(1, 12, b"mine"));
        s.send(seg(ACK, 12, 5));
        s.finish(conn);
        s.expect(seg(FIN | ACK, 5, 12));
        s.send(seg(ACK, 12, 6));
        s.expect_event(Event::Closed { conn, reason: CloseReason::Finished });
        s.expect_nothing();
        s.assert_nothing_leaked();
    }
}

/// RFC 9293, section 3.6, case 1: this side closes first, still receives, and waits in TIME-WAIT.
#[test]
fn rfc9293_3_6_the_active_closer_still_receives_and_waits() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = Script::open(version);
        s.finish(conn);
        s.expect(seg(FIN | ACK, 1, 1));
        assert_eq!(s.write(conn, b"too late"), Err(SendError::Closed));
        s.send(seg(ACK, 1, 2));
        s.send(data(1, 2, b"more"));
        s.advance(Duration::from_millis(50));
        s.expect(seg(ACK, 2, 5));
        assert_eq!(s.read(conn), b"more");
        s.send(seg(FIN | ACK, 5, 2));
        s.expect(seg(ACK, 2, 6));
        // Section 3.10.7.4, eighth: in TIME-WAIT a FIN that comes again is acknowledged again.
        s.advance(Duration::from_secs(30));
        s.send(seg(FIN | ACK, 5, 2));
        s.expect(seg(ACK, 2, 6));
        // That restarted the wait; after it the connection is unknown, and its segments draw a reset.
        s.advance(Duration::from_secs(59));
        s.send(seg(FIN | ACK, 5, 2));
        s.expect(seg(ACK, 2, 6));
        s.advance(Duration::from_secs(61));
        s.send(seg(FIN | ACK, 5, 2));
        s.expect(seg(RST, 2, 0));
        s.assert_nothing_leaked();
    }
}

/// RFC 9293, section 3.6, figure 13: both FINs cross.
#[test]
fn rfc9293_3_6_both_close_at_once() {
    let (mut s, conn) = Script::open(Version::V4);
    s.finish(conn);
    s.expect(seg(FIN | ACK, 1, 1));
    s.send(seg(FIN | ACK, 1, 1));
    s.expect(seg(ACK, 2, 2));
    s.expect_event(Event::PeerFinished { conn });
    assert_eq!(s.event(), None, "the own FIN is not yet acknowledged");
    s.send(seg(ACK, 2, 2));
    s.expect_nothing();
    s.advance(Duration::from_secs(61));
    s.expect_event(Event::Closed { conn, reason: CloseReason::Finished });
    s.assert_nothing_leaked();
}

/// RFC 9293, section 3.5, figure 8: both SYNs cross.
#[test]
fn rfc9293_3_5_both_open_at_once() {
    let mut s = Script::new(Version::V4);
    let conn = s.connect();
    s.expect(seg(SYN, 0, 0));
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.expect(seg(SYN | ACK, 0, 1));
    assert_eq!(s.event(), None);
    s.send(seg(ACK, 1, 1));
    s.expect_event(Event::Opened { conn, peer: s.remote.at });
    s.assert_alive(conn, 1, 1);
}

#[test]
fn two_of_ours_open_at_once_and_talk() {
    for_each_seed(10, |seed| {
        for version in BOTH_VERSIONS {
            let path = stack::sim::Path { loss: 0.05, ..Default::default() };
            let (link, mut clock) = link(seed);
            let mut a = Ours::new(&link, path, 1, 300, config(1));
            let mut b = Ours::new(&link, path, 2, 300, config(2));
            let (at_a, at_b) = ((ip(version, 1), 5_000).into(), (ip(version, 2), 6_000).into());
            let conversation = Talk::new(1, 3_000, 20_000);
            a.connect_from(clock.now(), at_b, Some(at_a), conversation).expect("there is room");
            b.connect_from(clock.now(), at_a, Some(at_b), conversation.other()).expect("there is room");
            talk(&mut clock, &mut a, &mut b, Duration::from_secs(300));
            a.assert_nothing_leaked();
            b.assert_nothing_leaked();
        }
    });
}

/// RFC 9293, section 3.10.7.4, second: a reset with the very next number ends the connection at once.
#[test]
fn rfc9293_3_10_7_4_a_reset_ends_the_connection() {
    let (mut s, conn) = Script::open(Version::V4);
    s.send(data(1, 1, b"unread"));
    s.expect(seg(ACK, 1, 7));
    s.send(seg(RST, 7, 0));
    let mut last = None;
    while let Some(event) = s.event() {
        last = Some(event);
    }
    assert_eq!(last, Some(Event::Closed { conn, reason: CloseReason::Reset }));
    assert!(s.stack.recv(conn).is_none(), "the name is dead");
    assert_eq!(s.stack.send(conn, b"x"), Err(SendError::Closed));
    s.expect_nothing();
    s.assert_nothing_leaked();
}

#[test]
fn abort_resets_and_forgets() {
    let (mut s, conn) = Script::open(Version::V4);
    assert_eq!(s.write(conn, b"on its way"), Ok(()));
    s.expect(data(1, 1, b"on its way"));
    s.abort(conn);
    let reset = s.next().expect("the remote is told");
    assert!(reset.has(RST) && reset.seq == 11, "{reset:?}");
    s.expect_event(Event::Closed { conn, reason: CloseReason::Aborted });
    s.send(seg(ACK, 1, 11));
    s.expect(seg(RST, 11, 0));
    s.assert_nothing_leaked();
}

/// RFC 9293, section 3.10.7.1: what comes for no connection draws a reset that fits it.
#[test]
fn rfc9293_3_10_7_1_a_closed_port_resets() {
    for version in BOTH_VERSIONS {
        let mut s = Script::new(version);
        s.remote_iss = 0;
        s.send(seg(SYN, 1_000, 0));
        s.expect(seg(RST | ACK, 0, 1_001));
        s.send(data(1_000, 77, b"four"));
        s.expect(seg(RST, 77, 0));
        s.send(seg(RST | ACK, 1_000, 77));
        s.expect_nothing();
        s.assert_nothing_leaked();
    }
}

/// RFC 9293, section 3.10.7.3: what SYN-SENT makes of resets.
#[test]
fn rfc9293_3_10_7_3_only_a_fitting_reset_refuses() {
    let mut s = Script::new(Version::V4);
    let conn = s.connect();
    s.expect(seg(SYN, 0, 0));
    s.send(seg(RST, 0, 0));
    s.send(seg(RST | ACK, 0, 9));
    assert_eq!(s.event(), None, "these resets answer nothing that was sent");
    s.send(seg(RST | ACK, 0, 1));
    s.expect_event(Event::Closed { conn, reason: CloseReason::Refused });
    s.expect_nothing();
}

/// RFC 9293, section 3.10.7.3, first: an acknowledgement of what was never sent draws a reset.
#[test]
fn rfc9293_3_10_7_3_a_stray_answer_to_a_syn_is_reset() {
    let mut s = Script::new(Version::V4);
    let conn = s.connect();
    s.expect(seg(SYN, 0, 0));
    s.send(seg(SYN | ACK, 0, 9));
    s.expect(seg(RST, 9, 0));
    s.send(seg(SYN | ACK, 0, 1).mss(1_000));
    s.expect(seg(ACK, 1, 1));
    s.expect_event(Event::Opened { conn, peer: s.remote.at });
    s.assert_alive(conn, 1, 1);
}

/// RFC 9293, section 3.10.7.4, and RFC 6191: a new connection takes the place of one in TIME-WAIT if its SYN
/// cannot be an old one.
#[test]
fn rfc6191_time_wait_makes_room_for_a_newer_syn() {
    let (mut s, conn) = Script::open(Version::V4);
    s.finish(conn);
    s.expect(seg(FIN | ACK, 1, 1));
    s.send(seg(FIN | ACK, 1, 2));
    s.expect(seg(ACK, 2, 2));
    // An old SYN draws an acknowledgement and nothing else.
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.expect(seg(ACK, 2, 2));
    // A newer one opens a connection, with a sequence number above the old ones.
    let old = s.stack_iss;
    s.send(seg(SYN, 100_000, 0).mss(1_000));
    let answer = s.expect(seg(SYN | ACK, 0, 100_001));
    assert!(answer.has(SYN) && s.stack_iss.wrapping_sub(old) as i32 > 2, "the new numbers lie above the old");
    s.send(seg(ACK, 100_001, 1));
    let opened = std::iter::from_fn(|| s.event()).last();
    let Some(Event::Opened { conn, .. }) = opened else { panic!("{opened:?} instead of a new connection") };
    s.assert_alive(conn, 100_001, 1);
}

/// A script with a connection in TIME-WAIT, whose next numbers are 2 for the stack and 2 for the remote.
fn in_time_wait(timestamps: Option<(u32, u32)>) -> Script {
    let mut s = Script::listening(Version::V4);
    let conn = s.open_with(Seg { timestamps, ..seg(SYN, 0, 0).mss(1_000) });
    let timestamps = timestamps.map(|(value, _)| (value, s.stack_timestamp()));
    s.finish(conn);
    s.expect(seg(FIN | ACK, 1, 1));
    s.send(Seg { timestamps, ..seg(FIN | ACK, 1, 2) });
    s.expect(seg(ACK, 2, 2));
    while s.event().is_some() {}
    s
}

/// RFC 1337, fix F1: a reset does not end TIME-WAIT, not even with the very next number.
#[test]
fn rfc1337_a_reset_does_not_end_time_wait() {
    for timestamps in [None, Some((1_000, 0))] {
        let mut s = in_time_wait(timestamps);
        for seq in [2, 1, 3] {
            s.send(seg(RST, seq, 0));
            s.send(seg(RST | ACK, seq, 2));
            s.expect_nothing();
        }
        // An old duplicate draws an ACK; the RST with which a closed peer answers that changes nothing.
        s.send(data(1, 1, b"old"));
        s.expect(seg(ACK, 2, 2));
        s.send(seg(RST, 2, 0));
        s.send(Seg { timestamps, ..seg(FIN | ACK, 1, 2) });
        s.expect(seg(ACK, 2, 2));
        s.advance(Duration::from_secs(61));
        s.send(Seg { timestamps, ..seg(FIN | ACK, 1, 2) });
        s.expect(seg(RST, 2, 0));
    }
}

/// A peer whose new SYN may be an old one, by its number and its timestamp, is asked by an ACK. If it answers that it
/// knows no such connection, the same SYN opens a new one when it comes again, with higher numbers than the last.
#[test]
fn a_peer_that_has_forgotten_all_need_not_wait_for_the_end_of_time_wait() {
    let syns = [seg(SYN, 0u32.wrapping_sub(9_000), 0), seg(SYN, 0u32.wrapping_sub(9_000), 0).ts(77, 0)];
    for (agreed, syn) in [None, Some((1_000, 0))].into_iter().flat_map(|a| syns.clone().map(|syn| (a, syn))) {
        let mut s = in_time_wait(agreed);
        let old = s.stack_iss;
        s.send(syn.clone());
        s.expect(seg(ACK, 2, 2));
        // As long as it has not answered, it is asked again; an answer to something else is none.
        s.send(seg(RST, 3, 0));
        s.send(syn.clone());
        s.expect(seg(ACK, 2, 2));
        s.send(seg(RST, 2, 0));
        s.expect_nothing();
        // It is TIME-WAIT still, for old duplicates and for any other SYN.
        s.send(data(1, 1, b"old"));
        s.expect(seg(ACK, 2, 2));
        s.send(Seg { seq: syn.seq.wrapping_sub(1), ..syn.clone() });
        s.expect(seg(ACK, 2, 2));
        s.advance(Duration::from_secs(1));
        s.send(syn.clone());
        s.expect(seg(SYN | ACK, 0, 0u32.wrapping_sub(8_999)));
        assert!(s.stack_iss.wrapping_sub(old) as i32 > 2, "the new numbers lie above the old");
        s.send(Seg { flags: ACK, seq: syn.seq.wrapping_add(1), ack: 1, ..syn });
        let opened = std::iter::from_fn(|| s.event()).last();
        assert!(matches!(opened, Some(Event::Opened { .. })), "{opened:?} instead of a new connection");
    }
}

/// RFC 9293, section 3.4.2: a SYN that nobody takes is refused, and leaves the connection in TIME-WAIT where it is.
#[test]
fn rfc9293_3_4_2_a_syn_to_a_port_where_nobody_listens_leaves_time_wait() {
    for version in BOTH_VERSIONS {
        let mut s = Script::new(version);
        let conn = s.connect();
        s.expect(seg(SYN, 0, 0));
        s.send(seg(SYN | ACK, 0, 1).mss(1_000));
        s.expect(seg(ACK, 1, 1));
        s.finish(conn);
        s.expect(seg(FIN | ACK, 1, 1));
        s.send(seg(FIN | ACK, 1, 2));
        s.expect(seg(ACK, 2, 2));
        let iss = std::mem::replace(&mut s.stack_iss, 0);
        s.send(seg(SYN, 100_000, 0).mss(1_000));
        s.expect(seg(RST | ACK, 0, 100_001));
        s.stack_iss = iss;
        s.send(seg(FIN | ACK, 1, 2));
        s.expect(seg(ACK, 2, 2));
    }
}

/// RFC 6191, section 2, and RFC 9293, section 3.4.2: where a cookie answers, too, a new connection's numbers lie above
/// those of the last one; where they would not, the SYN has to come again.
#[test]
fn rfc6191_2_a_cookie_begins_above_the_numbers_of_time_wait() {
    let (mut answered, mut put_off) = (0, 0);
    for key in 0..24 {
        let mut s =
            Script::with_config(Version::V4, Config { syn_queue: 1, isn_secret: [key; 16], ..config(1) });
        s.listen();
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
        s.finish(conn);
        s.expect(seg(FIN | ACK, 1, 1));
        s.send(seg(FIN | ACK, 1, 2));
        s.expect(seg(ACK, 2, 2));
        let old = s.stack_iss;
        // Another takes the only place of the queue, so that cookies answer.
        s.remote.at.set_port(1);
        s.send(seg(SYN, 0, 0).mss(1_000));
        s.expect(seg(SYN | ACK, 0, 1));
        s.remote.at.set_port(40_000);
        s.send(seg(SYN, 100_000, 0).mss(1_000));
        if s.next().is_some() {
            answered += 1;
            assert!(s.stack_iss.wrapping_sub(old) as i32 > 2, "key {key}: the new numbers lie above the old");
            s.send(seg(ACK, 100_001, 1));
            let opened = std::iter::from_fn(|| s.event()).last();
            assert!(matches!(opened, Some(Event::Opened { .. })), "key {key}: {opened:?}");
            continue;
        }
        put_off += 1;
        s.stack_iss = old;
        s.send(seg(FIN | ACK, 1, 2));
        s.expect(seg(ACK, 2, 2));
        // Once there is a place again, it is answered.
        s.remote.at.set_port(1);
        s.send(seg(RST, 1, 0));
        s.remote.at.set_port(40_000);
        s.send(seg(SYN, 100_000, 0).mss(1_000));
        s.expect(seg(SYN | ACK, 0, 100_001));
        assert!(s.stack_iss.wrapping_sub(old) as i32 > 2, "key {key}: the new numbers lie above the old");
    }
    assert!(answered > 3 && put_off > 3, "{answered} answered, {put_off} put off");
}
