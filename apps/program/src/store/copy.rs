//! Copying a store's records to a new one: all that can be read of a damaged store, or all of a sound one into another size.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytesize::ByteSize;
use pmem::{
    Corruption, DomainChoice, EntryFault, Extent, OpenError, Options, PACK_BYTES, Region, Shape, Shard,
    ShardReport, Shelf, Snapshot, SnapshotEvent, SnapshotRecord,
};
use serde::Serialize;

use super::{MAX_LISTED, Telling, of_shard};
use crate::progress::Records;

/// The new store.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Where it is made. No store may be there.
    pub path: &'a Path,
    /// Its length; without it, that of the old one.
    pub size: Option<u64>,
    /// Log entries of each shard; without it, as many as the old one has, or its own length makes.
    pub log_entries: Option<u32>,
    /// How it is written.
    pub domain: DomainChoice,
    /// Whether it may be on memory that does not survive.
    pub volatile: bool,
}

/// What was copied, and what was not.
#[derive(Serialize)]
struct Copied {
    from: String,
    to: String,
    records: u64,
    payload_bytes: u64,
    /// Records, or runs of log entries that belong to none, that cannot be read.
    lost: u64,
    /// Records that have other numbers than before.
    renumbered: u64,
    /// Whether the store's superblock is lost: how it was cut up was found by its logs.
    lost_superblock: bool,
    shards: Vec<CopiedShard>,
}

#[derive(Default, Serialize)]
struct CopiedShard {
    shard: u32,
    records: u64,
    payload_bytes: u64,
    lost: u64,
    /// The first of these, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
    renumbered: u64,
    /// Why it was read by its log entries alone: then records that were trimmed may be back.
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_header: Option<String>,
    /// What lies behind the last record.
    #[serde(skip_serializing_if = "Option::is_none")]
    torn: Option<String>,
}

/// Copies all records of a store that can be read, with their numbers and in their order, to a new one, and reports on `out`
/// what was lost. `shape` says how it was made, for where its superblock is lost.
///
/// # Errors
/// There is no store to read, or the new one cannot be made, or has no room, or `stop` was set; then it is gone again.
pub fn salvage(
    from: &Path,
    shape: &Shape,
    to: Target<'_>,
    stop: &AtomicBool,
    telling: Telling,
    out: &mut impl Write,
) -> Result<()> {
    let (snapshot, lost_superblock) = match Snapshot::open(from) {
        Ok(snapshot) => (snapshot, false),
        Err(error @ (OpenError::Damaged { .. } | OpenError::NotAStore { .. })) => {
            let snapshot = Snapshot::open_by_logs(from, shape);
            (snapshot.map_err(|logs| anyhow!("{logs}; it was looked for since {error}"))?, true)
        }
        Err(error) => return Err(error.into()),
    };
    let mut copied = Copy { snapshot: &snapshot, to, stop, telling, is_salvage: true }.run()?;
    copied.lost_superblock = lost_superblock;
    copied.tell(telling, out)
}

/// Copies all records of a store, with their numbers and in their order, to a new one of another size.
///
/// # Errors
/// As [`salvage`], and if anything of the store is damaged or it has no place in the new one.
pub fn resize(
    from: &Path,
    to: Target<'_>,
    stop: &AtomicBool,
    telling: Telling,
    out: &mut impl Write,
) -> Result<()> {
    let snapshot = Snapshot::open(from)?;
    let copied = Copy { snapshot: &snapshot, to, stop, telling, is_salvage: false }.run()?;
    copied.tell(telling, out)
}

struct Copy<'a> {
    snapshot: &'a Snapshot,
    to: Target<'a>,
    stop: &'a AtomicBool,
    telling: Telling,
    is_salvage: bool,
}

/// What a commit makes durable at most.
const COMMIT_RECORDS: u64 = 1024;
const COMMIT_BYTES: u64 = 4 << 20;

impl Copy<'_> {
    fn run(&self) -> Result<Copied> {
        let (geometry, path) = (*self.snapshot.geometry(), self.to.path);
        ensure!(
            self.is_salvage || self.snapshot.missing_bytes() == 0,
            "the store was cut off: {} bytes are missing; `pmtool salvage` copies what can be read",
            self.snapshot.missing_bytes()
        );
        let surveyed = (0..geometry.shards)
            .map(|shard| Ok(self.snapshot.survey(shard, |_| ())?))
            .collect::<Result<Vec<_>>>()?;
        let is_new = !path.exists();
        let options = Options {
            size: Some(self.to.size.unwrap_or(geometry.region_bytes)),
            shards: Some(geometry.shards),
            buffer_bytes: Some(geometry.buffer_bytes),
            log_entries: self.to.log_entries.or(self.to.size.is_none().then_some(geometry.log_entries)),
            contents: self.snapshot.contents(),
            reserve: Some(0),
            max_record_bytes: u32::MAX,
            domain: self.to.domain,
            volatile: self.to.volatile,
            ..Options::default()
        };
        let region = Region::open(path, &options)
            .map_err(|error| match crate::option_for(&error, "--size, --log-entries") {
                Some("--volatile") => anyhow!("{error} (here: --volatile)"),
                _ => error.into(),
            })
            .with_context(|| format!("{} cannot be made", path.display()))?;
        ensure!(
            region.info().is_new,
            "{} holds a store already, and was left alone; name another path",
            path.display()
        );
        self.check_room(&surveyed, &region)?;
        let total = surveyed.iter().map(|shard| shard.records).sum();
        let copied = self.fill(region, total);
        if copied.is_err() && is_new {
            fs::remove_file(path).with_context(|| format!("half a store is left in {}", path.display()))?;
        }
        copied
    }

    /// Refuses what cannot have room, before anything is written.
    fn check_room(&self, surveyed: &[ShardReport], region: &Region) -> Result<()> {
        let geometry = &region.info().geometry;
        let room_bytes = u64::from(geometry.buffers) * u64::from(geometry.buffer_bytes);
        for shard in surveyed {
            let entries = shard.next.saturating_sub(shard.head);
            let place = of_shard(shard.shard, geometry.shards);
            ensure!(
                shard.payload_bytes <= room_bytes && shard.live_buffers <= 2 * geometry.buffers,
                "{place}{} of records do not fit into {} of buffers; give a larger --size",
                ByteSize(shard.payload_bytes),
                ByteSize(room_bytes)
            );
            ensure!(
                entries <= geometry.log_entries.into(),
                "{place}{entries} log entries do not fit into a log of {}; give a larger --size, or --log-entries {}",
                geometry.log_entries,
                entries.next_power_of_two()
            );
        }
        Ok(())
    }

    fn fill(&self, region: Region, total: u64) -> Result<Copied> {
        let progress = Records::new(self.telling.name, self.telling.json, "copying records", total);
        let shards = region
            .into_seeds()
            .into_iter()
            .zip(0..)
            .map(|(seed, index)| self.copy_shard(seed.open()?, index, &progress))
            .collect::<Result<Vec<_>>>()?;
        let sum = |part: fn(&CopiedShard) -> u64| shards.iter().map(part).sum();
        Ok(Copied {
            from: self.snapshot.path().display().to_string(),
            to: self.to.path.display().to_string(),
            records: sum(|shard| shard.records),
            payload_bytes: sum(|shard| shard.payload_bytes),
            lost: sum(|shard| shard.lost),
            renumbered: sum(|shard| shard.renumbered),
            lost_superblock: false,
            shards,
        })
    }

    fn copy_shard(&self, shard: Shard, index: u32, progress: &Records) -> Result<CopiedShard> {
        let mut filling = Filling {
            snapshot: self.snapshot,
            shard,
            shelf: None,
            uncommitted: (0, 0),
            copied: CopiedShard { shard: index, ..CopiedShard::default() },
        };
        let mut failed = Ok(());
        let visit = |event| {
            if failed.is_ok() {
                failed = self.take(event, &mut filling);
                progress.one_more();
            }
        };
        let report = if self.is_salvage {
            self.snapshot.salvage(index, visit)
        } else {
            self.snapshot.scan(index, visit)
        }?;
        failed?;
        filling.end(&report)
    }

    fn take(&self, event: SnapshotEvent, filling: &mut Filling<'_>) -> Result<()> {
        ensure!(!self.stop.load(Ordering::Relaxed), "ended before it was done");
        match event {
            SnapshotEvent::Record(record) => filling.put(&record),
            // Its bytes are as they were, and are copied.
            SnapshotEvent::Corrupt(Corruption::Record { fault: EntryFault::Shared { .. }, .. })
                if self.is_salvage =>
            {
                Ok(())
            }
            SnapshotEvent::Corrupt(corruption) if self.is_salvage => {
                filling.copied.lost += 1;
                if filling.copied.reasons.len() < MAX_LISTED {
                    filling.copied.reasons.push(corruption.to_string());
                }
                Ok(())
            }
            SnapshotEvent::Corrupt(corruption) => bail!(
                "{corruption}; `pmtool repair` drops damaged records, and `pmtool salvage` copies what can be read"
            ),
        }
    }
}

/// A shard that is being filled.
struct Filling<'a> {
    snapshot: &'a Snapshot,
    shard: Shard,
    /// What pieces of records are put onto.
    shelf: Option<Shelf>,
    /// Records and bytes of them that no commit has made durable.
    uncommitted: (u64, u64),
    copied: CopiedShard,
}

impl Filling<'_> {
    fn put(&mut self, record: &SnapshotRecord) -> Result<()> {
        let info = &record.info;
        let full = |error: &dyn fmt::Display| {
            anyhow!("there is no room for record {} ({error}); give a larger --size", info.seq)
        };
        // In a log that lost its header, entries that are older than its oldest record may claim anything.
        let keeps = self.shard.continue_at(info.epoch, info.seq).map_err(|error| full(&error))?;
        self.copied.renumbered += u64::from(!keeps);
        self.shard.set_time(info.time_s);
        let appended = if info.len < PACK_BYTES as u64 {
            let mut bytes = Vec::with_capacity(PACK_BYTES);
            self.snapshot.write_record(record, &mut bytes)?;
            self.shard.append_copy(&bytes)
        } else {
            let extents = self.pieces(record)?;
            let mut draft = self.shard.draft();
            let pushed = extents.into_iter().try_for_each(|extent| self.shard.push(&mut draft, extent));
            pushed.and_then(|()| self.shard.append(draft))
        };
        // What was appended is durable with the commit at the latest that ends the copy.
        let _pending = appended.map_err(|error| full(&error))?;
        self.copied.records += 1;
        self.copied.payload_bytes += info.len;
        let (records, bytes) = self.uncommitted;
        self.uncommitted = (records + 1, bytes + info.len);
        if self.uncommitted.0 >= COMMIT_RECORDS || self.uncommitted.1 >= COMMIT_BYTES {
            self.shard.commit()?;
            self.uncommitted = (0, 0);
        }
        Ok(())
    }

    /// A record's bytes in the new store, all of them there before the first is made part of a record.
    fn pieces(&mut self, record: &SnapshotRecord) -> Result<Vec<Extent>> {
        let mut extents = Vec::with_capacity(record.pieces.len());
        for piece in &record.pieces {
            let bytes = self.snapshot.read_piece(record.shard, piece)?;
            let shelved = self.shelf.as_mut().and_then(|shelf| shelf.put(&bytes));
            let extent = match shelved {
                Some(extent) => extent,
                None => {
                    let shelf = self.shard.arena().take().and_then(Shelf::new);
                    let mut shelf = shelf.with_context(|| {
                        format!(
                            "there is no free buffer for record {}; give a larger --size",
                            record.info.seq
                        )
                    })?;
                    let extent = shelf.put(&bytes).context("a piece is longer than a buffer")?;
                    self.shelf = Some(shelf);
                    extent
                }
            };
            extents.push(extent);
        }
        Ok(extents)
    }

    /// Has the shard go on where the other one would have.
    fn end(mut self, report: &ShardReport) -> Result<CopiedShard> {
        let epoch = self.shard.epoch();
        self.shard
            .continue_at(epoch, report.next.max(report.head))
            .map_err(|error| anyhow!("the new store cannot go on at record {}: {error}", report.next))?;
        self.shard.commit()?;
        self.shard.checkpoint()?;
        self.copied.lost_header = report.lost_header.map(|lost| lost.to_string());
        self.copied.torn = report.torn.map(|torn| torn.to_string());
        Ok(self.copied)
    }
}

impl Copied {
    fn tell(&self, telling: Telling, out: &mut impl Write) -> Result<()> {
        if telling.json {
            serde_json::to_writer(&mut *out, self).map_err(io::Error::from)?;
            writeln!(out)?;
            return Ok(out.flush()?);
        }
        let shards = self.shards.len() as u32;
        for shard in &self.shards {
            let place = of_shard(shard.shard, shards);
            for reason in &shard.reasons {
                writeln!(out, "lost: {place}{reason}")?;
            }
            if let Some(lost) = &shard.lost_header {
                writeln!(
                    out,
                    "{place}{lost}; it was read by its log entries, and records that were trimmed last may be back"
                )?;
            }
            if let Some(torn) = &shard.torn {
                writeln!(out, "{place}behind the last record: {torn}")?;
            }
        }
        if self.lost_superblock {
            writeln!(
                out,
                "the superblock is lost in both copies, and with it whose records these are; {shards} shard(s) were found by \
                 their logs"
            )?;
        }
        if self.renumbered > 0 {
            writeln!(out, "{} records have other numbers than before", self.renumbered)?;
        }
        writeln!(out, "{} records of {} copied to {}", self.records, ByteSize(self.payload_bytes), self.to)?;
        if self.lost > 0 {
            writeln!(out, "{} damaged places were left out", self.lost)?;
        }
        Ok(out.flush()?)
    }
}
