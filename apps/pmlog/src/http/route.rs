//! What a request asks for: method and target taken together.

use super::{ByteRange, Position, RecordName, Refusal, authority::is_authority, decimal::decimal};

/// Records listed when the client does not say how many.
pub const DEFAULT_LIST_LIMIT: u64 = 100;
/// The most records that one listing gives; a larger `limit` is cut to it.
pub const MAX_LIST_LIMIT: u64 = 1000;

/// One thing that the server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `POST /append`: the body becomes a record.
    Append,
    /// The same with `If-Next: N` or `If-Next: S-N`: only if that is the number that the record gets.
    AppendIf(RecordName),
    /// Anything else: it needs no body, and looks at the store only when it is its turn.
    Ask(Ask),
}

/// A request other than an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// `GET /records/N` or `GET /records/S-N`: one record's bytes.
    Record {
        /// Which one.
        name: RecordName,
        /// Which of its bytes; without it, all.
        range: Option<ByteRange>,
    },
    /// `GET /records?shard=S&from=N&limit=M`: what the records are.
    List {
        /// The shard of interest; without it, all.
        shard: Option<u32>,
        /// The first of interest; without it, the oldest record.
        from: Option<Start>,
        /// How many records at most.
        limit: u64,
    },
    /// `GET /records?shard=S&from=N&follow=1&content=1`: records, line by line.
    Feed {
        /// The shard of interest; without it, the only one.
        shard: Option<u32>,
        /// The first of interest.
        from: FeedStart,
        /// How many records at most.
        limit: u64,
        /// Whether what is yet to come is wanted, too.
        follow: bool,
        /// Whether the records' bytes are wanted.
        content: bool,
    },
    /// `DELETE /records?before=N` or `?before=S-N`: forgets the records of a shard below N.
    Trim {
        /// The first record to stay.
        before: RecordName,
    },
    /// `GET /health`: how the store is.
    Health,
}

/// Where a listing begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At this number of the shard.
    Seq(u64),
    /// At this position among the records of all shards: `E-S-N`.
    Position(Position),
}

/// Where a feed begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedStart {
    /// With the oldest record.
    Oldest,
    /// At this number of the shard.
    Seq(u64),
    /// With the next record that becomes durable: `from=next`.
    Next,
}

impl Route {
    /// Finds what `method` on `target` means (origin form or absolute form, RFC 9112, section 3.2).
    ///
    /// # Errors
    /// [`Refusal::NoResource`], [`Refusal::Method`] or [`Refusal::BadTarget`].
    #[inline]
    pub fn of(method: &str, target: &str) -> Result<Self, Refusal> {
        // What comes for each record is not taken apart first.
        if method == "POST" && target == "/append" { Ok(Self::Append) } else { Self::of_any(method, target) }
    }

    fn of_any(method: &str, target: &str) -> Result<Self, Refusal> {
        let target = origin_form(target)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let reads = matches!(method, "GET" | "HEAD");
        match path {
            "/append" if method == "POST" => no_query(query).map(|()| Self::Append),
            "/append" => Err(Refusal::Method { allow: "POST" }),
            "/health" if reads => no_query(query).map(|()| Self::Ask(Ask::Health)),
            "/health" => Err(Refusal::Method { allow: "GET, HEAD" }),
            "/records" if reads => list(query).map(Self::Ask),
            "/records" if method == "DELETE" => {
                let [before] = values(query, ["before"])?;
                let before = before.ok_or(Refusal::BadTarget("a trim needs ?before=N"))?;
                Ok(Self::Ask(Ask::Trim { before: name(before)? }))
            }
            "/records" => Err(Refusal::Method { allow: "GET, HEAD, DELETE" }),
            _ => {
                let text = path.strip_prefix("/records/").ok_or(Refusal::NoResource)?;
                if !reads {
                    return Err(Refusal::Method { allow: "GET, HEAD" });
                }
                no_query(query)?;
                Ok(Self::Ask(Ask::Record { name: name(text)?, range: None }))
            }
        }
    }
}

/// What a list, or a feed, is to have.
fn list(query: &str) -> Result<Ask, Refusal> {
    let [shard, from, limit, follow, content] =
        values(query, ["shard", "from", "limit", "follow", "content"])?;
    let shard = shard.map(|text| number(text).map(|shard| u32::try_from(shard).unwrap_or(u32::MAX)));
    let shard = shard.transpose()?;
    let limit = limit.map(number).transpose()?;
    let (follow, content) = (switch(follow)?, switch(content)?);
    if follow || content {
        let from = match from {
            None => FeedStart::Oldest,
            Some("next") => FeedStart::Next,
            Some(text) => FeedStart::Seq(number(text)?),
        };
        return Ok(Ask::Feed { shard, from, limit: limit.unwrap_or(u64::MAX), follow, content });
    }
    let from = from.map(|text| match Position::parse(text) {
        Some(position) => Ok(Start::Position(position)),
        None => number(text).map(Start::Seq),
    });
    let limit = limit.unwrap_or(DEFAULT_LIST_LIMIT).min(MAX_LIST_LIMIT);
    Ok(Ask::List { shard, from: from.transpose()?, limit })
}

fn switch(value: Option<&str>) -> Result<bool, Refusal> {
    match value {
        Some("1") => Ok(true),
        None | Some("0") => Ok(false),
        Some(_) => {
            Err(Refusal::BadTarget("follow and content are 1, or 0, which is as if they were left out"))
        }
    }
}

/// The path and query of a target. There are none in `*`, nor in an authority alone.
fn origin_form(target: &str) -> Result<&str, Refusal> {
    if target.starts_with('/') {
        return Ok(target);
    }
    let scheme = target.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"));
    let rest = &target[scheme.ok_or(Refusal::NoResource)?.len()..];
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if !is_authority(authority.as_bytes()) {
        return Err(Refusal::BadTarget("what stands before the path is not a host and perhaps a port"));
    }
    if path.starts_with('/') { Ok(path) } else { Err(Refusal::NoResource) }
}

fn no_query(query: &str) -> Result<(), Refusal> {
    if query.is_empty() {
        return Ok(());
    }
    values::<0>(query, []).map(|_| ())
}

fn name(text: &str) -> Result<RecordName, Refusal> {
    text.parse().map_err(|_| Refusal::BadTarget("a record's name is its number, or SHARD-NUMBER"))
}

fn number(text: &str) -> Result<u64, Refusal> {
    decimal(text).ok_or(Refusal::BadTarget("a value in the query is not a number"))
}

/// The values of the query's keys, each given at most once.
fn values<'a, const N: usize>(query: &'a str, keys: [&str; N]) -> Result<[Option<&'a str>; N], Refusal> {
    let mut values = [None; N];
    for field in query.split('&').filter(|field| !field.is_empty()) {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        let place = keys
            .iter()
            .position(|known| *known == key)
            .ok_or(Refusal::BadTarget("a key in the query is not understood here"))?;
        if values[place].replace(value).is_some() {
            return Err(Refusal::BadTarget("a key stands twice in the query"));
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_lead_to_routes() {
        let list = |from: Option<u64>, limit| {
            Ok(Route::Ask(Ask::List { shard: None, from: from.map(Start::Seq), limit }))
        };
        let feed = |shard, from, limit, (follow, content)| {
            Ok(Route::Ask(Ask::Feed { shard, from, limit, follow, content }))
        };
        let name = |shard, seq| RecordName { shard, seq };
        let record = |shard, seq| Ok(Route::Ask(Ask::Record { name: name(shard, seq), range: None }));
        let position = Position { epoch: 3, shard: 1, seq: 9 };
        for (method, target, expected) in [
            ("POST", "/append", Ok(Route::Append)),
            ("POST", "/append?", Ok(Route::Append)),
            ("GET", "/records/7", record(None, 7)),
            ("HEAD", "/records/7", record(None, 7)),
            ("GET", "/records/1-7", record(Some(1), 7)),
            ("GET", "HTTP://log.example:80/records/7", record(None, 7)),
            ("GET", "/records", list(None, DEFAULT_LIST_LIMIT)),
            ("GET", "/records?limit=2&from=9", list(Some(9), 2)),
            ("GET", "/records?limit=18446744073709551615", list(None, MAX_LIST_LIMIT)),
            (
                "GET",
                "/records?shard=1&from=9",
                Ok(Route::Ask(Ask::List {
                    shard: Some(1),
                    from: Some(Start::Seq(9)),
                    limit: DEFAULT_LIST_LIMIT,
                })),
            ),
            (
                "GET",
                "/records?from=3-1-9&limit=5",
                Ok(Route::Ask(Ask::List { shard: None, from: Some(Start::Position(position)), limit: 5 })),
            ),
            ("DELETE", "/records?before=12", Ok(Route::Ask(Ask::Trim { before: name(None, 12) }))),
            ("DELETE", "/records?before=2-12", Ok(Route::Ask(Ask::Trim { before: name(Some(2), 12) }))),
            ("GET", "/records?follow=1", feed(None, FeedStart::Oldest, u64::MAX, (true, false))),
            (
                "GET",
                "/records?from=next&follow=1&content=0",
                feed(None, FeedStart::Next, u64::MAX, (true, false)),
            ),
            (
                "GET",
                "/records?content=1&shard=2&from=9&limit=5000",
                feed(Some(2), FeedStart::Seq(9), 5000, (false, true)),
            ),
            ("GET", "/records?follow=0&content=0&from=9", list(Some(9), DEFAULT_LIST_LIMIT)),
            ("GET", "/health", Ok(Route::Ask(Ask::Health))),
            ("GET", "/append", Err(Refusal::Method { allow: "POST" })),
            ("DELETE", "/health", Err(Refusal::Method { allow: "GET, HEAD" })),
            ("PUT", "/records", Err(Refusal::Method { allow: "GET, HEAD, DELETE" })),
            ("DELETE", "/records/7", Err(Refusal::Method { allow: "GET, HEAD" })),
            ("GET", "/", Err(Refusal::NoResource)),
            ("OPTIONS", "*", Err(Refusal::NoResource)),
            ("GET", "http://log.example", Err(Refusal::NoResource)),
            ("GET", "http://log.example?x=/health", Err(Refusal::NoResource)),
            ("GET", "http://log.example#/health", Err(Refusal::NoResource)),
            ("GET", "http://[fd00::2]:80/health", Ok(Route::Ask(Ask::Health))),
            ("GET", "https://log.example/health", Err(Refusal::NoResource)),
        ] {
            assert_eq!(Route::of(method, target), expected, "{method} {target}");
        }
    }

    #[test]
    fn bad_numbers_are_refused() {
        for (method, target) in [
            ("GET", "/records/"),
            ("GET", "/records/+7"),
            ("GET", "/records/7/"),
            ("GET", "/records/18446744073709551616"),
            ("GET", "/records/1-2-3"),
            ("GET", "/records/-7"),
            ("GET", "/records?from=1-2"),
            ("GET", "/records?shard=-1"),
            ("GET", "/records?limit=1-2-3"),
            ("DELETE", "/records?before=1-2-3"),
            ("GET", "/records?from=1&from=2"),
            ("GET", "/records?from"),
            ("GET", "/records?since=1"),
            ("GET", "/records?from=next"),
            ("GET", "/records?follow=yes"),
            ("GET", "/records?follow"),
            ("GET", "/records?follow=1&from=1-0-1"),
            ("DELETE", "/records"),
            ("DELETE", "/records?before=-1"),
            ("POST", "/append?x=1"),
            ("GET", "http:///health"),
            ("GET", "http://:80/health"),
            ("GET", "http://a@b/health"),
            ("GET", "http://a:b/health"),
            ("GET", "http://[fd00::2/health"),
            ("GET", "http://?/health"),
        ] {
            assert!(matches!(Route::of(method, target), Err(Refusal::BadTarget(_))), "{method} {target}");
        }
    }
}
