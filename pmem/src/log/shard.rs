//! A shard: the arena and the log of one core.

mod append;
mod copy;
mod damage;
mod read;
mod scrub;
mod trim;

use std::{
    cell::RefCell,
    fmt, io,
    ops::Range,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use read::Records;
pub use scrub::Scrubbed;
pub use trim::Trimmed;

use self::{append::SPARE_DRAFTS, scrub::Unread};
use super::{
    draft::{Draft, Pack},
    error::CommitError,
    findings::Recovery,
    header::HeaderCell,
    proof::Durable,
    quarantine::Quarantined,
    ring::Ring,
    tally::{Count, Tally},
};
use crate::{
    arena::Arena,
    format::{
        entry::{ENTRY_BYTES, Entry, EntryFault},
        header::Header,
    },
    medium::{Ahead, Domain, Spent, Written},
    safeguard::{Safeguard, omits},
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
    /// The first entry whose buffers the log still holds; those before the head are trimmed.
    held: u64,
    /// The first entry that may not be written now: its slot is held, or it is too far ahead of what the header vouches for.
    write_end: u64,
    /// What is written into entries as their time.
    time_s: u32,
    tally: Tally,
    /// What the tally had counted before the head.
    before_head: Count,
    limits: Limits,
    /// What commits are timed by.
    clock: quanta::Clock,
    recovery: Recovery,
    quarantined: Quarantined,
    unread: Unread,
    ahead: Ahead,
    /// The buffer that short records are copied into.
    pack: Option<Pack>,
    /// The commit that is under way.
    underway: Option<Underway>,
    /// What the medium said when it failed.
    poison: Option<Arc<str>>,
    /// Tells this opening of this shard from any other in the process.
    id: u64,
    counters: Counters,
    /// Empty drafts, with the memory of those that were appended.
    spare: RefCell<Vec<Draft>>,
}

/// A commit that was started.
#[derive(Clone, Copy, Debug)]
struct Underway {
    /// The first entry that is not in it.
    next: u64,
    /// When it was started.
    begin: u64,
}

/// What a shard takes at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Longest record in bytes.
    pub max_record_bytes: u64,
    /// Buffers that the log leaves to the network.
    pub reserve: usize,
    /// Entries that may be written beyond what the header says is durable.
    pub ahead: u32,
    /// Shorter records are copied together.
    pub pack_below: usize,
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
    /// [`Extent::extend_by_copy`](crate::Extent::extend_by_copy).
    pub copied_bytes: u64,
    /// Cache lines flushed; none where the domain asks for none.
    pub flushed_lines: u64,
    /// Fences.
    pub fences: u64,
    /// Bytes that the device or the file behind the store was asked to write; none where a flush is an instruction.
    pub written_bytes: u64,
    /// What that took of writes, write-backs of a range, and syncs.
    pub write_requests: u64,
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
    /// Of what was recovered.
    pub tally: Tally,
    /// Entries of which no payload was read.
    pub unread: Range<u64>,
}

impl Shard {
    pub(crate) fn new(parts: Parts) -> Self {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let head = parts.header.current().head;
        let Recovery { records: live_records, payload_bytes: live_payload_bytes, .. } = parts.recovery;
        let counters = Counters { live_records, live_payload_bytes, ..Counters::default() };
        let mut shard = Self {
            ahead: Ahead::new(parts.arena.medium().clone()),
            arena: parts.arena,
            ring: parts.ring,
            header: parts.header,
            head,
            committed: parts.next,
            next: parts.next,
            held: head,
            write_end: 0,
            time_s: 0,
            tally: parts.tally,
            before_head: Count::default(),
            limits: parts.limits,
            clock: quanta::Clock::new(),
            recovery: parts.recovery,
            quarantined: parts.quarantined,
            unread: Unread::new(parts.unread),
            pack: None,
            underway: None,
            poison: None,
            id: OPENED.fetch_add(1, Ordering::Relaxed),
            counters,
            spare: RefCell::new(Vec::with_capacity(SPARE_DRAFTS)),
        };
        shard.set_write_end();
        shard
    }

    /// The shard's buffers.
    #[inline]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The first live entry: records with lower numbers are trimmed.
    #[inline]
    pub fn head_seq(&self) -> u64 {
        self.head
    }

    /// The number that the next record gets.
    #[inline]
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// The first entry that is not durable; records below can be read.
    #[inline]
    pub fn committed_seq(&self) -> u64 {
        self.committed
    }

    /// Says what time it is, in seconds since 1970: records that are appended from now on have this time, until there is
    /// another. A shard reads no clock.
    #[inline]
    pub fn set_time(&mut self, now_s: u32) {
        self.time_s = now_s;
    }

    /// The epoch of this opening.
    #[inline]
    pub fn epoch(&self) -> u32 {
        self.header.current().epoch
    }

    /// Entries that the log can hold.
    #[inline]
    pub fn log_entries(&self) -> u64 {
        self.ring.slots()
    }

    /// Entries that are free: each record takes one for each four pieces of it, and one at least.
    #[inline]
    pub fn free_log_entries(&self) -> u64 {
        self.ring.slots() - (self.next - self.held)
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
        let flushes_lines =
            !matches!(self.arena.medium().domain(), Domain::FenceOnly | Domain::Msync | Domain::Disk(_));
        let Written { bytes: written_bytes, requests: write_requests } = self.arena.medium().written();
        Counters {
            written_bytes,
            write_requests,
            copied_bytes: self.counters.copied_bytes + self.arena.copied_bytes(),
            flushed_lines: if flushes_lines { self.counters.flushed_lines } else { 0 },
            pm_bytes: buffers + (self.next - self.held) * ENTRY_BYTES as u64,
            ..self.counters
        }
    }

    /// The time that flushes and fences have taken; zeros unless the region was opened to be
    /// [`timed`](crate::Options::timed).
    pub fn spent(&self) -> Spent {
        self.arena.medium().spent()
    }

    /// Whether records wait for a [`commit`](Self::commit).
    #[inline]
    pub fn uncommitted(&self) -> bool {
        self.committed < self.next
    }

    /// Makes everything appended so far durable, with one fence. A commit that is under way is waited for first.
    ///
    /// # Errors
    /// [`CommitError`]: what was appended since the last commit may or may not be durable, and the shard takes
    /// nothing more.
    pub fn commit(&mut self) -> Result<Durable, CommitError> {
        self.sound()?;
        let mut took = Duration::ZERO;
        if self.uncommitted() {
            let begin = self.clock.raw();
            if !omits(Safeguard::CommitPackFlush) {
                self.flush_pack();
            }
            self.counters.fences += 1;
            let is_omitted = omits(Safeguard::CommitFence);
            let fenced = if is_omitted { Ok(()) } else { self.arena.medium().fence() };
            took = self.clock.delta(begin, self.clock.raw());
            self.fenced(fenced)?;
            self.committed = self.next;
            self.underway = None;
        }
        Ok(Durable::new(self.id, self.committed, took))
    }

    /// Starts to make durable what was appended so far, and gives the proof if that is done at once; else
    /// [`look_at_commit`](Self::look_at_commit) does. Meanwhile the shard takes appends, which are for the next commit. A
    /// commit that is under way is waited for first. Where a fence is an instruction, this is [`commit`](Self::commit).
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn start_commit(&mut self) -> Result<Option<Durable>, CommitError> {
        self.sound()?;
        let begin = self.clock.raw();
        if !omits(Safeguard::StartedPackFlush) {
            self.flush_pack();
        }
        self.counters.fences += 1;
        let is_omitted = omits(Safeguard::StartedFence);
        let started = if is_omitted { Ok(true) } else { self.arena.medium().start_fence() };
        let is_done = self.fenced(started)?;
        self.underway = Some(Underway { next: self.next, begin });
        Ok(if is_done { self.end_commit() } else { None })
    }

    /// The proof for what was appended before the commit that was [started](Self::start_commit), once that is done; none
    /// before, and if there is none under way.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn look_at_commit(&mut self) -> Result<Option<Durable>, CommitError> {
        self.sound()?;
        if self.underway.is_none() {
            return Ok(None);
        }
        let is_omitted = omits(Safeguard::StartedFenceEnd);
        let looked = if is_omitted { Ok(true) } else { self.arena.medium().is_fenced() };
        Ok(if self.fenced(looked)? { self.end_commit() } else { None })
    }

    /// The commit that is under way is done.
    fn end_commit(&mut self) -> Option<Durable> {
        let Underway { mut next, begin } = self.underway.take()?;
        if omits(Safeguard::StartedBound) {
            next = self.next;
        }
        self.committed = next;
        Some(Durable::new(self.id, next, self.clock.delta(begin, self.clock.raw())))
    }

    /// Whether a commit was started and is not known to be done.
    #[inline]
    pub fn is_committing(&self) -> bool {
        self.underway.is_some()
    }

    /// Whether commits take so long that there is something to be gained by [starting](Self::start_commit) them.
    pub fn commits_later(&self) -> bool {
        self.arena.medium().fences_later()
    }

    /// Has `bell`, an eventfd, written to when a commit that was [started](Self::start_commit) may be done.
    pub fn ring_bell(&self, bell: Arc<OwnedFd>) {
        self.arena.medium().ring_bell(bell);
    }

    /// Notes in the shard's header how far the log is durable, for idle moments and a clean end: records lost
    /// from there on count as corruption and not as a torn tail.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn checkpoint(&mut self) -> Result<(), CommitError> {
        self.sound()?;
        if self.header.current().durable_seq + 1 == self.committed || omits(Safeguard::CheckpointHeader) {
            return Ok(());
        }
        self.persist_header(self.head, 0)
    }

    #[inline]
    pub(crate) fn entry(&self, seq: u64) -> Result<Entry, EntryFault> {
        self.ring.read(seq)
    }

    /// Makes a header durable with this head, and with what is durable now. From then on so many more entries may be
    /// written at least.
    fn persist_header(&mut self, head: u64, more: u64) -> Result<(), CommitError> {
        let durable_seq = if omits(Safeguard::HeaderBound) { head - 1 } else { self.committed - 1 };
        let ahead = (self.next + more - self.committed).max(self.limits.ahead.into());
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let persisted = self.header.persist(Header { head, durable_seq, ahead, ..self.header.current() });
        self.counters.fences += persisted.as_ref().copied().unwrap_or(1);
        self.fenced(persisted.map(|_| ()))?;
        self.set_write_end();
        Ok(())
    }

    /// To be called when entries were released, or another header is durable.
    fn set_write_end(&mut self) {
        let Header { durable_seq, ahead, .. } = self.header.current();
        self.write_end = (self.held + self.ring.slots()).min(durable_seq + 1 + u64::from(ahead));
    }

    fn sound(&self) -> Result<(), CommitError> {
        match &self.poison {
            Some(why) => Err(CommitError::Poisoned { why: why.clone() }),
            None => Ok(()),
        }
    }

    /// After a failed fence nobody knows what the medium holds: the shard takes nothing more.
    fn fenced<T>(&mut self, result: io::Result<T>) -> Result<T, CommitError> {
        result.map_err(|error| {
            let why: Arc<str> = error.to_string().into();
            if !omits(Safeguard::Poison) {
                self.poison = Some(why.clone());
            }
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
