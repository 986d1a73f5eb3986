//! Long paths with much under way: the window grows until they are filled, and no further.

use std::time::Duration;

use pmem::Buffer;
use stack::Config;
use stack::net::{ConnId, Event, Net, Transport};
use stack::sim::{Clock, Host, Link, Path, Port, SimConfig, SimTransport};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;

use crate::ours::config;
use crate::talk::{Version, arena, ip, mac};
use crate::wire::{ACK, SYN, Seg, Side, data, neighbor_answer, seg};

const SEGMENT_BYTES: u32 = 1_448;

/// A host that sends as fast as the window allows, and keeps nothing to itself: what limits it is the window.
struct Sender {
    port: Port,
    own: Side,
    remote: Side,
    /// The other side's first number and its shift, once it has answered.
    agreed: Option<(u32, u8)>,
    next: u32,
    acked: u32,
    edge: u32,
    payload: Vec<u8>,
    /// Timestamps, where they are agreed on.
    echo: Option<u32>,
    with_timestamps: bool,
    sends: bool,
}

impl Sender {
    /// The host of this number.
    fn new(number: u8, port: Port, with_timestamps: bool) -> Self {
        Self {
            port,
            own: Side { mac: mac(number), at: (ip(Version::V4, number), 40_000).into() },
            remote: Side { mac: mac(1), at: (ip(Version::V4, 1), 80).into() },
            agreed: None,
            next: 0,
            acked: 0,
            edge: 0,
            payload: vec![7; SEGMENT_BYTES as usize],
            echo: None,
            with_timestamps,
            sends: true,
        }
    }

    fn open(&self, now: Instant) {
        self.send(now, seg(SYN, 0, 0).mss(1_460).scale(9));
    }

    /// What the window holds.
    fn window(&self) -> u32 {
        self.edge - self.acked
    }

    fn send(&self, now: Instant, segment: Seg) {
        let value = now.as_millis() as u32;
        let timestamps = self.with_timestamps.then_some((value, self.echo.unwrap_or(0)));
        self.port.send(now, Seg { timestamps, ..segment }.frame(self.own, self.remote));
    }

    fn hear(&mut self, now: Instant, segment: &Seg) {
        self.echo = segment.timestamps.map(|(value, _)| value);
        let window = u32::from(segment.window.expect("every segment has one"));
        if segment.has(SYN) {
            self.agreed = Some((segment.seq, segment.scale.expect("a scale was offered")));
            (self.next, self.acked, self.edge) = (1, 1, 1 + window);
            self.send(now, seg(ACK, 1, segment.seq.wrapping_add(1)));
        } else if let Some((_, shift)) = self.agreed {
            self.acked = self.acked.max(segment.ack);
            self.edge = self.edge.max(segment.ack + (window << shift));
        }
    }
}

impl Host for Sender {
    fn poll(&mut self, now: Instant) -> bool {
        let mut acted = false;
        while let Some(frame) = self.port.receive(now) {
            acted = true;
            if let Some(answer) = neighbor_answer(self.own, &frame) {
                self.port.send(now, answer);
            } else if let Some((_, to, segment)) = Seg::parse(&frame)
                && to == self.own
            {
                self.hear(now, &segment);
            }
        }
        if let Some((iss, _)) = self.agreed {
            let ack = iss.wrapping_add(1);
            while self.sends && self.next + SEGMENT_BYTES <= self.edge {
                self.send(now, data(self.next, ack, &self.payload));
                self.next += SEGMENT_BYTES;
                acted = true;
            }
        }
        acted
    }

    fn deadline(&mut self) -> Option<Instant> {
        None
    }
}

/// What takes everything at once, or nothing.
struct Receiver {
    net: SimTransport,
    conns: Vec<ConnId>,
    taken: u64,
    reads: bool,
}

impl Host for Receiver {
    fn poll(&mut self, now: Instant) -> bool {
        let Ok(received) = self.net.receive(now);
        while let Some(event) = self.net.next_event() {
            if let Event::Opened { conn, .. } = event {
                self.conns.push(conn);
            }
        }
        for &conn in self.conns.iter().filter(|_| self.reads) {
            while let Some(slot) = self.net.recv(conn) {
                self.taken += slot.bytes().len() as u64;
            }
        }
        let Ok(sent) = self.net.transmit(now);
        received + sent > 0
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.net.next_deadline()
    }
}

struct Rig {
    sender: Sender,
    second: Sender,
    receiver: Receiver,
    clock: Clock,
    _withheld: Vec<Buffer>,
}

impl Rig {
    /// Both ends of a path, which takes half the round trip each way.
    fn new(
        round_trip: Duration,
        bits_per_second: u64,
        buffers: usize,
        config: Config,
        timestamps: bool,
    ) -> Self {
        let path =
            Path { latency: round_trip / 2, bits_per_second, queue_frames: usize::MAX, ..Path::default() };
        let link = Link::new(0);
        let (arena, withheld) = arena(buffers);
        let rings = SimConfig { rx_checksum: true, ..SimConfig::default() };
        let sender = Sender::new(2, link.port(path), timestamps);
        let second = Sender::new(3, link.port(path), timestamps);
        let mut net = SimTransport::new(link.port(path), config, rings, arena, Instant::ZERO)
            .expect("the configuration is right");
        net.endpoint_mut().listen((ip(Version::V4, 1), 80).into(), 16).expect("the address is ours");
        sender.open(Instant::ZERO);
        let receiver = Receiver { net, conns: Vec::new(), taken: 0, reads: true };
        Self { sender, second, receiver, clock: Clock::new(&link, Instant::ZERO), _withheld: withheld }
    }

    fn run_until(&mut self, ms: i64) -> u64 {
        let hosts: &mut [&mut dyn Host] = &mut [&mut self.sender, &mut self.second, &mut self.receiver];
        self.clock.run_until(hosts, Instant::from_millis(ms));
        self.receiver.taken
    }
}

/// A path of 1 Gbit/s and 100 ms holds 12.5 MB. The window begins with 64 KiB, and in less than a second the path is full.
#[test]
fn a_long_fat_path_is_filled() {
    for ts in [true, false] {
        let mut rig = Rig::new(Duration::from_millis(100), 1_000_000_000, 16_000, config(1), ts);
        let before = rig.run_until(800);
        let taken = rig.run_until(900) - before;
        // The link takes whole microseconds for each frame.
        let full = 100_000 / 1_514_u64.div_ceil(125) * u64::from(SEGMENT_BYTES);
        assert!(taken > full * 98 / 100, "{taken} of {full} bytes in 100 ms, window {}", rig.sender.window());
        assert!(rig.sender.window() <= 16 << 20, "{} is beyond the limit", rig.sender.window());
    }
}

/// The window is no larger than twice what the path holds, and not limited by what it once was.
#[test]
fn a_short_path_needs_a_small_window() {
    // 10 Mbit/s and 20 ms: 25 KB.
    let mut rig = Rig::new(Duration::from_millis(20), 10_000_000, 16_000, config(1), true);
    let before = rig.run_until(2_000);
    let taken = rig.run_until(3_000) - before;
    assert!(taken > 1_250_000 * 95 / 100, "{taken} bytes in a second");
    assert!(rig.sender.window() <= 256 * 1024, "{}", rig.sender.window());
}

/// An application that reads nothing is not offered more for it, and one with few buffers no more than these.
#[test]
fn the_window_grows_with_what_is_taken_and_with_the_free_buffers() {
    let mut rig = Rig::new(Duration::from_millis(100), 1_000_000_000, 16_000, config(1), true);
    rig.receiver.reads = false;
    rig.run_until(3_000);
    let in_all = rig.sender.edge - 1;
    assert!((200_000..=256 * 1024).contains(&in_all), "{in_all} bytes were offered");

    let mut rig = Rig::new(Duration::from_millis(100), 1_000_000_000, 2_000, config(1), true);
    rig.run_until(1_500);
    let most = 2_000 * SEGMENT_BYTES;
    assert!((most / 2..most).contains(&rig.sender.window()), "{}", rig.sender.window());
    assert_eq!(rig.receiver.net.endpoint().counters().drops.no_buffer, 0);

    // The limit is a setting.
    let limited = Config { rx_window_bytes: 1 << 20, ..config(1) };
    let mut rig = Rig::new(Duration::from_millis(100), 1_000_000_000, 16_000, limited, true);
    rig.run_until(1_500);
    assert!((900_000..=1 << 20).contains(&rig.sender.window()), "{}", rig.sender.window());
}

/// Who has had a large window, and sends nothing any more, has buffers promised that nobody else is then offered: but half of
/// an even share is everyone's.
#[test]
fn windows_that_have_grown_leave_others_half_of_their_share() {
    const BUFFERS: u32 = 4_000;
    let mut rig = Rig::new(Duration::from_millis(100), 1_000_000_000, BUFFERS as usize, config(1), true);
    rig.run_until(1_500);
    rig.sender.sends = false;
    rig.run_until(1_700);
    assert!(rig.sender.window() > BUFFERS * SEGMENT_BYTES * 9 / 10, "{}", rig.sender.window());
    rig.second.open(Instant::from_millis(1_700));
    let before = rig.run_until(2_500);
    let share = BUFFERS / 2 * SEGMENT_BYTES;
    assert!((share * 45 / 100..share).contains(&rig.second.window()), "{}", rig.second.window());
    // A window in each round trip.
    let taken = rig.run_until(3_500) - before;
    assert!(taken > u64::from(share) * 10 * 45 / 100, "{taken} bytes in a second");
    assert_eq!(rig.receiver.net.endpoint().counters().drops.no_buffer, 0);
}
