//! How fast a download is over paths that are long, lose, burst and reorder.

use std::time::Duration;

use pmem::{Buffer, Extent};
use stack::net::{ConnId, Event, Net, SendError, Transport};
use stack::sim::{Host, Link, Path, SimConfig, SimTransport};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;
use stack::{Config, CongestionControl};

use crate::ours::config;
use crate::talk::{Version, arena, ip, link, turn};

/// What the server gives for each request.
const RECORD_BYTES: u64 = 12 << 20;
const REQUEST: &[u8] = b"GET /records/1 HTTP/1.1\r\nHost: 10.0.0.2\r\n\r\n";
/// Payload of a segment with timestamps.
const PIECE_BYTES: usize = 1_448;

struct Side {
    net: SimTransport,
    /// A server's: what it sends over and over again.
    piece: Option<Extent>,
    /// Bytes that a server owes yet.
    owes: u64,
    heard: u64,
    _withheld: Vec<Buffer>,
}

impl Side {
    fn new(link: &Link, path: Path, buffers: usize, config: Config, serves: bool) -> Self {
        let (arena, withheld) = arena(buffers);
        let mut buffer = arena.take().expect("a buffer is free");
        assert!(buffer.arrive(0, &[7; PIECE_BYTES]), "it takes a segment");
        let piece = buffer.into_extent(0, PIECE_BYTES as u16).expect("it is there");
        let rings = SimConfig::default();
        let net = SimTransport::new(link.port(path), config, rings, arena, Instant::ZERO)
            .expect("the configuration is right");
        Self { net, piece: serves.then_some(piece), owes: 0, heard: 0, _withheld: withheld }
    }

    fn work(&mut self, conn: ConnId, opened: bool) {
        let before = self.heard / RECORD_BYTES;
        while let Some(slot) = self.net.recv(conn) {
            self.heard += slot.bytes().len() as u64;
            if self.piece.is_some() {
                self.owes += RECORD_BYTES;
            }
        }
        let Some(piece) = &self.piece else {
            if opened || self.heard / RECORD_BYTES > before {
                self.net.send(conn, REQUEST).expect("a request has room");
            }
            return;
        };
        while self.owes > 0 {
            let len = self.owes.min(PIECE_BYTES as u64);
            let part = piece.clone().slice(0, len as usize).expect("a part of it");
            match self.net.send_extent(conn, part) {
                Ok(()) => self.owes -= len,
                Err(SendError::Full) => return,
                Err(SendError::Closed) => panic!("closed"),
            }
        }
    }
}

impl Host for Side {
    fn poll(&mut self, now: Instant) -> bool {
        turn(
            self,
            now,
            |side| &mut side.net,
            |side, event| match event {
                Event::Opened { conn, .. } => side.work(conn, true),
                Event::Readable { conn } | Event::Writable { conn } => side.work(conn, false),
                _ => {}
            },
        )
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.net.next_deadline()
    }
}

/// A path of 200 Mbit/s and 10 ms with a queue of one product of both, and what it does to frames.
#[derive(Clone, Copy, Debug)]
struct Weather {
    /// Share of frames that are lost, and how many at a time.
    loss: f64,
    burst: u32,
    /// Share of frames that come late.
    late: f64,
}

const LASTS: Duration = Duration::from_secs(2);
/// With others rates differ: what is lost may be a request.
const SEED: u64 = 1;
/// Share of segments that may be sent again though they had arrived.
const NEEDLESS: f64 = 0.0005;

/// What a client gets that asks for records one after another: Mbit/s of them, and segments that it had already, of all.
fn download(weather: Weather, congestion: CongestionControl, seed: u64) -> (f64, f64) {
    let round_trip = Duration::from_millis(10);
    let clean =
        Path { bits_per_second: 200_000_000, latency: round_trip / 2, queue_frames: 165, ..Path::default() };
    let bad = Path {
        loss: weather.loss / f64::from(weather.burst),
        loss_burst: weather.burst,
        reordering: weather.late,
        reordering_delay: round_trip / 4,
        ..clean
    };
    let (link, mut clock) = link(seed);
    let mut server = Side::new(&link, clean, 300, Config { congestion, ..config(1) }, true);
    let mut client = Side::new(&link, clean, 6_000, config(2), false);
    let at = (ip(Version::V4, 1), 80).into();
    server.net.endpoint_mut().listen(at, 4).expect("the address is ours and free");
    client.net.endpoint_mut().connect(clock.now(), at, None).expect("there is room");
    // The handshake does not fail by chance.
    let handshake = clock.now() + round_trip * 2 + Duration::from_micros(200);
    clock.run_until(&mut [&mut server, &mut client], handshake);
    server.net.port().set_path(bad);
    client.net.port().set_path(bad);
    let end = clock.now() + LASTS;
    clock.run_until(&mut [&mut server, &mut client], end);
    let counters = client.net.endpoint().counters();
    let twice = counters.drops.duplicate as f64 / counters.segments_in as f64;
    (client.heard as f64 * 8.0 / LASTS.as_secs_f64() / 1e6, twice)
}

/// For comparison, what Linux' TCP comes to between two hosts of its own (`cargo xtask interop --loss`), in this order: by CUBIC
/// 160, 43, 13, 4, 107, 24, 6 and 150 Mbit/s, by BBR 185, 184, 180, 167, 185, 181, 122 and 185.
#[test]
fn downloads_are_fast_whatever_the_path_does_to_frames() {
    let [cubic, bbr] = [CongestionControl::Cubic, CongestionControl::Bbr];
    for (loss, burst, late, least) in [
        (0.0, 1, 0.0, [150.0, 165.0]),
        (0.001, 1, 0.0, [40.0, 165.0]),
        (0.01, 1, 0.0, [12.0, 150.0]),
        (0.05, 1, 0.0, [3.5, 145.0]),
        (0.001, 4, 0.0, [80.0, 165.0]),
        (0.01, 4, 0.0, [22.0, 150.0]),
        (0.05, 4, 0.0, [6.0, 100.0]),
        (0.0, 1, 0.01, [140.0, 165.0]),
    ] {
        let weather = Weather { loss, burst, late };
        for (congestion, least) in [cubic, bbr].into_iter().zip(least) {
            let (rate, twice) = download(weather, congestion, SEED);
            assert!(rate >= least, "{weather:?}, {congestion}, seed {SEED}: {rate:.1} Mbit/s");
            assert!(twice < NEEDLESS, "{weather:?}, {congestion}, seed {SEED}: {twice:.5} came twice");
        }
    }
}
