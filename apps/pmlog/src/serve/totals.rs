//! What the reports tell of: how shards were found, and what the cores have done.

use std::iter;
use std::ops::AddAssign;
use std::time::Duration;

use pmem::{Quarantine, Recovery, Shard};

use super::access::Served;
use super::run::{LogServer, Spent, thread_cpu};
use crate::service::{CommitTimes, Counters};

/// Damaged records that the report at the start names, of each shard; all of them are counted.
const NAMED: usize = 16;

/// A shard as it was found.
#[derive(Clone, Debug)]
pub(super) struct ShardStart {
    pub(super) index: u32,
    pub(super) head: u64,
    pub(super) next: u64,
    pub(super) epoch: u32,
    pub(super) recovery: Recovery,
    /// The first of the damaged records that are passed over.
    pub(super) damaged: Vec<Quarantine>,
}

/// What one core has done, or all.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals<N> {
    pub(super) service: Counters,
    pub(super) free_buffers: usize,
    pub(super) fences: u64,
    pub(super) flushed_lines: u64,
    /// What a disk, or a file in the page cache, was asked to write.
    pub(super) written_bytes: u64,
    pub(super) write_requests: u64,
    pub(super) copied_bytes: u64,
    pub(super) commits: CommitTimes,
    /// Records that were found to have changed under the server.
    pub(super) altered_records: u64,
    /// CPU time of the cores' threads, and the part of it in turns of their loops that found something to do.
    pub(super) cpu: Duration,
    pub(super) busy_cpu: Duration,
    pub(super) network: N,
}

impl ShardStart {
    pub(super) fn of(index: u32, shard: &Shard) -> Self {
        let (head, next, epoch) = (shard.head_seq(), shard.next_seq(), shard.epoch());
        let damaged = shard.quarantines().iter().take(NAMED).copied().collect();
        // Some may have been found damaged since.
        let (counters, mut recovery) = (shard.counters(), *shard.recovery());
        recovery.quarantined = shard.quarantine_counts().0;
        (recovery.records, recovery.payload_bytes) = (counters.live_records, counters.live_payload_bytes);
        Self { index, head, next, epoch, recovery, damaged }
    }
}

impl<N> Totals<N> {
    /// Called in the core's own thread.
    pub(super) fn of<T: Served<Totals = N>>(server: &LogServer<T>, spent: Spent) -> Self {
        let archive = server.service().archive().iter().map(|(_, shard)| shard);
        let shards = || iter::once(server.shard()).chain(archive.clone());
        let sum = |of: fn(pmem::Counters) -> u64| shards().map(|shard| of(shard.counters())).sum();
        Self {
            service: server.service().counters(),
            free_buffers: shards().map(|shard| shard.arena().free_buffers()).sum(),
            fences: sum(|counters| counters.fences),
            flushed_lines: sum(|counters| counters.flushed_lines),
            written_bytes: sum(|counters| counters.written_bytes),
            write_requests: sum(|counters| counters.write_requests),
            copied_bytes: sum(|counters| counters.copied_bytes),
            commits: server.service().commit_times().clone(),
            altered_records: server.service().altered_records(),
            cpu: thread_cpu(),
            busy_cpu: spent.busy_cpu(),
            network: server.transport().totals(),
        }
    }
}

impl<N: AddAssign> AddAssign for Totals<N> {
    fn add_assign(&mut self, other: Self) {
        self.service += other.service;
        self.free_buffers += other.free_buffers;
        self.fences += other.fences;
        self.flushed_lines += other.flushed_lines;
        self.written_bytes += other.written_bytes;
        self.write_requests += other.write_requests;
        self.copied_bytes += other.copied_bytes;
        self.commits += &other.commits;
        self.altered_records += other.altered_records;
        self.cpu += other.cpu;
        self.busy_cpu += other.busy_cpu;
        self.network += other.network;
    }
}
