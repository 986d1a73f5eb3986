//! The log of one core: records that name pieces of its arena's buffers, appended, made durable, read and trimmed.

pub(crate) mod draft;
pub(crate) mod error;
pub(crate) mod findings;
pub(crate) mod header;
pub(crate) mod proof;
pub(crate) mod quarantine;
pub(crate) mod record;
pub(crate) mod ring;
pub(crate) mod shard;
pub(crate) mod tally;
