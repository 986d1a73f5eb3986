//! Replies, as they come in over a connection.

use httparse::{EMPTY_HEADER, Response, Status};

/// The longest head that is taken for one.
const MAX_HEAD_BYTES: usize = 4096;
/// Headers of a reply.
const MAX_HEADERS: usize = 32;

/// Why what came is not a reply to an append.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum BadReply {
    /// Another status than 200.
    #[error("a reply has status {0} instead of 200")]
    Status(u16),
    /// Not HTTP.
    #[error("a reply is not HTTP with a Content-Length, or its head is longer than {MAX_HEAD_BYTES} bytes")]
    Malformed,
    /// Bytes behind the reply to the only request.
    #[error("there are more bytes than replies")]
    Surplus,
}

/// The head that came last, whatever the connection: servers repeat themselves, and comparing is cheaper than
/// parsing.
#[derive(Debug, Default)]
pub struct KnownHead {
    head: Vec<u8>,
    body_bytes: u64,
}

/// What of a reply is still to come.
#[derive(Debug)]
pub struct Reply {
    /// The beginning of a head that came in pieces.
    head: Vec<u8>,
    body_left: u64,
    in_body: bool,
}

impl Reply {
    /// A reply of which nothing has come. Takes the memory for a head in pieces.
    pub fn new() -> Self {
        Self { head: Vec::with_capacity(MAX_HEAD_BYTES), body_left: 0, in_body: false }
    }

    /// Takes in the next bytes; says whether the reply is complete, and is then ready for the next.
    ///
    /// # Errors
    /// [`BadReply`]; the connection is of no more use.
    pub fn take(&mut self, bytes: &[u8], known: &mut KnownHead) -> Result<bool, BadReply> {
        if self.in_body {
            return self.take_body(bytes.len() as u64);
        }
        if self.head.is_empty() && !known.head.is_empty() && bytes.starts_with(&known.head) {
            self.body_left = known.body_bytes;
            return self.take_body((bytes.len() - known.head.len()) as u64);
        }
        // Almost always the head is in one piece.
        if self.head.is_empty()
            && let Some((length, body_bytes)) = parse(bytes)?
        {
            known.head.clear();
            known.head.extend_from_slice(&bytes[..length]);
            known.body_bytes = body_bytes;
            self.body_left = body_bytes;
            return self.take_body((bytes.len() - length) as u64);
        }
        if bytes.len() > MAX_HEAD_BYTES - self.head.len() {
            return Err(BadReply::Malformed);
        }
        self.head.extend_from_slice(bytes);
        let Some((length, body_bytes)) = parse(&self.head)? else { return Ok(false) };
        let behind = (self.head.len() - length) as u64;
        self.head.clear();
        self.body_left = body_bytes;
        self.take_body(behind)
    }

    fn take_body(&mut self, bytes: u64) -> Result<bool, BadReply> {
        self.body_left = self.body_left.checked_sub(bytes).ok_or(BadReply::Surplus)?;
        self.in_body = self.body_left > 0;
        Ok(!self.in_body)
    }
}

/// The lengths of a head and of the body behind it; none while the head is incomplete.
fn parse(bytes: &[u8]) -> Result<Option<(usize, u64)>, BadReply> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut response = Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(_) => return Err(BadReply::Malformed),
    };
    match response.code {
        Some(200) => {}
        Some(status) => return Err(BadReply::Status(status)),
        None => return Err(BadReply::Malformed),
    }
    let content_length =
        response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let text = content_length.and_then(|header| std::str::from_utf8(header.value).ok());
    let body = text.and_then(|text| text.trim().parse().ok()).ok_or(BadReply::Malformed)?;
    Ok(Some((length, body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{...}";

    #[test]
    fn a_reply_is_complete_with_its_last_byte_however_it_is_cut() {
        for first in 1..GOOD.len() {
            for second in first..GOOD.len() {
                let (mut reply, mut known) = (Reply::new(), KnownHead::default());
                // Twice, so that the second finds the head known.
                for _ in 0..2 {
                    let mut complete = false;
                    for piece in [&GOOD[..first], &GOOD[first..second], &GOOD[second..]] {
                        assert!(!complete, "complete before {piece:?}");
                        complete = !piece.is_empty() && reply.take(piece, &mut known).expect("a good reply");
                    }
                    assert!(complete, "cut at {first} and {second}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_good_reply_is_an_error() {
        let take = |bytes: &[u8]| Reply::new().take(bytes, &mut KnownHead::default());
        assert_eq!(take(b"HTTP/1.1 507 Full\r\nContent-Length: 0\r\n\r\n"), Err(BadReply::Status(507)));
        assert_eq!(take(b"HTTP/1.1 200 OK\r\n\r\n"), Err(BadReply::Malformed));
        assert_eq!(take(b"\x00\x01"), Err(BadReply::Malformed));
        assert_eq!(take(&[b'a'; MAX_HEAD_BYTES + 1]), Err(BadReply::Malformed));
        assert_eq!(take(&[GOOD, b"x"].concat()), Err(BadReply::Surplus));
        let mut endless = Reply::new();
        let mut known = KnownHead::default();
        let header = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 1000]].concat();
        assert_eq!(endless.take(&header, &mut known), Ok(false));
        for _ in 0..3 {
            assert_eq!(endless.take(&[b'x'; 1000], &mut known), Ok(false));
        }
        assert_eq!(endless.take(&[b'x'; 1000], &mut known), Err(BadReply::Malformed));
    }
}
