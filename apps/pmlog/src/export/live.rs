//! What a server had when it was asked first.

use std::fmt::Display;
use std::io::{BufRead as _, Read as _, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytesize::ByteSize;
use indicatif::ProgressBar;
use pmem::crc32c;
use serde::Deserialize;
use uuid::Uuid;

use super::{Copied, progress};
use crate::archive::{Entry, Writer};
use crate::client::{ClientError, Connection, Url};

/// Times that a connection may break off with nothing having come over it.
const ATTEMPTS: u32 = 5;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(500);
/// Of a line about a record.
const MAX_LINE_BYTES: u64 = 4096;

/// A server's records, from where an archive goes on to where the log ended.
pub(super) struct Live {
    url: Url,
    stop: Arc<AtomicBool>,
    store: Uuid,
    spans: Vec<Span>,
}

/// What of a shard is to be copied.
#[derive(Clone, Debug)]
struct Span {
    /// Which, where there are several.
    shard: Option<u32>,
    /// The oldest record.
    head: u64,
    /// The number of the next record, or one before it.
    next: u64,
    /// Where it ends.
    end: u64,
    /// That of the next record, if it is known.
    epoch: Option<u32>,
}

impl Span {
    fn is_done(&self) -> bool {
        self.next >= self.end
    }
}

#[derive(Deserialize)]
struct Health {
    store: Uuid,
    #[serde(flatten)]
    only: Option<Ends>,
    #[serde(default)]
    shards: Vec<Ends>,
}

#[derive(Clone, Copy, Deserialize)]
struct Ends {
    head: u64,
    next: u64,
}

/// A line of a feed or an entry of a list.
#[derive(Deserialize)]
pub(crate) struct Line {
    pub(crate) seq: Option<u64>,
    #[serde(default)]
    pub(crate) epoch: u32,
    #[serde(default)]
    pub(crate) length: u64,
    #[serde(default)]
    pub(crate) crc32c: String,
    pub(crate) next: Option<u64>,
    error: Option<String>,
}

impl Line {
    /// The checksum, out of its digits.
    pub(crate) fn sum(&self) -> Option<u32> {
        u32::from_str_radix(&self.crc32c, 16).ok()
    }
}

/// How copying from one connection ended.
enum Stopped {
    /// All of the shard is copied, or it is another one's turn.
    Here,
    /// The connection broke off.
    Broken(ClientError),
}

impl Live {
    /// Asks a server where its shards' logs begin and end.
    pub(super) fn pin(url: &Url, stop: &Arc<AtomicBool>) -> Result<Self> {
        let Health { store, only, shards } = health(url, stop)?;
        let several = !shards.is_empty();
        let shards = if several { shards } else { only.into_iter().collect() };
        ensure!(!shards.is_empty(), "{url} does not say what it has: is it an older pmlog?");
        let spans = (0..).zip(shards).map(|(shard, Ends { head, next })| Span {
            shard: several.then_some(shard),
            head,
            next: head,
            end: next,
            epoch: None,
        });
        Ok(Self { url: url.clone(), stop: stop.clone(), store, spans: spans.collect() })
    }

    pub(super) fn store(&self) -> Uuid {
        self.store
    }

    /// Goes on where an archive ends.
    pub(super) fn go_on_behind(&mut self, ends: &[Option<u64>], archive: &Path) -> Result<()> {
        let archive = archive.display();
        ensure!(
            ends.len() <= self.spans.len(),
            "{archive} has records of {} shards, and {} has {}",
            ends.len(),
            self.url,
            self.spans.len()
        );
        for (span, end) in self.spans.iter_mut().zip(ends) {
            let Some(end) = *end else { continue };
            let of = span.shard.map_or_else(String::new, |shard| format!(" of shard {shard}"));
            ensure!(
                end >= span.head,
                "the records{of} from {end} to before {} were trimmed before they were copied: keep {archive} for what it \
                 has, and begin another",
                span.head
            );
            ensure!(
                end <= span.end,
                "{archive} has records{of} up to before {end}, and {} only up to before {}: it has lost some, or is a copy",
                self.url,
                span.end
            );
            span.next = end;
        }
        Ok(())
    }

    /// Whether there is anything to be copied.
    pub(super) fn has_more(&self) -> bool {
        self.spans.iter().any(|span| !span.is_done())
    }

    /// Copies all of it. `archive` is what errors call the writer.
    pub(super) fn copy(&mut self, writer: &mut Writer<impl Write>, archive: &dyn Display) -> Result<Copied> {
        let total = self.spans.iter().map(|span| span.end.saturating_sub(span.next)).sum();
        let line = progress(total);
        let mut copied = Copied::default();
        let mut failures = 0;
        while let Some(place) = self.turn()? {
            let before = copied.records;
            match self.copy_from(place, writer, archive, &mut copied, &line)? {
                Stopped::Here => failures = 0,
                Stopped::Broken(error) => {
                    failures = if copied.records > before { 0 } else { failures + 1 };
                    if failures == ATTEMPTS {
                        return Err(error.into());
                    }
                    thread::sleep(BETWEEN_ATTEMPTS);
                    self.check_store()?;
                }
            }
        }
        line.finish_and_clear();
        Ok(copied)
    }

    /// Whose turn it is, in the order of epoch and shard.
    fn turn(&mut self) -> Result<Option<usize>> {
        let due: Vec<usize> = (0..self.spans.len()).filter(|place| !self.spans[*place].is_done()).collect();
        if let [] | [_] = due[..] {
            return Ok(due.first().copied());
        }
        for &place in &due {
            if self.spans[place].epoch.is_some() {
                continue;
            }
            let epoch = self.next_epoch(place)?;
            let span = &mut self.spans[place];
            match epoch {
                Some(epoch) => span.epoch = Some(epoch),
                // None of what is left can be read.
                None => span.next = span.end,
            }
        }
        let due = due.into_iter().filter(|place| !self.spans[*place].is_done());
        Ok(due.min_by_key(|place| (self.spans[*place].epoch, *place)))
    }

    fn next_epoch(&self, place: usize) -> Result<Option<u32>> {
        let Span { shard, next, .. } = self.spans[place];
        let mut connection = Connection::open(&self.url, &self.stop)?;
        connection.get(&format!("/records?from={next}&limit=1{}", of_shard(shard)))?;
        let head = connection.head()?;
        let lines: Vec<Line> = connection.json(&head)?;
        Ok(lines.first().map(|line| line.epoch))
    }

    /// Copies from one shard until all of it is there or another one's turn comes.
    fn copy_from(
        &mut self,
        place: usize,
        writer: &mut Writer<impl Write>,
        archive: &dyn Display,
        copied: &mut Copied,
        progress: &ProgressBar,
    ) -> Result<Stopped> {
        let others = self.spans.iter().enumerate().filter(|(other, span)| *other != place && !span.is_done());
        let next_turn = others.filter_map(|(other, span)| Some((span.epoch?, other))).min();
        let span = &mut self.spans[place];
        let broken = |error: ClientError| match error {
            ClientError::Broken { .. } | ClientError::Connect { .. } => Ok(Stopped::Broken(error)),
            error => Err(error.into()),
        };
        let target = format!("/records?content=1&from={}{}", span.next, of_shard(span.shard));
        let mut connection = match Connection::open(&self.url, &self.stop) {
            Ok(connection) => connection,
            Err(error) => return broken(error),
        };
        if let Err(error) = connection.get(&target).and_then(|()| connection.head()) {
            return broken(error);
        }
        let mut text = Vec::new();
        let mut bytes = Vec::new();
        let mut body = connection.chunks();
        let failure = loop {
            text.clear();
            let read = body.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut text);
            match read {
                // There is a last line to each body.
                Ok(0) => break std::io::ErrorKind::UnexpectedEof.into(),
                Ok(_) => {}
                Err(error) => break error,
            }
            let Ok(line) = serde_json::from_slice::<Line>(&text) else {
                let text = String::from_utf8_lossy(&text).into_owned();
                drop(body);
                return Err(connection.strange(&format!("a line {text:?}")).into());
            };
            if let Some(error) = line.error {
                let shard = span.shard.map_or_else(String::new, |shard| format!("shard {shard}: "));
                bail!("{shard}{error}; what was copied so far ends before record {}", span.next);
            }
            let Some(next) = line.next else { bail!("{}: a line without next", self.url) };
            let Some(seq) = line.seq.filter(|seq| *seq < span.end) else {
                copied.left_out += u64::from(span.next < next.min(span.end));
                span.next = next.max(span.end);
                return Ok(Stopped::Here);
            };
            if next_turn.is_some_and(|turn| turn < (line.epoch, place)) {
                (span.next, span.epoch) = (seq, Some(line.epoch));
                return Ok(Stopped::Here);
            }
            bytes.clear();
            let read = body.by_ref().take(line.length.saturating_add(1)).read_to_end(&mut bytes);
            if let Err(error) = read {
                break error;
            }
            let is_whole = bytes.pop() == Some(b'\n') && bytes.len() as u64 == line.length;
            let sum = line.sum();
            ensure!(
                is_whole && sum == Some(crc32c(&bytes)),
                "record {seq} was altered on its way from {}: its checksum does not match",
                self.url
            );
            let entry = Entry {
                shard: span.shard.unwrap_or(0),
                seq,
                entries: u32::try_from(next.saturating_sub(seq)).unwrap_or(u32::MAX),
                epoch: line.epoch,
                len_bytes: line.length,
                crc32c: sum.unwrap_or(0),
            };
            let written = writer.record(&entry).and_then(|()| writer.out().write_all(&bytes));
            written.with_context(|| format!("{archive} cannot be written"))?;
            copied.left_out += u64::from(span.next < seq);
            copied.add(line.length);
            progress.inc(next.saturating_sub(span.next));
            progress.set_message(format!("{} records, {}", copied.records, ByteSize(copied.bytes)));
            (span.next, span.epoch) = (next, None);
            if span.is_done() {
                return Ok(Stopped::Here);
            }
        };
        drop(body);
        broken(connection.broken(failure))
    }

    /// Whether it is still the same store, after a connection broke off.
    fn check_store(&self) -> Result<()> {
        match health(&self.url, &self.stop) {
            Ok(health) => {
                let store = health.store;
                ensure!(store == self.store, "{} serves another store by now: {store}", self.url);
                Ok(())
            }
            // It may not be back yet.
            Err(ClientError::Broken { .. } | ClientError::Connect { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The parameter that names a shard.
pub(crate) fn of_shard(shard: Option<u32>) -> String {
    shard.map_or_else(String::new, |shard| format!("&shard={shard}"))
}

fn health(url: &Url, stop: &Arc<AtomicBool>) -> Result<Health, ClientError> {
    let mut connection = Connection::open(url, stop)?;
    connection.get("/health")?;
    let head = connection.head()?;
    connection.json(&head)
}
