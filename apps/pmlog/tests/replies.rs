//! Replies, byte for byte.

mod common;

use common::{Lab, body, request};
use proptest::prelude::*;
use stack::net::ConnId;

/// What comes back for one request, as text.
fn answer(lab: &mut Lab, conn: ConnId, request: &[u8]) -> String {
    lab.send(conn, request);
    String::from_utf8(std::mem::take(&mut lab.client(conn).sent)).expect("the reply is text")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn an_acknowledgement_is_this_text(
        lens in prop::collection::vec(prop_oneof![0..50_usize, 0..3000_usize, 90_000..110_000_usize], 1..20),
        old in any::<bool>(),
        closes in any::<bool>(),
    ) {
        let mut lab = Lab::roomy();
        for len in lens {
            let conn = lab.connect();
            let body = body(len as u64, len);
            let version = if old { "1.0" } else { "1.1" };
            let field = match (old, closes) {
                (false, false) => "",
                (false, true) => "Connection: close\r\n",
                (true, false) => "Connection: keep-alive\r\n",
                (true, true) => "",
            };
            let head = format!("POST /append HTTP/{version}\r\nHost: log\r\n{field}Content-Length: {len}\r\n\r\n");
            let seq = lab.shard.next_seq();
            let reply = answer(&mut lab, conn, &[head.as_bytes(), &body].concat());

            let crc32c = lab.shard.record(seq).expect("the record").crc32c();
            let json = format!("{{\"seq\":{seq},\"length\":{len},\"crc32c\":\"{crc32c:08x}\"}}\n");
            let field = match (old, closes) {
                (_, true) => "Connection: close\r\n",
                (true, false) => "Connection: keep-alive\r\n",
                (false, false) => "",
            };
            let expected = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{field}\r\n{json}",
                json.len()
            );
            prop_assert_eq!(reply, expected);
        }
    }
}

#[test]
fn other_replies_are_these_texts() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let seq = lab.append(conn, b"hello");
    assert_eq!(
        answer(&mut lab, conn, &request("GET", &format!("/records/{seq}"))),
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 5\r\n\
         Content-Digest: crc32c=:mnG7TA==:\r\n\r\nhello"
    );
    let next = seq + 1;
    let list = format!("[{{\"seq\":{seq},\"epoch\":1,\"length\":5,\"crc32c\":\"9a71bb4c\",\"next\":{next}}}");
    assert_eq!(
        answer(&mut lab, conn, &request("GET", "/records")),
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\
             Log-Head: {seq}\r\nLog-Next: {next}\r\n\r\n{:x}\r\n{list}]\n\r\n0\r\n\r\n",
            list.len() + 2
        )
    );
    let trimmed = format!("{{\"head\":{},\"trimmed\":1}}\n", seq + 1);
    assert_eq!(
        answer(&mut lab, conn, &request("DELETE", &format!("/records?before={}", seq + 1))),
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{trimmed}",
            trimmed.len()
        )
    );
    let reason = "{\"error\":\"no such resource; there are /append, /records, /records/N and /health\"}\n";
    assert_eq!(
        answer(&mut lab, conn, &request("GET", "/elsewhere")),
        format!(
            "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{reason}",
            reason.len()
        )
    );
    assert_eq!(
        answer(&mut lab, conn, &request("PUT", "/append")),
        "HTTP/1.1 405 Method Not Allowed\r\nContent-Type: application/json\r\nContent-Length: 51\r\n\
         Allow: POST\r\n\r\n{\"error\":\"method not allowed here; allowed: POST\"}\n"
    );
    let old = b"GET /records HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(
        answer(&mut lab, conn, old),
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLog-Head: 2\r\nLog-Next: 2\r\n\
         Connection: close\r\n\r\n[]\n"
    );
}
