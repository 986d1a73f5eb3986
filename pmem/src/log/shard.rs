//! A shard: the arena and the log of one core.

mod read;

use std::{
    cell::RefCell,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use read::Records;

use super::{
    draft::{Draft, Memory, Pack, take_beyond},
    error::{AppendError, CommitError, Full},
    findings::Recovery,
    header::HeaderCell,
    quarantine::{Quarantine, Quarantined},
    ring::Ring,
};
use crate::{
    arena::{Arena, Extent},
    format::{
        crc,
        entry::{Body, ENTRY_BYTES, ENTRY_EXTENTS, Entry, EntryFault, ExtentName, INLINE_BYTES},
        header::Header,
    },
    medium::{Domain, Spent},
};

/// The arena and the log of one core.
///
/// The log holds records `head_seq()..next_seq()`. A record takes one log entry or more; its number is the
/// sequence number of its first, so that numbers rise but are not dense.
pub struct Shard {
    arena: Arena,
    ring: Ring,
    header: HeaderCell,
    /// The first live entry, the first that is not durable yet, and the next to be written.
    head: u64,
    committed: u64,
    next: u64,
    limits: Limits,
    /// What commits are timed by.
    clock: quanta::Clock,
    recovery: Recovery,
    quarantined: Quarantined,
    /// The buffer that short records are copied into.
    pack: Option<Pack>,
    /// What the medium said when it failed.
    poison: Option<Arc<str>>,
    /// Tells this opening of this shard from any other in the process.
    id: u64,
    counters: Counters,
    /// Memory of drafts that were appended, for the next ones.
    spare: RefCell<Vec<Memory>>,
}

/// What a shard takes at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Longest record in bytes.
    pub max_record_bytes: u64,
    /// Buffers that the log leaves to the network.
    pub reserve: usize,
}

/// What a shard has done since it was opened, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Records appended.
    pub appended_records: u64,
    /// Payload bytes of those records.
    pub payload_bytes: u64,
    /// Payload bytes copied by the CPU: short records, drafts of many short pieces, and
    /// [`Extent::extend_by_copy`].
    pub copied_bytes: u64,
    /// Cache lines flushed; none where the domain asks for none.
    pub flushed_lines: u64,
    /// Fences.
    pub fences: u64,
    /// Records trimmed.
    pub trimmed_records: u64,
    /// Records in the log now.
    pub live_records: u64,
    /// Payload bytes of those records.
    pub live_payload_bytes: u64,
    /// Persistent memory that they occupy: their whole buffers and their log entries.
    /// Divided by `live_payload_bytes` it is the space amplification.
    pub pm_bytes: u64,
}

/// An append that may not be durable yet. It has no number to show before [`Durable::confirm`].
#[must_use = "the record is not durable before a commit confirms it"]
pub struct Pending {
    shard: u64,
    receipt: Receipt,
}

/// Proof that a shard's log is durable up to some record. Only [`Shard::commit`] makes one.
#[derive(Debug)]
pub struct Durable {
    shard: u64,
    /// Every entry below is durable.
    next: u64,
    took: Duration,
}

/// A durable record's number. Only [`Durable::confirm`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The record's number.
    pub seq: u64,
    /// Its length in bytes.
    pub len: u64,
    /// CRC-32C of its bytes.
    pub crc32c: u32,
    /// The epoch in which it was written.
    pub epoch: u32,
}

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

impl Durable {
    /// How long the commit took, from its beginning until the medium said that it is done; zero if there was nothing to
    /// commit. It is for statistics.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Turns an append into its receipt.
    ///
    /// # Errors
    /// The append itself, if it came after this commit or belongs to another shard.
    pub fn confirm(&self, pending: Pending) -> Result<Receipt, Pending> {
        if pending.shard == self.shard && pending.receipt.seq < self.next {
            Ok(pending.receipt)
        } else {
            Err(pending)
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending { .. }")
    }
}

/// Appended drafts whose memory is kept.
const SPARE_DRAFTS: usize = 64;

/// What [`Shard::new`] needs.
pub(crate) struct Parts {
    pub arena: Arena,
    pub ring: Ring,
    pub header: HeaderCell,
    pub limits: Limits,
    /// The next entry; all before are durable.
    pub next: u64,
    pub recovery: Recovery,
    pub quarantined: Quarantined,
}

impl Shard {
    pub(crate) fn new(parts: Parts) -> Self {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let head = parts.header.current().head;
        let Recovery { records: live_records, payload_bytes: live_payload_bytes, .. } = parts.recovery;
        let counters = Counters { live_records, live_payload_bytes, ..Counters::default() };
        Self {
            arena: parts.arena,
            ring: parts.ring,
            header: parts.header,
            head,
            committed: parts.next,
            next: parts.next,
            limits: parts.limits,
            clock: quanta::Clock::new(),
            recovery: parts.recovery,
            quarantined: parts.quarantined,
            pack: None,
            poison: None,
            id: OPENED.fetch_add(1, Ordering::Relaxed),
            counters,
            spare: RefCell::new(Vec::with_capacity(SPARE_DRAFTS)),
        }
    }

    /// The shard's buffers.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The first live entry: records with lower numbers are trimmed.
    pub fn head_seq(&self) -> u64 {
        self.head
    }

    /// The number that the next record gets.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// The first entry that is not durable; records below can be read.
    pub fn committed_seq(&self) -> u64 {
        self.committed
    }

    /// The epoch of this opening.
    pub fn epoch(&self) -> u32 {
        self.header.current().epoch
    }

    /// Entries that the log can hold.
    pub fn log_entries(&self) -> u64 {
        self.ring.slots()
    }

    /// Entries that are free: each record takes one for each four pieces of it, and one at least.
    pub fn free_log_entries(&self) -> u64 {
        self.ring.slots() - (self.next - self.head)
    }

    /// The longest record in bytes.
    pub fn max_record_bytes(&self) -> u64 {
        self.limits.max_record_bytes
    }

    /// Buffers that the log leaves to the network.
    pub fn reserve(&self) -> usize {
        self.limits.reserve
    }

    /// What opening the shard found.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// What has been done, and what is held.
    pub fn counters(&self) -> Counters {
        let buffers = u64::from(self.arena.logged_buffers()) * self.arena.buffer_bytes() as u64;
        let flushes_lines = !matches!(self.arena.medium().domain(), Domain::FenceOnly | Domain::Msync);
        Counters {
            copied_bytes: self.counters.copied_bytes + self.arena.copied_bytes(),
            flushed_lines: if flushes_lines { self.counters.flushed_lines } else { 0 },
            pm_bytes: buffers + (self.next - self.head) * ENTRY_BYTES as u64,
            ..self.counters
        }
    }

    /// The time that flushes and fences have taken; zeros unless the region was opened to be
    /// [`timed`](crate::Options::timed).
    pub fn spent(&self) -> Spent {
        self.arena.medium().spent()
    }

    /// An empty record.
    pub fn draft(&self) -> Draft {
        Draft::new(self.id, self.spare.borrow_mut().pop().unwrap_or_default())
    }

    /// Adds a piece to a record. Unless the record is still short, the piece's lines are flushed and its
    /// checksum is taken now, so that a long record does not hold up the burst in which it ends.
    ///
    /// # Errors
    /// [`AppendError`]: the piece is released. The draft is good for nothing but dropping then.
    pub fn push(&mut self, draft: &mut Draft, extent: Extent) -> Result<(), AppendError> {
        self.accepts(draft)?;
        if !extent.is_in(&self.arena) {
            return Err(AppendError::Foreign);
        }
        if extent.is_empty() {
            return Ok(());
        }
        let (len, max) = (draft.len() + extent.len() as u64, self.limits.max_record_bytes);
        if len > max {
            return Err(AppendError::TooLong { len, max });
        }
        let (free, reserve) = (self.arena.free_buffers(), self.limits.reserve);
        if free < reserve {
            return Err(AppendError::Full(Full::Buffers { free, reserve }));
        }
        draft.push(&self.arena, reserve, extent)
    }

    /// Writes a record's log entries and flushes them, without a fence: [`commit`](Self::commit) makes it durable.
    ///
    /// # Errors
    /// [`AppendError`]: nothing is in the log, and the draft's buffers are released.
    pub fn append(&mut self, mut draft: Draft) -> Result<Pending, AppendError> {
        self.accepts(&draft)?;
        let mut gathered = std::mem::take(&mut draft.gathered);
        let pending = self.write(&mut draft, gathered.iter().map(Extent::bytes));
        gathered.clear();
        draft.gathered = gathered;
        self.recycle(draft);
        pending
    }

    /// Appends a record that lies in DRAM: as [`append`](Self::append), but with each byte copied, once.
    ///
    /// # Errors
    /// [`AppendError`]: nothing is in the log.
    pub fn append_copy(&mut self, bytes: &[u8]) -> Result<Pending, AppendError> {
        let mut draft = self.draft();
        self.accepts(&draft)?;
        let (len, max) = (bytes.len() as u64, self.limits.max_record_bytes);
        if len > max {
            return Err(AppendError::TooLong { len, max });
        }
        draft.copy_in(&self.arena, self.limits.reserve, bytes)?;
        let pending = self.write(&mut draft, std::iter::once(bytes));
        self.recycle(draft);
        pending
    }

    /// Writes a record's log entries and flushes them. A short one consists of `pieces`.
    fn write<'a>(
        &mut self,
        draft: &mut Draft,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Pending, AppendError> {
        let needed = draft.extents.len().div_ceil(ENTRY_EXTENTS).max(1) as u64;
        let free = self.free_log_entries();
        let needed = if draft.is_short() { 1 } else { needed };
        if needed > free {
            return Err(AppendError::Full(Full::LogEntries { needed, free }));
        }
        let crc32c = if draft.len() <= INLINE_BYTES as u64 {
            self.append_inline(draft, pieces)
        } else {
            if draft.is_short() {
                self.pack(draft, pieces)?;
            } else {
                draft.flush_pack(&self.arena);
            }
            self.append_extents(draft)
        };
        self.counters.flushed_lines += self.ring.flush(self.next, needed) + draft.cost.flushed_lines;
        self.counters.copied_bytes += draft.cost.copied_bytes;
        self.counters.appended_records += 1;
        self.counters.payload_bytes += draft.len();
        self.counters.live_records += 1;
        self.counters.live_payload_bytes += draft.len();
        let receipt = Receipt { seq: self.next, len: draft.len(), crc32c, epoch: self.epoch() };
        self.next += needed;
        Ok(Pending { shard: self.id, receipt })
    }

    /// Whether records wait for a [`commit`](Self::commit).
    #[inline]
    pub fn uncommitted(&self) -> bool {
        self.committed < self.next
    }

    /// Makes everything appended so far durable, with one fence.
    ///
    /// # Errors
    /// [`CommitError`]: what was appended since the last commit may or may not be durable, and the shard takes
    /// nothing more.
    pub fn commit(&mut self) -> Result<Durable, CommitError> {
        self.sound()?;
        let mut took = Duration::ZERO;
        if self.uncommitted() {
            let begin = self.clock.raw();
            self.flush_pack();
            self.counters.fences += 1;
            let fenced = self.arena.medium().fence();
            took = self.clock.delta(begin, self.clock.raw());
            self.fenced(fenced)?;
            self.committed = self.next;
        }
        Ok(Durable { shard: self.id, next: self.committed, took })
    }

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
        let mut trimmed = Trimmed { head: self.head, records: 0, payload_bytes: 0 };
        // A record whose first entry was lost since the store was opened still counts.
        let mut is_first = true;
        while trimmed.head < self.committed {
            let seq = trimmed.head;
            let entry = self.entry(seq).ok();
            is_first = entry.map_or(is_first, |entry| entry.is_first);
            if entry.is_none_or(|entry| entry.is_first) && seq >= before {
                break;
            }
            if !self.quarantined.holds(seq) {
                trimmed.records += u64::from(is_first && !entry.is_some_and(|entry| entry.is_dropped));
                trimmed.payload_bytes += entry.map_or(0, |entry| entry.payload_len());
            }
            is_first = entry.is_none_or(|entry| entry.is_last);
            trimmed.head += 1;
        }
        if trimmed.head == self.head {
            return Ok(trimmed);
        }
        self.persist_header(trimmed.head)?;
        for entry in (self.head..trimmed.head).filter_map(|seq| self.ring.read(seq).ok()) {
            self.release(&entry);
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

    /// Ends the log's references to what an entry names.
    fn release(&self, entry: &Entry) {
        for &ExtentName { buffer, offset, len } in entry.extents() {
            // What lies outside of the arena was never held, and neither is what an outsider wrote into the log.
            if self.arena.holds(buffer, offset, len) {
                self.arena.release_logged(buffer);
            }
        }
    }

    /// Notes in the shard's header how far the log is durable, for idle moments and a clean end: records lost
    /// from there on count as corruption and not as a torn tail.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn checkpoint(&mut self) -> Result<(), CommitError> {
        self.sound()?;
        if self.header.current().durable_seq + 1 == self.committed {
            return Ok(());
        }
        self.persist_header(self.head)
    }

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
        let epoch = before.map_or(0, |entry| entry.epoch);
        let held: Vec<_> = (seq..seq + entries).filter_map(|seq| self.entry(seq).ok()).collect();
        for seq in seq..seq + entries {
            self.ring.write(&Entry::dropped(seq, epoch));
        }
        self.counters.flushed_lines += self.ring.flush(seq, entries);
        self.counters.fences += 1;
        let fenced = self.arena.medium().fence();
        self.fenced(fenced)?;
        held.iter().for_each(|entry| self.release(entry));
        self.quarantined.forget(seq, seq + entries);
        Ok(true)
    }

    pub(crate) fn quarantined(&self) -> &Quarantined {
        &self.quarantined
    }

    pub(crate) fn entry(&self, seq: u64) -> Result<Entry, EntryFault> {
        self.ring.read(seq)
    }

    fn accepts(&self, draft: &Draft) -> Result<(), AppendError> {
        match &self.poison {
            Some(why) => Err(AppendError::Poisoned { why: why.clone() }),
            None if draft.shard != self.id => Err(AppendError::Foreign),
            None => Ok(()),
        }
    }

    /// Writes a record into its log entry; returns its checksum.
    fn append_inline<'a>(&mut self, draft: &mut Draft, pieces: impl Iterator<Item = &'a [u8]>) -> u32 {
        let mut bytes = [0; INLINE_BYTES];
        let mut len = 0;
        for piece in pieces {
            bytes[len..len + piece.len()].copy_from_slice(piece);
            len += piece.len();
        }
        draft.cost.copied_bytes += len as u64;
        let crc = crc::crc32c(&bytes[..len]);
        self.write_entry(0, crc, true, true, Body::Inline { bytes, len: len as u8 });
        crc
    }

    /// Puts a short record's pieces together in the shard's pack.
    fn pack<'a>(
        &mut self,
        draft: &mut Draft,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), AppendError> {
        let len = draft.len() as usize;
        if self.pack.as_ref().is_none_or(|pack| pack.room(&self.arena) < len) {
            let buffer = take_beyond(&self.arena, self.limits.reserve)?;
            self.flush_pack();
            self.pack = Some(Pack::new(buffer));
        }
        let pack = self.pack.as_mut().expect("it was put there");
        let copy = pack.fill(pieces);
        draft.cost.copied_bytes += len as u64;
        draft.crcs.push(crc::crc32c(copy.bytes()));
        draft.extents.push(copy);
        Ok(())
    }

    /// Flushes the part of the pack that was written since the last time.
    fn flush_pack(&mut self) {
        if let Some(pack) = &mut self.pack {
            self.counters.flushed_lines += pack.flush(&self.arena);
        }
    }

    /// Writes a record that lies in buffers, and takes over their references; returns its checksum.
    fn append_extents(&mut self, draft: &mut Draft) -> u32 {
        let groups = draft.crcs.len();
        for (group, &crc) in draft.crcs.iter().enumerate() {
            let pieces = &draft.extents[group * ENTRY_EXTENTS..];
            let pieces = &pieces[..pieces.len().min(ENTRY_EXTENTS)];
            let mut names = [ExtentName::default(); ENTRY_EXTENTS];
            for (name, extent) in names.iter_mut().zip(pieces) {
                let (offset, len) = (extent.offset() as u16, extent.len() as u16);
                *name = ExtentName { buffer: extent.buffer_id(), offset, len };
            }
            let body = Body::Extents { names, count: pieces.len() as u8 };
            self.write_entry(group as u64, crc, group == 0, group + 1 == groups, body);
        }
        draft.extents.drain(..).for_each(|extent| self.arena.log(extent));
        *draft.crcs.last().expect("a record in buffers has a piece")
    }

    fn write_entry(&mut self, index: u64, payload_crc: u32, is_first: bool, is_last: bool, body: Body) {
        let epoch = self.epoch();
        let (seq, durable_seq) = (self.next + index, self.committed - 1);
        self.ring.write(&Entry {
            seq,
            durable_seq,
            epoch,
            payload_crc,
            is_first,
            is_last,
            is_dropped: false,
            body,
        });
    }

    fn recycle(&self, draft: Draft) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_DRAFTS {
            spare.extend(draft.into_memory());
        }
    }

    fn persist_header(&mut self, head: u64) -> Result<(), CommitError> {
        let header = Header { head, durable_seq: self.committed - 1, ..self.header.current() };
        let persisted = self.header.persist(header);
        self.counters.fences += persisted.as_ref().copied().unwrap_or(1);
        self.fenced(persisted.map(|_| ()))
    }

    fn sound(&self) -> Result<(), CommitError> {
        match &self.poison {
            Some(why) => Err(CommitError::Poisoned { why: why.clone() }),
            None => Ok(()),
        }
    }

    /// After a failed fence nobody knows what the medium holds: the shard takes nothing more.
    fn fenced(&mut self, result: io::Result<()>) -> Result<(), CommitError> {
        result.map_err(|error| {
            let why: Arc<str> = error.to_string().into();
            self.poison = Some(why.clone());
            CommitError::Fence { why }
        })
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("head", &self.head)
            .field("committed", &self.committed)
            .field("next", &self.next)
            .field("epoch", &self.epoch())
            .field("arena", &self.arena)
            .finish_non_exhaustive()
    }
}
