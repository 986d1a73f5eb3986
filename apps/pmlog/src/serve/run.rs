//! The loop between a store and a network.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use smoltcp::time::Duration;

use super::clock::Clock;
use super::report::Report;
use super::{LogServer, Served};

/// How long clients are given at the end to take what is owed to them.
const FAREWELL: Duration = Duration::from_secs(2);
/// Between two lines of rates.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Idle time after which the log's end is noted in the store, so that later losses show as what they are.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(1);

/// Bursts until `stop`; in between, whatever rest the transport takes.
pub(super) fn run<T: Served, W: Write>(
    server: &mut LogServer<T>,
    clock: &Clock,
    stop: &AtomicBool,
    report: &mut Report<'_, W>,
) -> Result<()> {
    let mut idle_since = clock.now();
    let mut reported = clock.now();
    let mut is_noted = true;
    while !stop.load(Ordering::Relaxed) {
        let now = clock.now();
        let step = server.step(now)?;
        let (transport, service, shard) = server.parts();
        service.tick(now, transport, shard);
        if now - reported >= REPORT_EVERY {
            report.rates(server, now - reported)?;
            reported = now;
        }
        if !step.is_idle() {
            is_noted &= !step.committed;
            idle_since = now;
        }
        let idle = now - idle_since;
        if !is_noted && idle >= CHECKPOINT_AFTER && server.service().failure().is_none() {
            let (_, _, shard) = server.parts();
            shard.checkpoint()?;
            is_noted = true;
        }
        let (transport, ..) = server.parts();
        transport.rest(now, idle)?;
    }
    Ok(())
}

/// Answers what was asked, says goodbye, and leaves the store in order.
pub(super) fn end<T: Served>(server: &mut LogServer<T>, clock: &Clock) -> Result<()> {
    let (transport, service, shard) = server.parts();
    service.close(transport, shard);
    let end = clock.now() + FAREWELL;
    while server.service().counters().connections > 0 && clock.now() < end {
        let now = clock.now();
        server.step(now)?;
        let (transport, ..) = server.parts();
        transport.rest(now, Duration::ZERO)?;
    }
    let (transport, service, _) = server.parts();
    service.abort(transport);
    server.step(clock.now())?;
    if let Some(why) = server.service().failure() {
        bail!("the store failed while serving ({why}); acknowledged records are safe, check the medium");
    }
    let (_, _, shard) = server.parts();
    shard.checkpoint().context("the store's end could not be noted; acknowledged records are safe")
}
