//! Mode `log`: a frame goes on once it is a durable record.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use arrayvec::ArrayVec;
use dpdk::{Completions, Eal, ExternalArea, Mbuf, Pool, PoolConfig};
use pmem::{AppendError, Extent, Pending, Shard};
use stack::transport::dpdk::{NamedBuffers, named_frame};

use crate::burst::{Burst, MAX_BURST};
use crate::capture::Tap;
use crate::cli::WhenFull;
use crate::engine::Engine;
use crate::stream::{Counters, Intake, Stream};

/// What is copied into the mbuf that a logged frame is sent with: devices want a first segment, and this one ends
/// with the Ethernet header.
const HEAD_BYTES: usize = 14;
/// A frame of no more bytes is copied as a whole: a second segment would cost more.
const COPIED_FRAME_BYTES: usize = 128;
/// Which part of the records goes when the store is full and may be trimmed.
const TRIMMED_PART: u64 = 8;

/// A core's shard, and the memory that takes frames out of it again.
pub struct Logger {
    shard: Shard,
    buffers: NamedBuffers,
    area: ExternalArea,
    heads: Pool,
    completions: Completions<Extent>,
    when_full: WhenFull,
}

impl Logger {
    /// Takes the memory for `in_flight` frames that devices may be sending at a time; `name` tells cores apart.
    ///
    /// # Errors
    /// EAL's memory is short.
    pub fn new(
        eal: Eal,
        name: &str,
        shard: Shard,
        buffers: NamedBuffers,
        area: ExternalArea,
        in_flight: u32,
        when_full: WhenFull,
    ) -> Result<Self> {
        let cache = 128;
        let config = PoolConfig { mbufs: in_flight + 2 * cache, cache, ..PoolConfig::default() };
        let heads = Pool::dram(eal, &format!("head{name}"), &config)?;
        let completions = Completions::new(eal, &format!("log{name}"), in_flight, None)?.within(area);
        Ok(Self { shard, buffers, area, heads, completions, when_full })
    }

    /// The store's part that belongs to this core.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Notes in the store how far it is durable.
    ///
    /// # Errors
    /// The medium fails; what was forwarded is in the store nevertheless.
    pub fn checkpoint(&mut self) -> Result<()> {
        self.shard.checkpoint().context("the store's end could not be noted; what was forwarded is in it")
    }

    /// Appends a frame. None if the store is full: the frame must not go on.
    fn append(&mut self, mut packet: Mbuf, counters: &Counters) -> Result<Option<(Pending, Extent)>> {
        if self.shard.arena().free_buffers() == 0 && self.when_full == WhenFull::Trim {
            self.trim()?;
        }
        let Some((frame, is_copied)) = self.buffers.take(&mut packet) else { return Ok(None) };
        if is_copied {
            counters.copied_bytes.add(frame.len());
        }
        let pending = match self.try_append(&frame)? {
            None if self.when_full == WhenFull::Trim => {
                self.trim()?;
                self.try_append(&frame)?
            }
            pending => pending,
        };
        Ok(pending.map(|pending| (pending, frame)))
    }

    /// Appends what lies in a named buffer. None if the store is full.
    fn try_append(&mut self, frame: &Extent) -> Result<Option<Pending>> {
        match self.shard.append_extent(frame.clone()) {
            Ok(pending) => Ok(Some(pending)),
            Err(AppendError::Full(_)) => Ok(None),
            Err(error) => Err(error).context("a frame cannot be logged"),
        }
    }

    /// Makes room by forgetting the oldest records.
    fn trim(&mut self) -> Result<()> {
        // What was appended in this burst is not durable yet, and stays.
        let (head, next) = (self.shard.head_seq(), self.shard.committed_seq());
        let before = head + (next - head).div_ceil(TRIMMED_PART);
        self.shard.trim(before).context("the store cannot be trimmed")?;
        Ok(())
    }

    /// A packet with the frame's bytes: header in DRAM, and behind it the rest where it lies.
    fn outgoing(&mut self, frame: Extent, counters: &Counters) -> Option<Mbuf> {
        let Self { heads, completions, area, .. } = self;
        let len = frame.len();
        let (packet, copied_bytes) = match frame.bytes().first_chunk::<HEAD_BYTES>().copied() {
            Some(head) if len > COPIED_FRAME_BYTES => {
                let rest = frame.slice(HEAD_BYTES, len - HEAD_BYTES)?;
                named_frame(heads, completions, area, &head, [rest])?
            }
            _ => (named_frame(heads, completions, area, frame.bytes(), &[])?.0, len),
        };
        counters.copied_bytes.add(copied_bytes);
        Some(packet)
    }
}

impl Engine for Logger {
    fn step<T: Tap>(&mut self, stream: &mut Stream, intake: &mut Intake<T>) -> Result<()> {
        let mut burst = Burst::new();
        let received = stream.receive(&mut burst, intake);
        if received == 0 {
            if self.completions.outstanding() > 0 {
                // An idle device would otherwise hold on to the last frames it sent.
                stream.tx.reclaim();
                self.completions.drain(drop);
            }
            return Ok(());
        }
        self.shard.set_time(program::now_s());
        let counters = Arc::clone(&stream.counters);
        // They wait here for the fence.
        let mut frames = ArrayVec::<(Pending, Extent), MAX_BURST>::new();
        for packet in burst.drain() {
            match self.append(packet, &counters)? {
                Some(frame) => frames.push(frame),
                None => counters.not_logged.add(1),
            }
        }
        let durable = self.shard.commit()?;
        self.completions.drain(drop);
        for (pending, frame) in frames {
            if durable.confirm(pending).is_err() {
                bail!("a commit left a frame out that was appended before");
            }
            counters.logged.add(1);
            match self.outgoing(frame, &counters) {
                Some(packet) => drop(burst.push(packet)),
                None => counters.dropped.add(1),
            }
        }
        stream.send(&mut burst);
        Ok(())
    }
}
