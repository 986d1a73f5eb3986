//! Scripts of exact segments: this one goes in, exactly that one must come out.
//!
//! Sequence numbers in a script count from each side's SYN, which is number 0.

use std::collections::VecDeque;
use std::time::Duration;

use pmem::{Buffer, Extent};
use stack::net::{ConnId, Event, Net, SendError, Transport};
use stack::sim::{Clock, Host, Link, Path, Port, SimConfig, SimTransport};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;
use stack::{Config, RxChecksum, RxFrame};

use crate::talk::{Version, arena, ip, mac};
use crate::wire::{ACK, SYN, Seg, Side, data, neighbor_answer, seg};

/// Where the remote's sequence numbers start: they wrap in the middle of most scripts.
const REMOTE_ISS: u32 = u32::MAX - 1_000;

pub struct Script {
    pub stack: SimTransport,
    pub local: Side,
    pub remote: Side,
    /// The stack's first sequence number, from the last SYN it sent.
    pub stack_iss: u32,
    pub remote_iss: u32,
    /// Whether the remote answers questions for its own address.
    pub answers_for_itself: bool,
    /// The identifications of segments over IPv4 that routers may divide.
    pub divisible: Vec<u16>,
    stack_timestamp: Option<u32>,
    last_receiver: Option<Side>,
    port: Port,
    clock: Clock,
    segments: VecDeque<Seg>,
    others: VecDeque<Vec<u8>>,
    free_at_start: usize,
    _withheld: Vec<Buffer>,
}

impl Script {
    /// A stack at host 1, port 80, and a remote at host 2 that does only what the script says, except that
    /// it answers for its own address.
    pub fn new(version: Version) -> Self {
        Self::with_config(version, crate::ours::config(1))
    }

    pub fn with_config(version: Version, config: Config) -> Self {
        Self::with_buffers(version, config, 512)
    }

    pub fn with_buffers(version: Version, config: Config, buffers: usize) -> Self {
        Self::over(version, config, buffers, Path::default().bits_per_second)
    }

    /// Over a link of this rate.
    pub fn over(version: Version, config: Config, buffers: usize, bits_per_second: u64) -> Self {
        let link = Link::new(0);
        let latency = Duration::from_micros(1);
        let path = Path { latency, queue_frames: usize::MAX, bits_per_second, ..Path::default() };
        let port = link.port(path);
        let start = Instant::from_secs(10);
        let (arena, withheld) = arena(buffers);
        let stack = SimTransport::new(link.port(path), config, SimConfig::default(), arena, start)
            .expect("the configuration is right");
        Self {
            local: Side { mac: mac(1), at: (ip(version, 1), 80).into() },
            remote: Side { mac: mac(2), at: (ip(version, 2), 40_000).into() },
            stack_iss: 0,
            remote_iss: REMOTE_ISS,
            answers_for_itself: true,
            divisible: Vec::new(),
            stack_timestamp: None,
            last_receiver: None,
            port,
            clock: Clock::new(&link, start),
            segments: VecDeque::new(),
            others: VecDeque::new(),
            free_at_start: stack.arena().free_buffers(),
            _withheld: withheld,
            stack,
        }
    }

    /// A script that listens at port 80.
    pub fn listening(version: Version) -> Self {
        let mut script = Self::new(version);
        script.listen();
        script
    }

    pub fn listen(&mut self) {
        self.stack.endpoint_mut().listen(self.local.at, 16).expect("the address is ours and free");
    }

    /// A script after a passive open with an MSS of 1,000 bytes and neither window scale nor timestamps.
    pub fn open(version: Version) -> (Self, ConnId) {
        let mut script = Self::listening(version);
        let conn = script.open_with(seg(SYN, 0, 0).mss(1_000));
        (script, conn)
    }

    /// Opens a connection with this SYN to the listener.
    pub fn open_with(&mut self, syn: Seg) -> ConnId {
        let window = syn.window;
        let timestamps = syn.timestamps;
        self.send(syn);
        let answer = self.expect(seg(SYN | ACK, 0, 1));
        let mut ack = seg(ACK, 1, 1);
        ack.window = window;
        ack.timestamps = timestamps.map(|(value, _)| {
            (value, answer.timestamps.expect("timestamps are answered where they are offered").0)
        });
        self.send(ack);
        self.expect_nothing();
        let Some(Event::Opened { conn, peer }) = self.event() else { panic!("the connection did not open") };
        assert_eq!(peer, self.remote.at);
        conn
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The remote sends a segment, and the stack sees it.
    pub fn send(&mut self, segment: Seg) {
        let remote = self.remote;
        self.send_from(remote, segment);
    }

    pub fn send_from(&mut self, from: Side, segment: Seg) {
        let frame = self.frame_from(from, segment);
        self.inject(frame);
    }

    pub fn frame_from(&self, from: Side, segment: Seg) -> Vec<u8> {
        let seq = segment.seq.wrapping_add(self.remote_iss);
        let ack = if segment.has(ACK) { segment.ack.wrapping_add(self.stack_iss) } else { segment.ack };
        let sack = segment.sack.as_ref().map(|blocks| {
            let moved = |edge: u32| edge.wrapping_add(self.stack_iss);
            blocks.iter().map(|&(from, to)| (moved(from), moved(to))).collect()
        });
        Seg { seq, ack, sack, ..segment }.frame(from, self.local)
    }

    /// The remote sends a frame, and the stack sees it.
    pub fn inject(&mut self, frame: Vec<u8>) {
        self.port.send(self.clock.now(), frame);
        self.settle();
    }

    /// The remote sends frames one right behind the other, and the stack sees them all.
    pub fn inject_all(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) {
        for frame in frames {
            self.port.send(self.clock.now(), frame);
        }
        self.advance(Duration::from_millis(150));
    }

    /// The remote sends frames one right behind the other. The stack takes them in as one burst, the application acts, and
    /// then the stack sends.
    pub fn exchange(
        &mut self,
        frames: impl IntoIterator<Item = Vec<u8>>,
        act: impl FnOnce(&mut SimTransport),
    ) {
        for frame in frames {
            self.port.send(self.clock.now(), frame);
        }
        self.clock.run_until(&mut [], self.clock.now() + Duration::from_millis(1));
        let now = self.clock.now();
        let Ok(_) = self.stack.receive(now);
        act(&mut self.stack);
        let Ok(_) = self.stack.transmit(now);
        self.settle();
    }

    /// The stack gets a frame that no switch would bring it.
    pub fn force(&mut self, frame: Vec<u8>) {
        let now = self.now();
        self.stack.endpoint_mut().receive(now, &mut Forced(frame));
        self.settle();
    }

    /// Lets the stack act on what has arrived and what the application asked for, without waiting.
    pub fn settle(&mut self) {
        self.advance(Duration::from_micros(50));
    }

    /// Lets time pass.
    pub fn advance(&mut self, time: Duration) {
        let until = self.clock.now() + time;
        loop {
            let more = self.clock.step(&mut [&mut self.stack], until);
            self.collect();
            if !more {
                break;
            }
        }
        self.stack.poll(until);
    }

    fn collect(&mut self) {
        while let Some(frame) = self.port.receive(self.clock.now()) {
            if self.answers_for_itself
                && let Some(answer) = neighbor_answer(self.remote, &frame)
            {
                self.port.send(self.clock.now(), answer);
            } else if let Some((from, to, mut segment)) = Seg::parse(&frame) {
                if frame[12..14] == [8, 0] && frame[20] & 0x40 == 0 {
                    self.divisible.push(u16::from_be_bytes([frame[18], frame[19]]));
                }
                self.last_receiver = Some(to);
                assert_eq!(from.mac, self.local.mac, "the stack sends with its own address");
                if segment.has(SYN) {
                    self.stack_iss = segment.seq;
                }
                self.stack_timestamp = segment.timestamps.map(|(value, _)| value);
                segment.seq = segment.seq.wrapping_sub(self.stack_iss);
                segment.ack = segment.ack.wrapping_sub(self.remote_iss);
                for (from, to) in segment.sack.iter_mut().flatten() {
                    (*from, *to) = (from.wrapping_sub(self.remote_iss), to.wrapping_sub(self.remote_iss));
                }
                self.segments.push_back(segment);
            } else {
                self.others.push_back(frame);
            }
        }
    }

    /// The next segment that the stack has sent.
    pub fn next(&mut self) -> Option<Seg> {
        self.collect();
        self.segments.pop_front()
    }

    /// The next frame that the stack has sent and that is neither TCP nor a question for a neighbour.
    pub fn next_other(&mut self) -> Option<Vec<u8>> {
        self.collect();
        self.others.pop_front()
    }

    /// The stack has sent this segment next.
    #[track_caller]
    pub fn expect(&mut self, expected: Seg) -> Seg {
        let seen = self.next().unwrap_or_else(|| panic!("nothing came; expected {expected:?}"));
        assert!(expected.matches(&seen), "wrong segment\nexpected {expected:?}\nseen     {seen:?}");
        seen
    }

    /// The stack has sent no further segment.
    #[track_caller]
    pub fn expect_nothing(&mut self) {
        if let Some(seen) = self.next() {
            panic!("nothing was expected; seen {seen:?}");
        }
    }

    /// Waits for the next segment, up to `limit`; returns how long it took.
    #[track_caller]
    pub fn wait_for_segment(&mut self, limit: Duration) -> Duration {
        let start = self.clock.now();
        while self.segments.is_empty() {
            let more = self.clock.step(&mut [&mut self.stack], start + limit);
            self.collect();
            assert!(more || !self.segments.is_empty(), "no segment within {limit:?}");
        }
        self.clock.now() - start
    }

    /// The next segment that the stack sends until then, and when.
    pub fn next_until(&mut self, until: Instant) -> Option<(Instant, Seg)> {
        loop {
            if let Some(segment) = self.next() {
                return Some((self.now(), segment));
            }
            if !self.clock.step(&mut [&mut self.stack], until) {
                return self.next().map(|segment| (self.now(), segment));
            }
        }
    }

    /// The next event.
    pub fn event(&mut self) -> Option<Event> {
        self.stack.next_event()
    }

    /// The next event is this one.
    #[track_caller]
    pub fn expect_event(&mut self, expected: Event) {
        assert_eq!(self.event(), Some(expected));
    }

    /// All payload that waits on a connection.
    pub fn read(&mut self, conn: ConnId) -> Vec<u8> {
        let mut bytes = vec![];
        while let Some(slot) = self.stack.recv(conn) {
            bytes.extend_from_slice(slot.bytes());
        }
        self.settle();
        bytes
    }

    /// The application sends.
    pub fn write(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), SendError> {
        let result = self.stack.send(conn, bytes);
        self.settle();
        result
    }

    /// A named buffer that holds `bytes`.
    pub fn named(&self, bytes: &[u8]) -> Extent {
        let mut buffer = self.stack.arena().take().expect("a buffer is free");
        assert!(buffer.arrive(77, bytes), "the bytes fit");
        buffer.into_extent(77, bytes.len() as u16).expect("they are there")
    }

    pub fn finish(&mut self, conn: ConnId) {
        self.stack.finish(conn);
        self.settle();
    }

    pub fn abort(&mut self, conn: ConnId) {
        self.stack.abort(conn);
        self.settle();
    }

    pub fn connect(&mut self) -> ConnId {
        let now = self.now();
        let conn = self
            .stack
            .endpoint_mut()
            .connect(now, self.remote.at, Some(self.local.at))
            .expect("the address is ours and free");
        self.settle();
        conn
    }

    /// Asserts that each buffer is in the ring or free again.
    #[track_caller]
    pub fn assert_nothing_leaked(&self) {
        assert_eq!(self.stack.arena().free_buffers(), self.free_at_start, "buffers leaked");
    }

    /// The timestamp of the last segment that the stack sent.
    #[track_caller]
    pub fn stack_timestamp(&self) -> u32 {
        self.stack_timestamp.expect("the stack sends timestamps")
    }

    /// To whom the stack sent its last segment.
    #[track_caller]
    pub fn last_receiver(&self) -> Side {
        self.last_receiver.expect("the stack sent a segment")
    }

    /// Proves that the connection lives: data goes in and is acknowledged. `seq` and `ack` are its next.
    #[track_caller]
    pub fn assert_alive(&mut self, conn: ConnId, seq: u32, ack: u32) {
        self.send(data(seq, ack, b"alive?"));
        self.advance(Duration::from_millis(100));
        self.expect(seg(ACK, ack, seq + 6));
        assert_eq!(self.read(conn), b"alive?");
    }
}

struct Forced(Vec<u8>);

impl RxFrame for Forced {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn checksum(&self) -> RxChecksum {
        RxChecksum::Unknown
    }

    fn claim(&mut self, _: usize) -> Option<(Buffer, usize)> {
        None
    }
}
