//! Appends before and after they are durable, and what proves the difference.

use std::{fmt, time::Duration};

/// An append that may not be durable yet. It has no number to show before [`Durable::confirm`].
#[must_use = "the record is not durable before a commit confirms it"]
pub struct Pending {
    shard: u64,
    receipt: Receipt,
}

/// Proof that a shard's log is durable up to some record. Only [`Shard::commit`](crate::Shard::commit) makes one.
#[derive(Debug)]
pub struct Durable {
    shard: u64,
    /// Every entry below is durable.
    next: u64,
    took: Duration,
}

/// A durable record's number. Only [`Durable::confirm`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The record's number.
    pub seq: u64,
    /// Its length in bytes.
    pub len: u64,
    /// CRC-32C of its bytes.
    pub crc32c: u32,
    /// The epoch in which it was written.
    pub epoch: u32,
}

impl Pending {
    #[inline]
    pub(super) fn new(shard: u64, receipt: Receipt) -> Self {
        Self { shard, receipt }
    }
}

impl Durable {
    pub(super) fn new(shard: u64, next: u64, took: Duration) -> Self {
        Self { shard, next, took }
    }

    /// How long the commit took, from its beginning until the medium said that it is done; zero if there was nothing to
    /// commit. It is for statistics.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Whether all before this number is durable by it. It is a number of the shard that this is of.
    #[inline]
    pub fn reaches(&self, next: u64) -> bool {
        next <= self.next
    }

    /// Turns an append into its receipt.
    ///
    /// # Errors
    /// The append itself, if it came after this commit or belongs to another shard.
    #[inline]
    pub fn confirm(&self, pending: Pending) -> Result<Receipt, Pending> {
        if pending.shard == self.shard && pending.receipt.seq < self.next {
            Ok(pending.receipt)
        } else {
            Err(pending)
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending { .. }")
    }
}
