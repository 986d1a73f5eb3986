//! What the golden images hold: content that follows from where a record lies, and what there is at a number.

use pmem::{Lookup, Shard};

/// The bytes of a record of this shard, number and length.
pub fn content(shard: usize, seq: u64, len: usize) -> Vec<u8> {
    (0..)
        .flat_map(|line| format!("record {seq} of shard {shard}, line {line}\n").into_bytes())
        .take(len)
        .collect()
}

/// When a record was appended: a minute after the number before it. Version 1 did not say.
pub fn time_s(version: u32, seq: u64) -> u32 {
    if version == 1 { 0 } else { 1_700_000_000 + 60 * seq as u32 }
}

/// What a shard has at a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub state: String,
    /// Of a record that can be read.
    pub len: u64,
}

pub fn state(shard: &Shard, seq: u64) -> Entry {
    let (state, len) = match shard.lookup(seq) {
        Lookup::Live(record) => ("live", record.len()),
        Lookup::Quarantined(damage) if damage.fault == pmem::EntryFault::Dropped => ("dropped", 0),
        Lookup::Quarantined(_) => ("damaged", 0),
        Lookup::NoRecord => ("inside", 0),
        Lookup::Trimmed => ("trimmed", 0),
        Lookup::NotYet => ("nothing", 0),
    };
    Entry { state: state.into(), len }
}
