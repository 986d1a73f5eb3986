//! `cargo xtask bench kv`: redis-benchmark against pmkv and Debian's redis-server, in turns.
//!
//! All servers are reached over the loopback interface by Linux' TCP, but for pmkv on DPDK, whose link is a veth pair. Each
//! server runs alone, and each load runs until it has taken some time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, wire};
use serde::Serialize;

use crate::inside;
use crate::steps::{Profile, Step, programs_in, workspace};

#[derive(clap::Args)]
pub struct Options {
    /// Values of 1 KiB and 50 connections only, once: 2 minutes after the build.
    #[arg(long)]
    quick: bool,
}

#[derive(clap::Args)]
pub struct Inside {
    #[arg(long)]
    quick: bool,
    #[arg(long)]
    pmkv: PathBuf,
    #[arg(long)]
    scratch: PathBuf,
    /// Where stores on the disk lie.
    #[arg(long)]
    disk: PathBuf,
}

/// Requests before each load, to find out how many take as long as it is to take.
const PROBE: u64 = 1000;
/// How long the server may take to serve.
const PATIENCE: Duration = Duration::from_secs(30);
const PORT: &str = "6400";
/// Keys that there are.
const KEYS: &str = "2000";

/// Builds, and runs the rest inside namespaces.
pub fn run(options: &Options) -> Result<()> {
    let [pmkv] = programs_in(if options.quick { Profile::Quick } else { Profile::Release }, ["pmkv"])?;
    let scratch = lab::scratch_directory("bench-kv-")?;
    let disk = workspace().join("target/bench/kv");
    fs::create_dir_all(&disk)?;
    let mut command = lab::inside(&std::env::current_exe()?)?;
    command.arg("bench-kv-inside").args(options.quick.then_some("--quick"));
    command.arg("--pmkv").arg(pmkv).arg("--scratch").arg(scratch.path()).arg("--disk").arg(&disk);
    let ended = inside::run(&mut command)?.context("interrupted")?;
    ensure!(ended.success(), "the measurement failed ({ended})");
    println!("results in {}", disk.join("results.json").display());
    Ok(())
}

/// A server, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    RedisAlways,
    RedisEverysec,
    RedisNo,
    /// Persistent memory has DRAM as its stand-in.
    PmkvMemory,
    PmkvDisk,
    PmkvDpdk,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::RedisAlways,
        Self::RedisEverysec,
        Self::RedisNo,
        Self::PmkvDisk,
        Self::PmkvMemory,
        Self::PmkvDpdk,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::RedisAlways => "redis always",
            Self::RedisEverysec => "redis everysec",
            Self::RedisNo => "redis no",
            Self::PmkvMemory => "pmkv memory",
            Self::PmkvDisk => "pmkv disk",
            Self::PmkvDpdk => "pmkv memory, DPDK",
        }
    }

    fn host(self) -> String {
        if self == Self::PmkvDpdk { wire::SERVER_V4.to_string() } else { "127.0.0.1".into() }
    }

    fn command(self, inside: &Inside) -> Command {
        let redis = |fsync: &str| {
            let mut command = Command::new("redis-server");
            command.args([
                "--port",
                PORT,
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                fsync,
                "--dir",
            ]);
            command.arg(&inside.disk);
            command
        };
        let pmkv = |pm: &Path, listen: String, size: &str| {
            let mut command = Command::new(&inside.pmkv);
            command.args(["serve", "--pm-size", size, "--listen", &listen, "--pm"]).arg(pm);
            command
        };
        let here = format!("127.0.0.1:{PORT}");
        match self {
            Self::RedisAlways => redis("always"),
            Self::RedisEverysec => redis("everysec"),
            Self::RedisNo => redis("no"),
            Self::PmkvMemory => pmkv(Path::new("memory:"), here, "512MiB"),
            Self::PmkvDisk => pmkv(&inside.disk.join("store.pm"), here, "512MiB"),
            Self::PmkvDpdk => {
                let mut command = pmkv(Path::new("memory:"), format!("{}:{PORT}", wire::SERVER_V4), "512MiB");
                command.args(["--dev", wire::VETH_DEVICE]);
                command
            }
        }
    }
}

/// A server that is killed when it is of no use any more.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    fn start(kind: Kind, inside: &Inside) -> Result<Self> {
        for left in ["store.pm", "appendonlydir"].map(|name| inside.disk.join(name)) {
            let _ = fs::remove_file(&left);
            let _ = fs::remove_dir_all(&left);
        }
        let mut command = kind.command(inside);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut server = Self(command.spawn().with_context(|| format!("{} cannot be started", kind.name()))?);
        let begun = Instant::now();
        loop {
            let mut ping = Command::new("redis-cli");
            ping.args(["-h", &kind.host(), "-p", PORT, "PING"]).stderr(Stdio::null());
            if ping.output().context("redis-cli cannot be started")?.stdout == b"PONG\n" {
                return Ok(server);
            }
            let ended = server.0.try_wait()?;
            ensure!(ended.is_none() && begun.elapsed() < PATIENCE, "{} does not serve", kind.name());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What one load came to.
#[derive(Clone, Debug, Serialize)]
struct Cell {
    server: Kind,
    command: &'static str,
    value_bytes: u32,
    pipeline: u32,
    connections: u32,
    requests_per_s: f64,
    /// CPU time of the server, that of the kernel for it included. One that polls has all of a CPU.
    cpu_us_per_request: f64,
}

/// The measurement itself, as root of its own namespaces.
pub fn run_inside(inside: &Inside) -> Result<()> {
    inside::end_on_signals()?;
    let _lab = Lab::enter(&inside.scratch)?;
    wire::veth()?;
    let (sizes, connections, seconds): (&[u32], &[u32], f64) = match inside.quick {
        true => (&[1024], &[50], 0.7),
        false => (&[16, 100, 1024, 16 * 1024], &[1, 50], 1.0),
    };
    let mut cells = Vec::new();
    println!(
        "{:<18} {:<4} {:>6} {:>4} {:>5} {:>10} {:>8}",
        "server", "", "bytes", "P", "conns", "requests/s", "CPU us"
    );
    for kind in Kind::ALL {
        let step = Step::start(kind.name());
        let server = Server::start(kind, inside)?;
        for &value_bytes in sizes {
            for &connections in connections {
                for pipeline in [1, 16] {
                    for command in ["set", "get"] {
                        step.progress(&format!("{command} {value_bytes} bytes, {connections} connections"));
                        let load = Load { kind, command, value_bytes, pipeline, connections };
                        let cell = load.measure(&server, seconds)?;
                        step.print(&format!(
                            "{:<18} {command:<4} {value_bytes:>6} {pipeline:>4} {connections:>5} {:>10.0} {:>8.1}",
                            kind.name(),
                            cell.requests_per_s,
                            cell.cpu_us_per_request
                        ));
                        cells.push(cell);
                    }
                }
            }
        }
        step.end("measured");
    }
    compare(&cells);
    fs::write(inside.disk.join("results.json"), serde_json::to_vec_pretty(&cells)?)?;
    for left in ["store.pm", "appendonlydir"].map(|name| inside.disk.join(name)) {
        let _ = fs::remove_file(&left);
        let _ = fs::remove_dir_all(&left);
    }
    Ok(())
}

/// What redis-benchmark is to do.
struct Load {
    kind: Kind,
    command: &'static str,
    value_bytes: u32,
    pipeline: u32,
    connections: u32,
}

impl Load {
    fn measure(&self, server: &Server, seconds: f64) -> Result<Cell> {
        let rate = self.run(PROBE * u64::from(self.pipeline))?;
        let requests = ((rate * seconds) as u64).max(PROBE);
        let before = lab::cpu_time(&server.0)?;
        let requests_per_s = self.run(requests)?;
        let cpu = lab::cpu_time(&server.0)? - before;
        let &Self { kind: server, command, value_bytes, pipeline, connections } = self;
        let cpu_us_per_request = cpu.as_secs_f64() * 1e6 / requests as f64;
        Ok(Cell { server, command, value_bytes, pipeline, connections, requests_per_s, cpu_us_per_request })
    }

    /// So many requests; how many a second.
    fn run(&self, requests: u64) -> Result<f64> {
        let numbers = [
            ("-n", requests.to_string()),
            ("-d", self.value_bytes.to_string()),
            ("-P", self.pipeline.to_string()),
            ("-c", self.connections.to_string()),
            ("-h", self.kind.host()),
        ];
        let mut command = Command::new("redis-benchmark");
        command.args(["-t", self.command, "--csv", "-p", PORT, "-r", KEYS]);
        command.args(numbers.iter().flat_map(|(option, value)| [option, &**value]));
        let output = command.output().context("redis-benchmark cannot be started")?;
        let text = String::from_utf8_lossy(&output.stdout);
        // The last line: the command's name, and the rate.
        let rate =
            text.lines().last().and_then(|line| line.split(',').nth(1)?.trim_matches('"').parse().ok());
        rate.with_context(|| {
            format!("redis-benchmark said {text}{}", String::from_utf8_lossy(&output.stderr))
        })
    }
}

/// Says how pmkv compares where the targets are.
fn compare(cells: &[Cell]) {
    let rate = |server: Kind, command: &str| {
        let is_it = |cell: &&Cell| {
            (cell.server, cell.command, cell.value_bytes, cell.connections, cell.pipeline)
                == (server, command, 1024, 50, 1)
        };
        cells.iter().find(is_it).map(|cell| cell.requests_per_s)
    };
    let pairs = [
        ("set", Kind::PmkvMemory, Kind::RedisAlways, 5.0),
        ("set", Kind::PmkvDisk, Kind::RedisAlways, 2.0),
        ("get", Kind::PmkvMemory, Kind::RedisNo, 2.0),
    ];
    println!("\n1 KiB, 50 connections, no pipeline:");
    for (command, ours, theirs, target) in pairs {
        if let (Some(our), Some(their)) = (rate(ours, command), rate(theirs, command)) {
            let ratio = our / their;
            let verdict = if ratio >= target { "reached" } else { "missed" };
            println!(
                "  {command}: {} is {ratio:.2} x {}; target {target} x, {verdict}",
                ours.name(),
                theirs.name()
            );
        }
    }
}
