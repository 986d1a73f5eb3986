//! Streams both ways at once, over links that do their worst; what arrives is what was sent.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stack::Config;
use stack::sim::{Link, Path, SimConfig};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;

use crate::ours::{Ours, config};
use crate::talk::{BOTH_VERSIONS, Talk, Talker, Version, for_each_seed, ip, link, talk};
use crate::theirs::Theirs;

/// The longest that any of these conversations may take.
const LIMIT: Duration = Duration::from_secs(900);

/// Everything about one run, drawn from its seed.
#[derive(Debug)]
struct Weather {
    there: Path,
    back: Path,
    says_bytes: u64,
    hears_bytes: u64,
    window_bytes: usize,
    ring_bytes: usize,
    piece_bytes: usize,
    rings: SimConfig,
    /// Whether our devices cut frames into segments.
    cuts: bool,
}

impl Weather {
    fn draw(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mtu = rng.random_range(1_280..=1_500);
        let latency = Duration::from_micros(rng.random_range(10..20_000));
        let path = |rng: &mut ChaCha8Rng| {
            let mut share = |max: f64| if rng.random_bool(0.5) { rng.random_range(0.0..max) } else { 0.0 };
            Path {
                loss: share(0.08),
                duplication: share(0.1),
                reordering: share(0.3),
                corruption: share(0.05),
                reordering_delay: Duration::from_micros(rng.random_range(0..30_000)),
                latency,
                bits_per_second: [1_000_000, 10_000_000, 1_000_000_000][rng.random_range(0..3)],
                queue_frames: [8, 50, 1_000][rng.random_range(0..3)],
                mtu,
            }
        };
        let mut bytes = || if rng.random_bool(0.1) { 0 } else { rng.random_range(1..100_000) };
        let (says_bytes, hears_bytes) = (bytes(), bytes());
        Self {
            there: path(&mut rng),
            back: path(&mut rng),
            says_bytes,
            hears_bytes,
            window_bytes: [1_500, 4_000, 65_535, 262_144][rng.random_range(0..4)],
            ring_bytes: [1_500, 4_000, 65_535, 200_000][rng.random_range(0..4)],
            piece_bytes: [10, 300, 2_048][rng.random_range(0..3)],
            rings: SimConfig {
                rx_ring: rng.random_range(1..64),
                rx_burst: rng.random_range(1..64),
                tx_burst: rng.random_range(1..64),
                rx_checksum: rng.random_bool(0.5),
            },
            cuts: rng.random_bool(0.5),
        }
    }

    fn ours(&self, link: &Link, path: Path, n: u8) -> Ours {
        let config = Config {
            mtu: path.mtu,
            rx_window_bytes: self.window_bytes,
            tx_checksum_offload: self.cuts,
            tx_segmentation: self.cuts,
            ..config(n)
        };
        let mut ours = Ours::with_rings(link, path, 600, config, self.rings, n.into());
        ours.piece_bytes = self.piece_bytes;
        ours
    }

    fn theirs(&self, link: &Link, path: Path, n: u8) -> Theirs {
        Theirs::new(link, path, n, self.ring_bytes)
    }

    fn conversation(&self) -> Talk {
        Talk::new(1, self.says_bytes, self.hears_bytes)
    }
}

fn for_each_weather(run: impl Fn(u64, Version, Weather)) {
    for_each_seed(40, |seed| {
        for version in BOTH_VERSIONS {
            run(seed, version, Weather::draw(seed));
        }
    });
}

#[test]
fn ours_to_ours_in_any_weather() {
    for_each_weather(|seed, version, weather| {
        let (link, mut clock) = link(seed);
        let mut server = weather.ours(&link, weather.there, 1);
        let mut client = weather.ours(&link, weather.back, 2);
        let conversation = weather.conversation();
        server.listen((ip(version, 1), 80).into(), 16, move |_| conversation);
        client
            .connect(clock.now(), (ip(version, 1), 80).into(), conversation.other())
            .expect("there is room");
        talk(&mut clock, &mut server, &mut client, LIMIT);
        server.assert_nothing_leaked();
        client.assert_nothing_leaked();
        assert_eq!(link.counters().oversized, 0);
    });
}

#[test]
fn ours_serves_smoltcp_in_any_weather() {
    for_each_weather(|seed, version, weather| {
        let (link, mut clock) = link(seed);
        let mut server = weather.ours(&link, weather.there, 1);
        let mut client = weather.theirs(&link, weather.back, 2);
        let conversation = weather.conversation();
        server.listen((ip(version, 1), 80).into(), 16, move |_| conversation);
        client.connect((ip(version, 1), 80).into(), 40_000, conversation.other());
        talk(&mut clock, &mut server, &mut client, LIMIT);
        server.assert_nothing_leaked();
        assert_eq!(link.counters().oversized, 0);
    });
}

#[test]
fn smoltcp_serves_ours_in_any_weather() {
    for_each_weather(|seed, version, weather| {
        let (link, mut clock) = link(seed);
        let mut server = weather.theirs(&link, weather.there, 1);
        let mut client = weather.ours(&link, weather.back, 2);
        let conversation = weather.conversation();
        server.listen(80, conversation);
        client
            .connect(clock.now(), (ip(version, 1), 80).into(), conversation.other())
            .expect("there is room");
        talk(&mut clock, &mut server, &mut client, LIMIT);
        client.assert_nothing_leaked();
        assert_eq!(link.counters().oversized, 0);
    });
}

#[test]
fn a_clean_link_is_filled_without_sending_anything_twice() {
    for version in BOTH_VERSIONS {
        // 100 Mbit/s and 1 ms there and back: 12.5 KB are under way at a time, far below the windows.
        let path =
            Path { bits_per_second: 100_000_000, latency: Duration::from_micros(500), ..Path::default() };
        let (link, mut clock) = link(0);
        let mut server = Ours::new(&link, path, 1, 1_000, config(1));
        let mut client = Ours::new(&link, path, 2, 1_000, config(2));
        client.copied_share = 0.0;
        client.piece_bytes = 2_048;
        let conversation = Talk::new(1, 0, 5_000_000);
        server.listen((ip(version, 1), 80).into(), 16, move |_| conversation);
        client
            .connect(clock.now(), (ip(version, 1), 80).into(), conversation.other())
            .expect("there is room");
        let over = talk(&mut clock, &mut server, &mut client, Duration::from_secs(60));
        let counters = client.net.endpoint().counters();
        assert_eq!((counters.retransmits, counters.timeouts), (0, 0));
        assert_eq!(server.net.endpoint().counters().copied_bytes, 0, "whole segments are never copied");
        // 5 MB and their headers take 0.42 s.
        assert!(over < Instant::from_millis(500), "it took {over}: {counters:?}");
    }
}

#[test]
fn kept_buffers_hold_what_arrived() {
    for_each_seed(20, |seed| {
        let path = Path { loss: 0.02, reordering: 0.1, duplication: 0.05, ..Path::default() };
        let (link, mut clock) = link(seed);
        let mut server = Ours::new(&link, path, 1, 1_000, config(1));
        let mut client = Ours::new(&link, path, 2, 200, config(2));
        server.set_reading(crate::ours::Reading::Keep);
        let conversation = Talk::new(1, 1_000, 300_000);
        server.listen((ip(Version::V4, 1), 80).into(), 16, move |_| conversation);
        client
            .connect(clock.now(), (ip(Version::V4, 1), 80).into(), conversation.other())
            .expect("there is room");
        talk(&mut clock, &mut server, &mut client, LIMIT);
        assert!(server.kept() >= 300_000 / 1_460);
        server.release_kept();
        server.assert_nothing_leaked();
    });
}

#[test]
fn many_connections_talk_at_once() {
    for_each_seed(5, |seed| {
        let path = Path { loss: 0.01, reordering: 0.02, ..Path::default() };
        let (link, mut clock) = link(seed);
        let mut server = Ours::new(&link, path, 1, 4_000, config(1));
        let mut client = Ours::new(&link, path, 2, 4_000, config(2));
        let mut smoltcp = Theirs::new(&link, path, 3, 4_096);
        // The client's port says which conversation is meant.
        let conversation = |port: u16| Talk::new(port.into(), 5_000 + u64::from(port), 10_000);
        server.listen((ip(Version::V4, 1), 80).into(), 256, move |peer| conversation(peer.port()));
        for n in 0..100 {
            let port = 20_000 + n;
            let remote = (ip(Version::V4, 1), 80).into();
            let local = (ip(Version::V4, 2), port).into();
            client
                .connect_from(clock.now(), remote, Some(local), conversation(port).other())
                .expect("there is room");
            if n % 4 == 0 {
                smoltcp.connect(remote, port, conversation(port).other());
            }
        }
        let end = Instant::ZERO + LIMIT;
        while !(server.conns.len() == 125 && server.done() && client.done() && smoltcp.done()) {
            assert!(clock.step(&mut [&mut server, &mut client, &mut smoltcp], end), "not over by {end}");
        }
        server.assert_nothing_leaked();
        client.assert_nothing_leaked();
    });
}
