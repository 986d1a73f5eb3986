//! `pmlog dump` and `pmlog verify`: a store is read as it is, also one that was cut off at any point.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Write};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use bytesize::ByteSize;
use pmem::{PieceName, RecordInfo, ShardReport, Snapshot, SnapshotEvent, SnapshotRecord};
use serde::Serialize;

use crate::cli::{DumpArgs, VerifyArgs};
use crate::http::RecordName;

/// Damage that one JSON report lists in words; all of it is counted.
const MAX_LISTED: usize = 1000;

/// Shows the records of a store on `out`, and damage on `complaints`.
///
/// # Errors
/// The store cannot be read, something in it is damaged, there is no such record, or `out` fails.
pub fn dump(args: &DumpArgs, out: &mut impl Write, complaints: &mut impl Write) -> Result<()> {
    let snapshot = Snapshot::open(&args.pm)?;
    complain_of_losses(&snapshot, complaints)?;
    let shards = snapshot.geometry().shards;
    if let Some(RecordName { shard: None, seq }) = args.record.filter(|_| shards > 1) {
        bail!("{} has {shards} shards: name a record SHARD-NUMBER, such as 0-{seq}", args.pm.display());
    }
    let mut listing = Listing { snapshot: &snapshot, args, out, found: false, table_begun: false };
    let mut corruptions = 0;
    scan_in_order(&snapshot, |event| match event {
        SnapshotEvent::Record(record) => listing.show(&record),
        SnapshotEvent::Corrupt(corruption) => {
            corruptions += 1;
            writeln!(complaints, "pmlog: {corruption}")
        }
    })?;
    let found = listing.found;
    out.flush()?;
    match args.record {
        Some(_) if found => Ok(()),
        Some(name) => bail!("{} holds no readable record {name}", args.pm.display()),
        None if corruptions > 0 => bail!("{} is damaged in {corruptions} places", args.pm.display()),
        None => Ok(()),
    }
}

/// Checks a store, and reports on `out`; true if it is sound.
///
/// # Errors
/// There is no store that could be checked, or `out` fails.
pub fn verify(args: &VerifyArgs, out: &mut impl Write) -> Result<bool> {
    let snapshot = Snapshot::open(&args.pm)?;
    let mut corruptions = Vec::new();
    let shards = scan(&snapshot, |event| {
        match event {
            SnapshotEvent::Corrupt(corruption) if !args.json => writeln!(out, "damaged: {corruption}")?,
            SnapshotEvent::Corrupt(corruption) if corruptions.len() < MAX_LISTED => {
                corruptions.push(corruption.to_string());
            }
            _ => {}
        }
        Ok(())
    })?;
    let verdict = Verdict::new(&snapshot, &shards, corruptions);
    if args.json {
        serde_json::to_writer(&mut *out, &verdict).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        verdict.write(out)?;
    }
    out.flush()?;
    Ok(verdict.sound)
}

/// Records that are read ahead of each shard.
const AHEAD: usize = 8;
/// What a thread that reads a shard needs of a stack, and some to spare.
const STACK_BYTES: usize = 512 << 10;

/// Goes through all shards side by side, so that their records come in the order of epoch, shard and number, of which
/// each shard has its own in order. However many there are, no more than [`AHEAD`] of each shard are kept.
pub(crate) fn scan_in_order(
    snapshot: &Snapshot,
    mut visit: impl FnMut(SnapshotEvent) -> io::Result<()>,
) -> Result<()> {
    let shards = snapshot.geometry().shards;
    if shards == 1 {
        return scan(snapshot, visit).map(drop);
    }
    thread::scope(|scope| {
        let mut queues = Vec::new();
        for shard in 0..shards {
            let (sender, queue) = sync_channel(AHEAD);
            let read = move || snapshot.scan(shard, |event| drop(sender.send(event))).map(drop);
            let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, read);
            thread.context("a shard's reader cannot be started; raise the limit on processes (ulimit -u)")?;
            queues.push(queue);
        }
        let mut firsts = BinaryHeap::<Reverse<(u32, usize)>>::new();
        let mut records: Vec<_> = queues.iter().map(|_| None).collect();
        let mut due: Vec<usize> = (0..queues.len()).collect();
        while let Some(shard) = due.pop().or_else(|| Some(firsts.pop()?.0.1)) {
            if let Some(record) = records[shard].take() {
                visit(SnapshotEvent::Record(record)).context("the output ended early")?;
            }
            for event in &queues[shard] {
                if let SnapshotEvent::Record(record) = event {
                    firsts.push(Reverse((record.info.epoch, shard)));
                    records[shard] = Some(record);
                    break;
                }
                visit(event).context("the output ended early")?;
            }
        }
        Ok(())
    })
}

/// Goes through all shards. The first failure of `visit` ends its visits, and is what comes back.
fn scan(
    snapshot: &Snapshot,
    mut visit: impl FnMut(SnapshotEvent) -> io::Result<()>,
) -> Result<Vec<ShardReport>> {
    let mut outcome = Ok(());
    let mut reports = Vec::new();
    for shard in 0..snapshot.geometry().shards {
        reports.push(snapshot.scan(shard, |event| {
            if outcome.is_ok() {
                outcome = visit(event);
            }
        })?);
        if outcome.is_err() {
            break;
        }
    }
    outcome.context("the output ended early")?;
    Ok(reports)
}

fn complain_of_losses(snapshot: &Snapshot, complaints: &mut impl Write) -> io::Result<()> {
    if snapshot.missing_bytes() > 0 {
        writeln!(complaints, "pmlog: the store was cut off: {} bytes are missing", snapshot.missing_bytes())?;
    }
    if snapshot.has_damaged_superblock() {
        writeln!(
            complaints,
            "pmlog: one of the two superblocks is damaged; opening the store for writing repairs it"
        )?;
    }
    Ok(())
}

/// Records on their way to the output.
struct Listing<'a, W> {
    snapshot: &'a Snapshot,
    args: &'a DumpArgs,
    out: &'a mut W,
    found: bool,
    table_begun: bool,
}

/// One line of `dump --json`.
#[derive(Serialize)]
struct RecordLine {
    /// Which shard holds it, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<u32>,
    seq: u64,
    epoch: u32,
    length: u64,
    crc32c: String,
    /// When it was appended, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    /// Empty for a record that lies in its log entry.
    extents: Vec<ExtentLine>,
}

#[derive(Serialize)]
struct ExtentLine {
    buffer: u32,
    offset: u16,
    length: u16,
}

impl<W: Write> Listing<'_, W> {
    fn is_wanted(&self, record: &SnapshotRecord) -> bool {
        self.args.record.is_none_or(|RecordName { shard, seq }| {
            seq == record.info.seq && shard.unwrap_or(0) == record.shard
        })
    }

    fn show(&mut self, record: &SnapshotRecord) -> io::Result<()> {
        if !self.is_wanted(record) {
            return Ok(());
        }
        self.found = true;
        if self.args.json {
            let line = self.line(record);
            serde_json::to_writer(&mut *self.out, &line)?;
            return writeln!(self.out);
        }
        if self.args.record.is_some() {
            return self.snapshot.write_record(record, self.out);
        }
        if !std::mem::replace(&mut self.table_begun, true) {
            writeln!(
                self.out,
                "{:>12} {:>6} {:>12}  crc32c    {:20}  where",
                "record", "epoch", "bytes", "time"
            )?;
        }
        let info = &record.info;
        let shard = (self.snapshot.geometry().shards > 1).then_some(record.shard);
        let name = RecordName { shard, seq: info.seq }.to_string();
        let time = time(info).unwrap_or_else(|| "unknown".to_owned());
        write!(self.out, "{name:>12} {:>6} {:>12}  {:08x}  {time:20}  ", info.epoch, info.len, info.crc32c)?;
        match record.pieces.as_slice() {
            [] => writeln!(self.out, "in its log entry"),
            [piece] => writeln!(self.out, "buffer {} at {}", piece.buffer, piece.offset),
            [first, .., last] => {
                let count = record.pieces.len();
                writeln!(self.out, "{count} pieces, buffers {} to {}", first.buffer, last.buffer)
            }
        }
    }

    fn line(&self, record: &SnapshotRecord) -> RecordLine {
        let info = &record.info;
        let extent =
            |piece: &PieceName| ExtentLine { buffer: piece.buffer, offset: piece.offset, length: piece.len };
        RecordLine {
            shard: (self.snapshot.geometry().shards > 1).then_some(record.shard),
            seq: info.seq,
            epoch: info.epoch,
            length: info.len,
            crc32c: format!("{:08x}", info.crc32c),
            time: time(info),
            extents: record.pieces.iter().map(extent).collect(),
        }
    }
}

/// When a record was appended, in UTC, where that is known.
fn time(info: &RecordInfo) -> Option<String> {
    let time = UNIX_EPOCH + Duration::from_secs(info.time_s.into());
    (info.time_s > 0).then(|| humantime::format_rfc3339_seconds(time).to_string())
}

/// What `verify` says.
#[derive(Serialize)]
struct Verdict {
    sound: bool,
    store: String,
    /// The version of its format.
    format: u32,
    /// What the records are.
    contents: String,
    records: u64,
    payload_bytes: u64,
    missing_bytes: u64,
    damaged_superblock: bool,
    corruptions: u64,
    /// The first of them, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    found: Vec<String>,
    shards: Vec<ShardLine>,
}

#[derive(Serialize)]
struct ShardLine {
    shard: u32,
    epoch: Option<u32>,
    head: u64,
    next: u64,
    records: u64,
    payload_bytes: u64,
    live_buffers: u32,
    free_buffers: u32,
    /// What lies behind the last record, if that looks like an append that was cut short.
    #[serde(skip_serializing_if = "Option::is_none")]
    torn: Option<String>,
    /// Which of the two copies of its header is damaged, if one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged_header: Option<String>,
    corruptions: u64,
}

impl Verdict {
    fn new(snapshot: &Snapshot, shards: &[ShardReport], found: Vec<String>) -> Self {
        let sum = |part: fn(&ShardReport) -> u64| shards.iter().map(part).sum();
        let corruptions = sum(|shard| shard.corruptions);
        let may_be_old =
            shards.iter().any(|shard| shard.header_damage.is_some_and(|damage| damage.may_be_newer));
        Self {
            // One good copy of superblock or header is enough, unless it may be the older one, and repairs the other;
            // missing bytes are nowhere else.
            sound: corruptions == 0 && snapshot.missing_bytes() == 0 && !may_be_old,
            store: snapshot.uuid().to_string(),
            format: snapshot.version(),
            contents: snapshot.contents().to_string(),
            records: sum(|shard| shard.records),
            payload_bytes: sum(|shard| shard.payload_bytes),
            missing_bytes: snapshot.missing_bytes(),
            damaged_superblock: snapshot.has_damaged_superblock(),
            corruptions,
            found,
            shards: shards.iter().map(ShardLine::from).collect(),
        }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "store {}, format {}, {}", self.store, self.format, self.contents)?;
        for shard in &self.shards {
            let ShardLine { shard: index, records, head, next, live_buffers, free_buffers, .. } = shard;
            let epoch = shard.epoch.map_or_else(|| "unknown".to_owned(), |epoch| epoch.to_string());
            writeln!(
                out,
                "shard {index}: epoch {epoch}, {records} records of {}, numbers {head} to before {next}, \
                 {live_buffers} buffers in use and {free_buffers} free",
                ByteSize(shard.payload_bytes)
            )?;
            if let Some(torn) = &shard.torn {
                writeln!(out, "  behind the last record: {torn}")?;
            }
            if let Some(damage) = &shard.damaged_header {
                writeln!(out, "  {damage}; opening the store for writing repairs it")?;
            }
        }
        if self.damaged_superblock {
            writeln!(out, "one of the two superblocks is damaged; opening the store for writing repairs it")?;
        }
        if self.missing_bytes > 0 {
            writeln!(out, "cut off: {} bytes are missing at the end", self.missing_bytes)?;
        }
        let payload = ByteSize(self.payload_bytes);
        match self.corruptions {
            0 if self.sound => writeln!(out, "sound: {} records, {payload}", self.records),
            damaged => {
                writeln!(out, "not sound: {damaged} damaged places; {} records can be read", self.records)
            }
        }
    }
}

impl From<&ShardReport> for ShardLine {
    fn from(report: &ShardReport) -> Self {
        Self {
            shard: report.shard,
            epoch: report.epoch,
            head: report.head,
            next: report.next,
            records: report.records,
            payload_bytes: report.payload_bytes,
            live_buffers: report.live_buffers,
            free_buffers: report.free_buffers,
            torn: report.torn.map(|torn| torn.to_string()),
            damaged_header: report.header_damage.map(|damage| damage.to_string()),
            corruptions: report.corruptions,
        }
    }
}
