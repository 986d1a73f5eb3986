//! Requests: what is accepted in every mode, and how they are cut out of a stream that lies in one piece.

use std::ops::Range;

use pmlog::http::{Framing, Head, HeadCache, MAX_HEAD_BYTES, Refusal, Route};

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

    /// The body of the next request, if it is whole. `heads` knows heads of any connections.
    ///
    /// # Errors
    /// A [`Refusal`] after which the stream is of no use.
    pub(super) fn next(&mut self, heads: &mut HeadCache) -> Result<Option<&[u8]>, Refusal> {
        let body = match self.body.take() {
            Some(body) => body,
            None => {
                match locate(&self.bytes[self.from..self.to], self.max_record_bytes, heads, &mut self.cached)?
                {
                    Some(body) => self.from + body.start..self.from + body.end,
                    None => return Ok(None),
                }
            }
        };
        if body.end > self.to {
            self.body = Some(body);
            return Ok(None);
        }
        self.from = body.end;
        Ok(Some(&self.bytes[body]))
    }

    /// Where the body of the connection's request at the start of `bytes`, which are elsewhere, lies or will lie, once
    /// its head is whole.
    ///
    /// # Errors
    /// It is not an append that can be accepted.
    pub(super) fn locate(
        &mut self,
        bytes: &[u8],
        heads: &mut HeadCache,
    ) -> Result<Option<Range<usize>>, Refusal> {
        locate(bytes, self.max_record_bytes, heads, &mut self.cached)
    }
}

fn locate(
    bytes: &[u8],
    max: u64,
    heads: &mut HeadCache,
    cached: &mut u8,
) -> Result<Option<Range<usize>>, Refusal> {
    let parsed = heads.parse(bytes, cached)?;
    let length = parsed.as_ref().map_or(bytes.len(), |(_, length)| *length);
    match parsed {
        _ if length > MAX_HEAD_BYTES => Err(Refusal::Malformed("the head is too long")),
        Some((head, _)) => Ok(Some(length..length + accept(&head, max)?)),
        None => Ok(None),
    }
}

/// The length of the body of a request that is an append.
///
/// # Errors
/// It is none, or one without a length, or too long.
fn accept(head: &Head, max: u64) -> Result<usize, Refusal> {
    match (head.route?, head.framing) {
        (Route::Append, Framing::Length(length)) if length <= max => Ok(length as usize),
        (Route::Append, Framing::Length(_)) => Err(Refusal::TooLarge { max }),
        (Route::Append, _) => Err(Refusal::LengthRequired),
        (Route::Ask(_), _) => Err(Refusal::NoResource),
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
        let text: Vec<u8> = bodies.iter().flat_map(|body| request(body)).collect();
        let mut heads = HeadCache::default();
        for piece_bytes in [1, 7, 64, 1000, text.len()] {
            let (mut stream, mut found) = (Stream::new(100), Vec::new());
            let mut rest = &text[..];
            while !rest.is_empty() {
                let room = stream.room();
                let count = rest.len().min(piece_bytes).min(room.len());
                assert!(count > 0);
                room[..count].copy_from_slice(&rest[..count]);
                stream.received(count);
                rest = &rest[count..];
                while let Some(body) = stream.next(&mut heads).expect("good requests") {
                    found.push(body.to_vec());
                }
            }
            assert!(found == bodies && !stream.is_mid_request(), "in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn what_is_no_append_of_a_known_length_is_refused() {
        for (text, expected) in [
            ("GET /health HTTP/1.1\r\nHost: a\r\n\r\n", 404),
            ("POST /append HTTP/1.1\r\nHost: a\r\n\r\n", 411),
            ("POST /append HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
            ("POST /append HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n", 413),
            ("nonsense\r\n\r\n", 400),
            (&"a".repeat(MAX_HEAD_BYTES + 1), 400),
        ] {
            let mut stream = Stream::new(100);
            stream.room()[..text.len()].copy_from_slice(text.as_bytes());
            stream.received(text.len());
            let refused = stream.next(&mut HeadCache::default()).expect_err("refused");
            assert_eq!(refused.status().code, expected, "{text}");
        }
    }
}
