//! The superblock: what a store is and where everything in it lies.
//!
//! It is written once, when the store is made, and never again: whatever changes lies in the shards' headers.

use std::fmt;

use uuid::Uuid;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32, U64},
};

use super::{crc, entry::ENTRY_BYTES, header::HEADERS_BYTES};

/// Length of one copy.
pub(crate) const SUPERBLOCK_BYTES: usize = 256;
/// Length of both copies.
pub(crate) const SUPERBLOCKS_BYTES: usize = 2 * SUPERBLOCK_BYTES;
/// The layout that this code reads and writes.
pub(crate) const VERSION: u32 = 1;

/// DPDK's `RTE_MBUF_DEFAULT_BUF_SIZE`: 128 bytes of headroom and 2048 of packet.
pub const DEFAULT_BUFFER_BYTES: u16 = 2176;
/// What shards' headers and buffers begin on: a cache line of the CPUs that the layout was made for.
pub(crate) const ALIGN_BYTES: usize = 64;
/// No buffer is shorter.
pub(crate) const MIN_BUFFER_BYTES: u16 = 1024;

const MAGIC: [u8; 8] = *b"PASTE-PM";
const PAGE_BYTES: u64 = 4096;
const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// From this size on, logs and arenas begin on huge pages.
const HUGE_FROM_BYTES: u64 = 64 << 20;
const MIN_LOG_ENTRIES: u32 = 64;
const MIN_BUFFERS: u32 = 4;
/// Log entries of a new store for each buffer, at least.
const LOG_PER_BUFFER: u64 = 3;
const MAX_SHARDS: u32 = 1024;

/// How a region is cut up. It lies in the superblock and never changes: a buffer's name means the same bytes at
/// every start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Geometry {
    /// Length of the region in bytes, whole pages.
    pub region_bytes: u64,
    /// Shards, one per core.
    pub shards: u32,
    /// Length of a buffer in bytes, a multiple of 64.
    pub buffer_bytes: u16,
    /// Buffers in each shard.
    pub buffers: u32,
    /// Log entries in each shard, a power of two.
    pub log_entries: u32,
    /// Where the first shard's header lies; the others follow directly.
    pub headers_offset: u64,
    /// Where the first shard's log lies, and how far apart the logs are.
    pub log_offset: u64,
    /// Distance between the logs of two shards.
    pub log_stride: u64,
    /// Where the first shard's arena lies.
    pub arena_offset: u64,
    /// Distance between the arenas of two shards, which is an arena's length in whole pages.
    pub arena_stride: u64,
}

/// What one asks of a new region's geometry; the rest follows from its size.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GeometryOptions {
    pub shards: Option<u32>,
    pub buffer_bytes: Option<u16>,
    pub log_entries: Option<u32>,
}

/// Why a region cannot be cut up as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GeometryError {
    #[error("{bytes} bytes are too few for {shards} shard(s): at least {needed} are needed")]
    TooSmall { bytes: u64, shards: u32, needed: u64 },
    #[error("{0}")]
    Impossible(String),
}

impl Geometry {
    /// Cuts up a region of `bytes` bytes.
    ///
    /// The log gets three to six times as many entries as there are buffers, a power of two: a record of an ordinary
    /// segment takes one buffer and one entry, and a long one takes an entry for each four buffers, but short ones share
    /// buffers, and those of up to 32 bytes take none. It takes 8 to 15 percent of the region for that.
    pub(crate) fn plan(bytes: u64, options: GeometryOptions) -> Result<Self, GeometryError> {
        let shards = options.shards.unwrap_or(1);
        let buffer_bytes = options.buffer_bytes.unwrap_or(DEFAULT_BUFFER_BYTES);
        if !(1..=MAX_SHARDS).contains(&shards) {
            return Err(GeometryError::Impossible(format!("{shards} shards: take 1 to {MAX_SHARDS}")));
        }
        if buffer_bytes < MIN_BUFFER_BYTES || usize::from(buffer_bytes) % ALIGN_BYTES != 0 {
            return Err(GeometryError::Impossible(format!(
                "buffers of {buffer_bytes} bytes: take a multiple of 64, and at least {MIN_BUFFER_BYTES}"
            )));
        }
        let region_bytes = bytes / PAGE_BYTES * PAGE_BYTES;
        let align = if region_bytes >= HUGE_FROM_BYTES { HUGE_PAGE_BYTES } else { PAGE_BYTES };
        let headers_offset = PAGE_BYTES;
        let log_offset = (headers_offset + u64::from(shards) * HEADERS_BYTES as u64).next_multiple_of(align);
        let per_shard = region_bytes.saturating_sub(log_offset) / u64::from(shards);
        let log_entries = match options.log_entries {
            Some(entries) if entries.is_power_of_two() && (MIN_LOG_ENTRIES..=1 << 30).contains(&entries) => {
                entries
            }
            Some(entries) => {
                return Err(GeometryError::Impossible(format!(
                    "a log of {entries} entries: take a power of two from {MIN_LOG_ENTRIES} to 1073741824"
                )));
            }
            None => {
                let buffers = per_shard / (u64::from(buffer_bytes) + LOG_PER_BUFFER * ENTRY_BYTES as u64);
                (LOG_PER_BUFFER * buffers).next_power_of_two().clamp(MIN_LOG_ENTRIES.into(), 1 << 30) as u32
            }
        };
        let log_stride = (u64::from(log_entries) * ENTRY_BYTES as u64).next_multiple_of(align);
        let arena_offset = log_offset + u64::from(shards) * log_stride;
        let arena_stride = region_bytes.saturating_sub(arena_offset) / u64::from(shards) / align * align;
        let buffers = (arena_stride / u64::from(buffer_bytes)).min(u64::from(u32::MAX - 1)) as u32;
        if buffers < MIN_BUFFERS {
            let arena = (u64::from(MIN_BUFFERS) * u64::from(buffer_bytes)).next_multiple_of(align);
            let needed = arena_offset + u64::from(shards) * arena;
            return Err(GeometryError::TooSmall { bytes, shards, needed });
        }
        Ok(Self {
            region_bytes,
            shards,
            buffer_bytes,
            buffers,
            log_entries,
            headers_offset,
            log_offset,
            log_stride,
            arena_offset,
            arena_stride,
        })
    }

    pub(crate) fn header_of(&self, shard: u32) -> usize {
        self.headers_offset as usize + shard as usize * HEADERS_BYTES
    }

    pub(crate) fn log_of(&self, shard: u32) -> usize {
        (self.log_offset + u64::from(shard) * self.log_stride) as usize
    }

    pub(crate) fn arena_of(&self, shard: u32) -> usize {
        (self.arena_offset + u64::from(shard) * self.arena_stride) as usize
    }

    /// Whether all parts lie in the region, in order and aligned: what a hostile superblock may get wrong.
    fn is_sound(&self) -> bool {
        let aligned =
            [self.region_bytes, self.log_offset, self.log_stride, self.arena_offset, self.arena_stride]
                .iter()
                .all(|offset| offset % PAGE_BYTES == 0);
        let shards = u64::from(self.shards);
        let ends = |from: u64, stride: u64| stride.checked_mul(shards).and_then(|len| from.checked_add(len));
        let (buffers, buffer_bytes) = (u64::from(self.buffers), u64::from(self.buffer_bytes));
        aligned
            && (1..=MAX_SHARDS).contains(&self.shards)
            && self.buffer_bytes >= MIN_BUFFER_BYTES
            && usize::from(self.buffer_bytes) % ALIGN_BYTES == 0
            && (MIN_BUFFERS..u32::MAX).contains(&self.buffers)
            && self.log_entries.is_power_of_two()
            && (MIN_LOG_ENTRIES..=1 << 30).contains(&self.log_entries)
            && self.headers_offset >= SUPERBLOCKS_BYTES as u64
            && self.headers_offset.is_multiple_of(ALIGN_BYTES as u64)
            && ends(self.headers_offset, HEADERS_BYTES as u64).is_some_and(|end| end <= self.log_offset)
            && u64::from(self.log_entries) * ENTRY_BYTES as u64 <= self.log_stride
            && ends(self.log_offset, self.log_stride).is_some_and(|end| end <= self.arena_offset)
            && buffers * buffer_bytes <= self.arena_stride
            && ends(self.arena_offset, self.arena_stride).is_some_and(|end| end <= self.region_bytes)
    }
}

/// What a store's records are, by the program that made it: its own, which others should leave alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Contents {
    /// Nobody has said: stores of older programs, and of tests.
    #[default]
    Unknown,
    /// Bodies of requests, as a log server appends them.
    Bodies,
    /// Frames of a network.
    Frames,
    /// Changes to keys and values.
    Changes,
    /// Something that this code does not know.
    Other(u32),
}

impl Contents {
    fn number(self) -> u32 {
        match self {
            Self::Unknown => 0,
            Self::Bodies => 1,
            Self::Frames => 2,
            Self::Changes => 3,
            Self::Other(number) => number,
        }
    }

    fn of(number: u32) -> Self {
        match number {
            0 => Self::Unknown,
            1 => Self::Bodies,
            2 => Self::Frames,
            3 => Self::Changes,
            _ => Self::Other(number),
        }
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("records of unknown kind"),
            Self::Bodies => f.write_str("request bodies (pmlog)"),
            Self::Frames => f.write_str("network frames (pmfwd)"),
            Self::Changes => f.write_str("changes to keys (pmkv)"),
            Self::Other(number) => write!(f, "records of kind {number}"),
        }
    }
}

/// What the superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub uuid: Uuid,
    pub geometry: Geometry,
    pub contents: Contents,
}

/// What a region's first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A store; `damaged_copy` is the copy that does not match the other one.
    Store { superblock: Superblock, damaged_copy: Option<usize> },
    /// A store of a version that this code does not know.
    Version(u32),
    /// A store whose superblock is damaged in both copies.
    Damaged,
    /// Zeros.
    Empty,
    /// Something else.
    Foreign,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    uuid: [u8; 16],
    region_bytes: U64,
    shards: U32,
    buffers: U32,
    log_entries: U32,
    buffer_bytes: U16,
    reserved: [u8; 2],
    headers_offset: U64,
    log_offset: U64,
    log_stride: U64,
    arena_offset: U64,
    arena_stride: U64,
    contents: U32,
    rest: [u8; 156],
}

const _: () = assert!(size_of::<Raw>() == SUPERBLOCK_BYTES);

impl Superblock {
    pub(crate) fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let geometry = &self.geometry;
        let mut raw = Raw {
            magic: MAGIC,
            version: VERSION.into(),
            crc: 0.into(),
            uuid: *self.uuid.as_bytes(),
            region_bytes: geometry.region_bytes.into(),
            shards: geometry.shards.into(),
            buffers: geometry.buffers.into(),
            log_entries: geometry.log_entries.into(),
            buffer_bytes: geometry.buffer_bytes.into(),
            reserved: [0; 2],
            headers_offset: geometry.headers_offset.into(),
            log_offset: geometry.log_offset.into(),
            log_stride: geometry.log_stride.into(),
            arena_offset: geometry.arena_offset.into(),
            arena_stride: geometry.arena_stride.into(),
            contents: self.contents.number().into(),
            rest: [0; 156],
        };
        raw.crc = crc::crc32c(raw.as_bytes()).into();
        zerocopy::transmute!(raw)
    }

    /// Reads what [`encode`](Self::encode) wrote, and trusts none of it.
    fn decode(bytes: &[u8; SUPERBLOCK_BYTES]) -> Option<Self> {
        let raw = Raw::ref_from_bytes(bytes).ok()?;
        let geometry = Geometry {
            region_bytes: raw.region_bytes.get(),
            shards: raw.shards.get(),
            buffer_bytes: raw.buffer_bytes.get(),
            buffers: raw.buffers.get(),
            log_entries: raw.log_entries.get(),
            headers_offset: raw.headers_offset.get(),
            log_offset: raw.log_offset.get(),
            log_stride: raw.log_stride.get(),
            arena_offset: raw.arena_offset.get(),
            arena_stride: raw.arena_stride.get(),
        };
        let sound = Self::version(bytes) == Some(VERSION) && geometry.is_sound();
        let (uuid, contents) = (Uuid::from_bytes(raw.uuid), Contents::of(raw.contents.get()));
        sound.then_some(Self { uuid, geometry, contents })
    }

    /// The version of an undamaged copy. In every version the magic, the version and the checksum of all 256
    /// bytes lie where they lie now.
    fn version(bytes: &[u8; SUPERBLOCK_BYTES]) -> Option<u32> {
        let raw = Raw::ref_from_bytes(bytes).ok()?;
        let mut plain = *bytes;
        plain[12..16].fill(0);
        (raw.magic == MAGIC && raw.crc.get() == crc::crc32c(&plain)).then_some(raw.version.get())
    }

    /// What the two copies at a region's start are.
    pub(crate) fn find(bytes: &[u8; SUPERBLOCKS_BYTES]) -> Found {
        let (first, second) = bytes.split_at(SUPERBLOCK_BYTES);
        let copies: [&[u8; SUPERBLOCK_BYTES]; 2] =
            [first, second].map(|copy| copy.try_into().expect("the block is two copies long"));
        match copies.map(Self::decode) {
            [Some(superblock), Some(other)] if superblock == other => {
                Found::Store { superblock, damaged_copy: None }
            }
            // An older program has repaired a copy, and left out what it did not know.
            [Some(superblock), Some(other)]
                if superblock == (Self { contents: superblock.contents, ..other })
                    && other.contents == Contents::Unknown =>
            {
                Found::Store { superblock, damaged_copy: Some(1) }
            }
            [Some(other), Some(superblock)]
                if superblock == (Self { contents: superblock.contents, ..other })
                    && other.contents == Contents::Unknown =>
            {
                Found::Store { superblock, damaged_copy: Some(0) }
            }
            [Some(_), Some(_)] => Found::Damaged,
            // A newer program was ended while it wrote its copies: only it knows what it was about to do.
            [Some(_), None] | [None, Some(_)]
                if let Some(found) =
                    copies.into_iter().find_map(|copy| Self::version(copy).filter(|&v| v != VERSION)) =>
            {
                Found::Version(found)
            }
            [Some(superblock), None] => Found::Store { superblock, damaged_copy: Some(1) },
            [None, Some(superblock)] => Found::Store { superblock, damaged_copy: Some(0) },
            [None, None] => match copies.map(Self::version) {
                [Some(found), _] | [_, Some(found)] if found != VERSION => Found::Version(found),
                _ if bytes.iter().all(|&byte| byte == 0) => Found::Empty,
                _ if copies.iter().any(|copy| copy.starts_with(&MAGIC)) => Found::Damaged,
                _ => Found::Foreign,
            },
        }
    }
}
