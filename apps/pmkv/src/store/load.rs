//! Changes as they are applied to the index: by commands, and by the log when a store is opened.

use pmem::{Lookup, Shard};

use super::format::{Change, Reader, Unreadable};
use super::object::{Object, Stream, StreamId, Value};
use super::{Dict, ENTRY_BYTES, Entry, Store};

/// Why the keys could not be made from the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A record is damaged, and with it values, or the news that older ones are gone.
    #[error(
        "record {seq} of the log is damaged: values are lost, or ones come back that were removed; restore the store from a \
         backup, or serve without it with --accept-damage"
    )]
    Damaged {
        /// The record.
        seq: u64,
    },
    /// A record was written by something else, or by a later version.
    #[error("record {seq} of the log: {why}; the store is another program's, or a later version's")]
    Unreadable {
        /// The record.
        seq: u64,
        /// What is wrong with it.
        why: Unreadable,
    },
}

impl Store {
    /// Makes the keys from the log. Damaged records are passed over if that is accepted; the number of them is returned.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(&mut self, shard: &Shard, accepts_damage: bool) -> Result<u64, LoadError> {
        let damaged = shard.quarantines();
        if let Some(first) = damaged.iter().next().filter(|_| !accepts_damage) {
            return Err(LoadError::Damaged { seq: first.seq });
        }
        for info in shard.records(0) {
            let seq = info.seq;
            let Lookup::Live(record) = shard.lookup(seq) else { return Err(LoadError::Damaged { seq }) };
            let mut reader = Reader::of_record(record);
            while let Some((key, change)) =
                reader.change().map_err(|why| LoadError::Unreadable { seq, why })?
            {
                self.apply(&key, change, seq);
            }
        }
        // What is left of keys whose end was in a damaged record.
        let empty: Vec<Box<[u8]>> = self
            .keys
            .iter()
            .filter(|(_, entry)| entry.object.is_empty())
            .map(|(key, _)| key.into())
            .collect();
        empty.iter().for_each(|key| _ = self.apply_gone(key));
        Ok(damaged.len() as u64)
    }

    fn apply(&mut self, key: &[u8], change: Change, seq: u64) {
        match change {
            Change::String { expires_ms, value } => {
                self.seq = seq;
                self.apply_string(key, Value { seq, data: value }, expires_ms);
            }
            Change::Gone => _ = self.apply_gone(key),
            Change::Expires { at_ms } => self.apply_expiry(key, at_ms, seq),
            Change::Field { field, value } => _ = self.apply_field(key, &field, Value { seq, data: value }),
            Change::FieldGone { field } => _ = self.apply_field_gone(key, &field),
            Change::Position { at, value } => self.apply_position(key, at, Value { seq, data: value }),
            Change::PositionGone { at } => self.apply_position_gone(key, at),
            Change::Member { member } => self.apply_member(key, &member, seq),
            Change::MemberGone { member } => _ = self.apply_member_gone(key, &member),
            Change::Entry { id, value } => self.apply_entry(key, id, Value { seq, data: value }),
            Change::EntryGone { id } => _ = self.apply_entry_gone(key, id),
            Change::Last { id } => self.apply_last(key, id, seq),
            Change::AllGone => self.apply_all_gone(),
        }
    }

    /// Counts something that came, of which `held` bytes lie in DRAM and `logged` in the log.
    fn count(&mut self, held: usize, logged: usize) {
        self.used_bytes += ENTRY_BYTES + held;
        self.live_bytes += 16 + logged as u64;
    }

    fn uncount(&mut self, held: usize, logged: usize) {
        self.used_bytes = self.used_bytes.saturating_sub(ENTRY_BYTES + held);
        self.live_bytes = self.live_bytes.saturating_sub(16 + logged as u64);
    }

    /// Counts everything of an object that goes.
    fn uncount_object(&mut self, key: &[u8], object: &Object) {
        let key_len = key.len();
        let mut sizes: Vec<(usize, usize)> = Vec::new();
        match object {
            Object::String(value) => {
                sizes.push((key_len + value.data.held_bytes(), key_len + value.data.len_bytes()))
            }
            Object::Hash(fields) => {
                sizes.push((key_len, 0));
                sizes.extend(fields.iter().map(|(field, value)| {
                    (field.len() + value.data.held_bytes(), key_len + field.len() + value.data.len_bytes())
                }));
            }
            Object::List(values) => {
                sizes.push((key_len, 0));
                sizes.extend(
                    values.values().map(|value| (value.data.held_bytes(), key_len + value.data.len_bytes())),
                );
            }
            Object::Set(members) => {
                sizes.push((key_len, 0));
                sizes.extend(members.iter().map(|(member, _)| (member.len(), key_len + member.len())));
            }
            Object::Stream(stream) => {
                sizes.push((key_len, 0));
                let values = stream.entries.values();
                sizes.extend(values.map(|value| (value.data.held_bytes(), key_len + value.data.len_bytes())));
            }
        }
        sizes.into_iter().for_each(|(held, logged)| self.uncount(held, logged));
    }

    /// Puts an object where there is none of its kind, and returns it.
    fn object(
        &mut self,
        key: &[u8],
        is_it: impl Fn(&Object) -> bool,
        new: impl Fn() -> Object,
    ) -> &mut Object {
        if !self.keys.get(key).is_some_and(|entry| is_it(&entry.object)) {
            self.apply_gone(key);
            self.count(key.len(), 0);
            self.keys.insert(key, Entry { object: new(), expires_ms: 0, expiry_seq: 0 });
        }
        &mut self.keys.get_mut(key).expect("it was put there").object
    }

    pub(super) fn apply_string(&mut self, key: &[u8], value: Value, expires_ms: u64) {
        self.count(key.len() + value.data.held_bytes(), key.len() + value.data.len_bytes());
        let expiry_seq = value.seq;
        let (place, old) =
            self.keys.insert(key, Entry { object: Object::String(value), expires_ms, expiry_seq });
        if let Some(old) = old {
            self.uncount_object(key, &old.object);
            if old.expires_ms != 0 {
                self.expiring.remove(&(old.expires_ms, place));
            }
        }
        if expires_ms != 0 {
            self.expiring.insert((expires_ms, place));
        }
    }

    pub(super) fn apply_gone(&mut self, key: &[u8]) -> bool {
        let Some((place, old)) = self.keys.remove(key) else { return false };
        if old.expires_ms != 0 {
            self.expiring.remove(&(old.expires_ms, place));
        }
        self.uncount_object(key, &old.object);
        true
    }

    pub(super) fn apply_all_gone(&mut self) {
        self.keys = Dict::default();
        self.expiring.clear();
        (self.used_bytes, self.live_bytes) = (0, 0);
    }

    pub(super) fn apply_expiry(&mut self, key: &[u8], at_ms: u64, seq: u64) {
        let Some(place) = self.keys.place(key) else { return };
        let Some(entry) = self.keys.get_mut(key) else { return };
        let before_ms = std::mem::replace(&mut entry.expires_ms, at_ms);
        entry.expiry_seq = seq;
        if before_ms != 0 {
            self.expiring.remove(&(before_ms, place));
        }
        if at_ms != 0 {
            self.expiring.insert((at_ms, place));
        }
    }

    pub(super) fn apply_field(&mut self, key: &[u8], field: &[u8], value: Value) -> bool {
        let is_it = |object: &Object| matches!(object, Object::Hash(_));
        let (held, logged) = (value.data.held_bytes(), value.data.len_bytes());
        let Object::Hash(fields) = self.object(key, is_it, || Object::Hash(Box::default())) else {
            return false;
        };
        let old = fields.insert(field, value).1;
        if let Some(old) = &old {
            self.uncount(field.len() + old.data.held_bytes(), key.len() + field.len() + old.data.len_bytes());
        }
        self.count(field.len() + held, key.len() + field.len() + logged);
        old.is_none()
    }

    pub(super) fn apply_field_gone(&mut self, key: &[u8], field: &[u8]) -> bool {
        let Some(Object::Hash(fields)) = self.keys.get_mut(key).map(|entry| &mut entry.object) else {
            return false;
        };
        let Some((_, old)) = fields.remove(field) else { return false };
        self.uncount(field.len() + old.data.held_bytes(), key.len() + field.len() + old.data.len_bytes());
        true
    }

    pub(super) fn apply_position(&mut self, key: &[u8], at: i64, value: Value) {
        let is_it = |object: &Object| matches!(object, Object::List(_));
        let (held, logged) = (value.data.held_bytes(), value.data.len_bytes());
        let Object::List(values) = self.object(key, is_it, || Object::List(Box::default())) else { return };
        if let Some(old) = values.insert(at, value) {
            self.uncount(old.data.held_bytes(), key.len() + old.data.len_bytes());
        }
        self.count(held, key.len() + logged);
    }

    pub(super) fn apply_position_gone(&mut self, key: &[u8], at: i64) {
        let Some(Object::List(values)) = self.keys.get_mut(key).map(|entry| &mut entry.object) else {
            return;
        };
        if let Some(old) = values.remove(&at) {
            self.uncount(old.data.held_bytes(), key.len() + old.data.len_bytes());
        }
    }

    pub(super) fn apply_member(&mut self, key: &[u8], member: &[u8], seq: u64) {
        let is_it = |object: &Object| matches!(object, Object::Set(_));
        let Object::Set(members) = self.object(key, is_it, || Object::Set(Box::default())) else { return };
        if members.insert(member, seq).1.is_none() {
            self.count(member.len(), key.len() + member.len());
        }
    }

    pub(super) fn apply_member_gone(&mut self, key: &[u8], member: &[u8]) -> bool {
        let Some(Object::Set(members)) = self.keys.get_mut(key).map(|entry| &mut entry.object) else {
            return false;
        };
        if members.remove(member).is_none() {
            return false;
        }
        self.uncount(member.len(), key.len() + member.len());
        true
    }

    fn stream(&mut self, key: &[u8]) -> Option<&mut Stream> {
        let is_it = |object: &Object| matches!(object, Object::Stream(_));
        match self.object(key, is_it, || Object::Stream(Box::default())) {
            Object::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    pub(super) fn apply_entry(&mut self, key: &[u8], id: StreamId, value: Value) {
        let (held, logged) = (value.data.held_bytes(), value.data.len_bytes());
        let Some(stream) = self.stream(key) else { return };
        stream.last = stream.last.max(id);
        if let Some(old) = stream.entries.insert(id, value) {
            self.uncount(old.data.held_bytes(), key.len() + old.data.len_bytes());
        }
        self.count(held, key.len() + logged);
    }

    pub(super) fn apply_entry_gone(&mut self, key: &[u8], id: StreamId) -> bool {
        let Some(Object::Stream(stream)) = self.keys.get_mut(key).map(|entry| &mut entry.object) else {
            return false;
        };
        let Some(old) = stream.entries.remove(&id) else { return false };
        self.uncount(old.data.held_bytes(), key.len() + old.data.len_bytes());
        true
    }

    pub(super) fn apply_last(&mut self, key: &[u8], id: StreamId, seq: u64) {
        let Some(stream) = self.stream(key) else { return };
        stream.last = stream.last.max(id);
        stream.last_seq = seq;
    }
}
