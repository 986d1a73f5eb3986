//! What keys stand for.

use std::collections::BTreeMap;

use super::dict::Dict;

/// A value, and the record of the log that holds it.
#[derive(Debug)]
pub struct Value {
    /// The record's number.
    pub seq: u64,
    /// The bytes.
    pub data: Data,
}

/// The bytes of a value.
#[derive(Debug)]
pub enum Data {
    /// A short one, which is copied wherever it goes, has a copy in DRAM.
    Short(Box<[u8]>),
    /// A long one lies in persistent memory only: so many bytes of its record, from one on.
    Long {
        /// Where it begins in its record.
        offset: u32,
        /// Its length in bytes.
        len: u32,
    },
}

impl Data {
    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Short(bytes) => bytes.len(),
            Self::Long { len, .. } => *len as usize,
        }
    }

    /// Bytes of DRAM beside the value itself.
    pub(super) fn held_bytes(&self) -> usize {
        match self {
            Self::Short(bytes) => bytes.len(),
            Self::Long { .. } => 0,
        }
    }
}

/// A key's entry.
#[derive(Debug)]
pub struct Entry {
    /// What the key stands for.
    pub object: Object,
    /// When it is gone, in ms since 1970; 0 for never.
    pub expires_ms: u64,
    /// The record that says so.
    pub(super) expiry_seq: u64,
}

/// What a key stands for.
#[derive(Debug)]
pub enum Object {
    /// Bytes.
    String(Value),
    /// Fields and their values.
    Hash(Box<Dict<Value>>),
    /// Values by their positions, which follow one another.
    List(Box<BTreeMap<i64, Value>>),
    /// Members, and the records that hold them.
    Set(Box<Dict<u64>>),
    /// Entries by their numbers.
    Stream(Box<Stream>),
}

impl Object {
    /// What Redis calls it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "string",
            Self::Hash(_) => "hash",
            Self::List(_) => "list",
            Self::Set(_) => "set",
            Self::Stream(_) => "stream",
        }
    }

    /// Whether nothing is left of it. Only a stream may be there without entries.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::String(_) | Self::Stream(_) => false,
            Self::Hash(fields) => fields.is_empty(),
            Self::List(values) => values.is_empty(),
            Self::Set(members) => members.is_empty(),
        }
    }
}

/// The number of a stream's entry: milliseconds, and a count within each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId {
    /// Milliseconds since 1970, mostly.
    pub ms: u64,
    /// The count.
    pub seq: u64,
}

impl StreamId {
    /// No number is higher.
    pub const MAX: Self = Self { ms: u64::MAX, seq: u64::MAX };

    /// The next number; none behind the last.
    pub fn next(self) -> Option<Self> {
        match self.seq.checked_add(1) {
            Some(seq) => Some(Self { seq, ..self }),
            None => Some(Self { ms: self.ms.checked_add(1)?, seq: 0 }),
        }
    }

    /// The number before; none before the first.
    pub fn previous(self) -> Option<Self> {
        match self.seq.checked_sub(1) {
            Some(seq) => Some(Self { seq, ..self }),
            None => Some(Self { ms: self.ms.checked_sub(1)?, seq: u64::MAX }),
        }
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// A stream.
#[derive(Debug, Default)]
pub struct Stream {
    /// Each entry's fields and values: for each its length, and its bytes.
    pub entries: BTreeMap<StreamId, Value>,
    /// The highest number that was given.
    pub last: StreamId,
    /// The record that says so beside the entry itself; 0 for none.
    pub(super) last_seq: u64,
}
