//! What the hosts of these tests say to each other: long streams of bytes that each side can check by itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use pmem::{Arena, Buffer, Options, Region};
use smoltcp::wire::{EthernetAddress, IpCidr};
use stack::net::{Event, Transport as _};
use stack::sim::{Clock, Host, Link, SimTransport};
use stack::time::Instant;

/// So many bytes, of which each follows from the stream's number and the place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub number: u64,
    pub bytes: u64,
}

impl Stream {
    /// Writes the stream from `at` on, up to its end, and returns how many bytes that were.
    pub fn read(&self, at: u64, into: &mut [u8]) -> usize {
        let len = into.len().min((self.bytes - at) as usize);
        let mut word = [0; 8];
        for (index, (byte, at)) in into[..len].iter_mut().zip(at..).enumerate() {
            if index == 0 || at % 8 == 0 {
                word = self.word(at / 8);
            }
            *byte = word[(at % 8) as usize];
        }
        len
    }

    /// Asserts that `bytes` is the piece of the stream at `at`.
    #[track_caller]
    pub fn check(&self, at: u64, bytes: &[u8]) {
        assert!(at + bytes.len() as u64 <= self.bytes, "{} bytes at {at} of {self:?}", bytes.len());
        let mut right = [0; 2_048];
        let mut at = at;
        for piece in bytes.chunks(right.len()) {
            self.read(at, &mut right[..piece.len()]);
            if let Some(wrong) = piece.iter().zip(&right).position(|(is, right)| is != right) {
                panic!("wrong byte at {} of {self:?}", at + wrong as u64);
            }
            at += piece.len() as u64;
        }
    }

    fn word(&self, index: u64) -> [u8; 8] {
        // The steps of splitmix64: neighbouring bytes and streams have nothing in common.
        let mut word = ((self.number << 40) | index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)).to_le_bytes()
    }
}

/// A turn of a host whose connections never end: what has come is taken in, what happened is told, and what is due goes out.
/// Whether anything was done.
pub fn turn<T>(
    host: &mut T,
    now: Instant,
    net: fn(&mut T) -> &mut SimTransport,
    mut tell: impl FnMut(&mut T, Event),
) -> bool {
    let Ok(received) = net(host).receive(now);
    let mut acted = received > 0;
    while let Some(event) = net(host).next_event() {
        acted = true;
        match event {
            Event::Closed { reason, .. } => panic!("closed: {reason:?}"),
            event => tell(host, event),
        }
    }
    let Ok(sent) = net(host).transmit(now);
    acted | (sent > 0)
}

/// One end of a connection: it says a stream, then finishes, and expects to hear another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Talk {
    pub says: Stream,
    pub hears: Stream,
}

impl Talk {
    /// The end that says `says_bytes` and hears `hears_bytes` in conversation `number`.
    pub fn new(number: u64, says_bytes: u64, hears_bytes: u64) -> Self {
        Self {
            says: Stream { number: 2 * number, bytes: says_bytes },
            hears: Stream { number: 2 * number + 1, bytes: hears_bytes },
        }
    }

    /// The other end.
    pub fn other(self) -> Self {
        Self { says: self.hears, hears: self.says }
    }
}

/// A host that talks.
pub trait Talker: Host {
    /// Whether every conversation was said and heard to its end, and the connections are over.
    fn done(&mut self) -> bool;

    /// How far the conversations that are not over have come.
    fn report(&mut self) -> String;
}

/// A link for `seed` and time on it. With a path in `SIM_PCAP`, what goes over the link is written there.
pub fn link(seed: u64) -> (Link, Clock) {
    let link = Link::new(seed);
    if let Some(path) = std::env::var_os("SIM_PCAP") {
        link.capture(std::fs::File::create(path).expect("SIM_PCAP names a file that can be written"));
    }
    let clock = Clock::new(&link, Instant::ZERO);
    (link, clock)
}

/// Runs until both are done, and returns when that was.
///
/// # Panics
/// When that takes longer than `limit`.
#[track_caller]
pub fn talk(clock: &mut Clock, a: &mut dyn Talker, b: &mut dyn Talker, limit: Duration) -> Instant {
    let end = clock.now() + limit;
    let mut now = clock.now();
    while !(a.done() && b.done()) {
        now = clock.now();
        let goes_on = clock.step(&mut [&mut *a, &mut *b], end);
        assert!(goes_on, "not over by {end}\n{}\n{}", a.report(), b.report());
    }
    now
}

/// An arena with so many free buffers; those beyond stay away for as long as the second part lives.
pub fn arena(buffers: usize) -> (Arena, Vec<Buffer>) {
    // More than enough, whatever part of a store its log takes.
    let size = (buffers * 4_096 + (1 << 20)).next_multiple_of(65_536) as u64;
    let options = Options { size: Some(size), ..Options::default() };
    let region = Region::open("memory:", &options).expect("there is memory for a test");
    let shard = region.into_shard().expect("a new store opens");
    let arena = shard.arena().clone();
    assert!(arena.free_buffers() >= buffers, "{size} bytes are too few for {buffers} buffers");
    let withheld = (buffers..arena.free_buffers()).map(|_| arena.take().expect("they are free")).collect();
    (arena, withheld)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V4,
    V6,
}

pub const BOTH_VERSIONS: [Version; 2] = [Version::V4, Version::V6];

/// The host number `n` of the test network.
pub fn ip(version: Version, n: u8) -> IpAddr {
    match version {
        Version::V4 => Ipv4Addr::new(10, 0, 0, n).into(),
        Version::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()).into(),
    }
}

pub fn addresses(n: u8) -> Vec<IpCidr> {
    vec![IpCidr::new(ip(Version::V4, n).into(), 24), IpCidr::new(ip(Version::V6, n).into(), 64)]
}

pub fn mac(n: u8) -> EthernetAddress {
    EthernetAddress([2, 0, 0, 0, 0, n])
}

/// Runs with `seeds` seeds, or with `SIM_SEEDS` of them, or with `SIM_SEED` alone. A panic names its seed.
pub fn for_each_seed(seeds: u64, run: impl Fn(u64)) {
    let variable = |name| std::env::var(name).ok().map(|value| value.parse().expect("seeds are numbers"));
    let seeds = match (variable("SIM_SEED"), variable("SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(seeds),
    };
    for seed in seeds {
        let naming = NameSeed(seed);
        run(seed);
        std::mem::forget(naming);
    }
}

struct NameSeed(u64);

impl Drop for NameSeed {
    fn drop(&mut self) {
        eprintln!("failed with seed {0}; run this test with SIM_SEED={0} to see it again", self.0);
    }
}
