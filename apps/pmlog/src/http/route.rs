//! What a request asks for: method and target taken together.

use super::Refusal;

/// Records listed when the client does not say how many.
pub const DEFAULT_LIST_LIMIT: u64 = 100;
/// The most records that one listing gives; a larger `limit` is cut to it.
pub const MAX_LIST_LIMIT: u64 = 1000;

/// One thing that the server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `POST /append`: the body becomes a record.
    Append,
    /// Anything else: it needs no body, and looks at the store only when it is its turn.
    Ask(Ask),
}

/// A request other than an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// `GET /records/N`: one record's bytes.
    Record(u64),
    /// `GET /records?from=N&limit=M`: what the records are.
    List {
        /// The first number of interest; without it, the oldest record.
        from: Option<u64>,
        /// How many records at most.
        limit: u64,
    },
    /// `DELETE /records?before=N`: forgets the records below N.
    Trim {
        /// The first record to stay.
        before: u64,
    },
    /// `GET /health`: how the store is.
    Health,
}

impl Route {
    /// Finds what `method` on `target` means (origin form or absolute form, RFC 9112, section 3.2).
    ///
    /// # Errors
    /// [`Refusal::NoResource`], [`Refusal::Method`] or [`Refusal::BadTarget`].
    pub fn of(method: &str, target: &str) -> Result<Self, Refusal> {
        let target = origin_form(target).ok_or(Refusal::NoResource)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let reads = matches!(method, "GET" | "HEAD");
        match path {
            "/append" if method == "POST" => no_query(query).map(|()| Self::Append),
            "/append" => Err(Refusal::Method { allow: "POST" }),
            "/health" if reads => no_query(query).map(|()| Self::Ask(Ask::Health)),
            "/health" => Err(Refusal::Method { allow: "GET, HEAD" }),
            "/records" if reads => {
                let [from, limit] = numbers(query, ["from", "limit"])?;
                let limit = limit.unwrap_or(DEFAULT_LIST_LIMIT).min(MAX_LIST_LIMIT);
                Ok(Self::Ask(Ask::List { from, limit }))
            }
            "/records" if method == "DELETE" => {
                let [before] = numbers(query, ["before"])?;
                let before = before.ok_or(Refusal::BadTarget("a trim needs ?before=N"))?;
                Ok(Self::Ask(Ask::Trim { before }))
            }
            "/records" => Err(Refusal::Method { allow: "GET, HEAD, DELETE" }),
            _ => {
                let name = path.strip_prefix("/records/").ok_or(Refusal::NoResource)?;
                if !reads {
                    return Err(Refusal::Method { allow: "GET, HEAD" });
                }
                no_query(query)?;
                let seq = decimal(name).ok_or(Refusal::BadTarget("a record's name is its number"))?;
                Ok(Self::Ask(Ask::Record(seq)))
            }
        }
    }
}

/// The path and query of a target; `None` for `*` and for an authority alone.
fn origin_form(target: &str) -> Option<&str> {
    if target.starts_with('/') {
        return Some(target);
    }
    let scheme = target.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"))?;
    let rest = &target[scheme.len()..];
    rest.find('/').map(|path| &rest[path..])
}

fn no_query(query: &str) -> Result<(), Refusal> {
    numbers::<0>(query, []).map(|_| ())
}

/// The values of the query's keys, each a number and given at most once.
fn numbers<const N: usize>(query: &str, keys: [&str; N]) -> Result<[Option<u64>; N], Refusal> {
    let mut values = [None; N];
    for field in query.split('&').filter(|field| !field.is_empty()) {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        let place = keys
            .iter()
            .position(|known| *known == key)
            .ok_or(Refusal::BadTarget("a key in the query is not understood here"))?;
        let value = decimal(value).ok_or(Refusal::BadTarget("a value in the query is not a number"))?;
        if values[place].replace(value).is_some() {
            return Err(Refusal::BadTarget("a key stands twice in the query"));
        }
    }
    Ok(values)
}

/// Digits only: `str::parse` would also take a sign.
pub(super) fn decimal(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_lead_to_routes() {
        let list = |from, limit| Ok(Route::Ask(Ask::List { from, limit }));
        for (method, target, expected) in [
            ("POST", "/append", Ok(Route::Append)),
            ("POST", "/append?", Ok(Route::Append)),
            ("GET", "/records/7", Ok(Route::Ask(Ask::Record(7)))),
            ("HEAD", "/records/7", Ok(Route::Ask(Ask::Record(7)))),
            ("GET", "HTTP://log.example:80/records/7", Ok(Route::Ask(Ask::Record(7)))),
            ("GET", "/records", list(None, DEFAULT_LIST_LIMIT)),
            ("GET", "/records?limit=2&from=9", list(Some(9), 2)),
            ("GET", "/records?limit=18446744073709551615", list(None, MAX_LIST_LIMIT)),
            ("DELETE", "/records?before=12", Ok(Route::Ask(Ask::Trim { before: 12 }))),
            ("GET", "/health", Ok(Route::Ask(Ask::Health))),
            ("GET", "/append", Err(Refusal::Method { allow: "POST" })),
            ("DELETE", "/health", Err(Refusal::Method { allow: "GET, HEAD" })),
            ("PUT", "/records", Err(Refusal::Method { allow: "GET, HEAD, DELETE" })),
            ("DELETE", "/records/7", Err(Refusal::Method { allow: "GET, HEAD" })),
            ("GET", "/", Err(Refusal::NoResource)),
            ("OPTIONS", "*", Err(Refusal::NoResource)),
            ("GET", "http://log.example", Err(Refusal::NoResource)),
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
            ("GET", "/records?from=1&from=2"),
            ("GET", "/records?from"),
            ("GET", "/records?since=1"),
            ("DELETE", "/records"),
            ("DELETE", "/records?before=-1"),
            ("POST", "/append?x=1"),
        ] {
            assert!(matches!(Route::of(method, target), Err(Refusal::BadTarget(_))), "{method} {target}");
        }
    }
}
