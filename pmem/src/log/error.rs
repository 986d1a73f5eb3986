//! Why a shard refused something.

use std::sync::Arc;

/// Why a record was not appended. Nothing of it is in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// There is no room; trimming old records makes some.
    #[error("the store is full: {0}; trim old records, or make the store larger")]
    Full(Full),
    /// The record is longer than the store takes.
    #[error("the record has {len} bytes or more, and the limit is {max}; split it, or raise the limit")]
    TooLong {
        /// Length that was reached.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// The draft or the piece belongs to another shard.
    #[error("the draft or the buffer belongs to another shard; append it where it was received")]
    Foreign,
    /// A fence failed before; what the medium holds is not known.
    #[error("the store failed before ({why}); open it again")]
    Poisoned {
        /// What the medium said.
        why: Arc<str>,
    },
}

/// What there was no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The free buffers are down to those that are left to the network.
    #[error("{free} buffers are free, and {reserve} are left to the network")]
    Buffers {
        /// Free buffers.
        free: usize,
        /// Buffers that the log does not take.
        reserve: usize,
    },
    /// The log has too few free entries.
    #[error("the record needs {needed} log entries, and {free} are free")]
    LogEntries {
        /// Entries that the record takes.
        needed: u64,
        /// Entries that are free.
        free: u64,
    },
}

/// Why the appended records may not be durable. The shard takes no more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// The medium refused the bytes.
    #[error(
        "making the log durable failed ({why}); nothing since the last commit may be acknowledged: check the medium, then open the store again"
    )]
    Fence {
        /// What the medium said.
        why: Arc<str>,
    },
    /// A fence failed before.
    #[error("the store failed before ({why}); open it again")]
    Poisoned {
        /// What the medium said.
        why: Arc<str>,
    },
}
