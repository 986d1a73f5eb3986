//! Checking every record of a store.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use bytesize::ByteSize;
use pmem::{ShardReport, Snapshot, SnapshotEvent};
use serde::Serialize;

use super::{MAX_LISTED, Telling};
use crate::progress::Records;

/// Checks a store, and reports on `out`; true if it is sound.
///
/// # Errors
/// There is no store that could be checked, or `out` fails.
pub fn verify(path: &Path, telling: Telling, out: &mut impl Write) -> Result<bool> {
    let snapshot = Snapshot::open(path)?;
    let progress = Records::new(telling.name, telling.json, "checking records", surveyed(&snapshot)?);
    let mut corruptions = Vec::new();
    let shards = scan(&snapshot, |event| {
        match event {
            SnapshotEvent::Corrupt(corruption) if !telling.json => writeln!(out, "damaged: {corruption}")?,
            SnapshotEvent::Corrupt(corruption) if corruptions.len() < MAX_LISTED => {
                corruptions.push(corruption.to_string());
            }
            SnapshotEvent::Record(_) => progress.one_more(),
            SnapshotEvent::Corrupt(_) => {}
        }
        Ok(())
    })?;
    drop(progress);
    let verdict = Verdict::new(&snapshot, &shards, corruptions);
    if telling.json {
        serde_json::to_writer(&mut *out, &verdict).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        verdict.write(out)?;
    }
    out.flush()?;
    Ok(verdict.sound)
}

/// Records of a store, by their log entries.
pub(super) fn surveyed(snapshot: &Snapshot) -> Result<u64> {
    let shards = 0..snapshot.geometry().shards;
    shards.map(|shard| Ok(snapshot.survey(shard, |_| ())?.records)).sum()
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
