//! Requests to the log server on the stack: any bytes, over a connection of smoltcp's, in pieces that come at any time.

use std::sync::OnceLock;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use pmem::{MEMORY, Options, Region, Shard};
use pmlog::service::{LogService, ServiceConfig};
use smoltcp::iface::SocketHandle;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use stack::Config;
use stack::net::Transport as _;
use stack::server::Server;
use stack::sim::{Clock, Host, Link, Path, Peer, SimConfig, SimTransport};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;

const SERVER: [u8; 4] = [10, 0, 0, 100];
const MAX_RECORD_BYTES: u32 = 20_000;

/// What the client sends next.
#[derive(Debug, Arbitrary)]
enum Piece {
    /// A request or a part of one that is as it should be.
    Known(u8),
    Bytes(Vec<u8>),
    /// A body with a length before it.
    Chunk(Vec<u8>),
    Body {
        bytes: u16,
        declared: u16,
    },
    /// What comes behind is a segment of its own.
    Pause,
}

const KNOWN: [&str; 16] = [
    "POST /append HTTP/1.1\r\nHost: log\r\n",
    "GET /records/1 HTTP/1.1\r\nHost: log\r\n",
    "GET /records?from=0&limit=10 HTTP/1.1\r\nHost: log\r\n",
    "DELETE /records?before=2 HTTP/1.1\r\nHost: log\r\n",
    "GET /health HTTP/1.1\r\nHost: log\r\n",
    "HEAD /records/2 HTTP/1.1\r\nHost: log\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: close\r\n",
    "Expect: 100-continue\r\n",
    "Accept: application/json\r\n",
    "\r\n",
    "hello",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "ffffffffffffffff\r\n",
];

/// Sends what the bytes tell.
pub(crate) fn run(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    let mut segments = vec![Vec::new()];
    while !bytes.is_empty() {
        let Ok(piece) = Piece::arbitrary(&mut bytes) else { break };
        let segment = segments.last_mut().expect("there is one");
        match piece {
            Piece::Known(which) => {
                segment.extend_from_slice(KNOWN[usize::from(which) % KNOWN.len()].as_bytes())
            }
            Piece::Bytes(bytes) => segment.extend(bytes),
            Piece::Chunk(bytes) => {
                segment.extend(format!("{:x}\r\n", bytes.len()).into_bytes());
                segment.extend(bytes);
                segment.extend(b"\r\n");
            }
            Piece::Body { bytes, declared } => {
                segment.extend(format!("Content-Length: {declared}\r\n\r\n").into_bytes());
                segment.extend(vec![b'b'; usize::from(bytes) % 30_000]);
            }
            Piece::Pause => segments.push(Vec::new()),
        }
    }
    converse(&segments);
}

/// One client's connection, from its SYN to its end.
fn converse(segments: &[Vec<u8>]) {
    let now = Instant::from_secs(1000);
    let link = Link::new(0);
    let path = Path { latency: Duration::from_micros(10), ..Path::default() };
    let shard = shard();
    let (arena, free) = (shard.arena().clone(), shard.arena().free_buffers());
    let address = IpCidr::new(IpAddress::Ipv4(SERVER.into()), 24);
    let config =
        Config { max_connections: 4, ..Config::with_secret([2, 0, 0, 0, 0, 100], vec![address], [7; 16]) };
    let transport = SimTransport::new(link.port(path), config, SimConfig::default(), arena.clone(), now);
    let mut transport = transport.expect("the configuration is right");
    transport.endpoint_mut().listen((SERVER, 80).into(), 4).expect("a free port");
    let config = ServiceConfig { max_connections: 4, ..ServiceConfig::default() };
    let mut server = Served(Server::new(transport, LogService::new(config, now), shard));
    let mut client = Client::new(&link, path, now);
    let mut clock = Clock::new(&link, now);

    for segment in segments {
        client.unsent.extend_from_slice(segment);
        let until = clock.now() + Duration::from_millis(5);
        while clock.step(&mut [&mut server, &mut client], until) {}
    }
    client.finishes = true;
    let limit = clock.now() + Duration::from_secs(300);
    while clock.step(&mut [&mut server, &mut client], limit) {}
    assert_eq!(server.0.transport().endpoint().connections(), 0, "a connection does not end");
    let (_, _, shard) = server.0.parts();
    let kept = shard.counters().live_records;
    assert!(kept > 0 || arena.free_buffers() + 64 >= free, "buffers are lost");
    check_replies(&client.received);
}

/// What came back begins as a reply does, if anything came.
fn check_replies(received: &[u8]) {
    let Some(line) = received.split(|&byte| byte == b'\n').next().filter(|line| !line.is_empty()) else {
        return;
    };
    let line = String::from_utf8_lossy(line).into_owned();
    let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse::<u16>().ok());
    assert!(status.is_some_and(|status| (100..600).contains(&status)), "not a status line: {line:?}");
}

fn shard() -> Shard {
    static MOST: OnceLock<Options> = OnceLock::new();
    let options = MOST.get_or_init(|| Options {
        size: Some(1 << 20),
        max_record_bytes: MAX_RECORD_BYTES,
        ..Options::default()
    });
    Region::open(MEMORY, options).expect("memory for a store").into_shard().expect("a new store opens")
}

struct Served(Server<SimTransport, LogService>);

impl Host for Served {
    fn poll(&mut self, now: Instant) -> bool {
        let Ok(step) = self.0.step(now);
        let (transport, service, shard) = self.0.parts();
        service.tick(now, transport, shard);
        !step.is_idle()
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.0.transport().next_deadline()
    }
}

struct Client {
    peer: Peer,
    socket: SocketHandle,
    unsent: Vec<u8>,
    received: Vec<u8>,
    finishes: bool,
}

impl Client {
    fn new(link: &Link, path: Path, now: Instant) -> Self {
        let address = IpCidr::new(IpAddress::v4(10, 0, 0, 1), 24);
        let mut peer = Peer::new(link.port(path), EthernetAddress([2, 0, 0, 0, 0, 1]), &[address], now);
        let socket = peer.add_socket(16 * 1024, 16 * 1024);
        peer.connect(socket, (SERVER, 80).into(), 4000).expect("the socket is closed");
        Self { peer, socket, unsent: Vec::new(), received: Vec::new(), finishes: false }
    }
}

impl Host for Client {
    fn poll(&mut self, now: Instant) -> bool {
        let mut acted = self.peer.poll(now);
        let socket = self.peer.socket(self.socket);
        if socket.can_send() && !self.unsent.is_empty() {
            let sent = socket.send_slice(&self.unsent).unwrap_or(0);
            self.unsent.drain(..sent);
            acted |= sent > 0;
        }
        if socket.can_recv() {
            let read = socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap_or_default();
            acted |= !read.is_empty();
            self.received.extend_from_slice(&read);
        }
        if self.finishes && self.unsent.is_empty() && socket.may_send() {
            socket.close();
            acted = true;
        }
        acted
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.peer.deadline()
    }
}
