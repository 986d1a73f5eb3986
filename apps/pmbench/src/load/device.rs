//! The generator's port, its stack, and its clock.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use dpdk::{Eal, Pool, Port, PortId};
use pmem::{Arena, Extent, MEMORY, Options, Region, Shard};
use smoltcp::wire::{IpCidr, Ipv4Cidr};
use stack::Config;
use stack::time::Instant;
use stack::transport::dpdk::{DpdkConfig, DpdkTransport, Reach};

use super::cli::{LoadArgs, OF_AN_ADDRESS};
use super::wired::Wired;
use crate::nic::Nic;
use crate::wire::{Ends, Wire};

/// Length of the port's queues: what four thousand connections have on their way.
const DESCRIPTORS: u16 = 1024;
/// How long the link has to come up.
const LINK_UP: Duration = Duration::from_secs(10);
/// A copied byte is never sent, but the stack wants room for some.
const COPIED_BYTES: usize = 64;

/// Time since the start, off the time stamp counter.
#[derive(Clone, Debug)]
pub struct Clock {
    clock: quanta::Clock,
    start: u64,
}

impl Clock {
    /// Starts at zero.
    pub fn start() -> Self {
        let clock = quanta::Clock::new();
        let start = clock.raw();
        Self { clock, start }
    }

    /// Nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        self.clock.delta_as_nanos(self.start, self.clock.raw())
    }

    /// The time as the stack counts it.
    pub fn now(&self) -> Instant {
        instant(self.now_ns())
    }
}

/// The stack's time for the clock's.
pub fn instant(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns / 1000) as i64)
}

/// A port that is not started yet.
pub struct Device {
    pub(super) eal: Eal,
    pub(super) id: PortId,
    pub(super) mac: [u8; 6],
    clock: Clock,
    /// Where the server is a thread of this process: the ends of the cable to it, and its port's receive pool.
    server: Option<(Ends, Pool)>,
    /// Keeps the memory in which requests and replies lie.
    shard: Option<Shard>,
}

impl Device {
    /// Starts the EAL and finds the port.
    pub fn find(args: &LoadArgs) -> Result<Self> {
        Ok(Self::new(Nic::find(&args.dev, &args.eal, args.mac)?, None))
    }

    /// The port of `nic`; with the far side of its cable, if nobody else carries its frames.
    pub fn new(nic: Nic, server: Option<(Ends, Pool)>) -> Self {
        let Nic { eal, id, mac } = nic;
        Self { eal, id, mac, clock: Clock::start(), server, shard: None }
    }

    /// What carries the frames of the port, now that it is started, if it takes somebody to do so.
    pub(super) fn wire(&mut self, port: &Port) -> Result<Option<Box<Wire>>> {
        let Some((ends, of_server)) = self.server.take() else { return Ok(None) };
        let own = port.pool(0).context("a port that is started has a receive pool")?.clone();
        Ok(Some(Box::new(Wire::new(ends, of_server, own))))
    }

    /// The clock that everything on this port goes by.
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// The stack on this port, its link up and its address its own, for requests of so many bytes.
    pub fn stack(&mut self, args: &LoadArgs, request_bytes: usize) -> Result<Wired> {
        let connections = args.connections.get() as usize;
        // The receive queue and what its pool holds back, and some buffers for each connection.
        let buffers = 4 * usize::from(DESCRIPTORS) + 4 * connections;
        let buffers = buffers as u64 * 2 * pmem::DEFAULT_BUFFER_BYTES as u64;
        let size = (buffers + 2 * request_bytes as u64 + (8 << 20)).next_multiple_of(4096);
        let options = Options { size: Some(size), shards: Some(1), volatile: true, ..Options::default() };
        let region = Region::open(MEMORY, &options)?;
        let info = region.info().clone();
        let seed = region.into_seeds().swap_remove(0);
        let reach = Reach::new(self.eal, &info, &seed, &[self.id])?;
        let shard = seed.open()?;
        let arena = shard.arena().clone();
        let pieces = request_bytes.div_ceil(arena.buffer_bytes());
        let config = Config {
            max_connections: connections,
            tx_bytes: COPIED_BYTES,
            tx_extents: 2 * pieces + 2,
            ..Config::new(self.mac, own_addresses(args)?.into_iter().map(IpCidr::Ipv4).collect())
                .context("no random numbers for the stack's secrets")?
        };
        let rings =
            DpdkConfig { rx_descriptors: DESCRIPTORS, tx_descriptors: DESCRIPTORS, ..DpdkConfig::default() };
        let now = self.clock.now();
        let mut transport = DpdkTransport::new(self.eal, self.id, config, rings, reach, arena, now)?;
        self.shard = Some(shard);
        self.wait_for_link(transport.port())?;
        let wire = self.wire(transport.port())?;
        // At the ends of a wire of this process is nobody else.
        if wire.is_none() {
            transport.claim_addresses(|| self.clock.now()).map_err(|error| anyhow!("{error} (--ip)"))?;
        }
        Ok(Wired::new(transport, wire))
    }

    /// Waits until the other side of the link is there: what is sent before is lost, and sent again a second later.
    pub(super) fn wait_for_link(&self, port: &Port) -> Result<()> {
        let limit_ns = self.clock.now_ns() + LINK_UP.as_nanos() as u64;
        while !port.link()?.up {
            ensure!(
                self.clock.now_ns() < limit_ns,
                "the link of {} is not up after {LINK_UP:?}; is the other side there?",
                self.id.name()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Puts a request's bytes into named buffers.
    pub fn in_buffers(&self, bytes: &[u8]) -> Result<Vec<Extent>> {
        let arena = self.shard.as_ref().context("the stack is started first")?.arena();
        bytes.chunks(arena.buffer_bytes()).map(|piece| in_buffer(arena, piece)).collect()
    }
}

/// The addresses that the generator's connections come from.
pub(super) fn own_addresses(args: &LoadArgs) -> Result<Vec<Ipv4Cidr>> {
    let (count, connections) = (u32::from(args.addresses), args.connections.get());
    ensure!(
        connections <= count * OF_AN_ADDRESS,
        "{connections} connections are more than {count} times {OF_AN_ADDRESS}, for which one address each has ports; \
         raise --addresses"
    );
    let first = args.ip.address().to_bits();
    let own = |number| Ipv4Cidr::new(first.wrapping_add(number).into(), args.ip.prefix_len());
    Ok((0..count).map(own).collect())
}

/// Puts bytes into a named buffer.
fn in_buffer(arena: &Arena, bytes: &[u8]) -> Result<Extent> {
    let mut buffer = arena.take().context("no buffer is free for the request")?;
    ensure!(buffer.arrive(0, bytes), "{} bytes do not fit a buffer", bytes.len());
    let len = u16::try_from(bytes.len())?;
    buffer.into_extent(0, len).context("what fits a buffer is a piece of it")
}
