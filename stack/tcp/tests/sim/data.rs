//! Data and its acknowledgements, segment by segment.

use std::time::Duration;

use stack::net::{CloseReason, Event, Net};
use stack::transport::OverEndpoint as _;
use stack::{Config, ConnectionOptions};

use crate::ours::config;
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version};
use crate::wire::{ACK, FIN, SYN, Seg, data, seg};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// RFC 9293, section 3.8.6.3: an acknowledgement may wait for 500 ms, and here for 40; every second full
/// segment is acknowledged at once. So it is once something was sent; before that the peer begins.
#[test]
fn rfc9293_3_8_6_3_acknowledgements_wait_for_a_second_segment() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = Script::open(version);
        assert_eq!(s.write(conn, b"hello"), Ok(()));
        s.expect(data(1, 1, b"hello"));
        s.send(data(1, 6, &[1; 1_000]));
        s.expect_nothing();
        let waited = s.wait_for_segment(MS(500));
        assert!((MS(10)..=MS(41)).contains(&waited), "{waited:?}");
        s.expect(seg(ACK, 6, 1_001));
        s.send(data(1_001, 6, &[2; 1_000]));
        s.expect_nothing();
        s.send(data(2_001, 6, &[3; 1_000]));
        s.expect(seg(ACK, 6, 3_001));
        s.expect_event(Event::Readable { conn });
        assert_eq!(s.read(conn), [[1; 1_000], [2; 1_000], [3; 1_000]].concat());
        s.assert_nothing_leaked();
    }
}

/// RFC 5681, section 4.2: what lies beyond a hole, and what fills it, is acknowledged at once.
#[test]
fn rfc5681_4_2_a_hole_is_told_at_once_and_its_end_too() {
    let (mut s, conn) = Script::open(Version::V4);
    s.send(data(4, 1, b"def"));
    s.expect(seg(ACK, 1, 1));
    s.send(data(10, 1, b"jkl"));
    s.expect(seg(ACK, 1, 1));
    assert_eq!(s.event(), None, "nothing is in order");
    s.send(data(1, 1, b"abc"));
    s.expect(seg(ACK, 1, 7));
    s.send(data(7, 1, b"ghi"));
    s.expect(seg(ACK, 1, 13));
    assert_eq!(s.read(conn), b"abcdefghijkl");
    s.assert_nothing_leaked();
}

/// RFC 9293, section 3.10.7.4, first: what was received before is cut away, at both ends.
#[test]
fn rfc9293_3_10_7_4_overlaps_are_trimmed() {
    let (mut s, conn) = Script::open(Version::V4);
    s.send(data(1, 1, b"abc"));
    s.send(data(7, 1, b"ghi"));
    s.send(data(2, 1, b"bcdefgh"));
    s.send(data(8, 1, b"hijk"));
    assert_eq!(s.read(conn), b"abcdefghijk");
    // All of it again: acknowledged at once, and not delivered.
    while s.next().is_some() {}
    s.send(data(1, 1, b"abcdefghijk"));
    s.expect(seg(ACK, 1, 12));
    assert_eq!(s.read(conn), b"");
    s.assert_nothing_leaked();
}

#[test]
fn a_fin_beyond_a_hole_waits_for_it() {
    let (mut s, conn) = Script::open(Version::V4);
    s.send(seg(FIN | ACK, 4, 1).payload(b"def"));
    s.expect(seg(ACK, 1, 1));
    assert_eq!(s.event(), None);
    s.send(data(1, 1, b"abc"));
    s.expect(seg(ACK, 1, 8));
    s.expect_event(Event::Readable { conn });
    s.expect_event(Event::PeerFinished { conn });
    assert_eq!(s.read(conn), b"abcdef");
}

/// RFC 9293, section 3.10.7.4, first: what lies beyond the window is not taken, and draws an acknowledgement.
#[test]
fn rfc9293_3_10_7_4_nothing_is_taken_from_beyond_the_window() {
    let (mut s, conn) = Script::open(Version::V4);
    s.send(data(70_001, 1, b"beyond"));
    s.expect(seg(ACK, 1, 1));
    s.send(data(0u32.wrapping_sub(100), 1, b"long ago"));
    s.expect(seg(ACK, 1, 1));
    s.assert_alive(conn, 1, 1);
}

/// RFC 9293, section 3.7.1: without the option a segment holds 536 bytes, or 1,220 over IPv6.
#[test]
fn rfc9293_3_7_1_without_an_mss_option_segments_are_small() {
    for (version, mss) in [(Version::V4, 536), (Version::V6, 1_220)] {
        let mut s = Script::listening(version);
        let conn = s.open_with(seg(SYN, 0, 0));
        assert_eq!(s.write(conn, &[7; 2_000]), Ok(()));
        s.expect(data(1, 1, &vec![7; mss]));
    }
}

/// RFC 9293, section 3.7.1, and RFC 6691: the MSS leaves out the options, so their length comes off each segment.
#[test]
fn rfc6691_options_come_off_the_segment() {
    for (version, own_mss) in [(Version::V4, 1_460), (Version::V6, 1_440)] {
        let mut s = Script::listening(version);
        s.send(seg(SYN, 0, 0).mss(1_000).ts(1, 0));
        let answer = s.expect(seg(SYN | ACK, 0, 1).mss(own_mss));
        let (value, echo) = answer.timestamps.expect("timestamps were offered");
        assert_eq!(echo, 1);
        s.send(seg(ACK, 1, 1).ts(2, value));
        let Some(Event::Opened { conn, .. }) = s.event() else { panic!("not open") };
        assert_eq!(s.write(conn, &[7; 1_500]), Ok(()));
        s.expect(data(1, 1, &[7; 988]));
        s.expect(data(989, 1, &[7; 512]));
    }
}

/// RFC 7323, section 2.2: the window is scaled only if both sides said so, and never in a SYN.
#[test]
fn rfc7323_2_2_windows_are_scaled_if_both_say_so() {
    let config = Config { rx_window_bytes: 1 << 20, ..config(1) };
    let mut s = Script::with_buffers(Version::V4, config.clone(), 4_000);
    s.listen();
    s.send(seg(SYN, 0, 0).mss(1_000).scale(3));
    let answer = s.expect(seg(SYN | ACK, 0, 1));
    let scale = answer.scale.expect("a scale was offered");
    // The remote's window of 1 is 8 bytes now.
    s.send(seg(ACK, 1, 1).window(125));
    let Some(Event::Opened { conn, .. }) = s.event() else { panic!("not open") };
    assert_eq!(s.write(conn, &[7; 3_000]), Ok(()));
    s.expect(data(1, 1, &[7; 1_000]));
    s.expect_nothing();
    s.send(data(1, 1_001, b"x"));
    s.advance(MS(50));
    let ack = std::iter::from_fn(|| s.next()).last().expect("the data is acknowledged");
    let window = u32::from(ack.window.expect("every segment has one")) << scale;
    assert!(window > 65_535, "{window} needs no scale");

    let mut s = Script::with_buffers(Version::V4, config, 4_000);
    s.listen();
    s.send(seg(SYN, 0, 0).mss(1_000));
    assert_eq!(s.expect(seg(SYN | ACK, 0, 1)).scale, None);
}

/// RFC 7323, section 2.3: a scale above 14 counts as 14.
#[test]
fn rfc7323_2_3_a_scale_is_at_most_14() {
    let mut s = Script::listening(Version::V4);
    s.send(seg(SYN, 0, 0).mss(1_000).scale(255));
    s.expect(seg(SYN | ACK, 0, 1));
    s.send(seg(ACK, 1, 1).window(1));
    let Some(Event::Opened { conn, .. }) = s.event() else { panic!("not open") };
    assert_eq!(s.write(conn, &[7; 1_000]), Ok(()));
    s.expect(data(1, 1, &[7; 1_000]));
}

/// RFC 7323, section 4.3: the echo is that of the earliest segment not yet acknowledged.
#[test]
fn rfc7323_4_3_the_echo_is_of_the_earliest_segment() {
    let mut s = Script::listening(Version::V4);
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).ts(100, 0));
    let echo = s.stack_timestamp();
    let both = [(1, 110), (989, 120)].map(|(seq, ts)| data(seq, 1, &[1; 988]).ts(ts, echo));
    let both = both.map(|segment| s.frame_from(s.remote, segment));
    s.exchange(both, |_| {});
    let ack = s.expect(seg(ACK, 1, 1_977));
    assert_eq!(ack.timestamps.map(|(_, echo)| echo), Some(110));
    // A segment beyond a hole does not change it.
    s.send(data(2_965, 1, &[1; 988]).ts(130, echo));
    let ack = s.expect(seg(ACK, 1, 1_977));
    assert_eq!(ack.timestamps.map(|(_, echo)| echo), Some(110));
    assert_eq!(s.read(conn).len(), 1_976);
}

/// RFC 7323, section 5.3, R1: a segment with an older timestamp than the last is an old one.
#[test]
fn rfc7323_5_3_old_timestamps_are_dropped_and_acknowledged() {
    let mut s = Script::listening(Version::V4);
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).ts(1_000, 0));
    let echo = s.stack_timestamp();
    s.send(data(1, 1, b"new").ts(1_001, echo));
    s.advance(MS(50));
    s.expect(seg(ACK, 1, 4));
    s.send(data(4, 1, b"old").ts(999, echo));
    s.expect(seg(ACK, 1, 4));
    s.send(data(4, 1, b"now").ts(1_001, echo));
    assert_eq!(s.read(conn), b"newnow");
    // Section 3.2: where timestamps were agreed, a segment without one is dropped too, but for resets.
    while s.next().is_some() {}
    s.send(data(7, 1, b"bare"));
    assert_eq!(s.read(conn), b"");
    s.send(seg(crate::wire::RST, 7, 0));
    assert!(
        std::iter::from_fn(|| s.event()).any(|e| e == Event::Closed { conn, reason: CloseReason::Reset }),
        "a reset needs no timestamp"
    );
}

/// RFC 7323, section 5.5: after 24 days of silence a timestamp says nothing about age.
#[test]
fn rfc7323_5_5_after_24_days_of_silence_any_timestamp_goes() {
    let mut s = Script::listening(Version::V4);
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).ts(1_000, 0));
    let echo = s.stack_timestamp();
    s.advance(Duration::from_secs(25 * 24 * 3_600));
    s.send(data(1, 1, b"late").ts(999, echo));
    assert_eq!(s.read(conn), b"late");
}

fn sent(s: &mut Script) -> Vec<Seg> {
    std::iter::from_fn(|| s.next()).collect()
}

/// RFC 5681, section 3.2: the third duplicate acknowledgement sends the missing segment again, before any
/// timeout; RFC 6582, section 3.2: so does an acknowledgement that stops at the next hole.
#[test]
fn rfc5681_3_2_three_duplicates_send_again_and_rfc6582_a_partial_one_too() {
    let (mut s, conn) = Script::open(Version::V4);
    // Spread a bit, so that the smoothed round-trip time is no longer zero.
    assert_eq!(s.write(conn, &[7; 4_000]), Ok(()));
    assert_eq!(sent(&mut s).iter().map(|seg| seg.seq).collect::<Vec<_>>(), [1, 1_001, 2_001, 3_001]);
    // Both the first and the third are lost.
    s.send(seg(ACK, 1, 1));
    s.send(seg(ACK, 1, 1));
    s.expect_nothing();
    s.send(seg(ACK, 1, 1));
    s.expect(data(1, 1, &[7; 1_000]));
    s.send(seg(ACK, 1, 2_001));
    s.expect(data(2_001, 1, &[7; 1_000]));
    s.send(seg(ACK, 1, 4_001));
    s.expect_nothing();
    let counters = s.stack.endpoint().counters();
    assert_eq!((counters.timeouts, counters.retransmits), (0, 2));
    s.assert_nothing_leaked();
}

/// RFC 5681, section 2: an acknowledgement that brings data or another window is no duplicate.
#[test]
fn rfc5681_2_what_brings_data_or_a_window_is_no_duplicate() {
    let (mut s, conn) = Script::open(Version::V4);
    assert_eq!(s.write(conn, &[7; 1_000]), Ok(()));
    s.expect(data(1, 1, &[7; 1_000]));
    for n in 0..6 {
        s.send(data(1 + n, 1, b"x"));
        s.send(seg(ACK, 7, 1).window(60_000 - n as u16));
    }
    s.advance(MS(60));
    assert!(sent(&mut s).iter().all(|seg| seg.payload.is_empty()), "nothing is to be sent again");
}

/// RFC 6298, section 5: what is not acknowledged is sent again, after twice the time each time; RFC 9293, sections 3.8.3
/// and 3.9.1: until the user timeout has passed, to the second, and not before.
#[test]
fn rfc6298_5_the_timeout_doubles_and_rfc9293_3_8_3_the_user_timeout_ends_it() {
    let user_timeout = Duration::from_secs(20);
    let connection = ConnectionOptions { user_timeout, ..ConnectionOptions::default() };
    let mut s = Script::with_config(Version::V4, Config { connection, min_rto: MS(200), ..config(1) });
    s.listen();
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
    assert_eq!(s.write(conn, b"hello?"), Ok(()));
    s.expect(data(1, 1, b"hello?"));
    let begin = s.now();
    let mut waited = vec![];
    for _ in 0..5 {
        waited.push(s.wait_for_segment(Duration::from_secs(61)));
        s.expect(data(1, 1, b"hello?"));
    }
    assert!((MS(200)..=MS(1_500)).contains(&waited[0]), "{waited:?}");
    for pair in waited.windows(2) {
        let doubled = pair[0] * 2;
        assert!(pair[1] + MS(20) >= doubled && pair[1] <= doubled + MS(20), "{waited:?}");
    }
    s.advance(user_timeout - (s.now() - begin) - MS(50));
    assert_eq!(s.event(), None, "it is not over before its time");
    s.advance(MS(100));
    s.expect_event(Event::Closed { conn, reason: CloseReason::TimedOut });
    s.assert_nothing_leaked();
}

/// RFC 9293, section 3.8.3: each listener has its own user timeout, and so has each connection that is opened; what the
/// peer acknowledges begins it anew.
#[test]
fn rfc9293_3_8_3_each_listener_and_each_connection_has_its_user_timeout() {
    let options = |seconds| ConnectionOptions {
        user_timeout: Duration::from_secs(seconds),
        ..ConnectionOptions::default()
    };
    let mut s = Script::new(Version::V4);
    let ip = s.local.at.ip();
    let at = |port| (ip, port).into();
    let (long, short) = (at(80), at(81));
    s.stack.endpoint_mut().listen_with(long, 4, &options(40)).expect("the address is free");
    s.stack.endpoint_mut().listen_with(short, 4, &options(10)).expect("the address is free");
    for (local, seconds) in [(long, 40), (short, 10)] {
        s.local.at = local;
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
        assert_eq!(s.write(conn, &[7; 2_000]), Ok(()));
        s.advance(Duration::from_secs(seconds - 2));
        s.send(seg(ACK, 1, 1_001));
        s.advance(Duration::from_secs(seconds - 1));
        assert_eq!(s.event(), None, "the peer has acknowledged something");
        s.advance(Duration::from_secs(2));
        s.expect_event(Event::Closed { conn, reason: CloseReason::TimedOut });
        sent(&mut s);
    }
    s.local.at = at(5_000);
    let now = s.now();
    let conn = s.stack.endpoint_mut().connect_with(now, s.remote.at, Some(s.local.at), &options(5));
    let conn = conn.expect("the address is free");
    s.settle();
    s.expect(seg(SYN, 0, 0));
    s.send(seg(SYN | ACK, 0, 1).mss(1_000));
    s.expect(seg(ACK, 1, 1));
    s.expect_event(Event::Opened { conn, peer: s.remote.at });
    assert_eq!(s.write(conn, b"hello?"), Ok(()));
    s.advance(Duration::from_secs(6));
    s.expect_event(Event::Closed { conn, reason: CloseReason::TimedOut });
}

/// RFC 9293, section 3.7.4: with Nagle's algorithm less than a whole segment waits while something is in flight, until
/// there is a whole segment, or all is acknowledged, or nothing follows. Without it nothing waits.
#[test]
fn rfc9293_3_7_4_small_segments_wait_for_what_is_in_flight_if_that_is_asked_for() {
    let connection = ConnectionOptions { nagle: true, ..ConnectionOptions::default() };
    for tx_segmentation in [false, true] {
        let config =
            Config { connection, tx_segmentation, tx_checksum_offload: tx_segmentation, ..config(1) };
        let mut s = Script::with_config(Version::V4, config);
        s.listen();
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
        assert_eq!(s.write(conn, b"first"), Ok(()));
        s.expect(data(1, 1, b"first"));
        for _ in 0..9 {
            assert_eq!(s.write(conn, &[7; 100]), Ok(()));
            s.expect_nothing();
        }
        // A whole segment goes, and what is left beyond it waits again.
        assert_eq!(s.write(conn, &[7; 150]), Ok(()));
        s.expect(data(6, 1, &[7; 1_000]));
        s.expect_nothing();
        s.send(seg(ACK, 1, 6));
        s.expect_nothing();
        s.send(seg(ACK, 1, 1_006));
        s.expect(data(1_006, 1, &[7; 50]));
        assert_eq!(s.write(conn, &[8; 2_500]), Ok(()));
        s.expect(data(1_056, 1, &[8; 1_000]));
        s.expect(data(2_056, 1, &[8; 1_000]));
        s.expect_nothing();
        s.finish(conn);
        s.expect(seg(FIN | ACK, 3_056, 1).payload(&[8; 500]));
        // What is lost is sent again without waiting for more.
        s.send(seg(ACK, 1, 2_056));
        s.wait_for_segment(Duration::from_secs(3));
        s.expect(data(2_056, 1, &[8; 1_000]));
    }
    let (mut s, conn) = Script::open(Version::V4);
    for n in 0..5 {
        assert_eq!(s.write(conn, b"x"), Ok(()));
        s.expect(data(1 + n, 1, b"x"));
    }
}

/// RFC 6298, section 3 (Karn): the answer to a segment sent twice says nothing about the round trip.
#[test]
fn rfc6298_3_an_ambiguous_answer_is_no_measurement() {
    let (mut s, conn) = Script::open(Version::V4);
    assert_eq!(s.write(conn, b"one"), Ok(()));
    s.expect(data(1, 1, b"one"));
    let first = s.wait_for_segment(Duration::from_secs(5));
    s.expect(data(1, 1, b"one"));
    let second = s.wait_for_segment(Duration::from_secs(5));
    s.expect(data(1, 1, b"one"));
    assert!(second > first);
    // Had the answer, 50 us after the last copy, been measured, the timeout would be back at its least.
    s.send(seg(ACK, 1, 4));
    assert_eq!(s.write(conn, b"two"), Ok(()));
    s.expect(data(4, 1, b"two"));
    let third = s.wait_for_segment(Duration::from_secs(5));
    assert!(third > first, "after {first:?} and {second:?} the timeout fell to {third:?}");
}

/// RFC 6298, section 2.1: without a measurement the first timeout is a second.
#[test]
fn rfc6298_2_1_a_syn_is_sent_again_after_a_second_and_then_given_up() {
    let config = Config { syn_timeout: Duration::from_secs(16), ..config(1) };
    let mut s = Script::with_config(Version::V4, config);
    let conn = s.connect();
    s.expect(seg(SYN, 0, 0));
    for expected in [1_000, 2_000, 4_000, 8_000] {
        let waited = s.wait_for_segment(Duration::from_secs(10));
        assert!((MS(expected - 20)..=MS(expected + 20)).contains(&waited), "{waited:?}");
        s.expect(seg(SYN, 0, 0));
    }
    assert_eq!(s.event(), None);
    s.advance(Duration::from_secs(2));
    s.expect_event(Event::Closed { conn, reason: CloseReason::TimedOut });
    s.expect_nothing();
}

/// RFC 9293, section 3.8.3 (MUST-23): a SYN is sent again for three minutes at least.
#[test]
fn rfc9293_3_8_3_a_syn_is_sent_again_for_three_minutes() {
    for version in BOTH_VERSIONS {
        let mut s = Script::new(version);
        let begin = s.now();
        let conn = s.connect();
        while s.now() - begin < Duration::from_secs(179) {
            assert_eq!(s.event(), None, "given up after {:?}", s.now() - begin);
            s.advance(Duration::from_secs(1));
        }
        assert!(sent(&mut s).len() >= 7);
        s.advance(Duration::from_secs(3));
        s.expect_event(Event::Closed { conn, reason: CloseReason::TimedOut });
    }
}

/// RFC 9293, section 3.8.4: an idle connection is probed with an old number, and given up without an answer.
#[test]
fn rfc9293_3_8_4_keep_alive_probes_an_idle_connection() {
    let keepalive =
        stack::Keepalive { idle: Duration::from_secs(10), interval: Duration::from_secs(1), count: 3 };
    let connection = ConnectionOptions { keepalive: Some(keepalive), ..ConnectionOptions::default() };
    let mut s = Script::with_config(Version::V4, Config { connection, ..config(1) });
    s.listen();
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
    for _ in 0..3 {
        let waited = s.wait_for_segment(Duration::from_secs(20));
        assert!((MS(9_900)..=MS(10_100)).contains(&waited), "{waited:?}");
        let probe = s.next().expect("it was waited for");
        assert_eq!((probe.flags & !crate::wire::PSH, probe.seq), (ACK, 0), "{probe:?}");
        s.send(seg(ACK, 1, 1));
    }
    s.assert_alive(conn, 1, 1);
    s.event();
    s.wait_for_segment(Duration::from_secs(20));
    s.advance(Duration::from_secs(5));
    let probes = sent(&mut s);
    assert_eq!(probes.iter().filter(|seg| seg.seq == 0).count(), 3, "{probes:?}");
    s.expect_event(Event::Closed { conn, reason: CloseReason::TimedOut });
}

/// RFC 9293, section 3.8.4 (MUST-24 to MUST-26): keep-alive is off but on connections of a listener that asks for it, and
/// nobody is probed who has yet to acknowledge something.
#[test]
fn rfc9293_3_8_4_keep_alive_is_a_matter_of_the_listener_and_of_idle_connections() {
    let keepalive =
        stack::Keepalive { idle: Duration::from_secs(10), interval: Duration::from_secs(1), count: 3 };
    let mut s = Script::listening(Version::V4);
    let (usual, probing) = (s.local.at, (s.local.at.ip(), 81).into());
    let options = ConnectionOptions { keepalive: Some(keepalive), ..ConnectionOptions::default() };
    s.stack.endpoint_mut().listen_with(probing, 4, &options).expect("the address is free");
    let idle = s.open_with(seg(SYN, 0, 0).mss(1_000));
    s.local.at = probing;
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
    assert_eq!(s.write(conn, b"unheard"), Ok(()));
    s.advance(Duration::from_secs(60));
    let seen = sent(&mut s);
    assert!(seen.iter().all(|seg| seg.seq == 1 && seg.payload == b"unheard"), "{seen:?}");
    s.send(seg(ACK, 1, 8));
    s.advance(Duration::from_secs(11));
    let seen = sent(&mut s);
    assert!(!seen.is_empty() && seen.iter().all(|seg| seg.seq == 7 && seg.payload.is_empty()), "{seen:?}");
    s.send(seg(ACK, 1, 8));
    s.local.at = usual;
    s.advance(Duration::from_secs(4 * 3_600));
    while let Some(event) = s.event() {
        assert_eq!(event, Event::Closed { conn, reason: CloseReason::TimedOut });
    }
    sent(&mut s);
    s.stack_iss = 0;
    assert_eq!(s.write(idle, b"there?"), Ok(()));
    assert_eq!(s.next().expect("it lives").payload, b"there?");
}

/// A named buffer that is being sent stays taken until the last of its bytes is acknowledged.
#[test]
fn a_sent_buffer_comes_back_with_its_acknowledgement() {
    let (mut s, conn) = Script::open(Version::V4);
    let free = s.stack.arena().free_buffers();
    let extent = s.named(&[7; 1_500]);
    s.stack.send(conn, b"head").expect("there is room");
    s.stack.send_extent(conn, extent.clone()).expect("there is room");
    s.stack.send_extent(conn, extent).expect("the same bytes can be sent twice");
    s.settle();
    let payload: Vec<u8> = sent(&mut s).into_iter().flat_map(|seg| seg.payload).collect();
    assert_eq!(payload, [&b"head"[..], &[7; 3_000]].concat());
    assert_eq!(s.stack.arena().free_buffers(), free - 1);
    for (ack, taken) in [(5, 1), (1_505, 1), (3_004, 1), (3_005, 0)] {
        s.send(seg(ACK, 1, ack));
        assert_eq!(free - s.stack.arena().free_buffers(), taken, "after {ack}");
    }
}

/// Whoever keeps segments as they came sends them as they came: a reply's head before them does not cut each in two.
#[test]
fn a_piece_that_fills_a_segment_is_sent_as_one() {
    let (mut s, conn) = Script::open(Version::V4);
    let longest = s.named(&[1; 2_000]);
    s.stack.send_extent(conn, longest).expect("there is room");
    s.settle();
    let first = sent(&mut s);
    let mss = first[0].payload.len();
    assert!(mss < 2_000, "{first:?}");
    s.send(seg_ack(2_001));
    for (len, expected) in [(mss, vec![4, mss, mss]), (mss - 1, vec![mss, mss, 2])] {
        let begin = sent(&mut s).len();
        assert_eq!(begin, 0, "nothing is left to send");
        s.stack.send(conn, b"head").expect("there is room");
        for byte in [2, 3] {
            let piece = s.named(&vec![byte; len]);
            s.stack.send_extent(conn, piece).expect("there is room");
        }
        s.settle();
        let segments = sent(&mut s);
        let lengths: Vec<usize> = segments.iter().map(|seg| seg.payload.len()).collect();
        assert_eq!(lengths, expected);
        let payload: Vec<u8> = segments.iter().flat_map(|seg| seg.payload.clone()).collect();
        assert_eq!(payload, [&b"head"[..], &vec![2; len], &vec![3; len]].concat());
        let last = segments.last().expect("three were sent");
        s.send(seg_ack(last.seq + last.payload.len() as u32));
    }
}

/// What is sent again is the same, wherever the segments are cut the second time.
#[test]
fn a_mix_of_copied_and_named_bytes_is_sent_again_as_it_was() {
    let (mut s, conn) = Script::open(Version::V4);
    let mut stream = vec![];
    for n in 0..20u8 {
        let bytes: Vec<u8> = (0..90 + n).map(|at| at ^ n).collect();
        stream.extend_from_slice(&bytes);
        if n % 3 == 0 {
            s.stack.send(conn, &bytes).expect("there is room");
        } else {
            let extent = s.named(&bytes);
            s.stack.send_extent(conn, extent).expect("there is room");
        }
    }
    s.settle();
    let first = sent(&mut s);
    assert_eq!(first.iter().flat_map(|seg| seg.payload.clone()).collect::<Vec<_>>(), stream);
    // An acknowledgement in the midst of a piece, then silence.
    s.send(seg(ACK, 1, 151));
    let mut again = vec![0; stream.len()];
    for _ in 0..40 {
        s.advance(Duration::from_millis(500));
        for seg in sent(&mut s) {
            let at = seg.seq as usize - 1;
            again[at..at + seg.payload.len()].copy_from_slice(&seg.payload);
            s.send(seg_ack(seg.seq + seg.payload.len() as u32));
        }
    }
    assert_eq!(again[150..], stream[150..]);
    s.assert_nothing_leaked();
}

fn seg_ack(ack: u32) -> Seg {
    seg(ACK, 1, ack)
}
