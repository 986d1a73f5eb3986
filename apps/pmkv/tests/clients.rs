//! Redis' own programs, as they are, and a server that is killed while they are at work.

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Pmkv, Reply, command};

fn run(program: &str, server: &Pmkv, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(["-p", &server.port.to_string()])
        .args(args)
        .output()
        .expect("redis-tools are installed (cargo xtask setup)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn redis_cli_and_redis_benchmark_work_as_they_are() {
    let scratch = common::scratch();
    let server = Pmkv::start(&scratch.path().join("store.pm"), &["--volatile", "--pm-size", "64MiB"]);
    assert_eq!(run("redis-cli", &server, &["SET", "greeting", "hello"]), "OK\n");
    assert_eq!(run("redis-cli", &server, &["-3", "HSET", "h", "a", "1"]), "1\n");
    assert_eq!(run("redis-cli", &server, &["-3", "--json", "HGETALL", "h"]), "{\"a\":\"1\"}\n");
    assert_eq!(run("redis-cli", &server, &["--scan", "--pattern", "g*"]), "greeting\n");
    for (pipeline, bytes) in [("1", "16"), ("16", "1024")] {
        let tests = "ping,set,get,incr,lpush,rpop,sadd,hset,mset";
        let args = ["-t", tests, "-n", "500", "-c", "20", "-P", pipeline, "-d", bytes, "-r", "500", "--csv"];
        let report = run("redis-benchmark", &server, &args);
        assert!(report.lines().count() > 9 && !report.contains("rror"), "{report}");
    }
    server.stop();
}

#[test]
fn every_change_that_was_acknowledged_is_there_after_a_kill_under_load() {
    let scratch = common::scratch();
    let store = scratch.path().join("store.pm");
    let server = Pmkv::start(&store, &["--volatile", "--pm-size", "64MiB"]);
    let stop = AtomicBool::new(false);
    let acknowledged = std::thread::scope(|scope| {
        let writer = |number: usize| {
            let (mut client, stop) = (server.client(), &stop);
            scope.spawn(move || {
                let (mut done, len) = (0, [10, 700, 3000][number % 3]);
                // Eight at a time.
                'all: while !stop.load(Ordering::Relaxed) {
                    let one = |at: usize| {
                        let value = format!("{at}:").repeat(len / 4);
                        [
                            command(&["SET", &format!("w{number}-{}", at % 500), &value]),
                            command(&["RPUSH", &format!("l{number}"), &at.to_string()]),
                        ]
                    };
                    let burst: Vec<u8> = (done..done + 8).flat_map(one).flatten().collect();
                    client.send(&burst);
                    for _ in 0..8 {
                        let Some(Reply::Simple(_)) = client.try_reply() else { break 'all };
                        let Some(Reply::Integer(_)) = client.try_reply() else { break 'all };
                        done += 1;
                    }
                }
                (number, len, done)
            })
        };
        let writers: Vec<_> = (0..6).map(writer).collect();
        std::thread::sleep(Duration::from_millis(700));
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().expect("no panic")).collect::<Vec<_>>()
    });
    server.kill();
    let server = Pmkv::start(&store, &["--volatile"]);
    let mut client = server.client();
    for (number, len, done) in acknowledged {
        assert!(done > 8, "{done}");
        let Reply::Integer(found) = client.say(&format!("LLEN l{number}")) else { panic!("a length") };
        assert!(found >= done as i64, "{found} of {done}");
        for at in done.saturating_sub(500)..done {
            let Reply::Bulk(value) = client.say(&format!("GET w{number}-{}", at % 500)) else {
                panic!("{at} is lost")
            };
            let newer = (at..at + 8 + 500)
                .step_by(500)
                .any(|at| value == format!("{at}:").repeat(len / 4).as_bytes());
            assert!(newer, "{at}");
        }
    }
}
