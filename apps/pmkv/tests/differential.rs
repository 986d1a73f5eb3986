//! Debian's redis-server and pmkv are asked the same, and answer the same; and so does pmkv when it was killed, and has
//! made its keys again from its log.

mod common;

use common::{Client, Pmkv, Redis, Reply, command};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Scripts, and commands in each.
const SCRIPTS: u32 = 96;
const COMMANDS: usize = 80;
/// Seconds between a command's arrival at one server and at the other.
const SLACK_S: u64 = 30;

type Words = Vec<Vec<u8>>;

fn words<W: AsRef<[u8]>>(words: &[W]) -> Words {
    words.iter().map(|word| word.as_ref().to_vec()).collect()
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        10 => (0..6u8).prop_map(|number| format!("k{number}").into_bytes()),
        1 => Just(b"\x00\r\n\xff".to_vec()),
        1 => Just(Vec::new()),
    ]
}

fn field() -> impl Strategy<Value = Vec<u8>> {
    (0..5u8).prop_map(|number| format!("f{number}").into_bytes())
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (-20i64..20).prop_map(|number| number.to_string().into_bytes()),
        2 => "[a-z]{0,12}".prop_map(String::into_bytes),
        1 => Just(i64::MAX.to_string().into_bytes()),
        1 => Just(b"3.25".to_vec()),
        1 => (500..1100usize, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
        1 => (1500..6000usize, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
    ]
}

fn number() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => (-6i64..8).prop_map(|number| number.to_string().into_bytes()),
        1 => Just(b"x".to_vec()),
        1 => Just(i64::MIN.to_string().into_bytes()),
        1 => Just(i64::MAX.to_string().into_bytes()),
    ]
}

fn stream_id() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => (0..12u8, 0..3u8).prop_map(|(ms, seq)| format!("{ms}-{seq}").into_bytes()),
        2 => (0..12u8).prop_map(|ms| format!("{ms}-*").into_bytes()),
        1 => (0..12u8).prop_map(|ms| ms.to_string().into_bytes()),
        1 => Just(b"x-1".to_vec()),
    ]
}

fn strings() -> BoxedStrategy<Words> {
    let options = prop::sample::subsequence(
        vec!["NX", "XX", "GET", "KEEPTTL", "EX 100", "PXAT 1", "EX 0", "PX x"],
        0..3,
    );
    prop_oneof![
        4 => (key(), value(), options).prop_map(|(key, value, options)| {
            let mut all = words(&[b"SET".to_vec(), key, value]);
            all.extend(options.iter().flat_map(|option| option.split(' ')).map(|word| word.as_bytes().to_vec()));
            all
        }),
        2 => (prop::sample::select(vec!["GET", "STRLEN", "GETDEL", "INCR", "DECR"]), key())
            .prop_map(|(name, key)| words(&[name.as_bytes().to_vec(), key])),
        2 => (prop::sample::select(vec!["APPEND", "GETSET", "SETNX"]), key(), value())
            .prop_map(|(name, key, value)| words(&[name.as_bytes().to_vec(), key, value])),
        2 => (prop::sample::select(vec!["INCRBY", "DECRBY"]), key(), number())
            .prop_map(|(name, key, by)| words(&[name.as_bytes().to_vec(), key, by])),
        // Sums of numbers that a long double does not hold are exact in pmkv, and rounded in Redis.
        1 => (prop::sample::select(vec!["k0", "k1"]), prop::sample::select(vec!["0.5", "-1.25", "3e0", "x", "0.1"])).prop_map(
            |(key, by)| words(&["INCRBYFLOAT", &format!("float-{key}"), by])
        ),
        1 => (key(), number(), number()).prop_map(|(key, from, to)| words(&[b"GETRANGE".to_vec(), key, from, to])),
        1 => (key(), prop_oneof![-2..700i32], value())
            .prop_map(|(key, from, value)| words(&[b"SETRANGE".to_vec(), key, from.to_string().into_bytes(), value])),
        1 => prop::collection::vec((key(), value()), 1..4).prop_flat_map(|pairs| {
            prop::sample::select(vec!["MSET", "MSETNX"]).prop_map(move |name| {
                let pairs = pairs.iter().flat_map(|(key, value)| [key.clone(), value.clone()]);
                [name.as_bytes().to_vec()].into_iter().chain(pairs).collect()
            })
        }),
        1 => prop::collection::vec(key(), 1..4).prop_map(|keys| [b"MGET".to_vec()].into_iter().chain(keys).collect()),
        1 => (key(), number(), value()).prop_map(|(key, time, value)| words(&[b"SETEX".to_vec(), key, time, value])),
        1 => (key(), prop::sample::select(vec!["", "PERSIST", "EX 100", "EXAT 1", "EX -1"])).prop_map(|(key, option)| {
            let mut all = words(&[b"GETEX".to_vec(), key]);
            all.extend(option.split(' ').filter(|word| !word.is_empty()).map(|word| word.as_bytes().to_vec()));
            all
        }),
    ]
    .boxed()
}

fn keys() -> BoxedStrategy<Words> {
    prop_oneof![
        2 => (prop::sample::select(vec!["DEL", "UNLINK", "EXISTS"]), prop::collection::vec(key(), 1..3))
            .prop_map(|(name, keys)| [name.as_bytes().to_vec()].into_iter().chain(keys).collect()),
        2 => (prop::sample::select(vec!["TYPE", "TTL", "EXPIRETIME", "PERSIST"]), key())
            .prop_map(|(name, key)| words(&[name.as_bytes().to_vec(), key])),
        1 => (prop::sample::select(vec!["RENAME", "RENAMENX", "COPY"]), key(), key())
            .prop_map(|(name, from, to)| words(&[name.as_bytes().to_vec(), from, to])),
        1 => (key(), key()).prop_map(|(from, to)| words(&[b"COPY".to_vec(), from, to, b"REPLACE".to_vec()])),
        2 => (key(), prop::sample::select(vec!["100", "1000", "-1", "0", "x", "9223372036854775807"]),
              prop::sample::select(vec!["", "NX", "XX", "NX XX", "GT LT", "WHAT"]))
            .prop_map(|(key, time, option)| {
                let mut all = words(&[b"EXPIRE".to_vec(), key, time.into()]);
                all.extend(option.split(' ').filter(|word| !word.is_empty()).map(|word| word.as_bytes().to_vec()));
                all
            }),
        1 => (key(), prop::sample::select(vec!["1", "99999999998", "99999999999", "9999999999999999"]),
              prop::sample::select(vec!["", "GT", "LT", "XX GT"]))
            .prop_map(|(key, time, option)| {
                let mut all = words(&[b"EXPIREAT".to_vec(), key, time.into()]);
                all.extend(option.split(' ').filter(|word| !word.is_empty()).map(|word| word.as_bytes().to_vec()));
                all
            }),
        1 => prop::sample::select(vec!["KEYS *", "KEYS k[0-3]", "KEYS k?", "PING", "ECHO x", "SELECT 0", "SELECT 1", "NOTHING a b", "GET", "SET x"])
            .prop_map(|text| text.split(' ').map(|word| word.as_bytes().to_vec()).collect()),
    ]
    .boxed()
}

fn collections() -> BoxedStrategy<Words> {
    prop_oneof![
        3 => (key(), prop::collection::vec((field(), value()), 1..3)).prop_map(|(key, pairs)| {
            let pairs = pairs.into_iter().flat_map(|(field, value)| [field, value]);
            [b"HSET".to_vec(), key].into_iter().chain(pairs).collect()
        }),
        1 => (prop::sample::select(vec!["HGET", "HEXISTS", "HDEL", "HMGET", "HSTRLEN"]), key(), field())
            .prop_map(|(name, key, field)| words(&[name.as_bytes().to_vec(), key, field])),
        1 => (prop::sample::select(vec!["HGETALL", "HKEYS", "HVALS", "HLEN", "LLEN", "SMEMBERS", "SCARD", "XLEN"]), key())
            .prop_map(|(name, key)| words(&[name.as_bytes().to_vec(), key])),
        1 => (prop::sample::select(vec!["HINCRBY", "HSETNX"]), key(), field(), number())
            .prop_map(|(name, key, field, by)| words(&[name.as_bytes().to_vec(), key, field, by])),
        3 => (prop::sample::select(vec!["LPUSH", "RPUSH", "LPUSHX", "RPUSHX"]), key(), prop::collection::vec(value(), 1..3))
            .prop_map(|(name, key, values)| [name.as_bytes().to_vec(), key].into_iter().chain(values).collect()),
        1 => (prop::sample::select(vec!["LPOP", "RPOP"]), key()).prop_map(|(name, key)| words(&[name.as_bytes().to_vec(), key])),
        1 => (prop::sample::select(vec!["LPOP", "RPOP", "LINDEX"]), key(), number())
            .prop_map(|(name, key, count)| words(&[name.as_bytes().to_vec(), key, count])),
        1 => (key(), number(), number()).prop_map(|(key, from, to)| words(&[b"LRANGE".to_vec(), key, from, to])),
        2 => (prop::sample::select(vec!["SADD", "SREM", "SMISMEMBER"]), key(), prop::collection::vec(field(), 1..4))
            .prop_map(|(name, key, members)| [name.as_bytes().to_vec(), key].into_iter().chain(members).collect()),
        1 => (key(), field()).prop_map(|(key, member)| words(&[b"SISMEMBER".to_vec(), key, member])),
    ]
    .boxed()
}

fn streams() -> BoxedStrategy<Words> {
    let end = || prop_oneof![stream_id(), Just(b"-".to_vec()), Just(b"+".to_vec()), Just(b"(5".to_vec())];
    prop_oneof![
        4 => (key(), prop::sample::select(vec!["", "MAXLEN 3", "MAXLEN = 0", "MINID 4", "NOMKSTREAM", "MAXLEN 2 LIMIT 1"]), stream_id(), field(), value())
            .prop_map(|(key, option, id, field, value)| {
                let mut all = words(&[b"XADD".to_vec(), key]);
                all.extend(option.split(' ').filter(|word| !word.is_empty()).map(|word| word.as_bytes().to_vec()));
                all.extend([id, field, value]);
                all
            }),
        2 => (prop::sample::select(vec!["XRANGE", "XREVRANGE"]), key(), end(), end())
            .prop_map(|(name, key, from, to)| words(&[name.as_bytes().to_vec(), key, from, to])),
        1 => (key(), end(), end(), number())
            .prop_map(|(key, from, to, count)| words(&[b"XRANGE".to_vec(), key, from, to, b"COUNT".to_vec(), count])),
        1 => (key(), stream_id()).prop_map(|(key, id)| words(&[b"XDEL".to_vec(), key, id])),
        1 => (key(), prop::sample::select(vec!["MAXLEN 2", "MINID 3", "MAXLEN x", "MAXLEN -1", "WHAT 2"])).prop_map(|(key, option)| {
            [b"XTRIM".to_vec(), key].into_iter().chain(option.split(' ').map(|word| word.as_bytes().to_vec())).collect()
        }),
        1 => (key(), key(), stream_id()).prop_map(|(one, other, id)| {
            words(&[b"XREAD".to_vec(), b"COUNT".to_vec(), b"2".to_vec(), b"STREAMS".to_vec(), one, other, id, b"$".to_vec()])
        }),
    ]
    .boxed()
}

fn transactions() -> BoxedStrategy<Words> {
    prop::sample::select(vec!["MULTI", "EXEC", "DISCARD", "WATCH k1", "UNWATCH", "EXEC"])
        .prop_map(|text| text.split(' ').map(|word| word.as_bytes().to_vec()).collect())
        .boxed()
}

fn script() -> impl Strategy<Value = Vec<Words>> {
    let one =
        prop_oneof![6 => strings(), 3 => keys(), 5 => collections(), 3 => streams(), 1 => transactions()];
    prop::collection::vec(one, 1..COMMANDS)
}

/// What has no order is put in one; what was written behind the protocol's back is the same in both.
fn normalized(words: &Words, reply: Reply) -> Reply {
    let name = words[0].to_ascii_uppercase();
    match (&*name, reply) {
        (b"KEYS" | b"SMEMBERS" | b"HKEYS" | b"HVALS", Reply::Array(mut all)) => {
            all.sort();
            Reply::Array(all)
        }
        (b"HGETALL", Reply::Array(all)) => {
            let mut pairs: Vec<_> = all.chunks(2).map(<[Reply]>::to_vec).collect();
            pairs.sort();
            Reply::Array(pairs.into_iter().flatten().collect())
        }
        // Inside of a transaction nobody knows whose reply it is.
        (b"EXEC", Reply::Array(all)) => Reply::Array(
            all.into_iter()
                .map(|reply| match reply {
                    Reply::Array(mut all) => {
                        all.sort();
                        Reply::Array(all)
                    }
                    other => other,
                })
                .collect(),
        ),
        (_, other) => other,
    }
}

/// Whether two replies to a command are the same; times may differ, as both were not asked at the same moment.
fn is_same(words: &Words, found: &Reply, expected: &Reply) -> bool {
    match (found, expected) {
        (Reply::Integer(found), Reply::Integer(expected))
            if matches!(&*words[0].to_ascii_uppercase(), b"TTL" | b"EXPIRETIME" | b"EXEC") =>
        {
            found == expected || *expected > 50 && found.abs_diff(*expected) <= SLACK_S
        }
        (Reply::Array(found), Reply::Array(expected)) if words[0].eq_ignore_ascii_case(b"EXEC") => {
            found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| is_same(words, f, e))
        }
        _ => found == expected,
    }
}

/// What is different, if anything is.
fn difference(script: &[Words], found: &[Reply], expected: &[Reply]) -> Option<String> {
    let number =
        (0..script.len()).find(|&number| !is_same(&script[number], &found[number], &expected[number]))?;
    let words = script[number].iter().map(|word| word[..word.len().min(60)].escape_ascii().to_string());
    let words: Vec<String> = words.collect();
    Some(format!("command {number}, {words:?}: {:?} and not {:?}", found[number], expected[number]))
}

fn run<S: std::io::Read>(client: &mut Client<S>, script: &[Words]) -> Vec<Reply>
where
    for<'a> &'a S: std::io::Write,
{
    let all: Vec<u8> = script.iter().flat_map(|words| command(words)).collect();
    client.send(&all);
    script.iter().map(|words| normalized(words, client.reply())).collect()
}

/// Commands that show all that the scripts' keys stand for.
fn dump() -> Vec<Words> {
    let names: Vec<Vec<u8>> = (0..6)
        .map(|number| format!("k{number}").into_bytes())
        .chain([b"\x00\r\n\xff".to_vec(), Vec::new()])
        .collect();
    let of_key = |key: &Vec<u8>| {
        let one = |name: &str| words(&[name.as_bytes().to_vec(), key.clone()]);
        let range =
            |name: &str, from: &str, to: &str| words(&[name.as_bytes(), key, from.as_bytes(), to.as_bytes()]);
        vec![
            one("TYPE"),
            one("EXPIRETIME"),
            one("GET"),
            one("HGETALL"),
            range("LRANGE", "0", "-1"),
            one("SMEMBERS"),
            range("XRANGE", "-", "+"),
            // The highest number that was given, as one that is too low is refused.
            words(&[b"XADD", &**key, b"NOMKSTREAM", b"0-1", b"f", b"v"]),
        ]
    };
    std::iter::once(words(&[b"KEYS", &b"*"[..]])).chain(names.iter().flat_map(of_key)).collect()
}

/// Both answer the same to generated scripts. Where they do not, the script is shrunk. `PMKV_SEED=n` repeats one run, and
/// `PMKV_SCRIPTS=n` makes it longer.
#[test]
fn redis_and_pmkv_answer_the_same_to_any_script_and_pmkv_again_after_a_kill() {
    let scratch = common::scratch();
    let store = scratch.path().join("store.pm");
    let redis = Redis::start(scratch.path());
    let server = std::cell::RefCell::new(Some(Pmkv::start(&store, &["--volatile", "--pm-size", "64MiB"])));
    let mut count = 0;
    let variable = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = variable("PMKV_SEED").unwrap_or_else(rand::random);
    println!("PMKV_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let cases = variable("PMKV_SCRIPTS").map_or(SCRIPTS, |scripts| scripts as u32);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let count = std::cell::RefCell::new(&mut count);
    let outcome = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)).run(
        &script(),
        |script| {
            let mut theirs = redis.client();
            let mut ours = server.borrow().as_ref().expect("it runs").client();
            theirs.say("FLUSHALL");
            ours.say("FLUSHALL");
            let (expected, found) = (run(&mut theirs, &script), run(&mut ours, &script));
            prop_assert_eq!(difference(&script, &found, &expected), None);
            // What is left of a transaction is not done.
            for words in ["DISCARD", "DISCARD"] {
                theirs.say(words);
                ours.say(words);
            }
            let dump = dump();
            let expected = run(&mut theirs, &dump);
            prop_assert_eq!(difference(&dump, &run(&mut ours, &dump), &expected), None);
            let mut count = count.borrow_mut();
            **count += 1;
            if **count % 8 == 0 {
                drop(ours);
                server.borrow_mut().take().expect("it runs").kill();
                *server.borrow_mut() = Some(Pmkv::start(&store, &["--volatile"]));
                let mut ours = server.borrow().as_ref().expect("it runs").client();
                let difference = difference(&dump, &run(&mut ours, &dump), &expected);
                prop_assert_eq!(difference, None, "after a kill");
            }
            Ok(())
        },
    );
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
