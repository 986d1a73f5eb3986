//! Records line by line: as they become durable, and with their bytes.

mod common;

use std::time::Duration;

use common::{Client, Lab, alter, body, post, request};
use pmem::CommitError;
use pmlog::service::ServiceConfig;
use serde_json::Value;
use stack::net::{CloseReason, ConnId, Event, Service as _};

/// What a client has of a feed so far.
#[derive(Debug, Default)]
struct Heard {
    head: String,
    /// Lines, and behind those of records their bytes where they are in it.
    lines: Vec<(Value, Vec<u8>)>,
    is_ended: bool,
}

impl Heard {
    /// Reads what a client was sent; `with_content` if records' bytes are in it. Nothing of it may be cut off, but in the
    /// middle of a record.
    fn of(client: &Client, with_content: bool) -> Self {
        let text = &client.sent;
        let end = text.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8(text[..end].to_vec()).expect("text");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let (body, is_ended) = if head.contains("Transfer-Encoding: chunked") {
            dechunked(&text[end..])
        } else {
            (text[end..].to_vec(), client.finished)
        };
        let (mut rest, mut lines) = (&body[..], Vec::new());
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Value = serde_json::from_slice(&rest[..end]).expect("a line of JSON");
            rest = &rest[end + 1..];
            let mut bytes = Vec::new();
            if with_content && let Some(length) = line["length"].as_u64() {
                let length = length as usize;
                if rest.len() <= length {
                    break;
                }
                assert_eq!(rest[length], b'\n', "behind {line}");
                bytes = rest[..length].to_vec();
                rest = &rest[length + 1..];
            }
            lines.push((line, bytes));
        }
        Self { head, lines, is_ended }
    }

    fn seqs(&self) -> Vec<u64> {
        self.lines.iter().filter_map(|(line, _)| line["seq"].as_u64()).collect()
    }

    fn last(&self) -> &Value {
        &self.lines.last().expect("a line").0
    }
}

/// What chunks hold so far, and whether the last one was there.
fn dechunked(mut text: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(line) = text.windows(2).position(|pair| pair == b"\r\n") {
        let size = std::str::from_utf8(&text[..line]).expect("text");
        let size = usize::from_str_radix(size, 16).expect("a size");
        let rest = &text[line + 2..];
        body.extend_from_slice(&rest[..size.min(rest.len())]);
        if size == 0 {
            assert_eq!(rest, b"\r\n", "nothing is behind the end");
            return (body, true);
        }
        if rest.len() < size + 2 {
            break;
        }
        assert_eq!(&rest[size..size + 2], b"\r\n");
        text = &rest[size + 2..];
    }
    (body, false)
}

/// Lets everybody have turns until nobody has anything to do.
fn settle(lab: &mut Lab) {
    while lab.service.attend(&mut lab.wire, &mut lab.shard) {
        lab.commit();
    }
}

fn feed(lab: &mut Lab, query: &str) -> ConnId {
    let conn = lab.connect();
    lab.send(conn, &request("GET", &format!("/records?{query}")));
    settle(lab);
    conn
}

fn append(lab: &mut Lab, writer: ConnId, body: &[u8]) -> u64 {
    let seq = lab.append(writer, body);
    settle(lab);
    seq
}

/// Lengths of every form: in the log entry, packed, in one buffer, in several, in several log entries.
const LENGTHS: [usize; 8] = [0, 1, 32, 33, 600, 1448, 5000, 60_000];

#[test]
fn a_follower_is_given_each_record_once_it_is_durable() {
    let mut lab = Lab::roomy();
    let writer = lab.connect();
    let mut expected: Vec<u64> = (0..20).map(|seed| append(&mut lab, writer, &body(seed, 100))).collect();
    let follower = feed(&mut lab, "follow=1");
    let heard = Heard::of(lab.client(follower), false);
    assert!(heard.head.contains("Content-Type: application/x-ndjson\r\n"), "{}", heard.head);
    assert!(heard.head.contains("Log-Head: 1\r\nLog-Next: 21\r\n"), "{}", heard.head);
    assert_eq!((heard.seqs(), heard.is_ended), (expected.clone(), false));

    // Not before.
    let sent = lab.client(follower).sent.len();
    lab.send_in(writer, &post(b"not durable yet"), 1448);
    settle(&mut lab);
    assert_eq!(lab.client(follower).sent.len(), sent);
    lab.commit();
    settle(&mut lab);
    expected.push(21);
    assert_eq!(Heard::of(lab.client(follower), false).seqs(), expected);
    assert_eq!(lab.replies(writer).len(), 1);
    for len in LENGTHS {
        expected.push(append(&mut lab, writer, &body(9, len)));
    }
    let heard = Heard::of(lab.client(follower), false);
    assert_eq!(heard.seqs(), expected);
    // What a line says is what a list says.
    let list = lab.ask(writer, &request("GET", "/records?limit=1000")).json();
    let lines = heard.lines.into_iter().map(|(line, _)| line).collect();
    assert_eq!(list, Value::Array(lines));
}

#[test]
fn with_their_bytes_records_come_from_where_they_lie() {
    let mut lab = Lab::roomy();
    let writer = lab.connect();
    let mut expected = Vec::new();
    for len in LENGTHS {
        let bytes = body(len as u64, len);
        expected.push((append(&mut lab, writer, &bytes), bytes));
    }
    let follower = feed(&mut lab, "from=0&follow=1&content=1");
    for len in LENGTHS {
        let bytes = body(len as u64 + 7, len);
        expected.push((append(&mut lab, writer, &bytes), bytes));
    }
    let heard = Heard::of(lab.client(follower), true);
    assert!(heard.head.contains("Content-Type: application/vnd.pmlog.records\r\n"), "{}", heard.head);
    assert_eq!(heard.lines.len(), expected.len());
    for ((line, bytes), (seq, body)) in heard.lines.iter().zip(&expected) {
        assert_eq!(line["seq"].as_u64(), Some(*seq));
        assert!(bytes == body, "record {seq}");
    }
    let in_place: usize = 2 * LENGTHS.iter().filter(|len| **len > 32).sum::<usize>();
    assert_eq!(lab.client(follower).sent_in_place, in_place);
}

#[test]
fn without_follow_the_stream_ends_with_what_was_durable_when_it_began() {
    let mut lab = Lab::roomy();
    let writer = lab.connect();
    let seqs: Vec<u64> = (0..200).map(|seed| append(&mut lab, writer, &body(seed, 1000))).collect();
    let reader = lab.connect();
    lab.client(reader).room_bytes = 2000;
    lab.send(reader, &request("GET", "/records?content=1"));
    append(&mut lab, writer, b"too late");
    while lab.make_room(reader, 2000, 10) {
        settle(&mut lab);
    }
    let heard = Heard::of(lab.client(reader), true);
    assert_eq!(heard.seqs(), seqs);
    assert_eq!((heard.last(), heard.is_ended), (&serde_json::json!({"next": 201}), true));
    // The connection serves on.
    lab.client(reader).sent.clear();
    lab.client(reader).room_bytes = usize::MAX;
    assert_eq!(lab.ask(reader, &request("GET", "/records/7")).status, 200);
    // As many as are asked for, and from a place in between.
    let some = feed(&mut lab, "content=1&from=50&limit=7");
    let heard = Heard::of(lab.client(some), true);
    assert_eq!((heard.seqs(), heard.last()["next"].as_u64()), ((50..57).collect(), Some(57)));
}

#[test]
fn where_to_begin_is_a_number_the_oldest_or_the_next() {
    let mut lab = Lab::roomy();
    let writer = lab.connect();
    for seed in 0..10 {
        append(&mut lab, writer, &body(seed, 100));
    }
    lab.ask(writer, &request("DELETE", "/records?before=4"));
    for (query, first) in [("follow=1", 4), ("follow=1&from=0", 4), ("follow=1&from=7", 7)] {
        let follower = feed(&mut lab, query);
        assert_eq!(Heard::of(lab.client(follower), false).seqs(), (first..11).collect::<Vec<_>>(), "{query}");
    }
    for query in ["follow=1&from=next", "follow=1&from=11", "follow=1&content=1&from=next"] {
        let follower = feed(&mut lab, query);
        assert_eq!(Heard::of(lab.client(follower), false).seqs(), Vec::<u64>::new(), "{query}");
    }
    let conn = lab.connect();
    let trimmed = lab.ask(conn, &request("GET", "/records?follow=1&from=2"));
    assert_eq!((trimmed.status, &trimmed.json()["head"]), (410, &4.into()));
    // Whoever was told of such a number was told by another store.
    let future = lab.ask(conn, &request("GET", "/records?follow=1&from=12"));
    assert!(future.status == 404 && future.reason().contains("before 11"), "{}", future.reason());
    assert_eq!(lab.ask(conn, &request("GET", "/records?follow=1&shard=1")).status, 404);
}

#[test]
fn a_slow_reader_holds_nothing_and_gets_all_of_it() {
    let mut lab = Lab::roomy();
    let writer = lab.connect();
    let free = lab.free_buffers();
    let expected: Vec<Vec<u8>> = (0..50).map(|seed| body(seed, 100 + seed as usize * 300)).collect();
    let reader = lab.connect();
    (lab.client(reader).room_bytes, lab.client(reader).room_extents) = (0, 0);
    lab.send(reader, &request("GET", "/records?follow=1&content=1"));
    for bytes in &expected {
        append(&mut lab, writer, bytes);
    }
    let taken = free - lab.free_buffers();
    // Others are served meanwhile, and the log can be trimmed: nothing is held but one record.
    let other = feed(&mut lab, "content=1");
    assert_eq!(Heard::of(lab.client(other), true).seqs().len(), 50);
    let mut turns = 0;
    while lab.make_room(reader, 300, 1) && turns < 100_000 {
        settle(&mut lab);
        turns += 1;
    }
    assert!(turns > 100, "{turns}");
    assert_eq!(free - lab.free_buffers(), taken);
    let heard = Heard::of(lab.client(reader), true);
    assert!(heard.lines.iter().map(|(_, bytes)| bytes).eq(&expected));
}

#[test]
fn who_is_too_slow_for_a_trim_is_told_and_may_go_on() {
    for content in [0, 1] {
        let mut lab = Lab::roomy();
        let writer = lab.connect();
        for seed in 0..100 {
            append(&mut lab, writer, &body(seed, 1000));
        }
        let free = lab.free_buffers();
        let reader = lab.connect();
        lab.client(reader).room_bytes = 1500;
        lab.send(reader, &request("GET", &format!("/records?follow=1&content={content}")));
        settle(&mut lab);
        lab.ask(writer, &request("DELETE", "/records?before=90"));
        settle(&mut lab);
        while lab.shard.tend() {}
        // What is on its way is a record at most.
        assert!(lab.free_buffers() >= free + 88, "{} of {free}", lab.free_buffers());
        while lab.make_room(reader, 5000, 100) {
            settle(&mut lab);
        }
        let heard = Heard::of(lab.client(reader), content == 1);
        let seqs = heard.seqs();
        assert!(!seqs.is_empty() && seqs.len() < 40, "{seqs:?}");
        assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "no gap before the word of it: {seqs:?}");
        let last = heard.last();
        assert!(last["error"].as_str().is_some_and(|error| error.contains("were trimmed")), "{last}");
        assert_eq!((&last["head"], &last["next"]), (&90.into(), &101.into()), "{last}");
        assert!(heard.is_ended);
        lab.client(reader).sent.clear();
        lab.client(reader).room_bytes = usize::MAX;
        lab.client(reader).room_extents = usize::MAX;
        lab.send(reader, &request("GET", "/records?content=1&from=90"));
        settle(&mut lab);
        assert_eq!(Heard::of(lab.client(reader), true).seqs(), (90..=100).collect::<Vec<_>>());
    }
}

#[test]
fn who_follows_in_silence_stays_and_hears_that_there_is_nothing() {
    let mut lab = Lab::roomy();
    let writer = lab.connect();
    append(&mut lab, writer, b"one");
    let follower = feed(&mut lab, "follow=1");
    for second in 1..=600 {
        lab.advance(Duration::from_secs(1));
        settle(&mut lab);
        let heard = Heard::of(lab.client(follower), false);
        assert_eq!(heard.lines.len(), 1 + second / 15, "after {second} s");
    }
    let heard = Heard::of(lab.client(follower), false);
    assert!(heard.lines[1..].iter().all(|(line, _)| *line == serde_json::json!({"next": 2})));
    let client = lab.client(follower);
    assert!(!client.aborted && !client.finished);
    // The first one was idle for too long.
    let writer = lab.connect();
    append(&mut lab, writer, b"two");
    assert_eq!(Heard::of(lab.client(follower), false).seqs(), [1, 2]);
}

#[test]
fn who_takes_nothing_of_what_there_is_loses_his_connection() {
    let mut lab = Lab::roomy();
    let writer = lab.connect();
    for seed in 0..50 {
        append(&mut lab, writer, &body(seed, 1000));
    }
    let reader = lab.connect();
    lab.client(reader).room_bytes = 1000;
    lab.send(reader, &request("GET", "/records?follow=1&content=1"));
    settle(&mut lab);
    for _ in 0..31 {
        lab.advance(Duration::from_secs(1));
        settle(&mut lab);
    }
    assert!(lab.client(reader).aborted);
    // Heartbeats that nobody reads come to the same.
    let idle = feed(&mut lab, "follow=1&from=next");
    lab.client(idle).room_bytes = 0;
    for _ in 0..60 {
        lab.advance(Duration::from_secs(1));
        settle(&mut lab);
    }
    assert!(lab.client(idle).aborted);
}

#[test]
fn there_are_so_many_followers_and_no_more() {
    let config = ServiceConfig { max_followers: 2, ..ServiceConfig::default() };
    let mut lab = Lab::new(8 << 20, config);
    let [first, _second] = ["follow=1", "content=1&follow=1"].map(|query| feed(&mut lab, query));
    let third = lab.connect();
    let refused = lab.ask(third, &request("GET", "/records?follow=1"));
    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")));
    assert!(refused.reason().contains("2 clients") && refused.reason().contains("--max-followers"));
    // Lists are none of their concern.
    assert_eq!(lab.ask(third, &request("GET", "/records")).status, 200);
    let health = lab.ask(third, &request("GET", "/health")).json();
    assert_eq!((&health["followers"], &health["max_followers"]), (&2.into(), &2.into()), "{health}");
    lab.close(first, CloseReason::Reset);
    lab.send(third, &request("GET", "/records?follow=1"));
    settle(&mut lab);
    assert_eq!(Heard::of(lab.client(third), false).lines.len(), 0);
    let health = lab.connect();
    assert_eq!(lab.ask(health, &request("GET", "/health")).json()["followers"], 2);
}

#[test]
fn who_finishes_sending_is_given_what_there_is_and_the_end() {
    let mut lab = Lab::roomy();
    let writer = lab.connect();
    append(&mut lab, writer, b"one");
    let follower = feed(&mut lab, "follow=1");
    lab.event(Event::PeerFinished { conn: follower });
    settle(&mut lab);
    let heard = Heard::of(lab.client(follower), false);
    assert_eq!((heard.seqs(), heard.lines.len(), heard.is_ended), (vec![1], 1, true));
    assert!(lab.client(follower).finished);
}

#[test]
fn a_server_that_ends_says_where_to_go_on() {
    let mut lab = Lab::roomy();
    let writer = lab.connect();
    append(&mut lab, writer, b"one");
    let follower = feed(&mut lab, "follow=1&content=1");
    lab.service.close(&mut lab.wire, &mut lab.shard);
    let heard = Heard::of(lab.client(follower), true);
    assert_eq!(heard.last()["next"], 2);
    assert!(heard.last()["error"].as_str().is_some_and(|error| error.contains("the server ends")));
    assert!(heard.is_ended && lab.client(follower).finished);
}

#[test]
fn a_store_that_fails_takes_nothing_from_its_followers_but_hope() {
    let mut lab = Lab::roomy();
    let writer = lab.connect();
    append(&mut lab, writer, b"one");
    let follower = feed(&mut lab, "follow=1");
    let error = CommitError::Fence { why: "the medium is gone".into() };
    lab.service.commit_failed(&error, &mut lab.wire, &mut lab.shard);
    settle(&mut lab);
    let heard = Heard::of(lab.client(follower), false);
    assert_eq!((heard.seqs(), heard.is_ended), (vec![1], true));
    assert!(heard.last()["error"].as_str().is_some_and(|error| error.contains("store failed")));
}

#[test]
fn damaged_records_are_left_out_as_they_are_of_lists() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.pm");
    let mut lab = Lab::in_file(&path, 8 << 20);
    let writer = lab.connect();
    let bodies: Vec<Vec<u8>> = (1..=6).map(|seed| body(seed, 1000)).collect();
    let seqs: Vec<u64> = bodies.iter().map(|body| append(&mut lab, writer, body)).collect();
    alter(&path, &bodies[2][100..116], 1);
    let with_bytes = feed(&mut lab, "content=1&follow=1");
    let heard = Heard::of(lab.client(with_bytes), true);
    let left: Vec<u64> = seqs.iter().copied().filter(|seq| *seq != seqs[2]).collect();
    assert_eq!(heard.seqs(), left);
    assert_eq!(heard.lines[1].0["next"], seqs[2], "the gap shows");
    let lines = feed(&mut lab, "follow=1");
    assert_eq!(Heard::of(lab.client(lines), false).seqs(), left);
    // Nothing readable at the end is no end.
    alter(&path, &bodies[5][100..116], 1);
    let conn = lab.connect();
    assert_eq!(lab.ask(conn, &request("GET", &format!("/records/{}", seqs[5]))).status, 500);
    let late = feed(&mut lab, &format!("follow=1&from={}", seqs[5]));
    let seq = append(&mut lab, writer, b"good");
    assert_eq!(Heard::of(lab.client(late), false).seqs(), [seq]);
}

/// Two who want everything at once have it in turns, with bursts of others between them.
#[test]
fn nobody_is_in_anybodys_way() {
    let mut lab = Lab::roomy();
    let writer = lab.connect();
    for seed in 0..2000 {
        lab.append(writer, &body(seed, 1000));
    }
    for query in ["follow=1", "content=1"] {
        let readers = [lab.connect(), lab.connect()];
        for reader in readers {
            lab.send(reader, &request("GET", &format!("/records?{query}")));
        }
        let mut sent = readers.map(|reader| lab.client(reader).sent.len());
        let mut turns = 0;
        while lab.service.attend(&mut lab.wire, &mut lab.shard) {
            turns += 1;
            for (reader, sent) in readers.into_iter().zip(&mut sent) {
                let more = lab.client(reader).sent.len() - *sent;
                assert!(more < 40 << 10, "{more} bytes at once");
                *sent += more;
            }
            let lead = sent[0].abs_diff(sent[1]);
            assert!(lead < 40 << 10, "one is {lead} bytes ahead");
        }
        assert!(turns > 3, "{turns} turns");
        for reader in readers {
            assert_eq!(Heard::of(lab.client(reader), query == "content=1").seqs().len(), 2000);
            lab.close(reader, CloseReason::Reset);
        }
    }
}

#[test]
fn http_1_0_has_the_lines_as_they_are_and_head_has_none() {
    let mut lab = Lab::roomy();
    let writer = lab.connect();
    append(&mut lab, writer, &body(1, 1000));
    let conn = lab.connect();
    lab.send(conn, b"GET /records?content=1 HTTP/1.0\r\n\r\n");
    settle(&mut lab);
    let heard = Heard::of(lab.client(conn), true);
    assert!(!heard.head.contains("chunked"), "{}", heard.head);
    assert!(heard.lines[0].1 == body(1, 1000));
    assert_eq!((heard.last(), heard.is_ended), (&serde_json::json!({"next": 2}), true));
    let conn = lab.connect();
    lab.send(conn, &request("HEAD", "/records?follow=1"));
    let head = lab.replies_to(conn, "HEAD");
    assert_eq!((head.status, head.field("content-type")), (200, Some("application/x-ndjson")));
    assert_eq!(lab.ask(conn, &request("GET", "/records/1")).status, 200);
}

/// Connections come and go in the places of others, and turns that were meant for those do no harm.
#[test]
fn who_follows_in_anothers_place_is_woken_as_well() {
    let mut lab = Lab::roomy();
    let writer = lab.connect();
    let first = feed(&mut lab, "follow=1");
    lab.close(first, CloseReason::Reset);
    let again = ConnId { index: first.index, generation: first.generation + 1 };
    lab.client(first).sent.clear();
    lab.event(Event::Opened { conn: again, peer: ([10, 0, 0, 1], 4000).into() });
    lab.send(again, &request("GET", "/records?follow=1"));
    settle(&mut lab);
    append(&mut lab, writer, b"for the second");
    assert_eq!(Heard::of(lab.client(again), false).seqs(), [1]);
}
