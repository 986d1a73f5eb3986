//! Reading, while the store is served, what was not read when it was opened.

use std::time::Duration;

use pmem::Shard;
use stack::time::Instant;

/// Bytes that are read in one turn of the loop: some ten microseconds of it.
const STEP_BYTES: u64 = 64 * 1024;
/// How much of the time before now may be made up for: as long as a core may have slept.
const ARREARS: Duration = Duration::from_millis(100);

/// Has shards scrubbed at a bounded rate.
#[derive(Debug)]
pub(super) struct Scrubber {
    /// How long a step is waited for, by the rate.
    step_takes: Duration,
    next: Instant,
    is_done: bool,
}

impl Scrubber {
    /// So many bytes a second; none if that is 0.
    pub(super) fn new(bytes_per_s: u64, now: Instant) -> Self {
        let step_takes = Duration::from_secs_f64(STEP_BYTES as f64 / bytes_per_s.max(1) as f64);
        Self { step_takes, next: now, is_done: bytes_per_s == 0 }
    }

    /// Whether there is nothing left to be read.
    #[inline]
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Reads a piece of the first shard that has something unread, if it is time; whether it did.
    pub(super) fn turn<'a>(
        &mut self,
        now: Instant,
        mut shards: impl Iterator<Item = (u32, &'a mut Shard)>,
    ) -> bool {
        if now < self.next {
            return false;
        }
        let Some((index, shard)) = shards.find(|(_, shard)| !shard.is_scrubbed()) else {
            self.is_done = true;
            return false;
        };
        if let Some(damage) = shard.scrub(STEP_BYTES).damage {
            tracing::error!(
                shard = index,
                "{damage}: found while what was stored is read over; it is no longer given"
            );
        }
        self.next += self.step_takes;
        self.next = self.next.max(now - ARREARS);
        true
    }
}
