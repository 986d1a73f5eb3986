//! What clients may expect of a connection: pipelines, transactions, channels, waits, passwords, both versions of the
//! protocol; and what comes of input that is no use.

mod common;

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use common::{Client, Pmkv, Reply, command};

struct Lab {
    server: Pmkv,
    _scratch: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self::with(&[], &[])
    }

    fn with(options: &[&str], variables: &[(&str, &str)]) -> Self {
        let scratch = common::scratch();
        let options = [&["--volatile", "--pm-size", "32MiB"], options].concat();
        let server =
            Pmkv::try_start(&scratch.path().join("store.pm"), &options, variables).expect("pmkv serves");
        Self { server, _scratch: scratch }
    }

    fn client(&self) -> Client<TcpStream> {
        self.server.client()
    }
}

fn simple(text: &str) -> Reply {
    Reply::Simple(text.into())
}

#[test]
fn a_transaction_happens_as_a_whole_and_not_at_all_if_a_watched_key_has_changed() {
    let lab = Lab::new();
    let (mut one, mut other) = (lab.client(), lab.client());
    one.say("WATCH a");
    assert_eq!(one.say("MULTI"), Reply::ok());
    assert_eq!(one.say("SET a 1"), simple("QUEUED"));
    assert_eq!(one.say("LPUSH a x"), simple("QUEUED"));
    assert_eq!(one.say("GET a"), simple("QUEUED"));
    assert_eq!(other.say("GET a"), Reply::Null, "nobody sees any of it before its end");
    let Reply::Array(replies) = one.say("EXEC") else { panic!("a list") };
    assert_eq!((&replies[0], &replies[2]), (&Reply::ok(), &Reply::bulk("1")));
    assert!(matches!(&replies[1], Reply::Error(why) if why.starts_with("WRONGTYPE")));
    for change in ["SET a 2", "DEL a", "FLUSHALL"] {
        one.say("SET a 0");
        one.say("WATCH a");
        other.say(change);
        one.say("MULTI");
        one.say("SET b 1");
        assert_eq!(one.say("EXEC"), Reply::Null, "{change}");
        assert_eq!(one.say("EXISTS b"), Reply::Integer(0));
    }
    one.say("MULTI");
    assert!(matches!(one.say("NOTHING"), Reply::Error(_)));
    one.say("SET b 1");
    assert_eq!(one.say("EXEC").text(), "EXECABORT Transaction discarded because of previous errors.");
    assert_eq!(one.say("EXISTS b"), Reply::Integer(0));
}

#[test]
fn messages_reach_all_that_listen_and_nobody_else() {
    let lab = Lab::new();
    let (mut listener, mut all, mut speaker) = (lab.client(), lab.client(), lab.client());
    assert_eq!(
        listener.say("SUBSCRIBE news"),
        Reply::Array(vec![Reply::bulk("subscribe"), Reply::bulk("news"), Reply::Integer(1)])
    );
    all.say("HELLO 3");
    assert!(matches!(all.say("PSUBSCRIBE n*"), Reply::Push(_)));
    assert_eq!(speaker.say("PUBLISH news hello"), Reply::Integer(2));
    assert_eq!(speaker.say("PUBLISH other hello"), Reply::Integer(0));
    let message = ["message", "news", "hello"].map(Reply::bulk).to_vec();
    assert_eq!(listener.reply(), Reply::Array(message));
    let message = ["pmessage", "n*", "news", "hello"].map(Reply::bulk).to_vec();
    assert_eq!(all.reply(), Reply::Push(message));
    assert!(listener.say("GET a").text().starts_with("ERR Can't execute 'get': only (P|S)SUBSCRIBE"));
    assert_eq!(all.say("GET a"), Reply::Null, "in version 3 everything goes on");
    listener.say("UNSUBSCRIBE");
    assert_eq!(listener.say("GET a"), Reply::Null);
    assert_eq!(speaker.say("PUBSUB NUMPAT"), Reply::Integer(1));
    drop(all);
    let begun = Instant::now();
    while speaker.say("PUBSUB NUMPAT") != Reply::Integer(0) {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn who_waits_for_a_stream_is_woken_by_its_next_entry_and_no_longer_than_he_has_said() {
    let lab = Lab::new();
    let (mut waiting, mut writer) = (lab.client(), lab.client());
    waiting.send(&command(&["XREAD", "BLOCK", "0", "STREAMS", "s", "t", "$", "0-0"]));
    // What is sent behind it is done behind it.
    waiting.send(&command(&["PING"]));
    let begun = Instant::now();
    while !writer.say("INFO clients").text().contains("blocked_clients:1") {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    writer.say("XADD s 5-1 f v");
    let fields = Reply::Array(vec![Reply::bulk("f"), Reply::bulk("v")]);
    let entries = Reply::Array(vec![Reply::Array(vec![Reply::bulk("5-1"), fields])]);
    assert_eq!(waiting.reply(), Reply::Array(vec![Reply::Array(vec![Reply::bulk("s"), entries])]));
    assert_eq!(waiting.reply(), simple("PONG"));
    assert_eq!(waiting.say("XREAD BLOCK 50 STREAMS s 5-1"), Reply::Null);
    // Inside of a transaction nobody waits.
    waiting.say("MULTI");
    waiting.say("XREAD BLOCK 0 STREAMS s 5-1");
    assert_eq!(waiting.say("EXEC"), Reply::Array(vec![Reply::Null]));
    assert_eq!(
        waiting.say("XREAD BLOCK x STREAMS s 0").text(),
        "ERR timeout is not an integer or out of range"
    );
}

#[test]
fn a_long_value_stays_where_it_arrived() {
    let lab = Lab::new();
    let mut client = lab.client();
    let value = vec![b'v'; 1000];
    for number in 0..10 {
        assert_eq!(client.ask(&[b"SET", format!("k{number}").as_bytes(), &value]), Reply::ok());
    }
    assert_eq!(client.ask(&["GET", "k7"]), Reply::Bulk(value.clone()));
    let info = client.say("INFO").text();
    assert!(info.lines().any(|line| line == "copied_payload_bytes:0"), "{info}");
    // One that is told when to expire needs words of the server's own, and no more is copied than those.
    assert_eq!(client.ask(&[b"SET", &b"k1"[..], &value, b"EX", b"100"]), Reply::ok());
    let info = client.say("INFO").text();
    let copied = info.lines().find_map(|line| line.strip_prefix("copied_payload_bytes:")).expect("a line");
    assert!((1..50).contains(&copied.parse::<u32>().expect("a number")), "{copied}");
    assert_eq!(client.ask(&["GET", "k1"]), Reply::Bulk(value));
}

#[test]
fn keys_expire_by_themselves() {
    let lab = Lab::new();
    let mut client = lab.client();
    client.say("SET a 1 PX 30");
    client.say("HSET h f v");
    client.say("PEXPIRE h 30");
    let begun = Instant::now();
    while client.say("DBSIZE") != Reply::Integer(0) {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    assert_eq!(client.say("GET a"), Reply::Null);
    assert_eq!(client.say("HSET h g v"), Reply::Integer(1));
    assert_eq!(client.say("TTL h"), Reply::Integer(-1));
    assert!(client.say("INFO stats").text().contains("expired_keys:2"));
}

#[test]
fn who_has_no_password_gets_no_further_than_asking_for_one() {
    for way in ["file", "environment"] {
        let scratch = common::scratch();
        let path = scratch.path().join("password");
        std::fs::write(&path, "open sesame\n").expect("a file");
        let lab = match way {
            "file" => Lab::with(&["--password-file", path.to_str().expect("text")], &[]),
            _ => Lab::with(&[], &[("PMKV_PASSWORD", "open sesame")]),
        };
        let mut client = lab.client();
        assert_eq!(client.say("SET a 1").text(), "NOAUTH Authentication required.");
        assert!(client.say("HELLO 3").text().starts_with("NOAUTH HELLO must be called"));
        for guess in ["open", "open sesamf", "open sesame ", ""] {
            let wrong = "WRONGPASS invalid username-password pair or user is disabled.";
            assert_eq!(client.ask(&["AUTH", guess]).text(), wrong, "{guess}");
            assert_eq!(client.ask(&["AUTH", "root", "open sesame"]).text(), wrong);
        }
        // Somebody without a password cannot have the server keep much.
        let mut other = lab.client();
        other.send(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$100000\r\n");
        assert_eq!(other.reply().text(), "ERR Protocol error: unauthenticated bulk length");
        assert!(other.is_ended());
        assert_eq!(client.ask(&["AUTH", "default", "open sesame"]), Reply::ok());
        assert_eq!(client.say("SET a 1"), Reply::ok());
        assert_eq!(client.say("ACL WHOAMI"), Reply::bulk("default"));
        let mut third = lab.client();
        let Reply::Map(_) = third.ask(&["HELLO", "3", "AUTH", "default", "open sesame"]) else {
            panic!("a map")
        };
        assert_eq!(third.say("GET a"), Reply::bulk("1"));
    }
    let lab = Lab::new();
    assert!(lab.client().say("AUTH x").text().starts_with("ERR AUTH <password> called without any password"));
    let scratch = common::scratch();
    let path = scratch.path().join("empty");
    std::fs::write(&path, "\nnot the first line").expect("a file");
    let options = ["--pm-size", "32MiB", "--volatile", "--password-file", path.to_str().expect("text")];
    let error =
        Pmkv::try_start(&scratch.path().join("store.pm"), &options, &[]).err().expect("it does not start");
    assert!(error.contains("is empty; put the password there"), "{error}");
}

#[test]
fn version_3_has_maps_sets_and_nulls_of_its_own() {
    let lab = Lab::new();
    let mut client = lab.client();
    client.say("HSET h f v");
    client.say("SADD s m");
    let Reply::Map(hello) = client.say("HELLO 3 SETNAME me") else { panic!("a map") };
    assert!(hello.windows(2).any(|pair| *pair == [Reply::bulk("proto"), Reply::Integer(3)]), "{hello:?}");
    assert_eq!(client.say("HGETALL h"), Reply::Map(vec![Reply::bulk("f"), Reply::bulk("v")]));
    assert_eq!(client.say("SMEMBERS s"), Reply::Set(vec![Reply::bulk("m")]));
    assert_eq!(client.say("CLIENT GETNAME"), Reply::bulk("me"));
    client.send(&command(&["GET", "nothing"]));
    assert_eq!(client.reply(), Reply::Null);
    assert_eq!(client.say("HELLO 4").text(), "NOPROTO unsupported protocol version");
    assert_eq!(client.say("RESET"), simple("RESET"));
    assert_eq!(client.say("SMEMBERS s"), Reply::Array(vec![Reply::bulk("m")]));
    assert_eq!(client.say("CLIENT GETNAME"), Reply::Null);
}

#[test]
fn what_is_no_use_is_refused_and_disturbs_nobody() {
    let lab = Lab::new();
    let mut witness = lab.client();
    witness.say("SET a 1");
    let mut client = lab.client();
    let unknown = "ERR unknown command 'NOTHING', with args beginning with: 'of' 'use' ";
    assert_eq!(client.say("NOTHING of use").text(), unknown);
    assert_eq!(client.say("GET").text(), "ERR wrong number of arguments for 'get' command");
    assert_eq!(client.say("SELECT 7").text(), "ERR DB index is out of range");
    let long = vec![b'x'; 100_000];
    assert!(client.ask(&[&long]).text().starts_with("ERR unknown command 'xxx"));
    let binary: Vec<u8> = (0..=255).collect();
    assert_eq!(client.ask(&[b"SET", &*binary, &binary]), Reply::ok());
    assert_eq!(client.ask(&[b"GET", &*binary]), Reply::Bulk(binary));
    for (bytes, why) in [
        (&b"*1048577\r\n"[..], "ERR Protocol error: invalid multibulk length"),
        (b"*1\r\n$536870913\r\n", "ERR Protocol error: invalid bulk length"),
        (b"*1\r\n*1\r\n$4\r\nPING\r\n", "ERR Protocol error: expected '$', got '*'"),
        (b"SET a \"\r\n", "ERR Protocol error: unbalanced quotes in request"),
        // What a TLS client says first, up to the first end of a line.
        (b"*\x16\x03\x01\x02\x00\x01\n", "ERR Protocol error: invalid multibulk length"),
    ] {
        let mut client = lab.client();
        client.send(bytes);
        assert_eq!(client.reply().text(), why);
        assert!(client.is_ended());
    }
    let mut tls = lab.client();
    tls.send(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, b'\n']);
    assert!(tls.reply().text().starts_with("ERR unknown command"));
    // Half commands, which are never whole, and clients that leave in the middle.
    for text in [&b"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$5000\r\nhalf"[..], b"*1000000\r\n$1\r\n", b"SET b ", b"*"]
    {
        let mut client = lab.client();
        client.send(text);
        client.stream().shutdown(Shutdown::Write).expect("it is open");
        assert!(client.is_ended(), "{}", text.escape_ascii());
    }
    assert_eq!(witness.say("GET a"), Reply::bulk("1"));
    assert_eq!(witness.say("EXISTS b"), Reply::Integer(0));
}

#[test]
fn a_client_that_never_reads_holds_itself_up_and_nobody_else() {
    let lab = Lab::new();
    let (mut witness, deaf) = (lab.client(), lab.client());
    let value = vec![b'v'; 8000];
    witness.ask(&[b"SET", &b"a"[..], &value]);
    let stream = deaf.stream();
    stream.set_nonblocking(true).expect("an option");
    let requests = command(&["GET", "a"]).repeat(1000);
    let (mut sent, begun) = (0, Instant::now());
    // Until the server takes no more of them.
    let mut refused = 0;
    while refused < 20 && begun.elapsed() < Duration::from_secs(30) {
        let mut writer = stream;
        match writer.write(&requests[sent % requests.len()..]) {
            Ok(bytes) => (sent, refused) = (sent + bytes, 0),
            Err(_) => {
                refused += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    assert_eq!(refused, 20, "{sent} bytes were taken");
    for _ in 0..100 {
        assert_eq!(witness.ask(&[b"SET", &b"b"[..], &value]), Reply::ok());
        assert_eq!(witness.say("GET a"), Reply::Bulk(value.clone()));
    }
}

#[test]
fn one_client_too_many_is_told_so() {
    let lab = Lab::with(&["--max-connections", "2"], &[]);
    let (mut one, mut two) = (lab.client(), lab.client());
    assert_eq!((one.say("PING"), two.say("PING")), (simple("PONG"), simple("PONG")));
    let mut three = lab.client();
    assert_eq!(three.reply().text(), "ERR max number of clients reached");
    assert!(three.is_ended());
    // It is not counted among the others, though it does not go.
    drop(two);
    let begun = Instant::now();
    loop {
        let mut again = lab.client();
        again.send(&command(&["PING"]));
        match again.try_reply() {
            Some(Reply::Simple(_)) => break,
            _ => assert!(begun.elapsed() < Duration::from_secs(30)),
        }
    }
    assert_eq!(one.say("PING"), simple("PONG"));
}

#[test]
fn cursors_give_each_key_that_stays_once() {
    let lab = Lab::new();
    let mut client = lab.client();
    for number in 0..500 {
        client.ask(&["SET", &format!("k{number}"), "v"]);
        client.ask(&["HSET", "h", &format!("f{number}"), "v"]);
    }
    for words in [&["SCAN"][..], &["HSCAN", "h"]] {
        let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
        loop {
            let words: Vec<&str> =
                words.iter().copied().chain([&*cursor, "COUNT", "37", "MATCH", "*7*"]).collect();
            let Reply::Array(reply) = client.ask(&words) else { panic!("a list") };
            let Reply::Array(part) = &reply[1] else { panic!("a list") };
            found.extend(part.iter().map(Reply::text).filter(|name| name != "v"));
            client.say(&format!("SET other{cursor} v"));
            client.say(&format!("DEL other{cursor}"));
            cursor = reply[0].text();
            if cursor == "0" {
                break;
            }
        }
        found.retain(|name| !name.starts_with("other"));
        found.sort();
        let names = (0..500).map(|number| format!("{}{number}", if words[0] == "SCAN" { "k" } else { "f" }));
        let mut expected: Vec<String> = names.filter(|name| name.contains('7')).collect();
        expected.sort();
        assert_eq!(found, expected, "{words:?}");
    }
    assert_eq!(client.say("SCAN x").text(), "ERR invalid cursor");
    assert_eq!(client.say("SCAN 0 TYPE hash COUNT 10000"), {
        Reply::Array(vec![Reply::bulk("0"), Reply::Array(vec![Reply::bulk("h")])])
    });
}

#[test]
fn what_a_server_says_of_itself_is_so() {
    let lab = Lab::new();
    let mut client = lab.client();
    client.say("SET a 1");
    let info = client.say("INFO").text();
    for line in [
        "role:master",
        "durability:always",
        "db0:keys=1,expires=0,avg_ttl=0",
        "appended_records:1",
        "fences:1",
    ] {
        assert!(info.lines().any(|found| found == line), "{line}: {info}");
    }
    assert_eq!(
        client.say("CONFIG GET appendfsync"),
        Reply::Array(vec![Reply::bulk("appendfsync"), Reply::bulk("always")])
    );
    assert!(client.say("CONFIG SET save 1").text().starts_with("ERR CONFIG SET is not supported"));
    assert_eq!(client.say("WAIT 0 100"), Reply::Integer(0));
    assert_eq!(client.say("WAITAOF 1 0 0"), Reply::Array(vec![Reply::Integer(1), Reply::Integer(0)]));
    let Reply::Integer(count) = client.say("COMMAND COUNT") else { panic!("a number") };
    let Reply::Array(all) = client.say("COMMAND") else { panic!("a list") };
    assert_eq!(all.len() as i64, count);
    assert!(client.say("CLIENT LIST").text().contains(" cmd=client user=default"));
    let Reply::Array(time) = client.say("TIME") else { panic!("a list") };
    assert!(time[0].text().parse::<u64>().expect("a number") > 1_700_000_000);
    lab.server.stop();
}
