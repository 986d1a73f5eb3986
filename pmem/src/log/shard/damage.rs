//! Damaged records: taken out of what is given, and given up.

use super::Shard;
use crate::{
    format::entry::{Entry, EntryFault},
    log::{
        error::CommitError,
        quarantine::{Quarantine, Quarantined},
        tally::Count,
    },
    safeguard::{Safeguard, omits},
};

impl Shard {
    /// How many damaged records, or runs of damaged entries, the log has, and how many entries those take.
    pub fn quarantine_counts(&self) -> (u64, u64) {
        self.quarantined.counts()
    }

    /// The first [`MAX_NAMED`](crate::MAX_NAMED) of them, oldest first.
    pub fn quarantines(&self) -> &[Quarantine] {
        self.quarantined.runs()
    }

    /// Takes a durable record, which was found damaged while it was read, out of what is listed and given. It stays in
    /// the log, with its buffers, until it is trimmed. False if it has been taken out or dropped before, or is trimmed.
    pub fn quarantine(&mut self, damage: Quarantine) -> bool {
        let end = damage.seq.saturating_add(damage.entries);
        let is_live = damage.seq >= self.head && end <= self.committed && damage.seq < end;
        if !is_live
            || damage.fault == EntryFault::Dropped
            || (damage.seq..end).any(|seq| self.quarantined.holds(seq))
        {
            return false;
        }
        if let Some(info) = self.info(damage.seq) {
            self.counters.live_records = self.counters.live_records.saturating_sub(1);
            self.counters.live_payload_bytes = self.counters.live_payload_bytes.saturating_sub(info.len);
            self.tally.take_out(info.seq, Count::of(info.len));
        }
        self.quarantined.add(damage);
        true
    }

    /// Gives up a damaged record, or the run of so many damaged entries that begins with this number: its buffers become
    /// free, and its entries say from then on that it was dropped. Their numbers are not used again. False if this is not
    /// all of what is in quarantine under this number. Where the run ends is known of those that are named, and
    /// [`Snapshot::scan`](crate::Snapshot::scan) tells it of the others.
    ///
    /// A crash in the midst of it leaves each entry damaged or dropped.
    ///
    /// # Errors
    /// [`CommitError`]: nothing was released.
    pub fn drop_quarantined(&mut self, seq: u64, entries: u64) -> Result<bool, CommitError> {
        self.sound()?;
        let is_live = seq >= self.head && seq < self.committed && entries <= self.committed - seq;
        if !is_live || !self.quarantined.is_run(seq, entries) {
            return Ok(false);
        }
        // Epochs never fall along the log.
        let before = (self.head..seq).rev().find_map(|seq| self.entry(seq).ok());
        let (epoch, time_s) = before.map_or((0, 0), |entry| (entry.epoch, entry.time_s));
        let held: Vec<_> = (seq..seq + entries).filter_map(|seq| self.entry(seq).ok()).collect();
        for seq in seq..seq + entries {
            self.ring.write(&Entry::dropped(seq, time_s, epoch));
        }
        self.counters.flushed_lines += self.ring.flush(Safeguard::DroppedFlush, seq, entries);
        self.counters.fences += 1;
        let is_omitted = omits(Safeguard::DroppedFence);
        let fenced = if is_omitted { Ok(()) } else { self.arena.medium().fence() };
        self.fenced(fenced)?;
        held.iter().for_each(|entry| self.release(entry));
        self.quarantined.forget(seq, seq + entries);
        Ok(true)
    }

    pub(crate) fn quarantined(&self) -> &Quarantined {
        &self.quarantined
    }
}
