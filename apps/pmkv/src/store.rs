//! The keys: an index in DRAM over values in persistent memory, and the log that both are made again from.
//!
//! What a command changes is one record of the log, and happens as a whole or not at all. Each thing that can be changed on
//! its own (a string, a field, a position, a member, an entry) names the record that holds it. A record whose things are all
//! held by later ones is garbage. As all that is live can be written again behind the log's end, the log is cleaned from its
//! head: what of the oldest record is live is written again, then the head goes on behind it.

mod batch;
mod clean;
mod dict;
mod format;
mod load;
mod object;

use std::collections::{BTreeSet, HashMap};

use pmem::{AppendError, Extent, Lookup, Pending, Shard};

pub use batch::{MAX_RECORD_BYTES, Source};
pub use dict::Dict;
pub use format::{Reader, Unreadable, put_bytes, put_number};
pub use load::LoadError;
pub use object::{Data, Entry, Object, Stream, StreamId, Value};

use batch::Batch;
use format::{code, position};

/// What a key, a field or a position takes beside its bytes, at most: its place in a table, and allocations.
const ENTRY_BYTES: usize = 112;

/// The keys of one core.
#[derive(Debug, Default)]
pub struct Store {
    keys: Dict<Entry>,
    /// The places of keys that expire, by when they do.
    expiring: BTreeSet<(u64, u32)>,
    batch: Batch,
    /// The number that the batch's record will have.
    seq: u64,
    /// Long values of records that are not durable yet, by record and place in it: the log does not give them yet.
    fresh: HashMap<(u64, u32), Box<[Extent]>>,
    /// Bytes of DRAM that keys take, and of records that the live part of all takes.
    used_bytes: usize,
    live_bytes: u64,
    /// The time of the burst, in ms since 1970.
    now_ms: u64,
    /// Whether anybody wants to know which keys change, and those that have.
    pub tells_changes: bool,
    changed: Vec<Box<[u8]>>,
    /// Keys that have expired and are gone.
    expired_keys: u64,
    cleaning: clean::Cleaning,
}

/// A value's bytes.
#[derive(Debug)]
pub enum Bytes<'a> {
    /// In DRAM.
    Short(&'a [u8]),
    /// In DRAM, of its own.
    Owned(Vec<u8>),
    /// In persistent memory.
    Long(Vec<Extent>),
}

impl Bytes<'_> {
    /// All of them, copied.
    pub fn to_vec(&self) -> Vec<u8> {
        match self {
            Self::Short(bytes) => bytes.to_vec(),
            Self::Owned(bytes) => bytes.clone(),
            Self::Long(extents) => extents.iter().flat_map(|extent| extent.bytes()).copied().collect(),
        }
    }
}

/// The medium has changed what was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {seq} of the log is damaged; the value in it is lost")]
pub struct Damaged {
    /// The record.
    pub seq: u64,
}

impl Store {
    /// A new burst has begun.
    pub fn set_time(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// The time of the burst, in ms since 1970.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// How many keys there are, expired ones included that are not removed yet.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many keys expire.
    pub fn expiring(&self) -> usize {
        self.expiring.len()
    }

    /// How many have.
    pub fn expired_keys(&self) -> u64 {
        self.expired_keys
    }

    /// Bytes of DRAM that the keys take.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Bytes of records that the live part of all would take.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// A key's entry, unless it has expired.
    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.keys.get(key).filter(|entry| !self.has_expired(entry))
    }

    fn has_expired(&self, entry: &Entry) -> bool {
        entry.expires_ms != 0 && entry.expires_ms <= self.now_ms
    }

    /// All keys that have not expired.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.keys.iter().filter(|(_, entry)| !self.has_expired(entry))
    }

    /// Some keys from a cursor on, and where to go on.
    pub fn scan<'a>(&'a self, cursor: u64, count: usize, mut visit: impl FnMut(&'a [u8], &'a Entry)) -> u64 {
        self.keys.scan(cursor, count, |key, entry| {
            if !self.has_expired(entry) {
                visit(key, entry);
            }
        })
    }

    /// Some key, where `number` is any number.
    pub fn any(&self, number: u64) -> Option<&[u8]> {
        self.keys.any(number).filter(|(_, entry)| !self.has_expired(entry)).map(|(key, _)| key)
    }

    /// A value's bytes.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn bytes<'a>(&self, value: &'a Value, shard: &Shard) -> Result<Bytes<'a>, Damaged> {
        match value.data {
            Data::Short(ref bytes) => Ok(Bytes::Short(bytes)),
            Data::Long { offset, len } => self.long(value.seq, offset, len, shard).map(Bytes::Long),
        }
    }

    fn long(&self, seq: u64, offset: u32, len: u32, shard: &Shard) -> Result<Vec<Extent>, Damaged> {
        if let Some(extents) = self.fresh.get(&(seq, offset)) {
            return Ok(extents.to_vec());
        }
        let Lookup::Live(record) = shard.lookup(seq) else { return Err(Damaged { seq }) };
        let pieces = record.into_checked_pieces().collect::<Result<_, _>>().map_err(|_| Damaged { seq })?;
        let mut reader = Reader::new(pieces);
        let found = reader.skip(offset as usize).and_then(|()| reader.extents(len as usize));
        found.map_err(|_| Damaged { seq })
    }

    /// Whether a command that takes so many bytes may be served: there is room for its record, and some is left to clean
    /// up with.
    pub fn has_room(&self, bytes: u64, shard: &Shard) -> bool {
        let arena = shard.arena();
        let (buffers, entries) = (arena.buffers() as u64, shard.log_entries());
        let needed = bytes / arena.buffer_bytes() as u64 + 4;
        let kept = shard.reserve() as u64 + buffers / 16;
        arena.free_buffers() as u64 >= kept + needed
            && shard.free_log_entries() >= entries / 16 + needed / 4 + 2
    }

    /// Whether there is room for a command that makes room, and whose record takes so many bytes.
    pub fn has_least_room(&self, bytes: u64, shard: &Shard) -> bool {
        let arena = shard.arena();
        let needed = bytes / arena.buffer_bytes() as u64 + 4;
        arena.free_buffers() as u64 >= shard.reserve() as u64 + needed
            && shard.free_log_entries() > shard.log_entries() / 64 + needed / 4
    }

    /// Begins a record. All changes up to [`finish`](Self::finish) are in it.
    pub fn begin(&mut self, shard: &Shard) {
        self.seq = shard.next_seq();
    }

    /// Appends the record of all changes since [`begin`](Self::begin); none if there were none.
    ///
    /// # Errors
    /// [`AppendError`]: the keys have changed and the log has not, so that the store cannot go on.
    pub fn finish(&mut self, shard: &mut Shard) -> Result<Option<Pending>, AppendError> {
        if self.batch.is_empty() {
            return Ok(None);
        }
        self.batch.append(shard).map(Some)
    }

    /// Length of the record so far.
    pub fn record_bytes(&self) -> usize {
        self.batch.len()
    }

    /// Everything that was appended is durable, and the log gives it.
    pub fn committed(&mut self) {
        self.fresh.clear();
    }

    /// The keys that have changed since the last call.
    pub fn take_changed(&mut self) -> Vec<Box<[u8]>> {
        std::mem::take(&mut self.changed)
    }

    fn tell(&mut self, key: &[u8]) {
        if self.tells_changes {
            self.changed.push(key.into());
        }
    }

    /// Writes the value of the change that was begun; if there is no room for it, the change was not begun.
    fn put(
        &mut self,
        end: (usize, usize, usize),
        source: Source<'_>,
        shard: &Shard,
    ) -> Result<Value, AppendError> {
        match self.batch.value(source, shard) {
            Ok((data, extents)) => {
                if let Data::Long { offset, .. } = data {
                    self.fresh.insert((self.seq, offset), extents.into());
                }
                Ok(Value { seq: self.seq, data })
            }
            Err(error) => {
                self.batch.cut(end);
                Err(error)
            }
        }
    }

    /// Removes a key that has expired, so that what is put there next is new.
    fn clear_expired(&mut self, key: &[u8]) {
        if self.keys.get(key).is_some_and(|entry| self.has_expired(entry)) {
            self.expired_keys += 1;
            self.remove(key);
        }
    }

    /// Removes up to `limit` keys that have expired; whether there were any.
    pub fn remove_expired(&mut self, limit: usize) -> bool {
        let mut removed = 0;
        while removed < limit
            && let Some(&(at_ms, place)) = self.expiring.first()
            && at_ms <= self.now_ms
        {
            let Some(key) = self.keys.at(place).map(|(key, _)| Box::<[u8]>::from(key)) else { break };
            self.clear_expired(&key);
            removed += 1;
        }
        removed > 0
    }

    /// Makes a key a string.
    ///
    /// # Errors
    /// There is no room; nothing was changed.
    pub fn set_string(
        &mut self,
        key: &[u8],
        source: Source<'_>,
        expires_ms: u64,
        shard: &Shard,
    ) -> Result<(), AppendError> {
        let end = self.batch.end();
        self.batch.begin(code::STRING, key);
        self.batch.number(expires_ms);
        let value = self.put(end, source, shard)?;
        self.apply_string(key, value, expires_ms);
        self.tell(key);
        Ok(())
    }

    /// Makes a key a string that does not expire: `request` says so, and holds the value in `value`. It becomes the record, as it
    /// is: there must be no other change in it.
    ///
    /// # Errors
    /// There is no room; nothing was changed.
    pub fn set_as_it_came(
        &mut self,
        key: &[u8],
        request: &Extent,
        value: &Extent,
        shard: &Shard,
    ) -> Result<(), AppendError> {
        let offset = value.offset().checked_sub(request.offset());
        let is_inside = value.buffer_id() == request.buffer_id();
        let (true, true, Some(offset)) = (self.batch.is_empty(), is_inside, offset) else {
            return self.set_string(key, Source::Extents(std::slice::from_ref(value)), 0, shard);
        };
        let data = Data::Long { offset: offset as u32, len: value.len() as u32 };
        self.batch.set_whole(request.clone());
        self.fresh.insert((self.seq, offset as u32), Box::new([value.clone()]));
        self.apply_string(key, Value { seq: self.seq, data }, 0);
        self.tell(key);
        Ok(())
    }

    /// Removes a key; false if there was none.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let is_there = self.apply_gone(key);
        if is_there {
            self.batch.begin(code::GONE, key);
            self.tell(key);
        }
        is_there
    }

    /// Removes all keys.
    pub fn clear(&mut self) {
        self.batch.begin(code::ALL_GONE, b"");
        if self.tells_changes {
            self.changed.extend(self.keys.iter().map(|(key, _)| key.into()));
        }
        self.apply_all_gone();
    }

    /// Has a key expire at a time, or never if that is 0; false if there is no such key.
    pub fn set_expiry(&mut self, key: &[u8], at_ms: u64) -> bool {
        if self.get(key).is_none() {
            return false;
        }
        self.batch.begin(code::EXPIRES, key);
        self.batch.number(at_ms);
        self.apply_expiry(key, at_ms, self.seq);
        self.tell(key);
        true
    }

    /// Gives a field of a hash a value; true if it is a new field. The key is a hash, or there is none.
    ///
    /// # Errors
    /// There is no room; nothing was changed.
    pub fn set_field(
        &mut self,
        key: &[u8],
        field: &[u8],
        source: Source<'_>,
        shard: &Shard,
    ) -> Result<bool, AppendError> {
        self.clear_expired(key);
        let end = self.batch.end();
        self.batch.begin(code::FIELD, key);
        self.batch.bytes(field);
        let value = self.put(end, source, shard)?;
        self.tell(key);
        Ok(self.apply_field(key, field, value))
    }

    /// Removes a field of a hash, and the hash with its last field; false if there is none.
    pub fn remove_field(&mut self, key: &[u8], field: &[u8]) -> bool {
        let is_there = self.apply_field_gone(key, field);
        if is_there {
            self.batch.begin(code::FIELD_GONE, key);
            self.batch.bytes(field);
            self.tell(key);
            self.remove_empty(key);
        }
        is_there
    }

    fn remove_empty(&mut self, key: &[u8]) {
        if self.keys.get(key).is_some_and(|entry| entry.object.is_empty()) {
            self.remove(key);
        }
    }

    /// Puts a value at one end of a list; returns the list's length. The key is a list, or there is none.
    ///
    /// # Errors
    /// There is no room; nothing was changed.
    pub fn push(
        &mut self,
        key: &[u8],
        is_front: bool,
        source: Source<'_>,
        shard: &Shard,
    ) -> Result<usize, AppendError> {
        self.clear_expired(key);
        let at = match self.keys.get(key).map(|entry| &entry.object) {
            Some(Object::List(values)) if is_front => values.keys().next().map_or(0, |first| first - 1),
            Some(Object::List(values)) => values.keys().next_back().map_or(0, |last| last + 1),
            _ => 0,
        };
        let end = self.batch.end();
        self.batch.begin(code::POSITION, key);
        self.batch.number(position(at));
        let value = self.put(end, source, shard)?;
        self.apply_position(key, at, value);
        self.tell(key);
        match self.keys.get(key).map(|entry| &entry.object) {
            Some(Object::List(values)) => Ok(values.len()),
            _ => Ok(0),
        }
    }

    /// Takes a value off an end of a list, and the list away with its last value; false if there is none.
    pub fn pop(&mut self, key: &[u8], is_front: bool) -> bool {
        let at = match self.get(key).map(|entry| &entry.object) {
            Some(Object::List(values)) if is_front => values.keys().next().copied(),
            Some(Object::List(values)) => values.keys().next_back().copied(),
            _ => None,
        };
        let Some(at) = at else { return false };
        self.apply_position_gone(key, at);
        self.batch.begin(code::POSITION_GONE, key);
        self.batch.number(position(at));
        self.tell(key);
        self.remove_empty(key);
        true
    }

    /// Adds a member to a set; false if it is there already. The key is a set, or there is none.
    pub fn add_member(&mut self, key: &[u8], member: &[u8]) -> bool {
        self.clear_expired(key);
        if let Some(Object::Set(members)) = self.keys.get(key).map(|entry| &entry.object)
            && members.get(member).is_some()
        {
            return false;
        }
        self.batch.begin(code::MEMBER, key);
        self.batch.bytes(member);
        self.apply_member(key, member, self.seq);
        self.tell(key);
        true
    }

    /// Removes a member of a set, and the set with its last member; false if there is none.
    pub fn remove_member(&mut self, key: &[u8], member: &[u8]) -> bool {
        let is_there = self.apply_member_gone(key, member);
        if is_there {
            self.batch.begin(code::MEMBER_GONE, key);
            self.batch.bytes(member);
            self.tell(key);
            self.remove_empty(key);
        }
        is_there
    }

    /// Adds an entry to a stream, of text and pieces that follow one another. The key is a stream, or there is none; the
    /// number is higher than all before.
    ///
    /// # Errors
    /// There is no room; nothing was changed.
    pub fn add_entry(
        &mut self,
        key: &[u8],
        id: StreamId,
        fields: &[Source<'_>],
        shard: &Shard,
    ) -> Result<(), AppendError> {
        self.clear_expired(key);
        let len: usize = fields.iter().map(|field| field.len_bytes() + 10).sum();
        let (mut text, mut extents) = (Vec::with_capacity(len.min(4096)), Vec::new());
        for field in fields {
            put_number(&mut text, field.len_bytes() as u64);
            match field {
                Source::Bytes(bytes) => text.extend_from_slice(bytes),
                Source::Extents(pieces) => {
                    extents.extend(self.batch.shelved(&text, shard)?);
                    extents.extend_from_slice(pieces);
                    text.clear();
                }
            }
        }
        let end = self.batch.end();
        let source = if extents.is_empty() {
            Source::Bytes(&text)
        } else {
            extents.extend(self.batch.shelved(&text, shard)?);
            Source::Extents(&extents)
        };
        self.batch.begin(code::ENTRY, key);
        self.batch.number(id.ms);
        self.batch.number(id.seq);
        let value = self.put(end, source, shard)?;
        self.apply_entry(key, id, value);
        self.tell(key);
        Ok(())
    }

    /// Removes an entry of a stream; false if there is none.
    pub fn remove_entry(&mut self, key: &[u8], id: StreamId) -> bool {
        let is_there = self.apply_entry_gone(key, id);
        if is_there {
            self.batch.begin(code::ENTRY_GONE, key);
            self.batch.number(id.ms);
            self.batch.number(id.seq);
            self.tell(key);
        }
        is_there
    }

    /// Makes sure that there is a stream, and that its next entry has a higher number.
    pub fn set_last(&mut self, key: &[u8], id: StreamId) {
        self.batch.begin(code::LAST, key);
        self.batch.number(id.ms);
        self.batch.number(id.seq);
        self.apply_last(key, id, self.seq);
    }
}
