//! What a running server says: on a terminal a line that changes, or JSON lines for programs.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Result;
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pmem::{RegionInfo, Shard};
use serde::Serialize;
use smoltcp::time::Duration;

use super::{LogServer, Served};
use crate::service::Counters;

/// Where the reports go.
pub(super) struct Report<'a, W> {
    out: &'a mut W,
    json: bool,
    /// Hidden unless the standard error is a terminal.
    line: ProgressBar,
    last: Counters,
}

/// What a server found at its start.
pub(super) struct Started<'a, N> {
    pub(super) info: &'a RegionInfo,
    pub(super) shard: &'a Shard,
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
        epoch: u32,
        #[serde(flatten)]
        network: &'a N,
    },
    Rates(Totals<N>),
    End(Totals<N>),
}

/// All since the start, but for connections and free buffers, which are as of now.
#[derive(Serialize)]
struct Totals<N> {
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
    copied_bytes: u64,
    #[serde(flatten)]
    network: N,
}

impl<'a, W: Write> Report<'a, W> {
    pub(super) fn new(json: bool, out: &'a mut W) -> Self {
        let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let line = ProgressBar::with_draw_target(None, target);
        let style =
            ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        line.set_style(style);
        Self { out, json, line, last: Counters::default() }
    }

    pub(super) fn started<N: Serialize + Display>(&mut self, started: &Started<'_, N>) -> Result<()> {
        if self.json { self.write(&started.line()) } else { Ok(started.write(self.out)?) }
    }

    pub(super) fn rates<T: Served>(&mut self, server: &LogServer<T>, time: Duration) -> Result<()> {
        if self.json {
            return self.write(&Line::Rates(Totals::of(server)));
        }
        if !self.line.is_hidden() {
            let counters = server.service().counters();
            let seconds = time.total_micros() as f64 / 1e6;
            let rate = |part: fn(&Counters) -> u64| (part(&counters) - part(&self.last)) as f64 / seconds;
            let bytes = |part| ByteSize(rate(part) as u64);
            self.line.set_message(format!(
                "{:.0} appends/s ({}/s), {:.0} reads/s, {}/s out, {:.0} refused/s, {} open, {} buffers free",
                rate(|counters| counters.appended_records),
                bytes(|counters| counters.appended_bytes),
                rate(|counters| counters.read_records),
                bytes(|counters| counters.sent_bytes),
                rate(|counters| counters.refused),
                counters.connections,
                server.shard().arena().free_buffers(),
            ));
            self.last = counters;
        }
        Ok(())
    }

    pub(super) fn ended<T: Served>(&mut self, server: &LogServer<T>) -> Result<()> {
        if self.json {
            return self.write(&Line::End(Totals::of(server)));
        }
        self.line.finish_and_clear();
        let counters = server.service().counters();
        writeln!(
            self.out,
            "ended     {} records of {} appended, {} read, {} requests refused",
            counters.appended_records,
            ByteSize(counters.appended_bytes),
            counters.read_records,
            counters.refused
        )?;
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
        let recovery = self.shard.recovery();
        Line::Start {
            store: self.info.path.to_str().unwrap_or_default(),
            kind: self.info.kind.to_string(),
            domain: self.info.domain.to_string(),
            new: self.info.is_new,
            region_bytes: geometry.region_bytes,
            buffers: geometry.buffers,
            buffer_bytes: geometry.buffer_bytes,
            log_entries: geometry.log_entries,
            records: recovery.records,
            payload_bytes: recovery.payload_bytes,
            epoch: self.shard.epoch(),
            network: self.network,
        }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let recovery = self.shard.recovery();
        let (head, next, epoch) = (self.shard.head_seq(), self.shard.next_seq(), self.shard.epoch());
        writeln!(out, "store     {}", self.info)?;
        match recovery.records {
            0 => writeln!(out, "records   none; the next is number {next}, epoch {epoch}")?,
            records => writeln!(
                out,
                "records   {records} of {} recovered, numbers {head} to before {next}, epoch {epoch}",
                ByteSize(recovery.payload_bytes),
            )?,
        }
        if let Some(torn) = &recovery.torn {
            writeln!(
                out,
                "          behind them, an append that was cut short and never acknowledged: {torn}"
            )?;
        }
        writeln!(out, "{}; Ctrl-C ends", self.network)?;
        out.flush()
    }
}

impl<N> Totals<N> {
    fn of<T: Served<Totals = N>>(server: &LogServer<T>) -> Self {
        let service = server.service().counters();
        let shard = server.shard().counters();
        Self {
            connections: service.connections,
            requests: service.requests,
            appended_records: service.appended_records,
            appended_bytes: service.appended_bytes,
            read_records: service.read_records,
            sent_bytes: service.sent_bytes,
            refused: service.refused,
            aborted: service.aborted,
            free_buffers: server.shard().arena().free_buffers(),
            fences: shard.fences,
            flushed_lines: shard.flushed_lines,
            copied_bytes: shard.copied_bytes,
            network: server.transport().totals(),
        }
    }
}
