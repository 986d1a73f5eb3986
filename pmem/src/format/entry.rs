//! A log entry: 64 bytes that name up to four pieces of buffers, or hold up to 32 bytes themselves.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32, U64},
};

use super::crc;
use crate::safeguard::{Safeguard, omits};

/// Length of an entry: one cache line.
pub(crate) const ENTRY_BYTES: usize = 64;
/// Records up to this length lie in their log entry.
pub const INLINE_BYTES: usize = 32;
/// Pieces of buffers that one entry names.
pub(crate) const ENTRY_EXTENTS: usize = 4;

/// What is written; entries of version 1 are read, too.
const VERSION: u8 = 2;
const FIRST_VERSION: u8 = 1;
const FIRST: u8 = 1 << 0;
const LAST: u8 = 1 << 1;
const INLINE: u8 = 1 << 2;
/// What held a damaged record, and was given up: neither first nor last of anything, but a place that is taken.
const DROPPED: u8 = 1 << 3;

/// One entry of a record. A record is a first, any number of middle, and a last entry, or one that is both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub seq: u64,
    /// The highest number that had been fenced when the entry was written.
    pub durable_seq: u64,
    /// When it was written, in seconds since 1970; 0 where nobody knew.
    pub time_s: u32,
    pub epoch: u32,
    /// CRC-32C of the record's bytes up to the end of this entry.
    pub payload_crc: u32,
    pub is_first: bool,
    pub is_last: bool,
    /// It held a damaged record, which was given up. Such an entry is first and last, and empty.
    pub is_dropped: bool,
    pub body: Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Inline { bytes: [u8; INLINE_BYTES], len: u8 },
    Extents { names: [ExtentName; ENTRY_EXTENTS], count: u8 },
}

/// The name of a buffer: its index in its shard's arena. It means the same bytes at every start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub u32);

/// A piece of a buffer as the log names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct ExtentName {
    pub buffer: BufferId,
    pub offset: u16,
    pub len: u16,
}

/// What is wrong with a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// The file ends before the entry or the bytes that it names.
    #[error("it, or what it names, lies beyond the end of the file or cannot be read")]
    Missing,
    /// All 64 bytes are zero.
    #[error("it was never written")]
    Unwritten,
    /// The entry's own checksum does not match.
    #[error("its checksum does not match")]
    Checksum,
    /// The checksum matches, but the contents make no sense.
    #[error("its fields contradict each other")]
    Malformed,
    /// The slot holds the entry of another lap.
    #[error("its slot holds entry {found}")]
    Seq {
        /// The number found in the slot.
        found: u64,
    },
    /// The epoch is not the one that belongs to the sequence number.
    #[error("it is of epoch {found}, and epoch {expected} belongs there")]
    Epoch {
        /// The epoch found in the entry.
        found: u32,
        /// The epoch that the shard's header and the entries before ask for.
        expected: u32,
    },
    /// The record begins again before its last entry, or begins with a middle entry.
    #[error("it is out of place in its record")]
    Order,
    /// A piece lies outside of the arena's buffers.
    #[error("it names bytes {offset}+{len} of buffer {buffer}, which are not in the arena")]
    Bounds {
        /// The name of the buffer.
        buffer: u32,
        /// Where the piece begins.
        offset: u16,
        /// How long it is.
        len: u16,
    },
    /// The payload's checksum does not match.
    #[error("the checksum of its payload does not match")]
    Payload,
    /// Something, which is not noted here: more was damaged than is kept in words.
    #[error(
        "it was found damaged when the store was opened, with more than is kept in words; verify names it"
    )]
    Unlisted,
    /// It was damaged, and given up by hand.
    #[error("it was damaged, and has been dropped")]
    Dropped,
    /// Another live record names the same bytes.
    #[error("record {other} names bytes of buffer {buffer} that it names too")]
    Shared {
        /// The other record's number.
        other: u64,
        /// The name of the buffer.
        buffer: u32,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    crc: U32,
    version: u8,
    flags: u8,
    count: u8,
    reserved: u8,
    seq: U64,
    /// How far behind `seq` the highest entry is that had been fenced; in version 1 that entry's number, in all eight bytes.
    behind: U32,
    time_s: U32,
    epoch: U32,
    payload_crc: U32,
    body: [u8; INLINE_BYTES],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Default, Clone, Copy)]
#[repr(C)]
struct RawExtent {
    buffer: U32,
    offset: U16,
    len: U16,
}

impl Raw {
    fn of(bytes: &[u8; ENTRY_BYTES]) -> &Self {
        Self::ref_from_bytes(bytes).expect("the lengths are equal, and no field needs alignment")
    }
}

const _: () =
    assert!(size_of::<Raw>() == ENTRY_BYTES && size_of::<[RawExtent; ENTRY_EXTENTS]>() == INLINE_BYTES);

impl Entry {
    /// The entry's bytes; `seed` is the log's, see [`crc_seed`].
    #[inline]
    pub(crate) fn encode(&self, seed: u32) -> [u8; ENTRY_BYTES] {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let mut flags =
            flag(self.is_first, FIRST) | flag(self.is_last, LAST) | flag(self.is_dropped, DROPPED);
        let (count, body) = match &self.body {
            Body::Inline { bytes, len } => {
                flags |= INLINE;
                (*len, *bytes)
            }
            Body::Extents { names, count } => {
                let raw = names.map(|name| RawExtent {
                    buffer: name.buffer.0.into(),
                    offset: name.offset.into(),
                    len: name.len.into(),
                });
                (*count, zerocopy::transmute!(raw))
            }
        };
        let mut raw = Raw {
            crc: 0.into(),
            version: VERSION,
            flags,
            count,
            reserved: 0,
            seq: self.seq.into(),
            // A log has fewer entries than that, and so many at most are not fenced.
            behind: ((self.seq - self.durable_seq) as u32).into(),
            time_s: self.time_s.into(),
            epoch: self.epoch.into(),
            payload_crc: self.payload_crc.into(),
            body,
        };
        raw.crc = crc::crc32c_append(seed, &raw.as_bytes()[4..]).into();
        zerocopy::transmute!(raw)
    }

    /// Reads what [`encode`](Self::encode) wrote, and trusts none of it.
    #[inline]
    pub(crate) fn decode(bytes: &[u8; ENTRY_BYTES], seed: u32) -> Result<Self, EntryFault> {
        let is_whole = Raw::of(bytes).crc.get() == crc::crc32c_append(seed, &bytes[4..]);
        if !is_whole && !omits(Safeguard::EntryChecksum) {
            return Err(if bytes == &[0; ENTRY_BYTES] {
                EntryFault::Unwritten
            } else {
                EntryFault::Checksum
            });
        }
        let raw = Raw::of(bytes);
        let (is_first, is_last) = (raw.flags & FIRST != 0, raw.flags & LAST != 0);
        let is_dropped = raw.flags & DROPPED != 0;
        let body = if raw.flags & INLINE != 0 {
            let body = Body::inline(raw.body, raw.count).filter(|_| is_first && is_last);
            body.filter(|_| !is_dropped || raw.count == 0)
        } else if is_dropped {
            None
        } else {
            Body::extents(zerocopy::transmute!(raw.body), raw.count)
        };
        let known = raw.flags & !(FIRST | LAST | INLINE | DROPPED) == 0 && raw.reserved == 0;
        let (seq, behind, time_s) = (raw.seq.get(), raw.behind.get(), raw.time_s.get());
        let (durable_seq, time_s) = match raw.version {
            VERSION => (seq.checked_sub(behind.into()), time_s),
            FIRST_VERSION => (Some(u64::from(time_s) << 32 | u64::from(behind)), 0),
            _ => (None, 0),
        };
        let durable_seq = durable_seq.filter(|&durable_seq| known && durable_seq < seq);
        let (Some(durable_seq), Some(body)) = (durable_seq, body) else { return Err(EntryFault::Malformed) };
        Ok(Self {
            seq,
            durable_seq,
            time_s,
            epoch: raw.epoch.get(),
            payload_crc: raw.payload_crc.get(),
            is_first,
            is_last,
            is_dropped,
            body,
        })
    }

    /// The pieces that the entry names; none if its bytes are inline.
    #[inline]
    pub(crate) fn extents(&self) -> &[ExtentName] {
        match &self.body {
            Body::Inline { .. } => &[],
            Body::Extents { names, count } => &names[..usize::from(*count)],
        }
    }

    /// The bytes that lie in the entry itself, if they do.
    pub(crate) fn inline(&self) -> Option<&[u8]> {
        match &self.body {
            Body::Inline { bytes, len } => Some(&bytes[..usize::from(*len)]),
            Body::Extents { .. } => None,
        }
    }

    /// Payload bytes of this entry.
    #[inline]
    pub(crate) fn payload_len(&self) -> u64 {
        match &self.body {
            Body::Inline { len, .. } => (*len).into(),
            Body::Extents { .. } => self.extents().iter().map(|name| u64::from(name.len)).sum(),
        }
    }
}

impl Entry {
    /// What stands in the place of a damaged entry that was given up.
    pub(crate) fn dropped(seq: u64, time_s: u32, epoch: u32) -> Self {
        Self {
            seq,
            // It was damage, and not a torn end, because all before was durable.
            durable_seq: seq - 1,
            time_s,
            epoch,
            payload_crc: crc::crc32c(&[]),
            is_first: true,
            is_last: true,
            is_dropped: true,
            body: Body::Inline { bytes: [0; INLINE_BYTES], len: 0 },
        }
    }
}

impl ExtentName {
    /// Where the piece ends in its buffer, or would if that were longer.
    pub(crate) fn end(&self) -> u32 {
        u32::from(self.offset) + u32::from(self.len)
    }

    pub(crate) fn out_of_bounds(&self) -> EntryFault {
        EntryFault::Bounds { buffer: self.buffer.0, offset: self.offset, len: self.len }
    }
}

impl Body {
    fn inline(bytes: [u8; INLINE_BYTES], len: u8) -> Option<Self> {
        let rest = bytes.get(usize::from(len)..)?;
        rest.iter().all(|&byte| byte == 0).then_some(Self::Inline { bytes, len })
    }

    fn extents(raw: [RawExtent; ENTRY_EXTENTS], count: u8) -> Option<Self> {
        let names = raw.map(|extent| ExtentName {
            buffer: BufferId(extent.buffer.get()),
            offset: extent.offset.get(),
            len: extent.len.get(),
        });
        let used = usize::from(count);
        let sound = (1..=ENTRY_EXTENTS).contains(&used)
            && names[..used].iter().all(|name| name.len > 0)
            && names[used..].iter().all(|name| *name == ExtentName::default());
        sound.then_some(Self::Extents { names, count })
    }
}

/// What the checksums of a shard's log begin with: entries of another store or shard never match.
pub(crate) fn crc_seed(store: uuid::Uuid, shard: u32) -> u32 {
    crc::crc32c_append(crc::crc32c(store.as_bytes()), &shard.to_le_bytes())
}
