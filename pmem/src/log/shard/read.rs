//! Reading records back.

use super::{
    super::{
        quarantine::Quarantine,
        record::{Check, Lookup, Record, RecordInfo},
    },
    Shard,
};
use crate::format::entry::{Body, Entry, EntryFault, INLINE_BYTES};

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
            Ok(Some(record)) => {
                self.ahead.expect_only(record.places());
                Lookup::Live(record)
            }
            Ok(None) => Lookup::NoRecord,
            // It could be read when the store was opened.
            Err((entry, fault)) => Lookup::Quarantined(Quarantine::new(seq, entry + 1 - seq, entry, fault)),
        }
    }

    /// Reads the record that begins with this entry; else the entry that is wrong, and how.
    fn read_record(&self, seq: u64) -> Result<Option<Record>, (u64, EntryFault)> {
        let mut info = RecordInfo::new(seq);
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
            if at == seq {
                // Most records end here.
                record.extents.reserve_exact(entry.extents().len());
            }
            for name in entry.extents() {
                let extent = self.arena().logged_extent(name.buffer, name.offset, name.len);
                record.extents.push(extent.ok_or(fail(name.out_of_bounds()))?);
            }
            if !entry.is_last {
                record.checks.push(Check { extents: entry.extents().len(), crc32c: entry.payload_crc });
            }
            info.epoch = entry.epoch;
            info.time_s = entry.time_s;
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
    pub(super) fn info(&self, seq: u64) -> Option<RecordInfo> {
        if seq < self.head_seq() || seq >= self.committed_seq() || self.quarantined().holds(seq) {
            return None;
        }
        let mut entry = self.entry(seq).ok().filter(|entry| entry.is_first && !entry.is_dropped)?;
        let mut info = RecordInfo { epoch: entry.epoch, time_s: entry.time_s, ..RecordInfo::new(seq) };
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
