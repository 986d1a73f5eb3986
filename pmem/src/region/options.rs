//! What one asks of a region, and whether an existing store is that.

use std::{path::Path, time::Duration};

use crate::{
    format::{
        geometry::{Geometry, GeometryOptions},
        superblock::Contents,
    },
    log::draft::PACK_BYTES,
    recovery::error::OpenError,
    watch::Watch,
};

/// How to open a region; the defaults open an existing store as it is.
#[derive(Clone, Debug)]
pub struct Options {
    /// Length in bytes. Needed to create a file; an existing store must have it.
    pub size: Option<u64>,
    /// Shards, one per core; 1 for a new store. An existing store must have as many.
    pub shards: Option<u32>,
    /// Shards of a new store, if an existing one may have any number.
    pub shards_if_new: Option<u32>,
    /// Length of a buffer in bytes, a multiple of 64; [`DEFAULT_BUFFER_BYTES`](crate::DEFAULT_BUFFER_BYTES) for a
    /// new store. An existing store must have such buffers.
    pub buffer_bytes: Option<u16>,
    /// Log entries of a shard, a power of two; for a new store three to six times the number of buffers. An existing
    /// store must have as many.
    pub log_entries: Option<u32>,
    /// What the records of a new store will be. An existing one must be of this kind, or of an unknown one; any will do if
    /// this is [`Contents::Unknown`].
    pub contents: Contents,
    /// Buffers of a shard that the log leaves to the network: by default an eighth, but at least 64, and in no
    /// case more than half.
    pub reserve: Option<u32>,
    /// Records shorter than this are copied together into shared buffers; longer ones stay where they arrived, and take
    /// whole buffers, however little of them. At most the length of a buffer. Records of half a buffer's length and more do
    /// not share one, so that copying them gains nothing.
    pub pack_below: u16,
    /// The longest record in bytes.
    pub max_record_bytes: u32,
    /// Log entries after which a shard notes in its header how far its log is durable, at the latest: no more than so many
    /// need be looked through for it when the store is opened.
    pub checkpoint_entries: u32,
    /// Does not read the payload of records that are known to have been durable: damage in it is found when it is read, or by
    /// [`Shard::scrub`](crate::Shard::scrub). Opening takes a time by the number of records then, and not of their bytes.
    pub trust_durable: bool,
    /// A busy wait behind each fence; none by default. Models slower media, as PASTE's evaluation does.
    pub persist_delay: Duration,
    /// How what is flushed reaches the medium.
    pub domain: DomainChoice,
    /// Times each flush and each fence, for [`Shard::spent`](crate::Shard::spent).
    pub timed: bool,
    /// Has all pages of memory that does not survive in place from the start, so that no page fault interrupts a
    /// burst; opening then takes a time that grows with the length. Pages of DAX are mapped in large pieces, and
    /// those of a regular file fault again after each commit anyway.
    pub populate: bool,
    /// Allows memory that does not survive: tmpfs and hugetlbfs files. The name [`MEMORY`] needs no permission.
    pub volatile: bool,
    /// Formats a new store over whatever is there.
    pub force: bool,
    /// Is told how far opening has come, and may end it.
    pub watch: Watch,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            size: None,
            shards: None,
            shards_if_new: None,
            buffer_bytes: None,
            log_entries: None,
            contents: Contents::Unknown,
            reserve: None,
            pack_below: PACK_BYTES as u16,
            max_record_bytes: 16 << 20,
            checkpoint_entries: 1 << 16,
            trust_durable: false,
            persist_delay: Duration::ZERO,
            domain: DomainChoice::Found,
            timed: false,
            populate: false,
            volatile: false,
            force: false,
            watch: Watch::default(),
        }
    }
}

/// How flushed lines reach the medium, where there is a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DomainChoice {
    /// As what is there asks for: persistent memory by lines, and a file by the page cache.
    #[default]
    Found,
    /// A file or a block device as a disk: memory holds all of it, and commits are written past the page cache.
    Disk,
}

/// The name of a region that is plain memory and gone with the process.
pub const MEMORY: &str = "memory:";

/// Checks that an existing store is what the options ask for.
pub(super) fn check(
    path: &Path,
    actual: u64,
    geometry: &Geometry,
    options: &Options,
) -> Result<(), OpenError> {
    let path = || path.to_path_buf();
    let expected = geometry.region_bytes;
    if expected > actual {
        return Err(OpenError::Truncated { path: path(), expected, actual });
    }
    let pairs = [
        ("a size in bytes of", options.size.map(|size| size / PAGE_BYTES * PAGE_BYTES), expected),
        ("a number of shards of", options.shards.map(Into::into), geometry.shards.into()),
        ("a buffer length of", options.buffer_bytes.map(Into::into), geometry.buffer_bytes.into()),
        ("a number of log entries of", options.log_entries.map(Into::into), geometry.log_entries.into()),
    ];
    for (what, asked, found) in pairs {
        if let Some(asked) = asked.filter(|&asked| asked != found) {
            return Err(OpenError::Mismatch { path: path(), what, found, asked });
        }
    }
    Ok(())
}

const PAGE_BYTES: u64 = 4096;

/// Checks that a store's records are what its user takes them for.
pub(super) fn check_contents(path: &Path, found: Contents, asked: Contents) -> Result<(), OpenError> {
    if found == asked || found == Contents::Unknown || asked == Contents::Unknown {
        return Ok(());
    }
    Err(OpenError::Contents { path: path.to_path_buf(), found, asked })
}

/// How a new store of so many bytes is cut up.
pub(super) fn plan(bytes: u64, options: &Options) -> Result<Geometry, OpenError> {
    let options = GeometryOptions {
        shards: options.shards.or(options.shards_if_new),
        buffer_bytes: options.buffer_bytes,
        log_entries: options.log_entries,
    };
    Geometry::plan(bytes, options).map_err(|error| OpenError::Geometry(error.to_string()))
}
