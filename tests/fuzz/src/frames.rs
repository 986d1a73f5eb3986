//! Frames to a host with live connections: whole ones with checksums made right, damaged ones, and noise.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use pmem::{Arena, MEMORY, Options, Region};
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket,
};
use stack::Config;
use stack::net::{ConnId, Event, Net as _, Transport as _};
use stack::sim::{Clock, Link, Path, Port, SimConfig, SimTransport};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const PORT: u16 = 80;
/// Peers' ports, each of which can have a connection.
const FIRST_PORT: u16 = 4000;
const PORTS: u8 = 4;

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Steps of one run. More find nothing that fewer do not, and take their time.
const MAX_STEPS: usize = 64;

#[derive(Debug, Arbitrary)]
enum Step {
    /// A handshake without mistakes.
    Open {
        port: u8,
        options: Options40,
    },
    /// A segment by its distance from what the host expects.
    Segment(Segment),
    /// The same with a byte changed; its checksums are made right again or not.
    Damaged {
        segment: Segment,
        at: u8,
        byte: u8,
        is_repaired: bool,
    },
    /// Two segments in one burst.
    Pair(Segment, Segment),
    Noise(Vec<u8>),
    /// An IPv4 packet with any content.
    Packet {
        protocol: u8,
        body: Vec<u8>,
    },
    Wait {
        milliseconds: u16,
    },
    Send {
        bytes: u16,
    },
    Take,
    Finish,
    Abort,
}

#[derive(Debug, Arbitrary)]
struct Segment {
    port: u8,
    flags: u8,
    seq: i16,
    ack: i16,
    window: u16,
    options: Options40,
    payload_bytes: u16,
}

/// TCP options as bytes, as many as there is room for.
#[derive(Debug, Arbitrary)]
struct Options40(Vec<u8>);

impl Options40 {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.0[..self.0.len().min(40)].to_vec();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}

/// Runs steps that the bytes tell.
pub(crate) fn run(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    let mut host = Host::new();
    for _ in 0..MAX_STEPS {
        if bytes.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut bytes) else { break };
        host.step(&step);
    }
    host.end();
}

/// The bytes are options: first the SYN's, then those of a segment with payload. What the host agrees to is answered in
/// its own.
pub(crate) fn run_options(bytes: &[u8]) {
    let (of_syn, of_data) = bytes.split_at(bytes.len().min(40));
    let mut host = Host::new();
    host.step(&Step::Open { port: 0, options: Options40(of_syn.to_vec()) });
    assert!(host.peers.contains_key(&FIRST_PORT), "a SYN was not answered for its options");
    for at in [0, 1, 40] {
        let options = Options40(of_data.iter().copied().skip(at).collect());
        let segment =
            Segment { port: 0, flags: ACK, seq: 0, ack: 0, window: 500, options, payload_bytes: 100 };
        host.step(&Step::Segment(segment));
        host.step(&Step::Take);
        host.step(&Step::Send { bytes: 100 });
    }
    host.end();
}

/// A host, and what its peers know.
struct Host {
    stack: SimTransport,
    arena: Arena,
    free_at_start: usize,
    port: Port,
    clock: Clock,
    /// By the peer's port: the next number of the peer's own, and the next of the host's.
    peers: HashMap<u16, (u32, u32)>,
    open: Vec<ConnId>,
}

impl Host {
    fn new() -> Self {
        let options = Options { size: Some(1 << 20), ..Options::default() };
        let region = Region::open(MEMORY, &options).expect("memory for a store");
        let arena = region.into_shard().expect("a new store opens").arena().clone();
        let link = Link::new(0);
        let path = Path { latency: Duration::from_micros(1), queue_frames: usize::MAX, ..Path::default() };
        let now = Instant::from_secs(10);
        let address = "10.0.0.1/24".parse().expect("an address");
        let config = Config { max_connections: 8, ..Config::with_secret(HOST_MAC, vec![address], [7; 16]) };
        let port = link.port(path);
        let stack = SimTransport::new(link.port(path), config, SimConfig::default(), arena.clone(), now);
        let mut stack = stack.expect("the configuration is right");
        stack.endpoint_mut().listen((HOST, PORT).into(), 4).expect("the address is the host's and free");
        let free_at_start = arena.free_buffers();
        let clock = Clock::new(&link, now);
        Self { stack, arena, free_at_start, port, clock, peers: HashMap::new(), open: Vec::new() }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Open { port, options } => self.open(*port, options),
            Step::Segment(segment) => {
                let frame = self.frame(segment);
                self.deliver([frame]);
            }
            Step::Damaged { segment, at, byte, is_repaired } => {
                let mut frame = self.frame(segment);
                let at = usize::from(*at) % frame.len();
                frame[at] ^= byte;
                if *is_repaired {
                    repair(&mut frame);
                }
                self.deliver([frame]);
            }
            Step::Pair(first, second) => {
                let frames = [self.frame(first), self.frame(second)];
                self.deliver(frames);
            }
            Step::Noise(bytes) => self.deliver([bytes.clone()]),
            Step::Packet { protocol, body } => {
                self.deliver([packet(*protocol, &body[..body.len().min(1400)])])
            }
            Step::Wait { milliseconds } => self.advance(Duration::from_millis((*milliseconds).into())),
            Step::Send { bytes } => {
                for conn in self.open.clone() {
                    // Refused where there is no room.
                    let _ = self.stack.send(conn, &vec![b'h'; usize::from(*bytes) % 5000]);
                }
                self.advance(SETTLE);
            }
            Step::Take => self.take(),
            Step::Finish => self.open.clone().into_iter().for_each(|conn| self.stack.finish(conn)),
            Step::Abort => self.open.clone().into_iter().for_each(|conn| self.stack.abort(conn)),
        }
    }

    fn open(&mut self, port: u8, options: &Options40) {
        let port = FIRST_PORT + u16::from(port % PORTS);
        let syn = tcp(port, SYN, 1000, 0, 0xffff, &options.bytes(), 0);
        self.peers.remove(&port);
        self.deliver([syn]);
        if let Some(&(_, next)) = self.peers.get(&port) {
            self.peers.insert(port, (1001, next));
            self.deliver([tcp(port, ACK, 1001, next, 0xffff, &options.bytes(), 0)]);
        }
    }

    fn frame(&self, segment: &Segment) -> Vec<u8> {
        let port = FIRST_PORT + u16::from(segment.port % PORTS);
        let (seq, ack) = self.peers.get(&port).copied().unwrap_or_default();
        let (seq, ack) =
            (seq.wrapping_add_signed(segment.seq.into()), ack.wrapping_add_signed(segment.ack.into()));
        let payload_bytes = usize::from(segment.payload_bytes) % 1400;
        tcp(port, segment.flags, seq, ack, segment.window, &segment.options.bytes(), payload_bytes)
    }

    fn deliver(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) {
        for frame in frames.into_iter().filter(|frame| frame.len() >= 14) {
            self.port.send(self.clock.now(), frame);
        }
        self.advance(SETTLE);
    }

    fn take(&mut self) {
        for conn in self.open.clone() {
            while let Some(slot) = self.stack.recv(conn) {
                assert!(!slot.bytes().is_empty(), "a slot without bytes");
            }
        }
        self.advance(SETTLE);
    }

    fn advance(&mut self, time: Duration) {
        let until = self.clock.now() + time;
        while self.clock.step(&mut [&mut self.stack], until) {
            self.hear();
        }
        self.hear();
        while let Some(event) = self.stack.next_event() {
            match event {
                Event::Opened { conn, .. } => self.open.push(conn),
                Event::Closed { conn, .. } => self.open.retain(|open| *open != conn),
                _ => {}
            }
        }
    }

    /// What the host sends is right in each of its checksums and lengths.
    fn hear(&mut self) {
        while let Some(frame) = self.port.receive(self.clock.now()) {
            let ethernet = EthernetFrame::new_checked(&frame[..]).expect("a frame has a header");
            assert_eq!(ethernet.src_addr().0, HOST_MAC, "the host sends with its own address");
            match ethernet.ethertype() {
                EthernetProtocol::Arp if frame[20..22] == [0, 1] && frame[38..42] == PEER.octets() => {
                    self.port.send(self.clock.now(), arp_answer());
                }
                EthernetProtocol::Ipv4 => self.hear_packet(ethernet.payload()),
                EthernetProtocol::Ipv6 => {
                    Ipv6Packet::new_checked(ethernet.payload()).expect("an IPv6 header is whole");
                }
                _ => {}
            }
        }
    }

    fn hear_packet(&mut self, packet: &[u8]) {
        let ip = Ipv4Packet::new_checked(packet).expect("an IPv4 header is whole");
        assert!(ip.verify_checksum(), "the checksum of an IPv4 header is wrong");
        if ip.next_header() != IpProtocol::Tcp || ip.dst_addr() != PEER {
            return;
        }
        let tcp = TcpPacket::new_checked(ip.payload()).expect("a TCP header is whole");
        assert!(tcp.verify_checksum(&HOST.into(), &PEER.into()), "a TCP checksum is wrong");
        let mut options = tcp.options();
        while !options.is_empty() {
            let (rest, _) = smoltcp::wire::TcpOption::parse(options).expect("options are well-formed");
            options = rest;
        }
        if !tcp.rst() {
            let end = tcp.seq_number().0 as u32 + tcp.segment_len() as u32;
            let ack = tcp.ack_number().0 as u32;
            self.peers.insert(tcp.dst_port(), (ack, end));
        }
    }

    /// When all connections are gone, all buffers are free.
    fn end(&mut self) {
        self.take();
        self.open.clone().into_iter().for_each(|conn| self.stack.abort(conn));
        self.advance(SETTLE);
        // Half-open connections and parts of packets are forgotten.
        self.advance(Duration::from_secs(600));
        self.open.clone().into_iter().for_each(|conn| self.stack.abort(conn));
        self.advance(Duration::from_secs(1));
        assert_eq!(self.stack.endpoint().connections(), 0, "a connection does not end");
        assert_eq!(self.arena.free_buffers(), self.free_at_start, "buffers are lost");
    }
}

/// Until frames have come and gone.
const SETTLE: Duration = Duration::from_micros(50);

fn tcp(
    port: u16,
    flags: u8,
    seq: u32,
    ack: u32,
    window: u16,
    options: &[u8],
    payload_bytes: usize,
) -> Vec<u8> {
    let len = 20 + options.len() + payload_bytes;
    let mut body = vec![b'f'; len];
    body[..2].copy_from_slice(&port.to_be_bytes());
    body[2..4].copy_from_slice(&PORT.to_be_bytes());
    body[4..8].copy_from_slice(&seq.to_be_bytes());
    body[8..12].copy_from_slice(&ack.to_be_bytes());
    body[12] = ((20 + options.len()) as u8 / 4) << 4;
    // What resets a connection at once is left to the other flags' company: alone it ends most runs.
    body[13] = if flags == RST { RST | ACK } else { flags };
    body[14..16].copy_from_slice(&window.to_be_bytes());
    body[16..20].fill(0);
    body[20..20 + options.len()].copy_from_slice(options);
    let mut frame = packet(6, &body);
    repair(&mut frame);
    frame
}

pub(crate) fn packet(protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 34 + body.len()];
    frame[..6].copy_from_slice(&HOST_MAC);
    frame[6..12].copy_from_slice(&PEER_MAC);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&(20 + body.len() as u16).to_be_bytes());
    frame[22] = 64;
    frame[23] = protocol;
    frame[26..30].copy_from_slice(&PEER.octets());
    frame[30..34].copy_from_slice(&HOST.octets());
    frame[34..].copy_from_slice(body);
    repair(&mut frame);
    frame
}

/// Makes checksums right where there is enough of the headers.
fn repair(frame: &mut [u8]) {
    let Some(bytes) = frame.get_mut(14..) else { return };
    let Ok(mut ip) = Ipv4Packet::new_checked(bytes) else { return };
    ip.fill_checksum();
    let (from, to, protocol) = (ip.src_addr(), ip.dst_addr(), ip.next_header());
    match protocol {
        IpProtocol::Tcp => {
            if let Ok(mut tcp) = TcpPacket::new_checked(ip.payload_mut()) {
                tcp.fill_checksum(&from.into(), &to.into());
            }
        }
        IpProtocol::Udp => {
            if let Ok(mut udp) = UdpPacket::new_checked(ip.payload_mut()) {
                udp.fill_checksum(&from.into(), &to.into());
            }
        }
        _ => {}
    }
}

pub(crate) fn arp_answer() -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(HOST_MAC.into_iter().chain(PEER_MAC));
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend(PEER_MAC.into_iter().chain(PEER.octets()).chain(HOST_MAC).chain(HOST.octets()));
    frame
}
