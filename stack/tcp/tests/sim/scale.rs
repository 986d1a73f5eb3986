//! Many connections at once.

use std::time::Duration;

use stack::Config;
use stack::sim::Path;

use crate::ours::{Ours, config};
use crate::talk::{Talk, Version, ip, link, talk};

#[test]
fn ten_thousand_connections_open_talk_and_close() {
    const CONNECTIONS: u16 = 10_000;
    let path = Path { queue_frames: usize::MAX, bits_per_second: 10_000_000_000, ..Path::default() };
    let (link, mut clock) = link(1);
    let limits = |n| Config {
        max_connections: CONNECTIONS.into(),
        max_time_wait: CONNECTIONS.into(),
        tx_bytes: 512,
        tx_extents: 4,
        ..config(n)
    };
    let mut server = Ours::new(&link, path, 1, 2_000, limits(1));
    let mut client = Ours::new(&link, path, 2, 2_000, limits(2));
    // Each conversation is told by its client's port. The server's queue of half-open connections is far
    // shorter than the flood of SYNs.
    let conversation = |port: u16| Talk::new(port.into(), 300, 200);
    let at = (ip(Version::V4, 1), 80).into();
    server.listen(at, 512, move |peer| conversation(peer.port()));
    for port in 1_000..1_000 + CONNECTIONS {
        let local = (ip(Version::V4, 2), port).into();
        client.connect_from(clock.now(), at, Some(local), conversation(port).other()).expect("there is room");
    }
    talk(&mut clock, &mut server, &mut client, Duration::from_secs(300));
    assert_eq!(server.conns.len(), usize::from(CONNECTIONS));
    server.assert_nothing_leaked();
    client.assert_nothing_leaked();
    // And once more, while the first lot still waits in TIME-WAIT.
    for port in 20_000..20_100 {
        let local = (ip(Version::V4, 2), port).into();
        client.connect_from(clock.now(), at, Some(local), conversation(port).other()).expect("there is room");
    }
    talk(&mut clock, &mut server, &mut client, Duration::from_secs(300));
    assert_eq!(server.conns.len(), usize::from(CONNECTIONS) + 100);
}
