//! `pmlog serve`: a store, a network, and the loop between them.

mod clock;
mod cores;
mod dpdk;
mod kernel;
mod report;
mod run;
mod store;
mod watch;

pub use kernel::allow_descriptors;

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::num::NonZeroU16;
use std::ops::AddAssign;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use pmem::{Kind, RegionInfo, Shard, ShardSeed};
use serde::Serialize;
use stack::net::Transport;
use stack::server::{Rest, Server};
use stack::time::Clock;

use crate::cli::{Network, ServeArgs};
use crate::service::{Drops, LogService};
use cores::{Ended, Setting};
use report::Report;

type LogServer<T> = Server<T, LogService>;

/// Half-open connections of a listener, and finished ones that wait for the service.
const BACKLOG: u16 = 1024;

/// The longest sleep: a signal is noticed after it at the latest, and what goes on by time in the service goes on.
const SLEEP: Duration = Duration::from_millis(100);

/// Serves until SIGINT or SIGTERM, and reports on `out`. A signal that comes while the store is still being opened ends
/// it, too, and leaves the store as it was.
///
/// # Errors
/// The store or the network cannot be had, or the store failed on the way. Everything that was acknowledged is
/// in the store.
pub fn serve(args: &ServeArgs, out: &mut impl Write) -> Result<()> {
    let stop = program::stop_signal().context("signals cannot be handled")?;
    // The network comes first: a mistake in its name should not leave a new store behind.
    match &args.network {
        Network::Dpdk(options) => serve_over(dpdk::Device::find(options)?, args, &stop, out),
        Network::Kernel(options) => serve_over(kernel::Sockets::bind(args, options)?, args, &stop, out),
    }
}

/// A way into the network that is known to exist, and over which nothing is served yet.
trait Access: Sync {
    /// What serves over it.
    type Transport: Served;
    /// What a core's thread is given to start with.
    type Seat: Send;
    /// What a core's thread holds for as long as it runs.
    type Presence;
    /// What there turned out to be: fields of a JSON object, or lines of text.
    type Found: Serialize + fmt::Display + Send;

    /// A seat for each of so many cores. The first of `seeds` are the shards that they receive into. Called once;
    /// nothing is written to the store.
    fn seats(
        &mut self,
        args: &ServeArgs,
        info: &RegionInfo,
        seeds: &[ShardSeed],
        cores: NonZeroU16,
    ) -> Result<Vec<Self::Seat>>;

    /// Makes the thread of a core known.
    fn enter(&self) -> Result<Self::Presence>;

    /// Starts to serve over a shard's buffers, in the core's own thread.
    fn start(
        &self,
        seat: Self::Seat,
        args: &ServeArgs,
        shard: &Shard,
        clock: &Clock,
    ) -> Result<Self::Transport>;

    /// What a core does while there is nothing to do.
    fn rest(&self) -> Rest;

    /// What there turned out to be.
    fn found(&self, transport: &Self::Transport) -> Self::Found;
}

/// What the loop and the reports need of a transport, beyond serving.
trait Served: Transport {
    /// What went through it since the start.
    type Totals: Traffic + Serialize + Clone + Default + AddAssign + Send;

    /// What went through it since the start.
    fn totals(&self) -> Self::Totals;

    /// Logs what the network has told of this host. Called now and then.
    fn tell(&mut self) {}

    /// Looks whether it still can serve. Called now and then.
    ///
    /// # Errors
    /// It never will again.
    fn check(&self) -> Result<()>;
}

/// What went through a transport, as the warnings and `GET /health` need it.
trait Traffic {
    /// What came in: frames, or pieces where there are none.
    fn received(&self) -> u64;

    /// What was dropped.
    fn drops(&self) -> &Drops;

    /// Whether frames can pass; none if that cannot be known.
    fn link_up(&self) -> Option<bool>;

    /// The link's MTU, if it has become less than the server's.
    fn narrowed(&self) -> Option<u32>;

    /// Frames by which another host said that it has one of the server's addresses; none if nobody counts them.
    fn address_conflicts(&self) -> Option<u64>;
}

fn serve_over<A: Access>(
    mut access: A,
    args: &ServeArgs,
    stop: &Arc<AtomicBool>,
    out: &mut impl Write,
) -> Result<()> {
    let clock = Clock::start();
    let existed = args.pm.exists();
    let cpus = args.cpus();
    let cores = NonZeroU16::new(cpus.len() as u16).context("there is no core to serve with")?;
    // As each core's thread will be, and before a store is made for them.
    let pinned = cpus.iter().flatten().copied().collect::<Vec<_>>();
    thread::scope(|scope| scope.spawn(|| pinned.into_iter().try_for_each(program::pin)).join())
        .unwrap_or_else(|panic| resume_unwind(panic))?;
    let mut report = Report::new(args.json, out);
    let (info, seeds) = match store::open(args, cores, stop) {
        Err(error) if program::is_interrupted(&error) => return report.interrupted(),
        opened => opened?,
    };
    let ended = match access.seats(args, &info, &seeds, cores) {
        Ok(seats) => {
            let setting = Setting { args, info: &info, clock: &clock, stop, cpus: &cpus };
            cores::serve(&access, seats, seeds, &setting, &mut report)
        }
        Err(error) => Ended { has_served: false, result: Err(error) },
    };
    // Nobody has put anything into a file that this call has made.
    let is_file = info.kind != Kind::Memory;
    // Gone already if its first shard was not even opened.
    let is_left = || fs::remove_file(&args.pm).is_err_and(|error| error.kind() != io::ErrorKind::NotFound);
    if !ended.has_served && info.is_new && !existed && is_file && is_left() {
        tracing::warn!(path = %args.pm.display(), "an empty store is left behind");
    }
    match ended.result {
        Err(error) if program::is_interrupted(&error) => report.interrupted(),
        result => result,
    }
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
