//! `cargo xtask bench cores`: pmlog with one core and with two, under the same loads.
//!
//! The generator takes a CPU of its own where there is a third. Where there are only two, it takes turns with the
//! server's second core, and plain requests keep it nearly as busy as a core of the server. Requests by second then say
//! little of how the server scales; what can be compared is the server's CPU time by request. (Turns of its loops that
//! find nothing to do are left out of that.) So there is a load that is dear to the server and cheap to the generator,
//! which sleeps between bursts: bodies in many short chunks.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde_json::Value;

use super::fwd::{EAL, VETH};
use super::rounds::{median, range, ratios};
use super::said_by;
use crate::steps::{Profile, Step, programs_in};

const SIZE_BYTES: u32 = 1024;
/// How long a cell is measured. For long enough, and not so long that a shard of a million log entries fills up.
const SECONDS: f64 = 1.0;
/// Room in each core's shard for all that is appended in one cell, should all connections come to one core.
const SHARD_GIB: usize = 3;

#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench cores            each cell 9 times for 1 s
  cargo xtask bench cores --quick    each cell twice for 1 s
Leave the machine alone meanwhile; it needs two CPUs, and is better off with three.")]
pub struct Options {
    /// Few and short rounds.
    #[arg(long)]
    quick: bool,
}

/// What the generator asks for.
#[derive(Clone, Copy, Debug)]
struct Load {
    name: &'static str,
    connections: u32,
    /// Length of each body's chunks, if it has any.
    chunk_bytes: Option<u32>,
    /// How long the generator sleeps when it has nothing to do, where it shares a CPU with the server.
    nap_us: Option<u32>,
}

const LOADS: [Load; 3] = [
    Load { name: "1 KiB", connections: 10, chunk_bytes: None, nap_us: None },
    Load { name: "1 KiB", connections: 100, chunk_bytes: None, nap_us: None },
    Load { name: "1 KiB in 512 chunks", connections: 100, chunk_bytes: Some(2), nap_us: Some(500) },
];

/// A way of serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    OneCore,
    /// The kernel's fanout feeds a queue for each.
    TwoQueues,
    /// One core has the only queue, and deals frames out.
    DealtOut,
}

const MODES: [Mode; 3] = [Mode::OneCore, Mode::TwoQueues, Mode::DealtOut];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::OneCore => "1 core",
            Self::TwoQueues => "2 cores, 2 queues",
            Self::DealtOut => "2 cores, 1 queue",
        }
    }

    fn cores(self) -> usize {
        if self == Self::OneCore { 1 } else { 2 }
    }

    fn device(self) -> &'static str {
        match self {
            Self::TwoQueues => "net_af_packet0,iface=veth1,qpairs=2",
            _ => "net_af_packet0,iface=veth1",
        }
    }
}

/// What a run found, as target/bench/cores/results.json holds it.
#[derive(Serialize)]
struct Results {
    commit: String,
    rounds: usize,
    seconds: f64,
    size: u32,
    /// Whether the generator shared a CPU with the server.
    generator_shares_a_cpu: bool,
    cells: Vec<Cell>,
}

/// A row of the table: medians over the rounds.
#[derive(Serialize)]
struct Cell {
    load: &'static str,
    connections: u32,
    mode: &'static str,
    cores: usize,
    requests_per_s: f64,
    /// Requests by second, relative to one core's in the same round.
    rate_ratio: f64,
    /// The lowest and the highest of a round.
    rate_ratio_range: [f64; 2],
    server_cpu_ns_per_request: f64,
    /// The lowest and the highest of a round.
    server_cpu_ns_range: [f64; 2],
    /// Server CPU by request, relative to one core's in the same round.
    cpu_ratio: f64,
    p50_us: f64,
    /// How many requests were made durable by one fence: the system calls of a burst are shared by so many.
    requests_per_fence: f64,
    /// Payload bytes copied from core to core, by request.
    crossed_bytes_per_request: f64,
}

/// One round of a cell.
struct Round {
    requests_per_s: f64,
    cpu_ns: f64,
    p50_us: f64,
    burst: f64,
    crossed_bytes: f64,
}

pub fn run(options: &Options) -> Result<()> {
    let (rounds, profile) = if options.quick { (2, Profile::Quick) } else { (9, Profile::Release) };
    let seconds = SECONDS;
    let [pmlog, pmbench] = programs_in(profile, ["pmlog", "pmbench"])?;
    let cpus = cpus()?;
    let scratch = lab::scratch_directory("cores-")?;
    let bench = Bench { pmlog, pmbench, cpus, folder: scratch.path().to_owned(), seconds };
    let mut found: Found = BTreeMap::new();
    for (at, load) in LOADS.iter().enumerate() {
        let step = Step::start(&format!("{}, {} connections", load.name, load.connections));
        for round in 0..rounds {
            for turn in 0..MODES.len() {
                // Each is first, second and third in turn.
                let mode = MODES[(round + turn) % MODES.len()];
                step.progress(&format!("{}, round {} of {rounds}", mode.name(), round + 1));
                found.entry((at, mode)).or_default().push(bench.measure(mode, load)?);
            }
        }
        let rates: Vec<_> = MODES.iter().map(|&mode| cell(&found, at, mode)).collect();
        let rates: Vec<_> = rates.iter().map(|cell| format!("{:.0}", cell.requests_per_s)).collect();
        step.end(&format!("{} requests/s", rates.join(", ")));
    }
    let cells: Vec<Cell> = found.keys().map(|&(load, mode)| cell(&found, load, mode)).collect();
    print!("{}", table(&cells));
    let shares = bench.shares();
    if shares {
        println!(
            "two CPUs: the generator shares one with the server's second core; where requests keep it as busy as the \
             server, compare the CPU by request"
        );
    }
    let results = Results {
        commit: said_by(Command::new("git").args(["describe", "--always", "--dirty"])),
        rounds,
        seconds,
        size: SIZE_BYTES,
        generator_shares_a_cpu: shares,
        cells,
    };
    let folder = lab::target_directory().join("bench/cores");
    fs::create_dir_all(&folder)?;
    let file = folder.join("results.json");
    fs::write(&file, serde_json::to_string_pretty(&results)? + "\n")?;
    println!("written to {}", file.display());
    Ok(())
}

struct Bench {
    pmlog: PathBuf,
    pmbench: PathBuf,
    /// The server's first, the server's second, and the generator's if there is a third.
    cpus: Vec<usize>,
    folder: PathBuf,
    seconds: f64,
}

/// The rounds of each load and way of serving.
type Found = BTreeMap<(usize, Mode), Vec<Round>>;

impl Bench {
    /// Whether the generator shares a CPU with the server's second core.
    fn shares(&self) -> bool {
        self.cpus.len() < 3
    }

    fn measure(&self, mode: Mode, load: &Load) -> Result<Round> {
        let server = Server::start(self, mode)?;
        let core = self.cpus.last().context("there are CPUs")?.to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &server.pid().to_string(), "--net"]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg(&self.pmbench).args(["load", "--json", "--core", &core]);
        command.args(["--dev", "net_af_packet0,iface=veth0", "--ip", "10.0.0.1/24", "--mac", GENERATOR_MAC]);
        command.args(["--target", "10.0.0.2:80", "--size", &SIZE_BYTES.to_string()]);
        command.args([
            "--connections",
            &load.connections.to_string(),
            "--seconds",
            &self.seconds.to_string(),
        ]);
        if let Some(chunk_bytes) = load.chunk_bytes {
            command.args(["--chunk", &chunk_bytes.to_string()]);
        }
        if let Some(nap_us) = load.nap_us.filter(|_| self.shares()) {
            command.args(["--nap-us", &nap_us.to_string()]);
        }
        command.arg("--").args(EAL).args(["-l", &core]);
        command.env("RUNTIME_DIRECTORY", &self.folder);
        let ran = lab::run_for(&mut command, Duration::from_secs(60));
        let report = server.end()?;
        let summary = last_line(&String::from_utf8_lossy(&ran?.stdout))?;
        let number =
            |value: &Value, key: &str| value[key].as_f64().with_context(|| format!("no {key} in {value}"));
        let requests = number(&report, "requests")?;
        ensure!(requests > 0.0, "nothing was served: {report}");
        Ok(Round {
            requests_per_s: number(&summary, "requests_per_s")?,
            cpu_ns: number(&report, "busy_cpu_us")? * 1e3 / requests,
            p50_us: number(&summary, "p50_us")?,
            burst: requests / number(&report, "fences")?,
            crossed_bytes: number(&report, "crossed_bytes")? / requests,
        })
    }
}

/// The generator's Ethernet address.
const GENERATOR_MAC: &str = "02:00:00:00:00:01";
/// The server's.
const SERVER_MAC: &str = "02:00:00:00:00:02";

/// A server in a network of its own.
struct Server {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Server {
    fn start(bench: &Bench, mode: Mode) -> Result<Self> {
        let cpus: Vec<String> = bench.cpus[..mode.cores()].iter().map(usize::to_string).collect();
        // Whatever becomes of this process, the server ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net"]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["sh", "-e", "-c", VETH, "sh"]).arg(&bench.pmlog);
        let store = format!("{}GiB", SHARD_GIB * mode.cores());
        command.args(["serve", "--json", "--pm", "memory:", "--pm-size", &store]);
        command.args(["--cores", &cpus.join(","), "--dev", mode.device(), "--mac", SERVER_MAC]);
        command.args(["--ip", "10.0.0.2/24", "--"]).args(EAL);
        command.env("RUNTIME_DIRECTORY", &bench.folder).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start setpriv and unshare")?;
        let output = child.stdout.take().context("a piped child has an output")?;
        let mut server = Self { child, lines: BufReader::new(output).lines() };
        // The first line says that it serves.
        match server.lines.next() {
            Some(Ok(line)) if line.contains(r#""event":"start""#) => Ok(server),
            _ => bail!("pmlog did not start to serve"),
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the server, and returns its last report.
    fn end(mut self) -> Result<Value> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT)?;
        let mut last = String::new();
        for line in self.lines.by_ref() {
            last = line?;
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "pmlog ended with {status}");
        last_line(&last)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After an orderly end there is nothing left to be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn last_line(text: &str) -> Result<Value> {
    let line = text.lines().last().context("no report")?;
    serde_json::from_str(line).with_context(|| format!("not a report: {line}"))
}

/// Two CPUs, or three if there are as many.
fn cpus() -> Result<Vec<usize>> {
    let mut cpus = program::permitted_cpus()?;
    cpus.truncate(3);
    ensure!(cpus.len() >= 2, "two CPUs are needed, and this process may use one");
    Ok(cpus)
}

fn cell(found: &Found, load: usize, mode: Mode) -> Cell {
    let rounds = &found[&(load, mode)];
    let alone = &found[&(load, Mode::OneCore)];
    let all = |rounds: &[Round], part: fn(&Round) -> f64| rounds.iter().map(part).collect::<Vec<_>>();
    let by_one = |part: fn(&Round) -> f64| ratios(&all(rounds, part), &all(alone, part));
    let median_of = |part| median(&all(rounds, part));
    let rate_ratios = by_one(|round| round.requests_per_s);
    Cell {
        load: LOADS[load].name,
        connections: LOADS[load].connections,
        mode: mode.name(),
        cores: mode.cores(),
        requests_per_s: median_of(|round| round.requests_per_s),
        rate_ratio_range: range(&rate_ratios),
        rate_ratio: median(&rate_ratios),
        server_cpu_ns_per_request: median_of(|round| round.cpu_ns),
        server_cpu_ns_range: range(&all(rounds, |round| round.cpu_ns)),
        cpu_ratio: median(&by_one(|round| round.cpu_ns)),
        p50_us: median_of(|round| round.p50_us),
        requests_per_fence: median_of(|round| round.burst),
        crossed_bytes_per_request: median_of(|round| round.crossed_bytes),
    }
}

fn table(cells: &[Cell]) -> String {
    let mut text = format!(
        "{:<20} {:>11} {:<18} {:>10} {:>5} {:>12} {:>14} {:>5} {:>8} {:>14} {:>13}\n",
        "",
        "connections",
        "",
        "requests/s",
        "by 1",
        "range",
        "CPU ns/request",
        "by 1",
        "p50 us",
        "requests/fence",
        "crossed bytes"
    );
    for cell in cells {
        let [low, high] = cell.rate_ratio_range;
        text += &format!(
            "{:<20} {:>11} {:<18} {:>10.0} {:>5.2} {:>12} {:>14.0} {:>5.2} {:>8.1} {:>14.1} {:>13.0}\n",
            cell.load,
            cell.connections,
            cell.mode,
            cell.requests_per_s,
            cell.rate_ratio,
            format!("{low:.2} to {high:.2}"),
            cell.server_cpu_ns_per_request,
            cell.cpu_ratio,
            cell.p50_us,
            cell.requests_per_fence,
            cell.crossed_bytes_per_request,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_medians_of_rounds_and_of_the_rounds_own_ratios() {
        let round = |cpu_ns| Round {
            requests_per_s: 1e9 / cpu_ns,
            cpu_ns,
            p50_us: 7.0,
            burst: 2.0,
            crossed_bytes: 3.0,
        };
        let found = BTreeMap::from([
            ((0, Mode::OneCore), [100.0, 200.0, 1000.0].map(round).into()),
            ((0, Mode::TwoQueues), [120.0, 220.0, 1100.0].map(round).into()),
        ]);
        let cell = cell(&found, 0, Mode::TwoQueues);
        assert_eq!((cell.server_cpu_ns_per_request, cell.server_cpu_ns_range), (220.0, [120.0, 1100.0]));
        assert!((cell.cpu_ratio - 1.1).abs() < 1e-9, "{}", cell.cpu_ratio);
        let rate_ratios = [cell.rate_ratio, cell.rate_ratio_range[0], cell.rate_ratio_range[1]];
        for (found, expected) in rate_ratios.into_iter().zip([1.0 / 1.1, 100.0 / 120.0, 1.0 / 1.1]) {
            assert!((found - expected).abs() < 1e-9, "{rate_ratios:?}");
        }
        assert_eq!(table(&[cell]).lines().count(), 2);
    }
}
