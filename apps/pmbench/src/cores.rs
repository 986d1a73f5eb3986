//! `pmbench cores`: pmlog with one core and with two, under the same loads.
//!
//! The generator takes a CPU of its own where there is a third. Where there are only two, it takes turns with the
//! server's second core, and plain requests keep it nearly as busy as a core of the server. Requests by second then say
//! little of how the server scales; what can be compared is the server's CPU time by request. (Turns of its loops that
//! find nothing to do are left out of that.) So there is a load that is dear to the server and cheap to the generator,
//! which sleeps between bursts: bodies in many short chunks.

use std::collections::BTreeMap;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::child::{Child, EAL, beside, to_start};
use crate::load::{LoadEvent, Summary};
use crate::progress::Progress;
use crate::results::write_json;
use crate::spread::Spread;

const SIZE_BYTES: u32 = 1024;
/// How long a cell is measured. For long enough, and not so long that a shard of a million log entries fills up.
const SECONDS: f64 = 1.0;
/// Room in each core's shard for all that is appended in one cell, should all connections come to one core.
const SHARD_GIB: usize = 3;

/// How long a program has to start, to answer and to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// What to measure.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  Each load and way of serving nine times, for a second each:
    pmbench cores --out cores
Leave the machine alone meanwhile; it needs two CPUs, and is better off with three.")]
pub struct CoresArgs {
    /// How often to measure each cell; all have their turn in each round.
    #[arg(long, value_name = "N", default_value = "9")]
    pub rounds: NonZeroUsize,
    /// Where to write results.json.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// The server; the pmlog beside this program, if not given.
    #[arg(long, value_name = "PROGRAM")]
    pub pmlog: Option<PathBuf>,
    /// What was built, for the results.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub commit: String,
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

/// What a run found, as results.json holds it.
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

/// Measures, and writes the results and a table of them.
///
/// # Errors
/// The machine does not offer what is needed, or a program failed.
pub fn run(args: &CoresArgs, out: &mut impl Write) -> Result<()> {
    let rounds = args.rounds.get();
    let pmlog = args.pmlog.clone().map_or_else(|| beside("pmlog"), Ok)?;
    let scratch = lab::scratch_directory("cores-")?;
    let bench = Bench { pmlog, cpus: cpus()?, folder: scratch.path().to_owned() };
    let mut found: Found = BTreeMap::new();
    let progress = Progress::start(LOADS.len() * rounds * MODES.len());
    for (at, load) in LOADS.iter().enumerate() {
        for round in 0..rounds {
            for turn in 0..MODES.len() {
                // Each is first, second and third in turn.
                let mode = MODES[(round + turn) % MODES.len()];
                let Load { name, connections, .. } = load;
                let what = format!("{name}, {connections} connections, {}, round {}", mode.name(), round + 1);
                progress.begin(&what);
                let measured = bench.measure(mode, load)?;
                progress.end(&what, &format!("{:.0} requests/s", measured.requests_per_s));
                found.entry((at, mode)).or_default().push(measured);
            }
        }
    }
    drop(progress);
    let cells = found.keys().map(|&(load, mode)| cell(&found, load, mode)).collect::<Option<Vec<_>>>();
    let cells = cells.context("a cell has no round")?;
    write!(out, "{}", table(&cells))?;
    let shares = bench.shares();
    if shares {
        writeln!(
            out,
            "two CPUs: the generator shares one with the server's second core; where requests keep it as busy as the \
             server, compare the CPU by request"
        )?;
    }
    let results = Results {
        commit: args.commit.clone(),
        rounds,
        seconds: SECONDS,
        size: SIZE_BYTES,
        generator_shares_a_cpu: shares,
        cells,
    };
    write_json(&args.out, "results.json", &results)
}

struct Bench {
    pmlog: PathBuf,
    /// The server's first, the server's second, and the generator's if there is a third.
    cpus: Vec<usize>,
    folder: PathBuf,
}

/// The rounds of each load and way of serving.
type Found = BTreeMap<(usize, Mode), Vec<Round>>;

impl Bench {
    /// Whether the generator shares a CPU with the server's second core.
    fn shares(&self) -> bool {
        self.cpus.len() < 3
    }

    fn measure(&self, mode: Mode, load: &Load) -> Result<Round> {
        let mut server = Child::start("pmlog", &mut self.server(mode), &self.folder)?;
        server.line_with(r#""event":"start""#, PATIENCE)?;
        let generator = Child::start("load", &mut self.generator(load, server.id())?, &self.folder)?;
        let summary = generator.wait(PATIENCE).and_then(|lines| last::<LoadEvent>(&lines));
        server.interrupt()?;
        let report: Value = last(&server.wait(PATIENCE)?)?;
        let LoadEvent::Finished(Summary { requests_per_s, p50_us, .. }) = summary? else {
            bail!("the generator has no result");
        };
        let number = |key: &str| report[key].as_f64().with_context(|| format!("no {key} in {report}"));
        let requests = number("requests")?;
        ensure!(requests > 0.0, "nothing was served: {report}");
        Ok(Round {
            requests_per_s,
            cpu_ns: number("busy_cpu_us")? * 1e3 / requests,
            p50_us,
            burst: requests / number("fences")?,
            crossed_bytes: number("crossed_bytes")? / requests,
        })
    }

    /// A server in a network of its own.
    fn server(&self, mode: Mode) -> Command {
        let cpus: Vec<String> = self.cpus[..mode.cores()].iter().map(usize::to_string).collect();
        let store = format!("{}GiB", SHARD_GIB * mode.cores());
        let mut command = to_start(true);
        command.arg(&self.pmlog).args(["serve", "--json", "--pm", "memory:", "--pm-size", &store]);
        command.args(["--cores", &cpus.join(","), "--dev", mode.device(), "--mac", SERVER_MAC]);
        command.args(["--ip", "10.0.0.2/24", "--"]).args(EAL);
        command.env("RUNTIME_DIRECTORY", &self.folder);
        command
    }

    /// The generator, in the network of a process.
    fn generator(&self, load: &Load, process: u32) -> Result<Command> {
        let core = self.cpus.last().context("there are CPUs")?.to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &process.to_string(), "--net"]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg(std::env::current_exe()?).args(["load", "--json", "--core", &core]);
        command.args(["--dev", "net_af_packet0,iface=veth0", "--ip", "10.0.0.1/24", "--mac", GENERATOR_MAC]);
        command.args(["--target", "10.0.0.2:80", "--size", &SIZE_BYTES.to_string()]);
        command.args(["--connections", &load.connections.to_string(), "--seconds", &SECONDS.to_string()]);
        if let Some(chunk_bytes) = load.chunk_bytes {
            command.args(["--chunk", &chunk_bytes.to_string()]);
        }
        if let Some(nap_us) = load.nap_us.filter(|_| self.shares()) {
            command.args(["--nap-us", &nap_us.to_string()]);
        }
        command.arg("--").args(EAL).args(["-l", &core]);
        command.env("RUNTIME_DIRECTORY", &self.folder);
        Ok(command)
    }
}

/// The generator's Ethernet address.
const GENERATOR_MAC: &str = "02:00:00:00:00:01";
/// The server's.
const SERVER_MAC: &str = "02:00:00:00:00:02";

/// What a program said last.
fn last<T: DeserializeOwned>(lines: &[String]) -> Result<T> {
    let line = lines.last().context("no report")?;
    serde_json::from_str(line).with_context(|| format!("not a report: {line}"))
}

/// Two CPUs, or three if there are as many.
fn cpus() -> Result<Vec<usize>> {
    let mut cpus = program::permitted_cpus()?;
    cpus.truncate(3);
    ensure!(cpus.len() >= 2, "two CPUs are needed, and this process may use one");
    Ok(cpus)
}

fn cell(found: &Found, load: usize, mode: Mode) -> Option<Cell> {
    let of = |mode, part: fn(&Round) -> f64| found[&(load, mode)].iter().map(part).collect::<Vec<_>>();
    let spread = |part| Spread::of(of(mode, part));
    let by_one = |part| Spread::of_ratios(&of(mode, part), &of(Mode::OneCore, part));
    let rate_by_one = by_one(|round| round.requests_per_s)?;
    let cpu_ns = spread(|round| round.cpu_ns)?;
    Some(Cell {
        load: LOADS[load].name,
        connections: LOADS[load].connections,
        mode: mode.name(),
        cores: mode.cores(),
        requests_per_s: spread(|round| round.requests_per_s)?.median,
        rate_ratio: rate_by_one.median,
        rate_ratio_range: rate_by_one.range(),
        server_cpu_ns_per_request: cpu_ns.median,
        server_cpu_ns_range: cpu_ns.range(),
        cpu_ratio: by_one(|round| round.cpu_ns)?.median,
        p50_us: spread(|round| round.p50_us)?.median,
        requests_per_fence: spread(|round| round.burst)?.median,
        crossed_bytes_per_request: spread(|round| round.crossed_bytes)?.median,
    })
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
        let cell = cell(&found, 0, Mode::TwoQueues).expect("rounds");
        assert_eq!((cell.server_cpu_ns_per_request, cell.server_cpu_ns_range), (220.0, [120.0, 1100.0]));
        assert!((cell.cpu_ratio - 1.1).abs() < 1e-9, "{}", cell.cpu_ratio);
        let rate_ratios = [cell.rate_ratio, cell.rate_ratio_range[0], cell.rate_ratio_range[1]];
        for (found, expected) in rate_ratios.into_iter().zip([1.0 / 1.1, 100.0 / 120.0, 1.0 / 1.1]) {
            assert!((found - expected).abs() < 1e-9, "{rate_ratios:?}");
        }
        assert_eq!(table(&[cell]).lines().count(), 2);
    }
}
