//! What a store is, and how full.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use bytesize::ByteSize;
use pmem::{Geometry, ShardReport, Snapshot};
use serde::Serialize;

use super::{Telling, of_shard};

/// What `info` says.
#[derive(Serialize)]
struct Facts {
    path: String,
    store: String,
    /// The version of its format.
    format: u32,
    /// What the records are.
    contents: String,
    region_bytes: u64,
    missing_bytes: u64,
    damaged_superblock: bool,
    buffers: u32,
    buffer_bytes: u16,
    log_entries: u32,
    records: u64,
    /// Bytes of the records.
    live_bytes: u64,
    /// What they take: whole buffers, and log entries.
    held_bytes: u64,
    shards: Vec<ShardFacts>,
}

#[derive(Serialize)]
struct ShardFacts {
    shard: u32,
    /// None if its header is lost.
    epoch: Option<u32>,
    head: u64,
    next: u64,
    records: u64,
    live_bytes: u64,
    held_bytes: u64,
    live_buffers: u32,
    free_buffers: u32,
    /// Damage that the log itself shows.
    damaged: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged_header: Option<String>,
}

/// Says on `out` what a store is and how full, without reading its records' bytes.
///
/// # Errors
/// There is no store, or `out` fails.
pub fn info(path: &Path, telling: Telling, out: &mut impl Write) -> Result<()> {
    let snapshot = Snapshot::open(path)?;
    let geometry = *snapshot.geometry();
    let shards: Vec<_> = (0..geometry.shards)
        .map(|shard| Ok(ShardFacts::new(&snapshot.survey(shard, |_| ())?, &geometry)))
        .collect::<Result<_>>()?;
    let sum = |part: fn(&ShardFacts) -> u64| shards.iter().map(part).sum();
    let facts = Facts {
        path: path.display().to_string(),
        store: snapshot.uuid().to_string(),
        format: snapshot.version(),
        contents: snapshot.contents().to_string(),
        region_bytes: geometry.region_bytes,
        missing_bytes: snapshot.missing_bytes(),
        damaged_superblock: snapshot.has_damaged_superblock(),
        buffers: geometry.buffers,
        buffer_bytes: geometry.buffer_bytes,
        log_entries: geometry.log_entries,
        records: sum(|shard| shard.records),
        live_bytes: sum(|shard| shard.live_bytes),
        held_bytes: sum(|shard| shard.held_bytes),
        shards,
    };
    if telling.json {
        serde_json::to_writer(&mut *out, &facts).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        facts.write(out)?;
    }
    Ok(out.flush()?)
}

const ENTRY_BYTES: u64 = 64;

impl ShardFacts {
    fn new(report: &ShardReport, geometry: &Geometry) -> Self {
        let entries = report.next.saturating_sub(report.head);
        let buffers = u64::from(report.live_buffers) * u64::from(geometry.buffer_bytes);
        Self {
            shard: report.shard,
            epoch: report.epoch,
            head: report.head,
            next: report.next,
            records: report.records,
            live_bytes: report.payload_bytes,
            held_bytes: buffers + entries * ENTRY_BYTES,
            live_buffers: report.live_buffers,
            free_buffers: report.free_buffers,
            damaged: report.corruptions,
            damaged_header: report.header_damage.map(|damage| damage.to_string()),
        }
    }
}

impl Facts {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let shards = self.shards.len() as u32;
        writeln!(out, "{}: store {}, format {}, {}", self.path, self.store, self.format, self.contents)?;
        writeln!(
            out,
            "{} in {shards} shard(s), each of {} buffers of {} bytes and {} log entries",
            ByteSize(self.region_bytes),
            self.buffers,
            self.buffer_bytes,
            self.log_entries
        )?;
        for shard in &self.shards {
            write!(out, "{}", of_shard(shard.shard, shards))?;
            match shard.epoch {
                None => writeln!(out, "its header is lost; `pmtool salvage` copies what can be read")?,
                Some(epoch) => writeln!(
                    out,
                    "{} records of {}, numbers {} to before {}, epoch {epoch}; {} of {} buffers and {} of {} log entries in use",
                    shard.records,
                    ByteSize(shard.live_bytes),
                    shard.head,
                    shard.next,
                    shard.live_buffers,
                    self.buffers,
                    shard.next.saturating_sub(shard.head),
                    self.log_entries
                )?,
            }
            if shard.epoch.is_some() && shard.damaged > 0 {
                writeln!(out, "  {} damaged places; `pmtool verify` names them", shard.damaged)?;
            }
            if let Some(damage) = &shard.damaged_header {
                writeln!(out, "  {damage}; `pmtool repair --write` writes it again")?;
            }
        }
        if self.damaged_superblock {
            writeln!(out, "one of the two superblocks is damaged; `pmtool repair --write` writes it again")?;
        }
        if self.missing_bytes > 0 {
            writeln!(out, "cut off: {} bytes are missing at the end", self.missing_bytes)?;
        }
        writeln!(
            out,
            "{} records of {} hold {}",
            self.records,
            ByteSize(self.live_bytes),
            ByteSize(self.held_bytes)
        )
    }
}
