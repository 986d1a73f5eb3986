//! `pmlog`'s own service, which keeps requests where they arrived: `paste` and, with the log left out, `paste-echo` on
//! a DPDK port, `kernel-paste` on Linux' own TCP.

use std::time::Duration;

use anyhow::Result;
use pmem::{RegionInfo, Shard};
use pmlog::service::{Counters, LogService, ServiceConfig};
use stack::net::Transport;
use stack::profile::Profile;
use stack::server::{Rest, Server, Step};
use stack::time::Instant;
use stack::transport::kernel::{KernelConfig, KernelError, KernelTransport};

use super::bursts::{Bursts, run};
use super::cli::ServeArgs;
use super::control::{Control, Skipped, tell_ready};
use super::device::Device;
use super::ledger::{self, Ledger, Meter};
use crate::protocol::Mode;

/// Of a loop that sleeps: a command that comes just before it is seen after it.
const REST: Rest = Rest::Wait { after: Duration::ZERO, limit: Duration::from_millis(5) };
/// Connections that may wait to be accepted.
const BACKLOG: u16 = 4096;

/// Serves on a DPDK port until told to stop.
pub(super) fn serve(args: &ServeArgs, control: &Control, device: &Device) -> Result<()> {
    let meter = Meter::polling();
    let (info, shard, transport) = device.open(args, &meter)?;
    let keeps = args.mode == Mode::Paste;
    let server = Server::new(transport, service(args, &info, keeps), shard);
    tell_ready(args, keeps.then(|| info.domain.to_string()), &["one commit for each burst"])?;
    // It never sleeps: a NIC does not wake it.
    serve_in_bursts(args, server, control, meter, Rest::Spin)
}

/// Serves on kernel sockets until told to stop.
pub(super) fn serve_kernel(args: &ServeArgs, control: &Control) -> Result<()> {
    KernelTransport::probe().map_err(|error| match error {
        KernelError::Unsupported { .. } | KernelError::Ring(_) => Skipped(error.to_string()).into(),
        error => anyhow::Error::new(error),
    })?;
    let (info, seed) = ledger::open(args)?;
    let shard = seed.open()?;
    let max_connections = args.max_connections.get() as usize;
    let config = KernelConfig { max_connections, ..KernelConfig::default() };
    let mut transport = KernelTransport::new(config, shard.arena().clone())?;
    transport.listen(args.listen, BACKLOG)?;
    let server = Server::new(transport, service(args, &info, true), shard);
    let notes = ["one commit for each burst", "the kernel copies each byte into the store", "TCP_NODELAY"];
    tell_ready(args, Some(info.domain.to_string()), &notes)?;
    serve_in_bursts(args, server, control, Meter::sleeping(), REST)
}

/// `pmlog`'s service, with its log or without.
fn service(args: &ServeArgs, info: &RegionInfo, keeps_records: bool) -> LogService {
    let config = ServiceConfig {
        max_record_bytes: args.max_record.as_u64(),
        max_connections: args.max_connections.get(),
        keeps_records,
        domain: info.domain.to_string(),
        ..ServiceConfig::default()
    };
    LogService::new(config, Instant::ZERO)
}

/// Serves until told to stop; `rest` comes after each burst.
fn serve_in_bursts<T: Transport>(
    args: &ServeArgs,
    mut server: Server<T, LogService>,
    control: &Control,
    meter: Meter,
    rest: Rest,
) -> Result<()> {
    if args.profile {
        server.profile();
    }
    let mut slots = Slots { server, rest, now: Instant::ZERO, trimmed: Ledger::default() };
    run(&mut slots, control, meter)?;
    let (_, _, shard) = slots.server.parts();
    Ok(shard.checkpoint()?)
}

struct Slots<T> {
    server: Server<T, LogService>,
    rest: Rest,
    now: Instant,
    /// What the log held that is trimmed.
    trimmed: Ledger,
}

impl<T: Transport> Bursts for Slots<T> {
    fn step(&mut self, now: Instant) -> Result<Step> {
        let step = self.server.step(now)?;
        let (transport, service, shard) = self.server.parts();
        service.tick(now, transport, shard);
        self.now = now;
        Ok(step)
    }

    fn settle(&mut self, step: &Step) -> Result<()> {
        if step.committed {
            let (_, _, shard) = self.server.parts();
            self.trimmed.make_room(shard)?;
        }
        Ok(self.server.rest(self.rest, self.now, Duration::ZERO)?)
    }

    fn ledger(&self) -> Ledger {
        let Counters { appended_records, read_records, appended_bytes, refused, aborted, .. } =
            self.server.service().counters();
        Ledger {
            requests: appended_records + read_records,
            payload_bytes: appended_bytes,
            errors: refused + aborted,
            ..self.trimmed
        }
    }

    fn shard(&self) -> Option<&Shard> {
        Some(self.server.shard())
    }

    fn profile(&self) -> Option<&Profile> {
        self.server.profiled()
    }
}
