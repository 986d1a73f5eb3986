//! The receive window follows the free buffers, and the send side obeys the peer's window.

use std::time::Duration;

use stack::Config;
use stack::net::{CloseReason, Event, Net};
use stack::sim::{Host, Path};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;

use crate::ours::{Ours, Reading, config};
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Talk, Talker, Version, ip, link, talk};
use crate::theirs::Theirs;
use crate::wire::{ACK, SYN, Seg, data, seg};

const LIMIT: Duration = Duration::from_secs(120);

/// A server that keeps every buffer stalls its peer and drops nothing; once buffers come back it goes on.
#[test]
fn a_full_arena_stalls_the_peer_and_loses_nothing() {
    for version in BOTH_VERSIONS {
        for smoltcp in [false, true] {
            let (link, mut clock) = link(1);
            let path = Path::default();
            let mut server = Ours::new(&link, path, 1, 200, config(1));
            server.set_reading(Reading::Keep);
            let conversation = Talk::new(1, 0, 1_000_000);
            server.listen((ip(version, 1), 80).into(), 16, move |_| conversation);
            let mut ours;
            let mut theirs;
            let client: &mut dyn Talker = if smoltcp {
                theirs = Theirs::new(&link, path, 2, 65_535);
                theirs.connect((ip(version, 1), 80).into(), 40_000, conversation.other());
                &mut theirs
            } else {
                ours = Ours::new(&link, path, 2, 1_000, config(2));
                // Whole segments: what a window of so many bytes takes in buffers.
                ours.copied_share = 0.0;
                ours.connect(clock.now(), (ip(version, 1), 80).into(), conversation.other())
                    .expect("there is room");
                &mut ours
            };
            while server.conns.is_empty() {
                assert!(clock.step(&mut [&mut server, client], Instant::from_secs(10)), "it never opens");
            }
            let mut laps = 0;
            while !(server.done() && client.done()) {
                laps += 1;
                assert!(laps < 100, "the transfer never ends");
                let before = server.only().heard;
                // Far sooner than the peer would probe: it is told.
                clock.run_until(&mut [&mut server, client], clock.now() + Duration::from_millis(20));
                assert!(server.only().heard > before, "it does not go on in lap {laps}, at {before}");
                clock.run_until(&mut [&mut server, client], clock.now() + Duration::from_secs(20));
                assert!(server.kept() <= 200 - 64, "no more is kept than there is");
                server.release_kept();
            }
            assert!(laps > 4, "the arena was never full");
            assert_eq!(
                server.net.endpoint().counters().drops.no_buffer,
                0,
                "the window was larger than the arena"
            );
            assert_eq!(server.net.counters().no_spare, 0, "the window was larger than the arena");
            server.assert_nothing_leaked();
        }
    }
}

/// Slots that wait in the stack close the window as well, and taking them opens it.
#[test]
fn slots_not_taken_stall_the_peer_and_lose_nothing() {
    let (link, mut clock) = link(1);
    let path = Path::default();
    let config_1 = Config { rx_window_bytes: 20_000, ..config(1) };
    let mut server = Ours::new(&link, path, 1, 400, config_1);
    let mut client = Ours::new(&link, path, 2, 400, config(2));
    server.set_reading(Reading::Not);
    let conversation = Talk::new(1, 0, 200_000);
    server.listen((ip(Version::V4, 1), 80).into(), 16, move |_| conversation);
    client
        .connect(clock.now(), (ip(Version::V4, 1), 80).into(), conversation.other())
        .expect("there is room");
    for _ in 0..5 {
        clock.run_until(&mut [&mut server, &mut client], clock.now() + Duration::from_secs(10));
        let said = client.only().said;
        clock.run_until(&mut [&mut server, &mut client], clock.now() + Duration::from_secs(10));
        assert_eq!(client.only().said, said, "a closed window stalls");
        server.set_reading(Reading::Take);
        server.poll(clock.now());
        server.set_reading(Reading::Not);
    }
    assert!(server.only().heard >= 60_000, "each time a window's worth came, in all {}", server.only().heard);
    server.set_reading(Reading::Take);
    talk(&mut clock, &mut server, &mut client, LIMIT);
    assert_eq!(server.net.endpoint().counters().drops.no_buffer, 0);
    server.assert_nothing_leaked();
    client.assert_nothing_leaked();
}

/// One connection that keeps all its buffers does not take those of the others.
#[test]
fn a_hoarder_leaves_buffers_to_others() {
    let (link, mut clock) = link(1);
    let path = Path::default();
    let config_1 = Config { rx_buffers: 64, ..config(1) };
    let mut server = Ours::new(&link, path, 1, 400, config_1);
    let mut hoarder = Ours::new(&link, path, 2, 400, config(2));
    server.set_reading(Reading::Not);
    server.listen((ip(Version::V4, 1), 80).into(), 16, |peer| Talk::new(peer.port().into(), 0, 500_000));
    let from = |port: u16| (ip(Version::V4, 2), port).into();
    let remote = (ip(Version::V4, 1), 80).into();
    let talk_of = |port: u16| Talk::new(port.into(), 0, 500_000).other();
    hoarder.connect_from(clock.now(), remote, Some(from(1_000)), talk_of(1_000)).expect("there is room");
    clock.run_until(&mut [&mut server, &mut hoarder], clock.now() + Duration::from_secs(10));
    let first = *server.conns.keys().next().expect("it is open");
    hoarder.connect_from(clock.now(), remote, Some(from(1_001)), talk_of(1_001)).expect("there is room");
    // From now on only the second connection is read.
    let end = clock.now() + LIMIT;
    loop {
        clock.step(&mut [&mut server, &mut hoarder], end);
        server.read_all_but(first);
        if server.conns.iter().any(|(&id, conn)| id != first && conn.closed == Some(CloseReason::Finished)) {
            break;
        }
        assert!(clock.now() < end, "the second connection starves");
    }
    server.set_reading(Reading::Take);
    talk(&mut clock, &mut server, &mut hoarder, LIMIT);
    server.assert_nothing_leaked();
}

/// RFC 9293, section 3.8.6.1: a closed window is probed, at growing distances, for as long as probes are answered.
#[test]
fn rfc9293_3_8_6_1_a_closed_window_is_probed_for_ever() {
    let (mut s, conn) = Script::open(Version::V4);
    s.send(seg(ACK, 1, 1).window(0));
    assert_eq!(s.write(conn, b"waiting"), Ok(()));
    s.expect_nothing();
    let mut waited = vec![];
    for _ in 0..20 {
        waited.push(s.wait_for_segment(Duration::from_secs(130)));
        let probe = s.next().expect("it was waited for");
        assert!(probe.payload.len() <= 1, "{probe:?}");
        s.send(seg(ACK, 1, 1).window(0));
    }
    for pair in waited.windows(2) {
        assert!(pair[1] + Duration::from_millis(20) >= pair[0], "{waited:?}");
    }
    assert!(waited[5] > waited[0] * 4, "{waited:?}");
    s.send(seg(ACK, 1, 1).window(100));
    let sent = s.next().expect("the window is open");
    assert!(b"waiting".starts_with(&sent.payload) && !sent.payload.is_empty(), "{sent:?}");
    s.send(seg(ACK, 1, 8).window(100));
    assert_eq!(s.event(), None);
    s.assert_nothing_leaked();
}

#[test]
fn a_closed_window_and_no_answer_ends_the_connection() {
    let (mut s, conn) = Script::open(Version::V4);
    s.send(seg(ACK, 1, 1).window(0));
    assert_eq!(s.write(conn, b"waiting"), Ok(()));
    s.advance(Duration::from_secs(299));
    assert_eq!(s.event(), None);
    s.advance(Duration::from_secs(2));
    s.expect_event(Event::Closed { conn, reason: CloseReason::TimedOut });
    s.assert_nothing_leaked();
}

/// RFC 9293, section 3.8.6.1: a peer may keep its window closed for ever as long as it answers; but once this side has
/// finished, only for the user timeout, unless it takes something meanwhile.
#[test]
fn rfc9293_3_8_6_1_a_window_that_stays_closed_holds_nobody_who_has_finished() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = Script::open(version);
        s.send(seg(ACK, 1, 1).window(0));
        assert_eq!(s.write(conn, &[7; 600]), Ok(()));
        let answer_for = |s: &mut Script, seconds, ack| {
            let end = s.now() + Duration::from_secs(seconds);
            while s.now() < end {
                s.advance(Duration::from_secs(1));
                while s.next().is_some() {
                    s.send(seg(ACK, 1, ack).window(0));
                }
            }
        };
        answer_for(&mut s, 2_000, 1);
        assert_eq!(s.event(), None, "it lives as long as the peer answers");
        s.finish(conn);
        answer_for(&mut s, 200, 1);
        s.send(seg(ACK, 1, 1).window(300));
        s.advance(Duration::from_secs(1));
        assert_eq!(s.next().expect("the window is open").payload, [7; 300]);
        answer_for(&mut s, 200, 301);
        assert_eq!(s.event(), None, "the peer has taken something");
        answer_for(&mut s, 200, 301);
        s.expect_event(Event::Closed { conn, reason: CloseReason::TimedOut });
        s.assert_nothing_leaked();
    }
}

/// RFC 9293, section 3.8.6.2.1: a sender does not fill a window of a few bytes with tiny segments.
#[test]
fn rfc9293_3_8_6_2_1_the_sender_avoids_silly_windows() {
    let (mut s, conn) = Script::open(Version::V4);
    s.send(seg(ACK, 1, 1).window(2_000));
    assert_eq!(s.write(conn, &[7; 4_000]), Ok(()));
    s.expect(data(1, 1, &[7; 1_000]));
    s.expect(data(1_001, 1, &[7; 1_000]));
    s.expect_nothing();
    // Ten bytes of window are no reason to send ten bytes.
    s.send(seg(ACK, 1, 2_001).window(10));
    s.expect_nothing();
    s.send(seg(ACK, 1, 2_001).window(2_000));
    s.expect(data(2_001, 1, &[7; 1_000]));
    s.expect(data(3_001, 1, &[7; 1_000]));
}

/// RFC 6298, section 5.5: each timeout doubles the next one, also where the window is too small for a whole segment.
#[test]
fn rfc6298_5_5_timeouts_double_in_a_silly_window() {
    let (mut s, conn) = Script::open(Version::V4);
    s.send(seg(ACK, 1, 1).window(400));
    assert_eq!(s.write(conn, &[7; 1_000]), Ok(()));
    s.expect_nothing();
    let mut waited = vec![];
    for _ in 0..5 {
        waited.push(s.wait_for_segment(Duration::from_secs(60)));
        s.expect(data(1, 1, &[7; 400]));
    }
    // The first wait is for the window to open; from then on for an answer.
    for pair in waited[1..].windows(2) {
        let (least, most) = (pair[0] * 2, pair[0] * 2 + Duration::from_millis(40));
        assert!((least - Duration::from_millis(40)..=most).contains(&pair[1]), "{waited:?}");
    }
    s.send(seg(ACK, 1, 401).window(2_000));
    s.expect(data(401, 1, &[7; 600]));
}

/// RFC 9293, section 3.8.6.2.2: the window opens by a segment or by half the buffer, not by a few bytes.
#[test]
fn rfc9293_3_8_6_2_2_the_receiver_avoids_silly_windows() {
    let config = Config { rx_window_bytes: 4_000, ..config(1) };
    let mut s = Script::with_config(Version::V4, config);
    s.listen();
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).window(60_000));
    for n in 0..4 {
        s.send(data(1 + n * 1_000, 1, &[n as u8; 1_000]));
    }
    s.advance(Duration::from_millis(50));
    let last = std::iter::from_fn(|| s.next()).last().expect("the data is acknowledged");
    assert_eq!((last.ack, last.window), (4_001, Some(0)));
    // The window is opened by whole segments as they are taken.
    let mut windows = vec![];
    for _ in 0..4 {
        assert!(s.stack.recv(conn).is_some_and(|slot| !slot.bytes().is_empty()));
        s.settle();
        windows.extend(std::iter::from_fn(|| s.next()).filter_map(|seg| seg.window));
    }
    assert!(!windows.is_empty(), "the remote must be told that the window is open again");
    assert!(windows.iter().all(|&window| window >= 1_000), "{windows:?}");
    assert_eq!(s.read(conn), b"");
    s.assert_nothing_leaked();
}

/// A sender of whole segments waits while the window takes none (section 3.8.6.2.1): that it does again is told, by however
/// little it has opened.
#[test]
fn rfc9293_3_8_6_2_2_a_window_that_takes_a_segment_again_is_told() {
    let config = Config { rx_window_bytes: 1_280, ..config(1) };
    let mut s = Script::with_config(Version::V4, config);
    s.listen();
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
    s.send(data(1, 1, &[7; 600]));
    s.expect(seg(ACK, 1, 601).window(680));
    assert_eq!(s.read(conn).len(), 600);
    s.expect(seg(ACK, 1, 601).window(1_280));
    // The window takes a segment all the while: nothing is said of what it opens by.
    s.send(data(601, 1, &[7; 200]));
    s.expect(seg(ACK, 1, 801).window(1_080));
    assert_eq!(s.read(conn).len(), 200);
    s.expect_nothing();
    s.assert_nothing_leaked();
}

/// A peer that sends single bytes does not pin a buffer with each of them.
#[test]
fn one_byte_segments_share_buffers() {
    let mut s = Script::with_buffers(Version::V4, config(1), 300);
    s.listen();
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
    let free = s.stack.arena().free_buffers();
    let bytes: Vec<u8> = (0..10_000).map(|n| (n % 251) as u8).collect();
    for (n, byte) in (1..).zip(&bytes) {
        s.send(data(n, 1, &[*byte]));
    }
    s.advance(Duration::from_millis(50));
    let held = free - s.stack.arena().free_buffers();
    assert!(held < 40, "{held} buffers hold 10,000 bytes");
    assert!(s.stack.endpoint().counters().copied_bytes > 0, "packing is counted");
    assert_eq!(s.read(conn), bytes);
    s.assert_nothing_leaked();
}

/// Nor does one that leaves a hole before each of them.
#[test]
fn one_byte_segments_behind_holes_hold_few_buffers() {
    let mut s = Script::with_buffers(Version::V4, Config { rx_buffers: 64, ..config(1) }, 400);
    s.listen();
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
    let free = s.stack.arena().free_buffers();
    for n in 0..5_000 {
        s.send(data(3 + 2 * n, 1, b"x"));
    }
    let held = free - s.stack.arena().free_buffers();
    assert!(held <= 64, "{held} buffers are held by one connection, whose quota is 64");
    while s.next().is_some() {}
    s.send(data(1, 1, b"xx"));
    let got = s.read(conn).len();
    assert!(got >= 3, "what was kept is delivered, not just {got}");
    s.abort(conn);
    s.assert_nothing_leaked();
}

/// A hole holds up its own connection, and no other.
#[test]
fn a_hole_on_one_connection_does_not_stall_another() {
    let (link, mut clock) = link(1);
    let path = Path::default();
    let mut server = Ours::new(&link, path, 1, 300, config(1));
    let mut client = Ours::new(&link, path, 2, 600, config(2));
    let mut unlucky = Theirs::new(&link, path, 3, 65_535);
    // The first segment of what the third host sends never arrives, however often it is sent.
    let mut first = None;
    unlucky.peer.port().set_filter(move |frame| match Seg::parse(frame) {
        Some((_, _, seg)) if !seg.payload.is_empty() => *first.get_or_insert(seg.seq) != seg.seq,
        _ => true,
    });
    let conversation = |peer: std::net::SocketAddr| Talk::new(peer.port().into(), 0, 400_000);
    server.listen((ip(Version::V4, 1), 80).into(), 16, conversation);
    let remote = (ip(Version::V4, 1), 80).into();
    unlucky.connect(remote, 3_000, Talk::new(3_000, 0, 400_000).other());
    clock.run_until(&mut [&mut server, &mut unlucky], Instant::from_millis(20));
    assert!(server.net.endpoint().counters().out_of_order > 0, "there is a hole");
    assert_eq!(server.only().heard, 0);
    client
        .connect_from(
            clock.now(),
            remote,
            Some((ip(Version::V4, 2), 2_000).into()),
            Talk::new(2_000, 0, 400_000).other(),
        )
        .expect("there is room");
    let end = clock.now() + Duration::from_secs(2);
    while !client.done() {
        assert!(clock.step(&mut [&mut server, &mut client, &mut unlucky], end), "it is held up");
    }
}

/// RFC 5681, section 2 (e): a duplicate acknowledgement has the window of the one before, whatever is taken or given back
/// meanwhile by others.
#[test]
fn rfc5681_2_duplicates_keep_their_window() {
    for sacks in [false, true] {
        let config = Config { rx_window_bytes: 60_000, ..config(1) };
        let mut s = Script::with_buffers(Version::V4, config, 300);
        s.listen();
        let mut others: Vec<_> = (0..160).map_while(|_| s.stack.arena().take()).collect();
        let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).sack_permitted(sacks));
        for n in 0..3 {
            s.send(data(1 + n * 1_000, 1, &[7; 1_000]));
        }
        s.advance(Duration::from_millis(50));
        let first = std::iter::from_fn(|| s.next()).last().expect("the data is acknowledged");
        assert_eq!(first.ack, 3_001);
        // Each segment beyond the hole takes a buffer, and others give some back.
        for n in 0..20 {
            others.truncate(160 - 8 * n as usize);
            s.send(data(4_001 + n * 1_500, 1, &[7; 1_000]));
            let duplicate = s.expect(seg(ACK, 1, 3_001));
            assert_eq!(duplicate.window, first.window, "of duplicate {n}");
        }
        // What the application takes is told at once, even so.
        assert_eq!(s.read(conn).len(), 3_000);
        s.send(data(3_001, 1, &[7; 1_000]));
        let last = s.expect(seg(ACK, 1, 5_001));
        let edge = |ack: &Seg| ack.ack + u32::from(ack.window.expect("every segment has one"));
        assert!(edge(&last) > edge(&first), "{last:?} after {first:?}");
        s.abort(conn);
        drop(others);
        s.assert_nothing_leaked();
    }
}

/// RFC 9293, section 3.10.7.4, fifth: the window is that of the newest segment. One that acknowledges less than others did
/// is old, however high its number; one that acknowledges more is new, be it sent again.
#[test]
fn rfc9293_3_10_7_4_the_window_is_that_of_the_newest_segment() {
    let (mut s, conn) = Script::open(Version::V4);
    // Ten bytes from the peer, so that there are numbers below.
    s.send(data(1, 1, &[7; 10]).window(2_000));
    s.advance(Duration::from_millis(50));
    assert_eq!(s.read(conn).len(), 10);
    while s.next().is_some() {}
    assert_eq!(s.write(conn, &[7; 4_000]), Ok(()));
    s.expect(data(1, 11, &[7; 1_000]));
    s.expect(data(1_001, 11, &[7; 1_000]));
    s.expect_nothing();
    s.send(seg(ACK, 11, 1_001).window(1_000));
    s.expect_nothing();
    // Overtaken on its way: its number is the highest, but it acknowledges less.
    s.send(seg(ACK, 11, 1).window(60_000));
    s.expect_nothing();
    // The same acknowledgement with a lower number is from before.
    s.send(data(1, 1_001, &[7; 10]).window(60_000));
    let answers: Vec<_> = std::iter::from_fn(|| s.next()).collect();
    assert!(answers.iter().all(|segment| segment.payload.is_empty()), "{answers:?}");
    // The peer sends its bytes again, and acknowledges more with them.
    s.send(data(5, 2_001, &[7; 10]).window(3_000));
    for seq in [2_001, 3_001] {
        let sent = std::iter::from_fn(|| s.next()).find(|segment| !segment.payload.is_empty());
        assert_eq!(sent.map(|segment| (segment.seq, segment.payload.len())), Some((seq, 1_000)));
    }
    assert!(std::iter::from_fn(|| s.next()).all(|segment| segment.payload.is_empty()));
}

/// All that a window offers is taken, in however small segments it comes, be it that the application reads nothing.
#[test]
fn a_window_is_filled_by_small_segments_and_nothing_is_dropped() {
    for (len, buffers) in [(536, 1_000), (300, 1_500), (256, 1_500), (100, 500), (536, 200), (1_000, 120)] {
        let mut s = Script::with_buffers(Version::V4, config(1), buffers);
        s.listen();
        s.send(seg(SYN, 0, 0).mss(len).scale(3));
        let answer = s.expect(seg(SYN | ACK, 0, 1));
        let window = |segment: &Seg| u32::from(segment.window.expect("every segment has one"));
        let shift = answer.scale.expect("a scale was offered");
        s.send(seg(ACK, 1, 1));
        let Some(Event::Opened { conn, .. }) = s.event() else { panic!("not open") };
        let (mut at, mut edge) = (1, 1 + window(&answer));
        let mut rest = 0;
        while at + u32::from(len) <= edge && rest < 3 {
            s.send(data(at, 1, &vec![at as u8; len.into()]));
            at += u32::from(len);
            if at + u32::from(len) > edge {
                s.advance(Duration::from_millis(50));
                rest += 1;
            }
            while let Some(ack) = s.next() {
                assert!(ack.ack <= at);
                if ack.ack + (window(&ack) << shift) > edge {
                    (edge, rest) = (ack.ack + (window(&ack) << shift), 0);
                }
            }
        }
        s.advance(Duration::from_millis(50));
        assert_eq!(s.stack.endpoint().counters().drops.no_buffer, 0, "segments of {len} bytes");
        assert_eq!(s.stack.counters().no_spare, 0, "segments of {len} bytes");
        assert_eq!(s.read(conn).len() as u32, at - 1, "all that was offered was taken");
        s.abort(conn);
        s.assert_nothing_leaked();
    }
}
