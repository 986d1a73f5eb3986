//! `pmlog dump`: a store is read as it is, also one that was cut off at any point.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Write};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use pmem::{PieceName, RecordInfo, Snapshot, SnapshotEvent, SnapshotRecord};
use serde::Serialize;

use crate::cli::DumpArgs;
use crate::http::RecordName;

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
    let mut listing = Listing { snapshot: &snapshot, args, out, table_begun: false };
    if let Some(name) = args.record {
        let shard = name.shard.unwrap_or(0);
        let record = if shard < shards { snapshot.record(shard, name.seq)? } else { None };
        let record =
            record.with_context(|| format!("{} holds no readable record {name}", args.pm.display()))?;
        listing.show(&record)?;
        return Ok(listing.out.flush()?);
    }
    let mut corruptions = 0;
    scan_in_order(&snapshot, |event| match event {
        SnapshotEvent::Record(record) => listing.show(&record),
        SnapshotEvent::Corrupt(corruption) => {
            corruptions += 1;
            writeln!(complaints, "pmlog: {corruption}")
        }
    })?;
    out.flush()?;
    if corruptions > 0 {
        bail!("{} is damaged in {corruptions} places", args.pm.display());
    }
    Ok(())
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
        return scan(snapshot, 0, visit);
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

/// Goes through a shard. The first failure of `visit` ends its visits, and is what comes back.
fn scan(
    snapshot: &Snapshot,
    shard: u32,
    mut visit: impl FnMut(SnapshotEvent) -> io::Result<()>,
) -> Result<()> {
    let mut outcome = Ok(());
    let _report = snapshot.scan(shard, |event| {
        if outcome.is_ok() {
            outcome = visit(event);
        }
    })?;
    outcome.context("the output ended early")
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
    fn show(&mut self, record: &SnapshotRecord) -> io::Result<()> {
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
