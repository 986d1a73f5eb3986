//! Regions: where the persistent memory comes from, and what it turns out to be.

use std::{fmt, num::NonZeroUsize, path::Path, ptr::NonNull, sync::Arc};

use uuid::Uuid;

use crate::{
    arena::Arena,
    entry::crc_seed,
    header::{Header, HeaderCell},
    medium::{Domain, FlushInstruction, Mapped, Mapping, Medium, best_flush_instruction},
    ring::Ring,
    shard::{Limits, Parts, Shard},
    superblock::{Geometry, GeometryError, Wish},
};

/// How to open a region; the defaults open an existing store as it is.
#[derive(Clone, Debug)]
pub struct Options {
    /// Length in bytes. Needed to create a store; must match an existing one.
    pub size: Option<u64>,
    /// Shards, one per core; 1 for a new store. Must match an existing one.
    pub shards: Option<u32>,
    /// Length of a buffer in bytes, a multiple of 64; [`DEFAULT_BUFFER_BYTES`](crate::DEFAULT_BUFFER_BYTES) for a
    /// new store. Must match an existing one.
    pub buffer_bytes: Option<u16>,
    /// Log entries of a shard, a power of two; by default about half the number of buffers.
    pub log_entries: Option<u32>,
    /// Buffers of a shard that the log leaves to the network: by default an eighth, but at least 64, and never
    /// more than half.
    pub reserve: Option<u32>,
    /// The longest record in bytes.
    pub max_record_bytes: u32,
    /// Allows memory that does not survive: tmpfs and hugetlbfs files. The name `memory:` needs no permission.
    pub volatile: bool,
    /// Formats a new store over whatever is there.
    pub force: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            size: None,
            shards: None,
            buffer_bytes: None,
            log_entries: None,
            reserve: None,
            max_record_bytes: 16 << 20,
            volatile: false,
            force: false,
        }
    }
}

/// Why a region was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A new store was asked for without its size.
    #[error("a new store needs a size; give one, for example 1 GiB")]
    NoSize,
    /// The size is too small.
    #[error("{0}")]
    Geometry(String),
    /// The system refused.
    #[error("{what} failed: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// An open region.
pub struct Region {
    medium: Arc<dyn Medium>,
    info: RegionInfo,
    limits: Options,
}

/// What was found when a region was opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegionInfo {
    /// The path or name.
    pub name: String,
    /// What flush and fence do.
    pub domain: Domain,
    /// The store's own identifier.
    pub uuid: Uuid,
    /// How the region is cut up.
    pub geometry: Geometry,
}

impl fmt::Display for RegionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.domain)
    }
}

/// A shard that is not open yet; can be sent to the thread that will own it.
pub struct ShardSeed {
    medium: Arc<dyn Medium>,
    geometry: Geometry,
    uuid: Uuid,
    index: u32,
    limits: Limits,
}

impl Region {
    /// Opens or creates a store.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self, OpenError> {
        let bytes = options.size.ok_or(OpenError::NoSize)? as usize;
        let map = memmap2::MmapOptions::new()
            .len(bytes)
            .map_anon()
            .map_err(|source| OpenError::Io { what: "mapping memory", source })?;
        let base = NonNull::new(map.as_ptr().cast_mut()).expect("a mapping has an address");
        let len = NonZeroUsize::new(map.len()).map_or(0, NonZeroUsize::get);
        // SAFETY: the map is kept by the mapping.
        let mapping = unsafe { Mapping::new(base, len, Box::new(map)) };
        let domain = Domain::Volatile(best_flush_instruction().unwrap_or(FlushInstruction::Clflush));
        let medium = Arc::new(Mapped::new(Arc::new(mapping), domain));
        let mut region = Self::over(medium, options)?;
        region.info.name = path.as_ref().display().to_string();
        Ok(region)
    }

    /// Opens or creates a store on any medium.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn over(medium: Arc<dyn Medium>, options: &Options) -> Result<Self, OpenError> {
        let wish = Wish {
            shards: options.shards,
            buffer_bytes: options.buffer_bytes,
            log_entries: options.log_entries,
        };
        let geometry = Geometry::plan(medium.len() as u64, wish)
            .map_err(|error: GeometryError| OpenError::Geometry(error.to_string()))?;
        let info =
            RegionInfo { name: String::new(), domain: medium.domain(), uuid: Uuid::new_v4(), geometry };
        Ok(Self { medium, info, limits: options.clone() })
    }

    /// What was found.
    pub fn info(&self) -> &RegionInfo {
        &self.info
    }

    /// The shards, to be opened each in its own thread.
    pub fn into_seeds(self) -> Vec<ShardSeed> {
        let geometry = self.info.geometry;
        let default_reserve = (geometry.buffers / 8).max(64);
        let reserve = self.limits.reserve.unwrap_or(default_reserve).min(geometry.buffers / 2) as usize;
        let limits = Limits { max_record_bytes: self.limits.max_record_bytes.into(), reserve };
        let seed = |index| ShardSeed {
            medium: self.medium.clone().fork(),
            geometry,
            uuid: self.info.uuid,
            index,
            limits,
        };
        (0..geometry.shards).map(seed).collect()
    }

    /// The only shard of a region that has one.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn into_shard(self) -> Result<Shard, OpenError> {
        self.into_seeds().remove(0).open()
    }
}

impl ShardSeed {
    /// Recovers the shard and opens it for this thread.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(self) -> Result<Shard, OpenError> {
        let Self { medium, geometry, uuid, index, limits } = self;
        let seed = crc_seed(uuid, index);
        let arena = Arena::new(
            medium.clone(),
            geometry.arena_of(index),
            geometry.arena_stride as usize,
            geometry.buffers,
            geometry.buffer_bytes,
        );
        let ring = Ring::new(medium.clone(), geometry.log_of(index), geometry.log_entries, seed);
        let mut header = HeaderCell::new(medium, geometry.header_of(index), seed, Header::NEW);
        header
            .persist(Header { epoch: 1, ..Header::NEW })
            .map_err(|source| OpenError::Io { what: "writing the shard's header", source })?;
        Ok(Shard::new(Parts { arena, ring, header, limits, next: 1, live_payload_bytes: 0 }))
    }
}
