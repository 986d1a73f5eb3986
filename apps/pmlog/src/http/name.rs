//! How records are named, and positions in the order of all.

use super::decimal::decimal;

pub use program::store::{NoName, RecordName};

/// A position in the order of all records: by epoch, then shard, then number. It is written `3-1-7`, and need not be
/// that of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The epoch.
    pub epoch: u32,
    /// The shard.
    pub shard: u32,
    /// The number in its shard.
    pub seq: u64,
}

impl Position {
    /// Reads `3-1-7`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (epoch, rest) = text.split_once('-')?;
        let (shard, seq) = rest.split_once('-')?;
        Some(Self { epoch: small(epoch)?, shard: small(shard)?, seq: decimal(seq)? })
    }
}

fn small(text: &str) -> Option<u32> {
    u32::try_from(decimal(text)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_in_the_order_of_epoch_shard_and_number() {
        let mut positions = ["2-0-1", "1-1-9", "1-0-10", "1-1-2", "1-0-9"]
            .map(|text| Position::parse(text).expect("a position"));
        positions.sort();
        let sorted = ["1-0-9", "1-0-10", "1-1-2", "1-1-9", "2-0-1"]
            .map(|text| Position::parse(text).expect("a position"));
        assert_eq!(positions, sorted);
        for text in ["7", "1-7", "1-2-3-4", "4294967296-0-1", "1--1"] {
            assert_eq!(Position::parse(text), None, "{text}");
        }
    }
}
