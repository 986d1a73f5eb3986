//! What a running server says: on a terminal a line that changes, or JSON lines for programs.

use std::io::{self, Write};

use anyhow::Result;
use bytesize::ByteSize;
use dpdk::Port;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pmem::{RegionInfo, Shard};
use serde::Serialize;
use smoltcp::time::Duration;
use stack::transport::OverEndpoint as _;

use super::LogServer;
use crate::cli::{HeaderSplit, ServeArgs};
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
pub(super) struct Started<'a> {
    pub(super) args: &'a ServeArgs,
    pub(super) info: &'a RegionInfo,
    pub(super) shard: &'a Shard,
    pub(super) port: &'a Port,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
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
        device: &'a str,
        driver: &'a str,
        link_up: Option<bool>,
        link_mbps: Option<u32>,
        /// Only if it was asked for.
        #[serde(skip_serializing_if = "Option::is_none")]
        header_split: Option<bool>,
        addresses: Vec<String>,
        port: u16,
    },
    Rates(Totals),
    End(Totals),
}

/// All since the start, but for connections and free buffers, which are as of now.
#[derive(Serialize)]
struct Totals {
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
    frames_received: u64,
    frames_sent: u64,
    frames_without_buffer: u64,
    frames_copied: u64,
    retransmits: u64,
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

    pub(super) fn started(&mut self, started: &Started<'_>) -> Result<()> {
        if self.json { self.write(&started.line()) } else { Ok(started.write(self.out)?) }
    }

    pub(super) fn rates(&mut self, server: &LogServer, time: Duration) -> Result<()> {
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

    pub(super) fn ended(&mut self, server: &LogServer) -> Result<()> {
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

    fn write(&mut self, line: &Line<'_>) -> Result<()> {
        serde_json::to_writer(&mut *self.out, line).map_err(io::Error::from)?;
        writeln!(self.out)?;
        Ok(self.out.flush()?)
    }
}

impl Started<'_> {
    fn addresses(&self) -> Vec<String> {
        let v6 = self.args.ip6.map(|address| address.to_string());
        std::iter::once(self.args.ip.to_string()).chain(v6).collect()
    }

    fn wants_split(&self) -> bool {
        self.args.header_split == HeaderSplit::Auto
    }

    fn line(&self) -> Line<'_> {
        let geometry = &self.info.geometry;
        let recovery = self.shard.recovery();
        let port = self.port.info();
        let link = self.port.link().ok();
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
            device: &port.name,
            driver: &port.driver,
            link_up: link.map(|link| link.up),
            link_mbps: link.and_then(|link| link.speed_mbps),
            header_split: self.wants_split().then_some(port.header_split.is_ok()),
            addresses: self.addresses(),
            port: self.args.port,
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
        let port = self.port.info();
        let link = match self.port.link() {
            Ok(link) if link.up => match link.speed_mbps {
                Some(speed) => format!("link up at {speed} Mbit/s"),
                None => "link up".to_owned(),
            },
            Ok(_) => "link down".to_owned(),
            Err(error) => format!("link unknown: {error}"),
        };
        writeln!(out, "device    {} (driver {}), {link}", port.name, port.driver)?;
        if self.wants_split() {
            match port.header_split {
                Ok(point) => writeln!(out, "headers   apart from the payload: frames are split {point}")?,
                Err(reason) => writeln!(out, "headers   together with the payload: {reason}")?,
            }
        }
        writeln!(out, "serving   {} port {}; Ctrl-C ends", self.addresses().join(" and "), self.args.port)?;
        out.flush()
    }
}

impl Totals {
    fn of(server: &LogServer) -> Self {
        let service = server.service().counters();
        let shard = server.shard().counters();
        let port = server.transport().counters();
        let stack = server.transport().endpoint().counters();
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
            frames_received: port.received,
            frames_sent: port.sent,
            frames_without_buffer: port.no_spare,
            frames_copied: port.copied_frames,
            retransmits: stack.retransmits,
        }
    }
}
