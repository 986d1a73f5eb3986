//! `pmlog export` and `pmlog backup`: the records of a server, or of a store that nobody serves, in an archive.
//!
//! What a server has is pinned when the work begins: the archive ends where the log did then. Records come in the order of
//! epoch, shard and number, and each is checked before it is written.

mod file;
mod live;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use pmem::{Snapshot, SnapshotEvent};
use serde::Serialize;

use crate::archive::{Entry, Writer};
use crate::cli::{BackupArgs, ExportArgs, Source};
use crate::inspect::scan_in_order;
use live::Live;
pub(crate) use live::{Line, of_shard};

/// The name that stands for standard output or input.
pub(crate) const STANDARD: &str = "-";

/// What was written.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Copied {
    records: u64,
    bytes: u64,
    /// Places where something is damaged and left out.
    left_out: u64,
}

impl Copied {
    /// Notes a record.
    fn add(&mut self, len_bytes: u64) {
        self.records += 1;
        self.bytes += len_bytes;
    }

    /// Says what was done. That it is all is no success where something is missing.
    fn tell(self, what: &str, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
        if json {
            serde_json::to_writer(&mut *out, &self).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{what} {} records of {}", self.records, ByteSize(self.bytes))?;
        }
        out.flush()?;
        if self.left_out > 0 {
            bail!(
                "the archive has all that can be read, and {} damaged places are left out; `pmlog quarantine` names them",
                self.left_out
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes an archive of all records.
///
/// # Errors
/// They cannot be read, or the archive not be written: then there is none. Some are damaged: then the others are there.
pub fn export(args: &ExportArgs) -> Result<ExitCode> {
    let stop = program::stop_signal()?;
    if args.file.as_os_str() == STANDARD {
        let copied = export_to(args, &mut BufWriter::new(io::stdout().lock()), &stop)?;
        return copied.tell("exported", args.json, &mut io::stderr());
    }
    let mut new = file::New::create(&args.file, args.force)?;
    let copied = export_to(args, &mut BufWriter::with_capacity(1 << 20, new.file()), &stop)?;
    new.keep()?;
    copied.tell("exported", args.json, &mut io::stdout())
}

fn export_to(args: &ExportArgs, out: &mut impl Write, stop: &Arc<AtomicBool>) -> Result<Copied> {
    let name = args.file.display();
    match &args.source {
        Source { url: Some(url), .. } => {
            let mut live = Live::pin(url, stop)?;
            let mut writer = Writer::begin(out, live.store()).with_context(|| cannot_write(&args.file))?;
            let copied = live.copy(&mut writer, &name)?;
            writer.end().with_context(|| cannot_write(&args.file))?;
            Ok(copied)
        }
        Source { pm: Some(pm), .. } => {
            let snapshot = Snapshot::open(pm)?;
            let mut writer = Writer::begin(out, snapshot.uuid()).with_context(|| cannot_write(&args.file))?;
            let copied =
                copy_of_store(&snapshot, &mut writer, stop).with_context(|| cannot_write(&args.file))?;
            writer.end().with_context(|| cannot_write(&args.file))?;
            Ok(copied)
        }
        Source { url: None, pm: None } => bail!("say what to export, with --url or --pm"),
    }
}

fn cannot_write(path: &Path) -> String {
    format!("{} cannot be written", path.display())
}

/// Copies what a store holds that nobody serves.
fn copy_of_store(snapshot: &Snapshot, writer: &mut Writer<impl Write>, stop: &AtomicBool) -> Result<Copied> {
    let mut copied = Copied::default();
    let line = progress(snapshot.geometry().region_bytes);
    scan_in_order(snapshot, |event| {
        if stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("interrupted"));
        }
        match event {
            SnapshotEvent::Record(record) => {
                let info = &record.info;
                writer.record(&Entry {
                    shard: record.shard,
                    seq: info.seq,
                    entries: u32::try_from(info.entries).unwrap_or(u32::MAX),
                    epoch: info.epoch,
                    len_bytes: info.len,
                    crc32c: info.crc32c,
                })?;
                copied.add(info.len);
                line.inc(info.len);
                snapshot.write_record(&record, writer.out())
            }
            SnapshotEvent::Corrupt(corruption) => {
                copied.left_out += 1;
                line.suspend(|| eprintln!("pmlog: {corruption}"));
                Ok(())
            }
        }
    })?;
    line.finish_and_clear();
    Ok(copied)
}

/// Brings an archive up to what a server has.
///
/// # Errors
/// The file is no archive of that server's store, or does not end where what the server has begins, or something cannot be
/// read or written: then the file has what it had, and perhaps more, and the next time goes on there.
pub fn backup(args: &BackupArgs) -> Result<ExitCode> {
    let stop = program::stop_signal()?;
    let mut live = Live::pin(&args.url, &stop)?;
    let kept = file::Kept::open(&args.file, live.store())?;
    live.go_on_behind(&kept.ends, &args.file)?;
    let mut copied = Copied::default();
    if live.has_more() || kept.is_open_ended {
        let name = args.file.display();
        let out = BufWriter::with_capacity(1 << 20, &kept.file);
        let mut writer = if kept.is_new {
            Writer::begin(out, live.store()).with_context(|| cannot_write(&args.file))?
        } else {
            Writer::append(out, kept.records, kept.bytes)
        };
        copied = live.copy(&mut writer, &name)?;
        writer.out().flush().with_context(|| cannot_write(&args.file))?;
        // What stands before an end is there for good.
        kept.file.sync_data().with_context(|| cannot_write(&args.file))?;
        writer.end().with_context(|| cannot_write(&args.file))?;
        drop(writer);
        kept.sync().with_context(|| cannot_write(&args.file))?;
    }
    copied.tell("added", args.json, &mut io::stdout())
}

/// How far something has come, on a terminal.
pub(crate) fn progress(total: u64) -> ProgressBar {
    let line = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{wide_bar} {percent:>3} % {msg}");
    line.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    line
}

/// Opens an archive to be read, and says how long it is, where that is known.
pub(crate) fn open(path: &Path) -> Result<(Box<dyn io::Read>, u64)> {
    if path.as_os_str() == STANDARD {
        return Ok((Box::new(io::stdin().lock()), 0));
    }
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let len = file.metadata().map_or(0, |file| file.len());
    Ok((Box::new(file), len))
}
