//! Records as they are read back.

use std::fmt;

use crate::{
    arena::Extent,
    entry::{Body, INLINE_BYTES},
    shard::Shard,
};

/// A durable record, with references to the buffers that hold it: it stays readable when it is trimmed.
#[derive(Clone)]
pub struct Record {
    info: RecordInfo,
    inline: [u8; INLINE_BYTES],
    extents: Vec<Extent>,
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

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len() as usize);
        self.pieces().for_each(|piece| bytes.extend_from_slice(piece.bytes()));
        bytes
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Record").field(&self.info).finish()
    }
}

/// The durable records of a shard, oldest first.
#[derive(Debug)]
pub struct Records<'a> {
    shard: &'a Shard,
    next: u64,
}

impl Iterator for Records<'_> {
    type Item = RecordInfo;

    fn next(&mut self) -> Option<RecordInfo> {
        let info = self.shard.next_record(self.next)?;
        self.next = info.seq + info.entries;
        Some(info)
    }
}

impl Shard {
    /// The durable record with this number.
    pub fn record(&self, seq: u64) -> Option<Record> {
        let info = self.info(seq)?;
        let mut record = Record { info, inline: [0; INLINE_BYTES], extents: Vec::new() };
        record.extents.reserve_exact(info.extents as usize);
        for seq in seq..seq + info.entries {
            let entry = self.entry(seq).ok()?;
            if let Body::Inline { bytes, .. } = entry.body {
                record.inline = bytes;
            }
            for name in entry.extents() {
                record.extents.push(self.arena().logged_extent(name.buffer, name.offset, name.len)?);
            }
        }
        Some(record)
    }

    /// The durable records with this number and higher.
    pub fn records(&self, from: u64) -> Records<'_> {
        Records { shard: self, next: from }
    }

    /// The number of the first durable record of this epoch or a later one; of the next record if there is none.
    pub fn first_of_epoch(&self, epoch: u32) -> u64 {
        // Epochs never fall along the log.
        let (mut low, mut high) = (self.head_seq(), self.committed_seq());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle).is_ok_and(|entry| entry.epoch < epoch) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The first durable record with this number or a higher one.
    fn next_record(&self, from: u64) -> Option<RecordInfo> {
        let from = from.max(self.head_seq());
        (from..self.committed_seq()).find_map(|seq| self.info(seq))
    }

    /// The durable record that begins with this entry.
    pub(crate) fn info(&self, seq: u64) -> Option<RecordInfo> {
        if seq < self.head_seq() || seq >= self.committed_seq() {
            return None;
        }
        let mut entry = self.entry(seq).ok().filter(|entry| entry.is_first)?;
        let mut info = RecordInfo { seq, epoch: entry.epoch, len: 0, crc32c: 0, entries: 0, extents: 0 };
        loop {
            info.len += entry.payload_len();
            info.extents += entry.extents().len() as u32;
            info.entries += 1;
            if entry.is_last {
                info.crc32c = entry.payload_crc;
                return Some(info);
            }
            let next = seq + info.entries;
            entry = self.entry(next).ok().filter(|entry| next < self.committed_seq() && !entry.is_first)?;
        }
    }
}
