//! Appends: from slots to durable records, and the replies to them.

mod common;

use common::{Lab, SEGMENT_BYTES, body, post, request};
use pmem::CommitError;
use pmlog::service::ServiceConfig;
use stack::net::{CloseReason, Event, Service as _};

#[test]
fn a_reply_waits_for_the_commit_and_carries_the_receipt() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    lab.send_in(conn, &post(b"hello"), SEGMENT_BYTES);
    assert!(lab.shard.uncommitted());
    assert!(lab.client(conn).sent.is_empty(), "nothing is said before the record is durable");

    lab.commit();
    let reply = &lab.replies(conn)[0];
    assert_eq!(reply.status, 200);
    assert_eq!(reply.field("content-type"), Some("application/json"));
    let seq = reply.json()["seq"].as_u64().expect("a number");
    assert_eq!(reply.json()["length"], 5);
    assert_eq!(reply.json()["crc32c"], "9a71bb4c", "CRC-32C of hello");
    let record = lab.shard.record(seq).expect("the record is there");
    assert_eq!(record.to_vec(), b"hello");
    assert_eq!(record.crc32c(), 0x9a71_bb4c);
}

#[test]
fn acknowledgements_that_find_no_room_are_sent_later() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    lab.client(conn).room_bytes = 150;
    lab.send(conn, &[post(b"one"), post(b"two"), post(b"three")].concat());
    assert_eq!(lab.replies(conn).len(), 1, "there was room for one");
    while lab.make_room(conn, 150, 0) {}
    let lengths: Vec<_> = lab.replies(conn).iter().map(|reply| reply.json()["length"].as_u64()).collect();
    assert_eq!(lengths, [Some(3), Some(5)]);
    lab.append(conn, b"");
}

#[test]
fn one_commit_acknowledges_the_appends_of_many_connections() {
    let mut lab = Lab::roomy();
    let conns: Vec<_> = (0..20).map(|_| lab.connect()).collect();
    let fences = lab.shard.counters().fences;
    for (at, conn) in conns.iter().enumerate() {
        lab.send_in(*conn, &post(&body(at as u64, 1000 + at)), SEGMENT_BYTES);
    }
    lab.commit();
    assert_eq!(lab.shard.counters().fences, fences + 1);
    for (at, conn) in conns.iter().enumerate() {
        let seq = lab.replies(*conn)[0].json()["seq"].as_u64().expect("a number");
        assert_eq!(lab.shard.record(seq).expect("the record").to_vec(), body(at as u64, 1000 + at));
    }
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let chunked = b"POST /append HTTP/1.1\r\nHost: log\r\nTransfer-Encoding: chunked\r\n\r\n\
        5;x=y\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nA: b\r\n\r\n";
    let lengthy = post(b"hello world");
    let mut lab = Lab::roomy();
    let free = lab.free_buffers();
    for whole in [&lengthy[..], chunked] {
        for cut in 1..whole.len() {
            let conn = lab.connect();
            lab.arrive(conn, &whole[..cut]);
            lab.event(Event::Readable { conn });
            assert!(!lab.shard.uncommitted(), "cut at {cut}: half a request is no record");
            lab.send(conn, &whole[cut..]);
            let seq = lab.replies(conn)[0].json()["seq"].as_u64().expect("a number");
            assert_eq!(lab.shard.record(seq).expect("the record").to_vec(), b"hello world", "cut at {cut}");
        }
        let conn = lab.connect();
        lab.send_in(conn, whole, 1);
        lab.commit();
        let seq = lab.replies(conn)[0].json()["seq"].as_u64().expect("a number");
        assert_eq!(lab.shard.record(seq).expect("the record").to_vec(), b"hello world", "byte by byte");
    }
    let next = lab.shard.next_seq();
    lab.shard.trim(next).expect("a trim");
    assert!(free - lab.free_buffers() <= 2, "at most the shared buffers of short records stay");
}

#[test]
fn bodies_of_any_length_come_back_and_long_ones_are_not_copied() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    for len in [0, 1, 32, 33, 511, 512, 1023] {
        let body = body(len as u64, len);
        let seq = lab.append(conn, &body);
        assert_eq!(lab.shard.record(seq).expect("the record").to_vec(), body, "{len} bytes");
    }
    let copied = lab.shard.counters().copied_bytes;
    for len in [1024, 1025, SEGMENT_BYTES, 4096, 10_000, 1 << 20, 16 << 20] {
        let body = body(len as u64, len);
        let seq = lab.append(conn, &body);
        assert!(lab.shard.record(seq).expect("the record").to_vec() == body, "{len} bytes");
    }
    assert_eq!(lab.shard.counters().copied_bytes, copied, "payload bytes copied by the CPU");
}

#[test]
fn chunked_bodies_are_not_copied_either() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let body = body(3, 100_000);
    let mut request = b"POST /append HTTP/1.1\r\nHost: log\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(3000) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    let reply = lab.ask(conn, &request);
    let seq = reply.json()["seq"].as_u64().expect("a number");
    assert_eq!(reply.json()["length"], body.len());
    assert!(lab.shard.record(seq).expect("the record").to_vec() == body);
    assert_eq!(lab.shard.counters().copied_bytes, 0);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let first = lab.append(conn, b"first");
    let pipeline = [
        post(b"second"),
        request("GET", &format!("/records/{first}")),
        post(b"third"),
        request("GET", "/records"),
        request("GET", "/nowhere"),
        request("DELETE", &format!("/records?before={}", first + 1)),
        request("GET", &format!("/records/{first}")),
        post(b"fourth"),
    ]
    .concat();
    for segment_bytes in [1, 50, SEGMENT_BYTES] {
        // The same again, with the first record's successors in place of it.
        let mut lab = Lab::roomy();
        let conn = lab.connect();
        assert_eq!(lab.append(conn, b"first"), first);
        lab.send_in(conn, &pipeline, segment_bytes);
        lab.commit();
        let replies = lab.replies(conn);
        let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
        assert_eq!(statuses, [200, 200, 200, 200, 404, 200, 404, 200], "segments of {segment_bytes}");
        assert_eq!(replies[1].body, b"first");
        let listed = replies[3].json();
        let lengths: Vec<_> =
            listed.as_array().expect("a list").iter().map(|entry| &entry["length"]).collect();
        assert_eq!(lengths, [5, 6, 5], "a listing sees the appends before it and not those behind it");
        assert_eq!(replies[5].json()["trimmed"], 1);
        let seq = replies[7].json()["seq"].as_u64().expect("a number");
        assert_eq!(lab.shard.record(seq).expect("the record").to_vec(), b"fourth");
    }
}

#[test]
fn a_long_pipeline_of_appends_is_answered_in_full() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let bodies: Vec<_> = (0..500).map(|seed| body(seed, 700)).collect();
    let pipeline: Vec<u8> = bodies.iter().flat_map(|body| post(body)).collect();
    lab.send(conn, &pipeline);
    let replies = lab.replies(conn);
    assert_eq!(replies.len(), bodies.len());
    for (reply, body) in replies.iter().zip(&bodies) {
        let seq = reply.json()["seq"].as_u64().expect("a number");
        assert_eq!(&lab.shard.record(seq).expect("the record").to_vec(), body);
    }
}

/// What the server owes to clients that send much and read nothing lies in memory that all share, and is bounded.
#[test]
fn pipelines_that_nobody_reads_hold_up_no_other_client() {
    let mut lab = Lab::new(64 << 20, ServiceConfig { max_connections: 700, ..ServiceConfig::default() });
    let silent: Vec<_> = (0..600).map(|_| lab.connect()).collect();
    let pipeline: Vec<u8> = (0..40).flat_map(|_| post(b"unread")).collect();
    for &conn in &silent {
        lab.client(conn).room_bytes = 0;
        lab.send_in(conn, &pipeline, SEGMENT_BYTES);
        lab.commit();
    }
    // Of 600 clients with 32 requests each not all are read so far.
    assert!(lab.service.counters().requests < 600 * 32, "{:?}", lab.service.counters());
    let (fast, pipelining) = (lab.connect(), lab.connect());
    for round in 0..3 {
        lab.append(fast, &body(round, 700));
        lab.send(pipelining, &pipeline);
        assert_eq!(lab.replies(pipelining).len(), 40, "one after the other");
    }
    // One goes, and one reads at last.
    lab.close(silent[0], CloseReason::Reset);
    for &conn in &silent[1..] {
        while lab.make_room(conn, 1000, 0) {}
        let replies = lab.replies(conn);
        assert_eq!(replies.len(), 40, "{conn:?}");
        assert!(replies.iter().all(|reply| reply.status == 200));
    }
}

#[test]
fn a_client_that_waits_is_told_to_go_on_only_when_its_body_is_wanted() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let head = |fields: &str| {
        format!("POST /append HTTP/1.1\r\nHost: log\r\nExpect: 100-continue\r\n{fields}\r\n").into_bytes()
    };
    lab.send(conn, &head("Content-Length: 2000\r\n"));
    assert_eq!(lab.client(conn).sent, b"HTTP/1.1 100 Continue\r\n\r\n");
    lab.client(conn).sent.clear();
    lab.send(conn, &body(1, 2000));
    assert_eq!(lab.replies(conn)[0].json()["length"], 2000);

    lab.send(conn, &head("Transfer-Encoding: chunked\r\n"));
    assert_eq!(lab.client(conn).sent, b"HTTP/1.1 100 Continue\r\n\r\n");
    lab.client(conn).sent.clear();
    lab.send(conn, b"3\r\nabc\r\n0\r\n\r\n");
    assert_eq!(lab.replies(conn)[0].json()["length"], 3);

    // The body is here already: no interim reply is due.
    let whole = [head("Content-Length: 3\r\n"), b"abc".to_vec()].concat();
    assert_eq!(lab.ask(conn, &whole).status, 200);
    assert_eq!(lab.ask(conn, &head("Content-Length: 0\r\n")).status, 200);

    // The final status comes at once, and ends the connection: whether the body comes is not known.
    let reply = lab.ask(conn, &head("Content-Length: 99999999999\r\n"));
    assert_eq!((reply.status, reply.field("connection")), (413, Some("close")));
    assert!(lab.client(conn).finished);
}

#[test]
fn an_interim_reply_does_not_overtake_an_append() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let waiting = b"POST /append HTTP/1.1\r\nHost: log\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    lab.send_in(conn, &[post(b"one"), waiting.to_vec()].concat(), SEGMENT_BYTES);
    assert!(lab.client(conn).sent.is_empty());
    lab.commit();
    let statuses: Vec<_> = lab.replies(conn).iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [200, 100]);
    assert_eq!(lab.ask(conn, b"two").status, 200);
}

#[test]
fn old_and_closing_clients_are_served_once() {
    let mut lab = Lab::roomy();
    for (request, connection) in [
        (&b"POST /append HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi"[..], "close"),
        (b"POST /append HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi", "close"),
        (b"POST /append HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi", "keep-alive"),
    ] {
        let conn = lab.connect();
        let reply = lab.ask(conn, request);
        assert_eq!((reply.status, reply.field("connection")), (200, Some(connection)));
        assert_eq!(lab.client(conn).finished, connection == "close");
    }
}

#[test]
fn nothing_is_acknowledged_when_a_commit_fails() {
    let mut lab = Lab::roomy();
    let (one, other) = (lab.connect(), lab.connect());
    lab.send_in(one, &[post(b"a"), post(b"b")].concat(), SEGMENT_BYTES);
    lab.send_in(other, &post(b"c"), SEGMENT_BYTES);
    let Lab { service, wire, shard, .. } = &mut lab;
    let error = CommitError::Fence { why: "Input/output error (os error 5)".into() };
    service.commit_failed(&error, wire, shard);

    let replies = lab.replies(one);
    let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [500, 500]);
    assert!(replies[0].reason().contains("not acknowledged"));
    assert_eq!(lab.replies(other)[0].status, 500);

    // From then on nothing is written, and health says why.
    let reply = lab.ask(other, &post(b"d"));
    assert_eq!(reply.status, 503);
    let health = lab.ask(other, &request("GET", "/health"));
    assert_eq!(health.status, 503);
    assert_eq!(health.json()["status"], "failed");
    assert_eq!(health.json()["reason"], error.to_string());
}

#[test]
fn without_a_log_bodies_are_acknowledged_by_number_and_given_up() {
    let config = ServiceConfig { keeps_records: false, max_record_bytes: 10_000, ..ServiceConfig::default() };
    let mut lab = Lab::new(40 << 20, config);
    let free = lab.free_buffers();
    let conn = lab.connect();
    let chunked =
        b"POST /append HTTP/1.1\r\nHost: log\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let bodies = [post(b""), post(&body(1, 9000)), chunked.to_vec(), post(&body(1, 10_001))];
    lab.send_in(conn, &bodies.concat(), SEGMENT_BYTES);
    assert!(!lab.shard.uncommitted(), "there is nothing to be made durable");
    let replies = lab.replies(conn);
    for (at, (reply, length)) in replies.iter().zip([0, 9000, 3]).enumerate() {
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json(), serde_json::json!({ "seq": at + 1, "length": length }));
    }
    assert_eq!(replies[3].status, 413);
    assert_eq!(lab.free_buffers(), free);
    assert_eq!(lab.service.counters().appended_bytes, 9003);
}
