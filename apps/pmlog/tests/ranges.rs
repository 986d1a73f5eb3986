//! Parts of records (RFC 9110, section 14).

mod common;

use common::{Lab, Response, alter, body, request};
use stack::net::ConnId;

fn get(lab: &mut Lab, conn: ConnId, seq: u64, fields: &str) -> Response {
    let head = format!("GET /records/{seq} HTTP/1.1\r\nHost: log\r\n{fields}\r\n");
    lab.ask(conn, head.as_bytes())
}

#[test]
fn rfc9110_14_a_part_is_the_bytes_that_were_asked_for() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    // In the log entry, in one buffer, in several log entries.
    for len in [1, 20, 1000, 3000, 100_000] {
        let body = body(len as u64, len);
        let seq = lab.append(conn, &body);
        let whole = get(&mut lab, conn, seq, "");
        assert_eq!((whole.status, whole.field("accept-ranges")), (200, Some("bytes")));
        let edges = [0, 1, 7, len / 3, len / 2, len - 1, 1447, 1448, 1449, 5791, 5792, 5793];
        let edges: Vec<usize> = edges.into_iter().filter(|edge| *edge < len).collect();
        for &first in &edges {
            for &last in edges.iter().filter(|last| **last >= first) {
                let part = get(&mut lab, conn, seq, &format!("Range: bytes={first}-{last}\r\n"));
                assert_eq!(part.status, 206, "{first} to {last} of {len}");
                let said = format!("bytes {first}-{last}/{len}");
                assert_eq!(part.field("content-range"), Some(said.as_str()));
                assert!(part.body == body[first..=last], "{first} to {last} of {len}");
                // The digest is of the whole, which RFC 9530 has another field for.
                assert_eq!(part.field("content-digest"), None);
                assert_eq!(part.field("repr-digest"), whole.field("content-digest"));
            }
            let rest = get(&mut lab, conn, seq, &format!("Range: bytes={first}-\r\n"));
            assert!(rest.status == 206 && rest.body == body[first..], "from {first} of {len}");
            let end = get(&mut lab, conn, seq, &format!("Range: bytes=-{}\r\n", first + 1));
            assert!(end.status == 206 && end.body == body[len - first - 1..], "the last {}", first + 1);
        }
        let beyond = get(&mut lab, conn, seq, "Range: bytes=0-99999999999999999999\r\n");
        assert!(beyond.status == 206 && beyond.body == body);
    }
}

#[test]
fn a_part_is_sent_from_where_it_lies() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let seq = lab.append(conn, &body(1, 50_000));
    lab.client(conn).sent_in_place = 0;
    let part = get(&mut lab, conn, seq, "Range: bytes=10000-29999\r\n");
    assert_eq!(part.body.len(), 20_000);
    assert_eq!(lab.client(conn).sent_in_place, 20_000);
}

#[test]
fn rfc9110_15_5_17_a_range_without_a_byte_is_refused_with_the_length() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let seq = lab.append(conn, &body(1, 3000));
    for range in ["3000-", "3000-4000", "-0", "99999999999999999999-"] {
        let refused = get(&mut lab, conn, seq, &format!("Range: bytes={range}\r\n"));
        assert_eq!((refused.status, refused.field("content-range")), (416, Some("bytes */3000")), "{range}");
        assert!(refused.reason().contains("3000 bytes"), "{}", refused.reason());
    }
    let empty = lab.append(conn, b"");
    assert_eq!(get(&mut lab, conn, empty, "Range: bytes=0-\r\n").status, 416);
}

#[test]
fn rfc9110_14_2_what_is_no_single_range_of_bytes_or_has_a_condition_is_given_whole() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let body = body(1, 3000);
    let seq = lab.append(conn, &body);
    for fields in [
        "Range: bytes=0-1,5-6\r\n",
        "Range: bytes=5-1\r\n",
        "Range: records=0-1\r\n",
        "Range: bytes=x\r\n",
        "Range: bytes=0-1\r\nRange: bytes=5-6\r\n",
        "Range: bytes=0-1\r\nIf-Range: \"some\"\r\n",
        "If-Range: Sat, 28 Nov 2026 10:00:00 GMT\r\nRange: bytes=0-1\r\n",
    ] {
        let whole = get(&mut lab, conn, seq, fields);
        assert!(whole.status == 200 && whole.body == body, "{fields:?}");
    }
    // Of all methods, only GET has ranges, and of all resources only records.
    lab.send(
        conn,
        format!("HEAD /records/{seq} HTTP/1.1\r\nHost: log\r\nRange: bytes=0-1\r\n\r\n").as_bytes(),
    );
    let head = lab.replies_to(conn, "HEAD");
    assert_eq!((head.status, head.field("content-length")), (200, Some("3000")));
    let listed = b"GET /records HTTP/1.1\r\nHost: log\r\nRange: bytes=0-1\r\n\r\n";
    assert_eq!(lab.ask(conn, listed).status, 200);
}

/// A part owes nothing to bytes before its log entries, which are not read, and everything to its own.
#[test]
fn a_part_is_checked_as_a_whole_record_is() {
    for (at, is_given) in [(1000, true), (60_000, false)] {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut lab = Lab::in_file(file.path(), 4 << 20);
        let conn = lab.connect();
        let body = body(3, 100_000);
        let seq = lab.append(conn, &body);
        alter(file.path(), &body[at..at + 32], 5);
        let part = get(&mut lab, conn, seq, "Range: bytes=60000-60099\r\n");
        if is_given {
            assert!(part.status == 206 && part.body == body[60_000..60_100]);
            assert_eq!(lab.ask(conn, &request("GET", "/records")).json().as_array().map(Vec::len), Some(1));
        } else {
            assert_eq!(part.status, 500, "byte {at}");
            assert_eq!(get(&mut lab, conn, seq, "").status, 410);
        }
    }
}
