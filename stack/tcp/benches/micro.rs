//! What a segment costs on its way through the core, without any device.
//!
//! `segment/N_connections` is one segment of 1 KiB that arrives in order on one of N connections, is taken by the
//! application and given back, and its part in the ACKs that leave. The connections take turns, so that each
//! segment finds the state of its connection where it has last been touched N segments ago. It has to be flat.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pmem::{Arena, Buffer, MEMORY, Options, Region};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl,
    TcpPacket, TcpRepr, TcpSeqNumber,
};
use stack::net::{Event, Net};
use stack::profile::NoLaps;
use stack::time::Instant;
use stack::{Config, Endpoint, FrameSink, RxChecksum, RxFrame, SinkFull, TxFrame};

const PAYLOAD_BYTES: usize = 1024;
const BURST: usize = 32;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HEADER_BYTES: usize = 54;

/// A frame as a network card hands it over: in a named buffer, its checksum verified.
struct Frame {
    bytes: Vec<u8>,
    arena: Arena,
}

impl RxFrame for Frame {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn checksum(&self) -> RxChecksum {
        RxChecksum::Good
    }

    fn claim(&mut self, at: usize) -> Option<(Buffer, usize)> {
        self.arena.take().map(|buffer| (buffer, at))
    }
}

/// Keeps the last frame's number, so that the handshake can answer it.
#[derive(Default)]
struct Sink {
    seq: u32,
    frames: u64,
}

impl FrameSink for Sink {
    fn send(&mut self, frame: TxFrame<'_>) -> Result<(), SinkFull> {
        let tcp = TcpPacket::new_unchecked(&frame.head[34..]);
        self.seq = tcp.seq_number().0 as u32;
        self.frames += 1;
        Ok(())
    }
}

struct Bench {
    endpoint: Endpoint,
    sink: Sink,
    now: Instant,
    peers: Vec<Peer>,
    next: usize,
    frames: Vec<Frame>,
}

/// A connection's other side.
#[derive(Clone, Copy)]
struct Peer {
    port: u16,
    seq: u32,
    ack: u32,
}

impl Bench {
    fn new(connections: usize) -> Self {
        let options = Options { size: Some(256 << 20), ..Options::default() };
        let region = Region::open(MEMORY, &options).expect("256 MiB of memory");
        let arena = region.into_shard().expect("a new store opens").arena().clone();
        let address = "10.0.0.2/8".parse().expect("an address");
        let now = Instant::from_secs(1);
        let mut config = Config::with_secret(SERVER_MAC, vec![address], [7; 16]);
        // Checksums of the ACKs are left to the device, as those of the segments are.
        (config.max_connections, config.syn_queue, config.tx_checksum_offload) = (16_384, 16, true);
        let mut endpoint = Endpoint::new(config, arena.clone(), now).expect("valid settings");
        endpoint.listen(SocketAddr::from((SERVER, 80)), 16).expect("a free port");
        let frames = (0..BURST).map(|_| Frame { bytes: Vec::new(), arena: arena.clone() }).collect();
        let peers = Vec::with_capacity(connections);
        let mut bench = Self { endpoint, sink: Sink::default(), now, peers, next: 0, frames };
        for port in 1..=connections as u16 {
            bench.open(port);
        }
        bench
    }

    fn open(&mut self, port: u16) {
        self.arrive(Peer { port, seq: 99, ack: 0 }, TcpControl::Syn, 0);
        self.endpoint.transmit(self.now, &mut self.sink);
        let peer = Peer { port, seq: 100, ack: self.sink.seq.wrapping_add(1) };
        self.arrive(peer, TcpControl::None, 0);
        let opened = self.endpoint.next_event();
        assert!(matches!(opened, Some(Event::Opened { .. })), "{opened:?}");
        self.peers.push(peer);
    }

    fn arrive(&mut self, peer: Peer, control: TcpControl, payload: usize) {
        let frame = &mut self.frames[0];
        write_frame(&mut frame.bytes, peer, control, payload);
        self.endpoint.receive(self.now, frame);
    }

    /// One burst: a segment for each of the next connections, and the application takes them all.
    fn burst(&mut self) {
        self.now += Duration::from_micros(10);
        for frame in &mut self.frames {
            let peer = self.peers[self.next];
            write_frame(&mut frame.bytes, peer, TcpControl::None, PAYLOAD_BYTES);
            self.peers[self.next].seq = peer.seq.wrapping_add(PAYLOAD_BYTES as u32);
            self.next = (self.next + 1) % self.peers.len();
        }
        self.endpoint.receive_burst(self.now, &mut self.frames[..], &mut NoLaps);
        let mut taken = 0;
        while let Some(event) = self.endpoint.next_event() {
            let Event::Readable { conn } = event else { panic!("{event:?}") };
            while self.endpoint.recv(conn).is_some() {
                taken += 1;
            }
        }
        assert_eq!(taken, BURST);
        self.endpoint.transmit(self.now, &mut self.sink);
    }
}

/// Only the header is written: the payload is the device's work, and no checksum covers it here.
fn write_frame(frame: &mut Vec<u8>, peer: Peer, control: TcpControl, payload: usize) {
    frame.resize(HEADER_BYTES + payload, 0);
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
    ethernet.set_src_addr(EthernetAddress(CLIENT_MAC));
    ethernet.set_dst_addr(EthernetAddress(SERVER_MAC));
    ethernet.set_ethertype(EthernetProtocol::Ipv4);
    let ip = Ipv4Repr {
        src_addr: CLIENT,
        dst_addr: SERVER,
        next_header: IpProtocol::Tcp,
        payload_len: 20 + payload,
        hop_limit: 64,
    };
    let mut packet = Ipv4Packet::new_unchecked(ethernet.payload_mut());
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    let tcp = TcpRepr {
        src_port: peer.port,
        dst_port: 80,
        control,
        seq_number: TcpSeqNumber(peer.seq as i32),
        ack_number: (peer.ack != 0).then_some(TcpSeqNumber(peer.ack as i32)),
        window_len: 0xffff,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    tcp.emit(&mut segment, &CLIENT.into(), &SERVER.into(), &ChecksumCapabilities::ignored());
}

fn segments(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segment");
    group.throughput(Throughput::Elements(BURST as u64));
    for connections in [1, 100, 10_000] {
        let mut bench = Bench::new(connections);
        // Each connection is touched before the clock runs, as in a server that has been up for a while.
        for _ in 0..connections.div_ceil(BURST) * 4 {
            bench.burst();
        }
        group.bench_function(BenchmarkId::from_parameter(format!("{connections}_connections")), |bencher| {
            bencher.iter(|| bench.burst());
        });
        let counters = bench.endpoint.counters();
        assert_eq!((counters.drops, counters.copied_bytes), (stack::Drops::default(), 0));
        println!("  {} segments in, {} frames out", counters.segments_in, bench.sink.frames);
    }
    group.finish();
}

criterion_group!(benches, segments);
criterion_main!(benches);
