//! A store into which many times its size is written: what is overwritten makes room, and what is there is never lost.

mod common;

use std::collections::{BTreeMap, HashMap};

use common::{Pmkv, Reply, command};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// What a test's server should hold.
#[derive(Default)]
struct Model {
    strings: HashMap<String, Vec<u8>>,
    hashes: HashMap<String, BTreeMap<String, Vec<u8>>>,
    lists: HashMap<String, Vec<Vec<u8>>>,
    sets: HashMap<String, BTreeMap<String, ()>>,
    streams: HashMap<String, Vec<(u64, Vec<u8>)>>,
    expiring: HashMap<String, i64>,
}

fn info(client: &mut common::Client<std::net::TcpStream>, name: &str) -> u64 {
    let text = client.say("INFO").text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .expect("a line of that name");
    line.parse().expect("a number")
}

impl Model {
    /// Compares all of it.
    fn check(&self, client: &mut common::Client<std::net::TcpStream>) {
        for (key, value) in &self.strings {
            assert_eq!(client.ask(&["GET", key]), Reply::Bulk(value.clone()), "{key}");
        }
        for (key, at) in &self.expiring {
            assert_eq!(client.ask(&["EXPIRETIME", key]), Reply::Integer(*at), "{key}");
        }
        for (key, fields) in &self.hashes {
            let Reply::Array(all) = client.ask(&["HGETALL", key]) else { panic!("{key}") };
            let found: BTreeMap<String, Vec<u8>> = all
                .chunks(2)
                .map(|pair| match &pair[1] {
                    Reply::Bulk(value) => (pair[0].text(), value.clone()),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(found, *fields, "{key}");
        }
        for (key, values) in &self.lists {
            let expected = values.iter().cloned().map(Reply::Bulk).collect();
            assert_eq!(client.ask(&["LRANGE", key, "0", "-1"]), Reply::Array(expected), "{key}");
        }
        for (key, members) in &self.sets {
            let Reply::Array(mut all) = client.ask(&["SMEMBERS", key]) else { panic!("{key}") };
            all.sort();
            assert_eq!(all, members.keys().map(|member| Reply::bulk(member)).collect::<Vec<_>>(), "{key}");
        }
        for (key, entries) in &self.streams {
            let entry = |(ms, value): &(u64, Vec<u8>)| {
                let fields = Reply::Array(vec![Reply::bulk("f"), Reply::Bulk(value.clone())]);
                Reply::Array(vec![Reply::Bulk(format!("{ms}-0").into_bytes()), fields])
            };
            let expected = entries.iter().map(entry).collect();
            assert_eq!(client.ask(&["XRANGE", key, "-", "+"]), Reply::Array(expected), "{key}");
        }
        let keys =
            self.strings.len() + self.hashes.len() + self.lists.len() + self.sets.len() + self.streams.len();
        assert_eq!(client.say("DBSIZE"), Reply::Integer(keys as i64));
    }
}

/// `PMKV_SEED=n` repeats one run.
#[test]
fn many_times_a_store_is_written_into_it_and_nothing_is_lost_by_cleaning_or_by_kills() {
    let seed =
        std::env::var("PMKV_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("a number"));
    println!("PMKV_SEED={seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let scratch = common::scratch();
    let store = scratch.path().join("store.pm");
    let mut server = Pmkv::start(&store, &["--volatile", "--pm-size", "4MiB"]);
    let mut client = server.client();
    let mut model = Model::default();
    let (mut written, mut moved, mut ms) = (0, 0, 0);
    // What nobody touches is moved on and on.
    for number in 0..100 {
        let (key, value) = (format!("cold{number}"), vec![b'c'; 10 * number + 1]);
        assert_eq!(client.ask(&[b"SET", key.as_bytes(), &value]), Reply::ok());
        if number % 2 == 0 {
            assert_eq!(client.ask(&["EXPIREAT", &key, "4000000000"]), Reply::Integer(1));
            model.expiring.insert(key.clone(), 4_000_000_000);
        }
        model.strings.insert(key, value);
    }
    client.say("HSET cold f v");
    client.say("EXPIREAT cold 4000000000");
    model.hashes.entry("cold".into()).or_default().insert("f".into(), b"v".to_vec());
    model.expiring.insert("cold".into(), 4_000_000_000);
    for step in 0..12_000 {
        let len = match rng.random_range(0..10) {
            0..6 => rng.random_range(0..100),
            6..9 => rng.random_range(500..1500),
            _ => rng.random_range(3000..9000),
        };
        let value = vec![rng.random_range(b'a'..=b'z'); len];
        written += len;
        let number = rng.random_range(0..30);
        let field = format!("f{}", rng.random_range(0..12));
        match rng.random_range(0..20) {
            0..9 => {
                let key = format!("s{number}");
                assert_eq!(client.ask(&[b"SET", key.as_bytes(), &value]), Reply::ok());
                model.expiring.remove(&key);
                model.strings.insert(key, value);
            }
            9 => {
                let key = format!("s{number}");
                let is_there = model.strings.remove(&key).is_some();
                model.expiring.remove(&key);
                assert_eq!(client.ask(&["DEL", &key]), Reply::Integer(is_there.into()));
            }
            10 => {
                let (key, at) = (format!("s{number}"), 4_000_000_000 + step);
                let is_there = model.strings.contains_key(&key);
                assert_eq!(client.ask(&["EXPIREAT", &key, &at.to_string()]), Reply::Integer(is_there.into()));
                if is_there {
                    model.expiring.insert(key, at);
                }
            }
            11 | 12 => {
                let key = format!("h{}", number % 3);
                client.ask(&[b"HSET", key.as_bytes(), field.as_bytes(), &value]);
                model.hashes.entry(key).or_default().insert(field, value);
            }
            13 => {
                let key = format!("h{}", number % 3);
                client.ask(&["HDEL", &key, &field]);
                if let Some(fields) = model.hashes.get_mut(&key) {
                    fields.remove(&field);
                    if fields.is_empty() {
                        model.hashes.remove(&key);
                    }
                }
            }
            14 | 15 => {
                let key = format!("l{}", number % 3);
                client.ask(&[if number < 15 { b"LPUSH" } else { b"RPUSH" }, key.as_bytes(), &value]);
                let list = model.lists.entry(key).or_default();
                list.insert(if number < 15 { 0 } else { list.len() }, value);
            }
            16 => {
                let key = format!("l{}", number % 3);
                let count = if number > 24 { "100" } else { "3" };
                client.ask(&["LPOP", &key, count]);
                if let Some(list) = model.lists.get_mut(&key) {
                    list.drain(..list.len().min(count.parse().expect("a number")));
                    if list.is_empty() {
                        model.lists.remove(&key);
                    }
                }
            }
            17 => {
                let key = format!("m{}", number % 3);
                if number < 20 {
                    client.ask(&["SADD", &key, &field]);
                    model.sets.entry(key).or_default().insert(field, ());
                } else {
                    client.ask(&["SREM", &key, &field]);
                    if let Some(members) = model.sets.get_mut(&key) {
                        members.remove(&field);
                        if members.is_empty() {
                            model.sets.remove(&key);
                        }
                    }
                }
            }
            _ => {
                let key = format!("x{}", number % 3);
                ms += 1;
                let id = format!("{ms}-0");
                let words: [&[u8]; 8] =
                    [b"XADD", key.as_bytes(), b"MAXLEN", b"=", b"10", id.as_bytes(), b"f", &value];
                assert_eq!(client.ask(&words), Reply::bulk(&id));
                let entries = model.streams.entry(key).or_default();
                entries.push((ms, value));
                entries.drain(..entries.len().saturating_sub(10));
            }
        }
        if step % 2000 == 1999 {
            model.check(&mut client);
            moved += info(&mut client, "moved_payload_bytes");
            drop(client);
            server.kill();
            server = Pmkv::start(&store, &["--volatile"]);
            client = server.client();
            model.check(&mut client);
        }
    }
    assert!(written > 8 << 20, "{written}");
    assert!(moved > 100_000, "{moved}");
    // A list that is worked off may end anywhere.
    assert!(info(&mut client, "live_payload_bytes") < 2 << 20);
}

#[test]
fn what_comes_in_bursts_and_replaces_what_was_there_never_finds_the_store_full() {
    let scratch = common::scratch();
    let server = Pmkv::start(&scratch.path().join("store.pm"), &["--volatile", "--pm-size", "16MiB"]);
    let mut clients: Vec<_> = (0..20).map(|_| server.client()).collect();
    let value = vec![b'v'; 1024];
    let keys: Vec<String> = (0..50).map(|number| format!("k{number}")).collect();
    let burst: Vec<u8> = keys.iter().flat_map(|key| command(&[b"SET", key.as_bytes(), &value])).collect();
    for _ in 0..60 {
        clients.iter_mut().for_each(|client| client.send(&burst));
        for client in &mut clients {
            keys.iter().for_each(|key| assert_eq!(client.reply(), Reply::ok(), "{key}"));
        }
    }
    for key in &keys {
        assert_eq!(clients[0].ask(&["GET", key]), Reply::Bulk(value.clone()));
    }
}

#[test]
fn a_full_store_refuses_what_takes_room_and_serves_all_else_and_what_is_removed_makes_room() {
    // Long values fill the buffers, and short ones the log.
    for len in [2000, 100] {
        fill(len);
    }
}

fn fill(len: usize) {
    let scratch = common::scratch();
    let server = Pmkv::start(&scratch.path().join("store.pm"), &["--volatile", "--pm-size", "4MiB"]);
    let mut client = server.client();
    let value = vec![b'v'; len];
    let mut count = 0;
    loop {
        match client.ask(&[b"SET", format!("k{count}").as_bytes(), &value]) {
            Reply::Error(why) => {
                assert!(why.starts_with("OOM command not allowed: the store is full"), "{why}");
                break;
            }
            reply => assert_eq!(reply, Reply::ok()),
        }
        count += 1;
    }
    assert!(count > 500, "{count}");
    assert_eq!(client.say("STRLEN k0"), Reply::Integer(len as i64));
    // What is too long is read over, whatever the connection was sent.
    assert_eq!(
        client.ask(&[b"SET", &b"long"[..], &vec![b'x'; 1 << 20]]).text().split(' ').next(),
        Some("OOM")
    );
    assert_eq!(client.say("PING"), Reply::Simple("PONG".into()));
    for number in 0..count / 2 {
        let reply = client.ask(&["DEL", &format!("k{number}")]);
        assert_eq!(
            reply,
            Reply::Integer(1),
            "{number} of {count}: {}",
            client.say("INFO persistence").text()
        );
    }
    let begun = std::time::Instant::now();
    while client.ask(&[b"SET", &b"new"[..], &value]) != Reply::ok() {
        assert!(begun.elapsed().as_secs() < 60, "nothing has made room");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    for number in count / 2..count {
        assert_eq!(client.ask(&["GET", &format!("k{number}")]), Reply::Bulk(value.clone()));
    }
}

#[test]
fn keys_that_would_take_more_memory_than_they_may_are_refused_and_those_that_take_less_are_not() {
    let scratch = common::scratch();
    let options = ["--volatile", "--pm-size", "16MiB", "--max-memory", "64KiB"];
    let server = Pmkv::start(&scratch.path().join("store.pm"), &options);
    let mut client = server.client();
    let refusal = (0..2000).find_map(|number| match client.ask(&["SET", &format!("k{number}"), "a value"]) {
        Reply::Error(why) => Some(why),
        _ => None,
    });
    assert_eq!(refusal.as_deref(), Some("OOM command not allowed when used memory > 'maxmemory'."));
    assert_eq!(client.say("GET k1"), Reply::bulk("a value"));
    assert_eq!(client.say("FLUSHALL"), Reply::ok());
    assert_eq!(client.say("SET k1 again"), Reply::ok());
}
