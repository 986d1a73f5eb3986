//! Refusals: each with its status and a one-line reason, and none at the cost of another client.

mod common;

use common::{Lab, SEGMENT_BYTES, body, post, request};
use pmem::CommitError;
use pmlog::service::ServiceConfig;
use stack::net::{CloseReason, Service as _};

/// Statuses after which the same connection serves the next request.
#[test]
fn a_refused_request_leaves_the_connection_usable() {
    let mut lab = Lab::new(16 << 20, ServiceConfig { max_record_bytes: 1000, ..ServiceConfig::default() });
    let conn = lab.connect();
    for (request, status, reason) in [
        (request("GET", "/nothing"), 404, "no such resource"),
        (request("GET", "/records/77"), 404, "no record 77"),
        (request("GET", "/records/x"), 400, "number"),
        (request("DELETE", "/records"), 400, "before"),
        (request("PUT", "/append"), 405, "allowed: POST"),
        (request("POST", "/append"), 411, "Content-Length"),
        (post(&body(1, 1001)), 413, "--max-record"),
        (b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody".to_vec(), 405, "GET"),
    ] {
        let reply = lab.ask(conn, &request);
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        assert_eq!(reply.status, status, "{shown:?}");
        assert!(reply.reason().contains(reason), "{shown:?}: {:?}", reply.reason());
        assert_eq!(reply.field("allow").is_some(), status == 405);
        assert!(!lab.client(conn).finished);
        lab.append(conn, b"still there");
    }
}

/// Statuses after which nobody knows where the next request would begin.
#[test]
fn broken_framing_ends_the_connection_after_the_reason() {
    let mut lab = Lab::roomy();
    let free = lab.free_buffers();
    let long = format!("GET /health HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(9000));
    let many = format!("GET /health HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(80));
    let chunked = "POST /append HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n";
    for (request, status) in [
        ("\0\0\0\0\r\n\r\n".to_owned(), 400),
        ("GET /health\r\n\r\n".to_owned(), 400),
        ("GET /health HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(), 400),
        ("\r\n\r\n\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
        (format!("{chunked}Content-Length: 5\r\n\r\n0\r\n\r\n"), 400),
        (format!("{chunked}\r\nfive\r\n"), 400),
        (format!("{chunked}\r\n5\r\nhello!\r\n"), 400),
        (format!("{chunked}\r\n11111111111111111\r\n"), 413),
        ("GET /health HTTP/1.1\r\nHost: a b/c\r\n\r\n".to_owned(), 400),
        ("GET /health HTTP/1.0\r\nHost: a b/c\r\n\r\n".to_owned(), 400),
        ("GET /health HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(), 400),
        ("POST /append HTTP/1.1\r\nHost: [::1\r\nContent-Length: 1\r\n\r\na".to_owned(), 400),
        (
            "POST /append HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_owned(),
            400,
        ),
        ("POST /append HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n".to_owned(), 501),
        ("GET /health HTTP/2.0\r\nHost: a\r\n\r\n".to_owned(), 505),
        (long, 431),
        (many, 431),
    ] {
        for segment_bytes in [7, 1000, SEGMENT_BYTES] {
            let conn = lab.connect();
            let poisoned = [request.as_bytes(), &post(b"smuggled")].concat();
            lab.send_in(conn, &poisoned, segment_bytes);
            lab.commit();
            let replies = lab.replies(conn);
            assert_eq!(replies.len(), 1, "{request:?} {replies:?}");
            assert_eq!(replies[0].status, status, "{request:?}");
            assert_eq!(replies[0].field("connection"), Some("close"));
            assert!(!replies[0].reason().is_empty());
            assert!(lab.client(conn).finished, "FIN follows the reason, and no reset");
            // What still comes is dropped, and the end is quiet.
            lab.send(conn, &body(1, 5000));
            assert!(lab.replies(conn).is_empty());
            assert!(!lab.client(conn).aborted);
            lab.close(conn, CloseReason::Finished);
        }
    }
    assert_eq!(lab.shard.next_seq(), 1, "nothing was stored");
    assert_eq!(lab.free_buffers(), free);
}

/// What clients send for each record is soon known by its bytes; that lets nothing pass.
#[test]
fn broken_framing_is_refused_behind_requests_that_look_alike() {
    let mut lab = Lab::roomy();
    for (value, status) in [
        ("", 400),
        ("5x", 400),
        ("+5", 400),
        ("5, 5", 400),
        ("5\r\nContent-Length: 6", 400),
        ("5\r\nTransfer-Encoding: chunked", 400),
        ("5\r\nHost: log", 400),
        ("5\n Folded: 1", 400),
        ("5\r\nExpect: more", 417),
        ("18446744073709551616", 413),
        ("00000000000099999999", 413),
    ] {
        let conn = lab.connect();
        for len in [1, 300, 7, 0] {
            lab.append(conn, &body(1, len));
        }
        let next = lab.shard.next_seq();
        let request = format!("POST /append HTTP/1.1\r\nHost: log\r\nContent-Length: {value}\r\n\r\nhello");
        let reply = lab.ask(conn, request.as_bytes());
        assert_eq!((reply.status, lab.shard.next_seq()), (status, next), "{value:?}");
    }
}

/// Whatever is refused, and however its body is framed: bytes of that body are never read as a request, and a request
/// behind it is never read as the body.
#[test]
fn no_request_is_read_out_of_a_refused_body_nor_lost_in_one() {
    let inside = post(b"smuggled");
    let bodies = [inside.clone(), inside.repeat(5000)];
    let framed = |body: &[u8], chunked: bool| match chunked {
        true => {
            let chunk = [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n0\r\n\r\n"].concat();
            ("Transfer-Encoding: chunked\r\n".to_owned(), chunk)
        }
        false => (format!("Content-Length: {}\r\n", body.len()), body.to_vec()),
    };
    for (line, states) in [
        ("GET /nothing", &["sound"][..]),
        ("GET /records/77", &["sound"]),
        ("GET /records/x", &["sound"]),
        ("GET http://a@b/health", &["sound"]),
        ("PUT /append", &["sound"]),
        ("DELETE /records", &["sound"]),
        ("GET /health", &["sound", "failed"]),
        ("POST /append", &["short", "full", "failed"]),
    ] {
        for state in states {
            for expect in ["", "Expect: 100-continue\r\n", "Expect: tea\r\n", "Expect: 100-continue, tea\r\n"]
            {
                for (body, chunked) in bodies.iter().flat_map(|body| [(body, false), (body, true)]) {
                    let (framing, sent) = framed(body, chunked);
                    let head = format!("{line} HTTP/1.1\r\nHost: a\r\n{expect}{framing}\r\n");
                    let shown = format!("{head:?} of {} bytes, {state}", body.len());

                    // The body comes, and a request behind it.
                    let (mut lab, next) = lab_in(state);
                    let conn = lab.connect();
                    let all = [head.as_bytes(), &sent, &request("GET", "/health")].concat();
                    lab.send(conn, &all);
                    let mut replies = lab.replies(conn);
                    replies.retain(|reply| reply.status != 100);
                    assert_eq!(lab.shard.next_seq(), next, "{shown}: a body was read as a request");
                    match &replies[..] {
                        [only] => {
                            assert!(lab.client(conn).finished, "{shown}: {only:?}");
                            assert_eq!(only.field("connection"), Some("close"), "{shown}");
                        }
                        [_, health] => assert!(health.json()["status"].is_string(), "{shown}: {health:?}"),
                        _ => panic!("{shown}: {replies:?}"),
                    }

                    // It does not, because of what the reply says, and a request comes in its place.
                    if expect.is_empty() {
                        continue;
                    }
                    let (mut lab, next) = lab_in(state);
                    let conn = lab.connect();
                    lab.send(conn, head.as_bytes());
                    let replies = lab.replies(conn);
                    if replies.iter().all(|reply| reply.status == 100) {
                        // It is wanted: what is wrong with it shows when it comes.
                        let is_wanted = *state == "full" || *state == "short" && chunked;
                        assert!(line == "POST /append" && is_wanted, "{shown}: {replies:?}");
                        continue;
                    }
                    assert!(lab.client(conn).finished, "{shown}: {replies:?}");
                    assert_eq!(replies[0].field("connection"), Some("close"), "{shown}");
                    lab.send(conn, &post(b"the next request"));
                    assert!(lab.replies(conn).is_empty(), "{shown}");
                    assert_eq!(lab.shard.next_seq(), next, "{shown}: served on a connection that is over");
                }
            }
        }
    }
}

/// A service in some state, and the number of its next record.
fn lab_in(state: &str) -> (Lab, u64) {
    let max_record_bytes = if state == "short" { 50 } else { 1 << 20 };
    let mut lab = Lab::new(2 << 20, ServiceConfig { max_record_bytes, ..ServiceConfig::default() });
    match state {
        "full" => {
            let conn = lab.connect();
            let refused = loop {
                let reply = lab.ask(conn, &post(b"x"));
                if reply.status != 200 {
                    break reply;
                }
            };
            // What is full is the log, and not the buffers.
            assert_eq!(refused.status, 507);
            let reason = refused.reason();
            assert!(reason.contains("log is full") && reason.contains("1 log entries, and 0"), "{reason}");
            assert!(reason.contains("trim") && reason.contains("larger store"), "{reason}");
            let health = lab.ask(conn, &request("GET", "/health")).json();
            assert_eq!(health["free_log_entries"], 0, "{health}");
            assert_eq!(health["log_entries"], lab.shard.log_entries(), "{health}");
            assert!(health["free_buffers"].as_u64() > Some(100), "{health}");
        }
        "failed" => {
            let error = CommitError::Fence { why: "the medium is gone".into() };
            lab.service.commit_failed(&error, &mut lab.wire, &mut lab.shard);
        }
        _ => {}
    }
    let next = lab.shard.next_seq();
    (lab, next)
}

#[test]
fn what_is_too_long_is_refused_by_its_size_before_a_byte_of_it_comes() {
    let max_record_bytes = 16 << 20;
    let mut lab = Lab::new(64 << 20, ServiceConfig { max_record_bytes, ..ServiceConfig::default() });
    let free = lab.free_buffers();
    let chunk = |bytes: usize| format!("{bytes:x}\r\n{}\r\n", "x".repeat(bytes));
    for (framing, body) in [
        ("Content-Length: 16777217", String::new()),
        ("Content-Length: 18446744073709551615", String::new()),
        ("Content-Length: 18446744073709551616", String::new()),
        ("Content-Length: 99999999999999999999999999999999", String::new()),
        ("Transfer-Encoding: chunked", "1000001\r\n".to_owned()),
        ("Transfer-Encoding: chunked", "0000000000000001000001\r\n".to_owned()),
        ("Transfer-Encoding: chunked", "1000001;why=because\r\n".to_owned()),
        ("Transfer-Encoding: chunked", "FFFFFFFFFFFFFFFF\r\n".to_owned()),
        ("Transfer-Encoding: chunked", "10000000000000000\r\n".to_owned()),
        ("Transfer-Encoding: chunked", "fffffffffffffffffffffffffffffffff\r\n".to_owned()),
        ("Transfer-Encoding: chunked", format!("{}1000000\r\n", chunk(1))),
        ("Transfer-Encoding: chunked", format!("{}{}FFFFFFFFFFFFFFFF\r\n", chunk(7), chunk(1000))),
    ] {
        let conn = lab.connect();
        let head = format!("POST /append HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
        let reply = lab.ask(conn, &[head.as_bytes(), body.as_bytes()].concat());
        assert_eq!((reply.status, reply.field("connection")), (413, Some("close")), "{framing} {reply:?}");
        assert!(reply.reason().contains("--max-record"), "{framing} {:?}", reply.reason());
        assert!(lab.client(conn).finished, "{framing}");
        lab.close(conn, CloseReason::Finished);
    }
    assert_eq!((lab.shard.next_seq(), lab.free_buffers()), (1, free));
}

#[test]
fn a_long_body_that_is_refused_ends_the_connection() {
    let mut lab = Lab::new(64 << 20, ServiceConfig { max_record_bytes: 100_000, ..ServiceConfig::default() });
    let free = lab.free_buffers();
    // Announced, and too long.
    let conn = lab.connect();
    let reply = lab.ask(conn, &post(&body(1, 2_000_000)));
    assert_eq!((reply.status, reply.field("connection")), (413, Some("close")));

    // In chunks, and found to be too long on the way.
    let conn = lab.connect();
    let chunk = [b"10000\r\n".to_vec(), body(2, 0x10000), b"\r\n".to_vec()].concat();
    let head = b"POST /append HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let reply = lab.ask(conn, &[head, chunk.repeat(10), b"0\r\n\r\n".to_vec()].concat());
    assert_eq!((reply.status, reply.field("connection")), (413, Some("close")));
    assert_eq!(lab.free_buffers(), free);
    assert_eq!(lab.shard.next_seq(), 1);
}

#[test]
fn a_client_that_never_stops_sending_is_reset() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    lab.ask(conn, b"what\r\n\r\n");
    let megabyte = vec![b'x'; 1 << 20];
    for _ in 0..63 {
        lab.send(conn, &megabyte);
    }
    assert!(!lab.client(conn).aborted);
    lab.send(conn, &megabyte);
    lab.send(conn, &megabyte);
    assert!(lab.client(conn).aborted);
}

#[test]
fn a_full_store_refuses_and_goes_on_after_a_trim() {
    let mut lab = Lab::new(2 << 20, ServiceConfig::default());
    let free = lab.free_buffers();
    let (mut writer, reader) = (lab.connect(), lab.connect());
    let mut laps = Vec::new();
    let mut kept: Vec<(u64, Vec<u8>)> = Vec::new();
    for seed in 0..3000 {
        // Records of one to four segments, and sometimes one that cannot fit.
        let len = if seed % 17 == 16 { 1 << 20 } else { 600 + seed * 37 % 5000 };
        let body = body(seed as u64, len);
        lab.send(writer, &post(&body));
        let reply = lab.replies(writer).remove(0);
        match reply.status {
            200 => kept.push((reply.json()["seq"].as_u64().expect("a number"), body)),
            507 => {
                let reason = reply.reason();
                assert!(reason.contains("buffers are full") && reason.contains("trim"), "{reason}");
                // Nothing is lost, and another client is served.
                let (seq, body) = &kept[kept.len() / 2];
                let reply = lab.ask(reader, &request("GET", &format!("/records/{seq}")));
                assert_eq!((reply.status, &reply.body), (200, body));
                let before = kept[kept.len() / 2].0;
                let reply = lab.ask(reader, &request("DELETE", &format!("/records?before={before}")));
                assert_eq!(reply.json()["trimmed"], kept.len() as u64 / 2);
                assert_eq!(reply.json()["head"], before);
                kept.drain(..kept.len() / 2);
                laps.push(seed);
                if lab.client(writer).finished {
                    // The rest of a long body was not worth reading.
                    lab.close(writer, CloseReason::Finished);
                    writer = lab.connect();
                }
            }
            status => panic!("status {status} for {len} bytes"),
        }
    }
    assert!(laps.len() > 20, "the store was full {} times", laps.len());
    for (seq, body) in &kept {
        assert_eq!(&lab.shard.record(*seq).expect("the record").to_vec(), body);
    }
    let next = lab.shard.next_seq();
    lab.ask(reader, &request("DELETE", &format!("/records?before={next}")));
    assert!(free - lab.free_buffers() <= 2, "{} of {free}", lab.free_buffers());
}

#[test]
fn unfinished_uploads_do_not_hold_up_others() {
    let mut lab = Lab::new(4 << 20, ServiceConfig::default());
    let free = lab.free_buffers();
    // Each uploads a part of what would never fit with the others'.
    let uploads: Vec<_> = (0..20).map(|_| lab.connect()).collect();
    let mut refused = 0;
    for (at, conn) in uploads.iter().enumerate() {
        let request = post(&body(at as u64, 1 << 20));
        lab.send(*conn, &request[..500_000]);
        refused += usize::from(lab.replies(*conn).first().is_some_and(|reply| reply.status == 507));
    }
    assert!(refused > 0 && refused < uploads.len(), "{refused} of {} were refused", uploads.len());
    assert!(lab.free_buffers() > 0, "the network is left its reserve");
    // The clients vanish, and everything is free again.
    for conn in uploads {
        lab.close(conn, CloseReason::Reset);
    }
    assert_eq!(lab.free_buffers(), free);
    let conn = lab.connect();
    lab.append(conn, &body(1, 1 << 20));
}
