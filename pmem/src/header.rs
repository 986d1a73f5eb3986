//! A shard's header: what its log needs besides the entries, in two copies that are written in turn.
//!
//! The head lies here and not in the superblock, so that cores trim without sharing a line.

use std::{io, ptr, sync::Arc};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U32, U64},
};

use crate::{crc, medium::Medium};

/// Length of one copy.
pub(crate) const HEADER_BYTES: usize = 256;
/// Length of both copies.
pub(crate) const HEADERS_BYTES: usize = 2 * HEADER_BYTES;

/// What a shard's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Rises with every write; the copy with the higher one counts.
    pub generation: u64,
    /// Rises with every opening for writing.
    pub epoch: u32,
    /// The first sequence number of this epoch. All below were durable before the header was.
    pub first_seq: u64,
    /// The first live entry.
    pub head: u64,
    /// An entry up to which everything was durable when the header was written.
    pub durable_seq: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    crc: U32,
    epoch: U32,
    generation: U64,
    first_seq: U64,
    head: U64,
    durable_seq: U64,
    reserved: [u8; 216],
}

const _: () = assert!(size_of::<Raw>() == HEADER_BYTES);

/// Sequence numbers stay far from where sums of them could overflow.
const MAX_SEQ: u64 = 1 << 62;

impl Header {
    /// The header of a shard that was never opened. Its generation is even: it is the first copy.
    pub(crate) const NEW: Self = Self { generation: 0, epoch: 0, first_seq: 1, head: 1, durable_seq: 0 };

    pub(crate) fn encode(&self, seed: u32) -> [u8; HEADER_BYTES] {
        let mut raw = Raw {
            crc: 0.into(),
            epoch: self.epoch.into(),
            generation: self.generation.into(),
            first_seq: self.first_seq.into(),
            head: self.head.into(),
            durable_seq: self.durable_seq.into(),
            reserved: [0; 216],
        };
        raw.crc = crc::crc32c_append(seed, &raw.as_bytes()[4..]).into();
        zerocopy::transmute!(raw)
    }

    /// None if the checksum does not match or the numbers contradict each other.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES], seed: u32) -> Option<Self> {
        let raw = Raw::ref_from_bytes(bytes).ok()?;
        let header = Self {
            generation: raw.generation.get(),
            epoch: raw.epoch.get(),
            first_seq: raw.first_seq.get(),
            head: raw.head.get(),
            durable_seq: raw.durable_seq.get(),
        };
        let next = header.durable_seq.checked_add(1)?;
        let sound = raw.crc.get() == crc::crc32c_append(seed, &bytes[4..])
            && (1..=next).contains(&header.head)
            && (1..=next).contains(&header.first_seq)
            && next < MAX_SEQ
            && header.generation < MAX_SEQ;
        sound.then_some(header)
    }

    /// The newer sound copy of two.
    pub(crate) fn newest(copies: &[u8; HEADERS_BYTES], seed: u32) -> Option<Self> {
        let (first, second) = copies.split_at(HEADER_BYTES);
        let decode = |copy: &[u8]| Self::decode(copy.try_into().ok()?, seed);
        decode(first).into_iter().chain(decode(second)).max_by_key(|header| header.generation)
    }
}

/// Where a shard's header lies, and what it says now.
pub(crate) struct HeaderCell {
    medium: Arc<dyn Medium>,
    offset: usize,
    seed: u32,
    current: Header,
}

impl HeaderCell {
    pub(crate) fn new(medium: Arc<dyn Medium>, offset: usize, seed: u32, current: Header) -> Self {
        assert!(offset + HEADERS_BYTES <= medium.len());
        Self { medium, offset, seed, current }
    }

    /// Both copies as they lie in the medium.
    pub(crate) fn read(medium: &dyn Medium, offset: usize) -> [u8; HEADERS_BYTES] {
        assert!(offset + HEADERS_BYTES <= medium.len());
        let mut bytes = [0; HEADERS_BYTES];
        // SAFETY: the range was checked; only the shard's one owner writes it, and that is the caller.
        unsafe {
            ptr::copy_nonoverlapping(medium.base().as_ptr().add(offset), bytes.as_mut_ptr(), HEADERS_BYTES);
        }
        bytes
    }

    pub(crate) fn current(&self) -> Header {
        self.current
    }

    /// Writes a header over the older copy, flushes and fences it. Its generation is set here.
    pub(crate) fn persist(&mut self, header: Header) -> io::Result<()> {
        let header = Header { generation: self.current.generation + 1, ..header };
        let offset = self.offset + (header.generation % 2) as usize * HEADER_BYTES;
        // SAFETY: the range was checked in `new`; this is its only owner, and no references to it are ever made.
        unsafe { self.medium.store(offset, &header.encode(self.seed)) };
        self.medium.flush(offset, HEADER_BYTES);
        self.medium.fence()?;
        self.current = header;
        Ok(())
    }
}
