//! Several cores, each with a shard and clients of its own: what one of them stores, all of them give.

mod common;

use std::sync::Arc;

use common::{Lab, alter, body, post, request, responses};
use pmem::{Options, Region};
use pmlog::service::{Exchange, LogService, ServiceConfig};
use serde_json::Value;
use stack::net::{CloseReason, ConnId};
use stack::time::Instant;

/// Records of every form: in the log entry, packed, one buffer, a part and its last byte, several parts.
const LENGTHS: [usize; 9] = [0, 5, 32, 100, 1448, 16_383, 16_384, 16_385, 300_000];

/// The cores of one server, run in turn.
struct Cores(Vec<Lab>);

/// The stores's medium outlives a server, so that it can be opened again.
fn medium(bytes: usize) -> Arc<pmem::LineModel> {
    pmem::LineModel::new(bytes)
}

impl Cores {
    fn over(medium: &Arc<pmem::LineModel>, cores: u32, shards: u32) -> Self {
        let options = Options { shards_if_new: Some(shards), ..Options::default() };
        Self::of(Region::over(medium.clone(), &options).expect("a store"), cores)
    }

    fn of(region: Region, cores: u32) -> Self {
        Self::with_exchange(region, cores).0
    }

    /// Also gives what the cores have between them.
    fn with_exchange(region: Region, cores: u32) -> (Self, Arc<Exchange>) {
        let mut shards: Vec<_> = region.into_seeds().into_iter().map(|seed| seed.open().ok()).collect();
        let exchange = Exchange::new(shards.len() as u32, cores);
        exchange.publish((0..).zip(&shards).filter_map(|(index, shard)| Some((index, shard.as_ref()?))));
        let now = Instant::from_secs(1000);
        let core = |core: u32| {
            let mut own = (core..shards.len() as u32).step_by(cores as usize).map(|index| {
                (index, shards[index as usize].take().expect("each shard opens, and has one core"))
            });
            let (_, first) = own.next().expect("each core has a shard");
            let archive = own.collect();
            let mut lab = Lab::over(first, ServiceConfig::default());
            lab.service =
                LogService::among(ServiceConfig::default(), exchange.clone(), core as usize, archive, now);
            lab.now = now;
            lab
        };
        (Self((0..cores).map(core).collect()), exchange)
    }

    fn new(cores: u32) -> Self {
        Self::over(&medium(64 << 20), cores, cores)
    }

    /// Lets the cores work until none has anything to do.
    fn settle(&mut self) {
        while self.0.iter_mut().fold(false, |worked, lab| worked | attend(lab)) {}
    }

    fn ask(&mut self, core: usize, conn: ConnId, asked: &[u8]) -> common::Response {
        self.0[core].send(conn, asked);
        self.settle();
        let mut replies = self.0[core].replies(conn);
        assert_eq!(
            replies.len(),
            1,
            "one reply to {:?}",
            String::from_utf8_lossy(&asked[..asked.len().min(60)])
        );
        replies.remove(0)
    }

    fn get(&mut self, core: usize, target: &str) -> common::Response {
        let conn = self.0[core].connect();
        self.ask(core, conn, &request("GET", target))
    }

    /// Stores a record at a core; gives its name.
    fn append(&mut self, core: usize, body: &[u8]) -> String {
        let conn = self.0[core].connect();
        let reply = self.ask(core, conn, &post(body)).json();
        assert_eq!(reply["shard"], core, "{reply}");
        format!("{}-{}", reply["shard"], reply["seq"])
    }

    fn free_buffers(&self) -> Vec<usize> {
        self.0.iter().map(Lab::free_buffers).collect()
    }
}

fn attend(lab: &mut Lab) -> bool {
    let worked = lab.service.attend(&mut lab.wire, &mut lab.shard);
    lab.commit();
    worked
}

/// What a listing says, as epoch, shard and number.
fn places(list: &Value) -> Vec<(u64, u64, u64)> {
    let number = |entry: &Value, key| entry[key].as_u64().expect("a number");
    let entries = list.as_array().expect("a list");
    entries
        .iter()
        .map(|entry| (number(entry, "epoch"), number(entry, "shard"), number(entry, "seq")))
        .collect()
}

#[test]
fn every_core_gives_every_record() {
    let mut cores = Cores::new(3);
    let mut stored = Vec::new();
    for (seed, len) in LENGTHS.iter().enumerate() {
        for core in 0..3 {
            let bytes = body((seed * 3 + core) as u64, *len);
            stored.push((cores.append(core, &bytes), bytes));
        }
    }
    let free = cores.free_buffers();
    for (name, bytes) in &stored {
        for core in 0..3 {
            let before = cores.0[core].service.counters();
            let reply = cores.get(core, &format!("/records/{name}"));
            assert_eq!((reply.status, reply.body.len()), (200, bytes.len()), "{name} at core {core}");
            assert!(reply.body == *bytes, "{name} at core {core} differs");
            let after = cores.0[core].service.counters();
            let is_own = name.starts_with(&format!("{core}-"));
            let crossed = if is_own { 0 } else { bytes.len() as u64 };
            assert_eq!(after.crossed_bytes - before.crossed_bytes, crossed, "{name} at core {core}");
            assert_eq!(after.read_records - before.read_records, 1);
        }
    }
    assert_eq!(cores.free_buffers(), free);
}

#[test]
fn a_client_who_takes_little_at_a_time_gets_another_cores_record_whole() {
    let mut cores = Cores::new(2);
    let bytes = body(1, 100_000);
    let name = cores.append(1, &bytes);
    let conn = cores.0[0].connect();
    cores.0[0].client(conn).room_bytes = 0;
    cores.0[0].send(conn, &request("GET", &format!("/records/{name}")));
    let mut turns = 0;
    loop {
        cores.settle();
        if !cores.0[0].make_room(conn, 3000, 1) {
            break;
        }
        turns += 1;
    }
    assert!(turns >= 100_000 / 3000, "{turns}");
    let reply = cores.0[0].replies(conn).remove(0);
    assert!(reply.body == bytes, "{} of {} bytes", reply.body.len(), bytes.len());
}

/// Many more at a time than there is room for parts of.
#[test]
fn all_who_ask_are_served() {
    let mut cores = Cores::new(2);
    let bytes = body(2, 50_000);
    let name = cores.append(1, &bytes);
    let conns: Vec<ConnId> = (0..500).map(|_| cores.0[0].connect()).collect();
    for &conn in &conns {
        cores.0[0].send(conn, &request("GET", &format!("/records/{name}")));
    }
    cores.settle();
    for conn in conns {
        let replies = cores.0[0].replies(conn);
        assert!(replies.len() == 1 && replies[0].body == bytes);
    }
}

#[test]
fn a_record_that_is_trimmed_while_another_core_reads_it_stays_until_it_is_read() {
    let mut cores = Cores::new(2);
    let free = cores.free_buffers();
    let bytes = body(3, 200_000);
    let name = cores.append(1, &bytes);
    let reader = cores.0[0].connect();
    cores.0[0].client(reader).room_bytes = 20_000;
    cores.0[0].send(reader, &request("GET", &format!("/records/{name}")));
    cores.settle();
    let conn = cores.0[1].connect();
    let trimmed = cores.ask(1, conn, &request("DELETE", "/records?before=1-1000000")).json();
    assert_eq!((trimmed["shard"].as_u64(), trimmed["trimmed"].as_u64()), (Some(1), Some(1)), "{trimmed}");
    assert_eq!(cores.get(0, &format!("/records/{name}")).status, 404);
    assert!(cores.free_buffers()[1] < free[1], "the record is held for its reader");
    assert!(cores.0[0].make_room(reader, usize::MAX, 1));
    cores.settle();
    assert!(cores.0[0].replies(reader)[0].body == bytes);
    assert_eq!(cores.free_buffers(), free);
}

#[test]
fn a_reader_who_goes_away_gives_another_cores_record_back() {
    let mut cores = Cores::new(2);
    let free = cores.free_buffers();
    // At each stage: before the first part is asked for, while it is, and while there are more.
    for settle_before in [false, true] {
        for room in [0, 1000, 40_000] {
            let name = cores.append(1, &body(4, 200_000));
            let reader = cores.0[0].connect();
            cores.0[0].client(reader).room_bytes = room;
            cores.0[0].send(reader, &request("GET", &format!("/records/{name}")));
            if settle_before {
                cores.settle();
            }
            cores.0[0].close(reader, CloseReason::Reset);
            cores.settle();
            let conn = cores.0[1].connect();
            cores.ask(1, conn, &request("DELETE", "/records?before=1-1000000"));
            assert_eq!(cores.free_buffers(), free, "with room for {room} bytes");
        }
    }
    // Nothing of the room for parts is lost either.
    let name = cores.append(1, &body(5, 20_000));
    for _ in 0..200 {
        assert_eq!(cores.get(0, &format!("/records/{name}")).body.len(), 20_000);
    }
}

#[test]
fn listings_have_all_records_in_the_order_of_epoch_shard_and_number() {
    let medium = medium(16 << 20);
    let mut expected = Vec::new();
    // Shards with many records, few, and none in an epoch; the third is left out of most.
    for (epoch, counts) in [(1, [20, 3, 1]), (2, [0, 9, 0]), (3, [8, 0, 0]), (4, [1, 1, 1]), (5, [0, 0, 0])] {
        let mut cores = Cores::over(&medium, 3, 3);
        for (core, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let name = cores.append(core, b"a record");
                let (shard, seq) = name.split_once('-').expect("a name");
                expected.push((epoch, shard.parse().expect("a number"), seq.parse().expect("a number")));
            }
        }
    }
    expected.sort_unstable();
    let mut cores = Cores::over(&medium, 3, 3);
    for core in 0..3 {
        assert_eq!(places(&cores.get(core, "/records?limit=1000").json()), expected);
        for limit in [1, 2, 7, 8, 9, 16] {
            let mut seen: Vec<(u64, u64, u64)> = Vec::new();
            loop {
                let from = seen.last().map_or(String::new(), |(e, s, n)| format!("&from={e}-{s}-{}", n + 1));
                let page = places(&cores.get(core, &format!("/records?limit={limit}{from}")).json());
                assert!(page.len() <= limit);
                if page.is_empty() {
                    break;
                }
                seen.extend(page);
            }
            assert_eq!(seen, expected, "{limit} at a time");
        }
        for shard in 0..3 {
            let of_shard: Vec<_> = expected.iter().filter(|place| place.1 == shard).copied().collect();
            let target = format!("/records?shard={shard}&limit=1000");
            assert_eq!(places(&cores.get(core, &target).json()), of_shard);
            let (_, _, seq) = of_shard[of_shard.len() / 2];
            let target = format!("/records?shard={shard}&from={seq}&limit=1000");
            assert_eq!(places(&cores.get(core, &target).json()), of_shard[of_shard.len() / 2..]);
        }
        assert_eq!(cores.get(core, "/records?limit=0").json(), serde_json::json!([]));
        assert_eq!(cores.get(core, "/records?from=9-0-0").json(), serde_json::json!([]));
    }
}

#[test]
fn a_follower_of_several_shards_sees_what_a_trim_took_before_it_was_read() {
    let mut cores = Cores::new(2);
    for n in 0..40 {
        cores.append(n % 2, b"a record");
    }
    let conn = cores.0[0].connect();
    cores.ask(0, conn, &request("DELETE", "/records?before=1-11"));
    for core in 0..2 {
        for (target, head, next) in [
            ("/records", "0-1, 1-11", "0-21, 1-21"),
            ("/records?from=1-0-5", "0-1, 1-11", "0-21, 1-21"),
            ("/records?from=1-1-0", "0-1, 1-11", "0-21, 1-21"),
            ("/records?from=1-1-11", "0-1, 1-11", "0-21, 1-21"),
            ("/records?shard=0&from=5", "0-1", "0-21"),
            ("/records?shard=1", "1-11", "1-21"),
            ("/records?shard=1&from=0", "1-11", "1-21"),
            ("/records?shard=1&from=11", "1-11", "1-21"),
        ] {
            let reply = cores.get(core, target);
            assert_eq!(reply.status, 200, "{target} at core {core}");
            assert_eq!(
                (reply.field("log-head"), reply.field("log-next")),
                (Some(head), Some(next)),
                "{target}"
            );
        }
        for target in ["/records?shard=1&from=1", "/records?shard=1&from=10", "/records?from=1-1-10"] {
            let reply = cores.get(core, target);
            assert_eq!(reply.status, 410, "{target} at core {core}");
            let json = reply.json();
            assert_eq!((&json["shard"], &json["head"], &json["next"]), (&1.into(), &11.into(), &21.into()));
            assert!(reply.reason().contains("trimmed"), "{}", reply.reason());
        }
    }
}

#[test]
fn a_list_of_several_shards_ends_where_records_are_trimmed_before_their_turn() {
    for (target, trimmed_shard) in [("/records?limit=1000", 0), ("/records?shard=1&limit=1000", 1)] {
        for reader in 0..2 {
            let mut cores = Cores::new(2);
            for n in 0..200 {
                cores.append(n % 2, b"a record");
            }
            let slow = cores.0[reader].connect();
            cores.0[reader].client(slow).room_bytes = 1500;
            cores.0[reader].send(slow, &request("GET", target));
            cores.settle();
            let other = cores.0[1].connect();
            cores.ask(1, other, &request("DELETE", &format!("/records?before={trimmed_shard}-60")));
            while cores.0[reader].make_room(slow, 1500, 1) {
                cores.settle();
            }
            let list = cores.0[reader].replies(slow)[0].json();
            let seqs: Vec<u64> = places(&list).iter().map(|place| place.2).collect();
            assert!(seqs.len() < 59 && !seqs.is_empty(), "{target} at core {reader}: {seqs:?}");
            assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "no gap is hidden");
            let last = &list[seqs.len() - 1];
            let from = match target.contains("shard") {
                true => format!("shard=1&from={}", last["next"]),
                false => format!("from={}-{}-{}", last["epoch"], last["shard"], last["next"]),
            };
            assert_eq!(cores.get(reader, &format!("/records?{from}")).status, 410, "{from}");
        }
    }
}

#[test]
fn what_was_altered_is_not_given_to_another_core_either() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.pm");
    let options = Options { size: Some(32 << 20), shards_if_new: Some(2), ..Options::default() };
    let mut cores = Cores::of(Region::open(&path, &options).expect("a store in a file"), 2);
    for (count, (len, at)) in
        [(20, 3), (1000, 999), (16_384, 16_000), (60_000, 30_000), (500_000, 300_000)].into_iter().enumerate()
    {
        let bytes = body(len as u64, len);
        let name = cores.append(1, &bytes);
        let from = at.min(len - 16);
        alter(&path, &bytes[from..from + 16], at - from);
        let conn = cores.0[0].connect();
        cores.0[0].send(conn, &request("GET", &format!("/records/{name}")));
        cores.settle();
        let sent = std::mem::take(&mut cores.0[0].client(conn).sent);
        if len > 100_000 {
            assert!(cores.0[0].client(conn).aborted, "{len} bytes");
            let head = memchr::memmem::find(&sent, b"\r\n\r\n").expect("a head") + 4;
            assert!(bytes.starts_with(&sent[head..]), "{len} bytes");
            assert!(sent.len() - head <= at && sent.len() - head > 200_000, "{} bytes", sent.len());
        } else {
            assert_eq!(responses(&sent)[0].status, 500, "{len} bytes");
        }
        for core in 0..2 {
            assert_eq!(cores.get(core, &format!("/records/{name}")).status, 410, "{len} bytes");
            let health = cores.get(core, "/health").json();
            assert_eq!((&health["altered"], &health["damaged"]), (&(count + 1).into(), &(count + 1).into()));
        }
    }
}

#[test]
fn any_core_trims_any_shard_and_no_other() {
    let mut cores = Cores::new(2);
    let names: Vec<String> = (0..6).map(|n| cores.append(n % 2, b"to be trimmed, or not")).collect();
    let conn = cores.0[0].connect();
    let before = request("DELETE", &format!("/records?before={}", names[3]));
    let trimmed = cores.ask(0, conn, &before).json();
    assert_eq!((trimmed["shard"].as_u64(), trimmed["trimmed"].as_u64()), (Some(1), Some(1)), "{trimmed}");
    let left: Vec<_> =
        places(&cores.get(1, "/records").json()).iter().map(|(_, s, n)| format!("{s}-{n}")).collect();
    assert_eq!(left, [&names[0], &names[2], &names[4], &names[3], &names[5]].map(String::clone));
}

/// Replies keep the order of the requests, and a read sees what the same client did before, at whichever core.
#[test]
fn pipelined_requests_to_several_shards_are_answered_in_order() {
    let mut cores = Cores::new(2);
    let other = cores.append(1, b"the other core's");
    let conn = cores.0[0].connect();
    let requests = [
        post(b"first"),
        request("GET", &format!("/records/{other}")),
        post(b"second"),
        request("DELETE", "/records?before=1-1000"),
        request("GET", &format!("/records/{other}")),
        request("GET", "/records"),
    ];
    cores.0[0].send(conn, &requests.concat());
    cores.settle();
    let sent = std::mem::take(&mut cores.0[0].client(conn).sent);
    let replies = responses(&sent);
    let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 404, 200]);
    assert_eq!(replies[1].body, b"the other core's");
    assert_eq!(places(&replies[5].json()), [(1, 0, 1), (1, 0, 2)]);
}

#[test]
fn a_core_serves_the_shards_of_cores_that_are_no_more() {
    let medium = medium(16 << 20);
    let mut stored = Vec::new();
    let mut cores = Cores::over(&medium, 3, 3);
    for core in 0..3 {
        let bytes = body(core as u64, 5000);
        stored.push((cores.append(core, &bytes), bytes));
    }
    drop(cores);
    for count in [2, 1] {
        let mut cores = Cores::over(&medium, count, 3);
        for core in 0..count as usize {
            for (name, bytes) in &stored {
                assert!(
                    cores.get(core, &format!("/records/{name}")).body == *bytes,
                    "{name} of {count} cores"
                );
            }
            let health = cores.get(core, "/health").json();
            assert_eq!(health["shards"].as_array().map(Vec::len), Some(3), "{health}");
        }
    }
    let mut alone = Cores::over(&medium, 1, 3);
    let conn = alone.0[0].connect();
    let trimmed = alone.ask(0, conn, &request("DELETE", "/records?before=2-1000")).json();
    assert_eq!((trimmed["shard"].as_u64(), trimmed["trimmed"].as_u64()), (Some(2), Some(1)), "{trimmed}");
    assert_eq!(alone.get(0, &format!("/records/{}", stored[2].0)).status, 404);
    assert_eq!(alone.append(0, b"one more").split('-').next(), Some("0"));
}

#[test]
fn health_counts_the_shards_of_cores_that_have_not_run_yet() {
    let medium = medium(16 << 20);
    let mut cores = Cores::over(&medium, 2, 2);
    for core in [0, 1, 1] {
        cores.append(core, b"a record");
    }
    drop(cores);
    let mut cores = Cores::over(&medium, 2, 2);
    let first = &mut cores.0[0];
    let conn = first.connect();
    let health = first.ask(conn, &request("GET", "/health")).json();
    assert_eq!(health["records"], 3, "{health}");
}

#[test]
fn health_is_that_of_all_cores() {
    let mut cores = Cores::new(2);
    cores.append(0, &[1; 1000]);
    cores.append(1, &[2; 2000]);
    let health = cores.get(0, "/health").json();
    let number = |key: &str| health[key].as_u64();
    assert_eq!(
        (number("records"), number("payload_bytes"), number("fences")),
        (Some(2), Some(3000), Some(2))
    );
    assert_eq!(number("free_buffers"), Some(cores.free_buffers().iter().sum::<usize>() as u64), "{health}");
    let shards = health["shards"].as_array().expect("both shards");
    assert!(shards.len() == 2 && shards.iter().all(|shard| shard["records"] == 1), "{health}");
    assert_eq!(health["head"], Value::Null, "{health}");
    assert_eq!(number("max_connections"), Some(2 * 1024), "{health}");
    assert_eq!(number("connections"), Some(3), "{health}");
    let entries = |lab: &Lab| (lab.shard.log_entries(), lab.shard.free_log_entries());
    let (all, free): (Vec<_>, Vec<_>) = cores.0.iter().map(entries).unzip();
    assert_eq!(number("log_entries"), Some(all.iter().sum()), "{health}");
    assert_eq!(number("free_log_entries"), Some(free.iter().sum()), "{health}");
    assert!(shards.iter().zip(free).all(|(shard, free)| shard["free_log_entries"] == free), "{health}");
    // Another core's commits are counted a second later.
    for lab in &mut cores.0 {
        lab.advance(std::time::Duration::from_secs(2));
    }
    assert_eq!(cores.get(0, "/health").json()["commits"]["count"], 2);
}

/// It is longer than what a connection takes at a time.
#[test]
fn health_of_many_shards_comes_whole_to_one_who_takes_little() {
    let mut cores = Cores::over(&medium(64 << 20), 1, 12);
    let lab = &mut cores.0[0];
    let conn = lab.connect();
    lab.client(conn).room_bytes = 0;
    lab.send(conn, &request("GET", "/health"));
    let mut turns = 0;
    while lab.make_room(conn, 1100, 1) {
        turns += 1;
    }
    assert!(turns > 1, "{turns} turns");
    let health = lab.replies(conn)[0].json();
    assert_eq!(health["shards"].as_array().map(Vec::len), Some(12), "{health}");
}

/// A reply to an append is counted by then, though the core that is asked has not heard of it yet.
#[test]
fn a_record_is_counted_before_it_is_acknowledged() {
    let mut cores = Cores::new(2);
    cores.settle();
    let conn = cores.0[1].connect();
    cores.0[1].send(conn, &post(b"counted?"));
    assert_eq!(cores.0[1].replies(conn).len(), 1);
    let asking = cores.0[0].connect();
    cores.0[0].send(asking, &request("GET", "/health"));
    assert_eq!(cores.0[0].replies(asking)[0].json()["records"], 1);
}

#[test]
fn names_that_are_none_here_are_refused_in_words() {
    let mut cores = Cores::new(2);
    cores.append(0, b"a record");
    for (target, status, said) in [
        ("/records/1", 400, "0-1"),
        ("/records/2-1", 404, "no shard 2"),
        ("/records/1-1", 404, "no record 1"),
        ("/records/0-9", 404, "from 1 to before 2"),
        ("/records?from=1", 400, "EPOCH-SHARD-NUMBER"),
        ("/records?shard=0&from=1-0-1", 400, "shard=SHARD&from=NUMBER"),
        ("/records?shard=2", 404, "no shard 2"),
        ("/records?from=1-2-1", 404, "no shard 2"),
    ] {
        let reply = cores.get(0, target);
        assert_eq!(reply.status, status, "{target}");
        assert!(reply.reason().contains(said), "{target}: {}", reply.reason());
    }
    let conn = cores.0[0].connect();
    let refused = cores.ask(0, conn, &request("DELETE", "/records?before=5"));
    assert_eq!(refused.status, 400);
    // A store of one shard names records by their number, and takes the longer name as well.
    let mut lab = Lab::roomy();
    let conn = lab.connect();
    let seq = lab.append(conn, b"alone");
    assert_eq!(lab.ask(conn, &request("GET", &format!("/records/0-{seq}"))).body, b"alone");
    assert_eq!(lab.ask(conn, &request("GET", "/records/1-1")).status, 404);
    assert_eq!(lab.ask(conn, &request("GET", "/records?from=1-0-1")).status, 400);
}

/// Numbers are a shard's own: an append that names one comes to that shard, or is refused in words.
#[test]
fn an_append_that_names_its_number_names_the_shard_too_and_goes_to_no_other() {
    let mut cores = Cores::new(2);
    let append = |next: &str| {
        let fields = format!("Host: log\r\nIf-Next: {next}\r\nContent-Length: 4");
        format!("POST /append HTTP/1.1\r\n{fields}\r\n\r\nbody").into_bytes()
    };
    let conn = cores.0[1].connect();
    for (next, status, said) in [
        ("1", 400, "0-1"),
        ("0-1", 421, "shard 1"),
        ("2-1", 404, "no shard 2"),
        ("1-2", 412, "shard 1 is number 1"),
    ] {
        let reply = cores.ask(1, conn, &append(next));
        assert!(reply.status == status && reply.reason().contains(said), "{next}: {reply:?}");
    }
    let refused = cores.ask(1, conn, &append("1-7"));
    assert_eq!((refused.field("log-next"), refused.json()["shard"].as_u64()), (Some("1-1"), Some(1)));
    let done = cores.ask(1, conn, &append("1-1")).json();
    assert_eq!((&done["shard"], &done["seq"], &done["next"]), (&1.into(), &1.into(), &2.into()));
    assert_eq!(cores.ask(1, conn, &append("1-1")).status, 412);
    let listed = cores.get(0, "/records");
    assert_eq!(listed.field("log-next"), Some("0-1, 1-2"));
}

/// The lines that a client of a feed has so far, behind their head.
fn lines(lab: &mut Lab, conn: ConnId) -> Vec<Value> {
    let sent = String::from_utf8_lossy(&lab.client(conn).sent).into_owned();
    let (_, chunks) = sent.split_once("\r\n\r\n").expect("a head");
    let lines = chunks.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn a_follower_of_another_cores_shard_is_given_each_record_in_order() {
    let mut cores = Cores::new(2);
    let mut expected = Vec::new();
    let plain = cores.0[0].connect();
    let whole = cores.0[0].connect();
    for (conn, query) in [(plain, "shard=1&follow=1"), (whole, "shard=1&follow=1&content=1")] {
        cores.0[0].send(conn, &request("GET", &format!("/records?{query}")));
    }
    let mut bodies = Vec::new();
    for (seed, len) in LENGTHS.iter().chain(&LENGTHS).enumerate() {
        // Bytes that are no lines.
        let bytes = vec![b'a' + (seed % 26) as u8; *len];
        expected.push(cores.append(1, &bytes));
        cores.append(0, b"none of theirs");
        bodies.push(bytes);
        cores.settle();
    }
    for conn in [plain, whole] {
        let lines = lines(&mut cores.0[0], conn);
        let names: Vec<String> =
            lines.iter().map(|line| format!("{}-{}", line["shard"], line["seq"])).collect();
        assert_eq!(names, expected);
    }
    let sent = &cores.0[0].client(whole).sent;
    for bytes in bodies {
        assert!(bytes.is_empty() || memchr::memmem::find(sent, &bytes).is_some(), "{} bytes", bytes.len());
    }
    let conn = cores.0[0].connect();
    let health = cores.ask(0, conn, &request("GET", "/health")).json();
    assert_eq!(health["followers"], 2, "{health}");
    let conn = cores.0[1].connect();
    let health = cores.ask(1, conn, &request("GET", "/health")).json();
    assert_eq!(health["followers"], 2, "{health}");
    let refused = cores.ask(1, conn, &request("GET", "/records?follow=1"));
    assert_eq!(refused.status, 400);
    assert!(refused.reason().contains("2 shards") && refused.reason().contains("shard=SHARD"));
    // Which shard takes what is appended over a connection.
    let listed = cores.ask(1, conn, &request("GET", "/records?limit=1"));
    assert_eq!(listed.field("log-shard"), Some("1"));
}

#[test]
fn a_follower_is_told_when_another_core_trims_what_he_wants() {
    for query in ["shard=1&follow=1", "shard=1&follow=1&content=1"] {
        let mut cores = Cores::new(2);
        for seed in 0..100 {
            cores.append(1, &body(seed, 500));
        }
        let slow = cores.0[0].connect();
        cores.0[0].client(slow).room_bytes = 1000;
        cores.0[0].send(slow, &request("GET", &format!("/records?{query}")));
        cores.settle();
        let conn = cores.0[1].connect();
        cores.ask(1, conn, &request("DELETE", "/records?before=1-90"));
        while cores.0[0].make_room(slow, 5000, 100) {
            cores.settle();
        }
        let sent = String::from_utf8_lossy(&cores.0[0].client(slow).sent).into_owned();
        assert!(sent.ends_with("\"shard\":1,\"head\":90,\"next\":101}\n\r\n0\r\n\r\n"), "{query}");
        assert!(sent.contains("were trimmed"), "{query}");
    }
}

/// A core that sleeps is woken by another one's commit if somebody follows by it, and by nothing else.
#[test]
fn a_core_that_sleeps_is_woken_for_its_followers() {
    use std::sync::atomic::{AtomicU32, Ordering};

    use pmlog::service::Waker;
    use stack::net::Service as _;

    let medium = medium(64 << 20);
    let options = Options { shards_if_new: Some(2), ..Options::default() };
    let region = Region::over(medium, &options).expect("a store");
    let (mut cores, exchange) = Cores::with_exchange(region, 2);
    let woken = Arc::new(AtomicU32::new(0));
    let count = woken.clone();
    exchange.wake_by(
        0,
        Waker::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }),
    );
    cores.settle();
    assert!(cores.0[0].service.may_rest());
    cores.append(1, b"of no concern to anybody");
    assert_eq!(woken.load(Ordering::Relaxed), 0);
    cores.0[0].service.awake();

    let follower = cores.0[0].connect();
    cores.0[0].send(follower, &request("GET", "/records?shard=1&follow=1&from=next"));
    cores.settle();
    assert!(cores.0[0].service.may_rest());
    let writer = cores.0[1].connect();
    cores.0[1].send(writer, &post(b"news"));
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    // Nor does one go to sleep beside news.
    cores.0[0].service.awake();
    assert!(!cores.0[0].service.may_rest());
    cores.settle();
    assert_eq!(lines(&mut cores.0[0], follower).len(), 1);
}
