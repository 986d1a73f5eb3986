//! Forgetting the oldest records, as far as no more than so many are to be kept.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use pmem::{CommitError, Shard};
use stack::time::Instant;

use super::exchange::Exchange;

/// Between two looks at whether there are too many. What comes in that time may be kept beyond the bounds.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Log entries that one turn looks at: some ten microseconds of it.
const TURN_ENTRIES: u64 = 1024;

/// One bound on what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Bytes in all records together.
    Bytes(u64),
    /// How many records.
    Records(u64),
    /// Seconds since a record was appended.
    AgeS(u32),
}

/// What is kept at least of a store's records: those within all of these bounds. Without one, everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retain {
    bytes: Option<u64>,
    records: Option<u64>,
    age_s: Option<u32>,
}

impl Retain {
    /// All of these bounds.
    ///
    /// # Errors
    /// The bound that is one of a kind too many.
    pub fn of(bounds: &[Bound]) -> Result<Self, Bound> {
        let mut all = Self::default();
        for &bound in bounds {
            let is_second = match bound {
                Bound::Bytes(bytes) => all.bytes.replace(bytes).is_some(),
                Bound::Records(records) => all.records.replace(records).is_some(),
                Bound::AgeS(age_s) => all.age_s.replace(age_s).is_some(),
            };
            if is_second {
                return Err(bound);
            }
        }
        Ok(all)
    }

    /// Whether everything is kept.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }
}

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| {
            format!(
                "{why}; write a size such as 100GiB, an age such as 7d, or a number of records such as 1e9"
            )
        };
        let count =
            || text.parse::<f64>().ok().filter(|_| text.bytes().all(|byte| b"0123456789.e".contains(&byte)));
        let bound = if let Some(count) = count() {
            if count.fract() != 0.0 || count >= (1_u64 << 53) as f64 {
                return Err(bad("that is no number of records"));
            }
            Self::Records(count as u64)
        } else if text.ends_with(['b', 'B']) {
            Self::Bytes(text.parse::<ByteSize>().map_err(|_| bad("that is no size"))?.as_u64())
        } else if text.ends_with('M') {
            return Err(bad("M is a month to some and a megabyte to others: say which, as 1month or 1MB"));
        } else {
            let age = humantime::parse_duration(text).map_err(|_| bad("that is neither"))?;
            Self::AgeS(
                u32::try_from(age.as_secs()).map_err(|_| bad("that is longer than any record is old"))?,
            )
        };
        match bound {
            Self::Bytes(0) | Self::Records(0) | Self::AgeS(0) => Err(bad("nothing at all would be kept")),
            bound => Ok(bound),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bytes(bytes) => write!(f, "{}", ByteSize(bytes)),
            Self::Records(records) => write!(f, "{records} records"),
            Self::AgeS(age_s) => {
                write!(f, "{}", humantime::format_duration(Duration::from_secs(age_s.into())))
            }
        }
    }
}

impl fmt::Display for Retain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds =
            [self.bytes.map(Bound::Bytes), self.records.map(Bound::Records), self.age_s.map(Bound::AgeS)];
        for (place, bound) in bounds.into_iter().flatten().enumerate() {
            write!(f, "{}{bound}", if place == 0 { "" } else { ", " })?;
        }
        if self.is_all() { f.write_str("everything") } else { Ok(()) }
    }
}

/// Trims one core's shards.
#[derive(Debug)]
pub(super) struct Keeper {
    retain: Retain,
    next: Instant,
    /// For each of the core's shards, how far records are of unknown time from its head on.
    untimed: Vec<u64>,
}

impl Keeper {
    /// For a core with so many shards.
    pub(super) fn new(retain: Retain, shards: usize, now: Instant) -> Self {
        Self { retain, next: now, untimed: vec![0; shards] }
    }

    /// Whether it is time to look.
    #[inline]
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next && !self.retain.is_all()
    }

    /// Trims what lies beyond the bounds, as far as one turn goes. `shards` are the core's own, which have said to the
    /// exchange how they are, with their numbers; whether anything was trimmed.
    pub(super) fn turn<'a>(
        &mut self,
        now: Instant,
        now_s: u32,
        exchange: &Exchange,
        shards: impl Iterator<Item = (u32, &'a mut Shard)>,
    ) -> Result<bool, CommitError> {
        let Retain { bytes, records, age_s } = self.retain;
        let mut has_trimmed = false;
        self.next = now + LOOK_EVERY;
        for ((index, shard), untimed) in shards.zip(&mut self.untimed) {
            exchange.publish(std::iter::once((index, &*shard)));
            exchange.publish_oldest(index, oldest(shard));
            // The oldest records of all shards go first, so that whose head is the oldest trims, and nobody else.
            let others = exchange.oldest_but(index);
            let held = exchange.held();
            let beyond = |bound: Option<u64>, held: u64| bound.map_or(0, |bound| held.saturating_sub(bound));
            let (mut bytes_beyond, mut records_beyond) =
                (beyond(bytes, held.bytes), beyond(records, held.records));
            let head = shard.head_seq();
            *untimed = (*untimed).max(head);
            let is_counted = bytes_beyond > 0 || records_beyond > 0;
            let from = if is_counted || age_s.is_none() { head } else { *untimed };
            let (mut before, mut left) = (head, TURN_ENTRIES);
            for info in shard.records(from) {
                let end = info.seq + info.entries;
                let is_oldest = (u64::from(info.time_s), index) <= others;
                let is_old = age_s.is_some_and(|age_s| {
                    info.time_s > 0 && u64::from(info.time_s) + u64::from(age_s) < now_s.into()
                });
                if is_old || is_oldest && (bytes_beyond > 0 || records_beyond > 0) {
                    before = end;
                } else if age_s.is_some() && info.time_s == 0 {
                    // It is as old as the next record that has a time, at the least.
                    *untimed = end;
                } else {
                    break;
                }
                bytes_beyond = bytes_beyond.saturating_sub(info.len);
                records_beyond = records_beyond.saturating_sub(1);
                left = left.saturating_sub(info.entries);
                if left == 0 {
                    self.next = now;
                    break;
                }
            }
            if before > head {
                shard.trim(before)?;
                exchange.publish(std::iter::once((index, &*shard)));
                exchange.publish_oldest(index, oldest(shard));
                has_trimmed = true;
            }
        }
        Ok(has_trimmed)
    }
}

/// The time of a shard's oldest record; that of no record at all if it has none.
fn oldest(shard: &Shard) -> u64 {
    shard.records(0).next().map_or(u64::MAX, |info| info.time_s.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_sizes_ages_and_counts() {
        for (text, bound, said) in [
            ("100GiB", Bound::Bytes(100 << 30), "100.0 GiB"),
            ("5MB", Bound::Bytes(5_000_000), "4.8 MiB"),
            ("12b", Bound::Bytes(12), "12 B"),
            ("7d", Bound::AgeS(7 * 86_400), "7days"),
            ("1h 30m", Bound::AgeS(5400), "1h 30m"),
            ("1e9", Bound::Records(1_000_000_000), "1000000000 records"),
            ("1", Bound::Records(1), "1 records"),
        ] {
            let parsed: Bound = text.parse().expect("a bound");
            assert_eq!((parsed, parsed.to_string()), (bound, said.to_owned()), "{text}");
        }
        for text in
            ["", "0", "0B", "0s", "5M", "1.5", "-1", "1e30", "x", "GiB", "7 parsecs", "200y", "1e", "inf"]
        {
            assert!(text.parse::<Bound>().is_err(), "{text}");
        }
        let error = "5M".parse::<Bound>().unwrap_err();
        assert!(error.contains("1month") && error.contains("100GiB"), "{error}");
    }

    #[test]
    fn there_is_one_bound_of_each_kind() {
        let [size, age, count] = ["1GiB", "7d", "1e6"].map(|text| text.parse::<Bound>().expect("a bound"));
        let all = Retain::of(&[size, age, count]).expect("one of each");
        assert_eq!(all.to_string(), "1.0 GiB, 1000000 records, 7days");
        assert!(!all.is_all() && Retain::default().is_all());
        assert_eq!(Retain::of(&[size, age, "2GiB".parse().expect("a bound")]), Err(Bound::Bytes(2 << 30)));
    }
}
