//! How a region is cut up.

use super::{entry::ENTRY_BYTES, header::HEADER_BYTES, superblock::SUPERBLOCK_BYTES};

/// DPDK's `RTE_MBUF_DEFAULT_BUF_SIZE`: 128 bytes of headroom and 2048 of packet.
pub const DEFAULT_BUFFER_BYTES: u16 = 2176;
/// What shards' headers and buffers begin on: a cache line of the CPUs that the layout was made for.
pub(crate) const ALIGN_BYTES: usize = 64;
/// No buffer is shorter.
pub(crate) const MIN_BUFFER_BYTES: u16 = 1024;

/// What disks write as a whole, and what one copy of superblock or header has for itself.
pub(crate) const PAGE_BYTES: u64 = 4096;
const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// From this size on, logs and arenas begin on huge pages.
const HUGE_FROM_BYTES: u64 = 64 << 20;
const MIN_LOG_ENTRIES: u32 = 64;
const MIN_BUFFERS: u32 = 4;
/// A shard has no more: two terabytes of the shortest ones. Larger stores have more shards.
pub(crate) const MAX_BUFFERS: u32 = (1 << 31) - 4;
/// Log entries of a new store for each buffer, at least.
const LOG_PER_BUFFER: u64 = 3;
const MAX_SHARDS: u32 = 1024;

/// Where the last whole block of so many bytes begins.
pub(crate) fn last_block(bytes: u64) -> u64 {
    (bytes / PAGE_BYTES).saturating_sub(1) * PAGE_BYTES
}

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
    /// Where the first shard's header lies; the others follow.
    pub headers_offset: u64,
    /// Where the first shard's log lies, and how far apart the logs are.
    pub log_offset: u64,
    /// Distance between the logs of two shards.
    pub log_stride: u64,
    /// Where the first shard's arena lies.
    pub arena_offset: u64,
    /// Distance between the arenas of two shards, whole pages. The last one may be shorter.
    pub arena_stride: u64,
    /// Whether the second copies of the superblock and of the shards' headers lie at the region's end, and each copy in a
    /// block of its own; else they lie beside the first ones, as version 1 had them.
    pub copies_apart: bool,
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
        // At either end a block for the superblock, and one for each header.
        let end_bytes = PAGE_BYTES * (1 + u64::from(shards));
        let log_offset = end_bytes.next_multiple_of(align);
        let arenas_end = region_bytes.saturating_sub(end_bytes);
        let per_shard = arenas_end.saturating_sub(log_offset) / u64::from(shards);
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
        // Arenas as large as fit in whole pages, or such that the last one is cut short: whichever has more in it.
        let room_of = |stride: u64| {
            stride.min(arenas_end.saturating_sub(arena_offset + u64::from(shards - 1) * stride))
        };
        let strides = [arenas_end, region_bytes]
            .map(|end| end.saturating_sub(arena_offset) / u64::from(shards) / align * align);
        let arena_stride = if room_of(strides[1]) > strides[0] { strides[1] } else { strides[0] };
        let buffers = (room_of(arena_stride) / u64::from(buffer_bytes)).min(MAX_BUFFERS.into()) as u32;
        if buffers < MIN_BUFFERS {
            let arena = (u64::from(MIN_BUFFERS) * u64::from(buffer_bytes)).next_multiple_of(align);
            let needed = arena_offset + u64::from(shards) * arena + end_bytes;
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
            copies_apart: true,
        })
    }

    /// How version 1 cut up a region of this length, with as many shards and as long logs.
    pub(crate) fn of_version_1(self) -> Self {
        let align = if self.region_bytes >= HUGE_FROM_BYTES { HUGE_PAGE_BYTES } else { PAGE_BYTES };
        let shards = u64::from(self.shards);
        let headers_bytes = shards * 2 * HEADER_BYTES as u64;
        let log_offset = (self.headers_offset + headers_bytes).next_multiple_of(align);
        let arena_offset = log_offset + shards * self.log_stride;
        let arena_stride = self.region_bytes.saturating_sub(arena_offset) / shards / align * align;
        let buffers = (arena_stride / u64::from(self.buffer_bytes)).min(MAX_BUFFERS.into()) as u32;
        Self { log_offset, arena_offset, arena_stride, buffers, copies_apart: false, ..self }
    }

    /// Where the two copies of the superblock lie.
    pub fn superblocks(&self) -> [usize; 2] {
        let second = if self.copies_apart { last_block(self.region_bytes) } else { SUPERBLOCK_BYTES as u64 };
        [0, second as usize]
    }

    /// Where the two copies of a shard's header lie.
    pub fn headers_of(&self, shard: u32) -> [usize; 2] {
        let (first, shard) = (self.headers_offset as usize, shard as usize);
        if self.copies_apart {
            [first, self.headers_end() as usize].map(|from| from + shard * PAGE_BYTES as usize)
        } else {
            [0, HEADER_BYTES].map(|copy| first + shard * 2 * HEADER_BYTES + copy)
        }
    }

    /// Where the second copies of the headers begin, if they lie apart.
    fn headers_end(&self) -> u64 {
        last_block(self.region_bytes).saturating_sub(u64::from(self.shards) * PAGE_BYTES)
    }

    /// Length of a shard's arena, whole pages.
    pub(crate) fn arena_bytes(&self, shard: u32) -> usize {
        let end = if self.copies_apart { self.headers_end() } else { self.region_bytes };
        (end as usize - self.arena_of(shard)).min(self.arena_stride as usize)
    }

    pub(crate) fn log_of(&self, shard: u32) -> usize {
        (self.log_offset + u64::from(shard) * self.log_stride) as usize
    }

    pub(crate) fn arena_of(&self, shard: u32) -> usize {
        (self.arena_offset + u64::from(shard) * self.arena_stride) as usize
    }

    /// Whether all parts lie in the region, in order and aligned: what a hostile superblock may get wrong.
    pub(super) fn is_sound(&self) -> bool {
        let aligned =
            [self.region_bytes, self.log_offset, self.log_stride, self.arena_offset, self.arena_stride]
                .iter()
                .all(|offset| offset % PAGE_BYTES == 0);
        let shards = u64::from(self.shards);
        let header_stride = if self.copies_apart { PAGE_BYTES } else { 2 * HEADER_BYTES as u64 };
        let ends = |from: u64, stride: u64| stride.checked_mul(shards).and_then(|len| from.checked_add(len));
        let (buffers, buffer_bytes) = (u64::from(self.buffers), u64::from(self.buffer_bytes));
        aligned
            && (1..=MAX_SHARDS).contains(&self.shards)
            && self.buffer_bytes >= MIN_BUFFER_BYTES
            && usize::from(self.buffer_bytes) % ALIGN_BYTES == 0
            && (MIN_BUFFERS..=MAX_BUFFERS).contains(&self.buffers)
            && self.log_entries.is_power_of_two()
            && (MIN_LOG_ENTRIES..=1 << 30).contains(&self.log_entries)
            && self.headers_offset >= if self.copies_apart { PAGE_BYTES } else { 2 * SUPERBLOCK_BYTES as u64 }
            && self.headers_offset.is_multiple_of(ALIGN_BYTES as u64)
            && ends(self.headers_offset, header_stride).is_some_and(|end| end <= self.log_offset)
            && u64::from(self.log_entries) * ENTRY_BYTES as u64 <= self.log_stride
            && ends(self.log_offset, self.log_stride).is_some_and(|end| end <= self.arena_offset)
            && buffers * buffer_bytes <= self.arena_stride
            && ends(self.arena_offset, self.arena_stride).is_some_and(|end| end <= self.region_bytes)
            && (!self.copies_apart
                || self.arena_offset + (shards - 1) * self.arena_stride + buffers * buffer_bytes
                    <= self.headers_end())
    }
}
