//! Shards on their way to the threads that will own them.

use std::sync::Arc;

use super::deferred::Deferred;
use crate::{
    log::shard::Shard,
    recovery::{UnopenedShard, error::OpenError},
};

/// A shard that is not open yet; can be sent to the thread that will own it.
pub struct ShardSeed {
    // Undone, if it comes to that, while the medium is still there.
    pub(super) deferred: Arc<Deferred>,
    pub(super) shard: UnopenedShard,
}

impl ShardSeed {
    /// Which shard of its region this is.
    pub fn index(&self) -> u32 {
        self.shard.index
    }

    /// Where the shard's arena is mapped, and its length in bytes; both whole pages. Devices can be given it
    /// before anything of the shard is written, and the shard left as it is if they refuse.
    pub fn arena_memory(&self) -> (*const u8, usize) {
        let UnopenedShard { geometry, medium, .. } = &self.shard;
        let offset = geometry.arena_of(self.shard.index);
        (medium.base().as_ptr().wrapping_add(offset), geometry.arena_bytes(self.shard.index))
    }

    /// Recovers the shard, and opens it for the thread that calls this. With the first shard of a region, what opening
    /// the region left to be written is written first: a new store, say.
    ///
    /// The log is scanned from its head. What is found beyond the known-durable part is flushed and fenced: after
    /// a killed process those bytes may sit in the CPU's caches only. Records that were durable and are damaged are passed
    /// over: see [`Shard::quarantines`]. Then the epoch rises above that of
    /// every shard of the region, with its first sequence number, so that entries beyond the end can never come back
    /// to life.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] if both copies of the shard's header are damaged; [`OpenError::Io`] if the medium fails;
    /// [`OpenError::Interrupted`] if the watch ended it, and then nothing of the shard was changed.
    pub fn open(self) -> Result<Shard, OpenError> {
        let Self { deferred, shard } = self;
        shard.open(|| deferred.finish())
    }
}
