//! Named packet buffers in persistent memory, and a log that makes their names durable.
//!
//! A [`Region`] is a device, a file or plain memory, found to be in one persistence [`Domain`]. It is cut into
//! shards, one per core. A [`Shard`] is an [`Arena`] of named buffers, which a network card fills, and a log
//! of records: each record names the pieces of buffers that hold its bytes, so that storing it copies nothing.
//! One [`commit`](Shard::commit) makes all appended records durable with a single fence; only then can a
//! [`Pending`] append turn into a [`Receipt`] with its number.
//!
//! ```
//! use pmem::{Options, Region};
//!
//! let region = Region::open("memory:", &Options { size: Some(1 << 20), ..Options::default() })?;
//! let mut shard = region.into_shard()?;
//! let mut buffer = shard.arena().take().expect("a new store has free buffers");
//! assert!(buffer.arrive(128, b"what the network card wrote"));
//!
//! let mut draft = shard.draft();
//! shard.push(&mut draft, buffer.into_extent(128, 27).expect("the piece lies in the buffer"))?;
//! let pending = shard.append(draft)?;
//! let durable = shard.commit()?;
//! let receipt = durable.confirm(pending).expect("the append came before the commit");
//! assert_eq!(shard.record(receipt.seq).expect("the record is there").to_vec(), b"what the network card wrote");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The medium's layout is described byte by byte in `FORMAT.md`. This crate knows no network.
//!
//! Its modules stand on one another, and none looks up. Below are `format` (the bytes, their names, and what is parsed
//! from them) and `medium` (the memory that holds them, and what is done to it). On these stands `arena` (named buffers),
//! then `log` (records that name them), `recovery` (from what a crash left to a log that can go on), `region` (where the
//! memory comes from, and its shards) and `snapshot` (a store that is only read). `watch` (how far opening has come) and
//! `sum` (sums of words, for whoever checks what arrived) need none of them; `cpu` says to all what the CPU can do, and
//! `safeguard` has a name for each place that the store's promises rest on.

#![allow(unsafe_code)]

mod arena;
mod cpu;
mod format;
mod log;
mod medium;
mod recovery;
mod region;
#[cfg(debug_assertions)]
pub mod safeguard;
#[cfg(not(debug_assertions))]
mod safeguard;
mod snapshot;
mod sum;
mod watch;

pub use arena::{Arena, Buffer, Extent, Shelf};
pub use format::{
    crc::{crc32c, crc32c_append},
    entry::{BufferId, EntryFault, INLINE_BYTES},
    geometry::{DEFAULT_BUFFER_BYTES, Geometry},
    header::HeaderDamage,
    superblock::Contents,
};
pub use log::{
    draft::{Draft, PACK_BYTES},
    error::{AppendError, CommitError, Full},
    findings::{Recovery, Torn},
    proof::{Durable, Pending, Receipt},
    quarantine::{MAX_NAMED, Quarantine},
    record::{CheckedPieces, Lookup, Piece, Record, RecordInfo},
    shard::{Counters, Records, Scrubbed, Shard, Trimmed},
};
pub use medium::{
    DiskSync, Domain, FlushInstruction, LINE_BYTES, LineModel, Medium, ModelKind, Spent, Written,
};
pub use recovery::{error::OpenError, scan::Corruption};
pub use region::{DomainChoice, Kind, MEMORY, Options, Region, RegionInfo, ShardSeed};
pub use snapshot::{PieceName, Shape, ShardReport, Snapshot, SnapshotEvent, SnapshotRecord};
pub use sum::sum_words;
pub use watch::{Step, Watch, Work};
