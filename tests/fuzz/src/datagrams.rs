//! Datagrams to a host with a bound UDP port and an application that answers: whole ones, in fragments, with any lengths
//! and checksums, and noise.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use pmem::{Arena, Extent, MEMORY, Options, Region};
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, UdpPacket};
use stack::Config;
use stack::net::{Event, Net as _, Remote, Transport as _, UdpPort};
use stack::sim::{Clock, Link, Path, Port, SimConfig, SimTransport};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;

use crate::frames::{HOST, HOST_MAC, PEER, arp_answer, packet};

const PORT: u16 = 514;
const UDP: u8 = 17;

/// Steps of one run, and bytes of one datagram.
const MAX_STEPS: usize = 64;
const MAX_PAYLOAD_BYTES: usize = 3_000;

#[derive(Debug, Arbitrary)]
enum Step {
    /// A datagram without mistakes.
    Datagram(Datagram),
    /// With another length than its own, or another checksum.
    Wrong {
        datagram: Datagram,
        len: u16,
        checksum: Option<u16>,
    },
    /// Some of its fragments, of which each is told by its place and may begin a little elsewhere.
    Fragments {
        datagram: Datagram,
        ident: u8,
        places: Vec<(u8, i8)>,
    },
    Noise(Vec<u8>),
    /// The application sends to a host by its number, which may be none.
    Send {
        host: u8,
        port: u16,
        text: u16,
        pieces: u8,
    },
    /// The neighbor answers for itself, or no longer does.
    Answers(bool),
    Wait {
        milliseconds: u16,
    },
}

#[derive(Debug, Arbitrary)]
struct Datagram {
    from: u16,
    is_to_port: bool,
    bytes: u16,
    /// The first byte, by which the application lets it go, keeps it, or sends it back.
    seed: u8,
}

impl Datagram {
    fn payload(&self) -> Vec<u8> {
        let len = usize::from(self.bytes) % MAX_PAYLOAD_BYTES;
        (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(self.seed)).collect()
    }

    /// The header and the payload.
    fn body(&self) -> Vec<u8> {
        let payload = self.payload();
        let to = if self.is_to_port { PORT } else { PORT + 1 };
        let len = 8 + payload.len() as u16;
        let words = [self.from, to, len, 0].map(u16::to_be_bytes);
        [words.concat(), payload].concat()
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
        host.step(step);
    }
    host.end();
}

struct Host {
    stack: SimTransport,
    udp: UdpPort,
    arena: Arena,
    free_at_start: usize,
    port: Port,
    clock: Clock,
    answers: bool,
    /// Payloads that may come to the application.
    sent: HashSet<Vec<u8>>,
    kept: Vec<Extent>,
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
        let config = Config {
            max_connections: 1,
            udp_rx_datagrams: 8,
            udp_tx_datagrams: 8,
            ..Config::with_secret(HOST_MAC, vec![address], [7; 16])
        };
        let port = link.port(path);
        let stack = SimTransport::new(link.port(path), config, SimConfig::default(), arena.clone(), now);
        let mut stack = stack.expect("the configuration is right");
        let udp = stack.endpoint_mut().bind_udp((HOST, PORT).into()).expect("it is the host's and free");
        let free_at_start = arena.free_buffers();
        let clock = Clock::new(&link, now);
        let (sent, kept) = (HashSet::new(), Vec::new());
        Self { stack, udp, arena, free_at_start, port, clock, answers: true, sent, kept }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Datagram(datagram) => {
                self.sent.insert(datagram.payload());
                self.deliver([packet(UDP, &datagram.body())]);
            }
            Step::Wrong { datagram, len, checksum } => {
                let mut body = datagram.body();
                let payload = datagram.payload();
                // A shorter one, by its length, is one of its own.
                let end = usize::from(len).saturating_sub(8).min(payload.len());
                self.sent.insert(payload[..end].to_vec());
                body[4..6].copy_from_slice(&len.to_be_bytes());
                let mut frame = packet(UDP, &body);
                if let Some(checksum) = checksum {
                    frame[40..42].copy_from_slice(&checksum.to_be_bytes());
                }
                self.deliver([frame]);
            }
            Step::Fragments { datagram, ident, places } => {
                self.sent.insert(datagram.payload());
                let whole = packet(UDP, &datagram.body());
                let frames: Vec<_> =
                    places.iter().take(16).filter_map(|place| fragment(&whole, ident, *place)).collect();
                self.deliver(frames);
            }
            Step::Noise(bytes) => self.deliver([bytes]),
            Step::Send { host, port, text, pieces } => {
                let to = SocketAddr::new(Ipv4Addr::new(10, 0, 0, host).into(), port);
                let piece = self.kept.last().cloned();
                let pieces: Vec<_> = piece.into_iter().cycle().take((pieces % 12).into()).collect();
                // Refused where it cannot be.
                let text = vec![b't'; usize::from(text) % 2_000];
                let _ = self.stack.send_datagram(self.udp, Remote::from(to), &text, &pieces);
                self.advance(SETTLE);
            }
            Step::Answers(answers) => self.answers = answers,
            Step::Wait { milliseconds } => self.advance(Duration::from_millis(milliseconds.into())),
        }
    }

    fn deliver(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) {
        for frame in frames.into_iter().filter(|frame| frame.len() >= 14) {
            self.port.send(self.clock.now(), frame);
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
            assert_eq!(event, Event::Datagrams { port: self.udp }, "nobody opens a connection");
            while let Some(datagram) = self.stack.recv_datagram(self.udp) {
                let bytes = datagram.bytes();
                assert!(self.sent.contains(bytes), "{} bytes came that nobody has sent", bytes.len());
                match bytes.first() {
                    Some(byte) if byte % 3 == 0 && self.kept.len() < 32 => self.kept.push(datagram.keep()),
                    Some(byte) if byte % 3 == 1 => {
                        let (to, piece) = (datagram.from(), datagram.keep());
                        let _ = self.stack.send_datagram(self.udp, to, b"back ", &[piece]);
                    }
                    _ => {}
                }
            }
        }
    }

    /// What the host sends is right in each of its checksums and lengths.
    fn hear(&mut self) {
        while let Some(frame) = self.port.receive(self.clock.now()) {
            let ethernet = EthernetFrame::new_checked(&frame[..]).expect("a frame has a header");
            match ethernet.ethertype() {
                EthernetProtocol::Arp
                    if self.answers && frame[20..22] == [0, 1] && frame[38..42] == PEER.octets() =>
                {
                    self.port.send(self.clock.now(), arp_answer());
                }
                EthernetProtocol::Ipv4 => {
                    let ip = Ipv4Packet::new_checked(ethernet.payload()).expect("an IPv4 header is whole");
                    assert!(ip.verify_checksum(), "the checksum of an IPv4 header is wrong");
                    if ip.next_header() == IpProtocol::Udp {
                        let udp = UdpPacket::new_checked(ip.payload()).expect("a UDP header is whole");
                        let is_right = udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into());
                        assert!(udp.checksum() != 0 && is_right, "a UDP checksum is wrong");
                    }
                }
                _ => {}
            }
        }
    }

    /// When neighbors and fragments are given up, all buffers are free.
    fn end(&mut self) {
        self.kept.clear();
        self.advance(Duration::from_secs(100));
        assert_eq!(self.arena.free_buffers(), self.free_at_start, "buffers are lost");
    }
}

/// Until frames have come and gone.
const SETTLE: Duration = Duration::from_micros(50);

/// A fragment of 1,000 bytes by its place, which begins so many words elsewhere.
fn fragment(whole: &[u8], ident: u8, (place, shift): (u8, i8)) -> Option<Vec<u8>> {
    let body = &whole[34..];
    let offset = (usize::from(place % 4) * 1_000).checked_add_signed(isize::from(shift / 16) * 8)?;
    let piece = body.get(offset..body.len().min(offset + 1_000))?;
    let mut frame = [&whole[..34], piece].concat();
    let more = offset + piece.len() < body.len();
    let mut ip = Ipv4Packet::new_unchecked(&mut frame[14..]);
    ip.set_total_len(20 + piece.len() as u16);
    ip.set_ident(ident.into());
    ip.set_more_frags(more);
    ip.set_frag_offset(offset as u16);
    ip.fill_checksum();
    Some(frame)
}
