//! The stack on a port of the simulated link, with a device's rings of buffers between them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use pmem::{Arena, Buffer};
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, checksum,
};
use stack_net::doze::Waker;
use stack_net::profile::NoLaps;
use stack_net::time::Instant;
use thiserror::Error;

use super::cores::{self, CorePort, Parcel};
use super::{Host, Port};
use crate::net::{Event, OverEndpoint, Transport};
use crate::{
    Config, ConfigError, CoreShare, Endpoint, FlowDirectory, FrameSink, RxBurst, RxChecksum, RxFrame, Share,
    SinkFull, TxChecksum, TxFrame,
};

/// What stands before a frame in the buffer where it arrives, as DPDK has it (`RTE_PKTMBUF_HEADROOM`).
const HEADROOM_BYTES: usize = 128;

/// Where the checksum stands in a TCP header (RFC 9293, section 3.1).
const TCP_CHECKSUM_AT: usize = 16;

/// The rings of the simulated device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimConfig {
    /// Buffers that wait for frames.
    pub rx_ring: usize,
    /// Most frames taken in by one call.
    pub rx_burst: usize,
    /// Most frames sent by one call; the stack is refused more.
    pub tx_burst: usize,
    /// Whether the device looks at the TCP checksums of what it receives, and says so.
    pub rx_checksum: bool,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self { rx_ring: 64, rx_burst: 32, tx_burst: 64, rx_checksum: false }
    }
}

/// Why a simulated host cannot be made.
#[derive(Debug, Error)]
pub enum SimError {
    /// The stack's configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The arena cannot even fill the receive ring.
    #[error(
        "the receive ring needs {needed} buffers, and the arena has {free} free ones; make the arena larger"
    )]
    Arena {
        /// Buffers of the ring.
        needed: usize,
        /// Buffers that are free.
        free: usize,
    },
}

/// What went through the rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounters {
    /// Frames received.
    pub received: u64,
    /// Frames lost since they do not fit a buffer.
    pub too_long: u64,
    /// Buffers swapped: the stack kept one, and a spare took its place in the ring.
    pub swapped: u64,
    /// Buffers that could not be swapped since the arena was empty; their payload was lost.
    pub no_spare: u64,
    /// Frames sent.
    pub sent: u64,
    /// Times when the stack had more to send than one call takes.
    pub refused: u64,
}

/// One host: the stack, its arena, and a device with rings on a port of the link.
#[derive(Debug)]
pub struct SimTransport {
    endpoint: Endpoint,
    device: Device,
}

#[derive(Debug)]
struct Device {
    core_port: CorePort,
    arena: Arena,
    ring: VecDeque<Buffer>,
    config: SimConfig,
    counters: RingCounters,
}

impl SimTransport {
    /// A host on `port`, whose frames arrive in buffers of `arena`.
    ///
    /// # Errors
    /// [`SimError`].
    pub fn new(
        port: Port,
        config: Config,
        rings: SimConfig,
        arena: Arena,
        now: Instant,
    ) -> Result<Self, SimError> {
        Self::at(cores::core_ports(port, 1, |_| 0).swap_remove(0), config, rings, arena, now)
    }

    /// A host of several cores on `port`, one for each of `arenas`. `core_of` says to which of them the device gives
    /// a frame. The configuration's own core is left out of account.
    ///
    /// # Errors
    /// [`SimError`].
    pub fn cores(
        port: Port,
        config: &Config,
        rings: SimConfig,
        arenas: Vec<Arena>,
        core_of: impl FnMut(&[u8]) -> usize + 'static,
        now: Instant,
    ) -> Result<Vec<Self>, SimError> {
        let count = arenas.len() as u16;
        let core_ports = cores::core_ports(port, arenas.len(), core_of);
        let cores = (0..count).zip(core_ports.into_iter().zip(arenas));
        let flows = config.max_connections + config.syn_queue + config.max_time_wait;
        let directory = FlowDirectory::new(&config.isn_secret, flows * usize::from(count));
        let core = |(index, (core_port, arena))| {
            let config = Config { core: CoreShare { index, count }, ..config.clone() };
            let mut core = Self::at(core_port, config, rings, arena, now)?;
            core.endpoint.share_flows(directory.clone());
            Ok(core)
        };
        cores.map(core).collect()
    }

    fn at(
        core_port: CorePort,
        config: Config,
        rings: SimConfig,
        arena: Arena,
        now: Instant,
    ) -> Result<Self, SimError> {
        let free = arena.free_buffers();
        let ring: VecDeque<_> = std::iter::from_fn(|| arena.take()).take(rings.rx_ring).collect();
        if ring.len() < rings.rx_ring {
            return Err(SimError::Arena { needed: rings.rx_ring, free });
        }
        let endpoint = Endpoint::new(config, arena.clone(), now)?;
        let device = Device { core_port, arena, ring, config: rings, counters: RingCounters::default() };
        Ok(Self { endpoint, device })
    }

    /// The buffers.
    pub fn arena(&self) -> &Arena {
        &self.device.arena
    }

    /// The host's place on the link.
    pub fn port(&self) -> &Port {
        self.device.core_port.port()
    }

    /// What went through the rings.
    pub fn counters(&self) -> RingCounters {
        self.device.counters
    }
}

impl OverEndpoint for SimTransport {
    type Endpoint = Endpoint;

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn endpoint_mut(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }
}

impl Transport for SimTransport {
    type Error = Infallible;

    fn receive(&mut self, now: Instant) -> Result<usize, Infallible> {
        let mut received = 0;
        let most = self.device.config.rx_burst;
        while received < most
            && let Some(parcel) = self.device.core_port.receive(now)
        {
            received += 1;
            let mut burst = Burst { device: &mut self.device, frames: Vec::new() };
            let mut news = None;
            match parcel {
                Parcel::Frame { bytes, asked } => burst.arrive(bytes, asked),
                Parcel::News(bytes) => news = Some(bytes),
            }
            // As many as follow, up to what else has come.
            while news.is_none()
                && received < most
                && burst.has_room()
                && let Some(parcel) = burst.device.core_port.receive(now)
            {
                received += 1;
                match parcel {
                    Parcel::Frame { bytes, asked } => burst.arrive(bytes, asked),
                    Parcel::News(bytes) => news = Some(bytes),
                }
            }
            self.endpoint.receive_burst(now, &mut burst, &mut NoLaps);
            burst.finish();
            if let Some(bytes) = news {
                self.endpoint.learn(now, &bytes);
            }
        }
        Ok(received)
    }

    fn next_event(&mut self) -> Option<Event> {
        self.endpoint.next_event()
    }

    fn transmit(&mut self, now: Instant) -> Result<usize, Infallible> {
        let before = self.device.counters.sent;
        let left = self.device.config.tx_burst;
        let Device { core_port, counters, .. } = &mut self.device;
        self.endpoint.transmit(now, &mut Sender { port: core_port.port(), counters, now, left });
        Ok((self.device.counters.sent - before) as usize)
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.endpoint.next_deadline()
    }

    /// Not at all: who moves virtual time on is the link's [clock](super::Clock).
    fn wait(&mut self, _: Duration) -> Result<(), Infallible> {
        Ok(())
    }

    fn waker(&mut self) -> Result<Option<Waker>, Infallible> {
        Ok(None)
    }
}

/// Frames are received and sent; what happened waits in [`Transport::next_event`].
impl Host for SimTransport {
    fn poll(&mut self, now: Instant) -> bool {
        let Ok(received) = self.receive(now);
        let Ok(sent) = self.transmit(now);
        received + sent > 0
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.endpoint.next_transmit()
    }
}

/// Frames in buffers of the ring, which go back to it, or spares in their places.
struct Burst<'a> {
    device: &'a mut Device,
    frames: Vec<Arrived>,
}

struct Arrived {
    bytes: Vec<u8>,
    /// Cores that have had it before.
    asked: usize,
    /// Where it lies; once that is claimed, the spare that takes its place.
    buffer: Buffer,
    claimed: bool,
}

impl Burst<'_> {
    /// Whether the ring has a buffer for one more: each comes back only after the burst.
    fn has_room(&self) -> bool {
        !self.device.ring.is_empty()
    }

    /// Puts a frame into the ring's next buffer.
    fn arrive(&mut self, bytes: Vec<u8>, asked: usize) {
        let Some(mut buffer) = self.device.ring.pop_front() else { return };
        self.device.counters.received += 1;
        if buffer.arrive(HEADROOM_BYTES, &bytes) {
            self.frames.push(Arrived { bytes, asked, buffer, claimed: false });
        } else {
            self.device.counters.too_long += 1;
            self.device.ring.push_back(buffer);
        }
    }

    fn finish(self) {
        self.device.ring.extend(self.frames.into_iter().map(|frame| frame.buffer));
    }
}

impl RxBurst for Burst<'_> {
    type Frame<'a>
        = RingFrame<'a>
    where
        Self: 'a;

    fn len(&self) -> usize {
        self.frames.len()
    }

    fn head(&self, at: usize) -> &[u8] {
        &self.frames[at].bytes
    }

    fn frame(&mut self, at: usize) -> Option<RingFrame<'_>> {
        let Device { arena, counters, config, .. } = &mut *self.device;
        Some(RingFrame {
            arrived: &mut self.frames[at],
            looks_at_checksum: config.rx_checksum,
            arena,
            counters,
        })
    }

    fn is_last(&self, at: usize) -> bool {
        self.device.core_port.is_last(self.frames[at].asked)
    }

    fn share(&mut self, at: usize, share: Share, whole: Option<&[u8]>) {
        let Arrived { bytes, asked, .. } = &mut self.frames[at];
        let bytes = whole.map_or_else(|| std::mem::take(bytes), <[u8]>::to_vec);
        self.device.core_port.pass_on(share, bytes, *asked);
    }
}

struct RingFrame<'a> {
    arrived: &'a mut Arrived,
    looks_at_checksum: bool,
    arena: &'a Arena,
    counters: &'a mut RingCounters,
}

impl RxFrame for RingFrame<'_> {
    fn bytes(&self) -> &[u8] {
        &self.arrived.bytes
    }

    fn checksum(&self) -> RxChecksum {
        if self.looks_at_checksum { look_at_checksum(&self.arrived.bytes) } else { RxChecksum::Unknown }
    }

    fn claim(&mut self, at: usize) -> Option<(Buffer, usize)> {
        assert!(!self.arrived.claimed, "a frame's buffer is claimed once");
        let Some(spare) = self.arena.take() else {
            self.counters.no_spare += 1;
            return None;
        };
        self.arrived.claimed = true;
        self.counters.swapped += 1;
        Some((std::mem::replace(&mut self.arrived.buffer, spare), HEADROOM_BYTES + at))
    }
}

struct Sender<'a> {
    port: &'a Port,
    counters: &'a mut RingCounters,
    now: Instant,
    left: usize,
}

impl FrameSink for Sender<'_> {
    fn send(&mut self, frame: TxFrame<'_>) -> Result<(), SinkFull> {
        if self.left == 0 {
            self.counters.refused += 1;
            return Err(SinkFull);
        }
        self.left -= 1;
        let mut bytes = frame.head.to_vec();
        for extent in frame.payload {
            bytes.extend_from_slice(extent.bytes());
        }
        let TxChecksum::Tcp { ipv6, l2_bytes, l3_bytes, l4_bytes } = frame.checksum else {
            assert_eq!(
                frame.segment_bytes, None,
                "a device needs to know where the headers of what it cuts are"
            );
            self.put(bytes);
            return Ok(());
        };
        let l4_at = l2_bytes + l3_bytes;
        let Some(segment_bytes) = frame.segment_bytes else {
            fill_in_checksum(&mut bytes[l4_at..]);
            self.put(bytes);
            return Ok(());
        };
        let (headers, payload) = bytes.split_at(l4_at + l4_bytes);
        let count = payload.chunks(segment_bytes.get().into()).len();
        for (index, part) in payload.chunks(segment_bytes.get().into()).enumerate() {
            let mut cut = [headers, part].concat();
            number(
                &mut cut,
                ipv6,
                l2_bytes,
                l4_at,
                index * usize::from(segment_bytes.get()),
                index + 1 == count,
            );
            self.put(cut);
        }
        Ok(())
    }
}

impl Sender<'_> {
    fn put(&mut self, frame: Vec<u8>) {
        self.counters.sent += 1;
        self.port.send(self.now, frame);
    }
}

/// What a device does to the headers of a frame that it has cut off another, so many bytes behind its first.
fn number(frame: &mut [u8], ipv6: bool, l3_at: usize, l4_at: usize, behind: usize, is_last: bool) {
    let (ip, tcp) = frame[l3_at..].split_at_mut(l4_at - l3_at);
    let mut segment = TcpPacket::new_unchecked(&mut *tcp);
    segment.set_seq_number(segment.seq_number() + behind);
    if !is_last {
        segment.set_fin(false);
        segment.set_psh(false);
    }
    let (from, to) = if ipv6 {
        let mut ip = Ipv6Packet::new_unchecked(ip);
        ip.set_payload_len(tcp.len() as u16);
        (ip.src_addr().into(), ip.dst_addr().into())
    } else {
        let mut packet = Ipv4Packet::new_unchecked(&mut *ip);
        packet.set_total_len((packet.header_len() as usize + tcp.len()) as u16);
        packet.fill_checksum();
        (packet.src_addr().into(), packet.dst_addr().into())
    };
    TcpPacket::new_unchecked(tcp).fill_checksum(&from, &to);
}

/// What a device says of the checksums of IP and TCP: nothing about what it does not understand.
fn look_at_checksum(frame: &[u8]) -> RxChecksum {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return RxChecksum::Unknown };
    let verified = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let Ok(ip) = Ipv4Packet::new_checked(ethernet.payload()) else { return RxChecksum::Unknown };
            if ip.next_header() != IpProtocol::Tcp || ip.more_frags() || ip.frag_offset() > 0 {
                return RxChecksum::Unknown;
            }
            let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
            ip.verify_checksum() && TcpPacket::new_unchecked(ip.payload()).verify_checksum(&from, &to)
        }
        EthernetProtocol::Ipv6 => {
            let Ok(ip) = Ipv6Packet::new_checked(ethernet.payload()) else { return RxChecksum::Unknown };
            if ip.next_header() != IpProtocol::Tcp {
                return RxChecksum::Unknown;
            }
            let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
            TcpPacket::new_unchecked(ip.payload()).verify_checksum(&from, &to)
        }
        _ => return RxChecksum::Unknown,
    };
    if verified { RxChecksum::Good } else { RxChecksum::Bad }
}

/// What a device does that computes checksums: the field holds the sum over the pseudo header already.
fn fill_in_checksum(tcp: &mut [u8]) {
    let sum = checksum::data(tcp);
    tcp[TCP_CHECKSUM_AT..TCP_CHECKSUM_AT + 2].copy_from_slice(&(!sum).to_be_bytes());
}
