//! `cargo xtask bench compare`: every way of serving durable appends, side by side.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::said_by;
use crate::steps::{Profile, programs_in};

/// The loads that the targets speak of, once each.
const QUICK: [&str; 10] = [
    "--sizes",
    "1024,8192",
    "--connections",
    "1,50,100",
    "--rounds",
    "1",
    "--seconds",
    "0.8",
    "--warmup",
    "0.1",
];
/// All loads, several times.
const FULL: [&str; 10] = [
    "--sizes",
    "64,1024,8192",
    "--connections",
    "1,10,50,100",
    "--rounds",
    "5",
    "--seconds",
    "1",
    "--warmup",
    "0.2",
];

#[derive(Args)]
#[command(after_help = "\
Examples:
  sudo -E cargo xtask bench compare --quick     the loads that the targets speak of, once: 3 minutes
  sudo -E cargo xtask bench compare             all loads, five times
Leave the machine alone meanwhile; it needs two CPUs that nothing else uses.")]
pub struct Options {
    /// Few loads, one round, short cells.
    #[arg(long)]
    quick: bool,
    /// Do without root, at the price of fairness on veth: see `pmbench run --help`.
    #[arg(long)]
    unsteered: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let profile = if options.quick { Profile::Quick } else { Profile::Release };
    let [pmbench] = programs_in(profile, ["pmbench"])?;
    let folder = lab::target_directory().join("bench/compare");
    let mut command = Command::new(pmbench);
    command.arg("run").arg("--out").arg(&folder);
    command.args(if options.quick { QUICK } else { FULL });
    command.args(["--commit", &said_by(Command::new("git").args(["describe", "--always", "--dirty"]))]);
    if options.unsteered {
        command.arg("--unsteered");
    }
    let status = command.status().context("cannot start pmbench")?;
    // pmbench has said what is wrong.
    ensure!(status.success(), "the comparison ended with {status}");
    println!("written to {}: results.json, report.md and the plots", folder.display());
    Ok(())
}
