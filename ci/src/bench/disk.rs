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
use lab::Connection;
use serde::{Deserialize, Serialize};

use crate::steps::{Profile, Step, programs_in, said_by};

/// That of the first server; each has its own.
const FIRST_PORT: u16 = 18_080;
/// More than any server appends in a round with as many connections.
const STORE: &str = "1GiB";
const START: Duration = Duration::from_secs(60);
/// Between two servers: the disk is done with what the one before has left to it.
const PAUSE: Duration = Duration::from_millis(100);

/// A server, and how it makes what it is given durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Server {
    /// pmlog on a file in the page cache.
    PmlogMsync,
    /// pmlog with `--domain disk`.
    PmlogDisk,
    /// A write for each request, and an fdatasync for all that came together.
    StatusQuoFsync,
    RedisAlways,
    /// What it acknowledges in a second is lost with the power: no durable append, and here for scale.
    RedisEverysec,
}

impl Server {
    fn is_redis(self) -> bool {
        matches!(self, Self::RedisAlways | Self::RedisEverysec)
    }

    fn port(self) -> u16 {
        FIRST_PORT + self as u16
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
            let mut stream = TcpStream::connect(("127.0.0.1", self.port()))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(request.as_bytes())?;
            let mut said = vec![0; answer.len()];
            stream.read_exact(&mut said)?;
            std::io::Result::Ok(said)
        };
        ask().is_ok_and(|said| said == answer.as_bytes())
    }

    /// What pmlog says of itself.
    fn health(self) -> Result<Health> {
        let body = Connection::open(([127, 0, 0, 1], self.port()).into())?.get("/health")?.body;
        Ok(serde_json::from_slice(&body)?)
    }

    /// Has pmlog forget what it holds, so that it does not fill up; the others go round, or begin anew.
    fn trim(self) -> Result<()> {
        let mut connection = Connection::open(([127, 0, 0, 1], self.port()).into())?;
        let before = self.health()?.next;
        let request = format!("DELETE /records?before={before} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        connection.send(request.as_bytes())?;
        let status = connection.reply()?.status;
        ensure!(status == 200, "pmlog answers a trim with {status}");
        Ok(())
    }
}

/// What pmlog says of itself at `/health`.
#[derive(Deserialize)]
struct Health {
    next: u64,
    appended_records: u64,
    write_requests: u64,
    commits: Commits,
}

#[derive(Deserialize)]
struct Commits {
    count: u64,
}

const SERVERS: [Server; 5] = [
    Server::PmlogMsync,
    Server::PmlogDisk,
    Server::StatusQuoFsync,
    Server::RedisAlways,
    Server::RedisEverysec,
];

/// What was measured of a server with so many connections and records of so many bytes, in one round.
#[derive(Clone, Copy, Debug, Serialize)]
struct Measured {
    requests_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    /// Bytes that the server had written to the disk, by those that it was given: by what the kernel charges it with.
    written_per_payload_byte: f64,
    /// The server's CPU time, all its threads'.
    cpu_us_per_request: f64,
    /// Of pmlog.
    requests_per_commit: Option<f64>,
    /// Writes and syncs that pmlog asked the kernel for.
    writes_per_commit: Option<f64>,
}

/// The same in the rounds.
#[derive(Debug, Serialize)]
struct Cell {
    server: Server,
    connections: u32,
    size: u32,
    rounds: Vec<Measured>,
}

impl Cell {
    /// The lowest, the median and the highest of the rounds.
    fn spread(&self, figure: impl Fn(&Measured) -> f64) -> [f64; 3] {
        spread(self.rounds.iter().map(figure))
    }
}

fn spread(numbers: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut all: Vec<_> = numbers.collect();
    all.sort_by(f64::total_cmp);
    [all[0], all[all.len() / 2], all[all.len() - 1]]
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
        false => (&[1, 16, 50, 200], &[100, 1024, 16_384], 2, Profile::Release),
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
        let begin = cells.len();
        cells.extend(connections.iter().flat_map(|&connections| {
            SERVERS.map(|server| Cell { server, connections, size, rounds: Vec::new() })
        }));
        bench.begin()?;
        let running = Kept::start(&bench)?;
        for round in 1..=ROUNDS {
            for cell in &mut cells[begin..] {
                let &mut Cell { server, connections, .. } = cell;
                step.progress(&format!("{server:?}, {connections} connections, {size} bytes, round {round}"));
                let measured = running
                    .measure(server, connections, size)
                    .with_context(|| format!("{server:?} with {connections} connections and {size} bytes"))?;
                cell.rounds.push(measured);
            }
        }
        let said = fs::read_to_string(bench.log(Server::PmlogDisk))?;
        if let Some(disk) = said.split("domain disk (").nth(1).and_then(|rest| rest.split(')').next()) {
            domain = disk.to_owned();
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

/// What the kernel counts CPU time in, for programs (USER_HZ).
const TICKS_PER_S: f64 = 100.0;
/// How often each cell is measured: in turns, so that what else happens meets all of them.
const ROUNDS: usize = 3;

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

    /// CPU time of all its threads.
    fn cpu_us(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        // Behind the name, which may hold anything; utime and stime are fields 14 and 15 (proc(5)).
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        let ticks = fields.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(ticks as f64 * 1e6 / TICKS_PER_S)
    }

    /// Bytes that the kernel has charged it with.
    fn written_bytes(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/io", self.0.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        Ok(line.context("the kernel does not count what processes write")?.parse()?)
    }
}

/// What a client is to do.
#[derive(Clone, Copy)]
struct Asked {
    connections: u32,
    size: u32,
    seconds: f64,
}

/// What a server does before it is measured.
const WARM_UP: Asked = Asked { connections: 16, size: 1024, seconds: 0.3 };

/// What a client said.
struct Load {
    requests: f64,
    requests_per_s: f64,
    p50_us: f64,
    p99_us: f64,
}

/// The servers that keep running; they sleep while another one is measured.
struct Kept<'a> {
    bench: &'a Bench,
    running: Vec<(Server, Running)>,
}

impl<'a> Kept<'a> {
    fn start(bench: &'a Bench) -> Result<Self> {
        let kept = SERVERS.into_iter().filter(|server| !server.is_redis());
        let running = kept.map(|server| Ok((server, bench.start(server)?))).collect::<Result<_>>()?;
        Ok(Self { bench, running })
    }

    fn measure(&self, server: Server, connections: u32, size: u32) -> Result<Measured> {
        let Some((_, running)) = self.running.iter().find(|(kept, _)| *kept == server) else {
            // Else its file would grow by gigabytes.
            let running = self.bench.start(server)?;
            return self.bench.measure(server, &running, connections, size);
        };
        if matches!(server, Server::PmlogMsync | Server::PmlogDisk) {
            server.trim()?;
        }
        self.bench.measure(server, running, connections, size)
    }
}

impl Bench {
    /// Removes what was there before.
    fn begin(&self) -> Result<()> {
        if self.scratch.exists() {
            fs::remove_dir_all(&self.scratch)?;
        }
        Ok(fs::create_dir_all(&self.scratch)?)
    }

    fn log(&self, server: Server) -> PathBuf {
        self.scratch.join(format!("{server:?}.log"))
    }

    fn start(&self, server: Server) -> Result<Running> {
        let folder = self.folder(server);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let running = Running::start(&mut self.command(server), &self.log(server), server)?;
        self.load(server, WARM_UP)?;
        Ok(running)
    }

    fn folder(&self, server: Server) -> PathBuf {
        self.scratch.join(format!("{server:?}"))
    }

    fn load(&self, server: Server, Asked { connections, size, seconds }: Asked) -> Result<Load> {
        match server.is_redis() {
            true => redis_benchmark(server.port(), connections, size, seconds),
            false => self.wrk(server.port(), connections, size, seconds),
        }
    }

    fn measure(&self, server: Server, running: &Running, connections: u32, size: u32) -> Result<Measured> {
        std::thread::sleep(PAUSE);
        let is_pmlog = matches!(server, Server::PmlogMsync | Server::PmlogDisk);
        let health = || is_pmlog.then(|| server.health()).transpose();
        let (written, cpu_us, state) = (running.written_bytes()?, running.cpu_us()?, health()?);
        let asked = Asked { connections, size, seconds: self.seconds.into() };
        let Load { requests, requests_per_s, p50_us, p99_us } = self.load(server, asked)?;
        let (written, cpu_us) = (running.written_bytes()? - written, running.cpu_us()? - cpu_us);
        let by_commit = state.zip(health()?).map(|(before, after)| {
            let commits = (after.commits.count - before.commits.count).max(1) as f64;
            let by_commit = |before: u64, after: u64| (after - before) as f64 / commits;
            (
                by_commit(before.appended_records, after.appended_records),
                by_commit(before.write_requests, after.write_requests),
            )
        });
        Ok(Measured {
            requests_per_s,
            p50_us,
            p99_us,
            written_per_payload_byte: written as f64 / (requests * f64::from(size)).max(1.0),
            cpu_us_per_request: cpu_us / requests.max(1.0),
            requests_per_commit: by_commit.map(|(requests, _)| requests),
            writes_per_commit: by_commit.map(|(_, writes)| writes),
        })
    }

    fn command(&self, server: Server) -> Command {
        let store = self.folder(server).join("store");
        let (port, listen) = (server.port().to_string(), format!("127.0.0.1:{}", server.port()));
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
                command.arg(self.folder(server));
                return command;
            }
        };
        command.arg(store);
        command
    }

    fn wrk(&self, port: u16, connections: u32, size: u32, seconds: f64) -> Result<Load> {
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
        let said = output(command.arg(format!("http://127.0.0.1:{port}/append")))?;
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

fn redis_benchmark(port: u16, connections: u32, size: u32, seconds: f64) -> Result<Load> {
    // It takes a number of requests: a first run says how many go into the time. One that is over at once says less.
    let first = redis_requests(port, connections, size, u64::from(connections) * 20)?;
    let requests_per_s = first.requests_per_s.min(MOST_PER_S);
    redis_requests(port, connections, size, (requests_per_s * seconds) as u64 + u64::from(connections))
}

/// More than any server here answers.
const MOST_PER_S: f64 = 200_000.0;

fn redis_requests(port: u16, connections: u32, size: u32, requests: u64) -> Result<Load> {
    let mut command = Command::new("redis-benchmark");
    command.args(["-p", &port.to_string(), "-c", &connections.to_string(), "-n", &requests.to_string()]);
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

/// Each load, by its servers: medians of the rounds, and of the ratios in the rounds to redis-server that syncs always.
fn table(cells: &[Cell]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<17} {:>6} {:>5} {:>10} {:>17} {:>9} {:>9} {:>8} {:>7} {:>9} {:>9} {:>9}",
        "server",
        "bytes",
        "conns",
        "requests/s",
        "in the rounds",
        "p50 us",
        "p99 us",
        "written",
        "CPU us",
        "/commit",
        "IO/commit",
        "to always"
    );
    for cell in cells {
        let &Cell { server, connections, size, .. } = cell;
        let is_beside = |other: &&Cell| {
            (other.connections, other.size, other.server) == (connections, size, Server::RedisAlways)
        };
        let rounds = |cell: &Cell| cell.rounds.iter().map(|round| round.requests_per_s).collect::<Vec<_>>();
        let always = cells.iter().find(is_beside).map_or(Vec::new(), rounds);
        let ratios = rounds(cell).into_iter().zip(always).map(|(own, always)| own / always);
        let [_, to_always, _] = spread(ratios);
        let [least, rate, most] = cell.spread(|round| round.requests_per_s);
        let median = |figure: fn(&Measured) -> f64| cell.spread(figure)[1];
        let by_commit = |figure: fn(&Measured) -> Option<f64>| {
            let number = cell.spread(|round| figure(round).unwrap_or(f64::NAN))[1];
            if number.is_nan() { "–".to_owned() } else { format!("{number:.1}") }
        };
        let _ = writeln!(
            text,
            "{:<17} {size:>6} {connections:>5} {rate:>10.0} {:>17} {:>9.0} {:>9.0} {:>7.2}x {:>7.1} {:>9} {:>9} \
             {to_always:>8.2}x",
            name(server),
            format!("{least:.0} to {most:.0}"),
            median(|round| round.p50_us),
            median(|round| round.p99_us),
            median(|round| round.written_per_payload_byte),
            median(|round| round.cpu_us_per_request),
            by_commit(|round| round.requests_per_commit),
            by_commit(|round| round.writes_per_commit),
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
