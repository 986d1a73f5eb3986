//! Raw frames of the requests' sizes, for a server that sends each back: what the link and the device take.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use dpdk::{Mbuf, MbufBatch, Pool, PoolConfig, Port, PortConfig, RxQueue, TxQueue};
use hdrhistogram::Histogram;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr,
    UdpPacket, UdpRepr,
};

use super::cli::LoadArgs;
use super::device::{Clock, Device};
use super::pace::FIRST_REPLY;
use super::summary::{Errors, Summary, latencies};
use crate::wire::Wire;

/// Bytes before a segment's payload: Ethernet, IPv4, and TCP with its timestamps.
const HEADER_BYTES: usize = 14 + 20 + 32;
/// Payload of a full segment: 1500 bytes of MTU less the headers of IPv4 and TCP.
const SEGMENT_BYTES: usize = 1500 - 20 - 32;
/// A frame has at least room for its headers and its own number.
const MIN_FRAME_BYTES: usize = 60;
/// Where a frame's number stands: behind Ethernet, IPv4 and UDP.
const NUMBER_AT: usize = 14 + 20 + 8;
/// UDP's discard service (RFC 863), so that no host that is met by accident answers.
const PORT: u16 = 9;
/// A frame that takes longer was dropped.
const LOST_NS: u64 = 50_000_000;

/// As many requests on their way as a client of the stack would have, each as frames of the same sizes.
pub struct Frames {
    rx: RxQueue,
    tx: TxQueue,
    _port: Port,
    wire: Option<Box<Wire>>,
    pool: Pool,
    received: MbufBatch,
    waiting: MbufBatch,
    /// A request's frames, without their numbers.
    templates: Vec<Vec<u8>>,
    requests: Vec<Request>,
    clock: Clock,
    latencies_ns: Histogram<u64>,
    answered: u64,
    lost: u64,
    busy_ns: u64,
    ran_ns: u64,
}

/// One of the requests on their way.
#[derive(Clone, Copy, Default)]
struct Request {
    /// Frames carry it, so that those of a request that was given up are known.
    generation: u32,
    missing: u32,
    sent_ns: u64,
}

impl Frames {
    /// Starts the port, and makes a request's frames.
    pub fn new(device: &mut Device, args: &LoadArgs, request_bytes: usize) -> Result<Self> {
        let templates = templates(device.mac, args, request_bytes);
        let info = device.id.info()?;
        let in_flight = args.connections.get() as usize * templates.len();
        let config = PoolConfig {
            mbufs: u32::try_from(in_flight.max(1024) * 2 + 4096).context("too many frames on their way")?,
            cache: 128,
            socket: info.socket,
            ..PoolConfig::default()
        };
        let pool = Pool::dram(device.eal, "requests", &config)?;
        let mut port = Port::start(device.id, &PortConfig::default(), std::slice::from_ref(&pool))?;
        let (rx, tx) = (port.rx_queue(0)?, port.tx_queue(0)?);
        device.wait_for_link(&port)?;
        let wire = device.wire(&port)?;
        Ok(Self {
            rx,
            tx,
            _port: port,
            wire,
            pool,
            received: MbufBatch::new(),
            waiting: MbufBatch::new(),
            templates,
            requests: vec![Request::default(); args.connections.get() as usize],
            clock: device.clock(),
            latencies_ns: latencies(),
            answered: 0,
            lost: 0,
            busy_ns: 0,
            ran_ns: 0,
        })
    }

    /// Keeps the requests on their way for some time, and if there was no reply by then, until there is one.
    pub fn run(&mut self, duration: Duration, stop: &AtomicBool) {
        let begin_ns = self.clock.now_ns();
        let end_ns = begin_ns + duration.as_nanos() as u64;
        let mut now_ns = begin_ns;
        let mut looked_ns = begin_ns;
        for index in 0..self.requests.len() {
            if self.requests[index].missing == 0 {
                self.send(index);
            }
        }
        let patience_ns = end_ns + FIRST_REPLY.as_nanos() as u64;
        let is_over =
            |answered: u64, now_ns: u64| now_ns >= end_ns && (answered > 0 || now_ns >= patience_ns);
        while !is_over(self.answered, now_ns) && !stop.load(Ordering::Relaxed) {
            let worked = self.step();
            if now_ns - looked_ns > LOST_NS {
                self.send_lost(now_ns);
                looked_ns = now_ns;
            }
            let after_ns = self.clock.now_ns();
            if worked {
                self.busy_ns += after_ns - now_ns;
            }
            now_ns = after_ns;
        }
        self.ran_ns += now_ns - begin_ns;
    }

    /// Forgets what was counted so far.
    pub fn reset(&mut self) {
        self.latencies_ns.reset();
        (self.answered, self.lost, self.busy_ns, self.ran_ns) = (0, 0, 0, 0);
    }

    /// What was counted.
    pub fn summary(&self) -> Summary {
        Summary::new(
            &self.latencies_ns,
            self.answered,
            self.ran_ns,
            self.busy_ns,
            self.lost,
            Errors::default(),
        )
    }

    fn step(&mut self) -> bool {
        if let Some(wire) = &mut self.wire {
            wire.carry_to_client();
        }
        let count = self.rx.burst(&mut self.received);
        for at in 0..count {
            let arrived = self.received.iter().nth(at).and_then(|mbuf| number(mbuf.bytes()));
            if let Some((index, generation)) = arrived {
                self.arrived(index, generation);
            }
        }
        self.received.clear();
        let sent = self.flush();
        count > 0 || sent
    }

    fn arrived(&mut self, index: usize, generation: u32) {
        let Some(request) = self.requests.get_mut(index) else { return };
        if request.generation != generation || request.missing == 0 {
            return;
        }
        request.missing -= 1;
        if request.missing == 0 {
            self.answered += 1;
            self.latencies_ns.saturating_record(self.clock.now_ns() - request.sent_ns);
            self.send(index);
        }
    }

    /// Sends a request's frames.
    fn send(&mut self, index: usize) {
        let request = &mut self.requests[index];
        request.generation = request.generation.wrapping_add(1);
        request.missing = self.templates.len() as u32;
        request.sent_ns = self.clock.now_ns();
        let generation = request.generation;
        for at in 0..self.templates.len() {
            if self.waiting.room() == 0 {
                self.flush();
            }
            // What finds no room now counts as lost, and is sent again.
            let Some(mut mbuf) = self.pool.alloc() else { return };
            if !fill(&mut mbuf, &self.templates[at], index as u32, generation) {
                return;
            }
            if self.waiting.push(mbuf).is_err() {
                return;
            }
        }
    }

    /// Sends requests again that had a frame dropped.
    fn send_lost(&mut self, now_ns: u64) {
        for index in 0..self.requests.len() {
            if self.requests[index].sent_ns + LOST_NS < now_ns {
                self.lost += u64::from(self.requests[index].missing);
                self.send(index);
            }
        }
    }

    fn flush(&mut self) -> bool {
        let has_sent = !self.waiting.is_empty() && self.tx.burst(&mut self.waiting) > 0;
        if let Some(wire) = &mut self.wire {
            wire.carry_to_server();
        }
        has_sent
    }
}

/// Copies a frame into an mbuf, and numbers it.
fn fill(mbuf: &mut Mbuf, frame: &[u8], index: u32, generation: u32) -> bool {
    let Some(bytes) = mbuf.append(frame.len()) else { return false };
    bytes.copy_from_slice(frame);
    bytes[NUMBER_AT..NUMBER_AT + 4].copy_from_slice(&index.to_be_bytes());
    bytes[NUMBER_AT + 4..NUMBER_AT + 8].copy_from_slice(&generation.to_be_bytes());
    true
}

/// The request and its generation that a frame which came back belongs to.
fn number(frame: &[u8]) -> Option<(usize, u32)> {
    let is_ours =
        frame.get(12..14) == Some(&[0x08, 0x00]) && frame.get(23) == Some(&u8::from(IpProtocol::Udp));
    let number = frame.get(NUMBER_AT..NUMBER_AT + 8)?;
    let half = |at: usize| u32::from_be_bytes([number[at], number[at + 1], number[at + 2], number[at + 3]]);
    is_ours.then(|| (half(0) as usize, half(4)))
}

/// The frames of a request: as long as the segments that TCP would send.
fn templates(mac: [u8; 6], args: &LoadArgs, request_bytes: usize) -> Vec<Vec<u8>> {
    let lengths = (0..request_bytes.div_ceil(SEGMENT_BYTES))
        .map(|at| (request_bytes - at * SEGMENT_BYTES).min(SEGMENT_BYTES));
    lengths
        .map(|payload| {
            let from = (EthernetAddress(mac), args.ip.address());
            frame(from, (args.target_mac, *args.target.ip()), (HEADER_BYTES + payload).max(MIN_FRAME_BYTES))
        })
        .collect()
}

/// A UDP datagram in a frame of `length` bytes.
fn frame(
    (from_mac, from): (EthernetAddress, Ipv4Address),
    (to_mac, to): (EthernetAddress, Ipv4Address),
    length: usize,
) -> Vec<u8> {
    let payload = length - NUMBER_AT;
    let udp = UdpRepr { src_port: PORT, dst_port: PORT };
    let ip = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + payload,
        hop_limit: 64,
    };
    // Swapped addresses leave the sums as they are; UDP's is left out (RFC 768), since the number differs.
    let checksums = ChecksumCapabilities::default();
    let mut bytes = vec![0; length];
    let mut ethernet = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.set_src_addr(from_mac);
    ethernet.set_dst_addr(to_mac);
    ethernet.set_ethertype(EthernetProtocol::Ipv4);
    let mut packet = Ipv4Packet::new_unchecked(ethernet.payload_mut());
    ip.emit(&mut packet, &checksums);
    let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
    datagram.set_src_port(udp.src_port);
    datagram.set_dst_port(udp.dst_port);
    datagram.set_len((udp.header_len() + payload) as u16);
    datagram.set_checksum(0);
    bytes
}
