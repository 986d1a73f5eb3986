//! A request's head: what is asked, how the body is framed, and whether the connection stays.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Ask, ByteRange, RecordName, Refusal, Route, authority::is_host, decimal::decimal};

/// The longest request head, in bytes.
pub const MAX_HEAD_BYTES: usize = 8 * 1024;
/// The most header fields in a request.
pub(super) const MAX_FIELDS: usize = 64;

/// How the end of the body is found (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Nothing said: there is no body.
    Absent,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// One request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What is asked, or why that cannot be had. The body follows either way.
    pub route: Result<Route, Refusal>,
    /// How the body is framed.
    pub framing: Framing,
    /// HTTP/1.1, as opposed to 1.0: chunked replies are understood.
    pub is_http11: bool,
    /// The connection may serve another request after this one.
    pub keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The client waits for what it expects, and may then send the body or not.
    pub may_withhold_body: bool,
    /// A HEAD request: the reply has no body.
    pub is_head: bool,
}

impl Head {
    /// Parses the head at the start of `bytes`; gives it and its length, or `None` if it is cut short.
    ///
    /// # Errors
    /// A [`Refusal`] after which the connection cannot go on: where the next request starts is not known.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Refusal> {
        Ok(Parsed::of(bytes)?.map(|Parsed { head, length, .. }| (head, length)))
    }
}

/// A head with what is known of its text.
pub(super) struct Parsed {
    pub(super) head: Head,
    /// Bytes of the text.
    pub(super) length: usize,
    /// Where the value of its only `Content-Length` lies, if that is a number.
    pub(super) digits: Option<Range<usize>>,
}

impl Parsed {
    /// As [`Head::parse`].
    pub(super) fn of(bytes: &[u8]) -> Result<Option<Self>, Refusal> {
        // Clearing them all would cost more than the parsing.
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        let length = match request.parse_with_uninit_headers(bytes, &mut fields) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(too_large()),
            Err(httparse::Error::Version) => return Err(version_or_malformed(bytes)),
            Err(error) => return Err(Refusal::Malformed(describe(error))),
        };
        let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version)
        else {
            return Err(Refusal::Malformed("the request line is incomplete"));
        };
        let is_http11 = version == 1;
        let fields = Fields::collect(request.headers)?;
        if fields.hosts > 1 || (is_http11 && fields.hosts == 0) {
            return Err(Refusal::Malformed("exactly one Host field is required"));
        }
        if fields.bad_host {
            return Err(Refusal::Malformed("the Host field is not a host and perhaps a port"));
        }
        let route = match Route::of(method, target) {
            Ok(_) if is_http11 && fields.other_expectation => Err(Refusal::Expectation),
            Ok(Route::Append) if let Some(next) = fields.if_next => next.map(Route::AppendIf),
            // RFC 9110, section 14.2: a range is a matter of GET.
            Ok(Route::Ask(Ask::Record { name, .. })) if method == "GET" => {
                Ok(Route::Ask(Ask::Record { name, range: fields.range() }))
            }
            route => route,
        };
        let head = Head {
            route,
            framing: fields.framing(is_http11)?,
            is_http11,
            keep_alive: if is_http11 { !fields.close } else { fields.keep_alive && !fields.close },
            expects_continue: is_http11 && fields.expects_continue,
            may_withhold_body: is_http11 && (fields.expects_continue || fields.other_expectation),
            is_head: method == "HEAD",
        };
        let place = |value: &[u8]| {
            let from = value.as_ptr().addr() - bytes.as_ptr().addr();
            from..from + value.len()
        };
        Ok(Some(Self { head, length, digits: fields.digits.map(place) }))
    }
}

/// What the header fields say, before the version is taken into account.
#[derive(Default)]
struct Fields<'a> {
    length: Option<u64>,
    /// What that was read from, unless it was read twice or is out of range.
    digits: Option<&'a [u8]>,
    chunked: bool,
    hosts: usize,
    bad_host: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    other_expectation: bool,
    if_next: Option<Result<RecordName, Refusal>>,
    /// The last `Range` field, and how many there are.
    range: Option<ByteRange>,
    ranges: usize,
    /// `If-Range` stands there.
    is_conditional: bool,
}

impl<'a> Fields<'a> {
    fn collect(headers: &[httparse::Header<'a>]) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        for httparse::Header { name, value } in headers {
            // Names that matter all differ in length, so that each is compared with one at most, and most clients
            // write that one as it stands here.
            let is = |known: &str| *name == known || is_in_other_case(name, known);
            match name.len() {
                4 if is("Host") => {
                    fields.hosts += 1;
                    fields.bad_host |= !is_host(value);
                }
                5 if is("Range") => fields.add_range(value),
                6 if is("Expect") => fields.expect(value),
                7 if is("If-Next") => fields.if_next(value),
                8 if is("If-Range") => fields.is_conditional = true,
                10 if is("Connection") => fields.connection(value),
                14 if is("Content-Length") => fields.content_length(value)?,
                17 if is("Transfer-Encoding") => fields.transfer_encoding(value)?,
                _ => {}
            }
        }
        Ok(fields)
    }

    #[cold]
    fn expect(&mut self, value: &[u8]) {
        let known = value.trim_ascii().eq_ignore_ascii_case(b"100-continue");
        self.expects_continue |= known;
        self.other_expectation |= !known;
    }

    #[cold]
    fn if_next(&mut self, value: &[u8]) {
        let name = std::str::from_utf8(value.trim_ascii()).ok().and_then(|text| text.parse().ok());
        let name = name.filter(|_| self.if_next.is_none());
        self.if_next =
            Some(name.ok_or(Refusal::Malformed("If-Next is not one record's number, or SHARD-NUMBER")));
    }

    #[cold]
    fn add_range(&mut self, value: &[u8]) {
        self.range = ByteRange::parse(value);
        self.ranges += 1;
    }

    /// Which bytes are wanted. A record has no validator that `If-Range` could name, so that with it the record is given
    /// whole (RFC 9110, section 13.1.5).
    fn range(&self) -> Option<ByteRange> {
        self.range.filter(|_| self.ranges == 1 && !self.is_conditional)
    }

    #[inline(never)]
    fn connection(&mut self, value: &[u8]) {
        for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            self.close |= token.eq_ignore_ascii_case(b"close");
            self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn content_length(&mut self, value: &'a [u8]) -> Result<(), Refusal> {
        self.digits = None;
        let length = match decimal(value) {
            Some(length) => {
                self.digits = self.length.is_none().then_some(value);
                length
            }
            // It is too long, and not unclear.
            None if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => u64::MAX,
            None => return Err(Refusal::Ambiguous("Content-Length is not a number of bytes")),
        };
        match self.length.replace(length) {
            Some(earlier) if earlier != length => {
                Err(Refusal::Ambiguous("two Content-Length fields do not agree"))
            }
            _ => Ok(()),
        }
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.chunked {
            return Err(Refusal::Ambiguous("Transfer-Encoding stands twice"));
        }
        if !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal::Coding);
        }
        self.chunked = true;
        Ok(())
    }

    fn framing(&self, is_http11: bool) -> Result<Framing, Refusal> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Refusal::Ambiguous("both Transfer-Encoding and Content-Length")),
            // RFC 9112, section 6.1: a coding in an HTTP/1.0 message is faulty framing.
            (true, None) if !is_http11 => Err(Refusal::Ambiguous("Transfer-Encoding in an HTTP/1.0 request")),
            (true, None) => Ok(Framing::Chunked),
            (false, Some(length)) => Ok(Framing::Length(length)),
            (false, None) => Ok(Framing::Absent),
        }
    }
}

#[cold]
fn is_in_other_case(name: &str, known: &str) -> bool {
    name.eq_ignore_ascii_case(known)
}

pub(super) const fn too_large() -> Refusal {
    Refusal::HeadTooLarge { max: MAX_HEAD_BYTES, max_fields: MAX_FIELDS }
}

/// Tells an HTTP version that is not spoken here from a line that has no version at all.
fn version_or_malformed(bytes: &[u8]) -> Refusal {
    let line = bytes.trim_ascii_start().split(|byte| *byte == b'\n').next().unwrap_or_default();
    let version = line.trim_ascii_end().rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    match version {
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', ..] => Refusal::Version,
        _ => Refusal::Malformed("the request line does not end in an HTTP version"),
    }
}

fn describe(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "a character that no field name has",
        httparse::Error::HeaderValue => "a character that no field value has",
        httparse::Error::NewLine => "a line does not end in CR LF",
        httparse::Error::Token => "a character that no request line has",
        _ => "this is not HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<Head, Refusal> {
        let text = format!("POST /append HTTP/1.1\r\nHost: log\r\n{fields}\r\n");
        let (head, length) = Head::parse(text.as_bytes())?.expect("the head is whole");
        assert_eq!(length, text.len());
        Ok(head)
    }

    #[test]
    fn framing_that_two_readers_could_read_differently_is_refused() {
        for fields in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
            "Content-Length: 3\r\nContent-Length: 4\r\n",
            "Content-Length: 3, 3\r\n",
            "Content-Length: +3\r\n",
            "Content-Length: 0x3\r\n",
            "Content-Length: \r\n",
            "Content-Length: 18446744073709551616x\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ] {
            assert!(matches!(parse(fields), Err(Refusal::Ambiguous(_))), "{fields:?}: {:?}", parse(fields));
        }
        for fields in ["Content-Length : 3\r\n", "X: 1\r\n Content-Length: 3\r\n", "Content\0Length: 3\r\n"] {
            assert!(matches!(parse(fields), Err(Refusal::Malformed(_))), "{fields:?}: {:?}", parse(fields));
        }
        assert_eq!(parse("Transfer-Encoding: gzip, chunked\r\n"), Err(Refusal::Coding));
        let old = b"POST /append HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(matches!(Head::parse(old), Err(Refusal::Ambiguous(_))));
    }

    #[test]
    fn framing_is_read_from_the_fields() {
        assert_eq!(parse("").map(|head| head.framing), Ok(Framing::Absent));
        assert_eq!(parse("content-length: 12\r\n").map(|head| head.framing), Ok(Framing::Length(12)));
        let same = "Content-Length: 12\r\nContent-Length: 12\r\n";
        assert_eq!(parse(same).map(|head| head.framing), Ok(Framing::Length(12)));
        for beyond in ["18446744073709551616", "99999999999999999999999999"] {
            let framing = parse(&format!("Content-Length: {beyond}\r\n")).map(|head| head.framing);
            assert_eq!(framing, Ok(Framing::Length(u64::MAX)), "{beyond}");
        }
        let chunked = "Transfer-Encoding: Chunked\r\nExpect: 100-Continue\r\n";
        let head = parse(chunked).expect("a good head");
        assert_eq!((head.framing, head.expects_continue), (Framing::Chunked, true));
    }

    #[test]
    fn fields_are_known_however_their_names_are_written() {
        for (name, value) in [("Content-Length", "12"), ("Connection", "close"), ("Expect", "100-continue")] {
            let head = |name: &str| parse(&format!("{name}: {value}\r\n")).expect("a good head");
            assert_ne!(head(name), head("X-Other"), "{name}");
            for other in [name.to_lowercase(), name.to_uppercase(), name.replace('e', "E")] {
                assert_eq!(head(&other), head(name), "{other}");
            }
        }
        assert!(matches!(parse("hOST: two\r\n"), Err(Refusal::Malformed(_))));
        assert_eq!(parse("transfer-ENCODING: gzip\r\n"), Err(Refusal::Coding));
    }

    #[test]
    fn an_append_may_name_its_number() {
        let route = |fields: &str| parse(fields).expect("a good head").route;
        let name = |shard, seq| Ok(Route::AppendIf(RecordName { shard, seq }));
        assert_eq!(route("If-Next: 7\r\n"), name(None, 7));
        assert_eq!(route("if-next:  1-7 \r\nContent-Length: 3\r\n"), name(Some(1), 7));
        for bad in ["If-Next: \r\n", "If-Next: x\r\n", "If-Next: -1\r\n", "If-Next: 7\r\nIf-Next: 7\r\n"] {
            assert!(matches!(route(bad), Err(Refusal::Malformed(_))), "{bad:?}: {:?}", route(bad));
        }
    }

    #[test]
    fn persistence_follows_version_and_connection_field() {
        let keep = |text: &str| Head::parse(text.as_bytes()).unwrap().unwrap().0.keep_alive;
        assert!(keep("GET /health HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(!keep("GET /health HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n"));
        assert!(!keep("GET /health HTTP/1.0\r\n\r\n"));
        assert!(keep("GET /health HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
    }

    #[test]
    fn hosts_versions_and_sizes_are_checked() {
        let none = b"GET /health HTTP/1.1\r\n\r\n";
        assert!(matches!(Head::parse(none), Err(Refusal::Malformed(_))));
        assert!(matches!(parse("Host: two\r\n"), Err(Refusal::Malformed(_))));
        assert!(matches!(parse("Host: a b/c\r\n"), Err(Refusal::Malformed(_))));
        let host = |value: &str, version: &str| {
            let text = format!("GET /health HTTP/1.{version}\r\nHost: {value}\r\n\r\n");
            Head::parse(text.as_bytes()).map(|head| head.expect("the head is whole").0.route.is_ok())
        };
        for version in ["0", "1"] {
            for value in ["", "log", "log:80", "[::1]:80"] {
                assert_eq!(host(value, version), Ok(true), "{value}");
            }
            for value in ["a b/c", "a/b", "a@b", "[::1", "a:b"] {
                assert!(matches!(host(value, version), Err(Refusal::Malformed(_))), "{value}");
            }
        }
        assert_eq!(Head::parse(b"GET /health HTTP/2.0\r\n\r\n"), Err(Refusal::Version));
        assert!(matches!(Head::parse(b"GET /health\r\n\r\n"), Err(Refusal::Malformed(_))));
        assert_eq!(parse(&"A: b\r\n".repeat(MAX_FIELDS)), Err(too_large()));
        let other = parse("Expect: a-pony\r\n").expect("a good head");
        assert_eq!(other.route, Err(Refusal::Expectation));
    }
}
