//! Looking at a store without changing it, wherever it was cut off.

mod guess;
mod salvage;

use std::{
    cell::RefCell,
    io::{self, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

pub use guess::Shape;
use uuid::Uuid;

use crate::{
    format::{
        crc,
        entry::{ENTRY_BYTES, Entry, ExtentName, crc_seed},
        found::{Found, Unknown},
        geometry::Geometry,
        header::{HEADER_BYTES, Header, HeaderDamage},
        superblock::{Contents, Superblock, VERSION},
    },
    log::{findings::Torn, record::RecordInfo},
    recovery::{
        error::OpenError,
        scan::{Corruption, LogPlan, Scanned, Source, lookup, scan},
    },
    region::ReadOnly,
};

/// A store opened for reading only: nothing is recovered, nothing changes, and damage is reported, not refused.
pub struct Snapshot {
    source: ReadOnly,
    path: PathBuf,
    superblock: Superblock,
    damaged_copy: bool,
    /// What the checksums of each shard's log begin with, where nobody knows the store's identifier.
    seeds: Option<Vec<u32>>,
}

/// What reading a shard comes upon, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotEvent {
    /// A record whose checksums match.
    Record(SnapshotRecord),
    /// Something that was durable once is damaged.
    Corrupt(Corruption),
}

/// A readable record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotRecord {
    /// The shard that holds it.
    pub shard: u32,
    /// Number, length, checksum.
    pub info: RecordInfo,
    /// The pieces of buffers that hold its bytes; empty if they lie in the log entry.
    pub pieces: Vec<PieceName>,
}

/// A piece of a named buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PieceName {
    /// The name of the buffer.
    pub buffer: u32,
    /// Where the piece begins.
    pub offset: u16,
    /// Its length in bytes.
    pub len: u16,
}

/// What a shard holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardReport {
    /// The shard.
    pub shard: u32,
    /// Its epoch, if its header can be read.
    pub epoch: Option<u32>,
    /// The first live entry.
    pub head: u64,
    /// The entry behind the last readable record.
    pub next: u64,
    /// The highest entry known to have been durable.
    pub known_durable: u64,
    /// Readable records.
    pub records: u64,
    /// Their payload bytes.
    pub payload_bytes: u64,
    /// Buffers that they name.
    pub live_buffers: u32,
    /// The other buffers.
    pub free_buffers: u32,
    /// What lies behind the last record, if it looks like an append that a crash cut short.
    pub torn: Option<Torn>,
    /// The copy of the shard's header that cannot be read, beside one that can; opening the store for writing repairs it.
    pub header_damage: Option<HeaderDamage>,
    /// How many times damage was reported.
    pub corruptions: u64,
    /// Why the shard's header was not gone by, but its entries alone; only [`Snapshot::salvage`] does so.
    pub lost_header: Option<Corruption>,
}

impl Snapshot {
    /// Opens a store for reading.
    ///
    /// # Errors
    /// [`OpenError`]: no store can be recognised there, or a process has it open for writing.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref().to_path_buf();
        let source = ReadOnly::open(&path)?;
        let len = source.len();
        // A store may be cut off within its superblock: what is missing reads as zeros.
        let read = |offset: u64, bytes: &mut [u8]| {
            let there = len.saturating_sub(offset).min(bytes.len() as u64) as usize;
            bytes.fill(0);
            source.read(offset, &mut bytes[..there]);
        };
        let found = Unknown { bytes: len, asked: None, is_read_only: true, read: &read }.find();
        match found {
            Found::Store { superblock, damaged_copy } => {
                // What was cut off is not damaged besides.
                let place = damaged_copy.map(|copy| superblock.geometry.superblocks()[copy] as u64);
                let damaged_copy = place.is_some_and(|place| place < len);
                Ok(Self { source, path, superblock, damaged_copy, seeds: None })
            }
            Found::Version(found) => Err(OpenError::Version { path, found, supported: VERSION }),
            Found::Damaged => Err(OpenError::Damaged { path }),
            Found::Empty | Found::Foreign => Err(OpenError::NotAStore { path }),
        }
    }

    /// The store's own identifier.
    pub fn uuid(&self) -> Uuid {
        self.superblock.uuid
    }

    /// How the store is cut up.
    pub fn geometry(&self) -> &Geometry {
        &self.superblock.geometry
    }

    /// What its records are.
    pub fn contents(&self) -> Contents {
        self.superblock.contents
    }

    /// The version of its format.
    pub fn version(&self) -> u32 {
        self.superblock.version
    }

    /// Whether one of the two copies of the superblock is damaged; opening the store for writing repairs it.
    pub fn has_damaged_superblock(&self) -> bool {
        self.damaged_copy
    }

    /// How many of the store's bytes are missing at its end, if it was cut off.
    pub fn missing_bytes(&self) -> u64 {
        self.geometry().region_bytes.saturating_sub(self.source.len())
    }

    /// Reads a shard's log from its head, and says what is there. Behind damage the scan goes on.
    ///
    /// # Errors
    /// [`OpenError::Geometry`] if there is no such shard.
    pub fn scan(&self, shard: u32, visit: impl FnMut(SnapshotEvent)) -> Result<ShardReport, OpenError> {
        self.read(shard, true, visit)
    }

    /// As [`scan`](Self::scan), but the payload of records that are known to have been durable is not read, and damage in
    /// it not found: what there is, in a small part of the time.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    pub fn survey(&self, shard: u32, visit: impl FnMut(SnapshotEvent)) -> Result<ShardReport, OpenError> {
        self.read(shard, false, visit)
    }

    /// The record with this number, if there is one that can be read; the others are not looked at.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    pub fn record(&self, shard: u32, seq: u64) -> Result<Option<SnapshotRecord>, OpenError> {
        self.has(shard)?;
        let Some((plan, _)) = self.plan(shard) else { return Ok(None) };
        let found = lookup(&self.log(shard), &plan, seq);
        Ok(found.map(|(info, names)| SnapshotRecord::new(shard, info, &names)))
    }

    fn read(
        &self,
        shard: u32,
        checks_durable: bool,
        mut visit: impl FnMut(SnapshotEvent),
    ) -> Result<ShardReport, OpenError> {
        self.has(shard)?;
        let Some((plan, header_damage)) = self.plan(shard) else {
            visit(SnapshotEvent::Corrupt(Corruption::Header));
            return Ok(ShardReport { corruptions: 1, ..ShardReport::of_nothing(shard) });
        };
        let report = self.read_as(shard, &LogPlan { checks_durable, ..plan }, |event| {
            visit(event);
            ControlFlow::Continue(())
        });
        let ControlFlow::Continue(report) = report else { unreachable!("the visitor never breaks") };
        Ok(ShardReport { header_damage, ..report })
    }

    /// Reads a shard's log as a header says, until `visit` breaks.
    fn read_as(
        &self,
        shard: u32,
        plan: &LogPlan,
        mut visit: impl FnMut(SnapshotEvent) -> ControlFlow<()>,
    ) -> ControlFlow<(), ShardReport> {
        let mut corruptions = 0;
        let outcome = scan(&self.log(shard), plan, &mut |scanned| {
            visit(match scanned {
                Scanned::Record(info, names) => {
                    SnapshotEvent::Record(SnapshotRecord::new(shard, info, names))
                }
                Scanned::Corrupt(corruption) => {
                    corruptions += 1;
                    SnapshotEvent::Corrupt(corruption)
                }
            })
        })?;
        ControlFlow::Continue(ShardReport {
            epoch: Some(plan.header.epoch),
            head: plan.header.head,
            next: outcome.next,
            known_durable: outcome.known_durable,
            records: outcome.records,
            payload_bytes: outcome.payload_bytes,
            live_buffers: outcome.live_buffers,
            free_buffers: self.geometry().buffers - outcome.live_buffers,
            torn: outcome.torn,
            corruptions,
            ..ShardReport::of_nothing(shard)
        })
    }

    fn has(&self, shard: u32) -> Result<(), OpenError> {
        let shards = self.geometry().shards;
        if shard < shards {
            return Ok(());
        }
        Err(OpenError::Geometry(format!("there is no shard {shard}, only {shards}")))
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of a piece of a record.
    ///
    /// # Errors
    /// As [`write_record`](Self::write_record).
    pub fn read_piece(&self, shard: u32, piece: &PieceName) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; piece.len.into()];
        let read = self.source.read(self.log(shard).offset_of(piece.buffer, piece.offset), &mut bytes);
        read.ok_or_else(|| self.was_cut_off())?;
        Ok(bytes)
    }

    fn was_cut_off(&self) -> io::Error {
        io::Error::new(io::ErrorKind::UnexpectedEof, format!("{} was cut off", self.path.display()))
    }

    /// Writes a record's bytes, as they lie in the store.
    ///
    /// # Errors
    /// What `out` says, or [`io::ErrorKind::UnexpectedEof`] if the store was cut off meanwhile.
    pub fn write_record(&self, record: &SnapshotRecord, out: &mut impl Write) -> io::Result<()> {
        if record.pieces.is_empty() {
            let log = self.log(record.shard);
            let bytes = log.slot(record.info.seq % log.slots()).ok_or_else(|| self.was_cut_off())?;
            let entry = Entry::decode(&bytes, self.seed(record.shard))
                .map_err(|fault| io::Error::other(fault.to_string()))?;
            return out.write_all(entry.inline().unwrap_or_default());
        }
        for piece in &record.pieces {
            out.write_all(&self.read_piece(record.shard, piece)?)?;
        }
        Ok(())
    }

    /// What the checksums of a shard's log begin with.
    fn seed(&self, shard: u32) -> u32 {
        match &self.seeds {
            Some(seeds) => seeds[shard as usize],
            None => crc_seed(self.uuid(), shard),
        }
    }

    fn plan(&self, shard: u32) -> Option<(LogPlan, Option<HeaderDamage>)> {
        let geometry = self.geometry();
        let seed = self.seed(shard);
        // A copy that was cut off, with the store's end, is as good as damaged, and need not be told of twice.
        let read = |place: usize| {
            let mut copy = [0; HEADER_BYTES];
            self.source.read(place as u64, &mut copy).map(|()| copy)
        };
        let copies = geometry.headers_of(shard).map(read);
        let found = Header::find(&copies.map(|copy| copy.unwrap_or([0; HEADER_BYTES])), seed)?;
        let plan = LogPlan {
            header: found.header,
            slots: geometry.log_entries.into(),
            seed,
            buffers: geometry.buffers,
            buffer_bytes: geometry.buffer_bytes,
            may_be_stale: found.damage.is_some() || !found.header.is_mirrored,
            checks_durable: true,
        };
        Some((plan, found.damage.filter(|damage| copies[usize::from(damage.copy)].is_some())))
    }

    fn log(&self, shard: u32) -> Log<'_> {
        Log::new(&self.source, self.geometry(), shard, WINDOW_SLOTS)
    }
}

impl ShardReport {
    fn of_nothing(shard: u32) -> Self {
        Self {
            shard,
            epoch: None,
            head: 0,
            next: 0,
            known_durable: 0,
            records: 0,
            payload_bytes: 0,
            live_buffers: 0,
            free_buffers: 0,
            torn: None,
            header_damage: None,
            corruptions: 0,
            lost_header: None,
        }
    }
}

impl SnapshotRecord {
    fn new(shard: u32, info: RecordInfo, names: &[ExtentName]) -> Self {
        let piece =
            |name: &ExtentName| PieceName { buffer: name.buffer.0, offset: name.offset, len: name.len };
        Self { shard, info, pieces: names.iter().map(piece).collect() }
    }
}

/// A shard's log and arena in a store that is only read.
struct Log<'a> {
    source: &'a ReadOnly,
    geometry: &'a Geometry,
    shard: u32,
    window: RefCell<Window>,
    /// How many slots are read together.
    window_slots: u64,
}

/// Slots that were read together.
#[derive(Default)]
struct Window {
    first: u64,
    bytes: Vec<u8>,
}

/// As many slots are worth a system call where all are read.
const WINDOW_SLOTS: u64 = 1024;

impl<'a> Log<'a> {
    fn new(source: &'a ReadOnly, geometry: &'a Geometry, shard: u32, window_slots: u64) -> Self {
        Self { source, geometry, shard, window: RefCell::default(), window_slots }
    }
}

impl Log<'_> {
    fn slots(&self) -> u64 {
        self.geometry.log_entries.into()
    }

    fn offset_of(&self, buffer: u32, offset: u16) -> u64 {
        let arena = self.geometry.arena_of(self.shard) as u64;
        arena + u64::from(buffer) * u64::from(self.geometry.buffer_bytes) + u64::from(offset)
    }
}

impl Source for Log<'_> {
    fn slot(&self, index: u64) -> Option<[u8; ENTRY_BYTES]> {
        let offset_of = |index| self.geometry.log_of(self.shard) as u64 + index * ENTRY_BYTES as u64;
        let mut window = self.window.borrow_mut();
        let place = index.checked_sub(window.first).map(|slot| slot as usize * ENTRY_BYTES);
        if let Some(bytes) = place.and_then(|place| window.bytes.get(place..)?.first_chunk()) {
            return Some(*bytes);
        }
        let slots = self.window_slots.min(self.slots() - index);
        window.first = index;
        window.bytes.resize(slots as usize * ENTRY_BYTES, 0);
        if self.source.read(offset_of(index), &mut window.bytes).is_none() {
            // It may end within these.
            window.bytes.clear();
            let mut bytes = [0; ENTRY_BYTES];
            return self.source.read(offset_of(index), &mut bytes).map(|()| bytes);
        }
        window.bytes.first_chunk().copied()
    }

    fn checksum(&self, crc: u32, name: ExtentName) -> Option<u32> {
        let mut bytes = [0; 4096];
        let (mut at, mut left) = (self.offset_of(name.buffer.0, name.offset), usize::from(name.len));
        let mut crc = crc;
        while left > 0 {
            let part = &mut bytes[..left.min(4096)];
            self.source.read(at, part)?;
            crc = crc::crc32c_append(crc, part);
            at += part.len() as u64;
            left -= part.len();
        }
        Some(crc)
    }
}
