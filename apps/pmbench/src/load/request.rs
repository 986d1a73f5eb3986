//! The bytes of the request that every connection sends.

use std::num::NonZeroU32;

use super::cli::LoadArgs;

/// An append of `args.size` bytes, with its length in front or in chunks (RFC 9112, sections 6.2 and 7.1).
pub fn request(args: &LoadArgs) -> Vec<u8> {
    let data: Vec<u8> = (0..args.size).map(|at| b'a' + (at % 26) as u8).collect();
    let (framing, body) = match args.chunk {
        None => (format!("Content-Length: {}", args.size), data),
        Some(chunk) => ("Transfer-Encoding: chunked".to_owned(), chunked(&data, chunk)),
    };
    let head = format!("POST /append HTTP/1.1\r\nHost: {}\r\n{framing}\r\n\r\n", args.target);
    [head.into_bytes(), body].concat()
}

/// A read of the record with the number `seq`.
pub fn read(args: &LoadArgs, seq: u64) -> Vec<u8> {
    format!("GET /records/{seq} HTTP/1.1\r\nHost: {}\r\n\r\n", args.target).into_bytes()
}

fn chunked(data: &[u8], chunk_bytes: NonZeroU32) -> Vec<u8> {
    let mut body = Vec::new();
    for chunk in data.chunks(chunk_bytes.get() as usize) {
        body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        body.extend(chunk);
        body.extend(b"\r\n");
    }
    body.extend(b"0\r\n\r\n");
    body
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        load: LoadArgs,
    }

    fn request_of(more: &[&str]) -> String {
        let device = ["load", "--dev", "net_null0", "--ip", "10.0.0.2/24", "--target", "10.0.0.1:80"];
        let args = Arguments::try_parse_from(device.iter().chain(more)).expect("good arguments");
        String::from_utf8(request(&args.load)).expect("a request is text")
    }

    #[test]
    fn a_body_has_its_length_in_front() {
        let expected = "POST /append HTTP/1.1\r\nHost: 10.0.0.1:80\r\nContent-Length: 30\r\n\r\nabcdefghijklmnopqrstuvwxyzabcd";
        assert_eq!(request_of(&["--size", "30"]), expected);
    }

    #[test]
    fn a_body_comes_in_chunks() {
        let head = "POST /append HTTP/1.1\r\nHost: 10.0.0.1:80\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunked = |size, chunk| request_of(&["--size", size, "--chunk", chunk]);
        assert_eq!(chunked("18", "16"), format!("{head}10\r\nabcdefghijklmnop\r\n2\r\nqr\r\n0\r\n\r\n"));
        assert_eq!(chunked("2", "1"), format!("{head}1\r\na\r\n1\r\nb\r\n0\r\n\r\n"));
        assert_eq!(chunked("3", "1000"), format!("{head}3\r\nabc\r\n0\r\n\r\n"));
    }
}
