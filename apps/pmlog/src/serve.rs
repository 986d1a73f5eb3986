//! `pmlog serve`: a store, a network, and the loop between them.

mod clock;
mod dpdk;
mod kernel;
mod report;
mod run;
mod store;

use std::fmt;
use std::fs;
use std::io::Write;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result};
use pmem::{Kind, RegionInfo, Shard, ShardSeed};
use serde::Serialize;
use smoltcp::time::{Duration, Instant};
use stack::net::Transport;
use stack::server::Server;

use crate::cli::{Network, ServeArgs};
use crate::service::{LogService, ServiceConfig};
use clock::{Clock, stop_signal};
use report::{Report, Started};

type LogServer<T> = Server<T, LogService>;

/// Half-open connections of a listener, and finished ones that wait for the service.
const BACKLOG: u16 = 1024;

/// Serves until SIGINT or SIGTERM, and reports on `out`.
///
/// # Errors
/// The store or the network cannot be had, or the store failed on the way. Everything that was acknowledged is
/// in the store.
pub fn serve(args: &ServeArgs, out: &mut impl Write) -> Result<()> {
    let stop = stop_signal().context("signals cannot be handled")?;
    // The network comes first: a mistake in its name should not leave a new store behind.
    match &args.network {
        Network::Dpdk(options) => serve_over(dpdk::Device::find(options)?, args, &stop, out),
        Network::Kernel(options) => serve_over(kernel::Sockets::bind(args, options)?, args, &stop, out),
    }
}

/// A way into the network that is known to exist, and over which nothing is served yet.
trait Access {
    /// What serves over it.
    type Transport: Served;

    /// Recovers the store and starts to serve over its buffers. Called once.
    fn start(
        &mut self,
        args: &ServeArgs,
        info: &RegionInfo,
        seed: ShardSeed,
        clock: &Clock,
    ) -> Result<(Shard, Self::Transport)>;

    /// What there turned out to be: fields of a JSON object, or lines of text.
    fn found(&self, transport: &Self::Transport) -> impl Serialize + fmt::Display;
}

/// What the loop and the reports need of a transport, beyond serving.
trait Served: Transport {
    /// What went through it since the start.
    type Totals: Serialize;

    /// What went through it since the start.
    fn totals(&self) -> Self::Totals;

    /// Lets the CPU go, as far as that suits a transport which has had nothing to do for `idle` until `now`. Called
    /// between any two bursts; not for longer than a signal may wait.
    fn rest(&mut self, now: Instant, idle: Duration) -> Result<(), Self::Error>;
}

fn serve_over<A: Access>(
    mut access: A,
    args: &ServeArgs,
    stop: &AtomicBool,
    out: &mut impl Write,
) -> Result<()> {
    let clock = Clock::start();
    let existed = args.pm.exists();
    let (info, seed) = store::open(args)?;
    let (shard, transport) = access.start(args, &info, seed, &clock).inspect_err(|_| {
        // Nobody has put anything into a file that this call has made.
        let is_file = info.kind != Kind::Memory;
        if info.is_new && !existed && is_file && fs::remove_file(&args.pm).is_err() {
            tracing::warn!(path = %args.pm.display(), "an empty store is left behind");
        }
    })?;
    let config = ServiceConfig {
        max_record_bytes: args.max_record.as_u64(),
        max_connections: args.max_connections.get(),
        domain: info.domain.to_string(),
        ..ServiceConfig::default()
    };
    let service = LogService::new(config, clock.now());
    let mut report = Report::new(args.json, out);
    report.started(&Started { info: &info, shard: &shard, network: &access.found(&transport) })?;
    let mut server = Server::new(transport, service, shard);
    let served = run::run(&mut server, &clock, stop, &mut report);
    run::end(&mut server, &clock)?;
    served?;
    report.ended(&server)
}

/// Buffers to receive into, for a store with so many: an eighth, within what rings usually have. A small store must
/// not end up in the receive ring as a whole.
fn receive_buffers_for(buffers: usize) -> u16 {
    let share = (buffers / 8).clamp(64, 1024) as u16;
    // The power of two at or below it.
    1 << share.ilog2()
}

#[cfg(test)]
mod tests {
    use super::receive_buffers_for;

    #[test]
    fn a_receive_ring_leaves_a_small_store_its_buffers() {
        for (buffers, descriptors) in
            [(0, 64), (900, 64), (3500, 256), (8191, 512), (8192, 1024), (1 << 20, 1024)]
        {
            assert_eq!(receive_buffers_for(buffers), descriptors, "{buffers} buffers");
        }
    }
}
