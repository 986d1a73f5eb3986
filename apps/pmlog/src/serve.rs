//! `pmlog serve`: a store, a network, and the loop between them.

mod access;
mod cores;
mod dpdk;
mod kernel;
mod report;
mod run;
mod store;
mod totals;
mod watch;

use std::fs;
use std::io::{self, Write};
use std::num::NonZeroU16;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use anyhow::{Context as _, Result};
use pmem::Kind;
use stack::time::Clock;

use crate::cli::{Network, ServeArgs};
use access::Access;
use cores::{Ended, Setting};
use report::Report;

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
    let ended = match access.ports(args, &info, &seeds, cores) {
        Ok(ports) => {
            let setting = Setting { args, info: &info, clock: &clock, stop, cpus: &cpus };
            cores::serve(&access, ports, seeds, &setting, &mut report)
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
