//! Reading, listing and trimming.

mod common;

use common::{Lab, body, post, request, responses};
use pmem::{Options, Region};
use pmlog::service::ServiceConfig;

#[test]
fn a_record_is_sent_from_where_it_lies() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    for len in [0, 1, 32, 33, 600, 1024, 100_000] {
        let body = body(len as u64, len);
        let seq = lab.append(conn, &body);
        lab.client(conn).sent_in_place = 0;
        let reply = lab.ask(conn, &request("GET", &format!("/records/{seq}")));
        assert_eq!(reply.status, 200);
        assert_eq!(reply.field("content-type"), Some("application/octet-stream"));
        assert!(reply.body == body, "{len} bytes");
        let in_place = if len > 32 { len } else { 0 };
        assert_eq!(lab.client(conn).sent_in_place, in_place, "{len} bytes");
    }
}

#[test]
fn head_tells_what_get_would_and_sends_no_body() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let seq = lab.append(conn, &body(1, 3000));
    for (target, status, field) in [
        (format!("/records/{seq}"), "200 OK", "Content-Length: 3000\r\n"),
        ("/records".to_owned(), "200 OK", "Transfer-Encoding: chunked\r\n"),
        ("/health".to_owned(), "200 OK", "Content-Type: application/json\r\n"),
        ("/records/99".to_owned(), "404 Not Found", "Content-Type: application/json\r\n"),
    ] {
        lab.send(conn, &request("HEAD", &target));
        let sent = String::from_utf8(std::mem::take(&mut lab.client(conn).sent)).expect("text");
        assert!(sent.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{target}: {sent}");
        assert!(sent.contains(field), "{target}: {sent}");
        assert!(sent.ends_with("\r\n\r\n"), "{target}: {sent}");
        assert_eq!(sent.matches("\r\n\r\n").count(), 1, "{target}: {sent}");
    }
    lab.append(conn, b"the connection goes on");
}

#[test]
fn a_slow_reader_gets_everything_and_holds_up_nobody() {
    let mut lab = Lab::roomy();
    let (slow, quick) = (lab.connect(), lab.connect());
    let long = body(1, 300_000);
    let seq = lab.append(quick, &long);
    lab.client(slow).room_bytes = 0;
    lab.client(slow).room_extents = 0;
    let pipeline = [
        request("GET", &format!("/records/{seq}")),
        post(b"behind the long one"),
        request("GET", "/records"),
    ]
    .concat();
    lab.send(slow, &pipeline);
    assert!(lab.client(slow).sent.is_empty());

    let mut turns = 0;
    while lab.make_room(slow, 1100, 7) {
        turns += 1;
        assert!(turns < 1000, "the reply does not come to its end");
        lab.append(quick, &body(turns, 800));
    }
    let sent = std::mem::take(&mut lab.client(slow).sent);
    let replies = responses(&sent);
    assert_eq!(replies.len(), 3);
    assert!(replies[0].body == long);
    let appended = replies[1].json()["seq"].as_u64().expect("a number");
    assert_eq!(lab.shard.record(appended).expect("the record").to_vec(), b"behind the long one");
    assert!(replies[2].json().as_array().is_some_and(|list| list.len() > 2));
}

#[test]
fn a_record_that_is_being_sent_survives_its_trim() {
    let mut lab = Lab::roomy();
    let free = lab.free_buffers();
    let (reader, other) = (lab.connect(), lab.connect());
    let long = body(1, 200_000);
    let seq = lab.append(other, &long);
    lab.client(reader).room_extents = 3;
    lab.send(reader, &request("GET", &format!("/records/{seq}")));
    let reply = lab.ask(other, &request("DELETE", &format!("/records?before={}", lab.shard.next_seq())));
    assert_eq!(reply.json()["trimmed"], 1);
    assert_eq!(lab.ask(other, &request("GET", &format!("/records/{seq}"))).status, 404);
    // Other records take whatever became free.
    for seed in 0..200 {
        lab.append(other, &body(seed, 2000));
    }
    while lab.make_room(reader, 4096, 5) {}
    assert!(lab.replies(reader)[0].body == long);
    lab.ask(other, &request("DELETE", &format!("/records?before={}", lab.shard.next_seq())));
    assert_eq!(lab.free_buffers(), free);
}

#[test]
fn a_listing_tells_numbers_lengths_and_checksums() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    assert_eq!(lab.ask(conn, &request("GET", "/records")).json(), serde_json::json!([]));
    let seqs: Vec<_> = (0..1500).map(|seed| lab.append(conn, &body(seed, seed as usize % 40))).collect();

    let listed = |lab: &mut Lab, query: &str| -> Vec<serde_json::Value> {
        let reply = lab.ask(conn, &request("GET", &format!("/records{query}")));
        assert_eq!(reply.status, 200, "{query}");
        reply.json().as_array().expect("a list").clone()
    };
    let all = listed(&mut lab, "?limit=100000");
    assert_eq!(all.len(), 1000, "a listing has an upper limit");
    for (entry, seq) in all.iter().zip(&seqs) {
        let record = lab.shard.record(*seq).expect("the record");
        assert_eq!(entry["seq"], *seq);
        assert_eq!(entry["epoch"], record.epoch());
        assert_eq!(entry["length"], record.len());
        assert_eq!(entry["crc32c"], format!("{:08x}", record.crc32c()));
    }
    assert_eq!(listed(&mut lab, "").len(), 100);
    assert_eq!(listed(&mut lab, "?limit=0").len(), 0);
    let from = seqs[1400];
    let some = listed(&mut lab, &format!("?from={from}&limit=7"));
    let numbers: Vec<_> = some.iter().map(|entry| entry["seq"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, seqs[1400..1407]);
    assert_eq!(listed(&mut lab, &format!("?from={}&limit=900", seqs[1490])).len(), 10);
    assert_eq!(listed(&mut lab, "?from=18446744073709551615").len(), 0);
}

/// A follower asks for what comes behind what it has. It is told if that was trimmed, and never goes on as if nothing
/// had been there.
#[test]
fn a_follower_sees_what_a_trim_took_before_it_was_read() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    (0..30).for_each(|seed| _ = lab.append(conn, &body(seed, 10)));
    lab.ask(conn, &request("DELETE", "/records?before=21"));
    for version in ["1.0", "1.1"] {
        let mut list = |method: &str, query: &str| {
            let conn = lab.connect();
            let text = format!("{method} /records{query} HTTP/{version}\r\nHost: a\r\n\r\n");
            lab.send(conn, text.as_bytes());
            lab.replies_to(conn, method)
        };
        for query in ["", "?from=0", "?from=21", "?from=21&limit=3", "?from=31", "?from=99", "?limit=0"] {
            for method in ["GET", "HEAD"] {
                let reply = list(method, query);
                assert_eq!(reply.status, 200, "{query}");
                assert_eq!(
                    (reply.field("log-head"), reply.field("log-next")),
                    (Some("21"), Some("31")),
                    "{query}"
                );
            }
        }
        assert_eq!(list("GET", "").json()[0]["seq"], 21);
        assert_eq!(list("GET", "?from=0").json()[0]["seq"], 21);
        for from in [1, 19, 20] {
            let reply = list("GET", &format!("?from={from}"));
            assert_eq!(reply.status, 410, "from {from}");
            assert_eq!((&reply.json()["head"], &reply.json()["next"]), (&21.into(), &31.into()));
            assert!(reply.reason().contains("trimmed") && reply.reason().contains("from 21"), "{reply:?}");
            assert_eq!(list("HEAD", &format!("?from={from}")).status, 410);
        }
    }
}

#[test]
fn whoever_goes_on_at_next_misses_nothing_and_is_not_alarmed() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    // Of several log entries each.
    let seqs: Vec<_> = (0..20).map(|seed| lab.append(conn, &body(seed, 50_000))).collect();
    assert!(seqs[1] > seqs[0] + 1);
    let (mut from, mut seen) = (0, Vec::new());
    loop {
        let reply = lab.ask(conn, &request("GET", &format!("/records?from={from}&limit=3")));
        assert_eq!(reply.status, 200, "from {from}");
        let Some(last) = reply.json().as_array().expect("a list").last().cloned() else { break };
        seen.extend(
            reply.json().as_array().expect("a list").iter().map(|entry| entry["seq"].as_u64().unwrap()),
        );
        from = last["next"].as_u64().expect("a number");
        // All that was read goes, and no more.
        lab.ask(conn, &request("DELETE", &format!("/records?before={from}")));
    }
    assert_eq!(seen, seqs);
}

#[test]
fn a_list_ends_where_records_are_trimmed_before_their_turn() {
    let mut lab = Lab::roomy();
    let (slow, other) = (lab.connect(), lab.connect());
    (0..100).for_each(|seed| _ = lab.append(other, &body(seed, 10)));
    lab.client(slow).room_bytes = 1500;
    lab.send(slow, &request("GET", "/records?limit=1000"));
    lab.ask(other, &request("DELETE", "/records?before=60"));
    while lab.make_room(slow, 1500, 1) {}
    let list = lab.replies(slow)[0].json();
    let seqs: Vec<_> =
        list.as_array().expect("a list").iter().map(|entry| entry["seq"].as_u64().unwrap()).collect();
    assert!(seqs.len() < 59 && !seqs.is_empty(), "{seqs:?}");
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "no gap is hidden");
    let next = &list[seqs.len() - 1]["next"];
    assert_eq!(lab.ask(slow, &request("GET", &format!("/records?from={next}"))).status, 410);
}

#[test]
fn a_listing_for_an_old_client_ends_with_the_connection() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    lab.append(conn, b"one");
    let old = lab.connect();
    let reply = lab.ask(old, b"GET /records HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(reply.field("connection"), Some("close"));
    assert_eq!(reply.json().as_array().map(Vec::len), Some(1));
    assert!(lab.client(old).finished);
}

#[test]
fn trims_stop_at_what_there_is() {
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let seqs: Vec<_> = (0..10).map(|seed| lab.append(conn, &body(seed, 6000))).collect();
    let mut trim = |before: u64| {
        let reply = lab.ask(conn, &request("DELETE", &format!("/records?before={before}")));
        assert_eq!(reply.status, 200);
        (reply.json()["head"].as_u64().expect("a head"), reply.json()["trimmed"].as_u64().expect("a count"))
    };
    assert_eq!(trim(0), (seqs[0], 0));
    assert_eq!(trim(seqs[3]), (seqs[3], 3));
    assert_eq!(trim(seqs[1]), (seqs[3], 0), "the head does not go back");
    let (head, trimmed) = trim(u64::MAX);
    assert_eq!((head, trimmed), (lab.shard.next_seq(), 7));
    lab.append(conn, b"and on");
}

#[test]
fn health_tells_a_slow_medium() {
    let wait = std::time::Duration::from_millis(5);
    let options = Options { size: Some(8 << 20), persist_delay: wait, ..Options::default() };
    let region = Region::open("memory:", &options).expect("a volatile store");
    let mut lab = Lab::over(region.into_shard().expect("one shard"), ServiceConfig::default());
    let conn = lab.connect();
    (0..3).for_each(|seed| _ = lab.append(conn, &body(seed, 10)));
    let commits = lab.ask(conn, &request("GET", "/health")).json()["commits"].clone();
    assert_eq!(commits["count"], 3);
    assert!(
        ["p50_us", "p99_us", "p999_us", "max_us"].iter().all(|key| commits[key].as_u64() >= Some(5000)),
        "{commits}"
    );
}

#[test]
fn health_tells_how_the_store_is() {
    let config = ServiceConfig { domain: "msync".to_owned(), ..ServiceConfig::default() };
    let mut lab = Lab::new(8 << 20, config);
    let conn = lab.connect();
    let body = body(1, 10_000);
    for _ in 0..3 {
        lab.append(conn, &body);
    }
    let reply = lab.ask(conn, &request("GET", "/health"));
    assert_eq!(reply.status, 200);
    let health = reply.json();
    assert_eq!((&health["status"], &health["domain"]), (&"ok".into(), &"msync".into()));
    assert_eq!((&health["records"], &health["copied_bytes"]), (&3.into(), &0.into()));
    assert_eq!(health["payload_bytes"], 30_000);
    assert_eq!(health["next"], lab.shard.next_seq());
    assert_eq!(health["head"], 1);
    assert_eq!(health["free_buffers"], lab.free_buffers());
    assert_eq!((&health["connections"], &health["max_connections"]), (&1.into(), &1024.into()));
    assert_eq!(health["log_entries"], lab.shard.log_entries());
    let used = lab.shard.next_seq() - 1;
    assert_eq!(health["free_log_entries"], lab.shard.log_entries() - used, "{used} are used");
    assert_eq!((&health["damaged"], &health["altered"]), (&0.into(), &0.into()));
    let commits = &health["commits"];
    assert_eq!(commits["count"], 3);
    let figures = ["p50_us", "p99_us", "p999_us", "max_us"].map(|key| commits[key].as_u64().expect("a time"));
    assert!(figures.is_sorted() && figures[0] > 0, "{commits}");
    lab.ask(conn, &request("DELETE", &format!("/records?before={}", lab.shard.next_seq())));
    assert_eq!(lab.ask(conn, &request("GET", "/health")).json()["records"], 0);
}
