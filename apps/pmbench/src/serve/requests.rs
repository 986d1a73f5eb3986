//! Requests: what is accepted in every mode, and how they are cut out of a stream that lies in one piece.

use std::ops::Range;

use pmlog::http::{Ask, Framing, Head, HeadCache, MAX_HEAD_BYTES, RecordName, Refusal, Route};

/// A whole request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request<'a> {
    /// Its body is to become a record.
    Append(&'a [u8]),
    /// A record is asked for.
    Read { seq: u64 },
}

/// What a request is, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Located {
    /// An append, whose body lies there, or will.
    Append(Range<usize>),
    /// A read of a record, and the request's length.
    Read { seq: u64, len: usize },
}

/// The bytes of one connection that are received and not answered, one behind the other.
pub(super) struct Stream {
    bytes: Box<[u8]>,
    /// The next request begins at `from`, and so much is filled.
    from: usize,
    to: usize,
    /// Where the current request's body lies, once its head is parsed.
    body: Option<Range<usize>>,
    max_record_bytes: u64,
    /// Where the cache had the last head.
    cached: u8,
}

impl Stream {
    /// Room for one request of the greatest length, and for a byte that is too much.
    pub(super) fn new(max_record_bytes: u64) -> Self {
        let bytes = vec![0; MAX_HEAD_BYTES + max_record_bytes as usize + 1].into();
        Self { bytes, from: 0, to: 0, body: None, max_record_bytes, cached: 0 }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        (self.from, self.to, self.body) = (0, 0, None);
    }

    /// Whether a request has begun that is not whole.
    pub(super) fn is_mid_request(&self) -> bool {
        self.from < self.to
    }

    /// Where to put what is received next: never empty as long as [`next`](Self::next) was asked until there was
    /// no more. [`received`](Self::received) says how much it was.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.from > 0 {
            // Only what pipelining clients have sent too soon is ever moved.
            self.bytes.copy_within(self.from..self.to, 0);
            self.to -= self.from;
            if let Some(body) = &mut self.body {
                *body = body.start - self.from..body.end - self.from;
            }
            self.from = 0;
        }
        &mut self.bytes[self.to..]
    }

    /// So many bytes were put into [`room`](Self::room).
    pub(super) fn received(&mut self, count: usize) {
        self.to += count;
    }

    /// The next request, if it is whole. `heads` knows heads of any connections.
    ///
    /// # Errors
    /// A [`Refusal`] after which the stream is of no use.
    pub(super) fn next(&mut self, heads: &mut HeadCache) -> Result<Option<Request<'_>>, Refusal> {
        let body = match self.body.take() {
            Some(body) => body,
            None => {
                let bytes = &self.bytes[self.from..self.to];
                match locate(bytes, self.max_record_bytes, heads, &mut self.cached)? {
                    Some(Located::Append(body)) => self.from + body.start..self.from + body.end,
                    Some(Located::Read { seq, len }) => {
                        self.from += len;
                        return Ok(Some(Request::Read { seq }));
                    }
                    None => return Ok(None),
                }
            }
        };
        if body.end > self.to {
            self.body = Some(body);
            return Ok(None);
        }
        self.from = body.end;
        Ok(Some(Request::Append(&self.bytes[body])))
    }

    /// What the connection's request at the start of `bytes`, which are elsewhere, is, once its head is whole.
    ///
    /// # Errors
    /// It is neither an append nor a read that can be accepted.
    pub(super) fn locate(&mut self, bytes: &[u8], heads: &mut HeadCache) -> Result<Option<Located>, Refusal> {
        locate(bytes, self.max_record_bytes, heads, &mut self.cached)
    }
}

fn locate(
    bytes: &[u8],
    max: u64,
    heads: &mut HeadCache,
    cached: &mut u8,
) -> Result<Option<Located>, Refusal> {
    let parsed = heads.parse(bytes, cached)?;
    let length = parsed.as_ref().map_or(bytes.len(), |(_, length)| *length);
    match parsed {
        _ if length > MAX_HEAD_BYTES => Err(Refusal::Malformed("the head is too long")),
        Some((head, _)) => accept(&head, length, max).map(Some),
        None => Ok(None),
    }
}

/// What the request of a head is that is `len` bytes long.
///
/// # Errors
/// An append without a length or of too great a one, or another request than a read of a record.
fn accept(head: &Head, len: usize, max: u64) -> Result<Located, Refusal> {
    match (head.route?, head.framing) {
        (Route::Append, Framing::Length(body)) if body <= max => {
            Ok(Located::Append(len..len + body as usize))
        }
        (Route::Append, Framing::Length(_)) => Err(Refusal::TooLarge { max }),
        (Route::Append, _) => Err(Refusal::LengthRequired),
        // There is one shard, and a record needs no more than its number.
        (Route::Ask(Ask::Record { name: RecordName { shard: None, seq }, range: None }), Framing::Absent) => {
            Ok(Located::Read { seq, len })
        }
        // Nor does a measurement repeat what it has sent.
        (Route::Ask(_) | Route::AppendIf(_), _) => Err(Refusal::NoResource),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: &[u8]) -> Vec<u8> {
        let head = format!("POST /append HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    #[test]
    fn bodies_come_out_whatever_the_pieces() {
        let bodies: Vec<Vec<u8>> = (0..40).map(|i| vec![i as u8; i * 29 % 100]).collect();
        // Between them the records are asked for.
        let read =
            |number: usize| format!("GET /records/{} HTTP/1.1\r\nHost: a\r\n\r\n", number + 1).into_bytes();
        let each = bodies.iter().enumerate();
        let text: Vec<u8> = each.flat_map(|(number, body)| [request(body), read(number)].concat()).collect();
        for piece_bytes in [1, 7, 64, 1000, text.len()] {
            let (mut stream, mut found) = (Stream::new(100), Vec::new());
            let mut heads = HeadCache::default();
            let mut rest = &text[..];
            while !rest.is_empty() {
                let room = stream.room();
                let count = rest.len().min(piece_bytes).min(room.len());
                assert!(count > 0);
                room[..count].copy_from_slice(&rest[..count]);
                stream.received(count);
                rest = &rest[count..];
                while let Some(request) = stream.next(&mut heads).expect("good requests") {
                    match request {
                        Request::Append(body) => found.push(body.to_vec()),
                        Request::Read { seq } => assert_eq!(found.len() as u64, seq),
                    }
                }
            }
            assert!(found == bodies && !stream.is_mid_request(), "in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn what_is_neither_a_read_nor_an_append_of_a_known_length_is_refused() {
        for (text, expected) in [
            ("GET /health HTTP/1.1\r\nHost: a\r\n\r\n", 404),
            ("GET /records/1-2 HTTP/1.1\r\nHost: a\r\n\r\n", 404),
            ("POST /append HTTP/1.1\r\nHost: a\r\n\r\n", 411),
            ("POST /append HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
            ("POST /append HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n", 413),
            ("nonsense\r\n\r\n", 400),
            (&"a".repeat(MAX_HEAD_BYTES + 1), 400),
        ] {
            let mut stream = Stream::new(100);
            stream.room()[..text.len()].copy_from_slice(text.as_bytes());
            stream.received(text.len());
            assert_eq!(
                stream.next(&mut HeadCache::default()).expect_err("refused").status().code,
                expected,
                "{text}"
            );
        }
    }
}
