//! Reading a log back: which records are there, where it ends, and whether anything is missing before its end.

use std::{collections::BTreeMap, ops::ControlFlow};

use crate::{
    format::{
        crc,
        entry::{BufferId, ENTRY_BYTES, Entry, EntryFault, ExtentName},
        header::Header,
    },
    log::{
        findings::Torn,
        quarantine::{Quarantine, Quarantined},
        record::RecordInfo,
    },
    safeguard::{Safeguard, omits},
};

/// A log and the buffers that it names, as recovery and read-only tools see them.
pub(crate) trait Source {
    /// The bytes of a slot; none if they cannot be read.
    fn slot(&self, index: u64) -> Option<[u8; ENTRY_BYTES]>;

    /// `crc` continued over a piece, which lies inside the arena; none if it cannot be read.
    fn checksum(&self, crc: u32, name: ExtentName) -> Option<u32>;

    /// Told how many of about so many entries have been read.
    fn has_read(&self, _entries: u64, _of: u64) {}
}

/// What is known of a log besides its entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogPlan {
    pub header: Header,
    pub slots: u64,
    pub seed: u32,
    pub buffers: u32,
    pub buffer_bytes: u16,
    /// Whether the header may be older than the log: by the copies that were found, or the program that wrote them.
    pub may_be_stale: bool,
    /// Whether the payload of records is checked that are known to have been durable.
    pub checks_durable: bool,
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
    #[error(
        "both copies of the shard's header are damaged, so that nobody knows which records were trimmed; its other shards \
         can still be read, and of this one salvage copies what its log entries name to a new store"
    )]
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
    /// A record that was durable is damaged. The others are not: it is passed over.
    #[error(
        "record {seq} is damaged (entries up to {known_durable} were durable): log entry {entry}: {fault}"
    )]
    Record {
        /// The record's number, or the first of a run of entries that belong to no readable record.
        seq: u64,
        /// Entries that it takes.
        entries: u64,
        /// The entry that is wrong.
        entry: u64,
        /// What is wrong with it.
        fault: EntryFault,
        /// The highest entry known to have been durable.
        known_durable: u64,
    },
}

/// How a scan ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The entry after the last record.
    pub next: u64,
    /// The highest entry known to have been durable.
    pub known_durable: u64,
    /// What lies at `next`, if it is not simply nothing, or something of another lap or epoch.
    pub torn: Option<Torn>,
    /// Buffers that readable records name.
    pub live_buffers: u32,
    pub records: u64,
    pub payload_bytes: u64,
    pub quarantined: Quarantined,
}

/// Walks the log from its head. Beyond what is known to have been durable, the first gap is the end; before, it is
/// damage, and the scan goes on behind it unless `visit` breaks.
pub(crate) fn scan<S: Source>(
    source: &S,
    plan: &LogPlan,
    visit: &mut dyn FnMut(Scanned<'_>) -> ControlFlow<()>,
) -> ControlFlow<(), Outcome> {
    let Vouched { known_durable, latest } = vouched(source, plan, visit)?;
    let limit = plan.header.head + plan.slots;
    let mut walk = Walk { source, plan, limit, min_epoch: 0, names: Vec::new() };
    let mut spans = Spans::new(plan.buffers);
    let mut outcome = Outcome {
        next: plan.header.head,
        known_durable,
        torn: None,
        live_buffers: 0,
        records: 0,
        payload_bytes: 0,
        quarantined: Quarantined::new(plan.slots),
    };
    let mut seq = plan.header.head;
    let of = (known_durable + 1).saturating_sub(seq);
    while seq < limit {
        source.has_read(seq - plan.header.head, of);
        match walk.record(seq, plan.checks_durable || seq > known_durable) {
            Ok(Step::Record(info)) => {
                visit(Scanned::Record(info, &walk.names))?;
                walk.names.iter().for_each(|&name| spans.add(name));
                outcome.records += 1;
                outcome.payload_bytes += info.len;
                seq += info.entries;
            }
            Ok(Step::Dropped) => seq += 1,
            Err((entry, fault)) if seq <= known_durable => {
                let end = walk.end_of_damage(seq, entry, fault, known_durable);
                let entries = end - seq;
                visit(Scanned::Corrupt(Corruption::Record { seq, entries, entry, fault, known_durable }))?;
                outcome.quarantined.add(Quarantine::new(seq, entries, entry, fault));
                seq = end;
            }
            Err((entry, fault)) => {
                let behind = latest.filter(|&latest| latest > entry);
                let is_end = matches!(
                    fault,
                    EntryFault::Unwritten | EntryFault::Seq { .. } | EntryFault::Epoch { .. }
                );
                let is_nothing = is_end && entry == seq && behind.is_none();
                outcome.torn = (!is_nothing).then_some(Torn { seq, entry, fault, behind });
                break;
            }
        }
    }
    outcome.next = seq;
    outcome.live_buffers = spans.named;
    check_shared(&walk, &spans, &mut outcome, visit)?;
    ControlFlow::Continue(outcome)
}

/// The record that begins at `seq`, and its pieces, if it can be read; the others are not looked at, but for those that are
/// not known to have been durable and lie before it.
pub(crate) fn lookup<S: Source>(
    source: &S,
    plan: &LogPlan,
    seq: u64,
) -> Option<(RecordInfo, Vec<ExtentName>)> {
    let mut is_stale = false;
    let vouched = vouched(source, plan, &mut |_| {
        is_stale = true;
        ControlFlow::Continue(())
    });
    let ControlFlow::Continue(Vouched { known_durable, .. }) = vouched else { return None };
    let limit = plan.header.head + plan.slots;
    if is_stale || !(plan.header.head..limit).contains(&seq) {
        return None;
    }
    let mut walk = Walk { source, plan, limit, min_epoch: 0, names: Vec::new() };
    // The log ends with the first of these that is not complete.
    let mut at = seq.min(known_durable.max(plan.header.head - 1) + 1);
    while at <= seq {
        match walk.record(at, true) {
            Ok(Step::Record(info)) if at == seq => return Some((info, walk.names)),
            Ok(Step::Record(info)) => at += info.entries,
            Ok(Step::Dropped) => at += 1,
            Err(_) => return None,
        }
    }
    None
}

/// What the entries of a log say of one another.
struct Vouched {
    /// The highest entry that the header or any entry in the ring says was durable.
    known_durable: u64,
    /// The highest entry of the header's epoch.
    latest: Option<u64>,
}

fn vouched<S: Source>(
    source: &S,
    plan: &LogPlan,
    visit: &mut dyn FnMut(Scanned<'_>) -> ControlFlow<()>,
) -> ControlFlow<(), Vouched> {
    let header = plan.header;
    let known_durable = if omits(Safeguard::VouchedByHeader) { 0 } else { header.durable_seq };
    let mut found = Vouched { known_durable, latest: None };
    let mut latest_epoch = header.epoch;
    let mut stale = None;
    // None but these can say more than the header does: entries up to its `durable_seq` vouch for what comes before them.
    let first = header.durable_seq + 1;
    let beyond = if plan.may_be_stale || header.ahead == 0 { plan.slots } else { header.ahead.into() };
    for seq in first..first + beyond.min(plan.slots) {
        let index = seq % plan.slots;
        let Some(bytes) = source.slot(index) else { continue };
        let Ok(entry) = Entry::decode(&bytes, plan.seed) else { continue };
        if entry.seq % plan.slots != index {
            continue;
        }
        if entry.seq >= header.head + plan.slots {
            stale = stale.or(Some(Corruption::StaleHead { head: header.head, seq: entry.seq }));
            continue;
        }
        if !omits(Safeguard::VouchedByEntry) {
            found.known_durable = found.known_durable.max(entry.durable_seq);
        }
        if entry.epoch == header.epoch && entry.seq >= header.first_seq {
            found.latest = found.latest.max(Some(entry.seq));
        }
        if entry.epoch > latest_epoch {
            latest_epoch = entry.epoch;
            stale =
                Some(Corruption::StaleHeader { header: header.epoch, seq: entry.seq, entry: entry.epoch });
        }
    }
    if let Some(stale) = stale {
        visit(Scanned::Corrupt(stale))?;
    }
    ControlFlow::Continue(found)
}

/// What begins at an entry.
enum Step {
    Record(RecordInfo),
    /// A damaged record that was given up.
    Dropped,
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
    /// Reads the record that begins at `seq`, and its payload if that is to be checked; else the entry that is wrong, and
    /// how.
    fn record(&mut self, seq: u64, is_checked: bool) -> Result<Step, (u64, EntryFault)> {
        self.names.clear();
        let mut info = RecordInfo::new(seq);
        loop {
            let at = seq + info.entries;
            let entry = self.entry(at, &info).map_err(|fault| (at, fault))?;
            info.epoch = entry.epoch;
            info.time_s = entry.time_s;
            info.crc32c = self.checksum(&entry, info.crc32c, is_checked).map_err(|fault| (at, fault))?;
            info.len += entry.payload_len();
            info.extents += entry.extents().len() as u32;
            info.entries += 1;
            if entry.is_last {
                self.min_epoch = entry.epoch;
                return Ok(if entry.is_dropped { Step::Dropped } else { Step::Record(info) });
            }
        }
    }

    /// Where the damage ends that begins with the record at `seq`, whose entry `at` is wrong: behind its last entry if
    /// its entries can be read; else before the next entry that can be and begins a record. Never beyond what was
    /// known to be durable.
    fn end_of_damage(&self, seq: u64, at: u64, fault: EntryFault, known_durable: u64) -> u64 {
        let end = known_durable + 1;
        let mut so_far = RecordInfo::new(seq);
        let mut at = at;
        let is_payload =
            matches!(fault, EntryFault::Payload | EntryFault::Bounds { .. } | EntryFault::Missing);
        if let Some(first) = self.entry(seq, &so_far).ok().filter(|_| is_payload) {
            so_far.epoch = first.epoch;
            while at < end {
                so_far.entries = at - seq;
                let Ok(entry) = self.entry(at, &so_far) else { break };
                at += 1;
                if entry.is_last {
                    return at;
                }
            }
            so_far.entries = 0;
        }
        // A record that began again before it had ended is not part of the damage.
        while at < end && (at == seq || self.entry(at, &so_far).is_err()) {
            at += 1;
        }
        at
    }

    /// Reads an entry that goes on with the record `so_far`.
    #[inline(always)]
    fn entry(&self, seq: u64, so_far: &RecordInfo) -> Result<Entry, EntryFault> {
        if seq >= self.limit {
            return Err(EntryFault::Order);
        }
        let bytes = self.source.slot(seq % self.plan.slots).ok_or(EntryFault::Missing)?;
        let entry = Entry::decode(&bytes, self.plan.seed)?;
        if entry.seq != seq && !omits(Safeguard::EntrySeq) {
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
        if !expected.contains(&found) && !omits(Safeguard::EntryEpoch) {
            return Err(EntryFault::Epoch { found, expected: *expected.end() });
        }
        if entry.is_first == is_continued && !omits(Safeguard::EntryOrder) {
            return Err(EntryFault::Order);
        }
        Ok(entry)
    }

    /// The record's checksum up to the end of `entry`, if it is the one that the entry holds, or nobody looks.
    #[inline(always)]
    fn checksum(&mut self, entry: &Entry, so_far: u32, is_checked: bool) -> Result<u32, EntryFault> {
        // What lies in the entry is at hand.
        let is_checked = is_checked || entry.inline().is_some();
        let mut crc = entry.inline().map_or(so_far, crc::crc32c);
        for &name in entry.extents() {
            let end = u32::from(name.offset) + u32::from(name.len);
            if name.buffer.0 >= self.plan.buffers || end > u32::from(self.plan.buffer_bytes) {
                return Err(name.out_of_bounds());
            }
            if is_checked {
                crc = self.source.checksum(crc, name).ok_or(EntryFault::Missing)?;
            }
            self.names.push(name);
        }
        let is_right = crc == entry.payload_crc || omits(Safeguard::PayloadChecksum);
        if is_right || !is_checked { Ok(entry.payload_crc) } else { Err(EntryFault::Payload) }
    }
}

/// What records name of each buffer: one span of bytes, so that it takes little memory however many records there are.
struct Spans {
    /// Empty while `from >= to`.
    spans: Box<[(u16, u16)]>,
    /// Buffers that are named at all.
    named: u32,
    /// A bit for each buffer of which a record names bytes within the span of others. Empty while there is none.
    doubtful: Vec<u64>,
}

impl Spans {
    fn new(buffers: u32) -> Self {
        Self { spans: vec![(0, 0); buffers as usize].into(), named: 0, doubtful: Vec::new() }
    }

    /// Adds a piece, which lies in a buffer and is not empty.
    fn add(&mut self, name: ExtentName) {
        let buffers = self.spans.len();
        let span = &mut self.spans[name.buffer.0 as usize];
        let (from, to) = (name.offset, name.offset + name.len);
        if span.0 >= span.1 {
            *span = (from, to);
            self.named += 1;
            return;
        }
        if from < span.1 && span.0 < to {
            if self.doubtful.is_empty() {
                self.doubtful = vec![0; buffers.div_ceil(64)];
            }
            self.doubtful[name.buffer.0 as usize / 64] |= 1 << (name.buffer.0 % 64);
        }
        *span = (span.0.min(from), span.1.max(to));
    }

    fn is_doubtful(&self, buffer: BufferId) -> bool {
        self.doubtful.get(buffer.0 as usize / 64).is_some_and(|bits| bits >> (buffer.0 % 64) & 1 == 1)
    }
}

/// Finds records that name the same bytes. Of records that share bytes the oldest stays; the others are damage, though all
/// checksums match.
fn check_shared<S: Source>(
    walk: &Walk<'_, S>,
    spans: &Spans,
    outcome: &mut Outcome,
    visit: &mut dyn FnMut(Scanned<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    // Records in the order of a buffer's bytes, as most are, leave no doubt.
    if spans.doubtful.is_empty() {
        return ControlFlow::Continue(());
    }
    let mut pieces = Vec::new();
    let mut seq = walk.plan.header.head;
    loop {
        seq = outcome.quarantined.skip(seq, outcome.next);
        if seq >= outcome.next {
            break;
        }
        let (entries, _, names) = walk.names_of(seq);
        pieces.extend(names.into_iter().filter(|name| spans.is_doubtful(name.buffer)).map(pack));
        seq += entries;
    }
    pieces.sort_unstable();
    let mut suspects: Vec<u64> = Vec::new();
    // The piece that reaches furthest into its buffer so far.
    let mut furthest: Option<ExtentName> = None;
    for name in pieces.iter().copied().map(unpack) {
        let before = furthest.filter(|before| before.buffer == name.buffer);
        if let Some(before) = before.filter(|before| u32::from(name.offset) < before.end()) {
            suspects.extend([pack(before), pack(name)]);
        }
        if before.is_none_or(|before| before.end() < name.end()) {
            furthest = Some(name);
        }
    }
    drop(pieces);
    if suspects.is_empty() {
        return ControlFlow::Continue(());
    }
    suspects.sort_unstable();
    let mut taken = Taken::default();
    let mut seq = walk.plan.header.head;
    loop {
        seq = outcome.quarantined.skip(seq, outcome.next);
        if seq >= outcome.next {
            return ControlFlow::Continue(());
        }
        let (entries, payload_bytes, mut names) = walk.names_of(seq);
        names.retain(|&name| suspects.binary_search(&pack(name)).is_ok());
        if let Err((other, buffer)) = taken.take(seq, &names) {
            outcome.records -= 1;
            outcome.payload_bytes -= payload_bytes;
            let fault = EntryFault::Shared { other, buffer };
            let known_durable = outcome.known_durable;
            let damage = Corruption::Record { seq, entries, entry: seq, fault, known_durable };
            visit(Scanned::Corrupt(damage))?;
            outcome.quarantined.add(Quarantine::new(seq, entries, seq, fault));
        }
        seq += entries;
    }
}

/// Bytes of buffers, and the record that has them. No two pieces in it meet.
#[derive(Default)]
struct Taken(BTreeMap<(u32, u16), (ExtentName, u64)>);

impl Taken {
    /// Takes all of a record's pieces, or none: then the record that has some of the bytes already, and in which
    /// buffer.
    fn take(&mut self, seq: u64, names: &[ExtentName]) -> Result<(), (u64, u32)> {
        for (place, &name) in names.iter().enumerate() {
            let buffer = name.buffer.0;
            let last = name.offset.saturating_add(name.len - 1);
            let before = self.0.range((buffer, 0)..=(buffer, last)).next_back();
            let other = before.filter(|(_, (before, _))| u32::from(name.offset) < before.end());
            if let Some(&(_, other)) = other.map(|(_, other)| other) {
                for name in &names[..place] {
                    self.0.remove(&(name.buffer.0, name.offset));
                }
                return Err((other, buffer));
            }
            self.0.insert((buffer, name.offset), (name, seq));
        }
        Ok(())
    }
}

impl<S: Source> Walk<'_, S> {
    /// How many entries the record at `seq` takes, which was read before, its length, and its pieces.
    fn names_of(&self, seq: u64) -> (u64, u64, Vec<ExtentName>) {
        let (mut entries, mut payload_bytes, mut names) = (0, 0, Vec::new());
        loop {
            let bytes = self.source.slot((seq + entries) % self.plan.slots);
            let entry = bytes.and_then(|bytes| Entry::decode(&bytes, self.plan.seed).ok());
            // It can change under a reader only.
            let Some(entry) = entry.filter(|_| entries < self.plan.slots) else {
                return (entries.max(1), payload_bytes, names);
            };
            entries += 1;
            payload_bytes += entry.payload_len();
            names.extend_from_slice(entry.extents());
            if entry.is_last {
                return (entries, payload_bytes, names);
            }
        }
    }
}

/// A piece as a number that sorts by buffer and offset.
fn pack(name: ExtentName) -> u64 {
    u64::from(name.buffer.0) << 32 | u64::from(name.offset) << 16 | u64::from(name.len)
}

fn unpack(piece: u64) -> ExtentName {
    let buffer = BufferId((piece >> 32) as u32);
    ExtentName { buffer, offset: (piece >> 16) as u16, len: piece as u16 }
}
