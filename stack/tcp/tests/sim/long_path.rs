//! A path of 100 ms at 1 Gbit/s takes 12.5 MB at a time, and is given as much.

use std::time::Duration;

use pmem::{Buffer, Extent};
use stack::Config;
use stack::net::{ConnId, Event, Net, Transport};
use stack::sim::{Host, Link, Path, SimConfig, SimTransport};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;

use crate::ours::config;
use crate::talk::{Version, arena, ip, link, turn};

/// Payload of a segment with timestamps.
const PIECE_BYTES: usize = 1_448;

/// What a server sends over and over again.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Named buffers.
    Extents,
    /// Copied bytes.
    Copied,
}

/// Sends as much as is taken, and counts what comes.
struct Side {
    net: SimTransport,
    says: Option<(Kind, Extent)>,
    heard: usize,
    _withheld: Vec<Buffer>,
}

fn pattern() -> Vec<u8> {
    (0..PIECE_BYTES).map(|at| (at % 251) as u8).collect()
}

impl Side {
    fn new(link: &Link, path: Path, buffers: usize, config: Config, says: Option<Kind>) -> Self {
        let (arena, withheld) = arena(buffers);
        let mut buffer = arena.take().expect("a buffer is free");
        assert!(buffer.arrive(0, &pattern()), "it takes a segment");
        let piece = buffer.into_extent(0, PIECE_BYTES as u16).expect("it is there");
        let net = SimTransport::new(link.port(path), config, SimConfig::default(), arena, Instant::ZERO)
            .expect("the configuration is right");
        Self { net, says: says.map(|kind| (kind, piece)), heard: 0, _withheld: withheld }
    }

    fn work(&mut self, conn: ConnId) {
        while let Some(slot) = self.net.recv(conn) {
            for (at, byte) in (self.heard..).zip(slot.bytes()).step_by(97) {
                assert_eq!(*byte, (at % PIECE_BYTES % 251) as u8, "byte {at}");
            }
            self.heard += slot.bytes().len();
        }
        while let Some((kind, piece)) = &self.says {
            let taken = match kind {
                Kind::Extents => self.net.send_extent(conn, piece.clone()),
                Kind::Copied => self.net.send(conn, piece.bytes()),
            };
            if taken.is_err() {
                return;
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
                Event::Opened { conn, .. }
                | Event::Readable { conn }
                | Event::Writable { conn }
                | Event::PeerFinished { conn } => side.work(conn),
                _ => {}
            },
        )
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.net.next_deadline()
    }
}

/// After the slow start, a download takes all of the link, in payload of whole segments.
#[test]
fn a_download_fills_a_path_of_100_ms_at_1_gbit_s() {
    for kind in [Kind::Extents, Kind::Copied] {
        let path = Path { latency: Duration::from_millis(50), queue_frames: usize::MAX, ..Path::default() };
        let (link, mut clock) = link(0);
        let mut server = Side::new(&link, path, 300, config(1), Some(kind));
        let mut client = Side::new(&link, path, 18_000, config(2), None);
        let at = (ip(Version::V4, 1), 80).into();
        server.net.endpoint_mut().listen(at, 4).expect("the address is ours and free");
        client.net.endpoint_mut().connect(clock.now(), at, None).expect("there is room");
        // 1,448 of 1,514 bytes are payload, and the link takes whole microseconds for each frame.
        let most = 200_000 / 1_514_usize.div_ceil(125) * PIECE_BYTES;
        let (mut best, mut before) = (0, 0);
        for _ in 0..25 {
            let until = clock.now() + Duration::from_millis(200);
            clock.run_until(&mut [&mut server, &mut client], until);
            best = best.max(client.heard - before);
            before = client.heard;
            if best > most / 100 * 98 {
                break;
            }
        }
        let counters = server.net.endpoint().counters();
        assert!(best > most / 100 * 98, "{kind:?}: {best} of {most} bytes in 200 ms; {counters:?}");
        assert_eq!(counters.retransmits, 0, "{kind:?}");
    }
}
