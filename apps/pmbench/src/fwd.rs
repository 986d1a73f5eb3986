//! `pmbench fwd`: pmfwd beside Debian's dpdk-testpmd, on the same virtual devices.
//!
//! Both programs get the same EAL arguments, CPUs, queue lengths and bursts. All stand ready with their devices while
//! one after the other forwards for a moment, round after round, so that whatever else the machine does meets them
//! alike. A round lasts for some CPU time, and a rate is packets sent by second of it, not by second of the clock: a
//! forwarding core spins, so on a machine of its own these are the same, and on a shared one the CPU that others take
//! does not count.

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::child::{Child, EAL, beside, to_start};
use crate::load::cli::parse_seconds;
use crate::progress::Progress;
use crate::results::write_json;
use crate::spread::Spread;

const TESTPMD: &str = "dpdk-testpmd";
/// What both programs get, in testpmd's words.
const COMMON: [&str; 6] =
    ["--burst=32", "--rxd=1024", "--txd=1024", "--nb-cores=1", "--total-num-mbufs=16383", "--mbcache=256"];
const STORE: &str = "128MiB";
/// Bursts from each port that are then on their way for good, where a device does not make its frames itself.
const TX_FIRST: &str = "start tx_first 4";
const SIZES: [usize; 2] = [64, 1500];
const MODES: [&str; 2] = ["io", "macswap"];
/// Longer than a program takes for anything it is told.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to measure.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  Each cell eleven times, for 0.3 s of CPU time each (4 minutes):
    pmbench fwd --out fwd
Leave the machine alone meanwhile; it needs two CPUs, and dpdk-testpmd.")]
pub struct FwdArgs {
    /// How often to measure each cell; all have their turn in each round.
    #[arg(long, value_name = "N", default_value = "11")]
    pub rounds: NonZeroUsize,
    /// For how much CPU time to measure each.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.3, value_parser = parse_seconds)]
    pub seconds: f64,
    /// The devices; all, if not given.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "DEVICES", default_values_t = DEVICES)]
    pub device: Vec<Device>,
    /// Where to write results.json.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// The forwarder; the pmfwd beside this program, if not given.
    #[arg(long, value_name = "PROGRAM")]
    pub pmfwd: Option<PathBuf>,
    /// What was built, for the results.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub commit: String,
}

/// A kind of virtual device, and how frames go round in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Device {
    /// Two ports that make frames and swallow them.
    Null,
    /// One port that receives what it sends.
    Ring,
    /// Two ports joined by shared memory.
    Memif,
    /// Two ports joined by a veth pair.
    AfPacket,
}

const DEVICES: [Device; 4] = [Device::Null, Device::Ring, Device::Memif, Device::AfPacket];

/// What forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Testpmd,
    Dram,
    Pm,
}

const PROGRAMS: [Program; 3] = [Program::Testpmd, Program::Dram, Program::Pm];

/// What a run found, as results.json holds it.
#[derive(Serialize)]
struct Results {
    commit: String,
    testpmd: String,
    rounds: usize,
    seconds: f64,
    /// Rates are packets by second of CPU time.
    cells: Vec<Cell>,
}

/// A row of the table: medians over the rounds. The ratios are medians of each round's own.
#[derive(Serialize)]
struct Cell {
    device: &'static str,
    mode: &'static str,
    size: usize,
    pool: &'static str,
    ours_pps: f64,
    testpmd_pps: f64,
    ratio: f64,
    /// The PM pool's rate by the DRAM pool's.
    of_dram: Option<f64>,
    /// The lowest and highest ratio of a round.
    ratio_range: [f64; 2],
}

/// Measures, and writes the results and a table of them.
///
/// # Errors
/// The machine does not offer what is needed, or a program failed.
pub fn run(args: &FwdArgs, out: &mut impl Write) -> Result<()> {
    let pmfwd = args.pmfwd.clone().map_or_else(|| beside("pmfwd"), Ok)?;
    let scratch = lab::scratch_directory("fwd-")?;
    let (rounds, time) = (args.rounds.get(), Duration::from_secs_f64(args.seconds));
    let bench = Bench { pmfwd, cpus: two_cpus()?, folder: scratch.path().to_owned(), rounds, time };
    let progress = Progress::start(args.device.len() * SIZES.len() * MODES.len());
    let mut cells = Vec::new();
    for &device in &args.device {
        for size in SIZES {
            cells.extend(bench.measure(device, size, &progress)?);
        }
    }
    drop(progress);
    write!(out, "{}", table(&cells))?;
    writeln!(out, "rates in million packets by second of CPU time")?;
    let version = Command::new("dpkg-query").args(["--show", "dpdk-dev"]).output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let results = Results {
        commit: args.commit.clone(),
        testpmd: version.unwrap_or_default(),
        rounds,
        seconds: args.seconds,
        cells,
    };
    write_json(&args.out, "results.json", &results)
}

struct Bench {
    pmfwd: PathBuf,
    cpus: [usize; 2],
    folder: PathBuf,
    rounds: usize,
    time: Duration,
}

impl Bench {
    /// All cells of a device and a frame's length.
    fn measure(&self, device: Device, size: usize, progress: &Progress) -> Result<Vec<Cell>> {
        let mut running = Vec::with_capacity(PROGRAMS.len());
        for program in PROGRAMS {
            running.push(self.start(program, device, size)?);
        }
        let mut cells = Vec::new();
        for mode in MODES {
            let what = format!("{} {mode}, {size} B", device.name());
            for program in &mut running {
                program.child.say(&format!("set fwd {mode}"))?;
                program.child.line_with(&format!("Set {mode} packet forwarding mode"), PATIENCE)?;
            }
            let mut rates: [Vec<f64>; PROGRAMS.len()] = Default::default();
            for round in 0..self.rounds {
                progress.begin(&format!("{what}, round {} of {}", round + 1, self.rounds));
                // Each is first, second and third in turn.
                for turn in 0..PROGRAMS.len() {
                    let which = (round + turn) % PROGRAMS.len();
                    let makes_frames = device == Device::Null;
                    rates[which].push(running[which].rate(self.time, makes_frames)?);
                }
            }
            let found = cells_of(device, mode, size, &rates).context("a cell has no round")?;
            progress.end(&what, &found.each_ref().map(|cell| format!("{:.2}", cell.ratio)).join(" "));
            cells.extend(found);
        }
        for Running { mut child, .. } in running {
            child.say("quit")?;
            child.wait(PATIENCE)?;
        }
        Ok(cells)
    }

    fn start(&self, program: Program, device: Device, size: usize) -> Result<Running> {
        let folder = self.folder.join(format!("{}-{size}-{program:?}", device.name()));
        fs::create_dir_all(&folder)?;
        let mut command = self.command(program, device, size, &folder);
        let child = Child::start(&format!("{program:?}"), &mut command, &folder)?;
        Ok(Running { child, has_started: false })
    }

    /// A program's command line, in a network of its own if the device needs one.
    fn command(&self, program: Program, device: Device, size: usize, folder: &Path) -> Command {
        let (cpus, devices) = (format!("{},{}", self.cpus[0], self.cpus[1]), device.arguments(folder, size));
        let txpkts = format!("--txpkts={size}");
        let mut command = to_start(device == Device::AfPacket);
        if program == Program::Testpmd {
            // Its output is in blocks if nobody looks on.
            command.args(["stdbuf", "-oL", TESTPMD]).args(EAL).args(["-l", &cpus]);
            command.args(devices.iter().flat_map(|device| ["--vdev", device]));
            // Without the last it throws away what is in the queues when it starts, which takes it a second.
            command.args(["--", "-i", "--no-flush-rx"]).args(COMMON).arg(txpkts);
        } else {
            command.arg(&self.pmfwd).arg("-i").args(devices.iter().flat_map(|device| ["--dev", device]));
            command.args(COMMON).arg(txpkts);
            if program == Program::Pm {
                command.arg("--pm").arg(folder.join("store.pm")).args(["--pm-size", STORE]);
            }
            command.arg("--").args(EAL).args(["-l", &cpus]);
        }
        // In a namespace they are root, and may not write where root's files lie.
        command.env("RUNTIME_DIRECTORY", folder);
        command
    }
}

impl Device {
    fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Ring => "ring",
            Self::Memif => "memif",
            Self::AfPacket => "af_packet",
        }
    }

    /// As EAL names the ports.
    fn arguments(self, folder: &Path, size: usize) -> Vec<String> {
        match self {
            Self::Null => (0..2).map(|port| format!("net_null{port},size={size}")).collect(),
            Self::Ring => vec!["net_ring0".to_owned()],
            Self::Memif => {
                // By one and the same name a process may not be both sides of a socket.
                let side = |port, role, socket: PathBuf| {
                    format!("net_memif{port},role={role},id=0,socket-abstract=no,socket={}", socket.display())
                };
                vec![
                    side(0, "server", folder.join("memif")),
                    side(1, "client", folder.join(".").join("./memif")),
                ]
            }
            Self::AfPacket => (0..2).map(|port| format!("net_af_packet{port},iface=veth{port}")).collect(),
        }
    }
}

/// A program that takes commands.
struct Running {
    child: Child,
    has_started: bool,
}

impl Running {
    /// Forwards for some CPU time; returns the packets sent by second of CPU time.
    fn rate(&mut self, time: Duration, makes_frames: bool) -> Result<f64> {
        // From then on the frames are in the device, and go on where they were.
        let needs_frames = !makes_frames && !self.has_started;
        let before_ns = self.cpu_ns()?;
        self.child.say(if needs_frames { TX_FIRST } else { "start" })?;
        self.has_started = true;
        // On a busy machine it takes longer to come to as much CPU time.
        let end = Instant::now() + PATIENCE;
        while self.cpu_ns()? - before_ns < time.as_nanos() as u64 {
            ensure!(Instant::now() < end, "{} gets no CPU time", self.child.name());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child.say("stop")?;
        self.child.line_with("Accumulated forward statistics", PATIENCE)?;
        let line = self.child.line_with("TX-packets:", PATIENCE)?;
        let used_ns = self.cpu_ns()? - before_ns;
        let sent = packets_sent(&line).with_context(|| format!("not testpmd's layout: {line:?}"))?;
        ensure!(sent > 0 && used_ns > 0, "{} forwarded nothing", self.child.name());
        Ok(sent as f64 * 1e9 / used_ns as f64)
    }

    /// The CPU time that its threads have used.
    fn cpu_ns(&self) -> Result<u64> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let mut sum = 0;
        for task in fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
            let file = task?.path().join("schedstat");
            // A thread may have ended meanwhile.
            let Ok(text) = fs::read_to_string(&file) else { continue };
            let used = text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
            sum += used.with_context(|| format!("{} does not begin with a time", file.display()))?;
        }
        ensure!(sum > 0, "the kernel does not account for CPU time (CONFIG_SCHED_INFO): {tasks}/*/schedstat");
        Ok(sum)
    }
}

/// The number in a line of forward statistics.
fn packets_sent(line: &str) -> Option<u64> {
    let (_, behind) = line.split_once("TX-packets:")?;
    behind.split_whitespace().next()?.parse().ok()
}

/// Two CPUs that this process may use: one for a program's main thread, one that forwards.
fn two_cpus() -> Result<[usize; 2]> {
    match program::permitted_cpus()?[..] {
        [first, second, ..] => Ok([first, second]),
        _ => bail!("this needs two CPUs, as testpmd does; give it more with taskset"),
    }
}

/// The two cells of rates by program and round.
fn cells_of(
    device: Device,
    mode: &'static str,
    size: usize,
    rates: &[Vec<f64>; PROGRAMS.len()],
) -> Option<[Cell; 2]> {
    let [testpmd, dram, pm] = rates;
    let cell = |pool, ours: &[f64], of_dram: Option<Spread>| {
        let ratio = Spread::of_ratios(ours, testpmd)?;
        Some(Cell {
            device: device.name(),
            mode,
            size,
            pool,
            ours_pps: Spread::of(ours.to_vec())?.median.round(),
            testpmd_pps: Spread::of(testpmd.clone())?.median.round(),
            ratio: ratio.median,
            of_dram: of_dram.map(|ratio| ratio.median),
            ratio_range: ratio.range(),
        })
    };
    Some([cell("dram", dram, None)?, cell("pm", pm, Spread::of_ratios(pm, dram))?])
}

fn table(cells: &[Cell]) -> String {
    let mut table = format!(
        "{:<10} {:<8} {:>5} {:<5} {:>10} {:>10} {:>7} {:>13} {:>8}\n",
        "device", "mode", "size", "pool", "ours", "testpmd", "ratio", "range", "of dram"
    );
    for cell in cells {
        let range = format!("{:.2} .. {:.2}", cell.ratio_range[0], cell.ratio_range[1]);
        let of_dram = cell.of_dram.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        writeln!(
            table,
            "{:<10} {:<8} {:>5} {:<5} {:>10.2} {:>10.2} {:>7.2} {range:>13} {of_dram:>8}",
            cell.device,
            cell.mode,
            cell.size,
            cell.pool,
            cell.ours_pps / 1e6,
            cell.testpmd_pps / 1e6,
            cell.ratio
        )
        .expect("writing to a string does not fail");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cells_ratio_is_the_median_of_its_rounds() {
        let rates = [vec![10.0, 20.0, 40.0], vec![20.0, 20.0, 60.0], vec![5.0, 30.0, 60.0]];
        let [dram, pm] = cells_of(Device::Ring, "io", 64, &rates).expect("rounds");
        assert_eq!((dram.ours_pps, dram.testpmd_pps, dram.ratio), (20.0, 20.0, 1.5));
        assert_eq!((dram.ratio_range, dram.of_dram), ([1.0, 2.0], None));
        assert_eq!((pm.ratio, pm.of_dram), (1.5, Some(1.0)));
        let table = table(&[dram, pm]);
        assert!(table.lines().nth(2).is_some_and(|row| row.starts_with("ring") && row.ends_with("1.00")));
    }

    #[test]
    fn testpmds_statistics_are_read() {
        let line = "testpmd>   TX-packets: 1043435360     TX-dropped: 0             TX-total: 1043435360";
        assert_eq!(packets_sent(line), Some(1_043_435_360));
        assert_eq!(packets_sent("  RX-packets: 7"), None);
    }
}
