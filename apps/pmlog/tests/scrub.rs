//! What was damaged while no server ran, and was not read when the store was opened: found by whoever asks for it, or in the
//! background.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Lab, alter, body, request};
use pmem::{Options, Region};
use pmlog::service::ServiceConfig;
use stack::net::Service as _;
use tempfile::TempDir;

const LEN: usize = 3000;
const RECORDS: usize = 100;

/// A store of records, one of them damaged since its server ended.
fn damaged_store(damaged: usize) -> (TempDir, Vec<u64>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.pm");
    let mut lab = Lab::in_file(&path, 16 << 20);
    let conn = lab.connect();
    let seqs: Vec<_> = (0..RECORDS).map(|seed| lab.append(conn, &body(seed as u64, LEN))).collect();
    drop(lab);
    alter(&path, &body(damaged as u64, LEN)[1000..1016], 3);
    (folder, seqs)
}

fn reopened(folder: &Path, scrub_bytes_per_s: u64) -> Lab {
    let options = Options { trust_durable: true, ..Options::default() };
    let region = Region::open(folder.join("store.pm"), &options).expect("the store");
    let config = ServiceConfig { scrub_bytes_per_s, ..ServiceConfig::default() };
    Lab::over(region.into_shard().expect("its only shard"), config)
}

/// One turn of the loop; whether it did anything.
fn turn(lab: &mut Lab) -> bool {
    lab.service.between_bursts(lab.now, &mut lab.wire, &mut lab.shard)
}

#[test]
fn a_record_that_was_damaged_before_the_server_began_is_gone_with_its_reason_though_nobody_had_read_it() {
    let (folder, seqs) = damaged_store(42);
    let mut lab = reopened(folder.path(), 0);
    let conn = lab.connect();
    for _ in 0..2 {
        let reply = lab.ask(conn, &request("GET", &format!("/records/{}", seqs[42])));
        assert_eq!(reply.status, 410, "{reply:?}");
        assert!(reply.reason().contains("checksum of its payload does not match"), "{}", reply.reason());
    }
    let health = lab.ask(conn, &request("GET", "/health")).json();
    assert_eq!(
        (&health["altered"], &health["damaged"]),
        (&0.into(), &1.into()),
        "nothing changed under the server"
    );
    assert!(!turn(&mut lab), "nobody scrubs at a rate of 0");
}

#[test]
fn damage_that_nobody_asks_for_is_found_in_the_background_at_the_rate_that_was_set() {
    // Behind the last one nothing vouches for it, so that it would be read at once.
    let (folder, _) = damaged_store(RECORDS - 2);
    let mut lab = reopened(folder.path(), 640 << 10);
    let damaged = |lab: &mut Lab| {
        let conn = lab.connect();
        lab.ask(conn, &request("GET", "/health")).json()["damaged"].clone()
    };
    let (mut steps, begun) = (0, lab.now);
    while damaged(&mut lab) == 0 {
        steps += u32::from(turn(&mut lab));
        assert!(!turn(&mut lab), "two steps at the same time");
        lab.now += Duration::from_millis(10);
        assert!(lab.now - begun < Duration::from_secs(1), "it is not found");
    }
    // 300,000 bytes are five steps, of which one comes every 100 ms.
    assert_eq!(steps, 5);
    assert!(lab.now - begun >= Duration::from_millis(400), "{:?}", lab.now - begun);
    assert!(!turn(&mut lab) && lab.shard.is_scrubbed());
}

#[test]
fn a_core_that_has_slept_makes_up_for_a_tenth_of_a_second_of_scrubbing() {
    let (folder, _) = damaged_store(RECORDS - 2);
    let mut lab = reopened(folder.path(), 640 << 10);
    lab.now += Duration::from_secs(3600);
    let steps = (0..20).filter(|_| turn(&mut lab)).count();
    assert!((1..=3).contains(&steps) && !lab.shard.is_scrubbed(), "{steps} steps of 100 ms each");
}
