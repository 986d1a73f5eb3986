//! The stack on a DPDK port: frames arrive in named buffers, and named buffers are sent from where they lie.

mod receive;
#[cfg(test)]
mod tests;

use std::convert::Infallible;

use dpdk::{
    Completions, CompletionsError, Eal, ExternalArea, ExternalPool, ExternalPoolConfig, IpVersion, MbufBatch,
    Offloads, Pool, PoolConfig, PoolError, Port, PortConfig, PortError, PortId, RxQueue, TxChecksums,
    TxQueue,
};
use pmem::{Arena, Extent};
use smoltcp::time::Instant;

use super::OverEndpoint;
use crate::net::{Event, Transport};
use crate::{Config, ConfigError, Endpoint, FrameSink, SinkFull, TxChecksum, TxFrame};
use receive::{Buffers, Frame, spare};

/// Mbufs that a pool's caches may hold back.
const POOL_CACHE: u32 = 128;

/// Extents behind one header; a frame of more pieces is sent with all of them copied into one segment, and so is
/// one with a piece that the device does not see as one.
const MAX_SEGMENTS: usize = 8;

/// The rings of the port, and what goes into them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DpdkConfig {
    /// Length of the receive queue, in packets.
    pub rx_descriptors: u16,
    /// Length of the transmit queue, in packets.
    pub tx_descriptors: u16,
    /// Have headers put into DRAM, where the device can tell them from payload, which alone then goes into named
    /// buffers. [`PortInfo::header_split`](dpdk::PortInfo::header_split) tells whether it can.
    pub header_split: bool,
}

impl Default for DpdkConfig {
    fn default() -> Self {
        Self { rx_descriptors: 1024, tx_descriptors: 1024, header_split: false }
    }
}

/// Why the stack does not run on a port.
#[derive(Debug, thiserror::Error)]
pub enum DpdkError {
    /// The stack's settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The port does not do as it was told.
    #[error(transparent)]
    Port(#[from] PortError),
    /// No pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// No places for payload that is being sent.
    #[error(transparent)]
    Completions(#[from] CompletionsError),
    /// Too little is free to receive anything.
    #[error(
        "the receive queue needs {needed} buffers, and of the arena's {buffers} only {free} are free; \
         trim the log, or make a larger store"
    )]
    Arena {
        /// Buffers that the queue and its pool take.
        needed: usize,
        /// Buffers that are free.
        free: usize,
        /// Buffers that there are.
        buffers: usize,
    },
}

/// What went through the port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DpdkCounters {
    /// Frames received.
    pub received: u64,
    /// Buffers swapped: the stack kept one, and a spare took its place.
    pub swapped: u64,
    /// Payload lost since no buffer was free.
    pub no_spare: u64,
    /// Frames lost since they were longer than a buffer.
    pub misplaced: u64,
    /// Frames whose payload was copied into a named buffer: the device had put it elsewhere, or had split the frame
    /// at another place than behind TCP's header, or without a look at the checksum.
    pub copied_frames: u64,
    /// Frames handed to the device.
    pub sent: u64,
    /// Payload bytes copied since a frame had too many pieces, or one that the device does not see as one.
    pub copied_bytes: u64,
}

/// The connections of one core over one pair of a port's queues.
#[derive(Debug)]
pub struct DpdkTransport {
    endpoint: Endpoint,
    rx: RxQueue,
    received: MbufBatch,
    buffers: Buffers,
    sender: Sender,
    port: Port,
}

/// Where frames leave.
struct Sender {
    tx: TxQueue,
    heads: Pool,
    waiting: MbufBatch,
    completions: Completions<Extent>,
    area: ExternalArea,
    sent: u64,
    copied_bytes: u64,
}

impl DpdkTransport {
    /// Starts the port `id` with one queue each way over the buffers of `arena`, which lies in `area`: registered,
    /// and mapped for the port's DMA. The host's addresses and limits are those of `config`.
    ///
    /// # Errors
    /// [`DpdkError`]; nothing was sent. The arena's buffers that were meant for the port are lost to this process.
    pub fn new(
        eal: Eal,
        id: PortId,
        mut config: Config,
        rings: DpdkConfig,
        area: ExternalArea,
        arena: Arena,
        now: Instant,
    ) -> Result<Self, DpdkError> {
        let info = id.info()?;
        config.tx_checksum_offload = info.offloads.contains(Offloads::TX_TCP_CHECKSUM);
        let mtu = config.mtu;
        let endpoint = Endpoint::new(config, arena.clone(), now)?;

        // What the device holds, a burst in our hands, and what the pool's cache keeps back.
        let posted = usize::from(rings.rx_descriptors) * info.buffers_per_descriptor;
        let needed = posted + MbufBatch::CAPACITY + 2 * POOL_CACHE as usize;
        let (free, total) = (arena.free_buffers(), arena.buffers());
        if free <= needed {
            return Err(DpdkError::Arena { needed, free, buffers: total });
        }
        // At most one for each seam between pieces; and none at all with virtual addresses, which have no seams.
        let mut scattered = Vec::with_capacity(area.contiguous_pieces());
        let spares = std::iter::from_fn(|| spare(&arena, area, &mut scattered));
        let lent: Vec<_> = spares.take(needed).collect();
        if lent.len() < needed {
            return Err(DpdkError::Arena { needed, free: lent.len(), buffers: total });
        }
        let receive_config = ExternalPoolConfig { cache: POOL_CACHE, socket: info.socket };
        let pool = ExternalPool::new(eal, &format!("rx{}", info.name), area, lent, &receive_config)?;
        // A device that splits posts a buffer for headers with each one for payload.
        let headers = if rings.header_split && info.header_split.is_ok() {
            let config = PoolConfig {
                mbufs: needed as u32,
                cache: POOL_CACHE,
                socket: info.socket,
                ..PoolConfig::default()
            };
            Some(Pool::dram(eal, &format!("hd{}", info.name), &config)?)
        } else {
            None
        };
        let in_flight = u32::from(rings.tx_descriptors) + MbufBatch::CAPACITY as u32;
        let head_config = PoolConfig {
            mbufs: 2 * in_flight + 2 * POOL_CACHE,
            cache: POOL_CACHE,
            socket: info.socket,
            ..PoolConfig::default()
        };
        let heads = Pool::dram(eal, &format!("tx{}", info.name), &head_config)?;
        let completions = Completions::new(eal, &format!("pm{}", info.name), 4 * in_flight, info.socket)?;
        let completions = completions.within(area);

        let port_config = PortConfig {
            rx_descriptors: rings.rx_descriptors,
            tx_descriptors: rings.tx_descriptors,
            mtu: mtu as u16,
            headers,
            ..PortConfig::default()
        };
        let mut port = Port::start(id, &port_config, &[(*pool).clone()])?;
        let (rx, tx) = (port.rx_queue(0)?, port.tx_queue(0)?);
        Ok(Self {
            endpoint,
            rx,
            received: MbufBatch::new(),
            buffers: Buffers {
                pool,
                area,
                scattered,
                gathered: vec![0; arena.buffer_bytes()].into(),
                arena,
                counters: DpdkCounters::default(),
            },
            sender: Sender {
                tx,
                heads,
                waiting: MbufBatch::new(),
                completions,
                area,
                sent: 0,
                copied_bytes: 0,
            },
            port,
        })
    }

    /// The port.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// What went through the port.
    pub fn counters(&self) -> DpdkCounters {
        DpdkCounters {
            sent: self.sender.sent,
            copied_bytes: self.sender.copied_bytes,
            ..self.buffers.counters
        }
    }
}

impl OverEndpoint for DpdkTransport {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn endpoint_mut(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }
}

impl Transport for DpdkTransport {
    type Error = Infallible;

    fn receive(&mut self, now: Instant) -> Result<usize, Infallible> {
        let count = self.rx.burst(&mut self.received);
        for mbuf in &mut self.received {
            self.buffers.counters.received += 1;
            match Frame::new(mbuf, &mut self.buffers) {
                Some(mut frame) => self.endpoint.receive(now, &mut frame),
                None => self.buffers.counters.misplaced += 1,
            }
        }
        self.received.clear();
        Ok(count)
    }

    fn next_event(&mut self) -> Option<Event> {
        self.endpoint.next_event()
    }

    fn transmit(&mut self, now: Instant) -> Result<usize, Infallible> {
        self.sender.completions.drain(drop);
        let before = self.sender.sent;
        self.sender.flush();
        self.endpoint.transmit(now, &mut self.sender);
        self.sender.flush();
        let sent = (self.sender.sent - before) as usize;
        if sent == 0 && self.sender.completions.outstanding() > 0 {
            // An idle device would otherwise hold on to the last frames it sent.
            self.sender.tx.reclaim();
            self.sender.completions.drain(drop);
        }
        Ok(sent)
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.endpoint.next_deadline()
    }
}

impl Sender {
    /// Hands what waits to the device, as far as it takes it.
    fn flush(&mut self) {
        if !self.waiting.is_empty() {
            self.sent += self.tx.burst(&mut self.waiting) as u64;
        }
    }

    fn make_room(&mut self, pieces: usize) -> Result<(), SinkFull> {
        if self.waiting.room() == 0 || self.completions.room() < pieces {
            self.flush();
            self.completions.drain(drop);
        }
        if self.waiting.room() == 0 || self.completions.room() < pieces { Err(SinkFull) } else { Ok(()) }
    }
}

impl FrameSink for Sender {
    fn send(&mut self, frame: TxFrame<'_>) -> Result<(), SinkFull> {
        self.make_room(frame.payload.len())?;
        let mut mbuf = self.heads.alloc().ok_or(SinkFull)?;
        mbuf.append(frame.head.len()).ok_or(SinkFull)?.copy_from_slice(frame.head);
        let is_scattered = |extent: &Extent| !self.area.is_contiguous(extent.bytes());
        let copy = frame.payload.len() > MAX_SEGMENTS || frame.payload.iter().any(is_scattered);
        for extent in frame.payload {
            if copy {
                mbuf.append(extent.len()).ok_or(SinkFull)?.copy_from_slice(extent.bytes());
                self.copied_bytes += extent.len() as u64;
            } else {
                self.completions.attach(&mut mbuf, extent.clone()).map_err(|_| SinkFull)?;
            }
        }
        if let TxChecksum::Tcp { ipv6, l2_bytes, l3_bytes, l4_bytes } = frame.checksum {
            let request = TxChecksums {
                version: if ipv6 { IpVersion::V6 } else { IpVersion::V4 },
                link_len: l2_bytes as u8,
                ip_len: l3_bytes as u16,
                tcp_len: l4_bytes as u8,
                ipv4_header: false,
                tcp: true,
            };
            mbuf.request_checksums(request).map_err(|_| SinkFull)?;
        }
        self.waiting.push(mbuf).map_err(|_| SinkFull)
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender")
            .field("waiting", &self.waiting.len())
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}
