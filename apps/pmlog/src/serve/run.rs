//! The loop between a store and a network.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};
use stack::server::{Rest, Server};
use stack::time::{Clock, Instant};

use super::access::Served;
use crate::service::{Exchange, LogService};

/// A core's server.
pub(super) type LogServer<T> = Server<T, LogService>;

/// How long clients are given at the end to take what is owed to them.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a core that others send by waits at the end for their last frames.
const LAST_FRAMES: Duration = Duration::from_millis(100);
/// Between two looks of others at what the core has done.
const TOTALS_EVERY: Duration = Duration::from_millis(200);
/// Time without an append after which the log's end is noted in the store, so that later losses show as what they are.
/// Until then the next append would have vouched for the last one.
const CHECKPOINT_AFTER: Duration = Duration::from_millis(500);

/// What is around one core's loop.
pub(super) struct Surroundings<'a, T: Served> {
    pub(super) clock: &'a Clock,
    pub(super) stop: &'a AtomicBool,
    /// What the core does while there is nothing to do.
    pub(super) rest: Rest,
    pub(super) exchange: &'a Exchange,
    pub(super) core: usize,
    /// Notes what the core has done, and the time it took, for others.
    pub(super) put: &'a dyn Fn(&LogServer<T>, Spent),
}

/// What a core's loop took, without what came before: opening a shard costs as much CPU time as many requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent {
    /// CPU time.
    cpu: Duration,
    /// Time by the clock in turns that found something to do.
    busy: Duration,
    /// Time by the clock in all turns, rests left out.
    polling: Duration,
}

impl Spent {
    /// CPU time in turns that found something to do. Where others have had the CPU in between, they had it in busy turns
    /// and in others alike.
    pub(super) fn busy_cpu(&self) -> Duration {
        let share = self.busy.as_micros() as f64 / self.polling.as_micros().max(1) as f64;
        self.cpu.mul_f64(share.min(1.0))
    }
}

/// CPU time of this thread.
pub(super) fn thread_cpu() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

/// Bursts until it is time to stop; in between, what other cores want, and whatever rest the transport takes.
pub(super) fn run<T: Served>(server: &mut LogServer<T>, around: &Surroundings<'_, T>) -> Result<Spent> {
    let Surroundings { clock, stop, rest, put, .. } = *around;
    let mut spent = Spent::default();
    let before = thread_cpu();
    let mut noted_totals = clock.now();
    // Since when the last commit is not noted; only the first shard, which takes appends, can have such a commit.
    let mut unnoted_since: Option<Instant> = None;
    server.run_with(clock, stop, rest, |server, now, turn| {
        if now - noted_totals >= TOTALS_EVERY {
            spent.cpu = thread_cpu() - before;
            put(server, spent);
            noted_totals = now;
            let (transport, ..) = server.parts();
            transport.tell();
            transport.check()?;
        }
        if turn.step.committed {
            unnoted_since = Some(now);
        }
        // Readers, and requests that never become whole, keep a server busy and vouch for nothing.
        let is_due = unnoted_since.is_some_and(|since| now - since >= CHECKPOINT_AFTER);
        if is_due && server.service().failure().is_none() {
            let (_, _, shard) = server.parts();
            shard.checkpoint()?;
            unnoted_since = None;
        }
        // Times are cut to microseconds, at both ends alike: over many turns that evens out.
        let took = clock.now() - now;
        spent.polling += took;
        if !turn.is_idle {
            spent.busy += took;
        }
        anyhow::Ok(())
    })?;
    spent.cpu = thread_cpu() - before;
    Ok(spent)
}

/// Answers what was asked, says goodbye, and leaves the store in order.
pub(super) fn end<T: Served>(server: &mut LogServer<T>, around: &Surroundings<'_, T>) -> Result<()> {
    let Surroundings { clock, exchange, core, .. } = *around;
    let (transport, service, shard) = server.parts();
    service.close(transport, shard);
    let end = clock.now() + FAREWELL;
    let connections =
        |server: &LogServer<T>| exchange.connections(core, server.service().counters().connections);
    // Other cores may need this one until they have none either: to read its shards, or to send by its queue.
    while connections(server) > 0 && clock.now() < end {
        around.work(server)?;
    }
    let (transport, service, _) = server.parts();
    service.abort(transport);
    server.step(clock.now())?;
    exchange.leave(core);
    let end = clock.now() + LAST_FRAMES;
    while !exchange.is_left() && clock.now() < end {
        around.work(server)?;
    }
    server.step(clock.now())?;
    if let Some(why) = server.service().failure() {
        bail!("the store failed while serving ({why}); acknowledged records are safe, check the medium");
    }
    let (_, _, shard) = server.parts();
    shard.checkpoint().context("the store's end could not be noted; acknowledged records are safe")
}

impl<T: Served> Surroundings<'_, T> {
    /// One turn at the end.
    fn work(&self, server: &mut LogServer<T>) -> Result<()> {
        server.step(self.clock.now())?;
        let (transport, service, shard) = server.parts();
        service.attend(transport, shard);
        Ok(server.rest(self.rest, self.clock.now(), Duration::ZERO)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_shared_out_by_the_clock() {
        let times = |busy_ms, polling_ms| Spent {
            cpu: Duration::from_millis(600),
            busy: Duration::from_millis(busy_ms),
            polling: Duration::from_millis(polling_ms),
        };
        assert_eq!(times(250, 1000).busy_cpu(), Duration::from_millis(150));
        assert_eq!(times(1000, 1000).busy_cpu(), Duration::from_millis(600));
        assert_eq!(times(0, 0).busy_cpu(), Duration::ZERO);
    }
}
