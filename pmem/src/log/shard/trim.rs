//! Trimming: what makes room in the log and in the arena.

use super::Shard;
use crate::{
    format::entry::{Entry, ExtentName},
    log::{error::CommitError, tally::Count},
    safeguard::{Safeguard, omits},
};

/// Log entries whose buffers one call frees.
const TENDED_ENTRIES: u64 = 4096;

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
        // What is trimmed already makes room first.
        let has_room = self.tend()
            || 2 * self.arena.logged_buffers() as usize <= self.arena.buffers()
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
    /// However many they are, this takes no longer than some do: the buffers of the first become free now, and those of
    /// the others with appends that need them, and with each call of [`tend`](Self::tend).
    ///
    /// # Errors
    /// [`CommitError`]: nothing was released.
    pub fn trim(&mut self, before: u64) -> Result<Trimmed, CommitError> {
        self.sound()?;
        let head = self.end_of_trim(before);
        if head == self.head {
            return Ok(Trimmed { head, records: 0, payload_bytes: 0 });
        }
        let before_head = self.count_before(head);
        if !omits(Safeguard::TrimHeader) {
            self.persist_header(head, 0)?;
        }
        let Count { records, payload_bytes } = before_head.less(self.before_head);
        self.quarantined.forget(self.head, head);
        (self.head, self.before_head) = (head, before_head);
        self.counters.trimmed_records += records;
        self.counters.live_records = self.counters.live_records.saturating_sub(records);
        self.counters.live_payload_bytes = self.counters.live_payload_bytes.saturating_sub(payload_bytes);
        if self.head == self.next {
            // The bytes of a record whose entry was lost are not known.
            (self.counters.live_records, self.counters.live_payload_bytes) = (0, 0);
        }
        self.tend();
        Ok(Trimmed { head, records, payload_bytes })
    }

    /// Frees buffers of trimmed records, those of some thousand log entries at a time; whether there are more. For each
    /// turn of a loop that does other things, too.
    #[inline]
    pub fn tend(&mut self) -> bool {
        self.held < self.head && self.release_trimmed(TENDED_ENTRIES)
    }

    /// Frees the buffers of trimmed records until there is room, or nothing that is trimmed is left.
    #[inline]
    pub(super) fn make_room(&mut self, has_room: impl Fn(&Self) -> bool) {
        if self.held < self.head {
            self.release_until(has_room);
        }
    }

    #[cold]
    fn release_until(&mut self, has_room: impl Fn(&Self) -> bool) {
        while self.held < self.head && !has_room(self) {
            self.release_trimmed(1);
        }
    }

    /// Frees the buffers of so many trimmed entries; whether there are more.
    #[cold]
    fn release_trimmed(&mut self, entries: u64) -> bool {
        let to = self.head.min(self.held + entries);
        for seq in self.held..to {
            if let Ok(entry) = &self.entry(seq) {
                self.release(entry);
            }
        }
        self.held = to;
        self.set_write_end();
        self.held < self.head
    }

    /// What the tally has counted before an entry at which a record begins, or nothing does.
    fn count_before(&self, seq: u64) -> Count {
        let (mut from, mut count) = self.tally.before(seq);
        if from <= self.head {
            (from, count) = (self.head, self.before_head);
        }
        // A record whose first entry was lost since the store was opened still counts.
        let mut is_first = from == self.head || self.entry(from - 1).map_or(true, |entry| entry.is_last);
        for seq in from..seq {
            let counts = !self.quarantined.holds(seq);
            match &self.entry(seq) {
                Ok(entry) => {
                    let begins = entry.is_first && !entry.is_dropped;
                    let found = Count { records: begins.into(), payload_bytes: entry.payload_len() };
                    count = if counts { count.plus(found) } else { count };
                    is_first = entry.is_last;
                }
                Err(_) => {
                    count.records += u64::from(counts && is_first);
                    is_first = true;
                }
            }
        }
        count
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
