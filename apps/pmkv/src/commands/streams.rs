//! Streams.

use std::borrow::Cow;
use std::ops::Bound;

use pmem::Shard;

use super::command;
use crate::clients::{Client, Clients, Waiting};
use crate::command::{Command, Context, Refusal};
use crate::resp::{IN_PLACE_BYTES, Reply, parse_integer};
use crate::store::{Bytes, Damaged, Object, Reader, Source, Store, Stream, StreamId, Unreadable, Value};

pub(super) const COMMANDS: &[Command] = &[
    command!("xadd", -5, [Write Denyoom Fast], (1, 1, 1), xadd),
    command!("xdel", -3, [Write Fast], (1, 1, 1), xdel),
    command!("xlen", 2, [Readonly Fast], (1, 1, 1), xlen),
    command!("xrange", -4, [Readonly], (1, 1, 1), |cx| xrange(cx, false)),
    command!("xread", -4, [Readonly Blocking], (0, 0, 0), xread),
    command!("xrevrange", -4, [Readonly], (1, 1, 1), |cx| xrange(cx, true)),
    command!("xtrim", -4, [Write], (1, 1, 1), xtrim),
];

const NO_ID: Refusal =
    Refusal::Other(Cow::Borrowed("ERR Invalid stream ID specified as stream command argument"));

/// The stream that a key stands for.
fn stream<'a>(store: &'a Store, key: &[u8]) -> Result<Option<&'a Stream>, Refusal> {
    match store.get(key).map(|entry| &entry.object) {
        None => Ok(None),
        Some(Object::Stream(stream)) => Ok(Some(stream)),
        Some(_) => Err(Refusal::WrongType),
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let is_plain = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_plain)?.parse().ok()
}

/// An entry's number. One without a count has the one that is given.
fn id(text: &[u8], count: u64) -> Result<StreamId, Refusal> {
    let parse = || match text.iter().position(|byte| *byte == b'-') {
        Some(at) => Some(StreamId { ms: number(&text[..at])?, seq: number(&text[at + 1..])? }),
        None => Some(StreamId { ms: number(text)?, seq: count }),
    };
    parse().ok_or(NO_ID)
}

/// What XADD and XTRIM leave.
#[derive(Clone, Copy, Debug)]
enum Trim {
    Length(usize),
    From(StreamId),
}

/// A limit to what is trimmed goes with an approximate end only. Redis says so after all else.
const EXACT_LIMIT: Refusal =
    Refusal::Other(Cow::Borrowed("ERR syntax error, LIMIT cannot be used without the special ~ option"));

/// Reads a trim's words from an argument on; returns it, whether it has a [limit](EXACT_LIMIT) that it must not have, and the
/// argument behind it.
fn trim_option(cx: &Context<'_>, at: usize) -> Result<(Trim, bool, usize), Refusal> {
    let is_length = cx.req.is(at, "MAXLEN");
    let mut at = at + 1;
    let is_about = cx.req.is(at, "~");
    if is_about || cx.req.is(at, "=") {
        at += 1;
    }
    if at >= cx.req.len() {
        return Err(Refusal::Syntax);
    }
    let trim = if is_length {
        let len = cx.integer(at)?;
        Trim::Length(usize::try_from(len).map_err(|_| "ERR The MAXLEN argument must be >= 0.")?)
    } else {
        Trim::From(id(&cx.arg(at), 0)?)
    };
    at += 1;
    let mut is_wrong = false;
    if cx.req.is(at, "LIMIT") && at + 1 < cx.req.len() {
        if cx.integer(at + 1)? < 0 {
            return Err("ERR The LIMIT argument must be >= 0.".into());
        }
        is_wrong = !is_about;
        at += 2;
    }
    Ok((trim, is_wrong, at))
}

/// Trims a stream; returns how many entries are gone.
fn trim(cx: &mut Context<'_>, key: &[u8], trim: Trim) -> Result<usize, Refusal> {
    let Some(stream) = stream(cx.store, key)? else { return Ok(0) };
    let last = stream.last;
    let gone: Vec<StreamId> = match trim {
        Trim::Length(len) => {
            let surplus = stream.entries.len().saturating_sub(len);
            stream.entries.keys().take(surplus).copied().collect()
        }
        Trim::From(first) => stream.entries.range(..first).map(|(id, _)| *id).collect(),
    };
    for id in &gone {
        cx.store.remove_entry(key, *id);
    }
    if !gone.is_empty() {
        cx.store.set_last(key, last);
    }
    Ok(gone.len())
}

fn xadd(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (key, req, shard) = (cx.arg(1), cx.req, cx.shard);
    let (mut at, mut makes_stream, mut trims, mut has_wrong_limit) = (2, true, None, false);
    loop {
        if req.is(at, "NOMKSTREAM") {
            makes_stream = false;
            at += 1;
        } else if req.is(at, "MAXLEN") || req.is(at, "MINID") {
            let (trim, is_wrong, behind) = trim_option(cx, at)?;
            (trims, has_wrong_limit, at) = (Some(trim), is_wrong, behind);
        } else {
            break;
        }
    }
    let text = req.arg(at);
    let first = at + 1;
    // Redis looks at the number first.
    let id = NewId::parse(&text)?;
    if has_wrong_limit {
        return Err(EXACT_LIMIT);
    }
    if first >= req.len() || !(req.len() - first).is_multiple_of(2) {
        return Err(Refusal::Arity("xadd".into()));
    }
    if matches!(id, NewId::Given(StreamId { ms: 0, seq: 0 })) {
        return Err("ERR The ID specified in XADD must be greater than 0-0".into());
    }
    let stream = stream(cx.store, &key)?;
    if stream.is_none() && !makes_stream {
        cx.out.null();
        return Ok(());
    }
    let last = stream.map_or(StreamId::default(), |stream| stream.last);
    let id = id.behind(last, cx.store.now_ms())?;
    let fields: Vec<Cow<'_, [u8]>> = (first..req.len()).map(|index| req.arg(index)).collect();
    let sources: Vec<Source<'_>> = fields
        .iter()
        .enumerate()
        .map(|(number, field)| match req.in_place(first + number) {
            Some(extents) => Source::Extents(extents),
            None => Source::Bytes(field),
        })
        .collect();
    cx.store.add_entry(&key, id, &sources, shard)?;
    if let Some(trims) = trims {
        trim(cx, &key, trims)?;
    }
    cx.out.bulk(id.to_string().as_bytes());
    Ok(())
}

/// The number that a new entry is to have.
#[derive(Clone, Copy, Debug)]
enum NewId {
    /// The time, or the next one.
    Now,
    /// The next one of a millisecond.
    At(u64),
    /// This one.
    Given(StreamId),
}

impl NewId {
    fn parse(text: &[u8]) -> Result<Self, Refusal> {
        match text.strip_suffix(b"-*") {
            _ if text == b"*" => Ok(Self::Now),
            Some(ms) => number(ms).map(Self::At).ok_or(NO_ID),
            None => id(text, 0).map(Self::Given),
        }
    }

    /// The number behind `last`.
    fn behind(self, last: StreamId, now_ms: u64) -> Result<StreamId, Refusal> {
        const SMALL: &str =
            "ERR The ID specified in XADD is equal or smaller than the target stream top item";
        let Some(next) = last.next() else {
            return Err("ERR The stream has exhausted the last possible ID, unable to add more items".into());
        };
        match self {
            Self::Now => Ok(next.max(StreamId { ms: now_ms, seq: 0 })),
            Self::At(ms) if ms == last.ms && next.ms == ms => Ok(next),
            Self::At(ms) if ms > last.ms => Ok(StreamId { ms, seq: 0 }),
            Self::Given(id) if id > last => Ok(id),
            Self::At(_) | Self::Given(_) => Err(SMALL.into()),
        }
    }
}

fn xlen(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let len = stream(cx.store, &cx.arg(1))?.map_or(0, |stream| stream.entries.len());
    cx.out.integer(len as i64);
    Ok(())
}

fn xdel(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let key = cx.arg(1);
    let Some(last) = stream(cx.store, &key)?.map(|stream| stream.last) else {
        cx.out.integer(0);
        return Ok(());
    };
    let ids = (2..cx.req.len()).map(|index| id(&cx.arg(index), 0)).collect::<Result<Vec<_>, _>>()?;
    let removed = ids.into_iter().filter(|id| cx.store.remove_entry(&key, *id)).count();
    if removed > 0 {
        cx.store.set_last(&key, last);
    }
    cx.out.integer(removed as i64);
    Ok(())
}

fn xtrim(cx: &mut Context<'_>) -> Result<(), Refusal> {
    if !cx.req.is(2, "MAXLEN") && !cx.req.is(2, "MINID") {
        return Err(Refusal::Syntax);
    }
    let (trims, is_wrong, behind) = trim_option(cx, 2)?;
    if behind != cx.req.len() {
        return Err(Refusal::Syntax);
    }
    if is_wrong {
        return Err(EXACT_LIMIT);
    }
    let removed = trim(cx, &cx.arg(1), trims)?;
    cx.out.integer(removed as i64);
    Ok(())
}

/// An end of a range. One without a count is the first or the last of its millisecond.
fn bound(text: &[u8], is_first: bool) -> Result<StreamId, Refusal> {
    const OUTSIDE: [&str; 2] =
        ["ERR invalid end ID for the interval", "ERR invalid start ID for the interval"];
    let (text, is_exclusive) = match text {
        b"-" => return Ok(StreamId::default()),
        b"+" => return Ok(StreamId::MAX),
        [b'(', rest @ ..] => (rest, true),
        text => (text, false),
    };
    let id = id(text, if is_first { 0 } else { u64::MAX })?;
    match (is_exclusive, is_first) {
        (false, _) => Ok(id),
        (true, true) => id.next().ok_or(OUTSIDE[1].into()),
        (true, false) => id.previous().ok_or(OUTSIDE[0].into()),
    }
}

fn xrange(cx: &mut Context<'_>, is_reverse: bool) -> Result<(), Refusal> {
    let (first, last) = if is_reverse { (3, 2) } else { (2, 3) };
    let (from, to) = (bound(&cx.arg(first), true)?, bound(&cx.arg(last), false)?);
    let mut count = usize::MAX;
    let mut at = 4;
    while at < cx.req.len() {
        if !cx.req.is(at, "COUNT") || at + 1 >= cx.req.len() {
            return Err(Refusal::Syntax);
        }
        count = usize::try_from(cx.integer(at + 1)?).unwrap_or(0);
        at += 2;
    }
    let Context { store, shard, out, req, .. } = cx;
    let Some(stream) = stream(store, &req.arg(1))? else {
        out.array(0);
        return Ok(());
    };
    if count == 0 {
        out.null_array();
        return Ok(());
    }
    if from > to {
        out.array(0);
        return Ok(());
    }
    let range = stream.entries.range(from..=to);
    let entries: Vec<_> =
        if is_reverse { range.rev().take(count).collect() } else { range.take(count).collect() };
    reply_entries(out, store, shard, entries.into_iter())
}

fn reply_entries<'a>(
    out: &mut Reply,
    store: &Store,
    shard: &Shard,
    entries: impl ExactSizeIterator<Item = (&'a StreamId, &'a Value)>,
) -> Result<(), Refusal> {
    out.array(entries.len());
    for (id, value) in entries {
        let fields = fields(store, shard, value)?;
        out.array(2);
        out.bulk(id.to_string().as_bytes());
        out.array(fields.len());
        for field in fields {
            match field {
                Bytes::Short(bytes) => out.bulk(bytes),
                Bytes::Owned(bytes) => out.bulk(&bytes),
                Bytes::Long(extents) => out.extents(extents.into_iter()),
            }
        }
    }
    Ok(())
}

/// The fields and values of an entry, one behind the other.
pub(super) fn fields<'a>(store: &Store, shard: &Shard, value: &'a Value) -> Result<Vec<Bytes<'a>>, Damaged> {
    let damaged = |_: Unreadable| Damaged { seq: value.seq };
    let mut fields = Vec::new();
    match store.bytes(value, shard)? {
        Bytes::Long(extents) => {
            let mut reader = Reader::of_extents(&extents);
            while !reader.is_at_end() {
                let len = reader.number().map_err(damaged)?;
                fields.push(match len < IN_PLACE_BYTES {
                    true => Bytes::Owned(reader.take(len as usize).map_err(damaged)?),
                    false => Bytes::Long(reader.extents(len as usize).map_err(damaged)?),
                });
            }
        }
        Bytes::Owned(_) => {}
        Bytes::Short(mut rest) => {
            while let Some((len, behind)) = short_len(rest) {
                let (field, next) = behind.split_at_checked(len).ok_or(Damaged { seq: value.seq })?;
                fields.push(Bytes::Short(field));
                rest = next;
            }
        }
    }
    Ok(fields)
}

/// A length below [`IN_PLACE_BYTES`], and what is behind it.
fn short_len(bytes: &[u8]) -> Option<(usize, &[u8])> {
    match bytes {
        [low @ ..=127, rest @ ..] => Some((usize::from(*low), rest)),
        [low, high, rest @ ..] => Some((usize::from(low & 127) | usize::from(*high) << 7, rest)),
        _ => None,
    }
}

fn xread(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let (mut count, mut block_ms, mut at) = (usize::MAX, None, 1);
    let first = loop {
        if cx.req.is(at, "COUNT") && at + 1 < cx.req.len() {
            count =
                usize::try_from(cx.integer(at + 1)?).ok().filter(|count| *count > 0).unwrap_or(usize::MAX);
            at += 2;
        } else if cx.req.is(at, "BLOCK") && at + 1 < cx.req.len() {
            let ms = parse_integer(&cx.arg(at + 1)).ok_or("ERR timeout is not an integer or out of range")?;
            block_ms = Some(u64::try_from(ms).map_err(|_| "ERR timeout is negative")?);
            at += 2;
        } else if cx.req.is(at, "STREAMS") {
            break at + 1;
        } else {
            return Err(Refusal::Syntax);
        }
    };
    let names = cx.req.len() - first;
    if names == 0 || !names.is_multiple_of(2) {
        return Err(
            "ERR Unbalanced XREAD list of streams: for each stream key an ID or '$' must be specified."
                .into(),
        );
    }
    let mut streams = Vec::new();
    for index in first..first + names / 2 {
        let (key, text) = (cx.arg(index), cx.arg(index + names / 2));
        let last = stream(cx.store, &key)?.map_or(StreamId::default(), |stream| stream.last);
        let after = if &*text == b"$" { last } else { id(&text, 0)? };
        streams.push((Box::<[u8]>::from(&*key), after));
    }
    if reply_news(cx.out, cx.store, cx.shard, &streams, count)? {
        return Ok(());
    }
    match block_ms {
        Some(ms) if !cx.is_in_transaction => {
            let until_ms = if ms == 0 { 0 } else { cx.store.now_ms().saturating_add(ms) };
            let Context { clients, client, .. } = cx;
            clients.wait(client, Waiting { streams, count, until_ms });
        }
        _ => cx.out.null_array(),
    }
    Ok(())
}

/// Replies with the entries behind the given ones; false, and without a reply, if there are none.
fn reply_news(
    out: &mut Reply,
    store: &Store,
    shard: &Shard,
    streams: &[(Box<[u8]>, StreamId)],
    count: usize,
) -> Result<bool, Refusal> {
    let mut news = Vec::new();
    for (key, after) in streams {
        let Some(stream) = stream(store, key)? else { continue };
        let behind = (Bound::Excluded(*after), Bound::Unbounded);
        let entries: Vec<_> = stream.entries.range(behind).take(count).collect();
        if !entries.is_empty() {
            news.push((key, entries));
        }
    }
    if news.is_empty() {
        return Ok(false);
    }
    match out.is_resp3() {
        true => out.map(news.len()),
        false => out.array(news.len()),
    }
    for (key, entries) in news {
        if !out.is_resp3() {
            out.array(2);
        }
        out.bulk(key);
        reply_entries(out, store, shard, entries.into_iter())?;
    }
    Ok(true)
}

/// Goes on with a client that waits, and has been woken, or has waited long enough. It is not among the others meanwhile.
pub fn serve_waiting(client: &mut Client, clients: &mut Clients, store: &Store, shard: &Shard) {
    let Some(waiting) = &client.waiting else { return };
    let is_over = waiting.until_ms != 0 && waiting.until_ms <= store.now_ms();
    let end = client.out.end();
    match reply_news(&mut client.out, store, shard, &waiting.streams, waiting.count) {
        Ok(false) if is_over => client.out.null_array(),
        Ok(false) => return,
        Ok(true) => {}
        Err(refusal) => {
            client.out.cut(end);
            client.out.error(&refusal.to_string());
        }
    }
    clients.stop_waiting(client);
}
