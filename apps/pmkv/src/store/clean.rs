//! Cleaning: what of the log's oldest records is live is written again behind its end, and the head goes on.
//!
//! The log is cleaned while it takes more than half of the store and enough of that is garbage, some records at a time,
//! between bursts; more of them the less room there is.

use pmem::{AppendError, CommitError, Full, Lookup, Shard};

use super::format::{Change, Reader, code, position};
use super::object::{Data, Object, Value};
use super::{Source, Store};

/// Bytes of records that one turn reads, and while there is little room; and records.
const TURN_BYTES: u64 = 64 * 1024;
const TURN_RECORDS: u64 = 256;
/// How many times as much as has come since the last turn one turn cleans, at least; and while there is little room. Else what
/// comes in bursts would fill the store with garbage.
const AHEAD: u64 = 2;
const HURRIED_AHEAD: u64 = 6;
/// Trimming takes two fences, and waits for so many records, for a share of the store, or for the end.
const TRIM_RECORDS: u64 = 1024;
const TRIM_SHARE: u64 = 32;

/// Buffers that a record may take beyond those that its bytes fill.
const SPARE_BUFFERS: usize = 8;

/// How far cleaning has come.
#[derive(Debug, Default)]
pub(super) struct Cleaning {
    /// The first record that was not looked at; what is live of those before is written again.
    next: u64,
    /// Behind the last record that was written again: all before has to be durable before the log is trimmed.
    written: u64,
    /// Records that were looked at since the log was trimmed, and their bytes.
    records: u64,
    bytes: u64,
    /// What had come by the last turn: records and their bytes.
    seen: (u64, u64),
    /// Bytes that were written again.
    pub(super) moved_bytes: u64,
}

/// Why cleaning failed, and the store with it.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// The log did not take what was live.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The log could not be trimmed.
    #[error(transparent)]
    Trim(#[from] CommitError),
}

impl Store {
    /// Bytes that cleaning has written again.
    pub fn moved_bytes(&self) -> u64 {
        self.cleaning.moved_bytes
    }

    /// Cleans some records, if it is time; whether it was.
    ///
    /// # Errors
    /// The store cannot go on.
    pub fn clean(&mut self, shard: &mut Shard) -> Result<bool, CleanError> {
        let counters = shard.counters();
        let seen = (counters.appended_records, counters.payload_bytes);
        let come = (seen.0 - self.cleaning.seen.0, seen.1 - self.cleaning.seen.1);
        let is_due = self.is_dirty(shard);
        if !is_due {
            self.cleaning.seen = seen;
        }
        let cleaned_to = self.cleaning.next;
        let share = shard.arena().len_bytes() as u64 / TRIM_SHARE;
        let is_enough = self.cleaning.records >= TRIM_RECORDS
            || self.cleaning.bytes >= share
            || cleaned_to >= shard.committed_seq()
            || !is_due;
        if is_enough && cleaned_to > shard.head_seq() && self.cleaning.written <= shard.committed_seq() {
            shard.trim(cleaned_to)?;
            (self.cleaning.records, self.cleaning.bytes) = (0, 0);
        }
        // What is trimmed and not free yet comes first.
        if !is_due || shard.tend() {
            return Ok(is_due);
        }
        let is_hurried = !self.has_share_free(shard, 4);
        let ahead = if is_hurried { HURRIED_AHEAD } else { AHEAD };
        let most_records = (ahead * come.0).max(TURN_RECORDS);
        let budget = (ahead * come.1).max(TURN_BYTES.min(share));
        self.begin(shard);
        let from = self.cleaning.next.max(shard.head_seq());
        let mut to = from;
        let (mut bytes, mut records) = (0, 0);
        while bytes < budget && records < most_records {
            let Some(info) = shard.records(to).next().filter(|info| info.seq < self.seq) else { break };
            match self.clean_record(info.seq, shard) {
                Ok(()) => {}
                // It is longer than what is left: what makes room is that somebody removes it.
                Err(AppendError::Full(_)) => break,
                Err(error) => return Err(error.into()),
            }
            to = info.seq + info.entries;
            bytes += info.len;
            records += 1;
        }
        self.cleaning.next = to;
        self.cleaning.records += records;
        self.cleaning.bytes += bytes;
        self.cleaning.moved_bytes += self.batch.len() as u64;
        self.cleaning.seen = seen;
        if let Some(pending) = self.finish(shard)? {
            // It is durable with the next commit, as the log's order has it.
            drop(pending);
            self.cleaning.written = shard.next_seq();
            let counters = shard.counters();
            self.cleaning.seen = (counters.appended_records, counters.payload_bytes);
        }
        Ok(to > from)
    }

    /// Whether a share of the store is free, of buffers and of log entries.
    fn has_share_free(&self, shard: &Shard, share: u64) -> bool {
        let arena = shard.arena();
        let free = (arena.free_buffers().saturating_sub(shard.reserve())) as u64;
        free * share >= arena.buffers() as u64 && shard.free_log_entries() * share >= shard.log_entries()
    }

    /// Whether the record takes so many more bytes, all of which are copied when it is appended.
    fn fits(&self, bytes: usize, shard: &Shard) -> Result<(), AppendError> {
        let (free, reserve) = (shard.arena().free_buffers(), shard.reserve());
        // Some are left to commands that make room.
        let spare = SPARE_BUFFERS + shard.arena().buffers() / 64;
        let needed = (self.batch.len() + bytes) / shard.arena().buffer_bytes() + spare;
        if reserve + needed <= free {
            Ok(())
        } else {
            Err(AppendError::Full(Full::Buffers { free, reserve }))
        }
    }

    /// Whether there is too little room, and enough garbage to make some.
    fn is_dirty(&self, shard: &Shard) -> bool {
        if self.has_share_free(shard, 2) {
            return false;
        }
        let counters = shard.counters();
        let records = counters.live_records.max(1);
        // Garbage in bytes, or records that hold less than they might.
        counters.live_payload_bytes > self.live_bytes + self.live_bytes / 8
            || records > 2 * (self.things() / 4 + self.live_bytes / shard.arena().buffer_bytes() as u64 + 64)
    }

    /// About as many things as can be changed on their own.
    fn things(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Writes again what is live of one record.
    fn clean_record(&mut self, seq: u64, shard: &Shard) -> Result<(), AppendError> {
        let Lookup::Live(record) = shard.lookup(seq) else { return Ok(()) };
        let mut reader = Reader::of_record(record.clone());
        // It could be read when the store was opened, or was written since.
        while let Ok(Some((key, change))) = reader.change() {
            self.clean_change(&key, &change, seq, shard)?;
        }
        Ok(())
    }

    fn clean_change(
        &mut self,
        key: &[u8],
        change: &Change,
        seq: u64,
        shard: &Shard,
    ) -> Result<(), AppendError> {
        let Some(entry) = self.keys.get(key) else { return Ok(()) };
        let expires_ms = entry.expires_ms;
        let end = self.batch.end();
        match (change, &entry.object) {
            (Change::String { .. }, Object::String(value)) if value.seq == seq => {
                self.batch.begin(code::STRING, key);
                self.batch.number(expires_ms);
                let value = self.moved(
                    end,
                    key,
                    |object| match object {
                        Object::String(value) => Some(value),
                        _ => None,
                    },
                    shard,
                )?;
                if let Some(entry) = self.keys.get_mut(key) {
                    entry.object = Object::String(value);
                    entry.expiry_seq = self.seq;
                }
                return Ok(());
            }
            (Change::Expires { .. }, _) if entry.expiry_seq == seq => {}
            (Change::Field { field, .. }, Object::Hash(fields))
                if fields.get(field).is_some_and(|value| value.seq == seq) =>
            {
                self.batch.begin(code::FIELD, key);
                self.batch.bytes(field);
                let value = self.moved(
                    end,
                    key,
                    |object| match object {
                        Object::Hash(fields) => fields.get(field),
                        _ => None,
                    },
                    shard,
                )?;
                if let Some(Object::Hash(fields)) = self.keys.get_mut(key).map(|entry| &mut entry.object) {
                    fields.insert(field, value);
                }
            }
            (Change::Position { at, .. }, Object::List(values))
                if values.get(at).is_some_and(|value| value.seq == seq) =>
            {
                self.batch.begin(code::POSITION, key);
                self.batch.number(position(*at));
                let value = self.moved(
                    end,
                    key,
                    |object| match object {
                        Object::List(values) => values.get(at),
                        _ => None,
                    },
                    shard,
                )?;
                if let Some(Object::List(values)) = self.keys.get_mut(key).map(|entry| &mut entry.object) {
                    values.insert(*at, value);
                }
            }
            (Change::Member { member }, Object::Set(members)) if members.get(member) == Some(&seq) => {
                self.batch.begin(code::MEMBER, key);
                self.batch.bytes(member);
                let seq = self.seq;
                if let Some(Object::Set(members)) = self.keys.get_mut(key).map(|entry| &mut entry.object) {
                    members.insert(member, seq);
                }
            }
            (Change::Entry { id, .. }, Object::Stream(stream))
                if stream.entries.get(id).is_some_and(|value| value.seq == seq) =>
            {
                self.batch.begin(code::ENTRY, key);
                self.batch.number(id.ms);
                self.batch.number(id.seq);
                let value = self.moved(
                    end,
                    key,
                    |object| match object {
                        Object::Stream(stream) => stream.entries.get(id),
                        _ => None,
                    },
                    shard,
                )?;
                if let Some(Object::Stream(stream)) = self.keys.get_mut(key).map(|entry| &mut entry.object) {
                    stream.entries.insert(*id, value);
                }
            }
            (Change::Last { .. }, Object::Stream(stream)) if stream.last_seq == seq => {
                let last = stream.last;
                self.batch.begin(code::LAST, key);
                self.batch.number(last.ms);
                self.batch.number(last.seq);
                self.apply_last(key, last, self.seq);
            }
            _ => return Ok(()),
        }
        // When the log is read, there may be nothing of the key before this record that could expire.
        if expires_ms != 0 && self.keys.get(key).is_some_and(|entry| entry.expiry_seq < self.seq) {
            self.batch.begin(code::EXPIRES, key);
            self.batch.number(expires_ms);
            self.apply_expiry(key, expires_ms, self.seq);
        }
        Ok(())
    }

    /// Ends the change that was begun with a value that is there already.
    fn moved(
        &mut self,
        end: (usize, usize, usize),
        key: &[u8],
        find: impl Fn(&Object) -> Option<&Value>,
        shard: &Shard,
    ) -> Result<Value, AppendError> {
        let Some(value) = self.keys.get(key).and_then(|entry| find(&entry.object)) else {
            return Ok(Value { seq: self.seq, data: Data::Short(Box::default()) });
        };
        if let Err(full) = self.fits(value.data.len_bytes(), shard) {
            self.batch.cut(end);
            return Err(full);
        }
        match &value.data {
            Data::Short(bytes) => {
                let bytes = bytes.clone();
                self.put(end, Source::Bytes(&bytes), shard)
            }
            &Data::Long { offset, len } => match self.long(value.seq, offset, len, shard) {
                Ok(extents) => self.put(end, Source::Extents(&extents), shard),
                // It is lost. What is left of it is as long, and says so when somebody asks for it.
                Err(_) => {
                    let seq = value.seq;
                    self.batch.cut(end);
                    Ok(Value { seq, data: Data::Long { offset, len } })
                }
            },
        }
    }
}
