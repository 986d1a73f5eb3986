//! Strings.

use super::command;
use super::keys::{Unit, expiry_option};
use crate::command::{Command, Context, Refusal};
use crate::resp::Request;
use crate::store::{Bytes, Object, Reader, Source};

pub(super) const COMMANDS: &[Command] = &[
    command!("append", 3, [Write Denyoom Fast], (1, 1, 1), append),
    command!("get", 2, [Readonly Fast], (1, 1, 1), get),
    command!("getdel", 2, [Write Fast], (1, 1, 1), getdel),
    command!("getex", -2, [Write Fast], (1, 1, 1), getex),
    command!("getrange", 4, [Readonly], (1, 1, 1), getrange),
    command!("getset", 3, [Write Denyoom Fast], (1, 1, 1), getset),
    command!("mget", -2, [Readonly Fast], (1, -1, 1), mget),
    command!("mset", -3, [Write Denyoom], (1, -1, 2), mset),
    command!("msetnx", -3, [Write Denyoom], (1, -1, 2), msetnx),
    command!("psetex", 4, [Write Denyoom], (1, 1, 1), |cx| setex(cx, Unit::Milliseconds)),
    command!("set", -3, [Write Denyoom], (1, 1, 1), set),
    command!("setex", 4, [Write Denyoom], (1, 1, 1), |cx| setex(cx, Unit::Seconds)),
    command!("setnx", 3, [Write Denyoom Fast], (1, 1, 1), setnx),
    command!("setrange", 4, [Write Denyoom], (1, 1, 1), setrange),
    command!("strlen", 2, [Readonly Fast], (1, 1, 1), strlen),
    command!("substr", 4, [Readonly], (1, 1, 1), getrange),
];

fn get(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let key = cx.arg(1);
    cx.reply_string(&key)
}

/// What SET was asked for beside the value.
#[derive(Default)]
struct SetOptions {
    only_new: bool,
    only_old: bool,
    gives_old: bool,
    keeps_expiry: bool,
    expires_ms: u64,
}

impl SetOptions {
    fn parse(cx: &Context<'_>) -> Result<Self, Refusal> {
        let (req, mut options) = (cx.req, Self::default());
        // As in Redis, what is wrong with the words comes before what is wrong with the time.
        let mut expiry = None;
        let mut at = 3;
        while at < req.len() {
            if req.is(at, "NX") && !options.only_old {
                options.only_new = true;
            } else if req.is(at, "XX") && !options.only_new {
                options.only_old = true;
            } else if req.is(at, "GET") {
                options.gives_old = true;
            } else if req.is(at, "KEEPTTL") && expiry.is_none() {
                options.keeps_expiry = true;
            } else if is_expiry(req, at)
                && at + 1 < req.len()
                && !options.keeps_expiry
                // The same word once more counts.
                && expiry.is_none_or(|before| req.arg(before).eq_ignore_ascii_case(&req.arg(at)))
            {
                expiry = Some(at);
                at += 1;
            } else {
                return Err(Refusal::Syntax);
            }
            at += 1;
        }
        if let Some(at) = expiry {
            options.expires_ms = expiry_option(cx, at)?;
        }
        Ok(options)
    }
}

fn is_expiry(req: &Request, at: usize) -> bool {
    ["EX", "PX", "EXAT", "PXAT"].iter().any(|word| req.is(at, word))
}

fn set(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let key = cx.arg(1);
    let options = SetOptions::parse(cx)?;
    let end = cx.out.end();
    if options.gives_old {
        cx.reply_string(&key)?;
    }
    let is_there = cx.store.get(&key).is_some();
    if options.only_new && is_there || options.only_old && !is_there {
        if !options.gives_old {
            cx.out.null();
        }
        return Ok(());
    }
    let expires_ms = if options.keeps_expiry { cx.expires_ms(&key) } else { options.expires_ms };
    store(cx, &key, 2, expires_ms).inspect_err(|_| cx.out.cut(end))?;
    if !options.gives_old {
        cx.out.ok();
    }
    Ok(())
}

/// Makes a key a string: an argument, where it lies.
fn store(cx: &mut Context<'_>, key: &[u8], index: usize, expires_ms: u64) -> Result<(), Refusal> {
    let (req, shard) = (cx.req, cx.shard);
    let is_alone = cx.name == "set" && req.len() == 3 && !cx.is_in_transaction;
    match req.in_place(index) {
        Some([value]) if is_alone && let Some(whole) = req.whole() => {
            cx.store.set_as_it_came(key, whole, value, shard)?;
        }
        Some(extents) => cx.store.set_string(key, Source::Extents(extents), expires_ms, shard)?,
        None => cx.store.set_string(key, Source::Bytes(&req.arg(index)), expires_ms, shard)?,
    }
    Ok(())
}

fn setnx(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let key = cx.arg(1);
    let is_new = cx.store.get(&key).is_none();
    if is_new {
        store(cx, &key, 2, 0)?;
    }
    cx.out.integer(is_new.into());
    Ok(())
}

fn setex(cx: &mut Context<'_>, unit: Unit) -> Result<(), Refusal> {
    let expires_ms = unit.after(cx, cx.integer(2)?)?;
    store(cx, &cx.arg(1), 3, expires_ms)?;
    cx.out.ok();
    Ok(())
}

fn getset(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (key, end) = (cx.arg(1), cx.out.end());
    cx.reply_string(&key)?;
    store(cx, &key, 2, 0).inspect_err(|_| cx.out.cut(end))
}

fn getdel(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let key = cx.arg(1);
    cx.reply_string(&key)?;
    cx.store.remove(&key);
    Ok(())
}

fn getex(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (key, req) = (cx.arg(1), cx.req);
    let is_known = match req.len() {
        2 => true,
        3 => req.is(2, "PERSIST"),
        4 => is_expiry(req, 2),
        _ => false,
    };
    if !is_known {
        return Err(Refusal::Syntax);
    }
    if cx.string(&key)?.is_none() {
        cx.out.null();
        return Ok(());
    }
    let expires_ms = match req.len() {
        2 => None,
        3 => Some(0),
        _ => Some(expiry_option(cx, 2)?),
    };
    cx.reply_string(&key)?;
    match expires_ms {
        Some(at_ms) if at_ms != 0 && at_ms <= cx.store.now_ms() => _ = cx.store.remove(&key),
        Some(at_ms) if at_ms != cx.expires_ms(&key) => _ = cx.store.set_expiry(&key, at_ms),
        _ => {}
    }
    Ok(())
}

fn mget(cx: &mut Context<'_>) -> Result<(), Refusal> {
    cx.out.array(cx.req.len() - 1);
    for index in 1..cx.req.len() {
        let key = cx.arg(index);
        match cx.reply_string(&key) {
            Err(Refusal::WrongType) => cx.out.null(),
            other => other?,
        }
    }
    Ok(())
}

fn mset(cx: &mut Context<'_>) -> Result<(), Refusal> {
    if cx.req.len().is_multiple_of(2) {
        return Err(Refusal::Arity("mset".into()));
    }
    for index in (1..cx.req.len()).step_by(2) {
        store(cx, &cx.arg(index), index + 1, 0)?;
    }
    cx.out.ok();
    Ok(())
}

fn msetnx(cx: &mut Context<'_>) -> Result<(), Refusal> {
    if cx.req.len().is_multiple_of(2) {
        return Err(Refusal::Arity("msetnx".into()));
    }
    let mut keys = (1..cx.req.len()).step_by(2);
    if keys.any(|index| cx.store.get(&cx.arg(index)).is_some()) {
        cx.out.integer(0);
        return Ok(());
    }
    for index in (1..cx.req.len()).step_by(2) {
        store(cx, &cx.arg(index), index + 1, 0)?;
    }
    cx.out.integer(1);
    Ok(())
}

fn strlen(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let len = cx.string(&cx.arg(1))?.map_or(0, |value| value.data.len_bytes());
    cx.out.integer(len as i64);
    Ok(())
}

/// Refuses strings that are longer than arguments may be.
fn check_len(cx: &Context<'_>, len: u64) -> Result<(), Refusal> {
    if len > cx.server.config.max_value_bytes {
        return Err(Refusal::TooLong);
    }
    // Nobody has seen to it yet that there is room for what is not in the request.
    if cx.store.has_room(len, cx.shard) { Ok(()) } else { Err(Refusal::Full) }
}

fn append(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let key = cx.arg(1);
    let Some(value) = cx.string(&key)? else {
        store(cx, &key, 2, 0)?;
        cx.out.integer(cx.req.arg_len(2) as i64);
        return Ok(());
    };
    check_len(cx, value.data.len_bytes() as u64 + cx.req.arg_len(2))?;
    let mut bytes = cx.string_bytes(&key)?.unwrap_or_default();
    bytes.extend_from_slice(&cx.arg(2));
    let expires_ms = cx.expires_ms(&key);
    cx.store.set_string(&key, Source::Bytes(&bytes), expires_ms, cx.shard)?;
    cx.out.integer(bytes.len() as i64);
    Ok(())
}

fn setrange(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (key, patch) = (cx.arg(1), cx.arg(3));
    let offset = usize::try_from(cx.integer(2)?).map_err(|_| Refusal::Offset)?;
    let len = cx.string(&key)?.map_or(0, |value| value.data.len_bytes());
    if patch.is_empty() {
        cx.out.integer(len as i64);
        return Ok(());
    }
    check_len(cx, (offset as u64).saturating_add(patch.len() as u64).max(len as u64))?;
    let mut bytes = cx.string_bytes(&key)?.unwrap_or_default();
    let end = offset + patch.len();
    bytes.resize(bytes.len().max(end), 0);
    bytes[offset..end].copy_from_slice(&patch);
    let expires_ms = cx.expires_ms(&key);
    cx.store.set_string(&key, Source::Bytes(&bytes), expires_ms, cx.shard)?;
    cx.out.integer(bytes.len() as i64);
    Ok(())
}

fn getrange(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (key, from, to) = (cx.arg(1), cx.integer(2)?, cx.integer(3)?);
    let Context { store, shard, out, .. } = cx;
    let value = match store.get(&key).map(|entry| &entry.object) {
        None => {
            out.bulk(b"");
            return Ok(());
        }
        Some(Object::String(value)) => value,
        Some(_) => return Err(Refusal::WrongType),
    };
    let len = value.data.len_bytes() as i64;
    let place = |at: i64| if at < 0 { (len.saturating_add(at)).max(0) } else { at };
    let is_backwards = from < 0 && to < 0 && from > to;
    let (from, to) = (place(from), place(to).min(len - 1));
    if is_backwards || from > to || len == 0 {
        out.bulk(b"");
        return Ok(());
    }
    let (from, len) = (from as usize, (to - from + 1) as usize);
    match store.bytes(value, shard)? {
        Bytes::Short(bytes) => out.bulk(&bytes[from..from + len]),
        Bytes::Owned(bytes) => out.bulk(&bytes[from..from + len]),
        Bytes::Long(extents) => {
            let mut reader = Reader::of_extents(&extents);
            let part = reader.skip(from).and_then(|()| reader.extents(len));
            out.extents(part.map_err(|_| Refusal::Offset)?.into_iter());
        }
    }
    Ok(())
}
