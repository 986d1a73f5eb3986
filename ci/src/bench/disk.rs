//! `cargo xtask bench disk`: durable appends on a disk, pmlog beside what people use, over the loopback interface.
//!
//! HTTP servers are loaded by wrk, and redis-server by redis-benchmark: each has as many connections as the other, with one
//! request on its way on each.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use crate::steps::{Profile, Step, programs_in, said_by};

const PORT: u16 = 18_080;
/// More than any cell appends in its time.
const STORE: &str = "1GiB";
const START: Duration = Duration::from_secs(60);

/// A server, and how it makes what it is given durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Server {
    /// pmlog on a file in the page cache.
    PmlogMsync,
    /// pmlog with `--domain disk`.
    PmlogDisk,
    /// write and fdatasync for each request.
    StatusQuoFsync,
    RedisAlways,
    /// What it acknowledges in a second is lost with the power: no durable append, and here for scale.
    RedisEverysec,
}

impl Server {
    fn is_redis(self) -> bool {
        matches!(self, Self::RedisAlways | Self::RedisEverysec)
    }

    /// Whether it does what it is asked.
    fn answers(self) -> bool {
        let (request, answer) = match self.is_redis() {
            true => ("PING\r\n", "+PONG"),
            false => {
                ("POST /append HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx", "HTTP/1.1 200")
            }
        };
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", PORT))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(request.as_bytes())?;
            let mut said = vec![0; answer.len()];
            stream.read_exact(&mut said)?;
            std::io::Result::Ok(said)
        };
        ask().is_ok_and(|said| said == answer.as_bytes())
    }
}

const SERVERS: [Server; 5] = [
    Server::PmlogMsync,
    Server::PmlogDisk,
    Server::StatusQuoFsync,
    Server::RedisAlways,
    Server::RedisEverysec,
];

/// What was measured of a server with so many connections and records of so many bytes.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cell {
    server: Server,
    connections: u32,
    size: u32,
    requests_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    /// Bytes that the server had written to the disk, by those that it was given: by what the kernel charges it with.
    written_per_payload_byte: f64,
}

#[derive(Serialize)]
struct Results {
    commit: String,
    kernel: String,
    /// What pmlog said of the disk.
    domain: String,
    cells: Vec<Cell>,
}

/// Measures all cells, or few; and prints and writes what was found.
pub fn run(quick: bool) -> Result<()> {
    let (connections, sizes, seconds, profile): (&[u32], &[u32], u32, _) = match quick {
        true => (&[1, 50], &[1024], 1, Profile::Quick),
        false => (&[1, 16, 50, 200], &[100, 1024, 16_384], 3, Profile::Release),
    };
    let [pmlog, pmbench] = programs_in(profile, ["pmlog", "pmbench"])?;
    let folder = lab::target_directory().join("bench/disk");
    let scratch = folder.join("scratch");
    fs::create_dir_all(&folder)?;
    let bench = Bench { pmlog, pmbench, scratch, seconds };
    let step = Step::start("disk");
    let mut cells: Vec<Cell> = Vec::new();
    let mut domain = String::new();
    for &size in sizes {
        for &connections in connections {
            for server in SERVERS {
                step.progress(&format!("{server:?}, {connections} connections, {size} bytes"));
                let (cell, said) = bench
                    .measure(server, connections, size)
                    .with_context(|| format!("{server:?} with {connections} connections and {size} bytes"))?;
                cells.push(cell);
                domain = said.unwrap_or(domain);
            }
        }
    }
    fs::remove_dir_all(&bench.scratch)?;
    step.end(&format!("{} cells", cells.len()));
    print!("{}", table(&cells));
    println!("pmlog's disk: {domain}");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let commit = said_by(Command::new("git").args(["describe", "--always", "--dirty"]));
    let file = folder.join("results.json");
    fs::write(&file, serde_json::to_string_pretty(&Results { commit, kernel, domain, cells })? + "\n")?;
    println!("written to {}", file.display());
    Ok(())
}

struct Bench {
    pmlog: PathBuf,
    pmbench: PathBuf,
    scratch: PathBuf,
    seconds: u32,
}

/// A server that runs; killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Waits until it answers: it may listen long before.
    fn start(command: &mut Command, log: &Path, server: Server) -> Result<Self> {
        let output = fs::File::create(log)?;
        command.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
        let mut running = Self(command.spawn().with_context(|| format!("cannot start {command:?}"))?);
        let end = Instant::now() + START;
        while !server.answers() {
            let said = || fs::read_to_string(log).unwrap_or_default();
            ensure!(running.0.try_wait()?.is_none(), "it has ended\n{}", said());
            ensure!(Instant::now() < end, "it does not answer\n{}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(running)
    }

    /// Bytes that the kernel has charged it with.
    fn written_bytes(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/io", self.0.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        Ok(line.context("the kernel does not count what processes write")?.parse()?)
    }
}

/// What a client said.
struct Load {
    requests: f64,
    requests_per_s: f64,
    p50_us: f64,
    p99_us: f64,
}

impl Bench {
    fn measure(&self, server: Server, connections: u32, size: u32) -> Result<(Cell, Option<String>)> {
        // Each begins on files of its own.
        if self.scratch.exists() {
            fs::remove_dir_all(&self.scratch)?;
        }
        fs::create_dir_all(&self.scratch)?;
        let log = self.scratch.join("server.log");
        let running = Running::start(&mut self.command(server), &log, server)?;
        let load = |seconds| match server.is_redis() {
            true => redis_benchmark(connections, size, seconds),
            false => self.wrk(connections, size, seconds),
        };
        load(0.3)?;
        let before = running.written_bytes()?;
        let Load { requests, requests_per_s, p50_us, p99_us } = load(self.seconds.into())?;
        let written = running.written_bytes()? - before;
        let written_per_payload_byte = written as f64 / (requests * f64::from(size)).max(1.0);
        let cell =
            Cell { server, connections, size, requests_per_s, p50_us, p99_us, written_per_payload_byte };
        let said = fs::read_to_string(log)?;
        let domain = said.split("domain disk (").nth(1).and_then(|rest| rest.split(')').next());
        Ok((cell, domain.map(str::to_owned)))
    }

    fn command(&self, server: Server) -> Command {
        let store = self.scratch.join("store");
        let (port, listen) = (PORT.to_string(), format!("127.0.0.1:{PORT}"));
        let mut command = match server {
            Server::PmlogMsync | Server::PmlogDisk => {
                let mut command = Command::new(&self.pmlog);
                let domain = if server == Server::PmlogDisk { "disk" } else { "auto" };
                command.args(["serve", "--pm-size", STORE, "--domain", domain, "--transport", "kernel"]);
                command.args(["--listen", &listen, "--pm"]);
                command
            }
            Server::StatusQuoFsync => {
                let mut command = Command::new(&self.pmbench);
                command.args([
                    "serve",
                    "--mode",
                    "status-quo-fsync",
                    "--pm-size",
                    STORE,
                    "--listen",
                    &listen,
                ]);
                command.arg("--pm");
                command
            }
            Server::RedisAlways | Server::RedisEverysec => {
                let mut command = Command::new("redis-server");
                let fsync = if server == Server::RedisAlways { "always" } else { "everysec" };
                command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]);
                command.args(["--appendfsync", fsync, "--auto-aof-rewrite-percentage", "0", "--dir"]);
                command.arg(&self.scratch);
                return command;
            }
        };
        command.arg(store);
        command
    }

    fn wrk(&self, connections: u32, size: u32, seconds: f64) -> Result<Load> {
        let script = self.scratch.join("append.lua");
        fs::write(
            &script,
            format!(
                "wrk.method = \"POST\"\nwrk.body = string.rep(\"x\", {size})\n\
                 function done(summary, latency)\n\
                 io.write(string.format(\"found %d %f %f %f %d\\n\", summary.requests, summary.duration, \
                 latency:percentile(50), latency:percentile(99), summary.errors.status + summary.errors.connect + \
                 summary.errors.read + summary.errors.write + summary.errors.timeout))\nend\n"
            ),
        )?;
        let mut command = Command::new("wrk");
        // wrk takes whole seconds.
        command.args(["--threads", "1", "--connections", &connections.to_string()]);
        command.args(["--duration", &format!("{}s", seconds.ceil()), "--script"]).arg(&script);
        let said = output(command.arg(format!("http://127.0.0.1:{PORT}/append")))?;
        let found = said.lines().find_map(|line| line.strip_prefix("found "));
        let numbers = numbers(found.with_context(|| format!("wrk found nothing:\n{said}"))?, ' ')?;
        let [requests, duration_us, p50_us, p99_us, errors] = numbers[..] else {
            bail!("not as wrk writes: {said}")
        };
        ensure!(requests > 0.0, "no request was answered:\n{said}");
        ensure!(errors == 0.0, "{errors} requests went wrong:\n{said}");
        Ok(Load { requests, requests_per_s: requests * 1e6 / duration_us, p50_us, p99_us })
    }
}

fn redis_benchmark(connections: u32, size: u32, seconds: f64) -> Result<Load> {
    // It takes a number of requests: a first run says how many go into the time. One that is over at once says less.
    let first = redis_requests(connections, size, u64::from(connections) * 20)?;
    let requests_per_s = first.requests_per_s.min(MOST_PER_S);
    redis_requests(connections, size, (requests_per_s * seconds) as u64 + u64::from(connections))
}

/// More than any server here answers.
const MOST_PER_S: f64 = 200_000.0;

fn redis_requests(connections: u32, size: u32, requests: u64) -> Result<Load> {
    let mut command = Command::new("redis-benchmark");
    command.args(["-p", &PORT.to_string(), "-c", &connections.to_string(), "-n", &requests.to_string()]);
    command.args(["-d", &size.to_string(), "-t", "set", "-r", "100000", "--csv"]);
    let said = output(&mut command)?;
    let line = said.lines().find(|line| line.starts_with("\"SET\"")).with_context(|| said.clone())?;
    // "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
    let numbers = numbers(&line.replace('"', "")["SET,".len()..], ',')?;
    let [requests_per_s, _, _, p50_ms, _, p99_ms, ..] = numbers[..] else { bail!("not as expected: {line}") };
    Ok(Load { requests: requests as f64, requests_per_s, p50_us: p50_ms * 1e3, p99_us: p99_ms * 1e3 })
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command:?}\n{said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

fn numbers(text: &str, separator: char) -> Result<Vec<f64>> {
    text.trim().split(separator).map(|number| Ok(number.parse()?)).collect()
}

/// Each load, by its servers; and what pmlog on a disk does beside redis-server that syncs always.
fn table(cells: &[Cell]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<17} {:>6} {:>5} {:>10} {:>9} {:>9} {:>8} {:>9}",
        "server", "bytes", "conns", "requests/s", "p50 us", "p99 us", "written", "to always"
    );
    for cell in cells {
        let Cell { server, connections, size, requests_per_s, p50_us, p99_us, written_per_payload_byte } =
            *cell;
        let is_beside = |other: &&Cell| {
            (other.connections, other.size, other.server) == (connections, size, Server::RedisAlways)
        };
        let always =
            cells.iter().find(is_beside).map_or(f64::NAN, |always| requests_per_s / always.requests_per_s);
        let _ = writeln!(
            text,
            "{:<17} {size:>6} {connections:>5} {requests_per_s:>10.0} {p50_us:>9.0} {p99_us:>9.0} \
             {written_per_payload_byte:>7.2}x {always:>8.2}x",
            name(server)
        );
    }
    text
}

fn name(server: Server) -> &'static str {
    match server {
        Server::PmlogMsync => "pmlog msync",
        Server::PmlogDisk => "pmlog disk",
        Server::StatusQuoFsync => "status-quo-fsync",
        Server::RedisAlways => "redis always",
        Server::RedisEverysec => "redis everysec",
    }
}
