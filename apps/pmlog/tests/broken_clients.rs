//! Clients that stop, vanish, or send nonsense: each loses its own connection and nothing else.

mod common;

use std::time::Duration;

use common::{Lab, body, post, request};
use pmlog::service::ServiceConfig;
use proptest::prelude::*;
use stack::net::{CloseReason, Event};

#[test]
fn an_upload_that_is_cut_off_leaves_nothing_behind() {
    let mut lab = Lab::roomy();
    let free = lab.free_buffers();
    let upload = post(&body(1, 50_000));
    for cut in [10, 60, 80, 1448, 30_000, upload.len() - 1] {
        // By a reset.
        let conn = lab.connect();
        lab.send(conn, &upload[..cut]);
        lab.close(conn, CloseReason::Reset);
        assert_eq!(lab.free_buffers(), free, "cut at {cut}");

        // By a FIN: the client still reads, and learns why.
        let conn = lab.connect();
        lab.send(conn, &upload[..cut]);
        lab.event(Event::PeerFinished { conn });
        let reply = lab.replies(conn).remove(0);
        assert_eq!(reply.status, 400, "cut at {cut}");
        assert!(lab.client(conn).finished);
        assert_eq!(lab.free_buffers(), free, "cut at {cut}");
    }
    assert_eq!(lab.shard.next_seq(), 1);
}

#[test]
fn a_half_closed_connection_gets_its_replies() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    for segment in [post(b"one"), request("GET", "/records/1")].concat().chunks(20) {
        lab.arrive(conn, segment);
    }
    lab.event(Event::Readable { conn });
    lab.event(Event::PeerFinished { conn });
    assert!(!lab.client(conn).finished, "a reply is still owed");
    lab.commit();
    let replies = lab.replies(conn);
    assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), [200, 200]);
    assert_eq!(replies[1].body, b"one");
    assert!(lab.client(conn).finished);
}

#[test]
fn a_client_that_vanishes_before_the_commit_does_not_lose_its_record() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    lab.send_in(conn, &post(b"kept"), 1448);
    lab.close(conn, CloseReason::Reset);
    lab.commit();
    assert_eq!(lab.shard.record(1).expect("the record").to_vec(), b"kept");
    assert!(lab.client(conn).sent.is_empty());
    assert_eq!(lab.service.counters().connections, 0);
    let other = lab.connect();
    assert_eq!(lab.ask(other, &request("GET", "/health")).json()["records"], 1);
}

#[test]
fn clients_that_do_not_come_on_are_let_go() {
    let config = ServiceConfig {
        idle_timeout: Duration::from_secs(60),
        stall_timeout: Duration::from_secs(20),
        ..ServiceConfig::default()
    };
    let mut lab = Lab::new(16 << 20, config);
    let free = lab.free_buffers();
    let silent = lab.connect();
    let half_a_head = lab.connect();
    let half_a_body = lab.connect();
    let dripping = lab.connect();
    let steady = lab.connect();
    let busy = lab.connect();
    let unread = lab.connect();
    lab.send(half_a_head, b"GET /hea");
    lab.send(half_a_body, &post(&body(1, 5000))[..3000]);
    lab.send(dripping, &post(&body(2, 5000))[..100]);
    let upload = post(&body(3, 1_000_000));
    let (first, mut rest) = upload.split_at(1000);
    lab.send(steady, first);
    let long = lab.append(busy, &body(4, 100_000));
    lab.client(unread).room_extents = 2;
    lab.send(unread, &request("GET", &format!("/records/{long}")));
    lab.client(unread).sent.clear();

    for second in 1..=25 {
        lab.advance(Duration::from_secs(1));
        lab.send(dripping, b"x");
        let (piece, later) = rest.split_at(2000);
        lab.send(steady, piece);
        rest = later;
        if second % 10 == 0 {
            lab.append(busy, b"now and then");
        }
    }
    for conn in [half_a_head, half_a_body, dripping] {
        assert_eq!(lab.replies(conn).remove(0).status, 408, "{conn:?}");
        assert!(lab.client(conn).finished, "{conn:?}");
    }
    assert!(lab.client(unread).aborted, "what nobody reads is not kept for long");
    for conn in [silent, steady, busy] {
        assert!(!lab.client(conn).finished && !lab.client(conn).aborted, "{conn:?}");
    }
    for _ in 0..40 {
        lab.advance(Duration::from_secs(1));
        let (piece, later) = rest.split_at(2000);
        lab.send(steady, piece);
        rest = later;
    }
    assert!(lab.client(silent).finished, "an idle connection ends");
    assert!(lab.client(half_a_body).aborted, "one that the client does not close is reset");
    lab.send(steady, rest);
    assert_eq!(lab.replies(steady).remove(0).status, 200);

    for conn in [silent, half_a_head, half_a_body, dripping, steady, busy, unread] {
        lab.close(conn, CloseReason::Finished);
    }
    let next = lab.shard.next_seq();
    lab.shard.trim(next).expect("a trim");
    assert!(free - lab.free_buffers() <= 1, "the shared buffer of short records may stay");
}

#[test]
fn an_end_in_order_answers_what_was_asked() {
    let mut lab = Lab::roomy();
    let (idle, asking, reading) = (lab.connect(), lab.connect(), lab.connect());
    let long = lab.append(idle, &body(1, 50_000));
    lab.client(reading).room_extents = 2;
    lab.send(reading, &request("GET", &format!("/records/{long}")));
    lab.send_in(asking, &post(b"last"), 1448);
    let Lab { service, wire, shard, .. } = &mut lab;
    service.close(wire, shard);
    assert!(lab.client(idle).finished);
    assert!(!lab.client(asking).finished && !lab.client(reading).finished);
    lab.commit();
    assert_eq!(lab.replies(asking).remove(0).status, 200);
    assert!(lab.client(asking).finished);
    while lab.make_room(reading, 4096, 100) {}
    assert_eq!(lab.replies(reading).remove(0).body, body(1, 50_000));
    assert!(lab.client(reading).finished);
}

#[test]
fn a_name_that_is_dead_does_nothing() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    lab.close(conn, CloseReason::Finished);
    lab.send(conn, &post(b"late"));
    assert!(lab.client(conn).sent.is_empty());
    lab.event(Event::Closed { conn, reason: CloseReason::Finished });
    assert_eq!(lab.service.counters().connections, 0);
}

/// Bytes that look enough like requests to get past the first checks.
fn nonsense() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "GET ",
        "POST ",
        "DELETE ",
        "/append",
        "/records/1",
        "/records",
        "?from=",
        "?before=9",
        "9",
        "\r\n",
        "\r\n\r\n",
        " HTTP/1.1\r\n",
        " HTTP/1.0\r\n",
        "Host: a\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 50000\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Expect: 100-continue\r\n",
        "Connection: close\r\n",
        "5\r\nhello\r\n",
        "0\r\n\r\n",
        "hello",
        ": ",
        "\0",
        "\n",
    ]);
    let piece = prop_oneof![
        8 => word.prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..300),
        2 => (0_u64..4).prop_map(|seed| post(&body(seed, 700))),
        1 => Just(request("GET", "/records")),
    ];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nonsense_is_refused_and_everything_is_given_back(
        bytes in nonsense(),
        segment_bytes in 1_usize..600,
        room_bytes in prop::sample::select(vec![usize::MAX, 0, 1200]),
        ends in any::<bool>(),
    ) {
        let mut lab = Lab::new(2 << 20, ServiceConfig::default());
        let free = lab.free_buffers();
        let (conn, other) = (lab.connect(), lab.connect());
        lab.client(conn).room_bytes = room_bytes;
        for burst in bytes.chunks(segment_bytes * 8) {
            lab.send_in(conn, burst, segment_bytes);
            lab.commit();
            // Who does not read what is sent may not send on for ever: the network's window would close.
            while lab.free_buffers() < free / 2 && lab.make_room(conn, 1200, 3) {}
        }
        if ends {
            lab.event(Event::PeerFinished { conn });
            lab.commit();
        }
        for _ in 0..100 {
            lab.make_room(conn, 1200, 3);
        }
        prop_assert!(!ends || lab.client(conn).finished, "a client that has ended gets an end");
        // Every reply is well formed, and nothing follows one that closes.
        let replies = lab.replies(conn);
        let closing = replies.iter().position(|reply| reply.field("connection") == Some("close"));
        prop_assert!(closing.is_none_or(|at| at + 1 == replies.len()));
        for reply in replies.iter().filter(|reply| reply.status >= 400) {
            prop_assert!(!reply.reason().is_empty());
        }
        // Another client is served, and all buffers come back.
        lab.append(other, b"unharmed");
        lab.close(conn, CloseReason::Reset);
        let next = lab.shard.next_seq();
        lab.shard.trim(next).expect("a trim");
        prop_assert!(free - lab.free_buffers() <= 1, "{} of {free} buffers are free", lab.free_buffers());
    }
}
