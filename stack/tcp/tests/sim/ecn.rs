//! Marks of congestion (RFC 3168).

use std::net::SocketAddr;
use std::time::Duration;

use stack::net::{ConnId, Event};
use stack::sim::Path;
use stack::transport::OverEndpoint as _;
use stack::{Config, CongestionControl, Counters, Ecn};

use crate::ours::{Ours, config};
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Talk, Talker as _, Version, ip, link, talk};
use crate::wire::{ACK, CWR, ECE, SYN, Seg, data, fragments_of, seg, set_ecn};

/// What IP says of packets that may be marked, and of those that are.
const CAPABLE: u8 = 2;
const MARKED: u8 = 3;

fn counters(s: &Script) -> Counters {
    *s.stack.endpoint().counters()
}

/// A SYN that asks.
fn asking() -> Seg {
    seg(SYN | ECE | CWR, 0, 0).mss(1_000)
}

fn opened(s: &mut Script) -> ConnId {
    match s.event() {
        Some(Event::Opened { conn, .. }) => conn,
        other => panic!("the connection did not open: {other:?}"),
    }
}

/// A connection on which both sides heed marks.
fn agreed(version: Version, config: Config) -> (Script, ConnId) {
    let mut s = Script::with_config(version, config);
    s.listen();
    s.send(asking());
    s.expect(seg(SYN | ACK | ECE, 0, 1).ecn(0));
    s.send(seg(ACK, 1, 1));
    let conn = opened(&mut s);
    (s, conn)
}

/// Whether data goes out as what may be marked.
fn may_be_marked(s: &mut Script, conn: ConnId) -> bool {
    assert_eq!(s.write(conn, b"data"), Ok(()));
    match s.next().expect("data is sent").ecn {
        Some(CAPABLE) => true,
        Some(0) => false,
        other => panic!("{other:?}"),
    }
}

/// And nothing else is agreed on than what both have said. One that asks no more has given up.
#[test]
fn rfc3168_6_1_1_a_syn_that_asks_is_answered() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = agreed(version, config(1));
        assert!(may_be_marked(&mut s, conn));

        for flags in [0, ECE, CWR] {
            let mut s = Script::listening(version);
            let conn = s.open_with(seg(SYN | flags, 0, 0).mss(1_000));
            assert!(!may_be_marked(&mut s, conn), "{flags:#x}");
        }
        let bbr = Config { congestion: CongestionControl::Bbr, ..config(1) };
        for config in [Config { ecn: Ecn::Off, ..config(1) }, bbr] {
            let mut s = Script::with_config(version, config);
            s.listen();
            let conn = s.open_with(asking());
            assert!(!may_be_marked(&mut s, conn));
        }

        let mut s = Script::listening(version);
        s.send(asking());
        s.expect(seg(SYN | ACK | ECE, 0, 1));
        s.send(seg(SYN, 0, 0).mss(1_000));
        s.expect(seg(SYN | ACK, 0, 1));
        s.send(seg(ACK, 1, 1));
        let conn = opened(&mut s);
        assert!(!may_be_marked(&mut s, conn));
    }
}

/// If the peer has timestamps, which hold it.
#[test]
fn rfc3168_6_1_1_a_cookie_remembers_that_the_peer_has_asked() {
    for (flags, timestamps, agrees) in
        [(ECE | CWR, Some((7, 0)), true), (0, Some((7, 0)), false), (ECE | CWR, None, false)]
    {
        let mut s = Script::with_config(Version::V4, Config { syn_queue: 1, ..config(1) });
        s.listen();
        let mut other = s.remote;
        other.at.set_port(39_999);
        s.send_from(other, seg(SYN, 0, 0));
        s.next().expect("the first is remembered");
        s.send(Seg { timestamps, ..seg(SYN | flags, 0, 0).mss(1_000) });
        let answer = s.expect(seg(SYN | ACK | if agrees { ECE } else { 0 }, 0, 1));
        assert_eq!(counters(&s).syn_cookies_sent, 1);
        let timestamps = answer.timestamps.map(|(value, _)| (8, value));
        s.send(Seg { timestamps, ..seg(ACK, 1, 1) });
        let conn = opened(&mut s);
        assert_eq!(counters(&s).syn_cookies_accepted, 1);
        assert_eq!(may_be_marked(&mut s, conn), agrees, "{flags:#x}, {timestamps:?}");
    }
}

/// A SYN that is sent again asks no more.
#[test]
fn rfc3168_6_1_1_who_asks_heeds_marks_if_the_peer_agrees() {
    for (answer, agrees) in [(ECE, true), (0, false), (ECE | CWR, false)] {
        let mut s = Script::with_config(Version::V4, Config { ecn: Ecn::Ask, ..config(1) });
        let conn = s.connect();
        s.expect(seg(SYN | ECE | CWR, 0, 0).ecn(0));
        s.send(seg(SYN | ACK | answer, 0, 1).mss(1_000));
        s.expect(seg(ACK, 1, 1).ecn(0));
        assert_eq!(opened(&mut s), conn);
        assert_eq!(may_be_marked(&mut s, conn), agrees, "{answer:#x}");
    }
    let mut s = Script::with_config(Version::V4, Config { ecn: Ecn::Ask, ..config(1) });
    let conn = s.connect();
    s.expect(seg(SYN | ECE | CWR, 0, 0));
    s.wait_for_segment(Duration::from_secs(2));
    s.expect(seg(SYN, 0, 0));
    s.send(seg(SYN | ACK | ECE, 0, 1).mss(1_000));
    s.expect(seg(ACK, 1, 1));
    assert_eq!(opened(&mut s), conn);
    assert!(!may_be_marked(&mut s, conn));

    let mut s = Script::new(Version::V4);
    s.connect();
    s.expect(seg(SYN, 0, 0));
}

/// RFC 3168, section 5.3: a mark of one fragment is one of the segment, and where another fragment says that none heeds
/// marks something is wrong with all of it.
#[test]
fn rfc3168_5_3_a_mark_of_one_fragment_is_one_of_the_segment() {
    for version in BOTH_VERSIONS {
        for (ecns, taken, echoed) in [
            ([CAPABLE, CAPABLE, CAPABLE], true, false),
            ([MARKED, CAPABLE, CAPABLE], true, true),
            ([CAPABLE, MARKED, 1], true, true),
            ([CAPABLE, CAPABLE, MARKED], true, true),
            ([MARKED, MARKED, MARKED], true, true),
            ([0, CAPABLE, 0], true, false),
            ([0, MARKED, CAPABLE], false, false),
            ([MARKED, CAPABLE, 0], false, false),
        ] {
            for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
                let (mut s, conn) = agreed(version, config(1));
                let payload = [7; 900];
                let whole = s.frame_from(s.remote, data(1, 1, &payload));
                let mut fragments = fragments_of(&whole, 400, 9);
                for (fragment, ecn) in fragments.iter_mut().zip(ecns) {
                    set_ecn(fragment, ecn);
                }
                s.inject_all(order.map(|at| fragments[at].clone()));
                if taken {
                    s.expect(seg(ACK | if echoed { ECE } else { 0 }, 1, 901));
                    assert_eq!(s.read(conn), payload, "{ecns:?}");
                } else {
                    s.expect_nothing();
                    assert_eq!(s.read(conn), b"", "{ecns:?}");
                }
                assert_eq!(counters(&s).ce_in, u64::from(echoed), "{ecns:?}");
            }
        }
    }
}

/// The segments that go out, by their lengths.
fn lengths(s: &mut Script) -> Vec<usize> {
    std::iter::from_fn(|| s.next()).map(|segment| segment.payload.len()).collect()
}

/// To 0.85 of it with CUBIC, 0.8 with NewReno (RFC 8511). The next new segment says so, and no other.
#[test]
fn rfc3168_6_1_2_an_echo_lowers_the_window_once_in_a_round_trip() {
    for (congestion, then) in [(CongestionControl::Cubic, 8), (CongestionControl::NewReno, 8)] {
        let config = Config { congestion, tx_bytes: 1 << 20, ..config(1) };
        let (mut s, conn) = agreed(Version::V4, config);
        assert_eq!(s.write(conn, &[7; 60_000]), Ok(()));
        s.advance(Duration::from_millis(1));
        assert_eq!(lengths(&mut s), [1_000; 10]);
        // The window of ten segments comes down by one or two, and each echo of the same round trip leaves it.
        s.send(seg(ACK | ECE, 1, 1_001));
        s.expect_nothing();
        s.send(seg(ACK | ECE, 1, 2_001));
        s.expect_nothing();
        s.send(seg(ACK | ECE, 1, 4_001));
        let first = s.next().expect("the window has room again");
        assert_eq!((first.flags & (CWR | ECE), first.seq, first.ecn), (CWR, 10_001, Some(CAPABLE)));
        let more: Vec<_> = std::iter::from_fn(|| s.next()).collect();
        assert!(more.iter().all(|segment| segment.flags & CWR == 0), "{more:?}");
        let in_flight = 6 + 1 + more.len();
        assert!((then..=then + 1).contains(&in_flight), "{congestion}: {in_flight}");
        let counted = counters(&s);
        assert_eq!((counted.ece_in, counted.cwr_out, counted.retransmits), (3, 1, 0));

        // In the next round trip it does again.
        let all = 10_001 + 1_000 * (1 + more.len() as u32);
        s.send(seg(ACK | ECE, 1, all));
        let segments: Vec<_> = std::iter::from_fn(|| s.next()).collect();
        assert!(segments[0].has(CWR) && segments.len() < in_flight, "{congestion}: {segments:?}");
        assert_eq!(counters(&s).cwr_out, 2);
    }
}

#[test]
fn rfc3168_6_1_3_a_mark_is_echoed_until_the_peer_sends_less() {
    for version in BOTH_VERSIONS {
        let (mut s, conn) = agreed(version, config(1));
        s.send(data(1, 1, b"unmarked").ecn(CAPABLE));
        s.advance(Duration::from_millis(50));
        s.expect(seg(ACK, 1, 9));
        // At once.
        s.send(data(9, 1, b"marked").ecn(MARKED));
        s.expect(seg(ACK | ECE, 1, 15).ecn(0));
        assert_eq!(counters(&s).ce_in, 1);
        s.send(data(15, 1, b"more").ecn(CAPABLE));
        s.advance(Duration::from_millis(50));
        s.expect(seg(ACK | ECE, 1, 19));
        assert_eq!(s.write(conn, b"reply"), Ok(()));
        s.expect(data(1, 19, b"reply").ecn(CAPABLE).flagged(ECE));
        // What says that less is sent may itself be marked.
        s.send(data(19, 6, b"less").ecn(MARKED).flagged(CWR));
        s.expect(seg(ACK | ECE, 6, 23));
        s.send(data(23, 6, b"less").ecn(CAPABLE).flagged(CWR));
        s.advance(Duration::from_millis(50));
        s.expect(seg(ACK, 6, 27));
        assert_eq!(counters(&s).ce_in, 2);
    }
    // Of a peer that has not asked marks say nothing.
    let (mut s, _) = Script::open(Version::V4);
    s.send(data(1, 1, b"marked").ecn(MARKED));
    s.advance(Duration::from_millis(50));
    s.expect(seg(ACK, 1, 7));
    assert_eq!(counters(&s).ce_in, 0);
}

#[test]
fn rfc3168_6_1_5_what_is_sent_again_may_not_be_marked() {
    let (mut s, conn) = agreed(Version::V4, config(1));
    assert_eq!(s.write(conn, b"data"), Ok(()));
    s.expect(data(1, 1, b"data").ecn(CAPABLE));
    s.wait_for_segment(Duration::from_secs(2));
    s.expect(data(1, 1, b"data").ecn(0));
    // What is new then says that less is sent, as after any loss.
    s.send(seg(ACK, 1, 5));
    assert_eq!(s.write(conn, b"more"), Ok(()));
    s.expect(data(5, 1, b"more").ecn(CAPABLE).flagged(CWR));
}

#[test]
fn rfc3168_6_1_5_a_mark_outside_the_window_is_passed_over() {
    let (mut s, _) = agreed(Version::V4, config(1));
    s.send(data(1, 1, b"data").ecn(CAPABLE));
    s.expect(seg(ACK, 1, 5));
    for seq in [1, 10_000_000] {
        s.send(data(seq, 1, b"data").ecn(MARKED));
        s.expect(seg(ACK, 1, 5));
    }
    assert_eq!(counters(&s).ce_in, 0);
}

#[test]
fn rfc3168_6_1_6_a_probe_of_a_closed_window_may_not_be_marked() {
    let (mut s, conn) = agreed(Version::V4, config(1));
    s.send(seg(ACK, 1, 1).window(0));
    assert_eq!(s.write(conn, b"data"), Ok(()));
    s.wait_for_segment(Duration::from_secs(5));
    s.expect(data(1, 1, b"d").ecn(0));
}

/// A stream over a path that marks what waits behind a quarter of what the path holds: nothing is lost, and the path is
/// taken.
#[test]
fn marks_fill_a_path_without_losses() {
    let path = Path {
        bits_per_second: 100_000_000,
        latency: Duration::from_millis(5),
        queue_frames: 200,
        marks_behind_frames: 20,
        ..Path::default()
    };
    let (link, mut clock) = link(4);
    let asks = Config { ecn: Ecn::Ask, ..config(2) };
    let mut server = Ours::new(&link, path, 1, 6_000, config(1));
    let wide = Config { rx_window_bytes: 2 << 20, rx_buffers: 4_000, ..asks };
    let mut client = Ours::new(&link, Path { queue_frames: 10_000, ..path }, 2, 6_000, wide);
    (server.copied_share, server.piece_bytes) = (0.0, 2_000);
    let at = SocketAddr::new(ip(Version::V4, 1), 80);
    const BYTES: u64 = 20_000_000;
    server.listen(at, 4, |_| Talk::new(7, BYTES, 1));
    let from = SocketAddr::new(ip(Version::V4, 2), 2_000);
    client.connect_from(clock.now(), at, Some(from), Talk::new(7, BYTES, 1).other()).expect("there is room");
    let start = clock.now();
    while client.conns.values().map(|conn| conn.heard).sum::<u64>() < BYTES {
        let goes_on = clock.step(&mut [&mut server, &mut client], start + Duration::from_secs(100));
        assert!(goes_on, "{}", client.report());
    }
    let took_s = (clock.now() - start).as_secs_f64();
    talk(&mut clock, &mut server, &mut client, Duration::from_secs(100));
    let counted = server.net.endpoint().counters();
    assert!(link.counters().marked > 0 && counted.ece_in > 0, "{counted:?}");
    assert!(counted.cwr_out > 2, "{counted:?}");
    assert_eq!((link.counters().overflowed, counted.retransmits), (0, 0), "{counted:?}");
    let share = BYTES as f64 * 8.0 * 1_514.0 / 1_448.0 / (100e6 * took_s);
    assert!(share >= 0.85, "{share}");
    server.assert_nothing_leaked();
}
