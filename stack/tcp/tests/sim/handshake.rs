//! What a handshake leaves behind: clocks, first timeouts, and what a half-open connection makes of resets.

use std::time::Duration;

use stack::Config;
use stack::net::{ConnId, Event};
use stack::transport::OverEndpoint as _;

use crate::ours::config;
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version};
use crate::wire::{ACK, RST, SYN, Seg, data, seg};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// A stack whose queue of half-open connections is full, so that cookies answer.
fn with_cookies(version: Version) -> Script {
    let mut s = Script::with_config(version, Config { syn_queue: 1, ..config(1) });
    s.listen();
    s.remote.at.set_port(1);
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.expect(seg(SYN | ACK, 0, 1));
    s
}

fn opened(s: &mut Script) -> ConnId {
    let Some(Event::Opened { conn, .. }) = s.event() else { panic!("not open") };
    conn
}

/// RFC 7323, sections 5.3 and 5.4: after a cookie no segment carries an older timestamp than the one before it, in
/// whichever millisecond the SYN came and whatever window scale the cookie's timestamp has to remember. A peer would
/// drop it as old.
#[test]
fn rfc7323_5_3_segments_after_a_cookie_are_not_older_than_it() {
    let mut s = with_cookies(Version::V4);
    let mut port = 2_000;
    for scale in [None, Some(0), Some(1), Some(7), Some(14)] {
        for phase in 0..17 {
            s.advance(MS(16 - s.now().as_millis() as u64 % 16 + phase));
            s.remote.at.set_port(port);
            port += 1;
            while s.next().is_some() {}
            let cookies = s.stack.endpoint().counters().syn_cookies_sent;
            s.send(Seg { scale, ..seg(SYN, 0, 0).mss(1_000).ts(500, 0) });
            let answer = s.expect(seg(SYN | ACK, 0, 1));
            assert_eq!(s.stack.endpoint().counters().syn_cookies_sent, cookies + 1, "no cookie was sent");
            let (mut recent, _) = answer.timestamps.expect("timestamps were offered");
            // The window tells which scale came back.
            s.send(seg(ACK, 1, 1).window(100).ts(500, recent));
            let conn = opened(&mut s);
            assert_eq!(s.write(conn, &[7; 300]), Ok(()));
            s.send(data(1, 1, b"first").ts(500, recent));
            s.advance(MS(60));
            let mut first = None;
            // The one whose handshake fills the queue has no timestamps.
            for segment in std::iter::from_fn(|| s.next()).filter(|segment| !segment.has(SYN)) {
                let (value, _) = segment.timestamps.expect("timestamps were agreed");
                assert!(value.wrapping_sub(recent) as i32 >= 0, "{value} after {recent}, scale {scale:?}");
                recent = value;
                first = first.or(Some(segment.payload.len()));
            }
            assert_eq!(first, Some(300.min(100 << scale.unwrap_or(0))), "scale {scale:?}");
            s.abort(conn);
            while s.next().is_some() {}
            while s.event().is_some() {}
        }
    }
}

/// How long the first segment of a connection waits for its acknowledgement.
fn first_timeout(s: &mut Script, conn: ConnId) -> Duration {
    assert_eq!(s.write(conn, b"first"), Ok(()));
    s.expect(data(1, 1, b"first"));
    let waited = s.wait_for_segment(Duration::from_secs(10));
    s.expect(data(1, 1, b"first"));
    waited
}

#[track_caller]
fn assert_about(waited: Duration, expected: Duration) {
    assert!((expected - MS(20)..=expected + MS(20)).contains(&waited), "{waited:?}, not {expected:?}");
}

/// RFC 6298, sections 2.2 and 3: where there are no timestamps, the time from SYN and ACK to what answers them is
/// the first measurement, so that the first timeout is that of the path.
#[test]
fn rfc6298_2_2_the_handshake_measures_the_round_trip() {
    for version in BOTH_VERSIONS {
        for (round_trip, expected) in [(0, 200), (300, 900)] {
            let mut s = Script::listening(version);
            s.send(seg(SYN, 0, 0).mss(1_000));
            s.expect(seg(SYN | ACK, 0, 1));
            s.advance(MS(round_trip));
            s.send(seg(ACK, 1, 1));
            let conn = opened(&mut s);
            assert_about(first_timeout(&mut s, conn), MS(expected));

            let mut s = Script::new(version);
            let conn = s.connect();
            s.expect(seg(SYN, 0, 0));
            s.advance(MS(round_trip));
            s.send(seg(SYN | ACK, 0, 1).mss(1_000));
            s.expect(seg(ACK, 1, 1));
            assert_eq!(opened(&mut s), conn);
            assert_about(first_timeout(&mut s, conn), MS(expected));
        }
    }
}

/// RFC 6298, section 3 (Karn): what was sent twice is no measurement; section 5.7: if that was for want of an answer,
/// the first timeout is 3 s.
#[test]
fn rfc6298_5_7_a_handshake_sent_twice_measures_nothing() {
    let mut s = Script::listening(Version::V4);
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.expect(seg(SYN | ACK, 0, 1));
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.expect(seg(SYN | ACK, 0, 1));
    s.send(seg(ACK, 1, 1));
    let conn = opened(&mut s);
    assert_about(first_timeout(&mut s, conn), MS(1_000));

    let mut s = Script::listening(Version::V4);
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.expect(seg(SYN | ACK, 0, 1));
    s.advance(MS(1_100));
    s.expect(seg(SYN | ACK, 0, 1));
    s.send(seg(ACK, 1, 1));
    let conn = opened(&mut s);
    assert_about(first_timeout(&mut s, conn), MS(3_000));

    let mut s = Script::new(Version::V4);
    s.connect();
    s.expect(seg(SYN, 0, 0));
    s.advance(MS(1_100));
    s.expect(seg(SYN, 0, 0));
    s.send(seg(SYN | ACK, 0, 1).mss(1_000));
    s.expect(seg(ACK, 1, 1));
    let conn = opened(&mut s);
    assert_about(first_timeout(&mut s, conn), MS(3_000));

    // Both open at once: the SYN goes out alone, and with an ACK.
    let mut s = Script::new(Version::V4);
    s.connect();
    s.expect(seg(SYN, 0, 0));
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.expect(seg(SYN | ACK, 0, 1));
    s.send(seg(ACK, 1, 1));
    let conn = opened(&mut s);
    assert_about(first_timeout(&mut s, conn), MS(1_000));
}

/// Of a cookie nothing is remembered, not even when it was sent.
#[test]
fn a_cookie_measures_nothing_without_timestamps() {
    let mut s = with_cookies(Version::V4);
    s.remote.at.set_port(2_000);
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.expect(seg(SYN | ACK, 0, 1));
    s.send(seg(ACK, 1, 1));
    let conn = opened(&mut s);
    assert_eq!(s.stack.endpoint().counters().syn_cookies_accepted, 1);
    assert_eq!(s.write(conn, b"first"), Ok(()));
    s.expect(data(1, 1, b"first"));
    s.remote.at.set_port(2_000);
    let mut waited = Duration::ZERO;
    // The other half-open connection repeats itself meanwhile.
    loop {
        waited += s.wait_for_segment(Duration::from_secs(5));
        if s.next().is_some_and(|segment| segment.payload == b"first") {
            break;
        }
    }
    assert_about(waited, MS(1_000));
}

/// RFC 9293, section 3.10.7.4, first, and RFC 5961, section 3.2: while a handshake is under way, a reset counts with
/// the very next number only; elsewhere in the window it draws a challenge, and outside of it nothing.
#[test]
fn rfc5961_3_2_a_reset_inside_the_window_of_a_handshake_is_challenged() {
    for version in BOTH_VERSIONS {
        for timestamps in [None, Some((500, 0))] {
            let syn = Seg { timestamps, ..seg(SYN, 0, 0).mss(1_000) };
            let mut s = Script::listening(version);
            s.send(syn.clone());
            let answer = s.expect(seg(SYN | ACK, 0, 1));
            let window = u32::from(answer.window.expect("every segment has one"));
            for seq in [2, 3, 1_000, window] {
                s.send(seg(RST, seq, 0));
                s.expect(seg(ACK, 1, 1));
                s.expect_nothing();
            }
            for seq in [0, window + 1, window + 70_000, 0u32.wrapping_sub(5)] {
                s.send(seg(RST, seq, 0));
                s.expect_nothing();
            }
            // It lives; and its peer, challenged, ends it.
            s.send(syn.clone());
            s.expect(seg(SYN | ACK, 0, 1));
            s.send(seg(RST, 1, 0));
            s.expect_nothing();
            s.send(seg(ACK, 1, 1));
            s.expect(seg(RST, 1, 0));
            assert_eq!(s.event(), None);
        }

        // The same where both open at once.
        let mut s = Script::new(version);
        let conn = s.connect();
        s.expect(seg(SYN, 0, 0));
        s.send(seg(SYN, 0, 0).mss(1_000));
        s.expect(seg(SYN | ACK, 0, 1));
        s.send(seg(RST, 2, 0));
        s.expect(seg(ACK, 1, 1));
        s.send(seg(RST, 500_000, 0));
        s.expect_nothing();
        s.send(seg(ACK, 1, 1));
        assert_eq!(opened(&mut s), conn);
    }
}
