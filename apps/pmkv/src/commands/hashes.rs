//! Hashes.

use super::command;
use crate::command::{Command, Context, Refusal, decimal, reply_value};
use crate::resp::parse_integer;
use crate::store::{Dict, Object, Source, Value};

pub(super) const COMMANDS: &[Command] = &[
    command!("hdel", -3, [Write Fast], (1, 1, 1), hdel),
    command!("hexists", 3, [Readonly Fast], (1, 1, 1), hexists),
    command!("hget", 3, [Readonly Fast], (1, 1, 1), hget),
    command!("hgetall", 2, [Readonly], (1, 1, 1), |cx| all(cx, true, true)),
    command!("hincrby", 4, [Write Denyoom Fast], (1, 1, 1), hincrby),
    command!("hincrbyfloat", 4, [Write Denyoom Fast], (1, 1, 1), hincrbyfloat),
    command!("hkeys", 2, [Readonly], (1, 1, 1), |cx| all(cx, true, false)),
    command!("hlen", 2, [Readonly Fast], (1, 1, 1), hlen),
    command!("hmget", -3, [Readonly Fast], (1, 1, 1), hmget),
    command!("hmset", -4, [Write Denyoom Fast], (1, 1, 1), |cx| hset(cx, false)),
    command!("hset", -4, [Write Denyoom Fast], (1, 1, 1), |cx| hset(cx, true)),
    command!("hsetnx", 4, [Write Denyoom Fast], (1, 1, 1), hsetnx),
    command!("hstrlen", 3, [Readonly Fast], (1, 1, 1), hstrlen),
    command!("hvals", 2, [Readonly], (1, 1, 1), |cx| all(cx, false, true)),
];

/// The hash that a key stands for.
fn hash<'a>(cx: &'a Context<'_>, key: &[u8]) -> Result<Option<&'a Dict<Value>>, Refusal> {
    match cx.store.get(key).map(|entry| &entry.object) {
        None => Ok(None),
        Some(Object::Hash(fields)) => Ok(Some(fields)),
        Some(_) => Err(Refusal::WrongType),
    }
}

fn hset(cx: &mut Context<'_>, counts: bool) -> Result<(), Refusal> {
    let (key, req, shard) = (cx.arg(1), cx.req, cx.shard);
    if !req.len().is_multiple_of(2) {
        return Err(Refusal::Arity(cx.name.into()));
    }
    hash(cx, &key)?;
    let mut added = 0;
    for index in (2..req.len()).step_by(2) {
        added += i64::from(set(cx, &key, &req.arg(index), index + 1, shard)?);
    }
    match counts {
        true => cx.out.integer(added),
        false => cx.out.ok(),
    }
    Ok(())
}

/// Gives a field a value: an argument, where it lies.
fn set(
    cx: &mut Context<'_>,
    key: &[u8],
    field: &[u8],
    index: usize,
    shard: &pmem::Shard,
) -> Result<bool, Refusal> {
    let req = cx.req;
    Ok(match req.in_place(index) {
        Some(extents) => cx.store.set_field(key, field, Source::Extents(extents), shard)?,
        None => cx.store.set_field(key, field, Source::Bytes(&req.arg(index)), shard)?,
    })
}

fn hsetnx(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (key, field, shard) = (cx.arg(1), cx.arg(2), cx.shard);
    let is_new = hash(cx, &key)?.is_none_or(|fields| fields.get(&field).is_none());
    if is_new {
        set(cx, &key, &field, 3, shard)?;
    }
    cx.out.integer(is_new.into());
    Ok(())
}

fn hget(cx: &mut Context<'_>) -> Result<(), Refusal> {
    hash(cx, &cx.arg(1))?;
    reply_fields(cx, 2..3)
}

fn hmget(cx: &mut Context<'_>) -> Result<(), Refusal> {
    hash(cx, &cx.arg(1))?;
    cx.out.array(cx.req.len() - 2);
    reply_fields(cx, 2..cx.req.len())
}

/// Replies with the values of fields, whose names are some arguments.
fn reply_fields(cx: &mut Context<'_>, indices: std::ops::Range<usize>) -> Result<(), Refusal> {
    let Context { store, shard, out, req, .. } = cx;
    let object = store.get(&req.arg(1)).map(|entry| &entry.object);
    for index in indices {
        match object {
            Some(Object::Hash(fields)) if let Some(value) = fields.get(&req.arg(index)) => {
                reply_value(out, store, shard, value)?;
            }
            _ => out.null(),
        }
    }
    Ok(())
}

fn all(cx: &mut Context<'_>, with_fields: bool, with_values: bool) -> Result<(), Refusal> {
    hash(cx, &cx.arg(1))?;
    let Context { store, shard, out, req, .. } = cx;
    let fields = match store.get(&req.arg(1)).map(|entry| &entry.object) {
        Some(Object::Hash(fields)) => fields,
        _ => &Box::default(),
    };
    match with_fields && with_values {
        true => out.map(fields.len()),
        false => out.array(fields.len()),
    }
    for (field, value) in fields.iter() {
        if with_fields {
            out.bulk(field);
        }
        if with_values {
            reply_value(out, store, shard, value)?;
        }
    }
    Ok(())
}

fn hlen(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let len = hash(cx, &cx.arg(1))?.map_or(0, Dict::len);
    cx.out.integer(len as i64);
    Ok(())
}

fn hexists(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let is_there = hash(cx, &cx.arg(1))?.is_some_and(|fields| fields.get(&cx.arg(2)).is_some());
    cx.out.integer(is_there.into());
    Ok(())
}

fn hstrlen(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let value = hash(cx, &cx.arg(1))?.and_then(|fields| fields.get(&cx.arg(2)));
    let len = value.map_or(0, |value| value.data.len_bytes());
    cx.out.integer(len as i64);
    Ok(())
}

fn hdel(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let key = cx.arg(1);
    hash(cx, &key)?;
    let mut removed = 0;
    for index in 2..cx.req.len() {
        let field = cx.arg(index);
        if cx.store.get(&key).is_some() {
            removed += i64::from(cx.store.remove_field(&key, &field));
        }
    }
    cx.out.integer(removed);
    Ok(())
}

fn field_bytes(cx: &Context<'_>, key: &[u8], field: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
    let Some(value) = hash(cx, key)?.and_then(|fields| fields.get(field)) else { return Ok(None) };
    Ok(Some(cx.store.bytes(value, cx.shard)?.to_vec()))
}

fn hincrby(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (key, field, by) = (cx.arg(1), cx.arg(2), cx.integer(3)?);
    let before = match field_bytes(cx, &key, &field)? {
        Some(bytes) => parse_integer(&bytes).ok_or(Refusal::HashNotAnInteger)?,
        None => 0,
    };
    let after = before.checked_add(by).ok_or(Refusal::Overflow)?;
    let text = after.to_string();
    cx.store.set_field(&key, &field, Source::Bytes(text.as_bytes()), cx.shard)?;
    cx.out.integer(after);
    Ok(())
}

fn hincrbyfloat(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (key, field) = (cx.arg(1), cx.arg(2));
    let by = decimal(&cx.arg(3))?;
    let before = field_bytes(cx, &key, &field)?;
    let before = decimal(before.as_deref().unwrap_or(b"0"))
        .map_err(|_| Refusal::Other("ERR hash value is not a float".into()))?;
    let after = before.plus(by).ok_or(Refusal::NotFinite)?.to_string();
    cx.store.set_field(&key, &field, Source::Bytes(after.as_bytes()), cx.shard)?;
    cx.out.bulk(after.as_bytes());
    Ok(())
}
