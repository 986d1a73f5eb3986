//! `cargo xtask bench fwd`: pmfwd beside Debian's dpdk-testpmd, on the same virtual devices.
//!
//! Both programs get the same EAL arguments, CPUs, queue lengths and bursts. All stand ready with their devices while
//! one after the other forwards for a moment, round after round, so that whatever else the machine does meets them
//! alike. A round lasts for some CPU time, and a rate is packets sent by second of it, not by second of the clock: a forwarding core spins, so on a
//! machine of its own these are the same, and on a shared one the CPU that others take does not count.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use super::rounds::{median, range, ratios};
use super::said_by;
use crate::setup::{self, Verbosity};
use crate::steps::{Profile, Step, programs_in};

const TESTPMD: &str = "dpdk-testpmd";
const PACKAGES: [(&str, &str); 1] = [("dpdk-dev", "dpdk-testpmd, beside which pmfwd is measured")];
/// What EAL gets on top of the CPUs. Memory without hugepages is what every machine has.
pub(super) const EAL: [&str; 7] =
    ["--no-huge", "-m", "512", "--no-shconf", "--no-pci", "--iova-mode=va", "--no-telemetry"];
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

#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench fwd              each cell 11 times for 0.3 s: 4 minutes
  cargo xtask bench fwd --quick      each cell 3 times for 0.1 s
Leave the machine alone meanwhile; it needs two CPUs.")]
pub struct Options {
    /// Few and short rounds.
    #[arg(long)]
    quick: bool,
    /// Only this device: null, ring, memif or af_packet.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

/// A kind of virtual device, and how frames go round in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
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

/// What a run found, as target/bench/fwd/results.json holds it.
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

pub fn run(options: &Options) -> Result<()> {
    let (rounds, time) = match options.quick {
        true => (3, Duration::from_millis(100)),
        false => (11, Duration::from_millis(300)),
    };
    let devices: Vec<Device> = match &options.device {
        None => DEVICES.to_vec(),
        Some(name) => {
            let device = DEVICES.into_iter().find(|device| device.name() == name);
            vec![device.with_context(|| format!("{name} is no device of this bench; see --help"))?]
        }
    };
    setup::provide(&PACKAGES, Verbosity::WhenInstalling)?;
    let [pmfwd] = programs_in(Profile::Release, ["pmfwd"])?;
    let scratch = lab::scratch_directory("fwd-")?;
    let bench = Bench { pmfwd, cpus: two_cpus()?, folder: scratch.path().to_owned(), rounds, time };
    let mut cells = Vec::new();
    for device in devices {
        for size in SIZES {
            let step = Step::start(&format!("{} {size}", device.name()));
            let found = bench.measure(device, size, &step)?;
            let ratios: Vec<String> = found.iter().map(|cell| format!("{:.2}", cell.ratio)).collect();
            step.end(&ratios.join(" "));
            cells.extend(found);
        }
    }
    print!("{}", table(&cells));
    let folder = lab::target_directory().join("bench/fwd");
    fs::create_dir_all(&folder)?;
    let results = Results {
        commit: said_by(Command::new("git").args(["describe", "--always", "--dirty"])),
        testpmd: said_by(Command::new("dpkg-query").args(["--show", "dpdk-dev"])),
        rounds,
        seconds: time.as_secs_f64(),
        cells,
    };
    let file = folder.join("results.json");
    fs::write(&file, serde_json::to_string_pretty(&results)? + "\n")?;
    println!("rates in million packets by second of CPU time; written to {}", file.display());
    Ok(())
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
    fn measure(&self, device: Device, size: usize, step: &Step) -> Result<Vec<Cell>> {
        let mut running = Vec::with_capacity(PROGRAMS.len());
        for program in PROGRAMS {
            running.push(Running::start(self.command(program, device, size)?, program)?);
        }
        let mut cells = Vec::new();
        for mode in MODES {
            for program in &mut running {
                program.tell(&format!("set fwd {mode}"))?;
                program.wait_for(&format!("Set {mode} packet forwarding mode"))?;
            }
            let mut rates: [Vec<f64>; PROGRAMS.len()] = Default::default();
            for round in 0..self.rounds {
                step.progress(&format!("{mode}, round {} of {}", round + 1, self.rounds));
                // Each is first, second and third in turn.
                for turn in 0..PROGRAMS.len() {
                    let which = (round + turn) % PROGRAMS.len();
                    let makes_frames = device == Device::Null;
                    rates[which].push(running[which].rate(self.time, makes_frames)?);
                }
            }
            cells.extend(cells_of(device, mode, size, &rates));
        }
        for program in running {
            program.quit()?;
        }
        Ok(cells)
    }

    /// A program's command line, in a network of its own if the device needs one.
    fn command(&self, program: Program, device: Device, size: usize) -> Result<Command> {
        let folder = self.folder.join(format!("{}-{size}-{program:?}", device.name()));
        fs::create_dir_all(&folder)?;
        let mut words: Vec<String> = Vec::new();
        if device == Device::AfPacket {
            words.extend(["unshare".to_owned(), "--net".to_owned()]);
            if !rustix::process::geteuid().is_root() {
                words.extend(["--user".to_owned(), "--map-root-user".to_owned()]);
            }
            words.extend(["sh", "-e", "-c", VETH, "sh"].map(str::to_owned));
        }
        let (cpus, devices) = (format!("{},{}", self.cpus[0], self.cpus[1]), device.arguments(&folder, size));
        let eal = EAL.iter().copied().chain(["-l", &cpus]).map(str::to_owned);
        let own = COMMON.iter().map(|word| (*word).to_owned()).chain([format!("--txpkts={size}")]);
        if program == Program::Testpmd {
            // Its output is in blocks if nobody looks on.
            words.extend(["stdbuf", "-oL", TESTPMD].map(str::to_owned));
            words.extend(eal);
            words.extend(devices.into_iter().flat_map(|device| ["--vdev".to_owned(), device]));
            // Without the last it throws away what is in the queues when it starts, which takes it a second.
            words.extend(["--", "-i", "--no-flush-rx"].map(str::to_owned));
            words.extend(own);
        } else {
            words.push(self.pmfwd.display().to_string());
            words.push("-i".to_owned());
            words.extend(devices.into_iter().flat_map(|device| ["--dev".to_owned(), device]));
            words.extend(own);
            if program == Program::Pm {
                let store = folder.join("store.pm").display().to_string();
                words.extend(["--pm".to_owned(), store, "--pm-size".to_owned(), STORE.to_owned()]);
            }
            words.push("--".to_owned());
            words.extend(eal);
        }
        // Whatever becomes of this process, they end.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(words);
        // In a namespace they are root, and may not write where root's files lie.
        command.env("RUNTIME_DIRECTORY", &folder);
        Ok(command)
    }
}

/// Makes a veth pair that no protocol of the kernel's speaks on, and becomes the program.
pub(super) const VETH: &str = "\
    ip link add veth0 arp off type veth peer name veth1 arp off; \
    for side in veth0 veth1; do \
        if [ -d /proc/sys/net/ipv6 ]; then echo 1 > /proc/sys/net/ipv6/conf/$side/disable_ipv6; fi; \
        ip link set $side up; \
    done; \
    exec \"$@\"";

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
    program: Program,
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    heard: String,
    has_started: bool,
}

impl Running {
    fn start(mut command: Command, program: Program) -> Result<Self> {
        let (reader, writer) = std::io::pipe()?;
        command.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn().context("cannot start setpriv")?;
        // The command holds the writing ends until it is dropped; the reader would wait for them for ever.
        drop(command);
        let stdin = child.stdin.take().context("a piped child has an input")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n') {
                let Ok(line) = line else { return };
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { program, child, stdin, lines, heard: String::new(), has_started: false })
    }

    fn tell(&mut self, command: &str) -> Result<()> {
        self.heard.clear();
        writeln!(self.stdin, "{command}").or_else(|_| self.fail("has ended"))
    }

    /// The next line with `text` in it.
    fn wait_for(&mut self, text: &str) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.heard.push_str(&line);
                    self.heard.push('\n');
                    if line.contains(text) {
                        return Ok(line);
                    }
                }
                Err(_) => return self.fail(&format!("did not say {text:?}")),
            }
        }
    }

    fn fail<T>(&mut self, what: &str) -> Result<T> {
        // What it said last tells why.
        while let Ok(line) = self.lines.try_recv() {
            self.heard.push_str(&line);
            self.heard.push('\n');
        }
        bail!("{:?} {what}; it said:\n{}", self.program, self.heard)
    }

    /// Forwards for some CPU time; returns the packets sent by second of CPU time.
    fn rate(&mut self, time: Duration, makes_frames: bool) -> Result<f64> {
        // From then on the frames are in the device, and go on where they were.
        let needs_frames = !makes_frames && !self.has_started;
        let before_ns = self.cpu_ns()?;
        self.tell(if needs_frames { TX_FIRST } else { "start" })?;
        self.has_started = true;
        // On a busy machine it takes longer to come to as much CPU time.
        let end = Instant::now() + PATIENCE;
        while self.cpu_ns()? - before_ns < time.as_nanos() as u64 {
            if Instant::now() >= end {
                return self.fail("gets no CPU time");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.tell("stop")?;
        self.wait_for("Accumulated forward statistics")?;
        let line = self.wait_for("TX-packets:")?;
        let used_ns = self.cpu_ns()? - before_ns;
        let sent = packets_sent(&line).with_context(|| format!("not testpmd's layout: {line:?}"))?;
        if sent == 0 || used_ns == 0 {
            return self.fail("forwarded nothing");
        }
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

    fn quit(mut self) -> Result<()> {
        self.tell("quit")?;
        let end = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < end, "{:?} does not quit", self.program);
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
) -> [Cell; 2] {
    let [testpmd, dram, pm] = rates;
    let cell = |pool, ours: &[f64], of_dram| {
        let ratios = ratios(ours, testpmd);
        Cell {
            device: device.name(),
            mode,
            size,
            pool,
            ours_pps: median(ours).round(),
            testpmd_pps: median(testpmd).round(),
            ratio: median(&ratios),
            of_dram,
            ratio_range: range(&ratios),
        }
    };
    [cell("dram", dram, None), cell("pm", pm, Some(median(&ratios(pm, dram))))]
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
        let [dram, pm] = cells_of(Device::Ring, "io", 64, &rates);
        assert_eq!((dram.ours_pps, dram.testpmd_pps, dram.ratio), (20.0, 20.0, 1.5));
        assert_eq!((dram.ratio_range, dram.of_dram), ([1.0, 2.0], None));
        assert_eq!((pm.ratio, pm.of_dram), (1.5, Some(1.0)));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
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
