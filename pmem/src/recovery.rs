//! Opening a shard: from what a crash left behind to a log that can go on.

pub(crate) mod error;
pub(crate) mod scan;

use std::{cell::Cell, io, ops::ControlFlow, path::PathBuf, sync::Arc};

use uuid::Uuid;

use self::{
    error::OpenError,
    scan::{Corruption, LogPlan, Outcome, Scanned, Source, scan},
};
use crate::{
    arena::Arena,
    format::{
        entry::{ENTRY_BYTES, EntryFault, ExtentName, crc_seed},
        geometry::Geometry,
        header::{HEADER_BYTES, Header},
    },
    log::{
        findings::Recovery,
        header::HeaderCell,
        ring::Ring,
        shard::{Limits, Parts, Shard},
        tally::{Count, Tally},
    },
    medium::{Ahead, Medium, MediumLock, flush_found},
    safeguard::{Safeguard, omits},
    watch::{Watch, Work},
};

/// A shard as it lies in a medium, before anything of it is read.
pub(crate) struct UnopenedShard {
    pub(crate) lock: Arc<MediumLock>,
    pub(crate) medium: Arc<dyn Medium>,
    pub(crate) geometry: Geometry,
    pub(crate) uuid: Uuid,
    pub(crate) index: u32,
    pub(crate) limits: Limits,
    /// The highest epoch of any shard of the region.
    pub(crate) latest_epoch: u32,
    pub(crate) path: PathBuf,
    pub(crate) watch: Watch,
    pub(crate) is_new: bool,
    /// Whether the payload of records that are known to have been durable is left unread.
    pub(crate) trusts_durable: bool,
}

impl UnopenedShard {
    /// Recovers the shard, and opens it. `begin` is done before anything else of the medium is read or written.
    pub(crate) fn open(self, begin: impl FnOnce() -> Result<(), OpenError>) -> Result<Shard, OpenError> {
        let Self { medium, lock, geometry, uuid, index, limits, latest_epoch, path, watch, is_new, .. } =
            self;
        let mut progress = Progress::new(&watch, index);
        progress.tell();
        let interrupted = || OpenError::Interrupted { path: path.clone() };
        if progress.is_stopped.get() {
            return Err(interrupted());
        }
        begin()?;
        let nobody = Watch::default();
        if is_new {
            // Now that it is made there is nothing left to go back to, and little to read.
            progress = Progress::new(&nobody, index);
        }
        let seed = crc_seed(uuid, index);
        let corrupt = |corruption| OpenError::Corrupt { shard: index, corruption };
        let places = geometry.headers_of(index);
        let headers = HeaderCell::read(&*medium, places);
        let headers = Header::find(&headers, seed).ok_or(corrupt(Corruption::Header))?;
        let found = headers.header;
        let arena = Arena::new(medium.clone(), lock, &geometry, index);
        let mut ring = Ring::new(medium.clone(), geometry.log_of(index), geometry.log_entries, seed);
        let plan = LogPlan {
            header: found,
            slots: ring.slots(),
            seed,
            buffers: geometry.buffers,
            buffer_bytes: geometry.buffer_bytes,
            may_be_stale: headers.damage.is_some() || !found.is_mirrored,
            checks_durable: !self.trusts_durable,
        };
        let mut lost = None;
        let [log, payload] = [(); 2].map(|()| Ahead::new(medium.clone()));
        let source = Open { arena: &arena, ring: &ring, progress: &progress, log, payload };
        let mut tally = Tally::new(plan.slots, found.head);
        // Counted, and found to share bytes with another only then.
        let mut uncounted = Vec::new();
        let outcome = scan(&source, &plan, &mut |scanned| match scanned {
            Scanned::Record(info, names) => {
                tally.add(info.seq, info.entries, Count::of(info.len));
                if !omits(Safeguard::LiveBuffers) {
                    names.iter().for_each(|name| arena.restore_logged(name.buffer));
                }
                ControlFlow::Continue(())
            }
            // One record more or less to serve; the others are what they are.
            Scanned::Corrupt(Corruption::Record { seq, entries, fault, .. }) => {
                if matches!(fault, EntryFault::Shared { .. }) {
                    uncounted.push((seq, entries));
                    return ControlFlow::Continue(());
                }
                // A buffer that only a damaged record names is not reused either, as far as its entries can be read.
                for entry in (seq..seq + entries).filter_map(|seq| ring.read(seq).ok()) {
                    let names = entry.extents().iter();
                    names
                        .filter(|name| arena.holds(name.buffer, name.offset, name.len))
                        .for_each(|name| arena.restore_logged(name.buffer));
                }
                ControlFlow::Continue(())
            }
            Scanned::Corrupt(corruption) => {
                lost = Some(corruption);
                ControlFlow::Break(())
            }
        });
        // What was not read any more looks as if it were missing.
        if progress.is_stopped.get() {
            return Err(interrupted());
        }
        let ControlFlow::Continue(outcome) = outcome else {
            return Err(corrupt(lost.expect("only what concerns the whole shard breaks the scan off")));
        };
        tally.go_on(outcome.next);
        for (seq, entries) in uncounted {
            let entries = (seq..seq + entries).filter_map(|seq| ring.read(seq).ok());
            tally.take_out(seq, Count::of(entries.map(|entry| entry.payload_len()).sum()));
        }
        arena.rebuild_free_list();

        let failed =
            |what| move |reason| OpenError::Io { what, path: format!("shard {index}").into(), reason };
        for place in places {
            if omits(Safeguard::FoundHeaderFlush) {
                continue;
            }
            // SAFETY: a shard's header is its one owner's, and that is being made here.
            unsafe { flush_found(&*medium, place, HEADER_BYTES) };
        }
        rescue(&*medium, &arena, &mut ring, &found, &outcome)
            .map_err(failed("making the recovered log durable"))?;
        let mut header = HeaderCell::new(medium, places, seed, &headers);
        let latest_epoch = if omits(Safeguard::EpochOfAll) { 0 } else { latest_epoch };
        let step = u32::from(!omits(Safeguard::Epoch));
        let epoch = found.epoch.max(latest_epoch).checked_add(step).ok_or(corrupt(Corruption::Header))?;
        let ahead = limits.ahead;
        let first_seq = if omits(Safeguard::FirstSeq) { found.first_seq } else { outcome.next };
        let next = Header { epoch, first_seq, durable_seq: outcome.next - 1, ahead, ..found };
        if !omits(Safeguard::EpochHeader) {
            header.persist(next).map_err(failed("writing the shard's header"))?;
        }
        let recovery = Recovery {
            records: outcome.records,
            payload_bytes: outcome.payload_bytes,
            rescued_entries: outcome.next.saturating_sub(outcome.known_durable + 1),
            quarantined: outcome.quarantined.counts().0,
            torn: outcome.torn,
            header_damage: headers.damage,
        };
        recovery.warn(index, outcome.quarantined.runs());
        let Outcome { next, known_durable, quarantined, .. } = outcome;
        let unread =
            if self.trusts_durable { found.head..known_durable.min(next - 1) + 1 } else { next..next };
        Ok(Shard::new(Parts { arena, ring, header, limits, next, recovery, quarantined, tally, unread }))
    }
}

/// Makes durable what was recovered and is not known to be: and with it the header that was found, for the next
/// one is written over the other copy.
fn rescue(
    medium: &dyn Medium,
    arena: &Arena,
    ring: &mut Ring,
    found: &Header,
    outcome: &Outcome,
) -> io::Result<()> {
    let from = (outcome.known_durable + 1).max(found.head);
    for entry in (from..outcome.next).filter_map(|seq| ring.read(seq).ok()) {
        for &name in entry.extents() {
            if omits(Safeguard::FoundPayloadFlush) {
                continue;
            }
            // SAFETY: the scan has found the range inside of the arena, and nobody has its buffers yet.
            unsafe { flush_found(medium, arena.medium_offset(name), name.len.into()) };
        }
    }
    if from < outcome.next {
        ring.flush_found(from, outcome.next - from);
    }
    if omits(Safeguard::FoundFence) { Ok(()) } else { medium.fence() }
}

/// The log and the arena of a shard that is being opened.
struct Open<'a> {
    arena: &'a Arena,
    ring: &'a Ring,
    progress: &'a Progress<'a>,
    log: Ahead,
    payload: Ahead,
}

/// How much of a shard has been read, and whether to go on.
struct Progress<'a> {
    watch: &'a Watch,
    shard: u32,
    read: Cell<u64>,
    /// How many of how many log entries that was.
    entries: Cell<(u64, u64)>,
    is_stopped: Cell<bool>,
}

/// Bytes read between two looks at whether to go on.
const LOOK_BYTES: u64 = 1 << 20;

impl<'a> Progress<'a> {
    fn new(watch: &'a Watch, shard: u32) -> Self {
        Self { watch, shard, read: Cell::new(0), entries: Cell::new((0, 0)), is_stopped: Cell::new(false) }
    }

    /// Counts what is about to be read; none if it shall not be.
    #[inline]
    fn advance(&self, bytes: u64) -> Option<()> {
        let before = self.read.get();
        self.read.set(before + bytes);
        if before / LOOK_BYTES != (before + bytes) / LOOK_BYTES {
            self.tell();
        }
        (!self.is_stopped.get()).then_some(())
    }

    #[cold]
    fn tell(&self) {
        let (read, (done, of)) = (self.read.get(), self.entries.get());
        // As if what is left of the records were as long as what was read.
        let total = |done| (u128::from(read) * u128::from(of.max(done)) / u128::from(done)) as u64;
        let total = (done > 0).then(|| total(done));
        let told = self.watch.tell(Work::Recovering { shard: self.shard }, read, total);
        self.is_stopped.set(self.is_stopped.get() || told.is_err());
    }
}

/// So many slots ahead of the one that is read are fetched: over the end of a page the CPU does not look ahead by itself.
const PREFETCHED_SLOTS: u64 = 16;

impl Source for Open<'_> {
    #[inline]
    fn slot(&self, index: u64) -> Option<[u8; ENTRY_BYTES]> {
        self.progress.advance(ENTRY_BYTES as u64)?;
        self.log.expect(self.ring.slot_offset(index));
        self.ring.prefetch(index + PREFETCHED_SLOTS);
        Some(self.ring.slot(index))
    }

    #[inline]
    fn checksum(&self, crc: u32, name: ExtentName) -> Option<u32> {
        self.progress.advance(name.len.into())?;
        if self.arena.holds(name.buffer, name.offset, name.len) {
            self.payload.expect(self.arena.medium_offset(name));
        }
        self.arena.checksum(crc, name)
    }

    #[inline]
    fn has_read(&self, entries: u64, of: u64) {
        self.progress.entries.set((entries, of));
    }
}
