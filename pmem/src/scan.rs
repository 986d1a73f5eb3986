//! Reading a log back: which records are there, where it ends, and whether anything is missing before its end.

use std::ops::ControlFlow;

use crate::{
    crc,
    entry::{ENTRY_BYTES, Entry, EntryFault, ExtentName},
    header::Header,
    record::RecordInfo,
};

/// A log and the buffers that it names, as recovery and read-only tools see them.
pub(crate) trait Source {
    /// The bytes of a slot; none if they cannot be read.
    fn slot(&self, index: u64) -> Option<[u8; ENTRY_BYTES]>;

    /// `crc` continued over a piece, which lies inside the arena; none if it cannot be read.
    fn checksum(&self, crc: u32, name: ExtentName) -> Option<u32>;
}

/// What is known of a log besides its entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogPlan {
    pub header: Header,
    pub slots: u64,
    pub seed: u32,
    pub buffers: u32,
    pub buffer_bytes: u16,
}

/// What a scan comes upon, oldest first.
pub(crate) enum Scanned<'a> {
    Record(RecordInfo, &'a [ExtentName]),
    Corrupt(Corruption),
}

/// Something is missing or wrong that was durable once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corruption {
    /// Neither copy of the shard's header can be read.
    #[error("both copies of the shard's header are damaged")]
    Header,
    /// The log holds entries of a later epoch than the header: the newer copy of the header is damaged.
    #[error(
        "the shard's header is of epoch {header}, but log entry {seq} is of epoch {entry}: the newer header is lost"
    )]
    StaleHeader {
        /// Epoch of the header.
        header: u32,
        /// The later entry.
        seq: u64,
        /// Its epoch.
        entry: u32,
    },
    /// The log holds an entry that has no place in it with this head: the newer copy of the header is damaged.
    #[error("log entry {seq} lies more than a lap behind the head {head}: the newer header is lost")]
    StaleHead {
        /// The first live entry, by the header.
        head: u64,
        /// The entry that is too far from it.
        seq: u64,
    },
    /// A record that was durable is damaged.
    #[error(
        "record {seq} is damaged (entries up to {known_durable} were durable): log entry {entry}: {fault}"
    )]
    Record {
        /// The record's number, or the first of a run of entries that belong to no readable record.
        seq: u64,
        /// The entry that is wrong.
        entry: u64,
        /// What is wrong with it.
        fault: EntryFault,
        /// The highest entry known to have been durable.
        known_durable: u64,
    },
}

/// How a scan ended.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// The entry after the last readable record.
    pub next: u64,
    /// The highest entry known to have been durable.
    pub known_durable: u64,
    /// What is wrong with entry `next`.
    pub end: EntryFault,
    /// Buffers that records name.
    pub live_buffers: u32,
    pub records: u64,
    pub payload_bytes: u64,
}

/// Walks the log from its head. Beyond what is known to have been durable, the first gap is the end; before, it
/// is corruption, and the scan goes on behind it unless `visit` breaks.
pub(crate) fn scan<S: Source>(
    source: &S,
    plan: &LogPlan,
    visit: &mut dyn FnMut(Scanned<'_>) -> ControlFlow<()>,
) -> ControlFlow<(), Outcome> {
    let known_durable = known_durable(source, plan, visit)?;
    let limit = plan.header.head + plan.slots;
    let mut walk = Walk { source, plan, limit, min_epoch: 0, names: Vec::new() };
    let mut pieces = Vec::new();
    let mut outcome = Outcome {
        next: plan.header.head,
        known_durable,
        end: EntryFault::Unwritten,
        live_buffers: 0,
        records: 0,
        payload_bytes: 0,
    };
    let mut in_damage = false;
    let mut seq = plan.header.head;
    while seq < limit {
        match walk.record(seq) {
            Ok(info) => {
                in_damage = false;
                visit(Scanned::Record(info, &walk.names))?;
                pieces.extend(walk.names.iter().map(|&name| pack(name)));
                outcome.records += 1;
                outcome.payload_bytes += info.len;
                seq += info.entries;
            }
            Err((entry, fault)) if seq <= known_durable => {
                if !in_damage {
                    visit(Scanned::Corrupt(Corruption::Record { seq, entry, fault, known_durable }))?;
                }
                in_damage = true;
                seq += 1;
            }
            Err((_, fault)) => {
                outcome.end = fault;
                break;
            }
        }
    }
    outcome.next = seq;
    outcome.live_buffers = check_shared(&mut walk, pieces, &outcome, visit)?;
    ControlFlow::Continue(outcome)
}

/// The highest entry that the header or any entry in the ring says was durable.
fn known_durable<S: Source>(
    source: &S,
    plan: &LogPlan,
    visit: &mut dyn FnMut(Scanned<'_>) -> ControlFlow<()>,
) -> ControlFlow<(), u64> {
    let header = plan.header;
    let mut known = header.durable_seq;
    let mut latest = header.epoch;
    let mut stale = None;
    for index in 0..plan.slots {
        let Some(bytes) = source.slot(index) else { continue };
        let Ok(entry) = Entry::decode(&bytes, plan.seed) else { continue };
        if entry.seq % plan.slots != index {
            continue;
        }
        if entry.seq >= header.head + plan.slots {
            stale = stale.or(Some(Corruption::StaleHead { head: header.head, seq: entry.seq }));
            continue;
        }
        known = known.max(entry.durable_seq);
        if entry.epoch > latest {
            latest = entry.epoch;
            stale =
                Some(Corruption::StaleHeader { header: header.epoch, seq: entry.seq, entry: entry.epoch });
        }
    }
    if let Some(stale) = stale {
        visit(Scanned::Corrupt(stale))?;
    }
    ControlFlow::Continue(known)
}

struct Walk<'a, S> {
    source: &'a S,
    plan: &'a LogPlan,
    /// The first entry that cannot be in the ring.
    limit: u64,
    /// Epochs never fall along the log.
    min_epoch: u32,
    /// The pieces of the last record read.
    names: Vec<ExtentName>,
}

impl<S: Source> Walk<'_, S> {
    /// Reads the record that begins at `seq`; else the entry that is wrong, and how.
    fn record(&mut self, seq: u64) -> Result<RecordInfo, (u64, EntryFault)> {
        self.names.clear();
        let mut info = RecordInfo { seq, epoch: 0, len: 0, crc32c: 0, entries: 0, extents: 0 };
        loop {
            let at = seq + info.entries;
            let entry = self.entry(at, &info).map_err(|fault| (at, fault))?;
            info.epoch = entry.epoch;
            info.crc32c = self.checksum(&entry, info.crc32c).map_err(|fault| (at, fault))?;
            info.len += entry.payload_len();
            info.extents += entry.extents().len() as u32;
            info.entries += 1;
            if entry.is_last {
                self.min_epoch = entry.epoch;
                return Ok(info);
            }
        }
    }

    /// Reads an entry that goes on with the record `so_far`.
    fn entry(&self, seq: u64, so_far: &RecordInfo) -> Result<Entry, EntryFault> {
        if seq >= self.limit {
            return Err(EntryFault::Order);
        }
        let bytes = self.source.slot(seq % self.plan.slots).ok_or(EntryFault::Missing)?;
        let entry = Entry::decode(&bytes, self.plan.seed)?;
        if entry.seq != seq {
            return Err(EntryFault::Seq { found: entry.seq });
        }
        let header = &self.plan.header;
        let (found, is_continued) = (entry.epoch, so_far.entries > 0);
        let expected = if is_continued {
            so_far.epoch..=so_far.epoch
        } else if seq >= header.first_seq {
            header.epoch..=header.epoch
        } else {
            self.min_epoch..=header.epoch.saturating_sub(1)
        };
        if !expected.contains(&found) {
            return Err(EntryFault::Epoch { found, expected: *expected.end() });
        }
        if entry.is_first == is_continued {
            return Err(EntryFault::Order);
        }
        Ok(entry)
    }

    /// The record's checksum up to the end of `entry`, if it is the one that the entry holds.
    fn checksum(&mut self, entry: &Entry, so_far: u32) -> Result<u32, EntryFault> {
        let mut crc = entry.inline().map_or(so_far, crc::crc32c);
        for &name in entry.extents() {
            let end = u32::from(name.offset) + u32::from(name.len);
            if name.buffer.0 >= self.plan.buffers || end > u32::from(self.plan.buffer_bytes) {
                return Err(name.out_of_bounds());
            }
            crc = self.source.checksum(crc, name).ok_or(EntryFault::Missing)?;
            self.names.push(name);
        }
        if crc == entry.payload_crc { Ok(crc) } else { Err(EntryFault::Payload) }
    }
}

/// Reports records that name the same bytes; returns how many buffers are named at all.
fn check_shared<S: Source>(
    walk: &mut Walk<'_, S>,
    mut pieces: Vec<u64>,
    outcome: &Outcome,
    visit: &mut dyn FnMut(Scanned<'_>) -> ControlFlow<()>,
) -> ControlFlow<(), u32> {
    pieces.sort_unstable();
    let mut live_buffers = 0;
    let mut last: Option<ExtentName> = None;
    let mut reported = 0;
    for name in pieces.into_iter().map(unpack) {
        let overlap = last.filter(|last| {
            last.buffer == name.buffer
                && u32::from(name.offset) < u32::from(last.offset) + u32::from(last.len)
        });
        if let Some(other) = overlap.filter(|_| reported < MAX_SHARED) {
            reported += 1;
            let (first, second) = (walk.owner(other, outcome), walk.owner_after(name, other, outcome));
            let fault = EntryFault::Shared { other: first, buffer: name.buffer.0 };
            let known_durable = outcome.known_durable;
            visit(Scanned::Corrupt(Corruption::Record { seq: second, entry: second, fault, known_durable }))?;
        }
        live_buffers += u32::from(last.is_none_or(|last| last.buffer != name.buffer));
        last = Some(name);
    }
    ControlFlow::Continue(live_buffers)
}

/// Overlaps that are reported one by one: finding their records takes a walk each.
const MAX_SHARED: u32 = 16;

impl<S: Source> Walk<'_, S> {
    /// The entry that names a piece.
    fn owner(&self, name: ExtentName, outcome: &Outcome) -> u64 {
        self.owners(name, outcome).next().unwrap_or(self.plan.header.head)
    }

    /// The entry that names a piece, other than the first that names `other`.
    fn owner_after(&self, name: ExtentName, other: ExtentName, outcome: &Outcome) -> u64 {
        let first = self.owner(other, outcome);
        self.owners(name, outcome).find(|&seq| seq != first).unwrap_or(first)
    }

    fn owners(&self, name: ExtentName, outcome: &Outcome) -> impl Iterator<Item = u64> {
        (self.plan.header.head..outcome.next).filter(move |&seq| {
            let bytes = self.source.slot(seq % self.plan.slots);
            let entry = bytes.and_then(|bytes| Entry::decode(&bytes, self.plan.seed).ok());
            entry.is_some_and(|entry| entry.seq == seq && entry.extents().contains(&name))
        })
    }
}

/// A piece as a number that sorts by buffer and offset.
fn pack(name: ExtentName) -> u64 {
    u64::from(name.buffer.0) << 32 | u64::from(name.offset) << 16 | u64::from(name.len)
}

fn unpack(piece: u64) -> ExtentName {
    let buffer = crate::BufferId((piece >> 32) as u32);
    ExtentName { buffer, offset: (piece >> 16) as u16, len: piece as u16 }
}
