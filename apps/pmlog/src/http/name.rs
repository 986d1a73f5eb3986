//! How records are named: by a number, and where a store has several shards, by the shard's number before it.

use std::fmt;
use std::str::FromStr;

use super::decimal::decimal;

/// A record's name: `7`, or `1-7` for record 7 of shard 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordName {
    /// The shard; none if the store is taken to have one.
    pub shard: Option<u32>,
    /// The number in its shard.
    pub seq: u64,
}

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

/// Text that names no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record's name is its number, behind that of its shard if the store has several: 7, or 1-7")]
pub struct NoName;

impl FromStr for RecordName {
    type Err = NoName;

    fn from_str(text: &str) -> Result<Self, NoName> {
        let (shard, seq) = match text.split_once('-') {
            Some((shard, seq)) => (Some(small(shard).ok_or(NoName)?), seq),
            None => (None, text),
        };
        Ok(Self { shard, seq: decimal(seq).ok_or(NoName)? })
    }
}

impl fmt::Display for RecordName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shard {
            Some(shard) => write!(out, "{shard}-{}", self.seq),
            None => write!(out, "{}", self.seq),
        }
    }
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
    fn names_are_read_as_they_are_written() {
        for (text, shard, seq) in
            [("7", None, 7), ("0-7", Some(0), 7), ("31-18446744073709551615", Some(31), u64::MAX)]
        {
            let name: RecordName = text.parse().expect("a good name");
            assert_eq!(name, RecordName { shard, seq });
            assert_eq!(name.to_string(), text);
        }
        for text in ["", "-", "-7", "7-", "1-2-3", "+7", "1-+7", "4294967296-7", "x", "1_7"] {
            assert_eq!(text.parse::<RecordName>(), Err(NoName), "{text}");
        }
    }

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
