//! Records as they are read back.

use std::{collections::VecDeque, fmt};

use crate::{
    arena::Extent,
    crc,
    entry::{Body, Entry, EntryFault, INLINE_BYTES},
    quarantine::Quarantine,
    shard::Shard,
};

/// A durable record, with references to the buffers that hold it: it stays readable when it is trimmed.
#[derive(Clone)]
pub struct Record {
    info: RecordInfo,
    inline: [u8; INLINE_BYTES],
    extents: Vec<Extent>,
    /// For each of its log entries.
    checks: Vec<Check>,
}

/// What a log entry says of the bytes up to its end.
#[derive(Clone, Copy, Debug)]
struct Check {
    /// Pieces that the entry names.
    extents: usize,
    /// CRC-32C of the record's bytes up to the end of the last of them.
    crc32c: u32,
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

    /// As [`into_pieces`](Self::into_pieces), with each piece's bytes checked against its log entry's checksum before it
    /// is given: one entry's pieces at a time, up to four.
    pub fn into_checked_pieces(self) -> CheckedPieces {
        CheckedPieces {
            info: self.info,
            inline: self.inline,
            rest: self.extents.into(),
            checks: self.checks.into(),
            entry: self.info.seq,
            crc: 0,
            checked: 0,
        }
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
    /// Of the entries that are not checked yet.
    checks: VecDeque<Check>,
    /// The entry that is checked next.
    entry: u64,
    /// The checksum of all bytes before it.
    crc: u32,
    /// Pieces at the front of `rest` that are checked.
    checked: usize,
}

impl Iterator for CheckedPieces {
    type Item = Result<Piece, Quarantine>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.checked == 0 {
            let check = self.checks.pop_front()?;
            let inline = (check.extents == 0 && !self.info.is_empty())
                .then_some(Piece::Inline(self.inline, self.info.len as u8));
            let crc = self.rest.iter().take(check.extents).map(Extent::bytes);
            let crc = inline.iter().map(Piece::bytes).chain(crc).fold(self.crc, crc::crc32c_append);
            if crc != check.crc32c {
                self.checks.clear();
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
    fn is_empty(&self) -> bool {
        self.len == 0
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
    /// The durable record with this number, if there is one that can be read.
    pub fn record(&self, seq: u64) -> Option<Record> {
        match self.lookup(seq) {
            Lookup::Live(record) => Some(record),
            _ => None,
        }
    }

    /// What there is at a number. The record's log entries are checked, its payload is not: see
    /// [`Record::into_checked_pieces`].
    pub fn lookup(&self, seq: u64) -> Lookup {
        if seq == 0 {
            return Lookup::NoRecord;
        }
        if seq < self.head_seq() {
            return Lookup::Trimmed;
        }
        if seq >= self.committed_seq() {
            return Lookup::NotYet;
        }
        if let Some(quarantine) = self.quarantined().get(seq) {
            return Lookup::Quarantined(quarantine);
        }
        match self.read_record(seq) {
            Ok(Some(record)) => Lookup::Live(record),
            Ok(None) => Lookup::NoRecord,
            // It could be read when the store was opened.
            Err((entry, fault)) => Lookup::Quarantined(Quarantine::new(seq, entry + 1 - seq, entry, fault)),
        }
    }

    /// Reads the record that begins with this entry; else the entry that is wrong, and how.
    fn read_record(&self, seq: u64) -> Result<Option<Record>, (u64, EntryFault)> {
        let mut info = RecordInfo { seq, epoch: 0, len: 0, crc32c: 0, entries: 0, extents: 0 };
        let mut record = Record { info, inline: [0; INLINE_BYTES], extents: Vec::new(), checks: Vec::new() };
        loop {
            let at = seq + info.entries;
            let fail = |fault| (at, fault);
            let entry = self.entry(at).map_err(fail)?;
            if entry.is_first != (at == seq) || at >= self.committed_seq() {
                return if at == seq { Ok(None) } else { Err(fail(EntryFault::Order)) };
            }
            if entry.is_dropped {
                return Err(fail(EntryFault::Dropped));
            }
            if let Body::Inline { bytes, .. } = entry.body {
                record.inline = bytes;
            }
            for name in entry.extents() {
                let extent = self.arena().logged_extent(name.buffer, name.offset, name.len);
                record.extents.push(extent.ok_or(fail(name.out_of_bounds()))?);
            }
            record.checks.push(Check { extents: entry.extents().len(), crc32c: entry.payload_crc });
            info.epoch = entry.epoch;
            info.len += entry.payload_len();
            info.extents += entry.extents().len() as u32;
            info.entries += 1;
            info.crc32c = entry.payload_crc;
            if entry.is_last {
                return Ok(Some(Record { info, ..record }));
            }
        }
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
            // What cannot be read has the epoch of what follows, as far as anybody can tell.
            let readable = self.first_readable(middle, high);
            if readable.is_some_and(|(_, entry)| entry.epoch < epoch) {
                low = readable.map_or(middle, |(seq, _)| seq) + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The first durable record with this number or a higher one. What is in quarantine is passed over.
    fn next_record(&self, from: u64) -> Option<RecordInfo> {
        let mut seq = from.max(self.head_seq());
        loop {
            seq = self.quarantined().skip(seq, self.committed_seq());
            if seq >= self.committed_seq() {
                return None;
            }
            if let Some(info) = self.info(seq) {
                return Some(info);
            }
            seq += 1;
        }
    }

    /// The first entry in a range that can be read.
    fn first_readable(&self, from: u64, to: u64) -> Option<(u64, Entry)> {
        let mut seq = from;
        loop {
            seq = self.quarantined().skip(seq, to);
            if seq >= to {
                return None;
            }
            if let Ok(entry) = self.entry(seq) {
                return Some((seq, entry));
            }
            seq += 1;
        }
    }

    /// The durable record that begins with this entry.
    pub(crate) fn info(&self, seq: u64) -> Option<RecordInfo> {
        if seq < self.head_seq() || seq >= self.committed_seq() || self.quarantined().holds(seq) {
            return None;
        }
        let mut entry = self.entry(seq).ok().filter(|entry| entry.is_first && !entry.is_dropped)?;
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
