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

#![allow(unsafe_code)]

mod arena;
mod crc;
mod device;
mod draft;
mod entry;
mod error;
mod header;
mod medium;
mod quarantine;
mod record;
mod recovery;
mod region;
mod ring;
mod scan;
mod shard;
mod shelf;
mod snapshot;
mod superblock;
mod watch;

pub use arena::{Arena, Buffer, BufferId, DEFAULT_BUFFER_BYTES, Extent};
pub use crc::{crc32c, crc32c_append};
pub use draft::{Draft, PACK_BYTES};
pub use entry::{EntryFault, INLINE_BYTES};
pub use error::{AppendError, CommitError, Full};
pub use header::HeaderDamage;
pub use medium::{Domain, FlushInstruction, LINE_BYTES, LineModel, Medium, Spent};
pub use quarantine::{MAX_NAMED, Quarantine};
pub use record::{CheckedPieces, Lookup, Piece, Record, RecordInfo, Records};
pub use recovery::{Recovery, ShardSeed};
pub use region::{Kind, MEMORY, OpenError, Options, Region, RegionInfo};
pub use scan::{Corruption, Torn};
pub use shard::{Counters, Durable, Pending, Receipt, Shard, Trimmed};
pub use shelf::Shelf;
pub use snapshot::{PieceName, ShardReport, Snapshot, SnapshotEvent, SnapshotRecord};
pub use superblock::{Contents, Geometry};
pub use watch::{Step, Watch, Work};
