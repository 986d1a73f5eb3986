//! Frames that the device cuts into segments are on the wire what the core would have sent one by one.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use smoltcp::wire::{EthernetFrame, TcpPacket};
use stack::Config;
use stack::sim::{Link, Path, SimConfig};
use stack::transport::OverEndpoint as _;

use crate::ours::{Ours, config};
use crate::talk::{BOTH_VERSIONS, Talk, Version, for_each_seed, ip, link, talk};

const LIMIT: Duration = Duration::from_secs(60);

/// One run of a client that says a stream to a server.
struct Run {
    /// All frames that the client sent, as they were on the wire.
    wire: Vec<Vec<u8>>,
    /// Frames that the core handed to the device, and segments that it counts.
    frames: u64,
    segments: u64,
    retransmits: u64,
}

/// The client's device `cuts`, or the core does; all else follows from the seed.
fn run(seed: u64, version: Version, cuts: bool) -> Run {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let path = Path {
        latency: Duration::from_micros(rng.random_range(10..5_000)),
        bits_per_second: [100_000_000, 10_000_000_000][rng.random_range(0..2)],
        mtu: rng.random_range(1_280..=1_500),
        ..Path::default()
    };
    let (link, mut clock): (Link, _) = link(seed);
    let mut server = Ours::new(&link, path, 1, 1_000, config(1));
    let offload = Config { tx_checksum_offload: cuts, tx_segmentation: cuts, mtu: path.mtu, ..config(2) };
    // As much as there is, in one go: where the core cuts, there are more frames to take.
    let rings = SimConfig { tx_burst: usize::MAX, ..SimConfig::default() };
    let mut client = Ours::with_rings(&link, path, 1_000, offload, rings, seed);
    // Odd ones too: a device that sums pieces by themselves would go wrong.
    client.piece_bytes = rng.random_range(700..=2_048);
    client.copied_share = [0.0, 0.05][rng.random_range(0..2)];
    let wire = Rc::new(RefCell::new(Vec::new()));
    let seen = wire.clone();
    client.net.port().set_filter(move |frame| {
        seen.borrow_mut().push(frame.clone());
        true
    });
    let conversation = Talk::new(1, 0, rng.random_range(1..400_000));
    server.listen((ip(version, 1), 80).into(), 16, move |_| conversation);
    client.connect(clock.now(), (ip(version, 1), 80).into(), conversation.other()).expect("there is room");
    talk(&mut clock, &mut server, &mut client, LIMIT);
    client.assert_nothing_leaked();
    server.assert_nothing_leaked();
    assert_eq!(link.counters().oversized, 0);
    let counters = *client.net.endpoint().counters();
    let (frames, segments, retransmits) = (counters.frames_out, counters.segments_out, counters.retransmits);
    Run { wire: Rc::unwrap_or_clone(wire).into_inner(), frames, segments, retransmits }
}

/// How many of the frames carry TCP.
fn segments(wire: &[Vec<u8>], version: Version) -> usize {
    let (next_header_at, l4_at) = match version {
        Version::V4 => (23, 34),
        Version::V6 => (20, 54),
    };
    let is_tcp = |frame: &&Vec<u8>| {
        let ethertype = u16::from(EthernetFrame::new_unchecked(&frame[..]).ethertype());
        matches!(ethertype, 0x0800 | 0x86dd)
            && frame[next_header_at] == 6
            && TcpPacket::new_checked(&frame[l4_at..]).is_ok()
    };
    wire.iter().filter(is_tcp).count()
}

#[test]
fn what_the_device_cuts_is_byte_for_byte_what_the_core_would_send() {
    for_each_seed(40, |seed| {
        for version in BOTH_VERSIONS {
            let (cut, whole) = (run(seed, version, true), run(seed, version, false));
            assert_eq!(cut.wire.len(), whole.wire.len(), "frames");
            for (at, (cut, whole)) in cut.wire.iter().zip(&whole.wire).enumerate() {
                assert!(cut == whole, "frame {at}: {:x?}, {:x?}", &cut[..74], &whole[..74]);
            }
            assert_eq!((cut.segments, cut.retransmits), (whole.segments, whole.retransmits));
            assert_eq!(cut.segments, segments(&cut.wire, version) as u64);
            assert!(cut.frames <= whole.frames, "{} frames, and {}", cut.frames, whole.frames);
        }
    });
}

#[test]
fn a_stream_takes_less_than_a_fifth_of_the_frames_where_the_device_cuts_them() {
    // A fast link, whole pieces, and windows that open by many segments at a time.
    for version in BOTH_VERSIONS {
        let path = Path { latency: Duration::from_millis(1), ..Path::default() };
        let (link, mut clock) = link(0);
        let limited = Config { rx_window_bytes: 256 * 1024, ..config(1) };
        let mut server = Ours::new(&link, path, 1, 1_000, limited);
        let offload = Config { tx_checksum_offload: true, tx_segmentation: true, ..config(2) };
        let mut client = Ours::new(&link, path, 2, 1_000, offload);
        (client.piece_bytes, client.copied_share) = (2_048, 0.0);
        let conversation = Talk::new(1, 0, 3_000_000);
        server.listen((ip(version, 1), 80).into(), 16, move |_| conversation);
        client
            .connect(clock.now(), (ip(version, 1), 80).into(), conversation.other())
            .expect("there is room");
        talk(&mut clock, &mut server, &mut client, LIMIT);
        let counters = client.net.endpoint().counters();
        assert!(counters.segments_out > 2_000, "{counters:?}");
        assert!(counters.frames_out * 5 < counters.segments_out, "{counters:?}");
        assert_eq!((counters.retransmits, counters.timeouts), (0, 0));
    }
}
