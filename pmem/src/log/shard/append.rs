//! Appending: from pieces that have arrived to log entries that are on their way to the medium.

use std::iter;

use super::Shard;
use crate::{
    arena::Extent,
    format::{
        crc,
        entry::{Body, ENTRY_EXTENTS, Entry, ExtentName, INLINE_BYTES},
    },
    log::{
        draft::{Building, Draft, Pack, lines, take_beyond},
        error::{AppendError, Full},
        proof::{Pending, Receipt},
        tally::Count,
    },
    safeguard::{Safeguard, omits},
};

/// Appended drafts whose memory is kept.
pub(super) const SPARE_DRAFTS: usize = 64;

impl Shard {
    /// An empty record.
    pub fn draft(&self) -> Draft {
        self.spare.borrow_mut().pop().unwrap_or_else(|| Draft::new(self.id, self.limits.pack_below))
    }

    /// Adds a piece to a record. Unless the record is still short, the piece's lines are flushed and its
    /// checksum is taken now, so that a long record does not hold up the burst in which it ends.
    ///
    /// # Errors
    /// [`AppendError`]: the piece is released. The draft is good for nothing but dropping then.
    pub fn push(&mut self, draft: &mut Draft, extent: Extent) -> Result<(), AppendError> {
        self.accepts(draft)?;
        self.admits(&extent, draft.len())?;
        if extent.is_empty() {
            return Ok(());
        }
        draft.0.push(&self.arena, self.limits.reserve, extent)
    }

    /// Writes a record's log entries and flushes them, without a fence: [`commit`](Self::commit) makes it durable.
    ///
    /// # Errors
    /// [`AppendError`]: nothing is in the log, and the draft's buffers are released.
    pub fn append(&mut self, mut draft: Draft) -> Result<Pending, AppendError> {
        self.accepts(&draft)?;
        let building = &mut *draft.0;
        let pending = if building.is_short() {
            let pieces = building.gathered.iter().map(Extent::bytes);
            self.append_short(building.len as usize, pieces)
        } else {
            self.append_long(building)
        };
        if pending.is_ok() {
            self.counters.copied_bytes += building.cost.copied_bytes;
            self.counters.flushed_lines += building.cost.flushed_lines;
        }
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_DRAFTS {
            spare.extend(draft.emptied());
        }
        pending
    }

    /// Appends a record that has arrived in one piece: as a [`draft`](Self::draft) of that piece, in fewer steps.
    ///
    /// # Errors
    /// As [`push`](Self::push) and [`append`](Self::append): nothing is in the log, and the piece is released.
    pub fn append_extent(&mut self, extent: Extent) -> Result<Pending, AppendError> {
        self.is_sound()?;
        self.admits(&extent, 0)?;
        let len = extent.len();
        if len < self.limits.pack_below {
            return self.append_short(len, iter::once(extent.bytes()));
        }
        self.has_entries(1)?;
        if !extent.claim() {
            // What is in the log already has to be copied.
            let mut draft = self.draft();
            draft.0.push(&self.arena, self.limits.reserve, extent)?;
            return self.append(draft);
        }
        let crc32c = crc::crc32c(extent.bytes());
        let from = extent.medium_offset();
        if !omits(Safeguard::WholePieceFlush) {
            self.arena.medium().flush(from, len);
        }
        self.counters.flushed_lines += lines(from, from + len);
        self.write_piece(extent, crc32c);
        Ok(self.written(1, len as u64, crc32c))
    }

    /// Appends a record that lies in DRAM: as [`append`](Self::append), but with each byte copied, once.
    ///
    /// # Errors
    /// [`AppendError`]: nothing is in the log.
    pub fn append_copy(&mut self, bytes: &[u8]) -> Result<Pending, AppendError> {
        self.is_sound()?;
        let (len, max) = (bytes.len() as u64, self.limits.max_record_bytes);
        if len > max {
            return Err(AppendError::TooLong { len, max });
        }
        if bytes.len() < self.limits.pack_below {
            return self.append_short(bytes.len(), iter::once(bytes));
        }
        let buffers = bytes.len() / self.arena.buffer_bytes() + 2;
        self.make_room(|shard| shard.arena.free_buffers() > shard.limits.reserve + buffers);
        let mut draft = self.draft();
        draft.0.copy_in(&self.arena, self.limits.reserve, bytes)?;
        self.append(draft)
    }

    /// Appends a record of so many bytes, fewer than are packed: copied into its log entry, or to those before it.
    fn append_short<'a>(
        &mut self,
        len: usize,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Pending, AppendError> {
        self.has_entries(1)?;
        let crc32c = if len <= INLINE_BYTES {
            let mut bytes = [0; INLINE_BYTES];
            let mut at = 0;
            for piece in pieces {
                bytes[at..at + piece.len()].copy_from_slice(piece);
                at += piece.len();
            }
            let crc32c = crc::crc32c(&bytes[..len]);
            self.write_entry(0, crc32c, true, true, Body::Inline { bytes, len: len as u8 });
            crc32c
        } else {
            let copy = self.pack(len, pieces)?;
            let crc32c = crc::crc32c(copy.bytes());
            self.write_piece(copy, crc32c);
            crc32c
        };
        self.counters.copied_bytes += len as u64;
        Ok(self.written(1, len as u64, crc32c))
    }

    /// Appends a record that stays in the buffers where it is.
    fn append_long(&mut self, building: &mut Building) -> Result<Pending, AppendError> {
        let groups = building.extents.len().div_ceil(ENTRY_EXTENTS);
        self.has_entries(groups as u64)?;
        if !omits(Safeguard::DraftFlush) {
            building.flush_pack(&self.arena);
        }
        for (group, pieces) in building.extents.chunks(ENTRY_EXTENTS).enumerate() {
            let mut names = [ExtentName::default(); ENTRY_EXTENTS];
            names.iter_mut().zip(pieces).for_each(|(name, extent)| *name = extent.name());
            let body = Body::Extents { names, count: pieces.len() as u8 };
            let crc = building.crcs.get(group).copied().unwrap_or(building.crc);
            self.write_entry(group as u64, crc, group == 0, group + 1 == groups, body);
        }
        building.extents.drain(..).for_each(|extent| self.arena.log(extent));
        Ok(self.written(groups as u64, building.len, building.crc))
    }

    /// Puts a short record's pieces together in the shard's pack.
    fn pack<'a>(
        &mut self,
        len: usize,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Extent, AppendError> {
        if self.pack.as_ref().is_none_or(|pack| pack.room(&self.arena) < len) {
            self.make_room(|shard| shard.arena.free_buffers() > shard.limits.reserve);
            let buffer = take_beyond(&self.arena, self.limits.reserve)?;
            if !omits(Safeguard::FullPackFlush) {
                self.flush_pack();
            }
            self.pack = Some(Pack::new(buffer));
        }
        let pack = self.pack.as_mut().expect("it was put there");
        Ok(pack.fill(pieces))
    }

    /// Flushes the part of the pack that was written since the last time.
    pub(super) fn flush_pack(&mut self) {
        if let Some(pack) = &mut self.pack {
            self.counters.flushed_lines += pack.flush(&self.arena);
        }
    }

    /// Writes the only entry of a record that is one piece, and takes over its reference.
    #[inline]
    fn write_piece(&mut self, extent: Extent, crc32c: u32) {
        let mut names = [ExtentName::default(); ENTRY_EXTENTS];
        names[0] = extent.name();
        self.write_entry(0, crc32c, true, true, Body::Extents { names, count: 1 });
        self.arena.log(extent);
    }

    /// Writes entry number `index` of the next record. It is not flushed.
    #[inline]
    fn write_entry(&mut self, index: u64, payload_crc: u32, is_first: bool, is_last: bool, body: Body) {
        self.ring.write(&Entry {
            seq: self.next + index,
            durable_seq: if omits(Safeguard::EntryBound) { 0 } else { self.committed - 1 },
            time_s: self.time_s,
            epoch: self.epoch(),
            payload_crc,
            is_first,
            is_last,
            is_dropped: false,
            body,
        });
    }

    /// Flushes so many entries that were written behind the last one.
    #[inline]
    pub(super) fn flush_entries(&mut self, entries: u64) {
        self.counters.flushed_lines += self.ring.flush(Safeguard::EntryFlush, self.next, entries);
    }

    /// Flushes the entries of the next record, which are all written, and counts it.
    #[inline]
    fn written(&mut self, entries: u64, len: u64, crc32c: u32) -> Pending {
        self.flush_entries(entries);
        self.counters.appended_records += 1;
        self.counters.payload_bytes += len;
        self.counters.live_records += 1;
        self.counters.live_payload_bytes += len;
        self.tally.add(self.next, entries, Count::of(len));
        let receipt = Receipt { seq: self.next, len, crc32c, epoch: self.epoch() };
        self.next += entries;
        Pending::new(self.id, receipt)
    }

    /// Refuses everything after a failed fence.
    #[inline]
    fn is_sound(&self) -> Result<(), AppendError> {
        match &self.poison {
            Some(why) => Err(AppendError::Poisoned { why: why.clone() }),
            None => Ok(()),
        }
    }

    #[inline]
    fn accepts(&self, draft: &Draft) -> Result<(), AppendError> {
        self.is_sound()?;
        if draft.0.shard == self.id { Ok(()) } else { Err(AppendError::Foreign) }
    }

    /// Refuses a piece that no record can have, or none that has so many bytes before it.
    #[inline]
    fn admits(&mut self, extent: &Extent, before: u64) -> Result<(), AppendError> {
        if !extent.is_in(&self.arena) {
            return Err(AppendError::Foreign);
        }
        let (len, max) = (before + extent.len() as u64, self.limits.max_record_bytes);
        let reserve = self.limits.reserve;
        self.make_room(|shard| shard.arena.free_buffers() > reserve);
        let free = self.arena.free_buffers();
        if extent.is_empty() || len <= max && free >= reserve {
            return Ok(());
        }
        Err(if len > max {
            AppendError::TooLong { len, max }
        } else {
            AppendError::Full(Full::Buffers { free, reserve })
        })
    }

    #[inline]
    pub(super) fn has_entries(&mut self, needed: u64) -> Result<(), AppendError> {
        if self.next + needed <= self.write_end { Ok(()) } else { self.make_entries(needed) }
    }

    /// Has slots released, and a header written, so that entries may be.
    #[cold]
    fn make_entries(&mut self, needed: u64) -> Result<(), AppendError> {
        self.make_room(|shard| needed <= shard.free_log_entries());
        let free = self.free_log_entries();
        if needed > free {
            return Err(AppendError::Full(Full::LogEntries { needed, free }));
        }
        if self.next + needed > self.write_end && !omits(Safeguard::AheadHeader) {
            let persisted = self.persist_header(self.head, needed);
            persisted.map_err(|error| AppendError::Poisoned { why: error.to_string().into() })?;
        }
        Ok(())
    }
}
