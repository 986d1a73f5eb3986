//! Streams both ways at once; what arrives is what was sent. Over links that do their worst: [weather](crate::weather).

use std::time::Duration;

use stack::sim::Path;
use stack::time::Instant;
use stack::transport::OverEndpoint as _;

use crate::ours::{Ours, config};
use crate::talk::{BOTH_VERSIONS, Talk, Talker as _, Version, for_each_seed, ip, link, talk};
use crate::theirs::Theirs;

/// The longest that any of these conversations may take.
const LIMIT: Duration = Duration::from_secs(900);

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
