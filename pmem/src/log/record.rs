//! Records as they are read back.

use std::{collections::VecDeque, fmt, ops::Range};

use super::quarantine::Quarantine;
use crate::{
    arena::Extent,
    format::{
        crc,
        entry::{EntryFault, INLINE_BYTES},
    },
};

/// A durable record, with references to the buffers that hold it: it stays readable when it is trimmed.
#[derive(Clone)]
pub struct Record {
    pub(super) info: RecordInfo,
    pub(super) inline: [u8; INLINE_BYTES],
    pub(super) extents: Vec<Extent>,
    /// For each of its log entries but the last.
    pub(super) checks: Vec<Check>,
}

/// What a log entry says of the bytes up to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    /// Pieces that the entry names.
    pub(super) extents: usize,
    /// CRC-32C of the record's bytes up to the end of the last of them.
    pub(super) crc32c: u32,
}

/// What there is at a number.
#[derive(Debug)]
pub enum Lookup {
    /// A durable record.
    Live(Record),
    /// A record that was durable and cannot be read, or an entry of one.
    Quarantined(Quarantine),
    /// The number lies before the log's head: if there was a record, it is trimmed.
    Trimmed,
    /// Nothing durable yet.
    NotYet,
    /// An entry inside of a record, or number 0: no record has this number, now or ever.
    NoRecord,
}

/// What is known of a record without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordInfo {
    /// The record's number: the sequence number of its first log entry.
    pub seq: u64,
    /// The epoch in which it was written.
    pub epoch: u32,
    /// Length in bytes.
    pub len: u64,
    /// CRC-32C of all its bytes.
    pub crc32c: u32,
    /// Log entries that it takes.
    pub entries: u64,
    /// Pieces of buffers that hold it; 0 if it lies in its log entry.
    pub extents: u32,
    /// When it was appended, in seconds since 1970; 0 where that is not known, as of records of older programs.
    pub time_s: u32,
}

/// Consecutive bytes of a record.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Bytes in a named buffer.
    Extent(Extent),
    /// The bytes of a short record, from its log entry, and how many of them count.
    Inline([u8; INLINE_BYTES], u8),
}

impl Piece {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Extent(extent) => extent.bytes(),
            Self::Inline(bytes, len) => &bytes[..usize::from(*len)],
        }
    }

    /// The part of `len` bytes that begins `from` bytes into this one; none if it would reach beyond the end.
    pub fn slice(self, from: usize, len: usize) -> Option<Self> {
        match self {
            Self::Extent(extent) => extent.slice(from, len).map(Self::Extent),
            Self::Inline(bytes, all) => {
                let part = bytes[..usize::from(all)].get(from..from.checked_add(len)?)?;
                let mut bytes = [0; INLINE_BYTES];
                bytes[..part.len()].copy_from_slice(part);
                Some(Self::Inline(bytes, len as u8))
            }
        }
    }
}

impl Record {
    /// Number, length, checksum.
    pub fn info(&self) -> RecordInfo {
        self.info
    }

    /// The record's number.
    pub fn seq(&self) -> u64 {
        self.info.seq
    }

    /// The epoch in which it was written.
    pub fn epoch(&self) -> u32 {
        self.info.epoch
    }

    /// When it was appended, in seconds since 1970; 0 where that is not known.
    pub fn time_s(&self) -> u32 {
        self.info.time_s
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.info.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.info.len == 0
    }

    /// CRC-32C of all its bytes, as it was when the record was appended.
    pub fn crc32c(&self) -> u32 {
        self.info.crc32c
    }

    /// The record's bytes in order, piece by piece; a record without bytes has none.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let inline = self.extents.is_empty() && !self.is_empty();
        let inline = inline.then(|| Piece::Inline(self.inline, self.info.len as u8));
        inline.into_iter().chain(self.extents.iter().cloned().map(Piece::Extent))
    }

    /// As [`pieces`](Self::pieces), with the record's own references.
    pub fn into_pieces(self) -> impl Iterator<Item = Piece> {
        let inline = self.extents.is_empty() && !self.is_empty();
        let inline = inline.then(|| Piece::Inline(self.inline, self.info.len as u8));
        inline.into_iter().chain(self.extents.into_iter().map(Piece::Extent))
    }

    /// As [`into_pieces`](Self::into_pieces), with each piece's bytes checked against its log entry's checksum before it
    /// is given: one entry's pieces at a time, up to four.
    pub fn into_checked_pieces(self) -> CheckedPieces {
        CheckedPieces {
            info: self.info,
            inline: self.inline,
            rest: self.extents.into(),
            checks: self.checks.into(),
            has_last: true,
            entry: self.info.seq,
            crc: 0,
            checked: 0,
        }
    }

    /// Where its pieces lie in the medium.
    pub(crate) fn places(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.extents.iter().map(|extent| {
            let from = extent.medium_offset();
            from..from + extent.len()
        })
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len() as usize);
        self.pieces().for_each(|piece| bytes.extend_from_slice(piece.bytes()));
        bytes
    }
}

/// A record's bytes in order, checked before they are given. Damage ends them.
pub struct CheckedPieces {
    info: RecordInfo,
    inline: [u8; INLINE_BYTES],
    rest: VecDeque<Extent>,
    /// Of the entries that are not checked yet, but the last.
    checks: VecDeque<Check>,
    /// Whether that is still to be checked.
    has_last: bool,
    /// The entry that is checked next.
    entry: u64,
    /// The checksum of all bytes before it.
    crc: u32,
    /// Pieces at the front of `rest` that are checked.
    checked: usize,
}

impl CheckedPieces {
    /// Passes over the log entries whose bytes all lie before the `bytes`th one, and says how many bytes that is. They are
    /// not read: what follows is checked by what their checksums say of them. To be called before anything is given.
    pub fn skip_entries(&mut self, bytes: u64) -> u64 {
        let mut skipped = 0;
        while self.checked == 0
            && let Some(check) = self.checks.front()
        {
            let len: u64 = self.rest.iter().take(check.extents).map(|extent| extent.len() as u64).sum();
            if skipped + len > bytes {
                break;
            }
            skipped += len;
            self.rest.drain(..check.extents.min(self.rest.len()));
            self.crc = check.crc32c;
            self.entry += 1;
            self.checks.pop_front();
        }
        skipped
    }
}

impl Iterator for CheckedPieces {
    type Item = Result<Piece, Quarantine>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.checked == 0 {
            let check = match self.checks.pop_front() {
                Some(check) => check,
                None if std::mem::take(&mut self.has_last) => {
                    Check { extents: self.rest.len(), crc32c: self.info.crc32c }
                }
                None => return None,
            };
            let inline = (check.extents == 0 && !self.info.is_empty())
                .then_some(Piece::Inline(self.inline, self.info.len as u8));
            let crc = self.rest.iter().take(check.extents).map(Extent::bytes);
            let crc = inline.iter().map(Piece::bytes).chain(crc).fold(self.crc, crc::crc32c_append);
            if crc != check.crc32c {
                self.checks.clear();
                self.has_last = false;
                let RecordInfo { seq, entries, .. } = self.info;
                return Some(Err(Quarantine::new(seq, entries, self.entry, EntryFault::Payload)));
            }
            (self.crc, self.checked) = (crc, check.extents);
            self.entry += 1;
            if check.extents == 0 {
                return inline.map(Ok);
            }
        }
        self.checked -= 1;
        self.rest.pop_front().map(|extent| Ok(Piece::Extent(extent)))
    }
}

impl fmt::Debug for CheckedPieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckedPieces")
            .field("info", &self.info)
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}

impl RecordInfo {
    /// A record of which nothing has been read.
    pub(crate) fn new(seq: u64) -> Self {
        Self { seq, epoch: 0, len: 0, crc32c: 0, entries: 0, extents: 0, time_s: 0 }
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Record").field(&self.info).finish()
    }
}
