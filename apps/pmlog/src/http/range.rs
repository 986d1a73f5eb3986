//! Which of a record's bytes a client wants (RFC 9110, section 14).

use super::decimal::decimal;

/// One range of a record's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `bytes=FIRST-`: from there to the end.
    From(u64),
    /// `bytes=FIRST-LAST`: both of these, and what is between them.
    Between(u64, u64),
    /// `bytes=-COUNT`: so many at the end.
    Last(u64),
}

/// Part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Bytes before it.
    pub first: u64,
    /// Bytes in it, one at least.
    pub bytes: u64,
}

impl ByteRange {
    /// Reads the value of a `Range` field. None if that is anything else than one range of bytes: a range that is not
    /// understood is ignored, and of several at once the record is given whole (section 14.2).
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let equals = value.iter().position(|byte| *byte == b'=')?;
        let (unit, set) = (&value[..equals], value[equals + 1..].trim_ascii());
        if !unit.eq_ignore_ascii_case(b"bytes") {
            return None;
        }
        let dash = set.iter().position(|byte| *byte == b'-')?;
        match (&set[..dash], &set[dash + 1..]) {
            (b"", count) => position(count).map(Self::Last),
            (first, b"") => position(first).map(Self::From),
            (first, last) => {
                let (first, last) = (position(first)?, position(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// What it is of a record of so many bytes; none if the record has none of them (section 14.1.2).
    pub fn of(self, len_bytes: u64) -> Option<Part> {
        let (first, end) = match self {
            Self::From(first) => (first, len_bytes),
            Self::Between(first, last) => (first, last.saturating_add(1).min(len_bytes)),
            Self::Last(count) => (len_bytes.saturating_sub(count), len_bytes),
        };
        (first < end).then(|| Part { first, bytes: end - first })
    }
}

/// A number, however long: no record has a byte at one that is too long for 64 bits.
fn position(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| decimal(digits).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_of_bytes_is_understood_and_anything_else_ignored() {
        for (value, expected) in [
            ("bytes=0-0", Some(ByteRange::Between(0, 0))),
            ("Bytes=5-9", Some(ByteRange::Between(5, 9))),
            ("bytes= 5- ", Some(ByteRange::From(5))),
            ("bytes=-3", Some(ByteRange::Last(3))),
            ("bytes=1-99999999999999999999", Some(ByteRange::Between(1, u64::MAX))),
            ("bytes=99999999999999999999-", Some(ByteRange::From(u64::MAX))),
            ("bytes=9-5", None),
            ("bytes=-", None),
            ("bytes=", None),
            ("bytes", None),
            ("", None),
            ("bytes=a-b", None),
            ("bytes=+1-2", None),
            ("bytes=1-2-3", None),
            ("bytes=0-1,5-6", None),
            ("records=1-2", None),
            ("bytes =1-2", None),
        ] {
            assert_eq!(ByteRange::parse(value.as_bytes()), expected, "{value:?}");
        }
    }

    #[test]
    fn a_range_ends_with_its_record() {
        let part = |first, bytes| Some(Part { first, bytes });
        for (range, len_bytes, expected) in [
            (ByteRange::Between(0, 0), 10, part(0, 1)),
            (ByteRange::Between(3, 9), 10, part(3, 7)),
            (ByteRange::Between(3, u64::MAX), 10, part(3, 7)),
            (ByteRange::Between(10, 12), 10, None),
            (ByteRange::From(9), 10, part(9, 1)),
            (ByteRange::From(10), 10, None),
            (ByteRange::Last(3), 10, part(7, 3)),
            (ByteRange::Last(30), 10, part(0, 10)),
            (ByteRange::Last(0), 10, None),
            (ByteRange::From(0), 0, None),
            (ByteRange::Last(5), 0, None),
        ] {
            assert_eq!(range.of(len_bytes), expected, "{range:?} of {len_bytes}");
        }
    }
}
