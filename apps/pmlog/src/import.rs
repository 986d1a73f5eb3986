//! `pmlog import`: the records of an archive, appended to a server's log in their order.
//!
//! What the log has from some number on is compared with the archive's records first, and those that it has are not
//! appended again. So an import that was interrupted, by either side, is repeated as it was begun, and no record is there
//! twice. All records go over one connection, to one shard: that keeps their order.

use std::collections::VecDeque;
use std::io::{self, BufReader, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result, bail, ensure};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::archive::{Entry, Frame, Reader};
use crate::cli::{ImportArgs, ImportStart};
use crate::client::{ClientError, Connection, Url};
use crate::export::{Line, of_shard, open, progress};
use crate::http::RecordName;

/// Appends that are sent ahead of their replies, and their bytes.
const AHEAD: usize = 32;
const AHEAD_BYTES: usize = 4 << 20;
/// Entries of the log that are compared at a time.
const PAGE: usize = 1000;
/// Connections, for each shard, that are tried until one comes to the core that has it.
const CONNECTIONS_PER_SHARD: u32 = 32;

#[derive(Deserialize)]
struct Health {
    records: u64,
    next: Option<u64>,
    #[serde(default)]
    shards: Vec<ShardHealth>,
}

#[derive(Deserialize)]
struct ShardHealth {
    records: u64,
    next: u64,
}

/// The reply to an append.
#[derive(Deserialize)]
struct Appended {
    seq: u64,
    shard: Option<u32>,
    length: u64,
    crc32c: String,
}

/// What was done.
#[derive(Serialize)]
struct Imported {
    records: u64,
    bytes: u64,
    /// Of the archive's records, those that were there already.
    found: u64,
    /// The number of the first record, or of the one that it would have had.
    at: String,
}

/// Appends an archive's records, or only checks them.
///
/// # Errors
/// The archive is not whole, or the server refuses one, or its log has something else where they would be.
pub fn import(args: &ImportArgs) -> Result<ExitCode> {
    let stop = program::stop_signal()?;
    let (input, len) = open(&args.file)?;
    let line = progress(len);
    let mut reader = Reader::begin(BufReader::with_capacity(1 << 20, line.wrap_read(input)))?;
    let out = &mut io::stdout();
    let Some(url) = &args.url else {
        let (records, bytes) = check(&mut reader, &stop)?;
        line.finish_and_clear();
        if args.json {
            writeln!(out, "{{\"records\":{records},\"bytes\":{bytes}}}")?;
        } else {
            writeln!(out, "whole: {records} records of {}", ByteSize(bytes))?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let mut target = Target::find(url, args.at, &stop)?;
    line.suspend(|| {
        eprintln!(
            "pmlog: the archive's first record is {} there; to repeat this import add --at {0}",
            target.at
        )
    });
    let done = target.import(&mut reader);
    line.finish_and_clear();
    let Target { found, appended: (records, bytes), .. } = target;
    let done = done.with_context(|| {
        format!(
            "{} records are known to be in the log; repeat the import with --at {} to go on behind them",
            found + records,
            target.at
        )
    });
    done?;
    let imported = Imported { records, bytes, found, at: target.at.to_string() };
    if args.json {
        serde_json::to_writer(&mut *out, &imported).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        writeln!(out, "imported {records} records of {}; {found} were there already", ByteSize(bytes))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads all of an archive.
fn check(reader: &mut Reader<impl Read>, stop: &AtomicBool) -> Result<(u64, u64)> {
    let mut is_ended = false;
    while let Some(frame) = reader.frame()? {
        ensure!(!stop.load(std::sync::atomic::Ordering::Relaxed), "interrupted");
        is_ended = matches!(frame, Frame::End { .. });
        if let Frame::Record(entry) = frame {
            reader.skip(&entry)?;
        }
    }
    if is_ended { Ok(reader.read()) } else { Err(reader.cut_off(0).into()) }
}

/// The log that records are appended to.
struct Target {
    url: Url,
    connection: Connection,
    shard: Option<u32>,
    /// The number of the archive's first record.
    at: RecordName,
    /// Where the log is compared next.
    next: u64,
    /// What is there and not compared yet, until all is.
    there: VecDeque<Line>,
    is_compared: bool,
    /// Records that were there.
    found: u64,
    /// What was sent and has no reply yet, oldest first.
    ahead: VecDeque<Entry>,
    ahead_bytes: usize,
    appended: (u64, u64),
}

impl Target {
    fn find(url: &Url, start: ImportStart, stop: &Arc<AtomicBool>) -> Result<Self> {
        let mut connection = Connection::open(url, stop)?;
        connection.get("/health")?;
        let head = connection.head()?;
        let health: Health = connection.json(&head)?;
        let shards = health.shards.len() as u32;
        let named = match start {
            ImportStart::At(RecordName { shard, .. }) => shard,
            ImportStart::Oldest | ImportStart::Next => None,
        };
        if let Some(shard) = named.filter(|shard| *shard >= shards.max(1)) {
            bail!("{url} has no shard {shard}");
        }
        let is_only = shards == 0;
        let shard = if is_only { None } else { Some(health.shard(named, connection.shard()?, url)?) };
        let (records, next) = match shard.and_then(|shard| health.shards.get(shard as usize)) {
            Some(shard) => (shard.records, shard.next),
            None => (health.records, health.next.context("a server of an older kind")?),
        };
        let at = match start {
            ImportStart::At(name) => name.seq,
            ImportStart::Oldest if records > 0 => oldest(&mut connection, shard)?,
            ImportStart::Oldest | ImportStart::Next => next,
        };
        ensure!(at <= next, "the next record of {url} is number {next}: none can be number {at}");
        let connection = to_shard(url, stop, shard, shards, connection)?;
        Ok(Self {
            url: url.clone(),
            connection,
            shard,
            at: RecordName { shard, seq: at },
            next: at,
            there: VecDeque::new(),
            is_compared: false,
            found: 0,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            appended: (0, 0),
        })
    }

    fn import(&mut self, reader: &mut Reader<impl Read>) -> Result<()> {
        let mut is_ended = false;
        let mut bytes = Vec::new();
        let read = loop {
            let frame = match reader.frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            let Frame::Record(entry) = frame else {
                is_ended = true;
                continue;
            };
            is_ended = false;
            if let Err(error) = reader.payload(&entry, &mut bytes) {
                break Err(error);
            }
            if !self.has(&entry)? {
                self.append(entry, &bytes)?;
            }
        };
        // What is whole is there, whatever follows.
        while !self.ahead.is_empty() {
            self.acknowledged()?;
        }
        read?;
        if is_ended { Ok(()) } else { Err(reader.cut_off(0).into()) }
    }

    /// Whether the log has this record already, where it would be.
    fn has(&mut self, entry: &Entry) -> Result<bool> {
        if self.there.is_empty() && !self.is_compared {
            let target = format!("/records?from={}&limit={PAGE}{}", self.next, of_shard(self.shard));
            self.connection.get(&target)?;
            let head = self.connection.head()?;
            self.there = self.connection.json(&head)?;
            self.is_compared = self.there.is_empty();
        }
        let Some(line) = self.there.pop_front() else { return Ok(false) };
        let is_same = line.length == entry.len_bytes && line.sum() == Some(entry.crc32c);
        let seq = line.seq.unwrap_or(0);
        ensure!(
            is_same,
            "{} has another record at {} than the archive has: import into an empty store, or behind all that is there with \
             --at next",
            self.url,
            RecordName { shard: self.shard, seq }
        );
        self.next = line.next.unwrap_or(seq + 1);
        self.found += 1;
        Ok(true)
    }

    fn append(&mut self, entry: Entry, bytes: &[u8]) -> Result<()> {
        while self.ahead.len() >= AHEAD
            || (self.ahead_bytes + bytes.len() > AHEAD_BYTES && !self.ahead.is_empty())
        {
            self.acknowledged()?;
        }
        if let Err(error) = self.connection.append(bytes) {
            // It may have said why before it closed.
            while !self.ahead.is_empty() {
                self.acknowledged()?;
            }
            return Err(self.connection.head().err().unwrap_or(error).into());
        }
        self.ahead_bytes += bytes.len();
        self.ahead.push_back(entry);
        Ok(())
    }

    /// Waits for the oldest append to be durable.
    fn acknowledged(&mut self) -> Result<()> {
        let Some(entry) = self.ahead.pop_front() else { return Ok(()) };
        self.ahead_bytes -= entry.len_bytes as usize;
        let head = self.connection.head()?;
        let Appended { seq, shard, length, crc32c } = self.connection.json(&head)?;
        ensure!(
            length == entry.len_bytes && u32::from_str_radix(&crc32c, 16).ok() == Some(entry.crc32c),
            "record {seq} was altered on its way to {}: its checksum is not the archive's",
            self.url
        );
        ensure!(shard == self.shard, "record {seq} came to another shard than the others");
        self.appended.0 += 1;
        self.appended.1 += entry.len_bytes;
        Ok(())
    }
}

impl Health {
    /// The shard of several that an archive goes to.
    fn shard(&self, named: Option<u32>, own: Option<u32>, url: &Url) -> Result<u32> {
        let filled: Vec<u32> =
            (0..).zip(&self.shards).filter(|(_, shard)| shard.records > 0).map(|(shard, _)| shard).collect();
        match (named, &filled[..]) {
            (Some(shard), _) | (None, &[shard]) => Ok(shard),
            (None, []) => own.with_context(|| format!("{url} does not say where its appends go")),
            (None, _) => bail!(
                "several of {url}'s {} shards have records: say which one the archive goes to, and where in it, with --at \
                 SHARD-NUMBER",
                self.shards.len()
            ),
        }
    }
}

impl Connection {
    /// The shard that takes what is appended over this connection, where there are several.
    fn shard(&mut self) -> Result<Option<u32>, ClientError> {
        self.get("/records?limit=0")?;
        let head = self.head()?;
        let _: Vec<Line> = self.json(&head)?;
        Ok(head.shard)
    }
}

/// The number of the first record that can be read, if there is one by now.
fn oldest(connection: &mut Connection, shard: Option<u32>) -> Result<u64> {
    connection.get(&format!("/records?limit=1{}", of_shard(shard)))?;
    let head = connection.head()?;
    let lines: Vec<Line> = connection.json(&head)?;
    lines.first().and_then(|line| line.seq).context("none of the server's records can be read; see /health")
}

/// A connection whose appends go to one shard.
fn to_shard(
    url: &Url,
    stop: &Arc<AtomicBool>,
    shard: Option<u32>,
    shards: u32,
    mut connection: Connection,
) -> Result<Connection> {
    let attempts = shards * CONNECTIONS_PER_SHARD;
    for _ in 0..attempts {
        if connection.shard()? == shard {
            return Ok(connection);
        }
        connection = Connection::open(url, stop)?;
    }
    ensure!(
        shard.is_none(),
        "of {attempts} connections to {url} none came to the core that appends to shard {}; name another one with --at, or \
         serve that store with one core",
        shard.unwrap_or(0)
    );
    Ok(connection)
}
