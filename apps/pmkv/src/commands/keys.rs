//! Keys, whatever they stand for, and when they expire.

use super::command;
use crate::command::{Command, Context, Refusal};
use crate::store::{Bytes, MAX_RECORD_BYTES, Object, Source, StreamId};

pub(super) const COMMANDS: &[Command] = &[
    command!("copy", -3, [Write Denyoom], (1, 2, 1), copy),
    command!("del", -2, [Write], (1, -1, 1), del),
    command!("exists", -2, [Readonly Fast], (1, -1, 1), exists),
    command!("expire", -3, [Write Fast], (1, 1, 1), |cx| expire(cx, Unit::Seconds, false)),
    command!("expireat", -3, [Write Fast], (1, 1, 1), |cx| expire(cx, Unit::Seconds, true)),
    command!("expiretime", 2, [Readonly Fast], (1, 1, 1), |cx| ttl(cx, Unit::Seconds, true)),
    command!("flushall", -1, [Write], (0, 0, 0), flush),
    command!("flushdb", -1, [Write], (0, 0, 0), flush),
    command!("persist", 2, [Write Fast], (1, 1, 1), persist),
    command!("pexpire", -3, [Write Fast], (1, 1, 1), |cx| expire(cx, Unit::Milliseconds, false)),
    command!("pexpireat", -3, [Write Fast], (1, 1, 1), |cx| expire(cx, Unit::Milliseconds, true)),
    command!("pexpiretime", 2, [Readonly Fast], (1, 1, 1), |cx| ttl(cx, Unit::Milliseconds, true)),
    command!("pttl", 2, [Readonly Fast], (1, 1, 1), |cx| ttl(cx, Unit::Milliseconds, false)),
    command!("rename", 3, [Write], (1, 2, 1), |cx| rename(cx, true)),
    command!("renamenx", 3, [Write Fast], (1, 2, 1), |cx| rename(cx, false)),
    command!("touch", -2, [Readonly Fast], (1, -1, 1), exists),
    command!("ttl", 2, [Readonly Fast], (1, 1, 1), |cx| ttl(cx, Unit::Seconds, false)),
    command!("type", 2, [Readonly Fast], (1, 1, 1), kind),
    command!("unlink", -2, [Write Fast], (1, -1, 1), del),
];

/// In what times are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Milliseconds,
}

impl Unit {
    fn in_ms(self, time: i64) -> Option<i64> {
        if self == Self::Seconds { time.checked_mul(1000) } else { Some(time) }
    }

    /// The time after so long, which must not be nothing.
    pub(super) fn after(self, cx: &Context<'_>, time: i64) -> Result<u64, Refusal> {
        let now_ms = cx.store.now_ms() as i64;
        let at_ms = self.in_ms(time).and_then(|ms| ms.checked_add(now_ms)).filter(|_| time > 0);
        at_ms.map(|ms| ms as u64).ok_or(Refusal::ExpireTime(cx.name))
    }

    fn at(self, cx: &Context<'_>, time: i64) -> Result<u64, Refusal> {
        let at_ms = self.in_ms(time).filter(|_| time > 0);
        at_ms.map(|ms| ms as u64).ok_or(Refusal::ExpireTime(cx.name))
    }
}

/// When a key is to expire, by the word at an argument, which is one of four, and the number behind it.
pub(super) fn expiry_option(cx: &Context<'_>, at: usize) -> Result<u64, Refusal> {
    let time = cx.integer(at + 1)?;
    let unit = if cx.req.is(at, "EX") || cx.req.is(at, "EXAT") { Unit::Seconds } else { Unit::Milliseconds };
    if cx.req.is(at, "EX") || cx.req.is(at, "PX") { unit.after(cx, time) } else { unit.at(cx, time) }
}

fn del(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let mut removed = 0;
    for index in 1..cx.req.len() {
        let key = cx.arg(index);
        // One that has expired is removed, too, but was not there.
        let is_there = cx.store.get(&key).is_some();
        cx.store.remove(&key);
        removed += i64::from(is_there);
    }
    cx.out.integer(removed);
    Ok(())
}

fn exists(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let found = (1..cx.req.len()).filter(|index| cx.store.get(&cx.arg(*index)).is_some()).count();
    cx.out.integer(found as i64);
    Ok(())
}

fn kind(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let kind = cx.store.get(&cx.arg(1)).map_or("none", |entry| entry.object.kind());
    cx.out.simple(kind);
    Ok(())
}

fn ttl(cx: &mut Context<'_>, unit: Unit, is_absolute: bool) -> Result<(), Refusal> {
    let now_ms = cx.store.now_ms() as i64;
    let left = match cx.store.get(&cx.arg(1)).map(|entry| entry.expires_ms as i64) {
        None => -2,
        Some(0) => -1,
        Some(at_ms) => {
            let ms = if is_absolute { at_ms } else { (at_ms - now_ms).max(0) };
            match unit {
                Unit::Milliseconds => ms,
                Unit::Seconds if is_absolute => ms / 1000,
                Unit::Seconds => ms.saturating_add(500) / 1000,
            }
        }
    };
    cx.out.integer(left);
    Ok(())
}

fn expire(cx: &mut Context<'_>, unit: Unit, is_absolute: bool) -> Result<(), Refusal> {
    let key = cx.arg(1);
    let [mut nx, mut xx, mut gt, mut lt] = [false; 4];
    for index in 3..cx.req.len() {
        let word = cx.arg(index);
        match &*word.to_ascii_uppercase() {
            b"NX" => nx = true,
            b"XX" => xx = true,
            b"GT" => gt = true,
            b"LT" => lt = true,
            _ => {
                let word = String::from_utf8_lossy(&word).into_owned();
                return Err(Refusal::Other(format!("ERR Unsupported option {word}").into()));
            }
        }
    }
    if nx && (xx || gt || lt) {
        return Err("ERR NX and XX, GT or LT options at the same time are not compatible".into());
    }
    if gt && lt {
        return Err("ERR GT and LT options at the same time are not compatible".into());
    }
    let time = cx.integer(2)?;
    let now_ms = cx.store.now_ms() as i64;
    let base_ms = if is_absolute { 0 } else { now_ms };
    let at_ms =
        unit.in_ms(time).and_then(|ms| ms.checked_add(base_ms)).ok_or(Refusal::ExpireTime(cx.name))?;
    let Some(entry) = cx.store.get(&key) else {
        cx.out.integer(0);
        return Ok(());
    };
    let before_ms = entry.expires_ms as i64;
    let is_kept = nx && before_ms != 0
        || xx && before_ms == 0
        || gt && (before_ms == 0 || at_ms <= before_ms)
        || lt && before_ms != 0 && at_ms >= before_ms;
    if !is_kept {
        if at_ms <= now_ms {
            cx.store.remove(&key);
        } else {
            cx.store.set_expiry(&key, at_ms as u64);
        }
    }
    cx.out.integer((!is_kept).into());
    Ok(())
}

fn persist(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let key = cx.arg(1);
    let expires = cx.expires_ms(&key) != 0;
    if expires {
        cx.store.set_expiry(&key, 0);
    }
    cx.out.integer(expires.into());
    Ok(())
}

fn flush(cx: &mut Context<'_>) -> Result<(), Refusal> {
    if cx.req.len() > 2 || cx.req.len() == 2 && !cx.req.is(1, "ASYNC") && !cx.req.is(1, "SYNC") {
        return Err(Refusal::Syntax);
    }
    cx.store.clear();
    cx.out.ok();
    Ok(())
}

fn rename(cx: &mut Context<'_>, replaces: bool) -> Result<(), Refusal> {
    let (from, to) = (cx.arg(1), cx.arg(2));
    if cx.store.get(&from).is_none() {
        return Err(Refusal::NoKey);
    }
    let is_moved = from != to && (replaces || cx.store.get(&to).is_none());
    if is_moved {
        copy_key(cx, &from, &to)?;
        cx.store.remove(&from);
    }
    match replaces {
        true => cx.out.ok(),
        false => cx.out.integer(is_moved.into()),
    }
    Ok(())
}

fn copy(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (from, to) = (cx.arg(1), cx.arg(2));
    let mut replaces = false;
    let mut at = 3;
    while at < cx.req.len() {
        if cx.req.is(at, "REPLACE") {
            replaces = true;
        } else if cx.req.is(at, "DB") && at + 1 < cx.req.len() {
            at += 1;
            if cx.integer(at)? != 0 {
                return Err(Refusal::NoDatabase);
            }
        } else {
            return Err(Refusal::Syntax);
        }
        at += 1;
    }
    if from == to {
        return Err("ERR source and destination objects are the same".into());
    }
    let is_copied = cx.store.get(&from).is_some() && (replaces || cx.store.get(&to).is_none());
    if is_copied {
        copy_key(cx, &from, &to)?;
    }
    cx.out.integer(is_copied.into());
    Ok(())
}

/// A copy of one thing of an object, to be stored under another key.
enum Part {
    Field(Box<[u8]>, Vec<u8>),
    Value(Vec<u8>),
    Member(Box<[u8]>),
    Entry(StreamId, Vec<Vec<u8>>),
}

/// Stores what a key stands for under another key, too. What is there before is replaced.
fn copy_key(cx: &mut Context<'_>, from: &[u8], to: &[u8]) -> Result<(), Refusal> {
    let Context { store, shard, .. } = cx;
    let Some(entry) = store.get(from) else { return Ok(()) };
    let (expires_ms, bytes) = (entry.expires_ms, bytes_of(&entry.object));
    if !store.has_room(bytes, shard) {
        return Err(Refusal::Full);
    }
    if bytes > MAX_RECORD_BYTES {
        return Err(Refusal::LongRecord);
    }
    let (mut parts, mut last) = (Vec::new(), None);
    match &entry.object {
        Object::String(value) => {
            match store.bytes(value, shard)? {
                short @ (Bytes::Short(_) | Bytes::Owned(_)) => {
                    let bytes = short.to_vec();
                    store.set_string(to, Source::Bytes(&bytes), expires_ms, shard)?;
                }
                Bytes::Long(extents) => store.set_string(to, Source::Extents(&extents), expires_ms, shard)?,
            }
            return Ok(());
        }
        Object::Hash(fields) => {
            for (field, value) in fields.iter() {
                parts.push(Part::Field(field.into(), store.bytes(value, shard)?.to_vec()));
            }
        }
        Object::List(values) => {
            for value in values.values() {
                parts.push(Part::Value(store.bytes(value, shard)?.to_vec()));
            }
        }
        Object::Set(members) => parts.extend(members.iter().map(|(member, _)| Part::Member(member.into()))),
        Object::Stream(stream) => {
            last = Some(stream.last);
            for (id, value) in &stream.entries {
                let fields = super::streams::fields(store, shard, value)?;
                parts.push(Part::Entry(*id, fields.iter().map(Bytes::to_vec).collect()));
            }
        }
    }
    store.remove(to);
    for part in parts {
        match part {
            Part::Field(field, value) => _ = store.set_field(to, &field, Source::Bytes(&value), shard)?,
            Part::Value(value) => _ = store.push(to, false, Source::Bytes(&value), shard)?,
            Part::Member(member) => _ = store.add_member(to, &member),
            Part::Entry(id, fields) => {
                let fields: Vec<Source<'_>> = fields.iter().map(|field| Source::Bytes(field)).collect();
                store.add_entry(to, id, &fields, shard)?;
            }
        }
    }
    last.iter().for_each(|last| store.set_last(to, *last));
    if expires_ms != 0 {
        store.set_expiry(to, expires_ms);
    }
    Ok(())
}

/// About as many bytes as a record of all of an object takes.
fn bytes_of(object: &Object) -> u64 {
    let lens: usize = match object {
        Object::String(value) => value.data.len_bytes(),
        Object::Hash(fields) => {
            fields.iter().map(|(field, value)| field.len() + value.data.len_bytes() + 100).sum()
        }
        Object::List(values) => values.values().map(|value| value.data.len_bytes() + 100).sum(),
        Object::Set(members) => members.iter().map(|(member, _)| member.len() + 100).sum(),
        Object::Stream(stream) => stream.entries.values().map(|value| value.data.len_bytes() + 100).sum(),
    };
    // Each long value has a part of a buffer to itself.
    2 * lens as u64
}
