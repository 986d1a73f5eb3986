//! How connections are accepted: the handshake, its losses, and the backlog.

use std::time::Duration;

use stack::Config;
use stack::net::{CloseReason, Event, Net};
use stack::sim::{Path, SimConfig};
use stack::transport::OverEndpoint as _;

use crate::ours::{Ours, config};
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Talk, Version, ip, link, talk};
use crate::wire::{ACK, FIN, RST, SYN, data, seg};

/// RFC 6298, section 2.1: the answer to a SYN is sent again after a second if nothing comes back, and to the same
/// SYN at once; in the end it is given up.
#[test]
fn rfc6298_2_1_an_unanswered_handshake_is_repeated_and_given_up() {
    let mut s = Script::listening(Version::V4);
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.expect(seg(SYN | ACK, 0, 1));
    let iss = s.stack_iss;
    let waited = s.wait_for_segment(Duration::from_secs(5));
    assert!((980..=1_020).contains(&waited.as_millis()), "{waited:?}");
    s.expect(seg(SYN | ACK, 0, 1));
    assert_eq!(s.stack_iss, iss, "it is the same answer");
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.expect(seg(SYN | ACK, 0, 1));
    assert_eq!(s.stack_iss, iss, "it is the same answer");
    s.advance(Duration::from_secs(600));
    let repeats = std::iter::from_fn(|| s.next()).count();
    assert!((2..=10).contains(&repeats), "{repeats} repeats");
    assert_eq!(s.event(), None, "nobody hears of a connection that never was");
    s.assert_nothing_leaked();
}

/// The acknowledgement that ends the handshake may bring data, or be lost and come with the data.
#[test]
fn data_may_end_the_handshake() {
    for version in BOTH_VERSIONS {
        let mut s = Script::listening(version);
        s.send(seg(SYN, 0, 0).mss(1_000));
        s.expect(seg(SYN | ACK, 0, 1));
        s.send(seg(FIN | ACK, 1, 1).payload(b"all at once"));
        let Some(Event::Opened { conn, .. }) = s.event() else { panic!("not open") };
        s.expect_event(Event::Readable { conn });
        s.expect_event(Event::PeerFinished { conn });
        assert_eq!(s.read(conn), b"all at once");
        s.expect(seg(ACK, 1, 13));
    }
}

/// RFC 9293, section 3.10.7.4, first and fifth: a wrong end of the handshake draws a reset and opens nothing.
#[test]
fn rfc9293_3_10_7_4_a_wrong_end_of_the_handshake_opens_nothing() {
    let mut s = Script::listening(Version::V4);
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.expect(seg(SYN | ACK, 0, 1));
    s.send(seg(ACK, 1, 77));
    s.expect(seg(RST, 77, 0));
    assert_eq!(s.event(), None);
    s.send(seg(ACK, 1, 1));
    assert!(matches!(s.event(), Some(Event::Opened { .. })));
}

/// RFC 9293, section 3.10.7.4, second: a reset while the handshake is under way takes it back without a word.
#[test]
fn rfc9293_3_10_7_4_a_reset_takes_a_handshake_back() {
    let mut s = Script::listening(Version::V4);
    s.send(seg(SYN, 0, 0).mss(1_000));
    s.expect(seg(SYN | ACK, 0, 1));
    s.send(seg(RST, 1, 0));
    s.expect_nothing();
    s.send(seg(ACK, 1, 1));
    s.expect(seg(RST, 1, 0));
    assert_eq!(s.event(), None);
    s.assert_nothing_leaked();
}

/// RFC 9293, section 3.10.7.2: what else comes to a listener.
#[test]
fn rfc9293_3_10_7_2_a_listener_takes_nothing_but_syns() {
    let mut s = Script::listening(Version::V4);
    s.remote_iss = 0;
    s.send(seg(RST, 5, 0));
    s.expect_nothing();
    s.send(seg(ACK, 5, 99));
    s.expect(seg(RST, 99, 0));
    s.send(seg(0, 5, 0).payload(b"bare"));
    s.expect_nothing();
    assert_eq!(s.event(), None);
}

/// More handshakes at once than the backlog takes: they are held back or answered later, and none fails.
#[test]
fn a_short_backlog_delays_and_refuses_nobody() {
    let path = Path { queue_frames: usize::MAX, ..Path::default() };
    let (link, mut clock) = link(1);
    let mut server = Ours::new(&link, path, 1, 600, Config { syn_queue: 4, ..config(1) });
    let mut client = Ours::new(&link, path, 2, 600, config(2));
    let at = (ip(Version::V4, 1), 80).into();
    let conversation = |port: u16| Talk::new(port.into(), 100, 100);
    server.listen(at, 4, move |peer| conversation(peer.port()));
    for port in 1_000..1_100 {
        let local = (ip(Version::V4, 2), port).into();
        client.connect_from(clock.now(), at, Some(local), conversation(port).other()).expect("there is room");
    }
    talk(&mut clock, &mut server, &mut client, Duration::from_secs(120));
    assert_eq!(server.conns.len(), 100);
    server.assert_nothing_leaked();
}

/// RFC 6191, section 2: with timestamps a SYN with a newer one takes the place of a connection in TIME-WAIT,
/// whatever its sequence number; one with an older is an old SYN.
#[test]
fn rfc6191_2_timestamps_tell_new_syns_from_old() {
    let mut s = Script::listening(Version::V4);
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).ts(1_000, 0));
    s.finish(conn);
    s.expect(seg(FIN | ACK, 1, 1));
    let echo = s.stack_timestamp();
    s.send(seg(FIN | ACK, 1, 2).ts(1_010, echo));
    s.expect(seg(ACK, 2, 2));
    while s.event().is_some() {}
    s.send(seg(SYN, 0u32.wrapping_sub(9_000), 0).mss(1_000).ts(1_005, 0));
    s.expect(seg(ACK, 2, 2));
    s.send(seg(SYN, 0u32.wrapping_sub(9_000), 0).mss(1_000).ts(1_011, 0));
    s.expect(seg(SYN | ACK, 0, 0u32.wrapping_sub(8_999)));
}

/// A device that computes checksums is given the right sums to go on from.
#[test]
fn a_device_may_compute_the_checksums() {
    for version in BOTH_VERSIONS {
        let (link, mut clock) = link(1);
        let offload = |n| Config { tx_checksum_offload: true, ..config(n) };
        let mut server = Ours::new(&link, Path::default(), 1, 300, offload(1));
        let mut client = Ours::new(&link, Path::default(), 2, 300, offload(2));
        let at = (ip(version, 1), 80).into();
        let conversation = Talk::new(1, 30_001, 50_003);
        server.listen(at, 4, move |_| conversation);
        client.connect(clock.now(), at, conversation.other()).expect("there is room");
        talk(&mut clock, &mut server, &mut client, Duration::from_secs(10));
        assert_eq!(server.net.endpoint().counters().drops.checksum, 0);
    }
}

/// With a queue to the device of one frame the stack still gets everything out, in order.
#[test]
fn a_device_that_takes_one_frame_at_a_time_is_enough() {
    let (link, mut clock) = link(1);
    let rings = SimConfig { rx_ring: 1, rx_burst: 1, tx_burst: 1, ..SimConfig::default() };
    let mut server = Ours::with_rings(&link, Path::default(), 300, config(1), rings, 1);
    let mut client = Ours::with_rings(&link, Path::default(), 300, config(2), rings, 2);
    let at = (ip(Version::V6, 1), 80).into();
    let conversation = Talk::new(1, 100_000, 100_000);
    server.listen(at, 4, move |_| conversation);
    client.connect(clock.now(), at, conversation.other()).expect("there is room");
    talk(&mut clock, &mut server, &mut client, Duration::from_secs(10));
    assert!(server.net.counters().refused > 0, "the device was never full");
    assert_eq!(client.net.endpoint().counters().retransmits, 0);
    server.assert_nothing_leaked();
}

/// A name that is dead does nothing, even when its place has been given to another connection.
#[test]
fn a_dead_name_touches_nobody() {
    let mut s = Script::with_config(Version::V4, Config { max_connections: 1, ..config(1) });
    s.listen();
    let dead = s.open_with(seg(SYN, 0, 0).mss(1_000));
    s.send(seg(RST, 1, 0));
    s.expect_event(Event::Closed { conn: dead, reason: CloseReason::Reset });
    s.remote.at.set_port(40_001);
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000));
    assert_ne!(dead, conn);
    s.send(data(1, 1, b"not yours"));
    assert!(s.stack.recv(dead).is_none());
    assert_eq!(s.stack.send_space(dead), stack::net::SendSpace::default());
    assert_eq!(s.write(dead, b"x"), Err(stack::net::SendError::Closed));
    s.finish(dead);
    s.abort(dead);
    s.advance(Duration::from_millis(50));
    s.expect(seg(ACK, 1, 10));
    s.expect_nothing();
    assert_eq!(s.read(conn), b"not yours");
}
