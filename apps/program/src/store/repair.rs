//! Mending a store without losing a record that can be read.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Result, bail, ensure};
use pmem::{Corruption, Options, Region, ShardReport, Snapshot, SnapshotEvent};
use serde::Serialize;

use super::damage::{self, Dropped};
use super::{MAX_LISTED, Telling, of_shard};
use crate::progress::Records;

/// What `repair` found, and what it did about it.
#[derive(Serialize)]
struct Findings {
    /// Whether the store is sound, now that what is said here was done.
    sound: bool,
    /// Whether anything was written.
    written: bool,
    /// What is written again from its other copy.
    mended: Vec<String>,
    /// Damaged records that were given up, or would be.
    dropped: u64,
    /// Damaged records, which stay in the store and are passed over.
    damaged: u64,
    /// The first of all damaged records, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    records: Vec<String>,
    /// What cannot be mended in place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lost: Vec<String>,
}

/// Says on `out` what can be mended of a store, and does it if it is to be `written`: copies of superblock and headers are
/// written again, and damaged records are given up that are to be dropped. True if the store is sound then.
///
/// # Errors
/// There is no store, it cannot be written, or has no such damaged record, or `out` fails.
pub fn repair(
    path: &Path,
    drop: Option<Dropped>,
    written: bool,
    telling: Telling,
    out: &mut impl Write,
) -> Result<bool> {
    let snapshot = Snapshot::open(path)?;
    let shards = snapshot.geometry().shards;
    let wanted = damage::wanted(path, drop, shards)?;
    let mut is_found = false;
    let mut findings = Findings {
        sound: true,
        written,
        mended: Vec::new(),
        dropped: 0,
        damaged: 0,
        records: Vec::new(),
        lost: Vec::new(),
    };
    if snapshot.missing_bytes() > 0 {
        findings.lost.push(format!("the store was cut off: {} bytes are missing", snapshot.missing_bytes()));
    }
    if snapshot.has_damaged_superblock() {
        findings.mended.push("a copy of the superblock is damaged".into());
    }
    let total = super::verify::surveyed(&snapshot)?;
    let progress = Records::new(telling.name, telling.json, "checking records", total);
    // Of these a copy of the header is damaged.
    let mut half = Vec::new();
    for shard in 0..shards {
        let report = snapshot.scan(shard, |event| match event {
            SnapshotEvent::Record(_) => progress.one_more(),
            SnapshotEvent::Corrupt(corruption) => {
                is_found |=
                    matches!(corruption, Corruption::Record { seq, .. } if wanted == Some((shard, seq)));
                findings.take(shard, shards, corruption);
            }
        })?;
        findings.take_header(&report, shards, &mut half);
    }
    std::mem::drop((progress, snapshot));
    match drop {
        Some(Dropped::All) => (findings.dropped, findings.damaged) = (findings.damaged, 0),
        Some(Dropped::One(name)) => {
            ensure!(
                is_found,
                "{} has no damaged record {name}; without --drop all that are damaged are listed",
                path.display()
            );
            (findings.dropped, findings.damaged) = (1, findings.damaged - 1);
        }
        None => {}
    }
    if written {
        write(path, &half, drop, &findings)?;
    }
    findings.sound = findings.lost.is_empty()
        && findings.damaged == 0
        && (written || findings.mended.is_empty() && findings.dropped == 0);
    findings.write(telling, out)?;
    Ok(findings.sound)
}

/// Does what is to be done.
fn write(path: &Path, half: &[u32], drop: Option<Dropped>, findings: &Findings) -> Result<()> {
    if !findings.lost.is_empty() {
        bail!(
            "{}: {}; that cannot be mended in place, and nothing was written: `pmtool salvage` copies what can be read to a \
             new store",
            path.display(),
            findings.lost.join("; ")
        );
    }
    if !findings.mended.is_empty() {
        // What is on volatile memory was allowed to be there when it was made.
        let options = Options { volatile: true, ..Options::default() };
        Region::open(path, &options)?.begin()?;
    }
    // Opening a shard writes its header again.
    for &shard in half {
        damage::open(path, shard)?;
    }
    match drop {
        Some(drop) => damage::damaged(path, Some(drop), false, &mut io::sink()),
        None => Ok(()),
    }
}

impl Findings {
    fn take(&mut self, shard: u32, shards: u32, corruption: Corruption) {
        let said = format!("{}{corruption}", of_shard(shard, shards));
        if !matches!(corruption, Corruption::Record { .. }) {
            self.lost.push(said);
            return;
        }
        self.damaged += 1;
        if self.records.len() < MAX_LISTED {
            self.records.push(said);
        }
    }

    fn take_header(&mut self, report: &ShardReport, shards: u32, half: &mut Vec<u32>) {
        let place = of_shard(report.shard, shards);
        if let Some(damage) = report.header_damage {
            self.mended.push(format!("{place}{damage}"));
            half.push(report.shard);
        }
        // Whoever opens the shard for writing cuts them off.
        if let Some(torn) = report.torn.filter(|torn| torn.behind.is_some()) {
            self.lost.push(format!("{place}{torn}"));
        }
    }

    fn write(&self, telling: Telling, out: &mut impl Write) -> io::Result<()> {
        if telling.json {
            serde_json::to_writer(&mut *out, self)?;
            writeln!(out)?;
            return out.flush();
        }
        for record in &self.records {
            writeln!(out, "damaged: {record}")?;
        }
        for mended in &self.mended {
            writeln!(
                out,
                "{mended}; {} from the other",
                if self.written { "written again" } else { "to be written again" }
            )?;
        }
        for lost in &self.lost {
            writeln!(out, "{lost}; `pmtool salvage` copies what can be read to a new store")?;
        }
        if self.dropped > 0 {
            writeln!(
                out,
                "{} damaged records {}",
                self.dropped,
                if self.written { "dropped" } else { "to be dropped" }
            )?;
        }
        if self.damaged > 0 {
            writeln!(
                out,
                "{} damaged records stay, and are passed over; --drop NUMBER or --drop all gives them up",
                self.damaged
            )?;
        }
        match () {
            () if self.sound => writeln!(out, "sound")?,
            () if !self.written && (!self.mended.is_empty() || self.dropped > 0) => {
                writeln!(out, "nothing was written; --write does it")?;
            }
            () => writeln!(out, "not sound")?,
        }
        out.flush()
    }
}
