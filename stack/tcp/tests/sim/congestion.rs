//! How much a connection has in flight.

use std::time::Duration;

use stack::net::{ConnId, Event};
use stack::sim::{Clock, Path};
use stack::{Config, CongestionControl};

use crate::ours::{Ours, config};
use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Talk, Talker as _, Version, ip, link, talk};
use crate::wire::{ACK, SYN, Seg, seg};

const MS: fn(u64) -> Duration = Duration::from_millis;

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

/// A connection whose window holds 80 segments of 1,000 bytes, and the next number of the stack.
fn with_a_window_of_eighty() -> (Script, ConnId, u32) {
    let mut s = Script::with_config(Version::V4, Config { tx_bytes: 1 << 20, ..config(1) });
    s.listen();
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).window(65_000).scale(2));
    let mut next = 1;
    assert_eq!(s.write(conn, &[7; 100_000]), Ok(()));
    for expected in [10, 20, 40, 30] {
        s.advance(MS(10));
        let sent = std::iter::from_fn(|| s.next()).count() as u32;
        assert_eq!(sent, expected);
        next += 1_000 * sent;
        s.send(seg(ACK, 1, next).window(65_000));
    }
    (s, conn, next)
}

/// RFC 7661, section 4.4: an application that sends, but not much, keeps its window for five minutes, and then half of it
/// for five more. Where half of the window is in use it stays.
#[test]
fn rfc7661_4_4_3_a_window_that_is_not_used_for_five_minutes_halves() {
    for (segments, seconds, halves) in [(1, 290, 0), (1, 310, 1), (1, 610, 2), (50, 310, 0)] {
        let (mut s, conn, mut next) = with_a_window_of_eighty();
        for _ in 0..seconds * 10 {
            assert_eq!(s.write(conn, &vec![7; 1_000 * segments]), Ok(()));
            s.advance(MS(1));
            assert_eq!(std::iter::from_fn(|| s.next()).count(), segments);
            next += 1_000 * segments as u32;
            s.send(seg(ACK, 1, next).window(65_000));
            s.advance(MS(98));
        }
        assert_eq!(s.write(conn, &[7; 200_000]), Ok(()));
        s.advance(MS(5));
        let burst = std::iter::from_fn(|| s.next()).count();
        let expected = 85 >> halves;
        assert!((expected - 5..=expected + 5).contains(&burst), "{segments}, {seconds} s: {burst}");
    }
}

/// Segments that go out in each of the next milliseconds once all before them are acknowledged at once.
fn in_each_millisecond(congestion: CongestionControl, pacing: bool) -> Vec<usize> {
    in_each_tenth_of_a_round_trip(congestion, pacing, MS(10))
}

fn in_each_tenth_of_a_round_trip(
    congestion: CongestionControl,
    pacing: bool,
    round_trip: Duration,
) -> Vec<usize> {
    let config = Config { congestion, pacing, tx_bytes: 1 << 20, ..config(1) };
    let mut s = Script::over(Version::V4, config, 512, 100_000_000_000);
    s.listen();
    // Slow start.
    s.send(seg(SYN, 0, 0).mss(1_000).window(60_000));
    s.expect(seg(SYN | ACK, 0, 1));
    s.advance(round_trip);
    s.send(seg(ACK, 1, 1).window(60_000));
    let conn = opened(&mut s);
    assert_eq!(s.write(conn, &[7; 70_000]), Ok(()));
    let mut sent = 0;
    for expected in [10, 20] {
        s.advance(round_trip);
        let count = std::iter::from_fn(|| s.next()).count();
        assert_eq!(count, expected, "{congestion}, paced: {pacing}");
        sent += count;
        s.send(seg(ACK, 1, 1 + 1_000 * sent as u32).window(60_000));
    }
    let mut counts = Vec::new();
    for _ in 0..10 {
        s.advance(round_trip / 10);
        counts.push(std::iter::from_fn(|| s.next()).count());
    }
    counts
}

/// What one acknowledgement allows goes out at once, or with pacing over a half of the round trip in which the window
/// doubles, and without a stall.
#[test]
fn paced_segments_are_spread_over_the_round_trip() {
    for congestion in [CongestionControl::Cubic, CongestionControl::NewReno] {
        let counts = in_each_millisecond(congestion, false);
        assert_eq!(counts[0], 40, "{congestion}: {counts:?}");
        let counts = in_each_millisecond(congestion, true);
        // At first as much more as a timer may be late.
        assert!(counts[0] <= 17 && counts[1..].iter().all(|&count| count <= 9), "{congestion}: {counts:?}");
        assert_eq!(counts.iter().sum::<usize>(), 40, "{congestion}: {counts:?}");
        assert_eq!(counts[6..].iter().sum::<usize>(), 0, "{congestion}: {counts:?}");
    }
}

/// On a path of a millisecond, too: no more goes out at once than in a quarter of the round trip, and then segment by
/// segment, whatever the timers' tick.
#[test]
fn paced_segments_are_spread_over_a_short_round_trip() {
    for congestion in [CongestionControl::Cubic, CongestionControl::NewReno] {
        let counts = in_each_tenth_of_a_round_trip(congestion, true, MS(1));
        assert!(counts[0] <= 30 && counts[1..].iter().all(|&count| count <= 10), "{congestion}: {counts:?}");
        assert!(counts[1] > 0 && counts.iter().sum::<usize>() == 40, "{congestion}: {counts:?}");
    }
}

/// BBR needs nobody to ask it for that.
#[test]
fn bbr_spreads_segments_over_the_round_trip() {
    let counts = in_each_millisecond(CongestionControl::Bbr, false);
    assert!(counts[0] <= 17 && counts[1..].iter().all(|&count| count <= 9), "{counts:?}");
    assert!(counts.iter().sum::<usize>() >= 30, "{counts:?}");
}

/// A path with a queue of one product of its rate and its round trip.
fn path(bits_per_second: u64, round_trip: Duration, loss: f64) -> Path {
    let product = bits_per_second as f64 / 8.0 * round_trip.as_secs_f64();
    Path {
        bits_per_second,
        latency: round_trip / 2,
        queue_frames: (product / 1_500.0) as usize,
        loss,
        ..Path::default()
    }
}

/// Streams from a server to a client.
struct Streams {
    there: Path,
    clock: Clock,
    server: Ours,
    client: Ours,
}

impl Streams {
    /// So many streams of `bytes` each, `there` by this path.
    fn new(seed: u64, there: Path, server: Config, streams: u16, bytes: u64) -> Self {
        let back = Path { loss: 0.0, queue_frames: 10_000, ..there };
        let (link, clock) = link(seed);
        let mut server = Ours::new(&link, there, 1, 6_000, server);
        let wide = Config { rx_window_bytes: 2 << 20, rx_buffers: 4_000, ..config(2) };
        let mut client = Ours::new(&link, back, 2, 12_000, wide);
        (server.copied_share, server.piece_bytes) = (0.0, 2_000);
        let at = (ip(Version::V4, 1), 80).into();
        let conversation = move |port: u16| Talk::new(port.into(), bytes, 1);
        server.listen(at, 16, move |peer| conversation(peer.port()));
        for port in 0..streams {
            let from = (ip(Version::V4, 2), 2_000 + port).into();
            client
                .connect_from(clock.now(), at, Some(from), conversation(2_000 + port).other())
                .expect("there is room");
        }
        Self { there, clock, server, client }
    }

    /// Bytes of each stream that have come.
    fn heard(&self) -> Vec<u64> {
        self.client.conns.values().map(|conn| conn.heard).collect()
    }

    /// Goes on until `is_over`; the share of the path that was taken meanwhile.
    fn run(&mut self, is_over: impl Fn(&Self) -> bool) -> f64 {
        let (start, before) = (self.clock.now(), self.heard().iter().sum::<u64>());
        while !is_over(self) {
            let goes_on =
                self.clock.step(&mut [&mut self.server, &mut self.client], start + Duration::from_secs(100));
            assert!(goes_on, "{}", self.client.report());
        }
        let took_s = (self.clock.now() - start).as_secs_f64();
        let heard = self.heard().iter().sum::<u64>() - before;
        heard as f64 * 8.0 * 1_514.0 / 1_448.0 / (self.there.bits_per_second as f64 * took_s)
    }
}

/// The share of the path that a stream of these bytes takes, from the first SYN to the last byte.
fn share_of_path(seed: u64, there: Path, server: Config, bytes: u64) -> f64 {
    let mut streams = Streams::new(seed, there, server, 1, bytes);
    let share = streams.run(|streams| streams.heard() == [bytes]);
    let Streams { mut clock, mut server, mut client, .. } = streams;
    talk(&mut clock, &mut server, &mut client, Duration::from_secs(100));
    server.assert_nothing_leaked();
    share
}

/// Slow start included.
#[test]
fn a_path_is_filled() {
    let [cubic, newreno, bbr] = CongestionControl::ALL;
    for (congestion, pacing, mbits, bytes, least) in [
        (cubic, false, 200, 20_000_000, 0.9),
        (bbr, false, 200, 20_000_000, 0.9),
        (cubic, true, 100, 6_000_000, 0.85),
        (newreno, false, 100, 6_000_000, 0.85),
    ] {
        let server = Config { congestion, pacing, ..config(1) };
        let share = share_of_path(1, path(mbits * 1_000_000, MS(10), 0.0), server, bytes);
        assert!(share >= least, "{congestion}, paced: {pacing}: {share}");
    }
}

/// What BBR measures of the first segments of its first window is no rate at which to send the second one: windows that go
/// out over 70 ms of a round trip of 100 are so far behind those of a slow start, and the beginning adds little to that.
#[test]
fn bbr_begins_nearly_as_fast_as_a_slow_start() {
    let takes = |congestion| {
        let server = Config { congestion, ..config(1) };
        let mut streams = Streams::new(4, path(200_000_000, MS(100), 0.0), server, 1, 1 << 40);
        streams.run(|streams| streams.heard().iter().sum::<u64>() >= 400_000);
        streams.clock.now().as_millis()
    };
    let (cubic, bbr) = (takes(CongestionControl::Cubic), takes(CongestionControl::Bbr));
    assert!(bbr <= cubic + 150, "{bbr} ms, and by CUBIC {cubic} ms");
}

/// What an algorithm that takes each loss for congestion makes of it is the square root of it, and less.
#[test]
fn losses_by_chance_do_not_slow_bbr() {
    for (loss, bytes, least) in [(0.01, 8_000_000, 0.8), (0.05, 5_000_000, 0.65)] {
        let bbr = Config { congestion: CongestionControl::Bbr, ..config(1) };
        let share = share_of_path(2, path(100_000_000, MS(10), loss), bbr, bytes);
        println!("{loss}: {share}");
        assert!(share >= least, "{loss}: {share}");
    }
}

/// Two that begin at different times share a path, and fill it. (Jain's index, of two: 1 if they have the same, and 0.5 if
/// one has all.)
#[test]
fn two_streams_share_a_path() {
    for congestion in CongestionControl::ALL {
        let server = Config { congestion, ..config(1) };
        let mut streams = Streams::new(3, path(20_000_000, MS(20), 0.0), server, 2, 1 << 40);
        let start = streams.clock.now();
        streams.run(|streams| streams.clock.now() - start > Duration::from_secs(1));
        let before = streams.heard();
        let share = streams.run(|streams| streams.clock.now() - start > Duration::from_secs(5));
        let heard: Vec<f64> =
            streams.heard().iter().zip(before).map(|(now, before)| (now - before) as f64).collect();
        let jain =
            heard.iter().sum::<f64>().powi(2) / (2.0 * heard.iter().map(|bytes| bytes * bytes).sum::<f64>());
        assert!(share >= 0.9, "{congestion}: {share}");
        assert!(jain >= 0.9, "{congestion}: {heard:?}");
    }
}
