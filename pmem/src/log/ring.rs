//! The log's slots: a ring of entries, where entry `seq` lies in slot `seq mod N`.

use std::{
    arch::x86_64::{_MM_HINT_T0, _mm_prefetch},
    ptr,
    sync::Arc,
};

use crate::{
    format::entry::{ENTRY_BYTES, Entry, EntryFault},
    medium::{Medium, flush_found},
    safeguard::{Safeguard, omits},
};

/// A shard's ring of log entries in the medium.
pub(crate) struct Ring {
    medium: Arc<dyn Medium>,
    /// Where the first slot lies in the medium, and where that is mapped for as long as the medium lives.
    offset: usize,
    base: *const u8,
    slots: u32,
    seed: u32,
}

impl Ring {
    /// A ring of `slots` entries, a power of two, at `offset`.
    pub(crate) fn new(medium: Arc<dyn Medium>, offset: usize, slots: u32, seed: u32) -> Self {
        assert!(slots.is_power_of_two() && offset + slots as usize * ENTRY_BYTES <= medium.len());
        let base = medium.base().as_ptr().wrapping_add(offset);
        Self { medium, offset, base, slots, seed }
    }

    #[inline]
    pub(crate) fn slots(&self) -> u64 {
        self.slots.into()
    }

    /// Entry `seq`, if its slot holds it.
    #[inline]
    pub(crate) fn read(&self, seq: u64) -> Result<Entry, EntryFault> {
        let entry = Entry::decode(&self.slot(seq), self.seed)?;
        if entry.seq == seq { Ok(entry) } else { Err(EntryFault::Seq { found: entry.seq }) }
    }

    /// The bytes in the slot of `seq`.
    #[inline]
    pub(crate) fn slot(&self, seq: u64) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        let from = self.base.wrapping_add(self.within(seq));
        // SAFETY: the ring lies inside the medium (checked in `new`), and only its one owner writes it.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), ENTRY_BYTES) };
        bytes
    }

    /// Has the CPU fetch the slot of `seq`.
    #[inline]
    pub(crate) fn prefetch(&self, seq: u64) {
        let slot = self.base.wrapping_add(self.within(seq));
        // SAFETY: it lies inside the medium; a prefetch reads nothing that could be seen.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(slot.cast()) };
    }

    /// Stores an entry in its slot. It is neither flushed nor fenced.
    #[inline]
    pub(crate) fn write(&mut self, entry: &Entry) {
        let bytes = entry.encode(self.seed);
        // SAFETY: the ring lies inside the medium (checked in `new`), this is its only owner, and no references
        // into it are ever made.
        unsafe { self.medium.store(self.slot_offset(entry.seq), &bytes) };
    }

    /// Flushes the slots of `count` entries from `seq` on; returns the number of lines.
    #[inline]
    pub(crate) fn flush(&self, safeguard: Safeguard, seq: u64, count: u64) -> u64 {
        if !omits(safeguard) {
            self.for_slots(seq, count, |offset, len| self.medium.flush(offset, len));
        }
        count
    }

    /// Flushes the slots of entries that were found there, and may be on the medium or not.
    pub(crate) fn flush_found(&mut self, seq: u64, count: u64) {
        if omits(Safeguard::FoundEntriesFlush) {
            return;
        }
        // SAFETY: the ring lies inside the medium (checked in `new`), and this is its only owner.
        self.for_slots(seq, count, |offset, len| unsafe { flush_found(&*self.medium, offset, len) });
    }

    /// The one or two ranges in which the slots of `count` entries lie.
    #[inline]
    fn for_slots(&self, seq: u64, count: u64, mut range: impl FnMut(usize, usize)) {
        let first = seq & (self.slots() - 1);
        let before_end = count.min(self.slots() - first);
        range(self.slot_offset(seq), before_end as usize * ENTRY_BYTES);
        if before_end < count && !omits(Safeguard::WrappedEntryFlush) {
            range(self.offset, (count - before_end) as usize * ENTRY_BYTES);
        }
    }

    /// Where the slot of `seq` lies in the medium.
    #[inline]
    pub(crate) fn slot_offset(&self, seq: u64) -> usize {
        self.offset + self.within(seq)
    }

    /// Where an entry's slot lies behind the first.
    #[inline]
    fn within(&self, seq: u64) -> usize {
        (seq & (self.slots() - 1)) as usize * ENTRY_BYTES
    }
}
