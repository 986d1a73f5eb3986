//! `cargo xtask demo kv`: redis-cli and redis-benchmark against pmkv over DPDK, a kill -9 in mid-load, and every
//! acknowledged key back.

mod client;

use std::fs::File;
use std::net::{Shutdown, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use lab::{Lab, wire};

use client::Client;

use super::Outcome;
use crate::steps::Step;

const STORE: ByteSize = ByteSize::gib(1);
const PORT: u16 = 6379;
/// How long there is load before the server is killed.
const LOAD_BEFORE_KILL: Duration = Duration::from_millis(2500);
/// Bytes of the values that are compared: some that are copied, and some that stay where they arrived.
const LENS: [usize; 4] = [10, 100, 1024, 6000];
/// Commands under way at a time.
const PIPELINE: usize = 16;
/// How long the server may take to serve.
const PATIENCE: Duration = Duration::from_secs(30);

struct Demo {
    pmkv: PathBuf,
    store: PathBuf,
    log: PathBuf,
}

/// A server that is killed when it is of no use any more.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The demo itself, as root of its own namespaces.
pub(super) fn play(pmkv: &Path, scratch: &Path) -> Result<Outcome> {
    let lab = Lab::enter(scratch)?;
    let demo = Demo { pmkv: pmkv.to_owned(), store: lab.path("keys.pm"), log: lab.path("pmkv.log") };
    let step = Step::start("connect");
    wire::veth()?;
    step.end(&format!(
        "Linux veth0 {} <-> veth1 {}, a DPDK port ({})",
        wire::KERNEL_V4,
        wire::SERVER_V4,
        wire::VETH_DEVICE
    ));
    let server = demo.serve("serve")?;
    demo.session()?;
    let acknowledged = demo.load_and_kill(server)?;
    let _server = demo.serve("restart")?;
    let recovered = demo.compare(acknowledged)?;
    Ok(Outcome { acknowledged, recovered })
}

fn address() -> SocketAddr {
    SocketAddr::new(wire::SERVER_V4.into(), PORT)
}

/// The value of key number `number`.
fn value(number: usize) -> Vec<u8> {
    lab::noise(number as u64, LENS[number % LENS.len()])
}

fn key(number: usize) -> String {
    format!("key:{number}")
}

impl Demo {
    fn serve(&self, name: &str) -> Result<Server> {
        let step = Step::start(name);
        let output = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.pmkv);
        command
            .args(["serve", "--dev", wire::VETH_DEVICE, "--listen", &address().to_string(), "--pm"])
            .arg(&self.store);
        if !self.store.exists() {
            command.args(["--pm-size", &STORE.as_u64().to_string()]);
        }
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut server = Server(command.spawn().context("cannot start pmkv")?);
        let begun = Instant::now();
        let keys = loop {
            let answer = Client::connect(address()).and_then(|mut client| client.integer(&["DBSIZE"]));
            match answer {
                Ok(keys) => break keys,
                Err(error) => {
                    let ended = server.0.try_wait()?;
                    ensure!(
                        ended.is_none() && begun.elapsed() < PATIENCE,
                        "{error:#}\n{}",
                        std::fs::read_to_string(&self.log)?
                    );
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        };
        step.end(&format!("pmkv on a file of {STORE}, {keys} keys found"));
        Ok(server)
    }

    /// What people do first.
    fn session(&self) -> Result<()> {
        let step = Step::start("redis-cli");
        let said = [
            (&["SET", "greeting", "hello"][..], "OK"),
            (&["APPEND", "greeting", " world"], "11"),
            (&["GET", "greeting"], "hello world"),
            (&["HSET", "hash", "field", "value"], "1"),
            (&["RPUSH", "list", "a", "b", "c"], "3"),
            (&["XADD", "stream", "1-1", "field", "value"], "1-1"),
            (&["WAITAOF", "1", "0", "0"], "1\n0"),
        ];
        for (words, expected) in said {
            let mut command = Command::new("redis-cli");
            command.args(["-h", &wire::SERVER_V4.to_string(), "-p", &PORT.to_string()]).args(words);
            let output = lab::run_for(&mut command, PATIENCE)?;
            let found = String::from_utf8_lossy(&output.stdout);
            ensure!(found.trim_end() == expected, "{words:?}: {found} and not {expected}");
        }
        step.end("strings, hashes, lists, streams, each answered when it was durable");
        Ok(())
    }

    /// Sets keys beside redis-benchmark, and kills the server under both; how many were acknowledged.
    fn load_and_kill(&self, server: Server) -> Result<usize> {
        let step = Step::start("load");
        let mut benchmark = Command::new("redis-benchmark");
        benchmark.args(["-h", &wire::SERVER_V4.to_string(), "-p", &PORT.to_string()]);
        benchmark.args(["-t", "set", "-n", "100000000", "-r", "10000", "-c", "20", "-d", "1024", "-q"]);
        benchmark.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let benchmark = Server(benchmark.spawn().context("cannot start redis-benchmark")?);
        let mut client = Client::connect(address())?;
        let end = client.end()?;
        let writer = std::thread::spawn(move || -> Result<usize> {
            let mut acknowledged = 0;
            loop {
                let burst = acknowledged..acknowledged + PIPELINE;
                let sent = burst
                    .clone()
                    .try_for_each(|number| client.send(&[b"SET", key(number).as_bytes(), &value(number)]));
                if sent.and_then(|()| client.flush()).is_err() {
                    return Ok(acknowledged);
                }
                for _ in burst {
                    match client.reply() {
                        Ok(reply) if reply == b"+OK" => acknowledged += 1,
                        Ok(reply) => bail!("SET is answered with {}", reply.escape_ascii()),
                        Err(_) => return Ok(acknowledged),
                    }
                }
            }
        });
        std::thread::sleep(LOAD_BEFORE_KILL);
        ensure!(!writer.is_finished(), "the load ended before the kill");
        drop(server);
        // Nobody is there any more who would say so.
        end.shutdown(Shutdown::Both)?;
        step.end(
            "redis-benchmark: 20 connections, values of 1024 bytes; and a client whose values are compared",
        );
        let step = Step::start("kill -9");
        let acknowledged = writer.join().expect("it does not panic")?;
        drop(benchmark);
        ensure!(acknowledged > 0, "nothing was acknowledged under load");
        step.end(&format!("in mid-load, with {acknowledged} keys acknowledged"));
        Ok(acknowledged)
    }

    /// Compares all that was acknowledged; how many keys there are.
    fn compare(&self, acknowledged: usize) -> Result<u64> {
        let step = Step::start("compare");
        let mut client = Client::connect(address())?;
        let mut lost = Vec::new();
        for number in 0..acknowledged {
            client.send(&[b"GET", key(number).as_bytes()])?;
            client.flush()?;
            if client.reply()? != [b"$", &*value(number)].concat() {
                lost.push(key(number));
            }
            if number % 1000 == 0 {
                step.progress(&format!("{number} of {acknowledged}"));
            }
        }
        ensure!(
            lost.is_empty(),
            "LOST {} of {acknowledged} acknowledged keys, {} first",
            lost.len(),
            lost[0]
        );
        let found = client.integer(&["DBSIZE"])?;
        for (words, expected) in [
            (&["GET", "greeting"][..], &b"$hello world"[..]),
            (&["LLEN", "list"], b":3"),
            (&["XLEN", "stream"], b":1"),
        ] {
            client.send(words)?;
            client.flush()?;
            let reply = client.reply()?;
            ensure!(reply == expected, "{words:?}: {}", reply.escape_ascii());
        }
        step.end(&format!("{acknowledged} acknowledged keys, each byte for byte as it was sent"));
        Ok(found)
    }
}
