//! How records are named: by a number, and where a store has several shards, by the shard's number before it.

use std::fmt;
use std::str::FromStr;

/// A record's name: `7`, or `1-7` for record 7 of shard 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordName {
    /// The shard; none if the store is taken to have one.
    pub shard: Option<u32>,
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
            Some((shard, seq)) => (Some(number(shard)?), seq),
            None => (None, text),
        };
        Ok(Self { shard, seq: number(seq)? })
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

/// Digits and nothing else: a sign would be taken, too.
fn number<N: FromStr>(text: &str) -> Result<N, NoName> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or(NoName)
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
}
