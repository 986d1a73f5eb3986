//! `cargo xtask bench`: measurements, as a table and as JSON.

mod disk;
pub mod kv;
mod micro;
mod open;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};

use crate::setup::{self, Packages, Verbosity};
use crate::steps::{Profile, programs_in, said_by, workspace};

/// The cells that the targets speak of, once each.
const QUICK: &str =
    "--only-targets --sizes 64,1024,8192 --connections 1,50,100 --rounds 1 --seconds 0.8 --warmup 0.1";
/// All cells, several times.
const FULL: &str = "--sizes 64,1024,8192 --connections 1,50,100 --ring-connections 1,50 --rounds 5 --seconds 0.6 \
                    --warmup 0.15";
const TESTPMD: [(&str, &str); 1] = [("dpdk-dev", "dpdk-testpmd, beside which pmfwd is measured")];

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    packages: Packages,
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// The core by criterion: per segment, per append, per persist.
    Micro {
        /// Only benchmarks whose name contains this.
        filter: Option<String>,
    },
    /// Every way of serving durable appends, side by side: a table, and a report in target/bench/compare.
    #[command(after_help = "\
Examples:
  sudo -E cargo xtask bench compare --quick     what the targets speak of, and all modes with 1 KiB, once: 3 minutes
  sudo -E cargo xtask bench compare             all loads, five times: 25 minutes
Leave the machine alone meanwhile; it needs two CPUs that nothing else uses.")]
    Compare {
        /// Few cells, one round.
        #[arg(long)]
        quick: bool,
        /// Do without root, at the price of fairness on veth: see `pmbench run --help`.
        #[arg(long)]
        unsteered: bool,
    },
    /// Instructions of a request, by whose code they are; results in target/bench/instructions.
    #[command(after_help = "\
Examples:
  cargo xtask bench instructions            three modes, three sizes: 2 minutes after the build
  cargo xtask bench instructions --quick    the one that CI holds against apps/pmbench/ceiling.json, as CI builds it
Counts are the same on every machine that is left alone meanwhile; it needs two CPUs.")]
    Instructions {
        /// One mode and size, in a program that is sooner built, held against the ceiling.
        #[arg(long)]
        quick: bool,
    },
    /// A request's time and instructions with 1 to 100,000 connections, and the memory of an idle one.
    #[command(after_help = "\
Examples:
  cargo xtask bench connections            four numbers of connections, 9 rounds: 5 minutes after the build
  cargo xtask bench connections --quick    up to 10,000, 3 rounds, no instructions
  cargo xtask bench connections --json     what target/bench/connections/results.json holds, in place of the table
Needs a CPU that nothing else uses for its times; instructions and memory are the same on every machine.")]
    Connections {
        /// Fewer connections and rounds, and no instructions, in a program that is sooner built.
        #[arg(long)]
        quick: bool,
        /// Print the results as JSON.
        #[arg(long)]
        json: bool,
    },
    /// pmlog with one core and with two: requests by second, and CPU time by request.
    #[command(after_help = "\
Examples:
  cargo xtask bench cores            each cell 9 times for 1 s
  cargo xtask bench cores --quick    each cell twice for 1 s
Leave the machine alone meanwhile; it needs two CPUs, and is better off with three.")]
    Cores {
        /// Few rounds.
        #[arg(long)]
        quick: bool,
    },
    /// pmkv beside redis-server, with redis-benchmark: requests by second, and the server's CPU time by request.
    #[command(after_help = "\
Examples:
  cargo xtask bench kv            SET and GET, four sizes, 1 and 50 connections, six servers: 8 minutes after the build
  cargo xtask bench kv --quick    1 KiB and 50 connections, in a program that is sooner built
Leave the machine alone meanwhile; it needs two CPUs.")]
    Kv(kv::Options),
    /// Durable appends on a disk: pmlog by the page cache and past it, and redis-server, in one run.
    #[command(after_help = "\
Examples:
  cargo xtask bench disk            four numbers of connections, three sizes, three rounds: 8 minutes after the build
  cargo xtask bench disk --quick    1 KiB, 1 and 50 connections, three times a second each
The files lie in target/bench/disk: the disk that is measured is that one's. Leave the machine alone meanwhile.")]
    Disk {
        /// Few cells, in programs that are sooner built.
        #[arg(long)]
        quick: bool,
    },
    /// How long stores of several sizes take to open after a kill, and how much memory.
    #[command(after_help = "\
Examples:
  cargo xtask bench open            up to 16 GiB, for which there must be room in target/bench: some minutes
  cargo xtask bench open --quick    up to 1 GiB")]
    Open {
        /// Smaller stores.
        #[arg(long)]
        quick: bool,
    },
    /// pmfwd beside dpdk-testpmd, on the same virtual devices: packets by second of CPU time.
    #[command(after_help = "\
Examples:
  cargo xtask bench fwd              each cell 11 times for 0.3 s: 4 minutes
  cargo xtask bench fwd --quick      each cell 3 times for 0.1 s
Leave the machine alone meanwhile; it needs two CPUs.")]
    Fwd {
        /// Few and short rounds.
        #[arg(long)]
        quick: bool,
        /// Only this device: null, ring, memif or af_packet.
        #[arg(long, value_name = "NAME")]
        device: Option<String>,
    },
}

pub fn run(options: &Options) -> Result<()> {
    options.packages.provide()?;
    match &options.suite {
        Suite::Micro { filter } => micro::run(filter.as_deref()),
        Suite::Compare { quick, unsteered } => {
            let profile = if *quick { Profile::Quick } else { Profile::Release };
            let [pmbench] = programs_in(profile, ["pmbench"])?;
            let mut command = Command::new(pmbench);
            command.arg("run").args(if *quick { QUICK } else { FULL }.split(' '));
            command.args(unsteered.then_some("--unsteered"));
            measure(&mut command, "compare")
        }
        Suite::Instructions { quick: false } => {
            let [pmbench] = programs_in(Profile::Release, ["pmbench"])?;
            measure(Command::new(pmbench).arg("instructions"), "instructions")
        }
        Suite::Instructions { quick: true } => {
            let [pmbench] = programs_in(Profile::Quick, ["pmbench"])?;
            let mut command = Command::new(pmbench);
            command.args(["instructions", "--modes", "paste", "--sizes", "1024", "--ceiling"]);
            measure(command.arg(workspace().join("apps/pmbench/ceiling.json")), "instructions")
        }
        Suite::Connections { quick, json } => {
            let profile = if *quick { Profile::Quick } else { Profile::Release };
            let [pmbench] = programs_in(profile, ["pmbench"])?;
            let mut command = Command::new(pmbench);
            command.arg("connections").args(json.then_some("--json"));
            if *quick {
                command.args(["--counts", "1,100,10000", "--rounds", "3", "--skip-instructions"]);
            }
            measure(&mut command, "connections")
        }
        Suite::Cores { quick } => {
            let (rounds, profile) = if *quick { ("2", Profile::Quick) } else { ("9", Profile::Release) };
            let [pmbench, _] = programs_in(profile, ["pmbench", "pmlog"])?;
            measure(Command::new(pmbench).args(["cores", "--rounds", rounds]), "cores")
        }
        Suite::Kv(options) => kv::run(options),
        Suite::Disk { quick } => disk::run(*quick),
        Suite::Open { quick } => {
            open::run(if *quick { &["256", "1024"] } else { &["1024", "4096", "16384"] })
        }
        Suite::Fwd { quick, device } => {
            setup::provide(&TESTPMD, Verbosity::WhenInstalling)?;
            let (rounds, seconds) = if *quick { ("3", "0.1") } else { ("11", "0.3") };
            let [pmbench, _] = programs_in(Profile::Release, ["pmbench", "pmfwd"])?;
            let mut command = Command::new(pmbench);
            command.args(["fwd", "--rounds", rounds, "--seconds", seconds]);
            command.args(device.iter().flat_map(|device| ["--device", device]));
            measure(&mut command, "fwd")
        }
    }
}

/// Has pmbench measure, and write what it finds into a folder below target/bench.
fn measure(pmbench: &mut Command, folder: &str) -> Result<()> {
    let folder = lab::target_directory().join("bench").join(folder);
    pmbench.arg("--out").arg(&folder);
    pmbench.args(["--commit", &said_by(Command::new("git").args(["describe", "--always", "--dirty"]))]);
    let status = pmbench.status().context("cannot start pmbench")?;
    // It has said what is wrong.
    ensure!(status.success(), "pmbench ended with {status}");
    println!("written to {}", folder.display());
    Ok(())
}
