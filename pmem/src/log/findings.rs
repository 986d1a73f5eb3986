//! What opening a shard found.

use std::fmt;

use super::quarantine::Quarantine;
use crate::format::{entry::EntryFault, header::HeaderDamage};

/// What opening a shard found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// Records in the log.
    pub records: u64,
    /// Their payload bytes.
    pub payload_bytes: u64,
    /// Records that were complete but not known to be durable; now they are.
    pub rescued_entries: u64,
    /// Damaged records, or runs of damaged entries, that are in the log and are passed over.
    pub quarantined: u64,
    /// What lies behind the last record, if it looks like an append that a crash cut short.
    pub torn: Option<Torn>,
    /// The copy of the shard's header that could not be read and was written again, if one could not.
    pub header_damage: Option<HeaderDamage>,
}

/// Damaged records that are named in the log when a shard is opened; all of them are counted.
const MAX_WARNED: usize = 16;

impl Recovery {
    /// Tells the program's own log of all damage.
    pub(crate) fn warn(&self, shard: u32, damaged: &[Quarantine]) {
        if let Some(damage) = self.header_damage {
            tracing::warn!(shard, "{damage}; it was written again");
        }
        for damage in damaged.iter().take(MAX_WARNED) {
            tracing::warn!(shard, "{damage}; it is passed over");
        }
        if self.quarantined > MAX_WARNED as u64 {
            tracing::warn!(shard, damaged = self.quarantined, "further damaged records are passed over");
        }
        if let Some(torn) = &self.torn {
            tracing::warn!(shard, "the log ends before its end: {torn}");
        }
    }
}

/// What lies behind the last record, where that is more than nothing: an append without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Torn {
    /// The number that its record would have had.
    pub seq: u64,
    /// The entry that is wrong.
    pub entry: u64,
    /// What is wrong with it.
    pub fault: EntryFault,
    /// The last complete entry of the same opening behind it, if there are any: they are cut off with it.
    pub behind: Option<u64>,
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seq, entry, fault, behind } = self;
        match fault {
            EntryFault::Payload | EntryFault::Bounds { .. } => {
                write!(f, "the log entries of record {seq} are complete, but in entry {entry} {fault}")?;
            }
            _ => write!(f, "log entry {entry} of record {seq} is incomplete: {fault}")?,
        }
        if let Some(behind) = behind {
            write!(f, "; complete entries up to {behind} lie behind it, and are cut off with it")?;
        }
        f.write_str(
            "; a power cut before the commit leaves that, and then nobody was told that it is stored; somebody was if the \
             medium has since lost or altered what it had confirmed",
        )
    }
}
