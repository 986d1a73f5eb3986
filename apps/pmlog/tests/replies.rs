//! Replies, byte for byte.

mod common;

use common::{Lab, body, post, request};
use pmlog::service::ServiceConfig;
use proptest::prelude::*;
use stack::net::ConnId;

/// What comes back for one request, as text.
fn answer(lab: &mut Lab, conn: ConnId, request: &[u8]) -> String {
    lab.send(conn, request);
    String::from_utf8(std::mem::take(&mut lab.client(conn).sent)).expect("the reply is text")
}

/// As much as a connection may always send, whatever the others hold: a block of 256 bytes, and an extent.
#[test]
fn every_reply_goes_out_a_block_at_a_time() {
    let mut lab = Lab::new(16 << 20, ServiceConfig { max_record_bytes: 100_000, ..ServiceConfig::default() });
    let conn = lab.connect();
    for len in [20, 300, 5_000, 60_000, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] {
        lab.append(conn, &body(len as u64, len));
    }
    let requests = [
        request("GET", "/health"),
        request("HEAD", "/health"),
        request("GET", "/records"),
        request("GET", "/records?limit=3"),
        request("HEAD", "/records"),
        request("GET", "/records/1"),
        request("GET", "/records/2"),
        request("GET", "/records/3"),
        request("GET", "/records/4"),
        request("GET", "/records/777"),
        request("PUT", "/append"),
        request("POST", "/append"),
        request("GET", "/records?from=x&limit=-1"),
        request("DELETE", "/records"),
        post(&body(7, 100_001)),
        b"GET /health HTTP/1.1\r\nHost: a b/c\r\n\r\n".to_vec(),
        b"GET /health HTTP/2.0\r\n\r\n".to_vec(),
        b"GET /records HTTP/1.0\r\n\r\n".to_vec(),
        post(b"one more"),
        request("DELETE", "/records?before=3"),
    ];
    for request in requests {
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        let conn = lab.connect();
        (lab.client(conn).room_bytes, lab.client(conn).room_extents) = (256, 1);
        lab.send(conn, &request);
        let mut sent = 0;
        while lab.make_room(conn, 256, 1) {
            let now_sent = lab.client(conn).sent.len();
            assert!(now_sent > sent, "nothing more than {sent} bytes of the reply to {shown:?} goes out");
            sent = now_sent;
        }
        let method = shown.split(' ').next().expect("a method");
        assert_ne!(lab.replies_to(conn, method).status, 0, "{shown:?}");
    }
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
         Accept-Ranges: bytes\r\nContent-Digest: crc32c=:mnG7TA==:\r\n\r\nhello"
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
