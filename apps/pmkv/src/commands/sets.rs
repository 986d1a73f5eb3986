//! Sets.

use super::command;
use crate::command::{Command, Context, Refusal};
use crate::store::{Dict, Object};

pub(super) const COMMANDS: &[Command] = &[
    command!("sadd", -3, [Write Denyoom Fast], (1, 1, 1), sadd),
    command!("scard", 2, [Readonly Fast], (1, 1, 1), scard),
    command!("sismember", 3, [Readonly Fast], (1, 1, 1), sismember),
    command!("smembers", 2, [Readonly], (1, 1, 1), smembers),
    command!("smismember", -3, [Readonly Fast], (1, 1, 1), smismember),
    command!("srem", -3, [Write Fast], (1, 1, 1), srem),
];

/// The set that a key stands for.
fn set<'a>(cx: &'a Context<'_>, key: &[u8]) -> Result<Option<&'a Dict<u64>>, Refusal> {
    match cx.store.get(key).map(|entry| &entry.object) {
        None => Ok(None),
        Some(Object::Set(members)) => Ok(Some(members)),
        Some(_) => Err(Refusal::WrongType),
    }
}

fn sadd(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let key = cx.arg(1);
    set(cx, &key)?;
    let mut added = 0;
    for index in 2..cx.req.len() {
        let member = cx.arg(index);
        added += i64::from(cx.store.add_member(&key, &member));
    }
    cx.out.integer(added);
    Ok(())
}

fn srem(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let key = cx.arg(1);
    set(cx, &key)?;
    let mut removed = 0;
    for index in 2..cx.req.len() {
        let member = cx.arg(index);
        if cx.store.get(&key).is_some() {
            removed += i64::from(cx.store.remove_member(&key, &member));
        }
    }
    cx.out.integer(removed);
    Ok(())
}

fn scard(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let len = set(cx, &cx.arg(1))?.map_or(0, Dict::len);
    cx.out.integer(len as i64);
    Ok(())
}

fn sismember(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let is_there = set(cx, &cx.arg(1))?.is_some_and(|members| members.get(&cx.arg(2)).is_some());
    cx.out.integer(is_there.into());
    Ok(())
}

fn smismember(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let members = set(cx, &cx.arg(1))?;
    let is_there = |index: usize| members.is_some_and(|members| members.get(&cx.arg(index)).is_some());
    let found: Vec<bool> = (2..cx.req.len()).map(is_there).collect();
    cx.out.array(found.len());
    found.into_iter().for_each(|found| cx.out.integer(found.into()));
    Ok(())
}

fn smembers(cx: &mut Context<'_>) -> Result<(), Refusal> {
    set(cx, &cx.arg(1))?;
    match cx.store.get(&cx.arg(1)).map(|entry| &entry.object) {
        Some(Object::Set(members)) => {
            cx.out.set(members.len());
            members.iter().for_each(|(member, _)| cx.out.bulk(member));
        }
        _ => cx.out.set(0),
    }
    Ok(())
}
