//! Replies of the modes that are not `pmlog`: all of one length, and shorter than its own.

use pmlog::http::Refusal;

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 29\r\n\r\n";
/// As many digits as a record's number can have; blanks before them are white space to JSON.
const DIGITS: usize = 20;

/// Bytes of a reply to an append.
pub const REPLY_BYTES: usize = HEAD.len() + b"{\"seq\":  }".len() - 1 + DIGITS;

/// The reply to an append whose record has the number `seq`.
pub(super) fn appended(seq: u64) -> [u8; REPLY_BYTES] {
    let mut reply = [b' '; REPLY_BYTES];
    reply[..HEAD.len()].copy_from_slice(HEAD);
    let body = &mut reply[HEAD.len()..];
    body[..7].copy_from_slice(b"{\"seq\":");
    body[body.len() - 1] = b'}';
    let mut rest = seq;
    for digit in body[7..][..DIGITS].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    reply
}

/// The head of the reply to a read of a record of so many bytes.
pub(super) fn record(len: u64) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n")
}

/// The last reply of a connection that asked for something else.
pub(super) fn refused(refusal: Refusal) -> String {
    let status = refusal.status();
    let (code, phrase) = (status.code, status.phrase);
    format!("HTTP/1.1 {code} {phrase}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reply_has_the_length_that_it_says() {
        for seq in [0, 1, 10, 1234, u64::MAX] {
            let reply = appended(seq);
            let text = std::str::from_utf8(&reply).expect("text");
            let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
            assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{text}");
            let value: serde_json::Value = serde_json::from_str(body).expect("JSON");
            assert_eq!(value["seq"], seq);
        }
    }
}
