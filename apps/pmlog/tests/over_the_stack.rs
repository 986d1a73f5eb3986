//! The log server on the userspace stack, over a simulated link that loses, reorders, doubles and damages
//! frames, with smoltcp's TCP as its clients. `PMLOG_SEED=n` repeats one run.

mod common;

use std::collections::VecDeque;
use std::time::Duration;

use common::{Lab, Response, body, post, request, responses};
use pmlog::service::{LogService, ServiceConfig};
use smoltcp::iface::SocketHandle;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use stack::Config;
use stack::net::Transport as _;
use stack::server::Server;
use stack::sim::{Clock, Host, Link, Path, Peer, SimConfig, SimTransport};
use stack::time::Instant;
use stack::transport::OverEndpoint as _;

const CLIENTS: u8 = 4;
const APPENDS: usize = 30;
const SERVER: [u8; 4] = [10, 0, 0, 100];

struct LogHost(Server<SimTransport, LogService>);

impl Host for LogHost {
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

/// A client that sends all it has, and reads until the server ends the connection.
struct Client {
    peer: Peer,
    socket: SocketHandle,
    unsent: VecDeque<u8>,
    received: Vec<u8>,
    /// It reads no more than this at a time.
    read_bytes: usize,
}

impl Client {
    fn new(link: &Link, path: Path, number: u8, now: Instant) -> Self {
        let address = IpCidr::new(IpAddress::v4(10, 0, 0, number), 24);
        let mut peer = Peer::new(link.port(path), EthernetAddress([2, 0, 0, 0, 0, number]), &[address], now);
        let socket = peer.add_socket(16 * 1024, 16 * 1024);
        Self { peer, socket, unsent: VecDeque::new(), received: Vec::new(), read_bytes: usize::MAX }
    }

    fn begin(&mut self, requests: Vec<u8>, local_port: u16) {
        (self.unsent, self.received) = (requests.into(), Vec::new());
        self.peer.connect(self.socket, (SERVER, 80).into(), local_port).expect("the socket is closed");
    }

    fn is_done(&mut self) -> bool {
        !self.peer.socket(self.socket).is_open()
    }
}

impl Host for Client {
    fn poll(&mut self, now: Instant) -> bool {
        let mut acted = self.peer.poll(now);
        let socket = self.peer.socket(self.socket);
        if socket.can_send() && !self.unsent.is_empty() {
            let sent = socket.send_slice(self.unsent.make_contiguous()).expect("an open socket");
            self.unsent.drain(..sent);
            acted |= sent > 0;
        }
        if socket.can_recv() {
            let limit = self.read_bytes;
            let read = socket.recv(|bytes| {
                let taken = bytes.len().min(limit);
                (taken, bytes[..taken].to_vec())
            });
            let read = read.expect("there is something to read");
            acted |= !read.is_empty();
            self.received.extend_from_slice(&read);
        } else if !socket.may_recv() && socket.is_open() && self.unsent.is_empty() {
            socket.close();
        }
        acted
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.peer.deadline()
    }
}

/// Appends with a body of each kind, the last of which ends the connection.
fn appends(seed: u64, client: u64) -> (Vec<Vec<u8>>, Vec<u8>) {
    let lengths = body(seed * 100 + client, 2 * APPENDS);
    let bodies: Vec<_> = lengths
        .chunks(2)
        .enumerate()
        .map(|(at, pair)| {
            let len = if pair[0] < 40 { 60 * usize::from(pair[1]) } else { 5 * usize::from(pair[1]) };
            body(seed * 10_000 + client * 100 + at as u64, len)
        })
        .collect();
    let mut requests: Vec<u8> = bodies.iter().flat_map(|body| post(body)).collect();
    requests.extend_from_slice(b"GET /health HTTP/1.1\r\nHost: log\r\nConnection: close\r\n\r\n");
    (bodies, requests)
}

fn run_until_done(clock: &mut Clock, server: &mut LogHost, clients: &mut [Client]) {
    let limit = clock.now() + Duration::from_secs(600);
    while !clients.iter_mut().all(Client::is_done) {
        let mut hosts: Vec<&mut dyn Host> = vec![&mut *server];
        hosts.extend(clients.iter_mut().map(|client| client as &mut dyn Host));
        assert!(clock.step(&mut hosts, limit), "not done after 600 s of virtual time");
    }
}

fn statuses(replies: &[Response]) -> Vec<u16> {
    replies.iter().map(|reply| reply.status).collect()
}

fn run(seed: u64) {
    let path = Path { loss: 0.02, duplication: 0.02, reordering: 0.05, corruption: 0.01, ..Path::default() };
    let now = Instant::from_secs(1000);
    let link = Link::new(seed);
    let Lab { shard, .. } = Lab::new(16 << 20, ServiceConfig::default());
    let free = shard.arena().free_buffers();
    let address = IpCidr::new(IpAddress::Ipv4(SERVER.into()), 24);
    let config = Config::with_secret([2, 0, 0, 0, 0, 100], vec![address], [seed as u8; 16]);
    let rings = SimConfig::default();
    let mut transport =
        SimTransport::new(link.port(path), config, rings, shard.arena().clone(), now).expect("a host");
    transport.endpoint_mut().listen((SERVER, 80).into(), 16).expect("a free port");
    let service = LogService::new(ServiceConfig::default(), now);
    let mut server = LogHost(Server::new(transport, service, shard));
    let mut clients: Vec<_> = (1..=CLIENTS).map(|number| Client::new(&link, path, number, now)).collect();
    let mut clock = Clock::new(&link, now);

    // Each client appends its records in one pipeline.
    let all: Vec<_> = (0..clients.len()).map(|at| appends(seed, at as u64)).collect();
    for (client, (_, requests)) in clients.iter_mut().zip(&all) {
        client.begin(requests.clone(), 5000);
    }
    run_until_done(&mut clock, &mut server, &mut clients);

    // Then each fetches its own, slowly.
    let mut stored = Vec::new();
    for (client, (bodies, _)) in clients.iter_mut().zip(&all) {
        let replies = responses(&client.received);
        assert_eq!(statuses(&replies), [200; APPENDS + 1]);
        let mut requests = Vec::new();
        for (reply, body) in replies.iter().zip(bodies) {
            assert_eq!(reply.json()["length"], body.len());
            let seq = reply.json()["seq"].as_u64().expect("a number");
            requests.extend(request("GET", &format!("/records/{seq}")));
            stored.push((seq, body.clone()));
        }
        requests.extend_from_slice(b"GET /records HTTP/1.1\r\nHost: log\r\nConnection: close\r\n\r\n");
        client.read_bytes = 500;
        client.begin(requests, 5001);
    }
    run_until_done(&mut clock, &mut server, &mut clients);
    for (client, (bodies, _)) in clients.iter().zip(&all) {
        let replies = responses(&client.received);
        assert_eq!(statuses(&replies), [200; APPENDS + 1]);
        for (reply, body) in replies.iter().zip(bodies) {
            assert!(reply.body == *body, "a record came back changed");
        }
        assert_eq!(replies[APPENDS].json().as_array().map(Vec::len), Some(100));
    }

    // The store agrees, and what is trimmed is free again.
    let (_, service, shard) = server.0.parts();
    assert_eq!(service.counters().appended_records, stored.len() as u64);
    for (seq, body) in &stored {
        assert!(shard.record(*seq).expect("the record").to_vec() == *body);
    }
    let next = shard.next_seq();
    assert_eq!(shard.trim(next).expect("a trim").records, stored.len() as u64);
    clock.run_until(&mut [&mut server], now + Duration::from_secs(10_000));
    let (_, service, shard) = server.0.parts();
    assert_eq!(service.counters().connections, 0);
    // The receive ring holds its own, and the log the buffer that short records share.
    assert!(free - shard.arena().free_buffers() <= SimConfig::default().rx_ring + 1, "buffers were lost");
}

#[test]
fn records_survive_a_bad_link() {
    let seeds = match std::env::var("PMLOG_SEED") {
        Ok(seed) => seed.parse().map(|seed| seed..seed + 1).expect("PMLOG_SEED is a number"),
        Err(_) => 0..12,
    };
    for seed in seeds {
        println!("PMLOG_SEED={seed}");
        run(seed);
    }
}
