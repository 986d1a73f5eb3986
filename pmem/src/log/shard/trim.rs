//! Trimming: what makes room in the log and in the arena.

use super::Shard;
use crate::{
    format::entry::{Entry, ExtentName},
    log::error::CommitError,
};

/// What a trim has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trimmed {
    /// The first entry that is live now.
    pub head: u64,
    /// Records trimmed.
    pub records: u64,
    /// Their payload bytes.
    pub payload_bytes: u64,
}

impl Shard {
    /// Keeps room in a log that forgets its oldest records: if it holds more than half of the buffers or of its entries,
    /// an eighth of its durable records goes.
    ///
    /// # Errors
    /// As [`trim`](Self::trim).
    pub fn keep_room(&mut self) -> Result<(), CommitError> {
        let has_room = 2 * self.arena.logged_buffers() as usize <= self.arena.buffers()
            && 2 * (self.next - self.head) <= self.log_entries();
        if !has_room {
            self.trim(self.head + (self.committed - self.head).div_ceil(8))?;
        }
        Ok(())
    }

    /// Removes the durable records with numbers below `before`, readable or not. The new head is durable before their
    /// buffers become free; a buffer that is still referenced elsewhere becomes free with its last reference, and one
    /// that only an unreadable entry names when the store is opened again.
    ///
    /// # Errors
    /// [`CommitError`]: nothing was released.
    pub fn trim(&mut self, before: u64) -> Result<Trimmed, CommitError> {
        self.sound()?;
        let mut trimmed = Trimmed { head: self.end_of_trim(before), records: 0, payload_bytes: 0 };
        if trimmed.head == self.head {
            return Ok(trimmed);
        }
        self.persist_header(trimmed.head)?;
        // A record whose first entry was lost since the store was opened still counts.
        let mut is_first = true;
        for seq in self.head..trimmed.head {
            let counts = !self.quarantined.holds(seq);
            match &self.entry(seq) {
                Ok(entry) => {
                    if counts {
                        trimmed.records += u64::from(entry.is_first && !entry.is_dropped);
                        trimmed.payload_bytes += entry.payload_len();
                    }
                    self.release(entry);
                    is_first = entry.is_last;
                }
                Err(_) => {
                    trimmed.records += u64::from(counts && is_first);
                    is_first = true;
                }
            }
        }
        self.quarantined.forget(self.head, trimmed.head);
        self.head = trimmed.head;
        self.counters.trimmed_records += trimmed.records;
        self.counters.live_records = self.counters.live_records.saturating_sub(trimmed.records);
        self.counters.live_payload_bytes =
            self.counters.live_payload_bytes.saturating_sub(trimmed.payload_bytes);
        if self.head == self.next {
            // The bytes of a record whose entry was lost are not known.
            (self.counters.live_records, self.counters.live_payload_bytes) = (0, 0);
        }
        Ok(trimmed)
    }

    /// The first live entry after a trim: it begins a record, or cannot be read, or is not durable yet.
    fn end_of_trim(&self, before: u64) -> u64 {
        let from = before.clamp(self.head, self.committed);
        let begins = |seq: &u64| self.entry(*seq).map_or(true, |entry| entry.is_first);
        (from..self.committed).find(begins).unwrap_or(self.committed)
    }

    /// Ends the log's references to what an entry names.
    pub(super) fn release(&self, entry: &Entry) {
        for &ExtentName { buffer, offset, len } in entry.extents() {
            // What lies outside of the arena was never held, and neither is what an outsider wrote into the log.
            if self.arena.holds(buffer, offset, len) {
                self.arena.release_logged(buffer);
            }
        }
    }
}
