//! Two endpoints get the same frames: one by one on the complete path, and in bursts. They must not differ in anything.

mod peer;

use std::collections::BTreeMap;
use std::time::Duration;

use pmem::{Arena, Buffer, Durable};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stack_net::profile::NoLaps;
use stack_net::time::Instant;

use super::Endpoint;
use crate::config::{Config, ConnectionOptions, Keepalive};
use crate::frame::{FrameSink, RxChecksum, RxFrame, SinkFull, TxFrame};
use crate::net::{ConnId, Event, Net, Slot};
use crate::testing::{arena, extent_of, proof};
use peer::{HOST, HOST_MAC, HOST_V6, Peer};

/// A frame on its way in, as a device may hand it over.
#[derive(Clone, Debug)]
struct Sent {
    bytes: Vec<u8>,
    /// Where a device has split it into headers and payload.
    split: Option<usize>,
    checksum: RxChecksum,
    vlan: Option<u16>,
}

struct Received<'a> {
    sent: &'a Sent,
    /// The VLAN of frames that have no other.
    vlan: Option<u16>,
    arena: &'a Arena,
}

impl Sent {
    fn parts(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at(self.split.unwrap_or(self.bytes.len()))
    }
}

impl RxFrame for Received<'_> {
    fn bytes(&self) -> &[u8] {
        self.sent.parts().0
    }

    fn apart(&self) -> &[u8] {
        self.sent.parts().1
    }

    fn checksum(&self) -> RxChecksum {
        self.sent.checksum
    }

    fn vlan(&self) -> Option<u16> {
        self.sent.vlan.or(self.vlan)
    }

    fn claim(&mut self, at: usize) -> Option<(Buffer, usize)> {
        let mut buffer = self.arena.take()?;
        assert!(buffer.arrive(128, &self.sent.bytes));
        Some((buffer, 128 + at))
    }
}

/// Takes so many frames.
struct Cable {
    frames: Vec<Vec<u8>>,
    room: usize,
}

impl FrameSink for Cable {
    fn send(&mut self, frame: TxFrame<'_>) -> Result<(), SinkFull> {
        self.room = self.room.checked_sub(1).ok_or(SinkFull)?;
        let mut bytes = frame.head.to_vec();
        frame.payload.iter().for_each(|piece| bytes.extend_from_slice(piece.bytes()));
        self.frames.push(bytes);
        Ok(())
    }
}

struct Side {
    endpoint: Endpoint,
    arena: Arena,
    /// What the application has taken and not yet given back.
    kept: Vec<Slot>,
}

/// Both endpoints, the application on each, and their peers.
struct Run {
    rng: ChaCha8Rng,
    now: Instant,
    /// That of both endpoints.
    vlan: Option<u16>,
    /// On the complete path, and in bursts.
    sides: [Side; 2],
    peers: Vec<Peer>,
    open: Vec<ConnId>,
    /// What the application has taken and not yet called durable, and the proof that it gives; if that is waited for.
    volatile_bytes: BTreeMap<ConnId, usize>,
    proof: Option<Durable>,
    frames: u64,
    /// Bursts, and those whose first frame the connection expected.
    bursts: u64,
    expected: u64,
    /// Of those such with another behind it that has the same headers.
    followed: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let now = Instant::from_secs(100);
        let addresses = vec![format!("{HOST}/24").parse().unwrap(), format!("{HOST_V6}/64").parse().unwrap()];
        let keepalive =
            Keepalive { idle: Duration::from_secs(3), interval: Duration::from_secs(1), count: 3 };
        let config = Config {
            max_connections: 5,
            max_time_wait: 3,
            syn_queue: 4,
            vlan: (seed % 4 == 2).then_some(5),
            rx_window_bytes: [3_000, 20_000, 65_535, 256 * 1024][rng.random_range(0..4)],
            rx_buffers: [4, 16, 64][rng.random_range(0..3)],
            connection: ConnectionOptions {
                keepalive: rng.random::<bool>().then_some(keepalive),
                nagle: seed % 3 == 1,
                durable_ack: seed % 4 == 2,
                ..ConnectionOptions::default()
            },
            time_wait: Duration::from_secs(5),
            ..Config::with_secret(HOST_MAC, addresses, [seed as u8; 16])
        };
        let buffers = [24, 60, 400][rng.random_range(0..3)];
        let all_collide = rng.random_bool(0.1);
        let sides = [(), ()].map(|()| {
            let arena = arena(buffers);
            let mut endpoint = Endpoint::new(config.clone(), arena.clone(), now).unwrap();
            endpoint.listen("[::]:80".parse().unwrap(), 4).unwrap();
            if all_collide {
                endpoint.flows.have_all_collide();
            }
            Side { endpoint, arena, kept: Vec::new() }
        });
        let oddness = [0.005, 0.02, 0.1][rng.random_range(0..3)];
        let peers = (0..5).map(|number| Peer::new(&mut rng, number, oddness)).collect();
        let volatile_bytes = BTreeMap::new();
        let proof = config.connection.durable_ack.then(proof);
        Self {
            rng,
            now,
            vlan: config.vlan,
            sides,
            peers,
            open: Vec::new(),
            volatile_bytes,
            proof,
            frames: 0,
            bursts: 0,
            expected: 0,
            followed: 0,
        }
    }

    /// Does the same to both, and sees the same come of it.
    fn both<T: PartialEq + std::fmt::Debug>(&mut self, mut act: impl FnMut(&mut Side) -> T) -> T {
        let [complete, burst] = self.sides.each_mut().map(&mut act);
        assert_eq!(burst, complete);
        complete
    }

    fn step(&mut self) {
        self.now += match self.rng.random_range(0..10_000) {
            0..7_000 => Duration::from_micros(self.rng.random_range(0..500)),
            7_000..9_870 => Duration::from_millis(self.rng.random_range(1..60)),
            // Long enough for probes of who is silent.
            9_870..9_995 => Duration::from_millis(self.rng.random_range(100..6_000)),
            9_995..9_999 => Duration::from_secs(70),
            _ => Duration::from_secs(25 * 24 * 3600),
        };
        self.arrive();
        self.serve();
        self.leave();
        if self.rng.random_bool(0.1) {
            let now = self.now;
            self.both(|side| {
                let next = side.endpoint.next_deadline().map(|at| at.max(now));
                let entries = side.endpoint.places.iter();
                (next, entries.map(|entry| format!("{entry:?}")).collect::<Vec<_>>())
            });
        }
    }

    fn arrive(&mut self) {
        let Self { rng, peers, now, .. } = self;
        let count = [1, 3, 24, 40][rng.random_range(0..4)];
        let mut burst = Vec::new();
        while burst.len() < count {
            let peer = rng.random_range(0..peers.len());
            // Several in a row, as a device gets the segments of a body.
            for _ in 0..rng.random_range(1..=6) {
                burst.extend(peers[peer].next(rng, *now));
            }
        }
        let [complete, bursts] = &mut self.sides;
        if let Some(first) = burst.first()
            && let Some(foreseen) = bursts.endpoint.foresee(first.parts().0, None)
        {
            let connection = &bursts.endpoint.places[foreseen.index as usize].connection;
            let segment = foreseen.form.read(first.parts().0).unwrap();
            let is_expected = connection.key.has_ends(&segment.ends)
                && connection.is_ready_for(&segment)
                && connection.expects(self.now, &segment);
            self.expected += u64::from(is_expected);
            let before = Some((first.parts().0, foreseen));
            let next = burst.get(1).and_then(|next| bursts.endpoint.foresee(next.parts().0, before));
            self.followed += u64::from(is_expected && next.is_some_and(|next| next.follows));
        }
        self.bursts += 1;
        self.frames += burst.len() as u64;
        for sent in &burst {
            let (arena, vlan) = (&complete.arena, self.vlan);
            complete.endpoint.receive(self.now, &mut Received { sent, vlan, arena });
        }
        let (arena, vlan) = (&bursts.arena, self.vlan);
        let mut burst: Vec<_> = burst.iter().map(|sent| Received { sent, vlan, arena }).collect();
        bursts.endpoint.receive_burst(self.now, &mut burst[..], &mut NoLaps);
        self.both(|side| (*side.endpoint.counters(), side.arena.free_buffers()));
    }

    /// The application: it reads or does not, sends, finishes, and goes.
    fn serve(&mut self) {
        while let Some(event) = self.both(|side| side.endpoint.next_event()) {
            match event {
                Event::Opened { conn, .. } => self.open.push(conn),
                Event::Closed { conn, .. } => self.open.retain(|open| *open != conn),
                _ => {}
            }
        }
        for conn in self.open.clone() {
            let most = [0, 3, 100, 100][self.rng.random_range(0..4)];
            let keeps = self.rng.random_bool(0.1);
            for _ in 0..most {
                let read = self.both(|side| {
                    let slot = side.endpoint.recv(conn);
                    let bytes = slot.as_ref().map(|slot| slot.bytes().to_vec());
                    side.kept.extend(slot.filter(|_| keeps));
                    bytes
                });
                let Some(read) = read else { break };
                *self.volatile_bytes.entry(conn).or_default() += read.len();
            }
            self.make_durable(conn);
            let len = self.rng.random_range(0..900);
            match self.rng.random_range(0..1000) {
                0..300 => drop(self.both(|side| side.endpoint.send(conn, &vec![b'r'; len]))),
                300..400 => drop(self.both(|side| {
                    let piece = side.arena.take().map(|buffer| {
                        drop(buffer);
                        extent_of(&side.arena, &vec![b'e'; len + 1])
                    });
                    piece.map(|piece| side.endpoint.send_extent(conn, piece))
                })),
                400..404 => self.both(|side| side.endpoint.finish(conn)),
                404..406 => self.both(|side| side.endpoint.abort(conn)),
                406..600 => drop(self.both(|side| side.endpoint.send_space(conn))),
                _ => {}
            }
        }
        let gives_back = self.rng.random_bool(0.1);
        self.both(|side| {
            if gives_back {
                side.kept.clear();
            }
        });
    }

    /// Nearly all at once, as a commit does, and sometimes less, or later.
    fn make_durable(&mut self, conn: ConnId) {
        let (Some(bytes), Some(proof)) = (self.volatile_bytes.get_mut(&conn), &self.proof) else { return };
        let now = match self.rng.random_range(0..20) {
            0 => 0,
            1 => self.rng.random_range(0..=*bytes),
            _ => *bytes,
        };
        *bytes -= now;
        let [complete, burst] = &mut self.sides;
        complete.endpoint.acknowledge(conn, now, proof);
        burst.endpoint.acknowledge(conn, now, proof);
    }

    fn leave(&mut self) {
        let room = [0, 2, 1000, 1000][self.rng.random_range(0..4)];
        let now = self.now;
        let frames = self.both(|side| {
            let mut cable = Cable { frames: Vec::new(), room };
            side.endpoint.transmit(now, &mut cable);
            cable.frames
        });
        self.both(|side| (*side.endpoint.counters(), side.arena.free_buffers()));
        for frame in frames {
            for peer in &mut self.peers {
                peer.hear(&mut self.rng, &frame);
            }
        }
    }
}

/// With `SIM_SEEDS` as many runs, of 4,000 frames each, or with `SIM_SEED` that one.
#[test]
fn bursts_come_to_the_same_as_frames_one_by_one() {
    let variable = |name| std::env::var(name).ok().map(|value| value.parse().expect("seeds are numbers"));
    let seeds = match (variable("SIM_SEED"), variable("SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(30),
    };
    let (mut bursts, mut expected, mut followed, mut frames, mut segments) = (0, 0, 0, 0, 0);
    for seed in seeds {
        let seen = std::panic::catch_unwind(|| {
            let mut run = Run::new(seed);
            while run.frames < 4_000 {
                run.step();
            }
            let segments = run.sides[1].endpoint.counters().segments_in;
            (run.bursts, run.expected, run.followed, run.frames, segments)
        });
        let Ok(seen) = seen else {
            panic!("failed with seed {seed}; run this test with SIM_SEED={seed} to see it again");
        };
        (bursts, expected, followed) = (bursts + seen.0, expected + seen.1, followed + seen.2);
        (frames, segments) = (frames + seen.3, segments + seen.4);
    }
    // Otherwise nothing is compared but the complete path with itself.
    assert!(expected * 5 > bursts, "{expected} of {bursts} bursts began with a segment that was expected");
    assert!(
        followed * 20 > bursts,
        "{followed} of {bursts} bursts began with two that have the same headers"
    );
    assert!(segments * 2 > frames, "{segments} of {frames} frames were segments");
}
