//! What a server counts, and the ring that it makes of its log.

use std::time::Duration;

use anyhow::Result;
use pmem::{Options, Region, RegionInfo, Shard, ShardSeed};
use quanta::Clock;
use stack::profile::Profile;

use super::ServeArgs;
use crate::protocol::{Mark, Stages};

/// Log entries that one trim takes off at most, so that no request waits long for it.
const TRIMMED_ENTRIES: u64 = 256;

/// What was done so far.
#[derive(Clone, Copy, Default)]
pub(super) struct Ledger {
    pub(super) requests: u64,
    pub(super) payload_bytes: u64,
    pub(super) errors: u64,
    /// Payload bytes copied, besides those that the shard counts.
    pub(super) copied_bytes: u64,
    /// Persists that are not the shard's.
    pub(super) fences: u64,
    /// Memory of persistent records that are not the shard's, or not any more.
    pub(super) pm_bytes: u64,
}

impl Ledger {
    /// One request was done.
    pub(super) fn done(&mut self, payload_bytes: u64) {
        self.requests += 1;
        self.payload_bytes += payload_bytes;
    }

    /// Makes room for new records at the expense of the oldest, if more than half of the store is in use.
    pub(super) fn make_room(&mut self, shard: &mut Shard) -> Result<()> {
        let arena = shard.arena();
        let used_entries = shard.next_seq() - shard.head_seq();
        let has_room = arena.free_buffers() >= arena.buffers() / 2 && used_entries <= shard.log_entries() / 2;
        if has_room || used_entries == 0 {
            return Ok(());
        }
        let before = shard.counters().pm_bytes;
        shard.trim(shard.head_seq() + TRIMMED_ENTRIES.min(used_entries))?;
        self.pm_bytes += before - shard.counters().pm_bytes;
        Ok(())
    }

    /// The answer to the command for mark number `id`.
    pub(super) fn mark(&self, id: u64, meter: &Meter, shard: Option<&Shard>) -> Mark {
        let counters = shard.map(Shard::counters).unwrap_or_default();
        Mark {
            id,
            time_ns: meter.elapsed_ns(),
            busy_ns: meter.busy_ns(),
            requests: self.requests,
            payload_bytes: self.payload_bytes,
            copied_bytes: self.copied_bytes + counters.copied_bytes,
            flushed_lines: counters.flushed_lines,
            fences: self.fences + counters.fences,
            pm_bytes: self.pm_bytes + counters.pm_bytes,
            errors: self.errors,
            turns: meter.turns,
            idle_turns: meter.idle_turns,
            stages: None,
        }
    }
}

/// Where the time of a loop went that was measured.
pub(super) fn stages(profile: &Profile) -> Stages {
    let summary = profile.summary();
    let mut stages =
        Stages { readings_ns: summary.readings_ns, recording_ns: summary.recording_ns, ..Stages::default() };
    for stage in &summary.stages {
        stages.ns[stage.stage as usize] = stage.times.total_ns;
    }
    stages
}

/// A poll that finds nothing takes less. One that took longer was interrupted: on the links of one machine the kernel
/// delivers packets in interrupts, which is work for the server as well.
const EMPTY_POLL_NS: u64 = 1000;

/// The time, and how much of it a polling loop worked.
pub(super) struct Meter {
    clock: Clock,
    start: u64,
    /// In the clock's own units.
    busy: Option<u64>,
    /// [`EMPTY_POLL_NS`].
    empty_poll: u64,
    turns: u64,
    idle_turns: u64,
}

impl Meter {
    /// For a loop that polls: what it does between bursts is not work.
    pub(super) fn polling() -> Self {
        Self { busy: Some(0), ..Self::sleeping() }
    }

    /// For a loop that sleeps in the kernel, whose work the kernel counts.
    pub(super) fn sleeping() -> Self {
        let clock = Clock::new();
        let million_ns = clock.delta_as_nanos(0, 1_000_000).max(1);
        let empty_poll = EMPTY_POLL_NS * 1_000_000 / million_ns;
        Self { start: clock.raw(), clock, busy: None, empty_poll, turns: 0, idle_turns: 0 }
    }

    /// This moment, in the clock's own units.
    pub(super) fn raw(&self) -> u64 {
        self.clock.raw()
    }

    /// Counts the time since `begun` as work; returns this moment, when the next turn begins.
    pub(super) fn worked(&mut self, begun: u64) -> u64 {
        self.turns += 1;
        let now = self.clock.raw();
        if let Some(busy) = &mut self.busy {
            *busy += now.saturating_sub(begun);
        }
        now
    }

    /// The time of `raw` on the stack's clock.
    pub(super) fn instant(&self, raw: u64) -> stack::time::Instant {
        let micros = self.clock.delta_as_nanos(self.start, raw) / 1000;
        stack::time::Instant::from_micros(micros as i64)
    }

    /// Counts the time since `begun`, in which nothing was found to do, if the kernel had something to do; returns this
    /// moment, as [`worked`](Self::worked) does.
    pub(super) fn idled(&mut self, begun: u64) -> u64 {
        (self.turns, self.idle_turns) = (self.turns + 1, self.idle_turns + 1);
        let now = self.clock.raw();
        let took = now.saturating_sub(begun);
        if let Some(busy) = self.busy.as_mut().filter(|_| took > self.empty_poll) {
            *busy += took;
        }
        now
    }

    fn elapsed_ns(&self) -> u64 {
        self.clock.delta_as_nanos(self.start, self.clock.raw())
    }

    fn busy_ns(&self) -> Option<u64> {
        self.busy.map(|busy| self.clock.delta_as_nanos(0, busy))
    }
}

/// Opens the store, or makes one. Its records are still to be recovered.
pub(super) fn open(args: &ServeArgs) -> Result<(RegionInfo, ShardSeed)> {
    let options = Options {
        size: Some(args.pm_size.as_u64()),
        shards: Some(1),
        max_record_bytes: args.max_record.as_u64() as u32,
        persist_delay: Duration::from_micros(args.persist_delay_us),
        timed: args.profile,
        populate: true,
        volatile: true,
        ..Options::default()
    };
    let region = Region::open(&args.pm, &options)?;
    let info = region.info().clone();
    Ok((info, region.into_seeds().swap_remove(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_store_is_enough_for_ever() {
        let options = Options { size: Some(1 << 20), ..Options::default() };
        let mut shard = Region::open(pmem::MEMORY, &options).expect("memory").into_shard().expect("new");
        let (mut ledger, total) = (Ledger::default(), 5000);
        for number in 0..total {
            let len = 1 + number * 37 % 6000;
            let pending = shard.append_copy(&vec![7; len]).expect("there is room");
            let durable = shard.commit().expect("memory does not fail");
            assert!(durable.confirm(pending).is_ok());
            ledger.make_room(&mut shard).expect("memory does not fail");
            ledger.done(len as u64);
        }
        let arena = shard.arena();
        assert!(arena.free_buffers() >= arena.buffers() / 2 - 3, "{arena:?}");
        let mark = ledger.mark(3, &Meter::polling(), Some(&shard));
        assert_eq!((mark.id, mark.requests), (3, total as u64));
        assert_eq!(mark.copied_bytes, mark.payload_bytes);
        let amplification = mark.pm_bytes as f64 / mark.payload_bytes as f64;
        assert!((1.0..2.5).contains(&amplification), "{amplification}");
    }
}
