//! Strings that are numbers.

use super::command;
use crate::command::{Command, Context, Refusal, decimal};
use crate::resp::parse_integer;
use crate::store::Source;

pub(super) const COMMANDS: &[Command] = &[
    command!("decr", 2, [Write Denyoom Fast], (1, 1, 1), |cx| add(cx, -1)),
    command!("decrby", 3, [Write Denyoom Fast], (1, 1, 1), |cx| {
        let by = cx.integer(2)?;
        add(cx, by.checked_neg().ok_or(Refusal::Other("ERR decrement would overflow".into()))?)
    }),
    command!("incr", 2, [Write Denyoom Fast], (1, 1, 1), |cx| add(cx, 1)),
    command!("incrby", 3, [Write Denyoom Fast], (1, 1, 1), |cx| {
        let by = cx.integer(2)?;
        add(cx, by)
    }),
    command!("incrbyfloat", 3, [Write Denyoom Fast], (1, 1, 1), incrbyfloat),
];

fn add(cx: &mut Context<'_>, by: i64) -> Result<(), Refusal> {
    let key = cx.arg(1);
    let before = match cx.string_bytes(&key)? {
        Some(bytes) => parse_integer(&bytes).ok_or(Refusal::NotAnInteger)?,
        None => 0,
    };
    let after = before.checked_add(by).ok_or(Refusal::Overflow)?;
    replace(cx, &key, itoa::Buffer::new().format(after).as_bytes())?;
    cx.out.integer(after);
    Ok(())
}

fn incrbyfloat(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let key = cx.arg(1);
    let before = cx.string_bytes(&key)?;
    let before = decimal(before.as_deref().unwrap_or(b"0"))?;
    let after = before.plus(decimal(&cx.arg(2))?).ok_or(Refusal::NotFinite)?.to_string();
    replace(cx, &key, after.as_bytes())?;
    cx.out.bulk(after.as_bytes());
    Ok(())
}

/// Gives a string another value, and lets it expire when it would have.
fn replace(cx: &mut Context<'_>, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
    let expires_ms = cx.expires_ms(key);
    Ok(cx.store.set_string(key, Source::Bytes(value), expires_ms, cx.shard)?)
}
