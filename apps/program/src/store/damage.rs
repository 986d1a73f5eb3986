//! The damaged records of a store, listed, or given up.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Result, bail};
use pmem::{Corruption, Options, Region, Shard, Snapshot, SnapshotEvent};
use serde::Serialize;

use super::{NoName, RecordName};

/// Damaged records to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// One.
    One(RecordName),
    /// All.
    All,
}

/// Text that names neither a record nor all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; or write `all`")]
pub struct NotDropped(NoName);

impl FromStr for Dropped {
    type Err = NotDropped;

    fn from_str(text: &str) -> Result<Self, NotDropped> {
        if text == "all" { Ok(Self::All) } else { text.parse().map(Self::One).map_err(NotDropped) }
    }
}

/// One damaged record, as JSON.
#[derive(Serialize)]
struct Line {
    /// Which shard, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<u32>,
    seq: u64,
    /// Log entries that it takes.
    entries: u64,
    reason: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dropped: bool,
}

/// Lists damaged records on `out`, or gives them up.
///
/// # Errors
/// There is no store that can be read, a shard of it cannot be, or it cannot be opened for `drop` or has no such damaged
/// record, or `out` fails.
pub fn damaged(path: &Path, drop: Option<Dropped>, json: bool, out: &mut impl Write) -> Result<()> {
    let snapshot = Snapshot::open(path)?;
    let shards = snapshot.geometry().shards;
    let name_of = |shard, seq| RecordName { shard: (shards > 1).then_some(shard), seq };
    let wanted = wanted(path, drop, shards)?;
    let mut found = 0_u64;
    // The one that is wanted. What a store names when it is opened may end before it.
    let mut one = None;
    let mut unread = 0;
    // Shards with something to drop.
    let mut concerned = BTreeSet::new();
    for shard in 0..shards {
        let mut written = Ok(());
        let _report = snapshot.scan(shard, |event| {
            let SnapshotEvent::Corrupt(corruption) = event else { return };
            let reason = corruption.to_string();
            let Corruption::Record { seq, entries, .. } = corruption else {
                tracing::warn!(shard, "{reason}");
                unread += 1;
                return;
            };
            if wanted.is_some_and(|wanted| wanted != (shard, seq)) || written.is_err() {
                return;
            }
            found += 1;
            concerned.insert(shard);
            let line = Line { shard: name_of(shard, seq).shard, seq, entries, reason, dropped: false };
            match (drop, wanted) {
                (None, _) => written = line.write(json, out),
                // What is dropped is said when it is done.
                (Some(_), None) => {}
                (Some(_), Some(_)) => one = Some((shard, line)),
            }
        })?;
        written?;
    }
    std::mem::drop(snapshot);
    match (drop, one) {
        (Some(_), Some((shard, line))) => give_up_one(path, shard, line, json, out)?,
        (Some(_), None) => {
            if let Some((shard, seq)) = wanted {
                let name = name_of(shard, seq);
                bail!(
                    "{} has no damaged record {name}; without --drop all that are damaged are listed",
                    path.display()
                );
            }
            if found == 0 && unread == 0 && !json {
                writeln!(out, "no record is damaged")?;
            }
            for shard in concerned {
                give_up_all(path, shard, shards > 1, json, out)?;
            }
        }
        (None, _) if found == 0 && unread == 0 && !json => writeln!(out, "no record is damaged")?,
        (None, _) => {}
    }
    out.flush()?;
    if unread > 0 && wanted.is_none() {
        bail!(
            "{unread} of {shards} shards of {} cannot be read, and what is damaged there is not known; restore the store \
             from a copy, or copy what can be read to a new one (pmtool salvage)",
            path.display()
        );
    }
    Ok(())
}

/// The one record that is to be dropped, if it is one.
pub(super) fn wanted(path: &Path, drop: Option<Dropped>, shards: u32) -> Result<Option<(u32, u64)>> {
    match drop {
        Some(Dropped::One(RecordName { shard: None, seq })) if shards > 1 => {
            bail!("{} has {shards} shards: name a record SHARD-NUMBER, such as 0-{seq}", path.display());
        }
        Some(Dropped::One(RecordName { shard, seq })) => Ok(Some((shard.unwrap_or(0), seq))),
        Some(Dropped::All) | None => Ok(None),
    }
}

/// Gives up one damaged record of a shard.
fn give_up_one(path: &Path, shard: u32, line: Line, json: bool, out: &mut impl Write) -> Result<()> {
    if !open(path, shard)?.drop_quarantined(line.seq, line.entries)? {
        bail!(
            "record {} of {} is not found damaged any more, and was not dropped; list what is damaged again",
            RecordName { shard: line.shard, seq: line.seq },
            path.display()
        );
    }
    Ok(Line { dropped: true, ..line }.write(json, out)?)
}

/// Gives up all damaged records of a shard.
fn give_up_all(path: &Path, shard: u32, several: bool, json: bool, out: &mut impl Write) -> Result<()> {
    loop {
        let mut open = open(path, shard)?;
        let runs: Vec<_> = open.quarantines().to_vec();
        for run in &runs {
            if open.drop_quarantined(run.seq, run.entries)? {
                let (shard, reason) = (several.then_some(shard), run.to_string());
                let line = Line { shard, seq: run.seq, entries: run.entries, reason, dropped: true };
                line.write(json, out)?;
            }
        }
        // More than are named at a time: the next opening names further ones.
        if runs.is_empty() || open.quarantine_counts().0 == 0 {
            return Ok(());
        }
    }
}

pub(super) fn open(path: &Path, shard: u32) -> Result<Shard> {
    // What is on volatile memory was allowed to be there when it was made.
    let options = Options { volatile: true, ..Options::default() };
    let mut seeds = Region::open(path, &options)?.into_seeds();
    Ok(seeds.swap_remove(shard as usize).open()?)
}

impl Line {
    fn write(&self, json: bool, out: &mut impl Write) -> io::Result<()> {
        if json {
            serde_json::to_writer(&mut *out, self)?;
            return writeln!(out);
        }
        let what = if self.dropped { "dropped: " } else { "" };
        match self.shard {
            Some(shard) => writeln!(out, "{what}shard {shard}: {}", self.reason),
            None => writeln!(out, "{what}{}", self.reason),
        }
    }
}
