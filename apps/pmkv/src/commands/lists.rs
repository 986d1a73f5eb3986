//! Lists.

use std::collections::BTreeMap;

use super::command;
use crate::command::{Command, Context, Refusal, reply_value};
use crate::store::{Object, Source, Value};

pub(super) const COMMANDS: &[Command] = &[
    command!("lindex", 3, [Readonly], (1, 1, 1), lindex),
    command!("llen", 2, [Readonly Fast], (1, 1, 1), llen),
    command!("lpop", -2, [Write Fast], (1, 1, 1), |cx| pop(cx, true)),
    command!("lpush", -3, [Write Denyoom Fast], (1, 1, 1), |cx| push(cx, true, false)),
    command!("lpushx", -3, [Write Denyoom Fast], (1, 1, 1), |cx| push(cx, true, true)),
    command!("lrange", 4, [Readonly], (1, 1, 1), lrange),
    command!("rpop", -2, [Write Fast], (1, 1, 1), |cx| pop(cx, false)),
    command!("rpush", -3, [Write Denyoom Fast], (1, 1, 1), |cx| push(cx, false, false)),
    command!("rpushx", -3, [Write Denyoom Fast], (1, 1, 1), |cx| push(cx, false, true)),
];

/// The list that a key stands for.
fn list<'a>(cx: &'a Context<'_>, key: &[u8]) -> Result<Option<&'a BTreeMap<i64, Value>>, Refusal> {
    match cx.store.get(key).map(|entry| &entry.object) {
        None => Ok(None),
        Some(Object::List(values)) => Ok(Some(values)),
        Some(_) => Err(Refusal::WrongType),
    }
}

fn len(cx: &Context<'_>, key: &[u8]) -> Result<usize, Refusal> {
    Ok(list(cx, key)?.map_or(0, BTreeMap::len))
}

fn push(cx: &mut Context<'_>, is_front: bool, only_old: bool) -> Result<(), Refusal> {
    let (key, req, shard) = (cx.arg(1), cx.req, cx.shard);
    let mut len = len(cx, &key)?;
    if len > 0 || !only_old {
        for index in 2..req.len() {
            len = match req.in_place(index) {
                Some(extents) => cx.store.push(&key, is_front, Source::Extents(extents), shard)?,
                None => cx.store.push(&key, is_front, Source::Bytes(&req.arg(index)), shard)?,
            };
        }
    }
    cx.out.integer(len as i64);
    Ok(())
}

fn pop(cx: &mut Context<'_>, is_front: bool) -> Result<(), Refusal> {
    let key = cx.arg(1);
    let count = match cx.req.len() {
        2 => None,
        3 => {
            let count = cx.integer(2).map_err(|_| Refusal::NotPositive)?;
            Some(usize::try_from(count).map_err(|_| Refusal::NotPositive)?)
        }
        _ => return Err(Refusal::Arity(cx.name.into())),
    };
    let len = len(cx, &key)?;
    match count {
        _ if len == 0 && count.is_some() => cx.out.null_array(),
        None if len == 0 => cx.out.null(),
        None => take(cx, &key, is_front)?,
        Some(count) => {
            cx.out.array(count.min(len));
            for _ in 0..count.min(len) {
                take(cx, &key, is_front)?;
            }
        }
    }
    Ok(())
}

/// Replies with the value at an end of a list, and removes it.
fn take(cx: &mut Context<'_>, key: &[u8], is_front: bool) -> Result<(), Refusal> {
    let Context { store, shard, out, .. } = cx;
    if let Some(Object::List(values)) = store.get(key).map(|entry| &entry.object) {
        let value = if is_front { values.values().next() } else { values.values().next_back() };
        if let Some(value) = value {
            reply_value(out, store, shard, value)?;
        }
    }
    store.pop(key, is_front);
    Ok(())
}

fn llen(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let len = len(cx, &cx.arg(1))?;
    cx.out.integer(len as i64);
    Ok(())
}

fn lindex(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let key = cx.arg(1);
    let Some(len) = list(cx, &key)?.map(|values| values.len() as i64) else {
        cx.out.null();
        return Ok(());
    };
    let index = cx.integer(2)?;
    let index = if index < 0 { len.saturating_add(index) } else { index };
    if !(0..len).contains(&index) {
        cx.out.null();
        return Ok(());
    }
    range(cx, &key, index, index)
}

fn lrange(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (key, from, to) = (cx.arg(1), cx.integer(2)?, cx.integer(3)?);
    let len = len(cx, &key)? as i64;
    let place = |at: i64| if at < 0 { len.saturating_add(at) } else { at };
    let (from, to) = (place(from).max(0), place(to).min(len - 1));
    if from > to {
        cx.out.array(0);
        return Ok(());
    }
    cx.out.array((to - from + 1) as usize);
    range(cx, &key, from, to)
}

/// Replies with the values from one to another, which are there.
fn range(cx: &mut Context<'_>, key: &[u8], from: i64, to: i64) -> Result<(), Refusal> {
    let Context { store, shard, out, .. } = cx;
    if let Some(Object::List(values)) = store.get(key).map(|entry| &entry.object)
        // Positions follow one another.
        && let Some(first) = values.keys().next()
    {
        for (_, value) in values.range(first + from..=first + to) {
            reply_value(out, store, shard, value)?;
        }
    }
    Ok(())
}
