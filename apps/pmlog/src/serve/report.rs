//! What a running server says: on a terminal a line that changes, or JSON lines for programs.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pmem::RegionInfo;
use program::Memory;
use serde::Serialize;
use stack::profile::{Profile, Summary};

use super::access::Traffic;
use super::totals::{ShardStart, Totals};
use crate::service::{CommitSummary, Counters, Retain};

/// Where the reports go.
pub(super) struct Report<'a, W> {
    out: &'a mut W,
    json: bool,
    /// Hidden unless the standard error is a terminal.
    line: ProgressBar,
    last: Counters,
    dropped: u64,
}

/// What a server found at its start.
pub(super) struct Started<'a, N> {
    pub(super) info: &'a RegionInfo,
    /// In the order of their numbers.
    pub(super) shards: &'a [ShardStart],
    pub(super) cpus: &'a [Option<usize>],
    pub(super) retain: Retain,
    /// The network's own fields, and its own lines.
    pub(super) network: &'a N,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a, N> {
    Start {
        store: &'a str,
        kind: String,
        domain: String,
        new: bool,
        region_bytes: u64,
        buffers: u32,
        buffer_bytes: u16,
        log_entries: u32,
        records: u64,
        payload_bytes: u64,
        /// What is kept of records, if that is not all.
        #[serde(skip_serializing_if = "Option::is_none")]
        retain: Option<String>,
        epoch: u32,
        /// Damaged records that are passed over: how many, and the first of them.
        damaged: u64,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        found_damaged: Vec<LogFault>,
        /// What lies behind a shard's last record, where an append has no end.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        torn: Vec<LogFault>,
        /// What was damaged in one copy of two, and was written again.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        repaired: Vec<String>,
        /// Where there are several.
        #[serde(skip_serializing_if = "Option::is_none")]
        shards: Option<usize>,
        /// The CPUs that it is kept to.
        #[serde(skip_serializing_if = "Option::is_none")]
        cores: Option<Vec<usize>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        memory: Option<Memory>,
        #[serde(flatten)]
        network: &'a N,
    },
    Rates(Sums<'a, N>),
    End(Sums<'a, N>),
    /// Ended before it served.
    Interrupted,
    Profile {
        /// One for each core.
        cores: Vec<Summary>,
        /// All cores together.
        #[serde(flatten)]
        all: Summary,
    },
}

/// A place in a shard's log, and what is wrong there.
#[derive(Serialize)]
struct LogFault {
    /// Which, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<u32>,
    seq: u64,
    reason: String,
}

/// All since the start, but for connections and free buffers, which are as of now.
#[derive(Serialize)]
struct Sums<'a, N> {
    connections: u64,
    requests: u64,
    appended_records: u64,
    appended_bytes: u64,
    read_records: u64,
    sent_bytes: u64,
    refused: u64,
    aborted: u64,
    free_buffers: usize,
    fences: u64,
    flushed_lines: u64,
    written_bytes: u64,
    write_requests: u64,
    copied_bytes: u64,
    commits: CommitSummary,
    /// Records that were found to have changed under the server.
    altered_records: u64,
    /// CPU time of the cores, and of it what was not spent on looking in vain for something to do.
    cpu_us: u64,
    busy_cpu_us: u64,
    /// Copied from core to core, to be read.
    crossed_read_bytes: u64,
    #[serde(flatten)]
    network: &'a N,
}

impl<'a, W: Write> Report<'a, W> {
    pub(super) fn new(json: bool, out: &'a mut W) -> Self {
        let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let line = ProgressBar::with_draw_target(None, target);
        let style =
            ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        line.set_style(style);
        Self { out, json, line, last: Counters::default(), dropped: 0 }
    }

    pub(super) fn started<N: Serialize + Display>(&mut self, started: &Started<'_, N>) -> Result<()> {
        if self.json { self.write(&started.line()) } else { Ok(started.write(self.out)?) }
    }

    pub(super) fn rates<N: Traffic + Serialize>(&mut self, totals: &Totals<N>, time: Duration) -> Result<()> {
        if self.json {
            return self.write(&Line::Rates(Sums::of(totals)));
        }
        if !self.line.is_hidden() {
            let (counters, dropped) = (totals.service, totals.network.drops().total());
            let seconds = time.as_secs_f64();
            let rate = |part: fn(&Counters) -> u64| (part(&counters) - part(&self.last)) as f64 / seconds;
            let bytes = |part| ByteSize(rate(part) as u64);
            self.line.set_message(format!(
                "{:.0} appends/s ({}/s), {:.0} reads/s, {}/s out, {:.0} refused/s, {} open, {} buffers free, {:.0} dropped/s",
                rate(|counters| counters.appended_records),
                bytes(|counters| counters.appended_bytes),
                rate(|counters| counters.read_records),
                bytes(|counters| counters.sent_bytes),
                rate(|counters| counters.refused),
                counters.connections,
                totals.free_buffers,
                (dropped - self.dropped) as f64 / seconds,
            ));
            (self.last, self.dropped) = (counters, dropped);
        }
        Ok(())
    }

    pub(super) fn ended<N: Traffic + Serialize>(&mut self, totals: &Totals<N>) -> Result<()> {
        if self.json {
            return self.write(&Line::End(Sums::of(totals)));
        }
        self.line.finish_and_clear();
        let counters = totals.service;
        writeln!(
            self.out,
            "ended     {} records of {} appended, {} read, {} requests refused",
            counters.appended_records,
            ByteSize(counters.appended_bytes),
            counters.read_records,
            counters.refused
        )?;
        let commits = totals.commits.summary();
        if commits.count > 0 {
            writeln!(self.out, "commits   {commits}")?;
        }
        if totals.write_requests > 0 {
            writeln!(
                self.out,
                "written   {}, {:.2} for each byte appended, by {} writes and syncs ({:.1} a commit)",
                ByteSize(totals.written_bytes),
                totals.written_bytes as f64 / counters.appended_bytes.max(1) as f64,
                totals.write_requests,
                totals.write_requests as f64 / commits.count.max(1) as f64,
            )?;
        }
        if totals.altered_records > 0 {
            writeln!(
                self.out,
                "altered   {} records had changed when they were read",
                totals.altered_records
            )?;
        }
        if let Some(frames @ 1..) = totals.network.address_conflicts() {
            writeln!(
                self.out,
                "conflicts {frames} frames of other hosts that say they have this server's address"
            )?;
        }
        if let Some(drops) = totals.network.drops().in_words() {
            writeln!(self.out, "dropped   {drops}")?;
        }
        Ok(self.out.flush()?)
    }

    pub(super) fn interrupted(&mut self) -> Result<()> {
        if self.json {
            return self.write(&Line::<()>::Interrupted);
        }
        writeln!(self.out, "ended     before it served; the store is as it was")?;
        Ok(self.out.flush()?)
    }

    /// Where the time went, by core and in all; takes the profiles out. Writes nothing where there are none.
    pub(super) fn profiles(&mut self, profiles: &mut [Option<Box<Profile>>]) -> Result<()> {
        let cores: Vec<Profile> =
            profiles.iter_mut().filter_map(Option::take).map(|profile| *profile).collect();
        if cores.is_empty() {
            return Ok(());
        }
        let mut all = Profile::default();
        cores.iter().for_each(|core| all.merge(core));
        let (cores, all) = (cores.iter().map(Profile::summary).collect::<Vec<_>>(), all.summary());
        if self.json {
            let line: Line<'_, ()> = Line::Profile { cores, all };
            return self.write(&line);
        }
        if cores.len() > 1 {
            for (core, summary) in cores.iter().enumerate() {
                writeln!(self.out, "profile   of core {core}\n{summary}")?;
            }
        }
        writeln!(self.out, "profile   of all bursts\n{all}")?;
        Ok(self.out.flush()?)
    }

    fn write<N: Serialize>(&mut self, line: &Line<'_, N>) -> Result<()> {
        serde_json::to_writer(&mut *self.out, line).map_err(io::Error::from)?;
        writeln!(self.out)?;
        Ok(self.out.flush()?)
    }
}

impl<N: Serialize + Display> Started<'_, N> {
    fn line(&self) -> Line<'_, N> {
        let geometry = &self.info.geometry;
        let several = self.shards.len() > 1;
        Line::Start {
            store: self.info.path.to_str().unwrap_or_default(),
            kind: self.info.kind.to_string(),
            domain: self.info.domain.to_string(),
            new: self.info.is_new,
            region_bytes: geometry.region_bytes,
            buffers: geometry.buffers,
            buffer_bytes: geometry.buffer_bytes,
            log_entries: geometry.log_entries,
            records: self.records(),
            payload_bytes: self.payload_bytes(),
            retain: (!self.retain.is_all()).then(|| self.retain.to_string()),
            epoch: self.epoch(),
            damaged: self.damaged(),
            found_damaged: self
                .faults(|shard| shard.damaged.iter().map(|run| (run.seq, run.to_string())).collect()),
            torn: self.faults(|shard| {
                shard.recovery.torn.iter().map(|torn| (torn.seq, torn.to_string())).collect()
            }),
            repaired: self.repaired(),
            shards: several.then_some(self.shards.len()),
            cores: self.cpus.iter().copied().collect(),
            memory: Memory::now(),
            network: self.network,
        }
    }

    fn faults(&self, of: impl Fn(&ShardStart) -> Vec<(u64, String)>) -> Vec<LogFault> {
        let several = self.shards.len() > 1;
        let faults = self.shards.iter().flat_map(|shard| {
            let index = several.then_some(shard.index);
            of(shard).into_iter().map(move |(seq, reason)| LogFault { shard: index, seq, reason })
        });
        faults.collect()
    }

    fn damaged(&self) -> u64 {
        self.shards.iter().map(|shard| shard.recovery.quarantined).sum()
    }

    /// What was damaged in one copy of two, in words.
    fn repaired(&self) -> Vec<String> {
        let superblock = self.info.repaired.then(|| "one copy of the superblock".to_owned());
        let headers = self.shards.iter().filter_map(|shard| {
            let damage = shard.recovery.header_damage?;
            Some(format!("shard {}: {damage}", shard.index))
        });
        superblock.into_iter().chain(headers).collect()
    }

    fn records(&self) -> u64 {
        self.shards.iter().map(|shard| shard.recovery.records).sum()
    }

    fn payload_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.recovery.payload_bytes).sum()
    }

    fn epoch(&self) -> u32 {
        self.shards.iter().map(|shard| shard.epoch).max().unwrap_or(0)
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let (records, payload, epoch) = (self.records(), ByteSize(self.payload_bytes()), self.epoch());
        writeln!(out, "store     {}", self.info)?;
        match (self.shards, records) {
            ([ShardStart { next, .. }], 0) => {
                writeln!(out, "records   none; the next is number {next}, epoch {epoch}")?;
            }
            ([ShardStart { head, next, .. }], _) => writeln!(
                out,
                "records   {records} of {payload} recovered, numbers {head} to before {next}, epoch {epoch}"
            )?,
            (shards, 0) => writeln!(out, "records   none in {} shards, epoch {epoch}", shards.len())?,
            (shards, _) => writeln!(
                out,
                "records   {records} of {payload} recovered in {} shards, epoch {epoch}",
                shards.len()
            )?,
        }
        if self.damaged() > 0 {
            let (damaged, pm) = (self.damaged(), self.info.path.display());
            writeln!(
                out,
                "damaged   {damaged} in the log, passed over; `pmlog quarantine --pm {pm}` lists and drops such records"
            )?;
        }
        for ShardStart { index, recovery, damaged, .. } in self.shards {
            let place = if self.shards.len() > 1 { format!("shard {index}: ") } else { String::new() };
            for run in damaged {
                writeln!(out, "          {place}{run}")?;
            }
            if let Some(torn) = &recovery.torn {
                writeln!(out, "torn      {place}{torn}")?;
            }
        }
        for what in self.repaired() {
            writeln!(out, "repaired  {what}")?;
        }
        if !self.retain.is_all() {
            writeln!(out, "retain    {}; the oldest records beyond that are trimmed", self.retain)?;
        }
        if let Some(cpus) = self.cpus.iter().copied().collect::<Option<Vec<usize>>>() {
            let cpus: Vec<String> = cpus.iter().map(usize::to_string).collect();
            writeln!(out, "cores     CPU {}", cpus.join(", "))?;
        }
        if let Some(memory) = Memory::now() {
            writeln!(out, "memory    {memory}")?;
        }
        writeln!(out, "{}; Ctrl-C ends", self.network)?;
        out.flush()
    }
}

impl<'a, N> Sums<'a, N> {
    fn of(totals: &'a Totals<N>) -> Self {
        let service = totals.service;
        Self {
            connections: service.connections,
            requests: service.requests,
            appended_records: service.appended_records,
            appended_bytes: service.appended_bytes,
            read_records: service.read_records,
            sent_bytes: service.sent_bytes,
            refused: service.refused,
            aborted: service.aborted,
            free_buffers: totals.free_buffers,
            fences: totals.fences,
            flushed_lines: totals.flushed_lines,
            written_bytes: totals.written_bytes,
            write_requests: totals.write_requests,
            copied_bytes: totals.copied_bytes,
            commits: totals.commits.summary(),
            altered_records: totals.altered_records,
            cpu_us: totals.cpu.as_micros() as u64,
            busy_cpu_us: totals.busy_cpu.as_micros() as u64,
            crossed_read_bytes: service.crossed_bytes,
            network: &totals.network,
        }
    }
}
