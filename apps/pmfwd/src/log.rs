//! Mode `log`: a frame goes on once it is a durable record.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use arrayvec::ArrayVec;
use dpdk::{Completions, Eal, ExternalArea, ExternalPool, Mbuf, NotSwapped, Pool, PoolConfig};
use pmem::{AppendError, Buffer, Extent, Pending, Shard};

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
    pool: ExternalPool,
    area: ExternalArea,
    /// Free buffers that devices do not see in one piece; out of circulation for good.
    scattered: Vec<&'static mut [u8]>,
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
        pool: ExternalPool,
        area: ExternalArea,
        in_flight: u32,
        when_full: WhenFull,
    ) -> Result<Self> {
        let cache = 128;
        let config = PoolConfig { mbufs: in_flight + 2 * cache, cache, ..PoolConfig::default() };
        let heads = Pool::dram(eal, &format!("head{name}"), &config)?;
        let completions = Completions::new(eal, &format!("log{name}"), in_flight, None)?.within(area);
        let scattered = Vec::with_capacity(area.contiguous_pieces());
        Ok(Self { shard, pool, area, scattered, heads, completions, when_full })
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
        let Some(frame) = self.claim(&mut packet, counters) else { return Ok(None) };
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
        let mut draft = self.shard.draft();
        let pushed = self.shard.push(&mut draft, frame.clone());
        match pushed.and_then(|()| self.shard.append(draft)) {
            Ok(pending) => Ok(Some(pending)),
            Err(AppendError::Full(_)) => Ok(None),
            Err(error) => Err(error).context("a frame cannot be logged"),
        }
    }

    /// The frame in a buffer that is out of the device's hands.
    fn claim(&mut self, packet: &mut Mbuf, counters: &Counters) -> Option<Extent> {
        let arena = self.shard.arena();
        let spare = arena.lend_one(|buffer| self.area.is_contiguous(buffer), &mut self.scattered)?;
        let (at, len) = (packet.data_offset(), packet.len());
        match self.pool.swap(packet, spare) {
            Ok(bytes) => {
                let buffer = self.shard.arena().take_back(bytes).ok()?;
                buffer.into_extent(u16::try_from(at).ok()?, u16::try_from(len).ok()?)
            }
            Err(NotSwapped { spare, .. }) => {
                let mut buffer = self.shard.arena().take_back(spare).ok()?;
                let len = gather(packet, &mut buffer)?;
                counters.copied_bytes.add(len);
                buffer.into_extent(0, u16::try_from(len).ok()?)
            }
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
        let mut packet = self.heads.alloc()?;
        let len = frame.len();
        if len > COPIED_FRAME_BYTES {
            packet.append(HEAD_BYTES)?.copy_from_slice(&frame.bytes()[..HEAD_BYTES]);
            let rest = frame.slice(HEAD_BYTES, len - HEAD_BYTES)?;
            match self.completions.attach(&mut packet, rest) {
                Ok(()) => return Some(packet),
                Err(refused) => {
                    let rest = refused.payload;
                    packet.append(rest.len())?.copy_from_slice(rest.bytes());
                }
            }
        } else {
            packet.append(len)?.copy_from_slice(frame.bytes());
        }
        counters.copied_bytes.add(len);
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

/// Puts a frame's segments together in a buffer; none if they do not fit.
fn gather(packet: &Mbuf, buffer: &mut Buffer) -> Option<usize> {
    let mut len = 0;
    for segment in packet.segments() {
        if !buffer.arrive(len, segment) {
            return None;
        }
        len += segment.len();
    }
    Some(len)
}
