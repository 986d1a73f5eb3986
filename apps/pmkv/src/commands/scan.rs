//! Looking keys, fields and members over.

use rand::RngExt as _;

use super::command;
use crate::command::{Command, Context, Refusal, reply_value};
use crate::glob;
use crate::resp::{Reply, parse_integer};
use crate::store::{Dict, Object};

pub(super) const COMMANDS: &[Command] = &[
    command!("dbsize", 1, [Readonly Fast], (0, 0, 0), |cx| {
        cx.out.integer(cx.store.len() as i64);
        Ok(())
    }),
    command!("hscan", -3, [Readonly], (1, 1, 1), hscan),
    command!("keys", 2, [Readonly], (0, 0, 0), keys),
    command!("randomkey", 1, [Readonly], (0, 0, 0), randomkey),
    command!("scan", -2, [Readonly], (0, 0, 0), scan),
    command!("sscan", -3, [Readonly], (1, 1, 1), sscan),
];

fn keys(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let pattern = cx.arg(1);
    let found: Vec<&[u8]> =
        cx.store.iter().map(|(key, _)| key).filter(|key| glob::matches(&pattern, key)).collect();
    cx.out.array(found.len());
    found.into_iter().for_each(|key| cx.out.bulk(key));
    Ok(())
}

fn randomkey(cx: &mut Context<'_>) -> Result<(), Refusal> {
    // A key that has expired may be met more than once.
    let tries = cx.store.len().min(100);
    match (0..tries).find_map(|_| cx.store.any(rand::rng().random())) {
        Some(key) => cx.out.bulk(key),
        None => cx.out.null(),
    }
    Ok(())
}

/// What SCAN and its kin are asked for.
struct Scan {
    cursor: u64,
    pattern: Option<Vec<u8>>,
    count: usize,
    kind: Option<Vec<u8>>,
}

impl Scan {
    fn parse(cx: &Context<'_>, at: usize) -> Result<Self, Refusal> {
        let cursor = std::str::from_utf8(&cx.arg(at)).ok().and_then(|text| text.parse().ok());
        let cursor = cursor.ok_or(Refusal::Cursor)?;
        let mut scan = Self { cursor, pattern: None, count: 10, kind: None };
        let mut at = at + 1;
        while at < cx.req.len() {
            if at + 1 == cx.req.len() {
                return Err(Refusal::Syntax);
            }
            let value = cx.arg(at + 1);
            if cx.req.is(at, "MATCH") {
                scan.pattern = Some(value.into_owned());
            } else if cx.req.is(at, "COUNT") {
                let count = parse_integer(&value).ok_or(Refusal::NotAnInteger)?;
                scan.count = usize::try_from(count).ok().filter(|count| *count > 0).ok_or(Refusal::Syntax)?;
            } else if cx.req.is(at, "TYPE") && cx.name == "scan" {
                scan.kind = Some(value.to_ascii_lowercase());
            } else {
                return Err(Refusal::Syntax);
            }
            at += 2;
        }
        Ok(scan)
    }

    fn takes(&self, name: &[u8]) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| glob::matches(pattern, name))
    }
}

fn scan(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let scan = Scan::parse(cx, 1)?;
    let mut found = Vec::new();
    let next = cx.store.scan(scan.cursor, scan.count, |key, entry| {
        let is_kind = scan.kind.as_ref().is_none_or(|kind| *kind == entry.object.kind().as_bytes());
        if is_kind && scan.takes(key) {
            found.push(key);
        }
    });
    begin(cx.out, next, found.len());
    found.into_iter().for_each(|key| cx.out.bulk(key));
    Ok(())
}

fn begin(out: &mut Reply, next: u64, len: usize) {
    out.array(2);
    out.bulk(itoa::Buffer::new().format(next).as_bytes());
    out.array(len);
}

fn hscan(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let scan = Scan::parse(cx, 2)?;
    let Context { store, shard, out, req, .. } = cx;
    let fields = match store.get(&req.arg(1)).map(|entry| &entry.object) {
        None => &Box::default(),
        Some(Object::Hash(fields)) => fields,
        Some(_) => return Err(Refusal::WrongType),
    };
    let (next, found) = part(fields, &scan);
    begin(out, next, 2 * found.len());
    for (field, value) in found {
        out.bulk(field);
        reply_value(out, store, shard, value)?;
    }
    Ok(())
}

fn sscan(cx: &mut Context<'_>) -> Result<(), Refusal> {
    let scan = Scan::parse(cx, 2)?;
    let members = match cx.store.get(&cx.arg(1)).map(|entry| &entry.object) {
        None => &Box::default(),
        Some(Object::Set(members)) => members,
        Some(_) => return Err(Refusal::WrongType),
    };
    let (next, found) = part(members, &scan);
    begin(cx.out, next, found.len());
    found.into_iter().for_each(|(member, _)| cx.out.bulk(member));
    Ok(())
}

fn part<'a, V>(dict: &'a Dict<V>, scan: &Scan) -> (u64, Vec<(&'a [u8], &'a V)>) {
    let mut found = Vec::new();
    let next = dict.scan(scan.cursor, scan.count, |name, value| {
        if scan.takes(name) {
            found.push((name, value));
        }
    });
    (next, found)
}
