//! Payload that is changed behind the server's back: no byte of it leaves as if it were what was stored.

mod common;

use common::{Lab, alter, body, post, request};
use pmem::crc32c;
use stack::net::CloseReason;
use tempfile::TempDir;

/// A service over a store in a file, with records of some lengths among others; gives their numbers and bytes.
fn lab_with(lens: &[usize]) -> (TempDir, Lab, Vec<(u64, Vec<u8>)>) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut lab = Lab::in_file(&folder.path().join("store.pm"), 32 << 20);
    let conn = lab.connect();
    let mut stored = Vec::new();
    for (seed, len) in lens.iter().enumerate() {
        let bytes = body(seed as u64 + 1, *len);
        stored.push((lab.append(conn, &bytes), bytes));
    }
    (folder, lab, stored)
}

/// The part of a record that is searched for in the file, so that it lies in one buffer whatever the record's length.
const PART: usize = 16;

#[test]
fn a_short_record_that_was_altered_is_refused_as_a_whole() {
    // In the log entry, packed, in one buffer, in several, in several log entries.
    let lens = [20, 100, 1448, 5000, 60_000];
    for place in 0..3 {
        let (folder, mut lab, stored) = lab_with(&lens);
        let conn = lab.connect();
        for (count, (seq, bytes)) in stored.iter().enumerate() {
            let from = [0, bytes.len() / 2 - PART / 2, bytes.len() - PART][place];
            alter(&folder.path().join("store.pm"), &bytes[from..from + PART], place * PART / 2 % PART);
            let target = format!("/records/{seq}");
            let reply = lab.ask(conn, &request("GET", &target));
            assert_eq!(reply.status, 500, "{} bytes, place {place}: {reply:?}", bytes.len());
            assert!(reply.reason().contains("not what was stored"), "{}", reply.reason());
            assert!(!lab.client(conn).finished, "the connection stays");
            // From now on it is known.
            let reply = lab.ask(conn, &request("GET", &target));
            assert_eq!(reply.status, 410, "{reply:?}");
            assert!(reply.reason().contains("damaged"), "{}", reply.reason());
            let list = lab.ask(conn, &request("GET", "/records")).json();
            let list = list.as_array().expect("a list");
            assert_eq!(list.len(), lens.len() - 1 - count);
            // All damage is at the front, and all behind it is there.
            assert!(list.windows(2).all(|pair| pair[0]["next"] == pair[1]["seq"]), "{list:?}");
            assert!(list.first().is_none_or(|entry| entry["seq"].as_u64() > Some(*seq)), "{list:?}");
            let health = lab.ask(conn, &request("GET", "/health")).json();
            assert_eq!((&health["altered"], &health["damaged"]), (&(count + 1).into(), &(count + 1).into()));
            for (seq, bytes) in &stored[count + 1..] {
                assert!(lab.ask(conn, &request("GET", &format!("/records/{seq}"))).body == *bytes);
            }
        }
    }
}

#[test]
fn a_head_request_tells_of_an_altered_record_as_a_get_would() {
    let (folder, mut lab, stored) = lab_with(&[3000]);
    let conn = lab.connect();
    alter(&folder.path().join("store.pm"), &stored[0].1[1000..1016], 3);
    lab.send(conn, &request("HEAD", &format!("/records/{}", stored[0].0)));
    assert_eq!(lab.replies_to(conn, "HEAD").status, 500);
}

#[test]
fn a_long_record_breaks_off_before_a_byte_that_was_altered() {
    let len = 1_000_000;
    for at in [70_000, 500_000, len - 1] {
        let (folder, mut lab, stored) = lab_with(&[len]);
        let (seq, bytes) = &stored[0];
        let from = at.min(len - PART);
        alter(&folder.path().join("store.pm"), &bytes[from..from + PART], at - from);
        let conn = lab.connect();
        lab.send(conn, &request("GET", &format!("/records/{seq}")));
        assert!(lab.client(conn).aborted, "the client must not take it for the whole");
        let sent = std::mem::take(&mut lab.client(conn).sent);
        let head = memchr::memmem::find(&sent, b"\r\n\r\n").expect("a head") + 4;
        let sent = &sent[head..];
        assert!(sent.len() <= at && bytes.starts_with(sent), "{} bytes for {at}", sent.len());
        // No more is held back than what one log entry vouches for.
        assert!(sent.len() + 4 * 2048 > at, "{} bytes for {at}", sent.len());
        lab.close(conn, CloseReason::Aborted);
        let conn = lab.connect();
        assert_eq!(lab.ask(conn, &request("GET", &format!("/records/{seq}"))).status, 410);
        assert_eq!(lab.ask(conn, &request("GET", "/health")).json()["altered"], 1);
    }
    // So near its beginning that nothing has left yet.
    let (folder, mut lab, stored) = lab_with(&[len]);
    alter(&folder.path().join("store.pm"), &stored[0].1[60_000..60_016], 5);
    let conn = lab.connect();
    assert_eq!(lab.ask(conn, &request("GET", &format!("/records/{}", stored[0].0))).status, 500);
}

#[test]
fn what_changes_while_a_slow_client_reads_is_not_sent_to_it() {
    let (folder, mut lab, stored) = lab_with(&[1_000_000]);
    let (seq, bytes) = &stored[0];
    let conn = lab.connect();
    lab.client(conn).room_extents = 20;
    lab.send(conn, &request("GET", &format!("/records/{seq}")));
    assert!(!lab.client(conn).aborted);
    alter(&folder.path().join("store.pm"), &bytes[900_000..900_016], 0);
    while lab.make_room(conn, 4096, 20) && !lab.client(conn).aborted {}
    assert!(lab.client(conn).aborted);
    let sent = std::mem::take(&mut lab.client(conn).sent);
    let head = memchr::memmem::find(&sent, b"\r\n\r\n").expect("a head") + 4;
    assert!(bytes.starts_with(&sent[head..]) && sent.len() > 800_000, "{} bytes", sent.len());
}

#[test]
fn a_record_comes_with_its_checksum_end_to_end() {
    let (_folder, mut lab, _) = lab_with(&[]);
    let conn = lab.connect();
    for len in [0, 9, 100, 1448, 100_000] {
        let bytes = if len == 9 { b"123456789".to_vec() } else { body(len as u64, len) };
        let appended = lab.ask(conn, &post(&bytes)).json();
        let checksum = crc32c(&bytes);
        assert_eq!(appended["crc32c"], format!("{checksum:08x}"));
        let digest = format!("crc32c=:{}:", base64(&checksum.to_be_bytes()));
        let target = format!("/records/{}", appended["seq"]);
        let reply = lab.ask(conn, &request("GET", &target));
        assert_eq!((reply.field("content-digest"), reply.field("repr-digest")), (Some(&*digest), None));
        lab.send(conn, &request("HEAD", &target));
        let reply = lab.replies_to(conn, "HEAD");
        assert_eq!((reply.field("content-digest"), reply.field("repr-digest")), (None, Some(&*digest)));
    }
    assert_eq!(base64(&0xe306_9283_u32.to_be_bytes()), "4waSgw==", "the checksum of 123456789");
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
    let digit = |six: &[u8]| {
        let six = format!("{:0<6}", std::str::from_utf8(six).expect("digits"));
        char::from(digits[usize::from_str_radix(&six, 2).expect("binary")])
    };
    let text: String = bits.as_bytes().chunks(6).map(digit).collect();
    let padding = (4 - text.len() % 4) % 4;
    text + &"=".repeat(padding)
}
