//! Linux' own TCP, through io_uring.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::AddAssign;
use std::time::Duration;

use anyhow::Result;
use pmem::{RegionInfo, Shard, ShardSeed};
use serde::Serialize;
use stack::Keepalive;
use stack::server::Rest;
use stack::time::Clock;
use stack::transport::kernel::{KernelConfig, KernelError, KernelTransport, Listener, Stacks};

use super::access::{Access, BACKLOG, Served, Traffic, receive_buffers_for};
use crate::cli::{KernelArgs, ServeArgs};
use crate::service::{Drops, SPARE_PLACES};

/// How long an address may still belong to a server that was killed.
const PREDECESSOR: Duration = Duration::from_secs(2);
/// Descriptors of this process that are no client's: the store, the ring, standard streams, and some to spare.
const OWN_DESCRIPTORS: u64 = 64;

/// Sockets that listen, and whose connections nobody accepts yet: those of each core.
pub(super) struct Sockets {
    listeners: Vec<Vec<Listener>>,
    is_dual: bool,
}

impl Sockets {
    pub(super) fn bind(args: &ServeArgs, options: &KernelArgs) -> Result<Self> {
        KernelTransport::probe()?;
        let cores = args.cpus().len();
        let listeners = (options.listen.len() * cores) as u64;
        // Each core has a ring, something to be woken by, and its spare places.
        let others = OWN_DESCRIPTORS + listeners + (2 + u64::from(SPARE_PLACES)) * cores as u64;
        program::allow_descriptors(u64::from(args.max_connections.get()) * cores as u64, 1, others)?;
        let is_v4_elsewhere = |port| options.listen.iter().any(|a| a.is_ipv4() && a.port() == port);
        let listeners = (0..cores).map(|_| Vec::new()).collect();
        let mut sockets = Self { listeners, is_dual: false };
        for &address in &options.listen {
            let stacks = if is_v4_elsewhere(address.port()) { Stacks::V6Only } else { Stacks::Dual };
            sockets.is_dual |= stacks == Stacks::Dual && address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            let alone = listen(address, stacks)?;
            if let [only] = &mut sockets.listeners[..] {
                only.push(alone);
                continue;
            }
            // Nobody else had it. Now the cores share it.
            let address = alone.address();
            drop(alone);
            for core in &mut sockets.listeners {
                core.push(Listener::bind_shared(address, stacks, BACKLOG)?);
            }
        }
        Ok(sockets)
    }
}

impl Access for Sockets {
    type Transport = KernelTransport;
    type CorePort = Vec<Listener>;
    type Presence = ();
    type Found = Found;

    fn ports(
        &mut self,
        args: &ServeArgs,
        info: &RegionInfo,
        _: &[ShardSeed],
        _: NonZeroU16,
    ) -> Result<Vec<Vec<Listener>>> {
        // Before anything is written to the store.
        let buffers = info.geometry.buffers as usize;
        config(args, buffers).check(buffers)?;
        Ok(std::mem::take(&mut self.listeners))
    }

    fn enter(&self) -> Result<()> {
        Ok(())
    }

    fn start(
        &self,
        listeners: Vec<Listener>,
        args: &ServeArgs,
        shard: &Shard,
        _: &Clock,
    ) -> Result<KernelTransport> {
        let arena = shard.arena().clone();
        let mut transport = KernelTransport::new(config(args, arena.buffers()), arena)?;
        for listener in listeners {
            if let Some(Keepalive { idle, interval, count }) = args.keepalive() {
                listener.keep_alive(idle, interval, count)?;
            }
            listener.user_timeout(args.user_timeout())?;
            transport.accept(listener)?;
        }
        Ok(transport)
    }

    fn rest(&self) -> Rest {
        Rest::UNTIL_WOKEN
    }

    fn found(&self, transport: &KernelTransport) -> Found {
        Found {
            transport: "kernel",
            listen: transport.listeners().iter().map(Listener::address).collect(),
            dual_stack: self.is_dual,
            sends_without_copying: transport.sends_without_copying(),
        }
    }
}

fn config(args: &ServeArgs, buffers: usize) -> KernelConfig {
    KernelConfig {
        max_connections: args.places(),
        rx_buffers: receive_buffers_for(buffers),
        // Records stay where they are until they are trimmed.
        sends_in_place: true,
        ..KernelConfig::default()
    }
}

impl Served for KernelTransport {
    type Totals = Totals;

    fn totals(&self) -> Totals {
        let counters = self.counters();
        Totals {
            pieces_received: counters.received,
            kernel_copied_bytes: counters.received_bytes + counters.sent_copied_bytes,
            sent_in_place_bytes: counters.zero_copy_bytes,
            packed_bytes: counters.packed_bytes,
            waits_for_buffers: counters.no_buffer,
            connections_refused: counters.refused,
            connections_not_accepted: counters.not_accepted,
            kernel_calls: counters.calls,
            drops: Drops::of([
                ("refused", Some(counters.refused)),
                ("not_accepted", Some(counters.not_accepted)),
            ]),
        }
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// What went through the sockets since the start.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Totals {
    pieces_received: u64,
    /// Payload that came in, and pieces of records that went out through a copy.
    kernel_copied_bytes: u64,
    sent_in_place_bytes: u64,
    packed_bytes: u64,
    waits_for_buffers: u64,
    connections_refused: u64,
    connections_not_accepted: u64,
    kernel_calls: u64,
    /// Connections; what the kernel drops before that is in its own counters (nstat).
    drops: Drops,
}

impl Traffic for Totals {
    fn received(&self) -> u64 {
        self.pieces_received
    }

    fn drops(&self) -> &Drops {
        &self.drops
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.pieces_received += other.pieces_received;
        self.kernel_copied_bytes += other.kernel_copied_bytes;
        self.sent_in_place_bytes += other.sent_in_place_bytes;
        self.packed_bytes += other.packed_bytes;
        self.waits_for_buffers += other.waits_for_buffers;
        self.connections_refused += other.connections_refused;
        self.connections_not_accepted += other.connections_not_accepted;
        self.kernel_calls += other.kernel_calls;
        self.drops += other.drops;
    }
}

/// What the kernel turned out to offer.
#[derive(Serialize)]
pub(super) struct Found {
    transport: &'static str,
    listen: Vec<SocketAddr>,
    /// Whether `[::]` takes IPv4 as well.
    dual_stack: bool,
    sends_without_copying: bool,
}

impl fmt::Display for Found {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "sockets   of Linux, through io_uring: the kernel copies what arrives into the store")?;
        if !self.sends_without_copying {
            writeln!(out, "          and what is sent out of it, too: sending in place takes Linux 6.1")?;
        }
        let addresses: Vec<String> = self.listen.iter().map(SocketAddr::to_string).collect();
        let dual = if self.dual_stack { ", where [::] is IPv4's as well" } else { "" };
        write!(out, "serving   {}{dual}", addresses.join(" and "))
    }
}

/// Listens, if need be after a wait: of a process that was killed, the kernel ends the ring a moment later than the
/// process, and with it the listener.
fn listen(address: SocketAddr, stacks: Stacks) -> Result<Listener, KernelError> {
    let begun = std::time::Instant::now();
    loop {
        match Listener::bind(address, stacks, BACKLOG) {
            Err(KernelError::Listen { reason, .. })
                if reason.kind() == ErrorKind::AddrInUse && begun.elapsed() < PREDECESSOR =>
            {
                std::thread::sleep(PREDECESSOR / 100);
            }
            outcome => return outcome,
        }
    }
}
